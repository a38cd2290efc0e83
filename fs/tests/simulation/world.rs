//! Nodes on modelled disks, and hosts that mount one volume on them: everything that can crash or lose power.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use avidfs::authority::Authority;
use avidfs::cache::{Cache, CacheOptions};
use avidfs::inode::Time;
use avidfs::journal::chain::Reader;
use avidfs::journal::{self, Checkpoints, Journal, JournalOptions};
use avidfs::lease::{Applicant, Denied, Lease};
use avidfs::metadata::sqlite::SqliteStore;
use avidfs::metadata::{Configuration, MetadataStore, VolumeSettings};
use avidfs::mount;
use avidfs::pool::{Pool, PoolOptions};
use avidfs::stripe::{Stripe, StripeOptions};
use avidfs::transport::faulty::FaultyTransport;
use avidfs::transport::in_process::InProcessTransport;
use avidfs::transport::{FragmentTransport, NodeAddress};
use avidfs::volume::{AccessTimes, Backlog, Views, Volume, VolumeOptions};
use common::code::Code;
use common::hash::HashId;
use common::wire::{MountId, NodeId, VolumeId};
use ed25519_dalek::SigningKey;
use shardd::{Limits, ModelledDisk, Store, StoreOptions};
use tempfile::TempDir;

use crate::failing_store::{FailingStore, StoreFaults};
use crate::fate::{Fate, Line};

pub const NODES: usize = 6;
/// So many of them the volume is made on.
const AT_FIRST: usize = 5;
pub const OBJECT: u32 = 4 << 10;
const ID: VolumeId = VolumeId([7; 16]);
const HELLO: Duration = Duration::from_secs(1);
const IO_LIMIT: Duration = Duration::from_secs(5);

/// See the module.
pub struct World {
    pub fate: Fate,
    folder: TempDir,
    pub disks: Vec<Arc<ModelledDisk>>,
    nodes: Vec<Option<Arc<Store>>>,
    network: Arc<InProcessTransport>,
    pub hosts: Vec<Host>,
    /// When mounts write the journal anew.
    pub checkpoints: Checkpoints,
    /// What an fsync lets the metadata carry.
    pub carried_bytes: u64,
    /// The nodes that the next mount names; none: those of the mounts before.
    pub named: Option<Vec<usize>>,
    /// What befalls the stores of mounts.
    pub store_faults: Option<Arc<StoreFaults>>,
}

/// A state folder, and what is known of its disk.
pub struct Host {
    pub mount: MountId,
    /// The database; none before the first mount and after its disk was lost.
    database: Option<PathBuf>,
    /// Of the -wal file, durable for sure.
    synced: u64,
    copies: u64,
}

/// A daemon that runs.
pub struct Mount {
    pub volume: Arc<Volume>,
    pub line: Arc<Line>,
    pub host: usize,
    pub journal: Arc<Journal>,
    reader: Reader,
    _lease: Lease,
}

impl Mount {
    /// Entries of the journal from before its last checkpoint that nodes still have.
    pub async fn stale_entries(&self) -> Vec<String> {
        let chain = self.reader.read(Some(&key().verifying_key())).await.expect("the journal can be read");
        chain.map(|chain| chain.stale).unwrap_or_default()
    }
}

/// Why there is no mount.
#[derive(Debug)]
pub enum Refused {
    /// Somebody else has the lease.
    Held,
    /// Others wrote meanwhile, and this host has changes that never reached the pool.
    Diverged,
    /// Everything else.
    Other(String),
}

impl From<avidfs::error::Error> for Refused {
    fn from(error: avidfs::error::Error) -> Refused {
        let text = error.to_string();
        if text.contains("written elsewhere") { Refused::Diverged } else { Refused::Other(text) }
    }
}

fn other(error: impl std::fmt::Display) -> Refused {
    Refused::Other(error.to_string())
}

impl World {
    pub fn new(fate: Fate) -> World {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let disks: Vec<_> = (0..NODES).map(|_| Arc::new(ModelledDisk::default())).collect();
        let network = Arc::new(InProcessTransport::new([]));
        let host = |mount| Host { mount: MountId([mount; 16]), database: None, synced: 0, copies: 0 };
        let nodes = vec![None; NODES];
        let hosts = vec![host(1), host(2)];
        let mut world = World {
            fate,
            folder,
            disks,
            nodes,
            network,
            hosts,
            checkpoints: Checkpoints::default(),
            carried_bytes: 32 << 10,
            named: None,
            store_faults: None,
        };
        for node in 0..NODES {
            world.found(node);
            world.start_node(node);
        }
        world.format();
        world
    }

    /// A data folder whose identity is the same in every run.
    fn found(&self, node: usize) {
        let path = self.node_folder(node);
        std::fs::create_dir_all(&path).unwrap();
        let (id, seal) = (identity(node), format!("{:x}", node + 1).repeat(64));
        let json = format!(r#"{{"format":1,"node":"{id}","seal":"{seal}","created":0}}"#);
        std::fs::write(path.join("node.json"), json).unwrap();
    }

    fn node_folder(&self, node: usize) -> PathBuf {
        self.folder.path().join(format!("node{node}"))
    }

    fn format(&mut self) {
        let path = self.folder.path().join("made.db");
        let store = SqliteStore::open(&path).unwrap();
        store.format(&self.settings()).unwrap();
        store.configure(&(0..AT_FIRST).map(identity).collect::<Vec<_>>()).unwrap();
        drop(store);
        for node in self.nodes.iter().flatten() {
            node.register(mount::descriptor(&self.settings(), None)).unwrap();
        }
        self.hosts[0].database = Some(path);
    }

    fn settings(&self) -> VolumeSettings {
        VolumeSettings {
            volume: ID,
            name: "test".into(),
            code: code(),
            hash: HashId::Blake3,
            object_size: OBJECT,
            root: (0, 0),
            created: Time::default(),
        }
    }

    // Nodes.

    pub fn is_up(&self, node: usize) -> bool {
        self.nodes[node].is_some()
    }

    pub fn down(&self) -> usize {
        (0..NODES).filter(|node| !self.is_up(*node)).count()
    }

    pub fn start_node(&mut self, node: usize) {
        if self.is_up(node) {
            return;
        }
        self.fate.note(&format!("node {node} starts"));
        let options = StoreOptions {
            capacity: Some(64 << 20),
            disk: self.disks[node].plugged(),
            has_upkeep: false,
            ..StoreOptions::new(self.node_folder(node))
        };
        // A disk that fails while it starts keeps it from starting, once.
        let store = Store::open(options.clone()).or_else(|_| Store::open(options));
        let store = store.unwrap_or_else(|error| panic!("node {node}: {error}"));
        self.network.start(address(node), shardd::app(store.clone(), Limits::default()));
        self.nodes[node] = Some(store);
    }

    pub fn start_nodes(&mut self) {
        (0..NODES).for_each(|node| self.start_node(node));
    }

    /// It answers no more; what it did not flush is lost if its power is.
    pub async fn stop_node(&mut self, node: usize, loses_power: bool) {
        self.fate.note(&format!("node {node} {}", if loses_power { "loses power" } else { "crashes" }));
        self.network.stop(&address(node));
        let Some(store) = self.nodes[node].take() else { return };
        let fate = self.fate.clone();
        match loses_power {
            true => self.disks[node].lose_power(&mut |bound| fate.below(bound)),
            false => self.disks[node].crash(),
        }
        // Requests under way end first: the store has the lock of its folder.
        for waited in 0.. {
            if Arc::strong_count(&store) == 1 {
                break;
            }
            assert!(waited < 10_000, "a request to node {node} does not end");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub fn tend(&self) {
        self.nodes.iter().flatten().for_each(|node| node.tend());
    }

    // Hosts.

    /// The state folder's disk is lost.
    pub fn forget_metadata(&mut self, host: usize) {
        self.fate.note(&format!("host {host} loses its state folder"));
        self.hosts[host].database = None;
        let _none = std::fs::remove_dir_all(self.backlog(host));
    }

    pub fn has_metadata(&self, host: usize) -> bool {
        self.hosts[host].database.is_some()
    }

    /// What of the metadata no flush covered is kept, dropped or torn.
    pub fn lose_host_power(&mut self, host: usize) {
        self.keep_database(host);
        let Some(database) = self.hosts[host].database.clone() else { return };
        let wal = wal_of(&database);
        let Ok(bytes) = std::fs::read(&wal) else { return };
        let (synced, length) = (self.hosts[host].synced.min(bytes.len() as u64), bytes.len() as u64);
        let kept = synced + self.fate.below(length - synced + 1);
        let mut bytes = bytes[..kept as usize].to_vec();
        if kept > synced && self.fate.chance(50) {
            let torn = (synced + self.fate.below(kept - synced)) as usize;
            let end = (torn + 512).min(bytes.len());
            bytes[torn..end].fill(0);
        }
        std::fs::write(&wal, bytes).unwrap();
        self.lose_redo_log(&database);
        // In frames, as which transaction ends in which byte does not depend on the seed alone.
        self.fate
            .note(&format!("host {host} loses power: {kept} of {length} bytes kept, {synced} were flushed"));
    }

    /// No flush ever covers the redo log: it is kept, dropped or torn.
    fn lose_redo_log(&self, database: &Path) {
        let redo = beside(database, "-redo");
        let Ok(mut bytes) = std::fs::read(&redo) else { return };
        match self.fate.below(3) {
            0 => return,
            1 => bytes.clear(),
            _ => {
                let torn = self.fate.below(bytes.len() as u64 + 1) as usize;
                let end = (torn + 512).min(bytes.len());
                bytes[torn..end].fill(0);
            }
        }
        std::fs::write(&redo, bytes).unwrap();
    }

    /// The database as it is now, in files of their own: whoever has the old ones open can change nothing any more.
    fn keep_database(&mut self, host: usize) {
        let folder = self.folder.path().to_owned();
        let Host { database, copies, .. } = &mut self.hosts[host];
        let Some(old) = database.clone() else { return };
        *copies += 1;
        let new = folder.join(format!("host{host}-{copies}.db"));
        std::fs::copy(&old, &new).unwrap();
        for ending in ["-wal", "-redo"] {
            let _clean = std::fs::copy(beside(&old, ending), beside(&new, ending));
        }
        *database = Some(new);
    }

    fn backlog(&self, host: usize) -> PathBuf {
        self.folder.path().join(format!("backlog{host}"))
    }

    fn mark_synced(&mut self, host: usize) {
        if let Some(database) = &self.hosts[host].database {
            self.hosts[host].synced = std::fs::metadata(wal_of(database)).map_or(0, |wal| wal.len());
        }
    }

    /// The store of a host, made anew from the pool where there is none.
    async fn open_store(&mut self, host: usize, reader: &Reader) -> Result<Arc<dyn MetadataStore>, Refused> {
        if self.has_metadata(host) {
            self.keep_database(host);
            let path = self.hosts[host].database.clone().unwrap();
            return self.open_database(&path);
        }
        self.fate.note(&format!("host {host} recovers"));
        let chain = reader.read(Some(&key().verifying_key())).await?;
        let chain = chain.ok_or_else(|| other("the pool holds nothing of the journal"))?;
        self.hosts[host].copies += 1;
        let path = self.folder.path().join(format!("host{host}-{}.db", self.hosts[host].copies));
        let store = self.open_database(&path)?;
        journal::restore(&store, reader, &chain, &|_, _| ()).await?;
        self.hosts[host].database = Some(path);
        self.mark_synced(host);
        Ok(store)
    }

    fn open_database(&self, path: &Path) -> Result<Arc<dyn MetadataStore>, Refused> {
        let store: Arc<dyn MetadataStore> = Arc::new(SqliteStore::open(path)?);
        Ok(match self.store_faults.clone() {
            Some(faults) => Arc::new(FailingStore { store, faults }),
            None => store,
        })
    }

    /// Mount, as the daemon does it.
    pub async fn mount(&mut self, host: usize, take_over: bool) -> Result<Mount, Refused> {
        self.fate.note(&format!("host {host} mounts, take-over: {take_over}"));
        let line = Arc::new(Line::of(format!("host {host}")));
        let mounted = self.try_mount(host, take_over, line.clone()).await;
        if let Err(refused) = &mounted {
            self.fate.note(&format!("host {host} is refused: {refused:?}"));
            line.cut();
        }
        mounted
    }

    async fn try_mount(&mut self, host: usize, take_over: bool, line: Arc<Line>) -> Result<Mount, Refused> {
        let faults = FaultyTransport::new(self.network.clone(), 1);
        let (fate, watched) = (self.fate.clone(), line.clone());
        faults.watch(move |node, verb| fate.of_request(&watched, &node.0, verb));
        let transport: Arc<dyn FragmentTransport> = faults;
        let addresses: Vec<NodeAddress> = (0..NODES).map(address).collect();
        let options = PoolOptions { down_interval: Duration::from_millis(50), ..PoolOptions::default() };
        let survey = mount::survey(&transport, &addresses, &[], HELLO).await;
        let pool = Pool::connect(transport, addresses.clone(), &[], options).await?;
        let reader = Reader {
            pool: pool.clone(),
            volume: ID,
            code: code(),
            hash: HashId::Blake3,
            io_limit: IO_LIMIT,
            accept_loss: None,
            unfenced: Default::default(),
        };
        let metadata = self.open_store(host, &reader).await?;
        pool.remember(&addresses.into_iter().zip((0..NODES).map(identity)).collect::<Vec<_>>());
        pool.start();
        let mount = self.hosts[host].mount;
        let mut newest = newest_configuration(&*metadata)?;
        let (lease, reader, position) = loop {
            let applicant = Applicant {
                pool: pool.clone(),
                roots: newest.nodes[..code().n()].to_vec(),
                quorum: code().quorum(),
                authority: Arc::new(Authority::new(ID, None)),
                mount,
                host: format!("host {host}"),
            };
            let seen = survey.newest_epoch(ID, code());
            let lease = self.lease(host, &*metadata, &applicant, seen, take_over).await?;
            let reader = Reader { unfenced: lease.unfenced().clone(), ..reader.clone() };
            let position = journal::catch_up(&metadata, &reader, &key().verifying_key(), mount, None).await?;
            self.mark_synced(host);
            let known = newest_configuration(&*metadata)?;
            if known == newest {
                break (lease, reader, position);
            }
            // The journal names other nodes, and they are to be asked.
            newest = known;
        };
        let named = self.named.take().map(|nodes| nodes.into_iter().map(identity).collect());
        let configuration = metadata.configure(&named.unwrap_or(newest.nodes))?;
        let cache = Cache::open(CacheOptions { memory_bytes: 16 << 10, disk_bytes: 0, disk: None })?;
        let options = StripeOptions {
            io_limit: IO_LIMIT,
            return_time: Duration::from_millis(200),
            ..StripeOptions::new(ID, lease.epoch(), code(), HashId::Blake3)
        };
        let configurations = metadata.configurations()?;
        let stripe = Stripe::new(pool.clone(), cache, configurations, configuration.number, options);
        let journal_options = JournalOptions {
            volume: ID,
            epoch: lease.epoch(),
            mount,
            configuration,
            interval: Duration::from_millis(100),
            checkpoints: self.checkpoints,
        };
        let journal = Journal::start(metadata.clone(), stripe.clone(), key(), position, journal_options);
        let options = VolumeOptions {
            write_behind_bytes: 64 << 10,
            dirty_interval: Duration::from_millis(200),
            carried_bytes: self.carried_bytes,
            io_limit: IO_LIMIT,
            backlog: Backlog::own(self.backlog(host)),
            backlog_bytes: 64 << 20,
            capacity_bytes: None,
            read_only: false,
            access_times: AccessTimes::Never,
            views: Views {
                folder: self.backlog(host).with_extension("views"),
                open: |path| Ok(Arc::new(SqliteStore::open(path)?)),
            },
            lease: None,
            public: key().verifying_key(),
        };
        let opened = Volume::open(metadata.clone(), stripe, pool, Some(journal.clone()), options).await;
        self.mark_synced(host);
        Ok(Mount { volume: opened?, line, host, journal, reader, _lease: lease })
    }

    async fn lease(
        &mut self,
        host: usize,
        metadata: &dyn MetadataStore,
        applicant: &Applicant,
        mut seen: u32,
        take_over: bool,
    ) -> Result<Lease, Refused> {
        for _ in 0..5 {
            let epoch = metadata.begin_epoch(seen)?;
            self.mark_synced(host);
            match applicant.acquire(epoch, take_over).await {
                Ok(lease) => return Ok(lease),
                Err(Denied::Stale) => seen = epoch,
                Err(Denied::Held(_)) => return Err(Refused::Held),
                Err(Denied::TooFew(why)) => return Err(Refused::Other(why)),
            }
        }
        Err(other("others keep mounting the volume"))
    }
}

fn newest_configuration(metadata: &dyn MetadataStore) -> Result<Configuration, Refused> {
    let newest = metadata.configurations()?.into_iter().max_by_key(|configuration| configuration.number);
    newest.ok_or_else(|| other("the metadata names no nodes"))
}

/// The identity that a node has in every run.
fn identity(node: usize) -> NodeId {
    NodeId([0x11 * (node as u8 + 1); 16])
}

pub fn key() -> SigningKey {
    SigningKey::from_bytes(&[5; 32])
}

fn code() -> Code {
    Code::new(3, 2).unwrap()
}

pub fn address(node: usize) -> NodeAddress {
    InProcessTransport::address(node)
}

fn wal_of(database: &Path) -> PathBuf {
    beside(database, "-wal")
}

fn beside(database: &Path, ending: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(ending);
    name.into()
}
