//! Damage of every kind is found, named and mended, and the journal carries what was done about it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use avidfs::inode::{Ino, ROOT};
use avidfs::metadata::check::FlawKind::{self, *};
use avidfs::metadata::sqlite::SqliteStore;
use avidfs::metadata::{Exception, MetadataStore, Replay};
use common::wire::NodeId;
use rusqlite::Connection;
use tempfile::TempDir;

use crate::support::*;

/// Inode numbers of what `fill` makes.
const SUB: i64 = 2;
const FILE: i64 = 3;
const LINK: i64 = 4;
const DEEP: i64 = 5;
const OTHER: i64 = 6;

/// `/sub/file` with two names and three objects, `/sub/deep/`, `/link` and `/other`.
fn fill(store: &dyn MetadataStore) {
    format(store);
    let sub = directory(store, ROOT, "sub");
    let ino = file(store, sub, "file");
    write(store, ino, 0, 1, 100);
    write(store, ino, 100, 2, 100);
    write(store, ino, 300, 3, 100);
    store.set_exceptions(id(2), &[Exception { index: 1, node: Some(NodeId([2; 16])) }]).unwrap();
    store.set_xattr(ino, b"user.x", b"value", true, false, at(3)).unwrap();
    store.create(ROOT, b"link", &new_link(b"sub/file"), at(4)).unwrap();
    directory(store, sub, "deep");
    store.link(ino, ROOT, b"zweitname", at(5)).unwrap();
    let other = file(store, ROOT, "other");
    write(store, other, 0, 4, 50);
    let open = file(store, ROOT, "open");
    write(store, open, 0, 5, 50);
    store.unlink(ROOT, b"open", at(5)).unwrap();
    let inos = [SUB, FILE, LINK, DEEP, OTHER].map(|ino| Ino(ino as u64));
    assert_eq!(inos, [sub, ino, ino_of(store, ROOT, "link"), ino_of(store, sub, "deep"), other]);
}

fn damaged(sql: &str) -> (TempDir, SqliteStore) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metadata.db");
    fill(&SqliteStore::open(&path).unwrap());
    damage(&path, sql);
    let store = SqliteStore::open(&path).unwrap();
    (folder, store)
}

fn damage(path: &Path, sql: &str) {
    let db = Connection::open(path).unwrap();
    db.pragma_update(None, "ignore_check_constraints", "ON").unwrap();
    db.execute_batch(sql).unwrap();
}

fn found(store: &dyn MetadataStore) -> Vec<(FlawKind, String)> {
    let flaws = store.check().unwrap();
    let shown = |flaw: &avidfs::metadata::check::Flaw| {
        let object = flaw.object.map(|id| format!("object {}-{} ", id.epoch, id.counter)).unwrap_or_default();
        (flaw.kind, format!("{object}{} {}", flaw.path.as_deref().unwrap_or("-"), flaw.what))
    };
    let listed: Vec<(FlawKind, String)> = flaws.listed.iter().map(shown).collect();
    let mut counts = BTreeMap::new();
    listed.iter().for_each(|(kind, _)| *counts.entry(*kind).or_insert(0) += 1);
    assert_eq!(counts, flaws.counts);
    listed
}

/// Damage a store, want exactly these kinds of flaws with these words in them, mend them, and see that a journal that
/// had the damage has what was mended.
fn is_found_and_mended(sql: &str, wanted: &[(FlawKind, &str)]) -> (TempDir, SqliteStore) {
    let (folder, store) = damaged(sql);
    let flaws = found(&store);
    let kinds = |flaws: &[(FlawKind, &str)]| flaws.iter().map(|(kind, _)| *kind).collect::<BTreeSet<_>>();
    let borrowed: Vec<(FlawKind, &str)> = flaws.iter().map(|(kind, text)| (*kind, text.as_str())).collect();
    assert_eq!(kinds(&borrowed), kinds(wanted), "{sql}: {flaws:#?}");
    for (kind, words) in wanted {
        assert!(flaws.iter().any(|(of, text)| of == kind && text.contains(words)), "{words}: {flaws:#?}");
    }
    let mut checkpoint = Vec::new();
    let dump = |bytes: &[u8]| {
        checkpoint.extend_from_slice(bytes);
        Ok(())
    };
    let last = store.dump(&mut { dump }).unwrap();
    store.shipped(last, b"here").unwrap();
    store.mend(at(9)).unwrap();
    assert_eq!(found(&store), []);
    audit(&store);
    let outbox = store.outbox(0, usize::MAX).unwrap();
    let copy = SqliteStore::open_in_memory().unwrap();
    let records: &[&[u8]] = &[&checkpoint, &outbox.records];
    let records = &mut pieces(records);
    copy.replay(Replay { anew: true, records, upto: 7, head: b"here" }).unwrap();
    assert_eq!(dumped(&copy), dumped(&store), "{sql}");
    assert_eq!(found(&copy), []);
    // What was handed out is not handed out again.
    let before = names(&store, ROOT).len();
    file(&store, ROOT, "new");
    assert_eq!((names(&store, ROOT).len(), found(&store)), (before + 1, vec![]));
    (folder, store)
}

#[test]
fn a_store_as_verbs_leave_it_has_no_flaw() {
    on_every_empty_store(|store| {
        fill(store);
        assert_eq!(found(store), []);
        let before = store.last_change();
        store.mend(at(9)).unwrap();
        assert_eq!(store.last_change(), before, "nothing was to be mended");
    });
}

#[test]
fn names_of_nothing_are_removed() {
    is_found_and_mended(
        &format!("INSERT INTO entry VALUES ({DEEP}, x'67686f7374', 77, 9)"),
        &[
            (DanglingName, "/sub/deep/ghost stands for inode 77, which does not exist"),
            (Size, "/sub/deep has size 0, and should have 32"),
        ],
    );
    is_found_and_mended(
        "INSERT INTO entry VALUES (88, x'78', 3, 9)",
        &[(StrayName, "inode 88/x names inode 3 in what is no directory"), (Links, "/sub/file counts 2")],
    );
    is_found_and_mended(
        "INSERT INTO entry VALUES (1, x'612f62', 3, 9)",
        &[(Name, "/a/b cannot be the name"), (Links, "/sub/file counts 2 links, and has 3"), (Size, "/ has")],
    );
}

#[test]
fn bytes_that_cannot_be_carried_are_given_up() {
    let carried = |ino: i64, offset: i64, length: i64| {
        format!("INSERT INTO intent VALUES ({ino}, {offset}, {length}, 1, zeroblob(10));")
    };
    is_found_and_mended(&carried(77, 0, 10), &[(Intent, "inode 77 has 10 bytes carried from 0 on")]);
    is_found_and_mended(&carried(SUB, 0, 10), &[(Intent, "/sub has 10 bytes carried")]);
    is_found_and_mended(&carried(FILE, 395, 10), &[(Intent, "/sub/file has 10 bytes carried from 395 on")]);
    is_found_and_mended(&carried(FILE, 0, 11), &[(Intent, "/sub/file has 11 bytes carried")]);
    let twice = carried(FILE, 0, 10) + &carried(FILE, 9, 10);
    let (_folder, store) =
        is_found_and_mended(&twice, &[(Intent, "/sub/file has 10 bytes carried from 0 on")]);
    assert_eq!(store.intents(Ino(FILE as u64)).unwrap().len(), 1);
    let (_folder, store) = damaged(&carried(FILE, 0, 10));
    assert_eq!(found(&store), []);
}

#[test]
fn an_inode_that_lost_its_name_gets_one_in_lost_and_found() {
    let (_folder, store) = is_found_and_mended(
        "DELETE FROM entry WHERE ino = 6",
        &[(Unnamed, "inode 6 has no name, and counts 1 links"), (Size, "/ has size")],
    );
    let lost = ino_of(&store, ROOT, "lost+found");
    assert_eq!(names(&store, lost), ["#6"]);
    assert_eq!(store.inode(Ino(6)).unwrap().allocated, 50);
    let (_folder, store) = is_found_and_mended(
        "DELETE FROM entry WHERE ino = 2",
        &[(Unnamed, "inode 2 has no name"), (Links, "/ counts 3 links, and has 2"), (Size, "/ has size")],
    );
    let lost = ino_of(&store, ROOT, "lost+found");
    assert_eq!(names(&store, ino_of(&store, lost, "#2")), ["file", "deep"]);
    assert_eq!(store.parent(Ino(2)).unwrap(), lost);
}

/// It took the name of another file, which was then lost itself.
#[test]
fn a_lost_inode_takes_nobodys_name() {
    let (_folder, store) = is_found_and_mended(
        "UPDATE entry SET name = CAST('lost+found' AS BLOB) WHERE ino = 2;
         UPDATE entry SET name = CAST('#6' AS BLOB) WHERE parent = 2 AND ino = 3;
         DELETE FROM entry WHERE ino = 6",
        &[(Unnamed, "inode 6 has no name"), (Size, "/ has size")],
    );
    let lost = ino_of(&store, ROOT, "lost+found");
    assert_eq!(names(&store, lost), ["#6", "deep", "#6.1"]);
    assert_eq!((ino_of(&store, lost, "#6"), ino_of(&store, lost, "#6.1")), (Ino(3), Ino(6)));
}

#[test]
fn a_directory_has_one_name_and_lies_below_the_root() {
    let (_folder, store) = is_found_and_mended(
        "INSERT INTO entry VALUES (1, x'7477696e', 5, 9)",
        &[(TwiceNamed, "/twin is one more name of the directory 5"), (Links, "/ counts"), (Size, "/ has")],
    );
    assert_eq!(ino_of(&store, Ino(2), "deep"), Ino(5));
    is_found_and_mended(
        "INSERT INTO entry VALUES (5, x'726f6f74', 1, 9)",
        &[(TwiceNamed, "/sub/deep/root names the root"), (Links, "/sub/deep counts 2"), (Size, "/sub/deep")],
    );
    is_found_and_mended(
        "UPDATE inode SET parent = 1 WHERE ino = 5",
        &[(Parent, "/sub/deep lies in directory 2, and is said to lie in 1")],
    );
    // deep lies in sub, and sub in deep.
    let (_folder, store) = is_found_and_mended(
        "UPDATE entry SET parent = 5 WHERE ino = 2; UPDATE inode SET parent = 5 WHERE ino = 2;
         UPDATE inode SET links = 3, size = 32 WHERE ino = 5; UPDATE inode SET links = 2, size = 96 WHERE ino = 1",
        &[(Cycle, "does not lie below the root: it lies in itself")],
    );
    let lost = ino_of(&store, ROOT, "lost+found");
    assert_eq!(names(&store, lost).len(), 1, "and the other one lies below it");
}

#[test]
fn positions_and_numbers_are_handed_out_once() {
    is_found_and_mended(
        "UPDATE entry SET cookie = (SELECT cookie FROM entry WHERE ino = 4) WHERE ino = 6",
        &[(Position, "has a position in its directory that is another's")],
    );
    is_found_and_mended(
        "UPDATE counter SET value = 5 WHERE name = 'inode'; UPDATE counter SET value = 0 WHERE name = 'epoch';
         UPDATE counter SET value = 4 WHERE name = 'cookie'",
        &[
            (Numbers, "the counter of inodes stands at 5, and 7 is in use"),
            (Numbers, "the counter of epochs stands at 0, and 1 is in use"),
            (Numbers, "the counter of cookies stands at 4"),
        ],
    );
}

#[test]
fn counts_that_follow_from_other_rows_are_counted_anew() {
    is_found_and_mended(
        "UPDATE inode SET links = 7 WHERE ino = 3; UPDATE inode SET links = 9 WHERE ino = 2",
        &[(Links, "/sub/file counts 7 links, and has 2"), (Links, "/sub counts 9 links, and has 3")],
    );
    is_found_and_mended(
        "UPDATE inode SET size = 4 WHERE ino IN (2, 4)",
        &[(Size, "/sub has size 4, and should have 64"), (Size, "/link has size 4, and should have 8")],
    );
    is_found_and_mended(
        "UPDATE inode SET allocated = 4 WHERE ino = 3",
        &[(Allocated, "/sub/file counts 4 bytes in objects, and its extents have 300")],
    );
    is_found_and_mended(
        "UPDATE object SET live = 4 WHERE id = (1 << 40) + 2",
        &[(Live, "object 1-2 - counts 4 bytes in use, and files refer to 100"), (Totals, "the totals say")],
    );
    is_found_and_mended(
        "UPDATE object SET exceptions = 0 WHERE id = (1 << 40) + 2",
        &[(ExceptionCount, "counts 0 fragments away from home, and has 1"), (Totals, "the totals say")],
    );
    is_found_and_mended(
        "UPDATE counter SET value = 99 WHERE name = 'closed.inodes'",
        &[(Totals, "the totals say Usage { inodes: 99")],
    );
}

#[test]
fn extents_are_cut_to_what_is_there() {
    let (_folder, store) = is_found_and_mended(
        "UPDATE inode SET size = 350 WHERE ino = 3",
        &[(BeyondSize, "object 1-3 /sub/file ends at 350, and has bytes 300..400")],
    );
    assert_eq!(extents(&store, Ino(3)).last(), Some(&extent(300, 50, 3, 0)));
    let (_folder, store) = is_found_and_mended(
        "UPDATE object SET length = 60 WHERE id = (1 << 40) + 3",
        &[
            (BeyondObject, "/sub/file has bytes 300..400 in an object of 60 bytes, up to its byte 100"),
            (Totals, ""),
        ],
    );
    assert_eq!(extents(&store, Ino(3)).last(), Some(&extent(300, 60, 3, 0)));
    let (_folder, store) = is_found_and_mended(
        "DELETE FROM object WHERE id = (1 << 40) + 3",
        &[(UnknownObject, "object 1-3 /sub/file has bytes 300..400 in an object that nobody"), (Totals, "")],
    );
    assert_eq!((extents(&store, Ino(3)).len(), store.inode(Ino(3)).unwrap().size), (2, 400));
    let (_folder, store) = is_found_and_mended(
        "UPDATE extent SET offset = 80 WHERE ino = 3 AND offset = 100",
        &[(Overlap, "object 1-2 /sub/file has bytes 80..180 twice: 0..100 lie elsewhere, too")],
    );
    assert_eq!(extents(&store, Ino(3))[..2], [extent(0, 80, 1, 0), extent(80, 100, 2, 0)]);
    // What the other one does not cover stays.
    let (_folder, store) = is_found_and_mended(
        "UPDATE extent SET offset = 120, length = 20 WHERE ino = 3 AND offset = 300;
         UPDATE inode SET allocated = 220 WHERE ino = 3; UPDATE object SET live = 20 WHERE id = (1 << 40) + 3",
        &[(Overlap, "object 1-3 /sub/file has bytes 120..140 twice: 100..200 lie elsewhere, too"), (Totals, "")],
    );
    let around = [extent(100, 20, 2, 0), extent(120, 20, 3, 0), extent(140, 60, 2, 40)];
    assert_eq!(extents(&store, Ino(3))[1..], around);
    // And all of it where the other one goes.
    let (_folder, store) = is_found_and_mended(
        "UPDATE extent SET offset = 150 WHERE ino = 3 AND offset = 300;
         DELETE FROM object WHERE id = (1 << 40) + 3",
        &[(Overlap, "/sub/file has bytes 150..250 twice"), (UnknownObject, "/sub/file"), (Totals, "")],
    );
    assert_eq!(extents(&store, Ino(3)), [extent(0, 100, 1, 0), extent(100, 100, 2, 0)]);
    is_found_and_mended(
        "UPDATE extent SET ino = 99 WHERE ino = 6",
        &[
            (StrayExtent, "object 1-4 inode 99 has bytes 0..50, and is no file"),
            (Allocated, "/other counts 50"),
        ],
    );
}

#[test]
fn what_belongs_to_nothing_is_removed() {
    is_found_and_mended(
        "INSERT INTO xattr VALUES (99, x'757365722e79', x'00'); INSERT INTO target VALUES (98, x'78')",
        &[
            (Attribute, "inode 99 does not exist, and has the attribute user.y"),
            (Attribute, "inode 98 has a target, and is no symbolic link"),
        ],
    );
    is_found_and_mended(
        "INSERT INTO exception VALUES ((1 << 40) + 2, 5, NULL);
         UPDATE object SET exceptions = 2 WHERE id = (1 << 40) + 2",
        &[(Exception, "object 1-2 - has a place for its fragment 5, and is of code 3+2")],
    );
    is_found_and_mended(
        "INSERT INTO exception VALUES (77, 0, NULL)",
        &[(Exception, "has a place for its fragment 0, and does not exist")],
    );
}

#[test]
fn what_cannot_be_mended_is_named_and_stays() {
    for (sql, kind, words) in [
        ("DELETE FROM target", Attribute, "/link is a symbolic link without a target"),
        ("UPDATE inode SET mode = 420 WHERE ino = 6", Mode, "/other is of no known type (mode 644)"),
        (
            "UPDATE object SET configuration = 9 WHERE id & 15 = 4",
            Object,
            "configuration 9, which nobody knows",
        ),
        ("UPDATE object SET code = '4+2' WHERE id & 15 = 4", Object, "configuration 1 has 5 nodes"),
        ("UPDATE object SET code = 'x' WHERE id & 15 = 4", Object, "is of code x, which is none"),
    ] {
        let (_folder, store) = damaged(sql);
        assert!(
            found(&store).iter().any(|(of, text)| *of == kind && text.contains(words)),
            "{:?}",
            found(&store)
        );
        store.mend(at(9)).unwrap();
        assert!(found(&store).iter().any(|(of, _)| *of == kind), "{sql}");
    }
}

#[test]
fn an_index_that_is_not_what_its_table_says_is_named_and_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metadata.db");
    fill(&SqliteStore::open(&path).unwrap());
    // A change that the index does not see.
    damage(
        &path,
        "PRAGMA writable_schema = ON;
         CREATE TABLE hidden AS SELECT * FROM sqlite_schema WHERE name = 'entry_by_cookie';
         DELETE FROM sqlite_schema WHERE name = 'entry_by_cookie'",
    );
    damage(&path, "UPDATE entry SET cookie = 9 WHERE ino = 6");
    damage(
        &path,
        "PRAGMA writable_schema = ON; INSERT INTO sqlite_schema SELECT * FROM hidden; DROP TABLE hidden",
    );
    let store = SqliteStore::open(&path).unwrap();
    let flaws = found(&store);
    assert!(
        flaws.iter().any(|(kind, text)| *kind == Database && text.contains("entry_by_cookie")),
        "{flaws:?}"
    );
    store.mend(at(9)).unwrap();
    assert_eq!(found(&store), []);
    audit(&store);
}

#[test]
fn an_object_is_listed_with_whether_it_is_needed_and_by_whom() {
    on_every_empty_store(|store| {
        fill(store);
        store.truncate(Ino(3), 200, at(8)).unwrap();
        let listed: Vec<(u64, bool)> = store
            .objects(Some(id(1)), 3)
            .unwrap()
            .into_iter()
            .map(|(o, needed)| (o.id.counter, needed))
            .collect();
        assert_eq!(listed, [(2, true), (3, false), (4, true)]);
        assert_eq!(store.objects(None, 1).unwrap()[0].0, object(1, 100));
        let users = store.users(&[id(1), id(3), id(4), id(5)].into(), 8).unwrap();
        let paths = |k: usize| users[k].1.join(" ");
        assert_eq!([paths(0), paths(1), paths(2), paths(3)], ["/sub/file", "", "/other", "inode 7"]);
    });
}
