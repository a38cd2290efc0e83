//! Making a volume's state folder anew from what its pool holds: what is checked before anything is written, and what the
//! person who asked is told.

use ed25519_dalek::VerifyingKey;

use crate::error::Error;
use crate::journal::chain::{Chain, Reader};
use crate::journal::entry::Signed;
use crate::journal::key::{VolumeKey, fingerprint};
use crate::mount::Survey;
use crate::state::Refusal;
use common::code::Code;
use common::hash::HashId;
use common::wire::{VolumeDescriptor, VolumeEntry};

/// Which volume of the pool is meant.
///
/// # Errors
/// The nodes that answer know none of that name, or several and none was named.
pub fn volume_of(survey: &Survey, name: Option<&str>) -> Result<VolumeDescriptor, Refusal> {
    let mut known: Vec<&VolumeDescriptor> = Vec::new();
    let told = survey.answered.iter().flat_map(|hello| &hello.volumes);
    for VolumeEntry { descriptor, .. } in told {
        if name.is_none_or(|name| name == descriptor.name) && !known.contains(&descriptor) {
            known.push(descriptor);
        }
    }
    let silent = silent(survey);
    match (known.as_slice(), name) {
        ([one], _) => Ok((*one).clone()),
        ([], Some(name)) => Err(Refusal(format!("the nodes know no volume {name}{silent}"))),
        ([], None) => Err(Refusal(format!("the nodes know no volume{silent}"))),
        (several, _) => {
            let names: Vec<&str> = several.iter().map(|descriptor| descriptor.name.as_str()).collect();
            Err(Refusal(format!("the nodes know the volumes {}: say which with --volume", names.join(", "))))
        }
    }
}

/// Its code and its hash.
///
/// # Errors
/// What nodes say of them makes no sense.
pub fn shape(descriptor: &VolumeDescriptor) -> Result<(Code, HashId), Refusal> {
    let garbled = |what: &str| Refusal(format!("the nodes say nonsense of the volume's {what}"));
    let code = descriptor.code.parse().map_err(|_| garbled("code"))?;
    Ok((code, descriptor.hash.parse().map_err(|_| garbled("hash"))?))
}

/// Whether enough nodes answer to read anything.
///
/// # Errors
/// They are fewer than m.
pub fn check_enough(survey: &Survey, descriptor: &VolumeDescriptor, m: usize) -> Result<(), Refusal> {
    let knows = |volumes: &[VolumeEntry]| volumes.iter().any(|known| known.descriptor == *descriptor);
    let up = survey.answered.iter().filter(|hello| knows(&hello.volumes)).count();
    if up >= m {
        return Ok(());
    }
    let silent = silent(survey);
    Err(Refusal(format!("{up} nodes of volume {} answer, {m} are needed{silent}", descriptor.name)))
}

/// What is to be said when so few of the nodes that keep the journal answered that nodes that lie could hide its newest
/// entries.
pub fn reduced(answered: usize, code: Code) -> String {
    format!(
        "protection against rollback is reduced: {answered} of the {} nodes that keep the journal answered, and from {} on \
         none of them could hide its newest entries",
        code.n(),
        code.fresh_quorum()
    )
}

fn silent(survey: &Survey) -> String {
    if survey.silent.is_empty() {
        String::new()
    } else {
        format!("; no answer from {}", survey.silent_names())
    }
}

/// What the volume must be signed with.
pub enum Trust {
    /// The volume's own key was given.
    Key(Box<VolumeKey>),
    /// Its public half was given, as its digits.
    Fingerprint(String),
    /// What enough nodes agree on.
    Nodes,
}

impl Trust {
    fn public(&self) -> Option<VerifyingKey> {
        match self {
            Trust::Key(key) => Some(key.public()),
            Trust::Fingerprint(_) | Trust::Nodes => None,
        }
    }

    /// The key to keep in the new state folder.
    pub fn key(self, head: &Signed) -> VolumeKey {
        match self {
            Trust::Key(key) => *key,
            Trust::Fingerprint(_) | Trust::Nodes => VolumeKey::Public(head.public),
        }
    }
}

/// Read the journal, and check that it is the right one.
///
/// # Errors
/// There is none, it has a gap, or somebody else signed it.
pub async fn chain(reader: &Reader, trust: &Trust) -> Result<Chain, Refusal> {
    let chain = match reader.read(trust.public().as_ref()).await {
        Ok(Some(chain)) => chain,
        Ok(None) => return Err(nothing(reader, trust).await),
        // All copies may be good and the key the wrong one.
        Err(error) => return Err(wrong_key(reader, trust).await.unwrap_or_else(|| error.into())),
    };
    match trust {
        Trust::Fingerprint(digits) if *digits != fingerprint(&chain.head().public) => Err(Refusal(format!(
            "the volume is signed with {}, not with {digits}",
            fingerprint(&chain.head().public)
        ))),
        _ => Ok(chain),
    }
}

async fn nothing(reader: &Reader, trust: &Trust) -> Refusal {
    let wrong = wrong_key(reader, trust).await;
    wrong.unwrap_or_else(|| Error::Pool("the nodes hold nothing of the volume's journal".into()).into())
}

async fn wrong_key(reader: &Reader, trust: &Trust) -> Option<Refusal> {
    let public = trust.public()?;
    let other = reader.read(None).await.ok()??.head().public;
    (other != public).then(|| {
        Refusal(format!("this is not the volume's key: the volume is signed with {}", fingerprint(&other)))
    })
}
