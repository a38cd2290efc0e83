//! The life of a mount daemon around the file system it serves: going into the background, saying that it is ready,
//! and ending in good order however it is asked to.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::asking::{self, Question};
use crate::busy;
use crate::control::{Answer, Ending, Handler, Presence, Request};
use crate::error::Error;
use crate::host::{self, reason};
use crate::inode::Ino;
use crate::state::Refusal;
use crate::volume::Volume;

/// After an unmount the kernel closes the connection as soon as the last request is answered; another mount namespace
/// may still hold it, and is not waited for longer.
const GOODBYE_LIMIT: Duration = Duration::from_secs(5);
/// What was written into mappings of files is here after so long, or given up.
const WRITTEN_LIMIT: Duration = Duration::from_secs(20);
/// Who uses a mount is looked for so long.
const SEARCH_LIMIT: Duration = Duration::from_secs(2);
/// A mount whose volume is open answers a statfs at once.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Start this program again as a daemon, with these arguments, `mount` first.
/// Its standard output is a pipe to here, on which it reports in lines: `warning ..`, `error ..`, `ready`.
pub fn start(words: impl IntoIterator<Item = OsString>) -> io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    // After the word `mount` and before all the rest, which may have a `--` in it.
    let mut words = words.into_iter();
    command.args(words.next()).arg("--daemon").args(words);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()
}

/// Wait until the mount of a daemon answers.
///
/// # Errors
/// The daemon's sentence; it has ended then.
pub fn wait_for(mut daemon: Child, state: &Path) -> Result<(), Refusal> {
    let reports = BufReader::new(daemon.stdout.take().expect("standard output is a pipe"));
    for line in reports.lines().map_while(Result::ok) {
        match line.split_once(' ') {
            Some(("warning", sentence)) => warn(sentence),
            Some(("error", sentence)) => {
                let _ = daemon.wait();
                return Err(Refusal(sentence.to_owned()));
            }
            _ => return Ok(()),
        }
    }
    let _ = daemon.wait();
    Err(Refusal(format!("the mount daemon ended early: see {}", state.join("avidfs.log").display())))
}

/// Tell the person at the terminal.
pub fn warn(sentence: &str) {
    eprintln!("avidfs: warning: {sentence}");
}

/// To whom a starting mount reports.
pub enum Announce {
    /// The person at the terminal.
    Terminal,
    /// The process that started this daemon.
    Pipe(File),
}

impl Announce {
    /// Become a daemon, away from the folder it was started in; `ready` ends the way there.
    pub fn as_daemon() -> io::Result<Announce> {
        let pipe = host::take_standard_output()?;
        std::env::set_current_dir("/")?;
        Ok(Announce::Pipe(pipe))
    }

    /// From now on everything that is printed goes to the log, except at a terminal.
    pub fn redirect(&self, log: &File) -> io::Result<()> {
        match self {
            Announce::Terminal => Ok(()),
            Announce::Pipe(_) => host::redirect_standard_streams(log),
        }
    }

    /// Something worth knowing.
    pub fn warning(&self, sentence: &str) {
        match self {
            Announce::Terminal => warn(sentence),
            Announce::Pipe(pipe) => drop(report(pipe, "warning", sentence)),
        }
    }

    /// The mount did not come about. To a terminal main says it.
    pub fn error(&self, sentence: &str) {
        if let Announce::Pipe(pipe) = self {
            let _ = report(pipe, "error", sentence);
        }
    }

    /// The mount answers. An error if whoever asked for it is gone.
    ///
    /// Not before has a daemon a session of its own: where an automounter waits for the mount, nobody passes it but the
    /// process group that is to mount.
    pub fn ready(self) -> io::Result<()> {
        match self {
            Announce::Terminal => Ok(()),
            Announce::Pipe(pipe) => {
                host::begin_session()?;
                report(&pipe, "ready", "")
            }
        }
    }
}

fn report(mut pipe: &File, word: &str, sentence: &str) -> io::Result<()> {
    let line = format!("{word} {}", sentence.replace('\n', " "));
    pipe.write_all(format!("{}\n", line.trim_end()).as_bytes())
}

/// Wait until a mount answers.
pub async fn answers(mountpoint: &Path) -> Result<(), Refusal> {
    let shown = mountpoint.display();
    let answered = ask_mount(Question::Answers, mountpoint, ANSWER_LIMIT).await;
    answered.map_err(|error| Refusal(format!("the mount at {shown} does not answer: {}", reason(&error))))
}

async fn ask_mount(question: Question, mountpoint: &Path, limit: Duration) -> io::Result<()> {
    let mountpoint = mountpoint.to_owned();
    let asked = tokio::task::spawn_blocking(move || asking::ask(&question, &mountpoint, limit));
    asked.await.map_err(io::Error::other)?.map(drop)
}

/// An `avidfs umount` that waits for its answer.
type Asker = oneshot::Sender<Result<Ending, Refusal>>;

/// A mount from the moment it answers until it is gone.
pub struct Running {
    volume: Arc<Volume>,
    mountpoint: PathBuf,
    /// What the kernel calls the mount; none if it is not seen there.
    device: Option<String>,
    gone: oneshot::Receiver<io::Result<()>>,
    askers: (mpsc::Sender<Asker>, mpsc::Receiver<Asker>),
    signals: Signals,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// What went wrong with the snapshot of this name.
fn about(name: &str, error: Error) -> String {
    match error {
        Error::Exists => format!("there is a snapshot {name} already"),
        Error::NotFound => format!("there is no snapshot {name}"),
        error => error.to_string(),
    }
}

impl Running {
    /// Watch over a mount; `wait` blocks until it is unmounted, or the connection to the kernel breaks. From here on signals
    /// end it in good order.
    pub fn new(
        volume: Arc<Volume>,
        mountpoint: &Path,
        wait: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Running> {
        let (tell, gone) = oneshot::channel();
        std::thread::Builder::new().name("session".to_owned()).spawn(move || {
            let _ = tell.send(wait());
        })?;
        Ok(Running {
            volume,
            mountpoint: mountpoint.to_owned(),
            device: host::mount_at(mountpoint)?.map(|mount| mount.device),
            gone,
            askers: mpsc::channel(1),
            signals: Signals {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
                hangup: signal(SignalKind::hangup())?,
            },
        })
    }

    /// What is served.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// Who answers the control socket.
    pub fn handler(&self) -> Handler {
        let (volume, mountpoint, askers) =
            (self.volume.clone(), self.mountpoint.clone(), self.askers.0.clone());
        Arc::new(move |request| {
            let (volume, mountpoint, askers) = (volume.clone(), mountpoint.clone(), askers.clone());
            Box::pin(async move {
                match request {
                    Request::Ping => {
                        Answer::from::<_, Refusal>(Ok(Presence { pid: std::process::id(), mountpoint }))
                    }
                    Request::Status => Answer::from(volume.status().await),
                    Request::Metrics => {
                        Answer::from(volume.status().await.map(|status| crate::metrics::page(&status)))
                    }
                    Request::Info { ino } => Answer::from(volume.locate(Ino(ino)).await),
                    Request::Blame => Answer::from::<_, Refusal>(Ok(volume.evidence())),
                    Request::Absolve { node } => Answer::from(volume.absolve(node)),
                    Request::Gc { dry_run } => Answer::from(volume.collect_garbage(dry_run).await),
                    Request::Rebalance { dry_run } => Answer::from(volume.rebalance(dry_run).await),
                    Request::TakeSnapshot { name } => {
                        Answer::from(volume.take_snapshot(&name).await.map_err(|error| about(&name, error)))
                    }
                    Request::Snapshots => Answer::from(volume.list_snapshots()),
                    Request::DeleteSnapshot { name } => {
                        Answer::from(volume.delete_snapshot(&name).await.map_err(|error| about(&name, error)))
                    }
                    Request::Versions { path } => Answer::from(volume.versions(&path).await),
                    Request::Restore { snapshot, path, directory, name } => {
                        let restored = volume.restore(&snapshot, &path, Ino(directory), &name).await;
                        Answer::from(restored.map_err(|error| match error {
                            Error::NotFound => {
                                format!("there is no snapshot {snapshot}, or nothing at that path in it")
                            }
                            error => error.to_string(),
                        }))
                    }
                    Request::Fsck(wish) => Answer::from(volume.fsck(wish).await),
                    Request::FsckProgress => Answer::from::<_, Refusal>(Ok(volume.fsck_progress())),
                    Request::Umount => Answer::from(ask(&askers).await),
                }
            })
        })
    }

    /// Serve until unmounted, signalled or asked to end; then bring everything dirty to the nodes.
    ///
    /// # Errors
    /// What could not be stored, and where it waits.
    pub async fn until_the_end(mut self) -> Result<(), Refusal> {
        let ending = self.unmounted().await;
        self.tell(ending)
    }

    /// End without having been asked to.
    ///
    /// # Errors
    /// What could not be stored, and where it waits.
    pub async fn end(mut self) -> Result<(), Refusal> {
        let ending = self.end_now().await;
        self.tell(ending)
    }

    fn tell(&mut self, ending: Ending) -> Result<(), Refusal> {
        for asker in self.waiting() {
            let _ = asker.send(Ok(ending.clone()));
        }
        match ending.unsaved {
            None => Ok(()),
            Some(sentence) => Err(Refusal(sentence)),
        }
    }

    async fn unmounted(&mut self) -> Ending {
        loop {
            tokio::select! {
                gone = &mut self.gone => match gone {
                    Ok(Ok(())) => return self.store().await,
                    gone => return self.end_broken(gone).await,
                },
                () = self.signals.any() => return self.end_now().await,
                Some(asker) = self.askers.1.recv() => match self.unmount(false).await {
                    Ok(()) => return self.end_for(asker).await,
                    Err(refusal) => drop(asker.send(Err(refusal))),
                },
            }
        }
    }

    /// The kernel goes on showing what is not served any more.
    async fn end_broken(&mut self, gone: Result<io::Result<()>, oneshot::error::RecvError>) -> Ending {
        let why = match gone {
            Ok(Err(error)) => error.to_string(),
            _ => "its thread ended".to_owned(),
        };
        tracing::error!(%why, "the connection to the kernel is broken");
        let ending = self.end_now().await;
        let broken = format!("the connection to the kernel is broken: {why}");
        Ending { unsaved: ending.unsaved.or(Some(broken)) }
    }

    /// Unmounted on request: nobody can write any more, so what is stored now is all.
    async fn end_for(&mut self, asker: Asker) -> Ending {
        let _ = tokio::time::timeout(GOODBYE_LIMIT, &mut self.gone).await;
        let ending = self.store().await;
        let _ = asker.send(Ok(ending.clone()));
        ending
    }

    /// On a signal the daemon ends even while the mount is in use: whoever still has files open there is refused
    /// further changes, so that what is stored now is all.
    async fn end_now(&mut self) -> Ending {
        if self.unmount(false).await.is_ok() {
            let _ = tokio::time::timeout(GOODBYE_LIMIT, &mut self.gone).await;
            return self.store().await;
        }
        // What programs wrote into mappings of files the kernel still has, and tells us of only now.
        let written = Question::Written(self.volume.open_inodes());
        if let Err(error) = ask_mount(written, &self.mountpoint, WRITTEN_LIMIT).await {
            tracing::warn!(%error, "what was written into mappings of files may be lost");
        }
        if let Err(refusal) = self.unmount(true).await {
            tracing::error!(%refusal, "the mount stays behind, dead");
        }
        self.store().await
    }

    async fn store(&self) -> Ending {
        let unsaved = self.volume.shut_down().await.err();
        Ending { unsaved: unsaved.map(|unsaved| unsaved.to_string()) }
    }

    /// Asks the kernel from a thread of its own: it asks us back while it unmounts.
    async fn unmount(&self, lazily: bool) -> Result<(), Refusal> {
        let (mountpoint, device) = (self.mountpoint.clone(), self.device.clone());
        let done = tokio::task::spawn_blocking(move || {
            // It was detached, or something else is mounted over it: that is not ours to take away.
            let seen = host::mount_at(&mountpoint).ok().flatten().map(|mount| mount.device);
            if device.is_some() && seen != device {
                tracing::warn!(mountpoint = %mountpoint.display(), "the mount is not seen there any more");
                return Ok(());
            }
            host::unmount(&mountpoint, lazily).map_err(|error| why_still_mounted(&mountpoint, &error))
        });
        done.await.expect("unmounting does not panic").map_err(Refusal)
    }

    fn waiting(&mut self) -> Vec<Asker> {
        std::iter::from_fn(|| self.askers.1.try_recv().ok()).collect()
    }
}

fn why_still_mounted(mountpoint: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ResourceBusy => busy::sentence(mountpoint, &busy::users(mountpoint, SEARCH_LIMIT)),
        _ => format!("{} cannot be unmounted: {}", mountpoint.display(), reason(error)),
    }
}

async fn ask(askers: &mpsc::Sender<Asker>) -> Result<Ending, Refusal> {
    let ended = || Refusal("the mount daemon is ending already".to_owned());
    let (asker, answer) = oneshot::channel();
    askers.send(asker).await.map_err(|_| ended())?;
    answer.await.map_err(|_| ended())?
}

impl Signals {
    async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
