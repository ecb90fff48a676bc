//! Engaging workloads of the kinds that are neither Deployments nor StatefulSets nor DaemonSets.

use std::time::Duration;

use serde_json::{Value, json};
use tp_tests::kubectl::{self, Applied};
use tp_tests::test::{Scope, Test};
use tp_tests::wait::until;

use crate::bed::{Bed, SETTLES_WITHIN, SHOWS_WITHIN, connect, deployment, handler, until_says};

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

/// Waits until there are so many pods of `name`, all of them ready.
fn until_ready(bed: &Bed, name: &str, count: usize) {
    until(SETTLES_WITHIN, "the pods to be ready", || {
        let path = r#"jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}"#;
        let ready = bed.kubectl(&["get", "pods", "-l", &format!("app={name}"), "-o", path]).ok();
        if ready == vec!["True"; count].join(" ") { Ok(()) } else { Err(ready) }
    });
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

#[test]
fn jobs_and_cron_jobs_have_their_environment_without_a_run() {
    let test = Test::beside_others();
    let bed = Bed::own();
    let mut template = template(&bed, "report");
    template["spec"]["restartPolicy"] = json!("Never");
    let metadata = json!({ "name": "report", "namespace": bed.name() });
    let job = json!({ "template": template });
    let mut suspended = job.clone();
    suspended["suspend"] = json!(true);
    let cron = json!({ "schedule": "0 3 1 1 *", "suspend": true, "jobTemplate": { "spec": job } });
    kubectl::apply(&json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": suspended },
        { "apiVersion": "batch/v1", "kind": "CronJob", "metadata": metadata, "spec": cron },
    ] }));
    let scope = connect(&test, &bed);
    let _handler = handler(&scope, "laptop");
    for workload in ["job/report", "cronjob/report"] {
        has_the_environment(&scope, &bed, workload);
        scope.tp(["leave", workload]).run().ok();
        for verb in ["intercept", "wiretap"] {
            let refused = scope.tp([verb, workload, "--port", "8080"]).run();
            refused.exits(1).says(&["runs to its end", "tp replace", "tp ingest"]);
        }
        let refused = scope.tp(["replace", workload]).run();
        refused.exits(1).says(&[&format!("no Service selects the pods of {workload}"), "tp ingest"]);
    }
    scope.tp(["ingest", "report"]).run().exits(1).says(&["cronjob/report or job/report"]);
    let pods = bed.kubectl(&["get", "pods", "-l", "app=report", "-o", "name"]).ok();
    assert_eq!(pods, "", "nothing has run");

    // The pods of a run are behind a Service, and so is what replaces them.
    let uid = bed.kubectl(&["get", "cronjob", "report", "-o", "jsonpath={.metadata.uid}"]).ok();
    let owner =
        json!([{ "apiVersion": "batch/v1", "kind": "CronJob", "name": "report", "uid": uid, "controller": true }]);
    let metadata = json!({ "name": "report-29395000", "namespace": bed.name(), "ownerReferences": owner });
    let run = json!({ "apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": job });
    kubectl::apply(&json!({ "apiVersion": "v1", "kind": "List", "items": [run, service(&bed, "report")] }));
    until_ready(&bed, "report", 1);
    until_answered_by(&bed, "report", "cluster");
    takes_the_traffic(&scope, &bed, "replace", "cronjob/report", "report");
    let part = scope.tp(["ingest", "job/report-29395000"]).run();
    part.exits(1).says(&["is a part of cronjob/report"]);
    bed.is_as_before();
}

/// Argo's kind of workload, with nothing that would look after it, and no more of its schema than that.
fn rollouts() -> Value {
    let schema = json!({ "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } });
    json!({ "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "rollouts.argoproj.io" },
        "spec": {
            "group": "argoproj.io", "scope": "Namespaced",
            "names": { "kind": "Rollout", "plural": "rollouts", "singular": "rollout", "shortNames": ["ro"] },
            "versions": [{ "name": "v1alpha1", "served": true, "storage": true, "schema": schema }],
        } })
}

#[test]
fn rollouts_of_argo_are_engaged_once_the_cluster_has_them() {
    let test = Test::beside_others();
    let bed = Bed::own();
    let scope = connect(&test, &bed);
    let _handler = handler(&scope, "laptop");
    let missing = scope.tp(["intercept", "rollout/ro", "--port", "8080"]).run();
    missing.exits(1).says(&["there is no workload rollout/ro"]);

    let _kind = Applied::within(SETTLES_WITHIN, rollouts());
    kubectl::admin(&["wait", "--for=condition=Established", "crd/rollouts.argoproj.io", "--timeout=60s"]).ok();
    let rollout = |name: &str, spec: Value| {
        json!({ "apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout",
            "metadata": { "name": name, "namespace": bed.name() }, "spec": spec })
    };
    let (labels, template) = (json!({ "app": "ro" }), template(&bed, "ro"));
    let own = json!({ "replicas": 2, "selector": { "matchLabels": labels }, "template": template });
    let reference = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "name": "web" });
    let by_reference = json!({ "replicas": 0, "workloadRef": reference });
    let _rollouts = [rollout("ro", own), rollout("by-reference", by_reference)]
        .map(|rollout| Applied::within(SETTLES_WITHIN, rollout));
    // What Argo's controller makes of it: a ReplicaSet with a hash, and the hash in the Service's selector.
    let uid = bed.kubectl(&["get", "rollouts.argoproj.io", "ro", "-o", "jsonpath={.metadata.uid}"]).ok();
    let owner = json!([{ "apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": "ro", "uid": uid,
        "controller": true, "blockOwnerDeletion": true }]);
    let hashed = |hash: &str| json!({ "app": "ro", "rollouts-pod-template-hash": hash });
    let set = |hash: &str| {
        let mut template = template.clone();
        template["metadata"]["labels"] = hashed(hash);
        json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": { "name": format!("ro-{hash}"), "namespace": bed.name(), "ownerReferences": owner },
            "spec": { "replicas": 1, "selector": { "matchLabels": hashed(hash) }, "template": template } })
    };
    let mut service = service(&bed, "ro");
    service["spec"]["selector"] = hashed("5d4f");
    kubectl::apply(&json!({ "apiVersion": "v1", "kind": "List", "items": [set("5d4f"), set("6e7a"), service] }));
    until_ready(&bed, "ro", 2);
    until_answered_by(&bed, "ro", "cluster");

    let listed = scope.tp(["list", "--output", "json"]).run().json()["workloads"].to_string();
    assert!(listed.contains("rollout/ro") && !listed.contains("replicaset/"), "{listed}");
    takes_the_traffic(&scope, &bed, "intercept", "rollout/ro", "ro");
    has_the_environment(&scope, &bed, "rollout/by-reference");
    scope.tp(["leave", "--all"]).run().ok();

    // Argo leads the Service to the next version.
    scope.tp(["intercept", "ro", "--port", "8080"]).run().exits(0).says(&["rollout/ro"]);
    until_answered_by(&bed, "ro", "laptop");
    let patch = json!({ "spec": { "selector": hashed("6e7a") } }).to_string();
    bed.kubectl(&["patch", "service", "ro", "--patch", &patch]).ok();
    until_narrowed(&bed, "6e7a");
    until_answered_by(&bed, "ro", "laptop");
    scope.tp(["leave", "--all"]).run().ok();
    until_answered_by(&bed, "ro", "cluster");

    let refused = scope.tp(["intercept", "ro", "--port", "8080", "--mode", "sidecar"]).run();
    refused.exits(1).says(&["`patch rollouts.argoproj.io` is missing", "--mode stand-in"]);
    bed.is_as_before();
}

/// Waits until a stand-in for this version of `ro` has its Service's traffic.
fn until_narrowed(bed: &Bed, hash: &str) {
    until(SETTLES_WITHIN, "the Service to be narrowed to a stand-in of the next version", || {
        let selector = bed.kubectl(&["get", "service", "ro", "-o", "jsonpath={.spec.selector}"]).ok();
        let label = format!("tp/stand-in,rollouts-pod-template-hash={hash}");
        let made = bed.kubectl(&["get", "pods", "-l", &label, "-o", "name"]).ok();
        if selector.contains("tp/stand-in") && !made.is_empty() { Ok(()) } else { Err(format!("{selector} {made}")) }
    });
}
