//! What a node has said about an instance and must not take back: docs/dispersal.md draws its bytes.

use common::hash::Hash;

use super::word::Word;

const MAGIC: &[u8; 4] = b"AVS1";
const HEADER: usize = 40;
const ECHOED: u8 = 1;
const READIED: u8 = 2;
const VERIFIED: u8 = 4;

/// What a node has said about one instance. It is on stable storage before any of it is said.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Said {
    configuration: Hash,
    echoed: Option<Hash>,
    readied: Option<Hash>,
    /// Whether what was readied is verified.
    is_verified: bool,
}

/// Bytes that are not what docs/dispersal.md draws.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("these bytes are not what a node has said about an instance")]
pub struct NotSaid;

impl Said {
    /// Bytes of the longest encoding.
    pub const LONGEST: usize = HEADER + 2 * Hash::LENGTH;

    /// Nothing yet, among the nodes of a configuration.
    pub fn nothing(configuration: Hash) -> Said {
        Said { configuration, echoed: None, readied: None, is_verified: false }
    }

    /// The digest of the configuration whose nodes it was said to.
    pub fn configuration(&self) -> Hash {
        self.configuration
    }

    /// What it echoed; never another one.
    pub fn echoed(&self) -> Option<Hash> {
        self.echoed
    }

    /// What it said ready for; never another one.
    pub fn readied(&self) -> Option<Hash> {
        self.readied
    }

    /// What 2f + 1 nodes said ready for, this one among them.
    pub fn verified(&self) -> Option<Hash> {
        self.readied.filter(|_| self.is_verified)
    }

    /// Whether something was said that has led to nothing yet.
    pub fn is_open(&self) -> bool {
        !self.is_verified && (self.echoed.is_some() || self.readied.is_some())
    }

    /// What to say again to who may have missed it, if the node's own fragment is `held` under this digest.
    ///
    /// An echo says that the fragment is here. Once verified it has done its work: f + 1 honest nodes said ready.
    pub fn words(&self, held: Option<Hash>) -> Vec<Word> {
        let echo = self.echoed.filter(|_| !self.is_verified && self.echoed == held);
        echo.map(Word::Echo).into_iter().chain(self.readied.map(Word::Ready)).collect()
    }

    pub(super) fn echo(&mut self, digest: Hash) {
        debug_assert!(self.echoed.is_none(), "a node echoes once");
        self.echoed = Some(digest);
    }

    pub(super) fn ready(&mut self, digest: Hash) {
        debug_assert!(self.readied.is_none(), "a node says ready once");
        self.readied = Some(digest);
    }

    pub(super) fn verify(&mut self) {
        self.is_verified = self.readied.is_some();
    }

    /// Its flags as a number, which only grows: what was said is never taken back.
    pub fn flags(&self) -> u8 {
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        flag(self.echoed.is_some(), ECHOED)
            | flag(self.readied.is_some(), READIED)
            | flag(self.is_verified, VERIFIED)
    }

    /// Its encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Said::LONGEST);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[self.flags(), 0, 0, 0]);
        bytes.extend_from_slice(self.configuration.as_bytes());
        [self.echoed, self.readied].iter().flatten().for_each(|d| bytes.extend_from_slice(d.as_bytes()));
        bytes
    }

    /// Reads exactly what `encode` writes.
    pub fn decode(bytes: &[u8]) -> Result<Said, NotSaid> {
        let (header, digests) = bytes.split_first_chunk::<HEADER>().ok_or(NotSaid)?;
        let (flags, configuration) = match header {
            [b'A', b'V', b'S', b'1', flags, 0, 0, 0, configuration @ ..] => (*flags, *configuration),
            _ => return Err(NotSaid),
        };
        let has = |flag: u8| flags & flag != 0;
        if flags > ECHOED + READIED + VERIFIED || (has(VERIFIED) && !has(READIED)) {
            return Err(NotSaid);
        }
        let (digests, []) = digests.as_chunks::<{ Hash::LENGTH }>() else { return Err(NotSaid) };
        let mut digests = digests.iter().map(|digest| Hash::from(*digest));
        let mut field = |flag: u8| match has(flag) {
            true => digests.next().map(Some).ok_or(NotSaid),
            false => Ok(None),
        };
        let (echoed, readied) = (field(ECHOED)?, field(READIED)?);
        if digests.next().is_some() {
            return Err(NotSaid);
        }
        Ok(Said { configuration: configuration.into(), echoed, readied, is_verified: has(VERIFIED) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest(byte: u8) -> Hash {
        [byte; 32].into()
    }

    fn every_value() -> Vec<Said> {
        let maybe = |set: bool, byte: u8| set.then(|| digest(byte));
        let said = |bits: u8| Said {
            configuration: digest(9),
            echoed: maybe(bits & 1 != 0, 1),
            readied: maybe(bits & 2 != 0, 2),
            is_verified: bits & 4 != 0,
        };
        (0..8).map(said).filter(|said| !said.is_verified || said.readied.is_some()).collect()
    }

    #[test]
    fn what_was_said_is_read_back_as_it_was() {
        for said in every_value() {
            assert_eq!(Said::decode(&said.encode()), Ok(said));
        }
    }

    #[test]
    fn the_format_is_the_one_drawn() {
        let mut said = Said::nothing(digest(9));
        assert_eq!(said.encode(), [b"AVS1\0\0\0\0".as_slice(), &[9; 32]].concat());
        said.echo(digest(1));
        assert_eq!(said.encode(), [b"AVS1\x01\0\0\0".as_slice(), &[9; 32], &[1; 32]].concat());
        said.ready(digest(2));
        said.verify();
        assert_eq!(said.encode(), [b"AVS1\x07\0\0\0".as_slice(), &[9; 32], &[1; 32], &[2; 32]].concat());
    }

    #[test]
    fn an_encoding_cut_or_lengthened_anywhere_is_refused() {
        for said in every_value() {
            let bytes = said.encode();
            for length in 0..bytes.len() {
                assert_eq!(Said::decode(&bytes[..length]), Err(NotSaid), "{length} bytes of {said:?}");
            }
            assert_eq!(Said::decode(&[&bytes[..], &[0]].concat()), Err(NotSaid));
            assert_eq!(Said::decode(&[&bytes[..], &[0; 32]].concat()), Err(NotSaid));
        }
    }

    #[test]
    fn flags_without_a_meaning_are_refused() {
        for (flags, zeros, digests) in [(4, 0, 0), (5, 0, 1), (8, 0, 0), (9, 0, 1), (255, 0, 2), (1, 1, 1)] {
            let bytes =
                [b"AVS1".as_slice(), &[flags, 0, zeros, 0], &[9; 32], &vec![1; 32 * digests]].concat();
            assert_eq!(Said::decode(&bytes), Err(NotSaid), "flags {flags}");
        }
    }

    #[test]
    fn an_echo_without_its_fragment_is_not_said_again() {
        let mut said = Said::nothing(digest(9));
        said.echo(digest(1));
        assert_eq!(said.words(None), []);
        assert_eq!(said.words(Some(digest(2))), []);
        assert_eq!(said.words(Some(digest(1))), [Word::Echo(digest(1))]);
        said.ready(digest(1));
        assert_eq!(said.words(Some(digest(1))), [Word::Echo(digest(1)), Word::Ready(digest(1))]);
        said.verify();
        assert_eq!(said.words(Some(digest(1))), [Word::Ready(digest(1))]);
    }

    proptest! {
        #[test]
        fn garbage_is_refused_or_has_one_encoding(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), flags in 0u8..9, head in 0..3) {
            if head > 0 && bytes.len() >= 8 {
                bytes[..8].copy_from_slice(&[b'A', b'V', b'S', b'1', flags, 0, 0, (head == 2).into()]);
            }
            if let Ok(said) = Said::decode(&bytes) {
                prop_assert_eq!(said.encode(), bytes);
            }
        }
    }
}
