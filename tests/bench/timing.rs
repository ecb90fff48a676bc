//! How long people wait.

use std::process::Command;
use std::time::Duration;

use tp_tests::docker::Spec;
use tp_tests::given::given;
use tp_tests::process::{Input, run};
use tp_tests::test::Scope;

use crate::report::median;

/// How long one command may take.
const LIMIT: Duration = Duration::from_secs(30);

/// The median time of `tp connect`, in seconds. One before has made the image.
pub(crate) fn connects(scope: &Scope<'_>, repetitions: u32) -> f64 {
    let connect = || {
        let outcome = scope.tp(["connect"]).run().exits(0);
        scope.tp(["quit"]).run().exits(0);
        outcome.took.as_secs_f64()
    };
    connect();
    median((0..repetitions).map(|_| connect()).collect())
}

/// Median times of a container that does nothing, in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Runs {
    /// By `docker run`.
    pub(crate) docker: f64,
    /// By `docker run`, in the network of another container: what Docker itself has to do for `tp docker-run`.
    pub(crate) docker_joined: f64,
    /// By `tp docker-run` on a connection that is there.
    pub(crate) joined: f64,
    /// By `tp docker-run` that connects and disconnects.
    pub(crate) connecting: f64,
}

/// Runs such containers by turns.
pub(crate) fn container_runs(scope: &Scope<'_>, repetitions: u32) -> Runs {
    let image = given().sample_image.as_str();
    let docker = |network: &str| {
        let mut command = Command::new("docker");
        command.args(["run", "--rm", "--network", network, image, "--version"]);
        run(command, Input::Nothing, LIMIT).exits(0).took.as_secs_f64()
    };
    let tp = || scope.docker_run(["--rm", image, "--version"]).run().exits(0).took.as_secs_f64();
    let holder = Spec::client().start();
    let holder_network = format!("container:{}", holder.id());
    let (mut plain, mut plain_joined, mut joined, mut connecting) = (vec![], vec![], vec![], vec![]);
    for _ in 0..repetitions {
        plain.push(docker("bridge"));
        plain_joined.push(docker(&holder_network));
        connecting.push(tp());
        scope.tp(["connect"]).run().exits(0);
        joined.push(tp());
        scope.tp(["quit"]).run().exits(0);
    }
    Runs {
        docker: median(plain),
        docker_joined: median(plain_joined),
        joined: median(joined),
        connecting: median(connecting),
    }
}
