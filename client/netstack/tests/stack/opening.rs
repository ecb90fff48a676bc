//! SYNs: held, accepted, refused, repeated.

use std::{net::SocketAddr, time::Duration};

use smoltcp::{socket::tcp::State, wire::TcpControl};
use tp_netstack::{Event, FlowError, Limits, NetstackConfig, Refusal, TunId, Unreachable};

use crate::{
    net::{MODES, Mode, Net, TUN},
    packet,
};

pub(crate) fn client(port: u16) -> SocketAddr {
    SocketAddr::from(([198, 18, 0, 1], port))
}

pub(crate) fn server() -> SocketAddr {
    SocketAddr::from(([10, 96, 3, 4], 80))
}

pub(crate) fn client6(port: u16) -> SocketAddr {
    SocketAddr::from(([0xfd74, 0x7074, 0, 0, 0, 0, 0, 1], port))
}

pub(crate) fn server6() -> SocketAddr {
    SocketAddr::from(([0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0xa], 443))
}

#[test]
fn a_syn_is_answered_only_after_accept() {
    for mode in MODES {
        for (src, dst) in [(client(4000), server()), (client6(4000), server6())] {
            let mut net = Net::new(mode);
            let (handle, flow) = net.syn(src, dst);
            assert_eq!(net.kernel.state(handle), State::SynSent);
            assert_eq!(net.stats().packets_out, 0);
            assert_eq!(net.stack.usage().pending_syns, 1);
            assert_eq!(net.stack.usage().ring_bytes, 0, "a held SYN has no rings");
            assert_eq!(net.recv(flow), std::task::Poll::Ready(Err(FlowError::NotAccepted)));

            net.stack.accept(flow).expect("the SYN is held");
            net.run();

            assert_eq!(net.kernel.state(handle), State::Established);
            assert_eq!(net.stack.usage().pending_syns, 0);
            assert_eq!(net.stack.usage().flows, 1);
        }
    }
}

#[test]
fn a_syn_sent_again_opens_no_second_flow() {
    let mut net = Net::new(Mode::Offload);
    let (handle, flow) = net.syn(client(4000), server());
    net.sleep(Duration::from_secs(20));
    assert!(net.stats().packets_in >= 3, "the kernel has sent its SYN again");
    assert_eq!(net.stats().flows_opened, 1);
    assert_eq!(net.events, []);
    net.stack.accept(flow).expect("the SYN is still held");
    net.run();
    assert_eq!(net.kernel.state(handle), State::Established);
}

#[test]
fn a_syn_with_another_sequence_number_replaces_the_held_one() {
    let mut net = Net::new(Mode::Offload);
    net.deliver(&packet::tcp(client(4000), server(), TcpControl::Syn, 100, None));
    net.deliver(&packet::tcp(client(4000), server(), TcpControl::Syn, 900_000, None));
    let [Event::TcpSyn { flow: old, .. }, Event::TcpSyn { flow: new, .. }] = net.events[..] else {
        panic!("{:?}", net.events)
    };
    assert!(net.is_reset(old));
    assert_eq!(net.stack.accept(old), Err(FlowError::Reset));
    assert_eq!(net.stack.accept(old), Err(FlowError::Gone), "a failed accept gives the id back");
    net.stack.refuse(old, Refusal::Reset);
    assert!(net.collect().is_empty(), "the old SYN is not answered");
    net.stack.accept(new).expect("the new SYN is held");
    let answers = net.collect();
    assert_eq!(answers.len(), 1);
    let syn_ack = answers[0].tcp();
    assert_eq!((syn_ack.control, syn_ack.ack_number.map(|ack| ack.0)), (TcpControl::Syn, Some(900_001)));
    assert_eq!(net.stack.usage().pending_syns, 0);
}

#[test]
fn a_reset_takes_a_held_syn_back() {
    let mut net = Net::new(Mode::Offload);
    net.deliver(&packet::tcp(client(4000), server(), TcpControl::Syn, 100, None));
    let Some(Event::TcpSyn { flow, .. }) = net.events.pop() else { panic!("no SYN") };
    net.deliver(&packet::tcp(client(4000), server(), TcpControl::Rst, 5, None));
    assert!(!net.is_reset(flow), "its sequence number is wrong");
    net.deliver(&packet::tcp(client(4000), server(), TcpControl::Rst, 101, None));
    assert!(net.is_reset(flow));
    assert_eq!(net.stack.usage().pending_syns, 0);
    net.stack.close(flow);
    assert_eq!(net.stack.accept(flow), Err(FlowError::Gone));
}

#[test]
fn a_refused_syn_is_reset() {
    for mode in MODES {
        for (src, dst) in [(client(4000), server()), (client6(4000), server6())] {
            let mut net = Net::new(mode);
            let (handle, flow) = net.syn(src, dst);
            net.stack.refuse(flow, Refusal::Reset);
            net.run();
            assert_eq!(net.kernel.state(handle), State::Closed);
            assert_eq!(net.stack.usage().pending_syns, 0);
            assert_eq!(net.stack.accept(flow), Err(FlowError::Gone));
        }
    }
}

#[test]
fn an_unreachable_destination_is_told_by_icmp() {
    let cases = [
        (Unreachable::Network, (3, 0), (1, 0)),
        (Unreachable::Host, (3, 1), (1, 3)),
        (Unreachable::Port, (3, 3), (1, 4)),
        (Unreachable::Prohibited, (3, 13), (1, 1)),
    ];
    for (reason, icmp, icmpv6) in cases {
        for (src, dst, expected) in [(client(4000), server(), icmp), (client6(4000), server6(), icmpv6)] {
            let mut net = Net::new(Mode::Offload);
            net.deliver(&packet::tcp(src, dst, TcpControl::Syn, 0x0102_0304, None));
            let Some(Event::TcpSyn { flow, .. }) = net.events.pop() else { panic!("no SYN") };
            net.stack.refuse(flow, Refusal::Unreachable(reason));
            let answers = net.collect();
            assert_eq!(answers.len(), 1);
            assert_eq!((answers[0].src, answers[0].dst), (dst.ip(), src.ip()));
            let (kind, code, rest) = answers[0].icmp();
            assert_eq!((kind, code), expected);
            let quoted = &rest[4..];
            let ip_header = if src.is_ipv4() { 20 } else { 40 };
            assert_eq!(quoted[ip_header..ip_header + 2], src.port().to_be_bytes());
            assert_eq!(quoted[ip_header + 2..ip_header + 4], dst.port().to_be_bytes());
            assert_eq!(quoted[ip_header + 4..ip_header + 8], [1, 2, 3, 4], "the kernel checks the sequence number");
        }
    }
}

#[test]
fn silence_lets_the_next_syn_ask_again() {
    let mut net = Net::new(Mode::Offload);
    let (_handle, flow) = net.syn(client(4000), server());
    net.stack.refuse(flow, Refusal::Silence);
    net.run();
    assert_eq!(net.stats().packets_out, 0);
    net.sleep(Duration::from_secs(2));
    assert!(matches!(net.events[..], [Event::TcpSyn { .. }]), "{:?}", net.events);
}

#[test]
fn packets_of_unknown_flows_are_reset() {
    for (src, dst) in [(client(4000), server()), (client6(4000), server6())] {
        let mut net = Net::new(Mode::Offload);
        let answers = net.exchange(&packet::tcp_with(src, dst, TcpControl::Psh, 1_000, Some(77), b"hello"));
        assert_eq!(answers.len(), 1);
        let reset = answers[0].tcp();
        assert_eq!((reset.control, reset.seq_number.0, reset.ack_number), (TcpControl::Rst, 77, None));

        let answers = net.exchange(&packet::tcp_with(src, dst, TcpControl::Fin, 1_000, None, b"hello"));
        let reset = answers[0].tcp();
        assert_eq!((reset.control, reset.seq_number.0), (TcpControl::Rst, 0));
        assert_eq!(reset.ack_number.map(|ack| ack.0), Some(1_006));

        assert!(net.exchange(&packet::tcp(src, dst, TcpControl::Rst, 1_000, Some(77))).is_empty());
        assert_eq!(net.stats().unknown_flow_resets, 2);
    }
}

#[test]
fn a_flood_of_syns_stops_at_the_limit() {
    let limits = Limits { pending_syns: 100, ..Limits::default() };
    let mut net = Net::with_config(Mode::Offload, NetstackConfig { limits, ..NetstackConfig::default() });
    for port in 1..=1_000 {
        net.deliver(&packet::tcp(client(port), server(), TcpControl::Syn, 5, None));
    }
    assert_eq!(net.events.len(), 100);
    assert_eq!(net.stats().syns_dropped, 900);
    let flows: Vec<_> = net.events.drain(..).collect();
    for event in flows {
        let Event::TcpSyn { flow, .. } = event else { panic!("{event:?}") };
        net.stack.refuse(flow, Refusal::Silence);
    }
    net.deliver(&packet::tcp(client(4000), server(), TcpControl::Syn, 5, None));
    assert_eq!(net.events.len(), 1, "it serves again");
}

#[test]
fn flows_above_the_limit_have_to_wait() {
    let limits = Limits { flows: 2, ..Limits::default() };
    let mut net = Net::with_config(Mode::Offload, NetstackConfig { limits, ..NetstackConfig::default() });
    let (_one, _) = net.connect(client(1), server());
    let (_two, flow) = net.connect(client(2), server());
    let third = net.kernel.connect(client(3), server(), 4096);
    net.run();
    assert_eq!((net.events.len(), net.stats().syns_dropped), (0, 1));
    net.stack.abort(flow);
    net.sleep(Duration::from_secs(2));
    let Some(Event::TcpSyn { flow, .. }) = net.events.pop() else { panic!("the SYN was not sent again") };
    net.stack.accept(flow).expect("the SYN is held");
    net.run();
    assert_eq!(net.kernel.state(third), State::Established);
}

#[test]
fn the_same_4_tuple_on_two_devices_is_two_flows() {
    let mut net = Net::new(Mode::Plain);
    let other = TunId(2);
    net.stack.add_tun(other, tp_netstack::Offload::Disabled { mtu: 1_500 });
    let syn = packet::tcp(client(4000), server(), TcpControl::Syn, 5, None);
    let now = net.now();
    net.stack.handle_packet(TUN, &syn, now);
    net.stack.handle_packet(other, &syn, now);
    net.stack.handle_packet(TunId(9), &syn, now);
    let keys: Vec<_> = std::iter::from_fn(|| net.stack.poll_event())
        .map(|event| match event {
            Event::TcpSyn { key, flow } => (key.tun, flow),
            event => panic!("{event:?}"),
        })
        .collect();
    assert_eq!(keys.iter().map(|(tun, _)| *tun).collect::<Vec<_>>(), [TUN, other]);

    net.stack.remove_tun(other);
    assert!(!net.is_reset(keys[0].1));
    assert!(net.is_reset(keys[1].1));
}

#[test]
fn a_handshake_that_never_ends_is_given_up() {
    let mut net = Net::new(Mode::Offload);
    net.deliver(&packet::tcp(client(4000), server(), TcpControl::Syn, 100, None));
    let Some(Event::TcpSyn { flow, .. }) = net.events.pop() else { panic!("no SYN") };
    net.stack.accept(flow).expect("the SYN is held");
    assert_eq!(net.collect().len(), 1, "SYN-ACK");
    net.loss = 100;
    net.sleep(Duration::from_secs(59));
    assert!(!net.is_reset(flow));
    assert!(net.stats().packets_out >= 4, "the SYN-ACK is sent again");
    net.sleep(Duration::from_secs(2));
    assert!(net.is_reset(flow));
    net.stack.close(flow);
    assert_eq!(net.stack.usage().flows, 0);
}
