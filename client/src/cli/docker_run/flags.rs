//! The flags of `docker run` and `podman run`, and which of them take a value: enough to find the image among them.
//!
//! From `docker run --help` of Docker 28 with those it hides (other platforms, later API versions, old names), and
//! podman-run(1) of podman 5. A flag that is in neither list can be given as `--flag=value`.

/// Whether a flag takes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arity {
    /// It does not; `--flag=false` turns it off.
    Switch,
    /// It does: the rest of the argument, or the next one.
    Value,
}

/// The long name and the arity of a flag by its short name.
pub(super) fn by_short(short: char) -> Option<(&'static str, Arity)> {
    let (_, long, arity) = *SHORT.iter().find(|(name, ..)| *name == short)?;
    Some((long, arity))
}

/// The name by which a flag is known here, and its arity: old names lead to the new ones.
pub(super) fn by_long(long: &str) -> Option<(&'static str, Arity)> {
    let long = match long {
        "net" => "network",
        "net-alias" => "network-alias",
        "dns-opt" => "dns-option",
        other => other,
    };
    let listed = |list: &[&'static str]| list.iter().copied().find(|name| *name == long);
    let switch = listed(SWITCHES).or_else(|| listed(PODMAN_SWITCHES)).map(|name| (name, Arity::Switch));
    switch.or_else(|| listed(VALUES).or_else(|| listed(PODMAN_VALUES)).map(|name| (name, Arity::Value)))
}

const SHORT: &[(char, &str, Arity)] = &[
    ('a', "attach", Arity::Value),
    ('c', "cpu-shares", Arity::Value),
    ('d', "detach", Arity::Switch),
    ('e', "env", Arity::Value),
    ('h', "hostname", Arity::Value),
    ('i', "interactive", Arity::Switch),
    ('l', "label", Arity::Value),
    ('m', "memory", Arity::Value),
    ('p', "publish", Arity::Value),
    ('P', "publish-all", Arity::Switch),
    ('q', "quiet", Arity::Switch),
    ('t', "tty", Arity::Switch),
    ('u', "user", Arity::Value),
    ('v', "volume", Arity::Value),
    ('w', "workdir", Arity::Value),
];

const SWITCHES: &[&str] = &[
    "detach",
    "disable-content-trust",
    "help",
    "init",
    "interactive",
    "no-healthcheck",
    "oom-kill-disable",
    "privileged",
    "publish-all",
    "quiet",
    "read-only",
    "rm",
    "sig-proxy",
    "tty",
    "use-api-socket",
];

const VALUES: &[&str] = &[
    "add-host",
    "annotation",
    "attach",
    "blkio-weight",
    "blkio-weight-device",
    "cap-add",
    "cap-drop",
    "cgroup-parent",
    "cgroupns",
    "cidfile",
    "cpu-count",
    "cpu-percent",
    "cpu-period",
    "cpu-quota",
    "cpu-rt-period",
    "cpu-rt-runtime",
    "cpu-shares",
    "cpus",
    "cpuset-cpus",
    "cpuset-mems",
    "detach-keys",
    "device",
    "device-cgroup-rule",
    "device-read-bps",
    "device-read-iops",
    "device-write-bps",
    "device-write-iops",
    "dns",
    "dns-option",
    "dns-search",
    "domainname",
    "entrypoint",
    "env",
    "env-file",
    "expose",
    "gpus",
    "group-add",
    "health-cmd",
    "health-interval",
    "health-retries",
    "health-start-interval",
    "health-start-period",
    "health-timeout",
    "hostname",
    "io-maxbandwidth",
    "io-maxiops",
    "ip",
    "ip6",
    "ipc",
    "isolation",
    "kernel-memory",
    "label",
    "label-file",
    "link",
    "link-local-ip",
    "log-driver",
    "log-opt",
    "mac-address",
    "memory",
    "memory-reservation",
    "memory-swap",
    "memory-swappiness",
    "mount",
    "name",
    "network",
    "network-alias",
    "oom-score-adj",
    "pid",
    "pids-limit",
    "platform",
    "publish",
    "pull",
    "restart",
    "runtime",
    "security-opt",
    "shm-size",
    "stop-signal",
    "stop-timeout",
    "storage-opt",
    "sysctl",
    "tmpfs",
    "ulimit",
    "user",
    "userns",
    "uts",
    "volume",
    "volume-driver",
    "volumes-from",
    "workdir",
];

const PODMAN_SWITCHES: &[&str] = &[
    "env-host",
    "http-proxy",
    "no-hostname",
    "no-hosts",
    "passwd",
    "read-only-tmpfs",
    "replace",
    "rmi",
    "rootfs",
    "tls-verify",
    "unsetenv-all",
];

const PODMAN_VALUES: &[&str] = &[
    "arch",
    "authfile",
    "cert-dir",
    "cgroup-conf",
    "cgroups",
    "chrootdirs",
    "conmon-pidfile",
    "creds",
    "decryption-key",
    "env-merge",
    "gidmap",
    "group-entry",
    "health-log-destination",
    "health-max-log-count",
    "health-max-log-size",
    "health-on-failure",
    "health-startup-cmd",
    "health-startup-interval",
    "health-startup-retries",
    "health-startup-success",
    "health-startup-timeout",
    "hosts-file",
    "hostuser",
    "image-volume",
    "init-ctr",
    "init-path",
    "intel-rdt-closid",
    "os",
    "passwd-entry",
    "personality",
    "pidfile",
    "pod",
    "pod-id-file",
    "preserve-fd",
    "preserve-fds",
    "rdt-class",
    "requires",
    "retry",
    "retry-delay",
    "sdnotify",
    "seccomp-policy",
    "secret",
    "shm-size-systemd",
    "subgidname",
    "subuidname",
    "systemd",
    "timeout",
    "tz",
    "uidmap",
    "umask",
    "unsetenv",
    "variant",
];

#[cfg(test)]
mod tests {
    use super::*;

    /// What `docker run --help` of Docker 28.2 prints, in its order, as `short long type`.
    const DOCKER_HELP: &str = "
        - add-host list|a attach list|- blkio-weight uint16|- blkio-weight-device list|- cap-add list|- cap-drop list|
        - cgroup-parent string|- cgroupns string|- cidfile string|- cpu-period int|- cpu-quota int|- cpu-rt-period int|
        - cpu-rt-runtime int|c cpu-shares int|- cpus decimal|- cpuset-cpus string|- cpuset-mems string|d detach|
        - detach-keys string|- device list|- device-cgroup-rule list|- device-read-bps list|- device-read-iops list|
        - device-write-bps list|- device-write-iops list|- disable-content-trust|- dns list|- dns-option list|
        - dns-search list|- domainname string|- entrypoint string|e env list|- env-file list|- expose list|
        - gpus gpu-request|- group-add list|- health-cmd string|- health-interval duration|- health-retries int|
        - health-start-period duration|- health-timeout duration|- help|h hostname string|- init|i interactive|
        - ip string|- ip6 string|- ipc string|- isolation string|- kernel-memory bytes|l label list|- label-file list|
        - link list|- link-local-ip list|- log-driver string|- log-opt list|- mac-address string|m memory bytes|
        - memory-reservation bytes|- memory-swap bytes|- memory-swappiness int|- mount mount|- name string|
        - network network|- network-alias list|- no-healthcheck|- oom-kill-disable|- oom-score-adj int|- pid string|
        - pids-limit int|- platform string|- privileged|p publish list|P publish-all|- pull string|q quiet|- read-only|
        - restart string|- rm|- runtime string|- security-opt list|- shm-size bytes|- sig-proxy|- stop-signal string|
        - stop-timeout int|- storage-opt list|- sysctl map|- tmpfs list|t tty|- ulimit ulimit|- use-api-socket|
        u user string|- userns string|- uts string|v volume list|- volume-driver string|- volumes-from list|
        w workdir string";

    #[test]
    fn every_flag_of_docker_run_is_known_with_its_arity() {
        let mut shorts = 0;
        for line in DOCKER_HELP.split('|') {
            let mut words = line.split_whitespace();
            let (short, long) = (words.next().unwrap(), words.next().unwrap());
            let arity = if words.next().is_some() { Arity::Value } else { Arity::Switch };
            assert_eq!(by_long(long), Some((long, arity)), "{long}");
            if short != "-" {
                shorts += 1;
                assert_eq!(by_short(short.chars().next().unwrap()), Some((long, arity)), "-{short}");
            }
        }
        assert_eq!(SHORT.len(), shorts);
    }

    #[test]
    fn no_flag_is_listed_twice() {
        let mut all: Vec<_> = [SWITCHES, VALUES, PODMAN_SWITCHES, PODMAN_VALUES].concat();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn old_names_lead_to_the_new_ones() {
        assert_eq!(by_long("net"), Some(("network", Arity::Value)));
        assert_eq!(by_long("net-alias"), Some(("network-alias", Arity::Value)));
        assert_eq!(by_long("no-such-flag"), None);
    }
}
