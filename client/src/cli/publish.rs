//! What Docker sets on the container that owns a network, and refuses on one that joins it: ports, host name, extra hosts,
//! networks. A connection takes them for the containers that join it.

use std::net::IpAddr;
use std::str::FromStr;

use crate::docker::daemon::{Join, Publish};

/// Ports that one `-p` may publish: a typing error must not ask for all of them.
const MAX_RANGE: u16 = 1024;

/// Wishes for the daemon container, which owns the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    /// Published ports.
    pub(super) publish: Vec<Publish>,
    /// Docker networks to join, besides those of the settings.
    pub(super) networks: Vec<Join>,
    /// Host name; empty: the container's id.
    pub(super) hostname: String,
    /// `HOST:IP` lines for `/etc/hosts`.
    pub(super) extra_hosts: Vec<String>,
}

/// One `-p`: the ports it publishes, in docker's grammar `[[IP:][HOSTPORT[-HOSTPORT]]:]PORT[-PORT][/PROTOCOL]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PublishSpec(pub(super) Vec<Publish>);

impl FromStr for PublishSpec {
    type Err = String;

    fn from_str(spec: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("`{spec}` is not [[IP:]HOSTPORT:]PORT[/PROTOCOL]: {why}");
        let (ports, protocol) = spec.rsplit_once('/').unwrap_or((spec, "tcp"));
        let protocol = protocol.to_lowercase();
        if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
            return Err(wrong("the protocol is tcp, udp or sctp"));
        }
        let (host, container) = match ports.rsplit_once(':') {
            Some((host, container)) => (Some(host), container),
            None => (None, ports),
        };
        let (host_ip, host_port) = match host.map(|host| host.rsplit_once(':').map_or(("", host), |split| split)) {
            Some((ip, port)) => (ip.trim_start_matches('[').trim_end_matches(']'), port),
            None => ("", ""),
        };
        if !host_ip.is_empty() && host_ip.parse::<IpAddr>().is_err() {
            return Err(wrong("the first of three parts is an IP address"));
        }
        let (first, last) = range(container).ok_or_else(|| wrong("ports are 1 to 65535"))?;
        let host_range = match host_port {
            "" => None,
            text => Some(range(text).ok_or_else(|| wrong("ports are 1 to 65535"))?),
        };
        if last - first >= MAX_RANGE {
            return Err(wrong(&format!("a range has at most {MAX_RANGE} ports")));
        }
        let publish = |container: u16, host_port: String| Publish {
            container: format!("{container}/{protocol}"),
            host_ip: host_ip.to_owned(),
            host_port,
        };
        let published = match host_range {
            None => (first..=last).map(|port| publish(port, String::new())).collect(),
            // Docker picks one port of the host's range.
            Some(_) if first == last => vec![publish(first, host_port.to_owned())],
            Some((host_first, host_last)) if host_last - host_first == last - first => {
                (first..=last).map(|port| publish(port, (host_first + (port - first)).to_string())).collect()
            }
            Some(_) => return Err(wrong("both ranges have to be of one size")),
        };
        Ok(Self(published))
    }
}

fn range(text: &str) -> Option<(u16, u16)> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    (first <= last).then_some((first, last))
}

/// One `--network` in docker's short or long form: a name, or `name=NAME,alias=ALIAS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NetworkSpec(pub(super) Join);

impl FromStr for NetworkSpec {
    type Err = String;

    fn from_str(spec: &str) -> Result<Self, String> {
        let mut join = Join::default();
        if !spec.contains('=') {
            spec.clone_into(&mut join.network);
        } else {
            for part in spec.split(',') {
                match part.split_once('=') {
                    Some(("name", name)) => name.clone_into(&mut join.network),
                    Some(("alias", alias)) => join.aliases.push(alias.to_owned()),
                    _ => return Err(format!("`{part}` in `{spec}`: tp takes name=NAME and alias=ALIAS")),
                }
            }
        }
        match join.network.as_str() {
            "" => Err(format!("`{spec}` names no network")),
            "host" | "none" => Err(format!("the network `{spec}` leaves no room for the cluster's")),
            other if other.starts_with("container:") => {
                Err(format!("the network `{spec}` is another container's; it cannot have the cluster's too"))
            }
            _ => Ok(Self(join)),
        }
    }
}

/// One `--add-host`: `HOST:IP` or `HOST=IP`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostSpec(pub(super) String);

impl FromStr for HostSpec {
    type Err = String;

    fn from_str(spec: &str) -> Result<Self, String> {
        let split = spec.split_once('=').or_else(|| spec.split_once(':')).filter(|(host, _)| !host.is_empty());
        let (host, ip) = split.ok_or_else(|| format!("`{spec}` is not HOST:IP"))?;
        let ip = ip.trim_start_matches('[').trim_end_matches(']');
        if ip != "host-gateway" && ip.parse::<IpAddr>().is_err() {
            return Err(format!("`{ip}` in `{spec}` is no IP address"));
        }
        Ok(Self(format!("{host}:{ip}")))
    }
}

/// Whether `network` is the one that every daemon container is on anyway.
pub(super) fn is_default_network(network: &str) -> bool {
    matches!(network, "bridge" | "default")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(spec: &str) -> String {
        let list = spec.parse::<PublishSpec>().unwrap().0;
        let shown = list.iter().map(|p| format!("{}|{}|{}", p.host_ip, p.host_port, p.container));
        shown.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn docker_s_grammar_of_ports() {
        for (spec, expected) in [
            ("80", "||80/tcp"),
            ("8080:80", "|8080|80/tcp"),
            ("53:53/udp", "|53|53/udp"),
            ("127.0.0.1:8080:80", "127.0.0.1|8080|80/tcp"),
            ("127.0.0.1::80", "127.0.0.1||80/tcp"),
            ("[::1]:8080:80/TCP", "::1|8080|80/tcp"),
            ("8000-8001:90-91", "|8000|90/tcp |8001|91/tcp"),
            ("8000-8009:80", "|8000-8009|80/tcp"),
            ("80-81", "||80/tcp ||81/tcp"),
        ] {
            assert_eq!(published(spec), expected, "{spec}");
        }
        for spec in ["", "x", "0", "80:", "65536", "80/icmp", "a:80:80", "2-1", "1-3:1-2", "1-65535", "1:2:3:4"] {
            assert!(spec.parse::<PublishSpec>().is_err(), "{spec}");
        }
    }

    #[test]
    fn networks_have_a_short_and_a_long_form() {
        assert_eq!("dev".parse::<NetworkSpec>().unwrap().0, Join { network: "dev".into(), aliases: vec![] });
        let long = "name=dev,alias=a,alias=b".parse::<NetworkSpec>().unwrap().0;
        assert_eq!(long, Join { network: "dev".into(), aliases: vec!["a".into(), "b".into()] });
        for spec in ["", "host", "none", "container:x", "alias=a", "name=dev,ip=1.2.3.4"] {
            assert!(spec.parse::<NetworkSpec>().is_err(), "{spec}");
        }
    }

    #[test]
    fn hosts_are_checked() {
        for (spec, expected) in [("a:1.2.3.4", "a:1.2.3.4"), ("a=[::1]", "a:::1"), ("a:host-gateway", "a:host-gateway")]
        {
            assert_eq!(spec.parse::<HostSpec>().unwrap().0, expected);
        }
        for spec in ["a", ":1.2.3.4", "a:b"] {
            assert!(spec.parse::<HostSpec>().is_err(), "{spec}");
        }
    }
}
