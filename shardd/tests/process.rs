//! The node as a process: killed, restarted, fed with garbage.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::wire::Listing;
use http::Method;
use shardd::Limits;
use support::*;
use tokio::net::TcpListener;

/// Writers put, and now and then delete, until the node is gone; what each was told.
async fn write_until_killed(
    address: String,
    writer: usize,
    objects: Arc<Vec<Encoded>>,
) -> Vec<(String, usize)> {
    let mut client = Client::connect(&address).await;
    let mut acknowledged = Vec::new();
    for i in 0.. {
        let (key, index) = (format!("w{writer}-{i:05}"), i % 4);
        let body = objects[i % objects.len()].body(index);
        match client.try_call(Method::POST, &path(&key, index), body).await {
            Ok(answer) => {
                answer.ok();
                acknowledged.push((key, index));
            }
            Err(_) => break,
        }
    }
    acknowledged
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9_in_the_middle_of_writes() {
    let folder = tempfile::tempdir().unwrap();
    let objects = Arc::new(vec![object(1, 3000), object(2, 300_000), object(3, 50_000)]);
    let mut identity = None;
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let node = Process::start(folder.path());
        let mut client = node.client().await;
        let info = client.get("/info").await.ok().json();
        assert_eq!(*identity.get_or_insert(info["node"].clone()), info["node"]);
        check_everything(&mut client, &acknowledged).await;
        let writers: Vec<_> = (0..4)
            .map(|w| tokio::spawn(write_until_killed(node.address.clone(), round * 4 + w, objects.clone())))
            .collect();
        let mut count = 0;
        while count < 100 * (round + 1) {
            count = client.get("/info").await.ok().json()["fragments"].as_u64().unwrap() as usize;
        }
        node.kill();
        for writer in writers {
            let told = writer.await.unwrap();
            acknowledged.extend(told);
        }
    }
    let node = Process::start(folder.path());
    check_everything(&mut node.client().await, &acknowledged).await;
    assert!(acknowledged.len() > 200);
}

/// All that was acknowledged is there, and all that is there verifies.
async fn check_everything(client: &mut Client, acknowledged: &[(String, usize)]) {
    for (key, index) in acknowledged {
        assert!(verifies(client.get(&path(key, *index)).await.ok().body, *index), "{key}");
    }
    let mut next = Some(String::new());
    while let Some(after) = next {
        let page = client.get(&format!("/objects?after={after}")).await.ok();
        let page: Listing = serde_json::from_slice(&page.body).unwrap();
        for object in page.objects {
            for index in object.indexes.iter().map(|&index| usize::from(index)) {
                assert!(verifies(client.get(&path(&object.key, index)).await.ok().body, index));
            }
        }
        next = page.next;
    }
}

#[tokio::test]
async fn a_node_asked_to_stop_flushes_and_ends_well() {
    let folder = tempfile::tempdir().unwrap();
    let node = Process::start(folder.path());
    let object = object(1, 3000);
    node.client().await.post(&path("k", 0), object.body(0)).await.ok();
    assert_eq!(node.terminate().code(), Some(0));
    let sealed = std::fs::read_dir(folder.path().join("segments")).unwrap();
    let names: Vec<_> = sealed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names, ["00000001.seg"]);
    let node = Process::start(folder.path());
    assert_eq!(node.client().await.get(&path("k", 0)).await.ok().body, object.body(0));
}

fn refused(data: &Path, arguments: &[&str]) -> String {
    let output = shardd(data).args(arguments).output().unwrap();
    assert!(matches!(output.status.code(), Some(1 | 2)), "{:?}", output.status);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "");
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test]
async fn what_cannot_start_says_why_in_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let node = Process::start(folder.path());
    assert!(refused(folder.path(), &[]).contains("another shardd is using it"));
    let other = folder.path().join("other");
    assert!(refused(&other, &["--listen", &node.address]).contains("in use"));
    assert!(refused(&other, &["--listen", "0.0.0.0:0"]).contains("--insecure"));
    assert!(refused(&other, &["--capacity", "much"]).contains("64MiB"));
    assert!(refused(&other, &["--frobnicate"]).contains("--frobnicate"));
    assert!(refused(&other, &["--config", "/nonexistent.yaml"]).contains("/nonexistent.yaml"));
    assert!(!other.join("node.json").exists());
    assert!(refused(Path::new("/proc/nowhere"), &[]).contains("/proc/nowhere"));
    let taken = folder.path().join("taken");
    std::fs::create_dir(&taken).unwrap();
    std::fs::write(taken.join("file"), "").unwrap();
    assert!(refused(&taken, &[]).contains("neither empty nor a node's"));
}

/// What a node says to raw bytes; the connection is then half closed.
fn say(address: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // It may have answered and closed before it took everything.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn garbage_oversized_and_truncated_requests_get_4xx_and_the_node_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let node = Process::start(folder.path());
    let post = |length: &str, body: &str| {
        format!("POST {} HTTP/1.1\r\nhost: n\r\ncontent-length: {length}\r\n\r\n{body}", path("k", 0))
    };
    let huge_header = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    let requests = [
        ("\x16\x03\x01\x02\x00\x01\x00", "400"),
        ("GET nonsense\r\n\r\n", "400"),
        (&huge_header, "431"),
        (&post("40000000", "short"), "413"),
        (&post("18446744073709551615", "x"), "4"),
        (&post("-1", "x"), "400"),
        ("POST /batch HTTP/1.1\r\nhost: n\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "400"),
    ];
    for (request, status) in requests {
        let answer = say(&node.address, request.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request:.40?}: {answer:?}");
    }
    // Cut short, it may get an answer or none, but nothing is kept.
    let body = object(1, 300_000).body(0);
    for cut in [0, 1, 4, 100, 70_000, body.len() - 1] {
        let head = post(&body.len().to_string(), "").into_bytes();
        let answer = say(&node.address, &[&head, &body[..cut]].concat());
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer:?}");
    }
    let mut client = node.client().await;
    assert_eq!(client.get("/info").await.ok().json()["fragments"], 0);
    client.post(&path("k", 0), body).await.ok();
}

async fn serve(folder: &Path, limits: Limits) -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let node = Local::with(folder, limits.clone());
    let served = tokio::spawn(shardd::serve(listener, node.app, limits, std::future::pending()));
    (address, served)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_does_not_move_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    let short = Duration::from_millis(300);
    let limits = Limits { stall: short, idle: short, ..Limits::default() };
    let (address, served) = serve(folder.path(), limits).await;
    let stuck = |bytes: Bytes| {
        let address = address.clone();
        tokio::task::spawn_blocking(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream.write_all(&bytes).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        })
    };
    assert_eq!(stuck(Bytes::new()).await.unwrap(), "");
    assert_eq!(stuck(Bytes::from_static(b"GET /inf")).await.unwrap(), "");
    let body =
        stuck(format!("POST {} HTTP/1.1\r\nhost: n\r\ncontent-length: 9\r\n\r\nx", path("k", 0)).into());
    assert!(body.await.unwrap().starts_with("HTTP/1.1 408"));
    served.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_takes_nothing_does_not_keep_the_memory() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits {
        stall: Duration::from_secs(1),
        inflight_bytes: 20 << 20,
        busy_wait: Duration::from_secs(20),
        ..Limits::default()
    };
    let (address, served) = serve(folder.path(), limits).await;
    let object = object(1, 38 << 20);
    let mut client = Client::connect(&address).await;
    client.post(&path("k", 0), object.body(0)).await.ok();
    let mut greedy = TcpStream::connect(&address).unwrap();
    write!(greedy, "GET {} HTTP/1.1\r\nhost: n\r\n\r\n", path("k", 0)).unwrap();
    // On a connection of its own: the first may have been idle for too long on a busy machine.
    let mut client = Client::connect(&address).await;
    assert_eq!(client.get(&path("k", 0)).await.ok().body, object.body(0));
    drop(greedy);
    served.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn more_connections_than_allowed_wait_their_turn() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { connections: 2, idle: Duration::from_millis(300), ..Limits::default() };
    let (address, served) = serve(folder.path(), limits).await;
    let _idle: Vec<_> = (0..2).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let mut client = Client::connect(&address).await;
    client.get("/healthz").await.ok();
    served.abort();
}
