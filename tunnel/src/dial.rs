//! Dials one address, for the manager and for agents.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UdpSocket};
use tp_protocol::error_class::ErrorClass;
use tp_protocol::open::{OpenRefused, Transport};

/// Quiet time after which a dialled connection is probed. Below the idle limits of conntrack and of cloud NAT gateways
/// (350 s and more), so that a quiet flow stays; a dead peer is noticed after [`KEEPALIVE_PROBES`] more intervals.
const KEEPALIVE: Duration = Duration::from_secs(120);

/// Probes without an answer before a connection is given up.
const KEEPALIVE_PROBES: u32 = 5;

/// A socket that is connected.
#[derive(Debug)]
pub enum Dialled {
    /// The peer has accepted.
    Tcp(TcpStream),
    /// The socket takes datagrams from the peer only.
    Udp(UdpSocket),
}

/// Connects one socket, however long the system takes.
///
/// # Errors
/// [`OpenRefused`] in the terms of the sockets API, for the socket that asked.
pub async fn connect(transport: Transport, dst: SocketAddr) -> Result<Dialled, OpenRefused> {
    try_connect(transport, dst).await.map_err(|error| explain(dst, &error))
}

async fn try_connect(transport: Transport, dst: SocketAddr) -> io::Result<Dialled> {
    match transport {
        Transport::Tcp => {
            let socket = TcpStream::connect(dst).await?;
            let keepalive =
                TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE).with_retries(KEEPALIVE_PROBES);
            SockRef::from(&socket).set_tcp_keepalive(&keepalive)?;
            Ok(Dialled::Tcp(socket))
        }
        Transport::Udp => {
            let any = match dst {
                SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
                SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
            };
            let socket = UdpSocket::bind(any).await?;
            socket.connect(dst).await?;
            Ok(Dialled::Udp(socket))
        }
    }
}

/// Says what a failed connect means, with a class that fits shortages of this machine too.
fn explain(dst: SocketAddr, error: &io::Error) -> OpenRefused {
    let class = match error.kind() {
        // No free local port, file descriptor or memory.
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::OutOfMemory | io::ErrorKind::QuotaExceeded => {
            ErrorClass::Exhausted
        }
        _ if matches!(error.raw_os_error(), Some(EMFILE | ENFILE)) => ErrorClass::Exhausted,
        _ => ErrorClass::of_io(error),
    };
    OpenRefused::new(class, format!("{dst}: {error}"))
}

/// "Too many open files" of the process and of the system (errno(3)); Rust has no kind for them.
const EMFILE: i32 = 24;
/// See [`EMFILE`].
const ENFILE: i32 = 23;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortages_of_our_own_are_not_blamed_on_the_peer() {
        let dst = ([10, 0, 0, 1], 80).into();
        for error in [io::Error::from_raw_os_error(EMFILE), io::ErrorKind::AddrNotAvailable.into()] {
            assert_eq!(explain(dst, &error).class, ErrorClass::Exhausted);
        }
        assert_eq!(explain(dst, &io::ErrorKind::HostUnreachable.into()).class, ErrorClass::HostUnreachable);
    }
}
