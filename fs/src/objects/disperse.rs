//! One instance to its n nodes: signed, sent to all at once, done when 2f + 1 have stored it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use common::hash::{Hash, HashId};
use common::members::split_name;
use common::quorum::Quorums;
use common::wire::{FragmentName, RefusalCode, Signature, version_statement};
use ed25519_dalek::Signer;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Instance, ObjectError, ObjectStore, Seat, of_node, reasons};
use crate::buffers::Buffer;
use crate::stripe::{Coded, encode};
use crate::transport::{RawFragment, TransportError};

/// Before a node that could not be reached is tried again; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long the last fragments may take once enough nodes have stored theirs: some times what those took.
const GRACE_FACTOR: u32 = 4;
const SHORTEST_GRACE: Duration = Duration::from_millis(100);
const LONGEST_GRACE: Duration = Duration::from_secs(2);
/// So long nodes wait for the others to agree before they answer that they are busy.
const AGREEING: Duration = Duration::from_secs(10);

/// An instance as its nodes get it.
pub(super) struct Encoded {
    coded: Coded,
    /// Its share of the memory that parts may take, until it is dropped.
    _room: Option<OwnedSemaphorePermit>,
}

impl Encoded {
    /// Of the bytes in `buffer`, at least one. Costs CPU, waits for nothing.
    pub(super) fn new(
        quorums: Quorums,
        mut buffer: Buffer,
        room: Option<OwnedSemaphorePermit>,
    ) -> Arc<Encoded> {
        let (code, length) = (quorums.code(), buffer.len() as u64);
        buffer.resize(code.padded_length(length), 0);
        Arc::new(Encoded { coded: encode(code, HashId::Blake3, &buffer.freeze(), length), _room: room })
    }

    /// What it is called by.
    pub(super) fn digest(&self) -> Hash {
        self.coded.digest
    }

    fn fragment(&self, index: usize) -> RawFragment {
        RawFragment { fpcc: self.coded.fpcc.clone(), fragment: self.coded.fragments[index].clone() }
    }
}

impl ObjectStore {
    /// Have an instance stored. Its other fragments go on being sent for a moment after this has returned.
    ///
    /// # Errors
    /// `Conflict`, or too few nodes stored it within the limit; then it may be stored, or be so later.
    pub(super) async fn disperse(
        &self,
        instance: &Instance,
        encoded: &Arc<Encoded>,
    ) -> Result<(), ObjectError> {
        let began = Instant::now();
        let group = self.group(&instance.name);
        let mut sending = Sending::begin(self, instance, encoded, &group)?;
        let mut tally = Tally::new(self.members.quorums(), &group);
        let verdict = loop {
            match timeout_at(began + self.options.io_limit, sending.next()).await {
                Ok(Some((index, event))) => tally.take(index, event),
                Ok(None) | Err(_) => break tally.last_verdict(),
            }
            if let Some(verdict) = tally.verdict(began.elapsed()) {
                break verdict;
            }
        };
        match verdict {
            Verdict::Stored => self.send_the_rest(sending, group, began.elapsed()).await,
            Verdict::Conflict => return Err(conflict(instance)),
            Verdict::TooFew => return Err(tally.too_few(instance)),
        }
        Ok(())
    }

    /// A node that could not take its fragment in this time is made whole by the others. Who failed a moment ago is not
    /// waited for.
    async fn send_the_rest(&self, mut sending: Sending, group: Vec<Seat>, took: Duration) {
        let grace = (took * GRACE_FACTOR).clamp(SHORTEST_GRACE, LONGEST_GRACE);
        let standing = self.standing.clone();
        let mut rest = self.rest.lock().await;
        // What has ended gives its memory back.
        while rest.try_join_next().is_some() {}
        rest.spawn(async move {
            let end = Instant::now() + grace;
            let node = |index: &usize| group[*index].node;
            while sending.open.iter().any(|index| standing.doubt(node(index)) == 0) {
                if let Ok(None) | Err(_) = timeout_at(end, sending.next()).await {
                    break;
                }
            }
            sending.open.iter().for_each(|index| standing.failed(node(index)));
        });
    }
}

fn conflict(instance: &Instance) -> ObjectError {
    let (key, _) = split_name(&instance.name);
    ObjectError::Conflict { key: key.to_owned(), version: instance.version }
}

/// The fragments under way, each on a task of its own. Dropped, what is still open is given up.
struct Sending {
    events: mpsc::UnboundedReceiver<(usize, Event)>,
    /// Those that may still be stored.
    open: BTreeSet<usize>,
    _tasks: JoinSet<()>,
}

/// What became of one fragment.
#[derive(Debug)]
enum Event {
    Stored,
    /// It will be sent again.
    Again(TransportError),
    Refused(TransportError),
}

impl Event {
    fn of(answer: Result<(), TransportError>) -> Event {
        match answer {
            Ok(()) => Event::Stored,
            Err(error) if may_pass(&error) => Event::Again(error),
            Err(error) => Event::Refused(error),
        }
    }
}

/// Whether the same request may fare better in a moment.
fn may_pass(error: &TransportError) -> bool {
    match error {
        TransportError::Unreachable(_) | TransportError::TimedOut(_) => true,
        TransportError::Refused { code, .. } => {
            matches!(code, RefusalCode::Busy | RefusalCode::TooSlow | RefusalCode::Io)
        }
        TransportError::Garbage(_) => false,
    }
}

impl Sending {
    fn begin(
        store: &ObjectStore,
        instance: &Instance,
        encoded: &Arc<Encoded>,
        group: &[Seat],
    ) -> Result<Sending, ObjectError> {
        let signature = store.sign(instance, encoded.digest())?;
        let (told, events) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        for seat in group {
            let sender = Sender {
                store: store.clone(),
                seat: seat.clone(),
                name: store.fragment_name(instance, seat.index),
                signature,
                encoded: encoded.clone(),
                told: told.clone(),
            };
            tasks.spawn(sender.send_until_taken());
        }
        let open = group.iter().map(|seat| seat.index).collect();
        Ok(Sending { events, open, _tasks: tasks })
    }

    /// What happened next; none once nothing can happen any more.
    async fn next(&mut self) -> Option<(usize, Event)> {
        let (index, event) = self.events.recv().await?;
        if !matches!(event, Event::Again(_)) {
            self.open.remove(&index);
        }
        Some((index, event))
    }
}

/// One fragment on its way.
struct Sender {
    store: ObjectStore,
    seat: Seat,
    name: FragmentName,
    signature: Signature,
    encoded: Arc<Encoded>,
    told: mpsc::UnboundedSender<(usize, Event)>,
}

impl Sender {
    /// Again and again, with growing pauses, until it is stored or refused.
    async fn send_until_taken(self) {
        let end = Instant::now() + self.store.options.io_limit;
        let mut pause = FIRST_PAUSE;
        loop {
            let event = Event::of(self.send(end).await);
            let is_over = !matches!(event, Event::Again(_));
            self.tell(event);
            if is_over {
                return;
            }
            sleep(pause).await;
            pause = LONGEST_PAUSE.min(2 * pause);
        }
    }

    async fn send(&self, end: Instant) -> Result<(), TransportError> {
        let (seat, fragment) = (&self.seat, self.encoded.fragment(self.seat.index));
        let limit = end.saturating_duration_since(Instant::now());
        let transport = &self.store.transport;
        let answer = transport.disperse(&seat.address, &self.name, self.signature, fragment, limit).await;
        answer.and_then(|answer| of_node(seat, answer))
    }

    fn tell(&self, event: Event) {
        let (standing, node) = (&self.store.standing, self.seat.node);
        match event {
            Event::Stored => standing.served(node),
            Event::Again(_) => standing.failed(node),
            Event::Refused(_) => {}
        }
        // Nobody listens once enough have stored it and the others had their time.
        let _ = self.told.send((self.seat.index, event));
    }
}

impl ObjectStore {
    fn sign(&self, instance: &Instance, digest: Hash) -> Result<Signature, ObjectError> {
        let Instance { name, version } = instance;
        let members = self.members.digest();
        let statement = version_statement(members.as_bytes(), &self.owner, name, *version, digest.as_bytes());
        Ok(Signature(self.secret()?.sign(&statement).to_bytes()))
    }

    /// How nodes call a fragment of an instance.
    pub(super) fn fragment_name(&self, instance: &Instance, index: usize) -> FragmentName {
        let key = self.full_name(&instance.name);
        FragmentName { key, version: instance.version, index: index as u8 }
    }
}

/// What the nodes have said so far.
struct Tally<'a> {
    quorums: Quorums,
    group: &'a [Seat],
    stored: usize,
    /// Who says that another object has this version, or a higher version is there.
    conflicts: usize,
    /// Who said anything but `stored`, and what last.
    others: BTreeMap<usize, String>,
    refused: usize,
    is_busy: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Stored,
    Conflict,
    TooFew,
}

impl<'a> Tally<'a> {
    fn new(quorums: Quorums, group: &'a [Seat]) -> Tally<'a> {
        let others = BTreeMap::new();
        Tally { quorums, group, stored: 0, conflicts: 0, others, refused: 0, is_busy: false }
    }

    fn take(&mut self, index: usize, event: Event) {
        match event {
            Event::Stored => {
                self.stored += 1;
                self.others.remove(&index);
            }
            Event::Again(error) => {
                self.is_busy |= has_code(&error, RefusalCode::Busy);
                self.others.insert(index, error.to_string());
            }
            Event::Refused(error) => {
                self.refused += 1;
                self.conflicts += usize::from(has_code(&error, RefusalCode::Conflict));
                self.others.insert(index, error.to_string());
            }
        }
    }

    /// What is certain after so long.
    ///
    /// One node that speaks of a conflict may lie; it is believed where the others did not come to agree either.
    fn verdict(&self, elapsed: Duration) -> Option<Verdict> {
        let is_split = self.conflicts > 0 && self.is_busy && elapsed >= AGREEING;
        if self.stored >= self.quorums.client() {
            Some(Verdict::Stored)
        } else if self.conflicts >= self.quorums.report() || is_split {
            Some(Verdict::Conflict)
        } else if self.refused > self.group.len() - self.quorums.client() {
            Some(Verdict::TooFew)
        } else {
            None
        }
    }

    /// When nothing more will be heard.
    fn last_verdict(&self) -> Verdict {
        let is_split = self.conflicts > 0;
        if is_split { Verdict::Conflict } else { Verdict::TooFew }
    }

    fn too_few(&self, instance: &Instance) -> ObjectError {
        let (stored, n, needed) = (self.stored, self.group.len(), self.quorums.client());
        let said = self.others.iter().map(|(index, why)| (&self.group[*index].address, why));
        let what = describe(instance);
        ObjectError::TooFewNodes(format!(
            "{stored} of {n} nodes stored {what}, {needed} are needed: {}",
            reasons(said)
        ))
    }
}

fn has_code(error: &TransportError, wanted: RefusalCode) -> bool {
    matches!(error, TransportError::Refused { code, .. } if *code == wanted)
}

/// An instance as people would name it.
pub(super) fn describe(instance: &Instance) -> String {
    match split_name(&instance.name) {
        (key, None) => format!("version {} of {key}", instance.version),
        (key, Some(part)) => format!("part {part} of version {} of {key}", instance.version),
    }
}

#[cfg(test)]
mod tests {
    use common::wire::NodeId;

    use super::*;
    use crate::transport::NodeAddress;

    fn refused(code: RefusalCode) -> TransportError {
        TransportError::Refused { code, message: "no".into() }
    }

    #[test]
    fn one_conflict_counts_where_the_others_do_not_come_to_agree_either() {
        let seat = |index| Seat {
            index,
            node: NodeId([index as u8; 16]),
            address: NodeAddress(format!("h{index}")),
        };
        let group: Vec<Seat> = (0..5).map(seat).collect();
        let mut tally = Tally::new(Quorums::of("3+2".parse().unwrap()).unwrap(), &group);
        tally.take(0, Event::of(Err(refused(RefusalCode::Busy))));
        assert_eq!((tally.verdict(AGREEING), tally.last_verdict()), (None, Verdict::TooFew));
        tally.take(1, Event::of(Err(refused(RefusalCode::Conflict))));
        assert_eq!(tally.verdict(AGREEING - Duration::from_millis(1)), None);
        assert_eq!(tally.verdict(AGREEING), Some(Verdict::Conflict));
        assert_eq!(tally.last_verdict(), Verdict::Conflict);
        (2..5).for_each(|index| tally.take(index, Event::Stored));
        assert_eq!(tally.verdict(AGREEING), Some(Verdict::Stored));
    }
}
