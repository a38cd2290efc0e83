//! A node that lies: an HTTP proxy in front of a real one, which does to its answers what the test says.
//!
//! It works on bytes of sockets, so that it can break HTTP itself. Threads and blocking reads; nothing of the client's
//! library is shared with it.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use common::wire::{OperationAnswer, decode_answers, encode_answers, split_fragment_body};

use crate::cluster::Cluster;
use crate::data;

/// What is done to answers that carry fragments. Everything else passes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lie {
    /// Nothing.
    Honest,
    /// The body is garbage of the same length.
    Garbage,
    /// One bit of the fragment is another one.
    FlippedBit,
    /// One bit of the FPCC is another one.
    FlippedFpcc,
    /// The body is a byte shorter, and so is its announced length.
    Shorter,
    /// The body is a byte longer, and so is its announced length.
    Longer,
    /// The body is empty.
    Empty,
    /// The fragment of another object, or of an older one of the same file, with that one's FPCC: consistent in itself.
    AnotherObject,
    /// The fragment of another object with the right FPCC.
    SwappedFragment,
    /// "I never had it."
    Denies,
    /// "My disk is broken."
    Broken,
    /// What answers is no HTTP.
    NotHttp,
    /// The connection ends in the middle of the body.
    Cut,
    /// The connection ends before the answer.
    Closed,
    /// One byte a second.
    Drip,
    /// It never answers.
    Silent,
    /// A body of 2^62 bytes is announced, and bytes come as fast as they are taken.
    Endless,
    /// A body of 2^62 bytes is announced, and after the right ones nothing comes.
    Giant,
    /// Headers without end.
    EndlessHeaders,
    /// The answer is another node's, by its name.
    AnotherNode,
    /// Chunks of an announced length of 2^60.
    GiantChunk,
    /// Acknowledges what it is given and keeps nothing. Its other answers are honest.
    Forgets,
}

/// Every lie told to a reader.
pub const LIES: [Lie; 20] = [
    Lie::Garbage,
    Lie::FlippedBit,
    Lie::FlippedFpcc,
    Lie::Shorter,
    Lie::Longer,
    Lie::Empty,
    Lie::AnotherObject,
    Lie::SwappedFragment,
    Lie::Denies,
    Lie::Broken,
    Lie::NotHttp,
    Lie::Cut,
    Lie::Closed,
    Lie::Drip,
    Lie::Silent,
    Lie::Endless,
    Lie::Giant,
    Lie::EndlessHeaders,
    Lie::AnotherNode,
    Lie::GiantChunk,
];

/// A proxy in front of one node.
pub struct Liar {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    node: SocketAddr,
    lie: Mutex<Lie>,
    told: AtomicU64,
    fragments_asked: AtomicU64,
    closing: AtomicBool,
    /// By fragment index: a good answer to another object, FPCC and fragment.
    seen: Mutex<HashMap<String, (Bytes, Bytes)>>,
    sockets: Mutex<Vec<TcpStream>>,
}

impl Liar {
    /// Stand in front of a node; honest at first.
    pub fn before(node: SocketAddr) -> Liar {
        let listener = TcpListener::bind((node.ip(), 0)).expect("loopback has a free port");
        let address = listener.local_addr().expect("it listens");
        let shared = Arc::new(Shared {
            node,
            lie: Mutex::new(Lie::Honest),
            told: AtomicU64::new(0),
            fragments_asked: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            seen: Mutex::default(),
            sockets: Mutex::default(),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || accept(&listener, &accepting));
        Liar { address, shared }
    }

    /// One in front of each node of a cluster, and what `--peers` takes for them.
    pub fn before_all(cluster: &Cluster) -> (Vec<Liar>, String) {
        let liars: Vec<Liar> = (0..cluster.len()).map(|node| Liar::before(cluster.address(node))).collect();
        let peers: Vec<String> = liars.iter().map(|liar| format!("http://{}", liar.address)).collect();
        (liars, peers.join(","))
    }

    /// From the next answer on.
    pub fn tell(&self, lie: Lie) {
        *self.shared.lie.lock().expect("nobody panics holding it") = lie;
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many answers it has falsified.
    pub fn told(&self) -> u64 {
        self.shared.told.load(Ordering::Relaxed)
    }

    /// How many requests for fragments reached it.
    pub fn fragments_asked(&self) -> u64 {
        self.shared.fragments_asked.load(Ordering::Relaxed)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Relaxed);
        for socket in self.shared.sockets.lock().expect("nobody panics holding it").drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
        // The accepting thread sees `closing` when somebody knocks.
        let _ = TcpStream::connect(self.address);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for socket in listener.incoming().flatten() {
        if shared.closing.load(Ordering::Relaxed) {
            return;
        }
        if let Ok(kept) = socket.try_clone() {
            shared.sockets.lock().expect("nobody panics holding it").push(kept);
        }
        let shared = shared.clone();
        std::thread::spawn(move || {
            let _ = serve(&socket, &shared);
            let _ = socket.shutdown(Shutdown::Both);
        });
    }
}

struct Message {
    first: String,
    headers: Vec<(String, String)>,
    body: Bytes,
}

impl Message {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    fn is_ok(&self) -> bool {
        self.first.split(' ').nth(1) == Some("200")
    }

    /// First line and headers, without those that say how long the body is.
    fn head(&self) -> Vec<u8> {
        let framing = ["content-length", "transfer-encoding", "connection", "expect"];
        let mut head = format!("{}\r\n", self.first);
        for (name, value) in &self.headers {
            if !framing.iter().any(|framing| name.eq_ignore_ascii_case(framing)) {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        head.into_bytes()
    }

    fn send(&self, to: &mut impl Write) -> io::Result<()> {
        let mut bytes = self.head();
        bytes.extend(format!("content-length: {}\r\n\r\n", self.body.len()).as_bytes());
        bytes.extend(&self.body);
        to.write_all(&bytes)
    }
}

/// Requests of one connection, one after the other.
fn serve(socket: &TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut client = BufReader::new(socket.try_clone()?);
    while let Some(request) = receive(&mut client, false)? {
        let asked = Asked::from(&request);
        let lie = *shared.lie.lock().expect("nobody panics holding it");
        if lie == Lie::Forgets
            && let Some(body) = acknowledgement(&request)
        {
            shared.told.fetch_add(1, Ordering::Relaxed);
            forget(&request, body, shared.node)?.send(&mut (&*socket))?;
            continue;
        }
        if asked != Asked::Other {
            shared.fragments_asked.fetch_add(1, Ordering::Relaxed);
        }
        let answer = forward(&request, shared.node)?;
        let mut out = socket;
        let falsified = match asked {
            Asked::Other => None,
            _ if !answer.is_ok() => None,
            _ => lie_about(&request, &answer, &asked, lie, shared)?,
        };
        match falsified {
            None => answer.send(&mut out)?,
            Some(End::Answered(answer)) => {
                shared.told.fetch_add(1, Ordering::Relaxed);
                answer.send(&mut out)?;
            }
            Some(End::Broken(how)) => {
                shared.told.fetch_add(1, Ordering::Relaxed);
                return misbehave(&mut out, &answer, how, shared);
            }
        }
    }
    Ok(())
}

/// What a request is about.
#[derive(PartialEq, Eq)]
enum Asked {
    /// One fragment, or a slice of it, under this path.
    Fragment,
    /// A batch of gets.
    Batch { count: usize },
    /// Something without fragments in its answer.
    Other,
}

impl Asked {
    fn from(request: &Message) -> Asked {
        let mut words = request.first.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if method == "GET" && path.contains("/fragment/") {
            return Asked::Fragment;
        }
        if method == "POST" && path.split('?').next().is_some_and(|path| path.ends_with("/batch")) {
            let operations = common::wire::decode_batch(request.body.clone()).unwrap_or_default();
            if operations.iter().any(|operation| matches!(operation, common::wire::Operation::Get(_))) {
                return Asked::Batch { count: operations.len() };
            }
        }
        Asked::Other
    }
}

enum End {
    Answered(Message),
    Broken(Lie),
}

fn lie_about(
    request: &Message,
    answer: &Message,
    asked: &Asked,
    lie: Lie,
    shared: &Shared,
) -> io::Result<Option<End>> {
    let with = |body: Bytes| {
        Some(End::Answered(Message { first: answer.first.clone(), headers: answer.headers.clone(), body }))
    };
    let refusing = |status: &str, code: &str| {
        let body = format!("{{\"error\":\"{code}\",\"message\":\"so says the liar\"}}");
        Some(End::Answered(Message {
            first: format!("HTTP/1.1 {status}"),
            headers: answer.headers.clone(),
            body: body.into(),
        }))
    };
    let mut parts = Parts::of(answer, asked);
    let honest = remember(request, &parts, shared);
    Ok(match lie {
        Lie::Honest | Lie::Forgets => None,
        Lie::Garbage => with(data::bytes(shared.told.load(Ordering::Relaxed), 0, answer.body.len()).into()),
        Lie::Shorter => with(answer.body.slice(..answer.body.len().saturating_sub(1))),
        Lie::Longer => with([&answer.body[..], &[0]].concat().into()),
        Lie::Empty => with(Bytes::new()),
        Lie::FlippedBit => {
            parts.each(|_, fragment| flip(fragment));
            with(parts.joined(asked))
        }
        Lie::FlippedFpcc => {
            parts.each(|fpcc, _| flip(fpcc));
            with(parts.joined(asked))
        }
        Lie::AnotherObject => honest.and_then(|(other_fpcc, other)| {
            parts.each(|fpcc, fragment| (*fpcc, *fragment) = (other_fpcc.clone(), other.clone()));
            with(parts.joined(asked))
        }),
        Lie::SwappedFragment => honest.and_then(|(_, other)| {
            parts.each(|_, fragment| *fragment = other.clone());
            with(parts.joined(asked))
        }),
        Lie::Denies => refusing("404 Not Found", "not_found"),
        Lie::Broken => refusing("500 Internal Server Error", "io"),
        Lie::AnotherNode => {
            let mut message = Message {
                first: answer.first.clone(),
                headers: answer.headers.clone(),
                body: answer.body.clone(),
            };
            message
                .headers
                .iter_mut()
                .filter(|(name, _)| name.eq_ignore_ascii_case("avid-node"))
                .for_each(|(_, value)| *value = "0123456789abcdef0123456789abcdef".into());
            parts.each(|_, fragment| flip(fragment));
            message.body = parts.joined(asked);
            Some(End::Answered(message))
        }
        Lie::NotHttp
        | Lie::Cut
        | Lie::Closed
        | Lie::Drip
        | Lie::Silent
        | Lie::Endless
        | Lie::Giant
        | Lie::EndlessHeaders
        | Lie::GiantChunk => Some(End::Broken(lie)),
    })
}

/// What a node says when it has kept everything it was sent; `None` if it was sent nothing to keep.
fn acknowledgement(request: &Message) -> Option<Bytes> {
    let path = request.first.split(' ').nth(1)?.split('?').next()?;
    if !request.first.starts_with("POST ") {
        return None;
    }
    if path.contains("/fragment/") {
        return Some(Bytes::from_static(b"{\"kept\":true}"));
    }
    let operations =
        common::wire::decode_batch(request.body.clone()).ok().filter(|_| path.ends_with("/batch"))?;
    let kept = |_| OperationAnswer { status: 200, fpcc: Bytes::new(), payload: Bytes::new() };
    let all_puts =
        operations.iter().all(|operation| matches!(operation, common::wire::Operation::Put { .. }));
    all_puts.then(|| encode_answers(&operations.iter().map(kept).collect::<Vec<_>>()).concat().into())
}

/// An answer with this body and everything else as the node itself would have it.
fn forget(request: &Message, body: Bytes, node: SocketAddr) -> io::Result<Message> {
    let asking = Message {
        first: "GET /healthz HTTP/1.1".into(),
        headers: request
            .headers
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case("host"))
            .cloned()
            .collect(),
        body: Bytes::new(),
    };
    Ok(Message { body, ..forward(&asking, node)? })
}

fn flip(bytes: &mut Bytes) {
    let mut copy = bytes.to_vec();
    if let Some(byte) = copy.last_mut() {
        *byte ^= 0x10;
    }
    *bytes = copy.into();
}

/// Keep a good answer for later, and give one for another object, if there was one.
fn remember(request: &Message, parts: &Parts, shared: &Shared) -> Option<(Bytes, Bytes)> {
    let mut seen = shared.seen.lock().expect("nobody panics holding it");
    let path = request.first.clone();
    let other = seen.iter().find(|(key, _)| **key != path).map(|(_, parts)| parts.clone());
    if let Some(first) = parts.0.iter().find(|part| part.status == 200)
        && (seen.len() < 8 || seen.contains_key(&path))
    {
        seen.insert(path, (first.fpcc.clone(), first.payload.clone()));
    }
    other
}

/// FPCCs and fragments of an answer.
struct Parts(Vec<OperationAnswer>);

impl Parts {
    fn of(answer: &Message, asked: &Asked) -> Parts {
        match asked {
            Asked::Fragment => {
                let split = split_fragment_body(answer.body.clone());
                Parts(
                    split
                        .map(|(fpcc, payload)| OperationAnswer { status: 200, fpcc, payload })
                        .into_iter()
                        .collect(),
                )
            }
            Asked::Batch { count } => Parts(decode_answers(answer.body.clone(), *count).unwrap_or_default()),
            Asked::Other => Parts(Vec::new()),
        }
    }

    fn each(&mut self, change: impl Fn(&mut Bytes, &mut Bytes)) {
        for part in self.0.iter_mut().filter(|part| part.status == 200 && !part.fpcc.is_empty()) {
            change(&mut part.fpcc, &mut part.payload);
        }
    }

    fn joined(&self, asked: &Asked) -> Bytes {
        match (asked, self.0.first()) {
            (Asked::Fragment, Some(part)) => {
                let prefix = common::wire::fragment_prefix(&part.fpcc);
                [&prefix[..], &part.payload[..]].concat().into()
            }
            _ => encode_answers(&self.0).concat().into(),
        }
    }
}

/// Answers that are no well-formed HTTP, or never end. The connection is closed afterwards.
fn misbehave(out: &mut impl Write, answer: &Message, how: Lie, shared: &Shared) -> io::Result<()> {
    let mut head = answer.head();
    let announce =
        |head: &mut Vec<u8>, length: u64| head.extend(format!("content-length: {length}\r\n\r\n").as_bytes());
    match how {
        Lie::NotHttp => return out.write_all(&data::bytes(9, 0, 4096)),
        Lie::Closed => return Ok(()),
        Lie::Silent => {
            wait_for_the_end(shared);
            return Ok(());
        }
        Lie::EndlessHeaders => {
            out.write_all(&head)?;
            while !shared.closing.load(Ordering::Relaxed) {
                out.write_all(format!("x-more: {}\r\n", "x".repeat(8000)).as_bytes())?;
            }
            return Ok(());
        }
        Lie::Cut => announce(&mut head, answer.body.len() as u64),
        Lie::Drip => announce(&mut head, answer.body.len() as u64),
        Lie::GiantChunk => head.extend(b"transfer-encoding: chunked\r\n\r\n1000000000000000\r\n"),
        _ => announce(&mut head, 1 << 62),
    }
    out.write_all(&head)?;
    match how {
        Lie::Cut => out.write_all(&answer.body[..answer.body.len() / 2]),
        Lie::Drip => {
            for byte in &answer.body {
                out.write_all(&[*byte])?;
                std::thread::sleep(Duration::from_secs(1));
                if shared.closing.load(Ordering::Relaxed) {
                    break;
                }
            }
            Ok(())
        }
        Lie::Giant => {
            out.write_all(&answer.body)?;
            wait_for_the_end(shared);
            Ok(())
        }
        _ => {
            out.write_all(&answer.body)?;
            let more = vec![0; 1 << 16];
            while !shared.closing.load(Ordering::Relaxed) {
                out.write_all(&more)?;
            }
            Ok(())
        }
    }
}

fn wait_for_the_end(shared: &Shared) {
    while !shared.closing.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Pass a request on over a connection of its own.
fn forward(request: &Message, node: SocketAddr) -> io::Result<Message> {
    let mut socket = TcpStream::connect(node)?;
    socket.set_nodelay(true)?;
    let mut bytes = request.head();
    bytes.extend(format!("connection: close\r\ncontent-length: {}\r\n\r\n", request.body.len()).as_bytes());
    socket.write_all(&bytes)?;
    socket.write_all(&request.body)?;
    receive(&mut BufReader::new(socket), true)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// One message; `None` at the end of the connection. A body without announced length goes to the end, if `to_end`.
fn receive(from: &mut impl BufRead, to_end: bool) -> io::Result<Option<Message>> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut message = Message { first: line.trim_end().to_owned(), headers: Vec::new(), body: Bytes::new() };
    loop {
        line.clear();
        from.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => message.headers.push((name.trim().to_owned(), value.trim().to_owned())),
            None => break,
        }
    }
    let chunked = message.header("transfer-encoding").is_some_and(|coding| coding.contains("chunked"));
    let length: Option<usize> = message.header("content-length").and_then(|length| length.parse().ok());
    let mut body = Vec::new();
    match length {
        _ if chunked => body = chunks(from)?,
        Some(length) => {
            from.take(length as u64).read_to_end(&mut body)?;
            if body.len() < length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        None if to_end => drop(from.read_to_end(&mut body)?),
        None => {}
    }
    message.body = body.into();
    Ok(Some(message))
}

fn chunks(from: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let length = usize::from_str_radix(line.trim_end().split(';').next().unwrap_or_default(), 16)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        from.take(length as u64).read_to_end(&mut body)?;
        line.clear();
        from.read_line(&mut line)?;
        if length == 0 {
            return Ok(body);
        }
    }
}
