//! A home directory, and `tp` run in it.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use assert_cmd::assert::Assert;

/// A kubeconfig with two contexts: `dev` (current, namespace `web`) and `other`.
pub(crate) const KUBECONFIG: &str = "\
apiVersion: v1
kind: Config
current-context: dev
contexts:
- {name: dev, context: {cluster: dev, user: u, namespace: web}}
- {name: other, context: {cluster: other, user: u}}
clusters:
- {name: dev, cluster: {server: 'https://192.0.2.1:6443'}}
- name: other
  cluster:
    server: https://192.0.2.2:6443
    extensions:
    - name: tp
      extension: {manager-namespace: tools, idle-limit: 30m}
users:
- {name: u, user: {token: s3cret-token}}
";

/// A home directory that goes away with the test.
pub(crate) struct Home(tempfile::TempDir);

impl Home {
    /// An empty one.
    pub(crate) fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// One with [`KUBECONFIG`] in its usual place.
    pub(crate) fn with_kubeconfig() -> Self {
        let home = Self::empty();
        home.write(".kube/config", KUBECONFIG);
        home
    }

    /// A path in it.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// Writes a shell script, in `bin`, which is all of PATH but for the shell's own tools.
    pub(crate) fn script(&self, name: &str, body: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.write(&format!("bin/{name}"), &format!("#!/bin/sh\n{body}\n"));
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// `tp` with these arguments (words of `line`); there is no engine.
    pub(crate) fn tp(&self, line: &str) -> Command {
        let mut command = Command::cargo_bin("tp").unwrap();
        command
            .args(line.split_whitespace())
            .env_clear()
            .env("HOME", self.0.path())
            .env("PATH", self.path("bin"))
            .env("DOCKER_HOST", format!("unix://{}", self.path("no.sock").display()))
            .current_dir(self.0.path())
            .timeout(std::time::Duration::from_secs(30));
        command
    }

    /// Replaces the home directory's path in what a command printed.
    pub(crate) fn anonymous(&self, text: &str) -> String {
        text.replace(self.0.path().to_str().unwrap(), "HOME")
    }
}

/// What a command printed to stderr.
pub(crate) fn stderr(assert: &Assert) -> String {
    String::from_utf8(assert.get_output().stderr.clone()).unwrap()
}

/// What a command printed to stdout.
pub(crate) fn stdout(assert: &Assert) -> String {
    String::from_utf8(assert.get_output().stdout.clone()).unwrap()
}
