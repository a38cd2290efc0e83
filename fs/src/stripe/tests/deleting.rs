//! Deletes are confirmed by every holder or not at all.

use super::*;

#[tokio::test(start_paused = true)]
async fn deleting_takes_one_request_per_node_and_leaves_nothing() {
    let bench = bench("3+2").await;
    let records = bench.store_many(20, 1000).await;
    let deleted = bench.stripe.delete(&records).await;
    assert_eq!(deleted, records.iter().map(|record| record.id).collect::<Vec<_>>());
    assert_eq!((bench.requests(Verb::Batch), bench.nodes.count()), (5, 0));
    assert_eq!(bench.stripe.status().unflushed_bytes, 0);
    assert!(read(&bench.stripe, &records[0], 0..1000).await.is_err(), "not from memory either");
    assert!(bench.stripe.delete(&records).await.len() == 20, "what is gone is gone");
}

#[tokio::test(start_paused = true)]
async fn only_what_every_holder_confirmed_is_deleted() {
    let bench = Bench::new(7, options("3+2")).await;
    bench.kill(2);
    let mut records = Vec::new();
    for _ in 0..20 {
        let record = bench.store(1000).await;
        bench.stripe.settle().await;
        records.push(bench.updated(record));
    }
    let touches = |record: &ObjectRecord| bench.homes(record.id).contains(&2);
    let free: Vec<ObjectId> = records.iter().filter(|r| !touches(r)).map(|r| r.id).collect();
    assert!(!free.is_empty() && free.len() < 20);
    assert_eq!(bench.stripe.delete(&records).await, free);
    bench.revive(2).await;
    assert_eq!(bench.stripe.delete(&records).await.len(), 20);
    assert_eq!(bench.nodes.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lost_or_refused_delete_is_not_confirmed() {
    let bench = bench("3+2").await;
    let record = bench.store(1000).await;
    for fault in [Fault::Lose, Fault::LoseAnswer, Fault::Hang] {
        let fault = bench.fault(1, Verb::Batch, fault);
        assert!(bench.stripe.delete(std::slice::from_ref(&record)).await.is_empty());
        bench.faulty.remove(fault);
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    assert_eq!(bench.stripe.delete(std::slice::from_ref(&record)).await, [record.id]);
}

#[tokio::test(start_paused = true)]
async fn guests_are_asked_too() {
    let bench = Bench::new(7, options("3+2")).await;
    bench.kill(0);
    let mut handed_off = None;
    while handed_off.is_none() {
        let record = bench.store(1000).await;
        bench.stripe.settle().await;
        handed_off = Some(bench.updated(record)).filter(|record| !record.exceptions.is_empty());
    }
    bench.revive(0).await;
    let record = handed_off.unwrap();
    let before = bench.nodes.loads(&record.id.key());
    assert_eq!(before, [1; 5]);
    assert_eq!(bench.stripe.delete(std::slice::from_ref(&record)).await, [record.id]);
    assert!(bench.nodes.loads(&record.id.key()).is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_object_still_being_sent_is_deleted_later() {
    let bench = bench("3+2").await;
    bench.fault(1, Verb::Put, Fault::Delay(Duration::from_millis(500)));
    let record = bench.store(1000).await;
    assert!(bench.stripe.delete(std::slice::from_ref(&record)).await.is_empty());
    bench.stripe.settle().await;
    assert_eq!(bench.stripe.delete(std::slice::from_ref(&record)).await, [record.id]);
    assert_eq!(bench.nodes.count(), 0);
    assert!(bench.stripe.take_placement_changes().is_empty());
}
