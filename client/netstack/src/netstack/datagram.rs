//! UDP and ICMP.

use std::{
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;

use super::Netstack;
use crate::{
    AssociationId, DatagramError, EchoRequest, Event, FlowKey, TunId, Unreachable,
    association::QueueLimits,
    icmp::{self, Undelivered},
    ip::{IpPacket, Rejected},
    outbox::Message,
    timer::Target,
    udp::{self, Datagram},
    virtio,
};

/// From the container.
impl Netstack {
    pub(super) fn on_udp(
        &mut self,
        tun: TunId,
        packet: &IpPacket<'_>,
        message: &[u8],
        is_checksum_trusted: bool,
    ) -> Result<(), Rejected> {
        let datagram = Datagram::parse(packet, message, is_checksum_trusted)?;
        let key = FlowKey { tun, src: datagram.src, dst: datagram.dst };
        if self.services.contains(&key.dst) {
            self.push_event(Event::Datagram { key, payload: Bytes::copy_from_slice(datagram.payload) });
            return Ok(());
        }
        let index = match self.associations.find(&key) {
            Some(index) => index,
            None if self.can_open_association() => self.open_association(key),
            None => {
                self.stats.datagrams_in_dropped += 1;
                return Ok(());
            }
        };
        let limits = QueueLimits {
            datagrams: self.config.limits.association_queue,
            bytes: self.config.limits.association_bytes,
        };
        if !self.associations.push(index, datagram.payload, limits, self.now) {
            self.stats.datagrams_in_dropped += 1;
        }
        Ok(())
    }

    fn can_open_association(&self) -> bool {
        let limits = &self.config.limits;
        self.associations.len() < limits.associations && self.events.len() < limits.events
    }

    fn open_association(&mut self, key: FlowKey) -> u32 {
        let id = self.associations.open(key, self.now);
        self.stats.associations_opened += 1;
        self.arm_association(id, self.now + self.config.association_unanswered);
        self.events.push_back(Event::UdpAssociation { association: id, key });
        id.index
    }

    fn arm_association(&mut self, id: AssociationId, deadline: Instant) {
        if let Some(association) = self.associations.get_mut(id) {
            let target = Target::Association { index: id.index, generation: id.generation };
            self.timers.arm(target, &mut association.armed, deadline);
        }
    }

    pub(super) fn on_icmp(&mut self, tun: TunId, packet: &IpPacket<'_>, message: &[u8]) -> Result<(), Rejected> {
        if !icmp::is_checksum_valid(packet.src, packet.dst, message) {
            return Err(Rejected::Checksum);
        }
        match icmp::Message::parse(tun, packet, message)? {
            icmp::Message::Echo(request) => self.push_event(Event::Echo(request)),
            icmp::Message::PortUnreachable { src, dst } => {
                if let Some(index) = self.associations.find(&FlowKey { tun, src: dst, dst: src }) {
                    self.associations.remove_at(index);
                }
            }
            icmp::Message::Other => return Err(Rejected::Unsupported),
        }
        Ok(())
    }
}

/// To the container.
impl Netstack {
    pub(super) fn build_message(&mut self) -> bool {
        while let Some(message) = self.outbox.pop_message() {
            let tun = match &message {
                Message::Datagram { tun, .. } => *tun,
                Message::EchoReply(request) => request.tun,
            };
            let Some(offload) = self.tuns.get(&tun).map(|tun| tun.offload) else { continue };
            match &message {
                Message::Datagram { src, dst, payload, .. } => {
                    let packet = self.buffer.fill(tun, udp::packet_len(offload, src.ip(), payload));
                    udp::write(packet, offload, *src, *dst, payload);
                }
                Message::EchoReply(request) => {
                    let packet = self.buffer.fill(tun, offload.header_len() + icmp::echo_reply_len(request));
                    let (header, packet) = packet.split_at_mut(offload.header_len());
                    virtio::write_plain(header);
                    icmp::write_echo_reply(packet, request);
                }
            }
            return true;
        }
        false
    }

    pub(super) fn on_association_timeout(&mut self, id: AssociationId, at: Instant) {
        let Some(association) = self.associations.get_mut(id) else { return };
        if !association.armed.is_due(at) {
            return;
        }
        let idle =
            if association.is_answered { self.config.association_idle } else { self.config.association_unanswered };
        let deadline = association.last_active + idle;
        if deadline <= self.now {
            self.associations.remove(id);
        } else {
            self.arm_association(id, deadline);
        }
    }
}

/// UDP and ICMP echo.
impl Netstack {
    /// Takes the oldest datagram of an association; `None` when it has ended (idle, refused, closed, device gone, or the
    /// container's port was closed). One waker is kept.
    pub fn poll_recv_datagram(&mut self, association: AssociationId, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match self.associations.pop(association, cx.waker()) {
            Some(Some(payload)) => Poll::Ready(Some(payload)),
            Some(None) => Poll::Pending,
            None => Poll::Ready(None),
        }
    }

    /// Queues a datagram from the association's destination to the container.
    ///
    /// # Errors
    /// [`DatagramError`]; the datagram is dropped then.
    pub fn send_datagram(&mut self, association: AssociationId, payload: Bytes) -> Result<(), DatagramError> {
        let now = self.now;
        let entry = self.associations.get_mut(association).ok_or(DatagramError::Gone)?;
        entry.last_active = now;
        entry.is_answered = true;
        let key = entry.key;
        self.reply_datagram(key, payload)
    }

    /// Tells the container that its datagrams do not arrive, and ends the association.
    pub fn refuse_association(&mut self, association: AssociationId, reason: Unreachable) {
        let Some(key) = self.associations.remove(association) else { return };
        let undelivered = Undelivered::Datagram { src: key.src, dst: key.dst };
        self.push_reply(key.tun, icmp::unreachable(&undelivered, reason));
        self.wake_driver();
    }

    /// Ends an association; the next datagram of its 4-tuple opens a new one.
    pub fn close_association(&mut self, association: AssociationId) {
        self.associations.remove(association);
    }

    /// Queues a datagram from `key.dst` to `key.src`: the answer to an [`Event::Datagram`].
    ///
    /// # Errors
    /// [`DatagramError`]; the datagram is dropped then.
    pub fn reply_datagram(&mut self, key: FlowKey, payload: Bytes) -> Result<(), DatagramError> {
        let (len, max) = (payload.len(), udp::payload_bytes_max(key.dst.ip()));
        if len > max {
            return Err(DatagramError::TooLong { len, max });
        }
        let message = Message::Datagram { tun: key.tun, src: key.dst, dst: key.src, payload };
        if self.outbox.push_message(message).is_err() {
            self.stats.datagrams_out_dropped += 1;
            return Err(DatagramError::QueueFull);
        }
        self.wake_driver();
        Ok(())
    }

    /// Answers an echo request. A payload that is longer than the address family can carry is dropped and counted.
    pub fn reply_echo(&mut self, request: EchoRequest) {
        // The header is as long as that of a datagram.
        let is_too_long = request.payload.len() > udp::payload_bytes_max(request.dst);
        if is_too_long || self.outbox.push_message(Message::EchoReply(request)).is_err() {
            self.stats.datagrams_out_dropped += 1;
        }
        self.wake_driver();
    }

    /// Answers an echo request with an ICMP error.
    pub fn refuse_echo(&mut self, request: &EchoRequest, reason: Unreachable) {
        self.push_reply(request.tun, icmp::unreachable(&Undelivered::Echo(request), reason));
        self.wake_driver();
    }
}
