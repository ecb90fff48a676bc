use std::future::Future;
use std::rc::Rc;

use prost::Message as _;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::Instant;
use tp_protocol::engage::call::{Answer, Failure as CallFailure};
use tp_protocol::hello::{ClientHello, Welcome};
use tp_tunnel::client;
use tp_tunnel::server::{self, Incoming};

use super::*;

fn session() -> SessionKey {
    SessionKey { id: "s-1".into(), secret: vec![7; 32] }
}

fn ann() -> Identity {
    Identity { user: "ann".into(), groups: vec!["developers".into()] }
}

async fn run(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

/// What comes of a claim that a manager answers with these bytes.
async fn claimed(answer: Vec<u8>) -> Result<Identity, Failure> {
    let (near, mut far) = tokio::io::duplex(1 << 10);
    let manager = spawn_local(async move {
        let mut wire = BytesMut::new();
        while frame::decode::<Claim>(&mut wire, MAX_MESSAGE_BYTES).unwrap() != Some(Claim { session: Some(session()) })
        {
            assert!(far.read_buf(&mut wire).await.unwrap() > 0);
        }
        far.write_all(&answer).await.unwrap();
    });
    let verdict = claim(near, &session()).await;
    manager.await.unwrap();
    verdict
}

fn encoded(kind: verdict::Kind) -> Vec<u8> {
    let mut wire = BytesMut::new();
    frame::encode(&Verdict::from(kind), &mut wire);
    wire.to_vec()
}

#[tokio::test]
async fn what_the_manager_makes_of_a_claim_is_taken() {
    run(async {
        assert_eq!(claimed(encoded(verdict::Kind::Identified(ann()))).await, Ok(ann()));
        let failure = CallFailure { message: "nobody was named".into(), hint: "check it".into() };
        let failure = claimed(encoded(verdict::Kind::Failure(failure))).await.unwrap_err();
        assert!(failure.message.ends_with("find out who you are: nobody was named"), "{failure:?}");
        assert_eq!(failure.hint, "check it");
        let cut = claimed(Vec::new()).await.unwrap_err();
        assert!(cut.message.ends_with("it closed the port"), "{cut:?}");
        assert!(claimed(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()).await.is_err());
    })
    .await;
}

/// A lane whose manager answers every call with this.
async fn lane(answer: Answer) -> Lane {
    let (near, far) = tokio::io::duplex(64 << 10);
    spawn_local(async move {
        let pending = server::accept(far).await.unwrap();
        let mut lane = pending.welcome(Welcome { version: 1, ..Welcome::default() }).await.unwrap();
        while let Some(Ok(incoming)) = lane.next().await {
            let Incoming::Call(request) = incoming else { panic!("calls are what is asked") };
            let answer = answer.encode_to_vec();
            spawn_local(async move {
                let (_, responder) = request.message().await.unwrap();
                responder.answer(answer.into());
            });
        }
    });
    let connected = client::connect(near, &ClientHello::new("0.1.0", "test")).await.unwrap();
    spawn_local(connected.driver);
    connected.lane
}

fn route() -> ManagerRoute {
    let nobody = tower::service_fn(|_: http::Request<kube::client::Body>| async {
        Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("nobody is there"))
    });
    ManagerRoute::with_client(kube::Client::new(nobody, "default"))
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_told_why_it_fails_and_not_before_several_attempts() {
    run(async {
        let why = CallFailure { message: "no port is free".into(), hint: "wait".into() };
        let lane = lane(Answer { kind: Some(answer::Kind::Failure(why)) }).await;
        let whoami = Rc::new(Whoami::default());
        let trying = Rc::clone(&whoami);
        let attempts = spawn_local(async move { trying.establish(&lane, &route(), &session()).await });
        let began = Instant::now();
        let failure = whoami.known().await.unwrap_err();
        assert_eq!(began.elapsed(), WAIT);
        assert!(failure.message.ends_with(": no port is free") && failure.hint == "wait", "{failure:?}");
        assert_eq!((whoami.user(), whoami.problem()), (None, Some(failure.message)));
        attempts.abort();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn port_that_cannot_be_opened_is_a_failure_of_the_api_server() {
    run(async {
        let port = answer::Kind::OneTimePort(tp_protocol::identity::OneTimePort { port: 40_000 });
        let lane = lane(Answer { kind: Some(port) }).await;
        let failure = attempt(&lane, &route(), &session()).await.unwrap_err();
        assert!(failure.message.contains("nobody is there"), "{failure:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn session_that_is_known_is_not_asked_for_again_and_another_one_is() {
    run(async {
        let whoami = Whoami::default();
        whoami.state.send_replace(State::Known("s-1".into(), ann()));
        let why = CallFailure { message: "asked".into(), hint: String::new() };
        let lane = lane(Answer { kind: Some(answer::Kind::Failure(why)) }).await;
        whoami.establish(&lane, &route(), &session()).await;
        assert_eq!(whoami.user(), Some(ann()));
        assert_eq!(whoami.known().await, Ok(()));
        let other = SessionKey { id: "s-2".into(), ..session() };
        let asked = timeout(Duration::from_millis(500), whoami.establish(&lane, &route(), &other)).await;
        assert!(asked.is_err() && whoami.user().is_none());
        assert!(whoami.problem().unwrap().ends_with(": asked"));
    })
    .await;
}
