//! Engaging a workload by a stand-in: who gets the traffic, and that nobody loses any of it.

use std::time::Duration;

use serde_json::json;
use tp_tests::docker::{self, Spec};
use tp_tests::given::given;
use tp_tests::kubectl;
use tp_tests::test::Test;
use tp_tests::wait::until;

use crate::bed::{Bed, SETTLES_WITHIN, SHOWS_WITHIN, connect, handler, intercept, until_says};

/// Says the heads of requests to its log, and answers them with 204.
const LISTENER: &str = r#"$| = 1; $s = IO::Socket::INET->new(LocalPort => 8080, Listen => 9, ReuseAddr => 1) or die $!;
while ($c = $s->accept) {
    while (<$c>) { print; last if /^\r$/ }
    print $c "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"; close $c;
}"#;

/// Answers lines over TCP and datagrams over UDP.
const TOOLS: &str = r#"if (!fork) {
    $u = IO::Socket::INET->new(LocalPort => 9000, Proto => "udp") or die $!;
    while (defined($u->recv($m, 2000))) { $u->send("tools: $m") }
}
$s = IO::Socket::INET->new(LocalPort => 9000, Listen => 9, ReuseAddr => 1) or die $!;
while ($c = $s->accept) { $m = <$c>; print $c "tools: $m"; close $c }"#;

#[test]
fn an_intercept_takes_the_traffic_and_leave_gives_it_back() {
    let test = Test::beside_others();
    let bed = Bed::get();
    let scope = connect(&test, &bed);
    let _handler = handler(&scope, "laptop");
    assert_eq!(bed.who(""), "cluster");
    intercept(&scope, &["--port", "8080"]).exits(0).says(&["deployment/web", "8080", "tp leave web"]);
    // The nodes follow a Service's selector a moment later.
    bed.until_answered_by("laptop", "");
    for _ in 0..5 {
        assert_eq!(bed.who(""), "laptop");
    }
    let listed = scope.tp(["list", "--output", "json"]).run().json();
    assert!(listed.to_string().contains("deployment/web") && listed.to_string().contains("stand-in"), "{listed}");
    let holder = bed.kubectl(&["get", "leases", "-o", "jsonpath={.items[*].spec.holderIdentity}"]).ok();
    assert!(holder.contains('@'), "{holder}");
    scope.tp(["leave", "web"]).run().exits(0).says(&["deployment/web"]).within(Duration::from_secs(5));
    bed.until_answered_by("cluster", "");
    bed.is_as_before();
    scope.tp(["leave", "web"]).run().exits(1).says(&["does not engage web"]);
}

#[test]
fn bodies_pass_whole_in_both_directions() {
    let test = Test::beside_others();
    let bed = Bed::get();
    let scope = connect(&test, &bed);
    let _handler = handler(&scope, "laptop");
    intercept(&scope, &["--port", "8080"]).ok();
    bed.until_answered_by("laptop", "");
    let round = "head -c 12582912 /dev/urandom > /tmp/body; curl -sS --data-binary @/tmp/body http://web/echo | sha256sum; sha256sum < /tmp/body";
    let sums = bed.call(round).ok();
    let sums: Vec<&str> = sums.lines().collect();
    assert_eq!((sums.len(), sums[0]), (2, sums[1]));
    assert_eq!(bed.who("--http2-prior-knowledge"), "laptop");
    scope.tp(["leave", "--all"]).run().ok();
    bed.is_as_before();
}

#[test]
fn filters_take_only_what_they_match_and_several_people_share_a_workload() {
    let test = Test::beside_others();
    let bed = Bed::get();
    let (ann, bob) = (connect(&test, &bed), connect(&test, &bed));
    let (_ann, _bob) = (handler(&ann, "ann"), handler(&bob, "bob"));
    intercept(&ann, &["--port", "8080", "--http-header", "x-user=ann"]).ok();
    intercept(&bob, &["--port", "8080", "--http-header", "x-user=bob"]).ok();
    bed.until_answered_by("ann", "-H x-user:ann");
    bed.until_answered_by("bob", "-H x-user:bob");
    let both = "curl -sS -H x-user:ann http://web/ --next -sS http://web/ --next -sS -H x-user:bob http://web/";
    let answers = bed.call(&format!("{both} | grep -o '\"name\":\"[a-z]*\"'")).ok();
    let names: Vec<&str> = answers.lines().collect();
    assert_eq!(names, [r#""name":"ann""#, r#""name":"cluster""#, r#""name":"bob""#], "on one kept-alive connection");
    let refused = intercept(&bob, &["--port", "8080", "--http-header", "x-user=ann"]).exits(1);
    assert!(refused.stderr.contains("is engaged by") && refused.stderr.contains("--http-header"), "{refused}");
    ann.tp(["quit"]).run().ok();
    bed.until_answered_by("cluster", "-H x-user:ann");
    assert_eq!(bed.who("-H x-user:bob"), "bob", "what others hold stays");
    bob.tp(["leave", "--all"]).run().ok();
    bed.is_as_before();
}

#[test]
fn a_wiretap_gets_copies_and_the_app_answers() {
    let test = Test::beside_others();
    let bed = Bed::get();
    let scope = connect(&test, &bed);
    let listener = scope.join(Spec::client().command(["perl", "-MIO::Socket", "-e", LISTENER]));
    scope.tp(["wiretap", "web", "--port", "8080"]).run().ok();
    assert_eq!(bed.who("-H x-mark:seen"), "cluster");
    until(SHOWS_WITHIN, "the copy to arrive", || {
        bed.who("-H x-mark:seen");
        let log = docker::logs(listener.id(), "all");
        if log.contains("x-mark: seen") { Ok(()) } else { Err(log) }
    });
    scope.tp(["leave", "--all"]).run().ok();
    bed.is_as_before();
}

#[test]
fn while_no_handler_listens_the_app_answers_and_the_list_says_so() {
    let test = Test::beside_others();
    let bed = Bed::get();
    let scope = connect(&test, &bed);
    intercept(&scope, &["--port", "8080", "--wait", "0s"]).ok();
    until(SHOWS_WITHIN, "the list to say that the handler is away", || {
        assert_eq!(bed.who(""), "cluster");
        let listed = scope.tp(["list"]).run().ok();
        if listed.contains("away") { Ok(()) } else { Err(listed) }
    });
    let _handler = handler(&scope, "laptop");
    bed.until_answered_by("laptop", "");
    scope.tp(["leave", "--all"]).run().ok();
    bed.is_as_before();
}

#[test]
fn no_request_fails_while_a_workload_is_engaged_and_left_again() {
    let test = Test::beside_others();
    let bed = Bed::get();
    let scope = connect(&test, &bed);
    let _handler = handler(&scope, "laptop");
    bed.start_load();
    for _ in 0..2 {
        intercept(&scope, &["--port", "8080"]).ok();
        bed.until_answered_by("laptop", "");
        scope.tp(["leave", "--all"]).run().ok();
        bed.until_answered_by("cluster", "");
    }
    bed.is_as_before();
    let (answered, others) = bed.end_load();
    assert!(answered > 50 && others.is_empty(), "{answered} answered, and:\n{others}");
}

#[test]
fn a_stand_in_that_is_deleted_is_made_again() {
    let test = Test::beside_others();
    let bed = Bed::get();
    let scope = connect(&test, &bed);
    let _handler = handler(&scope, "laptop");
    intercept(&scope, &["--port", "8080"]).ok();
    bed.kubectl(&["delete", "pod", "-l", "tp/stand-in", "--grace-period=1", "--wait=false"]).ok();
    until(SETTLES_WITHIN, "the next stand-in to take the traffic", || {
        let pods =
            bed.kubectl(&["get", "pods", "-l", "tp/stand-in", "-o", "jsonpath={.items[*].metadata.deletionTimestamp}"]);
        let who = bed.who("");
        if pods.stdout.is_empty() && who == "laptop" { Ok(()) } else { Err(format!("{who} {}", pods.stdout)) }
    });
    // Whoever deletes the Lease ends the engagement.
    bed.kubectl(&["delete", "leases", "--all", "--wait=false"]).ok();
    bed.until_answered_by("cluster", "");
    bed.is_as_before();
}

#[test]
fn while_the_daemon_stands_still_the_app_answers() {
    let test = Test::beside_others();
    let bed = Bed::get();
    let scope = connect(&test, &bed);
    let _handler = handler(&scope, "laptop");
    intercept(&scope, &["--port", "8080", "--wait", "500ms"]).ok();
    bed.until_answered_by("laptop", "");
    docker::pause(&scope.container());
    bed.until_answered_by("cluster", "");
    docker::resume(&scope.container());
    bed.until_answered_by("laptop", "");
    scope.tp(["leave", "--all"]).run().ok();
    bed.is_as_before();
}

#[test]
fn tcp_and_udp_of_another_service_are_engaged_beside_http() {
    let test = Test::beside_others();
    let bed = Bed::get();
    kubectl::apply(&json!({ "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "tools", "namespace": bed.name() },
        "spec": { "selector": { "app": "web" }, "ports": [
            { "name": "tcp", "port": 90, "targetPort": 9000 },
            { "name": "udp", "port": 90, "targetPort": 9000, "protocol": "UDP" } ] } }));
    let scope = connect(&test, &bed);
    let _handler = handler(&scope, "laptop");
    let _tools = scope.join(Spec::client().command(["perl", "-MIO::Socket", "-e", TOOLS]));
    intercept(&scope, &["--service", "web", "--port", "8080"]).ok();
    intercept(&scope, &["--service", "tools", "--port", "9000:90", "--port", "9000:90/udp"]).ok();
    bed.until_answered_by("laptop", "");
    for protocol in ["", "-u"] {
        until(SHOWS_WITHIN, "the handler to answer", || {
            let answer = bed.call(&format!("echo hello | timeout 3 nc {protocol} -w 1 tools 90")).stdout;
            if answer.trim() == "tools: hello" { Ok(()) } else { Err(answer) }
        });
    }
    scope.tp(["leave", "--all"]).run().ok();
    bed.until_answered_by("cluster", "");
    bed.is_as_before();
    bed.kubectl(&["delete", "service", "tools"]).ok();
}

#[test]
fn what_cannot_be_engaged_is_told_with_the_way_out() {
    let test = Test::beside_others();
    let bed = Bed::get();
    let scope = connect(&test, &bed);
    for (args, words) in [
        (&["intercept", "wep", "--port", "8080"][..], &["no workload wep", "deployment/web"][..]),
        (&["intercept", "web", "--port", "8080:81"], &["no port 81", "80 (http)"]),
        (&["intercept", "web", "--port", "8080", "--service", "peers"], &["headless"]),
        (&["intercept", "web", "--port", "8080", "--service", "nope"], &["no Service nope", "web"]),
        (&["intercept", "web", "--port", "8080", "--mode", "sidecar"], &["--mode"]),
        (&["intercept", "web", "--port", "8080", "--namespace", "nowhere"], &["namespace nowhere", "create pods/exec"]),
    ] {
        scope.tp(args.iter().copied()).run().exits(1).says(words);
    }
    scope.tp(["intercept", "web", "--port", "x"]).run().exits(2);
    bed.is_as_before();
    let elsewhere = test.scope();
    elsewhere.tp(["intercept", "web", "--port", "8080"]).run().exits(1).says(&["there is no connection"]);
}

#[test]
fn alone_an_engagement_outlives_the_manager() {
    let test = Test::alone();
    let bed = Bed::get();
    let scope = connect(&test, &bed);
    let _handler = handler(&scope, "laptop");
    intercept(&scope, &["--port", "8080"]).ok();
    bed.start_load();
    kubectl::admin(&["-n", &given().manager_namespace, "delete", "pod", "tp-manager-0"]).ok();
    kubectl::admin(&[
        "-n",
        &given().manager_namespace,
        "wait",
        "--for=condition=Ready",
        "pod/tp-manager-0",
        "--timeout=60s",
    ])
    .ok();
    let answers = until_says(SETTLES_WITHIN, "curl -sS --max-time 5 http://web/ 2>&1", "\"name\":\"laptop\"");
    bed.call(&answers).ok();
    let (answered, others) = bed.end_load();
    assert!(answered > 20 && others.is_empty(), "{answered} answered, and:\n{others}");
    scope.tp(["quit"]).run().ok();
    bed.until_answered_by("cluster", "");
    bed.is_as_before();
}
