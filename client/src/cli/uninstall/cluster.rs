//! Finds by label, and removes, what tp has in a cluster.

use std::time::Duration;

use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PropagationPolicy};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, ResourceExt as _};

use super::engagements::{self, Name};
use crate::attach::KubeAccess;
use crate::cli::helm::{MANAGED_BY, RELEASE, Target};
use crate::error::{CliError, Result};
use crate::kubeconfig::client::{client, explain};
use crate::progress::Progress;

/// Label of all that the chart installs.
const PART_OF: &str = "app.kubernetes.io/part-of=tp";
/// What helm notes on cluster-wide objects: several managers can be in one cluster.
const RELEASE_NAMESPACE: &str = "meta.helm.sh/release-namespace";
/// What the manager makes itself, in its namespace.
const MADE_BY_MANAGER: [(&str, &str); 2] = [("Secret", "tp-manager-tls"), ("ConfigMap", "tp-manager-ca")];
/// How long the manager's pod, and then the namespace, may take to go.
const GONE_LIMIT: Duration = Duration::from_secs(120);
/// How often they are looked for.
const GONE_INTERVAL: Duration = Duration::from_millis(500);

/// A kind of objects: API group, version, kind, plural.
type Kind = (&'static str, &'static str, &'static str, &'static str);

/// Kinds in the manager's namespace, in the order of removal: first what would make others again.
const NAMESPACED: [Kind; 13] = [
    ("apps", "v1", "StatefulSet", "statefulsets"),
    ("apps", "v1", "Deployment", "deployments"),
    ("batch", "v1", "Job", "jobs"),
    ("", "v1", "Service", "services"),
    ("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    ("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"),
    ("coordination.k8s.io", "v1", "Lease", "leases"),
    ("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims"),
    ("", "v1", "ConfigMap", "configmaps"),
    ("", "v1", "Secret", "secrets"),
    ("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings"),
    ("rbac.authorization.k8s.io", "v1", "Role", "roles"),
    ("", "v1", "ServiceAccount", "serviceaccounts"),
];

/// Cluster-wide kinds.
const CLUSTER_WIDE: [Kind; 4] = [
    ("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations"),
    ("admissionregistration.k8s.io", "v1", "ValidatingWebhookConfiguration", "validatingwebhookconfigurations"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles"),
];

const NAMESPACE: Kind = ("", "v1", "Namespace", "namespaces");
const POD: Kind = ("", "v1", "Pod", "pods");

fn resource((group, version, kind, plural): Kind) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
}

/// A cluster, as an administrator.
pub(super) struct Cluster {
    client: Client,
    access: KubeAccess,
    target: Target,
    has_helm: bool,
}

/// What is to be removed.
#[derive(Debug, Default)]
pub(super) struct Remains {
    /// Whether helm has a release there.
    has_release: bool,
    /// Objects, in the order of removal.
    objects: Vec<(Kind, String)>,
    /// Whether tp made the namespace.
    namespace_is_ours: bool,
    /// Engagements, and stand-ins, in any namespace.
    engagements: (Vec<Name>, Vec<Name>),
}

impl Remains {
    fn has_engagements(&self) -> bool {
        self.engagements != Default::default()
    }

    /// What is to be removed, as lines for people.
    pub(super) fn describe(&self, cluster: &Cluster) -> Vec<String> {
        if !self.has_release && self.objects.is_empty() && !self.namespace_is_ours && !self.has_engagements() {
            return Vec::new();
        }
        let namespace = &cluster.target.namespace;
        let mut lines =
            vec![format!("In the cluster of context {} ({}):", cluster.access.context, cluster.access.original_server)];
        let (leases, stand_ins) = &self.engagements;
        lines
            .extend(leases.iter().map(|(namespace, name)| format!("  the engagement {name} in namespace {namespace}")));
        lines.extend(
            stand_ins.iter().map(|(namespace, name)| format!("  the stand-in {name} in namespace {namespace}")),
        );
        if self.has_release {
            lines.push(format!("  the helm release {RELEASE} in namespace {namespace}"));
        }
        lines.extend(self.objects.iter().map(|((_, _, kind, _), name)| format!("  {kind} {name}")));
        if self.namespace_is_ours {
            lines.push(format!("  the namespace {namespace}, with all that is in it"));
        }
        lines
    }
}

impl Cluster {
    /// Makes a client; nothing is sent yet.
    pub(super) fn new(access: KubeAccess, target: Target, has_helm: bool) -> Result<Self> {
        Ok(Self { client: client(&access)?, access, target, has_helm })
    }

    /// Looks for everything.
    ///
    /// # Errors
    /// When the API server cannot be reached, or the user may not look.
    pub(super) async fn find(&self) -> Result<Remains> {
        let mut remains = Remains::default();
        let namespace = self.target.namespace.as_str();
        let found = self
            .api(NAMESPACE, None)
            .get_opt(namespace)
            .await
            .map_err(|e| self.failed("look for the namespace", &e))?;
        remains.namespace_is_ours =
            found.as_ref().is_some_and(|ns| ns.labels().get(MANAGED_BY.0).is_some_and(|by| by == MANAGED_BY.1));
        if found.is_some() {
            let releases = ListParams::default().labels(&format!("owner=helm,name={RELEASE}"));
            let secrets = self.list(("", "v1", "Secret", "secrets"), Some(namespace), &releases).await?;
            remains.has_release = !secrets.is_empty();
            for kind in NAMESPACED {
                let labelled = self.list(kind, Some(namespace), &ListParams::default().labels(PART_OF)).await?;
                remains.objects.extend(labelled.into_iter().map(|object| (kind, object.name_any())));
                for (_, name) in MADE_BY_MANAGER.iter().filter(|(made, _)| *made == kind.2) {
                    let known = remains.objects.iter().any(|(k, n)| k.2 == kind.2 && n == name);
                    if !known && self.exists(kind, namespace, name).await? {
                        remains.objects.push((kind, (*name).to_owned()));
                    }
                }
                // Without helm its record of the release goes like everything else.
                if kind.2 == "Secret" && !self.has_helm {
                    remains.objects.extend(secrets.iter().map(|secret| (kind, secret.name_any())));
                }
            }
        }
        for kind in CLUSTER_WIDE {
            let labelled = self.list(kind, None, &ListParams::default().labels(PART_OF)).await?;
            let ours = labelled.into_iter().filter(|object| {
                object.annotations().get(RELEASE_NAMESPACE).is_none_or(|release| release == namespace)
            });
            remains.objects.extend(ours.map(|object| (kind, object.name_any())));
        }
        remains.engagements =
            engagements::find(&self.client, namespace).await.map_err(|e| self.failed("look for engagements", &e))?;
        Ok(remains)
    }

    /// Removes it: the release by helm where there is one, the rest object by object, the namespace last.
    ///
    /// # Errors
    /// The first object that cannot be removed.
    pub(super) async fn remove(&self, remains: &Remains, progress: &Progress) -> Result<()> {
        let namespace = self.target.namespace.as_str();
        if remains.has_engagements() {
            progress.step("ending engagements");
            engagements::end(&self.client, namespace).await.map_err(|e| self.failed("end the engagements", &e))?;
        }
        if remains.has_release && self.has_helm {
            progress.step(format!("uninstalling the traffic manager in {namespace}"));
            self.target.helm("uninstall", None, vec!["--wait".into()]).await?;
        }
        for (kind, name) in &remains.objects {
            progress.step(format!("removing {} {name}", kind.2));
            let in_namespace = (!CLUSTER_WIDE.contains(kind)).then_some(namespace);
            self.delete(*kind, in_namespace, name).await?;
        }
        if remains.has_release || !remains.objects.is_empty() {
            progress.step("waiting for the manager to end");
            self.wait_for_pods().await?;
        }
        if remains.namespace_is_ours {
            progress.step(format!("removing namespace {namespace}"));
            self.delete(NAMESPACE, None, namespace).await?;
            self.wait_for_namespace().await?;
        }
        Ok(())
    }

    /// Waits until the manager's pods are gone: they have some seconds to end when their StatefulSet is removed.
    async fn wait_for_pods(&self) -> Result<()> {
        let namespace = self.target.namespace.as_str();
        let pods = self.api(POD, Some(namespace));
        let managers = ListParams::default().labels(&format!("app.kubernetes.io/name={RELEASE}"));
        let gone = async {
            while !pods.list(&managers).await?.items.is_empty() {
                tokio::time::sleep(GONE_INTERVAL).await;
            }
            Ok(())
        };
        self.wait(gone, &format!("the pod of the manager in {namespace}"), &format!("-n {namespace} get pods")).await
    }

    async fn wait_for_namespace(&self) -> Result<()> {
        let namespace = self.target.namespace.as_str();
        let namespaces = self.api(NAMESPACE, None);
        let gone = async {
            while namespaces.get_opt(namespace).await?.is_some() {
                tokio::time::sleep(GONE_INTERVAL).await;
            }
            Ok(())
        };
        self.wait(gone, &format!("the namespace {namespace}"), &format!("get namespace {namespace} -o yaml")).await
    }

    async fn wait(&self, gone: impl Future<Output = kube::Result<()>>, what: &str, look: &str) -> Result<()> {
        match tokio::time::timeout(GONE_LIMIT, gone).await {
            Ok(outcome) => outcome.map_err(|e| self.failed(&format!("look for {what}"), &e)),
            Err(_) => Err(CliError::user(format!("{what} is still there after {} s", GONE_LIMIT.as_secs()))
                .hint(format!("see what holds it with `kubectl {look}`"))),
        }
    }

    async fn list(&self, kind: Kind, namespace: Option<&str>, wanted: &ListParams) -> Result<Vec<DynamicObject>> {
        match self.api(kind, namespace).list(wanted).await {
            Ok(found) => Ok(found.items),
            // A cluster that does not know the kind has none of it.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
            Err(e) => Err(self.failed(&format!("list {}", kind.3), &e)),
        }
    }

    async fn exists(&self, kind: Kind, namespace: &str, name: &str) -> Result<bool> {
        let found = self.api(kind, Some(namespace)).get_opt(name).await;
        found.map(|object| object.is_some()).map_err(|e| self.failed(&format!("look for {} {name}", kind.2), &e))
    }

    async fn delete(&self, kind: Kind, namespace: Option<&str>, name: &str) -> Result<()> {
        let params =
            DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..DeleteParams::default() };
        match self.api(kind, namespace).delete(name, &params).await {
            Ok(_) => Ok(()),
            // Helm, or its owner's end, has removed it.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(e) => Err(self.failed(&format!("remove {} {name}", kind.2), &e)),
        }
    }

    fn api(&self, kind: Kind, namespace: Option<&str>) -> Api<DynamicObject> {
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource(kind)),
            None => Api::all_with(self.client.clone(), &resource(kind)),
        }
    }

    fn failed(&self, what: &str, e: &kube::Error) -> CliError {
        explain(what, &self.access, e)
    }
}
