//! The pool on scripted nodes and a paused clock.

use super::members::{SUSPICION, SUSPICION_MOST};
use super::*;
use crate::transport::faulty::{Fault, FaultyTransport, Rule, Verb};
use crate::transport::in_process::InProcessTransport;
use crate::transport::scripted::{BOOT, ScriptedNode};
use common::wire::RefusalCode;
use tokio::sync::broadcast::error::TryRecvError;

const SECOND: Duration = Duration::from_secs(1);

fn id(k: usize) -> NodeId {
    NodeId([k as u8; 16])
}

fn at(k: usize) -> NodeAddress {
    InProcessTransport::address(k)
}

fn refused() -> TransportError {
    TransportError::Unreachable("it refused the connection".into())
}

/// Nodes 0, 1, .. with identities of the same number.
struct Bench {
    nodes: Vec<ScriptedNode>,
    faulty: Arc<FaultyTransport>,
}

impl Bench {
    fn new(count: usize) -> Bench {
        let nodes: Vec<ScriptedNode> = (0..count).map(|_| ScriptedNode::saying("{}")).collect();
        for (k, node) in nodes.iter().enumerate() {
            node.change(|info| info.node = id(k));
        }
        let transport = InProcessTransport::new(nodes.iter().map(ScriptedNode::router));
        Bench { nodes, faulty: FaultyTransport::new(Arc::new(transport), 1) }
    }

    async fn connect(&self) -> Arc<Pool> {
        let addresses = (0..self.nodes.len()).map(at).collect();
        Pool::connect(self.faulty.clone(), addresses, &[], PoolOptions::default()).await.unwrap()
    }

    fn kill(&self, k: usize) {
        self.faulty.add(Rule::always(Fault::Lose).at(&at(k)));
    }
}

fn is_down(pool: &Pool, k: usize) -> bool {
    matches!(pool.state(id(k)), NodeState::Down { .. })
}

fn good(latency: Duration) -> Outcome<'static> {
    Outcome::Ok { latency, boot: BOOT }
}

#[tokio::test]
async fn connecting_knows_who_answers_and_goes_on_without_who_does_not() {
    let bench = Bench::new(3);
    bench.kill(1);
    let pool = bench.connect().await;
    let nodes = pool.nodes();
    assert_eq!(nodes.iter().map(|node| node.identity).collect::<Vec<_>>(), [Some(id(0)), None, Some(id(2))]);
    assert_eq!((nodes[0].state, nodes[0].boot), (NodeState::Up, Some(BOOT)));
    assert_eq!(nodes[0].zone.as_deref(), Some("here"));
    assert!(matches!(nodes[1].state, NodeState::Down { .. }));
    assert_eq!(pool.usable_for_writing(), [id(0), id(2)]);
    assert_eq!(pool.address_of(id(2)), Some(at(2)));
    assert_eq!(pool.space().nodes.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn hung_nodes_delay_connecting_once_not_each() {
    let bench = Bench::new(3);
    bench.faulty.add(Rule::always(Fault::Hang));
    let began = Instant::now();
    bench.connect().await;
    assert_eq!(began.elapsed(), PoolOptions::default().probe_limit);
}

/// One node that answered with anything at all, or said it is another one, kept a volume from being used.
#[tokio::test]
async fn connecting_goes_on_without_who_is_no_node_or_says_it_is_another() {
    let bench = Bench::new(4);
    bench.nodes[1].change(|info| info.node = id(3));
    bench.nodes[2].change(|info| info.wire = 2);
    let known: Vec<_> = (0..4).map(|k| (at(k), id(k))).collect();
    for known in [&known[..], &known[3..]] {
        let addresses = (0..4).map(at).collect();
        let options = PoolOptions::default();
        let pool = Pool::connect(bench.faulty.clone(), addresses, known, options).await.unwrap();
        assert_eq!(pool.usable_for_writing(), [id(0), id(3)]);
        assert_eq!(pool.address_of(id(3)), Some(at(3)), "where it is known to be");
        assert!(is_down(&pool, 1) && is_down(&pool, 2));
    }
    let pool = bench.connect().await;
    assert_eq!(pool.address_of(id(3)), Some(at(1)), "the first, where nothing is known");
}

#[tokio::test]
async fn connecting_refuses_addresses_that_make_no_pool_in_one_sentence() {
    let bench = Bench::new(1);
    for (addresses, sentence) in
        [(vec![], "a pool has at least one node"), (vec![at(0), at(0)], "embedded:0 is given twice")]
    {
        let connected = Pool::connect(bench.faulty.clone(), addresses, &[], PoolOptions::default()).await;
        assert_eq!(connected.map(drop).unwrap_err().to_string(), sentence);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_node_is_noticed_once_and_its_return_too() {
    let bench = Bench::new(2);
    let pool = bench.connect().await;
    let mut events = pool.events();
    bench.kill(1);
    for _ in 0..10 {
        pool.report(id(1), Outcome::Failed(&refused()));
    }
    assert_eq!(events.try_recv(), Ok(PoolEvent::WentDown(id(1))));
    assert_eq!(events.try_recv(), Err(TryRecvError::Empty));
    assert!(is_down(&pool, 1) && !pool.usable_for_reading(id(1)));
    assert_eq!(pool.usable_for_writing(), [id(0)]);

    pool.start();
    tokio::time::sleep(10 * SECOND).await;
    assert!(is_down(&pool, 1));
    bench.faulty.clear();
    let began = Instant::now();
    assert_eq!(events.recv().await, Ok(PoolEvent::Returned(id(1))));
    assert!(began.elapsed() <= SECOND);
    assert_eq!(pool.state(id(1)), NodeState::Up);
}

#[tokio::test(start_paused = true)]
async fn one_timeout_is_enough_and_the_node_is_asked_last_when_only_probes_are_answered() {
    let bench = Bench::new(2);
    let pool = bench.connect().await;
    pool.report(id(0), Outcome::Failed(&TransportError::TimedOut(30 * SECOND)));
    assert!(is_down(&pool, 0));
    let mut events = pool.events();
    pool.start();
    assert_eq!(events.recv().await, Ok(PoolEvent::Returned(id(0))));
    assert_eq!(pool.state(id(0)), NodeState::Lagging);
    assert_eq!(pool.usable_for_writing(), [id(1), id(0)]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_sent_for_before_the_node_went_down_does_not_bring_it_back() {
    let pool = Bench::new(1).connect().await;
    tokio::time::advance(10 * SECOND).await;
    pool.report(id(0), Outcome::Failed(&refused()));
    pool.report(id(0), good(SECOND));
    assert!(is_down(&pool, 0));
    tokio::time::advance(2 * SECOND).await;
    pool.report(id(0), good(SECOND));
    assert_eq!(pool.state(id(0)), NodeState::Up);
}

#[tokio::test]
async fn a_reboot_is_told_once_and_a_late_answer_of_the_run_before_is_none() {
    let pool = Bench::new(1).connect().await;
    let mut events = pool.events();
    let new = BootId([1; 8]);
    for boot in [BOOT, new, BOOT, new] {
        pool.report(id(0), Outcome::Wrote { latency: SECOND, boot });
    }
    assert_eq!(events.try_recv(), Ok(PoolEvent::Rebooted { node: id(0), old: BOOT, new }));
    assert_eq!(events.try_recv(), Err(TryRecvError::Empty));
    assert_eq!(pool.boot(id(0)), Some(new));
}

#[tokio::test(start_paused = true)]
async fn a_full_node_is_read_and_not_written_until_a_probe_finds_room() {
    let bench = Bench::new(1);
    let pool = bench.connect().await;
    bench.nodes[0].change(|info| info.available_bytes = 1000);
    let full = TransportError::Refused { code: RefusalCode::NoSpace, message: "no room".into() };
    pool.report(id(0), Outcome::Failed(&full));
    assert_eq!(pool.state(id(0)), NodeState::Full);
    assert!(pool.usable_for_reading(id(0)) && pool.usable_for_writing().is_empty());
    pool.start();
    tokio::time::sleep(20 * SECOND).await;
    assert_eq!(pool.state(id(0)), NodeState::Full);
    assert_eq!(pool.space().nodes[0].available_bytes, 1000);
    bench.nodes[0].change(|info| info.available_bytes = 500 << 20);
    tokio::time::sleep(6 * SECOND).await;
    assert_eq!(pool.state(id(0)), NodeState::Up);
}

/// On a clock that moves, unlike the others: a node that was never probed was once due at a moment that is always
/// yet to come.
#[tokio::test]
async fn a_node_that_is_up_is_probed_from_the_start() {
    let bench = Bench::new(1);
    let pool = bench.connect().await;
    bench.nodes[0].change(|info| info.used_bytes = 7);
    pool.start();
    let told = async {
        while pool.nodes()[0].info.as_ref().is_none_or(|info| info.used_bytes != 7) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(4 * SECOND, told).await.expect("the first probe is due at once");
}

#[tokio::test(start_paused = true)]
async fn a_liar_is_asked_last_and_longer_each_time() {
    let pool = Bench::new(2).connect().await;
    for expected in [SUSPICION, 2 * SUSPICION, 4 * SUSPICION] {
        pool.report(id(0), Outcome::Lied { what: "the hash differs" });
        assert_eq!(pool.state(id(0)), NodeState::Suspect);
        assert!(!pool.usable_for_reading(id(0)));
        assert_eq!(pool.usable_for_writing(), [id(1), id(0)]);
        tokio::time::advance(expected - SECOND).await;
        assert_eq!(pool.state(id(0)), NodeState::Suspect);
        tokio::time::advance(2 * SECOND).await;
        assert_eq!(pool.state(id(0)), NodeState::Up);
    }
    tokio::time::advance(SUSPICION_MOST + SECOND).await;
    pool.report(id(0), Outcome::Lied { what: "the hash differs" });
    tokio::time::advance(SUSPICION + SECOND).await;
    assert_eq!(pool.state(id(0)), NodeState::Up, "long ago is forgiven");
}

#[tokio::test]
async fn what_a_node_is_being_asked_about_is_moot_once_it_is_absolved() {
    let pool = Bench::new(2).connect().await;
    let folder = tempfile::tempdir().unwrap();
    pool.collect_evidence(Arc::new(Evidence::open(folder.path()).unwrap()));
    let name = FragmentName { key: "an object".into(), version: 1, index: 0 };
    let (before, other) = (pool.inquiry(id(0), &name).unwrap(), pool.inquiry(id(1), &name).unwrap());
    assert_eq!(pool.absolve(id(0)).unwrap(), 0);
    assert!(before.is_moot());
    assert!(!other.is_moot());
    drop(before);
    assert!(!pool.inquiry(id(0), &name).unwrap().is_moot(), "what it gives afterwards is asked about");
}

#[tokio::test(start_paused = true)]
async fn another_identity_at_a_known_address_is_a_new_node() {
    let bench = Bench::new(2);
    let pool = bench.connect().await;
    let mut events = pool.events();
    bench.nodes[1].change(|info| info.node = id(9));
    bench.faulty.add(Rule::always(Fault::Delay(SECOND)));
    pool.start();
    assert_eq!(events.recv().await, Ok(PoolEvent::WentDown(id(1))));
    assert_eq!(events.try_recv(), Ok(PoolEvent::Returned(id(9))), "the same answer told both");
    assert!(is_down(&pool, 1) && pool.address_of(id(1)).is_none());
    assert_eq!((pool.state(id(9)), pool.address_of(id(9))), (NodeState::Up, Some(at(1))));
    assert_eq!((pool.last_address_of(id(1)), pool.last_address_of(id(9))), (Some(at(1)), None));
    pool.remember(&[(at(0), id(5))]);
    assert_eq!(pool.last_address_of(id(5)), Some(at(0)), "as the last mount knew it");
}

#[tokio::test(start_paused = true)]
async fn nodes_that_change_places_are_found_again() {
    let bench = Bench::new(2);
    let pool = bench.connect().await;
    pool.start();
    bench.nodes[0].change(|info| info.node = id(1));
    bench.nodes[1].change(|info| info.node = id(0));
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!((pool.address_of(id(0)), pool.address_of(id(1))), (Some(at(1)), Some(at(0))));
    assert_eq!((pool.state(id(0)), pool.state(id(1))), (NodeState::Up, NodeState::Up));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_turns_up_twice_stays_where_it_was() {
    let bench = Bench::new(2);
    let pool = bench.connect().await;
    let mut events = pool.events();
    pool.start();
    bench.nodes[1].change(|info| info.node = id(0));
    tokio::time::sleep(20 * SECOND).await;
    assert_eq!(events.try_recv(), Ok(PoolEvent::WentDown(id(1))));
    assert_eq!(events.try_recv(), Err(TryRecvError::Empty));
    assert_eq!((pool.address_of(id(0)), pool.state(id(0))), (Some(at(0)), NodeState::Up));
    assert!(is_down(&pool, 1));
}

#[tokio::test(start_paused = true)]
async fn whoever_takes_the_name_of_a_node_that_is_down_does_not_keep_it_from_coming_back() {
    let bench = Bench::new(2);
    let pool = bench.connect().await;
    pool.start();
    bench.kill(0);
    bench.kill(1);
    tokio::time::sleep(5 * SECOND).await;
    bench.nodes[0].change(|info| info.node = id(1));
    bench.faulty.clear();
    bench.kill(1);
    tokio::time::sleep(20 * SECOND).await;
    assert_eq!((pool.address_of(id(1)), pool.state(id(1))), (Some(at(0)), NodeState::Up));
    bench.faulty.clear();
    tokio::time::sleep(20 * SECOND).await;
    assert_eq!((pool.address_of(id(1)), pool.state(id(1))), (Some(at(1)), NodeState::Up));
}

#[tokio::test(start_paused = true)]
async fn a_remembered_node_has_its_name_while_it_is_down() {
    let bench = Bench::new(2);
    bench.kill(1);
    let pool = bench.connect().await;
    let mut events = pool.events();
    pool.remember(&[(at(0), id(7)), (at(1), id(1)), (at(5), id(5))]);
    assert_eq!((pool.address_of(id(0)), pool.address_of(id(7))), (Some(at(0)), None), "it said who it is");
    assert_eq!(pool.nodes()[1].identity, Some(id(1)));
    assert!(is_down(&pool, 1) && is_down(&pool, 5));
    bench.faulty.clear();
    pool.start();
    assert_eq!(events.recv().await, Ok(PoolEvent::Returned(id(1))));
}

#[tokio::test]
async fn an_answer_by_another_node_is_an_error() {
    let pool = Bench::new(2).connect().await;
    let answer = |node| Ok(Answer { node, boot: BOOT, value: () });
    assert!(pool.read_ended(id(0), Instant::now(), answer(id(0))).is_ok());
    let error = pool.write_ended(id(0), Instant::now(), answer(id(1))).unwrap_err();
    assert!(matches!(error, TransportError::Unreachable(_)));
    assert!(is_down(&pool, 0) && !is_down(&pool, 1));
}

#[tokio::test(start_paused = true)]
async fn hedging_waits_for_what_is_usual_of_the_node() {
    let pool = Bench::new(4).connect().await;
    assert_eq!(pool.hedge_after(id(0), 0), HEDGE_AT_FIRST);
    for k in 0..100 {
        pool.report(id(0), good(Duration::from_millis(40 + k % 3)));
        [2, 3].into_iter().for_each(|node| pool.report(id(node), good(Duration::from_millis(30))));
        pool.report(id(1), good(Duration::from_micros(300)));
    }
    let usual = pool.hedge_after(id(0), 0);
    assert!(usual > Duration::from_millis(41) && usual < Duration::from_millis(60), "{usual:?}");
    assert_eq!(pool.hedge_after(id(1), 0), HEDGE_LEAST);
    let behind_much = pool.hedge_after(id(1), HEDGE_RATE / 10);
    assert_eq!(
        behind_much,
        HEDGE_LEAST + Duration::from_millis(100),
        "a tenth of a second's bytes come first"
    );
    pool.report(id(1), Outcome::Slow);
    assert_eq!(pool.state(id(1)), NodeState::Lagging);
    assert_eq!(pool.usable_for_writing(), [id(0), id(2), id(3), id(1)]);
}

#[tokio::test(start_paused = true)]
async fn hedging_waits_for_no_node_that_is_always_slower_than_the_others() {
    let bench = Bench::new(5);
    let pool = bench.connect().await;
    let report = |node, millis| pool.report(id(node), good(Duration::from_millis(millis)));
    for _ in 0..100 {
        [(0, 500), (1, 500), (2, 10), (3, 12), (4, 20)]
            .into_iter()
            .for_each(|(node, millis)| report(node, millis));
    }
    let after = |node| pool.hedge_after(id(node), 0).as_millis();
    assert_eq!([after(0), after(1)], [48, 48], "four times what the slower one of the quick takes");
    assert_eq!([after(2), after(4)], [20, 20], "what it takes itself");
    // Where most are slow, that is what is usual.
    bench.kill(2);
    bench.kill(3);
    let error = TransportError::Unreachable("gone".into());
    [2, 3].into_iter().for_each(|node| pool.report(id(node), Outcome::Failed(&error)));
    (0..100).for_each(|_| report(4, 500));
    assert!((500..510).contains(&after(0)), "{}", after(0));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_takes_changes_much_later_than_the_others_lags_as_long_as_it_does() {
    let pool = Bench::new(5).connect().await;
    let wrote = |node, millis| {
        pool.report(id(node), Outcome::Wrote { latency: Duration::from_millis(millis), boot: BOOT });
    };
    (0..20).for_each(|k| wrote(k % 5, 5));
    wrote(0, 500);
    assert_eq!(pool.state(id(0)), NodeState::Up, "once is nothing");
    (0..3).for_each(|_| wrote(0, 500));
    assert_eq!(pool.state(id(0)), NodeState::Lagging);
    for _ in 0..10 {
        tokio::time::sleep(SECOND).await;
        wrote(0, 500);
    }
    assert_eq!(pool.state(id(0)), NodeState::Lagging);
    (0..20).for_each(|_| wrote(0, 5));
    tokio::time::sleep(6 * SECOND).await;
    assert_eq!(pool.state(id(0)), NodeState::Up);
    // Where all are slow, none is.
    (0..100).for_each(|k| wrote(k % 5, 500));
    tokio::time::sleep(6 * SECOND).await;
    (0..5).for_each(|node| wrote(node, 600));
    assert!((0..5).all(|node| pool.state(id(node)) == NodeState::Up));
}

#[tokio::test(start_paused = true)]
async fn the_dead_are_probed_every_second_and_the_living_every_five() {
    let bench = Bench::new(2);
    bench.kill(1);
    let pool = bench.connect().await;
    bench.faulty.reset_counts();
    let prober = pool.start();
    tokio::time::sleep(20 * SECOND).await;
    let probes = [bench.faulty.count(&at(0), Verb::Info), bench.faulty.count(&at(1), Verb::Info)];
    assert!((4..=5).contains(&probes[0]) && (19..=21).contains(&probes[1]), "{probes:?}");
    drop(pool);
    prober.await.unwrap();
}
