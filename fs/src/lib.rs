//! The mount: names and bytes above, verified fragments on a pool of nodes below.
//!
//! The direction of knowledge is `main -> {cli -> config, fuse -> volume -> {open_file, stripe, metadata}}` and
//! `stripe -> {transport, cache, common}`; no layer calls upwards.

pub mod buffers;
pub mod cache;
pub mod error;
pub mod fuse;
pub mod inode;
pub mod metadata;
pub mod open_file;
pub mod placement;
pub mod pool;
pub mod stripe;
pub mod transport;
pub mod volume;
