//! The traffic manager: the cluster's end of tp.
//!
//! It accepts clients on its loopback, which only a port-forward that the API server has authorised reaches, and agents
//! over TLS. For clients it dials and resolves in the cluster ([`lane`]), within the dial policy ([`policy`]) and limits.
//!
//! | module | what it owns |
//! |---|---|
//! | [`config`] | the configuration file and the pod's own facts |
//! | [`session`] | sessions and lanes (pure core), `hub` around it |
//! | [`lane`] | one client's lane: flows, DNS, control channel |
//! | [`policy`], [`subnet`] | pure decisions: what may be dialled, which prefixes cover what |
//! | [`dial`], [`dns`] | the sockets in the cluster |
//! | [`agents`] | registered agents, their door |
//! | [`identity`], [`webhook`] | who a session belongs to and what they may, and the port that the API server calls for it |
//! | [`engage`] | who takes which traffic of which workload |
//! | `cluster`, `trust`, [`pki`], `health`, [`run`] | what it learns from and keeps in Kubernetes, and the process |

pub mod agents;
mod cluster;
pub mod config;
pub mod dial;
pub mod dns;
mod echo;
pub mod engage;
#[cfg(test)]
mod fake_api;
mod health;
pub mod identity;
pub mod lane;
mod listen;
pub mod log;
pub mod pki;
pub mod policy;
pub mod run;
pub mod session;
pub mod subnet;
mod trust;
pub mod webhook;

/// Release of this software.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Name of the manager's StatefulSet and Service.
pub const MANAGER: &str = "tp-manager";

/// Port for clients, on the loopback.
pub const CLIENT_PORT: u16 = 7400;
/// Port for agents.
pub const AGENT_PORT: u16 = 7443;
/// Port for the API server's admission webhooks.
pub const WEBHOOK_PORT: u16 = 7444;
/// Port for the kubelet's probes.
pub const HEALTH_PORT: u16 = 7480;

/// Logs how a task ended, if that was a panic: the task is lost, the process goes on.
pub(crate) fn log_end(what: &'static str, ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        // The panic hook has logged the place.
        tracing::error!(what, "a task panicked: this is a bug");
    }
}
