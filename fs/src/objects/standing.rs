//! Which nodes to ask last: those that lied, failed or were slow a moment ago.

use std::collections::HashMap;

use common::wire::NodeId;
use parking_lot::Mutex;

/// So many failures a node is remembered for: it may be back by now.
const FAILURES: u32 = 8;
/// A lie weighs as much as so many failures.
const LIE: u32 = 1000;

/// What was lately seen of the nodes.
#[derive(Debug, Default)]
pub(super) struct Standing {
    doubts: Mutex<HashMap<NodeId, u32>>,
}

impl Standing {
    /// It did not answer, or not in time.
    pub(super) fn failed(&self, node: NodeId) {
        if self.doubt(node) < FAILURES {
            self.add(node, 1);
        }
    }

    /// What it gave is not what was asked for.
    pub(super) fn lied(&self, node: NodeId) {
        self.add(node, LIE);
    }

    fn add(&self, node: NodeId, weight: u32) {
        let mut doubts = self.doubts.lock();
        let doubt = doubts.entry(node).or_default();
        *doubt = doubt.saturating_add(weight);
    }

    /// It did what it was asked for; that makes up for a failure, and for no lie in any time that matters.
    pub(super) fn served(&self, node: NodeId) {
        let mut doubts = self.doubts.lock();
        if let Some(doubt) = doubts.get_mut(&node) {
            *doubt -= 1;
            if *doubt == 0 {
                doubts.remove(&node);
            }
        }
    }

    /// 0 if nothing speaks against it.
    pub(super) fn doubt(&self, node: NodeId) -> u32 {
        self.doubts.lock().get(&node).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_made_up_for_and_a_lie_is_not() {
        let (standing, slow, liar) = (Standing::default(), NodeId([1; 16]), NodeId([2; 16]));
        standing.failed(slow);
        standing.lied(liar);
        assert!(standing.doubt(slow) < standing.doubt(liar));
        (0..3).for_each(|_| standing.served(slow));
        (0..3).for_each(|_| standing.served(liar));
        assert_eq!(standing.doubt(slow), 0);
        assert!(standing.doubt(liar) > 0);
    }
}
