//! What nodes were caught at: fragments that contradict the FPCC they were acknowledged under, and what the node said
//! when it was asked about it. Kept in the state folder, a line for each case; it asks nobody itself.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use common::hash::Hash;
use common::wire::{FragmentName, NodeId, NodeKey, Nonce, Signature, VolumeId, holding_statement};
use ed25519_dalek::VerifyingKey;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Name of the file in the state folder.
pub const FILE: &str = "evidence.jsonl";
/// Cases of one node that are kept; more say nothing new.
const MOST: usize = 1000;

/// How a node explained itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It signed that it has the right fragment, having given a wrong one.
    Lied,
    /// It looked, and has no such fragment any more: it had rotted.
    Rotten,
    /// It gave no answer that says either.
    Unexplained,
}

impl Verdict {
    /// As it stands in JSON and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Lied => "lied",
            Verdict::Rotten => "rotten",
            Verdict::Unexplained => "unexplained",
        }
    }
}

/// What a node signed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Signed {
    /// The key it said is its own.
    pub key: NodeKey,
    /// What it was given to sign with the rest.
    pub nonce: Nonce,
    /// Of the holding statement of docs/wire.md.
    pub signature: Signature,
}

/// A fragment that was not what it should be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Case {
    /// When, in seconds since 1970.
    pub at: u64,
    /// Who gave it.
    pub node: NodeId,
    /// Where that node was.
    pub address: String,
    /// The volume.
    pub volume: VolumeId,
    /// The object's key.
    pub object: String,
    /// The object's version.
    pub version: u64,
    /// The fragment's index.
    pub index: u8,
    /// The digest of the FPCC it was acknowledged under, in hex.
    pub fpcc: String,
    /// The hash the FPCC has for it, in hex, if the FPCC is known.
    pub expected: Option<String>,
    /// The hash of what came, in hex.
    pub found: String,
    /// What was wrong, in words.
    pub what: String,
    /// How the node explained itself.
    pub verdict: Verdict,
    /// What it signed, if it did.
    pub signed: Option<Signed>,
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Case(Box<Case>),
    Cleared { cleared: NodeId },
}

/// Everything noted and not cleared.
#[derive(Debug)]
pub struct Evidence {
    path: PathBuf,
    cases: Mutex<Vec<Case>>,
}

impl Signed {
    /// Whether it is the holding statement of this node about this fragment.
    pub fn fits(&self, node: NodeId, volume: Option<VolumeId>, name: &FragmentName, fpcc: &[u8; 32]) -> bool {
        let text = holding_statement(node, self.nonce, volume, name, fpcc);
        let signature = ed25519_dalek::Signature::from_bytes(&self.signature.0);
        let key = VerifyingKey::from_bytes(&self.key.0);
        key.is_ok_and(|key| key.verify_strict(&text, &signature).is_ok())
    }
}

impl Case {
    /// Whether the statement is the node's, of this fragment: then it is proof to everyone who knows the node's key and
    /// believes who noted the case that these bytes came.
    pub fn is_signed(&self) -> bool {
        let (Some(signed), Ok(digest)) = (&self.signed, self.fpcc.parse::<Hash>()) else { return false };
        let name = FragmentName { key: self.object.clone(), version: self.version, index: self.index };
        signed.fits(self.node, Some(self.volume), &name, digest.as_bytes())
    }

    fn is_same(&self, other: &Case) -> bool {
        (self.node, &self.object, self.version, self.index, self.verdict)
            == (other.node, &other.object, other.version, other.index, other.verdict)
    }
}

impl Evidence {
    /// What a state folder has. A line that was cut short by a crash is none.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn open(folder: &Path) -> io::Result<Evidence> {
        let path = folder.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            text => text?,
        };
        let mut cases = Vec::new();
        for line in text.lines().filter_map(|line| serde_json::from_str(line).ok()) {
            match line {
                Line::Case(case) => cases.push(*case),
                Line::Cleared { cleared } => cases.retain(|case: &Case| case.node != cleared),
            }
        }
        Ok(Evidence { path, cases: Mutex::new(cases) })
    }

    /// Note a case, once. Whether it is a new one.
    ///
    /// # Errors
    /// The file cannot be written; it is noted in memory all the same.
    pub fn note(&self, case: Case) -> io::Result<bool> {
        let mut cases = self.cases.lock();
        let of_node = cases.iter().filter(|noted| noted.node == case.node).count();
        if of_node >= MOST || cases.iter().any(|noted| noted.is_same(&case)) {
            return Ok(false);
        }
        cases.push(case.clone());
        self.append(&Line::Case(Box::new(case)))?;
        Ok(true)
    }

    /// The operator has looked into a node: how many cases of it are put aside. They stay in the file.
    ///
    /// # Errors
    /// The file cannot be written, and nothing is put aside.
    pub fn clear(&self, node: NodeId) -> io::Result<usize> {
        let mut cases = self.cases.lock();
        let count = cases.iter().filter(|case| case.node == node).count();
        if count > 0 {
            self.append(&Line::Cleared { cleared: node })?;
            cases.retain(|case| case.node != node);
        }
        Ok(count)
    }

    /// Every case, in the order in which they were noted.
    pub fn cases(&self) -> Vec<Case> {
        self.cases.lock().clone()
    }

    /// Nodes that get nothing new until an operator clears them. Whose disk rots is not among them: it said so.
    pub fn quarantined(&self) -> HashSet<NodeId> {
        let cases = self.cases.lock();
        cases.iter().filter(|case| case.verdict != Verdict::Rotten).map(|case| case.node).collect()
    }

    fn append(&self, line: &Line) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file: File = options.create(true).append(true).mode(0o600).open(&self.path)?;
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        file.write_all(&text)?;
        file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer, SigningKey};

    use super::*;

    fn case(node: u8, index: u8, verdict: Verdict) -> Case {
        Case {
            at: 5,
            node: NodeId([node; 16]),
            address: "http://here".into(),
            volume: VolumeId([7; 16]),
            object: "00000001-0000000000000002".into(),
            version: 1,
            index,
            fpcc: "ab".repeat(32),
            expected: None,
            found: "cd".repeat(32),
            what: "a wrong hash".into(),
            verdict,
            signed: None,
        }
    }

    #[test]
    fn cases_are_noted_once_and_found_again_until_their_node_is_cleared() {
        let folder = tempfile::tempdir().unwrap();
        let evidence = Evidence::open(folder.path()).unwrap();
        assert!(evidence.note(case(1, 0, Verdict::Lied)).unwrap());
        assert!(!evidence.note(Case { at: 9, ..case(1, 0, Verdict::Lied) }).unwrap());
        assert!(evidence.note(case(1, 1, Verdict::Unexplained)).unwrap());
        assert!(evidence.note(case(2, 0, Verdict::Rotten)).unwrap());
        assert_eq!(evidence.quarantined(), HashSet::from([NodeId([1; 16])]));
        let file = folder.path().join(FILE);
        std::fs::write(&file, std::fs::read_to_string(&file).unwrap() + "{\"at\":5,").unwrap();
        let again = Evidence::open(folder.path()).unwrap();
        assert_eq!(again.cases(), evidence.cases());
        assert_eq!((again.clear(NodeId([1; 16])).unwrap(), again.clear(NodeId([3; 16])).unwrap()), (2, 0));
        assert_eq!(again.cases(), [case(2, 0, Verdict::Rotten)]);
    }

    #[test]
    fn what_is_put_aside_stays_so_and_may_be_noted_anew() {
        let folder = tempfile::tempdir().unwrap();
        let evidence = Evidence::open(folder.path()).unwrap();
        evidence.note(case(1, 0, Verdict::Lied)).unwrap();
        evidence.clear(NodeId([1; 16])).unwrap();
        assert_eq!(Evidence::open(folder.path()).unwrap().cases(), []);
        assert!(evidence.note(case(1, 0, Verdict::Lied)).unwrap());
        assert_eq!(Evidence::open(folder.path()).unwrap().cases().len(), 1);
    }

    #[test]
    fn a_statement_counts_only_for_the_fragment_it_was_made_for() {
        let key = SigningKey::from_bytes(&[9; 32]);
        let mut signed = case(1, 3, Verdict::Lied);
        assert!(!signed.is_signed());
        let name = FragmentName { key: signed.object.clone(), version: 1, index: 3 };
        let nonce = Nonce([4; 16]);
        let text = holding_statement(signed.node, nonce, Some(signed.volume), &name, &[0xab; 32]);
        let signature = Signature(key.sign(&text).to_bytes());
        signed.signed = Some(Signed { key: NodeKey(key.verifying_key().to_bytes()), nonce, signature });
        assert!(signed.is_signed());
        assert!(!Case { index: 2, ..signed.clone() }.is_signed());
        assert!(!Case { node: NodeId([2; 16]), ..signed.clone() }.is_signed());
        assert!(!Case { fpcc: "ac".repeat(32), ..signed }.is_signed());
    }
}
