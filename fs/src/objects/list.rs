//! Listing an owner's keys: what enough nodes of each key say they have verified.

use std::collections::{BTreeMap, VecDeque};

use common::hash::Hash;
use common::members::Member;
use common::wire::{MAX_PAGE, NodeId, TOMBSTONE_BYTES, VerifiedVersion, VersionList};
use futures_util::future::join_all;

use super::{ObjectError, ObjectStore, Seat, check_key, of_node, reasons};
use crate::transport::objects::KeyPage;
use crate::transport::{NodeAddress, TransportError};

/// So many keys a node may tell of that others do not know yet; one that goes on inventing them is not listened to.
const MOST_ALONE: usize = MAX_PAGE;

/// A key and its newest version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// The key.
    pub key: String,
    /// Its newest version.
    pub version: u64,
    /// Whether this is a tombstone.
    pub deleted: bool,
}

/// An owner's keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyList {
    /// In their order.
    pub keys: Vec<Listed>,
    /// Nodes that gave no list, and why. If they are more than f, keys of theirs may be missing.
    pub silent: Vec<(NodeAddress, String)>,
}

impl ObjectStore {
    /// The owner's keys that begin with `prefix`, tombstones among them.
    ///
    /// # Errors
    /// So few nodes answer that no key could be believed.
    pub async fn list(&self, prefix: &str) -> Result<KeyList, ObjectError> {
        let mut lists: Vec<NodeList> = self.members.nodes().iter().map(NodeList::new).collect();
        let mut keys = Vec::new();
        loop {
            join_all(lists.iter_mut().map(|list| self.read_on(list, prefix))).await;
            self.check_enough(&lists)?;
            // What fewer than f + 1 nodes go on to tell nobody could believe.
            if lists.iter().filter(|list| !list.keys.is_empty()).count() < self.members.quorums().report() {
                break;
            }
            while let Some((key, said)) = next_key(&mut lists) {
                let listed = self.believed(key, &said).await?;
                if listed.is_none() {
                    lists
                        .iter_mut()
                        .filter(|list| said.iter().any(|said| said.node == list.seat.node))
                        .for_each(NodeList::told_alone);
                }
                keys.extend(listed);
            }
        }
        let silent = lists.into_iter().filter_map(|list| Some((list.seat.address, list.failed?)));
        Ok(KeyList { keys, silent: silent.collect() })
    }

    fn check_enough(&self, lists: &[NodeList]) -> Result<(), ObjectError> {
        let most = self.members.code().n() - self.members.quorums().report();
        let failed: Vec<_> =
            lists.iter().filter_map(|list| Some((&list.seat.address, list.failed.as_ref()?))).collect();
        if failed.len() <= most {
            return Ok(());
        }
        let (answered, all) = (lists.len() - failed.len(), lists.len());
        let needed = all - most;
        let said = reasons(failed);
        Err(ObjectError::TooFewNodes(format!(
            "{answered} of {all} nodes answer, {needed} are needed: {said}"
        )))
    }

    /// The next page, where everything of the one before was looked at.
    async fn read_on(&self, list: &mut NodeList, prefix: &str) {
        if list.is_over || !list.keys.is_empty() {
            return;
        }
        let (owner, prefix, after) = (self.owner, prefix.to_owned(), list.last.clone());
        let wanted = KeyPage { owner, prefix, after, limit: MAX_PAGE };
        let answer = self.transport.keys(&list.seat.address, &wanted, self.options.io_limit).await;
        let page = answer.and_then(|answer| of_node(&list.seat, answer));
        if let Err(error) = page.and_then(|page| list.take(page, &wanted.prefix)) {
            list.fail(error.to_string());
        }
    }

    /// A key as f + 1 nodes of its group have it; asked for by itself if they are about to agree.
    async fn believed(&self, key: String, said: &[Said]) -> Result<Option<Listed>, ObjectError> {
        let group = self.group(&key);
        let said: Vec<&Said> =
            said.iter().filter(|said| group.iter().any(|seat| seat.node == said.node)).collect();
        let enough = self.members.quorums().report();
        if said.len() < enough {
            return Ok(None);
        }
        let mut claims: BTreeMap<(u64, Hash), Vec<&Said>> = BTreeMap::new();
        said.iter().for_each(|said| claims.entry((said.version, said.digest)).or_default().push(said));
        if let Some((claim, said)) = claims.iter().rev().find(|(_, said)| said.len() >= enough) {
            let short = said.iter().filter(|said| said.length == Some(TOMBSTONE_BYTES));
            return Ok(Some(Listed { key, version: claim.0, deleted: short.count() >= enough }));
        }
        let newest = self.newest(&key).await?;
        Ok(newest.map(|newest| Listed { key, version: newest.version, deleted: newest.deleted }))
    }
}

/// What a node tells, page by page.
struct NodeList {
    seat: Seat,
    keys: VecDeque<(String, Said)>,
    /// The last key it told.
    last: Option<String>,
    is_over: bool,
    failed: Option<String>,
    /// Keys it told of that were not believed.
    alone: usize,
}

/// What one node says of one key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Said {
    node: NodeId,
    version: u64,
    digest: Hash,
    length: Option<u64>,
}

impl NodeList {
    fn new(member: &Member) -> NodeList {
        let seat = Seat { index: 0, node: member.node, address: NodeAddress(member.url.clone()) };
        NodeList { seat, keys: VecDeque::new(), last: None, is_over: false, failed: None, alone: 0 }
    }

    fn fail(&mut self, why: String) {
        self.failed = Some(why);
        self.is_over = true;
        self.keys.clear();
    }

    fn told_alone(&mut self) {
        self.alone += 1;
        if self.alone > MOST_ALONE {
            self.fail("it tells of keys that no other node knows".to_owned());
        }
    }

    /// Keys come in their order, each once, so that no list goes on for ever without getting on.
    fn take(&mut self, page: VersionList, prefix: &str) -> Result<(), TransportError> {
        let wrong = || TransportError::Garbage("its list is none".to_owned());
        self.is_over = page.next.is_none();
        if page.objects.is_empty() && !self.is_over {
            return Err(wrong());
        }
        for VerifiedVersion { key, version, fpcc, object_length } in page.objects {
            let follows = self.last.as_ref().is_none_or(|last| *last < key);
            if !follows || !key.starts_with(prefix) || check_key(&key).is_err() {
                return Err(wrong());
            }
            let digest = fpcc.parse().map_err(|_| wrong())?;
            self.last = Some(key.clone());
            let said = Said { node: self.seat.node, version, digest, length: object_length };
            self.keys.push_back((key, said));
        }
        Ok(())
    }
}

/// The first key of all, and who says what of it; none as soon as somebody's page is used up and another one follows.
fn next_key(lists: &mut [NodeList]) -> Option<(String, Vec<Said>)> {
    if lists.iter().any(|list| list.keys.is_empty() && !list.is_over) {
        return None;
    }
    let key = lists.iter().filter_map(|list| Some(&list.keys.front()?.0)).min()?.clone();
    let is_next = |list: &&mut NodeList| list.keys.front().is_some_and(|(next, _)| *next == key);
    let said = lists.iter_mut().filter(is_next).filter_map(|list| Some(list.keys.pop_front()?.1)).collect();
    Some((key, said))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::objects::fake::FakePool;
    use crate::objects::{Ownership, StoreOptions};
    use common::wire::OwnerId;

    fn page(keys: &[&str]) -> VersionList {
        let fpcc = Hash::from([1; 32]).to_string();
        let verified = |key: &&str| VerifiedVersion {
            key: (*key).to_owned(),
            version: 1,
            fpcc: fpcc.clone(),
            object_length: None,
        };
        VersionList { objects: keys.iter().map(verified).collect(), next: Some("more".into()) }
    }

    #[test]
    fn a_list_that_goes_back_stands_still_or_strays_is_refused() {
        let pool = FakePool::new("3+2", 5);
        let members = pool.members();
        let mut list = NodeList::new(&members.nodes()[0]);
        assert!(list.take(page(&["k/a", "k/b"]), "k/").is_ok());
        assert!(list.take(page(&["k/c"]), "k/").is_ok());
        for wrong in [&["k/c"][..], &["k/b"], &[], &["k/e", "k/d"], &["l"], &["k/d\0"]] {
            let mut list = NodeList::new(&members.nodes()[0]);
            list.take(page(&["k/c"]), "k/").unwrap();
            assert!(list.take(page(wrong), "k/").is_err(), "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn nodes_that_a_key_does_not_belong_to_are_not_asked_about_it() {
        let pool = FakePool::new("3+2", 9);
        let of = Ownership::Of(OwnerId([1; 32]));
        let store =
            ObjectStore::new(Arc::clone(&pool) as Arc<_>, pool.members(), of, StoreOptions::default());
        let group: Vec<NodeId> = store.group("a").iter().map(|seat| seat.node).collect();
        let (members, digest) = (pool.members(), Hash::from([1; 32]));
        let (inside, outside): (Vec<NodeId>, Vec<NodeId>) =
            members.nodes().iter().map(|member| member.node).partition(|node| group.contains(node));
        let said = |nodes: &[NodeId]| -> Vec<Said> {
            nodes.iter().map(|&node| Said { node, version: 3, digest, length: None }).collect()
        };
        assert_eq!(store.believed("a".into(), &said(&outside)).await, Ok(None));
        assert_eq!(store.believed("a".into(), &said(&inside[..1])).await, Ok(None));
        let listed = Listed { key: "a".into(), version: 3, deleted: false };
        assert_eq!(store.believed("a".into(), &said(&inside[..2])).await, Ok(Some(listed)));
    }
}
