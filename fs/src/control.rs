//! How the command line speaks to a running mount daemon: one JSON line each way over a Unix socket in the state folder.
//! It carries questions and answers; what they mean others know.

use std::fs::{File, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::wire::NodeId;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::sync::{RwLock, Semaphore};

use crate::host;
use crate::state::Refusal;
use crate::volume::FsckWish;

const NAME: &str = "control.sock";
/// Longest request, in bytes.
const MAX_REQUEST: u64 = 64 << 10;
/// Longest answer, in bytes: `info` of a large file names every fragment.
const MAX_ANSWER: u64 = 1 << 30;
/// Connections served at once; more wait in the socket's queue.
const CONNECTIONS: usize = 16;
/// A client that says nothing for so long is left.
const PATIENCE: Duration = Duration::from_secs(10);

/// What may be asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    /// Who is there: a `Presence`.
    Ping,
    /// How the volume is doing: a `VolumeStatus`.
    Status,
    /// What the mount counts, as Prometheus reads it: a text.
    Metrics,
    /// Where a file's bytes are: a `FileReport`.
    Info {
        /// The file's inode number.
        ino: u64,
    },
    /// Find what nobody refers to, and delete it unless told not to: a `GarbageReport`.
    Gc {
        /// Whether it is only counted.
        dry_run: bool,
    },
    /// Place by the current list of nodes what earlier ones placed, unless told not to: a `RebalanceReport`.
    Rebalance {
        /// Whether it is only counted.
        dry_run: bool,
    },
    /// Keep the state the volume has now: a `SnapshotReport`.
    TakeSnapshot {
        /// By what it is to be known.
        name: String,
    },
    /// All snapshots: a list of `SnapshotReport`.
    Snapshots,
    /// Give a snapshot up: nothing.
    DeleteSnapshot {
        /// Its name.
        name: String,
    },
    /// The states a path was in: a list of `VersionReport`.
    Versions {
        /// From the root of the volume, any bytes.
        path: Vec<u8>,
    },
    /// Make what a path led to in a snapshot anew: a `RestoreReport`.
    Restore {
        /// The snapshot's name.
        snapshot: String,
        /// From the root of the volume, any bytes.
        path: Vec<u8>,
        /// The inode number of the directory it is to be in.
        directory: u64,
        /// Its name there, any bytes.
        name: Vec<u8>,
    },
    /// Check everything, and repair it if told to: a `FsckReport`.
    Fsck(FsckWish),
    /// What nodes were caught at: a list of `Case`.
    Blame,
    /// Trust a node again that was caught: how many cases were put aside.
    Absolve {
        /// The node.
        node: NodeId,
    },
    /// How far the check is that was begun last: a `FsckProgress`.
    FsckProgress,
    /// Store everything, unmount, end. Answered when all but the end is done: an `Ending`.
    Umount,
}

/// The answer to `Ping`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Presence {
    /// The daemon's process.
    pub pid: u32,
    /// Where it has mounted the volume.
    pub mountpoint: PathBuf,
}

/// The answer to `Umount`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ending {
    /// What could not be stored and where it waits, as a sentence; none if everything is stored.
    pub unsaved: Option<String>,
}

/// What is answered.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// What was asked for.
    Ok(Value),
    /// Why not, in a sentence.
    Error(String),
}

impl Answer {
    /// Something that serializes, or the sentence of an error.
    pub fn from<T: Serialize, E: std::fmt::Display>(result: Result<T, E>) -> Answer {
        match result
            .map_err(|error| error.to_string())
            .and_then(|value| serde_json::to_value(value).map_err(|error| error.to_string()))
        {
            Ok(value) => Answer::Ok(value),
            Err(sentence) => Answer::Error(sentence),
        }
    }
}

/// Who answers.
pub type Handler = Arc<dyn Fn(Request) -> BoxFuture<'static, Answer> + Send + Sync>;

/// Where the daemon that has taken a state folder listens.
pub fn socket(folder: &Path) -> PathBuf {
    folder.join(NAME)
}

/// Listen in a state folder that this process has taken; only the same user (and root) may ask.
pub fn listen(folder: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(folder.join(NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = within(folder, |path| UnixListener::bind(path))?;
    std::fs::set_permissions(folder.join(NAME), Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A socket's path has at most 107 bytes, and a folder may lie deeper: so it is reached through an open descriptor.
fn within<T>(folder: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let folder = File::open(folder)?;
    act(&Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(NAME))
}

/// Held shared by whoever is being answered: who gets hold of it alone knows that all answers are on their way.
pub type Answering = Arc<RwLock<()>>;

/// Answer whoever asks, until dropped.
pub async fn serve(listener: UnixListener, handler: Handler, answering: Answering) -> io::Result<()> {
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = room.clone().acquire_owned().await.expect("the semaphore is never closed");
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (handler, answering) = (handler.clone(), answering.clone());
        tokio::spawn(async move {
            if let Err(error) = converse(stream, &handler, &answering).await {
                tracing::debug!(%error, "control connection");
            }
            drop(place);
        });
    }
}

async fn converse(
    stream: tokio::net::UnixStream,
    handler: &Handler,
    answering: &Answering,
) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = tokio::io::BufReader::new(read);
    loop {
        let mut line = String::new();
        let mut bounded = (&mut read).take(MAX_REQUEST);
        let length = tokio::time::timeout(PATIENCE, bounded.read_line(&mut line)).await??;
        if length == 0 {
            return Ok(());
        }
        let _answering = answering.read().await;
        let answer = match serde_json::from_str(&line) {
            Ok(request) => handler(request).await,
            Err(error) => Answer::Error(format!("the mount daemon does not know this request: {error}")),
        };
        let mut bytes = serde_json::to_vec(&answer)?;
        bytes.push(b'\n');
        write.write_all(&bytes).await?;
    }
}

/// A running mount daemon, seen from the command line.
pub struct Daemon {
    stream: BufReader<UnixStream>,
    pid: u32,
}

impl Daemon {
    /// The daemon that has taken this state folder. `NotFound` or `ConnectionRefused` if none runs.
    pub fn connect(folder: &Path) -> io::Result<Daemon> {
        let stream = within(folder, |path| UnixStream::connect(path))?;
        let pid = host::peer_process(&stream)?;
        Ok(Daemon { stream: BufReader::new(stream), pid })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Ask, and wait at most so long; for ever with `None`, which ends at the latest with the daemon.
    pub fn ask<T: for<'de> Deserialize<'de>>(
        &mut self,
        request: Request,
        limit: Option<Duration>,
    ) -> Result<T, Refusal> {
        let line = self.exchange(request, limit).map_err(|error| self.silence(&error))?;
        let garbled =
            |error| Refusal(format!("the mount daemon (process {}) answered nonsense: {error}", self.pid));
        match serde_json::from_str(&line).map_err(garbled)? {
            Answer::Ok(value) => serde_json::from_value(value).map_err(garbled),
            Answer::Error(sentence) => Err(Refusal(sentence)),
        }
    }

    fn exchange(&mut self, request: Request, limit: Option<Duration>) -> io::Result<String> {
        let stream = self.stream.get_mut();
        stream.set_read_timeout(limit)?;
        stream.set_write_timeout(limit)?;
        let mut bytes = serde_json::to_vec(&request)?;
        bytes.push(b'\n');
        stream.write_all(&bytes)?;
        let mut line = String::new();
        match (&mut self.stream).take(MAX_ANSWER).read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line),
        }
    }

    fn silence(&self, error: &io::Error) -> Refusal {
        let pid = self.pid;
        Refusal(match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                format!(
                    "the mount daemon (process {pid}) does not answer: kill it, and unmount again to detach"
                )
            }
            _ => format!(
                "the mount daemon (process {pid}) ended before it answered: see avidfs.log in the state folder"
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use avidfs_tests::fuzz::fuzz;

    use super::*;

    fn parrot() -> Handler {
        Arc::new(|request| {
            Box::pin(async move {
                match request {
                    Request::Info { ino: 13 } => Answer::Error("no such file".into()),
                    request => Answer::from::<_, String>(Ok(request)),
                }
            })
        })
    }

    async fn served(folder: &Path) -> tokio::task::JoinHandle<io::Result<()>> {
        tokio::spawn(serve(listen(folder).unwrap(), parrot(), Answering::default()))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn questions_are_answered_in_turn_and_errors_come_as_sentences() {
        let folder = tempfile::tempdir().unwrap();
        let server = served(folder.path()).await;
        let folder_path = folder.path().to_owned();
        let asking = tokio::task::spawn_blocking(move || {
            let mut daemon = Daemon::connect(&folder_path).unwrap();
            assert_eq!(daemon.pid(), std::process::id());
            let limit = Some(Duration::from_secs(10));
            assert_eq!(daemon.ask::<Request>(Request::Info { ino: 7 }, limit), Ok(Request::Info { ino: 7 }));
            assert_eq!(
                daemon.ask::<Request>(Request::Info { ino: 13 }, limit),
                Err(Refusal("no such file".into()))
            );
            assert_eq!(daemon.ask::<Request>(Request::Status, limit), Ok(Request::Status));
        });
        asking.await.unwrap();
        server.abort();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn garbage_and_overlong_requests_are_answered_and_the_daemon_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let server = served(folder.path()).await;
        let folder_path = folder.path().to_owned();
        let asking = tokio::task::spawn_blocking(move || {
            for garbage in [b"what?\n".to_vec(), vec![b'x'; 2 * MAX_REQUEST as usize]] {
                let mut stream = within(&folder_path, |path| UnixStream::connect(path)).unwrap();
                stream.write_all(&garbage).unwrap();
                let mut answer = String::new();
                BufReader::new(stream).read_line(&mut answer).unwrap();
                assert!(answer.starts_with(r#"{"error":"#), "{answer}");
            }
            let mut daemon = Daemon::connect(&folder_path).unwrap();
            daemon.ask::<Request>(Request::Ping, None).unwrap();
        });
        asking.await.unwrap();
        server.abort();
    }

    #[test]
    fn a_deep_folder_has_room_for_a_socket_only_its_owner_may_use() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        assert_eq!(Daemon::connect(&deep).err().unwrap().kind(), io::ErrorKind::NotFound);
        let first = listen(&deep).unwrap();
        drop(first);
        assert_eq!(Daemon::connect(&deep).err().unwrap().kind(), io::ErrorKind::ConnectionRefused);
        let _second = listen(&deep).unwrap();
        assert_eq!(deep.join(NAME).metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn whatever_the_line_a_request_is_refused_or_comes_back() {
        let restore = Request::Restore {
            snapshot: "a \"quoted\" one".into(),
            path: b"\xff/b".to_vec(),
            directory: 1,
            name: b"n".to_vec(),
        };
        let valid = [
            Request::Ping,
            Request::Info { ino: 7 },
            Request::Gc { dry_run: true },
            restore,
            Request::Versions { path: b"a/b".to_vec() },
            Request::Fsck(FsckWish::default()),
        ];
        let valid = valid.map(|request| {
            let line = serde_json::to_vec(&request).unwrap();
            assert_eq!(serde_json::from_slice::<Request>(&line).unwrap(), request);
            line
        });
        // Of a byte in a list, two are sent, and 32 kept until it is known which request it is.
        let most = |length| 64 * length + 4096;
        let parse = |bytes: &[u8]| serde_json::from_str::<Request>(std::str::from_utf8(bytes).ok()?).ok();
        fuzz("control-request", &valid, most, parse, |request, _| {
            let line = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
        });
    }

    #[test]
    fn whatever_the_line_an_answer_is_refused_or_comes_back() {
        let status =
            serde_json::json!({ "nodes": [{ "state": "up", "bytes": 1.5 }], "code": "3+2", "none": null });
        let valid = [Answer::Ok(status), Answer::Error("no such file".into()), Answer::Ok(Value::Null)];
        let valid = valid.map(|answer| serde_json::to_vec(&answer).unwrap());
        let most = |length| 256 * length + 4096;
        let parse = |bytes: &[u8]| serde_json::from_str::<Answer>(std::str::from_utf8(bytes).ok()?).ok();
        fuzz("control-answer", &valid, most, parse, |answer, _| {
            let line = serde_json::to_string(&answer).unwrap();
            let again = serde_json::from_str::<Answer>(&line).unwrap();
            assert_eq!(serde_json::to_string(&again).unwrap(), line);
        });
    }
}
