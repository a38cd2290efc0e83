//! Snapshots with the real programs: taken, mounted beside the volume, brought back, given up.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use avidfs_tests::cluster::Cluster;
use avidfs_tests::data;
use avidfs_tests::files::{set_xattr, xattr};
use avidfs_tests::mount::Mount;
use avidfs_tests::scratch::{detach, scratch};
use avidfs_tests::{eventually, process};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

fn avidfs(arguments: &[&str]) -> Output {
    process::command("avidfs").args(arguments).output().unwrap()
}

fn done(arguments: &[&str]) -> String {
    let output = avidfs(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn refused(arguments: &[&str]) -> String {
    let output = avidfs(arguments);
    assert!(!output.status.success(), "{arguments:?} was not refused");
    String::from_utf8(output.stderr).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A snapshot mounted in the background, by a daemon of its own.
struct Beside {
    folder: TempDir,
}

impl Beside {
    fn mount(name: &str, of: &Mount) -> Beside {
        let beside = Beside { folder: scratch() };
        done(&["mount", text(beside.folder.path()), "--snapshot", name, "--state", text(&of.state())]);
        beside
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn unmount(&self) {
        done(&["umount", text(self.folder.path())]);
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        detach(self.folder.path());
    }
}

/// A folder that is seen in another place, too.
struct Bound(PathBuf);

impl Bound {
    fn new(what: &Path, place: &Path) -> Bound {
        process::need_root("only root binds mounts");
        process::run(Command::new("mount").arg("--bind").arg(what).arg(place));
        Bound(place.to_owned())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        detach(&self.0);
    }
}

/// A volume whose state is kept, and changed afterwards.
fn changed(cluster: &Cluster) -> Mount {
    let mount = Mount::new(cluster, &[]);
    data::put(&mount.path("large"), 1, 9 * MIB);
    fs::create_dir_all(mount.path("folder/below")).unwrap();
    fs::write(mount.path("folder/below/file"), "old content").unwrap();
    fs::write(mount.path("gone"), "once here").unwrap();
    done(&["snapshot", "create", "monday", text(&mount.root())]);
    data::put(&mount.path("large"), 2, 3 * MIB);
    fs::write(mount.path("folder/below/file"), "new").unwrap();
    fs::remove_file(mount.path("gone")).unwrap();
    fs::write(mount.path("later"), "not yet there on monday").unwrap();
    mount
}

#[test]
fn a_snapshot_is_mounted_beside_the_volume_and_neither_notices_the_other() {
    let cluster = Cluster::start(5);
    let mount = changed(&cluster);
    cluster.kill(1);
    let monday = Beside::mount("monday", &mount);
    data::check(&monday.path("large"), 1, 9 * MIB);
    assert_eq!(fs::read_to_string(monday.path("folder/below/file")).unwrap(), "old content");
    assert_eq!(fs::read_to_string(monday.path("gone")).unwrap(), "once here");
    assert!(!monday.path("later").exists());
    let error = fs::write(monday.path("new"), "x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    // The volume is written meanwhile.
    fs::write(mount.path("later"), "again").unwrap();
    data::check(&mount.path("large"), 2, 3 * MIB);
    monday.unmount();
    // Its metadata is there now; the second time it is not read again, and is the same.
    let monday = Beside::mount("monday", &mount);
    assert_eq!(fs::read_to_string(monday.path("gone")).unwrap(), "once here");
    monday.unmount();
    let sentence = refused(&[
        "mount",
        text(monday.folder.path()),
        "--snapshot",
        "tuesday",
        "--state",
        text(&mount.state()),
    ]);
    assert!(sentence.contains("has no snapshot tuesday: there are monday"), "{sentence}");
}

#[test]
fn files_folders_and_everything_come_back() {
    let cluster = Cluster::start(5);
    let mount = changed(&cluster);
    let root = mount.root();
    // One that is gone, one beside what is there now, one in place of it.
    let said = done(&["snapshot", "restore", "monday", text(&mount.path("gone"))]);
    assert!(said.contains("is as in snapshot monday: 1 file, 0 folders, 9 B"), "{said}");
    assert_eq!(fs::read_to_string(mount.path("gone")).unwrap(), "once here");
    let aside = mount.path("as it was");
    done(&["snapshot", "restore", "monday", text(&mount.path("large")), "--to", text(&aside)]);
    data::check(&aside, 1, 9 * MIB);
    data::check(&mount.path("large"), 2, 3 * MIB);
    done(&["snapshot", "restore", "monday", text(&mount.path("folder"))]);
    assert_eq!(fs::read_to_string(mount.path("folder/below/file")).unwrap(), "old content");
    let exists = refused(&["snapshot", "restore", "monday", text(&mount.path("gone")), "--to", text(&aside)]);
    assert!(exists.contains("exists already"), "{exists}");
    let unknown = refused(&["snapshot", "restore", "monday", text(&mount.path("later"))]);
    assert!(unknown.contains("there is no snapshot monday, or nothing at that path"), "{unknown}");
    // Everything.
    fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).unwrap();
    done(&["snapshot", "restore", "monday", text(&root)]);
    let mut names: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["folder", "gone", "large"]);
    data::check(&mount.path("large"), 1, 9 * MIB);
    assert_eq!(root.metadata().unwrap().mode() & 0o7777, 0o755);
    mount.remount();
    data::check(&mount.path("large"), 1, 9 * MIB);
    assert_eq!(fs::read_to_string(mount.path("gone")).unwrap(), "once here");
}

#[test]
fn versions_are_listed_and_space_comes_back_when_snapshots_go() {
    let cluster = Cluster::start(5);
    let mount = changed(&cluster);
    let root = mount.root();
    let versions = done(&["versions", text(&mount.path("large"))]);
    let lines: Vec<&str> = versions.lines().collect();
    assert!(
        lines.len() == 2 && lines[0].ends_with("9.00 MiB  monday") && lines[1].ends_with("3.00 MiB  now"),
        "{versions}"
    );
    let gone = done(&["versions", text(&mount.path("gone"))]);
    assert!(gone.lines().count() == 1 && gone.trim_end().ends_with("9 B  monday"), "{gone}");
    assert!(
        refused(&["versions", text(&mount.path("never"))]).contains("is in no snapshot, and not there now")
    );
    let again = refused(&["snapshot", "create", "monday", text(&root)]);
    assert!(again.contains("there is a snapshot monday already"), "{again}");
    let listed = done(&["snapshot", "list", text(&root)]);
    assert!(
        listed.starts_with("monday ") && listed.contains("9.00 MiB kept, 9.00 MiB by it alone"),
        "{listed}"
    );
    let json: serde_json::Value =
        serde_json::from_str(&done(&["snapshot", "list", text(&root), "--json"])).unwrap();
    assert_eq!(json[0]["name"], "monday");
    let used = || mount.status()["object_bytes"].as_u64().unwrap();
    let before = used();
    done(&["snapshot", "delete", "monday", text(&root)]);
    eventually(Duration::from_secs(20), "the space comes back", || used() + 9 * MIB <= before);
    assert!(refused(&["snapshot", "delete", "monday", text(&root)]).contains("there is no snapshot monday"));
    assert_eq!(done(&["snapshot", "list", text(&root)]), "no snapshots\n");
}

/// The metadata of a snapshot that was taken while a node was down: what another one kept for it stayed there for ever, so
/// that with this one and any other went the whole snapshot.
#[test]
fn a_snapshot_taken_without_a_node_is_read_without_any_two_others_once_that_is_back() {
    const FILES: u64 = 8;
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, &[]);
    cluster.kill(0);
    // Attributes live in the metadata alone, and so many of them do not fit into an entry of its journal.
    let value = |k| data::bytes(k, 0, 60_000);
    for k in 0..FILES {
        fs::write(mount.path(k.to_string()), "").unwrap();
        set_xattr(&mount.path(k.to_string()), "user.noise", &value(k), 0).unwrap();
    }
    done(&["snapshot", "create", "monday", text(&mount.root())]);
    let away = || mount.status()["objects_not_at_home"].as_u64().unwrap();
    cluster.restart(0);
    eventually(Duration::from_secs(60), "every fragment is at home", || {
        mount.status()["nodes_up"] == 5 && away() == 0
    });
    assert_eq!(done(&["fsck", text(&mount.root()), "--deep"]).lines().last(), Some("clean"));
    for (a, b) in [(1, 2), (3, 4)] {
        [a, b].into_iter().for_each(|node| cluster.kill(node));
        let monday = Beside::mount("monday", &mount);
        for k in 0..FILES {
            assert!(xattr(&monday.path(&k.to_string()), "user.noise").unwrap() == value(k));
        }
        monday.unmount();
        // The next time it is read from the pool again.
        fs::remove_dir_all(mount.state().join("snapshots/monday")).unwrap();
        [a, b].into_iter().for_each(|node| cluster.restart(node));
    }
}

/// A restore looked for the mount by its device, found the last one of that, and took what does not lie below it for the
/// root of the volume: with a folder bound elsewhere, everything came in the place of one file.
#[test]
fn what_is_bound_elsewhere_is_known_by_its_place_in_the_volume() {
    let cluster = Cluster::start(5);
    let mount = changed(&cluster);
    let elsewhere = scratch();
    let _bound = Bound::new(&mount.path("folder"), elsewhere.path());
    done(&["snapshot", "restore", "monday", text(&mount.path("gone"))]);
    assert_eq!(fs::read_to_string(mount.path("gone")).unwrap(), "once here");
    data::check(&mount.path("large"), 2, 3 * MIB);
    let file = elsewhere.path().join("below/file");
    let versions = done(&["versions", text(&file)]);
    assert!(versions.contains("monday"), "{versions}");
    // The whole volume is not what was meant.
    let sentence = refused(&["snapshot", "restore", "monday", text(elsewhere.path())]);
    assert!(sentence.contains("is where folder of the volume is bound"), "{sentence}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "new");
    assert!(mount.path("later").exists());
    done(&["snapshot", "restore", "monday", text(&file)]);
    assert_eq!(fs::read_to_string(mount.path("folder/below/file")).unwrap(), "old content");
    // The mount point is that of the whole volume, though another mount was made later.
    done(&["snapshot", "restore", "monday", text(&mount.root())]);
    assert!(!mount.path("later").exists());
    data::check(&mount.path("large"), 1, 9 * MIB);
}

/// What is replaced is removed, and so was what lay on other file systems that were mounted below it.
#[test]
fn nothing_is_replaced_that_another_file_system_is_mounted_below() {
    let cluster = Cluster::start(5);
    let mount = changed(&cluster);
    let other = scratch();
    fs::write(other.path().join("thesis.tex"), "not of the volume").unwrap();
    fs::create_dir(mount.path("folder/below/other")).unwrap();
    let bound = Bound::new(other.path(), &mount.path("folder/below/other"));
    for path in [mount.path("folder"), mount.root()] {
        let sentence = refused(&["snapshot", "restore", "monday", text(&path)]);
        let named = format!("{} is mounted below it", mount.path("folder/below/other").display());
        assert!(sentence.contains(&named), "{sentence}");
    }
    assert_eq!(fs::read_to_string(other.path().join("thesis.tex")).unwrap(), "not of the volume");
    assert_eq!(fs::read_to_string(mount.path("folder/below/file")).unwrap(), "new");
    drop(bound);
    done(&["snapshot", "restore", "monday", text(&mount.path("folder"))]);
    assert_eq!(fs::read_to_string(mount.path("folder/below/file")).unwrap(), "old content");
    assert!(!mount.path("folder/below/other").exists());
}
