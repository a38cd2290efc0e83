//! Compaction: what is left of objects that are mostly overwritten, and what many small writes left in many small
//! objects, is read and stored anew in few large ones.
//!
//! The commit replaces only extents that still are what was read; whoever has the file open forgets what it remembered
//! before anybody can read on, and the old object waits for the reads in flight (volume.md section 8).

use std::sync::Arc;

use bytes::BytesMut;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::Volume;
use crate::cache::Reuse;
use crate::error::Result;
use crate::inode::Ino;
use crate::metadata::{Extent, Scattered};
use crate::stripe::pad;

/// Extents looked at in one step.
const PAGE: usize = 4096;
/// An object of at most this part of the largest is small.
const SMALL: u32 = 16;
/// Small objects of a file are worth storing anew from so many on.
const RUN: usize = 8;
/// Extents read at once.
const READS: usize = 8;

/// What compaction did, or would do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CompactionReport {
    /// Extents that could lie better.
    pub extents: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Extents that lie in new objects now.
    pub moved: u64,
    /// The new objects.
    pub objects: u64,
}

impl Volume {
    /// Store anew what lies scattered, unless `dry_run`.
    ///
    /// # Errors
    /// As reading and writing; what was moved until then stays moved.
    pub async fn compact(self: &Arc<Self>, dry_run: bool) -> Result<CompactionReport> {
        self.writable()?;
        let mut report = CompactionReport::default();
        let small = self.settings.object_size / SMALL;
        let mut after = (Ino(0), 0);
        loop {
            let mut page = self.metadata.scattered(after, small, PAGE)?;
            let Some(last) = page.last().map(|last| (last.ino, last.extent.offset)) else { break };
            // The last file may go on beyond the page; it is looked at whole with the next one, if it is not all there is.
            if page.len() == PAGE && page[0].ino != last.0 {
                page.retain(|scattered| scattered.ino != last.0);
            }
            after = page.last().map_or(last, |last| (last.ino, last.extent.offset));
            for file in page.chunk_by(|one, next| one.ino == next.ino) {
                self.compact_file(file, dry_run, &mut report).await?;
            }
        }
        self.work.notify_one();
        Ok(report)
    }

    async fn compact_file(
        self: &Arc<Self>,
        scattered: &[Scattered],
        dry_run: bool,
        report: &mut CompactionReport,
    ) -> Result<()> {
        let smalls = scattered.iter().filter(|scattered| !scattered.sparse).count();
        let worth: Vec<&Scattered> =
            scattered.iter().filter(|scattered| scattered.sparse || smalls >= RUN).collect();
        report.extents += worth.len() as u64;
        report.bytes += worth.iter().map(|scattered| u64::from(scattered.extent.length)).sum::<u64>();
        if dry_run {
            return Ok(());
        }
        let mut rest = &worth[..];
        while !rest.is_empty() {
            let fits = self.how_many_fit(rest);
            let (some, others) = rest.split_at(fits);
            let moved = self.store_anew(some).await?;
            report.moved += moved as u64;
            report.objects += u64::from(moved > 0);
            rest = others;
        }
        Ok(())
    }

    /// Extents that fit one object; an extent is never longer than one.
    fn how_many_fit(&self, extents: &[&Scattered]) -> usize {
        let mut bytes = 0;
        let fits = extents.iter().take_while(|scattered| {
            bytes += u64::from(scattered.extent.length);
            bytes <= u64::from(self.settings.object_size)
        });
        fits.count().max(1)
    }

    async fn store_anew(self: &Arc<Self>, extents: &[&Scattered]) -> Result<usize> {
        let reading = self.reads.enter();
        let pieces = extents.iter().map(|scattered| {
            let extent = scattered.extent;
            let range = extent.object_offset..extent.object_offset + extent.length;
            async move { self.stripe.read(&scattered.object, range, Reuse::Unlikely).await }
        });
        let pieces: Vec<_> = pieces.collect();
        let pieces: Vec<Vec<bytes::Bytes>> = stream::iter(pieces).buffered(READS).try_collect().await?;
        drop(reading);
        let mut bytes = BytesMut::new();
        pieces.iter().flatten().for_each(|piece| bytes.extend_from_slice(piece));
        let padded = pad(self.settings.code, &bytes);
        let object = self.stripe.store(self.stripe.next_id(), padded, bytes.len() as u32, false).await?;
        let mut object_offset = 0;
        let moves: Vec<(Extent, Extent)> = extents
            .iter()
            .map(|scattered| {
                let to = Extent { object: object.id, object_offset, ..scattered.extent };
                object_offset += scattered.extent.length;
                (scattered.extent, to)
            })
            .collect();
        let ino = extents[0].ino;
        // Nobody opens the file, or plans a read of it, between the commit and the forgetting.
        let files = self.files.lock();
        let mut state = files.get(&ino).map(|file| file.state());
        let moved = self.metadata.relocate(ino, &object, &moves);
        // Also after an error: it may have been done all the same.
        if let Some(state) = &mut state {
            state.forget_extents();
        }
        moved
    }
}
