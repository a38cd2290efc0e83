//! The volume on five nodes in this process, behind a transport that fails on command.

mod crashes;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::code::Code;
use common::hash::HashId;
use common::wire::{JOURNAL_PREFIX, MountId, RefusalCode, VolumeDescriptor, VolumeId};
use ed25519_dalek::SigningKey;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shardd::{Limits, Store, StoreOptions};
use tempfile::TempDir;
use tokio::runtime::Handle;

use super::{AccessTimes, Backlog, Views, Volume, VolumeOptions};
use crate::cache::{Cache, CacheOptions};
use crate::error::Error;
use crate::inode::{Caller, Ino, MAX_SIZE, ROOT, SetAttributes, SetTime, Time};
use crate::journal::chain::Reader;
use crate::journal::{self, Checkpoints, Journal, JournalOptions};
use crate::metadata::sqlite::SqliteStore;
use crate::metadata::{Exception, MetadataStore, NewInode, RenameMode, VolumeSettings};
use crate::open_file::{Progress, Seal};
use crate::pool::{NodeState, Pool, PoolOptions};
use crate::stripe::{Stripe, StripeOptions};
use crate::transport::faulty::{Fault, FaultyTransport, Rule, Verb};
use crate::transport::in_process::InProcessTransport;
use crate::transport::{FragmentTransport, NodeAddress};

const OBJECT: u32 = 64 << 10;
const NODES: usize = 5;

mod elsewhere;
mod fsck;
mod homes;
mod intents;
mod rebalance;

/// Nodes, and a volume on them that can be mounted again and again.
struct Bench {
    nodes: Vec<Arc<Store>>,
    /// Which of them the next mount is told of.
    used: Vec<usize>,
    /// Over which of them it places objects; over those it is told of, if that is not said.
    placed: Option<Vec<usize>>,
    faults: Arc<FaultyTransport>,
    metadata: Arc<dyn MetadataStore>,
    id: VolumeId,
    /// What the state folder is known by.
    mount: MountId,
    /// What the operator gives up.
    accept_loss: Option<u64>,
    folder: TempDir,
}

impl Bench {
    async fn new() -> Bench {
        Bench::of(NODES).await
    }

    async fn of(nodes: usize) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let open = |k: usize| Store::open(StoreOptions::new(folder.path().join(format!("node{k}")))).unwrap();
        let nodes: Vec<Arc<Store>> = (0..nodes).map(open).collect();
        let routers = nodes.iter().map(|node| shardd::app(node.clone(), Limits::default()));
        let transport = Arc::new(InProcessTransport::new(routers.collect::<Vec<_>>()));
        let faults = FaultyTransport::new(transport, 1);
        let id = VolumeId([7; 16]);
        let metadata = SqliteStore::open(&folder.path().join("metadata.db")).unwrap();
        let settings = VolumeSettings {
            volume: id,
            name: "test".into(),
            code: Code::new(3, 2).unwrap(),
            hash: HashId::Blake3,
            object_size: OBJECT,
            root: (0, 0),
            created: at(0),
        };
        metadata.format(&settings).unwrap();
        let mount = MountId([1; 16]);
        let bench = Bench {
            used: (0..nodes.len()).collect(),
            placed: None,
            nodes,
            faults,
            metadata: Arc::new(metadata),
            id,
            mount,
            accept_loss: None,
            folder,
        };
        let descriptor = VolumeDescriptor {
            volume: id,
            name: "test".into(),
            code: "3+2".into(),
            hash: "blake3".into(),
            object_size: OBJECT.into(),
            owner: None,
        };
        for k in bench.used.clone() {
            bench.faults.register(&address(k), &descriptor, SECOND).await.unwrap();
        }
        bench
    }

    async fn mount(&self) -> Arc<Volume> {
        self.try_mount().await.unwrap()
    }

    async fn try_mount(&self) -> crate::error::Result<Arc<Volume>> {
        self.open(|_| ()).await
    }

    async fn mount_with(&self, change: impl FnOnce(&mut VolumeOptions)) -> Arc<Volume> {
        self.open(change).await.unwrap()
    }

    async fn pool(&self) -> crate::error::Result<Arc<Pool>> {
        let addresses = self.used.iter().copied().map(address).collect();
        let options = PoolOptions { down_interval: Duration::from_millis(50), ..PoolOptions::default() };
        let known: Vec<_> = self.used.iter().map(|&k| (address(k), self.nodes[k].node())).collect();
        let pool = Pool::connect(self.faults.clone(), addresses, &known, options).await?;
        pool.start();
        Ok(pool)
    }

    async fn open(&self, change: impl FnOnce(&mut VolumeOptions)) -> crate::error::Result<Arc<Volume>> {
        let reader = self.reader().await?;
        let (pool, key) = (reader.pool.clone(), self.key());
        let placed = self.placed.as_ref().unwrap_or(&self.used);
        let identities: Vec<_> = placed.iter().map(|&k| self.nodes[k].node()).collect();
        let position =
            journal::catch_up(&self.metadata, &reader, &key.verifying_key(), self.mount, None).await?;
        let configuration = self.metadata.configure(&identities)?;
        let current = configuration.number;
        let epoch = self.metadata.begin_epoch(0)?;
        let cache = Cache::open(CacheOptions { memory_bytes: 8 << 20, disk_bytes: 0, disk: None })?;
        let io_limit = Duration::from_secs(3);
        let options = StripeOptions {
            io_limit,
            return_time: Duration::ZERO,
            ..StripeOptions::new(self.id, epoch, Code::new(3, 2).unwrap(), HashId::Blake3)
        };
        let stripe = Stripe::new(pool.clone(), cache, self.metadata.configurations()?, current, options);
        let mut options = VolumeOptions {
            write_behind_bytes: 1 << 20,
            dirty_interval: Duration::from_millis(200),
            carried_bytes: 32 << 10,
            io_limit,
            backlog: Backlog::own(self.backlog()),
            backlog_bytes: 64 << 20,
            capacity_bytes: None,
            read_only: false,
            access_times: AccessTimes::default(),
            lease: None,
            views: Views {
                folder: self.folder.path().join("views"),
                open: |path| Ok(Arc::new(SqliteStore::open(path)?)),
            },
            public: key.verifying_key(),
        };
        change(&mut options);
        let journal_options = JournalOptions {
            volume: self.id,
            epoch,
            mount: self.mount,
            configuration,
            interval: Duration::from_millis(100),
            checkpoints: Checkpoints::default(),
        };
        let start = || Journal::start(self.metadata.clone(), stripe.clone(), key, position, journal_options);
        let journal = (!options.read_only).then(start);
        Volume::open(self.metadata.clone(), stripe, pool, journal, options).await
    }

    fn backlog(&self) -> std::path::PathBuf {
        self.folder.path().join("backlog")
    }

    fn fail(&self, nodes: std::ops::Range<usize>, fault: Fault) {
        nodes.for_each(|k| {
            self.faults.add(Rule::always(fault).at(&address(k)));
        });
    }

    fn fragments(&self) -> u64 {
        self.nodes.iter().map(|node| self.fragments_on(node)).sum()
    }

    /// Fragments of files; those of the journal are not counted.
    fn fragments_on(&self, node: &Store) -> u64 {
        let listing = node.list(shardd::Space::Volume(self.id), "", 1000).unwrap();
        let objects = listing.objects.iter().filter(|object| !object.key.starts_with(JOURNAL_PREFIX));
        objects.map(|object| object.indexes.len() as u64).sum()
    }

    fn key(&self) -> SigningKey {
        SigningKey::from_bytes(&[5; 32])
    }

    async fn reader(&self) -> crate::error::Result<Reader> {
        let pool = self.pool().await?;
        let io_limit = Duration::from_secs(3);
        Ok(Reader {
            pool,
            volume: self.id,
            code: Code::new(3, 2).unwrap(),
            hash: HashId::Blake3,
            io_limit,
            accept_loss: self.accept_loss,
            unfenced: Default::default(),
        })
    }

    /// A stripe that remembers nothing, with the lists of nodes a store knows.
    async fn fresh_stripe(&self, metadata: &dyn MetadataStore) -> Arc<Stripe> {
        let pool = self.pool().await.unwrap();
        let cache = Cache::open(CacheOptions { memory_bytes: 0, disk_bytes: 0, disk: None }).unwrap();
        let options = StripeOptions::new(self.id, 0, Code::new(3, 2).unwrap(), HashId::Blake3);
        Stripe::new(pool, cache, metadata.configurations().unwrap(), 1, options)
    }

    /// Lose the disk of the mount host, and make the metadata anew from the pool.
    async fn recover(&mut self) {
        let reader = self.reader().await.unwrap();
        let chain = reader.read(Some(&self.key().verifying_key())).await.unwrap().unwrap();
        self.metadata = Arc::new(SqliteStore::open_in_memory().unwrap());
        journal::restore(&self.metadata, &reader, &chain, &|_, _| ()).await.unwrap();
    }
}

const SECOND: Duration = Duration::from_secs(1);

fn address(k: usize) -> NodeAddress {
    InProcessTransport::address(k)
}

fn at(seconds: i64) -> Time {
    Time { seconds, nanos: 0 }
}

fn caller(seconds: i64) -> Caller {
    Caller { uid: 0, gid: 0, now: at(seconds) }
}

fn create(volume: &Volume, name: &str) -> Ino {
    let new = NewInode { mode: libc::S_IFREG | 0o644, ..NewInode::default() };
    let ino = volume.create(ROOT, name.as_bytes(), new, 0, caller(1)).unwrap().ino;
    volume.open_file(ino).unwrap();
    ino
}

/// The mount ends as by SIGKILL: nothing of it goes on.
async fn crash(volume: Arc<Volume>) {
    volume.stop.send_replace(true);
    let gone = Arc::downgrade(&volume);
    drop(volume);
    until("the mount has ended", || gone.strong_count() == 0).await;
}

async fn write(volume: &Arc<Volume>, ino: Ino, offset: u64, data: &[u8]) {
    volume.write(ino, offset, Bytes::copy_from_slice(data), at(5)).await.unwrap();
}

async fn read(volume: &Arc<Volume>, ino: Ino, offset: u64, size: u32) -> Vec<u8> {
    volume.read(ino, offset, size).await.unwrap().concat()
}

fn resize(volume: &Volume, ino: Ino, size: u64) {
    volume.set_attributes(ino, &SetAttributes { size: Some(size), ..Default::default() }, caller(6)).unwrap();
}

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..600 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{what} did not come about within 15 s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_are_the_same_dirty_sealed_stored_and_mounted_again() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "a");
    let data = noise(5 * OBJECT as usize / 2, 1);
    for (k, part) in data.chunks(10_000).enumerate() {
        write(&volume, ino, k as u64 * 10_000, part).await;
    }
    assert_eq!(read(&volume, ino, 0, data.len() as u32 + 99).await, data);
    volume.flush(ino).await.unwrap();
    assert_eq!(read(&volume, ino, 12_345, 100_000).await, data[12_345..112_345]);
    volume.close_file(ino);
    volume.shut_down().await.unwrap();
    let again = bench.mount().await;
    assert_eq!(again.lookup(ROOT, b"a").unwrap().size, data.len() as u64);
    again.open_file(ino).unwrap();
    assert_eq!(read(&again, ino, 0, data.len() as u32).await, data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scattered_small_writes_share_one_object() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "a");
    for k in 0..10 {
        write(&volume, ino, k * 100_000, &[k as u8 + 1; 100]).await;
    }
    volume.flush(ino).await.unwrap();
    let usage = bench.metadata.usage().unwrap();
    assert_eq!((usage.objects, usage.live_bytes), (1, 1000));
    assert_eq!(bench.metadata.inode(ino).unwrap().allocated, 1000);
    assert_eq!(read(&volume, ino, 300_050, 100).await, [vec![4; 50], vec![0; 50]].concat());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_truncation_cut_off_reads_as_zeros_when_the_file_grows_again() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    for flushed in [false, true] {
        let ino = create(&volume, if flushed { "a" } else { "b" });
        // More than one object, so that one seal is on its way while the rest is dirty.
        write(&volume, ino, 0, &vec![9; 3 * OBJECT as usize / 2]).await;
        if flushed {
            volume.flush(ino).await.unwrap();
        }
        resize(&volume, ino, 1000);
        resize(&volume, ino, 5000);
        assert_eq!(volume.attributes(ino).unwrap().size, 5000);
        let expected = [vec![9; 1000], vec![0; 4000]].concat();
        assert_eq!(read(&volume, ino, 0, 10_000).await, expected);
        volume.fsync(ino).await.unwrap();
        assert_eq!(read(&volume, ino, 0, 10_000).await, expected);
        assert_eq!(bench.metadata.inode(ino).unwrap().size, 5000);
    }
}

/// An open that had read the old size was noted only after a truncation by path had looked for open files: it went on
/// with a size, and bytes, that were gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_opens_a_file_while_it_is_cut_by_its_path_sees_it_cut() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "a");
    for round in 0..400 {
        write(&volume, ino, 0, &[7; 100]).await;
        volume.flush(ino).await.unwrap();
        volume.close_file(ino);
        let begin = std::sync::Barrier::new(2);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                begin.wait();
                resize(&volume, ino, 0);
            });
            begin.wait();
            for _ in 0..round % 40 {
                volume.open_file(ino).unwrap();
                volume.try_read(ino, 0, 100, None).unwrap();
                volume.close_file(ino);
            }
            volume.open_file(ino).unwrap();
            volume.try_read(ino, 0, 100, None).unwrap();
        });
        assert_eq!(volume.attributes(ino).unwrap().size, 0, "round {round}");
        assert!(read(&volume, ino, 0, 100).await.is_empty(), "round {round}");
        resize(&volume, ino, 10);
        assert_eq!(read(&volume, ino, 0, 100).await, [0; 10], "round {round}");
    }
}

/// Who had asked the store before the last bytes were committed looked for an open file that had then forgotten them, or
/// was closed. The kernel believed for an hour that the file ends there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_told_of_a_file_that_is_being_closed_is_never_older_than_its_writes() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "a");
    let (written, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let ways: [&(dyn Fn() -> crate::inode::Inode + Sync); 3] =
        [&|| volume.lookup(ROOT, b"a").unwrap(), &|| volume.attributes(ino).unwrap(), &|| {
            volume.list(ROOT, 0, 9).unwrap().remove(0).inode
        }];
    let ask = |way: usize| {
        while !done.load(Ordering::SeqCst) {
            let least = written.load(Ordering::SeqCst);
            let inode = ways[way]();
            assert!(inode.size >= least, "{} of {least} bytes, asked in way {way}", inode.size);
            assert!(inode.mtime >= at(least as i64), "{:?}, asked in way {way}", inode.mtime);
        }
    };
    let write_on = async || {
        for size in 0..1000 {
            volume.write(ino, size, Bytes::from_static(b"x"), at(size as i64 + 1)).await.unwrap();
            written.store(size + 1, Ordering::SeqCst);
            volume.flush(ino).await.unwrap();
            // In every other round it stays open for a moment.
            if size % 2 == 0 {
                volume.close_file(ino);
            }
            let began = std::time::Instant::now();
            while began.elapsed() < Duration::from_micros(200) {}
            if size % 2 == 0 {
                volume.open_file(ino).unwrap();
            }
        }
    };
    std::thread::scope(|threads| {
        (0..3).for_each(|way| drop(threads.spawn(move || ask(way))));
        tokio::task::block_in_place(|| Handle::current().block_on(write_on()));
        done.store(true, Ordering::SeqCst);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_set_by_hand_outlives_the_bytes_written_before_it() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "a");
    write(&volume, ino, 0, b"content").await;
    assert_eq!(volume.attributes(ino).unwrap().mtime, at(5));
    let set = SetAttributes { mtime: Some(SetTime::At(at(-77))), ..Default::default() };
    volume.set_attributes(ino, &set, caller(8)).unwrap();
    volume.flush(ino).await.unwrap();
    assert_eq!(volume.attributes(ino).unwrap().mtime, at(-77));
    write(&volume, ino, 0, b"later").await;
    volume.flush(ino).await.unwrap();
    assert_eq!(volume.attributes(ino).unwrap().mtime, at(5));
}

/// mtime and ctime, in seconds.
fn times(inode: crate::inode::Inode) -> (i64, i64) {
    (inode.mtime.seconds, inode.ctime.seconds)
}

async fn write_at_time(volume: &Arc<Volume>, ino: Ino, data: &[u8], seconds: i64) {
    volume.write(ino, 0, Bytes::copy_from_slice(data), at(seconds)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_takes_a_time_set_in_the_future_back() {
    let bench = Bench::new().await;
    let mut volume = bench.mount().await;
    let ino = create(&volume, "a");
    let ahead = SetAttributes { mtime: Some(SetTime::At(at(2_000_000_000))), ..Default::default() };
    let mut now = 10;
    for reopened in [false, true] {
        for synced in [false, true] {
            volume.set_attributes(ino, &ahead, caller(now)).unwrap();
            if reopened {
                volume.close_file(ino);
                volume.open_file(ino).unwrap();
            }
            write_at_time(&volume, ino, b"content", now + 1).await;
            assert_eq!(times(volume.attributes(ino).unwrap()), (now + 1, now + 1), "{reopened} {synced}");
            let done = if synced { volume.fsync(ino).await } else { volume.flush(ino).await };
            done.unwrap();
            assert_eq!(times(volume.attributes(ino).unwrap()), (now + 1, now + 1), "{reopened} {synced}");
            crash(volume).await;
            volume = bench.mount().await;
            volume.open_file(ino).unwrap();
            volume.flush(ino).await.unwrap();
            assert_eq!(times(volume.attributes(ino).unwrap()), (now + 1, now + 1), "{reopened} {synced}");
            now += 10;
        }
    }
    // Bytes on their way bring back nothing that was set by hand after them.
    write_at_time(&volume, ino, b"again", now).await;
    volume.set_attributes(ino, &ahead, caller(now)).unwrap();
    volume.flush(ino).await.unwrap();
    assert_eq!(times(volume.attributes(ino).unwrap()), (2_000_000_000, now));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_follow_a_clock_that_is_set_back() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "a");
    write_at_time(&volume, ino, b"stored", 1000).await;
    volume.flush(ino).await.unwrap();
    write_at_time(&volume, ino, b"later", 500).await;
    assert_eq!(times(volume.attributes(ino).unwrap()), (500, 500));
    volume.flush(ino).await.unwrap();
    assert_eq!(times(bench.metadata.inode(ino).unwrap()), (500, 500));
    // What was written before, and is committed after, has an older write's time.
    bench.faults.add(Rule::always(Fault::Delay(Duration::from_millis(300))).on(Verb::Put));
    write_at_time(&volume, ino, &noise(OBJECT as usize, 1), 1000).await;
    assert!(!volume.file(ino).unwrap().state().seals.is_empty(), "it is on its way");
    write_at_time(&volume, ino, b"later", 400).await;
    assert_eq!(times(volume.attributes(ino).unwrap()), (400, 400));
    volume.flush(ino).await.unwrap();
    assert_eq!(times(bench.metadata.inode(ino).unwrap()), (400, 400));
    // Whoever opens it next, too.
    write_at_time(&volume, ino, b"stored", 1000).await;
    volume.flush(ino).await.unwrap();
    volume.close_file(ino);
    volume.open_file(ino).unwrap();
    write_at_time(&volume, ino, b"later", 300).await;
    let set = SetAttributes { mode: Some(0o600), ..Default::default() };
    assert_eq!(times(volume.set_attributes(ino, &set, caller(310)).unwrap()), (300, 310));
    volume.flush(ino).await.unwrap();
    assert_eq!(times(bench.metadata.inode(ino).unwrap()), (300, 310));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_of_one_moment_in_any_order_change_no_time_in_the_store() {
    let bench = Bench::new().await;
    let volume = bench.mount_with(|options| options.dirty_interval = Duration::from_secs(3600)).await;
    let ino = create(&volume, "a");
    let before = bench.metadata.last_change();
    for nanos in [900, 100, 500] {
        let now = Time { seconds: 5, nanos };
        volume.write(ino, 0, Bytes::from_static(b"content"), now).await.unwrap();
    }
    assert_eq!(bench.metadata.last_change(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_waited_for_room_has_the_time_at_which_it_was_done() {
    let bench = Bench::new().await;
    let volume = bench.mount_with(|options| options.write_behind_bytes = 100).await;
    let ino = create(&volume, "a");
    bench.faults.add(Rule::always(Fault::Delay(Duration::from_millis(200))).on(Verb::Put));
    write(&volume, ino, 0, &[1; 100]).await;
    assert_eq!(volume.attributes(ino).unwrap().mtime, at(5));
    write(&volume, ino, 100, &[2; 100]).await;
    let mtime = volume.attributes(ino).unwrap().mtime;
    assert!(mtime >= Time { seconds: 5, nanos: 100_000_000 }, "{mtime:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_write_behind_is_told_until_a_retry_has_stored_it() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "a");
    bench.fail(0..3, Fault::Lose);
    write(&volume, ino, 0, b"precious").await;
    let error = volume.flush(ino).await.unwrap_err();
    assert!(matches!(error, Error::TooFewNodes(_)), "{error}");
    let again = volume.try_write(ino, 100, b"more", at(6)).unwrap_err();
    assert!(matches!(again, Error::TooFewNodes(_)), "{again}");
    assert!(volume.fsync(ino).await.is_err());
    assert_eq!(read(&volume, ino, 0, 8).await, b"precious");
    bench.faults.clear();
    until("storing what had failed", || volume.is_clean(ino)).await;
    volume.fsync(ino).await.unwrap();
    write(&volume, ino, 8, b" indeed").await;
    volume.flush(ino).await.unwrap();
    assert_eq!(read(&volume, ino, 0, 99).await, b"precious indeed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_no_pool_writers_wait_no_longer_than_the_limit_and_nothing_is_lost() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "a");
    bench.fail(0..5, Fault::Lose);
    let mut accepted = 0;
    let error = loop {
        match volume.write(ino, accepted, Bytes::from(vec![3; 50_000]), at(5)).await {
            Ok(()) => accepted += 50_000,
            Err(error) => break error,
        }
        assert!(accepted <= 2 << 20, "the budget is no bound");
    };
    assert_eq!(error.errno(), libc::EIO);
    bench.faults.clear();
    until("storing what had failed", || volume.is_clean(ino)).await;
    assert_eq!(read(&volume, ino, 0, 4 << 20).await, vec![3; accepted as usize]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_open_file_lives_until_it_is_forgotten_and_then_its_bytes_go() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "a");
    let data = noise(100_000, 2);
    write(&volume, ino, 0, &data).await;
    volume.flush(ino).await.unwrap();
    assert_eq!(bench.fragments(), 10);
    volume.unlink(ROOT, b"a", caller(9)).unwrap();
    assert_eq!(read(&volume, ino, 0, 100_000).await, data);
    write(&volume, ino, 5, b"still").await;
    volume.flush(ino).await.unwrap();
    volume.close_file(ino);
    volume.forget(ino, 1);
    until("deleting the fragments", || bench.fragments() == 0).await;
    until("forgetting the object", || bench.metadata.usage().unwrap().objects == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_open_file_keeps_its_bytes() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let (old, new) = (create(&volume, "old"), create(&volume, "new"));
    write(&volume, old, 0, b"old").await;
    write(&volume, new, 0, b"new").await;
    volume.rename((ROOT, b"new"), (ROOT, b"old"), RenameMode::Replace, caller(3)).unwrap();
    assert_eq!(volume.lookup(ROOT, b"old").unwrap().ino, new);
    volume.flush(old).await.unwrap();
    assert_eq!(read(&volume, old, 0, 9).await, b"old");
    assert_eq!(read(&volume, new, 0, 9).await, b"new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orphan_of_the_last_mount_is_given_up_at_the_next() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "a");
    write(&volume, ino, 0, b"orphan").await;
    volume.flush(ino).await.unwrap();
    volume.unlink(ROOT, b"a", caller(9)).unwrap();
    volume.shut_down().await.unwrap();
    assert_eq!(bench.metadata.orphans().unwrap(), [ino]);
    let _again = bench.mount().await;
    until("deleting the fragments", || bench.fragments() == 0).await;
    assert!(bench.metadata.inode(ino).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_pool_takes_at_the_end_is_stored_by_the_next_mount() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "a");
    let data = noise(100_000, 3);
    bench.fail(0..3, Fault::Lose);
    write(&volume, ino, 0, &data).await;
    let unsaved = volume.shut_down().await.unwrap_err();
    assert_eq!((unsaved.bytes, unsaved.files, &unsaved.lost), (100_000, 1, &None), "{unsaved}");
    drop(volume);
    assert!(bench.try_mount().await.is_err(), "the backlog comes first");
    bench.faults.clear();
    let again = bench.mount().await;
    again.open_file(ino).unwrap();
    assert_eq!(read(&again, ino, 0, 200_000).await, data);
    assert_eq!(again.attributes(ino).unwrap().mtime, at(5));
    assert_eq!(std::fs::read_dir(bench.backlog()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_two_of_five_dead_writes_go_on_and_fragments_go_home_later() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "a");
    bench.fail(0..2, Fault::Lose);
    let data = noise(200_000, 4);
    write(&volume, ino, 0, &data).await;
    volume.flush(ino).await.unwrap();
    let report = volume.locate(ino).await.unwrap();
    assert_eq!(report.survives, Some(1), "{report:#?}");
    for object in &report.objects {
        let mut counts = std::collections::BTreeMap::new();
        object.fragments.iter().for_each(|fragment| *counts.entry(&fragment.node).or_insert(0) += 1);
        let mut counts: Vec<i32> = counts.into_values().collect();
        counts.sort_unstable();
        assert_eq!(counts, [1, 2, 2]);
    }
    bench.faults.clear();
    until("bringing fragments home", || {
        bench.metadata.usage().unwrap().objects_with_exceptions == 0
            && bench.nodes.iter().all(|node| bench.fragments_on(node) == report.objects.len() as u64)
    })
    .await;
    assert_eq!(volume.locate(ino).await.unwrap().survives, Some(2));
    assert_eq!(read(&volume, ino, 0, 200_000).await, data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copying_a_range_moves_no_bytes() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let (from, to) = (create(&volume, "from"), create(&volume, "to"));
    let data = noise(100_000, 5);
    write(&volume, from, 0, &data).await;
    write(&volume, to, 0, b"before").await;
    volume.flush(from).await.unwrap();
    volume.flush(to).await.unwrap();
    let objects = bench.metadata.usage().unwrap().objects;
    assert_eq!(volume.copy_range((from, 1000), (to, 3), 1 << 30, caller(7)).await.unwrap(), 99_000);
    assert_eq!(bench.metadata.usage().unwrap().objects, objects);
    assert_eq!(read(&volume, to, 0, 200_000).await, [b"bef", &data[1000..]].concat());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_rewritten_while_it_is_copied_is_no_hole_in_the_copy() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let (from, to) = (create(&volume, "from"), create(&volume, "to"));
    write(&volume, from, 0, &noise(100_000, 1)).await;
    volume.flush(from).await.unwrap();
    write(&volume, to, 0, b"before").await;
    bench.faults.add(Rule::always(Fault::Delay(Duration::from_millis(300))).on(Verb::Put));
    let copying = tokio::spawn({
        let volume = volume.clone();
        async move { volume.copy_range((from, 0), (to, 0), 1 << 30, caller(7)).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    resize(&volume, from, 0);
    write(&volume, from, 0, &noise(100_000, 2)).await;
    assert_eq!(copying.await.unwrap().unwrap(), 100_000);
    // Of before if all of this took very long.
    let copied = read(&volume, to, 0, 200_000).await;
    assert!(copied == noise(100_000, 2) || copied == noise(100_000, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_and_holes_are_found() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "a");
    write(&volume, ino, 10_000, &[1; 100]).await;
    resize(&volume, ino, 1 << 44);
    for flushed in [false, true] {
        assert_eq!(volume.seek(ino, 0, true).unwrap(), Some(10_000), "flushed: {flushed}");
        assert_eq!(volume.seek(ino, 10_050, false).unwrap(), Some(10_100));
        assert_eq!(volume.seek(ino, 0, false).unwrap(), Some(0));
        assert_eq!(volume.seek(ino, 10_100, true).unwrap(), None);
        volume.flush(ino).await.unwrap();
    }
}

/// The file was gone through in steps of 1 GiB: 2^33 of them, with the file locked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seeking_costs_what_there_is_and_not_the_length() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "a");
    resize(&volume, ino, MAX_SIZE);
    assert_eq!(volume.seek(ino, 0, true).unwrap(), None);
    assert_eq!(volume.seek(ino, 5, false).unwrap(), Some(5));
    let far = MAX_SIZE - 100;
    write(&volume, ino, far, &[1; 100]).await;
    for flushed in [false, true] {
        assert_eq!(volume.seek(ino, 0, true).unwrap(), Some(far), "flushed: {flushed}");
        assert_eq!(volume.seek(ino, far + 50, true).unwrap(), Some(far + 50));
        assert_eq!(volume.seek(ino, far + 50, false).unwrap(), Some(MAX_SIZE), "the end is a hole");
        assert_eq!(volume.seek(ino, MAX_SIZE, false).unwrap(), None);
        volume.flush(ino).await.unwrap();
    }
}

/// Random changes against a plain vector, with nodes failing in between; the reference model of a file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_a_vector_of_bytes_whatever_happens_below() {
    let seeds =
        std::env::var("AVIDFS_SEED").ok().and_then(|seed| seed.parse().ok()).map_or(0..6, |s| s..s + 1);
    for seed in seeds {
        eprintln!("repeat with AVIDFS_SEED={seed}");
        let bench = Bench::new().await;
        let mut volume = bench.mount().await;
        let mut rng = StdRng::seed_from_u64(seed);
        let ino = create(&volume, "a");
        let mut model: Vec<u8> = Vec::new();
        for step in 0..250 {
            let offset = rng.random_range(0..300_000u64);
            let length =
                if rng.random_bool(0.2) { rng.random_range(1..150_000) } else { rng.random_range(1..5000) };
            let end = offset + length as u64;
            match rng.random_range(0..20) {
                0..8 => {
                    let data = noise(length, rng.random());
                    write(&volume, ino, offset, &data).await;
                    model.resize(model.len().max(end as usize), 0);
                    model[offset as usize..end as usize].copy_from_slice(&data);
                }
                8..14 => {
                    let from = (offset as usize).min(model.len());
                    let to = (end as usize).min(model.len());
                    let got = read(&volume, ino, offset, length as u32).await;
                    let wrong = got.iter().zip(&model[from..to]).position(|(got, model)| got != model);
                    let same = wrong.is_none() && got.len() == to - from;
                    assert!(
                        same,
                        "seed {seed}, step {step}: {} bytes of {offset}..{end}, wrong at {wrong:?}",
                        got.len()
                    );
                }
                14 => {
                    resize(&volume, ino, offset);
                    model.resize(offset as usize, 0);
                }
                15 => {
                    volume.punch(ino, offset..end, true, caller(2)).unwrap();
                    let to = (end as usize).min(model.len());
                    model[(offset as usize).min(to)..to].fill(0);
                }
                16 => volume.flush(ino).await.unwrap(),
                17 => volume.fsync(ino).await.unwrap(),
                18 => {
                    bench.faults.clear();
                    let first = rng.random_range(0..NODES - 1);
                    let fault = [Fault::Lose, Fault::LoseAnswer, Fault::CorruptFragment, Fault::Swap];
                    bench.fail(first..first + rng.random_range(0..2), fault[rng.random_range(0..4)]);
                }
                _ => {
                    bench.faults.clear();
                    volume.close_file(ino);
                    volume.shut_down().await.unwrap();
                    volume = bench.mount().await;
                    volume.open_file(ino).unwrap();
                }
            }
            assert_eq!(volume.attributes(ino).unwrap().size, model.len() as u64, "seed {seed}, step {step}");
        }
        assert!(read(&volume, ino, 0, 1 << 20).await == model, "seed {seed}: the whole file at the end");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn punching_away_a_files_last_bytes_keeps_its_length() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "a");
    write(&volume, ino, 0, &noise(2025, 6)).await;
    volume.punch(ino, 0..2903, true, caller(3)).unwrap();
    volume.shut_down().await.unwrap();
    drop(volume);
    let again = bench.mount().await;
    assert_eq!(again.attributes(ino).unwrap().size, 2025);
    again.open_file(ino).unwrap();
    assert_eq!(read(&again, ino, 0, 4096).await, [0; 2025]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn once_it_ends_nothing_is_accepted_that_would_be_lost() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "a");
    write(&volume, ino, 0, b"kept").await;
    volume.shut_down().await.unwrap();
    assert!(matches!(volume.try_write(ino, 4, b"more", at(9)), Err(Error::Host(_))));
    assert!(
        volume
            .set_attributes(ino, &SetAttributes { size: Some(0), ..Default::default() }, caller(9))
            .is_err()
    );
    assert_eq!(read(&volume, ino, 0, 9).await, b"kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_not_be_stored_and_is_then_removed_makes_room_for_other_writes() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    bench.fail(0..3, Fault::Lose);
    for (name, truncated) in [("removed", false), ("truncated", true)] {
        let ino = create(&volume, name);
        let data = Bytes::from(noise(700_000, 8));
        volume.write(ino, 0, data.clone(), at(5)).await.unwrap();
        assert!(volume.flush(ino).await.is_err());
        let file = volume.file(ino).unwrap();
        let has_failed = |seal: &Seal| matches!(seal.progress, Progress::Failed(_));
        until("every seal has failed", || file.state().seals.iter().all(has_failed)).await;
        if truncated {
            volume
                .set_attributes(ino, &SetAttributes { size: Some(0), ..Default::default() }, caller(6))
                .unwrap();
            volume.flush(ino).await.unwrap();
        } else {
            volume.close_file(ino);
            volume.unlink(ROOT, name.as_bytes(), caller(6)).unwrap();
            volume.forget(ino, 1);
        }
        until("giving the room back", || volume.budget.used() == 0).await;
    }
}

/// A file whose first object failed, as one that full nodes refuse, and whose second, a small one, is stored.
async fn with_a_stored_object_behind_a_failed_one(bench: &Bench, volume: &Arc<Volume>) -> (Ino, String) {
    for attempt in 0.. {
        let name = format!("{attempt}");
        if volume.lookup(ROOT, name.as_bytes()).is_ok() {
            continue;
        }
        let ino = create(volume, &name);
        bench.fail(0..3, Fault::Refuse(RefusalCode::NoSpace));
        write(volume, ino, 0, &noise(OBJECT as usize + 1000, 1)).await;
        let file = volume.file(ino).unwrap();
        let is_failed = |seal: &Seal| matches!(seal.progress, Progress::Failed(_));
        until("the first has failed", || file.state().seals.front().is_some_and(is_failed)).await;
        // Nobody tries it again.
        file.state().seals[0].progress = Progress::Storing;
        bench.faults.clear();
        let flushing = tokio::spawn({
            let volume = volume.clone();
            async move { volume.flush(ino).await }
        });
        let is_stored = |seal: &Seal| matches!(seal.progress, Progress::Stored(_));
        let second_is_stored = || {
            let state = file.state();
            state.dirty.is_empty() && state.seals.iter().skip(1).all(is_stored)
        };
        until("the second is stored", second_is_stored).await;
        flushing.abort();
        let mut state = file.state();
        // Otherwise somebody was about to try it just then.
        if state.seals.len() == 2 {
            state.seals[0].progress = Progress::Failed(Error::NoSpace("nodes are full".into()));
            return (ino, name);
        }
    }
    unreachable!("names do not end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stored_behind_a_failed_object_counts_once_that_is_cut_away() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let (punched, _) = with_a_stored_object_behind_a_failed_one(&bench, &volume).await;
    volume.punch(punched, 0..OBJECT.into(), true, caller(6)).unwrap();
    volume.flush(punched).await.unwrap();
    let expected = [vec![0; OBJECT as usize], noise(OBJECT as usize + 1000, 1)[OBJECT as usize..].to_vec()];
    assert_eq!(read(&volume, punched, 0, 2 * OBJECT).await, expected.concat());
    let (truncated, _) = with_a_stored_object_behind_a_failed_one(&bench, &volume).await;
    resize(&volume, truncated, 0);
    volume.flush(truncated).await.unwrap();
    let (removed, name) = with_a_stored_object_behind_a_failed_one(&bench, &volume).await;
    volume.close_file(removed);
    volume.unlink(ROOT, name.as_bytes(), caller(6)).unwrap();
    volume.forget(removed, 1);
    until("giving the room back", || volume.budget.used() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volumes_capacity_is_kept_and_room_comes_back() {
    let bench = Bench::new().await;
    let volume = bench.mount_with(|options| options.capacity_bytes = Some(300_000)).await;
    assert_eq!(volume.space().total_bytes, 300_000);
    let (a, b) = (create(&volume, "a"), create(&volume, "b"));
    let whole = Bytes::from(noise(300_000, 9));
    write(&volume, a, 0, &whole).await;
    let more = volume.write(b, 0, Bytes::from_static(b"x"), at(5)).await;
    assert!(matches!(more, Err(Error::NoSpace(_))), "{more:?}");
    assert_eq!(volume.space().available_bytes, 0);
    assert!(matches!(volume.allocate(b, 0..1, true, caller(5)), Err(Error::NoSpace(_))));
    // What replaces other bytes needs no more room, however often.
    for seed in 0..4 {
        write(&volume, a, 0, &noise(300_000, seed)).await;
    }
    volume.set_attributes(a, &SetAttributes { size: Some(1000), ..Default::default() }, caller(6)).unwrap();
    write(&volume, b, 0, &whole[..299_000]).await;
    assert!(volume.write(b, 299_000, Bytes::from_static(b"x"), at(7)).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fsync_acknowledged_is_there_after_the_mount_hosts_disk_is_lost() {
    let mut bench = Bench::new().await;
    for round in 0..4u64 {
        let volume = bench.mount().await;
        let name = format!("file {round}");
        let ino = create(&volume, &name);
        let data = noise(150_000, round);
        write(&volume, ino, 0, &data).await;
        volume.set_xattr(ino, b"user.round", &[round as u8], 0, caller(2)).unwrap();
        volume.fsync(ino).await.unwrap();
        // Not asked to be durable: it may be there or not, but whole.
        create(&volume, &format!("later {round}"));
        drop(volume);
        if round == 1 {
            // A store that is there catches up, and one that is ahead ships the rest.
            continue;
        }
        bench.recover().await;
        let volume = bench.mount().await;
        for round in 0..=round {
            let inode = volume.lookup(ROOT, format!("file {round}").as_bytes()).unwrap();
            volume.open_file(inode.ino).unwrap();
            assert_eq!(read(&volume, inode.ino, 0, 200_000).await, noise(150_000, round));
            assert_eq!(volume.xattr(inode.ino, b"user.round").unwrap(), [round as u8]);
        }
        volume.shut_down().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_three_of_five_nodes_make_the_metadata_anew() {
    let mut bench = Bench::new().await;
    let volume = bench.mount().await;
    // More than fits an entry, so that parts of the journal are objects themselves.
    for k in 0..600 {
        create(&volume, &format!("a long name of a file, number {k}"));
    }
    volume.shut_down().await.unwrap();
    drop(volume);
    for (a, b) in [(0, 1), (1, 3), (2, 4), (0, 4)] {
        bench.fail(a..a + 1, Fault::Lose);
        bench.fail(b..b + 1, Fault::Lose);
        bench.recover().await;
        assert_eq!(bench.metadata.list(ROOT, 0, 1000).unwrap().len(), 600, "without {a} and {b}");
        bench.faults.clear();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_from_an_old_backup_catches_up_and_a_pool_from_one_is_refused() {
    let mut bench = Bench::new().await;
    let volume = bench.mount().await;
    create(&volume, "first");
    volume.shut_down().await.unwrap();
    let old: Arc<dyn MetadataStore> = Arc::new(SqliteStore::open_in_memory().unwrap());
    let reader = bench.reader().await.unwrap();
    let chain = reader.read(None).await.unwrap().unwrap();
    journal::restore(&old, &reader, &chain, &|_, _| ()).await.unwrap();
    drop(volume);
    let volume = bench.mount().await;
    create(&volume, "second");
    volume.shut_down().await.unwrap();
    drop(volume);
    let newest = std::mem::replace(&mut bench.metadata, old);
    let volume = bench.mount().await;
    volume.lookup(ROOT, b"second").unwrap();
    volume.shut_down().await.unwrap();
    drop(volume);
    // Two futures of one volume: the store that did not see the last mount has nothing the pool lacks.
    bench.metadata = newest;
    let volume = bench.mount().await;
    volume.lookup(ROOT, b"second").unwrap();
    volume.shut_down().await.unwrap();
    drop(volume);
    // Nodes whose disks are older than what the store has seen.
    for node in &bench.nodes {
        let space = shardd::Space::Volume(bench.id);
        let author = shardd::Author::Writer { volume: bench.id, epoch: 1000 };
        for object in node.list(space, JOURNAL_PREFIX, 1000).unwrap().objects {
            node.delete(&author, &object.key, 1, None).unwrap();
        }
    }
    let refused = bench.try_mount().await.err().unwrap().to_string();
    assert!(refused.contains("holds nothing of the journal"), "{refused}");
}

/// The first 512 that a node did not confirm were tried again and again, and none after them was ever deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_that_is_down_cannot_delete_keeps_nothing_else() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "a");
    for k in 0..600 {
        write(&volume, ino, k * u64::from(OBJECT), &noise(1000, k)).await;
        volume.flush(ino).await.unwrap();
    }
    volume.stripe.settle().await;
    bench.fail(0..1, Fault::Lose);
    until("noticing", || volume.pool.nodes().iter().any(|node| matches!(node.state, NodeState::Down { .. })))
        .await;
    resize(&volume, ino, 0);
    volume.fsync(ino).await.unwrap();
    until("deleting on the others", || (1..5).all(|k| bench.fragments_on(&bench.nodes[k]) == 0)).await;
    assert_eq!(bench.fragments_on(&bench.nodes[0]), 600);
    bench.faults.clear();
    until("deleting on the one that is back", || bench.fragments() == 0).await;
    volume.shut_down().await.unwrap();
}

/// Deleting what the last file left took a seventh of the speed of writing the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletes_wait_for_writes_but_not_for_ever() {
    let bench = Bench::new().await;
    let volume = bench.mount_with(|options| options.dirty_interval = Duration::from_secs(3600)).await;
    let (old, new) = (create(&volume, "old"), create(&volume, "new"));
    write(&volume, old, 0, &noise(60_000, 1)).await;
    volume.fsync(old).await.unwrap();
    write(&volume, new, 0, &noise(40_000, 2)).await;
    resize(&volume, old, 0);
    volume.fsync(old).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.fragments(), 5, "bytes are on their way");
    until("deleting in the middle of it", || bench.fragments() == 0).await;
    assert!(volume.budget.used() > 0);
    // Once they have arrived nothing waits.
    volume.fsync(new).await.unwrap();
    assert_eq!(bench.fragments(), 5);
    resize(&volume, new, 0);
    let begun = std::time::Instant::now();
    until("deleting at a quiet moment", || bench.fragments() == 0).await;
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    volume.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_crash_left_unreferenced_is_found_and_nothing_else() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "kept");
    let data = noise(200_000, 4);
    write(&volume, ino, 0, &data).await;
    // Stored and never committed, as by a crash in between.
    for seed in 0..3 {
        let bytes = crate::stripe::pad(Code::new(3, 2).unwrap(), &noise(30_000, seed));
        volume.stripe.store(volume.stripe.next_id(), bytes, 30_000, true).await.unwrap();
    }
    volume.stripe.settle().await;
    volume.shut_down().await.unwrap();
    let before = bench.fragments();
    drop(volume);
    let volume = bench.mount().await;
    let found = volume.collect_garbage(true).await.unwrap();
    assert_eq!((found.objects, found.fragments, found.bytes, found.deleted), (3, 15, 150_000, 0));
    assert_eq!(bench.fragments(), before);
    assert_eq!(volume.collect_garbage(false).await.unwrap().deleted, 3);
    assert_eq!(volume.collect_garbage(true).await.unwrap().objects, 0);
    volume.open_file(ino).unwrap();
    assert_eq!(read(&volume, ino, 0, 200_000).await, data);
    let mut bench = bench;
    bench.recover().await;
    assert_eq!(bench.metadata.lookup(ROOT, b"kept").unwrap().size, 200_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_wrote_is_taken_over_only_by_a_store_without_changes_of_its_own() {
    let mut bench = Bench::new().await;
    let volume = bench.mount().await;
    create(&volume, "first");
    volume.shut_down().await.unwrap();
    drop(volume);
    // The state folder of another host, which writes on.
    let here = bench.metadata.clone();
    bench.recover().await;
    bench.mount = MountId([2; 16]);
    let volume = bench.mount().await;
    create(&volume, "elsewhere");
    volume.shut_down().await.unwrap();
    drop(volume);
    // This one only began a mount meanwhile, and was refused.
    bench.metadata = here;
    bench.mount = MountId([1; 16]);
    bench.metadata.begin_epoch(7).unwrap();
    // Somebody read a file, too.
    let first = bench.metadata.lookup(ROOT, b"first").unwrap().ino;
    bench.metadata.set_accessed(&[(first, at(8))]).unwrap();
    let volume = bench.mount().await;
    volume.lookup(ROOT, b"elsewhere").unwrap();
    create(&volume, "here again");
    volume.shut_down().await.unwrap();
    drop(volume);
    // Now it changes something that never reaches the pool, while the other host writes on.
    let here = bench.metadata.clone();
    bench.recover().await;
    bench.mount = MountId([2; 16]);
    here.create(ROOT, b"never shipped", &NewInode { mode: libc::S_IFREG, ..NewInode::default() }, at(9))
        .unwrap();
    let volume = bench.mount().await;
    volume.lookup(ROOT, b"here again").unwrap();
    create(&volume, "elsewhere again");
    volume.shut_down().await.unwrap();
    drop(volume);
    bench.metadata = here;
    bench.mount = MountId([1; 16]);
    let refused = bench.try_mount().await.err().unwrap().to_string();
    assert!(refused.contains("written elsewhere"), "{refused}");
    bench.metadata.lookup(ROOT, b"never shipped").unwrap();
}

mod compaction;
mod old_disks;
mod parts;
mod snapshots;
mod tail;
