//! Lengths of names and paths, and what stands in names.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use avidfs_tests::cases;
use avidfs_tests::posix::{everywhere, refused};

#[test]
fn limits() {
    everywhere(cases!(
        a_name_has_at_most_255_bytes,
        a_path_has_at_most_4095_bytes,
        a_tree_is_deeper_than_a_path_is_long,
        any_bytes_but_slash_and_nul_are_a_name,
        names_differ_by_case_and_form,
    ));
}

fn a_name_has_at_most_255_bytes(at: &Path) {
    let (fits, too_long) = (at.join("n".repeat(255)), at.join("n".repeat(256)));
    fs::write(&fits, "x").unwrap();
    refused(libc::ENAMETOOLONG, fs::write(&too_long, "x"));
    refused(libc::ENAMETOOLONG, fs::metadata(&too_long));
    refused(libc::ENAMETOOLONG, fs::create_dir(&too_long));
    refused(libc::ENAMETOOLONG, fs::rename(&fits, &too_long));
    refused(libc::ENAMETOOLONG, fs::hard_link(&fits, &too_long));
    refused(libc::ENAMETOOLONG, symlink("x", &too_long));
    refused(libc::ENAMETOOLONG, fs::remove_file(&too_long));
    refused(libc::ENAMETOOLONG, fs::remove_dir(&too_long));
    assert_eq!(fs::read(&fits).unwrap(), b"x");
    let umlauts = at.join("ü".repeat(127));
    fs::write(umlauts, "").unwrap();
    refused(libc::ENAMETOOLONG, fs::write(at.join("ü".repeat(128)), ""));
}

/// A path of exactly so many bytes to a file in folders below `at`, which are made.
fn path_of(at: &Path, length: usize) -> PathBuf {
    let mut path = at.to_owned();
    while path.as_os_str().len() + 1 + 250 + 1 < length {
        path.push("d".repeat(200));
    }
    fs::create_dir_all(&path).unwrap();
    let left = length - path.as_os_str().len() - 1;
    path.join("f".repeat(left))
}

fn a_path_has_at_most_4095_bytes(at: &Path) {
    let fits = path_of(at, 4095);
    assert_eq!(fits.as_os_str().len(), 4095);
    fs::write(&fits, "deep").unwrap();
    assert_eq!(fs::read(&fits).unwrap(), b"deep");
    refused(libc::ENAMETOOLONG, fs::write(path_of(at, 4096), ""));
}

fn a_tree_is_deeper_than_a_path_is_long(at: &Path) {
    // Built from below upwards by moving, as no path reaches the bottom in one go.
    for _ in 0..4 {
        let inner = at.join("tree");
        let outer = at.join("outer");
        let chain: PathBuf = std::iter::repeat_n("d".repeat(255), 5).collect();
        fs::create_dir_all(outer.join(&chain)).unwrap();
        if inner.exists() {
            fs::rename(&inner, outer.join(&chain).join("tree")).unwrap();
        }
        fs::rename(&outer, &inner).unwrap();
    }
    fs::remove_dir_all(at.join("tree")).unwrap();
}

fn any_bytes_but_slash_and_nul_are_a_name(at: &Path) {
    let mut names: Vec<Vec<u8>> =
        (1..=255u8).filter(|byte| *byte != b'/' && *byte != b'.').map(|byte| vec![byte]).collect();
    names.push(b"...".to_vec());
    names.push(b"\xff\xfe\n'\"\\".to_vec());
    for name in &names {
        fs::write(at.join(OsStr::from_bytes(name)), name).unwrap();
    }
    let mut found: Vec<Vec<u8>> =
        fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name().as_bytes().to_vec()).collect();
    found.sort();
    names.sort();
    assert_eq!(found, names);
    assert!(names.iter().all(|name| fs::read(at.join(OsStr::from_bytes(name))).unwrap() == *name));
}

fn names_differ_by_case_and_form(at: &Path) {
    for name in ["name", "Name", "\u{fc}", "u\u{308}"] {
        fs::write(at.join(name), name).unwrap();
    }
    assert_eq!(fs::read_dir(at).unwrap().count(), 4);
    assert_eq!(fs::read(at.join("Name")).unwrap(), b"Name");
}
