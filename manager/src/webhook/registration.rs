//! What the manager writes into the webhook configurations that the chart makes: the CA that the API server is to trust, and
//! the path that it is to ask.
//!
//! Both are put back when somebody takes them out, as an upgrade of the chart may.

use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use kube::api::{Api, Patch, PatchParams};
use kube::core::ClusterResourceScope;
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::MANAGER;

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
    #[error("{what} the {object}: {source}")]
    Api {
        /// What was tried.
        what: &'static str,
        /// Kind and name of the configuration.
        object: String,
        /// Why not.
        source: Box<kube::Error>,
    },
    /// The chart's part of it is missing.
    #[error("the {object} has no webhook {webhook} for a Service")]
    NoWebhook {
        /// Kind and name of the configuration.
        object: String,
        /// The webhook that is the manager's.
        webhook: &'static str,
    },
    /// The API server does not answer.
    #[error("no answer of the API server within {LIMIT:?}")]
    TimedOut,
}

/// A kind of configuration in which a webhook is the manager's.
pub(crate) trait Configuration:
    Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + Debug + DeserializeOwned + Serialize
{
    /// The webhook's name.
    const WEBHOOK: &'static str;
    /// What does not work while it is not registered.
    const WITHOUT: &'static str;

    /// Where the webhook is; `None` without a webhook of this name.
    fn client_config(&mut self) -> Option<&mut WebhookClientConfig>;
}

impl Configuration for ValidatingWebhookConfiguration {
    const WEBHOOK: &'static str = "identity.manager.tp";
    const WITHOUT: &'static str = "clients cannot be identified";

    fn client_config(&mut self) -> Option<&mut WebhookClientConfig> {
        let ours = self.webhooks.iter_mut().flatten().find(|webhook| webhook.name == Self::WEBHOOK);
        ours.map(|webhook| &mut webhook.client_config)
    }
}

impl Configuration for MutatingWebhookConfiguration {
    const WEBHOOK: &'static str = "inject.manager.tp";
    const WITHOUT: &'static str = "pods that ask for an agent start without one";

    fn client_config(&mut self) -> Option<&mut WebhookClientConfig> {
        let ours = self.webhooks.iter_mut().flatten().find(|webhook| webhook.name == Self::WEBHOOK);
        ours.map(|webhook| &mut webhook.client_config)
    }
}

/// What the API server is told by a configuration of kind `K`.
#[derive(Clone)]
pub(crate) struct Registration<K> {
    api: Api<K>,
    name: String,
    path: String,
}

impl<K: Configuration> Registration<K> {
    /// The registration of the manager of `namespace`, at a path that it has made up.
    pub(crate) fn new(client: Client, namespace: &str, path: &str) -> Self {
        // As the chart names what is not in a namespace.
        Self { api: Api::all(client), name: format!("{MANAGER}-{namespace}"), path: path.to_owned() }
    }

    /// Keeps the configuration: looks when the CA changes, every minute, and when what `missed` makes is over, as it is when the
    /// webhook should have been called and was not.
    pub(crate) async fn keep<F: Future<Output = ()>>(&self, mut ca: watch::Receiver<String>, missed: impl Fn() -> F) {
        loop {
            let bundle = ca.borrow_and_update().clone();
            let kept = match bundle.is_empty() {
                true => Ok(()),
                false => timeout(LIMIT, self.reconcile(&bundle)).await.unwrap_or(Err(RegistrationError::TimedOut)),
            };
            let wait = match kept {
                Ok(()) => LOOK,
                Err(error) => {
                    tracing::warn!(%error, "{}", K::WITHOUT);
                    RETRY
                }
            };
            tokio::select! {
                Ok(()) = ca.changed() => {}
                () = async { sleep(SPACING).await; missed().await } => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// Makes sure that the API server trusts the CA and knows the path.
    async fn reconcile(&self, bundle: &str) -> Result<(), RegistrationError> {
        let object = || format!("{} {}", K::kind(&()), self.name);
        let failed = |what| move |source| RegistrationError::Api { what, object: object(), source: Box::new(source) };
        let mut found = self.api.get(&self.name).await.map_err(failed("reading"))?;
        let no_webhook = || RegistrationError::NoWebhook { object: object(), webhook: K::WEBHOOK };
        let WebhookClientConfig { ca_bundle, service, .. } = found.client_config().ok_or_else(no_webhook)?;
        let service = service.as_mut().ok_or_else(no_webhook)?;
        let bundle = ByteString(bundle.as_bytes().to_vec());
        if ca_bundle.as_ref() == Some(&bundle) && service.path.as_ref() == Some(&self.path) {
            return Ok(());
        }
        *ca_bundle = Some(bundle);
        service.path = Some(self.path.clone());
        // A list is replaced as a whole; the resourceVersion that was read makes this a compare-and-swap.
        let version = found.resource_version();
        let patch = json!({"metadata": {"resourceVersion": version}, "webhooks": json!(found)["webhooks"]});
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        self.api.patch(&self.name, &params, &Patch::Merge(patch)).await.map_err(failed("writing"))?;
        tracing::info!(name = self.name, kind = %K::kind(&()), "webhook registered");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::fake_api::FakeApi;

    const PATH: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/tp-manager-tp-system";

    const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/tp-manager-tp-system";

    /// As the chart makes it.
    fn made() -> Value {
        json!({
            "metadata": {"name": "tp-manager-tp-system"},
            "webhooks": [{
                "name": "identity.manager.tp",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Ignore",
                "timeoutSeconds": 5,
                "clientConfig": {"service": {"namespace": "tp-system", "name": "tp-manager", "port": 7444}},
                "rules": [{"operations": ["CONNECT"], "resources": ["pods/portforward"]}],
            }],
        })
    }

    fn registration(api: &FakeApi) -> Registration<ValidatingWebhookConfiguration> {
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
        assert!(error.contains("identity.manager.tp"), "{error}");
    }

    #[tokio::test]
    async fn of_a_mutating_configuration_only_the_managers_own_webhook_changes() {
        let api = FakeApi::default();
        let webhook = |name: &str| {
            json!({
                "name": name,
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "clientConfig": {"service": {"namespace": "tp-system", "name": "tp-manager", "port": 7444}},
                "reinvocationPolicy": "IfNeeded",
            })
        };
        let webhooks = json!([webhook("somebody-elses"), webhook("inject.manager.tp")]);
        api.put(MUTATING, json!({"metadata": {"name": "tp-manager-tp-system"}, "webhooks": webhooks}));
        let registration =
            Registration::<MutatingWebhookConfiguration>::new(api.client(), "tp-system", "/inject/secret");
        registration.reconcile("CA").await.unwrap();
        let webhooks = api.object(MUTATING).unwrap()["webhooks"].clone();
        assert_eq!(webhooks[0], webhook("somebody-elses"));
        assert_eq!(webhooks[1]["clientConfig"]["service"]["path"], "/inject/secret");
        assert_eq!(webhooks[1]["reinvocationPolicy"], "IfNeeded");
    }
}
