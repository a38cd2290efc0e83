//! The way of written bytes to five processes: cut, encoded, hashed, fingerprinted, sent, verified, appended.
//! One writer at a time.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::spawn;

use avidfs::buffers::{Buffer, Buffers};
use avidfs::stripe::{Coded, encode};
use bytes::Bytes;
use common::code::Code;
use common::hash::HashId;

use crate::node::send;
use crate::reading::Reading;

/// Bytes of a whole object.
pub const OBJECT: usize = 4 << 20;
/// An object up to here is encoded and sent by who waits for it.
const SMALL: usize = 64 << 10;
/// Objects that wait to be encoded, and fragments that wait for one node.
const WAITING: usize = 4;

/// See the module.
pub struct Pipeline {
    state: Mutex<State>,
    reading: Reading,
}

struct State {
    code: Code,
    filling: Buffer,
    objects: SyncSender<Bytes>,
    /// Objects that are not acknowledged yet.
    open: usize,
    /// All objects, and the first of the file that is written.
    sealed: usize,
    first: usize,
    links: Vec<TcpStream>,
    nodes: Vec<Child>,
}

struct Fragment {
    fpcc: Bytes,
    bytes: Bytes,
}

impl Fragment {
    fn send(&self, link: &TcpStream) {
        send(link, &self.fpcc, &self.bytes);
    }
}

impl Pipeline {
    /// With nodes that keep their files below `dir`.
    pub fn start(dir: &Path) -> Pipeline {
        let code = Code::new(3, 2).unwrap();
        let (mut nodes, mut links) = (Vec::new(), Vec::new());
        for index in 0..code.n() {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port().to_string();
            let file = dir.join(format!("node{index}"));
            let node = Command::new(std::env::current_exe().unwrap())
                .arg("node")
                .arg(port)
                .arg(index.to_string())
                .arg(file)
                .spawn();
            nodes.push(node.unwrap());
            let (link, _) = listener.accept().unwrap();
            link.set_nodelay(true).unwrap();
            links.push(link);
        }
        let senders: Vec<SyncSender<Fragment>> =
            links.iter().map(|link| sender_to(link.try_clone().unwrap())).collect();
        let (objects, given) = sync_channel(WAITING);
        spawn(move || encode_all(code, &given, &senders));
        let reading = Reading::over(links.iter().take(code.m()).map(|link| link.try_clone().unwrap()));
        let state =
            State { code, filling: empty(SMALL), objects, open: 0, sealed: 0, first: 0, links, nodes };
        Pipeline { state: Mutex::new(state), reading }
    }

    /// What is written from now on is another file.
    pub fn begin(&self) {
        let mut state = self.state.lock().unwrap();
        state.flush();
        state.first = state.sealed;
    }

    /// The next bytes.
    pub fn write(&self, data: &[u8]) {
        self.state.lock().unwrap().write(data);
    }

    /// Waits until every fragment is acknowledged.
    pub fn flush(&self) {
        self.state.lock().unwrap().flush();
    }

    /// Bytes of the last file, which was written from beginning to end.
    pub fn read(&self, mut range: Range<usize>) -> Vec<Bytes> {
        let (code, first, end) = {
            let state = self.state.lock().unwrap();
            (state.code, state.first, state.sealed)
        };
        let length = code.fragment_length(OBJECT as u64);
        let mut parts = Vec::new();
        while !range.is_empty() {
            let (number, inside) = (range.start / OBJECT, range.start % OBJECT);
            let fragment = self.reading.fragment(first + number, inside / length, end);
            let from = inside % length;
            let taken = range.len().min(OBJECT - inside).min(fragment.len() - from);
            parts.push(fragment.slice(from..from + taken));
            range.start += taken;
        }
        parts
    }
}

impl State {
    fn write(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let (now, rest) = data.split_at(data.len().min(OBJECT - self.filling.len()));
            if self.filling.len() + now.len() > SMALL && self.filling.capacity() < OBJECT {
                let mut larger = empty(self.code.padded_length(OBJECT as u64));
                larger.extend_from_slice(&self.filling);
                self.filling = larger;
            }
            self.filling.extend_from_slice(now);
            data = rest;
            if self.filling.len() == OBJECT {
                let object = self.seal();
                self.objects.send(object).unwrap();
            }
        }
    }

    fn flush(&mut self) {
        if !self.filling.is_empty() {
            let is_alone = self.open == 0 && self.filling.len() <= SMALL;
            let object = self.seal();
            match is_alone {
                true => fragments(self.code, &object).zip(&self.links).for_each(|(one, to)| one.send(to)),
                false => self.objects.send(object).unwrap(),
            }
        }
        let mut answers = vec![0; std::mem::take(&mut self.open)];
        self.links.iter_mut().for_each(|link| link.read_exact(&mut answers).unwrap());
    }

    /// Takes out what is there, filled up to whole fragments.
    fn seal(&mut self) -> Bytes {
        let mut object = std::mem::replace(&mut self.filling, empty(SMALL));
        object.resize(self.code.padded_length(object.len() as u64), 0);
        self.open += 1;
        self.sealed += 1;
        object.freeze()
    }
}

impl Drop for State {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.kill().unwrap();
            node.wait().unwrap();
        }
    }
}

fn empty(capacity: usize) -> Buffer {
    Buffers::shared().take(capacity)
}

/// One object after the other, while those before it are sent.
fn encode_all(code: Code, objects: &Receiver<Bytes>, senders: &[SyncSender<Fragment>]) {
    for object in objects {
        for (fragment, sender) in fragments(code, &object).zip(senders) {
            sender.send(fragment).unwrap();
        }
    }
}

fn fragments(code: Code, object: &Bytes) -> impl Iterator<Item = Fragment> {
    let Coded { fpcc, fragments, .. } = encode(code, HashId::Blake3, object, object.len() as u64);
    fragments.into_iter().map(move |bytes| Fragment { fpcc: fpcc.clone(), bytes })
}

fn sender_to(link: TcpStream) -> SyncSender<Fragment> {
    let (sender, fragments) = sync_channel::<Fragment>(WAITING);
    spawn(move || fragments.into_iter().for_each(|one| one.send(&link)));
    sender
}
