//! The data of an engagement, for all commands that print some: the keys of its JSON stay the same from release to release.

use std::fmt;

use jiff::Timestamp;
use serde::Serialize;
use tp_protocol::engage::call::{self, Held, HeldPort};
use tp_protocol::engage::filter::{Filter, PathRule};
use tp_protocol::engage::wire::{self, FilterMessage};

/// An engagement.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::cli) struct EngagementReport {
    pub(in crate::cli) id: String,
    pub(in crate::cli) namespace: String,
    /// `KIND/NAME`.
    pub(in crate::cli) workload: String,
    /// Empty when it is about none.
    pub(in crate::cli) service: String,
    pub(in crate::cli) what: What,
    pub(in crate::cli) mode: Mode,
    pub(in crate::cli) why_mode: String,
    pub(in crate::cli) ports: Vec<Port>,
    /// TCP ports of the pod's localhost that its holder's containers reach on theirs.
    pub(in crate::cli) to_pod: Vec<u32>,
    /// The container whose environment can be asked for; empty when the manager does not say.
    pub(in crate::cli) container: String,
    /// Where that container has volumes.
    pub(in crate::cli) mounts: Vec<Mount>,
    /// Which requests; `null` for all traffic.
    pub(in crate::cli) filter: Option<Rules>,
    pub(in crate::cli) when_away: WhenAway,
    /// How long a caller waits for a handler that is away before that happens.
    pub(in crate::cli) wait_ms: u32,
    pub(in crate::cli) holder: String,
    pub(in crate::cli) since: Option<Timestamp>,
    /// The connection that was asked holds it.
    pub(in crate::cli) mine: bool,
    /// `null` while there is no agent to tell.
    pub(in crate::cli) traffic: Option<Traffic>,
    /// What is wrong with it.
    pub(in crate::cli) problem: Option<String>,
}

/// What happens to the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::cli) enum What {
    Intercept,
    Wiretap,
    Replace,
    /// Nothing: environment and volumes only.
    Ingest,
    /// Nothing: what its holder dials comes from there.
    Via,
    /// Something of a later version.
    Unknown,
}

/// Where the agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::cli) enum Mode {
    StandIn,
    Sidecar,
    Unknown,
}

/// What happens while the handler is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::cli) enum WhenAway {
    Cluster,
    Fail,
    Hold,
    Unknown,
}

/// A port.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::cli) struct Port {
    /// The container's.
    pub(in crate::cli) port: u32,
    /// `tcp` or `udp`.
    pub(in crate::cli) transport: &'static str,
    /// The Service's.
    pub(in crate::cli) service_port: Option<u32>,
    /// Where the holder takes it.
    pub(in crate::cli) local: String,
}

/// A volume in a container.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::cli) struct Mount {
    pub(in crate::cli) path: String,
    /// Its kind and what it is made from: `configMap app-config`.
    pub(in crate::cli) volume: String,
    pub(in crate::cli) read_only: bool,
}

/// Which requests.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Rules {
    /// As `--http-header` takes them.
    pub(in crate::cli) headers: Vec<String>,
    pub(in crate::cli) methods: Vec<String>,
    pub(in crate::cli) paths: Vec<Path>,
    /// All of it, for people.
    pub(in crate::cli) text: String,
}

/// A rule for the path.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::cli) enum Path {
    Equal(String),
    Prefix(String),
    Regex(String),
}

/// What has happened to the traffic so far.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::cli) struct Traffic {
    /// The handler was not reached last time.
    pub(in crate::cli) away: bool,
    pub(in crate::cli) taken: u64,
    pub(in crate::cli) fallen_back: u64,
    pub(in crate::cli) copied: u64,
    pub(in crate::cli) copies_lost: u64,
}

impl EngagementReport {
    /// Name of the workload, without its kind.
    pub(in crate::cli) fn name(&self) -> &str {
        self.workload.rsplit('/').next().unwrap_or(&self.workload)
    }

    /// Which requests, for people.
    pub(in crate::cli) fn filter_text(&self) -> &str {
        match (&self.filter, self.what) {
            (Some(rules), _) => &rules.text,
            (None, What::Ingest) => "no traffic",
            (None, What::Via) => "what is dialled",
            (None, What::Intercept | What::Wiretap | What::Replace | What::Unknown) => "all traffic",
        }
    }

    /// What and whose, for a line: `intercept of deployment/web in shop (x-user=ann)`.
    pub(in crate::cli) fn summary(&self) -> String {
        format!("{} of {} in {} ({})", self.what, self.workload, self.namespace, self.filter_text())
    }

    /// `active`, or what is not as it should be.
    pub(in crate::cli) fn state(&self) -> String {
        match (&self.problem, &self.traffic) {
            (Some(problem), _) => problem.clone(),
            (None, Some(Traffic { away: true, .. })) => "handler away".to_owned(),
            (None, _) => "active".to_owned(),
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Intercept => "intercept",
            Self::Wiretap => "wiretap",
            Self::Replace => "replace",
            Self::Ingest => "ingest",
            Self::Via => "via",
            Self::Unknown => "engagement",
        })
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StandIn => "stand-in",
            Self::Sidecar => "sidecar",
            Self::Unknown => "unknown to this tp",
        })
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.port, self.transport)
    }
}

impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}{})", self.path, self.volume, if self.read_only { ", read-only" } else { "" })
    }
}

impl From<Held> for EngagementReport {
    fn from(held: Held) -> Self {
        let traffic = held.report.as_ref().map(|report| Traffic {
            away: report.is_away,
            taken: report.taken,
            fallen_back: report.fallen_back,
            copied: report.copied,
            copies_lost: report.copies_lost,
        });
        Self {
            what: match held.what() {
                wire::Kind::Intercept => What::Intercept,
                wire::Kind::Wiretap => What::Wiretap,
                wire::Kind::Replace => What::Replace,
                wire::Kind::Ingest => What::Ingest,
                wire::Kind::Via => What::Via,
                wire::Kind::Unspecified => What::Unknown,
            },
            mode: match held.mode() {
                call::Mode::StandIn => Mode::StandIn,
                call::Mode::Sidecar => Mode::Sidecar,
                call::Mode::Unspecified | call::Mode::Auto => Mode::Unknown,
            },
            when_away: match held.when_away() {
                wire::WhenAway::Cluster => WhenAway::Cluster,
                wire::WhenAway::Fail => WhenAway::Fail,
                wire::WhenAway::Hold => WhenAway::Hold,
                wire::WhenAway::Unspecified => WhenAway::Unknown,
            },
            wait_ms: held.wait_ms,
            id: held.id,
            namespace: held.namespace,
            workload: held.workload,
            service: held.service,
            why_mode: held.why_mode,
            ports: held.ports.into_iter().map(Port::from).collect(),
            to_pod: held.to_pod.iter().map(|it| it.port).collect(),
            container: held.container,
            mounts: held.mounts.into_iter().map(Mount::from).collect(),
            filter: held.filter.as_ref().and_then(rules),
            holder: held.holder,
            since: Timestamp::from_second(held.since).ok().filter(|_| held.since > 0),
            mine: held.is_mine,
            traffic,
            problem: Some(held.problem).filter(|problem| !problem.is_empty()),
        }
    }
}

impl From<call::Mount> for Mount {
    fn from(mount: call::Mount) -> Self {
        Self { path: mount.path, volume: mount.volume, read_only: mount.is_read_only }
    }
}

impl From<HeldPort> for Port {
    fn from(held: HeldPort) -> Self {
        Self {
            port: held.port,
            transport: match held.transport() {
                wire::Transport::Tcp => "tcp",
                wire::Transport::Udp => "udp",
                wire::Transport::Unspecified => "unknown",
            },
            service_port: (held.service_port > 0).then_some(held.service_port),
            local: held.local,
        }
    }
}

/// `None` for a filter without rules.
fn rules(message: &FilterMessage) -> Option<Rules> {
    let Ok(filter) = Filter::try_from(message) else {
        let text = "rules that this tp does not know".to_owned();
        return Some(Rules { headers: Vec::new(), methods: Vec::new(), paths: Vec::new(), text });
    };
    let path = |rule: &PathRule| match rule {
        PathRule::Equal(path) => Path::Equal(path.clone()),
        PathRule::Prefix(prefix) => Path::Prefix(prefix.clone()),
        PathRule::Regex(regex) => Path::Regex(regex.as_str().to_owned()),
    };
    (!filter.is_empty()).then(|| Rules {
        headers: filter.headers().iter().map(ToString::to_string).collect(),
        methods: filter.methods().iter().map(ToString::to_string).collect(),
        paths: filter.paths().iter().map(path).collect(),
        text: filter.to_string(),
    })
}
