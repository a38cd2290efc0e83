//! Verified data fragments, in memory and then on the local disk, least recently used out first.
//! It knows no network; what it is given was checked, and what it reads back from disk it checks itself.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use common::wire::ObjectId;

use crate::error::Result;

/// How much may be kept, and where.
#[derive(Clone, Debug)]
pub struct CacheOptions {
    /// Bytes in memory, with what it costs to find them.
    pub memory_bytes: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Folder of the disk level, made if absent and emptied; none: memory only.
    pub disk: Option<PathBuf>,
}

/// What a cache did and holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CacheStats {
    /// Fragments found in memory.
    pub memory_hits: u64,
    /// Fragments asked for and not in memory.
    pub memory_misses: u64,
    /// Bytes in memory, overhead included.
    pub memory_bytes: u64,
    /// Fragments in memory.
    pub memory_fragments: u64,
    /// Fragments, whole or in part, found on disk and good.
    pub disk_hits: u64,
    /// Fragments asked for and not on disk.
    pub disk_misses: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Fragments on disk.
    pub disk_fragments: u64,
    /// Fragments on disk whose bytes had changed.
    pub disk_rotten: u64,
    /// Fragments that left memory and were not written to disk because the disk was behind.
    pub disk_skipped: u64,
}

/// See the module.
pub struct Cache {}

impl Cache {
    /// An empty cache; what an earlier one left in the disk folder is removed.
    pub fn open(_options: CacheOptions) -> Result<Arc<Cache>> {
        unimplemented!()
    }

    /// From memory.
    pub fn get(&self, _object: ObjectId, _index: u8) -> Option<Bytes> {
        unimplemented!()
    }

    /// The whole fragment from disk, checked; it is in memory afterwards.
    pub async fn get_disk(&self, _object: ObjectId, _index: u8) -> Option<Bytes> {
        unimplemented!()
    }

    /// A range of a fragment from disk; only the blocks it touches are read and checked.
    pub async fn get_disk_range(&self, _object: ObjectId, _index: u8, _range: Range<usize>) -> Option<Bytes> {
        unimplemented!()
    }

    /// Keep a fragment. Only bytes that passed the FPCC check.
    pub fn insert(&self, _object: ObjectId, _index: u8, _fragment: Bytes) {
        unimplemented!()
    }

    /// Forget every fragment of an object.
    pub fn remove(&self, _object: ObjectId) {
        unimplemented!()
    }

    /// What it did and holds.
    pub fn stats(&self) -> CacheStats {
        unimplemented!()
    }
}
