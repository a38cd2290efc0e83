//! readdir(3), seekdir(3), rewinddir(3).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{DirEntryExt, MetadataExt, symlink};
use std::path::Path;

use avidfs_tests::cases;
use avidfs_tests::files::{Listing, make_node};
use avidfs_tests::posix::{everywhere, refused};

#[test]
fn listing() {
    everywhere(cases!(
        an_empty_directory_has_two_dots,
        every_entry_has_its_number_and_type,
        entries_that_stay_are_listed_once_while_others_come_and_go,
        a_place_in_a_listing_can_be_returned_to,
        a_rewound_listing_is_a_new_one,
        a_directory_is_emptied_while_it_is_listed,
        what_a_listing_refuses,
    ));
}

fn an_empty_directory_has_two_dots(at: &Path) {
    fs::create_dir(at.join("dir")).unwrap();
    let mut listing = Listing::open(&at.join("dir")).unwrap();
    let found: BTreeSet<(String, u64)> = std::iter::from_fn(|| listing.next()).collect();
    let number = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_eq!(found, [(".".into(), number(&at.join("dir"))), ("..".into(), number(at))].into());
}

fn every_entry_has_its_number_and_type(at: &Path) {
    fs::write(at.join("file"), "").unwrap();
    fs::create_dir(at.join("dir")).unwrap();
    symlink("x", at.join("link")).unwrap();
    make_node(&at.join("pipe"), libc::S_IFIFO | 0o600, 0).unwrap();
    make_node(&at.join("null"), libc::S_IFCHR | 0o600, libc::makedev(1, 3)).unwrap();
    let mut count = 0;
    for entry in fs::read_dir(at).unwrap().map(Result::unwrap) {
        let metadata = fs::symlink_metadata(entry.path()).unwrap();
        assert_eq!(entry.ino(), metadata.ino());
        assert_eq!(entry.file_type().unwrap(), metadata.file_type());
        count += 1;
    }
    assert_eq!(count, 5);
}

fn fill(at: &Path, count: usize) {
    for i in 0..count {
        File::create(at.join(format!("file-{i:04}"))).unwrap();
    }
}

fn entries_that_stay_are_listed_once_while_others_come_and_go(at: &Path) {
    fill(at, 1000);
    let mut listing = Listing::open(at).unwrap();
    let mut found = Vec::new();
    while let Some((name, _)) = listing.next() {
        if found.len() % 50 == 0 {
            fs::write(at.join(format!("new-{}", found.len())), "").unwrap();
            let _ = fs::remove_file(at.join(format!("new-{}", found.len().saturating_sub(50))));
        }
        found.push(name);
    }
    let mut stayed: Vec<String> = found.into_iter().filter(|name| name.starts_with("file-")).collect();
    stayed.sort();
    assert_eq!(stayed, (0..1000).map(|i| format!("file-{i:04}")).collect::<Vec<_>>());
}

fn a_place_in_a_listing_can_be_returned_to(at: &Path) {
    fill(at, 300);
    let mut listing = Listing::open(at).unwrap();
    (0..100).for_each(|_| drop(listing.next()));
    let place = listing.place();
    let rest: Vec<_> = std::iter::from_fn(|| listing.next()).collect();
    assert_eq!(rest.len(), 202);
    listing.go(place);
    assert_eq!(std::iter::from_fn(|| listing.next()).collect::<Vec<_>>(), rest);
}

fn a_rewound_listing_is_a_new_one(at: &Path) {
    fill(at, 3);
    let mut listing = Listing::open(at).unwrap();
    assert_eq!(std::iter::from_fn(|| listing.next()).count(), 5);
    fs::write(at.join("new"), "").unwrap();
    fs::remove_file(at.join("file-0000")).unwrap();
    listing.rewind();
    let names: BTreeSet<String> = std::iter::from_fn(|| listing.next()).map(|(name, _)| name).collect();
    assert_eq!(names, [".", "..", "file-0001", "file-0002", "new"].map(String::from).into());
}

fn a_directory_is_emptied_while_it_is_listed(at: &Path) {
    fs::create_dir(at.join("dir")).unwrap();
    fill(&at.join("dir"), 700);
    for entry in fs::read_dir(at.join("dir")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    fs::remove_dir(at.join("dir")).unwrap();
}

fn what_a_listing_refuses(at: &Path) {
    fs::write(at.join("file"), "").unwrap();
    refused(libc::ENOTDIR, fs::read_dir(at.join("file")));
    refused(libc::ENOENT, fs::read_dir(at.join("none")));
}
