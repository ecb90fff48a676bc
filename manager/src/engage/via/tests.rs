use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;
use tp_protocol::engage::call::{AgentState, Answer, Call, Leave, Mode, answer, call};
use tp_protocol::engage::wire::Kind as What;
use tp_protocol::hello::ClientHello;

use super::*;
use crate::engage::stand_in::StandIn;
use crate::engage::workload::Kind;
use crate::engage::{Engagements, Registry};
use crate::fake_api::FakeApi;
use crate::session::SessionLimits;
use crate::session::hub::{Admitted, FlowLimits, Hub, Ticket};

/// Longer than anything takes that is to come.
const SOON: Duration = Duration::from_secs(10);

const SHOP: &str = "/api/v1/namespaces/shop";
const REPLICA_SETS: &str = "/apis/apps/v1/namespaces/shop/replicasets";

fn template(host_network: bool) -> Value {
    json!({
        "metadata": {"labels": {"app": "web", "pod-template-hash": "5d9"}},
        "spec": {
            "hostNetwork": host_network, "serviceAccountName": "shop",
            "containers": [{"name": "web", "env": [{"name": "KEY", "value": "of the app"}]}],
        },
    })
}

fn workload(host_network: bool) -> Workload {
    let template = serde_json::from_value(template(host_network)).unwrap();
    Workload { kind: Kind::Deployment, name: "web".into(), selector: BTreeMap::new(), template }
}

fn engage() -> Engage {
    Engage { namespace: "shop".into(), workload: "web".into(), what: What::Via.into(), ..Engage::default() }
}

fn service(spec: Value) -> Service {
    serde_json::from_value(json!({"metadata": {"name": "peers"}, "spec": spec})).unwrap()
}

#[test]
fn a_workload_has_a_place_in_the_network_unless_it_is_its_nodes() {
    let held = asked(&engage(), &workload(false)).unwrap();
    assert_eq!((held.what(), &*held.workload, &*held.container), (What::Via, "deployment/web", ""));
    let refused = asked(&engage(), &workload(true)).unwrap_err();
    assert!(refused.message.contains("use their nodes' network"), "{refused:?}");
    let more = Engage { container: "web".into(), ..engage() };
    assert!(asked(&more, &workload(false)).unwrap_err().message.contains("none of its traffic"));
}

#[test]
fn a_service_that_would_send_the_stand_in_traffic_is_refused() {
    let web = workload(false);
    let refuse = |spec: Value| refuse_endpoint(&[service(spec)], &web);
    assert_eq!(refuse(json!({"selector": {"app": "web"}})), Ok(()));
    assert_eq!(refuse(json!({"selector": {"app": "db"}, "publishNotReadyAddresses": true})), Ok(()));
    let refused = refuse(json!({"selector": {"app": "web"}, "publishNotReadyAddresses": true})).unwrap_err();
    assert!(refused.message.starts_with("the Service peers publishes pods that are not ready"), "{refused:?}");
}

#[test]
fn a_pod_that_is_never_ready_runs_when_its_containers_do() {
    let pod = |conditions: Value| serde_json::from_value(json!({"status": {"conditions": conditions}})).unwrap();
    let ready = json!({"type": "Ready", "status": "False"});
    assert!(!is_running(&Pod::default()));
    assert!(!is_running(&pod(json!([ready, {"type": "ContainersReady", "status": "False"}]))));
    assert!(is_running(&pod(json!([ready, {"type": "ContainersReady", "status": "True"}]))));
}

/// The stand-in that dials by way of `web`.
fn stand_in() -> StandIn {
    let held = Held { mode: Mode::StandIn.into(), ..asked(&engage(), &workload(false)).unwrap() };
    StandIn::of("tp-system", &held)
}

/// An API server with the Deployment `web` in `shop`, and the pod that the stand-in's ReplicaSet will have.
fn api() -> FakeApi {
    let api = FakeApi::default();
    let list = |items: &[Value]| json!({"metadata": {}, "items": items});
    api.put_no_workloads("shop");
    let spec = json!({"selector": {"matchLabels": {"app": "web"}}, "template": template(false)});
    let web = json!({"metadata": {"name": "web"}, "spec": spec});
    api.put("/apis/apps/v1/namespaces/shop/deployments", list(std::slice::from_ref(&web)));
    api.put("/apis/apps/v1/namespaces/shop/deployments/web", web);
    let selecting = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}}});
    api.put(&format!("{SHOP}/services"), list(&[selecting]));
    let name = stand_in().name;
    let pod = json!({
        "metadata": {
            "name": format!("{name}-x2"),
            "labels": {"app": "web", "tp/stand-in": name},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name, "uid": name, "controller": true}],
        },
        "status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]},
    });
    api.put(&format!("{SHOP}/pods"), list(&[pod]));
    let ca = json!({"metadata": {"name": "tp-manager-ca"}, "data": {"ca.crt": "PEM"}});
    api.put("/api/v1/namespaces/tp-system/configmaps/tp-manager-ca", ca);
    api
}

fn client(registry: &Registry) -> Ticket {
    match registry.hub().admit(&ClientHello::new("0.1.0", "demo")).unwrap() {
        Admitted::New(ticket) => ticket,
        Admitted::Resumed { .. } => panic!("a new client has nothing to resume"),
    }
}

#[tokio::test]
async fn a_pod_with_the_workloads_labels_that_is_never_ready_is_made_and_its_agent_told_to_dial() {
    let limits = SessionLimits { sessions: 8, lanes_per_session: 2, grace: Duration::from_secs(120) };
    let registry = Registry::new(Hub::new(limits, FlowLimits { flows: 8, pending_dials: 2 }));
    let ann = client(&registry);
    let api = api();
    let engagements = Engagements::new(registry.clone(), Some(api.cluster()));
    let call = Call { kind: Some(call::Kind::Engage(Box::new(engage()))) };
    let agent = async {
        let mut seat = registry.seat("shop", &format!("{}-x2", stand_in().name));
        let orders = seat.orders.wait_for(|orders| orders.number > 0).await.unwrap().clone();
        assert!(orders.dials && orders.ports.is_empty() && orders.engagements.is_empty(), "{orders:?}");
        seat.on_state(AgentState { number: orders.number, ..AgentState::default() });
        seat
    };
    let both = async { tokio::join!(engagements.call(&ann.key, call), agent) };
    let (Answer { kind }, _seat) = timeout(SOON, both).await.unwrap();
    let Some(answer::Kind::Engaged(held)) = kind else { panic!("{kind:?}") };
    assert_eq!((held.what(), held.mode(), held.is_mine), (What::Via, Mode::StandIn, true));

    let made = api.object(&format!("{REPLICA_SETS}/{}", stand_in().name)).unwrap();
    let pod = &made["spec"]["template"];
    assert_eq!(pod["metadata"]["labels"], json!({"app": "web", "tp/stand-in": stand_in().name}));
    assert_eq!(pod["spec"]["readinessGates"], json!([{"conditionType": "tp/never-ready"}]));
    assert_eq!(pod["spec"]["serviceAccountName"], "shop");
    assert!(!pod.to_string().contains("of the app"), "the app's environment is no part of its place: {pod}");
    assert_eq!(made["metadata"]["ownerReferences"][0]["name"], held.id, "it goes with the Lease");
    assert_eq!(api.count(&format!("PATCH {SHOP}/services")), 0, "no Service is narrowed");

    // It belongs to the connection.
    for what in ["", "web", &held.id] {
        let leave = Leave { what: what.into(), namespace: String::new() };
        let call = Call { kind: Some(call::Kind::Leave(leave)) };
        engagements.call(&ann.key, call).await;
        assert_eq!(registry.list("shop", &ann.session).len(), 1, "{what}");
    }
}
