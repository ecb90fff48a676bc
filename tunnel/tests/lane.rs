//! A lane over an in-memory pipe, with a manager's end that dials real loopback sockets.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tp_protocol::control::{FromManager, Ping, ToManager, from_manager, to_manager};
use tp_protocol::datagram::{self, CapsuleDecoder};
use tp_protocol::error_class::ErrorClass;
use tp_protocol::hello::{ClientHello, Refusal, RefusalCode, Welcome};
use tp_protocol::limits::{MAX_DATAGRAM_BYTES, STREAM_WINDOW_BYTES};
use tp_protocol::open::{Host, Open, OpenRefused, Transport};
use tp_tunnel::client::{self, Lane};
use tp_tunnel::error::{FlowError, FlowOpenError, LaneError};
use tp_tunnel::flow::{Continuation, Flow};
use tp_tunnel::read_ahead::ReadAhead;
use tp_tunnel::relay;
use tp_tunnel::server::{self, Incoming};

/// Serves one lane as a manager without policy would.
async fn serve(io: tokio::io::DuplexStream) {
    let pending = server::accept(io).await.unwrap();
    let mut lane = pending.welcome(Welcome { version: 1, ..Welcome::default() }).await.unwrap();
    while let Some(Ok(incoming)) = lane.next().await {
        tokio::spawn(async move {
            match incoming {
                Incoming::Open(open, responder) => {
                    let Host::Ip(ip) = open.host else { panic!("tests open addresses") };
                    let dst = SocketAddr::new(ip, open.port);
                    match open.transport {
                        Transport::Tcp => match TcpStream::connect(dst).await {
                            Ok(socket) => {
                                drop(relay::tcp(responder.accept().unwrap(), socket, &ReadAhead::default()).await)
                            }
                            Err(e) => responder.refuse(&OpenRefused::new(ErrorClass::of_io(&e), e.to_string())),
                        },
                        Transport::Udp => {
                            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                            socket.connect(dst).await.unwrap();
                            relay::udp(responder.accept().unwrap(), socket, Duration::from_secs(30)).await;
                        }
                    }
                }
                Incoming::Continue(_, responder) => responder.refuse(),
                Incoming::Resolve(request) => {
                    let (query, responder) = request.message().await.unwrap();
                    responder.answer(Bytes::from([b"re: ", &query[..]].concat()));
                }
                Incoming::Echo(dst, request) => {
                    let (data, responder) = request.message().await.unwrap();
                    match dst {
                        IpAddr::V4(_) => responder.answer(data),
                        IpAddr::V6(_) => responder.refuse(&OpenRefused::new(ErrorClass::HostUnreachable, "no answer")),
                    }
                }
                Incoming::Accept(..) | Incoming::Dial(_) | Incoming::Reach(..) | Incoming::Call(_) => {
                    panic!("not of these tests")
                }
                Incoming::Control(control) => {
                    let (mut sender, mut receiver) = control.split();
                    let Some(Ok(ToManager { kind: Some(to_manager::Kind::Pong(ping)) })) = receiver.recv().await else {
                        panic!("expected a pong");
                    };
                    sender.send(&FromManager::from(from_manager::Kind::Ping(ping))).await.unwrap();
                    sender.finish().unwrap();
                    assert!(receiver.recv::<ToManager>().await.is_none());
                }
            }
        });
    }
}

async fn lane() -> Lane {
    let (near, far) = tokio::io::duplex(256 << 10);
    tokio::spawn(serve(far));
    let connected = client::connect(near, &ClientHello::new("0.1.0", "test")).await.unwrap();
    tokio::spawn(connected.driver);
    connected.lane
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

async fn open(lane: &Lane, transport: Transport, dst: SocketAddr) -> Flow {
    lane.open(&Open::new(transport, dst)).await.unwrap()
}

#[tokio::test]
async fn half_close_passes_in_both_directions_and_nothing_is_lost() {
    let (listener, addr) = listener().await;
    let server = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut received = Vec::new();
        socket.read_to_end(&mut received).await.unwrap();
        socket.write_all(&received).await.unwrap();
    });
    let (mut sender, mut receiver) = open(&lane().await, Transport::Tcp, addr).await.split();
    let sent: Vec<u8> = (0..10_000_000u32).map(|n| n.to_be_bytes()[3] ^ n.to_be_bytes()[2]).collect();
    sender.send_all(sent.clone().into()).await.unwrap();
    sender.finish().unwrap();
    let mut echoed = Vec::new();
    while let Some(data) = receiver.data().await {
        let data = data.unwrap();
        receiver.release(data.len());
        echoed.extend_from_slice(&data);
    }
    assert!(echoed == sent);
    server.await.unwrap();
}

#[tokio::test]
async fn closed_port_is_refused_with_its_class() {
    let (listener, addr) = listener().await;
    drop(listener);
    let refused = lane().await.open(&Open::new(Transport::Tcp, addr)).await.unwrap_err();
    assert_eq!(refused.class(), ErrorClass::Refused);
}

#[tokio::test]
async fn reset_by_the_server_arrives_as_reset() {
    let (listener, addr) = listener().await;
    let (_sender, mut receiver) = open(&lane().await, Transport::Tcp, addr).await.split();
    let (mut socket, _) = listener.accept().await.unwrap();
    socket.write_all(b"last words").await.unwrap();
    assert_eq!(receiver.data().await.unwrap().unwrap(), "last words");
    socket.set_zero_linger().unwrap();
    drop(socket);
    let Some(Err(FlowError::Reset(why))) = receiver.data().await else { panic!("expected a reset") };
    assert_eq!(why.class, ErrorClass::Reset);
}

#[tokio::test]
async fn reset_by_the_client_reaches_the_server_as_reset() {
    for orderly in [true, false] {
        let (listener, addr) = listener().await;
        let (mut sender, receiver) = open(&lane().await, Transport::Tcp, addr).await.split();
        let (mut socket, _) = listener.accept().await.unwrap();
        if orderly {
            sender.reset(&OpenRefused::new(ErrorClass::Reset, "gone")).unwrap();
        }
        drop((sender, receiver));
        let error = socket.read(&mut [0; 16]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn dropping_a_flow_leaves_the_lane_to_others() {
    let (listener, addr) = listener().await;
    let lane = lane().await;
    for _ in 0..300 {
        let flow = open(&lane, Transport::Tcp, addr).await;
        drop((flow, listener.accept().await.unwrap()));
    }
    let (_sender, mut receiver) = open(&lane, Transport::Tcp, addr).await.split();
    listener.accept().await.unwrap().0.write_all(b"alive").await.unwrap();
    assert_eq!(receiver.data().await.unwrap().unwrap(), "alive");
}

#[tokio::test]
async fn answer_of_a_server_that_stops_reading_is_delivered() {
    let (listener, addr) = listener().await;
    let (mut sender, mut receiver) = open(&lane().await, Transport::Tcp, addr).await.split();
    let (mut socket, _) = listener.accept().await.unwrap();
    sender.send_all(vec![7; 100_000].into()).await.unwrap();
    socket.read_exact(&mut [0; 10]).await.unwrap();
    socket.write_all(&vec![1; 300_000]).await.unwrap();
    socket.shutdown().await.unwrap();
    // More than the buffers on the way hold: the relay's write fails once the socket is closed.
    let upload = tokio::spawn(async move { sender.send_all(vec![7; 8 << 20].into()).await });
    let mut answer = 0;
    while let Some(data) = receiver.data().await {
        let data = data.unwrap();
        receiver.release(data.len());
        answer += data.len();
        if answer == 300_000 {
            break;
        }
    }
    drop(socket);
    assert_eq!(answer, 300_000);
    // The sender is told, sooner or later, that nobody reads.
    drop(receiver);
    upload.await.unwrap().unwrap_err();
}

#[tokio::test]
async fn flows_that_nobody_reads_do_not_stop_the_others() {
    let (listener, addr) = listener().await;
    let lane = lane().await;
    let mut stalled = Vec::new();
    for _ in 0..20 {
        let flow = open(&lane, Transport::Tcp, addr).await;
        let (mut socket, _) = listener.accept().await.unwrap();
        let writer = tokio::spawn(async move { socket.write_all(&vec![7; 32 << 20]).await });
        stalled.push((flow, writer));
    }
    // Every stalled flow has used up its window once its first bytes came and nothing moves any more.
    let (_sender, mut receiver) = open(&lane, Transport::Tcp, addr).await.split();
    let (mut socket, _) = listener.accept().await.unwrap();
    for _ in 0..100 {
        socket.write_all(b"alive").await.unwrap();
        assert_eq!(receiver.data().await.unwrap().unwrap(), "alive");
        receiver.release(5);
    }
    for (_, writer) in stalled {
        writer.abort();
    }
}

#[tokio::test]
async fn memory_that_stalled_flows_hold_is_bounded() {
    const FLOWS: usize = 1000;
    let (listener, addr) = listener().await;
    let (near, far) = tokio::io::duplex(256 << 10);
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let manager = async move {
        let mut lane = server::accept(far).await.unwrap().welcome(Welcome::default()).await.unwrap();
        while let Some(Ok(Incoming::Open(_, responder))) = lane.next().await {
            let sent = counted.clone();
            tokio::spawn(async move {
                let (mut sender, _receiver) = responder.accept().unwrap().split();
                while let Ok(len) = sender.capacity(16 << 10).await {
                    sender.send(vec![7; len].into()).unwrap();
                    sent.fetch_add(len, Ordering::Relaxed);
                }
            });
        }
    };
    drop(listener);
    tokio::spawn(manager);
    let connected = client::connect(near, &ClientHello::new("0.1.0", "test")).await.unwrap();
    tokio::spawn(connected.driver);
    let mut stalled = Vec::new();
    for _ in 0..FLOWS {
        stalled.push(open(&connected.lane, Transport::Tcp, addr).await);
    }
    let settled = async {
        let mut before = 0;
        while before == 0 || sent.load(Ordering::Relaxed) != before {
            before = sent.load(Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        before
    };
    let sent = tokio::time::timeout(Duration::from_secs(20), settled).await.unwrap();
    let most = FLOWS * STREAM_WINDOW_BYTES as usize;
    assert!(sent <= most, "{} MiB", sent >> 20);
}

#[tokio::test]
async fn datagrams_keep_their_boundaries_and_a_closed_port_comes_back_as_refused() {
    let echo = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (mut sender, mut receiver) = open(&lane().await, Transport::Udp, echo.local_addr().unwrap()).await.split();
    let mut decoder = CapsuleDecoder::default();
    for len in [0, 1, 1400, 65_507] {
        let mut capsule = bytes::BytesMut::new();
        datagram::encode(&vec![7; len], &mut capsule);
        sender.send_all(capsule.freeze()).await.unwrap();
        let mut inbox = vec![0; 65_536];
        let (received, from) = echo.recv_from(&mut inbox).await.unwrap();
        assert_eq!(received, len);
        echo.send_to(&inbox[..len], from).await.unwrap();
        let payload = loop {
            if let Some(payload) = decoder.poll_datagram().unwrap() {
                break payload;
            }
            let data = receiver.data().await.unwrap().unwrap();
            receiver.release(data.len());
            decoder.handle_input(&data);
        };
        assert_eq!(payload.len(), len);
    }
    drop(echo);
    let mut capsule = bytes::BytesMut::new();
    datagram::encode(b"anybody?", &mut capsule);
    sender.send_all(capsule.freeze()).await.unwrap();
    let Some(Err(FlowError::Reset(why))) = receiver.data().await else { panic!("expected a refusal") };
    assert_eq!(why.class, ErrorClass::Refused);
}

#[tokio::test]
async fn dns_messages_and_control_messages_go_there_and_back() {
    let lane = lane().await;
    assert_eq!(lane.resolve(Bytes::from_static(b"web?")).await.unwrap(), "re: web?");
    let (mut sender, mut receiver) = lane.control().await.unwrap().split();
    sender.send(&ToManager::from(to_manager::Kind::Pong(Ping { number: 9 }))).await.unwrap();
    let answer: FromManager = receiver.recv().await.unwrap().unwrap();
    assert_eq!(answer, from_manager::Kind::Ping(Ping { number: 9 }).into());
    assert!(receiver.recv::<FromManager>().await.is_none());
    sender.finish().unwrap();
}

#[tokio::test]
async fn pings_go_there_and_back_with_their_data_or_come_to_nothing() {
    let lane = lane().await;
    for data in [Bytes::new(), Bytes::from(vec![0xa5; MAX_DATAGRAM_BYTES])] {
        assert_eq!(lane.echo([10, 0, 0, 1].into(), data.clone()).await.unwrap(), data);
    }
    let refused = lane.echo("fd00::1".parse().unwrap(), Bytes::from_static(b"ping")).await.unwrap_err();
    assert_eq!(refused.class(), ErrorClass::HostUnreachable);
}

#[tokio::test]
async fn refused_hello_carries_the_reason() {
    let (near, far) = tokio::io::duplex(4096);
    let server = tokio::spawn(async move {
        let pending = server::accept(far).await.unwrap();
        pending.refuse(Refusal::new(RefusalCode::ShuttingDown, "the manager is stopping", "0.1.0")).await.unwrap();
    });
    let Err(LaneError::Refused(refusal)) = client::connect(near, &ClientHello::new("0.1.0", "t")).await else {
        panic!("expected a refusal");
    };
    assert_eq!((refusal.code(), refusal.message.as_str()), (RefusalCode::ShuttingDown, "the manager is stopping"));
    server.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn silent_peer_is_given_up() {
    let (near, _far) = tokio::io::duplex(4096);
    let Err(LaneError::TimedOut(_)) = client::connect(near, &ClientHello::new("0.1.0", "t")).await else {
        panic!("expected a timeout");
    };
}

#[tokio::test]
async fn lost_lane_fails_opens_and_flows() {
    let (near, far) = tokio::io::duplex(256 << 10);
    let server = tokio::spawn(serve(far));
    let connected = client::connect(near, &ClientHello::new("0.1.0", "test")).await.unwrap();
    let driver = tokio::spawn(connected.driver);
    let (_listener, addr) = listener().await;
    let (_sender, mut receiver) = open(&connected.lane, Transport::Tcp, addr).await.split();
    server.abort();
    assert!(matches!(receiver.data().await, Some(Err(FlowError::Cancelled(_)))));
    let ended = driver.await.unwrap().unwrap_err();
    assert!(ended.to_string().contains("closed by the other end"), "{ended}");
    let error = connected.lane.open(&Open::new(Transport::Tcp, addr)).await.unwrap_err();
    assert!(matches!(error, FlowOpenError::Lane(_)), "{error}");
}

#[tokio::test]
async fn flow_goes_on_on_another_lane_in_order_in_both_directions() {
    let (listener, addr) = listener().await;
    let movable = Arc::new(std::sync::Mutex::new(None));
    let lanes = [serve_movable(movable.clone()).await, serve_movable(movable.clone()).await];
    let open = Open { flow: Some(7), ..Open::new(Transport::Tcp, addr) };
    let mut flow = lanes[0].open(&open).await.unwrap();
    let continuation = flow.continuation();
    let (mut sender, mut receiver) = flow.split();
    let (mut socket, _) = listener.accept().await.unwrap();
    let (mut far_reader, mut far_writer) = socket.split();
    let numbers: Vec<u8> = (0..2_000_000_u32).flat_map(u32::to_be_bytes).collect();
    let up = async {
        for piece in numbers.chunks(100_000) {
            sender.send_all(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        sender.finish().unwrap();
    };
    let down = async {
        let mut received = Vec::new();
        while let Some(data) = receiver.data().await {
            let data = data.unwrap();
            receiver.release(data.len());
            received.extend_from_slice(&data);
        }
        received
    };
    let far_up = async {
        let mut received = Vec::new();
        far_reader.read_to_end(&mut received).await.unwrap();
        received
    };
    let far_down = async {
        far_writer.write_all(&numbers).await.unwrap();
        far_writer.shutdown().await.unwrap();
    };
    let carry_on = async { lanes[1].carry_on(7, continuation).await.unwrap() };
    let ((), received, far_received, (), ()) = tokio::join!(up, down, far_up, far_down, carry_on);
    assert!(received == numbers && far_received == numbers);
    assert!(movable.lock().unwrap().is_none(), "it was taken by the other lane");
}

#[tokio::test]
async fn flow_that_is_not_there_cannot_go_on_and_stays_where_it_is() {
    let (listener, addr) = listener().await;
    let movable = Arc::new(std::sync::Mutex::new(None));
    let lanes = [serve_movable(movable.clone()).await, serve_movable(movable.clone()).await];
    let mut flow = lanes[0].open(&Open::new(Transport::Tcp, addr)).await.unwrap();
    let continuation = flow.continuation();
    let refused = lanes[1].carry_on(8, continuation).await;
    assert!(matches!(refused, Err(FlowOpenError::Refused(_))), "{refused:?}");
    let (mut sender, mut receiver) = flow.split();
    let (mut socket, _) = listener.accept().await.unwrap();
    sender.send_all(Bytes::from_static(b"still")).await.unwrap();
    sender.finish().unwrap();
    let mut heard = Vec::new();
    socket.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"still");
    socket.write_all(b"here").await.unwrap();
    drop(socket);
    let mut answered = Vec::new();
    while let Some(data) = receiver.data().await {
        answered.extend_from_slice(&data.unwrap());
    }
    assert_eq!(answered, b"here");
}

/// A lane of a session whose flow 7 can go on on its other lanes.
async fn serve_movable(movable: Arc<std::sync::Mutex<Option<Continuation>>>) -> Lane {
    let (near, far) = tokio::io::duplex(256 << 10);
    tokio::spawn(async move {
        let mut lane = server::accept(far).await.unwrap().welcome(Welcome::default()).await.unwrap();
        while let Some(Ok(incoming)) = lane.next().await {
            match incoming {
                Incoming::Open(open, responder) => {
                    let Host::Ip(ip) = open.host else { panic!("tests open addresses") };
                    let socket = TcpStream::connect((ip, open.port)).await.unwrap();
                    let mut flow = responder.accept().unwrap();
                    if open.flow == Some(7) {
                        *movable.lock().unwrap() = Some(flow.continuation());
                    }
                    tokio::spawn(async move { relay::tcp(flow, socket, &ReadAhead::default()).await });
                }
                Incoming::Continue(flow, responder) => match movable.lock().unwrap().take() {
                    Some(continuation) if flow == 7 => responder.accept(continuation),
                    _ => responder.refuse(),
                },
                Incoming::Resolve(_)
                | Incoming::Echo(..)
                | Incoming::Accept(..)
                | Incoming::Dial(_)
                | Incoming::Reach(..)
                | Incoming::Call(_)
                | Incoming::Control(_) => panic!("the test moves flows only"),
            }
        }
    });
    let connected = client::connect(near, &ClientHello::new("0.1.0", "test")).await.unwrap();
    tokio::spawn(connected.driver);
    connected.lane
}
