//! Keeps the CA in the cluster: Secret `tp-manager-tls` for the manager, ConfigMap `tp-manager-ca` for agents.
//!
//! The Secret is made if it is absent and changed by compare-and-swap (its resourceVersion), so two managers that meet
//! during a rollout end with the same CA. Both objects are owned by the StatefulSet and go with it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, Resource};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::rustls::ServerConfig;

use crate::pki::{Ca, LEAF_LIFE, PkiError};
use crate::{MANAGER, VERSION};

/// Secret with the CA and its key.
const SECRET: &str = "tp-manager-tls";
/// ConfigMap with what agents trust.
const CONFIG_MAP: &str = "tp-manager-ca";
/// Key of the certificates in both.
const CA_CRT: &str = "ca.crt";
/// Key of the CA's key in the Secret.
const CA_KEY: &str = "ca.key";

/// Time between two looks at what is in the cluster, so that deleted objects come back.
const RECONCILE: Duration = Duration::from_secs(600);
/// Wait after a failure.
const RETRY: Duration = Duration::from_secs(5);
/// Writes that lost against another writer before the next look.
const CONFLICTS_MAX: u32 = 5;

/// The CA could not be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TrustError {
    /// The API server did not do it.
    #[error("{what}: {source}")]
    Api {
        /// What was tried, on which object.
        what: &'static str,
        /// Why not.
        source: kube::Error,
    },
    /// Somebody else was faster, again and again.
    #[error("the Secret {SECRET} is changed by somebody else all the time")]
    Conflict,
    /// No certificate can be made.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

fn api(what: &'static str) -> impl FnOnce(kube::Error) -> TrustError {
    move |source| TrustError::Api { what, source }
}

/// Keeps the CA and publishes the TLS configuration with a fresh leaf, `None` until there is one, and the certificates to trust
/// for it, in PEM, empty until there are any.
pub(crate) async fn run(
    client: Client,
    namespace: String,
    names: Vec<String>,
    tls: watch::Sender<Option<Arc<ServerConfig>>>,
    bundle: watch::Sender<String>,
) {
    let keeper = Keeper { client, namespace };
    let mut ca: Option<Ca> = None;
    let mut leaf_made: Option<Instant> = None;
    loop {
        match keeper.reconcile(ca.as_ref()).await {
            Ok(kept) => {
                let is_new = ca.as_ref().is_none_or(|ca| ca.key_pem != kept.key_pem);
                let is_old = leaf_made.is_none_or(|made| made.elapsed() >= LEAF_LIFE);
                if is_new || is_old {
                    match kept.leaf(&names, Timestamp::now()) {
                        Ok(config) => {
                            tracing::info!(?names, "certificate for the agents' port made");
                            tls.send_replace(Some(Arc::new(config)));
                            leaf_made = Some(Instant::now());
                        }
                        Err(error) => tracing::error!(%error, "no certificate for the agents' port"),
                    }
                }
                bundle.send_if_modified(|bundle| {
                    let is_new = *bundle != kept.bundle_pem;
                    bundle.clone_from(&kept.bundle_pem);
                    is_new
                });
                ca = Some(kept);
                tokio::time::sleep(RECONCILE).await;
            }
            Err(error) => {
                tracing::warn!(%error, "the agents' CA is not kept");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Reads and writes the two objects.
struct Keeper {
    client: Client,
    namespace: String,
}

impl Keeper {
    /// Makes sure that Secret and ConfigMap hold the CA, and returns it. `known` is put back if the Secret is gone.
    async fn reconcile(&self, known: Option<&Ca>) -> Result<Ca, TrustError> {
        let owner = self.owner().await?;
        for _ in 0..CONFLICTS_MAX {
            if let Some(ca) = self.reconcile_secret(known, owner.as_ref()).await? {
                self.reconcile_config_map(&ca, owner.as_ref()).await?;
                return Ok(ca);
            }
        }
        Err(TrustError::Conflict)
    }

    /// Returns the StatefulSet as an owner; `None` when the manager was not installed as one.
    async fn owner(&self) -> Result<Option<OwnerReference>, TrustError> {
        let sets: Api<StatefulSet> = Api::namespaced(self.client.clone(), &self.namespace);
        let set = sets.get_opt(MANAGER).await.map_err(api("reading the StatefulSet tp-manager"))?;
        // Without the controller flag: the StatefulSet does not manage them, they only go with it.
        Ok(set.and_then(|set| set.owner_ref(&())))
    }

    /// Returns the CA once the Secret holds it; `None` when another writer was faster.
    async fn reconcile_secret(
        &self,
        known: Option<&Ca>,
        owner: Option<&OwnerReference>,
    ) -> Result<Option<Ca>, TrustError> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let current = secrets.get_opt(SECRET).await.map_err(api("reading the Secret tp-manager-tls"))?;
        let now = Timestamp::now();
        let stored = current.as_ref().and_then(ca_of);
        let usable = stored.clone().or_else(|| known.cloned()).filter(|ca| ca.is_usable(now));
        let ca = match usable {
            Some(ca) => ca,
            None => Ca::make(stored.as_ref(), now)?,
        };
        let params = PostParams::default();
        let written = match current {
            None => {
                tracing::info!("creating the Secret {SECRET}");
                let secret = Secret { metadata: metadata(SECRET, owner), data: Some(data(&ca)), ..Secret::default() };
                secrets.create(&params, &secret).await
            }
            Some(mut secret) => {
                let is_owned = is_owned(&secret.metadata, owner);
                if secret.data.as_ref() == Some(&data(&ca)) && is_owned {
                    return Ok(Some(ca));
                }
                tracing::info!("updating the Secret {SECRET}");
                secret.data = Some(data(&ca));
                own(&mut secret.metadata, owner);
                // The resourceVersion that was read makes this a compare-and-swap.
                secrets.replace(SECRET, &params, &secret).await
            }
        };
        match written {
            Ok(_) => Ok(Some(ca)),
            Err(error) if is_race(&error) => Ok(None),
            Err(error) => Err(api("writing the Secret tp-manager-tls")(error)),
        }
    }

    /// Makes sure that the ConfigMap holds what agents are to trust. A lost race is repaired at the next look.
    async fn reconcile_config_map(&self, ca: &Ca, owner: Option<&OwnerReference>) -> Result<(), TrustError> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let current = maps.get_opt(CONFIG_MAP).await.map_err(api("reading the ConfigMap tp-manager-ca"))?;
        let data = BTreeMap::from([(CA_CRT.to_owned(), ca.bundle_pem.clone())]);
        let params = PostParams::default();
        let written = match current {
            None => {
                tracing::info!("creating the ConfigMap {CONFIG_MAP}");
                let metadata = metadata(CONFIG_MAP, owner);
                maps.create(&params, &ConfigMap { metadata, data: Some(data), ..ConfigMap::default() }).await
            }
            Some(map) if map.data.as_ref() == Some(&data) && is_owned(&map.metadata, owner) => return Ok(()),
            Some(mut map) => {
                tracing::info!("updating the ConfigMap {CONFIG_MAP}");
                map.data = Some(data);
                own(&mut map.metadata, owner);
                maps.replace(CONFIG_MAP, &params, &map).await
            }
        };
        match written {
            Err(error) if !is_race(&error) => Err(api("writing the ConfigMap tp-manager-ca")(error)),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// Whether a write lost against another writer: it created the object first (409) or changed it (409), or removed it.
fn is_race(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409))
}

/// Reads the CA out of the Secret; `None` when a key is missing or not text.
fn ca_of(secret: &Secret) -> Option<Ca> {
    let data = secret.data.as_ref()?;
    let text = |key: &str| String::from_utf8(data.get(key)?.0.clone()).ok();
    Some(Ca { bundle_pem: text(CA_CRT)?, key_pem: text(CA_KEY)? })
}

fn data(ca: &Ca) -> BTreeMap<String, ByteString> {
    BTreeMap::from([
        (CA_CRT.to_owned(), ByteString(ca.bundle_pem.clone().into_bytes())),
        (CA_KEY.to_owned(), ByteString(ca.key_pem.clone().into_bytes())),
    ])
}

/// Returns the metadata of an object that the manager makes: with the labels by which removal finds it.
fn metadata(name: &str, owner: Option<&OwnerReference>) -> ObjectMeta {
    let labels = [
        ("app.kubernetes.io/name", MANAGER),
        ("app.kubernetes.io/part-of", "tp"),
        ("app.kubernetes.io/version", VERSION),
        ("app.kubernetes.io/managed-by", MANAGER),
    ];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let mut metadata = ObjectMeta { name: Some(name.to_owned()), labels: Some(labels.into()), ..ObjectMeta::default() };
    own(&mut metadata, owner);
    metadata
}

fn is_owned(metadata: &ObjectMeta, owner: Option<&OwnerReference>) -> bool {
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    owner.is_none_or(|owner| owners.iter().any(|other| other.uid == owner.uid))
}

/// Makes the StatefulSet the only owner: one of the same name that was deleted would take the object with it.
fn own(metadata: &mut ObjectMeta, owner: Option<&OwnerReference>) {
    if let Some(owner) = owner {
        metadata.owner_references = Some(vec![owner.clone()]);
    }
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode};
    use serde_json::json;

    use super::*;
    use crate::fake_api::{FakeApi, status};

    fn owner(uid: &str) -> OwnerReference {
        OwnerReference {
            api_version: "apps/v1".into(),
            kind: "StatefulSet".into(),
            name: MANAGER.into(),
            uid: uid.into(),
            ..OwnerReference::default()
        }
    }

    #[test]
    fn a_ca_survives_the_secret() {
        let ca = Ca::make(None, Timestamp::now()).unwrap();
        let secret = Secret { data: Some(data(&ca)), ..Secret::default() };
        let read = ca_of(&secret).unwrap();
        assert_eq!((read.bundle_pem, read.key_pem), (ca.bundle_pem, ca.key_pem));
        assert!(ca_of(&Secret::default()).is_none());
    }

    #[test]
    fn objects_follow_the_statefulset_that_is_there() {
        let mut meta = metadata(SECRET, Some(&owner("old")));
        assert!(is_owned(&meta, Some(&owner("old"))) && !is_owned(&meta, Some(&owner("new"))));
        own(&mut meta, Some(&owner("new")));
        assert!(is_owned(&meta, Some(&owner("new"))) && !is_owned(&meta, Some(&owner("old"))));
        assert!(is_owned(&meta, None), "without a StatefulSet the owner is left alone");
        assert_eq!(meta.labels.unwrap()["app.kubernetes.io/part-of"], "tp");
    }

    const SET_PATH: &str = "/apis/apps/v1/namespaces/tp-system/statefulsets/tp-manager";
    const SECRET_PATH: &str = "/api/v1/namespaces/tp-system/secrets/tp-manager-tls";
    const CONFIG_MAP_PATH: &str = "/api/v1/namespaces/tp-system/configmaps/tp-manager-ca";

    fn cluster() -> (FakeApi, Keeper) {
        let api = FakeApi::default();
        api.put(SET_PATH, json!({"metadata": {"name": "tp-manager", "uid": "set-1"}, "spec": {}}));
        let keeper = Keeper { client: api.client(), namespace: "tp-system".into() };
        (api, keeper)
    }

    /// What agents are told to trust.
    fn trusted(api: &FakeApi) -> String {
        api.object(CONFIG_MAP_PATH).unwrap()["data"]["ca.crt"].as_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn the_ca_is_made_once_and_then_read() {
        let (api, keeper) = cluster();
        let made = keeper.reconcile(None).await.unwrap();
        assert_eq!(trusted(&api), made.bundle_pem);
        assert_eq!(api.object(SECRET_PATH).unwrap()["metadata"]["ownerReferences"][0]["uid"], "set-1");
        let read = keeper.reconcile(None).await.unwrap();
        assert_eq!((read.key_pem, read.bundle_pem), (made.key_pem, made.bundle_pem));
        assert_eq!((api.count("POST "), api.count("PUT ")), (2, 0), "nothing is written twice");
    }

    #[tokio::test]
    async fn two_managers_that_start_together_end_with_one_ca() {
        let (api, first) = cluster();
        let second = Keeper { client: api.client(), namespace: "tp-system".into() };
        let (a, b) = tokio::join!(first.reconcile(None), second.reconcile(None));
        let (a, b) = (a.unwrap(), b.unwrap());
        assert_eq!((&a.key_pem, &a.bundle_pem), (&b.key_pem, &b.bundle_pem));
        assert_eq!(trusted(&api), a.bundle_pem);
    }

    #[tokio::test]
    async fn deleted_and_changed_objects_come_back() {
        let (api, keeper) = cluster();
        let ca = keeper.reconcile(None).await.unwrap();
        api.remove(SECRET_PATH);
        api.put(CONFIG_MAP_PATH, json!({"metadata": {"name": "tp-manager-ca"}, "data": {"ca.crt": "forged"}}));
        let again = keeper.reconcile(Some(&ca)).await.unwrap();
        assert_eq!(again.key_pem, ca.key_pem, "agents trust this CA already");
        assert_eq!(trusted(&api), ca.bundle_pem);
        assert!(api.object(SECRET_PATH).is_some());
    }

    #[tokio::test]
    async fn an_unusable_ca_is_replaced() {
        let (api, keeper) = cluster();
        let garbage = json!({"ca.crt": ByteString(b"x".to_vec()), "ca.key": ByteString(b"y".to_vec())});
        api.put(SECRET_PATH, json!({"metadata": {"name": "tp-manager-tls"}, "data": garbage}));
        let ca = keeper.reconcile(None).await.unwrap();
        assert!(ca.is_usable(Timestamp::now()));
        assert_eq!(
            ca_of(&serde_json::from_value(api.object(SECRET_PATH).unwrap()).unwrap()).unwrap().key_pem,
            ca.key_pem
        );
    }

    #[tokio::test]
    async fn a_new_statefulset_takes_the_objects_over() {
        let (api, keeper) = cluster();
        let ca = keeper.reconcile(None).await.unwrap();
        api.put(SET_PATH, json!({"metadata": {"name": "tp-manager", "uid": "set-2"}, "spec": {}}));
        keeper.reconcile(Some(&ca)).await.unwrap();
        for path in [SECRET_PATH, CONFIG_MAP_PATH] {
            let owners = &api.object(path).unwrap()["metadata"]["ownerReferences"];
            assert_eq!((owners[0]["uid"].as_str(), owners.as_array().unwrap().len()), (Some("set-2"), 1));
        }
    }

    #[tokio::test]
    async fn a_missing_right_is_named() {
        let (api, keeper) = cluster();
        let forbidden = status(StatusCode::FORBIDDEN, "secrets is forbidden");
        api.script(Method::POST, "/api/v1/namespaces/tp-system/secrets", StatusCode::FORBIDDEN, forbidden);
        let error = keeper.reconcile(None).await.unwrap_err().to_string();
        assert!(error.contains("writing the Secret tp-manager-tls") && error.contains("forbidden"), "{error}");
    }
}
