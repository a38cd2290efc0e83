//! What it costs that nodes agree: objects put to five nodes that do, and to five that keep what they are given and flush
//! it, in turn, so that what else happens on the machine happens to both.
//!
//! `cargo bench -p shardd --bench agreement [-- FOLDER]`; FOLDER is /dev/shm by default, so that no disk is measured.

// A benchmark that cannot go on has nothing better to do than to stop.
#![allow(clippy::unwrap_used)]

mod support;

use std::cell::Cell;
use std::path::Path;
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};
use common::code::Code;
use common::codec::{Codec, split};
use common::fpcc::Fpcc;
use common::hash::HashId;
use common::members::{Member, Members};
use common::wire::{NodeInfo, OwnerId, SIGNATURE_HEADER, Signature, fragment_prefix, version_statement};
use ed25519_dalek::{Signer, SigningKey};
use futures_util::future::join_all;
use http::Request;
use http_body_util::{BodyExt, Full};
use support::{Node, ask};

/// Objects in each turn, of each size.
const SIZES: [(&str, usize, usize); 3] =
    [("4 MiB", 4 << 20, 64), ("256 KiB", 256 << 10, 256), ("4 KiB", 4096, 1000)];
const TURNS: usize = 5;
/// Objects under way at once.
const AT_ONCE: usize = 4;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let folder = arguments.next().unwrap_or_else(|| "/dev/shm".into());
    let temp = tempfile::tempdir_in(&folder).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    println!("3+2, BLAKE3, data in {folder}; the median of {TURNS} turns");
    runtime.block_on(measure(temp.path()));
}

async fn measure(folder: &Path) {
    let plain = Pool::start(&folder.join("plain")).await;
    let agreeing = Pool::start(&folder.join("agreeing")).await.agree(folder).await;
    for (label, size, count) in SIZES {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        let began = (plain.cpu_seconds(), agreeing.cpu_seconds());
        // The first turn touches memory for the first time.
        for turn in 0..=TURNS {
            without.push(plain.put(&format!("{label}/{turn}"), size, count).await);
            with.push(agreeing.put(&format!("{label}/{turn}"), size, count).await);
        }
        let median = |turns: &mut Vec<f64>| {
            turns.remove(0);
            turns.sort_by(f64::total_cmp);
            turns[TURNS / 2]
        };
        let (with, without) = (median(&mut with), median(&mut without));
        println!(
            "  put {label:<8} kept and flushed: {:>7.1} MB/s {:>6.0}/s   agreed on: {:>7.1} MB/s {:>6.0}/s   {:>5.1} %",
            without * size as f64 / 1e6,
            without,
            with * size as f64 / 1e6,
            with,
            100.0 * with / without
        );
        let per_object = |began: f64, pool: &Pool| {
            1e3 * (pool.cpu_seconds() - began) / (count * (TURNS + 1) * pool.nodes.len()) as f64
        };
        println!(
            "                CPU of a node and object: {:.3} ms   {:.3} ms",
            per_object(began.0, &plain),
            per_object(began.1, &agreeing)
        );
    }
}

struct Pool {
    nodes: Vec<Node>,
    /// None if they do not agree.
    members: Option<Members>,
    owner: SigningKey,
}

impl Pool {
    async fn start(folder: &Path) -> Pool {
        let nodes = (0..5).map(|k| Node::start(&folder.join(format!("{k}")))).collect();
        Pool { nodes, members: None, owner: SigningKey::from_bytes(&[1; 32]) }
    }

    /// The same nodes, started again with the list of them.
    async fn agree(self, folder: &Path) -> Pool {
        let mut listed = Vec::new();
        for node in &self.nodes {
            let mut sender = node.connect().await;
            let asking = Request::get("/info").header("host", "node").body(Full::default()).unwrap();
            let answer = sender.send_request(asking).await.unwrap().into_body().collect().await.unwrap();
            let info: NodeInfo = serde_json::from_slice(&answer.to_bytes()).unwrap();
            let url = format!("http://{}", node.address);
            listed.push(Member { node: info.node, key: info.key.unwrap(), url });
        }
        let members = Members::new(code(), listed.clone()).unwrap();
        let file = folder.join("members.json");
        std::fs::write(&file, members.to_json()).unwrap();
        let addresses: Vec<String> = self.nodes.iter().map(|node| node.address.clone()).collect();
        drop(self.nodes);
        let options = ["--members", file.to_str().unwrap()];
        let again = |(k, address): (usize, &String)| {
            Node::with(&folder.join(format!("agreeing/{k}")), address, &options)
        };
        let nodes = addresses.iter().enumerate().map(again).collect();
        Pool { nodes, members: Some(members), owner: self.owner }
    }

    fn cpu_seconds(&self) -> f64 {
        self.nodes.iter().map(Node::cpu_seconds).sum()
    }

    /// Objects per second, each done when all five nodes have said so.
    async fn put(&self, prefix: &str, size: usize, count: usize) -> f64 {
        let next = Cell::new(0);
        let object: Bytes = (0..size as u32).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 11) as u8).collect();
        let worker = async || {
            let mut senders = join_all(self.nodes.iter().map(Node::connect)).await;
            while next.get() < count {
                let i = next.replace(next.get() + 1);
                let requests = self.requests(&format!("{prefix}/{i}"), &object);
                let sent = senders.iter_mut().zip(requests).map(|(sender, request)| ask(sender, request));
                join_all(sent).await;
            }
        };
        let began = Instant::now();
        join_all((0..AT_ONCE).map(|_| worker())).await;
        count as f64 / began.elapsed().as_secs_f64()
    }

    /// What each node is asked, in the order of nodes.
    fn requests(&self, name: &str, object: &Bytes) -> Vec<Request<Full<Bytes>>> {
        let codec = Codec::of(code());
        let data = split(code(), object);
        let parity = codec.parity_of(&data);
        let fragments: Vec<&[u8]> =
            data.iter().map(|f| &f[..]).chain(parity.iter().map(|f| &f[..])).collect();
        let fpcc = Fpcc::compute(&codec, HashId::Blake3, object.len() as u64, &fragments);
        let prefix = fragment_prefix(&fpcc.to_bytes());
        let body = |index: usize| {
            let mut body = BytesMut::with_capacity(prefix.len() + fragments[index].len());
            body.put_slice(&prefix);
            body.put_slice(fragments[index]);
            Full::new(body.freeze())
        };
        let Some(members) = &self.members else {
            let plain = |index| {
                let path = format!("/objects/{}/1/fragment/{index}?flush=1", name.replace(['/', ' '], "-"));
                Request::post(path).header("host", "node").body(body(index)).unwrap()
            };
            return (0..5).map(plain).collect();
        };
        let owner = OwnerId(self.owner.verifying_key().to_bytes());
        let digest = fpcc.digest();
        let text = version_statement(members.digest().as_bytes(), &owner, name, 1, digest.as_bytes());
        let signature = Signature(self.owner.sign(&text).to_bytes()).to_string();
        let group = members.group(owner, name);
        let of = |node: &Node| {
            let url = format!("http://{}", node.address);
            let index = group.iter().position(|member| member.url == url).unwrap();
            let key = format!("{owner}/{name}").replace('/', "%2F").replace(' ', "%20");
            let request = Request::post(format!("/objects/{key}/1/fragment/{index}"));
            let request = request.header("host", "node").header(SIGNATURE_HEADER, &signature);
            request.body(body(index)).unwrap()
        };
        self.nodes.iter().map(of).collect()
    }
}

fn code() -> Code {
    "3+2".parse().unwrap()
}
