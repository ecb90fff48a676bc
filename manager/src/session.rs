//! Which clients are here: sessions, their lanes, and when a session without lanes is given up.
//!
//! A pure core. The first lane of a client makes a session and is told its id and secret; further lanes, and lanes that
//! replace lost ones, join by them. A lane that has lost its byte stream is kept for a grace time, in which the client may
//! bring it another one, and so is a session whose lanes are all gone. [`hub`] is the shell.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tp_protocol::hello::{ClientHello, RefusalCode, SessionKey};

use crate::identity::User;

pub mod hub;

/// Public name of a session, safe for logs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(String);

/// One lane of any session. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(u64);

/// How much and how long.
#[derive(Clone, Copy, Debug)]
pub struct SessionLimits {
    /// Sessions at once.
    pub sessions: usize,
    /// Lanes of one session.
    pub lanes_per_session: usize,
    /// How long a lane without byte stream and a session without lanes are kept.
    pub grace: Duration,
}

/// Why a lane is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdmitError {
    /// The session exists, and this is not its secret.
    #[error("the secret of session {0} is wrong")]
    BadSecret(SessionId),
    /// A lane other than the first asks for a session that is not here.
    #[error(
        "session {0} is not known: the manager was restarted, or the session's grace time is over; open lane 0 first"
    )]
    UnknownSession(SessionId),
    /// A lane other than the first names no session.
    #[error("lane {0} names no session; open lane 0 first")]
    NoSession(u32),
    /// No room for another session.
    #[error("the manager has {0} sessions, which is its limit (limits.sessions in the chart)")]
    TooManySessions(usize),
    /// No room for another lane.
    #[error("session {0} has {1} lanes, which is the limit (limits.lanesPerSession in the chart)")]
    TooManyLanes(SessionId, usize),
}

impl AdmitError {
    /// The code for programs.
    #[must_use]
    pub fn code(&self) -> RefusalCode {
        match self {
            Self::BadSecret(_) => RefusalCode::BadSecret,
            Self::UnknownSession(_) | Self::NoSession(_) => RefusalCode::Unspecified,
            Self::TooManySessions(_) | Self::TooManyLanes(..) => RefusalCode::Exhausted,
        }
    }
}

/// A lane that was let in.
#[derive(Clone, Debug, PartialEq)]
pub struct Admission {
    /// The lane.
    pub lane: LaneId,
    /// Its session.
    pub session: SessionId,
    /// The session's id and secret, for the client.
    pub key: SessionKey,
    /// The lane joined the session that it asked for.
    pub rejoined: bool,
    /// It is a lane that was there before, on another byte stream.
    pub resumed: bool,
}

/// What the shell has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The client has replaced this lane: close it.
    LaneReplaced(LaneId),
    /// No byte stream was brought for this lane within the grace time: close it.
    LaneGivenUp(LaneId),
    /// The session is over: close its lanes and forget what belongs to it.
    Ended {
        /// Which.
        session: SessionId,
        /// Its lanes that are still open.
        lanes: Vec<LaneId>,
        /// Why.
        why: EndedWhy,
    },
}

/// Why a session is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndedWhy {
    /// The client said goodbye.
    Goodbye(String),
    /// No lane came back within the grace time.
    GraceOver,
}

#[derive(Debug)]
struct Session {
    secret: Vec<u8>,
    /// Who it belongs to, once that is known. A lane that joins or comes back changes nothing of it.
    user: Option<Arc<User>>,
    /// By the client's own number of the lane.
    lanes: BTreeMap<u32, LaneEntry>,
    /// When the last lane went. Invariant: `Some` exactly while `lanes` is empty.
    alone_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct LaneEntry {
    id: LaneId,
    /// When its byte stream was lost.
    lost_at: Option<Instant>,
}

/// All sessions.
#[derive(Debug)]
pub struct Sessions {
    limits: SessionLimits,
    sessions_by_id: HashMap<SessionId, Session>,
    sessions_by_lane: HashMap<LaneId, SessionId>,
    next_lane: u64,
    events: VecDeque<Event>,
}

impl Sessions {
    /// Starts without any.
    #[must_use]
    pub fn new(limits: SessionLimits) -> Self {
        Self {
            limits,
            sessions_by_id: HashMap::new(),
            sessions_by_lane: HashMap::new(),
            next_lane: 0,
            events: VecDeque::new(),
        }
    }

    /// Lets a lane in, or says why not. A new session gets `fresh`, which the caller made from random bytes.
    ///
    /// A client whose session is gone gets a new one on lane 0, and learns it from `rejoined`.
    ///
    /// # Errors
    /// [`AdmitError`], for the client.
    pub fn admit(&mut self, hello: &ClientHello, fresh: SessionKey) -> Result<Admission, AdmitError> {
        let asked = hello.session.as_ref().map(|key| (SessionId(key.id.clone()), &key.secret));
        match asked {
            Some((id, secret)) if self.sessions_by_id.contains_key(&id) => {
                self.join(id, secret, hello.lane, hello.resume_received.is_some())
            }
            Some((id, _)) if hello.lane != 0 => Err(AdmitError::UnknownSession(id)),
            None if hello.lane != 0 => Err(AdmitError::NoSession(hello.lane)),
            Some(_) | None => self.create(fresh, hello.lane),
        }
    }

    /// Notes that a lane has closed. Lanes that were replaced are of no account.
    pub fn on_lane_closed(&mut self, lane: LaneId, now: Instant) {
        let Some(session) = self.sessions_by_lane.remove(&lane).and_then(|id| self.sessions_by_id.get_mut(&id)) else {
            return;
        };
        session.lanes.retain(|_, entry| entry.id != lane);
        if session.lanes.is_empty() {
            session.alone_since = Some(now);
        }
    }

    /// Notes that a lane has lost its byte stream, or has one again.
    pub fn on_lane_carried(&mut self, lane: LaneId, lost_at: Option<Instant>) {
        let session = self.sessions_by_lane.get(&lane).and_then(|id| self.sessions_by_id.get_mut(id));
        let lanes = session.into_iter().flat_map(|session| session.lanes.values_mut());
        for entry in lanes.filter(|entry| entry.id == lane) {
            entry.lost_at = lost_at;
        }
    }

    /// Ends a session because its client said goodbye.
    pub fn on_goodbye(&mut self, id: &SessionId, reason: String) {
        self.end(id, EndedWhy::Goodbye(reason));
    }

    /// Ends the lanes and sessions whose grace time is over.
    pub fn handle_timeout(&mut self, now: Instant) {
        let grace = self.limits.grace;
        for session in self.sessions_by_id.values_mut() {
            let mut last_lost = None;
            session.lanes.retain(|_, entry| {
                let Some(lost_at) = entry.lost_at.filter(|lost_at| *lost_at + grace <= now) else { return true };
                last_lost = last_lost.max(Some(lost_at));
                self.sessions_by_lane.remove(&entry.id);
                self.events.push_back(Event::LaneGivenUp(entry.id));
                false
            });
            if session.lanes.is_empty() {
                session.alone_since = session.alone_since.or(last_lost);
            }
        }
        let over: Vec<SessionId> = self
            .sessions_by_id
            .iter()
            .filter(|(_, session)| session.alone_since.is_some_and(|since| since + self.limits.grace <= now))
            .map(|(id, _)| id.clone())
            .collect();
        for id in over {
            self.end(&id, EndedWhy::GraceOver);
        }
    }

    /// Returns when [`Self::handle_timeout`] has something to do; `None` while every session has lanes, and they theirs.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.sessions_by_id
            .values()
            .flat_map(|session| session.lanes.values().map(|entry| entry.lost_at).chain([session.alone_since]))
            .flatten()
            .min()
            .map(|since| since + self.limits.grace)
    }

    /// Returns what the shell has to do next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether the session is here, and a lane of it has a byte stream; `None` when it is not here.
    #[must_use]
    pub fn is_awake(&self, id: &SessionId) -> Option<bool> {
        let session = self.sessions_by_id.get(id)?;
        Some(session.lanes.values().any(|lane| lane.lost_at.is_none()))
    }

    /// Whether a session of this id is here, and this is its secret.
    #[must_use]
    pub fn holds(&self, key: &SessionKey) -> bool {
        let session = self.sessions_by_id.get(&SessionId::from(&*key.id));
        session.is_some_and(|session| is_same(&session.secret, &key.secret))
    }

    /// Notes who a session belongs to; false when this is not the key of one.
    pub fn identify(&mut self, key: &SessionKey, user: Arc<User>) -> bool {
        if !self.holds(key) {
            return false;
        }
        if let Some(session) = self.sessions_by_id.get_mut(&SessionId::from(&*key.id)) {
            session.user = Some(user);
        }
        true
    }

    /// Who a session belongs to; `None` when it is not known, or the session is not here.
    #[must_use]
    pub fn user(&self, id: &SessionId) -> Option<Arc<User>> {
        self.sessions_by_id.get(id)?.user.clone()
    }

    /// Returns how many sessions there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sessions_by_id.len()
    }

    /// Whether there is no session.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sessions_by_id.is_empty()
    }

    fn create(&mut self, fresh: SessionKey, number: u32) -> Result<Admission, AdmitError> {
        if self.sessions_by_id.len() >= self.limits.sessions {
            return Err(AdmitError::TooManySessions(self.limits.sessions));
        }
        let id = SessionId(fresh.id.clone());
        let lane = self.add_lane(&id);
        let session = Session {
            secret: fresh.secret.clone(),
            user: None,
            lanes: BTreeMap::from([(number, lane.into())]),
            alone_since: None,
        };
        let previous = self.sessions_by_id.insert(id.clone(), session);
        debug_assert!(previous.is_none(), "session ids are random");
        Ok(Admission { lane, session: id, key: fresh, rejoined: false, resumed: false })
    }

    fn join(&mut self, id: SessionId, secret: &[u8], number: u32, resume: bool) -> Result<Admission, AdmitError> {
        let lane = LaneId(self.next_lane);
        let Some(session) = self.sessions_by_id.get_mut(&id).filter(|session| is_same(&session.secret, secret)) else {
            return Err(AdmitError::BadSecret(id));
        };
        let key = SessionKey { id: id.0.clone(), secret: session.secret.clone() };
        if let (Some(entry), true) = (session.lanes.get(&number), resume) {
            return Ok(Admission { lane: entry.id, session: id, key, rejoined: true, resumed: true });
        }
        if !session.lanes.contains_key(&number) && session.lanes.len() >= self.limits.lanes_per_session {
            return Err(AdmitError::TooManyLanes(id, self.limits.lanes_per_session));
        }
        if let Some(replaced) = session.lanes.insert(number, lane.into()) {
            self.sessions_by_lane.remove(&replaced.id);
            self.events.push_back(Event::LaneReplaced(replaced.id));
        }
        session.alone_since = None;
        self.add_lane(&id);
        Ok(Admission { lane, session: id, key, rejoined: true, resumed: false })
    }

    fn add_lane(&mut self, id: &SessionId) -> LaneId {
        let lane = LaneId(self.next_lane);
        self.next_lane += 1;
        self.sessions_by_lane.insert(lane, id.clone());
        lane
    }

    fn end(&mut self, id: &SessionId, why: EndedWhy) {
        let Some(session) = self.sessions_by_id.remove(id) else {
            return;
        };
        let lanes: Vec<LaneId> = session.lanes.into_values().map(|entry| entry.id).collect();
        for lane in &lanes {
            self.sessions_by_lane.remove(lane);
        }
        self.events.push_back(Event::Ended { session: id.clone(), lanes, why });
    }
}

impl From<LaneId> for LaneEntry {
    fn from(id: LaneId) -> Self {
        Self { id, lost_at: None }
    }
}

/// Compares secrets in a time that does not depend on where they differ.
pub(crate) fn is_same(secret: &[u8], other: &[u8]) -> bool {
    let differences = secret.iter().zip(other).fold(0, |seen, (a, b)| seen | (a ^ b));
    secret.len() == other.len() && std::hint::black_box(differences) == 0
}

impl From<&str> for SessionId {
    fn from(id: &str) -> Self {
        Self(id.to_owned())
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for EndedWhy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Goodbye(reason) => write!(f, "the client said goodbye: {reason}"),
            Self::GraceOver => f.write_str("no lane came back within the grace time"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(120);

    /// A registry under a fake clock.
    struct Desk {
        sessions: Sessions,
        now: Instant,
        made: u8,
    }

    impl Desk {
        fn new() -> Self {
            let limits = SessionLimits { sessions: 2, lanes_per_session: 2, grace: GRACE };
            Self { sessions: Sessions::new(limits), now: Instant::now(), made: 0 }
        }

        fn admit(&mut self, lane: u32, session: Option<&SessionKey>) -> Result<Admission, AdmitError> {
            self.hello(lane, session, None)
        }

        fn hello(
            &mut self,
            lane: u32,
            session: Option<&SessionKey>,
            resume_received: Option<u64>,
        ) -> Result<Admission, AdmitError> {
            self.made += 1;
            let fresh = SessionKey { id: format!("s-{}", self.made), secret: vec![self.made; 32] };
            let session = session.cloned();
            let hello = ClientHello { lane, session, resume_received, ..ClientHello::new("0.1.0", "demo") };
            self.sessions.admit(&hello, fresh)
        }

        fn close(&mut self, lane: LaneId) {
            self.sessions.on_lane_closed(lane, self.now);
        }

        fn advance(&mut self, by: Duration) {
            self.now += by;
            self.sessions.handle_timeout(self.now);
        }

        fn events(&mut self) -> Vec<Event> {
            std::iter::from_fn(|| self.sessions.poll_event()).collect()
        }
    }

    #[test]
    fn the_first_lane_makes_a_session_and_others_join_it() {
        let mut desk = Desk::new();
        let first = desk.admit(0, None).unwrap();
        let second = desk.admit(1, Some(&first.key)).unwrap();
        assert!(!first.rejoined && second.rejoined);
        assert_eq!((second.session, second.key), (first.session, first.key));
        assert_ne!(second.lane, first.lane);
        assert_eq!(desk.sessions.len(), 1);
    }

    #[test]
    fn a_wrong_secret_is_refused_whatever_its_length() {
        let mut desk = Desk::new();
        let key = desk.admit(0, None).unwrap().key;
        for secret in [vec![], vec![9; 32], vec![1; 31], vec![1; 33]] {
            let forged = SessionKey { secret, ..key.clone() };
            let error = desk.admit(0, Some(&forged)).unwrap_err();
            assert_eq!(error.code(), RefusalCode::BadSecret);
        }
    }

    #[test]
    fn a_session_keeps_its_user_whatever_becomes_of_its_lanes() {
        let mut desk = Desk::new();
        let first = desk.admit(0, None).unwrap();
        let ann = Arc::new(User { name: "ann".into(), ..User::default() });
        let forged = SessionKey { secret: vec![9; 32], ..first.key.clone() };
        assert!(!desk.sessions.holds(&forged) && !desk.sessions.identify(&forged, ann.clone()));
        assert_eq!(desk.sessions.user(&first.session), None);
        assert!(desk.sessions.identify(&first.key, ann.clone()));
        desk.hello(0, Some(&first.key), Some(0)).unwrap();
        desk.close(first.lane);
        desk.admit(0, Some(&first.key)).unwrap();
        assert_eq!(desk.sessions.user(&first.session), Some(ann));
        desk.sessions.on_goodbye(&first.session, String::new());
        assert_eq!(desk.sessions.user(&first.session), None);
    }

    #[test]
    fn a_session_outlives_its_lanes_by_the_grace_time() {
        let mut desk = Desk::new();
        let first = desk.admit(0, None).unwrap();
        assert_eq!(desk.sessions.poll_timeout(), None);
        desk.close(first.lane);
        assert_eq!(desk.sessions.poll_timeout(), Some(desk.now + GRACE));
        desk.advance(GRACE - Duration::from_millis(1));
        assert_eq!(desk.events(), []);
        let back = desk.admit(0, Some(&first.key)).unwrap();
        assert!(back.rejoined);
        desk.advance(GRACE * 2);
        assert_eq!(desk.events(), []);
        desk.close(back.lane);
        desk.advance(GRACE);
        assert_eq!(desk.events(), [Event::Ended { session: first.session, lanes: vec![], why: EndedWhy::GraceOver }]);
        assert!(desk.sessions.is_empty() && desk.sessions.poll_timeout().is_none());
    }

    #[test]
    fn one_lane_is_enough_to_keep_a_session() {
        let mut desk = Desk::new();
        let first = desk.admit(0, None).unwrap();
        let second = desk.admit(1, Some(&first.key)).unwrap();
        desk.close(first.lane);
        desk.advance(GRACE * 2);
        assert_eq!((desk.events(), desk.sessions.poll_timeout()), (vec![], None));
        desk.close(second.lane);
        assert!(desk.sessions.poll_timeout().is_some());
    }

    #[test]
    fn a_lane_that_comes_again_replaces_the_old_one() {
        let mut desk = Desk::new();
        let first = desk.admit(0, None).unwrap();
        let again = desk.admit(0, Some(&first.key)).unwrap();
        assert_eq!(desk.events(), [Event::LaneReplaced(first.lane)]);
        desk.close(first.lane);
        assert_eq!(desk.sessions.poll_timeout(), None, "the replaced lane's end must not count");
        desk.close(again.lane);
        assert!(desk.sessions.poll_timeout().is_some());
    }

    #[test]
    fn a_lane_that_lost_its_byte_stream_is_resumed_within_the_grace_time() {
        let mut desk = Desk::new();
        let first = desk.admit(0, None).unwrap();
        desk.sessions.on_lane_carried(first.lane, Some(desk.now));
        assert_eq!(desk.sessions.poll_timeout(), Some(desk.now + GRACE));
        desk.advance(GRACE - Duration::from_millis(1));
        let again = desk.hello(0, Some(&first.key), Some(7)).unwrap();
        assert!(again.resumed && again.lane == first.lane);
        desk.sessions.on_lane_carried(first.lane, None);
        desk.advance(GRACE);
        assert_eq!((desk.events(), desk.sessions.poll_timeout()), (vec![], None));
    }

    #[test]
    fn a_lane_without_byte_stream_is_given_up_and_so_is_the_session_with_its_last() {
        let mut desk = Desk::new();
        let first = desk.admit(0, None).unwrap();
        let second = desk.admit(1, Some(&first.key)).unwrap();
        desk.sessions.on_lane_carried(second.lane, Some(desk.now));
        desk.advance(GRACE);
        assert_eq!(desk.events(), [Event::LaneGivenUp(second.lane)]);
        assert!(!desk.hello(1, Some(&first.key), Some(7)).unwrap().resumed, "what is gone starts anew");
        desk.sessions.on_lane_carried(first.lane, Some(desk.now));
        desk.close(LaneId(2));
        desk.advance(GRACE);
        let ended = Event::Ended { session: first.session, lanes: vec![], why: EndedWhy::GraceOver };
        assert_eq!(desk.events(), [Event::LaneGivenUp(first.lane), ended]);
    }

    #[test]
    fn a_forgotten_session_is_made_anew_on_lane_0_only() {
        let mut desk = Desk::new();
        let old = SessionKey { id: "s-old".into(), secret: vec![7; 32] };
        assert_eq!(desk.admit(1, Some(&old)), Err(AdmitError::UnknownSession(SessionId("s-old".into()))));
        assert_eq!(desk.admit(1, None), Err(AdmitError::NoSession(1)));
        let made = desk.admit(0, Some(&old)).unwrap();
        assert!(!made.rejoined);
        assert_ne!(made.key, old);
    }

    #[test]
    fn limits_on_sessions_and_lanes_are_named() {
        let mut desk = Desk::new();
        let first = desk.admit(0, None).unwrap();
        desk.admit(0, None).unwrap();
        assert_eq!(desk.admit(0, None), Err(AdmitError::TooManySessions(2)));
        desk.admit(1, Some(&first.key)).unwrap();
        let error = desk.admit(2, Some(&first.key)).unwrap_err();
        assert_eq!(error, AdmitError::TooManyLanes(first.session, 2));
        assert_eq!(error.code(), RefusalCode::Exhausted);
        assert!(desk.admit(1, Some(&first.key)).is_ok(), "a replacement needs no room");
    }

    #[test]
    fn goodbye_ends_a_session_with_its_lanes_at_once() {
        let mut desk = Desk::new();
        let first = desk.admit(0, None).unwrap();
        let second = desk.admit(1, Some(&first.key)).unwrap();
        desk.sessions.on_goodbye(&first.session, "quit".into());
        let lanes = vec![first.lane, second.lane];
        assert_eq!(
            desk.events(),
            [Event::Ended { session: first.session.clone(), lanes, why: EndedWhy::Goodbye("quit".into()) }]
        );
        desk.close(first.lane);
        desk.sessions.on_goodbye(&first.session, "again".into());
        assert_eq!(desk.events(), []);
        assert!(!desk.admit(0, Some(&first.key)).unwrap().rejoined);
    }
}
