//! Takes connections that are meant for the app, and decides for each, or for each HTTP request, where it goes.
//!
//! | module | what it owns |
//! |---|---|
//! | [`destination`] | where traffic can go: the app, a handler |
//! | [`stream`] | byte streams that can be reset |
//! | [`engagements`] | the engagements, and what is known of each one's handler |
//! | `presence` | whether a handler is worth a try (pure) |
//! | `table`, `index` | which engagements a request or a connection belongs to (pure) |
//! | `tcp` | connections of one port: detection, and what is not HTTP |
//! | `detect` | whether bytes are HTTP (pure) |
//! | `relay` | two streams, joined |
//! | `scratch` | what relays read into |
//! | `http` | requests, one by one |
//! | `tap` | copies for wiretaps |
//! | `udp` | datagrams |
//! | `limits` | the named limits |
//!
//! [`Engine::bind`] opens the ports, [`Engine::engagements`] is the handle by which engagements are changed at any time, and
//! [`Engine::run`] serves until it is told to stop.

pub mod destination;
mod detect;
pub mod engagements;
mod http;
mod index;
mod limits;
mod presence;
mod relay;
mod scratch;
pub mod stream;
mod table;
mod tap;
mod tcp;
mod udp;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tp_protocol::open::Transport;

use destination::Destination;
use engagements::Engagements;
use table::Table;

/// A port that the engine takes.
pub struct Port {
    /// Where to listen. IPv6's unspecified address takes both families.
    pub listen: SocketAddr,
    /// The container's port whose traffic arrives there, by which engagements name it.
    pub number: u16,
    /// TCP or UDP.
    pub transport: Transport,
    /// What the app speaks there.
    pub protocol: AppProtocol,
    /// The app itself.
    pub app: Arc<dyn Destination>,
}

/// What is known of a port's protocol, as from a Service's `appProtocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppProtocol {
    /// Nothing: connections are looked into while an engagement of the port has a filter. Those that are open before the
    /// first such engagement stay with the app.
    Unknown,
    /// HTTP: each connection is looked into from the start. Engagements apply to connections that are open already, and end
    /// without cutting any off.
    Http,
    /// Something else: no connection is looked into, and filters match none.
    Opaque,
}

/// The ports, open.
pub struct Engine {
    tcp: Vec<(TcpListener, Arc<tcp::Port>)>,
    udp: Vec<udp::Port>,
    engagements: Engagements,
}

impl Engine {
    /// Opens the ports.
    ///
    /// # Errors
    /// The operating system's, for the first port that cannot be opened; it is named.
    pub fn bind(ports: Vec<Port>) -> io::Result<Self> {
        let connections = Arc::new(Semaphore::new(limits::CONNECTIONS));
        let mut tables = HashMap::new();
        let (mut tcp, mut udp) = (Vec::new(), Vec::new());
        for port in ports {
            let (table_tx, table) = watch::channel(Arc::new(Table::default()));
            tables.insert((port.number, port.transport), table_tx);
            let named =
                |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {}: {error}", port.listen));
            match port.transport {
                Transport::Tcp => {
                    let listener = listen(port.listen).map_err(named)?;
                    let connections = Arc::clone(&connections);
                    let shared = tcp::Port { app: port.app, protocol: port.protocol, table, connections };
                    tcp.push((listener, Arc::new(shared)));
                }
                Transport::Udp => {
                    let socket = bind_udp(port.listen).map_err(named)?;
                    udp.push(udp::Port { socket: Arc::new(socket), app: port.app, table });
                }
            }
        }
        Ok(Self { tcp, udp, engagements: Engagements::new(tables) })
    }

    /// Where the ports are, in the order in which they were given, those of TCP first.
    ///
    /// # Errors
    /// The operating system's.
    pub fn local_addrs(&self) -> io::Result<Vec<SocketAddr>> {
        let tcp = self.tcp.iter().map(|(listener, _)| listener.local_addr());
        tcp.chain(self.udp.iter().map(|port| port.socket.local_addr())).collect()
    }

    /// The handle by which engagements are changed.
    pub fn engagements(&self) -> Engagements {
        self.engagements.clone()
    }

    /// Serves until `stop` is cancelled. Then no connection is taken any more, HTTP callers are told to go elsewhere, and
    /// what is still under way after 20 s is cut off.
    pub async fn run(self, stop: CancellationToken) {
        let mut ports = JoinSet::new();
        for (listener, port) in self.tcp {
            ports.spawn(tcp::serve(listener, port, stop.clone()));
        }
        for port in self.udp {
            ports.spawn(udp::serve(port, stop.clone()));
        }
        stop.cancelled().await;
        let all = async { while ports.join_next().await.is_some() {} };
        if timeout(limits::DRAIN, all).await.is_err() {
            tracing::warn!("connections that did not end in time are cut off");
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if address.is_ipv6() {
        SockRef::from(&socket).set_only_v6(false)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(limits::BACKLOG)
}

fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}
