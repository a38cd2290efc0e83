//! What mount and node say to each other: names, JSON values and binary bodies, as docs/wire.md draws them.
//! Bytes in, values out; it knows no socket.

mod gets;
mod puts;

use std::fmt;
use std::str::FromStr;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

pub use self::gets::{GETS_PROTOCOL, GetFrame, GetHead};
pub use self::puts::{
    FRAME_LENGTH, MAX_FRAME, MAX_SMALL_FRAGMENT, PUTS_PROTOCOL, PutAnswer, PutFrame, next_frame, next_length,
};

/// The version of this protocol; a client refuses a node that states another one.
pub const WIRE_VERSION: u32 = 1;
/// Header of every answer: the node's identity.
pub const NODE_HEADER: &str = "avid-node";
/// Header of every answer: the node's boot id.
pub const BOOT_HEADER: &str = "avid-boot";
/// Header of what an owner signs: 128 hex digits.
pub const SIGNATURE_HEADER: &str = "avid-signature";
/// Header of words from one node to another: their code, 64 hex digits.
pub const MAC_HEADER: &str = "avid-mac";
/// Header of words from one node to another: who says them.
pub const FROM_HEADER: &str = "avid-from";
/// Header of a list that goes on: where.
pub const NEXT_HEADER: &str = "avid-next";
/// Header of every changing request on a volume: the writer's epoch.
pub const EPOCH_HEADER: &str = "avid-epoch";
/// The signature of the writer statement, by the volume's key.
pub const WRITER_HEADER: &str = "avid-writer";
/// Longest key, in bytes.
pub const MAX_KEY: usize = 1024;
/// Longest body of any request or answer, in bytes.
pub const MAX_BODY: usize = 32 << 20;
/// Most operations in one batch.
pub const MAX_BATCH: usize = 4096;
/// Most keys in one page of a listing.
pub const MAX_PAGE: usize = 1000;
/// `index` of a batched delete that means every index.
pub const EVERY_INDEX: u8 = 255;

const BATCH_MAGIC: &[u8; 4] = b"AVB1";
const ANSWER_MAGIC: &[u8; 4] = b"AVA1";
const OPERATION_HEADER: usize = 20;
const ANSWER_HEADER: usize = 12;

const HEX: &[u8; 16] = b"0123456789abcdef";

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; $bytes]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                // At once: it is in every path and every answer.
                let digits = self.0.map(|byte| [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
                f.write_str(std::str::from_utf8(digits.as_flattened()).expect("hex digits are ASCII"))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }
        impl FromStr for $name {
            type Err = WireError;
            fn from_str(text: &str) -> Result<Self, WireError> {
                let digits = text.as_bytes();
                let wrong = || WireError::Name(concat!(stringify!($name), " is not lower-case hex of its length"));
                if digits.len() != 2 * $bytes {
                    return Err(wrong());
                }
                let mut id = [0; $bytes];
                for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
                    *byte = hex_digit(pair[0]).zip(hex_digit(pair[1])).map(|(h, l)| h << 4 | l).ok_or_else(wrong)?;
                }
                Ok($name(id))
            }
        }
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

hex_id!(
    /// Who writes a volume: 16 random bytes that belong to a state folder.
    MountId, 16
);
hex_id!(
    /// A node's identity, drawn once for its data folder.
    NodeId, 16
);
hex_id!(
    /// One run of a node; it changes whenever what was acknowledged but not flushed may be gone.
    BootId, 8
);
hex_id!(
    /// A volume's identity, made from its key when it is formatted.
    VolumeId, 16
);
hex_id!(
    /// An owner of objects in the object store: an Ed25519 public key.
    OwnerId, 32
);
hex_id!(
    /// What a node signs with: an Ed25519 public key.
    NodeKey, 32
);
hex_id!(
    /// An Ed25519 signature.
    Signature, 64
);
hex_id!(
    /// The code of words between two nodes: BLAKE3, keyed by what only the two know.
    Mac, 32
);
hex_id!(
    /// Random bytes that make a statement a fresh one.
    Nonce, 16
);

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// An object of a volume. Never reused: every mount has a new epoch. Its order is the order of sealing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ObjectId {
    /// The epoch of the mount that sealed it.
    pub epoch: u32,
    /// Counts the objects of that epoch.
    pub counter: u64,
}

impl ObjectId {
    /// The version of every object of a volume.
    pub const VERSION: u64 = 1;

    /// The key under which nodes keep it.
    pub fn key(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:016x}", self.epoch, self.counter)
    }
}

impl FromStr for ObjectId {
    type Err = WireError;
    fn from_str(key: &str) -> Result<Self, WireError> {
        let wrong = || WireError::Name("an object's key is EEEEEEEE-CCCCCCCCCCCCCCCC in hex");
        let (epoch, counter) = key.split_once('-').ok_or_else(wrong)?;
        if epoch.len() != 8
            || counter.len() != 16
            || !key.bytes().all(|b| b == b'-' || hex_digit(b).is_some())
        {
            return Err(wrong());
        }
        Ok(ObjectId {
            epoch: u32::from_str_radix(epoch, 16).map_err(|_| wrong())?,
            counter: u64::from_str_radix(counter, 16).map_err(|_| wrong())?,
        })
    }
}

/// What a volume is, as every node of its pool remembers it; fixed when it is formatted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeDescriptor {
    /// Its identity.
    pub volume: VolumeId,
    /// Its name, unique in the pool.
    pub name: String,
    /// Its code, as `m+p`.
    pub code: String,
    /// Its hash, `blake3` or `sha256`.
    pub hash: String,
    /// The most bytes in one object.
    pub object_size: u64,
    /// The public half of its key, from which its identity is made; who writes must show that the key said so. Without
    /// one, anybody may write it whom the nodes let in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<OwnerId>,
}

/// The identity of the volume of a key.
pub fn volume_of(owner: &OwnerId) -> VolumeId {
    let digest = blake3::derive_key("avidfs 2026 identity of a volume", &owner.0);
    VolumeId(std::array::from_fn(|i| digest[i]))
}

/// What a volume's key signs for a node: that who shows this node the signature may write under that epoch. It is of use
/// at no other node.
pub fn writer_statement(volume: VolumeId, epoch: u32, node: NodeId) -> Vec<u8> {
    let mut text = b"avidfs writer 1\0".to_vec();
    text.extend_from_slice(&volume.0);
    text.extend_from_slice(&epoch.to_le_bytes());
    text.extend_from_slice(&node.0);
    text
}

/// One line of `GET /volumes`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeEntry {
    /// The volume.
    #[serde(flatten)]
    pub descriptor: VolumeDescriptor,
    /// The newest epoch this node has seen of it; 0 before the first.
    pub epoch: u32,
}

/// `POST /volumes/{volume}/lease`: to be the one who writes the volume, for a while.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseRequest {
    /// The epoch to write under; a node grants each number to one mount.
    pub epoch: u32,
    /// Who asks.
    pub mount: MountId,
    /// What people call the host it runs on.
    pub host: String,
    /// For how long, in milliseconds, at most `MAX_LEASE_MS`; 0 gives it back.
    pub lease_ms: u64,
    /// Whether somebody else's lease is ended.
    pub take_over: bool,
}

/// The longest lease, in milliseconds.
pub const MAX_LEASE_MS: u64 = 60_000;

/// `GET /volumes`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct VolumeList {
    /// Every volume this node was told of.
    pub volumes: Vec<VolumeEntry>,
}

/// `GET /info`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeInfo {
    /// `WIRE_VERSION` of the node.
    pub wire: u32,
    /// Identity of its data folder.
    pub node: NodeId,
    /// This run of it.
    pub boot: BootId,
    /// What may fail together with it, if the operator said so.
    pub zone: Option<String>,
    /// Bytes it may fill.
    pub capacity_bytes: u64,
    /// Bytes it has filled.
    pub used_bytes: u64,
    /// Bytes data may still take: capacity less use and reserve, or what the disk has if that is less.
    pub available_bytes: u64,
    /// Fragments it holds.
    pub fragments: u64,
    /// The program's version.
    pub version: String,
    /// What its statements are signed with, and its words are known by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<NodeKey>,
}

/// `GET /objects/{key}/latest` of a node that agrees with others on objects.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LatestVersion {
    /// The highest version it has heard of, whatever became of it; 0 if none.
    pub highest: u64,
    /// The highest version it has verified.
    pub verified: Option<VerifiedVersion>,
}

/// A version that a node has verified.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VerifiedVersion {
    /// The name it is agreed on under.
    pub key: String,
    /// The version.
    pub version: u64,
    /// The digest of its FPCC, in hex.
    pub fpcc: String,
    /// Bytes in what was agreed on; none while the node has no fragment of it.
    pub object_length: Option<u64>,
}

/// `GET /objects?owner=OWNER`: the newest verified version of each key of an owner.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VersionList {
    /// In the order of keys.
    pub objects: Vec<VerifiedVersion>,
    /// Pass as `after` for the next page; none at the end.
    pub next: Option<String>,
}

/// What an owner signs for the nodes to keep a fragment of a version: that this FPCC is meant.
pub fn version_statement(
    members: &[u8; 32],
    owner: &OwnerId,
    name: &str,
    version: u64,
    fpcc: &[u8; 32],
) -> Vec<u8> {
    let mut text = b"avidfs version 1\0".to_vec();
    text.extend_from_slice(members);
    text.extend_from_slice(&owner.0);
    text.extend_from_slice(&version.to_le_bytes());
    text.extend_from_slice(&(name.len() as u16).to_le_bytes());
    text.extend_from_slice(name.as_bytes());
    text.extend_from_slice(fpcc);
    text
}

/// `GET S/objects/{key}/{version}/fragment/{index}/statement?nonce=NONCE`: a node has just read a fragment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Statement {
    /// The digest of the FPCC that it fits, in hex.
    pub fpcc: String,
    /// Of the holding statement, by the node's key.
    pub signature: Signature,
}

/// What a node signs when it states that a fragment is here and fits its FPCC. `volume` is none for the object store.
pub fn holding_statement(
    node: NodeId,
    nonce: Nonce,
    volume: Option<VolumeId>,
    name: &FragmentName,
    fpcc: &[u8; 32],
) -> Vec<u8> {
    let mut text = b"avidfs holding 1\0".to_vec();
    text.extend_from_slice(&nonce.0);
    text.extend_from_slice(&node.0);
    text.extend_from_slice(&volume.map_or([0; 16], |volume| volume.0));
    text.extend_from_slice(&name.version.to_le_bytes());
    text.push(name.index);
    text.extend_from_slice(&(name.key.len() as u16).to_le_bytes());
    text.extend_from_slice(name.key.as_bytes());
    text.extend_from_slice(fpcc);
    text
}

/// What the code of words from one node to another is made of.
pub fn words_statement(from: NodeId, to: NodeId, body: &[u8]) -> Vec<u8> {
    let mut text = b"avidfs words 1\0".to_vec();
    text.extend_from_slice(&from.0);
    text.extend_from_slice(&to.0);
    text.extend_from_slice(body);
    text
}

/// What the keys of a volume's journal begin with.
pub const JOURNAL_PREFIX: &str = "journal-";

/// Bytes of what the object store keeps of an object that was deleted; nothing else that is agreed on has so many.
pub const TOMBSTONE_BYTES: u64 = 96;

/// What a node holds of one object.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ObjectStatus {
    /// Its key.
    pub key: String,
    /// Its version.
    pub version: u64,
    /// The digest of its FPCC, in hex.
    pub fpcc: String,
    /// Its code, as `m+p`.
    pub code: String,
    /// Bytes in each fragment.
    pub fragment_length: u64,
    /// Bytes in the object.
    pub object_length: u64,
    /// The indexes held here, ascending.
    pub indexes: Vec<u8>,
}

/// One page of a listing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Listing {
    /// In key order, then by version.
    pub objects: Vec<ObjectStatus>,
    /// Pass as `after` for the next page; none at the end.
    pub next: Option<String>,
}

/// Bytes of a text in JSON, at most.
pub fn json_length(text: &str) -> usize {
    let length = |byte| match byte {
        b'"' | b'\\' => 2,
        ..b' ' => 6,
        _ => 1,
    };
    2 + text.bytes().map(length).sum::<usize>()
}

/// The body of a refusal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// What kind, for programs.
    pub error: RefusalCode,
    /// What happened to what, for people.
    pub message: String,
}

impl Refusal {
    /// As the body of an answer.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a refusal is plain strings")
    }

    /// From the body of an answer of this status, which must be the refusal's own.
    pub fn of_status(status: u16, body: &[u8]) -> Result<Refusal, WireError> {
        let refusal: Option<Refusal> = serde_json::from_slice(body).ok();
        let fits = refusal.filter(|refusal| refusal.error.status() == status);
        fits.ok_or(WireError::Name("a refusal is JSON of its status"))
    }
}

/// Why a node refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// The request makes no sense; 400.
    BadRequest,
    /// The request does not carry the pool's token; 401.
    Unauthorized,
    /// The volume's key did not say that this one may write; 403.
    Forbidden,
    /// Nothing there; 404.
    NotFound,
    /// The client was too slow; 408.
    TooSlow,
    /// Other bytes are kept under this name; 409.
    Conflict,
    /// A newer epoch has written, or the number was granted to somebody else; 409.
    StaleEpoch,
    /// Somebody else has the lease; 409.
    Leased,
    /// Longer than the limit; 413.
    TooLarge,
    /// Fragment and FPCC do not belong together; 422.
    Inconsistent,
    /// The node's own disk; 500.
    Io,
    /// Too many requests at once; 503.
    Busy,
    /// No room for data; 507.
    NoSpace,
}

impl RefusalCode {
    /// The HTTP status that goes with it.
    pub fn status(self) -> u16 {
        match self {
            RefusalCode::BadRequest => 400,
            RefusalCode::Unauthorized => 401,
            RefusalCode::Forbidden => 403,
            RefusalCode::NotFound => 404,
            RefusalCode::TooSlow => 408,
            RefusalCode::Conflict | RefusalCode::StaleEpoch | RefusalCode::Leased => 409,
            RefusalCode::TooLarge => 413,
            RefusalCode::Inconsistent => 422,
            RefusalCode::Io => 500,
            RefusalCode::Busy => 503,
            RefusalCode::NoSpace => 507,
        }
    }
}

/// Bytes that are not what docs/wire.md draws.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WireError {
    /// A body ends before what its lengths announce, or goes on after it.
    #[error("the body is cut short or too long: {0}")]
    Length(&'static str),
    /// A body of another kind or version.
    #[error("the body does not begin as {0}")]
    Magic(&'static str),
    /// A name of the wrong form.
    #[error("{0}")]
    Name(&'static str),
    /// More operations than `MAX_BATCH`.
    #[error("a batch has at most {MAX_BATCH} operations")]
    TooMany,
}

impl From<WireError> for std::io::Error {
    /// What ends a connection: `InvalidData`.
    fn from(error: WireError) -> std::io::Error {
        std::io::Error::new(std::io::ErrorKind::InvalidData, error)
    }
}

/// What stands before the fragment in a fragment body: the length of the FPCC and the FPCC.
pub fn fragment_prefix(fpcc: &[u8]) -> Bytes {
    let mut prefix = BytesMut::with_capacity(4 + fpcc.len());
    prefix.put_u32_le(fpcc.len() as u32);
    prefix.put_slice(fpcc);
    prefix.freeze()
}

/// Take a fragment body (or slice body) apart into the FPCC and the rest; no copy.
pub fn split_fragment_body(mut body: Bytes) -> Result<(Bytes, Bytes), WireError> {
    if body.len() < 4 {
        return Err(WireError::Length("a fragment body begins with the length of its FPCC"));
    }
    let fpcc_length = body.get_u32_le() as usize;
    if body.len() < fpcc_length {
        return Err(WireError::Length("the FPCC"));
    }
    let fpcc = body.split_to(fpcc_length);
    Ok((fpcc, body))
}

/// One operation of a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Verify and keep a fragment.
    Put {
        /// Which fragment.
        name: FragmentName,
        /// Encoded FPCC.
        fpcc: Bytes,
        /// Its bytes.
        fragment: Bytes,
    },
    /// Read a fragment with its FPCC.
    Get(FragmentName),
    /// Ask whether a fragment is there, and under which FPCC.
    Has(FragmentName),
    /// Delete one fragment, or with `EVERY_INDEX` all of the version.
    Delete(FragmentName),
}

/// Which fragment of what, inside one volume or the object store.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct FragmentName {
    /// The object's key.
    pub key: String,
    /// The object's version.
    pub version: u64,
    /// The fragment's index.
    pub index: u8,
}

/// The answer to one operation of a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OperationAnswer {
    /// As HTTP's.
    pub status: u16,
    /// Encoded FPCC; empty unless a successful get.
    pub fpcc: Bytes,
    /// Fragment of a get, FPCC digest of a has, empty otherwise.
    pub payload: Bytes,
}

/// Encode a batch as a list of parts, so that fragments are sent without being copied.
pub fn encode_batch(operations: &[Operation]) -> Vec<Bytes> {
    let mut parts = Vec::new();
    let mut head = BytesMut::new();
    head.put_slice(BATCH_MAGIC);
    for operation in operations {
        let empty = (Bytes::new(), Bytes::new());
        let (code, name, (fpcc, fragment)) = match operation {
            Operation::Put { name, fpcc, fragment } => (1, name, (fpcc.clone(), fragment.clone())),
            Operation::Get(name) => (2, name, empty),
            Operation::Has(name) => (3, name, empty),
            Operation::Delete(name) => (4, name, empty),
        };
        encode_operation(&mut head, code, name, &fpcc, fragment.len());
        append(&mut parts, &mut head, fragment);
    }
    parts.push(head.freeze());
    parts
}

/// An operation up to its fragment.
fn encode_operation(head: &mut BytesMut, code: u8, name: &FragmentName, fpcc: &[u8], fragment_length: usize) {
    head.put_u8(code);
    head.put_u8(name.index);
    head.put_u16_le(name.key.len() as u16);
    head.put_u64_le(name.version);
    head.put_u32_le(fpcc.len() as u32);
    head.put_u32_le(fragment_length as u32);
    head.put_slice(name.key.as_bytes());
    head.put_slice(fpcc);
}

/// Small payloads are gathered into the running head, large ones become a part of their own.
fn append(parts: &mut Vec<Bytes>, head: &mut BytesMut, payload: Bytes) {
    if payload.len() < 16 << 10 {
        head.put_slice(&payload);
    } else {
        parts.push(head.split().freeze());
        parts.push(payload);
    }
}

/// Decode a batch; fragments are slices of `body`, no copy.
pub fn decode_batch(mut body: Bytes) -> Result<Vec<Operation>, WireError> {
    strip_magic(&mut body, BATCH_MAGIC, "a batch, AVB1")?;
    let mut operations = Vec::new();
    while body.has_remaining() {
        if operations.len() == MAX_BATCH {
            return Err(WireError::TooMany);
        }
        operations.push(decode_operation(&mut body)?);
    }
    Ok(operations)
}

fn decode_operation(body: &mut Bytes) -> Result<Operation, WireError> {
    if body.len() < OPERATION_HEADER {
        return Err(WireError::Length("an operation's header"));
    }
    let code = body.get_u8();
    let index = body.get_u8();
    let key_length = usize::from(body.get_u16_le());
    let version = body.get_u64_le();
    let fpcc_length = body.get_u32_le() as usize;
    let fragment_length = body.get_u32_le() as usize;
    if key_length == 0 || key_length > MAX_KEY {
        return Err(WireError::Name("a key has 1 to 1024 bytes"));
    }
    let key = take(body, key_length, "a key")?;
    let key = std::str::from_utf8(&key).map_err(|_| WireError::Name("a key is UTF-8"))?.to_owned();
    let fpcc = take(body, fpcc_length, "an FPCC")?;
    let fragment = take(body, fragment_length, "a fragment")?;
    let name = FragmentName { key, version, index };
    match code {
        1 => Ok(Operation::Put { name, fpcc, fragment }),
        2 => Ok(Operation::Get(name)),
        3 => Ok(Operation::Has(name)),
        4 => Ok(Operation::Delete(name)),
        _ => Err(WireError::Name("an operation is 1 to 4")),
    }
}

/// Encode the answers of a batch as parts.
pub fn encode_answers(answers: &[OperationAnswer]) -> Vec<Bytes> {
    let mut parts = Vec::new();
    let mut head = BytesMut::new();
    head.put_slice(ANSWER_MAGIC);
    for answer in answers {
        head.put_u16_le(answer.status);
        head.put_u16_le(0);
        head.put_u32_le(answer.fpcc.len() as u32);
        head.put_u32_le(answer.payload.len() as u32);
        head.put_slice(&answer.fpcc);
        append(&mut parts, &mut head, answer.payload.clone());
    }
    parts.push(head.freeze());
    parts
}

/// Decode the answers of a batch of `expected` operations; payloads are slices of `body`.
pub fn decode_answers(mut body: Bytes, expected: usize) -> Result<Vec<OperationAnswer>, WireError> {
    strip_magic(&mut body, ANSWER_MAGIC, "a batch answer, AVA1")?;
    let mut answers = Vec::with_capacity(expected.min(MAX_BATCH));
    while body.has_remaining() {
        if answers.len() == expected {
            return Err(WireError::Length("more answers than operations"));
        }
        if body.len() < ANSWER_HEADER {
            return Err(WireError::Length("an answer's header"));
        }
        let status = body.get_u16_le();
        body.advance(2);
        let fpcc_length = body.get_u32_le() as usize;
        let payload_length = body.get_u32_le() as usize;
        let fpcc = take(&mut body, fpcc_length, "an FPCC")?;
        let payload = take(&mut body, payload_length, "a payload")?;
        answers.push(OperationAnswer { status, fpcc, payload });
    }
    if answers.len() < expected {
        return Err(WireError::Length("fewer answers than operations"));
    }
    Ok(answers)
}

fn strip_magic(body: &mut Bytes, magic: &[u8; 4], what: &'static str) -> Result<(), WireError> {
    if body.len() < 4 || body[..4] != *magic {
        return Err(WireError::Magic(what));
    }
    body.advance(4);
    Ok(())
}

fn take(body: &mut Bytes, length: usize, what: &'static str) -> Result<Bytes, WireError> {
    if body.len() < length {
        return Err(WireError::Length(what));
    }
    Ok(body.split_to(length))
}

#[cfg(test)]
mod tests {
    use avidfs_tests::fuzz::fuzz;

    use super::*;

    fn flat(parts: Vec<Bytes>) -> Bytes {
        Bytes::from(parts.concat())
    }

    fn name(key: &str, index: u8) -> FragmentName {
        FragmentName { key: key.into(), version: 7, index }
    }

    #[test]
    fn a_batch_comes_back_as_it_was() {
        let operations = vec![
            Operation::Put {
                name: name("a", 0),
                fpcc: Bytes::from_static(b"fp"),
                fragment: vec![9; 20_000].into(),
            },
            Operation::Get(name("b/ü", 1)),
            Operation::Has(name("c", 2)),
            Operation::Delete(name("d", EVERY_INDEX)),
        ];
        assert_eq!(decode_batch(flat(encode_batch(&operations))).unwrap(), operations);
    }

    #[test]
    fn a_batch_cut_anywhere_is_refused() {
        let operations =
            [Operation::Put { name: name("k", 0), fpcc: vec![1; 9].into(), fragment: vec![2; 30].into() }];
        let whole = flat(encode_batch(&operations));
        for length in (0..whole.len()).filter(|&length| length != 4) {
            assert!(decode_batch(whole.slice(..length)).is_err(), "{length} of {} bytes", whole.len());
        }
    }

    #[test]
    fn answers_come_back_as_they_were_and_must_be_as_many_as_asked() {
        let answers = vec![
            OperationAnswer { status: 200, fpcc: Bytes::from_static(b"x"), payload: vec![3; 40_000].into() },
            OperationAnswer { status: 404, fpcc: Bytes::new(), payload: Bytes::new() },
        ];
        let body = flat(encode_answers(&answers));
        assert_eq!(decode_answers(body.clone(), 2).unwrap(), answers);
        assert!(decode_answers(body.clone(), 1).is_err());
        assert!(decode_answers(body, 3).is_err());
    }

    #[test]
    fn object_keys_sort_as_objects_do() {
        let older = ObjectId { epoch: 2, counter: u64::MAX };
        let newer = ObjectId { epoch: 10, counter: 0 };
        assert!(older < newer && older.key() < newer.key());
        assert_eq!(newer.key().parse::<ObjectId>().unwrap(), newer);
        assert!("0000000A-0000000000000000".parse::<ObjectId>().is_err());
    }

    #[test]
    fn a_fragment_body_splits_into_what_it_was_made_of() {
        let mut body = BytesMut::from(&fragment_prefix(b"fpcc")[..]);
        body.put_slice(b"fragment");
        let (fpcc, fragment) = split_fragment_body(body.freeze()).unwrap();
        assert_eq!((&fpcc[..], &fragment[..]), (&b"fpcc"[..], &b"fragment"[..]));
        assert!(split_fragment_body(Bytes::from_static(&[5, 0, 0, 0, 1])).is_err());
    }

    const FEW: &[u8] = b"a fragment";

    fn few(name: FragmentName) -> Vec<Operation> {
        let put = Operation::Put { name: name.clone(), fpcc: FEW.into(), fragment: FEW.into() };
        vec![Operation::Has(name.clone()), put, Operation::Get(name.clone()), Operation::Delete(name)]
    }

    #[test]
    fn whatever_the_bytes_a_batch_is_refused_or_comes_back() {
        let valid =
            [few(name("a/\u{fc}", 0)), few(name("00000001-0000000000000002", EVERY_INDEX)), Vec::new()];
        let valid = valid.map(|operations| flat(encode_batch(&operations)).to_vec());
        // The shortest operation has 21 bytes, and its value a hundred.
        let most = |length| 16 * length + 1024;
        let parse = |bytes: &[u8]| decode_batch(Bytes::copy_from_slice(bytes)).ok();
        fuzz("batch", &valid, most, parse, |operations, _| {
            assert_eq!(decode_batch(flat(encode_batch(&operations))), Ok(operations));
        });
    }

    #[test]
    fn whatever_the_bytes_a_batchs_answers_are_refused_or_come_back() {
        let answer = |status, fpcc: &'static [u8]| OperationAnswer {
            status,
            fpcc: Bytes::from_static(fpcc),
            payload: Bytes::from_static(FEW),
        };
        let answers = [answer(200, b"an fpcc"), answer(200, b""), answer(404, b"")];
        let valid = [flat(encode_answers(&answers)).to_vec()];
        let parse = |bytes: &[u8]| decode_answers(Bytes::copy_from_slice(bytes), answers.len()).ok();
        fuzz(
            "batch-answer",
            &valid,
            |length| length + 1024,
            parse,
            |answers, _| {
                assert_eq!(decode_answers(flat(encode_answers(&answers)), answers.len()), Ok(answers));
            },
        );
    }

    #[test]
    fn whatever_the_bytes_a_fragment_body_is_refused_or_is_what_its_parts_make() {
        let valid = [[&fragment_prefix(b"an fpcc")[..], FEW].concat(), fragment_prefix(b"").to_vec()];
        let parse = |bytes: &[u8]| split_fragment_body(Bytes::copy_from_slice(bytes)).ok();
        fuzz(
            "fragment-body",
            &valid,
            |length| length + 256,
            parse,
            |(fpcc, fragment), bytes| {
                assert_eq!([&fragment_prefix(&fpcc)[..], &fragment].concat(), bytes);
            },
        );
    }

    #[test]
    fn whatever_the_text_a_name_is_refused_or_written_the_same() {
        let node = NodeId([0xa5; 16]).to_string();
        let valid = [node, BootId([0x5a; 8]).to_string(), ObjectId { epoch: 7, counter: u64::MAX }.key()];
        let names = |text: &str| {
            let node = text.parse::<NodeId>().ok().map(|id| id.to_string());
            let boot = || text.parse::<BootId>().ok().map(|id| id.to_string());
            node.or_else(boot).or_else(|| text.parse::<ObjectId>().ok().map(|id| id.key()))
        };
        let parse = |bytes: &[u8]| names(std::str::from_utf8(bytes).ok()?);
        let valid = valid.map(String::into_bytes);
        fuzz("names", &valid, |_| 256, parse, |name, bytes| assert_eq!(name.as_bytes(), bytes));
    }
}
