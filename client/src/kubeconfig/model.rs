//! The kubeconfig file format (`kubectl config`, `v1` of `k8s.io/client-go/tools/clientcmd/api`), as far as tp reads it.

use std::fmt;

use base64::Engine as _;
use serde::{Deserialize, Deserializer};

/// A credential: `Debug` shows nothing of it.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Secret<T>(pub(crate) T);

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Secret<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self)
    }
}

/// Bytes that the file holds in base64; an empty string counts as absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Data(pub(crate) Option<Secret<Vec<u8>>>);

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(Self(None)) };
        let text: String = text.split_ascii_whitespace().collect();
        if text.is_empty() {
            return Ok(Self(None));
        }
        let bytes = base64::engine::general_purpose::STANDARD.decode(text);
        bytes.map(|bytes| Self(Some(Secret(bytes)))).map_err(|_| serde::de::Error::custom("not valid base64"))
    }
}

/// Reads `null` as the default: other tools write absent lists so.
fn or_null<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// One file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct File {
    /// Context in use.
    #[serde(deserialize_with = "or_null")]
    pub(crate) current_context: String,
    #[serde(deserialize_with = "or_null")]
    pub(crate) contexts: Vec<NamedContext>,
    #[serde(deserialize_with = "or_null")]
    pub(crate) clusters: Vec<NamedCluster>,
    #[serde(deserialize_with = "or_null")]
    pub(crate) users: Vec<NamedUser>,
}

/// An entry of `contexts`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct NamedContext {
    pub(crate) name: String,
    #[serde(default, deserialize_with = "or_null")]
    pub(crate) context: Context,
}

/// Which cluster, as whom, in which namespace.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Context {
    #[serde(deserialize_with = "or_null")]
    pub(crate) cluster: String,
    #[serde(deserialize_with = "or_null")]
    pub(crate) user: String,
    pub(crate) namespace: Option<String>,
}

/// An entry of `clusters`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct NamedCluster {
    pub(crate) name: String,
    #[serde(default, deserialize_with = "or_null")]
    pub(crate) cluster: Cluster,
}

/// An API server.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct Cluster {
    #[serde(deserialize_with = "or_null")]
    pub(crate) server: String,
    #[serde(deserialize_with = "or_null")]
    pub(crate) tls_server_name: String,
    #[serde(deserialize_with = "or_null")]
    pub(crate) insecure_skip_tls_verify: bool,
    #[serde(deserialize_with = "or_null")]
    pub(crate) certificate_authority: String,
    pub(crate) certificate_authority_data: Data,
    #[serde(deserialize_with = "or_null")]
    pub(crate) proxy_url: String,
    #[serde(deserialize_with = "or_null")]
    pub(crate) extensions: Vec<NamedExtension>,
}

/// An entry of `extensions`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct NamedExtension {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) extension: serde_json::Value,
}

/// An entry of `users`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct NamedUser {
    pub(crate) name: String,
    #[serde(default, deserialize_with = "or_null")]
    pub(crate) user: User,
}

/// A credential and whom to impersonate with it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct User {
    #[serde(deserialize_with = "or_null")]
    pub(crate) client_certificate: String,
    pub(crate) client_certificate_data: Data,
    #[serde(deserialize_with = "or_null")]
    pub(crate) client_key: String,
    pub(crate) client_key_data: Data,
    #[serde(deserialize_with = "or_null")]
    pub(crate) token: Secret<String>,
    // Spelt so, unlike its neighbours.
    #[serde(rename = "tokenFile", deserialize_with = "or_null")]
    pub(crate) token_file: String,
    #[serde(deserialize_with = "or_null")]
    pub(crate) username: String,
    #[serde(deserialize_with = "or_null")]
    pub(crate) password: Secret<String>,
    #[serde(rename = "as", deserialize_with = "or_null")]
    pub(crate) impersonate: String,
    #[serde(rename = "as-groups", deserialize_with = "or_null")]
    pub(crate) impersonate_groups: Vec<String>,
    pub(crate) auth_provider: Option<AuthProvider>,
    pub(crate) exec: Option<Exec>,
}

/// The predecessor of exec plugins; only `oidc` is left in Kubernetes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct AuthProvider {
    #[serde(deserialize_with = "or_null")]
    pub(crate) name: String,
    #[serde(deserialize_with = "or_null")]
    pub(crate) config: AuthProviderConfig,
}

/// What of `auth-provider.config` can be used without the provider.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct AuthProviderConfig {
    #[serde(deserialize_with = "or_null")]
    pub(crate) id_token: Secret<String>,
}

/// A program that prints credentials (`client.authentication.k8s.io`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Exec {
    #[serde(deserialize_with = "or_null")]
    pub(crate) api_version: String,
    #[serde(deserialize_with = "or_null")]
    pub(crate) command: String,
    #[serde(deserialize_with = "or_null")]
    pub(crate) args: Vec<String>,
    #[serde(deserialize_with = "or_null")]
    pub(crate) env: Vec<ExecEnv>,
    #[serde(deserialize_with = "or_null")]
    pub(crate) install_hint: String,
    #[serde(deserialize_with = "or_null")]
    pub(crate) provide_cluster_info: bool,
    pub(crate) interactive_mode: Option<InteractiveMode>,
}

/// A variable for the plugin. Its value may be a secret.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ExecEnv {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) value: Secret<String>,
}

/// Whether the plugin reads the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum InteractiveMode {
    /// It never does.
    Never,
    /// It does when there is one.
    IfAvailable,
    /// It cannot do without.
    Always,
}
