use crate::fixture::{Home, stderr};

#[test]
fn missing_helm_is_named_with_where_to_get_it() {
    for line in ["helm install", "helm upgrade", "helm uninstall", "helm lint"] {
        let assert = Home::with_kubeconfig().tp(line).assert().code(1);
        assert!(stderr(&assert).starts_with("error: no `helm` on the PATH"), "{line}: {}", stderr(&assert));
        assert!(stderr(&assert).contains("https://helm.sh/docs/intro/install"), "{line}: {}", stderr(&assert));
    }
}

#[test]
fn helm_gets_the_chart_the_context_and_the_values() {
    let home = Home::with_kubeconfig();
    home.script("helm", "test -f \"$3/Chart.yaml\" || exit 1\nshift 3\nprintf '%s ' \"$@\" > \"$HOME/said\"");
    let line = "helm upgrade --context other --set a=1 --set b=2 -f v.yaml --reuse-values --timeout 90s -- --atomic";
    let assert = home.tp(line).assert().success();
    assert_eq!(
        std::fs::read_to_string(home.path("said")).unwrap(),
        "--namespace tools --kube-context other --values v.yaml --set a=1 --set b=2 --wait --timeout=90s --atomic --reuse-values "
    );
    assert!(stderr(&assert).contains("Upgraded the traffic manager in tools of context other"), "{}", stderr(&assert));
}

#[test]
fn what_helm_says_is_shown_with_advice() {
    let home = Home::with_kubeconfig();
    home.script("helm", "echo 'Error: UPGRADE FAILED: \"tp-manager\" has no deployed releases' >&2; exit 1");
    let assert = home.tp("helm upgrade").assert().code(1);
    assert_eq!(
        stderr(&assert),
        "error: helm upgrade failed\n  Error: UPGRADE FAILED: \"tp-manager\" has no deployed releases\n\
         hint: it is not installed there: `tp helm install` does so, --manager-namespace names another place\n"
    );
}

#[test]
fn lint_needs_no_cluster() {
    let home = Home::empty();
    home.script("helm", "test \"$1\" = lint && test -f \"$2/values.schema.json\"");
    home.tp("helm lint --set log.level=debug").assert().success();
}
