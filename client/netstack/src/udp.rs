//! UDP datagrams in and out.

use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::IpProtocol;

use crate::{
    Offload, checksum,
    ip::{self, IpPacket, Rejected},
    virtio::{self, Offloaded},
};

const HEADER_BYTES: usize = 8;
/// Where the checksum is in a UDP header.
const CHECKSUM_OFFSET: usize = 6;
/// The largest packet that an IP header can name.
const IP_LENGTH_MAX: usize = 65_535;

/// A received datagram.
#[derive(Debug)]
pub(crate) struct Datagram<'a> {
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
    pub(crate) payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// Checks lengths and ports, and the checksum unless it is trusted. `message` is what follows the IP header.
    pub(crate) fn parse(packet: &IpPacket<'_>, message: &'a [u8], is_checksum_trusted: bool) -> Result<Self, Rejected> {
        let header = message.first_chunk::<HEADER_BYTES>().ok_or(Rejected::Malformed)?;
        let field = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let length = usize::from(field(4));
        let (src_port, dst_port) = (field(0), field(2));
        if length < HEADER_BYTES || message.len() < length || src_port == 0 || dst_port == 0 {
            return Err(Rejected::Malformed);
        }
        // A zero checksum means none, over IPv4 only (RFC 8200, section 8.1).
        let has_checksum = field(CHECKSUM_OFFSET) != 0 || packet.src.is_ipv6();
        let is_valid = || checksum::is_transport_valid(packet.src, packet.dst, IpProtocol::Udp, &message[..length]);
        if has_checksum && !is_checksum_trusted && !is_valid() {
            return Err(Rejected::Checksum);
        }
        Ok(Self {
            src: SocketAddr::new(packet.src, src_port),
            dst: SocketAddr::new(packet.dst, dst_port),
            payload: &message[HEADER_BYTES..length],
        })
    }
}

/// The longest payload of a datagram: an IPv4 header counts itself, an IPv6 header does not.
pub(crate) fn payload_bytes_max(address: IpAddr) -> usize {
    let ip_header = if address.is_ipv4() { ip::IPV4_HEADER_BYTES } else { 0 };
    IP_LENGTH_MAX - ip_header - HEADER_BYTES
}

/// Length of a datagram's packet, device header included.
pub(crate) fn packet_len(offload: Offload, address: IpAddr, payload: &[u8]) -> usize {
    offload.header_len() + ip::header_len(address) + HEADER_BYTES + payload.len()
}

/// Writes a whole packet, device header included.
pub(crate) fn write(packet: &mut [u8], offload: Offload, src: SocketAddr, dst: SocketAddr, payload: &[u8]) {
    let (header, packet) = packet.split_at_mut(offload.header_len());
    let ip_header_len = ip::header_len(src.ip());
    let length = HEADER_BYTES + payload.len();
    ip::write_header(packet, src.ip(), dst.ip(), IpProtocol::Udp, length);
    let udp = &mut packet[ip_header_len..];
    udp[0..2].copy_from_slice(&src.port().to_be_bytes());
    udp[2..4].copy_from_slice(&dst.port().to_be_bytes());
    udp[4..6].copy_from_slice(&(length as u16).to_be_bytes());
    udp[CHECKSUM_OFFSET..HEADER_BYTES].fill(0);
    udp[HEADER_BYTES..].copy_from_slice(payload);
    let sum = match offload {
        Offload::VirtioNet => {
            let checksum_offset = CHECKSUM_OFFSET;
            let offloaded = Offloaded { checksum_start: ip_header_len, checksum_offset, segments: None };
            virtio::write_offloaded(header, &offloaded);
            checksum::pseudo_header(src.ip(), dst.ip(), IpProtocol::Udp, length)
        }
        Offload::Disabled { .. } => match checksum::transport(src.ip(), dst.ip(), IpProtocol::Udp, udp) {
            0 => u16::MAX, // Zero would mean that there is none.
            sum => sum,
        },
    };
    udp[CHECKSUM_OFFSET..HEADER_BYTES].copy_from_slice(&sum.to_be_bytes());
}
