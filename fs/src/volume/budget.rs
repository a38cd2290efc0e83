//! The bound on bytes that are written and not yet stored.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Bytes that may be taken, and given back.
pub struct Budget {
    limit: u64,
    used: Mutex<u64>,
    given: Notify,
}

impl Budget {
    /// `limit` bytes in all; one request larger than that passes when nothing else is held.
    pub fn new(limit: u64) -> Budget {
        Budget { limit, used: Mutex::new(0), given: Notify::new() }
    }

    /// Bytes held now.
    pub fn used(&self) -> u64 {
        *self.used.lock()
    }

    /// Take bytes if there are enough.
    pub fn try_take(&self, bytes: u64) -> bool {
        let mut used = self.used.lock();
        if *used > 0 && *used + bytes > self.limit {
            return false;
        }
        *used += bytes;
        true
    }

    /// Take bytes that are there already, whatever the limit.
    pub fn charge(&self, bytes: u64) {
        *self.used.lock() += bytes;
    }

    /// Wait for bytes; false if there are not enough within `limit`.
    pub async fn take(&self, bytes: u64, limit: Duration) -> bool {
        let wait = async {
            loop {
                let given = self.given.notified();
                tokio::pin!(given);
                given.as_mut().enable();
                if self.try_take(bytes) {
                    return;
                }
                given.await;
            }
        };
        tokio::time::timeout(limit, wait).await.is_ok()
    }

    /// Give bytes back.
    pub fn give(&self, bytes: u64) {
        if bytes > 0 {
            let mut used = self.used.lock();
            *used = used.checked_sub(bytes).expect("no more bytes come back than were taken");
            drop(used);
            self.given.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_full_budget_waits_and_gives_up_in_time() {
        let budget = Budget::new(10);
        assert!(budget.try_take(8) && !budget.try_take(3));
        assert!(!budget.take(3, Duration::from_secs(1)).await);
        budget.give(8);
        assert!(budget.take(30, Duration::from_secs(1)).await, "one large request passes alone");
    }
}
