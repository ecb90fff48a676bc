//! Two streams, joined.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::scratch;
use super::tap::Copies;

/// Relays between a caller and whom it has reached until both directions have ended, with half-close. `copies` get what
/// the caller sends.
///
/// # Errors
/// When it has ended early, for a reset or another error of one side. Both are to be reset then, which dropping them does
/// ([`super::stream::Guarded`]).
pub(crate) async fn join(
    caller: &mut (impl AsyncRead + AsyncWrite + Unpin),
    server: &mut (impl AsyncRead + AsyncWrite + Unpin),
    copies: &mut Copies,
) -> io::Result<()> {
    let (mut up, mut down) = (Direction::default(), Direction::default());
    poll_fn(|cx| {
        if !up.is_done {
            match up.poll(cx, caller, server, copies) {
                Poll::Ready(Ok(())) => copies.end(),
                // A server that takes no more may have answered already: what it sent is read to its end.
                Poll::Ready(Err(End::Writing(_))) => up.is_done = true,
                Poll::Ready(Err(End::Reading(error))) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
        }
        if !down.is_done {
            match down.poll(cx, server, caller, &mut Copies::default()) {
                Poll::Ready(Ok(())) | Poll::Pending => {}
                Poll::Ready(Err(End::Reading(error) | End::Writing(error))) => return Poll::Ready(Err(error)),
            }
        }
        if up.is_done && down.is_done { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// One direction of a relay.
#[derive(Default)]
struct Direction {
    /// Read and not written yet.
    rest: Bytes,
    is_at_end: bool,
    is_done: bool,
}

/// Which side a direction failed on.
enum End {
    Reading(io::Error),
    Writing(io::Error),
}

impl Direction {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        copies: &mut Copies,
    ) -> Poll<Result<(), End>> {
        loop {
            while !self.rest.is_empty() {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.rest)).map_err(End::Writing)?;
                if written == 0 {
                    return Poll::Ready(Err(End::Writing(io::ErrorKind::WriteZero.into())));
                }
                self.rest.advance(written);
            }
            if self.is_at_end {
                ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(End::Writing)?;
                self.is_done = true;
                return Poll::Ready(Ok(()));
            }
            if self.poll_move(cx, from, to, copies)?.is_pending() {
                // What waits for more must not wait in a buffer of the stream.
                let _ = Pin::new(&mut *to).poll_flush(cx).map_err(End::Writing)?;
                return Poll::Pending;
            }
        }
    }

    /// Reads once, and writes what can be written.
    fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        copies: &mut Copies,
    ) -> Poll<Result<(), End>> {
        scratch::with_room(|room| {
            let mut buffer = ReadBuf::new(room);
            ready!(Pin::new(from).poll_read(cx, &mut buffer)).map_err(End::Reading)?;
            let data = buffer.filled();
            self.is_at_end = data.is_empty();
            copies.offer_data(data);
            let written = match data {
                [] => 0,
                data => match Pin::new(to).poll_write(cx, data) {
                    Poll::Ready(written) => written.map_err(End::Writing)?,
                    Poll::Pending => 0,
                },
            };
            self.rest = Bytes::copy_from_slice(&data[written..]);
            Poll::Ready(Ok(()))
        })
    }
}
