//! The product's binary, run as a user would run it, with an environment that holds nothing but what the test says.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::given::given;
use crate::process::{Input, Outcome, Running};

/// Variables that come from outside: where programs are, and which engine it is.
const INHERITED: [&str; 4] = ["PATH", "DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"];

/// How long any command may take unless a test says otherwise. Failures have to come within ten seconds.
const LIMIT: Duration = Duration::from_secs(40);

/// A command line of `tp`.
#[derive(Clone, Debug)]
pub struct Tp {
    binary: PathBuf,
    home: PathBuf,
    args: Vec<OsString>,
    environment: BTreeMap<String, OsString>,
    input: Input,
    limit: Duration,
    uid: Option<u32>,
}

impl Tp {
    /// The plain user's `tp`, with `home` as home directory and no arguments.
    pub fn new(home: &Path) -> Self {
        let given = given();
        let inherited = INHERITED.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var_os(name)?)));
        let tp = Self {
            binary: given.tp.clone(),
            home: home.to_owned(),
            args: Vec::new(),
            environment: inherited.collect(),
            input: Input::Nothing,
            limit: LIMIT,
            uid: None,
        };
        tp.env("HOME", home)
            .env("XDG_CONFIG_HOME", home.join("config"))
            .env("XDG_CACHE_HOME", home.join("cache"))
            .env("XDG_RUNTIME_DIR", home.join("run"))
            .env("TP_MANAGER_NAMESPACE", &given.manager_namespace)
            .kubeconfig(&given.user_kubeconfig)
    }

    /// Uses another kubeconfig.
    #[must_use]
    pub fn kubeconfig(self, path: &Path) -> Self {
        self.env("KUBECONFIG", path)
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.insert(name.to_owned(), value.into());
        self
    }

    /// Removes a variable.
    #[must_use]
    pub fn env_remove(mut self, name: &str) -> Self {
        self.environment.remove(name);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: Into<OsString>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Gives it something to read.
    #[must_use]
    pub fn input(mut self, input: Input) -> Self {
        self.input = input;
        self
    }

    /// Sets how long it may take.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it as another user, which takes root: `binary` is a copy that this user can reach.
    #[must_use]
    pub fn as_user(mut self, uid: u32, binary: &Path) -> Self {
        self.uid = Some(uid);
        binary.clone_into(&mut self.binary);
        self
    }

    /// The command line for a shell, all words quoted, its environment in front.
    pub fn shell_words(&self) -> String {
        let assignments = self.environment.iter().map(|(name, value)| format!("{name}={}", quoted(value)));
        let words = std::iter::once(self.binary.as_os_str()).chain(self.args.iter().map(OsString::as_os_str));
        let command: Vec<_> = assignments.chain(words.map(quoted)).collect();
        format!("env -i {}", command.join(" "))
    }

    /// The home directory.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Starts it.
    pub fn start(&self) -> Running {
        let mut command = Command::new(&self.binary);
        command.args(&self.args).env_clear().envs(&self.environment).current_dir(&self.home);
        if let Some(uid) = self.uid {
            std::os::unix::process::CommandExt::uid(&mut command, uid);
            std::os::unix::process::CommandExt::gid(&mut command, uid);
        }
        Running::start(command, self.input.clone())
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run(&self) -> Outcome {
        self.start().wait(self.limit)
    }
}

fn quoted(word: impl AsRef<std::ffi::OsStr>) -> String {
    format!("'{}'", word.as_ref().to_string_lossy().replace('\'', r"'\''"))
}
