//! How a node asks another one, and speaks to it: whole answers, or a stream both ways, over HTTP or, in tests, in this
//! process.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::members::Member;
use common::wire::MAX_BODY;
use credentials::{ClientConfig, Securing, Token};
use http::header::{AUTHORIZATION, CONNECTION, HeaderValue, UPGRADE};
use http::uri::Scheme;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::stream::PROTOCOL;

/// Until a connection stands.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// An idle connection is closed before the other node's patience ends.
const IDLE_LIMIT: Duration = Duration::from_secs(10);
/// For a whole answer, or the beginning of a stream.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

type Coming<'a, T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send + 'a>>;

/// What comes of a request: the answer, or why there is none.
pub type Carried<'a> = Coming<'a, Response<Bytes>>;

/// What comes of asking for a stream, or why there is none.
pub type Opened<'a> = Coming<'a, Box<dyn Stream>>;

/// Bytes both ways.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Takes requests to other nodes. Their URI is path and query alone.
pub trait Link: Send + Sync + 'static {
    /// For one answer.
    fn carry<'a>(&'a self, to: &'a Member, request: Request<Bytes>) -> Carried<'a>;

    /// For a stream of words.
    fn open<'a>(&'a self, to: &'a Member, request: Request<Bytes>) -> Opened<'a>;
}

/// Over HTTP/1.1 with keep-alive.
pub struct HttpLink {
    speaker: Speaker,
    authorization: Option<HeaderValue>,
}

/// One of the two, so that nothing that was to be secret is ever sent in plain.
enum Speaker {
    Plain(Client<HttpConnector, Full<Bytes>>),
    Secured(Client<Securing, Full<Bytes>>),
}

impl HttpLink {
    /// Over TLS alone if there is some; shows the pool's token, if there is one.
    pub fn new(tls: Option<Arc<ClientConfig>>, token: Option<&Token>) -> HttpLink {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_LIMIT));
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_idle_timeout(IDLE_LIMIT).pool_timer(TokioTimer::new());
        let speaker = match tls {
            Some(tls) => Speaker::Secured(builder.build(Securing::new(connector, tls))),
            None => Speaker::Plain(builder.build(connector)),
        };
        let authorization = token.map(|token| {
            let mut value = HeaderValue::from_str(&token.header()).expect("a token fits a header");
            value.set_sensitive(true);
            value
        });
        HttpLink { speaker, authorization }
    }

    async fn begin(&self, to: &Member, request: Request<Bytes>) -> Result<Response<Incoming>, Failure> {
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        parts.uri = format!("{}{path}", to.url.trim_end_matches('/')).parse::<Uri>()?;
        if let Some(authorization) = &self.authorization {
            parts.headers.insert(AUTHORIZATION, authorization.clone());
        }
        let request = Request::from_parts(parts, Full::new(body));
        Ok(match &self.speaker {
            Speaker::Secured(_) if request.uri().scheme() != Some(&Scheme::HTTPS) => {
                return Err("with TLS nothing is sent to an address that is not https://".into());
            }
            Speaker::Plain(client) => client.request(request).await?,
            Speaker::Secured(client) => client.request(request).await?,
        })
    }

    async fn ask(&self, to: &Member, request: Request<Bytes>) -> Result<Response<Bytes>, Failure> {
        whole(self.begin(to, request).await?).await
    }

    async fn upgrade(&self, to: &Member, mut request: Request<Bytes>) -> Result<Box<dyn Stream>, Failure> {
        request.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        request.headers_mut().insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
        let response = self.begin(to, request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let answer = whole(response).await?;
            let text = String::from_utf8_lossy(&answer.body()[..answer.body().len().min(200)]);
            return Err(format!("{}: {text}", answer.status()).into());
        }
        Ok(Box::new(TokioIo::new(hyper::upgrade::on(response).await?)))
    }
}

type Failure = Box<dyn Error + Send + Sync>;

async fn whole(response: Response<Incoming>) -> Result<Response<Bytes>, Failure> {
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, MAX_BODY).collect().await?.to_bytes();
    Ok(Response::from_parts(parts, body))
}

impl Link for HttpLink {
    fn carry<'a>(&'a self, to: &'a Member, request: Request<Bytes>) -> Carried<'a> {
        Box::pin(in_time(self.ask(to, request)))
    }

    fn open<'a>(&'a self, to: &'a Member, request: Request<Bytes>) -> Opened<'a> {
        Box::pin(in_time(self.upgrade(to, request)))
    }
}

async fn in_time<T>(asked: impl Future<Output = Result<T, Failure>>) -> Result<T, String> {
    match tokio::time::timeout(ANSWER_LIMIT, asked).await {
        Ok(answer) => answer.map_err(|error| with_causes(&*error)),
        Err(_) => Err(format!("no answer within {} s", ANSWER_LIMIT.as_secs())),
    }
}

/// An error with what it says of its causes.
fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
