//! A workload's environment in files and containers on this machine, and handlers that begin and end with an engagement.

use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tp_tests::docker::{self, Spec};
use tp_tests::given::given;
use tp_tests::kubectl::{self, Namespace};
use tp_tests::process::{Input, Outcome, run};
use tp_tests::test::{GONE, Scope, Test};
use tp_tests::wait::until;

/// How long a change of who gets the traffic may take to show.
const SHOWS_WITHIN: Duration = Duration::from_secs(10);

/// How long the cluster may take to be rid of a stand-in.
const SETTLES_WITHIN: Duration = Duration::from_secs(60);

/// How long a command may take that starts a stand-in, a container and ends both.
const ROUND: Duration = Duration::from_secs(90);

/// User and group of the workload.
const UID: u32 = 65532;
const GID: u32 = 4242;

/// A Secret's value of several lines, with all that shells look at.
const PEM: &str = "-----BEGIN KEY-----\nit's $HOME `id` \"q\" \\n ! # %x\n\n-----END KEY-----\n";

/// A namespace with `web`: a Deployment behind a Service, whose container has variables of every kind.
struct Bed {
    namespace: Namespace,
}

impl Bed {
    fn new(name: &str) -> Self {
        let namespace = Namespace::create(name);
        let labels = json!({ "app": "web" });
        let metadata = |name: &str| json!({ "name": name, "namespace": namespace.name() });
        let security = json!({
            "allowPrivilegeEscalation": false, "runAsNonRoot": true, "runAsUser": UID, "runAsGroup": GID,
            "capabilities": { "drop": ["ALL"] }, "seccompProfile": { "type": "RuntimeDefault" },
        });
        let container = json!({
            "name": "web", "image": given().cluster_sample_image, "securityContext": security, "workingDir": "/tmp",
            "ports": [{ "name": "http", "containerPort": 8080 }],
            "resources": { "limits": { "memory": "64Mi", "cpu": "500m" } },
            "envFrom": [{ "configMapRef": { "name": "settings" }, "prefix": "SET_" }],
            "env": [
                { "name": "APP_NAME", "value": "cluster" },
                { "name": "MODE", "valueFrom": { "configMapKeyRef": { "name": "settings", "key": "mode" } } },
                { "name": "PEM", "valueFrom": { "secretKeyRef": { "name": "keys", "key": "pem" } } },
                { "name": "POD_NAMESPACE", "valueFrom": { "fieldRef": { "fieldPath": "metadata.namespace" } } },
                { "name": "URL", "value": "http://$(POD_NAMESPACE)/$$(MODE)/$(NONE)" },
                { "name": "EMPTY", "value": "" },
            ],
            "readinessProbe": { "httpGet": { "path": "/status/200", "port": "http" }, "periodSeconds": 1 },
        });
        kubectl::apply(&json!({ "apiVersion": "v1", "kind": "List", "items": [
            { "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": {
                "pod-security.kubernetes.io/enforce": "restricted" } } },
            { "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata("settings"),
              "data": { "mode": "fast  and loud " } },
            { "apiVersion": "v1", "kind": "Secret", "metadata": metadata("keys"), "stringData": { "pem": PEM } },
            { "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata("web"), "spec": {
                "selector": { "matchLabels": labels },
                "template": { "metadata": { "labels": labels }, "spec": { "containers": [container] } },
            } },
            { "apiVersion": "v1", "kind": "Service", "metadata": metadata("web"), "spec": {
                "selector": labels, "ports": [{ "name": "http", "port": 80, "targetPort": "http" }] } },
        ] }));
        namespace.let_user_engage();
        let bed = Self { namespace };
        bed.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok();
        bed
    }

    fn name(&self) -> &str {
        self.namespace.name()
    }

    fn kubectl(&self, args: &[&str]) -> Outcome {
        kubectl::admin(&[&["-n", self.name()], args].concat())
    }

    /// What the workload's variables are, as its pod has them.
    fn expected(&self) -> Vec<(&'static str, String)> {
        vec![
            ("APP_NAME", "cluster".to_owned()),
            ("MODE", "fast  and loud ".to_owned()),
            ("SET_mode", "fast  and loud ".to_owned()),
            ("PEM", PEM.to_owned()),
            ("POD_NAMESPACE", self.name().to_owned()),
            ("URL", format!("http://{}/$(MODE)/$(NONE)", self.name())),
            ("EMPTY", String::new()),
        ]
    }

    /// Nothing of tp is left in the namespace.
    fn is_as_before(&self) {
        until(SETTLES_WITHIN, "the stand-in to be gone", || {
            let left = self.kubectl(&["get", "leases,replicasets,pods", "-l", "tp/stand-in", "-o", "name"]).ok();
            let leases = self.kubectl(&["get", "leases", "-o", "name"]).ok();
            if left.is_empty() && leases.is_empty() { Ok(()) } else { Err(format!("{left}{leases}")) }
        });
        let selector = self.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.selector}"]).ok();
        assert_eq!(selector, r#"{"app":"web"}"#);
    }
}

fn connect<'t>(test: &'t Test, bed: &Bed) -> Scope<'t> {
    let scope = test.scope();
    scope.tp(["connect", "--namespace", bed.name()]).run().ok();
    scope
}

/// What is engaged at the moment, as JSON.
fn engagements(scope: &Scope<'_>) -> Vec<Value> {
    let listed = scope.tp(["list", "--output", "json"]).run().json();
    listed["engagements"].as_array().cloned().unwrap_or_default()
}

/// A script that prints the values of the variables that it is run with, each with a NUL behind it.
fn told(names: &[(&'static str, String)]) -> String {
    let print = |name: &str| format!("printf '%s\\0' \"${name}\"");
    names.iter().map(|(name, _)| print(name)).collect::<Vec<_>>().join("; ")
}

/// The values that a script of [`told`] has printed.
fn values(names: &[(&'static str, String)], stdout: &str) -> Vec<(&'static str, String)> {
    let values: Vec<_> = stdout.split_terminator('\0').map(str::to_owned).collect();
    assert_eq!(values.len(), names.len(), "{stdout:?}");
    names.iter().map(|(name, _)| *name).zip(values).collect()
}

#[test]
fn files_hold_the_environment_as_the_pod_has_it() {
    let test = Test::beside_others();
    let bed = Bed::new("environment-files");
    let scope = connect(&test, &bed);
    let environment = scope.tp(["ingest", "web", "--env-json", "-"]).limit(ROUND).run().json();
    for (name, value) in bed.expected() {
        assert_eq!(environment[name], value.as_str(), "{name}");
    }
    let [held] = &engagements(&scope)[..] else { panic!("one engagement") };
    assert_eq!((&held["what"], &held["container"]), (&"ingest".into(), &"web".into()));

    scope.tp(["ingest", "web", "--env-file", "env.sh", "--env-syntax", "sh"]).limit(ROUND).run().ok();
    let mut sh = Command::new("sh");
    let script = format!(". ./env.sh && {}", told(&bed.expected()));
    sh.args(["-euc", &script]).env_clear().current_dir(scope.home());
    let read = run(sh, Input::Nothing, SHOWS_WITHIN).exits(0).stdout;
    assert_eq!(values(&bed.expected(), &read), bed.expected());

    let refused = scope.tp(["ingest", "web", "--env-file", "env.docker"]).limit(ROUND).run().exits(1);
    assert!(refused.stderr.contains("the variable PEM") && !refused.stderr.contains("BEGIN"), "{refused}");
    scope.tp(["leave", "--all"]).run().ok();
    assert_eq!(engagements(&scope), [] as [Value; 0]);
    bed.is_as_before();
}

#[test]
fn a_handler_has_the_environment_and_takes_the_engagement_with_it() {
    let test = Test::beside_others();
    let bed = Bed::new("environment-handler");
    let scope = connect(&test, &bed);
    let script = format!("{}; [ \"$PWD\" = /tmp ] || exit 1; exit 7", told(&bed.expected()));
    let line = ["ingest", "web", "--", "--rm", &given().client_image, "bash", "-c", &script];
    let ran = scope.tp(line).limit(ROUND).run().exits(7);
    assert_eq!(values(&bed.expected(), &ran.stdout), bed.expected());
    assert_eq!(engagements(&scope), [] as [Value; 0]);
    let joined = docker::labelled(&format!("tp.connection={}", scope.name()));
    assert_eq!(joined.len(), 1, "the connection's container alone: {joined:?}");

    // What docker cannot start is not engaged any longer either.
    let line = ["ingest", "web", "--", "--rm", &given().client_image, "no-such-program"];
    scope.tp(line).limit(ROUND).run().exits(127);
    assert_eq!(engagements(&scope), [] as [Value; 0]);
    bed.is_as_before();
}

#[test]
fn a_handler_connects_by_itself_and_leaves_nothing() {
    let test = Test::beside_others();
    let bed = Bed::new("environment-alone");
    let scope = test.scope();
    let script = "echo $MODE; curl -sS -o /dev/null -w '%{http_code}' http://web/";
    let line = ["ingest", "web", "-n", bed.name(), "--", "--rm", &given().client_image, "bash", "-c", script];
    let ran = scope.tp(line).env_remove("TP_CONNECTION").limit(ROUND).run().exits(0);
    assert_eq!(ran.stdout, "fast and loud\n200");
    scope.leaves_nothing_within(GONE);
    bed.is_as_before();
}

#[test]
fn a_handler_that_is_killed_ends_its_engagement() {
    let test = Test::beside_others();
    let bed = Bed::new("environment-killed");
    let scope = connect(&test, &bed);
    let handler = ["--rm", "--init", &given().client_image, "bash", "-c", "echo ready; exec sleep 600"];
    let line = [&["ingest", "web", "--"], &handler[..]].concat();
    for signal in [Signal::TERM, Signal::KILL] {
        let running = scope.tp(line.iter().copied()).start();
        until(ROUND, "the handler to start", || match running.stdout().as_str() {
            "ready\n" => Ok(()),
            other => Err(format!("{other}{}", running.stderr())),
        });
        assert_eq!(engagements(&scope).len(), 1);
        running.signal(signal);
        until(ROUND, "the engagement to end", || match engagements(&scope) {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        });
        until(GONE, "the container to be gone", || {
            let joined = docker::labelled(&format!("tp.connection={}", scope.name()));
            if joined.len() == 1 { Ok(()) } else { Err(format!("{joined:?}")) }
        });
    }
    bed.is_as_before();
}

#[test]
fn a_handler_in_the_background_takes_the_traffic_until_leave() {
    let test = Test::beside_others();
    let bed = Bed::new("environment-background");
    let scope = connect(&test, &bed);
    let caller = scope.join(Spec::client());
    let who = || {
        let answer = caller.sh("curl -sS --max-time 5 http://web/");
        let report: Value = serde_json::from_str(&answer.stdout).unwrap_or_default();
        report["name"].as_str().map_or_else(|| answer.to_string(), str::to_owned)
    };
    let until_answered_by = |name: &str| {
        until(SHOWS_WITHIN, &format!("{name} to answer"), || {
            let who = who();
            if who == name { Ok(()) } else { Err(who) }
        });
    };
    let serve = ["--", "-d", "--rm", &given().sample_image, "serve", "--name", "laptop"];
    let started = scope.tp([&["intercept", "web", "-p", "8080"], &serve[..]].concat()).limit(ROUND).run().exits(0);
    assert!(started.stderr.contains("tp leave web"), "{started}");
    until_answered_by("laptop");
    docker::remove(started.stdout.trim());
    scope.tp(["leave", "web"]).run().ok();
    until_answered_by("cluster");

    let started = scope.tp([&["replace", "web"], &serve[..]].concat()).limit(ROUND).run().exits(0);
    until_answered_by("laptop");
    let [held] = &engagements(&scope)[..] else { panic!("one engagement") };
    assert_eq!((&held["what"], &held["whenAway"]), (&"replace".into(), &"fail".into()));
    docker::remove(started.stdout.trim());
    scope.tp(["leave", "web"]).run().ok();
    until_answered_by("cluster");
    bed.is_as_before();
}

#[test]
fn a_container_like_a_workload_s_runs_as_its_user_with_its_environment() {
    let test = Test::beside_others();
    let bed = Bed::new("environment-like");
    let scope = connect(&test, &bed);
    let script = "id -u; id -g; pwd; echo $MODE; echo $MINE";
    let line = ["--like", "web", "--rm", "-e", "MINE=1", &given().client_image, "bash", "-c", script];
    let ran = scope.docker_run(line).limit(ROUND).run().exits(0);
    assert_eq!(ran.stdout, format!("{UID}\n{GID}\n/tmp\nfast and loud\n1\n"));
    assert_eq!(engagements(&scope), [] as [Value; 0]);
    let line = ["--like", "web", "--rm", "-u", "0", "-w", "/", &given().client_image, "bash", "-c", script];
    let ran = scope.docker_run(line).limit(ROUND).run().exits(0);
    assert_eq!(ran.stdout, "0\n0\n/\nfast and loud\n\n");
    scope.docker_run(["--like", "nope", &given().client_image]).run().exits(125).says(&["no workload nope"]);
    bed.is_as_before();
}
