//! Real packets with something wrong in them: every truncation, every byte of their headers, and thousands of random changes
//! that are the same in every run. Nothing panics, limits hold, and a flow that was open before moves bytes.

use std::{
    net::SocketAddr,
    task::{Context, Waker},
    time::Duration,
};

use smoltcp::wire::{Icmpv4Message, TcpControl};
use tp_netstack::{AssociationId, Event, FlowId, Refusal, Unreachable, VIRTIO_HEADER_BYTES};

use crate::{
    corpus::packets::complete,
    datagram::fragments,
    flood::{Bystander, limits_hold},
    hostile::open_by_hand,
    net::{MODES, Mode, Net, TUN, pattern},
    opening::{client, client6, server, server6},
    packet,
};

/// Who is not concerned by the packets below.
fn bystander() -> SocketAddr {
    SocketAddr::from(([172, 20, 0, 9], 60_001))
}

/// Packets of every kind; those of TCP belong to the flow of [`open_by_hand`], whose next number is `ack`.
fn samples(ack: u32) -> Vec<Vec<u8>> {
    let (src, dst) = (client(4000), server());
    let mut samples = vec![
        packet::tcp(client(4001), dst, TcpControl::Syn, 7, None),
        packet::tcp(client6(4001), server6(), TcpControl::Syn, 7, None),
        packet::tcp(src, dst, TcpControl::None, 100, Some(ack)),
        packet::tcp_with(src, dst, TcpControl::Psh, 100, Some(ack), &pattern(300, 1)),
        packet::tcp_with(src, dst, TcpControl::None, 1_500, Some(ack), &pattern(1_400, 2)),
        packet::tcp(src, dst, TcpControl::Fin, 100, Some(ack)),
        packet::tcp(src, dst, TcpControl::Rst, 4_000_000, None),
        packet::udp(src, dst, &pattern(100, 3)),
        packet::udp(client6(4000), server6(), b""),
        packet::echo(src.ip(), dst.ip(), 7, 1, &pattern(56, 4)),
        packet::echo(client6(1).ip(), server6().ip(), 7, 1, b"ping"),
        packet::icmp_error(Icmpv4Message::DstUnreachable, 3, &packet::udp(dst, src, b"what was sent")),
    ];
    for (src, dst) in [(src, dst), (client6(4000), server6())] {
        samples.extend(fragments(&packet::udp(src, dst, &pattern(2_000, 5)), 1_280, 9));
    }
    // An IPv4 option (router alert, RFC 2113), and IPv6 extension headers that pad (RFC 8200, section 4.2).
    let mut with_option = packet::udp(src, dst, b"option");
    with_option.splice(20..20, [0x94, 4, 0, 0]);
    with_option[0] = 0x46;
    with_option[3] += 4;
    complete(&mut with_option);
    let mut extended = packet::udp(client6(4000), server6(), b"extension");
    let next = std::mem::replace(&mut extended[6], 0);
    extended.splice(40..40, [60, 0, 1, 4, 0, 0, 0, 0, next, 0, 1, 4, 0, 0, 0, 0]);
    extended[5] += 16;
    samples.extend([with_option, extended]);
    samples
}

/// xorshift: the same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }

    /// A place in a packet, rather in its headers.
    fn place(&mut self, len: usize) -> usize {
        let len = if self.below(4) == 0 { len } else { len.min(80) };
        self.below(len.max(1))
    }

    /// A number that programs get wrong.
    fn edge(&mut self) -> u16 {
        const EDGES: [u16; 12] = [0, 1, 7, 8, 19, 20, 0x7f, 0xff, 0x5dc, 0x7fff, 0xfffe, 0xffff];
        EDGES[self.below(EDGES.len())]
    }

    /// Changes a packet in some places.
    fn mutate(&mut self, packet: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            let at = self.place(packet.len());
            match self.below(7) {
                0 => packet.truncate(at),
                1 => packet.extend(pattern(self.below(100), at as u64)),
                2 => drop(packet.drain(at.min(packet.len())..(at + self.below(9)).min(packet.len()))),
                3 => drop(packet.splice(at.min(packet.len())..at.min(packet.len()), pattern(4 * self.below(11), 3))),
                4 | 5 if at < packet.len() => packet[at] ^= 1 << self.below(8),
                _ if at + 2 <= packet.len() => packet[at..at + 2].copy_from_slice(&self.edge().to_be_bytes()),
                _ => {}
            }
        }
    }

    /// A virtio-net header that need not fit what follows it.
    fn virtio_header(&mut self) -> [u8; VIRTIO_HEADER_BYTES] {
        let mut header = [0; VIRTIO_HEADER_BYTES];
        if self.below(2) == 0 {
            header[0] = self.below(4) as u8;
            header[1] = [0, 1, 3, 4, 5, 0x81, 0xff][self.below(7)];
            for at in [2, 4, 6, 8] {
                header[at..at + 2].copy_from_slice(&self.edge().to_ne_bytes());
            }
        }
        header
    }
}

/// A driver that decides by chance.
#[derive(Default)]
struct Driver {
    flows: Vec<FlowId>,
    associations: Vec<AssociationId>,
}

impl Driver {
    fn act(&mut self, net: &mut Net, random: &mut Random) {
        for event in std::mem::take(&mut net.events) {
            match event {
                Event::TcpSyn { flow, .. } => match random.below(4) {
                    0 => net.stack.refuse(flow, Refusal::Reset),
                    1 => net.stack.refuse(flow, Refusal::Unreachable(Unreachable::Host)),
                    2 => self.flows.push(flow),
                    _ if net.stack.accept(flow).is_ok() => self.flows.push(flow),
                    _ => {}
                },
                Event::UdpAssociation { association, .. } => match random.below(3) {
                    0 => net.stack.refuse_association(association, Unreachable::Port),
                    1 => drop(net.stack.send_datagram(association, pattern(200, 1))),
                    _ => self.associations.push(association),
                },
                Event::Datagram { .. } => {}
                Event::Echo(request) if random.below(2) == 0 => net.stack.reply_echo(request),
                Event::Echo(request) => net.stack.refuse_echo(&request, Unreachable::Host),
            }
        }
        if let Some(flow) = self.flows.get(random.below(8)).copied() {
            let _ = net.recv_all(flow);
            let _ = net.send(flow, &mut pattern(random.below(3_000), 1));
            if random.below(4) == 0 {
                self.flows.retain(|other| *other != flow);
                net.stack.close(flow);
            }
        }
        if random.below(8) == 0
            && let Some(association) = self.associations.pop()
        {
            let _ = net.stack.poll_recv_datagram(association, &mut Context::from_waker(Waker::noop()));
            net.stack.close_association(association);
        }
    }
}

fn inject(net: &mut Net, mode: Mode, header: &[u8], packet: &[u8]) {
    let header = if mode == Mode::Plain { &[] } else { header };
    let now = net.now();
    net.stack.handle_packet(TUN, &[header, packet].concat(), now);
    net.run();
}

#[test]
fn every_truncation_and_every_byte_of_a_header_leave_the_stack_serving() {
    for mode in MODES {
        let mut net = Net::new(mode);
        let (_, ack) = open_by_hand(&mut net);
        let old = Bystander::connect(&mut net, bystander());
        let (mut random, mut driver) = (Random(1), Driver::default());
        for sample in samples(ack) {
            for len in 0..sample.len().min(120) {
                inject(&mut net, mode, &[0; VIRTIO_HEADER_BYTES], &sample[..len]);
                let mut shorter = sample[..len].to_vec();
                complete(&mut shorter);
                inject(&mut net, mode, &[0; VIRTIO_HEADER_BYTES], &shorter);
            }
            for at in 0..sample.len().min(88) {
                for value in [0, 1, 0x0f, 0x45, 0x7f, 0x80, 0xff] {
                    let mut changed = sample.clone();
                    changed[at] = value;
                    complete(&mut changed);
                    inject(&mut net, mode, &[0; VIRTIO_HEADER_BYTES], &changed);
                    driver.act(&mut net, &mut random);
                }
            }
            net.sleep(Duration::from_millis(100));
            limits_hold(&net);
            old.is_served(&mut net, 1);
        }
    }
}

#[test]
fn random_changes_of_packets_leave_the_stack_serving() {
    const PACKETS: usize = 6_000;
    for (seed, mode) in (1..).zip([MODES, MODES].concat()) {
        let mut net = Net::new(mode);
        let (_, ack) = open_by_hand(&mut net);
        let old = Bystander::connect(&mut net, bystander());
        let samples = samples(ack);
        let (mut random, mut driver) = (Random(0x9E37_79B9 * seed), Driver::default());
        for number in 0..PACKETS {
            let mut packet = samples[random.below(samples.len())].clone();
            random.mutate(&mut packet);
            if random.below(4) > 0 {
                complete(&mut packet);
            }
            let header = random.virtio_header();
            inject(&mut net, mode, &header, &packet);
            driver.act(&mut net, &mut random);
            if number % 500 == 0 {
                net.sleep(Duration::from_millis(random.below(5_000) as u64));
                limits_hold(&net);
                old.is_served(&mut net, number as u64);
            }
        }
        let stats = net.stats();
        assert!(stats.malformed > 100 && stats.checksum_errors > 100 && stats.flows_opened > 50, "{stats:?}");
    }
}
