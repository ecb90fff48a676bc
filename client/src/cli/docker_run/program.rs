//! The user's own docker or podman CLI, pointed at the engine that tp uses.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::docker::Engine;
use crate::docker::endpoint::{Address, Origin};
use crate::error::{CliError, Result};

/// The name that stands for "docker, or podman when there is no docker".
const DEFAULT: &str = "docker";

/// A program to run containers with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// Where it is.
    pub(super) path: PathBuf,
    /// Arguments before `run`.
    pub(super) args: Vec<OsString>,
    /// Variables for it.
    pub(super) env: Vec<(String, String)>,
}

impl Program {
    /// Finds the program that the setting `docker` names.
    ///
    /// # Errors
    /// A user error when there is none.
    pub(super) fn find(setting: &str, engine: &Engine) -> Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let podman_engine = engine.info().name == "Podman";
        let found = match on_path(setting, &path) {
            None if setting == DEFAULT && podman_engine => on_path("podman", &path),
            found => found,
        };
        let found = found.ok_or_else(|| {
            CliError::user(format!("no `{setting}` program to run the container with"))
                .hint("install the docker CLI, or name yours by the setting `docker`: a name or path, podman's too")
        })?;
        let endpoint = engine.endpoint();
        let is_podman = found.file_stem().is_some_and(|name| name.to_string_lossy().contains("podman"));
        let (args, env) = if is_podman {
            (podman_args(&endpoint.address), Vec::new())
        } else {
            (Vec::new(), docker_env(&endpoint.address, &endpoint.origin))
        };
        Ok(Self { path: found, args, env })
    }

    /// The command that runs the container in the foreground, with this process's standard streams.
    pub(super) fn command(&self, args: &[OsString]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.path);
        command.args(&self.args).args(args).envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
        command
    }
}

/// docker finds the same engine by the same rules, but for a socket that is podman's or in a home directory.
fn docker_env(address: &Address, origin: &Origin) -> Vec<(String, String)> {
    match origin {
        Origin::Usual | Origin::Flag => vec![("DOCKER_HOST".to_owned(), address.to_string())],
        Origin::DockerHost | Origin::Context(_) => Vec::new(),
    }
}

/// podman works without a service, on its user's own containers: where the socket is another's it has to be named.
fn podman_args(address: &Address) -> Vec<OsString> {
    let own_dir = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let is_own = match address {
        Address::Unix(path) => is_root() || own_dir.is_some_and(|dir| path.starts_with(dir)),
        Address::Pipe(_) | Address::Tcp(_) | Address::Tls(..) | Address::Ssh(_) => false,
    };
    if is_own { Vec::new() } else { vec!["--url".into(), address.to_string().into()] }
}

#[cfg(unix)]
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(not(unix))]
fn is_root() -> bool {
    false
}

/// A program by its path, or by its name in one of the directories of PATH.
pub(in crate::cli) fn on_path(program: &str, path: &std::ffi::OsStr) -> Option<PathBuf> {
    if Path::new(program).components().count() > 1 {
        return Some(PathBuf::from(program)).filter(|path| is_program(path));
    }
    std::env::split_paths(path).find_map(|dir| {
        let plain = dir.join(program);
        if cfg!(windows) && plain.extension().is_none() {
            return Some(plain.with_extension("exe")).filter(|path| is_program(path));
        }
        Some(plain).filter(|path| is_program(path))
    })
}

#[cfg(unix)]
fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_program(path: &Path) -> bool {
    path.is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_is_pointed_at_a_socket_that_it_would_not_find() {
        let socket = Address::Unix("/run/podman/podman.sock".into());
        assert_eq!(
            docker_env(&socket, &Origin::Usual),
            [("DOCKER_HOST".to_owned(), "unix:///run/podman/podman.sock".to_owned())]
        );
        assert!(docker_env(&socket, &Origin::DockerHost).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn programs_are_found_on_the_path() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("docker");
        std::fs::write(&program, "").unwrap();
        assert_eq!(on_path("docker", dir.path().as_os_str()), None);
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(on_path("docker", dir.path().as_os_str()), Some(program.clone()));
        assert_eq!(on_path(program.to_str().unwrap(), "".as_ref()), Some(program));
        assert_eq!(on_path("podman", dir.path().as_os_str()), None);
    }
}
