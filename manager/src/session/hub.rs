//! The shell around [`Sessions`]: keys from random bytes, tickets that notice the end of a lane, and a timer.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tp_protocol::hello::{ClientHello, Refusal, RefusalCode, SessionKey};

use super::{Event, LaneId, SessionId, SessionLimits, Sessions};
use crate::VERSION;

/// Bytes of a session's id: enough to be unique.
const ID_BYTES: usize = 8;

/// Bytes of a session's secret: enough not to be guessed.
const SECRET_BYTES: usize = 32;

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
    random: SystemRandom,
    flow_limits: FlowLimits,
}

#[derive(Debug)]
struct State {
    sessions: Sessions,
    budgets: HashMap<SessionId, Arc<Budget>>,
    lanes: HashMap<LaneId, CancellationToken>,
}

/// What all lanes of a session share.
#[derive(Debug)]
pub struct Budget {
    /// One permit per open flow.
    pub flows: Arc<Semaphore>,
    /// One permit per dial under way.
    pub dials: Semaphore,
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
        let shared =
            Shared { state: Mutex::new(state), changed: Notify::new(), random: SystemRandom::new(), flow_limits };
        Self { shared: Arc::new(shared) }
    }

    /// Lets a lane in.
    ///
    /// # Errors
    /// A [`Refusal`] for the client.
    pub fn admit(&self, hello: &ClientHello) -> Result<Ticket, Refusal> {
        let key = self
            .fresh_key()
            .ok_or_else(|| Refusal::new(RefusalCode::Unspecified, "the manager has no randomness", VERSION))?;
        let mut state = self.lock();
        let admission = state
            .sessions
            .admit(hello, key)
            .map_err(|error| Refusal::new(error.code(), &error.to_string(), VERSION))?;
        let closed = CancellationToken::new();
        state.lanes.insert(admission.lane, closed.clone());
        let limits = self.shared.flow_limits;
        let budget = state.budgets.entry(admission.session.clone()).or_insert_with(|| {
            Arc::new(Budget {
                flows: Arc::new(Semaphore::new(limits.flows)),
                dials: Semaphore::new(limits.pending_dials),
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
        state.react();
        Ok(ticket)
    }

    /// Ends a session because its client said goodbye.
    pub fn goodbye(&self, session: &SessionId, reason: String) {
        let mut state = self.lock();
        state.sessions.on_goodbye(session, reason);
        state.react();
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
                    state.react();
                }
            }
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
    /// Carries the core's events out.
    fn react(&mut self) {
        while let Some(event) = self.sessions.poll_event() {
            match event {
                Event::LaneReplaced(lane) => self.close(lane),
                Event::Ended { session, lanes, why } => {
                    tracing::info!(%session, %why, "session ended");
                    self.budgets.remove(&session);
                    lanes.into_iter().for_each(|lane| self.close(lane));
                }
            }
        }
    }

    fn close(&mut self, lane: LaneId) {
        if let Some(closed) = self.lanes.remove(&lane) {
            closed.cancel();
        }
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
    use std::time::Duration;

    use super::*;

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
        let (a, b) = (hub.admit(&hello(None)).unwrap(), hub.admit(&hello(None)).unwrap());
        assert_eq!((a.key.id.len(), a.key.secret.len()), (18, 32));
        assert!(a.key.id != b.key.id && a.key.secret != b.key.secret);
    }

    #[tokio::test]
    async fn a_replaced_lane_is_told_to_close_and_the_budget_stays() {
        let hub = hub();
        let first = hub.admit(&hello(None)).unwrap();
        let again = hub.admit(&hello(Some(&first.key))).unwrap();
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
        let ticket = hub.admit(&hello(None)).unwrap();
        let key = ticket.key.clone();
        drop(ticket);
        tokio::time::sleep(Duration::from_secs(119)).await;
        assert_eq!(hub.sessions(), 1);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(hub.sessions(), 0);
        assert!(!hub.admit(&hello(Some(&key))).unwrap().rejoined);
        timer.abort();
    }

    #[tokio::test]
    async fn goodbye_closes_all_lanes() {
        let hub = hub();
        let ticket = hub.admit(&hello(None)).unwrap();
        hub.goodbye(&ticket.session, "quit".into());
        assert!(ticket.closed.is_cancelled());
        assert_eq!(hub.sessions(), 0);
    }
}
