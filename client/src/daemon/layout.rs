//! What the network of the containers looks like: which subnets lead into the tunnel, which are seen as others, whose names
//! are whose. Decided when a connection is made, since routes cannot be changed afterwards.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use tp_protocol::control::ClusterInfo;

use crate::attach::{Connect, Failure, VirtualSubnet};
use crate::config::Layer;
use crate::config::value::Domain;
use crate::daemon::address;
use crate::daemon::dns::Zones;
use crate::daemon::init::link::NetworkConfig;
use crate::daemon::nat::subnets::{Kind, Mapped, Surroundings, overlap};
use crate::daemon::nat::{Rules, SubnetMap};

/// The network of one connection.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Layout {
    /// What the init sets up.
    #[prost(message, required, tag = "1")]
    pub(crate) network: NetworkConfig,
    /// Subnets that containers see as others.
    #[prost(message, repeated, tag = "2")]
    pub(crate) virtual_subnets: Vec<VirtualSubnet>,
}

/// What is there before the connection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Before<'a> {
    /// The subnets of the container's own networks.
    pub(crate) container: &'a [IpNet],
    /// Its search list.
    pub(crate) search: &'a [String],
    /// The addresses of the API server: never routed into the tunnel that it carries.
    pub(crate) api_server: &'a [IpAddr],
}

impl Layout {
    /// The network for `cluster`, by `settings`.
    ///
    /// # Errors
    /// When there is no room for the virtual subnets.
    pub(crate) fn plan(
        request: &Connect,
        settings: &Layer,
        cluster: &ClusterInfo,
        before: Before<'_>,
    ) -> Result<Self, Failure> {
        let wanted = wanted(settings, cluster);
        let never: Vec<_> = settings.never_proxy.iter().flatten().map(|subnet| subnet.0).collect();
        let surroundings = Surroundings {
            wanted: wanted.clone(),
            vnat: settings.vnat.clone().unwrap_or_default(),
            container: before.container.iter().copied().chain(address::ranges()).collect(),
            machine: parsed(&request.machine_subnets),
            excluded: never.clone(),
        };
        let mapped = surroundings.map().map_err(|full| Failure {
            message: format!("no virtual subnet is left for {}", full.0),
            hint: "map less: name smaller subnets with --vnat, or `--vnat none`".to_owned(),
            causes: Vec::new(),
        })?;
        let raw = wanted.into_iter().map(|(_, net)| net);
        let raw = raw.filter(|net| !mapped.iter().any(|it| it.map.real.contains(net)));
        let routes = raw.chain(mapped.iter().map(|it| it.map.seen));
        let exclude = before.api_server.iter().map(|ip| IpNet::from(*ip)).chain(never);
        let exclude = exclude.chain(mapped.iter().map(|it| it.map.real));
        // The search list of a pod (Kubernetes, "DNS for Services and Pods"), then the machine's own, as in a pod.
        let (namespace, domain) = (&request.namespace, &cluster.cluster_domain);
        let pod_search = [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
        let network = NetworkConfig {
            addresses: address::TUN.map(str::to_owned).into(),
            routes: routes.map(|net| net.to_string()).collect(),
            exclude: exclude.map(|net| net.to_string()).collect(),
            nameserver: address::RESOLVER.to_string(),
            search: pod_search.into_iter().chain(before.search.iter().cloned()).collect(),
            ndots: 5,
        };
        Ok(Self { network, virtual_subnets: mapped.into_iter().map(to_message).collect() })
    }

    /// The subnets of `cluster` to which no route leads yet, without those that overlap with what is `taken` by others, is
    /// excluded or is seen as something else.
    pub(crate) fn new_subnets(&self, settings: &Layer, cluster: &ClusterInfo, taken: &[IpNet]) -> Vec<IpNet> {
        let routes = parsed(&self.network.routes);
        let others = taken.iter().filter(|net| !routes.contains(net)).copied();
        let others: Vec<_> = others.chain(parsed(&self.network.exclude)).chain(address::ranges()).collect();
        let new = wanted(settings, cluster).into_iter().map(|(_, net)| net);
        let new = new.filter(|net| !routes.iter().any(|route| route.contains(net)));
        new.filter(|net| !others.iter().any(|other| overlap(*net, *other))).collect()
    }

    /// What is translated.
    pub(crate) fn rules(&self) -> Rules {
        let mapped = self.maps();
        let mut rules = Rules { routed: parsed(&self.network.routes), excluded: parsed(&self.network.exclude), mapped };
        rules.routed.retain(|net| !rules.mapped.iter().any(|map| map.seen == *net));
        rules.excluded.retain(|net| !rules.mapped.iter().any(|map| map.real == *net));
        rules
    }

    /// Which names are whose, as the cluster is now. Reverse names of subnets that are seen as others are those of somebody
    /// else: the cluster is asked for the virtual ones.
    pub(crate) fn zones(&self, settings: &Layer, cluster: &ClusterInfo) -> Zones {
        let domains = |list: &Option<Vec<Domain>>| {
            list.iter().flatten().map(|domain| domain.as_str().to_owned()).collect::<Vec<_>>()
        };
        let maps = self.maps();
        let also = settings.also_proxy.iter().flatten().map(|subnet| subnet.0);
        let subnets = parsed(&cluster.service_subnets).into_iter().chain(parsed(&cluster.pod_subnets)).chain(also);
        Zones {
            domain: cluster.cluster_domain.to_lowercase(),
            subnets: subnets.filter(|net| !maps.iter().any(|map| map.real.contains(net))).collect(),
            include: domains(&settings.dns_include),
            exclude: domains(&settings.dns_exclude),
        }
    }

    fn maps(&self) -> Vec<SubnetMap> {
        let map =
            |it: &VirtualSubnet| Some(SubnetMap { real: it.subnet.parse().ok()?, seen: it.seen_as.parse().ok()? });
        self.virtual_subnets.iter().filter_map(map).collect()
    }
}

/// The subnets that are to be routed, each once, without those that never are.
fn wanted(settings: &Layer, cluster: &ClusterInfo) -> Vec<(Kind, IpNet)> {
    let services = parsed(&cluster.service_subnets).into_iter().map(|net| (Kind::Services, net));
    let pods = parsed(&cluster.pod_subnets).into_iter().map(|net| (Kind::Pods, net));
    let also = settings.also_proxy.iter().flatten().map(|subnet| (Kind::Also, subnet.0));
    let never = |net: &IpNet| settings.never_proxy.iter().flatten().any(|subnet| subnet.0 == *net);
    let mut seen = BTreeSet::new();
    services.chain(pods).chain(also).filter(|(_, net)| !never(net) && seen.insert(*net)).collect()
}

fn parsed(subnets: &[String]) -> Vec<IpNet> {
    subnets.iter().filter_map(|subnet| subnet.parse::<IpNet>().ok()).map(|net| net.trunc()).collect()
}

fn to_message(mapped: Mapped) -> VirtualSubnet {
    VirtualSubnet { subnet: mapped.map.real.to_string(), seen_as: mapped.map.seen.to_string(), reason: mapped.reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Connect {
        Connect { namespace: "shop".into(), ..Connect::default() }
    }

    fn settings(json: &str) -> Layer {
        serde_json::from_str(json).unwrap()
    }

    fn cluster() -> ClusterInfo {
        ClusterInfo {
            cluster_domain: "cluster.local".into(),
            service_subnets: vec!["10.96.0.0/16".into()],
            pod_subnets: vec!["10.244.0.0/24".into(), "10.244.1.0/24".into()],
            ..ClusterInfo::default()
        }
    }

    #[test]
    fn network_has_a_pods_search_list_before_the_machines_own() {
        let (search, api_server) = (["corp.example".to_owned()], ["10.0.0.1".parse().unwrap()]);
        let before = Before { search: &search, api_server: &api_server, ..Before::default() };
        let network = Layout::plan(&request(), &Layer::default(), &cluster(), before).unwrap().network;
        assert_eq!(network.search, ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"]);
        assert_eq!(network.routes, ["10.96.0.0/16", "10.244.0.0/24", "10.244.1.0/24"]);
        assert_eq!(network.exclude, ["10.0.0.1/32"]);
    }

    #[test]
    fn subnets_of_the_user_are_routed_and_excluded() {
        let routes = |json: &str| {
            let layout = Layout::plan(&request(), &settings(json), &cluster(), Before::default()).unwrap();
            (layout.network.routes, layout.network.exclude)
        };
        let (routed, excluded) =
            routes(r#"{"also-proxy":["10.9.0.0/16","10.244.0.0/24"],"never-proxy":["10.96.7.0/24"]}"#);
        assert_eq!(routed, ["10.96.0.0/16", "10.244.0.0/24", "10.244.1.0/24", "10.9.0.0/16"]);
        assert_eq!(excluded, ["10.96.7.0/24"]);
        assert_eq!(routes(r#"{"never-proxy":["10.244.0.0/24"]}"#).0, ["10.96.0.0/16", "10.244.1.0/24"]);
    }

    #[test]
    fn overlapping_subnet_is_routed_as_its_virtual_one_and_named_so() {
        let settings = settings(r#"{"never-proxy":["10.244.1.7/32"],"vnat":["10.96.3.0/24"]}"#);
        let request = Connect { machine_subnets: vec!["10.244.1.0/24".into()], ..request() };
        let api_server = ["10.0.0.1".parse().unwrap()];
        let before = Before { api_server: &api_server, ..Before::default() };
        let layout = Layout::plan(&request, &settings, &cluster(), before).unwrap();
        assert_eq!(layout.network.routes, ["10.96.0.0/16", "10.244.0.0/24", "240.0.0.0/24", "240.0.1.0/24"]);
        assert_eq!(layout.network.exclude, ["10.0.0.1/32", "10.244.1.7/32", "10.244.1.0/24", "10.96.3.0/24"]);
        let rules = layout.rules();
        assert_eq!(rules.routed, parsed(&["10.96.0.0/16".into(), "10.244.0.0/24".into()]));
        assert_eq!(rules.excluded, parsed(&["10.0.0.1/32".into(), "10.244.1.7/32".into()]));
        assert_eq!(rules.mapped, layout.maps());
        assert_eq!(layout.zones(&settings, &cluster()).subnets, rules.routed);
    }

    #[test]
    fn new_subnets_are_those_that_nothing_else_has() {
        let settings = settings(r#"{"never-proxy":["10.245.1.7/32"],"vnat":["10.96.3.0/24"]}"#);
        let layout = Layout::plan(&request(), &settings, &cluster(), Before::default()).unwrap();
        let cluster = |pods: &[&str]| ClusterInfo {
            service_subnets: vec!["10.96.0.0/16".into(), "10.96.3.0/25".into()],
            pod_subnets: pods.iter().map(|&subnet| subnet.to_owned()).collect(),
            ..cluster()
        };
        let new = |pods: &[&str], taken: &[&str]| {
            let taken: Vec<IpNet> = taken.iter().map(|net| net.parse().unwrap()).collect();
            let new = layout.new_subnets(&settings, &cluster(pods), &taken);
            new.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let routed = ["10.96.0.0/16", "10.244.0.0/24"];
        assert!(new(&["10.244.0.0/24", "10.244.1.0/25"], &routed).is_empty());
        assert_eq!(new(&["10.244.0.0/24", "10.244.2.0/24"], &routed), ["10.244.2.0/24"]);
        assert_eq!(new(&["10.244.0.0/16"], &routed), ["10.244.0.0/16"], "wider than what is routed already");
        assert!(
            new(&["10.245.1.0/24", "198.18.3.0/24"], &routed).is_empty(),
            "holds an excluded address; is the TUN's"
        );
        assert!(new(&["10.9.0.0/16"], &["10.9.1.0/24"]).is_empty(), "a network of this machine");
    }

    #[test]
    fn subnet_in_the_range_of_the_tun_is_seen_elsewhere() {
        let cluster = ClusterInfo { pod_subnets: vec!["198.18.4.0/24".into()], ..ClusterInfo::default() };
        let layout = Layout::plan(&request(), &Layer::default(), &cluster, Before::default()).unwrap();
        assert_eq!(layout.network.routes, ["240.0.0.0/24"]);
    }
}
