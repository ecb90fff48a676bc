use std::future::Future;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tp_protocol::datagram::{self, CapsuleDecoder};
use tp_protocol::hello::{ClientHello, Welcome};
use tp_protocol::open::OpenRefused;
use tp_tunnel::client::{self, Lane};
use tp_tunnel::error::OfferError;
use tp_tunnel::flow::{Flow, FlowReceiver, FlowSender};
use tp_tunnel::server::{self, Acceptor, Incoming};
use tp_tunnel::standby::MIN_STANDBY;

use super::*;

/// The container's port that is engaged.
const PORT: u16 = 8080;

/// Nothing here takes longer, unless it is broken.
const PATIENCE: Duration = Duration::from_secs(10);

/// The manager's end of a lane: the streams that wait on it. The lane ends with it.
struct Manager {
    waiting: mpsc::Receiver<(EngagementId, Acceptor)>,
    serving: AbortHandle,
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Manager {
    /// The next stream that waits.
    async fn next(&mut self) -> Acceptor {
        let (id, acceptor) = timeout(PATIENCE, self.waiting.recv()).await.unwrap().unwrap();
        assert_eq!(id.as_str(), "tp-web-x7c2d");
        acceptor
    }

    /// As many streams as there are once nothing moves any more.
    async fn all(&mut self) -> Vec<Acceptor> {
        let mut all = Vec::new();
        while let Ok(Some((_, acceptor))) = timeout(Duration::from_millis(50), self.waiting.recv()).await {
            all.push(acceptor);
        }
        all
    }
}

async fn lane() -> (Lane, Manager) {
    let (near, far) = tokio::io::duplex(64 << 10);
    let (waiting_tx, waiting) = mpsc::channel(64);
    let serving = spawn_local(serve(far, waiting_tx)).abort_handle();
    let connected = client::connect(near, &ClientHello::new("0.1.0", "test")).await.unwrap();
    spawn_local(connected.driver);
    (connected.lane, Manager { waiting, serving })
}

async fn serve(io: DuplexStream, waiting: mpsc::Sender<(EngagementId, Acceptor)>) {
    let pending = server::accept(io).await.unwrap();
    let mut lane = pending.welcome(Welcome { version: 1, ..Welcome::default() }).await.unwrap();
    while let Some(Ok(Incoming::Accept(id, acceptor))) = lane.next().await {
        waiting.send((id, acceptor)).await.unwrap();
    }
}

async fn connected() -> (Tunnel, Engagements, Manager) {
    let tunnel = Tunnel::new();
    let (lane, manager) = lane().await;
    tunnel.set_lane(Some(lane));
    (tunnel.clone(), Engagements::new(tunnel), manager)
}

fn held(transport: wire::Transport, local: SocketAddr) -> Held {
    let port = HeldPort { port: PORT.into(), transport: transport.into(), service_port: 80, local: local.to_string() };
    Held { id: "tp-web-x7c2d".into(), ports: vec![port], ..Held::default() }
}

fn arrival(port: u16, transport: Transport) -> Arrival {
    Arrival { port, transport, source: "10.244.0.7:41000".parse().unwrap() }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

/// What the client said instead of taking the connection.
fn refused(offered: Result<Flow, OfferError>) -> OpenRefused {
    match offered {
        Err(OfferError::Refused(why)) => why,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

async fn receive(receiver: &mut FlowReceiver) -> bytes::Bytes {
    let data = timeout(PATIENCE, receiver.data()).await.unwrap().unwrap().unwrap();
    receiver.release(data.len());
    data
}

/// Bytes both ways, and the end of both directions.
async fn talk(mut handler: TcpStream, mut sender: FlowSender, mut receiver: FlowReceiver) {
    sender.send_all("ping".into()).await.unwrap();
    sender.finish().unwrap();
    let mut asked = String::new();
    handler.read_to_string(&mut asked).await.unwrap();
    assert_eq!(asked, "ping");
    handler.write_all(b"pong").await.unwrap();
    drop(handler);
    let mut answered = Vec::new();
    while let Some(data) = receiver.data().await {
        answered.extend_from_slice(&data.unwrap());
    }
    assert_eq!(answered, b"pong");
}

#[test]
fn connection_reaches_the_handler_and_another_stream_takes_its_place() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (_tunnel, engagements, mut manager) = connected().await;
        engagements.set(vec![held(wire::Transport::Tcp, listener.local_addr().unwrap())]);
        let mut waiting = manager.all().await;
        assert_eq!(waiting.len(), MIN_STANDBY);
        let arrival = arrival(PORT, Transport::Tcp);
        let (flow, accepted) = tokio::join!(waiting.remove(0).offer(&arrival), listener.accept());
        assert_eq!((engagements.open(), engagements.last().is_some()), (1, true));
        manager.next().await;
        let (sender, receiver) = flow.unwrap().split();
        talk(accepted.unwrap().0, sender, receiver).await;
        while engagements.open() > 0 {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn handler_that_is_away_refuses() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let (_tunnel, engagements, mut manager) = connected().await;
        engagements.set(vec![held(wire::Transport::Tcp, address)]);
        let answer = refused(manager.next().await.offer(&arrival(PORT, Transport::Tcp)).await);
        assert_eq!(answer.class, ErrorClass::Refused);
        assert!(answer.message.starts_with(&format!("the handler at {address}: ")), "{answer}");
        for (port, transport) in [(PORT + 1, Transport::Tcp), (PORT, Transport::Udp)] {
            let answer = refused(manager.next().await.offer(&arrival(port, transport)).await);
            assert_eq!(answer.message, format!("port {port} is no part of the engagement"));
        }
        assert_eq!(engagements.open(), 0);
    });
}

#[test]
fn datagrams_reach_the_handler() {
    run(async {
        let handler = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (_tunnel, engagements, mut manager) = connected().await;
        engagements.set(vec![held(wire::Transport::Udp, handler.local_addr().unwrap())]);
        let flow = manager.next().await.offer(&arrival(PORT, Transport::Udp)).await.unwrap();
        let (mut sender, mut receiver) = flow.split();
        let mut capsule = bytes::BytesMut::new();
        datagram::encode(b"ping", &mut capsule);
        sender.send_all(capsule.freeze()).await.unwrap();
        let mut buffer = [0; 16];
        let (len, peer) = handler.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..len], b"ping");
        handler.send_to(b"pong", peer).await.unwrap();
        let mut decoder = CapsuleDecoder::default();
        decoder.handle_input(&receive(&mut receiver).await);
        assert_eq!(decoder.poll_datagram().unwrap().unwrap(), "pong");
    });
}

#[test]
fn streams_wait_again_on_the_next_lane() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (tunnel, engagements, mut manager) = connected().await;
        engagements.set(vec![held(wire::Transport::Tcp, listener.local_addr().unwrap())]);
        assert_eq!(manager.all().await.len(), MIN_STANDBY);
        drop(manager);
        tunnel.set_lane(None);
        tokio::time::sleep(Duration::from_millis(50)).await;
        let (next, mut manager) = lane().await;
        tunnel.set_lane(Some(next));
        let mut waiting = manager.all().await;
        assert_eq!(waiting.len(), MIN_STANDBY);
        let arrival = arrival(PORT, Transport::Tcp);
        let (flow, accepted) = tokio::join!(waiting.remove(0).offer(&arrival), listener.accept());
        let (sender, receiver) = flow.unwrap().split();
        talk(accepted.unwrap().0, sender, receiver).await;
    });
}

#[test]
fn engagement_that_has_ended_takes_nothing_and_keeps_what_it_has() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (_tunnel, engagements, mut manager) = connected().await;
        engagements.set(vec![held(wire::Transport::Tcp, listener.local_addr().unwrap())]);
        let arrival = arrival(PORT, Transport::Tcp);
        let acceptor = manager.next().await;
        let (flow, accepted) = tokio::join!(acceptor.offer(&arrival), listener.accept());
        let mut waiting = manager.all().await;
        assert_eq!(waiting.len(), MIN_STANDBY);
        engagements.set(Vec::new());
        assert!(engagements.held().is_empty());
        for acceptor in &mut waiting {
            timeout(PATIENCE, acceptor.cancelled()).await.unwrap();
        }
        assert!(manager.all().await.is_empty());
        assert_eq!(engagements.open(), 1);
        let (sender, receiver) = flow.unwrap().split();
        talk(accepted.unwrap().0, sender, receiver).await;
    });
}

#[test]
fn ports_that_change_are_taken_up_by_the_streams_that_wait() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (_tunnel, engagements, mut manager) = connected().await;
        engagements.set(vec![held(wire::Transport::Tcp, "127.0.0.1:1".parse().unwrap())]);
        let mut waiting = manager.all().await;
        engagements.set(vec![held(wire::Transport::Tcp, listener.local_addr().unwrap())]);
        assert!(manager.all().await.is_empty(), "the same streams go on to wait");
        let arrival = arrival(PORT, Transport::Tcp);
        let (flow, accepted) = tokio::join!(waiting.remove(0).offer(&arrival), listener.accept());
        assert!(flow.is_ok() && accepted.is_ok());
    });
}

#[tokio::test(start_paused = true)]
async fn stream_that_is_refused_is_opened_again_but_not_at_once() {
    let test = async {
        let (_tunnel, engagements, mut manager) = connected().await;
        engagements.set(vec![held(wire::Transport::Tcp, "127.0.0.1:1".parse().unwrap())]);
        let mut waiting: Vec<_> = Vec::new();
        for _ in 0..MIN_STANDBY {
            waiting.push(manager.next().await);
        }
        let (begun, attempts) = (Instant::now(), 20);
        let mut acceptor = waiting.remove(0);
        for _ in 0..attempts {
            acceptor.refuse(&OpenRefused::new(ErrorClass::Exhausted, "enough of these wait"));
            let (_, next) = manager.waiting.recv().await.unwrap();
            acceptor = next;
        }
        let took = begun.elapsed();
        assert!(took > Duration::from_secs(10), "{attempts} attempts took {took:?}");
        assert!(engagements.last().is_none());
    };
    LocalSet::new().run_until(test).await;
}

#[test]
fn engagements_beyond_the_limit_and_those_without_ports_are_listed_only() {
    run(async {
        let engagements = Engagements::new(Tunnel::new());
        let held = |id: String| Held { id, ports: vec![HeldPort::default()], ..Held::default() };
        let many = (0..=MAX_SERVED).map(|number| held(format!("tp-web-{number}")));
        let ingest = Held { ports: Vec::new(), ..held("tp-ingest".into()) };
        engagements.set([ingest].into_iter().chain(many).chain([held("a b".into())]).collect());
        assert_eq!(engagements.held().len(), MAX_SERVED + 3);
        assert_eq!(engagements.served.borrow().len(), MAX_SERVED);
    });
}
