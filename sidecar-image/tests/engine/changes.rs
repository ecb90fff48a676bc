//! Engagements that come and go under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response};
use tokio::task::JoinSet;
use tp_agent::engine::AppProtocol;
use tp_protocol::engage::{Engagement, EngagementId};
use tp_protocol::open::Transport;

use crate::bed::{Bed, PORT, at, get, intercept, text};
use crate::server::{Server, Version};

/// Callers, each with a connection of its own.
const CALLERS: usize = 6;
/// Times that what is engaged changes.
const CHANGES: usize = 40;
/// Requests that are answered between two changes.
const BETWEEN: usize = 10;

type Sent = hyper::Result<Response<Incoming>>;

/// What callers share.
#[derive(Default)]
struct Load {
    by_app: AtomicUsize,
    by_handler: AtomicUsize,
    is_over: AtomicBool,
}

impl Load {
    /// One request after the other, until it is over.
    async fn call(self: Arc<Self>, mut send: impl AsyncFnMut(Request<Full<Bytes>>) -> Sent) {
        while !self.is_over.load(Ordering::Relaxed) {
            let answer = text(send(get("/", "ann")).await.unwrap()).await;
            let answered = if answer == "ann" { &self.by_handler } else { &self.by_app };
            assert!(answer == "ann" || answer == "app", "{answer}");
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn answered(&self) -> usize {
        self.by_app.load(Ordering::Relaxed) + self.by_handler.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn no_request_fails_while_engagements_come_and_go() {
    for (version, headers) in [
        (Version::Http1, &["x-user=ann"][..]),
        (Version::Http2, &["x-user=ann"]),
        (Version::Http1, &[]),
        (Version::Http2, &[]),
    ] {
        let (app, handler) = (Server::start("app", version).await, Server::start("ann", version).await);
        let bed = Bed::with(app.address, Transport::Tcp, AppProtocol::Http);
        let load = Arc::<Load>::default();
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let load = Arc::clone(&load);
            match version {
                Version::Http1 => {
                    let mut http = bed.http1().await;
                    callers.spawn(load.call(async move |request| {
                        http.ready().await?;
                        http.send_request(request).await
                    }));
                }
                Version::Http2 => {
                    let mut http = bed.http2().await;
                    callers.spawn(load.call(async move |request| http.send_request(request).await));
                }
            }
        }
        for n in 0..CHANGES {
            bed.set(if n % 2 == 0 { vec![(intercept("ann", headers), handler.address)] } else { vec![] });
            let goal = load.answered() + BETWEEN;
            while load.answered() < goal && callers.len() == CALLERS {
                tokio::task::yield_now().await;
                if let Some(ended) = callers.try_join_next() {
                    ended.unwrap();
                }
            }
        }
        load.is_over.store(true, Ordering::Relaxed);
        callers.join_all().await;
        let (by_app, by_handler) = (load.by_app.load(Ordering::Relaxed), load.by_handler.load(Ordering::Relaxed));
        assert!(by_app > CHANGES && by_handler > CHANGES, "{by_app} {by_handler}");
    }
}

#[tokio::test]
async fn a_change_applies_to_the_next_request_of_a_connection_that_is_there() {
    for version in [Version::Http1, Version::Http2] {
        let (app, handler) = (Server::start("app", version).await, Server::start("ann", version).await);
        let bed = Bed::with(app.address, Transport::Tcp, AppProtocol::Http);
        let (mut http1, mut http2) = match version {
            Version::Http1 => (Some(bed.http1().await), None),
            Version::Http2 => (None, Some(bed.http2().await)),
        };
        for n in 0..10 {
            let expected = if n % 2 == 0 { "app" } else { "ann" };
            bed.set(if n % 2 == 0 { vec![] } else { vec![(intercept("ann", &[]), handler.address)] });
            let answer = match (&mut http1, &mut http2) {
                (Some(http), _) => {
                    http.ready().await.unwrap();
                    http.send_request(get("/", "ann")).await
                }
                (_, Some(http)) => http.send_request(get("/", "ann")).await,
                (None, None) => unreachable!("one of them is there"),
            };
            assert_eq!(text(answer.unwrap()).await, expected);
        }
        assert_eq!(app.connections(), 1);
    }
}

#[tokio::test]
async fn many_people_share_a_port() {
    let app = Server::start("app", Version::Http2).await;
    let handlers = [Server::start("even", Version::Http2).await, Server::start("odd", Version::Http2).await];
    let bed = Bed::new(app.address);
    let wanted = (0..250).map(|n| {
        let engagement = intercept(&format!("user-{n}"), &[&format!("x-user=user-{n}")]);
        (engagement, handlers[n % 2].address)
    });
    bed.set(wanted.collect());
    let mut http = bed.http2().await;
    for n in 0..260 {
        let expected = if n >= 250 { "app" } else { ["even", "odd"][n % 2] };
        for _ in 0..3 {
            let answer = http.send_request(get("/", &format!("user-{n}"))).await.unwrap();
            assert_eq!(text(answer).await, expected);
        }
    }
}

#[tokio::test]
async fn an_engagement_of_another_port_is_named_and_others_are_set() {
    let (app, handler) = (Server::start("app", Version::Http1).await, Server::start("ann", Version::Http1).await);
    let bed = Bed::new(app.address);
    let elsewhere = Engagement { port: PORT + 1, ..intercept("elsewhere", &[]) };
    let datagrams = Engagement { transport: Transport::Udp, ..intercept("datagrams", &[]) };
    let wanted = [elsewhere, intercept("ann", &["x-user=ann"]), datagrams, intercept("ann", &[])];
    let unknown = bed.engagements.set(wanted.map(|engagement| (engagement, at(handler.address))).into());
    assert_eq!(unknown.iter().map(EngagementId::as_str).collect::<Vec<_>>(), ["elsewhere", "datagrams"]);
    assert_eq!(bed.engagements.report().len(), 1);
    let mut http = bed.http1().await;
    assert_eq!(text(http.send_request(get("/", "bob")).await.unwrap()).await, "app");
}
