//! Nodes are replaced, added and left out, and what was stored before is placed anew.

use super::*;
use crate::metadata::ObjectRecord;
use crate::stripe::Standing;
use crate::volume::{RebalanceReport, VolumeStatus};

/// Files of one object each.
const FILES: u64 = 12;
const LENGTH: usize = 50_000;

impl Bench {
    /// A volume on some of the nodes, with files.
    async fn with_files(&mut self, used: impl IntoIterator<Item = usize>) {
        self.used = used.into_iter().collect();
        let volume = self.mount().await;
        for k in 0..FILES {
            let ino = create(&volume, &format!("file {k}"));
            write(&volume, ino, 0, &noise(LENGTH, k)).await;
            volume.fsync(ino).await.unwrap();
            volume.close_file(ino);
        }
        volume.shut_down().await.unwrap();
    }

    /// Every fragment of every object is on the node where the list in use wants it, and nothing else is anywhere.
    async fn is_in_its_place(&self, volume: &Arc<Volume>) -> bool {
        let census = volume.stripe.census().await;
        let objects = self.needed();
        let is_there = |object: &ObjectRecord| {
            let verdict = volume.stripe.judge(object, &census.held[&object.id], &census.answered);
            let all = verdict.fragments.iter().all(|standing| matches!(standing, Standing::There));
            object.exceptions.is_empty() && all && verdict.spare == 0
        };
        objects.iter().all(|object| object.configuration == volume.stripe.current() && is_there(object))
    }

    fn needed(&self) -> Vec<ObjectRecord> {
        let objects = self.metadata.objects(None, 1000).unwrap();
        objects.into_iter().filter(|(_, needed)| *needed).map(|(object, _)| object).collect()
    }

    async fn arrives(&self, volume: &Arc<Volume>) {
        until("bringing everything to its place", || {
            self.metadata.usage().unwrap().objects_with_exceptions == 0
        })
        .await;
        for _ in 0..200 {
            if self.is_in_its_place(volume).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("not everything is in its place");
    }
}

async fn check_files(volume: &Arc<Volume>) {
    for k in 0..FILES {
        let ino = volume.lookup(ROOT, format!("file {k}").as_bytes()).unwrap().ino;
        volume.open_file(ino).unwrap();
        assert_eq!(read(volume, ino, 0, LENGTH as u32).await, noise(LENGTH, k), "file {k}");
        volume.close_file(ino);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_on_a_node_that_is_gone_is_made_anew_on_the_one_in_its_place() {
    let mut bench = Bench::of(6).await;
    bench.with_files(0..5).await;
    bench.used = (1..6).collect();
    let volume = bench.mount().await;
    let gone = |status: &VolumeStatus| status.nodes_gone();
    assert_eq!(gone(&volume.status().await.unwrap()), 1);
    let before = bench.needed();
    let wanted = volume.rebalance(true).await.unwrap();
    assert_eq!((wanted.objects, wanted.bytes), (FILES, FILES * LENGTH as u64));
    assert_eq!(wanted.made, FILES, "each had a fragment on the node that is gone");
    assert_eq!(bench.needed(), before, "nothing was to be done");

    assert_eq!(volume.rebalance(false).await.unwrap(), wanted);
    bench.arrives(&volume).await;
    assert_eq!(volume.rebalance(false).await.unwrap(), RebalanceReport::default());
    let status = volume.status().await.unwrap();
    assert_eq!((gone(&status), status.objects_not_at_home), (0, 0));
    // Any two of the others may go now.
    bench.fail(1..3, Fault::Lose);
    check_files(&volume).await;
    volume.shut_down().await.ok();
    drop(volume);
    bench.faults.clear();
    // The pool knows, too.
    bench.recover().await;
    let volume = bench.mount().await;
    assert!(bench.is_in_its_place(&volume).await);
    check_files(&volume).await;
    volume.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_added_gets_its_share_and_one_that_is_left_out_is_free() {
    let mut bench = Bench::of(7).await;
    bench.with_files(0..5).await;
    bench.used = (0..7).collect();
    let volume = bench.mount().await;
    assert_eq!((bench.fragments_on(&bench.nodes[5]), bench.fragments_on(&bench.nodes[6])), (0, 0));
    let report = volume.rebalance(false).await.unwrap();
    assert_eq!((report.objects, report.made), (FILES, 0));
    bench.arrives(&volume).await;
    let share = bench.fragments_on(&bench.nodes[5]) + bench.fragments_on(&bench.nodes[6]);
    assert!(share > FILES / 2 && share < 2 * FILES, "{share} of {} fragments", 5 * FILES);
    volume.shut_down().await.unwrap();
    drop(volume);

    // Left out and still there: what it has is moved, not made.
    bench.placed = Some((1..7).collect());
    let volume = bench.mount().await;
    let report = volume.rebalance(false).await.unwrap();
    assert_eq!((report.objects, report.made), (FILES, 0));
    bench.arrives(&volume).await;
    assert_eq!(bench.fragments_on(&bench.nodes[0]), 0);
    check_files(&volume).await;
    volume.shut_down().await.unwrap();
}

/// What only a snapshot needs has its fragments as well, and stays what it needs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_snapshot_keeps_is_placed_anew_and_still_kept() {
    let mut bench = Bench::of(6).await;
    bench.with_files(0..5).await;
    let volume = bench.mount().await;
    volume.take_snapshot("before").await.unwrap();
    let ino = volume.lookup(ROOT, b"file 0").unwrap().ino;
    resize(&volume, ino, 0);
    volume.sync().await.unwrap();
    volume.shut_down().await.unwrap();
    drop(volume);
    bench.used = (1..6).collect();
    let volume = bench.mount().await;
    let report = volume.rebalance(false).await.unwrap();
    assert_eq!((report.objects, report.made), (FILES, FILES));
    bench.arrives(&volume).await;
    assert_eq!(volume.status().await.unwrap().nodes_gone(), 0);
    volume.shut_down().await.unwrap();
    drop(volume);
    bench.recover().await;
    bench.fail(1..3, Fault::Lose);
    let volume = bench.mount().await;
    assert_eq!(bench.needed().len() as u64, FILES, "the snapshot keeps one");
    volume.unlink(ROOT, b"file 0", caller(7)).unwrap();
    volume.restore("before", b"file 0", ROOT, b"file 0").await.unwrap();
    check_files(&volume).await;
    volume.shut_down().await.ok();
}

/// What was brought to where it was at home is not at home by another placement, and who was its guest may be at home now: it
/// was told to delete what it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn placing_anew_while_fragments_go_home_loses_none() {
    let mut bench = Bench::of(6).await;
    bench.fail(0..1, Fault::Lose);
    bench.with_files(0..5).await;
    bench.faults.clear();
    let waiting = bench.metadata.usage().unwrap().objects_with_exceptions;
    assert_eq!(waiting, FILES, "each has a fragment that waits with a guest");
    bench.placed = Some((1..6).collect());
    bench.used = (0..6).collect();
    // The first are on their way to where they were at home.
    bench.faults.add(Rule::always(Fault::Delay(SECOND)).at(&address(0)).on(Verb::Put));
    let volume = bench.mount().await;
    until("bringing the first home", || bench.faults.count(&address(0), Verb::Put) >= 4).await;
    assert_eq!(volume.rebalance(false).await.unwrap().objects, FILES);
    until("bringing all to their place", || bench.metadata.usage().unwrap().objects_with_exceptions == 0)
        .await;
    let census = volume.stripe.census().await;
    for object in bench.needed() {
        let verdict = volume.stripe.judge(&object, &census.held[&object.id], &census.answered);
        assert!(verdict.fragments.iter().all(|standing| *standing == Standing::There), "{verdict:?}");
    }
    bench.fail(1..3, Fault::Lose);
    check_files(&volume).await;
    volume.shut_down().await.ok();
}

/// Nothing can be brought to a node that is gone: it would wait for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_with_a_node_that_is_gone_is_refused() {
    let mut bench = Bench::of(6).await;
    bench.with_files(0..5).await;
    bench.used = (1..6).collect();
    bench.placed = Some((0..5).collect());
    let volume = bench.mount().await;
    let refused = volume.rebalance(false).await.unwrap_err().to_string();
    assert!(refused.contains("at no known address"), "{refused}");
    volume.shut_down().await.ok();
}
