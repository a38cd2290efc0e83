//! `avidfs rebalance`: asked of the daemon of a mount, and waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use avidfs::cli::RebalanceArgs;
use avidfs::control::{Daemon, Request};
use avidfs::report;
use avidfs::umount;
use avidfs::volume::{NodeReport, RebalanceReport, VolumeStatus};

use super::bar::Bar;
use super::{QUESTION_LIMIT, daemon, garbled, pretty, print};
use crate::{Failure, surroundings};

/// Between looks at what has arrived.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);
/// Nothing arrives any more if nothing has for so long, and sooner where a node is known to take nothing.
const STUCK: Duration = Duration::from_secs(60);
const STUCK_WITHOUT_ALL: Duration = Duration::from_secs(15);

pub fn rebalance(args: &RebalanceArgs) -> Result<(), Failure> {
    let mountpoint = surroundings()?.current_dir.join(&args.mountpoint);
    let mut daemon = daemon(&umount::find(&mountpoint)?)?;
    let value: serde_json::Value = daemon.ask(Request::Rebalance { dry_run: args.dry_run }, None)?;
    let placed: RebalanceReport = serde_json::from_value(value.clone()).map_err(|error| garbled(&error))?;
    print(&if args.json { pretty(&value) } else { report::rebalance(&placed, args.dry_run) })?;
    if args.dry_run || args.no_wait { Ok(()) } else { arrival(&mut daemon) }
}

/// Wait until everything is at home.
fn arrival(daemon: &mut Daemon) -> Result<(), Failure> {
    let away = Arc::new(AtomicU64::new(0));
    let shown = away.clone();
    let _bar = Bar::show(move || Some(format!("objects not at home: {:<12}", shown.load(Ordering::Relaxed))));
    let (mut least, mut since) = (u64::MAX, Instant::now());
    loop {
        let status: VolumeStatus = daemon.ask(Request::Status, Some(QUESTION_LIMIT))?;
        let left = status.objects_not_at_home;
        away.store(left, Ordering::Relaxed);
        if left == 0 {
            return Ok(());
        }
        let unwell = unwell(&status);
        let patience = if unwell.is_empty() { STUCK } else { STUCK_WITHOUT_ALL };
        if left < least {
            (least, since) = (left, Instant::now());
        } else if since.elapsed() >= patience {
            let why = if unwell.is_empty() { "all nodes are up".to_owned() } else { unwell.join(", ") };
            return Err(Failure::Refused(format!(
                "{left} objects wait to go where they belong, and will go when they can; none has for {} s: {why}",
                patience.as_secs()
            )));
        }
        sleep(BETWEEN_LOOKS);
    }
}

/// Nodes that take nothing, and why.
fn unwell(status: &VolumeStatus) -> Vec<String> {
    let takes_nothing = |node: &&NodeReport| node.placed && (!node.answers() || node.state == "full");
    status
        .nodes
        .iter()
        .filter(takes_nothing)
        .map(|node| format!("{} is {}", node.address, node.state))
        .collect()
}
