//! Which node is home to which fragment: rendezvous hashing over the nodes of a configuration.
//! Pure functions of identities; they know nothing of who is up.
//!
//! Homes are computed and not recorded, so what [`weight`] yields is a format: it never changes for a configuration
//! that exists. Zones are not looked at: they would have to be recorded with the configuration first.

use common::wire::{NodeId, ObjectId};

/// Every node once, the ones that suit the object best first. The order of `nodes` does not matter.
pub fn by_preference(nodes: &[NodeId], object: ObjectId) -> Vec<NodeId> {
    let mut ranked: Vec<(u64, NodeId)> =
        nodes.iter().map(|&node| (weight(node, object, WHOLE_OBJECT), node)).collect();
    ranked.sort_unstable_by(|a, b| b.cmp(a));
    ranked.into_iter().map(|(_, node)| node).collect()
}

/// The home of each of the object's `count` fragments: one node each, the `count` best.
///
/// When one node of many is replaced, few fragments of the others change their home: each pair of node and index has
/// a weight of its own, and the heaviest pairs are taken first.
/// Panics when there are fewer nodes than fragments; no such configuration is ever made.
pub fn homes(nodes: &[NodeId], object: ObjectId, count: usize) -> Vec<NodeId> {
    assert!(nodes.len() >= count, "{} nodes cannot be home to {count} fragments, one each", nodes.len());
    let mut best = by_preference(nodes, object);
    best.truncate(count);
    let pairs = best.iter().flat_map(|&node| (0..count).map(move |index| (node, index)));
    let mut pairs: Vec<(u64, NodeId, usize)> =
        pairs.map(|(node, index)| (weight(node, object, index as u64), node, index)).collect();
    pairs.sort_unstable_by(|a, b| b.cmp(a));
    let mut homes: Vec<Option<NodeId>> = vec![None; count];
    for (_, node, index) in pairs {
        if homes[index].is_none() && !homes.contains(&Some(node)) {
            homes[index] = Some(node);
        }
    }
    homes.into_iter().map(|home| home.expect("as many nodes as fragments")).collect()
}

/// In the place of an index: the weight that decides whether a node gets a fragment at all.
const WHOLE_OBJECT: u64 = u64::MAX;

fn weight(node: NodeId, object: ObjectId, index: u64) -> u64 {
    let (high, low) = node.0.split_at(8);
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("half of 16 bytes"));
    [word(high), word(low), u64::from(object.epoch), object.counter, index]
        .into_iter()
        .fold(0, |state, word| mix(state.wrapping_add(0x9E37_79B9_7F4A_7C15) ^ word))
}

/// The finalizer of SplitMix64: every bit of the input changes about half of the output.
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn nodes(count: u8) -> Vec<NodeId> {
        (0..count).map(|number| NodeId([number + 1; 16])).collect()
    }

    fn objects(count: u64) -> impl Iterator<Item = ObjectId> {
        (0..count).map(|counter| ObjectId { epoch: 3, counter })
    }

    #[test]
    fn every_fragment_has_a_home_of_its_own() {
        for (pool, count) in [(5, 5), (7, 5), (2, 2), (24, 24), (40, 14)] {
            for object in objects(50) {
                let mut homes = homes(&nodes(pool), object, count);
                homes.sort();
                homes.dedup();
                assert_eq!(homes.len(), count);
            }
        }
    }

    #[test]
    fn homes_do_not_depend_on_the_order_of_the_nodes() {
        let mut reversed = nodes(9);
        reversed.reverse();
        for object in objects(100) {
            assert_eq!(homes(&nodes(9), object, 5), homes(&reversed, object, 5));
        }
    }

    /// Data fragments serve the reads, parity fragments do not: each index is spread by itself.
    #[test]
    fn every_index_is_spread_evenly_over_the_nodes() {
        for (pool, count) in [(5, 5), (12, 5), (14, 14)] {
            let mut held: HashMap<(NodeId, usize), u32> = HashMap::new();
            for object in objects(30_000) {
                for (index, node) in homes(&nodes(pool), object, count).into_iter().enumerate() {
                    *held.entry((node, index)).or_default() += 1;
                }
            }
            let expected = 30_000.0 / f64::from(pool);
            for ((node, index), found) in held {
                let off = (f64::from(found) - expected).abs() / expected;
                assert!(off < 0.1, "{node} holds fragment {index} of {found} objects instead of {expected}");
            }
        }
    }

    #[test]
    fn one_more_node_takes_only_its_share() {
        let (before, after) = (nodes(10), nodes(11));
        let mut moved_nodes = 0;
        let mut moved_indices = 0;
        for object in objects(5_000) {
            let (old, new) = (homes(&before, object, 5), homes(&after, object, 5));
            let newcomers = new.iter().filter(|node| !old.contains(node)).count();
            assert!(newcomers <= 1);
            moved_nodes += newcomers;
            moved_indices += old.iter().zip(&new).filter(|(a, b)| a != b).count();
        }
        let share = 5_000.0 * 5.0 / 11.0;
        assert!((moved_nodes as f64) < 1.1 * share, "{moved_nodes} fragments came to the new node");
        assert!((moved_indices as f64) < 1.8 * share, "{moved_indices} fragments changed their home");
    }

    /// Homes are not recorded, so a changed hash would lose every object.
    #[test]
    fn weights_are_a_format() {
        let node = NodeId([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
        let object = ObjectId { epoch: 7, counter: 0x0123_4567_89AB_CDEF };
        assert_eq!(weight(node, object, 0), 0);
        assert_eq!(weight(node, object, WHOLE_OBJECT), 0);
    }
}
