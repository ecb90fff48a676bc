//! The machine is the same before, during and after.

use std::time::Duration;

use tp_tests::docker;
use tp_tests::given::given;
use tp_tests::host::Picture;
use tp_tests::test::Test;
use tp_tests::wait::until;

/// Time for what comes and goes by itself on any machine to go again.
const SETTLES_WITHIN: Duration = Duration::from_secs(10);

/// Demands that the machine looks as it did.
#[track_caller]
fn is_unchanged(before: &Picture, when: &str) {
    until(SETTLES_WITHIN, when, || {
        let changes = before.changes(&Picture::take());
        if changes.is_empty() { Ok(()) } else { Err(changes.join("\n")) }
    });
}

/// Containers, networks and volumes. Images are left out: each version of the product makes one and keeps it.
fn engine_objects() -> Vec<String> {
    docker::engine_objects().into_iter().filter(|object| !object.starts_with("image")).collect()
}

#[test]
fn alone_machine_and_engine_are_the_same_before_during_and_after() {
    let test = Test::alone();
    let scope = test.scope();
    let objects = engine_objects();
    let before = Picture::take();

    scope.tp(["connect"]).run().ok();
    let client = scope.join(docker::Spec::client());
    client.sh("curl -sS --max-time 5 http://web/").ok();
    is_unchanged(&before, "the machine while connected");
    let mut with_daemon = objects.clone();
    with_daemon.push(format!("container /{}", scope.container()));
    with_daemon.sort();
    assert_eq!(engine_objects(), with_daemon, "one container, and nothing else");
    drop(client);
    scope.tp(["quit"]).run().ok();
    is_unchanged(&before, "the machine after quit");
    assert_eq!(engine_objects(), objects);

    scope.docker_run(["--rm", &given().client_image, "curl", "-sS", "http://web/"]).run().ok();
    is_unchanged(&before, "the machine after docker-run");
    assert_eq!(engine_objects(), objects);
}
