//! The control channel: tells a client the cluster and the agents, and again when they change.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tp_protocol::control::from_manager::Kind as From;
use tp_protocol::control::to_manager::Kind as To;
use tp_protocol::control::{FromManager, Goodbye, Ping, ToManager};
use tp_tunnel::control::{Control, ControlReceiver, ControlSender};
use tp_tunnel::error::FlowError;

use super::Services;
use crate::session::SessionId;

/// Time between pings. The lane's own HTTP/2 pings notice a dead connection; these show in the log that the program
/// behind a live one stands still. Nothing is cut for it: it may go on.
const PING_INTERVAL: Duration = Duration::from_secs(60);

/// What the manager says when it stops.
pub(crate) const STOPPING: &str = "the manager is stopping";

/// Serves a client's control channel until either end closes it.
pub(super) async fn serve_client(services: Arc<Services>, session: SessionId, control: Control) {
    let (mut sender, mut receiver) = control.split();
    match talk(&services, &session, &mut sender, &mut receiver).await {
        Ok(()) => tracing::debug!(%session, "control channel closed"),
        Err(error) => tracing::debug!(%session, %error, "control channel lost"),
    }
}

async fn talk(
    services: &Services,
    session: &SessionId,
    sender: &mut ControlSender,
    receiver: &mut ControlReceiver,
) -> Result<(), FlowError> {
    let mut info = services.info.clone();
    let mut agents = services.agents.watch();
    // All are sent at the start, as if they had just changed.
    let mut engagements = services.engagements.registry.changes();
    info.mark_changed();
    agents.mark_changed();
    engagements.mark_changed();
    let mut told = None;
    let mut pings = pings();
    let mut answered = 0;
    loop {
        // Sending happens in the arms' bodies, as it cannot be cancelled halfway; receiving can.
        tokio::select! {
            // A client needs the cluster's description before anything else.
            biased;
            Ok(()) = info.changed() => {
                let known = info.borrow_and_update().clone();
                if let Ok(known) = known {
                    send(sender, From::ClusterInfo((*known).clone())).await?;
                }
            }
            Ok(()) = agents.changed() => {
                let list = agents.borrow_and_update().clone();
                send(sender, From::Agents(list.to_message())).await?;
            }
            Ok(()) = engagements.changed() => {
                engagements.mark_unchanged();
                let held = services.engagements.registry.held_by(session);
                if told.as_ref() != Some(&held) {
                    // A client that holds none from the start needs no word of it.
                    if told.is_some() || !held.engagements.is_empty() {
                        send(sender, From::Engagements(held.clone())).await?;
                    }
                    told = Some(held);
                }
            }
            number = pings.next() => {
                if answered + 1 < number {
                    tracing::warn!(%session, "the client did not answer a ping");
                }
                send(sender, From::Ping(Ping { number })).await?;
            }
            () = services.stopping.cancelled() => {
                send(sender, From::Goodbye(Goodbye { reason: STOPPING.to_owned() })).await?;
                sender.finish()?;
                // The client may still say goodbye itself.
                return listen_only(services, session, receiver).await;
            }
            message = receiver.recv::<ToManager>() => match message {
                None => return Ok(()),
                Some(message) => answered = on_message(services, session, message?).unwrap_or(answered),
            },
        }
    }
}

async fn listen_only(
    services: &Services,
    session: &SessionId,
    receiver: &mut ControlReceiver,
) -> Result<(), FlowError> {
    while let Some(message) = receiver.recv::<ToManager>().await {
        on_message(services, session, message?);
    }
    Ok(())
}

/// Takes a message; returns the number of a pong.
fn on_message(services: &Services, session: &SessionId, message: ToManager) -> Option<u64> {
    match message.kind {
        Some(To::Goodbye(goodbye)) => services.hub.goodbye(session, goodbye.reason),
        Some(To::Pong(pong)) => return Some(pong.number),
        // An agent's, or a message of a later version.
        Some(To::AgentState(_) | To::Environment(_)) | None => {}
    }
    None
}

async fn send(sender: &mut ControlSender, kind: From) -> Result<(), FlowError> {
    sender.send(&FromManager::from(kind)).await
}

/// Numbers pings.
pub(crate) struct Pings {
    interval: tokio::time::Interval,
    number: u64,
}

/// Starts with the first ping one interval away.
pub(crate) fn pings() -> Pings {
    let mut interval = interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    Pings { interval, number: 0 }
}

impl Pings {
    /// Returns the number of the next ping, when it is due. Cancel-safe.
    pub(crate) async fn next(&mut self) -> u64 {
        self.interval.tick().await;
        self.number += 1;
        self.number
    }
}
