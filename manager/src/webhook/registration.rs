//! What the manager writes into its ValidatingWebhookConfiguration, which the chart makes: the CA that the API server is to
//! trust, and the path that it is to ask.
//!
//! Both are put back when somebody takes them out, as an upgrade of the chart may.

use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{ValidatingWebhookConfiguration, WebhookClientConfig};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::MANAGER;
use crate::identity::Identities;

/// The webhook in the configuration that is the manager's.
const WEBHOOK: &str = "identity.manager.tp";

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(60);

/// Wait after a failure.
const RETRY: Duration = Duration::from_secs(2);

/// Wait before a look that a client asked for, so that those who try again do not make the manager ask for each.
const SPACING: Duration = Duration::from_secs(1);

/// How long one look may take.
const LIMIT: Duration = Duration::from_secs(10);

/// The configuration could not be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum RegistrationError {
    /// The API server did not do it.
    #[error("{what} the ValidatingWebhookConfiguration {name}: {source}")]
    Api {
        /// What was tried.
        what: &'static str,
        /// The configuration.
        name: String,
        /// Why not.
        source: Box<kube::Error>,
    },
    /// The chart's part of it is missing.
    #[error("the ValidatingWebhookConfiguration {0} has no webhook {WEBHOOK} for a Service")]
    NoWebhook(String),
    /// The API server does not answer.
    #[error("no answer of the API server within {LIMIT:?}")]
    TimedOut,
}

/// What the API server is told.
#[derive(Clone)]
pub(crate) struct Registration {
    client: Client,
    name: String,
    path: String,
}

impl Registration {
    /// The registration of the manager of `namespace`, at a path that it has made up.
    pub(crate) fn new(client: Client, namespace: &str, path: &str) -> Self {
        // As the chart names what is not in a namespace.
        Self { client, name: format!("{MANAGER}-{namespace}"), path: path.to_owned() }
    }

    /// Keeps the configuration: looks when the CA changes, when a client was not heard of, and every minute.
    pub(crate) async fn keep(&self, mut ca: watch::Receiver<String>, identities: &Identities) {
        loop {
            let bundle = ca.borrow_and_update().clone();
            let kept = match bundle.is_empty() {
                true => Ok(()),
                false => timeout(LIMIT, self.reconcile(&bundle)).await.unwrap_or(Err(RegistrationError::TimedOut)),
            };
            let wait = match kept {
                Ok(()) => LOOK,
                Err(error) => {
                    tracing::warn!(%error, "clients cannot be identified");
                    RETRY
                }
            };
            tokio::select! {
                Ok(()) = ca.changed() => {}
                () = async { sleep(SPACING).await; identities.unheard().await } => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// Makes sure that the API server trusts the CA and knows the path.
    async fn reconcile(&self, bundle: &str) -> Result<(), RegistrationError> {
        let api: Api<ValidatingWebhookConfiguration> = Api::all(self.client.clone());
        let failed =
            |what| move |source| RegistrationError::Api { what, name: self.name.clone(), source: Box::new(source) };
        let found = api.get(&self.name).await.map_err(failed("reading"))?;
        let no_webhook = || RegistrationError::NoWebhook(self.name.clone());
        let mut webhooks = found.webhooks.ok_or_else(no_webhook)?;
        let ours = webhooks.iter_mut().find(|webhook| webhook.name == WEBHOOK).ok_or_else(no_webhook)?;
        let WebhookClientConfig { ca_bundle, service, .. } = &mut ours.client_config;
        let service = service.as_mut().ok_or_else(no_webhook)?;
        let bundle = ByteString(bundle.as_bytes().to_vec());
        if ca_bundle.as_ref() == Some(&bundle) && service.path.as_ref() == Some(&self.path) {
            return Ok(());
        }
        *ca_bundle = Some(bundle);
        service.path = Some(self.path.clone());
        // A list is replaced as a whole; the resourceVersion that was read makes this a compare-and-swap.
        let version = found.metadata.resource_version;
        let patch = json!({"metadata": {"resourceVersion": version}, "webhooks": webhooks});
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        api.patch(&self.name, &params, &Patch::Merge(patch)).await.map_err(failed("writing"))?;
        tracing::info!(name = self.name, "webhook registered");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::fake_api::FakeApi;

    const PATH: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/tp-manager-tp-system";

    /// As the chart makes it.
    fn made() -> Value {
        json!({
            "metadata": {"name": "tp-manager-tp-system"},
            "webhooks": [{
                "name": WEBHOOK,
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Ignore",
                "timeoutSeconds": 5,
                "clientConfig": {"service": {"namespace": "tp-system", "name": "tp-manager", "port": 7444}},
                "rules": [{"operations": ["CONNECT"], "resources": ["pods/portforward"]}],
            }],
        })
    }

    fn registration(api: &FakeApi) -> Registration {
        Registration::new(api.client(), "tp-system", "/identity/secret")
    }

    fn config(api: &FakeApi) -> Value {
        api.object(PATH).unwrap()["webhooks"][0]["clientConfig"].clone()
    }

    #[tokio::test]
    async fn ca_and_path_are_written_once_and_the_rest_stays() {
        let api = FakeApi::default();
        api.put(PATH, made());
        registration(&api).reconcile("CA").await.unwrap();
        registration(&api).reconcile("CA").await.unwrap();
        assert_eq!(api.count("PATCH "), 1);
        let bundle = serde_json::to_value(ByteString(b"CA".to_vec())).unwrap();
        let service = json!({"namespace": "tp-system", "name": "tp-manager", "port": 7444, "path": "/identity/secret"});
        assert_eq!(config(&api), json!({"caBundle": bundle, "service": service}));
        let object = api.object(PATH).unwrap();
        assert_eq!(object["webhooks"][0]["rules"], made()["webhooks"][0]["rules"]);
        assert_eq!(object["webhooks"][0]["timeoutSeconds"], 5);
    }

    #[tokio::test]
    async fn a_new_ca_and_what_somebody_reset_are_written_again() {
        let api = FakeApi::default();
        api.put(PATH, made());
        registration(&api).reconcile("CA").await.unwrap();
        registration(&api).reconcile("another CA").await.unwrap();
        assert_eq!(config(&api)["caBundle"], serde_json::to_value(ByteString(b"another CA".to_vec())).unwrap());
        api.put(PATH, made());
        registration(&api).reconcile("another CA").await.unwrap();
        assert_eq!(config(&api)["service"]["path"], "/identity/secret");
        assert_eq!(api.count("PATCH "), 3);
    }

    #[tokio::test]
    async fn what_is_missing_is_named() {
        let api = FakeApi::default();
        let error = registration(&api).reconcile("CA").await.unwrap_err().to_string();
        assert!(error.starts_with("reading the ValidatingWebhookConfiguration tp-manager-tp-system: "), "{error}");
        api.put(PATH, json!({"metadata": {"name": "tp-manager-tp-system"}, "webhooks": []}));
        let error = registration(&api).reconcile("CA").await.unwrap_err().to_string();
        assert!(error.contains(WEBHOOK), "{error}");
    }
}
