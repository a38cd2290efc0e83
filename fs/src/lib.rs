//! The mount: names and bytes above, verified fragments on a pool of nodes below.
//!
//! The direction of knowledge is `main -> {cli -> config, fuse -> volume -> {open_file, stripe, metadata}}` and
//! `stripe -> {transport, cache, common}`; no layer calls upwards.

pub mod cli;
pub mod config;
pub mod error;
pub mod host;
pub mod inode;
pub mod metadata;
pub mod mount;
pub mod state;
pub mod transport;
