//! How a node asks another one: plain requests and whole answers, over HTTP or, in tests, in this process.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::members::Member;
use common::wire::MAX_BODY;
use credentials::{ClientConfig, Securing, Token};
use http::header::{AUTHORIZATION, HeaderValue};
use http::uri::Scheme;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

/// Until a connection stands.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// An idle connection is closed before the other node's patience ends.
const IDLE_LIMIT: Duration = Duration::from_secs(10);
/// For a whole answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// What comes of a request: the answer, or why there is none.
pub type Carried<'a> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, String>> + Send + 'a>>;

/// Takes requests to other nodes.
pub trait Link: Send + Sync + 'static {
    /// The request's URI is path and query alone.
    fn carry<'a>(&'a self, to: &'a Member, request: Request<Bytes>) -> Carried<'a>;
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

    async fn ask(
        &self,
        to: &Member,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, Box<dyn Error + Send + Sync>> {
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        parts.uri = format!("{}{path}", to.url.trim_end_matches('/')).parse::<Uri>()?;
        if let Some(authorization) = &self.authorization {
            parts.headers.insert(AUTHORIZATION, authorization.clone());
        }
        let request = Request::from_parts(parts, Full::new(body));
        let response = match &self.speaker {
            Speaker::Secured(_) if request.uri().scheme() != Some(&Scheme::HTTPS) => {
                return Err("with TLS nothing is sent to an address that is not https://".into());
            }
            Speaker::Plain(client) => client.request(request).await?,
            Speaker::Secured(client) => client.request(request).await?,
        };
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_BODY).collect().await?.to_bytes();
        Ok(Response::from_parts(parts, body))
    }
}

impl Link for HttpLink {
    fn carry<'a>(&'a self, to: &'a Member, request: Request<Bytes>) -> Carried<'a> {
        Box::pin(async move {
            match tokio::time::timeout(ANSWER_LIMIT, self.ask(to, request)).await {
                Ok(answer) => answer.map_err(|error| whole(&*error)),
                Err(_) => Err(format!("no answer within {} s", ANSWER_LIMIT.as_secs())),
            }
        })
    }
}

/// An error with what it says of its causes.
fn whole(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
