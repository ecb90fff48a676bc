//! Serves one lane: lets it in, then carries out what it asks for.
//!
//! Every flow, DNS query and control channel is a task of the lane and ends with it. A task that panics ends alone.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::sync::{TryAcquireError, watch};
use tokio::task::JoinSet;
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;
use tp_protocol::control::ClusterInfo;
use tp_protocol::engage::call::Call;
use tp_protocol::error_class::ErrorClass;
use tp_protocol::hello::{ClientHello, IDENTITY, Refusal, RefusalCode, SessionKey, Welcome};
use tp_protocol::open::{Open, OpenRefused};
use tp_tunnel::carrier::Carrier;
use tp_tunnel::dial::Dialled;
use tp_tunnel::error::LaneError;
use tp_tunnel::flow::Flow;
use tp_tunnel::relay;
use tp_tunnel::server::{self, Incoming, LaneServer, MessageRequest, Pending, Responder};

use crate::agents::Agents;
use crate::dial::Dialer;
use crate::dns::Forwarder;
use crate::engage::Engagements;
use crate::engage::to_pod::PodForward;
use crate::session::SessionId;
use crate::session::hub::{Admitted, Budget, Hub, Ticket};
use crate::{VERSION, log_end};

pub(crate) mod control;

/// All that lanes need.
#[derive(Debug)]
pub struct Services {
    /// Name of the manager's pod.
    pub pod: String,
    /// The sessions.
    pub hub: Hub,
    /// Dials for flows.
    pub dialer: Dialer,
    /// Asks the cluster's DNS.
    pub dns: Arc<Forwarder>,
    /// What clients are told of the cluster, or what is missing.
    pub info: watch::Receiver<Result<Arc<ClusterInfo>, &'static str>>,
    /// The registered agents.
    pub agents: Agents,
    /// Engages workloads.
    pub engagements: Engagements,
    /// A UDP association without datagrams ends after this long.
    pub udp_idle: Duration,
    /// Cancelled when the manager stops.
    pub stopping: CancellationToken,
}

/// Serves a client's lane until it ends.
///
/// # Errors
/// [`LaneError`] when the lane was lost or never was one.
pub async fn serve(services: Arc<Services>, io: impl Carrier + 'static) -> Result<(), LaneError> {
    let pending = server::accept(io).await?;
    let hello = &pending.hello;
    let old = hello.session.clone();
    let (ticket, lane) = match admit(&services, hello) {
        Ok((Admitted::Resumed { session, handle, .. }, welcome)) => {
            let lane = hello.lane;
            pending.resume(welcome, &handle).await?;
            tracing::info!(%session, lane, "lane resumed");
            return Ok(());
        }
        Ok((Admitted::New(ticket), welcome)) => {
            tracing::info!(
                session = %ticket.session,
                lane = hello.lane,
                client = hello.client_name,
                version = hello.software_version,
                rejoined = ticket.rejoined,
                "lane opened"
            );
            (ticket, pending.welcome(welcome).await?)
        }
        Err(refusal) => return refuse(pending, refusal).await,
    };
    if let Some(old) = old.filter(|_| !ticket.rejoined) {
        services.engagements.registry.adopt(&old, &ticket.key);
    }
    ticket.resumable(lane.handle());
    let result = run(&services, &ticket, lane).await;
    match &result {
        Ok(()) => tracing::info!(session = %ticket.session, "lane closed"),
        Err(error) => tracing::info!(session = %ticket.session, %error, "lane lost"),
    }
    Ok(())
}

/// Decides on a hello.
fn admit(services: &Services, hello: &ClientHello) -> Result<(Admitted, Welcome), Refusal> {
    let (version, mut features) = hello.negotiate(VERSION)?;
    if services.engagements.identities().is_none() {
        features.retain(|feature| feature != IDENTITY);
    }
    if hello.agent.is_some() {
        let message = "this port is for clients; agents connect over TLS";
        return Err(Refusal::new(RefusalCode::WrongRole, message, VERSION));
    }
    if services.stopping.is_cancelled() {
        return Err(Refusal::new(RefusalCode::ShuttingDown, "the manager is stopping; try again in a moment", VERSION));
    }
    let admitted = services.hub.admit(hello)?;
    let (key, rejoined) = match &admitted {
        Admitted::New(ticket) => (&ticket.key, ticket.rejoined),
        Admitted::Resumed { key, .. } => (key, true),
    };
    let welcome = Welcome {
        version,
        features,
        software_version: VERSION.to_owned(),
        session: Some(key.clone()),
        manager_pod: services.pod.clone(),
        rejoined,
        resume_grace_ms: u32::try_from(services.hub.grace().as_millis()).unwrap_or(u32::MAX),
        ..Welcome::default()
    };
    Ok((admitted, welcome))
}

/// Tells a peer why it may not come in.
pub(crate) async fn refuse(pending: Pending, refusal: Refusal) -> Result<(), LaneError> {
    let hello = &pending.hello;
    tracing::warn!(client = hello.client_name, version = hello.software_version, why = refusal.message, "lane refused");
    pending.refuse(refusal).await
}

/// Carries out what the client asks for, until the lane ends.
async fn run(services: &Arc<Services>, ticket: &Ticket, mut lane: LaneServer) -> Result<(), LaneError> {
    let mut tasks = JoinSet::new();
    let handle = lane.handle().clone();
    let mut watch = pin!(ticket.watch(&handle, &services.stopping));
    let mut draining = false;
    loop {
        tokio::select! {
            incoming = lane.next() => match incoming {
                None => return Ok(()),
                Some(Err(error)) => return Err(error),
                Some(Ok(Incoming::Open(open, responder))) => start_flow(services, ticket, &mut tasks, open, responder),
                Some(Ok(Incoming::Continue(flow, responder))) => match ticket.budget.take_movable(flow) {
                    Some(continuation) => responder.accept(continuation),
                    None => responder.refuse(),
                },
                Some(Ok(Incoming::Resolve(request))) => _ = tasks.spawn(resolve(services.dns.clone(), request)),
                Some(Ok(Incoming::Echo(dst, request))) => start_echo(services, ticket, &mut tasks, dst, request),
                Some(Ok(Incoming::Accept(id, acceptor))) => services.engagements.registry.accept(&ticket.session, &id, acceptor),
                Some(Ok(Incoming::Reach(_, _, responder))) => {
                    responder.refuse(&OpenRefused::new(ErrorClass::Denied, "only agents reach clients"));
                }
                Some(Ok(Incoming::Dial(acceptor))) => {
                    acceptor.refuse(&OpenRefused::new(ErrorClass::Denied, "only agents dial for clients"));
                }
                Some(Ok(Incoming::Call(request))) => start_call(services, ticket, &mut tasks, request),
                Some(Ok(Incoming::Control(control))) => {
                    _ = tasks.spawn(control::serve_client(services.clone(), ticket.session.clone(), control));
                }
            },
            Some(ended) = tasks.join_next() => log_end("flow", ended),
            () = ticket.closed.cancelled() => return Ok(()),
            () = &mut watch => return Ok(()),
            () = services.stopping.cancelled(), if !draining => {
                draining = true;
                lane.graceful_shutdown();
            }
        }
    }
}

/// What a flow is relayed to.
enum Reached {
    /// A socket of the manager's.
    Socket(Dialled),
    /// The localhost of a pod.
    Pod(Box<PodForward>),
    /// A socket of an agent's.
    Agent(Flow),
}

/// Starts a flow, if the session may have another.
fn start_flow(services: &Arc<Services>, ticket: &Ticket, tasks: &mut JoinSet<()>, open: Open, responder: Responder) {
    let budget = ticket.budget.clone();
    let permit = match budget.flows.clone().try_acquire_owned() {
        Ok(permit) => permit,
        Err(TryAcquireError::NoPermits | TryAcquireError::Closed) => {
            let why = "the session has as many flows as it may (limits.flowsPerSession in the chart)";
            return responder.refuse(&OpenRefused::new(ErrorClass::Exhausted, why));
        }
    };
    let (services, session) = (services.clone(), ticket.session.clone());
    tasks.spawn(async move {
        flow(&services, &session, &budget, open, responder).await;
        drop(permit);
    });
}

/// Dials, answers, and relays until both ends are done.
async fn flow(services: &Services, session: &SessionId, budget: &Arc<Budget>, open: Open, mut responder: Responder) {
    let dialled = tokio::select! {
        dialled = dial(services, session, budget, &open) => dialled,
        () = responder.cancelled() => return,
    };
    let dst = open.to_string();
    let source = open.source.map(|source: SocketAddr| source.to_string());
    let dialled = match dialled {
        Ok(dialled) => dialled,
        Err(refused) => {
            tracing::debug!(dst, source, why = %refused, "flow refused");
            return responder.refuse(&refused);
        }
    };
    // Fails when the client has given up meanwhile; the socket closes with it.
    let Ok(mut flow) = responder.accept() else { return };
    let _movable = open.flow.map(|number| budget.movable(number, flow.continuation()));
    let relayed = match dialled {
        Reached::Socket(Dialled::Tcp(socket)) => relay::tcp(flow, socket, &budget.read_ahead).await,
        Reached::Socket(Dialled::Udp(socket)) => relay::udp(flow, socket, services.udp_idle).await,
        Reached::Pod(forward) => forward.relay(flow).await,
        Reached::Agent(socket) => relay::flows(flow, socket).await,
    };
    tracing::debug!(
        dst,
        source,
        up = relayed.to_socket_bytes,
        down = relayed.to_flow_bytes,
        dropped = relayed.dropped_datagrams,
        error = relayed.error.map(|error| error.to_string()),
        "flow ended"
    );
}

/// Waits for its turn among the session's dials, then dials.
async fn dial(services: &Services, session: &SessionId, budget: &Budget, open: &Open) -> Result<Reached, OpenRefused> {
    let deadline = services.dialer.deadline(open);
    let _turn = timeout_at(deadline, budget.dials.acquire()).await.map_err(|_| {
        OpenRefused::new(ErrorClass::Exhausted, "too many dials of this session are waiting for an answer")
    })?;
    let Some(via) = &open.via else { return services.dialer.dial(open, deadline).await.map(Reached::Socket) };
    if open.is_to_localhost() {
        let dialled = timeout_at(deadline, services.engagements.dial_in_pod(session, via, open)).await;
        let late =
            |_| Err(OpenRefused::new(ErrorClass::TimedOut, format!("no port-forward to a pod of {via} in time")));
        return dialled.unwrap_or_else(late).map(|forward| Reached::Pod(Box::new(forward)));
    }
    let registry = &services.engagements.registry;
    let by_agent = |dst, until| registry.dial(session, via, open, dst, until);
    services.dialer.dial_by(open, deadline, by_agent).await.map(Reached::Agent)
}

/// Starts a call about engagements, if the session may have another.
fn start_call(services: &Arc<Services>, ticket: &Ticket, tasks: &mut JoinSet<()>, request: MessageRequest) {
    let Ok(permit) = ticket.budget.calls.clone().try_acquire_owned() else {
        return request.refuse(&OpenRefused::new(ErrorClass::Exhausted, "too many calls are without an answer"));
    };
    let (services, key) = (services.clone(), ticket.key.clone());
    tasks.spawn(async move {
        call(&services, &key, request).await;
        drop(permit);
    });
}

/// Answers a call about engagements. A client that does not wait for the answer ends what it has begun.
async fn call(services: &Services, session: &SessionKey, request: MessageRequest) {
    // Fails when the client has given up or broke the protocol; either way nobody waits for the answer.
    let Ok((message, mut responder)) = request.message().await else { return };
    let call = match Call::decode(message) {
        Ok(call) => call,
        Err(error) => return responder.refuse(&OpenRefused::new(ErrorClass::Failed, error.to_string())),
    };
    tokio::select! {
        answer = services.engagements.call(session, call) => responder.answer(answer.encode_to_vec().into()),
        () = responder.cancelled() => {}
    }
}

/// Starts a ping, if the session may have another.
fn start_echo(
    services: &Arc<Services>,
    ticket: &Ticket,
    tasks: &mut JoinSet<()>,
    dst: IpAddr,
    request: MessageRequest,
) {
    let Ok(permit) = ticket.budget.echoes.clone().try_acquire_owned() else {
        return request.refuse(&OpenRefused::new(ErrorClass::Exhausted, "too many pings are without an answer"));
    };
    let services = services.clone();
    tasks.spawn(async move {
        echo(&services, dst, request).await;
        drop(permit);
    });
}

/// Pings for the client.
async fn echo(services: &Services, dst: IpAddr, request: MessageRequest) {
    // Fails when the client has given up or broke the protocol; either way nobody waits for the answer.
    let Ok((data, responder)) = request.message().await else { return };
    match services.dialer.echo(dst, &data).await {
        Ok(data) => responder.answer(data),
        Err(refused) => {
            tracing::debug!(%dst, why = %refused, "ping failed");
            responder.refuse(&refused);
        }
    }
}

/// Answers one DNS query.
async fn resolve(dns: Arc<Forwarder>, request: MessageRequest) {
    // Fails when the client has given up or broke the protocol; either way nobody waits for the answer.
    let Ok((query, responder)) = request.message().await else { return };
    match dns.forward(&query).await {
        Ok(answer) => responder.answer(answer),
        Err(error) => {
            tracing::debug!(%error, "DNS query failed");
            responder.refuse(&error.into());
        }
    }
}
