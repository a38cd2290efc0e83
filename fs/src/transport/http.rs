//! Nodes at `http://host:port` and `https://host:port`. The only file that knows the HTTP client.

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, Cursor};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::wire::{MAX_BODY, MAX_SMALL_FRAGMENT, NODE_HEADER, NodeId, VolumeId};
use credentials::{BoundTo, ClientConfig, Ending, Securing, Token};
use http::header::{AUTHORIZATION, HeaderValue};
use http::uri::{Authority, Scheme};
use http::{Extensions, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::upgrade::Upgraded;
use hyper_util::client::legacy::{self, Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::RwLock;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::gets::Get;
use super::lines::{self, Duplex, Line, Lines};
use super::puts::{self, Connection, Halves, Opening, Put, Way};
use super::verbs::{Carrier, Parts, Wire, gets_wanted, identity, puts_wanted};
use super::{Answer, NodeAddress, TransportError, Writer};
use crate::buffers::Buffers;

/// An idle connection is closed before the node's own patience ends, so that no request meets a closing one.
const IDLE_LIMIT: Duration = Duration::from_secs(10);

/// Until a node has said whether a connection may become something else. What stands between may understand the question
/// less than it.
const OPENING_LIMIT: Duration = Duration::from_secs(1);

/// Answers are read in pieces of up to this size: larger ones leave the cache before they are copied
/// (0.27 s of CPU per GB with this, 0.31 s with hyper's own 400 KiB).
const READ_BUFFER: usize = 256 << 10;

/// The bounds of an `HttpTransport`.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// Until a connection stands.
    pub connect_limit: Duration,
    /// Most requests at once per node, each on its connection, and most connections that wait for the next one.
    /// Requests beyond wait for their turn, within their own limit.
    pub connections_per_node: usize,
    /// With it nodes are spoken to over TLS alone, and without it in plain alone.
    pub tls: Option<Arc<ClientConfig>>,
    /// Shown to every node.
    pub token: Option<Token>,
}

impl Default for HttpOptions {
    fn default() -> Self {
        HttpOptions {
            connect_limit: Duration::from_secs(1),
            connections_per_node: 32,
            tls: None,
            token: None,
        }
    }
}

/// Speaks HTTP/1.1 with keep-alive to nodes at `http://host:port`, or at `https://host:port` where it has a certificate.
pub type HttpTransport = Wire<Http>;

impl HttpTransport {
    /// No connection is made before it is needed.
    pub fn new(options: HttpOptions) -> HttpTransport {
        Wire { carrier: Http::new(options) }
    }
}

/// See `HttpTransport`.
pub struct Http {
    client: Speaker,
    /// What every request shows; never logged.
    authorization: Option<HeaderValue>,
    options: HttpOptions,
    peers: RwLock<HashMap<NodeAddress, Arc<Peer>>>,
}

/// One of the two, so that nothing that was to be secret is ever sent in plain.
enum Speaker {
    Plain(Client<HttpConnector, Parts>),
    Secured(Client<Securing, Parts>),
}

/// An address taken apart, and who may speak to it now.
struct Peer {
    scheme: Scheme,
    authority: Authority,
    slots: Semaphore,
    way: Way,
    gets: Lines<VolumeId>,
    puts: Lines<Writer>,
}

impl Http {
    fn new(options: HttpOptions) -> Http {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(options.connect_limit));
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_LIMIT)
            .pool_max_idle_per_host(options.connections_per_node)
            .http1_max_buf_size(READ_BUFFER);
        let client = match options.tls.clone() {
            Some(tls) => Speaker::Secured(builder.build(Securing::new(connector, tls))),
            None => Speaker::Plain(builder.build(connector)),
        };
        let authorization = options.token.as_ref().map(authorization);
        Http { client, authorization, options, peers: RwLock::new(HashMap::new()) }
    }

    fn peer(&self, node: &NodeAddress) -> Result<Arc<Peer>, TransportError> {
        if let Some(peer) = self.peers.read().get(node) {
            return Ok(peer.clone());
        }
        let (scheme, authority) = taken_apart(node)?;
        self.check_scheme(&scheme)?;
        let slots = Semaphore::new(self.options.connections_per_node);
        let peer = Arc::new(Peer {
            scheme,
            authority,
            slots,
            way: Way::default(),
            gets: Lines::default(),
            puts: Lines::default(),
        });
        Ok(self.peers.write().entry(node.clone()).or_insert(peer).clone())
    }

    fn check_scheme(&self, scheme: &Scheme) -> Result<(), TransportError> {
        let why = match (&self.client, *scheme == Scheme::HTTPS) {
            (Speaker::Plain(_), false) | (Speaker::Secured(_), true) => return Ok(()),
            (Speaker::Plain(_), true) => "give --tls-cert, --tls-key and --tls-ca to speak https",
            (Speaker::Secured(_), false) => "with --tls-ca only https is spoken: name it by https://",
        };
        Err(TransportError::Unreachable(why.into()))
    }

    async fn exchange(
        &self,
        peer: &Peer,
        request: Request<Parts>,
    ) -> Result<Response<Bytes>, TransportError> {
        let _slot = peer.slots.acquire().await.expect("nobody closes a peer's semaphore");
        let (head, body) = self.begin(peer, request).await?.into_parts();
        Ok(Response::from_parts(head, read_whole(body).await?))
    }

    /// The answer's head, and its body on its way.
    async fn begin(
        &self,
        peer: &Peer,
        mut request: Request<Parts>,
    ) -> Result<Response<Incoming>, TransportError> {
        let mut uri = std::mem::take(request.uri_mut()).into_parts();
        uri.scheme = Some(peer.scheme.clone());
        uri.authority = Some(peer.authority.clone());
        *request.uri_mut() = Uri::from_parts(uri).expect("scheme, authority and path make a URI");
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        let answer = match &self.client {
            Speaker::Plain(client) => client.request(request).await,
            Speaker::Secured(client) => client.request(request).await,
        };
        let answer = answer.map_err(|error| self.explain_client(&error))?;
        check_speaker(&answer)?;
        Ok(answer)
    }

    /// The connection for a writer's puts; none if the node has no such thing.
    async fn open_puts(
        &self,
        peer: &Peer,
        opening: Opening<'_>,
        writer: Writer,
    ) -> Result<Option<Arc<Connection>>, TransportError> {
        match self.upgraded(peer, puts_wanted(writer)).await? {
            Some((node, stream)) => Ok(Some(opening.opened(halves_of(stream), node, writer))),
            None => {
                opening.refused();
                Ok(None)
            }
        }
    }

    /// A connection for exchanges under `key`, made by what `wanted` asks for; none if the node has no such thing.
    async fn line<K: PartialEq>(
        &self,
        peer: &Peer,
        lines: &Lines<K>,
        key: K,
        wanted: impl FnOnce(&K) -> Request<Parts>,
    ) -> Result<Option<Line<K>>, TransportError> {
        match lines.turn(&key) {
            lines::Turn::Use(line) => return Ok(Some(line)),
            lines::Turn::Request => return Ok(None),
            lines::Turn::Open => {}
        }
        match self.upgraded(peer, wanted(&key)).await? {
            Some((node, stream)) => Ok(Some(Line::over(whole_of(stream)?, node, key))),
            None => {
                lines.refused();
                Ok(None)
            }
        }
    }

    async fn put_large(&self, peer: &Peer, put: &Put<'_>) -> Option<Result<Answer<()>, TransportError>> {
        let _slot = peer.slots.acquire().await.expect("nobody closes a peer's semaphore");
        let line = self.line(peer, &peer.puts, put.writer, |writer| puts_wanted(*writer)).await;
        let mut line = match line.transpose()? {
            Ok(line) => line,
            Err(error) => return Some(Err(error)),
        };
        let done = line.put(put).await;
        after(&peer.puts, line, done)
    }

    /// The connection that a request asks to make something else of, and the node at its end; none if that says no, or
    /// nothing in time.
    async fn upgraded(
        &self,
        peer: &Peer,
        request: Request<Parts>,
    ) -> Result<Option<(NodeId, Upgraded)>, TransportError> {
        let Ok(answer) = timeout(OPENING_LIMIT, self.begin(peer, request)).await else { return Ok(None) };
        let answer = answer?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(None);
        }
        let node = identity(answer.headers(), NODE_HEADER)?;
        let stream = hyper::upgrade::on(answer).await.map_err(|error| explain(&error))?;
        Ok(Some((node, stream)))
    }

    fn explain_client(&self, error: &legacy::Error) -> TransportError {
        if let Some(sentence) = how_it_ended(error) {
            return TransportError::Unreachable(sentence);
        }
        match io_kind(error) {
            Some(io::ErrorKind::TimedOut) if error.is_connect() => TransportError::Unreachable(format!(
                "it took no connection within {} ms",
                self.options.connect_limit.as_millis()
            )),
            _ => explain(error),
        }
    }
}

impl Carrier for Http {
    async fn carry(
        &self,
        node: &NodeAddress,
        request: Request<Parts>,
    ) -> Result<Response<Bytes>, TransportError> {
        let peer = self.peer(node)?;
        self.exchange(&peer, request).await
    }

    async fn put(&self, node: &NodeAddress, put: &Put<'_>) -> Option<Result<Answer<()>, TransportError>> {
        let peer = match self.peer(node) {
            Ok(peer) => peer,
            Err(error) => return Some(Err(error)),
        };
        if put.fragment.len() > MAX_SMALL_FRAGMENT {
            return self.put_large(&peer, put).await;
        }
        let connection = match peer.way.turn(put.writer) {
            puts::Turn::Send(connection) => connection,
            puts::Turn::Open(opening) => match self.open_puts(&peer, opening, put.writer).await {
                Ok(connection) => connection?,
                Err(error) => return Some(Err(error)),
            },
            puts::Turn::Request => return None,
        };
        match connection.put(put).await {
            // The node may have been started again since: a request finds out, and twice the same changes nothing.
            Err(TransportError::Unreachable(_)) => None,
            done => Some(done),
        }
    }

    async fn get(&self, node: &NodeAddress, get: &Get<'_>) -> Option<Result<Answer<Bytes>, TransportError>> {
        let peer = match self.peer(node) {
            Ok(peer) => peer,
            Err(error) => return Some(Err(error)),
        };
        let _slot = peer.slots.acquire().await.expect("nobody closes a peer's semaphore");
        let line = self.line(&peer, &peer.gets, get.volume, |volume| gets_wanted(*volume)).await;
        let mut line = match line.transpose()? {
            Ok(line) => line,
            Err(error) => return Some(Err(error)),
        };
        let done = line.get(get).await;
        after(&peer.gets, line, done)
    }
}

/// What becomes of an exchange, and of its connection; none where a request is to be made of it.
fn after<K: PartialEq, T>(
    lines: &Lines<K>,
    line: Line<K>,
    done: Result<T, TransportError>,
) -> Option<Result<T, TransportError>> {
    match done {
        // The node may have been started again since: a request finds out, and twice the same changes nothing.
        Err(TransportError::Unreachable(_)) => return None,
        Ok(_) | Err(TransportError::Refused { .. }) => lines.give_back(line),
        Err(_) => {}
    }
    Some(done)
}

fn authorization(token: &Token) -> HeaderValue {
    let mut header =
        HeaderValue::from_str(&token.header()).expect("a token has signs that a header may have");
    header.set_sensitive(true);
    header
}

fn taken_apart(node: &NodeAddress) -> Result<(Scheme, Authority), TransportError> {
    let wrong = || TransportError::Garbage("its address is not of the form http://host:port".into());
    let uri: Uri = node.0.parse().map_err(|_| wrong())?;
    let is_root = ["", "/"].contains(&uri.path());
    match (uri.scheme(), uri.authority()) {
        (Some(scheme), Some(authority)) if is_root => Ok((scheme.clone(), authority.clone())),
        _ => Err(wrong()),
    }
}

/// Whether it is somebody who would speak to us at all, and no other node than its certificate is for.
fn check_speaker(answer: &Response<Incoming>) -> Result<(), TransportError> {
    if answer.status() == StatusCode::UPGRADE_REQUIRED {
        let why = "it speaks TLS alone: name it by https://, and give --tls-cert, --tls-key and --tls-ca";
        return Err(TransportError::Unreachable(why.into()));
    }
    let Some(BoundTo(node)) = answer.extensions().get() else { return Ok(()) };
    let stated = answer.headers().get(NODE_HEADER).map(|stated| stated.as_bytes());
    match stated == Some(node.to_string().as_bytes()) {
        true => Ok(()),
        false => Err(TransportError::Unreachable(format!("its certificate is for node {node} alone"))),
    }
}

/// A plain connection's two halves share no lock; over TLS they cannot do without one.
fn halves_of(stream: Upgraded) -> Halves {
    match stream.downcast::<TokioIo<TcpStream>>() {
        Ok(parts) => {
            let (reader, writer) = parts.io.into_inner().into_split();
            (Box::new(Cursor::new(parts.read_buf).chain(reader)), Box::new(writer))
        }
        Err(stream) => {
            let (reader, writer) = tokio::io::split(TokioIo::new(stream));
            (Box::new(reader), Box::new(writer))
        }
    }
}

/// Both directions in one.
fn whole_of(stream: Upgraded) -> Result<Box<dyn Duplex>, TransportError> {
    match stream.downcast::<TokioIo<TcpStream>>() {
        Ok(parts) if parts.read_buf.is_empty() => Ok(Box::new(parts.io.into_inner())),
        Ok(_) => Err(TransportError::Garbage("it spoke before it was asked anything".into())),
        Err(stream) => Ok(Box::new(TokioIo::new(stream))),
    }
}

/// The body in one run of memory. What would be longer than `MAX_BODY` is not read.
async fn read_whole(mut body: Incoming) -> Result<Bytes, TransportError> {
    let announced = body.size_hint().exact().unwrap_or(0);
    let too_long = || TransportError::Garbage(format!("an answer of more than {MAX_BODY} bytes"));
    if announced > MAX_BODY as u64 {
        return Err(too_long());
    }
    // Even a single frame is copied: it would hold the connection's whole read buffer.
    let mut whole = Buffers::shared().take(announced as usize);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| explain(&error))?;
        let Some(data) = frame.data_ref() else { continue };
        if whole.len() + data.len() > MAX_BODY {
            return Err(too_long());
        }
        whole.extend_from_slice(data);
    }
    Ok(whole.freeze())
}

/// What TLS said as it ended the connection under a request.
fn how_it_ended(error: &legacy::Error) -> Option<String> {
    let mut extras = Extensions::new();
    error.connect_info()?.get_extras(&mut extras);
    extras.get::<Ending>()?.sentence().map(str::to_owned)
}

/// What is wrong with the peer is garbage, what is wrong with the way there is unreachable.
fn explain(error: &(dyn Error + 'static)) -> TransportError {
    if let Some(sentence) = credentials::explain(error) {
        return TransportError::Unreachable(sentence);
    }
    let spoken = causes(error).find_map(|cause| cause.downcast_ref::<hyper::Error>());
    match (spoken, io_kind(error)) {
        (Some(spoken), _) if spoken.is_parse() => {
            TransportError::Garbage(format!("it does not speak HTTP ({spoken})"))
        }
        (_, Some(io::ErrorKind::ConnectionRefused)) => {
            TransportError::Unreachable("it refused the connection".into())
        }
        (Some(spoken), _) if spoken.is_incomplete_message() => {
            TransportError::Unreachable("it closed the connection before it had answered".into())
        }
        _ => {
            let chain: Vec<String> = causes(error).map(ToString::to_string).collect();
            TransportError::Unreachable(chain.join(": "))
        }
    }
}

fn io_kind(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    causes(error).find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind)
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::transport::scripted::{NODE, ScriptedNode, WRITER, fragment_name};
    use crate::transport::{FragmentTransport, NodeAddress, TransportError};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    const LIMIT: Duration = Duration::from_secs(10);

    /// Ends with the test.
    struct Server {
        address: NodeAddress,
        accepted: Arc<AtomicUsize>,
        _task: JoinSet<()>,
    }

    async fn listen() -> (TcpListener, NodeAddress) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = NodeAddress(format!("http://{}", listener.local_addr().unwrap()));
        (listener, address)
    }

    async fn serve(node: &ScriptedNode) -> Server {
        use axum::serve::ListenerExt;
        let (listener, address) = listen().await;
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        let listener = listener.tap_io(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
        });
        let mut task = JoinSet::new();
        let router = node.router();
        task.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Server { address, accepted, _task: task }
    }

    /// Reads some of a request, says `answer`, and keeps the connection open.
    async fn say(answer: Vec<u8>) -> Server {
        let (listener, address) = listen().await;
        let mut task = JoinSet::new();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        task.spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let _ = stream.read(&mut [0; 1000]).await;
                let _ = stream.write_all(&answer).await;
                open.push(stream);
            }
        });
        Server { address, accepted, _task: task }
    }

    fn transport() -> HttpTransport {
        HttpTransport::new(HttpOptions::default())
    }

    async fn garbage_of(answer: impl Into<Vec<u8>>) -> String {
        let server = say(answer.into()).await;
        match transport().info(&server.address, LIMIT).await {
            Err(TransportError::Garbage(what)) => what,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn large_fragments_come_back_as_they_were_sent() {
        let server = serve(&ScriptedNode::keeping()).await;
        let http = transport();
        let fragment: Bytes = (0..5_000_000u32).map(|i| (i % 251) as u8).collect::<Vec<u8>>().into();
        let name = fragment_name("large");
        let put =
            http.put(&server.address, WRITER, &name, "fpcc".into(), fragment.clone(), false, LIMIT).await;
        assert_eq!(put.unwrap().node, NODE);
        let raw = http.get(&server.address, WRITER.volume, &name, LIMIT).await.unwrap().value;
        assert!(raw.fpcc == "fpcc" && raw.fragment == fragment);
        let held = Buffers::shared().held_by(&raw.fragment);
        assert!((fragment.len()..fragment.len() * 9 / 8 + 100).contains(&held), "one buffer of {held} bytes");
    }

    #[tokio::test]
    async fn requests_one_after_another_share_a_connection() {
        let server = serve(&ScriptedNode::saying("{}")).await;
        let http = transport();
        for _ in 0..50 {
            http.flush(&server.address, WRITER, LIMIT).await.unwrap();
        }
        assert_eq!(server.accepted.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn connections_are_bounded_and_requests_beyond_wait() {
        let server = serve(&ScriptedNode::saying("{}")).await;
        let options = HttpOptions { connections_per_node: 3, ..HttpOptions::default() };
        let http = Arc::new(HttpTransport::new(options));
        let mut requests = JoinSet::new();
        for _ in 0..60 {
            let (http, address) = (http.clone(), server.address.clone());
            requests.spawn(async move { http.flush(&address, WRITER, LIMIT).await.map(drop) });
        }
        assert!(requests.join_all().await.into_iter().all(|answer| answer.is_ok()));
        let accepted = server.accepted.load(Ordering::SeqCst);
        // A connection begun while another came free is made all the same, and waits idle.
        assert!(accepted <= 6, "{accepted} connections for 3 at once");
    }

    #[tokio::test]
    async fn a_put_is_a_request_where_nobody_says_whether_it_may_be_more() {
        let name = fragment_name("small");
        let put = async |server: &Server, limit: Duration| {
            let (fpcc, fragment) = ("fpcc".into(), "bytes".into());
            transport().put(&server.address, WRITER, &name, fpcc, fragment, false, limit).await
        };
        let scripted = ScriptedNode::keeping();
        assert_eq!(put(&serve(&scripted).await, LIMIT).await.unwrap().node, NODE);
        assert_eq!(scripted.requests().len(), 2, "it knows nothing of puts");
        let silent = say(Vec::new()).await;
        let answer = put(&silent, OPENING_LIMIT * 5 / 4).await;
        assert!(matches!(answer, Err(TransportError::TimedOut(_))));
        assert_eq!(silent.accepted.load(Ordering::SeqCst), 2, "it was asked for both");
    }

    /// Makes of its first connection what it is asked for, says `answer` to the first frame, and breaks it off; serves
    /// those that follow.
    async fn breaking_off(scripted: &ScriptedNode, answer: Vec<u8>) -> Server {
        let (listener, address) = listen().await;
        let router = scripted.router();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1000];
            let length = stream.read(&mut request).await.unwrap();
            let request = String::from_utf8(request[..length].to_vec()).unwrap();
            let protocol = request.lines().find(|line| line.starts_with("upgrade: ")).unwrap();
            let switch = format!("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n{protocol}\r\n");
            let head = format!("{switch}avid-node: {NODE}\r\navid-boot: 0000000000000001\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            assert!(stream.read(&mut [0; 1000]).await.unwrap() > 0, "a frame comes");
            stream.write_all(&answer).await.unwrap();
            drop(stream);
            axum::serve(listener, router).await.unwrap();
        });
        Server { address, accepted: Arc::default(), _task: task }
    }

    #[tokio::test]
    async fn what_was_asked_over_a_connection_that_ended_becomes_a_request() {
        let name = fragment_name("small");
        let scripted = ScriptedNode::keeping();
        let large = Bytes::from(vec![7; MAX_SMALL_FRAGMENT + 1]);
        for (count, fragment) in [(1, large), (2, "bytes".into())] {
            let node = breaking_off(&scripted, Vec::new()).await;
            let put =
                transport().put(&node.address, WRITER, &name, "fpcc".into(), fragment, false, LIMIT).await;
            assert_eq!((put.unwrap().node, scripted.requests().len()), (NODE, count));
        }
        for half in [Vec::new(), vec![100, 0, 0], [&[100, 0, 0, 0][..], &[0; 50]].concat()] {
            let node = breaking_off(&scripted, half).await;
            let raw = transport().get(&node.address, WRITER.volume, &name, LIMIT).await.unwrap().value;
            assert_eq!(raw.fragment, "bytes");
        }
        assert_eq!(scripted.requests().len(), 5);
    }

    #[tokio::test]
    async fn a_get_is_a_request_where_the_node_says_that_it_may_not_be_more() {
        let scripted = ScriptedNode::keeping();
        let server = serve(&scripted).await;
        let (http, name) = (transport(), fragment_name("small"));
        http.put(&server.address, WRITER, &name, "fpcc".into(), "bytes".into(), false, LIMIT).await.unwrap();
        let before = scripted.requests().len();
        for _ in 0..3 {
            let raw = http.get(&server.address, WRITER.volume, &name, LIMIT).await.unwrap().value;
            assert_eq!(raw.fragment, "bytes");
        }
        assert_eq!(scripted.requests().len() - before, 4, "it is asked once whether it knows of gets");
    }

    #[tokio::test]
    async fn a_refused_connection_is_unreachable() {
        let (listener, address) = listen().await;
        drop(listener);
        let error = transport().info(&address, LIMIT).await.unwrap_err();
        assert!(matches!(error, TransportError::Unreachable(_)));
        assert_eq!(error.to_string(), "it refused the connection");
    }

    #[tokio::test]
    async fn a_silent_peer_costs_the_limit() {
        let server = say(Vec::new()).await;
        let limit = Duration::from_millis(50);
        let error = transport().info(&server.address, limit).await.unwrap_err();
        assert!(matches!(error, TransportError::TimedOut(passed) if passed == limit));
    }

    #[tokio::test]
    async fn a_body_that_stops_in_the_middle_costs_the_limit() {
        let server = say(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this".to_vec()).await;
        let error = transport().info(&server.address, Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, TransportError::TimedOut(_)));
    }

    #[tokio::test]
    async fn a_connection_broken_off_is_unreachable() {
        let (listener, address) = listen().await;
        let mut task = JoinSet::new();
        task.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 1000]).await;
            }
        });
        let error = transport().info(&address, LIMIT).await.unwrap_err();
        assert_eq!(error.to_string(), "it closed the connection before it had answered");
        assert!(matches!(error, TransportError::Unreachable(_)));
    }

    #[tokio::test]
    async fn what_does_not_speak_http_is_garbage() {
        assert!(garbage_of("SSH-2.0-OpenSSH_9.2\r\n").await.starts_with("it does not speak HTTP"));
    }

    #[tokio::test]
    async fn what_speaks_http_and_is_not_shardd_is_garbage() {
        assert_eq!(
            garbage_of("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await,
            "there is no avid-node header"
        );
    }

    #[tokio::test]
    async fn an_announced_body_over_the_limit_is_refused_unread() {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", MAX_BODY + 1);
        assert!(garbage_of(head).await.contains("more than"));
    }

    #[tokio::test]
    async fn an_unannounced_body_over_the_limit_is_refused() {
        let mut answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        let chunk = [b"400000\r\n".to_vec(), vec![0; 4 << 20], b"\r\n".to_vec()].concat();
        (0..9).for_each(|_| answer.extend_from_slice(&chunk));
        assert!(garbage_of(answer).await.contains("more than"));
    }

    #[tokio::test]
    async fn an_address_must_be_http_host_and_port() {
        for address in
            ["127.0.0.1:7001", "https://127.0.0.1:7001/path", "http://127.0.0.1:7001/path", "", "embedded:0"]
        {
            let answer = transport().info(&NodeAddress(address.into()), LIMIT).await;
            assert!(matches!(answer, Err(TransportError::Garbage(_))), "{address}: {answer:?}");
        }
    }
}
