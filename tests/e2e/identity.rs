//! Who a connection belongs to, and that engaging takes a right in the workload's namespace.

use std::time::Duration;

use serde_json::{Value, json};
use tp_tests::given::given;
use tp_tests::kubectl::{self, Namespace};
use tp_tests::process::Outcome;
use tp_tests::test::{Scope, Test};
use tp_tests::wait::until;

use crate::bed::{Bed, SETTLES_WITHIN, connect, handler, intercept};
use crate::install::{admin_tp, install};

/// How long the manager may take to know who a connection belongs to.
const KNOWN_WITHIN: Duration = Duration::from_secs(15);

/// Waits until the connection's status names its user.
fn user_of(scope: &Scope<'_>) -> String {
    let (name, _) = until(KNOWN_WITHIN, "the manager to know the user", || {
        let status = scope.status();
        let name = status["connections"][0]["user"]["name"].as_str().map(str::to_owned);
        name.ok_or_else(|| status["connections"][0]["userProblem"].to_string())
    });
    name
}

/// Who the API server takes the plain user for.
fn plain_user() -> String {
    let review = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview" });
    let review = kubectl::user_creates(&review);
    review["status"]["userInfo"]["username"].as_str().expect("the API server knows everybody").to_owned()
}

/// Does what the hint of a refusal says, as the administrator.
fn grant_as_told(refused: &Outcome) {
    let hint = refused.stderr.lines().find(|line| line.starts_with("hint: ")).expect("a refusal has a hint");
    let commands = hint.split('`').nth(1).expect("the hint has a command");
    for command in commands.split(" && ") {
        let words: Vec<String> = command.split_whitespace().map(|word| word.replace('\'', "")).collect();
        let (program, args) = words.split_first().expect("there is a command");
        assert_eq!(program, "kubectl");
        kubectl::admin(&args.iter().map(String::as_str).collect::<Vec<_>>()).ok();
    }
}

/// What the manager's audit says of a namespace, line by line.
fn audit_of(namespace: &str) -> Vec<Value> {
    let log = kubectl::admin(&["-n", &given().manager_namespace, "logs", "tp-manager-0"]).ok();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["target"] == "audit" && line["namespace"] == namespace).collect()
}

#[test]
fn engaging_takes_a_right_in_the_workloads_namespace() {
    let test = Test::beside_others();
    let bed = Bed::without_right();
    let scope = connect(&test, &bed);
    let _handler = handler(&scope, "laptop");
    let user = plain_user();
    let refused = intercept(&scope, &["--port", "8080"]).exits(1).within(Duration::from_secs(10));
    let refused = refused.says(&[&format!("`{user}`"), "create pods/exec", bed.name(), "create rolebinding"]);
    scope.tp(["wiretap", "web", "--port", "8080"]).run().exits(1).says(&["create pods/exec"]);
    bed.is_as_before();
    assert_eq!(user_of(&scope), user);
    scope.tp(["status"]).run().exits(0).says(&["User:", &user, "system:authenticated"]);

    grant_as_told(&refused);
    // RBAC takes a moment to hear of it.
    until(Duration::from_secs(10), "the right to count", || {
        let engaged = intercept(&scope, &["--port", "8080"]);
        if engaged.code == 0 { Ok(()) } else { Err(engaged.stderr) }
    });
    bed.until_answered_by("laptop", "");
    let audit = audit_of(bed.name());
    for (verb, outcome) in [("intercept", "refused"), ("wiretap", "refused"), ("intercept", "allowed")] {
        let is_it = |line: &&Value| line["verb"] == verb && line["outcome"] == outcome;
        let line = audit.iter().find(is_it).unwrap_or_else(|| panic!("{verb} {outcome}: {audit:?}"));
        assert_eq!((&line["user"], &line["workload"]), (&json!(user), &json!("web")));
    }
    scope.tp(["leave", "--all"]).run().ok();
    bed.is_as_before();
}

#[test]
fn a_forged_review_gains_nothing() {
    let test = Test::beside_others();
    let bed = Bed::without_right();
    let service = format!("https://tp-manager.{}.svc:7444", given().manager_namespace);
    // All ports that a listener gets that asks for any, as the administrator's.
    let forge = format!(
        r#"cat > /tmp/review <<END
{{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {{
  "uid": "1", "operation": "CONNECT", "namespace": "{}", "name": "tp-manager-0",
  "resource": {{"group": "", "version": "v1", "resource": "pods"}}, "subResource": "portforward",
  "userInfo": {{"username": "admin", "groups": ["system:masters"]}},
  "object": {{"kind": "PodPortForwardOptions", "apiVersion": "v1", "ports": [$(seq -s , 32768 60999)]}}}}}}
END
touch /tmp/forge
(while [ -e /tmp/forge ]; do
  for path in / /identity /identity/ /identity/$(head -c 32 /dev/zero | od -An -vtx1 | tr -d ' \n'); do
    curl -sk --max-time 5 -o /tmp/answer -w '%{{http_code}} %{{size_download}}\n' -H 'Expect: 100-continue' \
      --data-binary @/tmp/review {service}$path
  done
done > /tmp/answers 2>&1) < /dev/null > /dev/null 2>&1 &"#,
        given().manager_namespace
    );
    bed.call(&forge).ok();
    until(Duration::from_secs(10), "the first answer", || {
        let answers = bed.call("cat /tmp/answers").stdout;
        if answers.contains("404 0") { Ok(()) } else { Err(answers) }
    });
    let scope = connect(&test, &bed);
    let user = user_of(&scope);
    assert_eq!(user, plain_user(), "the real one counts");
    intercept(&scope, &["--port", "8080"]).exits(1).says(&[&format!("`{user}`"), "create pods/exec"]);
    let answers = bed.call("rm /tmp/forge; sort /tmp/answers | uniq -c").ok();
    let others: Vec<&str> = answers.lines().filter(|line| !line.contains("404 0") && !line.contains("000 0")).collect();
    assert_eq!(others, Vec::<&str>::new(), "answers with something in them");
    // The path that counts is nothing that the user can read.
    kubectl::user(&["get", "validatingwebhookconfigurations"]).exits(1).says(&["forbidden"]);
    bed.is_as_before();
}

#[test]
fn alone_a_connection_is_known_again_after_a_restart_of_the_manager() {
    let test = Test::alone();
    let bed = Bed::get();
    let scope = connect(&test, &bed);
    let user = user_of(&scope);
    let namespace = given().manager_namespace.as_str();
    kubectl::admin(&["-n", namespace, "delete", "pod", "tp-manager-0"]).ok();
    kubectl::admin(&["-n", namespace, "wait", "--for=condition=Ready", "pod/tp-manager-0", "--timeout=60s"]).ok();
    until(SETTLES_WITHIN, "an intercept to be made again", || {
        let engaged = intercept(&scope, &["--port", "8080"]);
        if engaged.code == 0 { Ok(()) } else { Err(engaged.stderr) }
    });
    assert_eq!(user_of(&scope), user);
}

#[test]
fn alone_a_webhook_that_is_reset_is_put_back_and_nothing_else_fails_meanwhile() {
    let test = Test::alone();
    let configuration = format!("validatingwebhookconfiguration/tp-manager-{}", given().manager_namespace);
    let reset = r#"[{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"},
        {"op": "remove", "path": "/webhooks/0/clientConfig/service/path"}]"#;
    kubectl::admin(&["patch", &configuration, "--type=json", "-p", reset]).ok();
    let scope = test.connect();
    assert_eq!(user_of(&scope), plain_user());
    let bundle = "jsonpath={.webhooks[0].clientConfig.caBundle}";
    assert!(!kubectl::admin(&["get", &configuration, "-o", bundle]).ok().is_empty());
}

#[test]
fn alone_with_port_forward_only_whoever_connects_may_engage() {
    let test = Test::alone();
    let scope = test.scope();
    let bed = Bed::without_right();
    let namespace = Namespace::create(&format!("tp-{}", scope.name()));
    let name = namespace.name();
    namespace.let_user_connect();
    install(&scope, name, "install", &["--set", "authorization=port-forward-only"]).exits(0);
    kubectl::admin(&["-n", name, "rollout", "status", "statefulset/tp-manager", "--timeout=60s"]).ok();
    let webhook = format!("tp-manager-{name}");
    kubectl::admin(&["get", "validatingwebhookconfiguration", &webhook]).exits(1).says(&["NotFound"]);

    let connect = ["connect", "--namespace", bed.name()];
    scope.tp(connect).env("TP_MANAGER_NAMESPACE", name).run().ok();
    let _handler = handler(&scope, "laptop");
    intercept(&scope, &["--port", "8080"]).ok();
    bed.until_answered_by("laptop", "");
    assert_eq!(scope.status()["connections"][0].get("user"), None);
    scope.tp(["leave", "--all"]).run().ok();
    scope.tp(["quit"]).run().ok();
    admin_tp(&scope, name, ["uninstall", "--yes", "--only", "cluster"]).run().exits(0);
}
