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
    /// Subnets that are reached through the cluster, for reverse look-ups.
    pub(crate) subnets: Vec<IpNet>,
    /// Other domains that the cluster's DNS resolves, lower-case, without dots at their ends.
    pub(crate) include: Vec<String>,
    /// Domains that it is never asked for; written as the former.
    pub(crate) exclude: Vec<String>,
}

impl Zones {
    /// Decides for `name`, lower-case, with or without its final dot.
    pub(crate) fn route(&self, name: &str) -> Route {
        let name = name.strip_suffix('.').unwrap_or(name);
        let is_domain = !self.domain.is_empty() && is_under(name, &self.domain);
        let included = most_specific(name, &self.include).max(is_domain.then_some(self.domain.len()));
        if let Some(excluded) = most_specific(name, &self.exclude)
            && included.is_none_or(|included| included <= excluded)
        {
            return if is_single_label(name) { Route::Neighbours } else { Route::Upstream };
        }
        if included.is_some() {
            return Route::Cluster;
        }
        if let Some(ip) = reverse_address(name) {
            return if self.subnets.iter().any(|net| net.contains(&ip)) { Route::Cluster } else { Route::Upstream };
        }
        if is_single_label(name) { Route::Neighbours } else { Route::Upstream }
    }
}

/// Length of the longest of `zones` that `name` is in.
fn most_specific(name: &str, zones: &[String]) -> Option<usize> {
    zones.iter().filter(|zone| is_under(name, zone)).map(String::len).max()
}

/// Whether `name` has no dot and is not the root.
fn is_single_label(name: &str) -> bool {
    !name.is_empty() && !name.contains('.')
}

fn is_under(name: &str, zone: &str) -> bool {
    name.strip_suffix(zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The address that a reverse name asks about (RFC 1035 section 3.5, RFC 3596 section 2.5); with or without its final dot.
pub(super) fn reverse_address(name: &str) -> Option<IpAddr> {
    let name = name.strip_suffix('.').unwrap_or(name);
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
        Zones { domain: "cluster.local".into(), subnets, ..Zones::default() }
    }

    #[test]
    fn more_specific_domain_of_those_included_and_excluded_counts() {
        let list = |domains: &[&str]| domains.iter().map(|&domain| domain.to_owned()).collect();
        let zones = Zones {
            include: list(&["corp.example", "db", "a.b.example"]),
            exclude: list(&["lab.corp.example", "b.example", "kube-system.svc.cluster.local", "db"]),
            ..zones()
        };
        for (name, route) in [
            ("corp.example.", Route::Cluster),
            ("x.corp.example.", Route::Cluster),
            ("lab.corp.example.", Route::Upstream),
            ("x.a.b.example.", Route::Cluster),
            ("x.b.example.", Route::Upstream),
            ("web.default.svc.cluster.local.", Route::Cluster),
            ("kube-dns.kube-system.svc.cluster.local.", Route::Upstream),
            ("db.", Route::Neighbours),
        ] {
            assert_eq!(zones.route(name), route, "{name}");
        }
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
