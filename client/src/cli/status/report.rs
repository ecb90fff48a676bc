//! The data of `tp status`: the keys of its JSON stay the same from release to release.

use jiff::Timestamp;
use serde::Serialize;

use super::Answer;
use crate::attach::TunnelState;
use crate::cli::engage::report::EngagementReport;
use crate::docker::connections::{Connection, Handler, container_name};

/// The document.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Report {
    /// By name.
    pub(in crate::cli) connections: Vec<ConnectionReport>,
}

impl Report {
    /// Whether a connection is up, be it that it is being made again at the moment.
    pub(super) fn is_connected(&self) -> bool {
        self.connections.iter().any(|connection| matches!(connection.state, State::Connected | State::Reconnecting))
    }
}

/// State of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::cli) enum State {
    /// Being made.
    Connecting,
    /// Up.
    Connected,
    /// The tunnel was lost and is being made again.
    Reconnecting,
    /// Its container runs, and its daemon does not answer.
    Unresponsive,
    /// Its container has ended.
    Ended,
    /// Its container is gone, and others had joined it.
    Gone,
}

/// One connection.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::cli) struct ConnectionReport {
    pub(in crate::cli) name: String,
    pub(super) container: String,
    pub(in crate::cli) state: State,
    /// Why it is not connected.
    pub(super) reason: Option<String>,
    /// Whether it ends with the command that made it.
    pub(super) held: bool,
    pub(super) context: String,
    pub(super) server: String,
    pub(super) namespace: String,
    pub(super) connected_at: Option<Timestamp>,
    pub(in crate::cli) manager: Manager,
    /// Who the manager knows the connection belongs to. Absent when it does not ask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<User>,
    /// Why the manager does not know that although it asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user_problem: Option<String>,
    pub(super) cluster: Cluster,
    /// Subnets that are routed into the cluster.
    pub(super) routes: Vec<String>,
    /// Subnets that never are, CIDR: those of the setting `never-proxy`.
    pub(super) excluded: Vec<String>,
    /// Subnets of the cluster that containers see as others.
    #[serde(rename = "virtual")]
    pub(super) virtual_subnets: Vec<VirtualSubnet>,
    pub(super) dns: Dns,
    pub(super) agents: Vec<Agent>,
    /// The workload by way of which the connection dials, as it was asked for. Absent where the traffic manager does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) via: Option<String>,
    /// Why connections wait, since that is not possible at the moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) via_problem: Option<String>,
    /// What the connection has engaged.
    pub(super) engagements: Vec<EngagementReport>,
    pub(super) traffic: Traffic,
    pub(in crate::cli) daemon: Daemon,
    /// Containers that have joined.
    pub(super) containers: Vec<Handler>,
}

/// The traffic manager.
#[derive(Debug, Default, Serialize)]
pub(in crate::cli) struct Manager {
    pub(in crate::cli) namespace: String,
    pub(in crate::cli) pod: String,
    /// Empty when it is not known.
    pub(in crate::cli) version: String,
}

/// A user, as the API server names them.
#[derive(Debug, Serialize)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) groups: Vec<String>,
}

/// What the manager knows of its cluster.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Cluster {
    pub(super) domain: String,
    pub(super) service_subnets: Vec<String>,
    pub(super) pod_subnets: Vec<String>,
}

/// A subnet of the cluster that containers see as another one.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct VirtualSubnet {
    pub(super) subnet: String,
    pub(super) seen_as: String,
    pub(super) reason: String,
}

/// Name resolution in joined containers.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Dns {
    pub(super) address: String,
    pub(super) search: Vec<String>,
    /// Names that stand for others: `NAME=TARGET`.
    pub(super) mappings: Vec<String>,
    /// Addresses of the cluster that containers see as others because no route leads to them.
    pub(super) virtual_addresses: u64,
}

/// A traffic agent.
#[derive(Debug, Serialize)]
pub(super) struct Agent {
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) version: String,
}

/// Counters since the daemon process was started.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Traffic {
    pub(super) lanes: u32,
    pub(super) tcp_flows: u64,
    pub(super) udp_flows: u64,
    /// Connections to handlers of engagements, and to the localhost of pods.
    pub(super) engaged_connections: u64,
    pub(super) bytes_up: u64,
    pub(super) bytes_down: u64,
    pub(super) reconnects: u32,
}

/// The daemon.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::cli) struct Daemon {
    pub(in crate::cli) version: String,
    pub(super) restarts: u32,
    pub(super) resident_bytes: u64,
}

impl ConnectionReport {
    /// Joins what the engine and the daemon say.
    pub(in crate::cli) fn new(connection: &Connection, answer: Answer, containers: Vec<Handler>) -> Self {
        let mut report = Self {
            name: connection.name.clone(),
            container: connection.container(),
            state: State::Unresponsive,
            reason: None,
            held: connection.held,
            context: connection.context.clone(),
            server: connection.server.clone(),
            namespace: connection.namespace.clone(),
            connected_at: None,
            manager: Manager { namespace: connection.manager_namespace.clone(), ..Manager::default() },
            user: None,
            user_problem: None,
            cluster: Cluster::default(),
            routes: Vec::new(),
            excluded: Vec::new(),
            virtual_subnets: Vec::new(),
            dns: Dns::default(),
            agents: Vec::new(),
            via: None,
            via_problem: None,
            engagements: Vec::new(),
            traffic: Traffic::default(),
            daemon: Daemon { version: connection.version.clone(), ..Daemon::default() },
            containers,
        };
        match answer {
            Answer::Silent(why) => report.reason = Some(why),
            Answer::Ended(ended) => {
                report.state = State::Ended;
                report.reason = Some(ended.reason());
            }
            Answer::Status(status) => report.take(*status),
        }
        report
    }

    fn take(&mut self, status: crate::attach::Status) {
        self.state = match status.tunnel() {
            TunnelState::Idle | TunnelState::Connecting => State::Connecting,
            TunnelState::Connected => State::Connected,
            TunnelState::Reconnecting => State::Reconnecting,
        };
        self.reason = Some(status.tunnel_error).filter(|why| !why.is_empty() && self.state != State::Connected);
        self.held = status.held;
        self.connected_at = Timestamp::from_second(status.connected_at).ok().filter(|_| status.connected_at > 0);
        self.manager.pod = status.manager_pod;
        self.manager.version = status.manager_version;
        self.user = status.user.map(|user| User { name: user.name, groups: user.groups });
        self.user_problem = Some(status.user_problem).filter(|why| !why.is_empty());
        self.cluster = Cluster {
            domain: status.cluster_domain,
            service_subnets: status.service_subnets,
            pod_subnets: status.pod_subnets,
        };
        self.routes = status.routed_subnets;
        self.excluded = status.excluded_subnets;
        let virtual_subnet = |it: crate::attach::VirtualSubnet| VirtualSubnet {
            subnet: it.subnet,
            seen_as: it.seen_as,
            reason: it.reason,
        };
        self.virtual_subnets = status.virtual_subnets.into_iter().map(virtual_subnet).collect();
        self.dns = Dns {
            address: status.dns_address,
            search: status.dns_search,
            mappings: status.dns_mappings,
            virtual_addresses: status.virtual_addresses,
        };
        let agent =
            |agent: crate::attach::Agent| Agent { namespace: agent.namespace, pod: agent.pod, version: agent.version };
        self.agents = status.agents.into_iter().map(agent).collect();
        self.via = Some(status.via).filter(|via| !via.is_empty());
        self.via_problem = Some(status.via_problem).filter(|why| !why.is_empty());
        self.engagements = status.engagements.into_iter().map(EngagementReport::from).collect();
        self.traffic = Traffic {
            lanes: status.lanes,
            tcp_flows: status.tcp_flows,
            udp_flows: status.udp_flows,
            engaged_connections: status.engaged_connections,
            bytes_up: status.bytes_up,
            bytes_down: status.bytes_down,
            reconnects: status.reconnects,
        };
        self.daemon =
            Daemon { version: status.daemon_version, restarts: status.restarts, resident_bytes: status.resident_bytes };
    }

    /// A connection of which nothing is left but containers that had joined it.
    pub(super) fn gone(name: String, containers: Vec<Handler>) -> Self {
        Self {
            container: container_name(&name),
            name,
            state: State::Gone,
            reason: Some("its container was removed".to_owned()),
            held: false,
            context: String::new(),
            server: String::new(),
            namespace: String::new(),
            connected_at: None,
            manager: Manager::default(),
            user: None,
            user_problem: None,
            cluster: Cluster::default(),
            routes: Vec::new(),
            excluded: Vec::new(),
            virtual_subnets: Vec::new(),
            dns: Dns::default(),
            agents: Vec::new(),
            via: None,
            via_problem: None,
            engagements: Vec::new(),
            traffic: Traffic::default(),
            daemon: Daemon::default(),
            containers,
        }
    }

    /// Subnets of the cluster that are not routed: they came up after the container had given its rights away.
    pub(super) fn unrouted(&self) -> Vec<&str> {
        let known = self.cluster.service_subnets.iter().chain(&self.cluster.pod_subnets);
        let mapped = self.virtual_subnets.iter().map(|it| &it.subnet);
        let nets = parsed(self.routes.iter().chain(&self.excluded).chain(mapped));
        let covered = |subnet: &str| {
            subnet.parse::<ipnet::IpNet>().is_ok_and(|subnet| nets.iter().any(|net| net.contains(&subnet)))
        };
        known.map(String::as_str).filter(|subnet| !covered(subnet)).collect()
    }

    /// Subnets that are routed and not the cluster's own.
    pub(super) fn also(&self) -> Vec<String> {
        let mapped = self.virtual_subnets.iter().map(|it| &it.seen_as);
        let own = parsed(self.cluster.service_subnets.iter().chain(&self.cluster.pod_subnets).chain(mapped));
        let is_own = |route: &ipnet::IpNet| own.iter().any(|net| net.contains(route) || route.contains(net));
        parsed(self.routes.iter()).iter().filter(|route| !is_own(route)).map(ToString::to_string).collect()
    }
}

fn parsed<'a>(subnets: impl Iterator<Item = &'a String>) -> Vec<ipnet::IpNet> {
    subnets.filter_map(|subnet| subnet.parse().ok()).collect()
}
