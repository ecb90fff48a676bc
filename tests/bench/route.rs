//! The ways from a container on this machine to a port of the target pod.

use std::time::Duration;

use tp_tests::docker::{Container, Spec};
use tp_tests::kubectl::{self, Forward};
use tp_tests::test::Connection;

use crate::target::Target;

/// One way.
pub(crate) enum Route<'b> {
    /// A container with a route to the pod's address through its node, as on the same network.
    Direct(Container),
    /// `kubectl port-forward` on this machine, whose loopback interface the container shares.
    Kubectl(&'b Target),
    /// A container joined to a connection.
    Tp(String),
}

impl<'b> Route<'b> {
    /// A direct route. Possible where the node is a container of this engine, or the network knows the way.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn direct(target: &Target) -> Result<Self, String> {
        let Target { ip, node_ip, .. } = target;
        let holder = Spec::client().capability("NET_ADMIN").start();
        let script = format!("ip route add {ip}/32 via {node_ip} && curl -sS --max-time 3 http://{ip}:8080/status/200");
        let outcome = holder.sh(&script);
        if outcome.code == 0 { Ok(Self::Direct(holder)) } else { Err(outcome.stderr) }
    }

    /// By `kubectl port-forward`, as the administrator: the plain user may not.
    pub(crate) fn kubectl(target: &'b Target) -> Self {
        Self::Kubectl(target)
    }

    /// Through the product.
    pub(crate) fn tp(connection: &Connection<'_>) -> Self {
        Self::joined(connection.container())
    }

    /// Through the product, by the name of its container.
    pub(crate) fn joined(container: String) -> Self {
        Self::Tp(container)
    }

    /// What the report calls it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Direct(_) => "direct",
            Self::Kubectl(_) => "kubectl",
            Self::Tp(_) => "tp",
        }
    }

    /// Opens the way to one port: the network that a container has to be in, and the address there.
    pub(crate) fn open(&self, target: &Target, port: u16) -> Opened {
        let there = format!("{}:{port}", target.ip);
        match self {
            Self::Direct(holder) => {
                Opened { network: format!("container:{}", holder.id()), address: there, _forward: None }
            }
            Self::Tp(container) => Opened { network: format!("container:{container}"), address: there, _forward: None },
            Self::Kubectl(target) => {
                let (namespace, pod) = target.pod();
                let forward = kubectl::port_forward(namespace, &format!("pod/{pod}"), port, Duration::from_secs(10));
                let address = forward.address().to_owned();
                Opened { network: "host".to_owned(), address, _forward: Some(forward) }
            }
        }
    }
}

/// An open way.
pub(crate) struct Opened {
    /// The network mode of a container that uses it.
    pub(crate) network: String,
    /// Where the target's port is, seen from there.
    pub(crate) address: String,
    _forward: Option<Forward>,
}
