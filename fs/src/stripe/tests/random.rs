//! Everything at once, by seed.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::*;
use common::wire::RefusalCode;

/// Everything goes wrong now and then, and one node after the other is killed, crashes or is started again. What was
/// acknowledged is read back, and never a wrong byte.
#[tokio::test(start_paused = true)]
async fn nothing_acknowledged_is_lost_whatever_goes_wrong() {
    let seeds: Vec<u64> = match std::env::var("AVIDFS_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..12).collect(),
    };
    for seed in seeds {
        println!("repeat with AVIDFS_SEED={seed} cargo test -p avidfs nothing_acknowledged_is_lost");
        run(seed).await;
    }
}

async fn run(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let code = *["3+2", "2+2", "4+2", "10+4"].choose(&mut random).unwrap();
    let mut options = options(code);
    options.unflushed_bytes = 4 << 20;
    let bench = Bench::new(options.code.n() + random.random_range(0..3), options).await;
    bench.faulty.add(Rule::always(Fault::Lose).chance(0.01));
    bench.faulty.add(Rule::always(Fault::LoseAnswer).chance(0.01));
    bench.faulty.add(Rule::always(Fault::Delay(Duration::from_millis(700))).chance(0.02));
    bench.faulty.add(Rule::always(Fault::Hang).chance(0.003));
    bench.faulty.add(Rule::always(Fault::CorruptFragment).on(Verb::Get).chance(0.02));
    bench.faulty.add(Rule::always(Fault::Swap).on(Verb::Get).chance(0.02));
    bench.faulty.add(Rule::always(Fault::Refuse(RefusalCode::Busy)).chance(0.02));
    let mut records: Vec<ObjectRecord> = Vec::new();
    for _ in 0..120 {
        match random.random_range(0..10) {
            0..=4 => {
                let length = random.random_range(1..200_000);
                let flush = random.random_bool(0.2);
                if let Ok(record) = bench.try_store(bench.stripe.next_id(), length, flush).await {
                    records.push(record);
                }
            }
            5 => {
                if let Err(error) = bench.stripe.flush().await {
                    println!("not now: {error}");
                }
            }
            6 => {
                let k = random.random_range(0..bench.count);
                bench.nodes.restart(k);
            }
            // One node's power fails: what it had not flushed is still with us.
            7 => {
                let k = random.random_range(0..bench.count);
                bench.nodes.crash(k);
            }
            8 => {
                let k = random.random_range(0..bench.count);
                bench.kill(k);
                tokio::time::sleep(Duration::from_millis(random.random_range(0..3000))).await;
                bench.nodes.set_alive(k, true);
            }
            _ => {
                if let Some(record) = records.choose(&mut random) {
                    let record = record.clone();
                    match read(&bench.cold(), &record, 0..record.length).await {
                        Ok(found) => assert!(found == bytes_of(record.id, record.length as usize)),
                        Err(error) => println!("not now: {error}"),
                    }
                }
            }
        }
        update(&bench, &mut records);
    }
    bench.faulty.clear();
    tokio::time::sleep(Duration::from_secs(30)).await;
    bench.stripe.flush().await.unwrap();
    bench.stripe.settle().await;
    update(&bench, &mut records);
    bring_all_home(&bench, &mut records).await;
    (0..bench.count).for_each(|k| bench.nodes.crash(k));
    let p = bench.stripe.options.code.p();
    rand::seq::index::sample(&mut random, bench.count, p).into_iter().for_each(|k| bench.kill(k));
    for record in &records {
        bench.check(record).await;
    }
}

fn update(bench: &Bench, records: &mut [ObjectRecord]) {
    for (id, exceptions) in bench.stripe.take_placement_changes() {
        if let Some(record) = records.iter_mut().find(|record| record.id == id) {
            record.exceptions = exceptions;
        }
    }
}

/// After this any p nodes may be lost.
async fn bring_all_home(bench: &Bench, records: &mut [ObjectRecord]) {
    for record in records.iter_mut().filter(|record| !record.exceptions.is_empty()) {
        let before = std::mem::take(&mut record.exceptions);
        record.exceptions.clone_from(&before);
        record.exceptions = bench.stripe.move_home(record).await.unwrap();
        assert_eq!(record.exceptions, []);
        bench.stripe.drop_guests(record, &before).await;
    }
}
