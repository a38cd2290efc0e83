//! Questions that a mount is asked through the kernel, by a process of their own.
//!
//! Whoever asks a mount hangs in the kernel as long as its daemon does, and cannot be killed. A process with such a thread
//! does not end: a command would not return, and a daemon that asks itself and is killed meanwhile would keep its own
//! connection to the kernel open, so that its mount hangs for ever. A process that only asks can be left behind.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::fuse::CONTROL_XATTR;
use crate::helper::ASKING;
use crate::host;
use crate::inode::Ino;

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Question {
    /// What it tells of itself: the value of `CONTROL_XATTR`.
    Itself,
    /// Whether it answers at all.
    Answers,
    /// Have the kernel hand it what programs wrote into mappings of these files, and wait until it is there. For others
    /// than root the kernel hands over everything, and nobody waits for it.
    Written(Vec<Ino>),
    /// Unmount it by force; the kernel may wait for a daemon that hangs.
    Force,
}

/// Ask a mount, and wait for the answer so long.
///
/// # Errors
/// `TimedOut`, or the mount's.
pub fn ask(question: &Question, mountpoint: &Path, limit: Duration) -> io::Result<Vec<u8>> {
    // The program that runs, even if another has taken its name.
    let mut asking = Command::new("/proc/self/exe");
    asking.arg0(ASKING).arg(question.word()).arg(mountpoint);
    asking.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut asking = asking.spawn()?;
    let input = question.input();
    let (mut to, mut from) = (asking.stdin.take(), asking.stdout.take());
    let (tell, answer) = mpsc::channel();
    std::thread::spawn(move || {
        // What it does not read it does not want to know.
        let _ = to.take().map(|mut to| to.write_all(&input));
        let mut told = Vec::new();
        let read = from.as_mut().map_or(Ok(0), |from| from.read_to_end(&mut told));
        tell.send(read.and_then(|_| Ok((told, asking.wait()?))))
    });
    let (told, status) = answer.recv_timeout(limit).map_err(|_| io::ErrorKind::TimedOut)??;
    match status.code() {
        Some(0) => Ok(told),
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        None => Err(io::Error::other(status.to_string())),
    }
}

/// The process that asks: prints the answer, and ends with the errno of what went wrong, or with 0.
pub fn asked(mut words: impl Iterator<Item = std::ffi::OsString>) -> u8 {
    let (question, mountpoint) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let answered = match question.to_str() {
        Some("itself") => itself(Path::new(&mountpoint)),
        Some("answers") => host::free_bytes(Path::new(&mountpoint)).map(drop),
        Some("written") => written(Path::new(&mountpoint)),
        Some("force") => host::unmount_by_force(Path::new(&mountpoint)),
        _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    };
    match answered {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().and_then(|errno| errno.try_into().ok()).unwrap_or(u8::MAX),
    }
}

fn itself(mountpoint: &Path) -> io::Result<()> {
    io::stdout().write_all(&host::xattr(mountpoint, CONTROL_XATTR)?)
}

/// The kernel's syncfs hands everything over, but does not wait until it is taken; fsync of a file does.
fn written(mountpoint: &Path) -> io::Result<()> {
    let mount = File::open(mountpoint)?;
    host::sync_file_system(mountpoint)?;
    for line in io::stdin().lock().lines() {
        let Ok(ino) = line?.parse() else { return Err(io::Error::from_raw_os_error(libc::EINVAL)) };
        match host::open_inode(&mount, ino).and_then(|file| file.sync_data()) {
            Ok(()) => {}
            // Closed meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ESTALE) => {}
            // Only root opens a file by its number.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Question {
    fn word(&self) -> &'static str {
        match self {
            Question::Itself => "itself",
            Question::Answers => "answers",
            Question::Written(_) => "written",
            Question::Force => "force",
        }
    }

    fn input(&self) -> Vec<u8> {
        match self {
            Question::Written(files) => {
                files.iter().flat_map(|Ino(ino)| format!("{ino}\n").into_bytes()).collect()
            }
            _ => Vec::new(),
        }
    }
}
