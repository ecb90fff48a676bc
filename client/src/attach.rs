//! Messages between the CLI and the daemon, over the stdio of `docker exec tp-NAME /tp daemon attach`.
//!
//! Both ends frame them with [`tp_protocol::frame`]. The CLI sends [`Request`]s; the daemon answers each with any number
//! of [`Progress`] replies and one final reply, in order. Both ends come from the same source tree but not always from
//! the same release: unknown fields are skipped, an unknown request is answered with [`Failure`].

use std::fmt;

use tp_protocol::engage::call::{Answer, Call, Held};

/// Largest message in either direction: a kubeconfig's certificates and a status with its agents fit many times.
pub(crate) const MAX_ATTACH_BYTES: usize = 4 << 20;

/// What the CLI asks of the daemon.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Request {
    /// Which request.
    #[prost(oneof = "request::Kind", tags = "1, 2, 3, 4, 5, 6, 7, 8")]
    pub(crate) kind: Option<request::Kind>,
}

/// The kinds of [`Request`].
pub(crate) mod request {
    /// One request.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(crate) enum Kind {
        /// Connect to the cluster; the first request that a new daemon gets. Final reply: `Status`.
        #[prost(message, tag = "1")]
        Connect(Box<super::Connect>),
        /// Report the state of the connection. Final reply: `Status`.
        #[prost(message, tag = "2")]
        Status(super::Empty),
        /// Keep the connection after this stream ends. Final reply: `Done`.
        #[prost(message, tag = "3")]
        Detach(super::Empty),
        /// End the session and exit. Final reply: `Done`, after the manager was told.
        #[prost(message, tag = "4")]
        Quit(super::Empty),
        /// End the connection when this stream ends, as `Connect` with `hold` does: for a stream that replaces one which
        /// ended with a daemon process that its init restarted. Final reply: `Done`.
        #[prost(message, tag = "5")]
        Hold(super::Empty),
        /// Which subnets of the cluster came up since the network was set up, and can be routed into the tunnel as they
        /// are? Final reply: `Subnets`.
        #[prost(message, tag = "6")]
        NewSubnets(super::Empty),
        /// Routes to these were added. Final reply: `Done`.
        #[prost(message, tag = "7")]
        Routed(super::Subnets),
        /// Ask the manager about engagements. Final reply: `Answer`, which can be that it could not be done.
        #[prost(message, tag = "8")]
        Engagements(Box<super::EngagementCall>),
    }
}

/// What the daemon answers.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Reply {
    /// Which reply.
    #[prost(oneof = "reply::Kind", tags = "1, 2, 3, 4, 5, 6")]
    pub(crate) kind: Option<reply::Kind>,
}

/// The kinds of [`Reply`].
pub(crate) mod reply {
    /// One reply.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(crate) enum Kind {
        /// Not final: what is being waited for.
        #[prost(message, tag = "1")]
        Progress(super::Progress),
        /// The request was carried out; nothing more to say.
        #[prost(message, tag = "2")]
        Done(super::Empty),
        /// The state of the connection.
        #[prost(message, tag = "3")]
        Status(Box<super::Status>),
        /// The request failed.
        #[prost(message, tag = "4")]
        Failure(super::Failure),
        /// The subnets that were asked for.
        #[prost(message, tag = "5")]
        Subnets(super::Subnets),
        /// What the manager answered.
        #[prost(message, tag = "6")]
        Answer(Box<super::Answer>),
    }
}

/// A list of subnets.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Subnets {
    /// CIDR.
    #[prost(string, repeated, tag = "1")]
    pub(crate) subnets: Vec<String>,
}

/// Something to ask the manager about engagements.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct EngagementCall {
    /// What is asked.
    #[prost(message, required, tag = "1")]
    pub(crate) call: Call,
    /// How long the answer may take, with the wait for a tunnel that is being made again, in milliseconds.
    #[prost(uint32, tag = "2")]
    pub(crate) limit_ms: u32,
}

/// A message without content.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Empty {}

/// What is being waited for, as a person would read it: "waiting for tp-manager-0 in tp-system".
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Progress {
    /// Lower-case, without a full stop.
    #[prost(string, tag = "1")]
    pub(crate) text: String,
}

/// Why a request failed and what the user can do.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Failure {
    /// What failed, on which object; lower-case, without a full stop.
    #[prost(string, tag = "1")]
    pub(crate) message: String,
    /// What to do next; empty when nothing is known.
    #[prost(string, tag = "2")]
    pub(crate) hint: String,
    /// The chain of causes, outermost first, for `--verbose`.
    #[prost(string, repeated, tag = "3")]
    pub(crate) causes: Vec<String>,
}

/// Connect to a cluster.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Connect {
    /// Name of the connection (the container is `tp-NAME`).
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    /// How to reach the API server, everything inline.
    #[prost(message, required, tag = "2")]
    pub(crate) kube: KubeAccess,
    /// Namespace of the manager.
    #[prost(string, tag = "3")]
    pub(crate) manager_namespace: String,
    /// The connected namespace: its short service names resolve.
    #[prost(string, tag = "4")]
    pub(crate) namespace: String,
    /// Settings that the user made, which beat the chart's client settings; as JSON, keys as in `config.yaml`.
    #[prost(string, tag = "5")]
    pub(crate) settings_json: String,
    /// Version of the CLI.
    #[prost(string, tag = "6")]
    pub(crate) cli_version: String,
    /// How long connecting may take, in milliseconds.
    #[prost(uint32, tag = "7")]
    pub(crate) connect_timeout_ms: u32,
    /// End the connection when this stream ends. A later `Detach` clears it.
    #[prost(bool, tag = "8")]
    pub(crate) hold: bool,
    /// Subnets to which the machine of the container has routes, CIDR; none when the CLI cannot see that machine's.
    #[prost(string, repeated, tag = "9")]
    pub(crate) machine_subnets: Vec<String>,
}

/// Everything needed to talk to one API server as one user.
///
/// Holds credentials: `Debug` shows the server and the kind of credential only.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(crate) struct KubeAccess {
    /// Name of the kubeconfig context, for messages.
    #[prost(string, tag = "1")]
    pub(crate) context: String,
    /// Name of the kubeconfig user, for messages.
    #[prost(string, tag = "2")]
    pub(crate) user: String,
    /// URL of the API server as the daemon container reaches it.
    #[prost(string, tag = "3")]
    pub(crate) server: String,
    /// URL of the API server as the kubeconfig has it, for messages.
    #[prost(string, tag = "4")]
    pub(crate) original_server: String,
    /// Server name for TLS when it is not the URL's host; empty otherwise.
    #[prost(string, tag = "5")]
    pub(crate) tls_server_name: String,
    /// Certificate authorities, PEM; empty for the public ones.
    #[prost(bytes = "vec", tag = "6")]
    pub(crate) ca_pem: Vec<u8>,
    /// Do not verify the server's certificate.
    #[prost(bool, tag = "7")]
    pub(crate) insecure_skip_tls_verify: bool,
    /// Client certificate chain, PEM; empty when none.
    #[prost(bytes = "vec", tag = "8")]
    pub(crate) client_cert_pem: Vec<u8>,
    /// Client key, PEM; empty when none.
    #[prost(bytes = "vec", tag = "9")]
    pub(crate) client_key_pem: Vec<u8>,
    /// Bearer token; empty when none.
    #[prost(string, tag = "10")]
    pub(crate) token: String,
    /// User name for basic authentication; empty when none.
    #[prost(string, tag = "11")]
    pub(crate) username: String,
    /// Password for basic authentication.
    #[prost(string, tag = "12")]
    pub(crate) password: String,
    /// HTTP(S) or SOCKS5 proxy in front of the API server; empty when none.
    #[prost(string, tag = "13")]
    pub(crate) proxy_url: String,
    /// User to impersonate; empty when none.
    #[prost(string, tag = "14")]
    pub(crate) impersonate_user: String,
    /// Groups to impersonate.
    #[prost(string, repeated, tag = "15")]
    pub(crate) impersonate_groups: Vec<String>,
    /// The credential came from an exec plugin and expires at this time (seconds since 1970); 0 when it does not.
    #[prost(int64, tag = "16")]
    pub(crate) expires_at: i64,
}

impl fmt::Debug for KubeAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let credential = match (self.client_cert_pem.is_empty(), self.token.is_empty(), self.username.is_empty()) {
            (false, _, _) => "client certificate",
            (_, false, _) => "token",
            (_, _, false) => "basic",
            (true, true, true) => "none",
        };
        f.debug_struct("KubeAccess")
            .field("context", &self.context)
            .field("user", &self.user)
            .field("server", &self.server)
            .field("credential", &credential)
            .finish_non_exhaustive()
    }
}

/// The state of a connection.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Status {
    /// Name of the connection.
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    /// Kubeconfig context.
    #[prost(string, tag = "2")]
    pub(crate) context: String,
    /// API server URL as the kubeconfig has it.
    #[prost(string, tag = "3")]
    pub(crate) server: String,
    /// The connected namespace.
    #[prost(string, tag = "4")]
    pub(crate) namespace: String,
    /// Namespace of the manager.
    #[prost(string, tag = "5")]
    pub(crate) manager_namespace: String,
    /// Pod of the manager.
    #[prost(string, tag = "6")]
    pub(crate) manager_pod: String,
    /// Version of the manager.
    #[prost(string, tag = "7")]
    pub(crate) manager_version: String,
    /// Version of the daemon.
    #[prost(string, tag = "8")]
    pub(crate) daemon_version: String,
    /// Whether the tunnel is up at this moment.
    #[prost(enumeration = "TunnelState", tag = "9")]
    pub(crate) tunnel: i32,
    /// Why the tunnel is down, when it is.
    #[prost(string, tag = "10")]
    pub(crate) tunnel_error: String,
    /// Seconds since 1970 when the connection was made.
    #[prost(int64, tag = "11")]
    pub(crate) connected_at: i64,
    /// The cluster domain, such as `cluster.local`.
    #[prost(string, tag = "12")]
    pub(crate) cluster_domain: String,
    /// Service subnets, CIDR.
    #[prost(string, repeated, tag = "13")]
    pub(crate) service_subnets: Vec<String>,
    /// Pod subnets, CIDR.
    #[prost(string, repeated, tag = "14")]
    pub(crate) pod_subnets: Vec<String>,
    /// Subnets routed into the tunnel, CIDR. They can differ from the two above until the next connect.
    #[prost(string, repeated, tag = "15")]
    pub(crate) routed_subnets: Vec<String>,
    /// Address of the daemon's resolver.
    #[prost(string, tag = "16")]
    pub(crate) dns_address: String,
    /// Search list that joined containers see.
    #[prost(string, repeated, tag = "17")]
    pub(crate) dns_search: Vec<String>,
    /// Traffic agents that the manager knows.
    #[prost(message, repeated, tag = "18")]
    pub(crate) agents: Vec<Agent>,
    /// Lanes in use.
    #[prost(uint32, tag = "19")]
    pub(crate) lanes: u32,
    /// TCP connections open.
    #[prost(uint64, tag = "20")]
    pub(crate) tcp_flows: u64,
    /// UDP associations open.
    #[prost(uint64, tag = "21")]
    pub(crate) udp_flows: u64,
    /// Bytes from joined containers to the cluster.
    #[prost(uint64, tag = "22")]
    pub(crate) bytes_up: u64,
    /// Bytes from the cluster to joined containers.
    #[prost(uint64, tag = "23")]
    pub(crate) bytes_down: u64,
    /// Times the daemon process was restarted by its init.
    #[prost(uint32, tag = "24")]
    pub(crate) restarts: u32,
    /// The chart's client settings, JSON; empty when there are none.
    #[prost(string, tag = "25")]
    pub(crate) chart_settings_json: String,
    /// Resident memory of the daemon, bytes.
    #[prost(uint64, tag = "26")]
    pub(crate) resident_bytes: u64,
    /// Times the tunnel was lost and made again.
    #[prost(uint32, tag = "27")]
    pub(crate) reconnects: u32,
    /// Whether the connection ends with the CLI that made it.
    #[prost(bool, tag = "28")]
    pub(crate) held: bool,
    /// Subnets that are never routed into the tunnel, CIDR: those of the setting `never-proxy`.
    #[prost(string, repeated, tag = "29")]
    pub(crate) excluded_subnets: Vec<String>,
    /// Subnets that containers see as others.
    #[prost(message, repeated, tag = "30")]
    pub(crate) virtual_subnets: Vec<VirtualSubnet>,
    /// Addresses outside the routed subnets that containers see as addresses of the TUN's range.
    #[prost(uint64, tag = "31")]
    pub(crate) virtual_addresses: u64,
    /// Names that stand for others: `NAME=TARGET`.
    #[prost(string, repeated, tag = "32")]
    pub(crate) dns_mappings: Vec<String>,
    /// The engagements that the session holds, as the manager last said.
    #[prost(message, repeated, tag = "33")]
    pub(crate) engagements: Vec<Held>,
    /// Connections to handlers of engagements, and to the localhost of pods, that are open.
    #[prost(uint64, tag = "34")]
    pub(crate) engaged_connections: u64,
    /// Who the connection belongs to; absent when the manager does not ask, or does not know yet.
    #[prost(message, optional, tag = "40")]
    pub(crate) user: Option<User>,
    /// Why the manager could not find that out; empty when it could, or does not ask.
    #[prost(string, tag = "41")]
    pub(crate) user_problem: String,
    /// The workload by way of which connections are dialled, as it was asked for; empty for the manager.
    #[prost(string, tag = "42")]
    pub(crate) via: String,
    /// Why that is not possible at the moment; empty when it is.
    #[prost(string, tag = "43")]
    pub(crate) via_problem: String,
}

/// A user, as the API server names them.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct User {
    /// Name.
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    /// Groups.
    #[prost(string, repeated, tag = "2")]
    pub(crate) groups: Vec<String>,
}

/// A subnet of the cluster that containers see as another one.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct VirtualSubnet {
    /// The subnet in the cluster, CIDR.
    #[prost(string, tag = "1")]
    pub(crate) subnet: String,
    /// The subnet in containers, CIDR; as large.
    #[prost(string, tag = "2")]
    pub(crate) seen_as: String,
    /// Why; lower-case, without a full stop.
    #[prost(string, tag = "3")]
    pub(crate) reason: String,
}

/// Whether the tunnel to the manager is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum TunnelState {
    /// No `Connect` was asked for yet.
    Idle = 0,
    /// Being made for the first time.
    Connecting = 1,
    /// Up.
    Connected = 2,
    /// Lost, being made again.
    Reconnecting = 3,
}

/// A traffic agent that registered with the manager.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Agent {
    /// Namespace of its pod.
    #[prost(string, tag = "1")]
    pub(crate) namespace: String,
    /// Name of its pod.
    #[prost(string, tag = "2")]
    pub(crate) pod: String,
    /// Its version.
    #[prost(string, tag = "3")]
    pub(crate) version: String,
}
