//! What dies, comes back or is cleaned up, at any moment.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tp_tests::docker::{self, Container, Spec};
use tp_tests::given::given;
use tp_tests::kubectl;
use tp_tests::process::Running;
use tp_tests::test::{GONE, Scope, Test};
use tp_tests::wait::{try_until, until};

/// How long a daemon may take to be back after its process was killed.
const BACK_WITHIN: Duration = Duration::from_secs(2);

/// How long a manager that was deleted may take to be replaced and reached again; most of it is Kubernetes' time.
const MANAGER_BACK_WITHIN: Duration = Duration::from_secs(60);

/// A container that can kill the children of the daemon container's first process: the daemon, and nothing else.
pub(crate) fn killer(scope: &Scope<'_>) -> Container {
    Spec::client().user("65532").processes_of(&scope.container()).start()
}

#[test]
fn killed_daemon_is_back_and_joined_containers_go_on() {
    let test = Test::beside_others();
    let connection = test.connect();
    let client = connection.client();
    client.sh("curl -sS --max-time 5 http://web/").ok();
    let killer = killer(&connection);
    killer.sh("pkill -9 -P 1").ok();
    // One request, made at once: it may have to wait, and it may not fail.
    let report = client.sh("curl -sS --max-time 4 http://web/").within(BACK_WITHIN + Duration::from_millis(500)).json();
    assert_eq!(report["name"], "web");
    let status = connection.status();
    assert_eq!(status["connections"][0]["daemon"]["restarts"], 1, "{status}");
    assert_eq!(status["connections"][0]["state"], "connected", "{status}");
    drop((client, killer));
    connection.tp(["quit"]).run().ok();
    connection.leaves_nothing_within(Duration::from_secs(1));
}

#[test]
fn daemon_killed_under_docker_run_keeps_its_connection_held() {
    let test = Test::beside_others();
    let connection = test.scope();
    let script = "echo ready; read -r; curl -sS --max-time 5 http://web/";
    let mut running = connection.docker_run(["--rm", "-i", &given().client_image, "bash", "-c", script]);
    running = running.input(tp_tests::process::Input::Open);
    let mut running = running.start();
    waits_for_output(&running, "ready");
    killer(&connection).sh("pkill -9 -P 1").ok();
    until(Duration::from_secs(5), "the daemon to be back", || {
        let status = connection.status();
        let restarts = &status["connections"][0]["daemon"]["restarts"];
        if restarts == 1 { Ok(()) } else { Err(status.to_string()) }
    });
    // Longer than the grace that a held connection has without its holder.
    let lives =
        try_until(
            Duration::from_secs(4),
            || if docker::is_running(&connection.container()) { Err(()) } else { Ok(()) },
        );
    assert_eq!(lives, Err(()), "the connection ended under the CLI that holds it");
    running.write("\n");
    let outcome = running.wait(Duration::from_secs(10)).exits(0);
    assert!(outcome.stdout.contains("\"name\":\"web\""), "{outcome}");
    connection.leaves_nothing_within(Duration::from_secs(2));
}

#[track_caller]
fn waits_for_output(running: &Running, text: &str) {
    until(Duration::from_secs(20), "the container to run", || {
        if running.stdout().contains(text) { Ok(()) } else { Err(format!("stderr: {}", running.stderr())) }
    });
}

#[test]
fn killed_container_is_reported_and_cleaned_up() {
    let test = Test::beside_others();
    let connection = test.connect();
    docker::kill(&connection.container(), "SIGKILL");
    until(Duration::from_secs(5), "the container to be dead", || {
        if docker::is_running(&connection.container()) { Err("it runs".to_owned()) } else { Ok(()) }
    });
    let status = connection.tp(["status"]).run().exits(1);
    status.says(&[connection.name(), "ended", "killed", "tp quit"]);
    let json = connection.tp(["status", "--output", "json"]).run().exits(1).stdout;
    assert!(json.contains("\"ended\""), "{json}");
    connection.tp(["quit"]).run().exits(0);
    connection.leaves_nothing_within(Duration::from_secs(1));
}

#[test]
fn connecting_again_replaces_what_has_died() {
    let test = Test::beside_others();
    let connection = test.connect();
    docker::kill(&connection.container(), "SIGKILL");
    until(Duration::from_secs(5), "the container to be dead", || {
        if docker::is_running(&connection.container()) { Err("it runs".to_owned()) } else { Ok(()) }
    });
    connection.tp(["connect"]).run().exits(0).says(&["killed"]);
    let client = connection.client();
    client.sh("curl -sS --max-time 5 http://web/").ok();
    drop(client);
    connection.tp(["quit"]).run().ok();
}

/// The moments of a connect that can be waited for from outside.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// This long after the start of the process.
    After(Duration),
    /// When the daemon's container exists.
    ContainerExists,
    /// When the daemon's container runs.
    ContainerRuns,
}

impl Moment {
    const ALL: [Self; 6] = [
        Self::After(Duration::ZERO),
        Self::After(Duration::from_millis(40)),
        Self::ContainerExists,
        Self::ContainerRuns,
        Self::After(Duration::from_millis(400)),
        Self::After(Duration::from_millis(700)),
    ];

    fn wait(self, scope: &Scope<'_>, start: Instant) {
        let limit = Duration::from_secs(10);
        match self {
            Self::After(delay) => {
                let _ = try_until(delay, || if start.elapsed() < delay { Err(()) } else { Ok(()) });
            }
            Self::ContainerExists => {
                let _ =
                    until(limit, "the container to exist", || docker::inspect(&scope.container()).ok_or(String::new()));
            }
            Self::ContainerRuns => {
                let runs = || if docker::is_running(&scope.container()) { Ok(()) } else { Err(String::new()) };
                until(limit, "the container to run", runs);
            }
        }
    }
}

#[test]
fn interrupt_at_any_moment_of_connect_leaves_nothing() {
    let test = Test::beside_others();
    // What one leaves is looked at after the last one: each has ten seconds.
    let scopes: Vec<_> = Moment::ALL.map(|moment| (moment, test.scope())).into_iter().collect();
    for (moment, scope) in &scopes {
        let start = Instant::now();
        let mut connect = scope.tp(["connect"]).start();
        moment.wait(scope, start);
        if !connect.has_ended() {
            connect.signal_group(Signal::INT);
        }
        let outcome = connect.wait(GONE);
        match outcome.code {
            130 => {}
            // Too late for an interrupt: it is connected, which is as good.
            0 => drop(scope.tp(["quit"]).run().ok()),
            _ => panic!("{moment:?}: {outcome}"),
        }
    }
    for (_, scope) in &scopes {
        scope.leaves_nothing_within(GONE);
    }
}

#[test]
fn kill_at_any_moment_of_connect_leaves_nothing() {
    let test = Test::beside_others();
    let scopes: Vec<_> = Moment::ALL.map(|moment| (moment, test.scope())).into_iter().collect();
    for (moment, scope) in &scopes {
        let start = Instant::now();
        let mut connect = scope.tp(["connect"]).start();
        moment.wait(scope, start);
        if !connect.has_ended() {
            connect.signal(Signal::KILL);
        }
        let outcome = connect.wait(GONE);
        match outcome.code {
            137 => {}
            0 => drop(scope.tp(["quit"]).run().ok()),
            _ => panic!("{moment:?}: {outcome}"),
        }
    }
    for (_, scope) in &scopes {
        scope.leaves_nothing_within(GONE);
    }
}

#[test]
fn interrupt_of_docker_run_ends_the_container_and_the_connection() {
    let test = Test::beside_others();
    let scope = test.scope();
    let script = "trap 'exit 3' INT; echo ready; while :; do sleep 0.05; done";
    let running = scope.docker_run(["--rm", &given().client_image, "bash", "-c", script]).start();
    waits_for_output(&running, "ready");
    running.signal_group(Signal::INT);
    running.wait(GONE).exits(3);
    scope.leaves_nothing_within(GONE);
}

#[test]
fn interrupt_of_docker_run_before_its_container_runs_leaves_nothing() {
    let test = Test::beside_others();
    let moments = [Moment::After(Duration::from_millis(40)), Moment::ContainerExists, Moment::ContainerRuns];
    let scopes: Vec<_> = moments.map(|moment| (moment, test.scope())).into_iter().collect();
    for (moment, scope) in &scopes {
        let start = Instant::now();
        let running = scope.docker_run(["--rm", &given().client_image, "sleep", "60"]).start();
        moment.wait(scope, start);
        running.signal_group(Signal::INT);
        let outcome = running.wait(GONE);
        assert!(matches!(outcome.code, 130 | 125 | 137), "{moment:?}: {outcome}");
    }
    for (_, scope) in &scopes {
        scope.leaves_nothing_within(GONE);
    }
}

#[test]
fn kill_of_docker_run_takes_its_container_and_its_connection_with_it() {
    let test = Test::beside_others();
    let scope = test.scope();
    let running = scope.docker_run(["--rm", &given().client_image, "bash", "-c", "echo ready; sleep 300"]).start();
    waits_for_output(&running, "ready");
    running.signal(Signal::KILL);
    scope.leaves_nothing_within(GONE);
    running.wait(GONE).exits(137);
}

#[test]
fn kill_of_docker_run_takes_its_container_and_leaves_the_connection_that_was_there() {
    let test = Test::beside_others();
    let connection = test.connect();
    let label = format!("tp.connection={}", connection.name());
    let running = connection.docker_run(["--rm", &given().client_image, "bash", "-c", "echo ready; sleep 300"]).start();
    waits_for_output(&running, "ready");
    assert_eq!(docker::labelled(&label).len(), 2);
    running.signal(Signal::KILL);
    until(GONE, "the container to be gone", || match docker::labelled(&label).as_slice() {
        [daemon] => Ok(daemon.id.clone()),
        several => Err(format!("{several:?}")),
    });
    assert!(docker::is_running(&connection.container()));
    connection.tp(["quit"]).run().ok();
    connection.leaves_nothing_within(GONE);
}

#[test]
fn kill_of_connect_with_a_command_ends_the_connection() {
    let test = Test::beside_others();
    let scope = test.scope();
    let running = scope.tp(["connect", "--", "sh", "-c", "echo ready; exec sleep 5"]).start();
    waits_for_output(&running, "ready");
    running.signal(Signal::KILL);
    until(GONE, "the container to be gone", || match docker::traces_of(scope.name()).as_slice() {
        [] => Ok(()),
        left => Err(format!("{left:?}")),
    });
    // The command is the user's own, and goes on; it has the output that is waited for.
    running.wait(GONE).exits(137);
}

#[test]
fn alone_manager_that_was_replaced_is_found_again_without_a_command() {
    let test = Test::alone();
    let connection = test.connect();
    let client = connection.client();
    client.sh("curl -sS --max-time 5 http://web/").ok();
    let namespace = given().manager_namespace.as_str();
    let uid = || kubectl::admin(&["-n", namespace, "get", "pod", "tp-manager-0", "-o", "jsonpath={.metadata.uid}"]);
    let before = uid().ok();

    // Nothing takes its place until the workload is scaled up again, so that the outage can be looked at.
    kubectl::admin(&["-n", namespace, "scale", "statefulset/tp-manager", "--replicas=0"]).ok();
    let back = BackUp { namespace };
    let (status, _) = until(Duration::from_secs(30), "the status to tell", || {
        let status = connection.status();
        if status["connections"][0]["state"] == "reconnecting" { Ok(status) } else { Err(status.to_string()) }
    });
    assert!(status["connections"][0]["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{status}");
    connection.tp(["status"]).run().exits(0).says(&["reconnecting"]);
    // DNS fails, and does not hang.
    let lookup = client.sh("dig +time=5 +tries=1 nosuch-yet.default.svc.cluster.local");
    lookup.says(&["status: SERVFAIL"]).within(Duration::from_secs(6));

    drop(back);
    let (report, _) = until(MANAGER_BACK_WITHIN, "the next request to succeed", || {
        let outcome = client.sh("curl -sS --max-time 5 http://web/");
        if outcome.code == 0 { Ok(outcome.json()) } else { Err(outcome.to_string()) }
    });
    assert_eq!(report["name"], "web");
    assert_ne!(uid().ok(), before);
    let status = connection.status();
    assert_eq!(status["connections"][0]["state"], "connected", "{status}");
    assert!(status["connections"][0]["traffic"]["reconnects"].as_u64() >= Some(1), "{status}");
    drop(client);
    connection.tp(["quit"]).run().ok();
}

/// Brings the manager back when the test is over, however it ends.
struct BackUp<'n> {
    namespace: &'n str,
}

impl Drop for BackUp<'_> {
    fn drop(&mut self) {
        kubectl::admin(&["-n", self.namespace, "scale", "statefulset/tp-manager", "--replicas=1"]);
        kubectl::admin(&["-n", self.namespace, "rollout", "status", "statefulset/tp-manager", "--timeout=60s"]);
    }
}

#[test]
fn alone_flow_that_the_outage_cut_ends_and_does_not_hang() {
    let test = Test::alone();
    let connection = test.connect();
    let client = connection.client();
    let endless = "exec 3<>/dev/tcp/stream/19; echo >&3; timeout 40 cat <&3 >/dev/null; echo ended with $?";
    let endless = std::thread::scope(|threads| {
        let flow = threads.spawn(|| client.exec(&["bash", "-c", endless], Duration::from_secs(45)));
        until(Duration::from_secs(5), "the flow to run", || {
            let status = connection.status();
            if status["connections"][0]["traffic"]["bytesDown"].as_u64() > Some(1 << 20) {
                Ok(())
            } else {
                Err(status.to_string())
            }
        });
        kubectl::admin(&["-n", &given().manager_namespace, "delete", "pod", "tp-manager-0", "--grace-period=1"]).ok();
        flow.join().expect("the flow is not at fault")
    });
    // 1: cat was told that the connection was reset. 0 would be an end that the source never sent, 124 the limit's.
    let endless = endless.exits(0);
    assert_eq!(endless.stdout, "ended with 1\n", "{endless}");
    assert!(endless.stderr.contains("Connection reset by peer"), "{endless}");
    until(MANAGER_BACK_WITHIN, "the next request to succeed", || {
        let outcome = client.sh("curl -sS --max-time 5 http://web/");
        if outcome.code == 0 { Ok(()) } else { Err(outcome.to_string()) }
    });
    drop(client);
    connection.tp(["quit"]).run().ok();
}
