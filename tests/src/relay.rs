//! A bad line to a node: a relay of TCP connections that can be slow, narrow, silent, lossy and torn. It knows bytes and sockets,
//! and nothing of what they mean.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

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

/// What all that goes to some nodes shares, as a household's line to the internet does.
pub struct Uplink {
    bytes_per_second: f64,
    /// When the piece that was let in last has passed.
    free: Mutex<Instant>,
    passed: AtomicU64,
}

impl Uplink {
    /// So many bytes a second, whatever the number of connections.
    pub fn new(bytes_per_second: u64) -> Arc<Uplink> {
        let free = Mutex::new(Instant::now());
        Arc::new(Uplink { bytes_per_second: bytes_per_second as f64, free, passed: AtomicU64::new(0) })
    }

    /// Bytes that were sent over it.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    fn pass(&self, bytes: usize) {
        let until = {
            let mut free = locked(&self.free);
            *free =
                (*free).max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
            *free
        };
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        self.passed.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// A relay before one node; the line is good at first.
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    node: SocketAddr,
    line: Mutex<Line>,
    uplink: Option<Arc<Uplink>>,
    dice: Mutex<Dice>,
    closing: AtomicBool,
    /// Both ends of each connection, by its number.
    open: Mutex<HashMap<u64, [TcpStream; 2]>>,
    count: AtomicU64,
}

impl Relay {
    /// Stand in front of a node, listening on `listen`; losses are drawn from the seed.
    pub fn before(node: SocketAddr, listen: SocketAddr, seed: u64) -> Relay {
        Relay::over(None, node, listen, seed)
    }

    /// The same, with what goes to the node going over an uplink that may be that of others, too.
    pub fn over(uplink: Option<Arc<Uplink>>, node: SocketAddr, listen: SocketAddr, seed: u64) -> Relay {
        let listener = TcpListener::bind(listen).unwrap_or_else(|error| panic!("{listen}: {error}"));
        let address = listener.local_addr().expect("it listens");
        let shared = Arc::new(Shared {
            node,
            line: Mutex::default(),
            uplink,
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
            scope.spawn(|| self.pass(&client, &node, self.uplink.as_deref()));
            self.pass(&node, &client, None);
        });
        if let Some(ends) = locked(&self.open).remove(&number) {
            shut(&ends);
        }
        Ok(())
    }

    /// Pass on what one says to the other, until one of them ends it.
    fn pass(&self, mut from: &TcpStream, mut to: &TcpStream, uplink: Option<&Uplink>) {
        let mut piece = vec![0; PIECE];
        loop {
            let read = from.read(&mut piece);
            if let (Some(uplink), Ok(count)) = (uplink, &read) {
                uplink.pass(*count);
            }
            let passed = match read {
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
    fn what_shares_an_uplink_takes_turns() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let uplink = Uplink::new(1 << 20);
        let relay = |seed| {
            let listen = "127.0.0.1:0".parse().unwrap();
            Relay::over(Some(uplink.clone()), listener.local_addr().unwrap(), listen, seed)
        };
        let relays = [relay(1), relay(2)];
        let mut lines = relays.each_ref().map(|relay| {
            let client = TcpStream::connect(relay.address()).unwrap();
            (client, listener.accept().unwrap().0)
        });
        let mut heard = vec![0; 64 << 10];
        let ((), time) = timed(|| {
            lines.iter_mut().for_each(|(client, _)| client.write_all(&[7; 64 << 10]).unwrap());
            lines.iter_mut().for_each(|(_, node)| node.read_exact(&mut heard).unwrap());
        });
        assert!(time >= Duration::from_millis(120), "{time:?}");
        assert_eq!(uplink.passed(), 128 << 10);
        let (_, time) = timed(|| say(&mut lines[0].1, &mut lines[0].0).unwrap());
        assert!(time < Duration::from_millis(100), "nothing is narrow the other way: {time:?}");
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
