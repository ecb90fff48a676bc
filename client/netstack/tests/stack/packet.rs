//! Packets made and read by hand.

use std::net::{IpAddr, SocketAddr};

use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{
        Icmpv4Message, Icmpv4Packet, Icmpv6Message, Icmpv6Packet, IpProtocol, IpRepr, Ipv4Packet, Ipv6Packet,
        TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
    },
};

/// A whole UDP packet.
pub(crate) fn udp(src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let repr = UdpRepr { src_port: src.port(), dst_port: dst.port() };
    let mut packet = ip(src.ip(), dst.ip(), IpProtocol::Udp, repr.header_len() + payload.len());
    let start = packet.len() - repr.header_len() - payload.len();
    repr.emit(
        &mut UdpPacket::new_unchecked(&mut packet[start..]),
        &src.ip().into(),
        &dst.ip().into(),
        payload.len(),
        |buffer| buffer.copy_from_slice(payload),
        &ChecksumCapabilities::default(),
    );
    packet
}

/// A whole TCP packet without payload.
pub(crate) fn tcp(src: SocketAddr, dst: SocketAddr, control: TcpControl, seq: u32, ack: Option<u32>) -> Vec<u8> {
    tcp_with(src, dst, control, seq, ack, &[])
}

/// A whole TCP packet.
pub(crate) fn tcp_with(
    src: SocketAddr,
    dst: SocketAddr,
    control: TcpControl,
    seq: u32,
    ack: Option<u32>,
    payload: &[u8],
) -> Vec<u8> {
    let repr = TcpRepr {
        src_port: src.port(),
        dst_port: dst.port(),
        control,
        seq_number: TcpSeqNumber(seq as i32),
        ack_number: ack.map(|ack| TcpSeqNumber(ack as i32)),
        window_len: 65_535,
        window_scale: (control == TcpControl::Syn).then_some(7),
        max_seg_size: (control == TcpControl::Syn).then_some(1460),
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload,
    };
    let mut packet = ip(src.ip(), dst.ip(), IpProtocol::Tcp, repr.buffer_len());
    let start = packet.len() - repr.buffer_len();
    repr.emit(
        &mut TcpPacket::new_unchecked(&mut packet[start..]),
        &src.ip().into(),
        &dst.ip().into(),
        &ChecksumCapabilities::default(),
    );
    packet
}

/// A whole echo request.
pub(crate) fn echo(src: IpAddr, dst: IpAddr, ident: u16, seq: u16, payload: &[u8]) -> Vec<u8> {
    let is_ipv4 = src.is_ipv4();
    let protocol = if is_ipv4 { IpProtocol::Icmp } else { IpProtocol::Icmpv6 };
    let mut packet = ip(src, dst, protocol, 8 + payload.len());
    let start = packet.len() - 8 - payload.len();
    let message = &mut packet[start..];
    message[8..].copy_from_slice(payload);
    if is_ipv4 {
        let mut icmp = Icmpv4Packet::new_unchecked(message);
        icmp.set_msg_type(Icmpv4Message::EchoRequest);
        icmp.set_msg_code(0);
        icmp.set_echo_ident(ident);
        icmp.set_echo_seq_no(seq);
        icmp.fill_checksum();
    } else {
        let (IpAddr::V6(src), IpAddr::V6(dst)) = (src, dst) else { panic!("one family") };
        let mut icmp = Icmpv6Packet::new_unchecked(message);
        icmp.set_msg_type(Icmpv6Message::EchoRequest);
        icmp.set_msg_code(0);
        icmp.set_echo_ident(ident);
        icmp.set_echo_seq_no(seq);
        icmp.fill_checksum(&src, &dst);
    }
    packet
}

/// A whole ICMP error that quotes the packet `about`.
pub(crate) fn icmp_error(kind: Icmpv4Message, code: u8, about: &[u8]) -> Vec<u8> {
    let quoted = Ipv4Packet::new_checked(about).expect("the lengths fit");
    let mut packet = ip(quoted.dst_addr().into(), quoted.src_addr().into(), IpProtocol::Icmp, 8 + about.len());
    let start = packet.len() - 8 - about.len();
    let message = &mut packet[start..];
    message[8..].copy_from_slice(about);
    let mut icmp = Icmpv4Packet::new_unchecked(message);
    icmp.set_msg_type(kind);
    icmp.set_msg_code(code);
    icmp.fill_checksum();
    packet
}

/// An IP header, and room for its payload.
pub(crate) fn ip(src: IpAddr, dst: IpAddr, protocol: IpProtocol, payload_len: usize) -> Vec<u8> {
    let repr = IpRepr::new(src.into(), dst.into(), protocol, payload_len, 64);
    let mut packet = vec![0; repr.buffer_len()];
    repr.emit(&mut packet, &ChecksumCapabilities::default());
    packet
}

/// What a packet that left the stack says.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) protocol: IpProtocol,
    pub(crate) payload: Vec<u8>,
}

impl Parsed {
    /// Reads an IP packet and checks its lengths and header checksum.
    pub(crate) fn new(packet: &[u8]) -> Self {
        if packet[0] >> 4 == 4 {
            let ip = Ipv4Packet::new_checked(packet).expect("the lengths fit");
            assert!(ip.verify_checksum(), "wrong IPv4 header checksum");
            assert_eq!(usize::from(ip.total_len()), packet.len());
            let (src, dst) = (ip.src_addr().into(), ip.dst_addr().into());
            Self { src, dst, protocol: ip.next_header(), payload: ip.payload().to_vec() }
        } else {
            let ip = Ipv6Packet::new_checked(packet).expect("the lengths fit");
            assert_eq!(ip.total_len(), packet.len());
            let (src, dst) = (ip.src_addr().into(), ip.dst_addr().into());
            Self { src, dst, protocol: ip.next_header(), payload: ip.payload().to_vec() }
        }
    }

    /// Reads a UDP datagram and checks its checksum.
    pub(crate) fn udp(&self) -> (SocketAddr, SocketAddr, Vec<u8>) {
        assert_eq!(self.protocol, IpProtocol::Udp);
        let udp = UdpPacket::new_checked(&self.payload[..]).expect("the lengths fit");
        assert!(udp.verify_checksum(&self.src.into(), &self.dst.into()), "wrong UDP checksum");
        ((self.src, udp.src_port()).into(), (self.dst, udp.dst_port()).into(), udp.payload().to_vec())
    }

    /// Reads a TCP segment and checks its checksum.
    pub(crate) fn tcp(&self) -> TcpRepr<'_> {
        assert_eq!(self.protocol, IpProtocol::Tcp);
        let tcp = TcpPacket::new_checked(&self.payload[..]).expect("the lengths fit");
        TcpRepr::parse(
            &TcpPacket::new_unchecked(&self.payload[..]),
            &self.src.into(),
            &self.dst.into(),
            &ChecksumCapabilities::default(),
        )
        .unwrap_or_else(|_error| panic!("not a valid segment: {tcp}"))
    }

    /// Returns type and code of an ICMP message, checks its checksum, and the rest from byte 4 on.
    pub(crate) fn icmp(&self) -> (u8, u8, &[u8]) {
        let is_valid = match (self.src, self.dst) {
            (IpAddr::V4(_), IpAddr::V4(_)) => {
                assert_eq!(self.protocol, IpProtocol::Icmp);
                Icmpv4Packet::new_checked(&self.payload[..]).expect("long enough").verify_checksum()
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                assert_eq!(self.protocol, IpProtocol::Icmpv6);
                Icmpv6Packet::new_checked(&self.payload[..]).expect("long enough").verify_checksum(&src, &dst)
            }
            _ => panic!("one family"),
        };
        assert!(is_valid, "wrong ICMP checksum");
        (self.payload[0], self.payload[1], &self.payload[4..])
    }
}
