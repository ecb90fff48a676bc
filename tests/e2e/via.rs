//! Connections that come from a workload's place in the network.
//!
//! The cluster of these tests enforces no network policies, so they look at what such a policy would: whose pod the far end
//! sees, and its labels.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tp_tests::docker::{Container, Spec};
use tp_tests::given::given;
use tp_tests::kubectl;
use tp_tests::process::Outcome;
use tp_tests::test::{Scope, Test};
use tp_tests::wait::until;

use crate::bed::{Bed, SETTLES_WITHIN, SHOWS_WITHIN};
use crate::robustness::killer;
use crate::sidecar::{ask_for_agents, until_connected};

/// How long a connection may take for which a pod is made.
const CONNECTS_WITHIN: Duration = Duration::from_secs(90);

fn connect_via(scope: &Scope<'_>, bed: &Bed) -> Outcome {
    scope.tp(["connect", "--namespace", bed.name(), "--via", "web"]).limit(CONNECTS_WITHIN).run()
}

/// Whom `web` sees when this container asks it.
fn peer(client: &Container) -> Result<String, String> {
    let answer = client.sh("curl -sS --max-time 5 http://web/");
    let report: Value = serde_json::from_str(&answer.stdout).unwrap_or_default();
    let peer = report["peer"].as_str().and_then(|peer| peer.parse::<SocketAddr>().ok());
    peer.map(|peer| peer.ip().to_string()).ok_or_else(|| answer.to_string())
}

/// The pod that dials, which stays.
fn dialling_pod(bed: &Bed) -> Option<Value> {
    let pods = bed.kubectl(&["get", "pods", "-l", "tp/stand-in", "-o", "json"]).json();
    let items = pods["items"].as_array().cloned().unwrap_or_default();
    items.into_iter().find(|pod| pod["metadata"]["deletionTimestamp"].is_null())
}

/// Waits until `web` sees the pod that dials; returns its name.
fn until_seen(bed: &Bed, client: &Container) -> String {
    let (name, _) = until(SETTLES_WITHIN, "connections to come from the pod that dials", || {
        let pod = dialling_pod(bed).ok_or("no pod dials")?;
        let peer = peer(client)?;
        match pod["status"]["podIP"] == peer.as_str() {
            true => Ok(pod["metadata"]["name"].as_str().unwrap_or_default().to_owned()),
            false => Err(format!("{peer} is seen, and {} dials", pod["status"]["podIP"])),
        }
    });
    name
}

#[test]
fn connections_come_from_a_pod_with_the_workloads_labels_that_no_service_knows() {
    let test = Test::beside_others();
    let bed = Bed::get();
    let scope = test.scope();
    connect_via(&scope, &bed).exits(0).says(&["connections come from deployment/web"]);
    let client = scope.join(Spec::client());
    let first = until_seen(&bed, &client);
    let manager = kubectl::pod_ip(&given().manager_namespace, "app.kubernetes.io/name=tp-manager");
    assert_ne!(peer(&client).as_deref(), Ok(manager.as_str()));
    let pod = kubectl::pod_ip(bed.name(), "app=web,!tp/stand-in");
    client.sh(&format!("echo hello | timeout 5 nc -u -w 1 {pod} 7007")).says(&["hello"]);

    let pod = dialling_pod(&bed).expect("it dials");
    assert_eq!(pod["metadata"]["labels"]["app"], "web", "network policies select it");
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let is_ready = |it: &Value| it["type"] == "Ready" && it["status"] == "True";
    assert!(!conditions.iter().any(is_ready), "{conditions:?}");
    let ready = "jsonpath={.items[*].endpoints[?(@.conditions.ready==true)].targetRef.name}";
    for service in ["web", "peers"] {
        let of_service = format!("kubernetes.io/service-name={service}");
        let endpoints = bed.kubectl(&["get", "endpointslices", "-l", &of_service, "-o", ready]).ok();
        assert!(!endpoints.contains(&first) && endpoints.contains("web-"), "{endpoints}");
    }
    assert_eq!(bed.who(""), "cluster");

    let status = scope.tp(["status"]).run().exits(0).says(&["Via:", "web", "via of deployment/web"]);
    assert!(!status.stdout.contains("wait"), "{status}");
    assert_eq!(scope.status()["connections"][0]["via"], "web");
    let listed = scope.tp(["list", "--output", "json"]).run().json();
    assert_eq!((&listed["engagements"][0]["what"], &listed["engagements"][0]["mine"]), (&json!("via"), &json!(true)));
    scope.tp(["leave", "--all"]).run();
    scope.tp(["leave", "web"]).run().exits(1).says(&["does not engage web"]);
    until_seen(&bed, &client);

    // Another pod takes the place of one that is gone.
    bed.kubectl(&["delete", "pod", &first, "--grace-period=1", "--wait=false"]).ok();
    until(SETTLES_WITHIN, "another pod to dial", || {
        let next = dialling_pod(&bed).ok_or("no pod dials")?;
        if next["metadata"]["name"] == first.as_str() { Err("the first one is there still".to_owned()) } else { Ok(()) }
    });
    let second = until_seen(&bed, &client);

    // The daemon's own end changes nothing of it.
    killer(&scope).sh("pkill -9 -P 1").ok();
    assert_eq!(until_seen(&bed, &client), second);

    scope.tp(["quit"]).run().ok();
    bed.is_as_before();
}

#[test]
fn an_engagement_that_somebody_ends_is_made_again_and_nothing_is_dialled_meanwhile() {
    let test = Test::beside_others();
    let bed = Bed::get();
    let scope = test.scope();
    connect_via(&scope, &bed).exits(0);
    let client = scope.join(Spec::client());
    until_seen(&bed, &client);
    let manager = kubectl::pod_ip(&given().manager_namespace, "app.kubernetes.io/name=tp-manager");
    bed.kubectl(&["delete", "leases", "--all", "--wait=false"]).ok();
    until(SETTLES_WITHIN, "connections to come from the workload's place again", || {
        let seen = peer(&client);
        assert_ne!(seen.as_deref(), Ok(manager.as_str()), "never from the manager's");
        let leases = bed.kubectl(&["get", "leases", "-o", "jsonpath={.items[*].metadata.deletionTimestamp}"]).stdout;
        if leases.is_empty() { seen.map(drop) } else { Err("the first one goes still".to_owned()) }
    });
    until_seen(&bed, &client);
    scope.tp(["quit"]).run().ok();
    bed.is_as_before();
}

#[test]
fn without_the_right_to_engage_nothing_is_connected() {
    let test = Test::beside_others();
    let bed = Bed::without_right();
    let scope = test.scope();
    connect_via(&scope, &bed).exits(1).says(&["create pods/exec", bed.name()]);
    scope.leaves_nothing_within(SHOWS_WITHIN);
    bed.is_as_before();
}

#[test]
fn a_container_of_its_own_connects_by_way_of_a_workload() {
    let test = Test::beside_others();
    let bed = Bed::get();
    let scope = test.scope();
    let image = given().client_image.as_str();
    let script = "curl -sS --max-time 30 http://web/";
    let line = ["--rm", "--namespace", bed.name(), "--via", "web", image, "sh", "-c", script];
    let report = scope.docker_run(line).limit(CONNECTS_WITHIN).run().json();
    let manager = kubectl::pod_ip(&given().manager_namespace, "app.kubernetes.io/name=tp-manager");
    let peer = report["peer"].as_str().unwrap_or_default();
    assert!(!peer.is_empty() && !peer.starts_with(&format!("{manager}:")), "{report}");
    bed.is_as_before();

    scope.tp(["connect", "--namespace", bed.name()]).run().ok();
    let other = scope.docker_run(["--use", scope.name(), "--rm", "--via", "web", image, "true"]).run();
    other.exits(125).says(&["does not dial by way of `web`"]);
    scope.tp(["quit"]).run().ok();
}

#[test]
fn a_service_that_publishes_pods_which_are_not_ready_is_named() {
    let test = Test::beside_others();
    let bed = Bed::own();
    kubectl::apply(&json!({ "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "gossip", "namespace": bed.name() },
        "spec": { "selector": { "app": "web" }, "clusterIP": "None", "publishNotReadyAddresses": true } }));
    let scope = test.scope();
    connect_via(&scope, &bed).exits(1).says(&["Service gossip publishes pods that are not ready"]);
    scope.leaves_nothing_within(SHOWS_WITHIN);
    bed.is_as_before();
}

#[test]
fn agents_in_the_workloads_own_pods_dial_when_they_are_there() {
    let test = Test::beside_others();
    let bed = Bed::own();
    ask_for_agents(&bed);
    let looking = test.connect();
    until_connected(&looking, &bed);
    let scope = test.scope();
    connect_via(&scope, &bed).exits(0).says(&["have an agent already"]);
    let client = scope.join(Spec::client());
    let pods = kubectl::pod_ips(bed.name(), "app=web");
    let seen = peer(&client).unwrap_or_else(|why| panic!("{why}"));
    assert!(pods.iter().any(|pod| pod.to_string() == seen), "{seen} is none of {pods:?}");
    assert!(dialling_pod(&bed).is_none(), "nothing is made");
    scope.tp(["quit"]).run().ok();
    bed.is_as_before();
}
