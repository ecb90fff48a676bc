//! Rights that nobody has, doors that are not there, and credentials that are nowhere to be found.

use std::time::Duration;

use serde_json::{Value, json};
use tp_tests::docker::{self, Spec};
use tp_tests::given::given;
use tp_tests::kubeconfig::Kubeconfig;
use tp_tests::test::{Scope, Test};
use tp_tests::{kubectl, proc};

#[test]
fn no_process_of_the_daemon_container_has_a_capability_once_connected() {
    let test = Test::beside_others();
    let connection = test.connect();
    // A stream of the CLI is a process in the container as well: there is one while this command runs.
    let client = connection.client();
    let held = connection.docker_run(["--rm", "-i", &given().client_image, "cat"]);
    let held = held.input(tp_tests::process::Input::Open).start();
    let pids = docker::processes(&connection.container());
    assert!(pids.len() >= 2, "an init and a daemon: {pids:?}");
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
    held.wait(Duration::from_secs(10)).exits(0);
    drop(client);
    connection.tp(["quit"]).run().ok();
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

/// A certificate for the plain user, signed by the cluster, and its key, both PEM.
fn signed_certificate(name: &str) -> (String, String) {
    let key = rcgen::KeyPair::generate().expect("the machine has random numbers");
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names are fine");
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "developer");
    let request = params.serialize_request(&key).and_then(|request| request.pem()).expect("the request is complete");
    kubectl::apply(&json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": { "name": name },
        "spec": {
            "request": base64(request.as_bytes()), "signerName": "kubernetes.io/kube-apiserver-client",
            "expirationSeconds": 3600, "usages": ["client auth"],
        },
    }));
    kubectl::admin(&["certificate", "approve", name]).ok();
    let path = "jsonpath={.status.certificate}";
    let wait = format!("--for={path}");
    kubectl::admin(&["wait", "csr", name, &wait, "--timeout=20s"]).ok();
    let certificate = kubectl::admin(&["get", "csr", name, "-o", path]).ok();
    kubectl::admin(&["delete", "csr", name]).ok();
    (certificate, base64(key.serialize_pem().as_bytes()))
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for position in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * position) & 0x3f) as usize];
            text.push(if position <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[test]
fn client_key_is_nowhere_in_the_engine_and_connects_as_well() {
    let test = Test::beside_others();
    let scope = test.scope();
    let (certificate, key) = signed_certificate(scope.name());
    let credentials = [("client-certificate-data", certificate.as_str()), ("client-key-data", key.as_str())];
    let path = scope.kubeconfig().credentials(&credentials).save(scope.home());
    scope.tp(["connect"]).kubeconfig(&path).run().ok();
    let client = scope.join(Spec::client());
    assert_eq!(client.sh("curl -sS --max-time 5 http://web/").json()["name"], "web");
    drop(client);
    // The key's own bytes, in the base64 of PEM, and that of the kubeconfig around it.
    let pem = docker_decodes(&scope, &key);
    let line = pem.lines().nth(1).expect("a PEM block has a body");
    is_nowhere(&scope, &[line, &key[..64]]);
    scope.tp(["quit"]).run().ok();
}

/// Decodes base64, by the tool that the client image has.
fn docker_decodes(scope: &Scope<'_>, text: &str) -> String {
    let client = scope.join(Spec::client());
    client.sh_with_input("base64 -d", text.as_bytes()).exits(0).stdout
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
