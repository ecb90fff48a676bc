//! Engaging a workload by a stand-in: who gets the traffic, and that nobody loses any of it.

use std::time::Duration;

use serde_json::{Value, json};
use tp_tests::docker::{self, Container, Spec};
use tp_tests::given::given;
use tp_tests::kubectl::{self, Namespace};
use tp_tests::process::Outcome;
use tp_tests::test::{Scope, Test};
use tp_tests::wait::until;

/// How long a change of who gets the traffic may take to show.
pub(crate) const SHOWS_WITHIN: Duration = Duration::from_secs(10);

/// How long the cluster may take to start the workload, and to be rid of a stand-in.
pub(crate) const SETTLES_WITHIN: Duration = Duration::from_secs(60);

/// A namespace with `web`: a Deployment of two pods behind a Service, a headless Service `peers` on the same pods, and a
/// pod that calls them.
pub(crate) struct Bed {
    namespace: Namespace,
}

impl Bed {
    /// The plain user may engage its workloads.
    pub(crate) fn new(name: &str) -> Self {
        let bed = Self::without_right(name);
        bed.namespace.let_user_engage();
        bed
    }

    /// The plain user may not.
    pub(crate) fn without_right(name: &str) -> Self {
        let namespace = Namespace::create(name);
        let labels = json!({ "app": "web" });
        let metadata = |name: &str| json!({ "name": name, "namespace": namespace.name() });
        let ports = json!([{ "name": "http", "port": 80, "targetPort": "http" }]);
        let security = json!({
            "allowPrivilegeEscalation": false, "runAsNonRoot": true, "runAsUser": 65532,
            "capabilities": { "drop": ["ALL"] }, "seccompProfile": { "type": "RuntimeDefault" },
        });
        kubectl::apply(&json!({ "apiVersion": "v1", "kind": "List", "items": [
            { "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": {
                "pod-security.kubernetes.io/enforce": "restricted" } } },
            { "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata("web"), "spec": {
                "replicas": 2,
                "selector": { "matchLabels": labels },
                "template": { "metadata": { "labels": labels }, "spec": { "containers": [{
                    "name": "web", "image": given().cluster_sample_image, "securityContext": security,
                    "env": [{ "name": "APP_NAME", "value": "cluster" }],
                    "ports": [{ "name": "http", "containerPort": 8080 }],
                    "readinessProbe": { "httpGet": { "path": "/status/200", "port": "http" }, "periodSeconds": 1 },
                }] } },
            } },
            { "apiVersion": "v1", "kind": "Service", "metadata": metadata("web"),
              "spec": { "selector": labels, "ports": ports } },
            { "apiVersion": "v1", "kind": "Service", "metadata": metadata("peers"),
              "spec": { "selector": labels, "clusterIP": "None", "ports": ports } },
            { "apiVersion": "v1", "kind": "Pod", "metadata": metadata("caller"), "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [{ "name": "caller", "image": given().cluster_client_image,
                    "command": ["sleep", "infinity"], "securityContext": security }],
            } },
        ] }));
        let bed = Self { namespace };
        bed.kubectl(&["wait", "--for=condition=Ready", "pod/caller", "--timeout=60s"]).ok();
        bed.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok();
        bed
    }

    pub(crate) fn name(&self) -> &str {
        self.namespace.name()
    }

    pub(crate) fn kubectl(&self, args: &[&str]) -> Outcome {
        kubectl::admin(&[&["-n", self.name()], args].concat())
    }

    /// Runs a script in the pod that calls.
    pub(crate) fn call(&self, script: &str) -> Outcome {
        self.kubectl(&["exec", "caller", "--", "bash", "-c", script])
    }

    /// Who answers a request with these arguments of curl.
    fn who(&self, args: &str) -> String {
        let answer = self.call(&format!("curl -sS --max-time 5 {args} http://web/"));
        let report: Value = serde_json::from_str(&answer.stdout).unwrap_or_default();
        report["name"].as_str().map_or_else(|| answer.to_string(), str::to_owned)
    }

    /// Waits until `name` answers.
    pub(crate) fn until_answered_by(&self, name: &str, args: &str) {
        until(SHOWS_WITHIN, &format!("{name} to answer"), || {
            let who = self.who(args);
            if who == name { Ok(()) } else { Err(who) }
        });
    }

    /// Nothing of tp is left, and the Service is what it was.
    pub(crate) fn is_as_before(&self) {
        until(SETTLES_WITHIN, "the stand-in to be gone", || {
            let left = self.kubectl(&["get", "leases,replicasets,pods", "-l", "tp/stand-in", "-o", "name"]).ok();
            let leases = self.kubectl(&["get", "leases", "-o", "name"]).ok();
            if left.is_empty() && leases.is_empty() { Ok(()) } else { Err(format!("{left}{leases}")) }
        });
        let selector = self.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.selector}"]).ok();
        assert_eq!(selector, r#"{"app":"web"}"#);
    }

    /// Starts a request after another, each on a connection of its own, for as long as the file is there.
    fn start_load(&self) {
        let load = "touch /tmp/load; (while [ -e /tmp/load ]; do \
            curl -sS -o /dev/null -w '%{http_code}\\n' --max-time 10 http://web/ || echo failed; done > /tmp/codes 2>&1; touch /tmp/done) < /dev/null > /dev/null 2>&1 &";
        self.call(load).ok();
    }

    /// Ends the load: how many requests were answered, and what became of the others.
    fn end_load(&self) -> (usize, String) {
        let codes = self.call("rm /tmp/load; until [ -e /tmp/done ]; do sleep 0.1; done; cat /tmp/codes").ok();
        let (answered, others): (Vec<&str>, Vec<&str>) = codes.lines().partition(|line| *line == "200");
        (answered.len(), others.join("\n"))
    }
}

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

/// A handler in the network of a connection, where `web` would listen.
pub(crate) fn handler(scope: &Scope<'_>, name: &str) -> Container {
    scope.join(Spec::sample(["serve", "--name", name]))
}

pub(crate) fn connect<'t>(test: &'t Test, bed: &Bed) -> Scope<'t> {
    let scope = test.scope();
    scope.tp(["connect", "--namespace", bed.name()]).run().ok();
    scope
}

pub(crate) fn intercept(scope: &Scope<'_>, flags: &[&str]) -> Outcome {
    scope.tp([&["intercept", "web"], flags].concat()).run()
}

#[test]
fn an_intercept_takes_the_traffic_and_leave_gives_it_back() {
    let test = Test::beside_others();
    let bed = Bed::new("engage-round");
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
    let bed = Bed::new("engage-bodies");
    let scope = connect(&test, &bed);
    let _handler = handler(&scope, "laptop");
    intercept(&scope, &["--port", "8080"]).ok();
    bed.until_answered_by("laptop", "");
    let round = "head -c 12582912 /dev/urandom > /tmp/body; curl -sS --data-binary @/tmp/body http://web/echo | sha256sum; sha256sum < /tmp/body";
    let sums = bed.call(round).ok();
    let sums: Vec<&str> = sums.lines().collect();
    assert_eq!((sums.len(), sums[0]), (2, sums[1]));
    assert_eq!(bed.who("--http2-prior-knowledge"), "laptop");
}

#[test]
fn filters_take_only_what_they_match_and_several_people_share_a_workload() {
    let test = Test::beside_others();
    let bed = Bed::new("engage-filters");
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
}

#[test]
fn a_wiretap_gets_copies_and_the_app_answers() {
    let test = Test::beside_others();
    let bed = Bed::new("engage-wiretap");
    let scope = connect(&test, &bed);
    let listener = scope.join(Spec::client().command(["perl", "-MIO::Socket", "-e", LISTENER]));
    scope.tp(["wiretap", "web", "--port", "8080"]).run().ok();
    assert_eq!(bed.who("-H x-mark:seen"), "cluster");
    until(SHOWS_WITHIN, "the copy to arrive", || {
        bed.who("-H x-mark:seen");
        let log = docker::logs(listener.id(), "all");
        if log.contains("x-mark: seen") { Ok(()) } else { Err(log) }
    });
}

#[test]
fn while_no_handler_listens_the_app_answers_and_the_list_says_so() {
    let test = Test::beside_others();
    let bed = Bed::new("engage-away");
    let scope = connect(&test, &bed);
    intercept(&scope, &["--port", "8080", "--wait", "0s"]).ok();
    until(SHOWS_WITHIN, "the list to say that the handler is away", || {
        assert_eq!(bed.who(""), "cluster");
        let listed = scope.tp(["list"]).run().ok();
        if listed.contains("away") { Ok(()) } else { Err(listed) }
    });
    let _handler = handler(&scope, "laptop");
    bed.until_answered_by("laptop", "");
}

#[test]
fn no_request_fails_while_a_workload_is_engaged_and_left_again() {
    let test = Test::beside_others();
    let bed = Bed::new("engage-load");
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
    let bed = Bed::new("engage-heal");
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
    let bed = Bed::new("engage-paused");
    let scope = connect(&test, &bed);
    let _handler = handler(&scope, "laptop");
    intercept(&scope, &["--port", "8080", "--wait", "500ms"]).ok();
    bed.until_answered_by("laptop", "");
    docker::pause(&scope.container());
    bed.until_answered_by("cluster", "");
    docker::resume(&scope.container());
    bed.until_answered_by("laptop", "");
}

#[test]
fn tcp_and_udp_of_another_service_are_engaged_beside_http() {
    let test = Test::beside_others();
    let bed = Bed::new("engage-tcp-udp");
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
}

#[test]
fn what_cannot_be_engaged_is_told_with_the_way_out() {
    let test = Test::beside_others();
    let bed = Bed::new("engage-errors");
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
fn an_engagement_outlives_the_manager() {
    let test = Test::alone();
    let bed = Bed::new("engage-manager");
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
    until(SETTLES_WITHIN, "the laptop to answer again", || {
        let who = bed.who("");
        if who == "laptop" { Ok(()) } else { Err(who) }
    });
    let (answered, others) = bed.end_load();
    assert!(answered > 20 && others.is_empty(), "{answered} answered, and:\n{others}");
    scope.tp(["quit"]).run().ok();
    bed.until_answered_by("cluster", "");
    bed.is_as_before();
}
