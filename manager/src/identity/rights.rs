//! Asks the API server what a user may (SubjectAccessReview).

use std::fmt;
use std::time::Duration;

use futures_util::future::BoxFuture;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Client;
use kube::api::{Api, PostParams};

use super::User;

/// A right in a namespace, as RBAC has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right {
    /// Such as `create`.
    pub verb: &'static str,
    /// Empty for the core group.
    pub group: &'static str,
    /// Such as `pods/exec`, with the subresource.
    pub resource: &'static str,
}

impl Right {
    /// What engaging a workload takes. Who has it can read all that an engagement shows, and act in the workload's place,
    /// already.
    pub const ENGAGE: Self = Self { verb: "create", group: "", resource: "pods/exec" };

    /// What restarting workloads of a kind takes, such as `deployments` of the group `apps`: it is a change of them.
    #[must_use]
    pub const fn restart(group: &'static str, resource: &'static str) -> Self {
        Self { verb: "patch", group, resource }
    }

    /// The resource as kubectl is told it: with the group, where that is not one of Kubernetes' own.
    #[must_use]
    pub fn resource_name(&self) -> String {
        match self.group.contains('.') {
            true => format!("{}.{}", self.resource, self.group),
            false => self.resource.to_owned(),
        }
    }
}

impl fmt::Display for Right {
    /// `create pods/exec`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource_name())
    }
}

/// Longest wait for the API server, and for an authorizer that it asks.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What the API server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They may; why, if it says.
    Allowed(String),
    /// They may not; why, if it says.
    Refused(String),
}

/// The API server does not say what a user may.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RightsError {
    /// It cannot be asked.
    #[error("{0}")]
    Api(#[from] Box<kube::Error>),
    /// It does not answer.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// It has answered without an answer.
    #[error("the review has no status")]
    NoStatus,
}

/// Knows what users may: the API server, or a test's double.
pub trait Rights: Send + Sync + 'static {
    /// Whether `user` has a right in a namespace.
    ///
    /// # Errors
    /// [`RightsError`] when that cannot be found out.
    fn review<'a>(
        &'a self,
        user: &'a User,
        namespace: &'a str,
        right: Right,
    ) -> BoxFuture<'a, Result<Verdict, RightsError>>;
}

impl Rights for Client {
    fn review<'a>(
        &'a self,
        user: &'a User,
        namespace: &'a str,
        right: Right,
    ) -> BoxFuture<'a, Result<Verdict, RightsError>> {
        Box::pin(async move {
            let api: Api<SubjectAccessReview> = Api::all(self.clone());
            let (params, review) = (PostParams::default(), question(user, namespace, right));
            let answer = tokio::time::timeout(TIMEOUT, api.create(&params, &review)).await;
            let answer = answer.map_err(|_| RightsError::TimedOut(TIMEOUT))?.map_err(Box::new)?;
            let status = answer.status.ok_or(RightsError::NoStatus)?;
            let reason = status.reason.or(status.evaluation_error).unwrap_or_default();
            Ok(if status.allowed { Verdict::Allowed(reason) } else { Verdict::Refused(reason) })
        })
    }
}

fn question(user: &User, namespace: &str, right: Right) -> SubjectAccessReview {
    let (resource, subresource) = match right.resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (right.resource, None),
    };
    let attributes = ResourceAttributes {
        namespace: Some(namespace.to_owned()),
        verb: Some(right.verb.to_owned()),
        group: Some(right.group.to_owned()).filter(|group| !group.is_empty()),
        resource: Some(resource.to_owned()),
        subresource,
        ..ResourceAttributes::default()
    };
    let spec = SubjectAccessReviewSpec {
        user: Some(user.name.clone()),
        uid: Some(user.uid.clone()).filter(|uid| !uid.is_empty()),
        groups: Some(user.groups.clone()),
        extra: Some(user.extra.clone()),
        resource_attributes: Some(attributes),
        ..SubjectAccessReviewSpec::default()
    };
    SubjectAccessReview { spec, ..SubjectAccessReview::default() }
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode};
    use serde_json::json;

    use super::*;
    use crate::fake_api::{FakeApi, status};

    const PATH: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";

    fn ann() -> User {
        User {
            name: "ann".into(),
            uid: "u-1".into(),
            groups: vec!["developers".into()],
            extra: [("scopes".to_owned(), vec!["read".to_owned()])].into(),
        }
    }

    #[test]
    fn the_question_carries_all_that_the_answer_may_depend_on() {
        let asked = |right| serde_json::to_value(question(&ann(), "shop", right)).unwrap()["spec"].clone();
        assert_eq!(
            asked(Right::restart("apps", "deployments"))["resourceAttributes"],
            json!({"namespace": "shop", "verb": "patch", "group": "apps", "resource": "deployments"})
        );
        assert_eq!(
            asked(Right::ENGAGE),
            json!({
                "user": "ann", "uid": "u-1", "groups": ["developers"], "extra": {"scopes": ["read"]},
                "resourceAttributes":
                    {"namespace": "shop", "verb": "create", "resource": "pods", "subresource": "exec"},
            })
        );
    }

    #[tokio::test]
    async fn what_the_api_server_says_counts_and_nothing_else() {
        let api = FakeApi::default();
        let say = |status: serde_json::Value| {
            api.script(Method::POST, PATH, StatusCode::CREATED, json!({"metadata": {}, "spec": {}, "status": status}));
        };
        say(json!({"allowed": true, "reason": "RBAC: allowed by RoleBinding \"x\""}));
        let client = api.client();
        let allowed = client.review(&ann(), "shop", Right::ENGAGE).await.unwrap();
        assert_eq!(allowed, Verdict::Allowed("RBAC: allowed by RoleBinding \"x\"".into()));
        say(json!({"allowed": false}));
        assert_eq!(client.review(&ann(), "shop", Right::ENGAGE).await.unwrap(), Verdict::Refused(String::new()));
        api.script(Method::POST, PATH, StatusCode::CREATED, json!({"metadata": {}, "spec": {}}));
        assert!(matches!(client.review(&ann(), "shop", Right::ENGAGE).await, Err(RightsError::NoStatus)));
        let forbidden = status(StatusCode::FORBIDDEN, "subjectaccessreviews is forbidden");
        api.script(Method::POST, PATH, StatusCode::FORBIDDEN, forbidden);
        let error = client.review(&ann(), "shop", Right::ENGAGE).await.unwrap_err();
        assert!(error.to_string().contains("forbidden"), "{error}");
    }
}
