//! What was prepared before: binaries, images and a cluster, named by environment variables.

use std::path::PathBuf;
use std::sync::OnceLock;

/// The prepared things. `make test` and `make bench` set the variables.
#[derive(Debug)]
pub struct Given {
    /// The built client, `TP_BIN`.
    pub tp: PathBuf,
    /// Kubeconfig of the administrator, `TP_E2E_ADMIN_KUBECONFIG`.
    pub admin_kubeconfig: PathBuf,
    /// Kubeconfig of a user who may port-forward to the manager and do nothing else, `TP_E2E_KUBECONFIG`.
    pub user_kubeconfig: PathBuf,
    /// Image with bash and the clients of all servers of the samples, `TP_E2E_CLIENT_IMAGE`.
    pub client_image: String,
    /// The client image with Java and Node in it, `TP_E2E_RUNTIMES_IMAGE`.
    pub runtimes_image: String,
    /// Image that holds nothing but the static `tp-sample`, `TP_E2E_SAMPLE_IMAGE`.
    pub sample_image: String,
    /// The client image as pods name it, `TP_E2E_CLUSTER_CLIENT_IMAGE`.
    pub cluster_client_image: String,
    /// The sample image as pods name it, `TP_E2E_CLUSTER_SAMPLE_IMAGE`.
    pub cluster_sample_image: String,
    /// Namespace in which the manager is installed, `TP_E2E_MANAGER_NAMESPACE`.
    pub manager_namespace: String,
}

/// Returns what was prepared.
///
/// # Panics
/// When it was not: a test without a product to test has failed.
pub fn given() -> &'static Given {
    static GIVEN: OnceLock<Given> = OnceLock::new();
    GIVEN.get_or_init(|| Given {
        tp: file("TP_BIN"),
        admin_kubeconfig: file("TP_E2E_ADMIN_KUBECONFIG"),
        user_kubeconfig: file("TP_E2E_KUBECONFIG"),
        client_image: text("TP_E2E_CLIENT_IMAGE"),
        runtimes_image: text("TP_E2E_RUNTIMES_IMAGE"),
        sample_image: text("TP_E2E_SAMPLE_IMAGE"),
        cluster_client_image: text("TP_E2E_CLUSTER_CLIENT_IMAGE"),
        cluster_sample_image: text("TP_E2E_CLUSTER_SAMPLE_IMAGE"),
        manager_namespace: text("TP_E2E_MANAGER_NAMESPACE"),
    })
}

fn text(variable: &str) -> String {
    let value = std::env::var(variable).unwrap_or_default();
    assert!(
        !value.is_empty(),
        "the variable {variable} is not set: run `make test`, which builds the product, brings up a cluster and sets it"
    );
    value
}

fn file(variable: &str) -> PathBuf {
    let path = PathBuf::from(text(variable));
    std::fs::canonicalize(&path).unwrap_or_else(|e| {
        panic!("{variable} names {}: {e}; run `make test`, which makes what is missing", path.display())
    })
}
