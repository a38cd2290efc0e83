//! Nodes that came back with an older disk than they had: what they acknowledged since is gone from them, and is made
//! anew before somebody misses it (volume.md section 7).

use std::collections::BTreeSet;
use std::sync::Arc;

use common::wire::NodeId;

use super::Volume;
use crate::error::Result;
use crate::stripe::Standing;

/// Objects looked at at once.
const PAGE: usize = 1000;

impl Volume {
    /// Find what nodes should have and have not, and note it as lost, so that it is rebuilt. Returns how many fragments.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn make_up_for(self: &Arc<Self>, nodes: &BTreeSet<NodeId>) -> Result<usize> {
        let mut census = self.stripe.census().await;
        let (mut after, mut lost) = (None, 0);
        loop {
            let page = self.metadata.objects(after, PAGE)?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.id);
            for (object, needed) in page {
                if !needed || !self.stripe.has_homes(&object) {
                    continue;
                }
                let held = census.held.remove(&object.id).unwrap_or_default();
                let verdict = self.stripe.judge(&object, &held, &census.answered);
                for (index, standing) in verdict.fragments.iter().enumerate() {
                    match standing {
                        Standing::Missing { should } if nodes.contains(should) => {
                            self.note_loss(object.id, index as u8)?;
                        }
                        Standing::Elsewhere { should, has } if nodes.contains(should) => {
                            self.note_guest(&object, index as u8, *has)?;
                        }
                        _ => continue,
                    }
                    lost += 1;
                }
            }
        }
        self.forget_extents();
        Ok(lost)
    }
}
