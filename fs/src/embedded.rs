//! Nodes inside the mount daemon, on folders below its state folder: a pool for one machine, in one command.

use std::path::Path;
use std::sync::Arc;

use futures_util::future::join_all;
use shardd::{Limits, Store, StoreOptions};

use crate::blocking;
use crate::error::Error;
use crate::host::{self, reason};
use crate::state::Refusal;
use crate::transport::NodeAddress;
use crate::transport::in_process::InProcessTransport;

pub use shardd::raise_file_limit;

/// Nodes inside this process.
pub struct Embedded {
    stores: Vec<Arc<Store>>,
}

impl Embedded {
    /// Open `count` nodes on the folders `0`, `1`, .. below `folder`, made where they are missing.
    ///
    /// They share one disk, so each may fill what it has already and an equal share of what is free; otherwise `df`
    /// would promise the same bytes to each.
    pub fn open(folder: &Path, count: usize) -> Result<Embedded, Refusal> {
        let refused = |error: std::io::Error| Refusal(format!("{}: {}", folder.display(), reason(&error)));
        std::fs::create_dir_all(folder).map_err(refused)?;
        let free = host::free_bytes(folder).map_err(refused)?;
        let open = |k: usize| {
            let data = folder.join(k.to_string());
            let capacity = Some(host::disk_usage(&data) + free / count as u64);
            let options = StoreOptions { capacity, ..StoreOptions::new(&data) };
            Store::open(options).map_err(|error| Refusal(error.to_string()))
        };
        Ok(Embedded { stores: (0..count).map(open).collect::<Result<_, Refusal>>()? })
    }

    /// Where they are.
    pub fn addresses(&self) -> Vec<NodeAddress> {
        (0..self.stores.len()).map(InProcessTransport::address).collect()
    }

    /// How to speak to them.
    pub fn transport(&self) -> Arc<InProcessTransport> {
        let routers = self.stores.iter().map(|store| shardd::app(store.clone(), Limits::default()));
        Arc::new(InProcessTransport::new(routers))
    }

    /// Bring everything to stable storage, and let go of the folders once nothing speaks to the nodes any more.
    pub async fn close(self) {
        // Off the event loop: a flush of the node itself may be under way, and then has to be waited for.
        let close = |store: Arc<Store>| {
            blocking::run(move || store.close().map_err(|error| Error::Host(error.to_string())))
        };
        for closed in join_all(self.stores.into_iter().map(close)).await {
            if let Err(error) = closed {
                tracing::error!(%error, "an embedded node");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn embedded_nodes_share_the_disk_and_keep_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let _entered = runtime.enter();
        let names = |nodes: &Embedded| nodes.stores.iter().map(|store| store.node()).collect::<Vec<_>>();
        let nodes = Embedded::open(folder.path(), 3).unwrap();
        let first = names(&nodes);
        let capacity: u64 = nodes.stores.iter().map(|store| store.usage().capacity_bytes).sum();
        let free = host::free_bytes(folder.path()).unwrap();
        assert!(capacity <= free + (1 << 30), "{capacity} bytes are promised, {free} are free");
        assert_eq!(nodes.addresses().len(), 3);
        runtime.block_on(nodes.close());
        let nodes = Embedded::open(folder.path(), 3).unwrap();
        assert_eq!(names(&nodes), first);
        runtime.block_on(nodes.close());
    }

    #[test]
    fn closing_waits_for_a_flush_that_is_under_way() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        for _ in 0..20 {
            let nodes = runtime.block_on(async { Embedded::open(folder.path(), 1) }).unwrap();
            let store = nodes.stores[0].clone();
            let flushing = Arc::new(AtomicBool::new(true));
            let flusher = std::thread::spawn({
                let flushing = flushing.clone();
                move || {
                    while flushing.load(Ordering::Relaxed) {
                        store.flush_blocking().unwrap()
                    }
                }
            });
            runtime.block_on(nodes.close());
            flushing.store(false, Ordering::Relaxed);
            flusher.join().unwrap();
        }
    }
}
