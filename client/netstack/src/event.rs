//! What the core tells the driver, and what the driver answers.

use std::net::IpAddr;

use bytes::Bytes;

use crate::{AssociationId, FlowId, FlowKey, TunId};

/// Something that the driver has to act on.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A SYN arrived and is held: answer with [`crate::Netstack::accept`] or [`crate::Netstack::refuse`].
    ///
    /// The container's retransmitted SYNs do not repeat the event. When the container gives up first, or opens the
    /// same 4-tuple anew, or the SYN has waited long and others need its place, [`crate::Netstack::poll_reset`] becomes
    /// ready; the id still has to be given back.
    TcpSyn { flow: FlowId, key: FlowKey },
    /// The first datagram of a new association arrived: read it with [`crate::Netstack::poll_recv_datagram`].
    UdpAssociation { association: AssociationId, key: FlowKey },
    /// A datagram for an address given to [`crate::Netstack::serve_datagrams`]; answer, if at all, with
    /// [`crate::Netstack::reply_datagram`]. There is no association and nothing to close.
    Datagram { key: FlowKey, payload: Bytes },
    /// An ICMP echo request: answer with [`crate::Netstack::reply_echo`] or [`crate::Netstack::refuse_echo`], or drop it.
    Echo(EchoRequest),
}

/// An ICMP or ICMPv6 echo request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EchoRequest {
    /// The device that it came from.
    pub tun: TunId,
    /// Who asks.
    pub src: IpAddr,
    /// The address whose existence is asked about.
    pub dst: IpAddr,
    /// Identifies the asking process.
    pub ident: u16,
    /// Counts the requests of one process.
    pub seq: u16,
    /// Comes back unchanged in the reply.
    pub payload: Bytes,
}

/// How a held SYN is turned down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing listens there: a RST, `ECONNREFUSED` for the container.
    Reset,
    /// An ICMP destination unreachable message, so that `connect` fails at once with the matching error.
    Unreachable(Unreachable),
    /// No answer: the container retransmits its SYN, which opens a new flow, until its own time is up.
    Silence,
}

/// Why a destination cannot be reached: the codes of ICMP (RFC 792, RFC 1812) and ICMPv6 (RFC 4443).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// `ENETUNREACH`: no route leads there.
    Network,
    /// `EHOSTUNREACH`: the host does not answer.
    Host,
    /// `ECONNREFUSED` on a UDP socket.
    Port,
    /// `EHOSTUNREACH` (IPv4) or `EACCES` (IPv6): a policy forbids it.
    Prohibited,
}

/// A packet to write to a TUN, virtio-net header included when the device has one. One `write` each.
#[derive(Debug)]
pub struct Transmit<'a> {
    /// The device to write to.
    pub tun: TunId,
    /// The whole packet; valid until the next call into the core.
    pub bytes: &'a [u8],
}

/// Why a flow takes or gives no more bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FlowError {
    /// The container sent a RST, or its device is gone. All bytes received before it have been read.
    #[error("the container reset the connection")]
    Reset,
    /// The SYN is still held.
    #[error("the connection was not accepted yet")]
    NotAccepted,
    /// This side already sent its FIN.
    #[error("the connection's write side is already shut down")]
    WriteShutdown,
    /// The id was given back, or never was one.
    #[error("no such flow")]
    Gone,
}

/// Why a datagram was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DatagramError {
    /// Longer than UDP can carry over this address family.
    #[error("a datagram of {len} bytes is longer than {max}")]
    TooLong { len: usize, max: usize },
    /// The queue to the device is full: the datagram was dropped and counted.
    #[error("the queue of outgoing datagrams is full")]
    QueueFull,
    /// The association ended, or never was one.
    #[error("no such association")]
    Gone,
}
