//! A double of the API server for tests: objects by path, with resourceVersions, uids that are their names, and watches that
//! stay silent.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

use crate::config::{AgentPod, Engage};
use crate::engage::Cluster;
use crate::engage::workload::Kind;

/// The objects, and what goes wrong. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct FakeApi {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Path of the object, without a query.
    objects: BTreeMap<String, Value>,
    /// Answers to requests, by method and path, ahead of the objects.
    scripted: BTreeMap<(Method, String), (StatusCode, Value)>,
    /// All requests that were made, `METHOD path?query`.
    seen: Vec<String>,
    version: u64,
}

type Reply = Response<BoxBody<Bytes, Infallible>>;

impl FakeApi {
    /// Returns a client that talks to this double.
    pub(crate) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        Client::new(service, "default")
    }

    /// Returns a cluster with this API server, in which a manager of `tp-system` has its default settings and asks nobody who
    /// clients are.
    pub(crate) fn cluster(&self) -> Cluster {
        Cluster {
            client: self.client(),
            namespace: "tp-system".to_owned(),
            config: Engage::default(),
            agent: AgentPod::default(),
            identities: None,
        }
    }

    /// Says that it is of Kubernetes 1.34.
    pub(crate) fn tell_version(&self) {
        let version = json!({
            "major": "1", "minor": "34", "gitVersion": "v1.34.4", "gitCommit": "", "gitTreeState": "", "buildDate": "",
            "goVersion": "", "compiler": "", "platform": "",
        });
        self.script(Method::GET, "/version", StatusCode::OK, version);
    }

    /// Says that a namespace has no workload of any kind.
    pub(crate) fn put_no_workloads(&self, namespace: &str) {
        for kind in Kind::ALL.map(Kind::resource) {
            let group = if kind.group.is_empty() { "/api" } else { "/apis" };
            let path = format!("{group}/{}/namespaces/{namespace}/{}", kind.api_version, kind.plural);
            self.put(&path, json!({"metadata": {}, "items": []}));
        }
    }

    /// Puts an object at `path`.
    pub(crate) fn put(&self, path: &str, object: Value) {
        let mut state = self.state.lock().unwrap();
        state.store(path, object);
    }

    /// Removes the object at `path`.
    pub(crate) fn remove(&self, path: &str) {
        self.state.lock().unwrap().objects.remove(path);
    }

    /// Returns the object at `path`.
    pub(crate) fn object(&self, path: &str) -> Option<Value> {
        self.state.lock().unwrap().objects.get(path).cloned()
    }

    /// Answers `method path` with this from now on.
    pub(crate) fn script(&self, method: Method, path: &str, status: StatusCode, answer: Value) {
        self.state.lock().unwrap().scripted.insert((method, path.to_owned()), (status, answer));
    }

    /// Returns how many requests began with `start`, as in `GET /api/v1/pods`.
    pub(crate) fn count(&self, start: &str) -> usize {
        self.state.lock().unwrap().seen.iter().filter(|line| line.starts_with(start)).count()
    }

    async fn answer(&self, request: Request<Body>) -> Reply {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let path = parts.uri.path().to_owned();
        if parts.uri.query().is_some_and(|query| query.contains("watch=")) {
            let silent = stream::pending::<Result<Frame<Bytes>, Infallible>>();
            return Response::new(StreamBody::new(silent).boxed());
        }
        let (status, answer) = self.state.lock().unwrap().handle(&parts.method, &path, &body);
        let mut response = Response::new(Full::new(Bytes::from(answer.to_string())).boxed());
        *response.status_mut() = status;
        response
    }
}

/// A Status object, as the API server sends with a failure.
pub(crate) fn status(code: StatusCode, message: &str) -> Value {
    let reason = if code == StatusCode::NOT_FOUND { "NotFound" } else { "Failed" };
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason, "code": code.as_u16()})
}

impl State {
    fn handle(&mut self, method: &Method, path: &str, body: &[u8]) -> (StatusCode, Value) {
        self.seen.push(format!("{method} {path}"));
        if let Some(scripted) = self.scripted.get(&(method.clone(), path.to_owned())) {
            return scripted.clone();
        }
        let failure = |code: StatusCode| (code, status(code, &format!("{method} {path}: {code}")));
        let sent: Value = serde_json::from_slice(body).unwrap_or_default();
        match *method {
            Method::GET => match self.objects.get(path) {
                Some(object) => (StatusCode::OK, object.clone()),
                None => failure(StatusCode::NOT_FOUND),
            },
            Method::POST => {
                let name = sent["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                let path = format!("{path}/{name}");
                match self.objects.contains_key(&path) {
                    true => failure(StatusCode::CONFLICT),
                    false => {
                        let mut made = sent;
                        made["metadata"]["uid"] = json!(name);
                        (StatusCode::CREATED, self.store(&path, made))
                    }
                }
            }
            Method::PUT => match self.objects.get(path) {
                None => failure(StatusCode::NOT_FOUND),
                Some(current) if current["metadata"]["resourceVersion"] != sent["metadata"]["resourceVersion"] => {
                    failure(StatusCode::CONFLICT)
                }
                Some(_) => (StatusCode::OK, self.store(path, sent)),
            },
            Method::PATCH => match self.objects.get(path).cloned() {
                None => failure(StatusCode::NOT_FOUND),
                Some(current) => {
                    let version = sent["metadata"].get("resourceVersion");
                    if version.is_some_and(|version| *version != current["metadata"]["resourceVersion"]) {
                        return failure(StatusCode::CONFLICT);
                    }
                    let mut patched = current;
                    merge(&mut patched, sent);
                    (StatusCode::OK, self.store(path, patched))
                }
            },
            _ => failure(StatusCode::METHOD_NOT_ALLOWED),
        }
    }

    fn store(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(path.to_owned(), object.clone());
        object
    }
}

/// Applies a JSON merge patch (RFC 7396).
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        match value {
            Value::Null => _ = target.as_object_mut().map(|object| object.remove(&key)),
            value => merge(&mut target[key], value),
        }
    }
}
