//! What happens while a handler is away.

use std::future::ready;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::Request;
use hyper::body::Frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tp_agent::engine::AppProtocol;
use tp_agent::engine::destination::{App, Datagrams, Destination, Opening};
use tp_agent::engine::stream::BoxStream;
use tp_protocol::engage::{Engagement, WhenAway};
use tp_protocol::error_class::ErrorClass;
use tp_protocol::open::{OpenRefused, Transport};

use crate::bed::{Bed, get, intercept, nowhere, send, text};
use crate::server::{Server, Version, bytes, hash, raw};

fn of_ann(when_away: WhenAway, wait: Duration) -> Engagement {
    Engagement { when_away, wait, ..intercept("ann", &["x-user=ann"]) }
}

#[tokio::test]
async fn cluster_serves_from_the_app_until_the_handler_is_back() {
    for version in [Version::Http1, Version::Http2] {
        let app = Server::start("app", version).await;
        let handler = nowhere().await;
        let bed = Bed::new(app.address);
        bed.set(vec![(of_ann(WhenAway::Cluster, Duration::from_millis(30)), handler)]);
        for n in 1..=5 {
            let request = send("/", "ann", bytes(100_000));
            let answer = match version {
                Version::Http1 => bed.http1().await.send_request(request).await,
                Version::Http2 => bed.http2().await.send_request(request).await,
            };
            assert_eq!(text(answer.unwrap()).await, format!("app {}", hash(&bytes(100_000))));
            assert_eq!((bed.report().fallen_back, bed.report().is_away), (n, true));
        }
        let _handler = Server::on(TcpListener::bind(handler).await.unwrap(), "ann", version);
        // Tried again once in a while.
        let mut name = String::new();
        while name != "ann" {
            let request = get("/", "ann");
            name = match version {
                Version::Http1 => text(bed.http1().await.send_request(request).await.unwrap()).await,
                Version::Http2 => text(bed.http2().await.send_request(request).await.unwrap()).await,
            };
        }
        assert!(!bed.report().is_away);
    }
}

/// A handler that is away for the first attempts.
struct Late {
    attempts_left: AtomicUsize,
    handler: App,
}

impl Destination for Late {
    fn connect(&self, peer: SocketAddr) -> Opening<'_, BoxStream> {
        let is_away = self.attempts_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if is_away.is_ok() {
            return Box::pin(ready(Err(OpenRefused::new(ErrorClass::Refused, "not yet"))));
        }
        self.handler.connect(peer)
    }

    fn associate(&self, peer: SocketAddr) -> Opening<'_, Box<dyn Datagrams>> {
        self.handler.associate(peer)
    }
}

#[tokio::test]
async fn a_handler_that_comes_within_the_wait_is_waited_for() {
    let (app, handler) = (Server::start("app", Version::Http1).await, Server::start("ann", Version::Http1).await);
    let bed = Bed::new(app.address);
    let late = Late { attempts_left: AtomicUsize::new(3), handler: App::new(vec![handler.address]) };
    let engagement = of_ann(WhenAway::Cluster, Duration::from_secs(30));
    assert_eq!(bed.engagements.set(vec![(engagement, Arc::new(late))]), []);
    let answer = bed.http1().await.send_request(get("/", "ann")).await;
    assert_eq!(text(answer.unwrap()).await, "ann");
    assert_eq!((bed.report().fallen_back, bed.report().taken), (0, 1));
}

#[tokio::test]
async fn fail_looks_like_an_app_that_is_not_there() {
    let app = Server::start("app", Version::Http1).await;
    let bed = Bed::new(app.address);
    bed.set(vec![(of_ann(WhenAway::Fail, Duration::ZERO), nowhere().await)]);
    for _ in 0..3 {
        let mut stream = bed.connect().await;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nx-user: ann\r\n\r\n").await.unwrap();
        let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    assert_eq!(app.requests(), 0);
}

#[tokio::test]
async fn hold_waits_for_the_handler_or_the_end_of_the_engagement() {
    let app = Server::start("app", Version::Http1).await;
    let handler = nowhere().await;
    let bed = Bed::new(app.address);
    let engagement = of_ann(WhenAway::Hold, Duration::ZERO);
    bed.set(vec![(engagement, handler)]);
    let (mut first, mut second) = (bed.http1().await, bed.http1().await);
    let held = tokio::spawn(async move { text(first.send_request(get("/", "ann")).await.unwrap()).await });
    while !bed.report().is_away {
        tokio::task::yield_now().await;
    }
    let _handler = Server::on(TcpListener::bind(handler).await.unwrap(), "ann", Version::Http1);
    assert_eq!(held.await.unwrap(), "ann");

    bed.set(vec![(of_ann(WhenAway::Hold, Duration::from_millis(1)), nowhere().await)]);
    let held = tokio::spawn(async move { text(second.send_request(get("/", "ann")).await.unwrap()).await });
    while !bed.report().is_away {
        tokio::task::yield_now().await;
    }
    bed.set(vec![]);
    assert_eq!(held.await.unwrap(), "app");
}

#[tokio::test]
async fn a_body_that_was_sent_in_part_cannot_fall_back() {
    let app = Server::start("app", Version::Http1).await;
    let handler = raw(|mut socket: TcpStream| async move {
        let mut head = [0; 4096];
        assert_ne!(socket.read(&mut head).await.unwrap(), 0);
        socket.set_zero_linger().unwrap();
    })
    .await;
    let bed = Bed::new(app.address);
    bed.set(vec![(of_ann(WhenAway::Cluster, Duration::ZERO), handler)]);
    let mut http = bed.http1().await;
    let (parts_tx, parts) = mpsc::channel::<Bytes>(1);
    let stream =
        futures_util::stream::unfold(parts, |mut parts| async move { parts.recv().await.map(|part| (part, parts)) });
    let body = BodyExt::boxed_unsync(StreamBody::new(stream.map(|part| Ok::<_, io::Error>(Frame::data(part)))));
    let request = Request::post("/").header("host", "web").header("x-user", "ann").body(body).unwrap();
    let answer = tokio::spawn(async move { http.send_request(request).await.map(|answer| answer.status()) });
    parts_tx.send(Bytes::from_static(b"first part")).await.unwrap();
    assert!(answer.await.unwrap().is_err());
    assert_eq!(app.requests(), 0);
}

#[tokio::test]
async fn a_connection_that_is_no_http_falls_back_as_well() {
    let app = raw(|mut socket: TcpStream| async move { socket.write_all(b"app").await.unwrap() }).await;
    let bed = Bed::with(app, Transport::Tcp, AppProtocol::Opaque);
    let engagement = Engagement { when_away: WhenAway::Cluster, ..intercept("ann", &[]) };
    bed.set(vec![(engagement, nowhere().await)]);
    assert_eq!(bed.say(b"").await, "app");
    assert_eq!(bed.report().fallen_back, 1);
}
