//! What was acknowledged by whom under which boot id, and what of it is on stable storage (volume.md section 4).
//! It keeps an object's bytes until they are flushed on enough nodes. Facts in, facts out; no network, no clock.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use common::code::Code;
use common::hash::Hash;
use common::wire::{BootId, NodeId, ObjectId};

use super::encoded::Encoded;
use super::spread::{exceptions, is_stored};
use crate::metadata::Exception;

/// Losses remembered until someone takes them; further ones are found again at the next read.
const MOST_LOSSES: usize = 1 << 16;
/// What is flushed on enough nodes is remembered for so many objects, until the other nodes have flushed it too.
const MOST_REMEMBERED: usize = 4096;

/// See the module.
#[derive(Default)]
pub(super) struct Ledger {
    objects: BTreeMap<ObjectId, Entry>,
    nodes: HashMap<NodeId, NodePage>,
    held_bytes: u64,
    changes: BTreeMap<ObjectId, Vec<Exception>>,
    losses: BTreeSet<(ObjectId, u8)>,
}

struct Entry {
    digest: Hash,
    code: Code,
    homes: Vec<NodeId>,
    /// Until flushed on enough nodes and nobody is sending it any more.
    encoded: Option<Arc<Encoded>>,
    /// By index.
    acks: Vec<Option<Ack>>,
    /// How many are sending it now.
    senders: usize,
    /// s when it became *stored*; none before.
    margin: Option<usize>,
    /// What the record, or the last change told, says is not at home.
    recorded: Vec<Exception>,
}

#[derive(Clone, Copy)]
struct Ack {
    node: NodeId,
    boot: BootId,
    /// Position on the node's page; none once flushed.
    unflushed: Option<u64>,
}

/// Acknowledgements of one node in the order of their arrival.
#[derive(Default)]
struct NodePage {
    boot: Option<BootId>,
    last: u64,
    unflushed: BTreeMap<u64, (ObjectId, usize)>,
}

/// A fragment that a node acknowledged under an earlier boot id and had not flushed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Doubtful {
    pub(super) id: ObjectId,
    pub(super) index: usize,
    pub(super) digest: Hash,
    boot: BootId,
}

/// What is to be sent again, and which fragments need not be.
pub(super) struct Unsafe {
    pub(super) encoded: Arc<Encoded>,
    pub(super) homes: Vec<NodeId>,
    pub(super) holders: Vec<Option<NodeId>>,
}

impl Ledger {
    /// Someone begins to send an object; its bytes count from here on.
    pub(super) fn begin(&mut self, encoded: &Arc<Encoded>, homes: &[NodeId]) {
        let entry = self.objects.entry(encoded.id).or_insert_with(|| Entry {
            digest: encoded.digest,
            code: encoded.code,
            homes: homes.to_vec(),
            encoded: None,
            acks: vec![None; encoded.code.n()],
            senders: 0,
            margin: None,
            recorded: Vec::new(),
        });
        entry.senders += 1;
        if entry.encoded.is_none() {
            entry.encoded = Some(encoded.clone());
            self.held_bytes += encoded.size();
        }
    }

    /// A node keeps a fragment; `flushed` if on stable storage. It counts instead of one that kept it before, unless
    /// only that one has it flushed.
    pub(super) fn acknowledged(
        &mut self,
        id: ObjectId,
        index: usize,
        node: NodeId,
        boot: BootId,
        flushed: bool,
    ) {
        let Some(entry) = self.objects.get_mut(&id) else { return };
        let before = entry.acks[index];
        if before.is_some_and(|ack| ack.node != node && ack.unflushed.is_none() && !flushed) {
            return;
        }
        // Under the same boot id a flush that covered it once covers it for good.
        let was_flushed =
            before.is_some_and(|ack| ack.node == node && ack.boot == boot && ack.unflushed.is_none());
        let page = self.nodes.entry(node).or_default();
        let unflushed = (!flushed && !was_flushed).then(|| page.write(id, index));
        entry.acks[index] = Some(Ack { node, boot, unflushed });
        self.strike(before);
        self.review(id);
    }

    /// A node answered under this boot id. True if its last answer was under another one and something it
    /// acknowledged may be gone.
    pub(super) fn heard(&mut self, node: NodeId, boot: BootId) -> bool {
        let page = self.nodes.entry(node).or_default();
        let before = page.boot.replace(boot);
        before.is_some_and(|before| before != boot) && !page.unflushed.is_empty()
    }

    /// The last acknowledgement of a node; a flush sent after this covers all up to it.
    pub(super) fn mark(&self, node: NodeId) -> u64 {
        self.nodes.get(&node).map_or(0, |page| page.last)
    }

    /// A node flushed what it acknowledged up to `mark`, if it still was the same run of it.
    pub(super) fn flushed(&mut self, node: NodeId, boot: BootId, mark: u64) {
        let Some(page) = self.nodes.get_mut(&node) else { return };
        let covered: Vec<(u64, (ObjectId, usize))> =
            page.unflushed.range(..=mark).map(|(&at, &fragment)| (at, fragment)).collect();
        let mut touched = HashSet::new();
        for (at, (id, index)) in covered {
            let entry = self.objects.get_mut(&id).expect("a page names only known objects");
            let ack = entry.acks[index].as_mut().expect("a page names only acknowledged fragments");
            if ack.boot == boot {
                ack.unflushed = None;
                page.unflushed.remove(&at);
                touched.insert(id);
            }
        }
        touched.into_iter().for_each(|id| self.review(id));
    }

    /// The object is *stored*, with this margin, and its writer is told these exceptions.
    pub(super) fn stored(&mut self, id: ObjectId, margin: usize, recorded: Vec<Exception>) {
        let Some(entry) = self.objects.get_mut(&id) else { return };
        entry.margin = Some(margin);
        entry.recorded = recorded;
        self.review(id);
    }

    /// The margin may have become smaller since, when nodes died; never larger.
    pub(super) fn lower_margin(&mut self, id: ObjectId, margin: usize) {
        let Some(entry) = self.objects.get_mut(&id) else { return };
        entry.margin = entry.margin.map(|before| before.min(margin));
    }

    /// Whoever began or claimed it ends. What never became *stored* is forgotten: nothing refers to it.
    pub(super) fn finished(&mut self, id: ObjectId) {
        let Some(entry) = self.objects.get_mut(&id) else { return };
        entry.senders -= 1;
        if entry.senders == 0 && entry.margin.is_none() {
            self.forget(id);
        } else {
            self.review(id);
        }
    }

    /// Someone is about to send an object again: its bytes stay until `finished`. Whether it is known; of another one there is
    /// nothing to finish.
    pub(super) fn claim(&mut self, id: ObjectId) -> bool {
        let entry = self.objects.get_mut(&id);
        entry.map(|entry| entry.senders += 1).is_some()
    }

    /// A node does not have what it had acknowledged; it may have been sent again meanwhile.
    pub(super) fn forgotten(&mut self, node: NodeId, fragment: &Doubtful) {
        self.withdraw(fragment.id, fragment.index, |ack| ack.node == node && ack.boot == fragment.boot);
    }

    fn withdraw(&mut self, id: ObjectId, index: usize, is_void: impl FnOnce(&Ack) -> bool) {
        let Some(entry) = self.objects.get_mut(&id) else { return };
        if let Some(ack) = entry.acks[index].filter(is_void) {
            entry.acks[index] = None;
            self.strike(Some(ack));
            self.review(id);
        }
    }

    /// A node that by the metadata keeps a fragment says it has not.
    pub(super) fn gone(&mut self, id: ObjectId, index: usize, node: NodeId) {
        if self.objects.contains_key(&id) {
            self.withdraw(id, index, |ack| ack.node == node);
        } else if self.losses.len() < MOST_LOSSES {
            self.losses.insert((id, index as u8));
        }
    }

    /// The fragments found missing since the last time.
    pub(super) fn take_losses(&mut self) -> Vec<(ObjectId, u8)> {
        std::mem::take(&mut self.losses).into_iter().collect()
    }

    /// Whether someone still sends the object.
    pub(super) fn is_sent(&self, id: ObjectId) -> bool {
        self.objects.get(&id).is_some_and(|entry| entry.senders > 0)
    }

    /// The object is being deleted. False while someone still sends it.
    pub(super) fn forget(&mut self, id: ObjectId) -> bool {
        if self.is_sent(id) {
            return false;
        }
        if let Some(entry) = self.objects.remove(&id) {
            self.held_bytes -= entry.encoded.map_or(0, |encoded| encoded.size());
            entry.acks.into_iter().for_each(|ack| self.strike(ack));
        }
        self.changes.remove(&id);
        true
    }

    /// What a node acknowledged, did not flush, and may have forgotten: it runs under `boot` now.
    pub(super) fn doubtful(&self, node: NodeId, boot: BootId) -> Vec<Doubtful> {
        let Some(page) = self.nodes.get(&node) else { return Vec::new() };
        let fragments = page.unflushed.values().filter_map(|&(id, index)| {
            let entry = &self.objects[&id];
            let under = entry.acks[index].map(|ack| ack.boot).filter(|&under| under != boot)?;
            Some(Doubtful { id, index, digest: entry.digest, boot: under })
        });
        fragments.collect()
    }

    /// Nodes that have something to flush.
    pub(super) fn unflushed_nodes(&self) -> Vec<NodeId> {
        let pages = self.nodes.iter().filter(|(_, page)| !page.unflushed.is_empty());
        pages.map(|(&node, _)| node).collect()
    }

    /// *Stored* objects that are not yet flushed on enough nodes.
    pub(super) fn unflushed_objects(&self) -> Vec<ObjectId> {
        self.objects.iter().filter(|(_, entry)| entry.is_unflushed()).map(|(&id, _)| id).collect()
    }

    /// Do not keep bytes any longer for the sake of nodes that have not flushed though enough others have. If these objects
    /// are very many, what such nodes have counts no more: it is brought there anew, and flushed, in its turn.
    pub(super) fn let_go(&mut self) {
        let enough = |entry: &Entry| entry.senders == 0 && entry.margin.is_some() && !entry.is_unflushed();
        let mut remembered = Vec::new();
        for (&id, entry) in self.objects.iter_mut().filter(|(_, entry)| enough(entry)) {
            self.held_bytes -= entry.encoded.take().map_or(0, |encoded| encoded.size());
            remembered.push(id);
        }
        if remembered.len() <= MOST_REMEMBERED {
            return;
        }
        for id in remembered {
            for index in 0..self.objects.get(&id).map_or(0, |entry| entry.acks.len()) {
                self.withdraw(id, index, |ack| ack.unflushed.is_some());
            }
        }
    }

    /// Of how many objects something is kept.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.objects.len()
    }

    /// Whether a *stored* object is not yet flushed on enough nodes.
    pub(super) fn is_unflushed(&self, id: ObjectId) -> bool {
        self.objects.get(&id).is_some_and(Entry::is_unflushed)
    }

    /// What to send again so that the object is flushed on enough nodes: all but what is flushed.
    pub(super) fn to_flush_elsewhere(&self, id: ObjectId) -> Option<Unsafe> {
        self.to_send(id, |ack| ack.unflushed.is_none())
    }

    /// What to send again because nobody holds it.
    pub(super) fn to_send_again(&self, id: ObjectId) -> Option<Unsafe> {
        self.to_send(id, |_| true)
    }

    fn to_send(&self, id: ObjectId, counts: impl Fn(&Ack) -> bool) -> Option<Unsafe> {
        let entry = self.objects.get(&id)?;
        let encoded = entry.encoded.clone()?;
        let holders = entry.acks.iter().map(|ack| ack.filter(&counts).map(|ack| ack.node)).collect();
        Some(Unsafe { encoded, homes: entry.homes.clone(), holders })
    }

    /// The bytes of an object, while they are kept.
    pub(super) fn encoded(&self, id: ObjectId) -> Option<Arc<Encoded>> {
        self.objects.get(&id)?.encoded.clone()
    }

    /// Bytes kept.
    pub(super) fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// How many objects are still being sent though their writer has been told.
    pub(super) fn completing(&self) -> usize {
        self.objects.values().filter(|entry| entry.senders > 0 && entry.margin.is_some()).count()
    }

    /// How many are being sent at all.
    pub(super) fn sending(&self) -> usize {
        self.objects.values().filter(|entry| entry.senders > 0).count()
    }

    /// The newest exceptions of every object where they differ from what was told before.
    pub(super) fn take_changes(&mut self) -> Vec<(ObjectId, Vec<Exception>)> {
        std::mem::take(&mut self.changes).into_iter().collect()
    }

    /// Give changes back that could not be written; newer ones win.
    pub(super) fn keep_changes(&mut self, changes: Vec<(ObjectId, Vec<Exception>)>) {
        for (id, exceptions) in changes {
            self.changes.entry(id).or_insert(exceptions);
        }
    }

    /// Whether there are changes or losses to take.
    pub(super) fn has_news(&self) -> bool {
        !self.changes.is_empty() || !self.losses.is_empty()
    }

    fn strike(&mut self, ack: Option<Ack>) {
        let Some(Ack { node, unflushed: Some(at), .. }) = ack else { return };
        if let Some(page) = self.nodes.get_mut(&node) {
            page.unflushed.remove(&at);
        }
    }

    /// After any change of an entry: tell where it lies if that is news, let go of what is not needed any more.
    fn review(&mut self, id: ObjectId) {
        let Some(entry) = self.objects.get_mut(&id) else { return };
        // While it is being sent, what is missing may still be on its way.
        if entry.margin.is_none() || entry.senders > 0 {
            return;
        }
        let now = entry.exceptions();
        if now != entry.recorded {
            entry.recorded.clone_from(&now);
            self.changes.insert(id, now);
        }
        let is_settled = entry.acks.iter().flatten().all(|ack| ack.unflushed.is_none());
        if is_settled && !entry.is_unflushed() {
            self.held_bytes -= entry.encoded.take().map_or(0, |encoded| encoded.size());
        }
        if is_settled && entry.encoded.is_none() {
            self.objects.remove(&id);
        }
    }
}

impl NodePage {
    fn write(&mut self, id: ObjectId, index: usize) -> u64 {
        self.last += 1;
        self.unflushed.insert(self.last, (id, index));
        self.last
    }
}

impl Entry {
    fn exceptions(&self) -> Vec<Exception> {
        let holders: Vec<Option<NodeId>> = self.acks.iter().map(|ack| ack.map(|ack| ack.node)).collect();
        exceptions(&self.homes, &holders)
    }

    /// Its bytes were let go of only once it was flushed on enough nodes: what is lost of it after that is rebuilt from
    /// the rest, and no flush can do anything about it.
    fn is_unflushed(&self) -> bool {
        if self.encoded.is_none() {
            return false;
        }
        let flushed = |ack: &Option<Ack>| ack.filter(|ack| ack.unflushed.is_none()).map(|ack| ack.node);
        let holders: Vec<Option<NodeId>> = self.acks.iter().map(flushed).collect();
        self.margin.is_some_and(|margin| !is_stored(self.code, margin, &holders))
    }
}
