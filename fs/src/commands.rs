//! The commands that ask somebody and print: a running mount daemon, a pool of nodes, or a state folder.

mod bar;
mod blame;
pub mod fsck;
pub mod objects;
mod pki;
mod rebalance;
mod snapshots;

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use avidfs::access::Access;
use avidfs::bench::Figure;
use avidfs::cli::{
    AccessArgs, BenchArgs, GcArgs, InfoArgs, MetricsArgs, RecoverArgs, StatusArgs, UmountArgs,
};
use avidfs::config;
use avidfs::control::{Daemon, Request};
use avidfs::daemon;
use avidfs::host::{self, MountEntry};
use avidfs::journal;
use avidfs::journal::chain::Reader;
use avidfs::journal::key::VolumeKey;
use avidfs::mount;
use avidfs::opening::{HELLO_LIMIT, open_store};
use avidfs::pool::{Pool, PoolOptions};
use avidfs::recover::{self, Trust};
use avidfs::report;
use avidfs::state::{self, Refusal, Remembered, StateFolder};
use avidfs::transport::NodeAddress;
use avidfs::umount::{self, Unmounted};
use avidfs::volume::{FileReport, GarbageReport, VolumeStatus};

use crate::{Failure, host_refusal, runtime, surroundings};

pub use blame::blame;
pub use pki::pki;
pub use rebalance::rebalance;
pub use snapshots::{snapshot, versions};

/// Until a running daemon has answered a question.
pub const QUESTION_LIMIT: Duration = Duration::from_secs(60);

pub fn umount(args: &UmountArgs) -> Result<(), Failure> {
    let mountpoint = surroundings()?.current_dir.join(&args.mountpoint);
    if umount::umount(&mountpoint)? == Unmounted::Dead {
        daemon::warn("the mount daemon had ended before; the dead mount is detached");
    }
    Ok(())
}

pub fn status(args: &StatusArgs) -> Result<(), Failure> {
    match (&args.peers, &args.mountpoint) {
        (Some(peers), _) => status_of_pool(peers, args),
        (None, Some(mountpoint)) => {
            let mountpoint = surroundings()?.current_dir.join(mountpoint);
            status_of_mounts(&[umount::find(&mountpoint)?], args.json)
        }
        (None, None) => {
            let mounts = host::mounts().map_err(|error| host_refusal("/proc/self/mountinfo", &error))?;
            let ours: Vec<MountEntry> = mounts.into_iter().filter(MountEntry::is_ours).collect();
            if ours.is_empty() {
                return Err(Failure::Refused("there is no avidfs mount on this machine".to_owned()));
            }
            status_of_mounts(&ours, args.json)
        }
    }
}

fn status_of_pool(peers: &str, args: &StatusArgs) -> Result<(), Failure> {
    let (addresses, access) = reach(peers, &args.access)?;
    let survey = runtime()?.block_on(async {
        let transport = access.transport()?;
        Ok::<_, Refusal>(mount::survey(&transport, &addresses, &[], HELLO_LIMIT).await)
    })?;
    print(&if args.json { pretty(&report::pool_json(&survey)) } else { report::pool(&survey) })?;
    match survey.silent.len() {
        0 => Ok(()),
        silent => Err(Failure::Refused(format!("{silent} of {} nodes do not answer", addresses.len()))),
    }
}

/// Nodes that were named, and how they know us.
fn reach(peers: &str, args: &AccessArgs) -> Result<(Vec<NodeAddress>, Access), Failure> {
    let access = config::access(args, &surroundings()?)?;
    let addresses = config::peers(peers, &access);
    let wrong = |reason| Failure::Usage(format!("--peers {peers}: {reason}"));
    Ok((addresses.map_err(wrong)?, access))
}

fn status_of_mounts(mounts: &[MountEntry], json: bool) -> Result<(), Failure> {
    for (position, entry) in mounts.iter().enumerate() {
        let mut daemon = daemon(entry)?;
        let value: serde_json::Value = daemon.ask(Request::Status, Some(QUESTION_LIMIT))?;
        if json {
            print(&pretty(&value))?;
            continue;
        }
        let status: VolumeStatus = serde_json::from_value(value).map_err(|error| garbled(&error))?;
        let gap = if position > 0 { "\n" } else { "" };
        print(&format!(
            "{gap}{}",
            report::status(&entry.mountpoint.display().to_string(), daemon.pid(), &status)
        ))?;
    }
    Ok(())
}

pub fn bench(args: &BenchArgs) -> Result<(), Failure> {
    let mut printed = Ok(());
    let told = |figure: &Figure| {
        if !args.json && printed.is_ok() {
            printed = print(&report::figure(figure));
        }
    };
    let limit = Duration::from_secs(args.seconds);
    let figures = avidfs::bench::run(&args.folder, limit, told)
        .map_err(|error| host_refusal(&args.folder.display().to_string(), &error))?;
    if args.json { print(&pretty(&serde_json::json!(figures))) } else { printed }
}

pub fn metrics(args: &MetricsArgs) -> Result<(), Failure> {
    let mountpoint = surroundings()?.current_dir.join(&args.mountpoint);
    let text: String = daemon(&umount::find(&mountpoint)?)?.ask(Request::Metrics, Some(QUESTION_LIMIT))?;
    print(&text)
}

pub fn info(args: &InfoArgs) -> Result<(), Failure> {
    use std::os::unix::fs::MetadataExt;
    let shown = args.path.display().to_string();
    let metadata = args.path.metadata().map_err(|error| host_refusal(&shown, &error))?;
    if !metadata.is_file() {
        return Err(Failure::Refused(format!("{shown} is not a file: info tells where a file's bytes are")));
    }
    let entry = args.path.canonicalize().and_then(|path| host::mount_of(&path));
    let entry = entry.map_err(|error| host_refusal(&shown, &error))?;
    let entry = entry.filter(MountEntry::is_ours);
    let entry = entry.ok_or_else(|| Failure::Refused(format!("{shown} is not on an avidfs mount")))?;
    let value: serde_json::Value =
        daemon(&entry)?.ask(Request::Info { ino: metadata.ino() }, Some(QUESTION_LIMIT))?;
    if args.json {
        return print(&pretty(&value));
    }
    let file: FileReport = serde_json::from_value(value).map_err(|error| garbled(&error))?;
    print(&report::file(&shown, &file))
}

pub fn gc(args: &GcArgs) -> Result<(), Failure> {
    let mountpoint = surroundings()?.current_dir.join(&args.mountpoint);
    let request = Request::Gc { dry_run: args.dry_run };
    let value: serde_json::Value = daemon(&umount::find(&mountpoint)?)?.ask(request, None)?;
    if args.json {
        return print(&pretty(&value));
    }
    let found: GarbageReport = serde_json::from_value(value).map_err(|error| garbled(&error))?;
    print(&report::garbage(&found, args.dry_run))
}

pub fn export_key(state: &Path) -> Result<(), Failure> {
    match state::key_in(state)? {
        key @ VolumeKey::Private(_) => hand_over(&key.to_text()),
        VolumeKey::Public(_) => {
            let shown = state.display();
            Err(Failure::Refused(format!("{shown} has only the public half of the volume's key")))
        }
    }
}

pub fn recover(args: &RecoverArgs) -> Result<(), Failure> {
    host::keep_files_private();
    let (addresses, access) = reach(&args.peers, &args.access)?;
    let trust = match (&args.key, &args.fingerprint) {
        (Some(path), _) => {
            let shown = path.display().to_string();
            let text = read_key(path).map_err(|error| host_refusal(&shown, &error))?;
            let key = VolumeKey::from_text(&text);
            Trust::Key(Box::new(key.map_err(|error| Failure::Refused(format!("{shown}: {error}")))?))
        }
        (None, Some(digits)) => Trust::Fingerprint(digits.to_lowercase()),
        (None, None) => Trust::Nodes,
    };
    let state = surroundings()?.current_dir.join(&args.state);
    let recovered = runtime()?.block_on(recover_from(addresses, &access, &state, args, trust))?;
    print(&recovered)
}

/// Whoever reads the key can write the volume; it may be read all the same, as the host it was kept from is lost.
fn read_key(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() && metadata.permissions().mode() & 0o077 != 0 {
        daemon::warn(&format!("others may read or change the volume's key: chmod 600 {}", path.display()));
    }
    io::read_to_string(file)
}

/// Everything is read and checked before the folder is touched, and written in one transaction. Returns what to say of it.
async fn recover_from(
    addresses: Vec<NodeAddress>,
    access: &Access,
    path: &Path,
    args: &RecoverArgs,
    trust: Trust,
) -> Result<String, Refusal> {
    // The key comes last: a folder without one was never finished, and is begun anew.
    if (state::look(path)?.is_some() || state::has_metadata(path)) && state::has_key(path) {
        return Err(Refusal(format!("the state folder {} has a volume already", path.display())));
    }
    let transport = access.transport()?;
    let survey = mount::survey(&transport, &addresses, &[], HELLO_LIMIT).await;
    let descriptor = recover::volume_of(&survey, args.volume.as_deref())?;
    let (code, hash) = recover::shape(&descriptor)?;
    recover::check_enough(&survey, &descriptor, code.m())?;
    let pool = Pool::connect(transport, addresses, &[], PoolOptions::default()).await?;
    let io_limit = PoolOptions::default().io_limit;
    let accept_loss = args.accept_loss;
    let reader = Reader {
        pool,
        volume: descriptor.volume,
        code,
        hash,
        io_limit,
        accept_loss,
        unfenced: Default::default(),
    };
    let chain = recover::chain(&reader, &trust).await?;
    let state = StateFolder::take(path)?;
    let store = open_store(&state)?;
    journal::restore(&store, &reader, &chain, &show_progress).await?;
    let head = chain.head();
    let answered = survey.answered.iter().map(|hello| (hello.info.node, hello.address.clone()));
    state.remember(&Remembered::new(descriptor.volume, &descriptor.name, answered))?;
    let key = trust.key(head);
    state.keep_key(&key)?;
    if chain.answered < code.fresh_quorum() {
        daemon::warn(&recover::reduced(chain.answered, code));
    }
    Ok(report::recovered(&descriptor.name, path, &store.usage()?, head, &key))
}

fn show_progress(done: usize, all: usize) {
    if io::stderr().is_terminal() {
        let end = if done == all { "\n" } else { "" };
        eprint!("\rreading the journal: {done} of {all} blocks{end}");
    }
}

/// The daemon that serves a mount.
pub fn daemon(entry: &MountEntry) -> Result<Daemon, Refusal> {
    umount::daemon_of(entry)?.ok_or_else(|| {
        let shown = entry.mountpoint.display();
        Refusal(format!("the daemon of {shown} has ended: avidfs umount {shown} detaches the dead mount"))
    })
}

/// Like `print!`, but a failure is one of the command. A reader that has seen enough (`| head`) is told nothing.
fn print(text: &str) -> Result<(), Failure> {
    write_out(text).map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Failure::Told,
        _ => host_refusal("standard output", &error).into(),
    })
}

/// Print what somebody keeps: a reader that does not take all of it is an error as any other.
fn hand_over(text: &str) -> Result<(), Failure> {
    write_out(text).map_err(|error| host_refusal("standard output", &error).into())
}

fn write_out(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

fn garbled(error: &serde_json::Error) -> Refusal {
    Refusal(format!("the mount daemon is of another version: {error}"))
}
