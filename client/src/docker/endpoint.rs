//! Finds the engine as the docker CLI does: `DOCKER_HOST`, the docker context, the usual socket; then podman's sockets.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{CliError, Result};

/// The docker CLI's own default.
const DOCKER_SOCKET: &str = "/var/run/docker.sock";

/// Where an engine listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// How to get there.
    pub(crate) address: Address,
    /// Who said so, for messages.
    pub(crate) origin: Origin,
}

/// How to reach an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// A Windows named pipe, `//./pipe/NAME`.
    Pipe(String),
    /// `HOST:PORT`, plain HTTP.
    Tcp(String),
    /// `HOST:PORT`, TLS with `ca.pem`, `cert.pem` and `key.pem` of this directory.
    Tls(String, PathBuf),
    /// `ssh://[USER@]HOST[:PORT]`, through the ssh program.
    Ssh(String),
}

/// Who named the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A flag of a hidden command.
    Flag,
    /// The variable.
    DockerHost,
    /// The docker context of this name.
    Context(String),
    /// Nobody: the first of the usual places where a socket is.
    Usual,
}

impl Endpoint {
    /// Finds the engine. `exists` says whether a socket is there.
    ///
    /// # Errors
    /// User errors about addresses and docker contexts that cannot be used.
    pub(crate) fn find(var: impl Fn(&str) -> Option<String>, exists: impl Fn(&Path) -> bool) -> Result<Self> {
        let var = |name: &str| var(name).filter(|value| !value.is_empty());
        let config_dir = var("DOCKER_CONFIG").map(PathBuf::from).or_else(|| Some(home(var)?.join(".docker")));
        if let Some(host) = var("DOCKER_HOST") {
            let certs = var("DOCKER_TLS_VERIFY").and(var("DOCKER_CERT_PATH").map(PathBuf::from).or(config_dir));
            return Ok(Self { address: Address::parse(&host, certs)?, origin: Origin::DockerHost });
        }
        let context = var("DOCKER_CONTEXT").or_else(|| current_context(config_dir.as_deref()?));
        if let Some(context) = context.filter(|name| name != "default") {
            let dir = config_dir
                .ok_or_else(|| CliError::user("no home directory: the docker context cannot be looked up"))?;
            return Ok(Self { address: context_address(&dir, &context)?, origin: Origin::Context(context) });
        }
        Ok(Self { address: usual(var, exists), origin: Origin::Usual })
    }

    /// The endpoint as a flag of `tp reap`.
    pub(crate) fn to_flags(&self) -> Vec<String> {
        let mut flags = vec![format!("--engine={}", self.address)];
        if let Address::Tls(_, certs) = &self.address {
            flags.push(format!("--engine-certs={}", certs.display()));
        }
        flags
    }

    /// The endpoint that [`Self::to_flags`] made flags of.
    pub(crate) fn from_flags(engine: &str, certs: Option<PathBuf>) -> Result<Self> {
        Ok(Self { address: Address::parse(engine, certs)?, origin: Origin::Flag })
    }
}

impl Address {
    fn parse(host: &str, certs: Option<PathBuf>) -> Result<Self> {
        let unusable = || {
            CliError::user(format!("cannot use `{host}` as the address of the container engine"))
                .hint("use unix:///PATH, tcp://HOST:PORT, ssh://USER@HOST or (on Windows) npipe:////./pipe/NAME")
        };
        let (scheme, rest) = host.split_once("://").ok_or_else(unusable)?;
        let rest = rest.trim_end_matches('/');
        match scheme {
            _ if rest.is_empty() => Err(unusable()),
            "unix" => Ok(Self::Unix(rest.into())),
            "npipe" => Ok(Self::Pipe(rest.to_owned())),
            "tcp" | "http" | "https" => {
                let port = if certs.is_some() { 2376 } else { 2375 };
                let has_port = rest.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
                let rest = if has_port { rest.to_owned() } else { format!("{rest}:{port}") };
                Ok(certs.map_or_else(|| Self::Tcp(rest.clone()), |certs| Self::Tls(rest.clone(), certs)))
            }
            "ssh" => Ok(Self::Ssh(host.to_owned())),
            _ => Err(unusable()),
        }
    }

    /// Whether the engine's loopback interface is this machine's, as far as one can tell.
    pub(crate) fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) | Self::Pipe(_) => true,
            Self::Tcp(host) | Self::Tls(host, _) => host.starts_with("localhost:") || host.starts_with("127."),
            Self::Ssh(_) => false,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Pipe(path) => write!(f, "npipe://{path}"),
            Self::Tcp(host) | Self::Tls(host, _) => write!(f, "tcp://{host}"),
            Self::Ssh(url) => f.write_str(url),
        }
    }
}

fn home(var: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    var("HOME").or_else(|| var("USERPROFILE")).map(PathBuf::from)
}

/// The first of the usual places where there is something; docker's own when there is nothing anywhere.
fn usual(var: impl Fn(&str) -> Option<String>, exists: impl Fn(&Path) -> bool) -> Address {
    if cfg!(windows) {
        return Address::Pipe("//./pipe/docker_engine".to_owned());
    }
    let runtime = var("XDG_RUNTIME_DIR").map(PathBuf::from);
    let container_host = var("CONTAINER_HOST").and_then(|host| host.strip_prefix("unix://").map(PathBuf::from));
    let candidates = [
        Some(PathBuf::from(DOCKER_SOCKET)),
        home(&var).map(|home| home.join(".docker/run/docker.sock")),
        runtime.as_ref().map(|dir| dir.join("docker.sock")),
        container_host,
        runtime.as_ref().map(|dir| dir.join("podman/podman.sock")),
        Some(PathBuf::from("/run/podman/podman.sock")),
    ];
    let found = candidates.into_iter().flatten().find(|path| exists(path));
    Address::Unix(found.unwrap_or_else(|| DOCKER_SOCKET.into()))
}

/// `currentContext` of the docker CLI's configuration.
fn current_context(dir: &Path) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Config {
        current_context: Option<String>,
    }
    let text = fs::read(dir.join("config.json")).ok()?;
    let config: Config = serde_json::from_slice(&text).ok()?;
    config.current_context.filter(|name| !name.is_empty())
}

/// Address of a docker context: its metadata lie in a directory named by the SHA-256 of its name.
fn context_address(dir: &Path, context: &str) -> Result<Address> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Meta {
        endpoints: Endpoints,
    }
    #[derive(Deserialize)]
    struct Endpoints {
        docker: Option<Docker>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Docker {
        host: String,
    }
    let id = super::hex(ring::digest::digest(&ring::digest::SHA256, context.as_bytes()).as_ref());
    let meta = dir.join("contexts/meta").join(&id).join("meta.json");
    let problem = |what: String| {
        CliError::user(format!("docker context `{context}`: {what}"))
            .hint("`docker context ls` lists the contexts; `docker context use default` goes back to the local engine")
    };
    let text = fs::read(&meta).map_err(|e| problem(format!("{}: {e}", meta.display())))?;
    let meta: Meta = serde_json::from_slice(&text).map_err(|e| problem(format!("{}: {e}", meta.display())))?;
    let docker = meta.endpoints.docker.ok_or_else(|| problem("it has no docker endpoint".to_owned()))?;
    let certs = dir.join("contexts/tls").join(&id).join("docker");
    Address::parse(&docker.host, certs.is_dir().then_some(certs))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(vars: &[(&str, &str)], sockets: &[&str]) -> Result<Endpoint> {
        let var = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        Endpoint::find(var, |path| sockets.iter().any(|socket| Path::new(socket) == path))
    }

    #[test]
    fn docker_host_comes_first() {
        for (host, address) in [
            ("unix:///x.sock", Address::Unix("/x.sock".into())),
            ("tcp://h:1", Address::Tcp("h:1".into())),
            ("tcp://h", Address::Tcp("h:2375".into())),
            ("ssh://me@h", Address::Ssh("ssh://me@h".into())),
        ] {
            let found = find(&[("DOCKER_HOST", host), ("DOCKER_CONTEXT", "c")], &[DOCKER_SOCKET]).unwrap();
            assert_eq!(found, Endpoint { address, origin: Origin::DockerHost });
        }
        for host in ["/x.sock", "ftp://h", "unix://", "tcp:///"] {
            assert!(find(&[("DOCKER_HOST", host)], &[]).unwrap_err().message().contains(host));
        }
    }

    #[test]
    fn tls_takes_its_certificates_from_the_variable_or_the_home_directory() {
        let host = ("DOCKER_HOST", "tcp://h");
        let verify = ("DOCKER_TLS_VERIFY", "1");
        let found = find(&[host, verify, ("DOCKER_CERT_PATH", "/certs")], &[]).unwrap();
        assert_eq!(found.address, Address::Tls("h:2376".into(), "/certs".into()));
        let found = find(&[host, verify, ("HOME", "/h")], &[]).unwrap();
        assert_eq!(found.address, Address::Tls("h:2376".into(), "/h/.docker".into()));
        assert_eq!(Endpoint::from_flags("tcp://h:2376", Some("/h/.docker".into())).unwrap().address, found.address);
        assert_eq!(found.to_flags(), ["--engine=tcp://h:2376", "--engine-certs=/h/.docker"]);
    }

    #[test]
    fn current_docker_context_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let id = super::super::hex(ring::digest::digest(&ring::digest::SHA256, b"desk").as_ref());
        let meta = dir.path().join("contexts/meta").join(&id);
        fs::create_dir_all(&meta).unwrap();
        fs::write(meta.join("meta.json"), r#"{"Name":"desk","Endpoints":{"docker":{"Host":"unix:///d.sock"}}}"#)
            .unwrap();
        fs::write(dir.path().join("config.json"), r#"{"currentContext":"desk"}"#).unwrap();
        let vars = [("DOCKER_CONFIG", dir.path().to_str().unwrap())];
        let found = find(&vars, &[DOCKER_SOCKET]).unwrap();
        assert_eq!(found.address, Address::Unix("/d.sock".into()));
        assert_eq!(found.origin, Origin::Context("desk".into()));
        let missing = find(&[vars[0], ("DOCKER_CONTEXT", "gone")], &[]).unwrap_err();
        assert!(missing.message().starts_with("docker context `gone`: "), "{missing}");
        assert_eq!(find(&[vars[0], ("DOCKER_CONTEXT", "default")], &[]).unwrap().origin, Origin::Usual);
    }

    #[cfg(unix)]
    #[test]
    fn usual_sockets_are_tried_in_order() {
        let vars = [("XDG_RUNTIME_DIR", "/run/user/7"), ("HOME", "/h")];
        for (sockets, expected) in [
            (vec![], DOCKER_SOCKET),
            (vec!["/run/podman/podman.sock"], "/run/podman/podman.sock"),
            (vec!["/run/podman/podman.sock", "/run/user/7/podman/podman.sock"], "/run/user/7/podman/podman.sock"),
            (vec!["/run/user/7/docker.sock", "/run/user/7/podman/podman.sock"], "/run/user/7/docker.sock"),
            (vec!["/h/.docker/run/docker.sock", DOCKER_SOCKET], DOCKER_SOCKET),
        ] {
            assert_eq!(find(&vars, &sockets).unwrap().address, Address::Unix(expected.into()));
        }
    }
}
