//! UDP associations, ICMP echo, fragments.

use std::{
    net::{IpAddr, SocketAddr},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use smoltcp::wire::IpProtocol;
use tp_netstack::{AssociationId, DatagramError, EchoRequest, Event, FlowKey, Limits, NetstackConfig, Unreachable};

use crate::{
    net::{MODES, Mode, Net, TUN, pattern},
    opening::{client, client6, server, server6},
    packet,
};

const ENDS: [fn() -> (SocketAddr, SocketAddr); 2] = [|| (client(4000), server()), || (client6(4000), server6())];

fn open(net: &mut Net, src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> AssociationId {
    net.deliver(&packet::udp(src, dst, payload));
    let Some(Event::UdpAssociation { association, key }) = net.events.pop() else { panic!("no association") };
    assert_eq!(key, FlowKey { tun: TUN, src, dst });
    association
}

fn recv(net: &mut Net, association: AssociationId) -> Poll<Option<Bytes>> {
    net.stack.poll_recv_datagram(association, &mut Context::from_waker(Waker::noop()))
}

#[test]
fn datagrams_of_every_size_pass_both_ways() {
    for mode in MODES {
        for ends in ENDS {
            let (src, dst) = ends();
            let mut net = Net::new(mode);
            let association = open(&mut net, src, dst, b"first");
            assert_eq!(recv(&mut net, association), Poll::Ready(Some(Bytes::from_static(b"first"))));
            for len in [0, 1, 2, 3, 511, 1_400, 1_472, 1_473, 9_000, 16_384, 65_487, 65_506, 65_507] {
                let payload = pattern(len, len as u64);
                net.deliver(&packet::udp(src, dst, &payload));
                assert_eq!(recv(&mut net, association), Poll::Ready(Some(payload.clone())), "{len} bytes up");
                net.stack.send_datagram(association, payload.clone()).expect("it is not too long");
                let sent = net.collect();
                assert_eq!(sent.len(), 1);
                assert_eq!(sent[0].udp(), (dst, src, payload.to_vec()), "{len} bytes down");
            }
            assert_eq!(recv(&mut net, association), Poll::Pending);
            assert_eq!(net.events, [], "one association only");
        }
    }
}

#[test]
fn a_datagram_that_no_header_can_name_is_refused() {
    for (ends, max) in ENDS.into_iter().zip([65_507, 65_527]) {
        let (src, dst) = ends();
        let mut net = Net::new(Mode::Offload);
        let association = open(&mut net, src, dst, b"first");
        let refused = net.stack.send_datagram(association, pattern(max + 1, 1));
        assert_eq!(refused, Err(DatagramError::TooLong { len: max + 1, max }));
        net.stack.send_datagram(association, pattern(max, 1)).expect("the longest");
        assert_eq!(net.collect()[0].udp().2.len(), max);
    }
}

#[test]
fn datagrams_keep_their_order() {
    let mut net = Net::new(Mode::Offload);
    let association = open(&mut net, client(4000), server(), &[0]);
    for number in 1..100_u8 {
        net.deliver(&packet::udp(client(4000), server(), &[number]));
    }
    for number in 0..100_u8 {
        assert_eq!(recv(&mut net, association), Poll::Ready(Some(Bytes::copy_from_slice(&[number]))));
    }
    for number in 0..100_u8 {
        net.stack.send_datagram(association, Bytes::copy_from_slice(&[number])).expect("there is room");
    }
    let sent: Vec<u8> = net.collect().iter().map(|packet| packet.udp().2[0]).collect();
    assert!(sent.is_sorted() && sent.len() == 100, "{sent:?}");
}

#[test]
fn queues_drop_the_newest_and_count_it() {
    let limits = Limits { association_queue: 3, outgoing_datagrams: 3, associations: 2, ..Limits::default() };
    let mut net = Net::with_config(Mode::Offload, NetstackConfig { limits, ..NetstackConfig::default() });
    let association = open(&mut net, client(4000), server(), &[0]);
    for number in 1..10_u8 {
        net.deliver(&packet::udp(client(4000), server(), &[number]));
    }
    let received: Vec<_> = (0..3).map(|_| recv(&mut net, association)).collect();
    assert_eq!(received[2], Poll::Ready(Some(Bytes::from_static(&[2]))));
    assert_eq!(recv(&mut net, association), Poll::Pending);
    assert_eq!(net.stats().datagrams_in_dropped, 7);

    for number in 0..3_u8 {
        net.stack.send_datagram(association, Bytes::copy_from_slice(&[number])).expect("there is room");
    }
    assert_eq!(net.stack.send_datagram(association, Bytes::from_static(&[3])), Err(DatagramError::QueueFull));
    assert_eq!(net.stats().datagrams_out_dropped, 1);
    assert_eq!(net.collect().len(), 3);

    open(&mut net, client(4001), server(), &[0]);
    net.deliver(&packet::udp(client(4002), server(), &[0]));
    assert_eq!(net.events, [], "a third association is above the limit");
    assert_eq!(net.stats().datagrams_in_dropped, 8);
}

#[test]
fn the_bytes_of_all_associations_are_bounded() {
    let limits = Limits { association_bytes: 100_000, ..Limits::default() };
    let mut net = Net::with_config(Mode::Offload, NetstackConfig { limits, ..NetstackConfig::default() });
    let first = open(&mut net, client(4000), server(), &[7; 60_000]);
    let second = open(&mut net, client(4001), server(), &[8; 60_000]);
    assert_eq!(recv(&mut net, second), Poll::Pending);
    assert_eq!(net.stats().datagrams_in_dropped, 1);
    net.stack.close_association(first);
    net.deliver(&packet::udp(client(4001), server(), &[9; 60_000]));
    assert!(matches!(recv(&mut net, second), Poll::Ready(Some(payload)) if payload.len() == 60_000));
}

#[test]
fn a_refused_association_answers_port_unreachable() {
    for ends in ENDS {
        let (src, dst) = ends();
        let mut net = Net::new(Mode::Offload);
        let association = open(&mut net, src, dst, b"anybody?");
        net.stack.refuse_association(association, Unreachable::Port);
        let answers = net.collect();
        assert_eq!(answers.len(), 1);
        assert_eq!((answers[0].src, answers[0].dst), (dst.ip(), src.ip()));
        let (kind, code, rest) = answers[0].icmp();
        assert_eq!((kind, code), if src.is_ipv4() { (3, 3) } else { (1, 4) });
        let ip_header = if src.is_ipv4() { 20 } else { 40 };
        assert_eq!(rest[4 + ip_header..][..2], src.port().to_be_bytes());
        assert_eq!(rest[4 + ip_header..][2..4], dst.port().to_be_bytes());
        assert_eq!(recv(&mut net, association), Poll::Ready(None));
        open(&mut net, src, dst, b"again");
    }
}

#[test]
fn a_port_that_the_container_closed_ends_the_association() {
    for ends in ENDS {
        let (src, dst) = ends();
        let mut net = Net::new(Mode::Offload);
        let association = open(&mut net, src, dst, b"question");
        net.stack.send_datagram(association, Bytes::from_static(b"late answer")).expect("there is room");
        let answer = net.collect().remove(0);
        assert_eq!(answer.udp().2, b"late answer");
        // What Linux sends: its own header, and ours with the first 8 bytes behind it.
        let ours = packet::udp(dst, src, b"late answer");
        let protocol = if src.is_ipv4() { IpProtocol::Icmp } else { IpProtocol::Icmpv6 };
        let mut error = packet::ip(src.ip(), dst.ip(), protocol, 8 + ours.len());
        let start = error.len() - 8 - ours.len();
        error[start] = if src.is_ipv4() { 3 } else { 1 };
        error[start + 1] = if src.is_ipv4() { 3 } else { 4 };
        error[start + 8..].copy_from_slice(&ours);
        let sum = match (src.ip(), dst.ip()) {
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let pseudo = smoltcp::wire::checksum::pseudo_header_v6(
                    &from,
                    &to,
                    IpProtocol::Icmpv6,
                    (error.len() - start) as u32,
                );
                !smoltcp::wire::checksum::combine(&[pseudo, smoltcp::wire::checksum::data(&error[start..])])
            }
            _ => !smoltcp::wire::checksum::data(&error[start..]),
        };
        error[start + 2..start + 4].copy_from_slice(&sum.to_be_bytes());
        net.deliver(&error);
        assert_eq!(recv(&mut net, association), Poll::Ready(None));
        assert_eq!(net.stack.usage().associations, 0);
    }
}

#[test]
fn associations_end_when_idle() {
    let mut net = Net::new(Mode::Offload);
    let unanswered = open(&mut net, client(4000), server(), b"a");
    let answered = open(&mut net, client(4001), server(), b"b");
    for association in [unanswered, answered] {
        assert!(recv(&mut net, association).is_ready());
    }
    net.stack.send_datagram(answered, Bytes::from_static(b"c")).expect("there is room");
    net.sleep(Duration::from_secs(29));
    assert_eq!(recv(&mut net, unanswered), Poll::Pending);
    net.sleep(Duration::from_secs(2));
    assert_eq!(recv(&mut net, unanswered), Poll::Ready(None));
    assert_eq!(recv(&mut net, answered), Poll::Pending);

    net.sleep(Duration::from_secs(80));
    net.deliver(&packet::udp(client(4001), server(), b"still here"));
    assert!(recv(&mut net, answered).is_ready());
    net.sleep(Duration::from_secs(119));
    assert_eq!(recv(&mut net, answered), Poll::Pending, "the datagram prolonged it");
    net.sleep(Duration::from_secs(2));
    assert_eq!(recv(&mut net, answered), Poll::Ready(None));
    assert_eq!(net.stack.send_datagram(answered, Bytes::new()), Err(DatagramError::Gone));
    assert_eq!(net.stack.usage().associations, 0);
    assert_eq!(net.stack.poll_timeout(), None);
}

#[test]
fn served_addresses_have_no_associations() {
    let mut net = Net::new(Mode::Offload);
    let dns: SocketAddr = ([198, 18, 0, 2], 53).into();
    net.stack.serve_datagrams(dns);
    net.deliver(&packet::udp(client(4000), dns, b"A?"));
    net.deliver(&packet::udp(client(4000), dns, b"AAAA?"));
    let key = FlowKey { tun: TUN, src: client(4000), dst: dns };
    let expected = |payload: &'static [u8]| Event::Datagram { key, payload: Bytes::from_static(payload) };
    assert_eq!(net.events, [expected(b"A?"), expected(b"AAAA?")]);
    assert_eq!(net.stack.usage().associations, 0);
    net.stack.reply_datagram(key, Bytes::from_static(b"10.0.0.1")).expect("there is room");
    assert_eq!(net.collect()[0].udp(), (dns, client(4000), b"10.0.0.1".to_vec()));
}

#[test]
fn echo_is_an_event_and_answered_on_demand() {
    for mode in MODES {
        for ends in ENDS {
            let (src, dst) = ends();
            let mut net = Net::new(mode);
            let payload = pattern(1_000, 1);
            assert!(net.exchange(&packet::echo(src.ip(), dst.ip(), 7, 3, &payload)).is_empty());
            let Some(Event::Echo(request)) = net.events.pop() else { panic!("no echo") };
            let expected =
                EchoRequest { tun: TUN, src: src.ip(), dst: dst.ip(), ident: 7, seq: 3, payload: payload.clone() };
            assert_eq!(request, expected);

            net.stack.reply_echo(request.clone());
            let answers = net.collect();
            assert_eq!(answers.len(), 1);
            assert_eq!((answers[0].src, answers[0].dst), (dst.ip(), src.ip()));
            let (kind, code, rest) = answers[0].icmp();
            assert_eq!((kind, code), if src.is_ipv4() { (0, 0) } else { (129, 0) });
            assert_eq!(rest[..4], [0, 7, 0, 3]);
            assert_eq!(rest[4..], payload);

            net.stack.refuse_echo(&request, Unreachable::Host);
            let (kind, code, rest) = {
                let answers = net.collect();
                let (kind, code, rest) = answers[0].icmp();
                (kind, code, rest.to_vec())
            };
            assert_eq!((kind, code), if src.is_ipv4() { (3, 1) } else { (1, 3) });
            let ip_header = if src.is_ipv4() { 20 } else { 40 };
            assert_eq!(rest[4 + ip_header + 4..][..4], [0, 7, 0, 3]);
        }
    }
}

#[test]
fn echo_replies_longer_than_a_packet_are_dropped_and_counted() {
    for (ends, longest) in [(ENDS[0], 65_507), (ENDS[1], 65_527)] {
        let (src, dst) = ends();
        let mut net = Net::new(Mode::Offload);
        net.deliver(&packet::echo(src.ip(), dst.ip(), 7, 3, b""));
        let Some(Event::Echo(request)) = net.events.pop() else { panic!("no echo") };
        for (len, replies) in [(longest, 1), (longest + 1, 0)] {
            net.stack.reply_echo(EchoRequest { payload: pattern(len, 1), ..request.clone() });
            assert_eq!(net.collect().len(), replies, "{len}");
        }
        assert_eq!(net.stats().datagrams_out_dropped, 1);
    }
}

/// Cuts a packet as the kernel does.
pub(crate) fn fragments(whole: &[u8], mtu: usize, ident: u32) -> Vec<Vec<u8>> {
    let is_ipv4 = whole[0] >> 4 == 4;
    let header_len = if is_ipv4 { 20 } else { 40 };
    let (header, payload) = whole.split_at(header_len);
    let overhead = if is_ipv4 { header_len } else { header_len + 8 };
    let step = (mtu - overhead) / 8 * 8;
    let mut made = Vec::new();
    for (number, part) in payload.chunks(step).enumerate() {
        let offset = number * step;
        let is_last = offset + part.len() == payload.len();
        let mut packet = header.to_vec();
        if is_ipv4 {
            packet[2..4].copy_from_slice(&((header_len + part.len()) as u16).to_be_bytes());
            packet[4..6].copy_from_slice(&(ident as u16).to_be_bytes());
            let flags = (offset / 8) as u16 | if is_last { 0 } else { 0x2000 };
            packet[6..8].copy_from_slice(&flags.to_be_bytes());
            packet[10..12].fill(0);
            let sum = !smoltcp::wire::checksum::data(&packet[..20]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            packet[4..6].copy_from_slice(&((8 + part.len()) as u16).to_be_bytes());
            packet.extend_from_slice(&[packet[6], 0]);
            packet[6] = 44;
            packet.extend_from_slice(&(offset as u16 | u16::from(!is_last)).to_be_bytes());
            packet.extend_from_slice(&ident.to_be_bytes());
        }
        packet.extend_from_slice(part);
        made.push(packet);
    }
    made
}

#[test]
fn fragments_are_put_together() {
    for ends in ENDS {
        let (src, dst) = ends();
        for (len, mtu) in [(65_507, 65_535), (65_507, 1_500), (3_000, 1_500), (1_480, 1_500)] {
            let mut net = Net::new(Mode::Offload);
            let payload = pattern(len, 1);
            let parts = fragments(&packet::udp(src, dst, &payload), mtu, 99);
            for part in &parts {
                assert_eq!(net.events, []);
                net.deliver(part);
            }
            let Some(Event::UdpAssociation { association, .. }) = net.events.pop() else { panic!("no datagram") };
            assert_eq!(recv(&mut net, association), Poll::Ready(Some(payload)));
            assert_eq!(net.stats().reassembled, u64::from(parts.len() > 1));
        }
    }
}

#[test]
fn fragments_that_do_not_fit_are_dropped_and_counted() {
    for ends in ENDS {
        let (src, dst) = ends();
        let parts = fragments(&packet::udp(src, dst, &pattern(4_000, 1)), 1_500, 99);
        assert_eq!(parts.len(), 3);
        // One is missing, the order is wrong, one comes twice.
        for order in [&[0, 2][..], &[1, 0, 2], &[0, 1, 1, 2]] {
            let mut net = Net::new(Mode::Offload);
            for index in order {
                net.deliver(&parts[*index]);
            }
            assert_eq!(net.events, []);
            assert!(net.stats().fragments_dropped > 0);
            // The next datagram is whole.
            for part in fragments(&packet::udp(src, dst, &pattern(4_000, 1)), 1_500, 100) {
                net.deliver(&part);
            }
            assert_eq!(net.events.len(), 1);
        }
        // Too late.
        let mut net = Net::new(Mode::Offload);
        net.deliver(&parts[0]);
        net.sleep(Duration::from_secs(6));
        net.deliver(&parts[1]);
        net.deliver(&parts[2]);
        assert_eq!((net.events.len(), net.stats().fragments_dropped), (0, 2));
    }
}

#[test]
fn unfinished_fragments_are_bounded() {
    let mut net = Net::new(Mode::Offload);
    for ident in 0..1_000 {
        let parts = fragments(&packet::udp(client(4000), server(), &pattern(4_000, 1)), 1_500, ident);
        net.deliver(&parts[0]);
    }
    assert_eq!(net.stats().fragments_dropped, 1_000 - 16);
    net.sleep(Duration::from_secs(6));
    for part in fragments(&packet::udp(client(4000), server(), &pattern(4_000, 1)), 1_500, 5_000) {
        net.deliver(&part);
    }
    assert_eq!(net.events.len(), 1, "old ones make room");
}
