//! A port of a pod as a byte stream: port-forward in a WebSocket of the API server.
//!
//! There are two sub-protocols. `v4.channel.k8s.io` ([`channels`]) ends its WebSocket at the kubelet, which unmasks byte by
//! byte; `SPDY/3.1+portforward.k8s.io` (Kubernetes 1.31 and later; [`spdy`]) ends it at the API server, which does so by
//! words, and hands every frame through more goroutines. So the one is better for answers, the other for uploads.
//! There is no use of half-close: the stream ends for both directions at once.
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

mod channels;
mod spdy;
mod upgrade;

use channels::Channels;
use spdy::Spdy;
pub(crate) use upgrade::{Offer, open};

/// Bytes of payload in one WebSocket message. Messages of 32 to 64 KiB carried 6 to 8 times what 4 KiB ones did.
const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// The byte stream of one forwarded port.
#[derive(Debug)]
pub(crate) struct PortForward<IO> {
    socket: WebSocketStream<IO>,
    framing: Framing,
    /// What is left of the last message.
    message: Bytes,
    /// What is left of the last payload in it.
    inbox: Bytes,
    has_ended: bool,
}

/// How a message is read and written: the sub-protocol.
#[derive(Debug)]
enum Framing {
    Channels(Channels),
    Spdy(Spdy),
}

/// A piece of a message.
#[derive(Debug, PartialEq, Eq)]
enum Piece {
    /// Bytes of the port.
    Data(Bytes),
    /// Nothing for the reader.
    Other,
    /// The last bytes of the port, which was closed.
    End(Bytes),
}

impl Framing {
    /// Takes the next piece off a message that is not empty; an error when the far end reports one.
    fn next(&mut self, message: &mut Bytes) -> io::Result<Piece> {
        match self {
            Self::Channels(channels) => channels.next(message),
            Self::Spdy(spdy) => spdy.next(message),
        }
    }

    /// Writes what precedes a payload of `len` bytes.
    fn start(&mut self, len: usize, message: &mut BytesMut) {
        match self {
            Self::Channels(_) => Channels::start(message),
            Self::Spdy(spdy) => spdy.start(len, message),
        }
    }
}

/// The kubelet's words, as an error of the stream.
fn reported(text: &[u8]) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, String::from_utf8_lossy(text).trim().to_owned())
}

impl<IO: AsyncRead + AsyncWrite + Unpin> PortForward<IO> {
    fn new(socket: WebSocketStream<IO>, framing: Framing) -> Self {
        Self { socket, framing, message: Bytes::new(), inbox: Bytes::new(), has_ended: false }
    }

    /// Sends `parts` as one message; the caller has made room.
    fn start_send(&mut self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        let len = parts.iter().map(|p| p.len()).sum::<usize>().min(MAX_MESSAGE_BYTES);
        let mut message = BytesMut::with_capacity(spdy::MAX_START_BYTES + len);
        self.framing.start(len, &mut message);
        let mut left = len;
        for part in parts {
            let taken = part.len().min(left);
            message.put_slice(&part[..taken]);
            left -= taken;
        }
        Pin::new(&mut self.socket).start_send(Message::Binary(message.freeze())).map_err(into_io)?;
        Ok(len)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for PortForward<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.inbox.is_empty() && !this.has_ended {
            if !this.message.is_empty() {
                match this.framing.next(&mut this.message)? {
                    Piece::Data(data) => this.inbox = data,
                    Piece::Other => {}
                    Piece::End(data) => (this.inbox, this.has_ended) = (data, true),
                }
                continue;
            }
            match ready!(Pin::new(&mut this.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(message))) => this.message = message,
                Some(Ok(Message::Text(text))) => this.message = text.into(),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(into_io(error))),
            }
        }
        let len = this.inbox.len().min(buf.remaining());
        buf.put_slice(&this.inbox[..len]);
        this.inbox.advance(len);
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

    async fn pair(framing: Framing) -> (PortForward<DuplexStream>, WebSocketStream<DuplexStream>) {
        let (near, far) = tokio::io::duplex(1 << 20);
        let near = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
        (PortForward::new(near, framing), WebSocketStream::from_raw_socket(far, Role::Server, None).await)
    }

    #[tokio::test]
    async fn data_arrives_without_the_channel_and_the_announcements() {
        let (mut pod, mut kubelet) = pair(Framing::Channels(Channels::default())).await;
        for message in [&[0, 0xe8, 0x1c][..], &[1, 0xe8, 0x1c], b"\0hello", b"\0", b"\0 world"] {
            kubelet.send(Message::binary(message.to_vec())).await.unwrap();
        }
        kubelet.close(None).await.unwrap();
        let mut received = String::new();
        pod.read_to_string(&mut received).await.unwrap();
        assert_eq!(received, "hello world");
    }

    #[tokio::test]
    async fn writes_become_messages_of_bounded_size_and_slices_share_one() {
        for (framing, overhead) in [(Framing::Channels(Channels::default()), 1), (Framing::Spdy(Spdy::new(80)), 8)] {
            let (mut pod, mut kubelet) = pair(framing).await;
            pod.write_all(b"first").await.unwrap();
            pod.flush().await.unwrap();
            kubelet.next().await.unwrap().unwrap();
            pod.write_all(&vec![7; MAX_MESSAGE_BYTES + 10]).await.unwrap();
            let slices = [io::IoSlice::new(b"head"), io::IoSlice::new(b"body")];
            assert_eq!(pod.write_vectored(&slices).await.unwrap(), 8);
            pod.flush().await.unwrap();
            for len in [MAX_MESSAGE_BYTES, 10, 8] {
                assert_eq!(kubelet.next().await.unwrap().unwrap().into_data().len(), overhead + len);
            }
        }
    }

    #[tokio::test]
    async fn error_of_the_kubelet_is_the_error_of_the_read() {
        let (mut pod, mut kubelet) = pair(Framing::Channels(Channels::default())).await;
        kubelet.send(Message::binary(&b"\x01\xe8\x1c"[..])).await.unwrap();
        kubelet.send(Message::binary(&b"\x01connection refused\n"[..])).await.unwrap();
        let error = pod.read_u8().await.unwrap_err();
        assert_eq!(error.to_string(), "connection refused");
    }
}
