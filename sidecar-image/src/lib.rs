//! The traffic agent: a pod's end of tp. It takes ports in an application's place and does with their traffic what the
//! manager has ordered.
//!
//! | module | what it owns |
//! |---|---|
//! | [`config`] | the environment variables |
//! | [`run`] | the process: its parts, and how it stops |
//! | `manager`, `backoff` | the connection to the manager: TLS, hello, control channel; when to try again |
//! | `orders` | what the manager has ordered, and what has become of it |
//! | `dial` | what clients dial from the pod's place in the network |
//! | [`engine`] | traffic: who gets a connection or a request |
//! | `apps` | the way to the workload's pods |
//! | `handler` | the way to a client's handler, over the connection to the manager |
//! | `health` | the kubelet's probes |
//!
//! Traffic does not depend on the manager being there: without it the handlers are away, and the app serves on.

mod apps;
mod backoff;
pub mod config;
mod dial;
pub mod engine;
mod environment;
mod handler;
mod health;
mod manager;
mod orders;
pub mod run;
#[cfg(test)]
mod stage;

/// Release of this software.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
