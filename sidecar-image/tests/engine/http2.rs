//! HTTP/2 with prior knowledge: every stream goes where it belongs.

use std::future::poll_fn;

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper::{Method, Request};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tp_protocol::engage::Engagement;
use tp_protocol::engage::filter::{Filter, PathRule};

use crate::bed::{Bed, get, intercept, nowhere, send, text};
use crate::server::{Server, Version, bytes, hash};

const LARGE: usize = 12 << 20;

#[tokio::test]
async fn streams_of_one_connection_go_to_several_places_at_once() {
    let servers = ["app", "ann", "bob"].map(|name| Server::start(name, Version::Http2));
    let [app, ann, bob] = join_all(servers).await.try_into().ok().unwrap();
    let bed = Bed::new(app.address);
    bed.set(vec![(intercept("ann", &["x-user=ann"]), ann.address), (intercept("bob", &["x-user=~b.b"]), bob.address)]);
    let http = bed.http2().await;
    let mut requests = JoinSet::new();
    for n in 0..300 {
        let (user, expected) = [("ann", "ann"), ("bob", "bob"), ("carl", "app")][n % 3];
        let mut http = http.clone();
        requests.spawn(async move {
            let body = bytes(n * 100 + 1);
            let answer = text(http.send_request(send("/", user, body.clone())).await.unwrap()).await;
            assert_eq!(answer, format!("{expected} {}", hash(&body)));
        });
    }
    requests.join_all().await;
    assert_eq!([app, ann, bob].map(|server| (server.connections(), server.requests())), [(1, 100); 3]);
}

#[tokio::test]
async fn large_bodies_pass_unchanged_in_both_directions() {
    let (app, handler) = (Server::start("app", Version::Http2).await, Server::start("ann", Version::Http2).await);
    let bed = Bed::new(app.address);
    bed.set(vec![(intercept("ann", &["x-user=ann"]), handler.address)]);
    let mut http = bed.http2().await;
    for (user, name) in [("ann", "ann"), ("bob", "app")] {
        let answer = http.send_request(send("/", user, bytes(LARGE))).await.unwrap();
        assert_eq!(text(answer).await, format!("{name} {}", hash(&bytes(LARGE))));
        let answer = http.send_request(get(&format!("/bytes/{LARGE}"), user)).await.unwrap();
        assert_eq!(hash(&answer.into_body().collect().await.unwrap().to_bytes()), hash(&bytes(LARGE)));
    }
}

#[tokio::test]
async fn grpc_calls_keep_their_trailers_and_are_told_apart_by_method() {
    let (app, handler) = (Server::start("app", Version::Http2).await, Server::start("ann", Version::Http2).await);
    let bed = Bed::new(app.address);
    let filter = Filter::new(
        vec![],
        vec![Method::POST],
        vec![PathRule::grpc("echo").unwrap(), PathRule::equal("/echo").unwrap()],
    );
    let engagement = Engagement { filter: filter.unwrap(), ..intercept("ann", &[]) };
    bed.set(vec![(engagement, handler.address)]);
    let mut http = bed.http2().await;
    for (method, name) in [("POST", "ann"), ("PUT", "app")] {
        let request = Request::builder().method(method).uri("http://web.shop/echo").header("te", "trailers");
        let request = request.header("content-type", "application/grpc").body(Full::new(bytes(1000))).unwrap();
        let answer = http.send_request(request).await.unwrap().into_body().collect().await.unwrap();
        let trailers = answer.trailers().unwrap();
        assert_eq!(trailers["x-name"], name);
        assert_eq!(trailers["x-hash"], hash(&bytes(1000)));
        assert_eq!(answer.to_bytes(), bytes(1000));
    }
}

#[tokio::test]
async fn an_app_that_is_not_there_refuses_its_streams_only() {
    let handler = Server::start("ann", Version::Http2).await;
    let bed = Bed::new(nowhere().await);
    bed.set(vec![(intercept("ann", &["x-user=ann"]), handler.address)]);
    let mut http = bed.http2().await;
    for _ in 0..3 {
        let error = http.send_request(get("/", "bob")).await.unwrap_err();
        let reason = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<h2::Error>());
        assert_eq!(reason.and_then(h2::Error::reason), Some(h2::Reason::REFUSED_STREAM));
        assert_eq!(text(http.send_request(get("/", "ann")).await.unwrap()).await, "ann");
    }
}

#[tokio::test]
async fn a_stream_that_is_not_read_holds_up_no_other() {
    let app = Server::start("app", Version::Http2).await;
    let bed = Bed::new(app.address);
    bed.set(vec![(intercept("ann", &["x-user=ann"]), nowhere().await)]);
    let mut http = bed.http2().await;
    let stalled = http.send_request(get(&format!("/bytes/{LARGE}"), "bob")).await.unwrap();
    for _ in 0..20 {
        assert_eq!(text(http.send_request(get("/", "bob")).await.unwrap()).await, "app");
    }
    assert_eq!(hash(&stalled.into_body().collect().await.unwrap().to_bytes()), hash(&bytes(LARGE)));
}

#[tokio::test]
async fn an_engine_that_stops_lets_requests_end_and_callers_know() {
    let app = Server::start("app", Version::Http2).await;
    let bed = Bed::new(app.address);
    bed.set(vec![(intercept("ann", &["x-user=ann"]), nowhere().await)]);
    let mut http: SendRequest<Full<Bytes>> = bed.http2().await;
    let answer = http.send_request(get(&format!("/bytes/{LARGE}"), "bob")).await.unwrap();
    bed.stop.cancel();
    assert_eq!(hash(&answer.into_body().collect().await.unwrap().to_bytes()), hash(&bytes(LARGE)));
    bed.engine.await.unwrap();
    assert!(http.ready().await.is_err());
    assert!(tokio::net::TcpStream::connect(bed.address).await.is_err());
}

#[tokio::test]
async fn a_stream_that_its_caller_resets_is_reset_for_the_app_as_well() {
    let (told_tx, mut told) = mpsc::channel(1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bed = Bed::new(listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let mut app = h2::server::handshake(socket).await.unwrap();
        let (_, mut respond) = app.accept().await.unwrap().unwrap();
        tokio::spawn(async move { app.accept().await.is_none() });
        told_tx.send(None).await.unwrap();
        let reason = poll_fn(|cx| respond.poll_reset(cx)).await.unwrap();
        told_tx.send(Some(reason)).await.unwrap();
    });
    bed.set(vec![(intercept("ann", &["x-user=ann"]), nowhere().await)]);
    let http = bed.http2().await;
    // The connection stays.
    let mut of_request = http.clone();
    let request = tokio::spawn(async move { of_request.send_request(get("/", "bob")).await });
    assert_eq!(told.recv().await, Some(None));
    request.abort();
    assert_eq!(told.recv().await, Some(Some(h2::Reason::CANCEL)));
    drop(http);
}
