//! Reviews of new pods: one that asks for an agent gets it (`engage::sidecar`).
//!
//! No pod is kept from starting. One that gets no agent has an annotation that says why, whoever made it is warned, and an Event
//! tells everybody else. It is about the pod's controller: the pod has no name yet.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service};
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::{OnceCell, watch};
use tokio::time::timeout;

use super::path::SecretPath;
use super::review::{AdmissionRequest, AdmissionReview, Allowed};
use crate::MANAGER;
use crate::engage::Cluster;
use crate::engage::rollout::REASON;
use crate::engage::sidecar::{self, Form, Injection, Refusal, Wanted};

/// What the path begins with.
const PREFIX: &str = "/inject/";

/// How long finding out what a pod gets may take: less than the API server waits for the answer, since one that is late says
/// nobody why.
const LIMIT: Duration = Duration::from_secs(2);

/// How long telling of it in an Event may take. Together with [`LIMIT`] less than the API server waits.
const EVENT_LIMIT: Duration = Duration::from_millis(500);

/// Longest text of an Event (events.k8s.io/v1, `note`).
const NOTE_BYTES_MAX: usize = 1_024;

/// Puts agents into pods.
pub struct InjectHook {
    path: SecretPath,
    cluster: Arc<Cluster>,
    /// Whose certificates agents trust, in PEM; empty until that is known.
    ca: watch::Receiver<String>,
    /// What the API server can do; found out once.
    form: OnceCell<Form>,
    /// Tells of pods that get none.
    recorder: Recorder,
}

/// A pod gets no agent.
#[derive(Debug, thiserror::Error)]
enum InjectError {
    /// It cannot have one.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nobody may engage it.
    #[error("workloads of namespace {0} are not to be engaged (engage.forbiddenNamespaces in the chart)")]
    Forbidden(String),
    /// The manager has just started.
    #[error("the traffic manager has no certificate yet, by which agents know it")]
    NoCa,
    /// The API server does not tell what has to be known.
    #[error("{what}: {source}")]
    Api {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: Box<kube::Error>,
    },
    /// The API server does not answer.
    #[error("the traffic manager had no answer of the API server within {LIMIT:?}")]
    TimedOut,
}

impl fmt::Debug for InjectHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InjectHook").field("path", &self.path).finish_non_exhaustive()
    }
}

impl InjectHook {
    /// Makes up a path. `ca` is what agents are to trust, in PEM, and empty until that is known.
    ///
    /// Returns `None` when the system has no randomness.
    #[must_use]
    pub fn new(cluster: Arc<Cluster>, ca: watch::Receiver<String>) -> Option<Self> {
        let recorder =
            Recorder::new(cluster.client.clone(), Reporter { controller: MANAGER.to_owned(), instance: None });
        Some(Self { path: SecretPath::new(PREFIX)?, cluster, ca, form: OnceCell::new(), recorder })
    }

    /// Where the API server finds it. To be told to nobody else, since an answer says which ports a namespace's Services name.
    #[must_use]
    pub fn path(&self) -> &str {
        self.path.as_str()
    }

    /// Whether this is the path.
    pub(super) fn is_at(&self, path: &str) -> bool {
        self.path.is(path)
    }

    /// Takes a review, as the API server sends it to the path, and answers with the patch that puts an agent into the pod, if
    /// it asks for one; `None` when it is no review. Answers within `LIMIT` and `EVENT_LIMIT`.
    pub async fn answer(&self, body: &[u8]) -> Option<Vec<u8>> {
        let request = serde_json::from_slice::<AdmissionReview<Pod>>(body).ok()?.request;
        let allowed = Allowed::new(&request.uid);
        let Some(pod) = pod_that_asks(&request) else { return allowed.to_json() };
        let namespace = request.namespace.as_str();
        let name = name_of(pod);
        let found = timeout(LIMIT, self.inject(namespace, pod)).await.unwrap_or(Err(InjectError::TimedOut));
        match found {
            Ok(Injection { operations, .. }) if operations.is_empty() => allowed.to_json(),
            Ok(Injection { operations, left_out }) => {
                tracing::info!(namespace, name, ?left_out, "pod gets an agent");
                let warnings = left_out.into_iter().map(|what| format!("{what}: it passes tp's agent by")).collect();
                allowed.with_patch(operations).with_warnings(warnings).to_json()
            }
            Err(error) => {
                tracing::warn!(namespace, name, %error, "pod starts without the agent that it asks for");
                let why = error.to_string();
                let warning = format!("the pod starts without tp's agent: {why}");
                if !request.dry_run {
                    self.tell(namespace, pod, &warning).await;
                }
                allowed.with_patch(sidecar::not_injected(pod, &why)).with_warnings(vec![warning]).to_json()
            }
        }
    }

    /// Writes an Event about a pod that gets no agent.
    async fn tell(&self, namespace: &str, pod: &Pod, note: &str) {
        let event = Event {
            type_: EventType::Warning,
            reason: REASON.to_owned(),
            note: Some(note[..note.floor_char_boundary(NOTE_BYTES_MAX)].to_owned()),
            action: "Inject".to_owned(),
            secondary: None,
        };
        match timeout(EVENT_LIMIT, self.recorder.publish(&event, &regarding(namespace, pod))).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(namespace, %error, "no Event tells of a pod without an agent"),
            Err(_) => tracing::warn!(namespace, "no Event tells of a pod without an agent: the API server is too slow"),
        }
    }

    /// Finds out what a pod gets.
    async fn inject(&self, namespace: &str, pod: &Pod) -> Result<Injection, InjectError> {
        let Cluster { client, agent, .. } = &*self.cluster;
        if self.cluster.forbids(namespace) {
            return Err(InjectError::Forbidden(namespace.to_owned()));
        }
        let ca_pem = self.ca.borrow().clone();
        if ca_pem.is_empty() {
            return Err(InjectError::NoCa);
        }
        let failed = |what| move |source| InjectError::Api { what, source: Box::new(source) };
        let services = Api::<Service>::namespaced(client.clone(), namespace);
        let services = services.list(&ListParams::default()).await.map_err(failed("cannot list the Services"))?.items;
        let version = async { client.apiserver_version().await.map(|version| Form::of_server(&version)) };
        let form =
            self.form.get_or_try_init(|| version).await.map_err(failed("cannot read the API server's version"))?;
        let wanted = Wanted { services: &services, settings: agent, ca_pem: &ca_pem, form: *form };
        Ok(sidecar::inject(pod, &wanted)?)
    }
}

/// The new pod that a request is about, if it asks for an agent.
fn pod_that_asks(request: &AdmissionRequest<Pod>) -> Option<&Pod> {
    let is_new_pod = request.operation == "CREATE" && request.resource.is_pods() && request.sub_resource.is_empty();
    request.object.as_ref().filter(|pod| is_new_pod && sidecar::is_asked_for(pod))
}

/// Name of a pod, or what it will begin with.
fn name_of(pod: &Pod) -> Option<&str> {
    pod.metadata.name.as_deref().or(pod.metadata.generate_name.as_deref())
}

/// What an Event about a new pod is about.
fn regarding(namespace: &str, pod: &Pod) -> ObjectReference {
    let reference = ObjectReference { namespace: Some(namespace.to_owned()), ..ObjectReference::default() };
    match pod.owner_references().iter().find(|owner| owner.controller == Some(true)) {
        Some(owner) => ObjectReference {
            api_version: Some(owner.api_version.clone()),
            kind: Some(owner.kind.clone()),
            name: Some(owner.name.clone()),
            uid: Some(owner.uid.clone()),
            ..reference
        },
        None => ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            // The name of the Event begins with it, and each of the name's parts ends with a letter or digit.
            name: name_of(pod).map(|name| name.trim_end_matches('-').to_owned()),
            ..reference
        },
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use http::{Method, StatusCode};
    use serde_json::{Value, json};

    use super::*;
    use crate::fake_api::{FakeApi, status};

    const SERVICES: &str = "/api/v1/namespaces/shop/services";
    const EVENT: &str = "POST /apis/events.k8s.io/v1/namespaces/shop/events";

    /// A hook of an API server whose namespace `shop` has a Service that names its target port.
    fn hook(ca: &str) -> (FakeApi, InjectHook) {
        let api = FakeApi::default();
        let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]});
        api.put(SERVICES, json!({"kind": "ServiceList", "apiVersion": "v1", "metadata": {}, "items": [{"metadata": {"name": "web"}, "spec": spec}]}));
        api.tell_version();
        let (_, ca) = watch::channel(ca.to_owned());
        let hook = InjectHook::new(Arc::new(api.cluster()), ca).unwrap();
        (api, hook)
    }

    fn review(namespace: &str) -> Value {
        json!({
            "kind": "AdmissionReview",
            "apiVersion": "admission.k8s.io/v1",
            "request": {
                "uid": "u-1",
                "kind": {"group": "", "version": "v1", "kind": "Pod"},
                "resource": {"group": "", "version": "v1", "resource": "pods"},
                "namespace": namespace,
                "operation": "CREATE",
                "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
                "object": {
                    "kind": "Pod",
                    "apiVersion": "v1",
                    "metadata": {"generateName": "web-5d4f-", "labels": {"app": "web", "tp/inject": "enabled"}},
                    "spec": {"containers": [{"name": "web", "ports": [{"containerPort": 8080, "name": "http"}]}]},
                },
                "dryRun": false,
            },
        })
    }

    /// The response, and the operations of its patch.
    async fn ask(hook: &InjectHook, review: &Value) -> (Value, Vec<Value>) {
        let answer = hook.answer(review.to_string().as_bytes()).await.unwrap();
        let mut answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(
            (&answer["apiVersion"], &answer["kind"]),
            (&json!("admission.k8s.io/v1"), &json!("AdmissionReview"))
        );
        let response = answer["response"].take();
        assert_eq!((&response["uid"], &response["allowed"]), (&json!("u-1"), &json!(true)));
        assert_eq!(response.get("patch").is_some(), response["patchType"] == "JSONPatch");
        let patch = response["patch"].as_str().map(|patch| BASE64_STANDARD.decode(patch).unwrap());
        let operations = patch.map(|patch| serde_json::from_slice(&patch).unwrap()).unwrap_or_default();
        (response, operations)
    }

    #[tokio::test]
    async fn a_pod_that_asks_for_an_agent_gets_it_and_the_server_is_asked_for_its_version_once() {
        let (api, hook) = hook("PEM");
        for _ in 0..2 {
            let (response, operations) = ask(&hook, &review("shop")).await;
            assert_eq!(response.get("warnings"), None);
            let added = |path: &str| operations.iter().find(|it| it["path"] == path).map(|it| it["value"].clone());
            assert_eq!(added("/spec/initContainers").unwrap()[0]["name"], "tp-agent");
            assert_eq!(added("/metadata/annotations").unwrap()["tp/manager-ca"], "PEM");
        }
        assert_eq!((api.count("GET /version"), api.count("GET /api/v1/namespaces/shop/services")), (1, 2));
    }

    #[tokio::test]
    async fn what_does_not_ask_is_left_alone_and_nobody_is_asked_about_it() {
        let (api, hook) = hook("PEM");
        for (pointer, value) in [
            ("/request/object/metadata/labels", json!({"app": "web"})),
            ("/request/operation", json!("UPDATE")),
            ("/request/subResource", json!("eviction")),
            ("/request/resource/group", json!("apps")),
            ("/request/object", Value::Null),
        ] {
            let mut other = review("shop");
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            other.pointer_mut(parent).unwrap()[key] = value;
            let (response, _) = ask(&hook, &other).await;
            assert_eq!(response, json!({"uid": "u-1", "allowed": true}), "{pointer}");
        }
        assert_eq!(api.count(""), 0);
        assert_eq!(hook.answer(b"{}").await, None);
    }

    #[tokio::test]
    async fn a_pod_that_gets_no_agent_starts_and_says_why() {
        let (api, with_ca) = hook("PEM");
        let (_, without_ca) = hook("");
        api.script(Method::GET, SERVICES, StatusCode::FORBIDDEN, status(StatusCode::FORBIDDEN, "no right"));
        for (hook, namespace, why) in [
            (&with_ca, "tp-system", "workloads of namespace tp-system are not to be engaged"),
            (&with_ca, "shop", "cannot list the Services: "),
            (&without_ca, "shop", "the traffic manager has no certificate yet"),
        ] {
            let (response, operations) = ask(hook, &review(namespace)).await;
            let annotation = operations[0]["value"]["tp/not-injected"].as_str().unwrap();
            assert!(annotation.starts_with(why), "{annotation}");
            let warning = response["warnings"][0].as_str().unwrap();
            assert_eq!(warning, format!("the pod starts without tp's agent: {annotation}"));
        }
        assert_eq!((api.count(EVENT), api.count("POST /apis/events.k8s.io/v1/namespaces/tp-system/events")), (1, 1));
        let mut dry = review("shop");
        dry["request"]["dryRun"] = json!(true);
        ask(&with_ca, &dry).await;
        assert_eq!(api.count(EVENT), 1);
    }

    #[test]
    fn an_event_is_about_the_pods_controller_or_the_pod() {
        let owner = json!({"kind": "ReplicaSet", "name": "web-5d4f", "uid": "u-2", "apiVersion": "apps/v1", "controller": true});
        let pod = |metadata: Value| serde_json::from_value::<Pod>(json!({"metadata": metadata})).unwrap();
        let of_set = regarding("shop", &pod(json!({"generateName": "web-5d4f-", "ownerReferences": [owner]})));
        assert_eq!((of_set.kind.as_deref(), of_set.uid.as_deref()), (Some("ReplicaSet"), Some("u-2")));
        let alone = regarding("shop", &pod(json!({"name": "web"})));
        assert_eq!((alone.kind.as_deref(), alone.name.as_deref()), (Some("Pod"), Some("web")));
    }
}
