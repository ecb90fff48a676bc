//! A flow: one HTTP/2 stream that carries a TCP connection's bytes or a UDP association's datagram capsules.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue};
use tokio::sync::oneshot;
use tp_protocol::open::{CONTINUED, OpenRefused};

use crate::error::FlowError;

/// Both directions of a flow. Dropping it before both have ended cancels the stream.
#[derive(Debug)]
pub struct Flow {
    sender: FlowSender,
    receiver: FlowReceiver,
}

/// The sending direction.
#[derive(Debug)]
pub struct FlowSender {
    stream: SendStream<Bytes>,
    /// Brings the stream of another lane.
    next: Option<oneshot::Receiver<SendStream<Bytes>>>,
}

/// The receiving direction.
#[derive(Debug)]
pub struct FlowReceiver {
    stream: RecvStream,
    /// Brings the stream of another lane.
    next: Option<oneshot::Receiver<RecvStream>>,
    /// The peer goes on there.
    is_continued: bool,
}

/// Takes the streams of another lane on which a flow goes on.
#[derive(Debug)]
pub struct Continuation {
    sender: oneshot::Sender<SendStream<Bytes>>,
    receiver: oneshot::Sender<RecvStream>,
}

impl Flow {
    /// A flow on a stream that was accepted.
    pub(crate) fn new(send: SendStream<Bytes>, recv: RecvStream) -> Self {
        let receiver = FlowReceiver { stream: recv, next: None, is_continued: false };
        Self { sender: FlowSender { stream: send, next: None }, receiver }
    }

    /// Puts the directions together again.
    pub(crate) fn join(sender: FlowSender, receiver: FlowReceiver) -> Self {
        Self { sender, receiver }
    }

    /// Prepares the flow to go on on another lane, once.
    pub fn continuation(&mut self) -> Continuation {
        let (sender, next) = oneshot::channel();
        self.sender.next = Some(next);
        let (receiver, next) = oneshot::channel();
        self.receiver.next = Some(next);
        Continuation { sender, receiver }
    }

    /// Separates the directions, which end independently (half-close).
    pub fn split(self) -> (FlowSender, FlowReceiver) {
        (self.sender, self.receiver)
    }
}

impl Continuation {
    /// The flow goes on on these.
    pub(crate) fn go_on(self, send: SendStream<Bytes>, recv: RecvStream) {
        if let Err(mut send) = self.sender.send(send) {
            // This direction is over already; fails only when the other lane is gone.
            let _ = send.send_data(Bytes::new(), true);
        }
        // Fails when that direction is over.
        let _ = self.receiver.send(recv);
    }
}

impl FlowSender {
    /// Waits until the peer's window and our send buffer take more, and returns how many bytes, `1..=want`.
    ///
    /// # Errors
    /// [`FlowError::Cancelled`] when the peer cancelled the stream or the lane is gone.
    pub fn poll_capacity(&mut self, want: usize, cx: &mut Context<'_>) -> Poll<Result<usize, FlowError>> {
        self.go_on();
        self.stream.reserve_capacity(want);
        loop {
            let capacity = self.stream.capacity();
            if capacity > 0 {
                return Poll::Ready(Ok(capacity.min(want)));
            }
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => return Poll::Ready(Err(h2::Error::from(Reason::CANCEL).into())),
            }
        }
    }

    /// [`Self::poll_capacity`] as a future.
    ///
    /// # Errors
    /// As [`Self::poll_capacity`].
    pub async fn capacity(&mut self, want: usize) -> Result<usize, FlowError> {
        poll_fn(|cx| self.poll_capacity(want, cx)).await
    }

    /// Leaves for the other lane, when it is there: what follows goes out on it, what went before stays before.
    fn go_on(&mut self) {
        let Some(stream) = self.next.as_mut().and_then(|next| next.try_recv().ok()) else { return };
        let mut old = std::mem::replace(&mut self.stream, stream);
        self.next = None;
        let mut trailers = HeaderMap::new();
        trailers.insert(CONTINUED, HeaderValue::from_static("1"));
        // Fails only when the old lane is gone, which the peer sees.
        let _ = old.send_trailers(trailers);
    }

    /// Queues `data`, at most as much as [`Self::poll_capacity`] has just granted: more is buffered without limit.
    ///
    /// # Errors
    /// [`FlowError::Cancelled`] when the stream is gone.
    pub fn send(&mut self, data: Bytes) -> Result<(), FlowError> {
        Ok(self.stream.send_data(data, false)?)
    }

    /// Sends all of `data`, as the peer takes it.
    ///
    /// # Errors
    /// [`FlowError::Cancelled`] when the stream is gone.
    pub async fn send_all(&mut self, mut data: Bytes) -> Result<(), FlowError> {
        while !data.is_empty() {
            let len = self.capacity(data.len()).await?;
            self.send(data.split_to(len))?;
        }
        Ok(())
    }

    /// Ends this direction in good order (FIN).
    ///
    /// # Errors
    /// [`FlowError::Cancelled`] when the stream is gone.
    pub fn finish(&mut self) -> Result<(), FlowError> {
        self.go_on();
        Ok(self.stream.send_data(Bytes::new(), true)?)
    }

    /// Ends this direction with a reset that stays behind the data sent so far.
    ///
    /// # Errors
    /// [`FlowError::Cancelled`] when the stream is gone.
    pub fn reset(&mut self, why: &OpenRefused) -> Result<(), FlowError> {
        self.go_on();
        let mut trailers = HeaderMap::new();
        why.write_headers(&mut trailers);
        Ok(self.stream.send_trailers(trailers)?)
    }

    /// Becomes ready when the peer has cancelled the stream or the lane is gone.
    pub fn poll_cancelled(&mut self, cx: &mut Context<'_>) -> Poll<FlowError> {
        self.stream
            .poll_reset(cx)
            .map(|reset| reset.map_or_else(FlowError::from, |reason| h2::Error::from(reason).into()))
    }

    /// [`Self::poll_cancelled`] as a future.
    pub async fn cancelled(&mut self) -> FlowError {
        poll_fn(|cx| self.poll_cancelled(cx)).await
    }
}

impl FlowReceiver {
    /// Returns the next bytes; `None` when the peer ended its direction in good order.
    ///
    /// The caller returns the credit with [`Self::release`] once it has passed the bytes on.
    ///
    /// # Errors
    /// [`FlowError::Reset`] when the far end reset the flow, [`FlowError::Cancelled`] when the stream is gone,
    /// [`FlowError::Stranded`] when it went on on a lane that is.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, FlowError>>> {
        loop {
            if self.is_continued {
                let Some(next) = &mut self.next else { return Poll::Ready(Some(Err(FlowError::Stranded))) };
                let Ok(stream) = ready!(Pin::new(next).poll(cx)) else {
                    return Poll::Ready(Some(Err(FlowError::Stranded)));
                };
                (self.stream, self.next, self.is_continued) = (stream, None, false);
            }
            let stream = &mut self.stream;
            if let Some(data) = ready!(stream.poll_data(cx)) {
                return Poll::Ready(Some(data.map_err(FlowError::from)));
            }
            return Poll::Ready(match ready!(stream.poll_trailers(cx)) {
                Ok(Some(trailers)) if trailers.contains_key(CONTINUED) => {
                    self.is_continued = true;
                    continue;
                }
                Ok(Some(trailers)) => OpenRefused::from_headers(&trailers).map(|why| Err(FlowError::Reset(why))),
                Ok(None) => None,
                Err(error) => Some(Err(error.into())),
            });
        }
    }

    /// [`Self::poll_data`] as a future.
    pub async fn data(&mut self) -> Option<Result<Bytes, FlowError>> {
        poll_fn(|cx| self.poll_data(cx)).await
    }

    /// Lets the peer send `len` bytes more.
    pub fn release(&mut self, len: usize) {
        // Fails only for more bytes than were received, and after the stream is gone, when nobody wants the credit.
        let _ = self.stream.flow_control().release_capacity(len);
    }
}

/// Reads a whole message of at most `max` bytes.
pub(crate) async fn read_to_end(mut stream: RecvStream, max: usize) -> Result<Bytes, FlowError> {
    let mut message = bytes::BytesMut::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        if message.len() + data.len() > max {
            return Err(FlowError::BadMessage);
        }
        let _ = stream.flow_control().release_capacity(data.len());
        message.extend_from_slice(&data);
    }
    Ok(message.freeze())
}
