//! TCP from the container.

use smoltcp::{socket::tcp::State, wire::IpProtocol};

use crate::{
    Event, FlowId, FlowKey, Netstack, TunId, checksum,
    device::Ingress,
    flow::{Flow, FlowState, Known, TimeWait},
    ip::{self, IpPacket, Rejected},
    segment::{Control, HeldSyn, Segment},
};

impl Netstack {
    pub(in crate::netstack) fn on_tcp(
        &mut self,
        tun: TunId,
        packet: &IpPacket<'_>,
        is_checksum_trusted: bool,
    ) -> Result<(), Rejected> {
        if packet.has_extensions() {
            return Err(Rejected::Unsupported);
        }
        let segment = Segment::parse(packet.payload)?;
        if !is_checksum_trusted
            && !checksum::is_transport_valid(packet.src, packet.dst, IpProtocol::Tcp, packet.payload)
        {
            return Err(Rejected::Checksum);
        }
        let src = (packet.src, segment.src_port).into();
        let key = FlowKey { tun, src, dst: (packet.dst, segment.dst_port).into() };
        match self.flows.by_key.get(&key).copied() {
            Some(Known::Flow(index)) => self.on_segment(index, &key, packet, &segment),
            Some(Known::TimeWait(time_wait)) => self.on_time_wait_segment(&key, time_wait, packet, &segment),
            None => self.on_unknown_segment(&key, packet, &segment),
        }
    }

    /// RFC 9293, section 3.10.7.1: what belongs to no connection is reset, and a SYN asks for one.
    fn on_unknown_segment(&mut self, key: &FlowKey, packet: &IpPacket<'_>, segment: &Segment) -> Result<(), Rejected> {
        if segment.is_initial_syn() {
            return self.on_syn(key, packet);
        }
        if !segment.has_rst() {
            self.stats.unknown_flow_resets += 1;
            self.push_control(key, Control::reset_for(segment));
        }
        Ok(())
    }

    fn on_syn(&mut self, key: &FlowKey, packet: &IpPacket<'_>) -> Result<(), Rejected> {
        let syn = HeldSyn::parse(packet)?;
        if !self.make_room_for_syn() {
            self.stats.syns_dropped += 1;
            return Ok(());
        }
        let (index, generation) = self.flows.table.insert(Flow::new(*key, syn, self.now));
        if let Some(flow) = self.flows.table.at_mut(index) {
            flow.generation = generation;
        }
        self.flows.by_key.insert(*key, Known::Flow(index));
        self.flows.held.insert((self.now, index));
        self.stats.flows_opened += 1;
        self.events.push_back(Event::TcpSyn { flow: FlowId { index, generation }, key: *key });
        Ok(())
    }

    /// Whether one more SYN can be held. If need be, the oldest is given up, when it has had its time: so destinations that
    /// do not answer (a scan, a flood) never keep out those that do.
    fn make_room_for_syn(&mut self) -> bool {
        let limits = &self.config.limits;
        if self.flows.table.len() >= limits.flows || self.flows.given_up() >= limits.pending_syns {
            return false;
        }
        if self.flows.held.len() < limits.pending_syns {
            return true;
        }
        match self.flows.held.first().copied() {
            Some((since, oldest)) if self.now >= since + self.config.syn_patience => {
                self.stats.syns_given_up += 1;
                self.give_up(oldest);
                true
            }
            Some(_) | None => false,
        }
    }

    fn on_time_wait_segment(
        &mut self,
        key: &FlowKey,
        time_wait: TimeWait,
        packet: &IpPacket<'_>,
        segment: &Segment,
    ) -> Result<(), Rejected> {
        if segment.is_initial_syn() || segment.has_rst() {
            self.forget_time_wait(key);
            return if segment.has_rst() { Ok(()) } else { self.on_syn(key, packet) };
        }
        // A FIN again: our ACK was lost. A bare ACK is not answered, or two ends would answer each other for ever.
        if segment.sequence_len() > 0 {
            self.push_control(key, Control::acknowledge(time_wait.seq, time_wait.ack));
        }
        Ok(())
    }

    fn on_segment(
        &mut self,
        index: u32,
        key: &FlowKey,
        packet: &IpPacket<'_>,
        segment: &Segment,
    ) -> Result<(), Rejected> {
        let Some(flow) = self.flows.table.at_mut(index) else { return Ok(()) };
        match &flow.state {
            FlowState::Held(syn) => {
                let syn = *syn;
                self.on_segment_of_held(index, syn, key, packet, segment)
            }
            FlowState::Open(_) if segment.is_initial_syn() => self.on_syn_of_open(index, key, packet, segment),
            FlowState::Open(stream) if stream.is_beyond_first_window(segment) => {
                self.stats.beyond_window += 1;
                Ok(())
            }
            FlowState::Open(_) => {
                self.feed(index, packet.whole, segment);
                Ok(())
            }
            FlowState::GivenUp => Ok(()), // Its 4-tuple leads nowhere.
        }
    }

    fn on_segment_of_held(
        &mut self,
        index: u32,
        syn: HeldSyn,
        key: &FlowKey,
        packet: &IpPacket<'_>,
        segment: &Segment,
    ) -> Result<(), Rejected> {
        if segment.is_initial_syn() {
            if segment.seq == syn.seq {
                return Ok(()); // Sent again, because nothing has answered it yet.
            }
            self.give_up(index);
            return self.on_syn(key, packet);
        }
        if segment.has_rst() {
            if segment.seq == syn.seq.wrapping_add(1) {
                self.give_up(index);
            }
            return Ok(());
        }
        self.push_control(key, Control::reset_for(segment));
        Ok(())
    }

    /// A SYN where a connection is: the container has forgotten it, or wants the 4-tuple of one that is over.
    fn on_syn_of_open(
        &mut self,
        index: u32,
        key: &FlowKey,
        packet: &IpPacket<'_>,
        segment: &Segment,
    ) -> Result<(), Rejected> {
        let Some(flow) = self.flows.table.at_mut(index) else { return Ok(()) };
        let FlowState::Open(stream) = &mut flow.state else { return Ok(()) };
        match stream.ring.socket().state() {
            // Our SYN-ACK is on its way, or will be sent again.
            State::SynReceived if segment.seq.wrapping_add(1) == stream.first_seq => Ok(()),
            State::TimeWait | State::Closed | State::Listen => {
                self.detach(index);
                self.on_syn(key, packet)
            }
            // RFC 9293, section 3.10.7.4: a challenge. A peer that knows nothing of the connection resets it.
            State::SynReceived
            | State::SynSent
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck => {
                let control = Control::acknowledge(stream.sent.seq_end, stream.sent.ack);
                self.push_control(key, control);
                Ok(())
            }
        }
    }

    /// Hands a packet to the flow's socket.
    pub(super) fn feed(&mut self, index: u32, packet: &[u8], segment: &Segment) {
        let now = self.epoch.smoltcp(self.now);
        let Some(flow) = self.flows.table.at_mut(index) else { return };
        let Some(tun) = self.tuns.get_mut(&flow.key.tun) else { return };
        let FlowState::Open(stream) = &mut flow.state else { return };
        self.answer.clear();
        let mut device = Ingress::new(tun.offload, packet, &mut self.answer);
        tun.iface.poll_ingress_single(now, &mut device, &mut stream.ring.set);
        // A RST leads to CLOSED, or from the handshake back to LISTEN.
        let is_closed = matches!(stream.ring.socket().state(), State::Closed | State::Listen);
        let key = flow.key;
        if is_closed && segment.has_rst() {
            self.stats.resets_in += 1;
            self.on_peer_reset(index);
        } else {
            self.mark_dirty(index);
        }
        if !self.answer.is_empty() {
            self.push_answer(index, &key);
        }
    }

    /// Queues what smoltcp answered to a packet.
    fn push_answer(&mut self, index: u32, key: &FlowKey) {
        let mut packet = std::mem::take(&mut self.answer);
        let ip_header_len = ip::header_len(key.dst.ip());
        if let Some(tcp) = packet.get_mut(ip_header_len..)
            && let Ok(segment) = Segment::parse(tcp)
        {
            tcp[16..18].fill(0);
            let sum = checksum::transport(key.dst.ip(), key.src.ip(), IpProtocol::Tcp, tcp);
            tcp[16..18].copy_from_slice(&sum.to_be_bytes());
            if let Some(flow) = self.flows.table.at_mut(index)
                && let FlowState::Open(stream) = &mut flow.state
                && !segment.has_rst()
            {
                stream.on_sent(&segment);
            }
            self.push_reply(key.tun, packet.as_slice().into());
        }
        packet.clear();
        self.answer = packet;
    }

    pub(super) fn push_control(&mut self, key: &FlowKey, control: Control) {
        let mut packet = vec![0; Control::packet_len(key.dst)];
        control.write(&mut packet, key.dst, key.src);
        self.push_reply(key.tun, packet.into_boxed_slice());
    }

    /// The container ended the flow with a RST; what it sent before stays to be read.
    fn on_peer_reset(&mut self, index: u32) {
        if let Some(flow) = self.flows.table.at_mut(index) {
            flow.on_reset();
        }
        self.detach(index);
    }

    /// The held SYN is not answered any more.
    fn give_up(&mut self, index: u32) {
        let Some(flow) = self.flows.table.at_mut(index) else { return };
        flow.state = FlowState::GivenUp;
        flow.on_reset();
        let (key, since) = (flow.key, flow.since);
        self.flows.held.remove(&(since, index));
        self.flows.forget_key(&key, index);
    }

    /// Ends a flow without a word to the container.
    pub(in crate::netstack) fn cut_flow(&mut self, index: u32) {
        let Some(flow) = self.flows.table.at_mut(index) else { return };
        match &mut flow.state {
            FlowState::Held(_) => self.give_up(index),
            FlowState::Open(stream) => {
                stream.ring.socket_mut().abort(); // Wakes both tasks.
                self.on_peer_reset(index);
            }
            FlowState::GivenUp => {}
        }
    }
}
