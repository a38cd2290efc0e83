//! Access control lists and the permission bits that go with them. The kernel checks access by both.

use super::Volume;
use crate::acl::{ACCESS, Acl, DEFAULT};
use crate::error::{Error, Result};
use crate::inode::{Caller, Ino};
use crate::metadata::{AttributeChange, NewInode};

/// Extended attributes to set, and those without a value to remove.
pub(super) type XattrChanges = Vec<(Vec<u8>, Option<Vec<u8>>)>;

impl Volume {
    /// Set an access control list; an access list shows in the permission bits, and is kept only if it says more than
    /// they. `drop_set_gid`: the caller is neither in the file's group nor privileged, so the bit goes.
    ///
    /// # Errors
    /// `Invalid` for what is no list; `AccessDenied` for a default list of anything but a directory.
    pub fn set_acl(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        drop_set_gid: bool,
        caller: Caller,
    ) -> Result<()> {
        self.writable()?;
        let acl = Acl::from_bytes(value)?;
        let inode = self.metadata.inode(ino)?;
        let mut change = AttributeChange { ctime: Some(caller.now), ..AttributeChange::default() };
        if name == DEFAULT {
            if !inode.is_directory() {
                return Err(Error::AccessDenied);
            }
            change.xattrs.push((DEFAULT.to_vec(), acl.map(|acl| acl.to_bytes())));
        } else {
            if let Some(acl) = &acl {
                let dropped = if drop_set_gid { libc::S_ISGID } else { 0 };
                change.permissions = Some(inode.mode & 0o7000 & !dropped | acl.permissions());
            }
            let kept = acl.filter(|acl| !acl.is_minimal());
            change.xattrs.push((ACCESS.to_vec(), kept.map(|acl| acl.to_bytes())));
        }
        self.metadata.set_attributes(ino, &change)?;
        Ok(())
    }

    /// Permission bits and lists of something made in a directory: from its default list, or else from the umask.
    pub(super) fn inherit(&self, parent: Ino, new: &mut NewInode, umask: u32) -> Result<()> {
        let kind = new.mode & libc::S_IFMT;
        if kind == libc::S_IFLNK {
            return Ok(());
        }
        let Some(default) = self.acl(parent, DEFAULT)? else {
            new.mode &= !umask;
            return Ok(());
        };
        let access = default.clone().inherited(new.mode);
        new.mode = new.mode & !0o777 | access.permissions();
        if !access.is_minimal() {
            new.xattrs.push((ACCESS.to_vec(), access.to_bytes()));
        }
        if kind == libc::S_IFDIR {
            new.xattrs.push((DEFAULT.to_vec(), default.to_bytes()));
        }
        Ok(())
    }

    /// What chmod changes in the access list, if there is one.
    pub(super) fn access_after_chmod(&self, ino: Ino, permissions: u32) -> Result<XattrChanges> {
        let Some(acl) = self.acl(ino, ACCESS)? else { return Ok(Vec::new()) };
        Ok(vec![(ACCESS.to_vec(), Some(acl.with_permissions(permissions).to_bytes()))])
    }

    fn acl(&self, ino: Ino, name: &[u8]) -> Result<Option<Acl>> {
        match self.metadata.xattr(ino, name) {
            Ok(bytes) => Acl::from_bytes(&bytes),
            Err(Error::NoAttribute) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
