//! resolv.conf: what the engine wrote, and what takes its place. Source of the format: resolv.conf(5).

use std::fs::File;
use std::io::{self, Seek, Write};
use std::net::IpAddr;

use super::messages::NetworkConfig;

/// What the container's resolv.conf said before it was ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResolvConf {
    /// In the order in which they are asked.
    pub(crate) nameservers: Vec<IpAddr>,
    /// The search list; without `.`, which Docker writes for an empty one.
    pub(crate) search: Vec<String>,
}

impl ResolvConf {
    /// Reads what stub resolvers read; anything else is skipped, as they do.
    pub(crate) fn parse(text: &str) -> Self {
        let mut parsed = Self::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    parsed.nameservers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()))
                }
                // The last of several wins.
                Some("search" | "domain") => {
                    parsed.search = words.filter(|domain| *domain != ".").map(str::to_owned).collect();
                }
                _ => {}
            }
        }
        parsed
    }
}

/// Rewrites the file in place: the engine shares it with joined containers, which would not see a new file.
pub(super) fn write(file: &mut File, config: &NetworkConfig) -> io::Result<()> {
    let text = format!(
        "# Written by tp. The resolver behind this address asks the cluster, then whom this file named before.\n\
         nameserver {}\nsearch {}\noptions ndots:{}\n",
        config.nameserver,
        config.search.join(" "),
        config.ndots
    );
    file.rewind()?;
    file.set_len(0)?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_written_file_is_understood() {
        let text = "# Generated\nnameserver 127.0.0.11\nsearch .\nsearch corp.example lab.example\noptions edns0\n\
                    nameserver fe80::1%eth0\nnameserver 10.0.0.2\n";
        let parsed = ResolvConf::parse(text);
        assert_eq!(parsed.nameservers, ["127.0.0.11", "10.0.0.2"].map(|ip| ip.parse::<IpAddr>().unwrap()));
        assert_eq!(parsed.search, ["corp.example", "lab.example"]);
    }

    #[test]
    fn rewritten_file_replaces_all_of_the_old_text() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[b'x'; 4096]).unwrap();
        let search = vec!["shop.svc.cluster.local".to_owned(), "svc.cluster.local".to_owned()];
        let config = NetworkConfig { nameserver: "198.18.0.2".into(), search, ndots: 5, ..NetworkConfig::default() };
        write(&mut file, &config).unwrap();
        file.rewind().unwrap();
        let text = io::read_to_string(file).unwrap();
        let parsed = ResolvConf::parse(&text);
        assert_eq!(parsed.search, ["shop.svc.cluster.local", "svc.cluster.local"]);
        assert!(text.ends_with("options ndots:5\n") && !text.contains('x'), "{text}");
    }
}
