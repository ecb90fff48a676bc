//! Kubeconfigs that differ from the given ones in one respect.

use std::path::{Path, PathBuf};

use serde_yaml::{Mapping, Value};

use crate::given::given;

/// A kubeconfig with one cluster, user and context, to be changed and saved.
#[derive(Clone, Debug)]
pub struct Kubeconfig(Value);

impl Kubeconfig {
    /// The plain user's.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn of_user() -> Self {
        Self::read(&given().user_kubeconfig)
    }

    /// Reads a file.
    ///
    /// # Panics
    /// When it is no kubeconfig.
    pub fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self(serde_yaml::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    /// Gives the context, and so by default the connection, another name.
    ///
    /// # Panics
    /// When the kubeconfig has no context.
    #[must_use]
    pub fn context(mut self, name: &str) -> Self {
        self.0["contexts"][0]["name"] = name.into();
        self.0["current-context"] = name.into();
        self
    }

    /// Points it at another API server.
    ///
    /// # Panics
    /// When the kubeconfig has no cluster.
    #[must_use]
    pub fn server(mut self, url: &str) -> Self {
        self.0["clusters"][0]["cluster"]["server"] = url.into();
        self
    }

    /// Has the API server reached at another address, as the one whose certificate it has.
    ///
    /// # Panics
    /// When the kubeconfig has no cluster.
    #[must_use]
    pub fn through(mut self, ip: &str) -> Self {
        let (host, port) = self.server_address();
        self.0["clusters"][0]["cluster"]["tls-server-name"] = host.into();
        self.server(&format!("https://{ip}:{port}"))
    }

    /// Host and port of the API server.
    ///
    /// # Panics
    /// When the kubeconfig names none.
    pub fn server_address(&self) -> (String, String) {
        let address = self.server_url().trim_start_matches("https://");
        let (host, port) = address.rsplit_once(':').expect("the API server's URL has a port");
        (host.to_owned(), port.trim_end_matches('/').to_owned())
    }

    /// Replaces the user's credentials: keys as in a kubeconfig (`token`, `client-key-data`, ..).
    ///
    /// # Panics
    /// When the kubeconfig has no user.
    #[must_use]
    pub fn credentials(mut self, credentials: &[(&str, &str)]) -> Self {
        let fields = credentials.iter().map(|(key, value)| (Value::from(*key), Value::from(*value)));
        self.0["users"][0]["user"] = Value::Mapping(fields.collect::<Mapping>());
        self
    }

    /// The user's bearer token.
    pub fn token(&self) -> Option<&str> {
        self.0["users"][0]["user"]["token"].as_str()
    }

    /// URL of the API server.
    ///
    /// # Panics
    /// When the kubeconfig has none.
    pub fn server_url(&self) -> &str {
        self.0["clusters"][0]["cluster"]["server"].as_str().expect("the kubeconfig names a server")
    }

    /// Writes it to a file in `folder`.
    ///
    /// # Panics
    /// When that is not possible.
    pub fn save(&self, folder: &Path) -> PathBuf {
        let path = folder.join("kubeconfig");
        let text = serde_yaml::to_string(&self.0).expect("a kubeconfig is YAML");
        std::fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    }
}
