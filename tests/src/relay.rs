//! A bad line to a node: a relay of TCP connections that can be slow, silent, lossy and torn. It knows bytes and sockets,
//! and nothing of what they mean.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::seed::Dice;

/// Bytes that are passed on, and held up, together.
const PIECE: usize = 64 << 10;
/// For how long a piece is held up that was lost: the least after which Linux sends again (TCP_RTO_MIN).
const SENT_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// Between looks at whether a silent line speaks again.
const LOOK: Duration = Duration::from_millis(10);
/// Until the node takes a connection; whoever connected waits meanwhile.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// How a line is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Line {
    /// How late each piece comes, in each direction. One at a time, so that a late line is a narrow one too.
    pub delay: Duration,
    /// Of a hundred pieces so many are lost, and come when they were sent again.
    pub loss_percent: u64,
    /// Of a hundred pieces so many tear their connection.
    pub tear_percent: u64,
    /// Nothing comes through, and nobody is told.
    pub is_silent: bool,
}

/// A relay before one node; the line is good at first.
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    node: SocketAddr,
    line: Mutex<Line>,
    dice: Mutex<Dice>,
    closing: AtomicBool,
    /// Both ends of each connection, by its number.
    open: Mutex<HashMap<u64, [TcpStream; 2]>>,
    count: AtomicU64,
}

impl Relay {
    /// Stand in front of a node, listening on `listen`; losses are drawn from the seed.
    pub fn before(node: SocketAddr, listen: SocketAddr, seed: u64) -> Relay {
        let listener = TcpListener::bind(listen).unwrap_or_else(|error| panic!("{listen}: {error}"));
        let address = listener.local_addr().expect("it listens");
        let shared = Arc::new(Shared {
            node,
            line: Mutex::default(),
            dice: Mutex::new(Dice::new(seed)),
            closing: AtomicBool::new(false),
            open: Mutex::default(),
            count: AtomicU64::new(0),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || accept(&listener, &accepting));
        Relay { address, shared }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From the next piece on.
    pub fn set(&self, line: Line) {
        *locked(&self.shared.line) = line;
    }

    /// End all connections.
    pub fn tear(&self) {
        locked(&self.shared.open).drain().for_each(|(_, ends)| shut(&ends));
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Relaxed);
        self.tear();
        // The accepting thread sees `closing` when somebody knocks.
        let _ = TcpStream::connect(self.address);
    }
}

/// Nothing is left half done under these locks.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn shut(ends: &[TcpStream; 2]) {
    for end in ends {
        let _ = end.shutdown(Shutdown::Both);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming().flatten() {
        if shared.closing.load(Ordering::Relaxed) {
            return;
        }
        let shared = shared.clone();
        std::thread::spawn(move || {
            // An error is the end of the connection, which both sides see.
            let _ = shared.join(client);
        });
    }
}

impl Shared {
    fn join(&self, client: TcpStream) -> io::Result<()> {
        self.wait_while_silent();
        let node = TcpStream::connect_timeout(&self.node, CONNECT_LIMIT)?;
        for end in [&client, &node] {
            end.set_nodelay(true)?;
        }
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let ends = [client.try_clone()?, node.try_clone()?];
        locked(&self.open).insert(number, ends);
        std::thread::scope(|scope| {
            scope.spawn(|| self.pass(&client, &node));
            self.pass(&node, &client);
        });
        if let Some(ends) = locked(&self.open).remove(&number) {
            shut(&ends);
        }
        Ok(())
    }

    /// Pass on what one says to the other, until one of them ends it.
    fn pass(&self, mut from: &TcpStream, mut to: &TcpStream) {
        let mut piece = vec![0; PIECE];
        loop {
            let passed = match from.read(&mut piece) {
                Ok(0) => break to.shutdown(Shutdown::Write).unwrap_or_default(),
                Ok(count) if self.let_through() => to.write_all(&piece[..count]),
                Ok(_) => Err(io::ErrorKind::ConnectionReset.into()),
                Err(error) => Err(error),
            };
            if passed.is_err() {
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
                break;
            }
        }
    }

    /// Hold a piece up as the line has it; false when it tears.
    fn let_through(&self) -> bool {
        self.wait_while_silent();
        let line = *locked(&self.line);
        let falls = |percent| percent > 0 && locked(&self.dice).chance(percent);
        let lost = if falls(line.loss_percent) { SENT_AGAIN_AFTER } else { Duration::ZERO };
        std::thread::sleep(line.delay + lost);
        !falls(line.tear_percent)
    }

    fn wait_while_silent(&self) {
        while locked(&self.line).is_silent && !self.closing.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timed;

    /// A connection through a relay, and the other end of it.
    fn connection() -> (Relay, TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Relay::before(listener.local_addr().unwrap(), "127.0.0.1:0".parse().unwrap(), 1);
        let client = TcpStream::connect(relay.address()).unwrap();
        let (node, _) = listener.accept().unwrap();
        (relay, client, node)
    }

    fn say(from: &mut TcpStream, to: &mut TcpStream) -> io::Result<u8> {
        let mut heard = [0];
        from.write_all(&[7])?;
        to.read_exact(&mut heard)?;
        Ok(heard[0])
    }

    #[test]
    fn a_late_or_lossy_line_delivers_late() {
        let (relay, mut client, mut node) = connection();
        assert_eq!(say(&mut client, &mut node).unwrap(), 7);
        let late = Duration::from_millis(60);
        relay.set(Line { delay: late, ..Line::default() });
        let (said, time) = timed(|| say(&mut node, &mut client));
        assert!(said.unwrap() == 7 && time >= late, "{time:?}");
        relay.set(Line { loss_percent: 100, ..Line::default() });
        let (said, time) = timed(|| say(&mut client, &mut node));
        assert!(said.unwrap() == 7 && time >= SENT_AGAIN_AFTER, "{time:?}");
    }

    #[test]
    fn a_silent_line_says_nothing_until_it_speaks_again() {
        let (relay, mut client, mut node) = connection();
        relay.set(Line { is_silent: true, ..Line::default() });
        node.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert!(say(&mut client, &mut node).is_err());
        relay.set(Line::default());
        node.set_read_timeout(None).unwrap();
        assert_eq!(say(&mut client, &mut node).unwrap(), 7);
    }

    #[test]
    fn a_torn_line_ends_for_both() {
        let (relay, mut client, mut node) = connection();
        relay.set(Line { tear_percent: 100, ..Line::default() });
        assert!(say(&mut client, &mut node).is_err());
        assert!(!matches!(client.read(&mut [0]), Ok(1..)));
        let (relay, mut client, mut node) = connection();
        assert_eq!(say(&mut client, &mut node).unwrap(), 7);
        relay.tear();
        assert!(!matches!(client.read(&mut [0]), Ok(1..)));
        assert!(!matches!(node.read(&mut [0]), Ok(1..)));
    }
}
