//! The addresses of the daemon's own network: its TUN, its resolver and the virtual range around them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;

/// Addresses of the TUN. The IPv4 range is set aside for tests between networks (RFC 2544, RFC 6890), so that no cluster,
/// VPN or Docker network uses it; the IPv6 one is a unique local prefix (RFC 4193).
pub(crate) const TUN: [&str; 2] = ["198.18.0.1/16", "fd74:7074::1/64"];

/// The ranges of the TUN: its address, the resolver's, and virtual ones for addresses of the cluster that no route leads to.
pub(crate) fn ranges() -> impl Iterator<Item = IpNet> {
    TUN.iter().map(|net| net.parse::<IpNet>().expect("a constant").trunc())
}

/// Whether `ip` lies in the TUN's own ranges.
pub(crate) fn is_own(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..2] == [198, 18],
        IpAddr::V6(ip) => ip.segments()[..4] == [0xfd74, 0x7074, 0, 0],
    }
}

/// Where joined containers find the resolver: an address of the TUN's range, so that port 53 stays theirs.
pub(crate) const RESOLVER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 2));

/// The resolver's socket address.
pub(crate) const RESOLVER_SOCKET: SocketAddr = SocketAddr::new(RESOLVER, 53);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_range_is_the_range_of_the_tun() {
        for (net, inside, outside) in
            [(TUN[0], "198.18.255.255", "198.19.0.1"), (TUN[1], "fd74:7074::ffff:0:0:1", "fd74:7074:0:1::1")]
        {
            let net: IpNet = net.parse().unwrap();
            let [inside, outside] = [inside, outside].map(|ip| ip.parse::<IpAddr>().unwrap());
            assert!(net.contains(&inside) && is_own(inside), "{inside}");
            assert!(!net.contains(&outside) && !is_own(outside), "{outside}");
        }
    }
}
