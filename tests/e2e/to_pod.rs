//! The localhost of a workload's pod, as containers of a connection reach it.

use std::time::Duration;

use serde_json::{Value, json};
use tp_tests::docker::{Container, Spec};
use tp_tests::given::given;
use tp_tests::kubectl;
use tp_tests::process::Outcome;
use tp_tests::test::Test;
use tp_tests::wait::until;

use crate::bed::{Bed, SHOWS_WITHIN, connect, deployment, security};
use crate::robustness::killer;

/// Port of the second container's server, on the pod's localhost alone.
const PORT: u16 = 9090;

/// Says on `127.0.0.1` which pod it is in, before it is spoken to, and then lines back.
const BESIDE: &str = r#"$s = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => 9090, Listen => 9, ReuseAddr => 1)
    or die $!;
while ($c = $s->accept) {
    next if fork;
    $c->autoflush(1); print $c "beside $ENV{HOSTNAME}\n"; while (<$c>) { print $c "beside: $_" } exit;
}"#;

/// A bed whose `web` has one pod of two containers. What the second one serves is on the pod's localhost alone.
fn bed() -> Bed {
    let bed = Bed::own();
    let mut web = deployment(bed.name());
    web["spec"]["replicas"] = json!(1);
    let pod = &mut web["spec"]["template"]["spec"];
    pod["terminationGracePeriodSeconds"] = json!(1);
    let beside = json!({
        "name": "beside", "image": given().cluster_client_image, "securityContext": security(),
        "command": ["perl", "-MIO::Socket::INET", "-e", BESIDE],
    });
    pod["containers"].as_array_mut().expect("it has one").push(beside);
    kubectl::apply(&web);
    bed.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok();
    bed
}

/// Name of the workload's only pod.
fn pod(bed: &Bed) -> String {
    let pods = bed.kubectl(&["get", "pods", "-l", "app=web,!tp/stand-in", "-o", "json"]).json();
    let staying = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
    let items = pods["items"].as_array().cloned().unwrap_or_default();
    let [pod] = &items.iter().filter(staying).collect::<Vec<_>>()[..] else { panic!("one pod: {pods}") };
    pod["metadata"]["name"].as_str().expect("all have a name").to_owned()
}

/// Says a line to a port of the client's localhost; returns what was heard first and in answer.
fn talk(client: &Container, address: &str, port: u16) -> Outcome {
    let dial = format!("exec 3<>/dev/tcp/{address}/{port}");
    client.sh(&format!("{dial} && read -t 5 -r a <&3 && echo hello >&3 && read -t 5 -r b <&3 && echo \"$a; $b\""))
}

/// Waits until the pod's second container answers.
fn until_answered(client: &Container, address: &str, pod: &str) {
    until(SHOWS_WITHIN, "the second container to answer", || {
        let said = talk(client, address, PORT);
        if said.stdout.trim() == format!("beside {pod}; beside: hello") { Ok(()) } else { Err(said.to_string()) }
    });
}

#[test]
fn the_localhost_of_the_pod_is_there_for_as_long_as_the_workload_is_engaged() {
    let test = Test::beside_others();
    let bed = bed();
    let scope = connect(&test, &bed);
    let client = scope.join(Spec::client());
    talk(&client, "127.0.0.1", PORT).exits(1).says(&["Connection refused"]);
    let line = ["intercept", "web", "--port", "8080", "--to-pod", "9090", "--to-pod", "9091"];
    scope.tp(line).run().exits(0).says(&["127.0.0.1:9090"]);
    for address in ["127.0.0.1", "::1"] {
        until_answered(&client, address, &pod(&bed));
    }
    let listed = scope.tp(["list", "--output", "json"]).run().json();
    assert_eq!(listed["engagements"][0]["toPod"], json!([9090, 9091]), "{listed}");

    // Nobody listens there, and 7007 nobody has asked for.
    let nobody = talk(&client, "127.0.0.1", 9091);
    assert!(nobody.stdout.is_empty(), "{nobody}");
    talk(&client, "127.0.0.1", 7007).exits(1).says(&["Connection refused"]);

    // Another pod takes the place of one that is gone.
    let before = pod(&bed);
    bed.kubectl(&["delete", "pod", &before, "--wait"]).ok();
    bed.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok();
    assert_ne!(pod(&bed), before);
    until_answered(&client, "127.0.0.1", &pod(&bed));

    // The daemon's own end takes nothing with it.
    killer(&scope).sh("pkill -9 -P 1").ok();
    until_answered(&client, "127.0.0.1", &pod(&bed));

    scope.tp(["leave", "web"]).run().ok();
    until(SHOWS_WITHIN, "the port to be free", || {
        let said = talk(&client, "127.0.0.1", PORT);
        if said.stderr.contains("Connection refused") { Ok(()) } else { Err(said.to_string()) }
    });
    bed.is_as_before();
}

#[test]
fn a_port_that_is_taken_is_named_and_nothing_is_engaged() {
    let test = Test::beside_others();
    let bed = bed();
    let scope = connect(&test, &bed);
    let handler = scope.join(Spec::sample(["serve", "--http-port", "9090"]));
    let line = ["ingest", "web", "--to-pod", "9090"];
    scope.tp(line).run().exits(1).says(&["cannot listen on port 9090", "a container of the connection listens there"]);
    let engagements = || scope.tp(["list", "--output", "json"]).run().json()["engagements"].clone();
    assert_eq!(engagements(), json!([]));
    let line = ["intercept", "web", "--port", "9091:http", "--to-pod", "9091"];
    scope.tp(line).run().exits(1).says(&["--to-pod 9091 takes the port at which the handler is to listen"]);
    assert_eq!(engagements(), json!([]));
    drop(handler);

    scope.tp(["ingest", "web", "--to-pod", "9090"]).limit(Duration::from_secs(90)).run().ok();
    let client = scope.join(Spec::client());
    until_answered(&client, "127.0.0.1", &pod(&bed));
    scope.tp(["leave", "--all"]).run().ok();
    assert_eq!(engagements(), Value::Array(Vec::new()));
    bed.is_as_before();
}
