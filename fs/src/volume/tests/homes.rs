//! Fragments that are rebuilt at home, while others turn out to be lost.

use common::wire::ObjectId;

use super::*;

/// Another one is found missing while the first is rebuilt: it is rebuilt, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_found_lost_while_another_is_rebuilt_is_rebuilt_too() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "f");
    write(&volume, ino, 0, &noise(50_000, 1)).await;
    volume.fsync(ino).await.unwrap();
    volume.stripe.settle().await;
    volume.shut_down().await.unwrap();
    let writer = shardd::Author::Writer { volume: bench.id, epoch: volume.epoch };
    crash(volume).await;
    let [(object, _)] = &bench.metadata.objects(None, 10).unwrap()[..] else { panic!("one object") };
    let key = object.id.key();
    for index in [1, 3] {
        let deleted =
            bench.nodes.iter().map(|node| node.delete(&writer, &key, ObjectId::VERSION, Some(index)));
        assert_eq!(deleted.map(Result::unwrap).sum::<u64>(), 1);
    }
    bench.metadata.set_exceptions(object.id, &[Exception { index: 1, node: None }]).unwrap();
    let volume = bench.mount().await;
    until("all five are there", || bench.fragments() == 5).await;
    until("and known to be", || bench.metadata.usage().unwrap().objects_with_exceptions == 0).await;
    drop(volume);
}
