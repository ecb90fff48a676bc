//! Who is let in.

use tp_protocol::hello::{AgentIdentity, ClientHello, RefusalCode, SessionKey};
use tp_tunnel::error::LaneError;

use crate::stage::{Client, Stage};

#[track_caller]
fn refused(outcome: Result<Client, LaneError>) -> (RefusalCode, String) {
    match outcome {
        Err(LaneError::Refused(refusal)) => (refusal.code(), refusal.message),
        Err(error) => panic!("expected a refusal, got {error}"),
        Ok(_) => panic!("expected a refusal, got a welcome"),
    }
}

#[tokio::test]
async fn a_client_is_welcomed_with_a_session_of_its_own() {
    let mut stage = Stage::new();
    let (a, b) = (stage.client().await, stage.client().await);
    assert_eq!((a.welcome.version, &*a.welcome.manager_pod), (1, "tp-manager-0"));
    assert!(!a.welcome.rejoined && a.welcome.one_time_port.is_none());
    assert_eq!(a.session().secret.len(), 32);
    assert_ne!(a.session(), b.session());
    assert_eq!(stage.services.hub.sessions(), 2);
}

#[tokio::test]
async fn more_lanes_join_by_id_and_secret() {
    let mut stage = Stage::new();
    let session = stage.client().await.session();
    let joined = stage.join(1, &session).await.unwrap();
    assert!(joined.welcome.rejoined);
    assert_eq!((joined.session(), stage.services.hub.sessions()), (session.clone(), 1));
    let forged = SessionKey { secret: vec![0; 32], ..session };
    assert_eq!(refused(stage.join(1, &forged).await).0, RefusalCode::BadSecret);
}

#[tokio::test]
async fn a_client_of_the_future_is_told_both_version_ranges() {
    let mut stage = Stage::new();
    let hello = ClientHello { min_version: 7, max_version: 9, ..ClientHello::new("9.0.0", "demo") };
    let (code, message) = refused(stage.connect(hello).await);
    assert_eq!(code, RefusalCode::VersionMismatch);
    assert!(message.contains("9.0.0") && message.contains("7 to 9"), "{message}");
}

#[tokio::test]
async fn an_agent_at_the_clients_door_is_sent_to_the_other() {
    let mut stage = Stage::new();
    let hello = ClientHello { agent: Some(AgentIdentity::default()), ..ClientHello::new("0.1.0", "agent") };
    assert_eq!(refused(stage.connect(hello).await).0, RefusalCode::WrongRole);
}

#[tokio::test]
async fn limits_are_explained() {
    let mut stage = Stage::new();
    let first = stage.client().await;
    let session = first.session();
    let _others = [stage.join(1, &session).await.unwrap(), stage.join(2, &session).await.unwrap()];
    let (code, message) = refused(stage.join(3, &session).await);
    assert_eq!(code, RefusalCode::Exhausted);
    assert!(message.contains("limits.lanesPerSession"), "{message}");
}

#[tokio::test]
async fn nobody_is_let_in_while_the_manager_stops() {
    let mut stage = Stage::new();
    stage.stopping.cancel();
    let outcome = stage.connect(ClientHello::new("0.1.0", "demo")).await;
    assert_eq!(refused(outcome).0, RefusalCode::ShuttingDown);
}

#[tokio::test]
async fn a_lane_that_comes_again_takes_the_place_of_the_old_one() {
    let mut stage = Stage::new();
    let old = stage.client().await;
    let new = stage.join(0, &old.session()).await.unwrap();
    assert!(new.welcome.rejoined);
    old.is_turned_out().await;
    assert_eq!(stage.services.hub.sessions(), 1);
}
