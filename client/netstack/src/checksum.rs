//! Internet checksums (RFC 1071).

use std::net::IpAddr;

use smoltcp::wire::{IpProtocol, checksum};

/// The sum of the pseudo-header, as a `CHECKSUM_PARTIAL` packet carries it in its checksum field.
pub(crate) fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: IpProtocol, length: usize) -> u16 {
    checksum::pseudo_header(&src.into(), &dst.into(), protocol, length as u32)
}

/// The checksum field of a transport packet whose field is zero.
pub(crate) fn transport(src: IpAddr, dst: IpAddr, protocol: IpProtocol, packet: &[u8]) -> u16 {
    !checksum::combine(&[pseudo_header(src, dst, protocol, packet.len()), checksum::data(packet)])
}

/// Whether a transport packet's checksum field is right.
pub(crate) fn is_transport_valid(src: IpAddr, dst: IpAddr, protocol: IpProtocol, packet: &[u8]) -> bool {
    checksum::combine(&[pseudo_header(src, dst, protocol, packet.len()), checksum::data(packet)]) == !0
}

/// The checksum field of a packet without a pseudo-header (IPv4 header, ICMP) whose field is zero.
pub(crate) fn plain(packet: &[u8]) -> u16 {
    !checksum::data(packet)
}

/// Whether the checksum field of a packet without a pseudo-header is right.
pub(crate) fn is_plain_valid(packet: &[u8]) -> bool {
    checksum::data(packet) == !0
}
