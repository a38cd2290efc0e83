//! What goes wrong: nodes that are killed, hang, are cut off, late, full, rotten and lying, and a mount daemon that is
//! killed. Never more at a time than the code is made for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use avidfs_tests::cluster::{Cluster, own_ip};
use avidfs_tests::eventually;
use avidfs_tests::evil::MODES;
use avidfs_tests::fsck::fsck_mount;
use avidfs_tests::mount::Mount;
use avidfs_tests::process::{command, run};
use avidfs_tests::relay::{Line, Relay};
use avidfs_tests::seed::Dice;
use avidfs_tests::segments::rot;
use avidfs_tests::timed;
use serde_json::Value;

use super::writer::Stage;

/// Nodes that may be lost, of code 3+2; of those one may lie or have rotten.
const TOLERATED: usize = 2;
/// Nodes behind a relay; the others are reached directly.
const RELAYED: usize = 3;
/// Until the pool has healed.
const HEAL_LIMIT: Duration = Duration::from_secs(90);
/// Until the load is stopped to let it heal.
const PATIENCE: Duration = Duration::from_secs(4);
/// What is dealt first, so that a short run has something of everything that differs most.
const FIRST: [Kind; 5] = [Kind::Lying, Kind::RottenAwake, Kind::DaemonKilled, Kind::Killed, Kind::Cut];

/// A way in which something goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    Killed,
    Stopped,
    Cut,
    Late,
    Lossy,
    Silent,
    Torn,
    Full,
    RottenAsleep,
    RottenAwake,
    Lying,
    DaemonKilled,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 12] = [
        Kind::Killed,
        Kind::Stopped,
        Kind::Cut,
        Kind::Late,
        Kind::Lossy,
        Kind::Silent,
        Kind::Torn,
        Kind::Full,
        Kind::RottenAsleep,
        Kind::RottenAwake,
        Kind::Lying,
        Kind::DaemonKilled,
    ];

    fn needs_relay(self) -> bool {
        matches!(self, Kind::Late | Kind::Lossy | Kind::Silent | Kind::Torn)
    }

    /// Whether the node has less afterwards than it said.
    fn is_faithless(self) -> bool {
        matches!(self, Kind::RottenAsleep | Kind::RottenAwake | Kind::Lying)
    }
}

/// Something that goes wrong at a node, or with the daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Event {
    kind: Kind,
    node: Option<usize>,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.node {
            Some(node) => write!(f, "node {node} {:?}", self.kind),
            None => write!(f, "{:?}", self.kind),
        }
    }
}

/// Nodes, the lines to some of them, and the mount.
pub struct Pool {
    // Dropped first: a mount without nodes would have nobody to give its bytes to.
    pub mount: Mount,
    relays: Vec<Relay>,
    pub cluster: Cluster,
}

impl Pool {
    /// All of it, and nothing wrong with it.
    pub fn new(nodes: usize, options: &[&str], dice: &mut Dice) -> Pool {
        let cluster = Cluster::apart(nodes);
        let listen = SocketAddr::new(own_ip(), 0);
        let relay = |node| Relay::before(cluster.address(node), listen, dice.roll());
        let relays: Vec<Relay> = (0..RELAYED).map(relay).collect();
        let address = |node| relays.get(node).map_or_else(|| cluster.address(node), Relay::address);
        let peers: Vec<String> = (0..nodes).map(|node| format!("http://{}", address(node))).collect();
        let mount = Mount::on(Some(peers.join(",")), options);
        Pool { mount, relays, cluster }
    }

    /// Where the mount reaches a node.
    fn address(&self, node: usize) -> SocketAddr {
        self.relays.get(node).map_or_else(|| self.cluster.address(node), Relay::address)
    }
}

/// What `avidfs blame` shows.
fn blame(mount: &Mount, options: &[&str]) -> Vec<Value> {
    let mut asking = command("avidfs");
    let shown = run(asking.arg("blame").arg(mount.root()).arg("--json").args(options));
    serde_json::from_str::<Value>(&shown).unwrap().as_array().unwrap().clone()
}

/// See the module.
pub struct Disturber<'a> {
    pool: &'a Pool,
    stage: &'a Stage,
    writers: u64,
    dice: Dice,
    began: Instant,
    /// Kinds that are still to come, before any comes again.
    deck: Vec<Kind>,
    /// The one node that may have less than it said, until everything was checked and repaired.
    faithless: Option<usize>,
    lying_as: &'static str,
    pub counts: BTreeMap<Kind, u64>,
    /// Lies that nodes told, as they counted them.
    pub lies: u64,
    /// Answers that did not check, as the daemons counted them.
    pub lies_noticed: u64,
    /// Identities of the nodes that lied until now.
    liars: BTreeSet<String>,
    /// How many answers of the lying node did not check before it lied, and in which life of the daemon.
    before: (u64, u32),
    /// Cases that `avidfs blame` showed, by their verdict.
    pub blamed: BTreeMap<String, u64>,
    pub slowest_healing: Duration,
    pub hushes: u64,
    pub repairs: u64,
}

impl Disturber<'_> {
    /// One that has done nothing yet.
    pub fn new<'a>(pool: &'a Pool, stage: &'a Stage, writers: u64, dice: Dice) -> Disturber<'a> {
        Disturber {
            pool,
            stage,
            writers,
            dice,
            began: Instant::now(),
            deck: FIRST.to_vec(),
            faithless: None,
            lying_as: MODES[0],
            counts: BTreeMap::new(),
            lies: 0,
            lies_noticed: 0,
            liars: BTreeSet::new(),
            before: (0, 0),
            blamed: BTreeMap::new(),
            slowest_healing: Duration::ZERO,
            hushes: 0,
            repairs: 0,
        }
    }

    /// Disturb for so long, and leave the pool healed.
    pub fn run(&mut self, length: Duration) {
        // With nothing written nothing could go wrong.
        self.pause(1000);
        while self.began.elapsed() < length && !self.stage.is_over() {
            self.round();
            match self.faithless {
                Some(_) if self.dice.chance(20) => self.make_faithful(),
                None if self.dice.chance(20) => self.check_under_load(),
                _ => {}
            }
        }
        self.make_faithful();
        if !self.stage.is_over() {
            self.note_lies();
        }
    }

    /// One or two things go wrong, overlap for a while, and are put right again.
    fn round(&mut self) {
        let mut current = Vec::new();
        for _ in 0..1 + u64::from(self.dice.chance(65)) {
            if let Some(event) = self.draw(&current) {
                self.say(&format!("{event}"));
                *self.counts.entry(event.kind).or_default() += 1;
                current.push(event);
                self.begin(event);
                self.pause(1000);
            }
        }
        // At times for longer than any request may take.
        let most_ms = if self.dice.chance(15) { 9000 } else { 1800 };
        self.pause(most_ms);
        while !current.is_empty() {
            let event = current.swap_remove(self.dice.below(current.len() as u64) as usize);
            self.end(event);
            self.pause(500);
        }
        self.heal();
    }

    /// The next kind that the code tolerates beside what is wrong already.
    fn draw(&mut self, current: &[Event]) -> Option<Event> {
        if self.deck.is_empty() {
            self.deck = Kind::ALL.to_vec();
            self.deck.push(Kind::DaemonKilled);
        }
        let begin = self.dice.below(self.deck.len() as u64) as usize;
        let order = (0..self.deck.len()).map(|i| (begin + i) % self.deck.len());
        let (at, event) = order.collect::<Vec<_>>().into_iter().find_map(|at| {
            let kind = self.deck[at];
            self.place_for(kind, current).map(|node| (at, Event { kind, node }))
        })?;
        self.deck.remove(at);
        Some(event)
    }

    /// Which node it may happen to, if any; the daemon is none.
    fn place_for(&mut self, kind: Kind, current: &[Event]) -> Option<Option<usize>> {
        let busy: Vec<usize> = current.iter().filter_map(|event| event.node).collect();
        let lost_beside = |node: Option<usize>| {
            let mut lost: Vec<usize> = busy.iter().copied().chain(self.faithless).chain(node).collect();
            lost.sort_unstable();
            lost.dedup();
            lost.len()
        };
        // What is stored is on four nodes at first: when nobody completes it one of them may be lost.
        let daemon_is_gone = current.iter().any(|event| event.kind == Kind::DaemonKilled);
        let most = if kind == Kind::DaemonKilled || daemon_is_gone { TOLERATED - 1 } else { TOLERATED };
        if kind == Kind::DaemonKilled {
            return (lost_beside(None) <= most).then_some(None);
        }
        let is_possible = |node: &usize| {
            let is_second_liar = kind.is_faithless() && self.faithless.is_some_and(|known| known != *node);
            let is_reached = !kind.needs_relay() || *node < RELAYED;
            is_reached && !busy.contains(node) && !is_second_liar && lost_beside(Some(*node)) <= most
        };
        let nodes: Vec<usize> = (0..self.pool.cluster.len()).filter(is_possible).collect();
        (!nodes.is_empty()).then(|| Some(*self.dice.pick(&nodes)))
    }

    fn begin(&mut self, event: Event) {
        let Some(node) = event.node else { return self.kill_daemon() };
        let cluster = &self.pool.cluster;
        if event.kind.is_faithless() {
            self.faithless = Some(node);
        }
        let line = |line| self.pool.relays[node].set(line);
        match event.kind {
            Kind::Killed => cluster.kill(node),
            Kind::Stopped => cluster.stop(node),
            Kind::Cut => cluster.cut(node),
            Kind::Late => {
                let delay = Duration::from_millis(5 + self.dice.below(60));
                line(Line { delay, ..Line::default() });
            }
            Kind::Lossy => line(Line { loss_percent: 5 + self.dice.below(30), ..Line::default() }),
            Kind::Silent => line(Line { is_silent: true, ..Line::default() }),
            Kind::Torn => {
                line(Line { tear_percent: 1 + self.dice.below(5), ..Line::default() });
                self.pool.relays[node].tear();
            }
            Kind::Full => cluster.make_full(node),
            Kind::RottenAsleep => {
                cluster.kill(node);
                self.rot(node);
            }
            Kind::RottenAwake => self.rot(node),
            Kind::Lying => {
                self.lying_as = *self.dice.pick(&MODES);
                self.say(&format!("it lies: {}", self.lying_as));
                let identity = self.identity(node);
                self.before = (self.bad_answers(&identity), self.pool.mount.pid());
                self.liars.insert(identity);
                cluster.make_evil(node, self.lying_as, self.dice.roll());
            }
            Kind::DaemonKilled => unreachable!("the daemon is no node"),
        }
    }

    fn rot(&mut self, node: usize) {
        let records = rot(&self.pool.cluster.data_dir(node), 30, &mut self.dice);
        self.say(&format!("{records} records rotted"));
    }

    fn end(&mut self, event: Event) {
        let Some(node) = event.node else { return };
        let cluster = &self.pool.cluster;
        match event.kind {
            Kind::Killed | Kind::RottenAsleep => cluster.restart(node),
            Kind::Stopped => cluster.cont(node),
            Kind::Cut => cluster.mend(node),
            Kind::Late | Kind::Lossy | Kind::Silent | Kind::Torn => {
                self.pool.relays[node].set(Line::default())
            }
            Kind::Full => cluster.make_roomy(node),
            Kind::Lying => {
                // What breaks HTTP stands before the node and counts nothing.
                let count = if self.lying_as == "garbage-http" { 0 } else { cluster.lies(node) };
                self.lies += count;
                self.is_blamed_if_noticed(node);
                cluster.make_honest(node);
            }
            Kind::RottenAwake | Kind::DaemonKilled => {}
        }
    }

    fn identity(&self, node: usize) -> String {
        let status = self.pool.mount.status();
        let address = self.pool.address(node).to_string();
        let nodes = status["nodes"].as_array().expect("status lists nodes");
        let found = nodes.iter().find(|node| node["address"].as_str().unwrap().ends_with(&address));
        found.expect("the pool has it")["node"].as_str().expect("it was up once").to_owned()
    }

    /// Answers of a node that did not check in this life of the daemon.
    fn bad_answers(&self, identity: &str) -> u64 {
        self.pool.mount.status()["stripe"]["lies"][identity].as_u64().unwrap_or(0)
    }

    /// A fragment that was a lie, and was looked at, is evidence.
    fn is_blamed_if_noticed(&self, node: usize) {
        let identity = self.identity(node);
        let (before, daemon) = self.before;
        let contradicts = ["flip", "swap", "wrong-length"].contains(&self.lying_as);
        let is_noticed = self.pool.mount.pid() == daemon && self.bad_answers(&identity) > before;
        if contradicts && is_noticed && !self.stage.is_over() {
            let is_shown = || blame(&self.pool.mount, &[]).iter().any(|case| case["node"] == *identity);
            eventually(PATIENCE, "a lie that was noticed is blamed", is_shown);
        }
    }

    /// What an operator does who knows that the nodes are honest now. Nobody is said to have lied who did not.
    fn absolve(&mut self) {
        let cases = blame(&self.pool.mount, &[]);
        let mut caught = BTreeSet::new();
        for case in &cases {
            let (node, verdict) = (case["node"].as_str().unwrap(), case["verdict"].as_str().unwrap());
            assert!(verdict != "lied" || self.liars.contains(node), "an honest node is accused: {case}");
            *self.blamed.entry(verdict.to_owned()).or_default() += 1;
            caught.insert(node.to_owned());
        }
        for node in caught {
            blame(&self.pool.mount, &["--clear", &node]);
        }
    }

    /// The daemon counts as long as it lives.
    fn note_lies(&mut self) {
        let status = self.pool.mount.status();
        let by_node = status["stripe"]["lies"].as_object().expect("status counts lies");
        self.lies_noticed += by_node.values().filter_map(|count| count.as_u64()).sum::<u64>();
    }

    fn kill_daemon(&mut self) {
        self.note_lies();
        self.stage.turn();
        self.pool.mount.kill();
        self.pool.mount.mount();
        self.stage.turn();
        self.stage.wait_until_settled(self.writers);
    }

    /// Wait until every node is there again and has what it should have, at last without load.
    pub fn heal(&mut self) {
        let (began, stage) = (Instant::now(), self.stage);
        if !stage.is_over() {
            self.absolve();
        }
        if !self.is_whole_within(PATIENCE) {
            let _hushed = stage.hush();
            self.hushes += 1;
            assert!(self.is_whole_within(HEAL_LIMIT), "not whole after {HEAL_LIMIT:?}: {:?}", self.problem());
        }
        self.slowest_healing = self.slowest_healing.max(began.elapsed());
        self.say(&format!("healed after {:.1?}", began.elapsed()));
    }

    /// Also if the run is over.
    fn is_whole_within(&mut self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while self.problem().is_some() && !self.stage.is_over() {
            if Instant::now() > end {
                return false;
            }
            // A node that lied can be asked, and answer, only now; until it is cleared it gets nothing from its guests.
            if self.is_any_quarantined() {
                self.absolve();
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        true
    }

    fn is_any_quarantined(&self) -> bool {
        let status = self.pool.mount.status();
        status["nodes"].as_array().expect("status lists nodes").iter().any(|node| node["quarantined"] == true)
    }

    /// What is not as it should be, as far as the mount knows.
    fn problem(&self) -> Option<String> {
        let status = self.pool.mount.status();
        let nodes = status["nodes"].as_array().expect("status lists nodes");
        let away = nodes.iter().find(|node| node["state"] == "down" || node["state"] == "full");
        match (away, status["objects_not_at_home"].as_u64(), status["backlog_bytes"].as_u64()) {
            (Some(node), ..) => Some(node.to_string()),
            (None, Some(0), Some(0)) => None,
            _ => Some(status.to_string()),
        }
    }

    /// Make anew whatever a node lacks and did not say, so that another one may be the next to lie.
    fn make_faithful(&mut self) {
        self.heal();
        if self.stage.is_over() {
            return;
        }
        let _hushed = self.stage.hush();
        let (checked, time) = timed(|| fsck_mount(&self.pool.mount.root(), &["--deep", "--repair"]));
        assert!(checked.code <= 1, "exit code {}: {:#}", checked.code, checked.report);
        self.repairs += checked.problems().len() as u64;
        self.faithless = None;
        self.say(&format!(
            "{:?}: {} problems repaired in {time:.1?}",
            checked.kinds(),
            checked.problems().len()
        ));
    }

    /// Nothing is wrong with a volume in use on which nobody lied and nothing rotted.
    fn check_under_load(&self) {
        if self.stage.is_over() {
            return;
        }
        let (checked, time) = timed(|| fsck_mount(&self.pool.mount.root(), &[]));
        checked.is_clean();
        self.say(&format!("clean, said in {time:.1?}: {}", checked.report["journal"]));
    }

    /// Let time pass, up to so many milliseconds.
    fn pause(&mut self, most_ms: u64) {
        let end = Instant::now() + Duration::from_millis(most_ms / 4 + self.dice.below(most_ms));
        while Instant::now() < end && !self.stage.is_over() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn say(&self, what: &str) {
        eprintln!("{:6.1} s: {what}", self.began.elapsed().as_secs_f64());
    }
}
