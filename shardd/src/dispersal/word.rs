//! What one node says to another, and many of it in one body: docs/dispersal.md draws the bytes.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use common::hash::Hash;
use common::wire::{MAX_BATCH, MAX_KEY, OwnerId, WireError};

const MAGIC: &[u8; 4] = b"AVM1";
const WORD_HEADER: usize = 44;
const ECHO: u8 = 1;
const READY: u8 = 2;
const ASK: u8 = 3;

/// What nodes agree on: one version of one key of one owner.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct InstanceId {
    owner: OwnerId,
    key: Box<str>,
    version: u64,
}

impl InstanceId {
    /// A key has 1 to `MAX_KEY` bytes, and versions begin at 1.
    pub fn new(owner: OwnerId, key: &str, version: u64) -> Result<InstanceId, WireError> {
        if key.is_empty() || key.len() > MAX_KEY {
            return Err(WireError::Name("a key has 1 to 1024 bytes"));
        }
        if version == 0 {
            return Err(WireError::Name("versions begin at 1"));
        }
        Ok(InstanceId { owner, key: key.into(), version })
    }

    /// Whose object it is.
    pub fn owner(&self) -> OwnerId {
        self.owner
    }

    /// The object's key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The object's version.
    pub fn version(&self) -> u64 {
        self.version
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "object {:?} version {} of owner {}", self.key, self.version, self.owner)
    }
}

/// What a node says about an instance.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Word {
    /// "My fragment is here and fits the FPCC of this digest."
    Echo(Hash),
    /// "Enough nodes echoed this digest, or one honest node says that they did."
    Ready(Hash),
    /// "What did you say?"
    Ask,
}

/// A word about an instance.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Message {
    /// The instance.
    pub id: InstanceId,
    /// The word.
    pub word: Word,
}

/// Messages from one node to another, `MAX_BATCH` at most, all under one configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Messages {
    configuration: Hash,
    list: Vec<Message>,
}

impl Messages {
    /// None yet.
    pub fn new(configuration: Hash) -> Messages {
        Messages { configuration, list: Vec::new() }
    }

    /// The digest of the configuration they are said under.
    pub fn configuration(&self) -> Hash {
        self.configuration
    }

    /// In the order in which they were said.
    pub fn list(&self) -> &[Message] {
        &self.list
    }

    /// One more; given back if there are as many as there may be.
    pub fn push(&mut self, message: Message) -> Result<(), Message> {
        if self.list.len() == MAX_BATCH {
            return Err(message);
        }
        self.list.push(message);
        Ok(())
    }

    /// As a body.
    pub fn encode(&self) -> Bytes {
        let mut body = BytesMut::with_capacity(MAGIC.len() + Hash::LENGTH + 128 * self.list.len());
        body.put_slice(MAGIC);
        body.put_slice(self.configuration.as_bytes());
        self.list.iter().for_each(|message| encode(message, &mut body));
        body.freeze()
    }

    /// Bytes of a body with one word about each of these instances, at most.
    pub fn longest<'i>(ids: impl Iterator<Item = &'i InstanceId>) -> usize {
        let words = ids.map(|id| WORD_HEADER + id.key.len() + Hash::LENGTH);
        MAGIC.len() + Hash::LENGTH + words.sum::<usize>()
    }

    /// Reads exactly what `encode` writes.
    pub fn decode(mut body: Bytes) -> Result<Messages, WireError> {
        if !body.starts_with(MAGIC) {
            return Err(WireError::Magic("messages between nodes, AVM1"));
        }
        body.advance(MAGIC.len());
        let mut messages = Messages::new(hash(&mut body)?);
        while body.has_remaining() {
            let message = decode(&mut body)?;
            messages.push(message).map_err(|_| WireError::TooMany)?;
        }
        Ok(messages)
    }
}

fn encode(Message { id, word }: &Message, body: &mut BytesMut) {
    let (kind, digest) = match word {
        Word::Echo(digest) => (ECHO, Some(digest)),
        Word::Ready(digest) => (READY, Some(digest)),
        Word::Ask => (ASK, None),
    };
    body.put_u8(kind);
    body.put_u8(0);
    body.put_u16_le(id.key.len() as u16);
    body.put_u64_le(id.version);
    body.put_slice(&id.owner.0);
    body.put_slice(id.key.as_bytes());
    digest.into_iter().for_each(|digest| body.put_slice(digest.as_bytes()));
}

fn decode(body: &mut Bytes) -> Result<Message, WireError> {
    if body.len() < WORD_HEADER {
        return Err(WireError::Length("a word's header"));
    }
    let (kind, zero) = (body.get_u8(), body.get_u8());
    if zero != 0 {
        return Err(WireError::Name("a zero stands behind the kind of a word"));
    }
    let key_length = usize::from(body.get_u16_le());
    let version = body.get_u64_le();
    let mut owner = OwnerId([0; 32]);
    body.copy_to_slice(&mut owner.0);
    if body.len() < key_length {
        return Err(WireError::Length("a key"));
    }
    let key = body.split_to(key_length);
    let key = std::str::from_utf8(&key).map_err(|_| WireError::Name("a key is UTF-8"))?;
    let id = InstanceId::new(owner, key, version)?;
    let word = match kind {
        ECHO => Word::Echo(hash(body)?),
        READY => Word::Ready(hash(body)?),
        ASK => Word::Ask,
        _ => return Err(WireError::Name("a word is 1 to 3")),
    };
    Ok(Message { id, word })
}

fn hash(body: &mut Bytes) -> Result<Hash, WireError> {
    let mut hash = [0; Hash::LENGTH];
    body.try_copy_to_slice(&mut hash).map_err(|_| WireError::Length("a digest"))?;
    Ok(hash.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(key: &str) -> InstanceId {
        InstanceId::new(OwnerId([7; 32]), key, 0x0102).unwrap()
    }

    fn messages(words: &[(&str, Word)]) -> Messages {
        let mut messages = Messages::new([9; 32].into());
        for (key, word) in words {
            messages.push(Message { id: id(key), word: *word }).unwrap();
        }
        messages
    }

    fn some() -> Messages {
        let longest = "k".repeat(MAX_KEY);
        let digest = |byte: u8| Hash::from([byte; 32]);
        messages(&[
            ("a", Word::Echo(digest(1))),
            ("b/ü", Word::Ask),
            (&longest, Word::Ready(digest(2))),
            ("a", Word::Ready(digest(1))),
        ])
    }

    #[test]
    fn messages_come_back_as_they_were() {
        assert_eq!(Messages::decode(some().encode()), Ok(some()));
        let none = messages(&[]);
        assert_eq!(Messages::decode(none.encode()), Ok(none));
    }

    #[test]
    fn the_format_is_the_one_drawn() {
        let echo = messages(&[("ab", Word::Echo([1; 32].into()))]);
        let head = [b"AVM1".as_slice(), &[9; 32]].concat();
        let name = [b"\0\x02\0\x02\x01\0\0\0\0\0\0".as_slice(), &[7; 32], b"ab"].concat();
        assert_eq!(echo.encode(), [&head[..], &[1], &name, &[1; 32]].concat());
        let ask = messages(&[("ab", Word::Ask)]);
        assert_eq!(ask.encode(), [&head[..], &[3], &name].concat());
    }

    #[test]
    fn messages_cut_anywhere_are_refused_but_between_two() {
        let (whole, ends) = (some().encode(), [36, 36 + 77, 36 + 77 + 48, 36 + 77 + 48 + 44 + 1024 + 32]);
        for length in 0..whole.len() {
            let is_whole = Messages::decode(whole.slice(..length)).is_ok();
            assert_eq!(is_whole, ends.contains(&length), "{length} of {} bytes", whole.len());
        }
    }

    #[test]
    fn names_that_are_none_are_refused() {
        let refused = |at: usize, byte: u8| {
            let mut bytes = messages(&[("a", Word::Ask)]).encode().to_vec();
            bytes[at] = byte;
            Messages::decode(bytes.into()).is_err()
        };
        assert!(refused(0, b'B') && refused(36, 0) && refused(36, 4) && refused(37, 1));
        assert!(refused(38, 0) && refused(38, 2), "a key of no length, and of more than there is");
        assert!(refused(80, 0xff), "not UTF-8");
        assert!(InstanceId::new(OwnerId([0; 32]), "a", 0).is_err());
        assert!(InstanceId::new(OwnerId([0; 32]), "", 1).is_err());
        assert!(InstanceId::new(OwnerId([0; 32]), &"k".repeat(MAX_KEY + 1), 1).is_err());
    }

    #[test]
    fn there_are_never_more_than_a_body_may_have() {
        let ask = Message { id: id("a"), word: Word::Ask };
        let mut full = Messages::new([9; 32].into());
        (0..MAX_BATCH).for_each(|_| full.push(ask.clone()).unwrap());
        assert_eq!(full.push(ask.clone()), Err(ask));
        let one_more = [full.encode(), messages(&[("a", Word::Ask)]).encode().slice(36..)].concat();
        assert_eq!(Messages::decode(full.encode()).map(|read| read.list().len()), Ok(MAX_BATCH));
        assert_eq!(Messages::decode(one_more.into()), Err(WireError::TooMany));
    }

    proptest! {
        #[test]
        fn garbage_is_refused_or_has_one_encoding(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            kind in 0u8..5,
            key_length in 0u8..20,
            is_framed: bool,
        ) {
            let mut body = some().encode()[..36].to_vec();
            if is_framed {
                body.extend([kind, 0, key_length, 0]);
            }
            body.extend(&bytes);
            for body in [Bytes::from(body), Bytes::from(bytes)] {
                if let Ok(messages) = Messages::decode(body.clone()) {
                    prop_assert_eq!(messages.encode(), body);
                }
            }
        }
    }
}
