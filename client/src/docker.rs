//! The container engine: every call to it, through its API.
//!
//! Only the user's own `docker run` goes through their CLI. What tp makes carries labels ([`label`]), so that finding
//! and removing it needs no list anywhere.

pub(crate) mod connections;
pub(crate) mod daemon;
pub(crate) mod endpoint;
pub(crate) mod image;
pub(crate) mod link;
pub(crate) mod reach;
mod routes;
mod ssh;

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error as ApiError;

use crate::error::{CliError, Result};
use endpoint::{Address, Endpoint, Origin};

/// Labels of everything that tp makes in the engine.
pub(crate) mod label {
    /// What it is: `daemon`, `handler` (a container that joined), `helper` (one of a moment) or `image`.
    pub(crate) const ROLE: &str = "tp.role";
    /// Name of the connection.
    pub(crate) const CONNECTION: &str = "tp.connection";
    /// Version of the CLI that made it.
    pub(crate) const VERSION: &str = "tp.version";
    /// The run of the CLI that made it.
    pub(crate) const INVOCATION: &str = "tp.invocation";
    /// `held`: ends with the CLI that made it; `detached`: stays.
    pub(crate) const LIFETIME: &str = "tp.lifetime";
    /// Kubeconfig context.
    pub(crate) const CONTEXT: &str = "tp.context";
    /// URL of the API server, as the kubeconfig has it.
    pub(crate) const SERVER: &str = "tp.server";
    /// Connected namespace.
    pub(crate) const NAMESPACE: &str = "tp.namespace";
    /// Namespace of the manager.
    pub(crate) const MANAGER_NAMESPACE: &str = "tp.manager-namespace";
    /// The workload by way of which it dials, as `--via` has it; empty for the manager.
    pub(crate) const VIA: &str = "tp.via";
}

/// Values of [`label::ROLE`].
pub(crate) mod role {
    pub(crate) const DAEMON: &str = "daemon";
    pub(crate) const HANDLER: &str = "handler";
    pub(crate) const IMAGE: &str = "image";
    pub(crate) const HELPER: &str = "helper";
}

/// How long one call may take until its answer begins. Importing the image is the longest.
const CALL_LIMIT_SECS: u64 = 60;
/// How long the first call may take: an engine that is there answers at once.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// Oldest API that has all that tp uses: 1.40 is Docker 19.03, podman 3 and later speak it too.
const MIN_API: (u32, u32) = (1, 40);

/// A container engine that answered.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    docker: Docker,
    endpoint: Endpoint,
    info: EngineInfo,
}

/// What an engine says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EngineInfo {
    /// Its name: `Docker` or `Podman`.
    pub(crate) name: &'static str,
    /// Its version.
    pub(crate) version: String,
    /// The system that its containers run on, such as `linux`.
    pub(crate) os: String,
    /// The architecture, as Go spells it: `amd64`, `arm64`.
    pub(crate) arch: String,
}

impl Engine {
    /// Finds the engine and says hello to it.
    ///
    /// # Errors
    /// User errors: not running, no permission, too old.
    pub(crate) async fn connect(endpoint: Endpoint) -> Result<Self> {
        let docker = client(&endpoint).map_err(|e| unreachable_engine(&endpoint, &e))?;
        let hello = async {
            let docker = docker.negotiate_version().await?;
            let version = docker.version().await?;
            Ok::<_, ApiError>((docker, version))
        };
        let (docker, version) = match tokio::time::timeout(HELLO_LIMIT, hello).await {
            Ok(answer) => answer.map_err(|e| unreachable_engine(&endpoint, &e))?,
            Err(_) => return Err(unreachable_engine(&endpoint, &ApiError::RequestTimeoutError)),
        };
        let components = version.components.unwrap_or_default();
        let podman = components.iter().any(|component| component.name.contains("Podman"));
        let info = EngineInfo {
            name: if podman { "Podman" } else { "Docker" },
            version: version.version.unwrap_or_default(),
            os: version.os.unwrap_or_default(),
            arch: version.arch.unwrap_or_default(),
        };
        let api = docker.client_version();
        if (api.major_version, api.minor_version) < (MIN_API.0 as usize, MIN_API.1 as usize) {
            return Err(CliError::user(format!(
                "the container engine at {} is too old: {} {} speaks API {api}, tp needs {}.{}",
                endpoint.address, info.name, info.version, MIN_API.0, MIN_API.1
            ))
            .hint("update it to Docker 19.03 or later"));
        }
        if info.os != "linux" {
            return Err(CliError::user(format!(
                "the container engine at {} runs {} containers; tp needs Linux containers",
                endpoint.address, info.os
            ))
            .hint("switch Docker Desktop to Linux containers"));
        }
        Ok(Self { docker, endpoint, info })
    }

    /// Finds the engine that the environment names and says hello to it.
    ///
    /// # Errors
    /// As [`Engine::connect`] and [`Endpoint::find`].
    pub(crate) async fn from_env() -> Result<Self> {
        Self::connect(Endpoint::find(|name| std::env::var(name).ok(), Path::exists)?).await
    }

    /// Where it listens.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// How many processors its machine has.
    ///
    /// # Errors
    /// When it does not say.
    pub(crate) async fn processors(&self) -> Result<u64> {
        let info = self.docker.info().await.map_err(|e| failed("look at the engine's machine", &e))?;
        let processors = info.ncpu.and_then(|count| u64::try_from(count).ok());
        Ok(processors.filter(|count| *count > 0).unwrap_or(u64::MAX))
    }

    /// What it says of itself.
    pub(crate) fn info(&self) -> &EngineInfo {
        &self.info
    }
}

fn client(endpoint: &Endpoint) -> std::result::Result<Docker, ApiError> {
    let version = bollard::API_DEFAULT_VERSION;
    match &endpoint.address {
        #[cfg(unix)]
        Address::Unix(path) => {
            let path = path.to_str().ok_or_else(|| io::Error::other("its path is not valid UTF-8"))?;
            Docker::connect_with_unix(path, CALL_LIMIT_SECS, version)
        }
        #[cfg(windows)]
        Address::Pipe(path) => Docker::connect_with_named_pipe(path, CALL_LIMIT_SECS, version),
        Address::Tcp(host) => Docker::connect_with_http(host, CALL_LIMIT_SECS, version),
        Address::Tls(host, certs) => {
            let (key, cert, ca) = (certs.join("key.pem"), certs.join("cert.pem"), certs.join("ca.pem"));
            Docker::connect_with_ssl(host, &key, &cert, &ca, CALL_LIMIT_SECS, version)
        }
        Address::Ssh(url) => ssh::connect(url, CALL_LIMIT_SECS, version),
        #[cfg(not(unix))]
        Address::Unix(_) => Err(ApiError::UnsupportedURISchemeError { uri: endpoint.address.to_string() }),
        #[cfg(not(windows))]
        Address::Pipe(_) => Err(ApiError::UnsupportedURISchemeError { uri: endpoint.address.to_string() }),
    }
}

/// The first call failed: says why, and what usually helps.
fn unreachable_engine(endpoint: &Endpoint, e: &ApiError) -> CliError {
    let address = &endpoint.address;
    let named_by = match &endpoint.origin {
        Origin::DockerHost => " (from DOCKER_HOST)".to_owned(),
        Origin::Context(context) => format!(" (docker context `{context}`)"),
        Origin::Flag | Origin::Usual => String::new(),
    };
    let error = match io_kind(e) {
        Some(io::ErrorKind::PermissionDenied) => {
            CliError::user(format!("no permission to use the container engine's socket {address}{named_by}"))
                .hint("add yourself to its group: `sudo usermod -aG docker $USER`, then log in again")
                .hint("or use a rootless engine: `dockerd-rootless-setuptool.sh install`, or podman's socket")
        }
        Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            let error = CliError::user(format!("no container engine answers at {address}{named_by}"));
            match (&endpoint.address, &endpoint.origin) {
                (_, Origin::Usual) => error
                    .hint("start Docker (`sudo systemctl start docker`, or Docker Desktop), or install it")
                    .hint("an engine elsewhere is named by DOCKER_HOST or `docker context use NAME`"),
                _ => error.hint("start it, or name another one with DOCKER_HOST or `docker context use NAME`"),
            }
        }
        _ => CliError::user(format!("the container engine at {address}{named_by} cannot be used: {}", describe(e))),
    };
    error.because(e)
}

/// The kind of the system error at the end of the chain of causes, if that is one.
fn io_kind(e: &ApiError) -> Option<io::ErrorKind> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(e);
    while let Some(cause) = next {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        if let Some(ApiError::SocketNotFoundError(_)) = cause.downcast_ref::<ApiError>() {
            return Some(io::ErrorKind::NotFound);
        }
        next = cause.source();
    }
    None
}

/// An error of the engine in the fewest words that say it: its own message, or the innermost cause.
pub(crate) fn describe(e: &ApiError) -> String {
    match e {
        ApiError::DockerResponseServerError { message, .. } => message.trim().to_owned(),
        ApiError::DockerStreamError { error } => error.trim().to_owned(),
        ApiError::RequestTimeoutError => "it did not answer in time".to_owned(),
        other => {
            let mut innermost: &dyn std::error::Error = other;
            while let Some(cause) = innermost.source() {
                innermost = cause;
            }
            innermost.to_string()
        }
    }
}

/// A call failed in a way that has no better explanation.
pub(crate) fn failed(what: &str, e: &ApiError) -> CliError {
    CliError::user(format!("the container engine could not {what}: {}", describe(e))).because(e)
}

/// The HTTP status with which the engine refused a call.
pub(crate) fn status(e: &ApiError) -> Option<u16> {
    match e {
        ApiError::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string");
        text
    })
}
