//! Reads the pod's `/etc/resolv.conf`: who resolves names in this cluster, and the cluster's domain.

use std::net::IpAddr;

/// Where kubelet writes the pod's resolver configuration.
pub(crate) const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What resolv.conf says (resolv.conf(5)).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResolvConf {
    /// Nameservers, in order.
    pub(crate) nameservers: Vec<IpAddr>,
    /// Search domains, without dots at the ends.
    pub(crate) search: Vec<String>,
}

impl ResolvConf {
    /// Parses the file. Lines that mean something else, or nothing, are skipped.
    pub(crate) fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => conf.nameservers.extend(words.next().and_then(|ip| ip.parse::<IpAddr>().ok())),
                // The last search line wins.
                Some("search") => conf.search = words.map(|name| name.trim_matches('.').to_owned()).collect(),
                _ => {}
            }
        }
        conf.search.retain(|name| !name.is_empty());
        conf
    }

    /// Returns the cluster's domain: kubelet writes `NAMESPACE.svc.DOMAIN svc.DOMAIN DOMAIN` for `ClusterFirst` pods.
    ///
    /// Where the namespace is itself called `svc`, two names fit; the domain is the shorter one.
    pub(crate) fn cluster_domain(&self) -> Option<&str> {
        self.search.iter().filter_map(|name| name.strip_prefix("svc.")).min_by_key(|domain| domain.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelets_file_is_read() {
        let conf = ResolvConf::parse(
            "search tp-system.svc.corp.local svc.corp.local corp.local example.com.\n\
             nameserver 10.96.0.10\nnameserver fd00:96::a\noptions ndots:5\n",
        );
        assert_eq!(conf.nameservers, ["10.96.0.10".parse::<IpAddr>().unwrap(), "fd00:96::a".parse().unwrap()]);
        assert_eq!(conf.search[3], "example.com");
        assert_eq!(conf.cluster_domain(), Some("corp.local"));
    }

    #[test]
    fn a_namespace_called_svc_does_not_confuse_the_domain() {
        let conf = ResolvConf::parse("search svc.svc.cluster.local svc.cluster.local cluster.local");
        assert_eq!(conf.cluster_domain(), Some("cluster.local"));
    }

    #[test]
    fn a_file_of_another_dns_policy_has_no_cluster_domain() {
        let conf = ResolvConf::parse("# generated\nnameserver 192.168.1.1\nnameserver nonsense\nsearch lan\n");
        assert_eq!((conf.cluster_domain(), conf.nameservers.len()), (None, 1));
    }
}
