//! Answers the kubelet's probes: `GET /healthz` (the process serves) and `GET /readyz` (it is useful).
//!
//! The one port that anybody in the cluster can speak HTTP to, so it says as little as possible and has limits on
//! everything.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::listen::accept_errors;
use crate::log_end;

/// Connections at once. The kubelet opens one per probe.
const CONNECTIONS_MAX: usize = 16;

/// Longest life of a connection.
const CONNECTION_MAX: Duration = Duration::from_secs(5);

/// Most bytes of a request's head.
const REQUEST_BYTES_MAX: usize = 8 << 10;

/// Says what is missing for being ready; `None` when nothing is.
pub(crate) type Readiness = Arc<dyn Fn() -> Option<&'static str> + Send + Sync>;

/// Serves probes until it is dropped.
pub(crate) async fn run(listener: TcpListener, readiness: Readiness) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let place = room.clone().acquire_owned();
        tokio::select! {
            accepted = async { (place.await, listener.accept().await) } => {
                let (Ok(place), accepted) = accepted else { return };
                let Some((socket, _)) = accept_errors(accepted).await else { continue };
                let readiness = readiness.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        std::future::ready(Ok::<_, Infallible>(answer(&request, &readiness)))
                    });
                    let mut http = hyper::server::conn::http1::Builder::new();
                    http.timer(TokioTimer::new()).keep_alive(false).max_buf_size(REQUEST_BYTES_MAX);
                    // A probe that goes wrong is the prober's to report.
                    let _ = tokio::time::timeout(CONNECTION_MAX, http.serve_connection(TokioIo::new(socket), service)).await;
                    drop(place);
                });
            }
            Some(ended) = connections.join_next() => log_end("probe", ended),
        }
    }
}

fn answer(request: &Request<Incoming>, readiness: &Readiness) -> Response<Full<Bytes>> {
    let (status, text) = decide(request.method(), request.uri().path(), &**readiness);
    let mut response = Response::new(Full::new(Bytes::from(format!("{text}\n"))));
    *response.status_mut() = status;
    response
}

fn decide(method: &Method, path: &str, readiness: &dyn Fn() -> Option<&'static str>) -> (StatusCode, String) {
    match (method, path) {
        (&Method::GET, "/healthz") => (StatusCode::OK, "ok".to_owned()),
        (&Method::GET, "/readyz") => match readiness() {
            None => (StatusCode::OK, "ok".to_owned()),
            Some(missing) => (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for {missing}")),
        },
        (&Method::GET, _) => (StatusCode::NOT_FOUND, "not found".to_owned()),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "only GET".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    #[test]
    fn readiness_names_what_is_missing() {
        let get = |path, missing| decide(&Method::GET, path, &move || missing);
        assert_eq!(get("/healthz", Some("x")).0, StatusCode::OK);
        assert_eq!(get("/readyz", None).0, StatusCode::OK);
        let (status, text) = get("/readyz", Some("service subnets"));
        assert_eq!((status, &*text), (StatusCode::SERVICE_UNAVAILABLE, "waiting for service subnets"));
        assert_eq!(get("/metrics", None).0, StatusCode::NOT_FOUND);
        assert_eq!(decide(&Method::POST, "/healthz", &|| None).0, StatusCode::METHOD_NOT_ALLOWED);
    }

    #[tokio::test]
    async fn a_probe_gets_its_answer_and_the_connection_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(run(listener, Arc::new(|| None)));
        let mut probe = TcpStream::connect(address).await.unwrap();
        probe.write_all(b"GET /readyz HTTP/1.1\r\nHost: pod\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        probe.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("ok\n"), "{answer}");
        server.abort();
    }
}
