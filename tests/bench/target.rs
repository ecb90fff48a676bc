//! The pod that takes the loads, in a namespace of its own.

use serde_json::json;
use tp_tests::given::given;
use tp_tests::kubectl::{self, Namespace};

/// Ports of `tp-sample serve`.
pub(crate) const HTTP: u16 = 8080;
pub(crate) const ECHO: u16 = 7007;
pub(crate) const SINK: u16 = 7009;
pub(crate) const SOURCE: u16 = 7019;

const POD: &str = "target";

/// The pod; it goes away with this.
pub(crate) struct Target {
    namespace: Namespace,
    /// Its address.
    pub(crate) ip: String,
    /// The address of its node.
    pub(crate) node_ip: String,
}

impl Target {
    /// Makes the pod and waits until it serves.
    pub(crate) fn create() -> Self {
        let namespace = Namespace::create(&format!("tp-bench-{:x}", std::process::id()));
        kubectl::apply(&json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": POD, "namespace": namespace.name() },
            "spec": { "terminationGracePeriodSeconds": 0, "containers": [
                {
                    "name": "sample", "image": given().cluster_sample_image,
                    "readinessProbe": { "httpGet": { "path": "/status/200", "port": HTTP }, "periodSeconds": 1 },
                },
            ] },
        }));
        let wait = ["-n", namespace.name(), "wait", "pod", POD, "--for=condition=Ready", "--timeout=60s"];
        kubectl::admin(&wait).ok();
        let field = |path: &str| kubectl::admin(&["-n", namespace.name(), "get", "pod", POD, "-o", path]).ok();
        Self { ip: field("jsonpath={.status.podIP}"), node_ip: field("jsonpath={.status.hostIP}"), namespace }
    }

    /// Namespace and name of the pod.
    pub(crate) fn pod(&self) -> (&str, &str) {
        (self.namespace.name(), POD)
    }
}
