//! The requests of a node that agrees with others on objects.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Json};
use common::wire::{
    FROM_HEADER, MAC_HEADER, NEXT_HEADER, NodeId, OwnerId, RefusalCode, SIGNATURE_HEADER, Signature,
};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use serde_json::json;

use super::{Answer, Names, Node, Options, Refused, bad_request, bytes_answer, upgrade};
use crate::agreement::{Agreement, NotAgreed, NotHeard, PROTOCOL, split_fragment_key};
use crate::dispersal::InstanceId;
use crate::intake::Intake;

impl From<NotAgreed> for Refused {
    fn from(error: NotAgreed) -> Refused {
        Refused::new(error.code(), error.to_string())
    }
}

impl From<NotHeard> for Refused {
    fn from(error: NotHeard) -> Refused {
        Refused::new(error.code(), error.to_string())
    }
}

/// What would change an object behind the backs of the others.
pub fn by_agreement_alone() -> Refused {
    bad_request("objects of this node's object store change by agreement alone")
}

pub async fn keep(
    node: &Node,
    agreement: &Arc<Agreement>,
    names: &Names,
    headers: &HeaderMap,
    body: Body,
) -> Answer {
    let (owner, name) = owned(&names.key)?;
    let id = InstanceId::new(owner, name, names.version)?;
    let signature: Signature = header(headers, SIGNATURE_HEADER)?;
    let body = node.intake.receive(body).await?;
    agreement.disperse(id, names.index, signature, body).await?;
    Ok(Json(json!({ "stored": true })).into_response())
}

pub fn latest(agreement: &Agreement, names: &Names) -> Answer {
    let (owner, name) = owned(&names.key)?;
    Ok(Json(agreement.latest(owner, name)).into_response())
}

pub async fn list(
    node: &Node,
    agreement: Arc<Agreement>,
    owner: OwnerId,
    options: Options,
    limit: usize,
) -> Answer {
    let (prefix, after) = (options.prefix.unwrap_or_default(), options.after.unwrap_or_default());
    let length = agreement.list_length(owner, &prefix, &after, limit);
    node.list(length, move |_| Ok(agreement.list(owner, &prefix, &after, limit))).await
}

pub async fn members(State(node): State<Arc<Node>>) -> Answer {
    let text = agreement_of(&node)?.members().to_json();
    Ok(([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response())
}

/// A peer speaks, over this connection from now on.
pub async fn words(State(node): State<Arc<Node>>, request: Request) -> Answer {
    let headers = request.headers();
    let ear = agreement_of(&node)?.listen_to(header(headers, FROM_HEADER)?, header(headers, MAC_HEADER)?)?;
    upgrade(request, PROTOCOL, |stream| ear.listen(stream))
}

pub async fn verified(State(node): State<Arc<Node>>, options: Options, headers: HeaderMap) -> Answer {
    let agreement = agreement_of(&node)?.clone();
    let asker: NodeId = header(&headers, FROM_HEADER)?;
    let after = options.after.unwrap_or_default().parse();
    let after = after.map_err(|_| bad_request("after is the number of a place"))?;
    let share = node.intake.share(agreement.verified_length(after)).await?;
    let told = node.apart(move |_| agreement.verified_after(asker, after)).await;
    let (body, next, mac) = told?;
    let mut response = bytes_answer(Body::from(Intake::hold(body, share)));
    response.headers_mut().insert(NEXT_HEADER, HeaderValue::from(next));
    let mac = HeaderValue::from_str(&mac.to_string()).expect("hex digits make a header");
    response.headers_mut().insert(MAC_HEADER, mac);
    Ok(response)
}

fn agreement_of(node: &Node) -> Result<&Arc<Agreement>, Refused> {
    let none = || Refused::new(RefusalCode::NotFound, "this node has no members to agree with (--members)");
    node.agreement.as_ref().ok_or_else(none)
}

fn owned(key: &str) -> Result<(OwnerId, &str), Refused> {
    split_fragment_key(key).ok_or_else(|| bad_request("a name is OWNER/KEY, with the owner in hex"))
}

fn header<T: std::str::FromStr>(headers: &HeaderMap, name: &str) -> Result<T, Refused> {
    let value = headers.get(name).and_then(|value| value.to_str().ok()?.parse().ok());
    value.ok_or_else(|| bad_request(&format!("{name} is missing, or not of its form")))
}
