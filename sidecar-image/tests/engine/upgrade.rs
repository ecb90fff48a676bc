//! Connections that become something else.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::Empty;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::bed::{Bed, intercept};
use crate::server::raw;

/// Accepts an upgrade or CONNECT, and then sends everything back behind its name.
async fn echo(name: &'static str) -> SocketAddr {
    raw(move |mut socket: TcpStream| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let answer = if head.starts_with("connect ") {
            "HTTP/1.1 200 OK\r\n\r\n"
        } else {
            assert!(head.contains("upgrade: websocket\r\n") && head.contains("connection: upgrade\r\n"), "{head}");
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        };
        // The first words come along with the answer.
        socket.write_all([answer, name].concat().as_bytes()).await.unwrap();
        let (mut reader, mut writer) = socket.split();
        // Ends with an error when the test is about that.
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    })
    .await
}

async fn upgrade(bed: &Bed, user: &str) -> (StatusCode, TokioIo<hyper::upgrade::Upgraded>) {
    let mut http = bed.http1::<Empty<_>>().await;
    let request = Request::builder().uri("/socket").header("host", "web").header("x-user", user);
    let request = request.header("connection", "Upgrade").header("upgrade", "websocket").body(Empty::new()).unwrap();
    let mut response = http.send_request(request).await.unwrap();
    let upgraded = hyper::upgrade::on(&mut response).await.unwrap();
    (response.status(), TokioIo::new(upgraded))
}

async fn said(stream: &mut (impl AsyncReadExt + Unpin), expected: &[u8]) {
    let mut text = vec![0; expected.len()];
    stream.read_exact(&mut text).await.unwrap();
    assert_eq!(text, expected);
}

#[tokio::test]
async fn a_websocket_passes_to_app_and_handler() {
    let bed = Bed::new(echo("app").await);
    bed.set(vec![(intercept("ann", &["x-user=ann"]), echo("ann").await)]);
    for (user, name) in [("ann", "ann"), ("bob", "app")] {
        let (status, mut socket) = upgrade(&bed, user).await;
        assert_eq!(status, StatusCode::SWITCHING_PROTOCOLS);
        said(&mut socket, name.as_bytes()).await;
        for _ in 0..100 {
            socket.write_all(b"\x81\x85ping").await.unwrap();
            said(&mut socket, b"\x81\x85ping").await;
        }
        socket.shutdown().await.unwrap();
        assert_eq!(socket.read(&mut [0]).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_websocket_ends_with_the_engagement_that_has_taken_it() {
    let bed = Bed::new(echo("app").await);
    bed.set(vec![(intercept("ann", &["x-user=ann"]), echo("ann").await)]);
    let (_, mut of_ann) = upgrade(&bed, "ann").await;
    let (_, mut of_app) = upgrade(&bed, "bob").await;
    said(&mut of_ann, b"ann").await;
    said(&mut of_app, b"app").await;
    bed.set(vec![]);
    assert_eq!(of_ann.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    of_app.write_all(b"still here").await.unwrap();
    said(&mut of_app, b"still here").await;
}

#[tokio::test(start_paused = true)]
async fn a_websocket_lasts_as_long_as_it_likes() {
    let bed = Bed::new(echo("app").await);
    bed.set(vec![(intercept("ann", &["x-user=ann"]), echo("ann").await)]);
    for (user, name) in [("ann", "ann"), ("bob", "app")] {
        let (_, mut socket) = upgrade(&bed, user).await;
        said(&mut socket, name.as_bytes()).await;
        for pause_seconds in [1, 59, 61, 3600] {
            socket.write_all(b"ping").await.unwrap();
            said(&mut socket, b"ping").await;
            tokio::time::advance(Duration::from_secs(pause_seconds)).await;
        }
        socket.write_all(b"ping").await.unwrap();
        said(&mut socket, b"ping").await;
    }
}

#[tokio::test]
async fn connect_becomes_a_tunnel() {
    let bed = Bed::new(echo("app").await);
    bed.set(vec![(intercept("ann", &["x-user=ann"]), echo("ann").await)]);
    for (user, name) in [("ann", "ann"), ("bob", "app")] {
        let mut http = bed.http1::<Empty<_>>().await;
        let request = Request::builder().method(Method::CONNECT).uri("db.shop:5432").header("x-user", user);
        let mut response = http.send_request(request.body(Empty::new()).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let mut tunnel = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
        said(&mut tunnel, name.as_bytes()).await;
        tunnel.write_all(b"hello").await.unwrap();
        said(&mut tunnel, b"hello").await;
    }
}
