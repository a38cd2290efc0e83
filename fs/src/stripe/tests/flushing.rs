//! What was flushed survives power loss; what was not is sent again.

use tokio::time::Instant;

use super::*;
use crate::metadata::Exception;
use common::wire::{MAX_BATCH, RefusalCode};

#[tokio::test(start_paused = true)]
async fn a_flushed_store_survives_power_loss_of_every_node() {
    let bench = bench("3+2").await;
    let record = bench.store_flushed(100_000).await;
    (0..5).for_each(|k| bench.nodes.crash(k));
    bench.check(&record).await;
    assert_eq!(bench.nodes.loads(&record.id.key()), [1; 5]);
}

#[tokio::test(start_paused = true)]
async fn flush_covers_everything_stored_before_and_asks_each_node_once() {
    let bench = bench("3+2").await;
    let records = bench.store_many(10, 10_000).await;
    assert!(bench.stripe.status().unflushed_bytes > 0);
    bench.stripe.flush().await.unwrap();
    assert_eq!((bench.requests(Verb::Flush), bench.stripe.status().unflushed_bytes), (5, 0));
    bench.stripe.flush().await.unwrap();
    assert_eq!(bench.requests(Verb::Flush), 5, "there was nothing to flush");
    (0..5).for_each(|k| bench.nodes.crash(k));
    for record in records {
        assert_eq!(bench.nodes.loads(&record.id.key()), [1; 5]);
        bench.check(&record).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_flushed_store_flushes_what_was_stored_before_on_those_nodes() {
    let bench = bench("3+2").await;
    let earlier = bench.store(10_000).await;
    bench.store_flushed(10).await;
    bench.stripe.flush().await.unwrap();
    assert_eq!(bench.requests(Verb::Flush), 0);
    assert_eq!((bench.flushed(&earlier), bench.stripe.status().unflushed_bytes), (5, 0));
}

#[tokio::test(start_paused = true)]
async fn concurrent_flushes_share_rounds() {
    let bench = bench("3+2").await;
    bench.faulty.add(Rule::always(Fault::Delay(Duration::from_millis(20))).on(Verb::Flush));
    bench.store(10_000).await;
    let flushes = (0..50).map(|_| bench.stripe.flush());
    futures_util::future::try_join_all(flushes).await.unwrap();
    assert!(bench.requests(Verb::Flush) <= 10, "{} for 50 callers", bench.requests(Verb::Flush));
}

/// Power fails on nodes after they acknowledged and before they flushed; the mount has the bytes and sends them again.
#[tokio::test(start_paused = true)]
async fn what_a_node_forgot_between_acknowledging_and_flushing_is_sent_again() {
    for size in 1..=3 {
        for crashed in choices(5, size) {
            let bench = bench("3+2").await;
            let records = [bench.store(100_000).await, bench.store(10).await];
            crashed.iter().for_each(|&k| bench.nodes.crash(k));
            bench.stripe.flush().await.unwrap();
            bench.stripe.settle().await;
            for record in records {
                let record = bench.updated(record);
                assert_eq!(bench.nodes.loads(&record.id.key()), [1; 5], "{crashed:?}");
                assert_eq!(bench.flushed(&record), 5);
                assert_eq!(record.exceptions, []);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_reboot_is_noticed_without_anyone_flushing() {
    let bench = bench("3+2").await;
    let record = bench.store(100_000).await;
    bench.nodes.crash(1);
    assert!(bench.nodes.held(1, &record.id.key()).is_empty());
    bench.until(|| bench.nodes.held(1, &record.id.key()).len() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn what_survived_a_restart_is_asked_for_and_not_sent_again() {
    let bench = bench("3+2").await;
    let record = bench.store(100_000).await;
    bench.nodes.restart(2);
    bench.stripe.flush().await.unwrap();
    assert_eq!((bench.requests(Verb::Put), bench.requests(Verb::Batch)), (5, 1));
    assert_eq!(bench.flushed(&record), 5);
    assert_eq!(bench.stripe.status().unflushed_bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn a_flushed_store_notices_that_an_earlier_acknowledgement_is_void() {
    let bench = bench("3+2").await;
    let earlier = bench.store(10_000).await;
    (0..2).for_each(|k| bench.nodes.crash(k));
    bench.store_flushed(10).await;
    bench.stripe.flush().await.unwrap();
    assert_eq!((bench.nodes.loads(&earlier.id.key()), bench.flushed(&earlier)), (vec![1; 5], 5));
}

/// Two die for good after they acknowledged: what they have is not durable, so others keep it, too.
#[tokio::test(start_paused = true)]
async fn what_dead_nodes_did_not_flush_is_handed_off() {
    for dead in choices(5, 2) {
        let bench = bench("3+2").await;
        let record = bench.store(100_000).await;
        dead.iter().for_each(|&k| bench.kill(k));
        let began = Instant::now();
        bench.stripe.flush().await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        bench.stripe.settle().await;
        let record = bench.updated(record);
        assert_eq!(record.exceptions.len(), 2);
        let alive = || (0..5).filter(|k| !dead.contains(k));
        let loads: usize = alive().map(|k| bench.nodes.held(k, &record.id.key()).len()).sum();
        assert_eq!((loads, bench.stripe.status().unflushed_bytes), (5, 0));
        alive().for_each(|k| bench.nodes.crash(k));
        bench.kill(alive().next().unwrap());
        bench.check(&record).await;
    }
}

#[tokio::test(start_paused = true)]
async fn with_three_dead_a_flush_fails_in_time_keeps_the_bytes_and_succeeds_later() {
    let bench = bench("3+2").await;
    let record = bench.store(100_000).await;
    (0..3).for_each(|k| bench.kill(k));
    let began = Instant::now();
    bench.stripe.flush().await.unwrap_err();
    assert!(began.elapsed() <= bench.stripe.options.io_limit);
    assert!(bench.stripe.status().unflushed_bytes > 0);
    (0..3).for_each(|k| bench.nodes.crash(k));
    for k in 0..3 {
        bench.revive(k).await;
    }
    bench.stripe.flush().await.unwrap();
    (0..5).for_each(|k| bench.nodes.crash(k));
    bench.check(&bench.updated(record)).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_hangs_in_flush_is_waited_for_once() {
    let bench = bench("3+2").await;
    bench.fault(3, Verb::Flush, Fault::Hang);
    let record = bench.store(100_000).await;
    let began = Instant::now();
    bench.stripe.flush().await.unwrap();
    assert_eq!(began.elapsed(), bench.stripe.options.flush_patience);
    assert_eq!(bench.flushed(&record), 4);
    bench.store(100_000).await;
    let began = Instant::now();
    bench.stripe.flush().await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn disks_that_are_all_slow_are_waited_for_and_given_nothing_twice() {
    let bench = bench("3+2").await;
    let slow = Duration::from_secs(3);
    for k in 0..5 {
        bench.fault(k, Verb::Flush, Fault::Delay(slow));
    }
    let record = bench.store(100_000).await;
    let (puts, began) = (bench.requests(Verb::Put), Instant::now());
    bench.stripe.flush().await.unwrap();
    assert_eq!((began.elapsed(), bench.requests(Verb::Put)), (slow, puts));
    assert_eq!(bench.flushed(&record), 5);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_never_flushes_fills_no_memory() {
    let bench = bench("3+2").await;
    bench.fault(3, Verb::Flush, Fault::Refuse(RefusalCode::Io));
    let mut remembered = 0;
    for _ in 0..6 {
        let records = bench.store_many(1000, 10).await;
        bench.stripe.flush().await.unwrap();
        assert!(records.iter().all(|record| bench.flushed(record) >= 4));
        remembered = bench.stripe.ledger.lock().remembered().max(remembered);
    }
    assert!(remembered > 1000, "{remembered}");
    assert!(remembered <= 4096, "{remembered}");
}

/// A fragment that is lost after enough nodes had flushed the object is no reason for later flushes to fail.
#[tokio::test(start_paused = true)]
async fn what_rots_after_it_was_flushed_keeps_no_flush_from_succeeding() {
    let bench = bench("3+2").await;
    bench.fault(3, Verb::Flush, Fault::Hang);
    let record = bench.store(100_000).await;
    bench.stripe.flush().await.unwrap();
    assert_eq!((bench.flushed(&record), bench.stripe.status().unflushed_bytes), (4, 0));
    (0..2).for_each(|k| bench.nodes.lose(k, &record.id.key()));
    let read = bench.stripe.read(&record, 0..record.length, Reuse::Likely).await.unwrap();
    assert_eq!(read.concat(), bytes_of(record.id, 100_000));
    let later = bench.store(100_000).await;
    bench.stripe.flush().await.unwrap();
    assert_eq!(bench.flushed(&later), 4);
    assert!(!bench.updated(record).exceptions.is_empty(), "what is lost is told, to be rebuilt");
}

#[tokio::test(start_paused = true)]
async fn nodes_that_cannot_flush_do_not_count() {
    let bench = bench("3+2").await;
    (0..2).for_each(|k| bench.harm(k, Verb::Flush, Fault::Refuse(RefusalCode::Io)));
    let record = bench.store(100_000).await;
    bench.stripe.flush().await.unwrap();
    let good: usize = (2..5).map(|k| bench.nodes.held(k, &record.id.key()).len()).sum();
    assert!(bench.flushed(&record) >= 4, "{good} on the nodes that flush");
    (0..5).for_each(|k| bench.nodes.crash(k));
    bench.check(&bench.updated(record)).await;
}

#[tokio::test(start_paused = true)]
async fn unflushed_bytes_are_bounded_and_flushed_in_the_background() {
    let bound = 1 << 20;
    let bench = Bench::new(5, StripeOptions { unflushed_bytes: bound, ..options("3+2") }).await;
    for _ in 0..100 {
        bench.store(120_000).await;
        assert!(bench.stripe.status().unflushed_bytes <= 2 * bound);
    }
    assert!(bench.requests(Verb::Flush) >= 5);
    bench.stripe.flush().await.unwrap();
    assert_eq!(bench.stripe.status().unflushed_bytes, 0);
}

/// No disk flushes: stores go on up to the bound, then wait and fail; what was stored is kept and flushed later.
#[tokio::test(start_paused = true)]
async fn when_nothing_can_be_flushed_stores_end_in_time_and_what_was_stored_is_kept() {
    let bound = 1 << 20;
    let bench = Bench::new(5, StripeOptions { unflushed_bytes: bound, ..options("3+2") }).await;
    (0..5).for_each(|k| bench.nodes.set_flushing(k, false));
    let mut stored = Vec::new();
    let (error, took) = loop {
        let began = Instant::now();
        match bench.try_store(bench.stripe.next_id(), 120_000, false).await {
            Ok(record) => stored.push(record),
            Err(error) => break (error, began.elapsed()),
        }
    };
    assert!(error.to_string().contains("wait to be flushed"), "{error}");
    assert_eq!((took, stored.len()), (bench.stripe.options.io_limit, 10));
    bench.stripe.flush().await.unwrap_err();
    (0..5).for_each(|k| bench.nodes.set_flushing(k, true));
    bench.stripe.flush().await.unwrap();
    (0..5).for_each(|k| bench.nodes.crash(k));
    for record in stored {
        bench.check(&record).await;
    }
    bench.store(120_000).await;
}

/// A mount that is taken up again asks for each object that an earlier one did not bring into the journal: one by one,
/// a node that took half a second for every answer made it wait half a minute.
#[tokio::test(start_paused = true)]
async fn one_request_to_each_node_finds_what_is_flushed_of_many_objects() {
    let bench = bench("3+2").await;
    let objects = bench.store_many(300, 5000).await;
    bench.nodes.lose(1, &objects[7].id.key());
    let batches = bench.requests(Verb::Batch);
    bench.harm(0, Verb::Batch, Fault::Delay(Duration::from_millis(500)));
    let began = Instant::now();
    let found = bench.stripe.find_flushed(&objects).await;
    assert!(began.elapsed() < Duration::from_millis(600), "{:?}", began.elapsed());
    assert_eq!(bench.requests(Verb::Batch) - batches, 5);
    let lost = bench.homes(objects[7].id).iter().position(|&home| home == 1).unwrap() as u8;
    for (at, (flushed, object)) in found.iter().zip(&objects).enumerate() {
        let missing = if at == 7 { vec![Exception { index: lost, node: None }] } else { vec![] };
        assert_eq!((flushed.count, &flushed.exceptions), (5 - missing.len(), &missing), "object {at}");
        assert!(flushed.is_stored && flushed.silent.is_empty());
        assert_eq!(bench.flushed(object), 5 - missing.len());
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_is_waited_for_once_unless_its_fragments_are_needed() {
    let bench = bench("3+2").await;
    let objects = bench.store_many(MAX_BATCH / 5 + 1, 100).await;
    bench.harm(0, Verb::Batch, Fault::Hang);
    let began = Instant::now();
    let found = bench.stripe.find_flushed(&objects).await;
    let patience = bench.stripe.options.flush_patience;
    assert!(
        began.elapsed() >= patience && began.elapsed() < patience * 2,
        "two requests: {:?}",
        began.elapsed()
    );
    assert!(found.iter().all(|flushed| flushed.count == 4 && flushed.exceptions.is_empty()));
    assert!(found.iter().all(|flushed| flushed.silent.len() == 1));

    [1, 2].into_iter().for_each(|k| bench.nodes.lose(k, &objects[0].id.key()));
    let began = Instant::now();
    let found = bench.stripe.find_flushed(&objects[..1]).await;
    assert_eq!((found[0].count, found[0].is_stored), (2, false));
    assert!(began.elapsed() >= bench.stripe.options.io_limit, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_always_slow_is_soon_not_waited_for() {
    let bench = bench("3+2").await;
    bench.harm(0, Verb::Put, Fault::Delay(Duration::from_millis(500)));
    let mut records = Vec::new();
    for _ in 0..2 {
        let began = Instant::now();
        for _ in 0..100 {
            records.push(bench.store_flushed(1000).await);
        }
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
    bench.stripe.settle().await;
    assert!(records.iter().all(|record| bench.flushed(record) == 5), "it gets everything all the same");
}
