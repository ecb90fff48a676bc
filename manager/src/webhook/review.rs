//! An `AdmissionReview` (admission.k8s.io/v1), as far as it matters here: what the API server asks, and what it is answered.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use k8s_openapi::api::authentication::v1::UserInfo;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A review that asks. `O` is what the request is about.
#[derive(Debug, Deserialize)]
pub(super) struct AdmissionReview<O> {
    pub(super) request: AdmissionRequest<O>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AdmissionRequest<O> {
    pub(super) uid: String,
    pub(super) resource: Resource,
    #[serde(default)]
    pub(super) sub_resource: String,
    #[serde(default)]
    pub(super) namespace: String,
    /// Empty where the API server is to make up a name.
    #[serde(default)]
    pub(super) name: String,
    pub(super) operation: String,
    /// Nothing comes of the request, and nothing is to come of the review.
    #[serde(default)]
    pub(super) dry_run: bool,
    pub(super) user_info: UserInfo,
    pub(super) object: Option<O>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Resource {
    group: String,
    resource: String,
}

impl Resource {
    pub(super) fn is_pods(&self) -> bool {
        (self.group.as_str(), self.resource.as_str()) == ("", "pods")
    }
}

/// A review that answers: the request is allowed, as all are here.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Allowed<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: AdmissionResponse<'a>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct AdmissionResponse<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    /// A JSON patch (RFC 6902), in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

impl<'a> Allowed<'a> {
    /// Leaves what is asked about as it is. `uid` is the request's.
    pub(super) fn new(uid: &'a str) -> Self {
        Self {
            api_version: "admission.k8s.io/v1",
            kind: "AdmissionReview",
            response: AdmissionResponse { uid, allowed: true, patch_type: None, patch: None, warnings: Vec::new() },
        }
    }

    /// Changes what is asked about by the operations of a JSON patch.
    pub(super) fn with_patch(mut self, operations: Vec<Value>) -> Self {
        self.response.patch_type = Some("JSONPatch");
        self.response.patch = Some(BASE64_STANDARD.encode(Value::Array(operations).to_string()));
        self
    }

    /// Says something to whoever asked, such as a user of kubectl.
    pub(super) fn with_warnings(mut self, warnings: Vec<String>) -> Self {
        self.response.warnings = warnings;
        self
    }

    /// The answer's body; `None` is a bug.
    pub(super) fn to_json(&self) -> Option<Vec<u8>> {
        serde_json::to_vec(self).ok()
    }
}
