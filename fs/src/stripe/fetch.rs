//! Reading: fragments from the cache or from nodes, checked before anything else is done with them. One task for each
//! object being fetched serves all who want something of it.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::code::Code;
use common::codec::{Codec, CodecError};
use common::fpcc::{Checked, Fpcc, decode_into};
use common::wire::{MAX_BATCH, NodeId, ObjectId, Operation, RefusalCode};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::encoded::fragment_name;
use super::gather::{Gather, Miss, Rank, Source};
use super::inquiry::Contradiction;
use super::{Stripe, cover};
use crate::buffers::{Buffer, Buffers};
use crate::cache::Reuse;
use crate::error::{Error, Result};
use crate::metadata::ObjectRecord;
use crate::pool::{NodeState, Outcome};
use crate::stages::{self, Stage};
use crate::transport::{RawFragment, TransportError};

/// FPCCs remembered: a few hundred bytes each for the usual codes.
const KEPT_FPCCS: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// Batches of small objects that are fetched at once; more are left out.
const BATCHES: usize = 2;
/// How long whoever wants one of them waits for its batch before it asks for itself.
const BATCH_PATIENCE: Duration = Duration::from_millis(200);

/// What is being fetched.
pub(super) struct Fetches {
    jobs: Mutex<HashMap<ObjectId, mpsc::UnboundedSender<Want>>>,
    fpccs: Mutex<LruCache<ObjectId, Arc<Fpcc>>>,
    prefetches: Arc<Semaphore>,
    /// Bytes of fragments asked of nodes and not answered.
    asked: Arc<AtomicU64>,
    /// Small objects that come together with others; whoever wants one waits until the sender is gone.
    coming: Mutex<HashMap<ObjectId, watch::Receiver<()>>>,
    batches: Arc<Semaphore>,
}

/// A fragment that passed its check, or was decoded from such.
#[derive(Clone)]
pub(super) struct Fetched {
    pub(super) bytes: Bytes,
    pub(super) fpcc: Arc<Fpcc>,
}

type Answer = oneshot::Receiver<Result<Fetched>>;

struct Want {
    index: usize,
    answer: oneshot::Sender<Result<Fetched>>,
}

impl Fetches {
    pub(super) fn new(prefetches: usize) -> Fetches {
        Fetches {
            jobs: Mutex::default(),
            fpccs: Mutex::new(LruCache::new(KEPT_FPCCS)),
            prefetches: Arc::new(Semaphore::new(prefetches)),
            asked: Arc::default(),
            coming: Mutex::default(),
            batches: Arc::new(Semaphore::new(BATCHES)),
        }
    }

    pub(super) fn count(&self) -> usize {
        self.jobs.lock().len()
    }

    pub(super) fn forget(&self, id: ObjectId) {
        self.fpccs.lock().pop(&id);
    }
}

impl Stripe {
    /// A range of an object's bytes as pieces in order, slices of cached fragments where they are cached. The range is
    /// cut at the object's end. What is fetched for it is cached as of such reuse. `Unreadable` when fewer than m good
    /// fragments can be had in time.
    pub async fn read(
        self: &Arc<Self>,
        object: &ObjectRecord,
        range: Range<u32>,
        reuse: Reuse,
    ) -> Result<Vec<Bytes>> {
        self.arrived(object.id).await;
        let deadline = Instant::now() + self.options.io_limit;
        let parts = cover(object.code, object.length, range);
        let mut pieces = Vec::with_capacity(parts.len());
        for (index, part) in &parts {
            pieces.push(self.local(object, *index, part).await);
        }
        let absent: Vec<usize> = parts
            .iter()
            .zip(&pieces)
            .filter(|(_, piece)| piece.is_none())
            .map(|((index, _), _)| *index)
            .collect();
        let mut answers = self.fetch(object, &absent, reuse).into_iter();
        for ((_, part), piece) in parts.iter().zip(&mut pieces).filter(|(_, piece)| piece.is_none()) {
            let answer = answers.next().expect("one for each absent piece");
            *piece = Some(self.fetched(object.id, answer, deadline).await?.bytes.slice(part.clone()));
        }
        Ok(pieces.into_iter().flatten().collect())
    }

    /// The same, if all of it is in memory.
    pub fn read_cached(
        &self,
        id: ObjectId,
        code: Code,
        length: u32,
        range: Range<u32>,
    ) -> Option<Vec<Bytes>> {
        let parts = cover(code, length, range).into_iter();
        parts.map(|(index, part)| self.in_memory(id, index, &part)).collect()
    }

    /// Bring all of an object's data into the cache in the background. Left out when many are on their way already.
    pub fn prefetch(self: &Arc<Self>, object: ObjectRecord) {
        let absent = |&index: &usize| self.in_memory(object.id, index, &(0..0)).is_none();
        let absent: Vec<usize> = (0..object.code.m()).filter(absent).collect();
        let Ok(permit) = self.fetches.prefetches.clone().try_acquire_owned() else { return };
        if absent.is_empty() {
            return;
        }
        let stripe = self.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let deadline = Instant::now() + stripe.options.io_limit;
            let mut remote = Vec::new();
            for index in absent {
                if stripe.cache.get_disk(object.id, index as u8).await.is_none() {
                    remote.push(index);
                }
            }
            for answer in stripe.fetch(&object, &remote, Reuse::Unlikely) {
                if let Err(error) = stripe.fetched(object.id, answer, deadline).await {
                    tracing::debug!(object = %object.id, %error, "not read ahead");
                }
            }
        });
    }

    /// Bring small objects into the cache in the background, many with one request to each node. Only those whose data
    /// is at home on nodes that are well: every other one is fetched by who reads it.
    pub fn fetch_ahead(self: &Arc<Self>, objects: Vec<ObjectRecord>) {
        let Ok(permit) = self.fetches.batches.clone().try_acquire_owned() else { return };
        let (arrived, coming) = watch::channel(());
        let mut wanted: HashMap<NodeId, Vec<(Arc<ObjectRecord>, usize)>> = HashMap::new();
        let mut ids = Vec::new();
        for object in objects {
            let homes = self.homes_of(&object);
            let is_well = |home: &NodeId| self.pool.state(*home) == NodeState::Up;
            let m = object.code.m();
            let is_simple = object.exceptions.is_empty() && homes[..m].iter().all(is_well);
            if !is_simple || self.in_memory(object.id, 0, &(0..0)).is_some() {
                continue;
            }
            ids.push(object.id);
            let object = Arc::new(object);
            for (index, home) in homes[..m].iter().enumerate() {
                wanted.entry(*home).or_default().push((object.clone(), index));
            }
        }
        self.fetches.coming.lock().extend(ids.iter().map(|id| (*id, coming.clone())));
        let stripe = self.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let fetching = wanted.into_iter().map(|(node, wanted)| stripe.fetch_batch(node, wanted));
            futures_util::future::join_all(fetching).await;
            let mut coming = stripe.fetches.coming.lock();
            ids.iter().for_each(|id| drop(coming.remove(id)));
            drop(arrived);
        });
    }

    /// What does not come, or does not check, is left to who reads it.
    async fn fetch_batch(self: &Arc<Self>, node: NodeId, wanted: Vec<(Arc<ObjectRecord>, usize)>) {
        let _lasting = stages::begin(Stage::Fetch);
        let deadline = Instant::now() + self.options.io_limit;
        for some in wanted.chunks(MAX_BATCH) {
            let get = |(object, index): &(Arc<ObjectRecord>, usize)| {
                Operation::Get(fragment_name(object.id, *index))
            };
            let operations: Vec<Operation> = some.iter().map(get).collect();
            let Ok(answer) = self.ask_batch(node, &operations, false, deadline).await else { return };
            for ((object, index), got) in some.iter().zip(answer.value) {
                let raw = RawFragment { fpcc: got.fpcc, fragment: got.payload };
                if got.status == 200
                    && let Ok((fragment, _)) = self.check(object, *index, raw).await
                {
                    self.cache.insert(object.id, *index as u8, fragment.bytes().clone(), Reuse::Likely);
                }
            }
        }
    }

    /// Wait for an object that comes with others, if it does.
    async fn arrived(&self, id: ObjectId) {
        let coming = self.fetches.coming.lock().get(&id).cloned();
        let Some(mut coming) = coming else { return };
        // An error is the end of the batch.
        if tokio::time::timeout(BATCH_PATIENCE, coming.changed()).await.is_err() {
            // Nobody else is to wait for it.
            self.fetches.coming.lock().retain(|_, other| !other.same_channel(&coming));
        }
    }

    /// One fragment, parity too, from wherever it can be had or made.
    pub(super) async fn fragment(
        self: &Arc<Self>,
        object: &ObjectRecord,
        index: usize,
        deadline: Instant,
    ) -> Result<Fetched> {
        let answer = self.fetch(object, &[index], Reuse::Likely).pop().expect("one for each index");
        self.fetched(object.id, answer, deadline).await
    }

    async fn local(&self, object: &ObjectRecord, index: usize, part: &Range<usize>) -> Option<Bytes> {
        if let Some(piece) = self.in_memory(object.id, index, part) {
            return Some(piece);
        }
        let whole = object.code.fragment_length(u64::from(object.length));
        if part.len() * 4 <= whole {
            return self.cache.get_disk_range(object.id, index as u8, part.clone()).await;
        }
        let fragment = self.cache.get_disk(object.id, index as u8).await?;
        Some(fragment.slice(part.clone()))
    }

    /// From the cache, or from an object that is still kept because it is not flushed.
    fn in_memory(&self, id: ObjectId, index: usize, part: &Range<usize>) -> Option<Bytes> {
        let fragment = self.cache.get(id, index as u8).or_else(|| {
            let encoded = self.ledger.lock().encoded(id)?;
            Some(encoded.fragments[index].clone())
        })?;
        Some(fragment.slice(part.clone()))
    }

    /// Ask the object's task for fragments; begin one if there is none, for fragments of such reuse.
    fn fetch(self: &Arc<Self>, object: &ObjectRecord, indexes: &[usize], reuse: Reuse) -> Vec<Answer> {
        let (wants, answers): (Vec<Want>, Vec<Answer>) = indexes
            .iter()
            .map(|&index| {
                let (answer, receiver) = oneshot::channel();
                (Want { index, answer }, receiver)
            })
            .unzip();
        let mut jobs = self.fetches.jobs.lock();
        for want in wants {
            let unsent = match jobs.get(&object.id) {
                Some(job) => job.send(want).err().map(|error| error.0),
                None => Some(want),
            };
            let Some(unsent) = unsent else { continue };
            let (sender, receiver) = mpsc::unbounded_channel();
            let Ok(()) = sender.send(unsent) else { unreachable!("the receiver is here") };
            jobs.insert(object.id, sender);
            tokio::spawn(Job::new(self, object, reuse, receiver).run());
        }
        answers
    }

    async fn fetched(&self, id: ObjectId, answer: Answer, deadline: Instant) -> Result<Fetched> {
        let _lasting = stages::begin(Stage::Fetch);
        let late = || Error::TimedOut(format!("reading object {id}"));
        let answer = timeout_at(deadline, answer).await.map_err(|_| late())?;
        answer.map_err(|_| Error::Host(format!("reading object {id} was cut short")))?
    }
}

/// One object on its way here.
struct Job {
    stripe: Arc<Stripe>,
    object: Arc<ObjectRecord>,
    gather: Gather,
    wants: mpsc::UnboundedReceiver<Want>,
    waiting: BTreeMap<usize, Vec<oneshot::Sender<Result<Fetched>>>>,
    checked: BTreeMap<usize, Checked>,
    /// Of what it brings; whoever began it decides.
    reuse: Reuse,
    fpcc: Option<Arc<Fpcc>>,
    requests: FuturesUnordered<BoxFuture<'static, Event>>,
    /// When each unanswered request is late.
    due: HashMap<(usize, Source), Instant>,
    /// Requests that are.
    late: Vec<(usize, Source)>,
    scans: Scans,
    misses: Vec<String>,
    deadline: Instant,
}

/// Whether every node was asked what it has of the object.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scans {
    NotYet,
    /// So many nodes have not answered.
    Open(usize),
    Done,
}

/// How a request ended.
enum Event {
    Got { index: usize, source: Source, fragment: Checked, fpcc: Arc<Fpcc> },
    Missed { index: usize, source: Source, miss: Miss, why: String },
    Scanned { node: NodeId, indexes: Vec<usize> },
}

/// Why a source brought nothing.
struct Missed(Miss, String);

impl Job {
    fn new(
        stripe: &Arc<Stripe>,
        object: &ObjectRecord,
        reuse: Reuse,
        wants: mpsc::UnboundedReceiver<Want>,
    ) -> Job {
        let mut job = Job {
            stripe: stripe.clone(),
            object: Arc::new(object.clone()),
            gather: Gather::new(object.code),
            wants,
            waiting: BTreeMap::new(),
            checked: BTreeMap::new(),
            reuse,
            fpcc: None,
            requests: FuturesUnordered::new(),
            due: HashMap::new(),
            late: Vec::new(),
            scans: Scans::NotYet,
            misses: Vec::new(),
            deadline: Instant::now() + stripe.options.io_limit,
        };
        job.add_known_places();
        job
    }

    /// The cache, homes and guests, and homes that by the metadata do not have it yet.
    fn add_known_places(&mut self) {
        let id = self.object.id;
        for index in 0..self.object.code.m() {
            if self.stripe.cache.get(id, index as u8).is_some() {
                self.gather.add(index, Source::Cache);
            }
        }
        for (index, home) in self.stripe.homes_of(&self.object).into_iter().enumerate() {
            match self.object.exceptions.iter().find(|exception| usize::from(exception.index) == index) {
                None => self.gather.add(index, Source::Node(home)),
                Some(exception) => {
                    if let Some(guest) = exception.node {
                        self.gather.add(index, Source::Node(guest));
                    }
                    self.gather.add(index, Source::Perhaps(home));
                }
            }
        }
    }

    async fn run(mut self) {
        loop {
            while let Ok(want) = self.wants.try_recv() {
                self.wanted(want);
            }
            if self.gather.is_enough() && !self.waiting.is_empty() {
                self.decode().await;
            }
            if self.waiting.is_empty() {
                if self.is_finished() {
                    break;
                }
                continue;
            }
            self.ask();
            if self.is_hopeless() {
                self.give_up();
                break;
            }
            let alarm = self.due.values().copied().fold(self.deadline, Instant::min);
            tokio::select! {
                biased;
                Some(event) = self.requests.next() => self.happened(event),
                Some(want) = self.wants.recv() => self.wanted(want),
                () = sleep_until(alarm) => self.overdue(),
            }
        }
        for (_, source) in &self.late {
            if let Source::Node(node) | Source::Perhaps(node) = source {
                self.stripe.pool.report(*node, Outcome::Slow);
            }
        }
    }

    fn wanted(&mut self, want: Want) {
        self.deadline = Instant::now() + self.stripe.options.io_limit;
        match self.ready(want.index) {
            Some(fetched) => drop(want.answer.send(Ok(fetched))),
            None => {
                self.gather.want(want.index);
                self.waiting.entry(want.index).or_default().push(want.answer);
            }
        }
    }

    fn ready(&self, index: usize) -> Option<Fetched> {
        let fragment = self.checked.get(&index)?;
        Some(Fetched { bytes: fragment.bytes().clone(), fpcc: self.fpcc.clone()? })
    }

    /// Nobody wants anything any more; from here on a new want begins a new task.
    fn is_finished(&mut self) -> bool {
        let mut jobs = self.stripe.fetches.jobs.lock();
        if self.wants.is_empty() {
            jobs.remove(&self.object.id);
            return true;
        }
        false
    }

    fn rank(&self) -> impl Fn(Source) -> Rank + use<> {
        let stripe = self.stripe.clone();
        move |source| match source {
            Source::Cache => Rank::First,
            Source::Perhaps(_) => Rank::Last,
            Source::Node(node) => match stripe.pool.state(node) {
                NodeState::Up | NodeState::Full => Rank::First,
                NodeState::Lagging => Rank::Second,
                NodeState::Suspect | NodeState::Down { .. } => Rank::Last,
            },
        }
    }

    fn ask(&mut self) {
        let (asks, too_few) = self.gather.next_asks(self.rank());
        for (index, source) in asks {
            let mut asked = None;
            if let Source::Node(node) | Source::Perhaps(node) = source {
                let fetches = &self.stripe.fetches;
                let before = fetches.asked.load(Ordering::Relaxed);
                asked = Some(fetches.asked(fragment_bytes(&self.object) as u64));
                let late = Instant::now() + self.stripe.pool.hedge_after(node, before);
                self.due.insert((index, source), late);
            }
            if !self.late.is_empty() {
                self.stripe.tally.hedges.fetch_add(1, Ordering::Relaxed);
            }
            let (stripe, object) = (self.stripe.clone(), self.object.clone());
            let request = request(stripe, object, (index, source), asked, self.deadline);
            self.requests.push(Box::pin(request));
        }
        if too_few && self.scans == Scans::NotYet {
            self.scan();
        }
    }

    /// The places known are not enough: ask every node what it has of the object.
    fn scan(&mut self) {
        let mut nodes = self.stripe.nodes_of(self.object.configuration).to_vec();
        nodes.extend(self.stripe.pool.nodes().into_iter().filter_map(|view| view.identity));
        nodes.sort_unstable();
        nodes.dedup();
        self.scans = Scans::Open(nodes.len());
        for node in nodes {
            let (stripe, object) = (self.stripe.clone(), self.object.clone());
            let deadline = self.deadline;
            self.requests.push(Box::pin(async move {
                let indexes = stripe.indexes_on(node, &object, deadline).await.unwrap_or_default();
                Event::Scanned { node, indexes }
            }));
        }
    }

    fn happened(&mut self, event: Event) {
        match event {
            Event::Got { index, source, fragment, fpcc } => {
                self.answered(index, source);
                self.gather.got(index, source);
                self.fpcc = Some(fpcc);
                self.keep(index, fragment.bytes(), source);
                self.checked.insert(index, fragment);
                if let Some(fetched) = self.ready(index) {
                    self.serve(index, &fetched);
                }
            }
            Event::Missed { index, source, miss, why } => {
                self.answered(index, source);
                self.gather.missed(index, source, miss);
                self.misses.push(why);
            }
            Event::Scanned { node, indexes } => {
                indexes.into_iter().for_each(|index| self.gather.add(index, Source::Perhaps(node)));
                self.scans = match self.scans {
                    Scans::Open(left) if left > 1 => Scans::Open(left - 1),
                    _ => Scans::Done,
                };
            }
        }
    }

    fn answered(&mut self, index: usize, source: Source) {
        self.due.remove(&(index, source));
        self.late.retain(|late| *late != (index, source));
    }

    fn keep(&self, index: usize, bytes: &Bytes, source: Source) {
        if index < self.object.code.m() && source != Source::Cache {
            self.stripe.cache.insert(self.object.id, index as u8, bytes.clone(), self.reuse);
        }
    }

    fn serve(&mut self, index: usize, fetched: &Fetched) {
        for answer in self.waiting.remove(&index).unwrap_or_default() {
            let _gone = answer.send(Ok(fetched.clone()));
        }
    }

    /// m checked fragments are there: make the wanted ones that are not.
    async fn decode(&mut self) {
        let _lasting = stages::begin(Stage::Decode);
        let mut missing = self.gather.worth_decoding(&self.rank());
        missing.extend(self.waiting.keys().copied().filter(|index| *index >= self.object.code.m()));
        let (code, checked) = (self.object.code, self.checked.values().cloned().collect::<Vec<_>>());
        let bytes = self.object.length as usize;
        let indexes = missing.clone();
        let decoding = move || decode(code, &checked, &indexes);
        let decoded =
            self.stripe.cpu.run(bytes, decoding).await.expect("m fragments that passed one FPCC's check");
        self.stripe.tally.degraded_reads.fetch_add(1, Ordering::Relaxed);
        for (index, bytes) in missing.into_iter().zip(decoded) {
            self.keep(index, &bytes, Source::Perhaps(NodeId([0; 16])));
            let fpcc = self.fpcc.clone().expect("it came with the fragments");
            self.serve(index, &Fetched { bytes, fpcc });
        }
    }

    fn overdue(&mut self) {
        let now = Instant::now();
        let overdue: Vec<(usize, Source)> =
            self.due.iter().filter(|(_, due)| **due <= now).map(|(&key, _)| key).collect();
        for (index, source) in overdue {
            self.due.remove(&(index, source));
            self.gather.is_late(index, source);
            self.late.push((index, source));
        }
    }

    fn is_hopeless(&self) -> bool {
        let over = Instant::now() >= self.deadline;
        over || !self.gather.is_waiting() && !self.gather.is_enough() && self.scans == Scans::Done
    }

    fn give_up(&mut self) {
        let object = self.object.id;
        let reason = self.reason();
        let mut jobs = self.stripe.fetches.jobs.lock();
        jobs.remove(&object);
        let late = std::iter::from_fn(|| self.wants.try_recv().ok()).map(|want| want.answer);
        let waiting = std::mem::take(&mut self.waiting).into_values().flatten();
        for answer in waiting.chain(late) {
            let _gone = answer.send(Err(Error::Unreadable { object, reason: reason.clone() }));
        }
    }

    fn reason(&self) -> String {
        let (there, needed) = (self.checked.len(), self.object.code.m());
        let silent = self.due.keys().chain(&self.late).filter_map(|(_, source)| match source {
            Source::Node(node) | Source::Perhaps(node) => {
                Some(format!("{} has not answered", self.stripe.called(*node)))
            }
            Source::Cache => None,
        });
        let mut reasons: Vec<String> = self.misses.iter().cloned().chain(silent).collect();
        reasons.sort();
        reasons.dedup();
        format!("{there} good fragments of {needed} needed: {}", reasons.join(", "))
    }
}

/// The missing fragments, out of m checked ones.
fn decode(code: Code, checked: &[Checked], missing: &[usize]) -> std::result::Result<Vec<Bytes>, CodecError> {
    let length = checked.first().map_or(0, |fragment| fragment.bytes().len());
    let mut made: Vec<Buffer> = missing.iter().map(|_| Buffers::shared().take_dirty(length)).collect();
    let slices = made.iter_mut().map(Buffer::as_mut_slice);
    let mut slices: Vec<(usize, &mut [u8])> = missing.iter().copied().zip(slices).collect();
    decode_into(&Codec::of(code), checked, &mut slices)?;
    Ok(made.into_iter().map(Buffer::freeze).collect())
}

/// Bytes asked of a node, until they are here or given up.
struct Asked {
    count: Arc<AtomicU64>,
    bytes: u64,
}

impl Fetches {
    fn asked(&self, bytes: u64) -> Asked {
        self.asked.fetch_add(bytes, Ordering::Relaxed);
        Asked { count: self.asked.clone(), bytes }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.count.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// One request for one fragment, and its check.
async fn request(
    stripe: Arc<Stripe>,
    object: Arc<ObjectRecord>,
    (index, source): (usize, Source),
    _asked: Option<Asked>,
    deadline: Instant,
) -> Event {
    let ended = match source {
        Source::Cache => stripe.recheck_cached(&object, index).await,
        Source::Node(node) => stripe.ask_node(&object, index, node, true, deadline).await,
        Source::Perhaps(node) => stripe.ask_node(&object, index, node, false, deadline).await,
    };
    match ended {
        Ok((fragment, fpcc)) => Event::Got { index, source, fragment, fpcc },
        Err(Missed(miss, why)) => Event::Missed { index, source, miss, why },
    }
}

type Found = std::result::Result<(Checked, Arc<Fpcc>), Missed>;

impl Stripe {
    async fn ask_node(
        self: &Arc<Self>,
        object: &Arc<ObjectRecord>,
        index: usize,
        node: NodeId,
        should_have_it: bool,
        deadline: Instant,
    ) -> Found {
        let raw = self.get_fragment(object.id, index, node, deadline).await.map_err(|error| {
            let is_absent = matches!(error, TransportError::Refused { code: RefusalCode::NotFound, .. });
            if is_absent && should_have_it {
                self.note_loss(object, index, node);
            }
            let final_ = is_absent || matches!(error, TransportError::Garbage(_));
            let miss = if final_ { Miss::Final } else { Miss::Passing };
            Missed(miss, format!("{} {error}", self.called(node)))
        })?;
        self.check(object, index, raw.clone()).await.map_err(|what| {
            let name = fragment_name(object.id, index);
            let known = self.fetches.fpccs.lock().get(&object.id).cloned();
            let (fpcc, found, what_came) = (object.fpcc, raw.fragment, what.clone());
            self.inquire(node, Contradiction { name, fpcc, known, found, what: what_came });
            self.count_lie(node);
            self.pool.report(node, Outcome::Lied { what: &what });
            tracing::warn!(object = %object.id, index, node = %self.called(node), what, "an answer did not check");
            Missed(Miss::Final, format!("{} gave what does not check: {what}", self.called(node)))
        })
    }

    pub(super) async fn get_fragment(
        &self,
        id: ObjectId,
        index: usize,
        node: NodeId,
        deadline: Instant,
    ) -> std::result::Result<RawFragment, TransportError> {
        let address = self.address(node)?;
        let (name, began) = (fragment_name(id, index), Instant::now());
        let get = self.pool.transport().get(&address, self.options.volume, &name, self.left(deadline));
        Ok(self.pool.read_ended(node, began, get.await)?.value)
    }

    /// Nothing a node said is used before this: the FPCC must be the one the metadata names, the fragment must agree
    /// with it. What came in place of an FPCC that is known already does not matter.
    async fn check(
        &self,
        object: &Arc<ObjectRecord>,
        index: usize,
        raw: RawFragment,
    ) -> std::result::Result<(Checked, Arc<Fpcc>), String> {
        let known = self.fetches.fpccs.lock().get(&object.id).cloned();
        let expected = object.fpcc;
        let checking = move || {
            let fpcc = match known {
                Some(fpcc) => fpcc,
                None => Arc::new(Fpcc::parse(&raw.fpcc).map_err(|error| error.to_string())?),
            };
            if fpcc.digest() != expected {
                return Err("the FPCC of another object".to_owned());
            }
            let checked = fpcc.check(index, raw.fragment).map_err(|error| error.to_string())?;
            Ok((checked, fpcc))
        };
        let (hash, bytes) = (self.options.hash, fragment_bytes(object));
        let (checked, fpcc) = self.cpu.check(hash, bytes, checking).await?;
        self.fetches.fpccs.lock().put(object.id, fpcc.clone());
        Ok((checked, fpcc))
    }

    /// A cached fragment as an input for decoding.
    async fn recheck_cached(&self, object: &Arc<ObjectRecord>, index: usize) -> Found {
        let gone = || Missed(Miss::Final, "the cache let go of it".to_owned());
        let fpcc = self.fetches.fpccs.lock().get(&object.id).cloned().ok_or_else(gone)?;
        let fragment = self.cache.get(object.id, index as u8).ok_or_else(gone)?;
        let raw = RawFragment { fpcc: Bytes::new(), fragment };
        debug_assert_eq!(fpcc.digest(), object.fpcc);
        self.check(object, index, raw).await.map_err(|what| Missed(Miss::Final, format!("the cache: {what}")))
    }

    /// The indexes a node says it has of this very object.
    pub(super) async fn indexes_on(
        &self,
        node: NodeId,
        object: &ObjectRecord,
        deadline: Instant,
    ) -> std::result::Result<Vec<usize>, TransportError> {
        let indexes = 0..object.code.n();
        let operations: Vec<Operation> =
            indexes.clone().map(|index| Operation::Has(fragment_name(object.id, index))).collect();
        let answers = self.ask_batch(node, &operations, false, deadline).await?.value;
        let digest = &object.fpcc.as_bytes()[..];
        Ok(indexes
            .zip(answers)
            .filter(|(_, held)| held.status == 200 && held.payload == digest)
            .map(|(i, _)| i)
            .collect())
    }

    /// A node that should have a fragment says it has not: the metadata is to say so, too.
    fn note_loss(&self, object: &ObjectRecord, index: usize, node: NodeId) {
        tracing::warn!(object = %object.id, index, node = %self.called(node), "a fragment is gone");
        self.book(|ledger| ledger.gone(object.id, index, node));
    }
}

fn fragment_bytes(object: &ObjectRecord) -> usize {
    object.code.fragment_length(u64::from(object.length))
}
