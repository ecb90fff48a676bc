//! UDP payloads on a byte stream: DATAGRAM capsules with context 0 (RFC 9297 section 3.5, RFC 9298 section 5).
//!
//! | size | field |
//! |---|---|
//! | 1 | capsule type, 0 (variable-length integer) |
//! | 1, 2 or 4 | length of what follows (variable-length integer) |
//! | 1 | context id, 0 (variable-length integer) |
//! | length - 1 | UDP payload |
//!
//! Capsules of other types and contexts are skipped, as RFC 9297 section 3.2 asks.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::limits::MAX_DATAGRAM_BYTES;

/// Type of a DATAGRAM capsule.
const DATAGRAM: u64 = 0;

/// Context id of a UDP payload.
const CONTEXT: u8 = 0;

/// Largest capsule that is worth skipping: more is not a datagram of any kind.
const MAX_CAPSULE_BYTES: u64 = 1 << 17;

/// Why a byte stream is not a sequence of capsules. The stream cannot be resynchronised afterwards.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CapsuleError {
    /// The length is above every datagram's.
    #[error("peer announced a {0}-byte capsule")]
    TooLong(u64),
    /// The capsule ends before its context id does.
    #[error("peer sent a datagram capsule without a context id")]
    NoContext,
}

/// Appends one payload to `outbox`. Payloads over [`MAX_DATAGRAM_BYTES`] do not exist in UDP.
///
/// # Panics
/// In debug builds when the payload is longer than a UDP payload can be.
pub fn encode(payload: &[u8], outbox: &mut BytesMut) {
    debug_assert!(payload.len() <= MAX_DATAGRAM_BYTES);
    outbox.reserve(payload.len() + 8);
    outbox.put_u8(0);
    put_varint(payload.len() as u64 + 1, outbox);
    outbox.put_u8(CONTEXT);
    outbox.put_slice(payload);
}

/// Cuts payloads out of a stream of capsules.
#[derive(Debug, Default)]
pub struct CapsuleDecoder {
    inbox: BytesMut,
    /// Bytes of a capsule of another type that are still to be thrown away.
    skip_bytes: u64,
}

impl CapsuleDecoder {
    /// Takes the next bytes of the stream.
    pub fn handle_input(&mut self, bytes: &[u8]) {
        self.inbox.extend_from_slice(bytes);
    }

    /// Returns the next payload, `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`CapsuleError`] when the stream is beyond repair.
    pub fn poll_datagram(&mut self) -> Result<Option<Bytes>, CapsuleError> {
        loop {
            self.skip();
            let mut rest = &self.inbox[..];
            let (Some(kind), Some(len)) = (take_varint(&mut rest), take_varint(&mut rest)) else {
                return Ok(None);
            };
            if len > MAX_CAPSULE_BYTES {
                return Err(CapsuleError::TooLong(len));
            }
            let header_bytes = self.inbox.len() - rest.len();
            if kind != DATAGRAM {
                self.inbox.advance(header_bytes);
                self.skip_bytes = len;
                continue;
            }
            if (rest.len() as u64) < len {
                return Ok(None);
            }
            self.inbox.advance(header_bytes);
            let mut body = self.inbox.split_to(len as usize).freeze();
            let mut view = &body[..];
            let context = take_varint(&mut view).ok_or(CapsuleError::NoContext)?;
            let context_bytes = body.len() - view.len();
            body.advance(context_bytes);
            if context == u64::from(CONTEXT) && body.len() <= MAX_DATAGRAM_BYTES {
                return Ok(Some(body));
            }
        }
    }

    fn skip(&mut self) {
        let now = self.skip_bytes.min(self.inbox.len() as u64);
        self.inbox.advance(now as usize);
        self.skip_bytes -= now;
    }
}

/// Variable-length integer of RFC 9000 section 16, for values below 2^30.
fn put_varint(value: u64, outbox: &mut BytesMut) {
    match value {
        0..0x40 => outbox.put_u8(value as u8),
        0x40..0x4000 => outbox.put_u16(value as u16 | 0x4000),
        _ => outbox.put_u32(value as u32 | 0x8000_0000),
    }
}

/// Cuts a variable-length integer off `bytes`; `None` when it is not whole.
fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let first = *bytes.first()?;
    let len = 1 << (first >> 6);
    let (head, tail) = bytes.split_at_checked(len)?;
    *bytes = tail;
    Some(head.iter().skip(1).fold(u64::from(first & 0x3f), |value, &byte| value << 8 | u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode_all(wire: &[u8], chunk: usize) -> Vec<Bytes> {
        let mut decoder = CapsuleDecoder::default();
        let mut payloads = Vec::new();
        for bytes in wire.chunks(chunk) {
            decoder.handle_input(bytes);
            while let Some(payload) = decoder.poll_datagram().unwrap() {
                payloads.push(payload);
            }
        }
        payloads
    }

    /// The bytes of release 0.1.0: later releases must read them for ever.
    #[test]
    fn golden_capsule_of_the_first_version() {
        let mut wire = BytesMut::new();
        encode(b"hi", &mut wire);
        assert_eq!(&wire[..], [0, 3, 0, b'h', b'i']);
    }

    #[test]
    fn datagrams_of_every_length_class_survive_any_chunking() {
        let payloads = [0, 1, 62, 63, 64, 16_382, 16_383, MAX_DATAGRAM_BYTES].map(|n| vec![7; n]);
        let mut wire = BytesMut::new();
        payloads.iter().for_each(|p| encode(p, &mut wire));
        for chunk in [1, 3, 1000, wire.len()] {
            assert_eq!(decode_all(&wire, chunk), payloads);
        }
    }

    #[test]
    fn capsules_of_other_types_and_contexts_are_skipped() {
        let mut wire = BytesMut::from(&[0x29, 3, 1, 2, 3, 0, 2, 2, 9][..]);
        encode(b"x", &mut wire);
        assert_eq!(decode_all(&wire, 2), [&b"x"[..]]);
    }

    #[test]
    fn absurd_length_and_missing_context_are_refused() {
        let mut decoder = CapsuleDecoder::default();
        decoder.handle_input(&[0, 0xc0, 0, 0, 1, 0, 0, 0, 0]);
        assert_eq!(decoder.poll_datagram(), Err(CapsuleError::TooLong(1 << 32)));
        let mut decoder = CapsuleDecoder::default();
        decoder.handle_input(&[0, 0]);
        assert_eq!(decoder.poll_datagram(), Err(CapsuleError::NoContext));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>) {
            let mut decoder = CapsuleDecoder::default();
            decoder.handle_input(&bytes);
            while let Ok(Some(_)) = decoder.poll_datagram() {}
        }
    }
}
