//! `v4.channel.k8s.io`: each message is one byte of channel number and the channel's bytes.
//!
//! One forwarded port has two channels, 0 for data and 1 for errors; the first message on each is the port (two bytes,
//! little endian). Source: kubelet's streaming server, `k8s.io/kubelet/pkg/cri/streaming/portforward/websocket.go`.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Piece, reported};

const DATA: u8 = 0;
const ERROR: u8 = 1;

/// Reads messages.
#[derive(Debug, Default)]
pub(super) struct Channels {
    /// Whether the first message of the channel, the port, has come.
    announced: [bool; 2],
}

impl Channels {
    /// Takes a whole message.
    pub(super) fn next(&mut self, message: &mut Bytes) -> io::Result<Piece> {
        let mut message = std::mem::take(message);
        let channel = message.get_u8();
        let Some(announced) = self.announced.get_mut(usize::from(channel)) else {
            return Err(io::Error::other(format!("port-forward sent data on channel {channel}")));
        };
        if !std::mem::replace(announced, true) {
            return Ok(Piece::Other);
        }
        if channel == ERROR { Err(reported(&message)) } else { Ok(Piece::Data(message)) }
    }

    /// Writes what precedes a payload.
    pub(super) fn start(message: &mut BytesMut) {
        message.put_u8(DATA);
    }
}
