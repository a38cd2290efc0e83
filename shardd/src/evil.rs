//! A node that lies on purpose, for the tests of those who ask it: a layer around an honest one, which does to requests
//! and answers what it was told to. What it is asked for at random it draws from a seed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use common::hash::{Hash, HashId};
use common::members::Member;
use common::wire::{
    FragmentName, LatestVersion, Listing, MAX_BODY, Mac, NodeId, ObjectStatus, Operation, OperationAnswer,
    Refusal, RefusalCode, VerifiedVersion, VersionList, decode_answers, decode_batch, encode_answers,
    encode_batch, fragment_prefix, split_fragment_body,
};
use ed25519_dalek::SigningKey;
use http::header::CONTENT_LENGTH;
use http::{Method, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt;

use crate::agreement::{Carried, Link, Opened, Pair, Stream, frame, read_frame};
use crate::dispersal::{Message, Messages, Word};
use crate::store::Store;

/// The program lies only where this variable is 1.
pub const ALLOWED: &str = "SHARDD_ALLOW_EVIL";
/// How late a slow node is.
pub const DELAY: Duration = Duration::from_millis(500);
/// How much an oversized answer announces; it then goes on as long as somebody takes it.
const ANNOUNCED: u64 = 1 << 40;
/// Names and answers that are remembered; with more of them it begins anew.
const REMEMBERED: usize = 1 << 16;
/// Bytes of words that it may hold while it falsifies them.
const PASSING: usize = 64 << 10;
/// Answers that may be given again to somebody else.
const RECENT: usize = 16;

/// One way to lie.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mode {
    /// Of each fragment it gives, one bit is another one.
    Flip,
    /// It shows what it had when it began to lie: what is put later it keeps and denies.
    Stale,
    /// Asked for a fragment, it gives another object's, with that one's FPCC.
    Swap,
    /// It denies what it has.
    Withhold,
    /// It answers rightly, after `DELAY`.
    Slow,
    /// It acknowledges what is put, and keeps nothing.
    DropAfterAck,
    /// What it says about fragments is no HTTP.
    GarbageHttp,
    /// Its answers announce more than any may have, or are longer.
    Oversize,
    /// Its fragments are a little shorter or longer than the FPCC says.
    WrongLength,
    /// It gives an answer that it gave before, to another request.
    Replay,
    /// Half of the other nodes hear other votes from it than the rest.
    Equivocate,
    /// It shows versions of objects as verified that nobody put, and other bytes under those that somebody did.
    LieAboutVerified,
}

impl Mode {
    /// All of them.
    pub const ALL: [Mode; 12] = [
        Mode::Flip,
        Mode::Stale,
        Mode::Swap,
        Mode::Withhold,
        Mode::Slow,
        Mode::DropAfterAck,
        Mode::GarbageHttp,
        Mode::Oversize,
        Mode::WrongLength,
        Mode::Replay,
        Mode::Equivocate,
        Mode::LieAboutVerified,
    ];

    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Flip => "flip",
            Mode::Stale => "stale",
            Mode::Swap => "swap",
            Mode::Withhold => "withhold",
            Mode::Slow => "slow",
            Mode::DropAfterAck => "drop-after-ack",
            Mode::GarbageHttp => "garbage-http",
            Mode::Oversize => "oversize",
            Mode::WrongLength => "wrong-length",
            Mode::Replay => "replay",
            Mode::Equivocate => "equivocate",
            Mode::LieAboutVerified => "lie-about-verified",
        }
    }

    /// Whether there is something to lie about in such a request.
    fn is_about(self, asked: &Asked) -> bool {
        let (reads, writes, names) = asked.parts();
        match self {
            Mode::Flip | Mode::Swap | Mode::Oversize | Mode::WrongLength => reads,
            Mode::Stale | Mode::Withhold => reads || names,
            Mode::DropAfterAck => writes,
            Mode::Slow | Mode::GarbageHttp | Mode::Replay => reads || writes || names,
            // Told by the link to other nodes.
            Mode::Equivocate => false,
            Mode::LieAboutVerified => matches!(asked, Asked::Latest { .. } | Asked::Listing { .. }),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no way to lie, in a sentence.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotAMode(String);

impl FromStr for Mode {
    type Err = NotAMode;

    fn from_str(text: &str) -> Result<Mode, NotAMode> {
        let known = Mode::ALL.into_iter().find(|mode| mode.name() == text);
        known.ok_or_else(|| {
            let names = Mode::ALL.map(Mode::name).join(", ");
            NotAMode(format!("{text} is no way to lie: there are {names}"))
        })
    }
}

/// The node `app` made to lie, in one of these modes at a time: where several fit a request, the seed decides.
///
/// What says who the node is and what it has room for stays true, and so does what it says about volumes and leases.
pub fn made_evil(app: Router, modes: &[Mode], seed: u64) -> Router {
    let liar = Liar {
        app,
        modes: modes.to_vec(),
        dice: Mutex::new(StdRng::seed_from_u64(seed)),
        seen: Mutex::default(),
        told: AtomicU64::new(0),
    };
    Router::new().fallback(answer).with_state(Arc::new(liar))
}

/// The way to other nodes, made to lie if one of the modes says so: who has an odd first digit hears votes for objects
/// that there are not, in its own name.
pub fn made_lying(link: Arc<dyn Link>, modes: &[Mode], store: &Store) -> Arc<dyn Link> {
    match modes.contains(&Mode::Equivocate) {
        true => Arc::new(Equivocating { link, own: store.node(), key: store.signing_key() }),
        false => link,
    }
}

struct Equivocating {
    link: Arc<dyn Link>,
    own: NodeId,
    key: SigningKey,
}

impl Link for Equivocating {
    fn carry<'a>(&'a self, to: &'a Member, request: Request<Bytes>) -> Carried<'a> {
        self.link.carry(to, request)
    }

    fn open<'a>(&'a self, to: &'a Member, request: Request<Bytes>) -> Opened<'a> {
        if to.node.0[0] & 1 == 0 {
            return self.link.open(to, request);
        }
        Box::pin(async move {
            let (mut reader, mut writer) = tokio::io::split(self.link.open(to, request).await?);
            let (speaker, between) = tokio::io::duplex(PASSING);
            let (mut said, mut heard) = tokio::io::split(between);
            let falsify = self.falsifier(to);
            tokio::spawn(async move {
                let saying = async {
                    while let Ok(Some((mac, body))) = read_frame(&mut said).await {
                        let (mac, body) = falsify(&body).unwrap_or((mac, body));
                        writer.write_all(&frame(mac, &body)).await?;
                        writer.flush().await?;
                    }
                    Ok(())
                };
                let confirming = tokio::io::copy(&mut reader, &mut heard);
                tokio::select! {
                    ended = saying => ended,
                    ended = confirming => ended.map(drop),
                }
            });
            Ok(Box::new(speaker) as Box<dyn Stream>)
        })
    }
}

impl Equivocating {
    /// Makes of votes others of its own.
    fn falsifier(&self, to: &Member) -> impl Fn(&Bytes) -> Option<(Mac, Bytes)> + Send + use<> {
        let (own, key, to) = (self.own, self.key.clone(), to.clone());
        move |body| {
            let honest = Messages::decode(body.clone()).ok()?;
            let mut lies = Messages::new(honest.configuration());
            let other = |digest: &Hash| HashId::Blake3.hash(digest.as_bytes());
            for Message { id, word } in honest.list() {
                let word = match word {
                    Word::Echo(digest) => Word::Echo(other(digest)),
                    Word::Ready(digest) => Word::Ready(other(digest)),
                    Word::Ask => Word::Ask,
                };
                lies.push(Message { id: id.clone(), word }).expect("as many as there were");
            }
            let body = lies.encode();
            let mac = Pair::of(&key, &to.key, lies.configuration())?.mac(own, to.node, &body);
            Some((mac, body))
        }
    }
}

struct Liar {
    app: Router,
    modes: Vec<Mode>,
    dice: Mutex<StdRng>,
    seen: Mutex<Seen>,
    /// Answers that were falsified.
    told: AtomicU64,
}

#[derive(Default)]
struct Seen {
    /// Put since it began to lie: space, key, version.
    fresh: HashSet<(String, String, u64)>,
    /// The first answer about what is newest under a key.
    latest: HashMap<Uri, Response<Bytes>>,
    /// The last answers, by what was asked.
    recent: VecDeque<(Uri, Response<Bytes>)>,
}

/// What is asked for, as far as lies are told about it. Keys are as they stand in paths; those of volumes are plain.
enum Asked {
    Put { space: String, name: FragmentName },
    Get { space: String, name: FragmentName },
    Batch { space: String, operations: Vec<Operation> },
    Status { space: String, key: String, version: u64 },
    Latest { space: String },
    Listing { space: String },
    Other,
}

impl Asked {
    fn of(request: &Request<Bytes>) -> Asked {
        let path = request.uri().path().trim_start_matches('/');
        let words: Vec<&str> = path.split('/').collect();
        let (space, words) = match words.as_slice() {
            ["volumes", volume, rest @ ..] => (format!("/volumes/{volume}"), rest),
            words => (String::new(), words),
        };
        let fragment = |key: &str, version: &str, index: &str| {
            let (version, index) = (version.parse().ok()?, index.parse().ok()?);
            Some(FragmentName { key: key.to_owned(), version, index })
        };
        let asked = match (request.method(), words) {
            (&Method::GET, ["objects", key, version, "fragment", index]) => {
                fragment(key, version, index).map(|name| Asked::Get { space, name })
            }
            (&Method::POST, ["objects", key, version, "fragment", index]) => {
                fragment(key, version, index).map(|name| Asked::Put { space, name })
            }
            (&Method::POST, ["batch"]) => {
                let operations = decode_batch(request.body().clone()).ok();
                operations.map(|operations| Asked::Batch { space, operations })
            }
            (&Method::GET, ["objects"]) => Some(Asked::Listing { space }),
            (&Method::GET, ["objects", _, "latest"]) => Some(Asked::Latest { space }),
            (&Method::GET, ["objects", key, version, "status"]) => {
                let key = (*key).to_owned();
                version.parse().ok().map(|version| Asked::Status { space, key, version })
            }
            _ => None,
        };
        asked.unwrap_or(Asked::Other)
    }

    /// Whether fragments are read, fragments are written, and names are asked for.
    fn parts(&self) -> (bool, bool, bool) {
        match self {
            Asked::Get { .. } => (true, false, false),
            Asked::Put { .. } => (false, true, false),
            Asked::Batch { operations, .. } => {
                let any = |is: fn(&Operation) -> bool| operations.iter().any(is);
                (
                    any(|operation| matches!(operation, Operation::Get(_))),
                    any(|operation| matches!(operation, Operation::Put { .. })),
                    any(|operation| matches!(operation, Operation::Has(_))),
                )
            }
            Asked::Status { .. } | Asked::Latest { .. } | Asked::Listing { .. } => (false, false, true),
            Asked::Other => (false, false, false),
        }
    }
}

async fn answer(State(liar): State<Arc<Liar>>, request: Request) -> Response {
    let request = match whole(request).await {
        Ok(request) => request,
        Err(refused) => return *refused,
    };
    // Over an upgraded connection it would be honest.
    if ["/puts", "/gets"].iter().any(|end| request.uri().path().ends_with(end)) {
        return StatusCode::NOT_FOUND.into_response();
    }
    let asked = Asked::of(&request);
    liar.note(&asked);
    if let Some(mode) = liar.pick(&asked) {
        return liar.lie(mode, &asked, request).await;
    }
    let is_counted = request.uri().path() == "/metrics";
    let answer = liar.honest(request).await;
    sent(if is_counted { liar.with_count(answer) } else { answer })
}

async fn whole(request: Request) -> Result<Request<Bytes>, Box<Response>> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, MAX_BODY).await;
    let body = body.map_err(|error| Box::new((StatusCode::BAD_REQUEST, error.to_string()).into_response()));
    Ok(Request::from_parts(parts, body?))
}

fn sent(answer: Response<Bytes>) -> Response {
    answer.map(Body::from)
}

/// Another body; how long it is is said anew.
fn with_body<T>(answer: &Response<Bytes>, body: T) -> Response<T> {
    let mut with = Response::new(body);
    *with.status_mut() = answer.status();
    *with.headers_mut() = answer.headers().clone();
    with.headers_mut().remove(CONTENT_LENGTH);
    with
}

impl Liar {
    fn pick(&self, asked: &Asked) -> Option<Mode> {
        let fitting: Vec<Mode> = self.modes.iter().copied().filter(|mode| mode.is_about(asked)).collect();
        match fitting.as_slice() {
            [] => None,
            modes => Some(modes[self.below(modes.len())]),
        }
    }

    fn below(&self, bound: usize) -> usize {
        self.dice.lock().random_range(0..bound)
    }

    fn count(&self) {
        self.told.fetch_add(1, Ordering::Relaxed);
    }

    /// What the node itself would say.
    async fn honest(&self, request: Request<Bytes>) -> Response<Bytes> {
        let asking = self.app.clone().oneshot(request.map(Body::from)).await;
        let (parts, body) = asking.unwrap_or_else(|never| match never {}).into_parts();
        // An answer that breaks off is one that was never whole.
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        Response::from_parts(parts, body)
    }

    /// An answer with the node's name on it.
    async fn made_up(&self, status: StatusCode, body: Bytes) -> Response<Bytes> {
        let request = Request::get("/healthz").body(Bytes::new()).expect("a path");
        let mut answer = with_body(&self.honest(request).await, body);
        *answer.status_mut() = status;
        answer
    }

    async fn denied(&self) -> Response<Bytes> {
        self.count();
        let refusal = Refusal { error: RefusalCode::NotFound, message: "this is not here".into() };
        let body = serde_json::to_vec(&refusal).expect("a refusal is plain strings");
        self.made_up(StatusCode::NOT_FOUND, body.into()).await
    }

    async fn lie(&self, mode: Mode, asked: &Asked, request: Request<Bytes>) -> Response {
        sent(match mode {
            Mode::Flip => self.changed(asked, request, |fragment| self.flipped(fragment)).await,
            Mode::WrongLength => self.changed(asked, request, |fragment| self.resized(fragment)).await,
            Mode::Swap => self.swapped(asked, request).await,
            Mode::Withhold => self.hidden(asked, request, |_, _, _| true).await,
            Mode::Stale => self.stale(asked, request).await,
            Mode::Slow => {
                self.count();
                tokio::time::sleep(DELAY).await;
                self.honest(request).await
            }
            Mode::DropAfterAck => self.acknowledged(asked, request).await,
            Mode::GarbageHttp => {
                self.count();
                Response::new(self.garbage())
            }
            Mode::Replay => self.replayed(request).await,
            Mode::Equivocate => self.honest(request).await,
            Mode::LieAboutVerified => self.misreported(request).await,
            Mode::Oversize => {
                let honest = self.honest(request).await;
                self.count();
                let announced = (self.below(2) == 0).then_some(ANNOUNCED);
                let body = Endless { first: honest.body().clone(), left: ANNOUNCED, announced };
                return with_body(&honest, Body::new(body));
            }
        })
    }

    /// The honest answer with each fragment in it changed.
    async fn changed(
        &self,
        asked: &Asked,
        request: Request<Bytes>,
        change: impl Fn(&Bytes) -> Bytes,
    ) -> Response<Bytes> {
        let answer = self.honest(request).await;
        let body = match asked {
            Asked::Get { .. } if answer.status() == 200 => {
                split_fragment_body(answer.body().clone()).ok().map(|(fpcc, fragment)| {
                    Bytes::from([&fragment_prefix(&fpcc)[..], &change(&fragment)].concat())
                })
            }
            Asked::Batch { operations, .. } => {
                changed_answers(operations, answer.body(), |operation, answer| {
                    if matches!(operation, Operation::Get(_)) && answer.status == 200 {
                        answer.payload = change(&answer.payload);
                    }
                })
            }
            _ => None,
        };
        let Some(body) = body.filter(|body| body != answer.body()) else { return answer };
        self.count();
        with_body(&answer, body)
    }

    /// Versions that nobody put. The truth where the answer is not about versions.
    async fn misreported(&self, request: Request<Bytes>) -> Response<Bytes> {
        let answer = self.honest(request).await;
        let invented = |real: Option<VerifiedVersion>| VerifiedVersion {
            key: real.as_ref().map_or_else(|| "invented".into(), |real| real.key.clone()),
            version: real.map_or(1, |real| real.version) + self.below(3) as u64,
            fpcc: HashId::Blake3.hash(&self.garbage()).to_string(),
            object_length: Some(4096),
        };
        let latest = serde_json::from_slice::<LatestVersion>(answer.body()).ok();
        let list = serde_json::from_slice::<VersionList>(answer.body()).ok();
        let body = match (latest, list) {
            (Some(latest), _) => serde_json::to_vec(&LatestVersion {
                highest: u64::MAX / 2,
                verified: Some(invented(latest.verified)),
            }),
            (None, Some(list)) => {
                let objects = list.objects.into_iter().map(Some).chain([None]).map(invented).collect();
                serde_json::to_vec(&VersionList { objects, ..list })
            }
            (None, None) => return answer,
        };
        self.count();
        with_body(&answer, body.expect("versions are strings and numbers").into())
    }

    fn flipped(&self, fragment: &Bytes) -> Bytes {
        let mut fragment = fragment.to_vec();
        if !fragment.is_empty() {
            let bit = self.below(8 * fragment.len());
            fragment[bit / 8] ^= 1 << (bit % 8);
        }
        fragment.into()
    }

    fn resized(&self, fragment: &Bytes) -> Bytes {
        let by = 1 + self.below(64);
        let mut fragment = fragment.to_vec();
        match self.below(2) {
            0 => fragment.truncate(fragment.len().saturating_sub(by)),
            _ => fragment.resize(fragment.len() + by, 0),
        }
        fragment.into()
    }

    fn garbage(&self) -> Bytes {
        let mut bytes = vec![0; 256];
        self.dice.lock().fill_bytes(&mut bytes);
        bytes.into()
    }

    /// The honest answer to another question. The truth where there is no other object.
    async fn swapped(&self, asked: &Asked, request: Request<Bytes>) -> Response<Bytes> {
        match asked {
            Asked::Get { space, name } => {
                let Some(other) = self.other(space, name).await else { return self.honest(request).await };
                let path =
                    format!("{space}/objects/{}/{}/fragment/{}", other.key, other.version, other.index);
                let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
                let asking = Request::get(path + &query).body(Bytes::new()).expect("a path of plain names");
                let answer = self.honest(asking).await;
                // Whose fragment has no such range does not do.
                if answer.status() != 200 {
                    return self.honest(request).await;
                }
                self.count();
                answer
            }
            Asked::Batch { space, operations } => {
                let mut swapped = operations.clone();
                for operation in &mut swapped {
                    if let Operation::Get(name) = operation
                        && let Some(other) = self.other(space, name).await
                    {
                        *name = other;
                    }
                }
                if swapped != *operations {
                    self.count();
                }
                let (parts, _) = request.into_parts();
                self.honest(Request::from_parts(parts, encode_batch(&swapped).concat().into())).await
            }
            _ => self.honest(request).await,
        }
    }

    /// A fragment of another object that is here.
    async fn other(&self, space: &str, name: &FragmentName) -> Option<FragmentName> {
        let asking = Request::get(format!("{space}/objects")).body(Bytes::new()).expect("a path");
        let listing: Listing = serde_json::from_slice(self.honest(asking).await.body()).ok()?;
        let mut others = listing.objects;
        // An entry of the journal for one, an object's fragment for another: at least the kind is right.
        let kind = |key: &str| key.starts_with(common::wire::JOURNAL_PREFIX);
        others.retain(|object| object.key != name.key && kind(&object.key) == kind(&name.key));
        if others.is_empty() {
            return None;
        }
        let other = others.swap_remove(self.below(others.len()));
        let index = *other.indexes.first()?;
        Some(FragmentName { key: other.key, version: other.version, index })
    }

    /// The honest answer without the objects that `hides` names by space, key and version.
    async fn hidden(
        &self,
        asked: &Asked,
        request: Request<Bytes>,
        hides: impl Fn(&str, &str, u64) -> bool,
    ) -> Response<Bytes> {
        let answer = self.honest(request).await;
        let status = || serde_json::from_slice::<ObjectStatus>(answer.body()).ok();
        let body = match asked {
            Asked::Get { space, name } if hides(space, &name.key, name.version) => {
                return self.denied().await;
            }
            Asked::Status { space, key, version } if hides(space, key, *version) => {
                return self.denied().await;
            }
            Asked::Latest { space } => match status() {
                Some(newest) if hides(space, &newest.key, newest.version) => return self.denied().await,
                _ => return answer,
            },
            Asked::Listing { space } => {
                listing_without(answer.body(), |object| hides(space, &object.key, object.version))
            }
            Asked::Batch { space, operations } => {
                changed_answers(operations, answer.body(), |operation, said| {
                    if let Operation::Get(name) | Operation::Has(name) = operation
                        && hides(space, &name.key, name.version)
                    {
                        *said = OperationAnswer { status: 404, fpcc: Bytes::new(), payload: Bytes::new() };
                    }
                })
            }
            _ => None,
        };
        let Some(body) = body.filter(|body| body != answer.body()) else { return answer };
        self.count();
        with_body(&answer, body)
    }

    /// The answer as it would have been before.
    async fn stale(&self, asked: &Asked, request: Request<Bytes>) -> Response<Bytes> {
        let uri = request.uri().clone();
        let is_fresh = |space: &str, key: &str, version: u64| {
            self.seen.lock().fresh.contains(&(space.to_owned(), key.to_owned(), version))
        };
        let answer = self.hidden(asked, request, is_fresh).await;
        if !matches!(asked, Asked::Latest { .. }) {
            return answer;
        }
        let mut seen = self.seen.lock();
        let first = seen.latest.get(&uri).cloned();
        if first.is_none() && answer.status() == 200 {
            seen.latest.insert(uri, answer.clone());
        }
        first.unwrap_or(answer)
    }

    /// Remember what was put.
    fn note(&self, asked: &Asked) {
        let mut seen = self.seen.lock();
        if seen.fresh.len() + seen.latest.len() > REMEMBERED {
            *seen = Seen::default();
        }
        let mut put = |space: &str, name: &FragmentName| {
            seen.fresh.insert((space.to_owned(), name.key.clone(), name.version));
        };
        match asked {
            Asked::Put { space, name } => put(space, name),
            Asked::Batch { space, operations } => operations.iter().for_each(|operation| {
                if let Operation::Put { name, .. } = operation {
                    put(space, name);
                }
            }),
            _ => {}
        }
    }

    /// What a node says that has kept everything, without the puts having reached it.
    async fn acknowledged(&self, asked: &Asked, request: Request<Bytes>) -> Response<Bytes> {
        self.count();
        let Asked::Batch { operations, .. } = asked else {
            let in_volume = request.uri().path().starts_with("/volumes/");
            let done = if in_volume { "{\"kept\":true}" } else { "{\"stored\":true}" };
            return self.made_up(StatusCode::OK, Bytes::from_static(done.as_bytes())).await;
        };
        let is_put = |operation: &&Operation| matches!(operation, Operation::Put { .. });
        let others: Vec<Operation> =
            operations.iter().filter(|operation| !is_put(operation)).cloned().collect();
        let (parts, _) = request.into_parts();
        let asking = Request::from_parts(parts, Bytes::from(encode_batch(&others).concat()));
        let answer = self.honest(asking).await;
        let Ok(answers) = decode_answers(answer.body().clone(), others.len()) else { return answer };
        let mut answers = answers.into_iter();
        let kept = || OperationAnswer { status: 200, fpcc: Bytes::new(), payload: Bytes::new() };
        let all = operations.iter().map(|operation| match is_put(&operation) {
            true => kept(),
            false => answers.next().expect("there are as many as were asked for"),
        });
        with_body(&answer, encode_answers(&all.collect::<Vec<_>>()).concat().into())
    }

    /// An answer that was given to something else, if there was one. What is asked for is done.
    async fn replayed(&self, request: Request<Bytes>) -> Response<Bytes> {
        let uri = request.uri().clone();
        let answer = self.honest(request).await;
        let mut seen = self.seen.lock();
        let others: Vec<&Response<Bytes>> =
            seen.recent.iter().filter(|(asked, _)| *asked != uri).map(|(_, said)| said).collect();
        let old = (!others.is_empty()).then(|| others[self.below(others.len())].clone());
        seen.recent.push_back((uri, answer.clone()));
        if seen.recent.len() > RECENT {
            seen.recent.pop_front();
        }
        old.inspect(|_| self.count()).unwrap_or(answer)
    }

    /// The node's metrics, and how often it lied.
    fn with_count(&self, metrics: Response<Bytes>) -> Response<Bytes> {
        let told = self.told.load(Ordering::Relaxed);
        let line = format!("# TYPE shardd_lies_total counter\nshardd_lies_total {told}\n");
        with_body(&metrics, [metrics.body(), line.as_bytes()].concat().into())
    }
}

/// The answers of a batch, each changed with what it answers; `None` if they are none.
fn changed_answers(
    operations: &[Operation],
    answers: &Bytes,
    change: impl Fn(&Operation, &mut OperationAnswer),
) -> Option<Bytes> {
    let mut answers = decode_answers(answers.clone(), operations.len()).ok()?;
    operations.iter().zip(&mut answers).for_each(|(operation, answer)| change(operation, answer));
    Some(encode_answers(&answers).concat().into())
}

fn listing_without(body: &Bytes, hides: impl Fn(&ObjectStatus) -> bool) -> Option<Bytes> {
    let mut listing: Listing = serde_json::from_slice(body).ok()?;
    listing.objects.retain(|object| !hides(object));
    serde_json::to_vec(&listing).ok().map(Bytes::from)
}

/// A body that does not end before somebody gives up.
struct Endless {
    first: Bytes,
    left: u64,
    announced: Option<u64>,
}

impl hyper::body::Body for Endless {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        static MORE: [u8; 64 << 10] = [0; 64 << 10];
        let next = match std::mem::take(&mut self.first) {
            first if first.is_empty() => Bytes::from_static(&MORE),
            first => first,
        };
        self.left = self.left.saturating_sub(next.len() as u64);
        Poll::Ready((self.left > 0).then_some(Ok(Frame::data(next))))
    }

    fn size_hint(&self) -> SizeHint {
        self.announced.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Stand before a node where it listens, and say garbage to whoever asks about fragments, where HTTP is expected. Takes
/// its listener and gives it another one, which is reached through this. Of TLS it understands nothing, and passes it.
///
/// # Errors
/// There is no free port on loopback.
pub async fn without_http(outside: TcpListener, seed: u64) -> io::Result<TcpListener> {
    let inside = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let node = inside.local_addr()?;
    tokio::spawn(async move {
        loop {
            match outside.accept().await {
                Ok((client, _)) => drop(tokio::spawn(relay(client, node, seed))),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    });
    Ok(inside)
}

async fn relay(client: TcpStream, node: SocketAddr, seed: u64) -> io::Result<()> {
    let node = TcpStream::connect(node).await?;
    let (mut requests, mut answers) = client.into_split();
    let (mut said, mut asking) = node.into_split();
    let asked = async {
        let mut bytes = vec![0; 64 << 10];
        loop {
            let length = requests.read(&mut bytes).await?;
            if length == 0 || is_about_fragments(&bytes[..length]) {
                return Ok(length > 0);
            }
            asking.write_all(&bytes[..length]).await?;
        }
    };
    let is_due = tokio::select! {
        is_due = asked => is_due,
        copied = tokio::io::copy(&mut said, &mut answers) => copied.map(|_| false),
    };
    if is_due? {
        let mut garbage = [0; 256];
        StdRng::seed_from_u64(seed).fill_bytes(&mut garbage);
        answers.write_all(&garbage).await?;
    }
    Ok(())
}

/// Whether a request begins here that is about fragments. A client sends none before it has the answer to the last.
fn is_about_fragments(bytes: &[u8]) -> bool {
    let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let is_request = line.starts_with("GET /") || line.starts_with("POST /");
    is_request && (line.contains("/fragment/") || line.contains("/batch"))
}
