//! What every transport must bring about at a real node, whichever way its requests are carried.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use avidfs::transport::http::{HttpOptions, HttpTransport};
use avidfs::transport::in_process::InProcessTransport;
use avidfs::transport::{FragmentTransport, NodeAddress, TransportError, Writer};
use axum::serve::ListenerExt;
use bytes::Bytes;
use common::codec::{Codec, split};
use common::fpcc::Fpcc;
use common::hash::HashId;
use common::slice::verify_slice;
use common::wire::{
    EVERY_INDEX, FragmentName, NodeId, ObjectId, Operation, PUTS_PROTOCOL, RefusalCode, VolumeDescriptor,
    VolumeEntry, VolumeId, WIRE_VERSION,
};
use credentials::pki::{Pki, USUAL_DAYS};
use shardd::{Limits, Store, StoreOptions, app, serve, serve_tls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const LIMIT: Duration = Duration::from_secs(30);
const WRITER: Writer = Writer { volume: VolumeId([7; 16]), epoch: 2, shown: None };

/// A node on a temporary folder, and a way to it. Both end with the test.
struct Bench {
    transport: Arc<dyn FragmentTransport>,
    node: NodeAddress,
    _server: JoinSet<()>,
    _folder: tempfile::TempDir,
}

impl Bench {
    async fn each() -> [Bench; 3] {
        [
            Bench::in_process().registered().await,
            Bench::http().await.registered().await,
            Bench::https(None).await.registered().await,
        ]
    }

    fn node() -> (tempfile::TempDir, axum::Router) {
        let folder = tempfile::tempdir().unwrap();
        let options = StoreOptions { capacity: Some(256 << 20), ..StoreOptions::new(folder.path()) };
        (folder, app(Store::open(options).unwrap(), Limits::default()))
    }

    fn in_process() -> Bench {
        let (folder, router) = Bench::node();
        Bench {
            transport: Arc::new(InProcessTransport::new([router])),
            node: InProcessTransport::address(0),
            _server: JoinSet::new(),
            _folder: folder,
        }
    }

    async fn http() -> Bench {
        let (folder, router) = Bench::node();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let node = NodeAddress(format!("http://{}", listener.local_addr().unwrap()));
        let mut server = JoinSet::new();
        server.spawn(serve(listener, router, Limits::default(), std::future::pending()));
        let transport = Arc::new(HttpTransport::new(HttpOptions::default()));
        Bench { transport, node, _server: server, _folder: folder }
    }

    /// The node's certificate may be bound to a node.
    async fn https(bound: Option<NodeId>) -> Bench {
        let (folder, router) = Bench::node();
        let pki = Pki::init(&folder.path().join("pki"), USUAL_DAYS).unwrap();
        let tls = pki.node(&["127.0.0.1"], bound).unwrap().server().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let node = NodeAddress(format!("https://{}", listener.local_addr().unwrap()));
        let mut server = JoinSet::new();
        server.spawn(serve_tls(listener, router, Limits::default(), tls, std::future::pending()));
        let tls = Some(pki.client("client").unwrap().client().unwrap());
        let transport = Arc::new(HttpTransport::new(HttpOptions { tls, ..HttpOptions::default() }));
        Bench { transport, node, _server: server, _folder: folder }
    }

    async fn registered(self) -> Bench {
        self.transport.register(&self.node, &descriptor(), LIMIT).await.unwrap();
        self
    }

    async fn put(&self, writer: Writer, share: &Share) -> Result<(), TransportError> {
        let (fpcc, fragment) = (share.fpcc.clone(), share.fragment.clone());
        let put = self.transport.put(&self.node, writer, &share.name, fpcc, fragment, false, LIMIT);
        put.await.map(drop)
    }
}

fn descriptor() -> VolumeDescriptor {
    VolumeDescriptor {
        volume: WRITER.volume,
        name: "home".into(),
        code: "2+1".into(),
        hash: "blake3".into(),
        object_size: 4 << 20,
        owner: None,
    }
}

/// One fragment of an object.
struct Share {
    name: FragmentName,
    fpcc: Bytes,
    fragment: Bytes,
}

/// Fragment 1 of the nth object, whose bytes differ from every other's.
fn share(counter: u64, length: usize) -> Share {
    let bytes: Bytes = (0..length as u64).map(|i| (i * (counter + 3) / 7) as u8).collect::<Vec<u8>>().into();
    let codec = Codec::of("2+1".parse().unwrap());
    let mut fragments = split(codec.code(), &bytes);
    fragments.extend(codec.parity_of(&fragments).into_iter().map(Bytes::from));
    let slices: Vec<&[u8]> = fragments.iter().map(|fragment| &fragment[..]).collect();
    let fpcc = Fpcc::compute(&codec, HashId::Blake3, length as u64, &slices).to_bytes().into();
    Share { name: name(counter), fpcc, fragment: fragments.swap_remove(1) }
}

fn name(counter: u64) -> FragmentName {
    FragmentName { key: ObjectId { epoch: 1, counter }.key(), version: 1, index: 1 }
}

fn put(share: Share) -> Operation {
    Operation::Put { name: share.name, fpcc: share.fpcc, fragment: share.fragment }
}

fn code_of<T: std::fmt::Debug>(answer: Result<T, TransportError>) -> RefusalCode {
    match answer {
        Err(TransportError::Refused { code, .. }) => code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fragment_comes_back_as_it_was_put_whole_and_in_part() {
    for bench in Bench::each().await {
        for (counter, length) in [(1, 1), (2, 5_000), (3, 2_800_000)] {
            let share = share(counter, length);
            bench.put(WRITER, &share).await.unwrap();
            bench.put(WRITER, &share).await.expect("the same bytes again");
            let raw =
                bench.transport.get(&bench.node, WRITER.volume, &share.name, LIMIT).await.unwrap().value;
            assert!(raw.fpcc == share.fpcc && raw.fragment == share.fragment);
        }
        let large = share(3, 2_800_000);
        let slice =
            bench.transport.get_slice(&bench.node, WRITER.volume, &large.name, 1000..1100, LIMIT).await;
        let slice = slice.unwrap().value;
        assert!(slice.fragment.len() < 20_000, "{} bytes for 100", slice.fragment.len());
        let fpcc = Fpcc::parse(&slice.fpcc).unwrap();
        let part = verify_slice(fpcc.fragment_hash(1), fpcc.fragment_length(), 1000..1100, slice.fragment);
        assert_eq!(part.unwrap(), large.fragment.slice(1000..1100));
    }
}

#[tokio::test]
async fn a_node_says_who_it_is_and_what_it_holds() {
    for bench in Bench::each().await {
        let info = bench.transport.info(&bench.node, LIMIT).await.unwrap();
        assert_eq!((info.value.wire, info.value.node, info.value.boot), (WIRE_VERSION, info.node, info.boot));
        assert!(info.value.available_bytes > 0 && info.value.capacity_bytes == 256 << 20);

        for counter in 1..=5 {
            bench.put(WRITER, &share(counter, 3000)).await.unwrap();
        }
        let flushed = bench.transport.flush(&bench.node, WRITER, LIMIT).await.unwrap();
        assert_eq!((flushed.node, flushed.boot), (info.node, info.boot));
        let status =
            bench.transport.status(&bench.node, WRITER.volume, &name(2).key, 1, LIMIT).await.unwrap();
        assert_eq!((status.value.object_length, status.value.indexes), (3000, vec![1]));
        let volumes = bench.transport.volumes(&bench.node, LIMIT).await.unwrap().value;
        assert_eq!(volumes, [VolumeEntry { descriptor: descriptor(), epoch: WRITER.epoch }]);
    }
}

#[tokio::test]
async fn a_listing_goes_on_where_its_last_page_ended() {
    for bench in Bench::each().await {
        let puts: Vec<Operation> = (1..=5).map(|counter| put(share(counter, 100))).collect();
        bench.transport.batch(&bench.node, WRITER, &puts, false, LIMIT).await.unwrap();
        let (mut after, mut keys, mut pages) = (None, Vec::new(), 0);
        while pages == 0 || after.is_some() {
            let page =
                bench.transport.list(&bench.node, WRITER.volume, after.as_deref(), 2, LIMIT).await.unwrap();
            keys.extend(page.value.objects.into_iter().map(|object| object.key));
            after = page.value.next;
            pages += 1;
        }
        assert_eq!(keys, (1..=5).map(|counter| name(counter).key).collect::<Vec<_>>());
        assert!(pages >= 3);
    }
}

#[tokio::test]
async fn a_batch_is_answered_operation_by_operation() {
    for bench in Bench::each().await {
        let operations = [
            put(share(1, 100)),
            put(share(2, 100_000)),
            Operation::Get(name(2)),
            Operation::Has(name(1)),
            Operation::Get(name(3)),
            Operation::Delete(FragmentName { index: EVERY_INDEX, ..name(1) }),
            Operation::Has(name(1)),
        ];
        let answers =
            bench.transport.batch(&bench.node, WRITER, &operations, true, LIMIT).await.unwrap().value;
        let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        assert_eq!(statuses, [200, 200, 200, 200, 404, 200, 404]);
        assert_eq!(answers[2].payload, share(2, 100_000).fragment);
    }
}

#[tokio::test]
async fn refusals_come_through_with_their_codes() {
    for bench in Bench::each().await {
        bench.put(WRITER, &share(1, 4000)).await.unwrap();
        let other_bytes = Share { name: name(1), ..share(2, 4000) };
        assert_eq!(code_of(bench.put(WRITER, &other_bytes).await), RefusalCode::Conflict);
        let mismatched = Share { fragment: share(3, 4000).fragment, ..share(2, 4000) };
        assert_eq!(code_of(bench.put(WRITER, &mismatched).await), RefusalCode::Inconsistent);
        let stale = Writer { epoch: WRITER.epoch - 1, ..WRITER };
        assert_eq!(code_of(bench.put(stale, &share(4, 10)).await), RefusalCode::StaleEpoch);
        let newer = Writer { epoch: WRITER.epoch + 1, ..WRITER };
        bench.put(newer, &share(4, 10)).await.unwrap();
        assert_eq!(code_of(bench.put(WRITER, &share(5, 10)).await), RefusalCode::StaleEpoch);
        bench.put(newer, &share(5, 10)).await.unwrap();
        let absent = bench.transport.get(&bench.node, WRITER.volume, &name(9), LIMIT).await;
        assert_eq!(code_of(absent), RefusalCode::NotFound);
        let renamed = VolumeDescriptor { name: "other".into(), ..descriptor() };
        let renamed = bench.transport.register(&bench.node, &renamed, LIMIT).await;
        assert_eq!(code_of(renamed), RefusalCode::Conflict);
    }
}

/// An HTTP node, and the connections it accepted.
async fn counted() -> (Bench, Arc<AtomicUsize>) {
    let (folder, router) = Bench::node();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let node = NodeAddress(format!("http://{}", listener.local_addr().unwrap()));
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = accepted.clone();
    let listener = listener.tap_io(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let mut server = JoinSet::new();
    server.spawn(async move { axum::serve(listener, router).await.unwrap() });
    let transport = Arc::new(HttpTransport::new(HttpOptions::default()));
    (Bench { transport, node, _server: server, _folder: folder }.registered().await, accepted)
}

#[tokio::test(flavor = "multi_thread")]
async fn small_fragments_share_a_connection_and_large_ones_have_one_each() {
    let (bench, accepted) = counted().await;
    bench.put(WRITER, &share(0, 100)).await.unwrap();
    let before = accepted.load(Ordering::SeqCst);
    let shares =
        |length: usize| (1..=40).map(move |counter| share(counter * 1000 + length as u64 % 7, length));
    let put_all = async |length: usize| {
        let put = async |Share { name, fpcc, fragment }: Share| {
            let flush = name.key.ends_with('8');
            bench.transport.put(&bench.node, WRITER, &name, fpcc, fragment, flush, LIMIT).await
        };
        let puts = shares(length).map(put);
        let done = futures_util::future::join_all(puts).await;
        assert!(done.iter().all(Result::is_ok));
        accepted.load(Ordering::SeqCst) - before
    };
    assert_eq!(put_all(120_000).await, 0, "60,000 bytes are a small fragment");
    assert!(put_all(200_001).await > 0, "100,000 are not");
    let before = accepted.load(Ordering::SeqCst);
    for counter in 101..=110 {
        bench.put(WRITER, &share(counter, 2_000_000)).await.unwrap();
    }
    assert_eq!(accepted.load(Ordering::SeqCst), before, "one after another they use the same");
    for Share { name, fragment, .. } in shares(120_000).chain(shares(200_001)) {
        let kept = bench.transport.get(&bench.node, WRITER.volume, &name, LIMIT).await;
        assert_eq!(kept.unwrap().value.fragment, fragment);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gets_use_connections_again_and_a_refusal_or_one_given_up_harms_no_other() {
    let (bench, accepted) = counted().await;
    let shares: Vec<Share> = (1..=20).map(|counter| share(counter, counter as usize * 20_000)).collect();
    for share in &shares {
        bench.put(WRITER, share).await.unwrap();
    }
    let get = async |name: &FragmentName, limit: Duration| {
        bench.transport.get(&bench.node, WRITER.volume, name, limit).await
    };
    get(&shares[0].name, LIMIT).await.unwrap();
    let before = accepted.load(Ordering::SeqCst);
    for Share { name, fpcc, fragment } in &shares {
        let got = get(name, LIMIT).await.unwrap().value;
        assert!(got.fragment == *fragment && got.fpcc == *fpcc);
        assert_eq!(code_of(get(&crate::name(999), LIMIT).await), RefusalCode::NotFound);
        let range = 17..fragment.len() as u64 / 2;
        let slice = bench.transport.get_slice(&bench.node, WRITER.volume, name, range.clone(), LIMIT).await;
        let fpcc = Fpcc::parse(fpcc).unwrap();
        let slice = slice.unwrap().value.fragment;
        let bytes = verify_slice(fpcc.fragment_hash(1), fragment.len() as u64, range, slice).unwrap();
        assert_eq!(bytes, fragment.slice(17..fragment.len() / 2));
    }
    assert_eq!(accepted.load(Ordering::SeqCst), before, "one after another");
    // Given up at any moment, also in the middle of an answer.
    for (k, Share { name, .. }) in shares.iter().cycle().take(200).enumerate() {
        let _ = get(name, Duration::from_micros(k as u64 * 10)).await;
    }
    let all = shares.iter().map(async |Share { name, fragment, .. }| {
        get(name, LIMIT).await.is_ok_and(|got| got.value.fragment == *fragment)
    });
    assert!(futures_util::future::join_all(all).await.iter().all(|is_right| *is_right));
}

/// As it comes through a proxy that passes on the one header and not the other, and so would not carry frames.
#[tokio::test]
async fn who_asks_for_half_an_upgrade_gets_none() {
    let (bench, _) = counted().await;
    let address = bench.node.0.strip_prefix("http://").unwrap().to_owned();
    let volume = WRITER.volume;
    for (connection, status) in [("close", "400"), ("keep-alive, Upgrade", "101")] {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let request = format!(
            "POST /volumes/{volume}/puts HTTP/1.1\r\nhost: node\r\navid-epoch: 2\r\nupgrade: {PUTS_PROTOCOL}\r\n\
             connection: {connection}\r\ncontent-length: 0\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, *format!("HTTP/1.1 {status}").as_bytes());
    }
}

#[tokio::test]
async fn a_certificate_bound_to_one_node_stands_for_no_other() {
    let bench = Bench::https(Some(NodeId([7; 16]))).await;
    let error = bench.transport.info(&bench.node, LIMIT).await.unwrap_err();
    assert!(matches!(error, TransportError::Unreachable(_)));
    assert_eq!(error.to_string(), format!("its certificate is for node {} alone", "07".repeat(16)));
}
