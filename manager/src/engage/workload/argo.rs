//! Rollouts of Argo, which are Deployments but for their strategies, and may have the template of another workload.
//!
//! They are read by their CustomResourceDefinition `argoproj.io/v1alpha1`, so that a cluster without Argo Rollouts is one without
//! Rollouts.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Client;
use kube::api::DynamicObject;
use serde::Deserialize;
use tp_protocol::engage::call::Failure;

use super::find::object;
use super::kind::{Kind, WorkloadName};
use super::{Workload, read as read_own};
use crate::engage::failure;

/// What matters of a Rollout that has no template of its own.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    selector: Option<LabelSelector>,
    workload_ref: Option<Reference>,
}

/// Whose template it has.
#[derive(Deserialize)]
struct Reference {
    kind: String,
    name: String,
}

/// Takes from a Rollout what matters of a workload.
///
/// # Errors
/// When there is nothing that pods are made from.
pub(super) async fn read(
    client: &Client,
    namespace: &str,
    name: &WorkloadName,
    rollout: DynamicObject,
) -> Result<Workload, Failure> {
    let spec = Spec::deserialize(&rollout.data["spec"])
        .map_err(|error| failure(format!("the specification of {name} is not understood: {error}"), ""))?;
    let Some(reference) = spec.workload_ref else { return read_own(name, rollout) };
    let other = match reference.kind.as_str() {
        "Deployment" => WorkloadName { kind: Kind::Deployment, name: reference.name },
        "ReplicaSet" => WorkloadName { kind: Kind::ReplicaSet, name: reference.name },
        other => {
            return Err(failure(
                format!("{name} has the pod template of {other} {}, which is not read", reference.name),
                "a template of its own, or of a Deployment or ReplicaSet, is",
            ));
        }
    };
    let found = object(client, namespace, &other).await?;
    let found =
        found.ok_or_else(|| failure(format!("{name} has the pod template of {other}, which is not there"), ""))?;
    let Workload { selector, template, .. } = read_own(&other, found)?;
    let selector = spec.selector.and_then(|own| own.match_labels).unwrap_or(selector);
    Ok(Workload { kind: name.kind, name: name.name.clone(), selector, template })
}
