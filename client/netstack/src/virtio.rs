//! The virtio-net header in front of packets of a device with `IFF_VNET_HDR` (virtio 1.2, section 5.1.6).
//!
//! | bytes | field | here |
//! |---|---|---|
//! | 0 | flags | 1: checksum not filled in, 2: checksum verified |
//! | 1 | gso_type | 0 none, 1 TCP over IPv4, 4 TCP over IPv6 |
//! | 2..4 | hdr_len | length of IP and TCP header |
//! | 4..6 | gso_size | payload bytes per segment |
//! | 6..8 | csum_start | where the checksummed part starts |
//! | 8..10 | csum_offset | where in it the checksum belongs |
//!
//! Numbers are in the host's byte order, as the kernel has them unless `TUNSETVNETLE` was used.

/// Length of the header, to be set with `TUNSETVNETHDRSZ`.
pub const VIRTIO_HEADER_BYTES: usize = 10;

const FLAG_NEEDS_CHECKSUM: u8 = 1;
const FLAG_DATA_VALID: u8 = 2;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// Whether the transport checksum of a received packet is either not there yet or known to be right.
pub(crate) fn is_checksum_trusted(header: &[u8]) -> bool {
    header.first().is_some_and(|flags| flags & (FLAG_NEEDS_CHECKSUM | FLAG_DATA_VALID) != 0)
}

/// What the device shall do with a packet's transport checksum, and how it shall cut the packet.
pub(crate) struct Offloaded {
    /// Length of the IP header.
    pub(crate) checksum_start: usize,
    /// Place of the checksum field in the transport header, which holds the sum of the pseudo-header.
    pub(crate) checksum_offset: usize,
    /// Set for a super-packet.
    pub(crate) segments: Option<Segments>,
}

/// How a super-packet is cut.
pub(crate) struct Segments {
    pub(crate) is_ipv6: bool,
    /// Length of IP and TCP header.
    pub(crate) header_len: usize,
    /// Payload bytes per segment.
    pub(crate) size: u16,
}

/// Writes the header of a packet whose checksums are complete.
pub(crate) fn write_plain(header: &mut [u8]) {
    header.fill(0);
}

/// Writes the header of a packet that the device finishes.
pub(crate) fn write_offloaded(header: &mut [u8], offloaded: &Offloaded) {
    header.fill(0);
    header[0] = FLAG_NEEDS_CHECKSUM;
    if let Some(segments) = &offloaded.segments {
        header[1] = if segments.is_ipv6 { GSO_TCPV6 } else { GSO_TCPV4 };
        header[2..4].copy_from_slice(&(segments.header_len as u16).to_ne_bytes());
        header[4..6].copy_from_slice(&segments.size.to_ne_bytes());
    }
    header[6..8].copy_from_slice(&(offloaded.checksum_start as u16).to_ne_bytes());
    header[8..10].copy_from_slice(&(offloaded.checksum_offset as u16).to_ne_bytes());
}
