//! Puts over one connection, answered as they are done. It knows frames, and neither HTTP nor the store.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use bytes::BytesMut;
use common::wire::{BootId, PutAnswer, PutFrame, Refusal, next_frame};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// What is received at once, in bytes.
const RECEIVED: usize = 64 << 10;
/// Flushes that are waited for at once; nothing more is read meanwhile.
const MOST_FLUSHES: usize = 64;

/// Carries out what frames ask for.
pub trait Keeper: Send + Sync {
    /// Keep the fragment; why not, if it cannot be.
    fn keep(&self, frame: &PutFrame) -> Kept;
    /// Under which everything is kept now.
    fn boot(&self) -> BootId;
}

/// How far a frame is.
pub enum Kept {
    /// Done, or refused.
    Now(Option<Refusal>),
    /// To be flushed first.
    Flushed(Pin<Box<dyn Future<Output = Option<Refusal>> + Send>>),
}

/// Answer frames until the other side ends it, sends what is no frame, or sends nothing for `idle`.
///
/// # Errors
/// The connection's; `InvalidData` for what is no frame, `TimedOut` for nothing.
pub async fn serve(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin,
    keeper: &impl Keeper,
    idle: Duration,
) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut received = BytesMut::with_capacity(RECEIVED);
    let mut answers = BytesMut::new();
    let mut flushes = JoinSet::new();
    let mut is_open = true;
    while is_open || !flushes.is_empty() {
        tokio::select! {
            biased;
            Some(flushed) = flushes.join_next() => {
                let (number, refusal) = flushed.map_err(io::Error::other)?;
                PutAnswer { number, boot: keeper.boot(), refusal }.encode(&mut answers);
            }
            read = timeout(idle, reader.read_buf(&mut received)), if is_open && flushes.len() < MOST_FLUSHES => {
                match read {
                    Ok(read) => is_open = read? > 0,
                    Err(_) if flushes.is_empty() => return Err(io::ErrorKind::TimedOut.into()),
                    Err(_) => {}
                }
                while let Some(body) = next_frame(&mut received).map_err(no_frame)? {
                    let frame = PutFrame::decode(body).map_err(no_frame)?;
                    let number = frame.number;
                    match keeper.keep(&frame) {
                        Kept::Now(refusal) => PutAnswer { number, boot: keeper.boot(), refusal }.encode(&mut answers),
                        Kept::Flushed(flushed) => drop(flushes.spawn(async move { (number, flushed.await) })),
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

fn no_frame(error: common::wire::WireError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use common::wire::{FragmentName, RefusalCode};
    use parking_lot::Mutex;
    use tokio::io::DuplexStream;
    use tokio::sync::Notify;

    use super::*;

    const BOOT: BootId = BootId([3; 8]);
    const IDLE: Duration = Duration::from_secs(30);

    /// Refuses index 9, and flushes when it is told to.
    #[derive(Default)]
    struct Recording {
        kept: Mutex<Vec<u32>>,
        flushed: Arc<Notify>,
    }

    impl Keeper for Recording {
        fn keep(&self, frame: &PutFrame) -> Kept {
            self.kept.lock().push(frame.number);
            if frame.name.index == 9 {
                return Kept::Now(Some(refusal()));
            }
            if !frame.flush {
                return Kept::Now(None);
            }
            let flushed = self.flushed.clone();
            Kept::Flushed(Box::pin(async move {
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

    fn frame(number: u32, index: u8, flush: bool) -> bytes::Bytes {
        let name = FragmentName { key: "a".into(), version: 1, index };
        PutFrame { number, flush, name, fpcc: "f".into(), fragment: "bytes".into() }.encode()
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
