//! Installing and removing, which is the administrator's part, and the agent.

use std::collections::BTreeSet;
use std::time::Duration;

use tp_tests::docker;
use tp_tests::given::given;
use tp_tests::kubectl;
use tp_tests::process::Outcome;
use tp_tests::test::{Scope, Test};
use tp_tests::tp::Tp;
use tp_tests::wait::until;

/// Everything in the cluster that says it is part of tp, or that is in one of `namespaces`: kind and name, one a line.
fn objects_of_tp() -> BTreeSet<String> {
    let kinds = kubectl::admin(&["api-resources", "--verbs=list", "-o", "name"]).ok();
    // Events tell of what happened, and are no part of anything; metrics are read, not kept.
    let kinds: Vec<_> =
        kinds.lines().filter(|kind| !kind.starts_with("events") && !kind.contains("metrics.k8s.io")).collect();
    let selector = "app.kubernetes.io/part-of=tp";
    let format = "custom-columns=KIND:.kind,NAMESPACE:.metadata.namespace,NAME:.metadata.name";
    let listed = kubectl::admin(&["get", &kinds.join(","), "-A", "-l", selector, "--no-headers", "-o", format]);
    let listed = listed.ok();
    // The beds of other tests go with their namespaces, in their own time.
    let lasting = listed.lines().filter(|line| !line.contains(" engage-"));
    lasting.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// The administrator's `tp`, for a manager in `namespace`.
pub(crate) fn admin_tp<'a>(scope: &Scope<'_>, namespace: &str, args: impl IntoIterator<Item = &'a str>) -> Tp {
    let tp = scope.tp(args).kubeconfig(&given().admin_kubeconfig).env_remove("TP_CONTEXT");
    tp.env("TP_MANAGER_NAMESPACE", namespace).limit(Duration::from_secs(90))
}

/// Runs a command of `tp helm` that takes the images from where the cluster has them.
pub(crate) fn install(scope: &Scope<'_>, namespace: &str, command: &str, more: &[&str]) -> Outcome {
    let (registry, _) = given().cluster_sample_image.rsplit_once('/').expect("the image is in a registry");
    let image = format!("image.registry={registry}");
    let args = ["helm", command, "--set", &image].into_iter().chain(more.iter().copied());
    admin_tp(scope, namespace, args).run()
}

#[test]
fn alone_manager_is_installed_upgraded_used_and_removed_without_a_trace() {
    let test = Test::alone();
    let scope = test.scope();
    let others = docker::labelled("tp.role=daemon");
    assert!(others.is_empty(), "this test would end other connections; end them yourself with `tp quit --all`");
    // What other tests have made is still going.
    let going = "--field-selector=status.phase=Terminating";
    kubectl::admin(&["wait", "--for=delete", "namespaces", going, "--timeout=80s"]).ok();
    let before = objects_of_tp();
    let namespace = kubectl::Namespace::create(&format!("tp-{}", scope.name()));
    let name = namespace.name();
    kubectl::admin(&["label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted"]).ok();
    namespace.let_user_connect();

    install(&scope, name, "install", &[]).exits(0);
    kubectl::admin(&["-n", name, "rollout", "status", "statefulset/tp-manager", "--timeout=60s"]).ok();
    let installed = objects_of_tp();
    assert!(installed.iter().any(|object| object.contains(&format!("StatefulSet {name} tp-manager"))), "{installed:?}");

    let connect = scope.tp(["connect"]).env("TP_MANAGER_NAMESPACE", name);
    connect.run().ok();
    assert_eq!(scope.status()["connections"][0]["manager"]["namespace"], name);
    scope.tp(["quit"]).run().ok();

    install(&scope, name, "upgrade", &["--set", "podLabels.colour=blue"]).exits(0);
    kubectl::admin(&["-n", name, "rollout", "status", "statefulset/tp-manager", "--timeout=60s"]).ok();
    let labels =
        kubectl::admin(&["-n", name, "get", "pod", "tp-manager-0", "-o", "jsonpath={.metadata.labels.colour}"]);
    assert_eq!(labels.ok(), "blue");

    // What was connected goes as well, and the image that connections are made from; and what was engaged, by a manager
    // that cannot end it itself any more.
    connect.run().ok();
    kubectl::let_user_engage("shop");
    scope.tp(["intercept", "web", "--namespace", "shop", "--port", "8080"]).run().ok();
    kubectl::admin(&["-n", name, "scale", "statefulset/tp-manager", "--replicas=0"]).ok();
    kubectl::admin(&["-n", name, "wait", "--for=delete", "pod/tp-manager-0", "--timeout=60s"]).ok();
    admin_tp(&scope, name, ["uninstall", "--yes"]).run().exits(0);
    let (left, _) = until(Duration::from_secs(30), "everything to be gone from the cluster", || {
        let left: Vec<_> = objects_of_tp().difference(&before).cloned().collect();
        if left.is_empty() { Ok(left) } else { Err(format!("{left:?}")) }
    });
    assert!(left.is_empty());
    kubectl::admin(&["-n", "shop", "delete", "role,rolebinding", "tp-engage"]).ok();
    let selector = kubectl::admin(&["-n", "shop", "get", "service", "web", "-o", "jsonpath={.spec.selector}"]);
    assert_eq!(selector.ok(), r#"{"app":"web"}"#);
    assert_eq!(
        before.difference(&objects_of_tp()).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "the other one was touched"
    );
    let engine: Vec<_> = docker::engine_objects().into_iter().filter(|object| object.contains("tp-daemon")).collect();
    assert_eq!(engine, Vec::<String>::new());
    assert!(docker::labelled("tp.role").is_empty());
    scope.leaves_nothing_within(Duration::from_secs(1));
}

#[test]
fn lint_accepts_the_chart_and_names_a_wrong_value() {
    let test = Test::beside_others();
    let scope = test.scope();
    install(&scope, "tp-lint", "lint", &[]).exits(0);
    for (value, named) in [
        ("nosuchValue=1", "nosuchValue"),
        ("client.also-proxy={0.0.0.0/0}", "also-proxy"),
        ("client.dns-mappings={db}", "dns-mappings"),
        ("client.vnat={some}", "vnat"),
    ] {
        install(&scope, "tp-lint", "lint", &["--set", value]).exits(1).says(&[named]);
    }
}

#[test]
fn helm_that_is_not_there_is_named_with_the_way_to_get_it() {
    let test = Test::beside_others();
    let scope = test.scope();
    let nothing = admin_tp(&scope, "tp-lint", ["helm", "install"]).env("PATH", scope.home());
    nothing.run().exits(1).says(&["helm", "hint: "]);
}

#[test]
fn agent_registers_and_is_listed_with_its_version() {
    let test = Test::beside_others();
    let connection = test.connect();
    let namespace = given().manager_namespace.as_str();
    let path = "jsonpath={.items[0].metadata.name}";
    let pod = kubectl::admin(&["-n", namespace, "get", "pods", "-l", "app=tp-agent", "-o", path]).ok();
    let (agent, _) = until(Duration::from_secs(20), "the agent to be listed", || {
        let status = connection.status();
        let agents = status["connections"][0]["agents"].as_array().cloned().unwrap_or_default();
        agents.into_iter().find(|agent| agent["pod"] == pod.as_str()).ok_or_else(|| status.to_string())
    });
    assert_eq!(agent["namespace"], namespace);
    let versions = connection.tp(["version", "--output", "json"]).run().json();
    assert_eq!(agent["version"], versions["client"]["version"]);
    connection.tp(["status"]).run().exits(0).says(&[&pod]);
    connection.tp(["quit"]).run().ok();
}
