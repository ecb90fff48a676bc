//! HTTP connections: each request goes where it belongs, whatever the one before it did.
//!
//! A caller's connection has connections of its own to the app and to handlers, of the same version of HTTP, made when they
//! are needed and used again. So what an app ties to a connection stays true, and one caller never waits for another.
//!
//! What goes wrong looks to the caller as it would without the engine between: an app that is not there or cuts the
//! connection off resets the caller's connection (HTTP/1) or the request's stream (HTTP/2, `REFUSED_STREAM` where nothing
//! was sent). The engine makes up no answers but those to malformed requests, with which HTTP/1 ends connections (400,
//! 431).
//!
//! A caller that goes away takes its requests with it, and the app sees them cut off. With HTTP/1 this includes one that only
//! ends its own direction, as with most proxies: the two cannot be told apart before it is too late.
//!
//! Not relayed: interim responses other than `100 Continue`, and those neither in HTTP/2; the change to HTTP/2 within a
//! connection (`Upgrade: h2c`), so that each request can still be seen; and extended CONNECT (RFC 8441), which is not
//! offered. A wiretap gets no copy of requests that ask for an upgrade.

mod body;
mod headers;
mod tasks;
mod tunnel;
mod upstream;

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;

use hyper::body::{Body, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;
use tp_protocol::engage::filter::Head;
use tp_protocol::open::OpenRefused;

use super::detect::Protocol;
use super::limits;
use super::stream::{Guarded, HeadWatch};
use super::table::Decision;
use super::tap::Copies;
use super::tcp::Port;
use body::{CallerBody, Gate, Outgoing, ResponseBody};
use tasks::{TaskOwner, Tasks};
use upstream::Upstreams;

/// The caller is cut off: its connection is reset, or its stream.
#[derive(Debug)]
pub(crate) enum Cut {
    /// Nobody could be reached, and nothing was sent.
    Refused(OpenRefused, h2::Error),
    /// Who was reached has cut it off.
    Broken(hyper::Error),
}

impl From<OpenRefused> for Cut {
    fn from(why: OpenRefused) -> Self {
        Self::Refused(why, h2::Reason::REFUSED_STREAM.into())
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(why, _) => write!(f, "{why}"),
            Self::Broken(error) => write!(f, "{error}"),
        }
    }
}

impl Error for Cut {
    /// Has the reason by which HTTP/2 resets the caller's stream.
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Refused(_, reason) => Some(reason),
            Self::Broken(error) => Some(error),
        }
    }
}

/// One caller's connection.
struct Connection {
    port: Arc<Port>,
    protocol: Protocol,
    heads: Arc<HeadWatch>,
    upstreams: Arc<Upstreams>,
    tasks: Tasks,
}

/// Serves a caller's connection to its end.
///
/// # Errors
/// When it has been cut off.
pub(crate) async fn serve(
    port: Arc<Port>,
    mut caller: Guarded,
    protocol: Protocol,
    peer: SocketAddr,
    stop: CancellationToken,
) -> io::Result<()> {
    let owner = TaskOwner::default();
    let tasks = owner.tasks();
    let upstreams = Upstreams::new(Arc::clone(&port.app), protocol, peer, tasks.clone());
    let heads = Arc::<HeadWatch>::default();
    if protocol == Protocol::Http1 {
        caller.watch_heads(Arc::clone(&heads));
    }
    let connection = Connection { port, protocol, heads, upstreams: Arc::clone(&upstreams), tasks: tasks.clone() };
    let connection = Arc::new(connection);
    let service = service_fn(move |request| Arc::clone(&connection).respond(request));
    let io = TokioIo::new(caller);
    let served = if protocol == Protocol::Http2 {
        let leave = async {
            tokio::select! {
                () = stop.cancelled() => {}
                () = upstreams.app_has_left() => {}
            }
        };
        drive(http2(tasks).serve_connection(io, service), |connection| connection.graceful_shutdown(), leave).await
    } else {
        let connection = http1().serve_connection(io, service).with_upgrades();
        drive(connection, |connection| connection.graceful_shutdown(), stop.cancelled()).await
    };
    served.map_err(io::Error::other)?;
    upstreams.close();
    owner.finish().await;
    Ok(())
}

/// Runs a connection to its end, and tells the caller to go elsewhere when `leave` says so.
async fn drive<C: Future<Output = hyper::Result<()>>>(
    connection: C,
    say_goodbye: impl FnOnce(Pin<&mut C>),
    leave: impl Future<Output = ()>,
) -> hyper::Result<()> {
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = leave => say_goodbye(connection.as_mut()),
    }
    connection.await
}

fn http1() -> http1::Builder {
    let mut http = http1::Builder::new();
    // The head's time is limited by `HeadWatch`: this one would also end connections that are idle.
    http.header_read_timeout(None)
        .max_buf_size(limits::HTTP1_BUFFER_BYTES)
        .max_headers(limits::HEADERS)
        .preserve_header_case(true)
        .auto_date_header(false);
    http
}

fn http2(tasks: Tasks) -> http2::Builder<Tasks> {
    let mut http = http2::Builder::new(tasks);
    http.max_concurrent_streams(limits::HTTP2_STREAMS)
        .initial_stream_window_size(limits::HTTP2_STREAM_WINDOW)
        .initial_connection_window_size(limits::HTTP2_CONNECTION_WINDOW)
        .max_header_list_size(limits::HEAD_BYTES as u32)
        .max_send_buf_size(limits::HTTP2_SEND_BYTES)
        .max_pending_accept_reset_streams(limits::HTTP2_RESETS)
        .auto_date_header(false);
    http
}

impl Connection {
    /// Answers one request.
    async fn respond(self: Arc<Self>, mut request: Request<Incoming>) -> Result<Response<ResponseBody>, Cut> {
        let message = Arc::new(self.heads.on_head());
        let decision = self.port.table.borrow().of_request(Head::from(&request));
        let asks_upgrade = headers::clean_request(request.headers_mut(), self.protocol);
        let caller_side = request.extensions_mut().remove::<OnUpgrade>();
        let caller_side = caller_side.filter(|_| asks_upgrade || request.method() == Method::CONNECT);
        let copies = if caller_side.is_none() { self.copy(&decision, &request) } else { Copies::default() };
        let gate = (self.protocol == Protocol::Http1).then(|| Gate::of(&mut request)).flatten();
        let (gate, verdict) = gate.unzip();
        let request =
            request.map(|incoming| Outgoing::Caller(CallerBody::new(incoming, gate, copies, Arc::clone(&message))));

        let method = request.method().clone();
        let answer = self.upstreams.answer(decision, &self.port.table, request).await;
        let (mut response, taker) = answer.inspect_err(|cut| tracing::debug!(%cut, "a request is cut off"))?;
        headers::clean_response(&mut response, self.protocol, taker.is_none());
        if verdict.is_some_and(|verdict| !verdict.on_response(response.status())) {
            headers::close(response.headers_mut());
        }
        let becomes_tunnel = response.status() == StatusCode::SWITCHING_PROTOCOLS
            || method == Method::CONNECT && response.status().is_success();
        if let Some(caller_side) = caller_side.filter(|_| becomes_tunnel) {
            let server_side = hyper::upgrade::on(&mut response);
            // What comes from now on is no head of another request.
            self.tasks.spawn(tunnel::join(caller_side, server_side, taker, message));
            return Ok(response.map(|incoming| ResponseBody::new(incoming, None)));
        }
        Ok(response.map(|incoming| ResponseBody::new(incoming, Some(message))))
    }

    /// Begins the copies of a request.
    fn copy(&self, decision: &Decision, request: &Request<Incoming>) -> Copies {
        let mut copies = Copies::default();
        for copy in decision.taps.iter().filter_map(|engaged| copies.begin(engaged)) {
            let mut head = Request::new(());
            *head.method_mut() = request.method().clone();
            *head.uri_mut() = request.uri().clone();
            *head.version_mut() = request.version();
            *head.headers_mut() = request.headers().clone();
            *head.extensions_mut() = request.extensions().clone();
            let upstreams = Arc::clone(&self.upstreams);
            self.tasks.spawn(upstreams.send_copy(copy, head, request.body().is_end_stream()));
        }
        copies
    }
}
