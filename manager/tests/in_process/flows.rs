//! Flows and names through a lane, to real sockets on the loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::RecordType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tp_manager::policy::{Loopback, Policy};
use tp_protocol::datagram::{self, CapsuleDecoder};
use tp_protocol::error_class::ErrorClass;
use tp_protocol::hello::ClientHello;
use tp_protocol::open::{Host, Open, Transport};
use tp_tunnel::error::{FlowError, FlowOpenError};
use tp_tunnel::flow::{Flow, FlowReceiver};

use crate::stage::{Client, FLOWS_MAX, Stage, UDP_IDLE, soon};

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn named(name: &str, port: u16, namespace: Option<&str>) -> Open {
    Open {
        host: Host::Name(name.into()),
        namespace: namespace.map(Into::into),
        ..Open::new(Transport::Tcp, ([0, 0, 0, 0], port).into())
    }
}

async fn tcp(client: &Client, dst: SocketAddr) -> Result<Flow, FlowOpenError> {
    soon(client.lane.open(&Open::new(Transport::Tcp, dst))).await
}

#[track_caller]
fn class(outcome: Result<Flow, FlowOpenError>) -> ErrorClass {
    match outcome {
        Err(error) => error.class(),
        Ok(_) => panic!("the flow was opened"),
    }
}

async fn read_all(receiver: &mut FlowReceiver) -> Result<BytesMut, FlowError> {
    let mut all = BytesMut::new();
    while let Some(data) = soon(receiver.data()).await {
        let data = data?;
        receiver.release(data.len());
        all.extend_from_slice(&data);
    }
    Ok(all)
}

#[tokio::test]
async fn by_way_of_a_workload_the_policy_is_asked_first_and_the_session_has_to_hold_its_place() {
    let mut stage = Stage::new();
    let client = stage.client().await;
    let via = |dst: &str| Open {
        namespace: Some("shop".into()),
        via: Some("deployment/web".into()),
        ..Open::new(Transport::Tcp, dst.parse().unwrap())
    };
    for (dst, why) in [
        ("169.254.169.254:80", "link-local"),
        ("[::ffff:169.254.169.254]:80", "link-local"),
        ("10.0.0.1:80", "by way of deployment/web"),
    ] {
        match soon(client.lane.open(&via(dst))).await {
            Err(FlowOpenError::Refused(refused)) => {
                assert_eq!((refused.class, refused.message.contains(why)), (ErrorClass::Denied, true), "{refused}");
            }
            other => panic!("{dst}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn flows_go_on_on_another_byte_stream() {
    let mut stage = Stage::new();
    let (listener, dst) = listener().await;
    let client = stage.client().await;
    let (mut sender, mut receiver) = tcp(&client, dst).await.unwrap().split();
    let (mut socket, _) = soon(listener.accept()).await.unwrap();
    let mut heard = [0; 6];
    for word in [b"before", b"after1", b"after2"] {
        // One word is under way each way when the byte stream is cut.
        sender.send_all(Bytes::from_static(word)).await.unwrap();
        socket.write_all(word).await.unwrap();
        let resume_received = Some(client.handle.detach("cut"));
        let hello =
            ClientHello { session: Some(client.session()), resume_received, ..ClientHello::new("0.1.0", "demo") };
        let welcome = stage.say_hello(&hello).await.unwrap().resume(&client.handle).unwrap();
        assert!(welcome.rejoined && welcome.resume_received.is_some());
        soon(socket.read_exact(&mut heard)).await.unwrap();
        assert_eq!(&heard, word);
        let echoed = soon(receiver.data()).await.unwrap().unwrap();
        assert_eq!(echoed, &word[..]);
        receiver.release(echoed.len());
    }
}

#[tokio::test]
async fn bytes_and_half_close_pass_both_ways() {
    let mut stage = Stage::new();
    let (listener, dst) = listener().await;
    let client = stage.client().await;
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    let server = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut received = Vec::new();
        socket.read_to_end(&mut received).await.unwrap();
        // The client has closed its direction; ours still works.
        received.reverse();
        socket.write_all(&received).await.unwrap();
    };
    let exchange = async {
        let (mut sender, mut receiver) = tcp(&client, dst).await.unwrap().split();
        sender.send_all(Bytes::from(sent.clone())).await.unwrap();
        sender.finish().unwrap();
        read_all(&mut receiver).await.unwrap()
    };
    let ((), mut received) = soon(async { tokio::join!(server, exchange) }).await;
    received.reverse();
    assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
}

#[tokio::test]
async fn a_flow_is_opened_only_when_the_peer_has_accepted() {
    let mut stage = Stage::new();
    let client = stage.client().await;
    let (closed, dst) = listener().await;
    drop(closed);
    assert_eq!(class(tcp(&client, dst).await), ErrorClass::Refused);
}

#[tokio::test]
async fn a_reset_stays_behind_the_data_before_it() {
    let mut stage = Stage::new();
    let (listener, dst) = listener().await;
    let client = stage.client().await;
    let (_sender, mut receiver) = tcp(&client, dst).await.unwrap().split();
    let (mut socket, _) = listener.accept().await.unwrap();
    socket.write_all(b"last words").await.unwrap();
    let data = soon(receiver.data()).await.unwrap().unwrap();
    assert_eq!(&data[..], b"last words");
    socket.set_zero_linger().unwrap();
    drop(socket);
    match read_all(&mut receiver).await {
        Err(FlowError::Reset(why)) => assert_eq!(why.class, ErrorClass::Reset),
        other => panic!("expected a reset, got {other:?}"),
    }
}

#[tokio::test]
async fn the_policy_refuses_addresses_and_what_names_resolve_to() {
    let mut stage = Stage::with_dns().await;
    let client = stage.client().await;
    let metadata = "169.254.169.254:80".parse().unwrap();
    assert_eq!(class(tcp(&client, metadata).await), ErrorClass::Denied);
    let udp = soon(client.lane.open(&Open::new(Transport::Udp, metadata))).await;
    assert_eq!(class(udp), ErrorClass::Denied);
    assert_eq!(class(soon(client.lane.open(&named("bad.", 80, None))).await), ErrorClass::Denied);
    // As in a cluster, where nothing may dial the manager's own loopback.
    stage.policy.send_replace(Arc::new(Policy { loopback: Loopback::Refuse, ..Policy::default() }));
    let (_listener, dst) = listener().await;
    assert_eq!(class(tcp(&client, dst).await), ErrorClass::Denied);
    let named = named("web", dst.port(), Some("shop"));
    assert_eq!(class(soon(client.lane.open(&named)).await), ErrorClass::Denied);
}

#[tokio::test]
async fn names_are_dialled_as_in_a_pod_of_the_namespace() {
    let mut stage = Stage::with_dns().await;
    let (listener, dst) = listener().await;
    let client = stage.client().await;
    let _flow = soon(client.lane.open(&named("web", dst.port(), Some("shop")))).await.unwrap();
    soon(listener.accept()).await.unwrap();
    let elsewhere = soon(client.lane.open(&named("web", dst.port(), Some("bank")))).await;
    assert_eq!(class(elsewhere), ErrorClass::NameNotFound);
}

#[tokio::test]
async fn a_place_that_no_engagement_has_asked_for_cannot_be_dialled_from() {
    let mut stage = Stage::new();
    let (_listener, dst) = listener().await;
    let open = Open { via: Some("deployment/web".into()), ..Open::new(Transport::Tcp, dst) };
    let client = stage.client().await;
    assert_eq!(class(soon(client.lane.open(&open)).await), ErrorClass::Denied);
}

#[tokio::test]
async fn flows_over_the_limit_are_refused_until_one_ends() {
    let mut stage = Stage::new();
    let (_listener, dst) = listener().await;
    let client = stage.client().await;
    let mut flows = Vec::new();
    for _ in 0..FLOWS_MAX {
        flows.push(tcp(&client, dst).await.unwrap());
    }
    assert_eq!(class(tcp(&client, dst).await), ErrorClass::Exhausted);
    let second_lane = stage.join(1, &client.session()).await.unwrap();
    assert_eq!(class(tcp(&second_lane, dst).await), ErrorClass::Exhausted, "the limit is the session's");
    flows.pop();
    soon(async {
        while tcp(&client, dst).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn datagrams_of_every_size_come_back() {
    let mut stage = Stage::new();
    let client = stage.client().await;
    for (address, longest) in [("127.0.0.1:0", 65_507), ("[::1]:0", 65_527)] {
        let echo = UdpSocket::bind(address).await.unwrap();
        let open = Open::new(Transport::Udp, echo.local_addr().unwrap());
        let (mut sender, mut receiver) = soon(client.lane.open(&open)).await.unwrap().split();
        let mut decoder = CapsuleDecoder::default();
        for len in [0, 1, 1_472, 9_000, longest] {
            let payload = vec![0xa5; len];
            let mut capsule = BytesMut::new();
            datagram::encode(&payload, &mut capsule);
            sender.send_all(capsule.freeze()).await.unwrap();
            let mut buffer = vec![0; 65_536];
            let (received, peer) = soon(echo.recv_from(&mut buffer)).await.unwrap();
            assert_eq!(received, len);
            echo.send_to(&buffer[..received], peer).await.unwrap();
            let back = loop {
                if let Some(back) = decoder.poll_datagram().unwrap() {
                    break back;
                }
                let data = soon(receiver.data()).await.unwrap().unwrap();
                receiver.release(data.len());
                decoder.handle_input(&data);
            };
            assert_eq!(back, payload);
        }
    }
}

#[tokio::test]
async fn an_idle_association_ends_and_a_closed_port_says_refused() {
    let mut stage = Stage::new();
    let client = stage.client().await;
    let peer = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let open = Open::new(Transport::Udp, peer.local_addr().unwrap());
    let (_sender, mut receiver) = soon(client.lane.open(&open)).await.unwrap().split();
    let started = std::time::Instant::now();
    assert!(read_all(&mut receiver).await.unwrap().is_empty());
    assert!(started.elapsed() >= UDP_IDLE - Duration::from_millis(50));
    drop(peer);
    let (mut sender, mut receiver) = soon(client.lane.open(&open)).await.unwrap().split();
    let mut capsule = BytesMut::new();
    datagram::encode(b"anybody?", &mut capsule);
    sender.send_all(capsule.freeze()).await.unwrap();
    match read_all(&mut receiver).await {
        Err(FlowError::Reset(why)) => assert_eq!(why.class, ErrorClass::Refused),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[tokio::test]
async fn dns_messages_pass_with_their_ids() {
    let mut stage = Stage::with_dns().await;
    let client = stage.client().await;
    for (name, code, answers) in
        [("web.shop.svc.cluster.local.", ResponseCode::NoError, 1), ("nope.", ResponseCode::NXDomain, 0)]
    {
        let mut query = Message::new(0xbeef, MessageType::Query, OpCode::Query);
        query.add_query(Query::query(name.parse().unwrap(), RecordType::A));
        let answer = soon(client.lane.resolve(query.to_vec().unwrap().into())).await.unwrap();
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!((answer.metadata.id, answer.metadata.response_code), (0xbeef, code));
        assert_eq!(answer.answers.len(), answers);
    }
}

#[tokio::test]
async fn without_a_nameserver_a_query_fails_with_a_reason() {
    let mut stage = Stage::new();
    let client = stage.client().await;
    let query = Message::new(1, MessageType::Query, OpCode::Query).to_vec().unwrap();
    match soon(client.lane.resolve(query.into())).await {
        Err(FlowOpenError::Refused(refused)) => assert!(refused.message.contains("resolv.conf"), "{refused}"),
        other => panic!("expected a reason, got {other:?}"),
    }
}
