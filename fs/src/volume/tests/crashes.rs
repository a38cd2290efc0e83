//! What a crash at an unlucky moment left, each found by the simulation.

use super::*;
use crate::transport::faulty::Verb;

/// A checkpoint says what there is. A store that had lost its last transactions to a power loss still had what they
/// had removed, and kept it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_forgot_a_removal_learns_it_from_the_checkpoint() {
    let mut bench = Bench::new().await;
    let volume = bench.mount().await;
    create(&volume, "gone");
    for ending in ["", "-wal"] {
        let file = |name: &str| bench.folder.path().join(format!("{name}.db{ending}"));
        std::fs::copy(file("metadata"), file("old")).unwrap();
    }
    volume.unlink(ROOT, b"gone", caller(2)).unwrap();
    create(&volume, "kept");
    volume.sync().await.unwrap();
    drop(volume);
    bench.metadata = Arc::new(SqliteStore::open(&bench.folder.path().join("old.db")).unwrap());
    let volume = bench.mount().await;
    volume.lookup(ROOT, b"kept").unwrap();
    assert!(matches!(volume.lookup(ROOT, b"gone"), Err(Error::NotFound)));
}

/// Everything lost power after new bytes were committed and before nodes had flushed them. The journal then named them
/// instead of the bytes that had been fsynced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_nodes_lost_do_not_replace_those_that_were_fsynced() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "a");
    write(&volume, ino, 0, b"fsynced").await;
    volume.fsync(ino).await.unwrap();
    // The object's fragments are acknowledged and gone; nothing reaches the journal.
    bench.faults.add(Rule::always(Fault::Forget).on(Verb::Put).times(NODES as u64));
    for verb in [Verb::Put, Verb::Flush] {
        bench.faults.add(Rule::always(Fault::Lose).on(verb));
    }
    write(&volume, ino, 0, b"unlucky").await;
    volume.flush(ino).await.unwrap();
    crash(volume).await;
    bench.faults.clear();
    let again = bench.mount().await;
    again.open_file(ino).unwrap();
    assert_eq!(read(&again, ino, 0, 99).await, b"fsynced");
    write(&again, ino, 0, b"later").await;
    again.fsync(ino).await.unwrap();
    assert_eq!(read(&again, ino, 0, 99).await, b"latered");
}
