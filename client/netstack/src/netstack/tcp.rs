//! TCP: segments to flows, flows to segments, and what the driver's tasks do with a flow.

use std::{
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes};
use smoltcp::{
    iface::PollResult,
    socket::tcp::State,
    wire::{IpListenEndpoint, IpProtocol},
};

use super::Netstack;
use crate::{
    Event, FlowError, FlowId, FlowKey, Refusal, TunId, checksum,
    device::{Egress, Ingress},
    flow::{Ending, Flow, FlowState, Known, Stream, TimeWait},
    icmp::{self, Undelivered},
    ip::{self, IpPacket, Rejected},
    segment::{Control, HeldSyn, Segment},
    timer::{Armed, Target},
};

/// The least time until a flow is looked at again by a timer: a guard against a timer that is always due.
const TIMER_MIN: Duration = Duration::from_millis(1);

/// From the container.
impl Netstack {
    pub(super) fn on_tcp(
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
        let limits = &self.config.limits;
        if self.flows.held >= limits.pending_syns || self.flows.held + self.flows.open >= limits.flows {
            self.stats.syns_dropped += 1;
            return Ok(());
        }
        let (index, generation) = self.flows.table.insert(Flow::new(*key, syn));
        if let Some(flow) = self.flows.table.at_mut(index) {
            flow.generation = generation;
        }
        self.flows.by_key.insert(*key, Known::Flow(index));
        self.flows.held += 1;
        self.stats.flows_opened += 1;
        self.events.push_back(Event::TcpSyn { flow: FlowId { index, generation }, key: *key });
        Ok(())
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
    fn feed(&mut self, index: u32, packet: &[u8], segment: &Segment) {
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

    fn push_control(&mut self, key: &FlowKey, control: Control) {
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

    /// The container does not want the held SYN answered any more.
    fn give_up(&mut self, index: u32) {
        let Some(flow) = self.flows.table.at_mut(index) else { return };
        flow.state = FlowState::GivenUp;
        flow.on_reset();
        let key = flow.key;
        self.flows.held -= 1;
        self.flows.forget_key(&key, index);
    }

    /// Ends a flow without a word to the container.
    pub(super) fn cut_flow(&mut self, index: u32) {
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

/// To the container.
impl Netstack {
    pub(super) fn build_segment(&mut self) -> bool {
        while let Some(index) = self.dirty.pop_front() {
            if self.egress(index) {
                return true;
            }
        }
        false
    }

    /// Lets one flow build one packet; a flow that has none is settled.
    fn egress(&mut self, index: u32) -> bool {
        let now = self.epoch.smoltcp(self.now);
        let Some(flow) = self.flows.table.at_mut(index) else { return false };
        flow.is_dirty = false;
        let Some(tun) = self.tuns.get_mut(&flow.key.tun) else { return false };
        let FlowState::Open(stream) = &mut flow.state else { return false };
        if stream.is_detached {
            return false;
        }
        stream.apply(&mut flow.ending);
        let mut device = Egress::new(tun.offload, &mut self.buffer);
        if tun.iface.poll_egress(now, &mut device, &mut stream.ring.set) == PollResult::None {
            self.settle(index);
            return false;
        }
        let sent = self.buffer.finish_tcp(flow.key.tun, tun.offload, stream.mss);
        if let Some(segment) = &sent {
            stream.on_sent(segment);
            if segment.has_rst() {
                self.stats.resets_out += 1;
            }
        }
        self.mark_dirty(index);
        sent.is_some()
    }

    /// A flow has nothing to send: sets its timer, or ends it.
    fn settle(&mut self, index: u32) {
        let now = self.epoch.smoltcp(self.now);
        let Some(flow) = self.flows.table.at_mut(index) else { return };
        let Some(tun) = self.tuns.get_mut(&flow.key.tun) else { return };
        let FlowState::Open(stream) = &mut flow.state else { return };
        let socket = stream.ring.socket();
        if socket.remote_endpoint().is_none() {
            self.detach(index);
        } else if socket.state() == State::TimeWait {
            let time_wait = (stream.sent.seq_end, stream.sent.ack);
            let key = flow.key;
            self.detach(index);
            self.remember_time_wait(key, time_wait);
        } else {
            stream.update_give_up(flow.ending, self.now + self.config.fin_wait);
            let polled = tun.iface.poll_at(now, &stream.ring.set).map(|at| self.epoch.std(at));
            if let Some(at) = polled.into_iter().chain(stream.give_up).min() {
                let target = Target::Flow { index, generation: flow.generation };
                self.timers.arm(target, &mut flow.armed, at.max(self.now + TIMER_MIN));
            }
        }
    }

    /// The 4-tuple is no longer the flow's, which ends as soon as its id has been given back.
    fn detach(&mut self, index: u32) {
        let Some(flow) = self.flows.table.at_mut(index) else { return };
        let key = flow.key;
        if let FlowState::Open(stream) = &mut flow.state {
            stream.is_detached = true;
        }
        if flow.ending != Ending::Owned {
            self.remove_flow(index);
        }
        self.flows.forget_key(&key, index);
    }

    fn remove_flow(&mut self, index: u32) {
        let Some(flow) = self.flows.table.remove(index) else { return };
        self.flows.forget_key(&flow.key, index);
        match flow.state {
            FlowState::Held(_) => self.flows.held -= 1,
            FlowState::Open(stream) => {
                self.flows.open -= 1;
                let rings = &mut self.flows.rings;
                let trim_at = rings.give_back(stream.ring, self.now);
                self.timers.arm(Target::SpareRings, &mut rings.armed, trim_at);
            }
            FlowState::GivenUp => {}
        }
    }

    fn remember_time_wait(&mut self, key: FlowKey, (seq, ack): (u32, u32)) {
        while self.time_waits.len() >= self.config.limits.time_waits.max(1) {
            let Some((expires, oldest)) = self.time_waits.pop_front() else { break };
            self.forget_time_wait_at(&oldest, expires);
        }
        let expires = self.now + self.config.time_wait;
        self.flows.by_key.insert(key, Known::TimeWait(TimeWait { seq, ack, expires }));
        self.flows.time_waits += 1;
        if self.time_waits.is_empty() {
            self.timers.arm(Target::TimeWaits, &mut Armed::default(), expires);
        }
        self.time_waits.push_back((expires, key));
    }

    fn forget_time_wait(&mut self, key: &FlowKey) {
        if let Some(Known::TimeWait(time_wait)) = self.flows.by_key.get(key) {
            let expires = time_wait.expires;
            self.forget_time_wait_at(key, expires);
        }
    }

    fn forget_time_wait_at(&mut self, key: &FlowKey, expires: Instant) {
        let is_current = |known: &Known| matches!(known, Known::TimeWait(time_wait) if time_wait.expires == expires);
        if self.flows.by_key.get(key).is_some_and(is_current) {
            self.flows.by_key.remove(key);
            self.flows.time_waits -= 1;
        }
    }
}

/// When time has passed.
impl Netstack {
    pub(super) fn on_flow_timeout(&mut self, index: u32, generation: u32, at: Instant) {
        let Some(flow) = self.flows.table.get_mut(index, generation) else { return };
        if !flow.armed.is_due(at) {
            return;
        }
        let FlowState::Open(stream) = &mut flow.state else { return };
        if stream.give_up.is_some_and(|give_up| give_up <= self.now) {
            if stream.ring.socket().state() == State::FinWait2 {
                // Without a RST, which would turn the end of what the container still reads into an error.
                return self.detach(index);
            }
            stream.ring.socket_mut().abort();
            stream.give_up = None;
            flow.on_reset();
        }
        self.mark_dirty(index);
    }

    pub(super) fn on_time_waits_timeout(&mut self) {
        while let Some((expires, key)) = self.time_waits.front().copied() {
            if expires > self.now {
                self.timers.arm(Target::TimeWaits, &mut Armed::default(), expires);
                return;
            }
            self.time_waits.pop_front();
            self.forget_time_wait_at(&key, expires);
        }
    }
}

/// TCP. Every [`FlowId`] from [`Event::TcpSyn`] has to be given back by exactly one of `refuse`, `close`, `abort` and
/// `reset_after_drain`; from then on it is unknown, whatever the connection still has to do on the wire.
impl Netstack {
    /// Answers the held SYN with SYN-ACK. Sending and receiving may start at once; both wait for the handshake.
    ///
    /// # Errors
    /// [`FlowError::Reset`] when the container has given up meanwhile, [`FlowError::Gone`].
    pub fn accept(&mut self, flow: FlowId) -> Result<(), FlowError> {
        let entry = self.owned(flow)?;
        let syn = match &entry.state {
            FlowState::Held(syn) => *syn,
            FlowState::Open(_) => return Ok(()),
            FlowState::GivenUp => return Err(FlowError::Reset),
        };
        let key = entry.key;
        let mut ring = self.flows.rings.take(self.flows.open);
        let socket = ring.socket_mut();
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket
            .listen(IpListenEndpoint { addr: Some(key.dst.ip().into()), port: key.dst.port() })
            .expect("the socket is closed and a segment's port is not 0");
        let stream = Stream::new(ring, &syn, self.now + self.config.handshake);
        if let Some(entry) = self.flows.table.at_mut(flow.index) {
            entry.state = FlowState::Open(stream);
        }
        self.flows.held -= 1;
        self.flows.open += 1;
        let packet = syn.to_packet(key.src, key.dst);
        if let Ok(segment) = Segment::parse(&packet[ip::header_len(key.src.ip())..]) {
            self.feed(flow.index, &packet, &segment);
        }
        self.wake_driver();
        Ok(())
    }

    /// Turns the held SYN down and gives the id back. On an accepted flow it is an [`Netstack::abort`].
    pub fn refuse(&mut self, flow: FlowId, refusal: Refusal) {
        let Ok(entry) = self.owned(flow) else { return };
        let FlowState::Held(syn) = &entry.state else { return self.abort(flow) };
        let (key, syn) = (entry.key, *syn);
        match refusal {
            Refusal::Reset => {
                self.stats.resets_out += 1;
                self.push_control(&key, Control::reset_for_syn(syn));
            }
            Refusal::Unreachable(reason) => {
                let undelivered = Undelivered::Syn { src: key.src, dst: key.dst, syn };
                self.push_reply(key.tun, icmp::unreachable(&undelivered, reason));
            }
            Refusal::Silence => {}
        }
        self.remove_flow(flow.index);
        self.wake_driver();
    }

    /// Takes up to `max_bytes` received bytes; `Ok(None)` is the container's FIN, behind all its data.
    ///
    /// Bytes that are not taken close the window, so the container stops sending. One waker is kept.
    ///
    /// # Errors
    /// [`FlowError::Reset`] after all bytes that came before it were taken; [`FlowError::NotAccepted`];
    /// [`FlowError::Gone`].
    pub fn poll_recv(
        &mut self,
        flow: FlowId,
        max_bytes: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, FlowError>> {
        let entry = self.owned(flow)?;
        let is_reset = entry.is_reset;
        let socket = entry.stream_mut()?.ring.socket_mut();
        if socket.can_recv() {
            let take = |ring: &mut [u8]| {
                let len = ring.len().min(max_bytes);
                (len, Bytes::copy_from_slice(&ring[..len]))
            };
            // `recv` fails only where there is nothing to receive.
            let taken = socket.recv(take).map_err(|_error| FlowError::Reset)?;
            self.mark_dirty(flow.index);
            self.wake_driver();
            return Poll::Ready(Ok(Some(taken)));
        }
        if is_reset {
            return Poll::Ready(Err(FlowError::Reset));
        }
        match socket.state() {
            State::SynReceived | State::Established | State::FinWait1 | State::FinWait2 => {
                socket.register_recv_waker(cx.waker());
                Poll::Pending
            }
            State::CloseWait
            | State::LastAck
            | State::Closing
            | State::TimeWait
            | State::Closed
            | State::Listen
            | State::SynSent => Poll::Ready(Ok(None)),
        }
    }

    /// Queues `payload` for the container, taking from its front what fits; ready when all of it was taken.
    ///
    /// Cancel-safe: what was not taken stays in `payload`. One waker is kept.
    ///
    /// # Errors
    /// Any [`FlowError`]; nothing more is taken then.
    pub fn poll_send(
        &mut self,
        flow: FlowId,
        payload: &mut Bytes,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), FlowError>> {
        let entry = self.owned(flow)?;
        if entry.is_reset {
            return Poll::Ready(Err(FlowError::Reset));
        }
        let stream = entry.stream_mut()?;
        if stream.is_fin_wanted {
            return Poll::Ready(Err(FlowError::WriteShutdown));
        }
        let socket = stream.ring.socket_mut();
        let taken = if socket.state() == State::SynReceived {
            0
        } else {
            socket.send_slice(payload).map_err(|_error| FlowError::Reset)?
        };
        payload.advance(taken);
        let is_done = payload.is_empty();
        if !is_done {
            socket.register_send_waker(cx.waker());
        }
        if taken > 0 {
            self.mark_dirty(flow.index);
            self.wake_driver();
        }
        if is_done { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Ready when the container reset the flow or gave up before it was accepted (or the id is unknown).
    ///
    /// For tasks that wait for something else, such as the dial behind a held SYN. Has a waker of its own.
    pub fn poll_reset(&mut self, flow: FlowId, cx: &mut Context<'_>) -> Poll<()> {
        let Ok(entry) = self.owned(flow) else { return Poll::Ready(()) };
        if entry.is_reset {
            return Poll::Ready(());
        }
        entry.reset_waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Sends a FIN behind all queued bytes. Receiving goes on.
    pub fn shutdown_write(&mut self, flow: FlowId) {
        let Ok(entry) = self.owned(flow) else { return };
        let Ok(stream) = entry.stream_mut() else { return };
        stream.is_fin_wanted = true;
        self.mark_dirty(flow.index);
        self.wake_driver();
    }

    /// Gives the id back; the connection ends in order: queued bytes, FIN, and the container's FIN, which is waited for
    /// as long as [`crate::NetstackConfig::fin_wait`]. As with `close(2)`, bytes from the container that nobody will read
    /// cause a RST, behind all queued bytes.
    pub fn close(&mut self, flow: FlowId) {
        self.release(flow, Ending::InOrder);
    }

    /// Gives the id back and sends a RST at once; queued bytes are dropped.
    pub fn abort(&mut self, flow: FlowId) {
        self.release(flow, Ending::Reset);
    }

    /// Gives the id back and sends a RST as soon as the container has acknowledged all queued bytes.
    pub fn reset_after_drain(&mut self, flow: FlowId) {
        self.release(flow, Ending::ResetBehindData);
    }

    fn release(&mut self, flow: FlowId, ending: Ending) {
        let Ok(entry) = self.owned(flow) else { return };
        match &mut entry.state {
            FlowState::Held(_) => return self.refuse(flow, Refusal::Reset),
            FlowState::GivenUp => return self.remove_flow(flow.index),
            FlowState::Open(stream) if stream.is_detached => return self.remove_flow(flow.index),
            FlowState::Open(stream) => {
                entry.ending = ending;
                stream.is_fin_wanted |= ending == Ending::InOrder;
                if ending == Ending::Reset {
                    stream.ring.socket_mut().abort();
                }
            }
        }
        self.mark_dirty(flow.index);
        self.wake_driver();
    }

    /// Finds a flow whose id has not been given back.
    fn owned(&mut self, flow: FlowId) -> Result<&mut Flow, FlowError> {
        let entry = self.flows.table.get_mut(flow.index, flow.generation);
        entry.filter(|entry| entry.ending == Ending::Owned).ok_or(FlowError::Gone)
    }
}
