//! The engagements of this session: takes the connections that arrive for them to their handlers.
//!
//! Streams are opened by this end only, so some wait with the manager for each engagement ([`tp_protocol::engage::reach`]).
//! Each becomes one connection, and another takes its place. Handlers are dialled in the daemon's own network namespace, which
//! is the one that their containers have joined, so `127.0.0.1` is theirs. In the other direction, ports of a pod's localhost
//! are served there ([`to_pod`]).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::{AbortHandle, JoinSet, spawn_local};
use tokio::time::{Instant, timeout};
use tp_protocol::engage::EngagementId;
use tp_protocol::engage::call::{Held, HeldPort, ToPod};
use tp_protocol::engage::reach::Arrival;
use tp_protocol::engage::wire;
use tp_protocol::error_class::ErrorClass;
use tp_protocol::open::{OpenRefused, Transport};
use tp_tunnel::client::Arrived;
use tp_tunnel::read_ahead::ReadAhead;
use tp_tunnel::relay;
use tp_tunnel::standby::Standby;

pub(crate) use self::to_pod::Reserved;
use self::to_pod::ToPods;
use crate::attach::Failure;
use crate::daemon::tunnel::Tunnel;

mod to_pod;

/// Engagements that are served; more are listed only. With all their streams they use a quarter of what a lane may have.
const MAX_SERVED: usize = 256;

/// Connections that are open at once, of all engagements; more are refused.
const MAX_CONNECTIONS: u64 = 4096;

/// How long a handler may take to accept a connection.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// A UDP association without datagrams ends after this time, as those to the cluster do.
const UDP_IDLE: Duration = Duration::from_secs(120);

/// The engagements of a session, and what arrives for them.
pub(crate) struct Engagements {
    tunnel: Tunnel,
    held: RefCell<Vec<Held>>,
    served: RefCell<BTreeMap<EngagementId, Served>>,
    tasks: RefCell<JoinSet<()>>,
    connections: Rc<Connections>,
    to_pods: ToPods,
}

/// An engagement for which streams wait.
struct Served {
    ports: Rc<RefCell<Vec<HeldPort>>>,
    waiting: AbortHandle,
}

/// Connections to handlers, and from them to the localhost of pods.
#[derive(Default)]
struct Connections {
    read_ahead: ReadAhead,
    open: Cell<u64>,
    last: Cell<Option<Instant>>,
}

/// Counts one connection for as long as it lives.
struct Counted(Rc<Connections>);

impl Connections {
    /// Counts another one in, if there is room.
    fn try_open(self: &Rc<Self>) -> Option<Counted> {
        self.last.set(Some(Instant::now()));
        let open = self.open.get();
        (open < MAX_CONNECTIONS).then(|| {
            self.open.set(open + 1);
            Counted(Rc::clone(self))
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.last.set(Some(Instant::now()));
    }
}

impl Engagements {
    /// Begins without any.
    pub(crate) fn new(tunnel: Tunnel) -> Self {
        let connections = Rc::<Connections>::default();
        Self {
            to_pods: ToPods::new(tunnel.clone(), Rc::clone(&connections)),
            tunnel,
            held: RefCell::default(),
            served: RefCell::default(),
            tasks: RefCell::default(),
            connections,
        }
    }

    /// Takes ports of the localhost for an engagement that is to be made.
    ///
    /// # Errors
    /// What the user sees when one of them is taken.
    pub(crate) fn reserve(&self, ports: &[ToPod]) -> Result<Reserved, Failure> {
        self.to_pods.reserve(ports)
    }

    /// An engagement is in force: the localhost of its pod is here before anybody is told so.
    pub(crate) fn on_engaged(&self, held: &Held) {
        self.to_pods.add(held);
    }

    /// Engagements have ended: their ports are free before anybody is told so.
    pub(crate) fn on_left(&self, left: &[Held]) {
        left.iter().for_each(|engagement| self.to_pods.remove(engagement));
    }

    /// Takes all that the session holds, as the manager says. What is not there any more gets no connections; those it has
    /// go on.
    pub(crate) fn set(&self, held: Vec<Held>) {
        let mut before = self.served.take();
        let mut served = BTreeMap::new();
        // For one without ports nothing arrives.
        for engagement in held.iter().filter(|engagement| !engagement.ports.is_empty()) {
            let Ok(id) = EngagementId::new(engagement.id.as_str()) else {
                tracing::warn!(id = engagement.id, "the manager named an engagement that cannot be one");
                continue;
            };
            if served.len() == MAX_SERVED {
                tracing::warn!(limit = MAX_SERVED, "too many engagements: nothing arrives for the others");
                break;
            }
            let entry = match before.remove(&id) {
                Some(entry) => {
                    entry.ports.borrow_mut().clone_from(&engagement.ports);
                    entry
                }
                None => self.serve(id.clone(), engagement.ports.clone()),
            };
            served.insert(id, entry);
        }
        for (id, gone) in before {
            tracing::info!(%id, "engagement ended");
            gone.waiting.abort();
        }
        self.served.replace(served);
        self.to_pods.set(&held);
        self.held.replace(held);
    }

    /// All that the session holds, as the manager last said.
    pub(crate) fn held(&self) -> Vec<Held> {
        self.held.borrow().clone()
    }

    /// Connections to handlers and to the localhost of pods that are open.
    pub(crate) fn open(&self) -> u64 {
        self.connections.open.get()
    }

    /// When a connection last came or went.
    pub(crate) fn last(&self) -> Option<std::time::Instant> {
        self.connections.last.get().map(Instant::into_std)
    }

    fn serve(&self, id: EngagementId, ports: Vec<HeldPort>) -> Served {
        tracing::info!(%id, "engagement begins");
        let ports = Rc::new(RefCell::new(ports));
        let taken = take_arrivals(id, self.tunnel.clone(), Rc::clone(&ports), Rc::clone(&self.connections));
        let mut tasks = self.tasks.borrow_mut();
        while tasks.try_join_next().is_some() {}
        Served { ports, waiting: tasks.spawn_local(taken) }
    }
}

/// Keeps streams waiting for an engagement and gives each connection a task of its own, until it is aborted.
async fn take_arrivals(
    id: EngagementId,
    tunnel: Tunnel,
    ports: Rc<RefCell<Vec<HeldPort>>>,
    connections: Rc<Connections>,
) {
    let mut waiting = FuturesUnordered::new();
    let mut standby = Standby::default();
    loop {
        while waiting.len() < standby.wanted(Instant::now()) {
            waiting.push(tunnel.accept(&id));
        }
        if let Some(arrived) = waiting.next().await {
            standby.on_taken(Instant::now());
            let arrival = arrived.arrival;
            let local = local_of(&ports.borrow(), &arrival);
            match (local, connections.try_open()) {
                (Err(why), _) => arrived.refuse(&why),
                (Ok(_), None) => {
                    arrived.refuse(&OpenRefused::new(ErrorClass::Exhausted, "too many connections to handlers"));
                }
                (Ok(local), Some(counted)) => {
                    let id = id.clone();
                    // It ends with its connection, which outlives the engagement.
                    drop(spawn_local(async move {
                        tracing::debug!(%id, source = %arrival.source, %local, "a connection arrives");
                        relay_to(arrived, local, &counted.0.read_ahead).await;
                        drop(counted);
                    }));
                }
            }
        }
    }
}

/// Where the handler of the port takes connections.
fn local_of(ports: &[HeldPort], arrival: &Arrival) -> Result<SocketAddr, OpenRefused> {
    let transport = match arrival.transport {
        Transport::Tcp => wire::Transport::Tcp,
        Transport::Udp => wire::Transport::Udp,
    };
    let port = ports.iter().find(|port| port.port == u32::from(arrival.port) && port.transport() == transport);
    let port = port.ok_or_else(|| {
        OpenRefused::new(ErrorClass::Refused, format!("port {} is no part of the engagement", arrival.port))
    })?;
    port.local.parse().map_err(|_| {
        OpenRefused::new(ErrorClass::Failed, format!("`{}` is not where a handler can listen", port.local))
    })
}

/// Takes one connection to its handler, and its bytes both ways until it has ended.
async fn relay_to(arrived: Arrived, local: SocketAddr, read_ahead: &ReadAhead) {
    let relayed = match arrived.arrival.transport {
        Transport::Tcp => match dial(local).await {
            // It fails only when the caller has gone meanwhile.
            Ok(socket) => match arrived.connected() {
                Ok(flow) => relay::tcp(flow, socket, read_ahead).await,
                Err(_) => return,
            },
            Err(error) => return refuse(arrived, local, &error),
        },
        Transport::Udp => match bind(local).await {
            Ok(socket) => match arrived.connected() {
                Ok(flow) => relay::udp(flow, socket, UDP_IDLE).await,
                Err(_) => return,
            },
            Err(error) => return refuse(arrived, local, &error),
        },
    };
    tracing::debug!(%local, error = relayed.error.map(|why| why.to_string()), "a connection has ended");
}

async fn dial(local: SocketAddr) -> io::Result<TcpStream> {
    timeout(DIAL_TIMEOUT, TcpStream::connect(local)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn bind(local: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match local {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(local).await?;
    Ok(socket)
}

fn refuse(arrived: Arrived, local: SocketAddr, error: &io::Error) {
    tracing::debug!(%local, %error, "the handler was not reached");
    let class = ErrorClass::of_io(error);
    arrived.refuse(&OpenRefused::new(class, format!("the handler at {local}: {error}")));
}

#[cfg(test)]
mod tests;
