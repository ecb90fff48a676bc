//! Connections that reach a client which waits for them: an agent's lane and a client's lane, joined by a manager.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use tokio::sync::{Mutex, mpsc};
use tp_protocol::engage::EngagementId;
use tp_protocol::engage::call::{Answer, Call, List, Listed, answer, call};
use tp_protocol::engage::reach::Arrival;
use tp_protocol::error_class::ErrorClass;
use tp_protocol::hello::{ClientHello, Welcome};
use tp_protocol::open::{OpenRefused, Transport};
use tp_tunnel::client::{self, Arrived, Lane};
use tp_tunnel::error::{FlowError, FlowOpenError, OfferError};
use tp_tunnel::flow::Flow;
use tp_tunnel::relay;
use tp_tunnel::server::{self, Acceptor, Incoming};

/// One engagement's streams, as the manager keeps them.
#[derive(Clone)]
struct Manager {
    put: mpsc::Sender<Acceptor>,
    take: Arc<Mutex<mpsc::Receiver<Acceptor>>>,
}

impl Manager {
    fn new() -> Self {
        let (put, take) = mpsc::channel(8);
        Self { put, take: Arc::new(Mutex::new(take)) }
    }

    /// Another lane, of the client or of an agent.
    async fn lane(&self) -> Lane {
        let (near, far) = tokio::io::duplex(256 << 10);
        let manager = self.clone();
        tokio::spawn(async move {
            let mut lane = server::accept(far).await.unwrap().welcome(Welcome::default()).await.unwrap();
            while let Some(Ok(incoming)) = lane.next().await {
                tokio::spawn(manager.clone().serve(incoming));
            }
        });
        let connected = client::connect(near, &ClientHello::new("0.1.0", "test")).await.unwrap();
        tokio::spawn(connected.driver);
        connected.lane
    }

    async fn serve(self, incoming: Incoming) {
        match incoming {
            Incoming::Accept(_, acceptor) => self.put.send(acceptor).await.unwrap(),
            Incoming::Reach(_, arrival, responder) => {
                let acceptor = self.take.lock().await.recv().await.unwrap();
                match acceptor.offer(&arrival).await {
                    Ok(client) => drop(relay::flows(responder.accept().unwrap(), client).await),
                    Err(OfferError::Refused(why)) => responder.refuse(&why),
                    Err(other) => panic!("{other}"),
                }
            }
            Incoming::Call(request) => {
                let (message, responder) = request.message().await.unwrap();
                let call = Call::decode(message).unwrap();
                let Some(call::Kind::List(List { namespace })) = call.kind else { panic!("expected a list") };
                let listed = Listed { workloads: vec![namespace], engagements: Vec::new() };
                let answer = Answer { kind: Some(answer::Kind::Listed(listed)) };
                responder.answer(answer.encode_to_vec().into());
            }
            _ => panic!("not of these tests"),
        }
    }
}

fn id() -> EngagementId {
    EngagementId::new("tp-web-1").unwrap()
}

fn arrival() -> Arrival {
    Arrival { port: 8080, transport: Transport::Tcp, source: "10.1.2.3:4".parse().unwrap() }
}

/// A connection that has arrived, from the agent's and from the client's side.
async fn joined(answer: impl AsyncFnOnce(Arrived) -> Option<Flow>) -> (Result<Flow, FlowOpenError>, Option<Flow>) {
    let manager = Manager::new();
    let (agent, client) = (manager.lane().await, manager.lane().await);
    tokio::join!(async { agent.reach(&id(), &arrival()).await }, async {
        let arrived = client.accept(&id()).await.unwrap();
        assert_eq!(arrived.arrival, arrival());
        answer(arrived).await
    })
}

async fn read_to_end(flow: &mut tp_tunnel::flow::FlowReceiver) -> Result<Vec<u8>, FlowError> {
    let mut all = Vec::new();
    while let Some(data) = flow.data().await {
        let data = data?;
        flow.release(data.len());
        all.extend_from_slice(&data);
    }
    Ok(all)
}

#[tokio::test]
async fn bytes_pass_both_ways_and_each_way_ends_by_itself() {
    let (agent, client) = joined(async |arrived| Some(arrived.connected().unwrap())).await;
    let ((mut to_client, mut from_client), (mut to_agent, mut from_agent)) =
        (agent.unwrap().split(), client.unwrap().split());
    let request = Bytes::from(vec![7; 3 << 20]);
    let ask = async {
        to_client.send_all(request.clone()).await.unwrap();
        to_client.finish().unwrap();
        read_to_end(&mut from_client).await.unwrap()
    };
    let answer = async {
        let all = read_to_end(&mut from_agent).await.unwrap();
        to_agent.send_all(Bytes::from(format!("{} bytes", all.len()))).await.unwrap();
        to_agent.finish().unwrap();
    };
    let (answered, ()) = tokio::join!(ask, answer);
    assert_eq!(answered, format!("{} bytes", 3 << 20).into_bytes());
}

#[tokio::test]
async fn a_handler_that_refuses_is_told_by_its_class() {
    let refuse = async |arrived: Arrived| {
        arrived.refuse(&OpenRefused::new(ErrorClass::Refused, "nothing listens on 127.0.0.1:8080"));
        None
    };
    let (agent, _) = joined(refuse).await;
    match agent {
        Err(FlowOpenError::Refused(why)) => assert_eq!(why.class, ErrorClass::Refused),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[tokio::test]
async fn a_reset_stays_behind_its_data() {
    let (agent, client) = joined(async |arrived| Some(arrived.connected().unwrap())).await;
    let (mut to_agent, _from_agent) = client.unwrap().split();
    to_agent.send_all(Bytes::from_static(b"half")).await.unwrap();
    to_agent.reset(&OpenRefused::new(ErrorClass::Reset, "the handler crashed")).unwrap();
    let (_to_client, mut from_client) = agent.unwrap().split();
    assert_eq!(from_client.data().await.unwrap().unwrap(), "half");
    match from_client.data().await {
        Some(Err(FlowError::Reset(why))) => assert_eq!(why.class, ErrorClass::Reset),
        other => panic!("expected a reset, got {other:?}"),
    }
}

#[tokio::test]
async fn calls_are_answered() {
    let lane = Manager::new().lane().await;
    let call = Call { kind: Some(call::Kind::List(List { namespace: "shop".into() })) };
    let Some(answer::Kind::Listed(listed)) = lane.call(&call).await.unwrap().kind else { panic!("expected a list") };
    assert_eq!(listed.workloads, ["shop"]);
}
