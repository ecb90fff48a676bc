//! A lane's byte stream over changing carriers: [`tp_protocol::resume`] with sockets and a clock.
//!
//! HTTP/2 reads and writes a `LaneStream`. Its owner keeps the [`LaneHandle`], learns from it that the carrier is lost,
//! and gives the lane another one, or gives the lane up.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future as _;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep_until};
use tp_protocol::resume::{HEADER_BYTES, Resume, Segment};

use crate::error::LaneError;

/// An end that has said nothing for this long shows that it is alive. Load balancers cut idle connections after 60 s and
/// more.
pub const ALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// A peer that has said nothing for this long is gone: three signs of life did not come.
pub const SILENCE_MAX: Duration = Duration::from_secs(18);

/// Bytes read from a carrier at once, if it has as many.
const READ_BYTES: usize = 64 << 10;

/// Payload read ahead of its reader while a writer waits for acknowledgements.
const READ_AHEAD_BYTES: usize = 256 << 10;

/// What a lane runs on: a port-forward, a TLS connection, a pipe.
pub trait Carrier: AsyncRead + AsyncWrite + Send + Unpin {}

impl<IO: AsyncRead + AsyncWrite + Send + Unpin> Carrier for IO {}

/// What has become of a lane's carrier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CarrierState {
    /// It is there.
    Attached,
    /// It is lost, for this reason; the lane waits for another.
    Lost(String),
    /// The lane is over.
    Ended,
}

/// What HTTP/2 reads and writes.
#[derive(Debug)]
pub(crate) struct LaneStream {
    shared: Arc<Shared>,
    /// The next sign of life is due, or the peer's are overdue.
    timer: Pin<Box<Sleep>>,
}

/// Watches over a lane's carrier. Clones watch over the same.
#[derive(Clone, Debug)]
pub struct LaneHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Guards the two directions and the carrier; held while they are moved, never across an await.
    lane: Mutex<Lane>,
    state: watch::Sender<CarrierState>,
}

struct Lane {
    resume: Resume,
    carrier: Option<Box<dyn Carrier>>,
    is_resumable: bool,
    /// Why the lane is given up.
    failed: Option<String>,
    /// Read off the carrier, not looked at yet.
    inbox: BytesMut,
    /// Payload that its reader has not asked for yet.
    ready: VecDeque<Bytes>,
    ready_bytes: usize,
    /// What the carrier has to take first, with how much of it is taken.
    outbox: Option<(Segment, usize)>,
    /// The carrier has taken something since it was flushed.
    unflushed: bool,
    /// Why the carrier takes nothing any more. What has come on it is read before it is lost: where each carrier is cut in what
    /// both ends send again, neither would ever get further.
    refuses: Option<String>,
    heard_at: Instant,
    spoke_at: Instant,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl LaneStream {
    /// Starts a lane on its first carrier. One that is not resumable ends with it.
    pub(crate) fn new(carrier: Box<dyn Carrier>, is_resumable: bool) -> (Self, LaneHandle) {
        let now = Instant::now();
        let lane = Lane {
            resume: Resume::default(),
            carrier: Some(carrier),
            is_resumable,
            failed: None,
            inbox: BytesMut::new(),
            ready: VecDeque::new(),
            ready_bytes: 0,
            outbox: None,
            unflushed: false,
            refuses: None,
            heard_at: now,
            spoke_at: now,
            reader: None,
            writer: None,
        };
        let shared = Arc::new(Shared { lane: Mutex::new(lane), state: watch::Sender::new(CarrierState::Attached) });
        let timer = Box::pin(sleep_until(now + ALIVE_INTERVAL));
        (Self { shared: shared.clone(), timer }, LaneHandle { shared })
    }
}

impl LaneHandle {
    /// Resolves when the lane has no carrier, or is over.
    pub async fn lost(&self) -> CarrierState {
        self.wait_for(|state| *state != CarrierState::Attached).await
    }

    /// Resolves when the lane has a carrier, or is over.
    pub async fn attached(&self) -> CarrierState {
        self.wait_for(|state| !matches!(state, CarrierState::Lost(_))).await
    }

    async fn wait_for(&self, is_it: impl FnMut(&CarrierState) -> bool) -> CarrierState {
        let mut states = self.shared.state.subscribe();
        states.wait_for(is_it).await.map_or(CarrierState::Ended, |state| state.clone())
    }

    /// Takes the carrier away, and returns how many bytes the lane has received: no more will come until the next one.
    pub fn detach(&self, why: &str) -> u64 {
        let mut lane = self.shared.lock();
        lane.lose(&self.shared.state, why);
        lane.resume.received()
    }

    /// Gives the lane a carrier, whose peer has received `peer_received` bytes of the lane.
    ///
    /// # Errors
    /// Why that cannot be: the lane is over.
    pub fn attach(&self, carrier: Box<dyn Carrier>, peer_received: u64) -> Result<(), LaneError> {
        let mut lane = self.shared.lock();
        lane.check()?;
        lane.lose(&self.shared.state, "replaced");
        if let Err(error) = lane.resume.on_carrier(peer_received) {
            lane.fail(&self.shared.state, &error.to_string());
            return Err(error.into());
        }
        lane.carrier = Some(carrier);
        lane.heard_at = Instant::now();
        lane.spoke_at = lane.heard_at;
        set_state(&self.shared.state, |state| matches!(state, CarrierState::Lost(_)), CarrierState::Attached);
        lane.wake();
        Ok(())
    }

    /// Gives the lane up: its reader and writer get an error with this reason.
    pub fn fail(&self, why: &str) {
        self.shared.lock().fail(&self.shared.state, why);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Lane> {
        // A panic under the lock leaves a lane that its owner drops.
        self.lane.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn set_state(state: &watch::Sender<CarrierState>, from: impl FnOnce(&CarrierState) -> bool, to: CarrierState) {
    state.send_if_modified(|state| {
        let changes = from(state);
        if changes {
            *state = to;
        }
        changes
    });
}

impl Lane {
    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }

    fn lose(&mut self, state: &watch::Sender<CarrierState>, why: &str) {
        if self.carrier.take().is_some() {
            self.inbox = BytesMut::new();
            self.outbox = None;
            self.unflushed = false;
            self.refuses = None;
            set_state(state, |state| *state == CarrierState::Attached, CarrierState::Lost(why.to_owned()));
            if !self.is_resumable {
                self.fail(state, why);
            }
        }
    }

    fn fail(&mut self, state: &watch::Sender<CarrierState>, why: &str) {
        self.lose(state, why);
        self.failed.get_or_insert_with(|| why.to_owned());
        set_state(state, |_| true, CarrierState::Ended);
        self.wake();
    }

    fn check(&self) -> io::Result<()> {
        match &self.failed {
            Some(why) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, why.clone())),
            None => Ok(()),
        }
    }

    /// Has the carrier read to its end when it takes nothing any more; `Pending` then, as when there is none.
    fn survive<T>(&mut self, done: Poll<io::Result<T>>) -> Poll<T> {
        match done {
            Poll::Ready(Ok(value)) => Poll::Ready(value),
            Poll::Ready(Err(error)) => {
                self.refuses = Some(error.to_string());
                self.reader.take().into_iter().for_each(Waker::wake);
                Poll::Pending
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// Puts what is due on the carrier. Ready when nothing is left.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(carrier) = self.carrier.as_mut().filter(|_| self.refuses.is_none()) else { return Poll::Pending };
            let (segment, taken) = match &mut self.outbox {
                Some(segment) => segment,
                None => match self.resume.poll_transmit() {
                    Some(segment) => self.outbox.insert((segment, 0)),
                    None => return Poll::Ready(()),
                },
            };
            let written = if *taken < HEADER_BYTES {
                let slices = [IoSlice::new(&segment.header[*taken..]), IoSlice::new(&segment.payload)];
                Pin::new(carrier).poll_write_vectored(cx, &slices)
            } else {
                Pin::new(carrier).poll_write(cx, &segment.payload[*taken - HEADER_BYTES..])
            };
            let written = match written {
                Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                other => other,
            };
            let len = ready!(self.survive(written));
            self.unflushed = true;
            self.spoke_at = Instant::now();
            if let Some((segment, taken)) = &mut self.outbox {
                *taken += len;
                if *taken == HEADER_BYTES + segment.payload.len() {
                    self.outbox = None;
                }
            }
        }
    }

    /// [`Self::poll_send`], and has the carrier pass it on.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let sent = self.poll_send(cx);
        if let (Some(carrier), true, None) = (&mut self.carrier, self.unflushed, &self.refuses) {
            let flushed = Pin::new(carrier).poll_flush(cx);
            ready!(self.survive(flushed));
            self.unflushed = false;
        }
        sent
    }

    /// Reads off the carrier once and sorts what came.
    fn poll_receive(&mut self, state: &watch::Sender<CarrierState>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(carrier) = &mut self.carrier else { return Poll::Pending };
        self.inbox.reserve(READ_BYTES);
        let why = match (poll_read_buf(Pin::new(carrier), cx, &mut self.inbox), &self.refuses) {
            (Poll::Ready(Ok(1..)), _) => None,
            (_, Some(why)) => Some(why.clone()),
            (Poll::Ready(Ok(0)), None) => Some("closed by the other end".to_owned()),
            (Poll::Ready(Err(error)), None) => Some(error.to_string()),
            (Poll::Pending, None) => return Poll::Pending,
        };
        if let Some(why) = why {
            self.lose(state, &why);
            return Poll::Pending;
        }
        self.heard_at = Instant::now();
        while !self.inbox.is_empty() {
            match self.resume.handle_input(&mut self.inbox) {
                Ok(Some(payload)) => {
                    self.ready_bytes += payload.len();
                    self.ready.push_back(payload);
                }
                Ok(None) => {}
                Err(error) => {
                    self.fail(state, &error.to_string());
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(())
    }

    /// Moves payload that has come to its reader; false when there is none.
    fn deliver(&mut self, target: &mut ReadBuf<'_>) -> bool {
        let Some(payload) = self.ready.front_mut() else { return false };
        let len = payload.len().min(target.remaining());
        target.put_slice(&payload[..len]);
        payload.advance(len);
        if payload.is_empty() {
            self.ready.pop_front();
        }
        self.ready_bytes -= len;
        true
    }

    /// Shows life when it is time to, and gives up a carrier whose peer does not. Returns when to look again.
    fn on_time(&mut self, state: &watch::Sender<CarrierState>, now: Instant) -> Instant {
        if now >= self.heard_at + SILENCE_MAX {
            self.lose(state, &format!("no sign of life for {SILENCE_MAX:?}"));
        }
        if now >= self.spoke_at + ALIVE_INTERVAL {
            self.resume.on_idle();
            self.spoke_at = now;
        }
        (self.spoke_at + ALIVE_INTERVAL).min(self.heard_at + SILENCE_MAX)
    }
}

impl AsyncRead for LaneStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { shared, timer } = self.get_mut();
        let (lane, state) = (&mut *shared.lock(), &shared.state);
        loop {
            lane.check()?;
            if lane.carrier.is_some() {
                let next = lane.on_time(state, Instant::now());
                if timer.deadline() != next {
                    timer.as_mut().reset(next);
                }
                if timer.as_mut().poll(cx).is_ready() {
                    continue;
                }
            }
            let sent = lane.poll_flush(cx);
            if lane.deliver(buf) {
                return Poll::Ready(Ok(()));
            }
            lane.reader = Some(cx.waker().clone());
            if lane.poll_receive(state, cx).is_pending() {
                lane.check()?;
                return Poll::Pending;
            }
            // Room may have been made for a writer that waits.
            if sent.is_ready() {
                lane.writer.take().into_iter().for_each(Waker::wake);
            }
        }
    }
}

impl AsyncWrite for LaneStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let (lane, state) = (&mut *self.shared.lock(), &self.shared.state);
        loop {
            lane.check()?;
            // What comes while the carrier cannot take it, or is gone, is the writer's to keep.
            lane.writer = Some(cx.waker().clone());
            ready!(lane.poll_send(cx));
            let mut taken = 0;
            for buf in bufs {
                let len = lane.resume.send(buf);
                taken += len;
                if len < buf.len() {
                    break;
                }
            }
            if taken > 0 || bufs.iter().all(|buf| buf.is_empty()) {
                // Whatever the carrier does not take now it takes before the next write.
                let _ = lane.poll_send(cx);
                return Poll::Ready(Ok(taken));
            }
            // Acknowledgements come through the reader, which may be waiting for this writer.
            let _ = lane.poll_flush(cx);
            if lane.ready_bytes >= READ_AHEAD_BYTES {
                lane.reader.take().into_iter().for_each(Waker::wake);
                return Poll::Pending;
            }
            ready!(lane.poll_receive(state, cx));
        }
    }

    /// HTTP/2 writes a frame's header and payload as two slices: they become one segment.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut lane = self.shared.lock();
        lane.check()?;
        lane.writer = Some(cx.waker().clone());
        lane.poll_flush(cx).map(Ok)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut lane = self.shared.lock();
        if lane.poll_flush(cx).is_pending() && lane.carrier.is_some() {
            return Poll::Pending;
        }
        match &mut lane.carrier {
            Some(carrier) => Pin::new(carrier).poll_shutdown(cx),
            // Without a carrier nobody waits for the end.
            None => Poll::Ready(Ok(())),
        }
    }
}

impl Drop for LaneStream {
    fn drop(&mut self) {
        self.shared.lock().fail(&self.shared.state, "the lane has ended");
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane")
            .field("received", &self.resume.received())
            .field("kept_bytes", &self.resume.kept_bytes())
            .field("has_carrier", &self.carrier.is_some())
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

/// Reads what is there to the end of `buf`, whose room was reserved.
fn poll_read_buf(carrier: Pin<&mut dyn Carrier>, cx: &mut Context<'_>, buf: &mut BytesMut) -> Poll<io::Result<usize>> {
    std::pin::pin!(carrier.get_mut().read_buf(buf)).poll(cx)
}
