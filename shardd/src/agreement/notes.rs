//! What the node has said, in its store: each note a tiny object of one data and one copy fragment, of which it keeps
//! the first. So a note is checked, flushed, compacted and found damaged like everything else.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use common::codec::Codec;
use common::fpcc::Fpcc;
use common::hash::HashId;
use common::wire::{FragmentName, MAX_PAGE, OwnerId};
use parking_lot::Mutex;

use crate::dispersal::{InstanceId, Said};
use crate::error::StoreError;
use crate::store::{Author, Claim, Space, Store};

/// What the keys of notes begin with; those of fragments begin with an owner's hex digits.
const MARK: char = '!';
/// Between the name of an instance and its version.
const VERSION_MARK: char = '\u{1}';

/// The key under which the store keeps the fragment of an instance.
pub fn fragment_key(id: &InstanceId) -> String {
    format!("{}/{}", id.owner(), id.key())
}

/// The owner and the name in such a key.
pub fn split_fragment_key(key: &str) -> Option<(OwnerId, &str)> {
    let (owner, name) = key.split_once('/')?;
    Some((owner.parse().ok()?, name))
}

/// The notes of a store.
pub struct Notes {
    store: Arc<Store>,
    /// Instances whose newest note a start could not read. An older one, or none, is not what was said last.
    unreadable: Mutex<HashSet<InstanceId>>,
}

impl Notes {
    /// Those of this store.
    pub fn of(store: Arc<Store>) -> Notes {
        Notes { store, unreadable: Mutex::default() }
    }

    /// Note what was said; on stable storage with the next flush. What was noted before stays until `drop_older`.
    pub fn write(&self, claim: Claim, id: &InstanceId, said: &Said) -> Result<(), StoreError> {
        let bytes = said.encode();
        let fpcc = fpcc_of(&bytes);
        let name = FragmentName { key: note_key(id), version: said.flags().into(), index: 0 };
        self.store.put_within(claim, &Author::Client, &name, &fpcc.to_bytes(), &bytes)?;
        self.unreadable.lock().remove(id);
        Ok(())
    }

    /// What was said of an instance, if anything.
    pub fn read(&self, id: &InstanceId) -> Result<Option<Said>, StoreError> {
        if self.unreadable.lock().contains(id) {
            return Err(StoreError::Inconsistent(format!("the newest note of {id} could not be read")));
        }
        match self.store.latest(Space::ObjectStore, &note_key(id)) {
            Ok(newest) => self.read_version(&newest.key, newest.version).map(Some),
            Err(StoreError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether this very note is there.
    pub fn has(&self, id: &InstanceId, said: &Said) -> bool {
        let name = FragmentName { key: note_key(id), version: said.flags().into(), index: 0 };
        self.store.has(Space::ObjectStore, &name).is_ok()
    }

    /// Delete the notes of an instance that came before one which is on stable storage.
    pub fn drop_older(&self, id: &InstanceId, said: &Said) -> Result<(), StoreError> {
        self.drop_below(id, said.flags().into())
    }

    /// Delete every note of an instance.
    pub fn drop_all(&self, id: &InstanceId) -> Result<(), StoreError> {
        self.drop_below(id, u64::MAX)?;
        self.unreadable.lock().remove(id);
        Ok(())
    }

    fn drop_below(&self, id: &InstanceId, version: u64) -> Result<(), StoreError> {
        let key = note_key(id);
        for older in 1..version.min(1 << 3) {
            self.store.delete(&Author::Client, &key, older, None)?;
        }
        Ok(())
    }

    /// Bytes of the disk that the newest note of an instance takes.
    pub fn cost(&self, id: &InstanceId) -> u64 {
        let key = note_key(id);
        let newest = self.store.latest(Space::ObjectStore, &key);
        newest.map_or(0, |newest| self.store.cost(Space::ObjectStore, &key, newest.version))
    }

    /// Every note that a start finds, the newest of each instance; as it is on stable storage, those before it go. Of one
    /// that cannot be read only the instance is told.
    pub fn each(&self, mut see: impl FnMut(InstanceId, Option<Said>)) -> Result<(), StoreError> {
        let mut after = MARK.to_string();
        loop {
            let page = self.store.list(Space::ObjectStore, &after, MAX_PAGE)?;
            let notes = page.objects.iter().take_while(|note| note.key.starts_with(MARK));
            let mut notes = notes.peekable();
            let mut has_older = false;
            while let Some(note) = notes.next() {
                if notes.peek().is_some_and(|next| next.key == note.key) {
                    has_older = true;
                    continue;
                }
                let has_older = std::mem::take(&mut has_older);
                let Some(id) = instance_of(&note.key) else { continue };
                match self.read_version(&note.key, note.version) {
                    Ok(said) => {
                        if has_older {
                            self.drop_older(&id, &said)?;
                        }
                        see(id, Some(said));
                    }
                    Err(error) => {
                        tracing::error!(%id, %error, "what was said cannot be read");
                        self.unreadable.lock().insert(id.clone());
                        see(id, None);
                    }
                }
            }
            match page.next.filter(|next| next.starts_with(MARK)) {
                Some(next) => after = next,
                None => return Ok(()),
            }
        }
    }

    /// Every fragment of the object store, in pages.
    pub fn each_fragment(&self, mut see: impl FnMut(InstanceId)) -> Result<(), StoreError> {
        let mut after = format!("{MARK}\u{10ffff}");
        loop {
            let page = self.store.list(Space::ObjectStore, &after, MAX_PAGE)?;
            for object in &page.objects {
                let split = split_fragment_key(&object.key);
                let id = split.and_then(|(owner, name)| InstanceId::new(owner, name, object.version).ok());
                id.into_iter().for_each(&mut see);
            }
            match page.next {
                Some(next) => after = next,
                None => return Ok(()),
            }
        }
    }

    fn read_version(&self, key: &str, version: u64) -> Result<Said, StoreError> {
        let name = FragmentName { key: key.to_owned(), version, index: 0 };
        let kept = self.store.get(Space::ObjectStore, &name)?;
        said_in(&kept.fpcc(), &kept.fragment())
            .ok_or_else(|| StoreError::Inconsistent(format!("the note {key:?} is none")))
    }
}

/// What `Notes::cost` comes to when all has been said.
pub fn highest_cost(id: &InstanceId) -> u64 {
    Store::record_length(&note_key(id), &fpcc_of(&[0; Said::LONGEST]))
}

fn fpcc_of(note: &[u8]) -> Fpcc {
    let codec = Codec::of("1+1".parse().expect("a code"));
    Fpcc::compute(&codec, HashId::Blake3, note.len() as u64, &[note, note])
}

fn said_in(fpcc: &Bytes, fragment: &Bytes) -> Option<Said> {
    let fpcc = Fpcc::parse(fpcc).ok()?;
    fpcc.check_bytes(0, fragment).ok()?;
    Said::decode(fragment.get(..fpcc.object_length() as usize)?).ok()
}

fn note_key(id: &InstanceId) -> String {
    format!("{MARK}{}{VERSION_MARK}{:016x}", fragment_key(id), id.version())
}

fn instance_of(note_key: &str) -> Option<InstanceId> {
    let (key, version) = note_key.strip_prefix(MARK)?.rsplit_once(VERSION_MARK)?;
    let (owner, name) = split_fragment_key(key)?;
    InstanceId::new(owner, name, u64::from_str_radix(version, 16).ok()?).ok()
}
