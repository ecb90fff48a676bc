//! The environment of a workload, in files and in a container; the engagement goes with the container.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tp_protocol::engage::call::ContainerSpec;

use crate::daemon::Daemon;
use crate::engine::Engine;
use crate::fixture::{Home, stderr, stdout};

const PEM: &str = "-----BEGIN\ns3cret $x 'y'\n-----END\n";

/// Reads what docker is given: its arguments, the file in memory, and a variable of its own environment.
const DOCKER: &str = r#"for arg; do
    case $arg in --env-file=/dev/fd/*) while read -r line; do echo "file: $line"; done < "${arg#--env-file=}"; arg=--env-file=FILE;; esac
    echo "arg: $arg"
done
echo "pem: $PEM"
case " $* " in *' fail '*) exit 42;; esac"#;

/// A home with a connection `dev`, whose manager knows one workload, and a docker that says what it is asked to do.
fn connected() -> (Home, String, Daemon) {
    let home = Home::with_kubeconfig();
    let container = ContainerSpec {
        name: "app".into(),
        image: "registry/kiosk:1".into(),
        command: vec!["/bin/kiosk".into(), "--greet=$(GREETING)".into()],
        working_dir: "/srv".into(),
        user: Some(1000),
        cpu_limit_millis: 500,
        ..ContainerSpec::default()
    };
    let environment = vec![("GREETING", "hello world"), ("PEM", PEM), ("TOKEN", "s3cret-token")];
    let daemon = Daemon { container, environment, ..Daemon::default() };
    let engine = Engine { daemon: daemon.clone(), ..Engine::with_connection("running", 0) };
    let host = engine.start(&home.path(""));
    home.script("docker", DOCKER);
    (home, host, daemon)
}

#[test]
fn handler_has_the_environment_and_the_engagement_ends_with_it() {
    let (home, host, daemon) = connected();
    let line = "ingest kiosk --env EXTRA=1 --env-exclude TOKEN -- --rm -e A=1 img fail now";
    let assert = home.tp(line).env("DOCKER_HOST", &host).assert().code(42);
    let said = stdout(&assert);
    assert!(
        said.contains("file: EXTRA=1\nfile: GREETING=hello world\narg: --env-file=FILE\narg: --env=PEM\n"),
        "{said}"
    );
    assert!(said.contains(&format!("pem: {PEM}")), "{said}");
    let own =
        "arg: --env=TP_CONNECTION=dev\narg: --workdir=/srv\narg: --rm\narg: --env=A=1\narg: img\narg: fail\narg: now\n";
    assert!(said.contains(own) && !said.contains("token"), "{said}");
    assert!(stderr(&assert).starts_with("Ingesting deployment/kiosk in namespace web.\n"), "{}", stderr(&assert));
    assert_eq!(daemon.asked(), ["Ingest web/kiosk 0", "describe tp-kiosk-1", "leave tp-kiosk-1"]);
}

#[test]
fn the_engagement_ends_when_there_is_nothing_to_run() {
    let (home, host, daemon) = connected();
    let line = "intercept kiosk --env-json nowhere/env -- img";
    let assert = home.tp(line).env("DOCKER_HOST", &host).assert().code(125).stdout("");
    assert!(stderr(&assert).starts_with("error: cannot write the environment to nowhere/env: "), "{}", stderr(&assert));
    assert_eq!(daemon.asked(), ["Intercept web/kiosk 1", "describe tp-kiosk-1", "leave tp-kiosk-1"]);
    let assert = home.tp("intercept nope -- img").env("DOCKER_HOST", &host).assert().code(125).stdout("");
    assert!(stderr(&assert).contains("error: no workload nope in namespace web\n"), "{}", stderr(&assert));
    assert_eq!(daemon.asked().last().unwrap(), "refused");
    // Docker cannot start it, and says so itself.
    home.script("docker", "exit 125");
    home.tp("replace kiosk -- -d img").env("DOCKER_HOST", &host).assert().code(125);
    assert_eq!(daemon.asked()[4..], ["Replace web/kiosk 0", "describe tp-kiosk-1", "leave tp-kiosk-1"]);
}

#[test]
fn in_the_background_the_engagement_stays() {
    let (home, host, daemon) = connected();
    let assert = home.tp("wiretap kiosk -- -d img").env("DOCKER_HOST", &host).assert().success();
    assert!(stderr(&assert).contains("`tp leave kiosk --use dev` ends that.\n"), "{}", stderr(&assert));
    assert_eq!(daemon.asked(), ["Wiretap web/kiosk 1", "describe tp-kiosk-1"]);
}

#[test]
fn a_container_like_a_workload_s_engages_it_for_a_look_only() {
    let (home, host, daemon) = connected();
    let said = stdout(&home.tp("docker-run --like kiosk --rm").env("DOCKER_HOST", &host).assert().success());
    let like = "arg: --workdir=/srv\narg: --user=1000\narg: --cpus=0.500\narg: --entrypoint=/bin/kiosk\narg: --rm\n\
                arg: registry/kiosk:1\narg: --greet=hello world\n";
    assert!(said.contains(like) && said.contains("file: TOKEN=s3cret-token\n"), "{said}");
    assert_eq!(daemon.asked(), ["Ingest web/kiosk 0", "describe tp-kiosk-1", "leave tp-kiosk-1"]);
    let line = "docker-run --like kiosk -u 0 -w /x mine sh";
    let said = stdout(&home.tp(line).env("DOCKER_HOST", &host).assert().success());
    assert!(said.contains("arg: --cpus=0.500\narg: --user=0\narg: --workdir=/x\narg: mine\narg: sh\n"), "{said}");
}

#[test]
fn files_are_written_for_their_owner_and_the_engagement_stays() {
    let (home, host, daemon) = connected();
    let line = "ingest kiosk --env-file env.sh --env-syntax sh --env-json env.json";
    let said = stdout(&home.tp(line).env("DOCKER_HOST", &host).assert().success());
    assert!(said.contains("  Written: 3 variables are in env.sh\n") && !said.contains("s3cret"), "{said}");
    let file = home.path("env.sh");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(fs::read_to_string(&file).unwrap().contains("export TOKEN='s3cret-token'\n"));
    let json: serde_json::Value = serde_json::from_slice(&fs::read(home.path("env.json")).unwrap()).unwrap();
    assert_eq!(json["PEM"], PEM);
    assert_eq!(daemon.asked(), ["Ingest web/kiosk 0", "describe tp-kiosk-1"]);
    let json: serde_json::Value = serde_json::from_str(&stdout(
        &home.tp("ingest kiosk --env-json -").env("DOCKER_HOST", &host).assert().success(),
    ))
    .unwrap();
    assert_eq!(json["GREETING"], "hello world");
}

#[test]
fn what_a_file_cannot_hold_ends_the_engagement() {
    let (home, host, daemon) = connected();
    let assert = home.tp("ingest kiosk --env-file env").env("DOCKER_HOST", &host).assert().code(1).stdout("");
    let said = stderr(&assert);
    assert!(
        said.contains("the variable PEM cannot be written in the syntax `docker`") && !said.contains("s3cret"),
        "{said}"
    );
    assert_eq!(daemon.asked().last().unwrap(), "leave tp-kiosk-1");
    assert!(!home.path("env").exists());
}

#[test]
fn an_environment_that_is_not_known_is_said() {
    let (home, _, daemon) = connected();
    let daemon = Daemon { problem: "its agent is gone", ..daemon };
    let engine = Engine { daemon: daemon.clone(), ..Engine::with_connection("running", 0) };
    let host = engine.start(&home.path(""));
    let assert = home.tp("ingest kiosk --verbose -- img").env("DOCKER_HOST", &host).assert().code(125).stdout("");
    let expected = "error: the environment of deployment/kiosk is not known: its agent is gone\n";
    assert_eq!(stderr(&assert), expected);
    assert_eq!(daemon.asked().last().unwrap(), "leave tp-kiosk-1");
}

#[test]
fn the_engagement_ends_when_the_command_is_killed() {
    let (home, host, daemon) = connected();
    home.script("docker", "echo ready; while :; do /bin/sleep 0.05; done");
    let tp = home.tp("");
    let mut child = std::process::Command::new(tp.get_program())
        .args(["ingest", "kiosk", "--", "img"])
        .env_clear()
        .env("HOME", home.path(""))
        .env("PATH", home.path("bin"))
        .env("DOCKER_HOST", host)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut ready = [0; 5];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let begin = Instant::now();
    while daemon.asked().last().unwrap() != "leave tp-kiosk-1" {
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", daemon.asked());
        std::thread::yield_now();
    }
}
