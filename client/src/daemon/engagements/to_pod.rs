//! The localhost of engaged workloads' pods: listeners on the daemon's own, and a flow for each connection that they take.
//!
//! They are in the daemon's network namespace, which is the one that containers have joined, so what these dial on `127.0.0.1`
//! arrives here as it would in the pod. Unlike on the way through the TUN, the kernel accepts before the far end has been
//! reached; a far end that is not becomes a reset.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinSet, spawn_local};
use tokio::time::{sleep, timeout};
use tp_protocol::engage::call::{Held, ToPod};
use tp_protocol::engage::wire;
use tp_protocol::open::{Open, Transport};
use tp_tunnel::relay;

use super::Connections;
use crate::attach::Failure;
use crate::daemon::backoff::Backoff;
use crate::daemon::flows::{DIAL_TIMEOUT, OPEN_TIMEOUT};
use crate::daemon::tunnel::Tunnel;

/// Ports that are served; the manager allows fewer for one engagement.
const PORTS_MAX: usize = 256;

/// Pause after a failed accept, which is mostly about too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The ports that engagements have asked for.
pub(super) struct ToPods {
    tunnel: Tunnel,
    connections: Rc<Connections>,
    served: RefCell<BTreeMap<u16, Served>>,
    reserved: Rc<RefCell<BTreeMap<u16, Listeners>>>,
}

/// Listens until it is dropped.
struct Served {
    place: Place,
    _listening: JoinSet<()>,
}

/// Whose localhost it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    namespace: String,
    /// `KIND/NAME`.
    workload: String,
}

impl From<&Held> for Place {
    fn from(held: &Held) -> Self {
        Self { namespace: held.namespace.clone(), workload: held.workload.clone() }
    }
}

/// One port on the localhost of either family; IPv6 where the container has it.
struct Listeners {
    ipv4: TcpListener,
    ipv6: Option<TcpListener>,
}

/// Ports that are kept for an engagement which is being made. Dropping it gives back those that it did not come to.
pub(crate) struct Reserved {
    ports: Vec<u16>,
    reserved: Rc<RefCell<BTreeMap<u16, Listeners>>>,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.reserved.borrow_mut().retain(|port, _| !self.ports.contains(port));
    }
}

impl ToPods {
    pub(super) fn new(tunnel: Tunnel, connections: Rc<Connections>) -> Self {
        Self { tunnel, connections, served: RefCell::default(), reserved: Rc::default() }
    }

    /// Takes the ports that an engagement is to have.
    ///
    /// # Errors
    /// What the user sees when one of them is taken.
    pub(super) fn reserve(&self, wanted: &[ToPod]) -> Result<Reserved, Failure> {
        let mut held = Reserved { ports: Vec::new(), reserved: Rc::clone(&self.reserved) };
        for port in wanted.iter().filter_map(number) {
            if let Some(served) = self.served.borrow().get(&port) {
                return Err(Failure {
                    message: format!("port {port} leads to the localhost of {} already", served.place.workload),
                    hint: "`tp leave` ends that; another connection (`tp connect --name`) has ports of its own"
                        .to_owned(),
                    causes: Vec::new(),
                });
            }
            if self.served.borrow().len() + held.ports.len() >= PORTS_MAX {
                return Err(Failure {
                    message: format!("the connection has {PORTS_MAX} ports of pods' localhosts, which is the limit"),
                    hint: "`tp leave` ends some".to_owned(),
                    causes: Vec::new(),
                });
            }
            if !held.ports.contains(&port) {
                let listeners = Listeners::bind(port).map_err(|error| cannot_listen(port, &error))?;
                held.ports.push(port);
                self.reserved.borrow_mut().insert(port, listeners);
            }
        }
        Ok(held)
    }

    /// Serves what these engagements have asked for, and nothing else. Connections that are there go on.
    pub(super) fn set(&self, held: &[Held]) {
        self.served.borrow_mut().retain(|port, served| {
            let mut asked = held.iter().filter(|held| held.to_pod.iter().filter_map(number).any(|it| it == *port));
            // The first one has it, as below.
            asked.next().is_some_and(|held| Place::from(held) == served.place)
        });
        held.iter().for_each(|engagement| self.add(engagement));
    }

    /// Serves what this engagement has asked for, beside the others.
    pub(super) fn add(&self, engagement: &Held) {
        let mut served = self.served.borrow_mut();
        for port in engagement.to_pod.iter().filter_map(number) {
            if served.len() < PORTS_MAX && !served.contains_key(&port) {
                served.insert(port, self.serve(port, Place::from(engagement)));
            }
        }
    }

    /// Serves nothing more for this engagement.
    pub(super) fn remove(&self, engagement: &Held) {
        let is_its_own = |port| engagement.to_pod.iter().filter_map(number).any(|it| it == port);
        let place = Place::from(engagement);
        self.served.borrow_mut().retain(|port, served| served.place != place || !is_its_own(*port));
    }

    fn serve(&self, port: u16, place: Place) -> Served {
        let reserved = self.reserved.borrow_mut().remove(&port);
        let (tunnel, connections) = (self.tunnel.clone(), Rc::clone(&self.connections));
        let mut listening = JoinSet::new();
        listening.spawn_local(listen(port, reserved, place.clone(), tunnel, connections));
        Served { place, _listening: listening }
    }
}

impl Listeners {
    /// Listens on `127.0.0.1`, and on `::1` where there is IPv6.
    fn bind(port: u16) -> io::Result<Self> {
        let ipv4 = listener(Ipv4Addr::LOCALHOST.into(), port)?;
        let ipv6 = match listener(Ipv6Addr::LOCALHOST.into(), port) {
            Ok(listener) => Some(listener),
            Err(error) if has_no_ipv6(&error) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { ipv4, ipv6 })
    }

    /// The next connection by either.
    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        match &self.ipv6 {
            None => self.ipv4.accept().await,
            Some(ipv6) => tokio::select! {
                accepted = self.ipv4.accept() => accepted,
                accepted = ipv6.accept() => accepted,
            },
        }
    }
}

fn listener(address: IpAddr, port: u16) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind((address, port))?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

fn has_no_ipv6(error: &io::Error) -> bool {
    let no_ipv6 = [Errno::ADDRNOTAVAIL, Errno::AFNOSUPPORT];
    no_ipv6.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// The port's number; `None` for one that cannot be listened at.
fn number(wanted: &ToPod) -> Option<u16> {
    let is_tcp = wanted.transport() == wire::Transport::Tcp;
    u16::try_from(wanted.port).ok().filter(|port| *port > 0 && is_tcp)
}

fn cannot_listen(port: u16, error: &io::Error) -> Failure {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "a container of the connection listens there, or another command is about to: stop it, or leave the port out"
        }
        _ => "ports below 1024 are not possible with every container engine",
    };
    Failure {
        message: format!(
            "cannot listen on port {port} of the localhost that the connection's containers share: {error}"
        ),
        hint: hint.to_owned(),
        causes: Vec::new(),
    }
}

/// Listens at a port, and gives each connection a task of its own, until it is aborted.
async fn listen(port: u16, reserved: Option<Listeners>, place: Place, tunnel: Tunnel, connections: Rc<Connections>) {
    let listeners = match reserved {
        Some(listeners) => listeners,
        None => bind_again(port).await,
    };
    tracing::info!(port, place.namespace, place.workload, "the localhost of a pod is here");
    loop {
        match listeners.accept().await {
            Ok((socket, peer)) => {
                let Some(counted) = connections.try_open() else {
                    reset(&socket);
                    continue;
                };
                let open = Open {
                    namespace: Some(place.namespace.clone()),
                    via: Some(place.workload.clone()),
                    deadline: Some(DIAL_TIMEOUT),
                    source: Some(peer),
                    ..Open::new(Transport::Tcp, (Ipv4Addr::LOCALHOST, port).into())
                };
                let tunnel = tunnel.clone();
                // It ends with its connection, which outlives the engagement.
                drop(spawn_local(async move {
                    carry(socket, open, &tunnel, &counted.0).await;
                    drop(counted);
                }));
            }
            Err(error) => {
                tracing::warn!(port, %error, "cannot accept a connection to a pod's localhost");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Listens at a port that was served before: by the process before this one, or on the lane before this one.
async fn bind_again(port: u16) -> Listeners {
    let mut backoff = Backoff::new();
    let mut is_told = false;
    loop {
        match Listeners::bind(port) {
            Ok(listeners) => return listeners,
            Err(error) if !is_told => tracing::warn!(port, %error, "a pod's localhost cannot be listened for"),
            Err(_) => {}
        }
        is_told = true;
        backoff.wait().await;
    }
}

/// Takes one connection to the pod, and its bytes both ways until it has ended.
async fn carry(socket: TcpStream, open: Open, tunnel: &Tunnel, connections: &Connections) {
    let port = open.port;
    match timeout(OPEN_TIMEOUT, tunnel.open(open)).await {
        Ok(Ok((flow, _))) => {
            let relayed = relay::tcp(flow, socket, &connections.read_ahead).await;
            let error = relayed.error.map(|why| why.to_string());
            tracing::debug!(port, error, "a connection to a pod's localhost has ended");
        }
        Ok(Err(error)) => {
            tracing::info!(port, %error, "a pod's localhost was not reached");
            reset(&socket);
        }
        Err(_) => reset(&socket),
    }
}

/// Has the socket end with a reset when it is dropped.
fn reset(socket: &TcpStream) {
    // Closing with a zero linger time sends RST instead of FIN (socket(7), SO_LINGER).
    let _ = socket.set_zero_linger();
}

#[cfg(test)]
mod tests;
