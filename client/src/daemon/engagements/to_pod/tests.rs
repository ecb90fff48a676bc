use std::future::Future;
use std::sync::atomic::{AtomicU16, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tp_protocol::error_class::ErrorClass;
use tp_protocol::hello::{ClientHello, Welcome};
use tp_protocol::open::{Host, OpenRefused};
use tp_tunnel::client;
use tp_tunnel::server::{self, Incoming, Responder};

use super::*;

/// Nothing here takes longer, unless it is broken.
const PATIENCE: Duration = Duration::from_secs(10);

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

/// A tunnel, and what the manager is asked to open.
async fn tunnel() -> (Tunnel, mpsc::Receiver<(Open, Responder)>) {
    let (near, far) = tokio::io::duplex(64 << 10);
    let (opens_tx, opens) = mpsc::channel(8);
    spawn_local(serve(far, opens_tx));
    let connected = client::connect(near, &ClientHello::new("0.1.0", "test")).await.unwrap();
    spawn_local(connected.driver);
    let tunnel = Tunnel::new();
    tunnel.set_lane(Some(connected.lane));
    (tunnel, opens)
}

async fn serve(io: DuplexStream, opens: mpsc::Sender<(Open, Responder)>) {
    let pending = server::accept(io).await.unwrap();
    let mut lane = pending.welcome(Welcome { version: 1, ..Welcome::default() }).await.unwrap();
    while let Some(Ok(Incoming::Open(open, responder))) = lane.next().await {
        opens.send((open, responder)).await.unwrap();
    }
}

fn to_pods(tunnel: &Tunnel) -> ToPods {
    ToPods::new(tunnel.clone(), Rc::default())
}

fn wanted(port: u16) -> ToPod {
    ToPod { port: port.into(), transport: wire::Transport::Tcp.into() }
}

fn held(workload: &str, port: u16) -> Held {
    Held { namespace: "shop".into(), workload: workload.into(), to_pod: vec![wanted(port)], ..Held::default() }
}

/// A port of the localhost that is free.
fn free_port() -> u16 {
    // Below what the kernel gives out by itself (ip(7), `ip_local_port_range`): another test would be given it in between.
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    let ports = std::iter::repeat_with(|| NEXT.fetch_add(1, Ordering::Relaxed));
    let mut free = ports.filter(|port| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok());
    free.next().unwrap()
}

/// Connects once somebody listens.
async fn connect(address: impl Into<IpAddr>, port: u16) -> TcpStream {
    let address = address.into();
    let connected = async {
        loop {
            match TcpStream::connect((address, port)).await {
                Ok(socket) => return socket,
                Err(_) => sleep(Duration::from_millis(5)).await,
            }
        }
    };
    timeout(PATIENCE, connected).await.unwrap()
}

async fn until_refused(port: u16) {
    let refused = async {
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, refused).await.unwrap();
}

#[test]
fn connection_becomes_a_flow_to_the_localhost_of_the_workload_s_pod() {
    run(async {
        let (tunnel, mut opens) = tunnel().await;
        let (to_pods, port) = (to_pods(&tunnel), free_port());
        to_pods.set(&[held("deployment/web", port)]);
        let mut socket = connect(Ipv4Addr::LOCALHOST, port).await;
        let (open, responder) = timeout(PATIENCE, opens.recv()).await.unwrap().unwrap();
        assert_eq!((&open.host, open.port), (&Host::Ip(Ipv4Addr::LOCALHOST.into()), port));
        assert_eq!((open.via.as_deref(), open.namespace.as_deref()), (Some("deployment/web"), Some("shop")));
        assert_eq!(open.source, Some(socket.local_addr().unwrap()));
        let (mut sender, mut receiver) = responder.accept().unwrap().split();
        socket.write_all(b"PING").await.unwrap();
        let data = timeout(PATIENCE, receiver.data()).await.unwrap().unwrap().unwrap();
        assert_eq!(data, "PING");
        sender.send_all("PONG".into()).await.unwrap();
        sender.finish().unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "PONG");
    });
}

#[test]
fn a_pod_that_is_not_reached_is_a_reset() {
    run(async {
        let (tunnel, mut opens) = tunnel().await;
        let (to_pods, port) = (to_pods(&tunnel), free_port());
        to_pods.set(&[held("deployment/web", port)]);
        let mut socket = connect(Ipv4Addr::LOCALHOST, port).await;
        let (_, responder) = timeout(PATIENCE, opens.recv()).await.unwrap().unwrap();
        responder.refuse(&OpenRefused::new(ErrorClass::HostUnreachable, "deployment/web has no pod that runs"));
        assert_eq!(socket.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn ports_end_with_their_engagement_and_come_back_with_it() {
    run(async {
        let (tunnel, _opens) = tunnel().await;
        let (to_pods, port) = (to_pods(&tunnel), free_port());
        to_pods.set(&[held("deployment/web", port)]);
        connect(Ipv4Addr::LOCALHOST, port).await;
        to_pods.set(&[held("deployment/web", port), Held::default()]);
        connect(Ipv4Addr::LOCALHOST, port).await;
        to_pods.set(&[]);
        until_refused(port).await;
        to_pods.set(&[held("deployment/web", port)]);
        connect(Ipv4Addr::LOCALHOST, port).await;
        to_pods.remove(&held("deployment/db", port));
        to_pods.remove(&held("deployment/web", port));
        until_refused(port).await;
        drop(to_pods.reserve(&[wanted(port)]).unwrap());
        to_pods.set(&[held("deployment/web", port)]);
        connect(Ipv4Addr::LOCALHOST, port).await;
    });
}

#[test]
fn reserved_ports_are_the_engagement_s_or_free_again() {
    run(async {
        let (tunnel, mut opens) = tunnel().await;
        let (to_pods, port, other) = (to_pods(&tunnel), free_port(), free_port());
        let reserved = to_pods.reserve(&[wanted(port), wanted(other), wanted(port)]).unwrap();
        let refused = to_pods.reserve(&[wanted(other)]).err().unwrap();
        assert!(refused.message.starts_with(&format!("cannot listen on port {other}")), "{refused:?}");
        to_pods.add(&held("deployment/web", port));
        drop(reserved);
        let _socket = connect(Ipv4Addr::LOCALHOST, port).await;
        assert!(timeout(PATIENCE, opens.recv()).await.unwrap().is_some());
        std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, other)).unwrap();
        let refused = to_pods.reserve(&[wanted(port)]).err().unwrap();
        assert_eq!(refused.message, format!("port {port} leads to the localhost of deployment/web already"));
    });
}

#[test]
fn a_port_that_comes_free_later_is_served_then() {
    run(async {
        let (tunnel, mut opens) = tunnel().await;
        let (to_pods, port) = (to_pods(&tunnel), free_port());
        let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        to_pods.set(&[held("deployment/web", port)]);
        sleep(Duration::from_millis(50)).await;
        drop(taken);
        let _socket = connect(Ipv4Addr::LOCALHOST, port).await;
        assert!(timeout(PATIENCE, opens.recv()).await.unwrap().is_some());
    });
}

#[test]
fn what_cannot_be_listened_at_is_left_alone() {
    let datagrams = ToPod { transport: wire::Transport::Udp.into(), ..wanted(53) };
    assert_eq!([wanted(0), ToPod { port: 65_536, ..wanted(1) }, datagrams].iter().filter_map(number).count(), 0);
    assert_eq!(number(&wanted(6379)), Some(6379));
}
