//! What a volume may look like, as plain values: every state since the last one that is durable for sure.
//!
//! Names change in transactions, each of which is a state; after a crash one of the states must be there, none older
//! than the last fsync. Bytes of a file are each what they were in some version since the file's last fsync, and its
//! length too: writes may be lost or kept, but nothing comes from elsewhere and nothing from before.

use std::collections::BTreeMap;

use avidfs::inode::Ino;

/// Names a file of the model; inode numbers may be given again to files that were never durable.
pub type FileId = usize;

/// What a path names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Node {
    Directory(Ino),
    File(FileId),
}

/// Paths of at most two names, and what they name.
pub type Tree = BTreeMap<String, Node>;

/// See the module.
#[derive(Clone, Default)]
pub struct Model {
    files: Vec<File>,
    /// By age; the last is the present.
    states: Vec<Tree>,
    /// The oldest that a crash may bring back.
    floor: usize,
    /// Nodes that lost power since then.
    power_losses: usize,
}

#[derive(Clone)]
struct File {
    ino: Ino,
    versions: Vec<Vec<u8>>,
    /// Of the versions, the first that may be seen after anything.
    durable: usize,
    /// And after a crash of the daemon alone.
    stored: usize,
}

/// What may have been lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loss {
    /// What the daemon had in memory.
    Memory,
    /// Also changes of the metadata that were not in the pool, and bytes that no fsync covered.
    Unshipped,
}

impl Model {
    pub fn new() -> Model {
        Model { states: vec![Tree::new()], ..Model::default() }
    }

    pub fn tree(&self) -> &Tree {
        self.states.last().expect("there is a present")
    }

    pub fn change(&mut self, change: impl FnOnce(&mut Tree) -> Option<Node>) {
        let mut tree = self.tree().clone();
        change(&mut tree);
        self.states.push(tree);
    }

    pub fn new_file(&mut self, ino: Ino) -> FileId {
        self.files.push(File { ino, versions: vec![Vec::new()], durable: 0, stored: 0 });
        self.files.len() - 1
    }

    pub fn ino(&self, file: FileId) -> Ino {
        self.files[file].ino
    }

    pub fn bytes(&self, file: FileId) -> &[u8] {
        self.files[file].versions.last().expect("there is a present")
    }

    pub fn write(&mut self, file: FileId, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.bytes(file).to_vec();
        change(&mut bytes);
        self.files[file].versions.push(bytes);
    }

    /// The last change did not happen; that it did not is its newest version.
    pub fn undo(&mut self, file: FileId) {
        let before = self.files[file].versions.len() - 2;
        let bytes = self.files[file].versions[before].clone();
        self.files[file].versions.push(bytes);
    }

    /// The file's bytes are on nodes, and in the metadata.
    pub fn stored(&mut self, file: FileId) {
        let file = &mut self.files[file];
        file.stored = file.versions.len() - 1;
    }

    /// The file's bytes and all names are durable.
    pub fn synced(&mut self, file: FileId) {
        self.stored(file);
        self.files[file].durable = self.files[file].stored;
        self.names_synced();
    }

    pub fn names_synced(&mut self) {
        self.floor = self.states.len() - 1;
        self.power_losses = 0;
    }

    /// Everything is on nodes, or kept to be brought there.
    pub fn all_stored(&mut self) {
        (0..self.files.len()).for_each(|file| self.stored(file));
    }

    /// A node lost power: what is stored and not flushed counts no more once the daemon is gone too.
    pub fn unflushed_may_be_lost(&mut self) {
        self.power_losses += 1;
        self.files.iter_mut().for_each(|file| file.stored = file.durable);
    }

    /// Whether the tree found after a crash, as inodes by path, is a state that may be there; it is the present then.
    pub fn adopt_tree(&mut self, found: &BTreeMap<String, Ino>, loss: Loss) -> Result<(), String> {
        // Names survive the end of the daemon with one node's unflushed fragments. With more of them an object may be
        // gone, and the changes that no fsync covered go with it.
        let back = loss == Loss::Unshipped || self.power_losses > 1;
        let oldest = if back { self.floor } else { self.states.len() - 1 };
        let is_found = |tree: &Tree| {
            let inos = tree.iter().map(|(path, node)| (path, self.ino_of(*node)));
            inos.eq(found.iter().map(|(path, ino)| (path, *ino)))
        };
        let place = (oldest..self.states.len()).rev().find(|place| is_found(&self.states[*place]));
        let Some(place) = place else {
            let allowed: Vec<_> = self.states[oldest..].iter().map(|tree| self.shown(tree)).collect();
            return Err(format!("the tree is {found:?}, and none of\n{}", allowed.join("\n")));
        };
        self.states.truncate(place + 1);
        self.power_losses = 0;
        Ok(())
    }

    fn ino_of(&self, node: Node) -> Ino {
        match node {
            Node::Directory(ino) => ino,
            Node::File(file) => self.ino(file),
        }
    }

    fn shown(&self, tree: &Tree) -> String {
        let inos: BTreeMap<_, _> = tree.iter().map(|(path, node)| (path, self.ino_of(*node))).collect();
        format!("{inos:?}")
    }

    /// Whether a file's bytes found after a crash may be there; they are its present then.
    pub fn adopt_bytes(&mut self, file: FileId, found: Vec<u8>, loss: Loss) -> Result<(), String> {
        let File { versions, durable, stored, .. } = &mut self.files[file];
        let oldest = if loss == Loss::Memory { *stored } else { *durable };
        let allowed = &versions[oldest..];
        // A write that is longer than an object is stored in several, one after the other.
        let grew = |pair: &[Vec<u8>]| (pair[0].len()..pair[1].len()).contains(&found.len());
        if !allowed.windows(2).any(grew) && !allowed.iter().any(|version| version.len() == found.len()) {
            let lengths: Vec<_> = allowed.iter().map(Vec::len).collect();
            return Err(format!("it has {} bytes, and never had since: {lengths:?}", found.len()));
        }
        for (at, byte) in found.iter().enumerate() {
            if !allowed.iter().any(|version| version.get(at).unwrap_or(&0) == byte) {
                return Err(format!("byte {at} of {} is of no version since {oldest}", found.len()));
            }
        }
        if versions.last() != Some(&found) {
            versions.push(found);
        }
        *stored = *durable;
        Ok(())
    }
}
