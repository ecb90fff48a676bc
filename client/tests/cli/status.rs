use serde_json::{Value, json};

use crate::engine::Engine;
use crate::fixture::{Home, stderr, stdout};

#[test]
fn nothing_connected() {
    let home = Home::empty();
    let host = Engine::default().start(&home.path(""));
    let assert = home.tp("status").env("DOCKER_HOST", &host).assert().code(1);
    assert!(stdout(&assert).starts_with("Not connected. "), "{}", stdout(&assert));
    let assert = home.tp("status --output json").env("DOCKER_HOST", &host).assert().code(1);
    assert_eq!(serde_json::from_str::<Value>(&stdout(&assert)).unwrap(), json!({"connections": []}));
    let assert = home.tp("quit").env("DOCKER_HOST", &host).assert().success();
    assert_eq!(stderr(&assert), "Nothing is connected.\n");
    let assert = home.tp("status --use x").env("DOCKER_HOST", &host).assert().code(1);
    assert_eq!(stderr(&assert), "error: there is no connection `x`\nhint: nothing is connected\n");
}

#[test]
fn killed_container_is_told_with_its_reason() {
    let home = Home::empty();
    let host = Engine::with_connection("exited", 137).start(&home.path(""));
    let assert = home.tp("status").env("DOCKER_HOST", &host).assert().code(1);
    let text = stdout(&assert);
    assert!(text.starts_with("dev (tp-dev): ended: it was killed\n"), "{text}");
    assert!(text.contains("`tp quit --use dev` removes what is left"), "{text}");
    let assert = home.tp("docker-run --use dev img").env("DOCKER_HOST", &host).assert().code(125);
    assert!(stderr(&assert).contains("no `docker` program"), "{}", stderr(&assert));
    home.script("docker", "exit 0");
    let assert = home.tp("docker-run --use dev img").env("DOCKER_HOST", &host).assert().code(125);
    assert!(
        stderr(&assert).starts_with("error: the connection `dev` has ended: it was killed\n"),
        "{}",
        stderr(&assert)
    );
}

#[test]
fn containers_that_outlive_their_connection_are_listed() {
    let home = Home::empty();
    let labels = json!({"tp.role": "handler", "tp.connection": "dev"});
    let handler =
        json!({"Id": "7", "Names": ["/app"], "Image": "img", "State": "running", "Status": "Up", "Labels": labels});
    let host = Engine { containers: json!([handler]), ..Engine::default() }.start(&home.path(""));
    let assert = home.tp("status --output json").env("DOCKER_HOST", &host).assert().code(1);
    let json: Value = serde_json::from_str(&stdout(&assert)).unwrap();
    assert_eq!(json["connections"][0]["state"], "gone");
    assert_eq!(json["connections"][0]["containers"][0]["name"], "app");
}
