//! A client of the API server, for the commands that change a cluster from the host.

use std::time::Duration;

use base64::Engine as _;
use kube::config::AuthInfo;
use kube::{Client, Config};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::attach::KubeAccess;
use crate::error::{CliError, Result};

/// How long a TCP connection to the API server may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Makes a client. Nothing is sent yet.
///
/// # Errors
/// When the credentials cannot be used.
pub(crate) fn client(access: &KubeAccess) -> Result<Client> {
    config(access).and_then(Client::try_from).map_err(|e| {
        CliError::user(format!("cannot use the credentials of context `{}`: {e}", access.context))
            .hint("check the certificates and keys of this context in the kubeconfig")
            .because(&e)
    })
}

fn config(access: &KubeAccess) -> Result<Config, kube::Error> {
    let url = |text: &str| text.parse::<http::Uri>().map_err(|e| kube::Error::HttpError(e.into()));
    let base64 = |pem: &[u8]| (!pem.is_empty()).then(|| base64::engine::general_purpose::STANDARD.encode(pem));
    let filled = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let mut config = Config::new(url(&access.server)?);
    if !access.ca_pem.is_empty() {
        let certificates = CertificateDer::pem_slice_iter(&access.ca_pem);
        config.root_cert = Some(certificates.filter_map(Result::ok).map(|der| der.to_vec()).collect());
    }
    config.accept_invalid_certs = access.insecure_skip_tls_verify;
    config.tls_server_name = filled(&access.tls_server_name);
    config.proxy_url = filled(&access.proxy_url).map(|proxy| url(&proxy)).transpose()?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(ANSWER_TIMEOUT);
    config.auth_info = AuthInfo {
        client_certificate_data: base64(&access.client_cert_pem),
        client_key_data: base64(&access.client_key_pem).map(Into::into),
        token: filled(&access.token).map(Into::into),
        username: filled(&access.username),
        password: filled(&access.password).map(Into::into),
        impersonate: filled(&access.impersonate_user),
        impersonate_groups: Some(access.impersonate_groups.clone()).filter(|groups| !groups.is_empty()),
        ..AuthInfo::default()
    };
    Ok(config)
}

/// An error of the API server, or on the way to it, as the user sees it.
pub(crate) fn explain(what: &str, access: &KubeAccess, e: &kube::Error) -> CliError {
    let KubeAccess { context, user, original_server, .. } = access;
    let error = match e {
        kube::Error::Api(status) if status.code == 401 => CliError::user(format!(
            "the API server {original_server} does not accept the credentials of user `{user}` (context `{context}`)"
        ))
        .hint("the token or certificate may have expired: log in again, then check with `kubectl auth whoami`"),
        kube::Error::Api(status) if status.code == 403 => {
            CliError::user(format!("user `{user}` may not {what}: {}", status.message))
                .hint("this takes an administrator of the cluster: choose another context with --context")
        }
        kube::Error::Api(status) => {
            CliError::user(format!("the API server {original_server} did not {what}: {}", status.message))
        }
        other => {
            let mut innermost: &dyn std::error::Error = other;
            while let Some(cause) = innermost.source() {
                innermost = cause;
            }
            CliError::user(format!("cannot reach the API server {original_server} of context `{context}`: {innermost}"))
                .hint("check that the cluster is up and that this machine reaches it: `kubectl get --raw /readyz`")
        }
    };
    error.because(e)
}
