//! Who may write a volume: an epoch that enough root nodes grant to one mount alone, and a lease that keeps others from
//! asking while it lives. The epoch keeps bytes safe; the lease only spares people to find out (volume.md section 6).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use common::wire::{LeaseRequest, MountId, NodeId, RefusalCode};
use futures_util::future::join_all;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::authority::Authority;
use crate::pool::Pool;
use crate::transport::TransportError;

/// How long a lease lasts.
const DURATION: Duration = Duration::from_secs(10);
/// How often it is renewed.
const RENEWAL: Duration = Duration::from_secs(3);
/// How long a node may take to answer.
const LIMIT: Duration = Duration::from_secs(3);

/// Who asks for which volume.
#[derive(Clone)]
pub struct Applicant {
    /// The nodes.
    pub pool: Arc<Pool>,
    /// Those that are asked.
    pub roots: Vec<NodeId>,
    /// How many of them must agree.
    pub quorum: usize,
    /// What lets this mount write the volume.
    pub authority: Arc<Authority>,
    /// What the state folder of this mount is known by.
    pub mount: MountId,
    /// What people call this host.
    pub host: String,
}

/// Why no lease was had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Denied {
    /// Somebody else has it; what a node says of him.
    Held(String),
    /// The epoch is not newer than what nodes have seen.
    Stale,
    /// Too few nodes answered, and why.
    TooFew(String),
}

impl Applicant {
    /// Ask for an epoch and a lease; `take_over` ends the lease of whoever has it.
    ///
    /// # Errors
    /// See `Denied`. Nothing is held then.
    pub async fn acquire(&self, epoch: u32, take_over: bool) -> Result<Lease, Denied> {
        if !take_over {
            self.sound_out().await?;
        }
        let answers = self.ask(epoch, DURATION, take_over).await;
        if let Err(denied) = self.verdict(&answers) {
            self.ask(epoch, Duration::ZERO, false).await;
            return Err(denied);
        }
        let unfenced = answers.iter().filter(|(_, answer)| answer.is_err()).map(|&(node, _)| node).collect();
        let lease =
            Lease { applicant: self.clone(), epoch, unfenced, renewal: None, watch: LeaseWatch::new() };
        Ok(lease.renewed())
    }

    /// Whether enough nodes would grant a lease, asked with an epoch that none grants: a node keeps the one it has granted
    /// though the others deny it, and then refuses the writes of who has the volume. One that was restarted has forgotten
    /// whose lease it was.
    async fn sound_out(&self) -> Result<(), Denied> {
        let mut answers = self.ask(0, Duration::ZERO, false).await;
        for (_, answer) in &mut answers {
            if answer.as_ref().is_err_and(TransportError::is_fence) {
                *answer = Ok(());
            }
        }
        self.verdict(&answers)
    }

    fn verdict(&self, answers: &[(NodeId, Result<(), TransportError>)]) -> Result<(), Denied> {
        let granted = answers.iter().filter(|(_, answer)| answer.is_ok()).count();
        if granted >= self.quorum {
            return Ok(());
        }
        let refusal = |wanted: RefusalCode| {
            answers.iter().find_map(|(_, answer)| match answer {
                Err(TransportError::Refused { code, message }) if *code == wanted => Some(message.clone()),
                _ => None,
            })
        };
        Err(match (refusal(RefusalCode::Leased), refusal(RefusalCode::StaleEpoch)) {
            (Some(sentence), _) => Denied::Held(sentence),
            (None, Some(_)) => Denied::Stale,
            (None, None) => {
                let why = answers.iter().filter_map(|(node, answer)| {
                    let name =
                        self.pool.address_of(*node).map_or_else(|| node.to_string(), |at| at.to_string());
                    Some(format!("{name} {}", answer.as_ref().err()?))
                });
                Denied::TooFew(why.collect::<Vec<_>>().join(", "))
            }
        })
    }

    async fn ask(
        &self,
        epoch: u32,
        lease: Duration,
        take_over: bool,
    ) -> Vec<(NodeId, Result<(), TransportError>)> {
        let request = LeaseRequest {
            epoch,
            mount: self.mount,
            host: self.host.clone(),
            lease_ms: lease.as_millis() as u64,
            take_over,
        };
        let asked = self.roots.iter().map(|&node| {
            let request = &request;
            async move {
                let Some(address) = self.pool.address_of(node) else {
                    return (node, Err(TransportError::Unreachable("is at no address of the pool".into())));
                };
                let began = Instant::now();
                let writer = self.authority.writer(node, epoch);
                let answer = self.pool.transport().lease(&address, writer, request, LIMIT).await;
                (node, self.pool.write_ended(node, began, answer).map(drop))
            }
        });
        join_all(asked).await
    }
}

/// A lease that is renewed until it is given back or dropped.
pub struct Lease {
    applicant: Applicant,
    epoch: u32,
    unfenced: HashSet<NodeId>,
    renewal: Option<JoinHandle<()>>,
    watch: LeaseWatch,
}

/// How a lease is doing, for whoever wants to know.
#[derive(Clone, Debug)]
pub struct LeaseWatch(Arc<Mutex<Renewals>>);

#[derive(Debug)]
struct Renewals {
    last: Instant,
    problem: Option<String>,
}

/// A lease as `status` shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LeaseReport {
    /// Seconds since enough nodes last granted it.
    pub renewed_seconds: u64,
    /// For so many seconds more nobody else gets the volume without taking it over; 0 once it has run out.
    pub seconds_left: u64,
    /// Why it could not be renewed.
    pub problem: Option<String>,
}

impl LeaseWatch {
    fn new() -> LeaseWatch {
        LeaseWatch(Arc::new(Mutex::new(Renewals { last: Instant::now(), problem: None })))
    }

    /// How it is doing now.
    pub fn report(&self) -> LeaseReport {
        let renewals = self.0.lock();
        let age = renewals.last.elapsed();
        LeaseReport {
            renewed_seconds: age.as_secs(),
            seconds_left: DURATION.saturating_sub(age).as_secs(),
            problem: renewals.problem.clone(),
        }
    }

    /// Take note of the answers to a renewal that was sent off at `asked`.
    fn note(&self, asked: Instant, quorum: usize, answers: &[(NodeId, Result<(), TransportError>)]) {
        let granted = answers.iter().filter(|(_, answer)| answer.is_ok()).count();
        let refused = answers.iter().find_map(|(_, answer)| match answer {
            Err(error @ TransportError::Refused { .. }) => Some(error.to_string()),
            _ => None,
        });
        let mut renewals = self.0.lock();
        if granted >= quorum {
            *renewals = Renewals { last: asked, problem: None };
            return;
        }
        let problem = refused.unwrap_or_else(|| format!("{granted} of {} nodes renew it", answers.len()));
        if renewals.problem.as_ref() != Some(&problem) {
            tracing::warn!(problem, "the lease on the volume could not be renewed");
        }
        renewals.problem = Some(problem);
    }
}

impl Lease {
    fn renewed(mut self) -> Lease {
        let (applicant, epoch, watch) = (self.applicant.clone(), self.epoch, self.watch.clone());
        self.renewal = Some(tokio::spawn(async move {
            loop {
                tokio::time::sleep(RENEWAL).await;
                let asked = Instant::now();
                let answers = applicant.ask(epoch, DURATION, false).await;
                watch.note(asked, applicant.quorum, &answers);
            }
        }));
        self
    }

    /// The epoch that was granted.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// How it is doing.
    pub fn watch(&self) -> LeaseWatch {
        self.watch.clone()
    }

    /// The nodes that did not grant the epoch when they were asked.
    pub fn unfenced(&self) -> &HashSet<NodeId> {
        &self.unfenced
    }

    /// Give it back, so that others may mount at once.
    pub async fn release(self) {
        self.applicant.ask(self.epoch, Duration::ZERO, false).await;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(renewal) = self.renewal.take() {
            renewal.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use shardd::{Limits, Store, StoreOptions};

    use super::*;
    use crate::pool::PoolOptions;
    use crate::transport::FragmentTransport;
    use crate::transport::faulty::{Fault, FaultyTransport, Rule};
    use crate::transport::in_process::InProcessTransport;

    struct Bench {
        _folder: tempfile::TempDir,
        nodes: Vec<Arc<Store>>,
        faults: Arc<FaultyTransport>,
        applicant: Applicant,
    }

    async fn bench() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let open = |k| Store::open(StoreOptions::new(folder.path().join(format!("{k}")))).unwrap();
        let nodes: Vec<_> = (0..5).map(open).collect();
        let routers = nodes.iter().map(|node| shardd::app(node.clone(), Limits::default()));
        let faults = FaultyTransport::new(Arc::new(InProcessTransport::new(routers.collect::<Vec<_>>())), 1);
        let descriptor = common::wire::VolumeDescriptor {
            volume: common::wire::VolumeId([7; 16]),
            name: "a".into(),
            code: "3+2".into(),
            hash: "blake3".into(),
            object_size: 4 << 20,
            owner: None,
        };
        let addresses: Vec<_> = (0..5).map(InProcessTransport::address).collect();
        for address in &addresses {
            faults.register(address, &descriptor, LIMIT).await.unwrap();
        }
        let pool = Pool::connect(faults.clone(), addresses, &[], PoolOptions::default()).await.unwrap();
        let applicant = Applicant {
            pool,
            roots: nodes.iter().map(|node| node.node()).collect(),
            quorum: 3,
            authority: Arc::new(Authority::new(descriptor.volume, None)),
            mount: MountId([1; 16]),
            host: "one".into(),
        };
        Bench { _folder: folder, nodes, faults, applicant }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_mount_has_the_lease_and_the_next_gets_it_when_it_is_given_back_or_taken() {
        let bench = bench().await;
        let one = bench.applicant.clone();
        let two = Applicant { mount: MountId([2; 16]), host: "two".into(), ..one.clone() };
        let lease = one.acquire(1, false).await.unwrap_or_else(|denied| panic!("{denied:?}"));
        let Err(Denied::Held(sentence)) = two.acquire(2, false).await else { panic!("two got it too") };
        assert!(sentence.contains("is mounted on one"), "{sentence}");
        lease.release().await;
        assert!(matches!(two.acquire(1, false).await, Err(Denied::Stale)));
        let _second = two.acquire(2, false).await.unwrap_or_else(|denied| panic!("{denied:?}"));
        assert_eq!(one.acquire(3, true).await.unwrap_or_else(|denied| panic!("{denied:?}")).epoch(), 3);
    }

    /// Nodes that were restarted have forgotten whose lease it was; who is denied leaves no newer epoch with them.
    #[tokio::test(flavor = "multi_thread")]
    async fn who_is_denied_fences_nobody() {
        let bench = bench().await;
        let one = bench.applicant.clone();
        let two = Applicant { mount: MountId([2; 16]), host: "two".into(), ..one.clone() };
        let mut lease = one.acquire(1, false).await.unwrap_or_else(|denied| panic!("{denied:?}"));
        lease.renewal.take().unwrap().abort();
        // As after a restart, and before the next renewal.
        let forget = Applicant { roots: one.roots[..2].to_vec(), ..one.clone() };
        forget.ask(1, Duration::ZERO, false).await;
        assert!(matches!(two.acquire(2, false).await, Err(Denied::Held(_))));
        let epochs = || bench.nodes.iter().map(|node| node.volumes().volumes[0].epoch).collect::<Vec<_>>();
        assert_eq!(epochs(), [1; 5]);
        // Nor does who finds too few of them.
        let few = Applicant { roots: one.roots[..2].to_vec(), ..two.clone() };
        assert!(matches!(few.acquire(2, false).await, Err(Denied::TooFew(_))));
        assert_eq!(epochs(), [1; 5]);
        lease.release().await;
        drop(two.acquire(2, false).await.unwrap_or_else(|denied| panic!("{denied:?}")));
        assert_eq!(epochs(), [2; 5]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn two_dead_nodes_do_not_matter_and_three_do() {
        let bench = bench().await;
        for k in 0..2 {
            bench.faults.add(Rule::always(Fault::Lose).at(&InProcessTransport::address(k)));
        }
        drop(bench.applicant.acquire(1, false).await.unwrap_or_else(|denied| panic!("{denied:?}")));
        bench.faults.add(Rule::always(Fault::Lose).at(&InProcessTransport::address(2)));
        assert!(matches!(bench.applicant.acquire(2, false).await, Err(Denied::TooFew(_))));
    }
}
