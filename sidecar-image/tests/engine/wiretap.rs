//! Wiretaps: copies that change nothing for anybody else.

use std::net::SocketAddr;

use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::bed::{Bed, get, intercept, nowhere, send, text, wiretap};
use crate::server::{Server, Version, bytes, hash, raw};

/// Accepts connections and reads nothing, for as long as it is kept.
async fn stalled() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Reads connections to their ends, and hands over what came and whether that was an orderly end.
async fn recorder() -> (SocketAddr, mpsc::Receiver<(Vec<u8>, bool)>) {
    let (heard_tx, heard) = mpsc::channel(64);
    let address = raw(move |mut socket: TcpStream| {
        let heard_tx = heard_tx.clone();
        async move {
            let mut all = Vec::new();
            let is_whole = socket.read_to_end(&mut all).await.is_ok();
            heard_tx.send((all, is_whole)).await.unwrap();
        }
    })
    .await;
    (address, heard)
}

#[tokio::test]
async fn a_listener_gets_the_requests_that_match_and_nobody_its_answers() {
    for version in [Version::Http1, Version::Http2] {
        let app = Server::start("app", version).await;
        let (handler, listener) = (Server::start("ann", version).await, Server::start("tap", version).await);
        let bed = Bed::new(app.address);
        bed.set(vec![
            (wiretap("tap", &["x-user=~ann|bob"]), listener.address),
            (intercept("ann", &["x-user=ann"]), handler.address),
        ]);
        let requests = || ["ann", "bob", "carl"].map(|user| (user, [bytes(0), bytes(10), bytes(300_000)]));
        for (user, bodies) in requests() {
            for body in bodies {
                let expected = if user == "ann" { "ann" } else { "app" };
                let request = send("/", user, body);
                let answer = match version {
                    Version::Http1 => bed.http1().await.send_request(request).await,
                    Version::Http2 => bed.http2().await.send_request(request).await,
                };
                assert!(text(answer.unwrap()).await.starts_with(expected));
            }
        }
        while listener.requests() < 6 {
            tokio::task::yield_now().await;
        }
        assert_eq!((app.requests(), handler.requests(), listener.requests()), (6, 3, 6));
        let report = bed.report();
        assert_eq!((report.copied, report.copies_lost), (6, 0));
    }
}

#[tokio::test]
async fn a_copy_has_the_same_head_and_body() {
    let app = Server::start("app", Version::Http1).await;
    let (seen_tx, mut seen) = mpsc::channel(1);
    let listener = raw(move |mut socket: TcpStream| {
        let seen_tx = seen_tx.clone();
        async move {
            let mut request = Vec::new();
            while !request.ends_with(b"the body") {
                request.push(socket.read_u8().await.unwrap());
            }
            seen_tx.send(String::from_utf8(request).unwrap()).await.unwrap();
            socket.write_all(b"HTTP/1.1 500 Nobody Cares\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let bed = Bed::new(app.address);
    bed.set(vec![(wiretap("tap", &["x-user=ann"]), listener)]);
    let answer = bed
        .ask(b"POST /a HTTP/1.1\r\nHost: web\r\nX-User: ann\r\nContent-Length: 8\r\nConnection: close\r\n\r\nthe body")
        .await;
    assert!(answer.contains(&format!("app {}", hash(b"the body"))), "{answer}");
    assert_eq!(
        seen.recv().await.unwrap(),
        "POST /a HTTP/1.1\r\nHost: web\r\nX-User: ann\r\nContent-Length: 8\r\n\r\nthe body"
    );
}

#[tokio::test]
async fn a_listener_that_stalls_loses_its_copy_and_slows_nobody() {
    for version in [Version::Http1, Version::Http2] {
        let app = Server::start("app", version).await;
        let other = Server::start("tap", version).await;
        let (_listener, stalled) = stalled().await;
        let bed = Bed::new(app.address);
        bed.set(vec![(wiretap("stalled", &["x-user=ann"]), stalled), (wiretap("tap", &["x-user=ann"]), other.address)]);
        for _ in 0..3 {
            let request = send("/", "ann", bytes(12 << 20));
            let answer = match version {
                Version::Http1 => bed.http1().await.send_request(request).await,
                Version::Http2 => bed.http2().await.send_request(request).await,
            };
            assert_eq!(text(answer.unwrap()).await, format!("app {}", hash(&bytes(12 << 20))));
        }
        while bed.report().copies_lost < 3 {
            tokio::task::yield_now().await;
        }
        assert_eq!(bed.report().copied, 3);
    }
}

#[tokio::test]
async fn a_listener_that_is_away_costs_nothing() {
    let app = Server::start("app", Version::Http1).await;
    let bed = Bed::new(app.address);
    bed.set(vec![(wiretap("tap", &["x-user=ann"]), nowhere().await)]);
    let mut http = bed.http1().await;
    for _ in 0..5 {
        let answer = http.send_request(get("/bytes/1000", "ann")).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), bytes(1000));
    }
    while bed.report().copies_lost < 5 {
        tokio::task::yield_now().await;
    }
    assert!(bed.report().is_away);
}

#[tokio::test]
async fn a_connection_that_is_no_http_is_copied_byte_by_byte() {
    let app = raw(|mut socket: TcpStream| async move {
        let mut all = Vec::new();
        socket.read_to_end(&mut all).await.unwrap();
        socket.write_all(hash(&all).as_bytes()).await.unwrap();
    })
    .await;
    let (first, mut heard_by_first) = recorder().await;
    let (second, mut heard_by_second) = recorder().await;
    let (_listener, stalled) = stalled().await;
    let bed = Bed::new(app);
    bed.set(vec![(wiretap("stalled", &[]), stalled), (wiretap("a", &[]), first), (wiretap("b", &[]), second)]);
    let data = bytes(500_000);
    // In steps that a listener can follow, which is what a copy asks for.
    let mut caller = bed.connect().await;
    caller.write_all(&data).await.unwrap();
    caller.shutdown().await.unwrap();
    let mut answer = String::new();
    caller.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, hash(&data));
    for heard in [&mut heard_by_first, &mut heard_by_second] {
        let (copy, is_whole) = heard.recv().await.unwrap();
        assert_eq!((hash(&copy), is_whole), (hash(&data), true));
    }
}
