//! The whole product in one process: the kernel of a container, the daemon's stack, flows and lanes, a way to the API server that
//! is slow, loses and is cut, the API server's WebSockets, and the manager, which dials servers on the loopback.
//!
//! The clock is tokio's and stands still while anybody has something to do, so a minute of waiting costs nothing. A seed
//! names a run.

mod api_server;
mod cluster;
mod kernel;
mod way;

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::task::{JoinSet, LocalSet, spawn_local};
use tokio::time::timeout;
use tp_manager::identity::User;
use tp_manager::identity::rights::{Right, Rights, RightsError, Verdict};
use tp_protocol::engage::call::{Answer, Call, Engage, Mode, answer, call};
use tp_protocol::engage::wire::Kind;

use self::api_server::ApiServer;
use self::cluster::{Agent, Web};
use self::kernel::Kernel;
use self::way::{Random, Way};
use crate::attach::{Connect, VirtualSubnet};
use crate::daemon::OWN_TUN;
use crate::daemon::connection::{Connection, Parts};
use crate::daemon::init::link::NetworkConfig;
use crate::daemon::kube::ManagerRoute;
use crate::daemon::layout::Layout;

/// Seeded runs.
const SEEDS: u64 = 1000;

/// Connections of one run.
const MAX_APPS: u64 = 6;

/// Most bytes of one connection: more than it takes to go on on a lane for bulk.
const MAX_BYTES: u64 = 800 << 10;

/// Longest that a run may take, on the clock that stands still.
const PATIENCE: Duration = Duration::from_secs(900);

/// Containers see the loopback, on which the servers listen, as this.
const SEEN_AS: [u8; 3] = [240, 0, 0];

/// One connected container.
struct Container {
    kernel: Kernel,
    connection: Rc<Connection>,
}

impl Container {
    async fn connect(api_server: &ApiServer) -> Self {
        let (kernel, tun) = Kernel::boot();
        let request = Connect {
            name: "simulated".into(),
            namespace: "shop".into(),
            connect_timeout_ms: 60_000,
            ..Connect::default()
        };
        let route = ManagerRoute::with_client(api_server.client());
        // A way that is cut while a connection is made is an error of the command, which can be given again.
        let (live, cluster) = loop {
            if let Ok(established) = Connection::establish(&request, &route, PATIENCE).await {
                break established;
            }
        };
        let layout = Layout {
            network: NetworkConfig::default(),
            virtual_subnets: vec![VirtualSubnet {
                subnet: "127.0.0.0/24".into(),
                seen_as: "240.0.0.0/24".into(),
                reason: "the servers are here".into(),
            }],
        };
        let parts = Parts::new(&request.namespace, Vec::new(), 0, 7);
        let connection = Rc::new(Connection::new(request, route, cluster, layout, parts));
        connection.on_lane(&live);
        let (packets, lanes) = (Rc::clone(connection.flows()), Rc::clone(&connection));
        spawn_local(async move { packets.drive(OWN_TUN, tun).await.expect("the device works") });
        spawn_local(async move { lanes.run(Some(live)).await });
        Self { kernel, connection }
    }
}

/// Serves connections that send back what they get, until its listener is dropped.
async fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("the loopback has a port");
    let address = listener.local_addr().expect("it is bound");
    spawn_local(async move {
        let mut connections = JoinSet::new();
        while let Ok((socket, _)) = listener.accept().await {
            connections.spawn_local(async move {
                let (mut from, mut to) = socket.into_split();
                tokio::io::copy(&mut from, &mut to).await.expect("nobody resets it");
                to.shutdown().await.expect("nobody resets it");
            });
        }
    });
    address
}

/// Sends `payload`, says that this was all, and returns what comes back.
async fn talk(kernel: &Kernel, server: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let seen_as = SocketAddr::new([SEEN_AS[0], SEEN_AS[1], SEEN_AS[2], 1].into(), server.port());
    talk_to(kernel, seen_as, payload).await
}

/// As [`talk`], to a server that the container sees at this address.
async fn talk_to(kernel: &Kernel, seen_as: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let socket = kernel.connect(seen_as).await.expect("the server listens");
    let send = async {
        socket.send_all(payload).await;
        socket.close();
    };
    let (received, ()) = tokio::join!(socket.read_to_end(), send);
    received
}

async fn run(seed: u64) {
    let mut random = Random::new(seed);
    let way = Way::random(&mut random);
    let server = echo_server().await;
    let api_server = ApiServer::start(way, Random::new(seed ^ 0xa5a5));
    let container = Container::connect(&api_server).await;
    let apps = 1 + random.below(MAX_APPS);
    let payloads: Vec<Vec<u8>> = (0..apps).map(|_| random.bytes(MAX_BYTES)).collect();
    let talks = payloads.iter().map(|payload| talk(&container.kernel, server, payload));
    for (payload, received) in payloads.iter().zip(futures_util::future::join_all(talks).await) {
        assert!(received == *payload, "{} of {} bytes came back, or others", received.len(), payload.len());
    }
    while container.connection.flows().open_flows().0 > 0 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    container.connection.quit();
}

#[test]
fn bytes_survive_a_way_that_is_slow_and_loses_and_is_cut() {
    let (first, last) = match std::env::var("TP_SIMULATION_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => {
            tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_ansi(false).init();
            (seed, seed)
        }
        None => (0, SEEDS - 1),
    };
    for seed in first..=last {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        let ended =
            LocalSet::new().block_on(&runtime.expect("a runtime"), async { timeout(PATIENCE, run(seed)).await });
        assert!(ended.is_ok(), "seed {seed}: not done after {PATIENCE:?}");
    }
}

/// Ann may exec in `shop`, and nobody anywhere else.
struct Reviewer;

impl Rights for Reviewer {
    fn review<'a>(
        &'a self,
        user: &'a User,
        namespace: &'a str,
        _: Right,
    ) -> BoxFuture<'a, Result<Verdict, RightsError>> {
        let is_allowed = user.name == "ann" && namespace == "shop";
        let verdict = if is_allowed { Verdict::Allowed } else { Verdict::Refused };
        Box::pin(std::future::ready(Ok(verdict(String::new()))))
    }
}

#[tokio::test]
async fn manager_learns_from_the_api_server_who_connects_and_asks_what_they_may() {
    let scene = async {
        let cluster = Web::default().client();
        let api_server = ApiServer::with_rights(Way::straight(), Random::new(7), Reviewer, cluster);
        let Container { connection, .. } = Container::connect(&api_server).await;
        for (namespace, why) in
            [("bank", "user `ann` may not engage workloads in namespace bank"), ("shop", "no workload")]
        {
            let engage = Engage { namespace: namespace.into(), workload: "db".into(), ..Engage::default() };
            let call = Call { kind: Some(call::Kind::Engage(Box::new(engage))) };
            let answer = connection.ask(&call, PATIENCE).await.expect("the manager answers").kind;
            let Some(answer::Kind::Failure(failure)) = answer else { panic!("{answer:?}") };
            assert!(failure.message.contains(why), "{failure:?}");
        }
        let user = connection.status().user.expect("the manager has told");
        assert_eq!((&*user.name, &*user.groups), ("ann", &["system:authenticated".to_owned()][..]));
        connection.quit();
    };
    LocalSet::new().run_until(timeout(Duration::from_secs(20), scene)).await.expect("it takes no time");
}

#[tokio::test]
async fn flows_by_way_of_a_workload_are_dialled_by_its_agent_and_wait_while_there_is_none() {
    let scene = async {
        let web = Web::default();
        let api_server = ApiServer::with_rights(Way::straight(), Random::new(7), Reviewer, web.client());
        let Container { kernel, connection } = Container::connect(&api_server).await;
        let (registry, server) = (api_server.registry(), echo_server().await);
        let engage = Engage {
            namespace: "shop".into(),
            workload: "web".into(),
            what: Kind::Via.into(),
            mode: Mode::Auto.into(),
            ..Engage::default()
        };
        let call = Call { kind: Some(call::Kind::Engage(Box::new(engage))) };
        let engaged = connection.ask(&call, PATIENCE);
        let agent = async { Agent::start(&registry, &format!("{}-x2", web.stand_in().await), server).await };
        let (answer, agent) = tokio::join!(engaged, agent);
        let Ok(Answer { kind: Some(answer::Kind::Engaged(held)) }) = answer else { panic!("{answer:?}") };
        assert_eq!(held.workload, "deployment/web");
        let status = connection.status();
        assert_eq!((&*status.via, status.engagements[0].what()), ("web", Kind::Via));

        // To the manager it is an address like any other; it is the agent who is where something listens there.
        let there = SocketAddr::from(([10, 1, 2, 3], 80));
        let payload = Random::new(8).bytes(MAX_BYTES);
        assert!(talk_to(&kernel, there, &payload).await == payload);
        assert_eq!(agent.dialled(), [there]);

        drop(agent);
        let next = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            Agent::start(&registry, &format!("{}-x3", web.stand_in().await), server).await
        };
        let (answer, agent) = tokio::join!(talk_to(&kernel, there, b"still there?"), next);
        assert_eq!((&*answer, agent.dialled()), (&b"still there?"[..], vec![there]));
        connection.quit();
    };
    LocalSet::new().run_until(timeout(Duration::from_secs(20), scene)).await.expect("it takes no time");
}
