//! A task per stand-in: makes the cluster what the stand-in's engagements want, and heals it.
//!
//! The order matters, so that no connection is lost. On the way in the stand-in is ready before the Service's selector is
//! narrowed to it; on the way out the selector is widened before the stand-in goes, and it lingers for what kube-proxy
//! still sends to it. While a narrowed Service has no ready stand-in it has no endpoint, so it is widened at once.
//!
//! Where the workload's own pods have the agents, nothing is made and nothing narrowed: the task gives them their orders, and
//! follows the pods as they come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{BoxStream, pending};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tp_protocol::engage::call::{AgentPort, AppProtocol, Failure, Orders};
use tp_protocol::engage::wire::Kind;

use super::calls::orders_of;
use super::registry::{Phase, Registry, Wanted};
use super::service::{Port, STAND_IN};
use super::sidecar::NOT_INJECTED;
use super::stand_in::{App, StandIn, owning, replica_set};
use super::workload::Workload;
use super::{Cluster, container, failure, params, service, sidecar, via, workload};

/// Time between two looks, beside those when something has changed.
const LOOK: Duration = Duration::from_secs(2);

/// Wait after a failure.
const RETRY: Duration = Duration::from_secs(2);

/// How long one look may take: the API server may be slow, or gone.
const RECONCILE_LIMIT: Duration = Duration::from_secs(30);

/// A stand-in that nobody needs any more stays this long: kube-proxy follows a Service within a second or two, and on a node
/// that has no time within ten.
const LINGER: Duration = Duration::from_secs(15);

/// A stand-in that has become ready is looked for so often, and with this time between, among the Service's endpoints.
const ENDPOINT_LOOKS: u32 = 20;
const ENDPOINT_LOOK: Duration = Duration::from_millis(50);

/// ConfigMap with the certificates that agents trust, and its key.
const CA: (&str, &str) = ("tp-manager-ca", "ca.crt");

/// What matters of a pod behind the Service.
#[derive(Clone, Debug, Default, PartialEq)]
struct PodFacts {
    /// Of this stand-in, or one of the workload's with an agent.
    has_agent: bool,
    /// Of no stand-in at all, or one of the workload's without an agent.
    is_app: bool,
    is_ready: bool,
    is_going: bool,
    /// Uid of the ReplicaSet that it is of.
    replica_set: Option<String>,
    address: Option<String>,
    /// Why it does not start.
    problem: Option<String>,
}

/// What agents say of their orders.
enum Said {
    /// Nothing yet.
    Nothing,
    /// They are carried out, in a pod that is ready.
    Done,
    /// They cannot be carried out.
    Problem(String),
}

/// What was found out of the workload at the start.
struct Target {
    workload: Workload,
    service: Option<Service>,
    ports: Vec<Port>,
    pods: BoxStream<'static, watcher::Result<Event<Pod>>>,
    services: BoxStream<'static, watcher::Result<Event<Service>>>,
}

/// The task's state.
struct Place {
    registry: Registry,
    cluster: Arc<Cluster>,
    stand_in: StandIn,
    workload: Workload,
    /// The Service, as it was at the start; `None` when no traffic is taken.
    service: Option<Service>,
    /// The ports of all of the workload's Services.
    ports: Vec<Port>,
    /// The Service has another selector or other ports by now.
    is_stale: bool,
    pods: BTreeMap<String, PodFacts>,
    /// The stand-in to which the Service is narrowed, as last seen; `None` while the Service was not seen.
    narrowed_to: Option<Option<String>>,
    /// Uid of the ReplicaSet, once it is known.
    replica_set: Option<String>,
    /// Leases that own the ReplicaSet, as far as is known.
    owners: BTreeSet<String>,
    /// Engagements that have ended, and whose Leases wait for the stand-in to go.
    over: Vec<String>,
    /// Nobody has needed the stand-in since.
    alone_since: Option<Instant>,
}

/// Runs until the stand-in is not needed any more.
pub(super) async fn run(registry: Registry, cluster: Arc<Cluster>, stand_in: StandIn) {
    loop {
        match target(&cluster, &stand_in).await {
            Ok(Some(target)) => {
                let (pods, services) = (target.pods, target.services);
                let place = Place {
                    registry: registry.clone(),
                    cluster: Arc::clone(&cluster),
                    stand_in: stand_in.clone(),
                    workload: target.workload,
                    service: target.service,
                    ports: target.ports,
                    is_stale: false,
                    pods: BTreeMap::new(),
                    // There is nothing to narrow where no traffic is taken.
                    narrowed_to: (!stand_in.takes_traffic()).then_some(None),
                    replica_set: None,
                    owners: BTreeSet::new(),
                    over: Vec::new(),
                    alone_since: None,
                };
                if place.run(pods, services).await {
                    return;
                }
            }
            Ok(None) => {
                // Workload or Service were deleted: nothing is left to engage. The stand-in goes with its Leases.
                match give_up(&cluster, &registry, &stand_in).await {
                    Ok(()) if registry.stop_place(&stand_in) => return,
                    Ok(()) => {}
                    Err(error) => tracing::warn!(stand_in = stand_in.name, %error, "stand-in not removed"),
                }
            }
            Err(why) => {
                tracing::warn!(stand_in = stand_in.name, why = why.message, "stand-in not looked after");
                registry.set_problem(&stand_in, &why.message);
            }
        }
        sleep(RETRY).await;
    }
}

/// Looks the workload and the Service up; `None` when one of them is gone.
async fn target(cluster: &Cluster, stand_in: &StandIn) -> Result<Option<Target>, Failure> {
    let client = &cluster.client;
    let Some(workload) = workload::known(client, &stand_in.namespace, &stand_in.workload).await? else {
        return Ok(None);
    };
    let all_pods = Api::<Pod>::namespaced(client.clone(), &stand_in.namespace);
    let pods = |selector: &str| {
        let config = watcher::Config::default().any_semantic().labels(selector);
        watcher(all_pods, config).default_backoff().boxed()
    };
    if !stand_in.takes_traffic() {
        let pods = match stand_in.is_sidecar {
            // Those of other workloads are told apart by their controllers: the workload's own labels may change with a rollout.
            true => pods(&sidecar::selector()),
            false => pods(&format!("{STAND_IN}={}", stand_in.name)),
        };
        return Ok(Some(Target { workload, service: None, ports: Vec::new(), pods, services: pending().boxed() }));
    }
    let services = Api::<Service>::namespaced(client.clone(), &stand_in.namespace);
    let list = services.list(&ListParams::default()).await;
    let list = list.map_err(|error| failure(format!("cannot list the Services: {error}"), ""))?.items;
    let Some(found) = list.iter().find(|it| it.name_any() == stand_in.service).cloned() else { return Ok(None) };
    let ports = service::all_ports(&list, &workload);
    let selector: Vec<String> = service::selector(&found).iter().map(|(key, value)| format!("{key}={value}")).collect();
    let only = watcher::Config::default().fields(&format!("metadata.name={}", stand_in.service));
    let services = watcher(services, only).default_backoff().boxed();
    Ok(Some(Target { workload, service: Some(found), ports, pods: pods(&selector.join(",")), services }))
}

impl Place {
    /// Runs until nothing is left to do (true), or until the workload has to be looked at again.
    async fn run(
        mut self,
        mut pods: BoxStream<'static, watcher::Result<Event<Pod>>>,
        mut services: BoxStream<'static, watcher::Result<Event<Service>>>,
    ) -> bool {
        let mut changes = self.registry.changes();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pods_known = false;
        loop {
            tokio::select! {
                Some(event) = pods.next() => match event {
                    Ok(event) => {
                        match event {
                            // Until the end of the list some are missing.
                            Event::Init => pods_known = false,
                            Event::InitDone => pods_known = true,
                            Event::InitApply(_) | Event::Apply(_) | Event::Delete(_) => {}
                        }
                        self.on_pod(event);
                    }
                    Err(error) => tracing::warn!(%error, "watching the pods of a Service"),
                },
                Some(event) = services.next() => match event {
                    Ok(event) => self.on_service(event),
                    Err(error) => tracing::warn!(%error, "watching a Service"),
                },
                Ok(()) = changes.changed() => {}
                _ = look.tick() => {}
            }
            if !pods_known || self.narrowed_to.is_none() {
                continue;
            }
            let done = async {
                match self.is_stale {
                    true => self.start_over().await.map(|()| Some(false)),
                    false => self.reconcile().await.map(|is_over| is_over.then_some(true)),
                }
            };
            match timeout(RECONCILE_LIMIT, done).await {
                Ok(Ok(Some(is_over))) => return is_over,
                Ok(Ok(None)) => {}
                Ok(Err(why)) => self.on_failure(&why),
                Err(_) => self.on_failure(&failure("the API server is too slow", "")),
            }
        }
    }

    /// The Service is another: the stand-in for the one that was goes.
    async fn start_over(&mut self) -> Result<(), Failure> {
        tracing::info!(service = self.stand_in.service, namespace = self.stand_in.namespace, "the Service has changed");
        self.narrow(false).await?;
        self.delete_replica_set().await
    }

    fn on_pod(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.pods.clear(),
            Event::InitApply(pod) | Event::Apply(pod) => {
                let name = pod.name_any();
                let facts = PodFacts::of(&pod, &self.stand_in, &self.workload);
                self.pods.insert(name, facts);
            }
            Event::Delete(pod) => _ = self.pods.remove(&pod.name_any()),
            Event::InitDone => {}
        }
    }

    fn on_service(&mut self, event: Event<Service>) {
        match event {
            Event::InitApply(it) | Event::Apply(it) => {
                self.narrowed_to = Some(service::narrowed_to(&it).map(str::to_owned));
                let ports = |it: &Service| it.spec.as_ref().and_then(|spec| spec.ports.clone());
                self.is_stale |= self
                    .service
                    .as_ref()
                    .is_some_and(|then| service::selector(&it) != service::selector(then) || ports(&it) != ports(then));
            }
            Event::Delete(_) => {
                self.narrowed_to = Some(None);
                self.registry
                    .wanted(&self.stand_in)
                    .iter()
                    .for_each(|wanted| self.registry.end(&wanted.record.held.id));
            }
            Event::Init | Event::InitDone => {}
        }
    }

    /// Brings the cluster a step nearer to what is wanted; true when nothing is left to do, ever.
    async fn reconcile(&mut self) -> Result<bool, Failure> {
        let (live, over): (Vec<Wanted>, Vec<Wanted>) =
            self.registry.wanted(&self.stand_in).into_iter().partition(|wanted| {
                matches!(wanted.phase, Phase::Pending | Phase::InForce) && !wanted.lease_uid.is_empty()
            });
        // One whose Lease is being made still is ended when it is there.
        let is_ended = |wanted: &Wanted| wanted.phase != Phase::Pending && !wanted.lease_uid.is_empty();
        let over: Vec<Wanted> = over.into_iter().filter(is_ended).collect();
        if self.stand_in.is_sidecar {
            let with_agent = self.pods.iter().filter(|(_, pod)| pod.has_agent).map(|(name, _)| name.clone());
            self.registry.set_pods(&self.stand_in, with_agent.collect());
        }
        let has_endpoint = self.own_pods().any(|(_, pod)| pod.is_ready);
        if live.is_empty() || !has_endpoint {
            // Before anything that could fail: narrowed, the Service has no endpoint now.
            self.narrow(false).await?;
        }
        if live.is_empty() {
            self.ask_agents(&live);
            self.end_all(&over).await?;
            return self.leave().await;
        }
        self.alone_since = None;
        self.end_all(&over).await?;
        if !self.stand_in.is_sidecar {
            self.ensure_replica_set(&live).await?;
        }
        let said = self.ask_agents(&live);
        self.free_all().await?;
        if let Said::Problem(why) = &said {
            let who = if self.stand_in.is_sidecar { "an agent in the pods" } else { "the stand-in" };
            self.on_failure(&failure(format!("{who} of {} cannot serve: {why}", self.stand_in.workload), ""));
            return Ok(false);
        }
        if self.stand_in.is_sidecar && !self.pods.values().any(|pod| pod.has_agent && !pod.is_going) {
            self.on_failure(&failure(
                format!("no pod of {} has an agent", self.stand_in.workload),
                format!(
                    "`kubectl -n {} describe pods -l '{}'` says why, in the annotation {NOT_INJECTED}",
                    self.stand_in.namespace,
                    sidecar::selector()
                ),
            ));
            return Ok(false);
        }
        let is_ready = matches!(said, Said::Done);
        let is_narrowed = self.is_narrowed();
        let has_begun = live.iter().any(|wanted| wanted.phase == Phase::InForce);
        if is_ready {
            self.narrow(true).await?;
        }
        if is_ready && self.is_narrowed() {
            for wanted in live.iter().filter(|wanted| wanted.phase == Phase::Pending) {
                self.registry.set_phase(&wanted.record.held.id, Phase::InForce);
            }
            let problem = match (has_begun && !is_narrowed, self.pods_without_agent()) {
                (true, _) => "something else had put the Service's selector back".to_owned(),
                (false, 0) => String::new(),
                (false, count) => format!("{count} of the workload's pods have no agent, and serve as ever"),
            };
            self.registry.set_problem(&self.stand_in, &problem);
        } else if let Some(problem) = self.pods.values().filter(|pod| pod.has_agent).find_map(|pod| pod.problem.clone())
        {
            self.on_failure(&failure(
                format!("the stand-in of {} does not start: {problem}", self.stand_in.workload),
                format!(
                    "`kubectl -n {} describe pod -l {STAND_IN}={}` says more",
                    self.stand_in.namespace, self.stand_in.name
                ),
            ));
        } else if has_begun && !has_endpoint {
            let problem = match (self.stand_in.is_sidecar, self.stand_in.takes_traffic()) {
                (true, _) => "no pod with an agent is ready",
                (false, true) => "the stand-in is being made again; the workload's pods serve",
                (false, false) => "the stand-in is being made again",
            };
            self.registry.set_problem(&self.stand_in, problem);
        }
        Ok(false)
    }

    /// Whether the stand-in gets the traffic that it is to take.
    fn is_narrowed(&self) -> bool {
        !self.stand_in.takes_traffic()
            || self.narrowed_to.as_ref().is_some_and(|to| to.as_deref() == Some(self.stand_in.name.as_str()))
    }

    /// The pods with an agent that are not going. One of a ReplicaSet that was deleted may look for a moment as if it stayed.
    fn own_pods(&self) -> impl Iterator<Item = (&String, &PodFacts)> {
        let is_own = |pod: &PodFacts| self.replica_set.is_none() || pod.replica_set == self.replica_set;
        self.pods.iter().filter(move |(_, pod)| pod.has_agent && !pod.is_going && is_own(pod))
    }

    /// How many pods serve what their agents would have taken.
    fn pods_without_agent(&self) -> usize {
        let without = self.pods.values().filter(|pod| pod.is_app && pod.is_ready && !pod.is_going);
        if self.stand_in.is_sidecar { without.count() } else { 0 }
    }

    /// Gives the agents their orders, and returns what they say of them.
    fn ask_agents(&self, live: &[Wanted]) -> Said {
        let orders = self.orders(live);
        if self.stand_in.is_sidecar {
            return self.ask_all(&orders);
        }
        let mut all = Said::Nothing;
        for (name, pod) in self.own_pods() {
            match self.registry.order(&self.stand_in.namespace, name, &orders) {
                Some(said) if !said.problem.is_empty() => all = Said::Problem(said.problem),
                Some(_) if pod.is_ready => return Said::Done,
                Some(_) | None => {}
            }
        }
        all
    }

    /// As [`Self::ask_agents`], where each pod has traffic of its own: those that are ready have to have carried the orders out.
    fn ask_all(&self, orders: &Orders) -> Said {
        let (mut problem, mut is_done, mut is_waiting) = (None, false, false);
        for (name, pod) in self.pods.iter().filter(|(_, pod)| pod.has_agent) {
            // One that goes has its callers still, and is waited for by nobody.
            let said = self.registry.order(&self.stand_in.namespace, name, orders);
            match said.filter(|_| !pod.is_going) {
                Some(said) if !said.problem.is_empty() => problem = Some(said.problem),
                Some(_) => is_done |= pod.is_ready,
                None => is_waiting |= pod.is_ready && !pod.is_going,
            }
        }
        match problem {
            Some(problem) => Said::Problem(problem),
            None if is_done && !is_waiting => Said::Done,
            None => Said::Nothing,
        }
    }

    fn orders(&self, live: &[Wanted]) -> Orders {
        let apps = |port: &Port| {
            let pods = self.pods.values().filter(|pod| pod.is_app && pod.is_ready && !pod.is_going);
            pods.filter_map(|pod| pod.address.as_ref())
                .map(|address| match address.contains(':') {
                    true => format!("[{address}]:{}", port.container_port),
                    false => format!("{address}:{}", port.container_port),
                })
                .collect()
        };
        let mut ports: BTreeMap<(u16, i32), AgentPort> = BTreeMap::new();
        for port in &self.ports {
            let entry = ports.entry((port.container_port, port.transport.into())).or_insert_with(|| AgentPort {
                port: port.container_port.into(),
                transport: port.transport.into(),
                protocol: port.protocol.into(),
                apps: apps(port),
            });
            // Of two Services with one port, the one that says HTTP knows more.
            if port.protocol == AppProtocol::Http {
                entry.set_protocol(AppProtocol::Http);
            }
        }
        let engagements = live.iter().flat_map(|wanted| orders_of(&wanted.record.held).collect::<Vec<_>>());
        Orders {
            number: 0,
            ports: ports.into_values().collect(),
            engagements: engagements.collect(),
            dials: live.iter().any(|wanted| wanted.record.held.what() == Kind::Via),
        }
    }

    /// Narrows the Service to the stand-in, or widens it again.
    async fn narrow(&mut self, wanted: bool) -> Result<(), Failure> {
        if !self.stand_in.takes_traffic() || self.is_narrowed() == wanted {
            return Ok(());
        }
        if let (true, Some(Some(other))) = (wanted, &self.narrowed_to) {
            let why = format!("the Service {} is narrowed to {other}, of another manager", self.stand_in.service);
            return Err(failure(why, "who engaged it there has to leave first"));
        }
        if wanted && !self.is_endpoint().await? {
            // The next look narrows it. Some of the traffic arrives already.
            return Ok(());
        }
        let patch = if wanted { service::narrowing(&self.stand_in.name) } else { service::widening() };
        let services = Api::<Service>::namespaced(self.cluster.client.clone(), &self.stand_in.namespace);
        match services.patch(&self.stand_in.service, &params(), &Patch::Merge(patch)).await {
            Ok(patched) => {
                self.narrowed_to = Some(service::narrowed_to(&patched).map(str::to_owned));
                tracing::info!(
                    service = self.stand_in.service,
                    namespace = self.stand_in.namespace,
                    narrowed = wanted,
                    "selector changed"
                );
                Ok(())
            }
            // A Service that is gone needs no widening.
            Err(kube::Error::Api(status)) if status.code == 404 && !wanted => Ok(()),
            Err(error) => Err(failure(
                format!("cannot change the selector of the Service {}: {error}", self.stand_in.service),
                "",
            )),
        }
    }

    /// Whether the stand-in is one of the Service's ready endpoints. The controller that makes EndpointSlices sees the pods
    /// later than we may: narrowed before it has seen that the stand-in is ready, the Service would have no endpoint.
    async fn is_endpoint(&self) -> Result<bool, Failure> {
        let slices = Api::<EndpointSlice>::namespaced(self.cluster.client.clone(), &self.stand_in.namespace);
        let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={}", self.stand_in.service));
        for _ in 0..ENDPOINT_LOOKS {
            let slices = slices.list(&of_service).await.map_err(|error| {
                failure(format!("cannot list the EndpointSlices of the Service {}: {error}", self.stand_in.service), "")
            })?;
            let mut ready = slices.items.iter().flat_map(|slice| slice.endpoints.iter().flatten()).filter(|endpoint| {
                endpoint.conditions.as_ref().is_some_and(|conditions| conditions.ready == Some(true))
            });
            let is_ours = |name: &String| self.own_pods().any(|(own, pod)| own == name && pod.is_ready);
            if ready.any(|endpoint| endpoint.target_ref.as_ref().and_then(|pod| pod.name.as_ref()).is_some_and(is_ours))
            {
                return Ok(true);
            }
            sleep(ENDPOINT_LOOK).await;
        }
        Ok(false)
    }

    /// Makes the ReplicaSet, or makes all engagements its owners.
    async fn ensure_replica_set(&mut self, live: &[Wanted]) -> Result<(), Failure> {
        let is_known = live.iter().all(|wanted| self.owners.contains(&wanted.lease_uid));
        if is_known && self.own_pods().next().is_some() {
            return Ok(());
        }
        let sets = Api::<ReplicaSet>::namespaced(self.cluster.client.clone(), &self.stand_in.namespace);
        let name = self.stand_in.name.as_str();
        let api = |what: &str, error: kube::Error| failure(format!("cannot {what} the ReplicaSet {name}: {error}"), "");
        let found = sets.get_opt(name).await.map_err(|error| api("read", error))?;
        let Some(found) = found else {
            // Its environment is that of whoever came first.
            let age = |it: &Wanted| (it.record.held.since, it.record.held.id.clone());
            let first = live.iter().min_by_key(|it| age(it));
            let first = first.ok_or_else(|| failure("no engagement is left", ""))?;
            let ca = self.ca().await?;
            // It may have been rolled out since this began.
            let (client, stand_in) = (&self.cluster.client, &self.stand_in);
            if let Some(now) = workload::known(client, &stand_in.namespace, &stand_in.workload).await? {
                self.workload = now;
            }
            let none = Container::default();
            let app = App {
                workload: &self.workload,
                container: match self.stand_in.is_via {
                    true => &none,
                    false => container::find(&self.workload, &first.record.held.container, &self.ports)?,
                },
                ports: &self.ports,
                selector: &self.service.as_ref().map(service::selector).unwrap_or_default(),
            };
            let lease = (first.record.held.id.as_str(), first.lease_uid.as_str());
            let object = replica_set(&self.cluster.namespace, &self.stand_in, &app, &self.cluster.agent, &ca, lease);
            let made = sets.create(&PostParams::default(), &object).await.map_err(|error| api("make", error))?;
            self.replica_set = made.uid();
            tracing::info!(stand_in = name, namespace = self.stand_in.namespace, "stand-in made");
            self.owners = BTreeSet::from([first.lease_uid.clone()]);
            return Ok(());
        };
        if found.metadata.deletion_timestamp.is_some() {
            // The one before goes still; the next look makes another.
            return Ok(());
        }
        self.replica_set = found.uid();
        // A quota, a LimitRange or an admission policy keeps the pod out.
        let conditions = found.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        if let Some(refused) = conditions
            .iter()
            .find(|it| it.type_.as_deref() == Some("ReplicaFailure") && it.status.as_deref() == Some("True"))
        {
            let why = refused.message.clone().unwrap_or_default();
            return Err(failure(format!("namespace {} lets no stand-in in: {why}", self.stand_in.namespace), ""));
        }
        let mut owners = found.owner_references().to_vec();
        for wanted in live {
            let lease = (wanted.record.held.id.as_str(), wanted.lease_uid.as_str());
            if let Some(patch) = owning(&owners, lease) {
                let patched =
                    sets.patch(name, &params(), &Patch::Merge(patch)).await.map_err(|error| api("patch", error))?;
                owners = patched.owner_references().to_vec();
            }
        }
        self.owners = owners.into_iter().map(|owner| owner.uid).collect();
        Ok(())
    }

    async fn ca(&self) -> Result<String, Failure> {
        let maps = Api::<ConfigMap>::namespaced(self.cluster.client.clone(), &self.cluster.namespace);
        let map = maps
            .get(CA.0)
            .await
            .map_err(|error| failure(format!("cannot read the ConfigMap {}: {error}", CA.0), ""))?;
        let pem = map.data.and_then(|mut data| data.remove(CA.1));
        pem.ok_or_else(|| {
            failure(
                format!("the ConfigMap {} has no {}", CA.0, CA.1),
                "the manager puts it there; try again in a moment",
            )
        })
    }

    /// Ends engagements. Their Leases go, and the stand-in with the last one, when nothing is sent to it any more.
    async fn end_all(&mut self, over: &[Wanted]) -> Result<(), Failure> {
        for wanted in over {
            let id = &wanted.record.held.id;
            delete(&self.cluster, &self.stand_in, id).await.map_err(|error| lease_failure(id, &error))?;
            self.registry.set_phase(id, Phase::Ended);
            self.over.push(id.clone());
        }
        Ok(())
    }

    async fn free_all(&mut self) -> Result<(), Failure> {
        while let Some(id) = self.over.last() {
            free(&self.cluster, &self.stand_in, id).await.map_err(|error| lease_failure(id, &error))?;
            self.over.pop();
        }
        Ok(())
    }

    /// Lets the stand-in go, once nothing is sent to it any more.
    async fn leave(&mut self) -> Result<bool, Failure> {
        if self.stand_in.takes_traffic() {
            let since = *self.alone_since.get_or_insert_with(Instant::now);
            if since.elapsed() < LINGER {
                return Ok(false);
            }
            // What was seen of the Service may be old, and after this nobody looks.
            let services = Api::<Service>::namespaced(self.cluster.client.clone(), &self.stand_in.namespace);
            let name = &self.stand_in.service;
            let found = services.get_opt(name).await;
            let found = found.map_err(|error| failure(format!("cannot read the Service {name}: {error}"), ""))?;
            self.narrowed_to = Some(found.as_ref().and_then(service::narrowed_to).map(str::to_owned));
            self.narrow(false).await?;
        }
        if !self.stand_in.is_sidecar {
            self.delete_replica_set().await?;
        }
        self.owners.clear();
        self.free_all().await?;
        Ok(self.registry.stop_place(&self.stand_in))
    }

    async fn delete_replica_set(&self) -> Result<(), Failure> {
        let name = &self.stand_in.name;
        let sets = Api::<ReplicaSet>::namespaced(self.cluster.client.clone(), &self.stand_in.namespace);
        let deleted = sets.delete(name, &DeleteParams::background()).await.map(drop).or_else(not_found);
        deleted.map_err(|error| failure(format!("cannot delete the ReplicaSet {name}: {error}"), ""))?;
        tracing::info!(stand_in = name, namespace = self.stand_in.namespace, "stand-in removed");
        Ok(())
    }

    /// Engagements that wait for their traffic are told; for the others it is a problem that may pass.
    fn on_failure(&self, why: &Failure) {
        tracing::warn!(
            stand_in = self.stand_in.name,
            namespace = self.stand_in.namespace,
            why = why.message,
            "stand-in"
        );
        for wanted in self.registry.wanted(&self.stand_in) {
            if wanted.phase == Phase::Pending {
                self.registry.set_phase(&wanted.record.held.id, Phase::Failed(why.clone()));
            }
        }
        self.registry.set_problem(&self.stand_in, &why.message);
    }
}

/// Ends all engagements of a stand-in whose workload or Service is gone.
async fn give_up(cluster: &Cluster, registry: &Registry, stand_in: &StandIn) -> kube::Result<()> {
    let services = Api::<Service>::namespaced(cluster.client.clone(), &stand_in.namespace);
    if stand_in.takes_traffic()
        && services
            .get_opt(&stand_in.service)
            .await?
            .is_some_and(|it| service::narrowed_to(&it) == Some(&stand_in.name))
    {
        services.patch(&stand_in.service, &params(), &Patch::Merge(service::widening())).await?;
    }
    for wanted in registry.wanted(stand_in) {
        let id = wanted.record.held.id.as_str();
        delete(cluster, stand_in, id).await?;
        free(cluster, stand_in, id).await?;
        registry.set_phase(id, Phase::Ended);
    }
    Ok(())
}

fn lease_failure(id: &str, error: &kube::Error) -> Failure {
    failure(format!("cannot delete the Lease {id}: {error}"), "")
}

/// Deletes an engagement's Lease, which its finalizer keeps still.
async fn delete(cluster: &Cluster, stand_in: &StandIn, id: &str) -> kube::Result<()> {
    let leases = Api::<Lease>::namespaced(cluster.client.clone(), &stand_in.namespace);
    leases.delete(id, &DeleteParams::background()).await.map(drop).or_else(not_found)
}

/// Takes the finalizer off a Lease that was deleted.
async fn free(cluster: &Cluster, stand_in: &StandIn, id: &str) -> kube::Result<()> {
    let leases = Api::<Lease>::namespaced(cluster.client.clone(), &stand_in.namespace);
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    leases.patch(id, &params(), &free).await.map(drop).or_else(not_found)
}

fn not_found(error: kube::Error) -> kube::Result<()> {
    match error {
        kube::Error::Api(status) if status.code == 404 => Ok(()),
        other => Err(other),
    }
}

impl PodFacts {
    fn of(pod: &Pod, stand_in: &StandIn, workload: &Workload) -> Self {
        let status = pod.status.as_ref();
        let (has_agent, is_app) = match stand_in.is_sidecar {
            true => {
                let (is_own, has_agent) = (workload.owns(pod), sidecar::has_agent(pod));
                (is_own && has_agent, is_own && !has_agent)
            }
            false => {
                let label = pod.labels().get(STAND_IN);
                (label == Some(&stand_in.name), label.is_none())
            }
        };
        Self {
            has_agent,
            is_app,
            is_ready: if stand_in.is_via { via::is_running(pod) } else { workload::is_ready(pod) },
            is_going: pod.metadata.deletion_timestamp.is_some(),
            replica_set: pod.owner_references().iter().find(|it| it.controller == Some(true)).map(|it| it.uid.clone()),
            address: status.and_then(|status| status.pod_ip.clone()),
            // What keeps the workload's own pods from starting is no business of an engagement's.
            problem: workload::problem(pod).filter(|_| !stand_in.is_sidecar),
        }
    }
}
