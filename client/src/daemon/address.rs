//! The addresses of the daemon's own network: its TUN, its resolver and the virtual range around them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Addresses of the TUN. The IPv4 range is set aside for tests between networks (RFC 2544, RFC 6890), so that no cluster,
/// VPN or Docker network uses it; the IPv6 one is a unique local prefix (RFC 4193).
pub(crate) const TUN: [&str; 2] = ["198.18.0.1/16", "fd74:7074::1/64"];

/// Where joined containers find the resolver: an address of the TUN's range, so that port 53 stays theirs.
pub(crate) const RESOLVER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 2));

/// The resolver's socket address.
pub(crate) const RESOLVER_SOCKET: SocketAddr = SocketAddr::new(RESOLVER, 53);
