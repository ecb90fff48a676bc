//! Runs a kubeconfig's exec plugin once, on the host (`client.authentication.k8s.io`, `v1` and `v1beta1`).
//!
//! What it prints is used until it expires; the daemon has no way to run it again.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::model::{Cluster, Exec, InteractiveMode, Secret};
use crate::error::{CliError, Result};

/// How long a plugin may take. Some wait for a login in the browser.
const PLUGIN_LIMIT: Duration = Duration::from_secs(300);
/// Largest answer of a plugin: a token and a certificate chain fit many times.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// The extension of a cluster whose contents a plugin gets as `spec.cluster.config`.
const CONFIG_EXTENSION: &str = "client.authentication.k8s.io/exec";

/// What a plugin gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Credential {
    pub(super) token: Secret<String>,
    pub(super) client_cert_pem: Vec<u8>,
    pub(super) client_key_pem: Secret<Vec<u8>>,
    pub(super) expires_at: Option<Timestamp>,
}

/// Runs `exec` for `user`. `dir` is that of the kubeconfig, `ca_pem` the cluster's authorities.
///
/// # Errors
/// User errors that name the command and repeat the kubeconfig's install hint.
pub(super) async fn run(exec: &Exec, user: &str, dir: &Path, cluster: &Cluster, ca_pem: &[u8]) -> Result<Credential> {
    let interactive = interactive(exec, user)?;
    let info = exec_info(exec, user, interactive, cluster, ca_pem)?;
    let program = program(&exec.command, dir);
    let mut command = tokio::process::Command::new(&program);
    command
        .args(&exec.args)
        .envs(exec.env.iter().map(|var| (&var.name, &var.value.0)))
        .env("KUBERNETES_EXEC_INFO", info)
        .stdin(if interactive { Stdio::inherit() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true);
    let what = || format!("the credential plugin `{}` of user `{user}`", exec.command);
    let hinted =
        |error: CliError| if exec.install_hint.is_empty() { error } else { error.hint(exec.install_hint.trim()) };

    let child = command.spawn().map_err(|e| {
        let error = match e.kind() {
            std::io::ErrorKind::NotFound => CliError::user(format!("{} is not installed", what())),
            _ => CliError::user(format!("{} cannot be started: {e}", what())).because(&e),
        };
        hinted(error)
    })?;
    let output = match tokio::time::timeout(PLUGIN_LIMIT, child.wait_with_output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(e)) => return Err(CliError::user(format!("{} failed: {e}", what())).because(&e)),
        Err(_) => {
            let limit = PLUGIN_LIMIT.as_secs();
            return Err(CliError::user(format!("{} did not answer within {limit} s", what())));
        }
    };
    if !output.status.success() {
        return Err(hinted(
            CliError::user(format!("{} failed: {}", what(), output.status))
                .hint("run `kubectl get --raw /version` to see whether kubectl can log in"),
        ));
    }
    parse(&output.stdout, &exec.api_version).map_err(|problem| CliError::user(format!("{} {problem}", what())))
}

/// Whether the plugin gets the terminal.
fn interactive(exec: &Exec, user: &str) -> Result<bool> {
    let terminal = std::io::stdin().is_terminal();
    match exec.interactive_mode {
        Some(InteractiveMode::Never) => Ok(false),
        Some(InteractiveMode::IfAvailable) => Ok(terminal),
        Some(InteractiveMode::Always) if terminal => Ok(true),
        Some(InteractiveMode::Always) => Err(CliError::user(format!(
            "the credential plugin `{}` of user `{user}` wants a terminal, and standard input is none",
            exec.command
        ))),
        None if exec.api_version == V1 => {
            Err(CliError::user(format!("user `{user}`: `interactiveMode` has to be set for an exec plugin of {V1}")))
        }
        None => Ok(terminal),
    }
}

const V1: &str = "client.authentication.k8s.io/v1";
const V1_BETA1: &str = "client.authentication.k8s.io/v1beta1";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExecInfo<'a> {
    kind: &'static str,
    api_version: &'a str,
    spec: ExecSpec<'a>,
}

#[derive(Serialize)]
struct ExecSpec<'a> {
    interactive: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<ExecCluster<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct ExecCluster<'a> {
    server: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    tls_server_name: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    insecure_skip_tls_verify: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    certificate_authority_data: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    proxy_url: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    config: Option<&'a serde_json::Value>,
}

/// The value of `KUBERNETES_EXEC_INFO`.
fn exec_info(exec: &Exec, user: &str, interactive: bool, cluster: &Cluster, ca_pem: &[u8]) -> Result<String> {
    if exec.api_version != V1 && exec.api_version != V1_BETA1 {
        return Err(CliError::user(format!(
            "user `{user}`: exec plugins of `{}` are not supported, only those of {V1} and {V1_BETA1}",
            exec.api_version
        ))
        .hint(format!("update `{}` and the kubeconfig entry it made", exec.command)));
    }
    let cluster = exec.provide_cluster_info.then(|| ExecCluster {
        server: &cluster.server,
        tls_server_name: &cluster.tls_server_name,
        insecure_skip_tls_verify: cluster.insecure_skip_tls_verify,
        certificate_authority_data: base64::engine::general_purpose::STANDARD.encode(ca_pem),
        proxy_url: &cluster.proxy_url,
        config: cluster.extensions.iter().find(|e| e.name == CONFIG_EXTENSION).map(|e| &e.extension),
    });
    let info =
        ExecInfo { kind: "ExecCredential", api_version: &exec.api_version, spec: ExecSpec { interactive, cluster } };
    Ok(serde_json::to_string(&info).expect("strings and booleans"))
}

/// A command with a path separator is relative to the kubeconfig's directory; a bare one is found on PATH.
fn program(command: &str, dir: &Path) -> OsString {
    let path = PathBuf::from(command);
    let bare = path.components().count() == 1 && !command.contains('/');
    if bare || path.is_absolute() { command.into() } else { dir.join(path).into() }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct ExecCredential {
    api_version: String,
    kind: String,
    status: Option<ExecStatus>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ExecStatus {
    expiration_timestamp: Option<Timestamp>,
    token: String,
    client_certificate_data: String,
    client_key_data: String,
}

/// Reads what a plugin printed; the error is the end of a sentence.
fn parse(stdout: &[u8], api_version: &str) -> Result<Credential, String> {
    if stdout.len() > MAX_ANSWER_BYTES {
        return Err(format!("printed more than {MAX_ANSWER_BYTES} bytes"));
    }
    // The text may hold a token: the parser's own message does not repeat it.
    let answer: ExecCredential = serde_json::from_slice(stdout)
        .map_err(|e| format!("printed no valid ExecCredential (line {}, column {})", e.line(), e.column()))?;
    if answer.kind != "ExecCredential" || answer.api_version != api_version {
        return Err(format!(
            "printed `{}` of `{}` instead of ExecCredential of `{api_version}`",
            answer.kind, answer.api_version
        ));
    }
    let Some(status) = answer.status else { return Err("printed an ExecCredential without a status".to_owned()) };
    if status.client_certificate_data.is_empty() != status.client_key_data.is_empty() {
        return Err("printed a client certificate or key without the other".to_owned());
    }
    if status.token.is_empty() && status.client_key_data.is_empty() {
        return Err("printed neither a token nor a client certificate".to_owned());
    }
    Ok(Credential {
        token: Secret(status.token),
        client_cert_pem: status.client_certificate_data.into_bytes(),
        client_key_pem: Secret(status.client_key_data.into_bytes()),
        expires_at: status.expiration_timestamp,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_checked() {
        let answer = |status: &str| format!(r#"{{"apiVersion":"{V1}","kind":"ExecCredential","status":{status}}}"#);
        let good =
            parse(answer(r#"{"token":"t","expirationTimestamp":"2030-01-01T00:00:00Z"}"#).as_bytes(), V1).unwrap();
        assert_eq!(good.token.0, "t");
        assert_eq!(good.expires_at.unwrap().to_string(), "2030-01-01T00:00:00Z");
        for bad in ["null", "{}", r#"{"clientCertificateData":"c"}"#] {
            assert!(parse(answer(bad).as_bytes(), V1).is_err(), "{bad}");
        }
        assert!(parse(answer(r#"{"token":"t"}"#).as_bytes(), V1_BETA1).unwrap_err().contains("instead of"));
        let problem = parse(b"secret-token\n", V1).unwrap_err();
        assert!(!problem.contains("secret"), "{problem}");
    }

    #[test]
    fn cluster_info_is_given_when_asked_for() {
        let mut exec = Exec { api_version: V1.into(), command: "x".into(), ..Exec::default() };
        let cluster = Cluster { server: "https://a:6443".into(), tls_server_name: "b".into(), ..Cluster::default() };
        assert_eq!(
            exec_info(&exec, "u", false, &cluster, b"ca").unwrap(),
            format!(r#"{{"kind":"ExecCredential","apiVersion":"{V1}","spec":{{"interactive":false}}}}"#)
        );
        exec.provide_cluster_info = true;
        let info = exec_info(&exec, "u", false, &cluster, b"ca").unwrap();
        assert!(
            info.contains(
                r#""cluster":{"server":"https://a:6443","tls-server-name":"b","certificate-authority-data":"Y2E="}"#
            ),
            "{info}"
        );
        exec.api_version = "client.authentication.k8s.io/v1alpha1".into();
        assert!(exec_info(&exec, "u", false, &cluster, b"").is_err());
    }

    #[cfg(unix)]
    #[test]
    fn relative_commands_are_found_beside_the_kubeconfig() {
        assert_eq!(program("aws", Path::new("/k")), "aws");
        assert_eq!(program("./bin/login", Path::new("/k")), "/k/./bin/login");
        assert_eq!(program("/opt/login", Path::new("/k")), "/opt/login");
    }
}
