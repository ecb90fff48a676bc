//! The kinds of workloads, and whose pods are whose.

use std::fmt;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ApiResource;
use kube::core::{GroupVersionKind, ObjectMeta};
use tp_protocol::engage::call::Failure;

use crate::engage::failure;

/// Label of a Deployment's pods, which tells its ReplicaSets apart.
const TEMPLATE_HASH: &str = "pod-template-hash";

/// The same of a Rollout's pods. Argo puts it into the selectors of its Services as well, to have them lead to one version.
pub(crate) const ROLLOUT_HASH: &str = "rollouts-pod-template-hash";

/// Longest name of an object (RFC 1123 subdomain).
const NAME_BYTES_MAX: usize = 253;

/// A kind of workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Its pods are those of its Jobs.
    CronJob,
    DaemonSet,
    Deployment,
    Job,
    /// One that nothing has made from a template.
    Pod,
    ReplicaSet,
    /// Argo's, which is there only where Argo Rollouts is installed.
    Rollout,
    StatefulSet,
}

/// Which workload of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WorkloadName {
    pub(crate) kind: Kind,
    /// As Kubernetes allows it: it becomes a part of a path.
    pub(crate) name: String,
}

impl Kind {
    pub(crate) const ALL: [Self; 8] = [
        Self::Deployment,
        Self::StatefulSet,
        Self::DaemonSet,
        Self::ReplicaSet,
        Self::Rollout,
        Self::Job,
        Self::CronJob,
        Self::Pod,
    ];

    /// What the API server calls it.
    pub(crate) fn resource(self) -> ApiResource {
        match self {
            Self::CronJob => ApiResource::erase::<CronJob>(&()),
            Self::DaemonSet => ApiResource::erase::<DaemonSet>(&()),
            Self::Deployment => ApiResource::erase::<Deployment>(&()),
            Self::Job => ApiResource::erase::<Job>(&()),
            Self::Pod => ApiResource::erase::<Pod>(&()),
            Self::ReplicaSet => ApiResource::erase::<ReplicaSet>(&()),
            Self::Rollout => {
                let kind = GroupVersionKind::gvk(self.group(), "v1alpha1", "Rollout");
                ApiResource::from_gvk_with_plural(&kind, self.plural())
            }
            Self::StatefulSet => ApiResource::erase::<StatefulSet>(&()),
        }
    }

    /// Its API group; empty for the core group.
    pub(in crate::engage) const fn group(self) -> &'static str {
        match self {
            Self::Pod => "",
            Self::CronJob | Self::Job => "batch",
            Self::Rollout => "argoproj.io",
            Self::DaemonSet | Self::Deployment | Self::ReplicaSet | Self::StatefulSet => "apps",
        }
    }

    /// Its name in URLs and in RBAC.
    pub(in crate::engage) const fn plural(self) -> &'static str {
        match self {
            Self::CronJob => "cronjobs",
            Self::DaemonSet => "daemonsets",
            Self::Deployment => "deployments",
            Self::Job => "jobs",
            Self::Pod => "pods",
            Self::ReplicaSet => "replicasets",
            Self::Rollout => "rollouts",
            Self::StatefulSet => "statefulsets",
        }
    }

    /// Reads a kind as kubectl does: in full, in the plural, or short.
    fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "deployment" | "deployments" | "deploy" => Self::Deployment,
            "statefulset" | "statefulsets" | "sts" => Self::StatefulSet,
            "daemonset" | "daemonsets" | "ds" => Self::DaemonSet,
            "replicaset" | "replicasets" | "rs" => Self::ReplicaSet,
            "rollout" | "rollouts" | "ro" => Self::Rollout,
            "job" | "jobs" => Self::Job,
            "cronjob" | "cronjobs" | "cj" => Self::CronJob,
            "pod" | "pods" | "po" => Self::Pod,
            _ => return None,
        })
    }

    /// Whether its pods run to their end, instead of serving for as long as they are there.
    pub(in crate::engage) const fn ends(self) -> bool {
        matches!(self, Self::CronJob | Self::Job)
    }

    /// Whether a pod is that of the workload of this kind and name, by its controller. That of a Deployment's or Rollout's pod is a
    /// ReplicaSet, which has the workload's name, and behind it the hash that the pod's label has; that of a CronJob's pod is a Job,
    /// with the minute for which it was due. One that somebody has made from a CronJob by hand may have any name, and is not known.
    pub(super) fn owns(self, name: &str, pod: &ObjectMeta) -> bool {
        let controller = controller(pod);
        let hashed = |label: &str| Some(format!("{name}-{}", pod.labels.as_ref()?.get(label)?));
        let (kind, name) = match self {
            Self::Pod => return controller.is_none() && pod.name.as_deref() == Some(name),
            Self::CronJob => {
                let minute =
                    |owner: &OwnerReference| Some(owner.name.strip_prefix(name)?.strip_prefix('-')?.to_owned());
                let minute = controller.filter(|owner| owner.kind == "Job").and_then(minute);
                return minute.is_some_and(|it| !it.is_empty() && it.bytes().all(|byte| byte.is_ascii_digit()));
            }
            Self::Job => ("Job", name.to_owned()),
            Self::DaemonSet => ("DaemonSet", name.to_owned()),
            Self::ReplicaSet => ("ReplicaSet", name.to_owned()),
            Self::StatefulSet => ("StatefulSet", name.to_owned()),
            Self::Deployment | Self::Rollout => {
                let label = if self == Self::Rollout { ROLLOUT_HASH } else { TEMPLATE_HASH };
                let Some(name) = hashed(label) else { return false };
                ("ReplicaSet", name)
            }
        };
        controller.is_some_and(|owner| owner.kind == kind && owner.name == name)
    }
}

/// What has made an object.
pub(super) fn controller(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

impl WorkloadName {
    /// Whether it has made an object, or another that has made it.
    pub(super) fn has_made(&self, metadata: &ObjectMeta) -> bool {
        let is_it = |owner: &OwnerReference| owner.kind == self.kind.resource().kind && owner.name == self.name;
        controller(metadata).is_some_and(is_it) || self.kind.owns(&self.name, metadata)
    }

    /// Reads `KIND/NAME`, the kind as kubectl does; `None` for a name alone.
    ///
    /// # Errors
    /// When it is no kind, or no name.
    pub(super) fn parse(text: &str) -> Result<Option<Self>, Failure> {
        let Some((kind, name)) = text.split_once('/') else { return Ok(None) };
        let kind = Kind::parse(kind).ok_or_else(|| {
            let kinds: Vec<String> = Kind::ALL.iter().map(Kind::to_string).collect();
            failure(
                format!("`{kind}` is not a kind of workload that can be engaged"),
                format!("the kinds are {}", kinds.join(", ")),
            )
        })?;
        if !is_name(name) {
            return Err(failure(format!("`{name}` cannot be the name of a {kind}"), ""));
        }
        Ok(Some(Self { kind, name: name.to_owned() }))
    }
}

/// Whether this can be an object's name (RFC 1123 subdomain).
fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.bytes().all(is_inner)
    };
    text.len() <= NAME_BYTES_MAX && text.split('.').all(is_label)
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CronJob => "cronjob",
            Self::DaemonSet => "daemonset",
            Self::Deployment => "deployment",
            Self::Job => "job",
            Self::Pod => "pod",
            Self::ReplicaSet => "replicaset",
            Self::Rollout => "rollout",
            Self::StatefulSet => "statefulset",
        })
    }
}

impl fmt::Display for WorkloadName {
    /// `KIND/NAME`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn kinds_are_read_as_kubectl_does_and_names_are_no_paths() {
        let read = |text| WorkloadName::parse(text).map(|name| name.map(|it| it.to_string()));
        for (text, name) in
            [("sts/db", "statefulset/db"), ("Deployments/web.v2", "deployment/web.v2"), ("po/web-0", "pod/web-0")]
        {
            assert_eq!(read(text), Ok(Some(name.to_owned())));
        }
        assert_eq!(read("web"), Ok(None));
        assert!(read("service/web").unwrap_err().hint.starts_with("the kinds are deployment, "));
        for text in ["deploy/..", "deploy/../../secrets/x", "deploy/", "deploy/a..b", "deploy/Web", "deploy/a?b"] {
            assert!(read(text).unwrap_err().message.ends_with("cannot be the name of a deployment"), "{text}");
        }
    }

    #[test]
    fn a_pod_is_the_workloads_that_controls_it() {
        let pod = |kind: &str, name: &str, hash: &str| {
            let owner = json!({"kind": kind, "name": name, "uid": "u", "apiVersion": "apps/v1", "controller": true});
            let label = if hash.starts_with('r') { ROLLOUT_HASH } else { TEMPLATE_HASH };
            let metadata = json!({"labels": {label: hash}, "ownerReferences": [owner]});
            serde_json::from_value::<Pod>(json!({"metadata": metadata})).unwrap()
        };
        let all = [
            (Kind::Deployment, "web"),
            (Kind::StatefulSet, "web"),
            (Kind::Deployment, "web-api"),
            (Kind::Pod, "web-0"),
            (Kind::Rollout, "web"),
            (Kind::CronJob, "web"),
            (Kind::Job, "web-29"),
        ];
        let owners = |pod: Pod| {
            let own = all.iter().filter(|(kind, name)| kind.owns(name, &pod.metadata));
            own.map(|(kind, name)| format!("{kind}/{name}")).collect::<Vec<_>>()
        };
        assert_eq!(owners(pod("ReplicaSet", "web-5d4f", "5d4f")), ["deployment/web"]);
        assert_eq!(owners(pod("ReplicaSet", "web-api-5d4f", "5d4f")), ["deployment/web-api"]);
        assert_eq!(owners(pod("StatefulSet", "web", "5d4f")), ["statefulset/web"]);
        assert_eq!(owners(pod("ReplicaSet", "web-r6e", "r6e")), ["rollout/web"]);
        assert_eq!(owners(pod("Job", "web-29395000", "")), ["cronjob/web"]);
        assert_eq!(owners(pod("Job", "web-29", "")), ["cronjob/web", "job/web-29"]);
        for name in ["web", "web-", "web-29a", "webs-29395000"] {
            assert!(owners(pod("Job", name, "")).is_empty(), "{name}");
        }
        assert!(owners(pod("ReplicaSet", "web-5d4f", "6e")).is_empty());
        assert!(owners(Pod::default()).is_empty());
        let named = |mut pod: Pod| {
            pod.metadata.name = Some("web-0".to_owned());
            pod
        };
        assert_eq!(owners(named(Pod::default())), ["pod/web-0"]);
        assert_eq!(owners(named(pod("StatefulSet", "web", "5d4f"))), ["statefulset/web"]);
    }
}
