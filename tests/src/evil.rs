//! Which nodes lie, and how: for the tests of volumes and of the object store.

use crate::seed::{Dice, is_soak};

/// Ways to lie about fragments and names, as `shardd --evil` knows them.
pub const MODES: [&str; 10] = [
    "flip",
    "stale",
    "swap",
    "withhold",
    "slow",
    "drop-after-ack",
    "garbage-http",
    "oversize",
    "wrong-length",
    "replay",
];

/// Ways to lie about what nodes agree on.
pub const MODES_OF_AGREEMENT: [&str; 2] = ["equivocate", "lie-about-verified"];

/// Codes with more nodes than 2+2 and 3+2, how many those are, and how many of them may do anything.
pub const LARGER: [(&str, usize, u32); 4] = [("4+2", 6, 1), ("6+3", 9, 1), ("10+4", 14, 2), ("16+8", 24, 4)];

/// All sets of so many nodes in the long form, otherwise one.
pub fn subsets(nodes: usize, size: u32, dice: &mut Dice) -> Vec<Vec<usize>> {
    let all = (0u32..1 << nodes).filter(|set| set.count_ones() == size);
    let all: Vec<Vec<usize>> =
        all.map(|set| (0..nodes).filter(|node| set >> node & 1 == 1).collect()).collect();
    if is_soak() { all } else { vec![dice.pick(&all).clone()] }
}

/// So many of the nodes, drawn.
pub fn some(nodes: usize, size: u32, dice: &mut Dice) -> Vec<usize> {
    let mut left: Vec<usize> = (0..nodes).collect();
    (0..size).map(|_| left.swap_remove(dice.below(left.len() as u64) as usize)).collect()
}

/// All of these modes in the long form, otherwise one.
pub fn modes<'m>(all: &[&'m str], dice: &mut Dice) -> Vec<&'m str> {
    if is_soak() { all.to_vec() } else { vec![*dice.pick(all)] }
}
