//! A mount from its first request, in which kernel and daemon agree, to its last.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread;

use super::Filesystem;
use super::device::Device;
use super::dispatch::{Fields, Header, dispatch};
use super::notice::Notifier;
use super::protocol::{IN_HEADER, MAJOR, MINOR, OLDEST_MINOR, agree, opcode};
use super::reply::{Head, Way};
use super::ring::Ring;
use crate::host;

/// Room for a request beyond the bytes of a write.
const BESIDES: usize = 4096;

/// What kernel and daemon agree on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Agreement {
    /// What is wished for, of `agree`; what an older kernel lacks is left out.
    pub flags: u64,
    /// Bytes that are read or written at once, at most: whole pages.
    pub max_request: u32,
    /// Requests of the kernel's own that may be under way at once, such as those that read ahead.
    pub max_background: u16,
    /// Threads that take requests from the device, if they do not come in rings.
    pub threads: usize,
    /// Whether requests may come in rings, where the kernel can.
    pub rings: bool,
}

/// What a thread does until the file system is unmounted.
type Serve<F> = Box<dyn FnOnce(&F) -> io::Result<()> + Send>;

/// A mount that is agreed on and not yet served.
pub struct Session<F> {
    fs: Arc<F>,
    device: Arc<Device>,
    agreement: Agreement,
    /// One for each processor; none if requests come from the device.
    rings: Vec<Ring>,
}

impl<F: Filesystem> Session<F> {
    /// Agree with the kernel on a mount from this device; the file system is made of what tells the kernel things.
    ///
    /// # Errors
    /// The device's; `NotConnected` if it is unmounted before; `Unsupported` if the kernel is too old.
    pub fn begin(
        device: OwnedFd,
        fs: impl FnOnce(Notifier) -> F,
        agreement: Agreement,
    ) -> io::Result<Session<F>> {
        let device = Device::new(device);
        let mut buffer = vec![0; agreement.max_request as usize + BESIDES];
        loop {
            let length = device.read(&mut buffer)?.ok_or(ErrorKind::NotConnected)?;
            let (Some(header), Some(body)) = (Header::of(&buffer), buffer.get(IN_HEADER..length)) else {
                return Err(ErrorKind::InvalidData.into());
            };
            if header.opcode != opcode::INIT {
                return Err(io::Error::new(ErrorKind::InvalidData, "a request before the first"));
            }
            let wishes = Wishes::of(body).ok_or(ErrorKind::InvalidData)?;
            if wishes.version < (MAJOR, OLDEST_MINOR) {
                device.answer(header.unique, -libc::EPROTO, &[], &[]);
                return Err(io::Error::new(ErrorKind::Unsupported, "the kernel's FUSE is too old"));
            }
            if wishes.version.0 > MAJOR {
                // It asks again with a version that is spoken here.
                device.answer(header.unique, 0, Head::default().u32(MAJOR).u32(MINOR).zeros(56).bytes(), &[]);
                continue;
            }
            let mut rings = Vec::new();
            if agreement.rings && wishes.flags & agree::OVER_IO_URING != 0 {
                // From here on the kernel would wait for all of them.
                match Ring::for_each_processor(&device, agreement.max_request) {
                    Ok(made) => rings = made,
                    Err(error) => tracing::warn!(%error, "no rings; requests come from /dev/fuse"),
                }
            }
            device.answer(header.unique, 0, wishes.answer(&agreement, !rings.is_empty()).bytes(), &[]);
            let fs = Arc::new(fs(Notifier::new(device.clone())));
            return Ok(Session { fs, device, agreement, rings });
        }
    }

    #[cfg(test)]
    pub(super) fn filesystem(&self) -> Arc<F> {
        self.fs.clone()
    }

    /// Whether requests come in rings.
    pub fn has_rings(&self) -> bool {
        !self.rings.is_empty()
    }

    /// Serve the mount until it is unmounted.
    ///
    /// # Errors
    /// What ended it otherwise; some threads may wait for requests still.
    pub fn serve(self) -> io::Result<()> {
        let Session { fs, device, agreement, rings } = self;
        let (ended, ends) = mpsc::channel();
        let serve = |name: String, serve: Serve<F>| {
            let (fs, ended) = (fs.clone(), ended.clone());
            let run = move || {
                let served = catch_unwind(AssertUnwindSafe(|| serve(&fs)));
                let _ = ended.send(served.unwrap_or_else(|_| Err(io::Error::other("a thread panicked"))));
            };
            thread::Builder::new().name(name).spawn(run).map(drop)
        };
        // Besides rings, for what never comes in them.
        let readers = if rings.is_empty() { agreement.threads } else { 1 };
        for ring in rings {
            serve(format!("fuse-ring-{}", ring.processor()), Box::new(move |fs: &F| ring.serve(fs)))?;
        }
        let room = agreement.max_request as usize + BESIDES;
        for reader in 0..readers {
            let device = if reader == 0 { device.clone() } else { device.another()? };
            serve(format!("fuse-{reader}"), Box::new(move |fs: &F| read(fs, &device, room)))?;
        }
        drop(ended);
        ends.into_iter().collect()
    }
}

/// Answer what comes from the device.
fn read(fs: &impl Filesystem, device: &Arc<Device>, room: usize) -> io::Result<()> {
    let mut buffer = vec![0; room];
    while let Some(length) = device.read(&mut buffer)? {
        let request = &buffer[..length];
        let Some(header) = Header::of(request).filter(|header| header.length as usize == length) else {
            return Err(io::Error::new(ErrorKind::InvalidData, "a request that is no request"));
        };
        dispatch(fs, &header, &request[IN_HEADER..], Way::Device(device.clone(), header.unique));
    }
    Ok(())
}

/// What the kernel can.
struct Wishes {
    version: (u32, u32),
    max_read_ahead: u32,
    flags: u64,
}

impl Wishes {
    fn of(body: &[u8]) -> Option<Wishes> {
        let mut fields = Fields(body);
        let version = (fields.u32()?, fields.u32()?);
        if version.0 != MAJOR {
            return Some(Wishes { version, max_read_ahead: 0, flags: 0 });
        }
        let (max_read_ahead, flags) = (fields.u32()?, u64::from(fields.u32()?));
        let more = if flags & agree::INIT_EXT != 0 { u64::from(fields.u32()?) } else { 0 };
        Some(Wishes { version, max_read_ahead, flags: flags | more << 32 })
    }

    fn answer(&self, agreement: &Agreement, rings: bool) -> Head {
        let own = agree::BIG_WRITES | agree::MAX_PAGES | agree::INIT_EXT;
        let ours = agreement.flags | own | if rings { agree::OVER_IO_URING } else { 0 };
        let flags = self.flags & ours;
        let (low, high) = (flags as u32, (flags >> 32) as u32);
        let congested = agreement.max_background / 4 * 3;
        let (nanosecond, pages) = (1, agreement.max_request.div_ceil(host::page_size()) as u16);
        let mut head = Head::default();
        head.u32(MAJOR).u32(MINOR).u32(self.max_read_ahead).u32(low);
        head.u16(agreement.max_background).u16(congested).u32(agreement.max_request).u32(nanosecond);
        head.u16(pages).u16(0).u32(high).zeros(28);
        head
    }
}
