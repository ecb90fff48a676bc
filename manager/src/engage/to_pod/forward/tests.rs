use std::sync::Arc;

use tokio::io::DuplexStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::protocol::Role;
use tp_protocol::hello::{ClientHello, Welcome};
use tp_protocol::open::{Open, Transport};
use tp_tunnel::client;
use tp_tunnel::server::{self, Incoming};

use super::*;

const PORT: u16 = 6379;

/// Nothing here takes longer, unless it is broken.
const PATIENCE: Duration = Duration::from_secs(30);

type Kubelet = WebSocketStream<DuplexStream>;

/// A relay under way: the client's end of its flow, the kubelet's end of its WebSocket, and what becomes of it.
struct Stage {
    flow: Flow,
    kubelet: Kubelet,
    relay: JoinHandle<Relayed>,
}

impl Stage {
    async fn new() -> Self {
        let (near, far) = tokio::io::duplex(64 << 10);
        let (flow_tx, flow_rx) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let pending = server::accept(far).await.unwrap();
            let mut lane = pending.welcome(Welcome { version: 1, ..Welcome::default() }).await.unwrap();
            let mut flow_tx = Some(flow_tx);
            while let Some(Ok(Incoming::Open(_, responder))) = lane.next().await {
                let _ = flow_tx.take().unwrap().send(responder.accept().unwrap());
            }
        });
        let connected = client::connect(near, &ClientHello::new("0.1.0", "test")).await.unwrap();
        tokio::spawn(connected.driver);
        let open = Open::new(Transport::Tcp, ([127, 0, 0, 1], PORT).into());
        let flow = connected.lane.open(&open).await.unwrap();
        let theirs = flow_rx.await.unwrap();

        let (near, far) = tokio::io::duplex(64 << 10);
        let socket = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
        let kubelet = WebSocketStream::from_raw_socket(far, Role::Server, None).await;
        let permits = Arc::new(Semaphore::new(2));
        let permits = [(); 2].map(|()| Arc::clone(&permits).try_acquire_owned().unwrap());
        let relay = tokio::spawn(PodForward::new(socket, PORT, permits).relay(theirs));
        let mut stage = Self { flow, kubelet, relay };
        for channel in [DATA, ERROR] {
            stage.say(&[&[channel][..], &PORT.to_le_bytes()].concat()).await;
        }
        stage
    }

    async fn say(&mut self, message: &[u8]) {
        self.kubelet.send(Message::binary(message.to_vec())).await.unwrap();
    }
}

/// What the pod hears next.
async fn next(kubelet: &mut Kubelet) -> Message {
    timeout(PATIENCE, kubelet.next()).await.unwrap().unwrap().unwrap()
}

/// All that the client hears, and how it ends.
async fn heard(receiver: &mut FlowReceiver) -> (Vec<u8>, Option<FlowError>) {
    let mut all = Vec::new();
    loop {
        match timeout(PATIENCE, receiver.data()).await.unwrap() {
            None => return (all, None),
            Some(Err(error)) => return (all, Some(error)),
            Some(Ok(data)) => {
                receiver.release(data.len());
                all.extend_from_slice(&data);
            }
        }
    }
}

#[tokio::test]
async fn bytes_pass_both_ways_until_the_pod_closes() {
    let mut stage = Stage::new().await;
    let (mut sender, mut receiver) = stage.flow.split();
    sender.send_all("PING".into()).await.unwrap();
    assert_eq!(next(&mut stage.kubelet).await, Message::binary(&b"\0PING"[..]));
    for message in [&b"\0PO"[..], b"\0", b"\0NG"] {
        stage.kubelet.send(Message::binary(message)).await.unwrap();
    }
    stage.kubelet.close(None).await.unwrap();
    let (answer, error) = heard(&mut receiver).await;
    assert_eq!((&answer[..], error.is_none()), (&b"PONG"[..], true));
    sender.finish().unwrap();
    let relayed = stage.relay.await.unwrap();
    assert_eq!((relayed.to_socket_bytes, relayed.to_flow_bytes, relayed.error), (4, 4, None));
}

#[tokio::test]
async fn a_port_that_nobody_listens_at_is_a_reset_with_the_kubelets_words() {
    let mut stage = Stage::new().await;
    stage.say(b"\x01error forwarding port 6379: connect: connection refused\n").await;
    let (_sender, mut receiver) = stage.flow.split();
    let (_, error) = heard(&mut receiver).await;
    let Some(FlowError::Reset(why)) = error else { panic!("{error:?}") };
    assert_eq!(why.class, ErrorClass::Refused);
    assert!(why.message.ends_with("connection refused"), "{why}");
    assert_eq!(stage.relay.await.unwrap().error, Some(why));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_done_gets_the_answer_before_the_pod_sees_the_end() {
    let mut stage = Stage::new().await;
    let (mut sender, mut receiver) = stage.flow.split();
    sender.send_all("GET".into()).await.unwrap();
    sender.finish().unwrap();
    assert_eq!(next(&mut stage.kubelet).await, Message::binary(&b"\0GET"[..]));
    for piece in [b"\0a", b"\0b", b"\0c"] {
        tokio::time::sleep(LINGER - Duration::from_secs(1)).await;
        stage.kubelet.send(Message::binary(&piece[..])).await.unwrap();
    }
    assert!(matches!(next(&mut stage.kubelet).await, Message::Close(_)), "nothing more has come for a while");
    let (answer, error) = heard(&mut receiver).await;
    assert_eq!((&answer[..], error.is_none()), (&b"abc"[..], true));
}

#[tokio::test]
async fn a_client_that_resets_takes_the_port_forward_with_it() {
    let mut stage = Stage::new().await;
    drop(stage.flow);
    assert!(matches!(next(&mut stage.kubelet).await, Message::Close(_)));
    assert!(stage.relay.await.unwrap().error.is_some());
}

#[tokio::test]
async fn a_port_forward_that_is_lost_is_a_reset() {
    let stage = Stage::new().await;
    drop(stage.kubelet);
    let (_sender, mut receiver) = stage.flow.split();
    let (_, error) = heard(&mut receiver).await;
    assert!(matches!(error, Some(FlowError::Reset(_))), "{error:?}");
}

#[test]
fn messages_that_are_no_port_forwards_are_refused() {
    let port = PORT.to_le_bytes();
    let first = |message: &[u8]| data_of(Bytes::copy_from_slice(message), PORT, &mut [false; 2]);
    assert_eq!(first(&[&[DATA][..], &port].concat()), Ok(None));
    for message in [&b""[..], b"\x02data", b"\0ab", b"\0", b"\x01nope"] {
        assert_eq!(first(message).unwrap_err().class, ErrorClass::Failed, "{message:?}");
    }
    let mut announced = [true; 2];
    assert_eq!(data_of(Bytes::from_static(b"\0x"), PORT, &mut announced), Ok(Some(Bytes::from_static(b"x"))));
    assert_eq!(
        data_of(Bytes::from_static(b"\x01reset by peer"), PORT, &mut announced).unwrap_err().class,
        ErrorClass::Reset
    );
}
