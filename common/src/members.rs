//! The nodes of a pool as its object store knows them, and which of them agree on a key: docs/objects.md.

use serde::{Deserialize, Serialize};

use crate::code::Code;
use crate::hash::{Hash, HashId};
use crate::quorum::{NoQuorum, Quorums};
use crate::wire::{NodeId, NodeKey, OwnerId};

/// Between a key and the number of one of its parts.
pub const PART_MARK: char = '\0';

/// A node of the pool.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its identity.
    pub node: NodeId,
    /// What its statements are signed with, and its words are known by.
    pub key: NodeKey,
    /// Where it answers; not part of what it is.
    pub url: String,
}

/// Every node of the pool, in the order of their identities, and the code they agree by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Members {
    code: Code,
    nodes: Vec<Member>,
    digest: Hash,
}

/// Members as text has them.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    code: String,
    nodes: Vec<Member>,
}

/// Why a list is none of members.
#[derive(Debug, thiserror::Error)]
pub enum NotMembers {
    /// It is something else altogether.
    #[error("not a list of members: {0}")]
    Text(String),
    /// Nodes cannot agree by this code.
    #[error(transparent)]
    NoQuorum(#[from] NoQuorum),
    /// Fewer than an object has fragments.
    #[error("code {code} needs {} nodes, and {found} are listed", code.n())]
    TooFew {
        /// The code.
        code: Code,
        /// How many there are.
        found: usize,
    },
    /// A node that would have two votes.
    #[error("node {0} is listed twice")]
    Twice(NodeId),
}

impl Members {
    /// Of a code that tolerates a liar, at least as many as it has fragments.
    pub fn new(code: Code, mut nodes: Vec<Member>) -> Result<Members, NotMembers> {
        Quorums::of(code)?;
        if nodes.len() < code.n() {
            return Err(NotMembers::TooFew { code, found: nodes.len() });
        }
        nodes.sort_by_key(|member| member.node);
        if let Some(twice) = nodes.windows(2).find(|pair| pair[0].node == pair[1].node) {
            return Err(NotMembers::Twice(twice[0].node));
        }
        let mut hasher = HashId::Blake3.hasher();
        hasher.update(b"avidfs members 1\0");
        hasher.update(&[code.m() as u8, code.p() as u8]);
        for member in &nodes {
            hasher.update(&member.node.0);
            hasher.update(&member.key.0);
        }
        Ok(Members { code, nodes, digest: hasher.finish() })
    }

    /// Read what `to_json` writes, in any order.
    pub fn parse(text: &[u8]) -> Result<Members, NotMembers> {
        let listed: Listed =
            serde_json::from_slice(text).map_err(|error| NotMembers::Text(error.to_string()))?;
        let code = listed.code.parse().map_err(|error| NotMembers::Text(format!("{error}")))?;
        Members::new(code, listed.nodes)
    }

    /// As text, for files and the wire.
    pub fn to_json(&self) -> String {
        let listed = Listed { code: self.code.to_string(), nodes: self.nodes.clone() };
        let mut text = serde_json::to_string_pretty(&listed).expect("strings in a list");
        text.push('\n');
        text
    }

    /// The code they agree by.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The quorums of its code.
    pub fn quorums(&self) -> Quorums {
        Quorums::of(self.code).expect("checked when the list was made")
    }

    /// All of them, in the order of their identities.
    pub fn nodes(&self) -> &[Member] {
        &self.nodes
    }

    /// One of them.
    pub fn find(&self, node: NodeId) -> Option<&Member> {
        let at = self.nodes.binary_search_by_key(&node, |member| member.node).ok()?;
        Some(&self.nodes[at])
    }

    /// What names this configuration; URLs are not in it.
    pub fn digest(&self) -> Hash {
        self.digest
    }

    /// The n nodes of an instance of this name (a key, or a key and a part of it), in the order of their fragments.
    pub fn group(&self, owner: OwnerId, name: &str) -> Vec<&Member> {
        let (key, part) = split_name(name);
        let rank = |member: &&Member| {
            let parts = [b"avidfs group 1\0", &owner.0[..], key.as_bytes(), &member.node.0];
            HashId::Blake3.hash_parts(&parts)
        };
        let mut ranked: Vec<&Member> = self.nodes.iter().collect();
        ranked.sort_by_cached_key(|member| std::cmp::Reverse(rank(member)));
        ranked.truncate(self.code.n());
        ranked.rotate_left(part.unwrap_or(0) as usize % self.code.n());
        ranked
    }
}

/// The name under which a part of a key is agreed on.
pub fn part_name(key: &str, part: u32) -> String {
    format!("{key}{PART_MARK}{part:08x}")
}

/// The key in a name, and which part of it the name is of; none if it is that of the manifest.
pub fn split_name(name: &str) -> (&str, Option<u32>) {
    let Some((key, part)) = name.split_once(PART_MARK) else { return (name, None) };
    (key, Some(u32::from_str_radix(part, 16).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(byte: u8) -> Member {
        Member { node: NodeId([byte; 16]), key: NodeKey([byte; 32]), url: format!("http://h{byte}") }
    }

    fn members(count: u8) -> Members {
        Members::new("3+2".parse().unwrap(), (1..=count).rev().map(member).collect()).unwrap()
    }

    #[test]
    fn a_list_comes_back_and_its_order_and_urls_do_not_matter() {
        let (list, mut moved) = (members(5), members(5).nodes.clone());
        assert_eq!(Members::parse(list.to_json().as_bytes()).unwrap(), list);
        moved[2].url = "https://elsewhere".into();
        assert_eq!(Members::new(list.code(), moved.clone()).unwrap().digest(), list.digest());
        moved[2].key = NodeKey([9; 32]);
        assert_ne!(Members::new(list.code(), moved).unwrap().digest(), list.digest());
        let other_code = Members::new("2+3".parse().unwrap(), list.nodes.clone()).unwrap();
        assert_ne!(other_code.digest(), list.digest());
        assert_eq!(list.find(NodeId([3; 16])).unwrap().url, "http://h3");
        assert_eq!(list.find(NodeId([7; 16])), None);
    }

    #[test]
    fn what_cannot_agree_is_no_list_of_members() {
        let code: Code = "3+2".parse().unwrap();
        let few = (1..=4).map(member).collect();
        assert!(matches!(Members::new(code, few), Err(NotMembers::TooFew { found: 4, .. })));
        let twice = [1, 2, 3, 4, 4].map(member).to_vec();
        assert!(matches!(Members::new(code, twice), Err(NotMembers::Twice(_))));
        let all = (1..=5).map(member).collect();
        assert!(matches!(Members::new("3+1".parse().unwrap(), all), Err(NotMembers::NoQuorum(_))));
        assert!(matches!(Members::parse(b"[]"), Err(NotMembers::Text(_))));
    }

    #[test]
    fn each_key_has_its_nodes_and_its_parts_have_the_same_in_turn() {
        let list = members(9);
        let owner = OwnerId([1; 32]);
        let group = |name: &str| -> Vec<NodeId> {
            list.group(owner, name).iter().map(|member| member.node).collect()
        };
        let mut groups: Vec<Vec<NodeId>> = (0..50).map(|k| group(&format!("key {k}"))).collect();
        groups.sort();
        groups.dedup();
        assert!(groups.len() > 40 && groups.iter().all(|group| group.len() == 5));
        let mut turned = group("a");
        turned.rotate_left(2);
        assert_eq!(group(&part_name("a", 7)), turned);
        assert_eq!((split_name("a\u{0}0000000b"), split_name("b")), (("a", Some(11)), ("b", None)));
        let other = list.group(OwnerId([2; 32]), "a");
        assert_ne!(other.iter().map(|member| member.node).collect::<Vec<_>>(), group("a"));
    }
}
