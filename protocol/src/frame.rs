//! Length-prefixed protobuf messages on a byte stream.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | flags: 0, uncompressed (no other value is in use) |
//! | 1 | 4 | length of the message, big-endian |
//! | 5 | length | the message |
//!
//! This is the message framing of gRPC over HTTP/2 ("Length-Prefixed-Message"), so that ordinary tools read it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

/// Bytes before each message.
pub const PREFIX_BYTES: usize = 5;

/// Why a byte stream is not a sequence of messages. The stream cannot be resynchronised afterwards.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameError {
    /// The length prefix is above the limit of this stream.
    #[error("peer announced a {len}-byte message, the limit is {max}")]
    TooLong {
        /// Bytes announced.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The flag byte asks for something that no version of the protocol uses.
    #[error("peer sent a message with unknown flags {0:#04x}")]
    UnknownFlags(u8),
    /// The message is not valid protobuf of its type.
    #[error("peer sent a malformed message: {0}")]
    Malformed(String),
}

/// Appends `message` with its prefix to `outbox`.
pub fn encode(message: &impl Message, outbox: &mut BytesMut) {
    let len = message.encoded_len();
    outbox.reserve(PREFIX_BYTES + len);
    outbox.put_u8(0);
    outbox.put_u32(u32::try_from(len).expect("messages are far below 4 GiB"));
    message.encode(outbox).expect("space was reserved above");
}

/// Cuts the next whole message off `inbox`; `None` when more bytes are needed.
///
/// # Errors
/// [`FrameError`] when the prefix or the message is not valid; the stream is then beyond repair.
pub fn decode<M: Message + Default>(inbox: &mut BytesMut, max: usize) -> Result<Option<M>, FrameError> {
    let Some(body) = split_frame(inbox, max)? else {
        return Ok(None);
    };
    M::decode(body).map(Some).map_err(|e| FrameError::Malformed(e.to_string()))
}

/// Cuts the next whole frame off `inbox` and returns its body.
fn split_frame(inbox: &mut BytesMut, max: usize) -> Result<Option<Bytes>, FrameError> {
    let Some((prefix, _)) = inbox.split_first_chunk::<PREFIX_BYTES>() else {
        return Ok(None);
    };
    let [flags, len @ ..] = *prefix;
    if flags != 0 {
        return Err(FrameError::UnknownFlags(flags));
    }
    let len = u32::from_be_bytes(len) as usize;
    if len > max {
        return Err(FrameError::TooLong { len, max });
    }
    if inbox.len() < PREFIX_BYTES + len {
        return Ok(None);
    }
    inbox.advance(PREFIX_BYTES);
    Ok(Some(inbox.split_to(len).freeze()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn message_arrives_whole_from_single_bytes() {
        let mut wire = BytesMut::new();
        encode(&"hello".to_owned(), &mut wire);
        let mut inbox = BytesMut::new();
        for byte in wire {
            assert_eq!(decode::<String>(&mut inbox.clone(), 64), Ok(None));
            inbox.put_u8(byte);
        }
        assert_eq!(decode::<String>(&mut inbox, 64), Ok(Some("hello".to_owned())));
        assert!(inbox.is_empty());
    }

    #[test]
    fn length_above_the_limit_is_refused_before_the_body_arrives() {
        let mut inbox = BytesMut::from(&[0, 0, 1, 0, 0][..]);
        assert_eq!(decode::<String>(&mut inbox, 65_535), Err(FrameError::TooLong { len: 65_536, max: 65_535 }));
    }

    #[test]
    fn unknown_flags_are_refused() {
        let mut inbox = BytesMut::from(&[1, 0, 0, 0, 0][..]);
        assert_eq!(decode::<String>(&mut inbox, 64), Err(FrameError::UnknownFlags(1)));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>) {
            let mut inbox = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = decode::<String>(&mut inbox, 1024) {}
        }
    }
}
