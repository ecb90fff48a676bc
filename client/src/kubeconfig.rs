//! Finds and reads kubeconfig files as kubectl does, and makes of one context all that is needed to reach its API server.
//!
//! Everything is resolved here, on the host: files are read, exec plugins run. What goes on to the daemon is a
//! [`KubeAccess`] with the bytes themselves. The legacy `auth-provider` works as far as its stored token does.

mod cert;
pub(crate) mod client;
mod exec;
mod model;
pub(crate) mod proxy;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::attach::KubeAccess;
use crate::config::Layer;
use crate::config::value::Namespace;
use crate::error::{CliError, Result};
use model::{Cluster, Data, File, Secret, User};

/// Largest kubeconfig, and largest file that one names. Those of people with a hundred clusters have 1 MiB.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// Contexts listed in an error message.
const MAX_LISTED: usize = 20;
/// The cluster extension that holds tp's settings.
const EXTENSION: &str = "tp";

/// The kubeconfig files in force, strongest first.
#[derive(Clone, Debug)]
pub(crate) struct Kubeconfig {
    files: Vec<(PathBuf, File)>,
}

impl Kubeconfig {
    /// Reads the file that `--kubeconfig` names, those that `KUBECONFIG` lists, or `~/.kube/config`.
    ///
    /// # Errors
    /// User errors: no file at all, or one that is not a kubeconfig.
    pub(crate) fn load(flag: Option<&Path>, var: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let var = |name: &str| var(name).filter(|value| !value.is_empty());
        if let Some(path) = flag {
            let file = read(path).map_err(|e| no_such_file(path, &e))??;
            return Ok(Self { files: vec![(path.to_owned(), file)] });
        }
        let (paths, origin) = match var("KUBECONFIG") {
            Some(list) => {
                (std::env::split_paths(&list).filter(|p| !p.as_os_str().is_empty()).collect(), "KUBECONFIG names")
            }
            None => {
                let home = var("HOME").or_else(|| var("USERPROFILE"));
                (
                    home.map(|home| Path::new(&home).join(".kube").join("config")).into_iter().collect::<Vec<_>>(),
                    "there is",
                )
            }
        };
        let mut files = Vec::new();
        for path in &paths {
            match read(path) {
                Ok(file) => files.push((path.clone(), file?)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(no_such_file(path, &e)),
            }
        }
        if files.is_empty() {
            let message = match paths.as_slice() {
                [] => "no kubeconfig: neither KUBECONFIG nor a home directory is set".to_owned(),
                paths => format!(
                    "no kubeconfig: {origin} no file {}",
                    join(paths.iter().map(|p| p.display().to_string()), " or ")
                ),
            };
            return Err(CliError::user(message)
                .hint("say which cluster to connect to with --kubeconfig FILE or the variable KUBECONFIG"));
        }
        Ok(Self { files })
    }

    /// Picks a context: the named one, or the current one.
    ///
    /// # Errors
    /// User errors that list the contexts there are; usage errors for bad settings in the cluster's `tp` extension.
    pub(crate) fn select(&self, context: Option<&str>) -> Result<Selected> {
        let name = match context {
            Some(name) => name.to_owned(),
            None => self.current_context()?,
        };
        let Some((_, entry)) = self.find(|f| &f.contexts, |c| c.name == name) else {
            return Err(CliError::user(format!("no context `{name}` in {}", self.paths())).hint(self.listed_contexts()));
        };
        let context = entry.context.clone();
        let Some((cluster_file, cluster)) = self.find(|f| &f.clusters, |c| c.name == context.cluster) else {
            return Err(CliError::user(format!(
                "context `{name}` names the cluster `{}`, which is not in {}",
                context.cluster,
                self.paths()
            )));
        };
        let user = match self.find(|f| &f.users, |u| u.name == context.user) {
            Some((file, user)) => Some((file.to_owned(), user.user.clone())),
            None if context.user.is_empty() => None,
            None => {
                return Err(CliError::user(format!(
                    "context `{name}` names the user `{}`, who is not in {}",
                    context.user,
                    self.paths()
                )));
            }
        };
        let namespace = match context.namespace.as_deref().filter(|namespace| !namespace.is_empty()) {
            Some(namespace) => {
                let namespace = namespace.parse::<Namespace>();
                Some(namespace.map_err(|e| CliError::user(format!("context `{name}`: {e}")))?)
            }
            None => None,
        };
        Ok(Selected {
            settings: extension(cluster_file, &cluster.name, &cluster.cluster)?,
            context: name,
            namespace,
            cluster: cluster.cluster.clone(),
            cluster_name: cluster.name.clone(),
            cluster_file: cluster_file.to_owned(),
            user,
            user_name: context.user,
        })
    }

    fn current_context(&self) -> Result<String> {
        let current = self.files.iter().map(|(_, file)| &file.current_context).find(|name| !name.is_empty());
        current.cloned().ok_or_else(|| {
            CliError::user(format!("{} names no current context", self.paths()))
                .hint(self.listed_contexts())
                .hint("choose one with --context NAME, or for good with `kubectl config use-context NAME`")
        })
    }

    /// The first entry that matches; the first file that has it wins, as with kubectl.
    fn find<'a, T>(
        &'a self,
        list: impl Fn(&'a File) -> &'a Vec<T>,
        matches: impl Fn(&T) -> bool,
    ) -> Option<(&'a Path, &'a T)> {
        self.files.iter().find_map(|(path, file)| {
            let entry = list(file).iter().find(|entry| matches(entry))?;
            Some((path.as_path(), entry))
        })
    }

    fn listed_contexts(&self) -> String {
        let mut names: Vec<_> = self.files.iter().flat_map(|(_, f)| &f.contexts).map(|c| c.name.clone()).collect();
        names.sort();
        names.dedup();
        match names.len() {
            0 => "it has no context at all".to_owned(),
            count if count > MAX_LISTED => {
                let more = count - MAX_LISTED;
                format!("contexts there: {} and {more} more", join(names.into_iter().take(MAX_LISTED), ", "))
            }
            _ => format!("contexts there: {}", join(names, ", ")),
        }
    }

    fn paths(&self) -> String {
        join(self.files.iter().map(|(path, _)| path.display().to_string()), " or ")
    }
}

fn join(items: impl IntoIterator<Item = String>, separator: &str) -> String {
    items.into_iter().collect::<Vec<_>>().join(separator)
}

fn no_such_file(path: &Path, e: &io::Error) -> CliError {
    CliError::user(format!("cannot read the kubeconfig {}: {e}", path.display())).because(e)
}

/// Reads one file: the outer error is the system's, the inner one about its contents.
fn read(path: &Path) -> io::Result<Result<File>> {
    let text = read_bounded(path)?;
    if text.iter().all(u8::is_ascii_whitespace) {
        return Ok(Ok(File::default()));
    }
    // kubectl takes the last of two equal keys. No snippet: the line at fault may hold a credential.
    let options = serde_saphyr::options! { duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins };
    Ok(serde_saphyr::from_slice_with_options(&text, options).map_err(|e| {
        let place = match e.location() {
            Some(at) => format!("{}:{}:{}", path.display(), at.line(), at.column()),
            None => path.display().to_string(),
        };
        // Nor what the parser quotes of the file.
        let problem = e.without_snippet().to_string();
        let problem = problem.split(['"', '`', '\'', '\n']).next().unwrap_or_default();
        let problem = problem.split(" at line ").next().unwrap_or_default().trim_end_matches([' ', ':', ',']);
        CliError::user(format!("{place}: not a valid kubeconfig: {problem}"))
    }))
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let metadata = fs::metadata(path)?;
    if metadata.len() > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("it is larger than {MAX_FILE_BYTES} bytes")));
    }
    fs::read(path)
}

/// The settings in the `tp` extension of a cluster.
fn extension(file: &Path, cluster_name: &str, cluster: &Cluster) -> Result<Option<(PathBuf, Layer)>> {
    let Some(entry) = cluster.extensions.iter().find(|entry| entry.name == EXTENSION) else { return Ok(None) };
    if entry.extension.is_null() {
        return Ok(None);
    }
    let mut value = entry.extension.clone();
    // kubectl and other tools write these two into extensions, as into every Kubernetes object.
    if let Some(map) = value.as_object_mut() {
        map.remove("apiVersion");
        map.remove("kind");
    }
    let layer = serde_json::from_value(value).map_err(|e| {
        CliError::usage(format!("{}: extension `{EXTENSION}` of cluster `{cluster_name}`: {e}", file.display()))
    })?;
    Ok(Some((file.to_owned(), layer)))
}

/// A context with its cluster and user, as the files have them.
#[derive(Clone, Debug)]
pub(crate) struct Selected {
    /// Name of the context.
    pub(crate) context: String,
    /// The context's namespace.
    pub(crate) namespace: Option<Namespace>,
    /// Settings from the cluster's `tp` extension, and the file they are in.
    pub(crate) settings: Option<(PathBuf, Layer)>,
    cluster: Cluster,
    cluster_name: String,
    cluster_file: PathBuf,
    user: Option<(PathBuf, User)>,
    user_name: String,
}

impl Selected {
    /// URL of the API server, with its scheme.
    ///
    /// # Errors
    /// When the cluster names none, or not a URL.
    pub(crate) fn server(&self) -> Result<String> {
        let server = self.cluster.server.trim();
        let problem = |what: &str| {
            CliError::user(format!("cluster `{}` in {} {what}", self.cluster_name, self.cluster_file.display()))
        };
        if server.is_empty() {
            return Err(problem("names no server"));
        }
        let server = if server.contains("://") {
            server.to_owned()
        } else {
            // As client-go does: without a scheme, TLS when there is anything to do it with.
            let tls =
                !self.cluster.certificate_authority.is_empty() || self.cluster.certificate_authority_data.0.is_some();
            format!("{}://{server}", if tls { "https" } else { "http" })
        };
        let url = server.parse::<http::Uri>().ok().filter(|url| url.host().is_some_and(|host| !host.is_empty()));
        match url.as_ref().and_then(http::Uri::scheme_str) {
            Some("http" | "https") => Ok(server),
            _ => Err(problem(&format!("has a server that is no http(s) URL: `{server}`"))),
        }
    }

    /// Reads all that is needed to talk to the API server, and runs the exec plugin if there is one.
    ///
    /// # Errors
    /// User errors for missing files, half credentials and certificates that are not valid at `now`.
    pub(crate) async fn access(&self, now: Timestamp, var: impl Fn(&str) -> Option<String>) -> Result<KubeAccess> {
        let server = self.server()?;
        let ca_what = format!("the certificate authority of cluster `{}`", self.cluster_name);
        let ca = &self.cluster.certificate_authority;
        let ca_pem =
            bytes(&self.cluster.certificate_authority_data, ca, &self.cluster_file, &ca_what)?.unwrap_or_default();
        if !ca_pem.is_empty() {
            cert::check_authority(&ca_pem, &ca_what)?;
        }
        let proxy_url = match self.cluster.proxy_url.trim() {
            "" => proxy::from_env(&server, var).unwrap_or_default(),
            url => url.to_owned(),
        };
        let mut access = KubeAccess {
            context: self.context.clone(),
            user: self.user_name.clone(),
            original_server: server.clone(),
            server,
            tls_server_name: self.cluster.tls_server_name.clone(),
            ca_pem,
            insecure_skip_tls_verify: self.cluster.insecure_skip_tls_verify,
            proxy_url,
            ..KubeAccess::default()
        };
        if let Some((file, user)) = &self.user {
            self.add_credential(&mut access, file, user).await?;
            access.impersonate_user.clone_from(&user.impersonate);
            access.impersonate_groups.clone_from(&user.impersonate_groups);
        }
        self.check_certificate(&access, now)?;
        Ok(access)
    }

    /// Fills in the first kind of credential that the user has, in kubectl's order.
    async fn add_credential(&self, access: &mut KubeAccess, file: &Path, user: &User) -> Result<()> {
        let of_user = |what: &str| format!("the {what} of user `{}`", self.user_name);
        let cert =
            bytes(&user.client_certificate_data, &user.client_certificate, file, &of_user("client certificate"))?;
        let key = bytes(&user.client_key_data, &user.client_key, file, &of_user("client key"))?;
        match (cert, key) {
            (Some(cert), Some(key)) => {
                access.client_cert_pem = cert;
                access.client_key_pem = key;
            }
            (Some(_), None) => {
                return Err(CliError::user(format!("user `{}` has a client certificate but no key", self.user_name)));
            }
            (None, Some(_)) => {
                return Err(CliError::user(format!("user `{}` has a client key but no certificate", self.user_name)));
            }
            (None, None) => {}
        }
        if !user.token_file.is_empty() {
            let token = bytes(&Data::default(), &user.token_file, file, &of_user("token file"))?.unwrap_or_default();
            let token = String::from_utf8(token)
                .map_err(|_| CliError::user(format!("{} is not text", of_user("token file"))))?;
            token.trim().clone_into(&mut access.token);
        } else if !user.token.0.is_empty() {
            access.token.clone_from(&user.token.0);
        } else if !user.username.is_empty() {
            access.username.clone_from(&user.username);
            access.password.clone_from(&user.password.0);
        } else if let Some(provider) = &user.auth_provider {
            if provider.config.id_token.0.is_empty() {
                return Err(CliError::user(format!(
                    "user `{}` logs in by the auth provider `{}`, which Kubernetes has removed",
                    self.user_name, provider.name
                ))
                .hint("log in by an exec plugin instead, such as kubelogin or gke-gcloud-auth-plugin"));
            }
            access.token.clone_from(&provider.config.id_token.0);
        } else if let Some(exec) = user.exec.as_ref().filter(|_| access.client_cert_pem.is_empty()) {
            let dir = file.parent().unwrap_or(Path::new("."));
            let given = exec::run(exec, &self.user_name, dir, &self.cluster, &access.ca_pem).await?;
            access.token = given.token.0;
            access.client_cert_pem = given.client_cert_pem;
            access.client_key_pem = given.client_key_pem.0;
            access.expires_at = given.expires_at.map_or(0, Timestamp::as_second);
        }
        Ok(())
    }

    fn check_certificate(&self, access: &KubeAccess, now: Timestamp) -> Result<()> {
        if access.client_cert_pem.is_empty() {
            return Ok(());
        }
        let what = format!("the client certificate of user `{}` (context `{}`)", self.user_name, self.context);
        cert::check_validity(&access.client_cert_pem, &what, now)
    }
}

/// The data itself where the kubeconfig has it, else the contents of the file that it names.
fn bytes(data: &Data, path: &str, kubeconfig: &Path, what: &str) -> Result<Option<Vec<u8>>> {
    if let Some(Secret(data)) = &data.0 {
        return Ok(Some(data.clone()));
    }
    if path.is_empty() {
        return Ok(None);
    }
    let path = kubeconfig.parent().unwrap_or(Path::new(".")).join(path);
    let bytes = read_bounded(&path);
    bytes.map(Some).map_err(|e| CliError::user(format!("{what} cannot be read: {}: {e}", path.display())).because(&e))
}

#[cfg(test)]
mod tests;
