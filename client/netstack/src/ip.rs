//! IP headers in and out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::wire::IpProtocol;

use crate::checksum;

/// Length of an IPv4 header without options.
pub(crate) const IPV4_HEADER_BYTES: usize = 20;
/// Length of an IPv6 header without extensions.
pub(crate) const IPV6_HEADER_BYTES: usize = 40;
/// IPv6 extension headers that are walked through before a packet counts as malformed.
const EXTENSIONS_MAX: usize = 8;
/// What Linux sets.
const HOP_LIMIT: u8 = 64;

/// A received packet whose IP header has been checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IpPacket<'a> {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) protocol: IpProtocol,
    /// Set for a part of a packet.
    pub(crate) fragment: Option<Fragment>,
    /// From the IP header to the end that it names; what the device appended is cut off.
    pub(crate) whole: &'a [u8],
    /// Behind the IP header and its options or extensions.
    pub(crate) payload: &'a [u8],
}

/// Where a fragment belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fragment {
    pub(crate) ident: u32,
    pub(crate) offset_bytes: usize,
    pub(crate) is_last: bool,
}

/// Why a packet goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejected {
    Malformed,
    Checksum,
    Unsupported,
}

impl<'a> IpPacket<'a> {
    /// Checks the header and the addresses: both unicast, neither loopback nor unspecified.
    pub(crate) fn parse(packet: &'a [u8]) -> Result<Self, Rejected> {
        let parsed = match packet.first().map(|byte| byte >> 4) {
            Some(4) => Self::parse_ipv4(packet)?,
            Some(6) => Self::parse_ipv6(packet)?,
            Some(_) | None => return Err(Rejected::Malformed),
        };
        if parsed.dst.is_multicast() || parsed.dst == IpAddr::V4(Ipv4Addr::BROADCAST) {
            return Err(Rejected::Unsupported);
        }
        if !is_host(parsed.src) || !is_host(parsed.dst) {
            return Err(Rejected::Malformed);
        }
        Ok(parsed)
    }

    fn parse_ipv4(packet: &'a [u8]) -> Result<Self, Rejected> {
        let header = packet.first_chunk::<IPV4_HEADER_BYTES>().ok_or(Rejected::Malformed)?;
        let header_len = usize::from(header[0] & 0xf) * 4;
        let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header_len < IPV4_HEADER_BYTES || total_len < header_len || packet.len() < total_len {
            return Err(Rejected::Malformed);
        }
        let whole = &packet[..total_len];
        if !checksum::is_plain_valid(&whole[..header_len]) {
            return Err(Rejected::Checksum);
        }
        let flags_and_offset = u16::from_be_bytes([header[6], header[7]]);
        let more = flags_and_offset & 0x2000 != 0;
        let offset_bytes = usize::from(flags_and_offset & 0x1fff) * 8;
        let fragment = (more || offset_bytes != 0).then(|| Fragment {
            ident: u32::from(u16::from_be_bytes([header[4], header[5]])),
            offset_bytes,
            is_last: !more,
        });
        Ok(Self {
            src: Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
            dst: Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
            protocol: header[9].into(),
            fragment,
            whole,
            payload: &whole[header_len..],
        })
    }

    fn parse_ipv6(packet: &'a [u8]) -> Result<Self, Rejected> {
        let header = packet.first_chunk::<IPV6_HEADER_BYTES>().ok_or(Rejected::Malformed)?;
        let total_len = IPV6_HEADER_BYTES + usize::from(u16::from_be_bytes([header[4], header[5]]));
        let whole = packet.get(..total_len).ok_or(Rejected::Malformed)?;
        let (protocol, fragment, payload) = walk_extensions(header[6].into(), &whole[IPV6_HEADER_BYTES..])?;
        let (src, dst) = (ipv6_address(&header[8..24]), ipv6_address(&header[24..40]));
        Ok(Self { src, dst, protocol, fragment, whole, payload })
    }

    /// Whether the transport header follows the fixed IP header or IPv4 options at once.
    pub(crate) fn has_extensions(&self) -> bool {
        self.src.is_ipv6() && self.whole.len() - self.payload.len() != IPV6_HEADER_BYTES
    }
}

/// Steps over extension headers (RFC 8200, section 4) to the first header that is none, or into the fragment header.
fn walk_extensions(mut next: IpProtocol, mut rest: &[u8]) -> Result<(IpProtocol, Option<Fragment>, &[u8]), Rejected> {
    let mut fragment = None;
    for _ in 0..EXTENSIONS_MAX {
        match next {
            IpProtocol::HopByHop | IpProtocol::Ipv6Opts | IpProtocol::Ipv6Route => {
                let header = rest.first_chunk::<8>().ok_or(Rejected::Malformed)?;
                if next == IpProtocol::Ipv6Route && header[3] != 0 {
                    return Err(Rejected::Unsupported); // Segments left: the packet is for somebody else.
                }
                next = header[0].into();
                rest = rest.get((usize::from(header[1]) + 1) * 8..).ok_or(Rejected::Malformed)?;
            }
            IpProtocol::Ipv6Frag => {
                let header = rest.first_chunk::<8>().ok_or(Rejected::Malformed)?;
                let offset_and_flags = u16::from_be_bytes([header[2], header[3]]);
                fragment = Some(Fragment {
                    ident: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
                    offset_bytes: usize::from(offset_and_flags & !7),
                    is_last: offset_and_flags & 1 == 0,
                });
                next = header[0].into();
                rest = &rest[8..];
                // An atomic fragment (RFC 6946) is a whole packet.
                if fragment.is_some_and(|part| part.offset_bytes == 0 && part.is_last) {
                    fragment = None;
                } else {
                    return Ok((next, fragment, rest));
                }
            }
            IpProtocol::Icmp
            | IpProtocol::Igmp
            | IpProtocol::Tcp
            | IpProtocol::Udp
            | IpProtocol::IpSecEsp
            | IpProtocol::IpSecAh
            | IpProtocol::Icmpv6
            | IpProtocol::Ipv6NoNxt
            | IpProtocol::Unknown(_) => return Ok((next, fragment, rest)),
        }
    }
    Err(Rejected::Malformed)
}

fn is_host(address: IpAddr) -> bool {
    !address.is_unspecified()
        && !address.is_loopback()
        && !address.is_multicast()
        && address != IpAddr::V4(Ipv4Addr::BROADCAST)
}

/// Length of the header that [`write_header`] makes.
pub(crate) fn header_len(address: IpAddr) -> usize {
    if address.is_ipv4() { IPV4_HEADER_BYTES } else { IPV6_HEADER_BYTES }
}

/// Source and destination of a packet made here.
pub(crate) fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    if packet.first()? >> 4 == 4 {
        let header = packet.first_chunk::<IPV4_HEADER_BYTES>()?;
        let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]).into();
        Some((address(12), address(16)))
    } else {
        let header = packet.first_chunk::<IPV6_HEADER_BYTES>()?;
        Some((ipv6_address(&header[8..24]), ipv6_address(&header[24..40])))
    }
}

fn ipv6_address(bytes: &[u8]) -> IpAddr {
    let octets: [u8; 16] = bytes.try_into().expect("the slice is cut to 16 bytes");
    Ipv6Addr::from(octets).into()
}

/// Writes an IP header, complete with its checksum, to the front of `packet`.
///
/// # Panics
/// When the addresses are of different families.
pub(crate) fn write_header(packet: &mut [u8], src: IpAddr, dst: IpAddr, protocol: IpProtocol, payload_len: usize) {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let header = &mut packet[..IPV4_HEADER_BYTES];
            header.fill(0);
            header[0] = 0x45;
            header[2..4].copy_from_slice(&((IPV4_HEADER_BYTES + payload_len) as u16).to_be_bytes());
            header[6] = 0x40; // Do not fragment, so the identification may stay 0 (RFC 6864).
            header[8] = HOP_LIMIT;
            header[9] = protocol.into();
            header[12..16].copy_from_slice(&src.octets());
            header[16..20].copy_from_slice(&dst.octets());
            let sum = checksum::plain(header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let header = &mut packet[..IPV6_HEADER_BYTES];
            header[..4].copy_from_slice(&[0x60, 0, 0, 0]);
            header[4..6].copy_from_slice(&(payload_len as u16).to_be_bytes());
            header[6] = protocol.into();
            header[7] = HOP_LIMIT;
            header[8..24].copy_from_slice(&src.octets());
            header[24..40].copy_from_slice(&dst.octets());
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
            unreachable!("both addresses come from one packet")
        }
    }
}
