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

use crate::intake::Limits;

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
    let slots = Arc::new(Semaphore::new(served.limits.connections));
    let (stopping, stopped) = watch::channel(());
    let mut stop = pin!(stop);
    loop {
        let next = accept(&listener, &slots);
        let (stream, slot) = tokio::select! {
            next = next => next,
            () = &mut stop => break,
        };
        tokio::spawn(served.clone().serve_connection(stream, slot, stopped.clone()));
    }
    drop((listener, stopped));
    let _ = stopping.send(());
    let _ = timeout(LAST_REQUESTS, stopping.closed()).await;
}

async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, slot),
            // Out of descriptors, or the other side was gone already; neither is better for trying at once.
            Err(error) => {
                tracing::warn!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// What every connection is served with.
#[derive(Clone)]
struct Served {
    app: Router,
    limits: Limits,
    tls: Option<TlsAcceptor>,
}

impl Served {
    async fn serve_connection(
        self,
        stream: TcpStream,
        _slot: OwnedSemaphorePermit,
        mut stopped: watch::Receiver<()>,
    ) {
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else { return self.speak(self.moving(stream), stopped).await };
        let begun = tokio::select! {
            begun = timeout(self.limits.handshake, self.begin_tls(tls, stream)) => begun,
            _ = stopped.changed() => return,
        };
        if let Ok(Some(stream)) = begun {
            self.speak(stream, stopped).await;
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
        let answer = service_fn(async |_| Ok::<_, Infallible>(tls_wanted()));
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
        mut stopped: watch::Receiver<()>,
    ) {
        let app = &self.app;
        let service =
            service_fn(move |request: http::Request<Incoming>| app.clone().call(request.map(Body::new)));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.idle)
            .max_buf_size(READ_BUFFER)
            .serve_connection(TokioIo::new(stream), service);
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
        Moving { stream, stall: self.limits.stall, writing: None }
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

/// A stream that fails when the other side takes no byte of an answer for a while.
struct Moving {
    stream: TcpStream,
    stall: Duration,
    writing: Option<Pin<Box<Sleep>>>,
}

impl Moving {
    fn moved<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.writing = None;
            return written;
        }
        let deadline = Instant::now() + self.stall;
        let stalled = self.writing.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Moving {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Moving {
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
