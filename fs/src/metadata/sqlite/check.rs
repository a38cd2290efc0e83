//! Cross-checking everything a store holds, on one state of it: names, inodes, extents, objects, counters.
//!
//! Each question is one statement whose rows are the flaws, or one pass in the order of a key; what grows with the
//! volume is what SQLite needs to count names of inodes and bytes of objects.

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;

use common::code::Code;
use common::wire::ObjectId;
use rusqlite::Row;

use super::paths::{Paths, Place};
use super::rows;
use super::transaction::View;
use super::volume;
use crate::error::Result;
use crate::inode::ROOT;
use crate::metadata::check::{Flaw, FlawKind, Flaws};
use crate::metadata::{Extent, ObjectRecord, Usage};

/// `mode & S_IFMT`, for a `WHERE`.
macro_rules! is_directory {
    ($mode:literal) => {
        concat!("(", $mode, " & 61440) = 16384")
    };
}

/// An object that something needs; of others the fragments are on their way out.
const IS_NEEDED: &str = "(o.live > 0 OR o.kept > 0)";

/// Names that cannot be one: `name` is the column.
pub(super) const BAD_NAMES: &str = "SELECT parent, name, ino FROM entry WHERE length(name) = 0 OR \
     length(name) > 255 OR name IN (x'2e', x'2e2e') OR instr(name, x'2f') > 0 OR instr(name, x'00') > 0";
/// Names of nothing.
pub(super) const DANGLING_NAMES: &str = "SELECT e.parent, e.name, e.ino FROM entry e \
     LEFT JOIN inode i ON i.ino = e.ino WHERE i.ino IS NULL";
/// Names in nothing.
pub(super) const STRAY_NAMES: &str = concat!(
    "SELECT e.parent, e.name, e.ino FROM entry e LEFT JOIN inode d ON d.ino = e.parent ",
    "WHERE d.ino IS NULL OR NOT (",
    is_directory!("d.mode"),
    ")"
);
/// Names of directories that have others, and of the root; not the one that agrees with the directory's parent, or
/// else the first.
pub(super) const FURTHER_NAMES: &str = concat!(
    "SELECT parent, name, ino FROM (SELECT e.parent, e.name, e.ino, row_number() OVER ",
    "(PARTITION BY e.ino ORDER BY e.parent <> i.parent, e.cookie, e.name) AS place ",
    "FROM entry e JOIN inode i ON i.ino = e.ino WHERE ",
    is_directory!("i.mode"),
    ") WHERE place > 1 OR ino = 1"
);
/// Names whose position another name of the directory has.
pub(super) const SHARED_POSITIONS: &str = "SELECT parent, name, ino FROM (SELECT parent, name, ino, row_number() \
     OVER (PARTITION BY parent, cookie ORDER BY name) AS place, cookie FROM entry) WHERE place > 1 OR cookie < 3";
/// Directories that are reached neither from the root nor from one without a name: those of cycles, and below.
pub(super) const IN_CYCLES: &str = concat!(
    "WITH RECURSIVE reached (ino) AS (",
    "SELECT 1 UNION SELECT i.ino FROM inode i WHERE ",
    is_directory!("i.mode"),
    " AND i.ino NOT IN (SELECT ino FROM entry) ",
    "UNION SELECT e.ino FROM reached r JOIN entry e ON e.parent = r.ino JOIN inode i ON i.ino = e.ino WHERE ",
    is_directory!("i.mode"),
    ") SELECT ino FROM inode WHERE ",
    is_directory!("mode"),
    " AND ino NOT IN (SELECT ino FROM reached) ORDER BY ino"
);
/// Directories with one name, where they are said to lie, and where that name does.
pub(super) const WRONG_PARENTS: &str = concat!(
    "SELECT i.ino, i.parent, min(e.parent) FROM inode i JOIN entry e ON e.ino = i.ino WHERE ",
    is_directory!("i.mode"),
    " AND i.ino <> 1 GROUP BY i.ino HAVING count(*) = 1 AND i.parent <> min(e.parent) ",
    "UNION ALL SELECT ino, parent, 1 FROM inode WHERE ino = 1 AND parent <> 1"
);
/// Inodes that nothing names, though they count links.
pub(super) const UNNAMED: &str = "SELECT ino, links FROM inode WHERE links > 0 AND ino <> 1 AND \
     ino NOT IN (SELECT ino FROM entry) ORDER BY ino";
/// Inodes with a name, their links, and how many they should be.
pub(super) const WRONG_LINKS: &str = concat!(
    "SELECT ino, links, wanted FROM (SELECT i.ino, i.links, CASE WHEN ",
    is_directory!("i.mode"),
    " THEN 2 + coalesce(s.count, 0) ELSE n.count END AS wanted FROM inode i ",
    "LEFT JOIN (SELECT ino, count(*) AS count FROM entry GROUP BY ino) n ON n.ino = i.ino ",
    "LEFT JOIN (SELECT e.parent, count(*) AS count FROM entry e JOIN inode k ON k.ino = e.ino WHERE ",
    is_directory!("k.mode"),
    " GROUP BY e.parent) s ON s.parent = i.ino WHERE n.count > 0 OR i.ino = 1) WHERE links <> wanted"
);
/// Directories and symbolic links, their size, and what it should be.
pub(super) const WRONG_SIZES: &str = concat!(
    "SELECT i.ino, i.size, 32 * coalesce(n.count, 0) FROM inode i ",
    "LEFT JOIN (SELECT parent, count(*) AS count FROM entry GROUP BY parent) n ON n.parent = i.ino WHERE ",
    is_directory!("i.mode"),
    " AND i.size <> 32 * coalesce(n.count, 0) UNION ALL SELECT i.ino, i.size, length(t.target) FROM inode i ",
    "JOIN target t ON t.ino = i.ino WHERE (i.mode & 61440) = 40960 AND i.size <> length(t.target)"
);
/// Inodes, the bytes they count, and those their extents have.
pub(super) const WRONG_ALLOCATED: &str = "SELECT i.ino, i.allocated, coalesce(u.bytes, 0) FROM inode i \
     LEFT JOIN (SELECT ino, sum(length) AS bytes FROM extent GROUP BY ino) u ON u.ino = i.ino \
     WHERE i.allocated <> coalesce(u.bytes, 0)";
/// Objects, the bytes they count in use, and those extents refer to.
pub(super) const WRONG_LIVE: &str = "SELECT o.id, o.live, coalesce(u.bytes, 0) FROM object o \
     LEFT JOIN (SELECT object, sum(length) AS bytes FROM extent GROUP BY object) u ON u.object = o.id \
     WHERE o.live <> coalesce(u.bytes, 0)";
/// Exceptions of no object, or of an index its code does not have.
pub(super) const BAD_EXCEPTIONS: &str = "SELECT x.object, x.idx, o.code FROM exception x \
     LEFT JOIN object o ON o.id = x.object \
     WHERE o.id IS NULL OR x.idx < 0 OR x.idx >= \
     CAST(o.code AS INTEGER) + CAST(substr(o.code, instr(o.code, '+') + 1) AS INTEGER)";
/// Objects, the exceptions they count, and those they have.
pub(super) const WRONG_EXCEPTIONS: &str = "SELECT o.id, o.exceptions, coalesce(x.count, 0) FROM object o \
     LEFT JOIN (SELECT object, count(*) AS count FROM exception GROUP BY object) x ON x.object = o.id \
     WHERE o.exceptions <> coalesce(x.count, 0)";
/// Intents of what is no file, beyond its end, over each other, or of another length than they say.
pub(super) const BAD_INTENTS: &str = "SELECT t.ino, t.offset, t.length FROM intent t \
     LEFT JOIN inode i ON i.ino = t.ino AND (i.mode & 61440) = 32768 \
     WHERE i.ino IS NULL OR t.offset < 0 OR t.offset + t.length > i.size OR t.length <> length(t.bytes) \
     OR t.length NOT BETWEEN 1 AND 65536 OR EXISTS (SELECT 1 FROM intent n WHERE n.ino = t.ino \
     AND n.offset > t.offset AND n.offset < t.offset + t.length)";
/// Extended attributes of nothing.
pub(super) const STRAY_XATTRS: &str =
    "SELECT x.ino, x.name FROM xattr x LEFT JOIN inode i ON i.ino = x.ino WHERE i.ino IS NULL";
/// Targets of what is no symbolic link.
pub(super) const STRAY_TARGETS: &str = "SELECT t.ino FROM target t LEFT JOIN inode i ON i.ino = t.ino \
     WHERE i.ino IS NULL OR (i.mode & 61440) <> 40960";
/// Counters that are behind: their names, their values, the greatest number in use. The one of epochs holds the
/// greatest begun, the others the smallest never handed out.
pub(super) const COUNTERS: &str = "SELECT name, value, used FROM counter JOIN (\
     SELECT 'inode' AS counted, (SELECT max(ino) FROM inode) AS used UNION ALL \
     SELECT 'cookie', (SELECT max(cookie) FROM entry) UNION ALL \
     SELECT 'epoch', (SELECT max(id) >> 40 FROM object)) ON counted = name \
     WHERE value < used + (name <> 'epoch')";

/// Everything that does not add up; `usage` is what the totals say of this state.
pub(super) fn check(view: View, usage: Usage) -> Result<Flaws> {
    let mut check = Check { view, flaws: Flaws::default(), places: Vec::new() };
    check.database()?;
    check.inodes()?;
    check.names()?;
    check.counts()?;
    check.extents()?;
    check.objects()?;
    check.attributes()?;
    check.numbers(usage)?;
    check.finish()
}

struct Check<'c> {
    view: View<'c>,
    flaws: Flaws,
    /// Of each listed flaw.
    places: Vec<Place>,
}

impl Check<'_> {
    fn found(&mut self, kind: FlawKind, place: Place, object: Option<ObjectId>, what: impl Into<String>) {
        if self.flaws.counts_one(kind) {
            self.flaws.listed.push(Flaw { kind, path: None, object, what: what.into() });
            self.places.push(place);
        }
    }

    /// One flaw for each row.
    fn each(
        &mut self,
        sql: &str,
        kind: FlawKind,
        flaw: impl Fn(&Row) -> rusqlite::Result<(Place, Option<ObjectId>, String)>,
    ) -> Result<()> {
        let view = self.view;
        view.each(sql, [], |row| {
            let (place, object, what) = flaw(row)?;
            self.found(kind, place, object, what);
            Ok(true)
        })
    }

    /// The same for rows of directory, name and inode.
    fn each_name(&mut self, sql: &str, kind: FlawKind, what: impl Fn(i64) -> String) -> Result<()> {
        self.each(sql, kind, |row| Ok((Place::Name(row.get(0)?, row.get(1)?), None, what(row.get(2)?))))
    }

    /// The same for rows of an inode, a number it says and the number it should be.
    fn each_count(&mut self, sql: &str, kind: FlawKind, what: impl Fn(i64, i64) -> String) -> Result<()> {
        self.each(sql, kind, |row| Ok((Place::Inode(row.get(0)?), None, what(row.get(1)?, row.get(2)?))))
    }

    fn database(&mut self) -> Result<()> {
        for line in damage(self.view)? {
            self.found(FlawKind::Database, Place::Nowhere, None, format!("the database is damaged: {line}"));
        }
        Ok(())
    }

    fn inodes(&mut self) -> Result<()> {
        let root = self.view.directory(ROOT);
        if root.is_err() {
            self.found(FlawKind::Root, Place::Nowhere, None, "there is no root directory");
        }
        // Pipe, character device, directory, block device, file, symbolic link, socket.
        let sql = "SELECT ino, mode FROM inode \
                   WHERE (mode & 61440) NOT IN (4096, 8192, 16384, 24576, 32768, 40960, 49152)";
        self.each(sql, FlawKind::Mode, |row| {
            let mode: i64 = row.get(1)?;
            Ok((Place::Inode(row.get(0)?), None, format!("is of no known type (mode {mode:o})")))
        })
    }

    fn names(&mut self) -> Result<()> {
        self.each_name(BAD_NAMES, FlawKind::Name, |ino| {
            format!("cannot be the name of anything; it stands for inode {ino}")
        })?;
        self.each_name(DANGLING_NAMES, FlawKind::DanglingName, |ino| {
            format!("stands for inode {ino}, which does not exist")
        })?;
        self.each_name(STRAY_NAMES, FlawKind::StrayName, |ino| {
            format!("names inode {ino} in what is no directory")
        })?;
        self.each_name(FURTHER_NAMES, FlawKind::TwiceNamed, |ino| match ino {
            1 => "names the root directory".to_owned(),
            _ => format!("is one more name of the directory {ino}"),
        })?;
        self.each_name(SHARED_POSITIONS, FlawKind::Position, |_| {
            "has a position in its directory that is another's".to_owned()
        })?;
        self.each(IN_CYCLES, FlawKind::Cycle, |row| {
            Ok((Place::Inode(row.get(0)?), None, "does not lie below the root: it lies in itself".to_owned()))
        })?;
        self.each_count(WRONG_PARENTS, FlawKind::Parent, |said, is| {
            format!("lies in directory {is}, and is said to lie in {said}")
        })?;
        self.each(UNNAMED, FlawKind::Unnamed, |row| {
            let links: i64 = row.get(1)?;
            Ok((Place::Inode(row.get(0)?), None, format!("has no name, and counts {links} links")))
        })
    }

    fn counts(&mut self) -> Result<()> {
        self.each_count(WRONG_LINKS, FlawKind::Links, |said, is| {
            format!("counts {said} links, and has {is}")
        })?;
        self.each_count(WRONG_SIZES, FlawKind::Size, |said, is| {
            format!("has size {said}, and should have {is}")
        })?;
        self.each_count(WRONG_ALLOCATED, FlawKind::Allocated, |said, is| {
            format!("counts {said} bytes in objects, and its extents have {is}")
        })
    }

    fn extents(&mut self) -> Result<()> {
        let mut before: Option<Laid> = None;
        let view = self.view;
        each_extent(view, |laid| {
            for (kind, what) in laid.flaws(before.as_ref()) {
                self.found(kind, Place::Inode(laid.ino), Some(laid.extent.object), what);
            }
            before = Some(laid);
            ControlFlow::Continue(())
        })?;
        self.each(BAD_INTENTS, FlawKind::Intent, |row| {
            let (from, length): (i64, i64) = (row.get(1)?, row.get(2)?);
            let what = format!("has {length} bytes carried from {from} on that cannot be so");
            Ok((Place::Inode(row.get(0)?), None, what))
        })
    }

    fn objects(&mut self) -> Result<()> {
        self.each(WRONG_LIVE, FlawKind::Live, |row| {
            let (said, is): (i64, i64) = (row.get(1)?, row.get(2)?);
            let what = format!("counts {said} bytes in use, and files refer to {is}");
            Ok((Place::Nowhere, Some(rows::unpack(row.get(0)?)), what))
        })?;
        self.each(BAD_EXCEPTIONS, FlawKind::Exception, |row| {
            let (index, code): (i64, Option<String>) = (row.get(1)?, row.get(2)?);
            let what = match code {
                None => format!("has a place for its fragment {index}, and does not exist"),
                Some(code) => format!("has a place for its fragment {index}, and is of code {code}"),
            };
            Ok((Place::Nowhere, Some(rows::unpack(row.get(0)?)), what))
        })?;
        self.each(WRONG_EXCEPTIONS, FlawKind::ExceptionCount, |row| {
            let (said, is): (i64, i64) = (row.get(1)?, row.get(2)?);
            let what = format!("counts {said} fragments away from home, and has {is}");
            Ok((Place::Nowhere, Some(rows::unpack(row.get(0)?)), what))
        })?;
        let senseless = senseless_objects(self.view)?;
        for (id, what) in senseless {
            self.found(FlawKind::Object, Place::Nowhere, Some(id), what);
        }
        Ok(())
    }

    fn attributes(&mut self) -> Result<()> {
        self.each(STRAY_XATTRS, FlawKind::Attribute, |row| {
            let name: Vec<u8> = row.get(1)?;
            let what =
                format!("does not exist, and has the attribute {}", crate::metadata::check::shown(&name));
            Ok((Place::Inode(row.get(0)?), None, what))
        })?;
        self.each(STRAY_TARGETS, FlawKind::Attribute, |row| {
            Ok((Place::Inode(row.get(0)?), None, "has a target, and is no symbolic link".to_owned()))
        })?;
        let sql = "SELECT i.ino FROM inode i LEFT JOIN target t ON t.ino = i.ino \
                   WHERE (i.mode & 61440) = 40960 AND t.ino IS NULL";
        self.each(sql, FlawKind::Attribute, |row| {
            Ok((Place::Inode(row.get(0)?), None, "is a symbolic link without a target".to_owned()))
        })
    }

    fn numbers(&mut self, usage: Usage) -> Result<()> {
        self.each(COUNTERS, FlawKind::Numbers, |row| {
            let (name, value, used): (String, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let what = format!("the counter of {name}s stands at {value}, and {used} is in use");
            Ok((Place::Nowhere, None, what))
        })?;
        let counted = volume::count_usage(self.view)?;
        if counted != usage {
            let what = format!("the totals say {usage:?}, and a count gives {counted:?}");
            self.found(FlawKind::Totals, Place::Nowhere, None, what);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Flaws> {
        let mut paths = Paths::of(self.view, &self.places)?;
        for (flaw, place) in self.flaws.listed.iter_mut().zip(&self.places) {
            flaw.path = paths.shown(place)?;
        }
        Ok(self.flaws)
    }
}

/// What SQLite says of its file: pages, rows, and whether indexes are what their tables say.
pub(super) fn damage(view: View) -> Result<Vec<String>> {
    let said: Vec<String> = view.rows("PRAGMA integrity_check", [], |row| row.get(0))?;
    Ok(said.into_iter().filter(|line| line != "ok").collect())
}

/// An extent beside what it belongs to.
pub(super) struct Laid {
    pub(super) ino: i64,
    pub(super) extent: Extent,
    /// Size of the file; none if it is none.
    pub(super) size: Option<u64>,
    /// Length of the object; none if it is unknown.
    pub(super) object_length: Option<u64>,
}

impl Laid {
    fn flaws(&self, before: Option<&Laid>) -> Vec<(FlawKind, String)> {
        let range = self.extent.range();
        let (from, to) = (range.start, range.end);
        let mut flaws = Vec::new();
        if self.size.is_none() {
            flaws.push((FlawKind::StrayExtent, format!("has bytes {from}..{to}, and is no file")));
        }
        if self.size.is_some_and(|size| size < to) {
            let size = self.size.unwrap_or_default();
            flaws.push((FlawKind::BeyondSize, format!("ends at {size}, and has bytes {from}..{to}")));
        }
        let end = u64::from(self.extent.object_offset) + u64::from(self.extent.length);
        match self.object_length {
            None => flaws.push((
                FlawKind::UnknownObject,
                format!("has bytes {from}..{to} in an object that nobody knows"),
            )),
            Some(length) if length < end => flaws.push((
                FlawKind::BeyondObject,
                format!("has bytes {from}..{to} in an object of {length} bytes, up to its byte {end}"),
            )),
            Some(_) => {}
        }
        if let Some(before) =
            before.filter(|before| before.ino == self.ino && before.extent.range().end > from)
        {
            let other = before.extent.range();
            flaws.push((
                FlawKind::Overlap,
                format!("has bytes {from}..{to} twice: {}..{} lie elsewhere, too", other.start, other.end),
            ));
        }
        flaws
    }
}

/// All extents, by file and offset.
pub(super) fn each_extent(view: View, mut take: impl FnMut(Laid) -> ControlFlow<()>) -> Result<()> {
    let sql = concat!(
        "SELECT e.ino, ",
        rows::extent_columns!(),
        ", CASE WHEN (i.mode & 61440) = 32768 THEN i.size END, o.length FROM extent e ",
        "LEFT JOIN inode i ON i.ino = e.ino LEFT JOIN object o ON o.id = e.object ORDER BY e.ino, e.offset"
    );
    view.each(sql, [], |row| {
        let number =
            |column| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(column)?.map(|n| n.max(0) as u64));
        let laid = Laid {
            ino: row.get(0)?,
            extent: rows::extent(row, 1)?,
            size: number(5)?,
            object_length: number(6)?,
        };
        Ok(take(laid).is_continue())
    })
}

/// Objects whose code is none, whose digest has the wrong length, or whose homes cannot be computed.
fn senseless_objects(view: View) -> Result<Vec<(ObjectId, String)>> {
    let nodes: HashMap<u32, usize> =
        volume::configurations(view)?.into_iter().map(|known| (known.number, known.nodes.len())).collect();
    let sql = "SELECT id, code, configuration, length(fpcc), length FROM object o";
    let mut found = Vec::new();
    view.each(sql, [], |row| {
        let (code, configuration, digest): (String, u32, i64) = (row.get(1)?, row.get(2)?, row.get(3)?);
        let what = match (code.parse::<Code>(), nodes.get(&configuration)) {
            (Err(_), _) => format!("is of code {code}, which is none"),
            (_, None) => format!("lies on the nodes of configuration {configuration}, which nobody knows"),
            (Ok(code), Some(nodes)) if *nodes < code.n() => {
                format!("is of code {code}, and configuration {configuration} has {nodes} nodes")
            }
            _ if digest != 32 => format!("has a digest of {digest} bytes"),
            _ => return Ok(true),
        };
        found.push((rows::unpack(row.get(0)?), what));
        Ok(found.len() as u64 <= crate::metadata::check::LISTED)
    })?;
    Ok(found)
}

/// At most `limit` objects greater than `after`, and whether anything needs them.
pub(super) fn objects(
    view: View,
    after: Option<ObjectId>,
    limit: usize,
) -> Result<Vec<(ObjectRecord, bool)>> {
    let after = after.map_or(-1, |id| rows::pack(id).unwrap_or(i64::MAX));
    let columns = rows::object_columns!();
    let sql = format!("SELECT {columns}, {IS_NEEDED} FROM object o WHERE o.id > ? ORDER BY o.id LIMIT ?");
    let found =
        view.rows(&sql, (after, rows::limit(limit)), |row| Ok((rows::object(row, 0)?, row.get(6)?)))?;
    let complete = |((mut record, exceptions), needed): ((ObjectRecord, u32), bool)| {
        if exceptions > 0 {
            record.exceptions = super::objects::exceptions_of(view, record.id)?;
        }
        Ok((record, needed))
    };
    found.into_iter().map(complete).collect()
}

/// The paths of the files that have bytes in objects; of one object at most `limit`.
pub(super) fn users(
    view: View,
    objects: &BTreeSet<ObjectId>,
    limit: usize,
) -> Result<Vec<(ObjectId, Vec<String>)>> {
    let mut inodes: HashMap<ObjectId, BTreeSet<i64>> = HashMap::new();
    if !objects.is_empty() {
        view.each("SELECT ino, object FROM extent", [], |row| {
            let id = rows::unpack(row.get(1)?);
            if objects.contains(&id) {
                let users = inodes.entry(id).or_default();
                if users.len() < limit {
                    users.insert(row.get(0)?);
                }
            }
            Ok(true)
        })?;
    }
    let places: Vec<Place> = inodes.values().flatten().map(|ino| Place::Inode(*ino)).collect();
    let mut paths = Paths::of(view, &places)?;
    let mut of = |id: &ObjectId| {
        let users = inodes.get(id).into_iter().flatten();
        let shown = users.map(|ino| paths.shown(&Place::Inode(*ino)));
        let shown: Result<Vec<Option<String>>> = shown.collect();
        Ok((*id, shown?.into_iter().flatten().collect()))
    };
    objects.iter().map(&mut of).collect()
}
