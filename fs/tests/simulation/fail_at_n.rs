//! One short life of a volume, over and over: in the nth run the nth thing that can fail does, once. How many there are
//! is counted in a run in which nothing fails.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use avidfs::inode::ROOT;
use avidfs::journal::Checkpoints;
use avidfs::transport::faulty::Fault;
use avidfs::volume::FsckWish;
use tokio::time::sleep;

use crate::client::Client;
use crate::failing_store::{Moment, StoreFaults};
use crate::fate::Fate;
use crate::model::Loss;
use crate::repeatable;
use crate::world::{Mount, NODES, World};

/// What fails.
#[derive(Clone, Copy, Debug)]
pub enum Failing {
    /// The nth request, in this way.
    Request(u64, Fault),
    /// The nth act of any node's disk.
    Disk(u64),
    /// The nth call of the metadata store.
    Store(u64, Moment),
}

/// What there was in a life.
#[derive(Clone, Debug, Default)]
pub struct Lived {
    /// Things that could have failed.
    pub count: u64,
    /// Sequences of the checkpoints there were at one time or another.
    pub checkpoints: BTreeSet<u64>,
    /// Entries from before the last checkpoint that a snapshot kept.
    pub pinned: usize,
    /// Extents that compaction moved.
    pub moved: u64,
    /// Objects that were placed anew.
    pub placed: u64,
}

/// Live with one failure. Panics with the trace.
pub fn live(failing: Failing) -> Lived {
    let shared = Arc::new(std::sync::Mutex::new(None));
    let keep = shared.clone();
    let lived = repeatable::run(1, move || async move {
        let fate = Fate::new(1);
        *keep.lock().unwrap() = Some(fate.clone());
        Life::begin(fate, failing).await.tell().await
    });
    lived.unwrap_or_else(|_| {
        let trace = shared.lock().unwrap().take().map(|fate: Fate| fate.last_lines()).unwrap_or_default();
        panic!("{trace}{failing:?}")
    })
}

struct Life {
    world: World,
    client: Client,
    mount: Mount,
    acts: Arc<AtomicU64>,
    store: Arc<StoreFaults>,
    failing: Failing,
    lived: Lived,
    /// What a snapshot has to have of `a`.
    kept: Option<Vec<u8>>,
}

/// So low that a few files make a new one.
const CHECKPOINTS: Checkpoints = Checkpoints { bytes: 1500, entries: 3 };
/// What is overwritten a little is carried, and all else stored.
const CARRIED: u64 = 600;
const KEPT: &str = "kept";
const GIVEN_UP: &str = "given-up";
const SNAPSHOTS: [&str; 2] = [KEPT, GIVEN_UP];

impl Life {
    async fn begin(fate: Fate, failing: Failing) -> Life {
        let mut world = World::new(fate.clone());
        let store = match failing {
            Failing::Store(nth, moment) => StoreFaults::new(fate.clone(), nth, moment),
            _ => StoreFaults::new(fate.clone(), u64::MAX, Moment::Before),
        };
        world.store_faults = Some(store.clone());
        world.checkpoints = CHECKPOINTS;
        world.carried_bytes = CARRIED;
        let mount = mounted(&mut world).await;
        assert!(mount.volume.sync().await.is_ok() || mount.volume.sync().await.is_ok());
        let acts = Arc::new(AtomicU64::new(0));
        match failing {
            Failing::Request(nth, fault) => fate.fail_request(nth, fault),
            Failing::Disk(nth) => world.disks.iter().for_each(|disk| {
                let acts = acts.clone();
                disk.watch(move |act| match acts.fetch_add(1, Ordering::SeqCst) {
                    at if at == nth => Err(io::Error::other(format!("{act:?} fails (by test)"))),
                    _ => Ok(()),
                });
            }),
            Failing::Store(..) => {}
        }
        Life {
            world,
            client: Client::new(fate),
            mount,
            acts,
            store,
            failing,
            lived: Lived::default(),
            kept: None,
        }
    }

    async fn tell(mut self) -> Lived {
        self.files().await;
        self.snapshots().await;
        self.nodes().await;
        self.compaction().await;
        self.rebalance().await;
        let (requests, acts) = (self.client.fate.requests(), self.acts.load(Ordering::SeqCst));
        self.look().await;
        self.check().await;
        self.lived.count = match self.failing {
            Failing::Request(..) => requests,
            Failing::Disk(_) => acts,
            Failing::Store(..) => self.store.calls(),
        };
        self.lived
    }

    /// Everything a client does. What fails is not acknowledged, and tried once more where it is an fsync.
    async fn files(&mut self) {
        let volume = self.mount.volume.clone();
        self.create("a");
        self.client.write_at(&volume, "a", 0, 9000).await;
        let _retried = self.client.fsync_at(&volume, "a").await || self.client.fsync_at(&volume, "a").await;
        self.client.write_at(&volume, "a", 1000, 500).await;
        self.client.truncate_at(&volume, "a", 7000).await;
        self.client.punch_at(&volume, "a", 2000, 3000).await;
        self.create("b");
        self.client.write_at(&volume, "b", 100, 5000).await;
        self.client.fsync_at(&volume, "b").await;
        self.client.rename_to(&volume, "b", "a");
        self.client.fsync_at(&volume, "a").await;
        self.client.truncate_at(&volume, "a", 4500).await;
        self.client.punch_at(&volume, "a", 200, 3000).await;
        self.client.fsync_at(&volume, "a").await;
        self.create("c");
        self.client.write_at(&volume, "c", 0, 3000).await;
        self.client.fsync_at(&volume, "c").await;
        self.client.unlink_at(&volume, "c");
    }

    /// Tried once more, as nothing else can be done without it.
    fn create(&mut self, path: &str) {
        (0..2).for_each(|_| self.client.create_at(&self.mount.volume, path));
    }

    /// The journal is written anew again and again, while snapshots keep what was before; one of them is given up.
    async fn snapshots(&mut self) {
        let volume = self.mount.volume.clone();
        for name in SNAPSHOTS {
            let bytes = self.client.bytes_of("a");
            let _retried =
                volume.take_snapshot(name).await.is_ok() || volume.take_snapshot(name).await.is_ok();
            if name == KEPT && self.snapshots_taken().iter().any(|taken| taken == name) {
                self.kept = Some(bytes);
            }
            self.overwrite("a", 4).await;
        }
        let _retried =
            volume.delete_snapshot(GIVEN_UP).await.is_ok() || volume.delete_snapshot(GIVEN_UP).await.is_ok();
        self.overwrite("a", 4).await;
    }

    fn snapshots_taken(&self) -> Vec<String> {
        let listed = || self.mount.volume.list_snapshots();
        let listed = listed().or_else(|_| listed()).expect("it fails only once");
        listed.into_iter().filter(|snapshot| snapshot.entry.is_some()).map(|snapshot| snapshot.name).collect()
    }

    /// So many entries of the journal at least.
    async fn overwrite(&mut self, path: &str, times: u64) {
        let volume = self.mount.volume.clone();
        for time in 0..times {
            self.client.write_at(&volume, path, 10 * time, 15).await;
            self.client.fsync_at(&volume, path).await;
            self.lived.checkpoints.extend(self.mount.journal.status().ok().map(|status| status.checkpoint));
        }
    }

    /// Handoff while nodes are down, the move home, a node that forgot, and garbage.
    async fn nodes(&mut self) {
        let volume = self.mount.volume.clone();
        self.world.stop_node(4, false).await;
        self.world.stop_node(3, true).await;
        self.client.write_at(&volume, "a", 0, 6000).await;
        self.client.fsync_at(&volume, "a").await;
        self.world.start_nodes();
        sleep(Duration::from_secs(6)).await;
        self.create("d");
        self.client.write_at(&volume, "d", 0, 5000).await;
        let _flushed = volume.flush(ROOT).await;
        self.world.stop_node(1, true).await;
        self.world.stop_node(2, true).await;
        self.world.start_nodes();
        self.client.fsync_at(&volume, "d").await;
        self.world.tend();
        let _collected = volume.collect_garbage(false).await;
        let synced = self.client.fsync_at(&volume, "a").await || self.client.fsync_at(&volume, "a").await;
        assert!(synced, "what failed once keeps failing");
    }

    /// Most of a file that is open is a hole, and the rest moves to another object.
    async fn compaction(&mut self) {
        let volume = self.mount.volume.clone();
        self.create("e");
        self.client.write_at(&volume, "e", 0, 4000).await;
        self.client.fsync_at(&volume, "e").await;
        self.client.punch_at(&volume, "e", 100, 3800).await;
        let ino = self.client.ino_of("e");
        volume.open_file(ino).or_else(|_| volume.open_file(ino)).expect("it fails only once");
        self.client.read_at(&volume, "e").await;
        for _ in 0..2 {
            let collected = volume.collect_garbage(false).await;
            self.lived.moved += collected.map_or(0, |report| report.compaction.moved);
        }
        // Until the old object is deleted.
        sleep(Duration::from_secs(6)).await;
        let read = self.client.read_at(&volume, "e").await || self.client.read_at(&volume, "e").await;
        assert!(read, "what was moved cannot be read");
        volume.close_file(ino);
    }

    /// A mount leaves one node out and names another one, and what was on that moves.
    async fn rebalance(&mut self) {
        self.mount.line.cut();
        self.world.named = Some((1..NODES).collect());
        self.again(Loss::Memory).await;
        let volume = self.mount.volume.clone();
        for _ in 0..2 {
            self.lived.placed += volume.rebalance(false).await.map_or(0, |report| report.objects);
        }
        sleep(Duration::from_secs(6)).await;
        let ino = self.client.ino_of("a");
        volume.open_file(ino).or_else(|_| volume.open_file(ino)).expect("it fails only once");
        let read = self.client.read_at(&volume, "a").await || self.client.read_at(&volume, "a").await;
        assert!(read, "what was placed anew cannot be read");
        volume.close_file(ino);
    }

    /// After a crash and after the loss of everything that was not flushed, the state folder included.
    async fn look(&mut self) {
        self.mount.line.cut();
        self.client.model.unflushed_may_be_lost();
        self.again(Loss::Memory).await;
        self.mount.line.cut();
        for node in 0..NODES {
            self.world.stop_node(node, true).await;
        }
        self.world.start_nodes();
        self.world.forget_metadata(0);
        self.again(Loss::Unshipped).await;
    }

    async fn again(&mut self, loss: Loss) {
        self.mount = mounted(&mut self.world).await;
        self.store.pause(true);
        self.client.adopt(&self.mount.volume, loss).await;
        self.store.pause(false);
    }

    /// What a snapshot kept is there. The metadata agrees with itself and with the journal, everything it names is on
    /// the nodes, and nothing of the journal is that nobody needs.
    async fn check(&mut self) {
        self.store.pause(true);
        let volume = self.mount.volume.clone();
        // Until what a checkpoint lets go of is deleted.
        sleep(Duration::from_secs(1)).await;
        self.lived.pinned = self.mount.stale_entries().await.len();
        if let Some(bytes) = self.kept.take() {
            volume.restore(KEPT, b"a", ROOT, b"restored").await.expect("everything is well");
            let restored = volume.lookup(ROOT, b"restored").expect("it was just made").ino;
            volume.open_file(restored).expect("everything is well");
            let read = volume.read(restored, 0, 1 << 20).await.expect("everything is well");
            assert!(read.concat() == bytes, "the snapshot has other bytes");
            volume.close_file(restored);
        }
        for name in self.snapshots_taken() {
            volume.delete_snapshot(&name).await.expect("everything is well");
        }
        sleep(Duration::from_secs(1)).await;
        let found = volume.fsck(FsckWish::default()).await.expect("everything is well");
        assert!(found.problems.is_empty() && found.journal.contains("the same"), "{found:#?}");
        assert_eq!(self.mount.stale_entries().await, Vec::<String>::new());
    }
}

/// What fails once may keep it from being mounted once.
async fn mounted(world: &mut World) -> Mount {
    let mounted = match world.mount(0, false).await {
        Err(_) => world.mount(0, false).await,
        mounted => mounted,
    };
    mounted.unwrap_or_else(|refused| panic!("{refused:?}"))
}
