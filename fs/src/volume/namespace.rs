//! Names: look up, create, link, rename, remove, list.

use super::Volume;
use crate::error::{Error, Result};
use crate::inode::{Caller, Ino, Inode, ROOT};
use crate::metadata::{Entry, Name, NewInode, Removed, RenameMode};

/// Orphans given up in one transaction.
const RECLAIMED_AT_ONCE: usize = 256;

impl Volume {
    /// The inode under a name; counts as one lookup, to be given back by `forget`.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Inode> {
        if self.hidden.lock().as_ref().is_some_and(|hidden| hidden.is(parent, name)) {
            return Err(Error::NotFound);
        }
        self.told(|| self.metadata.lookup(parent, name))
    }

    /// A new inode under a new name; counts as one lookup. A set-group-id directory hands on its group, and to
    /// directories the bit itself; its default access control list takes the umask's place.
    pub fn create(
        &self,
        parent: Ino,
        name: &[u8],
        mut new: NewInode,
        umask: u32,
        caller: Caller,
    ) -> Result<Inode> {
        self.writable()?;
        self.inherit(parent, &mut new, umask)?;
        let directory = self.metadata.inode(parent)?;
        if directory.mode & libc::S_ISGID != 0 {
            new.gid = directory.gid;
            if new.mode & libc::S_IFMT == libc::S_IFDIR {
                new.mode |= libc::S_ISGID;
            }
        }
        self.told(|| self.metadata.create(parent, name, &new, caller.now))
    }

    /// One more name for an inode; counts as one lookup.
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8], caller: Caller) -> Result<Inode> {
        self.writable()?;
        self.told(|| self.metadata.link(ino, parent, name, caller.now))
    }

    /// Remove a name that is no directory's. What is open or known to the kernel lives on without it.
    pub fn unlink(&self, parent: Ino, name: &[u8], caller: Caller) -> Result<()> {
        self.writable()?;
        let removed = self.metadata.unlink(parent, name, caller.now)?;
        self.give_up(Some(removed));
        Ok(())
    }

    /// Remove an empty directory.
    pub fn rmdir(&self, parent: Ino, name: &[u8], caller: Caller) -> Result<()> {
        self.writable()?;
        let removed = self.metadata.rmdir(parent, name, caller.now)?;
        self.give_up(Some(removed));
        Ok(())
    }

    /// Rename, as rename(2) and renameat2(2) have it.
    pub fn rename(
        &self,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        mode: RenameMode,
        caller: Caller,
    ) -> Result<()> {
        self.writable()?;
        let replaced = self.metadata.rename(from, to, mode, caller.now)?;
        self.give_up(replaced);
        Ok(())
    }

    /// The target of a symbolic link.
    pub fn target(&self, ino: Ino) -> Result<Vec<u8>> {
        self.metadata.target(ino)
    }

    /// The directory above; the root's is the root.
    pub fn parent(&self, directory: Ino) -> Result<Ino> {
        self.metadata.parent(directory)
    }

    /// At most `limit` entries after the cookie `after`, by cookie, with attributes; `.` and `..` are not among them.
    pub fn list(&self, directory: Ino, after: u64, limit: usize) -> Result<Vec<Entry>> {
        let commits = self.commits.count();
        let list = |after| self.metadata.list(directory, after, limit);
        let mut entries = self.shown(directory, after, list, |entry| (entry.cookie, &entry.name))?;
        // Looked at once, not at every entry: most listings meet no open file.
        let none_is_open = self.files.lock().is_empty() && self.commits.count() == commits;
        for entry in &mut entries {
            match none_is_open {
                true => self.accesses.overlay(&mut entry.inode),
                false => entry.inode = self.overlay(entry.inode.clone(), commits)?,
            }
        }
        Ok(entries)
    }

    /// As `list`, without the attributes.
    pub fn names(&self, directory: Ino, after: u64, limit: usize) -> Result<Vec<Name>> {
        let list = |after| self.metadata.names(directory, after, limit);
        self.shown(directory, after, list, |name| (name.cookie, &name.name))
    }

    /// A page of a directory without the name that is hidden. Nothing only at the directory's end.
    fn shown<T>(
        &self,
        directory: Ino,
        mut after: u64,
        list: impl Fn(u64) -> Result<Vec<T>>,
        of: impl Fn(&T) -> (u64, &Vec<u8>),
    ) -> Result<Vec<T>> {
        loop {
            let mut page = list(after)?;
            let Some(last) = page.last() else { return Ok(page) };
            after = of(last).0;
            if let Some(hidden) = &*self.hidden.lock() {
                page.retain(|entry| !hidden.is(directory, of(entry).1));
            }
            if !page.is_empty() {
                return Ok(page);
            }
        }
    }

    /// The kernel was handed this inode once more.
    pub fn remember(&self, ino: Ino) {
        self.lookups.add(ino);
    }

    /// The kernel gives back `count` lookups. The last one ends an inode without a name.
    pub fn forget(&self, ino: Ino, count: u64) {
        if ino == ROOT || !self.lookups.remove(ino, count) || self.options.read_only {
            return;
        }
        if self.orphans.known.lock().remove(&ino) {
            self.reclaim(ino);
        }
    }

    fn told(&self, ask: impl FnOnce() -> Result<Inode>) -> Result<Inode> {
        let inode = self.current(ask)?;
        self.lookups.add(inode.ino);
        Ok(inode)
    }

    fn give_up(&self, removed: Option<Removed>) {
        let Some(removed) = removed.filter(|removed| removed.orphaned) else { return };
        let ino = removed.inode.ino;
        // Noted before looking, so that the kernel's last word in between is not missed.
        self.orphans.known.lock().insert(ino);
        if !self.lookups.knows(ino) && self.orphans.known.lock().remove(&ino) {
            self.reclaim(ino);
        }
    }

    /// Give an orphan's inode and bytes up, also those that are still on their way.
    fn reclaim(&self, ino: Ino) {
        self.accesses.forget(ino);
        let file = self.files.lock().remove(&ino);
        if let Some(file) = file {
            self.budget.give(file.state().truncate(0));
            self.cut(&file);
        }
        self.orphans.given_up.lock().push(ino);
        self.orphans.more.notify_one();
    }

    /// Give up in the store what was given up here.
    pub(super) fn reclaim_given_up(&self) -> Result<()> {
        let orphans = std::mem::take(&mut *self.orphans.given_up.lock());
        for (place, some) in orphans.chunks(RECLAIMED_AT_ONCE).enumerate() {
            if let Err(error) = self.metadata.reclaim(some) {
                self.orphans.given_up.lock().extend_from_slice(&orphans[place * RECLAIMED_AT_ONCE..]);
                return Err(error);
            }
        }
        self.work.notify_one();
        Ok(())
    }
}
