//! What one node does per second, CPU second and byte of memory, over loopback.
//!
//! `cargo bench -p shardd --bench node [-- FOLDER [LABEL]]`; FOLDER is /dev/shm by default, so that no disk is measured.
//! With LABEL only the lines that contain it are run, among them what they read back.

// A benchmark that cannot go on has nothing better to do than to stop.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};
use common::codec::{Codec, split};
use common::fpcc::Fpcc;
use common::hash::HashId;
use common::wire::{FragmentName, Operation, encode_batch, fragment_prefix};
use futures_util::future::join_all;
use http::Request;
use http_body_util::Full;

use support::{Node, ask};

const GIB: f64 = (1u64 << 30) as f64;
/// Nodes on one disk, all of which an fsync of a mount waits for.
const POOL: usize = 5;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let folder = arguments.next().unwrap_or_else(|| "/dev/shm".into());
    let label = arguments.next().unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for hash in [HashId::Blake3, HashId::Sha256] {
        println!("{hash}, data in {folder}");
        let temp = tempfile::tempdir_in(&folder).unwrap();
        let node = Nodes::start(temp.path(), 1, label.clone());
        runtime.block_on(measure(&node, hash));
        let pool = Nodes::start(temp.path(), POOL, label.clone());
        runtime.block_on(measure_pool(&pool, hash));
    }
}

async fn measure(node: &Nodes, hash: HashId) {
    let large = Encoded::of(4 << 20, hash);
    let small = Encoded::of(4200, hash);
    for connections in [1, 8, 32] {
        let count = 768;
        let label = format!("put 1.33 MiB, {connections} connections");
        node.run(&label, count, large.body.len(), connections, |i| large.put(&format!("l{connections}-{i}")))
            .await;
        let label = format!("get 1.33 MiB, {connections} connections");
        node.run(&label, count, large.body.len(), connections, |i| get(&format!("l{connections}-{i}"))).await;
    }
    for connections in [1, 8] {
        let label = format!("put 1.4 KiB, {connections} connections");
        node.run(&label, 20_000, small.body.len(), connections, |i| {
            small.put(&format!("s{connections}-{i}"))
        })
        .await;
        let label = format!("get 1.4 KiB, {connections} connections");
        node.run(&label, 20_000, small.body.len(), connections, |i| get(&format!("s{connections}-{i}")))
            .await;
    }
    let per_batch = 1000;
    let label = format!("put 1.4 KiB, {per_batch} per batch");
    node.run(&label, 20, small.body.len() * per_batch, 1, |i| small.batch(i, per_batch)).await;
    node.run("flush", 2000, 0, 1, |_| post("/flush", Bytes::new())).await;
    measure_flushed_puts(node, hash).await;
    println!("  peak memory of the node: {:.0} MiB", node.peak_memory_mib());
}

/// What a small fsync asks of every node.
async fn measure_pool(pool: &Nodes, hash: HashId) {
    measure_flushed_puts(pool, hash).await;
    let large = Encoded::of(4 << 20, hash);
    let label = format!("put 1.33 MiB to each of {POOL} nodes");
    pool.run(&label, 256, large.body.len(), 2, |i| large.put(&format!("p{i}"))).await;
}

async fn measure_flushed_puts(nodes: &Nodes, hash: HashId) {
    let small = Encoded::of(14 << 10, hash);
    for connections in [1, 4] {
        let label = format!("put 5 KB, flush, {} nodes, {connections} connections", nodes.0.len());
        let request = |i| small.put_flushed(&format!("f{connections}-{i}"));
        nodes.run(&label, 4000, small.body.len(), connections, request).await;
    }
}

struct Encoded {
    body: Bytes,
    fpcc: Bytes,
    fragment: Bytes,
}

impl Encoded {
    fn of(length: usize, hash: HashId) -> Encoded {
        let code = "3+2".parse().unwrap();
        let object: Vec<u8> = (0..length as u32).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 11) as u8).collect();
        let codec = Codec::of(code);
        let data = split(code, &object.into());
        let parity = codec.parity_of(&data);
        let slices: Vec<&[u8]> = data.iter().map(|f| &f[..]).chain(parity.iter().map(|f| &f[..])).collect();
        let fpcc = Bytes::from(Fpcc::compute(&codec, hash, length as u64, &slices).to_bytes());
        let mut body = BytesMut::from(&fragment_prefix(&fpcc)[..]);
        body.put_slice(&data[0]);
        Encoded { body: body.freeze(), fpcc, fragment: data[0].clone() }
    }

    fn put(&self, key: &str) -> Request<Full<Bytes>> {
        post(&format!("/objects/{key}/1/fragment/0"), self.body.clone())
    }

    fn put_flushed(&self, key: &str) -> Request<Full<Bytes>> {
        post(&format!("/objects/{key}/1/fragment/0?flush=1"), self.body.clone())
    }

    fn batch(&self, batch: usize, count: usize) -> Request<Full<Bytes>> {
        let put = |i| Operation::Put {
            name: FragmentName { key: format!("b{batch}-{i}"), version: 1, index: 0 },
            fpcc: self.fpcc.clone(),
            fragment: self.fragment.clone(),
        };
        let operations: Vec<_> = (0..count).map(put).collect();
        post("/batch", encode_batch(&operations).concat().into())
    }
}

fn post(path: &str, body: Bytes) -> Request<Full<Bytes>> {
    Request::post(path).header("host", "node").body(Full::new(body)).unwrap()
}

fn get(key: &str) -> Request<Full<Bytes>> {
    let path = format!("/objects/{key}/1/fragment/0");
    Request::get(path).header("host", "node").body(Full::default()).unwrap()
}

/// Nodes that all get the same requests, and the label of what is to be run on them.
struct Nodes(Vec<Node>, String);

impl Nodes {
    fn start(data: &std::path::Path, count: usize, wanted: String) -> Nodes {
        let nodes = (0..count).map(|i| Node::start(&data.join(format!("{count}-{i}"))));
        Nodes(nodes.collect(), wanted)
    }

    async fn run(
        &self,
        label: &str,
        count: usize,
        bytes: usize,
        connections: usize,
        request: impl Fn(usize) -> Request<Full<Bytes>>,
    ) {
        if !label.contains(&self.1) {
            return;
        }
        let (began, cpu) = (Instant::now(), self.cpu_seconds());
        let next = std::cell::Cell::new(0);
        let worker = async || {
            let mut senders = join_all(self.0.iter().map(Node::connect)).await;
            while next.get() < count {
                let i = next.replace(next.get() + 1);
                join_all(senders.iter_mut().map(|sender| ask(sender, request(i)))).await;
            }
        };
        join_all((0..connections).map(|_| worker())).await;
        let (seconds, cpu) = (began.elapsed().as_secs_f64(), self.cpu_seconds() - cpu);
        let asked = count * self.0.len();
        let gib = (asked * bytes) as f64 / GIB;
        println!(
            "  {label:<42} {:>8.0}/s {:>7.0} MB/s  node CPU: {:>6.2} s/GiB, {:>6.0} us each",
            count as f64 / seconds,
            (asked * bytes) as f64 / seconds / 1e6,
            if gib > 0.0 { cpu / gib } else { 0.0 },
            cpu / asked as f64 * 1e6,
        );
    }

    fn cpu_seconds(&self) -> f64 {
        self.0.iter().map(Node::cpu_seconds).sum()
    }

    fn peak_memory_mib(&self) -> f64 {
        self.0.iter().map(Node::peak_memory_mib).sum()
    }
}
