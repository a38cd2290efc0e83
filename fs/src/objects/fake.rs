//! Nodes for tests of the object store's client: they keep fragments in memory, verify at once, and may have faults.
//! They agree with nobody: whatever a node takes it says is verified.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::fpcc::Fpcc;
use common::hash::Hash;
use common::members::{Member, Members, split_name};
use common::wire::{
    BootId, FragmentName, LatestVersion, NodeId, NodeInfo, NodeKey, OwnerId, RefusalCode, Signature,
    VerifiedVersion, VersionList, WIRE_VERSION, version_statement,
};
use ed25519_dalek::VerifyingKey;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::transport::objects::{KeyPage, ObjectTransport};
use crate::transport::{Answer, NodeAddress, RawFragment, Reply, TransportError};

/// What is wrong with a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    None,
    /// It refuses the connection.
    Down,
    /// It answers nothing.
    Hangs,
    /// It answers fragments so much later.
    Slow(Duration),
    /// It is busy so many times before it takes a fragment.
    Busy(usize),
    /// One bit of each fragment it gives is another one.
    Flips,
    /// Of what it has verified it gives another digest.
    OtherDigest,
    /// It has verified versions that nobody put.
    FarVersion,
    /// It has none of what it took.
    Denies,
    /// Every version is taken.
    Conflicts,
    /// It has no room.
    Full,
    /// It tells of keys that nobody put, without an end.
    InventsKeys,
    /// It says it is another node.
    Impostor,
}

/// The version that a node with `FarVersion` tells of.
pub const FAR: u64 = 1_000_000_000;
/// The most keys on one page.
pub const PAGE: usize = 2;

/// See the module.
pub struct FakePool {
    members: Members,
    /// In the order of the members.
    nodes: Vec<Mutex<Node>>,
    /// Fragments of these names are given only once it is open.
    gate: Mutex<fn(&str) -> bool>,
    open: watch::Sender<bool>,
    /// Requests for fragments.
    pub asked: AtomicUsize,
    /// The most parts on their way at once.
    pub most_parts: AtomicUsize,
    under_way: Mutex<BTreeMap<String, usize>>,
}

struct Node {
    fault: Fault,
    held: BTreeMap<(String, u64), Held>,
    highest: BTreeMap<String, u64>,
    verified: BTreeMap<String, VerifiedVersion>,
}

#[derive(Clone)]
struct Held {
    index: u8,
    digest: Hash,
    raw: RawFragment,
}

impl FakePool {
    pub fn new(code: &str, count: u8) -> Arc<FakePool> {
        let member = |byte| Member {
            node: NodeId([byte; 16]),
            key: NodeKey([byte; 32]),
            url: format!("fake:{}", byte - 1),
        };
        let members = Members::new(code.parse().unwrap(), (1..=count).map(member).collect()).unwrap();
        let node = || Node {
            fault: Fault::None,
            held: BTreeMap::new(),
            highest: BTreeMap::new(),
            verified: BTreeMap::new(),
        };
        Arc::new(FakePool {
            members,
            nodes: (0..count).map(|_| Mutex::new(node())).collect(),
            gate: Mutex::new(|_| false),
            open: watch::channel(true).0,
            asked: AtomicUsize::new(0),
            most_parts: AtomicUsize::new(0),
            under_way: Mutex::default(),
        })
    }

    pub fn members(&self) -> Members {
        self.members.clone()
    }

    /// From now on a node of the pool has this fault.
    pub fn fault(&self, node: usize, fault: Fault) {
        self.nodes[node].lock().fault = fault;
    }

    /// Which node has fragment `index` of an instance.
    pub fn node_of(&self, owner: OwnerId, name: &str, index: usize) -> usize {
        let node = self.members.group(owner, name)[index].node;
        self.members.nodes().iter().position(|member| member.node == node).unwrap()
    }

    /// Fragments of names that `closed` holds for are not given until `open_gate`.
    pub fn close_gate(&self, closed: fn(&str) -> bool) {
        *self.gate.lock() = closed;
        self.open.send_replace(false);
    }

    pub fn open_gate(&self) {
        self.open.send_replace(true);
    }

    /// How many nodes hold a fragment of this.
    pub fn holders(&self, owner: OwnerId, name: &str, version: u64) -> usize {
        let full = (format!("{owner}/{name}"), version);
        self.nodes.iter().filter(|node| node.lock().held.contains_key(&full)).count()
    }

    /// How many fragments there are of any version of a key.
    pub fn fragments(&self) -> usize {
        self.nodes.iter().map(|node| node.lock().held.len()).sum()
    }

    fn node(&self, address: &NodeAddress) -> usize {
        address.0.strip_prefix("fake:").unwrap().parse().unwrap()
    }

    async fn answer<T>(
        &self,
        address: &NodeAddress,
        limit: Duration,
        value: impl FnOnce(&mut Node) -> Result<T, TransportError>,
    ) -> Result<Answer<T>, TransportError> {
        let at = self.node(address);
        let fault = self.nodes[at].lock().fault;
        match fault {
            Fault::Down => return Err(TransportError::Unreachable("it refused the connection".into())),
            Fault::Hangs => {
                sleep(limit).await;
                return Err(TransportError::TimedOut(limit));
            }
            Fault::Slow(by) => sleep(by).await,
            _ => tokio::task::yield_now().await,
        }
        let node = match fault {
            Fault::Impostor => NodeId([0xEE; 16]),
            _ => self.members.nodes()[at].node,
        };
        let value = value(&mut self.nodes[at].lock())?;
        Ok(Answer { node, boot: BootId([1; 8]), value })
    }

    fn keep(
        &self,
        node: &mut Node,
        name: &FragmentName,
        signature: Signature,
        raw: RawFragment,
    ) -> Result<(), TransportError> {
        match &mut node.fault {
            Fault::Conflicts => return Err(refused(RefusalCode::Conflict)),
            Fault::Full => return Err(refused(RefusalCode::NoSpace)),
            Fault::Busy(left) if *left > 0 => {
                *left -= 1;
                return Err(refused(RefusalCode::Busy));
            }
            _ => {}
        }
        let fpcc = Fpcc::parse(&raw.fpcc).unwrap();
        fpcc.check_bytes(name.index.into(), &raw.fragment).map_err(|_| refused(RefusalCode::Inconsistent))?;
        let digest = fpcc.digest();
        self.check_signature(name, digest, signature)?;
        let highest = node.highest.entry(name.key.clone()).or_default();
        *highest = name.version.max(*highest);
        let key = manifest_name(&name.key);
        let watermark = node.verified.get(key).map_or(0, |verified| verified.version);
        let full = (name.key.clone(), name.version);
        let other = node.held.get(&full).is_some_and(|held| held.digest != digest);
        if other || watermark > name.version {
            return Err(refused(RefusalCode::Conflict));
        }
        node.held.insert(full, Held { index: name.index, digest, raw });
        if key == name.key && name.version > watermark {
            node.verify(name, digest, fpcc.object_length());
        }
        Ok(())
    }

    fn check_signature(
        &self,
        name: &FragmentName,
        digest: Hash,
        signature: Signature,
    ) -> Result<(), TransportError> {
        let (owner, rest) = name.key.split_once('/').unwrap();
        let owner: OwnerId = owner.parse().unwrap();
        let members = self.members.digest();
        let text = version_statement(members.as_bytes(), &owner, rest, name.version, digest.as_bytes());
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        let public = VerifyingKey::from_bytes(&owner.0).unwrap();
        public.verify_strict(&text, &signature).map_err(|_| refused(RefusalCode::Inconsistent))
    }

    /// Nodes of the group alone, each at its own index.
    fn check_seat(&self, at: usize, name: &FragmentName) {
        let (owner, rest) = name.key.split_once('/').unwrap();
        assert_eq!(self.node_of(owner.parse().unwrap(), rest, name.index.into()), at, "the seat of {name:?}");
    }

    fn count_part(&self, name: &str, more: bool) {
        if manifest_name(name) == name {
            return;
        }
        let mut under_way = self.under_way.lock();
        let count = under_way.entry(name.to_owned()).or_default();
        *count = if more { *count + 1 } else { *count - 1 };
        under_way.retain(|_, count| *count > 0);
        self.most_parts.fetch_max(under_way.len(), Ordering::SeqCst);
    }
}

/// Counts a part as under way until it is dropped.
struct UnderWay<'a>(&'a FakePool, &'a str);

impl<'a> UnderWay<'a> {
    fn begin(pool: &'a FakePool, name: &'a str) -> UnderWay<'a> {
        pool.count_part(name, true);
        UnderWay(pool, name)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.count_part(self.1, false);
    }
}

impl Node {
    /// Lower versions are over, parts included.
    fn verify(&mut self, name: &FragmentName, digest: Hash, length: u64) {
        let verified = VerifiedVersion {
            key: name.key.clone(),
            version: name.version,
            fpcc: digest.to_string(),
            object_length: Some(length),
        };
        self.verified.insert(name.key.clone(), verified);
        self.held.retain(|(held, version), _| *version >= name.version || manifest_name(held) != name.key);
    }

    fn latest(&self, name: &str) -> LatestVersion {
        let mut verified = self.verified.get(name).cloned();
        let mut highest = self.highest.get(name).copied().unwrap_or(0);
        match self.fault {
            Fault::OtherDigest => {
                if let Some(verified) = &mut verified {
                    verified.fpcc = Hash::from([3; 32]).to_string();
                }
            }
            Fault::FarVersion => {
                highest = FAR;
                let (key, fpcc) = (name.to_owned(), Hash::from([4; 32]).to_string());
                verified = Some(VerifiedVersion { key, version: FAR, fpcc, object_length: Some(200) });
            }
            Fault::Denies => return LatestVersion { highest: 0, verified: None },
            _ => {}
        }
        LatestVersion { highest, verified }
    }

    fn fragment(&self, name: &FragmentName) -> Result<RawFragment, TransportError> {
        let held = self.held.get(&(name.key.clone(), name.version));
        let held = held.filter(|held| held.index == name.index && self.fault != Fault::Denies);
        let mut raw = held.ok_or_else(|| refused(RefusalCode::NotFound))?.raw.clone();
        if self.fault == Fault::Flips {
            let mut bytes = raw.fragment.to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            raw.fragment = bytes.into();
        }
        Ok(raw)
    }

    fn keys(&self, wanted: &KeyPage) -> VersionList {
        if self.fault == Fault::InventsKeys {
            return invented(wanted);
        }
        let prefix = format!("{}/", wanted.owner);
        let of_owner = self.verified.iter().filter_map(|(name, verified)| {
            let key = name.strip_prefix(&prefix)?;
            Some(VerifiedVersion { key: key.to_owned(), ..verified.clone() })
        });
        let after = |key: &str| wanted.after.as_ref().is_none_or(|after| key > after.as_str());
        let mut objects: Vec<VerifiedVersion> = of_owner
            .filter(|verified| verified.key.starts_with(&wanted.prefix) && after(&verified.key))
            .collect();
        let is_over = objects.len() <= PAGE;
        objects.truncate(PAGE);
        let next = objects.last().map(|last| last.key.clone()).filter(|_| !is_over);
        VersionList { objects, next }
    }
}

fn invented(wanted: &KeyPage) -> VersionList {
    let after = wanted.after.as_deref().and_then(|after| after.rsplit_once('-'));
    let number: u64 = after.map_or(0, |(_, number)| number.parse().unwrap());
    let (fpcc, prefix) = (Hash::from([5; 32]).to_string(), &wanted.prefix);
    let key = |number: u64| format!("{prefix}a-{number:09}");
    let keys = (number + 1..=number + 50).map(key);
    let objects: Vec<VerifiedVersion> = keys
        .map(|key| VerifiedVersion { key, version: 1, fpcc: fpcc.clone(), object_length: None })
        .collect();
    VersionList { next: Some(key(number + 50)), objects }
}

/// The name that the parts of a key belong to.
fn manifest_name(name: &str) -> &str {
    split_name(name).0
}

fn refused(code: RefusalCode) -> TransportError {
    TransportError::Refused { code, message: format!("{code:?}") }
}

impl ObjectTransport for FakePool {
    fn members<'a>(&'a self, node: &'a NodeAddress, limit: Duration) -> Reply<'a, Members> {
        Box::pin(self.answer(node, limit, |_| Ok(self.members.clone())))
    }

    fn node_info<'a>(&'a self, node: &'a NodeAddress, limit: Duration) -> Reply<'a, NodeInfo> {
        let member = &self.members.nodes()[self.node(node)];
        let info = NodeInfo {
            wire: WIRE_VERSION,
            node: member.node,
            boot: BootId([1; 8]),
            zone: None,
            capacity_bytes: 0,
            used_bytes: 0,
            available_bytes: 0,
            fragments: 0,
            version: "test".into(),
            key: Some(member.key),
        };
        Box::pin(self.answer(node, limit, |_| Ok(info)))
    }

    fn disperse<'a>(
        &'a self,
        node: &'a NodeAddress,
        name: &'a FragmentName,
        signature: Signature,
        fragment: RawFragment,
        limit: Duration,
    ) -> Reply<'a, ()> {
        self.check_seat(self.node(node), name);
        let under_way = UnderWay::begin(self, &name.key);
        Box::pin(async move {
            let _under_way = under_way;
            self.answer(node, limit, |node| self.keep(node, name, signature, fragment)).await
        })
    }

    fn fragment<'a>(
        &'a self,
        node: &'a NodeAddress,
        name: &'a FragmentName,
        limit: Duration,
    ) -> Reply<'a, RawFragment> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            let is_behind_gate = (self.gate.lock())(&name.key);
            if is_behind_gate {
                self.open.subscribe().wait_for(|open| *open).await.unwrap();
            }
            self.answer(node, limit, |node| node.fragment(name)).await
        })
    }

    fn latest<'a>(
        &'a self,
        node: &'a NodeAddress,
        name: &'a str,
        limit: Duration,
    ) -> Reply<'a, LatestVersion> {
        Box::pin(self.answer(node, limit, |node| Ok(node.latest(name))))
    }

    fn keys<'a>(
        &'a self,
        node: &'a NodeAddress,
        wanted: &'a KeyPage,
        limit: Duration,
    ) -> Reply<'a, VersionList> {
        Box::pin(self.answer(node, limit, |node| Ok(node.keys(wanted))))
    }
}
