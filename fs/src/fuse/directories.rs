//! Directories as the kernel lists them: names alone, or entries with their attributes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::prepared::Page;
use super::{Fuse, TTL, node};
use crate::error::Result;
use crate::inode::{Ino, Inode, Time};
use crate::kernel::{Entry, Listing};
use crate::volume::Volume;

/// Entries asked of the store at once while listing with attributes: as many with short names fit into the 32 KiB that
/// the kernel asks for.
const PAGE: usize = 204;
/// Names asked of it at once; what does not fit was read for nothing.
const NAMES: usize = 128;
/// So many names fit where one entry with its attributes does, if they are short.
const NAMES_FOR_ENTRY: usize = 5;

/// What an answer held: how many entries, up to which cookie.
struct Handed {
    count: usize,
    last: u64,
}

impl Fuse {
    /// Names and types after a cookie, as many as fit.
    pub(super) fn list_names(&self, directory: Ino, offset: u64, mut listing: Listing) -> Result<Listing> {
        self.begin_listing(directory, offset);
        let mut handed = Handed { count: 0, last: offset };
        let listed = self.dots(directory, offset, |inode, cookie, name| {
            listing.name(inode.ino.0, cookie, inode.mode, OsStr::from_bytes(name))
        });
        let page = |after| match self.prepared.take(directory, after) {
            Some(page) => Ok((page.names, page.goes_on)),
            None => names(&self.volume, directory, after, NAMES).map(|page| (page.names, page.goes_on)),
        };
        let listed = listed.and_then(|full| match full {
            true => Ok(false),
            false => pages(offset, page, |name| {
                let called = OsStr::from_bytes(&name.name);
                let is_full = listing.name(name.ino.0, name.cookie, name.mode, called);
                handed.add(name.cookie, is_full)
            }),
        });
        if handed.count > 0 {
            self.listings.handed_names(directory);
        }
        self.end_listing(directory, listed, &handed, handed.count)?;
        Ok(listing)
    }

    /// Entries with their attributes after a cookie, as many as fit.
    pub(super) fn list_entries(&self, directory: Ino, offset: u64, mut listing: Listing) -> Result<Listing> {
        self.begin_listing(directory, offset);
        let mut handed = Handed { count: 0, last: offset };
        let mut add = |inode: &Inode, cookie, name: &[u8]| {
            let entry = Entry { node: node(inode), valid: TTL };
            listing.entry(&entry, cookie, OsStr::from_bytes(name))
        };
        let page = |after| {
            let entries = self.volume.list(directory, after, PAGE)?;
            let goes_on = entries.len() == PAGE;
            Ok((entries, goes_on))
        };
        let listed = self.dots(directory, offset, &mut add).and_then(|full| match full {
            true => Ok(false),
            false => pages(offset, page, |entry| {
                let is_full = add(&entry.inode, entry.cookie, &entry.name);
                // The kernel takes no reference on the two dots.
                if !is_full {
                    self.volume.remember(entry.inode.ino);
                }
                handed.add(entry.cookie, is_full)
            }),
        });
        // After the first answer the kernel goes on with names alone, unless somebody looks at what it was handed.
        let names = if offset == 0 { NAMES_FOR_ENTRY * handed.count } else { 0 };
        self.end_listing(directory, listed, &handed, names)?;
        Ok(listing)
    }

    fn begin_listing(&self, directory: Ino, offset: u64) {
        if offset > 0 {
            return;
        }
        self.listings.begun(directory);
        // What another listing had read may have changed since.
        self.prepared.forget(directory);
        if let Err(error) = self.volume.accessed(directory, Time::now()) {
            tracing::warn!(ino = directory.0, %error, "a time of access is lost");
        }
    }

    /// An answer holds all that was left, or as much as fits: then the next will ask for about so many names after a cookie.
    /// What went wrong after some were handed out the next will meet.
    fn end_listing(&self, directory: Ino, listed: Result<bool>, handed: &Handed, names: usize) -> Result<()> {
        match listed {
            Ok(true) => self.listings.ended(directory),
            Ok(false) if names > 0 => self.prepare(directory, handed.last, names),
            Ok(false) => {}
            Err(error) if handed.count == 0 => return Err(error),
            Err(error) => tracing::warn!(ino = directory.0, %error, "a listing ends early"),
        }
        Ok(())
    }

    /// Have the names after a cookie read while the kernel hands out those before it. On another thread: the kernel wakes
    /// who waits for an answer on the processor of who gave it.
    fn prepare(&self, directory: Ino, after: u64, count: usize) {
        let Some(promise) = self.prepared.promise(directory, after) else { return };
        let volume = self.volume.clone();
        // A few more, in case that their names are shorter.
        let most = count + count / 8;
        self.runtime.spawn_blocking(move || match names(&volume, directory, after, most) {
            Ok(page) => promise.here(page),
            // Whoever asks for them meets it himself.
            Err(_) => drop(promise),
        });
    }

    /// Hand out `.`, of cookie 1, and `..`, of 2, if they come after a cookie. Whether one no longer fitted.
    fn dots(
        &self,
        directory: Ino,
        after: u64,
        mut add: impl FnMut(&Inode, u64, &[u8]) -> bool,
    ) -> Result<bool> {
        if after < 1 && add(&self.volume.attributes(directory)?, 1, b".") {
            return Ok(true);
        }
        if after < 2 {
            let parent = self.volume.parent(directory)?;
            return Ok(add(&self.volume.attributes(parent)?, 2, b".."));
        }
        Ok(false)
    }
}

impl Handed {
    /// Count an entry, unless it no longer fitted; whether that is so.
    fn add(&mut self, cookie: u64, is_full: bool) -> bool {
        if !is_full {
            *self = Handed { count: self.count + 1, last: cookie };
        }
        is_full
    }
}

fn names(volume: &Volume, directory: Ino, after: u64, most: usize) -> Result<Page> {
    let names = volume.names(directory, after, most)?;
    let goes_on = names.len() == most;
    Ok(Page { names, goes_on })
}

/// What is listed, for knowing where to go on.
trait Listed {
    fn cookie(&self) -> u64;
}

impl Listed for crate::metadata::Name {
    fn cookie(&self) -> u64 {
        self.cookie
    }
}

impl Listed for crate::metadata::Entry {
    fn cookie(&self) -> u64 {
        self.cookie
    }
}

/// Hand out what comes after a cookie, page after page, until a page is the last or `add` says that no more fit. Whether
/// that was all.
fn pages<E: Listed>(
    after: u64,
    page: impl Fn(u64) -> Result<(Vec<E>, bool)>,
    mut add: impl FnMut(&E) -> bool,
) -> Result<bool> {
    let mut after = after.max(2);
    loop {
        let (entries, goes_on) = page(after)?;
        if entries.iter().any(&mut add) {
            return Ok(false);
        }
        match entries.last() {
            Some(last) if goes_on => after = last.cookie(),
            _ => return Ok(true),
        }
    }
}
