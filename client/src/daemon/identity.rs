//! Who this connection belongs to: has the API server tell the manager, in the background of a lane that is up.
//!
//! The manager opens a port that is good for one connection, the daemon opens that by a port-forward of its own, and the API
//! server tells the manager whose port-forward it was ([`tp_protocol::identity`]). No credential goes anywhere else than to
//! the API server.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tp_protocol::engage::call::{Call, answer, call};
use tp_protocol::frame;
use tp_protocol::hello::SessionKey;
use tp_protocol::identity::{CLAIM_TIMEOUT, Claim, Identify, Identity, MAX_MESSAGE_BYTES, Verdict, verdict};
use tp_tunnel::client::Lane;

use crate::attach::Failure;
use crate::daemon::kube::ManagerRoute;

/// Wait before the second attempt; doubles up to the next constant. The API server needs a moment to hear of a manager that
/// has just started.
const RETRY_MIN: Duration = Duration::from_secs(1);

/// Longest wait between two attempts. A command that needs the answer ends the wait.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// How long such a command waits for the answer, attempts that fail included.
pub(crate) const WAIT: Duration = Duration::from_secs(8);

/// What is known so far.
#[derive(Clone, Debug, Default, PartialEq)]
enum State {
    /// Nothing, or nobody has asked.
    #[default]
    Unknown,
    /// The session of this id is this user's.
    Known(String, Identity),
    /// The last attempt has failed.
    Failed(Failure),
}

/// Who the session belongs to, as far as it is known.
#[derive(Debug, Default)]
pub(crate) struct Whoami {
    state: watch::Sender<State>,
    /// Somebody waits for the next attempt.
    again: Notify,
}

impl Whoami {
    /// The user; `None` while it is not known.
    pub(crate) fn user(&self) -> Option<Identity> {
        match &*self.state.borrow() {
            State::Known(_, identity) => Some(identity.clone()),
            State::Unknown | State::Failed(_) => None,
        }
    }

    /// Why the last attempt has failed, if it has.
    pub(crate) fn problem(&self) -> Option<String> {
        match &*self.state.borrow() {
            State::Failed(failure) => Some(failure.message.clone()),
            State::Unknown | State::Known(..) => None,
        }
    }

    /// The manager does not ask, whatever another one did.
    pub(crate) fn nobody_asks(&self) {
        self.state.send_replace(State::Unknown);
    }

    /// Has the manager know who the session belongs to, however often it takes. One that is known already stays so: it keeps
    /// its user from lane to lane.
    pub(crate) async fn establish(&self, lane: &Lane, route: &ManagerRoute, session: &SessionKey) {
        if matches!(&*self.state.borrow(), State::Known(id, _) if *id == session.id) {
            return;
        }
        self.state.send_replace(State::Unknown);
        let mut wait = RETRY_MIN;
        loop {
            let attempt = timeout(CLAIM_TIMEOUT, attempt(lane, route, session)).await;
            match attempt.unwrap_or_else(|_| Err(failed(&format!("no answer within {CLAIM_TIMEOUT:?}"), ""))) {
                Ok(identity) => {
                    tracing::info!(user = identity.user, "the manager knows who this connection belongs to");
                    self.state.send_replace(State::Known(session.id.clone(), identity));
                    return;
                }
                Err(failure) => {
                    tracing::info!(error = failure.message, "the manager does not know who this connection belongs to");
                    self.state.send_replace(State::Failed(failure));
                }
            }
            tokio::select! {
                () = sleep(wait) => {}
                // Not at once all the same: what has failed just now would fail again.
                () = async { sleep(RETRY_MIN).await; self.again.notified().await } => {}
            }
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    /// Waits until the session's user is known, for [`WAIT`] at most.
    ///
    /// # Errors
    /// Why the last attempt has failed.
    pub(crate) async fn known(&self) -> Result<(), Failure> {
        self.again.notify_one();
        let mut state = self.state.subscribe();
        let known = timeout(WAIT, state.wait_for(|state| matches!(state, State::Known(..)))).await;
        if matches!(known, Ok(Ok(_))) {
            return Ok(());
        }
        match &*self.state.borrow() {
            State::Known(..) => Ok(()),
            State::Failed(failure) => Err(failure.clone()),
            State::Unknown => Err(failed(&format!("no answer within {WAIT:?}"), "")),
        }
    }
}

/// Asks for a port and shows there who this is.
async fn attempt(lane: &Lane, route: &ManagerRoute, session: &SessionKey) -> Result<Identity, Failure> {
    let call = Call { kind: Some(call::Kind::Identify(Identify {})) };
    let port = match lane.call(&call).await.map_err(|error| failed(&error.to_string(), ""))?.kind {
        Some(answer::Kind::OneTimePort(it)) => it.port,
        Some(answer::Kind::Failure(it)) => return Err(failed(&it.message, &it.hint)),
        Some(_) | None => return Err(failed("it answered something else", "")),
    };
    let port = u16::try_from(port).map_err(|_| failed(&format!("{port} is not a port"), ""))?;
    claim(route.open_port(port).await?, session).await
}

/// Says on a one-time port which session is ours, and returns what the manager makes of it.
async fn claim(mut io: impl AsyncRead + AsyncWrite + Unpin, session: &SessionKey) -> Result<Identity, Failure> {
    let broken = |error: String| failed(&error, "");
    let mut wire = BytesMut::new();
    frame::encode(&Claim { session: Some(session.clone()) }, &mut wire);
    io.write_all(&wire).await.map_err(|error| broken(error.to_string()))?;
    io.flush().await.map_err(|error| broken(error.to_string()))?;
    wire.clear();
    let verdict = loop {
        let verdict: Option<Verdict> =
            frame::decode(&mut wire, MAX_MESSAGE_BYTES).map_err(|error| broken(error.to_string()))?;
        if let Some(verdict) = verdict {
            break verdict;
        }
        if io.read_buf(&mut wire).await.map_err(|error| broken(error.to_string()))? == 0 {
            return Err(broken("it closed the port".to_owned()));
        }
    };
    match verdict.kind {
        Some(verdict::Kind::Identified(identity)) => Ok(identity),
        Some(verdict::Kind::Failure(it)) => Err(failed(&it.message, &it.hint)),
        None => Err(broken("it answered something else".to_owned())),
    }
}

fn failed(why: &str, hint: &str) -> Failure {
    let hint = if hint.is_empty() { "try again; the manager's log may say more" } else { hint };
    Failure {
        message: format!("the traffic manager could not find out who you are: {why}"),
        hint: hint.to_owned(),
        causes: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
