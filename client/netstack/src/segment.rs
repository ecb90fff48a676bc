//! The parts of a TCP header that steer a packet to its flow, and the segments made without a socket.

use std::net::SocketAddr;

use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{IpProtocol, IpRepr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber},
};

use crate::{
    checksum,
    ip::{self, IpPacket, Rejected},
};

const HEADER_BYTES: usize = 20;
const FLAG_FIN: u8 = 1;
const FLAG_SYN: u8 = 2;
const FLAG_RST: u8 = 4;
const FLAG_ACK: u8 = 16;

/// A TCP segment's header, checked for length only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) src_port: u16,
    pub(crate) dst_port: u16,
    pub(crate) seq: u32,
    /// Meaningful when [`Segment::has_ack`].
    pub(crate) ack: u32,
    pub(crate) header_len: usize,
    pub(crate) payload_len: usize,
    flags: u8,
}

impl Segment {
    pub(crate) fn parse(packet: &[u8]) -> Result<Self, Rejected> {
        let header = packet.first_chunk::<HEADER_BYTES>().ok_or(Rejected::Malformed)?;
        let header_len = usize::from(header[12] >> 4) * 4;
        let src_port = u16::from_be_bytes([header[0], header[1]]);
        let dst_port = u16::from_be_bytes([header[2], header[3]]);
        if header_len < HEADER_BYTES || packet.len() < header_len || src_port == 0 || dst_port == 0 {
            return Err(Rejected::Malformed);
        }
        Ok(Self {
            src_port,
            dst_port,
            seq: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            ack: u32::from_be_bytes([header[8], header[9], header[10], header[11]]),
            header_len,
            payload_len: packet.len() - header_len,
            flags: header[13],
        })
    }

    pub(crate) fn has_ack(&self) -> bool {
        self.flags & FLAG_ACK != 0
    }

    pub(crate) fn has_rst(&self) -> bool {
        self.flags & FLAG_RST != 0
    }

    pub(crate) fn has_syn(&self) -> bool {
        self.flags & FLAG_SYN != 0
    }

    /// Asks for a new connection.
    pub(crate) fn is_initial_syn(&self) -> bool {
        self.flags & (FLAG_SYN | FLAG_ACK | FLAG_RST | FLAG_FIN) == FLAG_SYN
    }

    /// Sequence numbers that the segment takes.
    pub(crate) fn sequence_len(&self) -> u32 {
        let controls = u32::from(self.has_syn()) + u32::from(self.flags & FLAG_FIN != 0);
        (self.payload_len as u32).wrapping_add(controls)
    }

    /// The sequence number behind the segment.
    pub(crate) fn sequence_end(&self) -> u32 {
        self.seq.wrapping_add(self.sequence_len())
    }
}

/// What a held SYN asked for; enough to make the SYN again when it is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeldSyn {
    /// The container's initial sequence number.
    pub(crate) seq: u32,
    window: u16,
    mss: Option<u16>,
    window_scale: Option<u8>,
    is_sack_permitted: bool,
}

/// What a TCP has to assume when no MSS is announced (RFC 9293, section 3.7.1), and smoltcp's lower bound.
const MSS_DEFAULT: u16 = 536;
const MSS_MIN: u16 = 48;

impl HeldSyn {
    pub(crate) fn parse(packet: &IpPacket<'_>) -> Result<Self, Rejected> {
        let tcp = TcpPacket::new_checked(packet.payload).map_err(|_error| Rejected::Malformed)?;
        let ignored = ChecksumCapabilities::ignored(); // Verified, or trusted, already.
        let repr = TcpRepr::parse(&tcp, &packet.src.into(), &packet.dst.into(), &ignored)
            .map_err(|_error| Rejected::Malformed)?;
        Ok(Self {
            seq: repr.seq_number.0 as u32,
            window: repr.window_len,
            mss: repr.max_seg_size,
            window_scale: repr.window_scale,
            is_sack_permitted: repr.sack_permitted,
        })
    }

    /// The largest segment that the container takes.
    pub(crate) fn mss(&self) -> u16 {
        self.mss.filter(|mss| *mss != 0).unwrap_or(MSS_DEFAULT).max(MSS_MIN)
    }

    /// Makes the SYN again, without what it carried besides options.
    pub(crate) fn to_packet(self, src: SocketAddr, dst: SocketAddr) -> Vec<u8> {
        let repr = TcpRepr {
            src_port: src.port(),
            dst_port: dst.port(),
            control: TcpControl::Syn,
            seq_number: TcpSeqNumber(self.seq as i32),
            ack_number: None,
            window_len: self.window,
            window_scale: self.window_scale,
            max_seg_size: self.mss,
            sack_permitted: self.is_sack_permitted,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        let (src, dst) = (src.ip().into(), dst.ip().into());
        let ip = IpRepr::new(src, dst, IpProtocol::Tcp, repr.buffer_len(), 64);
        let mut packet = vec![0; ip.buffer_len()];
        let ignored = ChecksumCapabilities::ignored();
        ip.emit(&mut packet, &ignored);
        repr.emit(&mut TcpPacket::new_unchecked(&mut packet[ip.header_len()..]), &src, &dst, &ignored);
        packet
    }
}

/// A segment without payload, made by hand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Control {
    seq: u32,
    ack: Option<u32>,
    is_reset: bool,
}

impl Control {
    /// The RST that answers `segment` where no connection is (RFC 9293, section 3.5.2, group 1).
    pub(crate) fn reset_for(segment: &Segment) -> Self {
        if segment.has_ack() {
            Self { seq: segment.ack, ack: None, is_reset: true }
        } else {
            Self { seq: 0, ack: Some(segment.sequence_end()), is_reset: true }
        }
    }

    /// The RST that refuses a SYN.
    pub(crate) fn reset_for_syn(syn: HeldSyn) -> Self {
        Self { seq: 0, ack: Some(syn.seq.wrapping_add(1)), is_reset: true }
    }

    /// The ACK that tells the container where this side is.
    pub(crate) fn acknowledge(seq: u32, ack: u32) -> Self {
        Self { seq, ack: Some(ack), is_reset: false }
    }

    /// Length of IP header and segment.
    pub(crate) fn packet_len(src: SocketAddr) -> usize {
        ip::header_len(src.ip()) + HEADER_BYTES
    }

    /// Writes the whole packet from `src` to `dst`.
    pub(crate) fn write(self, packet: &mut [u8], src: SocketAddr, dst: SocketAddr) {
        ip::write_header(packet, src.ip(), dst.ip(), IpProtocol::Tcp, HEADER_BYTES);
        let tcp = &mut packet[ip::header_len(src.ip())..];
        tcp.fill(0);
        tcp[0..2].copy_from_slice(&src.port().to_be_bytes());
        tcp[2..4].copy_from_slice(&dst.port().to_be_bytes());
        tcp[4..8].copy_from_slice(&self.seq.to_be_bytes());
        tcp[8..12].copy_from_slice(&self.ack.unwrap_or(0).to_be_bytes());
        tcp[12] = (HEADER_BYTES as u8 / 4) << 4;
        tcp[13] = if self.ack.is_some() { FLAG_ACK } else { 0 } | if self.is_reset { FLAG_RST } else { 0 };
        if !self.is_reset {
            tcp[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
        }
        let sum = checksum::transport(src.ip(), dst.ip(), IpProtocol::Tcp, tcp);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    }
}
