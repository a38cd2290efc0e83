//! Instances in the order in which they came, each once: whoever is over its share loses the oldest.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::word::InstanceId;

/// Instances, the oldest first.
#[derive(Debug, Default)]
pub struct Queue {
    places: HashMap<Arc<InstanceId>, u64>,
    in_order: BTreeMap<u64, Arc<InstanceId>>,
    next: u64,
}

impl Queue {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.in_order.len()
    }

    /// Whether it is there.
    pub fn contains(&self, id: &InstanceId) -> bool {
        self.places.contains_key(id)
    }

    /// One more at the end, unless it is there already.
    pub fn push(&mut self, id: &Arc<InstanceId>) {
        if !self.contains(id) {
            self.places.insert(id.clone(), self.next);
            self.in_order.insert(self.next, id.clone());
            self.next += 1;
        }
    }

    /// Take one out, wherever it is.
    pub fn remove(&mut self, id: &InstanceId) {
        if let Some(place) = self.places.remove(id) {
            self.in_order.remove(&place);
        }
    }

    /// The oldest beyond `most`, taken out.
    pub fn pop_beyond(&mut self, most: usize) -> Option<Arc<InstanceId>> {
        if self.len() <= most {
            return None;
        }
        let (_, oldest) = self.in_order.pop_first()?;
        self.places.remove(&oldest);
        Some(oldest)
    }

    /// Up to `most` that came after the place `after`, beginning anew when there are no more; and the last one's place.
    pub fn turn(&self, after: u64, most: usize) -> (Vec<Arc<InstanceId>>, u64) {
        let rest = self.in_order.range(after..).chain(self.in_order.range(..after));
        let taken: Vec<_> = rest.take(most).collect();
        let place = taken.last().map_or(after, |(place, _)| **place + 1);
        (taken.into_iter().map(|(_, id)| id.clone()).collect(), place)
    }
}
