//! The mount program: the one place that names concrete parts and fits them together.

use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use avidfs::cache::{Cache, CacheOptions};
use avidfs::cli::{
    Cli, Command, GcArgs, InfoArgs, KeyCommand, MountArgs, RecoverArgs, StatusArgs, UmountArgs,
    usage_sentence,
};
use avidfs::config::{self, ConfigError, MountConfig, Surroundings};
use avidfs::control::{self, Answering, Daemon, Request};
use avidfs::daemon::{self, Announce, Running};
use avidfs::embedded::Embedded;
use avidfs::fuse::{self, FuseOptions};
use avidfs::helper::{Caller, MountHelper, UmountHelper, Wish};
use avidfs::host::{self, MountEntry, reason};
use avidfs::inode::Time;
use avidfs::journal::chain::Reader;
use avidfs::journal::key::VolumeKey;
use avidfs::journal::{self, Journal, JournalOptions, Position};
use avidfs::lease::{Applicant, Denied, Lease};
use avidfs::metadata::sqlite::SqliteStore;
use avidfs::metadata::{Configuration, MetadataStore, VolumeSettings};
use avidfs::mount::{self, Nodes, Survey};
use avidfs::pool::{Pool, PoolOptions};
use avidfs::recover::{self, Trust};
use avidfs::report;
use avidfs::roster::{self, Noted};
use avidfs::state::{self, Refusal, Remembered, StateFolder};
use avidfs::stripe::{Stripe, StripeOptions};
use avidfs::transport::http::{HttpOptions, HttpTransport};
use avidfs::transport::{FragmentTransport, NodeAddress};
use avidfs::umount::{self, Unmounted};
use avidfs::volume::{FileReport, GarbageReport, Volume, VolumeOptions, VolumeStatus};
use clap::Parser;
use common::code::Code;
use common::wire::MountId;

/// How far the kernel reads ahead on a mount: two objects of the usual size, so that the next one is on its way while
/// one is read.
const READ_AHEAD_KIB: u32 = 8 << 10;
/// Until a node has said hello.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// Until a running daemon has answered a question.
const QUESTION_LIMIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    match std::env::args_os().next().and_then(|program| Caller::of(&program)) {
        Some(Caller::Mount) => help_mount(),
        Some(Caller::Umount) => help_umount(),
        None => obey(),
    }
}

/// As a person typed it.
fn obey() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let done = match &cli.command {
        Command::Mount(args) => mount(args),
        Command::Umount(args) => umount(args),
        Command::Status(args) => status(args),
        Command::Info(args) => info(args),
        Command::Gc(args) => gc(args),
        Command::Recover(args) => recover(args),
        Command::Key(KeyCommand::Export { state }) => export_key(state),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(sentence)) => fail(&sentence, 2),
        Err(Failure::Refused(sentence) | Failure::System(sentence)) => fail(&sentence, 1),
        Err(Failure::Told) => ExitCode::FAILURE,
    }
}

/// As mount(8) asks, with its exit codes.
fn help_mount() -> ExitCode {
    match MountHelper::try_parse() {
        Ok(helper) => helped(mount_for(&helper)),
        Err(error) => helper_usage(&error),
    }
}

/// As umount(8) asks, with its exit codes.
fn help_umount() -> ExitCode {
    match UmountHelper::try_parse() {
        Ok(helper) => helped(umount_for(&helper)),
        Err(error) => helper_usage(&error),
    }
}

fn helped(done: Result<(), Failure>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(sentence)) => fail(&sentence, 1),
        Err(Failure::System(sentence)) => fail(&sentence, 2),
        Err(Failure::Refused(sentence)) => fail(&sentence, 32),
        Err(Failure::Told) => ExitCode::from(32),
    }
}

fn helper_usage(error: &clap::Error) -> ExitCode {
    match usage_sentence(error) {
        Some(sentence) => fail(&sentence, 1),
        None => usage(error),
    }
}

fn mount_for(helper: &MountHelper) -> Result<(), Failure> {
    let wish = helper.wish().map_err(Failure::Usage)?;
    enter(helper.namespace.as_deref())?;
    let words = match wish {
        Wish::Remount(_) if helper.fake => return Ok(()),
        Wish::Remount(options) => {
            let options = UNFLAGGED.into_iter().chain(options.iter().map(String::as_str));
            return remount(&helper.mountpoint, &options.collect::<Vec<_>>());
        }
        Wish::Mount(words) => words,
    };
    let cli = Cli::try_parse_from(std::iter::once("avidfs".into()).chain(words.iter().cloned()));
    let Ok(Cli { command: Command::Mount(args) }) = cli else {
        return Err(Failure::Usage(format!("{words:?} cannot be understood")));
    };
    let config = config::mount_config(&args, &surroundings()?)?;
    if helper.fake { Ok(()) } else { in_background(words, &config) }
}

/// Options that unset a flag. mount(8) puts together what a mount is to have, and says only what is set.
const UNFLAGGED: [&str; 7] = ["rw", "suid", "dev", "exec", "async", "diratime", "symfollow"];

fn remount(mountpoint: &Path, options: &[&str]) -> Result<(), Failure> {
    let mount = umount::find(&surroundings()?.current_dir.join(mountpoint))?;
    let shown = mount.mountpoint.display();
    let read_only = options.iter().rfind(|option| ["ro", "rw"].contains(option)) == Some(&"ro");
    let served: VolumeStatus = daemon(&mount)?.ask(Request::Status, Some(QUESTION_LIMIT))?;
    if served.read_only && !read_only {
        return Err(Failure::Refused(format!(
            "{shown} was mounted read-only: unmount it and mount it again"
        )));
    }
    host::remount(&mount, options).map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => Failure::Usage("only root may remount".to_owned()),
        ErrorKind::ResourceBusy => Failure::Refused(format!("files on {shown} are open for writing")),
        _ => Failure::Refused(format!("{shown} cannot be remounted: {}", reason(&error))),
    })
}

fn umount_for(helper: &UmountHelper) -> Result<(), Failure> {
    enter(helper.namespace.as_deref())?;
    let mountpoint = surroundings()?.current_dir.join(&helper.mountpoint);
    if let Ok(Some(mount)) = host::mount_at(&mountpoint)
        && !mount.is_ours()
    {
        let error = helper.without_us().exec();
        return Err(Failure::System(format!("umount: {}", reason(&error))));
    }
    if helper.lazy {
        return Ok(umount::umount_lazily(&mountpoint)?);
    }
    if helper.force {
        umount::umount_by_force(&mountpoint)?;
        return Ok(());
    }
    match umount(&UmountArgs { mountpoint }) {
        Err(Failure::Refused(sentence)) if helper.read_only => {
            remount(&helper.mountpoint, &["ro"])?;
            Err(Failure::Refused(format!("{sentence}; it is read-only now")))
        }
        done => done,
    }
}

fn enter(namespace: Option<&str>) -> Result<(), Failure> {
    let Some(namespace) = namespace else { return Ok(()) };
    host::enter_mount_namespace(namespace)
        .map_err(|error| Failure::System(format!("the namespace {namespace}: {}", reason(&error))))
}

/// Why a command ended without having done what it was asked for.
enum Failure {
    /// The command line makes no sense.
    Usage(String),
    /// It could not be done.
    Refused(String),
    /// The system does not let us begin.
    System(String),
    /// It could not be done, and the person who asked was told already.
    Told,
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::Usage(error.0)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        Failure::Refused(refusal.0)
    }
}

fn fail(sentence: &str, code: u8) -> ExitCode {
    eprintln!("avidfs: {sentence}");
    ExitCode::from(code)
}

fn usage(error: &clap::Error) -> ExitCode {
    match usage_sentence(error) {
        Some(sentence) => fail(&sentence, 2),
        None => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
    }
}

fn mount(args: &MountArgs) -> Result<(), Failure> {
    let config = config::mount_config(args, &surroundings()?)?;
    if args.daemon {
        let announce = Announce::as_daemon().map_err(|error| host_refusal("the daemon", &error))?;
        serve(&config, announce).map_err(|_| Failure::Told)
    } else if config.foreground {
        Ok(serve(&config, Announce::Terminal)?)
    } else {
        in_background(std::env::args_os().skip(1), &config)
    }
}

fn in_background(words: impl IntoIterator<Item = OsString>, config: &MountConfig) -> Result<(), Failure> {
    let daemon = daemon::start(words).map_err(|error| {
        Failure::System(format!("the mount daemon cannot be started: {}", reason(&error)))
    })?;
    Ok(daemon::wait_for(daemon, &config.state)?)
}

fn surroundings() -> Result<Surroundings<'static>, Refusal> {
    let current_dir = std::env::current_dir().map_err(|error| host_refusal("the current folder", &error))?;
    Ok(Surroundings { env: &|name| std::env::var(name).ok(), current_dir, root: host::is_root() })
}

fn serve(config: &MountConfig, announce: Announce) -> Result<(), Refusal> {
    avidfs::embedded::raise_file_limit();
    let runtime = runtime()?;
    let served = runtime.block_on(async {
        let begun = begin(config, &announce).await;
        if let Err(refusal) = &begun {
            announce.error(&refusal.0);
        }
        begun?.serve(announce).await
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

/// A mount that answers, and everything it needs.
struct Begun {
    running: Running,
    answering: Answering,
    lease: Option<Lease>,
    embedded: Option<Embedded>,
    /// Found by others while this lives.
    _noted: Option<Noted>,
    /// Nobody else uses the folder while this lives.
    _state: StateFolder,
}

impl Begun {
    async fn serve(self, announce: Announce) -> Result<(), Refusal> {
        // Whoever waited for the mount and is gone does not want it any more.
        let ended = match announce.ready() {
            Ok(()) => self.running.until_the_end().await,
            Err(_) => self.running.end().await,
        };
        if let Err(refusal) = &ended {
            tracing::error!(%refusal, "unmounted");
        }
        if let Some(lease) = self.lease {
            lease.release().await;
        }
        if let Some(nodes) = &self.embedded {
            nodes.close();
        }
        // The answer to `avidfs umount` is on its way once nobody is being answered.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.answering.write()).await;
        ended
    }
}

async fn begin(config: &MountConfig, announce: &Announce) -> Result<Begun, Refusal> {
    mount::check_fuse(config.allow_other)?;
    let place = mount::look_at(&config.mountpoint)?.clear()?;
    mount::check_apart(place.path(), &config.state)?;
    let opened = open(config).await?;
    announce_and_log(&opened, announce)?;
    let volume = volume(config, &opened).await?;
    // Before the mount is seen: who finds it and nobody listening takes it for a dead one.
    let listener =
        control::listen(opened.state.path()).map_err(|error| host_refusal("the control socket", &error))?;
    let running = show(config, place.path(), &opened, volume)?;
    let noted = note(place.path(), opened.state.path());
    let answering = Answering::default();
    tokio::spawn(control::serve(listener, running.handler(), answering.clone()));
    if let Err(refusal) = daemon::answers(place.path()).await {
        let _ = running.end().await;
        return Err(refusal);
    }
    if host::is_root()
        && let Err(error) = host::set_read_ahead(place.path(), READ_AHEAD_KIB)
    {
        tracing::debug!(%error, "read-ahead stays as the kernel has it");
    }
    Ok(Begun {
        running,
        answering,
        lease: opened.lease,
        embedded: opened.embedded,
        _noted: noted,
        _state: opened.state,
    })
}

/// Without a note the mount tells itself who serves it, as long as it answers.
fn note(place: &Path, state: &Path) -> Option<Noted> {
    let mount = host::mount_at(place).and_then(|mount| mount.ok_or(ErrorKind::NotFound.into()));
    match mount.and_then(|mount| roster::note(&mount, state)) {
        Ok(noted) => Some(noted),
        Err(error) => {
            tracing::warn!(%error, "no note of this mount");
            None
        }
    }
}

fn announce_and_log(opened: &Opened, announce: &Announce) -> Result<(), Refusal> {
    for warning in &opened.nodes.warnings {
        announce.warning(warning);
    }
    let log = opened.state.open_log().and_then(|log| announce.redirect(&log));
    log.map_err(|error| host_refusal("the log", &error))?;
    let filter = tracing_subscriber::EnvFilter::try_from_env("AVIDFS_LOG");
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}

/// A volume on its nodes, before it is served.
struct Opened {
    state: StateFolder,
    store: Arc<dyn MetadataStore>,
    settings: VolumeSettings,
    nodes: Nodes,
    configuration: Configuration,
    /// None for a mount that changes nothing.
    lease: Option<Lease>,
    pool: Arc<Pool>,
    key: VolumeKey,
    /// How far the pool's journal is.
    position: Position,
    embedded: Option<Embedded>,
}

impl Opened {
    /// The epoch it writes under; 0 for a mount that changes nothing.
    fn epoch(&self) -> u32 {
        self.lease.as_ref().map_or(0, Lease::epoch)
    }
}

async fn open(config: &MountConfig) -> Result<Opened, Refusal> {
    let remembered = state::look(&config.state)?;
    if state::has_metadata(&config.state) {
        let state = StateFolder::take(&config.state)?;
        let store = open_store(&state)?;
        if let Some(settings) = store.settings()? {
            return reopen(config, state, store, settings, remembered).await;
        }
    }
    make(config).await
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
    let remembered = remembered.map(|remembered| remembered.known()).unwrap_or_default();
    let Reach { transport, addresses, embedded } = reach(config, &state, &remembered, settings.code.n())?;
    let survey = mount::survey(&transport, &addresses, HELLO_LIMIT.min(config.io_timeout)).await?;
    let newest = newest_configuration(&*store, &settings)?;
    let nodes = mount::nodes_to_use(&survey, config.peers.is_some(), &settings, &newest, &remembered)?;
    let pool = connect(config, transport.clone(), &nodes).await?;
    let key = state.key()?;
    if !config.read_only && matches!(key, VolumeKey::Public(_)) {
        return Err(Refusal(format!(
            "the state folder {} has only the public half of the volume's key: mount with --read-only, or recover with --key",
            state.path().display()
        )));
    }
    let reader = reader(&pool, &settings, config.io_timeout);
    let (mount, public) = (state.mount_id()?, key.public());
    let mut newest = newest;
    // First the right to write, which fences whoever had it: then nothing is added to the journal that is read.
    let (lease, position) = loop {
        let lease = match config.read_only {
            true => None,
            false => {
                let applicant = applicant(mount, &pool, &settings, &newest);
                let seen = survey.newest_epoch(settings.volume);
                Some(lease(&applicant, &*store, seen, config.take_over).await?)
            }
        };
        let position = journal::catch_up(&store, &reader, &public, mount).await?;
        let known = newest_configuration(&*store, &settings)?;
        if known == newest {
            break (lease, position);
        }
        // The journal names other nodes, and they are to be asked.
        newest = known;
    };
    let nodes = mount::nodes_to_use(&survey, config.peers.is_some(), &settings, &newest, &remembered)?;
    let configuration = match config.read_only {
        true => newest,
        false => {
            register(&transport, &survey, &settings, config.io_timeout).await?;
            store.configure(&nodes.current)?
        }
    };
    state.remember(&remembered_nodes(&settings, &nodes))?;
    Ok(Opened { state, store, settings, nodes, configuration, lease, pool, key, position, embedded })
}

/// Who asks to write the volume.
fn applicant(
    mount: MountId,
    pool: &Arc<Pool>,
    settings: &VolumeSettings,
    configuration: &Configuration,
) -> Applicant {
    let n = settings.code.n().min(configuration.nodes.len());
    Applicant {
        pool: pool.clone(),
        roots: configuration.nodes[..n].to_vec(),
        quorum: settings.code.quorum(),
        volume: settings.volume,
        mount,
        host: host::name(),
    }
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
    let pool = Pool::connect(transport, addresses, options).await?;
    pool.remember(&nodes.known);
    pool.start();
    Ok(pool)
}

fn reader(pool: &Arc<Pool>, settings: &VolumeSettings, io_limit: Duration) -> Reader {
    let (volume, code, hash) = (settings.volume, settings.code, settings.hash);
    Reader { pool: pool.clone(), volume, code, hash, io_limit }
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
            let transport: Arc<dyn FragmentTransport> = Arc::new(HttpTransport::new(HttpOptions::default()));
            let (settings, survey) = plan(config, &transport, peers).await?;
            let state = StateFolder::take(&config.state)?;
            format(config, state, transport, None, settings, survey).await
        }
        None => {
            let state = StateFolder::take(&config.state)?;
            let n = config.shape.code.unwrap_or_else(mount::default_code).n();
            let planned = match embedded(&state, n) {
                Ok(reach) => plan(config, &reach.transport, &reach.addresses).await.map(|plan| (reach, plan)),
                Err(refusal) => Err(refusal),
            };
            match planned {
                Ok((reach, (settings, survey))) => {
                    format(config, state, reach.transport, reach.embedded, settings, survey).await
                }
                Err(refusal) => {
                    state.give_back();
                    Err(refusal)
                }
            }
        }
    }
}

async fn plan(
    config: &MountConfig,
    transport: &Arc<dyn FragmentTransport>,
    addresses: &[NodeAddress],
) -> Result<(VolumeSettings, Survey), Refusal> {
    let survey = mount::survey(transport, addresses, HELLO_LIMIT.min(config.io_timeout)).await?;
    let settings = mount::volume_to_make(&config.shape, &survey, host::user_and_group(), Time::now())?;
    Ok((settings, survey))
}

/// Everything is checked: write it down here, then tell the nodes. A crash in between is made good by the next mount,
/// which tells the nodes again.
async fn format(
    config: &MountConfig,
    state: StateFolder,
    transport: Arc<dyn FragmentTransport>,
    embedded: Option<Embedded>,
    settings: VolumeSettings,
    survey: Survey,
) -> Result<Opened, Refusal> {
    let known: Vec<_> =
        survey.answered.iter().map(|hello| (hello.address.clone(), hello.info.node)).collect();
    let current = known.iter().map(|(_, node)| *node).collect();
    let nodes = Nodes { current, known, unknown: Vec::new(), warnings: Vec::new() };
    let key = VolumeKey::random();
    state.keep_key(&key)?;
    let store = open_store(&state)?;
    store.format(&settings)?;
    let configuration = store.configure(&nodes.current)?;
    state.remember(&remembered_nodes(&settings, &nodes))?;
    register(&transport, &survey, &settings, config.io_timeout).await?;
    let pool = connect(config, transport, &nodes).await?;
    let applicant = applicant(state.mount_id()?, &pool, &settings, &configuration);
    let lease = Some(lease(&applicant, &*store, 0, false).await?);
    let position = Position::default();
    Ok(Opened { state, store, settings, nodes, configuration, lease, pool, key, position, embedded })
}

fn remembered_nodes(settings: &VolumeSettings, nodes: &Nodes) -> Remembered {
    let known = nodes.known.iter().map(|(address, node)| (*node, address.clone()));
    Remembered::new(settings.volume, &settings.name, known)
}

async fn register(
    transport: &Arc<dyn FragmentTransport>,
    survey: &Survey,
    settings: &VolumeSettings,
    limit: Duration,
) -> Result<(), Refusal> {
    let descriptor = mount::descriptor(settings);
    let told = survey.answered.iter().map(|hello| async {
        let told = transport.register(&hello.address, &descriptor, limit).await;
        told.map(drop)
            .map_err(|error| Refusal(format!("{} does not take the volume: {error}", hello.address)))
    });
    futures_util::future::join_all(told).await.into_iter().collect()
}

/// How a volume's nodes are reached.
struct Reach {
    transport: Arc<dyn FragmentTransport>,
    addresses: Vec<NodeAddress>,
    embedded: Option<Embedded>,
}

fn reach(
    config: &MountConfig,
    state: &StateFolder,
    remembered: &[(NodeAddress, common::wire::NodeId)],
    n: usize,
) -> Result<Reach, Refusal> {
    let remembered: Vec<NodeAddress> = remembered.iter().map(|(address, _)| address.clone()).collect();
    let addresses = match &config.peers {
        Some(peers) => peers.clone(),
        None if state.nodes().exists() => return embedded(state, remembered.len().max(n)),
        None if remembered.is_empty() => {
            return Err(Refusal(
                "where the volume's nodes are is not known any more: name them with --peers".into(),
            ));
        }
        None => remembered,
    };
    let transport = Arc::new(HttpTransport::new(HttpOptions::default()));
    Ok(Reach { transport, addresses, embedded: None })
}

fn embedded(state: &StateFolder, count: usize) -> Result<Reach, Refusal> {
    let nodes = Embedded::open(&state.nodes(), count)?;
    Ok(Reach { transport: nodes.transport(), addresses: nodes.addresses(), embedded: Some(nodes) })
}

fn open_store(state: &StateFolder) -> Result<Arc<dyn MetadataStore>, Refusal> {
    Ok(Arc::new(SqliteStore::open(&state.metadata())?))
}

async fn volume(config: &MountConfig, opened: &Opened) -> Result<Arc<Volume>, Refusal> {
    let pool = opened.pool.clone();
    let cache = Cache::open(CacheOptions {
        memory_bytes: config.cache_memory_bytes,
        disk_bytes: config.cache_disk_bytes,
        disk: (config.cache_disk_bytes > 0).then(|| opened.state.cache()),
    })?;
    let settings = &opened.settings;
    let stripe_options = StripeOptions {
        io_limit: config.io_timeout,
        ..StripeOptions::new(settings.volume, opened.epoch(), settings.code, settings.hash)
    };
    let configurations = opened.store.configurations()?;
    let stripe =
        Stripe::new(pool.clone(), cache, configurations, opened.configuration.number, stripe_options);
    let options = VolumeOptions {
        write_behind_bytes: config.write_behind_bytes,
        dirty_interval: config.dirty_interval,
        io_limit: config.io_timeout,
        backlog: config.backlog_dir.clone(),
        backlog_bytes: config.backlog_bytes,
        capacity_bytes: config.capacity_bytes,
        read_only: config.read_only,
        access_times: config.access_times(),
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
    };
    let (store, position) = (opened.store.clone(), opened.position.clone());
    Ok((!config.read_only).then(|| Journal::start(store, stripe.clone(), key.clone(), position, options)))
}

/// Let the kernel show the volume.
fn show(
    config: &MountConfig,
    place: &Path,
    opened: &Opened,
    volume: Arc<Volume>,
) -> Result<Running, Refusal> {
    let name = config.fsname.clone().unwrap_or_else(|| format!("avidfs:{}", opened.settings.name));
    let options = FuseOptions {
        name,
        allow_other: config.allow_other,
        read_only: config.read_only,
        extra: config.kernel_options.clone(),
        control: control::socket(opened.state.path()),
    };
    let shown = place.display();
    let refused = |error: std::io::Error| Refusal(format!("{shown} cannot be mounted: {}", reason(&error)));
    let mounted =
        fuse::mount(volume.clone(), place, &options, tokio::runtime::Handle::current()).map_err(refused)?;
    let (serving, _) = mounted.split();
    let wait = move || {
        if let Err(error) = serving.wait() {
            tracing::error!(%error, "the connection to the kernel");
        }
    };
    Running::new(volume, place, wait).map_err(refused)
}

fn umount(args: &UmountArgs) -> Result<(), Failure> {
    let mountpoint = surroundings()?.current_dir.join(&args.mountpoint);
    if umount::umount(&mountpoint)? == Unmounted::Dead {
        daemon::warn("the mount daemon had ended before; the dead mount is detached");
    }
    Ok(())
}

fn status(args: &StatusArgs) -> Result<(), Failure> {
    match (&args.peers, &args.mountpoint) {
        (Some(peers), _) => status_of_pool(peers, args.json),
        (None, Some(mountpoint)) => {
            let mountpoint = surroundings()?.current_dir.join(mountpoint);
            status_of_mounts(&[umount::find(&mountpoint)?], args.json)
        }
        (None, None) => {
            let mounts = host::mounts().map_err(|error| host_refusal("/proc/self/mountinfo", &error))?;
            let ours: Vec<MountEntry> = mounts.into_iter().filter(MountEntry::is_ours).collect();
            if ours.is_empty() {
                return Err(Failure::Refused("there is no avidfs mount on this machine".to_owned()));
            }
            status_of_mounts(&ours, args.json)
        }
    }
}

fn status_of_pool(peers: &str, json: bool) -> Result<(), Failure> {
    let addresses =
        config::peers(peers).map_err(|reason| Failure::Usage(format!("--peers {peers}: {reason}")))?;
    let survey = runtime()?.block_on(async {
        let transport: Arc<dyn FragmentTransport> = Arc::new(HttpTransport::new(HttpOptions::default()));
        mount::survey(&transport, &addresses, HELLO_LIMIT).await
    })?;
    print(&if json { pretty(&report::pool_json(&survey)) } else { report::pool(&survey) });
    match survey.silent.len() {
        0 => Ok(()),
        silent => Err(Failure::Refused(format!("{silent} of {} nodes do not answer", addresses.len()))),
    }
}

fn status_of_mounts(mounts: &[MountEntry], json: bool) -> Result<(), Failure> {
    for (position, entry) in mounts.iter().enumerate() {
        let mut daemon = daemon(entry)?;
        let value: serde_json::Value = daemon.ask(Request::Status, Some(QUESTION_LIMIT))?;
        if json {
            print(&pretty(&value));
            continue;
        }
        let status: VolumeStatus = serde_json::from_value(value).map_err(|error| garbled(&error))?;
        let gap = if position > 0 { "\n" } else { "" };
        print(&format!(
            "{gap}{}",
            report::status(&entry.mountpoint.display().to_string(), daemon.pid(), &status)
        ));
    }
    Ok(())
}

fn info(args: &InfoArgs) -> Result<(), Failure> {
    use std::os::unix::fs::MetadataExt;
    let shown = args.path.display().to_string();
    let metadata = args.path.metadata().map_err(|error| host_refusal(&shown, &error))?;
    if !metadata.is_file() {
        return Err(Failure::Refused(format!("{shown} is not a file: info tells where a file's bytes are")));
    }
    let entry = host::mount_of(&args.path).map_err(|error| host_refusal(&shown, &error))?;
    let entry = entry.filter(MountEntry::is_ours);
    let entry = entry.ok_or_else(|| Failure::Refused(format!("{shown} is not on an avidfs mount")))?;
    let value: serde_json::Value =
        daemon(&entry)?.ask(Request::Info { ino: metadata.ino() }, Some(QUESTION_LIMIT))?;
    if args.json {
        print(&pretty(&value));
        return Ok(());
    }
    let file: FileReport = serde_json::from_value(value).map_err(|error| garbled(&error))?;
    print(&report::file(&shown, &file));
    Ok(())
}

fn gc(args: &GcArgs) -> Result<(), Failure> {
    let mountpoint = surroundings()?.current_dir.join(&args.mountpoint);
    let request = Request::Gc { dry_run: args.dry_run };
    let value: serde_json::Value = daemon(&umount::find(&mountpoint)?)?.ask(request, None)?;
    if args.json {
        print(&pretty(&value));
        return Ok(());
    }
    let found: GarbageReport = serde_json::from_value(value).map_err(|error| garbled(&error))?;
    print(&report::garbage(&found, args.dry_run));
    Ok(())
}

fn export_key(state: &Path) -> Result<(), Failure> {
    match state::key_in(state)? {
        key @ VolumeKey::Private(_) => print(&key.to_text()),
        VolumeKey::Public(_) => {
            let shown = state.display();
            return Err(Failure::Refused(format!("{shown} has only the public half of the volume's key")));
        }
    }
    Ok(())
}

fn recover(args: &RecoverArgs) -> Result<(), Failure> {
    let addresses = config::peers(&args.peers)
        .map_err(|reason| Failure::Usage(format!("--peers {}: {reason}", args.peers)))?;
    let trust = match (&args.key, &args.fingerprint) {
        (Some(path), _) => {
            let shown = path.display().to_string();
            let text = std::fs::read_to_string(path).map_err(|error| host_refusal(&shown, &error))?;
            let key = VolumeKey::from_text(&text);
            Trust::Key(Box::new(key.map_err(|error| Failure::Refused(format!("{shown}: {error}")))?))
        }
        (None, Some(digits)) => Trust::Fingerprint(digits.to_lowercase()),
        (None, None) => Trust::Nodes,
    };
    let state = surroundings()?.current_dir.join(&args.state);
    Ok(runtime()?.block_on(recover_from(addresses, &state, args.volume.as_deref(), trust))?)
}

/// Everything is read and checked before the folder is touched, and written in one transaction.
async fn recover_from(
    addresses: Vec<NodeAddress>,
    path: &Path,
    name: Option<&str>,
    trust: Trust,
) -> Result<(), Refusal> {
    let used = || Refusal(format!("the state folder {} has a volume already", path.display()));
    if state::look(path)?.is_some() {
        return Err(used());
    }
    let transport: Arc<dyn FragmentTransport> = Arc::new(HttpTransport::new(HttpOptions::default()));
    let survey = mount::survey(&transport, &addresses, HELLO_LIMIT).await?;
    let descriptor = recover::volume_of(&survey, name)?;
    let garbled = |what: &str| Refusal(format!("the nodes say nonsense of the volume's {what}"));
    let code: Code = descriptor.code.parse().map_err(|_| garbled("code"))?;
    recover::check_enough(&survey, &descriptor, code.m())?;
    let hash = descriptor.hash.parse().map_err(|_| garbled("hash"))?;
    let pool = Pool::connect(transport, addresses, PoolOptions::default()).await?;
    let io_limit = PoolOptions::default().io_limit;
    let reader = Reader { pool, volume: descriptor.volume, code, hash, io_limit };
    let chain = recover::chain(&reader, &trust).await?;
    let state = StateFolder::take(path)?;
    let store = open_store(&state)?;
    if store.settings()?.is_some() {
        return Err(used());
    }
    journal::restore(&store, &reader, &chain, &show_progress).await?;
    let head = chain.head();
    let key = trust.key(head);
    state.keep_key(&key)?;
    let answered = survey.answered.iter().map(|hello| (hello.info.node, hello.address.clone()));
    state.remember(&Remembered::new(descriptor.volume, &descriptor.name, answered))?;
    print(&report::recovered(&descriptor.name, path, &store.usage()?, head, &key));
    Ok(())
}

fn show_progress(done: usize, all: usize) {
    if std::io::stderr().is_terminal() {
        let end = if done == all { "\n" } else { "" };
        eprint!("\rreading the journal: {done} of {all} blocks{end}");
    }
}

fn daemon(entry: &MountEntry) -> Result<Daemon, Refusal> {
    umount::daemon_of(entry)?.ok_or_else(|| {
        let shown = entry.mountpoint.display();
        Refusal(format!("the daemon of {shown} has ended: avidfs umount {shown} detaches the dead mount"))
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, Refusal> {
    let built = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    built.map_err(|error| host_refusal("the runtime", &error))
}

/// Like `print!`, but a reader that has seen enough (`| head`) is no error.
fn print(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

fn garbled(error: &serde_json::Error) -> Refusal {
    Refusal(format!("the mount daemon is of another version: {error}"))
}

fn host_refusal(what: &str, error: &std::io::Error) -> Refusal {
    Refusal(format!("{what}: {}", reason(error)))
}
