//! Whether the pool's journal makes the very store that is in use: read from its checkpoint to its head, with what the
//! store has not shipped yet laid on top.

use std::sync::Arc;
use std::time::Duration;

use ed25519_dalek::VerifyingKey;
use futures_util::TryStreamExt;

use super::catch_up::replay;
use super::chain::{Chain, Reader};
use super::position::{Position, recall};
use super::rows::{Row, Rows};
use crate::blocking;
use crate::error::Result;
use crate::metadata::MetadataStore;

/// A store that is written meanwhile is looked at so often.
const TRIES: u32 = 8;
/// A journal that cannot be read from one checkpoint on is believed to be so after so many tries.
const UNREADABLE: u32 = 3;
/// And between two looks so much longer each time.
const PAUSE: Duration = Duration::from_millis(100);
/// So many rows that differ are named.
const NAMED: usize = 1000;

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Comparison {
    /// The same, row by row.
    Same {
        /// Entries from the checkpoint to the head.
        entries: usize,
        /// Rows.
        rows: usize,
    },
    /// Some rows are others: the first of them, and how many.
    Differs(Vec<Row>, u64),
    /// The store changed at every look.
    Busy,
    /// There is no journal yet.
    None,
}

/// Read the whole journal and compare; the caller has shipped what was there to ship.
///
/// # Errors
/// `Pool`, `Unreadable`: the journal cannot be read.
pub async fn compare(
    metadata: &Arc<dyn MetadataStore>,
    reader: &Reader,
    public: &VerifyingKey,
) -> Result<Comparison> {
    let (mut begins_at, mut failures) = (None, 0);
    for attempt in 1..=TRIES {
        let (chain, records) = match read(reader, public).await {
            Ok(None) => return Ok(Comparison::None),
            Ok(Some(read)) => read,
            Err(error) => {
                // If a checkpoint was written meanwhile, what was before it was deleted, and that says nothing.
                let now = reader.checkpoint(public).await.ok().flatten();
                failures = if now == begins_at { failures + 1 } else { 1 };
                begins_at = now;
                if failures == UNREADABLE {
                    return Err(error);
                }
                tokio::time::sleep(PAUSE * attempt).await;
                continue;
            }
        };
        let (metadata, head) = (metadata.clone(), place(&chain));
        let looked = blocking::run(move || look(&*metadata, &records, head)).await;
        match looked? {
            Some((Ok(rows), _)) => return Ok(Comparison::Same { entries: chain.entries.len(), rows }),
            Some((Err(differing), count)) => return Ok(Comparison::Differs(differing, count)),
            None => tokio::time::sleep(PAUSE * attempt).await,
        }
    }
    Ok(Comparison::Busy)
}

/// Make the store anew from the journal, if that makes another one; what was not shipped stays, and counts as made after
/// it. Nobody else uses the store meanwhile, and `position` is where `catch_up` found the journal. Returns how many rows
/// were others.
///
/// # Errors
/// As `compare`; the store is as it was then.
pub async fn rebuild(
    metadata: &Arc<dyn MetadataStore>,
    reader: &Reader,
    public: &VerifyingKey,
    position: &Position,
) -> Result<u64> {
    let Comparison::Differs(_, count) = compare(metadata, reader, public).await? else { return Ok(0) };
    let Some(chain) = reader.read(Some(public)).await? else { return Ok(0) };
    replay(metadata, true, reader.records(&chain.entries, &|_, _| ())?, position).await?;
    Ok(count)
}

async fn read(reader: &Reader, public: &VerifyingKey) -> Result<Option<(Chain, Vec<Vec<u8>>)>> {
    let Some(chain) = reader.read(Some(public)).await? else { return Ok(None) };
    let records = reader.records(&chain.entries, &|_, _| ())?.try_collect().await?;
    Ok(Some((chain, records)))
}

type Place = (u64, super::entry::Digest);

fn place(chain: &Chain) -> Place {
    let head = chain.head();
    (head.entry.place.sequence, head.digest)
}

type Looked = (std::result::Result<usize, Vec<Row>>, u64);

/// Compare with the store as it is now; none if it went on meanwhile.
fn look(metadata: &dyn MetadataStore, records: &[Vec<u8>], head: Place) -> Result<Option<Looked>> {
    if !is_at(metadata, head)? {
        return Ok(None);
    }
    let mut here = Rows::default();
    let last = metadata.dump(&mut |bytes| here.apply(bytes))?;
    let mut there = Rows::default();
    records.iter().try_for_each(|records| there.apply(records))?;
    let outbox = metadata.outbox(0, usize::MAX)?;
    // What has been shipped has left the outbox, and what was made since the dump has come.
    if !is_at(metadata, head)? || metadata.last_change() != last {
        return Ok(None);
    }
    there.apply(&outbox.records)?;
    let (differing, count) = here.differences(&there, NAMED);
    Ok(Some((if count == 0 { Ok(here.len()) } else { Err(differing) }, count)))
}

fn is_at(metadata: &dyn MetadataStore, head: Place) -> Result<bool> {
    let known = recall(metadata)?;
    Ok((known.sequence, known.digest) == head)
}
