//! What a crash at an unlucky moment left, each found by the simulation.

use super::*;
use crate::cache::Reuse;
use crate::transport::faulty::Verb;

/// A checkpoint says what there is. A store that had lost its last transactions to a power loss still had what they
/// had removed, and kept it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_forgot_a_removal_learns_it_from_the_checkpoint() {
    let mut bench = Bench::new().await;
    let volume = bench.mount().await;
    create(&volume, "gone");
    for ending in ["", "-wal", "-redo"] {
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

/// What a mount had committed and not shipped lay on nodes of which one then died, and another had forgotten its fragment:
/// the journal came to name an object of which one node less made too few.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_earlier_mount_left_on_too_few_nodes_is_stored_again_before_the_journal_names_it() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "a");
    volume.sync().await.unwrap();
    bench.faults.add(Rule::always(Fault::Forget).on(Verb::Put).at(&address(3)).times(1));
    for verb in [Verb::Put, Verb::Flush] {
        bench.faults.add(Rule::always(Fault::Lose).on(verb).at(&address(4)));
    }
    let data = noise(9_000, 7);
    write(&volume, ino, 0, &data).await;
    volume.flush(ino).await.unwrap();
    for verb in [Verb::Put, Verb::Flush] {
        bench.faults.add(Rule::always(Fault::Lose).on(verb));
    }
    crash(volume).await;
    bench.faults.clear();
    bench.fail(4..5, Fault::Lose);
    let volume = bench.mount().await;
    volume.sync().await.unwrap();
    // Before it has brought anything home.
    crash(volume).await;
    for k in 0..4 {
        bench.faults.clear();
        bench.fail(4..5, Fault::Lose);
        bench.fail(k..k + 1, Fault::Lose);
        let reader = bench.fresh_stripe(&*bench.metadata).await;
        let (_, object) = bench.metadata.objects_of(ino, 0, 1).unwrap().pop().unwrap();
        let bytes = reader.read(&object, 0..object.length, Reuse::Likely).await.unwrap().concat();
        assert!(bytes == data, "without nodes 4 and {k}");
    }
}
