//! What goes wrong for people, and what they are told: which thing, and what to do next. Nothing is left behind.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tp_tests::docker::{self, Spec};
use tp_tests::given::given;
use tp_tests::kubectl;
use tp_tests::test::{Scope, Test};
use tp_tests::tp::Tp;

/// How long a failure may take.
const FAILS_WITHIN: Duration = Duration::from_secs(10);

/// Demands that `tp connect` and `tp docker-run` fail in the right way, with `words` in what they say.
#[track_caller]
fn is_refused(scope: &Scope<'_>, words: &[&str], prepare: impl Fn(Tp) -> Tp) {
    let image = given().sample_image.as_str();
    let commands: [(&[&str], i32); 2] = [(&["connect"], 1), (&["docker-run", "--rm", image], 125)];
    for (args, code) in commands {
        let outcome = prepare(scope.tp(args.iter().copied())).run();
        let outcome = outcome.exits(code).says(words).says(&["error: ", "hint: "]).within(FAILS_WITHIN);
        assert_eq!(outcome.stdout, "", "stdout is for data: {outcome}");
        scope.leaves_nothing_within(Duration::from_secs(1));
    }
}

#[test]
fn namespace_without_a_manager_is_named_with_the_way_to_install_one() {
    let test = Test::beside_others();
    let scope = test.scope();
    let namespace = kubectl::Namespace::create(&format!("tp-none-{}", scope.name()));
    namespace.let_user_connect();
    is_refused(&scope, &[namespace.name(), "tp helm install", "tp-manager-0"], |tp| {
        tp.env("TP_MANAGER_NAMESPACE", namespace.name())
    });
}

#[test]
fn missing_right_is_named_with_its_pod() {
    let test = Test::beside_others();
    let scope = test.scope();
    is_refused(&scope, &["kube-system", "tp-manager-0", "pods/portforward"], |tp| {
        tp.env("TP_MANAGER_NAMESPACE", "kube-system")
    });
}

#[test]
fn engine_that_is_not_there_is_named_by_its_socket() {
    let test = Test::beside_others();
    let scope = test.scope();
    let socket = format!("unix://{}/nothing.sock", scope.home().display());
    is_refused(&scope, &["nothing.sock", "DOCKER_HOST"], |tp| tp.env("DOCKER_HOST", socket.as_str()));
}

#[test]
fn engine_without_permission_is_named_with_the_group_to_join() {
    let test = Test::beside_others();
    let scope = test.scope();
    // Another user's home: readable and executable by all, since root is denied nothing.
    let home = scope.home();
    let open = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("the folder is ours");
    };
    open(home, 0o755);
    let binary = home.join("tp");
    std::fs::copy(&given().tp, &binary).expect("there is room for the binary");
    open(&binary, 0o755);
    open(&home.join("kubeconfig"), 0o644);
    let socket = home.join("denied.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("the folder is ours");
    open(&socket, 0o000);
    let nobody = 65534;
    is_refused(&scope, &["no permission", "denied.sock", "group"], |tp| {
        let tp = tp.env("DOCKER_HOST", format!("unix://{}", socket.display()));
        if tp_tests::host::is_root() { tp.as_user(nobody, &binary) } else { tp }
    });
}

#[test]
fn context_that_does_not_exist_is_named_with_those_that_do() {
    let test = Test::beside_others();
    let scope = test.scope();
    is_refused(&scope, &["nosuch-context", "contexts there", scope.name()], |tp| {
        tp.env("TP_CONTEXT", "nosuch-context")
    });
}

#[test]
fn kubeconfig_that_does_not_exist_is_named() {
    let test = Test::beside_others();
    let scope = test.scope();
    let path = scope.home().join("nosuch-kubeconfig");
    is_refused(&scope, &["nosuch-kubeconfig", "KUBECONFIG"], |tp| tp.kubeconfig(&path));
}

#[test]
fn api_server_on_a_closed_port_is_named() {
    let test = Test::beside_others();
    let scope = test.scope();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let url = format!("https://{}", closed.expect("there is a free port"));
    let path = scope.kubeconfig().server(&url).save(scope.home());
    is_refused(&scope, &[&url, scope.name()], |tp| tp.kubeconfig(&path));
}

#[test]
fn api_server_that_does_not_answer_is_given_up_in_time() {
    const SILENT: &str =
        "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalPort => 6443, Listen => 5); sleep 1000";
    let test = Test::beside_others();
    let scope = test.scope();
    let silent = Spec::client().command(["perl", "-e", SILENT]).start();
    let url = format!("https://{}:6443", silent.bridge_ip());
    let path = scope.kubeconfig().server(&url).save(scope.home());
    is_refused(&scope, &[&url], |tp| tp.kubeconfig(&path));
}

/// A client certificate of no known authority, valid in the years from `first` until `last`, as files.
fn certificate(folder: &Path, first: i32, last: i32) -> (PathBuf, PathBuf) {
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names are fine");
    params.distinguished_name.push(rcgen::DnType::CommonName, "developer");
    params.not_before = rcgen::date_time_ymd(first, 1, 1);
    params.not_after = rcgen::date_time_ymd(last, 1, 1);
    let key = rcgen::KeyPair::generate().expect("the machine has random numbers");
    let certificate = params.self_signed(&key).expect("the parameters are complete");
    let (certificate_path, key_path) = (folder.join("client.crt"), folder.join("client.key"));
    std::fs::write(&certificate_path, certificate.pem()).expect("the folder is ours");
    std::fs::write(&key_path, key.serialize_pem()).expect("the folder is ours");
    (certificate_path, key_path)
}

#[test]
fn expired_client_certificate_is_named_with_its_user() {
    let test = Test::beside_others();
    let scope = test.scope();
    let (certificate, key) = certificate(scope.home(), 2019, 2020);
    let credentials = [
        ("client-certificate", certificate.to_str().expect("the folder has a plain name")),
        ("client-key", key.to_str().expect("the folder has a plain name")),
    ];
    let path = scope.kubeconfig().credentials(&credentials).save(scope.home());
    is_refused(&scope, &["expired", "2020", "developer"], |tp| tp.kubeconfig(&path));
}

#[test]
fn client_certificate_of_a_stranger_is_not_accepted() {
    let test = Test::beside_others();
    let scope = test.scope();
    let (certificate, key) = certificate(scope.home(), 2019, 2090);
    let credentials = [
        ("client-certificate", certificate.to_str().expect("the folder has a plain name")),
        ("client-key", key.to_str().expect("the folder has a plain name")),
    ];
    let path = scope.kubeconfig().credentials(&credentials).save(scope.home());
    is_refused(&scope, &["credentials", "developer", scope.name()], |tp| tp.kubeconfig(&path));
}

#[test]
fn token_that_is_not_accepted_is_named_with_its_user() {
    let test = Test::beside_others();
    let scope = test.scope();
    let path = scope.kubeconfig().credentials(&[("token", "not-a-token-of-this-cluster")]).save(scope.home());
    is_refused(&scope, &["credentials", "developer", "expired"], |tp| tp.kubeconfig(&path));
}

#[test]
fn name_of_a_foreign_container_is_left_to_it() {
    let test = Test::beside_others();
    let scope = test.scope();
    let foreign = Spec::sample(["serve"]).name(&scope.container()).start();
    let outcome = scope.tp(["connect"]).run().exits(1).says(&[&scope.container(), "not by tp", "--name"]);
    outcome.within(FAILS_WITHIN);
    assert!(docker::is_running(foreign.id()), "the foreign container was touched");
}

#[test]
fn name_of_another_connection_is_left_to_it() {
    let test = Test::beside_others();
    let connection = test.connect();
    let outcome = connection.tp(["connect", "--namespace", "shop"]).run().exits(1);
    outcome.says(&[connection.name(), "default", "--name", "tp quit"]).within(FAILS_WITHIN);
    let id = docker::inspect(&connection.container()).and_then(|found| found.id);
    connection.tp(["connect"]).run().exits(0).says(&["Already connected"]);
    assert_eq!(docker::inspect(&connection.container()).and_then(|found| found.id), id);
    connection.tp(["quit"]).run().ok();
}

/// A pod named as a manager's that answers every lane as the first release's manager answers a client from afar.
fn old_manager(namespace: &str) {
    const REFUSE: &str = r#"
        use IO::Socket::INET;
        $SIG{PIPE} = "IGNORE";
        open my $file, "<:raw", "/golden/refusal" or die $!;
        read $file, my $refusal, 4096;
        my $listener = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => 7400, Listen => 5, ReuseAddr => 1) or die $!;
        open my $ready, ">", "/tmp/ready";
        while (my $s = $listener->accept) {
            sysread $s, my $hello, 4096;
            syswrite $s, $refusal;
            shutdown $s, 1;
            sysread $s, my $rest, 4096;
        }
    "#;
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/golden/v1/refusal");
    let golden = golden.to_str().expect("the checkout has a plain name");
    kubectl::admin(&["-n", namespace, "create", "configmap", "golden", &format!("--from-file=refusal={golden}")]).ok();
    kubectl::apply(&serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "tp-manager-0", "namespace": namespace },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "tp-manager", "image": given().cluster_client_image,
                "command": ["perl", "-e", REFUSE],
                "readinessProbe": { "exec": { "command": ["test", "-e", "/tmp/ready"] }, "periodSeconds": 1 },
                "volumeMounts": [{ "name": "golden", "mountPath": "/golden" }],
            }],
            "volumes": [{ "name": "golden", "configMap": { "name": "golden" } }],
        },
    }));
    kubectl::admin(&["-n", namespace, "wait", "pod/tp-manager-0", "--for=condition=Ready", "--timeout=60s"]).ok();
}

#[test]
fn manager_of_another_release_is_explained_by_both_versions() {
    let test = Test::beside_others();
    let scope = test.scope();
    let namespace = kubectl::Namespace::create(&format!("tp-old-{}", scope.name()));
    namespace.let_user_connect();
    old_manager(namespace.name());
    is_refused(&scope, &["manager 0.1.0 speaks 1 to 1", "tp helm upgrade", namespace.name()], |tp| {
        tp.env("TP_MANAGER_NAMESPACE", namespace.name())
    });
}

#[test]
fn wrong_flags_are_usage_errors() {
    let test = Test::beside_others();
    let scope = test.scope();
    scope.tp(["connect", "--nosuch"]).run().exits(2).says(&["--nosuch"]);
    scope.tp(["connect", "--idle-limit", "soon"]).run().exits(2).says(&["soon", "12h"]);
    scope.tp(["nosuch"]).run().exits(2).says(&["nosuch"]);
    scope.tp(["connect", "--name", "Not A Name"]).run().exits(2).says(&["Not A Name"]);
    scope.docker_run(["--nosuch", "image"]).run().exits(125).says(&["--nosuch"]);
    scope.tp(["docker-run"]).run().exits(125);
    scope.leaves_nothing_within(Duration::ZERO);
}

#[test]
fn wrong_config_file_is_a_usage_error_that_shows_the_line() {
    let test = Test::beside_others();
    let scope = test.scope();
    let folder = scope.home().join("config/tp");
    std::fs::create_dir_all(&folder).expect("the folder is ours");
    std::fs::write(folder.join("config.yaml"), "namespace: shop\nidle-limit: soon\n").expect("the folder is ours");
    let words = ["config.yaml:2", "idle-limit: soon"];
    scope.tp(["connect"]).run().exits(2).says(&words);
    scope.docker_run([given().sample_image.as_str()]).run().exits(125).says(&words);
    scope
        .tp(["connect"])
        .env("TP_IDLE_LIMIT", "soon")
        .env("TP_CONFIG", "/dev/null")
        .run()
        .exits(2)
        .says(&["TP_IDLE_LIMIT"]);
    scope.leaves_nothing_within(Duration::ZERO);
}

#[test]
fn image_that_does_not_exist_leaves_no_connection() {
    let test = Test::beside_others();
    let scope = test.scope();
    let outcome = scope.docker_run(["--rm", "--pull", "never", "tp-e2e.invalid/nosuch:1"]).run().exits(125);
    outcome.says(&["nosuch"]);
    scope.leaves_nothing_within(Duration::from_secs(3));
}
