//! The claims of `MetadataStore`, run against every store there is: a new one joins in `support::stores`.
//! What only SQLite promises is in sqlite.rs and redo.rs.
#![allow(missing_docs, clippy::unwrap_used)]

mod attributes;
mod check;
mod data;
mod data_model;
mod intents;
mod names;
mod names_model;
mod objects;
mod outbox;
mod redo;
mod rename;
mod snapshots;
mod sqlite;
mod support;
mod volume;
