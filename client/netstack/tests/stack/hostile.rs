//! Packets that no honest kernel sends: nothing panics, memory stays bounded, and everybody else is served.

use std::net::{Ipv4Addr, SocketAddr};

use proptest::prelude::*;
use smoltcp::{
    socket::tcp::State,
    wire::{TcpControl, TcpPacket},
};
use tp_netstack::{Event, FlowId, Netstack, NetstackConfig, Offload, Refusal, Unreachable, VIRTIO_HEADER_BYTES};

use crate::{
    net::{Mode, Net, TUN, pattern},
    opening::{client, client6, server, server6},
    packet,
};

#[test]
fn malformed_packets_are_counted() {
    let mut net = Net::new(Mode::Plain);
    let good = packet::tcp(client(4000), server(), TcpControl::Syn, 1, None);
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = good.clone();
        change(&mut packet);
        packet
    };
    let malformed = [
        vec![],
        vec![0x45],
        good[..19].to_vec(),
        good[..good.len() - 1].to_vec(),
        changed(&|packet| packet[0] = 0x44),
        changed(&|packet| packet[0] = 0x15),
        packet::tcp(client(0), server(), TcpControl::Syn, 1, None),
        packet::tcp(client(4000), SocketAddr::from(([127, 0, 0, 1], 80)), TcpControl::Syn, 1, None),
        packet::tcp(SocketAddr::from(([0, 0, 0, 0], 80)), server(), TcpControl::Syn, 1, None),
        packet::tcp(SocketAddr::from(([224, 0, 0, 1], 80)), server(), TcpControl::Syn, 1, None),
        packet::udp(client(0), server(), b"x"),
    ];
    for packet in &malformed {
        assert!(net.exchange(packet).is_empty(), "{packet:?}");
    }
    assert_eq!(net.stats().malformed, malformed.len() as u64);

    let damaged = [
        changed(&|packet| packet[8] ^= 1),
        changed(&|packet| packet[25] ^= 1),
        {
            let mut packet = packet::udp(client6(4000), server6(), b"hello");
            packet[50] ^= 1;
            packet
        },
        {
            let mut packet = packet::echo(client(1).ip(), server().ip(), 1, 1, b"hello");
            packet[30] ^= 1;
            packet
        },
    ];
    for packet in &damaged {
        assert!(net.exchange(packet).is_empty());
    }
    assert_eq!(net.stats().checksum_errors, damaged.len() as u64);

    let foreign = [
        packet::ip(client(1).ip(), server().ip(), smoltcp::wire::IpProtocol::Unknown(132), 20),
        packet::udp(client(4000), SocketAddr::from(([224, 0, 0, 251], 5353)), b"x"),
        packet::udp(client(4000), SocketAddr::from(([255, 255, 255, 255], 67)), b"x"),
        packet::udp(client6(4000), "[ff02::fb]:5353".parse().expect("an address"), b"x"),
    ];
    for packet in &foreign {
        assert!(net.exchange(packet).is_empty());
    }
    assert_eq!(net.stats().unsupported, foreign.len() as u64);
    assert_eq!(net.events, []);
}

#[test]
fn checksums_are_trusted_when_the_device_vouches_for_them() {
    for (flags, is_taken) in [(0, false), (1, true), (2, true)] {
        let mut net = Net::new(Mode::Offload);
        let mut syn = packet::tcp(client(4000), server(), TcpControl::Syn, 1, None);
        TcpPacket::new_unchecked(&mut syn[20..]).set_checksum(0xdead);
        let mut packet = vec![0; VIRTIO_HEADER_BYTES];
        packet[0] = flags;
        packet.extend(syn);
        let now = net.now();
        net.stack.handle_packet(TUN, &packet, now);
        assert_eq!(net.stack.poll_event().is_some(), is_taken);
    }
}

/// Opens a connection whose sequence numbers are known: the container's next is 100, the stack's is returned.
pub(crate) fn open_by_hand(net: &mut Net) -> (FlowId, u32) {
    net.deliver(&packet::tcp(client(4000), server(), TcpControl::Syn, 99, None));
    let Some(Event::TcpSyn { flow, .. }) = net.events.pop() else { panic!("no SYN") };
    net.stack.accept(flow).expect("the SYN is held");
    let syn_ack = net.collect().remove(0);
    let ack = (syn_ack.tcp().seq_number + 1).0 as u32;
    net.deliver(&packet::tcp(client(4000), server(), TcpControl::None, 100, Some(ack)));
    (flow, ack)
}

/// smoltcp takes the window of its SYN-ACK for a scaled one; it must not be believed.
#[test]
fn segments_beyond_the_first_window_are_dropped() {
    let mut net = Net::new(Mode::Offload);
    let (flow, ack) = open_by_hand(&mut net);
    let payload = pattern(60_000, 1);
    for number in 0..40_u32 {
        net.deliver(&packet::tcp_with(
            client(4000),
            server(),
            TcpControl::None,
            100 + number * 60_000,
            Some(ack),
            &payload,
        ));
    }
    assert_eq!(net.stats().beyond_window, 39);
    assert!(net.recv_all(flow).0 == payload);
    assert!(!net.is_reset(flow));
}

#[test]
fn a_port_scan_leaves_the_stack_serving() {
    let mut net = Net::new(Mode::Offload);
    let (handle, flow) = net.connect(client(1), server());
    for round in 0..20_000_u32 {
        let host = Ipv4Addr::from(0x0a60_0000 + round / 10);
        let dst = SocketAddr::from((host, (round % 1_000) as u16 + 1));
        net.deliver(&packet::tcp(client(4000), dst, TcpControl::Syn, round, None));
        if round % 7 == 0 {
            let events: Vec<_> = net.events.drain(..).collect();
            for event in events {
                let Event::TcpSyn { flow, .. } = event else { panic!("{event:?}") };
                let unreachable = Refusal::Unreachable(Unreachable::Host);
                net.stack.refuse(flow, if round % 2 == 0 { Refusal::Reset } else { unreachable });
            }
            net.collect();
        }
    }
    net.kernel.socket(handle).send_slice(b"alive?").expect("the socket is open");
    net.run();
    assert_eq!(net.recv_all(flow).0, b"alive?");
    assert_eq!(net.stats().syns_dropped, 0);
}

fn stack(offload: Offload) -> (Netstack, std::time::Instant) {
    #[expect(clippy::disallowed_methods, reason = "a fake clock has to start somewhere")]
    let now = std::time::Instant::now();
    let mut stack = Netstack::new(NetstackConfig::default(), now);
    stack.add_tun(TUN, offload);
    (stack, now)
}

proptest! {
    #[test]
    fn random_bytes_never_panic(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..50)) {
        for offload in [Offload::VirtioNet, Offload::Disabled { mtu: 1_500 }] {
            let (mut stack, now) = stack(offload);
            for packet in &packets {
                stack.handle_packet(TUN, packet, now);
            }
            while stack.poll_event().is_some() {}
            while stack.poll_transmit(now).is_some() {}
        }
    }

    /// Bytes behind a plausible IP header, so that the parsers behind it are reached.
    #[test]
    fn random_payloads_never_panic(
        is_ipv6 in any::<bool>(),
        protocol in prop::sample::select(vec![1_u8, 6, 17, 58, 0, 43, 44, 60, 2]),
        payload in prop::collection::vec(any::<u8>(), 0..120),
        flags_and_offset in any::<u16>(),
    ) {
        let (mut stack, now) = stack(Offload::VirtioNet);
        let (src, dst) = if is_ipv6 { (client6(1), server6()) } else { (client(1), server()) };
        let mut packet = packet::ip(src.ip(), dst.ip(), protocol.into(), payload.len());
        let start = packet.len() - payload.len();
        packet[start..].copy_from_slice(&payload);
        if !is_ipv6 {
            packet[6..8].copy_from_slice(&flags_and_offset.to_be_bytes());
            packet[10..12].fill(0);
            let sum = !smoltcp::wire::checksum::data(&packet[..20]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        let mut with_header = vec![0; VIRTIO_HEADER_BYTES];
        with_header[0] = 2;
        with_header.extend(packet);
        stack.handle_packet(TUN, &with_header, now);
        while stack.poll_event().is_some() {}
        while stack.poll_transmit(now).is_some() {}
    }

    /// Any segments, near the window of a live connection.
    #[test]
    fn hostile_segments_never_panic(
        segments in prop::collection::vec(
            (-70_000_i64..700_000, -10_i64..200_000, any::<u8>(), 0_usize..65_000, any::<u16>()), 1..60),
        is_flow_read in any::<bool>(),
    ) {
        let mut net = Net::new(Mode::Offload);
        let (flow, ack) = open_by_hand(&mut net);
        let seq = 100_u32;
        let _ = net.send(flow, &mut pattern(100_000, 1));
        for (seq_offset, ack_offset, flags, len, window) in segments {
            let mut packet = packet::tcp_with(
                client(4000),
                server(),
                TcpControl::None,
                seq.wrapping_add(seq_offset as u32),
                Some(ack.wrapping_add(ack_offset as u32)),
                &vec![0; len.min(65_000)],
            );
            packet[20 + 13] = flags;
            packet[20 + 14..20 + 16].copy_from_slice(&window.to_be_bytes());
            let mut with_header = vec![0; VIRTIO_HEADER_BYTES];
            with_header[0] = 2;
            with_header.extend(packet);
            let now = net.now();
            net.stack.handle_packet(TUN, &with_header, now);
            if is_flow_read {
                let _ = net.recv_all(flow);
            }
            if len % 3 == 0 {
                net.collect();
            }
        }
        net.collect();
        net.events.clear();
        net.stack.close(flow);
        net.collect();
        // A new connection works.
        let (handle, _flow) = net.connect(client(4001), server());
        prop_assert_eq!(net.kernel.state(handle), State::Established);
    }
}
