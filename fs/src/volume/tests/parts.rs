//! Parts of the journal, and of what snapshots need: whole and at home again once their nodes are back.

use common::wire::{FragmentName, ObjectId};

use super::*;
use crate::journal::pin::Pin;
use crate::metadata::ObjectRecord;
use crate::placement;
use crate::volume::{FsckReport, FsckWish};

const CHECK: FsckWish = FsckWish { repair: false, deep: false };
const REPAIR: FsckWish = FsckWish { repair: true, deep: false };

/// One change that is too large to lie in an entry.
async fn write_part(volume: &Arc<Volume>, name: &str) {
    let values = [1, 2].map(|seed| (format!("user.{seed}").into_bytes(), noise(60_000, seed)));
    let new = NewInode { mode: libc::S_IFREG | 0o644, xattrs: values.to_vec(), ..NewInode::default() };
    volume.metadata.create(ROOT, name.as_bytes(), &new, at(1)).unwrap();
    volume.sync().await.unwrap();
}

fn pin(volume: &Volume, snapshot: &str) -> Pin {
    Pin::of(&volume.snapshot(snapshot).unwrap()).unwrap().unwrap()
}

/// A snapshot that needs one part, which lies on four nodes as the first was down; nothing else needs it.
async fn degraded(bench: &Bench, volume: &Arc<Volume>) -> ObjectRecord {
    bench.fail(0..1, Fault::Lose);
    write_part(volume, "f").await;
    volume.take_snapshot("degraded").await.unwrap();
    volume.journal.as_ref().unwrap().checkpoint().await.unwrap();
    let [part] = &pin(volume, "degraded").parts[..] else { panic!("one part") };
    volume.stripe.settle().await;
    part.clone()
}

impl Bench {
    fn has(&self, k: usize, part: &ObjectRecord, index: u8) -> bool {
        let name = FragmentName { key: part.id.key(), version: ObjectId::VERSION, index };
        self.nodes[k].has(shardd::Space::Volume(self.id), &name).is_ok()
    }

    /// How many fragments of a part each node has.
    fn loads(&self, part: &ObjectRecord) -> Vec<usize> {
        (0..NODES).map(|k| (0..5).filter(|index| self.has(k, part, *index)).count()).collect()
    }

    /// By index, which node.
    fn homes(&self, part: &ObjectRecord) -> Vec<usize> {
        let nodes: Vec<_> = self.nodes.iter().map(|node| node.node()).collect();
        let homes = placement::homes(&nodes, part.id, 5);
        homes.iter().map(|home| nodes.iter().position(|node| node == home).unwrap()).collect()
    }

    /// Each fragment at home, and nowhere else.
    fn is_home(&self, part: &ObjectRecord) -> bool {
        let homes = self.homes(part);
        self.loads(part) == [1; NODES]
            && homes.iter().enumerate().all(|(index, k)| self.has(*k, part, index as u8))
    }

    fn lose(&self, k: usize, part: &ObjectRecord, epoch: u32) {
        let writer = shardd::Author::Writer { volume: self.id, epoch };
        assert!(self.nodes[k].delete(&writer, &part.id.key(), ObjectId::VERSION, None).unwrap() > 0);
    }
}

/// Read the metadata of a snapshot from the nodes.
async fn read_snapshot(bench: &Bench, volume: &Arc<Volume>, name: &str) {
    let _ = std::fs::remove_dir_all(bench.folder.path().join("views"));
    let view = volume.view(&volume.snapshot(name).unwrap(), &pin(volume, name)).await.unwrap();
    assert!(view.lookup(ROOT, b"f").is_ok());
}

/// A node that was down when a snapshot was taken left one with two fragments of the snapshot's part, for ever: without
/// that one and another the snapshot was gone, though the code bears two losses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_taken_without_a_node_survives_two_others_once_that_is_back() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let part = degraded(&bench, &volume).await;
    let loads = bench.loads(&part);
    assert!(loads[0] == 0 && loads.contains(&2), "{loads:?}");
    assert_eq!(volume.status().await.unwrap().objects_not_at_home, 2, "this one, and the checkpoint's");
    bench.faults.clear();
    until("the part is at home", || bench.is_home(&part)).await;
    until("that is known", || volume.journal.as_ref().unwrap().parts_away() == 0).await;
    // The one that had two, and another.
    let guest = loads.iter().position(|load| *load == 2).unwrap();
    let other = (1..NODES).find(|k| *k != guest).unwrap();
    for k in [guest, other] {
        bench.fail(k..k + 1, Fault::Lose);
    }
    read_snapshot(&bench, &volume, "degraded").await;
}

/// The node is back only when the next mount begins: nothing in that tells that it was away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_an_earlier_mount_left_away_from_home_comes_home() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let part = degraded(&bench, &volume).await;
    volume.shut_down().await.unwrap();
    crash(volume).await;
    bench.faults.clear();
    let volume = bench.mount().await;
    until("the part is at home", || bench.is_home(&part)).await;
    until("that is known", || volume.journal.as_ref().unwrap().parts_away() == 0).await;
    // What the snapshot says of it is older, and makes no work for the next mount.
    assert_eq!(pin(&volume, "degraded").parts[..], *std::slice::from_ref(&part));
    crash(volume).await;
    let volume = bench.mount().await;
    until("that is known", || volume.journal.as_ref().unwrap().parts_away() == 0).await;
    assert_eq!(volume.stripe.status().degraded_reads, 0);
    assert_eq!(volume.collect_garbage(true).await.unwrap().objects, 0);
    // As if it had been killed before the guest's copy was deleted.
    let Exception { index, node: Some(guest) } = part.exceptions[0] else { panic!("a guest has it") };
    let guest = bench.nodes.iter().position(|node| node.node() == guest).unwrap();
    let name = FragmentName { key: part.id.key(), version: ObjectId::VERSION, index };
    let kept = bench.nodes[0].get(shardd::Space::Volume(bench.id), &name).unwrap();
    let writer = shardd::Author::Writer { volume: bench.id, epoch: volume.epoch };
    crash(volume).await;
    bench.nodes[guest].put(&writer, &name, &kept.fpcc(), &kept.fragment()).unwrap();
    let _volume = bench.mount().await;
    until("the guest has one", || bench.is_home(&part)).await;
}

/// Its home said that it has a fragment, too, which had rotted there: the guest's, which was good, was deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_is_not_believed_that_it_has_what_a_guest_has() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let part = degraded(&bench, &volume).await;
    let Exception { index, node: Some(guest) } = part.exceptions[0] else { panic!("a guest has it") };
    let guest = bench.nodes.iter().position(|node| node.node() == guest).unwrap();
    let name = FragmentName { key: part.id.key(), version: ObjectId::VERSION, index };
    let kept = bench.nodes[guest].get(shardd::Space::Volume(bench.id), &name).unwrap();
    let writer = shardd::Author::Writer { volume: bench.id, epoch: volume.epoch };
    bench.nodes[0].put(&writer, &name, &kept.fpcc(), &kept.fragment()).unwrap();
    bench.faults.clear();
    // It says that it has the fragment, and gives something else. What is put there anew does not hide that it goes.
    bench.faults.add(Rule::always(Fault::CorruptFragment).at(&address(0)).on(Verb::Get));
    bench.faults.add(Rule::always(Fault::Forget).at(&address(0)).on(Verb::Put));
    until("what is wrong at home is gone", || !bench.has(0, &part, index)).await;
}

/// The part of a snapshot of this name, which the journal needs as well; it is on all nodes.
async fn whole(bench: &Bench, volume: &Arc<Volume>, snapshot: &str) -> ObjectRecord {
    write_part(volume, "f").await;
    volume.take_snapshot(snapshot).await.unwrap();
    volume.stripe.settle().await;
    let pin = pin(volume, snapshot);
    let [part] = &pin.parts[..] else { panic!("one part") };
    until("it is on all nodes", || bench.is_home(part)).await;
    part.clone()
}

/// Of what is current: it was on all nodes, and one comes back with a disk from before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_a_node_lost_is_made_anew_without_writing_everything_anew() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    volume.sync().await.unwrap();
    let part = &whole(&bench, &volume, "whole").await;
    let journal = volume.journal.as_ref().unwrap().clone();
    let checkpoint = journal.status().unwrap().checkpoint;
    for k in [1, 3] {
        bench.fail(k..k + 1, Fault::Lose);
        bench.lose(k, part, volume.epoch);
    }
    until("that they are down is known", || volume.stripe.roots_up() == 3).await;
    bench.faults.clear();
    until("the part is at home", || bench.is_home(part)).await;
    assert_eq!(journal.status().unwrap().checkpoint, checkpoint);
}

/// A snapshot is deleted while its part is on its way home: what arrives after the deletion goes, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_nothing_needs_any_more_does_not_come_back() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let part = degraded(&bench, &volume).await;
    // Only what is asked for below is brought home.
    volume.stop.send_replace(true);
    bench.faults.clear();
    let entries = |k: usize| {
        let listing = bench.nodes[k].list(shardd::Space::Volume(bench.id), JOURNAL_PREFIX, 1000).unwrap();
        listing.objects.into_iter().map(|object| object.key).collect::<Vec<_>>()
    };
    until("the entries are on all nodes", || entries(0) == entries(1)).await;
    let before = bench.faults.count(&address(0), Verb::Put);
    bench.faults.add(Rule::always(Fault::Delay(2 * SECOND)).at(&address(0)).on(Verb::Put).times(1));
    let bringing = tokio::spawn({
        let (volume, part) = (volume.clone(), part.clone());
        async move { volume.bring_these_home(volume.journal.as_ref().unwrap(), &[part]).await }
    });
    until("the part is on its way", || bench.faults.count(&address(0), Verb::Put) > before).await;
    volume.delete_snapshot("degraded").await.unwrap();
    until("the part is deleted", || bench.loads(&part) == [0; NODES]).await;
    assert!(!bringing.is_finished());
    bringing.await.unwrap();
    assert_eq!(bench.loads(&part), [0; NODES]);
}

/// Its being back was used up by a round in which it did not say what it has, and what it lost was missed by nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_back_and_silent_at_first_is_asked_again() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let part = &whole(&bench, &volume, "whole").await;
    bench.fail(1..2, Fault::Lose);
    bench.lose(1, part, volume.epoch);
    until("that it is down is known", || volume.stripe.roots_up() == 4).await;
    bench.faults.clear();
    // It is up, and busy.
    bench.faults.add(Rule::always(Fault::Refuse(RefusalCode::Busy)).at(&address(1)).on(Verb::Batch).times(1));
    until("the part is at home", || bench.is_home(part)).await;
}

/// It brought home what the mount that took over may have deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_that_was_taken_over_brings_nothing_home() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let part = degraded(&bench, &volume).await;
    let other = shardd::Author::Writer { volume: bench.id, epoch: volume.epoch + 1 };
    // The node that was away has not heard of it, and would take what it is sent.
    for node in &bench.nodes[1..] {
        node.delete(&other, "of-nobody", ObjectId::VERSION, None).unwrap();
    }
    create(&volume, "late");
    until("it is known that it was taken over", || volume.journal.as_ref().unwrap().is_fenced()).await;
    bench.faults.clear();
    until("the node is back", || volume.stripe.roots_up() == NODES).await;
    tokio::time::sleep(6 * SECOND).await;
    assert!(volume.journal.as_ref().unwrap().is_fenced());
    assert_eq!(bench.loads(&part)[0], 0);
}

#[track_caller]
fn the_only_problem(report: &FsckReport) -> &str {
    assert_eq!((report.found, report.problems.len()), (1, 1), "{report:#?}");
    &report.problems[0].what
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_tells_of_parts_and_repairs_them() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let part = &whole(&bench, &volume, "one").await;
    let clean = volume.fsck(FsckWish { repair: false, deep: true }).await.unwrap();
    assert_eq!((clean.found, clean.objects, clean.fragments, clean.verified), (0, 1, 5, 5), "{clean:#?}");
    // Of what is current, and of the snapshot alone.
    for of in ["the journal and snapshot one", "snapshot one"] {
        bench.lose(2, part, volume.epoch);
        let index = bench.homes(part).iter().position(|k| *k == 2).unwrap();
        let report = volume.fsck(CHECK).await.unwrap();
        let expected = format!("part of {of}: fragment {index} is missing on {}", address(2));
        assert_eq!(the_only_problem(&report), expected);
        let report = volume.fsck(REPAIR).await.unwrap();
        assert_eq!((report.found, report.repaired, report.left), (1, 1, 0), "{report:#?}");
        assert!(bench.is_home(part));
        volume.journal.as_ref().unwrap().checkpoint().await.unwrap();
        volume.stripe.settle().await;
    }
    // One that no node takes is known to be missing.
    bench.faults.add(Rule::always(Fault::Refuse(RefusalCode::Io)).at(&address(2)).on(Verb::Put));
    bench.lose(2, part, volume.epoch);
    let report = volume.fsck(REPAIR).await.unwrap();
    assert_eq!((report.found, report.repaired, report.left), (1, 0, 1), "{report:#?}");
    let report = volume.fsck(CHECK).await.unwrap();
    assert_eq!((report.found, report.awaited_fragments), (0, 1), "{report:#?}");
    bench.faults.clear();
    until("the part is at home", || bench.is_home(part)).await;
}

/// A check that changes nothing called the parts of snapshots garbage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_snapshots_are_no_garbage_to_a_check_that_changes_nothing() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let part = degraded(&bench, &volume).await;
    volume.shut_down().await.unwrap();
    crash(volume).await;
    bench.faults.clear();
    let volume = bench.mount_with(|options| options.read_only = true).await;
    let report = volume.fsck(CHECK).await.unwrap();
    assert_eq!((report.found, report.garbage_objects), (0, 0), "{report:#?}");
    let guest = bench.loads(&part).iter().position(|load| *load == 2).unwrap();
    bench.lose(guest, &part, 9);
    let report = volume.fsck(CHECK).await.unwrap();
    assert!(report.problems.iter().all(|problem| problem.what.starts_with("part of snapshot degraded: ")));
    assert!(report.found > 0, "{report:#?}");
}

/// The journal was read once more for what it needs, and where that failed nobody looked at that, and nothing was said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_looks_at_parts_though_the_journal_cannot_be_read() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    write_part(&volume, "f").await;
    volume.stripe.settle().await;
    bench.faults.add(Rule::always(Fault::Refuse(RefusalCode::Io)).on(Verb::List));
    let report = volume.fsck(CHECK).await.unwrap();
    assert_eq!(report.objects, 1, "{report:#?}");
}
