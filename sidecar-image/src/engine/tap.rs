//! Copies for wiretaps. Offering a piece never waits: a copy whose listener is slow is cut off, and counted.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::io::{AsyncWriteExt, sink, split};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::sleep;

use super::engagements::Engaged;
use super::limits;
use super::stream::Guarded;

/// Pieces shorter than this are copied, so that a few bytes do not keep a large buffer alive.
const SHARE_FROM_BYTES: usize = 4096;

/// What a piece counts for at least: its place in the queue.
const PIECE_BYTES: usize = 256;

/// The copies of one message or one connection, at the side of the traffic. Dropped before [`Copies::end`], they are cut
/// off, as the original was.
#[derive(Default)]
pub(crate) struct Copies(Vec<CopySender>);

struct CopySender {
    pieces: mpsc::Sender<Piece>,
    fate: oneshot::Sender<Fate>,
    is_complete: Arc<AtomicBool>,
    engaged: Arc<Engaged>,
}

/// One copy, at the side of the listener.
pub(crate) struct Copy {
    pub(crate) engaged: Arc<Engaged>,
    pub(crate) body: CopyBody,
    fate: oneshot::Receiver<Fate>,
    /// One of the copies that the engagement may have at once.
    turn: OwnedSemaphorePermit,
}

/// What the listener gets, as the body of a request.
pub(crate) struct CopyBody {
    pieces: mpsc::Receiver<Piece>,
    is_complete: Arc<AtomicBool>,
}

/// A part of a message, and its share of what the engagement's copies may hold.
type Piece = (Frame<Bytes>, OwnedSemaphorePermit);

/// How a copy ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The original is complete.
    Complete,
    /// The listener was slow.
    Slow,
}

impl Copies {
    /// Begins a copy for `engaged`, or counts it as lost when too many are under way.
    pub(crate) fn begin(&mut self, engaged: &Arc<Engaged>) -> Option<Copy> {
        engaged.counters.copied.fetch_add(1, Ordering::Relaxed);
        let Ok(turn) = Arc::clone(&engaged.copies).try_acquire_owned() else {
            engaged.counters.copies_lost.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        let (pieces_tx, pieces) = mpsc::channel(limits::TAP_PIECES);
        let (fate_tx, fate) = oneshot::channel();
        let is_complete = Arc::<AtomicBool>::default();
        let body = CopyBody { pieces, is_complete: Arc::clone(&is_complete) };
        self.0.push(CopySender { pieces: pieces_tx, fate: fate_tx, is_complete, engaged: Arc::clone(engaged) });
        Some(Copy { engaged: Arc::clone(engaged), body, fate, turn })
    }

    /// Offers bytes to all of them.
    pub(crate) fn offer_data(&mut self, data: &[u8]) {
        if !self.0.is_empty() && !data.is_empty() {
            let data = Bytes::copy_from_slice(data);
            self.offer(|| Frame::data(data.clone()));
        }
    }

    /// Offers a part of a message to all of them.
    pub(crate) fn offer_frame(&mut self, frame: &Frame<Bytes>) {
        match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) if data.len() < SHARE_FROM_BYTES => self.offer_data(data),
            (Some(data), _) => self.offer(|| Frame::data(data.clone())),
            (None, Some(trailers)) => self.offer(|| Frame::trailers(trailers.clone())),
            (None, None) => {}
        }
    }

    fn offer(&mut self, frame: impl Fn() -> Frame<Bytes>) {
        for slow in self.0.extract_if(.., |copy| copy.offer(frame()).is_none()) {
            // Fails when the copy has come to its own end.
            let _ = slow.fate.send(Fate::Slow);
        }
    }

    /// The message or connection is complete.
    pub(crate) fn end(&mut self) {
        for copy in self.0.drain(..) {
            copy.is_complete.store(true, Ordering::Release);
            // Fails when the copy has come to its own end.
            let _ = copy.fate.send(Fate::Complete);
        }
    }
}

impl CopySender {
    fn offer(&self, frame: Frame<Bytes>) -> Option<()> {
        let len = frame.data_ref().map_or(0, Bytes::len).max(PIECE_BYTES).try_into().ok()?;
        let room = Arc::clone(&self.engaged.copy_bytes).try_acquire_many_owned(len).ok()?;
        self.pieces.try_send((frame, room)).ok()
    }
}

impl Copy {
    /// Sends the copy by `send`, for as long as the original lasts, and then for as long as a listener may take to answer.
    pub(crate) async fn send<F>(self, send: impl FnOnce(Arc<Engaged>, CopyBody) -> F)
    where
        F: Future<Output = io::Result<()>>,
    {
        let Self { engaged, body, fate, turn } = self;
        let sent = send(Arc::clone(&engaged), body);
        let until = async {
            let fate = fate.await;
            if fate == Ok(Fate::Complete) {
                sleep(limits::TAP_ANSWER).await;
            }
            fate
        };
        let result = tokio::select! {
            sent = sent => sent,
            fate = until => match fate {
                // The original was cut off, and so is the copy.
                Err(_) => Ok(()),
                Ok(Fate::Complete) => Err(io::Error::new(io::ErrorKind::TimedOut, "the listener takes too long")),
                Ok(Fate::Slow) => Err(io::Error::new(io::ErrorKind::TimedOut, "the listener is slower than the traffic")),
            },
        };
        drop(turn);
        if let Err(error) = result {
            engaged.counters.copies_lost.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(engagement = %engaged.spec.id, %error, "a copy is lost");
        }
    }
}

impl Body for CopyBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.pieces.poll_recv(cx).map(|piece| match piece {
            Some((frame, _)) => Some(Ok(frame)),
            None if self.is_complete.load(Ordering::Acquire) => None,
            None => Some(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the copy was cut off"))),
        })
    }
}

/// Sends the copy of a connection to its listener, and throws away what it answers.
pub(crate) async fn send_connection(copy: Copy, peer: SocketAddr) {
    copy.send(async |engaged, mut body| {
        let stream = engaged.connect_listener(peer).await.map_err(io::Error::other)?;
        let (mut answers, mut listener) = split(Guarded::new(stream));
        let mut sink = sink();
        let discard = tokio::io::copy(&mut answers, &mut sink);
        let send = async {
            while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                if let Ok(data) = frame?.into_data() {
                    listener.write_all(&data).await?;
                }
            }
            listener.shutdown().await
        };
        tokio::try_join!(discard, send).map(|_| ())
    })
    .await;
}
