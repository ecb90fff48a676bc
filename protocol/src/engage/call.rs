//! What a client asks of the manager about engagements, and what it is told.
//!
//! A call is one message, `POST https://tp-manager/tp.v1/engagements`, and so is the answer. Beside that, the manager tells
//! a client over the control channel of the engagements that it holds ([`Engagements`]), and an agent what it has to do
//! ([`Orders`]).
//!
//! An engaged container's environment is asked of its agent when a client asks for it ([`Describe`]): it may hold secrets,
//! so it is in no other message, and kept nowhere.

use super::wire::{FilterMessage, Kind, Transport, WhenAway};
use crate::identity::{Identify, OneTimePort};

/// Largest call or answer, encoded: a namespace of 10,000 workloads fits.
pub const MAX_CALL_BYTES: usize = 1 << 20;

/// What a client asks for.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Call {
    /// Which.
    #[prost(oneof = "call::Kind", tags = "1, 2, 3, 4, 10")]
    pub kind: Option<call::Kind>,
}

/// The kinds of [`Call`].
#[expect(clippy::module_inception, reason = "the kinds of a message are in a module of the message's name")]
pub mod call {
    /// One call.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Kind {
        /// Engage a workload. Answered with [`super::answer::Kind::Engaged`] once traffic arrives.
        #[prost(message, tag = "1")]
        Engage(Box<super::Engage>),
        /// End engagements of this session. Answered with [`super::answer::Kind::Left`] once traffic is back.
        #[prost(message, tag = "2")]
        Leave(super::Leave),
        /// Tell what can be engaged, and what is. Answered with [`super::answer::Kind::Listed`].
        #[prost(message, tag = "3")]
        List(super::List),
        /// Tell how the engaged container runs. Answered with [`super::answer::Kind::Described`].
        #[prost(message, tag = "4")]
        Describe(super::Describe),
        /// Tell the API server who this is. Answered with [`super::answer::Kind::OneTimePort`].
        #[prost(message, tag = "10")]
        Identify(super::Identify),
    }
}

/// What the manager answers.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Answer {
    /// Which.
    #[prost(oneof = "answer::Kind", tags = "1, 2, 3, 4, 5, 10")]
    pub kind: Option<answer::Kind>,
}

/// The kinds of [`Answer`].
pub mod answer {
    /// One answer.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Kind {
        /// It could not be done, and nothing has changed.
        #[prost(message, tag = "1")]
        Failure(super::Failure),
        /// The engagement is in force.
        #[prost(message, tag = "2")]
        Engaged(super::Held),
        /// These have ended.
        #[prost(message, tag = "3")]
        Left(super::Engagements),
        /// What there is.
        #[prost(message, tag = "4")]
        Listed(super::Listed),
        /// How the container runs.
        #[prost(message, tag = "5")]
        Described(super::Described),
        /// Where the client shows who it is.
        #[prost(message, tag = "10")]
        OneTimePort(super::OneTimePort),
    }
}

/// Engage a workload.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Engage {
    /// Namespace of the workload.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// `KIND/NAME`, or a name that only one workload of the namespace has.
    #[prost(string, tag = "2")]
    pub workload: String,
    /// Container whose ports are meant; empty for any.
    #[prost(string, tag = "3")]
    pub container: String,
    /// Service whose traffic is meant; empty when only one selects the workload.
    #[prost(string, tag = "4")]
    pub service: String,
    /// The ports: at least one, none for [`Kind::Ingest`] and [`Kind::Via`]; all of the container's when [`Kind::Replace`] names none.
    #[prost(message, repeated, tag = "5")]
    pub ports: Vec<AskedPort>,
    /// What happens to the traffic.
    #[prost(enumeration = "Kind", tag = "6")]
    pub what: i32,
    /// Which requests it is about; absent for all.
    #[prost(message, optional, tag = "7")]
    pub filter: Option<FilterMessage>,
    /// What happens while the handler is away.
    #[prost(enumeration = "WhenAway", tag = "8")]
    pub when_away: i32,
    /// How long a request waits for a handler that is away.
    #[prost(uint32, tag = "9")]
    pub wait_ms: u32,
    /// Where the agent runs.
    #[prost(enumeration = "Mode", tag = "10")]
    pub mode: i32,
    /// Who asks, as others are told: `ann@laptop`.
    #[prost(string, tag = "11")]
    pub holder: String,
    /// Take over from a holder whose session is gone.
    #[prost(bool, tag = "12")]
    pub replace_held: bool,
    /// How long the client waits for the answer; 0 when it does not say.
    #[prost(uint32, tag = "13")]
    pub limit_ms: u32,
    /// Ports of the pod's localhost that the client's containers reach on theirs.
    #[prost(message, repeated, tag = "14")]
    pub to_pod: Vec<ToPod>,
}

/// A port of the localhost that the containers of a pod share.
///
/// The client listens there on its own localhost, and opens a flow to `127.0.0.1:PORT` for each connection, in the workload's
/// namespace and by way of the workload ([`crate::open::VIA`]).
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ToPod {
    /// Its number; not 0.
    #[prost(uint32, tag = "1")]
    pub port: u32,
    /// Its protocol.
    #[prost(enumeration = "Transport", tag = "2")]
    pub transport: i32,
}

/// A port that is to be engaged.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AskedPort {
    /// Number or name of a port of the Service or of the container; empty when there is only one.
    #[prost(string, tag = "1")]
    pub remote: String,
    /// Its protocol.
    #[prost(enumeration = "Transport", tag = "2")]
    pub transport: i32,
    /// Where the client takes what arrives, `ADDRESS:PORT` in the network of its daemon. With port 0, the port's own number.
    #[prost(string, tag = "3")]
    pub local: String,
}

/// Where the agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Mode {
    /// What the administrator has chosen for those who do not say.
    Unspecified = 0,
    /// A pod of its own that takes the place of the workload's pods in the Service.
    StandIn = 1,
    /// A container in the workload's pods, which are restarted when they have none.
    Sidecar = 2,
    /// The manager's choice: an agent that is there already, else what restarts nothing.
    Auto = 3,
}

/// End engagements of this session.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Leave {
    /// An engagement's id, or a workload as in [`Engage::workload`]; empty for all.
    #[prost(string, tag = "1")]
    pub what: String,
    /// Namespace of the workload; empty for any.
    #[prost(string, tag = "2")]
    pub namespace: String,
}

/// Tell how the engaged container runs.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Describe {
    /// The engagement's id; the session has to hold it.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// How an engaged container runs.
///
/// `Debug` does not show values of the environment.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Described {
    /// What its pod's specification says.
    #[prost(message, optional, tag = "1")]
    pub container: Option<ContainerSpec>,
    /// Its environment as the kubelet resolved it, without the image's own.
    #[prost(message, optional, tag = "2")]
    pub environment: Option<Environment>,
}

/// An environment. It may hold secrets.
///
/// `Debug` does not show values.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Environment {
    /// Sorted by name; no name twice.
    #[prost(message, repeated, tag = "1")]
    pub variables: Vec<Variable>,
    /// Why it cannot be told; lower-case, without a full stop. Empty when it is all there.
    #[prost(string, tag = "2")]
    pub problem: String,
    /// The container whose it is.
    #[prost(string, tag = "3")]
    pub container: String,
}

/// A variable of an environment.
///
/// `Debug` does not show the value.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct Variable {
    /// Its name: not empty, without `=`.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its value, which may have several lines.
    #[prost(string, tag = "2")]
    pub value: String,
}

impl std::fmt::Debug for Variable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Variable").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A container as its pod's specification has it (Kubernetes API, `Container` and `PodSecurityContext`).
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerSpec {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its image.
    #[prost(string, tag = "2")]
    pub image: String,
    /// What it runs in place of the image's entrypoint, `$(VAR)` not expanded; empty for the image's own.
    #[prost(string, repeated, tag = "3")]
    pub command: Vec<String>,
    /// Its arguments in place of the image's, `$(VAR)` not expanded; empty for the image's own.
    #[prost(string, repeated, tag = "4")]
    pub args: Vec<String>,
    /// Its working directory; empty for the image's own.
    #[prost(string, tag = "5")]
    pub working_dir: String,
    /// User that it runs as; absent for the image's own.
    #[prost(int64, optional, tag = "6")]
    pub user: Option<i64>,
    /// Group that it runs as; absent for the image's own.
    #[prost(int64, optional, tag = "7")]
    pub group: Option<i64>,
    /// Limit of processor time, in thousandths of a core; 0 for none.
    #[prost(uint64, tag = "8")]
    pub cpu_limit_millis: u64,
    /// Limit of memory in bytes; 0 for none.
    #[prost(uint64, tag = "9")]
    pub memory_limit_bytes: u64,
    /// Where it has volumes, in its specification's order.
    #[prost(message, repeated, tag = "10")]
    pub mounts: Vec<Mount>,
}

/// A volume in a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Mount {
    /// Where, an absolute path.
    #[prost(string, tag = "1")]
    pub path: String,
    /// The volume's kind and what it is made from: `configMap app-config`, `emptyDir`.
    #[prost(string, tag = "2")]
    pub volume: String,
    /// The container cannot write to it.
    #[prost(bool, tag = "3")]
    pub is_read_only: bool,
}

/// Tell what can be engaged, and what is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct List {
    /// Namespace; empty for the engagements of all, and no workloads.
    #[prost(string, tag = "1")]
    pub namespace: String,
}

/// What there is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Listed {
    /// Workloads of the namespace, `KIND/NAME`, sorted.
    #[prost(string, repeated, tag = "1")]
    pub workloads: Vec<String>,
    /// Engagements, by namespace, workload and time.
    #[prost(message, repeated, tag = "2")]
    pub engagements: Vec<Held>,
}

/// Engagements: to a client over the control channel, all that its session holds, each time.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Engagements {
    /// The engagements.
    #[prost(message, repeated, tag = "1")]
    pub engagements: Vec<Held>,
}

/// An engagement, as people are told of it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Held {
    /// Its id, which is the name of its Lease.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Namespace of the workload.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// `KIND/NAME`.
    #[prost(string, tag = "3")]
    pub workload: String,
    /// The Service whose traffic it is about; empty for [`Kind::Ingest`] and [`Kind::Via`].
    #[prost(string, tag = "4")]
    pub service: String,
    /// What happens to the traffic.
    #[prost(enumeration = "Kind", tag = "5")]
    pub what: i32,
    /// Where the agent runs; never [`Mode::Unspecified`] or [`Mode::Auto`].
    #[prost(enumeration = "Mode", tag = "6")]
    pub mode: i32,
    /// Why there; lower-case, without a full stop.
    #[prost(string, tag = "7")]
    pub why_mode: String,
    /// The ports.
    #[prost(message, repeated, tag = "8")]
    pub ports: Vec<HeldPort>,
    /// Which requests it is about; absent for all.
    #[prost(message, optional, tag = "9")]
    pub filter: Option<FilterMessage>,
    /// What happens while the handler is away.
    #[prost(enumeration = "WhenAway", tag = "10")]
    pub when_away: i32,
    /// Who holds it: `ann@laptop`.
    #[prost(string, tag = "11")]
    pub holder: String,
    /// Since when, in seconds since 1970.
    #[prost(int64, tag = "12")]
    pub since: i64,
    /// The session that asks holds it.
    #[prost(bool, tag = "13")]
    pub is_mine: bool,
    /// What the agent last said of it; absent while there is none.
    #[prost(message, optional, tag = "14")]
    pub report: Option<Report>,
    /// What is wrong with it at the moment; lower-case, without a full stop. Empty when nothing is.
    #[prost(string, tag = "15")]
    pub problem: String,
    /// How long a request waits for a handler that is away.
    #[prost(uint32, tag = "16")]
    pub wait_ms: u32,
    /// The container whose environment can be asked for; empty for [`Kind::Via`].
    #[prost(string, tag = "17")]
    pub container: String,
    /// Where that container has volumes.
    #[prost(message, repeated, tag = "18")]
    pub mounts: Vec<Mount>,
    /// Ports of the pod's localhost that its holder reaches.
    #[prost(message, repeated, tag = "19")]
    pub to_pod: Vec<ToPod>,
}

/// A port of an engagement.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HeldPort {
    /// The container's port.
    #[prost(uint32, tag = "1")]
    pub port: u32,
    /// Its protocol.
    #[prost(enumeration = "Transport", tag = "2")]
    pub transport: i32,
    /// The Service's port; 0 when there is none.
    #[prost(uint32, tag = "3")]
    pub service_port: u32,
    /// Where the client takes what arrives, `ADDRESS:PORT`.
    #[prost(string, tag = "4")]
    pub local: String,
}

/// It could not be done.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Failure {
    /// What failed, on which object; lower-case, without a full stop.
    #[prost(string, tag = "1")]
    pub message: String,
    /// What to do next; empty when nothing is known.
    #[prost(string, tag = "2")]
    pub hint: String,
}

/// What an agent has to do: all of it, each time.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Orders {
    /// Number of these orders, which [`AgentState`] repeats.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// The ports to listen on. They do not change while an agent lives.
    #[prost(message, repeated, tag = "2")]
    pub ports: Vec<AgentPort>,
    /// What is engaged. The id of each is the engagement's, `#`, and the port: `tp-web-x7c2d#8080/tcp`.
    #[prost(message, repeated, tag = "3")]
    pub engagements: Vec<super::wire::Engagement>,
    /// Streams are to wait for what clients dial ([`super::dial`]).
    #[prost(bool, tag = "4")]
    pub dials: bool,
}

/// A port that an agent takes in the app's place.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AgentPort {
    /// The container's port, which the agent listens on.
    #[prost(uint32, tag = "1")]
    pub port: u32,
    /// Its protocol.
    #[prost(enumeration = "Transport", tag = "2")]
    pub transport: i32,
    /// What the app speaks there.
    #[prost(enumeration = "AppProtocol", tag = "3")]
    pub protocol: i32,
    /// Addresses of the app, `ADDRESS:PORT`: the workload's pods that are ready. Connections take turns.
    #[prost(string, repeated, tag = "4")]
    pub apps: Vec<String>,
}

/// What is known of a port's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum AppProtocol {
    /// Nothing.
    Unknown = 0,
    /// HTTP of any version.
    Http = 1,
    /// Something else.
    Opaque = 2,
}

/// What an agent says of its orders: after each of them, and when something has changed since.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AgentState {
    /// Number of the orders that are in force.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// Why the orders could not be carried out; empty when they were.
    #[prost(string, tag = "2")]
    pub problem: String,
    /// What has happened to each engagement's traffic.
    #[prost(message, repeated, tag = "3")]
    pub reports: Vec<Report>,
}

/// What has happened to an engagement's traffic since it began.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Report {
    /// Which, as in [`Orders::engagements`].
    #[prost(string, tag = "1")]
    pub id: String,
    /// Its handler was not reached last time.
    #[prost(bool, tag = "2")]
    pub is_away: bool,
    /// Requests, connections that are no HTTP, and associations that its handler got.
    #[prost(uint64, tag = "3")]
    pub taken: u64,
    /// Those that the app got instead, because the handler was away.
    #[prost(uint64, tag = "4")]
    pub fallen_back: u64,
    /// Copies that were begun, for a wiretap.
    #[prost(uint64, tag = "5")]
    pub copied: u64,
    /// Copies that were lost, or cut off, because the listener was slow or away.
    #[prost(uint64, tag = "6")]
    pub copies_lost: u64,
}
