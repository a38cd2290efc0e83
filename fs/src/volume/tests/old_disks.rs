//! A node that comes back with an older disk than it had.

use common::wire::ObjectId;

use super::*;

/// Everything a node keeps of the volume.
fn keys_on(bench: &Bench, k: usize) -> Vec<String> {
    let listing = bench.nodes[k].list(shardd::Space::Volume(bench.id), "", 1000).unwrap();
    listing.objects.into_iter().map(|object| object.key).collect()
}

/// Put the disk of a node back to when it kept `then`.
fn set_back(bench: &Bench, k: usize, then: &[String], epoch: u32) {
    let writer = shardd::Author::Writer { volume: bench.id, epoch };
    let since: Vec<String> = keys_on(bench, k).into_iter().filter(|key| !then.contains(key)).collect();
    assert!(!since.is_empty(), "it kept something since");
    for key in since {
        bench.nodes[k].delete(&writer, &key, ObjectId::VERSION, None).unwrap();
    }
}

async fn write_files(volume: &Arc<Volume>, names: &[&str]) {
    for name in names {
        let ino = create(volume, name);
        write(volume, ino, 0, &noise(50_000, name.len() as u64)).await;
        volume.fsync(ino).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_old_disk_lacks_is_rebuilt_though_nobody_reads_it() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    write_files(&volume, &["before"]).await;
    volume.stripe.settle().await;
    let then = keys_on(&bench, 2);
    write_files(&volume, &["one", "two", "three"]).await;
    volume.stripe.settle().await;
    // While the mount runs: the node was gone, and came back.
    let gone = bench.faults.add(Rule::always(Fault::Lose).at(&address(2)));
    write_files(&volume, &["meanwhile"]).await;
    set_back(&bench, 2, &then, volume.epoch);
    bench.faults.remove(gone);
    until("the fragments are there again", || bench.fragments_on(&bench.nodes[2]) == 5).await;
    // Between two mounts.
    volume.stripe.settle().await;
    volume.shut_down().await.unwrap();
    let epoch = volume.epoch;
    crash(volume).await;
    set_back(&bench, 2, &then, epoch);
    assert_eq!(bench.fragments_on(&bench.nodes[2]), 1);
    let volume = bench.mount().await;
    until("the fragments are there again", || bench.fragments_on(&bench.nodes[2]) == 5).await;
    until("they are home", || bench.metadata.usage().unwrap().objects_with_exceptions == 0).await;
    drop(volume);
}
