use crate::engine::Engine;
use crate::fixture::{Home, stderr};

fn fails(home: &Home, line: &str, host: &str) -> String {
    let assert = home.tp(line).env("DOCKER_HOST", host).assert().code(1).stdout("");
    home.anonymous(&stderr(&assert))
}

#[test]
fn no_engine() {
    let home = Home::with_kubeconfig();
    for line in ["connect", "status", "quit", "intercept web", "wiretap web", "list", "leave"] {
        assert_eq!(
            fails(&home, line, &format!("unix://{}", home.path("no.sock").display())),
            "error: no container engine answers at unix://HOME/no.sock (from DOCKER_HOST)\n\
             hint: start it, or name another one with DOCKER_HOST or `docker context use NAME`\n",
            "{line}"
        );
    }
    home.tp("docker-run img").assert().code(125);
    let refused = fails(&home, "status", "tcp://127.0.0.1:1");
    assert!(refused.starts_with("error: no container engine answers at tcp://127.0.0.1:1 "), "{refused}");
}

#[test]
fn socket_that_is_not_ours() {
    use std::os::unix::fs::PermissionsExt as _;
    let home = Home::with_kubeconfig();
    let host = Engine::default().start(&home.path(""));
    std::fs::set_permissions(home.path("engine.sock"), std::fs::Permissions::from_mode(0o000)).unwrap();
    let assert = home.tp("status").env("DOCKER_HOST", host).assert();
    // Root may use any socket; for it the imitation answers.
    if assert.get_output().stdout.is_empty() {
        let error = home.anonymous(&stderr(&assert));
        assert!(
            error.starts_with("error: no permission to use the container engine's socket unix://HOME/engine.sock"),
            "{error}"
        );
        assert!(error.contains("usermod -aG docker") && error.contains("rootless"), "{error}");
    }
}

#[test]
fn engine_that_is_too_old_or_of_another_system() {
    let home = Home::with_kubeconfig();
    let host = Engine { api: "1.30", ..Engine::default() }.start(&home.path(""));
    let error = fails(&home, "connect", &host);
    assert!(error.contains("is too old: Docker 1.2.3 speaks API 1.30, tp needs 1.40"), "{error}");
    let host = Engine { os: "windows", ..Engine::default() }.start(&home.path(""));
    let error = fails(&home, "connect", &host);
    assert!(error.contains("runs windows containers; tp needs Linux containers"), "{error}");
}

#[test]
fn address_that_is_none() {
    let error = fails(&Home::with_kubeconfig(), "status", "docker.sock");
    assert!(error.starts_with("error: cannot use `docker.sock` as the address of the container engine\n"), "{error}");
}

#[test]
fn name_in_use_names_both_connections() {
    let home = Home::with_kubeconfig();
    let host = Engine::with_connection("running", 0).start(&home.path(""));
    let error = fails(&home, "connect --name dev --context other", &host);
    assert_eq!(
        error,
        "error: the name `dev` is in use by a connection to context `dev`, namespace `web`\n\
         hint: end it with `tp quit --use dev`, or choose another name with --name\n\
         hint: this one would be to context `other`, namespace `default`\n"
    );
    let again = home.tp("connect").env("DOCKER_HOST", &host).assert().success();
    let (first, second) =
        ("Already connected: dev is a connection to context dev, namespace web.\n", "warning: not known");
    assert!(stderr(&again).starts_with(&format!("{first}{second} whether the cluster has new subnets: ")));
}

#[test]
fn existing_connection_serves_a_command_and_its_exit_code() {
    let home = Home::with_kubeconfig();
    let host = Engine::with_connection("running", 0).start(&home.path(""));
    home.script("work", "echo \"$TP_CONNECTION $TP_CONTAINER $*\"; exit 7");
    let assert = home.tp("connect -- work a b").env("DOCKER_HOST", &host).assert().code(7);
    assert_eq!(crate::fixture::stdout(&assert), "dev tp-dev a b\n");
    home.tp("connect -- nosuch").env("DOCKER_HOST", &host).assert().code(127);
}

#[test]
fn engaging_takes_a_connection() {
    let home = Home::with_kubeconfig();
    let host = Engine::default().start(&home.path(""));
    for line in ["intercept web", "wiretap web", "list", "leave web", "leave --all"] {
        assert_eq!(
            fails(&home, line, &host),
            "error: not connected\nhint: connect with `tp connect`, then give this command again\n",
            "{line}"
        );
    }
    let error = fails(&home, "list --use prod", &host);
    assert_eq!(error, "error: there is no connection `prod`\nhint: nothing is connected\n");
    let host = Engine::with_connection("exited", 137).start(&home.path(""));
    assert!(fails(&home, "list", &host).starts_with("error: not connected\n"));
    assert_eq!(
        fails(&home, "list --use dev", &host),
        "error: the connection `dev` has ended: it was killed\nhint: connect again with `tp connect --name dev`\n"
    );
}
