//! What a crash at an unlucky moment left, each found by the simulation.

use super::*;

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
