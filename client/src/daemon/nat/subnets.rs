//! Which subnets of the cluster are seen as virtual ones, and as which.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::config::network::Vnat;
use crate::daemon::address;

/// Virtual subnets are taken out of these. The IPv4 one is part of what is reserved for future use (RFC 1112 section 4), which
/// Linux routes like any other and which nobody uses; the upper half, which has the broadcast address and Canonical's
/// fan networks, is left alone. The IPv6 one has the TUN's range at its beginning.
const POOLS: [&str; 2] = ["240.0.0.0/5", "fd74:7074::/32"];

/// A subnet of the cluster and the one of the same size that containers see instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SubnetMap {
    /// Its addresses in the cluster.
    pub(crate) real: IpNet,
    /// Its addresses in containers.
    pub(crate) seen: IpNet,
}

impl SubnetMap {
    /// The address that containers see for `real`, if it is of this subnet.
    pub(super) fn seen_of(&self, real: IpAddr) -> Option<IpAddr> {
        moved(real, self.real, self.seen)
    }

    /// The address in the cluster for `seen`, if that is of this subnet.
    pub(super) fn real_of(&self, seen: IpAddr) -> Option<IpAddr> {
        moved(seen, self.seen, self.real)
    }
}

/// The address of `to` with the place that `ip` has in `from`, a subnet of the same size.
fn moved(ip: IpAddr, from: IpNet, to: IpNet) -> Option<IpAddr> {
    from.contains(&ip).then(|| address_of(bits(to.network()) | (bits(ip) & !bits(from.netmask())), ip.is_ipv4()))
}

/// Why a subnet is in the list of those that are routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The cluster's services have addresses in it.
    Services,
    /// Pods have.
    Pods,
    /// The user wants it.
    Also,
}

/// What there is to decide on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    /// The subnets that are to be routed.
    pub(crate) wanted: Vec<(Kind, IpNet)>,
    /// What the user says about mapping.
    pub(crate) vnat: Vec<Vnat>,
    /// The subnets of the container's own networks.
    pub(crate) container: Vec<IpNet>,
    /// Subnets to which the machine has routes.
    pub(crate) machine: Vec<IpNet>,
    /// Subnets that are never routed into the tunnel.
    pub(crate) excluded: Vec<IpNet>,
}

/// A subnet that is mapped, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapped {
    /// The subnet.
    pub(crate) map: SubnetMap,
    /// Lower-case, without a full stop.
    pub(crate) reason: String,
}

/// No virtual subnet is left for this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoRoom(pub(crate) IpNet);

impl Surroundings {
    /// The subnets that are mapped, each to a virtual one that overlaps with nothing. The same surroundings give the same.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub(crate) fn map(&self) -> Result<Vec<Mapped>, NoRoom> {
        let mut taken: Vec<IpNet> = self.wanted.iter().map(|(_, net)| *net).chain(address::ranges()).collect();
        taken.extend(self.container.iter().chain(&self.machine).chain(&self.excluded));
        let reasons = self.wanted.iter().filter_map(|(kind, net)| Some((*net, self.reason(*kind, *net)?)));
        let mut mapped: Vec<Mapped> = Vec::new();
        for (real, reason) in reasons.chain(self.parts().map(|net| (net, ASKED.to_owned()))) {
            if mapped.iter().any(|other| other.map.real == real) {
                continue;
            }
            let seen = free(real, &taken).ok_or(NoRoom(real))?;
            taken.push(seen);
            mapped.push(Mapped { map: SubnetMap { real, seen }, reason });
        }
        Ok(mapped)
    }

    /// Why a subnet is mapped, when it is. One that the user wants to reach through the cluster hides what it overlaps with on
    /// purpose; only that of a network of the container cannot be routed at all.
    fn reason(&self, kind: Kind, net: IpNet) -> Option<String> {
        if self.vnat.iter().any(|rule| asks_for(*rule, kind, net)) {
            return Some(ASKED.to_owned());
        }
        if self.vnat.contains(&Vnat::None) {
            return None;
        }
        let hidden = |nets: &[IpNet]| nets.iter().find(|local| overlap(**local, net)).copied();
        let container = match kind {
            Kind::Services | Kind::Pods => hidden(&self.container),
            Kind::Also => self.container.contains(&net).then_some(net),
        };
        if let Some(local) = container {
            return Some(format!("overlaps with {local}, a network of the container"));
        }
        let local = hidden(&self.machine).filter(|_| kind != Kind::Also)?;
        Some(format!("overlaps with {local}, to which this machine has a route"))
    }

    /// Subnets that the user wants mapped and that are none of those that are routed, nor made of them.
    fn parts(&self) -> impl Iterator<Item = IpNet> {
        let named = self.vnat.iter().filter_map(|rule| if let Vnat::Subnet(net) = rule { Some(net.0) } else { None });
        named.filter(|net| !self.excluded.contains(net) && !self.wanted.iter().any(|(_, wanted)| net.contains(wanted)))
    }
}

/// The reason for what the user wants.
const ASKED: &str = "asked for";

fn asks_for(rule: Vnat, kind: Kind, net: IpNet) -> bool {
    match rule {
        Vnat::None => false,
        Vnat::All => true,
        Vnat::Service => kind == Kind::Services,
        Vnat::Pods => kind == Kind::Pods,
        Vnat::Also => kind == Kind::Also,
        Vnat::Subnet(asked) => asked.0.contains(&net),
    }
}

pub(crate) fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// The first subnet of the pool as large as `like` that overlaps with none of `taken`.
fn free(like: IpNet, taken: &[IpNet]) -> Option<IpNet> {
    let is_ipv4 = like.addr().is_ipv4();
    let pools = POOLS.map(|pool| pool.parse::<IpNet>().expect("a constant"));
    let pool = pools.into_iter().find(|pool| pool.addr().is_ipv4() == is_ipv4).expect("one of each family");
    let size = 1_u128.checked_shl(u32::from(pool.max_prefix_len() - like.prefix_len()))?;
    let mut at = bits(pool.network());
    while like.prefix_len() >= pool.prefix_len() && at <= bits(pool.broadcast()) {
        let candidate = IpNet::new(address_of(at, is_ipv4), like.prefix_len()).ok()?;
        let Some(other) = taken.iter().find(|other| overlap(**other, candidate)) else { return Some(candidate) };
        let last = bits(other.broadcast()).max(bits(candidate.broadcast()));
        at = last.checked_add(1)?.checked_next_multiple_of(size)?;
    }
    None
}

/// An address as a number; those of IPv4 in the lower 32 bits.
fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// The address that [`bits`] made a number of.
fn address_of(bits: u128, is_ipv4: bool) -> IpAddr {
    #[expect(clippy::cast_possible_truncation, reason = "an IPv4 address has 32 bits")]
    if is_ipv4 { Ipv4Addr::from_bits(bits as u32).into() } else { Ipv6Addr::from_bits(bits).into() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| net(text)).collect()
    }

    fn cluster() -> Surroundings {
        let wanted = [
            (Kind::Services, "10.96.0.0/12"),
            (Kind::Pods, "10.244.0.0/24"),
            (Kind::Pods, "10.244.1.0/24"),
            (Kind::Also, "10.20.0.0/16"),
        ];
        Surroundings { wanted: wanted.map(|(kind, text)| (kind, net(text))).into(), ..Surroundings::default() }
    }

    /// Pairs of real and virtual subnets, as text.
    fn pairs(surroundings: &Surroundings) -> Vec<(String, String)> {
        let mapped = surroundings.map().unwrap();
        mapped.iter().map(|it| (it.map.real.to_string(), it.map.seen.to_string())).collect()
    }

    fn strings(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn nothing_is_mapped_without_overlap() {
        let apart = Surroundings {
            container: nets(&["172.17.0.0/16"]),
            machine: nets(&["192.168.1.0/24", "172.17.0.0/16"]),
            ..cluster()
        };
        assert_eq!(pairs(&apart), []);
    }

    #[test]
    fn overlap_with_the_containers_networks_and_the_machines_routes_is_mapped_and_explained() {
        let overlapping = Surroundings {
            container: nets(&["10.244.1.128/25"]),
            machine: nets(&["10.96.0.0/12", "10.20.0.0/15"]),
            ..cluster()
        };
        let mapped = overlapping.map().unwrap();
        assert_eq!(
            pairs(&overlapping),
            strings(&[("10.96.0.0/12", "240.0.0.0/12"), ("10.244.1.0/24", "240.16.0.0/24")])
        );
        assert_eq!(mapped[0].reason, "overlaps with 10.96.0.0/12, to which this machine has a route");
        assert_eq!(mapped[1].reason, "overlaps with 10.244.1.128/25, a network of the container");
        assert_eq!(pairs(&Surroundings { vnat: vec![Vnat::None], ..overlapping }), [], "the user wants all as it is");
    }

    #[test]
    fn wish_for_a_subnet_is_mapped_only_where_it_cannot_be_routed() {
        let exact = Surroundings { container: nets(&["10.20.0.0/16"]), ..cluster() };
        assert_eq!(pairs(&exact), strings(&[("10.20.0.0/16", "240.0.0.0/16")]));
        let wider = Surroundings { container: nets(&["10.20.0.0/15"]), machine: nets(&["10.20.0.0/16"]), ..cluster() };
        assert_eq!(pairs(&wider), []);
    }

    #[test]
    fn what_the_user_names_is_mapped() {
        for (rules, expected) in [
            (&["service"][..], &[("10.96.0.0/12", "240.0.0.0/12")][..]),
            (&["pods"], &[("10.244.0.0/24", "240.0.0.0/24"), ("10.244.1.0/24", "240.0.1.0/24")]),
            (&["also"], &[("10.20.0.0/16", "240.0.0.0/16")]),
            (&["10.244.0.0/16"], &[("10.244.0.0/24", "240.0.0.0/24"), ("10.244.1.0/24", "240.0.1.0/24")]),
            (&["none", "10.244.1.0/25"], &[("10.244.1.0/25", "240.0.0.0/25")]),
            (&["10.50.0.0/16", "10.50.0.0/16"], &[("10.50.0.0/16", "240.0.0.0/16")]),
        ] {
            let vnat = rules.iter().map(|rule| rule.parse().unwrap()).collect();
            assert_eq!(pairs(&Surroundings { vnat, ..cluster() }), strings(expected), "{rules:?}");
        }
        let all = Surroundings { vnat: vec![Vnat::All], ..cluster() };
        assert_eq!(all.map().unwrap().len(), 4);
        let never = Surroundings {
            vnat: vec!["10.50.0.0/16".parse().unwrap()],
            excluded: nets(&["10.50.0.0/16"]),
            ..cluster()
        };
        assert_eq!(pairs(&never), []);
    }

    #[test]
    fn virtual_subnets_avoid_what_is_taken() {
        assert_eq!(free(net("10.0.0.0/16"), &nets(&["240.0.0.0/24", "240.1.0.0/16"])), Some(net("240.2.0.0/16")));
        assert_eq!(free(net("10.0.0.0/8"), &nets(&["240.0.0.0/6", "245.0.0.0/8"])), Some(net("244.0.0.0/8")));
        assert_eq!(free(net("10.0.0.0/8"), &nets(&["240.0.0.0/4"])), None);
        assert_eq!(free(net("0.0.0.0/4"), &[]), None);
        let own: Vec<_> = address::ranges().collect();
        assert_eq!(free(net("fd00::/108"), &own), Some(net("fd74:7074:0:1::/108")));
        assert_eq!(free(net("fd00::/48"), &own), Some(net("fd74:7074:1::/48")));
        assert_eq!(free(net("fd00::/32"), &own), None);
    }

    fn any_net() -> impl Strategy<Value = IpNet> {
        let ipv4 = (any::<u32>(), 6_u8..=32).prop_map(|(ip, len)| IpNet::new(Ipv4Addr::from(ip).into(), len));
        let ipv6 = (any::<u128>(), 40_u8..=128).prop_map(|(ip, len)| IpNet::new(Ipv6Addr::from(ip).into(), len));
        // Some of them where virtual subnets are made.
        let pool = (any::<u32>(), 8_u8..=32)
            .prop_map(|(ip, len)| IpNet::new(Ipv4Addr::from(0xf000_0000 | (ip >> 5)).into(), len));
        prop_oneof![ipv4, ipv6, pool].prop_map(|net| net.unwrap().trunc())
    }

    proptest! {
        #[test]
        fn virtual_subnets_overlap_with_nothing_and_lead_back(
            wanted in prop::collection::vec(any_net(), 0..5),
            machine in prop::collection::vec(any_net(), 0..8),
            host in any::<u128>(),
        ) {
            let wanted: Vec<_> = wanted.into_iter().map(|net| (Kind::Pods, net)).collect();
            let surroundings =
                Surroundings { wanted, machine, vnat: vec![Vnat::All], ..Surroundings::default() };
            let Ok(mapped) = surroundings.map() else { return Ok(()) };
            for (at, Mapped { map, .. }) in mapped.iter().enumerate() {
                let others = surroundings.wanted.iter().map(|(_, net)| *net).chain(address::ranges());
                let others = others.chain(surroundings.machine.iter().copied());
                for other in others.chain(mapped[..at].iter().map(|other| other.map.seen)) {
                    prop_assert!(!overlap(map.seen, other), "{} and {}", map.seen, other);
                }
                prop_assert_eq!(map.seen.prefix_len(), map.real.prefix_len());
                let is_ipv4 = map.real.addr().is_ipv4();
                let real = address_of(bits(map.real.network()) | (host & bits(map.real.hostmask())), is_ipv4);
                let seen = map.seen_of(real).unwrap();
                prop_assert!(map.seen.contains(&seen));
                prop_assert_eq!(map.real_of(seen), Some(real));
            }
        }
    }
}
