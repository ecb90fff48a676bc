//! Arithmetic on subnets: which few prefixes cover many addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Most subnets told to a client. Each becomes a route in every daemon container.
pub const SUBNETS_MAX: usize = 32;

/// Prefix length an observed IPv4 pod address is widened to: the block that common network plugins give one node.
const OBSERVED_V4_PREFIX: u8 = 24;
/// Prefix length an observed IPv6 pod address is widened to.
const OBSERVED_V6_PREFIX: u8 = 64;
/// No cover is wider than this: beyond it a list of 32 routes says nothing about the cluster any more.
const WIDEST_V4_PREFIX: u8 = 8;
/// As [`WIDEST_V4_PREFIX`]: a unique local address block (RFC 4193 section 3.1) is a /48.
const WIDEST_V6_PREFIX: u8 = 32;

/// Returns the subnet that an observed pod address stands for.
#[must_use]
pub fn around(address: IpAddr) -> IpNet {
    let prefix = match address {
        IpAddr::V4(_) => OBSERVED_V4_PREFIX,
        IpAddr::V6(_) => OBSERVED_V6_PREFIX,
    };
    IpNet::new(address, prefix).expect("the prefix fits its family").trunc()
}

/// Returns the fewest subnets equal to `subnets`, then merges neighbours until at most `max` of a family are left.
///
/// Merging takes the pair whose common prefix is longest, so the cover grows by as little as possible. Pairs whose
/// common prefix is wider than /8 (IPv4) or /32 (IPv6) are left alone, even if more than `max` remain.
#[must_use]
pub fn cover(subnets: impl IntoIterator<Item = IpNet>, max: usize) -> Vec<IpNet> {
    let mut v4: BTreeSet<Ipv4Net> = BTreeSet::new();
    let mut v6: BTreeSet<Ipv6Net> = BTreeSet::new();
    for subnet in subnets {
        match subnet {
            IpNet::V4(net) => _ = v4.insert(net.trunc()),
            IpNet::V6(net) => _ = v6.insert(net.trunc()),
        }
    }
    let v4 = Ipv4Net::aggregate(&v4.into_iter().collect()).into_iter().map(IpNet::V4).collect();
    let v6 = Ipv6Net::aggregate(&v6.into_iter().collect()).into_iter().map(IpNet::V6).collect();
    let mut merged = merge(v4, max, WIDEST_V4_PREFIX);
    merged.extend(merge(v6, max, WIDEST_V6_PREFIX));
    merged
}

/// Merges neighbours of one family. `subnets` are disjoint; the result is sorted.
fn merge(mut subnets: Vec<IpNet>, max: usize, widest: u8) -> Vec<IpNet> {
    subnets.sort_unstable();
    while subnets.len() > max {
        // In sorted order the pair with the longest common prefix is always a pair of neighbours.
        let closest = subnets
            .windows(2)
            .enumerate()
            .map(|(index, pair)| (index, common(pair[0], pair[1])))
            .max_by_key(|(_, net)| net.prefix_len());
        let Some((index, net)) = closest.filter(|(_, net)| net.prefix_len() >= widest) else {
            break;
        };
        subnets[index] = net;
        // The wider subnet may swallow more than its right neighbour.
        subnets.retain({
            let mut at = 0;
            move |other| {
                at += 1;
                at - 1 == index || !net.contains(other)
            }
        });
    }
    subnets
}

/// Returns the smallest subnet that contains both, which are of one family.
fn common(a: IpNet, b: IpNet) -> IpNet {
    let mut net = a;
    while !net.contains(&b) {
        let Some(wider) = net.supernet() else { break };
        net = wider;
    }
    net
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn neighbouring_node_blocks_become_one_subnet() {
        let nodes = nets(&["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"]);
        assert_eq!(cover(nodes, SUBNETS_MAX), nets(&["10.244.0.0/22"]));
    }

    #[test]
    fn few_distant_subnets_stay_as_they_are() {
        let nodes = nets(&["10.1.0.0/24", "10.200.0.0/24", "fd00:1::/64"]);
        assert_eq!(cover(nodes.clone(), SUBNETS_MAX), nodes);
    }

    #[test]
    fn over_the_limit_the_closest_pair_is_merged_first() {
        let nodes = nets(&["10.0.0.0/24", "10.0.2.0/24", "10.9.0.0/24"]);
        assert_eq!(cover(nodes, 2), nets(&["10.0.0.0/22", "10.9.0.0/24"]));
    }

    #[test]
    fn distant_subnets_are_never_merged_into_half_the_internet() {
        let nodes = nets(&["10.0.0.0/24", "172.16.0.0/24", "192.168.0.0/24"]);
        assert_eq!(cover(nodes.clone(), 1), nodes);
    }

    #[test]
    fn families_are_counted_apart() {
        let nodes = nets(&["10.0.0.0/24", "fd00::/64"]);
        assert_eq!(cover(nodes.clone(), 1), nodes);
    }

    #[test]
    fn an_observed_address_stands_for_its_block() {
        assert_eq!(around("10.244.7.9".parse().unwrap()), "10.244.7.0/24".parse().unwrap());
        assert_eq!(around("fd00::7".parse().unwrap()), "fd00::/64".parse().unwrap());
    }

    proptest! {
        #[test]
        fn a_cover_contains_every_address_and_keeps_the_limit(addresses: Vec<[u8; 2]>, max in 1..8usize) {
            let pods: Vec<IpNet> = addresses.iter().map(|[a, b]| around(IpAddr::from([10, *a, *b, 1]))).collect();
            let covered = cover(pods.clone(), max);
            prop_assert!(covered.len() <= max);
            for pod in &pods {
                prop_assert!(covered.iter().any(|net| net.contains(pod)));
            }
            for pair in covered.windows(2) {
                prop_assert!(!pair[0].contains(&pair[1]), "{pair:?} overlap");
            }
        }
    }
}
