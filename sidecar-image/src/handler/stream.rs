//! A flow as a byte stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tp_tunnel::error::FlowError;
use tp_tunnel::flow::{Flow, FlowReceiver, FlowSender};

use crate::engine::stream::Stream;

/// How long the peer may take to end its direction, once we have ended ours and read no more: `tcp_fin_timeout` of Linux.
const FIN_WAIT: Duration = Duration::from_secs(60);

/// A flow, read and written as a TCP connection is. Dropped after it was shut down it behaves as a socket that was closed:
/// the peer reads all that was sent and its end, and is reset when it sends more; a task of its own waits for that. Dropped
/// before, it resets the peer.
#[derive(Debug)]
pub(crate) struct FlowStream {
    sender: FlowSender,
    /// `None` once its end was read.
    receiver: Option<FlowReceiver>,
    /// Received and not read yet; the peer gets its credit back when it is.
    inbox: Bytes,
    is_shut_down: bool,
}

impl FlowStream {
    pub(crate) fn new(flow: Flow) -> Self {
        let (sender, receiver) = flow.split();
        Self { sender, receiver: Some(receiver), inbox: Bytes::new(), is_shut_down: false }
    }
}

impl AsyncRead for FlowStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = &mut *self;
        let Some(receiver) = &mut me.receiver else {
            return Poll::Ready(Ok(()));
        };
        // A frame can be empty.
        while me.inbox.is_empty() {
            match ready!(receiver.poll_data(cx)) {
                Some(data) => me.inbox = data.map_err(broken)?,
                None => {
                    me.receiver = None;
                    return Poll::Ready(Ok(()));
                }
            }
        }
        let len = me.inbox.len().min(buf.remaining());
        buf.put_slice(&me.inbox[..len]);
        me.inbox.advance(len);
        receiver.release(len);
        if me.inbox.is_empty() {
            // What is left of it would keep the whole frame.
            me.inbox = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for FlowStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let len = ready!(self.sender.poll_capacity(data.len(), cx)).map_err(broken)?;
        self.sender.send(Bytes::copy_from_slice(&data[..len])).map_err(broken)?;
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_shut_down {
            self.sender.finish().map_err(broken)?;
            self.is_shut_down = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl Stream for FlowStream {
    fn reset_on_drop(&mut self) {
        // Without a receiver that is waited for, dropping it cancels the stream.
        self.receiver = None;
    }
}

impl Drop for FlowStream {
    fn drop(&mut self) {
        let receiver = self.receiver.take().filter(|_| self.is_shut_down);
        if let (Some(receiver), Ok(runtime)) = (receiver, Handle::try_current()) {
            runtime.spawn(linger(receiver));
        }
    }
}

/// Waits for the peer to end its direction: dropping the receiver before cancels the stream, and with it what the peer
/// has not read yet.
async fn linger(mut receiver: FlowReceiver) {
    // Data is what nobody reads any more; so are an error and silence for too long.
    let _ = timeout(FIN_WAIT, receiver.data()).await;
}

/// What a socket says when its peer has reset it.
pub(super) fn broken(error: FlowError) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}
