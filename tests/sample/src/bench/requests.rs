//! HTTP/1.1 requests, one after the other per connection.

use std::io;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use tokio::sync::Barrier;
use tokio::task::JoinHandle;

use super::{Figures, connect};

/// Sends requests over one connection until `end`.
pub(super) async fn kept_alive(target: &str, path: &str, end: Instant) -> io::Result<Figures> {
    let mut figures = Figures::default();
    let mut connection = Connection::open(target).await?;
    while Instant::now() < end {
        let start = Instant::now();
        figures.bytes += connection.get(target, path).await?;
        figures.latencies.push(microseconds_since(start));
    }
    Ok(figures)
}

/// Opens a connection for every request until `end`; its time counts as the request's.
pub(super) async fn one_per_connection(target: &str, path: &str, end: Instant) -> io::Result<Figures> {
    let mut figures = Figures::default();
    while Instant::now() < end {
        let start = Instant::now();
        figures.bytes += Connection::open(target).await?.get(target, path).await?;
        figures.latencies.push(microseconds_since(start));
    }
    Ok(figures)
}

/// Sends one request over a connection that then stays open until `end`. What is written when all have come so far is read by
/// the benchmarks.
pub(super) async fn idle(target: &str, path: &str, end: Instant, all_open: &Barrier) -> io::Result<Figures> {
    let start = Instant::now();
    let mut connection = Connection::open(target).await?;
    let bytes = connection.get(target, path).await?;
    let latencies = vec![microseconds_since(start)];
    if all_open.wait().await.is_leader() {
        eprintln!("tp-sample: all connections are open");
    }
    tokio::time::sleep_until(end.into()).await;
    Ok(Figures { bytes, latencies })
}

/// An open connection and the task that drives it, which ends with it.
struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    driver: JoinHandle<()>,
}

impl Connection {
    async fn open(target: &str) -> io::Result<Self> {
        let stream = connect(target).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let driver = tokio::spawn(async move {
            let _ = connection.await; // its error is the request's as well
        });
        Ok(Self { sender, driver })
    }

    /// Returns the length of the answer's body.
    async fn get(&mut self, target: &str, path: &str) -> io::Result<u64> {
        let request = Request::get(path).header(HOST, target).body(Empty::new()).map_err(io::Error::other)?;
        self.sender.ready().await.map_err(io::Error::other)?;
        let response = self.sender.send_request(request).await.map_err(io::Error::other)?;
        if !response.status().is_success() {
            return Err(io::Error::other(format!("{target}{path} answered {}", response.status())));
        }
        let mut body = response.into_body();
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            bytes += frame.map_err(io::Error::other)?.data_ref().map_or(0, Bytes::len) as u64;
        }
        Ok(bytes)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

fn microseconds_since(start: Instant) -> u32 {
    u32::try_from(start.elapsed().as_micros()).unwrap_or(u32::MAX)
}
