//! Where the agent of an engagement runs: what was asked for, what the chart says, and what the workload's pods have already.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tp_protocol::engage::call::{Failure, Held, Mode};

use super::service::Port;
use super::sidecar::{self, DISABLED, ENABLED, INJECT, PORTS};
use super::workload::{Kind, Workload, stays};
use super::{failure, rollout};
use crate::config::{self, Inject};

/// What decides.
pub(super) struct Wish<'a> {
    /// What the client asks for.
    pub(super) asked: Mode,
    /// What the chart says.
    pub(super) default: config::Mode,
    pub(super) inject: Inject,
    pub(super) namespace: &'a str,
    pub(super) workload: &'a Workload,
    /// The ports that are engaged; none where no traffic is.
    pub(super) ports: &'a [Port],
    /// The Service whose traffic it is, where that is headless. No stand-in gets any of it.
    pub(super) headless: Option<&'a str>,
    /// The container that is engaged; empty where any will do.
    pub(super) container: &'a str,
    /// How others engage the workload's traffic at the moment.
    pub(super) others: Option<Mode>,
    /// The workload's pods; none where that is not to matter.
    pub(super) pods: &'a [Pod],
    /// Whether the agents of all these pods are connected to this manager.
    pub(super) is_connected: bool,
}

/// What was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// [`Mode::StandIn`] or [`Mode::Sidecar`].
    pub(super) mode: Mode,
    /// For the user: behind a colon.
    pub(super) why: &'static str,
    /// The pods are to be restarted first, since they have no agents.
    pub(super) restarts: bool,
    /// The Service is headless: those of its callers that know the port's number do not come by the agents.
    pub(super) is_headless: bool,
}

impl Choice {
    /// An engagement that is made so.
    pub(super) fn of(&self, held: Held) -> Held {
        let mut why = self.why.to_owned();
        if self.restarts {
            why.push_str("; the workload's pods were restarted for it");
        }
        if self.is_headless {
            why.push_str("; its Service is headless, so callers that know the port's number pass the agents by");
        }
        Held { mode: self.mode.into(), why_mode: why, ..held }
    }
}

impl Wish<'_> {
    /// Decides.
    ///
    /// # Errors
    /// When agents in the workload's own pods are asked for and cannot be, and when only they can do it and are not there, with what
    /// can be done instead.
    pub(super) fn choose(&self) -> Result<Choice, Failure> {
        let (mode, why) = match (self.asked, self.default) {
            // Nothing is restarted for a look.
            (Mode::Unspecified, _) if self.ports.is_empty() => (Mode::Auto, ""),
            (Mode::Unspecified, config::Mode::Auto) => (Mode::Auto, ""),
            (Mode::Unspecified, config::Mode::StandIn) => (Mode::StandIn, "the chart's engage.mode says so"),
            (Mode::Unspecified, config::Mode::Sidecar) => (Mode::Sidecar, "the chart's engage.mode says so"),
            (asked, _) => (asked, "it was asked for"),
        };
        match (mode, self.others) {
            (Mode::StandIn, _) => self.stand_in(why),
            (Mode::Sidecar, _) => self.sidecar(why).map_err(|why| self.without_stand_in(why)),
            // Both at once would not see all traffic.
            (Mode::Unspecified | Mode::Auto, Some(Mode::StandIn)) => self.stand_in("it is engaged by one already"),
            (Mode::Unspecified | Mode::Auto, _) if self.is_served() => {
                Ok(self.agents("the workload's pods have an agent already", false))
            }
            (Mode::Unspecified | Mode::Auto, _) => self.stand_in("it restarts nothing"),
        }
    }

    fn agents(&self, why: &'static str, restarts: bool) -> Choice {
        Choice { mode: Mode::Sidecar, why, restarts, is_headless: self.headless.is_some() }
    }

    fn stand_in(&self, why: &'static str) -> Result<Choice, Failure> {
        match self.headless {
            None => Ok(Choice { mode: Mode::StandIn, why, restarts: false, is_headless: false }),
            Some(service) => Err(failure(
                format!(
                    "the Service {service} is headless: its callers connect to the pods themselves, and not to a stand-in"
                ),
                "another Service of the workload can be named with --service; `--mode sidecar` has agents in the pods take the traffic of \
                 callers that look the port up (SRV records, EndpointSlices), not of those that know its number",
            )),
        }
    }

    /// The way out is not a stand-in where the Service is headless.
    fn without_stand_in(&self, why: Failure) -> Failure {
        match self.headless {
            None => why,
            Some(service) => failure(
                why.message,
                format!(
                    "{} (of what callers of the headless Service {service} send, a stand-in gets nothing)",
                    why.hint
                ),
            ),
        }
    }

    /// Whether agents in the workload's own pods do all that is asked for, as they are.
    fn is_served(&self) -> bool {
        // Where others have them, they will be back.
        let is_there = self.is_connected || self.others == Some(Mode::Sidecar);
        self.inject != Inject::Never
            && is_there
            && self.numeric().is_none()
            && self.all_have_agents()
            && self.unserved().is_none()
    }

    fn all_have_agents(&self) -> bool {
        let mut staying = self.staying().peekable();
        staying.peek().is_some() && staying.all(sidecar::has_agent)
    }

    fn staying(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter().filter(|pod| stays(pod))
    }

    /// A port to which no agent can be put, since its Service gives it by number.
    fn numeric(&self) -> Option<&Port> {
        self.ports.iter().find(|port| port.target_name.is_none())
    }

    /// What the agents that are there do not do.
    fn unserved(&self) -> Option<String> {
        let agents = self.staying().filter_map(sidecar::agent_of);
        agents.into_iter().find_map(|agent| {
            let has: BTreeSet<_> = agent.ports.iter().flatten().filter_map(|port| port.name.as_deref()).collect();
            let names = self.ports.iter().filter_map(|port| port.target_name.as_deref());
            if let Some(name) = names.into_iter().find(|name| !has.contains(name)) {
                return Some(format!("do not take over its port {name}"));
            }
            let container = sidecar::container_of(agent);
            (self.ports.is_empty() && !self.container.is_empty() && container != Some(self.container))
                .then(|| format!("have the environment of its container {}", container.unwrap_or_default()))
        })
    }

    fn sidecar(&self, why: &'static str) -> Result<Choice, Failure> {
        let Self { namespace, workload, .. } = self;
        if self.inject == Inject::Never {
            return Err(failure(
                "this traffic manager puts no agents into a workload's own pods",
                "`--mode stand-in` restarts nothing; the chart's value engage.inject lets the manager do it",
            ));
        }
        if let Some(port) = self.numeric() {
            let (from, to) = (port.service_port, port.container_port);
            return Err(failure(
                format!(
                    "the Service of {workload} leads port {from} to port {to} by number, which passes agents in its pods by"
                ),
                "`--mode stand-in` takes it; or give the container's port a name, and the Service this name as its targetPort",
            ));
        }
        if self.all_have_agents() {
            return match self.unserved() {
                None => Ok(self.agents(why, false)),
                Some(what) => {
                    Err(failure(format!("the agents in the pods of {workload} {what}"), "`--mode stand-in` does"))
                }
            };
        }
        let labels = workload.labels();
        if labels.get(INJECT).is_some_and(|value| value == DISABLED) {
            return Err(failure(
                format!("{workload} wants no agents in its pods: their label {INJECT} is {DISABLED}"),
                "`--mode stand-in` puts none there",
            ));
        }
        let out_of_reach = self.ports.iter().filter_map(|port| port.target_name.as_deref());
        if let Some(name) = out_of_reach.into_iter().find(|name| sidecar::leaves_out(&workload.template, name)) {
            return Err(failure(
                format!(
                    "agents in the pods of {workload} do not take over its port {name}: its annotation {PORTS} leaves it out"
                ),
                "`--mode stand-in` does",
            ));
        }
        let (asks, never) = (sidecar::asks_by(&labels), rollout::never(workload.kind));
        match (self.inject, never) {
            (Inject::OnDemand, None) => Ok(self.agents(why, true)),
            // Its pods may be on their way; those that have none are told of.
            _ if asks => Ok(self.agents(why, false)),
            (_, Some(never)) => Err(failure(
                format!("{workload} is without an agent, and is not restarted to get one: {never}"),
                format!(
                    "`--mode stand-in` restarts nothing; pods that are made with the label {INJECT}: {ENABLED} have one from the start"
                ),
            )),
            // Its template may be that of another workload.
            (Inject::Never | Inject::Enabled, None) if workload.kind == Kind::Rollout => Err(failure(
                format!("the pods of {workload} are made without agents, and this traffic manager restarts none"),
                format!(
                    "pods of a template with the label {INJECT}: {ENABLED} have one; `--mode stand-in` restarts nothing"
                ),
            )),
            (Inject::Never | Inject::Enabled, None) => {
                let template = json!({"spec": {"template": {"metadata": {"labels": {INJECT: ENABLED}}}}});
                Err(failure(
                    format!("the pods of {workload} are made without agents, and this traffic manager restarts none"),
                    format!(
                        "`kubectl -n {namespace} patch {workload} --type merge --patch '{template}'` restarts them with agents; \
                         `--mode stand-in` restarts nothing"
                    ),
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests;
