use futures_util::{SinkExt, StreamExt};
use http::StatusCode;
use http::header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;
use tp_protocol::engage::call::Held;
use tp_protocol::hello::{ClientHello, SessionKey};
use tp_protocol::open::Transport as OpenTransport;

use super::*;
use crate::engage::Registry;
use crate::engage::registry::secret_sha256;
use crate::engage::stand_in::{Record, StandIn};
use crate::engage::workload::Kind;
use crate::fake_api::{FakeApi, status};
use crate::session::SessionLimits;
use crate::session::hub::{Admitted, FlowLimits, Hub, Ticket};

const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/shop/deployments/web";
const PODS: &str = "/api/v1/namespaces/shop/pods";

fn template(host_network: bool) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"hostNetwork": host_network, "containers": []}})
}

fn workload(kind: Kind, host_network: bool) -> Workload {
    let template = serde_json::from_value(template(host_network)).unwrap();
    Workload { kind, name: "web".into(), selector: [("app".into(), "web".into())].into(), template }
}

/// A pod that runs and is ready, of a Deployment's ReplicaSet, made at this second.
fn pod(name: &str, owner: (&str, &str), second: u8) -> Value {
    json!({
        "metadata": {
            "name": name,
            "creationTimestamp": format!("2026-11-21T10:00:{second:02}Z"),
            "labels": {"app": "web", "pod-template-hash": "5d9"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": owner.0, "name": owner.1, "uid": "u", "controller": true}],
        },
        "spec": {"containers": []},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

const RS: (&str, &str) = ("ReplicaSet", "web-5d9");

/// An API server with the Deployment `web` in `shop`, and these pods.
fn api(pods: &[Value]) -> FakeApi {
    let api = FakeApi::default();
    let web = json!({"metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template(false)}});
    api.put(DEPLOYMENT, web);
    api.put(PODS, json!({"metadata": {}, "items": pods}));
    api
}

fn asks_for(ports: &[(u32, Transport)]) -> Engage {
    let port = |&(port, transport): &(u32, Transport)| ToPod { port, transport: transport.into() };
    Engage { to_pod: ports.iter().map(port).collect(), ..Engage::default() }
}

#[test]
fn ports_are_asked_for_once_and_by_tcp() {
    let web = workload(Kind::Deployment, false);
    let tcp = |port| (port, Transport::Tcp);
    let two = asked(&asks_for(&[tcp(6379), tcp(80), tcp(6379)]), &web, &[]).unwrap();
    assert_eq!(two.iter().map(|it| it.port).collect::<Vec<_>>(), [6379, 80]);
    let why = |ports: &[(u32, Transport)]| asked(&asks_for(ports), &web, &[]).unwrap_err().message;
    assert_eq!(why(&[(8125, Transport::Udp)]), "port 8125 of the pod's localhost is reached by TCP only");
    assert_eq!(why(&[tcp(0)]), "0 is not a port's number");
    assert_eq!(why(&[tcp(65_536)]), "65536 is not a port's number");
    let many: Vec<_> = (1..=33).map(tcp).collect();
    assert!(why(&many).contains("more than 32 ports"));
}

#[test]
fn a_port_that_the_handler_needs_is_refused_and_so_is_a_nodes_localhost() {
    let port = |local: &str| HeldPort {
        port: 8080,
        transport: Transport::Tcp.into(),
        service_port: 80,
        local: local.to_owned(),
    };
    let (web, wish) = (workload(Kind::Deployment, false), asks_for(&[(9000, Transport::Tcp)]));
    for local in ["127.0.0.1:9000", "[::1]:9000"] {
        let refused = asked(&wish, &web, &[port(local)]).unwrap_err();
        assert_eq!(refused.message, "--to-pod 9000 takes the port at which the handler is to listen");
    }
    assert!(asked(&wish, &web, &[port("127.0.0.1:9001"), port("172.18.0.4:9000")]).is_ok());
    let refused = asked(&wish, &workload(Kind::DaemonSet, true), &[]).unwrap_err();
    assert!(refused.message.contains("use their nodes' network"), "{refused:?}");
    assert!(asked(&Engage::default(), &workload(Kind::DaemonSet, true), &[]).is_ok());
}

#[tokio::test]
async fn the_oldest_pod_that_is_ready_is_the_one() {
    let mut going = pod("going", RS, 0);
    going["metadata"]["deletionTimestamp"] = json!("2026-11-21T10:01:00Z");
    let mut pending = pod("pending", RS, 1);
    pending["status"]["phase"] = json!("Pending");
    let mut on_host = pod("on-host", RS, 2);
    on_host["spec"]["hostNetwork"] = json!(true);
    let mut stand_in = pod("stand-in", RS, 3);
    stand_in["metadata"]["labels"][STAND_IN] = json!("tp-web-0ab3ff");
    let mut unready = pod("unready", RS, 4);
    unready["status"]["conditions"][0]["status"] = json!("False");
    let none = [going, pending, on_host, stand_in];
    let chosen = |pods: &[Value]| {
        let client = api(pods).client();
        async move { choose(&client, "shop", "deployment/web").await }
    };
    assert_eq!(chosen(&none).await.unwrap_err().class, ErrorClass::HostUnreachable);
    let all: Vec<Value> = none.iter().cloned().chain([unready]).collect();
    assert_eq!(chosen(&all).await.unwrap(), "unready");
    let all: Vec<Value> = all.into_iter().chain([pod("young", RS, 7), pod("old", RS, 6)]).collect();
    assert_eq!(chosen(&all).await.unwrap(), "old");
    assert_eq!(
        choose(&api(&all).client(), "shop", "deployment/db").await.unwrap_err().class,
        ErrorClass::HostUnreachable
    );
}

/// A client that holds an ingest of `web` with port 6379 of its pod's localhost, and the manager.
fn engaged(api: &FakeApi) -> (Engagements, Ticket) {
    let limits = SessionLimits { sessions: 8, lanes_per_session: 2, grace: std::time::Duration::from_secs(120) };
    let hub = Hub::new(limits, FlowLimits { flows: 8, pending_dials: 2 });
    let registry = Registry::new(hub);
    let client = client(&registry);
    let held = Held {
        id: "tp-web-1".into(),
        namespace: "shop".into(),
        workload: "deployment/web".into(),
        to_pod: asks_for(&[(6379, Transport::Tcp)]).to_pod,
        ..Held::default()
    };
    let SessionKey { id, secret } = &client.key;
    let record = Record { held, session: id.clone(), secret_sha256: secret_sha256(secret) };
    let stand_in = StandIn::of("tp-system", &record.held);
    registry.add(record, &stand_in, false).unwrap();
    (Engagements::new(registry, Some(api.cluster())), client)
}

fn client(registry: &Registry) -> Ticket {
    match registry.hub().admit(&ClientHello::new("0.1.0", "demo")).unwrap() {
        Admitted::New(ticket) => ticket,
        Admitted::Resumed { .. } => panic!("a new client has nothing to resume"),
    }
}

fn open(transport: OpenTransport, dst: &str) -> Open {
    Open { namespace: Some("shop".into()), ..Open::new(transport, dst.parse().unwrap()) }
}

#[tokio::test]
async fn only_what_the_sessions_own_engagement_has_asked_for_is_dialled() {
    let api = api(&[pod("web-1", RS, 0)]);
    let (engagements, ann) = engaged(&api);
    let bob = client(&engagements.registry);
    let dial = async |ticket: &Ticket, via: &str, open: Open| {
        engagements.dial_in_pod(&ticket.session, via, &open).await.unwrap_err().class
    };
    let (web, redis) = ("deployment/web", open(OpenTransport::Tcp, "127.0.0.1:6379"));
    assert_eq!(dial(&bob, web, redis.clone()).await, ErrorClass::Denied, "another session");
    assert_eq!(dial(&ann, "deployment/db", redis.clone()).await, ErrorClass::Denied, "another workload");
    let elsewhere = Open { namespace: Some("bank".into()), ..redis.clone() };
    assert_eq!(dial(&ann, web, elsewhere).await, ErrorClass::Denied, "another namespace");
    assert_eq!(dial(&ann, web, open(OpenTransport::Tcp, "127.0.0.1:6380")).await, ErrorClass::Denied, "another port");
    assert_eq!(
        dial(&ann, web, open(OpenTransport::Tcp, "10.0.0.1:6379")).await,
        ErrorClass::Denied,
        "not its localhost"
    );
    assert_eq!(dial(&ann, web, open(OpenTransport::Udp, "127.0.0.1:6379")).await, ErrorClass::Denied, "datagrams");
    assert_eq!(api.count("GET"), 0, "nothing was asked for these");

    // This one is asked for, of an API server that makes no port-forwards.
    assert_eq!(dial(&ann, web, redis.clone()).await, ErrorClass::Failed);
    assert_eq!(api.count(&format!("GET {PODS}/web-1/portforward")), 1);
    let path = format!("{PODS}/web-1/portforward");
    api.script(http::Method::GET, &path, StatusCode::FORBIDDEN, status(StatusCode::FORBIDDEN, "no"));
    assert_eq!(dial(&ann, web, redis.clone()).await, ErrorClass::Denied);
    engagements.registry.end("tp-web-1");
    assert_eq!(dial(&ann, web, redis).await, ErrorClass::Denied, "it has ended");
    assert_eq!(api.count(&format!("GET {path}")), 2);
}

#[tokio::test]
async fn a_port_forward_is_a_websocket_of_the_api_server() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let client = Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
    let kubelet = async {
        let (stream, _) = listener.accept().await.unwrap();
        #[expect(clippy::result_large_err, reason = "the signature is tungstenite's")]
        let choose = |request: &http::Request<()>, mut response: http::Response<()>| {
            assert_eq!(request.uri().path(), format!("{PODS}/web-1/portforward"));
            assert!(request.uri().query().unwrap().ends_with("ports=6379"), "{}", request.uri());
            let offered = request.headers()[SEC_WEBSOCKET_PROTOCOL].to_str().unwrap();
            assert!(offered.contains("v4.channel.k8s.io"), "{offered}");
            response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("v4.channel.k8s.io"));
            Ok(response)
        };
        tokio_tungstenite::accept_hdr_async(stream, choose).await.unwrap()
    };
    let (asked, mut kubelet) = tokio::join!(connect(&client, "shop", "web-1", 6379), kubelet);
    kubelet.send(Message::binary(&b"\0\xeb\x18"[..])).await.unwrap();
    let heard = asked.unwrap().next().await.unwrap().unwrap();
    assert_eq!(heard, Message::binary(&b"\0\xeb\x18"[..]));
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused() {
    let api = api(&[pod("web-1", RS, 0)]);
    let (engagements, ann) = engaged(&api);
    let way = engagements.registry.forwards(&ann.session, ("shop", "deployment/web"), 6379).unwrap();
    let all = way.connections.clone().acquire_many_owned(u32::try_from(CONNECTIONS_MAX).unwrap()).await.unwrap();
    let redis = open(OpenTransport::Tcp, "127.0.0.1:6379");
    let class = async || engagements.dial_in_pod(&ann.session, "deployment/web", &redis).await.unwrap_err().class;
    assert_eq!(class().await, ErrorClass::Exhausted);
    drop(all);
    assert_eq!(class().await, ErrorClass::Failed);
}
