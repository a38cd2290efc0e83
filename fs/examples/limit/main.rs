//! What this machine allows: a FUSE file system that keeps its files in memory and does nothing else, to be measured with
//! what avidfs is measured with.
//!
//!     cargo run --release --example limit -- MOUNTPOINT [DIR]
//!
//! Without DIR it shows what the requests of the kernel cost.
//! With DIR all that is written also becomes fragments (3+2, BLAKE3, objects of up to 4 MiB), and these go over loopback
//! to five processes that verify them and append them to files below DIR; a close waits until all are acknowledged. A
//! file beyond 4 MiB comes back from there. That much no program can leave out that keeps files as avidfs does. What else
//! avidfs does is not there: HTTP, an index, metadata, errors, durability. One file is written at a time, and of large
//! ones only the last can be read, if it was written from beginning to end.

// An instrument: whatever goes wrong ends it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod memory;
mod node;
mod pipeline;
mod reading;

use std::path::Path;

use avidfs::fuse::agreement;
use avidfs::host::{self, FuseRings};
use avidfs::kernel::Session;

use crate::memory::Memory;
use crate::node::node;
use crate::pipeline::Pipeline;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["node", port, index, file] => node(port, index.parse().unwrap(), Path::new(file)),
        [mountpoint] => serve(Path::new(mountpoint), None),
        [mountpoint, dir] => serve(Path::new(mountpoint), Some(Pipeline::start(Path::new(dir)))),
        _ => panic!("limit MOUNTPOINT [DIR]"),
    }
}

/// Until it is unmounted, asked as the mount daemon is; as root.
fn serve(mountpoint: &Path, pipeline: Option<Pipeline>) {
    let offered = FuseRings::offer();
    let device = host::mount_fuse(mountpoint, "limit", &["default_permissions"]).unwrap();
    let session = Session::begin(device, |_| Memory::new(pipeline), agreement(true)).unwrap();
    drop(offered);
    session.serve().unwrap();
}
