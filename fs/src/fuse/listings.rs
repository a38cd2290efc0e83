//! Which directories the kernel may list from its own memory.
//!
//! It remembers names alone, so whoever lists a directory that it remembers and then looks at each entry costs a lookup
//! for each. Where we are asked for the listing, the kernel asks for attributes along with the names as soon as it sees
//! that somebody wants them (FUSE_READDIRPLUS_AUTO), and then has them all. So the listing after one without attributes
//! comes to us once more; if that one is without them too, nobody looks at the entries, and the kernel's memory is best.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::inode::Ino;

/// See the module.
#[derive(Default)]
pub(super) struct Listings(Mutex<HashMap<Ino, Known>>);

/// Of a directory whose last listing handed out names alone; there is nothing to know of others.
struct Known {
    /// So were this many one after the other.
    bare: u32,
    /// The last one has handed out names alone already.
    counted: bool,
}

impl Listings {
    /// Whether the kernel may list a directory that is opened now from what it remembers, and remember this listing.
    pub(super) fn may_be_remembered(&self, directory: Ino) -> bool {
        self.0.lock().get(&directory).is_none_or(|known| known.bare != 1)
    }

    /// A listing begins.
    pub(super) fn begun(&self, directory: Ino) {
        if let Some(known) = self.0.lock().get_mut(&directory) {
            known.counted = false;
        }
    }

    /// It hands out names alone.
    pub(super) fn handed_names(&self, directory: Ino) {
        let mut listings = self.0.lock();
        let known = listings.entry(directory).or_insert(Known { bare: 0, counted: false });
        if !known.counted {
            *known = Known { bare: known.bare.saturating_add(1), counted: true };
        }
    }

    /// It is at its end.
    pub(super) fn ended(&self, directory: Ino) {
        let mut listings = self.0.lock();
        if listings.get(&directory).is_some_and(|known| !known.counted) {
            listings.remove(&directory);
        }
    }

    /// The kernel has forgotten an inode.
    pub(super) fn forget(&self, ino: Ino) {
        self.0.lock().remove(&ino);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECTORY: Ino = Ino(7);

    fn list(listings: &Listings, with_attributes: bool) {
        listings.begun(DIRECTORY);
        if !with_attributes {
            listings.handed_names(DIRECTORY);
            listings.handed_names(DIRECTORY);
        }
        listings.ended(DIRECTORY);
    }

    #[test]
    fn after_names_alone_it_comes_to_us_once_more() {
        let listings = Listings::default();
        assert!(listings.may_be_remembered(DIRECTORY));
        list(&listings, false);
        assert!(!listings.may_be_remembered(DIRECTORY) && listings.may_be_remembered(Ino(8)));
        list(&listings, false);
        assert!(listings.may_be_remembered(DIRECTORY), "nobody looks at the entries");
        list(&listings, true);
        list(&listings, false);
        assert!(!listings.may_be_remembered(DIRECTORY), "somebody did meanwhile");
        list(&listings, true);
        assert!(listings.may_be_remembered(DIRECTORY) && listings.0.lock().is_empty());
    }

    #[test]
    fn what_the_kernel_forgets_takes_no_memory() {
        let listings = Listings::default();
        list(&listings, false);
        listings.forget(DIRECTORY);
        assert!(listings.0.lock().is_empty());
    }
}
