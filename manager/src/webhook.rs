//! The HTTPS port that the API server calls for admission.
//!
//! | module | what it owns |
//! |---|---|
//! | `identity` | reviews of port-forwards to the manager's pod: they name the user |
//! | `inject` | reviews of new pods: those that ask for an agent get one |
//! | `review` | what the API server asks, and what it is answered |
//! | `path` | paths that nobody else knows |
//! | `registration` | what the manager writes into its webhook configurations |
//!
//! API servers do not authenticate themselves to webhooks, unless their own configuration says so, and anybody in the
//! cluster can reach the port. So each path is a secret: the manager makes it up when it starts, and writes it where only the
//! API server and administrators read it. What comes by another path is answered with 404, and has no effect.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Body;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use crate::listen::Gate;
use crate::log_end;

pub mod identity;
pub mod inject;
mod path;
pub(crate) mod registration;
mod review;

use identity::IdentityHook;
use inject::InjectHook;

/// Connections at once. The API server opens one for each review; after a restart all clients show who they are at once.
const CONNECTIONS_MAX: usize = 256;

/// Those from one address: an API server is one, and may share it with others of its node.
const PER_ADDRESS_MAX: usize = CONNECTIONS_MAX / 2;

/// Longest life of a connection, TLS included: longer than the API server waits for an answer.
const CONNECTION_MAX: Duration = Duration::from_secs(10);

/// Most bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Most bytes of a review of a port-forward.
const REVIEW_BYTES_MAX: usize = 256 << 10;

/// Most bytes of a review of a pod: etcd takes objects of 1.5 MiB.
const POD_REVIEW_BYTES_MAX: usize = 2 << 20;

/// The hooks that are served.
#[derive(Debug, Default)]
pub struct Webhooks {
    /// Names the users of port-forwards.
    pub identity: Option<IdentityHook>,
    /// Puts agents into pods.
    pub inject: Option<InjectHook>,
}

/// The hook at a path.
#[derive(Clone, Copy)]
enum Hook<'a> {
    Identity(&'a IdentityHook),
    Inject(&'a InjectHook),
}

impl Webhooks {
    /// Answers one review: a body for the API server, or why there is none.
    ///
    /// # Errors
    /// The status of a refusal.
    pub async fn answer(&self, method: &Method, path: &str, body: &[u8]) -> Result<Vec<u8>, StatusCode> {
        let hook = self.at(path).ok_or(StatusCode::NOT_FOUND)?;
        if method != Method::POST {
            return Err(StatusCode::METHOD_NOT_ALLOWED);
        }
        let answer = match hook {
            Hook::Identity(hook) => hook.answer(body),
            Hook::Inject(hook) => hook.answer(body).await,
        };
        answer.ok_or(StatusCode::BAD_REQUEST)
    }

    fn at(&self, path: &str) -> Option<Hook<'_>> {
        let identity = self.identity.as_ref().filter(|hook| hook.is_at(path)).map(Hook::Identity);
        identity.or_else(|| self.inject.as_ref().filter(|hook| hook.is_at(path)).map(Hook::Inject))
    }
}

impl Hook<'_> {
    /// Most bytes of what it is asked.
    fn bytes_max(self) -> usize {
        match self {
            Self::Identity(_) => REVIEW_BYTES_MAX,
            Self::Inject(_) => POD_REVIEW_BYTES_MAX,
        }
    }
}

/// Serves the API server until it is dropped.
pub(crate) async fn run(hooks: Arc<Webhooks>, listener: TcpListener, tls: watch::Receiver<Option<Arc<ServerConfig>>>) {
    let gate = Gate::new(CONNECTIONS_MAX, PER_ADDRESS_MAX);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            waiting = gate.accept(&listener) => {
                let Some((socket, peer, turn)) = gate.admit(waiting).await else { continue };
                let Some(tls) = tls.borrow().clone() else { continue };
                let hooks = hooks.clone();
                connections.spawn(async move {
                    if timeout(CONNECTION_MAX, serve(&hooks, socket, tls)).await.is_err() {
                        tracing::debug!(%peer, "a connection to the webhooks took too long");
                    }
                    drop(turn);
                });
            }
            Some(ended) = connections.join_next() => log_end("webhook", ended),
        }
    }
}

async fn serve(hooks: &Arc<Webhooks>, socket: TcpStream, tls: Arc<ServerConfig>) {
    // What goes wrong here is the caller's to report; most callers that fail are not the API server.
    let Ok(tls) = TlsAcceptor::from(tls).accept(socket).await else { return };
    let service = service_fn(|request| async { Ok::<_, Infallible>(review(hooks, request).await) });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).keep_alive(false).max_buf_size(HEAD_BYTES_MAX);
    let _ = http.serve_connection(TokioIo::new(tls), service).await;
}

async fn review<B: Body>(hooks: &Webhooks, request: Request<B>) -> Response<Full<Bytes>>
where
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (head, body) = request.into_parts();
    // A body is read for nobody else.
    let answer = match hooks.at(head.uri.path()) {
        None => Err(StatusCode::NOT_FOUND),
        Some(hook) => match Limited::new(body, hook.bytes_max()).collect().await {
            Ok(body) => hooks.answer(&head.method, head.uri.path(), &body.to_bytes()).await,
            Err(_) => Err(StatusCode::PAYLOAD_TOO_LARGE),
        },
    };
    let mut response = Response::new(Full::default());
    match answer {
        Ok(json) => {
            *response.body_mut() = Full::new(json.into());
            let json = hyper::header::HeaderValue::from_static("application/json");
            response.headers_mut().insert(hyper::header::CONTENT_TYPE, json);
        }
        Err(status) => *response.status_mut() = status,
    }
    response
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::TlsConnector;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};

    use super::*;
    use crate::pki::Ca;

    const NAME: &str = "tp-manager.tp-system.svc";

    /// Sends one request over TLS, as the API server does, and returns the whole answer.
    async fn ask(ca: &Ca, address: std::net::SocketAddr, request: &[u8]) -> String {
        let mut roots = RootCertStore::empty();
        for der in CertificateDer::pem_slice_iter(ca.bundle_pem.as_bytes()) {
            roots.add(der.unwrap()).unwrap();
        }
        let client =
            ClientConfig::builder_with_provider(Arc::new(tokio_rustls::rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
        let socket = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from(NAME).unwrap();
        let mut tls = TlsConnector::from(Arc::new(client)).connect(name, socket).await.unwrap();
        tls.write_all(request).await.unwrap();
        let mut answer = String::new();
        // A server that refuses a body does not wait for its end.
        let _ = tls.read_to_string(&mut answer).await;
        answer
    }

    fn post(path: &str, length: usize, body: &str) -> Vec<u8> {
        format!("POST {path}?timeout=5s HTTP/1.1\r\nHost: {NAME}:7444\r\nContent-Length: {length}\r\n\r\n{body}").into()
    }

    #[tokio::test]
    async fn only_the_secret_path_is_answered_and_bodies_have_a_limit() {
        let ca = Ca::make(None, Timestamp::now()).unwrap();
        let config = ca.leaf(&[NAME.to_owned()], Timestamp::now()).unwrap();
        let (_tls, tls) = watch::channel(Some(Arc::new(config)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (hook, named) = identity::tests::hook();
        let path = hook.path().to_owned();
        let server = tokio::spawn(run(Arc::new(Webhooks { identity: Some(hook), inject: None }), listener, tls));
        let review = identity::tests::review().to_string();

        let forged = ask(&ca, address, &post("/identity", review.len(), &review)).await;
        assert!(forged.starts_with("HTTP/1.1 404 ") && forged.ends_with("\r\n\r\n"), "{forged}");
        let answer = ask(&ca, address, &post(&path, review.len(), &review)).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(r#""allowed":true"#), "{answer}");
        let endless = ask(&ca, address, &post(&path, REVIEW_BYTES_MAX + 1, &"x".repeat(REVIEW_BYTES_MAX + 1))).await;
        assert!(endless.starts_with("HTTP/1.1 413 "), "{endless}");
        let nonsense = ask(&ca, address, &post(&path, 2, "{}")).await;
        assert!(nonsense.starts_with("HTTP/1.1 400 "), "{nonsense}");
        let get = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(ask(&ca, address, get.as_bytes()).await.starts_with("HTTP/1.1 405 "));
        assert_eq!(named(), Some("ann".to_owned()));
        server.abort();
    }
}
