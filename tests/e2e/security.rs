//! Rights that nobody has, doors that are not there, and credentials that are nowhere to be found.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tp_tests::docker::{self, Spec};
use tp_tests::given::given;
use tp_tests::kubeconfig::Kubeconfig;
use tp_tests::process::Input;
use tp_tests::test::{Scope, Test};
use tp_tests::wait::until;
use tp_tests::{kubectl, proc};

#[test]
fn no_process_of_the_daemon_container_has_a_capability_once_connected() {
    let test = Test::beside_others();
    let connection = test.scope();
    // A connection that is held: the stream of the CLI that holds it is a process in the container as well.
    let held = connection.tp(["connect", "--", "sh", "-c", "echo connected; read -r line"]).input(Input::Open).start();
    until(Duration::from_secs(20), "the command to run", || {
        if held.stdout().contains("connected") { Ok(()) } else { Err(held.stderr()) }
    });
    let pids = docker::processes(&connection.container());
    assert!(pids.len() >= 3, "an init, a daemon and a stream: {pids:?}");
    for pid in pids {
        let status = proc::status(pid).expect("the process runs");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(u64::from_str_radix(&status[set], 16), Ok(0), "{set} of {status:?}");
        }
        assert_eq!(status["NoNewPrivs"], "1", "{status:?}");
        let in_container = status["NSpid"].split_whitespace().last().expect("a process id");
        let uids: Vec<_> = status["Uid"].split_whitespace().collect();
        if in_container != "1" {
            assert_eq!(uids, ["65532"; 4], "{status:?}");
        }
    }
    held.wait(Duration::from_secs(10)).exits(1);
}

#[test]
fn joined_container_finds_no_socket_of_the_daemon() {
    let test = Test::beside_others();
    let connection = test.connect();
    let client = connection.client();
    // Abstract sockets belong to the network namespace, which is shared; named ones to a file system, which is not.
    let sockets = client.sh("tail -n +2 /proc/net/unix").ok();
    for line in sockets.lines() {
        let Some(path) = line.split_whitespace().nth(7) else { continue };
        assert!(!path.starts_with('@'), "an abstract socket: {line}");
        client.sh(&format!("timeout 2 nc -U '{path}' </dev/null")).exits(1);
    }
    let listeners = client.sh("ss -H -l -n -t -u -w -x | grep -v '^u_str' || true").ok();
    assert_eq!(listeners, "", "sockets that wait for others");
    let mounts = docker::inspect(client.id()).and_then(|it| it.mounts).unwrap_or_default();
    assert!(mounts.is_empty(), "{mounts:?}");
    drop(client);
    connection.tp(["quit"]).run().ok();
}

/// Demands that none of `secrets` is in what the engine shows and keeps of the scope's daemon container.
fn is_nowhere(scope: &Scope<'_>, secrets: &[&str]) {
    let container = scope.container();
    let inspected = docker::inspect(&container).expect("the container is there");
    let inspected = serde_json::to_string(&inspected).expect("what came as JSON goes as JSON");
    let files = docker::export(&container);
    let logs = docker::logs(&container, "all");
    // What its processes were given, and what the file systems hold that an export leaves out.
    let looker = Spec::client().user("0").capability("SYS_PTRACE").processes_of(&container).start();
    let looked = looker.sh("cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\\0' '\\n'").stdout;
    let shared = looker.sh("find /proc/1/root/dev/shm /proc/1/root/tmp /proc/1/root/run -type f -exec cat {} +").stdout;
    assert!(looked.contains("/tp\ndaemon\ninit\n"), "the init's own command line is among them: {looked}");
    for secret in secrets {
        assert!(secret.len() >= 16, "short words are found anywhere: {secret}");
        for (place, text) in
            [("docker inspect", &inspected), ("docker logs", &logs), ("processes", &looked), ("tmpfs", &shared)]
        {
            assert!(!text.contains(secret), "a credential is in {place}");
        }
        let found = files.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "a credential is in the container's file system");
    }
}

#[test]
fn token_is_nowhere_in_the_engine() {
    let test = Test::beside_others();
    let connection = test.connect();
    let kubeconfig = Kubeconfig::of_user();
    let token = kubeconfig.token().expect("the plain user has a token");
    is_nowhere(&connection, &[token]);
    connection.tp(["quit"]).run().ok();
}

#[test]
fn client_key_is_nowhere_in_the_engine() {
    let test = Test::beside_others();
    let scope = test.scope();
    // The API server takes the token where it does not know the certificate; the daemon has to hold both.
    let (certificate, key) = (scope.home().join("client.crt"), scope.home().join("client.key"));
    let key_pair = rcgen::KeyPair::generate().expect("the machine has random numbers");
    let params = rcgen::CertificateParams::new(Vec::new()).expect("no names are fine");
    let pem = params.self_signed(&key_pair).expect("the parameters are complete").pem();
    std::fs::write(&certificate, pem).expect("the folder is ours");
    std::fs::write(&key, key_pair.serialize_pem()).expect("the folder is ours");
    let path = |path: &Path| path.to_str().expect("the folder has a plain name").to_owned();
    let kubeconfig = scope.kubeconfig();
    let credentials = [
        ("client-certificate", path(&certificate)),
        ("client-key", path(&key)),
        ("token", kubeconfig.token().expect("the plain user has a token").to_owned()),
    ];
    let credentials = credentials.each_ref().map(|(key, value)| (*key, value.as_str()));
    let path = kubeconfig.clone().credentials(&credentials).save(scope.home());
    scope.tp(["connect"]).kubeconfig(&path).run().ok();
    let pem = key_pair.serialize_pem();
    let lines: Vec<_> = pem.lines().filter(|line| line.len() >= 40).collect();
    assert!(!lines.is_empty(), "a PEM block has a body");
    is_nowhere(&scope, &lines);
    scope.tp(["quit"]).run().ok();
}

#[test]
fn manager_fits_the_restricted_pod_security_level() {
    let _test = Test::beside_others();
    let namespace = given().manager_namespace.as_str();
    // The API server warns, when a namespace is about to be restricted, of the pods in it that would not be let in.
    let label = "pod-security.kubernetes.io/enforce=restricted";
    let label = kubectl::admin(&["label", "namespace", namespace, label, "--overwrite", "--dry-run=server"]).exits(0);
    assert!(!label.stderr.contains("violate"), "{label}");
    // That this is what the check would find: a pod that runs as it likes is warned of.
    let level = "pod-security.kubernetes.io/warn=restricted";
    let level = kubectl::admin(&["label", "namespace", "kube-system", level, "--overwrite", "--dry-run=server"]);
    assert_eq!(level.code, 0, "{level}");
    let pod = kubectl::admin(&["-n", namespace, "get", "pod", "tp-manager-0", "-o", "json"]).json();
    for container in pod["spec"]["containers"].as_array().expect("a pod has containers") {
        for resource in ["/resources/requests/cpu", "/resources/requests/memory", "/resources/limits/memory"] {
            assert!(container.pointer(resource).is_some(), "{resource}: {container}");
        }
        for probe in ["readinessProbe", "livenessProbe"] {
            assert!(container.get(probe).is_some(), "{probe}: {container}");
        }
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true, "{container}");
    }
}

#[test]
fn door_for_clients_is_closed_to_other_pods() {
    let _test = Test::beside_others();
    let manager = kubectl::pod_ip(&given().manager_namespace, "app.kubernetes.io/name=tp-manager");
    let script = format!("exec 3<>/dev/tcp/{manager}/7400");
    kubectl::admin(&["exec", "deploy/redis", "--", "bash", "-c", &script]).exits(1).says(&["Connection refused"]);
    // The agents' door next to it is open: it is not that nothing could be reached.
    let script = format!("exec 3<>/dev/tcp/{manager}/7443");
    kubectl::admin(&["exec", "deploy/redis", "--", "bash", "-c", &script]).ok();
}

#[test]
fn plain_user_may_do_nothing_but_port_forward_to_the_manager() {
    let _test = Test::beside_others();
    let namespace = given().manager_namespace.as_str();
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": { "namespace": namespace },
    });
    let review = kubectl::user_creates(&review);
    let rules = review["status"]["resourceRules"].as_array().expect("rules").clone();
    // Every user may ask who they are and what they may do.
    let is_about_oneself = |rule: &&Value| {
        let groups = rule["apiGroups"].as_array();
        groups.is_some_and(|it| {
            it.iter().all(|group| group == "authorization.k8s.io" || group == "authentication.k8s.io")
        })
    };
    let mut others: Vec<_> = rules.iter().filter(|rule| !is_about_oneself(rule)).collect();
    others.dedup();
    let [rule] = others.as_slice() else { panic!("one right and no other: {others:#?}") };
    assert_eq!(rule["resources"], json!(["pods/portforward"]));
    assert_eq!(rule["resourceNames"], json!(["tp-manager-0"]));
    let mut verbs: Vec<_> = rule["verbs"].as_array().expect("verbs").iter().filter_map(Value::as_str).collect();
    verbs.sort_unstable();
    assert_eq!(verbs, ["create", "get"]);
    for question in [["get", "pods"], ["list", "services"], ["get", "secrets"], ["create", "pods/exec"]] {
        kubectl::user(&["auth", "can-i", question[0], question[1], "-n", "default"]).exits(1);
    }
}
