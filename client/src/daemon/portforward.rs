//! A port of a pod as a byte stream: the WebSocket port-forward of the API server.
//!
//! Each message of the sub-protocol `v4.channel.k8s.io` is one byte of channel number and the channel's bytes. One
//! forwarded port has two channels, 0 for data and 1 for errors; the first message on each is the port (two bytes, little
//! endian). There is no half-close: the stream ends for both directions at once. Source: kubelet's streaming server,
//! `k8s.io/kubelet/pkg/cri/streaming/portforward/websocket.go`.
//!
//! kube's own `Portforwarder` sends messages of 4 KiB and flushes after each; this adapter sends what it is given in
//! messages of up to [`MAX_MESSAGE_BYTES`] and flushes when its writer does.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message};

/// Bytes of payload in one WebSocket message. Messages of 32 to 64 KiB carried 6 to 8 times what 4 KiB ones did.
const MAX_MESSAGE_BYTES: usize = 64 << 10;

const DATA_CHANNEL: u8 = 0;
const ERROR_CHANNEL: u8 = 1;

/// The byte stream of one forwarded port.
#[derive(Debug)]
pub(crate) struct PortForward<IO> {
    socket: WebSocketStream<IO>,
    inbox: Bytes,
    /// Channels whose first message, the port, is still to come.
    announced: [bool; 2],
}

impl<IO: AsyncRead + AsyncWrite + Unpin> PortForward<IO> {
    /// Wraps a WebSocket that was opened on `.../portforward?ports=PORT`.
    pub(crate) fn new(socket: WebSocketStream<IO>) -> Self {
        Self { socket, inbox: Bytes::new(), announced: [false; 2] }
    }

    /// Sorts one message: data goes to the inbox, an error ends the stream.
    fn on_message(&mut self, mut message: Bytes) -> io::Result<()> {
        if message.is_empty() {
            return Ok(());
        }
        let channel = message.get_u8();
        let Some(announced) = self.announced.get_mut(usize::from(channel)) else {
            return Err(io::Error::other(format!("port-forward sent data on channel {channel}")));
        };
        if !std::mem::replace(announced, true) {
            return Ok(());
        }
        if channel == ERROR_CHANNEL {
            let text = String::from_utf8_lossy(&message);
            return Err(io::Error::new(io::ErrorKind::ConnectionReset, text.trim().to_owned()));
        }
        self.inbox = message;
        Ok(())
    }

    /// Sends `parts` as one message; the caller has made room.
    fn start_send(&mut self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        let total: usize = parts.iter().map(|p| p.len()).sum();
        let mut message = BytesMut::with_capacity(1 + total.min(MAX_MESSAGE_BYTES));
        message.put_u8(DATA_CHANNEL);
        for part in parts {
            let room = MAX_MESSAGE_BYTES + 1 - message.len();
            message.put_slice(&part[..part.len().min(room)]);
        }
        let len = message.len() - 1;
        Pin::new(&mut self.socket).start_send(Message::Binary(message.freeze())).map_err(into_io)?;
        Ok(len)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for PortForward<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.inbox.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(message))) => self.on_message(message)?,
                Some(Ok(Message::Text(text))) => self.on_message(text.into())?,
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(into_io(error))),
            }
        }
        let len = self.inbox.len().min(buf.remaining());
        buf.put_slice(&self.inbox[..len]);
        self.inbox.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for PortForward<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(into_io)?;
        Poll::Ready(self.start_send(bufs))
    }

    /// HTTP/2 writes a frame's header and payload as two slices: they become one message.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(into_io)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(into_io)
    }
}

fn into_io(error: tungstenite::Error) -> io::Error {
    match error {
        tungstenite::Error::Io(error) => error,
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt, StreamExt};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;

    async fn pair() -> (PortForward<DuplexStream>, WebSocketStream<DuplexStream>) {
        let (near, far) = tokio::io::duplex(1 << 20);
        let near = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
        (PortForward::new(near), WebSocketStream::from_raw_socket(far, Role::Server, None).await)
    }

    async fn announce(kubelet: &mut WebSocketStream<DuplexStream>) {
        for channel in [DATA_CHANNEL, ERROR_CHANNEL] {
            kubelet.send(Message::binary(vec![channel, 0xe8, 0x1c])).await.unwrap();
        }
    }

    #[tokio::test]
    async fn data_arrives_without_the_channel_and_the_announcements() {
        let (mut pod, mut kubelet) = pair().await;
        announce(&mut kubelet).await;
        for text in ["hello", "", " world"] {
            kubelet.send(Message::binary([&[DATA_CHANNEL], text.as_bytes()].concat())).await.unwrap();
        }
        kubelet.close(None).await.unwrap();
        let mut received = String::new();
        pod.read_to_string(&mut received).await.unwrap();
        assert_eq!(received, "hello world");
    }

    #[tokio::test]
    async fn writes_become_messages_of_bounded_size_and_slices_share_one() {
        let (mut pod, mut kubelet) = pair().await;
        pod.write_all(&vec![7; MAX_MESSAGE_BYTES + 10]).await.unwrap();
        let slices = [io::IoSlice::new(b"head"), io::IoSlice::new(b"body")];
        assert_eq!(pod.write_vectored(&slices).await.unwrap(), 8);
        pod.flush().await.unwrap();
        let mut lens = Vec::new();
        for _ in 0..3 {
            lens.push(kubelet.next().await.unwrap().unwrap().into_data().len() - 1);
        }
        assert_eq!(lens, [MAX_MESSAGE_BYTES, 10, 8]);
    }

    #[tokio::test]
    async fn error_of_the_kubelet_is_the_error_of_the_read() {
        let (mut pod, mut kubelet) = pair().await;
        announce(&mut kubelet).await;
        kubelet.send(Message::binary(&b"\x01connection refused\n"[..])).await.unwrap();
        let error = pod.read_u8().await.unwrap_err();
        assert_eq!(error.to_string(), "connection refused");
    }
}
