//! Where every fragment is: in memory, ordered by key, small. It knows no file.
//!
//! A volume's objects have numbers for keys and cost about 140 bytes each; other keys cost what they are long.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use common::code::Code;
use common::hash::Hash;
use common::slice::GROUP_LENGTH;
use common::wire::{FragmentName, ObjectId, ObjectStatus, json_length};

use super::record::{ALIGNMENT, Lengths, Position, Space, TREE_GROUP};

/// Of one key, a listing shows at most this many versions, the newest.
pub const LISTED_VERSIONS: usize = 1000;
/// A page of a listing ends before it has more bytes than this; the first key of it is there in any case.
pub const PAGE_BYTES: usize = 1 << 20;
/// Bytes of a status beside key and indexes, at most.
const STATUS_BYTES: usize = 224;
/// Bytes of an index in it, at most.
const INDEX_BYTES: usize = 4;

/// Everything kept, and what is being kept right now.
#[derive(Default)]
pub struct Index {
    spaces: HashMap<Space, Names>,
    arriving: HashMap<(Space, Box<str>, u64), Arriving>,
    fragments: u64,
}

#[derive(Default)]
struct Names {
    objects: BTreeMap<ObjectKey, Holding>,
    named: BTreeMap<Box<str>, BTreeMap<u64, Holding>>,
}

/// An `ObjectId` without the padding of one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct ObjectKey([u32; 3]);

/// A name whose first fragment is being written: its FPCC is settled before its record is on disk.
struct Arriving {
    fpcc: Hash,
    puts: u32,
}

/// What all fragments of one (key, version) have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Digest of the FPCC.
    pub fpcc: Hash,
    /// The code.
    pub code: Code,
    /// Bytes in the object.
    pub object_length: u64,
    /// Bytes in each fragment.
    pub fragment_length: u32,
    /// Bytes of the encoded FPCC.
    pub fpcc_length: u16,
    /// Whether a tree for slices is kept with each fragment.
    pub has_tree: bool,
}

impl Shape {
    /// Lengths of the record of each fragment, under a key of `key_length` bytes.
    pub fn lengths(&self, key_length: usize) -> Lengths {
        Lengths {
            key: key_length,
            fpcc: self.fpcc_length.into(),
            fragment: self.fragment_length as usize,
            tree: TREE_GROUP * usize::from(self.tree_groups()),
        }
    }

    /// Groups in each fragment's tree.
    pub fn tree_groups(&self) -> u16 {
        if self.has_tree { u64::from(self.fragment_length).div_ceil(GROUP_LENGTH) as u16 } else { 0 }
    }
}

/// One (key, version): its shape, packed, and where its fragments are; at least one.
pub struct Holding {
    fpcc: [u8; 32],
    object_length_low: u32,
    fragment_length: u32,
    object_length_high: u16,
    fpcc_length: u16,
    m: u8,
    p: u8,
    has_tree: bool,
    first: Place,
    /// Nearly always none, as a node holds one fragment of an object; boxed, so that none takes 8 bytes instead of 24.
    #[allow(clippy::box_collection)]
    more: Option<Box<Vec<Place>>>,
}

/// Where one fragment's record begins, in 8 bytes: a segment is left long before 2^24 times 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    segment: u32,
    slot_and_index: u32,
}

impl Place {
    fn new(index: u8, position: Position) -> Place {
        let slot = (position.offset / ALIGNMENT) as u32;
        debug_assert!(slot < 1 << 24);
        Place { segment: position.segment, slot_and_index: slot << 8 | u32::from(index) }
    }

    fn index(&self) -> u8 {
        self.slot_and_index as u8
    }

    fn position(&self) -> Position {
        Position { segment: self.segment, offset: u64::from(self.slot_and_index >> 8) * ALIGNMENT }
    }
}

impl Holding {
    fn new(shape: &Shape, first: Place) -> Holding {
        Holding {
            fpcc: *shape.fpcc.as_bytes(),
            object_length_low: shape.object_length as u32,
            object_length_high: (shape.object_length >> 32) as u16,
            fragment_length: shape.fragment_length,
            fpcc_length: shape.fpcc_length,
            m: shape.code.m() as u8,
            p: shape.code.p() as u8,
            has_tree: shape.has_tree,
            first,
            more: None,
        }
    }

    /// What its fragments have in common.
    pub fn shape(&self) -> Shape {
        let high = u64::from(self.object_length_high) << 32;
        Shape {
            fpcc: Hash::from(self.fpcc),
            code: Code::new(self.m.into(), self.p.into()).expect("it was a code when it came in"),
            object_length: high | u64::from(self.object_length_low),
            fragment_length: self.fragment_length,
            fpcc_length: self.fpcc_length,
            has_tree: self.has_tree,
        }
    }

    /// Lengths of the record of each of its fragments, under a key of `key_length` bytes.
    pub fn lengths(&self, key_length: usize) -> Lengths {
        self.shape().lengths(key_length)
    }

    /// Where fragment `index` is.
    pub fn position(&self, index: u8) -> Option<Position> {
        self.places().find(|place| place.index() == index).map(|place| place.position())
    }

    /// The indexes held, ascending.
    pub fn indexes(&self) -> Vec<u8> {
        let mut indexes: Vec<u8> = self.places().map(|place| place.index()).collect();
        indexes.sort_unstable();
        indexes
    }

    /// How many are held.
    pub fn fragments(&self) -> u64 {
        self.places().count() as u64
    }

    fn places(&self) -> impl Iterator<Item = &Place> {
        std::iter::once(&self.first).chain(self.more.iter().flat_map(|more| more.iter()))
    }

    /// Put fragment `index` at `place`; where it was before, if anywhere.
    fn set(&mut self, place: Place) -> Option<Position> {
        if let Some(known) = self.place_mut(place.index()) {
            return Some(std::mem::replace(known, place).position());
        }
        self.more.get_or_insert_default().push(place);
        None
    }

    fn place_mut(&mut self, index: u8) -> Option<&mut Place> {
        std::iter::once(&mut self.first)
            .chain(self.more.iter_mut().flat_map(|more| more.iter_mut()))
            .find(|place| place.index() == index)
    }

    /// Take out fragment `index`; `Err` if it is the only one, which goes with the holding.
    fn take(&mut self, index: u8) -> Result<Option<Position>, Position> {
        if self.first.index() == index {
            let gone = self.first.position();
            self.first = self.pop_more().ok_or(gone)?;
            return Ok(Some(gone));
        }
        let Some(more) = &mut self.more else { return Ok(None) };
        let at = more.iter().position(|place| place.index() == index);
        Ok(at.map(|at| more.swap_remove(at).position()))
    }

    fn pop_more(&mut self) -> Option<Place> {
        let more = self.more.as_mut()?;
        let last = more.pop();
        if more.is_empty() {
            self.more = None;
        }
        last
    }

    fn status(&self, key: &str, version: u64) -> ObjectStatus {
        let shape = self.shape();
        ObjectStatus {
            key: key.to_owned(),
            version,
            fpcc: shape.fpcc.to_string(),
            code: shape.code.to_string(),
            fragment_length: shape.fragment_length.into(),
            object_length: shape.object_length,
            indexes: self.indexes(),
        }
    }
}

impl Index {
    /// Fragments kept.
    pub fn fragments(&self) -> u64 {
        self.fragments
    }

    /// What is kept of one (key, version).
    pub fn find(&self, space: Space, key: &str, version: u64) -> Option<&Holding> {
        let names = self.spaces.get(&space)?;
        match ObjectKey::parse(key, version) {
            Some(object) => names.objects.get(&object),
            None => names.named.get(key)?.get(&version),
        }
    }

    /// Where a fragment is.
    pub fn position(&self, space: Space, name: &FragmentName) -> Option<Position> {
        self.find(space, &name.key, name.version)?.position(name.index)
    }

    /// Point a fragment to `position`; where it was before, if anywhere.
    ///
    /// `Err` with the kept FPCC's digest if the name is kept under another, and then nothing changes.
    pub fn insert(
        &mut self,
        space: Space,
        name: &FragmentName,
        shape: &Shape,
        position: Position,
    ) -> Result<Option<Position>, Hash> {
        let place = Place::new(name.index, position);
        let Some(holding) = self.find_mut(space, &name.key, name.version) else {
            self.insert_first(space, name, Holding::new(shape, place));
            self.fragments += 1;
            return Ok(None);
        };
        if holding.fpcc != *shape.fpcc.as_bytes() {
            return Err(Hash::from(holding.fpcc));
        }
        let before = holding.set(place);
        self.fragments += u64::from(before.is_none());
        Ok(before)
    }

    /// Take out a fragment, and say where it was.
    pub fn remove(&mut self, space: Space, name: &FragmentName) -> Option<Position> {
        let holding = self.find_mut(space, &name.key, name.version)?;
        let gone = match holding.take(name.index) {
            Ok(gone) => gone?,
            Err(last) => {
                self.remove_holding(space, &name.key, name.version);
                last
            }
        };
        self.fragments -= 1;
        Some(gone)
    }

    /// Begin to keep a fragment of `fpcc`: from here to `arrived` no other FPCC can take the name.
    ///
    /// `Err` with the other FPCC's digest if one has it already.
    pub fn arriving(&mut self, space: Space, name: &FragmentName, fpcc: Hash) -> Result<(), Hash> {
        if let Some(kept) = self.find(space, &name.key, name.version)
            && kept.fpcc != *fpcc.as_bytes()
        {
            return Err(Hash::from(kept.fpcc));
        }
        let key = (space, name.key.as_str().into(), name.version);
        let arriving = self.arriving.entry(key).or_insert(Arriving { fpcc, puts: 0 });
        if arriving.fpcc != fpcc {
            return Err(arriving.fpcc);
        }
        arriving.puts += 1;
        Ok(())
    }

    /// End what `arriving` began.
    pub fn arrived(&mut self, space: Space, name: &FragmentName) {
        let key = (space, name.key.as_str().into(), name.version);
        let arriving = self.arriving.get_mut(&key).expect("arriving was called for it");
        arriving.puts -= 1;
        if arriving.puts == 0 {
            self.arriving.remove(&key);
        }
    }

    /// The highest version of `key`.
    pub fn latest(&self, space: Space, key: &str) -> Option<ObjectStatus> {
        let names = self.spaces.get(&space)?;
        names.versions(key).next_back().map(|(version, holding)| holding.status(key, version))
    }

    /// What is kept of one (key, version), as the wire says it.
    pub fn status(&self, space: Space, key: &str, version: u64) -> Option<ObjectStatus> {
        self.find(space, key, version).map(|holding| holding.status(key, version))
    }

    /// The objects of up to `keys` keys after `after`, as far as they fit a page of so many bytes, and the last of these
    /// keys if more follow.
    pub fn list(
        &self,
        space: Space,
        after: &str,
        keys: usize,
        bytes: usize,
    ) -> (Vec<ObjectStatus>, Option<String>) {
        let Some(names) = self.spaces.get(&space) else { return (Vec::new(), None) };
        let Page { keys, next, .. } = names.page(after, keys, bytes);
        (keys.iter().flat_map(|key| names.statuses(key)).collect(), next)
    }

    /// Bytes of that page as the wire has it, at most.
    pub fn list_length(&self, space: Space, after: &str, keys: usize, bytes: usize) -> usize {
        let page = self.spaces.get(&space).map(|names| names.page(after, keys, bytes)).unwrap_or_default();
        page.bytes + page.next.map_or(0, |next| json_length(&next))
    }

    /// Every fragment that is in `segment`. It looks at everything there is.
    pub fn fragments_in(&self, segment: u32) -> Vec<(Space, FragmentName, Position)> {
        let mut found = Vec::new();
        for (space, names) in &self.spaces {
            names.each(|key, version, holding| {
                for place in holding.places().filter(|place| place.segment == segment) {
                    let name = FragmentName { key: key(), version, index: place.index() };
                    found.push((*space, name, place.position()));
                }
            });
        }
        found
    }

    fn find_mut(&mut self, space: Space, key: &str, version: u64) -> Option<&mut Holding> {
        let names = self.spaces.get_mut(&space)?;
        match ObjectKey::parse(key, version) {
            Some(object) => names.objects.get_mut(&object),
            None => names.named.get_mut(key)?.get_mut(&version),
        }
    }

    fn insert_first(&mut self, space: Space, name: &FragmentName, holding: Holding) {
        let names = self.spaces.entry(space).or_default();
        match ObjectKey::parse(&name.key, name.version) {
            Some(object) => names.objects.insert(object, holding),
            None => names.named.entry(name.key.as_str().into()).or_default().insert(name.version, holding),
        };
    }

    fn remove_holding(&mut self, space: Space, key: &str, version: u64) {
        let Some(names) = self.spaces.get_mut(&space) else { return };
        if let Some(object) = ObjectKey::parse(key, version) {
            names.objects.remove(&object);
        } else if let Some(versions) = names.named.get_mut(key) {
            versions.remove(&version);
            if versions.is_empty() {
                names.named.remove(key);
            }
        }
    }
}

/// The keys of a page, the bytes of all that is said of them, and the last of them if more follow.
#[derive(Default)]
struct Page {
    keys: Vec<String>,
    bytes: usize,
    next: Option<String>,
}

impl Names {
    fn page(&self, after: &str, keys: usize, bytes: usize) -> Page {
        let mut page = Page::default();
        for key in self.keys_after(after) {
            let length = self.listed_bytes(&key);
            let is_full = page.keys.len() >= keys || page.bytes + length > bytes;
            if is_full && let Some(last) = page.keys.last() {
                page.next = Some(last.clone());
                break;
            }
            page.bytes += length;
            page.keys.push(key);
        }
        page
    }

    /// Every version of `key`, ascending. Versions begin at 1, the only one that a volume's object has.
    fn versions(&self, key: &str) -> impl DoubleEndedIterator<Item = (u64, &Holding)> {
        let object = ObjectKey::parse(key, ObjectId::VERSION).and_then(|object| self.objects.get(&object));
        let named = self.named.get(key).into_iter().flatten();
        object
            .map(|holding| (ObjectId::VERSION, holding))
            .into_iter()
            .chain(named.map(|(&version, holding)| (version, holding)))
    }

    fn statuses(&self, key: &str) -> Vec<ObjectStatus> {
        let newest = self.versions(key).rev().take(LISTED_VERSIONS);
        let mut statuses: Vec<_> = newest.map(|(version, holding)| holding.status(key, version)).collect();
        statuses.reverse();
        statuses
    }

    /// Bytes of these as the wire has them, at most.
    fn listed_bytes(&self, key: &str) -> usize {
        let each = json_length(key) + STATUS_BYTES;
        let newest = self.versions(key).rev().take(LISTED_VERSIONS);
        newest.map(|(_, holding)| each + INDEX_BYTES * holding.fragments() as usize).sum()
    }

    fn each(&self, mut see: impl FnMut(&dyn Fn() -> String, u64, &Holding)) {
        for (object, holding) in &self.objects {
            see(&|| object.key(), ObjectId::VERSION, holding);
        }
        for (key, versions) in &self.named {
            versions.iter().for_each(|(&version, holding)| see(&|| key.to_string(), version, holding));
        }
    }

    /// Keys after `after`, in order, each once.
    fn keys_after(&self, after: &str) -> impl Iterator<Item = String> {
        let objects = self.objects.range((ObjectKey::first_after(after), Bound::Unbounded));
        let named = self.named.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
        let mut objects = objects.map(|(object, _)| object.key()).peekable();
        let mut named = named.map(|(key, _)| key.to_string()).peekable();
        std::iter::from_fn(move || match (objects.peek(), named.peek()) {
            (Some(object), Some(name)) if object == name => {
                objects.next();
                named.next()
            }
            (Some(object), Some(name)) if object < name => objects.next(),
            (Some(_), None) => objects.next(),
            _ => named.next(),
        })
    }
}

impl ObjectKey {
    fn parse(key: &str, version: u64) -> Option<ObjectKey> {
        let object: ObjectId = (version == ObjectId::VERSION).then(|| key.parse().ok()).flatten()?;
        Some(ObjectKey([object.epoch, (object.counter >> 32) as u32, object.counter as u32]))
    }

    fn key(&self) -> String {
        let [epoch, high, low] = self.0;
        ObjectId { epoch, counter: u64::from(high) << 32 | u64::from(low) }.key()
    }

    /// Where the objects begin whose keys come after `text`, which need not be an object's key.
    fn first_after(text: &str) -> Bound<ObjectKey> {
        let (mut low, mut high) = (String::new(), String::new());
        for at in 0..25 {
            let Some(byte) = text.as_bytes().get(at) else {
                return ObjectKey::bound(&low, '0').map_or(Bound::Unbounded, Bound::Included);
            };
            let allowed = if at == 8 { "-" } else { "0123456789abcdef" };
            if !allowed.as_bytes().contains(byte) {
                let Some(next) = allowed.chars().find(|digit| u32::from(*digit) > u32::from(*byte)) else {
                    return ObjectKey::bound(&high, 'f').map_or(Bound::Unbounded, Bound::Excluded);
                };
                low.push(next);
                return ObjectKey::bound(&low, '0').map_or(Bound::Unbounded, Bound::Included);
            }
            low.push(char::from(*byte));
            high.push(char::from(*byte));
        }
        ObjectKey::bound(&low, '0').map_or(Bound::Unbounded, Bound::Excluded)
    }

    /// The object whose key begins with `prefix` and goes on with `digit`.
    fn bound(prefix: &str, digit: char) -> Option<ObjectKey> {
        let rest = (prefix.len()..25).map(|at| if at == 8 { '-' } else { digit });
        let key: String = prefix.chars().chain(rest).collect();
        ObjectKey::parse(&key, ObjectId::VERSION)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shape(fpcc: u8) -> Shape {
        Shape {
            fpcc: Hash::from([fpcc; 32]),
            code: "3+2".parse().unwrap(),
            object_length: (5 << 32) + 7,
            fragment_length: 40_000,
            fpcc_length: 300,
            has_tree: true,
        }
    }

    fn name(key: &str, version: u64, index: u8) -> FragmentName {
        FragmentName { key: key.into(), version, index }
    }

    fn at(offset: u64) -> Position {
        Position { segment: 1, offset }
    }

    const S: Space = Space::ObjectStore;

    #[test]
    fn a_holding_fits_its_budget() {
        let per_object = size_of::<ObjectKey>() + size_of::<Holding>();
        // Ascending keys leave a BTreeMap's nodes six elevenths full.
        assert!(per_object * 11 / 6 <= 145, "{per_object} bytes");
    }

    #[test]
    fn fragments_come_and_go() {
        let mut index = Index::default();
        for i in 0..3 {
            assert_eq!(index.insert(S, &name("k", 1, i), &shape(1), at(64 * u64::from(i))), Ok(None));
        }
        assert_eq!(index.find(S, "k", 1).unwrap().shape(), shape(1));
        assert_eq!(index.find(S, "k", 1).unwrap().indexes(), [0, 1, 2]);
        assert_eq!(index.insert(S, &name("k", 1, 2), &shape(1), at(640)), Ok(Some(at(128))));
        assert_eq!(index.remove(S, &name("k", 1, 0)), Some(at(0)));
        assert_eq!(index.remove(S, &name("k", 1, 0)), None);
        assert_eq!(index.remove(S, &name("k", 1, 2)), Some(at(640)));
        assert_eq!(index.remove(S, &name("k", 1, 1)), Some(at(64)));
        assert!(index.find(S, "k", 1).is_none());
        assert_eq!(index.fragments(), 0);
    }

    #[test]
    fn one_name_has_one_fpcc_also_while_it_arrives() {
        let mut index = Index::default();
        assert_eq!(index.arriving(S, &name("k", 1, 0), shape(1).fpcc), Ok(()));
        assert_eq!(index.arriving(S, &name("k", 1, 1), shape(1).fpcc), Ok(()));
        assert_eq!(index.arriving(S, &name("k", 1, 1), shape(2).fpcc), Err(shape(1).fpcc));
        index.arrived(S, &name("k", 1, 0));
        assert_eq!(index.arriving(S, &name("k", 1, 1), shape(2).fpcc), Err(shape(1).fpcc));
        index.arrived(S, &name("k", 1, 1));
        assert_eq!(index.arriving(S, &name("k", 1, 1), shape(2).fpcc), Ok(()));
        index.arrived(S, &name("k", 1, 1));
        index.insert(S, &name("k", 1, 0), &shape(1), at(0)).unwrap();
        assert_eq!(index.insert(S, &name("k", 1, 3), &shape(2), at(64)), Err(shape(1).fpcc));
        assert_eq!(index.arriving(S, &name("k", 1, 3), shape(2).fpcc), Err(shape(1).fpcc));
    }

    #[test]
    fn latest_is_the_highest_version() {
        let mut index = Index::default();
        let object = ObjectId { epoch: 1, counter: 2 }.key();
        for version in [1, 7, 3] {
            index.insert(S, &name(&object, version, 0), &shape(1), at(64 * version)).unwrap();
        }
        assert_eq!(index.latest(S, &object).unwrap().version, 7);
        assert_eq!(
            index.list(S, "", 10, PAGE_BYTES).0.iter().map(|s| s.version).collect::<Vec<_>>(),
            [1, 3, 7]
        );
        assert!(index.latest(S, "absent").is_none());
    }

    fn any_key() -> impl Strategy<Value = String> {
        let object = (0..3u32, prop_oneof![0..3u64, any::<u64>()])
            .prop_map(|(epoch, counter)| ObjectId { epoch, counter }.key());
        prop_oneof![
            object.clone(),
            "[0-9a-g-]{1,3}",
            (object, "[ -~ü]{1,2}", 0..25usize).prop_map(|(k, s, n)| k[..n].to_owned() + &s)
        ]
    }

    #[test]
    fn a_page_has_the_newest_versions_of_whole_keys_and_at_least_one_key() {
        let mut index = Index::default();
        let object = ObjectId { epoch: 1, counter: 2 }.key();
        for key in [object.as_str(), "a", "b", "c"] {
            for version in 1..=LISTED_VERSIONS as u64 + 3 {
                index.insert(S, &name(key, version, 0), &shape(1), at(0)).unwrap();
            }
        }
        let of_one_key = index.list_length(S, "b", 1, 0);
        for (bytes, keys) in [(0, 1), (2 * of_one_key - 1, 1), (2 * of_one_key, 2), (3 * of_one_key, 3)] {
            let (page, next) = index.list(S, &object, 9, bytes);
            let last = ["a", "b", "c"][keys - 1];
            assert_eq!(next.as_deref(), (keys < 3).then_some(last));
            assert_eq!((page.len(), &page.last().unwrap().key[..]), (keys * LISTED_VERSIONS, last));
            assert_eq!((page[0].version, page[LISTED_VERSIONS - 1].version), (4, LISTED_VERSIONS as u64 + 3));
        }
    }

    fn any_name() -> impl Strategy<Value = (String, u64, u8)> {
        (prop_oneof![any_key(), "[\"\\\\\u{1}\n]{1,9}"], prop_oneof![1..4u64, any::<u64>()], 0..=254u8)
    }

    proptest! {
        #[test]
        fn pages_give_every_key_once_and_in_order_and_are_as_long_as_they_may_be(
            names in proptest::collection::btree_set(any_name(), 0..60),
            after in any_key(),
            page in 1..7usize,
            bytes in 0..3000usize,
        ) {
            let mut index = Index::default();
            for (key, version, fragment) in &names {
                index.insert(S, &name(key, *version, *fragment), &shape(1), at(0)).unwrap();
            }
            let (mut listed, mut next) = (Vec::new(), Some(after.clone()));
            while let Some(after) = next {
                let (objects, following) = index.list(S, &after, page, bytes);
                let length = serde_json::to_vec(&objects).unwrap().len();
                prop_assert!(length <= index.list_length(S, &after, page, bytes).max(2));
                let mut keys: Vec<&str> = objects.iter().map(|object| &object.key[..]).collect();
                keys.dedup();
                prop_assert!(keys.len() <= page && (keys.len() < 2 || length <= bytes));
                listed.extend(objects.into_iter().map(|object| (object.key, object.version)));
                next = following;
            }
            let mut expected: Vec<_> = names.into_iter().map(|(key, version, _)| (key, version)).collect();
            expected.dedup();
            expected.retain(|(key, _)| *key > after);
            prop_assert_eq!(listed, expected);
        }
    }
}
