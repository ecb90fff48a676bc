//! The parts of a machine that the product must leave alone.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::docker::engine;
use crate::process::{Input, run};
use crate::runtime::block_on;

/// How long one command may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Kernel values below `/proc/sys/net` that change by themselves.
const RESTLESS: [&str; 2] = ["nf_conntrack_count", "stable_secret"];

/// A picture of the machine: one line per route, rule, resolver line, listener, kernel value, firewall rule and mount.
///
/// What comes with any container is left out: the engine's own mounts, and interfaces named `veth...` with what the
/// kernel keeps about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture(BTreeSet<String>);

impl Picture {
    /// Takes the picture. Firewall rules take root; without it, `sudo` is asked, which must not want a password.
    ///
    /// # Panics
    /// When something cannot be looked at.
    pub fn take() -> Self {
        let mut lines = BTreeSet::new();
        for command in ["ip -4 route show table all", "ip -6 route show table all", "ip -4 rule", "ip -6 rule"] {
            lines.extend(
                output(command).lines().filter(|line| !is_about_veth(line)).map(|line| format!("{command}: {line}")),
            );
        }
        for command in ["iptables-save", "ip6tables-save", "nft list ruleset"] {
            lines.extend(as_root(command).lines().map(|line| format!("{command}: {}", without_counters(line))));
        }
        let resolver = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        lines.extend(resolver.lines().map(|line| format!("resolv.conf: {line}")));
        lines.extend(listeners());
        kernel_values(Path::new("/proc/sys/net"), &mut lines);
        lines.extend(mounts());
        Self(lines)
    }

    /// What `later` has more (`+`) and less (`-`) than this.
    pub fn changes(&self, later: &Self) -> Vec<String> {
        let added = later.0.difference(&self.0).map(|line| format!("+ {line}"));
        let removed = self.0.difference(&later.0).map(|line| format!("- {line}"));
        added.chain(removed).collect()
    }
}

/// Whether the tests run as root, whom no file mode keeps out.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn is_about_veth(line: &str) -> bool {
    line.split_whitespace().any(|word| word.starts_with("veth"))
}

/// Packets and bytes are counted in chain lines (`[12:3456]`, iptables) and in rules (`counter packets 1 bytes 2`, nft).
fn without_counters(line: &str) -> String {
    // The first line of a dump says when it was made.
    if line.starts_with('#') {
        return "#".to_owned();
    }
    let is_count = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    let words = line.split(' ').filter(|word| !word.starts_with('[')).scan("", |before, word| {
        let counts = is_count(word) && matches!(*before, "packets" | "bytes");
        *before = word;
        Some(if counts { "N" } else { word })
    });
    words.collect::<Vec<_>>().join(" ")
}

fn output(command: &str) -> String {
    let mut words = command.split(' ');
    let mut command = Command::new(words.next().expect("a command has a name"));
    command.args(words);
    run(command, Input::Nothing, LIMIT).ok()
}

/// Output of a command that takes root; nothing where the machine does not have it.
fn as_root(command: &str) -> String {
    let name = command.split(' ').next().expect("a command has a name");
    let folders = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    if !folders.iter().any(|folder| Path::new(folder).join(name).exists()) {
        return String::new();
    }
    if is_root() { output(command) } else { output(&format!("sudo -n {command}")) }
}

/// Sockets that wait for others: TCP listeners, UDP sockets that are not connected.
fn listeners() -> Vec<String> {
    /// `TCP_LISTEN` and `TCP_CLOSE` of the kernel's `tcp_states.h`; the latter is what an unconnected UDP socket has.
    const STATES: [(&str, &str); 4] = [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")];
    let mut found = Vec::new();
    for (table, state) in STATES {
        let text = std::fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            if let [_, local, _, its_state, ..] = fields[..]
                && its_state == state
            {
                found.push(format!("{table} socket at {local}"));
            }
        }
    }
    found
}

fn kernel_values(folder: &Path, lines: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if name.starts_with("veth") || RESTLESS.contains(&name.as_str()) {
            continue;
        }
        if path.is_dir() {
            kernel_values(&path, lines);
        } else if let Ok(value) = std::fs::read_to_string(&path) {
            lines.insert(format!("{}: {}", path.display(), value.trim()));
        }
    }
}

/// Mounts outside the engine's own folders, in which every container has some.
fn mounts() -> Vec<String> {
    let info = block_on(engine().info()).expect("the engine describes itself");
    let root = info.docker_root_dir.unwrap_or_else(|| "/var/lib/docker".to_owned());
    let text = std::fs::read_to_string("/proc/self/mountinfo").expect("the machine runs Linux");
    let engines = [root.as_str(), "/run/docker/", "/var/run/docker/", "/run/containerd/", "/var/lib/containerd/"];
    let lines = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|mount_point| !engines.iter().any(|folder| mount_point.starts_with(folder)));
    lines.map(|mount_point| format!("mount {mount_point}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_both_firewalls_are_no_changes() {
        let (before, after) = (":INPUT ACCEPT [1:60]", ":INPUT ACCEPT [2:120]");
        assert_eq!(without_counters(before), without_counters(after));
        let (before, after) = ("counter packets 1 bytes 60 accept", "counter packets 2 bytes 120 accept");
        assert_eq!(without_counters(before), without_counters(after));
        assert_ne!(without_counters("-A FORWARD -p 80"), without_counters("-A FORWARD -p 81"));
    }

    #[test]
    fn changes_are_told_from_both_sides() {
        let picture = |lines: &[&str]| Picture(lines.iter().map(|line| (*line).to_owned()).collect());
        let changes = picture(&["a", "b"]).changes(&picture(&["b", "c"]));
        assert_eq!(changes, ["+ c", "- a"]);
    }
}
