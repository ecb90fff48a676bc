//! Engaging workloads of the kinds that are neither Deployments nor StatefulSets nor DaemonSets.

use std::time::Duration;

use serde_json::{Value, json};
use tp_tests::kubectl;
use tp_tests::test::{Scope, Test};

use crate::bed::{Bed, SHOWS_WITHIN, connect, deployment, handler, until_says};

/// How long a command may take that starts a stand-in.
const ROUND: Duration = Duration::from_secs(90);

/// The pods of `web`, under another name, as a template.
fn template(bed: &Bed, name: &str) -> Value {
    let mut template = deployment(bed.name())["spec"]["template"].take();
    template["metadata"]["labels"] = json!({ "app": name });
    template
}

/// A Service of the pods of `name`.
fn service(bed: &Bed, name: &str) -> Value {
    let ports = json!([{ "name": "http", "port": 80, "targetPort": "http" }]);
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": bed.name() },
        "spec": { "selector": { "app": name }, "ports": ports } })
}

/// Waits until requests to a Service are answered by `who`.
fn until_answered_by(bed: &Bed, service: &str, who: &str) {
    let request = format!("curl -sS --max-time 5 http://{service}/ 2>&1");
    bed.call(&until_says(SHOWS_WITHIN, &request, &format!("\"name\":\"{who}\""))).ok();
}

/// Engages `workload`, which has the name of its Service, by a stand-in, has the handler answer, and leaves.
fn takes_the_traffic(scope: &Scope<'_>, bed: &Bed, verb: &str, workload: &str, service: &str) {
    scope.tp([verb, workload, "--port", "8080"]).run().exits(0).says(&[workload, "stand-in"]);
    until_answered_by(bed, service, "laptop");
    scope.tp(["leave", workload]).run().exits(0);
    until_answered_by(bed, service, "cluster");
}

/// The environment of a workload is that of `web`.
fn has_the_environment(scope: &Scope<'_>, bed: &Bed, workload: &str) {
    let environment = scope.tp(["ingest", workload, "--env-json", "-"]).limit(ROUND).run().json();
    for (name, value) in bed.environment() {
        assert_eq!(environment[name], value.as_str(), "{name} of {workload}");
    }
}

#[test]
fn a_pod_that_nothing_has_made_is_engaged_as_it_is() {
    let test = Test::beside_others();
    let bed = Bed::own();
    let mut pod = template(&bed, "alone");
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = json!("alone");
    pod["metadata"]["namespace"] = json!(bed.name());
    kubectl::apply(&json!({ "apiVersion": "v1", "kind": "List", "items": [pod, service(&bed, "alone")] }));
    bed.kubectl(&["wait", "--for=condition=Ready", "pod/alone", "--timeout=60s"]).ok();
    let uid = || bed.kubectl(&["get", "pod", "alone", "-o", "jsonpath={.metadata.uid}"]).ok();
    let before = uid();
    let scope = connect(&test, &bed);
    let _handler = handler(&scope, "laptop");
    until_answered_by(&bed, "alone", "cluster");
    for verb in ["intercept", "replace"] {
        takes_the_traffic(&scope, &bed, verb, "pod/alone", "alone");
    }
    has_the_environment(&scope, &bed, "pod/alone");
    let listed = scope.tp(["list", "--output", "json"]).run().json().to_string();
    assert!(listed.contains("pod/alone") && !listed.contains("kube-api-access"), "{listed}");
    scope.tp(["leave", "--all"]).run().ok();

    let refused = scope.tp(["intercept", "pod/alone", "--port", "8080", "--mode", "sidecar"]).run();
    refused.exits(1).says(&["nothing would make it again", "--mode stand-in", "tp/inject: enabled"]);
    let of_web = bed.kubectl(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].metadata.name}"]).ok();
    let refused = scope.tp(["intercept", &format!("pod/{of_web}"), "--port", "8080"]).run();
    refused.exits(1).says(&["is a part of deployment/web", "engage deployment/web"]);
    bed.is_as_before();
    assert_eq!(uid(), before);
}
