//! Slow and greedy clients on raw sockets, and a well-behaved one that goes on meanwhile.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::wire::{FragmentName, GETS_PROTOCOL, GetFrame};
use shardd::{Author, Limits, Store};
use support::*;
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;

/// Long enough for a busy machine, and shorter than any limit that would run out.
const SOON: Duration = Duration::from_secs(15);

/// A node with limits of its own; ends with the test.
struct Limited {
    address: String,
    store: Arc<Store>,
    _server: JoinSet<()>,
}

async fn limited(folder: &Path, limits: Limits) -> Limited {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let Local { app, store } = Local::with(folder, limits.clone());
    let mut server = JoinSet::new();
    server.spawn(shardd::serve(listener, app, limits, std::future::pending()));
    Limited { address, store, _server: server }
}

/// Sends the pieces of a request, a tenth of a second apart, until somebody closes; what was answered, and when it ended.
fn drip(address: &str, pieces: impl Iterator<Item = Vec<u8>>) -> (String, Duration) {
    let began = Instant::now();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut answer = Vec::new();
    for piece in pieces {
        if stream.write_all(&piece).is_err() {
            break;
        }
        match stream.read_to_end(&mut answer) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                assert!(began.elapsed() < SOON * 2)
            }
            _ => break,
        }
    }
    (String::from_utf8_lossy(&answer).into_owned(), began.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_drips_is_cut_off_however_long_it_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { idle: Duration::from_secs(1), ..Limits::default() };
    let node = limited(folder.path(), limits).await;
    let head = std::iter::once(b"GET /info HTTP/1.1\r\nhost: n\r\nx: ".to_vec());
    let (answer, took) = drip(&node.address, head.chain(std::iter::repeat_with(|| b"y".to_vec())));
    assert_eq!(answer, "");
    assert!(took < SOON, "{took:?}");
    Client::connect(&node.address).await.get("/info").await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_drips_is_given_up_and_its_share_of_the_memory_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits {
        stall: Duration::from_secs(1),
        inflight_bytes: 1 << 20,
        busy_wait: SOON,
        ..Limits::default()
    };
    let node = limited(folder.path(), limits).await;
    let head = format!("POST {} HTTP/1.1\r\nhost: n\r\ncontent-length: 100000\r\n\r\n", path("k", 0));
    let mut dripping = JoinSet::new();
    // Together they have asked for all there is.
    for _ in 0..10 {
        let (address, head) = (node.address.clone(), head.clone().into_bytes());
        let pieces = std::iter::once(head).chain(std::iter::repeat_with(|| b"y".to_vec()));
        dripping.spawn_blocking(move || drip(&address, pieces));
    }
    let object = object(1, 300_000);
    Client::connect(&node.address).await.post(&path("k", 1), object.body(1)).await.ok();
    for (answer, took) in dripping.join_all().await {
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer:?}");
        assert!(took < SOON, "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_drips_does_not_keep_the_memory() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits {
        stall: Duration::from_secs(2),
        inflight_bytes: 20 << 20,
        busy_wait: SOON,
        ..Limits::default()
    };
    let node = limited(folder.path(), limits).await;
    let object = object(1, 38 << 20);
    let volume = descriptor(7, "docs").volume;
    node.store.register(descriptor(7, "docs")).unwrap();
    let name = FragmentName { key: "k".into(), version: 1, index: 0 };
    let author = Author::Writer { volume, epoch: 1 };
    node.store.put(&author, &name, &object.fpcc, &object.fragments[0]).unwrap();
    let path = format!("/volumes/{volume}{}", path("k", 0));
    let frame = GetFrame { name, range: None }.encode();
    let gets = format!("/volumes/{volume}/gets");
    let upgrade = format!("host: n\r\nconnection: upgrade\r\nupgrade: {GETS_PROTOCOL}\r\n\r\n");
    let ways = [
        format!("GET {path} HTTP/1.1\r\nhost: n\r\n\r\n").into_bytes(),
        [format!("GET {gets} HTTP/1.1\r\n{upgrade}").as_bytes(), &frame].concat(),
    ];
    for asked in ways {
        let mut greedy = TcpStream::connect(&node.address).unwrap();
        greedy.write_all(&asked).unwrap();
        let enough = Arc::new(AtomicBool::new(false));
        let dripping = tokio::task::spawn_blocking({
            let enough = enough.clone();
            move || {
                let (mut bytes, mut taken) = (vec![0; 16 << 10], 0);
                while !enough.load(Ordering::Relaxed)
                    && let Ok(length @ 1..) = greedy.read(&mut bytes)
                {
                    taken += length;
                    std::thread::sleep(Duration::from_millis(100));
                }
                taken
            }
        });
        // Not before the greedy one has its share.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let answer = Client::connect(&node.address).await.get(&path).await;
        enough.store(true, Ordering::Relaxed);
        assert_eq!(answer.ok().body, object.body(0));
        assert!(dripping.await.unwrap() > 1000, "it was being answered");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_idle_connections_of_one_peer_keep_no_other_out() {
    shardd::raise_file_limit();
    let folder = tempfile::tempdir().unwrap();
    let node = limited(folder.path(), Limits::default()).await;
    let idle: Vec<TcpStream> = (0..2000).map(|_| TcpStream::connect(&node.address).unwrap()).collect();
    let other = TcpSocket::new_v4().unwrap();
    other.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let began = Instant::now();
    let stream = other.connect(node.address.parse().unwrap()).await.unwrap();
    Client::over(stream).await.get("/info").await.ok();
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    // Those beyond its share were closed, and the others are left alone.
    let closed = idle.iter().filter(|stream| {
        stream.set_nonblocking(true).unwrap();
        !matches!(stream.peek(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    });
    assert_eq!(closed.count(), 2000 - Limits::default().connections_per_peer);
}
