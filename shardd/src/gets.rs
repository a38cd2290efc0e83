//! Gets over one connection, answered one after the other. It knows frames, and neither HTTP nor the store.

use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use common::wire::{BootId, GetFrame, GetHead, Refusal, next_frame};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// What is received at once, in bytes; a frame has a hundred.
const RECEIVED: usize = 4 << 10;

/// Reads what frames ask for.
pub trait Reader: Send + Sync {
    /// A fragment body or slice body; why not, if there is none.
    fn read(&self, frame: GetFrame) -> impl Future<Output = Result<Bytes, Refusal>> + Send;
    /// Under which everything is kept now.
    fn boot(&self) -> BootId;
}

/// Answer frames until the other side ends it, sends what is no frame, or sends nothing for `idle`.
///
/// # Errors
/// The connection's; `InvalidData` for what is no frame, `TimedOut` for nothing.
pub async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Send + Unpin,
    reader: &impl Reader,
    idle: Duration,
) -> io::Result<()> {
    let mut received = BytesMut::with_capacity(RECEIVED);
    while timeout(idle, stream.read_buf(&mut received)).await?? > 0 {
        while let Some(body) = next_frame(&mut received)? {
            let frame = GetFrame::decode(body)?;
            let (status, body) = match reader.read(frame).await {
                Ok(body) => (200, body),
                Err(refusal) => (refusal.error.status(), refusal.to_json().into()),
            };
            let head = GetHead { length: body.len(), boot: reader.boot(), status }.encode();
            stream.write_all_buf(&mut Buf::chain(&head[..], body)).await?;
            stream.flush().await?;
        }
        received.reserve(RECEIVED);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use common::wire::{FragmentName, RefusalCode};
    use tokio::io::DuplexStream;

    use super::*;

    const BOOT: BootId = BootId([3; 8]);
    const IDLE: Duration = Duration::from_secs(30);

    /// Has a fragment of a thousand bytes under each index but 9.
    struct Fragments;

    impl Reader for Fragments {
        async fn read(&self, frame: GetFrame) -> Result<Bytes, Refusal> {
            match frame.name.index {
                9 => Err(refusal()),
                index => Ok(vec![index; 1000].into()),
            }
        }

        fn boot(&self) -> BootId {
            BOOT
        }
    }

    fn refusal() -> Refusal {
        Refusal { error: RefusalCode::NotFound, message: "gone".into() }
    }

    fn frame(index: u8) -> Bytes {
        GetFrame { name: FragmentName { key: "a".into(), version: 1, index }, range: None }.encode()
    }

    async fn answer(stream: &mut DuplexStream) -> (u16, Vec<u8>) {
        let mut head = [0; GetHead::LENGTH];
        stream.read_exact(&mut head).await.unwrap();
        let head = GetHead::decode(&head).unwrap();
        assert_eq!(head.boot, BOOT);
        let mut body = vec![0; head.length];
        stream.read_exact(&mut body).await.unwrap();
        (head.status, body)
    }

    #[tokio::test]
    async fn frames_are_answered_in_their_order_and_a_refusal_ends_nothing() {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let serving = tokio::spawn(async move { serve(far, &Fragments, IDLE).await });
        let sent = [frame(1), frame(9), frame(3)].concat();
        for piece in sent.chunks(20) {
            near.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(answer(&mut near).await, (200, vec![1; 1000]));
        let (status, body) = answer(&mut near).await;
        assert_eq!((status, serde_json::from_slice(&body).ok()), (404, Some(refusal())));
        assert_eq!(answer(&mut near).await, (200, vec![3; 1000]));
        near.shutdown().await.unwrap();
        serving.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_no_frames_is_not_listened_to() {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        near.write_all(&[255; 40]).await.unwrap();
        assert_eq!(serve(far, &Fragments, IDLE).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        let (_near, far) = tokio::io::duplex(1 << 20);
        assert_eq!(serve(far, &Fragments, IDLE).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
