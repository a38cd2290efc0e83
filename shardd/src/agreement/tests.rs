//! Five real nodes in one process, with their stores and requests; only the wires are not there.

use std::collections::{BTreeSet, HashMap, HashSet};

use avidfs_tests::seed::Dice;
use axum::Router;
use axum::body::Body;
use bytes::BytesMut;
use common::codec::{Codec, split};
use common::hash::HashId;
use common::members::{Member, part_name};
use common::wire::{
    FROM_HEADER, MAC_HEADER, NodeKey, Refusal, RefusalCode, SIGNATURE_HEADER, fragment_prefix,
};
use ed25519_dalek::{Signer, SigningKey};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tower::ServiceExt;

use super::*;
use crate::intake;
use crate::store::Claim;
use crate::{ModelledDisk, StoreOptions};

const NODES: usize = 5;

/// Requests between nodes, as calls; a node that is cut off neither asks nor answers.
#[derive(Default)]
struct Wires {
    routers: Mutex<HashMap<NodeId, Router>>,
    agreements: Mutex<HashMap<NodeId, Weak<Agreement>>>,
    cut: Mutex<HashSet<NodeId>>,
}

struct Wire {
    own: NodeId,
    wires: Arc<Wires>,
}

impl Link for Wire {
    fn carry<'a>(&'a self, to: &'a Member, request: Request<Bytes>) -> Carried<'a> {
        Box::pin(async move {
            if self.is_cut(to.node) {
                return Err("cut off".into());
            }
            let router = self.wires.routers.lock().get(&to.node).cloned().ok_or("not there")?;
            Ok(ask(router, request.map(Body::from)).await)
        })
    }

    fn open<'a>(&'a self, to: &'a Member, request: Request<Bytes>) -> Opened<'a> {
        Box::pin(async move {
            if self.is_cut(to.node) {
                return Err("cut off".into());
            }
            let peer =
                self.wires.agreements.lock().get(&to.node).and_then(Weak::upgrade).ok_or("not there")?;
            let header = |name: &str| request.headers()[name].to_str().unwrap();
            let (from, mac) = (header(FROM_HEADER).parse().unwrap(), header(MAC_HEADER).parse().unwrap());
            let ear = peer.listen_to(from, mac).map_err(|error| error.to_string())?;
            let (mouth, mut near) = tokio::io::duplex(1 << 10);
            let (mut far, heard) = tokio::io::duplex(1 << 10);
            tokio::spawn(ear.listen(heard));
            let wire = Wire { own: self.own, wires: self.wires.clone() };
            let to = to.node;
            tokio::spawn(async move {
                let cut = async {
                    while !wire.is_cut(to) {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => (),
                    () = cut => (),
                }
            });
            Ok(Box::new(mouth) as Box<dyn Stream>)
        })
    }
}

impl Wire {
    fn is_cut(&self, to: NodeId) -> bool {
        [self.own, to].iter().any(|node| self.wires.cut.lock().contains(node))
    }
}

async fn ask(router: Router, request: Request<Body>) -> Response<Bytes> {
    let (parts, body) = router.oneshot(request).await.unwrap().into_parts();
    Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
}

struct Pool {
    wires: Arc<Wires>,
    members: Members,
    stores: Vec<Option<Arc<Store>>>,
    owner: SigningKey,
    quota: Option<u64>,
    folder: tempfile::TempDir,
    /// What the nodes' segments are on, if not on a real one.
    disks: Option<Vec<ModelledDisk>>,
}

impl Pool {
    fn new() -> Pool {
        Pool::with_quota(None)
    }

    fn with_quota(quota: Option<u64>) -> Pool {
        Pool::on(None, quota)
    }

    fn on(disks: Option<Vec<ModelledDisk>>, quota: Option<u64>) -> Pool {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let stores: Vec<Arc<Store>> = (0..NODES).map(|k| open(folder.path(), k, disks.as_deref())).collect();
        let member = |store: &Arc<Store>| Member {
            node: store.node(),
            key: NodeKey(store.signing_key().verifying_key().to_bytes()),
            url: String::new(),
        };
        let members = Members::new("3+2".parse().unwrap(), stores.iter().map(member).collect()).unwrap();
        let stores = stores.into_iter().map(Some).collect();
        let owner = SigningKey::from_bytes(&[3; 32]);
        let mut pool = Pool { wires: Arc::default(), members, stores, owner, quota, folder, disks };
        (0..NODES).for_each(|k| pool.start(k));
        pool
    }

    fn start(&mut self, k: usize) {
        let disks = self.disks.as_deref();
        let store = self.stores[k].get_or_insert_with(|| open(self.folder.path(), k, disks)).clone();
        let options = AgreementOptions {
            members: self.members.clone(),
            owner_quota: self.quota,
            patience: Duration::from_secs(2),
            link: Arc::new(Wire { own: store.node(), wires: self.wires.clone() }),
        };
        let node = store.node();
        let agreement = Arc::new(Agreement::start(store.clone(), options).unwrap());
        self.wires.agreements.lock().insert(node, Arc::downgrade(&agreement));
        let router = crate::app_for(store, intake::Limits::default(), None, Some(agreement));
        self.wires.routers.lock().insert(node, router);
    }

    /// It ends; what the disk has of it is all that is left.
    async fn stop(&mut self, k: usize) {
        let store = self.stores[k].take().unwrap();
        let router = self.wires.routers.lock().remove(&store.node());
        drop(router);
        let weak = Arc::downgrade(&store);
        drop(store);
        until("the node has ended", || weak.strong_count() == 0).await;
    }

    /// A bit of each note of an instance is another one on the disk of a node that has ended.
    fn rot_notes(&self, k: usize, name: &str, version: u64) {
        let key = format!("{}/{name}\u{1}{version:016x}", self.owner());
        for segment in std::fs::read_dir(self.folder.path().join(format!("{k}/segments"))).unwrap() {
            let path = segment.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            let is_key = |at: &usize| bytes[*at..].starts_with(key.as_bytes());
            let keys: Vec<usize> = (0..bytes.len()).filter(is_key).collect();
            for key in keys {
                let note = bytes[key..].windows(4).position(|piece| piece == b"AVS1").unwrap();
                bytes[key + note + 8] ^= 1;
            }
            std::fs::write(path, bytes).unwrap();
        }
    }

    fn cut_off(&self, k: usize) {
        self.wires.cut.lock().insert(self.node(k));
    }

    fn reconnect(&self, k: usize) {
        self.wires.cut.lock().remove(&self.node(k));
    }

    fn node(&self, k: usize) -> NodeId {
        self.stores[k].as_ref().unwrap().node()
    }

    fn agreement(&self, k: usize) -> Arc<Agreement> {
        self.wires.agreements.lock()[&self.node(k)].upgrade().unwrap()
    }

    fn owner(&self) -> OwnerId {
        OwnerId(self.owner.verifying_key().to_bytes())
    }

    fn id(&self, name: &str, version: u64) -> InstanceId {
        InstanceId::new(self.owner(), name, version).unwrap()
    }

    /// Which of the nodes here has which fragment.
    fn places(&self, name: &str) -> Vec<usize> {
        let position = |member: &&Member| {
            (0..NODES).find(|k| self.stores[*k].as_ref().is_some_and(|store| store.node() == member.node))
        };
        self.members
            .group(self.owner(), name)
            .iter()
            .map(|member| position(member).unwrap_or(NODES))
            .collect()
    }

    async fn bring(
        &self,
        index: usize,
        name: &str,
        version: u64,
        object: &Encoded,
        signed: Signature,
    ) -> Response<Bytes> {
        let key = format!("{}/{name}", self.owner());
        let key = utf8_percent_encode(&key, NON_ALPHANUMERIC);
        let request = Request::post(format!("/objects/{key}/{version}/fragment/{index}"));
        let request = request.header(SIGNATURE_HEADER, signed.to_string()).body(object.body(index).into());
        let node = self.members.group(self.owner(), name)[index].node;
        let Some(router) = self.wires.routers.lock().get(&node).cloned() else {
            return Response::builder().status(StatusCode::BAD_GATEWAY).body(Bytes::new()).unwrap();
        };
        ask(router, request.unwrap()).await
    }

    fn signed(&self, name: &str, version: u64, object: &Encoded) -> Signature {
        let (members, owner) = (*self.members.digest().as_bytes(), self.owner());
        let text = version_statement(&members, &owner, name, version, object.fpcc.digest().as_bytes());
        Signature(self.owner.sign(&text).to_bytes())
    }

    /// What the nodes answer to whom fragments `indexes` are brought, at once.
    async fn put(&self, name: &str, version: u64, object: &Encoded, indexes: &[usize]) -> Vec<u16> {
        let signed = self.signed(name, version, object);
        let brought = indexes.iter().map(|index| self.bring(*index, name, version, object, signed));
        let answers = futures_util::future::join_all(brought).await;
        answers.iter().map(|answer| answer.status().as_u16()).collect()
    }

    async fn latest(&self, k: usize, name: &str) -> LatestVersion {
        let key = format!("{}/{name}", self.owner());
        let key = utf8_percent_encode(&key, NON_ALPHANUMERIC);
        let request = Request::get(format!("/objects/{key}/latest")).body(Body::empty()).unwrap();
        let router = self.wires.routers.lock()[&self.node(k)].clone();
        serde_json::from_slice(ask(router, request).await.body()).unwrap()
    }

    /// The version and digest that a node has verified.
    async fn verified(&self, k: usize, name: &str) -> Option<(u64, String)> {
        self.latest(k, name).await.verified.map(|verified| (verified.version, verified.fpcc))
    }

    async fn until_all_verified(&self, name: &str, version: u64, object: &Encoded) {
        let wanted = Some((version, object.fpcc.digest().to_string()));
        for k in (0..NODES).filter(|k| self.stores[*k].is_some()) {
            for _ in 0..1000 {
                if self.verified(k, name).await == wanted {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(self.verified(k, name).await, wanted, "node {k}");
        }
    }

    /// Bytes of a node's disk that all there is takes.
    fn used_on_disk(&self, k: usize) -> u64 {
        self.stores[k].as_ref().unwrap().usage().used_bytes
    }

    /// The owner has all there is.
    async fn until_all_charged(&self) {
        let charged = |k: usize| {
            let agreement = self.wires.agreements.lock()[&self.node(k)].upgrade().unwrap();
            agreement.inner.state.lock().names.used(self.owner())
        };
        until("all that is on disk is charged", || ALL.iter().all(|k| charged(*k) == self.used_on_disk(*k)))
            .await;
    }

    fn fragments(&self, name: &str, version: u64) -> usize {
        let stores = self.stores.iter().flatten();
        let key = format!("{}/{name}", self.owner());
        stores.filter(|store| store.status(Space::ObjectStore, &key, version).is_ok()).count()
    }

    /// Everything the nodes keep, notes included.
    fn kept(&self) -> Vec<u64> {
        self.stores.iter().flatten().map(|store| store.usage().fragments).collect()
    }
}

fn open(folder: &std::path::Path, k: usize, disks: Option<&[ModelledDisk]>) -> Arc<Store> {
    let mut options = StoreOptions::new(folder.join(k.to_string()));
    options.capacity = Some(256 << 20);
    if let Some(disks) = disks {
        options.disk = disks[k].plugged();
        options.has_upkeep = false;
    }
    Store::open(options).unwrap()
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: not within 10 s");
}

struct Encoded {
    fpcc: Fpcc,
    fragments: Vec<Bytes>,
}

impl Encoded {
    fn new(text: &str, length: usize) -> Encoded {
        let codec = Codec::of("3+2".parse().unwrap());
        let bytes: Bytes = text.as_bytes().iter().copied().cycle().take(length).collect();
        let data = split(codec.code(), &bytes);
        let parity = codec.parity_of(&data);
        let fragments: Vec<Bytes> = data.into_iter().chain(parity.into_iter().map(Bytes::from)).collect();
        let slices: Vec<&[u8]> = fragments.iter().map(|fragment| &fragment[..]).collect();
        let fpcc = Fpcc::compute(&codec, HashId::Blake3, length as u64, &slices);
        Encoded { fpcc, fragments }
    }

    fn body(&self, index: usize) -> Bytes {
        let mut body = BytesMut::from(&fragment_prefix(&self.fpcc.to_bytes())[..]);
        body.extend_from_slice(&self.fragments[index]);
        body.freeze()
    }
}

const ALL: [usize; NODES] = [0, 1, 2, 3, 4];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_all_nodes_get_is_stored_and_everyone_says_the_same_also_after_a_restart() {
    let mut pool = Pool::new();
    let object = Encoded::new("an object", 200_000);
    assert_eq!(pool.put("a/b", 1, &object, &ALL).await, [200; 5]);
    pool.until_all_verified("a/b", 1, &object).await;
    assert_eq!(pool.latest(0, "a/b").await.verified.unwrap().object_length, Some(200_000));
    for k in ALL {
        pool.stop(k).await;
    }
    ALL.iter().for_each(|k| pool.start(*k));
    pool.until_all_verified("a/b", 1, &object).await;
    assert_eq!(pool.put("a/b", 1, &object, &ALL).await, [200; 5], "the same again");
    assert_eq!(pool.put("a/b", 1, &Encoded::new("another", 200_000), &ALL).await, [409; 5]);
    assert_eq!(pool.fragments("a/b", 1), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_is_told_is_stored_is_so_after_all_nodes_lost_power() {
    let object = Encoded::new("an object", 3000);
    for seed in 0..20 {
        let disks = (0..NODES).map(|_| ModelledDisk::default()).collect();
        let (mut pool, mut dice) = (Pool::on(Some(disks), None), Dice::new(seed));
        let answers = pool.put("a", 1, &object, &ALL).await;
        assert!(answers.iter().filter(|status| **status == 200).count() >= 3, "{answers:?}");
        for disk in pool.disks.iter().flatten() {
            disk.lose_power(&mut |bound| dice.below(bound));
        }
        for k in ALL {
            pool.stop(k).await;
        }
        ALL.iter().for_each(|k| pool.start(*k));
        pool.until_all_verified("a", 1, &object).await;
    }
}

/// One rotten note kept the node from starting, and all that it had from everyone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_note_that_is_rotten_costs_a_start_what_was_said_of_its_instance_alone() {
    let mut pool = Pool::new();
    let (one, other) = (Encoded::new("one", 3000), Encoded::new("other", 3000));
    for name in ["a", "b"] {
        assert_eq!(pool.put(name, 1, &one, &ALL).await, [200; 5]);
    }
    let (rotten, index) = (0, pool.places("a").iter().position(|k| *k == 0).unwrap());
    pool.until_all_verified("a", 1, &one).await;
    // A start seals the segment: what was left open is verified, and what is torn of it was never said.
    pool.stop(rotten).await;
    pool.start(rotten);
    pool.stop(rotten).await;
    pool.rot_notes(rotten, "a", 1);
    pool.start(rotten);
    assert_eq!(pool.fragments("a", 1), 5, "it is no fragment that nobody counts on");
    assert!(pool.verified(rotten, "b").await.is_some());
    assert_eq!(pool.verified(rotten, "a").await, None);
    // It does not know what it said, so it says nothing.
    assert_eq!(pool.put("a", 1, &other, &[index]).await, [500]);
    assert_eq!(pool.put("a", 1, &one, &[index]).await, [500]);
    assert_eq!(pool.put("a", 2, &other, &ALL).await, [200; 5]);
    until("the first is gone", || pool.fragments("a", 1) == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_one_node_dead_objects_are_stored_and_it_completes_them_when_it_is_back() {
    let mut pool = Pool::new();
    let dead = pool.places("a")[1];
    pool.stop(dead).await;
    let object = Encoded::new("an object", 100_000);
    assert_eq!(pool.put("a", 1, &object, &[0, 2, 3, 4]).await, [200; 4]);
    assert_eq!(pool.fragments("a", 1), 4);
    pool.start(dead);
    pool.until_all_verified("a", 1, &object).await;
    until("it has its fragment", || pool.fragments("a", 1) == 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_cut_off_and_one_that_the_client_left_out_learn_of_it() {
    let pool = Pool::new();
    let cut = pool.places("a")[4];
    pool.cut_off(cut);
    let object = Encoded::new("an object", 100_000);
    assert_eq!(pool.put("a", 1, &object, &[0, 1, 2, 3]).await, [200; 4]);
    pool.reconnect(cut);
    pool.until_all_verified("a", 1, &object).await;
    until("it has its fragment", || pool.fragments("a", 1) == 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_crashes_before_enough_nodes_have_something_has_stored_nothing() {
    let pool = Pool::new();
    let object = Encoded::new("an object", 1000);
    assert_eq!(pool.put("a", 1, &object, &[0, 1, 2]).await, [503; 3], "4 must echo");
    for k in ALL {
        assert_eq!(pool.verified(k, "a").await, None);
    }
    // It comes back, and sends the rest.
    assert_eq!(pool.put("a", 1, &object, &[3]).await, [200]);
    pool.until_all_verified("a", 1, &object).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_is_told_although_somebody_brought_another_object_meanwhile() {
    let pool = Pool::new();
    let (one, other) = (Encoded::new("one", 5000), Encoded::new("other", 5000));
    let waits = pool.put("a", 1, &one, &[0, 1, 2]);
    let disturbs = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let conflict = pool.put("a", 1, &other, &[0, 1, 2]).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        (conflict, pool.put("a", 1, &one, &[3]).await)
    };
    let (told, (conflict, last)) = tokio::join!(waits, disturbs);
    assert_eq!((told, conflict, last), (vec![200; 3], vec![409; 3], vec![200]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fragment_that_comes_too_late_and_is_anothers_is_not_kept() {
    let pool = Pool::new();
    let (one, other) = (Encoded::new("one", 5000), Encoded::new("other", 5000));
    assert_eq!(pool.put("a", 1, &one, &[0, 1, 2, 3]).await, [200; 4]);
    // The last node verifies it too, and has no fragment yet.
    pool.until_all_verified("a", 1, &one).await;
    assert_eq!(pool.put("a", 1, &other, &[4]).await, [409]);
    let last = pool.places("a")[4];
    let agreement = pool.wires.agreements.lock()[&pool.node(last)].upgrade().unwrap();
    until("it is settled", || agreement.inner.unclaimed.lock().is_empty()).await;
    let id = pool.id("a", 1);
    let held = agreement.inner.held(&id, &agreement.inner.group(&id).unwrap());
    assert_ne!(held, Some(other.fpcc.digest()));
    until("it is completed", || pool.fragments("a", 1) == 5).await;
}

/// It came while a step was about to put the rebuilt one there, was not wanted, and was settled after that step.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fragment_that_comes_while_it_is_rebuilt_stays() {
    let pool = Pool::new();
    let object = Encoded::new("an object", 5000);
    assert_eq!(pool.put("a", 1, &object, &[0, 1, 2, 3]).await, [200; 4]);
    until("it is completed", || pool.fragments("a", 1) == 5).await;
    let (agreement, id) = (pool.agreement(pool.places("a")[4]), pool.id("a", 1));
    let group = agreement.inner.group(&id).unwrap();
    assert_eq!(agreement.inner.notes.read(&id).unwrap().unwrap().echoed(), None);
    agreement.inner.unclaimed.lock().insert(id.clone());
    agreement.inner.queue_settling(&id, &group, object.fpcc.digest());
    until("it is settled", || agreement.inner.unclaimed.lock().is_empty()).await;
    assert_eq!(agreement.inner.held(&id, &group), Some(object.fpcc.digest()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_objects_under_one_name_all_nodes_verify_the_same_or_none() {
    let mut pool = Pool::new();
    for round in 0..5 {
        let name = format!("a{round}");
        let (one, other) = (Encoded::new("one", 5000), Encoded::new("other", 5000));
        let split = round % 5;
        let (ones, others): (Vec<usize>, Vec<usize>) = ALL.iter().partition(|index| **index >= split);
        let (first, second) =
            tokio::join!(pool.put(&name, 1, &one, &ones), pool.put(&name, 1, &other, &others));
        let mut verified = BTreeSet::new();
        for k in ALL {
            verified.extend(pool.verified(k, &name).await.map(|(_, digest)| digest));
        }
        assert!(verified.len() <= 1, "{verified:?}");
        let all_got = |answers: &[u16], digest: &Encoded| {
            !answers.contains(&200) || verified.contains(&digest.fpcc.digest().to_string())
        };
        assert!(all_got(&first, &one) && all_got(&second, &other), "{first:?} {second:?}");
        if split == 1 {
            assert_eq!((first, second), (vec![200; 4], vec![409]), "four are enough for one of them");
            let lied_to = pool.places(&name)[0];
            until("the fifth has the right fragment", || {
                let store = pool.stores[lied_to].as_ref().unwrap();
                let kept = store.has(Space::ObjectStore, &steps::fragment_name(&pool.id(&name, 1), 0));
                kept.is_ok_and(|digest| digest == one.fpcc.digest())
            })
            .await;
        }
    }
    // A node echoes one object, also after a restart.
    let one = Encoded::new("one", 5000);
    assert_eq!(pool.put("b", 1, &one, &[2]).await, [503]);
    let restarted = pool.places("b")[2];
    pool.stop(restarted).await;
    pool.start(restarted);
    assert_eq!(pool.put("b", 1, &Encoded::new("other", 5000), &[2]).await, [409]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_wrongly_encoded_object_all_have_the_same_or_nobody_has_it() {
    let pool = Pool::new();
    let (good, garbage) = (Encoded::new("an object", 9000), Bytes::from(vec![7; 3000]));
    for (name, bad) in [("one", &[3][..]), ("two", &[3, 4]), ("data", &[1])] {
        // Its hash is in the FPCC, and it is no fragment of the others' object.
        let mut fragments = good.fragments.clone();
        bad.iter().for_each(|index| fragments[*index] = garbage.clone());
        let slices: Vec<&[u8]> = fragments.iter().map(|fragment| &fragment[..]).collect();
        let fpcc = Fpcc::compute(&Codec::of("3+2".parse().unwrap()), HashId::Blake3, 9000, &slices);
        let answers = pool.put(name, 1, &Encoded { fpcc, fragments: fragments.clone() }, &ALL).await;
        let refused = answers.iter().filter(|status| **status == 422).count();
        match name {
            // Its nodes find out alone; the other four are enough, and no one is ever given the garbage.
            "one" => assert_eq!(answers, [200, 200, 200, 422, 200]),
            "two" => assert_eq!(answers, [503, 503, 503, 422, 422]),
            // With the wrong fragment among the data it is the parity that does not fit.
            _ => assert_eq!((refused, answers.contains(&200)), (2, false), "{answers:?}"),
        }
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(pool.fragments("one", 1), 4, "the fifth can never be");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_higher_version_supersedes_and_what_is_replayed_is_refused() {
    let mut pool = Pool::new();
    let (first, second) = (Encoded::new("first", 3000), Encoded::new("second", 4000));
    let part = part_name("a", 0);
    assert_eq!(pool.put(&part, 1, &first, &ALL).await, [200; 5]);
    assert_eq!(pool.put("a", 1, &first, &ALL).await, [200; 5]);
    assert_eq!(pool.put(&part, 2, &second, &ALL).await, [200; 5]);
    assert_eq!(pool.latest(0, "a").await.highest, 2);
    assert_eq!(pool.put("a", 2, &second, &ALL).await, [200; 5]);
    pool.until_all_verified("a", 2, &second).await;
    until("the first is gone", || pool.fragments("a", 1) + pool.fragments(&part, 1) == 0).await;
    // Of each name a fragment and a note; the note that another flush must cover before it goes may be there too.
    until("and so are its notes", || pool.kept().iter().all(|kept| *kept <= 5)).await;
    for k in ALL {
        pool.stop(k).await;
    }
    ALL.iter().for_each(|k| pool.start(*k));
    assert_eq!(pool.put("a", 1, &first, &ALL).await, [409; 5], "a replay");
    assert_eq!(pool.put(&part, 1, &first, &ALL).await, [409; 5]);
    assert_eq!((pool.fragments("a", 1), pool.fragments("a", 2)), (0, 5));
    assert_eq!(pool.kept(), [4; 5]);
}

/// Only a version higher still had them deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_crash_kept_of_a_superseded_version_goes_at_the_start() {
    let mut pool = Pool::new();
    let (first, second) = (Encoded::new("first", 3000), Encoded::new("second", 4000));
    assert_eq!(pool.put("a", 1, &first, &ALL).await, [200; 5]);
    pool.until_all_verified("a", 1, &first).await;
    let (id, index) = (pool.id("a", 1), pool.places("a").iter().position(|k| *k == 0).unwrap());
    let said = pool.agreement(0).inner.notes.read(&id).unwrap().unwrap();
    assert_eq!(pool.put("a", 2, &second, &ALL).await, [200; 5]);
    pool.until_all_verified("a", 2, &second).await;
    until("the first is gone", || pool.fragments("a", 1) == 0).await;
    pool.stop(0).await;
    {
        let store = open(pool.folder.path(), 0, None);
        let (name, fpcc) = (steps::fragment_name(&id, index), first.fpcc.to_bytes());
        store.put(&crate::Author::Client, &name, &fpcc, &first.fragments[index]).unwrap();
        Notes::of(store.clone()).write(Claim::Data, &id, &said).unwrap();
        store.flush().await.unwrap();
        pool.stores[0] = Some(store);
    }
    pool.start(0);
    assert_eq!((pool.fragments("a", 1), pool.kept()[0]), (0, 2));
    let names = &pool.agreement(0).inner;
    assert_eq!(names.state.lock().names.used(pool.owner()), pool.used_on_disk(0));
}

/// A step that was under way when what supersedes it was verified.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_noted_of_a_superseded_version_goes_again() {
    let pool = Pool::new();
    let (first, second) = (Encoded::new("first", 3000), Encoded::new("second", 4000));
    assert_eq!(pool.put("a", 1, &first, &ALL).await, [200; 5]);
    let (id, agreement) = (pool.id("a", 1), pool.agreement(0));
    let (inner, group) = (&agreement.inner, agreement.inner.group(&id).unwrap());
    until("it is noted", || inner.notes.read(&id).unwrap().is_some()).await;
    let said = inner.notes.read(&id).unwrap().unwrap();
    assert_eq!(pool.put("a", 2, &second, &ALL).await, [200; 5]);
    pool.until_all_verified("a", 2, &second).await;
    until("the first is gone", || inner.notes.read(&id).unwrap().is_none()).await;
    let late = Step { persist: Some(said), ..Step::default() };
    let other = pool.id("other", 1);
    inner.unclaimed.lock().insert(other.clone());
    inner.queue(&mut inner.state.lock(), &id, &group, None, late);
    inner.queue_settling(&other, &group, first.fpcc.digest());
    until("it was noted", || inner.unclaimed.lock().is_empty()).await;
    until("it is gone", || inner.notes.read(&id).unwrap().is_none()).await;
    until("it is forgotten", || !inner.state.lock().names.contains(&id)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_owner_puts_and_only_this_nodes_fragment_is_taken() {
    let pool = Pool::new();
    let object = Encoded::new("an object", 3000);
    let good = pool.signed("a", 1, &object);
    let mut forged = good;
    forged.0[40] ^= 1;
    let refused = |answer: Response<Bytes>| {
        let refusal: Refusal = serde_json::from_slice(answer.body()).unwrap();
        (answer.status().as_u16(), refusal.error)
    };
    let wrong = (422, RefusalCode::Inconsistent);
    assert_eq!(refused(pool.bring(0, "a", 1, &object, forged).await), wrong);
    assert_eq!(refused(pool.bring(0, "a", 2, &object, good).await), wrong, "of another version");
    assert_eq!(refused(pool.bring(0, "b", 1, &object, good).await), wrong, "of another key");
    let mut damaged = Encoded::new("an object", 3000);
    damaged.fragments[0] = Bytes::from(vec![1; damaged.fragments[0].len()]);
    assert_eq!(refused(pool.bring(0, "a", 1, &damaged, good).await), wrong);
    // Fragment 1 brought to the node of fragment 0.
    let key = format!("{}/a", pool.owner());
    let key = utf8_percent_encode(&key, NON_ALPHANUMERIC).to_string();
    let router = pool.wires.routers.lock()[&pool.members.group(pool.owner(), "a")[0].node].clone();
    let request = |method: Method, path: &str, body: Bytes| {
        let request = Request::builder().method(method).uri(path).header(SIGNATURE_HEADER, good.to_string());
        ask(router.clone(), request.body(body.into()).unwrap())
    };
    let path = format!("/objects/{key}/1/fragment/1");
    assert_eq!(refused(request(Method::POST, &path, object.body(1)).await), wrong);
    assert_eq!(pool.kept(), [0; 5], "nothing was kept");
    assert_eq!(pool.put("a", 1, &object, &ALL).await, [200; 5]);
    let path = format!("/objects/{key}/1");
    assert_eq!(refused(request(Method::DELETE, &path, Bytes::new()).await), (400, RefusalCode::BadRequest));
    assert_eq!(pool.fragments("a", 1), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_has_his_quota_and_gets_it_back() {
    let pool = Pool::with_quota(Some(10_000));
    let (small, large) = (Encoded::new("small", 20_000), Encoded::new("large", 30_000));
    assert_eq!(pool.put("a", 1, &small, &ALL).await, [200; 5]);
    assert_eq!(pool.put("b", 1, &large, &ALL).await, [507; 5]);
    assert_eq!(pool.put("a", 2, &Encoded::new("tombstone", 90), &ALL).await, [200; 5]);
    until("the first is gone", || pool.fragments("a", 1) == 0).await;
    assert_eq!(pool.put("b", 1, &small, &ALL).await, [200; 5]);
}

/// Tombstones were data like any other, and nothing could be deleted any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_pool_can_be_emptied_by_deletes() {
    let pool = Pool::new();
    let (object, tombstone) = (Encoded::new("an object", 20_000), Encoded::new("gone", 96));
    for name in ["a", "b"] {
        assert_eq!(pool.put(name, 1, &object, &ALL).await, [200; 5]);
        pool.until_all_verified(name, 1, &object).await;
    }
    pool.stores.iter().flatten().for_each(|store| store.fill());
    assert_eq!(pool.put("a", 2, &object, &ALL).await, [507; 5]);
    assert_eq!(pool.put("c", 1, &tombstone, &ALL).await, [507; 5], "it deletes nothing");
    assert_eq!(pool.put("a", 2, &tombstone, &ALL).await, [200; 5]);
    assert_eq!(pool.put("b", 2, &tombstone, &ALL).await, [200; 5]);
    until("the first are gone", || pool.fragments("a", 1) + pool.fragments("b", 1) == 0).await;
    assert_eq!(pool.put("d", 1, &Encoded::new("small", 9000), &ALL).await, [200; 5]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_used_up_his_quota_can_delete() {
    let pool = Pool::with_quota(Some(20_000));
    let (object, tombstone) = (Encoded::new("an object", 20_000), Encoded::new("gone", 96));
    assert_eq!(pool.put("a0", 1, &object, &ALL).await, [200; 5]);
    let mut number = 0;
    while pool.put(&format!("b{number}"), 1, &tombstone, &ALL).await == [200; 5] {
        number += 1;
    }
    assert_eq!(pool.put("a0", 2, &Encoded::new("more", 97), &ALL).await, [507; 5]);
    assert_eq!(pool.put("a0", 2, &tombstone, &ALL).await, [200; 5]);
    until("the first is gone", || pool.fragments("a0", 1) == 0).await;
    assert_eq!(pool.put("c", 1, &tombstone, &ALL).await, [200; 5]);
}

/// Objects of one byte counted as one byte each, and took some hundred times as much of the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_counts_all_that_an_object_takes_of_the_disk_also_after_a_restart() {
    const QUOTA: u64 = 2_000_000;
    const AT_ONCE: usize = 8;
    let mut pool = Pool::with_quota(Some(QUOTA));
    let object = Encoded::new("x", 1);
    let put = async |pool: &Pool, number: usize| pool.put(&format!("{number:05}"), 1, &object, &ALL).await;
    assert_eq!(put(&pool, 0).await, [200; 5]);
    pool.until_all_charged().await;
    let each = pool.used_on_disk(0);
    let expected = (QUOTA / each) as usize;
    assert!((2000..3000).contains(&expected), "{each} bytes each");
    let mut brought = 1;
    loop {
        let round = (brought..brought + AT_ONCE).map(|number| put(&pool, number));
        let answers = futures_util::future::join_all(round).await.concat();
        brought += AT_ONCE;
        if answers == [507; 5 * AT_ONCE] {
            break;
        }
        assert!(brought < expected + 3 * AT_ONCE, "{brought} objects, {expected} expected");
    }
    assert!(brought > expected, "{brought} objects, {expected} expected");
    pool.until_all_charged().await;
    let used = ALL.map(|k| pool.used_on_disk(k));
    // Those that come at once do not know of each other.
    let full = QUOTA - each + 1..QUOTA + AT_ONCE as u64 * each;
    assert!(used.iter().all(|used| full.contains(used)), "{used:?}");

    for k in ALL {
        pool.stop(k).await;
    }
    ALL.iter().for_each(|k| pool.start(*k));
    pool.until_all_charged().await;
    assert_eq!(ALL.map(|k| pool.used_on_disk(k)), used);
    assert_eq!(put(&pool, brought).await, [507; 5]);
    assert_eq!(put(&pool, 0).await, [200; 5], "the same again takes nothing more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_count_only_if_a_member_says_them_to_this_node() {
    let pool = Pool::new();
    let (from, to) = (pool.stores[0].as_ref().unwrap(), pool.stores[1].as_ref().unwrap());
    let mut messages = Messages::new(pool.members.digest());
    messages.push(Message { id: pool.id("a", 1), word: Word::Ready([1; 32].into()) }).unwrap();
    let hear = |from: NodeId, to: NodeId, body: Bytes, mac: Mac| {
        let peer = pool.wires.agreements.lock()[&to].upgrade().unwrap();
        peer.inner.hear(from, mac, body).map_err(|error| error.code())
    };
    let peer = NodeKey(to.signing_key().verifying_key().to_bytes());
    let pair = Pair::of(&from.signing_key(), &peer, pool.members.digest()).unwrap();
    let body = messages.encode();
    let good = pair.mac(from.node(), to.node(), &body);
    assert_eq!(hear(from.node(), to.node(), body.clone(), good), Ok(()));
    let third = pool.stores[2].as_ref().unwrap().node();
    let refused = Err(RefusalCode::Inconsistent);
    assert_eq!(hear(third, to.node(), body.clone(), good), refused, "somebody else's");
    assert_eq!(hear(from.node(), third, body.clone(), good), refused, "for somebody else");
    assert_eq!(hear(NodeId([9; 16]), to.node(), body.clone(), good), refused, "of nobody");
    assert_eq!(hear(to.node(), to.node(), body.clone(), good), refused, "of itself");
    let elsewhere = Messages::new([9; 32].into()).encode();
    let mac = pair.mac(from.node(), to.node(), &elsewhere);
    assert_eq!(hear(from.node(), to.node(), elsewhere, mac), Err(RefusalCode::Conflict), "of another pool");
}

/// Who hears of a restart hears all that was verified again: all notes were read for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn votes_about_what_is_verified_are_not_looked_at() {
    let pool = Pool::new();
    let object = Encoded::new("an object", 3000);
    assert_eq!(pool.put("a", 1, &object, &ALL).await, [200; 5]);
    pool.until_all_verified("a", 1, &object).await;
    let (agreement, id) = (pool.agreement(0), pool.id("a", 1));
    let inner = &agreement.inner;
    until("nothing is in memory", || inner.state.lock().dispersals.is_empty()).await;
    // Who read the note now would take the instance for a new one.
    inner.notes.drop_all(&id).unwrap();
    for word in [Word::Ready(object.fpcc.digest()), Word::Echo(object.fpcc.digest())] {
        inner.hear_word(pool.node(1), &id, word);
    }
    assert!(inner.state.lock().dispersals.is_empty());
}

/// On one thread, so that nothing is carried out while the peer speaks.
#[tokio::test]
async fn what_a_peer_asks_without_end_is_dropped_and_others_are_answered() {
    let pool = Pool::new();
    let object = Encoded::new("an object", 3000);
    assert_eq!(pool.put("a", 1, &object, &ALL).await, [200; 5]);
    pool.until_all_verified("a", 1, &object).await;
    let (agreement, id) = (pool.agreement(0), pool.id("a", 1));
    let inner = &agreement.inner;
    until("nothing waits", || inner.state.lock().asked.is_empty()).await;
    let queued = |k: usize, times: usize| {
        let before = inner.state.lock().queued;
        (0..times).for_each(|_| inner.hear_word(pool.node(k), &id, Word::Ask));
        inner.state.lock().queued - before
    };
    assert_eq!(queued(1, ASKED + 500), ASKED as u64);
    assert_eq!(queued(2, 3), 3);
    until("all was answered", || inner.state.lock().asked.is_empty()).await;
    assert_eq!(queued(1, 3), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_told_of_verified_objects_has_its_share_of_the_memory() {
    let pool = Pool::new();
    let object = Encoded::new("an object", 3000);
    for name in ["a", "b", "c"] {
        assert_eq!(pool.put(name, 1, &object, &ALL).await, [200; 5]);
        pool.until_all_verified(name, 1, &object).await;
    }
    let agreement = pool.agreement(0);
    let length = agreement.verified_length(0);
    let limits = intake::Limits {
        inflight_bytes: length + length / 2,
        busy_wait: Duration::from_millis(50),
        ..intake::Limits::default()
    };
    let router = crate::app_for(pool.stores[0].clone().unwrap(), limits, None, Some(agreement));
    let told = async || {
        let request = Request::get("/words/verified?after=0").header(FROM_HEADER, pool.node(1).to_string());
        router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    };
    let first = told().await;
    assert_eq!((first.status(), told().await.status()), (StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(first.into_body().collect().await.unwrap().to_bytes().len(), length);
    assert_eq!(told().await.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_listed_without_parts_and_with_what_is_deleted() {
    let pool = Pool::new();
    let object = Encoded::new("an object", 128);
    for name in ["x/2", "x/1", "y", &part_name("x/1", 0)] {
        assert_eq!(pool.put(name, 1, &object, &ALL).await, [200; 5]);
    }
    let path = format!("/objects?owner={}&prefix=x%2F&limit=1", pool.owner());
    let router = pool.wires.routers.lock()[&pool.node(0)].clone();
    let list = async |path: &str| -> VersionList {
        let request = Request::get(path).body(Body::empty()).unwrap();
        serde_json::from_slice(ask(router.clone(), request).await.body()).unwrap()
    };
    let first = list(&path).await;
    assert_eq!((first.objects[0].key.as_str(), first.next.as_deref()), ("x/1", Some("x/1")));
    let second = list(&format!("{path}&after=x%2F1")).await;
    assert_eq!((second.objects[0].key.as_str(), second.next), ("x/2", None));
    assert_eq!(second.objects[0].object_length, Some(128));
}
