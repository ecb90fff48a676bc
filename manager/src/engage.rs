//! Engagements: which client takes what traffic of which workload, and the pods that stand in for workloads.
//!
//! | module | what it owns |
//! |---|---|
//! | `workload` | which workload is meant |
//! | `container` | which of its containers, and how it runs (pure) |
//! | `quantity` | Kubernetes' notation of amounts (pure) |
//! | `service` | which Service and ports are meant, and the patches of its selector (pure) |
//! | `agent` | the agent's container (pure) |
//! | `stand_in` | the objects: a ReplicaSet per stand-in, a Lease per engagement (pure) |
//! | `sidecar` | what makes a workload's own pod one with an agent (pure) |
//! | `mode` | which of the two an engagement is for (pure) |
//! | `rollout` | the restart that gives a workload's pods their agents |
//! | `registry` | the engagements at this moment, who holds them, and who waits for what (no Kubernetes) |
//! | `place` | a task per stand-in that makes the cluster what its engagements want |
//! | `calls` | what clients ask for |
//! | `to_pod` | the localhost of a workload's pod: which pod, and the port-forward to it |
//! | `via` | a workload's place in the network, from where clients dial |
//! | `rights` | who may |
//!
//! The Leases are the truth: a manager that starts reads them, takes the engagements up, and gives their clients the grace
//! time to come back.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tp_protocol::engage::call::Failure;

use crate::MANAGER;
use crate::config::{AgentPod, Engage, Inject};
use crate::identity::Identities;

mod agent;
mod calls;
mod container;
mod mode;
mod place;
mod quantity;
pub(crate) mod registry;
mod rights;
pub(crate) mod rollout;
mod service;
pub(crate) mod sidecar;
mod stand_in;
pub(crate) mod to_pod;
mod via;
pub(crate) mod workload;

pub use registry::Registry;
use stand_in::StandIn;
use to_pod::AllForwards;

/// Wait before a task that panicked is started again.
const AFTER_PANIC: Duration = Duration::from_secs(1);

/// Time between two renewals of a Lease.
const RENEW: Duration = Duration::from_secs(20);

/// What engaging needs of the cluster.
#[derive(Clone)]
pub struct Cluster {
    /// Speaks with the API server.
    pub client: Client,
    /// Namespace of the manager.
    pub namespace: String,
    /// What may be engaged.
    pub config: Engage,
    /// How stand-ins are made.
    pub agent: AgentPod,
    /// Knows who asks and what they may; `None`: whoever may connect may engage.
    pub identities: Option<Identities>,
}

impl Cluster {
    /// Whether workloads of this namespace are not to be engaged.
    pub(crate) fn forbids(&self, namespace: &str) -> bool {
        namespace == self.namespace || self.config.forbidden_namespaces.iter().any(|forbidden| forbidden == namespace)
    }
}

/// Engages workloads for clients. Clones share it.
#[derive(Clone)]
pub struct Engagements {
    /// The engagements at this moment.
    pub registry: Registry,
    /// `None`: engaging is switched off.
    cluster: Option<Arc<Cluster>>,
    forwards: AllForwards,
}

impl std::fmt::Debug for Engagements {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engagements").field("is_on", &self.cluster.is_some()).finish_non_exhaustive()
    }
}

impl Engagements {
    /// Starts without any. Without a cluster every engagement is refused.
    #[must_use]
    pub fn new(registry: Registry, cluster: Option<Cluster>) -> Self {
        Self { registry, cluster: cluster.map(Arc::new), forwards: AllForwards::default() }
    }

    /// What finds out who clients are; `None` when nothing depends on it.
    pub(crate) fn identities(&self) -> Option<&Identities> {
        self.cluster.as_ref()?.identities.as_ref()
    }

    /// The cluster in which pods that ask for an agent get one; `None` when none do.
    pub(crate) fn injecting(&self) -> Option<&Arc<Cluster>> {
        self.cluster.as_ref().filter(|cluster| cluster.config.inject != Inject::Never)
    }

    /// Takes up what the Leases say, follows them, renews them, and ends the engagements of clients that are gone. Runs
    /// until it is dropped.
    pub async fn run(&self) {
        let Some(cluster) = &self.cluster else { return std::future::pending().await };
        let config = watcher::Config::default().labels(&format!("{}={}", stand_in::MANAGER, cluster.namespace));
        let mut leases = watcher(Api::<Lease>::all(cluster.client.clone()), config).default_backoff().boxed();
        let mut list = LeaseList::default();
        let mut ended = self.registry.hub().ended();
        let mut renew = interval(RENEW);
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(event) = leases.next() => match event {
                    Ok(event) => self.on_lease(event, &mut list),
                    Err(error) => tracing::warn!(%error, "watching the Leases of engagements"),
                },
                Ok(()) = ended.changed() => self.registry.end_without_session(),
                () = self.registry.adopted() => self.renew(cluster).await,
                _ = renew.tick() => {
                    self.registry.end_without_session();
                    self.renew(cluster).await;
                }
            }
        }
    }

    /// A Lease that somebody deletes ends its engagement; one that is not known is taken up.
    fn on_lease(&self, event: Event<Lease>, list: &mut LeaseList) {
        match event {
            Event::Init => *list = LeaseList { before: self.registry.with_lease(), seen: HashSet::new() },
            Event::InitApply(lease) | Event::Apply(lease) => {
                list.seen.insert(lease.name_any());
                if let Some(stand_in) = self.take_up(&lease) {
                    tracing::info!(engagement = lease.name_any(), "engagement taken up");
                    self.start(&stand_in);
                }
                if lease.metadata.deletion_timestamp.is_some() {
                    self.registry.on_lease_gone(&lease.name_any(), lease.metadata.uid.as_deref(), false);
                }
            }
            Event::InitDone => self.registry.on_leases_missing(list.before.difference(&list.seen)),
            Event::Delete(lease) => {
                self.registry.on_lease_gone(&lease.name_any(), lease.metadata.uid.as_deref(), true);
            }
        }
    }

    fn take_up(&self, lease: &Lease) -> Option<StandIn> {
        let record = stand_in::record(lease)?;
        let namespace = lease.namespace()?;
        let cluster = self.cluster.as_ref()?;
        let stand_in = StandIn::of(&cluster.namespace, &record.held);
        // What somebody else has written is none of ours.
        let is_ours = !cluster.forbids(&namespace)
            && record.held.id == lease.name_any()
            && record.held.namespace == namespace
            && lease.labels().get(stand_in::ENGAGEMENT) == Some(&stand_in.name);
        (is_ours && self.registry.take_up(record, &stand_in, lease.uid()?)).then_some(stand_in)
    }

    /// Sees to it that a stand-in's task runs.
    fn start(&self, stand_in: &StandIn) {
        if let Some(cluster) = &self.cluster
            && self.registry.start_place(stand_in)
        {
            let (registry, cluster, stand_in) = (self.registry.clone(), Arc::clone(cluster), stand_in.clone());
            tokio::spawn(async move {
                // After a panic, which is a bug, once more: a narrowed Service must not be left alone.
                while let Err(error) =
                    tokio::spawn(place::run(registry.clone(), Arc::clone(&cluster), stand_in.clone())).await
                {
                    tracing::error!(%error, stand_in = stand_in.name, "a stand-in's task panicked");
                    sleep(AFTER_PANIC).await;
                }
            });
        }
    }

    /// Says in the Leases that their holders are there, and who they are.
    async fn renew(&self, cluster: &Cluster) {
        let all = async {
            for (namespace, record) in self.registry.held_by_the_awake() {
                let api = Api::<Lease>::namespaced(cluster.client.clone(), &namespace);
                let now = stand_in::micro_time(jiff::Timestamp::now());
                let patch = json!({
                    "metadata": {"annotations": stand_in::annotations(&record)},
                    "spec": {"renewTime": now},
                });
                if let Err(error) = api.patch(&record.held.id, &params(), &Patch::Merge(patch)).await {
                    tracing::warn!(engagement = record.held.id, %error, "cannot renew the Lease");
                }
            }
        };
        if timeout(RENEW, all).await.is_err() {
            tracing::warn!("the API server takes too long to renew the Leases of engagements");
        }
    }
}

/// What a list of all Leases has shown so far.
#[derive(Default)]
struct LeaseList {
    /// Ids whose Leases were there before it.
    before: HashSet<String>,
    seen: HashSet<String>,
}

/// Parameters of all patches.
fn params() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() }
}

/// A failure with its hint.
pub(crate) fn failure(message: impl Into<String>, hint: impl Into<String>) -> Failure {
    Failure { message: message.into(), hint: hint.into() }
}
