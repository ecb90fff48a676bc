//! Bodies on their way through.

use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::EXPECT;
use hyper::{Request, StatusCode};
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};

use crate::engine::limits;
use crate::engine::stream::Message;
use crate::engine::tap::{Copies, CopyBody};

/// The body of a request that the engine sends.
pub(crate) enum Outgoing {
    /// A caller's.
    Caller(CallerBody),
    /// A copy of a caller's.
    Copy(CopyBody),
    /// None.
    Empty,
}

/// A caller's body: copied for wiretaps, and held back until it is asked for.
pub(crate) struct CallerBody {
    incoming: Incoming,
    gate: Option<Gate>,
    copies: Copies,
    _message: Arc<Message>,
}

/// Holds a body back until `100 Continue`, which the caller is sent when its body is first asked for.
pub(crate) struct Gate {
    /// Fails when the final response comes first, and is gone from then on.
    wanted: Option<oneshot::Receiver<()>>,
    /// Whether who answers reads the body all the same.
    is_read: oneshot::Receiver<bool>,
    /// Who answers has no idea of `Expect`, perhaps.
    patience: Pin<Box<Sleep>>,
    is_open: Arc<AtomicBool>,
}

/// What becomes of a gate when the final response is there.
pub(crate) struct Verdict {
    is_open: Arc<AtomicBool>,
    is_read: oneshot::Sender<bool>,
}

/// The body of an answer.
pub(crate) struct ResponseBody {
    incoming: Incoming,
    _message: Option<Arc<Message>>,
}

impl CallerBody {
    pub(crate) fn new(incoming: Incoming, gate: Option<Gate>, mut copies: Copies, message: Arc<Message>) -> Self {
        if incoming.is_end_stream() {
            copies.end();
        }
        Self { incoming, gate, copies, _message: message }
    }
}

impl Gate {
    /// Makes one for a request that expects it.
    pub(crate) fn of<B>(request: &mut Request<B>) -> Option<(Self, Verdict)> {
        let expects =
            request.headers().get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        if !expects {
            return None;
        }
        let (wanted_tx, wanted) = oneshot::channel();
        let wanted_tx = Mutex::new(Some(wanted_tx));
        hyper::ext::on_informational(request, move |interim| {
            let wanted_tx = wanted_tx.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(wanted_tx) = wanted_tx.filter(|_| interim.status() == StatusCode::CONTINUE) {
                // Fails when the caller is gone.
                let _ = wanted_tx.send(());
            }
        });
        let is_open = Arc::<AtomicBool>::default();
        let (is_read_tx, is_read) = oneshot::channel();
        let verdict = Verdict { is_open: Arc::clone(&is_open), is_read: is_read_tx };
        Some((Self { wanted: Some(wanted), is_read, patience: Box::pin(sleep(limits::CONTINUE)), is_open }, verdict))
    }

    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(wanted) = &mut self.wanted {
            match Pin::new(wanted).poll(cx) {
                Poll::Ready(Err(_)) => self.wanted = None,
                Poll::Ready(Ok(())) => {}
                Poll::Pending => ready!(self.patience.as_mut().poll(cx)),
            }
        }
        if self.wanted.is_none() && !ready!(Pin::new(&mut self.is_read).poll(cx)).unwrap_or_default() {
            return Poll::Ready(Err(io::Error::other("answered without the body")));
        }
        self.is_open.store(true, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl Verdict {
    /// Takes the final response's status, and returns whether the caller's body goes through: it does when it has begun to,
    /// or when the answer is a success, with which a server may start before it has read the body.
    pub(crate) fn on_response(self, status: StatusCode) -> bool {
        let goes_through = status.is_success() || self.is_open.load(Ordering::Relaxed);
        // Fails when the body is through already.
        let _ = self.is_read.send(goes_through);
        goes_through
    }
}

impl Body for CallerBody {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(gate) = &mut self.gate {
            ready!(gate.poll_open(cx))?;
            self.gate = None;
        }
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx)).transpose()?;
        if let Some(frame) = &frame {
            self.copies.offer_frame(frame);
        }
        if frame.as_ref().is_none_or(Frame::is_trailers) || self.incoming.is_end_stream() {
            self.copies.end();
        }
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut *self {
            Self::Caller(body) => Pin::new(body).poll_frame(cx),
            Self::Copy(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Empty => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Caller(body) => body.is_end_stream(),
            Self::Copy(body) => body.is_end_stream(),
            Self::Empty => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Caller(body) => body.size_hint(),
            Self::Copy(body) => body.size_hint(),
            Self::Empty => SizeHint::with_exact(0),
        }
    }
}

impl ResponseBody {
    pub(crate) fn new(incoming: Incoming, message: Option<Arc<Message>>) -> Self {
        Self { incoming, _message: message }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        Pin::new(&mut self.incoming).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
