//! The API server: a client from what the CLI sent, and lanes to the manager through port-forward.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Uri;
use hyper::upgrade::Upgraded;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::config::AuthInfo;
use kube::{Client, Config};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower::ServiceBuilder;
use tower::util::MapResponse;
use tp_protocol::hello::{ClientHello, RefusalCode};
use tp_protocol::lane::Direction;
use tp_tunnel::client::{Admitted, say_hello};
use tp_tunnel::error::LaneError;

use crate::attach::{Failure, KubeAccess};
use crate::daemon::hosts::HostLookup;
use crate::daemon::portforward::{self, Offer, PortForward};
use crate::daemon::readahead::ReadAhead;

/// Pod of the manager: it is a StatefulSet of one, so that this is the only name a user needs a right for.
pub(crate) const MANAGER_POD: &str = "tp-manager-0";

/// Port on the loopback of the manager's pod that takes clients.
const MANAGER_CLIENT_PORT: u16 = 7400;

/// Time between TCP keepalive probes to the API server.
const TCP_KEEPALIVE: Duration = Duration::from_secs(15);

/// How long a TCP connect to the API server may take before the next of its addresses is tried.
const TCP_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the manager is and who asks.
#[derive(Clone)]
pub(crate) struct ManagerRoute {
    client: Client,
    hosts: HostLookup,
    access: KubeAccess,
    manager_namespace: String,
}

impl ManagerRoute {
    /// Builds the client. Nothing is sent yet.
    ///
    /// # Errors
    /// What the user sees when the access is not usable.
    pub(crate) fn new(access: KubeAccess, manager_namespace: &str, hosts: HostLookup) -> Result<Self, Failure> {
        let client = build_client(&access, hosts.clone()).map_err(|error| Failure {
            message: format!("cannot use the credentials of context `{}`: {error}", access.context),
            hint: "check the certificates and keys of this context in the kubeconfig".into(),
            causes: causes(&error),
        })?;
        Ok(Self { client, hosts, access, manager_namespace: manager_namespace.to_owned() })
    }

    /// Reaches the API server by `client`.
    #[cfg(test)]
    pub(crate) fn with_client(client: Client) -> Self {
        let hosts = HostLookup::new(Vec::new());
        Self { client, hosts, access: KubeAccess::default(), manager_namespace: "tp-system".to_owned() }
    }

    /// Addresses that lanes are dialled at: the API server's, or its proxy's. Empty when they cannot be found.
    pub(crate) async fn addresses(&self) -> Vec<IpAddr> {
        let dialled = non_empty(&self.access.proxy_url).unwrap_or_else(|| self.access.server.clone());
        let Some(host) = dialled.parse::<Uri>().ok().and_then(|url| url.host().map(str::to_owned)) else {
            return Vec::new();
        };
        self.hosts.addresses(&host).await.unwrap_or_default()
    }

    /// Opens a byte stream to the manager and says hello on it.
    ///
    /// # Errors
    /// What the user sees: what failed, on which object, and what to do.
    pub(crate) async fn open_lane(&self, hello: &ClientHello, limit: Duration) -> Result<Admitted, Failure> {
        timeout(limit, self.try_open_lane(hello)).await.unwrap_or_else(|_| {
            Err(Failure {
                message: format!("no answer from the API server {} within {limit:?}", self.access.original_server),
                hint: "check that the cluster is up and that this machine reaches it: `kubectl get --raw /readyz`"
                    .into(),
                causes: Vec::new(),
            })
        })
    }

    async fn try_open_lane(&self, hello: &ClientHello) -> Result<Admitted, Failure> {
        let offer = match Direction::of_lane(hello.lane) {
            Some(Direction::Up) => Offer::Spdy,
            Some(Direction::Down) | None => Offer::Channels,
        };
        let io = self.port_forward(offer, MANAGER_CLIENT_PORT).await?;
        say_hello(io, hello).await.map_err(|error| self.explain_lane(&error))
    }

    /// Opens another port of the manager's pod.
    ///
    /// # Errors
    /// What the user sees.
    pub(crate) async fn open_port(&self, port: u16) -> Result<impl AsyncRead + AsyncWrite + Unpin + use<>, Failure> {
        self.port_forward(Offer::Channels, port).await
    }

    async fn port_forward(&self, offer: Offer, port: u16) -> Result<PortForward<TokioIo<Upgraded>>, Failure> {
        let io = portforward::open(&self.client, offer, &self.manager_namespace, MANAGER_POD, port);
        io.await.map_err(|error| self.explain_api(&error))
    }

    /// Turns an error of the API server, or on the way to it, into what the user sees.
    fn explain_api(&self, error: &kube::Error) -> Failure {
        let KubeAccess { context, user, original_server, .. } = &self.access;
        let namespace = &self.manager_namespace;
        let (message, hint) = match error {
            kube::Error::Api(status) if status.code == 401 && has_expired(&self.access) => (
                format!("the credentials of this connection (user `{user}`, context `{context}`) have expired"),
                "run `tp quit` and connect again".to_owned(),
            ),
            kube::Error::Api(status) if status.code == 401 => (
                format!(
                    "the API server {original_server} does not accept the credentials of user `{user}` (context `{context}`)"
                ),
                "the token or certificate may have expired: log in again, then check with `kubectl auth whoami`"
                    .to_owned(),
            ),
            kube::Error::Api(status) if status.code == 403 => (
                format!(
                    "user `{user}` may not port-forward to pod {MANAGER_POD} in namespace `{namespace}`: {}",
                    status.message
                ),
                format!(
                    "ask an administrator for the right `create pods/portforward` on {MANAGER_POD}, which the chart's value \
                     `clientRbac.subjects` gives to users and groups (`tp helm upgrade --reuse-values -f FILE`)"
                ),
            ),
            kube::Error::Api(status) if status.code == 404 => (
                format!("no traffic manager in namespace `{namespace}` of context `{context}`: {}", status.message),
                "install it with `tp helm install`, or name its namespace with --manager-namespace".to_owned(),
            ),
            kube::Error::Api(status) => (
                format!(
                    "the API server {original_server} refused the port-forward to {MANAGER_POD}: {}",
                    status.message
                ),
                format!("look at the manager with `kubectl -n {namespace} get pod {MANAGER_POD}`"),
            ),
            other => {
                let root = causes(other).pop().unwrap_or_else(|| other.to_string());
                (
                    format!("cannot reach the API server {original_server} of context `{context}`: {root}"),
                    hint_for(&root),
                )
            }
        };
        Failure { message, hint, causes: causes(error) }
    }

    /// Turns an error of the hello or of HTTP/2's into what the user sees.
    pub(crate) fn explain_lane(&self, error: &LaneError) -> Failure {
        let namespace = &self.manager_namespace;
        let look = format!("look at the manager with `kubectl -n {namespace} logs {MANAGER_POD}`");
        let hint = match error {
            LaneError::Refused(refusal) if refusal.code() == RefusalCode::VersionMismatch => {
                format!(
                    "make both the same release: this tp is {}, the manager is {} (`tp helm upgrade --reuse-values` brings the manager to this release)",
                    env!("CARGO_PKG_VERSION"),
                    refusal.software_version
                )
            }
            _ => look,
        };
        Failure {
            message: format!(
                "the traffic manager {MANAGER_POD} in namespace `{namespace}` does not let us in: {error}"
            ),
            hint,
            causes: causes(error),
        }
    }
}

/// Whether the credential had an end that has passed.
fn has_expired(access: &KubeAccess) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    access.expires_at > 0 && now.as_secs().cast_signed() >= access.expires_at
}

/// What to do about an error below HTTP.
fn hint_for(root: &str) -> String {
    if root.contains("certificate") {
        "the server's certificate is not valid for this kubeconfig: check its clock, certificate-authority and tls-server-name".into()
    } else {
        "check that the cluster is up and that containers on this machine reach it: `kubectl get --raw /readyz`".into()
    }
}

fn causes(error: &dyn std::error::Error) -> Vec<String> {
    std::iter::successors(error.source(), |e| (*e).source()).map(ToString::to_string).collect()
}

/// What is done to every TCP connection.
type WrapTcp = fn(TokioIo<TcpStream>) -> TokioIo<ReadAhead>;

/// A client for one user. Without a proxy the connection is ours, with `TCP_NODELAY`, which kube's own leaves off.
fn build_client(access: &KubeAccess, hosts: HostLookup) -> Result<Client, kube::Error> {
    let config = config(access)?;
    if config.proxy_url.is_some() {
        return Ok(ClientBuilder::try_from(config)?.build());
    }
    let mut tcp = HttpConnector::new_with_resolver(hosts);
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(TCP_KEEPALIVE));
    tcp.set_connect_timeout(Some(TCP_CONNECT_TIMEOUT));
    let https = config.rustls_https_connector_with_connector(MapResponse::new(tcp, ReadAhead::wrap as WrapTcp))?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(tower::BoxError::from)
        .service(legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(https));
    Ok(Client::new(service, "default"))
}

fn config(access: &KubeAccess) -> Result<Config, kube::Error> {
    let parse = |uri: &str| uri.parse::<Uri>().map_err(|e| kube::Error::HttpError(e.into()));
    let mut config = Config::new(parse(&access.server)?);
    if !access.ca_pem.is_empty() {
        let certificates = CertificateDer::pem_slice_iter(&access.ca_pem);
        config.root_cert = Some(certificates.filter_map(Result::ok).map(|c| c.to_vec()).collect());
    }
    config.accept_invalid_certs = access.insecure_skip_tls_verify;
    config.tls_server_name = non_empty(&access.tls_server_name);
    config.proxy_url = non_empty(&access.proxy_url).map(|url| parse(&url)).transpose()?;
    config.default_retry = false;
    config.auth_info = AuthInfo {
        client_certificate_data: pem_to_base64(&access.client_cert_pem),
        client_key_data: pem_to_base64(&access.client_key_pem).map(Into::into),
        token: non_empty(&access.token).map(Into::into),
        username: non_empty(&access.username),
        password: non_empty(&access.password).map(Into::into),
        impersonate: non_empty(&access.impersonate_user),
        impersonate_groups: Some(access.impersonate_groups.clone()).filter(|g| !g.is_empty()),
        ..AuthInfo::default()
    };
    Ok(config)
}

fn non_empty(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn pem_to_base64(pem: &[u8]) -> Option<String> {
    use base64::Engine as _;
    (!pem.is_empty()).then(|| base64::engine::general_purpose::STANDARD.encode(pem))
}
