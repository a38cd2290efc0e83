//! The HTTP interface, line by line of docs/wire.md, without a socket.

#![allow(clippy::unwrap_used)]

mod support;

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use common::wire::{
    BOOT_HEADER, EPOCH_HEADER, EVERY_INDEX, FragmentName, Listing, NODE_HEADER, NodeId, ObjectId, Operation,
    OwnerId, RefusalCode, Signature, VolumeDescriptor, VolumeList, WRITER_HEADER, decode_answers,
    encode_batch, volume_of, writer_statement,
};
use ed25519_dalek::{Signer, SigningKey};
use futures_util::stream;
use http::{Method, Request};
use http_body_util::BodyExt;
use serde_json::json;
use shardd::{Author, Limits};
use support::*;
use tower::ServiceExt;

#[tokio::test]
async fn a_fragment_is_stored_read_described_and_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let node = Local::new(folder.path());
    let object = object(1, 5000);
    for _ in 0..2 {
        assert_eq!(node.post(&path("k", 2), object.body(2)).await.ok().json(), json!({"stored": true}));
    }
    assert_eq!(node.get(&path("k", 2)).await.ok().body, object.body(2));
    let fpcc = common::fpcc::Fpcc::parse(&object.fpcc).unwrap().digest().to_string();
    let status = json!({"key": "k", "version": 1, "fpcc": fpcc, "code": "2+2", "fragment_length": 2500,
        "object_length": 5000, "indexes": [2]});
    assert_eq!(node.get("/objects/k/1/status").await.ok().json(), status);
    assert_eq!(node.get("/objects/k/latest").await.ok().json(), status);
    assert_eq!(node.get("/objects").await.ok().json(), json!({"objects": [status], "next": null}));
    assert_eq!(node.delete("/objects/k/1").await.ok().json(), json!({"deleted": 1}));
    assert_eq!(node.delete("/objects/k/1").await.ok().json(), json!({"deleted": 0}));
    for absent in [&path("k", 2)[..], "/objects/k/1/status", "/objects/k/latest"] {
        assert_eq!(node.get(absent).await.refused(), RefusalCode::NotFound);
    }
}

#[tokio::test]
async fn a_large_fragment_comes_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let node = Local::new(folder.path());
    let object = object(1, 3 << 20);
    node.post(&path("k", 1), object.body(1)).await.ok();
    let pieces: Vec<Result<Bytes, Infallible>> =
        object.body(2).chunks(100_001).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    node.post(&path("k", 2), Body::from_stream(stream::iter(pieces))).await.ok();
    assert_eq!(node.get(&path("k", 1)).await.ok().body, object.body(1));
    assert_eq!(node.get(&path("k", 2)).await.ok().body, object.body(2));
}

#[tokio::test]
async fn a_slice_comes_with_what_verifies_it() {
    let folder = tempfile::tempdir().unwrap();
    let node = Local::new(folder.path());
    let object = object(1, 300_000);
    node.post(&path("k", 3), object.body(3)).await.ok();
    let body = node.get(&format!("{}?offset=70000&length=5000", path("k", 3))).await.ok().body;
    let (fpcc, slice) = common::wire::split_fragment_body(body).unwrap();
    assert_eq!(fpcc, object.fpcc);
    let root = *common::fpcc::Fpcc::parse(&fpcc).unwrap().fragment_hash(3);
    let bytes = common::slice::verify_slice(&root, 150_000, 70_000..75_000, slice).unwrap();
    assert_eq!(bytes, object.fragments[3].slice(70_000..75_000));
    for wrong in ["offset=150000&length=1", "offset=0&length=0", "offset=5", "offset=-1&length=1"] {
        let refused = node.get(&format!("{}?{wrong}", path("k", 3))).await.refused();
        assert_eq!(refused, RefusalCode::BadRequest, "{wrong}");
    }
    let absent = node.get(&format!("{}?offset=0&length=1", path("k", 2))).await;
    assert_eq!(absent.refused(), RefusalCode::NotFound);
}

#[tokio::test]
async fn any_utf8_is_a_key() {
    let folder = tempfile::tempdir().unwrap();
    let node = Local::new(folder.path());
    let object = object(1, 100);
    let keys =
        [("a%2Fb", "a/b"), ("%C3%BC", "ü"), ("%20%3F%23%25", " ?#%"), ("latest", "latest"), ("%2E%2E", "..")];
    for (encoded, key) in keys {
        node.post(&path(encoded, 0), object.body(0)).await.ok();
        assert_eq!(node.get(&path(encoded, 0)).await.ok().body, object.body(0));
        assert_eq!(node.get(&format!("/objects/{encoded}/latest")).await.ok().json()["key"], key);
    }
    let listing: Listing =
        serde_json::from_slice(&node.get("/objects?after=%20%3F%23%25").await.ok().body).unwrap();
    assert_eq!(listing.objects.len(), keys.len() - 1);
    let long = "k".repeat(1025);
    for wrong in ["%FF", &long] {
        assert_eq!(node.post(&path(wrong, 0), object.body(0)).await.refused(), RefusalCode::BadRequest);
    }
    node.post(&path(&long[1..], 0), object.body(0)).await.ok();
}

#[tokio::test]
async fn other_bytes_and_inconsistent_bytes_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let node = Local::new(folder.path());
    node.post(&path("k", 0), object(1, 100).body(0)).await.ok();
    assert_eq!(node.post(&path("k", 0), object(2, 100).body(0)).await.refused(), RefusalCode::Conflict);
    assert_eq!(node.post(&path("k", 1), object(2, 100).body(1)).await.refused(), RefusalCode::Conflict);
    assert_eq!(node.post(&path("l", 1), object(2, 100).body(0)).await.refused(), RefusalCode::Inconsistent);
    assert_eq!(node.post(&path("l", 77), object(2, 100).body(0)).await.refused(), RefusalCode::Inconsistent);
    let garbage = [Bytes::new(), Bytes::from_static(b"abc"), Bytes::from_static(&[255; 50])];
    for body in garbage {
        assert_eq!(node.post(&path("l", 0), body).await.refused(), RefusalCode::BadRequest);
    }
    assert_eq!(node.store.usage().fragments, 1);
}

#[tokio::test]
async fn every_answer_says_who_answers() {
    let folder = tempfile::tempdir().unwrap();
    let node = Local::new(folder.path());
    let (id, boot) = (node.store.node().to_string(), node.store.boot().to_string());
    for path in ["/info", "/healthz", "/metrics", "/objects", "/nonsense", "/objects/k/latest", "/volumes"] {
        let answer = node.get(path).await;
        assert_eq!(answer.headers[NODE_HEADER], id[..], "{path}");
        assert_eq!(answer.headers[BOOT_HEADER], boot[..], "{path}");
    }
    let info = node.get("/info").await.ok().json();
    assert_eq!((&info["node"], &info["boot"], &info["wire"]), (&json!(id), &json!(boot), &json!(1)));
}

#[tokio::test]
async fn nonsense_is_refused_in_json() {
    let folder = tempfile::tempdir().unwrap();
    let node = Local::new(folder.path());
    let bad = [
        "/objects/k/x/status",
        "/objects/k/1/fragment/256",
        "/objects?limit=0",
        "/objects?limit=x",
        "/objects?frob=1",
        "/objects/k/-1/status",
        "/volumes/xyz/objects",
    ];
    for path in bad {
        assert_eq!(node.get(path).await.refused(), RefusalCode::BadRequest, "{path}");
    }
    let wrong_method = node.call(Method::PUT, "/objects", Body::empty()).await;
    assert_eq!(wrong_method.refused(), RefusalCode::BadRequest);
    assert_eq!(
        node.post("/objects/k/0/fragment/0", object(1, 9).body(0)).await.refused(),
        RefusalCode::BadRequest
    );
    assert_eq!(node.post("/batch", "no batch").await.refused(), RefusalCode::BadRequest);
}

#[tokio::test]
async fn a_volume_is_known_once_registered_and_takes_only_its_newest_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let node = Local::new(folder.path());
    let shape = descriptor(7, "docs");
    let volume = format!("/volumes/{}", shape.volume);
    let fragment = volume.clone() + &path(&ObjectId { epoch: 3, counter: 1 }.key(), 0);
    let body = object(1, 100).body(0);
    assert_eq!(node.post_as(3, &fragment, body.clone()).await.refused(), RefusalCode::NotFound);
    assert_eq!(node.get(&format!("{volume}/objects")).await.refused(), RefusalCode::NotFound);
    assert_eq!(node.post(&format!("{volume}/flush"), "").await.refused(), RefusalCode::NotFound);

    let json = |shape| Body::from(serde_json::to_vec(&shape).unwrap());
    for _ in 0..2 {
        node.call(Method::PUT, &volume, json(shape.clone())).await.ok();
    }
    let renamed = node.call(Method::PUT, &volume, json(descriptor(7, "other"))).await;
    assert_eq!(renamed.refused(), RefusalCode::Conflict);
    let misplaced = node.call(Method::PUT, &volume, json(descriptor(8, "other"))).await;
    assert_eq!(misplaced.refused(), RefusalCode::BadRequest);

    assert_eq!(node.post_as(3, &fragment, body.clone()).await.ok().json(), json!({"kept": true}));
    assert_eq!(node.post(&fragment, body.clone()).await.refused(), RefusalCode::BadRequest);
    assert_eq!(node.post_as(2, &fragment, body.clone()).await.refused(), RefusalCode::StaleEpoch);
    node.post_as(4, &fragment, body.clone()).await.ok();
    let stale = Request::delete(fragment.replace("/fragment/0", "")).header(EPOCH_HEADER, "3");
    assert_eq!(node.send(stale.body(Body::empty()).unwrap()).await.refused(), RefusalCode::StaleEpoch);
    assert_eq!(node.get(&fragment).await.ok().body, body);

    let known: VolumeList = serde_json::from_slice(&node.get("/volumes").await.ok().body).unwrap();
    assert_eq!((known.volumes[0].descriptor.clone(), known.volumes[0].epoch), (shape, 4));
    assert_eq!(node.get("/objects").await.ok().json()["objects"], json!([]), "spaces are apart");
}

#[tokio::test]
async fn a_volume_with_an_owner_is_changed_by_who_shows_its_keys_word_for_this_node_alone() {
    let folder = tempfile::tempdir().unwrap();
    let node = Local::new(folder.path());
    let (key, strangers) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
    let owner = OwnerId(key.verifying_key().to_bytes());
    let shape = VolumeDescriptor { volume: volume_of(&owner), owner: Some(owner), ..descriptor(7, "docs") };
    let volume = format!("/volumes/{}", shape.volume);
    let json = |shape: &VolumeDescriptor| Body::from(serde_json::to_vec(shape).unwrap());
    let another = OwnerId(strangers.verifying_key().to_bytes());
    let stolen = VolumeDescriptor { owner: Some(another), ..shape.clone() };
    assert_eq!(node.call(Method::PUT, &volume, json(&stolen)).await.refused(), RefusalCode::BadRequest);
    // Who was here first without the key is put aside.
    let squatter = VolumeDescriptor { owner: None, name: "mine".into(), ..shape.clone() };
    node.call(Method::PUT, &volume, json(&squatter)).await.ok();
    let fragment = volume.clone() + &path(&ObjectId { epoch: 3, counter: 1 }.key(), 0);
    let body = object(1, 100).body(0);
    node.post_as(9, &fragment, body.clone()).await.ok();
    node.call(Method::PUT, &volume, json(&shape)).await.ok();
    assert_eq!(node.call(Method::PUT, &volume, json(&squatter)).await.refused(), RefusalCode::Conflict);

    let shown = |key: &SigningKey, epoch: u32, node: NodeId| {
        Signature(key.sign(&writer_statement(shape.volume, epoch, node)).to_bytes()).to_string()
    };
    let object = fragment.replace("/fragment/0", "");
    let deletion =
        encode_batch(&[Operation::Delete(name(&ObjectId { epoch: 3, counter: 1 }.key(), EVERY_INDEX))]);
    let deletion: Vec<u8> = deletion.concat();
    let lease =
        json!({"epoch": 3, "mount": "01".repeat(16), "host": "h", "lease_ms": 1000, "take_over": true});
    let requests = [
        (Method::POST, fragment.clone(), body.to_vec()),
        (Method::DELETE, object.clone(), Vec::new()),
        (Method::POST, format!("{volume}/batch"), deletion),
        (Method::POST, format!("{volume}/lease"), lease.to_string().into_bytes()),
    ];
    let own = node.store.node();
    let good = shown(&key, 3, own);
    let bad = [
        None,
        Some(shown(&strangers, 3, own)),
        Some(shown(&key, 3, NodeId([9; 16]))),
        Some(shown(&key, 2, own)),
        Some("00".repeat(64)),
    ];
    let send = async |(method, path, body): &(Method, String, Vec<u8>), proof: &Option<String>| {
        let mut request = Request::builder().method(method).uri(path).header(EPOCH_HEADER, "3");
        if let Some(proof) = proof {
            request = request.header(WRITER_HEADER, proof);
        }
        node.send(request.body(body.clone().into()).unwrap()).await
    };
    for request in &requests {
        for proof in &bad {
            assert_eq!(send(request, proof).await.refused(), RefusalCode::Forbidden, "{request:?} {proof:?}");
        }
        send(request, &Some(good.clone())).await.ok();
        for proof in &bad {
            assert_eq!(send(request, proof).await.refused(), RefusalCode::Forbidden, "{request:?} {proof:?}");
        }
    }
    assert_eq!(send(&requests[0], &Some("no signature".into())).await.refused(), RefusalCode::BadRequest);
    let known: VolumeList = serde_json::from_slice(&node.get("/volumes").await.ok().body).unwrap();
    assert_eq!((known.volumes.len(), known.volumes[0].epoch), (1, 3), "nobody else made it newer");
}

fn name(key: &str, index: u8) -> FragmentName {
    FragmentName { key: key.into(), version: 1, index }
}

fn put(key: &str, index: u8, object: &Encoded) -> Operation {
    let fragment = object.fragments[usize::from(index)].clone();
    Operation::Put { name: name(key, index), fpcc: object.fpcc.clone(), fragment }
}

#[tokio::test]
async fn a_batch_is_carried_out_in_order_and_each_answer_stands_alone() {
    let folder = tempfile::tempdir().unwrap();
    let node = Local::new(folder.path());
    let (first, second) = (object(1, 300), object(2, 300));
    let operations = [
        Operation::Get(name("a", 0)),
        put("a", 0, &first),
        put("a", 1, &first),
        put("a", 2, &second),
        Operation::Get(name("a", 0)),
        Operation::Has(name("a", 1)),
        Operation::Delete(name("a", 1)),
        Operation::Has(name("a", 1)),
        Operation::Delete(name("a", EVERY_INDEX)),
        put("a", 2, &second),
        Operation::Put {
            name: name("a", 3),
            fpcc: second.fpcc.clone(),
            fragment: first.fragments[3].clone(),
        },
    ];
    let body = Bytes::from(encode_batch(&operations).concat());
    let answer = node.post("/batch?flush=1", body).await.ok();
    let answers = decode_answers(answer.body, operations.len()).unwrap();
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [404, 200, 200, 409, 200, 200, 200, 404, 200, 200, 422]);
    assert_eq!((&answers[4].fpcc, &answers[4].payload), (&first.fpcc, &first.fragments[0]));
    let digest = common::fpcc::Fpcc::parse(&first.fpcc).unwrap().digest();
    assert_eq!(answers[5].payload, digest.as_bytes()[..]);
    assert_eq!(node.get("/objects/a/1/status").await.ok().json()["indexes"], json!([2]));
}

#[tokio::test]
async fn a_volumes_batch_needs_the_epoch_only_to_change_something() {
    let folder = tempfile::tempdir().unwrap();
    let node = Local::new(folder.path());
    node.store.register(descriptor(7, "docs")).unwrap();
    let path = format!("/volumes/{}/batch", descriptor(7, "docs").volume);
    let encode = |operations: &[Operation]| Bytes::from(encode_batch(operations).concat());
    let change = encode(&[put("a", 0, &object(1, 300))]);
    assert_eq!(node.post(&path, change.clone()).await.refused(), RefusalCode::BadRequest);
    node.post_as(1, &path, change).await.ok();
    let question = node.post(&path, encode(&[Operation::Has(name("a", 0))])).await.ok();
    assert_eq!(decode_answers(question.body, 1).unwrap()[0].status, 200);
}

#[tokio::test]
async fn a_batch_whose_answer_would_be_too_long_says_what_to_ask_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let node = Local::new(folder.path());
    let object = object(1, 6 << 20);
    let keys: Vec<String> = (0..12).map(|i| format!("k{i}")).collect();
    for key in &keys {
        node.store.put(&Author::Client, &name(key, 0), &object.fpcc, &object.fragments[0]).unwrap();
    }
    let operations: Vec<_> = keys.iter().map(|key| Operation::Get(name(key, 0))).collect();
    let answer = node.post("/batch", encode_batch(&operations).concat()).await.ok();
    assert!(answer.body.len() <= common::wire::MAX_BODY);
    let statuses: Vec<u16> = decode_answers(answer.body, 12).unwrap().iter().map(|a| a.status).collect();
    assert_eq!(statuses, [[200; 10].as_slice(), &[413; 2]].concat());
}

#[tokio::test]
async fn pages_lead_through_all_keys() {
    let folder = tempfile::tempdir().unwrap();
    let node = Local::new(folder.path());
    let object = object(1, 300);
    for i in 0..25 {
        let name = name(&format!("k{i:02}"), 0);
        node.store.put(&Author::Client, &name, &object.fpcc, &object.fragments[0]).unwrap();
    }
    let (mut after, mut keys, mut pages) = (String::new(), Vec::new(), 0);
    loop {
        let page = node.get(&format!("/objects?after={after}&limit=10")).await.ok();
        let page: Listing = serde_json::from_slice(&page.body).unwrap();
        keys.extend(page.objects.into_iter().map(|object| object.key));
        pages += 1;
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    assert_eq!((keys.len(), pages), (25, 3));
    assert!(keys.is_sorted());
}

/// A body that must not be asked for anything.
fn untouchable(length: usize) -> Body {
    struct Untouchable(u64);
    impl axum::body::HttpBody for Untouchable {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Infallible>>> {
            panic!("the body was read")
        }
        fn size_hint(&self) -> hyper::body::SizeHint {
            hyper::body::SizeHint::with_exact(self.0)
        }
    }
    Body::new(Untouchable(length as u64))
}

#[tokio::test]
async fn what_announces_too_much_is_refused_unread_and_what_announces_nothing_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let node = Local::with(folder.path(), Limits { body_bytes: 1 << 20, ..Limits::default() });
    let refused = node.post(&path("k", 0), untouchable((1 << 20) + 1)).await.refused();
    assert_eq!(refused, RefusalCode::TooLarge);
    let endless = stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from(vec![0; 100_000])));
    let refused = node.post(&path("k", 0), Body::from_stream(endless)).await.refused();
    assert_eq!(refused, RefusalCode::TooLarge);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stands_still_or_drips_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let node = Local::new(folder.path());
    let first = stream::once(async { Ok::<_, Infallible>(Bytes::from_static(b"x")) });
    let still = futures_util::StreamExt::chain(first, stream::pending());
    assert_eq!(node.post(&path("k", 0), Body::from_stream(still)).await.refused(), RefusalCode::TooSlow);
    let drip = stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        Some((Ok::<_, Infallible>(Bytes::from_static(b"x")), ()))
    });
    assert_eq!(node.post(&path("k", 0), Body::from_stream(drip)).await.refused(), RefusalCode::TooSlow);
}

#[tokio::test(start_paused = true)]
async fn requests_beyond_the_memory_for_bodies_wait_and_are_then_told_to_come_later() {
    let folder = tempfile::tempdir().unwrap();
    let node = Local::with(folder.path(), Limits { inflight_bytes: 1 << 20, ..Limits::default() });
    let object = object(1, 1_000_000);
    let hog = node.clone();
    let hog = tokio::spawn(async move {
        let never = stream::pending::<Result<Bytes, Infallible>>();
        hog.post(&path("hog", 0), Body::from_stream(never)).await.refused()
    });
    tokio::task::yield_now().await;
    assert_eq!(node.post(&path("k", 0), object.body(0)).await.refused(), RefusalCode::Busy);
    assert_eq!(hog.await.unwrap(), RefusalCode::TooSlow);
    node.post(&path("k", 0), object.body(0)).await.ok();
}

#[tokio::test(start_paused = true)]
async fn what_a_batch_brings_and_asks_for_again_counts_as_memory_for_bodies() {
    let folder = tempfile::tempdir().unwrap();
    let node = Local::with(folder.path(), Limits { inflight_bytes: 16 << 20, ..Limits::default() });
    let brought = object(1, 2 << 20);
    let mut operations = vec![put("a", 0, &brought)];
    operations.extend((0..10).map(|_| Operation::Get(name("a", 0))));
    operations.push(Operation::Delete(name("a", 0)));
    let request = Request::post("/batch").body(Body::from(encode_batch(&operations).concat())).unwrap();
    let answer = node.app.clone().oneshot(request).await.unwrap();
    let other = object(2, 16 << 20);
    assert_eq!(node.post(&path("k", 0), other.body(0)).await.refused(), RefusalCode::Busy);
    let answer = answer.into_body().collect().await.unwrap().to_bytes();
    let answers = decode_answers(answer, operations.len()).unwrap();
    assert!(answers.iter().all(|answer| answer.status == 200));
    node.post(&path("k", 0), other.body(0)).await.ok();
}

/// A page could hold 1,000 versions of each of 1,000 keys.
#[tokio::test(start_paused = true)]
async fn a_page_of_a_listing_is_bounded_and_counts_as_memory_for_bodies() {
    let folder = tempfile::tempdir().unwrap();
    let node = Local::with(folder.path(), Limits { inflight_bytes: 3 << 19, ..Limits::default() });
    let object = object(1, 1);
    let keys = ["a", "b", "c", "d", "e", "f"];
    for key in keys {
        for version in 1..=1100 {
            let name = FragmentName { key: key.into(), version, index: 0 };
            node.store.put(&Author::Client, &name, &object.fpcc, &object.fragments[0]).unwrap();
        }
    }
    let expected: Vec<_> =
        keys.iter().flat_map(|key| (101..=1100).map(|version| (key.to_string(), version))).collect();
    let (mut listed, mut pages, mut next) = (Vec::new(), 0, Some(String::new()));
    while let Some(after) = next {
        let page = node.get(&format!("/objects?after={after}")).await.ok();
        assert!(page.body.len() <= 1 << 20, "{} bytes", page.body.len());
        let page: Listing = serde_json::from_slice(&page.body).unwrap();
        assert_eq!(page.objects.last().unwrap().version, 1100, "whole keys");
        listed.extend(page.objects.into_iter().map(|object| (object.key, object.version)));
        (pages, next) = (pages + 1, page.next);
    }
    assert!(listed == expected, "each once, and in order");
    assert_eq!(pages, 2);

    let asked = || Request::get("/objects").body(Body::empty()).unwrap();
    let unread = node.app.clone().oneshot(asked()).await.unwrap();
    assert_eq!(node.send(asked()).await.refused(), RefusalCode::Busy);
    drop(unread);
    node.send(asked()).await.ok();
}

#[tokio::test]
async fn a_node_that_is_full_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let node = Local::new(folder.path());
    let object = object(1, 16 << 20);
    let mut kept = 0;
    let refused = loop {
        let answer = node.post(&path(&format!("k{kept}"), 0), object.body(0)).await;
        match answer.status.as_u16() {
            200 => kept += 1,
            _ => break answer.refused(),
        }
    };
    assert_eq!((refused, kept), (RefusalCode::NoSpace, 29));
    let info = node.get("/info").await.ok().json();
    assert!(info["available_bytes"].as_u64().unwrap() < 8 << 20);
    node.delete("/objects/k0/1").await.ok();
    node.post(&path("again", 0), object.body(0)).await.ok();
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let folder = tempfile::tempdir().unwrap();
    let node = Local::new(folder.path());
    let object = object(1, 300);
    node.post(&format!("{}?flush=1", path("k", 0)), object.body(0)).await.ok();
    node.get(&path("k", 0)).await.ok();
    node.get(&path("absent", 0)).await;
    let text = String::from_utf8(node.get("/metrics").await.ok().body.to_vec()).unwrap();
    for line in [
        "shardd_request_seconds_count{operation=\"put\"} 1",
        "shardd_request_seconds_count{operation=\"get\"} 2",
        "shardd_refused_total{code=\"not_found\"} 1",
        "shardd_fragments 1",
        "shardd_stored_total 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
    let received = format!("shardd_received_bytes_total{{operation=\"put\"}} {}", object.body(0).len());
    assert!(text.contains(&received));
}
