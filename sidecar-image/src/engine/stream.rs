//! Byte streams that can be reset.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::limits;

/// A byte stream in each direction, with TCP's two ways to end: in order, by shutting it down, and by a reset.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    /// Makes dropping it a reset, which the peer can tell from an orderly end.
    fn reset_on_drop(&mut self);
}

/// A stream to anywhere.
pub type BoxStream = Box<dyn Stream>;

impl Stream for TcpStream {
    fn reset_on_drop(&mut self) {
        // Closing with a zero linger time sends RST instead of FIN (socket(7), SO_LINGER).
        let _ = self.set_zero_linger();
    }
}

/// A stream that is reset when it is dropped before it was shut down, and that can look ahead.
pub(crate) struct Guarded {
    io: BoxStream,
    /// What was read ahead.
    ahead: BytesMut,
    is_shut_down: bool,
    heads: Option<Arc<HeadWatch>>,
    /// When the head has to be there that comes after so many others.
    head_deadline: Option<(usize, Pin<Box<Sleep>>)>,
}

/// What the reader of HTTP/1 requests is about, so that a head cannot take for ever to arrive.
#[derive(Debug, Default)]
pub(crate) struct HeadWatch {
    /// Heads that have arrived.
    heads: AtomicUsize,
    /// Messages under way: while there is one, what comes may be its body.
    messages: AtomicUsize,
}

/// A message under way, from the arrival of its head.
pub(crate) struct Message(Arc<HeadWatch>);

impl HeadWatch {
    /// A head is there.
    pub(crate) fn on_head(self: &Arc<Self>) -> Message {
        self.heads.fetch_add(1, Ordering::Relaxed);
        self.messages.fetch_add(1, Ordering::Relaxed);
        Message(Arc::clone(self))
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        self.0.messages.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Guarded {
    pub(crate) fn new(io: BoxStream) -> Self {
        Self { io, ahead: BytesMut::new(), is_shut_down: false, heads: None, head_deadline: None }
    }

    /// Limits how long a head may take: from its first byte, while `watch` knows of no message.
    pub(crate) fn watch_heads(&mut self, watch: Arc<HeadWatch>) {
        // What was read ahead is the beginning of one.
        self.head_deadline = Some((0, Box::pin(sleep(limits::HEAD))));
        self.heads = Some(watch);
    }

    /// Reads more of what [`Self::ahead`] shows, and returns how much; 0 at the end. Cancel safe.
    pub(crate) async fn read_ahead(&mut self) -> io::Result<usize> {
        let room = limits::SNIFF_BYTES - self.ahead.len().min(limits::SNIFF_BYTES);
        (&mut self.io).take(room as u64).read_buf(&mut self.ahead).await
    }

    /// What was read ahead.
    pub(crate) fn ahead(&self) -> &[u8] {
        &self.ahead
    }

    fn poll_head_deadline(&mut self, cx: &mut Context<'_>, received: bool) -> io::Result<()> {
        let Some(heads) = &self.heads else {
            return Ok(());
        };
        let before = heads.heads.load(Ordering::Relaxed);
        self.head_deadline.take_if(|(of, _)| *of != before);
        if received && heads.messages.load(Ordering::Relaxed) == 0 && self.head_deadline.is_none() {
            self.head_deadline = Some((before, Box::pin(sleep(limits::HEAD))));
        }
        if let Some((_, deadline)) = &mut self.head_deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

impl AsyncRead for Guarded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = &mut *self;
        if !me.ahead.is_empty() {
            let len = me.ahead.len().min(buf.remaining());
            buf.put_slice(&me.ahead[..len]);
            me.ahead.advance(len);
            if me.ahead.is_empty() {
                me.ahead = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        let filled = buf.filled().len();
        let polled = Pin::new(&mut me.io).poll_read(cx, buf);
        me.poll_head_deadline(cx, buf.filled().len() > filled)?;
        polled
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_shut_down = true;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if !self.is_shut_down {
            self.io.reset_on_drop();
        }
    }
}
