//! Datagrams: an association per peer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tp_agent::engine::AppProtocol;
use tp_protocol::engage::{Engagement, WhenAway};
use tp_protocol::open::Transport;

use crate::bed::{Bed, intercept, wiretap};

/// Answers each datagram with its name and the datagram.
async fn echo(name: &'static str) -> (SocketAddr, Arc<UdpSocket>) {
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let server = Arc::clone(&socket);
    tokio::spawn(async move {
        let mut datagram = vec![0; 65_535];
        while let Ok((len, peer)) = server.recv_from(&mut datagram).await {
            server.send_to(&[name.as_bytes(), &datagram[..len]].concat(), peer).await.unwrap();
        }
    });
    (socket.local_addr().unwrap(), socket)
}

fn udp(engagement: Engagement) -> Engagement {
    Engagement { transport: Transport::Udp, ..engagement }
}

async fn peer(bed: &Bed) -> UdpSocket {
    let peer = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    peer.connect(bed.address).await.unwrap();
    peer
}

async fn ask(peer: &UdpSocket, datagram: &[u8]) -> Vec<u8> {
    peer.send(datagram).await.unwrap();
    let mut answer = vec![0; 65_535];
    let len = peer.recv(&mut answer).await.unwrap();
    answer.truncate(len);
    answer
}

#[tokio::test]
async fn datagrams_pass_whole_in_both_directions_and_peers_are_told_apart() {
    let (app, _app) = echo("app ").await;
    let bed = Bed::with(app, Transport::Udp, AppProtocol::Unknown);
    let (a, b) = (peer(&bed).await, peer(&bed).await);
    for datagram in [&b""[..], b"x", &[7; 1400], &[8; 60_000]] {
        assert_eq!(ask(&a, datagram).await, [b"app ", datagram].concat());
        assert_eq!(ask(&b, datagram).await, [b"app ", datagram].concat());
    }
}

#[tokio::test]
async fn an_association_goes_where_its_port_goes() {
    let ((app, _app), (ann, _ann)) = (echo("app ").await, echo("ann ").await);
    let bed = Bed::with(app, Transport::Udp, AppProtocol::Unknown);
    let peer = peer(&bed).await;
    for _ in 0..3 {
        assert_eq!(ask(&peer, b"1").await, b"app 1");
        bed.set(vec![(udp(intercept("ann", &[])), ann)]);
        assert_eq!(ask(&peer, b"2").await, b"ann 2");
        bed.set(vec![]);
    }
}

#[tokio::test]
async fn a_wiretap_gets_the_datagrams_and_answers_nobody() {
    let (app, _app) = echo("app ").await;
    let listener = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let bed = Bed::with(app, Transport::Udp, AppProtocol::Unknown);
    bed.set(vec![(udp(wiretap("ann", &[])), listener.local_addr().unwrap())]);
    let peer = peer(&bed).await;
    for datagram in [b"1", b"2"] {
        assert_eq!(ask(&peer, datagram).await, [b"app ", &datagram[..]].concat());
        let mut copy = [0; 8];
        let (len, from) = listener.recv_from(&mut copy).await.unwrap();
        assert_eq!(&copy[..len], datagram);
        listener.send_to(b"nobody hears this", from).await.unwrap();
    }
}

#[tokio::test]
async fn a_handler_that_refuses_leaves_its_port_to_the_app() {
    let (app, _app) = echo("app ").await;
    let gone = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let bed = Bed::with(app, Transport::Udp, AppProtocol::Unknown);
    bed.set(vec![(Engagement { when_away: WhenAway::Cluster, ..udp(intercept("ann", &[])) }, gone)]);
    let peer = peer(&bed).await;
    // The first datagrams find out that nobody is there, as any client of UDP has to expect.
    let mut answer = [0; 8];
    let len = loop {
        peer.send(b"1").await.unwrap();
        match peer.try_recv(&mut answer) {
            Ok(len) => break len,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    assert_eq!(&answer[..len], b"app 1");
}

#[tokio::test(start_paused = true)]
async fn an_association_ends_when_nothing_moves() {
    let ((app, _app), (ann, _ann)) = (echo("app ").await, echo("ann ").await);
    let bed = Bed::with(app, Transport::Udp, AppProtocol::Unknown);
    bed.set(vec![(udp(intercept("ann", &[])), ann)]);
    let peer = peer(&bed).await;
    for (pause_seconds, associations) in [(0, 1), (119, 1), (119, 1), (121, 2)] {
        tokio::time::advance(Duration::from_secs(pause_seconds)).await;
        assert_eq!(ask(&peer, b"1").await, b"ann 1");
        assert_eq!(bed.report().taken, associations);
    }
}
