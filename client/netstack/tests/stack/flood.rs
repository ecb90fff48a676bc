//! More of everything than there is room for: limits hold, and everybody else is served.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use smoltcp::{
    iface::SocketHandle,
    socket::tcp::State,
    wire::{Icmpv4Message, TcpControl},
};
use tp_netstack::{Event, FlowId, NetstackConfig, Refusal, Unreachable};

use crate::{
    net::{Mode, Net, RING_BYTES, pattern},
    opening::{client, server},
    packet,
};

/// Packets that a driver reads before it acts.
const BATCH: u32 = 64;

/// What answers at an address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Destination {
    Accepts,
    Refuses,
    Unreachable,
    Silent,
}

/// A driver whose tasks end as soon as they may.
struct Driver {
    destination: fn(SocketAddr) -> Destination,
    dialling: Vec<FlowId>,
    accepted: Vec<FlowId>,
}

impl Driver {
    fn new(destination: fn(SocketAddr) -> Destination) -> Self {
        Self { destination, dialling: Vec::new(), accepted: Vec::new() }
    }

    fn act(&mut self, net: &mut Net) {
        for event in std::mem::take(&mut net.events) {
            let Event::TcpSyn { flow, key } = event else { panic!("{event:?}") };
            match (self.destination)(key.dst) {
                Destination::Accepts if net.stack.accept(flow).is_ok() => self.accepted.push(flow),
                Destination::Accepts => {}
                Destination::Refuses => net.stack.refuse(flow, Refusal::Reset),
                Destination::Unreachable => net.stack.refuse(flow, Refusal::Unreachable(Unreachable::Host)),
                Destination::Silent => self.dialling.push(flow),
            }
        }
        let stack = &mut net.stack;
        self.dialling.retain(|flow| {
            let is_over = stack.poll_reset(*flow, &mut std::task::Context::from_waker(std::task::Waker::noop()));
            if is_over.is_ready() {
                stack.close(*flow);
            }
            is_over.is_pending()
        });
    }
}

/// A flow that was open before, and one that is opened while it goes on: both have to move bytes.
pub(crate) struct Bystander {
    handle: SocketHandle,
    flow: FlowId,
}

impl Bystander {
    pub(crate) fn connect(net: &mut Net, src: SocketAddr) -> Self {
        let (handle, flow) = net.connect(src, server());
        Self { handle, flow }
    }

    #[track_caller]
    pub(crate) fn is_served(&self, net: &mut Net, seed: u64) {
        let (up, mut down) = (pattern(3_000, seed), pattern(5_000, seed + 1));
        let expected = down.clone();
        net.kernel.socket(self.handle).send_slice(&up).expect("the socket is open");
        assert!(net.send(self.flow, &mut down).is_ready());
        net.run();
        assert_eq!(net.recv_all(self.flow).0, up);
        let mut received = vec![0; 5_000];
        assert_eq!(net.kernel.socket(self.handle).recv_slice(&mut received), Ok(5_000));
        assert_eq!(received, expected);
    }
}

#[track_caller]
pub(crate) fn limits_hold(net: &Net) {
    let (usage, limits) = (net.stack.usage(), NetstackConfig::default().limits);
    assert!(usage.pending_syns <= limits.pending_syns, "{usage:?}");
    assert!(usage.given_up <= limits.pending_syns, "{usage:?}");
    assert!(usage.flows <= limits.flows, "{usage:?}");
    assert!(usage.associations <= limits.associations, "{usage:?}");
    assert!(usage.time_waits <= limits.time_waits, "{usage:?}");
    assert!(usage.events <= 2 * limits.pending_syns + limits.events, "{usage:?}");
    assert!(usage.deadlines <= 5_000 + 2 * (usage.flows + usage.pending_syns + usage.associations), "{usage:?}");
    assert!(usage.ring_bytes <= 128 << 20, "{usage:?}");
}

/// A /16 in 33 s, as a scanner does that does not wait for answers. One address in four says something.
#[test]
fn a_scan_of_a_whole_service_subnet_keeps_nobody_out() {
    let mut net = Net::new(Mode::Offload);
    let mut driver = Driver::new(|dst| match (dst, dst.ip()) {
        (dst, _) if dst == server() => Destination::Accepts,
        (_, std::net::IpAddr::V4(ip)) if ip.octets()[3] % 8 == 0 => Destination::Refuses,
        (_, std::net::IpAddr::V4(ip)) if ip.octets()[3] % 8 == 1 => Destination::Unreachable,
        _ => Destination::Silent,
    });
    let old = Bystander::connect(&mut net, client(1));
    let mut young: Option<SocketHandle> = None;
    let mut opened = 0;
    for host in 0..=0xffff_u32 {
        let dst = SocketAddr::from((Ipv4Addr::from(0x0a61_0000 + host), 443));
        net.deliver(&packet::tcp(client(4000), dst, TcpControl::Syn, host, None));
        if host % BATCH != BATCH - 1 {
            continue;
        }
        driver.act(&mut net);
        net.sleep(Duration::from_micros(500) * BATCH);
        driver.act(&mut net);
        limits_hold(&net);
        match young {
            Some(handle) if net.kernel.state(handle) == State::Established => {
                let flow = driver.accepted.pop().expect("it was accepted");
                Bystander { handle, flow }.is_served(&mut net, u64::from(host));
                net.kernel.socket(handle).abort();
                net.run();
                net.stack.close(flow);
                young = None;
                opened += 1;
            }
            Some(_) => {}
            None => young = Some(net.kernel.connect(client(5000 + opened), server(), RING_BYTES)),
        }
        if host % 0x1000 == 0xfff {
            old.is_served(&mut net, u64::from(host));
        }
    }
    assert!(net.stats().syns_given_up > 10_000, "{:?}", net.stats());
    assert!(opened > 300, "{opened} connections were opened during the scan");
}

#[test]
fn a_flood_of_syns_from_spoofed_ports_is_bounded_and_leaves_open_flows_alone() {
    let mut net = Net::new(Mode::Offload);
    let mut driver = Driver::new(|dst| if dst == server() { Destination::Accepts } else { Destination::Silent });
    let old = Bystander::connect(&mut net, client(1));
    let victim = SocketAddr::from(([10, 96, 9, 9], 80));
    for number in 0..100_000_u32 {
        let spoofed = Ipv4Addr::from(0xac10_0000 | (number.wrapping_mul(0x9E37_79B9) >> 12));
        let src = SocketAddr::from((spoofed, (number % 65_535) as u16 + 1));
        net.deliver(&packet::tcp(src, victim, TcpControl::Syn, number, None));
        if number % BATCH == BATCH - 1 {
            driver.act(&mut net);
            limits_hold(&net);
        }
        if number % 10_000 == 0 {
            net.sleep(Duration::from_millis(100));
            old.is_served(&mut net, u64::from(number));
        }
    }
    assert!(net.stats().syns_dropped > 50_000, "{:?}", net.stats());
    // It is over, and what it left behind keeps nobody out.
    net.sleep(Duration::from_millis(250));
    let handle = net.kernel.connect(client(2), server(), RING_BYTES);
    net.run();
    driver.act(&mut net);
    net.run();
    assert_eq!(net.kernel.state(handle), State::Established);
}

/// Each SYN, RST or SYN with another number ends the flow before it; nobody gives the ids back.
#[test]
fn flows_that_end_before_they_are_answered_are_bounded() {
    for is_reset in [true, false] {
        let mut net = Net::new(Mode::Offload);
        for number in 0..10_000_u32 {
            let seq = number * 1_000;
            net.deliver(&packet::tcp(client(4000), server(), TcpControl::Syn, seq, None));
            if is_reset {
                net.deliver(&packet::tcp(client(4000), server(), TcpControl::Rst, seq + 1, None));
            }
            limits_hold(&net);
        }
        let limit = NetstackConfig::default().limits.pending_syns;
        assert_eq!(net.stack.usage().given_up, limit);
        for event in std::mem::take(&mut net.events) {
            let Event::TcpSyn { flow, .. } = event else { panic!("{event:?}") };
            net.stack.close(flow);
        }
        assert_eq!(net.stack.usage().given_up, 0);
        net.sleep(Duration::from_secs(1));
        net.connect(client(4000), server());
    }
}

/// The container asks from ports that it closes at once, so that each datagram makes an association anew.
#[test]
fn deadlines_of_what_is_gone_are_bounded() {
    let mut net = Net::new(Mode::Offload);
    let old = Bystander::connect(&mut net, client(1));
    for number in 0..20_000_u32 {
        let datagram = packet::udp(client(4000), server(), b"x");
        net.deliver(&datagram);
        net.events.clear();
        // What the kernel answers to a datagram for that port.
        let reply = packet::udp(server(), client(4000), b"y");
        net.deliver(&packet::icmp_error(Icmpv4Message::DstUnreachable, 3, &reply));
        assert_eq!(net.stack.usage().associations, 0);
        if number % 1_000 == 0 {
            limits_hold(&net);
        }
    }
    assert_eq!(net.stats().associations_opened, 20_000);
    limits_hold(&net);
    old.is_served(&mut net, 1);
}

#[test]
fn datagrams_from_spoofed_ports_are_bounded_and_queues_have_room_again() {
    let mut net = Net::new(Mode::Offload);
    let old = Bystander::connect(&mut net, client(1));
    for number in 0..12_000_u32 {
        let src = SocketAddr::from((Ipv4Addr::from(0xac10_0000 + number / 1_000), (number % 1_000) as u16 + 1));
        net.deliver(&packet::udp(src, server(), &[0; 100]));
        net.events.clear();
        if number % 1_000 == 0 {
            limits_hold(&net);
        }
    }
    assert!(net.stats().datagrams_in_dropped > 3_000);
    old.is_served(&mut net, 1);
    net.sleep(Duration::from_secs(31));
    assert_eq!(net.stack.usage().associations, 0);
    net.deliver(&packet::udp(client(4000), server(), b"x"));
    assert_eq!(net.events.len(), 1);
}

#[test]
fn pings_that_nobody_takes_are_bounded() {
    let mut net = Net::new(Mode::Offload);
    let now = net.now();
    for seq in 0..10_000 {
        let ping = packet::echo(client(1).ip(), server().ip(), 7, seq, &Bytes::from(vec![0; 1_000]));
        net.stack.handle_packet(crate::net::TUN, &[&[0; 10][..], &ping].concat(), now);
    }
    assert_eq!(net.stack.usage().events, NetstackConfig::default().limits.events);
    assert_eq!(net.stats().events_dropped, 10_000 - 1_024);
}
