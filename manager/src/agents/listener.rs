//! The agents' door: TLS, hello, token review, registration.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tp_protocol::control::from_manager::Kind as From;
use tp_protocol::control::to_manager::Kind as To;
use tp_protocol::control::{FromManager, Goodbye, Ping, TellEnvironment, ToManager};
use tp_protocol::engage::EngagementId;
use tp_protocol::engage::reach::Arrival;
use tp_protocol::error_class::ErrorClass;
use tp_protocol::hello::{ClientHello, Refusal, RefusalCode, Welcome};
use tp_protocol::open::OpenRefused;
use tp_tunnel::carrier::Carrier;
use tp_tunnel::control::Control;
use tp_tunnel::error::{FlowError, LaneError};
use tp_tunnel::relay;
use tp_tunnel::server::{self, Incoming, LaneServer, Responder};

use super::review::Reviewer;
use super::{Agents, Registration, admit};
use crate::engage::Registry;
use crate::engage::registry::Seat;
use crate::lane::control::{STOPPING, pings};
use crate::lane::refuse;
use crate::listen::{Gate, Turn};
use crate::{VERSION, log_end};

/// Connections at once from one address that are not authenticated yet, so that one pod cannot keep all others out. An agent
/// opens one.
const PER_ADDRESS_MAX: usize = 8;

/// All that agents' lanes need.
#[derive(Debug)]
pub struct AgentServices<R> {
    /// Name of the manager's pod.
    pub pod: String,
    /// The list.
    pub agents: Agents,
    /// What agents are there for.
    pub engagements: Registry,
    /// Reviews tokens.
    pub reviewer: R,
    /// Longest wait for TLS. The hello has its own limit.
    pub handshake: Duration,
    /// Cancelled when the manager stops.
    pub stopping: CancellationToken,
}

/// Accepts agents until the manager stops, then waits for their lanes to end.
///
/// `handshakes_max` connections may be unauthenticated at once; while there are as many, nothing more is accepted.
pub async fn run<R: Reviewer>(
    services: Arc<AgentServices<R>>,
    listener: TcpListener,
    tls: watch::Receiver<Option<Arc<ServerConfig>>>,
    handshakes_max: usize,
) {
    let gate = Gate::new(handshakes_max, PER_ADDRESS_MAX);
    let mut lanes = JoinSet::new();
    loop {
        tokio::select! {
            waiting = gate.accept(&listener) => {
                let Some((socket, peer, turn)) = gate.admit(waiting).await else { continue };
                let Some(tls) = tls.borrow().clone() else { continue };
                let services = services.clone();
                lanes.spawn(async move {
                    if let Err(error) = handshake(&services, socket, tls, turn).await {
                        tracing::debug!(%peer, %error, "agent's connection ended");
                    }
                });
            }
            Some(ended) = lanes.join_next() => log_end("agent", ended),
            () = services.stopping.cancelled() => break,
        }
    }
    drop(listener);
    while let Some(ended) = lanes.join_next().await {
        log_end("agent", ended);
    }
}

/// Makes TLS and serves the agent behind it.
async fn handshake<R: Reviewer>(
    services: &AgentServices<R>,
    socket: TcpStream,
    tls: Arc<ServerConfig>,
    turn: Turn,
) -> Result<(), LaneError> {
    let accept = TlsAcceptor::from(tls).accept(socket);
    let tls = timeout(services.handshake, accept).await.map_err(|_| LaneError::TimedOut(services.handshake))??;
    serve(services, tls, turn).await
}

/// Serves one agent's lane until it ends. `turn` is held until the agent is authenticated.
///
/// # Errors
/// [`LaneError`] when the lane was lost or never was one.
pub async fn serve<R, T>(services: &AgentServices<R>, io: impl Carrier + 'static, turn: T) -> Result<(), LaneError>
where
    R: Reviewer,
{
    let pending = server::accept(io).await?;
    let hello = &pending.hello;
    let (registration, welcome) = match let_in(services, hello).await {
        Ok(let_in) => let_in,
        Err(refusal) => return refuse(pending, refusal).await,
    };
    let who = hello.agent.clone().unwrap_or_default();
    tracing::info!(namespace = who.namespace, pod = who.pod, version = hello.software_version, "agent registered");
    let lane = pending.welcome(welcome).await?;
    drop(turn);
    let seat = services.engagements.seat(&who.namespace, &who.pod);
    let result = talk(services, seat, lane).await;
    drop(registration);
    let error = result.as_ref().err().map(ToString::to_string);
    tracing::info!(namespace = who.namespace, pod = who.pod, error, "agent gone");
    Ok(())
}

/// Decides on a hello.
async fn let_in<R: Reviewer>(
    services: &AgentServices<R>,
    hello: &ClientHello,
) -> Result<(Registration, Welcome), Refusal> {
    let (version, features) = hello.negotiate(VERSION)?;
    if services.stopping.is_cancelled() {
        return Err(Refusal::new(RefusalCode::ShuttingDown, STOPPING, VERSION));
    }
    let reviewed = match &hello.agent {
        None => None,
        Some(identity) => services.reviewer.review(identity.token.clone()).await.map_err(|error| {
            tracing::warn!(%error, "agent's token not reviewed");
            Refusal::new(RefusalCode::Unspecified, &error.to_string(), VERSION)
        })?,
    };
    let identity = admit(hello, reviewed.as_ref())?;
    let registration = services.agents.register(identity, &hello.software_version)?;
    let welcome = Welcome {
        version,
        features,
        software_version: VERSION.to_owned(),
        manager_pod: services.pod.clone(),
        ..Welcome::default()
    };
    Ok((registration, welcome))
}

/// Serves what an agent may ask for: its control channel, the way to clients, and streams for what it is to dial. It opens no flows into the cluster, since
/// it is there.
async fn talk<R>(services: &AgentServices<R>, seat: Seat, mut lane: LaneServer) -> Result<(), LaneError> {
    let seat = Arc::new(seat);
    let mut tasks = JoinSet::new();
    let mut stopping = false;
    let not_for_agents = || OpenRefused::new(ErrorClass::Denied, "agents have no use for this");
    loop {
        tokio::select! {
            incoming = lane.next() => match incoming {
                None => return Ok(()),
                Some(Err(error)) => return Err(error),
                Some(Ok(Incoming::Open(_, responder))) => responder.refuse(&not_for_agents()),
                Some(Ok(Incoming::Continue(_, responder))) => responder.refuse(),
                Some(Ok(Incoming::Resolve(request) | Incoming::Echo(_, request))) => request.refuse(&not_for_agents()),
                Some(Ok(Incoming::Accept(_, acceptor))) => acceptor.refuse(&not_for_agents()),
                Some(Ok(Incoming::Call(request))) => request.refuse(&not_for_agents()),
                Some(Ok(Incoming::Dial(acceptor))) => seat.on_dialler(acceptor),
                Some(Ok(Incoming::Reach(id, arrival, responder))) => {
                    let (registry, seat) = (services.engagements.clone(), Arc::clone(&seat));
                    tasks.spawn(async move { reach(&registry, &seat, &id, &arrival, responder).await });
                }
                Some(Ok(Incoming::Control(control))) => {
                    let (stopping, seat) = (services.stopping.clone(), Arc::clone(&seat));
                    tasks.spawn(async move {
                        if let Err(error) = serve_control(&stopping, &seat, control).await {
                            tracing::debug!(%error, "agent's control channel lost");
                        }
                    });
                }
            },
            Some(ended) = tasks.join_next() => log_end("agent's stream", ended),
            () = services.stopping.cancelled(), if !stopping => {
                stopping = true;
                lane.graceful_shutdown();
            }
        }
    }
}

/// Brings an agent's connection to a client, and relays until both ends are done.
async fn reach(registry: &Registry, seat: &Seat, id: &EngagementId, arrival: &Arrival, mut responder: Responder) {
    let reached = tokio::select! {
        reached = registry.reach(seat.pod(), id, arrival) => reached,
        () = responder.cancelled() => return,
    };
    match reached {
        Ok(client) => {
            // Fails when the caller has given up meanwhile.
            let Ok(agent) = responder.accept() else { return };
            let relayed = relay::flows(agent, client).await;
            let error = relayed.error.map(|error| error.to_string());
            tracing::debug!(engagement = %id, source = %arrival.source, error, "connection ended");
        }
        Err(why) => {
            tracing::debug!(engagement = %id, source = %arrival.source, %why, "client not reached");
            responder.refuse(&why);
        }
    }
}

/// Serves an agent's control channel until either end closes it.
async fn serve_control(stopping: &CancellationToken, seat: &Seat, control: Control) -> Result<(), FlowError> {
    let (mut sender, mut receiver) = control.split();
    let mut pings = pings();
    let (mut orders, mut questions) = (seat.orders.clone(), seat.questions.clone());
    loop {
        tokio::select! {
            Ok(()) = orders.changed() => {
                let next = orders.borrow_and_update().clone();
                sender.send(&FromManager::from(From::Orders(next))).await?;
            }
            Ok(()) = questions.changed() => {
                questions.mark_unchanged();
                sender.send(&FromManager::from(From::TellEnvironment(TellEnvironment {}))).await?;
            }
            number = pings.next() => sender.send(&FromManager::from(From::Ping(Ping { number }))).await?,
            () = stopping.cancelled() => {
                let goodbye = From::Goodbye(Goodbye { reason: STOPPING.to_owned() });
                sender.send(&FromManager::from(goodbye)).await?;
                sender.finish()?;
                break;
            }
            message = receiver.recv::<ToManager>() => match message {
                None => return Ok(()),
                Some(message) => match message?.kind {
                    Some(To::AgentState(state)) => seat.on_state(state),
                    Some(To::Environment(told)) => seat.on_environment(&told),
                    // Of the others the end of the lane says the same.
                    Some(To::Goodbye(_) | To::Pong(_)) | None => {}
                },
            },
        }
    }
    // Dropped before the agent has read it, the stream would be cancelled, and the goodbye lost.
    while let Some(message) = receiver.recv::<ToManager>().await {
        message?;
    }
    Ok(())
}
