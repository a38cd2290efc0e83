//! Nodes in memory that check what they are given and forget what is not flushed when they crash.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::fpcc::Fpcc;
use common::wire::{
    BootId, EVERY_INDEX, FragmentName, LeaseRequest, Listing, NodeId, NodeInfo, ObjectId, ObjectStatus,
    Operation, OperationAnswer, RefusalCode, VolumeDescriptor, VolumeEntry, VolumeId, WIRE_VERSION,
};
use parking_lot::Mutex;

use crate::transport::{Answer, FragmentTransport, NodeAddress, RawFragment, Reply, TransportError, Writer};

type Key = (String, u8);
type Ended<T> = Result<Answer<T>, TransportError>;

/// Node K is at `memory:K` and is called `id(K)`.
pub struct MemoryNodes {
    nodes: Mutex<HashMap<NodeAddress, MemoryNode>>,
}

struct MemoryNode {
    identity: NodeId,
    boots: u64,
    alive: bool,
    full: bool,
    flushes: bool,
    epoch: u32,
    kept: HashMap<Key, Kept>,
}

#[derive(Clone)]
struct Kept {
    fpcc: Bytes,
    fragment: Bytes,
    flushed: bool,
}

pub fn id(k: usize) -> NodeId {
    NodeId([k as u8 + 1; 16])
}

pub fn at(k: usize) -> NodeAddress {
    NodeAddress(format!("memory:{k}"))
}

impl MemoryNodes {
    pub fn new(count: usize) -> Arc<MemoryNodes> {
        let node = |k| MemoryNode {
            identity: id(k),
            boots: 1,
            alive: true,
            full: false,
            flushes: true,
            epoch: 0,
            kept: HashMap::new(),
        };
        Arc::new(MemoryNodes { nodes: Mutex::new((0..count).map(|k| (at(k), node(k))).collect()) })
    }

    pub fn set_alive(&self, k: usize, alive: bool) {
        self.change(k, |node| node.alive = alive);
    }

    pub fn set_full(&self, k: usize, full: bool) {
        self.change(k, |node| node.full = full);
    }

    /// Whether its disk flushes.
    pub fn set_flushing(&self, k: usize, flushes: bool) {
        self.change(k, |node| node.flushes = flushes);
    }

    /// A newer mount has written.
    pub fn fence(&self, epoch: u32) {
        self.nodes.lock().values_mut().for_each(|node| node.epoch = epoch);
    }

    /// One node has granted a newer epoch.
    pub fn fence_one(&self, k: usize, epoch: u32) {
        self.change(k, |node| node.epoch = epoch);
    }

    /// Power fails and comes back.
    pub fn crash(&self, k: usize) {
        self.restart(k);
        self.change(k, |node| node.kept.retain(|_, kept| kept.flushed));
    }

    /// The process is killed and started again: what the kernel had is still there.
    pub fn restart(&self, k: usize) {
        self.change(k, |node| node.boots += 1);
    }

    /// A fragment is gone though it was flushed.
    pub fn lose(&self, k: usize, key: &str) {
        self.change(k, |node| node.kept.retain(|(of, _), _| of != key));
    }

    /// The indexes of an object on this node, and whether each is flushed.
    pub fn held(&self, k: usize, key: &str) -> Vec<(u8, bool)> {
        let nodes = self.nodes.lock();
        let held = nodes[&at(k)].kept.iter().filter(|((of, _), _)| of == key);
        let mut held: Vec<(u8, bool)> = held.map(|((_, index), kept)| (*index, kept.flushed)).collect();
        held.sort_unstable();
        held
    }

    /// How many fragments of an object each node holds, most first.
    pub fn loads(&self, key: &str) -> Vec<usize> {
        let count = self.nodes.lock().len();
        let mut loads: Vec<usize> = (0..count).map(|k| self.held(k, key).len()).filter(|&n| n > 0).collect();
        loads.sort_unstable_by(|a, b| b.cmp(a));
        loads
    }

    /// Fragments on all nodes.
    pub fn count(&self) -> usize {
        self.nodes.lock().values().map(|node| node.kept.len()).sum()
    }

    fn change(&self, k: usize, change: impl FnOnce(&mut MemoryNode)) {
        change(self.nodes.lock().get_mut(&at(k)).unwrap());
    }

    fn ask<T>(
        &self,
        at: &NodeAddress,
        ask: impl FnOnce(&mut MemoryNode) -> Result<T, TransportError>,
    ) -> Ended<T> {
        let mut nodes = self.nodes.lock();
        let node = nodes.get_mut(at).filter(|node| node.alive);
        let node = node.ok_or_else(|| TransportError::Unreachable("refused the connection".into()))?;
        let value = ask(node)?;
        Ok(Answer { node: node.identity, boot: BootId(node.boots.to_le_bytes()), value })
    }
}

fn refused(code: RefusalCode) -> TransportError {
    TransportError::Refused { code, message: format!("{code:?}") }
}

impl MemoryNode {
    fn admit(&mut self, writer: Writer) -> Result<(), TransportError> {
        if writer.epoch < self.epoch {
            return Err(refused(RefusalCode::StaleEpoch));
        }
        self.epoch = writer.epoch;
        Ok(())
    }

    fn put(&mut self, name: &FragmentName, fpcc: &Bytes, fragment: &Bytes) -> Result<(), TransportError> {
        let parsed = Fpcc::parse(fpcc).map_err(|_| refused(RefusalCode::BadRequest))?;
        parsed
            .check(usize::from(name.index), fragment.clone())
            .map_err(|_| refused(RefusalCode::Inconsistent))?;
        if self.full {
            return Err(refused(RefusalCode::NoSpace));
        }
        let fresh = Kept { fpcc: fpcc.clone(), fragment: fragment.clone(), flushed: false };
        let kept = self.kept.entry((name.key.clone(), name.index)).or_insert(fresh);
        if kept.fragment != fragment || kept.fpcc != fpcc {
            return Err(refused(RefusalCode::Conflict));
        }
        Ok(())
    }

    fn get(&self, name: &FragmentName) -> Result<RawFragment, TransportError> {
        let kept = self.kept.get(&(name.key.clone(), name.index));
        let kept = kept.ok_or_else(|| refused(RefusalCode::NotFound))?;
        Ok(RawFragment { fpcc: kept.fpcc.clone(), fragment: kept.fragment.clone() })
    }

    fn objects(&self) -> Vec<ObjectStatus> {
        let mut objects: BTreeMap<&String, ObjectStatus> = BTreeMap::new();
        for ((key, index), kept) in &self.kept {
            let status = objects.entry(key).or_insert_with(|| kept.status(key));
            status.indexes.push(*index);
            status.indexes.sort_unstable();
        }
        objects.into_values().collect()
    }

    fn flush(&mut self) -> Result<(), TransportError> {
        if !self.flushes {
            return Err(refused(RefusalCode::Io));
        }
        self.kept.values_mut().for_each(|kept| kept.flushed = true);
        Ok(())
    }

    fn operate(&mut self, operation: &Operation) -> OperationAnswer {
        let answer = |status, fpcc, payload| OperationAnswer { status, fpcc, payload };
        let done = match operation {
            Operation::Put { name, fpcc, fragment } => {
                self.put(name, fpcc, fragment).map(|()| (Bytes::new(), Bytes::new()))
            }
            Operation::Get(name) => self.get(name).map(|raw| (raw.fpcc, raw.fragment)),
            Operation::Has(name) => self.get(name).map(|raw| {
                let digest = Fpcc::parse(&raw.fpcc).unwrap().digest();
                (Bytes::new(), Bytes::copy_from_slice(digest.as_bytes()))
            }),
            Operation::Delete(name) => {
                let is_named = |key: &Key| key.0 == name.key && [key.1, EVERY_INDEX].contains(&name.index);
                self.kept.retain(|key, _| !is_named(key));
                Ok((Bytes::new(), Bytes::new()))
            }
        };
        match done {
            Ok((fpcc, payload)) => answer(200, fpcc, payload),
            Err(TransportError::Refused { code, .. }) => answer(code.status(), Bytes::new(), Bytes::new()),
            Err(_) => unreachable!("memory only refuses"),
        }
    }
}

impl Kept {
    /// What is said of the object it belongs to, without an index.
    fn status(&self, key: &str) -> ObjectStatus {
        let fpcc = Fpcc::parse(&self.fpcc).unwrap();
        ObjectStatus {
            key: key.to_owned(),
            version: ObjectId::VERSION,
            fpcc: fpcc.digest().to_string(),
            code: fpcc.code().to_string(),
            fragment_length: self.fragment.len() as u64,
            object_length: fpcc.object_length(),
            indexes: Vec::new(),
        }
    }
}

impl FragmentTransport for MemoryNodes {
    fn info<'a>(&'a self, node: &'a NodeAddress, _: Duration) -> Reply<'a, NodeInfo> {
        Box::pin(async move {
            self.ask(node, |node| {
                Ok(NodeInfo {
                    wire: WIRE_VERSION,
                    node: node.identity,
                    boot: BootId(node.boots.to_le_bytes()),
                    zone: None,
                    capacity_bytes: 1 << 40,
                    used_bytes: 0,
                    available_bytes: if node.full { 0 } else { 1 << 40 },
                    fragments: node.kept.len() as u64,
                    version: "test".into(),
                    key: None,
                })
            })
        })
    }

    fn volumes<'a>(&'a self, _: &'a NodeAddress, _: Duration) -> Reply<'a, Vec<VolumeEntry>> {
        unimplemented!("a stripe does not ask for volumes")
    }

    fn register<'a>(&'a self, _: &'a NodeAddress, _: &'a VolumeDescriptor, _: Duration) -> Reply<'a, ()> {
        unimplemented!("a stripe does not register volumes")
    }

    fn lease<'a>(&'a self, _: &'a NodeAddress, _: Writer, _: &'a LeaseRequest, _: Duration) -> Reply<'a, ()> {
        unimplemented!("a stripe has no lease")
    }

    fn put<'a>(
        &'a self,
        node: &'a NodeAddress,
        writer: Writer,
        name: &'a FragmentName,
        fpcc: Bytes,
        fragment: Bytes,
        flush: bool,
        _: Duration,
    ) -> Reply<'a, ()> {
        Box::pin(async move {
            self.ask(node, |node| {
                node.admit(writer)?;
                node.put(name, &fpcc, &fragment)?;
                if flush {
                    node.flush()?;
                }
                Ok(())
            })
        })
    }

    fn get<'a>(
        &'a self,
        node: &'a NodeAddress,
        _: VolumeId,
        name: &'a FragmentName,
        _: Duration,
    ) -> Reply<'a, RawFragment> {
        Box::pin(async move { self.ask(node, |node| node.get(name)) })
    }

    fn get_slice<'a>(
        &'a self,
        _: &'a NodeAddress,
        _: VolumeId,
        _: &'a FragmentName,
        _: Range<u64>,
        _: Duration,
    ) -> Reply<'a, RawFragment> {
        unimplemented!("a stripe does not ask for slices")
    }

    fn batch<'a>(
        &'a self,
        node: &'a NodeAddress,
        writer: Writer,
        operations: &'a [Operation],
        flush: bool,
        _: Duration,
    ) -> Reply<'a, Vec<OperationAnswer>> {
        Box::pin(async move {
            self.ask(node, |node| {
                node.admit(writer)?;
                let answers = operations.iter().map(|operation| node.operate(operation)).collect();
                if flush {
                    node.flush()?;
                }
                Ok(answers)
            })
        })
    }

    fn flush<'a>(&'a self, node: &'a NodeAddress, writer: Writer, _: Duration) -> Reply<'a, ()> {
        Box::pin(async move {
            self.ask(node, |node| {
                node.admit(writer)?;
                node.flush()
            })
        })
    }

    fn status<'a>(
        &'a self,
        node: &'a NodeAddress,
        _: VolumeId,
        key: &'a str,
        _: u64,
        _: Duration,
    ) -> Reply<'a, ObjectStatus> {
        Box::pin(async move {
            self.ask(node, |node| {
                let found = node.objects().into_iter().find(|object| object.key == key);
                found.ok_or_else(|| refused(RefusalCode::NotFound))
            })
        })
    }

    fn list<'a>(
        &'a self,
        node: &'a NodeAddress,
        _: VolumeId,
        after: Option<&'a str>,
        _: usize,
        _: Duration,
    ) -> Reply<'a, Listing> {
        Box::pin(async move {
            self.ask(node, |node| {
                let mut objects = node.objects();
                objects.retain(|object| after.is_none_or(|after| object.key.as_str() > after));
                Ok(Listing { objects, next: None })
            })
        })
    }
}
