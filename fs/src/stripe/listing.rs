//! What nodes say they hold, page by page.

use std::collections::BTreeMap;

use common::wire::{JOURNAL_PREFIX, MAX_KEY, MAX_PAGE, NodeId, ObjectId, ObjectStatus};
use tokio::time::Instant;

use super::Stripe;
use super::answers::answers;
use crate::pool::{NodeView, Outcome};
use crate::transport::{Answer, TransportError};

/// What nodes hold of one object.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Listed {
    /// Which of them.
    pub nodes: Vec<NodeId>,
    /// How many fragments.
    pub fragments: u64,
    /// Bytes in these.
    pub bytes: u64,
}

/// What one node listed.
type Listing = Result<(NodeId, Vec<ObjectStatus>), TransportError>;

impl Stripe {
    /// Every object of files that the nodes of the pool hold something of; those that cannot be asked are added to
    /// `silent`.
    pub async fn listed_objects(&self, silent: &mut Vec<String>) -> BTreeMap<ObjectId, Listed> {
        let mut found: BTreeMap<ObjectId, Listed> = BTreeMap::new();
        for (node, objects) in self.listings("", silent).await {
            for object in objects {
                let Ok(id) = object.key.parse::<ObjectId>() else { continue };
                let listed = found.entry(id).or_default();
                listed.nodes.push(node);
                listed.fragments += object.indexes.len() as u64;
                listed.bytes += object.indexes.len() as u64 * object.fragment_length;
            }
        }
        found
    }

    /// What each node holds after a key, all asked at once; those that cannot be asked, or are down and do not answer, are
    /// added to `silent`.
    pub(super) async fn listings(
        &self,
        after: &str,
        silent: &mut Vec<String>,
    ) -> Vec<(NodeId, Vec<ObjectStatus>)> {
        self.listings_of_enough(after, silent, |_| false).await
    }

    /// The same; once the nodes that answered are enough, the others are not waited for much longer.
    pub(super) async fn listings_of_enough(
        &self,
        after: &str,
        silent: &mut Vec<String>,
        are_enough: impl Fn(&[NodeId]) -> bool,
    ) -> Vec<(NodeId, Vec<ObjectStatus>)> {
        let deadline = Instant::now() + self.options.io_limit;
        let nodes = self.pool.nodes();
        let asked = nodes.iter().enumerate().map(|(place, node)| async move {
            let never = || TransportError::Unreachable("has never answered".into());
            let listing = match node.identity.ok_or_else(never) {
                Ok(identity) => self.list_node(identity, after).await.map(|objects| (identity, objects)),
                Err(error) => Err(error),
            };
            (place, listing)
        });
        let is_enough = |answers: &[(usize, Listing)], waited| {
            if waited < self.options.flush_patience {
                return false;
            }
            let answered: Vec<NodeId> =
                answers.iter().filter_map(|(_, listing)| Some(listing.as_ref().ok()?.0)).collect();
            let is_awaited = |(place, node): (usize, &NodeView)| {
                answers.iter().all(|(answered, _)| *answered != place)
                    && node.identity.is_some_and(|identity| !self.is_down(identity))
            };
            are_enough(&answered) || !nodes.iter().enumerate().any(is_awaited)
        };
        let mut listings: Vec<Option<Listing>> = nodes.iter().map(|_| None).collect();
        for (place, listing) in answers(asked, deadline, is_enough).await {
            listings[place] = Some(listing);
        }
        let mut listed = Vec::new();
        for (node, listing) in nodes.iter().zip(listings) {
            match listing {
                Some(Ok(listing)) => listed.push(listing),
                Some(Err(error)) => silent.push(format!("{} ({error})", node.address)),
                None => silent.push(self.was_slow(node)),
            }
        }
        listed
    }

    /// What is said of a node that was not waited for.
    fn was_slow(&self, node: &NodeView) -> String {
        if let Some(identity) = node.identity {
            self.pool.report(identity, Outcome::Slow);
        }
        format!("{} (has not answered in time)", node.address)
    }

    /// What one node holds of the volume after a key. Without a key the journal's entries, which come last, are left out.
    async fn list_node(&self, node: NodeId, after: &str) -> Result<Vec<ObjectStatus>, TransportError> {
        let address = self.address(node)?;
        let mut objects = Vec::new();
        let deadline = Instant::now() + self.options.io_limit;
        let mut after = Some(after.to_owned());
        while let Some(from) = after {
            let (began, volume) = (Instant::now(), self.options.volume);
            let first = (!from.is_empty()).then_some(from.as_str());
            let listing =
                self.pool.transport().list(&address, volume, first, MAX_PAGE, self.left(deadline)).await;
            let Answer { value: page, .. } = self.pool.read_ended(node, began, listing)?;
            follow(&mut objects, &from, page.objects)?;
            let stays = |next: &str| from.starts_with(JOURNAL_PREFIX) || next < JOURNAL_PREFIX;
            after = page.next.filter(|next| *next > from && stays(next));
        }
        Ok(objects)
    }
}

/// Add a page to what a node has listed after a key. It tells of each version once and in order: one that repeats itself
/// would count for several.
fn follow(
    listed: &mut Vec<ObjectStatus>,
    after: &str,
    page: Vec<ObjectStatus>,
) -> Result<(), TransportError> {
    if page.len() > MAX_PAGE {
        return Err(TransportError::Garbage(format!("lists {} at once", page.len())));
    }
    for object in page {
        let texts = object.key.len() + object.fpcc.len() + object.code.len();
        if texts + object.indexes.len() > 2 * MAX_KEY {
            return Err(TransportError::Garbage("lists what nobody can have kept".into()));
        }
        let last = listed.last().map(|last| (&last.key, last.version));
        if object.key.as_str() <= after || last.is_some_and(|last| last >= (&object.key, object.version)) {
            return Err(TransportError::Garbage(format!("lists {:?} out of order", object.key)));
        }
        listed.push(object);
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What a node says that holds fragment 0 of an object.
    pub fn status(key: &str, version: u64) -> ObjectStatus {
        ObjectStatus {
            key: key.into(),
            version,
            fpcc: String::new(),
            code: String::new(),
            object_length: 0,
            fragment_length: 0,
            indexes: vec![0],
        }
    }

    #[test]
    fn a_node_that_repeats_itself_or_goes_back_is_not_believed() {
        let page = |keys: &[(&str, u64)]| keys.iter().map(|(key, version)| status(key, *version)).collect();
        let mut listed = Vec::new();
        follow(&mut listed, "a", page(&[("b", 1), ("b", 2), ("c", 1)])).unwrap();
        follow(&mut listed, "c", page(&[("ca", 1)])).unwrap();
        assert_eq!(listed.len(), 4);
        for (after, keys) in [
            ("", &[("b", 1), ("b", 1)][..]),
            ("", &[("b", 2), ("b", 1)]),
            ("", &[("c", 1), ("b", 1)]),
            ("b", &[("b", 1)]),
            ("b", &[("a", 1)]),
        ] {
            let followed = follow(&mut Vec::new(), after, page(keys));
            assert!(matches!(followed, Err(TransportError::Garbage(_))), "{after}: {keys:?}");
        }
    }

    #[test]
    fn a_node_that_lists_more_than_was_asked_for_is_not_believed() {
        let many = |count: usize| (0..count).map(|k| status(&format!("{k:09}"), 1)).collect();
        assert!(follow(&mut Vec::new(), "", many(MAX_PAGE)).is_ok());
        assert!(follow(&mut Vec::new(), "", many(MAX_PAGE + 1)).is_err());
        let long = ObjectStatus { fpcc: "f".repeat(2 * MAX_KEY), ..status("a", 1) };
        assert!(follow(&mut Vec::new(), "", vec![long]).is_err());
    }
}
