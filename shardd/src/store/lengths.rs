//! How many bytes answers will have in memory and records on disk, before there is room for them.

use common::fpcc::Fpcc;
use common::wire::MAX_PAGE;

use super::index::PAGE_BYTES;
use super::record::Space;
use super::{Store, shape};

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

    /// Bytes of the disk that a fragment of such an object takes, under this key.
    pub fn record_length(key: &str, fpcc: &Fpcc) -> u64 {
        let fpcc_length = Fpcc::encoded_length(fpcc.code().m(), fpcc.code().n());
        shape(fpcc, fpcc_length).lengths(key.len()).record()
    }

    /// The same of all that is kept of one version.
    pub fn cost(&self, space: Space, key: &str, version: u64) -> u64 {
        let index = self.index.lock();
        let holding = index.find(space, key, version);
        holding.map_or(0, |holding| holding.lengths(key.len()).record() * holding.fragments())
    }
}
