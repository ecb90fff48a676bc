//! HTTP/1: every request of a connection goes where it belongs.

use std::io;

use http_body_util::BodyExt;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::bed::{Bed, get, intercept, nowhere, send, text};
use crate::server::{Server, Version, bytes, hash, raw};

/// As large as Telepresence's own stress test has it.
const LARGE: usize = 12 << 20;

#[tokio::test]
async fn requests_of_one_connection_alternate_between_app_and_handler() {
    let (app, handler) = (Server::start("app", Version::Http1).await, Server::start("ann", Version::Http1).await);
    let bed = Bed::new(app.address);
    bed.set(vec![(intercept("ann", &["x-user=ann"]), handler.address)]);
    let mut http = bed.http1().await;
    for _ in 0..20 {
        for (user, expected) in [("ann", "ann"), ("bob", "app")] {
            http.ready().await.unwrap();
            assert_eq!(text(http.send_request(get("/", user)).await.unwrap()).await, expected);
        }
    }
    assert_eq!((app.connections(), handler.connections()), (1, 1));
    assert_eq!(bed.report().taken, 20);
}

#[tokio::test]
async fn large_bodies_pass_unchanged_in_both_directions() {
    let (app, handler) = (Server::start("app", Version::Http1).await, Server::start("ann", Version::Http1).await);
    let bed = Bed::new(app.address);
    bed.set(vec![(intercept("ann", &["x-user=ann"]), handler.address)]);
    let mut http = bed.http1().await;
    for (user, name) in [("ann", "ann"), ("bob", "app")] {
        let answer = http.send_request(send("/", user, bytes(LARGE))).await.unwrap();
        assert_eq!(text(answer).await, format!("{name} {}", hash(&bytes(LARGE))));
        let answer = http.send_request(get(&format!("/bytes/{LARGE}"), user)).await.unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(hash(&body), hash(&bytes(LARGE)));
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let (app, handler) = (Server::start("app", Version::Http1).await, Server::start("ann", Version::Http1).await);
    let bed = Bed::new(app.address);
    bed.set(vec![(intercept("ann", &["x-user=ann"]), handler.address)]);
    let users = ["ann", "bob", "ann", "ann", "bob"];
    let requests = users.map(|user| format!("GET / HTTP/1.1\r\nHost: web\r\nX-User: {user}\r\n\r\n"));
    let last = "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
    let answers = bed.ask([requests.concat().as_str(), last].concat().as_bytes()).await;
    let bodies: Vec<&str> = answers.split("\r\n\r\n").skip(1).map(|part| &part[..3]).collect();
    assert_eq!(bodies, ["ann", "app", "ann", "ann", "app", "app"]);
}

#[tokio::test]
async fn a_chunked_body_keeps_its_form_and_its_trailers() {
    let (seen_tx, mut seen) = mpsc::channel(1);
    let app = raw(move |socket| {
        let seen_tx = seen_tx.clone();
        async move {
            let (mut reader, mut text) = (BufReader::new(socket), String::new());
            while !text.ends_with("x-sum: 7\r\n\r\n") {
                assert_ne!(reader.read_line(&mut text).await.unwrap(), 0, "{text}");
            }
            seen_tx.send(text).await.unwrap();
            let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n3\r\none\r\n0\r\nx-sum: 8\r\n\r\n";
            reader.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let bed = Bed::new(app);
    bed.set(vec![(intercept("ann", &["x-user=ann"]), nowhere().await)]);
    let request = "POST /a%20b?c=d HTTP/1.1\r\nHost: web\r\nTE: trailers\r\nConnection: TE, close\r\nTransfer-Encoding: chunked\r\n\
                   Trailer: x-sum\r\n\r\n4\r\nbody\r\n0\r\nx-sum: 7\r\n\r\n";
    let answer = bed.ask(request.as_bytes()).await;
    let seen = seen.recv().await.unwrap();
    assert!(
        seen.starts_with("POST /a%20b?c=d HTTP/1.1\r\n") && seen.contains("4\r\nbody\r\n0\r\nx-sum: 7\r\n"),
        "{seen}"
    );
    assert!(answer.ends_with("3\r\none\r\n0\r\nx-sum: 8\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn a_body_may_end_with_the_connection() {
    let app = raw(|mut socket: TcpStream| async move {
        let mut head = [0; 1024];
        assert_ne!(socket.read(&mut head).await.unwrap(), 0);
        socket.write_all(b"HTTP/1.0 200 OK\r\n\r\nall of it").await.unwrap();
    })
    .await;
    let bed = Bed::new(app);
    bed.set(vec![(intercept("ann", &["x-user=ann"]), nowhere().await)]);
    let answer = bed.ask(b"GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.ends_with("\r\n\r\nall of it"), "{answer}");
}

#[tokio::test]
async fn an_app_that_dies_amid_its_answer_resets_the_caller() {
    let app = raw(|mut socket: TcpStream| async move {
        let mut head = [0; 1024];
        assert_ne!(socket.read(&mut head).await.unwrap(), 0);
        socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await.unwrap();
    })
    .await;
    let bed = Bed::new(app);
    bed.set(vec![(intercept("ann", &["x-user=ann"]), nowhere().await)]);
    let mut stream = bed.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").await.unwrap();
    let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_app_that_is_not_there_resets_the_caller() {
    let bed = Bed::new(nowhere().await);
    bed.set(vec![(intercept("ann", &["x-user=ann"]), nowhere().await)]);
    for user in ["ann", "bob"] {
        let mut stream = bed.connect().await;
        stream.write_all(format!("GET / HTTP/1.1\r\nHost: web\r\nx-user: {user}\r\n\r\n").as_bytes()).await.unwrap();
        let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn an_app_that_closes_idle_connections_loses_no_request() {
    let app = raw(|mut socket: TcpStream| async move {
        let mut head = [0; 1024];
        // It says that the connection stays, and closes it.
        if socket.read(&mut head).await.unwrap() > 0 {
            socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        }
    })
    .await;
    let bed = Bed::new(app);
    bed.set(vec![(intercept("ann", &["x-user=ann"]), nowhere().await)]);
    let mut http = bed.http1().await;
    for _ in 0..50 {
        http.ready().await.unwrap();
        assert_eq!(text(http.send_request(get("/", "bob")).await.unwrap()).await, "ok");
    }
}

#[tokio::test]
async fn an_app_that_wants_callers_to_go_elsewhere_is_heard() {
    let serve = || {
        raw(|mut socket: TcpStream| async move {
            let mut head = [0; 1024];
            assert_ne!(socket.read(&mut head).await.unwrap(), 0);
            socket.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        })
    };
    let bed = Bed::new(serve().await);
    bed.set(vec![(intercept("ann", &["x-user=ann"]), serve().await)]);
    let mut stream = BufReader::new(bed.connect().await);
    for (user, closes) in [("ann", false), ("bob", true)] {
        stream.write_all(format!("GET / HTTP/1.1\r\nHost: web\r\nx-user: {user}\r\n\r\n").as_bytes()).await.unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(stream.read_line(&mut head).await.unwrap(), 0, "{head}");
        }
        assert_eq!(head.to_ascii_lowercase().contains("connection: close"), closes, "{head}");
        stream.read_exact(&mut [0; 2]).await.unwrap();
    }
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn the_app_sees_the_head_that_the_caller_sent() {
    let (seen_tx, mut seen) = mpsc::channel(1);
    let app = raw(move |mut socket: TcpStream| {
        let seen_tx = seen_tx.clone();
        async move {
            let mut head = vec![0; 1024];
            let len = socket.read(&mut head).await.unwrap();
            seen_tx.send(String::from_utf8(head[..len].to_vec()).unwrap()).await.unwrap();
            socket.write_all(b"HTTP/1.1 204 No Content\r\nX-Powered-By: tp\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let bed = Bed::new(app);
    bed.set(vec![(intercept("ann", &["x-user=ann"]), nowhere().await)]);
    let answer =
        bed.ask(b"GET //a/../b?q=%2F HTTP/1.1\r\nHost: Web:80\r\nX-UsEr: bob\r\nConnection: close\r\n\r\n").await;
    assert_eq!(seen.recv().await.unwrap(), "GET //a/../b?q=%2F HTTP/1.1\r\nHost: Web:80\r\nX-UsEr: bob\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 204 No Content\r\nX-Powered-By: tp\r\n"), "{answer}");
}

#[tokio::test]
async fn a_body_is_asked_for_only_when_the_app_wants_it() {
    let app = raw(|mut socket: TcpStream| async move {
        let mut head = vec![0; 1024];
        let len = socket.read(&mut head).await.unwrap();
        if head[..len].windows(4).any(|window| window == b"/no ") {
            socket.write_all(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        } else {
            let first = head[..len].windows(7).any(|window| window == b"/first ");
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n";
            socket.write_all(if first { answer } else { b"HTTP/1.1 100 Continue\r\n\r\n" }).await.unwrap();
            let mut body = [0; 4];
            socket.read_exact(&mut body).await.unwrap();
            if !first {
                socket.write_all(answer).await.unwrap();
            }
            socket.write_all(&body).await.unwrap();
        }
        // Until the other end is done.
        let _ = socket.read(&mut head).await;
    })
    .await;
    let bed = Bed::new(app);
    bed.set(vec![(intercept("ann", &["x-user=ann"]), nowhere().await)]);
    let head =
        |path: &str| format!("POST {path} HTTP/1.1\r\nHost: web\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");

    let mut stream = BufReader::new(bed.connect().await);
    stream.write_all(head("/yes").as_bytes()).await.unwrap();
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"body").await.unwrap();
    let mut answer = String::new();
    while !answer.ends_with("\r\n\r\n") {
        assert_ne!(stream.read_line(&mut answer).await.unwrap(), 0);
    }
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    let mut body = [0; 4];
    stream.read_exact(&mut body).await.unwrap();
    assert_eq!(&body, b"body");

    // An app that echoes begins its answer before it has read anything, and reads on.
    let mut stream = BufReader::new(bed.connect().await);
    stream.write_all(head("/first").as_bytes()).await.unwrap();
    let mut answer = String::new();
    while !answer.ends_with("\r\n\r\n") {
        assert_ne!(stream.read_line(&mut answer).await.unwrap(), 0);
    }
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    stream.write_all(b"body").await.unwrap();
    stream.read_exact(&mut body).await.unwrap();
    assert_eq!(&body, b"body");

    let mut stream = bed.connect().await;
    stream.write_all(head("/no").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 417 "), "{answer}");
}

#[tokio::test]
async fn a_caller_that_goes_away_is_gone_for_the_app_as_well() {
    let (told_tx, mut told) = mpsc::channel(1);
    let app = raw(move |mut socket: TcpStream| {
        let told_tx = told_tx.clone();
        async move {
            let mut head = [0; 1024];
            assert_ne!(socket.read(&mut head).await.unwrap(), 0);
            told_tx.send("asked").await.unwrap();
            assert!(socket.read_u8().await.is_err());
            told_tx.send("gone").await.unwrap();
        }
    })
    .await;
    let bed = Bed::new(app);
    bed.set(vec![(intercept("ann", &["x-user=ann"]), nowhere().await)]);
    let mut stream = bed.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").await.unwrap();
    assert_eq!(told.recv().await, Some("asked"));
    drop(stream);
    assert_eq!(told.recv().await, Some("gone"));
}
