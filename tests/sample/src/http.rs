//! The HTTP service: reports what it was asked, and a few paths that behave in a special way.
//!
//! | Path | Answer |
//! |---|---|
//! | `/echo` | the request's body, as it comes in |
//! | `/sink` | number of bytes and SHA-256 of the body |
//! | `/bytes?n=N` | N bytes of the pattern |
//! | `/status/NNN` | that status |
//! | `/slow?ms=N` | the report, N milliseconds late |
//! | any other | the report: name, request line, headers, environment, addresses |

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::OsString;
use std::io::{self, Cursor};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use ring::digest::{Context, SHA256};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::pattern::Pattern;
use crate::tcp::hex;

/// Variables with these prefixes are reported: what a manifest sets, and neither the image's nor Kubernetes' own.
const ENVIRONMENT_PREFIXES: [&str; 3] = ["APP_", "POD_", "TP_"];

/// Longest delay that `/slow` grants.
const DELAY_MAX: Duration = Duration::from_secs(600);

/// How every HTTP/2 connection begins (RFC 9113 section 3.4); no request of HTTP/1.1 shares the first three bytes.
const HTTP2_PREFACE: &[u8] = b"PRI";

type AnyBody = BoxBody<Bytes, hyper::Error>;

/// The HTTP server, without its listener.
pub(crate) struct Server {
    app: Arc<App>,
    stop: watch::Sender<()>,
}

struct App {
    name: String,
    environment: BTreeMap<String, String>,
    pattern: Pattern,
}

impl Server {
    pub(crate) fn new(name: String, pattern: Pattern) -> Self {
        Self { app: Arc::new(App { name, environment: environment(), pattern }), stop: watch::Sender::new(()) }
    }

    /// Serves one connection, HTTP/1.1 or HTTP/2 as its first bytes say, in a task of `tasks`.
    pub(crate) fn serve(&self, tasks: &mut JoinSet<()>, mut stream: TcpStream, peer: SocketAddr) {
        let _ = stream.set_nodelay(true);
        let local = stream.local_addr().unwrap_or(peer);
        let app = Arc::clone(&self.app);
        let service = service_fn(move |request| {
            let app = Arc::clone(&app);
            async move { Ok::<_, Infallible>(app.answer(request, peer, local).await) }
        });
        let mut stop = self.stop.subscribe();
        tasks.spawn(async move {
            let start = tokio::select! {
                start = first_bytes(&mut stream) => start,
                _ = stop.changed() => return,
            };
            let Ok(start) = start else { return };
            let is_http2 = start == HTTP2_PREFACE;
            let (read, write) = stream.into_split();
            let io = TokioIo::new(tokio::io::join(Cursor::new(start).chain(read), write));
            if is_http2 {
                let connection = http2::Builder::new(TokioExecutor::new()).serve_connection(io, service);
                until_stopped(connection, stop, http2::Connection::graceful_shutdown).await;
            } else {
                let connection = http1::Builder::new().serve_connection(io, service);
                until_stopped(connection, stop, http1::Connection::graceful_shutdown).await;
            }
        });
    }

    /// Waits until the requests under way have been answered; connections are closed behind them.
    pub(crate) async fn drain(self) {
        let _ = self.stop.send(());
        self.stop.closed().await;
    }
}

/// Reads as many bytes as tell the protocol, fewer when they differ from HTTP/2's or end before.
async fn first_bytes(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut start = Vec::with_capacity(HTTP2_PREFACE.len());
    while HTTP2_PREFACE.starts_with(&start) && start.len() < HTTP2_PREFACE.len() {
        let missing = HTTP2_PREFACE.len() - start.len();
        if stream.take(missing as u64).read_buf(&mut start).await? == 0 {
            break;
        }
    }
    Ok(start)
}

/// Drives a connection to its end, which `end` brings nearer once the server stops.
async fn until_stopped<C: Future>(connection: C, mut stop: watch::Receiver<()>, end: fn(Pin<&mut C>)) {
    let mut connection = pin!(connection);
    tokio::select! {
        _ = &mut connection => return, // a broken connection is its client's affair
        _ = stop.changed() => end(connection.as_mut()),
    }
    let _ = connection.await;
}

impl App {
    async fn answer(&self, request: Request<Incoming>, peer: SocketAddr, local: SocketAddr) -> Response<AnyBody> {
        let path = request.uri().path();
        if let Some(status) = path.strip_prefix("/status/") {
            return match status.parse::<StatusCode>() {
                Ok(status) => text(status, status.canonical_reason().unwrap_or("")),
                Err(_) => text(StatusCode::BAD_REQUEST, "a status is a number from 100 to 999"),
            };
        }
        match path {
            "/echo" => echo(request),
            "/sink" => sink(request).await,
            "/bytes" => match number(&request, "n") {
                Some(n) => self.bytes(n),
                None => text(StatusCode::BAD_REQUEST, "how many? /bytes?n=1024"),
            },
            "/slow" => {
                let delay = Duration::from_millis(number(&request, "ms").unwrap_or(0));
                tokio::time::sleep(delay.min(DELAY_MAX)).await;
                self.report(&request, peer, local)
            }
            _ => self.report(&request, peer, local),
        }
    }

    fn report(&self, request: &Request<Incoming>, peer: SocketAddr, local: SocketAddr) -> Response<AnyBody> {
        let report = json!({
            "name": self.name,
            "method": request.method().as_str(),
            "path": request.uri().path(),
            "query": request.uri().query(),
            "version": format!("{:?}", request.version()),
            "headers": headers(request.headers()),
            "env": self.environment,
            "peer": SocketAddr::new(peer.ip().to_canonical(), peer.port()).to_string(),
            "local": SocketAddr::new(local.ip().to_canonical(), local.port()).to_string(),
        });
        json_answer(&report)
    }

    /// Streams `n` bytes of the pattern, whose length is announced.
    fn bytes(&self, n: u64) -> Response<AnyBody> {
        let pattern = self.pattern.clone();
        let blocks = stream::unfold(0, move |sent| {
            let block = (sent < n).then(|| pattern.block(sent, n - sent));
            async move { block.map(|block| (Ok(Frame::data(block.clone())), sent + block.len() as u64)) }
        });
        let mut response = Response::new(BodyExt::boxed(StreamBody::new(blocks)));
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(n));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        response
    }
}

/// Sends the request's body back while it comes in.
fn echo(request: Request<Incoming>) -> Response<AnyBody> {
    let kind = request.headers().get(CONTENT_TYPE).cloned();
    let length = request.body().size_hint().exact();
    let mut response = Response::new(request.into_body().boxed());
    if let Some(kind) = kind {
        response.headers_mut().insert(CONTENT_TYPE, kind);
    }
    if let Some(length) = length {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    response
}

/// Counts and digests the request's body; a body that breaks off is the client's fault.
async fn sink(request: Request<Incoming>) -> Response<AnyBody> {
    let (mut total, mut hash) = (0, Context::new(&SHA256));
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return text(StatusCode::BAD_REQUEST, "the body broke off") };
        if let Some(block) = frame.data_ref() {
            total += block.len();
            hash.update(block);
        }
    }
    json_answer(&json!({ "bytes": total, "sha256": hex(hash.finish().as_ref()) }))
}

/// The environment as far as it is reported. Values that are not UTF-8 are shown with replacement characters.
fn environment() -> BTreeMap<String, String> {
    let text = |(name, value): (OsString, OsString)| (name.to_string_lossy().into(), value.to_string_lossy().into());
    let reported = |(name, _): &(String, String)| ENVIRONMENT_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    std::env::vars_os().map(text).filter(reported).collect()
}

/// Header values by name; a name that came more than once has its values joined as RFC 9110, section 5.2 says.
fn headers(headers: &HeaderMap) -> BTreeMap<&str, String> {
    let joined = |name| {
        let values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        values.collect::<Vec<_>>().join(", ")
    };
    headers.keys().map(|name| (name.as_str(), joined(name))).collect()
}

/// The number that the query gives for `key`.
fn number(request: &Request<Incoming>, key: &str) -> Option<u64> {
    let mut pairs = request.uri().query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(name, _)| *name == key)?.1.parse().ok()
}

fn text(status: StatusCode, message: &str) -> Response<AnyBody> {
    let mut response = full(format!("{message}\n"), "text/plain; charset=utf-8");
    *response.status_mut() = status;
    response
}

fn json_answer(value: &serde_json::Value) -> Response<AnyBody> {
    full(format!("{value}\n"), "application/json")
}

fn full(content: String, kind: &'static str) -> Response<AnyBody> {
    let mut response = Response::new(Full::from(content).map_err(|never| match never {}).boxed());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Sends `request` as it is and returns all that comes back.
    async fn exchange(request: &str) -> String {
        let server = Server::new("sample".to_owned(), Pattern::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let mut tasks = JoinSet::new();
        server.serve(&mut tasks, stream, peer);
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn report_tells_headers_and_request_line() {
        let answer =
            exchange("GET /any?a=b HTTP/1.1\r\nHost: web\r\nX-Id: 1\r\nX-Id: 2\r\nConnection: close\r\n\r\n").await;
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let report: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(report["name"], "sample");
        assert_eq!(report["path"], "/any");
        assert_eq!(report["query"], "a=b");
        assert_eq!(report["version"], "HTTP/1.1");
        assert_eq!(report["headers"]["x-id"], "1, 2");
        assert!(report["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
    }

    #[tokio::test]
    async fn echo_returns_the_body() {
        let answer = exchange("POST /echo HTTP/1.1\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello").await;
        assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
    }

    #[tokio::test]
    async fn bytes_come_in_the_announced_number() {
        let answer = exchange("GET /bytes?n=3 HTTP/1.1\r\nConnection: close\r\n\r\n").await;
        assert!(answer.contains("content-length: 3\r\n"), "{answer}");
        assert_eq!(answer.split_once("\r\n\r\n").unwrap().1.len(), 3);
    }

    #[tokio::test]
    async fn status_is_the_one_asked_for() {
        let answer = exchange("GET /status/503 HTTP/1.1\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        let answer = exchange("GET /status/many HTTP/1.1\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }

    #[tokio::test]
    async fn http2_is_spoken_from_the_first_byte() {
        // The client's preface and an empty SETTINGS frame (RFC 9113, section 3.4), then GOAWAY, after which the
        // server has nothing to wait for.
        let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        let goaway = "\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let answer = exchange(&format!("{preface}{goaway}")).await;
        assert_eq!(answer.as_bytes()[3], 4, "a SETTINGS frame comes first");
    }
}
