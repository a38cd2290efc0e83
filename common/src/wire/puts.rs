//! Small fragments over one upgraded connection: frames there, answers back, as docs/wire.md draws them.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{
    BootId, FragmentName, MAX_BODY, Operation, Refusal, WireError, decode_operation, encode_operation, take,
};

/// What a connection is upgraded to.
pub const PUTS_PROTOCOL: &str = "avidfs-puts-1";
/// Longest small fragment, in bytes: what a node verifies and writes faster than it hands it to another thread.
pub const MAX_SMALL_FRAGMENT: usize = 64 << 10;
/// Longest frame or answer after its length, in bytes, that is not large: such a fragment, the longest key, and the FPCC
/// of any code. A large frame has up to `MAX_BODY`.
pub const MAX_FRAME: usize = 96 << 10;

/// Bytes of the length that stands before a frame or answer.
pub const FRAME_LENGTH: usize = 4;

/// One fragment to keep.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PutFrame {
    /// Names the frame in its answer.
    pub number: u32,
    /// Whether the answer is to wait for a flush that covers it.
    pub flush: bool,
    /// Which fragment.
    pub name: FragmentName,
    /// Encoded FPCC.
    pub fpcc: Bytes,
    /// Its bytes.
    pub fragment: Bytes,
}

/// What became of one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PutAnswer {
    /// Of the frame.
    pub number: u32,
    /// Under which it was kept.
    pub boot: BootId,
    /// Why it was not kept, if it was not.
    pub refusal: Option<Refusal>,
}

impl PutFrame {
    /// With its length before it.
    pub fn encode(&self) -> Bytes {
        let mut frame = self.head(self.fragment.len());
        frame.put_slice(&self.fragment);
        frame.freeze()
    }

    /// What stands before its fragment, and room for so much more.
    pub fn head(&self, room: usize) -> BytesMut {
        let mut head = BytesMut::with_capacity(64 + self.name.key.len() + self.fpcc.len() + room);
        head.put_u32_le(0);
        head.put_u32_le(self.number);
        head.put_u8(u8::from(self.flush));
        encode_operation(&mut head, 1, &self.name, &self.fpcc, self.fragment.len());
        let length = (head.len() - 4 + self.fragment.len()) as u32;
        head[..4].copy_from_slice(&length.to_le_bytes());
        head
    }

    /// From what follows the length; FPCC and fragment are slices of it.
    pub fn decode(mut body: Bytes) -> Result<PutFrame, WireError> {
        let mut head = take(&mut body, 5, "a frame's head")?;
        let number = head.get_u32_le();
        let flush = match head.get_u8() {
            0 => false,
            1 => true,
            _ => return Err(WireError::Name("the flags of a frame are 0 or 1")),
        };
        match decode_operation(&mut body)? {
            _ if !body.is_empty() => Err(WireError::Length("a frame has one operation")),
            Operation::Put { name, fpcc, fragment } => Ok(PutFrame { number, flush, name, fpcc, fragment }),
            _ => Err(WireError::Name("the operation of a frame is a put")),
        }
    }
}

impl PutAnswer {
    /// Append it to `out`, with its length before it.
    pub fn encode(&self, out: &mut BytesMut) {
        framed(out, |out| {
            out.put_u32_le(self.number);
            out.put_slice(&self.boot.0);
            out.put_u16_le(self.refusal.as_ref().map_or(200, |refusal| refusal.error.status()));
            if let Some(refusal) = &self.refusal {
                out.put_slice(&refusal.to_json());
            }
        });
    }

    /// From what follows the length.
    pub fn decode(mut body: Bytes) -> Result<PutAnswer, WireError> {
        let mut head = take(&mut body, 14, "an answer's head")?;
        let number = head.get_u32_le();
        let mut boot = [0; 8];
        head.copy_to_slice(&mut boot);
        let refusal = match head.get_u16_le() {
            200 if body.is_empty() => None,
            200 => return Err(WireError::Length("an answer that refuses nothing says no more")),
            status => Some(Refusal::of_status(status, &body)?),
        };
        Ok(PutAnswer { number, boot: BootId(boot), refusal })
    }
}

/// Write what `body` writes, with its length before it.
pub(super) fn framed(out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32_le(0);
    body(out);
    let length = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// How long the next frame is without its length, if that has been received. It has up to `MAX_BODY`.
pub fn next_length(received: &[u8]) -> Result<Option<usize>, WireError> {
    let Some(length) = received.first_chunk::<FRAME_LENGTH>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > MAX_BODY {
        return Err(WireError::Length("a frame is longer than one may be"));
    }
    Ok(Some(length))
}

/// Take the next frame or answer, not a large one, off what was received, without its length; none while it is not all
/// there.
pub fn next_frame(received: &mut BytesMut) -> Result<Option<Bytes>, WireError> {
    let Some(length) = next_length(received)? else { return Ok(None) };
    if length > MAX_FRAME {
        return Err(WireError::Length("a frame is longer than one may be"));
    }
    if received.len() < FRAME_LENGTH + length {
        return Ok(None);
    }
    received.advance(FRAME_LENGTH);
    Ok(Some(received.split_to(length).freeze()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::RefusalCode;
    use super::*;

    fn put(number: u32, flush: bool, fragment: usize) -> PutFrame {
        let name = FragmentName { key: "00000001-0000000000000002".into(), version: 1, index: 4 };
        PutFrame { number, flush, name, fpcc: "fpcc".into(), fragment: vec![7; fragment].into() }
    }

    fn answers() -> [PutAnswer; 2] {
        let refusal = Refusal { error: RefusalCode::StaleEpoch, message: "older than 7".into() };
        let boot = BootId([9; 8]);
        [
            PutAnswer { number: 1, boot, refusal: None },
            PutAnswer { number: u32::MAX, boot, refusal: Some(refusal) },
        ]
    }

    #[test]
    fn frames_and_answers_come_back_however_they_are_cut() {
        let frames = [put(0, false, 0), put(u32::MAX, true, MAX_SMALL_FRAGMENT), put(5, false, 1366)];
        let mut sent: BytesMut = frames.iter().flat_map(PutFrame::encode).collect();
        answers().iter().for_each(|answer| answer.encode(&mut sent));
        for step in [1, 7, 1000, sent.len()] {
            let (mut received, mut found) = (BytesMut::new(), Vec::new());
            for piece in sent.chunks(step) {
                received.extend_from_slice(piece);
                while let Some(frame) = next_frame(&mut received).unwrap() {
                    found.push(frame);
                }
            }
            assert!(received.is_empty() && found.len() == 5);
            let (there, back) = found.split_at(3);
            assert!(there.iter().map(|body| PutFrame::decode(body.clone()).unwrap()).eq(frames.clone()));
            assert!(back.iter().map(|body| PutAnswer::decode(body.clone()).unwrap()).eq(answers()));
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let body = |frame: &PutFrame| frame.encode().slice(4..);
        let good = body(&put(1, true, 10));
        let changed = |place: usize, value: u8| {
            let mut bytes = good.to_vec();
            bytes[place] = value;
            PutFrame::decode(bytes.into())
        };
        assert!(changed(4, 2).is_err(), "flags");
        assert!(changed(5, 2).is_err(), "a get");
        assert!(PutFrame::decode(good.slice(..good.len() - 1)).is_err());
        assert!(PutFrame::decode([&good[..], &[0]].concat().into()).is_err());
        let mut long = BytesMut::from(&(MAX_FRAME as u32 + 1).to_le_bytes()[..]);
        assert!(next_frame(&mut long).is_err() && next_length(&long) == Ok(Some(MAX_FRAME + 1)));
        assert!(next_length(&(MAX_BODY as u32 + 1).to_le_bytes()).is_err());
        let mut refused = BytesMut::new();
        answers()[1].encode(&mut refused);
        refused[16..18].copy_from_slice(&507u16.to_le_bytes());
        assert!(PutAnswer::decode(refused.freeze().slice(4..)).is_err(), "of another status");
    }

    proptest! {
        #[test]
        fn garbage_makes_nobody_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = PutFrame::decode(bytes.clone().into());
            let _ = PutAnswer::decode(bytes.clone().into());
            let mut received = BytesMut::from(&bytes[..]);
            while let Ok(Some(frame)) = next_frame(&mut received) {
                prop_assert!(frame.len() <= MAX_FRAME);
            }
        }
    }
}
