//! The whole agent: callers and the workload's pods on loopback, a manager over TLS.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::{sleep, timeout};
use tp_protocol::control::Goodbye;
use tp_protocol::control::from_manager::Kind as From;
use tp_protocol::control::to_manager::Kind as To;
use tp_protocol::datagram::{self, CapsuleDecoder};
use tp_protocol::engage::call::{AgentPort, AppProtocol, Orders};
use tp_protocol::engage::dial::Dial;
use tp_protocol::engage::{Engagement, EngagementId, Kind, WhenAway, filter::Filter};
use tp_protocol::error_class::ErrorClass;
use tp_protocol::open::{OpenRefused, Transport};
use tp_tunnel::error::{FlowError, OfferError};
use tp_tunnel::flow::{FlowReceiver, FlowSender};

use crate::config::OwnPort;
use crate::engine::AppProtocol as AppProtocolOfEngine;
use crate::stage::{Manager, Stage, free_port};

/// Longest wait for what needs no more than a few wake-ups, or one probe of a handler that was away.
const SOON: Duration = Duration::from_secs(10);

fn port(number: u16, transport: Transport, apps: &[SocketAddr]) -> AgentPort {
    AgentPort {
        port: number.into(),
        transport: match transport {
            Transport::Tcp => 1,
            Transport::Udp => 2,
        },
        protocol: AppProtocol::Unknown.into(),
        apps: apps.iter().map(ToString::to_string).collect(),
    }
}

fn tcp(number: u16, apps: &[SocketAddr]) -> AgentPort {
    port(number, Transport::Tcp, apps)
}

fn intercept(port: u16, transport: Transport) -> Engagement {
    let name = if transport == Transport::Tcp { "tcp" } else { "udp" };
    Engagement {
        id: EngagementId::new(format!("tp-web-ann#{port}/{name}")).unwrap(),
        kind: Kind::Intercept,
        port,
        transport,
        filter: Filter::default(),
        when_away: WhenAway::Cluster,
        wait: Duration::ZERO,
        plaintext: false,
    }
}

fn orders(number: u64, ports: &[AgentPort], engagements: &[Engagement]) -> Orders {
    let engagements = engagements.iter().map(Into::into).collect();
    Orders { number, ports: ports.to_vec(), engagements, ..Orders::default() }
}

/// Orders without a problem.
async fn order(manager: &mut Manager, number: u64, ports: &[AgentPort], engagements: &[Engagement]) {
    let state = manager.order(orders(number, ports, engagements)).await;
    assert_eq!(state.problem, "");
    assert_eq!(state.reports.len(), engagements.len());
}

/// A pod that reads to the end, and then says who it is and what came.
async fn pod(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut said = Vec::new();
                if socket.read_to_end(&mut said).await.is_ok() {
                    let _ = socket.write_all(&[name.as_bytes(), b" ", &said].concat()).await;
                }
            });
        }
    });
    address
}

/// An address where nothing listens.
async fn nowhere() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, free_port().await).into()
}

async fn caller(port: u16) -> TcpStream {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap()
}

/// Sends bytes on a connection of their own, ends that direction, and returns all that comes back.
async fn say(port: u16, said: &[u8]) -> io::Result<String> {
    let mut caller = caller(port).await;
    let (mut reader, mut writer) = caller.split();
    let mut answer = String::new();
    let (sent, read) = tokio::join!(
        async {
            writer.write_all(said).await?;
            writer.shutdown().await
        },
        reader.read_to_string(&mut answer),
    );
    sent.and(read).map(|_| answer)
}

/// All that the caller says.
async fn heard(receiver: &mut FlowReceiver) -> Result<Vec<u8>, FlowError> {
    let mut all = Vec::new();
    while let Some(data) = receiver.data().await {
        let data = data?;
        receiver.release(data.len());
        all.extend_from_slice(&data);
    }
    Ok(all)
}

/// Answers as a pod does.
async fn handle((mut sender, mut receiver): (FlowSender, FlowReceiver), name: &str) {
    let said = heard(&mut receiver).await.unwrap();
    sender.send_all([name.as_bytes(), b" ", &said].concat().into()).await.unwrap();
    sender.finish().unwrap();
}

/// Says something that the handler answers.
async fn say_to_handler(manager: &mut Manager, port: u16, said: &[u8]) -> String {
    let handler = async {
        let (_, _, responder) = manager.reached().await;
        handle(responder.accept().unwrap().split(), "ann").await;
    };
    tokio::join!(say(port, said), handler).0.unwrap()
}

/// A caller's connection, and its handler's end of it.
async fn pair(manager: &mut Manager, port: u16) -> (TcpStream, (FlowSender, FlowReceiver)) {
    let mut caller = caller(port).await;
    let (_, _, responder) = manager.reached().await;
    let (mut sender, receiver) = responder.accept().unwrap().split();
    // The agent relays by then.
    sender.send_all(Bytes::from_static(b"!")).await.unwrap();
    assert_eq!(caller.read_u8().await.unwrap(), b'!');
    (caller, (sender, receiver))
}

async fn probe(stage: &Stage) -> String {
    let mut probe = caller(stage.config.health_port).await;
    probe.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    probe.read_to_string(&mut answer).await.unwrap();
    answer[9..12].to_owned()
}

#[tokio::test]
async fn the_app_answers_until_something_is_engaged_and_after_that_again() {
    let stage = Stage::new().await;
    stage
        .play(async {
            let (number, app) = (free_port().await, pod("app").await);
            let ports = [tcp(number, &[app])];
            let mut manager = stage.manager().await;
            order(&mut manager, 1, &ports, &[]).await;
            assert_eq!(say(number, b"1").await.unwrap(), "app 1");
            order(&mut manager, 2, &ports, &[intercept(number, Transport::Tcp)]).await;
            assert_eq!(say_to_handler(&mut manager, number, b"2").await, "ann 2");
            order(&mut manager, 3, &ports, &[]).await;
            assert_eq!(say(number, b"3").await.unwrap(), "app 3");
        })
        .await;
}

#[tokio::test]
async fn in_the_apps_own_pod_it_serves_before_the_manager_is_there_and_orders_name_the_apps_port() {
    let mut stage = Stage::new().await;
    let (listen, app) = (free_port().await, pod("app").await);
    let own = OwnPort { listen, app, transport: Transport::Tcp, protocol: AppProtocolOfEngine::Unknown };
    stage.config.own_ports = vec![own];
    stage
        .play(async {
            let not_let_in = stage.accept().await;
            assert_eq!(probe(&stage).await, "200");
            assert_eq!(say(listen, b"1").await.unwrap(), "app 1");
            drop(not_let_in);
            let mut manager = stage.manager().await;
            order(&mut manager, 1, &[], &[intercept(app.port(), Transport::Tcp)]).await;
            let handler = async {
                let (_, arrival, responder) = manager.reached().await;
                assert_eq!(arrival.port, app.port());
                handle(responder.accept().unwrap().split(), "ann").await;
            };
            assert_eq!(tokio::join!(say(listen, b"2"), handler).0.unwrap(), "ann 2");
            order(&mut manager, 2, &[], &[]).await;
            assert_eq!(say(listen, b"3").await.unwrap(), "app 3");
        })
        .await;
}

#[tokio::test]
async fn the_handler_is_told_who_calls_which_port_of_which_engagement() {
    let stage = Stage::new().await;
    stage
        .play(async {
            let number = free_port().await;
            let mut manager = stage.manager().await;
            order(&mut manager, 1, &[tcp(number, &[])], &[intercept(number, Transport::Tcp)]).await;
            let caller = caller(number).await;
            let (id, arrival, _responder) = manager.reached().await;
            assert_eq!(id.as_str(), "tp-web-ann");
            assert_eq!((arrival.port, arrival.transport), (number, Transport::Tcp));
            assert_eq!(arrival.source, caller.local_addr().unwrap());
        })
        .await;
}

#[tokio::test]
async fn a_handler_that_refuses_leaves_the_app_to_answer() {
    let stage = Stage::new().await;
    stage
        .play(async {
            let (number, app) = (free_port().await, pod("app").await);
            let mut manager = stage.manager().await;
            order(&mut manager, 1, &[tcp(number, &[app])], &[intercept(number, Transport::Tcp)]).await;
            let refuse = async {
                let (_, _, responder) = manager.reached().await;
                responder.refuse(&OpenRefused::new(ErrorClass::Refused, "nobody listens"));
            };
            assert_eq!(tokio::join!(say(number, b"1"), refuse).0.unwrap(), "app 1");
            // The manager hears of it without asking.
            let report = manager.state().await.reports.remove(0);
            assert_eq!((report.is_away, report.taken, report.fallen_back), (true, 0, 1));
        })
        .await;
}

#[tokio::test]
async fn traffic_goes_on_without_the_manager_and_to_the_handler_once_it_is_back() {
    let stage = Stage::new().await;
    stage
        .play(async {
            let (number, app) = (free_port().await, pod("app").await);
            let ports = [tcp(number, &[app])];
            let mut manager = stage.manager().await;
            order(&mut manager, 1, &ports, &[]).await;
            let mut of_app = caller(number).await;
            of_app.write_all(b"held ").await.unwrap();
            order(&mut manager, 2, &ports, &[intercept(number, Transport::Tcp)]).await;
            let (mut of_ann, _flow) = pair(&mut manager, number).await;
            manager.vanish();
            assert_eq!(of_ann.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
            assert_eq!(say(number, b"1").await.unwrap(), "app 1");
            assert_eq!(probe(&stage).await, "200");
            of_app.write_all(b"on").await.unwrap();
            of_app.shutdown().await.unwrap();
            let mut answer = String::new();
            of_app.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "app held on");

            // It is engaged still; only the first to find the handler back has to wait for its turn to try.
            let mut manager = stage.manager().await;
            let mut said = 0;
            let reached = loop {
                tokio::select! {
                    reached = manager.reached() => break reached,
                    answer = say(number, b"2") => assert_eq!(answer.unwrap(), "app 2"),
                }
                said += 1;
                sleep(Duration::from_millis(50)).await;
            };
            assert_eq!(reached.0.as_str(), "tp-web-ann", "after {said} others");
        })
        .await;
}

#[tokio::test]
async fn pods_take_turns_a_dead_one_is_passed_over_and_the_list_changes_at_any_time() {
    let stage = Stage::new().await;
    stage
        .play(async {
            let number = free_port().await;
            let (a, b, c) = (pod("a").await, pod("b").await, pod("c").await);
            let mut manager = stage.manager().await;
            order(&mut manager, 1, &[tcp(number, &[a, nowhere().await, b])], &[]).await;
            let mut answers = Vec::new();
            for _ in 0..6 {
                answers.push(say(number, b"").await.unwrap());
            }
            assert_eq!(answers, ["a ", "b ", "b ", "a ", "b ", "b "]);
            order(&mut manager, 2, &[tcp(number, &[c])], &[]).await;
            assert_eq!(say(number, b"").await.unwrap(), "c ");
            order(&mut manager, 3, &[tcp(number, &[])], &[]).await;
            assert_eq!(say(number, b"").await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        })
        .await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_and_tried_again() {
    let stage = Stage::new().await;
    stage
        .play(async {
            let other = TcpListener::bind("0.0.0.0:0").await.unwrap();
            let number = other.local_addr().unwrap().port();
            let ports = [tcp(number, &[pod("app").await])];
            let mut manager = stage.manager().await;
            let state = manager.order(orders(1, &ports, &[intercept(number, Transport::Tcp)])).await;
            assert!(state.problem.contains(&format!(":{number}: ")), "{}", state.problem);
            assert!(state.problem.contains("(os error 98)"), "{}", state.problem);
            assert_eq!(probe(&stage).await, "503");
            drop(other);
            order(&mut manager, 2, &ports, &[]).await;
            assert_eq!(say(number, b"1").await.unwrap(), "app 1");
            assert_eq!(probe(&stage).await, "200");
        })
        .await;
}

#[tokio::test]
async fn what_is_wrong_with_orders_is_named_and_the_rest_is_carried_out() {
    let stage = Stage::new().await;
    stage
        .play(async {
            let (number, app) = (free_port().await, pod("app").await);
            let mut manager = stage.manager().await;
            let state = manager.order(orders(1, &[], &[intercept(number, Transport::Tcp)])).await;
            assert_eq!(state.problem, "engagements without a port to listen on");
            assert_eq!(probe(&stage).await, "503");

            let bad_port = tcp(0, &[]);
            let mut bad_app = tcp(number, &[app]);
            bad_app.apps.insert(0, "web".into());
            let engagements = [intercept(1, Transport::Tcp), intercept(number, Transport::Tcp)];
            let mut wanted = orders(2, &[bad_port, bad_app], &engagements);
            let mut unknown = wanted.engagements[1].clone();
            (unknown.id, unknown.kind) = ("tp-web-bob#1/tcp".into(), 9);
            wanted.engagements.insert(0, unknown);
            let state = manager.order(wanted).await;
            assert_eq!(
                state.problem,
                format!(
                    "no port has number 0 and protocol 1; port {number}/tcp: `web` is no address with a port; \
                     engagement `tp-web-bob#1/tcp`: peer sent an engagement whose kind is 9, which this version does not \
                     know; engagement `tp-web-ann#1/tcp`: the agent does not listen on its port"
                )
            );
            assert_eq!(state.reports.len(), 1);
            assert_eq!(say_to_handler(&mut manager, number, b"1").await, "ann 1");
            let state = manager.order(orders(3, &[tcp(number, &[app]), tcp(1, &[app])], &[])).await;
            assert_eq!(state.problem, "port 1/tcp was not among the first: ports do not change");
            assert_eq!(say(number, b"2").await.unwrap(), "app 2");
        })
        .await;
}

#[tokio::test]
async fn a_megabyte_passes_each_way_and_half_close_is_kept() {
    let stage = Stage::new().await;
    stage
        .play(async {
            let number = free_port().await;
            let mut manager = stage.manager().await;
            order(&mut manager, 1, &[tcp(number, &[])], &[intercept(number, Transport::Tcp)]).await;
            let body: String = (0..1 << 17).map(|n| format!("{n:08x}")).collect();
            let answer = say_to_handler(&mut manager, number, body.as_bytes()).await;
            assert!(answer.strip_prefix("ann ") == Some(&body), "{} bytes came back", answer.len());

            // The other way round: the handler ends first, and hears the caller still.
            let (mut caller, flow) = pair(&mut manager, number).await;
            let (mut sender, mut receiver) = flow;
            sender.send_all(Bytes::from_static(b"bye")).await.unwrap();
            sender.finish().unwrap();
            let mut answer = String::new();
            caller.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "bye");
            caller.write_all(b"and on").await.unwrap();
            caller.shutdown().await.unwrap();
            assert_eq!(heard(&mut receiver).await.unwrap(), b"and on");
        })
        .await;
}

#[tokio::test]
async fn a_handler_that_does_not_read_holds_its_caller_up() {
    let stage = Stage::new().await;
    stage
        .play(async {
            let number = free_port().await;
            let mut manager = stage.manager().await;
            order(&mut manager, 1, &[tcp(number, &[])], &[intercept(number, Transport::Tcp)]).await;
            let (mut caller, flow) = pair(&mut manager, number).await;
            let mut sent = 0;
            let piece = [7; 64 << 10];
            while let Ok(written) = timeout(Duration::from_millis(500), caller.write(&piece)).await {
                sent += written.unwrap();
                assert!(sent < 32 << 20, "more than any buffer between them");
            }
            let (_sender, mut receiver) = flow;
            let (heard, shut) = tokio::join!(heard(&mut receiver), caller.shutdown());
            shut.unwrap();
            assert_eq!(heard.unwrap().len(), sent);
        })
        .await;
}

#[tokio::test]
async fn a_reset_passes_in_both_directions() {
    let stage = Stage::new().await;
    stage
        .play(async {
            let number = free_port().await;
            let mut manager = stage.manager().await;
            order(&mut manager, 1, &[tcp(number, &[])], &[intercept(number, Transport::Tcp)]).await;

            let (mut caller, flow) = pair(&mut manager, number).await;
            let (mut sender, _receiver) = flow;
            sender.reset(&OpenRefused::new(ErrorClass::Reset, "the handler crashed")).unwrap();
            assert_eq!(caller.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);

            let (mut caller, flow) = pair(&mut manager, number).await;
            drop(flow);
            assert_eq!(caller.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);

            let (caller, flow) = pair(&mut manager, number).await;
            caller.set_zero_linger().unwrap();
            drop(caller);
            let (_sender, mut receiver) = flow;
            assert!(matches!(receiver.data().await, Some(Err(FlowError::Cancelled(_)))));
        })
        .await;
}

#[tokio::test]
async fn requests_go_where_their_headers_say_and_the_handlers_connection_ends_in_order() {
    let stage = Stage::new().await;
    stage
        .play(async {
            let (number, app) = (free_port().await, pod("app").await);
            let filter = Filter::new(vec!["x-user=ann".parse().unwrap()], vec![], vec![]).unwrap();
            let engagement = Engagement { filter, ..intercept(number, Transport::Tcp) };
            let mut manager = stage.manager().await;
            order(&mut manager, 1, &[tcp(number, &[app])], &[engagement]).await;
            let handler = async {
                let (_, _, responder) = manager.reached().await;
                let (mut sender, mut receiver) = responder.accept().unwrap().split();
                let head = receiver.data().await.unwrap().unwrap();
                receiver.release(head.len());
                assert!(head.starts_with(b"GET /cart HTTP/1.1\r\n"), "{head:?}");
                sender.send_all(Bytes::from_static(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nann")).await.unwrap();
                // The caller is gone then. A server that is not done with its own direction sees an end, not a reset.
                assert_eq!(heard(&mut receiver).await.unwrap(), b"");
                sender.finish().unwrap();
            };
            let request = b"GET /cart HTTP/1.1\r\nhost: web\r\nx-user: ann\r\nconnection: close\r\n\r\n";
            let mut caller = caller(number).await;
            caller.write_all(request).await.unwrap();
            let mut answer = String::new();
            let (read, ()) = tokio::join!(caller.read_to_string(&mut answer), handler);
            read.unwrap();
            assert!(answer.ends_with("\r\n\r\nann"), "{answer}");
        })
        .await;
}

#[tokio::test]
async fn datagrams_pass_whole_in_both_directions() {
    let stage = Stage::new().await;
    stage
        .play(async {
            let app = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let number = UdpSocket::bind("0.0.0.0:0").await.unwrap().local_addr().unwrap().port();
            let ports = [port(number, Transport::Udp, &[app.local_addr().unwrap()])];
            let caller = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            caller.connect((Ipv4Addr::LOCALHOST, number)).await.unwrap();
            let mut inbox = vec![0; 65_535];

            let mut manager = stage.manager().await;
            order(&mut manager, 1, &ports, &[]).await;
            caller.send(b"to the app").await.unwrap();
            let (len, agent) = app.recv_from(&mut inbox).await.unwrap();
            assert_eq!(&inbox[..len], b"to the app");
            app.send_to(b"from the app", agent).await.unwrap();
            let len = caller.recv(&mut inbox).await.unwrap();
            assert_eq!(&inbox[..len], b"from the app");

            order(&mut manager, 2, &ports, &[intercept(number, Transport::Udp)]).await;
            // Larger than a stream's window takes beside another one.
            let sent = [vec![1; 10], vec![2; 60_000], vec![3; 60_000], vec![]];
            for datagram in &sent {
                caller.send(datagram).await.unwrap();
            }
            let (id, arrival, responder) = manager.reached().await;
            assert_eq!((id.as_str(), arrival.transport), ("tp-web-ann", Transport::Udp));
            assert_eq!(arrival.source, caller.local_addr().unwrap());
            let (mut sender, mut receiver) = responder.accept().unwrap().split();
            let mut decoder = CapsuleDecoder::default();
            for datagram in &sent {
                let came = loop {
                    if let Some(came) = decoder.poll_datagram().unwrap() {
                        break came;
                    }
                    let data = receiver.data().await.unwrap().unwrap();
                    receiver.release(data.len());
                    decoder.handle_input(&data);
                };
                assert!(came == *datagram, "{} bytes came, {} were sent", came.len(), datagram.len());
            }
            let mut capsules = BytesMut::new();
            datagram::encode(&[4; 60_000], &mut capsules);
            datagram::encode(b"from ann", &mut capsules);
            sender.send_all(capsules.freeze()).await.unwrap();
            assert_eq!(caller.recv(&mut inbox).await.unwrap(), 60_000);
            let len = caller.recv(&mut inbox).await.unwrap();
            assert_eq!(&inbox[..len], b"from ann");

            // An association that its handler ends is no sign that the handler is away: the next one goes there as well.
            sender.finish().unwrap();
            assert!(timeout(SOON, heard(&mut receiver)).await.unwrap().is_err());
            caller.send(b"again").await.unwrap();
            timeout(SOON, manager.reached()).await.unwrap();
        })
        .await;
}

/// Orders of which the agent says nothing but that they are carried out.
async fn order_dials(manager: &mut Manager, number: u64, dials: bool) {
    let state = manager.order(Orders { number, dials, ..Orders::default() }).await;
    assert_eq!(state.problem, "");
}

fn dial(dst: SocketAddr, transport: Transport) -> Dial {
    Dial { dst, transport, deadline: SOON }
}

#[tokio::test]
async fn it_dials_for_clients_when_that_is_ordered() {
    let stage = Stage::new().await;
    stage
        .play(async {
            let mut manager = stage.manager().await;
            order_dials(&mut manager, 1, true).await;
            let app = pod("web").await;
            let flow = manager.dialler().await.dial(&dial(app, Transport::Tcp)).await.unwrap();
            let (mut sender, mut receiver) = flow.split();
            sender.send_all(Bytes::from_static(b"hello")).await.unwrap();
            sender.finish().unwrap();
            assert_eq!(heard(&mut receiver).await.unwrap(), b"web hello");

            match manager.dialler().await.dial(&dial(nowhere().await, Transport::Tcp)).await {
                Err(OfferError::Refused(why)) => assert_eq!(why.class, ErrorClass::Refused),
                other => panic!("{other:?}"),
            }

            let app = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let there = dial(app.local_addr().unwrap(), Transport::Udp);
            let (mut sender, mut receiver) = manager.dialler().await.dial(&there).await.unwrap().split();
            let mut capsule = BytesMut::new();
            datagram::encode(b"to the app", &mut capsule);
            sender.send_all(capsule.freeze()).await.unwrap();
            let mut inbox = vec![0; 64];
            let (len, agent) = app.recv_from(&mut inbox).await.unwrap();
            assert_eq!(&inbox[..len], b"to the app");
            app.send_to(b"from the app", agent).await.unwrap();
            let mut decoder = CapsuleDecoder::default();
            decoder.handle_input(&receiver.data().await.unwrap().unwrap());
            assert_eq!(decoder.poll_datagram().unwrap().unwrap(), &b"from the app"[..]);
        })
        .await;
}

#[tokio::test]
async fn it_stops_waiting_for_what_it_is_to_dial_and_what_it_has_dialled_goes_on() {
    let stage = Stage::new().await;
    stage
        .play(async {
            let mut manager = stage.manager().await;
            order_dials(&mut manager, 1, true).await;
            let app = pod("web").await;
            let flow = manager.dialler().await.dial(&dial(app, Transport::Tcp)).await.unwrap();
            let mut waiting = manager.dialler().await;
            order_dials(&mut manager, 2, false).await;
            timeout(SOON, waiting.cancelled()).await.unwrap();
            let (mut sender, mut receiver) = flow.split();
            sender.finish().unwrap();
            assert_eq!(heard(&mut receiver).await.unwrap(), b"web ");
        })
        .await;
}

#[tokio::test]
async fn told_to_stop_the_agent_lets_connections_end_and_says_goodbye_then() {
    let stage = Stage::new().await;
    let test = async {
        let number = free_port().await;
        let mut manager = stage.manager().await;
        assert_eq!(probe(&stage).await, "503");
        order(&mut manager, 1, &[tcp(number, &[])], &[intercept(number, Transport::Tcp)]).await;
        assert_eq!(probe(&stage).await, "200");
        let (mut caller, flow) = pair(&mut manager, number).await;
        stage.stop.cancel();
        // The port is closed, and what is under way goes on.
        while TcpStream::connect((Ipv4Addr::LOCALHOST, number)).await.is_ok() {
            tokio::task::yield_now().await;
        }
        assert_eq!(probe(&stage).await, "503");
        caller.write_all(b"late").await.unwrap();
        caller.shutdown().await.unwrap();
        handle(flow, "ann").await;
        let mut answer = String::new();
        caller.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "ann late");
        loop {
            match manager.message().await {
                To::AgentState(_) => {}
                other => return other,
            }
        }
    };
    let ((), last) = timeout(SOON, async { tokio::join!(stage.agent(), test) }).await.unwrap();
    assert!(matches!(last, To::Goodbye(_)), "{last:?}");
}

#[tokio::test]
async fn a_manager_that_says_goodbye_carries_what_is_under_way_to_its_end() {
    let stage = Stage::new().await;
    stage
        .play(async {
            let number = free_port().await;
            let (ports, engagements) = ([tcp(number, &[])], [intercept(number, Transport::Tcp)]);
            let mut manager = stage.manager().await;
            order(&mut manager, 1, &ports, &engagements).await;
            let (mut caller, flow) = pair(&mut manager, number).await;
            manager.say(From::Goodbye(Goodbye { reason: "rollout".into() })).await;
            // The agent is with the next one by then.
            let mut next = stage.manager().await;
            order(&mut next, 1, &ports, &engagements).await;
            caller.write_all(b"late").await.unwrap();
            caller.shutdown().await.unwrap();
            handle(flow, "ann").await;
            let mut answer = String::new();
            caller.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "ann late");
            assert_eq!(say_to_handler(&mut next, number, b"1").await, "ann 1");
        })
        .await;
}
