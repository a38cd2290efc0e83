//! Connections to one node for what is large: one exchange under way on each, so that bytes are received in the place
//! where they stay, and sent from where they are. They know nothing of what is exchanged.

use std::io;
use std::time::Duration;

use common::wire::NodeId;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::TransportError;

/// A connection that was idle for longer is not used again: the node's own patience may end.
const IDLE_LIMIT: Duration = Duration::from_secs(10);
/// A node that has no such thing is asked again after so long: it may have been replaced.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(60);

/// Bytes from and to a node.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// The connections to one node that nobody uses now, each good for what its key says.
pub(super) struct Lines<K>(Mutex<State<K>>);

struct State<K> {
    idle: Vec<(Instant, Line<K>)>,
    /// Since when it is known that the node has no such thing.
    without: Option<Instant>,
}

/// What to do with an exchange.
pub(super) enum Turn<K> {
    Use(Line<K>),
    Open,
    /// Make a request of it.
    Request,
}

/// One connection. After an exchange that was given up, or ended with another error than a refusal, nothing may follow.
pub(super) struct Line<K> {
    key: K,
    pub(super) node: NodeId,
    pub(super) stream: Box<dyn Duplex>,
}

impl<K: PartialEq> Lines<K> {
    /// For an exchange under `key`.
    pub(super) fn turn(&self, key: &K) -> Turn<K> {
        let mut state = self.0.lock();
        state.idle.retain(|(since, _)| since.elapsed() < IDLE_LIMIT);
        if let Some(place) = state.idle.iter().rposition(|(_, line)| line.key == *key) {
            return Turn::Use(state.idle.remove(place).1);
        }
        match state.without {
            Some(since) if since.elapsed() < ASK_AGAIN => Turn::Request,
            _ => Turn::Open,
        }
    }

    /// The node has none.
    pub(super) fn refused(&self) {
        self.0.lock().without = Some(Instant::now());
    }

    /// Its exchange is over, and another may follow.
    pub(super) fn give_back(&self, line: Line<K>) {
        self.0.lock().idle.push((Instant::now(), line));
    }
}

impl<K> Default for Lines<K> {
    fn default() -> Self {
        Lines(Mutex::new(State { idle: Vec::new(), without: None }))
    }
}

impl<K> Line<K> {
    /// To the node that answered.
    pub(super) fn over(stream: Box<dyn Duplex>, node: NodeId, key: K) -> Line<K> {
        Line { key, node, stream }
    }
}

/// Why an exchange ended before it was over.
pub(super) fn broken(error: io::Error) -> TransportError {
    TransportError::Unreachable(format!("the connection ended: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(key: u8) -> Line<u8> {
        Line::over(Box::new(tokio::io::duplex(1).0), NodeId([1; 16]), key)
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_idle_for_long_or_is_of_another_key_is_not_used() {
        let lines = Lines::default();
        assert!(matches!(lines.turn(&1), Turn::Open));
        lines.give_back(line(1));
        assert!(matches!(lines.turn(&2), Turn::Open));
        assert!(matches!(lines.turn(&1), Turn::Use(_)) && matches!(lines.turn(&1), Turn::Open));
        lines.give_back(line(1));
        tokio::time::advance(IDLE_LIMIT).await;
        assert!(matches!(lines.turn(&1), Turn::Open) && lines.0.lock().idle.is_empty());
        lines.refused();
        assert!(matches!(lines.turn(&1), Turn::Request));
        tokio::time::advance(ASK_AGAIN).await;
        assert!(matches!(lines.turn(&1), Turn::Open));
    }
}
