use crate::fixture::{Home, stderr, stdout};

#[test]
fn wrong_flags_exit_2_and_docker_run_125() {
    let home = Home::with_kubeconfig();
    for line in [
        "nosuch",
        "connect --nosuch",
        "connect --idle-limit soon",
        "connect --name Not_A_Name",
        "connect --publish 0",
        "connect --network host",
        "connect --dns-mapping db.example",
        "connect --dns-mapping db.example=10.0.0.0/8",
        "connect --vnat services",
        "connect --vnat 0.0.0.0/4",
        "connect positional",
        "quit --all --use x",
        "status --output xml",
        "intercept",
        "intercept web -p 80/sctp",
        "intercept web -p 8080:http -p 9000",
        "intercept web --address localhost",
        "intercept web --http-header x-user",
        "intercept web --http-method G<T",
        "intercept web --http-path-prefix api",
        "intercept web --http-path-regex (",
        "intercept web --http-header x-user=ann --http-header x-user=bob",
        "intercept web --grpc shop.Cart/",
        "intercept web --when-away never",
        "intercept web --wait 5m",
        "intercept web --env A=1",
        "intercept web --env-syntax sh",
        "intercept web --env-file x --env-syntax tcsh",
        "intercept web --docker podman",
        "intercept web --output json -- img",
        "wiretap web --mode somewhere",
        "wiretap web --when-away fail",
        "replace web --http-method GET",
        "replace web --address ::1",
        "ingest web -p 8080",
        "ingest web --replace-held",
        "ingest web --env-file - --env-json -",
        "leave web --all",
        "list -n shop -A",
        "completion tcsh",
        "helm",
        "helm upgrade --reuse-values --reset-values",
    ] {
        home.tp(line).assert().code(2).stdout("");
    }
    for line in [
        "docker-run",
        "docker-run --rm",
        "docker-run --nosuch img",
        "docker-run -x img",
        "docker-run --use Not_A_Name img",
        "docker-run --idle-limit soon img",
        "docker-run --dns 1.1.1.1 img",
        "docker-run --dns-mapping db.example img",
        "docker-run --vnat nothing img",
        "docker-run --network container:x img",
        "docker-run --name",
        "docker-run --like-container app img",
        "docker-run --like web -P",
        "intercept web -- --rm",
        "intercept web -- --nosuch img",
        "ingest web --env-json - -- img",
    ] {
        home.tp(line).assert().code(125).stdout("");
    }
}

#[test]
fn wrong_filter_says_how_to_write_it() {
    let assert = Home::empty().tp("intercept web --http-header x-user").assert().code(2);
    assert!(
        stderr(&assert).contains("`x-user` has no `=`: write NAME=VALUE, or NAME=~REGEX for a regular expression"),
        "{}",
        stderr(&assert)
    );
    let assert = Home::empty().tp("intercept web --http-header a=1 --http-header a=2").assert().code(2);
    assert!(stderr(&assert).starts_with("error: no request can match both `a=1` and `a=2`"), "{}", stderr(&assert));
}

#[test]
fn no_command_prints_the_help() {
    let assert = Home::empty().tp("").assert().code(2);
    assert!(stderr(&assert).contains("docker-run   Run a container in the cluster's network"), "{}", stderr(&assert));
}

#[test]
fn flags_of_docker_run_help_are_docker_s_but_for_help() {
    // -h is the host name, as in docker; it needs a value.
    let assert = Home::empty().tp("docker-run -h").assert().code(125);
    assert!(stderr(&assert).contains("flag needs an argument: -h"), "{}", stderr(&assert));
}

#[test]
fn version_needs_no_engine() {
    let home = Home::empty();
    let text = stdout(&home.tp("version").assert().success());
    assert!(text.contains(concat!("client   ", env!("CARGO_PKG_VERSION"))), "{text}");
    assert!(text.contains("engine   none found"), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&home.tp("version --output json").assert().success())).unwrap();
    assert_eq!(json["client"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(json["engine"], serde_json::Value::Null);
    home.tp("--version").assert().success().stdout(concat!("tp ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn completion_scripts_name_the_commands() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = stdout(&Home::empty().tp(&format!("completion {shell}")).assert().success());
        assert!(script.contains("docker-run") && script.contains("uninstall"), "{shell}: {script}");
        assert!(!script.contains("reap"), "{shell} completes a hidden command");
    }
}

#[test]
fn errors_are_plain_text_when_nobody_looks() {
    let assert = Home::empty().tp("connect").assert().code(1);
    assert!(!stderr(&assert).contains('\x1b'), "{}", stderr(&assert));
}
