use std::future::Future;

use tokio::task::{LocalSet, spawn_local};
use tp_protocol::engage::call::{Engage, Failure as CallFailure, Held as HeldEngagement, Leave, ToPod, answer, call};
use tp_protocol::engage::wire::{Kind, Transport};
use tp_tunnel::client;
use tp_tunnel::server::{self, Incoming, MessageRequest};

use super::*;
use crate::daemon::init::link::NetworkConfig;

/// A connection to a manager with these features, without a lane.
fn connection(features: &[&str]) -> Connection {
    let nobody = tower::service_fn(|_: http::Request<kube::client::Body>| async {
        Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("nobody is there"))
    });
    let request = Connect { manager_namespace: "tp-system".into(), ..Connect::default() };
    let layout = Layout { network: NetworkConfig::default(), virtual_subnets: Vec::new() };
    let route = ManagerRoute::with_client(kube::Client::new(nobody, "default"));
    let parts = Parts::new("shop", Vec::new(), 0, 7);
    let mut connection = Connection::new(request, route, ClusterInfo::default(), layout, parts);
    connection.seen.get_mut().welcome = Welcome {
        software_version: "0.0.9".into(),
        features: features.iter().map(|&feature| feature.to_owned()).collect(),
        ..Welcome::default()
    };
    connection
}

/// Gives the connection a lane, whose manager does this with the first call.
async fn up(connection: &Connection, answer: impl AsyncFnOnce(MessageRequest) + 'static) {
    let (near, far) = tokio::io::duplex(64 << 10);
    spawn_local(async move {
        let pending = server::accept(far).await.unwrap();
        let mut lane = pending.welcome(Welcome { version: 1, ..Welcome::default() }).await.unwrap();
        let Some(Ok(Incoming::Call(request))) = lane.next().await else { panic!("a call is what is asked") };
        tokio::select! {
            () = answer(request) => {}
            _ = lane.next() => panic!("one call is all there is"),
        }
        // The answer is still to be sent.
        while lane.next().await.is_some() {}
    });
    let connected = client::connect(near, &ClientHello::new("0.1.0", "test")).await.unwrap();
    spawn_local(connected.driver);
    connection.up(&connected.lane);
}

fn leave() -> Call {
    Call { kind: Some(call::Kind::Leave(Leave { what: "web".into(), namespace: String::new() })) }
}

async fn run(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

const LIMIT: Duration = Duration::from_secs(120);

#[tokio::test(start_paused = true)]
async fn question_reaches_the_manager_once_there_is_a_lane() {
    let failure = CallFailure { message: "`web` is not engaged".into(), hint: String::new() };
    let answer = Answer { kind: Some(answer::Kind::Failure(failure)) };
    run(async move {
        let connection = Rc::new(connection(&[ENGAGE]));
        let asking = Rc::clone(&connection);
        let asked = spawn_local(async move { asking.ask(&leave(), LIMIT).await });
        tokio::time::sleep(Duration::from_secs(60)).await;
        let answered = answer.clone();
        up(&connection, async move |request| {
            let (message, responder) = request.message().await.unwrap();
            assert_eq!(Call::decode(message), Ok(leave()));
            responder.answer(answered.encode_to_vec().into());
        })
        .await;
        assert_eq!(asked.await.unwrap(), Ok(answer));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn question_whose_lane_is_lost_is_not_asked_again() {
    run(async {
        let connection = connection(&[ENGAGE]);
        up(&connection, async |_| panic!("the manager dies")).await;
        let failure = connection.ask(&leave(), LIMIT).await.unwrap_err();
        assert!(failure.message.starts_with("the traffic manager gave no answer: lane lost: "), "{failure:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn manager_that_knows_no_engagements_or_is_away_is_named() {
    run(async {
        let connection = connection(&["tcp"]);
        let failure = connection.ask(&leave(), LIMIT).await.unwrap_err();
        assert_eq!(failure.message, "the traffic manager gave no answer: it took longer than 2m");
        up(&connection, async |_| panic!("it is not asked")).await;
        let failure = connection.ask(&leave(), LIMIT).await.unwrap_err();
        assert_eq!(failure.message, "the traffic manager 0.0.9 in tp-system does not know engagements");
        assert!(failure.hint.contains("`tp helm upgrade`"), "{}", failure.hint);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn ports_of_a_pods_localhost_are_taken_before_the_manager_is_asked() {
    run(async {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = other.local_addr().unwrap().port();
        let to_pod = vec![ToPod { port: port.into(), transport: Transport::Tcp.into() }];
        let call = Call { kind: Some(call::Kind::Engage(Box::new(Engage { to_pod, ..Engage::default() }))) };
        let old = connection(&[ENGAGE]);
        up(&old, async |_| panic!("it is not asked")).await;
        let failure = old.ask(&call, LIMIT).await.unwrap_err();
        assert_eq!(failure.message, "the traffic manager 0.0.9 in tp-system does not know --to-pod");

        let connection = connection(&[ENGAGE, TO_POD]);
        up(&connection, async |_| panic!("it is not asked")).await;
        let failure = connection.ask(&call, LIMIT).await.unwrap_err();
        assert!(failure.message.starts_with(&format!("cannot listen on port {port} of the localhost")), "{failure:?}");
        assert!(failure.hint.contains("a container of the connection listens there"), "{failure:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn place_that_flows_are_dialled_from_is_asked_for_again_when_it_is_lost() {
    run(async {
        let connection = connection(&[ENGAGE, VIA]);
        let asked = Engage { workload: "web".into(), what: Kind::Via.into(), ..Engage::default() };
        connection.egress.want(asked.clone());
        let held = HeldEngagement { workload: "deployment/web".into(), what: Kind::Via.into(), ..Default::default() };
        let engaged = Answer { kind: Some(answer::Kind::Engaged(held)) };
        up(&connection, async move |request| {
            let (message, responder) = request.message().await.unwrap();
            assert_eq!(Call::decode(message), Ok(Call { kind: Some(call::Kind::Engage(Box::new(asked))) }));
            responder.answer(engaged.encode_to_vec().into());
        })
        .await;
        let lane = connection.tunnel.lane().await;
        let via = tokio::select! {
            never = connection.keep_egress(&lane) => match never {},
            via = connection.egress.via() => via,
        };
        assert_eq!(via.as_deref(), Some("deployment/web"));
        let status = connection.status();
        assert_eq!((&*status.via, &*status.via_problem), ("web", ""));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn flows_wait_and_status_says_why_while_the_place_cannot_be_had() {
    run(async {
        let connection = connection(&[ENGAGE, VIA]);
        connection.egress.want(Engage { workload: "web".into(), what: Kind::Via.into(), ..Engage::default() });
        let failure = CallFailure { message: "no workload web in namespace shop".into(), hint: String::new() };
        let refused = Answer { kind: Some(answer::Kind::Failure(failure)) };
        up(&connection, async move |request| {
            let (_, responder) = request.message().await.unwrap();
            responder.answer(refused.encode_to_vec().into());
        })
        .await;
        let lane = connection.tunnel.lane().await;
        tokio::select! {
            never = connection.keep_egress(&lane) => match never {},
            via = connection.egress.via() => panic!("flows went by {via:?}"),
            () = async {
                while connection.status().via_problem.is_empty() {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            } => {}
        }
        assert_eq!(connection.status().via_problem, "no workload web in namespace shop");
    })
    .await;
}

#[tokio::test]
async fn a_daemon_that_was_started_again_waits_for_the_same_place() {
    run(async {
        let asked = Engage { workload: "web".into(), what: Kind::Via.into(), ..Engage::default() };
        let before = connection(&[ENGAGE, VIA]);
        before.egress.want(asked.clone());
        let saved = Saved::decode(&*before.save(false)).unwrap();
        assert_eq!(saved.via, Some(asked));
    })
    .await;
}

#[tokio::test]
async fn status_shows_what_the_manager_last_said_is_held() {
    run(async {
        let connection = connection(&[ENGAGE]);
        let held = HeldEngagement { id: "tp-web-x7c2d".into(), ..HeldEngagement::default() };
        let message = from_manager::Kind::Engagements(Held { engagements: vec![held.clone()] });
        assert_eq!(connection.on_message(Some(message)), None);
        assert_eq!(connection.status().engagements, [held]);
        connection.on_message(Some(from_manager::Kind::Engagements(Held::default())));
        assert!(connection.status().engagements.is_empty());
    })
    .await;
}

#[test]
fn settings_of_the_user_beat_the_charts() {
    let cluster = ClusterInfo {
        client_settings_json: r#"{"also-proxy":["10.1.0.0/16"],"never-proxy":["10.96.7.0/24"]}"#.into(),
        ..ClusterInfo::default()
    };
    let request = Connect { settings_json: r#"{"also-proxy":["10.9.0.0/16"]}"#.into(), ..Connect::default() };
    let settings = serde_json::to_string(&settings(&request, &cluster)).unwrap();
    assert_eq!(settings, r#"{"also-proxy":["10.9.0.0/16"],"never-proxy":["10.96.7.0/24"]}"#);
}

#[test]
fn first_mapping_of_a_name_counts() {
    let settings: Layer = serde_json::from_str(r#"{"dns-mappings":["db=10.0.0.1","db=10.0.0.2"]}"#).unwrap();
    let first = settings.dns_mappings.as_ref().unwrap()[0].target.clone();
    assert_eq!(mappings(&settings), Mappings::from([("db".to_owned(), first)]));
}
