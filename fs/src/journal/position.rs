//! How far a journal is, and what the store remembers of that.

use std::collections::{BTreeMap, BTreeSet};

use common::wire::NodeId;

use super::Checkpoints;
use super::chain::{Chain, Holders};
use super::entry::{Digest, Place, Signed};
use crate::error::{Error, Result};
use crate::metadata::record::Fields;
use crate::metadata::{MetadataStore, ObjectRecord};

/// How far the journal is.
#[derive(Clone, Debug, Default)]
pub struct Position {
    /// Of the newest entry; 0 for none.
    pub(super) sequence: u64,
    pub(super) epoch: u32,
    pub(super) digest: Digest,
    /// Number of the list of nodes that was current then.
    pub(super) configuration: u32,
    /// Sequence of the last checkpoint.
    pub(super) checkpoint: u64,
    /// Number of the last change in the pool.
    pub(super) upto: u64,
    /// Bytes of blocks in the last checkpoint, and in the entries since.
    pub(super) checkpoint_bytes: u64,
    pub(super) bytes: u64,
    /// Blocks that are objects, of the last checkpoint and since, and where all these entries stand.
    pub(super) parts: Vec<ObjectRecord>,
    pub(super) places: Vec<Place>,
    /// Whether the pool lacks what the store has, and the next entry must hold everything.
    pub(super) anew: bool,
    /// Keys of entries that were there before it when the journal was read.
    pub(super) before: Vec<String>,
    /// Up to where each node has, or had, every entry from the checkpoint on.
    pub(super) heard: BTreeMap<NodeId, Place>,
    /// Nodes that lack some of that: their disks are older than what they acknowledged.
    pub(super) old_disks: BTreeSet<NodeId>,
}

/// What the store remembers, as docs/metadata.md draws it: the newest entry, and up to where nodes have every one.
pub(super) fn remembered(position: &Position) -> Vec<u8> {
    let mut head = position.sequence.to_le_bytes().to_vec();
    head.extend_from_slice(&position.epoch.to_le_bytes());
    head.extend_from_slice(&position.digest);
    for (node, place) in &position.heard {
        head.extend_from_slice(&node.0);
        head.extend_from_slice(&place.sequence.to_le_bytes());
        head.extend_from_slice(&place.epoch.to_le_bytes());
    }
    head
}

/// What `remembered` wrote.
#[derive(Default)]
pub(super) struct Recalled {
    pub(super) sequence: u64,
    pub(super) digest: Digest,
    pub(super) heard: BTreeMap<NodeId, Place>,
}

pub(super) fn recall(metadata: &dyn MetadataStore) -> Result<Recalled> {
    let Some(head) = metadata.head()? else { return Ok(Recalled::default()) };
    recalled(&head).ok_or_else(|| Error::Store("damaged: the journal's place cannot be read".into()))
}

fn recalled(head: &[u8]) -> Option<Recalled> {
    let mut fields = Fields(head);
    let (sequence, _epoch, digest) = (fields.u64()?, fields.u32()?, fields.array()?);
    let mut heard = BTreeMap::new();
    while !fields.0.is_empty() {
        let node = NodeId(fields.array()?);
        heard.insert(node, Place { sequence: fields.u64()?, epoch: fields.u32()? });
    }
    Some(Recalled { sequence, digest, heard })
}

impl Position {
    pub(super) fn at(chain: &Chain) -> Position {
        let mut position = Position { before: chain.stale.clone(), ..Position::default() };
        for signed in &chain.entries {
            let _before = position.step(signed);
        }
        position
    }

    /// Compare what nodes have with what they once had; that is remembered until they have it again.
    pub(super) fn find_old_disks(&mut self, holders: &Holders, had: BTreeMap<NodeId, Place>) {
        self.old_disks.extend(holders.with_old_disks(&self.places, &had));
        self.heard = had;
    }

    /// Where the newest entry stands.
    pub(super) fn head(&self) -> Option<Place> {
        self.places.last().copied()
    }

    /// Nodes have the newest entry; one that had all before it, or needs none of those, has all.
    pub(super) fn kept_by(&mut self, nodes: &[NodeId], before: Option<Place>) {
        let Some(head) = self.head() else { return };
        let is_first = self.places.len() == 1;
        for node in nodes {
            if is_first || self.heard.get(node) == before.as_ref() {
                self.heard.insert(*node, head);
            }
        }
    }

    /// Go on to the next entry. Returns the entries and parts that nobody needs for what is there now.
    pub(super) fn step(&mut self, signed: &Signed) -> (Vec<Place>, Vec<ObjectRecord>) {
        let mut before = (Vec::new(), Vec::new());
        let entry = &signed.entry;
        let bytes =
            entry.parts.iter().map(|part| u64::from(part.length)).sum::<u64>() + entry.inline.len() as u64;
        if entry.is_checkpoint() {
            (self.checkpoint, self.checkpoint_bytes, self.bytes) = (entry.place.sequence, bytes, 0);
            self.anew = false;
            before = (std::mem::take(&mut self.places), std::mem::take(&mut self.parts));
        } else {
            self.bytes += bytes;
        }
        (self.sequence, self.epoch) = (entry.place.sequence, entry.place.epoch);
        self.configuration = entry.configurations.last().map_or(0, |configuration| configuration.number);
        (self.digest, self.upto) = (signed.digest, entry.upto);
        self.parts.extend(entry.parts.iter().cloned());
        self.places.push(entry.place);
        before
    }

    pub(super) fn wants_checkpoint(&self, due: Checkpoints) -> bool {
        self.bytes > self.checkpoint_bytes.max(due.bytes) || self.sequence - self.checkpoint > due.entries
    }
}
