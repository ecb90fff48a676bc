//! Connections that are no HTTP: TCP as it is.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::bed::{Bed, intercept, nowhere};
use crate::server::{bytes, raw};

/// Reads to the end, and then says who it is and how much came.
async fn counter(name: &'static str) -> SocketAddr {
    raw(move |mut socket: TcpStream| async move {
        let mut all = Vec::new();
        socket.read_to_end(&mut all).await.unwrap();
        socket.write_all(format!("{name} {}", all.len()).as_bytes()).await.unwrap();
    })
    .await
}

/// A caller's connection, and the app's end of it.
async fn pair(bed: &Bed, app: &TcpListener) -> (TcpStream, TcpStream) {
    let mut caller = bed.connect().await;
    let (mut server, _) = app.accept().await.unwrap();
    // The engine relays by then.
    caller.write_all(b"!").await.unwrap();
    assert_eq!(server.read_u8().await.unwrap(), b'!');
    (caller, server)
}

#[tokio::test]
async fn half_close_is_kept() {
    let bed = Bed::new(counter("app").await);
    assert_eq!(bed.say(&bytes(12 << 20)).await, "app 12582912");
    bed.set(vec![(intercept("ann", &[]), counter("ann").await)]);
    assert_eq!(bed.say(&bytes(12 << 20)).await, "ann 12582912");
}

#[tokio::test]
async fn a_reset_passes_in_both_directions() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bed = Bed::new(app.local_addr().unwrap());

    let (mut caller, server) = pair(&bed, &app).await;
    server.set_zero_linger().unwrap();
    drop(server);
    assert_eq!(caller.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);

    let (caller, mut server) = pair(&bed, &app).await;
    caller.set_zero_linger().unwrap();
    drop(caller);
    assert_eq!(server.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_app_that_is_not_there_resets_the_caller() {
    let bed = Bed::new(nowhere().await);
    let mut caller = bed.connect().await;
    assert_eq!(caller.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_connection_taken_whole_ends_with_its_engagement_and_others_go_on() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let handler = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bed = Bed::new(app.local_addr().unwrap());
    let (mut of_app, mut app_end) = pair(&bed, &app).await;
    bed.set(vec![(intercept("ann", &[]), handler.local_addr().unwrap())]);
    let (mut of_ann, mut ann_end) = pair(&bed, &handler).await;
    bed.set(vec![]);
    assert_eq!(of_ann.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(ann_end.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    of_app.write_all(b"x").await.unwrap();
    assert_eq!(app_end.read_u8().await.unwrap(), b'x');
    pair(&bed, &app).await;
}

#[tokio::test]
async fn other_protocols_pass_a_port_with_filters() {
    let bed = Bed::new(counter("app").await);
    bed.set(vec![(intercept("ann", &["x-user=ann"]), nowhere().await)]);
    for said in [&b"PING\r\n"[..], b"\x16\x03\x01\x00\x05hello", b"GE", b"PRI * HTTP", b""] {
        assert_eq!(bed.say(said).await, format!("app {}", said.len()));
    }
}

#[tokio::test]
async fn an_app_that_speaks_first_is_heard_on_a_port_with_filters() {
    let app = raw(|mut socket: TcpStream| async move {
        socket.write_all(b"220 mail\r\n").await.unwrap();
        let mut said = String::new();
        socket.read_to_string(&mut said).await.unwrap();
        socket.write_all(said.as_bytes()).await.unwrap();
    })
    .await;
    let bed = Bed::new(app);
    bed.set(vec![(intercept("ann", &["x-user=ann"]), nowhere().await)]);
    let mut caller = bed.connect().await;
    let mut greeting = [0; 10];
    caller.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 mail\r\n");
    caller.write_all(b"GET / QUIT\r\n").await.unwrap();
    caller.shutdown().await.unwrap();
    let mut rest = String::new();
    caller.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "GET / QUIT\r\n");
}
