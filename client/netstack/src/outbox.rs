//! Packets that no flow sends again: bounded queues, which drop the newest.

use std::{collections::VecDeque, net::SocketAddr};

use bytes::Bytes;

use crate::{EchoRequest, TunId};

/// Waiting packets.
pub(crate) struct Outbox {
    /// Whole packets without a device header, complete with checksums.
    pub(crate) replies: VecDeque<(TunId, Box<[u8]>)>,
    pub(crate) replies_max: usize,
    messages: VecDeque<Message>,
    messages_max: usize,
    message_bytes: usize,
    message_bytes_max: usize,
}

/// A datagram or echo reply; the packet is made when it is sent.
#[derive(Debug)]
pub(crate) enum Message {
    Datagram { tun: TunId, src: SocketAddr, dst: SocketAddr, payload: Bytes },
    EchoReply(EchoRequest),
}

/// The queue takes no more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Outbox {
    pub(crate) fn new(replies_max: usize, messages_max: usize, message_bytes_max: usize) -> Self {
        Self {
            replies: VecDeque::new(),
            replies_max,
            messages: VecDeque::new(),
            messages_max,
            message_bytes: 0,
            message_bytes_max,
        }
    }

    pub(crate) fn push_reply(&mut self, tun: TunId, packet: Box<[u8]>) -> Result<(), Full> {
        if self.replies.len() >= self.replies_max {
            return Err(Full);
        }
        self.replies.push_back((tun, packet));
        Ok(())
    }

    pub(crate) fn push_message(&mut self, message: Message) -> Result<(), Full> {
        let bytes = message.payload().len();
        if self.messages.len() >= self.messages_max || self.message_bytes + bytes > self.message_bytes_max {
            return Err(Full);
        }
        self.message_bytes += bytes;
        self.messages.push_back(message);
        Ok(())
    }

    pub(crate) fn pop_message(&mut self) -> Option<Message> {
        let message = self.messages.pop_front()?;
        self.message_bytes -= message.payload().len();
        Some(message)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.replies.is_empty() && self.messages.is_empty()
    }
}

impl Message {
    fn payload(&self) -> &Bytes {
        match self {
            Self::Datagram { payload, .. } => payload,
            Self::EchoReply(request) => &request.payload,
        }
    }
}
