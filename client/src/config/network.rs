//! The values of settings about names and addresses: what a name is mapped to, what is seen as a virtual subnet.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::value::{Domain, Subnet, try_from_string};

/// A name that stands for another one, or for an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct DnsMapping {
    /// The name that is asked for.
    pub(crate) name: Domain,
    /// What it stands for.
    pub(crate) target: DnsTarget,
}

/// What a name is mapped to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum DnsTarget {
    /// Another name, as CNAME records say it.
    Name(Domain),
    /// An address.
    Address(IpAddr),
}

impl FromStr for DnsMapping {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!(
                "`{s}` does not map a name: {why}; write it like `db.example=postgres.shop.svc.cluster.local` or `db.example=10.20.1.5`"
            )
        };
        let (name, target) = s.split_once('=').ok_or_else(|| wrong("it has no `=`"))?;
        let name: Domain = name.trim().parse().map_err(|why: String| wrong(&why))?;
        let target = match target.trim().parse() {
            Ok(ip) => DnsTarget::Address(ip),
            Err(_) => DnsTarget::Name(target.trim().parse().map_err(|why: String| wrong(&why))?),
        };
        if target == DnsTarget::Name(name.clone()) {
            return Err(wrong("it leads to itself"));
        }
        Ok(Self { name, target })
    }
}

impl fmt::Display for DnsMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            DnsTarget::Name(target) => write!(f, "{}={}", self.name, target.as_str()),
            DnsTarget::Address(ip) => write!(f, "{}={ip}", self.name),
        }
    }
}

/// Largest subnets that are mapped, IPv4 and IPv6: there is room for eight of the one, 255 of the other.
const MIN_PREFIX_LEN: [u8; 2] = [8, 40];

/// What is seen as virtual subnets, beside what overlaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum Vnat {
    /// Nothing that is not named, be it that it overlaps.
    None,
    /// The subnets of services.
    Service,
    /// Those of pods.
    Pods,
    /// Those of `also-proxy`.
    Also,
    /// All of these.
    All,
    /// This one.
    Subnet(Subnet),
}

impl FromStr for Vnat {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "none" => Ok(Self::None),
            "service" => Ok(Self::Service),
            "pods" => Ok(Self::Pods),
            "also" => Ok(Self::Also),
            "all" => Ok(Self::All),
            subnet => {
                let subnet: Subnet = subnet.parse().map_err(|_| {
                    format!(
                        "`{s}` is neither a subnet nor one of service, pods, also, all, none: write it like `10.20.0.0/16`"
                    )
                })?;
                let [ipv4, ipv6] = MIN_PREFIX_LEN;
                let least = if subnet.0.addr().is_ipv4() { ipv4 } else { ipv6 };
                if subnet.0.prefix_len() < least {
                    return Err(format!("`{s}` is too large to be mapped: name subnets of /{least} or smaller"));
                }
                Ok(Self::Subnet(subnet))
            }
        }
    }
}

impl fmt::Display for Vnat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Service => f.write_str("service"),
            Self::Pods => f.write_str("pods"),
            Self::Also => f.write_str("also"),
            Self::All => f.write_str("all"),
            Self::Subnet(subnet) => subnet.fmt(f),
        }
    }
}

try_from_string!(DnsMapping, Vnat);

macro_rules! into_string {
    ($($type:ty),*) => {$(
        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    )*};
}
into_string!(DnsMapping, Vnat);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_lead_to_names_and_addresses_and_read_back() {
        for (text, name, target) in [
            ("DB.example.=pg.shop.svc.cluster.local", "db.example", "pg.shop.svc.cluster.local"),
            ("db = postgres", "db", "postgres"),
            ("db=10.20.1.5", "db", "10.20.1.5"),
            ("db=fd00::1", "db", "fd00::1"),
        ] {
            let mapping: DnsMapping = text.parse().unwrap();
            assert_eq!((mapping.name.as_str(), mapping.to_string()), (name, format!("{name}={target}")));
            assert_eq!(mapping.to_string().parse::<DnsMapping>().unwrap(), mapping);
            assert_eq!(matches!(mapping.target, DnsTarget::Address(_)), target.parse::<IpAddr>().is_ok(), "{text}");
        }
        for (text, why) in [
            ("db", "no `=`"),
            ("=x", "not a domain"),
            ("db=", "not a domain"),
            ("a b=c", "not a domain"),
            ("*.db=c", "not a domain"),
            ("db=10.0.0.0/8", "not a domain"),
            ("db=DB.", "leads to itself"),
        ] {
            let error = text.parse::<DnsMapping>().unwrap_err();
            assert!(error.contains(why) && error.contains("write it like"), "{text}: {error}");
        }
    }

    #[test]
    fn vnat_is_a_subnet_or_one_of_some_words() {
        for text in ["none", "service", "pods", "also", "all", "10.0.0.0/8", "10.1.2.3/32", "fd00::/40"] {
            assert_eq!(text.parse::<Vnat>().unwrap().to_string(), text);
        }
        for (text, why) in [
            ("services", "neither a subnet"),
            ("", "neither a subnet"),
            ("10.0.0.0/33", "neither a subnet"),
            ("0.0.0.0/0", "neither a subnet"),
            ("8.0.0.0/7", "too large"),
            ("fd00::/32", "too large"),
        ] {
            let error = text.parse::<Vnat>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
