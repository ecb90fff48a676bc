//! Connecting, running containers, looking at it, and ending it.

use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tp_tests::docker::{self, Spec};
use tp_tests::given::given;
use tp_tests::process::{Input, run};
use tp_tests::test::Test;
use tp_tests::wait::until;

/// How long a connection on a warm machine may take to be made, with a margin for the tests that run beside it.
const CONNECTS_WITHIN: Duration = Duration::from_secs(5);

fn client() -> &'static str {
    &given().client_image
}

#[test]
fn connect_status_and_quit_go_round() {
    let test = Test::beside_others();
    let scope = test.scope();
    let connected = scope.tp(["connect"]).run().exits(0).within(CONNECTS_WITHIN);
    assert_eq!(connected.stdout, "", "{connected}");
    assert!(connected.stderr.contains(scope.name()), "{connected}");

    let text = scope.tp(["status"]).run().ok();
    for word in [scope.name(), "connected", "tp-manager-0", "default"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    scope.tp(["quit"]).run().exits(0).says(&[scope.name()]);
    scope.leaves_nothing_within(Duration::from_secs(1));
    scope.tp(["status"]).run().exits(1);
}

#[test]
fn status_as_json_has_everything_under_lasting_keys() {
    let test = Test::beside_others();
    let connection = test.connect();
    let joined = connection.docker_run(["--rm", "-d", client(), "sleep", "60"]).run().ok();
    let status = connection.status();
    let [report] = status["connections"].as_array().expect("a list").as_slice() else { panic!("one: {status}") };
    assert_eq!(report["name"], connection.name());
    assert_eq!(report["container"], connection.container().as_str());
    assert_eq!(report["context"], connection.name());
    assert_eq!(report["server"], connection.kubeconfig().server_url());
    assert_eq!(
        (&report["state"], &report["reason"], &report["held"]),
        (&"connected".into(), &Value::Null, &false.into())
    );
    assert_eq!(report["namespace"], "default");
    assert_eq!(report["manager"]["namespace"], given().manager_namespace.as_str());
    assert_eq!(report["manager"]["pod"], "tp-manager-0");
    assert_eq!(report["manager"]["version"], report["daemon"]["version"]);
    assert_eq!(report["cluster"]["domain"], "cluster.local");
    for list in ["/cluster/serviceSubnets", "/cluster/podSubnets", "/routes", "/dns/search", "/containers"] {
        assert!(
            report.pointer(list).and_then(Value::as_array).is_some_and(|list| !list.is_empty()),
            "{list}: {report}"
        );
    }
    for number in
        ["/traffic/tcpFlows", "/traffic/udpFlows", "/traffic/bytesUp", "/traffic/bytesDown", "/daemon/restarts"]
    {
        assert!(report.pointer(number).is_some_and(Value::is_u64), "{number}: {report}");
    }
    assert!(report["daemon"]["residentBytes"].as_u64() > Some(1 << 20), "{report}");
    assert!(report["dns"]["address"].is_string() && report["agents"].is_array(), "{report}");
    assert!(joined.starts_with(report["containers"][0]["id"].as_str().expect("an id")), "{report}");
    docker::remove(&joined);
    connection.tp(["quit"]).run().ok();
}

#[test]
fn version_names_client_engine_and_manager() {
    let test = Test::beside_others();
    let scope = test.scope();
    let nowhere = format!("unix://{}/nothing.sock", scope.home().display());
    let alone = scope.tp(["version", "--output", "json"]).env("DOCKER_HOST", nowhere).run().json();
    assert_eq!((&alone["engine"], alone["connections"].as_array().map(Vec::len)), (&Value::Null, Some(0)));
    scope.tp(["connect"]).run().ok();
    let versions = scope.tp(["version", "--output", "json"]).run().json();
    let version = &versions["client"]["version"];
    assert!(version.is_string() && versions["engine"]["version"].is_string(), "{versions}");
    let connections = versions["connections"].as_array().expect("a list");
    let mine = connections.iter().find(|it| it["name"] == scope.name()).expect("this connection is listed");
    assert_eq!((&mine["daemon"], &mine["manager"]), (version, version));
    scope.tp(["version"]).run().exits(0).says(&[version.as_str().expect("a string")]);
    scope.tp(["quit"]).run().ok();
}

/// For what depends on there being no other connection, which only people can have when a test is alone.
#[track_caller]
fn assert_nothing_is_connected() {
    let others = docker::labelled("tp.role=daemon");
    assert!(others.is_empty(), "this test needs an engine without other connections, end them with `tp quit --all`");
}

#[test]
fn alone_docker_run_connects_by_itself_and_quits_what_it_started() {
    let test = Test::alone();
    let scope = test.scope();
    assert_nothing_is_connected();
    // Nothing says which connection or cluster is meant: the current context is, and nothing is connected.
    let command = scope.docker_run(["--rm", client(), "curl", "-sS", "http://web/"]).env_remove("TP_CONTEXT");
    let outcome = command.run();
    let report = outcome.clone().json();
    assert_eq!(report["name"], "web");
    assert_eq!(outcome.stderr, "", "quiet when nobody watches");
    scope.leaves_nothing_within(Duration::from_secs(1));
}

#[test]
fn docker_run_with_a_static_image_reaches_the_cluster() {
    let test = Test::beside_others();
    let scope = test.scope();
    let load = ["bench", "--mode", "requests", "--seconds", "1", "--target", "web:80"];
    let args = ["--rm", given().sample_image.as_str()].into_iter().chain(load);
    let figures = scope.docker_run(args).run().json();
    assert!(figures["requests"].as_u64() > Some(0), "{figures}");
    scope.leaves_nothing_within(Duration::from_secs(1));
}

#[test]
fn alone_docker_run_uses_the_connection_there_is_and_leaves_it() {
    let test = Test::alone();
    assert_nothing_is_connected();
    let connection = test.connect();
    let id = docker::inspect(&connection.container()).and_then(|it| it.id);
    let get = ["--rm", client(), "curl", "-sS", "http://web/"];
    let report = connection.docker_run(get).env_remove("TP_CONTEXT").run().json();
    assert_eq!(report["name"], "web");
    let report = connection.docker_run(get).run().json();
    assert_eq!(report["name"], "web");
    let report = connection.docker_run(["--use", connection.name()].into_iter().chain(get)).run().json();
    assert_eq!(report["name"], "web");
    assert!(id.is_some() && docker::inspect(&connection.container()).and_then(|it| it.id) == id);
    connection.tp(["quit"]).run().ok();
    connection.leaves_nothing_within(Duration::from_secs(1));
}

#[test]
fn exit_code_is_the_containers_and_125_is_for_failures_before_it() {
    let test = Test::beside_others();
    let connection = test.connect();
    for code in [0, 1, 7, 255] {
        connection.docker_run(["--rm", client(), "bash", "-c", &format!("exit {code}")]).run().exits(code);
    }
    connection.docker_run(["--rm", "--init", client(), "bash", "-c", "kill -9 $$"]).run().exits(137);
    connection.docker_run(["--rm", client(), "/etc/hostname"]).run().exits(126);
    connection.docker_run(["--rm", client(), "/nosuch"]).run().exits(127);
    connection.docker_run(["--rm", "--memory", "lots", client()]).run().exits(125).says(&["lots"]);
    connection.docker_run(["--rm", "--pull", "never", "tp-e2e.invalid/nosuch:1"]).run().exits(125);
    connection
        .tp(["docker-run", "--use", "nosuch-connection", "--rm", client()])
        .run()
        .exits(125)
        .says(&["nosuch-connection"]);
    connection.tp(["quit"]).run().ok();
    connection.leaves_nothing_within(Duration::from_secs(1));
}

#[test]
fn standard_input_and_both_outputs_pass_through() {
    let test = Test::beside_others();
    let connection = test.connect();
    let input = "from the outside\n".repeat(100_000);
    let cat = connection.docker_run(["--rm", "-i", client(), "cat"]).input(Input::Bytes(input.clone().into_bytes()));
    assert_eq!(cat.run().exits(0).stdout, input);
    let both =
        connection.docker_run(["--rm", client(), "bash", "-c", "echo to stdout; echo to stderr >&2"]).run().exits(0);
    assert_eq!((both.stdout.as_str(), both.stderr.as_str()), ("to stdout\n", "to stderr\n"));
    connection.tp(["quit"]).run().ok();
}

#[test]
fn terminal_has_the_size_of_the_one_outside() {
    // The docker CLI sets the size once the container runs: a process in it can be faster.
    const SIZE: &str = "tty; until [ \"$(stty size)\" != '0 0' ]; do sleep 0.02; done; stty size";
    let test = Test::beside_others();
    let connection = test.connect();
    let inner = connection.docker_run(["--rm", "-it", client(), "bash", "-c", SIZE]).shell_words();
    let script = format!("stty rows 33 cols 101; {inner}; echo exit code $?");
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &script, "/dev/null"]);
    let outcome = run(command, Input::Open, Duration::from_secs(20)).exits(0);
    outcome.says(&["/dev/pts/0", "33 101", "exit code 0"]);
    connection.tp(["quit"]).run().ok();
}

#[test]
fn signals_reach_the_container() {
    let test = Test::beside_others();
    let connection = test.connect();
    for (signal, name) in [(Signal::TERM, "TERM"), (Signal::INT, "INT"), (Signal::HUP, "HUP"), (Signal::USR1, "USR1")] {
        let script = format!("trap 'echo got {name}; exit 42' {name}; echo ready; while :; do sleep 0.05; done");
        let running = connection.docker_run(["--rm", client(), "bash", "-c", &script]).start();
        until(Duration::from_secs(15), "the container to run", || {
            if running.stdout().contains("ready") { Ok(()) } else { Err(running.stderr()) }
        });
        running.signal(signal);
        let outcome = running.wait(Duration::from_secs(10)).exits(42);
        assert_eq!(outcome.stdout, format!("ready\ngot {name}\n"));
    }
    connection.tp(["quit"]).run().ok();
    // The helper of a run that got a signal looks for what docker may still be making for 8 s.
    connection.leaves_nothing_within(Duration::from_secs(10));
}

#[test]
fn detached_container_stays_with_its_connection_until_quit() {
    let test = Test::beside_others();
    let scope = test.scope();
    let id = scope.docker_run(["-d", "--rm", client(), "sleep", "300"]).run().ok();
    assert!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "the id, as docker run prints it: {id}");
    let status = scope.status();
    assert_eq!(
        (&status["connections"][0]["state"], &status["connections"][0]["held"]),
        (&"connected".into(), &false.into())
    );
    let web = docker::exec(&id, &["curl", "-sS", "http://web/"], b"", Duration::from_secs(10)).json();
    assert_eq!(web["name"], "web");
    scope.tp(["quit"]).run().exits(0);
    docker::remove(&id);
    scope.leaves_nothing_within(Duration::from_secs(1));
}

#[test]
fn two_connections_do_not_disturb_each_other() {
    let test = Test::beside_others();
    let (one, other) = (test.connect(), test.scope());
    other.tp(["connect", "--namespace", "shop"]).run().ok();
    let name = |outcome: tp_tests::process::Outcome| outcome.json()["name"].clone();
    let get = ["--rm", client(), "curl", "-sS", "http://web/"];
    assert_eq!(name(one.docker_run(get).run()), "web");
    assert_eq!(name(other.docker_run(get).run()), "web of shop");
    other.tp(["quit"]).run().ok();
    assert_eq!(name(one.docker_run(get).run()), "web");
    one.tp(["quit"]).run().ok();
}

#[test]
fn command_runs_while_connected_and_its_exit_code_is_passed_on() {
    let test = Test::beside_others();
    let scope = test.scope();
    let image = client();
    let script = format!(
        "docker run --rm --network container:$TP_CONTAINER {image} curl -sS http://web/; echo; echo $TP_CONNECTION; exit 9"
    );
    let outcome = scope.tp(["connect", "--", "sh", "-c", &script]).run().exits(9);
    assert!(outcome.stdout.contains("\"name\":\"web\"") && outcome.stdout.contains(scope.name()), "{outcome}");
    scope.leaves_nothing_within(Duration::from_secs(1));
}

#[test]
fn published_port_leads_to_the_joined_container() {
    let test = Test::beside_others();
    let scope = test.scope();
    scope.tp(["connect", "-p", "127.0.0.1::8080"]).run().ok();
    let server = scope.join(Spec::sample(["serve", "--name", "at home"]));
    let ports = docker::inspect(&scope.container()).and_then(|it| it.network_settings).and_then(|it| it.ports);
    let binding =
        ports.and_then(|mut ports| ports.remove("8080/tcp")).flatten().and_then(|list| list.into_iter().next());
    let port = binding.and_then(|binding| binding.host_port).expect("the port is published");
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--noproxy", "*", "--retry", "5", "--retry-all-errors", "--max-time", "10"]);
    curl.arg(format!("http://127.0.0.1:{port}/"));
    assert_eq!(run(curl, Input::Nothing, Duration::from_secs(15)).json()["name"], "at home");
    drop(server);
    scope.tp(["quit"]).run().ok();
}

#[test]
fn settings_say_where_they_come_from() {
    let test = Test::beside_others();
    let scope = test.scope();
    let folder = scope.home().join("config/tp");
    std::fs::create_dir_all(&folder).expect("the folder is ours");
    std::fs::write(folder.join("config.yaml"), "namespace: shop\nidle-limit: 30m\n").expect("the folder is ours");
    let text = scope.tp(["config", "view"]).env("TP_IDLE_LIMIT", "45m").run().ok();
    for word in ["shop", "config.yaml", "45m", "TP_IDLE_LIMIT", given().manager_namespace.as_str()] {
        assert!(text.contains(word), "{word}: {text}");
    }
    scope.tp(["connect"]).run().ok();
    assert_eq!(scope.status()["connections"][0]["namespace"], "shop");
    scope.tp(["quit"]).run().ok();
}
