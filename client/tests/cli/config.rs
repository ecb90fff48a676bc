use serde_json::Value;

use crate::fixture::{Home, stderr, stdout};

fn view(home: &Home, line: &str, vars: &[(&str, &str)]) -> Value {
    let mut command = home.tp(&format!("config view --output json {line}"));
    command.envs(vars.iter().copied());
    serde_json::from_str(&stdout(&command.assert().success())).unwrap()
}

fn entry(view: &Value, key: &str) -> (String, String) {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    (text(&view[key]["value"]), text(&view[key]["source"]))
}

#[test]
fn every_source_beats_the_ones_before() {
    let home = Home::empty();
    let is = |line: &str, vars: &[(&str, &str)], key: &str, value: &str, source: &str| {
        let (found, from) = entry(&view(&home, line, vars), key);
        assert_eq!((found.as_str(), home.anonymous(&from).as_str()), (value, source), "{line} {vars:?}");
    };
    is("", &[], "idle-limit", "12h", "default");
    is("", &[], "namespace", "default", "default");
    home.write(".kube/config", crate::fixture::KUBECONFIG);
    is("", &[], "namespace", "web", "context dev");
    is("", &[], "name", "dev", "context dev");
    home.write(".config/tp/config.yaml", "idle-limit: 1h\nnamespace: file\n");
    is("", &[], "idle-limit", "1h", "HOME/.config/tp/config.yaml");
    is("", &[], "namespace", "file", "HOME/.config/tp/config.yaml");
    is("--context other", &[], "idle-limit", "30m", "HOME/.kube/config, cluster extension tp");
    is("", &[("TP_CONTEXT", "other")], "manager-namespace", "tools", "HOME/.kube/config, cluster extension tp");
    is("--context other", &[("TP_IDLE_LIMIT", "5m")], "idle-limit", "5m", "TP_IDLE_LIMIT");
    is("", &[("TP_NETWORKS", "a,b")], "networks", r#"["a","b"]"#, "TP_NETWORKS");
    is("", &[("XDG_CONFIG_HOME", "/nonexistent")], "idle-limit", "12h", "default");
    let other = home.write("other.yaml", "idle-limit: 2h\n");
    is("", &[("TP_CONFIG", other.to_str().unwrap())], "idle-limit", "2h", "HOME/other.yaml");
    is("--config other.yaml", &[], "idle-limit", "2h", "other.yaml");
}

#[test]
fn text_and_yaml_read_back() {
    let home = Home::with_kubeconfig();
    let text = stdout(&home.tp("config view").assert().success());
    insta::assert_snapshot!(home.anonymous(&text));
    let yaml = stdout(&home.tp("config view --output yaml").assert().success());
    assert!(yaml.contains("idle-limit:\n  value: 12h\n  source: default\n"), "{yaml}");
    // What it prints can be a configuration file.
    home.write("copy.yaml", &text);
    home.tp("config view --config copy.yaml").assert().success();
}

#[test]
fn bad_file_is_named_with_its_line() {
    let home = Home::with_kubeconfig();
    home.write(".config/tp/config.yaml", "# mine\nidle-limit: soon\n");
    for (line, code) in [("connect", 2), ("config view", 2), ("docker-run img", 125), ("helm install", 2)] {
        let assert = home.tp(line).assert().code(code);
        assert_eq!(
            home.anonymous(&stderr(&assert)),
            "error: HOME/.config/tp/config.yaml:2:13: `soon` is not a duration: write it like `60s`, `12h` or `1h30m`\n  \
               2 | idle-limit: soon\n    \
                 |             ^\n",
            "{line}"
        );
    }
    // Nothing is read that is not needed: these go on.
    home.tp("version").assert().success();
    home.tp("completion bash").assert().success();
}

#[test]
fn bad_variable_and_missing_named_file_exit_2() {
    let home = Home::with_kubeconfig();
    let assert = home.tp("connect").env("TP_LOG_LEVEL", "loud").assert().code(2);
    assert_eq!(
        stderr(&assert),
        "error: the variable TP_LOG_LEVEL: `loud` is not one of error, warn, info, debug, trace\n"
    );
    let assert = home.tp("connect --config none.yaml").assert().code(2);
    assert!(stderr(&assert).contains("cannot read the configuration file none.yaml: "), "{}", stderr(&assert));
}

#[test]
fn bad_extension_of_the_cluster_exits_2() {
    let home = Home::empty();
    home.write(".kube/config", &crate::fixture::KUBECONFIG.replace("idle-limit", "idle-limits"));
    let assert = home.tp("connect --context other").assert().code(2);
    assert!(
        stderr(&assert).contains("extension `tp` of cluster `other`: unknown field `idle-limits`"),
        "{}",
        stderr(&assert)
    );
    // Another cluster's settings are of no account.
    home.tp("config view --context dev").assert().success();
}
