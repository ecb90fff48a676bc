//! One-time ports, and who the API server says has asked for each.
//!
//! A pure core. A port belongs to one session, is good for one claim, and stays taken until its time is over, so that a late
//! word about it is never about another session.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tp_protocol::identity::PORT_LIFE;

use super::User;
use crate::session::SessionId;

/// Ports of one session at once: a client that is not identified tries again after a second, and waits longer each time.
const PORTS_OF_SESSION_MAX: usize = 8;

/// Ports at once. Each is a listener.
const PORTS_MAX: usize = 1_024;

/// Why there is no port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoRoom {
    /// The session has as many as it may.
    #[error("this connection has asked who it is {PORTS_OF_SESSION_MAX} times within {} s", PORT_LIFE.as_secs())]
    OfSession,
    /// All sessions together have.
    #[error("{PORTS_MAX} clients are asking who they are at this moment")]
    OfAll,
}

/// Why a session does not belong to who came to its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unproven {
    /// The port is not this session's, or was used before.
    NotYours,
    /// The API server has not named anybody.
    Nobody,
    /// Several users were named.
    Several,
}

/// What became of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// Nobody waits at this port.
    NotWaiting,
    /// It is the first.
    First,
    /// It was named before.
    Again,
    /// Another user was named before.
    Other(Arc<User>),
}

/// The ports that are taken.
#[derive(Debug, Default)]
pub(super) struct Claims {
    by_port: BTreeMap<u16, Port>,
}

#[derive(Debug)]
struct Port {
    session: SessionId,
    until: Instant,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The API server has not named anybody.
    Waiting,
    /// It has named this user.
    Named(Arc<User>),
    /// It, or somebody in its name, has named others than this one as well.
    Disputed(Arc<User>),
    /// The port was used.
    Used,
}

impl Claims {
    /// Whether the session may have another port.
    pub(super) fn has_room(&mut self, session: &SessionId, now: Instant) -> Result<(), NoRoom> {
        self.handle_timeout(now);
        let of_session = self.by_port.values().filter(|port| port.session == *session).count();
        if of_session >= PORTS_OF_SESSION_MAX {
            return Err(NoRoom::OfSession);
        }
        if self.by_port.len() >= PORTS_MAX {
            return Err(NoRoom::OfAll);
        }
        Ok(())
    }

    /// Has a port wait for the client of a session. The caller listens on it until [`PORT_LIFE`] is over.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub(super) fn open(&mut self, port: u16, session: &SessionId, now: Instant) -> Result<(), NoRoom> {
        self.has_room(session, now)?;
        let entry = Port { session: session.clone(), until: now + PORT_LIFE, state: State::Waiting };
        self.by_port.insert(port, entry);
        Ok(())
    }

    /// Takes the name of a user who asks for the port.
    pub(super) fn note(&mut self, port: u16, user: &Arc<User>, now: Instant) -> Noted {
        self.handle_timeout(now);
        let Some(entry) = self.by_port.get_mut(&port) else { return Noted::NotWaiting };
        match &entry.state {
            State::Waiting => {
                entry.state = State::Named(Arc::clone(user));
                Noted::First
            }
            State::Named(first) if first == user => Noted::Again,
            State::Named(first) | State::Disputed(first) => {
                let first = Arc::clone(first);
                entry.state = State::Disputed(Arc::clone(&first));
                Noted::Other(first)
            }
            State::Used => Noted::NotWaiting,
        }
    }

    /// Uses the port: returns the one user who was named for it.
    ///
    /// # Errors
    /// [`Unproven`]. Unless it was another session's, the port is used all the same.
    pub(super) fn take(&mut self, port: u16, session: &SessionId, now: Instant) -> Result<Arc<User>, Unproven> {
        self.handle_timeout(now);
        let entry = self.by_port.get_mut(&port).filter(|entry| entry.session == *session);
        let entry = entry.ok_or(Unproven::NotYours)?;
        match std::mem::replace(&mut entry.state, State::Used) {
            State::Waiting => Err(Unproven::Nobody),
            State::Named(user) => Ok(user),
            State::Disputed(_) => Err(Unproven::Several),
            State::Used => Err(Unproven::NotYours),
        }
    }

    /// Forgets the ports whose time is over.
    fn handle_timeout(&mut self, now: Instant) {
        self.by_port.retain(|_, port| port.until > now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PORT: u16 = 40_000;

    fn user(name: &str) -> Arc<User> {
        Arc::new(User { name: name.to_owned(), ..User::default() })
    }

    fn ann() -> SessionId {
        SessionId::from("s-ann")
    }

    /// A port that waits for Ann's session.
    fn waiting(now: Instant) -> Claims {
        let mut claims = Claims::default();
        claims.open(PORT, &ann(), now).unwrap();
        claims
    }

    #[test]
    fn the_one_user_who_was_named_gets_the_session_once() {
        let now = Instant::now();
        let mut claims = waiting(now);
        assert_eq!(claims.note(PORT, &user("ann"), now), Noted::First);
        assert_eq!(claims.note(PORT, &user("ann"), now), Noted::Again);
        assert_eq!(claims.take(PORT, &ann(), now), Ok(user("ann")));
        assert_eq!(claims.take(PORT, &ann(), now), Err(Unproven::NotYours), "the port is good for one connection");
        assert_eq!(claims.note(PORT, &user("bob"), now), Noted::NotWaiting);
    }

    #[test]
    fn nobody_gets_it_when_two_users_were_named() {
        let now = Instant::now();
        let mut claims = waiting(now);
        claims.note(PORT, &user("ann"), now);
        assert_eq!(claims.note(PORT, &user("root"), now), Noted::Other(user("ann")));
        assert_eq!(claims.note(PORT, &user("ann"), now), Noted::Other(user("ann")), "it stays in dispute");
        assert_eq!(claims.take(PORT, &ann(), now), Err(Unproven::Several));
    }

    #[test]
    fn users_of_one_name_with_other_groups_are_two() {
        let now = Instant::now();
        let mut claims = waiting(now);
        claims.note(PORT, &user("ann"), now);
        let admin = User { groups: vec!["system:masters".into()], ..(*user("ann")).clone() };
        assert!(matches!(claims.note(PORT, &Arc::new(admin), now), Noted::Other(_)));
    }

    #[test]
    fn nobody_gets_it_when_nobody_was_named() {
        let now = Instant::now();
        assert_eq!(waiting(now).take(PORT, &ann(), now), Err(Unproven::Nobody));
    }

    #[test]
    fn another_session_neither_gets_it_nor_uses_it_up() {
        let now = Instant::now();
        let mut claims = waiting(now);
        claims.note(PORT, &user("ann"), now);
        assert_eq!(claims.take(PORT, &SessionId::from("s-bob"), now), Err(Unproven::NotYours));
        assert_eq!(claims.take(PORT, &ann(), now), Ok(user("ann")));
    }

    #[test]
    fn names_for_other_ports_are_of_no_account() {
        let now = Instant::now();
        let mut claims = waiting(now);
        assert_eq!(claims.note(7400, &user("bob"), now), Noted::NotWaiting);
        assert_eq!(claims.take(7400, &ann(), now), Err(Unproven::NotYours));
    }

    #[test]
    fn a_port_is_over_after_its_time() {
        let now = Instant::now();
        let mut claims = waiting(now);
        claims.note(PORT, &user("ann"), now);
        let later = now + PORT_LIFE;
        assert_eq!(claims.note(PORT, &user("ann"), later), Noted::NotWaiting);
        assert_eq!(claims.take(PORT, &ann(), later), Err(Unproven::NotYours));
        assert!(claims.by_port.is_empty());
    }

    #[test]
    fn a_session_has_few_ports_and_used_ones_count_until_their_time_is_over() {
        let now = Instant::now();
        let mut claims = Claims::default();
        for port in 0..8 {
            claims.open(PORT + port, &ann(), now).unwrap();
            let _ = claims.take(PORT + port, &ann(), now);
        }
        assert_eq!(claims.has_room(&ann(), now), Err(NoRoom::OfSession));
        assert_eq!(claims.open(PORT + 8, &SessionId::from("s-bob"), now), Ok(()));
        assert_eq!(claims.has_room(&ann(), now + PORT_LIFE + Duration::from_secs(1)), Ok(()));
    }

    #[test]
    fn all_sessions_together_have_a_limit() {
        let now = Instant::now();
        let mut claims = Claims::default();
        for number in 0..u16::try_from(PORTS_MAX).unwrap() {
            claims.open(number, &SessionId::from(&*format!("s-{}", number / 8)), now).unwrap();
        }
        assert_eq!(claims.has_room(&ann(), now), Err(NoRoom::OfAll));
    }
}
