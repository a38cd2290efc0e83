//! Bytes: open, read, write, flush, fsync, close, and the seals on their way to the nodes.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::{AccessTimes, Volume};
use crate::begun;
use crate::cache::Reuse;
use crate::error::{Error, Result};
use crate::inode::{Caller, Ino, Inode, MAX_SIZE, Time};
use crate::metadata::{AttributeChange, Commit, MetadataStore};
use crate::open_file::{OpenFile, Piece, Progress, Source, State};

/// How far ahead of a sequential reader fragments are fetched, in bytes.
const READ_AHEAD: u64 = 16 << 20;
/// How often a range is copied by referring to it that is written meanwhile.
const COPIES_TRIED: usize = 4;
/// Small files that are fetched together, at most, and how large each may be.
const NEIGHBOURS: usize = 128;
const NEIGHBOUR_BYTES: u32 = 64 << 10;

/// Leave work to a task of its own.
fn begin_later(work: BoxFuture<'static, ()>) {
    tokio::spawn(work);
}

/// What became of a write.
#[derive(Debug)]
pub enum Written {
    /// Readable by everybody now.
    Done,
    /// The write-behind budget is exhausted, or the volume nearly full: `write` may have to wait.
    Full,
}

impl Volume {
    /// One more handle on a regular file.
    pub fn open_file(&self, ino: Ino) -> Result<()> {
        let mut files = self.files.lock();
        if let Some(file) = files.get(&ino) {
            file.state().handles += 1;
            return Ok(());
        }
        let inode = self.metadata.inode(ino)?;
        if inode.is_directory() {
            return Err(Error::IsDirectory);
        }
        files.insert(ino, Arc::new(self.first_handle_on(&inode)));
        Ok(())
    }

    /// The first handle on a file that was made just now.
    pub fn open_created(&self, inode: &Inode) {
        self.files.lock().insert(inode.ino, Arc::new(self.first_handle_on(inode)));
    }

    fn first_handle_on(&self, inode: &Inode) -> OpenFile {
        let file = OpenFile::new(inode, self.settings.code, self.settings.object_size);
        file.state().handles = 1;
        file.state().access_noted = self.options.access_times == AccessTimes::Never;
        file
    }

    /// The open file of an inode. One that nobody has open is taken for open, without handles, until `drop_if_unused`.
    pub(super) fn taken_for_open(
        &self,
        files: &mut HashMap<Ino, Arc<OpenFile>>,
        ino: Ino,
    ) -> Result<Arc<OpenFile>> {
        if let Some(file) = files.get(&ino) {
            return Ok(file.clone());
        }
        let inode = self.metadata.inode(ino)?;
        let file = Arc::new(OpenFile::new(&inode, self.settings.code, self.settings.object_size));
        files.insert(ino, file.clone());
        Ok(file)
    }

    /// One handle less. What is still dirty stays until it is stored.
    pub fn close_file(&self, ino: Ino) {
        let mut files = self.files.lock();
        let Some(file) = files.get(&ino) else { return };
        let mut state = file.state();
        state.handles = state.handles.saturating_sub(1);
        let done = state.handles == 0 && state.is_clean();
        drop(state);
        if done {
            files.remove(&ino);
        }
    }

    fn opened(&self, ino: Ino) -> Result<Arc<OpenFile>> {
        self.file(ino).ok_or(Error::BadHandle)
    }

    /// Write without waiting, if the budget allows.
    ///
    /// # Errors
    /// Those of an earlier write-behind too, until it was stored after all; nothing of this write is kept then.
    pub fn try_write(self: &Arc<Self>, ino: Ino, offset: u64, data: &[u8], now: Time) -> Result<Written> {
        self.writable()?;
        check_range(offset, data.len() as u64)?;
        let file = self.opened(ino)?;
        if let Some(error) = file.state().failure() {
            return Err(error);
        }
        if !self.surely_fits(data.len() as u64) || !self.budget.try_take(data.len() as u64) {
            return Ok(Written::Full);
        }
        self.lay(&file, offset, data, now);
        Ok(Written::Done)
    }

    /// Write, waiting for the budget within `io_limit`.
    ///
    /// # Errors
    /// As `try_write`; `TimedOut` when nothing could be stored meanwhile.
    pub async fn write(self: &Arc<Self>, ino: Ino, offset: u64, data: Bytes, now: Time) -> Result<()> {
        if let Written::Done = self.try_write(ino, offset, &data, now)? {
            return Ok(());
        }
        let (file, began) = (self.opened(ino)?, Instant::now());
        self.fit(&file, offset..offset + data.len() as u64).await?;
        self.seal_oldest();
        if !self.budget.take(data.len() as u64, self.options.io_limit).await {
            return Err(file.state().failure().unwrap_or_else(|| {
                Error::TimedOut("the write-behind budget is full and nothing of it could be stored".into())
            }));
        }
        if let Some(error) = file.state().failure() {
            self.budget.give(data.len() as u64);
            return Err(error);
        }
        // Others may have written meanwhile, at later times.
        let now = Time::from(SystemTime::from(now) + began.elapsed());
        self.lay(&file, offset, &data, now);
        Ok(())
    }

    /// Lay charged bytes over the file and send off what has become whole.
    fn lay(self: &Arc<Self>, file: &Arc<OpenFile>, offset: u64, data: &[u8], now: Time) {
        let end = offset + data.len() as u64;
        let mut whole = Vec::new();
        let fresh = {
            let mut state = file.state();
            if now < state.stamped {
                self.turn_back(file.ino, &mut state, now);
            }
            let fresh = state.write(offset, data, now);
            state.access_noted = self.options.access_times == AccessTimes::Never;
            while let Some(sequence) = state.seal_full(offset..end, || self.stripe.next_id()) {
                whole.push(sequence);
            }
            fresh
        };
        self.budget.give(data.len() as u64 - fresh);
        for sequence in whole {
            self.send_off(file, sequence, false);
        }
    }

    /// Take times of the future back: set by hand, or by a clock that was then set back. In the store, as a commit only
    /// moves them on: it may come late and be repeated, and must undo nothing newer.
    fn turn_back(&self, ino: Ino, state: &mut State, now: Time) {
        let change = AttributeChange { mtime: Some(now), ctime: Some(now), ..AttributeChange::default() };
        match self.metadata.set_attributes(ino, &change) {
            Ok(_) => state.keep_mtime(now),
            Err(error) => tracing::warn!(ino = ino.0, %error, "times of the future stay"),
        }
    }

    /// Everything that waits in small dirty runs holds budget as well; let it go.
    fn seal_oldest(self: &Arc<Self>) {
        for file in self.open_files() {
            for sequence in self.seal_all(&file) {
                self.send_off(&file, sequence, false);
            }
        }
    }

    pub(super) fn seal_all(&self, file: &OpenFile) -> Vec<u64> {
        file.state().seal_all(|| self.stripe.next_id())
    }

    /// Bring one seal to the nodes in a task of its own, so that nobody who stops waiting leaves it half done.
    pub(super) fn send_off(self: &Arc<Self>, file: &Arc<OpenFile>, sequence: u64, flush: bool) {
        begin_later(self.sending(file, sequence, flush));
    }

    fn sending(self: &Arc<Self>, file: &Arc<OpenFile>, sequence: u64, flush: bool) -> BoxFuture<'static, ()> {
        let (volume, file) = (self.clone(), file.clone());
        Box::pin(async move { volume.store_seal(&file, sequence, flush).await })
    }

    /// Bring one seal to the nodes and, when its turn has come, into the metadata.
    async fn store_seal(&self, file: &Arc<OpenFile>, sequence: u64, flush: bool) {
        let Some((id, padded, length)) =
            file.state().seal_mut(sequence).map(|seal| (seal.id, seal.padded.clone(), seal.length))
        else {
            return;
        };
        let outcome = self.stripe.store(id, padded, length, flush).await;
        {
            let mut state = file.state();
            let Some(seal) = state.seal_mut(sequence) else { return };
            seal.progress = match outcome {
                Ok(record) => Progress::Stored(record),
                Err(error) => {
                    tracing::warn!(ino = file.ino.0, object = %id, %error, "bytes wait to be stored");
                    Progress::Failed(error)
                }
            };
            self.budget.give(state.drop_unwanted());
        }
        self.commit_ready(file);
        self.drop_if_unused(file);
        file.changed.notify_waiters();
    }

    /// Something was cut out of a file: a seal that is gone for that reason may have been before stored ones.
    pub(super) fn cut(&self, file: &Arc<OpenFile>) {
        self.commit_ready(file);
        file.changed.notify_waiters();
    }

    /// Let the stored seals at the front become visible, some in each transaction.
    fn commit_ready(&self, file: &Arc<OpenFile>) {
        let mut state = file.state();
        loop {
            let (objects, files) = state.ready(file.ino);
            let count = files.len();
            if count == 0 {
                return;
            }
            if let Err(error) = self.metadata.commit(&Commit { objects, files }) {
                tracing::error!(ino = file.ino.0, %error, "stored bytes could not be committed");
                let failed = state.seals.iter_mut().take(count);
                failed.for_each(|seal| seal.progress = Progress::Failed(error.clone()));
                return;
            }
            self.commits.note(file.ino);
            self.budget.give(state.drop_committed(count));
            self.work.notify_one();
        }
    }

    pub(super) fn drop_if_unused(&self, file: &Arc<OpenFile>) {
        let mut files = self.files.lock();
        let same = files.get(&file.ino).is_some_and(|known| Arc::ptr_eq(known, file));
        let state = file.state();
        if same && state.handles == 0 && state.is_clean() {
            files.remove(&file.ino);
        }
    }

    /// Nothing to do for `flush`: the usual close of a file that was only read.
    pub fn is_clean(&self, ino: Ino) -> bool {
        self.file(ino).is_none_or(|file| file.state().is_clean())
    }

    /// Bring all of a file's bytes to the nodes and into the metadata: what close promises.
    ///
    /// # Errors
    /// `TooFewNodes`, `NoSpace`, `TimedOut`; the bytes stay, and the call may be repeated.
    pub async fn flush(self: &Arc<Self>, ino: Ino) -> Result<()> {
        let Some(file) = self.file(ino) else { return Ok(()) };
        let upto = self.send_all_off(&file, false, begun::begin);
        self.wait_for(&file, upto).await
    }

    /// As `flush`, and everything is on stable storage: what fsync promises.
    ///
    /// # Errors
    /// As `flush`.
    pub async fn fsync(self: &Arc<Self>, ino: Ino) -> Result<()> {
        if let Some(file) = self.file(ino)
            && !self.carry(&file)?
        {
            self.save(&file, true).await?;
        }
        self.sync().await
    }

    /// All that was stored and committed before is on stable storage.
    ///
    /// # Errors
    /// `TooFewNodes`, `TimedOut`, `Store`.
    pub async fn sync(self: &Arc<Self>) -> Result<()> {
        let Some(journal) = &self.journal else { return Ok(()) };
        within(self.options.io_limit, async {
            self.stripe.flush().await?;
            journal.sync().await
        })
        .await
    }

    /// As `sync`, and the store has noted how far the journal is.
    pub(super) async fn settle(self: &Arc<Self>) -> Result<()> {
        self.sync().await?;
        match &self.journal {
            Some(journal) => within(self.options.io_limit, journal.settle()).await,
            None => Ok(()),
        }
    }

    /// Let the metadata carry what a file has to make durable, if that is little: one entry of the journal then makes it
    /// so, and the bytes lie in an object later, together with others. False if there is too much, or some of it is
    /// sealed already.
    fn carry(&self, file: &OpenFile) -> Result<bool> {
        let mut state = file.state();
        if state.is_clean() || self.options.read_only {
            return Ok(true);
        }
        if self.writable().is_err() {
            return Ok(false);
        }
        let Some(intents) = state.to_carry(self.options.carried_bytes) else { return Ok(false) };
        if !intents.is_empty() {
            let put = self.metadata.put_intents(file.ino, &intents, state.mtime);
            state.carried(put.is_ok());
            put?;
        }
        Ok(true)
    }

    /// Lay over files what intents carry of them: a mount that ended before it had sealed it left them.
    pub(super) fn adopt_intents(&self, inos: &[Ino]) -> Result<()> {
        for &ino in inos {
            let mut files = self.files.lock();
            let file = self.taken_for_open(&mut files, ino)?;
            let bytes = file.state().adopt(self.metadata.intents(ino)?);
            self.budget.charge(bytes);
        }
        Ok(())
    }

    pub(super) async fn save(self: &Arc<Self>, file: &Arc<OpenFile>, flush: bool) -> Result<()> {
        let upto = self.send_all_off(file, flush, begin_later);
        self.wait_for(file, upto).await
    }

    /// Until what was sent off is committed, if anything was; as long as it takes, while anything is stored.
    async fn wait_for(&self, file: &OpenFile, upto: Option<u64>) -> Result<()> {
        match upto {
            Some(upto) => self.stripe.while_stored(file.committed(upto)).await,
            None => Ok(()),
        }
    }

    /// Send off whatever is dirty; up to where, if there is anything to wait for.
    fn send_all_off(
        self: &Arc<Self>,
        file: &Arc<OpenFile>,
        flush: bool,
        begin: impl Fn(BoxFuture<'static, ()>),
    ) -> Option<u64> {
        if self.options.read_only {
            return None;
        }
        let (pending, upto) = {
            let mut state = file.state();
            let mut pending = state.rearm();
            pending.extend(state.seal_all(|| self.stripe.next_id()));
            if state.is_clean() {
                return None;
            }
            (pending, state.sequence())
        };
        for sequence in pending {
            begin(self.sending(file, sequence, flush && sequence + 1 == upto));
        }
        Some(upto)
    }

    /// Read without waiting, if every byte is here: dirty, or in the memory cache. Counts as an access at `now`, if
    /// given, also where it must be followed by `read`.
    ///
    /// # Errors
    /// The store's.
    pub fn try_read(
        self: &Arc<Self>,
        ino: Ino,
        offset: u64,
        size: u32,
        now: Option<Time>,
    ) -> Result<Option<Vec<Bytes>>> {
        let file = self.opened(ino)?;
        if let Some(now) = now
            && !std::mem::replace(
                &mut file.state().access_noted,
                self.options.access_times != AccessTimes::Strict,
            )
        {
            self.accessed(ino, now)?;
        }
        if offset == 0 {
            self.fetch_neighbours(ino);
        }
        let pieces = self.plan(&file, offset, size)?;
        let mut bytes = Vec::with_capacity(pieces.len());
        for piece in &pieces {
            match &piece.source {
                Source::Memory(part) => bytes.push(part.clone()),
                Source::Hole => bytes.push(zeros(&piece.range)),
                Source::Object(record, range) => {
                    match self.stripe.read_cached(record.id, record.code, record.length, range.clone()) {
                        Some(parts) => bytes.extend(parts),
                        None => return Ok(None),
                    }
                }
            }
        }
        Ok(Some(bytes))
    }

    /// Small files whose turn comes soon are fetched together: one request to each node for many of them.
    fn fetch_neighbours(&self, ino: Ino) {
        let Some(inos) = self.neighbours.lock().read(ino) else { return };
        match self.metadata.small_files(inos, NEIGHBOUR_BYTES, NEIGHBOURS) {
            Ok(objects) => self.stripe.fetch_ahead(objects),
            Err(error) => tracing::debug!(%error, "nothing is fetched ahead"),
        }
    }

    /// Read; fewer bytes than asked for only at the end of the file.
    ///
    /// # Errors
    /// `Unreadable` when fewer than m good fragments can be had, `TimedOut`.
    pub async fn read(self: &Arc<Self>, ino: Ino, offset: u64, size: u32) -> Result<Vec<Bytes>> {
        let _passing = self.reads.enter();
        let file = self.opened(ino)?;
        let pieces = self.plan(&file, offset, size)?;
        let reuse = file.state().reuse();
        within(self.options.io_limit, self.gather(pieces, reuse)).await
    }

    async fn gather(&self, pieces: Vec<Piece>, reuse: Reuse) -> Result<Vec<Bytes>> {
        let parts = pieces.into_iter().map(|piece| async move {
            match piece.source {
                Source::Memory(part) => Ok(vec![part]),
                Source::Hole => Ok(vec![zeros(&piece.range)]),
                Source::Object(record, range) => self.stripe.read(&record, range, reuse).await,
            }
        });
        Ok(futures_util::future::try_join_all(parts).await?.concat())
    }

    fn plan(self: &Arc<Self>, file: &OpenFile, offset: u64, size: u32) -> Result<Vec<Piece>> {
        let mut state = file.state();
        let range = offset.min(state.size)..offset.saturating_add(u64::from(size)).min(state.size);
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let pieces = state.plan(file.ino, range.clone(), &*self.metadata)?;
        let ahead = state.read_ahead(file.ino, &range, READ_AHEAD, &*self.metadata);
        drop(state);
        for record in ahead {
            self.stripe.prefetch((*record).clone());
        }
        Ok(pieces)
    }

    /// The next offset with data (`SEEK_DATA`) or in a hole (`SEEK_HOLE`) at or after `offset`; the end is a hole.
    ///
    /// # Errors
    /// The store's. None past the end, or when no data follows.
    pub fn seek(&self, ino: Ino, offset: u64, data: bool) -> Result<Option<u64>> {
        let file = self.opened(ino)?;
        let mut state = file.state();
        if offset >= state.size {
            return Ok(None);
        }
        match data {
            true => state.next_data(ino, offset, &*self.metadata),
            false => state.next_hole(ino, offset, &*self.metadata).map(Some),
        }
    }

    /// Let a range become a hole; with `keep_size` unset the file grows to its end.
    ///
    /// # Errors
    /// The store's.
    pub fn punch(&self, ino: Ino, range: Range<u64>, keep_size: bool, caller: Caller) -> Result<()> {
        self.writable()?;
        check_range(range.start, range.end - range.start)?;
        let file = self.opened(ino)?;
        let mut state = file.state();
        let inside = range.start..range.end.min(state.size);
        if !inside.is_empty() {
            let punch = |store: &dyn MetadataStore| store.punch(ino, inside.clone(), caller.now);
            let stored = self.change_stored(ino, &mut state, caller.now, punch)?;
            if stored.size < state.size {
                // Bytes cut away here may be the ones that made the file as long as it is.
                let size = state.size;
                self.change_stored(ino, &mut state, caller.now, |store| {
                    store.truncate(ino, size, caller.now)
                })?;
            }
            self.budget.give(state.clip(inside));
        }
        if !keep_size && range.end > state.size {
            self.change_stored(ino, &mut state, caller.now, |store| {
                store.truncate(ino, range.end, caller.now)
            })?;
            state.size = range.end;
            state.forget_extents();
        }
        drop(state);
        self.cut(&file);
        self.work.notify_one();
        Ok(())
    }

    /// See that there is room for a range, and unless `keep_size` is set let the file reach its end at least; new
    /// bytes are a hole. Nothing is set aside: room that others use up meanwhile is gone.
    ///
    /// # Errors
    /// `NoSpace`; the store's.
    pub fn allocate(&self, ino: Ino, range: Range<u64>, keep_size: bool, caller: Caller) -> Result<()> {
        self.writable()?;
        check_range(range.start, range.end - range.start)?;
        let file = self.opened(ino)?;
        self.check_room_for(&file, range.clone())?;
        let mut state = file.state();
        if !keep_size && range.end > state.size {
            self.change_stored(ino, &mut state, caller.now, |store| {
                store.truncate(ino, range.end, caller.now)
            })?;
            state.size = range.end;
            state.forget_extents();
        }
        Ok(())
    }

    /// Copy a range of one file into another by referring to the same objects; no bytes move. Returns how many
    /// bytes, fewer only at the end of the source.
    ///
    /// # Errors
    /// As `flush`: both files' bytes are stored first, as long as that takes.
    pub async fn copy_range(
        self: &Arc<Self>,
        from: (Ino, u64),
        to: (Ino, u64),
        length: u64,
        caller: Caller,
    ) -> Result<u64> {
        self.writable()?;
        for _ in 0..COPIES_TRIED {
            self.flush(from.0).await?;
            if from.0 != to.0 {
                self.flush(to.0).await?;
            }
            let length = length.min(self.opened(from.0)?.state().size.saturating_sub(from.1));
            if length == 0 {
                return Ok(0);
            }
            check_range(to.1, length)?;
            self.fit(&*self.opened(to.0)?, to.1..to.1 + length).await?;
            if from.0 == to.0 && from.1 < to.1 + length && to.1 < from.1 + length {
                return Err(Error::Invalid("the ranges overlap"));
            }
            if let Some(copied) = self.copy_stored(from, to, length, caller)? {
                return Ok(copied);
            }
        }
        // The kernel copies byte by byte then.
        Err(Error::Unsupported)
    }

    /// How much was copied; nothing if the source has bytes there by now that are not stored.
    fn copy_stored(
        &self,
        from: (Ino, u64),
        to: (Ino, u64),
        length: u64,
        caller: Caller,
    ) -> Result<Option<u64>> {
        let (source, target) = (self.opened(from.0)?, self.opened(to.0)?);
        // In the order of their numbers, so that nobody who copies the other way waits for us.
        let (source_first, is_one) = (from.0 < to.0, from.0 == to.0);
        let before = source_first.then(|| source.state());
        let mut state = target.state();
        let after = (!source_first && !is_one).then(|| source.state());
        let other = before.or(after);
        let source = other.as_deref().unwrap_or(&state);
        let length = length.min(source.size.saturating_sub(from.1));
        if source.has_unstored(from.1..from.1 + length) {
            return Ok(None);
        }
        if length == 0 {
            return Ok(Some(0));
        }
        let copy = |store: &dyn MetadataStore| store.copy_extents(from, to, length, caller.now);
        self.change_stored(to.0, &mut state, caller.now, copy)?;
        self.budget.give(state.clip(to.1..to.1 + length));
        state.size = state.size.max(to.1 + length);
        drop(state);
        self.cut(&target);
        self.work.notify_one();
        Ok(Some(length))
    }
}

fn check_range(offset: u64, length: u64) -> Result<()> {
    match offset.checked_add(length) {
        Some(end) if end <= MAX_SIZE => Ok(()),
        _ => Err(Error::TooLarge),
    }
}

fn zeros(range: &Range<u64>) -> Bytes {
    BytesMut::zeroed((range.end - range.start) as usize).freeze()
}

pub(super) async fn within<T>(limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(Error::TimedOut(format!("{} s have passed", limit.as_secs()))),
    }
}
