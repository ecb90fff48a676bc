//! The localhost of a workload's pod: which pod, and the port-forward to it ([`forward`]).
//!
//! The agent has a pod of its own, so it is none who could dial there. The kubelet can, for whoever may port-forward to the
//! pod: it dials in the pod's own network namespace, what listens on `127.0.0.1` alone included. It carries TCP only.

use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use kube::api::Request;
use kube::{Client, Resource, ResourceExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tp_protocol::engage::call::{Engage, Failure, HeldPort, ToPod};
use tp_protocol::engage::wire::Transport;
use tp_protocol::error_class::ErrorClass;
use tp_protocol::open::{Open, OpenRefused};

use super::service::STAND_IN;
use super::workload::{self, Workload};
use super::{Engagements, failure};
use crate::session::SessionId;

mod forward;

pub(crate) use forward::PodForward;

/// Ports that one engagement may ask for.
const PORTS_MAX: usize = 32;

/// Connections of one engagement at once. Each takes about 200 KiB: the buffers of its TLS and of its WebSocket.
const CONNECTIONS_MAX: usize = 64;

/// Connections of all engagements at once: 50 MiB at worst.
const ALL_CONNECTIONS_MAX: usize = 256;

/// One engagement's way to the localhost of a pod.
pub(crate) struct Forwards {
    /// The pod, once one was chosen: all connections go to the same one for as long as it is there. Held for one look or one
    /// change at a time.
    pod: Mutex<Option<String>>,
    connections: Arc<Semaphore>,
}

/// Counts the connections of all engagements.
#[derive(Clone)]
pub(super) struct AllForwards(Arc<Semaphore>);

impl Default for Forwards {
    fn default() -> Self {
        Self { pod: Mutex::default(), connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)) }
    }
}

impl Default for AllForwards {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ALL_CONNECTIONS_MAX)))
    }
}

impl Forwards {
    fn pod(&self) -> Option<String> {
        self.pod.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_pod(&self, pod: &str) {
        *self.pod.lock().unwrap_or_else(PoisonError::into_inner) = Some(pod.to_owned());
    }
}

/// The ports of the pod's localhost that an engagement asks for; `ports` are those that it takes itself.
///
/// # Errors
/// A [`Failure`] that says which is not possible.
pub(super) fn asked(asked: &Engage, workload: &Workload, ports: &[HeldPort]) -> Result<Vec<ToPod>, Failure> {
    if asked.to_pod.len() > PORTS_MAX {
        return Err(failure(format!("--to-pod names more than {PORTS_MAX} ports, which is the limit"), ""));
    }
    // Its localhost is the node's, which is nobody's to reach.
    if !asked.to_pod.is_empty() && workload.uses_host_network() {
        let why = format!("the pods of {workload} use their nodes' network, and have no localhost of their own");
        return Err(failure(why, "leave --to-pod out"));
    }
    let mut all: Vec<ToPod> = Vec::new();
    for wanted in &asked.to_pod {
        let number = u16::try_from(wanted.port).unwrap_or_default();
        if number == 0 {
            return Err(failure(format!("{} is not a port's number", wanted.port), ""));
        }
        if wanted.transport() != Transport::Tcp {
            let why = format!("port {number} of the pod's localhost is reached by TCP only");
            return Err(failure(why, "Kubernetes' port-forward, which leads there, carries no datagrams"));
        }
        if ports.iter().any(|port| listens_at(port, number)) {
            let why = format!("--to-pod {number} takes the port at which the handler is to listen");
            return Err(failure(why, "have the handler listen at another: --port LOCAL:REMOTE"));
        }
        if !all.contains(wanted) {
            all.push(*wanted);
        }
    }
    Ok(all)
}

/// Whether the handler of `port` takes its connections on this port of the client's localhost.
fn listens_at(port: &HeldPort, number: u16) -> bool {
    let local = port.local.parse::<std::net::SocketAddr>();
    port.transport() == Transport::Tcp && local.is_ok_and(|it| it.port() == number && it.ip().is_loopback())
}

impl Engagements {
    /// Opens a port on the localhost of a pod of the workload `via`, which an engagement of the session has asked for.
    ///
    /// What listens there, if anything does, has not accepted yet when this returns: the API server says nothing of it.
    ///
    /// # Errors
    /// [`OpenRefused`], for the socket that asked.
    pub(crate) async fn dial_in_pod(
        &self,
        session: &SessionId,
        via: &str,
        open: &Open,
    ) -> Result<PodForward, OpenRefused> {
        let namespace = open.namespace.as_deref().unwrap_or_default();
        let denied = || {
            let why = format!("this session holds no engagement of {via} that asked for {open} of its pod");
            OpenRefused::new(ErrorClass::Denied, why)
        };
        if open.transport != tp_protocol::open::Transport::Tcp || !open.is_to_localhost() {
            return Err(denied());
        }
        let forwards = self.registry.forwards(session, (namespace, via), open.port).ok_or_else(denied)?;
        let client = &self.cluster().map_err(|why| OpenRefused::new(ErrorClass::Failed, why.message))?.client;
        let permits = [permit(&forwards.connections)?, permit(&self.forwards.0)?];
        if let Some(pod) = forwards.pod() {
            match connect(client, namespace, &pod, open.port).await {
                Ok(socket) => return Ok(PodForward::new(socket, open.port, permits)),
                // It may be gone.
                Err(error) => tracing::debug!(namespace, pod, %error, "a port-forward was refused"),
            }
        }
        let pod = choose(client, namespace, via).await?;
        let socket = connect(client, namespace, &pod, open.port).await.map_err(|error| explain(&pod, &error))?;
        tracing::debug!(namespace, workload = via, pod, "the localhost that is reached");
        forwards.set_pod(&pod);
        Ok(PodForward::new(socket, open.port, permits))
    }
}

fn permit(semaphore: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, OpenRefused> {
    let permit = Arc::clone(semaphore).try_acquire_owned();
    permit.map_err(|_| OpenRefused::new(ErrorClass::Exhausted, "too many connections to the localhost of pods"))
}

/// Asks the API server for a port of a pod.
async fn connect(client: &Client, namespace: &str, pod: &str, port: u16) -> kube::Result<forward::Socket> {
    let request = Request::new(Pod::url_path(&(), Some(namespace))).portforward(pod, &[port]);
    Ok(client.connect(request.map_err(kube::Error::BuildRequest)?).await?.into_stream())
}

fn explain(pod: &str, error: &kube::Error) -> OpenRefused {
    match error {
        kube::Error::Api(status) if status.code == 403 => OpenRefused::new(
            ErrorClass::Denied,
            format!("the manager may not port-forward to pod {pod}; `tp helm upgrade` gives it the right"),
        ),
        error => OpenRefused::new(ErrorClass::Failed, format!("no port-forward to pod {pod}: {error}")),
    }
}

/// Finds the pod whose localhost is meant: of those that run the ready ones, and of these the oldest.
async fn choose(client: &Client, namespace: &str, via: &str) -> Result<String, OpenRefused> {
    let failed = |why: String| OpenRefused::new(ErrorClass::Failed, why);
    let none = || OpenRefused::new(ErrorClass::HostUnreachable, format!("{via} has no pod that runs"));
    let workload =
        workload::known(client, namespace, via).await.map_err(|why| failed(why.message))?.ok_or_else(none)?;
    let pods = workload.pods(client, namespace).await.map_err(|why| failed(why.message))?;
    let running = pods.iter().filter(|pod| runs(pod));
    let first = running.min_by_key(|pod| (!workload::is_ready(pod), pod.creation_timestamp(), pod.name_any()));
    Ok(first.ok_or_else(none)?.name_any())
}

/// Whether the pod's containers run in a network of its own, and stay.
fn runs(pod: &Pod) -> bool {
    let is_running = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
    let is_on_host = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
    is_running && !is_on_host && pod.metadata.deletion_timestamp.is_none() && !pod.labels().contains_key(STAND_IN)
}

#[cfg(test)]
mod tests;
