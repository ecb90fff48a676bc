//! A UDP flow's byte stream, as the peer sends it. The first byte says in which pieces it arrives.

use bytes::{Bytes, BytesMut};
use tp_protocol::datagram::{self, CapsuleDecoder, CapsuleError};
use tp_protocol::limits::MAX_DATAGRAM_BYTES;

pub(crate) fn run(data: &[u8]) {
    let Some((&piece, stream)) = data.split_first() else { return };
    let whole = decode(stream.chunks(stream.len().max(1)));
    let pieces = decode(stream.chunks(usize::from(piece).max(1)));
    assert_eq!(whole, pieces, "what arrives depends on the pieces it comes in");
    let mut again = BytesMut::new();
    for payload in &whole.0 {
        assert!(payload.len() <= MAX_DATAGRAM_BYTES);
        datagram::encode(payload, &mut again);
    }
    assert_eq!(decode(std::iter::once(&again[..])), (whole.0, None));
}

fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Bytes>, Option<CapsuleError>) {
    let mut decoder = CapsuleDecoder::default();
    let mut payloads = Vec::new();
    for piece in pieces {
        decoder.handle_input(piece);
        loop {
            match decoder.poll_datagram() {
                Ok(Some(payload)) => payloads.push(payload),
                Ok(None) => break,
                Err(error) => return (payloads, Some(error)),
            }
        }
    }
    (payloads, None)
}
