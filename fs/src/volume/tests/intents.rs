//! An fsync of a little: the metadata carries the bytes until they lie in an object.

use super::*;
use crate::transport::faulty::Verb;

/// Nothing is sealed unasked.
async fn mount(bench: &Bench) -> Arc<Volume> {
    bench.mount_with(|options| options.dirty_interval = Duration::from_secs(3600)).await
}

fn carried(bench: &Bench, ino: Ino) -> Vec<(u64, usize)> {
    let intents = bench.metadata.intents(ino).unwrap();
    intents.into_iter().map(|intent| (intent.offset, intent.bytes.len())).collect()
}

fn lookup(volume: &Volume, name: &str) -> Ino {
    let ino = volume.metadata.lookup(ROOT, name.as_bytes()).unwrap().ino;
    volume.open_file(ino).unwrap();
    ino
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_fsync_is_one_request_to_each_node_and_the_next_mount_has_the_bytes() {
    let bench = Bench::new().await;
    let volume = mount(&bench).await;
    let ino = create(&volume, "log");
    volume.fsync(ino).await.unwrap();
    let mut whole = Vec::new();
    for line in 0..10u64 {
        let before = bench.faults.count_all(Verb::Put);
        let bytes = noise(4096, line);
        write(&volume, ino, line * 4096, &bytes).await;
        volume.fsync(ino).await.unwrap();
        whole.extend(bytes);
        assert_eq!(bench.faults.count_all(Verb::Put) - before, NODES as u64);
    }
    volume.fsync(ino).await.unwrap();
    assert_eq!((bench.fragments(), carried(&bench, ino).len()), (0, 10));
    crash(volume).await;
    let volume = mount(&bench).await;
    let ino = lookup(&volume, "log");
    assert_eq!(read(&volume, ino, 0, 50_000).await, whole);
    volume.flush(ino).await.unwrap();
    assert_eq!((bench.fragments(), carried(&bench, ino)), (5, vec![]), "all of it lies in one object");
    volume.shut_down().await.unwrap();
    let volume = mount(&bench).await;
    let ino = lookup(&volume, "log");
    assert_eq!(read(&volume, ino, 0, 50_000).await, whole);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_outlive_the_mount_host_and_are_read_without_the_right_to_write() {
    let mut bench = Bench::new().await;
    let volume = mount(&bench).await;
    let ino = create(&volume, "a");
    write(&volume, ino, 0, &noise(10_000, 1)).await;
    volume.flush(ino).await.unwrap();
    write(&volume, ino, 3000, &[7; 5000]).await;
    volume.fsync(ino).await.unwrap();
    write(&volume, ino, 0, &[9; 10]).await;
    crash(volume).await;
    bench.recover().await;
    let mut wanted = noise(10_000, 1);
    wanted[3000..8000].fill(7);
    for read_only in [true, false] {
        let volume = bench.mount_with(|options| options.read_only = read_only).await;
        let ino = lookup(&volume, "a");
        assert_eq!(read(&volume, ino, 0, 20_000).await, wanted, "read-only: {read_only}");
        volume.flush(ino).await.unwrap();
        volume.fsync(ino).await.unwrap();
        volume.close_file(ino);
        assert_eq!(carried(&bench, ino).is_empty(), !read_only);
        volume.shut_down().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_old_never_covers_what_is_new_however_the_mount_ends() {
    let bench = Bench::new().await;
    let volume = mount(&bench).await;
    let ino = create(&volume, "a");
    write(&volume, ino, 0, &[1; 1000]).await;
    volume.fsync(ino).await.unwrap();
    // Newer bytes that no fsync covered are sealed, and no node takes them.
    write(&volume, ino, 500, &[2; 1000]).await;
    bench.fail(0..3, Fault::Lose);
    volume.flush(ino).await.unwrap_err();
    volume.shut_down().await.unwrap_err();
    drop(volume);
    bench.faults.clear();
    let volume = mount(&bench).await;
    let ino = lookup(&volume, "a");
    let wanted = [vec![1; 500], vec![2; 1000]].concat();
    assert_eq!(read(&volume, ino, 0, 2000).await, wanted, "from the backlog");
    // Carried after others were sealed, and committed later than those.
    write(&volume, ino, 0, &[3; 100]).await;
    volume.fsync(ino).await.unwrap();
    volume.flush(ino).await.unwrap();
    write(&volume, ino, 50, &[4; 100]).await;
    volume.fsync(ino).await.unwrap();
    assert_eq!(carried(&bench, ino), [(50, 100)]);
    crash(volume).await;
    let volume = mount(&bench).await;
    let ino = lookup(&volume, "a");
    let wanted = [vec![3; 50], vec![4; 100], wanted[150..].to_vec()].concat();
    assert_eq!(read(&volume, ino, 0, 2000).await, wanted, "after a crash");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cut_off_or_removed_does_not_come_back() {
    let bench = Bench::new().await;
    let volume = mount(&bench).await;
    let (cut, gone) = (create(&volume, "cut"), create(&volume, "gone"));
    for ino in [cut, gone] {
        write(&volume, ino, 0, &[5; 3000]).await;
        volume.fsync(ino).await.unwrap();
    }
    resize(&volume, cut, 1000);
    resize(&volume, cut, 2000);
    volume.punch(cut, 100..200, true, caller(7)).unwrap();
    volume.unlink(ROOT, b"gone", caller(7)).unwrap();
    volume.fsync(cut).await.unwrap();
    crash(volume).await;
    let volume = mount(&bench).await;
    let ino = lookup(&volume, "cut");
    let wanted = [vec![5; 100], vec![0; 100], vec![5; 800], vec![0; 1000]].concat();
    assert_eq!(read(&volume, ino, 0, 5000).await, wanted);
    until("giving the orphan up", || carried(&bench, gone).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_much_or_sealed_already_is_stored_as_ever() {
    let bench = Bench::new().await;
    let volume = mount(&bench).await;
    let ino = create(&volume, "large");
    write(&volume, ino, 0, &noise(40_000, 3)).await;
    volume.fsync(ino).await.unwrap();
    assert_eq!((bench.fragments(), carried(&bench, ino)), (5, vec![]));
    // An object's worth is sealed at once; the rest is little, and carried only if that was committed meanwhile.
    write(&volume, ino, 0, &noise(OBJECT as usize + 100, 4)).await;
    volume.fsync(ino).await.unwrap();
    assert!(bench.fragments() >= 8, "the sealed object is stored");
    crash(volume).await;
    let volume = mount(&bench).await;
    let ino = lookup(&volume, "large");
    assert_eq!(read(&volume, ino, 0, 100_000).await, noise(OBJECT as usize + 100, 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_taken_beside_an_fsync_has_its_bytes() {
    let bench = Bench::new().await;
    let volume = mount(&bench).await;
    let ino = create(&volume, "a");
    write(&volume, ino, 0, &[1; 5000]).await;
    volume.flush(ino).await.unwrap();
    let number = volume.metadata.begin_snapshot("s", at(3)).unwrap();
    // Between sealing what is dirty and the snapshot itself.
    write(&volume, ino, 1000, &[2; 100]).await;
    volume.fsync(ino).await.unwrap();
    volume.journal_of_writer().unwrap().pin(number).await.unwrap();
    write(&volume, ino, 0, &[3; 5000]).await;
    volume.flush(ino).await.unwrap();
    volume.restore("s", b"a", ROOT, b"b").await.unwrap();
    let back = lookup(&volume, "b");
    let wanted = [vec![1; 1000], vec![2; 100], vec![1; 3900]].concat();
    assert_eq!(read(&volume, back, 0, 9000).await, wanted);
    volume.flush(back).await.unwrap();
    assert_eq!(carried(&bench, back), []);
    assert_eq!(read(&volume, back, 0, 9000).await, wanted);
}
