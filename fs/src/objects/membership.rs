//! Which nodes a pool has: what enough of those that were named say, or what each says of itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::code::Code;
use common::hash::Hash;
use common::members::{Member, Members};
use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, timeout_at};

use super::{ObjectError, reasons};
use crate::transport::NodeAddress;
use crate::transport::objects::ObjectTransport;

/// How long the last nodes are waited for once enough have said the same.
const GRACE: Duration = Duration::from_millis(300);

/// The members that f' + 1 of `peers` give, f' = (N - 1) / 3 of N of them: one that does not lie is among these.
///
/// # Errors
/// `Members`: no f' + 1 give the same within `limit`.
pub async fn believed(
    transport: &Arc<dyn ObjectTransport>,
    peers: &[NodeAddress],
    limit: Duration,
) -> Result<Members, ObjectError> {
    let needed = (peers.len().saturating_sub(1)) / 3 + 1;
    let ask = |peer| async move { (peer, transport.members(peer, limit).await) };
    let mut asked: FuturesUnordered<_> = peers.iter().map(ask).collect();
    let (mut given, mut silent) = (BTreeMap::<Hash, Vec<Members>>::new(), Vec::new());
    let mut end = Instant::now() + limit;
    while let Ok(Some((peer, answer))) = timeout_at(end, asked.next()).await {
        match answer {
            Ok(answer) => {
                let same = given.entry(answer.value.digest()).or_default();
                same.push(answer.value);
                if same.len() == needed {
                    end = end.min(Instant::now() + GRACE);
                }
            }
            Err(error) => silent.push((peer, error.to_string())),
        }
    }
    let most = given.into_values().max_by_key(Vec::len).unwrap_or_default();
    if most.len() >= needed {
        return Ok(with_usual_urls(&most));
    }
    let (said, all) = (most.len(), peers.len());
    let why = match silent.is_empty() {
        true => "the others give other lists".to_owned(),
        false => reasons(silent.iter().map(|(peer, why)| (*peer, why))),
    };
    Err(ObjectError::Members(format!(
        "{said} of {all} nodes give one list of members, {needed} are needed: {why}"
    )))
}

/// A list's digest says nothing of URLs: of each node the one that most give.
fn with_usual_urls(lists: &[Members]) -> Members {
    let first = &lists[0];
    let usual = |member: &Member| {
        let mut counts = BTreeMap::<&str, usize>::new();
        let urls = lists.iter().filter_map(|list| list.find(member.node)).map(|found| found.url.as_str());
        urls.for_each(|url| *counts.entry(url).or_default() += 1);
        let most = counts.into_iter().max_by_key(|(_, count)| *count).map(|(url, _)| url.to_owned());
        Member { url: most.unwrap_or_else(|| member.url.clone()), ..member.clone() }
    };
    let nodes = first.nodes().iter().map(usual).collect();
    Members::new(first.code(), nodes).expect("the same nodes with other URLs")
}

/// The list of the nodes at `peers`, as each says of itself, under the URLs given here.
///
/// # Errors
/// `Members`: one does not answer within `limit`, has no key, or they are too few or some the same.
pub async fn survey(
    transport: &Arc<dyn ObjectTransport>,
    peers: &[NodeAddress],
    code: Code,
    limit: Duration,
) -> Result<Members, ObjectError> {
    let asked = join_all(peers.iter().map(|peer| member(transport, peer, limit))).await;
    let wrong: Vec<String> = asked.iter().filter_map(|asked| asked.clone().err()).collect();
    if !wrong.is_empty() {
        return Err(ObjectError::Members(format!("every node must answer: {}", wrong.join("; "))));
    }
    let nodes = asked.into_iter().filter_map(Result::ok).collect();
    Members::new(code, nodes).map_err(|error| ObjectError::Members(error.to_string()))
}

async fn member(
    transport: &Arc<dyn ObjectTransport>,
    peer: &NodeAddress,
    limit: Duration,
) -> Result<Member, String> {
    let info = transport.node_info(peer, limit).await.map_err(|error| format!("{peer}: {error}"))?.value;
    let key = info
        .key
        .ok_or_else(|| format!("{peer} does not say what it signs with: it is of an older version"))?;
    Ok(Member { node: info.node, key, url: peer.0.clone() })
}

#[cfg(test)]
mod tests {
    use common::wire::{NodeId, NodeKey};

    use super::*;

    #[test]
    fn of_each_node_the_url_that_most_give_is_taken() {
        let list = |first_url: &str| {
            let url = |byte: u8| if byte == 1 { first_url.to_owned() } else { format!("http://h{byte}") };
            let member = |byte| Member { node: NodeId([byte; 16]), key: NodeKey([byte; 32]), url: url(byte) };
            Members::new("3+2".parse().unwrap(), (1..=5).map(member).collect()).unwrap()
        };
        for order in [
            ["http://right", "http://right", "http://wrong"],
            ["http://wrong", "http://right", "http://right"],
        ] {
            let usual = with_usual_urls(&order.map(list));
            assert_eq!(usual.nodes()[0].url, "http://right");
            assert_eq!(usual.nodes()[1].url, "http://h2");
        }
    }
}
