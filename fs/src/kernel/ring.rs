//! Requests and answers in memory shared with the kernel (Documentation/filesystems/fuse/fuse-io-uring.rst).
//!
//! Each processor has a ring, with places of its own that a request can lie in. A place is, in turn, the kernel's, until
//! a request lies in it, and ours, until it is answered; one system call of the ring's thread gives it back with the
//! answer, and waits for the next request. Answers may come from any thread, but most are written down by the ring's:
//! otherwise one could be written where somebody still reads the request. Where the request has no payload, such as a
//! read, whoever answers writes the payload; the ring's thread would be all that a reader's processor has to copy with.
//!
//! The kernel takes one place after the other, so that all of them come to be touched: few are better than many. A ring has
//! more only once nearly all wait for answers, so that what else its processor asks does not wait with them. What large
//! requests leave in the places of many rings is given back to the system.

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use io_uring::types::SubmitArgs;
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue, types};
use parking_lot::Mutex;

use super::Filesystem;
use super::device::Device;
use super::dispatch::{Header, dispatch};
use super::protocol::{IN_HEADER, OUT_HEADER};
use super::reply::{Head, Way};
use crate::host::{self, Shared, Wake};

/// Places a ring begins with.
const FIRST: usize = 16;
/// Places it may come to have. While all of them wait for an answer, what else this processor asks waits too.
const MOST: usize = 128;
/// With fewer left that wait for requests it gets as many more as it began with. What the kernel has to put aside before
/// they are there waits for an answer all the same.
const SPARE: usize = 4;
/// So many places of the rings of all processors that are there, and two of each at least, may keep what a large request
/// has touched.
const KEPT: usize = 32;
/// From this many bytes a request is large.
const LARGE: usize = 64 << 10;

/// Bytes of struct fuse_uring_req_header, and where its parts are.
const HEADERS: usize = 288;
const OPERATION: usize = 128;
const COMMIT: usize = 256 + 8;
const PAYLOAD_LENGTH: usize = 256 + 16;
/// Room before a payload, where the request's beginning is put, so that it lies in one piece.
const BEFORE: usize = 4096;

/// What the kernel is told of a place.
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;
/// What becomes of a place when the file system is unmounted.
const ENDS: [i32; 3] = [libc::ENOTCONN, libc::ECANCELED, libc::ECONNABORTED];
/// What a completion is of that is no place's.
const WOKEN: u64 = u64::MAX;

/// A processor's ring.
pub(super) struct Ring {
    processor: usize,
    device: Arc<Device>,
    /// Does nothing until its thread turns it on, and is closed before the places are gone.
    uring: Uring,
    places: Places,
    /// Places that may keep what a large request has touched.
    kept: usize,
}

/// Answers that wait for the ring's thread.
#[derive(Debug)]
struct Answers {
    given: Mutex<Vec<Answered>>,
    /// Whether the ring's thread waits, or is about to.
    waits: AtomicBool,
    wake: Wake,
    /// That of the places.
    memory: Shared,
}

#[derive(Debug)]
struct Answered {
    place: usize,
    error: i32,
    payload: Payload,
}

/// What an answer says beyond its header.
#[derive(Debug)]
enum Payload {
    /// This.
    Given(Head, Vec<Bytes>),
    /// So many bytes, which are in the place already.
    Written(usize),
}

/// The right to answer what lies in a place, once.
#[derive(Debug)]
pub(super) struct Place {
    ring: Arc<Answers>,
    place: usize,
    /// Where its payload begins in the memory and how much there is, if the request has none.
    room: Option<Range<usize>>,
}

impl Place {
    pub(super) fn answer(self, error: i32, head: Head, data: Vec<Bytes>) {
        let payload = match &self.room {
            Some(room) if !data.is_empty() => self.write(room, &head, &data),
            _ => None,
        };
        let payload = payload.unwrap_or(Payload::Given(head, data));
        self.ring.given.lock().push(Answered { place: self.place, error, payload });
        // The ring's thread says that it waits before it looks for answers the last time.
        if self.ring.waits.swap(false, Ordering::SeqCst)
            && let Err(error) = self.ring.wake.wake()
        {
            tracing::error!(%error, "an answer waits for the next request");
        }
    }

    /// Write a payload where no request is; `None` if there is no room for it.
    fn write(&self, room: &Range<usize>, head: &Head, data: &[Bytes]) -> Option<Payload> {
        let length = payload_length(head, data);
        if length > room.len() {
            return None;
        }
        // SAFETY: within the memory, which lives as long as `self.ring`. The payload of this place is nobody else's: the
        // kernel has it back only after the answer, this is the one right to give that, and the request is not there.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(self.ring.memory.start().add(room.start), length) };
        copy(bytes, head, data);
        Some(Payload::Written(length))
    }
}

fn payload_length(head: &Head, data: &[Bytes]) -> usize {
    head.bytes().len() + data.iter().map(Bytes::len).sum::<usize>()
}

/// Write a payload into as many bytes as it has.
fn copy(mut bytes: &mut [u8], head: &Head, data: &[Bytes]) {
    for part in [head.bytes()].into_iter().chain(data.iter().map(|part| &part[..])) {
        let (here, behind) = std::mem::take(&mut bytes).split_at_mut(part.len());
        here.copy_from_slice(part);
        bytes = behind;
    }
}

impl Ring {
    /// A ring for each processor this machine can have, which is what the kernel waits for.
    ///
    /// # Errors
    /// io_uring is not to be had here.
    pub(super) fn for_each_processor(device: &Arc<Device>, max_request: u32) -> io::Result<Vec<Ring>> {
        let present = std::thread::available_parallelism().map_or(1, usize::from);
        let made = (0..host::possible_processors()?).map(|processor| {
            let places = Places::new(max_request as usize)?;
            Ok(Ring {
                processor,
                device: device.clone(),
                uring: ring()?,
                places,
                kept: (KEPT / present).max(2),
            })
        });
        made.collect()
    }

    pub(super) fn processor(&self) -> usize {
        self.processor
    }

    /// Answer what comes in the ring until the file system is unmounted. On a thread of its own, which stays on the
    /// processor.
    ///
    /// # Errors
    /// The ring's, or the kernel does not take it.
    pub(super) fn serve(self, fs: &impl Filesystem) -> io::Result<()> {
        // Where it is not there, or not for us, requests of its ring are answered from elsewhere.
        let _ = host::stay_on_processor(self.processor);
        self.uring.submitter().register_enable_rings()?;
        let waiting = if self.uring.params().is_feature_no_iowait() {
            EnterFlags::NO_IOWAIT
        } else {
            EnterFlags::empty()
        };
        let mut serving = Serving { ring: self, pending: Vec::with_capacity(FIRST), waiting };
        serving.begin()?;
        while serving.next(fs)? {}
        Ok(())
    }

    fn submit(&mut self, entry: &squeue::Entry128) -> io::Result<()> {
        loop {
            // SAFETY: what an entry of ours points to, the places and their descriptions, lives as long as the ring.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            passing(self.uring.submit())?;
        }
    }
}

type Uring = IoUring<squeue::Entry128, cqueue::Entry>;

/// For one thread, which also does the kernel's part of the work, when it waits and not in between.
fn ring() -> io::Result<Uring> {
    let completions = (MOST + 2).next_power_of_two() as u32;
    let builder = &mut IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun().setup_r_disabled().setup_cqsize(completions);
    builder.build(2 * FIRST as u32)
}

/// A ring that is served.
struct Serving {
    ring: Ring,
    /// Answers that are being written down.
    pending: Vec<Answered>,
    /// That it waits for requests is no waiting for a disk, which top(1) would show as such.
    waiting: EnterFlags,
}

impl Serving {
    fn begin(&mut self) -> io::Result<()> {
        self.register()?;
        self.listen()
    }

    /// Have more places, if there may be more.
    fn register(&mut self) -> io::Result<()> {
        for place in self.ring.places.more() {
            let described = self.ring.places.described(place);
            let register = command(&self.ring, REGISTER, 0, Some(described));
            self.ring.submit(&register.user_data(place as u64))?;
        }
        Ok(())
    }

    /// Have it completed whenever somebody wakes the thread.
    fn listen(&mut self) -> io::Result<()> {
        let wake = types::Fd(self.ring.places.answers.wake.as_raw_fd());
        let poll = opcode::PollAdd::new(wake, libc::POLLIN as u32).multi(true).build();
        self.ring.submit(&squeue::Entry128::from(poll.user_data(WOKEN)))
    }

    /// Give the kernel what is answered, wait for requests, and ask for their answers; whether there may be more.
    fn next(&mut self, fs: &impl Filesystem) -> io::Result<bool> {
        self.ring.places.shrink(self.ring.kept);
        if self.ring.places.is_short() {
            self.register()?;
        }
        self.ring.places.answers.waits.store(true, Ordering::SeqCst);
        self.give_back()?;
        let submitter = self.ring.uring.submitter();
        passing(submitter.submit_with_args_and_flags(1, &SubmitArgs::new(), self.waiting))?;
        self.ring.places.answers.waits.store(false, Ordering::SeqCst);
        // Each leaves the queue before it is looked at: giving back an answer may complete further ones.
        while let Some((of, result, goes_on)) = self.completed() {
            match (of, result) {
                (WOKEN, _) if goes_on => {}
                (WOKEN, _) => self.listen()?,
                (_, error) if ENDS.contains(&-error) => return Ok(false),
                (place, error) if error < 0 => {
                    let error = io::Error::from_raw_os_error(-error);
                    if !self.ring.places.can_do_without(place as usize) {
                        return Err(error);
                    }
                    tracing::warn!(%error, "the kernel takes no more places of a ring");
                }
                (place, _) => self.ask(fs, place as usize)?,
            }
            // Whoever has his answer need not wait for what others ask.
            if !self.ring.uring.completion().is_empty() && self.give_back()? {
                passing(self.ring.uring.submit())?;
            }
        }
        Ok(true)
    }

    /// What something completed is of, its result, and whether there will be more of it.
    fn completed(&mut self) -> Option<(u64, i32, bool)> {
        let completed = self.ring.uring.completion().next()?;
        Some((completed.user_data(), completed.result(), cqueue::more(completed.flags())))
    }

    fn ask(&mut self, fs: &impl Filesystem, place: usize) -> io::Result<()> {
        let ring = self.ring.places.answers.clone();
        let room = self.ring.places.room(place);
        let request = self.ring.places.request(place);
        let Some(header) = Header::of(request) else { return Err(io::ErrorKind::InvalidData.into()) };
        let answer = Place { ring, place, room };
        dispatch(fs, &header, &request[IN_HEADER..], Way::Ring(answer));
        Ok(())
    }

    /// Write down what was answered, and say so; whether anything was.
    fn give_back(&mut self) -> io::Result<bool> {
        let mut answers = std::mem::take(&mut self.pending);
        std::mem::swap(&mut *self.ring.places.answers.given.lock(), &mut answers);
        let any = !answers.is_empty();
        for answered in answers.drain(..) {
            let place = answered.place;
            self.ring.places.write(answered);
            let request = self.ring.places.request_id(place);
            let commit = command(&self.ring, COMMIT_AND_FETCH, request, None);
            self.ring.submit(&commit.user_data(place as u64))?;
        }
        self.pending = answers;
        Ok(any)
    }
}

/// The places of a ring: of each a page with what the kernel says of a request and the request's beginning, and behind it
/// the payload.
struct Places {
    /// Those that wait; theirs is the memory.
    answers: Arc<Answers>,
    payload: usize,
    /// Of each where its headers and its payload are, for the kernel to read when it is registered.
    described: Vec<[Part; 2]>,
    state: Vec<State>,
    /// How many there are by now, and may be.
    there: usize,
    most: usize,
    /// How many are ours, and how many are touched.
    ours: usize,
    touched: usize,
}

/// struct iovec, of memory that no thread has a special part in.
#[repr(C)]
struct Part {
    start: usize,
    length: usize,
}

#[derive(Clone, Copy, Default)]
struct State {
    is_ours: bool,
    /// A large request or answer lay in it.
    is_touched: bool,
    /// A request lay in it.
    is_used: bool,
}

impl Places {
    fn new(payload: usize) -> io::Result<Places> {
        let stride = BEFORE + payload;
        let memory = Shared::new(MOST * stride)?;
        let described = |place: usize| {
            // Inside the memory: there are so many places.
            let start = memory.start() as usize + place * stride;
            [Part { start, length: HEADERS }, Part { start: start + BEFORE, length: payload }]
        };
        let described = (0..MOST).map(described).collect();
        let answers =
            Answers { given: Mutex::default(), waits: AtomicBool::new(false), wake: Wake::new()?, memory };
        let (answers, state) = (Arc::new(answers), vec![State::default(); MOST]);
        Ok(Places { answers, payload, described, state, there: 0, most: MOST, ours: 0, touched: 0 })
    }

    /// The next places that are to be there.
    fn more(&mut self) -> Range<usize> {
        let from = self.there;
        self.there = self.most.min(from + FIRST);
        from..self.there
    }

    /// Whether more are wanted.
    fn is_short(&self) -> bool {
        self.there < self.most && self.there - self.ours < SPARE
    }

    /// Whether a place that failed came later and never was of use. There will be no more of them.
    fn can_do_without(&mut self, place: usize) -> bool {
        self.most = self.there;
        place >= FIRST && !self.state[place].is_used
    }

    /// What a place is made of.
    fn bytes(&mut self, place: usize) -> &mut [u8] {
        let stride = BEFORE + self.payload;
        // SAFETY: within the memory, which is ours alone while the ring's thread is not inside the kernel: that is where
        // it writes requests and reads answers (IORING_SETUP_DEFER_TASKRUN). Whoever is to answer a request may write the
        // payload of its place; until that is done this is not called for that place.
        unsafe { std::slice::from_raw_parts_mut(self.answers.memory.start().add(place * stride), stride) }
    }

    /// Where in the memory an answer's payload goes, if the request that came has none.
    fn room(&mut self, place: usize) -> Option<Range<usize>> {
        let start = place * (BEFORE + self.payload) + BEFORE;
        let end = start + self.payload;
        (word(self.bytes(place), PAYLOAD_LENGTH) == 0).then_some(start..end)
    }

    /// The request that came to lie in a place, in one piece; nothing if the kernel contradicts itself.
    fn request(&mut self, place: usize) -> &[u8] {
        let most = self.payload;
        let bytes = self.bytes(place);
        let length = word(bytes, 0);
        let payload = word(bytes, PAYLOAD_LENGTH);
        let operation = length.checked_sub(IN_HEADER + payload);
        let Some(operation) = operation.filter(|length| *length <= OPERATION && payload <= most) else {
            return &[];
        };
        bytes.copy_within(OPERATION..OPERATION + operation, BEFORE - operation);
        let start = BEFORE - operation - IN_HEADER;
        bytes.copy_within(..IN_HEADER, start);
        self.state[place].is_ours = true;
        self.state[place].is_used = true;
        self.ours += 1;
        self.touch(place, payload);
        &self.bytes(place)[start..start + length]
    }

    /// Write an answer into the place of its request.
    fn write(&mut self, Answered { place, mut error, payload }: Answered) {
        let most = self.payload;
        let bytes = self.bytes(place);
        let length = match payload {
            Payload::Written(length) => length,
            Payload::Given(head, data) => match payload_length(&head, &data) {
                length if length > most => {
                    tracing::error!(length, "an answer that nobody asked for");
                    error = -libc::EIO;
                    0
                }
                length => {
                    copy(&mut bytes[BEFORE..][..length], &head, &data);
                    length
                }
            },
        };
        // The request's number stays where it is.
        bytes[..4].copy_from_slice(&((OUT_HEADER + length) as u32).to_ne_bytes());
        bytes[4..8].copy_from_slice(&error.to_ne_bytes());
        bytes[PAYLOAD_LENGTH..][..4].copy_from_slice(&(length as u32).to_ne_bytes());
        self.touch(place, length);
        self.state[place].is_ours = false;
        self.ours -= 1;
    }

    fn touch(&mut self, place: usize, length: usize) {
        if length >= LARGE && !self.state[place].is_touched {
            self.state[place].is_touched = true;
            self.touched += 1;
        }
    }

    /// Give what lies untouched by now back to the system, but for so many places. Only when every request that came has
    /// been looked at.
    fn shrink(&mut self, kept: usize) {
        if self.touched <= kept || self.ours > 1 {
            return;
        }
        let stride = BEFORE + self.payload;
        let idle =
            (0..self.there).filter(|place| !self.state[*place].is_ours && self.state[*place].is_touched);
        let idle: Vec<usize> = idle.take(self.touched - kept).collect();
        for place in idle {
            if let Err(error) = self.answers.memory.give_back(place * stride + BEFORE, self.payload) {
                tracing::warn!(%error, "memory of an idle ring stays");
            }
            self.state[place].is_touched = false;
            self.touched -= 1;
        }
    }

    /// Where a place is described: the address of iovecs, and how many.
    fn described(&self, place: usize) -> (u64, u32) {
        let [headers, _] = &self.described[place];
        (std::ptr::from_ref(headers) as u64, 2)
    }

    /// What the kernel calls the request in a place.
    fn request_id(&mut self, place: usize) -> u64 {
        let mut id = [0; 8];
        id.copy_from_slice(&self.bytes(place)[COMMIT..COMMIT + 8]);
        u64::from_ne_bytes(id)
    }
}

fn word(bytes: &[u8], at: usize) -> usize {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(word) as usize
}

/// struct fuse_uring_cmd_req: flags u64, request u64, queue u16; `described` is where a place is.
fn command(ring: &Ring, operation: u32, request: u64, described: Option<(u64, u32)>) -> squeue::Entry128 {
    let mut command = [0; 80];
    command[8..16].copy_from_slice(&request.to_ne_bytes());
    command[16..18].copy_from_slice(&(ring.processor as u16).to_ne_bytes());
    let device = types::Fd(ring.device.file().as_raw_fd());
    let entry = opcode::UringCmd80::new(device, operation).cmd(command);
    let Some((address, count)) = described else { return entry.build() };
    let mut entry = entry.addr(Some(address)).build();
    // The library has no name for the length that goes with an address.
    const LENGTH: usize = 24;
    // SAFETY: an entry is 128 bytes of plain numbers (struct io_uring_sqe), `len` among them.
    unsafe { (&raw mut entry).cast::<u8>().add(LENGTH).cast::<u32>().write_unaligned(count) };
    entry
}

/// Whatever was not taken for want of memory, or because a signal came, is offered again with what comes next.
fn passing(submitted: io::Result<usize>) -> io::Result<()> {
    match submitted {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {
            Ok(())
        }
        submitted => submitted.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYLOAD: usize = 1 << 20;

    /// Those a ring begins with.
    fn places() -> Places {
        let mut places = Places::new(PAYLOAD).unwrap();
        assert_eq!(places.more(), 0..FIRST);
        places
    }

    /// What the kernel does when it puts a request into a place.
    fn put(places: &mut Places, place: usize, operation: &[u8], payload: &[u8]) {
        let length = IN_HEADER + operation.len() + payload.len();
        let bytes = places.bytes(place);
        bytes[..4].copy_from_slice(&(length as u32).to_ne_bytes());
        bytes[4..IN_HEADER].fill(7);
        bytes[OPERATION..][..operation.len()].copy_from_slice(operation);
        bytes[COMMIT..][..8].copy_from_slice(&[9; 8]);
        bytes[PAYLOAD_LENGTH..][..4].copy_from_slice(&(payload.len() as u32).to_ne_bytes());
        bytes[BEFORE..][..payload.len()].copy_from_slice(payload);
    }

    fn answered(place: usize, error: i32, data: Vec<Bytes>) -> Answered {
        let mut head = Head::default();
        head.u32(0x0101_0101);
        Answered { place, error, payload: Payload::Given(head, data) }
    }

    #[test]
    fn a_request_lies_in_one_piece_and_its_answer_in_its_place() {
        let mut places = places();
        put(&mut places, 3, &[1; 24], &[2; 5000]);
        let request = places.request(3).to_vec();
        assert_eq!((request.len(), &request[4..IN_HEADER]), (5064, &[7; 36][..]));
        assert_eq!((&request[40..64], &request[64..]), (&[1; 24][..], &[2; 5000][..]));
        places.write(answered(3, 0, vec![vec![4; 2].into(), vec![5; 3].into()]));
        let bytes = places.bytes(3);
        assert_eq!((word(bytes, 0), word(bytes, 4), word(bytes, PAYLOAD_LENGTH)), (16 + 9, 0, 9));
        assert_eq!((&bytes[8..16], &bytes[BEFORE..][..9]), (&[7; 8][..], &[1, 1, 1, 1, 4, 4, 5, 5, 5][..]));
    }

    #[test]
    fn whoever_answers_writes_where_no_request_is() {
        let mut places = places();
        put(&mut places, 4, &[1; 40], &[2; 9]);
        assert_eq!(places.room(4), None, "what is written may still be looked at");
        put(&mut places, 5, &[1; 40], &[]);
        let place = Place { ring: places.answers.clone(), place: 5, room: places.room(5) };
        let request = places.request(5).to_vec();
        std::thread::spawn(move || {
            place.answer(0, Head::default(), vec![vec![4; 70_000].into(), vec![5].into()])
        })
        .join()
        .unwrap();
        assert_eq!(places.bytes(5)[BEFORE + 69_999..][..2], [4, 5], "at once");
        assert_eq!(places.bytes(5)[BEFORE - 80..BEFORE], request);
        let answered = places.answers.given.lock().pop().unwrap();
        places.write(answered);
        assert_eq!((word(places.bytes(5), PAYLOAD_LENGTH), word(places.bytes(5), 4)), (70_001, 0));
        assert_eq!((places.ours, places.touched), (0, 1));
    }

    #[test]
    fn an_answer_that_is_too_long_is_none() {
        let mut places = places();
        put(&mut places, 0, &[], &[]);
        places.request(0);
        places.write(answered(0, 0, vec![vec![0; PAYLOAD].into()]));
        let bytes = places.bytes(0);
        assert_eq!((word(bytes, 0), word(bytes, PAYLOAD_LENGTH)), (16, 0));
        assert_eq!(word(bytes, 4) as u32 as i32, -libc::EIO);
    }

    #[test]
    fn a_request_that_contradicts_itself_is_none() {
        let mut places = places();
        for (length, payload) in [(39, 0), (40 + 129, 0), (100, 61), (40 + PAYLOAD + 1, PAYLOAD + 1)] {
            put(&mut places, 0, &[], &[]);
            places.bytes(0)[..4].copy_from_slice(&(length as u32).to_ne_bytes());
            places.bytes(0)[PAYLOAD_LENGTH..][..4].copy_from_slice(&(payload as u32).to_ne_bytes());
            assert!(places.request(0).is_empty(), "{length} {payload}");
        }
        assert_eq!(places.ours, 0);
    }

    #[test]
    fn what_large_requests_touched_is_given_back_once_they_are_few() {
        let mut places = places();
        for place in 0..12 {
            put(&mut places, place, &[1; 40], &vec![2; LARGE]);
            places.request(place);
        }
        put(&mut places, 12, &[1; 40], &[2; 4096]);
        places.request(12);
        for place in 0..10 {
            places.write(answered(place, 0, vec![]));
        }
        places.shrink(4);
        assert_eq!(places.touched, 12, "some are ours still");
        (10..13).for_each(|place| places.write(answered(place, 0, vec![])));
        places.shrink(4);
        assert_eq!(places.touched, 4);
        let is_left = |places: &mut Places, place| places.bytes(place)[BEFORE + 100] == 2;
        let left: Vec<usize> = (0..13).filter(|place| is_left(&mut places, *place)).collect();
        assert_eq!(left, [8, 9, 10, 11, 12]);
    }

    #[test]
    fn there_are_more_places_once_few_wait_for_requests() {
        let mut places = places();
        let ask = |places: &mut Places, place| {
            put(places, place, &[1; 40], &[]);
            places.request(place);
        };
        for place in 0..FIRST - SPARE {
            assert!(!places.is_short(), "{place}");
            ask(&mut places, place);
        }
        ask(&mut places, FIRST - SPARE);
        assert!(places.is_short());
        assert_eq!(places.more(), FIRST..2 * FIRST);
        assert!(!places.is_short());
        (0..MOST / FIRST - 2).for_each(|_| assert_eq!(places.more().len(), FIRST));
        (FIRST..MOST).for_each(|place| ask(&mut places, place));
        assert!(!places.is_short() && places.more().is_empty(), "as many as there may be");
    }

    #[test]
    fn a_ring_goes_on_without_places_that_the_kernel_does_not_take() {
        let mut places = places();
        places.more();
        put(&mut places, FIRST + 1, &[1; 40], &[]);
        places.request(FIRST + 1);
        assert!(!places.can_do_without(0) && !places.can_do_without(FIRST + 1));
        assert!(places.can_do_without(FIRST));
        assert!(places.more().is_empty());
    }
}
