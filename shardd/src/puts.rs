//! Puts over one connection, answered as they are done. It knows frames, and neither HTTP nor the store.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use common::wire::{BootId, FRAME_LENGTH, MAX_FRAME, PutAnswer, PutFrame, Refusal, next_frame, next_length};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::intake::Reserved;

/// What is received at once, in bytes.
const RECEIVED: usize = 64 << 10;
/// Frames that are waited for at once; nothing more is read meanwhile.
const MOST_AT_ONCE: usize = 64;

/// Carries out what frames ask for.
pub trait Keeper: Send + Sync {
    /// Room for a large frame, and how long it may take to come; none if there is none now.
    fn room(&self, bytes: usize) -> impl Future<Output = Option<(Reserved, Duration)>> + Send;
    /// Keep the fragment, under what was the boot id just before; why not, if it cannot be.
    fn keep(&self, frame: PutFrame, boot: BootId) -> Kept;
    /// Under which everything is kept now.
    fn boot(&self) -> BootId;
}

/// How far a frame is.
pub enum Kept {
    /// Done, or refused.
    Now(Option<Refusal>),
    /// To be flushed first.
    Later(Pin<Box<dyn Future<Output = Option<Refusal>> + Send>>),
}

/// Answer frames until the other side ends it, sends what is no frame, or sends nothing for `idle`.
///
/// # Errors
/// The connection's; `InvalidData` for what is no frame, `TimedOut` for nothing, or a large frame that comes too slowly,
/// `OutOfMemory` for one that there is no room for.
pub async fn serve(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin,
    keeper: &impl Keeper,
    idle: Duration,
) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut received = BytesMut::with_capacity(RECEIVED);
    let mut answers = BytesMut::new();
    let mut later = JoinSet::<PutAnswer>::new();
    let mut is_open = true;
    while is_open || !later.is_empty() {
        tokio::select! {
            biased;
            Some(done) = later.join_next() => {
                done.map_err(io::Error::other)?.encode(&mut answers);
            }
            read = timeout(idle, reader.read_buf(&mut received)), if is_open && later.len() < MOST_AT_ONCE => {
                match read {
                    Ok(read) => is_open = read? > 0,
                    Err(_) if later.is_empty() => return Err(io::ErrorKind::TimedOut.into()),
                    Err(_) => {}
                }
                while let Some(frame) = next(&mut received, &mut reader, keeper).await? {
                    // The boot id of before: what is lost while it is kept was then acknowledged under one that is over.
                    let (number, boot) = (frame.number, keeper.boot());
                    match keeper.keep(frame, boot) {
                        Kept::Now(refusal) => PutAnswer { number, boot, refusal }.encode(&mut answers),
                        Kept::Later(kept) => {
                            later.spawn(async move { PutAnswer { number, boot, refusal: kept.await } });
                        }
                    }
                }
                received.reserve(RECEIVED);
            }
        }
        if !answers.is_empty() {
            writer.write_all(&answers).await?;
            writer.flush().await?;
            answers.clear();
        }
    }
    Ok(())
}

/// The next frame of what was received; of a large one the rest is received, into its place. None while there is no more.
async fn next(
    received: &mut BytesMut,
    reader: &mut (impl AsyncRead + Unpin),
    keeper: &impl Keeper,
) -> io::Result<Option<PutFrame>> {
    let body = match next_length(received)? {
        Some(length) if length > MAX_FRAME => {
            let Some((mut room, patience)) = keeper.room(length).await else {
                return Err(io::ErrorKind::OutOfMemory.into());
            };
            received.advance(FRAME_LENGTH);
            let (here, rest) = room.buffer.split_at_mut(received.len().min(length));
            received.copy_to_slice(here);
            timeout(patience, reader.read_exact(rest)).await??;
            Some(room.into_bytes())
        }
        _ => next_frame(received)?,
    };
    Ok(body.map(PutFrame::decode).transpose()?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use common::wire::{FragmentName, RefusalCode};
    use parking_lot::Mutex;
    use tokio::io::DuplexStream;
    use tokio::sync::Notify;

    use super::*;
    use crate::buffers::Buffers;
    use crate::intake::{Intake, Limits};

    const BOOT: BootId = BootId([3; 8]);
    const IDLE: Duration = Duration::from_secs(30);

    /// Refuses index 9, flushes when it is told to, and has room for large frames up to a length.
    struct Recording {
        kept: Mutex<Vec<u32>>,
        flushed: Arc<Notify>,
        intake: Intake,
    }

    impl Default for Recording {
        fn default() -> Recording {
            let limits = Limits { body_bytes: 1 << 20, ..Limits::default() };
            let intake = Intake::new(limits, Buffers::new(1 << 20));
            Recording { kept: Mutex::default(), flushed: Arc::default(), intake }
        }
    }

    impl Keeper for Recording {
        async fn room(&self, bytes: usize) -> Option<(Reserved, Duration)> {
            Some((self.intake.reserve(FRAME_LENGTH, bytes).await.ok()?, self.intake.patience(bytes)))
        }

        fn keep(&self, frame: PutFrame, _boot: BootId) -> Kept {
            self.kept.lock().push(frame.number);
            if frame.name.index == 9 {
                return Kept::Now(Some(refusal()));
            }
            if frame.fragment.len() > MAX_FRAME {
                assert!(frame.fragment.iter().enumerate().all(|(place, byte)| *byte == place as u8));
            }
            if !frame.flush {
                return Kept::Now(None);
            }
            let flushed = self.flushed.clone();
            Kept::Later(Box::pin(async move {
                flushed.notified().await;
                None
            }))
        }

        fn boot(&self) -> BootId {
            BOOT
        }
    }

    fn refusal() -> Refusal {
        Refusal { error: RefusalCode::NoSpace, message: "full".into() }
    }

    fn frame(number: u32, index: u8, flush: bool) -> Bytes {
        let name = FragmentName { key: "a".into(), version: 1, index };
        PutFrame { number, flush, name, fpcc: "f".into(), fragment: "bytes".into() }.encode()
    }

    fn large(number: u32, length: usize) -> Bytes {
        let name = FragmentName { key: "a".into(), version: 1, index: 0 };
        let fragment = (0..length).map(|place| place as u8).collect();
        PutFrame { number, flush: false, name, fpcc: "f".into(), fragment }.encode()
    }

    async fn answer(stream: &mut DuplexStream) -> PutAnswer {
        let length = stream.read_u32_le().await.unwrap();
        let mut body = vec![0; length as usize];
        stream.read_exact(&mut body).await.unwrap();
        PutAnswer::decode(body.into()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn each_is_answered_and_a_flush_keeps_no_other_waiting() {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let keeper = Arc::new(Recording::default());
        let serving = tokio::spawn({
            let keeper = keeper.clone();
            async move { serve(far, &*keeper, IDLE).await }
        });
        let sent = [frame(1, 0, true), frame(2, 9, false), frame(3, 0, false)].concat();
        for piece in sent.chunks(20) {
            near.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(answer(&mut near).await, PutAnswer { number: 2, boot: BOOT, refusal: Some(refusal()) });
        assert_eq!(answer(&mut near).await, PutAnswer { number: 3, boot: BOOT, refusal: None });
        near.shutdown().await.unwrap();
        tokio::time::sleep(IDLE * 2).await;
        keeper.flushed.notify_one();
        assert_eq!(answer(&mut near).await, PutAnswer { number: 1, boot: BOOT, refusal: None });
        serving.await.unwrap().unwrap();
        assert_eq!(*keeper.kept.lock(), [1, 2, 3]);
    }

    #[tokio::test]
    async fn large_frames_come_between_small_ones_however_they_are_cut() {
        let sent = [frame(1, 0, false), large(2, 500_000), large(3, MAX_FRAME), frame(4, 9, false)].concat();
        for step in [1000, 70_000, sent.len()] {
            let (mut near, far) = tokio::io::duplex(1 << 20);
            let serving = tokio::spawn(async move { serve(far, &Recording::default(), IDLE).await });
            for piece in sent.chunks(step) {
                near.write_all(piece).await.unwrap();
            }
            for number in 1..=4 {
                let refusal = (number == 4).then(refusal);
                assert_eq!(answer(&mut near).await, PutAnswer { number, boot: BOOT, refusal });
            }
            drop(near);
            serving.await.unwrap().unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_frame_that_does_not_fit_or_drips_ends_it() {
        let served = async |sent: &[u8]| {
            let (mut near, far) = tokio::io::duplex(1 << 20);
            near.write_all(sent).await.unwrap();
            drop(near);
            serve(far, &Recording::default(), IDLE).await.unwrap_err().kind()
        };
        let half = &large(1, 500_000)[..250_000];
        assert_eq!(served(half).await, io::ErrorKind::UnexpectedEof);
        assert_eq!(served(&(2u32 << 20).to_le_bytes()).await, io::ErrorKind::OutOfMemory);
        let (mut near, far) = tokio::io::duplex(1 << 20);
        near.write_all(half).await.unwrap();
        assert_eq!(
            serve(far, &Recording::default(), IDLE).await.unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_no_frames_is_not_listened_to() {
        let keeper = Recording::default();
        let (mut near, far) = tokio::io::duplex(1 << 20);
        near.write_all(&[255; 40]).await.unwrap();
        assert_eq!(serve(far, &keeper, IDLE).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        let (_near, far) = tokio::io::duplex(1 << 20);
        assert_eq!(serve(far, &keeper, IDLE).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(keeper.kept.lock().is_empty());
    }
}
