//! Which address of the cluster a container sees as which. A pure core: the caller tells the time.
//!
//! Two kinds of virtual addresses lead into the tunnel. A subnet of the cluster that would hide addresses which the container
//! reaches by another way is seen as a virtual subnet of the same size ([`subnets`]). An address that the cluster's DNS
//! named and that no route leads to is seen as one of the TUN's own range ([`table`]). Answers of the DNS say what
//! [`Nat::seen_as`] says, and flows go where [`Nat::real`] leads.

pub(crate) mod destination;
pub(crate) mod subnets;
mod table;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;

pub(crate) use self::subnets::SubnetMap;
use self::table::Table;
use crate::daemon::address;

/// How long an answer with a virtual address may be remembered. Less than [`table::HOLD`], for which it means the same.
pub(crate) const MAX_VIRTUAL_TTL: Duration = Duration::from_secs(60);

/// What is fixed when a connection is made. Of subnets that overlap the most specific one counts; of two that are equal,
/// the excluded one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Subnets whose addresses lead into the tunnel as they are.
    pub(crate) routed: Vec<IpNet>,
    /// Subnets whose addresses never do.
    pub(crate) excluded: Vec<IpNet>,
    /// Subnets that are seen as others.
    pub(crate) mapped: Vec<SubnetMap>,
}

/// Where an address of the cluster belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It keeps its meaning: it is routed, excluded, or means the asker's own machine or link.
    AsItIs,
    /// It lies in a subnet that is seen as another one, as this address.
    Mapped(IpAddr),
    /// No route leads to it.
    Outside,
}

/// What a container is told instead of an address of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SeenAs {
    /// The address itself.
    Itself,
    /// An address that stands for it for as long as the connection lasts.
    Fixed(IpAddr),
    /// An address that stands for it for [`MAX_VIRTUAL_TTL`] at least.
    Borrowed(IpAddr),
    /// Nothing: all virtual addresses are in use.
    Nothing,
}

/// The translation of one connection.
#[derive(Debug)]
pub(crate) struct Nat {
    rules: Rules,
    table: Table,
}

impl Nat {
    /// Translates nothing yet. `generation` counts the daemon processes before this one: each begins elsewhere in the
    /// virtual range, so that what a program remembers from before is refused and not mistaken.
    pub(crate) fn new(generation: u32) -> Self {
        Self { rules: Rules::default(), table: Table::new(generation) }
    }

    /// Sets what is fixed.
    pub(crate) fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// What to say for `real`, an address that the cluster's DNS named.
    pub(crate) fn seen_as(&mut self, real: IpAddr, now: Instant) -> SeenAs {
        match self.place(real) {
            Place::AsItIs => SeenAs::Itself,
            Place::Mapped(seen) => SeenAs::Fixed(seen),
            Place::Outside => self.table.borrow(real, now).map_or(SeenAs::Nothing, SeenAs::Borrowed),
        }
    }

    /// What to say for `real`, an address that the user named: that of its subnet, or itself.
    pub(crate) fn seen_in_subnets(&self, real: IpAddr) -> IpAddr {
        match self.place(real) {
            Place::Mapped(seen) => seen,
            Place::AsItIs | Place::Outside => real,
        }
    }

    /// What `seen` stands for: itself, unless it is virtual. `None` for a virtual address that stands for nothing.
    pub(crate) fn real(&self, seen: IpAddr) -> Option<IpAddr> {
        if address::is_own(seen) {
            return self.table.real(seen);
        }
        Some(self.rules.mapped.iter().find_map(|map| map.real_of(seen)).unwrap_or(seen))
    }

    /// Counts a flow to `seen` in: it keeps its meaning until [`Self::end_use`].
    pub(crate) fn begin_use(&mut self, seen: IpAddr) {
        self.table.begin_use(seen);
    }

    /// Counts a flow to `seen` out.
    pub(crate) fn end_use(&mut self, seen: IpAddr, now: Instant) {
        self.table.end_use(seen, now);
    }

    /// Addresses that are seen as one of the TUN's range.
    pub(crate) fn borrowed(&self) -> usize {
        self.table.len()
    }

    fn place(&self, real: IpAddr) -> Place {
        if means_the_asker(real) {
            return Place::AsItIs;
        }
        let Rules { routed, excluded, mapped } = &self.rules;
        let longest = |nets: &[IpNet]| nets.iter().filter(|net| net.contains(&real)).map(IpNet::prefix_len).max();
        let map = mapped.iter().filter(|map| map.real.contains(&real)).max_by_key(|map| map.real.prefix_len());
        let (never, raw, virtual_len) = (longest(excluded), longest(routed), map.map(|map| map.real.prefix_len()));
        if never.is_some() && never >= raw.max(virtual_len) {
            return Place::AsItIs;
        }
        match map.and_then(|map| map.seen_of(real)) {
            Some(seen) if virtual_len > raw => Place::Mapped(seen),
            _ if raw.is_some() || !self.carries_family_of(real) => Place::AsItIs,
            _ => Place::Outside,
        }
    }

    /// Whether the cluster has addresses of the family of `ip`. A pod of a cluster without IPv6 fails at an IPv6 address at
    /// once and takes the next one; so does a container that is told such an address as it is.
    fn carries_family_of(&self, ip: IpAddr) -> bool {
        let reals = self.rules.mapped.iter().map(|map| &map.real);
        self.rules.routed.iter().chain(reals).any(|net| net.addr().is_ipv4() == ip.is_ipv4())
    }
}

/// Whether an address means something else to everyone who uses it: the own machine, the own link, a group, nothing.
fn means_the_asker(ip: IpAddr) -> bool {
    let by_family = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        // An IPv4 address in IPv6 clothes is for sockets, not for the wire (RFC 4291 section 2.5.5.2).
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.to_ipv4_mapped().is_some(),
    };
    by_family || ip.is_loopback() || ip.is_multicast() || ip.is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn nat() -> Nat {
        let mut nat = Nat::new(0);
        nat.set_rules(Rules {
            routed: nets(&["10.96.0.0/16", "10.1.0.0/16"]),
            excluded: nets(&["10.96.7.0/24", "10.1.2.3/32", "192.0.2.0/24"]),
            mapped: vec![
                SubnetMap { real: "10.244.0.0/16".parse().unwrap(), seen: "240.0.0.0/16".parse().unwrap() },
                SubnetMap { real: "10.1.2.0/24".parse().unwrap(), seen: "240.1.0.0/24".parse().unwrap() },
            ],
        });
        nat
    }

    #[test]
    fn most_specific_subnet_decides_what_an_address_is_seen_as() {
        let (mut nat, now) = (nat(), Instant::now());
        for (real, seen) in [
            ("10.96.0.10", SeenAs::Itself),
            ("10.96.7.1", SeenAs::Itself),
            ("192.0.2.1", SeenAs::Itself),
            ("10.1.9.9", SeenAs::Itself),
            ("10.244.3.4", SeenAs::Fixed(ip("240.0.3.4"))),
            ("10.1.2.4", SeenAs::Fixed(ip("240.1.0.4"))),
            ("10.1.2.3", SeenAs::Itself),
            ("203.0.113.1", SeenAs::Borrowed(ip("198.18.0.3"))),
            ("203.0.113.2", SeenAs::Borrowed(ip("198.18.0.4"))),
            ("203.0.113.1", SeenAs::Borrowed(ip("198.18.0.3"))),
            // An address of the cluster that happens to lie in the TUN's range.
            ("198.18.0.3", SeenAs::Borrowed(ip("198.18.0.5"))),
        ] {
            assert_eq!(nat.seen_as(ip(real), now), seen, "{real}");
        }
        assert_eq!(nat.borrowed(), 3);
    }

    #[test]
    fn addresses_that_mean_the_asker_and_families_that_the_cluster_lacks_stay() {
        let (mut nat, now) = (nat(), Instant::now());
        for real in [
            "127.0.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "::1",
            "fe80::1",
            "::ffff:10.244.0.1",
            "2001:db8::1",
        ] {
            assert_eq!(nat.seen_as(ip(real), now), SeenAs::Itself, "{real}");
        }
        nat.set_rules(Rules { routed: nets(&["10.96.0.0/16", "fd00:10::/108"]), ..Rules::default() });
        assert_eq!(nat.seen_as(ip("2001:db8::1"), now), SeenAs::Borrowed(ip("fd74:7074::3")));
    }

    #[test]
    fn virtual_addresses_lead_back() {
        let (mut nat, now) = (nat(), Instant::now());
        nat.seen_as(ip("203.0.113.1"), now);
        for (seen, real) in [
            ("240.0.3.4", Some("10.244.3.4")),
            ("240.1.0.4", Some("10.1.2.4")),
            ("198.18.0.3", Some("203.0.113.1")),
            ("198.18.0.4", None),
            ("10.96.0.10", Some("10.96.0.10")),
            ("10.244.3.4", Some("10.244.3.4")),
        ] {
            assert_eq!(nat.real(ip(seen)), real.map(ip), "{seen}");
        }
    }

    #[test]
    fn address_that_the_user_names_is_never_borrowed() {
        let nat = nat();
        assert_eq!(nat.seen_in_subnets(ip("10.244.0.1")), ip("240.0.0.1"));
        assert_eq!(nat.seen_in_subnets(ip("203.0.113.1")), ip("203.0.113.1"));
        assert_eq!(nat.borrowed(), 0);
    }
}
