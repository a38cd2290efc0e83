//! How long each stage of the mount's work takes, for `/metrics`: what the kernel asks, and what is done for it.

use std::time::Instant;

use common::metrics::{Histogram, Page};

/// What takes time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// A name was looked up, for the kernel.
    Lookup,
    /// Attributes were asked for.
    Attributes,
    /// Names or attributes were changed, extended ones included.
    Change,
    /// A file was opened.
    Open,
    /// Bytes were read.
    Read,
    /// Bytes were written.
    Write,
    /// A file was closed: written bytes are given to the pool.
    Flush,
    /// A file or directory was synced.
    Sync,
    /// Part of a directory was listed.
    List,
    /// An object was cut, encoded and hashed.
    Encode,
    /// An object was sent until it was *stored*.
    Store,
    /// Nodes flushed what they have.
    FlushNodes,
    /// Changes of the metadata were brought to the pool.
    Journal,
    /// A change was made to the metadata on this host.
    Commit,
    /// A piece of an object was fetched from nodes, and checked.
    Fetch,
    /// Fragments were rebuilt from others, because nodes were down or wrong.
    Decode,
}

const STAGES: [(Stage, &str); 16] = [
    (Stage::Lookup, "fuse_lookup"),
    (Stage::Attributes, "fuse_attributes"),
    (Stage::Change, "fuse_change"),
    (Stage::Open, "fuse_open"),
    (Stage::Read, "fuse_read"),
    (Stage::Write, "fuse_write"),
    (Stage::Flush, "fuse_flush"),
    (Stage::Sync, "fuse_sync"),
    (Stage::List, "fuse_list"),
    (Stage::Encode, "encode"),
    (Stage::Store, "store"),
    (Stage::FlushNodes, "flush_nodes"),
    (Stage::Journal, "journal"),
    (Stage::Commit, "metadata_commit"),
    (Stage::Fetch, "fetch"),
    (Stage::Decode, "decode"),
];

/// Of this process: it serves one mount.
static TOOK: [Histogram; STAGES.len()] = [const { Histogram::new() }; STAGES.len()];

/// From its making until it is dropped a stage lasts.
#[must_use]
pub struct Lasting {
    stage: Stage,
    began: Instant,
}

/// A stage begins.
pub fn begin(stage: Stage) -> Lasting {
    Lasting { stage, began: Instant::now() }
}

impl Drop for Lasting {
    fn drop(&mut self) {
        TOOK[self.stage as usize].observe(self.began.elapsed());
    }
}

/// All of them.
pub fn write(page: &mut Page) {
    const NAME: &str = "avidfs_stage_seconds";
    page.head(NAME, "histogram", "How long stages of the work took; docs/operations.md says what they are.");
    for (stage, name) in STAGES {
        page.histogram(NAME, &format!("stage=\"{name}\""), &TOOK[stage as usize]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_stands_at_its_place_and_counts() {
        for (place, (stage, _)) in STAGES.iter().enumerate() {
            assert_eq!(*stage as usize, place);
        }
        let before = TOOK[Stage::Decode as usize].count();
        drop(begin(Stage::Decode));
        assert_eq!(TOOK[Stage::Decode as usize].count(), before + 1);
        let mut page = Page::default();
        write(&mut page);
        assert!(page.text().contains("avidfs_stage_seconds_count{stage=\"decode\"}"));
    }
}
