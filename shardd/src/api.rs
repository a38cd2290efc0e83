//! The node's HTTP interface, as docs/wire.md has it. The only place that knows axum, with `intake`, `server` and `evil`.

mod agreed;
mod gets;
mod puts;

use std::ops::Range;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequestParts, MatchedPath, Path, Query, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{delete, get, post, put};
use bytes::Bytes;
use common::wire::{
    BOOT_HEADER, BootId, EPOCH_HEADER, FragmentName, LeaseRequest, MAX_PAGE, NODE_HEADER, NodeInfo, NodeKey,
    Nonce, OwnerId, Refusal, RefusalCode, Signature, Statement, VolumeDescriptor, VolumeId, WIRE_VERSION,
    WRITER_HEADER, WireError, holding_statement, split_fragment_body,
};
use credentials::Token;
use ed25519_dalek::Signer;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, UPGRADE, WWW_AUTHENTICATE,
};
use http::request::Parts;
use http::{Method, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;

use crate::agreement::Agreement;
use crate::batch::{self, Batch};
use crate::blocking::{self, INLINE_BYTES};
use crate::error::StoreError;
use crate::intake::{Intake, Limits};
use crate::metrics::{Metrics, Operation};
use crate::server::{OfNode, Place};
use crate::store::{Author, Space, Store};

/// Says that the node runs, and nothing else.
const HEALTH: &str = "/healthz";

/// A node as a value, for everyone who can reach it.
pub fn app(store: Arc<Store>, limits: Limits) -> Router {
    app_for(store, limits, None, None)
}

/// The same for those alone who have the pool's token, if there is one; whether it is well everyone may ask. With
/// `agreement`, objects of the object store are those that the nodes agree on.
pub fn app_for(
    store: Arc<Store>,
    limits: Limits,
    token: Option<Token>,
    agreement: Option<Arc<Agreement>>,
) -> Router {
    let intake = Intake::new(limits, store.buffers().clone());
    let key = NodeKey(store.signing_key().verifying_key().to_bytes());
    let node = Arc::new(Node { store, intake, metrics: Metrics::default(), token, agreement, key });
    Router::new()
        .merge(objects())
        .nest("/volumes/{volume}", objects())
        .route("/volumes", get(volumes))
        .route("/volumes/{volume}", put(register))
        .route("/volumes/{volume}/lease", post(lease))
        .route("/volumes/{volume}/puts", post(puts::puts))
        .route("/volumes/{volume}/gets", get(gets::gets))
        .route("/info", get(info))
        .route("/members", get(agreed::members))
        .route("/words", post(agreed::words))
        .route("/words/verified", get(agreed::verified))
        .route(HEALTH, get(async || "ok\n"))
        .route("/metrics", get(metrics))
        .fallback(async || Refused::new(RefusalCode::NotFound, "there is nothing of that name"))
        .method_not_allowed_fallback(async || {
            Refused::new(RefusalCode::BadRequest, "that cannot be done with this")
        })
        .layer(from_fn_with_state(node.clone(), around))
        .with_state(node)
}

/// The same verbs for the object store and for each volume.
fn objects() -> Router<Arc<Node>> {
    Router::new()
        .route("/objects", get(list))
        .route("/objects/{key}/latest", get(latest))
        .route("/objects/{key}/{version}", delete(remove))
        .route("/objects/{key}/{version}/status", get(status))
        .route("/objects/{key}/{version}/fragment/{index}", get(fetch).post(keep))
        .route("/objects/{key}/{version}/fragment/{index}/statement", get(state))
        .route("/batch", post(batch))
        .route("/flush", post(flush))
}

struct Node {
    store: Arc<Store>,
    intake: Intake,
    metrics: Metrics,
    token: Option<Token>,
    agreement: Option<Arc<Agreement>>,
    key: NodeKey,
}

/// A request that is answered with a refusal.
#[derive(Debug)]
pub struct Refused(Refusal);

impl Refused {
    /// With a sentence for people.
    pub fn new(error: RefusalCode, message: impl Into<String>) -> Refused {
        Refused(Refusal { error, message: message.into() })
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Refused {
        if error.code() == RefusalCode::Io {
            tracing::error!(%error, "disk");
        }
        Refused::new(error.code(), error.to_string())
    }
}

impl From<WireError> for Refused {
    fn from(error: WireError) -> Refused {
        Refused::new(RefusalCode::BadRequest, error.to_string())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.error.status()).expect("a status of HTTP");
        let mut response = (status, Json(&self.0)).into_response();
        response.extensions_mut().insert(self.0.error);
        response
    }
}

type Answer = Result<Response, Refused>;

/// The names in a path.
#[derive(Deserialize)]
struct Names {
    volume: Option<VolumeId>,
    #[serde(default)]
    key: String,
    #[serde(default)]
    version: u64,
    #[serde(default)]
    index: u8,
}

impl Names {
    fn space(&self) -> Space {
        self.volume.map_or(Space::ObjectStore, Space::Volume)
    }

    fn author(&self, store: &Store, headers: &HeaderMap) -> Result<Author, Refused> {
        let Some(volume) = self.volume else { return Ok(Author::Client) };
        let epoch = headers.get(EPOCH_HEADER).and_then(|epoch| epoch.to_str().ok()?.parse().ok());
        let missing =
            || Refused::new(RefusalCode::BadRequest, format!("{EPOCH_HEADER} must be the writer's epoch"));
        let epoch = epoch.ok_or_else(missing)?;
        store.authorize(volume, epoch, proof(headers)?)?;
        Ok(Author::Writer { volume, epoch })
    }

    fn fragment(self) -> FragmentName {
        FragmentName { key: self.key, version: self.version, index: self.index }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Names {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Names, Refused> {
        let names = Path::<Names>::from_request_parts(parts, state).await;
        names.map(|Path(names)| names).map_err(|error| bad_request(&error.body_text()))
    }
}

/// What shows that the volume's key lets the request's sender write.
fn proof(headers: &HeaderMap) -> Result<Option<Signature>, Refused> {
    let parsed = headers.get(WRITER_HEADER).map(|value| value.to_str().ok()?.parse().ok());
    match parsed {
        Some(None) => Err(bad_request(&format!("{WRITER_HEADER} is a signature"))),
        shown => Ok(shown.flatten()),
    }
}

/// What may follow the question mark.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    flush: Option<u8>,
    index: Option<u8>,
    after: Option<String>,
    limit: Option<usize>,
    offset: Option<u64>,
    length: Option<u64>,
    nonce: Option<Nonce>,
    owner: Option<OwnerId>,
    prefix: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Options {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Options, Refused> {
        let options = Query::<Options>::from_request_parts(parts, state).await;
        options.map(|Query(options)| options).map_err(|error| bad_request(&error.body_text()))
    }
}

/// Make something else of a request's connection: `serve` has it once it is upgraded, and with it its place.
fn upgrade<F: Future<Output = ()> + Send>(
    mut request: Request,
    protocol: &'static str,
    serve: impl FnOnce(TokioIo<Upgraded>) -> F + Send + 'static,
) -> Answer {
    let is_asked_for = is_upgrade_to(request.headers(), protocol);
    let place = request.extensions_mut().remove::<Arc<Place>>();
    let upgrade = request.extensions_mut().remove::<OnUpgrade>().filter(|_| is_asked_for);
    let why = || bad_request(&format!("this takes a connection that is upgraded to {protocol}"));
    let upgrade = upgrade.ok_or_else(why)?;
    tokio::spawn(async move {
        let _place = place;
        match upgrade.await {
            Ok(stream) => serve(TokioIo::new(stream)).await,
            Err(error) => tracing::debug!(%error, protocol, "a connection was not upgraded"),
        }
    });
    let headers = [(CONNECTION, "upgrade"), (UPGRADE, protocol)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

/// Whether a connection is to be upgraded to this. A proxy that passes on one of the two headers alone would not carry it.
fn is_upgrade_to(headers: &HeaderMap, protocol: &str) -> bool {
    let is_upgrade = |options: &HeaderValue| {
        let options = options.to_str().unwrap_or_default().split(',');
        options.into_iter().any(|option| option.trim().eq_ignore_ascii_case("upgrade"))
    };
    headers.get(UPGRADE).is_some_and(|asked| asked == protocol)
        && headers.get_all(CONNECTION).iter().any(is_upgrade)
}

fn bad_request(why: &str) -> Refused {
    Refused::new(RefusalCode::BadRequest, why)
}

/// A fragment that is asked for, as fragment body, or a slice of it, as slice body.
struct Wanted {
    space: Space,
    name: FragmentName,
    range: Option<Range<u64>>,
}

impl Wanted {
    /// Of the body, in bytes.
    fn length(&self, store: &Store) -> Result<usize, StoreError> {
        match self.range.clone() {
            Some(range) => store.slice_length(self.space, &self.name, range),
            // That it is not there, reading it says.
            None => Ok(store.body_length(self.space, &self.name).unwrap_or(0)),
        }
    }

    fn read(&self, store: &Store) -> Result<Bytes, StoreError> {
        let stored = match self.range.clone() {
            Some(range) => store.slice(self.space, &self.name, range),
            None => store.get(self.space, &self.name),
        };
        Ok(stored?.body)
    }
}

impl Node {
    /// How the node agrees on what these names are of; none for what it need not agree on.
    fn agreement_on(&self, names: &Names) -> Option<&Arc<Agreement>> {
        self.agreement.as_ref().filter(|_| names.volume.is_none())
    }

    /// Do disk and CPU work, off the event loop if there is much of it.
    async fn work<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&Store) -> T + Send + 'static,
    ) -> T {
        let store = self.store.clone();
        blocking::run_if_much(bytes, move || work(&store)).await
    }

    /// The same for what may wait for the disk however small it is.
    async fn apart<T: Send + 'static>(&self, work: impl FnOnce(&Store) -> T + Send + 'static) -> T {
        let store = self.store.clone();
        blocking::run(move || work(&store)).await
    }

    /// Read, off the event loop if it is much.
    async fn read(&self, wanted: Wanted) -> Result<Bytes, Refused> {
        let (length, share) = self.room_for(&wanted).await?;
        Ok(Intake::hold(self.work(length, move |store| wanted.read(store)).await?, share))
    }

    /// The same for a task that does nothing else meanwhile.
    async fn read_here(&self, wanted: Wanted) -> Result<Bytes, Refused> {
        let (length, share) = self.room_for(&wanted).await?;
        Ok(Intake::hold(blocking::run_here(length, || wanted.read(&self.store))?, share))
    }

    /// How many bytes it will be, and their share of the memory.
    async fn room_for(&self, wanted: &Wanted) -> Result<(usize, OwnedSemaphorePermit), Refused> {
        let length = wanted.length(&self.store)?;
        Ok((length, self.intake.share(length).await?))
    }

    /// Answer with a list that has at most so many bytes, made off the event loop if it is much.
    async fn list<T: Serialize>(
        &self,
        length: usize,
        list: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Answer {
        let share = self.intake.share(length).await?;
        let listed =
            move |store: &Store| Ok(serde_json::to_vec(&list(store)?).expect("texts and numbers are JSON"));
        let listed: Result<Vec<u8>, StoreError> = self.work(length, listed).await;
        let body = Intake::hold(listed?.into(), share);
        Ok(([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], Body::from(body)).into_response())
    }

    /// Flush what was changed under `boot`, if that is wanted.
    async fn flush_if(&self, options: &Options, boot: BootId) -> Result<(), Refused> {
        if options.flush == Some(1) {
            self.store.flush_since(boot).await?;
        }
        Ok(())
    }
}

async fn keep(
    State(node): State<Arc<Node>>,
    names: Names,
    options: Options,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    if let Some(agreement) = node.agreement_on(&names) {
        return agreed::keep(&node, agreement, &names, &headers, body).await;
    }
    let author = names.author(&node.store, &headers)?;
    let body = node.intake.receive(body).await?;
    let name = names.fragment();
    let boot = node.store.boot();
    node.work(body.len(), move |store| {
        let (fpcc, fragment) = split_fragment_body(body)?;
        store.put(&author, &name, &fpcc, &fragment).map_err(Refused::from)
    })
    .await?;
    node.flush_if(&options, boot).await?;
    let done = if author == Author::Client { "stored" } else { "kept" };
    Ok(Json(json!({ done: true })).into_response())
}

async fn fetch(State(node): State<Arc<Node>>, names: Names, options: Options) -> Answer {
    let range = match (options.offset, options.length) {
        (None, None) => None,
        (Some(offset), Some(length)) => Some(offset..offset.saturating_add(length)),
        _ => return Err(bad_request("a slice has both offset and length")),
    };
    let wanted = Wanted { space: names.space(), name: names.fragment(), range };
    let body = node.read(wanted).await?;
    Ok(bytes_answer(Body::from(body)))
}

fn bytes_answer(body: Body) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))], body).into_response()
}

async fn status(State(node): State<Arc<Node>>, names: Names) -> Answer {
    Ok(Json(node.store.status(names.space(), &names.key, names.version)?).into_response())
}

/// Look at a fragment, and sign for it.
async fn state(State(node): State<Arc<Node>>, names: Names, options: Options) -> Answer {
    let nonce = options.nonce.ok_or_else(|| bad_request("a statement is made for a nonce"))?;
    let (space, volume, name) = (names.space(), names.volume, names.fragment());
    let length = node.store.body_length(space, &name).unwrap_or(0);
    let _share = node.intake.share(length).await?;
    let audited = name.clone();
    let digest = node.apart(move |store| store.audit(space, &audited)).await?;
    let text = holding_statement(node.store.node(), nonce, volume, &name, digest.as_bytes());
    let signature = Signature(node.store.signing_key().sign(&text).to_bytes());
    Ok(Json(Statement { fpcc: digest.to_string(), signature }).into_response())
}

async fn latest(State(node): State<Arc<Node>>, names: Names) -> Answer {
    if let Some(agreement) = node.agreement_on(&names) {
        return agreed::latest(agreement, &names);
    }
    Ok(Json(node.store.latest(names.space(), &names.key)?).into_response())
}

async fn remove(State(node): State<Arc<Node>>, names: Names, options: Options, headers: HeaderMap) -> Answer {
    node.agreement_on(&names).map_or(Ok(()), |_| Err(agreed::by_agreement_alone()))?;
    let author = names.author(&node.store, &headers)?;
    let index = options.index;
    let delete = move |store: &Store| {
        let deleted = store.delete(&author, &names.key, names.version, index);
        store.give_back();
        deleted
    };
    let boot = node.store.boot();
    let deleted = node.apart(delete).await?;
    node.flush_if(&options, boot).await?;
    Ok(Json(json!({ "deleted": deleted })).into_response())
}

async fn list(State(node): State<Arc<Node>>, names: Names, options: Options) -> Answer {
    let limit = options.limit.unwrap_or(MAX_PAGE);
    if limit == 0 {
        return Err(bad_request("a page has at least one key"));
    }
    if let (Some(agreement), Some(owner)) = (node.agreement_on(&names), options.owner) {
        return agreed::list(&node, agreement.clone(), owner, options, limit).await;
    }
    let (space, after) = (names.space(), options.after.unwrap_or_default());
    let length = node.store.list_length(space, &after, limit);
    node.list(length, move |store| store.list(space, &after, limit)).await
}

async fn batch(
    State(node): State<Arc<Node>>,
    names: Names,
    options: Options,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let body = node.intake.receive(body).await?;
    let received = body.len();
    let batch = Batch::decode(body)?;
    let author = if batch.changes() { Some(names.author(&node.store, &headers)?) } else { None };
    if author.is_some() && node.agreement_on(&names).is_some() {
        return Err(agreed::by_agreement_alone());
    }
    let space = names.space();
    node.store.check_space(space)?;
    let answer_length = batch.answer_length(&node.store, space);
    let share = node.intake.share(answer_length).await?;
    let boot = node.store.boot();
    let room = share.num_permits();
    let parts = match received.max(answer_length) < INLINE_BYTES && batch.is_quick() {
        true => batch.carry_out(&node.store, space, author, room),
        false => node.apart(move |store| batch.carry_out(store, space, author, room)).await,
    };
    node.flush_if(&options, boot).await?;
    Ok(bytes_answer(Body::new(batch::PartsBody::new(parts, share))))
}

async fn flush(State(node): State<Arc<Node>>, names: Names) -> Answer {
    let boot = node.store.boot();
    node.store.check_space(names.space())?;
    node.store.flush_since(boot).await?;
    Ok(Json(json!({})).into_response())
}

async fn register(State(node): State<Arc<Node>>, names: Names, body: Body) -> Answer {
    let body: Bytes = node.intake.receive(body).await?;
    let descriptor: VolumeDescriptor =
        serde_json::from_slice(&body).map_err(|error| bad_request(&error.to_string()))?;
    if Some(descriptor.volume) != names.volume {
        return Err(bad_request("path and descriptor name different volumes"));
    }
    node.apart(move |store| store.register(descriptor)).await?;
    Ok(Json(json!({})).into_response())
}

async fn lease(State(node): State<Arc<Node>>, names: Names, headers: HeaderMap, body: Body) -> Answer {
    let body: Bytes = node.intake.receive(body).await?;
    let request: LeaseRequest =
        serde_json::from_slice(&body).map_err(|error| bad_request(&error.to_string()))?;
    let volume = names.volume.ok_or_else(|| bad_request("a lease is on a volume"))?;
    node.store.authorize(volume, request.epoch, proof(&headers)?)?;
    node.apart(move |store| store.lease(volume, &request)).await?;
    Ok(Json(json!({})).into_response())
}

async fn volumes(State(node): State<Arc<Node>>) -> Answer {
    node.list(node.store.volumes_length(), |store| Ok(store.volumes())).await
}

async fn info(State(node): State<Arc<Node>>) -> Response {
    let usage = node.store.usage();
    let info = NodeInfo {
        wire: WIRE_VERSION,
        node: node.store.node(),
        boot: node.store.boot(),
        zone: node.store.zone().map(str::to_owned),
        capacity_bytes: usage.capacity_bytes,
        used_bytes: usage.used_bytes,
        available_bytes: usage.available_bytes,
        fragments: usage.fragments,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        key: Some(node.key),
    };
    Json(info).into_response()
}

async fn metrics(State(node): State<Arc<Node>>) -> Response {
    let text = node.metrics.text(&node.store);
    ([(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4"))], text).into_response()
}

/// What happens to every request: it is let in or not, counted, and its answer says who answers.
async fn around(
    State(node): State<Arc<Node>>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let operation = operation(request.method(), path.as_ref().map(MatchedPath::as_str));
    let timed = node.metrics.begin(operation, body_bytes(request.body()));
    let is_beyond_role = request.extensions().get() == Some(&OfNode)
        && !is_between_nodes(request.method(), path.as_ref().map(MatchedPath::as_str));
    // That of before: what is lost meanwhile was then acknowledged under one that is over.
    let boot = node.store.boot();
    let mut response = match node.lets_in(&request) {
        true if is_beyond_role => beyond_role(),
        true => next.run(request).await,
        false => stranger(),
    };
    let refused = response.extensions_mut().remove::<RefusalCode>();
    node.metrics.end(timed, body_bytes(response.body()), refused);
    let headers = response.headers_mut();
    headers.insert(NODE_HEADER, id_header(&node.store.node()));
    headers.insert(BOOT_HEADER, id_header(&boot));
    response
}

impl Node {
    fn lets_in(&self, request: &Request) -> bool {
        let Some(token) = &self.token else { return true };
        let shown = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes);
        request.uri().path() == HEALTH || shown.is_some_and(|shown| token.admits(shown))
    }
}

fn stranger() -> Response {
    let why = "the request does not carry the pool's token: give --token-file with the file this node has";
    let mut response = Refused::new(RefusalCode::Unauthorized, why).into_response();
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// What nodes ask each other for, and no more: one that was broken into is not to empty the others.
fn is_between_nodes(method: &Method, path: Option<&str>) -> bool {
    let path = path.unwrap_or_default();
    let reads = ["/objects/{key}/{version}/fragment/{index}", "/words/verified", HEALTH];
    (*method == Method::GET && reads.contains(&path)) || (*method == Method::POST && path == "/words")
}

fn beyond_role() -> Response {
    let why = "the certificate is a node's, good for words and fragments of the object store alone: make one for \
               clients with avidfs pki client";
    Refused::new(RefusalCode::Unauthorized, why).into_response()
}

fn body_bytes(body: &Body) -> u64 {
    axum::body::HttpBody::size_hint(body).lower()
}

fn id_header(id: &impl std::fmt::Display) -> HeaderValue {
    HeaderValue::from_str(&id.to_string()).expect("hex digits make a header")
}

fn operation(method: &Method, path: Option<&str>) -> Operation {
    let path = path.unwrap_or_default();
    match (method.as_str(), path.strip_prefix("/volumes/{volume}").unwrap_or(path)) {
        ("POST", "/objects/{key}/{version}/fragment/{index}") => Operation::Put,
        ("GET", "/objects/{key}/{version}/fragment/{index}") => Operation::Get,
        ("DELETE", _) => Operation::Delete,
        (_, "/batch") => Operation::Batch,
        (_, "/flush") => Operation::Flush,
        (_, "/objects") => Operation::List,
        _ => Operation::Other,
    }
}
