//! Asks the API server for the service subnets where it has no ServiceCIDR API (before Kubernetes 1.33).
//!
//! A Service with an address outside the range is refused with a message that names the range. The request is a dry
//! run, so that nothing is created even if the address happens to be inside.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, Error};

/// Addresses that no service subnet contains: documentation ranges (RFC 5737, RFC 3849).
const OUTSIDE: [(&str, &str); 2] = [("IPv4", "192.0.2.1"), ("IPv6", "2001:db8::1")];

/// Name of the Service that is never made.
const NAME: &str = "tp-manager-subnet-probe";

/// Returns the service subnets of both families; empty when the API server did not name one.
///
/// # Errors
/// [`Error`] when the API server cannot be asked.
pub(super) async fn service_subnets(client: &Client, namespace: &str) -> Result<Vec<IpNet>, Error> {
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let mut subnets = Vec::new();
    for (family, address) in OUTSIDE {
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        match services.create(&dry_run, &service(family, address)).await {
            Ok(_) => tracing::warn!(address, "the API server accepts a Service address of a documentation range"),
            Err(Error::Api(status)) if status.code == 422 => subnets.extend(range_in(&status.message)),
            Err(error) => return Err(error),
        }
    }
    Ok(subnets)
}

/// Builds the Service that is to be refused.
fn service(family: &str, address: &str) -> Service {
    Service {
        metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
        spec: Some(ServiceSpec {
            cluster_ip: Some(address.to_owned()),
            ip_families: Some(vec![family.to_owned()]),
            ports: Some(vec![ServicePort { port: 443, ..ServicePort::default() }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// Finds the range in the API server's refusal.
fn range_in(message: &str) -> Option<IpNet> {
    let (_, behind) = message.split_once("range of valid IPs is ")?;
    let text = behind.split([' ', ',', '"']).next()?;
    let net: IpNet = text.trim_end_matches('.').parse().ok()?;
    // A family that the cluster does not have is refused with other words, or with an empty range.
    (net.prefix_len() > 0 && net.addr() != IpAddr::from([0, 0, 0, 0])).then(|| net.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_is_found_in_the_refusal() {
        // Kubernetes 1.24 to 1.32 (pkg/registry/core/service/ipallocator).
        let message = "Service \"tp-manager-subnet-probe\" is invalid: spec.clusterIPs: Invalid value: \
            []string{\"192.0.2.1\"}: failed to allocate IP 192.0.2.1: the provided IP (192.0.2.1) is not in the valid \
            range. The range of valid IPs is 10.96.0.0/12";
        assert_eq!(range_in(message), Some("10.96.0.0/12".parse().unwrap()));
        assert_eq!(range_in("The range of valid IPs is fd00:10:96::/112"), Some("fd00:10:96::/112".parse().unwrap()));
    }

    #[test]
    fn other_refusals_name_no_range() {
        for message in [
            "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
            "The range of valid IPs is unknown",
            "The range of valid IPs is 0.0.0.0/0",
            "",
        ] {
            assert_eq!(range_in(message), None, "{message}");
        }
    }

    #[test]
    fn the_probe_asks_outside_of_every_range() {
        let spec = service("IPv6", "2001:db8::1").spec.unwrap();
        assert_eq!(spec.cluster_ip.as_deref(), Some("2001:db8::1"));
        assert_eq!(spec.ip_families, Some(vec!["IPv6".to_owned()]));
    }
}
