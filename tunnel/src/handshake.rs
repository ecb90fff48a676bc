//! Hellos on a byte stream, before HTTP/2 takes it over.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;
use tp_protocol::hello;

use crate::error::LaneError;

/// How long a peer may take for its hello. A port-forward through a busy API server takes tens of milliseconds.
pub(crate) const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// A byte stream with the bytes that were read ahead of their reader put back.
#[derive(Debug)]
pub(crate) struct Prefixed<IO> {
    prefix: BytesMut,
    io: IO,
}

/// Sends a hello.
pub(crate) async fn send<IO: AsyncWrite + Unpin>(io: &mut IO, message: &impl Message) -> Result<(), LaneError> {
    let mut outbox = BytesMut::new();
    hello::encode(message, &mut outbox);
    let write = async {
        io.write_all(&outbox).await?;
        io.flush().await
    };
    timeout(HELLO_TIMEOUT, write).await.map_err(|_| LaneError::TimedOut(HELLO_TIMEOUT))??;
    Ok(())
}

/// Receives a hello. Bytes that came behind it are put back.
pub(crate) async fn receive<M, IO>(mut io: IO) -> Result<(M, Prefixed<IO>), LaneError>
where
    M: Message + Default,
    IO: AsyncRead + Unpin,
{
    let mut inbox = BytesMut::new();
    let read = async {
        loop {
            if let Some(message) = hello::decode(&mut inbox)? {
                return Ok(message);
            }
            if io.read_buf(&mut inbox).await? == 0 {
                return Err(LaneError::Io(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    };
    let message = timeout(HELLO_TIMEOUT, read).await.map_err(|_| LaneError::TimedOut(HELLO_TIMEOUT))??;
    Ok((message, Prefixed { prefix: inbox, io }))
}

impl<IO: AsyncRead + Unpin> AsyncRead for Prefixed<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let len = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix[..len]);
        self.prefix.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Prefixed<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
