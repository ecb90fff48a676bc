//! The agents' door: TLS on a real port, with a double of the API server's token review.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};
use tokio_util::sync::CancellationToken;
use tp_manager::agents::Agents;
use tp_manager::agents::listener::{self, AgentServices};
use tp_manager::agents::review::{ReviewError, Reviewed, Reviewer};
use tp_manager::engage::Registry;
use tp_manager::pki::Ca;
use tp_manager::session::SessionLimits;
use tp_manager::session::hub::{FlowLimits, Hub};
use tp_protocol::control::{FromManager, from_manager};
use tp_protocol::error_class::ErrorClass;
use tp_protocol::hello::{AgentIdentity, ClientHello, RefusalCode};
use tp_protocol::open::{Open, Transport};
use tp_tunnel::client::{self, Connected};
use tp_tunnel::error::{FlowOpenError, LaneError};

use crate::stage::soon;

const NAME: &str = "tp-manager.tp-system.svc";

/// Takes the token `of:NAMESPACE/POD` for that pod's.
struct Double;

impl Reviewer for Double {
    fn review(&self, token: String) -> BoxFuture<'_, Result<Option<Reviewed>, ReviewError>> {
        let pod = token.strip_prefix("of:").and_then(|pod| pod.split_once('/'));
        let reviewed =
            pod.map(|(namespace, pod)| Reviewed { namespace: namespace.into(), pod: pod.into(), pod_uid: "u".into() });
        std::future::ready(Ok(reviewed)).boxed()
    }
}

struct Door {
    address: SocketAddr,
    agents: Agents,
    stopping: CancellationToken,
    tls: Arc<ClientConfig>,
    server: JoinHandle<()>,
    _tls_tx: watch::Sender<Option<Arc<tokio_rustls::rustls::ServerConfig>>>,
}

impl Door {
    async fn open() -> Self {
        let ca = Ca::make(None, Timestamp::now()).unwrap();
        let leaf = ca.leaf(&[NAME.to_owned()], Timestamp::now()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.bundle_pem.as_bytes()).unwrap()).unwrap();
        let tls = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (agents, stopping) = (Agents::new(8), CancellationToken::new());
        let limits = SessionLimits { sessions: 1, lanes_per_session: 1, grace: Duration::from_secs(120) };
        let services = AgentServices {
            pod: "tp-manager-0".into(),
            agents: agents.clone(),
            engagements: Registry::new(Hub::new(limits, FlowLimits { flows: 1, pending_dials: 1 })),
            reviewer: Double,
            handshake: Duration::from_millis(500),
            stopping: stopping.clone(),
        };
        let address = listener.local_addr().unwrap();
        let (tls_tx, tls_rx) = watch::channel(Some(Arc::new(leaf)));
        let server = tokio::spawn(listener::run(Arc::new(services), listener, tls_rx, 64));
        Self { address, agents, stopping, tls: Arc::new(tls), server, _tls_tx: tls_tx }
    }

    async fn tls(&self) -> TlsStream<TcpStream> {
        let socket = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from(NAME).unwrap();
        soon(TlsConnector::from(self.tls.clone()).connect(name, socket)).await.unwrap()
    }

    async fn connect(&self, pod: &str, token: &str) -> Result<Connected, LaneError> {
        let agent = AgentIdentity { namespace: "shop".into(), pod: pod.into(), token: token.into() };
        let hello = ClientHello { agent: Some(agent), ..ClientHello::new("0.1.0", "shop/web-1") };
        soon(client::connect(self.tls().await, &hello)).await
    }

    fn pods(&self) -> Vec<String> {
        self.agents.watch().borrow().to_message().agents.into_iter().map(|agent| agent.pod).collect()
    }
}

#[tokio::test]
async fn an_agent_is_registered_while_it_is_connected() {
    let door = Door::open().await;
    let connected = door.connect("web-1", "of:shop/web-1").await.unwrap();
    assert_eq!(connected.welcome.manager_pod, "tp-manager-0");
    assert_eq!(door.pods(), ["web-1"]);
    let mut list = door.agents.watch();
    list.mark_unchanged();
    drop(connected);
    soon(list.changed()).await.unwrap();
    assert!(door.pods().is_empty());
}

#[tokio::test]
async fn tokens_of_others_and_invalid_ones_are_refused() {
    let door = Door::open().await;
    for token in ["of:shop/web-2", "of:bank/web-1", "stolen", ""] {
        match door.connect("web-1", token).await {
            Err(LaneError::Refused(refusal)) => assert_eq!(refusal.code(), RefusalCode::Unauthenticated),
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("token {token} was taken"),
        }
    }
    let client = ClientHello::new("0.1.0", "demo");
    match soon(client::connect(door.tls().await, &client)).await {
        Err(LaneError::Refused(refusal)) => assert_eq!(refusal.code(), RefusalCode::WrongRole),
        other => panic!("a client came in through the agents' door: {}", other.is_ok()),
    }
    assert!(door.pods().is_empty());
}

#[tokio::test]
async fn an_agent_cannot_dial_through_the_manager() {
    let door = Door::open().await;
    let Connected { lane, driver, .. } = door.connect("web-1", "of:shop/web-1").await.unwrap();
    let driver = tokio::spawn(driver);
    match soon(lane.open(&Open::new(Transport::Tcp, ([10, 96, 0, 1], 443).into()))).await {
        Err(FlowOpenError::Refused(refused)) => assert_eq!(refused.class, ErrorClass::Denied),
        other => panic!("expected a refusal, got {other:?}"),
    }
    assert!(soon(lane.resolve(vec![0; 12].into())).await.is_err());
    driver.abort();
}

#[tokio::test]
async fn a_stopping_manager_says_goodbye_to_agents() {
    let door = Door::open().await;
    let Connected { lane, driver, .. } = door.connect("web-1", "of:shop/web-1").await.unwrap();
    let driver = tokio::spawn(driver);
    let (sender, mut receiver) = soon(lane.control()).await.unwrap().split();
    door.stopping.cancel();
    let message = soon(receiver.recv::<FromManager>()).await.unwrap().unwrap();
    assert!(matches!(message.kind, Some(from_manager::Kind::Goodbye(_))), "{message:?}");
    drop((sender, receiver, lane));
    soon(door.server).await.unwrap();
    driver.abort();
}

#[tokio::test]
async fn silent_connections_are_cut_and_one_address_cannot_take_all_places() {
    let door = Door::open().await;
    let mut silent = Vec::new();
    for _ in 0..32 {
        silent.push(TcpStream::connect(door.address).await.unwrap());
    }
    // Those over the address's share are closed at once, the others when the handshake takes too long.
    let started = std::time::Instant::now();
    for (index, socket) in silent.iter_mut().enumerate().rev() {
        assert_eq!(soon(socket.read(&mut [0; 16])).await.unwrap_or(0), 0);
        if index == 8 {
            assert!(started.elapsed() < Duration::from_millis(400), "{:?}", started.elapsed());
        }
    }
    door.connect("web-1", "of:shop/web-1").await.unwrap();
}
