//! The agents' part of the registry: their orders, what they say of them, the environments that they tell, and what they dial.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tp_protocol::engage::EngagementId;
use tp_protocol::engage::call::{AgentState, Environment, Failure, Orders, Report};
use tp_protocol::engage::dial::Dial;
use tp_protocol::engage::reach::Arrival;
use tp_protocol::engage::wire;
use tp_protocol::error_class::ErrorClass;
use tp_protocol::open::{Open, OpenRefused};
use tp_tunnel::error::OfferError;
use tp_tunnel::flow::Flow;
use tp_tunnel::server::Acceptor;

use super::{Entry, Queue, Registry, State, is_of};
use crate::engage::failure;
use crate::session::SessionId;

/// Questions for one agent's environment that wait for the answer.
const QUESTIONS_MAX: usize = 256;

/// An agent's connection.
pub(super) struct Agent {
    number: u64,
    orders: watch::Sender<Orders>,
    state: AgentState,
    /// Counts the questions for its environment.
    questions: watch::Sender<u64>,
    /// Streams on which it waits for what it is to dial.
    dials: Arc<Queue>,
    /// Who asked. One answer is for all of them: an agent's environment does not change.
    asking: Vec<oneshot::Sender<Environment>>,
}

/// An agent's place in the registry, until it is dropped.
pub(crate) struct Seat {
    registry: Registry,
    pod: (String, String),
    number: u64,
    /// What the agent has to do. The first orders are the default, which are none.
    pub orders: watch::Receiver<Orders>,
    /// Changes when the agent is to tell its environment.
    pub questions: watch::Receiver<u64>,
}

impl Registry {
    /// An agent has registered.
    pub(crate) fn seat(&self, namespace: &str, pod: &str) -> Seat {
        let pod = (namespace.to_owned(), pod.to_owned());
        let (orders_tx, orders) = watch::channel(Orders::default());
        let (questions_tx, questions) = watch::channel(0);
        let mut state = self.lock();
        state.next_agent += 1;
        let number = state.next_agent;
        let agent = Agent {
            number,
            orders: orders_tx,
            state: AgentState::default(),
            questions: questions_tx,
            dials: Arc::default(),
            asking: Vec::new(),
        };
        state.agents.insert(pod.clone(), agent);
        drop(state);
        self.changed();
        Seat { registry: self.clone(), pod, number, orders, questions }
    }

    /// Whether the agent of a pod is connected.
    pub(crate) fn has_agent(&self, namespace: &str, pod: &str) -> bool {
        self.lock().agents.contains_key(&(namespace.to_owned(), pod.to_owned()))
    }

    /// Gives an agent its orders, if they are its first or others than before, and returns what it last said of them: `None`
    /// when it is not here or has not carried them out yet.
    pub(crate) fn order(&self, namespace: &str, pod: &str, orders: &Orders) -> Option<AgentState> {
        let state = self.lock();
        let agent = state.agents.get(&(namespace.to_owned(), pod.to_owned()))?;
        agent.orders.send_if_modified(|current| {
            let next = Orders { number: current.number + 1, ..orders.clone() };
            let is_new = current.number == 0 || Orders { number: next.number, ..current.clone() } != next;
            if is_new {
                *current = next;
            }
            is_new
        });
        (agent.state.number == agent.orders.borrow().number).then(|| agent.state.clone())
    }

    /// Asks the agent of an engagement for its environment. The answer is dropped when the agent goes.
    pub(crate) fn ask_environment(&self, id: &str) -> Result<oneshot::Receiver<Environment>, Failure> {
        let mut state = self.lock();
        let State { engagements, agents, pods, .. } = &mut *state;
        let entry = engagements.get(id).ok_or_else(|| failure("the engagement was ended meanwhile", ""))?;
        // The one before may be there still, and be going.
        let of_it = agents.iter_mut().filter(|(pod, _)| is_of(pods, &entry.stand_in, pod)).map(|(_, agent)| agent);
        let agent = of_it.max_by_key(|agent| agent.number);
        let agent = agent.ok_or_else(|| {
            failure(
                format!("the agent that stands in for {} is not connected", entry.stand_in.workload),
                "try again in a moment",
            )
        })?;
        agent.asking.retain(|asking| !asking.is_closed());
        if agent.asking.len() >= QUESTIONS_MAX {
            return Err(failure(format!("{QUESTIONS_MAX} others wait for this environment"), "try again in a moment"));
        }
        let (answer, answered) = oneshot::channel();
        agent.asking.push(answer);
        agent.questions.send_modify(|count| *count += 1);
        Ok(answered)
    }

    /// Has an agent dial `dst` for a flow of `session`, which holds an engagement by way of the workload `via`. While no agent
    /// is there this waits, `until` then at most.
    ///
    /// The dial policy has let `dst` pass.
    ///
    /// # Errors
    /// [`OpenRefused`], for the socket that asked.
    pub(crate) async fn dial(
        &self,
        session: &SessionId,
        via: &str,
        open: &Open,
        dst: SocketAddr,
        until: Instant,
    ) -> Result<Flow, OpenRefused> {
        let namespace = open.namespace.as_deref().unwrap_or_default();
        let mut changes = self.changes();
        loop {
            changes.mark_unchanged();
            let queue = self.diallers(session, (namespace, via))?;
            let acceptor = tokio::select! {
                acceptor = take(queue.as_deref()) => acceptor,
                Ok(()) = changes.changed() => continue,
                () = sleep_until(until) => {
                    let why = format!("no agent of {via} was there in time to dial {dst}");
                    return Err(OpenRefused::new(ErrorClass::TimedOut, why));
                }
            };
            let deadline = until.saturating_duration_since(Instant::now());
            match acceptor.dial(&Dial { dst, transport: open.transport, deadline }).await {
                Ok(flow) => return Ok(flow),
                Err(OfferError::Refused(why)) => return Err(why),
                // Its agent is gone; there may be another.
                Err(error) => tracing::debug!(via, %error, "stale"),
            }
        }
    }

    /// The streams of the agent that dials by way of a workload: that of the newest, since the one before may be going. `None`
    /// while there is no agent.
    fn diallers(&self, session: &SessionId, via: (&str, &str)) -> Result<Option<Arc<Queue>>, OpenRefused> {
        let session = session.to_string();
        let state = self.lock();
        let is_meant = |entry: &&Entry| {
            let held = &entry.record.held;
            entry.record.session == session
                && held.what() == wire::Kind::Via
                && (&*held.namespace, &*held.workload) == via
                && !entry.is_ending()
        };
        let entry = state.engagements.values().find(is_meant).ok_or_else(|| {
            OpenRefused::new(ErrorClass::Denied, format!("this session does not connect by way of {}", via.1))
        })?;
        let of_it = state.agents.iter().filter(|(pod, _)| is_of(&state.pods, &entry.stand_in, pod));
        let newest = of_it.map(|(_, agent)| agent).max_by_key(|agent| agent.number);
        Ok(newest.map(|agent| Arc::clone(&agent.dials)))
    }

    /// Brings an agent's connection to the client that holds the engagement.
    pub(crate) async fn reach(
        &self,
        seat: &(String, String),
        id: &EngagementId,
        arrival: &Arrival,
    ) -> Result<Flow, OpenRefused> {
        let queue = {
            let state = self.lock();
            // Another pod has no business here.
            let entry = state.engagements.get(id.as_str()).filter(|entry| is_of(&state.pods, &entry.stand_in, seat));
            entry.map(|entry| entry.queue.clone())
        };
        let over = || OpenRefused::new(ErrorClass::Denied, format!("{id} is not an engagement of this pod"));
        let queue = queue.ok_or_else(over)?;
        loop {
            match queue.take().await.offer(arrival).await {
                Ok(flow) => return Ok(flow),
                Err(OfferError::Refused(why)) => return Err(why),
                // The lane that this one was on is gone; another may be there.
                Err(error) => tracing::debug!(engagement = %id, %error, "stale"),
            }
        }
    }
}

/// The next stream; never, where there is nobody to open one.
async fn take(queue: Option<&Queue>) -> Acceptor {
    match queue {
        Some(queue) => queue.take().await,
        None => pending().await,
    }
}

impl Seat {
    /// Namespace and name of the agent's pod.
    pub(crate) fn pod(&self) -> &(String, String) {
        &self.pod
    }

    /// The agent says how its orders go.
    pub(crate) fn on_state(&self, said: AgentState) {
        let mut state = self.registry.lock();
        let State { engagements, agents, pods, .. } = &mut *state;
        let Some(agent) = agents.get_mut(&self.pod).filter(|agent| agent.number == self.number) else { return };
        let is_new = agent.state != said;
        agent.state = said.clone();
        for entry in engagements.values_mut().filter(|entry| is_of(pods, &entry.stand_in, &self.pod)) {
            let of_it = |report: &&Report| report.id.split_once('#').is_some_and(|(id, _)| id == entry.record.held.id);
            let reports: Vec<Report> = said.reports.iter().filter(of_it).cloned().collect();
            if !reports.is_empty() {
                if !entry.stand_in.is_sidecar {
                    // The one before has ended.
                    entry.reports.clear();
                }
                entry.reports.insert(self.pod.1.clone(), reports);
            }
        }
        drop(state);
        if is_new {
            self.registry.changed();
        }
    }

    /// The agent is ready to dial.
    pub(crate) fn on_dialler(&self, acceptor: Acceptor) {
        let state = self.registry.lock();
        let agent = state.agents.get(&self.pod).filter(|agent| agent.number == self.number);
        let queue = agent.map(|agent| Arc::clone(&agent.dials));
        drop(state);
        match queue {
            Some(queue) => queue.put(acceptor),
            None => acceptor.refuse(&OpenRefused::new(ErrorClass::Failed, "another agent of this pod is here")),
        }
    }

    /// The agent tells its environment.
    pub(crate) fn on_environment(&self, told: &Environment) {
        let mut state = self.registry.lock();
        let Some(agent) = state.agents.get_mut(&self.pod).filter(|agent| agent.number == self.number) else { return };
        for asking in agent.asking.drain(..) {
            // Fails when who asked has gone.
            let _ = asking.send(told.clone());
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.registry.lock();
        if state.agents.get(&self.pod).is_some_and(|agent| agent.number == self.number) {
            state.agents.remove(&self.pod);
        }
        drop(state);
        self.registry.changed();
    }
}
