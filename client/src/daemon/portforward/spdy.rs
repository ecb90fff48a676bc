//! `SPDY/3.1+portforward.k8s.io`: a SPDY connection to the kubelet, cut into messages anywhere.
//!
//! A forwarded port is a pair of streams, one for errors and one for data (`k8s.io/kubelet/pkg/cri/streaming/portforward/
//! httpstream.go`). They are opened in the message of the first data, without waiting for the replies, which say nothing.
//! Kubernetes' SPDY has no flow control: either end stops reading instead. Frames: SPDY/3.1 draft, section 2.2. Headers
//! are in a zlib stream; stored blocks are one too (RFC 1951 section 3.2.4), with an empty one behind each header block.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Piece, reported};

const FRAME_HEADER_BYTES: usize = 8;

/// The first half of a control frame's header: a bit, the version, and the type.
const CONTROL: u32 = 0x8003_0000;
const SYN_STREAM: u32 = CONTROL | 1;
const RST_STREAM: u32 = CONTROL | 3;
const GOAWAY: u32 = CONTROL | 7;

/// In the second half: a byte of flags before three of length.
const FLAG_FIN: u32 = 1 << 24;
const LEN_MASK: u32 = FLAG_FIN - 1;

/// Streams of clients have odd numbers.
const ERROR_STREAM: u32 = 1;
const DATA_STREAM: u32 = 3;

/// Header of a zlib stream with a window of 32 KiB and no dictionary (RFC 1950 section 2.2).
const ZLIB_HEADER: &[u8] = &[0x78, 0x01];

/// A stored block without data.
const EMPTY_BLOCK: &[u8] = &[0, 0, 0, 0xff, 0xff];

/// Room for all that can precede a payload: the opens of two streams and the payload's frame header.
pub(super) const MAX_START_BYTES: usize = 256;

/// The kubelet's error is cut behind this much.
const MAX_ERROR_BYTES: usize = 4 << 10;

/// Reads and writes frames.
#[derive(Debug)]
pub(super) struct Spdy {
    /// The port to open, until that was asked for.
    port: Option<u16>,
    /// A frame's header, as far as it has come.
    header: BytesMut,
    frame: Frame,
    /// Bytes of the frame's payload that are still to come.
    left: usize,
    error: Vec<u8>,
}

/// What is being received.
#[derive(Clone, Copy, Debug)]
enum Frame {
    /// A frame's header.
    Header,
    /// Data.
    Data { is_last: bool },
    /// Text that explains the end.
    Error,
    /// The end of the streams or of the connection.
    End,
    /// Replies, settings.
    Other,
}

impl Spdy {
    /// A connection on which nothing was sent yet.
    pub(super) fn new(port: u16) -> Self {
        Self { port: Some(port), header: BytesMut::new(), frame: Frame::Header, left: 0, error: Vec::new() }
    }

    /// Takes what there is of a frame's header or payload.
    pub(super) fn next(&mut self, message: &mut Bytes) -> io::Result<Piece> {
        if matches!(self.frame, Frame::Header) {
            let missing = FRAME_HEADER_BYTES - self.header.len();
            self.header.extend_from_slice(&message.split_to(missing.min(message.len())));
            if self.header.len() < FRAME_HEADER_BYTES {
                return Ok(Piece::Other);
            }
            self.on_header();
        }
        let payload = message.split_to(message.len().min(self.left));
        self.left -= payload.len();
        let frame = self.frame;
        if self.left == 0 {
            self.frame = Frame::Header;
        }
        match frame {
            Frame::Data { is_last: true } if self.left == 0 => self.end(payload),
            Frame::Data { .. } => Ok(Piece::Data(payload)),
            Frame::Error => {
                let room = MAX_ERROR_BYTES.saturating_sub(self.error.len());
                self.error.extend_from_slice(&payload[..payload.len().min(room)]);
                Ok(Piece::Other)
            }
            Frame::End if self.left == 0 => self.end(Bytes::new()),
            Frame::End | Frame::Header | Frame::Other => Ok(Piece::Other),
        }
    }

    /// Reads a whole header.
    fn on_header(&mut self) {
        let (kind, flags_and_len) = (self.header.get_u32(), self.header.get_u32());
        self.left = (flags_and_len & LEN_MASK) as usize;
        self.frame = match kind {
            DATA_STREAM => Frame::Data { is_last: flags_and_len & FLAG_FIN != 0 },
            ERROR_STREAM => Frame::Error,
            RST_STREAM | GOAWAY => Frame::End,
            _ => Frame::Other,
        };
    }

    fn end(&self, last: Bytes) -> io::Result<Piece> {
        if self.error.is_empty() { Ok(Piece::End(last)) } else { Err(reported(&self.error)) }
    }

    /// Writes what precedes a payload of `len` bytes: the header of its frame, and before the first one the opens.
    pub(super) fn start(&mut self, len: usize, message: &mut BytesMut) {
        if let Some(port) = self.port.take() {
            // Nothing will be sent on the error stream.
            put_open(
                ERROR_STREAM,
                FLAG_FIN,
                ZLIB_HEADER,
                &[("streamtype", "error"), ("port", &port.to_string())],
                message,
            );
            put_open(DATA_STREAM, 0, &[], &[("streamtype", "data"), ("port", &port.to_string())], message);
        }
        message.put_u32(DATA_STREAM);
        message.put_u32(len as u32 & LEN_MASK);
    }
}

/// Opens a stream of a forwarded port.
fn put_open(id: u32, flags: u32, zlib_header: &[u8], headers: &[(&str, &str)], message: &mut BytesMut) {
    let mut block = BytesMut::with_capacity(64);
    block.put_u32(headers.len() as u32);
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        block.put_u32(text.len() as u32);
        block.put_slice(text.as_bytes());
    }
    let mut payload = BytesMut::with_capacity(MAX_START_BYTES);
    payload.put_u32(id);
    // Associated to no stream, of the highest priority, without a credential.
    payload.put_slice(&[0; 6]);
    payload.put_slice(zlib_header);
    payload.put_u8(0);
    payload.put_u16_le(block.len() as u16);
    payload.put_u16_le(!(block.len() as u16));
    payload.put_slice(&block);
    payload.put_slice(EMPTY_BLOCK);
    message.put_u32(SYN_STREAM);
    message.put_u32(flags | payload.len() as u32);
    message.put_slice(&payload);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SYN_REPLY: u32 = CONTROL | 2;

    fn frame(kind: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
        let len = flags | u32::try_from(payload.len()).unwrap();
        [&kind.to_be_bytes()[..], &len.to_be_bytes(), payload].concat()
    }

    /// Feeds `wire` in pieces of `cut` bytes; returns the data, and how it ended.
    fn read(wire: &[u8], cut: usize) -> (Vec<u8>, io::Result<bool>) {
        let (mut spdy, mut data) = (Spdy::new(80), Vec::new());
        for chunk in wire.chunks(cut) {
            let mut message = Bytes::copy_from_slice(chunk);
            while !message.is_empty() {
                match spdy.next(&mut message) {
                    Ok(Piece::Data(payload)) => data.extend_from_slice(&payload),
                    Ok(Piece::End(payload)) => {
                        data.extend_from_slice(&payload);
                        return (data, Ok(true));
                    }
                    Ok(Piece::Other) => {}
                    Err(error) => return (data, Err(error)),
                }
            }
        }
        (data, Ok(false))
    }

    proptest! {
        #[test]
        fn data_is_the_same_wherever_messages_are_cut(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8),
            cut in 1..50_usize,
            ends_with_data: bool,
        ) {
            let mut wire = [frame(SYN_REPLY, 0, &[0; 9]), frame(SYN_REPLY, 0, &[0; 9])].concat();
            for payload in &payloads {
                wire.extend(frame(DATA_STREAM, 0, payload));
                wire.extend(frame(CONTROL | 6, 0, &[0; 4]));
            }
            let last: &[u8] = if ends_with_data { b"last" } else { b"" };
            wire.extend(frame(DATA_STREAM, FLAG_FIN, last));
            let (data, end) = read(&wire, cut);
            prop_assert_eq!(data, [&payloads.concat()[..], last].concat());
            prop_assert!(end.unwrap());
        }

        #[test]
        fn bytes_of_any_kind_are_survived(wire in prop::collection::vec(any::<u8>(), 0..200), cut in 1..50_usize) {
            let (data, _) = read(&wire, cut);
            prop_assert!(data.len() <= wire.len());
        }
    }

    #[test]
    fn what_the_kubelet_says_is_the_error_of_the_end() {
        let data = frame(DATA_STREAM, 0, b"answer");
        let error = frame(ERROR_STREAM, 0, b"error forwarding port 7400: ").repeat(200);
        let reset = frame(RST_STREAM, 0, &[0, 0, 0, 3, 0, 0, 0, 5]);
        let (data, end) = read(&[data, error, reset].concat(), 7);
        let error = end.unwrap_err();
        assert_eq!((&data[..], error.kind()), (&b"answer"[..], io::ErrorKind::ConnectionReset));
        assert!(
            error.to_string().starts_with("error forwarding port 7400: ") && error.to_string().len() <= MAX_ERROR_BYTES
        );
    }

    #[test]
    fn reset_and_goaway_end_the_stream() {
        assert!(read(&frame(RST_STREAM, 0, &[0; 8]), 3).1.unwrap());
        assert!(read(&frame(GOAWAY, 0, &[0; 8]), 3).1.unwrap());
        assert!(!read(&frame(ERROR_STREAM, FLAG_FIN, b""), 3).1.unwrap());
    }

    #[test]
    fn first_data_comes_behind_the_opens_of_both_streams() {
        let (mut spdy, mut message) = (Spdy::new(7400), BytesMut::new());
        spdy.start(5, &mut message);
        assert!(message.len() <= MAX_START_BYTES);
        let mut wire = message.freeze();
        let mut opens = Vec::new();
        for _ in 0..2 {
            assert_eq!(wire.get_u32(), SYN_STREAM);
            let flags_and_len = wire.get_u32();
            let mut payload = wire.split_to((flags_and_len & LEN_MASK) as usize);
            opens.push((payload.get_u32(), flags_and_len & FLAG_FIN != 0));
            let text = String::from_utf8_lossy(&payload).into_owned();
            assert!(text.contains("streamtype") && text.contains("7400") && payload.ends_with(EMPTY_BLOCK), "{text}");
        }
        assert_eq!(opens, [(ERROR_STREAM, true), (DATA_STREAM, false)]);
        assert_eq!(wire[..], [0, 0, 0, 3, 0, 0, 0, 5]);
        let mut message = BytesMut::new();
        spdy.start(1, &mut message);
        assert_eq!(message[..], [0, 0, 0, 3, 0, 0, 0, 1]);
    }
}
