//! A cluster with one workload, `deployment/web` in `shop`: as much of its API server as an engagement takes, and the agents of pods
//! that are made for it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tp_manager::agents::Agents;
use tp_manager::agents::listener::{self, AgentServices};
use tp_manager::agents::review::{ReviewError, Reviewed, Reviewer};
use tp_manager::engage::Registry;
use tp_protocol::control::from_manager::Kind as From;
use tp_protocol::control::to_manager::Kind as To;
use tp_protocol::control::{FromManager, ToManager};
use tp_protocol::engage::call::AgentState;
use tp_protocol::hello::{AgentIdentity, ClientHello};
use tp_tunnel::client::{self, Connected, Lane};
use tp_tunnel::control::Control;
use tp_tunnel::read_ahead::ReadAhead;
use tp_tunnel::relay;

/// Bytes that an agent's connection to the manager holds.
const LANE_BYTES: usize = 128 << 10;

/// The API server. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Web {
    /// Name of the stand-in's ReplicaSet, once it is made. The pod follows.
    stand_in: Arc<watch::Sender<Option<String>>>,
}

type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;

impl Web {
    /// A client of it.
    pub(super) fn client(&self) -> Client {
        let web = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let web = web.clone();
            async move { Ok::<_, Infallible>(web.answer(request).await) }
        });
        Client::new(service, "default")
    }

    /// Name of the stand-in's ReplicaSet, once it is made.
    pub(super) async fn stand_in(&self) -> String {
        let mut made = self.stand_in.subscribe();
        let made = made.wait_for(Option::is_some).await.expect("the sender is ours");
        made.clone().unwrap_or_default()
    }

    async fn answer(&self, request: Request<Body>) -> Reply {
        let (parts, body) = request.into_parts();
        if parts.uri.query().is_some_and(|query| query.contains("watch=")) {
            return self.watch(parts.uri.path().ends_with("/pods"));
        }
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let sent: Value = serde_json::from_slice(&body).unwrap_or_default();
        let path = parts.uri.path();
        let list = |items: &[Value]| json!({"metadata": {"resourceVersion": "1"}, "items": items});
        let answer = match (&parts.method, path.rsplit('/').next().unwrap_or_default()) {
            (&Method::GET, "deployments") => list(&[deployment()]),
            (&Method::GET, "web") if path.ends_with("/deployments/web") => deployment(),
            (&Method::GET, "tp-manager-ca") => json!({"metadata": {}, "data": {"ca.crt": "PEM"}}),
            (&Method::GET, name) if name.starts_with("tp-") => return not_found(),
            (&Method::POST, "replicasets") => {
                self.stand_in.send_replace(sent["metadata"]["name"].as_str().map(str::to_owned));
                with_uid(sent)
            }
            (&Method::POST, _) => with_uid(sent),
            (&Method::GET, _) => list(&[]),
            (method, _) => panic!("{method} {path} is not of these tests"),
        };
        Response::new(Full::new(Bytes::from(answer.to_string())).boxed_unsync())
    }

    /// Tells of the stand-in's pod when there is one, and of nothing else.
    fn watch(&self, is_of_pods: bool) -> Reply {
        let web = self.clone();
        let added = async move {
            if !is_of_pods {
                std::future::pending::<()>().await;
            }
            let event = json!({"type": "ADDED", "object": pod(&web.stand_in().await)});
            Ok::<_, Infallible>(Frame::data(Bytes::from(format!("{event}\n"))))
        };
        Response::new(StreamBody::new(stream::once(Box::pin(added)).chain(stream::pending())).boxed_unsync())
    }
}

/// An object as the API server has made it; its uid is its name.
fn with_uid(mut object: Value) -> Value {
    object["metadata"]["uid"] = object["metadata"]["name"].clone();
    object
}

fn not_found() -> Reply {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "", "reason": "NotFound", "code": 404,
    });
    let mut reply = Response::new(Full::new(Bytes::from(status.to_string())).boxed_unsync());
    *reply.status_mut() = StatusCode::NOT_FOUND;
    reply
}

fn deployment() -> Value {
    let labels = json!({"app": "web"});
    let template = json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "web"}]}});
    json!({"metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": labels}, "template": template}})
}

/// The stand-in's pod, which runs and is never ready.
fn pod(stand_in: &str) -> Value {
    let owner = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": stand_in, "uid": stand_in, "controller": true,
    });
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("{stand_in}-x2"), "namespace": "shop", "resourceVersion": "2",
            "labels": {"app": "web", "tp/stand-in": stand_in}, "ownerReferences": [owner],
        },
        "status": {"conditions": [{"type": "ContainersReady", "status": "True"}]},
    })
}

/// An agent, until it is dropped. From where it is, every address is the server's.
pub(super) struct Agent {
    dialled: Arc<Mutex<Vec<SocketAddr>>>,
    _tasks: JoinSet<()>,
}

/// Takes a token for the name of a pod in `shop`.
struct Believer;

impl Reviewer for Believer {
    fn review(&self, token: String) -> BoxFuture<'_, Result<Option<Reviewed>, ReviewError>> {
        let reviewed = Reviewed { namespace: "shop".into(), pod: token, pod_uid: "u".into() };
        Box::pin(std::future::ready(Ok(Some(reviewed))))
    }
}

impl Agent {
    /// The agent of a pod, registered with the manager.
    pub(super) async fn start(registry: &Registry, pod: &str, server: SocketAddr) -> Self {
        let (near, far) = tokio::io::duplex(LANE_BYTES);
        let services = AgentServices {
            pod: "tp-manager-0".into(),
            agents: Agents::new(8),
            engagements: registry.clone(),
            reviewer: Believer,
            handshake: Duration::from_secs(5),
            stopping: CancellationToken::new(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // It ends with the other end.
            let _ = listener::serve(&services, far, ()).await;
        });
        let identity = AgentIdentity { namespace: "shop".into(), pod: pod.into(), token: pod.into() };
        let hello = ClientHello { agent: Some(identity), ..ClientHello::new("0.1.0", pod) };
        let Connected { lane, driver, .. } = client::connect(near, &hello).await.expect("the manager lets it in");
        tasks.spawn(async move { _ = driver.await });
        let control = lane.control().await.expect("the manager has a control channel");
        tasks.spawn(obey(control));
        let dialled = Arc::<Mutex<Vec<_>>>::default();
        tasks.spawn(dial(lane, server, Arc::clone(&dialled)));
        Self { dialled, _tasks: tasks }
    }

    /// What it was told to dial.
    pub(super) fn dialled(&self) -> Vec<SocketAddr> {
        self.dialled.lock().expect("nobody panics with it").clone()
    }
}

/// Says that all orders are carried out.
async fn obey(control: Control) {
    let (mut sender, mut receiver) = control.split();
    while let Some(Ok(FromManager { kind })) = receiver.recv().await {
        let answer = match kind {
            Some(From::Orders(orders)) => To::AgentState(AgentState { number: orders.number, ..AgentState::default() }),
            Some(From::Ping(ping)) => To::Pong(ping),
            _ => continue,
        };
        sender.send(&ToManager::from(answer)).await.expect("the manager is there");
    }
}

/// Dials the server instead of anything.
async fn dial(lane: Lane, server: SocketAddr, dialled: Arc<Mutex<Vec<SocketAddr>>>) {
    let mut flows = JoinSet::new();
    while let Ok(arrived) = lane.wait_for_dial().await {
        dialled.lock().expect("nobody panics with it").push(arrived.arrival.dst);
        let socket = TcpStream::connect(server).await.expect("the server listens");
        let flow = arrived.connected().expect("the manager is there");
        flows.spawn(async move { _ = relay::tcp(flow, socket, &ReadAhead::default()).await });
    }
}
