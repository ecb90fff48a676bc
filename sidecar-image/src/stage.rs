//! For tests: the whole agent, beside a manager that does what a test tells it.

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::version::TLS13;
use tokio_util::sync::CancellationToken;
use tp_protocol::control::from_manager::Kind as From;
use tp_protocol::control::to_manager::Kind as To;
use tp_protocol::control::{FromManager, ToManager};
use tp_protocol::engage::EngagementId;
use tp_protocol::engage::call::{AgentState, Orders};
use tp_protocol::engage::reach::Arrival;
use tp_protocol::hello::Welcome;
use tp_tunnel::control::{Control, ControlReceiver, ControlSender};
use tp_tunnel::server::{self, Acceptor, Incoming, LaneServer, Pending, Responder};

use crate::config::{Config, LogFormat, ManagerAddress};
use crate::{health, run};

/// A place for a manager, and the agent's files.
pub(crate) struct Stage {
    pub(crate) listener: TcpListener,
    pub(crate) acceptor: TlsAcceptor,
    pub(crate) config: Config,
    /// Tells the agent to stop.
    pub(crate) stop: CancellationToken,
    _files: TempDir,
}

/// A manager with which the agent is registered.
pub(crate) struct Manager {
    sender: ControlSender,
    receiver: ControlReceiver,
    /// Connections that the agent brings.
    reached: mpsc::Receiver<Reached>,
    /// Streams on which the agent waits for what it is to dial.
    diallers: mpsc::Receiver<Acceptor>,
    lane: JoinHandle<()>,
}

/// Longest that a test takes: what it waits for does not come.
const PLAY_MAX: Duration = Duration::from_secs(30);

/// A connection that the agent brings.
pub(crate) type Reached = (EngagementId, Arrival, Responder);

impl Stage {
    /// `localhost` resolves without a name server.
    pub(crate) async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let files = TempDir::new().unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        std::fs::write(files.path().join("ca.crt"), made.cert.pem()).unwrap();
        std::fs::write(files.path().join("token"), "the-token\n").unwrap();
        let config = Config {
            manager: ManagerAddress { host: "localhost".into(), port: listener.local_addr().unwrap().port() },
            ca_file: files.path().join("ca.crt"),
            token_file: files.path().join("token"),
            pod: "web-1".into(),
            namespace: "shop".into(),
            container: "web".into(),
            own_ports: Vec::new(),
            health_port: free_port().await,
            log_filter: "info".parse().unwrap(),
            log_format: LogFormat::Text,
        };
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        Self { listener, acceptor, config, stop: CancellationToken::new(), _files: files }
    }

    pub(crate) async fn accept(&self) -> Pending {
        let (socket, _) = self.listener.accept().await.unwrap();
        server::accept(self.acceptor.accept(socket).await.unwrap()).await.unwrap()
    }

    /// Lets the agent in and waits for its control channel.
    pub(crate) async fn welcome(&self) -> (LaneServer, Control) {
        let pending = self.accept().await;
        let mut lane = pending.welcome(Welcome { version: 1, ..Welcome::default() }).await.unwrap();
        match lane.next().await {
            Some(Ok(Incoming::Control(control))) => (lane, control),
            other => panic!("expected the control channel, got {other:?}"),
        }
    }

    /// As [`Self::welcome`], and keeps the lane moving.
    pub(crate) async fn manager(&self) -> Manager {
        let (mut lane, control) = self.welcome().await;
        let (sender, receiver) = control.split();
        let (reached_tx, reached) = mpsc::channel(64);
        let (diallers_tx, diallers) = mpsc::channel(64);
        let lane = tokio::spawn(async move {
            while let Some(Ok(incoming)) = lane.next().await {
                match incoming {
                    Incoming::Reach(id, arrival, responder) => reached_tx.send((id, arrival, responder)).await.unwrap(),
                    Incoming::Dial(acceptor) => diallers_tx.send(acceptor).await.unwrap(),
                    other => panic!("agents have no use for {other:?}"),
                }
            }
        });
        Manager { sender, receiver, reached, diallers, lane }
    }

    /// Runs the agent.
    pub(crate) async fn agent(&self) {
        let probes = health::bind(self.config.health_port).unwrap();
        run::work(&self.config, probes, &self.stop, Duration::ZERO).await.unwrap();
    }

    /// Runs the agent beside the test's `manager`.
    pub(crate) async fn play<T>(&self, manager: impl Future<Output = T>) -> T {
        tokio::select! {
            () = self.agent() => panic!("the agent ended"),
            done = timeout(PLAY_MAX, manager) => done.expect("it takes too long"),
        }
    }
}

impl Manager {
    /// Gives orders, and returns what the agent says of them.
    pub(crate) async fn order(&mut self, orders: Orders) -> AgentState {
        let number = orders.number;
        self.sender.send(&FromManager::from(From::Orders(orders))).await.unwrap();
        loop {
            let state = self.state().await;
            if state.number == number {
                return state;
            }
        }
    }

    /// What the agent says next of its orders.
    pub(crate) async fn state(&mut self) -> AgentState {
        match self.message().await {
            To::AgentState(state) => state,
            other => panic!("expected a state, got {other:?}"),
        }
    }

    pub(crate) async fn message(&mut self) -> To {
        self.receiver.recv::<ToManager>().await.unwrap().unwrap().kind.unwrap()
    }

    pub(crate) async fn say(&mut self, kind: From) {
        self.sender.send(&FromManager::from(kind)).await.unwrap();
    }

    /// The connection that the agent brings next.
    pub(crate) async fn reached(&mut self) -> Reached {
        self.reached.recv().await.unwrap()
    }

    /// The next stream on which the agent waits for what it is to dial.
    pub(crate) async fn dialler(&mut self) -> Acceptor {
        self.diallers.recv().await.unwrap()
    }

    /// Is gone from one moment to the next.
    pub(crate) fn vanish(self) {
        self.lane.abort();
    }
}

/// Moves a lane's bytes while waiting for something on it.
pub(crate) async fn drive<T>(lane: &mut LaneServer, wait: impl Future<Output = T>) -> T {
    let mut wait = std::pin::pin!(wait);
    loop {
        tokio::select! {
            done = &mut wait => return done,
            next = lane.next() => assert!(next.is_some_and(|next| next.is_ok()), "the lane ended"),
        }
    }
}

/// A port where nothing listens, for TCP.
pub(crate) async fn free_port() -> u16 {
    TcpListener::bind("0.0.0.0:0").await.unwrap().local_addr().unwrap().port()
}
