//! Words on their way over one connection: frames there, and how many were heard back. docs/wire.md draws both.

use std::io;
use std::sync::Weak;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use common::wire::{Mac, NodeId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::Inner;
use super::link::Stream;

/// What a connection is upgraded to.
pub const PROTOCOL: &str = "avidfs-words-1";
/// Words in a frame.
pub const MOST_WORDS: usize = 256;
/// Bytes of a frame's body: so many words of the longest keys fit.
const LONGEST: usize = 512 << 10;
/// Frames that a speaker lets go unheard before it waits.
pub const WINDOW: usize = 64;
/// How long what was heard waits to be confirmed: most often more comes meanwhile.
const CONFIRM: Duration = Duration::from_millis(10);
/// A connection that is silent for so long is given up: who speaks ends it much sooner.
const SILENCE: Duration = Duration::from_secs(60);

/// Length, code, body.
pub fn frame(mac: Mac, body: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(4 + mac.0.len() + body.len());
    frame.put_u32_le(body.len() as u32);
    frame.put_slice(&mac.0);
    frame.put_slice(body);
    frame.freeze()
}

/// The next frame; none if there are no more.
pub async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<(Mac, Bytes)>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    };
    let length = u32::from_le_bytes(length) as usize;
    if length > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is longer than one may be"));
    }
    let mut mac = Mac([0; 32]);
    stream.read_exact(&mut mac.0).await?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some((mac, body.into())))
}

/// Listens to one peer, as long as the node agrees with others.
pub struct Ear {
    pub(super) from: NodeId,
    pub(super) inner: Weak<Inner>,
}

impl Ear {
    /// Until the peer ends it, says what it may not, or is silent for long.
    pub async fn listen(self, stream: impl Stream) {
        if let Err(error) = self.hear_all(stream).await {
            tracing::debug!(from = %self.from, error, "words are no longer listened to");
        }
    }

    async fn hear_all(&self, stream: impl Stream) -> Result<(), String> {
        let (reader, mut writer) = tokio::io::split(stream);
        let (heard, count) = (Notify::new(), AtomicUsize::new(0));
        let hearing = async {
            let mut reader = BufReader::new(reader);
            while let Some((mac, body)) = next(&mut reader).await? {
                let inner = self.inner.upgrade().ok_or("the node agrees with others no more")?;
                inner.hear(self.from, mac, body).map_err(|error| error.to_string())?;
                count.fetch_add(1, Ordering::Relaxed);
                heard.notify_one();
            }
            Ok(())
        };
        let confirming = async {
            loop {
                heard.notified().await;
                tokio::time::sleep(CONFIRM).await;
                let confirmations = confirmations(count.swap(0, Ordering::Relaxed));
                writer.write_all(&confirmations).await.map_err(|error| error.to_string())?;
                writer.flush().await.map_err(|error| error.to_string())?;
            }
        };
        tokio::select! {
            ended = hearing => ended,
            failed = confirming => failed,
        }
    }
}

async fn next(reader: &mut (impl AsyncRead + Unpin)) -> Result<Option<(Mac, Bytes)>, String> {
    match timeout(SILENCE, read_frame(reader)).await {
        Ok(read) => read.map_err(|error| error.to_string()),
        Err(_) => Err(format!("nothing was said for {} s", SILENCE.as_secs())),
    }
}

/// Bytes that say that so many frames were heard: each stands for as many as its value.
fn confirmations(mut frames: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1);
    while frames > 0 {
        let some = frames.min(usize::from(u8::MAX));
        bytes.push(some as u8);
        frames -= some;
    }
    bytes
}

/// How many frames such bytes say were heard.
pub fn confirmed(bytes: &[u8]) -> usize {
    bytes.iter().map(|byte| usize::from(*byte)).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(bytes: &[u8]) -> (Vec<(Mac, Bytes)>, io::Result<()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (mut frames, mut rest) = (Vec::new(), bytes);
        loop {
            match runtime.block_on(read_frame(&mut rest)) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return (frames, Ok(())),
                Err(error) => return (frames, Err(error)),
            }
        }
    }

    #[test]
    fn frames_come_back_and_what_is_cut_or_too_long_is_refused() {
        let two = [frame(Mac([1; 32]), b"words"), frame(Mac([2; 32]), b"")].concat();
        let (frames, end) = read_all(&two);
        assert_eq!(frames, [(Mac([1; 32]), Bytes::from("words")), (Mac([2; 32]), Bytes::new())]);
        assert!(end.is_ok());
        assert!(read_all(&two[..two.len() - 1]).1.is_err());
        let longer = [&(LONGEST as u32 + 1).to_le_bytes()[..], &[0; 32]].concat();
        assert_eq!(read_all(&longer).1.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn as_many_are_confirmed_as_were_heard() {
        for frames in [0, 1, 63, 255, 256, 1000] {
            assert_eq!(confirmed(&confirmations(frames)), frames);
        }
    }

    proptest! {
        #[test]
        fn garbage_is_refused_or_read_to_its_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (frames, end) = read_all(&bytes);
            let read: Vec<u8> = frames.iter().flat_map(|(mac, body)| frame(*mac, body)).collect();
            prop_assert!(bytes.starts_with(&read));
            // Up to three bytes of a length are no frame yet.
            prop_assert!(end.is_err() || bytes.len() < read.len() + 4);
        }
    }
}
