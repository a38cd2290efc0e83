//! Connections over TLS, and what the certificate at their other end says about the node there.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use common::wire::NodeId;
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tower::Service;

use crate::{ClientConfig, explain, node_in};

/// A handshake costs both sides about a millisecond; a node that has not made it by now is busy or dead. Requests that
/// wait for it have limits of their own.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Makes connections to nodes that have a certificate of the CA for the host they are reached at.
#[derive(Clone)]
pub struct Securing {
    tcp: HttpConnector,
    tls: TlsConnector,
}

impl Securing {
    /// Over connections of `tcp`.
    pub fn new(mut tcp: HttpConnector, tls: Arc<ClientConfig>) -> Securing {
        tcp.enforce_http(false);
        Securing { tcp, tls: tls.into() }
    }
}

impl Service<Uri> for Securing {
    type Response = Secured;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Secured, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned());
        let (tls, connecting) = (self.tls.clone(), self.tcp.call(uri));
        Box::pin(async move {
            let (name, stream) = (name?, connecting.await?.into_inner());
            let shaken = tokio::time::timeout(HANDSHAKE_LIMIT, tls.connect(name, stream)).await;
            let slow = || io::Error::new(io::ErrorKind::Interrupted, "it ends no handshake of TLS");
            Ok(Secured::new(shaken.map_err(|_| slow())??))
        })
    }
}

/// The node that a connection's certificate is bound to. Goes with every answer that comes over it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BoundTo(pub NodeId);

/// Why TLS ended a connection, once it has. With TLS 1.3 a node refuses a certificate after the handshake, maybe before
/// the first request is sent; the client then says of the request no more than that the connection was not ready.
#[derive(Clone, Default)]
pub struct Ending(Arc<OnceLock<String>>);

impl Ending {
    /// A sentence about the node, as `explain` has them.
    pub fn sentence(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }

    fn note(&self, error: &io::Error) {
        if let Some(sentence) = explain(error) {
            let _ = self.0.set(sentence);
        }
    }
}

/// A connection to a node whose certificate was checked.
pub struct Secured {
    stream: TokioIo<TlsStream<TcpStream>>,
    bound: Option<BoundTo>,
    ending: Ending,
}

impl Secured {
    fn new(stream: TlsStream<TcpStream>) -> Secured {
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let bound = certificate.and_then(node_in).map(BoundTo);
        Secured { stream: TokioIo::new(stream), bound, ending: Ending::default() }
    }
}

impl Connection for Secured {
    fn connected(&self) -> Connected {
        let connected = Connected::new().extra(self.ending.clone());
        match self.bound {
            Some(bound) => connected.extra(bound),
            None => connected,
        }
    }
}

impl Read for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Poll::Ready(Err(error)) = &read {
            self.ending.note(error);
        }
        read
    }
}

impl Write for Secured {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
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
