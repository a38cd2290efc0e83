//! What does not agree with what inside a store, in words. How it is found only the store knows.

use std::collections::BTreeMap;

use common::wire::ObjectId;
use serde::{Deserialize, Serialize};

/// Of each kind so many are listed; further ones are only counted.
pub const LISTED: u64 = 10_000;

/// A disagreement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flaw {
    /// Of which kind.
    pub kind: FlawKind,
    /// Where in the tree; `inode 17` where no name leads there. None if it is no matter of one file.
    pub path: Option<String>,
    /// Which object, if it is about one.
    pub object: Option<ObjectId>,
    /// What is wrong, as a sentence that goes after the path.
    pub what: String,
}

/// The kinds of disagreement.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlawKind {
    /// The database file itself is damaged.
    Database,
    /// There is no root directory.
    Root,
    /// An inode is of no known type.
    Mode,
    /// A name that cannot be one.
    Name,
    /// A name stands for an inode that does not exist.
    DanglingName,
    /// A name lies in what is no directory.
    StrayName,
    /// A directory has more than one name, or the root has one.
    TwiceNamed,
    /// Two names of one directory share a position, so that a listing may miss one.
    Position,
    /// A directory lies, in the end, in itself.
    Cycle,
    /// A directory counts as lying in another one than its name does.
    Parent,
    /// An inode counts links, and has no name.
    Unnamed,
    /// An inode counts other links than it has names.
    Links,
    /// The size of a directory or symbolic link differs from what it holds.
    Size,
    /// A file counts other bytes than its extents have.
    Allocated,
    /// An extent belongs to no file.
    StrayExtent,
    /// An extent refers to an object nobody knows.
    UnknownObject,
    /// An extent reaches beyond the end of its object.
    BeyondObject,
    /// An extent reaches beyond the end of its file.
    BeyondSize,
    /// Two extents of a file overlap.
    Overlap,
    /// Bytes are carried that belong to no file, lie beyond its end, or twice at one place.
    Intent,
    /// An object counts other bytes in use than extents refer to.
    Live,
    /// An object's description makes no sense: its code, its digest, its nodes.
    Object,
    /// An exception belongs to no fragment.
    Exception,
    /// An object counts other exceptions than it has.
    ExceptionCount,
    /// An extended attribute or a target belongs to no inode, or a symbolic link has no target.
    Attribute,
    /// A number that is in use would be handed out again.
    Numbers,
    /// The totals of the volume differ from a count.
    Totals,
}

/// What a check found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Flaws {
    /// The first of each kind.
    pub listed: Vec<Flaw>,
    /// How many there are of each kind.
    pub counts: BTreeMap<FlawKind, u64>,
}

impl Flaws {
    /// How many there are.
    pub fn count(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Count one more; whether it is to be listed, too.
    pub fn counts_one(&mut self, kind: FlawKind) -> bool {
        let count = self.counts.entry(kind).or_default();
        *count += 1;
        *count <= LISTED
    }
}

/// A name as it is shown, on one line whatever is in it.
pub fn shown(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for part in name.utf8_chunks() {
        for letter in part.valid().chars() {
            if letter.is_control() { text.extend(letter.escape_default()) } else { text.push(letter) }
        }
        part.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_shown_on_one_line_whatever_is_in_it() {
        assert_eq!(shown("Käse".as_bytes()), "Käse");
        assert_eq!(shown(b"a\nb\xff\x1b"), "a\\nb\\xff\\u{1b}");
    }

    #[test]
    fn beyond_some_of_a_kind_they_are_only_counted() {
        let mut flaws = Flaws::default();
        let listed = (0..LISTED + 5).filter(|_| flaws.counts_one(FlawKind::Links)).count();
        assert_eq!((listed as u64, flaws.count()), (LISTED, LISTED + 5));
        assert!(flaws.counts_one(FlawKind::Size));
    }
}
