//! A workload's environment in files and containers on this machine, and handlers that begin and end with an engagement.

use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tp_tests::docker::{self, Spec};
use tp_tests::given::given;
use tp_tests::process::{Input, run};
use tp_tests::test::{GONE, Scope, Test};
use tp_tests::wait::until;

use crate::bed::{Bed, GID, SHOWS_WITHIN, UID, connect};

/// How long a command may take that starts a stand-in, a container and ends both.
const ROUND: Duration = Duration::from_secs(90);

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
    let bed = Bed::get();
    let scope = connect(&test, &bed);
    let environment = scope.tp(["ingest", "web", "--env-json", "-"]).limit(ROUND).run().json();
    for (name, value) in bed.environment() {
        assert_eq!(environment[name], value.as_str(), "{name}");
    }
    let [held] = &engagements(&scope)[..] else { panic!("one engagement") };
    assert_eq!((&held["what"], &held["container"]), (&"ingest".into(), &"web".into()));

    scope.tp(["ingest", "web", "--env-file", "env.sh", "--env-syntax", "sh"]).limit(ROUND).run().ok();
    let mut sh = Command::new("sh");
    let script = format!(". ./env.sh && {}", told(&bed.environment()));
    sh.args(["-euc", &script]).env_clear().current_dir(scope.home());
    let read = run(sh, Input::Nothing, SHOWS_WITHIN).exits(0).stdout;
    assert_eq!(values(&bed.environment(), &read), bed.environment());

    let refused = scope.tp(["ingest", "web", "--env-file", "env.docker"]).limit(ROUND).run().exits(1);
    assert!(refused.stderr.contains("the variable PEM") && !refused.stderr.contains("BEGIN"), "{refused}");
    scope.tp(["leave", "--all"]).run().ok();
    assert_eq!(engagements(&scope), [] as [Value; 0]);
    bed.is_as_before();
}

#[test]
fn a_handler_has_the_environment_and_takes_the_engagement_with_it() {
    let test = Test::beside_others();
    let bed = Bed::get();
    let scope = connect(&test, &bed);
    let script = format!("{}; [ \"$PWD\" = /tmp ] || exit 1; exit 7", told(&bed.environment()));
    let line = ["ingest", "web", "--", "--rm", &given().client_image, "bash", "-c", &script];
    let ran = scope.tp(line).limit(ROUND).run().exits(7);
    assert_eq!(values(&bed.environment(), &ran.stdout), bed.environment());
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
    let bed = Bed::get();
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
    let bed = Bed::get();
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
    let bed = Bed::get();
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
    let bed = Bed::get();
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
