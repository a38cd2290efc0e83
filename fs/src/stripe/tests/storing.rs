//! Stores: *stored* or refused in time, whoever dies.

use tokio::time::Instant;

use super::*;
use crate::error::Error;
use crate::metadata::Exception;
use crate::pool::Outcome;
use common::wire::{JOURNAL_PREFIX, RefusalCode};

const CODES: [&str; 6] = ["3+2", "10+4", "2+2", "2+1", "1+1", "4+2"];

#[tokio::test(start_paused = true)]
async fn what_was_stored_is_read_back_with_every_code_and_size() {
    for code in CODES {
        let bench = bench(code).await;
        for length in [1, 2, 99, 4096, 65_537, 300_001] {
            let record = bench.store(length).await;
            assert_eq!((record.length as usize, record.exceptions.len()), (length, 0));
            assert_eq!(bench.nodes.loads(&record.id.key()), vec![1; bench.count], "{code}, {length} bytes");
            check(&bench.stripe, &record).await;
            bench.check(&record).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_of_a_healthy_pool_takes_one_request_for_each_fragment_and_no_time() {
    let bench = bench("3+2").await;
    let began = Instant::now();
    bench.store(10_000).await;
    assert_eq!((bench.requests(Verb::Put), began.elapsed()), (5, Duration::ZERO));
    bench.store_flushed(10_000).await;
    assert_eq!((bench.requests(Verb::Put), bench.requests(Verb::Flush)), (10, 0));
}

#[tokio::test(start_paused = true)]
async fn an_object_of_the_wrong_shape_is_refused() {
    let bench = bench("3+2").await;
    let id = bench.stripe.next_id();
    for (bytes, length) in [(0, 0), (10, 10), (9, 10), (15, 10)] {
        let stored = bench.stripe.store(id, vec![0; bytes].into(), length, false).await;
        assert!(matches!(stored, Err(Error::Invalid(_))), "{bytes} for {length}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pool_larger_than_n_gets_one_fragment_per_node() {
    let bench = Bench::new(9, options("3+2")).await;
    for _ in 0..20 {
        let record = bench.store(1000).await;
        assert_eq!(bench.nodes.loads(&record.id.key()), [1; 5]);
        bench.check(&record).await;
    }
}

/// Dead before: known to the pool or not. Any further one may be lost, as *stored* promises.
#[tokio::test(start_paused = true)]
async fn writes_go_on_with_any_two_of_five_dead() {
    for known in [false, true] {
        for size in 1..=2 {
            for dead in choices(5, size) {
                let bench = bench("3+2").await;
                dead.iter().for_each(|&k| bench.kill(k));
                if known {
                    tokio::time::sleep(Duration::from_secs(10)).await;
                }
                let began = Instant::now();
                let record = bench.store(100_000).await;
                assert!(began.elapsed() <= bench.stripe.options.grace);
                bench.stripe.settle().await;
                let record = bench.updated(record);
                let expected = if size == 1 { vec![2, 1, 1, 1] } else { vec![2, 2, 1] };
                assert_eq!(bench.nodes.loads(&record.id.key()), expected, "{dead:?} are dead");
                assert!(record.exceptions.iter().all(|exception| exception.node.is_some()));
                for further in (0..5).filter(|k| !dead.contains(k)) {
                    bench.kill(further);
                    bench.check(&record).await;
                    bench.revive(further).await;
                }
            }
        }
    }
}

/// The connection breaks in the middle of the store, before or after the node has carried it out.
#[tokio::test(start_paused = true)]
async fn two_nodes_may_die_during_the_store() {
    for fault in [Fault::Lose, Fault::LoseAnswer, Fault::Refuse(RefusalCode::Io)] {
        for dead in choices(5, 2) {
            let bench = bench("3+2").await;
            for &k in &dead {
                bench.fault(k, Verb::Put, fault);
                bench.fault(k, Verb::Get, Fault::Lose);
            }
            let record = bench.store(100_000).await;
            bench.check(&record).await;
            let held = |k: &usize| !dead.contains(k) && !bench.nodes.held(*k, &record.id.key()).is_empty();
            assert_eq!((0..5).filter(held).count(), 3);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn with_three_of_five_dead_nothing_is_acknowledged_and_the_same_id_succeeds_later() {
    for dead in choices(5, 3) {
        let bench = bench("3+2").await;
        dead.iter().for_each(|&k| bench.kill(k));
        let id = bench.stripe.next_id();
        let began = Instant::now();
        let error = bench.try_store(id, 5000, true).await.unwrap_err();
        assert_eq!(began.elapsed(), Duration::ZERO, "refused connections are certain at once");
        let Error::TooFewNodes(sentence) = &error else { panic!("{error}") };
        assert!(sentence.starts_with("2 of 5 nodes answered, 3 are needed to write: "), "{sentence}");
        for k in &dead {
            assert!(sentence.contains(&format!("memory:{k} refused the connection")), "{sentence}");
        }
        assert_eq!(bench.stripe.status().unflushed_bytes, 0, "nothing is kept for it");
        bench.revive(dead[0]).await;
        let record = bench.try_store(id, 5000, true).await.unwrap();
        bench.check(&record).await;
    }
}

/// A node that was just started counts as down until it is probed.
#[tokio::test(start_paused = true)]
async fn nodes_that_are_just_returning_are_waited_for_once() {
    let usual = options("3+2");
    let bench = Bench::new(5, StripeOptions { return_time: Duration::from_millis(1500), ..usual }).await;
    (0..3).for_each(|k| bench.kill(k));
    bench.try_store(bench.stripe.next_id(), 5000, true).await.unwrap_err();
    bench.nodes.set_alive(0, true);
    let record = bench.store(5000).await;
    bench.check(&record).await;
}

#[tokio::test(start_paused = true)]
async fn three_hung_nodes_end_the_store_within_the_limit() {
    let bench = bench("3+2").await;
    (0..3).for_each(|k| bench.harm(k, Verb::Put, Fault::Hang));
    let began = Instant::now();
    let error = bench.try_store(bench.stripe.next_id(), 5000, false).await.unwrap_err();
    assert!(matches!(error, Error::TooFewNodes(_)), "{error}");
    assert!(began.elapsed() <= bench.stripe.options.io_limit);
}

#[tokio::test(start_paused = true)]
async fn one_hung_node_costs_the_grace_once() {
    let bench = bench("3+2").await;
    bench.fault(2, Verb::Put, Fault::Hang);
    let began = Instant::now();
    let record = bench.store(5000).await;
    assert_eq!(began.elapsed(), bench.stripe.options.grace);
    let index = bench.homes(record.id).iter().position(|&k| k == 2).unwrap() as u8;
    assert_eq!(record.exceptions, [Exception { index, node: None }]);
    bench.check(&record).await;

    bench.stripe.settle().await;
    let record = bench.updated(record);
    assert!(record.exceptions[0].node.is_some(), "handed off in the background");
    bench.check(&record).await;
    let began = Instant::now();
    bench.store(5000).await;
    assert_eq!(began.elapsed(), Duration::ZERO, "nobody waits for a node known to lag");
}

#[tokio::test(start_paused = true)]
async fn two_hung_nodes_are_handed_off_after_some_patience() {
    let bench = bench("3+2").await;
    (0..2).for_each(|k| bench.harm(k, Verb::Put, Fault::Hang));
    let began = Instant::now();
    let record = bench.store(5000).await;
    assert_eq!(began.elapsed(), bench.stripe.options.patience);
    bench.check(&record).await;
}

#[tokio::test(start_paused = true)]
async fn one_dead_and_one_hung_node_cost_the_patience_once() {
    let bench = bench("3+2").await;
    bench.kill(0);
    bench.harm(1, Verb::Put, Fault::Hang);
    bench.store(5000).await;
    for _ in 0..3 {
        let began = Instant::now();
        let record = bench.store(5000).await;
        assert!(began.elapsed() <= 2 * bench.stripe.options.grace, "{:?}", began.elapsed());
        bench.check(&record).await;
    }
}

/// Two nodes were found to lag by others' requests while an object was on its way to them: nobody got their fragments,
/// as the moment from which they were late was past when the next answer came, and the store failed at its limit.
#[tokio::test(start_paused = true)]
async fn nodes_found_to_lag_during_a_store_are_handed_off() {
    let bench = bench("3+2").await;
    (0..2).for_each(|k| bench.harm(k, Verb::Put, Fault::Hang));
    bench.harm(2, Verb::Put, Fault::Delay(Duration::from_millis(300)));
    let finding = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        (0..2).for_each(|k| bench.pool.report(id(k), Outcome::Slow));
    };
    let began = Instant::now();
    let (record, ()) = tokio::join!(bench.store(5000), finding);
    assert!(began.elapsed() <= bench.stripe.options.patience, "{:?}", began.elapsed());
    bench.check(&record).await;
}

/// It was tried again at a limit that was past, and failed with another sentence, without having asked anybody.
#[tokio::test(start_paused = true)]
async fn a_store_that_used_up_its_time_is_not_tried_again() {
    let usual = options("3+2");
    let bench = Bench::new(5, StripeOptions { return_time: Duration::from_millis(1500), ..usual }).await;
    bench.kill(0);
    (1..3).for_each(|k| bench.harm(k, Verb::Put, Fault::Hang));
    let began = Instant::now();
    let error = bench.try_store(bench.stripe.next_id(), 5000, false).await.unwrap_err();
    assert!(began.elapsed() <= bench.stripe.options.io_limit, "{:?}", began.elapsed());
    assert!(error.to_string().contains("memory:0 refused the connection"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_pool_at_its_limits_is_not_taken_for_one_that_lags() {
    let bench = bench("3+2").await;
    for (k, delay) in [400, 400, 400, 400, 700].into_iter().enumerate() {
        bench.harm(k, Verb::Put, Fault::Delay(Duration::from_millis(delay)));
    }
    let record = bench.store(5000).await;
    assert_eq!(record.exceptions, []);
}

#[tokio::test(start_paused = true)]
async fn a_slow_node_completes_in_the_background_and_that_is_told() {
    let bench = bench("3+2").await;
    bench.fault(1, Verb::Put, Fault::Delay(Duration::from_millis(400)));
    let record = bench.store(5000).await;
    assert_eq!(record.exceptions.len(), 1);
    assert_eq!(bench.stripe.status().completing_objects, 1);
    bench.stripe.placement_changed().await;
    assert_eq!(bench.stripe.take_placement_changes(), [(record.id, vec![])]);
    assert_eq!(bench.stripe.status().completing_objects, 0);
    assert_eq!(bench.nodes.loads(&record.id.key()), [1; 5]);
}

/// With two of five nodes dead none of the others can be done without, and one that was known to lag was given up on
/// after 100 ms: its fragment was brought to the others, which was not enough, and that was an error.
#[tokio::test(start_paused = true)]
async fn a_slow_node_is_waited_for_where_the_others_are_not_enough() {
    for pool in [5, 8] {
        let bench = Bench::new(pool, options("3+2")).await;
        (0..pool - 3).for_each(|k| bench.kill(k));
        let slow = pool - 1;
        bench.harm(slow, Verb::Put, Fault::Delay(Duration::from_millis(700)));
        for _ in 0..20 {
            bench.pool.report(id(slow), Outcome::Slow);
            let record = bench.store_flushed(5000).await;
            bench.check(&record).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn changes_that_could_not_be_written_are_given_back_and_newer_ones_win() {
    let bench = bench("3+2").await;
    bench.fault(1, Verb::Put, Fault::Delay(Duration::from_millis(400)));
    let record = bench.store(5000).await;
    bench.stripe.settle().await;
    let old = Exception { index: 3, node: None };
    bench.stripe.keep_placement_changes(vec![(record.id, vec![old])]);
    let changes = bench.stripe.take_placement_changes();
    assert_eq!(changes, [(record.id, vec![])]);
    bench.stripe.keep_placement_changes(changes.clone());
    assert_eq!(bench.stripe.take_placement_changes(), changes);
    assert!(bench.stripe.take_placement_changes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_answer_lost_after_the_work_was_done_leaves_a_store_that_can_be_repeated() {
    for code in ["3+2", "2+2", "1+1"] {
        let bench = bench(code).await;
        let lost = bench.faulty.add(Rule::always(Fault::LoseAnswer).on(Verb::Put));
        let id = bench.stripe.next_id();
        bench.try_store(id, 50_000, false).await.unwrap_err();
        bench.faulty.remove(lost);
        for k in 0..bench.count {
            bench.revive(k).await;
        }
        let record = bench.try_store(id, 50_000, false).await.unwrap();
        bench.check(&record).await;
        let again = bench.try_store(id, 50_000, false).await.unwrap();
        assert_eq!(again, record);
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_node_is_handed_off_and_a_full_pool_is_no_space() {
    let bench = bench("3+2").await;
    bench.nodes.set_full(4, true);
    let record = bench.store(5000).await;
    assert_eq!(bench.nodes.loads(&record.id.key()), [2, 1, 1, 1]);
    bench.check(&record).await;
    let puts = bench.faulty.count(&at(4), Verb::Put);
    bench.store(5000).await;
    assert_eq!(bench.faulty.count(&at(4), Verb::Put), puts, "a node known to be full is not asked");

    (2..4).for_each(|k| bench.nodes.set_full(k, true));
    let error = bench.try_store(bench.stripe.next_id(), 5000, false).await.unwrap_err();
    assert!(matches!(&error, Error::NoSpace(sentence) if sentence.contains("NoSpace")), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn too_few_nodes_is_not_no_space_when_room_would_not_have_helped() {
    let bench = bench("3+2").await;
    (0..3).for_each(|k| bench.kill(k));
    bench.nodes.set_full(3, true);
    let error = bench.try_store(bench.stripe.next_id(), 5000, false).await.unwrap_err();
    assert!(matches!(error, Error::TooFewNodes(_)), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_fenced_mount_is_read_only() {
    let bench = bench("3+2").await;
    let record = bench.store(5000).await;
    assert!(!bench.stripe.is_taken_over().await);
    bench.nodes.fence(EPOCH + 1);
    assert!(bench.stripe.is_taken_over().await);
    let error = bench.try_store(bench.stripe.next_id(), 5000, false).await.unwrap_err();
    assert!(matches!(error, Error::ReadOnly), "{error:?}");
    bench.check(&record).await;
}

/// Somebody was denied the volume by most nodes; the others had lost their lease, and granted him an epoch.
#[tokio::test(start_paused = true)]
async fn a_mount_that_few_nodes_fence_goes_on_without_them() {
    let bench = bench("3+2").await;
    for k in 0..2 {
        bench.nodes.fence_one(k, EPOCH + 1);
        assert!(!bench.stripe.is_taken_over().await);
        let record = bench.store(5000).await;
        bench.check(&record).await;
        assert_eq!(record.exceptions.len(), k + 1);
        bench.stripe.put_root(&format!("{JOURNAL_PREFIX}{k}"), "entry".into()).await.unwrap();
        assert_eq!(bench.stripe.move_home(&record).await.unwrap(), record.exceptions);
    }
    bench.nodes.fence_one(2, EPOCH + 1);
    assert!(bench.stripe.is_taken_over().await);
    let error = bench.try_store(bench.stripe.next_id(), 5000, false).await.unwrap_err();
    assert!(matches!(error, Error::ReadOnly), "{error:?}");
    let error = bench.stripe.put_root(&format!("{JOURNAL_PREFIX}2"), "entry".into()).await.unwrap_err();
    assert!(matches!(error, Error::ReadOnly), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn codes_with_one_parity_fragment_go_on_without_a_margin() {
    for code in ["2+1", "1+1"] {
        let bench = bench(code).await;
        let healthy = bench.store(5000).await;
        bench.kill(0);
        let degraded = bench.store(5000).await;
        bench.check(&healthy).await;
        bench.check(&degraded).await;
        assert!(!degraded.exceptions.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn four_of_fourteen_nodes_may_be_dead_for_ten_plus_four() {
    for dead in [[0, 1, 2, 3], [3, 6, 9, 12], [10, 11, 12, 13]] {
        let bench = bench("10+4").await;
        dead.iter().for_each(|&k| bench.kill(k));
        let record = bench.store(300_000).await;
        bench.stripe.settle().await;
        let record = bench.updated(record);
        assert_eq!(bench.nodes.loads(&record.id.key()), [2, 2, 2, 2, 1, 1, 1, 1, 1, 1]);
        bench.check(&record).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_leaves_nothing_being_kept() {
    let bench = bench("3+2").await;
    (0..2).for_each(|k| bench.harm(k, Verb::Put, Fault::Hang));
    let store = bench.try_store(bench.stripe.next_id(), 5000, false);
    tokio::time::timeout(Duration::from_millis(10), store).await.unwrap_err();
    bench.stripe.settle().await;
    bench.stripe.flush().await.unwrap();
    assert_eq!(bench.stripe.status().unflushed_bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn ids_are_never_given_twice() {
    let bench = bench("1+1").await;
    let ids: Vec<ObjectId> = (0..100).map(|_| bench.stripe.next_id()).collect();
    assert!(ids.is_sorted_by(|a, b| a < b) && ids.iter().all(|id| id.epoch == EPOCH));
}
