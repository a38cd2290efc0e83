//! Checking everything a volume is against everything else: the metadata with itself, with the journal in the pool, and
//! with what the nodes hold; and repairing what can be.
//!
//! Nodes are listed before objects are looked at, as for garbage. What then seems wrong is looked at again, for on a
//! volume in use objects come and go in between. A node that does not answer is no damage: what it should hold is
//! counted, and lost is only what nobody can have.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use common::wire::{NodeId, ObjectId};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use serde::{Deserialize, Serialize};

use super::Volume;
use crate::blocking;
use crate::error::{Error, Result};
use crate::inode::Time;
use crate::journal::chain::Chain;
use crate::journal::compare::{Comparison, compare};
use crate::journal::pin::Pin;
use crate::journal::rows::Row;
use crate::metadata::check::{Flaw, LISTED};
use crate::metadata::{Exception, ObjectRecord};
use crate::stripe::{Census, Held, Standing, Unverified, Verdict};

/// Objects looked at in one piece.
const PAGE: usize = 1000;
/// Fragments verified at once.
const READS: usize = 16;
/// Paths named for one object.
const PATHS: usize = 8;
/// On a volume in use what seems wrong is looked at so often, with so long in between.
const LOOKS: usize = 3;
const PAUSE: Duration = Duration::from_millis(300);

/// What is wished for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct FsckWish {
    /// Mend what is found.
    pub repair: bool,
    /// Read and verify every fragment.
    pub deep: bool,
}

/// What `avidfs fsck` found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct FsckReport {
    /// The volume's name.
    pub volume: String,
    /// Problems found.
    pub found: u64,
    /// Those that a second check after the repair did not find any more.
    pub repaired: u64,
    /// Those that are there now.
    pub left: u64,
    /// The problems; of each kind only the first 10,000.
    pub problems: Vec<Problem>,
    /// Inodes checked.
    pub inodes: u64,
    /// Objects checked.
    pub objects: u64,
    /// Fragments of them that are where they should be, or somewhere.
    pub fragments: u64,
    /// Fragments read and verified.
    pub verified: u64,
    /// How the journal in the pool compares, as a sentence.
    pub journal: String,
    /// Nodes that did not answer, and why.
    pub silent: Vec<String>,
    /// Fragments that could not be looked at because their node does not answer.
    pub unseen_fragments: u64,
    /// Fragments known to be missing, which are made anew at home when it can take them.
    pub awaited_fragments: u64,
    /// Copies of fragments that nobody needs.
    pub spare_fragments: u64,
    /// Objects on nodes that nobody refers to.
    pub garbage_objects: u64,
    /// Their bytes on the nodes.
    pub garbage_bytes: u64,
    /// Whether metadata was mended of which a kernel that has the volume mounted may remember what it was before.
    pub remount: bool,
}

/// How far a check is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct FsckProgress {
    /// Objects whose fragments were looked at.
    pub done: u64,
    /// Objects there are; 0 before it comes to them.
    pub all: u64,
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// Of which kind: those of the metadata, `journal`, `lost`, `unreadable`, `missing`, `misplaced`, `foreign`, `corrupt`.
    pub kind: String,
    /// The files it concerns, by their first names; at most 8.
    pub paths: Vec<String>,
    /// The object's key.
    pub object: Option<String>,
    /// Which fragment of it.
    pub fragment: Option<u8>,
    /// The node's address.
    pub node: Option<String>,
    /// What is wrong, as a sentence.
    pub what: String,
    /// Whether it is not there any more.
    pub repaired: bool,
}

impl Volume {
    /// Check everything, and repair it if that is wished for, after which everything is checked again.
    ///
    /// # Errors
    /// `ReadOnly` for a repair where changes are refused; the store's. What is wrong with the volume is no error.
    pub async fn fsck(self: &Arc<Self>, wish: FsckWish) -> Result<FsckReport> {
        if wish.repair {
            self.writable()?;
        }
        let first = self.look(wish.deep).await?;
        if !wish.repair || first.report.found == 0 {
            return Ok(first.report);
        }
        let unmended = self.mend(&first).await;
        let second = self.look(wish.deep).await?;
        Ok(FsckReport { remount: first.flawed, ..first.report.after(second.report, &unmended) })
    }

    /// How far the check is that was begun last; of one that has ended, how far that came.
    pub fn fsck_progress(&self) -> FsckProgress {
        *self.checking.lock()
    }

    async fn look(self: &Arc<Self>, deep: bool) -> Result<Look> {
        // What is under way arrives first; where nodes do not take it, the rest can be looked at all the same.
        if let Err(error) = self.settle().await {
            tracing::warn!(%error, "checking a volume whose changes are not all in the pool");
        }
        let mut look = Look::default();
        look.report.volume.clone_from(&self.settings.name);
        self.look_at_metadata(&mut look).await?;
        self.look_at_journal(&mut look).await?;
        self.look_at_objects(&mut look, deep).await?;
        self.name_users(&mut look).await?;
        look.report.left = look.report.found;
        Ok(look)
    }

    async fn look_at_metadata(self: &Arc<Self>, look: &mut Look) -> Result<()> {
        let metadata = self.metadata.clone();
        let flaws = blocking::run(move || metadata.check()).await?;
        look.flawed = flaws.count() > 0;
        look.report.found += flaws.count();
        look.report.problems.extend(flaws.listed.into_iter().map(problem_of_metadata));
        look.report.inodes = self.metadata.usage()?.inodes;
        Ok(())
    }

    async fn look_at_journal(self: &Arc<Self>, look: &mut Look) -> Result<()> {
        let reader = self.reader();
        match compare(&self.metadata, &reader, &self.options.public).await {
            Ok(Comparison::Same { entries, rows }) => {
                look.report.journal =
                    format!("the {entries} entries of the journal make the same {rows} rows");
            }
            Ok(Comparison::Busy) => {
                look.report.journal = "not compared with the journal: the volume is being written".to_owned();
            }
            Ok(Comparison::None) => look.report.journal = "there is no journal yet".to_owned(),
            Ok(Comparison::Differs(rows, count)) => {
                look.report.journal = format!("the journal makes {count} rows that are others");
                look.report.found += count;
                self.name_rows(look, rows)?;
            }
            Err(error) => {
                look.report.journal = "the journal cannot be read".to_owned();
                look.journal_is_unreadable = true;
                look.add(problem("journal", format!("the journal in the pool cannot be read: {error}")));
            }
        }
        let chain = match reader.read(Some(&self.options.public)).await {
            Ok(chain) => chain,
            // What is needed is known here.
            Err(_) if self.journal.is_some() => None,
            Err(error) => {
                if !look.journal_is_unreadable {
                    let what =
                        format!("the parts of the journal cannot be looked at, it cannot be read: {error}");
                    look.add(problem("journal", what));
                }
                None
            }
        };
        self.look_for_parts(look, chain.as_ref())?;
        look.own = self.journal.as_ref().map(|journal| journal.objects()).unwrap_or_default();
        look.own.extend(look.parts.keys());
        Ok(())
    }

    /// The parts that the journal as it was read needs, those that snapshots do, and those it was not read for.
    fn look_for_parts(&self, look: &mut Look, chain: Option<&Chain>) -> Result<()> {
        let mut add = |record: &ObjectRecord, of: String| {
            let part = || Part { record: record.clone(), of: Vec::new() };
            look.parts.entry(record.id).or_insert_with(part).of.push(of);
        };
        for part in chain.iter().flat_map(|chain| &chain.entries).flat_map(|signed| &signed.entry.parts) {
            add(part, "the journal".to_owned());
        }
        let mut damaged = Vec::new();
        for snapshot in self.metadata.snapshots()? {
            match Pin::of(&snapshot) {
                Ok(pin) => {
                    let parts = pin.iter().flat_map(|pin| &pin.parts);
                    parts.for_each(|part| add(part, format!("snapshot {}", snapshot.name)));
                }
                Err(error) => damaged.push(problem("journal", error.to_string())),
            }
        }
        let needed = self.journal.iter().flat_map(|journal| journal.parts());
        for record in needed {
            let part = || Part { record: record.clone(), of: vec!["the journal".to_owned()] };
            look.parts.entry(record.id).or_insert_with(part);
        }
        damaged.into_iter().for_each(|problem| look.add(problem));
        Ok(())
    }

    fn name_rows(&self, look: &mut Look, rows: Vec<Row>) -> Result<()> {
        let inos: Vec<_> = rows.iter().filter_map(Row::ino).collect();
        let paths: HashMap<_, _> = inos.iter().zip(self.metadata.paths(&inos)?).collect();
        for row in &rows {
            look.report.problems.push(Problem {
                paths: row.ino().and_then(|ino| paths.get(&ino).cloned()).into_iter().collect(),
                object: row.object().map(|id| id.key()),
                ..problem("journal", format!("the journal in the pool says otherwise: {row}"))
            });
        }
        Ok(())
    }

    async fn look_at_objects(self: &Arc<Self>, look: &mut Look, deep: bool) -> Result<()> {
        let mut census = self.stripe.census().await;
        look.report.silent = std::mem::take(&mut census.silent);
        let (mut after, mut suspects) = (None, Vec::new());
        let all = self.metadata.usage()?.objects + look.parts.len() as u64;
        *self.checking.lock() = FsckProgress { done: 0, all };
        loop {
            let page = self.metadata.objects(after, PAGE)?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.id);
            for (object, needed) in &page {
                let held = census.held.remove(&object.id).unwrap_or_default();
                self.checking.lock().done += 1;
                if *needed && !self.look_at_object(look, object, &held, &census.answered, deep).await? {
                    suspects.push(object.id);
                }
            }
        }
        for id in look.parts.keys().copied().collect::<Vec<_>>() {
            let held = census.held.remove(&id).unwrap_or_default();
            self.checking.lock().done += 1;
            let Some(part) = self.needed(look, id)? else { continue };
            if !self.look_at_object(look, &part, &held, &census.answered, deep).await? {
                suspects.push(id);
            }
        }
        self.count_garbage(look, &census)?;
        self.look_again(look, suspects).await
    }

    /// Returns whether it seems to be as it should, or nothing can be said of it.
    async fn look_at_object(
        self: &Arc<Self>,
        look: &mut Look,
        object: &ObjectRecord,
        held: &[Held],
        answered: &HashSet<NodeId>,
        deep: bool,
    ) -> Result<bool> {
        if !self.stripe.has_homes(object) {
            return Ok(true);
        }
        look.report.objects += 1;
        let verdict = self.stripe.judge(object, held, answered);
        let is_fine = is_fine(object, &verdict);
        if is_fine {
            look.count(&verdict);
        }
        if deep {
            self.verify(look, object, held).await?;
        }
        Ok(is_fine)
    }

    /// What is left in the census no object of the store is. What this mount stored may still be on its way.
    fn count_garbage(&self, look: &mut Look, census: &Census) -> Result<()> {
        let newest = if self.journal.is_some() { self.epoch } else { u32::MAX };
        for (id, held) in &census.held {
            // It may have been committed since the objects were looked at.
            if id.epoch >= newest || look.own.contains(id) || self.metadata.object(*id).is_ok() {
                continue;
            }
            look.report.garbage_objects += 1;
            let bytes = |held: &Held| held.indexes.len() as u64 * held.fragment_bytes;
            look.report.garbage_bytes += held.iter().map(bytes).sum::<u64>();
        }
        Ok(())
    }

    /// Those that seemed wrong: each is asked for alone, until it is right, gone, or has been wrong often enough.
    async fn look_again(self: &Arc<Self>, look: &mut Look, mut suspects: Vec<ObjectId>) -> Result<()> {
        let looks = if self.journal.is_some() { LOOKS } else { 1 };
        for seen in 1..=looks {
            let mut still = Vec::new();
            for some in suspects.chunks(READS) {
                let asked: Vec<_> = some.iter().map(|id| self.look_at_one(look, *id)).collect();
                for looked in join_all(asked).await {
                    let Some((object, verdict)) = looked? else { continue };
                    if seen < looks && !is_fine(&object, &verdict) {
                        still.push(object.id);
                        continue;
                    }
                    look.count(&verdict);
                    self.report_object(look, &object, &verdict);
                }
            }
            if still.is_empty() {
                break;
            }
            suspects = still;
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn look_at_one(&self, look: &Look, id: ObjectId) -> Result<Option<(ObjectRecord, Verdict)>> {
        let Some(object) = self.needed(look, id)? else { return Ok(None) };
        let (held, answered) = self.stripe.held_of(&object).await;
        let verdict = self.stripe.judge(&object, &held, &answered);
        Ok(Some((object, verdict)))
    }

    /// An object as it is now, if anything needs it.
    fn needed(&self, look: &Look, id: ObjectId) -> Result<Option<ObjectRecord>> {
        if let Some(Part { record, .. }) = look.parts.get(&id) {
            return Ok(match &self.journal {
                Some(journal) => journal.part(id),
                None => Some(record.clone()),
            });
        }
        let before = match id.counter {
            0 => return Ok(self.metadata.object(id).ok()),
            counter => ObjectId { counter: counter - 1, ..id },
        };
        let found = self.metadata.objects(Some(before), 1)?.pop();
        Ok(found.filter(|(object, needed)| object.id == id && *needed).map(|(object, _)| object))
    }

    fn report_object(&self, look: &mut Look, object: &ObjectRecord, verdict: &Verdict) {
        let called = |node| self.stripe.name_of(node);
        for (node, index) in &verdict.foreign {
            let what = format!("fragment {index} on {} is of something else", called(*node));
            look.broken(
                object,
                *index,
                Broken::Wrong(*node),
                fragment("foreign", *index, called(*node), what),
            );
        }
        let m = object.code.m();
        if verdict.there < m {
            let silent = verdict.fragments.iter().any(|fragment| matches!(fragment, Standing::Silent(_)));
            let there = verdict.there;
            let (kind, end) = match silent {
                true => ("unreadable", ", while nodes do not answer that may have more"),
                false => ("lost", ", and no node can have more"),
            };
            let what = format!("cannot be read: {there} of {m} fragments needed are there{end}");
            look.of(object.id, problem(kind, what));
            return;
        }
        for (index, standing) in verdict.fragments.iter().enumerate() {
            let index = index as u8;
            match *standing {
                Standing::There | Standing::Silent(_) | Standing::Awaited => {}
                Standing::Missing { should } => {
                    let what = format!("fragment {index} is missing on {}", called(should));
                    look.broken(
                        object,
                        index,
                        Broken::Missing,
                        fragment("missing", index, called(should), what),
                    );
                }
                Standing::Elsewhere { should, has } => {
                    let (should, is) = (called(should), called(has));
                    let what = format!("fragment {index} is on {is}, and should be on {should}");
                    look.broken(
                        object,
                        index,
                        Broken::Elsewhere(has),
                        fragment("misplaced", index, is, what),
                    );
                }
            }
        }
    }

    /// Read every copy of every fragment.
    async fn verify(self: &Arc<Self>, look: &mut Look, object: &ObjectRecord, held: &[Held]) -> Result<()> {
        let shared = Arc::new(object.clone());
        let read = |(index, node)| {
            let (stripe, object) = (self.stripe.clone(), shared.clone());
            async move { (index, node, stripe.verify(&object, index, node).await) }
        };
        let reads: Vec<_> = copies_of(object, held).into_iter().map(read).collect();
        let read: Vec<_> = stream::iter(reads).buffer_unordered(READS).collect().await;
        let (mut good, mut unread) = (BTreeSet::new(), 0);
        for (index, node, outcome) in read {
            match outcome {
                Ok(()) => {
                    good.insert(index);
                    look.report.verified += 1;
                }
                Err(Unverified::Silent(_)) => unread += 1,
                // It may have been deleted, or brought home, since the nodes were asked.
                Err(Unverified::Wrong(_)) if self.has_gone(look, object, index, node).await? => {}
                Err(Unverified::Wrong(why)) => {
                    let node_called = self.stripe.name_of(node);
                    let what = format!("fragment {index} on {node_called} is not what it should be: {why}");
                    let broken = fragment("corrupt", index, node_called, what);
                    look.broken(object, index, Broken::Wrong(node), broken);
                }
            }
        }
        look.report.unseen_fragments += unread;
        let (good, m) = (good.len(), object.code.m());
        if look.is_broken(object.id) && good < m {
            let what = format!(
                "cannot be read: {good} of {m} fragments needed are good, and {unread} were not seen"
            );
            look.of(object.id, problem(if unread > 0 { "unreadable" } else { "lost" }, what));
        }
        Ok(())
    }

    /// Whether nobody expects this copy any more.
    async fn has_gone(
        self: &Arc<Self>,
        look: &Look,
        object: &ObjectRecord,
        index: u8,
        node: NodeId,
    ) -> Result<bool> {
        let Some(now) = self.needed(look, object.id)? else { return Ok(true) };
        let should_have = self.stripe.should_have(&now, index, node);
        Ok(!should_have && matches!(self.stripe.verify(&now, index, node).await, Err(Unverified::Wrong(_))))
    }

    async fn name_users(self: &Arc<Self>, look: &mut Look) -> Result<()> {
        let keys: BTreeSet<ObjectId> =
            look.report.problems.iter().filter_map(|problem| problem.object.as_ref()?.parse().ok()).collect();
        let metadata = self.metadata.clone();
        let users = blocking::run(move || metadata.users(&keys, PATHS)).await?;
        let users: HashMap<String, Vec<String>> =
            users.into_iter().map(|(id, paths)| (id.key(), paths)).collect();
        for problem in look.report.problems.iter_mut().filter(|problem| problem.paths.is_empty()) {
            let known = problem.object.as_ref().and_then(|key| users.get(key));
            problem.paths = known.cloned().unwrap_or_default();
        }
        Ok(())
    }

    /// The metadata first: where fragments belong follows from it.
    /// Returns the fragments that are known to be missing now, and could not be made anew.
    async fn mend(self: &Arc<Self>, look: &Look) -> HashSet<(ObjectId, u8)> {
        if look.flawed {
            let metadata = self.metadata.clone();
            if let Err(error) = blocking::run(move || metadata.mend(Time::now())).await {
                tracing::warn!(%error, "the metadata cannot be mended");
            }
            self.open_files().iter().for_each(|file| file.state().forget_extents());
        }
        // The store is then all there is of it.
        if look.journal_is_unreadable
            && let Some(journal) = &self.journal
            && let Err(error) = journal.checkpoint().await
        {
            tracing::warn!(%error, "the journal cannot be written anew");
        }
        let mut unmended = HashSet::new();
        for (id, broken) in &look.broken {
            if let Err(error) = self.mend_object(look, *id, broken).await {
                tracing::warn!(object = %id, %error, "an object cannot be repaired");
            }
            let away =
                self.needed(look, *id).ok().flatten().map(|object| object.exceptions).unwrap_or_default();
            let still = broken.iter().filter(|(index, _)| away.iter().any(|away| away.index == *index));
            unmended.extend(still.map(|(index, _)| (*id, *index)));
        }
        if let Err(error) = self.sync().await {
            tracing::warn!(%error, "not all that was repaired is in the pool");
        }
        unmended
    }

    /// What is wrong is deleted, what is gone is known to be gone, and what is away from home is brought there.
    async fn mend_object(self: &Arc<Self>, look: &Look, id: ObjectId, broken: &[(u8, Broken)]) -> Result<()> {
        let is_part = look.parts.contains_key(&id);
        for (index, how) in broken {
            let Some(object) = self.needed(look, id)? else { return Ok(()) };
            match how {
                Broken::Wrong(node) => self.drop_wrong(&object, *index, *node).await?,
                // What is not where it should be is found by asking for it.
                _ if is_part => {}
                Broken::Missing => self.note_loss(id, *index)?,
                Broken::Elsewhere(has) => self.note_guest(&object, *index, *has)?,
            }
        }
        let Some(object) = self.needed(look, id)? else { return Ok(()) };
        match &self.journal {
            Some(journal) if is_part => drop(self.bring_these_home(journal, &[object]).await),
            _ => self.move_home(&object).await?,
        }
        Ok(())
    }

    /// A fragment is not where it should be, but with another node.
    pub(super) fn note_guest(&self, object: &ObjectRecord, index: u8, guest: NodeId) -> Result<()> {
        self.note_exception(object, Exception { index, node: Some(guest) })
    }

    /// Only what can be made anew is deleted: m others must be good, whatever their nodes claimed.
    async fn drop_wrong(self: &Arc<Self>, object: &ObjectRecord, index: u8, node: NodeId) -> Result<()> {
        let (held, _) = self.stripe.held_of(object).await;
        let mut good = BTreeSet::new();
        for (other, holder) in copies_of(object, &held) {
            let is_another = (other, holder) != (index, node) && !good.contains(&other);
            if is_another && self.stripe.verify(object, other, holder).await.is_ok() {
                good.insert(other);
            }
        }
        if good.len() < object.code.m() {
            let reason = format!("{} good fragments of {} needed are there", good.len(), object.code.m());
            return Err(Error::Unreadable { object: object.id, reason });
        }
        self.stripe.drop_wrong(object, index, node).await;
        if self.stripe.should_have(object, index, node) { self.note_loss(object.id, index) } else { Ok(()) }
    }
}

/// Whether everything is in its place that can be seen, and enough can be seen.
fn is_fine(object: &ObjectRecord, verdict: &Verdict) -> bool {
    !verdict.is_troubled() && verdict.there >= object.code.m()
}

/// Every copy of every fragment of an object, and who has it.
fn copies_of(object: &ObjectRecord, held: &[Held]) -> Vec<(u8, NodeId)> {
    let own = held.iter().filter(|held| held.digest == Some(object.fpcc));
    own.flat_map(|held| held.indexes.iter().map(|index| (*index, held.node))).collect()
}

/// How a fragment is to be repaired.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Broken {
    /// Nobody has it.
    Missing,
    /// This node has it.
    Elsewhere(NodeId),
    /// This node has something else in its place.
    Wrong(NodeId),
}

/// A block of the journal that is an object, and what needs it.
struct Part {
    record: ObjectRecord,
    of: Vec<String>,
}

/// A look at everything.
#[derive(Default)]
struct Look {
    report: FsckReport,
    parts: BTreeMap<ObjectId, Part>,
    /// Parts, also those that are being deleted.
    own: HashSet<ObjectId>,
    flawed: bool,
    journal_is_unreadable: bool,
    broken: BTreeMap<ObjectId, Vec<(u8, Broken)>>,
    listed: HashMap<String, u64>,
}

impl Look {
    fn add(&mut self, problem: Problem) {
        self.report.found += 1;
        let listed = self.listed.entry(problem.kind.clone()).or_default();
        *listed += 1;
        if *listed <= LISTED {
            self.report.problems.push(problem);
        }
    }

    fn of(&mut self, object: ObjectId, problem: Problem) {
        let part = self.parts.get(&object).map(|part| format!("part of {}: ", part.of.join(" and ")));
        let what = part.unwrap_or_default() + &problem.what;
        self.add(Problem { object: Some(object.key()), what, ..problem });
    }

    fn broken(&mut self, object: &ObjectRecord, index: u8, how: Broken, problem: Problem) {
        self.broken.entry(object.id).or_default().push((index, how));
        self.of(object.id, problem);
    }

    fn is_broken(&self, object: ObjectId) -> bool {
        let broken = self.broken.get(&object);
        broken.is_some_and(|broken| broken.iter().any(|(_, how)| matches!(how, Broken::Wrong(_))))
    }

    fn count(&mut self, verdict: &Verdict) {
        let of_kind = |kind: fn(&Standing) -> bool| {
            verdict.fragments.iter().filter(|standing| kind(standing)).count() as u64
        };
        self.report.fragments += verdict.there as u64;
        self.report.unseen_fragments += of_kind(|standing| matches!(standing, Standing::Silent(_)));
        self.report.awaited_fragments += of_kind(|standing| matches!(standing, Standing::Awaited));
        self.report.spare_fragments += verdict.spare;
    }
}

impl FsckReport {
    /// Add what was repaired before the check began: so many rows of the metadata, taken from the journal.
    pub fn taken_from_journal(mut self, rows: u64) -> FsckReport {
        if rows > 0 {
            let what = format!("{rows} rows of the metadata were others than the journal in the pool makes");
            self.problems.insert(0, Problem { repaired: true, ..problem("journal", what) });
            self.found += rows;
            self.repaired += rows;
        }
        self
    }

    /// What was found before a repair, and how everything is afterwards.
    fn after(self, now: FsckReport, unmended: &HashSet<(ObjectId, u8)>) -> FsckReport {
        let there: BTreeSet<&Problem> = now.problems.iter().collect();
        let is_unmended = |problem: &Problem| {
            let object = problem.object.as_ref().and_then(|key| key.parse().ok());
            object.zip(problem.fragment).is_some_and(|fragment| unmended.contains(&fragment))
        };
        let mut left = now.left;
        let mut problems: Vec<Problem> = Vec::new();
        for problem in self.problems {
            let is_there = there.contains(&problem);
            let is_left = is_there || is_unmended(&problem);
            left += u64::from(is_left && !is_there);
            problems.push(Problem { repaired: !is_left, ..problem });
        }
        // What came to light only now.
        let new = now.problems.iter().filter(|problem| problems.iter().all(|known| !is_same(known, problem)));
        let new: Vec<Problem> = new.cloned().collect();
        problems.extend(new);
        let found = self.found.max(left);
        FsckReport { found, repaired: found - left, left, problems, ..now }
    }
}

/// Whatever became of it.
fn is_same(one: &Problem, other: &Problem) -> bool {
    let kept = |problem: &Problem| Problem { repaired: false, ..problem.clone() };
    kept(one) == kept(other)
}

fn problem(kind: &str, what: String) -> Problem {
    Problem {
        kind: kind.to_owned(),
        paths: Vec::new(),
        object: None,
        fragment: None,
        node: None,
        what,
        repaired: false,
    }
}

fn fragment(kind: &str, index: u8, node: String, what: String) -> Problem {
    Problem { fragment: Some(index), node: Some(node), ..problem(kind, what) }
}

fn problem_of_metadata(flaw: Flaw) -> Problem {
    let kind = serde_json::to_value(flaw.kind).ok();
    let kind = kind.as_ref().and_then(|kind| kind.as_str()).unwrap_or_default();
    Problem {
        paths: flaw.path.into_iter().collect(),
        object: flaw.object.map(|id| id.key()),
        ..problem(kind, flaw.what)
    }
}
