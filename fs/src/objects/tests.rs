use std::io::{Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use common::hash::Hash;
use common::members::part_name;
use ed25519_dalek::SigningKey;
use tokio::time::Instant;

use super::disperse::Encoded;
use super::fake::{FakePool, Fault};
use super::manifest::{Content, Manifest, Parts, Place};
use super::*;
use crate::buffers::Buffers;

const PART: u32 = 4096;

fn secret() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn store(pool: &Arc<FakePool>) -> ObjectStore {
    let options = StoreOptions { part_bytes: PART, ..StoreOptions::default() };
    ObjectStore::new(pool.clone(), pool.members(), Ownership::Own(secret()), options)
}

fn pool() -> (Arc<FakePool>, ObjectStore) {
    let pool = FakePool::new("3+2", 5);
    let store = store(&pool);
    (pool, store)
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * at % 251) as u8).collect()
}

/// A source that can be read again.
struct Again(Cursor<Vec<u8>>);

impl Read for Again {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Source for Again {
    fn rewind(&mut self) -> std::io::Result<bool> {
        self.0.set_position(0);
        Ok(true)
    }
}

fn again(object: &[u8]) -> Again {
    Again(Cursor::new(object.to_vec()))
}

fn once(object: &[u8]) -> StreamSource<Cursor<Vec<u8>>> {
    StreamSource(Cursor::new(object.to_vec()))
}

async fn put(store: &ObjectStore, key: &str, object: &[u8]) -> Stored {
    store.put(again(object), key, None, &Progress::new(0)).await.unwrap()
}

async fn get(store: &ObjectStore, key: &str) -> Result<Vec<u8>, ObjectError> {
    let (got, object) = store.get(key, None, Vec::new(), &Progress::new(0)).await?;
    assert_eq!(got.bytes, object.len() as u64);
    Ok(object)
}

/// Put bytes of one's own making under a key, signed as the owner's fragments are.
async fn plant(store: &ObjectStore, name: &str, version: u64, bytes: &[u8]) -> Hash {
    let mut buffer = Buffers::shared().take(bytes.len() + 10);
    buffer.extend_from_slice(bytes);
    let encoded = Encoded::new(store.members.quorums(), buffer, None);
    let instance = Instance { name: name.to_owned(), version };
    store.disperse(&instance, &encoded).await.unwrap();
    store.settle().await;
    encoded.digest()
}

#[tokio::test(start_paused = true)]
async fn objects_of_every_size_come_back() {
    let (_, store) = pool();
    for (length, parts) in [(0, 0), (1, 0), (4095, 0), (4096, 0), (4097, 2), (8192, 2), (3 * 4096 + 5, 4)] {
        let (key, object) = (format!("of {length}"), bytes(length));
        let progress = Progress::new(0);
        let stored = store.put(again(&object), &key, None, &progress).await.unwrap();
        assert_eq!(stored, Stored { version: 1, bytes: length as u64, parts });
        assert_eq!(progress.bytes().0, length as u64);
        let progress = Progress::new(0);
        let (got, read) = store.get(&key, None, Vec::new(), &progress).await.unwrap();
        assert!(read == object, "{length} bytes");
        assert_eq!((got.version, got.bytes, got.parts), (1, length as u64, parts));
        assert_eq!(progress.bytes(), (length as u64, length as u64));
        assert_eq!(store.look(&key).await.unwrap(), got);
    }
}

#[tokio::test(start_paused = true)]
async fn keys_are_any_text_without_a_zero() {
    let (_, store) = pool();
    let keys = ["..", "a/b/../c", "%2F", "ü ☃\n", "?a=b&c#d", "AVO1", &"k".repeat(MAX_KEY)];
    for key in keys {
        put(&store, key, key.as_bytes()).await;
    }
    for key in keys {
        assert_eq!(get(&store, key).await.unwrap(), key.as_bytes());
    }
    for key in ["", "a\0b", "a\x0000000001", &"k".repeat(MAX_KEY + 1)] {
        assert_eq!(store.put(once(b""), key, None, &Progress::new(0)).await, Err(ObjectError::Key));
        assert_eq!(get(&store, key).await, Err(ObjectError::Key));
        assert_eq!(store.delete(key).await, Err(ObjectError::Key));
    }
}

#[tokio::test(start_paused = true)]
async fn every_put_and_delete_makes_the_next_version_and_the_old_ones_go() {
    let (pool, store) = pool();
    assert_eq!(put(&store, "a", &bytes(9000)).await.version, 1);
    assert_eq!(put(&store, "a", b"short").await.version, 2);
    store.settle().await;
    assert_eq!(pool.fragments(), 5, "the manifest of the second version alone");
    assert_eq!(get(&store, "a").await.unwrap(), b"short");
    assert_eq!(store.delete("a").await, Ok(3));
    let gone = Err(ObjectError::NoSuchKey("a".into()));
    assert_eq!(get(&store, "a").await, gone);
    assert_eq!(store.look("a").await.map(drop), gone.clone().map(drop));
    assert_eq!(store.delete("a").await.map(drop), gone.clone().map(drop));
    assert_eq!(store.delete("b").await, Err(ObjectError::NoSuchKey("b".into())));
    assert_eq!(put(&store, "a", b"again").await.version, 4);
    assert_eq!(get(&store, "a").await.unwrap(), b"again");
}

#[tokio::test(start_paused = true)]
async fn a_version_may_be_chosen_and_must_be_higher() {
    let (_, store) = pool();
    let progress = Progress::new(0);
    assert_eq!(store.put(once(b"7"), "a", Some(7), &progress).await.unwrap().version, 7);
    for version in [7, 3] {
        let conflict = ObjectError::Conflict { key: "a".into(), version };
        assert_eq!(store.put(once(b"x"), "a", Some(version), &progress).await, Err(conflict));
    }
    assert_eq!(put(&store, "a", b"8").await.version, 8);
    assert!(store.get("a", Some(8), Vec::new(), &progress).await.is_ok());
    let older = store.get("a", Some(7), Vec::new(), &progress).await.map(drop);
    assert_eq!(older, Err(ObjectError::NoSuchVersion { key: "a".into(), wanted: 7, newest: 8 }));
}

#[tokio::test(start_paused = true)]
async fn whoever_has_no_key_reads_and_does_not_write() {
    let (pool, own) = pool();
    put(&own, "a", b"mine").await;
    let options = StoreOptions::default();
    let theirs = ObjectStore::new(pool.clone(), pool.members(), Ownership::Of(own.owner()), options);
    assert_eq!(get(&theirs, "a").await.unwrap(), b"mine");
    assert!(matches!(theirs.delete("a").await, Err(ObjectError::Owner(_))));
    let written = theirs.put(once(b"x"), "a", None, &Progress::new(0)).await;
    assert!(matches!(written, Err(ObjectError::Owner(_))));
    let other = Ownership::Own(SigningKey::from_bytes(&[8; 32]));
    let other = ObjectStore::new(pool.clone(), pool.members(), other, options);
    assert_eq!(get(&other, "a").await, Err(ObjectError::NoSuchKey("a".into())));
}

#[tokio::test(start_paused = true)]
async fn any_one_node_may_have_any_fault() {
    let faults = [
        Fault::Down,
        Fault::Hangs,
        Fault::Slow(Duration::from_secs(1)),
        Fault::Busy(1_000_000),
        Fault::Flips,
        Fault::OtherDigest,
        Fault::FarVersion,
        Fault::Denies,
        Fault::Conflicts,
        Fault::Full,
        Fault::InventsKeys,
        Fault::Impostor,
    ];
    for fault in faults {
        for node in 0..5 {
            let (pool, store) = pool();
            let (before, after) = (bytes(5000), bytes(13_000));
            put(&store, "a", &before).await;
            store.settle().await;
            pool.fault(node, fault);
            let began = Instant::now();
            assert!(get(&store, "a").await.unwrap() == before, "{fault:?} of {node}");
            assert_eq!(put(&store, "a", &after).await.version, 2, "{fault:?} of {node}");
            assert!(get(&store, "a").await.unwrap() == after, "{fault:?} of {node}");
            let list = store.list("").await.unwrap();
            let keys: Vec<(&str, u64)> =
                list.keys.iter().map(|listed| (listed.key.as_str(), listed.version)).collect();
            assert_eq!(keys, [("a", 2)], "{fault:?} of {node}");
            assert_eq!(store.delete("a").await, Ok(3), "{fault:?} of {node}");
            assert_eq!(get(&store, "a").await, Err(ObjectError::NoSuchKey("a".into())));
            // A list waits for every node.
            let limit = if fault == Fault::Hangs { 50 } else { 12 };
            assert!(began.elapsed() < Duration::from_secs(limit), "{fault:?}: {:?}", began.elapsed());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn with_two_nodes_down_everything_is_read_and_nothing_written() {
    let (pool, store) = pool();
    let object = bytes(20_000);
    put(&store, "a", &object).await;
    store.settle().await;
    for (one, other) in [(0, 1), (1, 3), (2, 4)] {
        pool.fault(one, Fault::Down);
        pool.fault(other, Fault::Down);
        assert!(get(&store, "a").await.unwrap() == object);
        assert_eq!(store.list("").await.unwrap().silent.len(), 2);
        let error = store.put(once(b"x"), "a", None, &Progress::new(0)).await.unwrap_err().to_string();
        assert!(error.starts_with("3 of 5 nodes answer, 4 are needed: fake:"), "{error}");
        assert!(matches!(get(&store, "b").await, Err(ObjectError::TooFewNodes(_))));
        pool.fault(one, Fault::None);
        pool.fault(other, Fault::None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lying_node_costs_one_more_request_and_is_asked_last_then() {
    let (pool, store) = pool();
    put(&store, "a", b"an object").await;
    store.settle().await;
    pool.fault(pool.node_of(store.owner(), "a", 0), Fault::Flips);
    let requests = |pool: &FakePool| pool.asked.swap(0, Ordering::SeqCst);
    requests(&pool);
    get(&store, "a").await.unwrap();
    assert_eq!(requests(&pool), 4);
    get(&store, "a").await.unwrap();
    assert_eq!(requests(&pool), 3);
}

#[tokio::test(start_paused = true)]
async fn a_slow_node_costs_a_third_of_a_second() {
    let (pool, store) = pool();
    put(&store, "a", b"an object").await;
    store.settle().await;
    pool.fault(pool.node_of(store.owner(), "a", 1), Fault::Hangs);
    let began = Instant::now();
    get(&store, "a").await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(400), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_is_waited_for_once_and_not_for_every_part() {
    let (pool, store) = pool();
    let object = bytes(50 * 4096);
    put(&store, "a", &object).await;
    store.settle().await;
    pool.fault(2, Fault::Hangs);
    let began = Instant::now();
    assert!(get(&store, "a").await.unwrap() == object);
    assert!(began.elapsed() < Duration::from_millis(1000), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn more_liars_than_tolerated_bring_an_error_and_no_wrong_byte() {
    let object = bytes(10_000);
    for fault in [Fault::Flips, Fault::FarVersion, Fault::OtherDigest, Fault::Denies] {
        for liars in 2..=5 {
            let (pool, store) = pool();
            put(&store, "a", &object).await;
            store.settle().await;
            (0..liars).for_each(|node| pool.fault(node, fault));
            match get(&store, "a").await {
                Ok(read) => assert!(read == object && liars < 5, "{fault:?} of {liars}"),
                Err(error) => assert!(
                    matches!(error, ObjectError::TooFewNodes(_) | ObjectError::NoSuchKey(_)),
                    "{fault:?} of {liars}: {error}"
                ),
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_owner_did_not_sign_for_this_place_is_refused_though_all_nodes_agree_on_it() {
    let (_, store) = pool();
    let manifest = Manifest { put_ms: 1, content: Content::Whole(Bytes::from_static(b"an object")) };
    let owner = store.owner();
    let right = Place { owner, key: "a", version: 1 };
    let forged = [
        manifest.sign(&right, &SigningKey::from_bytes(&[8; 32])),
        manifest.sign(&Place { key: "b", ..right }, &secret()),
        manifest.sign(&Place { version: 2, ..right }, &secret()),
        b"something else".to_vec(),
    ];
    for (number, bytes) in forged.iter().enumerate() {
        let (_, store) = pool();
        plant(&store, "a", 1, bytes).await;
        assert!(matches!(get(&store, "a").await, Err(ObjectError::Wrong { version: 1, .. })), "{number}");
        assert!(matches!(store.look("a").await, Err(ObjectError::Wrong { .. })), "{number}");
    }
    plant(&store, "a", 1, &manifest.sign(&right, &secret())).await;
    assert_eq!(get(&store, "a").await.unwrap(), b"an object");
}

#[tokio::test(start_paused = true)]
async fn parts_that_are_not_what_was_hashed_are_refused_though_their_owner_signed_them() {
    let sign = |store: &ObjectStore, hash, digests| {
        let parts = Parts { length: 5000, part_bytes: PART, hash, digests };
        let manifest = Manifest { put_ms: 1, content: Content::Parts(parts) };
        manifest.sign(&Place { owner: store.owner(), key: "a", version: 1 }, &secret())
    };
    let (first, last) = (bytes(4096), bytes(904));
    let whole: Hash = (*blake3::hash(&[&first[..], &last].concat()).as_bytes()).into();
    for (hash, last_bytes, is_right) in
        [(whole, &last[..], true), (Hash::from([1; 32]), &last[..], false), (whole, &last[1..], false)]
    {
        let (_, store) = pool();
        let digests = vec![
            plant(&store, &part_name("a", 0), 1, &first).await,
            plant(&store, &part_name("a", 1), 1, last_bytes).await,
        ];
        plant(&store, "a", 1, &sign(&store, hash, digests)).await;
        let read = get(&store, "a").await;
        assert_eq!(read.is_ok(), is_right);
        if last_bytes.len() < last.len() {
            let error = read.unwrap_err().to_string();
            assert!(error.contains("part 1 of version 1 of a has 903 bytes"), "{error}");
        }
    }
}

fn later_parts(name: &str) -> bool {
    name.ends_with("\x0000000002") || name.ends_with("\x0000000003")
}

#[tokio::test(start_paused = true)]
async fn a_get_that_is_overtaken_begins_again_with_the_newest_version() {
    let (pool, store) = pool();
    put(&store, "a", &bytes(16_000)).await;
    store.settle().await;
    pool.close_gate(later_parts);
    let reader = store.clone();
    let reading = tokio::spawn(async move { get(&reader, "a").await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    put(&store, "a", b"newer").await;
    store.settle().await;
    pool.open_gate();
    assert_eq!(reading.await.unwrap().unwrap(), b"newer");
}

#[tokio::test(start_paused = true)]
async fn a_get_that_is_overtaken_after_it_wrote_where_nothing_is_taken_back_fails() {
    let (pool, store) = pool();
    put(&store, "a", &bytes(16_000)).await;
    store.settle().await;
    pool.close_gate(later_parts);
    let reader = store.clone();
    let sink = StreamSink::new(Vec::new());
    let reading = tokio::spawn(async move { reader.get("a", None, sink, &Progress::new(0)).await.map(drop) });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(store.delete("a").await, Ok(2));
    store.settle().await;
    pool.open_gate();
    assert_eq!(reading.await.unwrap(), Err(ObjectError::Superseded("a".into())));
}

#[tokio::test(start_paused = true)]
async fn a_put_that_is_overtaken_takes_the_next_version() {
    for (length, can_rewind) in [(100, false), (100, true), (9000, true)] {
        let (pool, store) = pool();
        // It heard of no version, and has it taken by another put then.
        (0..5).for_each(|node| pool.fault(node, Fault::Conflicts));
        let object = bytes(length);
        let (source, writer) = (again(&object), store.clone());
        let putting = tokio::spawn(async move {
            match can_rewind {
                true => writer.put(source, "a", None, &Progress::new(0)).await,
                false => writer.put(StreamSource(source), "a", None, &Progress::new(0)).await,
            }
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
        (0..5).for_each(|node| pool.fault(node, Fault::None));
        let stored = putting.await.unwrap().unwrap();
        assert_eq!(stored.version, 2, "{length}");
        assert_eq!(stored.bytes, length as u64);
        assert!(get(&store, "a").await.unwrap() == object);
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_put_that_is_overtaken_and_cannot_be_read_again_fails() {
    let (pool, store) = pool();
    (0..2).for_each(|node| pool.fault(node, Fault::Conflicts));
    let put = store.put(once(&bytes(9000)), "a", None, &Progress::new(0)).await;
    assert_eq!(put, Err(ObjectError::Overtaken { key: "a".into(), version: 1 }));
}

#[tokio::test(start_paused = true)]
async fn nodes_that_are_busy_or_come_back_in_time_get_their_fragments() {
    let (pool, store) = pool();
    (0..3).for_each(|node| pool.fault(node, Fault::Busy(3)));
    put(&store, "a", b"x").await;
    (0..3).for_each(|node| pool.fault(node, Fault::None));
    assert_eq!(get(&store, "a").await.unwrap(), b"x");
}

#[tokio::test(start_paused = true)]
async fn every_fragment_arrives_though_a_put_ends_with_2f_plus_1() {
    let (pool, store) = pool();
    pool.fault(1, Fault::Slow(Duration::from_millis(90)));
    put(&store, "a", &bytes(9000)).await;
    store.settle().await;
    for name in ["a", &part_name("a", 0), &part_name("a", 2)] {
        assert_eq!(pool.holders(store.owner(), name, 1), 5, "{name:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_that_do_not_store_are_named_with_their_reasons() {
    let (pool, store) = pool();
    (0..3).for_each(|node| pool.fault(node, Fault::Full));
    let error = store.put(once(b"x"), "a", None, &Progress::new(0)).await.unwrap_err().to_string();
    assert!(error.contains("nodes stored version 1 of a, 3 are needed: fake:"), "{error}");
    assert!(error.contains("NoSpace"), "{error}");
    (0..3).for_each(|node| pool.fault(node, Fault::Impostor));
    let error = store.put(once(b"x"), "a", Some(3), &Progress::new(0)).await.unwrap_err().to_string();
    assert!(error.contains("it is node eeee"), "{error}");
    let began = Instant::now();
    (0..3).for_each(|node| pool.fault(node, Fault::Busy(1_000_000)));
    let error = store.put(once(b"x"), "a", None, &Progress::new(0)).await.unwrap_err();
    assert!(matches!(error, ObjectError::TooFewNodes(_)), "{error}");
    assert!((30..32).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn no_more_parts_are_in_memory_than_asked_for_and_a_silent_node_does_not_slow_a_put_down() {
    for fault in [Fault::None, Fault::Hangs, Fault::Down] {
        let (pool, store) = pool();
        pool.fault(2, fault);
        let object = bytes(50 * 4096);
        let began = Instant::now();
        put(&store, "a", &object).await;
        assert!(began.elapsed() < Duration::from_millis(700), "{fault:?}: {:?}", began.elapsed());
        store.settle().await;
        assert!(began.elapsed() < Duration::from_secs(3), "{fault:?}: {:?}", began.elapsed());
        assert_eq!(pool.most_parts.load(Ordering::SeqCst), 2, "{fault:?}");
        assert!(get(&store, "a").await.unwrap() == object);
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_has_every_key_of_the_owner_in_order_and_page_by_page() {
    let pool = FakePool::new("3+2", 9);
    let store = store(&pool);
    let mut keys: Vec<String> = (0..25).map(|number| format!("k/{number}")).collect();
    for key in &keys {
        put(&store, key, b"x").await;
    }
    put(&store, "other", b"x").await;
    store.delete("k/7").await.unwrap();
    store.settle().await;
    keys.sort();
    let list = store.list("k/").await.unwrap();
    let listed: Vec<&String> = list.keys.iter().map(|listed| &listed.key).collect();
    assert_eq!(listed, keys.iter().collect::<Vec<_>>());
    let deleted: Vec<&str> =
        list.keys.iter().filter(|listed| listed.deleted).map(|listed| listed.key.as_str()).collect();
    assert_eq!(deleted, ["k/7"]);
    assert_eq!(store.list("").await.unwrap().keys.len(), 26);
    assert_eq!(store.list("z").await.unwrap().keys.len(), 0);
    pool.fault(0, Fault::InventsKeys);
    pool.fault(1, Fault::Down);
    let list = store.list("").await.unwrap();
    assert_eq!((list.keys.len(), list.silent.len()), (26, 2));
}

#[tokio::test(start_paused = true)]
async fn a_get_of_too_few_nodes_names_them_and_ends_in_time() {
    let (pool, store) = pool();
    put(&store, "a", b"x").await;
    store.settle().await;
    (0..2).for_each(|node| pool.fault(node, Fault::Denies));
    pool.fault(3, Fault::Flips);
    let began = Instant::now();
    let error = get(&store, "a").await.unwrap_err().to_string();
    assert!(error.starts_with("2 good fragments of version 1 of a, 3 are needed: fake:"), "{error}");
    assert!(error.contains("fake:3: not an answer of shardd: the fragment hashes to"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(32), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_list_of_too_few_nodes_is_none() {
    let (pool, store) = pool();
    put(&store, "a", b"x").await;
    (0..4).for_each(|node| pool.fault(node, Fault::Down));
    assert!(matches!(store.list("").await, Err(ObjectError::TooFewNodes(_))));
}

#[tokio::test(start_paused = true)]
async fn members_are_those_that_enough_nodes_give() {
    let limit = Duration::from_secs(5);
    let pool = FakePool::new("3+2", 5);
    let other = FakePool::new("3+2", 6);
    let peers: Vec<NodeAddress> = (0..5).map(|node| NodeAddress(format!("fake:{node}"))).collect();
    let transport: Arc<dyn ObjectTransport> = pool.clone();
    assert_eq!(membership::believed(&transport, &peers, limit).await.unwrap(), pool.members());
    assert_eq!(membership::believed(&transport, &peers[..1], limit).await.unwrap(), pool.members());
    (0..3).for_each(|node| pool.fault(node, Fault::Down));
    assert_eq!(membership::believed(&transport, &peers, limit).await.unwrap(), pool.members());
    pool.fault(3, Fault::Down);
    let error = membership::believed(&transport, &peers, limit).await.unwrap_err().to_string();
    assert!(error.starts_with("1 of 5 nodes give one list of members, 2 are needed: fake:"), "{error}");
    let surveyed = membership::survey(&transport, &peers, "3+2".parse().unwrap(), limit).await;
    assert!(surveyed.unwrap_err().to_string().starts_with("every node must answer: fake:0"));
    let transport: Arc<dyn ObjectTransport> = other.clone();
    let surveyed = membership::survey(&transport, &peers, "3+2".parse().unwrap(), limit).await;
    assert_eq!(surveyed.unwrap(), pool.members());
}
