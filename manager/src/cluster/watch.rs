//! Runs the sources of [`Facts`]: watches on nodes, ServiceCIDRs and, where needed, pods.
//!
//! Every source is a task that sends what it saw; this loop alone owns the facts and publishes what follows from them.
//! Sources retry for ever with jittered backoff (0.8 to 30 s), so missing rights heal once they are granted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::ListParams;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tp_protocol::control::ClusterInfo;

use super::views::{NodeView, PodView};
use super::{Facts, NodeFacts, probe};
use crate::policy::Policy;
use crate::subnet::{around, cover};
use crate::{MANAGER, log_end};

/// Updates that may wait for the loop: one per source is the most that is worth keeping.
const UPDATES_QUEUE: usize = 8;

/// Wait before a question that was not answered is asked again.
const RETRY: Duration = Duration::from_secs(10);

/// Blocks around observed pods that are kept apart; more are covered by fewer.
const OBSERVED_BLOCKS_MAX: usize = 1_024;

/// Objects per page of a list.
const PAGE: u32 = 100;

/// What a source saw.
enum Update {
    Nodes(NodeFacts),
    ServiceSubnets(BTreeSet<IpNet>),
    ObservedPods(BTreeSet<IpNet>),
    OwnService(Vec<IpAddr>),
}

/// Where the results go.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    /// What clients are told, or what is missing.
    pub(crate) info: watch::Sender<Result<Arc<ClusterInfo>, &'static str>>,
    /// What may be dialled.
    pub(crate) policy: watch::Sender<Arc<Policy>>,
}

impl Published {
    /// Publishes what `facts` say before any source was asked.
    pub(crate) fn new(facts: &Facts) -> Self {
        Self {
            info: watch::Sender::new(Err(facts.missing().unwrap_or_default())),
            policy: watch::Sender::new(Arc::new(facts.policy().clone())),
        }
    }

    fn publish(&self, facts: &Facts) {
        self.policy.send_replace(Arc::new(facts.policy().clone()));
        let info = facts.info().map(Arc::new).ok_or_else(|| facts.missing().unwrap_or_default());
        self.info.send_if_modified(|current| {
            let changed = *current != info;
            if changed {
                match &info {
                    Ok(info) => tracing::info!(
                        services = ?info.service_subnets,
                        pods = ?info.pod_subnets,
                        domain = info.cluster_domain,
                        dns = info.dns_address,
                        "cluster known"
                    ),
                    Err(missing) => tracing::info!(missing, "cluster not known yet"),
                }
                *current = info;
            }
            changed
        });
    }
}

/// Keeps `published` up to date, until it is dropped or a source has panicked: then what is known could be stale.
pub(crate) async fn run(client: Client, namespace: String, mut facts: Facts, published: Published) {
    let (update_tx, mut update_rx) = mpsc::channel(UPDATES_QUEUE);
    let mut sources = JoinSet::new();
    sources.spawn(nodes(client.clone(), update_tx.clone()));
    sources.spawn(own_service(client.clone(), namespace.clone(), update_tx.clone()));
    if facts.needs_service_subnets() {
        sources.spawn(service_subnets(client.clone(), namespace, update_tx.clone()));
    }
    let mut observing = false;
    loop {
        tokio::select! {
            Some(update) = update_rx.recv() => match update {
                Update::Nodes(nodes) => facts.on_nodes(nodes),
                Update::ServiceSubnets(subnets) => facts.on_service_subnets(subnets),
                Update::ObservedPods(blocks) => facts.on_observed_pods(blocks),
                Update::OwnService(addresses) => facts.on_own_service(addresses),
            },
            Some(ended) = sources.join_next() => {
                let panicked = ended.is_err();
                log_end("cluster source", ended);
                if panicked {
                    return;
                }
            }
        }
        if facts.needs_observed_pods() && !observing {
            observing = true;
            tracing::info!("nodes carry no pod subnets: observing pod addresses");
            sources.spawn(observed_pods(client.clone(), update_tx.clone()));
        }
        published.publish(&facts);
    }
}

/// Watches the nodes.
async fn nodes(client: Client, update_tx: mpsc::Sender<Update>) {
    let mut by_name = BTreeMap::new();
    let mut last = None;
    let mut events = events(Api::<NodeView>::all(client), "nodes");
    while let Some(event) = events.next().await {
        match &event {
            Event::Init => by_name.clear(),
            Event::InitApply(node) | Event::Apply(node) => _ = by_name.insert(node.name_any(), one_node(node)),
            Event::Delete(node) => _ = by_name.remove(&node.name_any()),
            Event::InitDone => {}
        }
        if is_whole(&event) {
            let mut all = NodeFacts::default();
            for node in by_name.values() {
                all.addresses.extend(&node.addresses);
                all.pod_subnets.extend(&node.pod_subnets);
            }
            send_changed(&update_tx, &mut last, all, Update::Nodes).await;
        }
    }
}

fn one_node(node: &NodeView) -> NodeFacts {
    NodeFacts { addresses: node.addresses().collect(), pod_subnets: node.pod_subnets().collect() }
}

/// Watches the ServiceCIDRs; where the API server has none, or hides them, asks it another way.
async fn service_subnets(client: Client, namespace: String, update_tx: mpsc::Sender<Update>) {
    let api = Api::<ServiceCIDR>::all(client.clone());
    loop {
        match api.list(&ListParams::default().limit(1)).await {
            Ok(_) => break watch_service_cidrs(api, update_tx).await,
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => {
                tracing::debug!(reason = status.message, "no ServiceCIDR API: probing");
                match probe::service_subnets(&client, &namespace).await {
                    Ok(subnets) if subnets.is_empty() => {
                        tracing::warn!("the API server does not tell its service subnets: set cluster.serviceSubnets");
                    }
                    Ok(subnets) => {
                        _ = update_tx.send(Update::ServiceSubnets(subnets.into_iter().collect())).await;
                        // Without the API the range is a flag of the API server.
                        break;
                    }
                    Err(error) => tracing::warn!(%error, "cannot probe for the service subnets"),
                }
            }
            Err(error) => tracing::warn!(%error, "cannot list ServiceCIDRs"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn watch_service_cidrs(api: Api<ServiceCIDR>, update_tx: mpsc::Sender<Update>) {
    let mut by_name: BTreeMap<String, Vec<IpNet>> = BTreeMap::new();
    let mut last = None;
    let mut events = events(api, "ServiceCIDRs");
    while let Some(event) = events.next().await {
        match &event {
            Event::Init => by_name.clear(),
            Event::InitApply(cidr) | Event::Apply(cidr) => {
                let nets = cidr.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
                by_name.insert(cidr.name_any(), nets.filter_map(|net| net.parse().ok()).collect());
            }
            Event::Delete(cidr) => _ = by_name.remove(&cidr.name_any()),
            Event::InitDone => {}
        }
        if is_whole(&event) {
            let all: BTreeSet<IpNet> = by_name.values().flatten().copied().collect();
            send_changed(&update_tx, &mut last, all, Update::ServiceSubnets).await;
        }
    }
}

/// Watches the pods. Only the blocks around their addresses are kept, and kept for good: a block that had pods will
/// have pods again, and clients cannot follow every change.
async fn observed_pods(client: Client, update_tx: mpsc::Sender<Update>) {
    let mut blocks = BTreeSet::new();
    let mut last = None;
    let mut events = events(Api::<PodView>::all(client), "pods");
    while let Some(event) = events.next().await {
        if let Event::InitApply(pod) | Event::Apply(pod) = &event {
            blocks.extend(pod.addresses().map(around));
            if blocks.len() > OBSERVED_BLOCKS_MAX {
                blocks = cover(blocks, OBSERVED_BLOCKS_MAX / 4).into_iter().collect();
            }
        }
        if is_whole(&event) {
            send_changed(&update_tx, &mut last, blocks.clone(), Update::ObservedPods).await;
        }
    }
}

/// Looks the addresses of the manager's own Service up. They do not change while the Service exists.
async fn own_service(client: Client, namespace: String, update_tx: mpsc::Sender<Update>) {
    let api = Api::<Service>::namespaced(client, &namespace);
    loop {
        match api.get_opt(MANAGER).await {
            Ok(service) => {
                let ips =
                    service.and_then(|service| service.spec).and_then(|spec| spec.cluster_ips).unwrap_or_default();
                let addresses = ips.iter().filter_map(|ip| ip.parse().ok()).collect();
                _ = update_tx.send(Update::OwnService(addresses)).await;
                break;
            }
            Err(error) => tracing::warn!(%error, "cannot read the Service {MANAGER}"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Returns the events of all objects of a kind. Errors are logged and retried with backoff.
fn events<K>(api: Api<K>, what: &'static str) -> impl Stream<Item = Event<K>> + Send + Unpin
where
    K: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    // Reads from the API server's cache: a watch follows anyway, and etcd is spared.
    let config = watcher::Config::default().any_semantic().page_size(PAGE);
    watcher(api, config)
        .default_backoff()
        .filter_map(move |event| {
            let event = event.inspect_err(|error| tracing::warn!(%error, "watching {what}"));
            std::future::ready(event.ok())
        })
        .boxed()
}

/// Whether all objects are known behind this event: not between the start and the end of a list.
fn is_whole<K>(event: &Event<K>) -> bool {
    !matches!(event, Event::Init | Event::InitApply(_))
}

/// Sends `value` if it is another than the last.
async fn send_changed<T: Clone + PartialEq>(
    update_tx: &mpsc::Sender<Update>,
    last: &mut Option<T>,
    value: T,
    update: fn(T) -> Update,
) {
    if last.as_ref() != Some(&value) {
        *last = Some(value.clone());
        _ = update_tx.send(update(value)).await;
    }
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode};
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::resolv::ResolvConf;
    use crate::config::{Config, Pod};
    use crate::fake_api::{FakeApi, status};

    const NODES: &str = "/api/v1/nodes";
    const PODS: &str = "/api/v1/pods";
    const SERVICE_CIDRS: &str = "/apis/networking.k8s.io/v1/servicecidrs";
    const SERVICES: &str = "/api/v1/namespaces/tp-system/services";

    fn list(kind: &str, items: &[Value]) -> Value {
        json!({"kind": format!("{kind}List"), "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items})
    }

    fn node(pod_subnets: &[&str]) -> Value {
        json!({
            "metadata": {"name": "node1"},
            "spec": {"podCIDRs": pod_subnets},
            "status": {"addresses": [{"type": "InternalIP", "address": "172.18.0.2"}]},
        })
    }

    /// A cluster of one node, as the sources find it.
    fn api(pod_subnets: &[&str]) -> FakeApi {
        let api = FakeApi::default();
        api.put(NODES, list("Node", &[node(pod_subnets)]));
        let cidr = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16", "fd00:96::/112"]}});
        api.put(SERVICE_CIDRS, list("ServiceCIDR", &[cidr]));
        api.put(
            &format!("{SERVICES}/tp-manager"),
            json!({"metadata": {"name": "tp-manager"}, "spec": {"clusterIPs": ["10.96.5.5"]}}),
        );
        api
    }

    /// Runs the sources until clients can be told something.
    async fn known(api: &FakeApi) -> (Arc<ClusterInfo>, Arc<Policy>) {
        let pod = Pod {
            name: "tp-manager-0".into(),
            namespace: "tp-system".into(),
            addresses: ["10.244.0.9".parse().unwrap()].into(),
            node: None,
        };
        let facts = Facts::new(&Config::default(), &pod, ResolvConf::parse("nameserver 10.96.0.10"), []);
        let published = Published::new(&facts);
        let (mut info, mut policy) = (published.info.subscribe(), published.policy.subscribe());
        let sources = run(api.client(), "tp-system".into(), facts, published);
        let own_service = "10.96.5.5".parse().unwrap();
        let wait = async {
            policy.wait_for(|policy| policy.own.addresses.contains(&own_service)).await.unwrap();
            info.wait_for(Result::is_ok).await.unwrap().clone().unwrap()
        };
        tokio::select! {
            () = sources => panic!("a source panicked"),
            info = wait => (info, policy.borrow().clone()),
            () = tokio::time::sleep(Duration::from_secs(3_600)) => panic!("the cluster stays unknown"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_and_service_cidrs_make_the_cluster_known() {
        let api = api(&["10.244.0.0/24"]);
        let (info, policy) = known(&api).await;
        assert_eq!(info.service_subnets, ["10.96.0.0/16", "fd00:96::/112"]);
        assert_eq!(info.pod_subnets, ["10.244.0.0/24"]);
        assert!(policy.check("172.18.0.2:22".parse().unwrap()).is_err());
        assert!(policy.check("10.96.5.5:7443".parse().unwrap()).is_err());
        assert_eq!(api.count(&format!("GET {PODS}")), 0, "pods are not looked at without need");
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_without_service_cidrs_is_probed() {
        let api = api(&["10.244.0.0/24"]);
        api.remove(SERVICE_CIDRS);
        let refusal = status(StatusCode::UNPROCESSABLE_ENTITY, "The range of valid IPs is 10.97.0.0/16");
        api.script(Method::POST, SERVICES, StatusCode::UNPROCESSABLE_ENTITY, refusal);
        assert_eq!(known(&api).await.0.service_subnets, ["10.97.0.0/16"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_right_that_comes_late_heals() {
        let api = api(&["10.244.0.0/24"]);
        api.script(Method::GET, NODES, StatusCode::FORBIDDEN, status(StatusCode::FORBIDDEN, "nodes is forbidden"));
        let grant = async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert!(api.count(&format!("GET {NODES}")) > 2);
            api.script(Method::GET, NODES, StatusCode::OK, list("Node", &[node(&["10.244.0.0/24"])]));
        };
        let ((info, _), ()) = tokio::join!(known(&api), grant);
        assert_eq!(info.pod_subnets, ["10.244.0.0/24"]);
    }

    #[tokio::test(start_paused = true)]
    async fn pods_are_observed_where_nodes_carry_no_subnets() {
        let api = api(&[]);
        let pod = |name: &str, ip: &str, host_network: bool| json!({"metadata": {"name": name}, "spec": {"hostNetwork": host_network}, "status": {"podIPs": [{"ip": ip}]}});
        let pods = [
            pod("web-1", "192.168.7.9", false),
            pod("web-2", "192.168.7.11", false),
            pod("kube-proxy", "172.18.0.2", true),
        ];
        api.put(PODS, list("Pod", &pods));
        assert_eq!(known(&api).await.0.pod_subnets, ["192.168.7.0/24"]);
    }
}
