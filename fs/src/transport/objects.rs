//! The verbs of the object store, beside those of a volume: docs/wire.md, "Requests of the object store".

use std::fmt::Write;
use std::time::Duration;

use bytes::Bytes;
use common::members::Members;
use common::wire::{
    FragmentName, LatestVersion, NodeInfo, OwnerId, SIGNATURE_HEADER, Signature, VersionList, fragment_prefix,
};
use http::{Method, Request};
use serde::Deserialize;

use super::verbs::{Carrier, Parts, Wire, from_json, garbage, get, in_path, parse_fragment, parse_info};
use super::{NodeAddress, RawFragment, Reply, TransportError};

/// The verbs. Every one ends within the `Duration` given. All may be retried: they are idempotent.
pub trait ObjectTransport: Send + Sync + 'static {
    /// `GET /members`: the pool as this node has it.
    fn members<'a>(&'a self, node: &'a NodeAddress, limit: Duration) -> Reply<'a, Members>;
    /// `GET /info`.
    fn node_info<'a>(&'a self, node: &'a NodeAddress, limit: Duration) -> Reply<'a, NodeInfo>;
    /// Give the node its fragment of a version; it answers once the version is verified. The key of `name` begins with
    /// the owner.
    fn disperse<'a>(
        &'a self,
        node: &'a NodeAddress,
        name: &'a FragmentName,
        signature: Signature,
        fragment: RawFragment,
        limit: Duration,
    ) -> Reply<'a, ()>;
    /// Fetch one fragment; nothing is checked. The key of `name` begins with the owner.
    fn fragment<'a>(
        &'a self,
        node: &'a NodeAddress,
        name: &'a FragmentName,
        limit: Duration,
    ) -> Reply<'a, RawFragment>;
    /// The newest version of a name, which begins with the owner, as the node has it.
    fn latest<'a>(
        &'a self,
        node: &'a NodeAddress,
        name: &'a str,
        limit: Duration,
    ) -> Reply<'a, LatestVersion>;
    /// One page of an owner's keys, each with the newest version that the node has verified.
    fn keys<'a>(
        &'a self,
        node: &'a NodeAddress,
        wanted: &'a KeyPage,
        limit: Duration,
    ) -> Reply<'a, VersionList>;
}

/// Which page of an owner's keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyPage {
    /// Whose.
    pub owner: OwnerId,
    /// What the keys begin with.
    pub prefix: String,
    /// The last key of the page before; none: from the first one on.
    pub after: Option<String>,
    /// The most keys.
    pub limit: usize,
}

impl<C: Carrier> ObjectTransport for Wire<C> {
    fn members<'a>(&'a self, node: &'a NodeAddress, limit: Duration) -> Reply<'a, Members> {
        Box::pin(async move {
            let answer = self.ask(node, get("/members"), limit).await?;
            answer.read(|body| Members::parse(&body).map_err(garbage))
        })
    }

    fn node_info<'a>(&'a self, node: &'a NodeAddress, limit: Duration) -> Reply<'a, NodeInfo> {
        Box::pin(async move { parse_info(self.ask(node, get("/info"), limit).await?) })
    }

    fn disperse<'a>(
        &'a self,
        node: &'a NodeAddress,
        name: &'a FragmentName,
        signature: Signature,
        fragment: RawFragment,
        limit: Duration,
    ) -> Reply<'a, ()> {
        Box::pin(async move {
            let request = signed_post(&fragment_path(name), signature, fragment);
            self.ask(node, request, limit).await?.read(|body| parse_stored(&body))
        })
    }

    fn fragment<'a>(
        &'a self,
        node: &'a NodeAddress,
        name: &'a FragmentName,
        limit: Duration,
    ) -> Reply<'a, RawFragment> {
        Box::pin(async move { self.ask(node, get(&fragment_path(name)), limit).await?.read(parse_fragment) })
    }

    fn latest<'a>(
        &'a self,
        node: &'a NodeAddress,
        name: &'a str,
        limit: Duration,
    ) -> Reply<'a, LatestVersion> {
        Box::pin(async move {
            let path = format!("/objects/{}/latest", in_path(name));
            self.ask(node, get(&path), limit).await?.read(|body| from_json(&body))
        })
    }

    fn keys<'a>(
        &'a self,
        node: &'a NodeAddress,
        wanted: &'a KeyPage,
        limit: Duration,
    ) -> Reply<'a, VersionList> {
        Box::pin(async move {
            self.ask(node, get(&page_path(wanted)), limit).await?.read(|body| from_json(&body))
        })
    }
}

fn fragment_path(name: &FragmentName) -> String {
    format!("/objects/{}/{}/fragment/{}", in_path(&name.key), name.version, name.index)
}

fn page_path(wanted: &KeyPage) -> String {
    let mut path = format!("/objects?owner={}&limit={}", wanted.owner, wanted.limit);
    for (name, value) in [("prefix", Some(&wanted.prefix)), ("after", wanted.after.as_ref())] {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            write!(path, "&{name}={}", in_path(value)).expect("a string takes what is written to it");
        }
    }
    path
}

fn signed_post(path: &str, signature: Signature, fragment: RawFragment) -> Request<Parts> {
    let request = Request::builder().method(Method::POST).uri(path);
    let request = request.header(SIGNATURE_HEADER, signature.to_string());
    let parts = Parts::new([fragment_prefix(&fragment.fpcc), fragment.fragment]);
    request.body(parts).expect("paths are made of decimals and percent-encoded names")
}

fn parse_stored(body: &Bytes) -> Result<(), TransportError> {
    #[derive(Deserialize)]
    struct Stored {
        stored: bool,
    }
    match from_json(body)? {
        Stored { stored: true } => Ok(()),
        Stored { stored: false } => Err(garbage("a fragment neither stored nor refused")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::in_process::InProcessTransport;
    use crate::transport::scripted::ScriptedNode;

    const LIMIT: Duration = Duration::from_secs(5);

    fn speak_to(node: &ScriptedNode) -> (InProcessTransport, NodeAddress) {
        (InProcessTransport::new([node.router()]), InProcessTransport::address(0))
    }

    fn only_line(node: &ScriptedNode) -> String {
        let requests = node.requests();
        assert_eq!(requests.len(), 1);
        format!("{} {}", requests[0].method, requests[0].uri)
    }

    fn name() -> FragmentName {
        FragmentName { key: "ab/c d\0".into(), version: 7, index: 2 }
    }

    fn raw() -> RawFragment {
        RawFragment { fpcc: "FP".into(), fragment: "DATA".into() }
    }

    #[tokio::test]
    async fn a_fragment_is_dispersed_with_the_owners_signature() {
        let node = ScriptedNode::saying(r#"{"stored":true}"#);
        let (wire, at) = speak_to(&node);
        wire.disperse(&at, &name(), Signature([0xab; 64]), raw(), LIMIT).await.unwrap();
        assert_eq!(only_line(&node), "POST /objects/ab%2Fc%20d%00/7/fragment/2");
        let arrived = &node.requests()[0];
        assert_eq!(arrived.signature.as_deref(), Some("ab".repeat(64).as_str()));
        assert_eq!(&arrived.body[..], b"\x02\0\0\0FPDATA");
    }

    #[tokio::test]
    async fn a_fragment_neither_stored_nor_refused_is_garbage() {
        for body in [r#"{"stored":false}"#, r#"{"kept":true}"#, ""] {
            let (wire, at) = speak_to(&ScriptedNode::saying(body));
            let answer = wire.disperse(&at, &name(), Signature([1; 64]), raw(), LIMIT).await;
            assert!(matches!(answer, Err(TransportError::Garbage(_))), "{body}");
        }
    }

    #[tokio::test]
    async fn the_other_verbs_ask_what_the_wire_says() {
        let node = ScriptedNode::saying("\x02\0\0\0FPDATA");
        let (wire, at) = speak_to(&node);
        let raw = wire.fragment(&at, &name(), LIMIT).await.unwrap().value;
        assert_eq!((&raw.fpcc[..], &raw.fragment[..]), (&b"FP"[..], &b"DATA"[..]));
        assert_eq!(only_line(&node), "GET /objects/ab%2Fc%20d%00/7/fragment/2");

        let node = ScriptedNode::saying(r#"{"highest":3,"verified":null}"#);
        let (wire, at) = speak_to(&node);
        let latest = wire.latest(&at, "ab/k", LIMIT).await.unwrap().value;
        assert_eq!(latest, LatestVersion { highest: 3, verified: None });
        assert_eq!(only_line(&node), "GET /objects/ab%2Fk/latest");

        let node = ScriptedNode::saying(r#"{"objects":[],"next":null}"#);
        let (wire, at) = speak_to(&node);
        let owner = OwnerId([0xcd; 32]);
        let page = KeyPage { owner, prefix: "a&".into(), after: Some("ü".into()), limit: 9 };
        wire.keys(&at, &page, LIMIT).await.unwrap();
        let line = format!("GET /objects?owner={owner}&limit=9&prefix=a%26&after=%C3%BC");
        assert_eq!(only_line(&node), line);
    }

    #[tokio::test]
    async fn a_list_of_members_is_read_or_is_garbage() {
        let (wire, at) = speak_to(&ScriptedNode::saying("[]"));
        assert!(matches!(wire.members(&at, LIMIT).await, Err(TransportError::Garbage(_))));
        let refusal = r#"{"error":"not_found","message":"this node has no members"}"#;
        let (wire, at) = speak_to(&ScriptedNode::refusing(404, refusal));
        assert_eq!(wire.members(&at, LIMIT).await.unwrap_err().to_string(), "this node has no members");
    }
}
