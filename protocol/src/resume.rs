//! A lane's byte stream that survives the byte streams below it.
//!
//! A lane runs on one carrier (a port-forward, a TLS connection) at a time. Behind the hellos each direction of a carrier
//! is a sequence of segments:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | length of the payload, big-endian, at most [`MAX_SEGMENT_BYTES`] |
//! | 4 | 8 | acknowledgement: payload bytes of the other direction received since the lane began, big-endian |
//! | 12 | length | payload |
//!
//! A segment without payload only acknowledges, or shows that its sender is alive. Payload is kept until it is
//! acknowledged. When a carrier is lost, the two ends tell each other in their hellos on the next one how much they have
//! received (`resume_received`), and send the rest again.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::limits::{ACK_AFTER_BYTES, MAX_SEGMENT_BYTES, REPLAY_BYTES};

/// Bytes before each payload.
pub const HEADER_BYTES: usize = 12;

/// Bytes that small writes share one allocation of.
const ARENA_BYTES: usize = 64 << 10;

/// What keeping one segment's payload costs beside its bytes.
const CHUNK_OVERHEAD_BYTES: usize = 64;

/// Why a lane cannot go on.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResumeError {
    /// A segment is longer than allowed.
    #[error("peer announced a {0}-byte segment, the limit is {MAX_SEGMENT_BYTES}")]
    TooLong(u32),
    /// The peer claims to have received what was never sent, or no longer what it had.
    #[error("peer acknowledged byte {acked}, which is not between {from} and {to}")]
    BadAck {
        /// What it acknowledged.
        acked: u64,
        /// Acknowledged before.
        from: u64,
        /// Sent so far.
        to: u64,
    },
}

/// Bytes to put on the carrier, one behind the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The header.
    pub header: [u8; HEADER_BYTES],
    /// What follows it; may be empty.
    pub payload: Bytes,
}

/// One end of a lane.
#[derive(Debug, Default)]
pub struct Resume {
    /// Payload that was put on a carrier and is not acknowledged, oldest first. Begins with byte `acked` of the lane.
    replay: VecDeque<Bytes>,
    replay_bytes: usize,
    acked: u64,
    /// The first chunk of `replay` that this carrier has not got yet, and how many bytes are before it.
    next_chunk: usize,
    on_carrier_bytes: usize,
    /// Payload that no carrier has got yet.
    pending: BytesMut,
    received: u64,
    ack_sent: u64,
    alive_due: bool,
    header: [u8; HEADER_BYTES],
    header_len: usize,
    payload_left: usize,
}

impl Resume {
    /// Takes as much of `bytes` as there is room for, and returns how much; 0 when the peer has to acknowledge first.
    pub fn send(&mut self, bytes: &[u8]) -> usize {
        let len = bytes.len().min(REPLAY_BYTES.saturating_sub(self.kept_bytes()));
        if self.pending.capacity() - self.pending.len() < len {
            self.pending.reserve(ARENA_BYTES.max(len));
        }
        self.pending.put_slice(&bytes[..len]);
        len
    }

    /// Asks for a segment even when there is nothing to say, so that the peer sees life.
    pub fn on_idle(&mut self) {
        self.alive_due = true;
    }

    /// Returns what the carrier has to take next.
    pub fn poll_transmit(&mut self) -> Option<Segment> {
        if self.next_chunk == self.replay.len() && !self.pending.is_empty() {
            let len = self.pending.len().min(MAX_SEGMENT_BYTES);
            self.replay.push_back(self.pending.split_to(len).freeze());
            self.replay_bytes += len;
        }
        let payload = match self.replay.get(self.next_chunk) {
            Some(chunk) => {
                self.next_chunk += 1;
                self.on_carrier_bytes += chunk.len();
                chunk.clone()
            }
            None if self.alive_due || self.received - self.ack_sent >= ACK_AFTER_BYTES => Bytes::new(),
            None => return None,
        };
        self.alive_due = false;
        self.ack_sent = self.received;
        let mut header = [0; HEADER_BYTES];
        let mut fields = &mut header[..];
        fields.put_u32(u32::try_from(payload.len()).expect("at most MAX_SEGMENT_BYTES"));
        fields.put_u64(self.received);
        Some(Segment { header, payload })
    }

    /// Takes bytes off the carrier. Returns the payload at their front, when it is there, without its header.
    ///
    /// Call it until `input` is empty.
    ///
    /// # Errors
    /// [`ResumeError`] when the peer breaks the rules; the lane is then beyond repair.
    pub fn handle_input(&mut self, input: &mut BytesMut) -> Result<Option<Bytes>, ResumeError> {
        if self.payload_left == 0 {
            let len = input.len().min(HEADER_BYTES - self.header_len);
            input.copy_to_slice(&mut self.header[self.header_len..self.header_len + len]);
            self.header_len += len;
            if self.header_len < HEADER_BYTES {
                return Ok(None);
            }
            self.on_header()?;
        }
        let len = input.len().min(self.payload_left);
        if len == 0 {
            return Ok(None);
        }
        self.payload_left -= len;
        self.received += len as u64;
        Ok(Some(input.split_to(len).freeze()))
    }

    /// Payload bytes received since the lane began. What was received before the carrier was lost counts.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// What is kept because the peer has not acknowledged it, in bytes.
    pub fn kept_bytes(&self) -> usize {
        self.replay_bytes + self.replay.len() * CHUNK_OVERHEAD_BYTES + self.pending.len()
    }

    /// Starts on a new carrier, whose peer has received `peer_received` bytes of ours.
    ///
    /// # Errors
    /// [`ResumeError::BadAck`] when that cannot be; the lane is then beyond repair.
    pub fn on_carrier(&mut self, peer_received: u64) -> Result<(), ResumeError> {
        // It may have received what we did not see acknowledged: all of it, at most.
        self.next_chunk = self.replay.len();
        self.on_carrier_bytes = self.replay_bytes;
        self.on_ack(peer_received)?;
        self.next_chunk = 0;
        self.on_carrier_bytes = 0;
        self.ack_sent = self.received;
        self.alive_due = false;
        self.header_len = 0;
        self.payload_left = 0;
        Ok(())
    }

    fn on_header(&mut self) -> Result<(), ResumeError> {
        let mut fields = &self.header[..];
        let (len, acked) = (fields.get_u32(), fields.get_u64());
        self.header_len = 0;
        if len as usize > MAX_SEGMENT_BYTES {
            return Err(ResumeError::TooLong(len));
        }
        self.payload_left = len as usize;
        self.on_ack(acked)
    }

    fn on_ack(&mut self, acked: u64) -> Result<(), ResumeError> {
        let to = self.acked + self.on_carrier_bytes as u64;
        if !(self.acked..=to).contains(&acked) {
            return Err(ResumeError::BadAck { acked, from: self.acked, to });
        }
        let mut left = (acked - self.acked) as usize;
        self.acked = acked;
        self.replay_bytes -= left;
        self.on_carrier_bytes -= left;
        while left > 0 {
            let first = self.replay.front_mut().expect("what is on the carrier is in the replay");
            if left < first.len() {
                first.advance(left);
                break;
            }
            left -= first.len();
            self.replay.pop_front();
            self.next_chunk -= 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A carrier in one direction: what was put on it and not taken off.
    fn put(from: &mut Resume, wire: &mut BytesMut) {
        while let Some(Segment { header, payload }) = from.poll_transmit() {
            wire.extend_from_slice(&header);
            wire.extend_from_slice(&payload);
        }
    }

    fn take(to: &mut Resume, wire: &mut BytesMut, received: &mut Vec<u8>) {
        while !wire.is_empty() {
            if let Some(payload) = to.handle_input(wire).unwrap() {
                received.extend_from_slice(&payload);
            }
        }
    }

    fn new_carrier(a: &mut Resume, b: &mut Resume) {
        let (a_received, b_received) = (a.received(), b.received());
        a.on_carrier(b_received).unwrap();
        b.on_carrier(a_received).unwrap();
    }

    /// The bytes of release 0.1.0: later releases must read them for ever.
    #[test]
    fn golden_segment_of_the_first_version() {
        let mut lane = Resume::default();
        lane.send(b"hi");
        let segment = lane.poll_transmit().unwrap();
        assert_eq!(segment.header, [0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&segment.payload[..], b"hi");
        assert_eq!(lane.poll_transmit(), None);
    }

    #[test]
    fn silence_is_broken_by_a_segment_without_payload_once() {
        let mut lane = Resume::default();
        lane.on_idle();
        assert_eq!(lane.poll_transmit().unwrap().payload.len(), 0);
        assert_eq!(lane.poll_transmit(), None);
    }

    #[test]
    fn sender_stops_at_the_limit_and_goes_on_when_acknowledged() {
        let (mut a, mut b) = (Resume::default(), Resume::default());
        let block = vec![7; 64 << 10];
        let mut sent = 0;
        let mut wire = BytesMut::new();
        loop {
            let len = a.send(&block);
            put(&mut a, &mut wire);
            sent += len;
            if len == 0 {
                break;
            }
        }
        assert!(a.kept_bytes() <= REPLAY_BYTES + CHUNK_OVERHEAD_BYTES && sent > REPLAY_BYTES * 9 / 10, "{sent}");
        let mut received = Vec::new();
        take(&mut b, &mut wire, &mut received);
        assert_eq!(received.len(), sent);
        put(&mut b, &mut wire);
        take(&mut a, &mut wire, &mut received);
        assert_eq!(a.kept_bytes(), 0);
        assert_eq!(a.send(&block), block.len());
    }

    #[test]
    fn acknowledgements_of_what_was_never_sent_are_refused() {
        let mut lane = Resume::default();
        lane.send(b"abc");
        let mut wire = BytesMut::from(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1][..]);
        let error = ResumeError::BadAck { acked: 1, from: 0, to: 0 };
        assert_eq!(lane.handle_input(&mut wire), Err(error), "pending bytes are not sent yet");
        lane.poll_transmit();
        assert!(lane.on_carrier(4).is_err());
        assert_eq!(lane.on_carrier(2), Ok(()));
        assert_eq!(&lane.poll_transmit().unwrap().payload[..], b"c");
        assert!(lane.on_carrier(1).is_err(), "what was acknowledged is gone");
    }

    #[test]
    fn segment_over_the_limit_is_refused() {
        let mut wire = BytesMut::from(&[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..]);
        assert_eq!(Resume::default().handle_input(&mut wire), Err(ResumeError::TooLong(65_536)));
    }

    proptest! {
        /// Bytes written at both ends arrive whole and in order, whatever is cut off the carriers and when.
        #[test]
        fn nothing_is_lost_or_doubled_by_cuts(
            steps in proptest::collection::vec((1usize..20_000, any::<bool>(), any::<u16>(), any::<u16>(), any::<bool>()), 1..40)
        ) {
            let (mut a, mut b) = (Resume::default(), Resume::default());
            let (mut at_a, mut at_b) = (Vec::new(), Vec::new());
            let (mut from_a, mut from_b) = (Vec::new(), Vec::new());
            let (mut to_a, mut to_b) = (BytesMut::new(), BytesMut::new());
            for (len, is_a, arrived_a, arrived_b, cut) in steps {
                let (lane, sent) = if is_a { (&mut a, &mut from_a) } else { (&mut b, &mut from_b) };
                let bytes: Vec<u8> = (0..len).map(|i| (sent.len() + i) as u8 ^ len as u8).collect();
                let taken = lane.send(&bytes);
                sent.extend_from_slice(&bytes[..taken]);
                put(&mut a, &mut to_b);
                put(&mut b, &mut to_a);
                let share = |wire: &BytesMut, of: u16| wire.len() * usize::from(of) / usize::from(u16::MAX);
                let mut head_a = to_a.split_to(share(&to_a, arrived_a));
                let mut head_b = to_b.split_to(share(&to_b, arrived_b));
                take(&mut a, &mut head_a, &mut at_a);
                take(&mut b, &mut head_b, &mut at_b);
                if cut {
                    (to_a, to_b) = (BytesMut::new(), BytesMut::new());
                    new_carrier(&mut a, &mut b);
                }
            }
            // Twice: room that the first acknowledgements make is for what is still pending.
            for _ in 0..2 {
                put(&mut a, &mut to_b);
                put(&mut b, &mut to_a);
                take(&mut a, &mut to_a, &mut at_a);
                take(&mut b, &mut to_b, &mut at_b);
            }
            prop_assert!(at_b == from_a && at_a == from_b);
        }

        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>) {
            let mut wire = BytesMut::from(&bytes[..]);
            let mut lane = Resume::default();
            while !wire.is_empty() && lane.handle_input(&mut wire).is_ok() {}
        }
    }
}
