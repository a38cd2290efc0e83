//! POSIX access control lists: the bytes in which the kernel hands them over, what they mean for permission bits, and
//! how new files inherit them. Values only. The kernel checks access by them; acl(5) and POSIX 1003.1e draft 17,
//! section 23, say what the entries mean, linux/posix_acl_xattr.h how they lie in bytes.

use bytes::{Buf, BufMut};

use crate::error::{Error, Result};

/// The extended attribute of the list that access is checked by.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// The extended attribute of the list that what is made in a directory begins with.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const ENTRY: usize = 8;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// An access control list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acl {
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    tag: u16,
    permissions: u16,
    /// A user or group; of the other tags it says nothing and is handed back as it came.
    id: u32,
}

impl Acl {
    /// From the bytes of the extended attribute; none for a list without entries, which stands for no list.
    ///
    /// # Errors
    /// `Invalid` for what is not one list of version 2 with one entry each for owner, group and others, and with a mask
    /// where users or groups are named.
    pub fn from_bytes(mut bytes: &[u8]) -> Result<Option<Acl>> {
        const MALFORMED: Error = Error::Invalid("this is no access control list");
        if bytes.len() < 4 || bytes.get_u32_le() != VERSION || !bytes.len().is_multiple_of(ENTRY) {
            return Err(MALFORMED);
        }
        let mut entries = Vec::with_capacity(bytes.len() / ENTRY);
        while bytes.has_remaining() {
            entries.push(Entry {
                tag: bytes.get_u16_le(),
                permissions: bytes.get_u16_le(),
                id: bytes.get_u32_le(),
            });
        }
        let acl = Acl { entries };
        match acl.entries.is_empty() {
            true => Ok(None),
            false if acl.is_valid() => Ok(Some(acl)),
            false => Err(MALFORMED),
        }
    }

    fn is_valid(&self) -> bool {
        let count = |tag| self.entries.iter().filter(|entry| entry.tag == tag).count();
        let named = count(USER) + count(GROUP);
        [USER_OBJ, GROUP_OBJ, OTHER].into_iter().all(|tag| count(tag) == 1)
            && count(MASK) <= 1
            && (named == 0 || count(MASK) == 1)
            && 3 + named + count(MASK) == self.entries.len()
            && self.entries.iter().all(|entry| entry.permissions <= 0o7)
    }

    /// As the extended attribute has it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 + self.entries.len() * ENTRY);
        bytes.put_u32_le(VERSION);
        for entry in &self.entries {
            bytes.put_u16_le(entry.tag);
            bytes.put_u16_le(entry.permissions);
            bytes.put_u32_le(entry.id);
        }
        bytes
    }

    /// The nine permission bits it shows as.
    pub fn permissions(&self) -> u32 {
        let of = |tag| self.get(tag).map(|entry| u32::from(entry.permissions)).unwrap_or(0);
        of(USER_OBJ) << 6 | of(self.group_class()) << 3 | of(OTHER)
    }

    /// Whether the permission bits say all that it says.
    pub fn is_minimal(&self) -> bool {
        self.entries.iter().all(|entry| matches!(entry.tag, USER_OBJ | GROUP_OBJ | OTHER))
    }

    /// The list after chmod to these permission bits.
    #[must_use]
    pub fn with_permissions(mut self, mode: u32) -> Acl {
        self.change_classes(|_, bits| bits, mode);
        self
    }

    /// The list that something made with these permission bits begins with, where this one is its directory's default.
    #[must_use]
    pub fn inherited(mut self, mode: u32) -> Acl {
        self.change_classes(|granted, asked| granted & asked, mode);
        self
    }

    /// Owner, group class and others, each with its three bits of `mode`.
    fn change_classes(&mut self, change: impl Fn(u16, u16) -> u16, mode: u32) {
        let classes = [(USER_OBJ, 6), (self.group_class(), 3), (OTHER, 0)];
        for entry in &mut self.entries {
            if let Some((_, shift)) = classes.iter().find(|(tag, _)| *tag == entry.tag) {
                entry.permissions = change(entry.permissions, (mode >> shift & 0o7) as u16);
            }
        }
    }

    /// The entry the group's permission bits stand for.
    fn group_class(&self) -> u16 {
        if self.get(MASK).is_some() { MASK } else { GROUP_OBJ }
    }

    fn get(&self, tag: u16) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.tag == tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: u32 = u32::MAX;

    fn acl(entries: &[(u16, u16, u32)]) -> Acl {
        let entry = |&(tag, permissions, id)| Entry { tag, permissions, id };
        Acl { entries: entries.iter().map(entry).collect() }
    }

    fn named() -> Acl {
        acl(&[
            (USER_OBJ, 7, NOBODY),
            (USER, 6, 1000),
            (GROUP_OBJ, 5, NOBODY),
            (MASK, 6, NOBODY),
            (OTHER, 4, NOBODY),
        ])
    }

    #[test]
    fn bytes_are_the_kernels() {
        let plain = acl(&[(USER_OBJ, 6, NOBODY), (GROUP_OBJ, 4, NOBODY), (OTHER, 0, NOBODY)]);
        let bytes =
            b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x04\0\x04\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";
        assert_eq!(plain.to_bytes(), bytes);
        assert_eq!(Acl::from_bytes(bytes).unwrap(), Some(plain));
        assert_eq!(Acl::from_bytes(&named().to_bytes()).unwrap(), Some(named()));
        assert_eq!(Acl::from_bytes(b"\x02\0\0\0").unwrap(), None);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let whole = named().to_bytes();
        for cut in [0, 3, 5, whole.len() - 1, whole.len() - ENTRY] {
            assert!(Acl::from_bytes(&whole[..cut]).is_err(), "{cut} bytes");
        }
        let mut other_version = whole.clone();
        other_version[0] = 1;
        assert!(Acl::from_bytes(&other_version).is_err());
        let twice = acl(&[(USER_OBJ, 7, 0), (USER_OBJ, 7, 0), (GROUP_OBJ, 5, 0), (OTHER, 4, 0)]);
        let unmasked = acl(&[(USER_OBJ, 7, 0), (USER, 7, 5), (GROUP_OBJ, 5, 0), (OTHER, 4, 0)]);
        let unknown = acl(&[(USER_OBJ, 7, 0), (GROUP_OBJ, 5, 0), (OTHER, 4, 0), (0x40, 4, 0)]);
        let too_much = acl(&[(USER_OBJ, 8, 0), (GROUP_OBJ, 5, 0), (OTHER, 4, 0)]);
        for wrong in [twice, unmasked, unknown, too_much] {
            assert!(Acl::from_bytes(&wrong.to_bytes()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_mask_is_what_shows_as_the_groups_bits() {
        assert_eq!(named().permissions(), 0o764);
        assert!(!named().is_minimal());
        let changed = named().with_permissions(0o640);
        assert_eq!(changed.permissions(), 0o640);
        assert_eq!(changed.get(GROUP_OBJ).unwrap().permissions, 5, "the mask was changed, not the group");
    }

    #[test]
    fn what_is_inherited_grants_no_more_than_was_asked_for() {
        let inherited = named().inherited(0o755);
        assert_eq!(inherited.permissions(), 0o744);
        assert_eq!(inherited.get(USER).unwrap().permissions, 6);
        let plain = acl(&[(USER_OBJ, 7, 0), (GROUP_OBJ, 7, 0), (OTHER, 0, 0)]).inherited(0o666);
        assert_eq!((plain.permissions(), plain.is_minimal()), (0o660, true));
    }
}
