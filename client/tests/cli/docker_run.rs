use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use crate::engine::Engine;
use crate::fixture::{Home, stderr, stdout};

/// A home with a connection `dev` and a docker that says what it is asked to do.
fn connected() -> (Home, String) {
    let home = Home::with_kubeconfig();
    let host = Engine::with_connection("running", 0).start(&home.path(""));
    home.script("docker", "printf '%s\\n' \"$@\"\ncase \" $* \" in *' fail '*) exit 42;; esac");
    (home, host)
}

#[test]
fn container_joins_the_connection_that_is_there() {
    let (home, host) = connected();
    let line = "docker-run --use dev -it --rm -eA=1 --name app -v /a:/b img sh -c ls --use x";
    let said = stdout(&home.tp(line).env("DOCKER_HOST", &host).assert().success());
    let mut args: Vec<_> = said.lines().collect();
    let invocation = args.remove(3);
    assert!(invocation.starts_with("--label=tp.invocation=") && invocation.len() == 38, "{invocation}");
    assert_eq!(
        args.join(" "),
        "run --label=tp.role=handler --label=tp.connection=dev --network=container:tp-dev --env=TP_CONNECTION=dev \
         --interactive --tty --rm --env=A=1 --name=app --volume=/a:/b img sh -c ls --use x"
    );
}

#[test]
fn exit_code_and_standard_input_pass_through() {
    let (home, host) = connected();
    home.tp("docker-run img fail now").env("DOCKER_HOST", &host).assert().code(42);
    home.script("docker", "read -r line; echo \"$line\"");
    let assert = home.tp("docker-run -i img").env("DOCKER_HOST", &host).write_stdin("hello\n").assert().success();
    assert_eq!(stdout(&assert), "hello\n");
}

#[test]
fn flags_of_the_network_s_owner_come_too_late() {
    let (home, host) = connected();
    let assert =
        home.tp("docker-run -p 80:80 --hostname h img").env("DOCKER_HOST", &host).assert().code(125).stdout("");
    assert!(
        stderr(&assert).starts_with(
            "error: docker-run: -p 80:80, --hostname h cannot be set for a container that joins the connection `dev`\n"
        ),
        "{}",
        stderr(&assert)
    );
    assert!(stderr(&assert).contains("tp connect --name dev -p 80:80"), "{}", stderr(&assert));
}

#[test]
fn unknown_connection_and_missing_docker_are_named() {
    let (home, host) = connected();
    let assert = home.tp("docker-run --use prod img").env("DOCKER_HOST", &host).assert().code(125);
    assert!(stderr(&assert).starts_with("error: there is no connection `prod`\n"), "{}", stderr(&assert));
    let assert = home.tp("docker-run --docker nerdctl img").env("DOCKER_HOST", &host).assert().code(125);
    assert!(
        stderr(&assert).starts_with("error: no `nerdctl` program to run the container with\n"),
        "{}",
        stderr(&assert)
    );
}

#[test]
fn podman_is_told_which_engine() {
    let (home, host) = connected();
    home.script("podman", "printf '%s\\n' \"$@\"");
    let line = "docker-run --docker podman img";
    let said = stdout(&home.tp(line).env("DOCKER_HOST", &host).assert().success());
    // Root's podman sees the containers of root's service by itself.
    assert!(said.starts_with("run\n") || said.starts_with(&format!("--url\n{host}\nrun\n")), "{said}");
}

#[test]
fn termination_is_passed_on_to_docker() {
    let (home, host) = connected();
    home.script("docker", "trap 'echo got it; exit 9' TERM; echo ready; while :; do /bin/sleep 0.05; done");
    let tp = home.tp("");
    let mut child = Command::new(tp.get_program())
        .args(["docker-run", "img"])
        .env_clear()
        .env("HOME", home.path(""))
        .env("PATH", home.path("bin"))
        .env("DOCKER_HOST", host)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "ready");
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(said.next().unwrap().unwrap(), "got it");
    assert_eq!(child.wait().unwrap().code(), Some(9));
}
