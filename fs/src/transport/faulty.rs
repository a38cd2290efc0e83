//! A transport that loses, delays, corrupts and lies, by rule and by seed, and counts what passes: for tests.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::wire::{
    FragmentName, LeaseRequest, Listing, NodeInfo, Nonce, ObjectStatus, Operation, OperationAnswer,
    RefusalCode, Statement, VolumeDescriptor, VolumeEntry, VolumeId,
};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Answer, FragmentTransport, NodeAddress, RawFragment, Reply, TransportError, Writer};

/// What one request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Verb {
    /// `FragmentTransport::info`.
    Info,
    /// `FragmentTransport::volumes`.
    Volumes,
    /// `FragmentTransport::register`.
    Register,
    /// `FragmentTransport::lease`.
    Lease,
    /// `FragmentTransport::put`.
    Put,
    /// `FragmentTransport::get`.
    Get,
    /// `FragmentTransport::get_slice`.
    GetSlice,
    /// `FragmentTransport::statement`.
    Statement,
    /// `FragmentTransport::batch`.
    Batch,
    /// `FragmentTransport::flush`.
    Flush,
    /// `FragmentTransport::status`.
    Status,
    /// `FragmentTransport::list`.
    List,
}

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Fault {
    /// The request never leaves: refused connection.
    Lose,
    /// It is carried out and the answer is lost: broken connection.
    LoseAnswer,
    /// It leaves later, or not within its limit.
    Delay(Duration),
    /// No answer ever: it ends at its limit.
    Hang,
    /// Bits of the fragment answered are flipped (`get`, `get_slice`, gets in a `batch`).
    CorruptFragment,
    /// Bits of the FPCC answered are flipped (the same verbs).
    CorruptFpcc,
    /// The same verb's previous answer of this node for another fragment is given again (`get`, `get_slice`).
    /// The first request, which has none before it, is answered well.
    Stale,
    /// The FPCC asked for, with the fragment of that previous answer (the same verbs).
    Swap,
    /// A `put`, `flush` or `batch` is acknowledged and not carried out.
    Forget,
    /// Refused, as this code; `Refuse(NoSpace)` is a full node.
    Refuse(RefusalCode),
}

/// A fault and when it strikes. Of several that match, the first added strikes.
#[derive(Clone, Debug)]
pub struct Rule {
    node: Option<NodeAddress>,
    verb: Option<Verb>,
    fault: Fault,
    chance: f64,
    left: Option<u64>,
}

impl Rule {
    /// On every request of every node.
    pub fn always(fault: Fault) -> Rule {
        Rule { node: None, verb: None, fault, chance: 1.0, left: None }
    }

    /// Only at this node.
    pub fn at(self, node: &NodeAddress) -> Rule {
        Rule { node: Some(node.clone()), ..self }
    }

    /// Only for this verb.
    pub fn on(self, verb: Verb) -> Rule {
        Rule { verb: Some(verb), ..self }
    }

    /// Only with this probability, 0 to 1, drawn by seed.
    pub fn chance(self, chance: f64) -> Rule {
        Rule { chance, ..self }
    }

    /// Only the first `count` times.
    pub fn times(self, count: u64) -> Rule {
        Rule { left: Some(count), ..self }
    }

    fn matches(&self, node: &NodeAddress, verb: Verb) -> bool {
        self.node.as_ref().is_none_or(|at| at == node)
            && self.verb.is_none_or(|on| on == verb)
            && self.left != Some(0)
    }
}

/// Names a rule, to remove it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RuleId(u64);

/// See the module. What strikes the nth request of a verb to a node depends on the seed and the rules alone,
/// not on what happens elsewhere at the same time.
pub struct FaultyTransport {
    inner: Arc<dyn FragmentTransport>,
    seed: u64,
    script: Mutex<Script>,
    watch: Mutex<Option<Watch>>,
}

/// Sees every request before it is sent, and says what befalls it.
pub type Watch = Arc<dyn Fn(&NodeAddress, Verb) -> Option<Fault> + Send + Sync>;

#[derive(Default)]
struct Script {
    rules: Vec<(RuleId, Rule)>,
    next_rule: u64,
    counts: HashMap<(NodeAddress, Verb), u64>,
    /// The last two fragments, so that one of them is another one than is asked for now.
    earlier: HashMap<(NodeAddress, Verb), Vec<(FragmentName, RawFragment)>>,
}

/// The fault that strikes a request, and the randomness it may use.
struct Strike {
    fault: Fault,
    random: StdRng,
}

impl FaultyTransport {
    /// Carries everything unharmed until a rule is added.
    pub fn new(inner: Arc<dyn FragmentTransport>, seed: u64) -> Arc<FaultyTransport> {
        Arc::new(FaultyTransport { inner, seed, script: Mutex::default(), watch: Mutex::default() })
    }

    /// In force for requests sent from now on.
    pub fn add(&self, rule: Rule) -> RuleId {
        let mut script = self.script.lock();
        let id = RuleId(script.next_rule);
        script.next_rule += 1;
        script.rules.push((id, rule));
        id
    }

    /// Have every request from now on seen by `watch`; what it says goes before all rules.
    pub fn watch(&self, watch: impl Fn(&NodeAddress, Verb) -> Option<Fault> + Send + Sync + 'static) {
        *self.watch.lock() = Some(Arc::new(watch));
    }

    /// No longer in force; hung requests stay hung.
    pub fn remove(&self, id: RuleId) {
        self.script.lock().rules.retain(|(rule, _)| *rule != id);
    }

    /// No rule is in force.
    pub fn clear(&self) {
        self.script.lock().rules.clear();
    }

    /// Requests of a verb sent to a node so far, lost ones included.
    pub fn count(&self, node: &NodeAddress, verb: Verb) -> u64 {
        self.script.lock().counts.get(&(node.clone(), verb)).copied().unwrap_or(0)
    }

    /// Requests of a verb sent to all nodes so far.
    pub fn count_all(&self, verb: Verb) -> u64 {
        self.script.lock().counts.iter().filter(|((_, of), _)| *of == verb).map(|(_, count)| count).sum()
    }

    /// Count from 0 again.
    pub fn reset_counts(&self) {
        self.script.lock().counts.clear();
    }

    fn strike(&self, node: &NodeAddress, verb: Verb) -> Option<Strike> {
        let watch = self.watch.lock().clone();
        let said = watch.and_then(|watch| watch(node, verb));
        let mut script = self.script.lock();
        let count = script.counts.entry((node.clone(), verb)).or_default();
        *count += 1;
        let mut random = self.randomness(node, verb, *count);
        if let Some(fault) = said {
            return Some(Strike { fault, random });
        }
        for (_, rule) in script.rules.iter_mut().filter(|(_, rule)| rule.matches(node, verb)) {
            if random.random_bool(rule.chance) {
                rule.left = rule.left.map(|left| left - 1);
                return Some(Strike { fault: rule.fault, random });
            }
        }
        None
    }

    fn randomness(&self, node: &NodeAddress, verb: Verb, count: u64) -> StdRng {
        let mut hash = blake3::Hasher::new();
        hash.update(format!("{} {node} {verb:?} {count}", self.seed).as_bytes());
        StdRng::from_seed(*hash.finalize().as_bytes())
    }

    /// Carry a request out through whatever befalls its way. What befalls its content is left to the caller.
    async fn carry<T>(
        &self,
        fault: Option<Fault>,
        limit: Duration,
        request: impl AsyncFnOnce(Duration) -> Result<Answer<T>, TransportError>,
    ) -> Result<Answer<T>, TransportError> {
        match fault {
            Some(Fault::Lose) => {
                Err(TransportError::Unreachable("it refused the connection (by rule)".into()))
            }
            Some(Fault::LoseAnswer) => {
                request(limit).await?;
                Err(TransportError::Unreachable("the answer was lost (by rule)".into()))
            }
            Some(Fault::Delay(delay)) if delay < limit => {
                tokio::time::sleep(delay).await;
                request(limit - delay).await
            }
            Some(Fault::Delay(_) | Fault::Hang) => {
                tokio::time::sleep(limit).await;
                Err(TransportError::TimedOut(limit))
            }
            Some(Fault::Refuse(code)) => {
                Err(TransportError::Refused { code, message: format!("{code:?} (by rule)") })
            }
            _ => request(limit).await,
        }
    }

    /// For verbs whose content no fault touches.
    async fn pass<T>(
        &self,
        node: &NodeAddress,
        verb: Verb,
        limit: Duration,
        request: impl AsyncFnOnce(Duration) -> Result<Answer<T>, TransportError>,
    ) -> Result<Answer<T>, TransportError> {
        let fault = self.strike(node, verb).map(|strike| strike.fault);
        self.carry(fault, limit, request).await
    }

    /// For changes, which may be acknowledged and forgotten; `acknowledged` is what is said then.
    async fn change<T>(
        &self,
        node: &NodeAddress,
        verb: Verb,
        limit: Duration,
        acknowledged: impl FnOnce() -> T,
        request: impl AsyncFnOnce(Duration) -> Result<Answer<T>, TransportError>,
    ) -> Result<Answer<T>, TransportError> {
        let fault = self.strike(node, verb).map(|strike| strike.fault);
        if fault == Some(Fault::Forget) {
            let info = self.inner.info(node, limit).await?;
            return Ok(Answer { node: info.node, boot: info.boot, value: acknowledged() });
        }
        self.carry(fault, limit, request).await
    }

    /// For fragments, which may come back as something else.
    async fn fetch(
        &self,
        node: &NodeAddress,
        verb: Verb,
        name: &FragmentName,
        limit: Duration,
        request: impl AsyncFnOnce(Duration) -> Result<Answer<RawFragment>, TransportError>,
    ) -> Result<Answer<RawFragment>, TransportError> {
        let strike = self.strike(node, verb);
        let answer = self.carry(strike.as_ref().map(|strike| strike.fault), limit, request).await?;
        let earlier = self.script.lock().remember((node.clone(), verb), name, &answer.value);
        Ok(Answer { value: distort(answer.value, earlier, strike), ..answer })
    }
}

impl Script {
    /// Note an answer, and give the newest one before it that is for another fragment.
    fn remember(
        &mut self,
        asked: (NodeAddress, Verb),
        name: &FragmentName,
        answer: &RawFragment,
    ) -> Option<RawFragment> {
        let answers = self.earlier.entry(asked).or_default();
        answers.retain(|(of, _)| of != name);
        let found = answers.last().map(|(_, answer)| answer.clone());
        answers.push((name.clone(), answer.clone()));
        if answers.len() > 2 {
            answers.remove(0);
        }
        found
    }
}

fn distort(honest: RawFragment, earlier: Option<RawFragment>, strike: Option<Strike>) -> RawFragment {
    let Some(Strike { fault, mut random }) = strike else { return honest };
    match (fault, earlier) {
        (Fault::CorruptFragment, _) => {
            RawFragment { fragment: flip(&honest.fragment, &mut random), ..honest }
        }
        (Fault::CorruptFpcc, _) => RawFragment { fpcc: flip(&honest.fpcc, &mut random), ..honest },
        (Fault::Stale, Some(earlier)) => earlier,
        (Fault::Swap, Some(earlier)) => RawFragment { fragment: earlier.fragment, ..honest },
        _ => honest,
    }
}

/// Another value for one to eight of its bytes. Nothing stays nothing.
fn flip(bytes: &Bytes, random: &mut StdRng) -> Bytes {
    let mut changed = bytes.to_vec();
    let count = random.random_range(1..=8).min(changed.len());
    for place in rand::seq::index::sample(random, changed.len(), count) {
        changed[place] ^= random.random_range(1..=255u8);
    }
    changed.into()
}

impl FragmentTransport for FaultyTransport {
    fn info<'a>(&'a self, node: &'a NodeAddress, limit: Duration) -> Reply<'a, NodeInfo> {
        Box::pin(self.pass(node, Verb::Info, limit, async |limit| self.inner.info(node, limit).await))
    }

    fn volumes<'a>(&'a self, node: &'a NodeAddress, limit: Duration) -> Reply<'a, Vec<VolumeEntry>> {
        Box::pin(self.pass(node, Verb::Volumes, limit, async |limit| self.inner.volumes(node, limit).await))
    }

    fn register<'a>(
        &'a self,
        node: &'a NodeAddress,
        descriptor: &'a VolumeDescriptor,
        limit: Duration,
    ) -> Reply<'a, ()> {
        Box::pin(self.pass(node, Verb::Register, limit, async move |limit| {
            self.inner.register(node, descriptor, limit).await
        }))
    }

    fn lease<'a>(
        &'a self,
        node: &'a NodeAddress,
        writer: Writer,
        request: &'a LeaseRequest,
        limit: Duration,
    ) -> Reply<'a, ()> {
        Box::pin(self.pass(node, Verb::Lease, limit, async move |limit| {
            self.inner.lease(node, writer, request, limit).await
        }))
    }

    fn put<'a>(
        &'a self,
        node: &'a NodeAddress,
        writer: Writer,
        name: &'a FragmentName,
        fpcc: Bytes,
        fragment: Bytes,
        flush: bool,
        limit: Duration,
    ) -> Reply<'a, ()> {
        let request =
            async move |limit| self.inner.put(node, writer, name, fpcc, fragment, flush, limit).await;
        Box::pin(self.change(node, Verb::Put, limit, || (), request))
    }

    fn get<'a>(
        &'a self,
        node: &'a NodeAddress,
        volume: VolumeId,
        name: &'a FragmentName,
        limit: Duration,
    ) -> Reply<'a, RawFragment> {
        let request = async move |limit| self.inner.get(node, volume, name, limit).await;
        Box::pin(self.fetch(node, Verb::Get, name, limit, request))
    }

    fn get_slice<'a>(
        &'a self,
        node: &'a NodeAddress,
        volume: VolumeId,
        name: &'a FragmentName,
        range: Range<u64>,
        limit: Duration,
    ) -> Reply<'a, RawFragment> {
        let request = async move |limit| self.inner.get_slice(node, volume, name, range, limit).await;
        Box::pin(self.fetch(node, Verb::GetSlice, name, limit, request))
    }

    fn statement<'a>(
        &'a self,
        node: &'a NodeAddress,
        volume: VolumeId,
        name: &'a FragmentName,
        nonce: Nonce,
        limit: Duration,
    ) -> Reply<'a, Statement> {
        let request = async move |limit| self.inner.statement(node, volume, name, nonce, limit).await;
        Box::pin(self.pass(node, Verb::Statement, limit, request))
    }

    fn batch<'a>(
        &'a self,
        node: &'a NodeAddress,
        writer: Writer,
        operations: &'a [Operation],
        flush: bool,
        limit: Duration,
    ) -> Reply<'a, Vec<OperationAnswer>> {
        Box::pin(async move {
            let mut strike = self.strike(node, Verb::Batch);
            let fault = strike.as_ref().map(|strike| strike.fault);
            if fault == Some(Fault::Forget) {
                let info = self.inner.info(node, limit).await?;
                let value = vec![acknowledgement(); operations.len()];
                return Ok(Answer { node: info.node, boot: info.boot, value });
            }
            let request = async |limit| self.inner.batch(node, writer, operations, flush, limit).await;
            let mut answer = self.carry(fault, limit, request).await?;
            if let Some(strike) = &mut strike {
                distort_batch(&mut answer.value, strike);
            }
            Ok(answer)
        })
    }

    fn flush<'a>(&'a self, node: &'a NodeAddress, writer: Writer, limit: Duration) -> Reply<'a, ()> {
        let request = async move |limit| self.inner.flush(node, writer, limit).await;
        Box::pin(self.change(node, Verb::Flush, limit, || (), request))
    }

    fn status<'a>(
        &'a self,
        node: &'a NodeAddress,
        volume: VolumeId,
        key: &'a str,
        version: u64,
        limit: Duration,
    ) -> Reply<'a, ObjectStatus> {
        Box::pin(self.pass(node, Verb::Status, limit, async move |limit| {
            self.inner.status(node, volume, key, version, limit).await
        }))
    }

    fn list<'a>(
        &'a self,
        node: &'a NodeAddress,
        volume: VolumeId,
        after: Option<&'a str>,
        page: usize,
        limit: Duration,
    ) -> Reply<'a, Listing> {
        Box::pin(self.pass(node, Verb::List, limit, async move |limit| {
            self.inner.list(node, volume, after, page, limit).await
        }))
    }
}

fn acknowledgement() -> OperationAnswer {
    OperationAnswer { status: 200, fpcc: Bytes::new(), payload: Bytes::new() }
}

/// Strikes every fragment in it; deletes and puts have none.
fn distort_batch(answers: &mut [OperationAnswer], strike: &mut Strike) {
    for answer in answers.iter_mut().filter(|answer| !answer.fpcc.is_empty()) {
        match strike.fault {
            Fault::CorruptFragment => answer.payload = flip(&answer.payload, &mut strike.random),
            Fault::CorruptFpcc => answer.fpcc = flip(&answer.fpcc, &mut strike.random),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::in_process::InProcessTransport;
    use crate::transport::scripted::{NODE, ScriptedNode, WRITER, fragment_name};

    const LIMIT: Duration = Duration::from_secs(1);

    struct Bench {
        faulty: Arc<FaultyTransport>,
        node: ScriptedNode,
        address: NodeAddress,
    }

    impl Bench {
        fn new(seed: u64) -> Bench {
            let node = ScriptedNode::keeping();
            let faulty = FaultyTransport::new(Arc::new(InProcessTransport::new([node.router()])), seed);
            Bench { faulty, node, address: InProcessTransport::address(0) }
        }

        async fn put(&self, key: &str) -> Result<Answer<()>, TransportError> {
            let (fpcc, fragment) = (format!("fpcc of {key}").into(), format!("fragment of {key}").into());
            self.faulty.put(&self.address, WRITER, &fragment_name(key), fpcc, fragment, false, LIMIT).await
        }

        async fn get(&self, key: &str) -> Result<(String, String), TransportError> {
            let name = fragment_name(key);
            let raw = self.faulty.get(&self.address, WRITER.volume, &name, LIMIT).await?.value;
            let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
            Ok((text(&raw.fpcc), text(&raw.fragment)))
        }
    }

    fn of(key: &str) -> (String, String) {
        (format!("fpcc of {key}"), format!("fragment of {key}"))
    }

    #[tokio::test]
    async fn without_rules_everything_passes_and_is_counted() {
        let bench = Bench::new(1);
        bench.put("a").await.unwrap();
        assert_eq!(bench.get("a").await.unwrap(), of("a"));
        bench.get("a").await.unwrap();
        assert_eq!(bench.faulty.count(&bench.address, Verb::Get), 2);
        assert_eq!(bench.faulty.count_all(Verb::Put), 1);
        assert_eq!(bench.faulty.count(&InProcessTransport::address(1), Verb::Get), 0);
        bench.faulty.reset_counts();
        assert_eq!(bench.faulty.count_all(Verb::Get), 0);
    }

    #[tokio::test]
    async fn a_lost_request_does_not_arrive_and_a_lost_answer_does() {
        let bench = Bench::new(1);
        bench.faulty.add(Rule::always(Fault::Lose).on(Verb::Put).times(1));
        assert!(matches!(bench.put("a").await, Err(TransportError::Unreachable(_))));
        assert_eq!(bench.node.requests().len(), 0);
        bench.faulty.add(Rule::always(Fault::LoseAnswer).on(Verb::Put).times(1));
        assert!(matches!(bench.put("a").await, Err(TransportError::Unreachable(_))));
        assert_eq!(bench.get("a").await.unwrap(), of("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_hung_request_ends_at_its_limit_and_a_delayed_one_late() {
        let bench = Bench::new(1);
        bench.put("a").await.unwrap();
        let began = tokio::time::Instant::now();
        let hung = bench.faulty.add(Rule::always(Fault::Hang));
        assert!(matches!(bench.get("a").await, Err(TransportError::TimedOut(LIMIT))));
        assert_eq!(began.elapsed(), LIMIT);
        bench.faulty.remove(hung);
        bench.faulty.add(Rule::always(Fault::Delay(LIMIT / 2)));
        assert_eq!(bench.get("a").await.unwrap(), of("a"));
        assert_eq!(began.elapsed(), LIMIT + LIMIT / 2);
    }

    #[tokio::test]
    async fn corrupt_answers_differ_only_where_they_should() {
        let bench = Bench::new(1);
        bench.put("a").await.unwrap();
        bench.faulty.add(Rule::always(Fault::CorruptFragment).times(1));
        let (fpcc, fragment) = bench.get("a").await.unwrap();
        assert!(fpcc == of("a").0 && fragment != of("a").1, "{fpcc}, {fragment}");
        bench.faulty.add(Rule::always(Fault::CorruptFpcc).times(1));
        let (fpcc, fragment) = bench.get("a").await.unwrap();
        assert!(fpcc != of("a").0 && fragment == of("a").1, "{fpcc}, {fragment}");
        assert_eq!(bench.get("a").await.unwrap(), of("a"));
    }

    #[tokio::test]
    async fn stale_and_swapped_answers_are_those_of_another_fragment() {
        let bench = Bench::new(1);
        for key in ["a", "b"] {
            bench.put(key).await.unwrap();
        }
        bench.get("a").await.unwrap();
        bench.faulty.add(Rule::always(Fault::Stale).times(2));
        assert_eq!(bench.get("b").await.unwrap(), of("a"));
        assert_eq!(bench.get("b").await.unwrap(), of("a"), "asked again, it lies again");
        bench.faulty.add(Rule::always(Fault::Swap).times(1));
        assert_eq!(bench.get("b").await.unwrap(), (of("b").0, of("a").1));
    }

    #[tokio::test]
    async fn a_forgotten_put_is_acknowledged_and_not_there() {
        let bench = Bench::new(1);
        bench.faulty.add(Rule::always(Fault::Forget).on(Verb::Put));
        assert_eq!(bench.put("a").await.unwrap().node, NODE);
        assert!(matches!(
            bench.get("a").await,
            Err(TransportError::Refused { code: RefusalCode::NotFound, .. })
        ));
    }

    #[tokio::test]
    async fn a_full_node_refuses_what_the_rule_names_and_nothing_else() {
        let bench = Bench::new(1);
        bench.put("a").await.unwrap();
        bench.faulty.add(Rule::always(Fault::Refuse(RefusalCode::NoSpace)).on(Verb::Put).at(&bench.address));
        assert!(matches!(
            bench.put("b").await,
            Err(TransportError::Refused { code: RefusalCode::NoSpace, .. })
        ));
        assert_eq!(bench.get("a").await.unwrap(), of("a"));
        bench.faulty.clear();
        bench.put("b").await.unwrap();
    }

    #[tokio::test]
    async fn gets_in_a_batch_are_corrupted_too() {
        let bench = Bench::new(1);
        let put =
            Operation::Put { name: fragment_name("a"), fpcc: "fpcc".into(), fragment: "fragment".into() };
        let operations = [put, Operation::Get(fragment_name("a"))];
        bench.faulty.add(Rule::always(Fault::CorruptFragment).on(Verb::Batch));
        let answer = bench.faulty.batch(&bench.address, WRITER, &operations, false, LIMIT).await.unwrap();
        assert_eq!(answer.value[1].fpcc, "fpcc");
        assert_ne!(answer.value[1].payload, "fragment");
    }

    async fn losses(seed: u64) -> Vec<bool> {
        let bench = Bench::new(seed);
        bench.faulty.add(Rule::always(Fault::Lose).chance(0.5));
        let mut lost = Vec::new();
        for _ in 0..40 {
            lost.push(bench.faulty.info(&bench.address, LIMIT).await.is_err());
        }
        lost
    }

    #[tokio::test]
    async fn the_same_seed_brings_the_same_faults() {
        assert_eq!(losses(7).await, losses(7).await);
        assert_ne!(losses(7).await, losses(8).await);
        assert!((10..=30).contains(&losses(7).await.iter().filter(|lost| **lost).count()));
    }
}
