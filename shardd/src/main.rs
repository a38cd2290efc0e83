//! The node program.

use std::io::IsTerminal;
use std::num::NonZero;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use common::members::Members;
use credentials::{TlsFiles, Token};
use shardd::agreement::{Agreement, AgreementOptions, HttpLink};
use shardd::config::{Config, Evil, Flags};
use shardd::evil::{self, Mode};
use shardd::{Limits, Store, StoreOptions};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Large bodies are hashed and written on these, and flushes wait here.
const BLOCKING_THREADS: usize = 16;

fn main() -> ExitCode {
    match run(Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shardd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: Flags) -> Result<(), Box<dyn std::error::Error>> {
    let config = Config::of(flags)?;
    check_evil(&config)?;
    let filter =
        EnvFilter::try_new(&config.log).map_err(|error| format!("--log {:?}: {error}", config.log))?;
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
    shardd::keep_files_private();
    shardd::settle_allocator();
    shardd::raise_file_limit();
    // The other half of the cores hashes and writes. A second thread on two cores would be woken for every request, for
    // nothing: 1,000 small flushed puts a second cost five nodes a tenth more time.
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads((cores / 2).max(1))
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()?;
    runtime.block_on(serve(&config))
}

async fn serve(config: &Config) -> Result<(), Box<dyn std::error::Error>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let tls = config.tls.as_ref().map(TlsFiles::server).transpose()?;
    let token = config.token_file.as_deref().map(Token::read).transpose()?;
    let listener = TcpListener::bind(config.listen).await;
    let mut listener = listener.map_err(|error| format!("listen on {}: {error}", config.listen))?;
    let store = open(config).await?;
    check_identity(config, &store)?;
    let address = listener.local_addr()?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    if let Some(evil) = &config.evil {
        println!("this node lies on purpose: {evil}");
        tracing::warn!(%evil, "this node lies on purpose");
    }
    println!("listening on {scheme}://{address}");
    let usage = store.usage();
    tracing::info!(%address, node = %store.node(), fragments = usage.fragments, used = usage.used_bytes, "started");
    let limits = Limits::default();
    let agreement = agreement(config, &store, token.as_ref()).await?;
    let mut app = shardd::app_for(store.clone(), limits.clone(), token, agreement);
    if let Some(Evil { modes, seed }) = &config.evil {
        app = evil::made_evil(app, modes, *seed);
        if tls.is_none() && modes.contains(&Mode::GarbageHttp) {
            listener = evil::without_http(listener, *seed).await?;
        }
    }
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => (),
            _ = interrupt.recv() => (),
        }
    };
    match tls {
        Some(tls) => shardd::serve_tls(listener, app, limits, tls, stop).await,
        None => shardd::serve(listener, app, limits, stop).await,
    }
    tracing::info!("stopping");
    tokio::task::spawn_blocking(move || store.close()).await??;
    Ok(())
}

/// How long a client waits for the others to agree.
const AGREEMENT_LIMIT: Duration = Duration::from_secs(10);

/// What the node agrees on objects with, if it is to.
async fn agreement(
    config: &Config,
    store: &Arc<Store>,
    token: Option<&Token>,
) -> Result<Option<Arc<Agreement>>, Box<dyn std::error::Error>> {
    let Some(path) = &config.members else { return Ok(None) };
    let text = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let members = Members::parse(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    let tls = config.tls.as_ref().map(TlsFiles::client).transpose()?;
    let link = Arc::new(HttpLink::new(tls, token));
    let modes = config.evil.as_ref().map_or(&[][..], |evil| &evil.modes);
    let options = AgreementOptions {
        members,
        owner_quota: config.owner_quota,
        patience: AGREEMENT_LIMIT,
        link: evil::made_lying(link, modes, store),
    };
    Ok(Some(Arc::new(Agreement::start(store.clone(), options)?)))
}

/// Nobody is to start a lying node by mistake.
fn check_evil(config: &Config) -> Result<(), String> {
    let allowed = std::env::var_os(evil::ALLOWED).is_some_and(|value| value == "1");
    match &config.evil {
        Some(_) if !allowed => Err(format!("a node lies (--evil) only where {} is 1", evil::ALLOWED)),
        _ => Ok(()),
    }
}

/// A certificate that is bound to another node would be refused by every client; better it is said here.
fn check_identity(config: &Config, store: &Store) -> Result<(), String> {
    let Some(tls) = &config.tls else { return Ok(()) };
    match tls.node().map_err(|error| error.to_string())? {
        Some(bound) if bound != store.node() => Err(format!(
            "{} is bound to node {bound}, and {} is the folder of node {}",
            tls.cert.display(),
            config.data.display(),
            store.node()
        )),
        _ => Ok(()),
    }
}

async fn open(config: &Config) -> Result<Arc<Store>, Box<dyn std::error::Error>> {
    let options = StoreOptions {
        capacity: config.capacity,
        zone: config.zone.clone(),
        ..StoreOptions::new(&config.data)
    };
    Ok(tokio::task::spawn_blocking(|| Store::open(options)).await??)
}
