//! What bad input gets from `avidfs`: one clear sentence, an exit code that is not 0, and nothing changed.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use avidfs_tests::cluster::Cluster;
use avidfs_tests::mount::Mount;
use avidfs_tests::process::{command, output, run};
use avidfs_tests::scratch::{detach, is_mounted, scratch};
use tempfile::TempDir;

/// No refusal takes longer: 1 s to know that nobody connects, 5 s that nobody answers.
const REFUSAL_LIMIT: Duration = Duration::from_secs(10);

/// A place for mounts that do not come about.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Place {
        let folder = scratch();
        fs::create_dir(folder.path().join("mnt")).unwrap();
        Place { folder }
    }

    fn mountpoint(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Try to mount, in the background and in the foreground; returns the sentence. Both must refuse alike, in time,
    /// with one line, and leave everything as it was.
    fn refused(&self, options: &[&str]) -> String {
        self.refused_at(&self.mountpoint(), options, 1)
    }

    fn refused_at(&self, mountpoint: &Path, options: &[&str], code: i32) -> String {
        let background = self.refusal(mountpoint, options, code);
        let foreground: Vec<&str> = options.iter().copied().chain(["-f"]).collect();
        assert_eq!(self.refusal(mountpoint, &foreground, code), background);
        background
    }

    fn refusal(&self, mountpoint: &Path, options: &[&str], code: i32) -> String {
        let was_mounted = is_mounted(mountpoint);
        let before = everything_below(self.folder.path());
        let state = self.state();
        let mut avidfs = command("avidfs");
        avidfs.arg("mount").arg(mountpoint);
        if !options.contains(&"--state") {
            avidfs.arg("--state").arg(&state);
        }
        let began = Instant::now();
        let output = output(avidfs.args(options));
        let said = String::from_utf8(output.stderr).unwrap();
        // A mount that should not be there must not hang the test that finds it.
        if is_mounted(mountpoint) && !was_mounted {
            detach(mountpoint);
        }
        assert_eq!(output.status.code(), Some(code), "{options:?}: {said}");
        assert!(began.elapsed() < REFUSAL_LIMIT, "{options:?} took {:?}", began.elapsed());
        assert_eq!(everything_below(self.folder.path()), before, "{options:?} changed something");
        sentence(&said)
    }
}

/// `avidfs: what happened to what`, in one line.
fn sentence(said: &str) -> String {
    assert_eq!(said.lines().count(), 1, "one sentence: {said:?}");
    let sentence = said.trim_end().strip_prefix("avidfs: ").unwrap_or_else(|| panic!("who speaks: {said:?}"));
    let first = sentence.chars().next().unwrap();
    assert!(!first.is_uppercase(), "lower case: {said:?}");
    sentence.to_owned()
}

fn everything_below(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    found
}

/// A command that must fail; returns its sentence.
fn refused(arguments: &[&str], code: i32) -> String {
    let output = output(command("avidfs").args(arguments));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    sentence(&said)
}

fn assert_says(sentence: &str, parts: &[&str]) {
    for part in parts {
        assert!(sentence.contains(part), "{part:?} is missing: {sentence}");
    }
}

/// What nodes know of volumes.
fn volumes(cluster: &Cluster) -> String {
    run(command("avidfs").args(["status", "--json", "--peers", &cluster.peers()]))
}

#[test]
fn an_unknown_option_command_or_value_is_named_with_what_was_probably_meant() {
    let place = Place::new();
    let mountpoint = place.mountpoint();
    let usage = |options: &[&str]| place.refused_at(&mountpoint, options, 2);
    assert_says(&usage(&["--pears", "x"]), &["--pears", "did you mean --peers?"]);
    assert_says(&usage(&["-o", "cod=4+2"]), &["cod", "did you mean code?"]);
    assert_says(&usage(&["--code", "3x2"]), &["--code 3x2", "3+2"]);
    assert_says(&usage(&["--code", "0+2"]), &["--code 0+2"]);
    assert_says(&usage(&["--hash", "md5"]), &["--hash md5", "blake3 or sha256"]);
    assert_says(&usage(&["--cache-disk", "lots"]), &["--cache-disk lots", "1GiB"]);
    assert_says(&usage(&["--io-timeout", "30"]), &["--io-timeout 30", "30s"]);
    assert_says(&usage(&["--peers", "ftp://a:1"]), &["ftp://a:1", "http://HOST:PORT"]);
    assert_says(&usage(&["--volume", "../x"]), &["--volume ../x"]);
    assert_says(&refused(&["monut", "/mnt"], 2), &["monut", "mount"]);
    assert_says(&refused(&["umount"], 2), &["MOUNTPOINT", "missing"]);
}

#[test]
fn an_unknown_key_in_the_file_is_named_with_what_was_probably_meant() {
    let place = Place::new();
    let file = place.folder.path().join("avidfs.yaml");
    let path = file.to_str().unwrap().to_owned();
    let refusal = |text: &str| {
        fs::write(&file, text).unwrap();
        place.refused_at(&place.mountpoint(), &["--config", &path], 2)
    };
    assert_says(&refusal("cache-dsk: 1GiB\n"), &[&path, "cache-dsk", "did you mean cache-disk?"]);
    assert_says(&refusal("code: [3, 2\n"), &[&path]);
    assert_says(&refusal("code: 3x2\n"), &[&path, "code: 3x2"]);
    fs::remove_file(&file).unwrap();
    assert_says(&place.refused_at(&place.mountpoint(), &["--config", &path], 2), &[&path, "no such file"]);
}

#[test]
fn a_mount_point_that_cannot_be_one_is_refused() {
    let place = Place::new();
    let none = place.folder.path().join("none");
    assert_says(&place.refused_at(&none, &[], 1), &["none", "does not exist"]);
    let file = place.folder.path().join("file");
    fs::write(&file, "kept").unwrap();
    assert_says(&place.refused_at(&file, &[], 1), &["file", "is not a directory"]);
    fs::write(place.mountpoint().join("letter"), "kept").unwrap();
    assert_says(&place.refused(&[]), &["mnt", "is not empty"]);
    assert_eq!(fs::read_to_string(place.mountpoint().join("letter")).unwrap(), "kept");
    let inside = place.folder.path().join("state");
    let state = inside.join("state");
    fs::create_dir(&inside).unwrap();
    let refusal = place.refused_at(&inside, &["--state", state.to_str().unwrap()], 1);
    assert_says(&refusal, &["lies in the mount point"]);
}

#[test]
fn fewer_nodes_than_the_code_has_fragments_are_refused() {
    let place = Place::new();
    let cluster = Cluster::start(4);
    assert_says(&place.refused(&["--peers", &cluster.peers()]), &["code 3+2 needs 5 nodes", "4 are given"]);
    assert!(volumes(&cluster).contains("\"volumes\": []"));
}

#[test]
fn a_node_named_by_two_addresses_counts_once() {
    let place = Place::new();
    let cluster = Cluster::start(1);
    let port = cluster.address(0).port();
    let host = cluster.address(0).ip();
    let alias = format!("http://{host}:{port},http://[::ffff:{host}]:{port}");
    assert_says(&place.refused(&["--code", "1+1", "--peers", &alias]), &["are the same node"]);
    let twice = format!("{host}:{port},http://{host}:{port}/");
    assert_says(&place.refused_at(&place.mountpoint(), &["--peers", &twice], 2), &["is named twice"]);
}

/// Somebody who answers every request with these bytes.
fn stranger(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer);
        }
    });
    address
}

#[test]
fn a_peer_that_is_no_shardd_is_refused_by_name() {
    let place = Place::new();
    let cluster = Cluster::start(4);
    for answer in [
        &b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"[..],
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n{",
        b"220 mail.example ESMTP\r\n",
    ] {
        let stranger = stranger(answer);
        let refusal = place.refused(&["--peers", &format!("{},{stranger}", cluster.peers())]);
        assert_says(&refusal, &[&stranger.to_string()]);
    }
    assert!(volumes(&cluster).contains("\"volumes\": []"));
}

#[test]
fn an_unreachable_peer_is_refused_at_first_and_a_warning_later() {
    let place = Place::new();
    let cluster = Cluster::start(5);
    cluster.kill(4);
    let dead = cluster.address(4).to_string();
    let refusal = place.refused(&["--peers", &cluster.peers()]);
    assert_says(&refusal, &["every node answers", &dead]);
    cluster.restart(4);
    let mount = Mount::new(&cluster, &[]);
    fs::write(mount.path("file"), "kept").unwrap();
    mount.unmount();
    cluster.kill(4);
    mount.mount();
    assert_says(&mount.log(), &["warning: no answer from", &dead]);
    assert_eq!(fs::read_to_string(mount.path("file")).unwrap(), "kept");
    mount.unmount();
    cluster.kill(3);
    cluster.kill(2);
    let refused = mount.try_mount().unwrap_err();
    assert_says(&refused.sentence, &["2 of the 5 nodes of volume default answer, 3 are needed", &dead]);
}

#[test]
fn a_volume_is_what_it_was_made_as() {
    let mount = Mount::embedded(&[]);
    mount.unmount();
    let state = mount.state();
    let place = Place::new();
    let refusal = |options: &[&str]| {
        let options: Vec<&str> =
            options.iter().copied().chain(["--state", state.to_str().unwrap()]).collect();
        place.refused(&options)
    };
    assert_says(&refusal(&["--code", "4+2"]), &["has code 3+2, not 4+2"]);
    assert_says(&refusal(&["--hash", "sha256"]), &["has hash blake3, not sha256"]);
    assert_says(&refusal(&["--object-size", "1MiB"]), &["has object size 4MiB, not 1MiB"]);
    assert_says(&refusal(&["--volume", "other"]), &["belongs to volume default, not other"]);
    mount.mount();
    mount.unmount();
}

#[test]
fn nodes_of_another_volume_are_refused() {
    let ours = Cluster::start(5);
    let strangers = Cluster::start(5);
    let mount = Mount::new(&ours, &[]);
    mount.unmount();
    let state = mount.state();
    let refusal = Place::new().refused(&["--peers", &strangers.peers(), "--state", state.to_str().unwrap()]);
    assert_says(&refusal, &["0 of the 5 nodes of volume default are among the peers"]);
    mount.mount();
    mount.unmount();
}

#[test]
fn a_state_folder_of_others_or_in_use_is_refused() {
    let place = Place::new();
    let foreign = place.state();
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.tex"), "kept").unwrap();
    assert_says(&place.refused(&[]), &["holds thesis.tex and no avidfs volume"]);
    assert_eq!(fs::read_to_string(foreign.join("thesis.tex")).unwrap(), "kept");
    fs::remove_file(foreign.join("thesis.tex")).unwrap();
    fs::write(foreign.join("pool.json"), "{\"format\":9}").unwrap();
    assert_says(&place.refused(&[]), &["format 9", "format 1"]);

    let mount = Mount::embedded(&[]);
    let state = mount.state();
    let refusal = Place::new().refused(&["--state", state.to_str().unwrap()]);
    assert_says(&refusal, &["is in use by the mount at", mount.root().to_str().unwrap()]);
    fs::write(mount.path("still"), "mounted").unwrap();
    let again = Place::new().refused_at(&mount.root(), &[], 1);
    assert_says(&again, &["there is an avidfs mount at"]);
}

#[test]
fn a_pool_that_holds_the_volume_is_not_made_again_without_its_state() {
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, &["--volume", "home"]);
    fs::write(mount.path("file"), "kept").unwrap();
    mount.unmount();
    let place = Place::new();
    let refusal = place.refused(&["--peers", &cluster.peers(), "--volume", "home"]);
    assert_says(&refusal, &["holds a volume home already", "--state", "--volume"]);
    mount.mount();
    assert_eq!(fs::read_to_string(mount.path("file")).unwrap(), "kept");
    mount.unmount();
}

#[test]
fn a_read_only_mount_makes_no_volume() {
    assert_says(&Place::new().refused(&["-o", "ro"]), &["there is no volume in", "read-only"]);
}

#[test]
fn what_is_not_mounted_cannot_be_asked_or_unmounted() {
    let place = Place::new();
    let mountpoint = place.mountpoint();
    let mountpoint = mountpoint.to_str().unwrap();
    assert_says(&refused(&["umount", mountpoint], 1), &["nothing is mounted at", mountpoint]);
    assert_says(&refused(&["umount", "/proc"], 1), &["/proc is a mount of proc, not of avidfs"]);
    assert_says(&refused(&["status", mountpoint], 1), &["nothing is mounted at"]);
    assert_says(&refused(&["info", "/proc/version"], 1), &["is not on an avidfs mount"]);
    assert_says(&refused(&["info", mountpoint], 1), &["is not a file"]);
    assert_says(&refused(&["info", "/none"], 1), &["/none", "no such file"]);
    assert_says(&refused(&["status", "--peers", "127.0.0.1:1"], 1), &["1 of 1 nodes do not answer"]);
}

/// On a full disk, and to a reader that was gone, `avidfs key export` wrote nothing and ended well.
#[test]
fn what_cannot_be_printed_is_an_error() {
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, &[]);
    let (state, peers) = (mount.state(), cluster.peers());
    let (state, root) = (state.to_str().unwrap(), mount.root());
    let kept: [&[&str]; 2] =
        [&["key", "export", "--state", state], &["members", "--peers", &peers, "--code", "3+2"]];
    let read: [&[&str]; 2] = [&["status", root.to_str().unwrap()], &["status", "--peers", &peers]];
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let nobody = || std::io::pipe().map(|(_, write)| write).unwrap();
    for words in kept.iter().chain(&read) {
        run(command("avidfs").args(*words));
        let asked = command("avidfs").args(*words).stdout(full()).output().unwrap();
        let sentence = String::from_utf8_lossy(&asked.stderr).into_owned();
        assert_eq!(asked.status.code(), Some(1), "{words:?}: {sentence}");
        assert_eq!(sentence, "avidfs: standard output: no space left on device\n", "{words:?}");
        let asked = command("avidfs").args(*words).stdout(nobody()).output().unwrap();
        let sentence = String::from_utf8_lossy(&asked.stderr).into_owned();
        assert_eq!(asked.status.code(), Some(1), "{words:?}: {sentence}");
        // A reader that has seen enough knows that.
        let expected = if kept.contains(words) { "avidfs: standard output: broken pipe\n" } else { "" };
        assert_eq!(sentence, expected, "{words:?}");
    }
    mount.unmount();
}
