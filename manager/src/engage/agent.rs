//! tp-agent as a container: what it has in a stand-in's pod and in a workload's own.

use k8s_openapi::api::core::v1::{Container, PodTemplateSpec};
use serde_json::{Value, json};

use super::container;
use crate::config::AgentPod;

/// Name of the container.
pub(crate) const NAME: &str = "tp-agent";

/// Variable with the name of the container whose environment the agent has.
pub(crate) const CONTAINER: &str = "TP_AGENT_CONTAINER";

/// Annotation of the pod: whose certificates its agent trusts, in PEM.
pub(crate) const CA: &str = "tp/manager-ca";

/// Names of the pod's volumes, [`volumes`].
pub(crate) const VOLUMES: [&str; 2] = ["tp-ca", "tp-token"];

/// Where the container has the certificates that it trusts, and its token.
const CA_FOLDER: &str = "/etc/tp/ca";
const TOKEN_FOLDER: &str = "/var/run/secrets/tp";

/// The probe's port, and where to look for another when the app has it.
pub(crate) const HEALTH_PORT: u16 = 7490;

/// An agent in a pod.
pub(crate) struct Agent<'a> {
    /// How agents run.
    pub(crate) settings: &'a AgentPod,
    /// What the pods of `app` are made from.
    pub(crate) template: &'a PodTemplateSpec,
    /// The container whose environment it has.
    pub(crate) app: &'a Container,
    /// Port of its probes.
    pub(crate) health_port: u16,
    /// Its ports, as in a container.
    pub(crate) ports: Vec<Value>,
}

/// The container. `more` are variables that the agent has beside those that every agent has and those of the app.
pub(crate) fn container(agent: &Agent<'_>, more: &[Value]) -> Value {
    let Agent { settings, template, app, health_port, ports } = agent;
    // All of the agent's: one that is left out could come from a ConfigMap of the app's `envFrom`.
    let own = [
        value("TP_AGENT_MANAGER", &settings.manager_address),
        value("TP_AGENT_HEALTH_PORT", &health_port.to_string()),
        value(CONTAINER, &app.name),
        value("TP_AGENT_CA_FILE", &format!("{CA_FOLDER}/ca.crt")),
        value("TP_AGENT_TOKEN_FILE", &format!("{TOKEN_FOLDER}/token")),
        value("TP_AGENT_LOG_LEVEL", "info"),
        value("TP_AGENT_LOG_FORMAT", "json"),
        field("TP_AGENT_POD", "metadata.name"),
        field("TP_AGENT_NAMESPACE", "metadata.namespace"),
    ];
    let of_app = container::environment(template, app).into_iter().map(|variable| json!(variable));
    json!({
        "name": NAME,
        "image": settings.image,
        "imagePullPolicy": settings.pull_policy,
        "env": own.into_iter().chain(more.iter().cloned()).chain(of_app).collect::<Vec<_>>(),
        "envFrom": app.env_from,
        "ports": ports,
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": health_port}, "periodSeconds": 1, "failureThreshold": 2},
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": health_port}, "periodSeconds": 10},
        "resources": settings.resources,
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": VOLUMES[0], "mountPath": CA_FOLDER, "readOnly": true},
            {"name": VOLUMES[1], "mountPath": TOKEN_FOLDER, "readOnly": true},
        ],
    })
}

fn value(name: &str, value: &str) -> Value {
    json!({"name": name, "value": value})
}

/// A variable with a fact of the pod.
pub(crate) fn field(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
}

/// What the container mounts: the pod's annotation [`CA`], and a token for the manager alone.
pub(crate) fn volumes() -> [Value; 2] {
    [
        json!({"name": VOLUMES[0], "downwardAPI": {"items": [
            {"path": "ca.crt", "fieldRef": {"fieldPath": format!("metadata.annotations['{CA}']")}},
        ]}}),
        json!({"name": VOLUMES[1], "projected": {"sources": [
            {"serviceAccountToken": {"path": "token", "audience": "tp-manager", "expirationSeconds": 3_600}},
        ]}}),
    ]
}
