//! `avidfs fsck`: asked of the daemon of a mount, or done here for a volume that is not mounted. Its exit codes are
//! those of fsck(8).

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use avidfs::cli::{FsckArgs, MountArgs};
use avidfs::config::{self, MountConfig};
use avidfs::control::Request;
use avidfs::daemon::warn;
use avidfs::host;
use avidfs::opening::{self, Opened};
use avidfs::report;
use avidfs::state::{self, Refusal};
use avidfs::umount;
use avidfs::volume::{FsckProgress, FsckReport, FsckWish, Volume};

use super::bar::Bar;
use super::{QUESTION_LIMIT, daemon, garbled, pretty, print};
use crate::{Failure, fail, runtime, surroundings};

/// Problems were found, and all are repaired.
const REPAIRED: u8 = 1;
/// The command line is wrong.
const USAGE: u8 = 2;
/// Problems are left.
const LEFT: u8 = 4;
/// The check could not be made.
const NOT_RUN: u8 = 8;

pub fn fsck(args: &FsckArgs) -> ExitCode {
    let wish = FsckWish { repair: args.repair, deep: args.deep };
    let report = match (&args.mountpoint, &args.state) {
        (Some(mountpoint), _) => of_mount(mountpoint, wish),
        (None, Some(state)) => of_folder(state, args, wish),
        (None, None) => Err(Failure::Usage("a mount point or --state is missing".to_owned())),
    };
    let told = report.and_then(|found| {
        let json = || pretty(&serde_json::to_value(&found).expect("a report is strings and numbers"));
        print(&if args.json { json() } else { report::fsck(&found) }).map(|()| code(&found))
    });
    match told {
        Ok(code) => code,
        Err(Failure::Usage(sentence)) => fail(&sentence, USAGE),
        Err(Failure::Refused(sentence) | Failure::System(sentence)) => fail(&sentence, NOT_RUN),
        Err(Failure::Told) => ExitCode::from(NOT_RUN),
    }
}

fn code(report: &FsckReport) -> ExitCode {
    match (report.found, report.left) {
        (0, _) => ExitCode::SUCCESS,
        (_, 0) => ExitCode::from(REPAIRED),
        _ => ExitCode::from(LEFT),
    }
}

fn of_mount(mountpoint: &Path, wish: FsckWish) -> Result<FsckReport, Failure> {
    let mountpoint = surroundings()?.current_dir.join(mountpoint);
    let mount = umount::find(&mountpoint)?;
    let mut daemon_beside = daemon(&mount)?;
    let look = move || daemon_beside.ask(Request::FsckProgress, Some(QUESTION_LIMIT)).ok();
    let bar = wish.deep.then(|| show(look));
    let value = daemon(&mount)?.ask(Request::Fsck(wish), None);
    drop(bar);
    let value: serde_json::Value = value?;
    Ok(serde_json::from_value(value).map_err(|error| garbled(&error))?)
}

/// By the same road as a mount, without the mount: read-only where nothing is to be repaired.
fn of_folder(state: &Path, args: &FsckArgs, wish: FsckWish) -> Result<FsckReport, Failure> {
    let surroundings = surroundings()?;
    let path = surroundings.current_dir.join(state);
    let args = MountArgs {
        state: Some(path.to_string_lossy().into_owned()),
        peers: args.peers.clone(),
        access: args.access.clone(),
        read_only: !wish.repair,
        // What is read is to come from the nodes.
        cache_disk: Some("0".to_owned()),
        ..MountArgs::default()
    };
    let config = config::mount_config(&args, &surroundings)?;
    host::keep_files_private();
    avidfs::embedded::raise_file_limit();
    let runtime = runtime()?;
    let checked = runtime.block_on(check(&config, wish));
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(checked?)
}

async fn check(config: &MountConfig, wish: FsckWish) -> Result<FsckReport, Refusal> {
    let opened = open(config).await?;
    opened.nodes.warnings.iter().for_each(|warning| warn(warning));
    let rows = if wish.repair { opening::rebuild(config, &opened).await? } else { 0 };
    let volume = opening::volume(config, &opened).await?;
    let checking = volume.clone();
    let bar = wish.deep.then(|| show(move || Some(checking.fsck_progress())));
    let checked = volume.fsck(wish).await;
    drop(bar);
    let ended = end(volume, opened).await;
    let report = FsckReport { remount: false, ..checked?.taken_from_journal(rows) };
    ended.map(|()| report)
}

/// How far a deep check is, on a terminal, until dropped.
fn show(mut look: impl FnMut() -> Option<FsckProgress> + Send + 'static) -> Bar {
    Bar::show(move || {
        let FsckProgress { done, all } = look().filter(|progress| progress.all > 0)?;
        Some(format!("verifying fragments: {done} of {all} objects"))
    })
}

async fn open(config: &MountConfig) -> Result<Opened, Refusal> {
    let shown = config.state.display();
    let none = || Refusal(format!("there is no volume in {shown}"));
    if !state::has_metadata(&config.state) {
        return Err(none());
    }
    match opening::open_made(config).await {
        Ok(opened) => opened.ok_or_else(none),
        Err(Refusal(why)) if why.contains(" is in use by ") => {
            Err(Refusal(format!("{why}: give the mount point instead of --state")))
        }
        Err(refusal) => Err(refusal),
    }
}

/// As after a mount: everything is stored, and the volume is free for others.
async fn end(volume: Arc<Volume>, opened: Opened) -> Result<(), Refusal> {
    let saved = match opened.lease.is_some() {
        true => volume.shut_down().await.map_err(|unsaved| Refusal(unsaved.to_string())),
        false => Ok(()),
    };
    if let Some(lease) = opened.lease {
        lease.release().await;
    }
    if let Some(nodes) = opened.embedded {
        nodes.close().await;
    }
    saved
}
