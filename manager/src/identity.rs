//! Who a session belongs to, and what they may.
//!
//! | module | what it owns |
//! |---|---|
//! | `claims` | which one-time ports wait, and who the API server says has asked for them (pure) |
//! | `door` | the one-time ports themselves |
//! | [`rights`] | asking the API server what a user may |
//!
//! A client opens a one-time port by a port-forward of its own. The API server, which has authenticated it, reviews that
//! request with the manager's [`webhook`](crate::webhook): it names the user and the port. What the client then says on the
//! port names the session. No credential of the user ever reaches the manager.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use k8s_openapi::api::authentication::v1::UserInfo;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tp_protocol::engage::call::Failure;
use tp_protocol::identity::{Identity, OneTimePort};

use crate::session::SessionId;
use crate::session::hub::Hub;

mod claims;
mod door;
pub mod rights;

use claims::{Claims, Noted};
use rights::{Right, Rights, RightsError, Verdict};

/// A user, as the API server knows them. What they may depends on all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// Name, such as `ann` or `system:serviceaccount:build:ci`.
    pub name: String,
    /// What tells users apart who had the name one after another; often empty.
    pub uid: String,
    /// Groups, such as `system:authenticated`.
    pub groups: Vec<String>,
    /// What else the authenticator says, by key.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl From<UserInfo> for User {
    fn from(info: UserInfo) -> Self {
        Self {
            name: info.username.unwrap_or_default(),
            uid: info.uid.unwrap_or_default(),
            groups: info.groups.unwrap_or_default(),
            extra: info.extra.unwrap_or_default(),
        }
    }
}

impl User {
    /// What a client is told of itself.
    fn to_message(&self) -> Identity {
        Identity { user: self.name.clone(), groups: self.groups.clone() }
    }
}

/// Finds out who sessions belong to. Clones share it.
#[derive(Clone)]
pub struct Identities {
    shared: Arc<Shared>,
}

struct Shared {
    hub: Hub,
    rights: Box<dyn Rights>,
    /// Held for a few map operations at a time, never across an await.
    claims: Mutex<Claims>,
    /// The tasks of one-time ports; they end by themselves after [`tp_protocol::identity::PORT_LIFE`].
    doors: Mutex<JoinSet<()>>,
    /// A client came to its port and nothing was heard of it from the API server.
    unheard: Notify,
}

impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identities").finish_non_exhaustive()
    }
}

impl Identities {
    /// Starts with nobody known. `rights` is asked what users may.
    #[must_use]
    pub fn new(hub: Hub, rights: impl Rights) -> Self {
        let shared = Shared {
            hub,
            rights: Box::new(rights),
            claims: Mutex::default(),
            doors: Mutex::default(),
            unheard: Notify::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Opens a one-time port for a session.
    ///
    /// # Errors
    /// A [`Failure`] for the client, when it has too many already or none is free.
    pub(crate) async fn open(&self, session: &SessionId) -> Result<OneTimePort, Failure> {
        let (door, port) = door::Door::open(self, session).await?;
        let mut doors = self.shared.doors.lock().unwrap_or_else(PoisonError::into_inner);
        while doors.try_join_next().is_some() {}
        doors.spawn(door.serve());
        Ok(OneTimePort { port: port.into() })
    }

    /// Takes from the API server that `user` asks for this port of the manager's pod. Others than one-time ports that wait are
    /// of no account.
    pub(crate) fn note(&self, user: User, port: u16) {
        let user = Arc::new(user);
        match self.claims().note(port, &user, now()) {
            Noted::NotWaiting => {}
            Noted::First => tracing::debug!(port, user = user.name, "the API server names who asks for the port"),
            Noted::Again => tracing::debug!(port, user = user.name, "the API server names the same user again"),
            Noted::Other(first) => tracing::warn!(
                port,
                user = user.name,
                first = first.name,
                "two users were named for one port: its session belongs to neither"
            ),
        }
    }

    /// Waits until a client came to its port and nothing was heard of it: perhaps the webhook's registration was changed.
    pub(crate) async fn unheard(&self) {
        self.shared.unheard.notified().await;
    }

    /// Who a session belongs to; `None` as long as it is not known.
    #[must_use]
    pub fn user(&self, session: &SessionId) -> Option<Arc<User>> {
        self.shared.hub.user(session)
    }

    /// Asks whether `user` has a right in a namespace.
    ///
    /// # Errors
    /// [`RightsError`] when the API server does not say.
    pub(crate) async fn may(&self, user: &User, namespace: &str, right: Right) -> Result<Verdict, RightsError> {
        self.shared.rights.review(user, namespace, right).await
    }

    fn claims(&self) -> MutexGuard<'_, Claims> {
        // Every change under the lock is whole before anything can panic.
        self.shared.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl Identities {
    /// Has a port wait for a session that nobody listens on.
    pub(crate) fn wait_at(&self, port: u16, session: &SessionId) {
        self.claims().open(port, session, now()).unwrap();
    }

    /// Uses that port: the one user who was named for it.
    pub(crate) fn named_at(&self, port: u16, session: &SessionId) -> Option<String> {
        self.claims().take(port, session, now()).ok().map(|user| user.name.clone())
    }
}

/// The clock of tokio, so that a test that pauses it drives the core as well.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
