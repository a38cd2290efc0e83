//! Fragments come home, and where they are is told.

use super::*;
use crate::error::Error;
use crate::stripe::Presence;

/// An object written while two nodes were dead, and the nodes alive again.
async fn handed_off(bench: &Bench, dead: &[usize]) -> ObjectRecord {
    dead.iter().for_each(|&k| bench.kill(k));
    let record = bench.store_flushed(90_000).await;
    bench.stripe.settle().await;
    for &k in dead {
        bench.revive(k).await;
    }
    bench.updated(record)
}

async fn brought_home(bench: &Bench, record: &ObjectRecord) -> ObjectRecord {
    let exceptions = bench.stripe.move_home(record).await.unwrap();
    let moved = ObjectRecord { exceptions, ..record.clone() };
    assert!(bench.stripe.drop_guests(&moved, &record.exceptions).await);
    moved
}

#[tokio::test(start_paused = true)]
async fn handed_off_fragments_move_home_and_no_node_keeps_two() {
    for dead in choices(5, 2) {
        let bench = bench("3+2").await;
        let record = handed_off(&bench, &dead).await;
        assert_eq!((record.exceptions.len(), bench.nodes.loads(&record.id.key())), (2, vec![2, 2, 1]));
        let record = brought_home(&bench, &record).await;
        assert_eq!(record.exceptions, []);
        assert_eq!(bench.nodes.loads(&record.id.key()), [1; 5]);
        assert_eq!(bench.flushed(&record), 5);
        bench.check(&record).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_lies_or_is_dead_does_not_matter() {
    for lies in [true, false] {
        let bench = bench("3+2").await;
        let record = handed_off(&bench, &[0, 1]).await;
        let guest = record.exceptions[0].node.unwrap();
        let guest = (0..5).find(|&k| id(k) == guest).unwrap();
        if lies {
            bench.fault(guest, Verb::Get, Fault::CorruptFragment);
        } else {
            bench.kill(guest);
        }
        // One of three holders is gone, and with it two fragments: the other three are enough.
        let exceptions = bench.stripe.move_home(&record).await.unwrap();
        assert_eq!(exceptions, []);
        bench.faulty.clear();
        bench.check(&ObjectRecord { exceptions, ..record }).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_nobody_keeps_is_rebuilt_data_and_parity_alike() {
    for index in 0..5 {
        let bench = bench("3+2").await;
        let record = bench.store_flushed(90_000).await;
        let home = bench.homes(record.id)[index];
        bench.nodes.lose(home, &record.id.key());
        let lost = ObjectRecord {
            exceptions: vec![crate::metadata::Exception { index: index as u8, node: None }],
            ..record.clone()
        };
        assert_eq!(bench.stripe.move_home(&lost).await.unwrap(), []);
        assert_eq!(bench.nodes.held(home, &record.id.key()), [(index as u8, true)]);
        bench.check(&record).await;
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_home_is_down_the_guest_keeps_it() {
    let bench = bench("3+2").await;
    bench.kill(0);
    let record = bench.store_flushed(90_000).await;
    let record = bench.updated(record);
    let moved = brought_home(&bench, &record).await;
    assert_eq!(moved, record);
    assert_eq!(bench.nodes.loads(&record.id.key()), [2, 1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_rebuilt_is_said() {
    let bench = bench("3+2").await;
    let record = handed_off(&bench, &[0, 1]).await;
    (2..5).for_each(|k| bench.nodes.lose(k, &record.id.key()));
    let error = bench.stripe.move_home(&record).await.unwrap_err();
    assert!(matches!(error, Error::Unreadable { .. }), "{error}");
}

/// What an earlier mount left half stored is brought home before the first entry of the journal; a mount that was taken
/// over from before that heard of nodes that were down, and went on trying.
#[tokio::test(start_paused = true)]
async fn who_was_taken_over_from_brings_nothing_home_and_hears_why() {
    let bench = bench("3+2").await;
    let record = handed_off(&bench, &[0, 1]).await;
    bench.nodes.fence(EPOCH + 1);
    let error = bench.stripe.move_home(&record).await.unwrap_err();
    assert!(matches!(error, Error::ReadOnly), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn locate_tells_where_each_fragment_is_and_whether_it_is_there() {
    let bench = bench("3+2").await;
    bench.kill(0);
    let record = bench.store_flushed(90_000).await;
    let record = bench.updated(record);
    let homes = bench.homes(record.id);
    let away = homes.iter().position(|&k| k == 0).unwrap();
    let places = bench.stripe.locate(&record).await;
    for (index, place) in places.iter().enumerate() {
        assert_eq!((usize::from(place.index), place.at_home), (index, index != away));
        assert_eq!(place.presence, Presence::Present);
    }
    let guest = (0..5).find(|&k| Some(id(k)) == places[away].node).unwrap();
    assert_eq!(places[away].address, Some(at(guest)));

    bench.nodes.lose(guest, &record.id.key());
    let other = (1..5).find(|&k| k != guest).unwrap();
    bench.kill(other);
    for place in bench.stripe.locate(&record).await {
        let expected = match place.node.unwrap() {
            node if node == id(guest) => Presence::Absent,
            node if node == id(other) => Presence::Unknown("refused the connection".into()),
            _ => Presence::Present,
        };
        assert_eq!(place.presence, expected);
    }
}

/// Its home kept the fragments of two that were dead when it took back its own as well: with that one node the object was
/// lost, which before survived any.
#[tokio::test(start_paused = true)]
async fn nothing_goes_home_where_too_much_lies_already() {
    let bench = bench("3+2").await;
    let dead = [0, 1];
    dead.iter().for_each(|&k| bench.kill(k));
    let record = bench.store_flushed(90_000).await;
    bench.stripe.settle().await;
    let homes = bench.homes(record.id);
    let index_of = |k: usize| homes.iter().position(|&home| home == k).unwrap() as u8;
    let keeps = |index, k| crate::metadata::Exception { index, node: Some(id(k)) };
    // Node 2 keeps what belongs to both, and node 3 what belongs to node 2.
    let mut exceptions = vec![keeps(index_of(0), 2), keeps(index_of(1), 2), keeps(index_of(2), 3)];
    exceptions.sort_by_key(|exception| exception.index);
    let uneven = ObjectRecord { exceptions, ..record };
    assert!(!bench.stripe.can_move_home(&uneven));
    assert_eq!(bench.stripe.move_home(&uneven).await.unwrap(), uneven.exceptions);
    for k in dead {
        bench.revive(k).await;
    }
    assert!(bench.stripe.can_move_home(&uneven));
    assert_eq!(bench.stripe.move_home(&uneven).await.unwrap(), []);
    bench.check(&ObjectRecord { exceptions: Vec::new(), ..uneven }).await;
}
