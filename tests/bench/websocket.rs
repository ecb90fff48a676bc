//! One bare port-forward WebSocket, with nothing on top: the ceiling of every way through the API server.

use std::thread;
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use kube::client::Connection;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{Bytes, Message};
use tp_tests::given::given;
use tp_tests::runtime::block_on;

use crate::load::{Figure, Mode};
use crate::target::{ECHO, SINK, SOURCE, Target};

/// What the report calls it.
pub(crate) const NAME: &str = "websocket";

/// Payload of one message: the largest that the kubelet's side takes in one piece.
const MESSAGE_BYTES: usize = 64 << 10;

/// Channel of the port's data (Kubernetes, subprotocol `v4.channel.k8s.io`); the first one that was asked for.
const DATA_CHANNEL: u8 = 0;

/// Bytes sent before an upload counts: until the buffers on the way are full, sending is no transfer.
const HEAD_START: Duration = Duration::from_secs(1);

/// How long a step may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Runs one load, if it is of a kind that a single stream without a client's protocol on it can carry; with the API server
/// at another address, if there is one.
pub(crate) fn run(target: &Target, mode: Mode, seconds: u32, through: Option<&str>) -> Option<Figure> {
    let length = Duration::from_secs(u64::from(seconds));
    let per_second = match mode {
        Mode::Upload => block_on(upload(target, length, through)),
        Mode::Download => block_on(download(target, length, through)),
        Mode::Requests1 => {
            let p50 = block_on(round_trips(target, length, through));
            let p50_us = Some(p50.as_secs_f64() * 1e6);
            return Some(Figure { per_second: 1.0 / p50.as_secs_f64(), p50_us, p99_us: None });
        }
        Mode::Requests8 | Mode::Requests64 | Mode::Connects8 => return None,
    };
    Some(Figure { per_second, p50_us: None, p99_us: None })
}

/// Runs one load on several of them at once; returns what they come to together, in bytes per second.
pub(crate) fn several(target: &Target, mode: Mode, seconds: u32, flows: u16) -> f64 {
    thread::scope(|scope| {
        let runs: Vec<_> = (0..flows).map(|_| scope.spawn(|| run(target, mode, seconds, None))).collect();
        let figures = runs.into_iter().filter_map(|run| run.join().expect("a thread's panic ends the program"));
        figures.map(|figure| figure.per_second).sum()
    })
}

/// How long it takes to open one, on a client that has talked to the API server before.
pub(crate) fn open_seconds(target: &Target) -> f64 {
    block_on(async {
        let client = client(None).await;
        drop(open(&client, target, ECHO).await);
        let start = Instant::now();
        let connection = open(&client, target, ECHO).await;
        let took = start.elapsed();
        drop(connection);
        took.as_secs_f64()
    })
}

async fn client(through: Option<&str>) -> Client {
    let path = &given().admin_kubeconfig;
    let kubeconfig = Kubeconfig::read_from(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let mut config = config.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    if let Some(ip) = through {
        let host = config.cluster_url.host().map(str::to_owned);
        let port = config.cluster_url.port_u16().expect("the API server's URL has a port");
        config.cluster_url = format!("https://{ip}:{port}").parse().expect("made of an address and a port");
        config.tls_server_name = host;
    }
    Client::try_from(config).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

async fn open(client: &Client, target: &Target, port: u16) -> Connection {
    let (namespace, pod) = target.pod();
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/portforward?ports={port}");
    let request = http::Request::get(path).body(Vec::new()).expect("the path is a path");
    let opened = timeout(LIMIT, client.connect(request)).await.expect("the API server answers");
    opened.unwrap_or_else(|e| panic!("port-forward to {pod}: {e}"))
}

fn message(payload: &[u8]) -> Message {
    Message::Binary([&[DATA_CHANNEL], payload].concat().into())
}

/// Returns bytes per second.
async fn upload(target: &Target, length: Duration, through: Option<&str>) -> f64 {
    let mut socket = open(&client(through).await, target, SINK).await.into_stream();
    let block = message(&vec![0x5a; MESSAGE_BYTES]);
    let start = Instant::now();
    while start.elapsed() < HEAD_START {
        timeout(LIMIT, socket.feed(block.clone())).await.expect("the sink reads").expect("the stream is open");
    }
    let (start, mut sent) = (Instant::now(), 0);
    while start.elapsed() < length {
        timeout(LIMIT, socket.feed(block.clone())).await.expect("the sink reads").expect("the stream is open");
        sent += MESSAGE_BYTES;
    }
    sent as f64 / start.elapsed().as_secs_f64()
}

/// Returns bytes per second.
async fn download(target: &Target, length: Duration, through: Option<&str>) -> f64 {
    let mut socket = open(&client(through).await, target, SOURCE).await.into_stream();
    socket.send(message(b"\n")).await.expect("the stream is open");
    let (start, mut received) = (Instant::now(), 0);
    while start.elapsed() < length {
        let next = timeout(LIMIT, socket.next()).await.expect("the source sends");
        received += data(next.expect("the stream is open").expect("the stream is sound")).len();
    }
    received as f64 / start.elapsed().as_secs_f64()
}

/// Returns the median time of 1 kB there and back.
async fn round_trips(target: &Target, length: Duration, through: Option<&str>) -> Duration {
    const LEN: usize = 1024;
    /// What comes first on either channel: the channel's number and the port's (two bytes).
    const ANNOUNCEMENTS: usize = 2;
    let mut socket = open(&client(through).await, target, ECHO).await.into_stream();
    for _ in 0..ANNOUNCEMENTS {
        timeout(LIMIT, socket.next()).await.expect("the kubelet announces its channels");
    }
    let question = message(&[0x5a; LEN]);
    let mut times = Vec::new();
    let start = Instant::now();
    while start.elapsed() < length {
        let sent = Instant::now();
        socket.send(question.clone()).await.expect("the stream is open");
        let mut received = 0;
        while received < LEN {
            let next = timeout(LIMIT, socket.next()).await.expect("the echo answers");
            received += data(next.expect("the stream is open").expect("the stream is sound")).len();
        }
        times.push(sent.elapsed());
    }
    times.sort_unstable();
    times[times.len() / 2]
}

/// The payload of a message of the data channel.
fn data(message: Message) -> Bytes {
    let bytes = message.into_data();
    match bytes.first() {
        Some(&DATA_CHANNEL) => bytes.slice(1..),
        Some(_) | None => Bytes::new(),
    }
}
