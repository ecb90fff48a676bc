//! The core's public face: the five verbs.

mod datagram;
mod tcp;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    task::{Context, Poll, Waker},
    time::Instant,
};

use smoltcp::wire::IpProtocol;

use crate::{
    AssociationId, Event, FlowKey, NetstackConfig, Offload, Stats, Transmit, TunId, Usage,
    association::Associations,
    device::{PacketBuffer, Tun},
    flow::{FlowState, Flows},
    ip::{IpPacket, Rejected},
    outbox::Outbox,
    reassembly::{Reassembled, Reassembly},
    rings::Rings,
    timer::{Epoch, Target, Timers},
    virtio::{self, VIRTIO_HEADER_BYTES},
};

/// Deadlines of what is gone that are kept, beside one for each of what is there: they go when they are due.
const STALE_DEADLINES_MAX: usize = 1 << 12;

/// Ends the TCP flows and UDP associations of any number of TUN devices. See the crate's documentation for the driver.
///
/// Flow methods take effect on the wire at the next [`Netstack::poll_transmit`].
pub struct Netstack {
    config: NetstackConfig,
    epoch: Epoch,
    /// The latest time that a verb was given; flow methods go by it.
    now: Instant,
    tuns: BTreeMap<TunId, Tun>,
    flows: Flows,
    /// Indexes of flows that may have something to send.
    dirty: VecDeque<u32>,
    /// Closed 4-tuples by expiry. An entry is stale when the 4-tuple has been opened anew.
    time_waits: VecDeque<(Instant, FlowKey)>,
    associations: Associations,
    /// Destinations whose datagrams are events.
    services: BTreeSet<SocketAddr>,
    reassembly: Reassembly,
    outbox: Outbox,
    buffer: PacketBuffer,
    /// The packet in `buffer` has to be lent again.
    is_blocked: bool,
    /// Messages and segments take turns.
    is_message_next: bool,
    /// What smoltcp answers to one received packet; kept for its capacity.
    answer: Vec<u8>,
    events: VecDeque<Event>,
    timers: Timers,
    driver: Option<Waker>,
    stats: Stats,
}

impl Netstack {
    /// Returns a stack without devices.
    pub fn new(config: NetstackConfig, now: Instant) -> Self {
        let limits = &config.limits;
        Self {
            epoch: Epoch::new(now),
            now,
            tuns: BTreeMap::new(),
            flows: Flows::new(Rings::new(config.ring_steps.clone(), limits.spare_rings)),
            dirty: VecDeque::new(),
            time_waits: VecDeque::new(),
            associations: Associations::new(),
            services: BTreeSet::new(),
            reassembly: Reassembly::new(limits.reassemblies, config.reassembly),
            outbox: Outbox::new(limits.replies, limits.outgoing_datagrams, limits.outgoing_bytes),
            buffer: PacketBuffer::new(),
            is_blocked: false,
            is_message_next: false,
            answer: Vec::new(),
            events: VecDeque::new(),
            timers: Timers::new(),
            driver: None,
            stats: Stats::default(),
            config,
        }
    }

    /// Makes `tun` known. Packets of unknown devices are ignored.
    pub fn add_tun(&mut self, tun: TunId, offload: Offload) {
        let seed = self.config.seed ^ u64::from(tun.0);
        self.tuns.insert(tun, Tun::new(offload, seed, self.epoch.smoltcp(self.now)));
    }

    /// Forgets `tun`: its flows end as if the container had reset them, its associations end. Nothing is sent.
    pub fn remove_tun(&mut self, tun: TunId) {
        self.tuns.remove(&tun);
        self.reassembly.remove_tun(tun);
        for index in self.flows.table.indexes(|flow| flow.key.tun == tun) {
            self.cut_flow(index);
        }
        for index in self.associations.indexes(|key| key.tun == tun) {
            self.associations.remove_at(index);
        }
        self.is_blocked &= self.buffer.tun() != tun;
    }

    /// Delivers datagrams to `address` as [`Event::Datagram`] on every device, without associations (for DNS).
    pub fn serve_datagrams(&mut self, address: SocketAddr) {
        self.services.insert(address);
    }

    /// Takes one packet as read from `tun`, virtio-net header included when the device has one.
    ///
    /// Never fails: what is malformed is counted and dropped.
    pub fn handle_packet(&mut self, tun: TunId, packet: &[u8], now: Instant) {
        self.now = now;
        let Some(offload) = self.tuns.get(&tun).map(|tun| tun.offload) else { return };
        self.stats.packets_in += 1;
        self.stats.bytes_in += packet.len() as u64;
        if let Err(rejected) = self.try_handle(tun, offload, packet) {
            match rejected {
                Rejected::Malformed => self.stats.malformed += 1,
                Rejected::Checksum => self.stats.checksum_errors += 1,
                Rejected::Unsupported => self.stats.unsupported += 1,
            }
        }
        self.trim_deadlines();
    }

    /// Forgets the deadlines of what is gone, when they have become more than those of what is there.
    fn trim_deadlines(&mut self) {
        let (flows, associations) = (&mut self.flows.table, &mut self.associations);
        if self.timers.len() <= STALE_DEADLINES_MAX + 2 * (flows.len() + associations.len()) {
            return;
        }
        self.timers.retain(|at, target| match target {
            Target::Flow { index, generation } => {
                flows.get_mut(index, generation).is_some_and(|flow| flow.armed.is_at(at))
            }
            Target::Association { index, generation } => {
                let association = associations.get_mut(AssociationId { index, generation });
                association.is_some_and(|association| association.armed.is_at(at))
            }
            Target::TimeWaits | Target::SpareRings => true,
        });
    }

    fn try_handle(&mut self, tun: TunId, offload: Offload, packet: &[u8]) -> Result<(), Rejected> {
        let (header, packet) = match offload {
            Offload::VirtioNet => packet.split_at_checked(VIRTIO_HEADER_BYTES).ok_or(Rejected::Malformed)?,
            Offload::Disabled { .. } => (&[][..], packet),
        };
        let is_checksum_trusted = virtio::is_checksum_trusted(header);
        let packet = IpPacket::parse(packet)?;
        let Some(fragment) = packet.fragment else {
            return self.on_transport(tun, &packet, packet.payload, is_checksum_trusted);
        };
        match self.reassembly.handle(tun, &packet, fragment, self.now) {
            Reassembled::Waiting => Ok(()),
            Reassembled::Dropped => {
                self.stats.fragments_dropped += 1;
                Ok(())
            }
            Reassembled::Whole(payload) => {
                self.stats.reassembled += 1;
                // The kernel fills in the checksum of what it fragments.
                self.on_transport(tun, &packet, &payload, false)
            }
        }
    }

    fn on_transport(
        &mut self,
        tun: TunId,
        packet: &IpPacket<'_>,
        payload: &[u8],
        is_checksum_trusted: bool,
    ) -> Result<(), Rejected> {
        match packet.protocol {
            IpProtocol::Tcp => self.on_tcp(tun, packet, is_checksum_trusted),
            IpProtocol::Udp => self.on_udp(tun, packet, payload, is_checksum_trusted),
            IpProtocol::Icmp if packet.src.is_ipv4() => self.on_icmp(tun, packet, payload),
            IpProtocol::Icmpv6 if packet.src.is_ipv6() => self.on_icmp(tun, packet, payload),
            IpProtocol::HopByHop
            | IpProtocol::Icmp
            | IpProtocol::Igmp
            | IpProtocol::Ipv6Route
            | IpProtocol::Ipv6Frag
            | IpProtocol::IpSecEsp
            | IpProtocol::IpSecAh
            | IpProtocol::Icmpv6
            | IpProtocol::Ipv6NoNxt
            | IpProtocol::Ipv6Opts
            | IpProtocol::Unknown(_) => Err(Rejected::Unsupported),
        }
    }

    /// Does what has become due. Call it when [`Netstack::poll_timeout`]'s time has come; earlier does no harm.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        while let Some((at, target)) = self.timers.pop_due(now) {
            match target {
                Target::Flow { index, generation } => self.on_flow_timeout(index, generation, at),
                Target::Association { index, generation } => {
                    self.on_association_timeout(AssociationId { index, generation }, at);
                }
                Target::TimeWaits => self.on_time_waits_timeout(),
                Target::SpareRings => {
                    let rings = &mut self.flows.rings;
                    if rings.armed.is_due(at)
                        && let Some(again) = rings.trim(now)
                    {
                        self.timers.arm(Target::SpareRings, &mut rings.armed, again);
                    }
                }
            }
        }
    }

    /// Lends the next packet to write, `None` when there is none until something happens.
    ///
    /// One call builds at most one packet. Flows take turns, packet by packet. A driver bounds its own run by the number
    /// of calls, and reads the device in between.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit<'_>> {
        self.now = now;
        if self.is_blocked {
            self.is_blocked = false;
        } else if self.build_packet() {
            self.stats.packets_out += 1;
            self.stats.bytes_out += self.buffer.filled().len() as u64;
        } else {
            return None;
        }
        Some(Transmit { tun: self.buffer.tun(), bytes: self.buffer.filled() })
    }

    fn build_packet(&mut self) -> bool {
        self.is_message_next = !self.is_message_next;
        self.build_reply()
            || (self.is_message_next && self.build_message())
            || self.build_segment()
            || self.build_message()
    }

    fn build_reply(&mut self) -> bool {
        while let Some((tun, packet)) = self.outbox.replies.pop_front() {
            let Some(offload) = self.tuns.get(&tun).map(|tun| tun.offload) else { continue };
            let lent = self.buffer.fill(tun, offload.header_len() + packet.len());
            let (header, body) = lent.split_at_mut(offload.header_len());
            virtio::write_plain(header);
            body.copy_from_slice(&packet);
            return true;
        }
        false
    }

    /// Says that the packet lent last was not taken (`EAGAIN`, `ENOBUFS`): the next [`Netstack::poll_transmit`] lends it
    /// again, unless its device has been removed. Until then [`Netstack::poll_ready`] is ready for events only, so that
    /// the driver can wait for the device.
    pub fn transmit_blocked(&mut self) {
        self.stats.transmit_blocked += 1;
        self.is_blocked = true;
    }

    /// Returns the next thing to act on.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Returns when [`Netstack::handle_timeout`] has to be called, `None` when nothing is waited for.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Ready when there is an event to take or a packet to transmit. The waker is the driver's; one is kept.
    ///
    /// "May be a packet": the next [`Netstack::poll_transmit`] can find that a flow has nothing to send after all.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let has_packets = !self.dirty.is_empty() || !self.outbox.is_empty();
        if (has_packets && !self.is_blocked) || !self.events.is_empty() {
            return Poll::Ready(());
        }
        match &self.driver {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            Some(_) | None => self.driver = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Gauges.
    pub fn usage(&self) -> Usage {
        Usage {
            flows: self.flows.open,
            pending_syns: self.flows.held.len(),
            given_up: self.flows.given_up(),
            time_waits: self.flows.time_waits,
            associations: self.associations.len(),
            events: self.events.len(),
            deadlines: self.timers.len(),
            ring_bytes: self.flows.rings.bytes(),
        }
    }

    /// Puts a flow into the queue for egress.
    fn mark_dirty(&mut self, index: u32) {
        let Some(flow) = self.flows.table.at_mut(index) else { return };
        let FlowState::Open(stream) = &flow.state else { return };
        if !flow.is_dirty && !stream.is_detached {
            flow.is_dirty = true;
            self.dirty.push_back(index);
        }
    }

    fn wake_driver(&mut self) {
        if let Some(waker) = self.driver.take() {
            waker.wake();
        }
    }

    /// Queues a packet that is complete but for the device's header.
    fn push_reply(&mut self, tun: TunId, packet: Box<[u8]>) {
        if self.outbox.push_reply(tun, packet).is_err() {
            self.stats.replies_dropped += 1;
        }
    }

    /// Queues an event that nothing else bounds.
    fn push_event(&mut self, event: Event) {
        if self.events.len() >= self.config.limits.events {
            self.stats.events_dropped += 1;
        } else {
            self.events.push_back(event);
        }
    }
}
