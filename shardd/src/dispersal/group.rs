//! The nodes of an instance, and the fragment that is one of them's share.

use bytes::Bytes;
use common::code::Code;
use common::fpcc::{Checked, Fpcc, Inconsistent};
use common::hash::Hash;
use common::quorum::{NoQuorum, Quorums};
use common::slice::Tree;
use common::wire::NodeId;

/// The n nodes that agree on an instance, as one of them sees it. Node i is the one for fragment i.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    configuration: Hash,
    quorums: Quorums,
    members: Box<[NodeId]>,
    own: usize,
}

/// Why nodes are not a group.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoGroup {
    /// The code tolerates no liar.
    #[error(transparent)]
    NoQuorum(#[from] NoQuorum),
    /// More or fewer nodes than the code has fragments.
    #[error("a group of code {code} has {} nodes, not {found}", code.n())]
    Count {
        /// The code.
        code: Code,
        /// How many there are.
        found: usize,
    },
    /// A node that would have two votes.
    #[error("node {0} stands twice in one group")]
    Twice(NodeId),
    /// The node that asks is not among them.
    #[error("node {0} is not in the group")]
    Absent(NodeId),
}

impl Group {
    /// `members` in the order of their fragments, taken from the configuration of this digest, as `own` sees them.
    pub fn new(configuration: Hash, code: Code, members: Vec<NodeId>, own: NodeId) -> Result<Group, NoGroup> {
        let quorums = Quorums::of(code)?;
        if members.len() != code.n() {
            return Err(NoGroup::Count { code, found: members.len() });
        }
        let twice = members.iter().enumerate().find(|(i, member)| members[..*i].contains(member));
        if let Some((_, member)) = twice {
            return Err(NoGroup::Twice(*member));
        }
        let own = members.iter().position(|member| *member == own).ok_or(NoGroup::Absent(own))?;
        Ok(Group { configuration, quorums, members: members.into(), own })
    }

    /// The digest of the configuration it was taken from.
    pub fn configuration(&self) -> Hash {
        self.configuration
    }

    /// How many must say the same.
    pub fn quorums(&self) -> Quorums {
        self.quorums
    }

    /// Its nodes, in the order of their fragments.
    pub fn members(&self) -> &[NodeId] {
        &self.members
    }

    /// The index of this node, and of its fragment.
    pub fn own(&self) -> usize {
        self.own
    }

    /// The index of a node.
    pub fn index_of(&self, node: NodeId) -> Option<usize> {
        self.members.iter().position(|member| *member == node)
    }

    /// The nodes that words to everyone go to.
    pub fn others(&self) -> impl Iterator<Item = NodeId> {
        let own = self.own;
        self.members.iter().enumerate().filter(move |(index, _)| *index != own).map(|(_, member)| *member)
    }
}

/// A node's own fragment of an object, with the FPCC that it fits. Only this can be echoed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dispersed {
    digest: Hash,
    fpcc: Fpcc,
    fragment: Checked,
    tree: Option<Tree>,
}

/// Why a fragment cannot be this node's share of an instance.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unfit {
    /// Quorums are those of the group's code, so no FPCC has another.
    #[error("the object is of code {found}, and its nodes agree by code {expected}")]
    Code {
        /// The group's.
        expected: Code,
        /// The FPCC's.
        found: Code,
    },
    /// Fragment and FPCC do not belong together.
    #[error(transparent)]
    Inconsistent(#[from] Inconsistent),
}

impl Dispersed {
    /// Checks that `fragment` is what `fpcc` has for this node. Costs a hash and a fingerprint of it.
    pub fn check(group: &Group, fpcc: Fpcc, fragment: Bytes) -> Result<Dispersed, Unfit> {
        let (expected, found) = (group.quorums.code(), fpcc.code());
        if found != expected {
            return Err(Unfit::Code { expected, found });
        }
        let (fragment, tree) = fpcc.check_for_good(group.own, fragment)?;
        Ok(Dispersed { digest: fpcc.digest(), fpcc, fragment, tree })
    }

    /// The digest of its FPCC.
    pub fn digest(&self) -> Hash {
        self.digest
    }

    /// Its FPCC.
    pub fn fpcc(&self) -> &Fpcc {
        &self.fpcc
    }

    /// The fragment.
    pub fn fragment(&self) -> &Checked {
        &self.fragment
    }

    /// What makes slices of it, if it takes one.
    pub fn tree(&self) -> Option<&Tree> {
        self.tree.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use common::codec::{Codec, split};
    use common::hash::HashId;

    use super::*;

    fn node(byte: u8) -> NodeId {
        NodeId([byte; 16])
    }

    fn group(code: &str, members: &[u8], own: u8) -> Result<Group, NoGroup> {
        let members = members.iter().map(|byte| node(*byte)).collect();
        Group::new([0; 32].into(), code.parse().unwrap(), members, node(own))
    }

    #[test]
    fn a_node_has_one_vote_and_every_fragment_one_node() {
        assert_eq!(group("2+2", &[1, 2, 3, 1], 1), Err(NoGroup::Twice(node(1))));
        assert!(matches!(group("2+2", &[1, 2, 3], 1), Err(NoGroup::Count { found: 3, .. })));
        assert!(matches!(group("2+2", &[1, 2, 3, 4, 5], 1), Err(NoGroup::Count { found: 5, .. })));
        assert_eq!(group("2+2", &[1, 2, 3, 4], 5), Err(NoGroup::Absent(node(5))));
        assert!(matches!(group("3+1", &[1, 2, 3, 4], 1), Err(NoGroup::NoQuorum(_))));
        let group = group("2+2", &[1, 2, 3, 4], 3).unwrap();
        assert_eq!((group.own(), group.index_of(node(4)), group.index_of(node(9))), (2, Some(3), None));
        assert_eq!(group.others().collect::<Vec<_>>(), [node(1), node(2), node(4)]);
    }

    #[test]
    fn only_the_nodes_own_fragment_of_an_object_of_its_code_is_dispersed() {
        let code: Code = "2+2".parse().unwrap();
        let codec = Codec::of(code);
        let mut fragments = split(code, &Bytes::from_static(b"what is stored"));
        let parity = codec.parity_of(&fragments);
        fragments.extend(parity.into_iter().map(Bytes::from));
        let slices: Vec<&[u8]> = fragments.iter().map(AsRef::as_ref).collect();
        let fpcc = Fpcc::compute(&codec, HashId::Blake3, 14, &slices);
        let check =
            |group: &Group, index: usize| Dispersed::check(group, fpcc.clone(), fragments[index].clone());
        let third = group("2+2", &[1, 2, 3, 4], 3).unwrap();
        assert_eq!(check(&third, 2).map(|dispersed| dispersed.digest()), Ok(fpcc.digest()));
        assert!(matches!(check(&third, 1), Err(Unfit::Inconsistent(Inconsistent::Hash { .. }))));
        let other_code = group("3+2", &[1, 2, 3, 4, 5], 3).unwrap();
        assert!(matches!(check(&other_code, 2), Err(Unfit::Code { .. })));
    }
}
