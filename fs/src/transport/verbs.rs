//! The verbs as requests and answers of docs/wire.md, apart from how those are carried.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt::Write;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use common::wire::{
    self, BOOT_HEADER, BootId, EPOCH_HEADER, FragmentName, GETS_PROTOCOL, LeaseRequest, Listing, NODE_HEADER,
    NodeId, NodeInfo, Nonce, ObjectStatus, Operation, OperationAnswer, PUTS_PROTOCOL, Refusal, Statement,
    VolumeDescriptor, VolumeEntry, VolumeId, VolumeList, WIRE_VERSION, WRITER_HEADER,
};
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::{Body, Frame, SizeHint};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::gets::Get;
use super::puts::Put;
use super::{Answer, FragmentTransport, NodeAddress, RawFragment, Reply, TransportError, Writer};

/// Dots are encoded too, so that no key reads as `..` in a path.
const KEPT_IN_KEYS: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// Takes a request to a node and brings the whole answer back.
pub trait Carrier: Send + Sync + 'static {
    /// The request's URI is path and query alone. The answer's body is at most `MAX_BODY`, otherwise it is garbage.
    fn carry(
        &self,
        node: &NodeAddress,
        request: Request<Parts>,
    ) -> impl Future<Output = Result<Response<Bytes>, TransportError>> + Send;

    /// Read a fragment, or a slice of it, in a cheaper way than by a request: its fragment body or slice body. None where
    /// there is no such way now.
    fn get(
        &self,
        _node: &NodeAddress,
        _get: &Get<'_>,
    ) -> impl Future<Output = Option<Result<Answer<Bytes>, TransportError>>> + Send {
        std::future::ready(None)
    }

    /// Have a fragment kept in a cheaper way than by a request; none where there is no such way now.
    fn put(
        &self,
        _node: &NodeAddress,
        _put: &Put<'_>,
    ) -> impl Future<Output = Option<Result<Answer<()>, TransportError>>> + Send {
        std::future::ready(None)
    }
}

/// Every verb, over any carrier.
pub struct Wire<C> {
    pub(super) carrier: C,
}

impl<C: Carrier> Wire<C> {
    pub(super) async fn ask(
        &self,
        node: &NodeAddress,
        request: Request<Parts>,
        limit: Duration,
    ) -> Result<Answer<Bytes>, TransportError> {
        let carried = tokio::time::timeout(limit, self.carrier.carry(node, request)).await;
        open_answer(carried.map_err(|_| TransportError::TimedOut(limit))??)
    }

    async fn fragment(
        &self,
        node: &NodeAddress,
        wanted: Get<'_>,
        limit: Duration,
    ) -> Result<Answer<RawFragment>, TransportError> {
        let began = Instant::now();
        let got = tokio::time::timeout(limit, self.carrier.get(node, &wanted)).await;
        if let Some(got) = got.map_err(|_| TransportError::TimedOut(limit))? {
            return got?.read(parse_fragment);
        }
        let mut path = fragment_path(wanted.volume, wanted.name);
        if let Some(Range { start, end }) = wanted.range {
            let length = end.saturating_sub(start);
            write!(path, "?offset={start}&length={length}").expect("a string takes what is written to it");
        }
        let left = limit.saturating_sub(began.elapsed());
        self.ask(node, get(&path), left).await?.read(parse_fragment)
    }
}

impl<C: Carrier> FragmentTransport for Wire<C> {
    fn info<'a>(&'a self, node: &'a NodeAddress, limit: Duration) -> Reply<'a, NodeInfo> {
        Box::pin(async move { parse_info(self.ask(node, get("/info"), limit).await?) })
    }

    fn volumes<'a>(&'a self, node: &'a NodeAddress, limit: Duration) -> Reply<'a, Vec<VolumeEntry>> {
        Box::pin(async move {
            self.ask(node, get("/volumes"), limit)
                .await?
                .read(|body| Ok(from_json::<VolumeList>(&body)?.volumes))
        })
    }

    fn register<'a>(
        &'a self,
        node: &'a NodeAddress,
        descriptor: &'a VolumeDescriptor,
        limit: Duration,
    ) -> Reply<'a, ()> {
        Box::pin(async move {
            let body = serde_json::to_vec(descriptor).expect("a descriptor is plain strings and numbers");
            let path = format!("/volumes/{}", descriptor.volume);
            let request = request(Method::PUT, &path, None, [body.into()]);
            self.ask(node, request, limit).await?.read(|_| Ok(()))
        })
    }

    fn lease<'a>(
        &'a self,
        node: &'a NodeAddress,
        writer: Writer,
        lease: &'a LeaseRequest,
        limit: Duration,
    ) -> Reply<'a, ()> {
        Box::pin(async move {
            let body = serde_json::to_vec(lease).expect("a lease is plain strings and numbers");
            let request = post(&format!("/volumes/{}/lease", writer.volume), writer, [body.into()]);
            self.ask(node, request, limit).await?.read(|_| Ok(()))
        })
    }

    fn put<'a>(
        &'a self,
        node: &'a NodeAddress,
        writer: Writer,
        name: &'a FragmentName,
        fpcc: Bytes,
        fragment: Bytes,
        flush: bool,
        limit: Duration,
    ) -> Reply<'a, ()> {
        Box::pin(async move {
            let began = Instant::now();
            let put = Put { writer, name, fpcc: &fpcc, fragment: &fragment, flush };
            let done = tokio::time::timeout(limit, self.carrier.put(node, &put)).await;
            if let Some(done) = done.map_err(|_| TransportError::TimedOut(limit))? {
                return done;
            }
            let path = fragment_path(writer.volume, name) + flush_query(flush);
            let request = post(&path, writer, [wire::fragment_prefix(&fpcc), fragment]);
            let left = limit.saturating_sub(began.elapsed());
            self.ask(node, request, left).await?.read(|body| parse_kept(&body))
        })
    }

    fn get<'a>(
        &'a self,
        node: &'a NodeAddress,
        volume: VolumeId,
        name: &'a FragmentName,
        limit: Duration,
    ) -> Reply<'a, RawFragment> {
        Box::pin(async move { self.fragment(node, Get { volume, name, range: None }, limit).await })
    }

    fn get_slice<'a>(
        &'a self,
        node: &'a NodeAddress,
        volume: VolumeId,
        name: &'a FragmentName,
        range: Range<u64>,
        limit: Duration,
    ) -> Reply<'a, RawFragment> {
        Box::pin(async move { self.fragment(node, Get { volume, name, range: Some(range) }, limit).await })
    }

    fn statement<'a>(
        &'a self,
        node: &'a NodeAddress,
        volume: VolumeId,
        name: &'a FragmentName,
        nonce: Nonce,
        limit: Duration,
    ) -> Reply<'a, Statement> {
        Box::pin(async move {
            let path = format!("{}/statement?nonce={nonce}", fragment_path(volume, name));
            self.ask(node, get(&path), limit).await?.read(|body| from_json(&body))
        })
    }

    fn batch<'a>(
        &'a self,
        node: &'a NodeAddress,
        writer: Writer,
        operations: &'a [Operation],
        flush: bool,
        limit: Duration,
    ) -> Reply<'a, Vec<OperationAnswer>> {
        Box::pin(async move {
            let path = format!("/volumes/{}/batch{}", writer.volume, flush_query(flush));
            let request = post(&path, writer, wire::encode_batch(operations));
            let answer = self.ask(node, request, limit).await?;
            answer.read(|body| wire::decode_answers(body, operations.len()).map_err(garbage))
        })
    }

    fn flush<'a>(&'a self, node: &'a NodeAddress, writer: Writer, limit: Duration) -> Reply<'a, ()> {
        Box::pin(async move {
            let request = post(&format!("/volumes/{}/flush", writer.volume), writer, []);
            self.ask(node, request, limit).await?.read(|_| Ok(()))
        })
    }

    fn status<'a>(
        &'a self,
        node: &'a NodeAddress,
        volume: VolumeId,
        key: &'a str,
        version: u64,
        limit: Duration,
    ) -> Reply<'a, ObjectStatus> {
        Box::pin(async move {
            let path = format!("/volumes/{volume}/objects/{}/{version}/status", in_path(key));
            self.ask(node, get(&path), limit).await?.read(|body| from_json(&body))
        })
    }

    fn list<'a>(
        &'a self,
        node: &'a NodeAddress,
        volume: VolumeId,
        after: Option<&'a str>,
        page: usize,
        limit: Duration,
    ) -> Reply<'a, Listing> {
        Box::pin(async move {
            let mut path = format!("/volumes/{volume}/objects?limit={page}");
            if let Some(key) = after {
                write!(path, "&after={}", in_path(key)).expect("a string takes what is written to it");
            }
            self.ask(node, get(&path), limit).await?.read(|body| from_json(&body))
        })
    }
}

pub(super) fn get(path: &str) -> Request<Parts> {
    request(Method::GET, path, None, [])
}

fn post(path: &str, writer: Writer, parts: impl IntoIterator<Item = Bytes>) -> Request<Parts> {
    request(Method::POST, path, Some(writer), parts)
}

fn request(
    method: Method,
    path: &str,
    writer: Option<Writer>,
    parts: impl IntoIterator<Item = Bytes>,
) -> Request<Parts> {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(Writer { epoch, shown, .. }) = writer {
        request = request.header(EPOCH_HEADER, epoch);
        if let Some(signature) = shown {
            request = request.header(WRITER_HEADER, signature.to_string());
        }
    }
    request.body(Parts::new(parts)).expect("paths are made of hex, decimals and percent-encoded keys")
}

/// What asks for a connection for a writer's puts.
pub(super) fn puts_wanted(writer: Writer) -> Request<Parts> {
    upgrade(post(&format!("/volumes/{}/puts", writer.volume), writer, []), PUTS_PROTOCOL)
}

/// What asks for a connection for gets of a volume.
pub(super) fn gets_wanted(volume: VolumeId) -> Request<Parts> {
    upgrade(get(&format!("/volumes/{volume}/gets")), GETS_PROTOCOL)
}

fn upgrade(mut request: Request<Parts>, protocol: &'static str) -> Request<Parts> {
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    request.headers_mut().insert(UPGRADE, HeaderValue::from_static(protocol));
    request
}

fn fragment_path(volume: VolumeId, name: &FragmentName) -> String {
    format!("/volumes/{volume}/objects/{}/{}/fragment/{}", in_path(&name.key), name.version, name.index)
}

pub(super) fn in_path(key: &str) -> impl std::fmt::Display {
    utf8_percent_encode(key, KEPT_IN_KEYS)
}

fn flush_query(flush: bool) -> &'static str {
    if flush { "?flush=1" } else { "" }
}

impl<T> Answer<T> {
    pub(super) fn read<U>(
        self,
        parse: impl FnOnce(T) -> Result<U, TransportError>,
    ) -> Result<Answer<U>, TransportError> {
        Ok(Answer { node: self.node, boot: self.boot, value: parse(self.value)? })
    }
}

/// Who answered, and the body of a good answer; a refusal is an error.
fn open_answer(response: Response<Bytes>) -> Result<Answer<Bytes>, TransportError> {
    let node: NodeId = identity(response.headers(), NODE_HEADER)?;
    let boot: BootId = identity(response.headers(), BOOT_HEADER)?;
    match response.status() {
        StatusCode::OK => Ok(Answer { node, boot, value: response.into_body() }),
        status if status.is_client_error() || status.is_server_error() => {
            let Refusal { error: code, message } = from_json(response.body())?;
            Err(TransportError::Refused { code, message })
        }
        status => Err(TransportError::Garbage(format!("status {}", status.as_u16()))),
    }
}

pub(super) fn identity<T: std::str::FromStr>(headers: &HeaderMap, name: &str) -> Result<T, TransportError> {
    let stated = headers.get(name).ok_or_else(|| garbage(format!("there is no {name} header")))?;
    let parsed = stated.to_str().ok().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| garbage(format!("the {name} header is not hex of its length")))
}

pub(super) fn garbage(what: impl ToString) -> TransportError {
    TransportError::Garbage(what.to_string())
}

pub(super) fn from_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, TransportError> {
    serde_json::from_slice(body).map_err(|error| garbage(format!("the JSON of its answer: {error}")))
}

/// Another version's answer may have other fields, so the version is looked at alone first.
pub(super) fn parse_info(answer: Answer<Bytes>) -> Result<Answer<NodeInfo>, TransportError> {
    #[derive(Deserialize)]
    struct Spoken {
        wire: u32,
    }
    let (node, boot) = (answer.node, answer.boot);
    answer.read(|body| {
        let Spoken { wire } = from_json(&body)?;
        if wire != WIRE_VERSION {
            return Err(garbage(format!("it speaks wire version {wire}, this program {WIRE_VERSION}")));
        }
        let info: NodeInfo = from_json(&body)?;
        if (info.node, info.boot) != (node, boot) {
            return Err(garbage("its headers name another node than its info"));
        }
        Ok(info)
    })
}

fn parse_kept(body: &[u8]) -> Result<(), TransportError> {
    #[derive(Deserialize)]
    struct Kept {
        kept: bool,
    }
    match from_json(body)? {
        Kept { kept: true } => Ok(()),
        Kept { kept: false } => Err(garbage("a fragment neither kept nor refused")),
    }
}

pub(super) fn parse_fragment(body: Bytes) -> Result<RawFragment, TransportError> {
    let (fpcc, fragment) = wire::split_fragment_body(body).map_err(garbage)?;
    Ok(RawFragment { fpcc, fragment })
}

/// A body of several parts, sent one after another without being copied together.
#[derive(Debug)]
pub struct Parts {
    parts: VecDeque<Bytes>,
    remaining_bytes: u64,
}

impl Parts {
    pub(super) fn new(parts: impl IntoIterator<Item = Bytes>) -> Parts {
        let parts: VecDeque<Bytes> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        Parts { remaining_bytes: parts.iter().map(|part| part.len() as u64).sum(), parts }
    }
}

impl Body for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let part = self.parts.pop_front();
        self.remaining_bytes -= part.as_ref().map_or(0, |part| part.len() as u64);
        Poll::Ready(part.map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining_bytes)
    }
}

#[cfg(test)]
mod tests {
    use avidfs_tests::fuzz::fuzz;

    use super::*;
    use crate::transport::in_process::InProcessTransport;
    use crate::transport::scripted::{BOOT, NODE, ScriptedNode, WRITER, fragment_name};
    use common::wire::RefusalCode;

    const LIMIT: Duration = Duration::from_secs(5);
    const VOLUME: &str = "cccccccccccccccccccccccccccccccc";

    fn speak_to(node: &ScriptedNode) -> (InProcessTransport, NodeAddress) {
        (InProcessTransport::new([node.router()]), InProcessTransport::address(0))
    }

    /// Method, path with the volume shortened to V, epoch and body of the only request.
    fn only_request(node: &ScriptedNode) -> (String, String, String) {
        let requests = node.requests();
        assert_eq!(requests.len(), 1);
        let request = &requests[0];
        let line = format!("{} {}", request.method, request.uri.replace(VOLUME, "V"));
        let body = String::from_utf8_lossy(&request.body).into_owned();
        (line, request.epoch.clone().unwrap_or_default(), body)
    }

    fn sent(line: &str, epoch: &str, body: &str) -> (String, String, String) {
        (line.into(), epoch.into(), body.into())
    }

    #[tokio::test]
    async fn put_sends_prefix_and_fragment_under_its_epoch() {
        for (flush, query) in [(false, ""), (true, "?flush=1")] {
            let node = ScriptedNode::saying(r#"{"kept":true}"#);
            let (wire, at) = speak_to(&node);
            let name = fragment_name("a/b..");
            let answer =
                wire.put(&at, WRITER, &name, "FP".into(), "DATA".into(), flush, LIMIT).await.unwrap();
            assert_eq!((answer.node, answer.boot), (NODE, BOOT));
            let line = format!("POST /volumes/V/objects/a%2Fb%2E%2E/1/fragment/2{query}");
            assert_eq!(only_request(&node), sent(&line, "3", "\x02\0\0\0FPDATA"));
        }
    }

    #[tokio::test]
    async fn a_put_neither_kept_nor_refused_is_garbage() {
        for body in [r#"{"kept":false}"#, r#"{"stored":true}"#, ""] {
            let (wire, at) = speak_to(&ScriptedNode::saying(body));
            let name = fragment_name("a");
            let put = wire.put(&at, WRITER, &name, Bytes::new(), Bytes::new(), false, LIMIT).await;
            assert!(matches!(put, Err(TransportError::Garbage(_))), "{body}");
        }
    }

    #[tokio::test]
    async fn get_and_get_slice_take_fpcc_and_fragment_apart() {
        let node = ScriptedNode::saying("\x02\0\0\0FPDATA");
        let (wire, at) = speak_to(&node);
        let raw = wire.get(&at, WRITER.volume, &fragment_name("k"), LIMIT).await.unwrap().value;
        assert_eq!((&raw.fpcc[..], &raw.fragment[..]), (&b"FP"[..], &b"DATA"[..]));
        assert_eq!(only_request(&node), sent("GET /volumes/V/objects/k/1/fragment/2", "", ""));

        let node = ScriptedNode::saying("\x02\0\0\0FPDATA");
        let (wire, at) = speak_to(&node);
        wire.get_slice(&at, WRITER.volume, &fragment_name("k"), 16..48, LIMIT).await.unwrap();
        let line = "GET /volumes/V/objects/k/1/fragment/2?offset=16&length=32";
        assert_eq!(only_request(&node), sent(line, "", ""));
    }

    #[tokio::test]
    async fn batch_sends_operations_and_reads_as_many_answers() {
        let node = ScriptedNode::keeping();
        let (wire, at) = speak_to(&node);
        let operations = [
            Operation::Put { name: fragment_name("a"), fpcc: "FP".into(), fragment: vec![7; 50_000].into() },
            Operation::Get(fragment_name("a")),
        ];
        let answers = wire.batch(&at, WRITER, &operations, true, LIMIT).await.unwrap().value;
        assert_eq!((answers.len(), answers[1].payload.len()), (2, 50_000));
        let (line, epoch, _) = only_request(&node);
        assert_eq!((line.as_str(), epoch.as_str()), ("POST /volumes/V/batch?flush=1", "3"));
    }

    #[tokio::test]
    async fn the_json_verbs_ask_what_the_wire_says() {
        let node = ScriptedNode::saying(r#"{"objects":[],"next":"z"}"#);
        let (wire, at) = speak_to(&node);
        let listing = wire.list(&at, WRITER.volume, Some("ü&"), 50, LIMIT).await.unwrap().value;
        assert_eq!(listing.next.as_deref(), Some("z"));
        assert_eq!(only_request(&node), sent("GET /volumes/V/objects?limit=50&after=%C3%BC%26", "", ""));

        let node = ScriptedNode::saying("{}");
        let (wire, at) = speak_to(&node);
        wire.flush(&at, WRITER, LIMIT).await.unwrap();
        assert_eq!(only_request(&node), sent("POST /volumes/V/flush", "3", ""));

        let status = r#"{"key":"k","version":1,"fpcc":"00","code":"3+2","fragment_length":1,"object_length":3,"indexes":[0]}"#;
        let node = ScriptedNode::saying(status);
        let (wire, at) = speak_to(&node);
        let status = wire.status(&at, WRITER.volume, "k", 1, LIMIT).await.unwrap().value;
        assert_eq!(status.indexes, [0]);
        assert_eq!(only_request(&node), sent("GET /volumes/V/objects/k/1/status", "", ""));

        let descriptor = VolumeDescriptor {
            volume: WRITER.volume,
            name: "home".into(),
            code: "3+2".into(),
            hash: "blake3".into(),
            object_size: 4 << 20,
            owner: None,
        };
        let entry = serde_json::to_string(&VolumeEntry { descriptor: descriptor.clone(), epoch: 9 }).unwrap();
        let node = ScriptedNode::saying(format!("{{\"volumes\":[{entry}]}}"));
        let (wire, at) = speak_to(&node);
        let volumes = wire.volumes(&at, LIMIT).await.unwrap().value;
        assert_eq!(volumes, [VolumeEntry { descriptor: descriptor.clone(), epoch: 9 }]);
        wire.register(&at, &descriptor, LIMIT).await.unwrap();
        let registered = &node.requests()[1];
        assert_eq!(registered.uri, format!("/volumes/{VOLUME}"));
        assert_eq!(serde_json::from_slice::<VolumeDescriptor>(&registered.body).unwrap(), descriptor);
    }

    #[tokio::test]
    async fn info_of_another_version_is_told_from_garbage_by_its_words() {
        let node = ScriptedNode::saying("");
        node.change(|info| info.wire = 2);
        let (wire, at) = speak_to(&node);
        let error = wire.info(&at, LIMIT).await.unwrap_err().to_string();
        assert_eq!(error, "not an answer of shardd: it speaks wire version 2, this program 1");
    }

    #[tokio::test]
    async fn a_refusal_says_which_and_why() {
        let (wire, at) =
            speak_to(&ScriptedNode::refusing(507, r#"{"error":"no_space","message":"no room for 5 bytes"}"#));
        let refused = wire.flush(&at, WRITER, LIMIT).await.unwrap_err();
        assert!(matches!(refused, TransportError::Refused { code: RefusalCode::NoSpace, .. }));
        assert_eq!(refused.to_string(), "no room for 5 bytes");
    }

    #[tokio::test]
    async fn a_refusal_without_its_words_and_any_other_status_are_garbage() {
        for (status, body) in [(404, "Not Found"), (500, ""), (204, ""), (302, "{}")] {
            let (wire, at) = speak_to(&ScriptedNode::refusing(status, body));
            let answer = wire.flush(&at, WRITER, LIMIT).await;
            assert!(matches!(answer, Err(TransportError::Garbage(_))), "{status}: {answer:?}");
        }
    }

    #[tokio::test]
    async fn whoever_does_not_say_who_it_is_is_not_shardd() {
        let stranger = axum::Router::new().fallback(|| async { "{}" });
        let (wire, at) = (InProcessTransport::new([stranger]), InProcessTransport::address(0));
        let error = wire.flush(&at, WRITER, LIMIT).await.unwrap_err().to_string();
        assert_eq!(error, "not an answer of shardd: there is no avid-node header");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_node_costs_the_limit() {
        let silent = axum::Router::new().fallback(std::future::pending::<()>);
        let (wire, at) = (InProcessTransport::new([silent]), InProcessTransport::address(0));
        let began = Instant::now();
        assert!(matches!(wire.info(&at, LIMIT).await, Err(TransportError::TimedOut(LIMIT))));
        assert_eq!(began.elapsed(), LIMIT);
    }

    #[tokio::test]
    async fn a_stopped_node_is_unreachable_and_another_can_take_its_address() {
        let (wire, at) = speak_to(&ScriptedNode::saying("{}"));
        wire.stop(&at);
        assert!(matches!(wire.flush(&at, WRITER, LIMIT).await, Err(TransportError::Unreachable(_))));
        wire.start(at.clone(), ScriptedNode::saying("{}").router());
        wire.flush(&at, WRITER, LIMIT).await.unwrap();
    }

    /// What nodes say in JSON, and what they are told in it.
    #[derive(PartialEq, Debug)]
    enum Said {
        Info(NodeInfo),
        Volumes(VolumeList),
        Status(ObjectStatus),
        Listing(Listing),
        Refusal(Refusal),
        Register(VolumeDescriptor),
        Lease(LeaseRequest),
    }

    impl Said {
        fn parse(body: &[u8]) -> Option<Said> {
            let info = || from_json(body).ok().map(Said::Info);
            let status = || from_json(body).ok().map(Said::Status);
            let register = || from_json(body).ok().map(Said::Register);
            let volumes = || from_json(body).ok().map(Said::Volumes);
            let listing = || from_json(body).ok().map(Said::Listing);
            let refusal = || from_json(body).ok().map(Said::Refusal);
            let lease = || from_json(body).ok().map(Said::Lease);
            info()
                .or_else(status)
                .or_else(register)
                .or_else(volumes)
                .or_else(listing)
                .or_else(refusal)
                .or_else(lease)
        }

        fn to_json(&self) -> Vec<u8> {
            let json = match self {
                Said::Info(said) => serde_json::to_vec(said),
                Said::Volumes(said) => serde_json::to_vec(said),
                Said::Status(said) => serde_json::to_vec(said),
                Said::Listing(said) => serde_json::to_vec(said),
                Said::Refusal(said) => serde_json::to_vec(said),
                Said::Register(said) => serde_json::to_vec(said),
                Said::Lease(said) => serde_json::to_vec(said),
            };
            json.unwrap()
        }
    }

    #[test]
    fn whatever_the_bytes_an_answer_is_garbage_or_comes_back() {
        let status = ObjectStatus {
            key: "00000001-0000000000000002".into(),
            version: 1,
            fpcc: "00".repeat(32),
            code: "3+2".into(),
            fragment_length: 100,
            object_length: 300,
            indexes: vec![0, 4],
        };
        let descriptor = VolumeDescriptor {
            volume: VolumeId([0xcc; 16]),
            name: "files".into(),
            code: "3+2".into(),
            hash: "blake3".into(),
            object_size: 4 << 20,
            owner: None,
        };
        let info = NodeInfo {
            wire: WIRE_VERSION,
            node: NODE,
            boot: BOOT,
            zone: Some("a \"zone\"".into()),
            capacity_bytes: 1,
            used_bytes: u64::MAX,
            available_bytes: 0,
            fragments: 7,
            version: "0.1.0".into(),
            key: None,
        };
        let lease = LeaseRequest {
            epoch: 7,
            mount: wire::MountId([1; 16]),
            host: "h".into(),
            lease_ms: 5,
            take_over: true,
        };
        let listing = Listing { objects: vec![status.clone(), status.clone()], next: Some("k".into()) };
        let entry = VolumeEntry { descriptor: descriptor.clone(), epoch: 3 };
        let valid = [
            Said::Info(info),
            Said::Status(status),
            Said::Listing(listing),
            Said::Volumes(VolumeList { volumes: vec![entry] }),
            Said::Register(descriptor),
            Said::Lease(lease),
            Said::Refusal(Refusal { error: RefusalCode::NoSpace, message: "full".into() }),
        ];
        let valid = valid.map(|said| said.to_json());
        // Seven readings, each of which keeps some of it before it knows that it is another one's.
        let most = |length| 256 * length + 16_384;
        fuzz("json-of-the-wire", &valid, most, Said::parse, |said, _| {
            assert_eq!(Said::parse(&said.to_json()), Some(said));
        });
    }
}
