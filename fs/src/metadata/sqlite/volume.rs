//! The volume as a whole: its settings, epochs, configurations and totals.

use common::wire::{NodeId, VolumeId};
use rand::TryRngCore;
use rand::rngs::OsRng;
use rusqlite::{Connection, OptionalExtension};

use super::rows;
use super::transaction::{Change, Numbers, Transaction, View};
use crate::error::{Error, Result};
use crate::inode::{Inode, ROOT};
use crate::metadata::record::Record;
use crate::metadata::{Configuration, Usage, VolumeSettings};

pub(super) fn format(change: &mut Change, settings: &VolumeSettings) -> Result<()> {
    if self::settings(change.view)?.is_some() {
        return Err(Error::Exists);
    }
    insert_settings(change, settings)?;
    change.note(&Record::Volume(settings.clone()));
    let root = root(settings);
    change.insert_inode(&root, ROOT)
}

pub(super) fn insert_settings(change: &mut Change, settings: &VolumeSettings) -> Result<()> {
    change.run(
        "INSERT INTO volume VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            settings.volume.0,
            &settings.name,
            settings.code.to_string(),
            settings.hash.to_string(),
            settings.object_size,
            settings.root.0,
            settings.root.1,
            settings.created.seconds,
            settings.created.nanos,
        ),
    )?;
    Ok(())
}

fn root(settings: &VolumeSettings) -> Inode {
    Inode {
        ino: ROOT,
        mode: libc::S_IFDIR | 0o755,
        uid: settings.root.0,
        gid: settings.root.1,
        links: 2,
        size: 0,
        allocated: 0,
        rdev: 0,
        atime: settings.created,
        mtime: settings.created,
        ctime: settings.created,
        btime: settings.created,
    }
}

pub(super) fn settings(view: View) -> Result<Option<VolumeSettings>> {
    let sql = "SELECT id, name, code, hash, object_size, uid, gid, created_s, created_ns FROM volume";
    view.row(sql, [], |row| {
        Ok(VolumeSettings {
            volume: VolumeId(row.get(0)?),
            name: row.get(1)?,
            code: rows::parsed(row, 2)?,
            hash: rows::parsed(row, 3)?,
            object_size: row.get(4)?,
            root: (row.get(5)?, row.get(6)?),
            created: rows::time(row, 7)?,
        })
    })
}

pub(super) fn begin_epoch(change: &mut Change, seen: u32) -> Result<u32> {
    if settings(change.view)?.is_none() {
        return Err(Error::Invalid("no volume was formatted here"));
    }
    let sql = "UPDATE counter SET value = max(value, ?) + 1 WHERE name = 'epoch' RETURNING value";
    let epoch: Option<u32> = change.row(sql, [seen], |row| row.get(0))?;
    match epoch {
        Some(epoch) if epoch <= rows::MAX_EPOCH => {
            change.note(&Record::Epoch(epoch));
            Ok(epoch)
        }
        Some(_) => Err(Error::Store("the volume has used up its epochs".into())),
        None => Err(Error::Store("the epoch counter is missing".into())),
    }
}

pub(super) fn configure(change: &mut Change, nodes: &[NodeId]) -> Result<Configuration> {
    if nodes.is_empty() {
        return Err(Error::Invalid("a configuration names at least one node"));
    }
    let bytes: Vec<u8> = nodes.iter().flat_map(|node| node.0).collect();
    let added = change.run("INSERT OR IGNORE INTO configuration (nodes) VALUES (?)", [&bytes])?;
    let number = change
        .row("SELECT number FROM configuration WHERE nodes = ?", [&bytes], |row| row.get(0))?
        .ok_or_else(|| Error::Store("a configuration could not be remembered".into()))?;
    let configuration = Configuration { number, nodes: nodes.to_vec() };
    if added > 0 {
        change.note(&Record::Configuration(configuration.clone()));
    }
    Ok(configuration)
}

pub(super) fn configurations(view: View) -> Result<Vec<Configuration>> {
    let sql = "SELECT number, nodes FROM configuration ORDER BY number";
    let stored: Vec<(u32, Vec<u8>)> = view.rows(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    stored
        .into_iter()
        .map(|(number, nodes)| Ok(Configuration { number, nodes: rows::nodes(&nodes)? }))
        .collect()
}

pub(super) fn places_objects(view: View, configuration: u32) -> Result<bool> {
    let sql = "SELECT 1 FROM object WHERE configuration = ? AND (live > 0 OR kept > 0) LIMIT 1";
    Ok(view.row(sql, [configuration], |row| row.get::<_, u32>(0))?.is_some())
}

/// The counters that hold the totals while nobody has the store open.
const CLOSED: [&str; 5] = [
    "closed.inodes",
    "closed.objects",
    "closed.object_bytes",
    "closed.live_bytes",
    "closed.objects_with_exceptions",
];

/// The totals that the last close left, taken away so that a crash leaves none; counted if there are none. Part of the
/// caller's transaction.
pub(super) fn take_usage(db: &Connection) -> Result<Usage> {
    let mut totals = [None; CLOSED.len()];
    for (total, name) in totals.iter_mut().zip(CLOSED) {
        *total = take_counter(db, name)?;
    }
    let usage = match totals {
        [
            Some(inodes),
            Some(objects),
            Some(object_bytes),
            Some(live_bytes),
            Some(objects_with_exceptions),
        ] => Usage { inodes, objects, object_bytes, live_bytes, objects_with_exceptions },
        _ => count_usage(View(db))?,
    };
    Ok(usage)
}

fn take_counter(db: &Connection, name: &str) -> Result<Option<u64>> {
    let sql = "DELETE FROM counter WHERE name = ? RETURNING value";
    Ok(db.prepare_cached(sql)?.query_row([name], |row| rows::unsigned(row, 0)).optional()?)
}

/// The salt of the redo log that goes on from this state; 0, which no log has, where there was none yet.
pub(super) fn salt(view: View) -> Result<u64> {
    let sql = "SELECT value FROM counter WHERE name = 'redo'";
    Ok(view.row(sql, [], |row| rows::unsigned(row, 0))?.unwrap_or_default())
}

/// Draw a salt, so that a redo log goes on from this transaction or a later one only.
pub(super) fn draw_salt(db: &Connection) -> Result<u64> {
    let salt = OsRng
        .try_next_u64()
        .map_err(|error| Error::Host(format!("the system's random numbers: {error}")))?
        // As large as a column may have it.
        .clamp(2, u64::MAX)
        >> 1;
    db.execute("INSERT OR REPLACE INTO counter VALUES ('redo', ?)", [rows::offset(salt)])?;
    Ok(salt)
}

pub(super) fn count_usage(view: View) -> Result<Usage> {
    let db = view.0;
    let inodes = db.query_row("SELECT count(*) FROM inode", [], |row| rows::unsigned(row, 0))?;
    let sql = "SELECT count(*), coalesce(sum(length), 0), coalesce(sum(live), 0), \
               coalesce(sum(exceptions > 0), 0) FROM object";
    let usage = db.query_row(sql, [], |row| {
        Ok(Usage {
            inodes,
            objects: rows::unsigned(row, 0)?,
            object_bytes: rows::unsigned(row, 1)?,
            live_bytes: rows::unsigned(row, 2)?,
            objects_with_exceptions: rows::unsigned(row, 3)?,
        })
    })?;
    Ok(usage)
}

/// Leave the totals for the next open, and give back the numbers that were reserved.
pub(super) fn leave_usage(db: &Connection, numbers: &Numbers, usage: &Usage) -> Result<()> {
    let transaction = Transaction::begin(db)?;
    for (name, numbers) in [("inode", &numbers.inodes), ("cookie", &numbers.cookies)] {
        let unused = numbers.end - numbers.start;
        db.execute("UPDATE counter SET value = value - ? WHERE name = ?", (unused, name))?;
    }
    let totals =
        [usage.inodes, usage.objects, usage.object_bytes, usage.live_bytes, usage.objects_with_exceptions];
    for (name, total) in CLOSED.into_iter().zip(totals) {
        db.execute("INSERT INTO counter VALUES (?, ?)", (name, rows::offset(total)))?;
    }
    transaction.commit()
}
