//! A node that lies on purpose does lie: each mode, on a node in this process that has two objects.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;

use bytes::Bytes;
use common::wire::{
    FragmentName, MAX_BODY, NODE_HEADER, Operation, OperationAnswer, RefusalCode, decode_answers,
    encode_batch, split_fragment_body,
};
use http::{Method, Request};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use shardd::evil::{ALLOWED, DELAY, Mode, made_evil};
use support::{Answer, Encoded, Local, object, path, shardd, verifies};
use tempfile::TempDir;
use tower::ServiceExt;

/// A node and what it was before it began to lie. It has objects `a` and `b`, of one length.
struct Evil {
    node: Local,
    honest: Local,
    _folder: TempDir,
}

fn objects() -> [(&'static str, Encoded); 2] {
    [("a", object(1, 50_000)), ("b", object(2, 50_000))]
}

async fn evil(modes: &[Mode], seed: u64) -> Evil {
    let folder = tempfile::tempdir().unwrap();
    let honest = Local::new(folder.path());
    for (key, object) in objects() {
        honest.post(&path(key, 0), object.body(0)).await.ok();
    }
    let node = Local { app: made_evil(honest.app.clone(), modes, seed), store: honest.store.clone() };
    Evil { node, honest, _folder: folder }
}

fn name(key: &str, index: u8) -> FragmentName {
    FragmentName { key: key.into(), version: 1, index }
}

impl Evil {
    async fn batch(&self, operations: &[Operation]) -> Vec<OperationAnswer> {
        let answer = self.node.post("/batch", Bytes::from(encode_batch(operations).concat())).await;
        decode_answers(answer.ok().body, operations.len()).unwrap()
    }

    async fn lies(&self) -> u64 {
        let metrics = String::from_utf8(self.node.get("/metrics").await.body.to_vec()).unwrap();
        let line = metrics.lines().find_map(|line| line.strip_prefix("shardd_lies_total "));
        line.expect("it says how often it lied").parse().unwrap()
    }
}

fn truth() -> Bytes {
    objects()[0].1.body(0)
}

fn parts(answer: Answer) -> (Bytes, Bytes) {
    split_fragment_body(answer.ok().body).unwrap()
}

fn different_bits(a: &[u8], b: &[u8]) -> u32 {
    a.iter().zip(b).map(|(a, b)| (a ^ b).count_ones()).sum()
}

#[tokio::test]
async fn flip_changes_one_bit_of_the_fragment_and_nothing_else() {
    let evil = evil(&[Mode::Flip], 1).await;
    let (fpcc, fragment) = split_fragment_body(truth()).unwrap();
    let (said_fpcc, said) = parts(evil.node.get(&path("a", 0)).await);
    assert_eq!((said_fpcc, different_bits(&said, &fragment)), (fpcc, 1));
    let answers = evil.batch(&[Operation::Get(name("a", 0)), Operation::Has(name("a", 0))]).await;
    assert_eq!(different_bits(&answers[0].payload, &fragment), 1);
    let (_, slice) = parts(evil.node.get(&format!("{}?offset=0&length=10", path("a", 0))).await);
    let (_, true_slice) = parts(evil.honest.get(&format!("{}?offset=0&length=10", path("a", 0))).await);
    assert_eq!(different_bits(&slice, &true_slice), 1);
    assert_eq!(evil.lies().await, 3);
}

#[tokio::test]
async fn swap_gives_another_objects_fragment_with_an_fpcc_it_belongs_to() {
    let evil = evil(&[Mode::Swap], 1).await;
    let said = evil.node.get(&path("a", 0)).await.ok().body;
    assert!(said != truth() && verifies(said.clone(), 0));
    assert_eq!(said, objects()[1].1.body(0));
    let answers = evil.batch(&[Operation::Get(name("a", 0)), Operation::Get(name("b", 0))]).await;
    let (a, b) = (split_fragment_body(truth()).unwrap(), split_fragment_body(said).unwrap());
    assert_eq!([&answers[0].payload, &answers[1].payload], [&b.1, &a.1]);
    assert_eq!(evil.lies().await, 2);
}

#[tokio::test]
async fn withhold_denies_what_is_there_and_keeps_what_is_put() {
    let evil = evil(&[Mode::Withhold], 1).await;
    evil.node.post(&path("c", 0), object(3, 100).body(0)).await.ok();
    for asked in [path("a", 0), path("c", 0), "/objects/a/1/status".into(), "/objects/a/latest".into()] {
        assert_eq!(evil.node.get(&asked).await.refused(), RefusalCode::NotFound, "{asked}");
    }
    assert!(evil.node.get(&path("a", 0)).await.headers.contains_key(NODE_HEADER));
    assert_eq!(evil.node.get("/objects").await.json()["objects"], serde_json::json!([]));
    let answers = evil.batch(&[Operation::Has(name("a", 0)), Operation::Get(name("b", 0))]).await;
    assert_eq!([answers[0].status, answers[1].status], [404, 404]);
    evil.honest.get(&path("c", 0)).await.ok();
}

#[tokio::test]
async fn stale_shows_what_there_was_and_keeps_what_is_put() {
    let evil = evil(&[Mode::Stale], 1).await;
    let latest = async || evil.node.get("/objects/a/latest").await.ok().json()["version"].clone();
    assert_eq!(latest().await, 1);
    evil.node.post("/objects/a/2/fragment/0", object(9, 100).body(0)).await.ok();
    evil.node.post(&path("c", 0), object(3, 100).body(0)).await.ok();
    assert_eq!(evil.node.get(&path("a", 0)).await.ok().body, truth(), "what was there it shows");
    assert_eq!(latest().await, 1);
    assert_eq!(evil.honest.get("/objects/a/latest").await.json()["version"], 2);
    assert_eq!(evil.node.get(&path("c", 0)).await.refused(), RefusalCode::NotFound);
    let listing = evil.node.get("/objects").await.json();
    let keys: Vec<&str> =
        listing["objects"].as_array().unwrap().iter().map(|o| o["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["a", "b"]);
    assert_eq!(evil.batch(&[Operation::Get(name("c", 0))]).await[0].status, 404);
    evil.honest.get(&path("c", 0)).await.ok();
}

#[tokio::test(start_paused = true)]
async fn slow_answers_rightly_and_late() {
    let evil = evil(&[Mode::Slow], 1).await;
    let began = tokio::time::Instant::now();
    assert_eq!(evil.node.get(&path("a", 0)).await.ok().body, truth());
    assert!(began.elapsed() >= DELAY);
    evil.node.post(&path("c", 0), object(3, 100).body(0)).await.ok();
    assert!(began.elapsed() >= 2 * DELAY);
    let began = tokio::time::Instant::now();
    evil.node.get("/info").await.ok();
    assert!(began.elapsed() < DELAY, "who it is it says at once");
}

#[tokio::test]
async fn drop_after_ack_says_that_it_is_kept_and_keeps_nothing() {
    let evil = evil(&[Mode::DropAfterAck], 1).await;
    let c = object(3, 100);
    assert_eq!(evil.node.post(&path("c", 0), c.body(0)).await.ok().json()["stored"], true);
    let put = Operation::Put { name: name("d", 0), fpcc: c.fpcc.clone(), fragment: c.fragments[0].clone() };
    let answers = evil.batch(&[Operation::Has(name("a", 0)), put, Operation::Get(name("b", 0))]).await;
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200, 200, 200]);
    assert_eq!(answers[2].payload, objects()[1].1.fragments[0]);
    let volume = "/volumes/00112233445566778899aabbccddeeff/objects/c/1/fragment/0";
    assert_eq!(evil.node.post_as(1, volume, c.body(0)).await.ok().json()["kept"], true);
    for key in ["c", "d"] {
        assert_eq!(evil.node.get(&path(key, 0)).await.refused(), RefusalCode::NotFound);
    }
    assert_eq!(evil.node.get(&path("a", 0)).await.ok().body, truth(), "what it has it gives");
}

#[tokio::test]
async fn garbage_http_says_nothing_that_makes_sense() {
    let evil = evil(&[Mode::GarbageHttp], 1).await;
    let said = evil.node.get(&path("a", 0)).await;
    assert!(!said.headers.contains_key(NODE_HEADER) && split_fragment_body(said.body).is_err());
    assert!(!evil.node.post(&path("c", 0), object(3, 100).body(0)).await.body.starts_with(b"{"));
    evil.node.get("/info").await.ok();
}

#[tokio::test]
async fn oversize_announces_more_than_any_answer_may_have_or_does_not_end() {
    let evil = evil(&[Mode::Oversize], 1).await;
    let (mut announced, mut endless) = (0, 0);
    for _ in 0..8 {
        let request = Request::get(path("a", 0)).body(axum::body::Body::empty()).unwrap();
        let mut body = evil.node.app.clone().oneshot(request).await.unwrap().into_body();
        match body.size_hint().exact() {
            Some(length) if length > MAX_BODY as u64 => announced += 1,
            _ => endless += 1,
        }
        let mut length = 0;
        while length <= MAX_BODY {
            length += body.frame().await.expect("it goes on").unwrap().into_data().unwrap().len();
        }
    }
    assert!(announced > 0 && endless > 0, "{announced} {endless}");
}

#[tokio::test]
async fn wrong_length_gives_fragments_too_short_and_too_long() {
    let evil = evil(&[Mode::WrongLength], 1).await;
    let (fpcc, fragment) = split_fragment_body(truth()).unwrap();
    let mut lengths = HashSet::new();
    for _ in 0..16 {
        let (said_fpcc, said) = parts(evil.node.get(&path("a", 0)).await);
        assert_eq!(said_fpcc, fpcc);
        lengths.insert(said.len().cmp(&fragment.len()));
    }
    assert_eq!(lengths, HashSet::from([std::cmp::Ordering::Less, std::cmp::Ordering::Greater]));
    assert_ne!(evil.batch(&[Operation::Get(name("a", 0))]).await[0].payload.len(), fragment.len());
}

#[tokio::test]
async fn replay_answers_with_what_it_said_to_something_else() {
    let evil = evil(&[Mode::Replay], 1).await;
    assert_eq!(evil.node.get(&path("a", 0)).await.ok().body, truth(), "the first has nothing before it");
    assert_eq!(evil.node.get(&path("b", 0)).await.ok().body, truth());
    let put = evil.node.post(&path("c", 0), object(3, 100).body(0)).await;
    assert!(put.ok().body.len() > 100, "a put is answered with a fragment");
    evil.honest.get(&path("c", 0)).await.ok();
    assert_eq!(evil.lies().await, 2);
}

#[tokio::test]
async fn a_seed_tells_the_same_lies_again_and_another_one_others() {
    let said = async |seed| {
        let evil = evil(&[Mode::Flip, Mode::WrongLength], seed).await;
        let mut said = Vec::new();
        for _ in 0..6 {
            said.push(evil.node.get(&path("a", 0)).await.body);
        }
        said
    };
    assert_eq!(said(7).await, said(7).await);
    assert_ne!(said(7).await, said(8).await);
    let lengths: HashSet<usize> = said(7).await.iter().map(Bytes::len).collect();
    assert!(lengths.contains(&truth().len()) && lengths.len() > 1, "both modes have their turn: {lengths:?}");
}

#[tokio::test]
async fn an_unknown_mode_is_refused() {
    let sentence = |name: &str| name.parse::<Mode>().unwrap_err().to_string();
    for mode in Mode::ALL {
        assert_eq!(mode.name().parse(), Ok(mode));
        assert!(sentence("nice").contains(mode.name()));
    }
    let evil = evil(&Mode::ALL, 1).await;
    assert_eq!(evil.node.call(Method::GET, "/info", "").await.status, 200);
}

#[test]
fn the_program_lies_only_where_it_may_and_says_so_first() {
    let folder = tempfile::tempdir().unwrap();
    let evil = |modes: &str| {
        let mut command = shardd(folder.path());
        command.args(["--evil", modes]).env_remove(ALLOWED).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let refused = evil("flip").output().unwrap();
    let sentence = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(sentence, "shardd: a node lies (--evil) only where SHARDD_ALLOW_EVIL is 1\n");
    let unknown = evil("flip,nice").env(ALLOWED, "1").output().unwrap();
    assert!(String::from_utf8(unknown.stderr).unwrap().contains("nice is no way to lie"));

    let mut child = evil("flip,stale").args(["--evil-seed", "7"]).env(ALLOWED, "1").spawn().unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(said.next().unwrap(), "this node lies on purpose: flip, stale (seed 7)");
    assert!(said.next().unwrap().starts_with("listening on http://"));
    child.kill().unwrap();
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    child.wait().unwrap();
    assert!(log.contains("WARN") && log.contains("lies on purpose"), "{log}");
}

#[test]
fn over_a_socket_garbage_http_is_no_http_where_fragments_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = shardd(folder.path());
    command.args(["--evil", "garbage-http"]).env(ALLOWED, "1").stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let address = said.nth(1).unwrap().strip_prefix("listening on http://").unwrap().to_owned();
    let answer = |request: &str| {
        let mut socket = TcpStream::connect(&address).unwrap();
        socket.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).unwrap();
        answer
    };
    let about = |line: &str| answer(&format!("{line} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n"));
    assert!(about("GET /info").starts_with(b"HTTP/1.1 200"));
    for line in ["GET /objects/a/1/fragment/0", "POST /batch", "POST /objects/a/1/fragment/0"] {
        let said = about(line);
        assert!(!said.is_empty() && !said.starts_with(b"HTTP"), "{line}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
