//! `avidfs blame`: asked of the daemon of a mount, or read from the state folder of a volume that is not mounted.

use std::path::Path;

use avidfs::cli::BlameArgs;
use avidfs::control::Request;
use avidfs::evidence::{Case, Evidence};
use avidfs::host;
use avidfs::report;
use avidfs::state::StateFolder;
use avidfs::umount;
use common::wire::NodeId;

use super::{daemon, garbled, pretty, print};
use crate::{Failure, host_refusal, surroundings};

pub fn blame(args: &BlameArgs) -> Result<(), Failure> {
    let here = surroundings()?.current_dir;
    let (cases, cleared) = match (&args.mountpoint, &args.state) {
        (Some(mountpoint), _) => of_mount(&here.join(mountpoint), args.clear)?,
        (None, Some(state)) => of_folder(&here.join(state), args.clear)?,
        (None, None) => return Err(Failure::Usage("a mount point or --state is missing".to_owned())),
    };
    if let (Some(node), Some(0)) = (args.clear, cleared) {
        return Err(Failure::Refused(format!("there is nothing against node {node}")));
    }
    let json = || pretty(&serde_json::to_value(&cases).expect("cases are strings and numbers"));
    print(&if args.json { json() } else { report::blame(&cases) })
}

type Found = Result<(Vec<Case>, Option<u64>), Failure>;

fn of_mount(mountpoint: &Path, clear: Option<NodeId>) -> Found {
    let mount = umount::find(mountpoint)?;
    let ask = |request| daemon(&mount)?.ask(request, None).map_err(Failure::from);
    let cleared = clear.map(|node| ask(Request::Absolve { node })).transpose()?;
    let cases = serde_json::from_value(ask(Request::Blame)?).map_err(|error| garbled(&error))?;
    Ok((cases, cleared.and_then(|count| count.as_u64())))
}

fn of_folder(state: &Path, clear: Option<NodeId>) -> Found {
    host::keep_files_private();
    // Nobody mounts it meanwhile.
    let folder = StateFolder::take(state)?;
    let wrong = |error: std::io::Error| host_refusal("the evidence", &error);
    let evidence = Evidence::open(folder.path()).map_err(wrong)?;
    let cleared = clear.map(|node| evidence.clear(node)).transpose().map_err(wrong)?;
    Ok((evidence.cases(), cleared.map(|count| count as u64)))
}
