//! A workload's place in the network, from which a client's connections are dialled: what network policies and a mesh go by.
//!
//! Where the workload's own pods have agents, these dial. Else a stand-in does, whose pod has the labels, the service account and
//! the mesh annotations of the workload's pods. It is to be an endpoint of no Service, although their selectors are made for these
//! very labels: it waits for a condition that nobody sets, so it runs and is never ready. EndpointSlices list such a pod as not
//! ready, and kube-proxy sends it nothing. Only a Service that publishes pods which are not ready would send it traffic, and
//! is refused.

use k8s_openapi::api::core::v1::{Container, Pod, Service};
use kube::ResourceExt;
use tp_protocol::engage::call::{Engage, Failure, Held};

use super::workload::Workload;
use super::{calls, failure, service};

/// An engagement of a workload's place in the network.
///
/// # Errors
/// A [`Failure`] when it has none, or more is asked for.
pub(super) fn asked(asked: &Engage, workload: &Workload) -> Result<Held, Failure> {
    if !asked.ports.is_empty() || !asked.to_pod.is_empty() || asked.filter.is_some() || !asked.container.is_empty() {
        return Err(failure("dialling by way of a workload takes none of its traffic", "`tp intercept` does"));
    }
    if workload.uses_host_network() {
        let why = format!("the pods of {workload} use their nodes' network, and have no place of their own in it");
        return Err(failure(why, "leave --via out: connections come from the traffic manager then"));
    }
    calls::held(asked, workload, &Container::default())
}

/// Refuses a workload whose stand-in would be an endpoint although it is not ready.
///
/// # Errors
/// A [`Failure`] that names the Service.
pub(super) fn refuse_endpoint(services: &[Service], workload: &Workload) -> Result<(), Failure> {
    let labels = workload.labels();
    let publishes = |it: &&Service| {
        let spec = it.spec.as_ref();
        spec.and_then(|spec| spec.publish_not_ready_addresses) == Some(true) && service::selects(it, &labels)
    };
    match services.iter().find(publishes) {
        None => Ok(()),
        Some(publishing) => Err(failure(
            format!(
                "the Service {} publishes pods that are not ready, and would take a pod that only dials for one of {workload}",
                publishing.name_any()
            ),
            "an agent in the workload's own pods can dial: see the chart's value engage.inject",
        )),
    }
}

/// Whether the agent runs in a pod that is never ready.
pub(super) fn is_running(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|it| it.type_ == "ContainersReady" && it.status == "True")
}

#[cfg(test)]
mod tests;
