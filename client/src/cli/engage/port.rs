//! `--port LOCAL[:REMOTE][/udp]` and `--to-pod PORT[/tcp]`.

use std::fmt;
use std::str::FromStr;

use tp_protocol::engage::call::ToPod;
use tp_protocol::engage::wire::Transport;

/// Longest name of a Service's port (a DNS label, RFC 1035 section 2.3.4); a container's has 15 characters at most.
const MAX_NAME_CHARS: usize = 63;

/// A port of the handler, and the port of the workload that it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PortSpec {
    /// Where the handler listens; not 0.
    pub(super) local: u16,
    /// Number or name of the workload's port; empty for the only one.
    pub(super) remote: String,
    /// TCP or UDP.
    pub(super) transport: Transport,
}

impl FromStr for PortSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| Err(format!("{what}: write LOCAL, LOCAL:REMOTE or LOCAL:REMOTE/udp"));
        let (ports, transport) = match text.split_once('/') {
            None => (text, Transport::Tcp),
            Some((ports, "tcp")) => (ports, Transport::Tcp),
            Some((ports, "udp")) => (ports, Transport::Udp),
            Some((_, other)) => return wrong(&format!("`{other}` is neither tcp nor udp")),
        };
        let (local, remote) = match ports.split_once(':') {
            None => (ports, ""),
            Some((_, "")) => return wrong("there is no port behind the colon"),
            Some(both) => both,
        };
        let Some(local) = number(local) else {
            return wrong(&format!("`{local}` is not a port's number"));
        };
        if !(remote.is_empty() || number(remote).is_some() || is_name(remote)) {
            return wrong(&format!("`{remote}` is neither a port's number nor its name"));
        }
        Ok(Self { local, remote: remote.to_owned(), transport })
    }
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.local)?;
        if !self.remote.is_empty() {
            write!(f, ":{}", self.remote)?;
        }
        if self.transport == Transport::Udp { f.write_str("/udp") } else { Ok(()) }
    }
}

/// A port of a pod's localhost; not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PodPort(u16);

impl PodPort {
    /// As the manager is asked for it.
    pub(super) fn to_wire(self) -> ToPod {
        ToPod { port: self.0.into(), transport: Transport::Tcp.into() }
    }
}

impl FromStr for PodPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = match text.split_once('/') {
            None => text,
            Some((port, "tcp")) => port,
            Some((_, "udp")) => {
                return Err("Kubernetes' port-forward, which leads to a pod's localhost, carries TCP only".to_owned());
            }
            Some((_, other)) => return Err(format!("`{other}` is not tcp: write PORT")),
        };
        number(port).map(Self).ok_or_else(|| format!("`{port}` is not a port's number"))
    }
}

fn number(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port > 0 && text.bytes().all(|byte| byte.is_ascii_digit()))
}

fn is_name(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    text.len() <= MAX_NAME_CHARS
        && text.bytes().all(inner)
        && text.bytes().any(|byte| byte.is_ascii_lowercase())
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_a_number_here_and_a_number_or_name_there() {
        let spec = |local, remote: &str, transport| Ok(PortSpec { local, remote: remote.into(), transport });
        assert_eq!("8080".parse(), spec(8080, "", Transport::Tcp));
        assert_eq!("8080:80".parse(), spec(8080, "80", Transport::Tcp));
        assert_eq!("8080:http/tcp".parse(), spec(8080, "http", Transport::Tcp));
        assert_eq!("53:dns-udp/udp".parse(), spec(53, "dns-udp", Transport::Udp));
        for text in ["8080", "8080:http", "53:dns/udp"] {
            assert_eq!(text.parse::<PortSpec>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_port_of_a_pods_localhost_is_a_number_and_tcp() {
        let wire = |text: &str| text.parse::<PodPort>().map(PodPort::to_wire);
        let port = |port| Ok(ToPod { port, transport: Transport::Tcp.into() });
        assert_eq!((wire("6379"), wire("80/tcp")), (port(6379), port(80)));
        assert!(wire("8125/udp").unwrap_err().contains("carries TCP only"));
        for (text, why) in [("0", "`0` is not a port's number"), ("a", "`a` is not"), ("80/x", "`x` is not tcp")] {
            assert!(wire(text).unwrap_err().starts_with(why), "{text}");
        }
    }

    #[test]
    fn what_is_no_port_is_named() {
        for (text, part) in [
            ("", "`` is not a port's number"),
            ("0", "`0` is not a port's number"),
            ("+80", "`+80` is not a port's number"),
            ("65536:80", "`65536` is not"),
            ("http:80", "`http` is not a port's number"),
            ("80:", "there is no port behind the colon"),
            ("80:0", "`0` is neither"),
            ("80:70000", "`70000` is neither"),
            ("80:Http", "`Http` is neither"),
            ("80:-http", "`-http` is neither"),
            ("80/sctp", "`sctp` is neither tcp nor udp"),
        ] {
            let error = text.parse::<PortSpec>().unwrap_err();
            assert!(error.starts_with(part) && error.ends_with("LOCAL:REMOTE/udp"), "{text}: {error}");
        }
    }
}
