//! Moving changes from the -wal file to their places in the database, beside the verbs.
//!
//! A checkpoint flushes twice, which on a disk takes as long as hundreds of verbs. So a thread does it on a
//! connection of its own: most of it while others write, and only what came meanwhile while nobody does, for the
//! -wal file can be begun anew only when nothing in it is left to move. That last part also slows down writers who
//! are faster than the disk, and so bounds the file.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use rusqlite::Connection;

use super::writer::Writer;
use crate::error::{Error, Result};

/// Rows written between two checkpoints. Each is one or two pages in the -wal file, which so stays near 32 MiB.
const ROWS: u64 = 4096;

/// The thread that makes checkpoints, ended with the value.
pub(super) struct Checkpoints {
    orders: Arc<Orders>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Orders {
    /// Rows written since the last checkpoint began.
    rows: AtomicU64,
    next: Mutex<Order>,
    changed: Condvar,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Order {
    #[default]
    Wait,
    Checkpoint,
    End,
}

impl Checkpoints {
    /// Begin; `db` is for the thread alone.
    pub(super) fn begin(db: Connection, writer: Arc<Mutex<Writer>>) -> Result<Checkpoints> {
        let orders = Arc::new(Orders::default());
        let thread = std::thread::Builder::new().name("metadata".into()).spawn({
            let orders = Arc::clone(&orders);
            move || orders.carry_out(|| checkpoint(&db, &writer))
        });
        let thread = thread.map_err(|error| Error::Host(format!("a thread for checkpoints: {error}")))?;
        Ok(Checkpoints { orders, thread: Some(thread) })
    }

    /// So many rows were committed.
    pub(super) fn wrote(&self, rows: u64) {
        let before = self.orders.rows.fetch_add(rows, Ordering::Relaxed);
        if before < ROWS && before + rows >= ROWS {
            self.orders.give(Order::Checkpoint);
        }
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.orders.give(Order::End);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed; the database is whole without a checkpoint.
            let _ = thread.join();
        }
    }
}

impl Orders {
    fn give(&self, order: Order) {
        *self.next.lock() = order;
        self.changed.notify_one();
    }

    fn carry_out(&self, checkpoint: impl Fn() -> Result<()>) {
        loop {
            let mut next = self.next.lock();
            self.changed.wait_while(&mut next, |next| *next == Order::Wait);
            if *next == Order::End {
                return;
            }
            *next = Order::Wait;
            drop(next);
            self.rows.store(0, Ordering::Relaxed);
            if let Err(error) = checkpoint() {
                // Nothing is lost, but the -wal file grows until one goes well.
                tracing::warn!(%error, "no checkpoint of the metadata store");
            }
        }
    }
}

pub(super) fn checkpoint(db: &Connection, writer: &Mutex<Writer>) -> Result<()> {
    pass(db)?;
    // Shorter by as much as the first was shorter than the time before it.
    pass(db)?;
    // Nobody writes meanwhile. An open transaction would keep the next writer from beginning the -wal file anew.
    let mut writer = writer.lock();
    writer.commit()?;
    pass(db)
}

/// Move what can be moved without waiting for anybody.
fn pass(db: &Connection) -> Result<()> {
    Ok(db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?)
}
