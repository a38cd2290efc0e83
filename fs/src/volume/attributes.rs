//! Attributes, extended attributes, and sizes set by hand.

use super::Volume;
use crate::error::{Error, Result};
use crate::inode::{Caller, Ino, Inode, MAX_SIZE, SetAttributes, SetTime, Time};
use crate::metadata::{AttributeChange, MetadataStore};
use crate::open_file::State;

const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;

impl Volume {
    /// The attributes of an inode.
    pub fn attributes(&self, ino: Ino) -> Result<Inode> {
        self.current(|| self.metadata.inode(ino))
    }

    /// Change attributes; returns them all.
    pub fn set_attributes(&self, ino: Ino, set: &SetAttributes, caller: Caller) -> Result<Inode> {
        self.writable()?;
        if let Some(size) = set.size {
            self.truncate(ino, size, caller)?;
        }
        let now = |time: SetTime| match time {
            SetTime::Now => caller.now,
            SetTime::At(time) => time,
        };
        let mut change = AttributeChange {
            permissions: set.mode.map(|mode| mode & 0o7777),
            uid: set.uid,
            gid: set.gid,
            atime: set.atime.map(now),
            mtime: set.mtime.map(now),
            ctime: Some(caller.now),
            xattrs: Vec::new(),
        };
        match change.permissions {
            Some(permissions) => change.xattrs = self.access_after_chmod(ino, permissions)?,
            None => change.permissions = self.without_set_id(ino, set, caller)?,
        }
        if change.atime.is_some() {
            self.accesses.forget(ino);
        }
        self.current(|| match (change.mtime, self.file(ino)) {
            (Some(mtime), Some(file)) => {
                let mut state = file.state();
                let inode = self.metadata.set_attributes(ino, &change)?;
                state.keep_mtime(mtime.max(caller.now));
                Ok(inode)
            }
            _ => self.metadata.set_attributes(ino, &change),
        })
    }

    /// A new owner, or another size set by somebody who is not root, takes set-id bits away; the kernel leaves that
    /// to us (FUSE_HANDLE_KILLPRIV_V2).
    fn without_set_id(&self, ino: Ino, set: &SetAttributes, caller: Caller) -> Result<Option<u32>> {
        let owner = set.uid.is_some() || set.gid.is_some();
        let resized = set.size.is_some() && caller.uid != 0;
        if !owner && !resized {
            return Ok(None);
        }
        let inode = self.metadata.inode(ino)?;
        Ok(if inode.is_directory() { None } else { cleared(inode.mode) })
    }

    /// Somebody who is not root wrote: take the set-id bits away. Whether there were any.
    pub fn clear_set_id(&self, ino: Ino) -> Result<bool> {
        let Some(permissions) = cleared(self.metadata.inode(ino)?.mode) else { return Ok(false) };
        let change = AttributeChange { permissions: Some(permissions), ..AttributeChange::default() };
        self.metadata.set_attributes(ino, &change)?;
        Ok(true)
    }

    fn truncate(&self, ino: Ino, size: u64, caller: Caller) -> Result<()> {
        if size > MAX_SIZE {
            return Err(Error::TooLarge);
        }
        let mut files = self.files.lock();
        let file = self.taken_for_open(&mut files, ino)?;
        // From here on nobody takes it out of `files`, and who opens it waits for the new size. Others need not wait.
        let mut state = file.state();
        drop(files);
        let changed =
            self.change_stored(ino, &mut state, caller.now, |store| store.truncate(ino, size, caller.now));
        if changed.is_ok() {
            self.budget.give(state.truncate(size));
        }
        drop(state);
        self.cut(&file);
        self.drop_if_unused(&file);
        self.work.notify_one();
        changed.map(drop)
    }

    /// Change an open file's content in the store, which stamps it. What fails may have been done all the same, if only
    /// the answer was lost: then the store says what the file is now.
    pub(super) fn change_stored<T>(
        &self,
        ino: Ino,
        state: &mut State,
        now: Time,
        change: impl FnOnce(&dyn MetadataStore) -> Result<T>,
    ) -> Result<T> {
        let changed = change(&*self.metadata);
        if changed.is_ok() {
            state.keep_mtime(now);
        } else {
            let stored_size = self.metadata.inode(ino).map_or(state.size, |inode| inode.size);
            state.learn_anew(stored_size);
        }
        changed
    }

    /// An extended attribute's value.
    pub fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        self.metadata.xattr(ino, name)
    }

    /// The names of all extended attributes.
    pub fn xattrs(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        self.metadata.xattrs(ino)
    }

    /// Set an extended attribute; `flags` as setxattr(2). Access control lists are set by `set_acl`.
    pub fn set_xattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: i32, caller: Caller) -> Result<()> {
        self.writable()?;
        if value.len() > 65_536 {
            return Err(Error::Range);
        }
        let (create, replace) = (flags & libc::XATTR_CREATE != 0, flags & libc::XATTR_REPLACE != 0);
        self.metadata.set_xattr(ino, name, value, create, replace, caller.now)
    }

    /// Remove an extended attribute.
    pub fn remove_xattr(&self, ino: Ino, name: &[u8], caller: Caller) -> Result<()> {
        self.writable()?;
        self.metadata.remove_xattr(ino, name, caller.now)
    }
}

/// The permission bits without set-id, if there are any to clear. Set-group-id without group execution is a
/// mandatory-locking mark of old and stays, as in the kernel's setattr_should_drop_sgid.
fn cleared(mode: u32) -> Option<u32> {
    let kept = if mode & libc::S_IXGRP == 0 { libc::S_ISGID } else { 0 };
    let clear = SET_ID & !kept;
    (mode & clear != 0).then_some(mode & 0o7777 & !clear)
}
