//! Copies of which nothing is known to be on the disk yet, and the records they were made of.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::record::Position;
use super::segment::Segment;

/// Of each copy, where the record stands that it was made of, for as long as that record's segment is there.
///
/// A copy that is deleted takes its original along, or a start that still finds the segment would bring it back; a copy
/// that is lost, or that no flush covers, is replaced by it.
#[derive(Default)]
pub struct Moves(Mutex<HashMap<Position, Original>>);

/// What a copy was made of.
#[derive(Clone)]
pub struct Original {
    /// Where it stands.
    pub segment: Arc<Segment>,
    /// Its first byte.
    pub offset: u64,
    /// Bytes of the record.
    pub length: u64,
}

impl Original {
    /// Where it stands.
    pub fn position(&self) -> Position {
        Position { segment: self.segment.number, offset: self.offset }
    }
}

impl Moves {
    /// A copy was made. To be called before anybody can find the copy.
    pub fn note(&self, copy: Position, original: Original) {
        self.0.lock().insert(copy, original);
    }

    /// What a copy was made of, no longer to be remembered.
    pub fn take(&self, copy: Position) -> Option<Original> {
        self.0.lock().remove(&copy)
    }

    /// The copies of what a segment holds.
    pub fn out_of(&self, segment: &Segment) -> Vec<(Position, Original)> {
        let moves = self.0.lock();
        let of_it = moves.iter().filter(|(_, original)| original.segment.number == segment.number);
        of_it.map(|(copy, original)| (*copy, original.clone())).collect()
    }

    /// The file of a segment is gone.
    pub fn forget(&self, segment: &Segment) {
        let mut moves = self.0.lock();
        moves.retain(|_, original| original.segment.number != segment.number);
        if moves.is_empty() {
            moves.shrink_to_fit();
        }
    }
}
