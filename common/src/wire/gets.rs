//! Fragments read over an upgraded connection: a frame there, a fragment back, as docs/wire.md draws them.

use std::ops::Range;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::puts::framed;
use super::{BootId, FragmentName, MAX_BODY, Operation, WireError, decode_operation, encode_operation, take};

/// What a connection is upgraded to.
pub const GETS_PROTOCOL: &str = "avidfs-gets-1";

/// Offset of a get that is of no range.
const WHOLE: u64 = u64::MAX;

/// What a get is of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GetFrame {
    /// Which fragment.
    pub name: FragmentName,
    /// Of which of its bytes a slice is wanted; all of it if of none.
    pub range: Option<Range<u64>>,
}

/// What stands before the body of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GetHead {
    /// Bytes of the body.
    pub length: usize,
    /// Of the node.
    pub boot: BootId,
    /// As HTTP's: with 200 the body is a fragment body or slice body, otherwise a refusal in JSON.
    pub status: u16,
}

impl GetFrame {
    /// With its length before it.
    pub fn encode(&self) -> Bytes {
        let Range { start, end } = self.range.clone().unwrap_or(WHOLE..WHOLE);
        let mut frame = BytesMut::with_capacity(64 + self.name.key.len());
        framed(&mut frame, |frame| {
            frame.put_u64_le(start);
            frame.put_u64_le(end.saturating_sub(start));
            encode_operation(frame, 2, &self.name, &[], 0);
        });
        frame.freeze()
    }

    /// From what follows the length.
    pub fn decode(mut body: Bytes) -> Result<GetFrame, WireError> {
        let mut head = take(&mut body, 16, "the range of a get")?;
        let (offset, length) = (head.get_u64_le(), head.get_u64_le());
        let range = (offset != WHOLE).then(|| offset..offset.saturating_add(length));
        match decode_operation(&mut body)? {
            Operation::Get(name) if body.is_empty() => Ok(GetFrame { name, range }),
            _ => Err(WireError::Name("the operation of a frame is one get")),
        }
    }
}

impl GetHead {
    /// Its length, in bytes.
    pub const LENGTH: usize = 14;

    /// As it is sent.
    pub fn encode(&self) -> [u8; GetHead::LENGTH] {
        let mut head = [0; GetHead::LENGTH];
        head[..4].copy_from_slice(&(self.length as u32).to_le_bytes());
        head[4..12].copy_from_slice(&self.boot.0);
        head[12..].copy_from_slice(&self.status.to_le_bytes());
        head
    }

    /// From what was sent.
    pub fn decode(head: &[u8; GetHead::LENGTH]) -> Result<GetHead, WireError> {
        let mut head = &head[..];
        let length = head.get_u32_le() as usize;
        if length > MAX_BODY {
            return Err(WireError::Length("an answer is longer than one may be"));
        }
        let mut boot = [0; 8];
        head.copy_to_slice(&mut boot);
        Ok(GetHead { length, boot: BootId(boot), status: head.get_u16_le() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::next_frame;
    use super::*;

    fn get(range: Option<Range<u64>>) -> GetFrame {
        let name = FragmentName { key: "00000001-0000000000000002".into(), version: 1, index: 4 };
        GetFrame { name, range }
    }

    fn body(frame: &GetFrame) -> Bytes {
        next_frame(&mut BytesMut::from(&frame.encode()[..])).unwrap().unwrap()
    }

    #[test]
    fn frames_and_heads_come_back() {
        for range in [None, Some(0..0), Some(0..1), Some(5..5 + (1 << 40)), Some(u64::MAX - 1..u64::MAX)] {
            assert_eq!(GetFrame::decode(body(&get(range.clone()))), Ok(get(range)));
        }
        let head = GetHead { length: MAX_BODY, boot: BootId([7; 8]), status: 404 };
        assert_eq!(GetHead::decode(&head.encode()), Ok(head));
    }

    #[test]
    fn what_is_no_frame_or_head_is_refused() {
        let good = body(&get(None));
        assert!(GetFrame::decode(good.slice(..good.len() - 1)).is_err());
        assert!(GetFrame::decode([&good[..], &[0]].concat().into()).is_err());
        let mut has = good.to_vec();
        has[16] = 3;
        assert!(GetFrame::decode(has.into()).is_err());
        let long = GetHead { length: MAX_BODY + 1, boot: BootId([7; 8]), status: 200 };
        assert!(GetHead::decode(&long.encode()).is_err());
    }

    proptest! {
        #[test]
        fn garbage_makes_nobody_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = GetFrame::decode(bytes.clone().into());
            if let Some(head) = bytes.first_chunk() {
                let _ = GetHead::decode(head);
            }
        }
    }
}
