//! HTTP servers that say who they are.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use ring::digest::{SHA256, digest};
use tokio::net::{TcpListener, TcpStream};

/// A server that is there until the test ends.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
}

/// Which HTTP it speaks.
#[derive(Clone, Copy)]
pub(crate) enum Version {
    Http1,
    Http2,
}

impl Server {
    /// Serves under a name.
    pub(crate) async fn start(name: &'static str, version: Version) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), name, version)
    }

    pub(crate) fn on(listener: TcpListener, name: &'static str, version: Version) -> Self {
        let address = listener.local_addr().unwrap();
        let (connections, requests) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (connection_count, request_count) = (Arc::clone(&connections), Arc::clone(&requests));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                connection_count.fetch_add(1, Ordering::Relaxed);
                let requests = Arc::clone(&request_count);
                let service = service_fn(move |request| {
                    requests.fetch_add(1, Ordering::Relaxed);
                    answer(name, request)
                });
                let io = TokioIo::new(socket);
                tokio::spawn(async move {
                    match version {
                        Version::Http1 => http1::Builder::new().serve_connection(io, service).await,
                        Version::Http2 => http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await,
                    }
                });
            }
        });
        Self { address, connections, requests }
    }

    /// Connections it has had.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Requests it has had.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

/// `/echo` sends the body back, and its hash as a trailer; `/bytes/N` sends N bytes; all else says who answers and the hash
/// of the body that came.
async fn answer(
    name: &'static str,
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, hyper::Error>>, Infallible> {
    let path = request.uri().path().to_owned();
    if let Some(len) = path.strip_prefix("/bytes/") {
        return Ok(Response::new(full(bytes(len.parse().unwrap()))));
    }
    if path == "/echo" {
        let body = request.into_body().collect().await.unwrap();
        let body = body.to_bytes();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-hash", HeaderValue::from_str(&hash(&body)).unwrap());
        trailers.insert("x-name", HeaderValue::from_static(name));
        let frames = [Frame::data(body), Frame::trailers(trailers)].map(Ok::<_, hyper::Error>);
        let mut response = Response::new(BodyExt::boxed(StreamBody::new(futures(frames))));
        response.headers_mut().insert("trailer", HeaderValue::from_static("x-hash, x-name"));
        return Ok(response);
    }
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let said = if body.is_empty() { name.to_owned() } else { format!("{name} {}", hash(&body)) };
    Ok(Response::new(full(said.into())))
}

fn full(body: Bytes) -> BoxBody<Bytes, hyper::Error> {
    BodyExt::boxed(Full::new(body).map_err(|never| match never {}))
}

fn futures<T, const N: usize>(items: [T; N]) -> impl futures_util::Stream<Item = T> {
    futures_util::stream::iter(items)
}

/// Bytes that repeat only after a prime number of them, so that none can be missing or moved unseen.
pub(crate) fn bytes(len: usize) -> Bytes {
    let period: Vec<u8> = (0..65_521_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let mut bytes = period.repeat(len / period.len() + 1);
    bytes.truncate(len);
    bytes.into()
}

pub(crate) fn hash(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A server whose every connection is dealt with by `serve`.
pub(crate) async fn raw<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket));
        }
    });
    address
}
