use std::fs;

use super::*;

/// A directory with the given files; `DIR` in them is its path.
struct Home(tempfile::TempDir);

impl Home {
    fn with(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let text = text.replace("DIR", dir.path().to_str().unwrap());
            fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
            fs::write(dir.path().join(name), text).unwrap();
        }
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn load(&self, name: &str) -> Result<Kubeconfig> {
        Kubeconfig::load(Some(&self.path(name)), |_| None)
    }

    async fn access(&self, name: &str, context: Option<&str>) -> Result<KubeAccess> {
        self.load(name)?.select(context)?.access(now(), |_| None).await
    }
}

fn now() -> Timestamp {
    "2025-01-01T00:00:00Z".parse().unwrap()
}

/// A client certificate and its key, PEM, valid through 2024 to the given year.
fn certificate(until: i32) -> (String, String) {
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.not_before = rcgen::date_time_ymd(2024, 1, 1);
    params.not_after = rcgen::date_time_ymd(until, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// A kubeconfig with one context `c`, cluster `k` and user `u`.
fn config(cluster: &str, user: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         contexts:\n- name: c\n  context: {{cluster: k, user: u, namespace: web}}\n\
         clusters:\n- name: k\n  cluster: {cluster}\nusers:\n- name: u\n  user: {user}\n"
    )
}

const SERVER: &str = "{server: 'https://k:6443'}";

#[tokio::test]
async fn token_user_of_the_current_context() {
    let home = Home::with(&[("config", &config(SERVER, "{token: t0p-secret, as: jane, as-groups: [a, b]}"))]);
    let selected = home.load("config").unwrap().select(None).unwrap();
    assert_eq!(selected.namespace.as_ref().unwrap().as_str(), "web");
    let access = selected.access(now(), |_| None).await.unwrap();
    assert_eq!((access.server.as_str(), access.token.as_str()), ("https://k:6443", "t0p-secret"));
    assert_eq!(access.impersonate_user, "jane");
    assert_eq!(access.impersonate_groups, ["a", "b"]);
    assert!(!format!("{selected:?} {access:?}").contains("t0p-secret"), "credentials show in Debug");
}

#[tokio::test]
async fn files_are_relative_to_the_kubeconfig_that_names_them() {
    let (cert, key) = certificate(2026);
    let config = config(
        "{server: 'https://k', certificate-authority: pki/ca.pem, tls-server-name: n}",
        "{client-certificate: pki/c.pem, client-key: DIR/pki/k.pem, tokenFile: token}",
    );
    let files = [
        ("config", config.as_str()),
        ("pki/ca.pem", &cert),
        ("pki/c.pem", &cert),
        ("pki/k.pem", &key),
        ("token", "t\n"),
    ];
    let access = Home::with(&files).access("config", None).await.unwrap();
    assert_eq!(access.ca_pem, cert.as_bytes());
    assert_eq!(access.client_key_pem, key.as_bytes());
    assert_eq!((access.token.as_str(), access.tls_server_name.as_str()), ("t", "n"));
}

#[tokio::test]
async fn data_beats_files() {
    let config =
        config("{server: 'https://k', certificate-authority: /nonexistent, certificate-authority-data: '%'}", "{}");
    let (cert, _) = certificate(2026);
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &cert);
    let home = Home::with(&[("config", &config.replace('%', &encoded))]);
    assert_eq!(home.access("config", None).await.unwrap().ca_pem, cert.as_bytes());
}

#[tokio::test]
async fn expired_certificate_is_refused_with_the_date() {
    let (cert, key) = certificate(2024 + 1);
    let later: Timestamp = "2025-01-02T00:00:00Z".parse().unwrap();
    let config = config(SERVER, "{client-certificate: c.pem, client-key: k.pem}");
    let home = Home::with(&[("config", &config), ("c.pem", &cert), ("k.pem", &key)]);
    let error = home.load("config").unwrap().select(None).unwrap().access(later, |_| None).await.unwrap_err();
    assert_eq!(error.message(), "the client certificate of user `u` (context `c`) expired on 2025-01-01 00:00 UTC");
    assert_eq!(error.exit_code(), 1);
}

#[tokio::test]
async fn half_credentials_and_missing_files_are_named() {
    let (cert, _) = certificate(2026);
    for (user, expected) in [
        ("{client-certificate: c.pem}", "user `u` has a client certificate but no key"),
        ("{client-key: c.pem}", "user `u` has a client key but no certificate"),
        ("{client-certificate: missing.pem, client-key: c.pem}", "the client certificate of user `u` cannot be read: "),
        ("{tokenFile: missing}", "the token file of user `u` cannot be read: "),
        ("{auth-provider: {name: gcp}}", "user `u` logs in by the auth provider `gcp`, which Kubernetes has removed"),
        (
            "{exec: {apiVersion: v0, command: x, interactiveMode: Never}}",
            "user `u`: exec plugins of `v0` are not supported",
        ),
    ] {
        let home = Home::with(&[("config", &config(SERVER, user)), ("c.pem", &cert)]);
        let error = home.access("config", None).await.unwrap_err();
        assert!(error.message().starts_with(expected), "{error}");
    }
}

#[test]
fn unknown_context_lists_those_there_are() {
    let text = "contexts: [{name: b}, {name: a}]\nclusters: null\n";
    let home = Home::with(&[("config", text)]);
    let config = home.load("config").unwrap();
    let error = config.select(Some("x")).unwrap_err();
    assert!(error.message().starts_with("no context `x` in "), "{error}");
    assert!(error.render(false).contains("contexts there: a, b"), "{error:?}");
    let error = config.select(None).unwrap_err();
    assert!(error.message().ends_with("names no current context"), "{error}");
}

#[test]
fn dangling_names_are_errors() {
    for (text, expected) in [
        ("contexts: [{name: c, context: {cluster: k}}]", "context `c` names the cluster `k`, which is not in"),
        (
            "contexts: [{name: c, context: {cluster: k, user: u}}]\nclusters: [{name: k}]",
            "context `c` names the user `u`, who is not in",
        ),
        (
            "contexts: [{name: c, context: {cluster: k, namespace: A}}]\nclusters: [{name: k}]",
            "context `c`: `A` cannot name a namespace",
        ),
    ] {
        let error = Home::with(&[("config", text)]).load("config").unwrap().select(Some("c")).unwrap_err();
        assert!(error.message().starts_with(expected), "{error}");
    }
}

#[test]
fn servers_that_are_no_urls_are_named() {
    for (cluster, expected) in [
        ("{}", "names no server"),
        ("{server: 'ftp://k'}", "no http(s) URL"),
        ("{server: 'https://'}", "no http(s) URL"),
    ] {
        let home = Home::with(&[("config", &config(cluster, "{}"))]);
        let error = home.load("config").unwrap().select(None).unwrap().server().unwrap_err();
        assert!(error.message().contains(expected), "{error}");
    }
    let home = Home::with(&[("config", &config("{server: 'k:6443', certificate-authority: ca}", "{}"))]);
    assert_eq!(home.load("config").unwrap().select(None).unwrap().server().unwrap(), "https://k:6443");
}

#[test]
fn first_file_of_the_list_wins_and_missing_ones_are_skipped() {
    let home = Home::with(&[
        ("a", "current-context: c\ncontexts: [{name: c, context: {cluster: k, user: u, namespace: a}}]"),
        ("b", &config(SERVER, "{token: t}")),
    ]);
    let list = std::env::join_paths([home.path("none"), home.path("a"), home.path("b")]).unwrap();
    let var = |name: &str| (name == "KUBECONFIG").then(|| list.to_str().unwrap().to_owned());
    let selected = Kubeconfig::load(None, var).unwrap().select(None).unwrap();
    assert_eq!(selected.namespace.as_ref().unwrap().as_str(), "a");
    assert_eq!(selected.server().unwrap(), "https://k:6443");
}

#[test]
fn no_file_at_all_says_where_it_looked() {
    let error = Kubeconfig::load(None, |name| (name == "HOME").then(|| "/nonexistent".to_owned())).unwrap_err();
    assert_eq!(error.message(), "no kubeconfig: there is no file /nonexistent/.kube/config");
    let error = Kubeconfig::load(None, |name| (name == "KUBECONFIG").then(|| "/no/a:/no/b".to_owned())).unwrap_err();
    assert_eq!(error.message(), "no kubeconfig: KUBECONFIG names no file /no/a or /no/b");
    assert!(Kubeconfig::load(None, |_| None).is_err());
    assert!(Kubeconfig::load(Some(Path::new("/no/a")), |_| None).unwrap_err().message().contains("/no/a"));
}

#[test]
fn broken_file_is_named_with_its_line_and_without_its_contents() {
    let home = Home::with(&[("config", "users:\n- name: u\n  user: {token: [s3cret]}\n")]);
    let error = home.load("config").unwrap_err();
    assert!(error.message().contains("config:3:"), "{error}");
    assert!(!error.render(true).contains("s3cret"), "{error:?}");
}

#[test]
fn extension_of_the_cluster_sets_and_is_checked() {
    let with = |extension: &str| {
        let cluster =
            format!("{{server: 'https://k', extensions: [{{name: other}}, {{name: tp, extension: {extension}}}]}}");
        Home::with(&[("config", &config(&cluster, "{}"))]).load("config").unwrap().select(None)
    };
    let (_, layer) = with("{apiVersion: v1, manager-namespace: tools, idle-limit: 1h}").unwrap().settings.unwrap();
    assert_eq!(layer.manager_namespace.unwrap().as_str(), "tools");
    assert!(with("null").unwrap().settings.is_none());
    let error = with("{idle-limits: 1h}").unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.message().contains("extension `tp` of cluster `k`: unknown field `idle-limits`"), "{error}");
}

#[cfg(unix)]
#[tokio::test]
async fn exec_plugin_runs_on_the_host() {
    use std::os::unix::fs::PermissionsExt as _;

    let script = "#!/bin/sh\n[ \"$MODE\" = good ] || exit 3\necho \"$KUBERNETES_EXEC_INFO\" > DIR/info\n\
        echo '{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"kind\":\"ExecCredential\",\
        \"status\":{\"token\":\"t\",\"expirationTimestamp\":\"2030-01-01T00:00:00Z\"}}'\n";
    let user = |mode: &str, command: &str| {
        let user = format!(
            "{{exec: {{apiVersion: client.authentication.k8s.io/v1, command: {command}, interactiveMode: Never, \
             installHint: get it, provideClusterInfo: true, env: [{{name: MODE, value: {mode}}}]}}}}"
        );
        config(SERVER, &user)
    };
    let home = Home::with(&[
        ("good", &user("good", "./login")),
        ("bad", &user("bad", "./login")),
        ("absent", &user("good", "tp-no-such-plugin")),
        ("login", script),
    ]);
    fs::set_permissions(home.path("login"), fs::Permissions::from_mode(0o755)).unwrap();

    let access = home.access("good", None).await.unwrap();
    assert_eq!((access.token.as_str(), access.expires_at), ("t", 1_893_456_000));
    let info = fs::read_to_string(home.path("info")).unwrap();
    assert!(info.contains(r#""cluster":{"server":"https://k:6443"}"#), "{info}");

    let error = home.access("bad", None).await.unwrap_err();
    assert!(error.message().contains("the credential plugin `./login` of user `u` failed: exit status: 3"), "{error}");
    let error = home.access("absent", None).await.unwrap_err();
    assert!(error.message().ends_with("`tp-no-such-plugin` of user `u` is not installed"), "{error}");
    assert!(error.render(false).contains("get it"), "{error:?}");
}

#[tokio::test]
async fn proxy_of_the_cluster_beats_the_environment() {
    let var = |name: &str| (name == "HTTPS_PROXY").then(|| "http://env:1".to_owned());
    for (cluster, expected) in
        [(SERVER, "http://env:1"), ("{server: 'https://k', proxy-url: 'socks5://p:2'}", "socks5://p:2")]
    {
        let home = Home::with(&[("config", &config(cluster, "{}"))]);
        let access = home.load("config").unwrap().select(None).unwrap().access(now(), var).await.unwrap();
        assert_eq!(access.proxy_url, expected);
    }
}
