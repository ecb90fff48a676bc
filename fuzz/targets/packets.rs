//! What a container's kernel, or a process that makes its own packets, gives to the TUN; and a driver that does all a driver
//! may do. At the end a connection still opens and carries bytes.
//!
//! The input is one byte with the kind of device (bit 0: no offload), then steps: a byte that says what (bits 0 to 2; see
//! [`Play::step`]), two with a little-endian number, and for packets as many bytes as it says.

use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, IpRepr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, checksum};
use tp_netstack::{
    AssociationId, Event, FlowId, Limits, Netstack, NetstackConfig, Offload, Refusal, RingStep, TunId, Unreachable,
    VIRTIO_HEADER_BYTES,
};

const TUN: TunId = TunId(1);

/// Small, so that a short input reaches them.
fn config() -> NetstackConfig {
    let limits = Limits {
        flows: 64,
        pending_syns: 16,
        associations: 32,
        association_queue: 4,
        association_bytes: 8 << 10,
        outgoing_datagrams: 16,
        outgoing_bytes: 64 << 10,
        replies: 32,
        events: 32,
        time_waits: 16,
        reassemblies: 4,
        spare_rings: 64 << 10,
    };
    let ring_steps = vec![RingStep { flows_below: usize::MAX, ring_bytes: 4 << 10 }];
    NetstackConfig { limits, ring_steps, seed: 1, ..NetstackConfig::default() }
}

pub(crate) fn run(mut data: &[u8]) {
    let Some(kind) = data.split_off_first() else { return };
    let mut play = Play::new(kind & 1 != 0);
    while let Some((&[what, low, high], rest)) = data.split_first_chunk::<3>() {
        data = rest;
        let number = u16::from_le_bytes([low, high]);
        let (packet, rest) = data.split_at(if what & 7 < 4 { usize::from(number).min(data.len()) } else { 0 });
        data = rest;
        play.step(what, number, packet);
        play.limits_hold();
    }
    play.ends_well();
}

struct Play {
    stack: Netstack,
    now: Instant,
    is_offload: bool,
    /// What the driver does next with an event.
    decision: u16,
    flows: Vec<FlowId>,
    associations: Vec<AssociationId>,
}

impl Play {
    #[expect(clippy::disallowed_methods, reason = "a fake clock has to start somewhere")]
    fn new(is_bare: bool) -> Self {
        let now = Instant::now();
        let mut stack = Netstack::new(config(), now);
        stack.add_tun(TUN, if is_bare { Offload::Disabled { mtu: 1_500 } } else { Offload::VirtioNet });
        stack.serve_datagrams(SocketAddr::from(([198, 18, 0, 2], 53)));
        Self { stack, now, is_offload: !is_bare, decision: 0, flows: Vec::new(), associations: Vec::new() }
    }

    /// | `what`, bits 0 to 2 | |
    /// |---|---|
    /// | 0, 1 | a packet, its checksums made right |
    /// | 2 | a packet, as it is |
    /// | 3 | a packet with its own virtio-net header |
    /// | 4 | time passes: milliseconds |
    /// | 5 | the driver decides like this from now on |
    /// | 6 | a flow or an association is used: bits 3 to 5 of `what` say how |
    /// | 7 | the device takes no packet once, then all that are due |
    fn step(&mut self, what: u8, number: u16, packet: &[u8]) {
        match what & 7 {
            0 | 1 => {
                let mut packet = packet.to_vec();
                complete(&mut packet);
                self.deliver(&[0; VIRTIO_HEADER_BYTES], &packet);
            }
            2 => self.deliver(&[0; VIRTIO_HEADER_BYTES], packet),
            3 => {
                let (header, packet) = packet.split_at(VIRTIO_HEADER_BYTES.min(packet.len()));
                self.deliver(header, packet);
            }
            4 => {
                self.now += Duration::from_millis(number.into());
                self.stack.handle_timeout(self.now);
            }
            5 => self.decision = number,
            6 => self.use_one(what >> 3, number),
            _ => {
                if self.stack.poll_transmit(self.now).is_some() {
                    self.stack.transmit_blocked();
                }
                self.transmit();
            }
        }
        self.act();
    }

    fn deliver(&mut self, header: &[u8], packet: &[u8]) {
        let header = if self.is_offload { header } else { &[] };
        self.stack.handle_packet(TUN, &[header, packet].concat(), self.now);
    }

    fn act(&mut self) {
        while let Some(event) = self.stack.poll_event() {
            self.decision = self.decision.rotate_left(3);
            match (event, self.decision & 7) {
                (Event::TcpSyn { flow, .. }, 0) => self.stack.refuse(flow, Refusal::Reset),
                (Event::TcpSyn { flow, .. }, 1) => {
                    self.stack.refuse(flow, Refusal::Unreachable(Unreachable::Prohibited));
                }
                (Event::TcpSyn { flow, .. }, 2) => self.flows.push(flow),
                (Event::TcpSyn { flow, .. }, _) => {
                    if self.stack.accept(flow).is_ok() {
                        self.flows.push(flow);
                    }
                }
                (Event::UdpAssociation { association, .. }, 0) => {
                    self.stack.refuse_association(association, Unreachable::Port);
                }
                (Event::UdpAssociation { association, .. }, _) => self.associations.push(association),
                (Event::Datagram { key, payload }, _) => _ = self.stack.reply_datagram(key, payload),
                (Event::Echo(request), 0) => self.stack.refuse_echo(&request, Unreachable::Host),
                (Event::Echo(request), _) => self.stack.reply_echo(request),
            }
        }
    }

    fn use_one(&mut self, how: u8, number: u16) {
        let cx = &mut Context::from_waker(Waker::noop());
        let payload = || Bytes::from(vec![0x5a; usize::from(number)]);
        let at = usize::from(number);
        if how & 7 == 7 && !self.associations.is_empty() {
            let association = self.associations.swap_remove(at % self.associations.len());
            let _ = self.stack.poll_recv_datagram(association, cx);
            let _ = self.stack.send_datagram(association, payload());
            return self.stack.close_association(association);
        }
        if self.flows.is_empty() {
            return;
        }
        let index = at % self.flows.len();
        let flow = self.flows[index];
        match how & 7 {
            0 | 1 => while let Poll::Ready(Ok(Some(_))) = self.stack.poll_recv(flow, at.max(1), cx) {},
            2 | 3 => _ = self.stack.poll_send(flow, &mut payload(), cx),
            4 => self.stack.shutdown_write(flow),
            _ => {
                self.flows.swap_remove(index);
                match how & 7 {
                    5 => self.stack.close(flow),
                    6 => self.stack.reset_after_drain(flow),
                    _ => self.stack.abort(flow),
                }
            }
        }
    }

    fn transmit(&mut self) {
        for _ in 0..1_000 {
            let Some(packet) = self.stack.poll_transmit(self.now) else { return };
            is_well_formed(packet.bytes, self.is_offload);
        }
        panic!("the stack never stops to send");
    }

    fn limits_hold(&self) {
        let (usage, limits) = (self.stack.usage(), config().limits);
        assert!(usage.pending_syns <= limits.pending_syns && usage.given_up <= limits.pending_syns, "{usage:?}");
        assert!(usage.flows <= limits.flows && usage.time_waits <= limits.time_waits, "{usage:?}");
        assert!(usage.associations <= limits.associations && usage.events == 0, "{usage:?}");
        assert!(usage.ring_bytes <= limits.flows * (8 << 10) + limits.spare_rings, "{usage:?}");
    }

    /// All ids are given back, and then a connection from elsewhere carries bytes.
    fn ends_well(mut self) {
        self.transmit();
        for flow in self.flows.drain(..) {
            self.stack.abort(flow);
        }
        for association in self.associations.drain(..) {
            self.stack.close_association(association);
        }
        self.transmit();
        let usage = self.stack.usage();
        assert_eq!((usage.pending_syns, usage.given_up, usage.associations), (0, 0, 0), "{usage:?}");
        self.decision = 0;
        let syn = tcp(TcpControl::Syn, 99, None, b"");
        self.deliver(&[0; VIRTIO_HEADER_BYTES], &syn);
        let Some(Event::TcpSyn { flow, .. }) = self.stack.poll_event() else { panic!("the SYN is lost") };
        self.stack.accept(flow).expect("the SYN is held");
        let syn_ack = self.stack.poll_transmit(self.now).expect("a SYN-ACK").bytes.to_vec();
        let header_len = if self.is_offload { VIRTIO_HEADER_BYTES } else { 0 };
        let sent = TcpPacket::new_checked(&syn_ack[header_len + 20..]).expect("the SYN-ACK is whole");
        assert!(sent.syn() && sent.ack() && sent.ack_number() == TcpSeqNumber(100));
        let data = tcp(TcpControl::Psh, 100, Some(sent.seq_number() + 1), b"alive?");
        self.deliver(&[0; VIRTIO_HEADER_BYTES], &data);
        let received = self.stack.poll_recv(flow, 100, &mut Context::from_waker(Waker::noop()));
        assert_eq!(received, Poll::Ready(Ok(Some(Bytes::from_static(b"alive?")))));
        self.stack.remove_tun(TUN);
        self.stack.abort(flow);
        assert_eq!(self.stack.usage().flows, 0);
    }
}

/// Whether lengths and header checksum of a packet that the stack sends are right.
fn is_well_formed(packet: &[u8], is_offload: bool) {
    let packet = if is_offload { &packet[VIRTIO_HEADER_BYTES..] } else { packet };
    let length = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    if packet[0] >> 4 == 4 {
        assert_eq!((packet[0], length(2), checksum::data(&packet[..20])), (0x45, packet.len(), 0xffff));
    } else {
        assert_eq!((packet[0] >> 4, length(4) + 40), (6, packet.len()));
    }
}

/// A segment from who is not concerned by the input.
fn tcp(control: TcpControl, seq: i32, ack: Option<TcpSeqNumber>, payload: &[u8]) -> Vec<u8> {
    let (src, dst) = (IpAddr::from([172, 31, 77, 3]).into(), IpAddr::from([10, 96, 77, 3]).into());
    let repr = TcpRepr {
        src_port: 61_717,
        dst_port: 7_171,
        control,
        seq_number: TcpSeqNumber(seq),
        ack_number: ack,
        window_len: 65_535,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload,
    };
    let ip = IpRepr::new(src, dst, IpProtocol::Tcp, repr.buffer_len(), 64);
    let mut packet = vec![0; ip.buffer_len()];
    let capabilities = ChecksumCapabilities::default();
    ip.emit(&mut packet, &capabilities);
    repr.emit(&mut TcpPacket::new_unchecked(&mut packet[20..]), &src, &dst, &capabilities);
    packet
}

/// Makes the checksums of a packet right, so that it gets beyond them.
pub(crate) fn complete(packet: &mut [u8]) {
    let header_len = match packet.first() {
        Some(byte) if byte >> 4 == 4 => usize::from(byte & 0xf) * 4,
        Some(byte) if byte >> 4 == 6 => 40,
        Some(_) | None => return,
    };
    if header_len < 20 || packet.len() < header_len {
        return;
    }
    let (header, payload) = packet.split_at_mut(header_len);
    let (protocol, addresses) = if header[0] >> 4 == 4 {
        header[10..12].fill(0);
        let sum = !checksum::data(header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        (IpProtocol::from(header[9]), &header[12..20])
    } else {
        (IpProtocol::from(header[6]), &header[8..40])
    };
    let at = match protocol {
        IpProtocol::Tcp => 16,
        IpProtocol::Udp => 6,
        IpProtocol::Icmp | IpProtocol::Icmpv6 => 2,
        _ => return,
    };
    if payload.len() < at + 2 {
        return;
    }
    payload[at..at + 2].fill(0);
    let length = (payload.len() as u32).to_be_bytes();
    let pseudo_header = [checksum::data(addresses), checksum::data(&length), u16::from(u8::from(protocol))];
    let pseudo_header = if protocol == IpProtocol::Icmp { 0 } else { checksum::combine(&pseudo_header) };
    let sum = !checksum::combine(&[pseudo_header, checksum::data(payload)]);
    payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}
