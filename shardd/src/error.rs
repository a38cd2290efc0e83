//! What can go wrong in a node, and what the wire calls it.

use std::io;
use std::path::{Path, PathBuf};

use common::wire::{RefusalCode, VolumeId};

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The request makes no sense.
    #[error("{0}")]
    Request(String),
    /// Nothing is kept under that name.
    #[error("{0} is not here")]
    NotFound(String),
    /// Another FPCC or other bytes are kept under that name.
    #[error("{0}")]
    Conflict(String),
    /// A newer epoch of the volume has written.
    #[error("epoch {asked} of volume {volume} is over: epoch {newest} has written")]
    StaleEpoch {
        /// The volume.
        volume: VolumeId,
        /// The epoch of the request.
        asked: u32,
        /// The newest this node has seen.
        newest: u32,
    },
    /// The volume's key did not say so.
    #[error(
        "volume {volume} is written by who has its key alone: the request does not show that it lets this node be \
             written under epoch {epoch}"
    )]
    Forbidden {
        /// The volume.
        volume: VolumeId,
        /// The epoch of the request.
        epoch: u32,
    },
    /// Somebody else has the lease.
    #[error("volume {volume} is mounted on {host}, whose lease ends in {seconds} s")]
    Leased {
        /// The volume.
        volume: VolumeId,
        /// Where it is mounted.
        host: String,
        /// When the lease ends unless it is renewed.
        seconds: u64,
    },
    /// Fragment and FPCC do not belong together; nothing was kept.
    #[error("{0}")]
    Inconsistent(String),
    /// More than a body may hold.
    #[error("{0}")]
    TooLarge(String),
    /// No room for data; deletions still work.
    #[error("{needed} bytes do not fit: {available} bytes are left for data")]
    NoSpace {
        /// Bytes asked for.
        needed: u64,
        /// Bytes that data may still take.
        available: u64,
    },
    /// As many volumes as a node keeps.
    #[error("there is no room for another volume: a node keeps at most {0}")]
    TooManyVolumes(usize),
    /// The disk failed.
    #[error("{what}: {error}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        error: io::Error,
    },
    /// What was acknowledged could not be made durable; it is not known to be safe until a later flush succeeds.
    #[error("a flush failed, what was acknowledged before may be gone: {0}")]
    Flush(String),
    /// The data folder cannot be used.
    #[error("data folder {}: {why}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why.
        why: String,
    },
}

impl StoreError {
    /// What the wire calls it.
    pub fn code(&self) -> RefusalCode {
        match self {
            StoreError::Request(_) => RefusalCode::BadRequest,
            StoreError::NotFound(_) => RefusalCode::NotFound,
            StoreError::Conflict(_) => RefusalCode::Conflict,
            StoreError::StaleEpoch { .. } => RefusalCode::StaleEpoch,
            StoreError::Forbidden { .. } => RefusalCode::Forbidden,
            StoreError::Leased { .. } => RefusalCode::Leased,
            StoreError::Inconsistent(_) => RefusalCode::Inconsistent,
            StoreError::TooLarge(_) => RefusalCode::TooLarge,
            StoreError::NoSpace { .. } | StoreError::TooManyVolumes(_) => RefusalCode::NoSpace,
            StoreError::Io { .. } | StoreError::Flush(_) | StoreError::Folder { .. } => RefusalCode::Io,
        }
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> StoreError {
        let what = what.into();
        |error| StoreError::Io { what, error }
    }

    pub(crate) fn folder(folder: &Path, why: impl Into<String>) -> StoreError {
        StoreError::Folder { folder: folder.to_owned(), why: why.into() }
    }
}
