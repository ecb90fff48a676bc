//! The control channel.

use tp_protocol::control::from_manager::Kind;
use tp_protocol::control::{Agent, ClusterInfo, FromManager, Goodbye, ToManager, to_manager};
use tp_protocol::hello::AgentIdentity;
use tp_tunnel::control::ControlReceiver;

use crate::stage::{Stage, soon};

fn cluster(domain: &str) -> ClusterInfo {
    ClusterInfo {
        service_subnets: vec!["10.96.0.0/16".into()],
        cluster_domain: domain.into(),
        client_settings_json: r#"{"idle-limit":"2h"}"#.into(),
        ..ClusterInfo::default()
    }
}

async fn next(receiver: &mut ControlReceiver) -> Kind {
    soon(receiver.recv::<FromManager>()).await.unwrap().unwrap().kind.unwrap()
}

/// Returns the next message about the cluster; skips those about agents.
async fn next_cluster(receiver: &mut ControlReceiver) -> ClusterInfo {
    loop {
        match next(receiver).await {
            Kind::ClusterInfo(info) => return info,
            Kind::Agents(_) => {}
            other => panic!("unexpected {other:?}"),
        }
    }
}

async fn next_agents(receiver: &mut ControlReceiver) -> Vec<Agent> {
    loop {
        match next(receiver).await {
            Kind::Agents(agents) => return agents.agents,
            Kind::ClusterInfo(_) => {}
            other => panic!("unexpected {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_client_is_told_the_cluster_as_soon_as_it_is_known_and_when_it_changes() {
    let mut stage = Stage::new();
    let client = stage.client().await;
    let (_sender, mut receiver) = client.lane.control().await.unwrap().split();
    assert_eq!(next_agents(&mut receiver).await, []);
    for domain in ["cluster.local", "corp.local"] {
        stage.know(cluster(domain));
        assert_eq!(next_cluster(&mut receiver).await, cluster(domain));
    }
    let late = stage.client().await;
    let (_sender, mut receiver) = late.lane.control().await.unwrap().split();
    assert_eq!(next_cluster(&mut receiver).await, cluster("corp.local"));
}

#[tokio::test]
async fn a_client_sees_agents_come_and_go() {
    let mut stage = Stage::new();
    let client = stage.client().await;
    let (_sender, mut receiver) = client.lane.control().await.unwrap().split();
    assert_eq!(next_agents(&mut receiver).await, []);
    let web = AgentIdentity { namespace: "shop".into(), pod: "web-1".into(), token: String::new() };
    let registration = stage.services.agents.register(&web, "0.2.0").unwrap();
    let agent = Agent { namespace: "shop".into(), pod: "web-1".into(), software_version: "0.2.0".into() };
    assert_eq!(next_agents(&mut receiver).await, [agent]);
    drop(registration);
    assert_eq!(next_agents(&mut receiver).await, []);
}

#[tokio::test]
async fn goodbye_ends_the_session_and_its_lanes() {
    let mut stage = Stage::new();
    let client = stage.client().await;
    let other = stage.join(1, &client.session()).await.unwrap();
    let (mut sender, _receiver) = client.lane.control().await.unwrap().split();
    let goodbye = to_manager::Kind::Goodbye(Goodbye { reason: "quit".into() });
    sender.send(&ToManager::from(goodbye)).await.unwrap();
    client.is_turned_out().await;
    other.is_turned_out().await;
    assert_eq!(stage.services.hub.sessions(), 0);
    assert!(!stage.join(0, &client.session()).await.unwrap().welcome.rejoined);
}

#[tokio::test]
async fn a_stopping_manager_says_goodbye() {
    let mut stage = Stage::new();
    let client = stage.client().await;
    let (_sender, mut receiver) = client.lane.control().await.unwrap().split();
    stage.stopping.cancel();
    let goodbye = loop {
        if let Kind::Goodbye(goodbye) = next(&mut receiver).await {
            break goodbye;
        }
    };
    assert_eq!(goodbye.reason, "the manager is stopping");
    assert!(soon(receiver.recv::<FromManager>()).await.is_none(), "the channel ends in good order");
}

#[tokio::test]
async fn a_stopping_manager_does_not_wait_for_lanes_without_a_byte_stream() {
    let mut stage = Stage::new();
    let client = stage.client().await;
    client.handle.detach("the laptop sleeps");
    stage.stopping.cancel();
    soon(stage.is_done_with_a_lane()).await;
}

#[tokio::test]
async fn messages_of_a_later_version_are_skipped() {
    let mut stage = Stage::new();
    let client = stage.client().await;
    let (mut sender, mut receiver) = client.lane.control().await.unwrap().split();
    sender.send(&ToManager { kind: None }).await.unwrap();
    stage.know(cluster("cluster.local"));
    assert_eq!(next_cluster(&mut receiver).await, cluster("cluster.local"));
}
