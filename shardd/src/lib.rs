//! One node: fragments in, fragments out, nothing it has not checked.

pub mod buffers;
pub mod error;
pub mod metrics;
pub mod store;

pub use error::StoreError;
pub use store::{Author, Space, Store, StoreOptions};
