//! Answers the kubelet's probes on the pod's address: `GET /healthz` (the event loop runs) and `GET /readyz` (the ports are
//! open, and the first orders carried out).
//!
//! A probe by exec would need no port, but costs a process per probe and pod, and a place to leave the state at. A probe
//! on the loopback is not possible: the kubelet comes from outside of the pod. So this is the one thing that answers
//! without authentication; it takes nothing and tells no more than that. Beyond the first orders it deliberately does not
//! depend on the manager: a pod must not leave its Service because the manager is away.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Connections at once. The kubelet opens one per probe; more wait in the kernel.
const CONNECTIONS_MAX: usize = 4;

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 16;

/// Longest life of a connection.
const CONNECTION_MAX: Duration = Duration::from_secs(2);

/// Most bytes of a request's head.
const REQUEST_BYTES_MAX: usize = 8 << 10;

/// Wait after an accept that failed for want of something, so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Binds all addresses of both families; of IPv4 alone where there is no IPv6.
///
/// # Errors
/// When the port is taken.
pub(crate) fn bind(port: u16) -> io::Result<TcpListener> {
    let any_v6 = || {
        let socket = TcpSocket::new_v6()?;
        socket2::SockRef::from(&socket).set_only_v6(false)?;
        listen(&socket, (Ipv6Addr::UNSPECIFIED, port).into()).map(|()| socket)
    };
    let socket = any_v6().or_else(|_| {
        let socket = TcpSocket::new_v4()?;
        listen(&socket, (Ipv4Addr::UNSPECIFIED, port).into()).map(|()| socket)
    });
    let socket = socket.map_err(|error| {
        io::Error::new(error.kind(), format!("cannot listen on port {port} (TP_AGENT_HEALTH_PORT): {error}"))
    })?;
    socket.listen(BACKLOG)
}

fn listen(socket: &TcpSocket, address: SocketAddr) -> io::Result<()> {
    socket.set_reuseaddr(true)?;
    socket.bind(address)
}

/// Serves probes until it is dropped. `is_ready` is asked for each.
pub(crate) async fn run(listener: TcpListener, is_ready: impl Fn() -> bool) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((socket, _)) => _ = connections.spawn(serve(socket, is_ready())),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a probe");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(socket: TcpStream, is_ready: bool) {
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let mut response = Response::new(Empty::<Bytes>::new());
        *response.status_mut() = decide(request.method(), request.uri().path(), is_ready);
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.keep_alive(false).max_buf_size(REQUEST_BYTES_MAX);
    // A probe that goes wrong is the prober's to report.
    let _ = timeout(CONNECTION_MAX, http.serve_connection(TokioIo::new(socket), service)).await;
}

fn decide(method: &Method, path: &str, is_ready: bool) -> StatusCode {
    match (method, path) {
        (&Method::GET, "/healthz") => StatusCode::OK,
        (&Method::GET, "/readyz") if is_ready => StatusCode::OK,
        (&Method::GET, "/readyz") => StatusCode::SERVICE_UNAVAILABLE,
        (&Method::GET, _) => StatusCode::NOT_FOUND,
        _ => StatusCode::METHOD_NOT_ALLOWED,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut probe = TcpStream::connect(address).await.unwrap();
        probe.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        probe.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn only_a_get_of_a_probe_is_ok() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(run(listener, || false));
        assert!(ask(address, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.starts_with("HTTP/1.1 200"));
        assert!(ask(address, "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").await.starts_with("HTTP/1.1 503"));
        assert!(ask(address, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.starts_with("HTTP/1.1 404"));
        assert!(ask(address, "PUT /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.starts_with("HTTP/1.1 405"));
        server.abort();
    }

    #[test]
    fn readiness_is_what_the_agent_says() {
        assert_eq!(decide(&Method::GET, "/readyz", true), StatusCode::OK);
        assert_eq!(decide(&Method::GET, "/readyz", false), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(decide(&Method::GET, "/healthz", false), StatusCode::OK);
    }

    #[tokio::test(start_paused = true)]
    async fn silent_connections_make_room_in_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(run(listener, || false));
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        assert!(ask(address, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.starts_with("HTTP/1.1 200"));
        server.abort();
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let taken = bind(0).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert!(bind(port).unwrap_err().to_string().contains(&port.to_string()));
    }
}
