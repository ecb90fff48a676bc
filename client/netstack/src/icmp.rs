//! ICMP and ICMPv6 messages: echo and destination unreachable.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use smoltcp::wire::IpProtocol;

use crate::{
    EchoRequest, TunId, Unreachable, checksum,
    ip::{self, IpPacket, Rejected},
    segment::HeldSyn,
};

/// Length of the header of every message used here.
pub(crate) const ICMP_HEADER_BYTES: usize = 8;
/// How much of a transport header an error quotes: ports and, for TCP, the sequence number.
const QUOTED_BYTES: usize = 8;

/// A message from the container.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Echo(EchoRequest),
    /// A datagram of ours found no socket in the container.
    PortUnreachable {
        /// Whom our datagram came from.
        src: SocketAddr,
        /// The container's closed port.
        dst: SocketAddr,
    },
    Other,
}

impl Message {
    /// Reads a message whose checksum has been verified.
    pub(crate) fn parse(tun: TunId, packet: &IpPacket<'_>, message: &[u8]) -> Result<Self, Rejected> {
        let header = message.first_chunk::<ICMP_HEADER_BYTES>().ok_or(Rejected::Malformed)?;
        let kinds = Kinds::of(packet.src);
        if header[0] == kinds.echo_request && header[1] == 0 {
            Ok(Self::Echo(EchoRequest {
                tun,
                src: packet.src,
                dst: packet.dst,
                ident: u16::from_be_bytes([header[4], header[5]]),
                seq: u16::from_be_bytes([header[6], header[7]]),
                payload: Bytes::copy_from_slice(&message[ICMP_HEADER_BYTES..]),
            }))
        } else if header[0] == kinds.unreachable && header[1] == kinds.code(Unreachable::Port) {
            Ok(quoted_datagram(&message[ICMP_HEADER_BYTES..])
                .map_or(Self::Other, |(src, dst)| Self::PortUnreachable { src, dst }))
        } else {
            Ok(Self::Other)
        }
    }
}

/// Reads both ends from the datagram that an error quotes. Its header need not be whole, so [`IpPacket`] does not do.
fn quoted_datagram(quoted: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let (src, dst) = ip::addresses(quoted)?;
    let (protocol, header_len) =
        if src.is_ipv4() { (quoted[9], usize::from(quoted[0] & 0xf) * 4) } else { (quoted[6], ip::IPV6_HEADER_BYTES) };
    let ports = quoted.get(header_len..)?.first_chunk::<4>()?;
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    (IpProtocol::from(protocol) == IpProtocol::Udp)
        .then(|| (SocketAddr::new(src, port(0)), SocketAddr::new(dst, port(2))))
}

/// Message types of an address family.
struct Kinds {
    protocol: IpProtocol,
    echo_request: u8,
    echo_reply: u8,
    unreachable: u8,
    /// By [`Unreachable`], in its order.
    codes: [u8; 4],
}

impl Kinds {
    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() {
            let codes = [0, 1, 3, 13];
            Self { protocol: IpProtocol::Icmp, echo_request: 8, echo_reply: 0, unreachable: 3, codes }
        } else {
            let codes = [0, 3, 4, 1];
            Self { protocol: IpProtocol::Icmpv6, echo_request: 128, echo_reply: 129, unreachable: 1, codes }
        }
    }

    fn code(&self, reason: Unreachable) -> u8 {
        match reason {
            Unreachable::Network => self.codes[0],
            Unreachable::Host => self.codes[1],
            Unreachable::Port => self.codes[2],
            Unreachable::Prohibited => self.codes[3],
        }
    }
}

/// The ICMP protocol of an address family.
pub(crate) fn protocol(address: IpAddr) -> IpProtocol {
    Kinds::of(address).protocol
}

/// Whether a message's checksum is right; ICMPv6 covers the pseudo-header too (RFC 4443, section 2.3).
pub(crate) fn is_checksum_valid(src: IpAddr, dst: IpAddr, message: &[u8]) -> bool {
    if src.is_ipv4() {
        checksum::is_plain_valid(message)
    } else {
        checksum::is_transport_valid(src, dst, IpProtocol::Icmpv6, message)
    }
}

/// Length of the packet that [`write_echo_reply`] makes.
pub(crate) fn echo_reply_len(request: &EchoRequest) -> usize {
    ip::header_len(request.dst) + ICMP_HEADER_BYTES + request.payload.len()
}

/// Writes the packet that answers `request`.
pub(crate) fn write_echo_reply(packet: &mut [u8], request: &EchoRequest) {
    let (src, dst) = (request.dst, request.src);
    let message = start_message(packet, src, dst, Kinds::of(src).echo_reply, 0);
    message[4..6].copy_from_slice(&request.ident.to_be_bytes());
    message[6..8].copy_from_slice(&request.seq.to_be_bytes());
    message[ICMP_HEADER_BYTES..].copy_from_slice(&request.payload);
    finish_message(message, src, dst);
}

/// What could not be delivered; enough of it for the container's kernel to find the socket.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Undelivered<'a> {
    Syn { src: SocketAddr, dst: SocketAddr, syn: HeldSyn },
    Datagram { src: SocketAddr, dst: SocketAddr },
    Echo(&'a EchoRequest),
}

impl Undelivered<'_> {
    fn addresses(&self) -> (IpAddr, IpAddr) {
        match self {
            Self::Syn { src, dst, .. } | Self::Datagram { src, dst } => (src.ip(), dst.ip()),
            Self::Echo(request) => (request.src, request.dst),
        }
    }

    fn protocol(&self) -> IpProtocol {
        match self {
            Self::Syn { .. } => IpProtocol::Tcp,
            Self::Datagram { .. } => IpProtocol::Udp,
            Self::Echo(request) => protocol(request.src),
        }
    }

    /// The first bytes behind its IP header.
    fn quoted(&self) -> [u8; QUOTED_BYTES] {
        let mut quoted = [0; QUOTED_BYTES];
        match self {
            Self::Syn { src, dst, syn } => {
                quoted[0..2].copy_from_slice(&src.port().to_be_bytes());
                quoted[2..4].copy_from_slice(&dst.port().to_be_bytes());
                quoted[4..8].copy_from_slice(&syn.seq.to_be_bytes());
            }
            Self::Datagram { src, dst } => {
                quoted[0..2].copy_from_slice(&src.port().to_be_bytes());
                quoted[2..4].copy_from_slice(&dst.port().to_be_bytes());
                quoted[4..6].copy_from_slice(&(QUOTED_BYTES as u16).to_be_bytes());
            }
            Self::Echo(request) => {
                quoted[0] = Kinds::of(request.src).echo_request;
                quoted[4..6].copy_from_slice(&request.ident.to_be_bytes());
                quoted[6..8].copy_from_slice(&request.seq.to_be_bytes());
            }
        }
        quoted
    }
}

/// Makes the packet that says that something could not be delivered. It comes from the destination itself.
pub(crate) fn unreachable(undelivered: &Undelivered<'_>, reason: Unreachable) -> Box<[u8]> {
    let (src, dst) = undelivered.addresses();
    let ip_header_len = ip::header_len(src);
    let quoted_len = ip_header_len + QUOTED_BYTES;
    let mut packet = vec![0; ip_header_len + ICMP_HEADER_BYTES + quoted_len];
    let kinds = Kinds::of(src);
    let message = start_message(&mut packet, dst, src, kinds.unreachable, kinds.code(reason));
    let quoted = &mut message[ICMP_HEADER_BYTES..];
    ip::write_header(quoted, src, dst, undelivered.protocol(), QUOTED_BYTES);
    quoted[ip_header_len..].copy_from_slice(&undelivered.quoted());
    finish_message(message, dst, src);
    packet.into_boxed_slice()
}

/// Writes both headers and returns the message, whose checksum is zero.
fn start_message(packet: &mut [u8], src: IpAddr, dst: IpAddr, kind: u8, code: u8) -> &mut [u8] {
    let ip_header_len = ip::header_len(src);
    let message_len = packet.len() - ip_header_len;
    ip::write_header(packet, src, dst, protocol(src), message_len);
    let message = &mut packet[ip_header_len..];
    message[..ICMP_HEADER_BYTES].copy_from_slice(&[kind, code, 0, 0, 0, 0, 0, 0]);
    message
}

fn finish_message(message: &mut [u8], src: IpAddr, dst: IpAddr) {
    let sum = if src.is_ipv4() {
        checksum::plain(message)
    } else {
        checksum::transport(src, dst, IpProtocol::Icmpv6, message)
    };
    message[2..4].copy_from_slice(&sum.to_be_bytes());
}
