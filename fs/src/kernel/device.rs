//! Requests and answers through /dev/fuse: one system call for each.

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;

use super::protocol::OUT_HEADER;
use crate::host;

/// An open /dev/fuse that a file system is mounted from.
#[derive(Debug)]
pub(super) struct Device(File);

impl Device {
    pub(super) fn new(device: OwnedFd) -> Arc<Device> {
        Arc::new(Device(device.into()))
    }

    /// Another one for the same mount: requests that were read from it are known to it alone, so that threads with one
    /// each do not wait for each other.
    pub(super) fn another(&self) -> io::Result<Arc<Device>> {
        host::clone_fuse(&self.0).map(Device::new)
    }

    pub(super) fn file(&self) -> &File {
        &self.0
    }

    /// Read one request; `None` when the file system is unmounted.
    ///
    /// # Errors
    /// The device's.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match (&self.0).read(buffer) {
                Ok(length) => return Ok(Some(length)),
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
                // Interrupted, we or the caller; it is asked for anew.
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Answer a request. Whoever asked may be gone; then nobody wants to know.
    pub(super) fn answer(&self, unique: u64, error: i32, head: &[u8], data: &[Bytes]) {
        // The kernel takes any number of parts, but a few have room without an allocation.
        if data.len() > 6 {
            let whole: Vec<u8> = data.concat();
            return self.answer(unique, error, head, &[whole.into()]);
        }
        let mut parts = [IoSlice::new(&[]); 8];
        let length = OUT_HEADER + head.len() + data.iter().map(Bytes::len).sum::<usize>();
        let header = out_header(length as u32, error, unique);
        parts[0] = IoSlice::new(&header);
        parts[1] = IoSlice::new(head);
        for (part, bytes) in parts[2..].iter_mut().zip(data) {
            *part = IoSlice::new(bytes);
        }
        match (&self.0).write_vectored(&parts[..2 + data.len()]) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {}
            Err(error) => tracing::warn!(%error, "the kernel did not take an answer"),
        }
    }

    /// Tell the kernel something that it did not ask.
    ///
    /// # Errors
    /// `NotFound` if it does not know what that is about.
    pub(super) fn notify(&self, code: i32, body: &[u8]) -> io::Result<()> {
        let header = out_header((OUT_HEADER + body.len()) as u32, code, 0);
        (&self.0).write_vectored(&[IoSlice::new(&header), IoSlice::new(body)]).map(drop)
    }
}

pub(super) fn out_header(length: u32, error: i32, unique: u64) -> [u8; OUT_HEADER] {
    let mut header = [0; OUT_HEADER];
    header[..4].copy_from_slice(&length.to_ne_bytes());
    header[4..8].copy_from_slice(&error.to_ne_bytes());
    header[8..].copy_from_slice(&unique.to_ne_bytes());
    header
}

fn is_passing(error: &io::Error) -> bool {
    error.kind() == ErrorKind::Interrupted
        || matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EAGAIN))
}
