//! What the tests of a node share: encoded objects, and a client that speaks to a router or to a process.
#![allow(dead_code, clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use common::codec::{Codec, split};
use common::fpcc::Fpcc;
use common::hash::HashId;
use common::wire::{EPOCH_HEADER, Refusal, RefusalCode, VolumeDescriptor, VolumeId, fragment_prefix};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use shardd::{Limits, Store, StoreOptions};
use tokio::net::TcpStream;
use tower::ServiceExt;

pub struct Encoded {
    pub fpcc: Bytes,
    pub fragments: Vec<Bytes>,
}

/// An object of code 2+2.
pub fn object(seed: u64, length: usize) -> Encoded {
    let mix = |i: u64| (i.wrapping_mul(2 * seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8;
    let bytes: Vec<u8> = (1..=length as u64).map(mix).collect();
    let codec = Codec::of("2+2".parse().unwrap());
    let data = split(codec.code(), &bytes.into());
    let parity = codec.parity_of(&data);
    let fragments: Vec<Bytes> = data.into_iter().chain(parity.into_iter().map(Bytes::from)).collect();
    let slices: Vec<&[u8]> = fragments.iter().map(|fragment| &fragment[..]).collect();
    let fpcc = Fpcc::compute(&codec, HashId::Blake3, length as u64, &slices).to_bytes().into();
    Encoded { fpcc, fragments }
}

impl Encoded {
    pub fn body(&self, index: usize) -> Bytes {
        let mut body = BytesMut::from(&fragment_prefix(&self.fpcc)[..]);
        body.put_slice(&self.fragments[index]);
        body.freeze()
    }
}

/// Whether a fragment body's fragment belongs to its FPCC.
pub fn verifies(body: Bytes, index: usize) -> bool {
    let (fpcc, fragment) = common::wire::split_fragment_body(body).unwrap();
    Fpcc::parse(&fpcc).is_ok_and(|fpcc| fpcc.check_bytes(index, &fragment).is_ok())
}

pub fn path(key: &str, index: usize) -> String {
    format!("/objects/{key}/1/fragment/{index}")
}

pub fn store(folder: &Path) -> Arc<Store> {
    let options = StoreOptions { capacity: Some(256 << 20), ..StoreOptions::new(folder) };
    Store::open(options).unwrap()
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn refused(&self) -> RefusalCode {
        let refusal: Refusal = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(refusal.error.status(), self.status.as_u16());
        refusal.error
    }

    pub fn ok(self) -> Answer {
        assert_eq!(self.status, 200, "{:?}", self.body);
        self
    }
}

/// A node in this process.
#[derive(Clone)]
pub struct Local {
    pub app: Router,
    pub store: Arc<Store>,
}

impl Local {
    pub fn new(folder: &Path) -> Local {
        Local::with(folder, Limits::default())
    }

    pub fn with(folder: &Path, limits: Limits) -> Local {
        let store = store(folder);
        Local { app: shardd::app(store.clone(), limits), store }
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.app.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub async fn call(&self, method: Method, path: &str, body: impl Into<Body>) -> Answer {
        self.send(Request::builder().method(method).uri(path).body(body.into()).unwrap()).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, Body::empty()).await
    }

    pub async fn post(&self, path: &str, body: impl Into<Body>) -> Answer {
        self.call(Method::POST, path, body).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.call(Method::DELETE, path, Body::empty()).await
    }

    pub async fn post_as(&self, epoch: u32, path: &str, body: Bytes) -> Answer {
        let request = Request::post(path).header(EPOCH_HEADER, epoch.to_string());
        self.send(request.body(body.into()).unwrap()).await
    }
}

pub fn descriptor(volume: u8, name: &str) -> VolumeDescriptor {
    VolumeDescriptor {
        volume: VolumeId([volume; 16]),
        name: name.into(),
        code: "2+2".into(),
        hash: "blake3".into(),
        object_size: 4 << 20,
        owner: None,
    }
}

/// A node in a process of its own.
pub struct Process {
    child: Child,
    pub address: String,
}

pub fn shardd(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shardd"));
    command.args(["--listen", "127.0.0.1:0", "--capacity", "1GiB", "--log", "warn", "--data"]).arg(data);
    command
}

impl Process {
    pub fn start(data: &Path) -> Process {
        let mut child = shardd(data).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://").expect("an address").to_owned();
        Process { child, address }
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn terminate(mut self) -> std::process::ExitStatus {
        let pid = i32::try_from(self.child.id()).unwrap();
        // SAFETY: a signal to a child that was not waited for yet.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        self.child.wait().unwrap()
    }

    pub async fn client(&self) -> Client {
        Client::connect(&self.address).await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One connection to a node.
pub struct Client(SendRequest<Full<Bytes>>);

impl Client {
    pub async fn connect(address: &str) -> Client {
        Client::over(TcpStream::connect(address).await.unwrap()).await
    }

    pub async fn over(stream: TcpStream) -> Client {
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Client(sender)
    }

    pub async fn try_call(&mut self, method: Method, path: &str, body: Bytes) -> hyper::Result<Answer> {
        let request = Request::builder().method(method).uri(path).header("host", "node");
        let response = self.0.send_request(request.body(Full::new(body)).unwrap()).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Answer { status: parts.status, headers: parts.headers, body })
    }

    pub async fn get(&mut self, path: &str) -> Answer {
        self.try_call(Method::GET, path, Bytes::new()).await.unwrap()
    }

    pub async fn post(&mut self, path: &str, body: Bytes) -> Answer {
        self.try_call(Method::POST, path, body).await.unwrap()
    }
}
