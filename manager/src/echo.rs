//! Pings through the kernel's unprivileged ICMP sockets (`SOCK_DGRAM` with `IPPROTO_ICMP`, icmp(7)).
//!
//! The kernel gives each socket an identifier of its own, fills in checksums, and hands it the replies that carry the
//! identifier and the errors that quote it. The sysctl `net.ipv4.ping_group_range`, which the chart sets for the pod, says
//! for both address families which groups may have such a socket.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use bytes::Bytes;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, ipproto};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tp_protocol::error_class::ErrorClass;
use tp_protocol::open::OpenRefused;

/// Bytes before the data of an echo message (RFC 792; RFC 4443 section 4.1).
const HEADER_BYTES: usize = 8;

/// Type of an echo request and of its reply, of ICMP and of ICMPv6 (ibid.).
const TYPES_V4: (u8, u8) = (8, 0);
/// See [`TYPES_V4`].
const TYPES_V6: (u8, u8) = (128, 129);

/// Pings `dst` once with `data`, and returns the data of the reply. Waits for as long as it takes.
///
/// # Errors
/// [`OpenRefused`] with what an ICMP error says of `dst`; [`ErrorClass::Failed`] when the manager may not ping.
pub(crate) async fn ping(dst: IpAddr, data: &[u8]) -> Result<Bytes, OpenRefused> {
    let socket = open(dst).map_err(|error| {
        let why = format!("the manager's pod may not ping (sysctl net.ipv4.ping_group_range): {error}");
        OpenRefused::new(ErrorClass::Failed, why)
    })?;
    let answered = exchange(&socket, dst, data).await;
    answered.map_err(|error| OpenRefused::new(ErrorClass::of_io(&error), format!("{dst}: {error}")))
}

/// Makes a socket for the address family of `dst`. tokio has no type for it, and its UDP sockets do the same.
fn open(dst: IpAddr) -> io::Result<UdpSocket> {
    let (family, protocol) = match dst {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, Some(protocol))?;
    report_errors(&socket, dst)?;
    UdpSocket::from_std(socket.into())
}

/// Sends the request and waits for its reply. Replies of anybody else are skipped.
async fn exchange(socket: &UdpSocket, dst: IpAddr, data: &[u8]) -> io::Result<Bytes> {
    let (request_type, reply_type) = if dst.is_ipv4() { TYPES_V4 } else { TYPES_V6 };
    socket.connect(SocketAddr::new(dst, 0)).await?;
    let mut message = vec![0; HEADER_BYTES + data.len()];
    message[0] = request_type;
    message[HEADER_BYTES..].copy_from_slice(data);
    socket.send(&message).await?;
    loop {
        // An ICMP error wakes as an error only.
        let received = socket.async_io(Interest::READABLE | Interest::ERROR, || {
            Ok(rustix::net::recvfrom(socket, &mut message[..], RecvFlags::empty())?)
        });
        let (len, _, src) = received.await?;
        let src = src.and_then(|src| SocketAddr::try_from(src).ok());
        if src.is_some_and(|src| src.ip() == dst) && len >= HEADER_BYTES && message[0] == reply_type {
            return Ok(Bytes::copy_from_slice(&message[HEADER_BYTES..len]));
        }
    }
}

/// Lets the socket learn of every ICMP error; without it, of those alone that nothing can change (ip(7), `IP_RECVERR`).
#[expect(unsafe_code, reason = "rustix does not know this option")]
fn report_errors(socket: &OwnedFd, dst: IpAddr) -> io::Result<()> {
    let (level, option) = match dst {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_RECVERR),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    };
    let on: libc::c_int = 1;
    let len = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the pointer is to an int that lives, of the length that is given.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
