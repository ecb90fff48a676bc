//! The engagements at this moment, who holds them, the agents that serve them ([`seat`]), and who waits for what.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message as _;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tp_protocol::engage::EngagementId;
use tp_protocol::engage::call::{Engagements as Message, Failure, Held, Mode, Report};
use tp_protocol::engage::filter::Filter;
use tp_protocol::engage::overlap::overlap;
use tp_protocol::engage::reach::ACCEPTS;
use tp_protocol::engage::wire::Transport;
use tp_protocol::error_class::ErrorClass;
use tp_protocol::hello::SessionKey;
use tp_protocol::limits::MAX_CONTROL_BYTES;
use tp_protocol::open::OpenRefused;
use tp_tunnel::server::Acceptor;

use self::seat::Agent;
use super::failure;
use super::stand_in::{Record, StandIn, hex};
use super::to_pod::Forwards;
use crate::session::SessionId;
use crate::session::hub::Hub;

mod seat;

pub(crate) use seat::Seat;

/// Engagements at once. More are refused.
const ENGAGEMENTS_MAX: usize = 10_000;

/// Engagements of one session; a client serves as many.
const ENGAGEMENTS_OF_SESSION_MAX: usize = 256;

/// Bytes of all engagements of one stand-in, encoded: they travel in one message, with the app's addresses.
const ORDERS_BYTES_MAX: usize = MAX_CONTROL_BYTES / 2;

/// The engagements. Clones share them.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

struct Shared {
    hub: Hub,
    grace: Duration,
    /// Held for a few map operations at a time, never across an await.
    state: Mutex<State>,
    /// Counts changes: of engagements, agents, and what agents say.
    changes: watch::Sender<u64>,
    /// Leases have to be written anew.
    adopted: Notify,
}

#[derive(Default)]
struct State {
    /// By id.
    engagements: BTreeMap<String, Entry>,
    /// Ids whose Lease may still be there.
    ended: HashSet<String>,
    /// Sessions of managers before this one that have come back, for Leases that are read later: id and secret's SHA-256
    /// of the old one, and of the new one.
    heirs: HashMap<(String, String), (String, String, Instant)>,
    /// Stand-ins whose task runs.
    places: HashSet<StandIn>,
    /// By namespace and pod.
    agents: HashMap<(String, String), Agent>,
    /// Pods of the workloads whose own pods have the agents, as their tasks see them.
    pods: Pods,
    next_agent: u64,
}

struct Entry {
    record: Record,
    stand_in: StandIn,
    lease_uid: String,
    /// When its session was last known to be gone; it may come back.
    gone_since: Option<Instant>,
    phase: watch::Sender<Phase>,
    problem: String,
    /// What agents have said of it, by the names of their pods.
    reports: HashMap<String, Vec<Report>>,
    queue: Arc<Queue>,
    forwards: Arc<Forwards>,
}

/// Names of pods, by what they belong to.
type Pods = HashMap<StandIn, HashSet<String>>;

/// How far an engagement is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Phase {
    /// Traffic does not arrive yet.
    Pending,
    /// Traffic arrives.
    InForce,
    /// It could not be made, and is being ended.
    Failed(Failure),
    /// It is being ended.
    Ending,
    /// Nothing is left of it.
    Ended,
}

/// An engagement, as its stand-in's task sees it.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) record: Record,
    pub(crate) lease_uid: String,
    pub(crate) phase: Phase,
}

/// What the streams of one client, or of one agent, wait in for connections.
#[derive(Default)]
struct Queue {
    waiting: Mutex<VecDeque<Acceptor>>,
    arrived: Notify,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("engagements", &self.lock().engagements.len()).finish_non_exhaustive()
    }
}

impl Registry {
    /// Starts without any.
    #[must_use]
    pub fn new(hub: Hub) -> Self {
        let grace = hub.grace();
        let shared =
            Shared { hub, grace, state: Mutex::default(), changes: watch::Sender::default(), adopted: Notify::new() };
        Self { shared: Arc::new(shared) }
    }

    pub(crate) fn hub(&self) -> &Hub {
        &self.shared.hub
    }

    pub(crate) fn grace(&self) -> Duration {
        self.shared.grace
    }

    /// Follows changes.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    fn changed(&self) {
        self.shared.changes.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is whole before anything can panic.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a new engagement. It is refused when it overlaps with another's.
    pub(crate) fn add(&self, record: Record, stand_in: &StandIn, replace_held: bool) -> Result<(), Failure> {
        let mut state = self.lock();
        if state.engagements.len() >= ENGAGEMENTS_MAX {
            return Err(failure(format!("there are {ENGAGEMENTS_MAX} engagements, which is the limit"), ""));
        }
        let of_session = state.engagements.values().filter(|entry| entry.record.session == record.session).count();
        if of_session >= ENGAGEMENTS_OF_SESSION_MAX {
            let why = format!("the connection has {of_session} engagements, which is the limit");
            return Err(failure(why, "`tp leave` ends some"));
        }
        if state.engagements.contains_key(&record.held.id) || state.ended.contains(&record.held.id) {
            return Err(failure(format!("there is an engagement {} already", record.held.id), "try again"));
        }
        let of_stand_in = || state.engagements.values().filter(|entry| entry.stand_in == *stand_in);
        let bytes: usize = of_stand_in().map(|entry| entry.record.held.encoded_len()).sum();
        if bytes + record.held.encoded_len() > ORDERS_BYTES_MAX {
            let why =
                format!("{} is engaged by {} others, which is the limit", stand_in.workload, of_stand_in().count());
            return Err(failure(why, "wait until some have left"));
        }
        let is_same_service = |it: &StandIn| {
            it.takes_traffic() && (&it.namespace, &it.service) == (&stand_in.namespace, &stand_in.service)
        };
        let other = state.engagements.values().find(|it| is_same_service(&it.stand_in) && it.stand_in != *stand_in);
        if let Some(other) = other {
            let why = format!(
                "the traffic of Service {} is engaged as that of {}, by {}",
                stand_in.service, other.stand_in.workload, other.record.held.holder
            );
            return Err(failure(why, format!("engage {} as well", other.stand_in.workload)));
        }
        if let Some(why) = state.engagements.values().find_map(|entry| passed_by(&record.held, &entry.record.held)) {
            return Err(why);
        }
        let others = state.engagements.values().filter(|entry| entry.stand_in == *stand_in && !entry.is_ending());
        let conflicting: Vec<(String, Failure, bool)> = others
            .filter_map(|entry| {
                let why = conflict(&record.held, &entry.record.held)?;
                Some((entry.record.held.id.clone(), why, self.is_gone(entry)))
            })
            .collect();
        for (_, why, is_gone) in &conflicting {
            if !(replace_held && *is_gone) {
                let mut why = why.clone();
                if *is_gone {
                    why.hint.push_str("; its holder is away: --replace-held takes over");
                }
                return Err(why);
            }
        }
        for (id, ..) in &conflicting {
            if let Some(entry) = state.engagements.get(id) {
                entry.phase.send_replace(Phase::Ending);
            }
        }
        let id = record.held.id.clone();
        state.engagements.insert(id, Entry::new(record, stand_in, String::new()));
        drop(state);
        self.changed();
        Ok(())
    }

    /// Takes up an engagement that a Lease tells of; false when it is known.
    pub(crate) fn take_up(&self, mut record: Record, stand_in: &StandIn, lease_uid: String) -> bool {
        let mut state = self.lock();
        if state.engagements.contains_key(&record.held.id) || state.ended.contains(&record.held.id) {
            return false;
        }
        if let Some((session, proof, _)) = state.heirs.get(&(record.session.clone(), record.secret_sha256.clone())) {
            (record.session, record.secret_sha256) = (session.clone(), proof.clone());
            self.shared.adopted.notify_one();
        }
        let mut entry = Entry::new(record.clone(), stand_in, lease_uid);
        entry.gone_since = Some(Instant::now());
        entry.phase.send_replace(Phase::InForce);
        state.engagements.insert(record.held.id, entry);
        drop(state);
        self.changed();
        true
    }

    /// Notes the Lease of an engagement.
    pub(crate) fn on_lease_made(&self, id: &str, uid: String) {
        if let Some(entry) = self.lock().engagements.get_mut(id) {
            entry.lease_uid = uid;
        }
        self.changed();
    }

    /// An engagement whose Lease was not made is none.
    pub(crate) fn forget(&self, id: &str) {
        self.lock().engagements.remove(id);
        self.changed();
    }

    /// The Lease of this uid is gone, or going, and with it the engagement.
    pub(crate) fn on_lease_gone(&self, id: &str, uid: Option<&str>, is_gone: bool) {
        let mut state = self.lock();
        if is_gone {
            state.ended.remove(id);
        }
        let is_ours = state.engagements.get(id).is_some_and(|entry| Some(&*entry.lease_uid) == uid);
        drop(state);
        if is_ours {
            self.end(id);
        }
    }

    /// Ids of the Leases that have been seen so far.
    pub(crate) fn with_lease(&self) -> HashSet<String> {
        let state = self.lock();
        let made = state.engagements.iter().filter(|(_, entry)| !entry.lease_uid.is_empty()).map(|(id, _)| id);
        made.chain(&state.ended).cloned().collect()
    }

    /// These Leases are there no longer.
    pub(crate) fn on_leases_missing<'a>(&self, ids: impl Iterator<Item = &'a String>) {
        for id in ids {
            self.lock().ended.remove(id);
            self.end(id);
        }
    }

    /// Ends an engagement.
    pub(crate) fn end(&self, id: &str) {
        let state = self.lock();
        if let Some(entry) = state.engagements.get(id).filter(|entry| !entry.is_ending()) {
            tracing::info!(engagement = id, "engagement ends");
            entry.phase.send_replace(Phase::Ending);
        }
        drop(state);
        self.changed();
    }

    /// Ends those whose client is gone for good.
    pub(crate) fn end_without_session(&self) {
        let mut over = Vec::new();
        for entry in self.lock().engagements.values_mut().filter(|entry| !entry.is_ending()) {
            let session = SessionId::from(&*entry.record.session);
            match (self.shared.hub.is_awake(&session), entry.gone_since) {
                (Some(_), _) => entry.gone_since = None,
                // Its end was the client's wish, or came after the grace time.
                (None, None) => over.push(entry.record.held.id.clone()),
                (None, Some(since)) if since.elapsed() >= self.shared.grace => over.push(entry.record.held.id.clone()),
                (None, Some(_)) => {}
            }
        }
        over.iter().for_each(|id| self.end(id));
    }

    /// A client whose session was lost with another manager has come back: what it held is its own again, also what is
    /// read of its Leases later.
    pub(crate) fn adopt(&self, old: &SessionKey, new: &SessionKey) {
        let old = (old.id.clone(), secret_sha256(&old.secret));
        let (session, proof) = (new.id.clone(), secret_sha256(&new.secret));
        let mut state = self.lock();
        for entry in state.engagements.values_mut() {
            if (&entry.record.session, &entry.record.secret_sha256) == (&old.0, &old.1) {
                entry.record.session.clone_from(&session);
                entry.record.secret_sha256.clone_from(&proof);
                entry.gone_since = None;
            }
        }
        state.heirs.retain(|_, (_, _, since)| since.elapsed() < self.shared.grace);
        state.heirs.insert(old, (session, proof, Instant::now()));
        drop(state);
        self.shared.adopted.notify_one();
        self.changed();
    }

    /// Waits until Leases have to be written anew, since others hold them.
    pub(crate) async fn adopted(&self) {
        self.shared.adopted.notified().await;
    }

    /// The engagements whose clients are there, with their namespaces.
    pub(crate) fn held_by_the_awake(&self) -> Vec<(String, Record)> {
        let state = self.lock();
        let is_there = |entry: &&Entry| !entry.lease_uid.is_empty() && !entry.is_ending() && !self.is_gone(entry);
        let awake = state.engagements.values().filter(is_there);
        awake.map(|entry| (entry.stand_in.namespace.clone(), entry.record.clone())).collect()
    }

    fn is_gone(&self, entry: &Entry) -> bool {
        self.shared.hub.is_awake(&SessionId::from(&*entry.record.session)) != Some(true)
    }

    /// Follows how far an engagement is.
    pub(crate) fn phase(&self, id: &str) -> Option<watch::Receiver<Phase>> {
        Some(self.lock().engagements.get(id)?.phase.subscribe())
    }

    /// Says how far the engagements of a stand-in are, those that end included.
    pub(crate) fn set_phase(&self, id: &str, phase: Phase) {
        let mut state = self.lock();
        let Some(entry) = state.engagements.get(id) else { return };
        let is_over = phase == Phase::Ended;
        let is_new = entry.phase.send_if_modified(|current| {
            // Who waits for it is to learn why it failed.
            let is_new = *current != phase && !(is_over && matches!(current, Phase::Failed(_)));
            if is_new {
                *current = phase;
            }
            is_new
        });
        if is_over {
            state.engagements.remove(id);
            state.ended.insert(id.to_owned());
        }
        drop(state);
        if is_new || is_over {
            self.changed();
        }
    }

    /// Says what is wrong with a stand-in's engagements; an empty text for nothing.
    pub(crate) fn set_problem(&self, stand_in: &StandIn, problem: &str) {
        let mut is_new = false;
        for entry in self.lock().engagements.values_mut().filter(|entry| entry.stand_in == *stand_in) {
            is_new |= entry.problem != problem;
            problem.clone_into(&mut entry.problem);
        }
        if is_new {
            self.changed();
        }
    }

    /// The engagements of a stand-in.
    pub(crate) fn wanted(&self, stand_in: &StandIn) -> Vec<Wanted> {
        let state = self.lock();
        let of_it = state.engagements.values().filter(|entry| entry.stand_in == *stand_in);
        let wanted = of_it.map(|entry| Wanted {
            record: entry.record.clone(),
            lease_uid: entry.lease_uid.clone(),
            phase: entry.phase.borrow().clone(),
        });
        wanted.collect()
    }

    /// All engagements of a namespace, or of all when it is empty, as `session` is told of them.
    pub(crate) fn list(&self, namespace: &str, session: &SessionId) -> Vec<Held> {
        let state = self.lock();
        let of_it =
            state.engagements.values().filter(|entry| namespace.is_empty() || entry.stand_in.namespace == namespace);
        let mut list: Vec<Held> = of_it.map(|entry| entry.held(session)).collect();
        list.sort_by(|a, b| {
            (&a.namespace, &a.workload, a.since, &a.id).cmp(&(&b.namespace, &b.workload, b.since, &b.id))
        });
        list
    }

    /// How the traffic of a workload is engaged at the moment, if it is.
    pub(crate) fn mode(&self, namespace: &str, workload: &str) -> Option<Mode> {
        let state = self.lock();
        let held = state.engagements.values().filter(|entry| !entry.is_ending()).map(|entry| &entry.record.held);
        let mut of_it = held.filter(|held| (held.namespace.as_str(), held.workload.as_str()) == (namespace, workload));
        of_it.find(|held| !held.ports.is_empty()).map(Held::mode)
    }

    /// What a session holds.
    pub(crate) fn held_by(&self, session: &SessionId) -> Message {
        let mine = self.list("", session).into_iter().filter(|held| held.is_mine);
        Message { engagements: mine.collect() }
    }

    /// Whether the stand-in's task is to be started; from then on it runs.
    pub(crate) fn start_place(&self, stand_in: &StandIn) -> bool {
        self.lock().places.insert(stand_in.clone())
    }

    /// The stand-in's task ends, unless it is needed again meanwhile.
    pub(crate) fn stop_place(&self, stand_in: &StandIn) -> bool {
        let mut state = self.lock();
        let is_needed = state.engagements.values().any(|entry| entry.stand_in == *stand_in);
        if !is_needed {
            state.places.remove(stand_in);
            state.pods.remove(stand_in);
        }
        !is_needed
    }

    /// The way to a port on the localhost of a workload's pods, if the session holds an engagement that asked for it.
    pub(crate) fn forwards(&self, session: &SessionId, via: (&str, &str), port: u16) -> Option<Arc<Forwards>> {
        let session = session.to_string();
        let is_asked_for = |entry: &&Entry| {
            let held = &entry.record.held;
            entry.record.session == session
                && (&*held.namespace, &*held.workload) == via
                && held.to_pod.iter().any(|it| it.port == u32::from(port) && it.transport() == Transport::Tcp)
                && !entry.is_ending()
        };
        let state = self.lock();
        state.engagements.values().find(is_asked_for).map(|entry| Arc::clone(&entry.forwards))
    }

    /// Says which pods have the agents, where these are the workload's own.
    pub(crate) fn set_pods(&self, stand_in: &StandIn, names: HashSet<String>) {
        let mut state = self.lock();
        for entry in state.engagements.values_mut().filter(|entry| entry.stand_in == *stand_in) {
            entry.reports.retain(|pod, _| names.contains(pod));
        }
        state.pods.insert(stand_in.clone(), names);
    }

    /// Takes a stream on which a client waits for a connection.
    pub(crate) fn accept(&self, session: &SessionId, id: &EngagementId, acceptor: Acceptor) {
        let state = self.lock();
        let entry = state.engagements.get(id.as_str());
        let queue =
            entry.filter(|it| it.record.session == session.to_string() && !it.is_ending()).map(|it| it.queue.clone());
        drop(state);
        match queue {
            Some(queue) => queue.put(acceptor),
            None => acceptor.refuse(&OpenRefused::new(ErrorClass::Failed, format!("this session does not hold {id}"))),
        }
    }
}

impl Entry {
    fn new(record: Record, stand_in: &StandIn, lease_uid: String) -> Self {
        Self {
            record,
            stand_in: stand_in.clone(),
            lease_uid,
            gone_since: None,
            phase: watch::Sender::new(Phase::Pending),
            problem: String::new(),
            reports: HashMap::new(),
            queue: Arc::default(),
            forwards: Arc::default(),
        }
    }

    fn is_ending(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Ending | Phase::Ended | Phase::Failed(_))
    }

    fn held(&self, session: &SessionId) -> Held {
        let is_mine = self.record.session == session.to_string();
        Held {
            is_mine,
            // They name Secrets and claims of a namespace that others may not see.
            mounts: if is_mine { self.record.held.mounts.clone() } else { Vec::new() },
            problem: self.problem.clone(),
            report: sum(self.reports.values().flatten()),
            ..self.record.held.clone()
        }
    }
}

/// The ports' and pods' reports as one.
fn sum<'a>(reports: impl Iterator<Item = &'a Report>) -> Option<Report> {
    reports.cloned().reduce(|a, b| Report {
        id: a.id,
        is_away: a.is_away || b.is_away,
        taken: a.taken + b.taken,
        fallen_back: a.fallen_back + b.fallen_back,
        copied: a.copied + b.copied,
        copies_lost: a.copies_lost + b.copies_lost,
    })
}

/// Whether a pod has an agent of a stand-in, or of what stands for one.
fn is_of(pods: &Pods, stand_in: &StandIn, pod: &(String, String)) -> bool {
    if stand_in.is_sidecar {
        return pod.0 == stand_in.namespace && pods.get(stand_in).is_some_and(|names| names.contains(&pod.1));
    }
    stand_in.can_be_of(pod)
}

/// Why two engagements of one workload cannot be at once, one of them by a stand-in and the other in its own pods: what a stand-in
/// passes on to the pods does not come by their agents.
fn passed_by(asked: &Held, held: &Held) -> Option<Failure> {
    let is_sidecar = |it: &Held| it.mode() == Mode::Sidecar;
    let is_same = (&asked.namespace, &asked.workload) == (&held.namespace, &held.workload);
    let both_take = !asked.ports.is_empty() && !held.ports.is_empty();
    if !is_same || !both_take || is_sidecar(asked) == is_sidecar(held) {
        return None;
    }
    let (how, mode) = match is_sidecar(held) {
        true => ("in its own pods", "sidecar"),
        false => ("by a stand-in", "stand-in"),
    };
    Some(failure(
        format!("{} is engaged {how} by {}, and both at once would not see all traffic", held.workload, held.holder),
        format!("engage it with --mode {mode} as well"),
    ))
}

/// Why two engagements of one stand-in cannot be at once.
fn conflict(asked: &Held, held: &Held) -> Option<Failure> {
    let takes = |it: &Held| it.what() != tp_protocol::engage::wire::Kind::Wiretap;
    let shared =
        asked.ports.iter().find(|a| held.ports.iter().any(|b| (a.port, a.transport) == (b.port, b.transport)))?;
    if !(takes(asked) && takes(held)) {
        return None;
    }
    // Both were checked when they were made.
    let filter = |it: &Held| it.filter.as_ref().and_then(|filter| Filter::try_from(filter).ok()).unwrap_or_default();
    let why = overlap(&filter(asked), &filter(held))?;
    let since = jiff::Timestamp::from_second(held.since).map(|since| since.to_string()).unwrap_or_default();
    Some(failure(
        format!("port {} of {} is engaged by {} since {since}: {why}", shared.port, held.workload, held.holder),
        "a filter that tells the two apart (--http-header) lets both be",
    ))
}

/// What proves that a client had a session.
pub(crate) fn secret_sha256(secret: &[u8]) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, secret).as_ref())
}

impl Queue {
    /// The oldest gives its place: it may be of a lane that is gone.
    fn put(&self, acceptor: Acceptor) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= 2 * ACCEPTS
            && let Some(oldest) = waiting.pop_front()
        {
            oldest.refuse(&OpenRefused::new(ErrorClass::Exhausted, "too many streams wait for a connection"));
        }
        waiting.push_back(acceptor);
        drop(waiting);
        self.arrived.notify_one();
    }

    async fn take(&self) -> Acceptor {
        loop {
            let next = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_back();
            match next {
                Some(acceptor) => return acceptor,
                None => self.arrived.notified().await,
            }
        }
    }
}

#[cfg(test)]
mod tests;
