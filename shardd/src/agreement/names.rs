//! Which instances the node has said something about, in memory: by owner and key, and in the order of verifying.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use common::hash::Hash;
use common::members::split_name;
use common::wire::OwnerId;

use crate::dispersal::{InstanceId, Said};

/// See above.
#[derive(Default)]
pub struct Names {
    owners: HashMap<OwnerId, Owner>,
    verified: BTreeMap<u64, Arc<InstanceId>>,
    last: u64,
}

#[derive(Default)]
struct Owner {
    keys: BTreeMap<Box<str>, Key>,
    /// Bytes of the disk that its instances take.
    used: u64,
}

#[derive(Default)]
struct Key {
    /// Of the manifest and of the parts, by version and name.
    instances: BTreeMap<(u64, Box<str>), Instance>,
    /// The highest version of which the manifest is verified, and its digest.
    newest: Option<(u64, Hash)>,
}

impl Key {
    fn has_superseded(&self) -> bool {
        let lowest = self.instances.first_key_value().map(|((version, _), _)| *version);
        self.newest.zip(lowest).is_some_and(|((newest, _), lowest)| lowest < newest)
    }
}

#[derive(Default)]
struct Instance {
    /// Its place in the order of verifying.
    place: Option<u64>,
    /// Bytes of the disk that it takes.
    cost: u64,
}

/// The newest verified version of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Newest {
    /// The version.
    pub version: u64,
    /// The digest of its FPCC.
    pub digest: Hash,
}

impl Names {
    /// The node has said this about an instance.
    pub fn note(&mut self, id: &InstanceId, said: &Said) {
        let (key, part) = split_name(id.key());
        let known = self.owners.entry(id.owner()).or_default().keys.entry(key.into()).or_default();
        let instance = known.instances.entry((id.version(), id.key().into())).or_default();
        let Some(digest) = said.verified() else { return };
        if instance.place.is_none() {
            self.last += 1;
            instance.place = Some(self.last);
            self.verified.insert(self.last, Arc::new(id.clone()));
        }
        if part.is_none() && known.newest.is_none_or(|(version, _)| version < id.version()) {
            known.newest = Some((id.version(), digest));
        }
    }

    /// An instance that was noted takes so many bytes of the disk.
    pub fn charge(&mut self, id: &InstanceId, cost: u64) {
        let Some(owner) = self.owners.get_mut(&id.owner()) else { return };
        let known = owner.keys.get_mut(split_name(id.key()).0);
        let known = known.and_then(|key| key.instances.get_mut(&(id.version(), id.key().into())));
        if let Some(instance) = known {
            owner.used = owner.used - instance.cost + cost;
            instance.cost = cost;
        }
    }

    /// Bytes of the disk that an owner's instances take.
    pub fn used(&self, owner: OwnerId) -> u64 {
        self.owners.get(&owner).map_or(0, |owner| owner.used)
    }

    /// Bytes of the disk that an instance takes.
    pub fn cost(&self, id: &InstanceId) -> u64 {
        self.instance(id).map_or(0, |instance| instance.cost)
    }

    /// Whether something was said about an instance.
    pub fn contains(&self, id: &InstanceId) -> bool {
        self.instance(id).is_some()
    }

    /// Whether it is verified itself.
    pub fn is_verified(&self, id: &InstanceId) -> bool {
        self.instance(id).is_some_and(|instance| instance.place.is_some())
    }

    /// Whether something was said about a lower version of its key, which is deleted once this one is verified.
    pub fn has_older(&self, id: &InstanceId) -> bool {
        let first = self.key(id.owner(), split_name(id.key()).0);
        let first = first.and_then(|key| key.instances.first_key_value());
        first.is_some_and(|((lowest, _), _)| *lowest < id.version())
    }

    /// Whether a higher version of its key is verified.
    pub fn is_superseded(&self, id: &InstanceId) -> bool {
        let newest = self.newest(id.owner(), split_name(id.key()).0);
        newest.is_some_and(|newest| id.version() < newest.version)
    }

    /// The newest verified version of a key.
    pub fn newest(&self, owner: OwnerId, key: &str) -> Option<Newest> {
        let (version, digest) = self.key(owner, key)?.newest?;
        Some(Newest { version, digest })
    }

    /// The highest version of a key that anything was said about; 0 if there is none.
    pub fn highest(&self, owner: OwnerId, key: &str) -> u64 {
        let last = self.key(owner, key).and_then(|key| key.instances.last_key_value());
        last.map_or(0, |((version, _), _)| *version)
    }

    /// Forget the versions of a key below the newest verified one, and say which they are.
    pub fn take_superseded(&mut self, id: &InstanceId) -> Vec<InstanceId> {
        self.take_superseded_of(id.owner(), split_name(id.key()).0)
    }

    /// The same of every key.
    pub fn take_all_superseded(&mut self) -> Vec<InstanceId> {
        let owners = self.owners.iter();
        let keys = owners.flat_map(|(owner, known)| known.keys.iter().map(move |key| (*owner, key)));
        let having = keys.filter(|(_, (_, known))| known.has_superseded());
        let having: Vec<_> = having.map(|(owner, (key, _))| (owner, key.clone())).collect();
        having.into_iter().flat_map(|(owner, key)| self.take_superseded_of(owner, &key)).collect()
    }

    fn take_superseded_of(&mut self, id: OwnerId, key: &str) -> Vec<InstanceId> {
        let Some(owner) = self.owners.get_mut(&id) else { return Vec::new() };
        let Some(key) = owner.keys.get_mut(key) else { return Vec::new() };
        let Some((newest, _)) = key.newest else { return Vec::new() };
        let kept = key.instances.split_off(&(newest, "".into()));
        let gone = std::mem::replace(&mut key.instances, kept);
        for instance in gone.values() {
            owner.used -= instance.cost;
            instance.place.map(|place| self.verified.remove(&place));
        }
        let named = |(version, name): (u64, Box<str>)| InstanceId::new(id, &name, version).ok();
        gone.into_keys().filter_map(named).collect()
    }

    /// Up to `most` verified instances after a place in their order, and the last one's place.
    pub fn verified_after(&self, place: u64, most: usize) -> (Vec<Arc<InstanceId>>, u64) {
        let following: Vec<_> = self.verified.range(place.saturating_add(1)..).take(most).collect();
        let last = following.last().map_or(place, |(place, _)| **place);
        (following.into_iter().map(|(_, id)| id.clone()).collect(), last)
    }

    /// Up to `most` keys of an owner that begin with `prefix`, after `after`, and the last of them if more follow.
    pub fn list(
        &self,
        owner: OwnerId,
        prefix: &str,
        after: &str,
        most: usize,
    ) -> (Vec<(String, Newest)>, Option<String>) {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let Some(owner) = self.owners.get(&owner) else { return (Vec::new(), None) };
        let from = if after < prefix { Included(prefix) } else { Excluded(after) };
        let keys = owner.keys.range::<str, _>((from, Unbounded));
        let keys = keys.take_while(|(key, _)| key.starts_with(prefix));
        let mut keys = keys.filter_map(|(key, known)| {
            let (version, digest) = known.newest?;
            Some((key.to_string(), Newest { version, digest }))
        });
        let page: Vec<_> = keys.by_ref().take(most).collect();
        let next = keys.next().and_then(|_| page.last().map(|(key, _)| key.clone()));
        (page, next)
    }

    fn instance(&self, id: &InstanceId) -> Option<&Instance> {
        self.key(id.owner(), split_name(id.key()).0)?.instances.get(&(id.version(), id.key().into()))
    }

    fn key(&self, owner: OwnerId, key: &str) -> Option<&Key> {
        self.owners.get(&owner)?.keys.get(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: OwnerId = OwnerId([1; 32]);

    fn id(name: &str, version: u64) -> InstanceId {
        InstanceId::new(OWNER, name, version).unwrap()
    }

    fn said(digest: u8, is_verified: bool) -> Said {
        let mut bytes = b"AVS1".to_vec();
        bytes.extend([if is_verified { 6 } else { 2 }, 0, 0, 0]);
        bytes.extend([0; 32]);
        bytes.extend([digest; 32]);
        Said::decode(&bytes).unwrap()
    }

    #[test]
    fn what_a_higher_version_supersedes_is_forgotten_with_its_parts() {
        let mut names = Names::default();
        for (name, version) in [("a", 1), ("a\u{0}00000000", 1), ("a\u{0}00000000", 2), ("a", 2), ("ab", 1)] {
            names.note(&id(name, version), &said(version as u8, true));
            names.charge(&id(name, version), 10);
        }
        names.note(&id("a\u{0}00000001", 3), &said(3, false));
        assert_eq!((names.highest(OWNER, "a"), names.highest(OWNER, "b")), (3, 0));
        assert_eq!(names.newest(OWNER, "a"), Some(Newest { version: 2, digest: [2; 32].into() }));
        assert!(names.is_superseded(&id("a\u{0}00000007", 1)) && !names.is_superseded(&id("a", 2)));
        assert!(
            names.has_older(&id("a", 2)) && !names.has_older(&id("a", 1)) && !names.has_older(&id("b", 2))
        );
        assert!(names.is_verified(&id("a", 2)) && !names.is_verified(&id("a\u{0}00000001", 3)));
        assert_eq!((names.used(OWNER), names.cost(&id("a", 2)), names.cost(&id("b", 2))), (50, 10, 0));
        let gone = names.take_superseded(&id("a", 2));
        assert_eq!(gone, [id("a", 1), id("a\u{0}00000000", 1)]);
        assert_eq!(names.used(OWNER), 30);
        assert_eq!(names.take_all_superseded(), []);
        assert!(names.contains(&id("a\u{0}00000001", 3)) && !names.contains(&id("a", 1)));
        let (left, last) = names.verified_after(0, 9);
        assert_eq!(left.iter().map(|id| id.key()).collect::<Vec<_>>(), ["a\u{0}00000000", "a", "ab"]);
        assert_eq!((last, names.verified_after(last, 9)), (5, (Vec::new(), 5)));
    }

    #[test]
    fn keys_are_listed_in_order_page_by_page() {
        let mut names = Names::default();
        for name in ["b/2", "a", "b/1", "b/3", "c", "b/1\u{0}00000000"] {
            names.note(&id(name, 1), &said(1, true));
        }
        names.note(&id("b/4", 1), &said(1, false));
        let keys = |prefix: &str, after: &str, most: usize| {
            let (page, next) = names.list(OWNER, prefix, after, most);
            (page.into_iter().map(|(key, _)| key).collect::<Vec<_>>(), next)
        };
        assert_eq!(keys("b/", "", 2), (vec!["b/1".into(), "b/2".into()], Some("b/2".into())));
        assert_eq!(keys("b/", "b/2", 2), (vec!["b/3".into()], None));
        assert_eq!(keys("", "", 9).0, ["a", "b/1", "b/2", "b/3", "c"]);
        assert_eq!(names.list(OwnerId([2; 32]), "", "", 9), (Vec::new(), None));
    }
}
