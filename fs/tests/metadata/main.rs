//! The claims of `MetadataStore`, run against every store there is: a new one joins in `support::stores`.
//! What only SQLite promises is in sqlite.rs.
#![allow(missing_docs)]

mod attributes;
mod data;
mod data_model;
mod names;
mod objects;
mod rename;
mod support;
mod volume;
