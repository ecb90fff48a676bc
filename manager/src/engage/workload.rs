//! Finds the workload that a client names.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Container, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{Api, ListParams};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tp_protocol::engage::call::Failure;

use super::failure;
use super::service::STAND_IN;

/// Objects per page of a list.
const PAGE: u32 = 250;

/// Names that are suggested for one that does not exist.
const SUGGESTIONS: usize = 3;

/// Label of a Deployment's pods, which tells its ReplicaSets apart.
const TEMPLATE_HASH: &str = "pod-template-hash";

/// A kind of workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    DaemonSet,
    Deployment,
    ReplicaSet,
    StatefulSet,
}

/// A workload and what its pods are made from.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    /// Labels by which its pods are found, those that an earlier template has made included.
    pub(crate) selector: BTreeMap<String, String>,
    pub(crate) template: PodTemplateSpec,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Deployment, Self::StatefulSet, Self::DaemonSet, Self::ReplicaSet];

    /// Its name in URLs and in RBAC.
    pub(super) const fn resource(self) -> &'static str {
        match self {
            Self::DaemonSet => "daemonsets",
            Self::Deployment => "deployments",
            Self::ReplicaSet => "replicasets",
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
            _ => return None,
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DaemonSet => "daemonset",
            Self::Deployment => "deployment",
            Self::ReplicaSet => "replicaset",
            Self::StatefulSet => "statefulset",
        })
    }
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

    /// Whether a pod is the workload's, by its controller. That of a Deployment's pod is a ReplicaSet, which has the Deployment's
    /// name, and behind it the hash that the pod's label has.
    pub(crate) fn owns(&self, pod: &Pod) -> bool {
        let mut controllers = pod.owner_references().iter().filter(|owner| owner.controller == Some(true));
        let (kind, name) = match self.kind {
            Kind::DaemonSet => ("DaemonSet", self.name.clone()),
            Kind::ReplicaSet => ("ReplicaSet", self.name.clone()),
            Kind::StatefulSet => ("StatefulSet", self.name.clone()),
            Kind::Deployment => match pod.labels().get(TEMPLATE_HASH) {
                Some(hash) => ("ReplicaSet", format!("{}-{hash}", self.name)),
                None => return false,
            },
        };
        controllers.any(|owner| owner.kind == kind && owner.name == name)
    }

    /// The workload's pods, those that are going included.
    pub(crate) async fn pods(&self, client: &Client, namespace: &str) -> Result<Vec<Pod>, Failure> {
        let selector: Vec<String> = self.selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let params = ListParams::default().labels(&selector.join(","));
        let listed = Api::<Pod>::namespaced(client.clone(), namespace).list(&params).await;
        let listed = listed.map_err(|error| failure(format!("cannot list the pods of {self}: {error}"), ""))?;
        Ok(listed.items.into_iter().filter(|pod| self.owns(pod)).collect())
    }

    /// The containers of the workload's pods.
    pub(crate) fn containers(&self) -> &[Container] {
        self.template.spec.as_ref().map_or(&[], |spec| &spec.containers)
    }
}

/// Returns all workloads of a namespace that can be engaged. ReplicaSets of Deployments and of stand-ins are
/// none of their own.
pub(crate) async fn list(client: &Client, namespace: &str) -> Result<Vec<Workload>, Failure> {
    let mut all = Vec::new();
    for kind in Kind::ALL {
        let of_kind = match kind {
            Kind::Deployment => {
                of::<Deployment>(client, namespace, |it| Some((it.spec.selector, it.spec.template))).await
            }
            Kind::StatefulSet => {
                of::<StatefulSet>(client, namespace, |it| Some((it.spec.selector, it.spec.template))).await
            }
            Kind::DaemonSet => {
                of::<DaemonSet>(client, namespace, |it| Some((it.spec.selector, it.spec.template))).await
            }
            Kind::ReplicaSet => {
                of::<ReplicaSet>(client, namespace, |it| Some((it.spec.selector, it.spec.template?))).await
            }
        };
        let of_kind = of_kind.map_err(|error| {
            failure(
                format!("cannot list the {kind}s of namespace {namespace}: {error}"),
                "the manager's ClusterRole allows it in its own chart: `tp helm upgrade` puts it right",
            )
        })?;
        all.extend(of_kind.into_iter().map(|(name, (selector, template))| Workload {
            kind,
            name,
            selector: selector.match_labels.unwrap_or_default(),
            template,
        }));
    }
    all.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
    Ok(all)
}

async fn of<K>(
    client: &Client,
    namespace: &str,
    makes: fn(K) -> Option<(LabelSelector, PodTemplateSpec)>,
) -> kube::Result<Vec<(String, (LabelSelector, PodTemplateSpec))>>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope> + Clone + fmt::Debug + DeserializeOwned,
{
    let api = Api::<K>::namespaced(client.clone(), namespace);
    let mut params = ListParams::default().limit(PAGE);
    let mut found = Vec::new();
    loop {
        let page = api.list(&params).await?;
        params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
        let is_own = |it: &K| {
            let is_controlled = it.owner_references().iter().any(|owner| owner.controller == Some(true));
            !is_controlled && !it.labels().contains_key(STAND_IN)
        };
        let own = page.items.into_iter().filter(is_own);
        found.extend(own.filter_map(|it| Some((it.name_any(), makes(it)?))));
        if params.continue_token.is_none() {
            return Ok(found);
        }
    }
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

/// Finds the workload that `asked` means: `KIND/NAME`, or a name.
///
/// # Errors
/// A [`Failure`] that names what there is instead.
pub(crate) fn find(workloads: Vec<Workload>, namespace: &str, asked: &str) -> Result<Workload, Failure> {
    let (kind, name) = match asked.split_once('/') {
        None => (None, asked),
        Some((kind, name)) => {
            let kind = Kind::parse(kind).ok_or_else(|| {
                let kinds = "deployment, statefulset, daemonset and replicaset";
                failure(
                    format!("`{kind}` is not a kind of workload that can be engaged"),
                    format!("the kinds are {kinds}"),
                )
            })?;
            (Some(kind), name)
        }
    };
    let is_meant = |it: &Workload| it.name == name && kind.is_none_or(|kind| it.kind == kind);
    let (mut meant, others): (Vec<_>, Vec<_>) = workloads.into_iter().partition(is_meant);
    match meant.len() {
        1 => Ok(meant.remove(0)),
        0 => Err(failure(
            format!("there is no workload {asked} in namespace {namespace}"),
            suggestion(&others, namespace, name),
        )),
        _ => {
            let names: Vec<String> = meant.iter().map(Workload::to_string).collect();
            Err(failure(
                format!("{} workloads of namespace {namespace} have the name {name}", names.len()),
                format!("say which is meant: {}", names.join(" or ")),
            ))
        }
    }
}

/// The names that are nearest.
fn suggestion(workloads: &[Workload], namespace: &str, name: &str) -> String {
    let mut near: Vec<(usize, String)> =
        workloads.iter().map(|it| (distance(&it.name, name), it.to_string())).collect();
    near.sort();
    near.truncate(SUGGESTIONS);
    let near: Vec<String> = near.into_iter().map(|(_, name)| name).collect();
    if near.is_empty() {
        format!("the namespace has no workload that can be engaged; `--namespace` names another than {namespace}")
    } else {
        format!("the nearest are {}; `tp list --namespace {namespace}` shows all", near.join(", "))
    }
}

/// Levenshtein distance, in bytes: names are ASCII (RFC 1123). One that contains the other is near.
fn distance(a: &str, b: &str) -> usize {
    if a.contains(b) || b.contains(a) {
        return 1;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(x != y)).min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workloads(names: &[(Kind, &str)]) -> Vec<Workload> {
        let of = |(kind, name): &(Kind, &str)| Workload {
            kind: *kind,
            name: (*name).to_owned(),
            selector: BTreeMap::new(),
            template: PodTemplateSpec::default(),
        };
        names.iter().map(of).collect()
    }

    #[test]
    fn a_name_is_enough_where_only_one_workload_has_it() {
        let all = workloads(&[(Kind::Deployment, "web"), (Kind::StatefulSet, "db"), (Kind::Deployment, "db")]);
        assert_eq!(find(all.clone(), "shop", "web").unwrap().to_string(), "deployment/web");
        assert_eq!(find(all.clone(), "shop", "sts/db").unwrap().to_string(), "statefulset/db");
        let failure = find(all.clone(), "shop", "db").unwrap_err();
        assert_eq!(failure.hint, "say which is meant: statefulset/db or deployment/db");
        assert!(find(all, "shop", "pod/web").unwrap_err().message.contains("`pod` is not a kind"));
    }

    #[test]
    fn a_pod_is_the_workloads_that_controls_it() {
        let pod = |kind: &str, name: &str, hash: &str| {
            let owner = serde_json::json!({"kind": kind, "name": name, "uid": "u", "apiVersion": "apps/v1", "controller": true});
            let metadata = serde_json::json!({"labels": {"pod-template-hash": hash}, "ownerReferences": [owner]});
            serde_json::from_value::<Pod>(serde_json::json!({"metadata": metadata})).unwrap()
        };
        let all = workloads(&[(Kind::Deployment, "web"), (Kind::StatefulSet, "web"), (Kind::Deployment, "web-api")]);
        let owners = |pod: Pod| all.iter().filter(|it| it.owns(&pod)).map(Workload::to_string).collect::<Vec<_>>();
        assert_eq!(owners(pod("ReplicaSet", "web-5d4f", "5d4f")), ["deployment/web"]);
        assert_eq!(owners(pod("ReplicaSet", "web-api-5d4f", "5d4f")), ["deployment/web-api"]);
        assert_eq!(owners(pod("StatefulSet", "web", "5d4f")), ["statefulset/web"]);
        assert!(owners(pod("ReplicaSet", "web-5d4f", "6e")).is_empty());
        assert!(owners(Pod::default()).is_empty());
    }

    #[test]
    fn a_name_that_does_not_exist_is_answered_with_the_nearest() {
        let all =
            workloads(&[(Kind::Deployment, "checkout"), (Kind::Deployment, "web-frontend"), (Kind::Deployment, "api")]);
        let failure = find(all, "shop", "chekout").unwrap_err();
        assert_eq!(failure.message, "there is no workload chekout in namespace shop");
        assert!(failure.hint.starts_with("the nearest are deployment/checkout, "), "{}", failure.hint);
        assert!(find(Vec::new(), "shop", "x").unwrap_err().hint.contains("no workload that can be engaged"));
    }
}
