//! What the tests play on: a manager without Kubernetes, and clients that connect to it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
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
use tp_manager::webhook::Webhooks;
use tp_manager::webhook::identity::IdentityHook;
use tp_protocol::control::ClusterInfo;
use tp_protocol::hello::{ClientHello, SessionKey, Welcome};
use tp_tunnel::carrier::{CarrierState, LaneHandle};
use tp_tunnel::client::{self, Connected, Lane};
use tp_tunnel::error::LaneError;

/// Bytes in flight on a pipe.
const PIPE_BYTES: usize = 256 << 10;

/// Longest that anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A UDP association of the stage ends after this long without datagrams.
pub(crate) const UDP_IDLE: Duration = Duration::from_millis(300);

/// Flows that a session of the stage may have.
pub(crate) const FLOWS_MAX: usize = 16;

/// A manager without Kubernetes.
pub(crate) struct Stage {
    pub(crate) services: Arc<Services>,
    info: watch::Sender<Result<Arc<ClusterInfo>, &'static str>>,
    pub(crate) policy: watch::Sender<Arc<Policy>>,
    pub(crate) stopping: CancellationToken,
    /// Lanes, drivers and servers. They end with the stage.
    tasks: JoinSet<()>,
}

/// A client that was let in.
pub(crate) struct Client {
    pub(crate) welcome: Welcome,
    pub(crate) lane: Lane,
    pub(crate) handle: LaneHandle,
}

impl Stage {
    /// Dials the loopback, and has no nameserver.
    pub(crate) fn new() -> Self {
        Self::with_nameservers(Vec::new())
    }

    /// Engages workloads in a cluster that has none, for those who have the right to; also returns what the API server calls.
    pub(crate) fn with_rights(rights: impl Rights) -> (Self, Webhooks) {
        let mut hook = None;
        let stage = Self::build(Vec::new(), |hub| {
            let identities = Identities::new(hub.clone(), rights);
            hook = IdentityHook::new(identities.clone(), "tp-system", "tp-manager-0");
            Some(Cluster {
                client: empty_cluster(),
                namespace: "tp-system".to_owned(),
                config: Engage::default(),
                agent: AgentPod::default(),
                identities: Some(identities),
            })
        });
        (stage, Webhooks { identity: hook, inject: None })
    }

    /// Has a nameserver that knows `web.shop.svc.cluster.local` (loopback) and `bad.` (a metadata address).
    pub(crate) async fn with_dns() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut stage = Self::with_nameservers(vec![socket.local_addr().unwrap()]);
        stage.tasks.spawn(answer_names(socket));
        stage
    }

    fn with_nameservers(nameservers: Vec<SocketAddr>) -> Self {
        Self::build(nameservers, |_| None)
    }

    fn build(nameservers: Vec<SocketAddr>, cluster: impl FnOnce(&Hub) -> Option<Cluster>) -> Self {
        let info = watch::Sender::new(Err("cluster"));
        let policy = watch::Sender::new(Arc::new(Policy { loopback: Loopback::Dial, ..Policy::default() }));
        let stopping = CancellationToken::new();
        let dns = Arc::new(Forwarder::new(nameservers, Duration::from_secs(2), 64));
        let limits = SessionLimits { sessions: 4, lanes_per_session: 3, grace: Duration::from_secs(120) };
        let domain = "cluster.local".to_owned();
        let hub = Hub::new(limits, FlowLimits { flows: FLOWS_MAX, pending_dials: 4 });
        let services = Services {
            pod: "tp-manager-0".to_owned(),
            engagements: Engagements::new(Registry::new(hub.clone()), cluster(&hub)),
            hub,
            dialer: Dialer::new(policy.subscribe(), dns.clone(), domain, Duration::from_secs(5)),
            dns,
            info: info.subscribe(),
            agents: Agents::new(8),
            udp_idle: UDP_IDLE,
            stopping: stopping.clone(),
        };
        Self { services: Arc::new(services), info, policy, stopping, tasks: JoinSet::new() }
    }

    /// Publishes what is known of the cluster.
    pub(crate) fn know(&self, info: ClusterInfo) {
        self.info.send_modify(|known| *known = Ok(Arc::new(info)));
    }

    /// Connects a client that has no session.
    pub(crate) async fn client(&mut self) -> Client {
        self.connect(ClientHello::new("0.1.0", "demo")).await.unwrap()
    }

    /// Connects another lane of a session.
    pub(crate) async fn join(&mut self, lane: u32, session: &SessionKey) -> Result<Client, LaneError> {
        self.connect(ClientHello { lane, session: Some(session.clone()), ..ClientHello::new("0.1.0", "demo") }).await
    }

    /// Waits until the manager, or a client, has ended its end of a lane.
    pub(crate) async fn is_done_with_a_lane(&mut self) {
        self.tasks.join_next().await.unwrap().unwrap();
    }

    /// Connects with any hello.
    pub(crate) async fn connect(&mut self, hello: ClientHello) -> Result<Client, LaneError> {
        let Connected { welcome, lane, driver, handle } = self.say_hello(&hello).await?.start().await?;
        self.tasks.spawn(async move {
            let _ = driver.await;
        });
        Ok(Client { welcome, lane, handle })
    }

    /// Says hello on a new byte stream.
    pub(crate) async fn say_hello(&mut self, hello: &ClientHello) -> Result<client::Admitted, LaneError> {
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let services = self.services.clone();
        self.tasks.spawn(async move {
            // The tests see the same from their end.
            let _ = lane::serve(services, far).await;
        });
        client::say_hello(near, hello).await
    }
}

impl Client {
    /// The key of the client's session.
    pub(crate) fn session(&self) -> SessionKey {
        self.welcome.session.clone().unwrap()
    }

    /// Waits until the manager has closed the byte stream, and gives the lane up.
    pub(crate) async fn is_turned_out(&self) {
        assert!(matches!(soon(self.handle.lost()).await, CarrierState::Lost(_)));
        self.handle.fail("turned out");
    }
}

/// An API server that knows no objects.
fn empty_cluster() -> kube::Client {
    let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
        let answer = r#"{"metadata": {}, "items": []}"#;
        Ok::<_, Infallible>(http::Response::new(kube::client::Body::from(answer.as_bytes().to_vec())))
    });
    kube::Client::new(service, "default")
}

/// Waits for something that must happen.
pub(crate) async fn soon<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, wait).await.expect("it took too long")
}

/// Answers A queries for two names; NXDOMAIN for others, no data for AAAA.
async fn answer_names(socket: UdpSocket) {
    let mut query = [0; 512];
    loop {
        let (len, peer) = socket.recv_from(&mut query).await.unwrap();
        let query = Message::from_vec(&query[..len]).unwrap();
        let question = query.queries[0].clone();
        let mut answer = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
        let address = match &*question.name().to_ascii() {
            "web.shop.svc.cluster.local." => Some([127, 0, 0, 1]),
            "bad." => Some([169, 254, 169, 254]),
            _ => None,
        };
        match address {
            None => answer.metadata.response_code = ResponseCode::NXDomain,
            Some(ip) if question.query_type() == RecordType::A => {
                answer.add_answer(Record::from_rdata(
                    question.name().clone(),
                    30,
                    RData::A(A::from(std::net::Ipv4Addr::from(ip))),
                ));
            }
            Some(_) => {}
        }
        answer.add_query(question);
        socket.send_to(&answer.to_vec().unwrap(), peer).await.unwrap();
    }
}
