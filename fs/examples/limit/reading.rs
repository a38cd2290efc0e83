//! One file from beginning to end: the data fragments of its objects are asked for some objects ahead, and verified.

use std::collections::{HashMap, VecDeque};
use std::io::Read;
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::spawn;

use avidfs::buffers::Buffers;
use bytes::Bytes;
use common::fpcc::Fpcc;

use crate::node::{ask, numbers};

/// Objects that are asked for ahead; as many bytes as avidfs fetches ahead.
const AHEAD: usize = 4;
/// Fragments that are asked for of one node at once.
const AT_ONCE: usize = 2;

/// Fragments that came, by number of the object and index.
#[derive(Default)]
struct Arrived(Mutex<HashMap<(usize, usize), Bytes>>, Condvar);

/// See the module.
pub struct Reading {
    askers: Vec<Sender<usize>>,
    arrived: Arc<Arrived>,
    next: Mutex<usize>,
}

impl Reading {
    /// From those nodes that have data fragments.
    pub fn over(links: impl Iterator<Item = TcpStream>) -> Reading {
        let arrived = Arc::<Arrived>::default();
        let asker = |(index, link)| {
            let (sender, numbers) = channel();
            let arrived = arrived.clone();
            spawn(move || ask_all(&numbers, link, index, &arrived));
            sender
        };
        let askers = links.enumerate().map(asker).collect();
        Reading { askers, arrived, next: Mutex::default() }
    }

    /// A fragment of object `number`, of those before `end`.
    pub fn fragment(&self, number: usize, index: usize, end: usize) -> Bytes {
        self.ask_ahead(number, end);
        let mut arrived = self.arrived.0.lock().unwrap();
        // Two requests of the kernel may be on both sides of an object's end.
        arrived.retain(|(known, _), _| known + 1 >= number);
        let arrived =
            self.arrived.1.wait_while(arrived, |arrived| !arrived.contains_key(&(number, index))).unwrap();
        arrived[&(number, index)].clone()
    }

    fn ask_ahead(&self, number: usize, end: usize) {
        let mut next = self.next.lock().unwrap();
        if number > *next || number + AHEAD + 1 < *next {
            *next = number;
        }
        while *next < end && *next <= number + AHEAD {
            self.askers.iter().for_each(|asker| asker.send(*next).unwrap());
            *next += 1;
        }
    }
}

/// What one node is asked for.
fn ask_all(numbers: &Receiver<usize>, mut link: TcpStream, index: usize, arrived: &Arrived) {
    let mut asked = VecDeque::new();
    loop {
        let number = match asked.len() {
            0 => match numbers.recv() {
                Ok(number) => Some(number),
                Err(_) => return,
            },
            AT_ONCE => None,
            _ => numbers.try_recv().ok(),
        };
        if let Some(number) = number {
            ask(&link, number);
            asked.push_back(number);
            continue;
        }
        let bytes = receive(&mut link, index);
        arrived.0.lock().unwrap().insert((asked.pop_front().unwrap(), index), bytes);
        arrived.1.notify_all();
    }
}

fn receive(link: &mut TcpStream, index: usize) -> Bytes {
    let mut head = [0; 8];
    link.read_exact(&mut head).unwrap();
    let [fpcc_length, length] = numbers(head);
    let mut fpcc = vec![0; fpcc_length as usize];
    link.read_exact(&mut fpcc).unwrap();
    let mut bytes = Buffers::shared().take_dirty_at(head.len() + fpcc.len(), length as usize);
    link.read_exact(bytes.as_mut_slice()).unwrap();
    Fpcc::parse(&fpcc).unwrap().check_bytes(index, &bytes).unwrap();
    bytes.freeze()
}
