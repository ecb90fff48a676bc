//! Flows that agents dial.

use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tp_protocol::engage::dial::Dial;
use tp_protocol::hello::Welcome;
use tp_protocol::open::{Open, Transport};
use tp_tunnel::client::{self as tunnel, Connected, Lane};
use tp_tunnel::dial::{Dialled, connect};
use tp_tunnel::flow::Flow;
use tp_tunnel::read_ahead::ReadAhead;
use tp_tunnel::relay;
use tp_tunnel::server::{self, Incoming};

use super::*;

const WEB: &str = "deployment/web";

/// Longer than anything takes that is to come.
const SOON: Duration = Duration::from_secs(10);

/// An engagement of the place of `web` by this client, and its stand-in.
fn hold(registry: &Registry, client: &Ticket) -> StandIn {
    let SessionKey { id, secret } = &client.key;
    let held =
        Held { id: "tp-web-1".into(), what: wire::Kind::Via.into(), mode: Mode::StandIn.into(), ..held(WEB, "") };
    let stand_in = StandIn::of("tp-system", &held);
    let record = Record { held, session: id.clone(), secret_sha256: secret_sha256(secret) };
    registry.add(record, &stand_in, false).unwrap();
    stand_in
}

/// An agent that is connected, and dials. It is gone when this is dropped.
struct Agent {
    _tasks: JoinSet<()>,
}

impl Agent {
    async fn of(registry: &Registry, pod: &str) -> Self {
        let (near, far) = tokio::io::duplex(64 << 10);
        let seat = registry.seat("shop", pod);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut lane = server::accept(far).await.unwrap().welcome(Welcome::default()).await.unwrap();
            while let Some(Ok(incoming)) = lane.next().await {
                let Incoming::Dial(acceptor) = incoming else { panic!("{incoming:?} is not of these tests") };
                seat.on_dialler(acceptor);
            }
        });
        let Connected { lane, driver, .. } = tunnel::connect(near, &ClientHello::new("0.1.0", "agent")).await.unwrap();
        tasks.spawn(async move { _ = driver.await });
        tasks.spawn(dial_all(lane));
        Self { _tasks: tasks }
    }
}

/// Dials one thing after another, and relays.
async fn dial_all(lane: Lane) {
    let mut flows = JoinSet::new();
    while let Ok(arrived) = lane.wait_for_dial().await {
        let Dial { dst, transport, .. } = arrived.arrival;
        match connect(transport, dst).await {
            Ok(Dialled::Tcp(socket)) => {
                let flow = arrived.connected().unwrap();
                flows.spawn(async move { _ = relay::tcp(flow, socket, &ReadAhead::default()).await });
            }
            Ok(Dialled::Udp(_)) => panic!("not of these tests"),
            Err(why) => arrived.refuse(&why),
        }
    }
}

fn open(namespace: &str) -> Open {
    Open { namespace: Some(namespace.into()), ..Open::new(Transport::Tcp, ([10, 0, 0, 1], 80).into()) }
}

/// Has an agent dial the listener for this client.
async fn dial(registry: &Registry, client: &Ticket, listener: &TcpListener) -> Result<Flow, OpenRefused> {
    let dst = listener.local_addr().unwrap();
    registry.dial(&client.session, WEB, &open("shop"), dst, Instant::now() + SOON).await
}

#[tokio::test]
async fn an_agent_dials_for_the_session_that_holds_the_place_and_for_no_other() {
    let registry = registry();
    let (ann, bob) = (client(&registry), client(&registry));
    let stand_in = hold(&registry, &ann);
    let _agent = Agent::of(&registry, &format!("{}-x2", stand_in.name)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (flow, accepted) = tokio::join!(dial(&registry, &ann, &listener), listener.accept());
    let (mut sender, _receiver) = flow.unwrap().split();
    sender.send_all(Bytes::from_static(b"hello")).await.unwrap();
    let mut heard = [0; 5];
    timeout(SOON, accepted.unwrap().0.read_exact(&mut heard)).await.unwrap().unwrap();
    assert_eq!(&heard, b"hello");

    let dst = listener.local_addr().unwrap();
    for (session, via, namespace) in [(&bob, WEB, "shop"), (&ann, "deployment/db", "shop"), (&ann, WEB, "bank")] {
        let refused = registry.dial(&session.session, via, &open(namespace), dst, Instant::now() + SOON).await;
        assert_eq!(refused.unwrap_err().class, ErrorClass::Denied, "{via} in {namespace}");
    }
    registry.end("tp-web-1");
    assert_eq!(dial(&registry, &ann, &listener).await.unwrap_err().class, ErrorClass::Denied, "it has ended");
}

#[tokio::test]
async fn what_the_agents_socket_says_is_what_the_client_hears() {
    let registry = registry();
    let ann = client(&registry);
    let stand_in = hold(&registry, &ann);
    let _agent = Agent::of(&registry, &format!("{}-x2", stand_in.name)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    let refused = registry.dial(&ann.session, WEB, &open("shop"), closed, Instant::now() + SOON).await.unwrap_err();
    assert_eq!((refused.class, refused.message.contains(&closed.to_string())), (ErrorClass::Refused, true));
}

#[tokio::test]
async fn the_newest_agent_dials_and_while_there_is_none_flows_wait() {
    let registry = registry();
    let ann = client(&registry);
    let stand_in = hold(&registry, &ann);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dst = listener.local_addr().unwrap();
    let _other = Agent::of(&registry, "tp-db-0ab3ff-x2").await;
    let now = Instant::now();
    let late = registry.dial(&ann.session, WEB, &open("shop"), dst, now).await.unwrap_err();
    assert_eq!(late.class, ErrorClass::TimedOut, "an agent of another workload is none");

    let first = format!("{}-x2", stand_in.name);
    let (flow, first) = tokio::join!(dial(&registry, &ann, &listener), async {
        tokio::task::yield_now().await;
        Agent::of(&registry, &first).await
    });
    flow.unwrap();
    // One that goes, and the one that takes its place.
    let second = Agent::of(&registry, &format!("{}-x3", stand_in.name)).await;
    drop(first);
    dial(&registry, &ann, &listener).await.unwrap();
    drop(second);
    let third = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Agent::of(&registry, &format!("{}-x4", stand_in.name)).await
    };
    let (flow, _third) = tokio::join!(dial(&registry, &ann, &listener), third);
    flow.unwrap();
}
