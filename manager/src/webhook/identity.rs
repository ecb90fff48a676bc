//! Reviews of port-forwards to the manager's pod: takes from them who asks for which port, and allows all.

use serde::Deserialize;

use super::path::SecretPath;
use super::review::{AdmissionRequest, AdmissionReview, Allowed};
use crate::identity::{Identities, User};

/// What the path begins with.
const PREFIX: &str = "/identity/";

/// Takes from reviews who asks for which port.
#[derive(Debug)]
pub struct IdentityHook {
    path: SecretPath,
    namespace: String,
    pod: String,
    identities: Identities,
}

impl IdentityHook {
    /// Makes up a path. Reviews are about `pod`, the manager's.
    ///
    /// Returns `None` when the system has no randomness.
    #[must_use]
    pub fn new(identities: Identities, namespace: &str, pod: &str) -> Option<Self> {
        Some(Self { path: SecretPath::new(PREFIX)?, namespace: namespace.to_owned(), pod: pod.to_owned(), identities })
    }

    /// Where the API server finds it. To be told to nobody else.
    #[must_use]
    pub fn path(&self) -> &str {
        self.path.as_str()
    }

    /// Whether this is the path.
    pub(super) fn is_at(&self, path: &str) -> bool {
        self.path.is(path)
    }

    /// Takes a review, as the API server sends it to the path, and answers that the request is allowed; `None` when it is no
    /// review.
    #[must_use]
    pub fn answer(&self, body: &[u8]) -> Option<Vec<u8>> {
        let review: AdmissionReview<PodPortForwardOptions> = serde_json::from_slice(body).ok()?;
        let request = review.request;
        // A client asks for one port at a time. Who names more guesses at those of others, to bring them into dispute.
        if self.is_about_us(&request)
            && let [port] = request.object.unwrap_or_default().ports[..]
        {
            self.identities.note(User::from(request.user_info), port);
        }
        Allowed::new(&request.uid).to_json()
    }

    /// API servers before 1.28 know no match conditions and ask about all port-forwards of the namespace.
    fn is_about_us(&self, request: &AdmissionRequest<PodPortForwardOptions>) -> bool {
        request.operation == "CONNECT"
            && request.resource.is_pods()
            && request.sub_resource == "portforward"
            && (&request.namespace, &request.name) == (&self.namespace, &self.pod)
    }
}

/// Which ports are asked for; none when the streams of the port-forward are to name them.
#[derive(Debug, Default, Deserialize)]
struct PodPortForwardOptions {
    #[serde(default)]
    ports: Vec<u16>,
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use futures_util::future::BoxFuture;
    use serde_json::{Value, json};

    use super::*;
    use crate::identity::rights::{Right, Rights, RightsError, Verdict};
    use crate::session::hub::{FlowLimits, Hub};
    use crate::session::{SessionId, SessionLimits};

    const PORT: u16 = 40_123;

    /// As a 1.34 API server asks.
    pub(in crate::webhook) fn review() -> Value {
        json!({
            "kind": "AdmissionReview",
            "apiVersion": "admission.k8s.io/v1",
            "request": {
                "uid": "a3b6b5a4-0b1c-4f53-8d4a-3c3b1f1f9d57",
                "kind": {"group": "", "version": "v1", "kind": "PodPortForwardOptions"},
                "resource": {"group": "", "version": "v1", "resource": "pods"},
                "subResource": "portforward",
                "requestKind": {"group": "", "version": "v1", "kind": "PodPortForwardOptions"},
                "requestResource": {"group": "", "version": "v1", "resource": "pods"},
                "requestSubResource": "portforward",
                "name": "tp-manager-0",
                "namespace": "tp-system",
                "operation": "CONNECT",
                "userInfo": {
                    "username": "ann",
                    "uid": "u-1",
                    "groups": ["developers", "system:authenticated"],
                    "extra": {"authentication.kubernetes.io/credential-id": ["JTI=1"]},
                },
                "object": {"kind": "PodPortForwardOptions", "apiVersion": "v1", "ports": [PORT]},
                "oldObject": null,
                "dryRun": false,
                "options": null,
            },
        })
    }

    /// Says of nobody what they may.
    struct Silent;

    impl Rights for Silent {
        fn review<'a>(&'a self, _: &'a User, _: &'a str, _: Right) -> BoxFuture<'a, Result<Verdict, RightsError>> {
            Box::pin(async { Err(RightsError::NoStatus) })
        }
    }

    /// A hook, and who was named for a port that waits.
    pub(in crate::webhook) fn hook() -> (IdentityHook, impl FnOnce() -> Option<String>) {
        let limits = SessionLimits { sessions: 1, lanes_per_session: 1, grace: Duration::from_secs(1) };
        let hub = Hub::new(limits, FlowLimits { flows: 1, pending_dials: 1 });
        let identities = Identities::new(hub, Silent);
        let session = SessionId::from("s-1");
        identities.wait_at(PORT, &session);
        let waiting = identities.clone();
        let hook = IdentityHook::new(identities, "tp-system", "tp-manager-0").unwrap();
        (hook, move || waiting.named_at(PORT, &session))
    }

    fn with(pointer: &str, value: Value) -> Value {
        let mut review = review();
        *review.pointer_mut(pointer).unwrap() = value;
        review
    }

    #[test]
    fn a_review_names_the_user_and_is_allowed() {
        let (hook, named) = hook();
        let answer = hook.answer(review().to_string().as_bytes()).unwrap();
        assert_eq!(
            serde_json::from_slice::<Value>(&answer).unwrap(),
            json!({
                "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
                "response": {"uid": "a3b6b5a4-0b1c-4f53-8d4a-3c3b1f1f9d57", "allowed": true},
            })
        );
        assert_eq!(named(), Some("ann".to_owned()));
    }

    #[test]
    fn reviews_of_anything_else_are_allowed_and_name_nobody() {
        let (hook, named) = hook();
        for other in [
            with("/request/namespace", "shop".into()),
            with("/request/name", "tp-agent-x".into()),
            with("/request/subResource", "exec".into()),
            with("/request/operation", "CREATE".into()),
            with("/request/resource/group", "apps".into()),
            with("/request/object/ports", json!([7400, 80])),
            with("/request/object", json!({"kind": "PodPortForwardOptions", "apiVersion": "v1"})),
            with("/request/object", Value::Null),
        ] {
            assert!(hook.answer(other.to_string().as_bytes()).is_some(), "{other}");
        }
        assert_eq!(named(), None);
    }

    #[test]
    fn what_is_no_review_is_refused() {
        let (hook, named) = hook();
        for body in [&b""[..], b"{}", b"[]", b"null", b"\xff", &br#"{"request":{"uid":1}}"#[..]] {
            assert_eq!(hook.answer(body), None);
        }
        let negative = with("/request/object/ports", json!([-1]));
        assert_eq!(hook.answer(negative.to_string().as_bytes()), None);
        assert_eq!(named(), None);
    }
}
