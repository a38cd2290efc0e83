//! One node: fragments in, fragments out, nothing it has not checked.
//!
//! [`Store`] keeps them, [`app`] is the node as an HTTP service without a socket, [`serve`] gives it one.

pub mod agreement;
mod api;
mod batch;
mod blocking;
mod buffers;
pub mod config;
pub mod dispersal;
mod error;
pub mod evil;
mod gets;
mod intake;
mod metrics;
mod peers;
mod puts;
mod server;
mod signed;
mod store;

pub use api::{app, app_for};
pub use error::StoreError;
pub use intake::Limits;
pub use server::{serve, serve_tls};
pub use store::{
    Act, Author, Disk, DiskFile, LocalDisk, ModelledDisk, Space, Store, StoreOptions, StoredFragment, Usage,
    keep_files_private, raise_file_limit, settle_allocator,
};
