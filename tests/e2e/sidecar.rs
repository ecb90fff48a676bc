//! Engaging a workload in its own pods: who gets an agent, when pods are restarted, and that nobody's manifest changes.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tp_tests::given::given;
use tp_tests::kubectl::{self, Namespace};
use tp_tests::process::Outcome;
use tp_tests::test::{Scope, Test};
use tp_tests::wait::until;

use crate::bed::{Bed, SETTLES_WITHIN, SHOWS_WITHIN, connect, deployment, handler, intercept, security};
use crate::install::{admin_tp, install};

/// How long an engagement may take for which pods are restarted.
const RESTARTS_WITHIN: Duration = Duration::from_secs(150);

/// Names of the workload's pods that stay.
fn pods(bed: &Bed) -> BTreeSet<String> {
    let list = bed.kubectl(&["get", "pods", "-l", "app=web", "-o", "json"]).json();
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let staying = items.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    staying.filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).collect()
}

/// What is in a pod's specification at a path.
fn in_pods(bed: &Bed, path: &str) -> String {
    bed.kubectl(&["get", "pods", "-l", "app=web", "-o", &format!("jsonpath={{.items[*].{path}}}")]).ok()
}

/// A part of the Deployment `web`.
fn deployed(bed: &Bed, pointer: &str) -> Value {
    let object = bed.kubectl(&["get", "deployment", "web", "-o", "json"]).json();
    object.pointer(pointer).cloned().unwrap_or_default()
}

/// The owner of `web` has its pods ask for agents.
pub(crate) fn ask_for_agents(bed: &Bed) {
    let patch = json!({ "spec": { "template": { "metadata": { "labels": { "tp/inject": "enabled" } } } } });
    bed.kubectl(&["patch", "deployment", "web", "--patch", &patch.to_string()]).ok();
    bed.kubectl(&["rollout", "status", "deployment/web", "--timeout=80s"]).ok();
    until(SETTLES_WITHIN, "the pods without an agent to be gone", || {
        let agents = in_pods(bed, "spec.initContainers[*].name");
        if agents == "tp-agent tp-agent" { Ok(()) } else { Err(agents) }
    });
}

/// Waits until the agents in the pods of `web` are connected to the manager: the pods are ready without it.
pub(crate) fn until_connected(scope: &Scope<'_>, bed: &Bed) {
    until(SETTLES_WITHIN, "the agents to be connected", || {
        let status = scope.status();
        let agents = status["connections"][0]["agents"].as_array().cloned().unwrap_or_default();
        let connected = agents.iter().filter(|agent| agent["namespace"] == bed.name()).count();
        if connected == 2 { Ok(()) } else { Err(status.to_string()) }
    });
}

/// Engages `web` in its own pods, however long their restart takes.
fn intercept_in_pods(scope: &Scope<'_>) -> Outcome {
    let args = ["intercept", "web", "--port", "8080", "--mode", "sidecar"];
    scope.tp(args).limit(RESTARTS_WITHIN).run()
}

fn is_quiet_again(bed: &Bed) {
    bed.until_answered_by("cluster", "");
    bed.is_as_before();
}

#[test]
fn agents_that_are_there_are_taken_and_nothing_is_restarted() {
    let test = Test::beside_others();
    let bed = Bed::own();
    ask_for_agents(&bed);
    assert_eq!(bed.who(""), "cluster", "agents pass on what nobody has engaged");
    let before = pods(&bed);
    let scope = connect(&test, &bed);
    let _handler = handler(&scope, "laptop");
    until_connected(&scope, &bed);
    intercept(&scope, &["--port", "8080", "--http-header", "x-user=ann"])
        .exits(0)
        .says(&["sidecar", "have an agent already"]);
    bed.until_answered_by("laptop", "-H x-user:ann");
    // One pod after the other.
    for _ in 0..6 {
        assert_eq!((bed.who("-H x-user:ann").as_str(), bed.who("").as_str()), ("laptop", "cluster"));
    }
    let refused = intercept(&scope, &["--port", "8080", "--mode", "stand-in"]).exits(1);
    assert!(refused.stderr.contains("in its own pods"), "{refused}");
    let selector = bed.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.selector}"]).ok();
    assert_eq!(selector, r#"{"app":"web"}"#, "the Service is left alone");
    scope.tp(["leave", "web"]).run().exits(0);
    is_quiet_again(&bed);
    assert_eq!(bed.who("-H x-user:ann"), "cluster");

    intercept(&scope, &["--port", "8080", "--mode", "stand-in"]).exits(0).says(&["stand-in", "it was asked for"]);
    bed.until_answered_by("laptop", "");
    scope.tp(["quit"]).run().ok();
    is_quiet_again(&bed);
    assert_eq!(pods(&bed), before);
}

#[test]
fn pods_without_agents_are_restarted_once() {
    let test = Test::beside_others();
    let bed = Bed::own();
    bed.let_user_restart();
    let before = pods(&bed);
    let scope = connect(&test, &bed);
    let _handler = handler(&scope, "laptop");
    intercept_in_pods(&scope).exits(0).says(&["sidecar", "pods were restarted"]);
    bed.until_answered_by("laptop", "");
    let after = pods(&bed);
    assert!(after.len() == 2 && after.is_disjoint(&before), "{before:?} {after:?}");
    until(SETTLES_WITHIN, "the app to be probed by its number, in all pods that are left", || {
        let probed = in_pods(&bed, "spec.containers[0].readinessProbe.httpGet.port");
        if probed == "8080 8080" { Ok(()) } else { Err(probed) }
    });
    let generation = deployed(&bed, "/metadata/generation");
    scope.tp(["leave", "web"]).run().exits(0).within(Duration::from_secs(5));
    is_quiet_again(&bed);

    intercept_in_pods(&scope).exits(0).says(&["sidecar", "it was asked for"]).within(Duration::from_secs(15));
    bed.until_answered_by("laptop", "");
    assert_eq!((pods(&bed), deployed(&bed, "/metadata/generation")), (after, generation));
    // A pod that comes later has its orders a moment after it is ready.
    bed.kubectl(&["delete", "pod", "-l", "app=web", "--wait=false"]).ok();
    until(SETTLES_WITHIN, "new pods to take the traffic as well", || {
        let who: Vec<String> = (0..6).map(|_| bed.who("")).collect();
        if who.iter().all(|who| who == "laptop") { Ok(()) } else { Err(format!("{who:?}")) }
    });
    scope.tp(["quit"]).run().ok();
    is_quiet_again(&bed);
}

#[test]
fn callers_of_a_headless_service_meet_agents_where_they_look_the_port_up() {
    let test = Test::beside_others();
    let bed = Bed::own();
    let scope = connect(&test, &bed);
    let _handler = handler(&scope, "laptop");
    let engage = || intercept(&scope, &["--service", "peers", "--port", "8080"]);
    engage().exits(1).says(&["the Service peers is headless", "--mode sidecar"]);
    ask_for_agents(&bed);
    until_connected(&scope, &bed);
    engage().exits(0).says(&["sidecar", "have an agent already", "know the port's number pass the agents by"]);
    // The record says which port each pod has.
    let looked_up = "read -r _ _ port host < <(dig +short +search SRV _http._tcp.peers | head -1); \
        curl -sS --max-time 5 http://${host%.}:$port/ 2>&1";
    until(SETTLES_WITHIN, "the handler to answer a caller that looks the port up", || {
        let answer = bed.call(looked_up).stdout;
        if answer.contains(r#""name":"laptop""#) { Ok(()) } else { Err(answer) }
    });
    assert_eq!(bed.who("--connect-to ::peers:8080"), "cluster", "and not one that knows the number");
    scope.tp(["leave", "web"]).run().exits(0);
    is_quiet_again(&bed);
}

#[test]
fn a_manifest_that_is_applied_again_finds_nothing_to_change() {
    let test = Test::beside_others();
    let bed = Bed::own();
    bed.let_user_restart();
    let manifest = deployment(bed.name());
    kubectl::apply_as_gitops(&manifest).ok();
    let scope = connect(&test, &bed);
    let _handler = handler(&scope, "laptop");
    intercept_in_pods(&scope).exits(0);
    let (spec, generation, after) = (deployed(&bed, "/spec"), deployed(&bed, "/metadata/generation"), pods(&bed));
    // Server-side it would be refused where fields belong to two; the other way has the last manifest to compare with, and
    // writes an empty variable's value anew each time.
    kubectl::apply_as_gitops(&manifest).ok();
    assert_eq!((deployed(&bed, "/spec"), deployed(&bed, "/metadata/generation")), (spec.clone(), generation));
    kubectl::apply(&manifest);
    assert_eq!(deployed(&bed, "/spec"), spec);
    assert_eq!(pods(&bed), after);
    bed.until_answered_by("laptop", "");
    scope.tp(["quit"]).run().ok();
    is_quiet_again(&bed);
}

#[test]
fn what_cannot_be_engaged_in_its_own_pods_is_told_with_the_way_out() {
    let test = Test::beside_others();
    let bed = Bed::own();
    let numbers = json!([{ "name": "http", "port": 80, "targetPort": 8080 }]);
    kubectl::apply(&json!({ "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "numbers", "namespace": bed.name() },
        "spec": { "selector": { "app": "web" }, "ports": numbers } }));
    let before = pods(&bed);
    let scope = connect(&test, &bed);
    for (service, words) in [
        ("numbers", &["by number", "--mode stand-in"][..]),
        ("web", &["the right `patch deployments` is missing", "--mode stand-in", "create role tp-restart"]),
    ] {
        intercept(&scope, &["--service", service, "--port", "8080", "--mode", "sidecar"]).exits(1).says(words);
    }
    let forbidden = scope.tp(["intercept", "coredns", "--namespace", "kube-system", "--mode", "sidecar"]).run();
    forbidden.exits(1).says(&["namespace kube-system are not to be engaged"]);
    assert_eq!(pods(&bed), before, "nothing was restarted");
    bed.is_as_before();

    // New pods ask for nothing in vain there, and are asked about elsewhere.
    let pod = |namespace: &str| {
        let metadata =
            json!({ "name": "asking", "namespace": namespace, "labels": { "app": "web", "tp/inject": "enabled" } });
        kubectl::dry_run(&json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": { "containers": [{
            "name": "web", "image": given().cluster_sample_image, "securityContext": security(),
            "ports": [{ "name": "http", "containerPort": 8080 }],
        }] } }))
    };
    assert!(pod(bed.name()).to_string().contains("tp-agent"));
    assert!(!pod("kube-system").to_string().contains("tp-agent"));
}

#[test]
fn a_pod_that_gets_no_agent_starts_and_an_event_says_why() {
    let _test = Test::beside_others();
    // A second workload of the bed's namespace.
    let bed = Bed::own();
    let mut alone = deployment(bed.name());
    alone["metadata"]["name"] = json!("alone");
    let labels = json!({ "app": "alone" });
    alone["spec"]["selector"]["matchLabels"] = labels.clone();
    alone["spec"]["template"]["metadata"]["labels"] = json!({ "app": "alone", "tp/inject": "enabled" });
    kubectl::apply(&alone);
    bed.kubectl(&["rollout", "status", "deployment/alone", "--timeout=60s"]).ok();
    let why = "no Service that names a port selects the pods";
    let path = r"jsonpath={.items[0].metadata.annotations.tp/not-injected}";
    let annotation = bed.kubectl(&["get", "pods", "-l", "app=alone", "-o", path]).ok();
    assert!(annotation.starts_with(why), "{annotation}");
    until(SHOWS_WITHIN, "the Event to be written", || {
        let events = bed.kubectl(&["get", "events", "--field-selector", "reason=AgentNotInjected"]).ok();
        if events.contains(why) && events.contains("replicaset/alone-") { Ok(()) } else { Err(events) }
    });
}

#[test]
fn alone_a_manager_that_puts_agents_nowhere_says_so() {
    let test = Test::alone();
    let bed = Bed::own();
    let scope = test.scope();
    let namespace = Namespace::create(&format!("tp-{}", scope.name()));
    let name = namespace.name();
    namespace.let_user_connect();
    install(&scope, name, "install", &[]).exits(0);
    kubectl::admin(&["-n", name, "rollout", "status", "statefulset/tp-manager", "--timeout=60s"]).ok();
    scope.tp(["connect", "--namespace", bed.name()]).env("TP_MANAGER_NAMESPACE", name).run().ok();
    let refused = intercept(&scope, &["--port", "8080", "--mode", "sidecar"]);
    refused.exits(1).says(&["puts no agents into", "engage.inject", "--mode stand-in"]);
    scope.tp(["quit"]).run().ok();
    admin_tp(&scope, name, ["uninstall", "--yes", "--only", "cluster"]).run().exits(0);
}
