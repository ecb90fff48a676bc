//! The subnets to which the kernel of this network namespace has routes, from `/proc/net`. Elsewhere than on Linux: none.
//!
//! Routes of other tables than the main one are not seen (WireGuard's `wg-quick` has one for what it takes as a default).

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Subnets taken of each family. A machine that has more is a router of the Internet.
const MAX_ROUTES: usize = 1024;

/// Networks shorter than these count as default routes, IPv4 and IPv6: VPNs that take everything route two halves of it, or
/// all but the private networks (10.0.0.0/8 and fc00::/7 are the largest of those).
const MIN_PREFIX_LEN: [u8; 2] = [8, 7];

/// Flags of routes (`linux/route.h`, `linux/ipv6_route.h`): it is up; it rejects; an own address.
const RTF_UP: u32 = 0x1;
const RTF_REJECT: u32 = 0x200;
const RTF_ANYCAST: u32 = 0x0010_0000;
const RTF_LOCAL: u32 = 0x8000_0000;

/// The subnets that have a route, without default routes, loopback, links and groups.
pub(crate) fn of_this_namespace() -> Vec<IpNet> {
    // Without IPv6, or without /proc, a file is not there.
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut subnets = ipv4(&read("/proc/net/route"));
    subnets.extend(ipv6(&read("/proc/net/ipv6_route")));
    subnets
}

/// `/proc/net/route`: a line of titles, then `Iface Destination Gateway Flags RefCnt Use Metric Mask ...`; addresses are the
/// four bytes as a number of this machine.
fn ipv4(table: &str) -> Vec<IpNet> {
    let line = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let number = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok();
        let [destination, mask] = [number(1)?, number(7)?].map(|bytes| Ipv4Addr::from(bytes.to_ne_bytes()));
        let net = IpNet::with_netmask(destination.into(), mask.into()).ok()?;
        is_subnet(net, number(3)?).then_some(net)
    };
    unique(table.lines().skip(1).filter_map(line))
}

/// `/proc/net/ipv6_route`: `destination length source length gateway metric references uses flags device`, all in hexadecimal.
fn ipv6(table: &str) -> Vec<IpNet> {
    let line = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let destination = Ipv6Addr::from(u128::from_str_radix(fields.first()?, 16).ok()?);
        let len = u8::from_str_radix(fields.get(1)?, 16).ok()?;
        let net = IpNet::new(destination.into(), len).ok()?;
        is_subnet(net, u32::from_str_radix(fields.get(8)?, 16).ok()?).then_some(net)
    };
    unique(table.lines().filter_map(line))
}

fn unique(subnets: impl Iterator<Item = IpNet>) -> Vec<IpNet> {
    let mut found = Vec::new();
    for net in subnets {
        if found.len() < MAX_ROUTES && !found.contains(&net) {
            found.push(net);
        }
    }
    found
}

/// Whether a route leads to a subnet that could be mistaken for another.
fn is_subnet(net: IpNet, flags: u32) -> bool {
    let [ipv4, ipv6] = MIN_PREFIX_LEN;
    let (least, is_link) = match net.addr() {
        IpAddr::V4(ip) => (ipv4, ip.is_link_local()),
        IpAddr::V6(ip) => (ipv6, ip.is_unicast_link_local()),
    };
    let is_for_this_machine = is_link || net.addr().is_loopback() || net.addr().is_multicast();
    net.prefix_len() >= least
        && !is_for_this_machine
        && flags & RTF_UP != 0
        && flags & (RTF_REJECT | RTF_ANYCAST | RTF_LOCAL) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line of `/proc/net/route` for a destination, a mask and flags.
    fn line(destination: [u8; 4], mask: [u8; 4], flags: u32) -> String {
        let [destination, mask] = [destination, mask].map(u32::from_ne_bytes);
        format!("eth0\t{destination:08X}\t00000000\t{flags:04X}\t0\t0\t0\t{mask:08X}\t0\t0\t0\n")
    }

    #[test]
    fn subnets_are_read_and_default_routes_in_any_form_are_not() {
        let table = [
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n".to_owned(),
            line([0, 0, 0, 0], [0, 0, 0, 0], 3),
            line([172, 17, 0, 0], [255, 255, 0, 0], 1),
            line([172, 17, 0, 0], [255, 255, 0, 0], 1),
            line([128, 0, 0, 0], [128, 0, 0, 0], 3),
            line([10, 0, 0, 0], [255, 0, 0, 0], 3),
            line([10, 9, 0, 1], [255, 255, 255, 255], 0x207),
            line([169, 254, 0, 0], [255, 255, 0, 0], 1),
            line([192, 168, 1, 0], [255, 255, 255, 0], 0),
            "short line\n".to_owned(),
        ];
        let found: Vec<_> = ipv4(&table.concat()).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["172.17.0.0/16", "10.0.0.0/8"]);
    }

    #[test]
    fn own_addresses_links_and_groups_are_no_subnets() {
        let table = "\
fd000000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
fe800000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000002 00000000 00000001     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd000000000000000000000000000001 00000400 00000003 00000000 00000003     eth0
20000000000000000000000000000000 03 00000000000000000000000000000000 00 fd000000000000000000000000000001 00000400 00000003 00000000 00000003     tun0
00000000000000000000000000000001 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 00000002 00000000 80200001       lo
fd000000000000000000000000000002 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 00000004 00000000 80200001     eth0
ff000000000000000000000000000000 08 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000003 00000000 00000001     eth0
";
        assert_eq!(ipv6(table), ["fd00::/64".parse::<IpNet>().unwrap()]);
    }
}
