//! The newest entries of the journal: half written, held by too few, lost.

use common::codec::Codec;
use common::fpcc::Fpcc;
use common::wire::{FragmentName, ObjectId};

use super::*;
use crate::journal::entry::{Entry, Place};
use crate::transport::faulty::Verb;

/// The places of the entries a node holds.
fn entries_on(bench: &Bench, k: usize) -> Vec<Place> {
    let listing = bench.nodes[k].list(shardd::Space::Volume(bench.id), "", 1000).unwrap();
    listing.objects.iter().filter_map(|object| Place::of_key(&object.key)).collect()
}

fn make(volume: &Volume, name: &str) {
    let new = NewInode { mode: libc::S_IFREG | 0o644, ..NewInode::default() };
    volume.create(ROOT, name.as_bytes(), new, 0, caller(1)).unwrap();
}

fn has(metadata: &dyn MetadataStore, name: &str) -> bool {
    metadata.lookup(ROOT, name.as_bytes()).is_ok()
}

/// A volume with the names `kept` and `lost`, of which the entry that made the second is on the last node alone.
async fn one_copy_left(bench: &Bench) -> Place {
    let volume = bench.mount().await;
    make(&volume, "kept");
    volume.sync().await.unwrap();
    make(&volume, "lost");
    volume.sync().await.unwrap();
    let newest = *entries_on(bench, 4).last().unwrap();
    volume.shut_down().await.unwrap();
    // Ending it changed nothing more.
    assert_eq!(entries_on(bench, 4).last(), Some(&newest));
    drop(volume);
    let writer = shardd::Author::Writer { volume: bench.id, epoch: newest.epoch };
    for node in &bench.nodes[..4] {
        assert_eq!(node.delete(&writer, &newest.key(), ObjectId::VERSION, None).unwrap(), 1);
    }
    newest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_an_entry_that_reached_one_node_does_not_hang_on_that_node() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    make(&volume, "acknowledged");
    volume.sync().await.unwrap();
    for k in 0..4 {
        bench.faults.add(Rule::always(Fault::Lose).at(&address(k)).on(Verb::Put));
    }
    make(&volume, "on its way");
    volume.sync().await.unwrap_err();
    let newest = *entries_on(&bench, 4).last().unwrap();
    assert!(!entries_on(&bench, 0).contains(&newest), "one node has it");
    crash(volume).await;
    bench.faults.clear();
    let volume = bench.mount().await;
    assert!(has(&*bench.metadata, "on its way"));
    make(&volume, "after");
    volume.sync().await.unwrap();
    drop(volume);
    let mut bench = bench;
    bench.fail(3..5, Fault::Lose);
    bench.recover().await;
    assert!(has(&*bench.metadata, "after") && has(&*bench.metadata, "on its way"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_down_gets_the_entries_it_missed() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    volume.sync().await.unwrap();
    bench.fail(0..2, Fault::Lose);
    for k in 0..5 {
        make(&volume, &format!("{k}"));
        volume.sync().await.unwrap();
    }
    bench.faults.clear();
    until("the entries are on all nodes", || {
        let complete = entries_on(&bench, 4);
        // The last one may be on its way to the slower ones.
        complete.len() > 5 && (0..2).all(|k| entries_on(&bench, k) == complete)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_nodes_lost_and_the_store_has_comes_back_when_the_operator_says_so() {
    let bench = Bench::new().await;
    let newest = one_copy_left(&bench).await;
    bench.faults.add(Rule::always(Fault::CorruptFragment).at(&address(4)));
    let refused = bench.try_mount().await.err().unwrap().to_string();
    assert!(refused.contains(&format!("--accept-loss {}", newest.sequence)), "{refused}");
    let mut bench = bench;
    bench.accept_loss = Some(newest.sequence + 1);
    assert!(bench.try_mount().await.is_err(), "more is lost than was accepted");
    bench.accept_loss = Some(newest.sequence);
    let volume = bench.mount().await;
    make(&volume, "after");
    volume.sync().await.unwrap();
    drop(volume);
    bench.accept_loss = None;
    bench.faults.clear();
    bench.recover().await;
    for name in ["kept", "lost", "after"] {
        assert!(has(&*bench.metadata, name), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_may_have_been_acknowledged_is_given_up_by_the_operator_alone() {
    let bench = Bench::new().await;
    let newest = one_copy_left(&bench).await;
    bench.faults.add(Rule::always(Fault::CorruptFragment).at(&address(4)));
    // The silent ones may have it too.
    bench.fail(0..2, Fault::Lose);
    let read =
        async |bench: &Bench| bench.reader().await.unwrap().read(Some(&bench.key().verifying_key())).await;
    let refused = read(&bench).await.unwrap_err().to_string();
    let expected =
        format!("entry {} of the journal may have been acknowledged and cannot be read", newest.sequence);
    assert!(refused.contains(&expected) && refused.contains("embedded:0"), "{refused}");
    let mut bench = bench;
    bench.accept_loss = Some(newest.sequence);
    bench.recover().await;
    assert!(has(&*bench.metadata, "kept") && !has(&*bench.metadata, "lost"));
    // With every node answering it was never acknowledged, and nobody is asked.
    bench.accept_loss = None;
    bench.faults.clear();
    bench.faults.add(Rule::always(Fault::CorruptFragment).at(&address(4)));
    let chain = read(&bench).await.unwrap().unwrap();
    assert!(chain.head().entry.place.sequence < newest.sequence);
    assert_eq!(chain.answered, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_epoch_never_hides_a_newer_one() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    make(&volume, "old");
    volume.sync().await.unwrap();
    let forked = *entries_on(&bench, 4).last().unwrap();
    volume.shut_down().await.unwrap();
    drop(volume);
    let volume = bench.mount().await;
    make(&volume, "new");
    volume.sync().await.unwrap();
    drop(volume);
    // What the mount before it still brings to one node, long after: the highest sequence of all.
    let reader = bench.reader().await.unwrap();
    let public = bench.key().verifying_key();
    let head = reader.read(Some(&public)).await.unwrap().unwrap().head().clone();
    let late = Entry {
        place: Place { sequence: head.entry.place.sequence + 5, epoch: forked.epoch },
        ..head.entry.clone()
    };
    let bytes = late.sign(&bench.key());
    let codec = Codec::of(Code::new(1, 4).unwrap());
    let fpcc = Fpcc::compute(&codec, HashId::Blake3, bytes.len() as u64, &[&bytes[..]; 5]).to_bytes();
    let name = FragmentName { key: late.place.key(), version: ObjectId::VERSION, index: 4 };
    let writer = shardd::Author::Writer { volume: bench.id, epoch: head.entry.place.epoch };
    bench.nodes[4].put(&writer, &name, &fpcc, &bytes).unwrap();
    let found = reader.read(Some(&public)).await.unwrap().unwrap();
    assert_eq!(found.head().digest, head.digest);
}

/// Whoever waited for the journal waited two seconds more after each checkpoint while a node was slow to delete.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_checkpoint_replaced_is_deleted_beside_what_is_written_next() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    for name in 0..5 {
        make(&volume, &name.to_string());
        volume.sync().await.unwrap();
    }
    let second = Fault::Delay(SECOND);
    bench.faults.add(Rule::always(second).at(&address(0)).on(Verb::Batch));
    let began = std::time::Instant::now();
    volume.journal.as_ref().unwrap().checkpoint().await.unwrap();
    make(&volume, "after");
    volume.sync().await.unwrap();
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    let head = *entries_on(&bench, 1).last().unwrap();
    for _ in 0..100 {
        if entries_on(&bench, 0).len() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(entries_on(&bench, 0).len(), 2, "the checkpoint, and what came after it");
    assert_eq!(entries_on(&bench, 0).last(), Some(&head));
}
