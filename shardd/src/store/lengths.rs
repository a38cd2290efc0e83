//! How many bytes answers will have, before anything is set aside for them.

use common::wire::MAX_PAGE;

use super::Store;
use super::index::PAGE_BYTES;
use super::record::Space;

/// Bytes of a list beside its entries and the key at which it goes on.
pub const LIST_BYTES: usize = 64;

impl Store {
    /// Bytes of the page that `list` gives, as the wire has it: at most, if nothing comes meanwhile.
    pub fn list_length(&self, space: Space, after: &str, keys: usize) -> usize {
        LIST_BYTES + self.index.lock().list_length(space, after, keys.min(MAX_PAGE), PAGE_BYTES)
    }

    /// The same of all volumes.
    pub fn volumes_length(&self) -> usize {
        self.volumes.list_length()
    }
}
