//! Who a session belongs to, and what they may.

use std::sync::{Arc, Mutex};

use bytes::BytesMut;
use futures_util::future::BoxFuture;
use hyper::Method;
use hyper::StatusCode;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tp_manager::identity::User;
use tp_manager::identity::rights::{Right, Rights, RightsError, Verdict as May};
use tp_manager::webhook::Webhooks;
use tp_protocol::engage::call::{AskedPort, Call, Engage, Failure, answer, call};
use tp_protocol::frame;
use tp_protocol::hello::{ClientHello, IDENTITY, SessionKey};
use tp_protocol::identity::{Claim, Identify, Identity, MAX_MESSAGE_BYTES, Verdict, verdict};

use crate::stage::{Client, Stage, soon};

/// The API server's part: Ann may exec in `shop`. Remembers who was asked about.
#[derive(Clone, Default)]
struct Reviewer(Arc<Mutex<Vec<(User, String)>>>);

impl Rights for Reviewer {
    fn review<'a>(&'a self, user: &'a User, namespace: &'a str, _: Right) -> BoxFuture<'a, Result<May, RightsError>> {
        self.0.lock().unwrap().push((user.clone(), namespace.to_owned()));
        let answer = match (user.name.as_str(), namespace) {
            ("ann", "shop") => Ok(May::Allowed("she may".into())),
            ("nobody-knows", _) => Err(RightsError::NoStatus),
            _ => Ok(May::Refused(String::new())),
        };
        Box::pin(std::future::ready(answer))
    }
}

/// Has the API server review a port-forward of `user` to a port of the manager's pod, by the path that it was given.
fn review(hooks: &Webhooks, user: &str, port: u16) {
    let body = admission_review(user, port);
    hooks.identity.as_ref().unwrap().answer(body.as_bytes()).unwrap();
}

fn admission_review(user: &str, port: u16) -> String {
    json!({"request": {
        "uid": "1", "operation": "CONNECT", "namespace": "tp-system", "name": "tp-manager-0",
        "resource": {"group": "", "version": "v1", "resource": "pods"}, "subResource": "portforward",
        "userInfo": {"username": user, "groups": ["system:authenticated"]},
        "object": {"ports": [port]},
    }})
    .to_string()
}

async fn ask(client: &Client, kind: call::Kind) -> answer::Kind {
    soon(client.lane.call(&Call { kind: Some(kind) })).await.unwrap().kind.unwrap()
}

async fn one_time_port(client: &Client) -> u16 {
    match ask(client, call::Kind::Identify(Identify {})).await {
        answer::Kind::OneTimePort(it) => u16::try_from(it.port).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Says on a one-time port whose session it is.
async fn claim(port: u16, session: SessionKey) -> verdict::Kind {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut wire = BytesMut::new();
    frame::encode(&Claim { session: Some(session) }, &mut wire);
    socket.write_all(&wire).await.unwrap();
    let mut answer = Vec::new();
    soon(socket.read_to_end(&mut answer)).await.unwrap();
    let verdict: Verdict = frame::decode(&mut BytesMut::from(&answer[..]), MAX_MESSAGE_BYTES).unwrap().unwrap();
    verdict.kind.unwrap()
}

/// Engages a workload of a namespace, which has none.
async fn engage(client: &Client, namespace: &str) -> Failure {
    let engage = Engage {
        namespace: namespace.into(),
        workload: "web".into(),
        ports: vec![AskedPort::default()],
        ..Engage::default()
    };
    match ask(client, call::Kind::Engage(Box::new(engage))).await {
        answer::Kind::Failure(failure) => failure,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn failure(verdict: verdict::Kind) -> Failure {
    match verdict {
        verdict::Kind::Failure(failure) => failure,
        verdict::Kind::Identified(identity) => panic!("{identity:?}"),
    }
}

#[tokio::test]
async fn a_session_belongs_to_whom_the_api_server_names_and_may_what_they_may() {
    let reviewer = Reviewer::default();
    let (mut stage, hooks) = Stage::with_rights(reviewer.clone());
    let client = stage.client().await;
    assert!(client.welcome.features.contains(&IDENTITY.to_owned()));
    let port = one_time_port(&client).await;
    review(&hooks, "ann", port);
    let identity = Identity { user: "ann".into(), groups: vec!["system:authenticated".into()] };
    assert_eq!(claim(port, client.session()).await, verdict::Kind::Identified(identity));

    let refused = engage(&client, "bank").await;
    assert!(refused.message.contains("`ann`") && refused.message.contains("bank"), "{refused:?}");
    assert!(refused.hint.contains("create rolebinding tp-engage"), "{refused:?}");
    let passed = engage(&client, "shop").await;
    assert!(passed.message.contains("no workload"), "{passed:?}");
    let asked: Vec<_> = reviewer.0.lock().unwrap().clone();
    assert_eq!(asked.iter().map(|(_, namespace)| &**namespace).collect::<Vec<_>>(), ["bank", "shop"]);
    assert_eq!(asked[0].0.groups, ["system:authenticated"]);

    // Another lane, or the same one again, changes nothing of it.
    let again = stage.join(0, &client.session()).await.unwrap();
    let passed = engage(&again, "shop").await;
    assert!(passed.message.contains("no workload"), "{passed:?}");
}

#[tokio::test]
async fn a_client_that_has_not_shown_who_it_is_engages_nothing() {
    let (mut stage, _hooks) = Stage::with_rights(Reviewer::default());
    let old = ClientHello { features: vec!["engage".into()], ..ClientHello::new("0.1.0", "old") };
    let client = stage.connect(old).await.unwrap();
    let refused = engage(&client, "shop").await;
    assert!(refused.message.contains("does not know who you are") && refused.hint.contains("update tp"), "{refused:?}");
}

#[tokio::test]
async fn rights_that_cannot_be_found_out_are_not_there() {
    let (mut stage, hooks) = Stage::with_rights(Reviewer::default());
    let client = stage.client().await;
    let port = one_time_port(&client).await;
    review(&hooks, "nobody-knows", port);
    claim(port, client.session()).await;
    let refused = engage(&client, "shop").await;
    assert!(refused.message.contains("could not be found out"), "{refused:?}");
}

#[tokio::test]
async fn a_forged_review_is_answered_with_nothing_and_has_no_effect() {
    let (mut stage, hooks) = Stage::with_rights(Reviewer::default());
    let client = stage.client().await;
    let port = one_time_port(&client).await;
    let forged = admission_review("system:admin", port);
    let guess = format!("/identity/{}", "0".repeat(64));
    for path in ["/", "/identity", "/identity/", &guess, &hooks.identity.as_ref().unwrap().path()[..50]] {
        let answer = hooks.answer(&Method::POST, path, forged.as_bytes()).await;
        assert_eq!(answer, Err(StatusCode::NOT_FOUND), "{path}");
    }
    let nobody = failure(claim(port, client.session()).await);
    assert!(nobody.message.contains("webhook was not called") && nobody.hint.contains("7444"), "{nobody:?}");
    assert!(engage(&client, "shop").await.message.contains("does not know who you are"));
}

#[tokio::test]
async fn two_names_for_one_port_are_believed_neither() {
    let (mut stage, hooks) = Stage::with_rights(Reviewer::default());
    let client = stage.client().await;
    let port = one_time_port(&client).await;
    review(&hooks, "ann", port);
    review(&hooks, "system:admin", port);
    assert!(failure(claim(port, client.session()).await).message.contains("two names"));
    let port = one_time_port(&client).await;
    review(&hooks, "ann", port);
    assert!(matches!(claim(port, client.session()).await, verdict::Kind::Identified(_)), "the next attempt counts");
}

#[tokio::test]
async fn a_port_is_for_its_session_and_for_once() {
    let (mut stage, hooks) = Stage::with_rights(Reviewer::default());
    let (ann, eve) = (stage.client().await, stage.client().await);
    let port = one_time_port(&ann).await;
    review(&hooks, "ann", port);
    let stolen = failure(claim(port, eve.session()).await);
    assert!(stolen.message.contains("not opened for this session"), "{stolen:?}");
    assert!(engage(&eve, "shop").await.message.contains("does not know who you are"));

    let port = one_time_port(&ann).await;
    let forged = SessionKey { secret: vec![0; 32], ..ann.session() };
    assert!(failure(claim(port, forged).await).message.contains("not the secret"));

    for _ in 2..8 {
        one_time_port(&ann).await;
    }
    let Failure { message, hint } = match ask(&ann, call::Kind::Identify(Identify {})).await {
        answer::Kind::Failure(failure) => failure,
        other => panic!("{other:?}"),
    };
    assert!(message.contains("8 times within 30 s") && hint.contains("half a minute"), "{message}");
}

#[tokio::test]
async fn a_manager_that_does_not_ask_offers_nothing_of_it() {
    let mut stage = Stage::new();
    let client = stage.client().await;
    assert!(!client.welcome.features.contains(&IDENTITY.to_owned()));
    assert!(matches!(ask(&client, call::Kind::Identify(Identify {})).await, answer::Kind::Failure(_)));
}
