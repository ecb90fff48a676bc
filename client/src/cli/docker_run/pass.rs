//! How an environment gets into a container without being seen on a command line or left in a file.
//!
//! docker reads a value as it is from a file or from its own environment, and from nowhere else. A file, in memory, takes most.
//! What a line of a file cannot hold goes through the environment of the docker CLI itself, which must not take it for its own:
//! that is refused for names that docker, podman, or the libraries below them look at.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::PathBuf;

use super::split::Split;
use crate::cli::environment::Environment;
use crate::error::{CliError, Result};

/// Names that docker or podman read for themselves.
const READ_BY_CLI: &[&str] = &[
    "ALL_PROXY",
    "DBUS_SESSION_BUS_ADDRESS",
    "GODEBUG",
    "GOGC",
    "GOMAXPROCS",
    "GOMEMLIMIT",
    "GOTRACEBACK",
    "HOME",
    "HOSTNAME",
    "IFS",
    "LANG",
    "LOGNAME",
    "NO_COLOR",
    "NOTIFY_SOCKET",
    "PATH",
    "PWD",
    "SHELL",
    "STORAGE_DRIVER",
    "STORAGE_OPTS",
    "TERM",
    "TMPDIR",
    "TZ",
    "USER",
];

/// Beginnings of such names.
const READ_BY_CLI_PREFIXES: &[&str] = &[
    "BASH_",
    "BUILDAH_",
    "BUILDKIT_",
    "BUILDX_",
    "CONTAINERS_",
    "CONTAINER_",
    "DOCKER_",
    "DYLD_",
    "LC_",
    "LD_",
    "OTEL_",
    "PODMAN_",
    "REGISTRY_",
    "SSH_",
    "SSL_CERT_",
    "TP_",
    "XDG_",
];

/// End of the names of proxies, in either case: `HTTPS_PROXY`, `no_proxy`.
const PROXY: &str = "_PROXY";

/// Longest line of a file that docker reads, with its end (`bufio.MaxScanTokenSize`).
const LINE_BYTES: usize = 64 << 10;

/// An environment on its way.
#[derive(Default)]
pub(super) struct Passing {
    file: Option<EnvironmentFile>,
    /// What goes through the environment of the CLI.
    pub(super) inherited: Vec<(String, String)>,
}

impl Passing {
    /// Prepares to pass `environment` on, but for what the user's own flags set.
    ///
    /// # Errors
    /// User errors: a variable that cannot be passed on, and no memory for the others.
    pub(super) fn new(environment: &Environment, split: &Split) -> Result<Self> {
        let own = set_by(split)?;
        let (mut lines, mut inherited) = (String::new(), Vec::new());
        for (name, value) in environment.iter().filter(|(name, _)| !own.contains(*name)) {
            match way(name, value) {
                Way::Line => lines.extend([name, "=", value, "\n"]),
                Way::Inherited => inherited.push((name.to_owned(), value.to_owned())),
                Way::None => return Err(impossible(name)),
            }
        }
        if lines.is_empty() {
            return Ok(Self { file: None, inherited });
        }
        let file = EnvironmentFile::new(lines.as_bytes())
            .map_err(|e| CliError::user(format!("cannot hand the environment to the docker CLI: {e}")).because(&e))?;
        Ok(Self { file: Some(file), inherited })
    }

    /// The flags for the CLI.
    pub(super) fn flags(&self) -> impl Iterator<Item = OsString> {
        let file = self.file.iter().map(|file| {
            let mut flag = OsString::from("--env-file=");
            flag.push(file.path());
            flag
        });
        file.chain(self.inherited.iter().map(|(name, _)| format!("--env={name}").into()))
    }
}

/// How a variable gets into the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// As a line of a file.
    Line,
    /// Through the CLI's environment.
    Inherited,
    /// In no way.
    None,
}

fn way(name: &str, value: &str) -> Way {
    // Lines are trimmed in front, begin with `#` when they are comments, and lose a carriage return at their end.
    let is_line = !value.contains(['\n', '\r'])
        && !name.contains(char::is_whitespace)
        && !name.starts_with('#')
        && name.len() + value.len() + 2 <= LINE_BYTES;
    // Some builds of docker take a value out of its quotes.
    let is_plain = is_line && !value.starts_with(['\'', '"']);
    match (is_plain, is_line, is_read_by_cli(name)) {
        (true, _, _) | (_, true, true) => Way::Line,
        (_, _, false) => Way::Inherited,
        (_, false, true) => Way::None,
    }
}

fn is_read_by_cli(name: &str) -> bool {
    READ_BY_CLI.contains(&name)
        || READ_BY_CLI_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || name.to_ascii_uppercase().ends_with(PROXY)
}

fn impossible(name: &str) -> CliError {
    CliError::user(format!(
        "the variable {name} cannot be given to the container: its value is more than a line, and the docker CLI would \
         take it for its own"
    ))
    .hint(format!("set it yourself by -e {name}=VALUE among docker's options"))
}

/// The names that the user's flags set, in whichever way: a variable of theirs counts, be it in a file, which docker reads before
/// it looks at flags.
fn set_by(split: &Split) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for flag in &split.pass {
        match flag.name.as_str() {
            "env" => names.extend(name_of(&flag.text())),
            "env-file" => {
                let path = PathBuf::from(flag.value.clone().unwrap_or_default());
                // What is no file can be read once, and that is for docker, as are its errors.
                if path.is_file() {
                    let text = std::fs::read(&path).map_err(|e| {
                        CliError::user(format!("cannot read the environment in {}: {e}", path.display())).because(&e)
                    })?;
                    names.extend(String::from_utf8_lossy(&text).lines().filter_map(name_of));
                }
            }
            _ => {}
        }
    }
    Ok(names)
}

/// The name that a line of a file, or the value of `--env`, sets.
fn name_of(line: &str) -> Option<String> {
    let line = line.trim_start_matches('\u{feff}').trim_start();
    let name = line.split('=').next().unwrap_or_default();
    (!name.is_empty() && !name.starts_with('#')).then(|| name.to_owned())
}

/// A file that the CLI, which inherits its descriptor, reads from memory; nothing of it is left when both are gone.
#[cfg(target_os = "linux")]
struct EnvironmentFile(std::fs::File);

#[cfg(target_os = "linux")]
impl EnvironmentFile {
    fn new(content: &[u8]) -> io::Result<Self> {
        use rustix::fs::{MemfdFlags, memfd_create};
        // Without close-on-exec: for the CLI, which is the next and only process that is started while it is open.
        let memory = memfd_create("tp-environment", MemfdFlags::NOEXEC_SEAL)
            // Linux before 6.3 does not know the flag.
            .or_else(|_| memfd_create("tp-environment", MemfdFlags::empty()))?;
        let mut file = std::fs::File::from(memory);
        file.write_all(content)?;
        Ok(Self(file))
    }

    /// The path by which the CLI opens it.
    fn path(&self) -> OsString {
        use std::os::fd::AsRawFd as _;
        format!("/dev/fd/{}", self.0.as_raw_fd()).into()
    }
}

/// A file that only its owner can read, and that is removed with this.
#[cfg(not(target_os = "linux"))]
struct EnvironmentFile(tempfile::NamedTempFile);

#[cfg(not(target_os = "linux"))]
impl EnvironmentFile {
    fn new(content: &[u8]) -> io::Result<Self> {
        let directory = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let mut file = tempfile::Builder::new().prefix("tp-environment-").tempfile_in(directory)?;
        file.write_all(content)?;
        Ok(Self(file))
    }

    /// The path by which the CLI opens it.
    fn path(&self) -> OsString {
        self.0.path().into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse::Flag;
    use super::super::split::split;
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn given(flags: &[(&str, &str)]) -> Split {
        let flag = |(name, value): &(&str, &str)| Flag { name: (*name).into(), value: Some(value.into()) };
        split(flags.iter().map(flag).collect()).unwrap()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn values_are_in_memory_and_not_on_the_command_line() {
        let variables = [("A", "s3cret"), ("HOME", "/home/app"), ("PEM", "s3cret\nline"), ("Q", "\"s3cret\"")];
        let passing = Passing::new(&environment(&variables), &Split::default()).unwrap();
        let flags: Vec<_> = passing.flags().map(|flag| flag.into_string().unwrap()).collect();
        let path = flags[0].strip_prefix("--env-file=").unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), "A=s3cret\nHOME=/home/app\n");
        assert_eq!(flags[1..], ["--env=PEM", "--env=Q"]);
        assert_eq!(passing.inherited[0], ("PEM".to_owned(), "s3cret\nline".to_owned()));
        // Another process reads it by the same path, from its beginning.
        let child = std::process::Command::new("cat").arg(path).output().unwrap();
        assert_eq!(child.stdout, b"A=s3cret\nHOME=/home/app\n");
        assert_eq!(Passing::new(&Environment::default(), &Split::default()).unwrap().flags().count(), 0);
    }

    #[test]
    fn each_variable_goes_the_way_that_keeps_it() {
        for (name, value, expected) in [
            ("A", "", Way::Line),
            ("A", "  x # y  ", Way::Line),
            ("a.b-c", "x", Way::Line),
            ("DOCKER_HOST", "x", Way::Line),
            ("A", "x\ny", Way::Inherited),
            ("A", "x\r", Way::Inherited),
            ("A", "'x'", Way::Inherited),
            ("#A", "x", Way::Inherited),
            ("A B", "x", Way::Inherited),
            ("GOOGLE_KEY", "x\ny", Way::Inherited),
            ("PATH", "'x'", Way::Line),
            ("PATH", "x\ny", Way::None),
            ("DOCKER_TLS", "x\ny", Way::None),
            ("corp_no_proxy", "x\ny", Way::None),
            ("LD_PRELOAD", "x\ny", Way::None),
        ] {
            assert_eq!(way(name, value), expected, "{name}={value:?}");
        }
        assert_eq!(way("A", &"x".repeat(LINE_BYTES - 3)), Way::Line);
        assert_eq!(way("A", &"x".repeat(LINE_BYTES - 2)), Way::Inherited);
    }

    #[test]
    fn what_the_cli_would_take_for_its_own_is_refused() {
        let error = Passing::new(&environment(&[("DOCKER_CONFIG", "s3cret\nline")]), &Split::default()).err().unwrap();
        assert!(error.message().starts_with("the variable DOCKER_CONFIG cannot be given"), "{error:?}");
        assert!(!format!("{error:?}").contains("s3cret"));
        let own = given(&[("env", "DOCKER_CONFIG=x")]);
        Passing::new(&environment(&[("DOCKER_CONFIG", "s3cret\nline")]), &own).unwrap();
    }

    #[test]
    fn the_user_s_own_variables_count() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        std::fs::write(&file, "\u{feff}B=1\n # C=1\n  D\n\n").unwrap();
        let own =
            given(&[("env", "A=1"), ("env", "E"), ("env-file", file.to_str().unwrap()), ("env-file", "/dev/null")]);
        assert_eq!(set_by(&own).unwrap().into_iter().collect::<Vec<_>>(), ["A", "B", "D", "E"]);
        let several = ["A", "B", "C", "D", "E"].map(|name| (name, "two\nlines"));
        let passing = Passing::new(&environment(&several), &own).unwrap();
        assert_eq!(passing.inherited, [("C".to_owned(), "two\nlines".to_owned())]);
    }
}
