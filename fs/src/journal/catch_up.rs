//! A store and the journal in the pool, brought to one state before the volume is served, or made from it anew.

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use common::wire::MountId;
use ed25519_dalek::VerifyingKey;
use futures_util::{Stream, TryStreamExt};

use super::chain::{Chain, Progress, Reader};
use super::entry::Signed;
use super::inherited;
use super::pin::Pin;
use super::position::{Position, Recalled, recall, remembered};
use crate::blocking;
use crate::error::{Error, Result};
use crate::metadata::record::{self, Record};
use crate::metadata::{MetadataStore, Replay, Snapshot};

/// Bring a store and the pool's journal to one state, before the volume is served: what the store lacks is replayed.
/// What it has and the pool lacks stays in its outbox, and is shipped once the journal is written; but where nodes lost
/// objects that it names, which no fsync covered, the store goes back to what the pool has.
///
/// # Errors
/// `Pool`: the pool's journal cannot be read whole, is older than or another one than the store has seen, or was written
/// by others while the store has changes that never reached it, or while bytes written here wait in `backlog`, if that is
/// given: they would be laid over newer ones; or nodes do not answer that may have what it names.
pub async fn catch_up(
    metadata: &Arc<dyn MetadataStore>,
    reader: &Reader,
    public: &VerifyingKey,
    mount: MountId,
    backlog: Option<&Path>,
) -> Result<Position> {
    let position = bring_together(metadata, reader, public, mount, backlog).await?;
    if position.anew {
        // The pool has less than the store, and nothing to go back to.
        return Ok(position);
    }
    let lost = inherited::lost_objects(metadata, reader, position.upto).await?;
    if lost.is_empty() {
        return Ok(position);
    }
    let Some(chain) = reader.read(Some(public)).await? else { return Ok(position) };
    let changes = metadata.last_change() - position.upto;
    tracing::error!(
        changes,
        objects = lost.len(),
        "changes are lost: nodes lost power before anything was flushed"
    );
    let position = Position { upto: metadata.last_change(), ..position };
    replay(metadata, true, reader.records(&chain.entries, &|_, _| ())?, &position).await?;
    Ok(position)
}

async fn bring_together(
    metadata: &Arc<dyn MetadataStore>,
    reader: &Reader,
    public: &VerifyingKey,
    mount: MountId,
    backlog: Option<&Path>,
) -> Result<Position> {
    let Recalled { sequence, digest, heard } = recall(&**metadata)?;
    let Some(chain) = reader.read(Some(public)).await? else {
        return match sequence {
            0 => Ok(Position::default()),
            _ if reader.accept_loss == Some(1) => Ok(Position::default()),
            _ => Err(Error::Pool(format!(
                "the pool holds nothing of the journal, of which entry {sequence} was written"
            ))),
        };
    };
    let head = chain.head();
    let mut position = Position::at(&chain);
    position.find_old_disks(&chain.holders, heard);
    let at = head.entry.place.sequence;
    let differs = |sequence: u64| {
        Err(Error::Pool(format!(
            "entry {sequence} of the pool's journal is another one than this store has seen"
        )))
    };
    if at < sequence && reader.accept_loss.is_some_and(|lost| lost <= at + 1) {
        // What the pool lost is here, and becomes a checkpoint.
        tracing::warn!(
            pool = at,
            store = sequence,
            "the pool has lost entries of its journal, and gets them anew"
        );
        (position.upto, position.anew) = (0, true);
        return Ok(position);
    }
    if at < sequence {
        let silent = if chain.silent.is_empty() {
            String::new()
        } else {
            format!("; no answer from {}", chain.silent.join(", "))
        };
        return Err(Error::Pool(format!(
            "the pool's journal ends with entry {at}, and this store has seen entry {sequence}: the nodes have old disks{silent}; --accept-loss {} lets the pool have this store's state",
            at + 1
        )));
    }
    let same = chain.entries.iter().find(|signed| signed.entry.place.sequence == sequence);
    if same.is_some_and(|signed| signed.digest != digest) {
        return differs(sequence);
    }
    if at == sequence {
        // The head may be another host's, which counts changes in its own way.
        position.upto = shipped_changes(&**metadata)?;
        return Ok(position);
    }
    // A checkpoint says what there is, and not what is gone: a store that forgot its last changes may still have that.
    let anew = sequence < chain.first();
    let missed: Vec<Signed> = chain
        .entries
        .iter()
        .filter(|signed| anew || signed.entry.place.sequence > sequence)
        .cloned()
        .collect();
    if !anew && missed[0].entry.previous != digest {
        return differs(sequence + 1);
    }
    if missed.iter().any(|signed| signed.entry.mount != mount) {
        let reached = reached_unnoted(&**metadata, reader, &missed, mount).await?;
        let own = unshipped_changes(&**metadata, reached)?;
        if own > 0 {
            return Err(Error::Pool(format!(
                "the volume was written elsewhere, up to entry {at} of its journal, and {own} changes made here never \
                 reached the pool: move this state folder away, and recover into a new one"
            )));
        }
        if let Some(folder) = backlog {
            return Err(Error::Pool(format!(
                "the volume was written elsewhere, up to entry {at} of its journal, and bytes written here before wait in {}: \
                 move that folder away to mount without them",
                folder.display()
            )));
        }
        // Others count their changes in their own way. That this mount began is still to be told.
        position.upto = reached;
    }
    tracing::info!(entries = missed.len(), anew, "the store catches up with the pool's journal");
    replay(metadata, anew, reader.records(&missed, &|_, _| ())?, &position).await?;
    Ok(position)
}

/// Number of the last change that is not in the outbox any more.
fn shipped_changes(metadata: &dyn MetadataStore) -> Result<u64> {
    let waiting = metadata.outbox(0, 1)?;
    Ok(if waiting.records.is_empty() { metadata.last_change() } else { waiting.last - 1 })
}

/// Number of the last change that reached the pool before others wrote, whether or not the store had noted that: by an
/// entry of this state folder, or, where it is a copy of the one that wrote them, by one that holds the very same.
async fn reached_unnoted(
    metadata: &dyn MetadataStore,
    reader: &Reader,
    missed: &[Signed],
    mount: MountId,
) -> Result<u64> {
    let mut reached = shipped_changes(metadata)?;
    for signed in missed {
        if signed.entry.mount == mount {
            reached = reached.max(signed.entry.upto);
            continue;
        }
        if signed.entry.is_checkpoint() {
            break;
        }
        let theirs: Vec<Vec<u8>> =
            reader.records(std::slice::from_ref(signed), &|_, _| ())?.try_collect().await?;
        let theirs = theirs.concat();
        let (mut ours, mut last) = (Vec::new(), reached);
        while ours.len() < theirs.len() {
            let next = metadata.outbox(last, 1)?;
            if next.records.is_empty() {
                break;
            }
            last = next.last;
            ours.extend_from_slice(&next.records);
        }
        if ours != theirs {
            break;
        }
        reached = last;
    }
    Ok(reached)
}

/// Changes in the outbox after one that reached the pool, which say more than that a mount was begun, or a file was read.
fn unshipped_changes(metadata: &dyn MetadataStore, reached: u64) -> Result<usize> {
    let outbox = metadata.outbox(reached, usize::MAX)?;
    let says_more = |record: &Record| {
        !matches!(
            record,
            Record::Epoch(_) | Record::Numbers { .. } | Record::Configuration(_) | Record::Accessed(..)
        )
    };
    Ok(record::decode_all(&outbox.records)?.iter().filter(|record| says_more(record)).count())
}

/// The snapshots that a journal knows of, oldest first.
///
/// # Errors
/// `Unreadable`, `Store`.
pub async fn snapshots(reader: &Reader, chain: &Chain) -> Result<Vec<Snapshot>> {
    let mut known = BTreeMap::new();
    let mut blocks = pin!(reader.records(&chain.entries, &|_, _| ())?);
    while let Some(records) = blocks.try_next().await? {
        for record in record::decode_all(&records)? {
            match record {
                Record::Snapshot(snapshot) => {
                    known.insert(snapshot.number, snapshot);
                }
                Record::NoSnapshot(number) => {
                    known.remove(&number);
                }
                _ => {}
            }
        }
    }
    Ok(known.into_values().collect())
}

/// Make a store anew from a chain; after an error it is as it was.
///
/// # Errors
/// `Unreadable`, `Store`.
pub async fn restore(
    metadata: &Arc<dyn MetadataStore>,
    reader: &Reader,
    chain: &Chain,
    progress: &Progress<'_>,
) -> Result<()> {
    replay(metadata, true, reader.records(&chain.entries, progress)?, &Position::at(chain)).await
}

pub(super) async fn replay(
    metadata: &Arc<dyn MetadataStore>,
    anew: bool,
    records: impl Stream<Item = Result<Vec<u8>>> + Send,
    position: &Position,
) -> Result<()> {
    let (metadata, head, upto) = (metadata.clone(), remembered(position), position.upto);
    let work = move |records: &mut dyn Iterator<Item = Result<Vec<u8>>>| {
        metadata.replay(Replay { anew, records, upto, head: &head })?;
        metadata.sync()
    };
    blocking::run_on(records, work).await
}

/// Whether a store is of the very state that a pin names.
pub fn is_at(metadata: &dyn MetadataStore, pin: &Pin) -> bool {
    recall(metadata).is_ok_and(|recalled| recalled.digest == pin.digest)
}
