//! The parts that the journal and snapshots need. A signed entry says for good where the fragments of its parts were when it
//! was written; here is where they are.

use std::collections::BTreeMap;

use common::wire::ObjectId;

use crate::metadata::{Exception, ObjectRecord};

/// See the module.
#[derive(Default)]
pub(super) struct Parts(BTreeMap<ObjectId, ObjectRecord>);

impl Parts {
    /// These are needed, and no others. What is known already stays as it is known.
    pub(super) fn keep<'p>(&mut self, needed: impl Iterator<Item = &'p ObjectRecord>) {
        let mut before = std::mem::take(&mut self.0);
        for part in needed {
            self.0.entry(part.id).or_insert_with(|| before.remove(&part.id).unwrap_or_else(|| part.clone()));
        }
    }

    /// What of one is not at home now. False if it is not needed.
    pub(super) fn revise(&mut self, id: ObjectId, exceptions: &[Exception]) -> bool {
        let Some(part) = self.0.get_mut(&id) else { return false };
        part.exceptions = exceptions.to_vec();
        true
    }

    pub(super) fn get(&self, id: ObjectId) -> Option<&ObjectRecord> {
        self.0.get(&id)
    }

    /// Ascending.
    pub(super) fn all(&self) -> impl Iterator<Item = &ObjectRecord> {
        self.0.values()
    }
}

#[cfg(test)]
mod tests {
    use common::hash::Hash;

    use super::*;

    fn part(counter: u64) -> ObjectRecord {
        ObjectRecord {
            id: ObjectId { epoch: 1, counter },
            length: 100,
            fpcc: Hash::from([8; 32]),
            code: "3+2".parse().unwrap(),
            configuration: 1,
            exceptions: vec![Exception { index: 0, node: None }],
        }
    }

    #[test]
    fn what_was_learned_of_a_part_stays_while_something_needs_it() {
        let mut parts = Parts::default();
        let all = [part(1), part(2)];
        // The journal and a snapshot may need the same.
        parts.keep(all.iter().chain(&all));
        assert!(parts.revise(all[0].id, &[]));
        parts.keep(all.iter().chain(&all));
        assert_eq!(parts.get(all[0].id), Some(&ObjectRecord { exceptions: Vec::new(), ..part(1) }));
        assert_eq!(parts.get(all[1].id), Some(&part(2)));
        parts.keep(all[1..].iter());
        assert!(!parts.revise(all[0].id, &[]));
        assert_eq!(parts.all().collect::<Vec<_>>(), [&part(2)]);
    }
}
