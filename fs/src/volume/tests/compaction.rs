//! Compaction: fewer and fuller objects, the same bytes.

use super::*;

/// Write so many blocks of a file here and there, each in an object of its own.
async fn scribble(volume: &Arc<Volume>, ino: Ino, random: &mut StdRng, data: &mut [u8], writes: usize) {
    for _ in 0..writes {
        let at = random.random_range(0..data.len() / 1000) * 1000;
        random.fill(&mut data[at..at + 1000]);
        write(volume, ino, at as u64, &data[at..at + 1000]).await;
        volume.flush(ino).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_objects_become_few_and_their_fragments_go() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "a");
    let (mut random, mut data) = (StdRng::seed_from_u64(1), vec![0; 100_000]);
    write(&volume, ino, 0, &data).await;
    scribble(&volume, ino, &mut random, &mut data, 100).await;
    let before = bench.metadata.usage().unwrap();
    let found = volume.compact(true).await.unwrap();
    assert!(found.extents > 50 && found.moved == 0, "{found:?}");
    // What the last writes left may go meanwhile; nothing comes.
    let after = bench.metadata.usage().unwrap();
    assert!(after.live_bytes == before.live_bytes && after.objects <= before.objects, "{after:?}");
    let done = volume.compact(false).await.unwrap();
    assert_eq!((done.moved, done.bytes), (found.extents, found.bytes));
    until("the old objects are gone", || bench.metadata.usage().unwrap().objects <= 6).await;
    assert_eq!(bench.fragments(), 5 * bench.metadata.usage().unwrap().objects);
    assert_eq!(read(&volume, ino, 0, 100_000).await, data);
    assert_eq!(volume.compact(true).await.unwrap().extents, 0, "once is enough");
    volume.shut_down().await.unwrap();
    drop(volume);
    let again = bench.mount().await;
    again.open_file(ino).unwrap();
    assert_eq!(read(&again, ino, 0, 100_000).await, data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_is_mostly_overwritten_gives_its_room_back() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "a");
    write(&volume, ino, 0, &noise(60_000, 1)).await;
    volume.flush(ino).await.unwrap();
    let over = noise(45_000, 2);
    write(&volume, ino, 0, &over).await;
    volume.fsync(ino).await.unwrap();
    assert_eq!(bench.metadata.usage().unwrap().object_bytes, 105_000);
    assert_eq!(volume.compact(false).await.unwrap().moved, 1);
    until("the old object is gone", || bench.metadata.usage().unwrap().object_bytes == 60_000).await;
    assert_eq!(read(&volume, ino, 0, 60_000).await, [over, noise(60_000, 1)[45_000..].to_vec()].concat());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_snapshot_needs_is_left_where_it_is() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let ino = create(&volume, "a");
    let (mut random, mut data) = (StdRng::seed_from_u64(1), vec![0; 100_000]);
    write(&volume, ino, 0, &data).await;
    scribble(&volume, ino, &mut random, &mut data, 50).await;
    volume.take_snapshot("kept").await.unwrap();
    assert_eq!(volume.compact(true).await.unwrap().extents, 0);
    let kept = data.clone();
    scribble(&volume, ino, &mut random, &mut data, 50).await;
    assert!(volume.compact(false).await.unwrap().moved > 8);
    assert_eq!(read(&volume, ino, 0, 100_000).await, data);
    volume.restore("kept", b"a", ROOT, b"back").await.unwrap();
    let back = volume.lookup(ROOT, b"back").unwrap();
    volume.open_file(back.ino).unwrap();
    assert_eq!(read(&volume, back.ino, 0, 100_000).await, kept[..back.size as usize]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_and_readers_do_not_notice() {
    let bench = Bench::new().await;
    let volume = bench.mount().await;
    let files: Vec<Ino> = ["a", "b"].iter().map(|name| create(&volume, name)).collect();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let compacting = tokio::spawn({
        let volume = volume.clone();
        async move {
            let mut moved = 0;
            while !*stopped.borrow() {
                moved += volume.compact(false).await.unwrap().moved;
            }
            moved
        }
    });
    let writing = files.iter().enumerate().map(|(k, &ino)| {
        let volume = volume.clone();
        async move {
            let (mut random, mut data) = (StdRng::seed_from_u64(k as u64), vec![0; 30_000]);
            write(&volume, ino, 0, &data).await;
            for round in 0..60 {
                scribble(&volume, ino, &mut random, &mut data, 3).await;
                if round % 10 == 5 {
                    // Whatever is remembered is asked for anew.
                    volume.close_file(ino);
                    volume.open_file(ino).unwrap();
                }
                assert_eq!(read(&volume, ino, 0, 30_000).await, data, "round {round} of file {k}");
            }
        }
    });
    futures_util::future::join_all(writing).await;
    stop.send_replace(true);
    assert!(compacting.await.unwrap() > 0, "something was moved meanwhile");
}
