//! What is wrong with a kubeconfig is found before the engine is asked for anything.

use crate::fixture::{Home, KUBECONFIG, stderr};

fn fails(home: &Home, line: &str) -> String {
    let assert = home.tp(line).assert().code(1).stdout("");
    home.anonymous(&stderr(&assert))
}

#[test]
fn no_kubeconfig() {
    let home = Home::empty();
    assert_eq!(
        fails(&home, "connect"),
        "error: no kubeconfig: there is no file HOME/.kube/config\n\
         hint: say which cluster to connect to with --kubeconfig FILE or the variable KUBECONFIG\n"
    );
    let error = fails(&home, "connect --kubeconfig nope");
    assert!(error.starts_with("error: cannot read the kubeconfig nope: "), "{error}");
}

#[test]
fn no_such_context() {
    assert_eq!(
        fails(&Home::with_kubeconfig(), "connect --context prod"),
        "error: no context `prod` in HOME/.kube/config\nhint: contexts there: dev, other\n"
    );
}

#[test]
fn no_current_context() {
    let home = Home::empty();
    home.write(".kube/config", &KUBECONFIG.replace("current-context: dev\n", ""));
    let error = fails(&home, "connect");
    assert!(error.starts_with("error: HOME/.kube/config names no current context\n"), "{error}");
    assert!(error.contains("--context NAME"), "{error}");
}

#[test]
fn broken_file_does_not_show_its_secrets() {
    let home = Home::empty();
    home.write(".kube/config", &KUBECONFIG.replace("{token: s3cret-token}", "{token: [s3cret-token]}"));
    let error = fails(&home, "connect -v");
    assert!(error.starts_with("error: HOME/.kube/config:16:"), "{error}");
    assert!(error.contains("not a valid kubeconfig: "), "{error}");
    assert!(!error.contains("s3cret"), "{error}");
}

#[test]
fn expired_certificate() {
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    let home = Home::empty();
    home.write("c.pem", &params.self_signed(&key).unwrap().pem());
    home.write("k.pem", &key.serialize_pem());
    let user = "{client-certificate: ../c.pem, client-key: ../k.pem}";
    home.write(".kube/config", &KUBECONFIG.replace("{token: s3cret-token}", user));
    assert_eq!(
        fails(&home, "connect"),
        "error: the client certificate of user `u` (context `dev`) expired on 2021-01-01 00:00 UTC\n\
         hint: renew it, or log in to the cluster again\n"
    );
}

#[test]
fn plugin_that_is_not_installed() {
    let home = Home::empty();
    let user = "{exec: {apiVersion: client.authentication.k8s.io/v1, command: get-token, interactiveMode: Never, installHint: brew it}}";
    home.write(".kube/config", &KUBECONFIG.replace("{token: s3cret-token}", user));
    assert_eq!(
        fails(&home, "connect"),
        "error: the credential plugin `get-token` of user `u` is not installed\nhint: brew it\n"
    );
}
