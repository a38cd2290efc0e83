//! Reads: cheap when all is well, right whatever nodes do.

use tokio::time::Instant;

use super::*;
use crate::error::Error;
use crate::metadata::Exception;
use crate::pool::{NodeState, Outcome};

#[tokio::test(start_paused = true)]
async fn every_range_is_what_it_should_be() {
    for code in ["3+2", "1+1", "10+4"] {
        let bench = bench(code).await;
        let record = bench.store(1000).await;
        let all = bytes_of(record.id, 1000);
        let (cold, uncached) = (bench.cold(), bench.uncached());
        for (start, end) in
            [(0, 1000), (0, 1), (999, 1000), (333, 335), (334, 667), (100, 900), (0, 0), (990, 2000)]
        {
            let expected = &all[start as usize..(end as usize).min(1000)];
            for stripe in [&bench.stripe, &cold, &uncached] {
                assert_eq!(
                    read(stripe, &record, start..end).await.unwrap(),
                    expected,
                    "{code} {start}..{end}"
                );
            }
        }
        assert_eq!(read(&cold, &record, 1000..1001).await.unwrap(), "");
    }
}

#[tokio::test(start_paused = true)]
async fn a_healthy_read_asks_only_for_the_data_it_needs_and_only_once() {
    let bench = bench("3+2").await;
    let record = bench.store(90_000).await;
    let cold = bench.cold();
    read(&cold, &record, 10..20).await.unwrap();
    assert_eq!(bench.requests(Verb::Get), 1);
    check(&cold, &record).await;
    check(&cold, &record).await;
    assert_eq!(bench.requests(Verb::Get), 3);
    assert_eq!(cold.status().degraded_reads, 0);
    let pieces = cold.read_cached(record.id, record.code, record.length, 0..record.length).unwrap();
    assert_eq!(pieces.concat(), bytes_of(record.id, 90_000));
}

#[tokio::test(start_paused = true)]
async fn small_objects_are_fetched_ahead_with_one_request_to_each_node() {
    let bench = bench("3+2").await;
    let records = bench.store_many(50, 4000).await;
    let cold = bench.cold();
    let before = bench.requests(Verb::Batch);
    cold.fetch_ahead(records.clone());
    for record in &records {
        check(&cold, record).await;
    }
    assert_eq!((bench.requests(Verb::Get), bench.requests(Verb::Batch) - before), (0, 5));
}

#[tokio::test(start_paused = true)]
async fn what_does_not_come_with_others_is_asked_for_alone_and_waited_for_once() {
    for fault in [Fault::Hang, Fault::CorruptFragment, Fault::Lose] {
        let bench = bench("3+2").await;
        let records = bench.store_many(50, 4000).await;
        let cold = bench.cold();
        bench.harm(1, Verb::Batch, fault);
        cold.fetch_ahead(records.clone());
        let began = Instant::now();
        for record in &records {
            check(&cold, record).await;
        }
        assert!(bench.requests(Verb::Get) >= 20, "those of one node, of fifty objects");
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }
    // One that a node lost is decoded from the others'.
    let bench = bench("3+2").await;
    let records = bench.store_many(5, 4000).await;
    bench.nodes.lose(0, &records[2].id.key());
    let cold = bench.cold();
    cold.fetch_ahead(records.clone());
    for record in &records {
        check(&cold, record).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_flushed_yet_is_read_from_memory() {
    let bench = bench("3+2").await;
    let record = bench.store(90_000).await;
    assert!(bench.stripe.read_cached(record.id, record.code, record.length, 5..50_000).is_some());
    check(&bench.stripe, &record).await;
    assert_eq!(bench.requests(Verb::Get), 0);
}

#[tokio::test(start_paused = true)]
async fn any_two_of_five_may_be_dead_and_are_noticed_once() {
    for size in 1..=2 {
        for dead in choices(5, size) {
            let bench = bench("3+2").await;
            let records = [bench.store(90_000).await, bench.store(300_000).await, bench.store(7).await];
            dead.iter().for_each(|&k| bench.kill(k));
            let began = Instant::now();
            for record in &records {
                bench.check(record).await;
            }
            assert_eq!(began.elapsed(), Duration::ZERO);
            let to_the_dead: u64 = dead.iter().map(|&k| bench.faulty.count(&at(k), Verb::Get)).sum();
            assert!(to_the_dead <= size as u64, "{to_the_dead} requests to {dead:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn as_many_as_p_may_be_dead_with_every_code() {
    for code in ["10+4", "2+2", "2+1", "1+1", "4+2"] {
        let bench = bench(code).await;
        let record = bench.store(200_000).await;
        let p = bench.stripe.options.code.p();
        for dead in choices(bench.count, p).into_iter().step_by(17) {
            dead.iter().for_each(|&k| bench.kill(k));
            bench.check(&record).await;
            for &k in &dead {
                bench.revive(k).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn too_few_good_fragments_are_unreadable_at_once_and_readable_when_a_node_returns() {
    let bench = bench("3+2").await;
    let record = bench.store(90_000).await;
    (0..3).for_each(|k| bench.kill(k));
    let cold = bench.cold();
    let began = Instant::now();
    let error = read(&cold, &record, 0..90_000).await.unwrap_err();
    assert_eq!(began.elapsed(), Duration::ZERO);
    let Error::Unreadable { object, reason } = &error else { panic!("{error}") };
    assert_eq!(*object, record.id);
    assert!(reason.starts_with("2 good fragments of 3 needed: "), "{reason}");
    assert!((0..3).all(|k| reason.contains(&format!("memory:{k} refused the connection"))), "{reason}");
    bench.nodes.set_alive(1, true);
    check(&cold, &record).await;
}

/// Every way to lie, by one node and by two; objects of several sizes are read so that there is something to swap.
#[tokio::test(start_paused = true)]
async fn a_liar_yields_no_wrong_byte_and_costs_one_more_request() {
    for fault in [Fault::CorruptFragment, Fault::CorruptFpcc, Fault::Stale, Fault::Swap] {
        for liars in choices(5, 1).into_iter().chain(choices(5, 2)) {
            let bench = bench("3+2").await;
            let mut records = Vec::new();
            for length in [90_000, 90_000, 30, 30, 90_000] {
                records.push(bench.store(length).await);
            }
            for &k in &liars {
                bench.fault(k, Verb::Get, fault);
            }
            for record in &records {
                let before = bench.requests(Verb::Get);
                bench.check(record).await;
                let extra = bench.requests(Verb::Get) - before - 3;
                assert!(extra <= liars.len() as u64, "{fault:?} by {liars:?}: {extra} more requests");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_liar_is_counted_and_asked_last() {
    let bench = bench("3+2").await;
    let record = bench.store(90_000).await;
    let liar = bench.homes(record.id)[0];
    bench.fault(liar, Verb::Get, Fault::CorruptFragment);
    let cold = bench.cold();
    check(&cold, &record).await;
    assert_eq!(cold.status().lies, [(id(liar), 1)].into());
    assert_eq!(bench.pool.state(id(liar)), NodeState::Suspect);
    let asked = bench.faulty.count(&at(liar), Verb::Get);
    bench.check(&record).await;
    assert_eq!(bench.faulty.count(&at(liar), Verb::Get), asked);
}

#[tokio::test(start_paused = true)]
async fn with_three_liars_of_five_a_read_fails_rather_than_lies() {
    for fault in [Fault::CorruptFragment, Fault::Swap] {
        for liars in choices(5, 3) {
            let bench = bench("3+2").await;
            let (first, second) = (bench.store(90_000).await, bench.store(90_000).await);
            // So that each node has an answer to give again.
            for index in 0..5 {
                let deadline = Instant::now() + Duration::from_secs(1);
                bench.uncached().fragment(&first, index, deadline).await.unwrap();
            }
            for &k in &liars {
                bench.fault(k, Verb::Get, fault);
            }
            let found = read(&bench.cold(), &second, 0..90_000).await;
            assert!(matches!(found, Err(Error::Unreadable { .. })), "{fault:?} by {liars:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_hung_node_is_hedged_and_then_avoided() {
    let bench = bench("3+2").await;
    let record = bench.store(90_000).await;
    let hung = bench.homes(record.id)[1];
    bench.fault(hung, Verb::Get, Fault::Hang);
    let cold = bench.cold();
    let began = Instant::now();
    check(&cold, &record).await;
    assert!(began.elapsed() <= Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!((bench.requests(Verb::Get), cold.status().hedges), (4, 1));
    let began = Instant::now();
    bench.check(&record).await;
    assert_eq!(began.elapsed(), Duration::ZERO, "it lags, and others are asked");
}

/// What is usual of a node that is always slow is slow, too: that is no reason to wait for it.
#[tokio::test(start_paused = true)]
async fn a_node_that_is_always_slow_is_not_waited_for_each_time() {
    let bench = bench("3+2").await;
    for k in 0..5 {
        let late = Duration::from_millis(if k == 0 { 500 } else { 2 });
        bench.harm(k, Verb::Get, Fault::Delay(late));
        let boot = bench.pool.boot(id(k)).unwrap();
        (0..20).for_each(|_| bench.pool.report(id(k), Outcome::Ok { latency: late, boot }));
    }
    let records = bench.store_many(40, 90_000).await;
    let (cold, began) = (bench.cold(), Instant::now());
    for record in &records {
        check(&cold, record).await;
    }
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn three_hung_nodes_end_the_read_within_the_limit() {
    let bench = bench("3+2").await;
    let record = bench.store(90_000).await;
    (0..3).for_each(|k| bench.harm(k, Verb::Get, Fault::Hang));
    (0..3).for_each(|k| bench.harm(k, Verb::Batch, Fault::Hang));
    let began = Instant::now();
    let error = read(&bench.cold(), &record, 0..90_000).await.unwrap_err();
    assert!(began.elapsed() <= bench.stripe.options.io_limit, "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_passing_fault_is_tried_again_before_giving_up() {
    let bench = bench("3+2").await;
    let record = bench.store(90_000).await;
    bench.faulty.add(Rule::always(Fault::LoseAnswer).on(Verb::Get).times(4));
    bench.check(&record).await;
}

#[tokio::test(start_paused = true)]
async fn readers_of_one_object_share_its_requests() {
    let bench = bench("3+2").await;
    let record = bench.store(90_000).await;
    bench.faulty.add(Rule::always(Fault::Delay(Duration::from_millis(5))).on(Verb::Get));
    let cold = bench.cold();
    cold.prefetch(record.clone());
    let reads = (0..40).map(|i| read(&cold, &record, i * 1000..90_000 - i * 1000));
    futures_util::future::try_join_all(reads).await.unwrap();
    assert_eq!(bench.requests(Verb::Get), 3);
}

#[tokio::test(start_paused = true)]
async fn a_degraded_object_is_fetched_and_decoded_once() {
    let bench = bench("3+2").await;
    let record = bench.store(90_000).await;
    let homes = bench.homes(record.id);
    (0..2).for_each(|index| bench.kill(homes[index]));
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    let cold = bench.cold();
    read(&cold, &record, 0..100).await.unwrap();
    check(&cold, &record).await;
    assert_eq!((bench.requests(Verb::Get), cold.status().degraded_reads), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn prefetch_brings_all_data_and_is_bounded() {
    let bench = Bench::new(5, StripeOptions { prefetches: 2, ..options("3+2") }).await;
    let records = bench.store_many(5, 9000).await;
    let cold = bench.cold();
    records.iter().for_each(|record| cold.prefetch(record.clone()));
    let cached = |record: &ObjectRecord| {
        cold.read_cached(record.id, record.code, record.length, 0..record.length).is_some()
    };
    bench.until(|| cached(&records[0]) && cached(&records[1])).await;
    assert!(!cached(&records[2]));
    assert_eq!(bench.requests(Verb::Get), 6);
}

/// The record is older than what lies where: a guest it names has nothing, homes it does not trust have everything.
#[tokio::test(start_paused = true)]
async fn a_record_that_is_out_of_date_is_read_all_the_same() {
    let bench = bench("3+2").await;
    let mut record = bench.store(90_000).await;
    let stranger = Some(id(bench.homes(record.id)[3]));
    record.exceptions = vec![
        Exception { index: 0, node: stranger },
        Exception { index: 1, node: None },
        Exception { index: 4, node: None },
    ];
    bench.check(&record).await;
}

#[tokio::test(start_paused = true)]
async fn fragments_that_lie_where_nobody_said_are_found() {
    let bench = Bench::new(9, options("3+2")).await;
    let mut record = bench.store(90_000).await;
    let homes = bench.homes(record.id);
    let empty: Vec<usize> = (0..9).filter(|k| !homes.contains(k)).collect();
    record.exceptions =
        (0..3).map(|index| Exception { index, node: Some(id(empty[usize::from(index)])) }).collect();
    homes[3..].iter().for_each(|&k| bench.kill(k));
    bench.check(&record).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_fragment_is_read_around_and_told() {
    let bench = bench("3+2").await;
    let record = bench.store_flushed(90_000).await;
    let loser = bench.homes(record.id)[1];
    bench.nodes.lose(loser, &record.id.key());
    check(&bench.uncached(), &record).await;
    let cold = bench.cold();
    check(&cold, &record).await;
    cold.placement_changed().await;
    assert_eq!((cold.take_losses(), cold.take_placement_changes()), (vec![(record.id, 1)], vec![]));
}
