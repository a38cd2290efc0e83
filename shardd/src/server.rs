//! Connections: accepted up to a bound, served, in plain or over TLS alone, and ended when the node stops or the other
//! side no longer moves.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use credentials::ServerConfig;
use http::header::{HeaderValue, UPGRADE};
use http::{Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, Sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tower::Service;

use crate::intake::{Limits, SLOWEST_BYTES_PER_SECOND};
use crate::peers::{Guest, Peers};

/// How long requests may still run once the node stops.
const LAST_REQUESTS: Duration = Duration::from_secs(10);
/// What hyper may buffer of a connection's input.
const READ_BUFFER: usize = 256 << 10;

/// How long somebody whose certificate was refused may take to read why.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// What he may send meanwhile.
const LAST_WORDS_BYTES: u64 = 64 << 10;
/// The first byte of every connection that begins with TLS: a record that holds a handshake (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// Serve `app` on `listener` until `stop`; then finish what runs, within ten seconds.
pub async fn serve(listener: TcpListener, app: Router, limits: Limits, stop: impl Future<Output = ()>) {
    accept_until(listener, Served { app, limits, tls: None }, stop).await;
}

/// The same over TLS alone, to those whom `tls` lets in.
pub async fn serve_tls(
    listener: TcpListener,
    app: Router,
    limits: Limits,
    tls: Arc<ServerConfig>,
    stop: impl Future<Output = ()>,
) {
    accept_until(listener, Served { app, limits, tls: Some(tls.into()) }, stop).await;
}

async fn accept_until(listener: TcpListener, served: Served, stop: impl Future<Output = ()>) {
    let door = Door::new(&listener, &served.limits);
    let (stopping, stopped) = watch::channel(());
    let mut stop = pin!(stop);
    loop {
        let (stream, place) = tokio::select! {
            next = door.accept() => next,
            () = &mut stop => break,
        };
        tokio::spawn(served.clone().serve_connection(stream, place, stopped.clone()));
    }
    drop((listener, stopped));
    let _ = stopping.send(());
    let _ = timeout(LAST_REQUESTS, stopping.closed()).await;
}

/// Lets connections in while there are places, and of each peer a share of them.
struct Door<'a> {
    listener: &'a TcpListener,
    slots: Arc<Semaphore>,
    peers: Arc<Peers>,
}

/// A connection's place, until it is dropped. It goes with a request to make something else of the connection.
pub struct Place {
    _slot: OwnedSemaphorePermit,
    _guest: Guest,
}

impl<'a> Door<'a> {
    fn new(listener: &'a TcpListener, limits: &Limits) -> Door<'a> {
        let slots = Arc::new(Semaphore::new(limits.connections));
        Door { listener, slots, peers: Peers::new(limits.connections_per_peer) }
    }

    async fn accept(&self) -> (TcpStream, Place) {
        let slot = self.slots.clone().acquire_owned().await.expect("the semaphore is never closed");
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => match self.peers.enter(peer.ip()) {
                    Some(guest) => return (stream, Place { _slot: slot, _guest: guest }),
                    None => tracing::debug!(%peer, "closed: it has as many connections as one may have"),
                },
                // Out of descriptors, or the other side was gone already; neither is better for trying at once.
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// Goes with every request that comes over a connection at whose other end is a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OfNode;

/// What every connection is served with.
#[derive(Clone)]
struct Served {
    app: Router,
    limits: Limits,
    tls: Option<TlsAcceptor>,
}

impl Served {
    async fn serve_connection(self, stream: TcpStream, place: Place, mut stopped: watch::Receiver<()>) {
        let _ = stream.set_nodelay(true);
        let place = Arc::new(place);
        let Some(tls) = &self.tls else {
            return self.speak(self.moving(stream), &place, None, stopped).await;
        };
        let begun = tokio::select! {
            begun = timeout(self.limits.handshake, self.begin_tls(tls, stream)) => begun,
            _ = stopped.changed() => return,
        };
        if let Ok(Some(stream)) = begun {
            let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let node = certificate.is_some_and(credentials::is_a_nodes).then_some(OfNode);
            self.speak(stream, &place, node, stopped).await;
        }
    }

    /// None if it came to nothing.
    async fn begin_tls(&self, tls: &TlsAcceptor, stream: TcpStream) -> Option<TlsStream<Moving>> {
        let mut first = [0];
        match stream.peek(&mut first).await {
            Ok(1) if first[0] == TLS_HANDSHAKE => {}
            Ok(1) => {
                self.turn_away(stream).await;
                return None;
            }
            _ => return None,
        }
        match tls.accept(self.moving(stream)).into_fallible().await {
            Ok(stream) => Some(stream),
            Err((error, stream)) => {
                tracing::debug!(%error, "handshake");
                let _ = timeout(LAST_WORDS, take_leave(stream)).await;
                None
            }
        }
    }

    /// Who speaks plain HTTP where TLS is wanted is told so, whatever was asked.
    async fn turn_away(&self, stream: TcpStream) {
        let answer = service_fn(|_| async { Ok::<_, Infallible>(tls_wanted()) });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.handshake)
            .keep_alive(false)
            .serve_connection(TokioIo::new(self.moving(stream)), answer);
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection");
        }
    }

    async fn speak(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        place: &Arc<Place>,
        of_node: Option<OfNode>,
        mut stopped: watch::Receiver<()>,
    ) {
        let app = &self.app;
        let service = service_fn(move |mut request: http::Request<Incoming>| {
            of_node.map(|of_node| request.extensions_mut().insert(of_node));
            if request.headers().contains_key(UPGRADE) {
                request.extensions_mut().insert(place.clone());
            }
            app.clone().call(request.map(Body::new))
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.idle)
            .max_buf_size(READ_BUFFER)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            _ = stopped.changed() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "connection");
        }
    }

    fn moving(&self, stream: TcpStream) -> Moving {
        Moving::new(stream, self.limits.stall)
    }
}

fn tls_wanted() -> Response<Body> {
    let mut response = Response::new(Body::from("this node speaks TLS alone: name it by https://\n"));
    *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("TLS/1.3"));
    response
}

/// What the other side still sends is taken in first: closing before would throw away the alert on its way there, and
/// with it the reason.
async fn take_leave(mut stream: Moving) -> io::Result<()> {
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(LAST_WORDS_BYTES), &mut tokio::io::sink()).await.map(drop)
}

/// A stream that fails when the other side takes an answer too slowly. There is patience for one `stall`; waiting uses it
/// up, and bytes that were taken give it back. So one byte now and then keeps nothing open.
struct Moving<S = TcpStream> {
    stream: S,
    stall: Duration,
    patience: Duration,
    wait: Option<Wait>,
}

struct Wait {
    since: Instant,
    end: Pin<Box<Sleep>>,
}

impl<S> Moving<S> {
    fn new(stream: S, stall: Duration) -> Moving<S> {
        Moving { stream, stall, patience: stall, wait: None }
    }

    fn moved(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let patience = self.patience;
        let Poll::Ready(written) = written else {
            let begin = || Wait { since: Instant::now(), end: Box::pin(tokio::time::sleep(patience)) };
            ready!(self.wait.get_or_insert_with(begin).end.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        };
        let waited = self.wait.take().map_or(Duration::ZERO, |wait| wait.since.elapsed());
        let taken = written.as_ref().map_or(Duration::ZERO, |&bytes| most_time(bytes));
        self.patience = self.stall.min(patience.saturating_sub(waited) + taken);
        Poll::Ready(written)
    }
}

/// How long so many bytes may take at most.
fn most_time(bytes: usize) -> Duration {
    Duration::from_nanos(bytes as u64 * 1_000_000_000 / SLOWEST_BYTES_PER_SECOND as u64)
}

impl<S: AsyncRead + Unpin> AsyncRead for Moving<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Moving<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.moved(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.moved(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_secs(30);

    /// Whether one MiB reaches a reader that takes a piece every `pause`.
    async fn taken_by_pieces(piece: usize, pause: Duration) -> io::Result<()> {
        let (mut reader, writer) = tokio::io::duplex(4096);
        let reading = tokio::spawn(async move {
            let mut bytes = vec![0; piece];
            while reader.read(&mut bytes).await.is_ok_and(|length| length > 0) {
                tokio::time::sleep(pause).await;
            }
        });
        let written = Moving::new(writer, STALL).write_all(&vec![0; 1 << 20]).await;
        reading.await.expect("reading does not panic");
        written
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_given_up_when_it_is_taken_too_slowly_over_all() {
        assert!(taken_by_pieces(4096, Duration::from_millis(14)).await.is_ok(), "280 KiB a second");
        assert!(taken_by_pieces(4096, Duration::from_millis(100)).await.is_ok(), "slow, and soon over");
        let error = taken_by_pieces(1024, Duration::from_millis(100)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let error = taken_by_pieces(4096, STALL * 2).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
