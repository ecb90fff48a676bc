//! The shell around [`Sessions`]: keys from random bytes, tickets that notice the end of a lane, and a timer.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tp_protocol::hello::{ClientHello, Refusal, RefusalCode, SessionKey};
use tp_protocol::limits::MAX_ECHOES;
use tp_tunnel::carrier::{CarrierState, LaneHandle};
use tp_tunnel::flow::Continuation;
use tp_tunnel::read_ahead::ReadAhead;

use super::{Event, LaneId, SessionId, SessionLimits, Sessions};
use crate::VERSION;
use crate::identity::User;

/// Bytes of a session's id: enough to be unique.
const ID_BYTES: usize = 8;

/// Bytes of a session's secret: enough not to be guessed.
const SECRET_BYTES: usize = 32;

/// Calls about engagements of one session at once.
const CALLS_MAX: usize = 16;

/// How much one session may have open.
#[derive(Clone, Copy, Debug)]
pub struct FlowLimits {
    /// Flows.
    pub flows: usize,
    /// Dials that are not answered yet.
    pub pending_dials: usize,
}

/// The sessions, as tasks see them. Clones share them.
#[derive(Clone, Debug)]
pub struct Hub {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Guards the registry and what belongs to it; held for a few map operations at a time, never across an await.
    state: Mutex<State>,
    /// The next timeout may be another.
    changed: Notify,
    /// Sessions that have ended so far.
    ended: watch::Sender<u64>,
    random: SystemRandom,
    flow_limits: FlowLimits,
    /// Its other half is each session's.
    read_ahead: ReadAhead,
    grace: Duration,
}

#[derive(Debug)]
struct State {
    sessions: Sessions,
    budgets: HashMap<SessionId, Arc<Budget>>,
    lanes: HashMap<LaneId, OpenLane>,
}

#[derive(Debug)]
struct OpenLane {
    closed: CancellationToken,
    /// There from the end of the handshake on.
    handle: Option<LaneHandle>,
}

/// What becomes of a hello.
#[derive(Debug)]
pub enum Admitted {
    /// A new lane.
    New(Ticket),
    /// A lane that is there gets another byte stream.
    Resumed {
        /// Its session.
        session: SessionId,
        /// The session's key, for the client.
        key: SessionKey,
        /// Takes the byte stream.
        handle: LaneHandle,
    },
}

/// What all lanes of a session share.
#[derive(Debug)]
pub struct Budget {
    /// One permit per open flow.
    pub flows: Arc<Semaphore>,
    /// One permit per dial under way.
    pub dials: Semaphore,
    /// What its flows may have read ahead.
    pub read_ahead: ReadAhead,
    /// One permit per ping without an answer yet.
    pub echoes: Arc<Semaphore>,
    /// One permit per call about engagements without an answer yet.
    pub calls: Arc<Semaphore>,
    /// Flows that can go on on another lane, by their numbers; held for one map operation at a time.
    movable: Mutex<HashMap<u64, Continuation>>,
}

/// A flow that can go on on another lane, until it is dropped.
#[derive(Debug)]
pub struct Movable {
    budget: Arc<Budget>,
    flow: u64,
}

/// A lane's place in its session. Dropping it closes the lane in the registry.
#[derive(Debug)]
pub struct Ticket {
    /// The session.
    pub session: SessionId,
    /// The session's key, for the client.
    pub key: SessionKey,
    /// The lane joined the session that it asked for.
    pub rejoined: bool,
    /// What all lanes of the session share.
    pub budget: Arc<Budget>,
    /// Cancelled when the lane is to close: replaced, or its session is over.
    pub closed: CancellationToken,
    lane: LaneId,
    hub: Hub,
}

impl Hub {
    /// Starts without sessions.
    #[must_use]
    pub fn new(limits: SessionLimits, flow_limits: FlowLimits) -> Self {
        let state = State { sessions: Sessions::new(limits), budgets: HashMap::new(), lanes: HashMap::new() };
        let shared = Shared {
            state: Mutex::new(state),
            changed: Notify::new(),
            ended: watch::Sender::default(),
            random: SystemRandom::new(),
            flow_limits,
            read_ahead: ReadAhead::default(),
            grace: limits.grace,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Lets a lane in.
    ///
    /// # Errors
    /// A [`Refusal`] for the client.
    pub fn admit(&self, hello: &ClientHello) -> Result<Admitted, Refusal> {
        let key = self
            .fresh_key()
            .ok_or_else(|| Refusal::new(RefusalCode::Unspecified, "the manager has no randomness", VERSION))?;
        let mut state = self.lock();
        let admission = state
            .sessions
            .admit(hello, key)
            .map_err(|error| Refusal::new(error.code(), &error.to_string(), VERSION))?;
        if admission.resumed {
            let handle = state.lanes.get(&admission.lane).and_then(|lane| lane.handle.clone()).ok_or_else(|| {
                Refusal::new(RefusalCode::Unspecified, "the lane is being opened still; try again in a moment", VERSION)
            })?;
            return Ok(Admitted::Resumed { session: admission.session, key: admission.key, handle });
        }
        let closed = CancellationToken::new();
        state.lanes.insert(admission.lane, OpenLane { closed: closed.clone(), handle: None });
        let limits = self.shared.flow_limits;
        let budget = state.budgets.entry(admission.session.clone()).or_insert_with(|| {
            Arc::new(Budget {
                flows: Arc::new(Semaphore::new(limits.flows)),
                dials: Semaphore::new(limits.pending_dials),
                read_ahead: self.shared.read_ahead.of_another_session(),
                echoes: Arc::new(Semaphore::new(MAX_ECHOES)),
                calls: Arc::new(Semaphore::new(CALLS_MAX)),
                movable: Mutex::default(),
            })
        });
        let ticket = Ticket {
            budget: budget.clone(),
            session: admission.session,
            key: admission.key,
            rejoined: admission.rejoined,
            closed,
            lane: admission.lane,
            hub: self.clone(),
        };
        self.react(&mut state);
        Ok(Admitted::New(ticket))
    }

    /// How long a lane without byte stream is kept.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.shared.grace
    }

    /// Ends a session because its client said goodbye.
    pub fn goodbye(&self, session: &SessionId, reason: String) {
        let mut state = self.lock();
        state.sessions.on_goodbye(session, reason);
        self.react(&mut state);
    }

    /// Whether the session is here, and its client too; `None` when it is over.
    #[must_use]
    pub fn is_awake(&self, session: &SessionId) -> Option<bool> {
        self.lock().sessions.is_awake(session)
    }

    /// Whether this is the key of a session that is here.
    #[must_use]
    pub fn holds(&self, key: &SessionKey) -> bool {
        self.lock().sessions.holds(key)
    }

    /// Notes who a session belongs to; false when this is not the key of one.
    #[must_use]
    pub fn identify(&self, key: &SessionKey, user: &Arc<User>) -> bool {
        self.lock().sessions.identify(key, Arc::clone(user))
    }

    /// Who a session belongs to; `None` when it is not known, or the session is not here.
    #[must_use]
    pub fn user(&self, session: &SessionId) -> Option<Arc<User>> {
        self.lock().sessions.user(session)
    }

    /// Follows how many sessions have ended.
    #[must_use]
    pub fn ended(&self) -> watch::Receiver<u64> {
        self.shared.ended.subscribe()
    }

    /// Returns how many sessions there are.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.lock().sessions.len()
    }

    /// Ends sessions whose grace time is over. Runs until it is dropped.
    pub async fn run(&self) {
        loop {
            let next = self.lock().sessions.poll_timeout();
            let timer = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.shared.changed.notified() => {}
                () = timer => {
                    let mut state = self.lock();
                    state.sessions.handle_timeout(now());
                    self.react(&mut state);
                }
            }
        }
    }

    /// Carries the core's events out.
    fn react(&self, state: &mut State) {
        let ended = state.react();
        if ended > 0 {
            self.shared.ended.send_modify(|count| *count += ended);
        }
    }

    fn fresh_key(&self) -> Option<SessionKey> {
        let mut id = [0; ID_BYTES];
        let mut secret = vec![0; SECRET_BYTES];
        self.shared.random.fill(&mut id).ok()?;
        self.shared.random.fill(&mut secret).ok()?;
        let mut name = String::from("s-");
        for byte in id {
            write!(name, "{byte:02x}").expect("writing to a string cannot fail");
        }
        Some(SessionKey { id: name, secret })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is whole before anything can panic.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Carries the core's events out; returns how many sessions have ended.
    fn react(&mut self) -> u64 {
        let mut ended = 0;
        while let Some(event) = self.sessions.poll_event() {
            match event {
                Event::LaneReplaced(lane) | Event::LaneGivenUp(lane) => self.close(lane),
                Event::Ended { session, lanes, why } => {
                    tracing::info!(%session, %why, "session ended");
                    self.budgets.remove(&session);
                    lanes.into_iter().for_each(|lane| self.close(lane));
                    ended += 1;
                }
            }
        }
        ended
    }

    fn close(&mut self, lane: LaneId) {
        if let Some(lane) = self.lanes.remove(&lane) {
            lane.closed.cancel();
        }
    }
}

impl Budget {
    /// Keeps what the flow of this number goes on with, for as long as the flow lives. A number that the client uses again
    /// means the newer flow.
    pub fn movable(self: &Arc<Self>, flow: u64, continuation: Continuation) -> Movable {
        self.movable.lock().unwrap_or_else(PoisonError::into_inner).insert(flow, continuation);
        Movable { budget: self.clone(), flow }
    }

    /// Takes what the flow of this number goes on with; `None` when it has ended, or has gone on already.
    pub fn take_movable(&self, flow: u64) -> Option<Continuation> {
        self.movable.lock().unwrap_or_else(PoisonError::into_inner).remove(&flow)
    }
}

impl Drop for Movable {
    fn drop(&mut self) {
        self.budget.take_movable(self.flow);
    }
}

impl Ticket {
    /// Lets clients bring the lane another byte stream.
    pub fn resumable(&self, handle: &LaneHandle) {
        if let Some(lane) = self.hub.lock().lanes.get_mut(&self.lane) {
            lane.handle = Some(handle.clone());
        }
    }

    /// Keeps the registry informed of whether the lane has a byte stream. Returns when it has none and will not be brought
    /// another: a manager that is `stopping` lets nobody in.
    pub async fn watch(&self, handle: &LaneHandle, stopping: &CancellationToken) {
        while let CarrierState::Lost(why) = handle.lost().await {
            tracing::info!(session = %self.session, why, "lane lost its byte stream");
            self.carried(Some(now()));
            tokio::select! {
                _ = handle.attached() => {}
                () = stopping.cancelled() => return,
            }
            self.carried(None);
        }
        std::future::pending().await
    }

    fn carried(&self, lost_at: Option<std::time::Instant>) {
        self.hub.lock().sessions.on_lane_carried(self.lane, lost_at);
        self.hub.shared.changed.notify_one();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.hub.lock();
        state.lanes.remove(&self.lane);
        state.sessions.on_lane_closed(self.lane, now());
        drop(state);
        self.hub.shared.changed.notify_one();
    }
}

/// The clock of tokio, so that a test that pauses it drives the core as well.
fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new_lane(hub: &Hub, session: Option<&SessionKey>) -> Ticket {
        match hub.admit(&hello(session)).unwrap() {
            Admitted::New(ticket) => ticket,
            Admitted::Resumed { session, .. } => panic!("a lane of {session} was resumed"),
        }
    }

    fn hub() -> Hub {
        let limits = SessionLimits { sessions: 4, lanes_per_session: 4, grace: Duration::from_secs(120) };
        Hub::new(limits, FlowLimits { flows: 8, pending_dials: 2 })
    }

    fn hello(session: Option<&SessionKey>) -> ClientHello {
        ClientHello { session: session.cloned(), ..ClientHello::new("0.1.0", "demo") }
    }

    #[tokio::test]
    async fn keys_are_long_and_never_the_same() {
        let hub = hub();
        let (a, b) = (new_lane(&hub, None), new_lane(&hub, None));
        assert_eq!((a.key.id.len(), a.key.secret.len()), (18, 32));
        assert!(a.key.id != b.key.id && a.key.secret != b.key.secret);
    }

    #[tokio::test]
    async fn a_replaced_lane_is_told_to_close_and_the_budget_stays() {
        let hub = hub();
        let first = new_lane(&hub, None);
        let again = new_lane(&hub, Some(&first.key));
        assert!(first.closed.is_cancelled() && !again.closed.is_cancelled());
        assert!(Arc::ptr_eq(&first.budget, &again.budget));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_ticket_starts_the_grace_time() {
        let hub = hub();
        let timer = tokio::spawn({
            let hub = hub.clone();
            async move { hub.run().await }
        });
        let ticket = new_lane(&hub, None);
        let key = ticket.key.clone();
        drop(ticket);
        tokio::time::sleep(Duration::from_secs(119)).await;
        assert_eq!(hub.sessions(), 1);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(hub.sessions(), 0);
        assert!(!new_lane(&hub, Some(&key)).rejoined);
        timer.abort();
    }

    #[tokio::test]
    async fn goodbye_closes_all_lanes() {
        let hub = hub();
        let ticket = new_lane(&hub, None);
        hub.goodbye(&ticket.session, "quit".into());
        assert!(ticket.closed.is_cancelled());
        assert_eq!(hub.sessions(), 0);
    }
}
