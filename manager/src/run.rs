//! The process: binds the ports, starts the long-running tasks, and stops in good order.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use kube::Client;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;

use crate::agents::Agents;
use crate::agents::listener::{self as agents_listener, AgentServices};
use crate::cluster::Facts;
use crate::cluster::gateways::{IPV4_ROUTES, IPV6_ROUTES, gateways};
use crate::cluster::resolv::{RESOLV_CONF, ResolvConf};
use crate::cluster::watch::{self as cluster_watch, Published};
use crate::config::{AgentPod, Authorization, Config, Limits, Pod, Timeouts};
use crate::dial::Dialer;
use crate::dns::Forwarder;
use crate::engage::{Cluster, Engagements, Registry};
use crate::identity::Identities;
use crate::lane::Services;
use crate::session::SessionLimits;
use crate::session::hub::{FlowLimits, Hub};
use crate::webhook::identity::IdentityHook;
use crate::webhook::inject::InjectHook;
use crate::webhook::registration::Registration;
use crate::webhook::{self, Webhooks};
use crate::{AGENT_PORT, CLIENT_PORT, HEALTH_PORT, MANAGER, VERSION, WEBHOOK_PORT, health, listen, log_end, trust};

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 1_024;

/// Wait before a task that panicked is started again, so that a bug does not spin.
const AFTER_PANIC: Duration = Duration::from_secs(1);

/// The manager cannot start, or a part of it that it cannot do without has ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A port is not free, or not ours.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The port's address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// No API server can be found.
    #[error("cannot use the pod's service account: {0}")]
    Kubernetes(#[from] kube::Error),
    /// The pod has no service account.
    #[error("no Kubernetes API in this environment: {0}")]
    NotInCluster(#[from] kube::config::InClusterError),
    /// The pod's own files cannot be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Signals cannot be taken.
    #[error("cannot wait for signals: {0}")]
    Signals(io::Error),
    /// Secrets cannot be made.
    #[error("the system has no randomness")]
    NoRandomness,
}

/// Runs the manager until it is told to stop (SIGTERM or SIGINT).
///
/// # Errors
/// [`RunError`] when it cannot start.
pub async fn run(config: Config, pod: Pod) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    raise_file_limit();
    let ports = Ports::bind()?;
    let client = Client::try_from(kube::Config::incluster()?)?;
    let resolv = ResolvConf::parse(&read(RESOLV_CONF)?);
    let nameservers = Forwarder::with_default_port(&resolv.nameservers);
    let ipv6_routes = std::fs::read_to_string(IPV6_ROUTES).unwrap_or_default();
    let facts = Facts::new(&config, &pod, resolv, gateways(&read(IPV4_ROUTES)?, &ipv6_routes));
    let published = Published::new(&facts);
    let stopping = CancellationToken::new();
    tracing::info!(version = VERSION, pod = pod.name, namespace = pod.namespace, "tp-manager starts");

    let (tls_tx, tls_rx) = watch::channel(None);
    let (bundle_tx, bundle_rx) = watch::channel(String::new());
    let Timeouts { handshake, drain, .. } = config.timeouts;
    let services = Arc::new(services(&config, &pod, &facts, &published, nameservers, &client, &stopping));
    let agent_services = Arc::new(AgentServices {
        pod: pod.name.clone(),
        agents: services.agents.clone(),
        engagements: services.engagements.registry.clone(),
        reviewer: client.clone(),
        handshake,
        stopping: stopping.clone(),
    });

    let mut background = JoinSet::new();
    let ready = readiness(&services, tls_rx.clone());
    background.spawn(health::run(ports.health, ready));
    let names = tls_names(&pod.namespace, facts.domain());
    let (trust_client, namespace) = (client.clone(), pod.namespace.clone());
    background.spawn(again("CA", move || {
        trust::run(trust_client.clone(), namespace.clone(), names.clone(), tls_tx.clone(), bundle_tx.clone())
    }));
    webhooks(&mut background, &services.engagements, &client, &pod, &tls_rx, &bundle_rx)?;
    background.spawn(again("cluster", move || {
        cluster_watch::run(client.clone(), pod.namespace.clone(), facts.clone(), published.clone())
    }));
    let hub = services.hub.clone();
    background.spawn(again("sessions", move || {
        let hub = hub.clone();
        async move { hub.run().await }
    }));

    let engagements = services.engagements.clone();
    background.spawn(again("engagements", move || {
        let engagements = engagements.clone();
        async move { engagements.run().await }
    }));

    let mut doors = JoinSet::new();
    doors.spawn(listen::clients(services, ports.clients));
    let handshakes_max = config.limits.agent_handshakes as usize;
    doors.spawn(async move {
        if let Some(tls) = first_tls(tls_rx, &agent_services.stopping).await {
            agents_listener::run(agent_services, ports.agents, tls, handshakes_max).await;
        }
    });

    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            Some(ended) = background.join_next() => log_end("background task", ended),
            Some(ended) = doors.join_next() => log_end("listener", ended),
        }
    }
    tracing::info!(drain_seconds = drain.as_secs(), "tp-manager stops");
    stopping.cancel();
    let drained = timeout(drain, async { while doors.join_next().await.is_some() {} }).await;
    match drained {
        Ok(()) => tracing::info!("all lanes ended"),
        Err(_) => tracing::info!("lanes that did not end in time are cut off"),
    }
    Ok(())
}

/// Starts the API server's port, where it has something to ask, and registers for it.
fn webhooks(
    background: &mut JoinSet<()>,
    engagements: &Engagements,
    client: &Client,
    pod: &Pod,
    tls: &watch::Receiver<Option<Arc<ServerConfig>>>,
    bundle: &watch::Receiver<String>,
) -> Result<(), RunError> {
    let mut hooks = Webhooks::default();
    if let Some(identities) = engagements.identities() {
        let hook = IdentityHook::new(identities.clone(), &pod.namespace, &pod.name).ok_or(RunError::NoRandomness)?;
        let registration =
            Registration::<ValidatingWebhookConfiguration>::new(client.clone(), &pod.namespace, hook.path());
        hooks.identity = Some(hook);
        let (identities, bundle) = (identities.clone(), bundle.clone());
        background.spawn(again("registration of the identity webhook", move || {
            let (registration, bundle, identities) = (registration.clone(), bundle.clone(), identities.clone());
            async move { registration.keep(bundle, || identities.unheard()).await }
        }));
    }
    if let Some(cluster) = engagements.injecting() {
        let hook = InjectHook::new(Arc::clone(cluster), bundle.clone()).ok_or(RunError::NoRandomness)?;
        let registration =
            Registration::<MutatingWebhookConfiguration>::new(client.clone(), &pod.namespace, hook.path());
        hooks.inject = Some(hook);
        let bundle = bundle.clone();
        background.spawn(again("registration of the inject webhook", move || {
            let (registration, bundle) = (registration.clone(), bundle.clone());
            // Nothing is known of pods that it was not asked about.
            async move { registration.keep(bundle, std::future::pending).await }
        }));
    }
    if hooks.identity.is_some() || hooks.inject.is_some() {
        background.spawn(webhook::run(Arc::new(hooks), bind_any(WEBHOOK_PORT)?, tls.clone()));
    }
    Ok(())
}

/// Runs what must never end; after a panic, which is a bug, once more.
async fn again<F>(what: &'static str, task: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        let mut running = JoinSet::new();
        running.spawn(task());
        while let Some(ended) = running.join_next().await {
            log_end(what, ended);
        }
        tokio::time::sleep(AFTER_PANIC).await;
    }
}

/// Raises the limit on open files as far as it goes: every flow is a socket, and runtimes start containers with a soft
/// limit of 1024 where the hard one is a thousand times that.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, ?limit, "cannot raise the limit on open files");
    }
}

/// The three listeners.
struct Ports {
    clients: TcpListener,
    agents: TcpListener,
    health: TcpListener,
}

impl Ports {
    fn bind() -> Result<Self, RunError> {
        Ok(Self {
            clients: bind(SocketAddr::from((Ipv4Addr::LOCALHOST, CLIENT_PORT)))?,
            agents: bind_any(AGENT_PORT)?,
            health: bind_any(HEALTH_PORT)?,
        })
    }
}

/// Binds all addresses of both families; of IPv4 alone where there is no IPv6.
fn bind_any(port: u16) -> Result<TcpListener, RunError> {
    bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
        .or_else(|_| bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))))
}

fn bind(address: SocketAddr) -> Result<TcpListener, RunError> {
    let listener = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        if address.is_ipv6() {
            socket2::SockRef::from(&socket).set_only_v6(false)?;
        }
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listener().map_err(|source| RunError::Listen { address, source })
}

fn read(path: &'static str) -> Result<String, RunError> {
    std::fs::read_to_string(path).map_err(|source| RunError::Unreadable { path, source })
}

/// Puts together what lanes need.
fn services(
    config: &Config,
    pod: &Pod,
    facts: &Facts,
    published: &Published,
    nameservers: Vec<SocketAddr>,
    client: &Client,
    stopping: &CancellationToken,
) -> Services {
    let Limits {
        sessions, lanes_per_session, flows_per_session, pending_dials_per_session, dns_queries, agents, ..
    } = config.limits;
    let Timeouts { session_grace, dial, udp_idle, dns, .. } = config.timeouts;
    let limits = SessionLimits {
        sessions: sessions as usize,
        lanes_per_session: lanes_per_session as usize,
        grace: session_grace,
    };
    let flow_limits =
        FlowLimits { flows: flows_per_session as usize, pending_dials: pending_dials_per_session as usize };
    let dns = Arc::new(Forwarder::new(nameservers, dns, dns_queries));
    let hub = Hub::new(limits, flow_limits);
    let asks = config.authorization == Authorization::SubjectAccessReview;
    let cluster = config.engage.enabled.then(|| Cluster {
        identities: asks.then(|| Identities::new(hub.clone(), client.clone())),
        client: client.clone(),
        namespace: pod.namespace.clone(),
        config: config.engage.clone(),
        agent: AgentPod {
            manager_address: format!("{MANAGER}.{}.svc:{AGENT_PORT}", pod.namespace),
            ..config.agent.clone()
        },
    });
    Services {
        pod: pod.name.clone(),
        engagements: Engagements::new(Registry::new(hub.clone()), cluster),
        hub,
        dialer: Dialer::new(published.policy.subscribe(), dns.clone(), facts.domain().to_owned(), dial),
        dns,
        info: published.info.subscribe(),
        agents: Agents::new(agents as usize),
        udp_idle,
        stopping: stopping.clone(),
    }
}

/// Returns what has to be there before the pod is ready.
fn readiness(services: &Arc<Services>, tls: watch::Receiver<Option<Arc<ServerConfig>>>) -> health::Readiness {
    let info = services.info.clone();
    let stopping = services.stopping.clone();
    Arc::new(move || {
        if stopping.is_cancelled() {
            return Some("the end: it is stopping");
        }
        if tls.borrow().is_none() {
            return Some("the certificate of the agents' port");
        }
        info.borrow().as_ref().err().copied()
    })
}

/// Names under which agents and the API server may reach the manager.
fn tls_names(namespace: &str, domain: &str) -> Vec<String> {
    vec![
        format!("{MANAGER}.{namespace}.svc"),
        format!("{MANAGER}.{namespace}.svc.{domain}"),
        format!("{MANAGER}.{namespace}"),
    ]
}

/// Waits for the first certificate; `None` when the manager stops before.
async fn first_tls(
    mut tls: watch::Receiver<Option<Arc<ServerConfig>>>,
    stopping: &CancellationToken,
) -> Option<watch::Receiver<Option<Arc<ServerConfig>>>> {
    let ready = tokio::select! {
        ready = tls.wait_for(Option::is_some) => ready.is_ok(),
        () = stopping.cancelled() => false,
    };
    ready.then_some(tls)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_started_again() {
        let starts = Arc::new(AtomicU32::new(0));
        let counted = starts.clone();
        let task = again("test", move || {
            let nth = counted.fetch_add(1, Ordering::Relaxed);
            async move { assert!(nth > 0, "the first run panics") }
        });
        let _ = tokio::time::timeout(AFTER_PANIC * 5 / 2, task).await;
        assert_eq!(starts.load(Ordering::Relaxed), 3);
    }
}
