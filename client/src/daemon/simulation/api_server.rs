//! The API server and the kubelet behind it: port-forward in a WebSocket, `v4.channel.k8s.io`, to a manager of this process.

use std::io;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::client::{Body, ConfigExt};
use kube::{Client, Config};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;
use tp_manager::CLIENT_PORT;
use tp_manager::agents::Agents;
use tp_manager::config::{AgentPod, Engage};
use tp_manager::dial::Dialer;
use tp_manager::dns::Forwarder;
use tp_manager::engage::{Cluster, Engagements, Registry};
use tp_manager::identity::Identities;
use tp_manager::identity::rights::Rights;
use tp_manager::lane::{self, Services};
use tp_manager::policy::{Loopback, Policy};
use tp_manager::session::SessionLimits;
use tp_manager::session::hub::{FlowLimits, Hub};
use tp_manager::webhook::identity::IdentityHook;
use tp_protocol::control::ClusterInfo;

use super::way::{Random, Way};

/// Bytes that a socket's buffers hold.
const SOCKET_BYTES: usize = 128 << 10;

/// Bytes that the kubelet reads from a pod at once.
const READ_BYTES: usize = 32 << 10;

/// An API server at the end of a way.
#[derive(Clone)]
pub(super) struct ApiServer {
    way: Way,
    random: Arc<Mutex<Random>>,
    manager: Arc<Manager>,
}

/// The manager, and what would end if nobody held it.
struct Manager {
    services: Arc<Services>,
    /// What it wants to be asked before a port-forward. The user's name is `ann`.
    hook: Option<IdentityHook>,
    _info: watch::Sender<Result<Arc<ClusterInfo>, &'static str>>,
    _policy: watch::Sender<Arc<Policy>>,
}

impl ApiServer {
    /// The manager lets whoever connects do everything.
    pub(super) fn start(way: Way, random: Random) -> Self {
        Self::with(way, random, |_| None)
    }

    /// The manager of a cluster asks who connects, and `rights` what they may.
    pub(super) fn with_rights(way: Way, random: Random, rights: impl Rights, cluster: Client) -> Self {
        Self::with(way, random, |hub| Some((Identities::new(hub.clone(), rights), cluster)))
    }

    /// What the manager knows of engagements.
    pub(super) fn registry(&self) -> Registry {
        self.manager.services.engagements.registry.clone()
    }

    fn with(way: Way, random: Random, identities: impl FnOnce(&Hub) -> Option<(Identities, Client)>) -> Self {
        let info = ClusterInfo { cluster_domain: "cluster.local".into(), ..ClusterInfo::default() };
        let info = watch::Sender::new(Ok(Arc::new(info)));
        let policy = watch::Sender::new(Arc::new(Policy { loopback: Loopback::Dial, ..Policy::default() }));
        let dns = Arc::new(Forwarder::new(Vec::new(), Duration::from_secs(2), 64));
        let limits = SessionLimits { sessions: 4, lanes_per_session: 8, grace: Duration::from_secs(120) };
        let hub = Hub::new(limits, FlowLimits { flows: 64, pending_dials: 16 });
        let identities = identities(&hub);
        let hook = |it: &Identities| IdentityHook::new(it.clone(), "tp-system", "tp-manager-0");
        let hook = identities.as_ref().and_then(|(identities, _)| hook(identities));
        let cluster = identities.map(|(identities, client)| Cluster {
            client,
            namespace: "tp-system".to_owned(),
            config: Engage::default(),
            agent: AgentPod::default(),
            identities: Some(identities),
        });
        let services = Services {
            pod: "tp-manager-0".to_owned(),
            engagements: Engagements::new(Registry::new(hub.clone()), cluster),
            hub,
            dialer: Dialer::new(policy.subscribe(), dns.clone(), "cluster.local".to_owned(), Duration::from_secs(5)),
            dns,
            info: info.subscribe(),
            agents: Agents::new(8),
            udp_idle: Duration::from_secs(60),
            stopping: CancellationToken::new(),
        };
        let manager = Manager { services: Arc::new(services), hook, _info: info, _policy: policy };
        Self { way, random: Arc::new(Mutex::new(random)), manager: Arc::new(manager) }
    }

    /// A client whose connections are byte streams on the way.
    pub(super) fn client(&self) -> Client {
        let config = Config::new(Uri::from_static("http://api"));
        let connector = self.clone();
        let connect = tower::service_fn(move |_: Uri| {
            std::future::ready(Ok::<_, io::Error>(TokioIo::new(Socket(connector.accept()))))
        });
        let service = ServiceBuilder::new()
            .layer(config.base_uri_layer())
            .map_err(tower::BoxError::from)
            .service(legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(connect));
        Client::new(service, "default")
    }

    /// A new connection: returns the client's end.
    fn accept(&self) -> DuplexStream {
        let (client, near) = tokio::io::duplex(SOCKET_BYTES);
        let (far, server) = tokio::io::duplex(SOCKET_BYTES);
        let random = {
            let mut random = self.random.lock().expect("nobody panics with it");
            Random::new(random.below(u64::MAX))
        };
        tokio::spawn(self.way.join(random, near, far));
        let manager = self.manager.clone();
        tokio::spawn(async move {
            let serve = service_fn(move |request| {
                let manager = manager.clone();
                async move { Ok::<_, std::convert::Infallible>(upgrade(request, &manager)) }
            });
            // Cut anywhere, the client tells what it makes of it.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(server), serve)
                .with_upgrades()
                .await;
        });
        client
    }
}

/// Asks the manager's webhook about a port-forward, as the chart has it asked.
fn admit(manager: &Manager, port: u16) {
    let Some(hook) = manager.hook.as_ref().filter(|_| port != CLIENT_PORT) else { return };
    let review = serde_json::json!({"request": {
        "uid": "1", "operation": "CONNECT", "namespace": "tp-system", "name": "tp-manager-0",
        "resource": {"group": "", "version": "v1", "resource": "pods"}, "subResource": "portforward",
        "userInfo": {"username": "ann", "groups": ["system:authenticated"]},
        "object": {"ports": [port]},
    }});
    assert!(hook.answer(review.to_string().as_bytes()).is_some());
}

fn upgrade(request: Request<Incoming>, manager: &Manager) -> Response<Empty<Bytes>> {
    let port = request.uri().query().and_then(|query| query.strip_prefix("ports=")?.parse().ok());
    let port = port.expect("a port is asked for");
    admit(manager, port);
    let accept = derive_accept_key(request.headers()[SEC_WEBSOCKET_KEY].as_bytes());
    let services = manager.services.clone();
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        if port != CLIENT_PORT {
            let Ok(pod) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { return };
            return forward(socket, pod).await;
        }
        let (pod, port) = tokio::io::duplex(SOCKET_BYTES);
        let served = lane::serve(services, port);
        let _ = tokio::join!(served, forward(socket, pod));
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_ACCEPT, accept)
        .header(SEC_WEBSOCKET_PROTOCOL, "v4.channel.k8s.io")
        .body(Empty::new())
        .expect("the headers are valid")
}

/// The kubelet's part: a port of a pod as channel 0 of a WebSocket, until either ends.
async fn forward(socket: WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>, pod: impl AsyncRead + AsyncWrite + Unpin) {
    let (mut to_client, mut from_client) = socket.split();
    let (mut from_pod, mut to_pod) = tokio::io::split(pod);
    let down = async {
        for channel in [0, 1] {
            to_client.send(Message::binary(vec![channel, 0xe8, 0x1c])).await?;
        }
        loop {
            let mut message = vec![0; 1 + READ_BYTES];
            let len = from_pod.read(&mut message[1..]).await?;
            if len == 0 {
                return to_client.close().await;
            }
            message.truncate(1 + len);
            to_client.send(Message::binary(message)).await?;
        }
    };
    let up = async {
        while let Some(Ok(message)) = from_client.next().await {
            if let [0, data @ ..] = &message.into_data()[..]
                && to_pod.write_all(data).await.is_err()
            {
                return;
            }
        }
    };
    tokio::select! {
        _ = down => {}
        () = up => {}
    }
}

/// A connection of the client, for hyper.
struct Socket(DuplexStream);

impl Connection for Socket {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl tokio::io::AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
