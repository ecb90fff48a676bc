//! What the manager knows about the cluster: its subnets, DNS domain and node addresses, kept up to date.
//!
//! [`Facts`] is the pure part: sources tell it what they saw, and it says what clients and the dial policy are to know.
//! [`watch`] runs the sources. What an administrator configured replaces the source.
//!
//! | fact | sources, first that answers |
//! |---|---|
//! | Service subnets | configuration; ServiceCIDR API; the API server's refusal of an address outside ([`probe`]) |
//! | pod subnets | configuration; `podCIDRs` of the nodes; the blocks around observed pod addresses |
//! | cluster domain | configuration; search list of the pod's resolv.conf; `cluster.local` |
//! | cluster DNS | nameserver of the pod's resolv.conf |

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use tp_protocol::control::ClusterInfo;

use crate::config::{self, Config, Pod};
use crate::policy::{Nodes, Own, Policy};
use crate::subnet::{SUBNETS_MAX, cover};

pub(crate) mod gateways;
mod probe;
pub(crate) mod resolv;
mod views;
pub(crate) mod watch;

use resolv::ResolvConf;

/// Domain of a cluster that was made without another one.
const DEFAULT_DOMAIN: &str = "cluster.local";

/// Ports of the manager: what its own pod and Service refuse to be dialled on.
pub(crate) const OWN_PORTS: [u16; 4] = [crate::CLIENT_PORT, crate::AGENT_PORT, crate::WEBHOOK_PORT, crate::HEALTH_PORT];

/// What the nodes tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeFacts {
    /// Addresses of all nodes.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// Pod subnets assigned to nodes; empty when the network plugin does not use them.
    pub(crate) pod_subnets: BTreeSet<IpNet>,
}

/// All that is known at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    client_settings_json: String,
    settings: config::Cluster,
    resolv: ResolvConf,
    policy: Policy,
    /// The node under the manager: known before the nodes are.
    own_node: BTreeSet<IpAddr>,
    nodes: Option<NodeFacts>,
    service_subnets: Option<BTreeSet<IpNet>>,
    observed_pods: Option<BTreeSet<IpNet>>,
}

impl Facts {
    /// Starts with what needs no question. `gateways` are the next hops of the pod's own routes, which are its node's.
    pub(crate) fn new(
        config: &Config,
        pod: &Pod,
        resolv: ResolvConf,
        gateways: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        let own_node: BTreeSet<IpAddr> = pod.node.into_iter().chain(gateways).collect();
        let settings = config.cluster.clone();
        let mut facts = Self {
            client_settings_json: config.client.clone(),
            service_subnets: configured(&settings.service_subnets),
            observed_pods: None,
            settings,
            resolv,
            policy: Policy {
                deny: config.dial_policy.deny.clone(),
                allow: config.dial_policy.allow.clone(),
                own: Own { addresses: pod.addresses.clone(), ports: OWN_PORTS.into() },
                ..Policy::default()
            },
            own_node,
            nodes: None,
        };
        facts.update_policy_nodes();
        facts
    }

    /// Takes what the nodes tell.
    pub(crate) fn on_nodes(&mut self, nodes: NodeFacts) {
        self.nodes = Some(nodes);
        self.update_policy_nodes();
    }

    /// Takes the Service subnets, unless they are configured.
    pub(crate) fn on_service_subnets(&mut self, subnets: BTreeSet<IpNet>) {
        if self.settings.service_subnets.is_empty() && !subnets.is_empty() {
            self.service_subnets = Some(subnets);
        }
    }

    /// Takes the blocks around all pod addresses that were seen.
    pub(crate) fn on_observed_pods(&mut self, blocks: BTreeSet<IpNet>) {
        self.observed_pods = Some(blocks);
    }

    /// Takes the addresses of the manager's own Service.
    pub(crate) fn on_own_service(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.policy.own.addresses.extend(addresses);
    }

    /// Returns the dial policy.
    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Whether Service subnets have to be found out.
    pub(crate) fn needs_service_subnets(&self) -> bool {
        self.settings.service_subnets.is_empty()
    }

    /// Whether pods have to be observed, since nothing else tells where they are.
    pub(crate) fn needs_observed_pods(&self) -> bool {
        self.settings.pod_subnets.is_empty() && self.nodes.as_ref().is_some_and(|nodes| nodes.pod_subnets.is_empty())
    }

    /// Returns what clients are told; `None` while something is missing.
    pub(crate) fn info(&self) -> Option<ClusterInfo> {
        if self.missing().is_some() {
            return None;
        }
        Some(ClusterInfo {
            service_subnets: strings(self.service_subnets.iter().flatten().copied()),
            pod_subnets: strings(self.pod_subnets()?),
            cluster_domain: self.domain().to_owned(),
            dns_address: self.resolv.nameservers.first().map(ToString::to_string).unwrap_or_default(),
            client_settings_json: self.client_settings_json.clone(),
        })
    }

    /// Names the first thing that is not known yet.
    pub(crate) fn missing(&self) -> Option<&'static str> {
        if self.nodes.is_none() {
            // The dial policy needs them, whatever is configured.
            return Some("node addresses");
        }
        if self.service_subnets.is_none() {
            return Some("service subnets (cluster.serviceSubnets in the chart sets them)");
        }
        if self.pod_subnets().is_none() {
            return Some("pod subnets (cluster.podSubnets in the chart sets them)");
        }
        None
    }

    /// Returns the cluster's DNS domain.
    pub(crate) fn domain(&self) -> &str {
        match self.settings.domain.trim_matches('.') {
            "" => self.resolv.cluster_domain().unwrap_or(DEFAULT_DOMAIN),
            configured => configured,
        }
    }

    fn pod_subnets(&self) -> Option<BTreeSet<IpNet>> {
        configured(&self.settings.pod_subnets)
            .or_else(|| self.nodes.as_ref().map(|nodes| nodes.pod_subnets.clone()).filter(|nets| !nets.is_empty()))
            .or_else(|| self.observed_pods.clone())
    }

    fn update_policy_nodes(&mut self) {
        let mut nodes = Nodes { addresses: self.own_node.clone(), gateways: BTreeSet::new() };
        if let Some(facts) = &self.nodes {
            nodes.addresses.extend(&facts.addresses);
            // Where a node has a bridge for its pods, its address there is the first, or the subnet's own (flannel).
            nodes.gateways.extend(facts.pod_subnets.iter().map(IpNet::network));
            nodes.gateways.extend(facts.pod_subnets.iter().filter_map(first_host));
        }
        self.policy.nodes = nodes;
    }
}

/// Returns the first address behind the subnet's own.
fn first_host(net: &IpNet) -> Option<IpAddr> {
    // Of IPv6, `hosts` yields the subnet's own address too: it is the routers' (RFC 4291 section 2.6.1).
    net.hosts().find(|&ip| ip != net.network())
}

/// Returns configured subnets; `None` when there are none.
fn configured(subnets: &[IpNet]) -> Option<BTreeSet<IpNet>> {
    (!subnets.is_empty()).then(|| subnets.iter().map(IpNet::trunc).collect())
}

/// Returns the few subnets that clients are told, as text.
fn strings(subnets: impl IntoIterator<Item = IpNet>) -> Vec<String> {
    cover(subnets, SUBNETS_MAX).iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(list: &[&str]) -> BTreeSet<IpNet> {
        list.iter().map(|net| net.parse().unwrap()).collect()
    }

    fn ips(list: &[&str]) -> BTreeSet<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    fn nodes(subnets: &[&str]) -> NodeFacts {
        NodeFacts { addresses: ips(&["172.18.0.2"]), pod_subnets: nets(subnets) }
    }

    fn facts(settings: config::Cluster) -> Facts {
        let config = Config { cluster: settings, ..Config::default() };
        let pod = Pod {
            name: "tp-manager-0".to_owned(),
            namespace: "tp-system".to_owned(),
            addresses: ips(&["10.244.0.9"]),
            node: Some("172.18.0.9".parse().unwrap()),
        };
        let resolv = ResolvConf::parse("search tp-system.svc.corp.local svc.corp.local\nnameserver 10.96.0.10\n");
        Facts::new(&config, &pod, resolv, ips(&["10.244.0.1"]))
    }

    #[test]
    fn clients_are_told_nothing_before_everything_is_known() {
        let mut facts = facts(config::Cluster::default());
        assert_eq!(facts.missing(), Some("node addresses"));
        facts.on_nodes(nodes(&["10.244.0.0/24"]));
        assert!(facts.missing().unwrap().starts_with("service subnets"));
        facts.on_service_subnets(nets(&["10.96.0.0/16"]));
        assert_eq!(
            facts.info(),
            Some(ClusterInfo {
                service_subnets: vec!["10.96.0.0/16".to_owned()],
                pod_subnets: vec!["10.244.0.0/24".to_owned()],
                cluster_domain: "corp.local".to_owned(),
                dns_address: "10.96.0.10".to_owned(),
                client_settings_json: String::new(),
            })
        );
    }

    #[test]
    fn pods_are_observed_only_when_nodes_carry_no_subnet() {
        let mut facts = facts(config::Cluster::default());
        facts.on_service_subnets(nets(&["10.96.0.0/16"]));
        assert!(!facts.needs_observed_pods());
        facts.on_nodes(nodes(&["10.244.0.0/24"]));
        assert!(!facts.needs_observed_pods());
        facts.on_nodes(nodes(&[]));
        assert!(facts.needs_observed_pods());
        assert_eq!(facts.info(), None);
        facts.on_observed_pods(nets(&["192.168.5.0/24", "192.168.4.0/24"]));
        assert_eq!(facts.info().unwrap().pod_subnets, ["192.168.4.0/23"]);
    }

    #[test]
    fn configured_values_replace_the_sources() {
        let mut facts = facts(config::Cluster {
            domain: ".other.local.".to_owned(),
            service_subnets: vec!["10.0.0.0/20".parse().unwrap()],
            pod_subnets: vec!["10.8.0.0/14".parse().unwrap()],
        });
        assert!(!facts.needs_service_subnets());
        facts.on_nodes(nodes(&["10.244.0.0/24"]));
        facts.on_service_subnets(nets(&["10.96.0.0/16"]));
        let info = facts.info().unwrap();
        assert_eq!((info.service_subnets, info.pod_subnets), (vec!["10.0.0.0/20".into()], vec!["10.8.0.0/14".into()]));
        assert_eq!(info.cluster_domain, "other.local");
    }

    #[test]
    fn the_policy_knows_the_own_node_before_the_others() {
        let mut facts = facts(config::Cluster::default());
        let denied = |facts: &Facts, dst: &str| facts.policy().check(dst.parse().unwrap()).is_err();
        assert!(denied(&facts, "172.18.0.9:22") && denied(&facts, "10.244.0.1:22"));
        assert!(!denied(&facts, "172.18.0.2:22"));
        facts.on_nodes(nodes(&["10.244.1.0/24"]));
        assert!(denied(&facts, "172.18.0.2:22") && denied(&facts, "172.18.0.9:22"));
        assert!(denied(&facts, "10.244.1.1:10250") && denied(&facts, "10.244.1.0:10250"));
        assert!(!denied(&facts, "10.244.1.1:8080") && !denied(&facts, "10.244.1.2:10250"));
    }

    #[test]
    fn a_nodes_bridge_is_refused_on_kubelet_ports_in_both_families() {
        let mut facts = facts(config::Cluster::default());
        facts.on_nodes(nodes(&["10.244.1.0/24", "fd00:10:244:1::/64"]));
        let denied = |dst: &str| facts.policy().check(dst.parse().unwrap()).is_err();
        for bridge in ["10.244.1.0", "10.244.1.1", "[fd00:10:244:1::]", "[fd00:10:244:1::1]"] {
            assert!(denied(&format!("{bridge}:10250")) && !denied(&format!("{bridge}:8080")), "{bridge}");
        }
        assert!(!denied("[fd00:10:244:1::2]:10250"));
    }

    #[test]
    fn the_own_service_is_refused_once_it_is_known() {
        let mut facts = facts(config::Cluster::default());
        facts.on_own_service(ips(&["10.96.5.5"]));
        assert!(facts.policy().check("10.96.5.5:7443".parse().unwrap()).is_err());
        assert!(facts.policy().check("10.244.0.9:7480".parse().unwrap()).is_err());
    }
}
