//! From inodes back to paths, many at once: names lead downwards only, so one pass over all of them serves everybody.

use std::collections::{HashMap, HashSet};

use super::rows::InodeKey;
use super::transaction::View;
use crate::error::Result;
use crate::inode::Ino;
use crate::metadata::check::shown;

/// What a flaw is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// Nothing in the tree.
    Nowhere,
    /// An inode.
    Inode(i64),
    /// A name in a directory.
    Name(i64, Vec<u8>),
}

impl Place {
    fn ino(&self) -> Option<i64> {
        match self {
            Place::Nowhere => None,
            Place::Inode(ino) | Place::Name(ino, _) => Some(*ino),
        }
    }
}

/// Longer chains of directories go in a circle.
const DEEPEST: usize = 4096;

/// The paths of inodes, in order.
pub(super) fn of(view: View, inos: &[Ino]) -> Result<Vec<String>> {
    let places: Vec<Place> = inos.iter().map(|ino| Place::Inode(ino.key())).collect();
    let mut paths = Paths::of(view, &places)?;
    places.iter().map(|place| Ok(paths.shown(place)?.unwrap_or_default())).collect()
}

/// Paths of some inodes, by their first name.
pub(super) struct Paths<'c> {
    view: View<'c>,
    /// Directory and name of each that has one.
    names: HashMap<i64, Named>,
    directories: HashMap<i64, Option<Named>>,
}

type Named = (i64, Vec<u8>);

impl<'c> Paths<'c> {
    /// Those of these places. One pass over all names, unless there is nothing to look for.
    pub(super) fn of(view: View<'c>, places: &[Place]) -> Result<Paths<'c>> {
        let wanted: HashSet<i64> = places.iter().filter_map(Place::ino).collect();
        // The name an inode got first has the smallest position.
        let mut first: HashMap<i64, (i64, Named)> = HashMap::new();
        if !wanted.is_empty() {
            view.each("SELECT ino, cookie, parent, name FROM entry", [], |row| {
                let (ino, position): (i64, i64) = (row.get(0)?, row.get(1)?);
                if wanted.contains(&ino) && first.get(&ino).is_none_or(|(known, _)| position < *known) {
                    first.insert(ino, (position, (row.get(2)?, row.get(3)?)));
                }
                Ok(true)
            })?;
        }
        let names = first.into_iter().map(|(ino, (_, named))| (ino, named)).collect();
        Ok(Paths { view, names, directories: HashMap::new() })
    }

    /// The path of a place: `/a/b`, or `inode 17` where no name leads there.
    pub(super) fn shown(&mut self, place: &Place) -> Result<Option<String>> {
        Ok(match place {
            Place::Nowhere => None,
            Place::Inode(1) => Some("/".to_owned()),
            Place::Inode(ino) => Some(self.path(*ino)?),
            Place::Name(1, name) => Some(format!("/{}", shown(name))),
            Place::Name(directory, name) => Some(format!("{}/{}", self.path(*directory)?, shown(name))),
        })
    }

    fn path(&mut self, ino: i64) -> Result<String> {
        let mut names = Vec::new();
        let mut at = ino;
        while at != 1 && names.len() < DEEPEST {
            let name = match self.names.get(&at) {
                Some(known) => Some(known.clone()),
                None => self.directory(at)?,
            };
            let Some((parent, name)) = name else { break };
            names.push(shown(&name));
            at = parent;
        }
        names.reverse();
        Ok(match at {
            1 => format!("/{}", names.join("/")),
            _ if names.is_empty() || names.len() == DEEPEST => format!("inode {ino}"),
            _ => format!("inode {at}/{}", names.join("/")),
        })
    }

    /// Where a directory lies that was not among the places, and its name there.
    fn directory(&mut self, ino: i64) -> Result<Option<Named>> {
        if let Some(known) = self.directories.get(&ino) {
            return Ok(known.clone());
        }
        let sql = "SELECT e.parent, e.name FROM inode i JOIN entry e ON e.parent = i.parent AND e.ino = i.ino \
                   WHERE i.ino = ?";
        let found = self.view.row(sql, [ino], |row| Ok((row.get(0)?, row.get(1)?)))?;
        self.directories.insert(ino, found.clone());
        Ok(found)
    }
}
