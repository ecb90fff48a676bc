//! The next hops of the pod's own routes, which are addresses of its node, from what Linux tells in `/proc/net`.

use std::net::{IpAddr, Ipv6Addr};

/// Where Linux tells the IPv4 routes.
pub(crate) const IPV4_ROUTES: &str = "/proc/net/route";

/// Where it tells the IPv6 routes; absent where the kernel has no IPv6.
pub(crate) const IPV6_ROUTES: &str = "/proc/net/ipv6_route";

/// Returns the next hops of both tables, link-local ones left out: the policy refuses those on its own.
pub(crate) fn gateways(ipv4_routes: &str, ipv6_routes: &str) -> Vec<IpAddr> {
    let ipv4 = ipv4_routes.lines().skip(1).filter_map(ipv4_gateway);
    let mut gateways: Vec<IpAddr> = ipv4.chain(ipv6_routes.lines().filter_map(ipv6_gateway)).collect();
    gateways.sort_unstable();
    gateways.dedup();
    gateways
}

/// The third column (proc(5)): hexadecimal, in network byte order on a little-endian machine.
fn ipv4_gateway(route: &str) -> Option<IpAddr> {
    let hex = route.split_whitespace().nth(2)?;
    let gateway = u32::from_str_radix(hex, 16).ok().filter(|&gateway| gateway != 0)?;
    Some(IpAddr::from(gateway.to_ne_bytes()))
}

/// The fifth column (Linux, `net/ipv6/route.c`, `rt6_info_route`): 32 hexadecimal digits.
fn ipv6_gateway(route: &str) -> Option<IpAddr> {
    let hex = route.split_whitespace().nth(4).filter(|hex| hex.len() == 32)?;
    let gateway = Ipv6Addr::from(u128::from_str_radix(hex, 16).ok()?);
    (!gateway.is_unspecified() && !gateway.is_unicast_link_local()).then_some(gateway.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_hops_of_both_tables_are_read() {
        let ipv4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n\
            eth0\t00000000\t0100F40A\t0003\t0\t0\t0\t00000000\n\
            eth0\t0000F40A\t00000000\t0001\t0\t0\t0\t00FFFFFF\n";
        let zero = "0".repeat(32);
        let gateway = "fd000010024400000000000000000001";
        let link_local = "fe800000000000000000000000000001";
        let line = |to: &str, bits: &str, via: &str| {
            format!("{to} {bits} {zero} 00 {via} 00000400 00000001 00000000 00000003     eth0\n")
        };
        let ipv6 = [line(gateway, "80", &zero), line(&zero, "00", gateway), line(&zero, "00", link_local)].concat();
        let expected = ["10.244.0.1", "fd00:10:244::1"].map(|ip| ip.parse::<IpAddr>().unwrap());
        assert_eq!(gateways(ipv4, &ipv6), expected);
    }

    #[test]
    fn kernels_without_ipv6_and_broken_lines_are_no_failure() {
        assert!(gateways("", "").is_empty());
        assert!(gateways("header\neth0\nx y z\n", "a b c d e\n").is_empty());
    }
}
