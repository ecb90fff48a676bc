//! The few fields of nodes and pods that are read: everything else of them is skipped while it is decoded.
//!
//! A pod is several KiB, and clusters have thousands; these types keep that out of the manager's memory.

use std::borrow::Cow;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ClusterResourceScope, NamespaceResourceScope};
use serde::Deserialize;

/// A Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NodeView {
    metadata: ObjectMeta,
    spec: NodeSpec,
    status: NodeStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: String,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    addresses: Vec<NodeAddress>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct NodeAddress {
    address: String,
}

impl NodeView {
    /// Returns the addresses, whatever their type. Host names are skipped.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.status.addresses.iter().filter_map(|entry| entry.address.parse::<IpAddr>().ok())
    }

    /// Returns the subnets assigned to the node's pods.
    pub(super) fn pod_subnets(&self) -> impl Iterator<Item = IpNet> {
        self.spec.pod_cidrs.iter().chain([&self.spec.pod_cidr]).filter_map(|net| net.parse::<IpNet>().ok())
    }
}

/// A Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PodView {
    metadata: ObjectMeta,
    spec: PodSpec,
    status: PodStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    host_network: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct PodStatus {
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct PodIp {
    ip: String,
}

impl PodView {
    /// Returns the pod's addresses on the pod network; none for a pod on its node's network.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let ips = if self.spec.host_network { &[][..] } else { &self.status.pod_ips[..] };
        ips.iter().filter_map(|entry| entry.ip.parse::<IpAddr>().ok())
    }
}

/// Implements [`kube::Resource`] for a view of a resource of the core group.
macro_rules! core_resource {
    ($view:ty, $kind:literal, $plural:literal, $scope:ty) => {
        impl kube::Resource for $view {
            type DynamicType = ();
            type Scope = $scope;

            fn kind((): &()) -> Cow<'_, str> {
                $kind.into()
            }

            fn group((): &()) -> Cow<'_, str> {
                "".into()
            }

            fn version((): &()) -> Cow<'_, str> {
                "v1".into()
            }

            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

core_resource!(NodeView, "Node", "nodes", ClusterResourceScope);
core_resource!(PodView, "Pod", "pods", NamespaceResourceScope);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_tells_addresses_and_subnets() {
        let node: NodeView = serde_json::from_value(json!({
            "metadata": {"name": "node1"},
            "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24", "fd00::/64"], "taints": []},
            "status": {"addresses": [{"type": "InternalIP", "address": "172.18.0.2"}, {"type": "Hostname", "address": "node1"}]},
        }))
        .unwrap();
        assert_eq!(node.addresses().collect::<Vec<_>>(), ["172.18.0.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(node.pod_subnets().map(|net| net.to_string()).collect::<Vec<_>>()[1], "fd00::/64");
    }

    #[test]
    fn a_pod_on_its_nodes_network_has_no_pod_address() {
        let pod = |host: bool| -> PodView {
            serde_json::from_value(json!({
                "metadata": {"name": "web-0"},
                "spec": {"hostNetwork": host, "containers": [{"name": "web"}]},
                "status": {"phase": "Running", "podIPs": [{"ip": "10.244.0.7"}, {"ip": "fd00::7"}]},
            }))
            .unwrap()
        };
        assert_eq!((pod(false).addresses().count(), pod(true).addresses().count()), (2, 0));
    }

    #[test]
    fn objects_without_spec_and_status_are_read() {
        let node: NodeView = serde_json::from_value(json!({"metadata": {"name": "new"}})).unwrap();
        assert_eq!((node.addresses().count(), node.pod_subnets().count()), (0, 0));
    }
}
