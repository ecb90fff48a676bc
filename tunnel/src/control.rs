//! The control channel: protobuf messages in both directions of one HTTP/2 stream.

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use prost::Message;
use tp_protocol::frame;
use tp_protocol::limits::MAX_CONTROL_BYTES;

use crate::error::FlowError;
use crate::flow::{Flow, FlowReceiver, FlowSender};

/// Both directions of the control channel.
#[derive(Debug)]
pub struct Control {
    sender: ControlSender,
    receiver: ControlReceiver,
}

/// Sends messages.
#[derive(Debug)]
pub struct ControlSender {
    flow: FlowSender,
}

/// Receives messages.
#[derive(Debug)]
pub struct ControlReceiver {
    flow: FlowReceiver,
    inbox: BytesMut,
}

impl Control {
    pub(crate) fn new(send: SendStream<Bytes>, recv: RecvStream) -> Self {
        let (sender, receiver) = Flow::new(send, recv).split();
        Self {
            sender: ControlSender { flow: sender },
            receiver: ControlReceiver { flow: receiver, inbox: BytesMut::new() },
        }
    }

    /// Separates the directions.
    pub fn split(self) -> (ControlSender, ControlReceiver) {
        (self.sender, self.receiver)
    }
}

impl ControlSender {
    /// Sends one message. Not cancel-safe: a message cut short breaks the channel.
    ///
    /// # Errors
    /// [`FlowError::Cancelled`] when the lane is gone.
    pub async fn send(&mut self, message: &impl Message) -> Result<(), FlowError> {
        let mut outbox = BytesMut::new();
        frame::encode(message, &mut outbox);
        self.flow.send_all(outbox.freeze()).await
    }

    /// Ends this direction in good order.
    ///
    /// # Errors
    /// [`FlowError::Cancelled`] when the lane is gone.
    pub fn finish(&mut self) -> Result<(), FlowError> {
        self.flow.finish()
    }
}

impl ControlReceiver {
    /// Receives the next message; `None` when the peer ended its direction. Cancel-safe.
    ///
    /// # Errors
    /// [`FlowError`] when the channel is gone or the peer broke the framing.
    pub async fn recv<M: Message + Default>(&mut self) -> Option<Result<M, FlowError>> {
        loop {
            match frame::decode(&mut self.inbox, MAX_CONTROL_BYTES) {
                Ok(Some(message)) => return Some(Ok(message)),
                Ok(None) => {}
                Err(error) => return Some(Err(error.into())),
            }
            match self.flow.data().await? {
                Ok(data) => {
                    self.flow.release(data.len());
                    self.inbox.extend_from_slice(&data);
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
