//! The same promises over real nodes inside this process. Time runs.

use std::path::Path;

use shardd::{Limits, Store, StoreOptions, app};
use tempfile::TempDir;

use super::*;
use crate::transport::FragmentTransport;
use crate::transport::in_process::InProcessTransport;
use common::wire::{NodeId, VolumeDescriptor};

struct Cluster {
    folder: TempDir,
    transport: Arc<InProcessTransport>,
    faulty: Arc<FaultyTransport>,
    pool: Arc<Pool>,
    nodes: Vec<NodeId>,
    options: StripeOptions,
}

fn address(k: usize) -> crate::transport::NodeAddress {
    InProcessTransport::address(k)
}

fn start(folder: &Path, k: usize) -> axum::Router {
    let mut options = StoreOptions::new(folder.join(k.to_string()));
    options.capacity = Some(1 << 30);
    app(Store::open(options).unwrap(), Limits::default())
}

impl Cluster {
    async fn new(code: &str) -> Cluster {
        let folder = TempDir::new().unwrap();
        let options = options(code);
        let count = options.code.n();
        let routers = (0..count).map(|k| start(folder.path(), k));
        let transport = Arc::new(InProcessTransport::new(routers));
        let faulty = FaultyTransport::new(transport.clone(), 1);
        let pool_options = PoolOptions { down_interval: Duration::from_millis(20), ..PoolOptions::default() };
        let addresses: Vec<_> = (0..count).map(address).collect();
        let pool = Pool::connect(faulty.clone(), addresses.clone(), &[], pool_options).await.unwrap();
        pool.start();
        let descriptor = VolumeDescriptor {
            volume: options.volume,
            name: "test".into(),
            code: code.into(),
            hash: "blake3".into(),
            object_size: 4 << 20,
            owner: None,
        };
        for address in &addresses {
            faulty.register(address, &descriptor, Duration::from_secs(5)).await.unwrap();
        }
        let nodes = pool.nodes().into_iter().map(|view| view.identity.unwrap()).collect();
        Cluster { folder, transport, faulty, pool, nodes, options }
    }

    fn stripe(&self) -> Arc<Stripe> {
        let configuration = Configuration { number: 1, nodes: self.nodes.clone() };
        Stripe::new(self.pool.clone(), cache(), vec![configuration], 1, self.options.clone())
    }

    fn stop(&self, k: usize) {
        self.transport.stop(&address(k));
    }

    /// The node's process ended and was started again on its folder.
    async fn restart(&self, k: usize) {
        self.stop(k);
        let router = loop {
            // Requests under way hold the folder until they are done.
            let mut options = StoreOptions::new(self.folder.path().join(k.to_string()));
            options.capacity = Some(1 << 30);
            match Store::open(options) {
                Ok(store) => break app(store, Limits::default()),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        self.transport.start(address(k), router);
        while self.pool.state(self.nodes[k]) != crate::pool::NodeState::Up {
            self.pool.report(
                self.nodes[k],
                crate::pool::Outcome::Failed(&crate::transport::TransportError::Unreachable(
                    "looking".into(),
                )),
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn store(stripe: &Arc<Stripe>, length: usize, flush: bool) -> ObjectRecord {
    let id = stripe.next_id();
    let padded = pad(stripe.options.code, &bytes_of(id, length));
    stripe.store(id, padded, length as u32, flush).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_nodes_hold_what_is_stored_through_two_deaths_and_a_homecoming() {
    let cluster = Cluster::new("3+2").await;
    let stripe = cluster.stripe();
    let healthy = [store(&stripe, 1, false).await, store(&stripe, 300_000, false).await];
    stripe.flush().await.unwrap();
    (0..2).for_each(|k| cluster.stop(k));
    let degraded = [store(&stripe, 10, true).await, store(&stripe, 300_000, true).await];
    for record in healthy.iter().chain(&degraded) {
        check(&cluster.stripe(), record).await;
    }
    stripe.settle().await;
    for k in 0..2 {
        cluster.restart(k).await;
    }
    let changes = stripe.take_placement_changes();
    for mut record in degraded {
        if let Some((_, exceptions)) = changes.iter().find(|(id, _)| *id == record.id) {
            record.exceptions.clone_from(exceptions);
        }
        assert_eq!(record.exceptions.len(), 2);
        let exceptions = stripe.move_home(&record).await.unwrap();
        assert_eq!(exceptions, []);
        let moved = ObjectRecord { exceptions, ..record.clone() };
        assert!(stripe.drop_guests(&moved, &record.exceptions).await);
        let places = stripe.locate(&moved).await;
        assert!(
            places.iter().all(|p| p.at_home && p.presence == crate::stripe::Presence::Present),
            "{places:?}"
        );
        (3..5).for_each(|k| cluster.stop(k));
        check(&cluster.stripe(), &moved).await;
        for k in 3..5 {
            cluster.restart(k).await;
        }
        assert_eq!(stripe.delete(std::slice::from_ref(&moved)).await, [moved.id]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_nodes_that_lie_yield_no_wrong_byte() {
    let cluster = Cluster::new("2+2").await;
    let stripe = cluster.stripe();
    let records = [store(&stripe, 200_000, false).await, store(&stripe, 200_000, false).await];
    for fault in [Fault::CorruptFragment, Fault::CorruptFpcc, Fault::Swap, Fault::Stale] {
        for k in 0..2 {
            cluster.faulty.add(Rule::always(fault).at(&address(k)).on(Verb::Get));
        }
        for record in &records {
            check(&cluster.stripe(), record).await;
        }
        cluster.faulty.clear();
    }
}
