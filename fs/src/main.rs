//! The mount program: what was typed, or asked by mount(8), is carried out and answered by an exit code.

mod commands;

use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use avidfs::asking;
use avidfs::cli::{Cli, Command, KeyCommand, MountArgs, UmountArgs, usage_sentence};
use avidfs::config::{self, ConfigError, MountConfig, Surroundings};
use avidfs::control::{self, Answering, Request};
use avidfs::daemon::{self, Announce, Running};
use avidfs::embedded::Embedded;
use avidfs::fuse::{self, FuseOptions};
use avidfs::helper::{Caller, MountHelper, UmountHelper, Wish};
use avidfs::host::{self, reason};
use avidfs::lease::Lease;
use avidfs::mount;
use avidfs::opening::{self, Opened};
use avidfs::roster::{self, Noted};
use avidfs::state::{Refusal, StateFolder};
use avidfs::umount;
use avidfs::volume::{Volume, VolumeStatus};
use clap::Parser;
use tokio::net::TcpListener;

use commands::{QUESTION_LIMIT, daemon};

/// How far the kernel reads ahead on a mount. What is read in order is fetched ahead by the mount itself, and further; what
/// the kernel has long before it is read leaves the processor's cache meanwhile, and has to be fetched from memory again.
const READ_AHEAD_KIB: u32 = 512;

fn main() -> ExitCode {
    host::settle_allocator();
    match std::env::args_os().next().and_then(|program| Caller::of(&program)) {
        Some(Caller::Mount) => help_mount(),
        Some(Caller::Umount) => help_umount(),
        Some(Caller::Asking) => asking::asked(std::env::args_os().skip(1)).into(),
        None => obey(),
    }
}

/// As a person typed it.
fn obey() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let done = match &cli.command {
        Command::Mount(args) => mount(args),
        Command::Umount(args) => commands::umount(args),
        Command::Status(args) => commands::status(args),
        Command::Bench(args) => commands::bench(args),
        Command::Metrics(args) => commands::metrics(args),
        Command::Info(args) => commands::info(args),
        Command::Gc(args) => commands::gc(args),
        Command::Rebalance(args) => commands::rebalance(args),
        Command::Blame(args) => commands::blame(args),
        Command::Snapshot(command) => commands::snapshot(command),
        Command::Versions(args) => commands::versions(args),
        Command::Fsck(args) => return commands::fsck::fsck(args),
        Command::Recover(args) => commands::recover(args),
        Command::Key(KeyCommand::Export { state }) => commands::export_key(state),
        Command::Pki(command) => commands::pki(command),
        Command::Put(args) => return commands::objects::put(args),
        Command::Get(args) => return commands::objects::get(args),
        Command::Delete(args) => return commands::objects::delete(args),
        Command::List(args) => return commands::objects::list(args),
        Command::Members(args) => return commands::objects::members(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(sentence)) => fail(&sentence, 2),
        Err(Failure::Refused(sentence) | Failure::System(sentence)) => fail(&sentence, 1),
        Err(Failure::Told) => ExitCode::FAILURE,
    }
}

/// As mount(8) asks, with its exit codes.
fn help_mount() -> ExitCode {
    match MountHelper::try_parse() {
        Ok(helper) => helped(mount_for(&helper)),
        Err(error) => helper_usage(&error),
    }
}

/// As umount(8) asks, with its exit codes.
fn help_umount() -> ExitCode {
    match UmountHelper::try_parse() {
        Ok(helper) => helped(umount_for(&helper)),
        Err(error) => helper_usage(&error),
    }
}

fn helped(done: Result<(), Failure>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(sentence)) => fail(&sentence, 1),
        Err(Failure::System(sentence)) => fail(&sentence, 2),
        Err(Failure::Refused(sentence)) => fail(&sentence, 32),
        Err(Failure::Told) => ExitCode::from(32),
    }
}

fn helper_usage(error: &clap::Error) -> ExitCode {
    match usage_sentence(error) {
        Some(sentence) => fail(&sentence, 1),
        None => usage(error),
    }
}

fn mount_for(helper: &MountHelper) -> Result<(), Failure> {
    let wish = helper.wish().map_err(Failure::Usage)?;
    enter(helper.namespace.as_deref())?;
    let words = match wish {
        Wish::Remount(_) if helper.fake => return Ok(()),
        Wish::Remount(options) => {
            let options = UNFLAGGED.into_iter().chain(options.iter().map(String::as_str));
            return remount(&helper.mountpoint, &options.collect::<Vec<_>>());
        }
        Wish::Mount(words) => words,
    };
    let cli = Cli::try_parse_from(std::iter::once("avidfs".into()).chain(words.iter().cloned()));
    let Ok(Cli { command: Command::Mount(args) }) = cli else {
        return Err(Failure::Usage(format!("{words:?} cannot be understood")));
    };
    let config = config::mount_config(&args, &surroundings()?)?;
    if helper.fake { Ok(()) } else { in_background(words, &config) }
}

/// Options that unset a flag. mount(8) puts together what a mount is to have, and says only what is set.
const UNFLAGGED: [&str; 7] = ["rw", "suid", "dev", "exec", "async", "diratime", "symfollow"];

fn remount(mountpoint: &Path, options: &[&str]) -> Result<(), Failure> {
    let mount = umount::find(&surroundings()?.current_dir.join(mountpoint))?;
    let shown = mount.mountpoint.display();
    let read_only = options.iter().rfind(|option| ["ro", "rw"].contains(option)) == Some(&"ro");
    let served: VolumeStatus = daemon(&mount)?.ask(Request::Status, Some(QUESTION_LIMIT))?;
    if served.read_only && !read_only {
        return Err(Failure::Refused(format!(
            "{shown} was mounted read-only: unmount it and mount it again"
        )));
    }
    host::remount(&mount, options).map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => Failure::Usage("only root may remount".to_owned()),
        ErrorKind::ResourceBusy => Failure::Refused(format!("files on {shown} are open for writing")),
        _ => Failure::Refused(format!("{shown} cannot be remounted: {}", reason(&error))),
    })
}

fn umount_for(helper: &UmountHelper) -> Result<(), Failure> {
    enter(helper.namespace.as_deref())?;
    let mountpoint = surroundings()?.current_dir.join(&helper.mountpoint);
    if let Ok(Some(mount)) = host::mount_at(&mountpoint)
        && !mount.is_ours()
    {
        let error = helper.without_us().exec();
        return Err(Failure::System(format!("umount: {}", reason(&error))));
    }
    if helper.lazy {
        return Ok(umount::umount_lazily(&mountpoint)?);
    }
    if helper.force {
        umount::umount_by_force(&mountpoint)?;
        return Ok(());
    }
    match commands::umount(&UmountArgs { mountpoint }) {
        Err(Failure::Refused(sentence)) if helper.read_only => {
            remount(&helper.mountpoint, &["ro"])?;
            Err(Failure::Refused(format!("{sentence}; it is read-only now")))
        }
        done => done,
    }
}

fn enter(namespace: Option<&str>) -> Result<(), Failure> {
    let Some(namespace) = namespace else { return Ok(()) };
    host::enter_mount_namespace(namespace)
        .map_err(|error| Failure::System(format!("the namespace {namespace}: {}", reason(&error))))
}

/// Why a command ended without having done what it was asked for.
enum Failure {
    /// The command line makes no sense.
    Usage(String),
    /// It could not be done.
    Refused(String),
    /// The system does not let us begin.
    System(String),
    /// It could not be done, and the person who asked was told already.
    Told,
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::Usage(error.0)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        Failure::Refused(refusal.0)
    }
}

fn fail(sentence: &str, code: u8) -> ExitCode {
    eprintln!("avidfs: {sentence}");
    ExitCode::from(code)
}

fn usage(error: &clap::Error) -> ExitCode {
    match usage_sentence(error) {
        Some(sentence) => fail(&sentence, 2),
        None => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
    }
}

fn mount(args: &MountArgs) -> Result<(), Failure> {
    let config = config::mount_config(args, &surroundings()?)?;
    if args.daemon {
        let announce = Announce::as_daemon().map_err(|error| host_refusal("the daemon", &error))?;
        serve(&config, announce).map_err(|_| Failure::Told)
    } else if config.foreground {
        Ok(serve(&config, Announce::Terminal)?)
    } else {
        in_background(std::env::args_os().skip(1), &config)
    }
}

fn in_background(words: impl IntoIterator<Item = OsString>, config: &MountConfig) -> Result<(), Failure> {
    let daemon = daemon::start(words).map_err(|error| {
        Failure::System(format!("the mount daemon cannot be started: {}", reason(&error)))
    })?;
    Ok(daemon::wait_for(daemon, &config.state)?)
}

fn surroundings() -> Result<Surroundings<'static>, Refusal> {
    let current_dir = std::env::current_dir().map_err(|error| host_refusal("the current folder", &error))?;
    Ok(Surroundings { env: &|name| std::env::var(name).ok(), current_dir, root: host::is_root() })
}

fn serve(config: &MountConfig, announce: Announce) -> Result<(), Refusal> {
    host::keep_files_private();
    avidfs::embedded::raise_file_limit();
    let runtime = runtime()?;
    let served = runtime.block_on(async {
        let begun = begin(config, &announce).await;
        if let Err(refusal) = &begun {
            announce.error(&refusal.0);
        }
        begun?.serve(announce).await
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

/// A mount that answers, and everything it needs.
struct Begun {
    running: Running,
    answering: Answering,
    lease: Option<Lease>,
    embedded: Option<Embedded>,
    /// Found by others while this lives.
    _noted: Option<Noted>,
    /// Nobody else uses the folder while this lives.
    _state: StateFolder,
}

impl Begun {
    async fn serve(self, announce: Announce) -> Result<(), Refusal> {
        // Whoever waited for the mount and is gone does not want it any more.
        let ended = match announce.ready() {
            Ok(()) => self.running.until_the_end().await,
            Err(_) => self.running.end().await,
        };
        if let Err(refusal) = &ended {
            tracing::error!(%refusal, "unmounted");
        }
        if let Some(lease) = self.lease {
            lease.release().await;
        }
        if let Some(nodes) = self.embedded {
            nodes.close().await;
        }
        // The answer to `avidfs umount` is on its way once nobody is being answered.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.answering.write()).await;
        ended
    }
}

/// Before anything is done, so that an address that is taken leaves nothing behind.
async fn listen_for_metrics(config: &MountConfig) -> Result<Option<TcpListener>, Refusal> {
    let Some(address) = config.metrics else { return Ok(None) };
    let listener = TcpListener::bind(address).await;
    listener.map(Some).map_err(|error| host_refusal(&format!("--metrics {address}"), &error))
}

async fn begin(config: &MountConfig, announce: &Announce) -> Result<Begun, Refusal> {
    mount::check_fuse(config.allow_other)?;
    let place = mount::look_at(&config.mountpoint)?.clear()?;
    mount::check_apart(place.path(), &config.state)?;
    let metrics = listen_for_metrics(config).await?;
    let opened = opening::open(config).await?;
    announce_and_log(&opened, announce)?;
    let volume = opening::volume(config, &opened).await?;
    // Before the mount is seen: who finds it and nobody listening takes it for a dead one.
    let listener =
        control::listen(opened.state.path()).map_err(|error| host_refusal("the control socket", &error))?;
    let running = show(config, place.path(), &opened, volume)?;
    if let Some(listener) = metrics {
        tokio::spawn(avidfs::metrics::serve(listener, running.volume().clone()));
    }
    let noted = note(place.path(), opened.state.path());
    let answering = Answering::default();
    tokio::spawn(control::serve(listener, running.handler(), answering.clone()));
    if let Err(refusal) = daemon::answers(place.path()).await {
        let _ = running.end().await;
        return Err(refusal);
    }
    if host::is_root()
        && let Err(error) = host::set_read_ahead(place.path(), READ_AHEAD_KIB)
    {
        tracing::debug!(%error, "read-ahead stays as the kernel has it");
    }
    Ok(Begun {
        running,
        answering,
        lease: opened.lease,
        embedded: opened.embedded,
        _noted: noted,
        _state: opened.state,
    })
}

/// Without a note the mount tells itself who serves it, as long as it answers.
fn note(place: &Path, state: &Path) -> Option<Noted> {
    let mount = host::mount_at(place).and_then(|mount| mount.ok_or(ErrorKind::NotFound.into()));
    match mount.and_then(|mount| roster::note(&mount, state)) {
        Ok(noted) => Some(noted),
        Err(error) => {
            tracing::warn!(%error, "no note of this mount");
            None
        }
    }
}

fn announce_and_log(opened: &Opened, announce: &Announce) -> Result<(), Refusal> {
    for warning in &opened.nodes.warnings {
        announce.warning(warning);
    }
    let log = opened.state.open_log().and_then(|log| announce.redirect(&log));
    log.map_err(|error| host_refusal("the log", &error))?;
    let filter = tracing_subscriber::EnvFilter::try_from_env("AVIDFS_LOG");
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}

/// Let the kernel show the volume.
fn show(
    config: &MountConfig,
    place: &Path,
    opened: &Opened,
    volume: Arc<Volume>,
) -> Result<Running, Refusal> {
    let name = config.fsname.clone().unwrap_or_else(|| format!("avidfs:{}", opened.settings.name));
    let options = FuseOptions {
        name,
        allow_other: config.allow_other,
        read_only: config.read_only,
        extra: config.kernel_options.clone(),
        rings: config.io_uring,
        control: control::socket(opened.state.path()),
    };
    let shown = place.display();
    let refused = |error: std::io::Error| Refusal(format!("{shown} cannot be mounted: {}", reason(&error)));
    let mounted =
        fuse::mount(volume.clone(), place, &options, tokio::runtime::Handle::current()).map_err(refused)?;
    Running::new(volume, place, || mounted.serve()).map_err(refused)
}

fn runtime() -> Result<tokio::runtime::Runtime, Refusal> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    // Threads for what blocks are started by whoever asks for them, who may have a processor of his own.
    let built = builder.enable_all().on_thread_start(host::run_anywhere).build();
    built.map_err(|error| host_refusal("the runtime", &error))
}

fn host_refusal(what: &str, error: &std::io::Error) -> Refusal {
    Refusal(format!("{what}: {}", reason(error)))
}
