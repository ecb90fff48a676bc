//! Callers that are wrong, slow or too large.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::bed::{Bed, get, intercept, nowhere, text};
use crate::server::{Server, Version};

#[tokio::test]
async fn malformed_requests_do_not_reach_the_app() {
    let app = Server::start("app", Version::Http1).await;
    let bed = Bed::new(app.address);
    bed.set(vec![(intercept("ann", &["x-user=ann"]), nowhere().await)]);
    let long = format!("GET /{} HTTP/1.1\r\nHost: web\r\n\r\n", "x".repeat(70_000));
    let bomb = format!("GET / HTTP/1.1\r\nHost: web\r\n{}\r\n", "x: y\r\n".repeat(300));
    let large = format!("GET / HTTP/1.1\r\nHost: web\r\nx: {}\r\n\r\n", "y".repeat(70_000));
    for (request, status) in [
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: web\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "400"),
        ("POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: gzip\r\n\r\n", "400"),
        ("GET / HTTP/9.9\r\nHost: web\r\n\r\n", "400"),
        (&long, "431"),
        (&bomb, "431"),
        (&large, "431"),
    ] {
        let mut stream = bed.connect().await;
        // Fails when the engine has had enough before all of it is sent.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut status_line = [0; 12];
        stream.read_exact(&mut status_line).await.unwrap();
        assert_eq!(status_line, format!("HTTP/1.1 {status}").as_bytes(), "{}", &request[..request.len().min(60)]);
    }
    assert_eq!(app.requests(), 0);
}

#[tokio::test]
async fn a_message_with_two_lengths_is_one_message() {
    let app = Server::start("app", Version::Http1).await;
    let bed = Bed::new(app.address);
    bed.set(vec![(intercept("ann", &["x-user=ann"]), nowhere().await)]);
    // To who believes the length, the rest would be another request.
    let request = "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n\
                   0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: web\r\n\r\n";
    let answer = bed.ask(request.as_bytes()).await;
    assert_eq!((answer.matches("HTTP/1.1 200").count(), app.requests()), (1, 1), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_head_has_a_minute_and_an_idle_connection_all_the_time_it_wants() {
    let app = Server::start("app", Version::Http1).await;
    let bed = Bed::new(app.address);
    bed.set(vec![(intercept("ann", &["x-user=ann"]), nowhere().await)]);
    let mut idle = bed.http1().await;
    assert_eq!(text(idle.send_request(get("/", "bob")).await.unwrap()).await, "app");

    let mut slow = bed.connect().await;
    let started = tokio::time::Instant::now();
    slow.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nx-slow:").await.unwrap();
    // The clock goes on while everybody waits.
    assert!(slow.read_u8().await.is_err());
    assert_eq!(started.elapsed().as_secs(), 60);

    tokio::time::advance(Duration::from_secs(3600)).await;
    idle.ready().await.unwrap();
    assert_eq!(text(idle.send_request(get("/", "bob")).await.unwrap()).await, "app");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_pauses_amid_its_first_word_is_left_to_the_app() {
    let app = crate::server::raw(|mut socket: tokio::net::TcpStream| async move {
        let mut word = [0; 3];
        socket.read_exact(&mut word).await.unwrap();
        socket.write_all(&word).await.unwrap();
    })
    .await;
    let bed = Bed::new(app);
    bed.set(vec![(intercept("ann", &["x-user=ann"]), nowhere().await)]);
    let mut slow = bed.connect().await;
    slow.write_all(b"GET").await.unwrap();
    let mut word = [0; 3];
    slow.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"GET");
}
