//! A caller's connections to the app, to handlers and to listeners.

use std::collections::HashMap;
use std::error::Error;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::header::HOST;
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tp_protocol::engage::WhenAway;
use tp_protocol::engage::filter::Head;
use tp_protocol::error_class::ErrorClass;
use tp_protocol::open::OpenRefused;

use super::Cut;
use super::body::Outgoing;
use super::tasks::Tasks;
use crate::engine::destination::Destination;
use crate::engine::detect::Protocol;
use crate::engine::engagements::{Engaged, NotReached};
use crate::engine::limits;
use crate::engine::stream::Guarded;
use crate::engine::table::{Decision, Table};
use crate::engine::tap::Copy;
use crate::engine::tcp::ended;

/// To whom a request goes.
#[derive(Clone)]
pub(crate) enum Target {
    /// The app.
    App,
    /// The handler of an engagement, in the app's place.
    Handler(Arc<Engaged>),
    /// The handler of a wiretap.
    Listener(Arc<Engaged>),
}

/// A caller's connections, one per target and more where one is busy (HTTP/1).
pub(crate) struct Upstreams {
    app: Arc<dyn Destination>,
    protocol: Protocol,
    peer: SocketAddr,
    tasks: Tasks,
    app_left: Notify,
    /// `None` once the caller's connection has ended.
    slots: Mutex<Option<HashMap<Key, Slot>>>,
}

/// By whom a connection is known: the engagement's address, or `None` for the app.
type Key = Option<usize>;

/// The connection of a target. Locked while it is made, so that requests which come at once share it.
type Slot = Arc<tokio::sync::Mutex<Option<Sender>>>;

enum Sender {
    Http1(http1::SendRequest<Outgoing>),
    Http2(http2::SendRequest<Outgoing>),
}

/// A request was not answered.
enum Failed {
    /// It has not been sent; here it is again.
    NotSent(Box<Request<Outgoing>>, NotReached),
    /// Some of it may have been.
    Broken(hyper::Error),
}

impl Upstreams {
    pub(crate) fn new(app: Arc<dyn Destination>, protocol: Protocol, peer: SocketAddr, tasks: Tasks) -> Arc<Self> {
        let slots = Mutex::new(Some(HashMap::new()));
        Arc::new(Self { app, protocol, peer, tasks, app_left: Notify::new(), slots })
    }

    /// Sends a request to whoever it belongs to, and to the app when that is what its engagement wants.
    pub(crate) async fn answer(
        self: &Arc<Self>,
        mut decision: Decision,
        table: &watch::Receiver<Arc<Table>>,
        mut request: Request<Outgoing>,
    ) -> Result<(Response<Incoming>, Option<Arc<Engaged>>), Cut> {
        for _ in 0..limits::DECISIONS {
            let Some(taker) = decision.taker.clone() else {
                break;
            };
            match self.exchange(&Target::Handler(Arc::clone(&taker)), request).await {
                Ok(response) => {
                    taker.counters.taken.fetch_add(1, Ordering::Relaxed);
                    return Ok((response, Some(taker)));
                }
                Err(Failed::NotSent(_, NotReached::Refused(why))) => return Err(why.into()),
                Err(Failed::NotSent(unsent, NotReached::ServeFromApp)) => {
                    decision.taker = None;
                    request = *unsent;
                }
                Err(Failed::NotSent(unsent, NotReached::Ended)) => {
                    decision = table.borrow().of_request(Head::from(&*unsent));
                    request = *unsent;
                }
                Err(Failed::Broken(error)) => return Err(Cut::Broken(error)),
            }
        }
        match self.exchange(&Target::App, request).await {
            Ok(response) => Ok((response, None)),
            Err(Failed::NotSent(_, NotReached::Refused(why))) => Err(why.into()),
            Err(Failed::NotSent(_, NotReached::ServeFromApp | NotReached::Ended)) => {
                Err(OpenRefused::new(ErrorClass::Refused, "the app was not reached").into())
            }
            Err(Failed::Broken(error)) => Err(Cut::Broken(error)),
        }
    }

    /// Sends a copy to its listener, and throws the answer away.
    pub(crate) async fn send_copy(self: Arc<Self>, copy: Copy, head: Request<()>, is_empty: bool) {
        copy.send(async |engaged, body| {
            let request = head.map(|()| if is_empty { Outgoing::Empty } else { Outgoing::Copy(body) });
            let mut response = match self.exchange(&Target::Listener(engaged), request).await {
                Ok(response) => response,
                Err(Failed::NotSent(..)) => return Err(io::Error::from(io::ErrorKind::NotConnected)),
                Err(Failed::Broken(error)) => return Err(io::Error::other(error)),
            };
            while let Some(frame) = response.frame().await {
                frame.map_err(io::Error::other)?;
            }
            Ok(())
        })
        .await;
    }

    /// Resolves when the app has closed its HTTP/2 connection: it wants callers to go elsewhere.
    pub(crate) async fn app_has_left(&self) {
        self.app_left.notified().await;
    }

    /// The caller is gone: connections end when what is under way on them has.
    pub(crate) fn close(&self) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Sends a request, over a connection that is there if it can.
    ///
    /// A connection that was idle may have been closed by its other end just now. So a request of which nothing was sent
    /// is sent again on a new one, and so is one that has no body and may be repeated (RFC 9110 section 9.2.2).
    async fn exchange(
        self: &Arc<Self>,
        target: &Target,
        mut request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, Failed> {
        loop {
            let (mut sender, is_reused) = match self.sender(target).await {
                Ok(sender) => sender,
                Err(why) => return Err(Failed::NotSent(Box::new(request), why)),
            };
            let spare = if is_reused { spare(&request) } else { None };
            let mut error = match sender.send(request).await {
                Ok(response) => {
                    self.put_back(target, sender).await;
                    return Ok(response);
                }
                Err(error) => error,
            };
            request = match (error.take_message(), spare) {
                (Some(unsent), _) if is_reused => unsent,
                (Some(unsent), _) => return Err(Failed::NotSent(Box::new(unsent), target.on_unsent())),
                (None, Some(spare)) if has_closed(error.error()) => spare,
                (None, _) => return Err(Failed::Broken(error.into_error())),
            };
        }
    }

    /// A connection to a target, and whether it has been used before.
    async fn sender(self: &Arc<Self>, target: &Target) -> Result<(Sender, bool), NotReached> {
        let Some(slot) = self.slot(target) else {
            // A copy can be later than its caller.
            return Ok((self.open(target).await?, false));
        };
        let mut slot = slot.lock().await;
        match slot.take() {
            Some(Sender::Http1(mut sender)) => {
                if let Ok(Ok(())) = timeout(limits::REUSE, sender.ready()).await {
                    return Ok((Sender::Http1(sender), true));
                }
            }
            Some(Sender::Http2(sender)) if !sender.is_closed() => {
                *slot = Some(Sender::Http2(sender.clone()));
                return Ok((Sender::Http2(sender), true));
            }
            Some(Sender::Http2(_)) | None => {}
        }
        let sender = self.open(target).await?;
        if let Sender::Http2(sender) = &sender {
            *slot = Some(Sender::Http2(sender.clone()));
        }
        Ok((sender, false))
    }

    async fn put_back(&self, target: &Target, sender: Sender) {
        if target.engaged().is_some_and(|engaged| engaged.ended.is_cancelled()) {
            return;
        }
        if let (Sender::Http1(_), Some(slot)) = (&sender, self.slot(target)) {
            *slot.lock().await = Some(sender);
        }
    }

    fn slot(&self, target: &Target) -> Option<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.as_mut().map(|slots| Arc::clone(slots.entry(target.key()).or_default()))
    }

    /// Makes a connection.
    async fn open(self: &Arc<Self>, target: &Target) -> Result<Sender, NotReached> {
        let stream = match target {
            Target::App => self.app.connect(self.peer).await.map_err(NotReached::Refused),
            Target::Handler(engaged) => engaged.connect(self.peer).await,
            Target::Listener(engaged) => engaged.connect_listener(self.peer).await.map_err(NotReached::Refused),
        }?;
        let io = TokioIo::new(Guarded::new(stream));
        let not_http = |error: hyper::Error| {
            NotReached::Refused(OpenRefused::new(ErrorClass::Reset, format!("no HTTP there: {error}")))
        };
        let (this, of) = (Arc::clone(self), target.clone());
        if self.protocol == Protocol::Http2 {
            let (sender, connection) = http2(self.tasks.clone()).handshake(io).await.map_err(not_http)?;
            self.tasks.spawn(async move { this.run(of, connection).await });
            Ok(Sender::Http2(sender))
        } else {
            let (sender, connection) = http1().handshake(io).await.map_err(not_http)?;
            self.tasks.spawn(async move { this.run(of, connection.with_upgrades()).await });
            Ok(Sender::Http1(sender))
        }
    }

    /// Runs a connection to its end. It is not used again once its engagement has ended.
    async fn run(self: Arc<Self>, target: Target, connection: impl Future<Output = hyper::Result<()>>) {
        let mut connection = pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = ended(target.engaged()) => {
                if let Some(slots) = &mut *self.slots.lock().unwrap_or_else(PoisonError::into_inner) {
                    slots.remove(&target.key());
                }
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "a connection of a caller was cut off");
        }
        if matches!(target, Target::App) {
            self.app_left.notify_one();
        }
    }
}

impl Target {
    fn engaged(&self) -> Option<&Engaged> {
        match self {
            Self::App => None,
            Self::Handler(engaged) | Self::Listener(engaged) => Some(engaged),
        }
    }

    fn key(&self) -> Key {
        self.engaged().map(|engaged| std::ptr::from_ref(engaged).addr())
    }

    /// What it means that a new connection was closed before it took the request.
    fn on_unsent(&self) -> NotReached {
        match self {
            Self::Handler(engaged) if engaged.spec.when_away == WhenAway::Cluster => {
                engaged.counters.fallen_back.fetch_add(1, Ordering::Relaxed);
                NotReached::ServeFromApp
            }
            Self::App | Self::Handler(_) | Self::Listener(_) => {
                NotReached::Refused(OpenRefused::new(ErrorClass::Reset, "the connection was closed at once"))
            }
        }
    }
}

impl Sender {
    async fn send(
        &mut self,
        mut request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Outgoing>>> {
        match self {
            Self::Http1(sender) => sender.try_send_request(request).await,
            Self::Http2(sender) => {
                name_authority(&mut request);
                sender.try_send_request(request).await
            }
        }
    }
}

/// Gives an HTTP/2 request that names its host by `host` alone the `:authority` that says the same, which the library
/// wants (RFC 9113 section 8.3.1 allows either).
fn name_authority(request: &mut Request<Outgoing>) {
    if request.uri().authority().is_some() {
        return;
    }
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    if let Ok(uri) = Uri::builder().scheme("http").authority(host).path_and_query(path).build() {
        *request.uri_mut() = uri;
    }
}

/// The same request again, where it has no body and may be repeated.
fn spare(request: &Request<Outgoing>) -> Option<Request<Outgoing>> {
    if !request.method().is_idempotent() || !request.body().is_end_stream() {
        return None;
    }
    let mut spare = Request::new(Outgoing::Empty);
    *spare.method_mut() = request.method().clone();
    *spare.uri_mut() = request.uri().clone();
    *spare.version_mut() = request.version();
    *spare.headers_mut() = request.headers().clone();
    *spare.extensions_mut() = request.extensions().clone();
    Some(spare)
}

/// Whether the other end has closed the connection instead of answering.
fn has_closed(error: &hyper::Error) -> bool {
    let by_system = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    error.is_incomplete_message()
        || error.is_canceled()
        || error.is_closed()
        || by_system.is_some_and(|error| ErrorClass::of_io(error) == ErrorClass::Reset)
}

fn http1() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.max_buf_size(limits::HTTP1_BUFFER_BYTES)
        .max_headers(limits::HEADERS)
        .preserve_header_case(true)
        .allow_obsolete_multiline_headers_in_responses(true);
    http
}

fn http2(tasks: Tasks) -> http2::Builder<Tasks> {
    let mut http = http2::Builder::new(tasks);
    http.initial_stream_window_size(limits::HTTP2_STREAM_WINDOW)
        .initial_connection_window_size(limits::HTTP2_CONNECTION_WINDOW)
        .max_header_list_size(limits::HEAD_BYTES as u32)
        .max_send_buf_size(limits::HTTP2_SEND_BYTES)
        .max_concurrent_reset_streams(limits::HTTP2_RESETS);
    http
}
