//! The values that settings can have, checked once, where they are read.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Longest name of a connection: `tp-NAME` is also the container's host name, and labels end at 63 (RFC 1035).
pub(crate) const MAX_NAME_CHARS: usize = 40;
/// Longest label of a DNS name (RFC 1035 section 2.3.4), and so of a namespace.
const MAX_LABEL_CHARS: usize = 63;

/// Name of a connection: 1 to 40 of `a-z`, `0-9` and `-`, with a letter or digit at both ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct ConnectionName(String);

impl ConnectionName {
    /// Makes a name out of any text, such as that of a kubeconfig context.
    pub(crate) fn from_text(text: &str) -> Self {
        let mut name = String::new();
        for c in text.chars().flat_map(char::to_lowercase) {
            let c = if c.is_ascii_alphanumeric() { c } else { '-' };
            if name.len() < MAX_NAME_CHARS && !(c == '-' && (name.is_empty() || name.ends_with('-'))) {
                name.push(c);
            }
        }
        let name = name.trim_end_matches('-');
        Self(if name.is_empty() { "default" } else { name }.to_owned())
    }

    /// The `n`-th name like this one: `NAME-n`, cut so that it stays a valid name.
    pub(crate) fn numbered(&self, n: u32) -> Self {
        let suffix = format!("-{n}");
        let kept = self.0.chars().take(MAX_NAME_CHARS - suffix.len()).collect::<String>();
        Self(format!("{}{suffix}", kept.trim_end_matches('-')))
    }

    /// The name.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ConnectionName {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if is_dns_label(s, MAX_NAME_CHARS) {
            return Ok(Self(s.to_owned()));
        }
        Err(format!(
            "`{s}` cannot name a connection: use 1 to {MAX_NAME_CHARS} of a-z, 0-9 and `-`, with a letter or digit at both ends"
        ))
    }
}

/// Name of a Kubernetes namespace: a DNS label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Namespace(String);

impl Namespace {
    /// The name.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Namespace {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if is_dns_label(s, MAX_LABEL_CHARS) {
            return Ok(Self(s.to_owned()));
        }
        Err(format!(
            "`{s}` cannot name a namespace: use 1 to {MAX_LABEL_CHARS} of a-z, 0-9 and `-`, with a letter or digit at both ends"
        ))
    }
}

fn is_dns_label(s: &str, max_chars: usize) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=max_chars).contains(&s.len()) && s.bytes().all(inner) && !s.starts_with('-') && !s.ends_with('-')
}

/// How much the daemon logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogLevel {
    /// What stops the daemon.
    Error,
    /// What someone should look at.
    Warn,
    /// Connections made and lost.
    Info,
    /// Decisions.
    Debug,
    /// Packets.
    Trace,
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        })
    }
}

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        clap::ValueEnum::from_str(s, false).map_err(|_| format!("`{s}` is not one of error, warn, info, debug, trace"))
    }
}

/// A duration as people write it: `500ms`, `60s`, `1h30m`. Zero can be written as `0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct HumanDuration(pub(crate) Duration);

impl HumanDuration {
    /// The duration itself.
    pub(crate) const fn as_duration(self) -> Duration {
        self.0
    }

    /// `seconds` as a duration.
    pub(crate) const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

/// Units from the longest, in milliseconds.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl FromStr for HumanDuration {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let wrong = || format!("`{s}` is not a duration: write it like `60s`, `12h` or `1h30m`");
        if s == "0" {
            return Ok(Self(Duration::ZERO));
        }
        let mut rest = s;
        let mut millis = 0_u64;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let (number, tail) = rest.split_at(digits);
            let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(letters);
            let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
            let number = number.parse::<u64>().map_err(|_| wrong())?;
            millis = number.checked_mul(*factor).and_then(|part| millis.checked_add(part)).ok_or_else(wrong)?;
            rest = tail;
        }
        if s.is_empty() { Err(wrong()) } else { Ok(Self(Duration::from_millis(millis))) }
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if millis == 0 {
            return f.write_str("0s");
        }
        // Days read badly for small numbers of them ("12h", "36h"), and nothing here lasts for weeks.
        for (unit, factor) in UNITS.into_iter().skip(1) {
            if millis >= factor {
                write!(f, "{}{unit}", millis / factor)?;
                millis %= factor;
            }
        }
        Ok(())
    }
}

impl From<HumanDuration> for String {
    fn from(duration: HumanDuration) -> Self {
        duration.to_string()
    }
}

/// A subnet, without the bits of a host in it; or a single address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Subnet(pub(crate) IpNet);

impl FromStr for Subnet {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let net = s.parse::<IpNet>().or_else(|_| s.parse::<std::net::IpAddr>().map(IpNet::from));
        match net {
            Ok(net) if net.prefix_len() == 0 => Err(format!("`{s}` is every address: name the subnets that are meant")),
            Ok(net) => Ok(Self(net.trunc())),
            Err(_) => Err(format!("`{s}` is not a subnet: write it like `10.20.0.0/16` or `10.20.1.5`")),
        }
    }
}

/// Longest name of the DNS, without its final dot (RFC 1035 section 2.3.4).
const MAX_DOMAIN_CHARS: usize = 253;

/// A domain with all names below it; lower-case, without dots at its ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Domain(String);

impl Domain {
    /// The domain.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Domain {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let domain = s.strip_prefix('.').unwrap_or(s);
        let domain = domain.strip_suffix('.').unwrap_or(domain).to_lowercase();
        // Service names begin with an underscore (RFC 2782).
        let is_label = |label: &str| is_dns_label(&label.replace('_', "a"), MAX_LABEL_CHARS);
        if domain.len() <= MAX_DOMAIN_CHARS && domain.split('.').all(is_label) {
            return Ok(Self(domain));
        }
        Err(format!("`{s}` is not a domain: write it like `corp.example` or `example.com`"))
    }
}

macro_rules! try_from_string {
    ($($type:ty),*) => {$(
        impl TryFrom<String> for $type {
            type Error = String;

            fn try_from(s: String) -> Result<Self, String> {
                s.parse()
            }
        }
    )*};
}
pub(super) use try_from_string;
try_from_string!(ConnectionName, Namespace, HumanDuration, Subnet, Domain);

macro_rules! display_inner {
    ($($type:ty),*) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    )*};
}
display_inner!(ConnectionName, Namespace, Subnet, Domain);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_write_them() {
        for (text, millis) in
            [("0", 0), ("0s", 0), ("500ms", 500), ("60s", 60_000), ("12h", 43_200_000), ("1h30m", 5_400_000)]
        {
            assert_eq!(text.parse::<HumanDuration>().unwrap().0.as_millis(), millis, "{text}");
        }
        for text in ["", "5", "s", "1x", "-1s", "1.5h", "1h 30m", "99999999999999999999h", "9999999999999999d"] {
            assert!(text.parse::<HumanDuration>().is_err(), "{text}");
        }
    }

    #[test]
    fn durations_print_what_reads_back() {
        for text in ["0s", "500ms", "1m", "12h", "1h30m", "36h", "1s500ms"] {
            assert_eq!(text.parse::<HumanDuration>().unwrap().to_string(), text);
        }
        assert_eq!("60s".parse::<HumanDuration>().unwrap().to_string(), "1m");
    }

    #[test]
    fn any_context_makes_a_valid_name() {
        for (text, name) in [
            ("kind-demo", "kind-demo"),
            ("arn:aws:eks:eu-1:12/Cluster_A", "arn-aws-eks-eu-1-12-cluster-a"),
            ("Admin@Prod", "admin-prod"),
            ("--", "default"),
            ("", "default"),
            ("gke_project-with-a-long-name_europe-west1-b_cluster", "gke-project-with-a-long-name-europe-west"),
            ("ÄÖ", "default"),
        ] {
            let made = ConnectionName::from_text(text);
            assert_eq!(made.as_str(), name, "{text}");
            assert!(made.as_str().parse::<ConnectionName>().is_ok(), "{text}");
        }
    }

    #[test]
    fn numbered_names_stay_valid() {
        let long = ConnectionName::from_text(&"a".repeat(60));
        assert_eq!(long.numbered(12).as_str().len(), MAX_NAME_CHARS);
        assert_eq!("web".parse::<ConnectionName>().unwrap().numbered(2).as_str(), "web-2");
        assert!(long.numbered(7).as_str().parse::<ConnectionName>().is_ok());
    }

    #[test]
    fn subnets_and_single_addresses_lose_their_host_bits() {
        for (text, net) in [
            ("10.1.2.3/16", "10.1.0.0/16"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("fd00::1/64", "fd00::/64"),
            ("::1", "::1/128"),
        ] {
            assert_eq!(text.parse::<Subnet>().unwrap().to_string(), net);
        }
        for text in ["", "10.1.2", "10.1.2.3/33", "0.0.0.0/0", "::/0", "web"] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }

    #[test]
    fn domains_are_lower_case_without_outer_dots() {
        for (text, domain) in [("Corp.Example.", "corp.example"), (".local", "local"), ("_tcp.a", "_tcp.a")] {
            assert_eq!(text.parse::<Domain>().unwrap().as_str(), domain);
        }
        for text in ["", ".", "a..b", "a b", "*.a", "-a", &format!("{}a", "a.".repeat(127))] {
            assert!(text.parse::<Domain>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_that_docker_or_dns_would_refuse_are_refused() {
        for name in ["", "-a", "a-", "A", "a_b", "a.b", "ä", &"a".repeat(41)] {
            assert!(name.parse::<ConnectionName>().is_err(), "{name}");
        }
        assert!("kube-system".parse::<Namespace>().is_ok());
        assert!("Kube".parse::<Namespace>().is_err());
    }
}
