//! Decides which addresses the manager may dial for a client.
//!
//! Whoever may port-forward to the manager dials from its network position, so the policy keeps back what only the
//! manager's own position can reach: its loopback, its own ports, the node under it and cloud metadata services.
//! The administrator's lists add to that. Pure: the caller tells it the node addresses and asks.
//!
//! # Rules
//! 1. What can never be meant is refused, whatever the lists say: unspecified, loopback, multicast and broadcast
//!    addresses, port 0, and the manager's own ports on its own addresses.
//! 2. Among the other rules that match, the most specific wins: the longest prefix, then a rule that names ports before
//!    one that does not. The administrator's rule wins over a built-in one, and a refusal over a permission.
//! 3. What no rule matches is allowed.
//!
//! A ping has no port: rules that name ports do not concern it.
//!
//! IPv4 addresses inside IPv6 ones (`::ffff:0:0/96`, RFC 4291 section 2.5.5.2; `64:ff9b::/96`, RFC 6052) are
//! judged as the IPv4 address.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::{IpNet, Ipv6Net};

/// Ports on which kubelet and kube-proxy serve: 10248 and 10250 (kubelet), 10249 and 10256 (kube-proxy),
/// 10255 (kubelet, read-only).
/// See <https://kubernetes.io/docs/reference/networking/ports-and-protocols/>.
const KUBELET_PORTS: [u16; 5] = [10_248, 10_249, 10_250, 10_255, 10_256];

/// Addresses of cloud metadata services beside the link-local 169.254.0.0/16 and fe80::/10.
const METADATA: [&str; 7] = [
    "169.254.0.0/16",     // link-local (RFC 3927); most clouds' metadata service
    "fe80::/10",          // link-local (RFC 4291)
    "fd00:ec2::254/128",  // AWS
    "fd20:ce::254/128",   // Google Cloud
    "168.63.129.16/32",   // Azure's host agent
    "100.100.100.200/32", // Alibaba Cloud
    "192.0.0.192/32",     // Oracle Cloud
];

/// The part of `64:ff9b::/96` that translates to IPv4 (RFC 6052 section 2.1).
const NAT64_PREFIX: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

/// One entry of an administrator's list: `10.0.0.0/8`, `10.1.2.3:5432`, `[fd00::]/8:8000-8999`, `nodes` or `nodes:9100`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    target: Target,
    ports: Option<RangeInclusive<u16>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Subnet(IpNet),
    /// Every address of every node.
    Nodes,
}

/// An entry of a list that is not a rule.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not an address, a subnet or `nodes`, with an optional port or port range behind a colon")]
pub struct RuleError(String);

/// What a client wants to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The address.
    pub ip: IpAddr,
    /// The port of a connection or datagram; a ping has none.
    pub port: Option<u16>,
}

/// Why an address is not dialled; the text is for the user who asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Denied {
    /// An address or port that no peer can have.
    #[error("{0} is not an address that can be dialled ({1})")]
    Invalid(Destination, &'static str),
    /// The manager's own port.
    #[error("{0} is a port of the traffic manager itself")]
    Own(Destination),
    /// A built-in rule.
    #[error("{0} is {1}; an administrator can allow it in the chart (dialPolicy.allow)")]
    BuiltIn(Destination, &'static str),
    /// A rule of the administrator.
    #[error("{0} is refused by the rule `{1}` of the chart (dialPolicy.deny)")]
    Rule(Destination, Rule),
}

/// What the manager itself looks like from the cluster.
#[derive(Clone, Debug, Default)]
pub struct Own {
    /// Addresses of the pod and of its Service.
    pub addresses: BTreeSet<IpAddr>,
    /// Ports that the manager listens on, or that its Service maps to them.
    pub ports: BTreeSet<u16>,
}

/// Addresses of the machines under the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    /// Addresses of nodes: refused.
    pub addresses: BTreeSet<IpAddr>,
    /// Addresses that a node probably has too (the bridge of its pod subnet): refused on kubelet ports only,
    /// since with some network plugins a pod can have them.
    pub gateways: BTreeSet<IpAddr>,
}

/// The whole policy at one moment.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Refused by the administrator.
    pub deny: Vec<Rule>,
    /// Allowed by the administrator.
    pub allow: Vec<Rule>,
    /// The manager itself.
    pub own: Own,
    /// The nodes, as last seen.
    pub nodes: Nodes,
    /// Dials to loopback addresses. Only tests that dial real sockets of their own set it.
    pub loopback: Loopback,
}

/// What happens to loopback addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Loopback {
    /// Refused.
    #[default]
    Refuse,
    /// Dialled.
    Dial,
}

/// How specific a matching rule is, and what it says: the greatest decides.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Weight {
    prefix: u8,
    names_ports: bool,
    by_administrator: bool,
    denies: bool,
}

impl Policy {
    /// Decides on one address, as resolved.
    ///
    /// # Errors
    /// [`Denied`] says which rule refuses it.
    pub fn check(&self, dst: SocketAddr) -> Result<(), Denied> {
        self.decide(dst.into())
    }

    /// Decides on an address that is to be pinged.
    ///
    /// # Errors
    /// [`Denied`] says which rule refuses it.
    pub fn check_ping(&self, dst: IpAddr) -> Result<(), Denied> {
        self.decide(Destination { ip: dst, port: None })
    }

    fn decide(&self, dst: Destination) -> Result<(), Denied> {
        let ip = canonical(dst.ip);
        self.check_fixed(ip, dst)?;
        let mut decision: Option<(Weight, Option<Denied>)> = None;
        let mut consider = |weight: Weight, denied: Option<Denied>| {
            if decision.as_ref().is_none_or(|(best, _)| weight > *best) {
                decision = Some((weight, denied));
            }
        };
        for rule in &self.deny {
            if let Some(weight) = rule.weight(ip, dst.port, &self.nodes) {
                consider(Weight { denies: true, ..weight }, Some(Denied::Rule(dst, rule.clone())));
            }
        }
        for rule in &self.allow {
            if let Some(weight) = rule.weight(ip, dst.port, &self.nodes) {
                consider(weight, None);
            }
        }
        for (weight, what) in self.built_in(ip, dst.port) {
            consider(weight, Some(Denied::BuiltIn(dst, what)));
        }
        decision.and_then(|(_, denied)| denied).map_or(Ok(()), Err)
    }

    /// Decides on all addresses of a name: returns those that may be dialled.
    ///
    /// # Errors
    /// The first [`Denied`] when none is left.
    pub fn check_all(&self, addresses: &[SocketAddr]) -> Result<Vec<SocketAddr>, Denied> {
        let mut allowed = Vec::with_capacity(addresses.len());
        let mut refused = None;
        for &dst in addresses {
            match self.check(dst) {
                Ok(()) => allowed.push(dst),
                Err(denied) => refused = refused.or(Some(denied)),
            }
        }
        match refused {
            Some(denied) if allowed.is_empty() => Err(denied),
            _ => Ok(allowed),
        }
    }

    /// Applies the rules that no list changes.
    fn check_fixed(&self, ip: IpAddr, dst: Destination) -> Result<(), Denied> {
        let invalid = |why| Err(Denied::Invalid(dst, why));
        if dst.port == Some(0) {
            return invalid("port 0");
        }
        if ip.is_loopback() {
            return if self.loopback == Loopback::Dial { Ok(()) } else { invalid("loopback") };
        }
        if ip.is_multicast() {
            return invalid("multicast");
        }
        match ip {
            // All of 0.0.0.0/8 is "this network" (RFC 791 section 3.2), and Linux takes 0.0.0.0 for loopback.
            IpAddr::V4(v4) if v4.octets()[0] == 0 => return invalid("unspecified"),
            IpAddr::V4(v4) if v4.is_broadcast() => return invalid("broadcast"),
            IpAddr::V6(v6) if v6.is_unspecified() => return invalid("unspecified"),
            _ => {}
        }
        if self.own.addresses.contains(&ip) && dst.port.is_some_and(|port| self.own.ports.contains(&port)) {
            return Err(Denied::Own(dst));
        }
        Ok(())
    }

    /// Yields the built-in refusals that match.
    fn built_in(&self, ip: IpAddr, port: Option<u16>) -> impl Iterator<Item = (Weight, &'static str)> {
        let full = if ip.is_ipv4() { 32 } else { 128 };
        let weigh = |prefix, names_ports| Weight { prefix, names_ports, by_administrator: false, denies: true };
        let is_node = self.nodes.addresses.contains(&ip);
        let is_gateway = self.nodes.gateways.contains(&ip);
        let node = is_node.then(|| (weigh(full, false), "the address of a node"));
        let kubelet = ((is_node || is_gateway) && port.is_some_and(|port| KUBELET_PORTS.contains(&port)))
            .then(|| (weigh(full, true), "a port of the kubelet or of kube-proxy on a node"));
        let metadata = METADATA.iter().filter_map(move |net| {
            let net: IpNet = net.parse().expect("the table above holds subnets");
            net.contains(&ip).then(|| (weigh(net.prefix_len(), false), "a link-local or cloud metadata address"))
        });
        node.into_iter().chain(kubelet).chain(metadata)
    }
}

impl From<SocketAddr> for Destination {
    fn from(dst: SocketAddr) -> Self {
        Self { ip: dst.ip(), port: Some(dst.port()) }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.ip, port).fmt(f),
            None => self.ip.fmt(f),
        }
    }
}

impl Rule {
    /// Returns how specific the rule is for this address; `None` when it does not match.
    fn weight(&self, ip: IpAddr, port: Option<u16>, nodes: &Nodes) -> Option<Weight> {
        let prefix = match self.target {
            Target::Subnet(net) => net.contains(&ip).then(|| net.prefix_len())?,
            Target::Nodes => nodes.addresses.contains(&ip).then_some(if ip.is_ipv4() { 32 } else { 128 })?,
        };
        if self.ports.as_ref().is_some_and(|ports| !port.is_some_and(|port| ports.contains(&port))) {
            return None;
        }
        Some(Weight { prefix, names_ports: self.ports.is_some(), by_administrator: true, denies: false })
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        parse_rule(text).ok_or_else(|| RuleError(text.to_owned()))
    }
}

/// Parses `TARGET` or `TARGET:PORTS`, where an IPv6 target that has ports behind it is in brackets.
fn parse_rule(text: &str) -> Option<Rule> {
    if let Some(target) = parse_target(text) {
        return Some(Rule { target, ports: None });
    }
    let (target, ports) = text.rsplit_once(':')?;
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let ports = first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?;
    let target = if target.starts_with('[') {
        parse_target(&target.replacen(['[', ']'], "", 2))?
    } else if target.contains(':') {
        // `fd00::1:80` would be an address of its own; ambiguous text is not guessed at.
        return None;
    } else {
        parse_target(target)?
    };
    (!ports.is_empty() && *ports.start() != 0).then_some(Rule { target, ports: Some(ports) })
}

/// Parses an address, a subnet or `nodes`. Bits behind the prefix must be zero, as they are a typing error.
fn parse_target(text: &str) -> Option<Target> {
    if text == "nodes" {
        return Some(Target::Nodes);
    }
    let net = match text.parse::<IpNet>() {
        Ok(net) if net.trunc() == net => net,
        Ok(_) => return None,
        Err(_) => IpNet::from(canonical(text.parse::<IpAddr>().ok()?)),
    };
    Some(Target::Subnet(net))
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.target, &self.ports) {
            (Target::Nodes, _) => f.write_str("nodes")?,
            (Target::Subnet(IpNet::V6(net)), Some(_)) => write!(f, "[{}]/{}", net.addr(), net.prefix_len())?,
            (Target::Subnet(net), _) => write!(f, "{net}")?,
        }
        match &self.ports {
            None => Ok(()),
            Some(ports) if ports.start() == ports.end() => write!(f, ":{}", ports.start()),
            Some(ports) => write!(f, ":{}-{}", ports.start(), ports.end()),
        }
    }
}

/// Returns the IPv4 address inside an IPv6 one, where packets to the latter end at the former.
#[must_use]
pub fn canonical(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) if NAT64_PREFIX.contains(&v6) => {
            let [.., a, b, c, d] = v6.octets();
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        _ => ip.to_canonical(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn ips(list: &[&str]) -> BTreeSet<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    fn rules(list: &[&str]) -> Vec<Rule> {
        list.iter().map(|rule| rule.parse().unwrap()).collect()
    }

    fn policy() -> Policy {
        Policy {
            own: Own { addresses: ips(&["10.244.0.9", "10.96.5.5"]), ports: [7400, 7443, 7480].into() },
            nodes: Nodes { addresses: ips(&["172.18.0.2", "fd00:18::2"]), gateways: ips(&["10.244.0.1"]) },
            ..Policy::default()
        }
    }

    #[track_caller]
    fn assert_denied(policy: &Policy, list: &[&str]) {
        for text in list {
            assert!(policy.check(addr(text)).is_err(), "{text} is allowed");
        }
    }

    #[track_caller]
    fn assert_allowed(policy: &Policy, list: &[&str]) {
        for text in list {
            assert_eq!(policy.check(addr(text)), Ok(()), "{text}");
        }
    }

    #[test]
    fn pods_services_and_the_internet_are_allowed_by_default() {
        assert_allowed(&policy(), &["10.244.0.7:80", "10.96.0.1:443", "93.184.216.34:443", "[fd00:10::7]:80"]);
    }

    #[test]
    fn loopback_multicast_broadcast_and_unspecified_are_refused_whatever_is_allowed() {
        let mut policy = policy();
        policy.allow = rules(&["0.0.0.0/0", "::/0", "127.0.0.1:80"]);
        assert_denied(&policy, &["127.0.0.1:80", "127.9.9.9:80", "[::1]:80", "0.0.0.0:80", "0.1.2.3:80", "[::]:80"]);
        assert_denied(&policy, &["224.0.0.1:80", "[ff02::1]:80", "255.255.255.255:80", "10.244.0.7:0"]);
    }

    #[test]
    fn link_local_and_metadata_addresses_are_refused() {
        assert_denied(&policy(), &["169.254.169.254:80", "169.254.1.1:53", "[fe80::1]:80", "[fd00:ec2::254]:80"]);
        assert_denied(&policy(), &["168.63.129.16:80", "100.100.100.200:80", "[fd20:ce::254]:80"]);
        assert_allowed(&policy(), &["[fd00:ec2::253]:80", "168.63.129.17:80"]);
    }

    #[test]
    fn ipv4_inside_ipv6_is_judged_as_ipv4() {
        assert_denied(&policy(), &["[::ffff:127.0.0.1]:80", "[::ffff:169.254.169.254]:80", "[::ffff:172.18.0.2]:22"]);
        assert_denied(&policy(), &["[64:ff9b::169.254.169.254]:80", "[64:ff9b::7f00:1]:80"]);
        assert_allowed(&policy(), &["[::ffff:10.244.0.7]:80"]);
    }

    #[test]
    fn own_ports_are_refused_on_own_addresses_only() {
        let mut policy = policy();
        policy.allow = rules(&["10.244.0.9", "10.96.5.5:7443"]);
        assert_denied(&policy, &["10.244.0.9:7400", "10.244.0.9:7480", "10.96.5.5:7443"]);
        assert_allowed(&policy, &["10.244.0.9:9999", "10.244.0.10:7443"]);
    }

    #[test]
    fn nodes_are_refused_and_a_gateway_only_on_kubelet_ports() {
        assert_denied(&policy(), &["172.18.0.2:22", "172.18.0.2:10250", "[fd00:18::2]:30080"]);
        assert_denied(&policy(), &["10.244.0.1:10250", "10.244.0.1:10255"]);
        assert_allowed(&policy(), &["10.244.0.1:80", "172.18.0.3:22", "10.244.0.7:10250"]);
    }

    #[test]
    fn allowing_nodes_leaves_the_kubelet_refused_until_it_is_named() {
        let mut policy = policy();
        policy.allow = rules(&["nodes"]);
        assert_allowed(&policy, &["172.18.0.2:22"]);
        assert_denied(&policy, &["172.18.0.2:10250"]);
        policy.allow = rules(&["172.18.0.2"]);
        assert_allowed(&policy, &["172.18.0.2:22"]);
        assert_denied(&policy, &["172.18.0.2:10250", "[fd00:18::2]:22"]);
        policy.allow = rules(&["nodes:10250"]);
        assert_allowed(&policy, &["172.18.0.2:10250"]);
        assert_denied(&policy, &["172.18.0.2:22"]);
    }

    #[test]
    fn a_wide_permission_does_not_open_the_nodes_inside_it() {
        let mut policy = policy();
        policy.allow = rules(&["172.16.0.0/12"]);
        assert_denied(&policy, &["172.18.0.2:22"]);
    }

    #[test]
    fn the_most_specific_rule_wins_and_refusal_wins_a_tie() {
        let mut policy = policy();
        policy.deny = rules(&["10.0.0.0/8", "10.1.2.0/24:22", "10.9.0.0/16"]);
        policy.allow = rules(&["10.1.0.0/16", "10.1.2.0/24", "10.9.0.0/16"]);
        assert_denied(&policy, &["10.2.0.1:80", "10.1.2.3:22", "10.9.0.1:80"]);
        assert_allowed(&policy, &["10.1.0.1:80", "10.1.2.3:80"]);
        assert_eq!(
            policy.check(addr("10.1.2.3:22")).unwrap_err().to_string(),
            "10.1.2.3:22 is refused by the rule `10.1.2.0/24:22` of the chart (dialPolicy.deny)"
        );
    }

    #[test]
    fn metadata_can_be_allowed_by_name() {
        let mut policy = policy();
        policy.allow = rules(&["169.254.169.254:80"]);
        assert_allowed(&policy, &["169.254.169.254:80"]);
        assert_denied(&policy, &["169.254.169.254:81"]);
    }

    #[test]
    fn pings_follow_the_rules_that_name_no_port() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut policy = policy();
        policy.deny = rules(&["10.1.0.0/16:22", "10.2.0.0/16", "0.0.0.0/0:80"]);
        policy.allow = rules(&["172.18.0.2:9100", "10.2.0.7"]);
        for allowed in ["10.1.0.1", "10.2.0.7", "10.244.0.1", "10.244.0.9", "fd00:10::7"] {
            assert_eq!(policy.check_ping(ip(allowed)), Ok(()), "{allowed}");
        }
        for denied in
            ["10.2.0.1", "172.18.0.2", "::ffff:172.18.0.2", "169.254.169.254", "fe80::1", "127.0.0.1", "ff02::1"]
        {
            assert!(policy.check_ping(ip(denied)).is_err(), "{denied} is allowed");
        }
        let why = policy.check_ping(ip("10.2.0.1")).unwrap_err().to_string();
        assert_eq!(why, "10.2.0.1 is refused by the rule `10.2.0.0/16` of the chart (dialPolicy.deny)");
    }

    #[test]
    fn a_name_is_dialled_at_its_allowed_addresses_only() {
        let both = [addr("127.0.0.1:80"), addr("10.244.0.7:80")];
        assert_eq!(policy().check_all(&both), Ok(vec![both[1]]));
        assert_eq!(policy().check_all(&both[..1]), Err(Denied::Invalid(both[0].into(), "loopback")));
    }

    #[test]
    fn rules_parse_and_print() {
        for text in ["10.0.0.0/8", "10.1.2.3/32:5432", "fd00::/8", "[fd00::]/8:8000-8999", "nodes", "nodes:9100"] {
            assert_eq!(text.parse::<Rule>().unwrap().to_string(), text);
        }
        assert_eq!("10.1.2.3".parse::<Rule>(), "10.1.2.3/32".parse());
        assert_eq!("[fd00::1]:80".parse::<Rule>(), "[fd00::1]/128:80".parse());
    }

    #[test]
    fn what_is_not_a_rule_is_refused() {
        for text in ["", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.1:0", "10.0.0.1:9-8", "10.0.0.1:x", "web", "node", "a:1"]
        {
            assert!(text.parse::<Rule>().is_err(), "{text}");
        }
    }
}
