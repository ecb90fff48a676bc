//! Workloads: what pods are made from, and which are whose.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{Container, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Client;
use kube::api::{Api, DynamicObject, ListParams};
use serde::Deserialize;
use tp_protocol::engage::call::Failure;

use super::failure;

mod argo;
mod bare_pod;
mod find;
mod kind;

pub(crate) use find::{find, known, list};
pub(crate) use kind::{Kind, ROLLOUT_HASH, WorkloadName};

/// Label of the pods of Jobs.
const JOB_NAME: &str = "job-name";

/// A workload and what its pods are made from.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    /// Labels by which its pods are found, those that an earlier template has made included. Of no matter for a single pod, and for a
    /// CronJob, each of whose Jobs has its own.
    pub(crate) selector: BTreeMap<String, String>,
    pub(crate) template: PodTemplateSpec,
}

/// What matters of a workload's specification.
#[derive(Deserialize)]
struct Spec {
    #[serde(default)]
    selector: LabelSelector,
    template: Option<PodTemplateSpec>,
}

impl fmt::Display for Workload {
    /// `KIND/NAME`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

impl Workload {
    /// Labels of the workload's pods.
    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        self.template.metadata.as_ref().and_then(|metadata| metadata.labels.clone()).unwrap_or_default()
    }

    /// Whether the workload's pods have no network of their own.
    pub(crate) fn uses_host_network(&self) -> bool {
        self.template.spec.as_ref().and_then(|spec| spec.host_network) == Some(true)
    }

    /// Whether a pod is the workload's.
    pub(crate) fn owns(&self, pod: &Pod) -> bool {
        self.kind.owns(&self.name, &pod.metadata)
    }

    /// The workload's pods, those that are going included.
    pub(crate) async fn pods(&self, client: &Client, namespace: &str) -> Result<Vec<Pod>, Failure> {
        let selector: Vec<String> = self.selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let params = match self.kind {
            Kind::Pod => ListParams::default().fields(&format!("metadata.name={}", self.name)),
            // Those of all Jobs.
            Kind::CronJob => ListParams::default().labels(JOB_NAME),
            Kind::DaemonSet | Kind::Deployment | Kind::Job | Kind::ReplicaSet | Kind::Rollout | Kind::StatefulSet => {
                ListParams::default().labels(&selector.join(","))
            }
        };
        let listed = Api::<Pod>::namespaced(client.clone(), namespace).list(&params).await;
        let listed = listed.map_err(|error| failure(format!("cannot list the pods of {self}: {error}"), ""))?;
        Ok(listed.items.into_iter().filter(|pod| self.owns(pod)).collect())
    }

    /// The containers of the workload's pods.
    pub(crate) fn containers(&self) -> &[Container] {
        self.template.spec.as_ref().map_or(&[], |spec| &spec.containers)
    }
}

/// Takes from an object what matters of a workload.
///
/// # Errors
/// When there is nothing that pods are made from.
fn read(name: &WorkloadName, mut object: DynamicObject) -> Result<Workload, Failure> {
    let odd = |error: &dyn fmt::Display| failure(format!("the specification of {name} is not understood: {error}"), "");
    let WorkloadName { kind, name: own_name } = name.clone();
    if kind == Kind::Pod {
        let pod: Pod = object.try_parse().map_err(|error| odd(&error))?;
        return Ok(Workload { kind, name: own_name, selector: BTreeMap::new(), template: bare_pod::template(pod) });
    }
    let pointer = if kind == Kind::CronJob { "/spec/jobTemplate/spec" } else { "/spec" };
    let spec = object.data.pointer_mut(pointer).map(serde_json::Value::take).unwrap_or_default();
    let spec: Spec = serde_json::from_value(spec).map_err(|error| odd(&error))?;
    let template = spec.template.ok_or_else(|| failure(format!("{name} has no pod template"), ""))?;
    let selector = spec.selector.match_labels.unwrap_or_default();
    Ok(Workload { kind, name: own_name, selector, template })
}

/// Whether a pod is not going, and has not ended.
pub(super) fn stays(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Failed" | "Succeeded"))
}

/// Whether a pod gets the traffic of its Services.
pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True")
}

/// Why a pod does not start, when that will not pass by itself.
pub(super) fn problem(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    containers.filter_map(|it| it.state.as_ref()?.waiting.as_ref()).find_map(|waiting| {
        // Others, such as ContainerCreating, pass; so may a pod that no node has room for yet.
        let reason = waiting.reason.as_deref()?;
        let lasts = reason.contains("Err") || reason.contains("BackOff") || reason.contains("Invalid");
        lasts.then(|| format!("{reason}: {}", waiting.message.as_deref().unwrap_or_default()))
    })
}
