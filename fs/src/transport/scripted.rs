//! A node for tests of this crate: it keeps what it is given, or says what it is told to, and notes every request.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use common::wire::{
    self, BOOT_HEADER, BootId, EPOCH_HEADER, FragmentName, MAX_BODY, NODE_HEADER, NodeId, NodeInfo,
    Operation, OperationAnswer, SIGNATURE_HEADER, VolumeId, WIRE_VERSION,
};
use http::{Method, Request, StatusCode};
use parking_lot::Mutex;
use serde_json::json;

use super::Writer;

/// The first node's identity.
pub const NODE: NodeId = NodeId([0xAA; 16]);
/// Its first run.
pub const BOOT: BootId = BootId([0xBB; 8]);
/// Who writes in tests.
pub const WRITER: Writer = Writer { volume: VolumeId([0xCC; 16]), epoch: 3, shown: None };

/// A fragment of `key`.
pub fn fragment_name(key: &str) -> FragmentName {
    FragmentName { key: key.into(), version: 1, index: 2 }
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Arrived {
    pub method: Method,
    pub uri: String,
    pub epoch: Option<String>,
    pub signature: Option<String>,
    pub body: Bytes,
}

type Script = dyn Fn(&Arrived) -> Response + Send + Sync;

/// See the module.
#[derive(Clone)]
pub struct ScriptedNode {
    state: Arc<Mutex<State>>,
    script: Arc<Script>,
}

struct State {
    info: NodeInfo,
    requests: Vec<Arrived>,
}

impl ScriptedNode {
    /// Answers every request as `script` says; identity and boot are added.
    pub fn new(script: impl Fn(&Arrived) -> Response + Send + Sync + 'static) -> ScriptedNode {
        let info = NodeInfo {
            wire: WIRE_VERSION,
            node: NODE,
            boot: BOOT,
            zone: Some("here".into()),
            capacity_bytes: 1000 << 20,
            used_bytes: 0,
            available_bytes: 990 << 20,
            fragments: 0,
            version: "test".into(),
            key: None,
        };
        let state = Arc::new(Mutex::new(State { info, requests: Vec::new() }));
        ScriptedNode { state, script: Arc::new(script) }
    }

    /// Answers with this body, always.
    pub fn saying(body: impl Into<Bytes>) -> ScriptedNode {
        let body = body.into();
        ScriptedNode::new(move |_| body.clone().into_response())
    }

    /// Refuses everything.
    pub fn refusing(status: u16, body: &'static str) -> ScriptedNode {
        let status = StatusCode::from_u16(status).unwrap();
        ScriptedNode::new(move |_| (status, body).into_response())
    }

    /// Keeps fragments, by path, and gives them again; checks nothing.
    pub fn keeping() -> ScriptedNode {
        let kept: Mutex<HashMap<String, Bytes>> = Mutex::default();
        ScriptedNode::new(move |arrived| keep(&mut kept.lock(), arrived))
    }

    /// Another identity, run or room from now on.
    pub fn change(&self, change: impl FnOnce(&mut NodeInfo)) {
        change(&mut self.state.lock().info);
    }

    /// All that arrived.
    pub fn requests(&self) -> Vec<Arrived> {
        self.state.lock().requests.clone()
    }

    pub fn router(&self) -> Router {
        let node = self.clone();
        Router::new().fallback(move |request: Request<Body>| async move { node.answer(request).await })
    }

    async fn answer(&self, request: Request<Body>) -> Response {
        let (head, body) = request.into_parts();
        let header = |name| head.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        let (epoch, signature) = (header(EPOCH_HEADER), header(SIGNATURE_HEADER));
        let body = to_bytes(body, 2 * MAX_BODY).await.unwrap();
        let arrived = Arrived { method: head.method, uri: head.uri.to_string(), epoch, signature, body };
        let info = {
            let mut state = self.state.lock();
            state.requests.push(arrived.clone());
            state.info.clone()
        };
        let mut answer = match head.uri.path() {
            "/info" => axum::Json(&info).into_response(),
            _ => (self.script)(&arrived),
        };
        answer.headers_mut().insert(NODE_HEADER, info.node.to_string().parse().unwrap());
        answer.headers_mut().insert(BOOT_HEADER, info.boot.to_string().parse().unwrap());
        answer
    }
}

fn keep(kept: &mut HashMap<String, Bytes>, arrived: &Arrived) -> Response {
    let path = arrived.uri.split('?').next().unwrap().to_owned();
    if path.ends_with("/batch") {
        return batch(kept, arrived.body.clone());
    }
    if arrived.method == Method::POST {
        kept.insert(path, arrived.body.clone());
        return axum::Json(json!({ "kept": true })).into_response();
    }
    match kept.get(&path) {
        Some(body) => body.clone().into_response(),
        None => {
            let refusal = json!({ "error": "not_found", "message": "nothing there" });
            (StatusCode::NOT_FOUND, axum::Json(refusal)).into_response()
        }
    }
}

fn batch(kept: &mut HashMap<String, Bytes>, body: Bytes) -> Response {
    let nothing = OperationAnswer { status: 200, fpcc: Bytes::new(), payload: Bytes::new() };
    let path = |name: &FragmentName| format!("{}/{}/{}", name.key, name.version, name.index);
    let mut answers = Vec::new();
    for operation in wire::decode_batch(body).unwrap() {
        answers.push(match operation {
            Operation::Put { name, fpcc, fragment } => {
                let body = [wire::fragment_prefix(&fpcc), fragment].concat();
                kept.insert(path(&name), body.into());
                nothing.clone()
            }
            Operation::Get(name) => {
                let (fpcc, payload) = wire::split_fragment_body(kept[&path(&name)].clone()).unwrap();
                OperationAnswer { status: 200, fpcc, payload }
            }
            Operation::Has(_) | Operation::Delete(_) => nothing.clone(),
        });
    }
    wire::encode_answers(&answers).concat().into_response()
}
