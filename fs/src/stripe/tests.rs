//! A stripe over nodes in memory, behind a transport that fails by rule. Time is paused: waiting costs nothing, and
//! how long something takes is exact.

mod deleting;
mod flushing;
mod nodes;
mod random;
mod reading;
mod real_nodes;
mod rehoming;
mod roots;
mod storing;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::code::Code;
use common::hash::HashId;
use common::wire::{ObjectId, VolumeId};

use self::nodes::{MemoryNodes, at, id};
use super::{Stripe, StripeOptions, pad};
use crate::cache::{Cache, CacheOptions, Reuse};
use crate::error::Result;
use crate::metadata::{Configuration, ObjectRecord};
use crate::pool::{Pool, PoolOptions};
use crate::transport::faulty::{Fault, FaultyTransport, Rule, RuleId, Verb};

const EPOCH: u32 = 3;

struct Bench {
    nodes: Arc<MemoryNodes>,
    faulty: Arc<FaultyTransport>,
    pool: Arc<Pool>,
    stripe: Arc<Stripe>,
    count: usize,
}

fn options(code: &str) -> StripeOptions {
    let code: Code = code.parse().unwrap();
    let usual = StripeOptions::new(VolumeId([9; 16]), EPOCH, code, HashId::Blake3);
    StripeOptions { cached_on_store: 0, return_time: Duration::ZERO, ..usual }
}

fn no_cache() -> Arc<Cache> {
    Cache::open(CacheOptions { memory_bytes: 0, disk_bytes: 0, disk: None }).unwrap()
}

fn cache() -> Arc<Cache> {
    Cache::open(CacheOptions { memory_bytes: 64 << 20, disk_bytes: 0, disk: None }).unwrap()
}

/// As many nodes as fragments.
async fn bench(code: &str) -> Bench {
    Bench::new(code.parse::<Code>().unwrap().n(), options(code)).await
}

impl Bench {
    async fn new(count: usize, options: StripeOptions) -> Bench {
        let nodes = MemoryNodes::new(count);
        let faulty = FaultyTransport::new(nodes.clone(), 1);
        let addresses = (0..count).map(at).collect();
        let pool = Pool::connect(faulty.clone(), addresses, &[], PoolOptions::default()).await.unwrap();
        pool.start();
        let stripe = stripe(&pool, count, cache(), options);
        Bench { nodes, faulty, pool, stripe, count }
    }

    /// The same pool as another process sees it: nothing cached, nothing kept.
    fn cold(&self) -> Arc<Stripe> {
        stripe(&self.pool, self.count, cache(), self.stripe.options.clone())
    }

    /// And one that never caches.
    fn uncached(&self) -> Arc<Stripe> {
        stripe(&self.pool, self.count, no_cache(), self.stripe.options.clone())
    }

    fn kill(&self, k: usize) {
        self.nodes.set_alive(k, false);
    }

    /// Start a node again and wait until the pool has seen it.
    async fn revive(&self, k: usize) {
        self.nodes.set_alive(k, true);
        self.until_up(k).await;
    }

    async fn until_up(&self, k: usize) {
        self.until(|| self.pool.state(id(k)) == crate::pool::NodeState::Up).await;
    }

    async fn until(&self, is_so: impl Fn() -> bool) {
        for _ in 0..2_000 {
            if is_so() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("not within 100 s");
    }

    fn fault(&self, k: usize, verb: Verb, fault: Fault) -> RuleId {
        self.faulty.add(Rule::always(fault).at(&at(k)).on(verb))
    }

    /// For as long as the test lasts.
    fn harm(&self, k: usize, verb: Verb, fault: Fault) {
        let _for_good = self.fault(k, verb, fault);
    }

    async fn try_store(&self, id: ObjectId, length: usize, flush: bool) -> Result<ObjectRecord> {
        let bytes = bytes_of(id, length);
        self.stripe.store(id, pad(self.stripe.options.code, &bytes), length as u32, flush).await
    }

    async fn store(&self, length: usize) -> ObjectRecord {
        self.try_store(self.stripe.next_id(), length, false).await.unwrap()
    }

    async fn store_many(&self, count: usize, length: usize) -> Vec<ObjectRecord> {
        let mut records = Vec::new();
        for _ in 0..count {
            records.push(self.store(length).await);
        }
        records
    }

    async fn store_flushed(&self, length: usize) -> ObjectRecord {
        self.try_store(self.stripe.next_id(), length, true).await.unwrap()
    }

    /// The record as the metadata has it once all changes told are written.
    fn updated(&self, mut record: ObjectRecord) -> ObjectRecord {
        for (id, exceptions) in self.stripe.take_placement_changes() {
            if id == record.id {
                record.exceptions = exceptions;
            }
        }
        record
    }

    /// Reads it from nodes alone, whole, and panics unless every byte is right.
    async fn check(&self, record: &ObjectRecord) {
        check(&self.cold(), record).await;
    }

    fn requests(&self, verb: Verb) -> u64 {
        self.faulty.count_all(verb)
    }

    /// Where an object's fragments belong: the number of each index's home.
    fn homes(&self, id: ObjectId) -> Vec<usize> {
        let homes = self.stripe.homes(1, id, self.stripe.options.code);
        homes.into_iter().map(|home| (0..self.count).find(|&k| nodes::id(k) == home).unwrap()).collect()
    }

    /// How many fragments of an object are flushed, over all nodes.
    fn flushed(&self, record: &ObjectRecord) -> usize {
        let held = (0..self.count).flat_map(|k| self.nodes.held(k, &record.id.key()));
        held.filter(|(_, flushed)| *flushed).count()
    }
}

fn stripe(pool: &Arc<Pool>, count: usize, cache: Arc<Cache>, options: StripeOptions) -> Arc<Stripe> {
    let configuration = Configuration { number: 1, nodes: (0..count).map(id).collect() };
    Stripe::new(pool.clone(), cache, vec![configuration], 1, options)
}

/// Other bytes for every object.
fn bytes_of(id: ObjectId, length: usize) -> Bytes {
    let mut state = (u64::from(id.epoch) << 48 ^ id.counter).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(byte).take(length).collect::<Vec<u8>>().into()
}

async fn read(stripe: &Arc<Stripe>, record: &ObjectRecord, range: Range<u32>) -> Result<Bytes> {
    Ok(stripe.read(record, range, Reuse::Likely).await?.concat().into())
}

async fn check(stripe: &Arc<Stripe>, record: &ObjectRecord) {
    let found = read(stripe, record, 0..record.length).await.unwrap();
    assert!(found == bytes_of(record.id, record.length as usize), "wrong bytes of {}", record.id);
}

/// Every choice of `size` of `count` nodes.
fn choices(count: usize, size: usize) -> Vec<Vec<usize>> {
    let all = (0u32..1 << count).filter(|set| set.count_ones() as usize == size);
    all.map(|set| (0..count).filter(|k| set & (1 << k) != 0).collect()).collect()
}
