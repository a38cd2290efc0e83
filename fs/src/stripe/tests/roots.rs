//! The journal's entries beside nodes that fall silent without being known to be down.

use common::wire::JOURNAL_PREFIX;
use tokio::time::Instant;

use super::*;
use crate::pool::NodeState;

fn key(number: u64) -> String {
    format!("{JOURNAL_PREFIX}{number}")
}

async fn put(bench: &Bench, number: u64) -> usize {
    bench.stripe.put_root(&key(number), Bytes::from(key(number))).await.unwrap().len()
}

async fn seconds<T>(work: impl Future<Output = T>) -> (T, f64) {
    let began = Instant::now();
    let done = work.await;
    (done, began.elapsed().as_secs_f64())
}

#[tokio::test(start_paused = true)]
async fn an_entry_waits_for_a_silent_node_once_and_then_no_more() {
    let bench = bench("3+2").await;
    bench.harm(4, Verb::Put, Fault::Hang);
    let (kept, waited) = seconds(put(&bench, 1)).await;
    assert!(kept == 4 && (1.9..2.5).contains(&waited), "{kept} nodes after {waited} s");
    let (kept, waited) = seconds(put(&bench, 2)).await;
    assert!(kept == 4 && waited < 0.1, "{kept} nodes after {waited} s");
}

#[tokio::test(start_paused = true)]
async fn keys_are_listed_beside_a_silent_node() {
    let bench = bench("3+2").await;
    put(&bench, 1).await;
    bench.harm(0, Verb::List, Fault::Hang);
    let (found, waited) = seconds(bench.stripe.root_keys_of(JOURNAL_PREFIX, 3)).await;
    assert!((1.9..2.5).contains(&waited), "{waited} s");
    assert_eq!((found.answered.len(), found.silent.len()), (4, 1));
    assert_eq!(found.keys[&key(1)].len(), 4);
    // Who needs to hear of everybody waits until it is known that one is down.
    let (found, waited) = seconds(bench.stripe.root_keys(JOURNAL_PREFIX)).await;
    assert!(waited > 5.0 && found.answered.len() == 4, "{waited} s");
    bench.harm(0, Verb::Info, Fault::Hang);
    bench.until(|| bench.stripe.is_down(id(0))).await;
    let (found, waited) = seconds(bench.stripe.root_keys(JOURNAL_PREFIX)).await;
    assert!(waited < 2.5 && found.answered.len() == 4, "{waited} s");
}

#[tokio::test(start_paused = true)]
async fn an_entry_is_read_and_copied_beside_a_silent_node() {
    let bench = bench("3+2").await;
    bench.kill(1);
    put(&bench, 1).await;
    bench.revive(1).await;
    bench.harm(0, Verb::Status, Fault::Hang);
    let found = bench.stripe.root_keys(JOURNAL_PREFIX).await;
    let (spread, waited) = seconds(bench.stripe.spread_roots(&found, &[key(1)], |_, _| Ok(()))).await;
    assert_eq!(spread.unwrap(), (1, true));
    assert!(waited < 2.5, "{waited} s");
}

/// Each entry was waited for on its own: whoever wanted to write the journal stood behind all of them.
#[tokio::test(start_paused = true)]
async fn many_entries_are_copied_to_a_slow_node_a_few_at_a_time() {
    let bench = bench("3+2").await;
    bench.kill(1);
    for number in 1..=20 {
        put(&bench, number).await;
    }
    bench.revive(1).await;
    bench.harm(1, Verb::Put, Fault::Delay(Duration::from_millis(300)));
    let keys: Vec<String> = (1..=20).map(key).collect();
    let (mut rounds, mut is_complete) = (0, false);
    while !is_complete {
        let found = bench.stripe.root_keys(JOURNAL_PREFIX).await;
        let (spread, waited) = seconds(bench.stripe.spread_roots(&found, &keys, |_, _| Ok(()))).await;
        assert!(waited < 2.5, "{waited} s");
        (rounds, is_complete) = (rounds + 1, spread.unwrap().1);
    }
    assert!((3..7).contains(&rounds), "four of them fit into one round: {rounds} rounds");
}

/// The last of a round had what was left of its time, a few milliseconds: the node was taken for one that is down.
#[tokio::test(start_paused = true)]
async fn a_node_that_catches_up_slowly_is_not_taken_for_one_that_is_down() {
    let bench = bench("3+2").await;
    bench.kill(1);
    for number in 1..=20 {
        put(&bench, number).await;
    }
    bench.revive(1).await;
    bench.harm(1, Verb::Put, Fault::Delay(Duration::from_millis(390)));
    let keys: Vec<String> = (1..=20).map(key).collect();
    let mut is_complete = false;
    while !is_complete {
        let found = bench.stripe.root_keys(JOURNAL_PREFIX).await;
        is_complete = bench.stripe.spread_roots(&found, &keys, |_, _| Ok(())).await.unwrap().1;
        assert!(!bench.stripe.is_down(id(1)));
    }
}

#[tokio::test(start_paused = true)]
async fn entries_are_deleted_beside_a_silent_node() {
    let bench = bench("3+2").await;
    put(&bench, 1).await;
    bench.harm(3, Verb::Batch, Fault::Hang);
    let ((), waited) = seconds(bench.stripe.delete_roots(&[key(1)])).await;
    assert!(waited <= bench.stripe.options.io_limit.as_secs_f64(), "{waited} s");
    assert_eq!(bench.stripe.root_keys(JOURNAL_PREFIX).await.keys[&key(1)], [id(3)]);
}

/// A chain has thousands of entries, and each was asked of the first node that has it, however slow.
#[tokio::test(start_paused = true)]
async fn entries_are_read_of_others_once_a_node_is_slow() {
    let bench = bench("3+2").await;
    for number in 1..=20 {
        put(&bench, number).await;
    }
    bench.harm(0, Verb::Status, Fault::Delay(Duration::from_millis(500)));
    let nodes: Vec<_> = (0..5).map(id).collect();
    let reading = async {
        for number in 1..=20 {
            let entry = bench.stripe.get_root(&key(number), &nodes, |bytes| Ok(bytes.clone())).await.unwrap();
            assert_eq!(entry, key(number));
        }
    };
    let ((), waited) = seconds(reading).await;
    assert!(waited < 0.5, "{waited} s");
    assert_eq!(bench.pool.state(id(0)), NodeState::Lagging);
    // Where only that one has it, it is waited for.
    let ((), waited) = seconds(async {
        bench.stripe.get_root(&key(1), &nodes[..1], |_| Ok(())).await.unwrap();
    })
    .await;
    assert!(waited >= 0.5, "{waited} s");
}
