//! What can go wrong in the mount, and the errno each becomes.

use common::wire::ObjectId;

/// The result of everything fallible in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What happened to what.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No such name or inode.
    #[error("no such file or directory")]
    NotFound,
    /// The name is taken.
    #[error("the name exists")]
    Exists,
    /// A directory was needed.
    #[error("not a directory")]
    NotDirectory,
    /// A directory was in the way.
    #[error("is a directory")]
    IsDirectory,
    /// The directory has entries.
    #[error("the directory is not empty")]
    NotEmpty,
    /// A name of more than 255 bytes, or a symbolic link's target of more than 4095.
    #[error("the name is too long")]
    NameTooLong,
    /// More links than an inode may have.
    #[error("too many links")]
    TooManyLinks,
    /// An argument outside what the operation takes.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// A size or offset beyond what a file may have.
    #[error("the file would be too large")]
    TooLarge,
    /// The caller may not do this.
    #[error("operation not permitted")]
    NotPermitted,
    /// The caller lacks the rights.
    #[error("permission denied")]
    AccessDenied,
    /// The volume is mounted read-only, or another mount has taken it over.
    #[error("the volume is read-only")]
    ReadOnly,
    /// No such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// An extended attribute's value does not fit.
    #[error("the value is too long")]
    Range,
    /// Not offered by this file system.
    #[error("not supported")]
    Unsupported,
    /// A handle the mount does not know.
    #[error("bad file handle")]
    BadHandle,
    /// Nodes or volume are full.
    #[error("no space: {0}")]
    NoSpace(String),
    /// Too few nodes took or gave what is needed; dirty data stays, the call may be repeated.
    #[error("{0}")]
    TooFewNodes(String),
    /// Too few good fragments of an object can be had from the nodes that answer.
    #[error("object {object} cannot be read: {reason}")]
    Unreadable {
        /// Which object.
        object: ObjectId,
        /// Which nodes said what.
        reason: String,
    },
    /// The addresses given are no pool: one sentence that names the address.
    #[error("{0}")]
    Pool(String),
    /// A request took longer than `--io-timeout`.
    #[error("no answer within the time limit: {0}")]
    TimedOut(String),
    /// The metadata store itself.
    #[error("metadata store: {0}")]
    Store(String),
    /// The mount host's own disk.
    #[error("{0}")]
    Host(String),
}

impl Error {
    /// The errno a program sees.
    pub fn errno(&self) -> i32 {
        match self {
            Error::NotFound => libc::ENOENT,
            Error::Exists => libc::EEXIST,
            Error::NotDirectory => libc::ENOTDIR,
            Error::IsDirectory => libc::EISDIR,
            Error::NotEmpty => libc::ENOTEMPTY,
            Error::NameTooLong => libc::ENAMETOOLONG,
            Error::TooManyLinks => libc::EMLINK,
            Error::Invalid(_) => libc::EINVAL,
            Error::TooLarge => libc::EFBIG,
            Error::NotPermitted => libc::EPERM,
            Error::AccessDenied => libc::EACCES,
            Error::ReadOnly => libc::EROFS,
            Error::NoAttribute => libc::ENODATA,
            Error::Range => libc::ERANGE,
            Error::Unsupported => libc::EOPNOTSUPP,
            Error::BadHandle => libc::EBADF,
            Error::NoSpace(_) => libc::ENOSPC,
            Error::TooFewNodes(_)
            | Error::Unreadable { .. }
            | Error::Pool(_)
            | Error::TimedOut(_)
            | Error::Store(_)
            | Error::Host(_) => libc::EIO,
        }
    }

    /// Whether it is the pool's or the host's trouble and someone should read about it in the log;
    /// the others are ordinary answers to a program.
    pub fn is_trouble(&self) -> bool {
        matches!(self.errno(), libc::EIO | libc::ENOSPC)
    }
}
