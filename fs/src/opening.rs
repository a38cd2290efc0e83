//! Opening a volume, or making one: the one place that names its concrete parts and fits them together. What is asked
//! first, and refused, is mount.rs's; who sees the volume afterwards is the caller's business.

mod snapshot;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::authority::{Authority, owner_of};
use crate::cache::{Cache, CacheOptions};
use crate::config::MountConfig;
use crate::embedded::Embedded;
use crate::evidence::Evidence;
use crate::host;
use crate::inode::Time;
use crate::journal::chain::Reader;
use crate::journal::key::VolumeKey;
use crate::journal::{self, Checkpoints, Journal, JournalOptions, Position};
use crate::lease::{Applicant, Denied, Lease};
use crate::metadata::sqlite::SqliteStore;
use crate::metadata::{Configuration, MetadataStore, VolumeSettings};
use crate::mount::{self, Nodes, Survey};
use crate::pool::{Pool, PoolOptions};
use crate::state::{self, Refusal, Remembered, StateFolder};
use crate::stripe::{Stripe, StripeOptions};
use crate::transport::{FragmentTransport, NodeAddress};
use crate::volume::{Backlog, Views, Volume, VolumeOptions};
use common::wire::{MountId, NodeId, OwnerId, volume_of};

/// An fsync of at most so much is one request to each node.
const CARRIED_BYTES: u64 = 32 << 10;

/// Until a node has said hello.
pub const HELLO_LIMIT: Duration = Duration::from_secs(5);

/// A volume on its nodes, before it is served.
pub struct Opened {
    /// Its folder, which nobody else uses while this lives.
    pub state: StateFolder,
    /// What it is.
    pub settings: VolumeSettings,
    /// Where its nodes are.
    pub nodes: Nodes,
    /// The right to write; none for a mount that changes nothing.
    pub lease: Option<Lease>,
    /// The nodes that run inside this process.
    pub embedded: Option<Embedded>,
    store: Arc<dyn MetadataStore>,
    configuration: Configuration,
    pool: Arc<Pool>,
    key: VolumeKey,
    /// How far the pool's journal is.
    position: Position,
}

impl Opened {
    /// The epoch it writes under; 0 for a mount that changes nothing.
    fn epoch(&self) -> u32 {
        self.lease.as_ref().map_or(0, Lease::epoch)
    }
}

/// Open the volume of a state folder, or make it there if there is none.
///
/// # Errors
/// Everything mount.rs refuses; the right to write is not to be had, or the pool's journal does not fit the folder.
pub async fn open(config: &MountConfig) -> Result<Opened, Refusal> {
    if let Some(wanted) = &config.snapshot {
        return snapshot::open(config, wanted).await;
    }
    if let Some(opened) = open_made(config).await? {
        return Ok(opened);
    }
    match state::look(&config.state)? {
        Some(remembered) => Err(without_metadata(&config.state, &remembered)),
        None => make(config).await,
    }
}

/// Its nodes have the volume, and perhaps nobody else its key: another one must not take its place.
fn without_metadata(state: &Path, remembered: &Remembered) -> Refusal {
    let (name, shown) = (&remembered.name, state.display());
    let nodes = match state::nodes_in(state).exists() {
        true => format!(", once `shardd --data` serves each folder in {}", state::nodes_in(state).display()),
        false => String::new(),
    };
    Refusal(format!(
        "the metadata of volume {name} is gone from {shown}: `avidfs recover` makes it anew in another folder, with the key \
         {shown}/volume.key{nodes}"
    ))
}

/// Open the volume of a state folder; none if there is none.
///
/// # Errors
/// As `open`.
pub async fn open_made(config: &MountConfig) -> Result<Option<Opened>, Refusal> {
    let remembered = state::look(&config.state)?;
    if state::has_metadata(&config.state) {
        let state = StateFolder::take(&config.state)?;
        let store = open_store(&state)?;
        if let Some(settings) = store.settings()? {
            return reopen(config, state, store, settings, remembered).await.map(Some);
        }
    }
    Ok(None)
}

/// Make the metadata anew from the pool's journal, of which it is a copy, where the two are not the same any more.
/// Before the volume is served. Returns how many rows were others.
///
/// # Errors
/// The journal cannot be read; the store's.
pub async fn rebuild(config: &MountConfig, opened: &Opened) -> Result<u64, Refusal> {
    let reader = reader(&opened.pool, &opened.settings, config.io_timeout);
    Ok(journal::compare::rebuild(&opened.store, &reader, &opened.key.public(), &opened.position).await?)
}

/// Open a volume that was made before.
async fn reopen(
    config: &MountConfig,
    state: StateFolder,
    store: Arc<dyn MetadataStore>,
    settings: VolumeSettings,
    remembered: Option<Remembered>,
) -> Result<Opened, Refusal> {
    mount::check_shape(&config.shape, &settings)?;
    let left = look_for_backlog(config, &settings, &state)?;
    let gone = remembered.as_ref().map(Remembered::gone).unwrap_or_default();
    let remembered = remembered.map(|remembered| remembered.known()).unwrap_or_default();
    let ever_known = [remembered.clone(), gone].concat();
    let Reach { transport, addresses, embedded } =
        reach(config, &state.nodes(), &remembered, settings.code.n())?;
    let survey = mount::survey(&transport, &addresses, &remembered, HELLO_LIMIT.min(config.io_timeout)).await;
    let newest = newest_configuration(&*store, &settings)?;
    let nodes = mount::nodes_to_use(&survey, config.peers.is_some(), &settings, &newest, &ever_known)?;
    let pool = connect(config, transport.clone(), &nodes).await?;
    collect_evidence(&pool, &state)?;
    let key = state.key()?;
    if !config.read_only && matches!(key, VolumeKey::Public(_)) {
        return Err(Refusal(format!(
            "the state folder {} has only the public half of the volume's key: mount with --read-only, or recover with --key",
            state.path().display()
        )));
    }
    let reader = Reader { accept_loss: config.accept_loss, ..reader(&pool, &settings, config.io_timeout) };
    let (mount, public) = (state.mount_id()?, key.public());
    let mut newest = newest;
    // First the right to write, which fences whoever had it: then nothing is added to the journal that is read.
    let (lease, position) = loop {
        let lease = match config.read_only {
            true => None,
            false => {
                let applicant = applicant(mount, &key, &pool, &settings, &newest);
                let seen = survey.newest_epoch(settings.volume, settings.code);
                Some(lease(&applicant, &*store, seen, config.take_over).await?)
            }
        };
        let unfenced = lease.as_ref().map(|lease| lease.unfenced().clone()).unwrap_or_default();
        let reader = Reader { unfenced, ..reader.clone() };
        // Also for who only reads: what a store has caught up with is not seen to be of others by the next mount.
        let position = match journal::catch_up(&store, &reader, &public, mount, left.as_deref()).await {
            Ok(position) => position,
            Err(error) => {
                give_back(lease).await;
                return Err(error.into());
            }
        };
        let known = newest_configuration(&*store, &settings)?;
        if known == newest {
            break (lease, position);
        }
        // The journal names other nodes, and they are to be asked.
        newest = known;
    };
    let begun = async {
        let mut nodes =
            mount::nodes_to_use(&survey, config.peers.is_some(), &settings, &newest, &ever_known)?;
        let configuration = match config.read_only {
            true => newest,
            false => {
                let refusals = register(&transport, &survey, &settings, &key, config.io_timeout).await;
                // It gets nothing of the volume until a mount that it takes it from.
                match survey.answered.len() - refusals.len() < settings.code.quorum() {
                    true => return Err(Refusal(refusals.join("; "))),
                    false => nodes.warnings.extend(refusals),
                }
                store.configure(&nodes.current)?
            }
        };
        state.remember(&remembered_nodes(&settings, &nodes))?;
        if let Some(folder) = left.as_ref().filter(|_| config.read_only) {
            let folder = folder.display();
            nodes
                .warnings
                .push(format!("bytes that wait in {folder} are not seen until it is mounted to be written"));
        }
        Ok((nodes, configuration))
    };
    let (nodes, configuration) = match begun.await {
        Ok(begun) => begun,
        Err(refusal) => {
            give_back(lease).await;
            return Err(refusal);
        }
    };
    Ok(Opened { state, store, settings, nodes, configuration, lease, pool, key, position, embedded })
}

/// Where bytes wait that the next mount which writes has to store; that mount is refused where it would not.
fn look_for_backlog(
    config: &MountConfig,
    settings: &VolumeSettings,
    state: &StateFolder,
) -> Result<Option<PathBuf>, Refusal> {
    let backlog = backlog(config, settings, state);
    let left = backlog.left(state.path())?;
    if !config.read_only {
        backlog.check(&settings.name, state.path(), left.as_deref())?;
    }
    Ok(left)
}

fn backlog(config: &MountConfig, settings: &VolumeSettings, state: &StateFolder) -> Backlog {
    Backlog::of(settings.volume, state.path(), config.backlog_dir.as_deref())
}

/// What nodes were caught at before counts, and what they are caught at is noted.
fn collect_evidence(pool: &Pool, state: &StateFolder) -> Result<(), Refusal> {
    let evidence = Evidence::open(state.path());
    let evidence = evidence.map_err(|error| Refusal(format!("the evidence: {}", host::reason(&error))))?;
    pool.collect_evidence(Arc::new(evidence));
    Ok(())
}

/// Who asks to write the volume.
fn applicant(
    mount: MountId,
    key: &VolumeKey,
    pool: &Arc<Pool>,
    settings: &VolumeSettings,
    configuration: &Configuration,
) -> Applicant {
    let n = settings.code.n().min(configuration.nodes.len());
    Applicant {
        pool: pool.clone(),
        roots: configuration.nodes[..n].to_vec(),
        quorum: settings.code.quorum(),
        authority: authority(key, settings),
        mount,
        host: host::name(),
    }
}

/// What lets a mount write that has this key.
fn authority(key: &VolumeKey, settings: &VolumeSettings) -> Arc<Authority> {
    let key = match key {
        VolumeKey::Private(key) => Some(key.clone()),
        VolumeKey::Public(_) => None,
    };
    Arc::new(Authority::new(settings.volume, key))
}

/// An epoch nobody else has, and the lease that goes with it.
async fn lease(
    applicant: &Applicant,
    store: &dyn MetadataStore,
    mut seen: u32,
    take_over: bool,
) -> Result<Lease, Refusal> {
    const TRIES: usize = 5;
    for _ in 0..TRIES {
        let epoch = store.begin_epoch(seen)?;
        match applicant.acquire(epoch, take_over).await {
            Ok(lease) => return Ok(lease),
            Err(Denied::Stale) => seen = epoch,
            Err(Denied::Held(sentence)) => {
                return Err(Refusal(format!(
                    "{sentence}: unmount it there, or fence it with --take-over if that host is gone"
                )));
            }
            Err(Denied::TooFew(why)) => {
                return Err(Refusal(format!(
                    "too few nodes grant the right to write: {why}; --read-only needs none"
                )));
            }
        }
    }
    Err(Refusal("others keep mounting the volume at the same time".to_owned()))
}

fn newest_configuration(
    store: &dyn MetadataStore,
    settings: &VolumeSettings,
) -> Result<Configuration, Refusal> {
    let newest = store.configurations()?.into_iter().max_by_key(|configuration| configuration.number);
    newest.ok_or_else(|| Refusal(format!("the metadata of volume {} names no nodes", settings.name)))
}

async fn connect(
    config: &MountConfig,
    transport: Arc<dyn FragmentTransport>,
    nodes: &Nodes,
) -> Result<Arc<Pool>, Refusal> {
    let known = nodes.known.iter().map(|(address, _)| address);
    let addresses = known.chain(&nodes.unknown).cloned().collect();
    let options = PoolOptions { io_limit: config.io_timeout, ..PoolOptions::default() };
    let pool = Pool::connect(transport, addresses, &nodes.known, options).await?;
    pool.remember(&nodes.gone);
    pool.start();
    Ok(pool)
}

fn reader(pool: &Arc<Pool>, settings: &VolumeSettings, io_limit: Duration) -> Reader {
    let (volume, code, hash) = (settings.volume, settings.code, settings.hash);
    Reader {
        pool: pool.clone(),
        volume,
        code,
        hash,
        io_limit,
        accept_loss: None,
        unfenced: Default::default(),
    }
}

/// Make a volume.
async fn make(config: &MountConfig) -> Result<Opened, Refusal> {
    if config.read_only {
        return Err(Refusal(format!(
            "there is no volume in {}, and a read-only mount makes none",
            config.state.display()
        )));
    }
    match &config.peers {
        Some(peers) => {
            let transport = config.access.transport()?;
            let plan = plan(config, &transport, peers).await?;
            let state = StateFolder::take(&config.state)?;
            format(config, state, transport, None, plan).await
        }
        None => {
            let state = StateFolder::take(&config.state)?;
            let n = config.shape.code.unwrap_or_else(mount::default_code).n();
            let planned = match embedded(&state.nodes(), n) {
                Ok(reach) => plan(config, &reach.transport, &reach.addresses).await.map(|plan| (reach, plan)),
                Err(refusal) => Err(refusal),
            };
            match planned {
                Ok((reach, plan)) => format(config, state, reach.transport, reach.embedded, plan).await,
                Err(refusal) => {
                    state.give_back();
                    Err(refusal)
                }
            }
        }
    }
}

/// What a volume is to be, and on which nodes.
struct Plan {
    key: VolumeKey,
    settings: VolumeSettings,
    survey: Survey,
}

async fn plan(
    config: &MountConfig,
    transport: &Arc<dyn FragmentTransport>,
    addresses: &[NodeAddress],
) -> Result<Plan, Refusal> {
    let survey = mount::survey(transport, addresses, &[], HELLO_LIMIT.min(config.io_timeout)).await;
    let key = VolumeKey::random();
    let volume = volume_of(&OwnerId(key.public().to_bytes()));
    let settings =
        mount::volume_to_make(volume, &config.shape, &survey, host::user_and_group(), Time::now())?;
    Ok(Plan { key, settings, survey })
}

/// Everything is checked: write it down here, then tell the nodes. A crash in between is made good by the next mount,
/// which tells the nodes again.
async fn format(
    config: &MountConfig,
    state: StateFolder,
    transport: Arc<dyn FragmentTransport>,
    embedded: Option<Embedded>,
    Plan { key, settings, survey }: Plan,
) -> Result<Opened, Refusal> {
    let known: Vec<_> =
        survey.answered.iter().map(|hello| (hello.address.clone(), hello.info.node)).collect();
    let current = known.iter().map(|(_, node)| *node).collect();
    let nodes = Nodes { current, known, unknown: Vec::new(), gone: Vec::new(), warnings: Vec::new() };
    state.keep_key(&key)?;
    let store = open_store(&state)?;
    store.format(&settings)?;
    let configuration = store.configure(&nodes.current)?;
    state.remember(&remembered_nodes(&settings, &nodes))?;
    let refusals = register(&transport, &survey, &settings, &key, config.io_timeout).await;
    if !refusals.is_empty() {
        return Err(Refusal(refusals.join("; ")));
    }
    let pool = connect(config, transport, &nodes).await?;
    collect_evidence(&pool, &state)?;
    let applicant = applicant(state.mount_id()?, &key, &pool, &settings, &configuration);
    let lease = Some(lease(&applicant, &*store, 0, false).await?);
    let position = Position::default();
    Ok(Opened { state, store, settings, nodes, configuration, lease, pool, key, position, embedded })
}

/// Who is refused keeps nobody else out.
async fn give_back(lease: Option<Lease>) {
    if let Some(lease) = lease {
        lease.release().await;
    }
}

fn remembered_nodes(settings: &VolumeSettings, nodes: &Nodes) -> Remembered {
    let of = |nodes: &[(NodeAddress, NodeId)]| -> Vec<_> {
        nodes.iter().map(|(address, node)| (*node, address.clone())).collect()
    };
    Remembered::new(settings.volume, &settings.name, of(&nodes.known)).with_gone(of(&nodes.gone))
}

/// Tell all nodes that answered of a volume; what those say that do not take it.
async fn register(
    transport: &Arc<dyn FragmentTransport>,
    survey: &Survey,
    settings: &VolumeSettings,
    key: &VolumeKey,
    limit: Duration,
) -> Vec<String> {
    let descriptor = mount::descriptor(settings, owner_of(settings.volume, &key.public()));
    let told = survey.answered.iter().map(|hello| async {
        let told = transport.register(&hello.address, &descriptor, limit).await;
        told.err().map(|error| format!("{} does not take the volume: {error}", hello.address))
    });
    futures_util::future::join_all(told).await.into_iter().flatten().collect()
}

/// How a volume's nodes are reached.
struct Reach {
    transport: Arc<dyn FragmentTransport>,
    addresses: Vec<NodeAddress>,
    embedded: Option<Embedded>,
}

fn reach(
    config: &MountConfig,
    nodes: &Path,
    remembered: &[(NodeAddress, NodeId)],
    n: usize,
) -> Result<Reach, Refusal> {
    let remembered: Vec<NodeAddress> = remembered.iter().map(|(address, _)| address.clone()).collect();
    let addresses = match &config.peers {
        Some(peers) => peers.clone(),
        None if nodes.exists() => return embedded(nodes, remembered.len().max(n)),
        None if remembered.is_empty() => {
            return Err(Refusal(
                "where the volume's nodes are is not known any more: name them with --peers".into(),
            ));
        }
        None => remembered,
    };
    let transport = config.access.transport()?;
    Ok(Reach { transport, addresses, embedded: None })
}

fn embedded(nodes: &Path, count: usize) -> Result<Reach, Refusal> {
    let nodes = Embedded::open(nodes, count)?;
    Ok(Reach { transport: nodes.transport(), addresses: nodes.addresses(), embedded: Some(nodes) })
}

/// The metadata of a folder.
///
/// # Errors
/// The disk, or a foreign format.
pub fn open_store(state: &StateFolder) -> Result<Arc<dyn MetadataStore>, Refusal> {
    Ok(Arc::new(SqliteStore::open(&state.metadata())?))
}

/// Serve it.
///
/// # Errors
/// As `Volume::open`, and the cache cannot be opened.
pub async fn volume(config: &MountConfig, opened: &Opened) -> Result<Arc<Volume>, Refusal> {
    let pool = opened.pool.clone();
    let cache = Cache::open(CacheOptions {
        memory_bytes: config.cache_memory_bytes,
        disk_bytes: config.cache_disk_bytes,
        disk: (config.cache_disk_bytes > 0).then(|| opened.state.cache()),
    })?;
    let settings = &opened.settings;
    let stripe_options = StripeOptions {
        io_limit: config.io_timeout,
        authority: authority(&opened.key, settings),
        ..StripeOptions::new(settings.volume, opened.epoch(), settings.code, settings.hash)
    };
    let configurations = opened.store.configurations()?;
    let stripe =
        Stripe::new(pool.clone(), cache, configurations, opened.configuration.number, stripe_options);
    let options = VolumeOptions {
        write_behind_bytes: config.write_behind_bytes,
        dirty_interval: config.dirty_interval,
        carried_bytes: CARRIED_BYTES,
        io_limit: config.io_timeout,
        backlog: backlog(config, settings, &opened.state),
        backlog_bytes: config.backlog_bytes,
        capacity_bytes: config.capacity_bytes,
        read_only: config.read_only,
        access_times: config.access_times(),
        lease: opened.lease.as_ref().map(Lease::watch),
        views: Views { folder: opened.state.views(), open: |path| Ok(Arc::new(SqliteStore::open(path)?)) },
        public: opened.key.public(),
    };
    let journal = journal(config, opened, &stripe)?;
    Ok(Volume::open(opened.store.clone(), stripe, pool, journal, options).await?)
}

/// The journal's writer; none for a mount that changes nothing.
fn journal(
    config: &MountConfig,
    opened: &Opened,
    stripe: &Arc<Stripe>,
) -> Result<Option<Arc<Journal>>, Refusal> {
    let VolumeKey::Private(key) = &opened.key else { return Ok(None) };
    let options = JournalOptions {
        volume: opened.settings.volume,
        epoch: opened.epoch(),
        mount: opened.state.mount_id()?,
        configuration: opened.configuration.clone(),
        interval: config.metadata_interval,
        checkpoints: Checkpoints::default(),
    };
    let (store, position) = (opened.store.clone(), opened.position.clone());
    Ok((!config.read_only).then(|| Journal::start(store, stripe.clone(), key.clone(), position, options)))
}
