//! Messages of the control channel, one HTTP/2 stream per session on lane 0.
//!
//! Both directions carry frames ([`crate::frame`]) of one message type each, which has one variant per purpose. A variant
//! that the receiver does not know decodes as `None` and is skipped.

/// From a client or an agent to the manager.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ToManager {
    /// Which message.
    #[prost(oneof = "to_manager::Kind", tags = "1, 2, 3, 4")]
    pub kind: Option<to_manager::Kind>,
}

/// The kinds of [`ToManager`].
pub mod to_manager {
    use crate::engage::call;

    /// One message.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Kind {
        /// The session ends now; its flows and everything bound to it can go.
        #[prost(message, tag = "1")]
        Goodbye(super::Goodbye),
        /// Answer to a ping.
        #[prost(message, tag = "2")]
        Pong(super::Ping),
        /// What an agent makes of its orders.
        #[prost(message, tag = "3")]
        AgentState(call::AgentState),
        /// An agent's answer to [`super::from_manager::Kind::TellEnvironment`].
        #[prost(message, tag = "4")]
        Environment(call::Environment),
    }
}

/// From the manager to a client or an agent.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FromManager {
    /// Which message.
    #[prost(oneof = "from_manager::Kind", tags = "1, 2, 3, 4, 5, 6, 7")]
    pub kind: Option<from_manager::Kind>,
}

/// The kinds of [`FromManager`].
pub mod from_manager {
    use crate::engage::call;

    /// One message.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Kind {
        /// The cluster as clients need to know it: the first message to a client, and again when it changes.
        #[prost(message, tag = "1")]
        ClusterInfo(super::ClusterInfo),
        /// The agents that are registered, to a client: all of them, each time.
        #[prost(message, tag = "2")]
        Agents(super::Agents),
        /// Are you there? To be answered with a pong of the same number.
        #[prost(message, tag = "3")]
        Ping(super::Ping),
        /// The manager is stopping. The session can be made again with the next one.
        #[prost(message, tag = "4")]
        Goodbye(super::Goodbye),
        /// The engagements that the session holds, to a client: all of them, each time.
        #[prost(message, tag = "5")]
        Engagements(call::Engagements),
        /// What an agent has to do.
        #[prost(message, tag = "6")]
        Orders(call::Orders),
        /// Asks an agent for the environment of the container that it stands for.
        #[prost(message, tag = "7")]
        TellEnvironment(super::TellEnvironment),
    }
}

/// A session's orderly end.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Goodbye {
    /// Why; lower-case, without a full stop.
    #[prost(string, tag = "1")]
    pub reason: String,
}

/// A liveness check.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Ping {
    /// Chosen by the sender.
    #[prost(uint64, tag = "1")]
    pub number: u64,
}

/// A question without parameters.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct TellEnvironment {}

/// The cluster as clients need to know it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ClusterInfo {
    /// Service subnets, CIDR.
    #[prost(string, repeated, tag = "1")]
    pub service_subnets: Vec<String>,
    /// Pod subnets, CIDR.
    #[prost(string, repeated, tag = "2")]
    pub pod_subnets: Vec<String>,
    /// Cluster domain without a leading or trailing dot, such as `cluster.local`.
    #[prost(string, tag = "3")]
    pub cluster_domain: String,
    /// Address of the cluster's DNS service, as the manager's pod sees it.
    #[prost(string, tag = "4")]
    pub dns_address: String,
    /// The chart's client settings as JSON, keys as in the client's `config.yaml`; empty when there are none.
    #[prost(string, tag = "5")]
    pub client_settings_json: String,
}

/// The agents that are registered.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Agents {
    /// Sorted by namespace and pod.
    #[prost(message, repeated, tag = "1")]
    pub agents: Vec<Agent>,
}

/// A traffic agent.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, prost::Message)]
pub struct Agent {
    /// Namespace of its pod.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// Name of its pod.
    #[prost(string, tag = "2")]
    pub pod: String,
    /// Release of its software.
    #[prost(string, tag = "3")]
    pub software_version: String,
}

impl From<from_manager::Kind> for FromManager {
    fn from(kind: from_manager::Kind) -> Self {
        Self { kind: Some(kind) }
    }
}

impl From<to_manager::Kind> for ToManager {
    fn from(kind: to_manager::Kind) -> Self {
        Self { kind: Some(kind) }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::frame;
    use crate::limits::MAX_CONTROL_BYTES;

    /// The bytes of release 0.1.0: later releases must read them for ever.
    #[test]
    fn golden_control_messages_of_the_first_version() {
        let mut wire = BytesMut::new();
        let from_manager = [
            from_manager::Kind::ClusterInfo(ClusterInfo {
                service_subnets: vec!["10.96.0.0/16".into()],
                pod_subnets: vec!["10.244.0.0/24".into(), "10.244.1.0/24".into()],
                cluster_domain: "cluster.local".into(),
                dns_address: "10.96.0.10".into(),
                client_settings_json: r#"{"idle-limit":"2h"}"#.into(),
            }),
            from_manager::Kind::Agents(Agents {
                agents: vec![Agent { namespace: "shop".into(), pod: "web-0".into(), software_version: "0.1.0".into() }],
            }),
            from_manager::Kind::Ping(Ping { number: 5 }),
            from_manager::Kind::Goodbye(Goodbye { reason: "rollout".into() }),
        ]
        .map(FromManager::from);
        let to_manager =
            [to_manager::Kind::Pong(Ping { number: 5 }), to_manager::Kind::Goodbye(Goodbye { reason: "quit".into() })]
                .map(ToManager::from);
        from_manager.iter().for_each(|m| frame::encode(m, &mut wire));
        assert_eq!(&wire[..], include_bytes!("../golden/v1/from-manager"));
        for message in from_manager {
            assert_eq!(frame::decode(&mut wire, MAX_CONTROL_BYTES), Ok(Some(message)));
        }
        to_manager.iter().for_each(|m| frame::encode(m, &mut wire));
        assert_eq!(&wire[..], include_bytes!("../golden/v1/to-manager"));
        for message in to_manager {
            assert_eq!(frame::decode(&mut wire, MAX_CONTROL_BYTES), Ok(Some(message)));
        }
    }

    #[test]
    fn unknown_message_kind_decodes_as_none() {
        let mut wire = BytesMut::from(&[0, 0, 0, 0, 5, 0xfa, 0x07, 2, b'h', b'i'][..]);
        assert_eq!(frame::decode(&mut wire, MAX_CONTROL_BYTES), Ok(Some(FromManager { kind: None })));
    }
}
