//! A longer line to a node, for benchmarks: `avidfs-relay LISTEN TARGET MILLISECONDS` passes on what comes, in each
//! direction half of that later, and holds back nothing else. Ends when it is killed.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// Bytes passed on together at most.
const PIECE: usize = 256 << 10;
/// Pieces on their way at once in one direction; more wait in the sockets.
const ON_THE_WAY: usize = 256;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, target, milliseconds] = arguments.as_slice() else {
        eprintln!("avidfs-relay LISTEN TARGET MILLISECONDS");
        return ExitCode::from(2);
    };
    let Ok(milliseconds) = milliseconds.parse::<u64>() else {
        eprintln!("avidfs-relay: {milliseconds} is no number of milliseconds");
        return ExitCode::from(2);
    };
    let listener = match TcpListener::bind(listen) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("avidfs-relay: {listen}: {error}");
            return ExitCode::FAILURE;
        }
    };
    for near in listener.incoming().flatten() {
        let Ok(far) = TcpStream::connect(target) else { continue };
        let delay = Duration::from_micros(500 * milliseconds);
        for (from, to) in [(&near, &far), (&far, &near)] {
            if let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) {
                pass_on(from, to, delay);
            }
        }
    }
    ExitCode::SUCCESS
}

/// On two threads, until one side ends.
fn pass_on(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let _ = to.set_nodelay(true);
    let (sender, pieces) = sync_channel::<(Instant, Vec<u8>)>(ON_THE_WAY);
    std::thread::spawn(move || {
        let mut buffer = vec![0; PIECE];
        while let Ok(length) = from.read(&mut buffer) {
            if length == 0 || sender.send((Instant::now() + delay, buffer[..length].to_vec())).is_err() {
                break;
            }
        }
    });
    std::thread::spawn(move || {
        for (due, piece) in pieces {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&piece).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
