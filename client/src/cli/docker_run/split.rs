//! Which of docker's flags go to the container, and which to the owner of its network.

use super::parse::Flag;
use crate::cli::publish::{HostSpec, NetworkSpec, PublishSpec, Wishes};

/// The flags, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Split {
    /// Flags for the container itself.
    pub(super) pass: Vec<Flag>,
    /// Wishes for the owner of the network.
    pub(super) wishes: Wishes,
    /// Whether all exposed ports are to be published.
    pub(super) publish_all: bool,
    /// Ports that are exposed besides those of the image, such as `80/tcp`.
    pub(super) expose: Vec<String>,
    /// Whether the container runs in the background.
    pub(super) detached: bool,
    /// The flags that only the owner of the network takes, as they are written.
    pub(super) owner_flags: Vec<String>,
}

impl Split {
    /// Whether the container is given this flag.
    pub(super) fn has(&self, name: &str) -> bool {
        self.pass.iter().any(|flag| flag.name == name)
    }
}

/// Sorts the flags.
///
/// # Errors
/// The text of a usage error: a flag that cannot be had in a joined network.
pub(super) fn split(flags: Vec<Flag>) -> Result<Split, String> {
    let mut split = Split::default();
    let mut aliases = Vec::new();
    for flag in flags {
        let text = flag.text();
        let written = |name: &str| format!("--{name} {text}");
        match flag.name.as_str() {
            "publish" => {
                split.wishes.publish.extend(text.parse::<PublishSpec>()?.0);
                split.owner_flags.push(format!("-p {text}"));
            }
            "publish-all" => {
                split.publish_all = flag.is_on();
                if flag.is_on() {
                    split.owner_flags.push("-P".to_owned());
                }
            }
            // Of use for -P alone, and refused by Docker on a joined network.
            "expose" => split.expose.extend(text.parse::<PublishSpec>()?.0.into_iter().map(|port| port.container)),
            "hostname" => {
                split.owner_flags.push(written("hostname"));
                split.wishes.hostname = text;
            }
            "add-host" => {
                split.wishes.extra_hosts.push(text.parse::<HostSpec>()?.0);
                split.owner_flags.push(written("add-host"));
            }
            "network" => {
                split.wishes.networks.push(text.parse::<NetworkSpec>()?.0);
                split.owner_flags.push(written("network"));
            }
            "network-alias" => {
                split.owner_flags.push(written("network-alias"));
                aliases.push(text);
            }
            "dns" | "dns-option" | "dns-search" => {
                return Err(format!("--{} cannot be set: names are resolved as they are in the cluster", flag.name));
            }
            "ip" | "ip6" | "link-local-ip" | "mac-address" | "link" => {
                return Err(format!("--{} cannot be set for a container in the cluster's network", flag.name));
            }
            "detach" => {
                split.detached = flag.is_on();
                split.pass.push(flag);
            }
            _ => split.pass.push(flag),
        }
    }
    if !aliases.is_empty() {
        let Some(network) = split.wishes.networks.first_mut() else {
            return Err("--network-alias needs a --network".to_owned());
        };
        network.aliases.extend(aliases);
    }
    Ok(split)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(list: &[(&str, Option<&str>)]) -> Vec<Flag> {
        let flag =
            |(name, value): &(&str, Option<&str>)| Flag { name: (*name).to_owned(), value: value.map(Into::into) };
        list.iter().map(flag).collect()
    }

    #[test]
    fn flags_of_the_network_go_to_its_owner() {
        let split = split(flags(&[
            ("rm", None),
            ("publish", Some("8080:80")),
            ("publish-all", None),
            ("expose", Some("90")),
            ("hostname", Some("h")),
            ("add-host", Some("a:1.2.3.4")),
            ("network", Some("dev")),
            ("network-alias", Some("x")),
            ("env", Some("A=1")),
        ]))
        .unwrap();
        let passed: Vec<_> = split.pass.iter().map(|flag| flag.name.as_str()).collect();
        assert_eq!(passed, ["rm", "env"]);
        assert_eq!(split.wishes.publish[0].container, "80/tcp");
        assert_eq!((split.publish_all, split.expose), (true, vec!["90/tcp".to_owned()]));
        assert_eq!(split.wishes.networks[0].aliases, ["x"]);
        assert_eq!(
            split.owner_flags,
            ["-p 8080:80", "-P", "--hostname h", "--add-host a:1.2.3.4", "--network dev", "--network-alias x"]
        );
    }

    #[test]
    fn flags_that_cannot_be_are_named() {
        for (name, value) in [
            ("dns", "1.1.1.1"),
            ("ip", "1.2.3.4"),
            ("mac-address", "x"),
            ("link", "x"),
            ("network", "host"),
            ("network-alias", "x"),
            ("publish", "x"),
        ] {
            assert!(split(flags(&[(name, Some(value))])).is_err(), "{name}");
        }
    }

    #[test]
    fn last_detach_counts_and_is_passed_on() {
        let on = split(flags(&[("detach", None)])).unwrap();
        assert!(on.detached && on.pass.len() == 1);
        let off = split(flags(&[("detach", None), ("detach", Some("false"))])).unwrap();
        assert!(!off.detached && off.pass.len() == 2);
    }
}
