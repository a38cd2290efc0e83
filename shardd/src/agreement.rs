//! The node's part in agreeing on objects: what clients bring and peers say goes into the state machine, and what it
//! wants done is done, in order. docs/dispersal.md says what and why.

mod complete;
mod link;
mod mouth;
mod names;
mod notes;
mod pair;
mod steps;
mod stream;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use common::fpcc::{Fpcc, FpccError};
use common::hash::Hash;
use common::members::{Members, split_name};
use common::wire::{
    LatestVersion, MAX_BATCH, MAX_PAGE, Mac, NodeId, OwnerId, RefusalCode, Signature, TOMBSTONE_BYTES,
    VerifiedVersion, VersionList, WireError, json_length, split_fragment_body, version_statement,
};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

pub use link::{Carried, HttpLink, Link, Opened, Stream};
pub use notes::split_fragment_key;
pub use pair::Pair;
pub use stream::{Ear, PROTOCOL, frame, read_frame};

use crate::dispersal::{
    Dispersals, Dispersed, Group, InstanceId, Limits, Message, Messages, NoGroup, Recalled, Refused, Said,
    Step, Unfit, Word,
};
use crate::error::StoreError;
use crate::signed::is_signed;
use crate::store::{LIST_BYTES, Space, Store};
use complete::Lacking;
use mouth::Mouth;
use names::Names;
use notes::{Notes, fragment_key};
use steps::Queued;

/// Between two reminders of what is open.
const REMINDER: Duration = Duration::from_secs(3);
/// Between two looks at what each peer has verified.
const CATCH_UP: Duration = Duration::from_secs(60);
/// Fragments that are rebuilt at once.
const COMPLETING: usize = 4;
/// Steps that may wait on account of one peer's words before what it asks is dropped: it asks again.
const ASKED: usize = 4096;
/// Bytes that an owner's tombstones may take beyond what he may have: some 600 that wait for others, each of which then
/// takes the place of at least as much.
const TOMBSTONES: u64 = 1 << 20;
/// Versions that an owner may not reach: the next one must exist.
const VERSIONS: u64 = 1 << 62;
/// Bytes of what is listed of a version beside its key, at most.
const LISTED_BYTES: usize = 192;
/// The longest name of an instance: with the owner, the marks and the version its note has the longest key.
pub const MAX_NAME: usize = 909;

/// How a node agrees.
pub struct AgreementOptions {
    /// The pool.
    pub members: Members,
    /// Bytes of the disk that the objects of one owner may take.
    pub owner_quota: Option<u64>,
    /// How a client may wait.
    pub patience: Duration,
    /// How other nodes are asked.
    pub link: Arc<dyn Link>,
}

/// The node agrees with others as long as this lives.
pub struct Agreement {
    inner: Arc<Inner>,
    _tasks: JoinSet<()>,
}

struct Inner {
    store: Arc<Store>,
    notes: Notes,
    members: Members,
    own: NodeId,
    owner_quota: u64,
    patience: Duration,
    link: Arc<dyn Link>,
    mouth: Mouth,
    state: Mutex<State>,
    /// Of these a client's fragment is in the log that no step has wanted there until now.
    unclaimed: Mutex<HashSet<InstanceId>>,
    /// Notes that stand beside those before them until a flush covers them.
    outdated: Mutex<Vec<(InstanceId, Said)>>,
    steps: mpsc::UnboundedSender<Queued>,
    lacking: mpsc::UnboundedSender<Lacking>,
}

/// What changes together.
#[derive(Default)]
struct State {
    dispersals: Dispersals,
    names: Names,
    waiting: HashMap<InstanceId, Vec<Waiting>>,
    /// Steps queued until now.
    queued: u64,
    /// Of these, how many are not carried out yet on account of each peer's words.
    asked: HashMap<NodeId, usize>,
    /// Of instances that were forgotten, the last step queued before: it and those before it are not carried out.
    void: HashMap<InstanceId, u64>,
}

/// A client that waits for its fragment's version.
struct Waiting {
    digest: Hash,
    answer: oneshot::Sender<Result<(), NotAgreed>>,
}

/// Why a client is not told `stored`.
#[derive(Debug, thiserror::Error)]
pub enum NotAgreed {
    /// The request makes no sense.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The name is longer than there is room for.
    #[error("a key has at most 900 bytes")]
    LongName,
    /// Nobody signs for so high a version.
    #[error("versions end at 2^62")]
    HighVersion,
    /// The pool is not a group for it.
    #[error(transparent)]
    Group(#[from] NoGroup),
    /// It is another node's fragment.
    #[error("this node has fragment {own} of it, not {index}")]
    NotMine {
        /// What this node has.
        own: usize,
        /// What was brought.
        index: u8,
    },
    /// What came is no FPCC.
    #[error(transparent)]
    Fpcc(#[from] FpccError),
    /// Not what the FPCC has for this node.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// The owner did not sign it.
    #[error("the signature is not the owner's of this version")]
    NotSigned,
    /// A higher version is there.
    #[error("a higher version of this key is there already")]
    Superseded,
    /// The machine says no.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The owner has used up what he may.
    #[error("the owner has {used} bytes here, and may have {quota}")]
    Quota {
        /// Bytes.
        used: u64,
        /// Bytes.
        quota: u64,
    },
    /// Others have not said yet what is needed.
    #[error("the nodes have not agreed on it yet: ask again")]
    Late,
    /// The node could not keep it.
    #[error("{message}")]
    Store {
        /// What the wire calls it.
        code: RefusalCode,
        /// What the store said.
        message: String,
    },
}

impl NotAgreed {
    /// What the wire calls it.
    pub fn code(&self) -> RefusalCode {
        match self {
            NotAgreed::Wire(_) | NotAgreed::LongName | NotAgreed::HighVersion | NotAgreed::Group(_) => {
                RefusalCode::BadRequest
            }
            NotAgreed::NotMine { .. } | NotAgreed::Fpcc(_) | NotAgreed::Unfit(_) | NotAgreed::NotSigned => {
                RefusalCode::Inconsistent
            }
            NotAgreed::Superseded | NotAgreed::Refused(Refused::Conflict(_)) => RefusalCode::Conflict,
            NotAgreed::Refused(_) => RefusalCode::Io,
            NotAgreed::Quota { .. } => RefusalCode::NoSpace,
            NotAgreed::Late => RefusalCode::Busy,
            NotAgreed::Store { code, .. } => *code,
        }
    }
}

impl From<&StoreError> for NotAgreed {
    fn from(error: &StoreError) -> NotAgreed {
        NotAgreed::Store { code: error.code(), message: error.to_string() }
    }
}

/// Why words of a peer are not heard.
#[derive(Debug, thiserror::Error)]
pub enum NotHeard {
    /// They are none.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Nobody who may say anything.
    #[error("node {0} is not a member of this pool")]
    Stranger(NodeId),
    /// Somebody else says them.
    #[error("the words are not those of the node they are said to be from")]
    NotTheirs,
    /// They are about another pool, or about this one as it was.
    #[error("the words are said under another list of members")]
    OtherMembers,
}

impl NotHeard {
    /// What the wire calls it.
    pub fn code(&self) -> RefusalCode {
        match self {
            NotHeard::Wire(_) => RefusalCode::BadRequest,
            NotHeard::Stranger(_) | NotHeard::NotTheirs => RefusalCode::Inconsistent,
            NotHeard::OtherMembers => RefusalCode::Conflict,
        }
    }
}

/// Why a node does not agree with others.
#[derive(Debug, thiserror::Error)]
pub enum AgreementError {
    /// It is not one of them.
    #[error("node {0} is not in the list of members: make the list anew with avidfs members")]
    NotMember(NodeId),
    /// It is listed with a key that is not its own.
    #[error("node {0} is in the list of members with another key: make the list anew with avidfs members")]
    OtherKey(NodeId),
    /// What it said before cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Agreement {
    /// Remember what was said before, and begin to speak. Blocking where the store is read; called in a runtime.
    ///
    /// # Errors
    /// The node is none of the members; the store's.
    pub fn start(store: Arc<Store>, options: AgreementOptions) -> Result<Agreement, AgreementError> {
        let own = store.node();
        let key = store.signing_key();
        let listed = options.members.find(own).ok_or(AgreementError::NotMember(own))?;
        if listed.key.0 != key.verifying_key().to_bytes() {
            return Err(AgreementError::OtherKey(own));
        }
        let (steps, queued) = mpsc::unbounded_channel();
        let (lacking, to_complete) = mpsc::unbounded_channel();
        let inner = Arc::new(Inner {
            notes: Notes::of(store.clone()),
            mouth: Mouth::new(&options.members, own, &key, options.link.clone()),
            store,
            own,
            owner_quota: options.owner_quota.unwrap_or(u64::MAX),
            patience: options.patience,
            link: options.link,
            members: options.members,
            state: Mutex::new(State { dispersals: Dispersals::new(Limits::default()), ..State::default() }),
            unclaimed: Mutex::default(),
            outdated: Mutex::default(),
            steps,
            lacking,
        });
        inner.remember()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(steps::carry_out_all(Arc::downgrade(&inner), queued));
        tasks.spawn(complete::complete_all(Arc::downgrade(&inner), to_complete));
        tasks.spawn(remind(Arc::downgrade(&inner)));
        for peer in inner.mouth.peers() {
            let news = Arc::new(tokio::sync::Notify::new());
            tasks.spawn(speak(inner.clone(), peer, news.clone()));
            tasks.spawn(complete::catch_up(inner.clone(), peer, news));
        }
        Ok(Agreement { inner, _tasks: tasks })
    }

    /// The pool.
    pub fn members(&self) -> &Members {
        &self.inner.members
    }

    /// Keep what a client brings for an instance, and wait until that is verified.
    ///
    /// # Errors
    /// `Late` if it may still become so; otherwise it was refused.
    pub async fn disperse(
        &self,
        id: InstanceId,
        index: u8,
        signature: Signature,
        body: Bytes,
    ) -> Result<(), NotAgreed> {
        let inner = self.inner.clone();
        let group = inner.group(&id)?;
        if group.own() != usize::from(index) {
            return Err(NotAgreed::NotMine { own: group.own(), index });
        }
        let length = body.len();
        let (fpcc, fragment) = split_fragment_body(body)?;
        let fpcc = Fpcc::parse(&fpcc)?;
        inner.check_room(&id, &fpcc)?;
        let take = {
            let inner = inner.clone();
            move || inner.take(&id, &group, signature, fpcc, fragment)
        };
        let verified = crate::blocking::run_if_much(length, take).await?;
        match tokio::time::timeout(inner.patience, verified).await {
            Ok(answer) => answer.unwrap_or(Err(NotAgreed::Late)),
            Err(_) => Err(NotAgreed::Late),
        }
    }

    /// Listen to a peer that shows with the code of no words that it is one.
    ///
    /// # Errors
    /// `Stranger`, `NotTheirs`.
    pub fn listen_to(&self, from: NodeId, mac: Mac) -> Result<Ear, NotHeard> {
        self.inner.authenticate(from, mac, b"")?;
        Ok(Ear { from, inner: Arc::downgrade(&self.inner) })
    }

    /// A ready for each instance verified after a place that both nodes have to do with, the place of the last one
    /// looked at, and the code of these words.
    ///
    /// # Errors
    /// `Stranger`: the asker is no other member.
    pub fn verified_after(&self, asker: NodeId, place: u64) -> Result<(Bytes, u64, Mac), NotHeard> {
        self.inner.verified_after(asker, place)
    }

    /// Bytes of what `verified_after` gives: at most, if nothing comes meanwhile.
    pub fn verified_length(&self, place: u64) -> usize {
        let (ids, _) = self.inner.state.lock().names.verified_after(place, MAX_BATCH);
        Messages::longest(ids.iter().map(|id| &**id))
    }

    /// What the node knows of a key.
    pub fn latest(&self, owner: OwnerId, name: &str) -> LatestVersion {
        let state = self.inner.state.lock();
        let key = split_name(name).0;
        let newest = state.names.newest(owner, key).filter(|_| key == name);
        let verified = newest.map(|newest| self.inner.described(owner, key, newest));
        LatestVersion { highest: state.names.highest(owner, key), verified }
    }

    /// Bytes of what `list` gives, as the wire has it: at most, if nothing comes meanwhile.
    pub fn list_length(&self, owner: OwnerId, prefix: &str, after: &str, most: usize) -> usize {
        let (page, next) = self.inner.state.lock().names.list(owner, prefix, after, most.min(MAX_PAGE));
        let keys = page.iter().map(|(key, _)| LISTED_BYTES + json_length(key)).sum::<usize>();
        LIST_BYTES + keys + next.map_or(0, |next| json_length(&next))
    }

    /// The newest verified version of up to `most` keys of an owner.
    pub fn list(&self, owner: OwnerId, prefix: &str, after: &str, most: usize) -> VersionList {
        let state = self.inner.state.lock();
        let (page, next) = state.names.list(owner, prefix, after, most.min(MAX_PAGE));
        let described = |(key, newest): (String, _)| self.inner.described(owner, &key, newest);
        VersionList { objects: page.into_iter().map(described).collect(), next }
    }
}

impl Inner {
    /// Read the notes of earlier runs; say again what is open, and complete what is lacking.
    fn remember(self: &Arc<Self>) -> Result<(), StoreError> {
        let mut noted = Vec::new();
        self.notes.each(|id, said| noted.push((id, said)))?;
        let mut state = self.state.lock();
        for (id, said) in &noted {
            match said {
                Some(said) => state.names.note(id, said),
                // Its fragment stays, and nothing is said of it: nobody knows any more what may be.
                None => state.names.note(id, &Said::nothing(self.members.digest())),
            }
            state.names.charge(id, self.cost(id));
        }
        let mut stray = Vec::new();
        self.notes.each_fragment(|id| {
            if !state.names.contains(&id) {
                stray.push(id);
            }
        })?;
        for (id, said) in noted {
            let Some(said) = said else { continue };
            if said.configuration() != self.members.digest() || state.names.is_superseded(&id) {
                continue;
            }
            let Ok(group) = self.group(&id) else { continue };
            let recalled = Recalled { held: self.held(&id, &group), said: Some(said) };
            if recalled.said.as_ref().is_some_and(|said| said.is_open() || recalled.held.is_none()) {
                self.change(&mut state, &id, &group, None, |dispersals| {
                    dispersals.resume(&id, &group, recalled)
                });
            }
        }
        // A crash may come before they are deleted, and nothing else would come back to it.
        let superseded = state.names.take_all_superseded();
        drop(state);
        self.delete_all(&superseded);
        // A crash may leave a fragment without its note, which was covered by the same flush: nobody counts on it.
        stray.iter().try_for_each(|id| self.forget_fragment(id))
    }

    /// The nodes of an instance.
    fn group(&self, id: &InstanceId) -> Result<Arc<Group>, NotAgreed> {
        if id.key().len() > MAX_NAME {
            return Err(NotAgreed::LongName);
        }
        if id.version() > VERSIONS {
            return Err(NotAgreed::HighVersion);
        }
        let nodes = self.members.group(id.owner(), id.key()).iter().map(|member| member.node).collect();
        Ok(Arc::new(Group::new(self.members.digest(), self.members.code(), nodes, self.own)?))
    }

    /// Bytes of the disk that an instance takes: the records of its fragment and of its note.
    fn cost(&self, id: &InstanceId) -> u64 {
        let fragment = self.store.cost(Space::ObjectStore, &fragment_key(id), id.version());
        fragment + self.notes.cost(id)
    }

    /// Whether the owner may have what an instance of this object will take beyond what it takes already.
    fn check_room(&self, id: &InstanceId, fpcc: &Fpcc) -> Result<(), NotAgreed> {
        let cost = Store::record_length(&fragment_key(id), fpcc) + notes::highest_cost(id);
        let (used, known) = {
            let names = &self.state.lock().names;
            (names.used(id.owner()), names.cost(id))
        };
        let quota = match self.deletes(id, fpcc) {
            true => self.owner_quota.saturating_add(TOMBSTONES),
            false => self.owner_quota,
        };
        match cost > known && used + (cost - known) > quota {
            true => Err(NotAgreed::Quota { used, quota: self.owner_quota }),
            false => Ok(()),
        }
    }

    /// Whether an object is a tombstone that takes the place of something here.
    fn deletes(&self, id: &InstanceId, fpcc: &Fpcc) -> bool {
        fpcc.object_length() == TOMBSTONE_BYTES
            && split_name(id.key()).1.is_none()
            && self.state.lock().names.has_older(id)
    }

    /// Check what a client brings, and let the machine have it. The fragment goes into the log before that, while the
    /// processor has it at hand; what the machine does not want of it is deleted again.
    fn take(
        &self,
        id: &InstanceId,
        group: &Arc<Group>,
        signature: Signature,
        fpcc: Fpcc,
        fragment: Bytes,
    ) -> Result<oneshot::Receiver<Result<(), NotAgreed>>, NotAgreed> {
        let dispersed = self.check(id, group, signature, fpcc, fragment)?;
        if self.state.lock().names.is_superseded(id) {
            return Err(NotAgreed::Superseded);
        }
        let digest = dispersed.digest();
        let is_early = self.held(id, group).is_none() && self.unclaimed.lock().insert(id.clone());
        if is_early && let Err(error) = self.keep(id, &dispersed) {
            // The step that wants it tries again.
            tracing::debug!(%id, %error, "not kept yet");
        }
        let verified = self.receive(id, group, dispersed);
        if is_early {
            self.queue_settling(id, group, digest);
        }
        verified
    }

    /// Whether a client's body is this node's fragment, and its owner's.
    fn check(
        &self,
        id: &InstanceId,
        group: &Group,
        signature: Signature,
        fpcc: Fpcc,
        fragment: Bytes,
    ) -> Result<Dispersed, NotAgreed> {
        let statement = version_statement(
            self.members.digest().as_bytes(),
            &id.owner(),
            id.key(),
            id.version(),
            fpcc.digest().as_bytes(),
        );
        if !is_signed(&id.owner().0, &statement, signature) {
            return Err(NotAgreed::NotSigned);
        }
        Ok(Dispersed::check(group, fpcc, fragment)?)
    }

    fn receive(
        &self,
        id: &InstanceId,
        group: &Arc<Group>,
        dispersed: Dispersed,
    ) -> Result<oneshot::Receiver<Result<(), NotAgreed>>, NotAgreed> {
        let digest = dispersed.digest();
        let mut state = self.state.lock();
        if state.names.is_superseded(id) {
            return Err(NotAgreed::Superseded);
        }
        let (answer, verified) = oneshot::channel();
        let waiting = state.waiting.entry(id.clone()).or_default();
        waiting.retain(|waiting| !waiting.answer.is_closed());
        waiting.push(Waiting { digest, answer });
        let refused = self.change(&mut state, id, group, None, |dispersals| {
            dispersals.disperse(id, group, dispersed, || self.recall(id, group))
        });
        match refused {
            Some(refused) => {
                // Others who brought what counts wait on.
                state.waiting.entry(id.clone()).or_default().pop();
                Err(refused.into())
            }
            None => Ok(verified),
        }
    }

    fn hear(&self, from: NodeId, mac: Mac, body: Bytes) -> Result<(), NotHeard> {
        self.authenticate(from, mac, &body)?;
        let messages = Messages::decode(body)?;
        if messages.configuration() != self.members.digest() {
            return Err(NotHeard::OtherMembers);
        }
        for Message { id, word } in messages.list() {
            self.hear_word(from, id, *word);
        }
        Ok(())
    }

    fn authenticate(&self, from: NodeId, mac: Mac, body: &[u8]) -> Result<(), NotHeard> {
        if self.members.find(from).is_none() {
            return Err(NotHeard::Stranger(from));
        }
        match self.mouth.is_said_by(from, mac, body) {
            true => Ok(()),
            false => Err(NotHeard::NotTheirs),
        }
    }

    fn hear_word(&self, from: NodeId, id: &InstanceId, word: Word) {
        // Votes about what is verified lead to nothing. A peer that restarted has a ready for all of it, and to read all the
        // notes would hold up the event loop.
        if word != Word::Ask && self.state.lock().names.is_verified(id) {
            return;
        }
        let Ok(group) = self.group(id) else { return };
        if group.index_of(from).is_none() {
            return;
        }
        let mut state = self.state.lock();
        // What is superseded leads to nothing any more, and who still asks has yet to hear of the higher version.
        if state.names.is_superseded(id) {
            if word == Word::Ask {
                self.tell_newest(&state, from, id);
            }
            return;
        }
        // Everything else that a peer says changes something, and leads to few steps.
        if word == Word::Ask && state.asked.get(&from).is_some_and(|asked| *asked >= ASKED) {
            return;
        }
        let refused = self.change(&mut state, id, &group, Some(from), |dispersals| {
            dispersals.hear(from, id, &group, word, || self.recall(id, &group))
        });
        match refused {
            Some(refused @ Refused::Contradiction { .. }) => {
                tracing::warn!(%from, %id, %refused, "a node lies")
            }
            Some(refused) => tracing::debug!(%from, %id, %refused, "a word changes nothing"),
            None => (),
        }
    }

    fn tell_newest(&self, state: &State, to: NodeId, asked: &InstanceId) {
        let key = split_name(asked.key()).0;
        let Some(newest) = state.names.newest(asked.owner(), key) else { return };
        if let Ok(id) = InstanceId::new(asked.owner(), key, newest.version) {
            self.mouth.say(to, Message { id, word: Word::Ready(newest.digest) });
        }
    }

    /// Let the machine change, and queue what it wants done.
    fn change(
        &self,
        state: &mut State,
        id: &InstanceId,
        group: &Arc<Group>,
        asked_by: Option<NodeId>,
        change: impl FnOnce(&mut Dispersals) -> Result<Step, Refused>,
    ) -> Option<Refused> {
        match change(&mut state.dispersals) {
            Ok(step) => {
                self.queue(state, id, group, asked_by, step);
                None
            }
            Err(refused) => Some(refused),
        }
    }

    fn queue(
        &self,
        state: &mut State,
        id: &InstanceId,
        group: &Arc<Group>,
        asked_by: Option<NodeId>,
        step: Step,
    ) {
        if step == Step::default() {
            return;
        }
        state.queued += 1;
        if let Some(peer) = asked_by {
            *state.asked.entry(peer).or_default() += 1;
        }
        let number = state.queued;
        let queued = Queued { number, id: id.clone(), group: group.clone(), asked_by, step, settles: None };
        // Nobody takes it when the node ends.
        let _ = self.steps.send(queued);
    }

    /// After the steps that may want it: what becomes of a fragment that was put into the log before the machine had it.
    fn queue_settling(&self, id: &InstanceId, group: &Arc<Group>, digest: Hash) {
        let number = self.state.lock().queued;
        let (id, group, step) = (id.clone(), group.clone(), Step::default());
        let _ = self.steps.send(Queued { number, id, group, asked_by: None, step, settles: Some(digest) });
    }

    /// What the disk has of an instance. A fragment that no step has claimed yet may not survive a crash.
    fn recall(&self, id: &InstanceId, group: &Group) -> Option<Recalled> {
        let is_unclaimed = self.unclaimed.lock().contains(id);
        match self.notes.read(id) {
            Ok(said) => Some(Recalled { said, held: self.held(id, group).filter(|_| !is_unclaimed) }),
            Err(error) => {
                tracing::error!(%id, %error, "what was said cannot be read");
                None
            }
        }
    }

    /// The digest under which the own fragment of an instance is kept.
    fn held(&self, id: &InstanceId, group: &Group) -> Option<Hash> {
        let name = steps::fragment_name(id, group.own());
        self.store.has(Space::ObjectStore, &name).ok()
    }

    fn verified_after(&self, asker: NodeId, place: u64) -> Result<(Bytes, u64, Mac), NotHeard> {
        let (ids, last) = self.state.lock().names.verified_after(place, MAX_BATCH);
        let mut messages = Messages::new(self.members.digest());
        for id in ids {
            let concerns = self.group(&id).is_ok_and(|group| group.index_of(asker).is_some());
            let verified = || self.notes.read(&id).ok().flatten().and_then(|said| said.verified());
            if let Some(digest) = concerns.then(verified).flatten() {
                let message = Message { id: (*id).clone(), word: Word::Ready(digest) };
                messages.push(message).expect("no more were asked for");
            }
        }
        let body = messages.encode();
        let mac = self.mouth.mac(asker, &body).ok_or(NotHeard::Stranger(asker))?;
        Ok((body, last, mac))
    }

    fn described(&self, owner: OwnerId, key: &str, newest: names::Newest) -> VerifiedVersion {
        let kept = self.store.status(Space::ObjectStore, &format!("{owner}/{key}"), newest.version);
        VerifiedVersion {
            key: key.to_owned(),
            version: newest.version,
            fpcc: newest.digest.to_string(),
            object_length: kept.ok().map(|kept| kept.object_length),
        }
    }
}

async fn speak(inner: Arc<Inner>, peer: NodeId, news: Arc<tokio::sync::Notify>) {
    inner.mouth.speak_to(peer, || news.notify_one()).await;
}

/// Say again, from time to time, what was said and has led to nothing yet.
async fn remind(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(REMINDER).await;
        let Some(inner) = inner.upgrade() else { return };
        inner.tidy().await;
        let mut state = inner.state.lock();
        for reminder in state.dispersals.remind(MAX_BATCH) {
            inner.queue(&mut state, &reminder.id, &reminder.group, None, reminder.step);
        }
        state.waiting.retain(|_, clients| {
            clients.retain(|waiting| !waiting.answer.is_closed());
            !clients.is_empty()
        });
    }
}

#[cfg(test)]
mod tests;
