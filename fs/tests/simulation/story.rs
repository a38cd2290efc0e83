//! One run: episodes of ordinary work in bad weather, each ended by a disaster, after which everything is looked at.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use avidfs::error::Error;
use avidfs::journal::Checkpoints;
use tokio::time::sleep;

use crate::client::Client;
use crate::fate::{Fate, Weather};
use crate::model::Loss;
use crate::repeatable;
use crate::world::{Mount, NODES, Refused, World};

const EPISODES: u64 = 5;

/// Run a seed; the digest of its trace. Panics with the trace and with what repeats it.
pub fn run(seed: u64) -> blake3::Hash {
    if let Ok(filter) = std::env::var("AVIDFS_LOG") {
        let _again = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    }
    let shared = Arc::new(Mutex::new(None));
    let keep = shared.clone();
    let ran = repeatable::run(seed, move || async move {
        let fate = Fate::new(seed);
        *keep.lock().unwrap() = Some(fate.clone());
        Story::begin(fate).await.tell().await
    });
    ran.unwrap_or_else(|_| {
        let trace = shared.lock().unwrap().take().map(|fate: Fate| fate.last_lines()).unwrap_or_default();
        let again = format!("AVIDFS_SEED={seed} cargo nextest run -p avidfs --test simulation");
        panic!("{trace}seed {seed} failed; again: {again}")
    })
}

struct Story {
    fate: Fate,
    world: World,
    client: Client,
    mount: Mount,
}

impl Story {
    async fn begin(fate: Fate) -> Story {
        let mut world = World::new(fate.clone());
        if fate.chance(50) {
            world.checkpoints = Checkpoints { bytes: 200 + fate.below(8000), entries: 2 + fate.below(20) };
        }
        if fate.chance(50) {
            world.carried_bytes = fate.below(9000);
        }
        let mount = world.mount(0, false).await.expect("everything is well");
        mount.volume.sync().await.expect("everything is well");
        Story { client: Client::new(fate.clone()), fate, world, mount }
    }

    async fn tell(mut self) -> blake3::Hash {
        for _ in 0..EPISODES {
            self.episode().await;
            self.disaster().await;
        }
        self.crash_and_lose(true, true).await;
        self.fate.digest()
    }

    async fn episode(&mut self) {
        let bad = |fate: &Fate, most| if fate.chance(50) { fate.below(most) } else { 0 };
        let weather = Weather {
            lose: bad(&self.fate, 60),
            lose_answer: bad(&self.fate, 60),
            delay: bad(&self.fate, 200),
        };
        self.fate.note(&format!("{weather:?}"));
        self.fate.set_weather(weather);
        if self.fate.chance(30) {
            self.mount.line.cut_after(self.fate.below(400));
        }
        for _ in 0..10 + self.fate.below(25) {
            if self.mount.line.is_cut() {
                return;
            }
            self.step().await;
        }
    }

    async fn step(&mut self) {
        match self.fate.below(100) {
            0..8 => self.node_event().await,
            8..11 => self.world.tend(),
            11..14 => {
                let collected = self.until_crash(|story| {
                    let volume = story.mount.volume.clone();
                    async move { volume.collect_garbage(false).await }
                });
                if let Some(collected) = collected.await {
                    self.fate.note(&format!("gc: {collected:?}"));
                }
            }
            14..16 => {
                let placed = self.until_crash(|story| {
                    let volume = story.mount.volume.clone();
                    async move { volume.rebalance(false).await }
                });
                if let Some(placed) = placed.await {
                    self.fate.note(&format!("rebalance: {placed:?}"));
                }
            }
            16..24 => sleep(Duration::from_millis(self.fate.below(1500))).await,
            _ => {
                let (volume, line) = (self.mount.volume.clone(), self.mount.line.clone());
                tokio::select! {
                    biased;
                    () = line.crashed() => self.fate.note("the daemon crashes"),
                    () = self.client.act(&volume) => {}
                }
                sleep(Duration::from_millis(self.fate.below(20))).await;
            }
        }
    }

    async fn until_crash<T, F: Future<Output = T>>(&self, work: impl FnOnce(&Story) -> F) -> Option<T> {
        let line = self.mount.line.clone();
        tokio::select! {
            biased;
            () = line.crashed() => None,
            done = work(self) => Some(done),
        }
    }

    async fn node_event(&mut self) {
        let node = self.fate.below(NODES as u64) as usize;
        if !self.world.is_up(node) {
            self.world.start_node(node);
        } else if self.world.down() < 2 {
            let loses_power = self.fate.chance(60);
            self.stop_node(node, loses_power).await;
            if self.fate.chance(40) {
                self.world.start_node(node);
            }
        }
    }

    async fn stop_node(&mut self, node: usize, loses_power: bool) {
        self.world.stop_node(node, loses_power).await;
        if loses_power {
            self.client.model.unflushed_may_be_lost();
        }
    }

    async fn disaster(&mut self) {
        match self.fate.below(6) {
            0 => self.crash().await,
            1 => {
                let power = self.fate.chance(50);
                self.crash_and_lose(power, false).await;
            }
            2 => {
                let power = self.fate.chance(50);
                self.crash_and_lose(power, true).await;
            }
            3 => self.shut_down().await,
            4 => self.nodes_lose_power().await,
            _ => self.take_over().await,
        }
    }

    /// The daemon alone.
    async fn crash(&mut self) {
        self.fate.note("the daemon crashes");
        self.mount.line.cut();
        self.go_on(Loss::Memory).await;
    }

    /// Everything loses power, or only the mount's host does; its state folder may be gone for good.
    async fn crash_and_lose(&mut self, nodes: bool, metadata: bool) {
        self.mount.line.cut();
        if nodes {
            for node in 0..NODES {
                self.stop_node(node, true).await;
            }
        }
        match metadata {
            true => self.world.forget_metadata(self.mount.host),
            false => self.world.lose_host_power(self.mount.host),
        }
        self.go_on(Loss::Unshipped).await;
    }

    /// Under the eyes of the daemon, which notices.
    async fn nodes_lose_power(&mut self) {
        for node in 0..NODES {
            if self.fate.chance(60) {
                self.stop_node(node, true).await;
                if self.fate.chance(50) {
                    self.world.start_node(node);
                }
            }
        }
        self.fair_weather();
        self.world.start_nodes();
        if !self.mount.line.is_cut() && self.fate.chance(50) {
            // Whatever was acknowledged is sent again by who still has it.
            for _ in 0..4 {
                self.until_crash(|story| sleep(Duration::from_millis(story.fate.below(800)))).await;
            }
            let (volume, line) = (self.mount.volume.clone(), self.mount.line.clone());
            tokio::select! {
                biased;
                () = line.crashed() => {}
                _synced = self.client.fsync(&volume) => {}
            }
        }
        self.mount.line.cut();
        for node in 0..NODES {
            self.stop_node(node, true).await;
        }
        self.world.forget_metadata(self.mount.host);
        self.go_on(Loss::Unshipped).await;
    }

    async fn shut_down(&mut self) {
        let volume = self.mount.volume.clone();
        let saved = self.until_crash(|_| async move { volume.shut_down().await }).await;
        self.fate.note(&format!("shut down: {saved:?}"));
        let is_kept = match &saved {
            Some(Ok(())) => true,
            Some(Err(unsaved)) => unsaved.lost.is_none(),
            None => false,
        };
        self.mount.line.cut();
        if is_kept {
            self.client.model.all_stored();
        }
        self.go_on(Loss::Memory).await;
    }

    /// Another host takes the volume over while this one goes on trying.
    async fn take_over(&mut self) {
        self.fair_weather();
        self.world.start_nodes();
        let other = 1 - self.mount.host;
        let mount = self.mounted(other, true).await;
        let fenced = std::mem::replace(&mut self.mount, mount);
        if !fenced.line.is_cut() {
            self.try_in_vain(&fenced).await;
        }
        fenced.line.cut();
        self.adopt(Loss::Unshipped).await;
    }

    /// What a mount does that was taken over from is acknowledged to nobody, and soon refused.
    async fn try_in_vain(&mut self, fenced: &Mount) {
        let mut client = Client { fate: self.fate.clone(), model: self.client.model.clone() };
        for _ in 0..self.fate.below(6) {
            client.act(&fenced.volume).await;
        }
        let before = client.model.tree().len();
        client.create_at(&fenced.volume, "vain");
        if client.model.tree().len() > before {
            assert!(!client.fsync_at(&fenced.volume, "vain").await, "a fenced mount acknowledged an fsync");
        }
        // The next entry it tries to write tells it.
        sleep(Duration::from_secs(2)).await;
        if fenced.line.is_cut() {
            return;
        }
        let refused = fenced.volume.unlink(avidfs::inode::ROOT, b"vain", client.caller());
        assert!(matches!(refused, Err(Error::ReadOnly)), "a fenced mount is not read-only: {refused:?}");
        assert!(fenced.journal.is_fenced());
    }

    fn fair_weather(&self) {
        self.fate.set_weather(Weather::default());
    }

    /// Mount again what crashed, with all nodes or all but one, and look.
    async fn go_on(&mut self, loss: Loss) {
        self.fair_weather();
        let missing = self.fate.below(2 * NODES as u64) as usize;
        for node in 0..NODES {
            match node == missing && self.world.is_up(node) {
                true => self.world.stop_node(node, false).await,
                false if node == missing => {}
                false => self.world.start_node(node),
            }
        }
        self.mount = self.mounted(self.mount.host, self.fate.chance(50)).await;
        self.adopt(loss).await;
    }

    async fn mounted(&mut self, host: usize, take_over: bool) -> Mount {
        if self.fate.chance(25) {
            let left_out = self.fate.below(NODES as u64 + 1) as usize;
            self.fate.note(&format!("of {NODES} nodes it does not name {left_out}"));
            self.world.named = Some((0..NODES).filter(|node| *node != left_out).collect());
        }
        for attempt in 0..4 {
            match self.world.mount(host, take_over).await {
                Ok(mount) => return mount,
                Err(Refused::Diverged) => self.world.forget_metadata(host),
                Err(Refused::Held) => sleep(Duration::from_secs(11)).await,
                Err(Refused::Other(why)) => {
                    assert!(attempt < 3, "host {host} cannot mount: {why}");
                    // What was committed last may be on the node that is down, and on too few others.
                    if why.contains("never reached the journal") {
                        self.world.start_nodes();
                    }
                    sleep(Duration::from_secs(2)).await;
                }
            }
        }
        panic!("host {host} cannot mount")
    }

    async fn adopt(&mut self, loss: Loss) {
        self.client.adopt(&self.mount.volume, loss).await;
    }
}
