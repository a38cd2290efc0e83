//! The commands of the object store.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use avidfs::access::Access;
use avidfs::cli::{DeleteArgs, GetArgs, ListArgs, MembersArgs, OwnerArgs, PutArgs, ReadArgs};
use avidfs::config::{self, ConfigError, StoreConfig, ToldBy};
use avidfs::daemon::warn;
use avidfs::objects::{
    FileSink, FileSource, Got, KeyList, Listed, ObjectError, ObjectStore, Ownership, Progress, Sink, Source,
    Stored, StreamSink, StreamSource, check_key, membership, owner,
};
use avidfs::opening::HELLO_LIMIT;
use avidfs::report;
use avidfs::state::Refusal;
use avidfs::transport::objects::ObjectTransport;
use common::code::Code;
use common::members::Members;
use common::wire::OwnerId;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::bar::Bar;
use super::{hand_over, pretty, print};
use crate::{Failure, fail, host_refusal, runtime, surroundings};

/// There is no object of this key or version.
const MISSING: u8 = 3;
/// What is done before shows no progress.
const BEFORE_PROGRESS: Duration = Duration::from_millis(300);
/// What stands for standard input and output.
const STREAM: &str = "-";

/// Why a command ended without having done what it was asked for.
enum Ended {
    Missing(String),
    Failed(Failure),
}

impl From<ObjectError> for Ended {
    fn from(error: ObjectError) -> Ended {
        let sentence = error.to_string();
        match error {
            ObjectError::NoSuchKey(_) | ObjectError::NoSuchVersion { .. } => Ended::Missing(sentence),
            ObjectError::Key => Ended::Failed(Failure::Usage(sentence)),
            _ => Ended::Failed(Failure::Refused(sentence)),
        }
    }
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Ended {
        Ended::Failed(failure)
    }
}

impl From<ConfigError> for Ended {
    fn from(error: ConfigError) -> Ended {
        Ended::Failed(error.into())
    }
}

impl From<Refusal> for Ended {
    fn from(refusal: Refusal) -> Ended {
        Ended::Failed(refusal.into())
    }
}

pub fn put(args: &PutArgs) -> ExitCode {
    answer(|| {
        check_key(&args.key)?;
        let surroundings = surroundings()?;
        let config = config::put_config(args, &surroundings)?;
        let path = config::owner_key(&args.owner, &surroundings)?;
        carry_out(async {
            if args.file == Path::new(STREAM) {
                let store = open_own(&config, &path).await?;
                return put_from(args, &store, StreamSource(io::stdin()), 0).await;
            }
            let (source, bytes) = FileSource::open(&surroundings.current_dir.join(&args.file))?;
            put_from(args, &open_own(&config, &path).await?, source, bytes).await
        })
    })
}

async fn put_from<S: Source>(
    args: &PutArgs,
    store: &ObjectStore,
    source: S,
    bytes: u64,
) -> Result<(), Ended> {
    let (began, progress) = (Instant::now(), Progress::new(bytes));
    let bar = (!args.quiet).then(|| show("putting", &progress));
    let stored = store.put(source, &args.key, args.version, &progress).await;
    drop(bar);
    let (stored, seconds) = (stored?, began.elapsed().as_secs_f64());
    let printed = if args.json {
        let Stored { version, bytes, parts } = stored;
        print(&pretty(&transferred(store, &args.key, (version, bytes, parts), seconds)))
    } else if !args.quiet {
        print(&report::stored(&args.key, &stored, seconds))
    } else {
        Ok(())
    };
    store.settle().await;
    Ok(printed?)
}

pub fn get(args: &GetArgs) -> ExitCode {
    answer(|| {
        check_key(&args.key)?;
        let surroundings = surroundings()?;
        let config = config::store_config(&args.store, args.parallel, &surroundings)?;
        let ownership = ownership(&args.owner)?;
        carry_out(async {
            let store = open(&config, ownership).await?;
            if args.out == Path::new(STREAM) {
                let (got, _, seconds) = get_to(args, &store, StreamSink::new(io::stdout())).await?;
                eprint!("{}", said_of_get(args, &store, &got, seconds));
                return Ok(());
            }
            let sink = FileSink::create(&surroundings.current_dir.join(&args.out))?;
            let (got, sink, seconds) = get_to(args, &store, sink).await?;
            sink.keep()?;
            Ok(print(&said_of_get(args, &store, &got, seconds))?)
        })
    })
}

async fn get_to<K: Sink>(args: &GetArgs, store: &ObjectStore, sink: K) -> Result<(Got, K, f64), Ended> {
    let (began, progress) = (Instant::now(), Progress::new(0));
    let bar = (!args.quiet).then(|| show("getting", &progress));
    let got = store.get(&args.key, args.version, sink, &progress).await;
    drop(bar);
    let (got, sink) = got?;
    Ok((got, sink, began.elapsed().as_secs_f64()))
}

fn said_of_get(args: &GetArgs, store: &ObjectStore, got: &Got, seconds: f64) -> String {
    let Got { version, bytes, parts, .. } = *got;
    match (args.json, args.quiet) {
        (true, _) => pretty(&transferred(store, &args.key, (version, bytes, parts), seconds)),
        (false, true) => String::new(),
        (false, false) => report::got(&args.key, got, seconds),
    }
}

pub fn delete(args: &DeleteArgs) -> ExitCode {
    answer(|| {
        check_key(&args.key)?;
        let surroundings = surroundings()?;
        let config = config::store_config(&args.store, 1, &surroundings)?;
        let secret = owner::read(&config::owner_key(&args.owner, &surroundings)?)?;
        carry_out(async {
            let began = Instant::now();
            let store = open(&config, Ownership::Own(secret)).await?;
            let version = store.delete(&args.key).await?;
            let seconds = began.elapsed().as_secs_f64();
            let printed = if args.json {
                print(&pretty(&transferred(&store, &args.key, (version, 0, 0), seconds)))
            } else if !args.quiet {
                print(&report::deleted(&args.key, version))
            } else {
                Ok(())
            };
            store.settle().await;
            Ok(printed?)
        })
    })
}

pub fn list(args: &ListArgs) -> ExitCode {
    answer(|| {
        let config = config::store_config(&args.store, 1, &surroundings()?)?;
        let ownership = ownership(&args.owner)?;
        carry_out(async {
            let store = open(&config, ownership).await?;
            let KeyList { keys, silent } = store.list(&args.prefix).await?;
            if silent.len() > store.members().quorums().faults() {
                let named: Vec<String> =
                    silent.iter().map(|(address, why)| format!("{address}: {why}")).collect();
                warn(&format!("keys may be missing, as some nodes gave no list: {}", named.join("; ")));
            }
            let mut rows = Vec::new();
            for listed in keys.into_iter().filter(|listed| args.deleted || !listed.deleted) {
                let got = looked_at(&store, &listed, args.long).await?;
                rows.push((listed, got));
            }
            print(&if args.json { pretty(&rows_json(&store, &rows)) } else { report::keys(&rows) })?;
            Ok(())
        })
    })
}

/// What its manifest says, where that was asked for. One that was deleted meanwhile has none.
async fn looked_at(store: &ObjectStore, listed: &Listed, long: bool) -> Result<Option<Got>, Ended> {
    if !long || listed.deleted {
        return Ok(None);
    }
    match store.look(&listed.key).await {
        Ok(got) => Ok(Some(got)),
        Err(ObjectError::NoSuchKey(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn rows_json(store: &ObjectStore, rows: &[(Listed, Option<Got>)]) -> Value {
    let row = |(listed, got): &(Listed, Option<Got>)| {
        let Listed { key, version, deleted } = listed;
        let mut row = json!({ "key": key, "version": version, "deleted": deleted });
        if let Some(got) = got {
            row["bytes"] = got.bytes.into();
            row["parts"] = got.parts.into();
            row["put_ms"] = got.put_ms.into();
        }
        row
    };
    json!({ "owner": store.owner(), "objects": rows.iter().map(row).collect::<Vec<_>>() })
}

pub fn members(args: &MembersArgs) -> ExitCode {
    answer(|| {
        let surroundings = surroundings()?;
        let code = args.code.parse::<Code>();
        let code = code.map_err(|error| Failure::Usage(format!("--code {}: {error}", args.code)))?;
        let access = config::access(&args.access, &surroundings)?;
        let peers = config::named_peers(args.peers.as_ref(), &access, &surroundings)?;
        carry_out(async {
            let transport = access.object_transport()?;
            Ok(hand_over(&membership::survey(&transport, &peers, code, HELLO_LIMIT).await?.to_json())?)
        })
    })
}

/// Carry a command out, and say how it ended.
fn answer(command: impl FnOnce() -> Result<(), Ended>) -> ExitCode {
    match command() {
        Ok(()) => ExitCode::SUCCESS,
        Err(Ended::Missing(sentence)) => fail(&sentence, MISSING),
        Err(Ended::Failed(Failure::Usage(sentence))) => fail(&sentence, 2),
        Err(Ended::Failed(Failure::Refused(sentence) | Failure::System(sentence))) => fail(&sentence, 1),
        Err(Ended::Failed(Failure::Told)) => ExitCode::FAILURE,
    }
}

/// Until it is done or somebody ends it; then what it had begun to write is taken away.
fn carry_out(command: impl Future<Output = Result<(), Ended>>) -> Result<(), Ended> {
    let runtime = runtime()?;
    let done = runtime.block_on(async {
        tokio::select! {
            done = command => done,
            ended = ended() => Err(ended.err().map_or_else(
                || Failure::Refused("ended before it was done".to_owned()),
                |error| host_refusal("signals", &error).into(),
            ).into()),
        }
    });
    // Standard input may be waited for yet.
    runtime.shutdown_background();
    done
}

/// When somebody wants the program to end.
async fn ended() -> io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

async fn open_own(config: &StoreConfig, owner_key: &Path) -> Result<ObjectStore, Ended> {
    // First, so that no key is made for a pool that is not there.
    let (transport, members) = pool(config).await?;
    let secret = owner::read_or_make(owner_key)?;
    Ok(ObjectStore::new(transport, members, Ownership::Own(secret), config.options))
}

async fn open(config: &StoreConfig, ownership: Ownership) -> Result<ObjectStore, Ended> {
    let (transport, members) = pool(config).await?;
    Ok(ObjectStore::new(transport, members, ownership, config.options))
}

async fn pool(config: &StoreConfig) -> Result<(Arc<dyn ObjectTransport>, Members), Ended> {
    let StoreConfig { told_by, access, options } = config;
    let transport = Access::object_transport(access)?;
    let members = match told_by {
        ToldBy::File(path) => members_in(path)?,
        ToldBy::Peers(peers) => {
            membership::believed(&transport, peers, HELLO_LIMIT.min(options.io_limit)).await?
        }
    };
    Ok((transport, members))
}

fn members_in(path: &Path) -> Result<Members, Failure> {
    let shown = path.display().to_string();
    let text = std::fs::read(path).map_err(|error| host_refusal(&shown, &error))?;
    Members::parse(&text).map_err(|error| Failure::Refused(format!("{shown}: {error}")))
}

fn ownership(args: &ReadArgs) -> Result<Ownership, Ended> {
    if let Some(owner) = &args.owner {
        let owner: Result<OwnerId, _> = owner.parse();
        let wrong = |_| Failure::Usage("--owner is 64 lower-case hex digits".to_owned());
        return Ok(Ownership::Of(owner.map_err(wrong)?));
    }
    own(&args.key)
}

fn own(args: &OwnerArgs) -> Result<Ownership, Ended> {
    Ok(Ownership::Own(owner::read(&config::owner_key(args, &surroundings()?)?)?))
}

fn show(verb: &'static str, progress: &Arc<Progress>) -> Bar {
    let (progress, began) = (progress.clone(), Instant::now());
    Bar::show(move || {
        (began.elapsed() > BEFORE_PROGRESS).then(|| report::transfer_progress(verb, progress.bytes()))
    })
}

fn transferred(
    store: &ObjectStore,
    key: &str,
    (version, bytes, parts): (u64, u64, u32),
    seconds: f64,
) -> Value {
    let seconds = (seconds * 1000.0).round() / 1000.0;
    json!({
        "key": key, "version": version, "bytes": bytes, "parts": parts, "seconds": seconds, "owner": store.owner(),
    })
}
