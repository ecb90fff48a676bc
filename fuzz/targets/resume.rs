//! The segments of a lane, as the peer sends them, while this end sends and changes its carrier.
//!
//! The input is a sequence of steps: a byte that says what, and one that says how much.

use bytes::BytesMut;
use tp_protocol::limits::{MAX_SEGMENT_BYTES, REPLAY_BYTES};
use tp_protocol::resume::{HEADER_BYTES, Resume, ResumeError};

/// What is kept may be above the limit by what keeping the segments costs.
const KEPT_BYTES_MAX: usize = 2 * REPLAY_BYTES;

/// What is sent.
static PAYLOAD: [u8; 255 << 10] = [0x5a; 255 << 10];

pub(crate) fn run(mut data: &[u8]) {
    let mut end = Resume::default();
    while let Some((&[what, much], rest)) = data.split_first_chunk::<2>() {
        data = rest;
        let received = end.received();
        let result = match what % 4 {
            0 => {
                let (input, rest) = data.split_at(usize::from(much).min(data.len()));
                data = rest;
                handle(&mut end, input)
            }
            1 => {
                end.send(&PAYLOAD[..usize::from(much) * 1_024]);
                Ok(())
            }
            2 => {
                end.on_idle();
                for _ in 0..much {
                    let Some(segment) = end.poll_transmit() else { break };
                    assert!(segment.payload.len() <= MAX_SEGMENT_BYTES && segment.header.len() == HEADER_BYTES);
                }
                Ok(())
            }
            _ => end.on_carrier(u64::from(much) * 512),
        };
        assert!(end.received() >= received && end.kept_bytes() <= KEPT_BYTES_MAX);
        if result.is_err() {
            return;
        }
    }
}

fn handle(end: &mut Resume, input: &[u8]) -> Result<(), ResumeError> {
    let mut input = BytesMut::from(input);
    while !input.is_empty() {
        let before = input.len();
        let payload = end.handle_input(&mut input)?;
        assert!(input.len() < before, "no progress");
        assert!(payload.is_none_or(|payload| !payload.is_empty() && payload.len() <= MAX_SEGMENT_BYTES));
    }
    Ok(())
}
