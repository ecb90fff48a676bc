//! Which resolver is responsible for a name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Who answers a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// The cluster's DNS, through the tunnel.
    Cluster,
    /// Docker's DNS, for names of containers on the same network.
    Neighbours,
    /// Whoever answered the container before.
    Upstream,
}

/// The names and addresses that belong to the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Zones {
    /// Cluster domain, lower-case, without dots at its ends.
    pub(crate) domain: String,
    /// Service and pod subnets, for reverse look-ups.
    pub(crate) subnets: Vec<IpNet>,
}

impl Zones {
    /// Decides for `name`, lower-case, with or without its final dot.
    pub(crate) fn route(&self, name: &str) -> Route {
        let name = name.strip_suffix('.').unwrap_or(name);
        if !self.domain.is_empty() && is_under(name, &self.domain) {
            return Route::Cluster;
        }
        if let Some(ip) = reverse_address(name) {
            return if self.subnets.iter().any(|net| net.contains(&ip)) { Route::Cluster } else { Route::Upstream };
        }
        if is_single_label(name) { Route::Neighbours } else { Route::Upstream }
    }
}

/// Whether `name` has no dot and is not the root.
fn is_single_label(name: &str) -> bool {
    !name.is_empty() && !name.contains('.')
}

fn is_under(name: &str, zone: &str) -> bool {
    name.strip_suffix(zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The address that a reverse name asks about (RFC 1035 section 3.5, RFC 3596 section 2.5).
fn reverse_address(name: &str) -> Option<IpAddr> {
    if let Some(labels) = name.strip_suffix(".in-addr.arpa") {
        let octets: Vec<u8> = labels.rsplit('.').map(str::parse).collect::<Result<_, _>>().ok()?;
        return Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?).into());
    }
    let labels = name.strip_suffix(".ip6.arpa")?;
    let nibbles: Vec<u128> =
        labels.rsplit('.').map(|l| u128::from_str_radix(l, 16).ok().filter(|_| l.len() == 1)).collect::<Option<_>>()?;
    (nibbles.len() == 32)
        .then(|| Ipv6Addr::from(nibbles.iter().fold(0, |address, nibble| address << 4 | nibble)).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zones() -> Zones {
        let subnets = ["10.96.0.0/16", "fd00:10::/64"].map(|net| net.parse().unwrap()).into();
        Zones { domain: "cluster.local".into(), subnets }
    }

    #[test]
    fn names_go_to_whoever_is_responsible() {
        for (name, route) in [
            ("web.default.svc.cluster.local.", Route::Cluster),
            ("cluster.local", Route::Cluster),
            ("notcluster.local.", Route::Upstream),
            ("example.com.", Route::Upstream),
            ("postgres.", Route::Neighbours),
            (".", Route::Upstream),
            ("1.0.96.10.in-addr.arpa.", Route::Cluster),
            ("1.0.168.192.in-addr.arpa.", Route::Upstream),
            ("x.96.10.in-addr.arpa.", Route::Upstream),
            ("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.d.f.ip6.arpa.", Route::Cluster),
            ("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.0.0.0.0.d.f.ip6.arpa.", Route::Upstream),
            ("1.0.0.0.0.d.f.ip6.arpa.", Route::Upstream),
        ] {
            assert_eq!(zones().route(name), route, "{name}");
        }
    }

    #[test]
    fn before_the_cluster_is_known_nothing_belongs_to_it() {
        assert_eq!(Zones::default().route("web.default.svc.cluster.local"), Route::Upstream);
    }
}
