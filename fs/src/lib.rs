//! The mount: names and bytes above, verified fragments on a pool of nodes below.
//!
//! The direction of knowledge is `main -> {opening, cli -> config, fuse -> {kernel, volume} -> {open_file, stripe, metadata}}` and
//! `stripe -> {transport, cache, common}`; no layer calls upwards.

pub mod access;
pub mod acl;
pub mod asking;
pub mod authority;
pub mod begun;
pub mod bench;
pub mod blocking;
pub mod buffers;
pub mod busy;
pub mod cache;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod embedded;
pub mod error;
pub mod evidence;
pub mod fuse;
pub mod helper;
pub mod host;
pub mod inode;
pub mod journal;
pub mod kernel;
pub mod lease;
pub mod metadata;
pub mod metrics;
pub mod mount;
pub mod objects;
pub mod open_file;
pub mod opening;
pub mod placement;
pub mod pool;
pub mod recover;
pub mod report;
pub mod roster;
pub mod stages;
pub mod state;
pub mod stripe;
pub mod transport;
pub mod umount;
pub mod volume;
