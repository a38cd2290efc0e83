//! What the kernel is told without having asked.

use std::io;
use std::sync::Arc;

use super::device::Device;
use super::protocol::NOTIFY_INVAL_INODE;

/// Tells it. The kernel may ask something before it takes a notice, so no thread that takes requests may do so.
#[derive(Clone, Debug)]
pub struct Notifier(Arc<Device>);

impl Notifier {
    pub(super) fn new(device: Arc<Device>) -> Notifier {
        Notifier(device)
    }

    /// The attributes of an inode are no longer what it was told; its content is.
    ///
    /// # Errors
    /// `NotFound` if the kernel has forgotten it.
    pub fn attributes_changed(&self, node: u64) -> io::Result<()> {
        let mut body = [0; 24];
        body[..8].copy_from_slice(&node.to_ne_bytes());
        // An offset below 0 is that of attributes alone.
        body[8..16].copy_from_slice(&(-1i64).to_ne_bytes());
        self.0.notify(NOTIFY_INVAL_INODE, &body)
    }
}
