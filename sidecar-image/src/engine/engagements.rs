//! The engagements, and what is known of each one's handler.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tp_protocol::engage::{Engagement, EngagementId, WhenAway};
use tp_protocol::error_class::ErrorClass;
use tp_protocol::open::{OpenRefused, Transport};

use super::destination::{Datagrams, Destination, Opening};
use super::limits;
use super::presence::{Attempt, Presence};
use super::stream::BoxStream;
use super::table::Table;

/// Changes what is engaged, and tells how it goes.
#[derive(Clone)]
pub struct Engagements {
    shared: Arc<Shared>,
}

struct Shared {
    tables: HashMap<(u16, Transport), watch::Sender<Arc<Table>>>,
    /// What is engaged, in the order given.
    current: Mutex<Vec<Arc<Engaged>>>,
}

/// What has happened to an engagement's traffic since it was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Which engagement.
    pub id: EngagementId,
    /// Its handler was not reached last time.
    pub is_away: bool,
    /// Requests, connections that are no HTTP, and associations that its handler got.
    pub taken: u64,
    /// Those that the app got instead, because the handler was away.
    pub fallen_back: u64,
    /// Copies that were begun, for a wiretap.
    pub copied: u64,
    /// Copies that were lost, or cut off, because the listener was slow or away.
    pub copies_lost: u64,
}

/// An engagement in force.
pub(crate) struct Engaged {
    pub(crate) spec: Engagement,
    handler: Arc<dyn Destination>,
    presence: Mutex<Presence>,
    /// Cancelled when it is in force no longer.
    pub(crate) ended: CancellationToken,
    /// Bytes that its copies may still hold.
    pub(crate) copy_bytes: Arc<Semaphore>,
    /// Copies that may still be made at once.
    pub(crate) copies: Arc<Semaphore>,
    pub(crate) counters: Counters,
}

/// See [`Report`].
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) taken: AtomicU64,
    pub(crate) fallen_back: AtomicU64,
    pub(crate) copied: AtomicU64,
    pub(crate) copies_lost: AtomicU64,
}

/// The handler was not reached.
#[derive(Debug)]
pub(crate) enum NotReached {
    /// The app is to answer instead.
    ServeFromApp,
    /// The caller is to see this.
    Refused(OpenRefused),
    /// The engagement has ended meanwhile; whose turn it is has to be asked again.
    Ended,
}

/// Opens something on a destination.
type Open<T> = for<'a> fn(&'a dyn Destination, SocketAddr) -> Opening<'a, T>;

impl Engagements {
    pub(crate) fn new(tables: HashMap<(u16, Transport), watch::Sender<Arc<Table>>>) -> Self {
        Self { shared: Arc::new(Shared { tables, current: Mutex::default() }) }
    }

    /// Puts exactly these in force, each with its handler, and returns those whose port the engine does not take.
    ///
    /// An engagement that was in force already and has not changed goes on undisturbed, with the handler that it had. One
    /// that is not among them ends: the next request goes elsewhere, requests that are under way go on, connections that
    /// it took whole are reset. Of two with the same id the first counts.
    pub fn set(&self, wanted: Vec<(Engagement, Arc<dyn Destination>)>) -> Vec<EngagementId> {
        let mut current = self.shared.current.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next: Vec<Arc<Engaged>> = Vec::with_capacity(wanted.len());
        let mut unknown = Vec::new();
        for (spec, handler) in wanted {
            if !self.shared.tables.contains_key(&(spec.port, spec.transport)) {
                unknown.push(spec.id);
            } else if !next.iter().any(|engaged| engaged.spec.id == spec.id) {
                let kept = current.iter().find(|engaged| engaged.spec == spec);
                next.push(kept.cloned().unwrap_or_else(|| Arc::new(Engaged::new(spec, handler))));
            }
        }
        for (port, table) in &self.shared.tables {
            let of_port = |engaged: &&Arc<Engaged>| (engaged.spec.port, engaged.spec.transport) == *port;
            let changed =
                !next.iter().filter(of_port).map(Arc::as_ptr).eq(current.iter().filter(of_port).map(Arc::as_ptr));
            if changed {
                table.send_replace(Arc::new(Table::new(next.iter().filter(of_port).cloned().collect())));
            }
        }
        // After the tables are in place: who notices the end asks them.
        for engaged in current.iter().filter(|old| !next.iter().any(|new| Arc::ptr_eq(old, new))) {
            engaged.ended.cancel();
        }
        *current = next;
        unknown
    }

    /// Tells what has happened to each engagement's traffic, in the order in which they were set.
    pub fn report(&self) -> Vec<Report> {
        let current = self.shared.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.iter().map(|engaged| engaged.report()).collect()
    }
}

impl Engaged {
    pub(crate) fn new(spec: Engagement, handler: Arc<dyn Destination>) -> Self {
        Self {
            spec,
            handler,
            presence: Mutex::default(),
            ended: CancellationToken::new(),
            copy_bytes: Arc::new(Semaphore::new(limits::TAP_BYTES)),
            copies: Arc::new(Semaphore::new(limits::TAP_COPIES)),
            counters: Counters::default(),
        }
    }

    /// Opens a stream to the handler, and waits for it when it is away as long as the engagement says.
    pub(crate) async fn connect(&self, peer: SocketAddr) -> Result<BoxStream, NotReached> {
        self.reach(|handler, peer| handler.connect(peer), peer).await
    }

    /// As [`Self::connect`], for datagrams.
    pub(crate) async fn associate(&self, peer: SocketAddr) -> Result<Box<dyn Datagrams>, NotReached> {
        self.reach(|handler, peer| handler.associate(peer), peer).await
    }

    /// Opens a stream for a copy: who is away gets none.
    pub(crate) async fn connect_listener(&self, peer: SocketAddr) -> Result<BoxStream, OpenRefused> {
        self.reach_listener(|handler, peer| handler.connect(peer), peer).await
    }

    /// As [`Self::connect_listener`], for datagrams.
    pub(crate) async fn associate_listener(&self, peer: SocketAddr) -> Result<Box<dyn Datagrams>, OpenRefused> {
        self.reach_listener(|handler, peer| handler.associate(peer), peer).await
    }

    /// The handler has turned out to be away by something else than an attempt to reach it.
    pub(crate) fn on_missed(&self) {
        self.note(false);
    }

    async fn reach_listener<T>(&self, open: Open<T>, peer: SocketAddr) -> Result<T, OpenRefused> {
        let away = || OpenRefused::new(ErrorClass::TimedOut, "the listener is away");
        let wait = match self.attempt() {
            Attempt::Full => limits::CONNECT,
            Attempt::Probe => limits::PROBE,
            Attempt::Skip => return Err(away()),
        };
        let opened = timeout_at(Instant::now() + wait, open(&*self.handler, peer)).await;
        let opened = opened.unwrap_or_else(|_| Err(away()));
        self.note(opened.is_ok());
        opened
    }

    async fn reach<T>(&self, open: Open<T>, peer: SocketAddr) -> Result<T, NotReached> {
        let reached = tokio::select! {
            biased;
            () = self.ended.cancelled() => return Err(NotReached::Ended),
            reached = self.try_until(open, peer) => reached,
        };
        match (reached, self.spec.when_away) {
            (Ok(opened), _) => Ok(opened),
            (Err(_), WhenAway::Cluster) => {
                self.counters.fallen_back.fetch_add(1, Ordering::Relaxed);
                Err(NotReached::ServeFromApp)
            }
            (Err(why), WhenAway::Fail | WhenAway::Hold) => Err(NotReached::Refused(why)),
        }
    }

    /// Tries until the wait is over.
    async fn try_until<T>(&self, open: Open<T>, peer: SocketAddr) -> Result<T, OpenRefused> {
        let attempt = if self.spec.when_away == WhenAway::Hold { Attempt::Full } else { self.attempt() };
        let wait = match (attempt, self.spec.when_away) {
            (Attempt::Skip, _) => return Err(OpenRefused::new(ErrorClass::Refused, "the handler is away")),
            (_, WhenAway::Hold) => limits::HOLD,
            (Attempt::Probe, _) => limits::PROBE,
            (Attempt::Full, _) => self.spec.wait,
        };
        let deadline = Instant::now() + wait;
        let mut pause = limits::RETRY_FIRST;
        loop {
            // An attempt gets its time even where the engagement does not wait: being far is not being away.
            let until = deadline.max(Instant::now() + limits::PROBE).min(Instant::now() + limits::CONNECT);
            let opened = timeout_at(until, open(&*self.handler, peer)).await;
            let opened = opened.unwrap_or_else(|_| Err(OpenRefused::new(ErrorClass::TimedOut, "no answer in time")));
            let is_last = attempt == Attempt::Probe || Instant::now() + pause > deadline;
            // Others wait as well until the wait is over, so it is away only then. What is held is away from the start.
            if opened.is_ok() || is_last || self.spec.when_away == WhenAway::Hold {
                self.note(opened.is_ok());
            }
            if opened.is_ok() || is_last {
                return opened;
            }
            sleep(pause).await;
            pause = (pause * 2).min(limits::RETRY_MOST);
        }
    }

    fn attempt(&self) -> Attempt {
        self.presence.lock().unwrap_or_else(PoisonError::into_inner).attempt(Instant::now())
    }

    fn note(&self, reached: bool) {
        let mut presence = self.presence.lock().unwrap_or_else(PoisonError::into_inner);
        if reached {
            presence.on_reached();
        } else {
            presence.on_missed(Instant::now());
        }
    }

    fn report(&self) -> Report {
        let presence = *self.presence.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Report {
            id: self.spec.id.clone(),
            is_away: presence != Presence::Present,
            taken: of(&self.counters.taken),
            fallen_back: of(&self.counters.fallen_back),
            copied: of(&self.counters.copied),
            copies_lost: of(&self.counters.copies_lost),
        }
    }
}
