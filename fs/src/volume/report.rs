//! What the volume tells about itself: `status`, `info`, and `df`.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use std::sync::Arc;

use common::code::Code;
use common::wire::NodeId;
use serde::{Deserialize, Serialize};

use super::Volume;
use crate::error::Result;
use crate::evidence::Case;
use crate::inode::Ino;
use crate::journal::JournalStatus;
use crate::lease::{LeaseReport, LeaseWatch};
use crate::metadata::ObjectRecord;
use crate::pool::NodeState;
use crate::stripe::{FragmentLocation, Presence, StripeStatus, fewest_nodes};

/// `avidfs status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// Its identity, in hex.
    pub volume: String,
    /// Its code, as `m+p`.
    pub code: String,
    /// Its hash.
    pub hash: String,
    /// The epoch of this mount.
    pub epoch: u32,
    /// Whether changes are refused.
    pub read_only: bool,
    /// Of the nodes that objects are placed on, those that answer.
    pub nodes_up: usize,
    /// Nodes that must answer for writes.
    pub nodes_to_write: usize,
    /// Its nodes.
    pub nodes: Vec<NodeReport>,
    /// Room.
    pub space: SpaceReport,
    /// Inodes.
    pub inodes: u64,
    /// Objects.
    pub objects: u64,
    /// Bytes in objects.
    pub object_bytes: u64,
    /// Bytes of them that files refer to.
    pub live_bytes: u64,
    /// Objects with a fragment that is not at home, the journal's and snapshots' own among them.
    pub objects_not_at_home: u64,
    /// Bytes written and not yet stored.
    pub dirty_bytes: u64,
    /// Bytes that wait on this host's disk.
    pub backlog_bytes: u64,
    /// What is under way between the mount and its nodes.
    pub stripe: StripeStatus,
    /// How the journal is doing; none while changes are refused.
    pub journal: Option<JournalStatus>,
    /// How the right to write is doing; none while changes are refused.
    pub lease: Option<LeaseReport>,
    /// Whether another mount has taken the volume over.
    pub fenced: bool,
    /// Nodes that keep the journal and answer.
    pub roots_up: usize,
    /// So many of them must answer that liars among them could not hide the newest state.
    pub roots_to_be_fresh: usize,
    /// Snapshots.
    pub snapshots: usize,
    /// What nodes were caught at, in numbers.
    #[serde(default)]
    pub cases: Vec<CaseCount>,
}

impl VolumeStatus {
    /// Nodes that objects are placed on and that are at no address the mount knows.
    pub fn nodes_gone(&self) -> usize {
        self.nodes.iter().filter(|node| node.state == "gone").count()
    }
}

/// How often a node was caught at something.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CaseCount {
    /// Who, in hex.
    pub node: String,
    /// As `avidfs blame --json` has it.
    pub verdict: String,
    /// How often.
    pub count: usize,
}

/// A node as `status` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeReport {
    /// Where.
    pub address: String,
    /// Who, in hex, if known.
    pub node: Option<String>,
    /// `up`, `down`, `full`, `lagging` or `suspect`; `gone` if it is at no address the mount knows.
    pub state: String,
    /// For how long it has been down or gone.
    pub down_seconds: Option<u64>,
    /// What may fail together with it.
    pub zone: Option<String>,
    /// Bytes it may fill.
    pub capacity_bytes: u64,
    /// Bytes it has filled.
    pub used_bytes: u64,
    /// Fragments it holds.
    pub fragments: u64,
    /// Whether it gets nothing new while others can take it: there is evidence against it.
    #[serde(default)]
    pub quarantined: bool,
    /// Whether it is the home of objects; another one is a guest's at most.
    #[serde(default = "is_placed_on")]
    pub placed: bool,
}

/// Of a daemon that does not say so.
fn is_placed_on() -> bool {
    true
}

impl NodeReport {
    /// Whether it answers.
    pub fn answers(&self) -> bool {
        self.state != "down" && self.state != "gone"
    }
}

/// Room for users' bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SpaceReport {
    /// Users' bytes the pool could hold in all.
    pub total_bytes: u64,
    /// Users' bytes it can still take.
    pub available_bytes: u64,
}

/// `avidfs info`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FileReport {
    /// Inode number.
    pub ino: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes written and not yet stored.
    pub unsaved_bytes: u64,
    /// Its objects, by where they first occur in the file.
    pub objects: Vec<ObjectReport>,
    /// How many more nodes may be lost with every byte still readable; the least of its objects.
    pub survives: Option<usize>,
}

/// An object as `info` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ObjectReport {
    /// Its key.
    pub key: String,
    /// Its bytes.
    pub length: u32,
    /// Its code, as `m+p`.
    pub code: String,
    /// The digest of its FPCC, in hex.
    pub fpcc: String,
    /// The file's ranges that lie in it.
    pub ranges: Vec<Range<u64>>,
    /// Its fragments.
    pub fragments: Vec<FragmentReport>,
    /// How many more nodes may be lost with it still readable.
    pub survives: usize,
}

/// A fragment as `info` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FragmentReport {
    /// Its index; below m data, above parity.
    pub index: u8,
    /// The node that should hold it, in hex.
    pub node: Option<String>,
    /// Where that answers.
    pub address: Option<String>,
    /// `home`, `guest` or `nowhere`.
    pub place: String,
    /// Whether the node says it is there.
    pub present: bool,
    /// Why not.
    pub problem: Option<String>,
}

impl Volume {
    /// How the volume is doing.
    ///
    /// # Errors
    /// The store's.
    pub async fn status(&self) -> Result<VolumeStatus> {
        let usage = self.metadata.usage()?;
        let snapshots = self.metadata.snapshots()?.len();
        let nodes = self.node_reports(&self.placed_on(snapshots > 0)?);
        let code = self.settings.code;
        Ok(VolumeStatus {
            name: self.settings.name.clone(),
            volume: self.settings.volume.to_string(),
            code: code.to_string(),
            hash: self.settings.hash.to_string(),
            epoch: self.epoch,
            read_only: self.options.read_only,
            nodes_up: nodes.iter().filter(|node| node.placed && node.answers()).count(),
            nodes_to_write: fewest_nodes(code),
            nodes,
            space: self.space(),
            inodes: usage.inodes,
            objects: usage.objects,
            object_bytes: usage.object_bytes,
            live_bytes: usage.live_bytes,
            objects_not_at_home: usage.objects_with_exceptions
                + self.journal.as_ref().map_or(0, |journal| journal.parts_away()),
            dirty_bytes: self.budget.used(),
            backlog_bytes: self.backlog_bytes(),
            stripe: self.stripe.status(),
            journal: self.journal.as_ref().map(|journal| journal.status()).transpose()?,
            lease: self.options.lease.as_ref().map(LeaseWatch::report),
            fenced: self.is_fenced(),
            roots_up: self.stripe.roots_up(),
            roots_to_be_fresh: code.fresh_quorum(),
            snapshots,
            cases: self.case_counts(),
        })
    }

    fn case_counts(&self) -> Vec<CaseCount> {
        let mut counts = BTreeMap::new();
        for case in self.evidence() {
            *counts.entry((case.node.to_string(), case.verdict.name())).or_default() += 1;
        }
        let count = |((node, verdict), count): ((String, &str), usize)| CaseCount {
            node,
            verdict: verdict.to_owned(),
            count,
        };
        counts.into_iter().map(count).collect()
    }

    /// What nodes were caught at.
    pub fn evidence(&self) -> Vec<Case> {
        self.pool.evidence().map_or_else(Vec::new, |evidence| evidence.cases())
    }

    /// Trust a node again; how many cases were put aside.
    ///
    /// # Errors
    /// `Host`: the evidence cannot be written.
    pub fn absolve(&self, node: NodeId) -> Result<usize> {
        self.pool.absolve(node)
    }

    /// The nodes that are homes of objects, or of parts of the journal, which are in no list of objects; who does not write
    /// the journal knows no part, and those that snapshots need may lie on the nodes of any configuration.
    fn placed_on(&self, has_snapshots: bool) -> Result<BTreeSet<NodeId>> {
        let parts: HashSet<u32> = match &self.journal {
            Some(journal) => journal.parts().iter().map(|part| part.configuration).collect(),
            None if has_snapshots => self.stripe.configurations().keys().copied().collect(),
            None => HashSet::new(),
        };
        let mut placed = BTreeSet::new();
        for (number, nodes) in self.stripe.configurations() {
            if *number == self.stripe.current() || parts.contains(number) || !self.is_drained(*number)? {
                placed.extend(nodes);
            }
        }
        Ok(placed)
    }

    /// Nothing is placed by an earlier configuration any more, so that none is looked for twice where none was.
    fn is_drained(&self, configuration: u32) -> Result<bool> {
        if self.drained.lock().contains(&configuration) {
            return Ok(true);
        }
        let is_drained = !self.metadata.places_objects(configuration)?;
        if is_drained {
            self.drained.lock().insert(configuration);
        }
        Ok(is_drained)
    }

    /// The pool's nodes, and those that it has not although objects are placed on them. One that never said who it is may be
    /// any of those.
    fn node_reports(&self, placed: &BTreeSet<NodeId>) -> Vec<NodeReport> {
        let report = |node: crate::pool::NodeView| {
            let info = node.info.as_ref();
            let (state, down_seconds) = match node.state {
                NodeState::Up => ("up", None),
                NodeState::Down { since } => ("down", Some(since.elapsed().as_secs())),
                NodeState::Full => ("full", None),
                NodeState::Lagging => ("lagging", None),
                NodeState::Suspect => ("suspect", None),
            };
            NodeReport {
                address: node.address.to_string(),
                node: node.identity.map(|id| id.to_string()),
                state: state.into(),
                down_seconds,
                capacity_bytes: info.map_or(0, |info| info.capacity_bytes),
                used_bytes: info.map_or(0, |info| info.used_bytes),
                fragments: info.map_or(0, |info| info.fragments),
                zone: node.zone,
                quarantined: node.quarantined,
                placed: node.identity.is_none_or(|id| placed.contains(&id)),
            }
        };
        let there = self.pool.nodes();
        let nameless = there.iter().filter(|view| view.identity.is_none()).count();
        let is_there = |node: &NodeId| there.iter().any(|view| view.identity == Some(*node));
        let gone: Vec<NodeReport> = placed
            .iter()
            .filter(|node| !is_there(node))
            .skip(nameless)
            .map(|node| self.gone_report(*node))
            .collect();
        there.into_iter().map(report).chain(gone).collect()
    }

    fn gone_report(&self, node: NodeId) -> NodeReport {
        let down_seconds = match self.pool.state(node) {
            NodeState::Down { since } => Some(since.elapsed().as_secs()),
            _ => None,
        };
        let address = self.pool.last_address_of(node);
        NodeReport {
            address: address.map_or_else(|| "unknown".to_owned(), |address| address.to_string()),
            node: Some(node.to_string()),
            state: "gone".to_owned(),
            down_seconds,
            zone: None,
            capacity_bytes: 0,
            used_bytes: 0,
            fragments: 0,
            quarantined: self.pool.is_quarantined(node),
            placed: true,
        }
    }

    /// Inodes in use, for statfs.
    ///
    /// # Errors
    /// The store's.
    pub fn inodes(&self) -> Result<u64> {
        Ok(self.metadata.usage()?.inodes)
    }

    /// Where a file's bytes are. Asks the nodes.
    ///
    /// # Errors
    /// The store's.
    pub async fn locate(self: &Arc<Self>, ino: Ino) -> Result<FileReport> {
        let inode = self.attributes(ino)?;
        let unsaved_bytes = self.file(ino).map_or(0, |file| file.state().unsaved());
        let mut objects: Vec<ObjectReport> = Vec::new();
        for (record, ranges) in self.objects_of(ino)? {
            objects.push(self.locate_object(&record, ranges).await);
        }
        let survives = objects.iter().map(|object| object.survives).min();
        Ok(FileReport { ino: ino.0, size: inode.size, unsaved_bytes, objects, survives })
    }

    fn objects_of(&self, ino: Ino) -> Result<Vec<(ObjectRecord, Vec<Range<u64>>)>> {
        const PAGE: usize = 1000;
        let mut found: Vec<(ObjectRecord, Vec<Range<u64>>)> = Vec::new();
        let mut place = std::collections::HashMap::new();
        let mut from = 0;
        loop {
            let page = self.metadata.objects_of(ino, from, PAGE)?;
            let full = page.len() == PAGE;
            for (extent, record) in page {
                from = extent.range().end;
                let at = *place.entry(record.id).or_insert_with(|| {
                    found.push((record, Vec::new()));
                    found.len() - 1
                });
                found[at].1.push(extent.range());
            }
            if !full {
                return Ok(found);
            }
        }
    }

    async fn locate_object(self: &Arc<Self>, record: &ObjectRecord, ranges: Vec<Range<u64>>) -> ObjectReport {
        let locations = self.stripe.locate(record).await;
        let fragments: Vec<FragmentReport> = locations.into_iter().map(fragment_report).collect();
        ObjectReport {
            key: record.id.key(),
            length: record.length,
            code: record.code.to_string(),
            fpcc: record.fpcc.to_string(),
            ranges,
            survives: survives(record.code, &fragments),
            fragments,
        }
    }
}

fn fragment_report(location: FragmentLocation) -> FragmentReport {
    let place = match (location.node, location.at_home) {
        (None, _) => "nowhere",
        (Some(_), true) => "home",
        (Some(_), false) => "guest",
    };
    FragmentReport {
        index: location.index,
        node: location.node.map(|node| node.to_string()),
        address: location.address.map(|address| address.to_string()),
        place: place.into(),
        present: location.presence == Presence::Present,
        problem: match location.presence {
            Presence::Present => None,
            Presence::Absent => Some("the node does not have it".into()),
            Presence::Unknown(why) => Some(why),
        },
    }
}

/// How many more nodes may be lost, whichever they are, before fewer than m fragments are left.
fn survives(code: Code, fragments: &[FragmentReport]) -> usize {
    let mut per_node = std::collections::HashMap::new();
    let present = fragments.iter().filter(|fragment| fragment.present);
    for fragment in present {
        *per_node.entry(&fragment.node).or_insert(0usize) += 1;
    }
    let mut counts: Vec<usize> = per_node.into_values().collect();
    counts.sort_unstable_by(|a, b| b.cmp(a));
    let mut left: usize = counts.iter().sum();
    counts
        .iter()
        .take_while(|count| {
            left = left.saturating_sub(**count);
            left >= code.m()
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> Code {
        text.parse().unwrap()
    }

    fn lying(nodes: &[(u8, &str)]) -> Vec<FragmentReport> {
        let report = |(index, node): &(u8, &str)| FragmentReport {
            index: *index,
            node: Some((*node).into()),
            address: None,
            place: "home".into(),
            present: true,
            problem: None,
        };
        nodes.iter().map(report).collect()
    }

    #[test]
    fn losses_are_counted_in_nodes_not_in_fragments() {
        let spread = lying(&[(0, "a"), (1, "b"), (2, "c"), (3, "d"), (4, "e")]);
        assert_eq!(survives(code("3+2"), &spread), 2);
        let crowded = lying(&[(0, "a"), (1, "a"), (2, "b"), (3, "b"), (4, "c")]);
        assert_eq!(survives(code("3+2"), &crowded), 1);
        assert_eq!(survives(code("3+2"), &spread[..3]), 0);
    }
}
