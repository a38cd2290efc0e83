//! Snapshots of a volume on nodes: what they keep, what they give back, and what they let go.

use super::*;
use crate::cache::Reuse;
use crate::journal::pin::Pin;

/// A file as it is now, read through the volume.
async fn content(volume: &Arc<Volume>, name: &str) -> Vec<u8> {
    let inode = volume.lookup(ROOT, name.as_bytes()).unwrap();
    volume.open_file(inode.ino).unwrap();
    read(volume, inode.ino, 0, inode.size as u32).await
}

async fn restore(volume: &Arc<Volume>, snapshot: &str, path: &str, name: &str) {
    volume.restore(snapshot, path.as_bytes(), ROOT, name.as_bytes()).await.unwrap();
}

/// Enough entries and bytes for a checkpoint, so that what came before is truncated.
async fn force_checkpoint(volume: &Arc<Volume>) {
    let before = volume.journal.as_ref().unwrap().status().unwrap().checkpoint;
    let ino = create(volume, "xattrs");
    for round in 0..40_000u64 {
        // Attributes do not compress, and live in the journal alone.
        let value = noise(60_000, round);
        volume.metadata.set_xattr(ino, b"user.noise", &value, false, false, at(7)).unwrap();
        volume.sync().await.unwrap();
        if volume.journal.as_ref().unwrap().status().unwrap().checkpoint > before {
            return;
        }
    }
    panic!("no checkpoint was written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_gives_back_what_was_overwritten_and_removed() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let (a, b) = (create(&volume, "a"), create(&volume, "b"));
    let (old_a, old_b) = (noise(150_000, 1), noise(5_000, 2));
    write(&volume, a, 0, &old_a).await;
    write(&volume, b, 100, &old_b).await;
    // Dirty bytes belong to it.
    let taken = volume.take_snapshot("before").await.unwrap();
    assert_eq!((taken.name.as_str(), taken.alone_bytes), ("before", 0));
    write(&volume, a, 10_000, &noise(50_000, 3)).await;
    volume.unlink(ROOT, b"b", caller(9)).unwrap();
    volume.close_file(b);
    volume.forget(b, 1);
    volume.fsync(a).await.unwrap();
    restore(&volume, "before", "/a", "old a").await;
    restore(&volume, "before", "b", "old b").await;
    assert_eq!(content(&volume, "old a").await, old_a);
    assert_eq!(content(&volume, "old b").await, [vec![0; 100], old_b].concat());
    assert!(matches!(volume.restore("before", b"c", ROOT, b"c").await, Err(Error::NotFound)));
    assert!(matches!(volume.restore("after", b"a", ROOT, b"c").await, Err(Error::NotFound)));
    assert!(matches!(volume.take_snapshot("before").await, Err(Error::Exists)));
    assert!(matches!(volume.take_snapshot("../before").await, Err(Error::Invalid(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_go_when_the_last_snapshot_that_needs_them_goes() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "a");
    let data = noise(60_000, 1);
    write(&volume, ino, 0, &data).await;
    for name in ["one", "two"] {
        volume.take_snapshot(name).await.unwrap();
    }
    resize(&volume, ino, 0);
    volume.fsync(ino).await.unwrap();
    volume.delete_snapshot("one").await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(bench.fragments(), 5, "the other one needs them");
    restore(&volume, "two", "a", "back").await;
    assert_eq!(content(&volume, "back").await, data);
    volume.delete_snapshot("two").await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(bench.fragments(), 5, "the file that was brought back needs them");
    let back = volume.lookup(ROOT, b"back").unwrap().ino;
    resize(&volume, back, 0);
    until("deleting what nobody needs", || bench.fragments() == 0).await;
    assert!(matches!(volume.delete_snapshot("two").await, Err(Error::NotFound)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncation_and_garbage_collection_pass_a_snapshot_by_until_it_is_deleted() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "a");
    let data = noise(60_000, 1);
    write(&volume, ino, 0, &data).await;
    volume.take_snapshot("kept").await.unwrap();
    resize(&volume, ino, 0);
    force_checkpoint(&volume).await;
    volume.shut_down().await.unwrap();
    drop(volume);
    // Nothing of it is on this host any more.
    let _ = std::fs::remove_dir_all(bench.folder.path().join("views"));
    let volume = bench.mount().await;
    assert_eq!(volume.collect_garbage(true).await.unwrap().objects, 0);
    restore(&volume, "kept", "a", "back").await;
    assert_eq!(content(&volume, "back").await, data);
    let pin = Pin::of(&volume.snapshot("kept").unwrap()).unwrap().unwrap();
    let pinned = || {
        let listing = bench.nodes[0].list(shardd::Space::Volume(bench.id), "", 1000).unwrap();
        let keys: Vec<String> = listing.objects.into_iter().map(|object| object.key).collect();
        pin.places.iter().filter(|place| keys.contains(&place.key())).count()
    };
    assert_eq!(pinned(), pin.places.len());
    volume.delete_snapshot("kept").await.unwrap();
    assert_eq!(pinned(), 0);
    volume.shut_down().await.unwrap();
    drop(volume);
    let volume = bench.mount().await;
    assert_eq!(volume.collect_garbage(true).await.unwrap().objects, 0, "and so are their blocks");
    assert_eq!(content(&volume, "back").await, data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_are_in_the_pool_with_everything_else() {
    let mut bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "a");
    let data = noise(60_000, 1);
    write(&volume, ino, 0, &data).await;
    volume.take_snapshot("kept").await.unwrap();
    volume.unlink(ROOT, b"a", caller(9)).unwrap();
    volume.close_file(ino);
    volume.forget(ino, 1);
    volume.sync().await.unwrap();
    drop(volume);
    bench.recover().await;
    let volume = bench.mount().await;
    assert_eq!(volume.list_snapshots().unwrap()[0].alone_bytes, 60_000);
    restore(&volume, "kept", "a", "a").await;
    assert_eq!(content(&volume, "a").await, data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_a_crash_left_half_taken_is_given_up() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    volume.metadata.begin_snapshot("half", at(1)).unwrap();
    drop(volume);
    let volume = bench.mount().await;
    assert!(volume.list_snapshots().unwrap().is_empty());
    // And with too few nodes none is taken.
    bench.fail(0..3, Fault::Lose);
    volume.take_snapshot("vain").await.unwrap_err();
    assert!(volume.list_snapshots().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_away_from_home_when_it_was_taken_is_read_after_it_came_home() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "a");
    bench.fail(0..2, Fault::Lose);
    let data = noise(150_000, 1);
    write(&volume, ino, 0, &data).await;
    volume.fsync(ino).await.unwrap();
    let metadata = bench.metadata.clone();
    assert!(metadata.usage().unwrap().objects_with_exceptions > 0);
    volume.take_snapshot("degraded").await.unwrap();
    bench.faults.clear();
    until("all fragments are at home", || metadata.usage().unwrap().objects_with_exceptions == 0).await;
    // As a mount of the snapshot sees it, whose records say where the fragments were then.
    let snapshot = volume.snapshot("degraded").unwrap();
    let pin = Pin::of(&snapshot).unwrap().unwrap();
    let view = volume.view(&snapshot, &pin).await.unwrap();
    let mut bytes = Vec::new();
    for (extent, record) in view.objects_of(ino, 0, 100).unwrap() {
        assert!(!record.exceptions.is_empty(), "it was away");
        let range = extent.object_offset..extent.object_offset + extent.length;
        bytes.extend(
            bench.fresh_stripe(&*view).await.read(&record, range, Reuse::Likely).await.unwrap().concat(),
        );
    }
    assert_eq!(bytes, data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_comes_back_with_links_attributes_and_times() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let directory = NewInode { mode: libc::S_IFDIR | 0o750, uid: 7, gid: 8, ..NewInode::default() };
    let top = volume.metadata.create(ROOT, b"top", &directory, at(1)).unwrap().ino;
    let below = volume.metadata.create(top, b"below", &directory, at(1)).unwrap().ino;
    let file = NewInode { mode: libc::S_IFREG | 0o4711, uid: 5, gid: 6, ..NewInode::default() };
    let file = volume.metadata.create(below, b"file", &file, at(1)).unwrap().ino;
    volume.metadata.link(file, top, b"again", at(2)).unwrap();
    volume.metadata.set_xattr(file, b"user.colour", b"red", false, false, at(3)).unwrap();
    let link =
        NewInode { mode: libc::S_IFLNK | 0o777, target: Some(b"below/file".to_vec()), ..NewInode::default() };
    volume.metadata.create(top, b"link", &link, at(1)).unwrap();
    volume.open_file(file).unwrap();
    write(&volume, file, 0, b"content").await;
    volume.take_snapshot("tree").await.unwrap();
    let report = volume.restore("tree", b"top", ROOT, b"copy").await.unwrap();
    assert_eq!((report.directories, report.files, report.bytes), (2, 2, 7));
    let metadata = &volume.metadata;
    let found = |parent: Ino, name: &str| metadata.lookup(parent, name.as_bytes()).unwrap();
    let copy = found(ROOT, "copy");
    let copied = found(found(copy.ino, "below").ino, "file");
    assert_eq!((copied.mode, copied.uid, copied.gid, copied.links), (libc::S_IFREG | 0o4711, 5, 6, 2));
    assert_eq!(found(copy.ino, "again").ino, copied.ino);
    assert_ne!(copied.ino, file);
    assert_eq!(metadata.xattr(copied.ino, b"user.colour").unwrap(), b"red");
    assert_eq!(metadata.target(found(copy.ino, "link").ino).unwrap(), b"below/file");
    let times = |inode: &crate::inode::Inode| (inode.atime, inode.mtime);
    assert_eq!(times(&copied), times(&metadata.inode(file).unwrap()));
    assert_eq!(times(&copy), times(&metadata.inode(top).unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_being_restored_is_found_by_nobody_before_it_is_whole() {
    const FILES: usize = 3000;
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let folder = NewInode { mode: libc::S_IFDIR | 0o755, ..NewInode::default() };
    let folder = volume.create(ROOT, b"folder", folder, 0, caller(5)).unwrap().ino;
    for k in 0..FILES {
        let file = NewInode { mode: libc::S_IFREG, ..NewInode::default() };
        volume.create(folder, k.to_string().as_bytes(), file, 0, caller(5)).unwrap();
    }
    volume.take_snapshot("whole").await.unwrap();
    let restoring = tokio::spawn({
        let volume = volume.clone();
        async move { volume.restore("whole", b"", ROOT, b"made").await.map(drop) }
    });
    while !restoring.is_finished() {
        let found = volume.lookup(ROOT, b"made");
        let names = volume.names(ROOT, 0, 1000).unwrap().len();
        let page = volume.list(ROOT, 0, 1).unwrap();
        assert_eq!(page.len(), 1);
        if names > 1 || found.is_ok() {
            let made = volume.metadata.lookup(ROOT, b"made").unwrap().ino;
            let inside = volume.metadata.lookup(made, b"folder").unwrap().ino;
            assert_eq!(volume.names(inside, 0, 2 * FILES).unwrap().len(), FILES);
        }
        tokio::task::yield_now().await;
    }
    restoring.await.unwrap().unwrap();
    assert!(volume.lookup(ROOT, b"made").is_ok() && volume.list(ROOT, 0, 10).unwrap().len() == 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_of_a_path_are_told_once_each() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    volume.take_snapshot("empty").await.unwrap();
    let ino = create(&volume, "a");
    write(&volume, ino, 0, b"first").await;
    volume.take_snapshot("one").await.unwrap();
    volume.take_snapshot("two").await.unwrap();
    volume.write(ino, 0, Bytes::from_static(b"second"), at(9)).await.unwrap();
    let told = |versions: &[super::super::VersionReport]| -> Vec<(Vec<String>, bool, u64)> {
        versions.iter().map(|version| (version.snapshots.clone(), version.current, version.size)).collect()
    };
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let versions = volume.versions(b"a").await.unwrap();
    assert_eq!(told(&versions), [(names(&["one", "two"]), false, 5), (names(&[]), true, 6)]);
    volume.take_snapshot("three").await.unwrap();
    let versions = volume.versions(b"/a").await.unwrap();
    assert_eq!(told(&versions)[1], (names(&["three"]), true, 6));
    assert!(volume.versions(b"a/b").await.unwrap().is_empty());
}
