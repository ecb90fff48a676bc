//! An engine with one port, and clients of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tp_agent::engine::destination::{App, Destination};
use tp_agent::engine::engagements::{Engagements, Report};
use tp_agent::engine::{AppProtocol, Engine, Port};
use tp_protocol::engage::filter::Filter;
use tp_protocol::engage::{Engagement, EngagementId, Kind, WhenAway};
use tp_protocol::open::Transport;

/// The container's port.
pub(crate) const PORT: u16 = 8080;

/// A running engine.
pub(crate) struct Bed {
    pub(crate) address: SocketAddr,
    pub(crate) engagements: Engagements,
    pub(crate) stop: CancellationToken,
    pub(crate) engine: JoinHandle<()>,
}

impl Bed {
    /// An engine in front of an app, about whose protocol nothing is known.
    pub(crate) fn new(app: SocketAddr) -> Self {
        Self::with(app, Transport::Tcp, AppProtocol::Unknown)
    }

    pub(crate) fn with(app: SocketAddr, transport: Transport, protocol: AppProtocol) -> Self {
        let listen = "127.0.0.1:0".parse().unwrap();
        let engine = Engine::bind(vec![Port { listen, number: PORT, transport, protocol, app: at(app) }]).unwrap();
        let address = engine.local_addrs().unwrap()[0];
        let engagements = engine.engagements();
        let stop = CancellationToken::new();
        let engine = tokio::spawn(engine.run(stop.clone()));
        Self { address, engagements, stop, engine }
    }

    pub(crate) fn set(&self, wanted: Vec<(Engagement, SocketAddr)>) {
        let wanted = wanted.into_iter().map(|(engagement, handler)| (engagement, at(handler))).collect();
        assert_eq!(self.engagements.set(wanted), []);
    }

    pub(crate) fn report(&self) -> Report {
        self.engagements.report().remove(0)
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// An HTTP/1 connection.
    pub(crate) async fn http1<B>(&self) -> http1::SendRequest<B>
    where
        B: Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + 'static,
    {
        let (sender, connection) = http1::handshake(TokioIo::new(self.connect().await)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }

    /// An HTTP/2 connection, with prior knowledge.
    pub(crate) async fn http2<B>(&self) -> http2::SendRequest<B>
    where
        B: Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + Unpin + 'static,
    {
        let io = TokioIo::new(self.connect().await);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    /// Sends bytes on a connection of their own, and returns all that comes back.
    pub(crate) async fn ask(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// As [`Self::ask`], and ends its own direction before it listens.
    pub(crate) async fn say(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

pub(crate) fn at(address: SocketAddr) -> Arc<dyn Destination> {
    Arc::new(App::new(vec![address]))
}

/// An intercept of the requests with these headers; of everything without any.
pub(crate) fn intercept(id: &str, headers: &[&str]) -> Engagement {
    Engagement {
        id: EngagementId::new(id).unwrap(),
        kind: Kind::Intercept,
        port: PORT,
        transport: Transport::Tcp,
        filter: Filter::new(headers.iter().map(|rule| rule.parse().unwrap()).collect(), vec![], vec![]).unwrap(),
        when_away: WhenAway::Fail,
        wait: Duration::ZERO,
        plaintext: false,
    }
}

pub(crate) fn wiretap(id: &str, headers: &[&str]) -> Engagement {
    Engagement { kind: Kind::Wiretap, ..intercept(id, headers) }
}

/// An address where nothing listens.
pub(crate) async fn nowhere() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// A request without a body, of the user of a header.
pub(crate) fn get(path: &str, user: &str) -> Request<Full<Bytes>> {
    send(path, user, Bytes::new())
}

/// A request with a body.
pub(crate) fn send(path: &str, user: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let body = body.into();
    let method = if body.is_empty() { "GET" } else { "POST" };
    let uri = format!("http://web.shop{path}");
    let request = Request::builder().method(method).uri(uri).header("host", "web.shop").header("x-user", user);
    request.body(Full::new(body)).unwrap()
}

/// The body of an answer, as text.
pub(crate) async fn text(response: Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}
