//! Asks the API server whose token it is (TokenReview).

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};

/// Audience that agents' tokens are made for. A token for another audience, such as the API server's, is refused, so
/// that a pod's ordinary token cannot be used here, nor an agent's token anywhere else.
pub const AUDIENCE: &str = "tp-manager";

/// Longest wait for the API server.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Names that the API server gives to the claims of a token bound to a pod
/// (<https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#token-authentication-validation>).
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
/// See [`POD_NAME`].
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// User names of service accounts: `system:serviceaccount:NAMESPACE:NAME`.
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// The pod that a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reviewed {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Uid of the pod: a pod of the same name made later has another.
    pub pod_uid: String,
}

/// The token could not be reviewed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReviewError {
    /// The API server cannot be asked.
    #[error("cannot review the token: {0}")]
    Api(#[from] kube::Error),
    /// The API server does not answer.
    #[error("the API server did not review the token within {0:?}")]
    TimedOut(Duration),
}

/// Reviews tokens: the API server, or a test's double.
pub trait Reviewer: Send + Sync + 'static {
    /// Returns the pod that `token` is bound to; `None` when it is not valid here.
    fn review(&self, token: String) -> BoxFuture<'_, Result<Option<Reviewed>, ReviewError>>;
}

impl Reviewer for Client {
    fn review(&self, token: String) -> BoxFuture<'_, Result<Option<Reviewed>, ReviewError>> {
        Box::pin(async move {
            let review = TokenReview {
                metadata: ObjectMeta::default(),
                spec: TokenReviewSpec { token, audiences: Some(vec![AUDIENCE.to_owned()]) },
                status: None,
            };
            let api: Api<TokenReview> = Api::all(self.clone());
            let answer = tokio::time::timeout(TIMEOUT, api.create(&PostParams::default(), &review))
                .await
                .map_err(|_| ReviewError::TimedOut(TIMEOUT))??;
            Ok(answer.status.and_then(bound_pod))
        })
    }
}

/// Reads the pod out of a review; `None` when the token is not valid for [`AUDIENCE`] or not bound to a pod.
fn bound_pod(status: TokenReviewStatus) -> Option<Reviewed> {
    let for_us = status.audiences.unwrap_or_default().iter().any(|audience| audience == AUDIENCE);
    if status.authenticated != Some(true) || !for_us {
        return None;
    }
    let user = status.user?;
    let username = user.username?;
    let (namespace, _account) = username.strip_prefix(SERVICE_ACCOUNT)?.split_once(':')?;
    let extra: BTreeMap<String, Vec<String>> = user.extra?;
    let one = |key: &str| extra.get(key).and_then(|values| values.first()).cloned();
    Some(Reviewed { namespace: namespace.to_owned(), pod: one(POD_NAME)?, pod_uid: one(POD_UID)? })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(value: serde_json::Value) -> TokenReviewStatus {
        serde_json::from_value(value).unwrap()
    }

    /// As a 1.34 API server answers it.
    fn valid() -> serde_json::Value {
        json!({
            "authenticated": true,
            "audiences": ["tp-manager"],
            "user": {
                "username": "system:serviceaccount:shop:web",
                "uid": "a-1",
                "groups": ["system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"],
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["web-1"],
                    "authentication.kubernetes.io/pod-uid": ["p-1"],
                    "authentication.kubernetes.io/node-name": ["node1"],
                },
            },
        })
    }

    #[test]
    fn a_valid_token_names_its_pod() {
        let expected = Reviewed { namespace: "shop".into(), pod: "web-1".into(), pod_uid: "p-1".into() };
        assert_eq!(bound_pod(status(valid())), Some(expected));
    }

    #[test]
    fn every_missing_piece_makes_a_token_invalid() {
        let mut cases = Vec::new();
        for (pointer, value) in [
            ("/authenticated", json!(false)),
            ("/audiences", json!(["https://kubernetes.default.svc"])),
            ("/audiences", json!([])),
            ("/user/username", json!("jane")),
            ("/user/extra", json!({})),
            ("/user/extra/authentication.kubernetes.io~1pod-uid", json!([])),
        ] {
            let mut changed = valid();
            *changed.pointer_mut(pointer).unwrap() = value;
            cases.push(changed);
        }
        cases.push(json!({"error": "token expired"}));
        for case in cases {
            assert_eq!(bound_pod(status(case.clone())), None, "{case}");
        }
    }
}
