//! The core's public face.

use std::{
    net::SocketAddr,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;

use crate::{
    AssociationId, DatagramError, EchoRequest, Event, FlowError, FlowId, FlowKey, NetstackConfig, Offload, Refusal,
    Stats, Transmit, TunId, Unreachable, Usage,
};

/// Ends the TCP flows and UDP associations of any number of TUN devices. See the crate's documentation for the driver.
///
/// Flow methods take effect on the wire at the next [`Netstack::poll_transmit`].
pub struct Netstack {
    stats: Stats,
}

impl Netstack {
    /// Returns a stack without devices.
    pub fn new(config: NetstackConfig, now: Instant) -> Self {
        let _ = (config, now);
        Self { stats: Stats::default() }
    }

    /// Makes `tun` known. Packets of unknown devices are ignored.
    pub fn add_tun(&mut self, tun: TunId, offload: Offload) {
        todo!("{tun:?} {offload:?}")
    }

    /// Forgets `tun`: its flows end as if the container had reset them, its associations end. Nothing is sent.
    pub fn remove_tun(&mut self, tun: TunId) {
        todo!("{tun:?}")
    }

    /// Delivers datagrams to `address` as [`Event::Datagram`] on every device, without associations (for DNS).
    pub fn serve_datagrams(&mut self, address: SocketAddr) {
        todo!("{address}")
    }

    /// Takes one packet as read from `tun`, virtio-net header included when the device has one.
    ///
    /// Never fails: what is malformed is counted and dropped.
    pub fn handle_packet(&mut self, tun: TunId, packet: &[u8], now: Instant) {
        todo!("{tun:?} {} {now:?}", packet.len())
    }

    /// Does what has become due. Call it when [`Netstack::poll_timeout`]'s time has come; earlier does no harm.
    pub fn handle_timeout(&mut self, now: Instant) {
        todo!("{now:?}")
    }

    /// Lends the next packet to write, `None` when there is none until something happens.
    ///
    /// One call builds at most one packet. Flows take turns, packet by packet. A driver bounds its own run by the number
    /// of calls, and reads the device in between.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit<'_>> {
        todo!("{now:?}")
    }

    /// Says that the packet lent last was not taken (`EAGAIN`, `ENOBUFS`): the next [`Netstack::poll_transmit`] lends it
    /// again, unless its flow has ended since.
    pub fn transmit_blocked(&mut self) {
        self.stats.transmit_blocked += 1;
    }

    /// Returns the next thing to act on.
    pub fn poll_event(&mut self) -> Option<Event> {
        None
    }

    /// Returns when [`Netstack::handle_timeout`] has to be called, `None` when nothing is waited for.
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// Ready when there is an event to take or a packet to transmit. The waker is the driver's; one is kept.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let _ = cx;
        Poll::Pending
    }

    /// Counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Gauges.
    pub fn usage(&self) -> Usage {
        Usage::default()
    }
}

/// TCP. Every [`FlowId`] from [`Event::TcpSyn`] has to be given back by exactly one of `refuse`, `close`, `abort` and
/// `reset_after_drain`; from then on it is unknown, whatever the connection still has to do on the wire.
impl Netstack {
    /// Answers the held SYN with SYN-ACK. Sending and receiving may start at once; both wait for the handshake.
    ///
    /// # Errors
    /// [`FlowError::Reset`] when the container has given up meanwhile.
    pub fn accept(&mut self, flow: FlowId) -> Result<(), FlowError> {
        todo!("{flow:?}")
    }

    /// Turns the held SYN down and gives the id back. On an accepted flow it is an [`Netstack::abort`].
    pub fn refuse(&mut self, flow: FlowId, refusal: Refusal) {
        todo!("{flow:?} {refusal:?}")
    }

    /// Takes up to `max_bytes` received bytes; `Ok(None)` is the container's FIN, behind all its data.
    ///
    /// Bytes that are not taken close the window, so the container stops sending. One waker is kept.
    ///
    /// # Errors
    /// [`FlowError::Reset`] after all bytes that came before it were taken; [`FlowError::Gone`].
    pub fn poll_recv(
        &mut self,
        flow: FlowId,
        max_bytes: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, FlowError>> {
        todo!("{flow:?} {max_bytes} {cx:?}")
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
        todo!("{flow:?} {} {cx:?}", payload.len())
    }

    /// Ready when the container reset the flow or gave up before it was accepted (or the id is unknown).
    ///
    /// For tasks that wait for something else, such as the dial behind a held SYN. Has a waker of its own.
    pub fn poll_reset(&mut self, flow: FlowId, cx: &mut Context<'_>) -> Poll<()> {
        todo!("{flow:?} {cx:?}")
    }

    /// Sends a FIN behind all queued bytes. Receiving goes on.
    pub fn shutdown_write(&mut self, flow: FlowId) {
        todo!("{flow:?}")
    }

    /// Gives the id back; the connection ends in order: queued bytes, FIN, and the container's FIN within
    /// `NetstackConfig::fin_wait`. As with `close(2)`, bytes from the container that nobody will read cause a RST, behind
    /// all queued bytes.
    pub fn close(&mut self, flow: FlowId) {
        todo!("{flow:?}")
    }

    /// Gives the id back and sends a RST at once; queued bytes are dropped.
    pub fn abort(&mut self, flow: FlowId) {
        todo!("{flow:?}")
    }

    /// Gives the id back and sends a RST as soon as the container has acknowledged all queued bytes.
    pub fn reset_after_drain(&mut self, flow: FlowId) {
        todo!("{flow:?}")
    }
}

/// UDP and ICMP echo.
impl Netstack {
    /// Takes the oldest datagram of an association; `None` when it has ended (idle, refused, closed, device gone).
    pub fn poll_recv_datagram(&mut self, association: AssociationId, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        todo!("{association:?} {cx:?}")
    }

    /// Queues a datagram from the association's destination to the container.
    ///
    /// # Errors
    /// [`DatagramError`]; the datagram is dropped then.
    pub fn send_datagram(&mut self, association: AssociationId, payload: Bytes) -> Result<(), DatagramError> {
        todo!("{association:?} {}", payload.len())
    }

    /// Tells the container that its datagrams do not arrive, and ends the association.
    pub fn refuse_association(&mut self, association: AssociationId, reason: Unreachable) {
        todo!("{association:?} {reason:?}")
    }

    /// Ends an association; the next datagram of its 4-tuple opens a new one.
    pub fn close_association(&mut self, association: AssociationId) {
        todo!("{association:?}")
    }

    /// Queues a datagram from `key.dst` to `key.src`: the answer to an [`Event::Datagram`].
    ///
    /// # Errors
    /// [`DatagramError`]; the datagram is dropped then.
    pub fn reply_datagram(&mut self, key: FlowKey, payload: Bytes) -> Result<(), DatagramError> {
        todo!("{key:?} {}", payload.len())
    }

    /// Answers an echo request.
    pub fn reply_echo(&mut self, request: EchoRequest) {
        todo!("{request:?}")
    }

    /// Answers an echo request with an ICMP error.
    pub fn refuse_echo(&mut self, request: &EchoRequest, reason: Unreachable) {
        todo!("{request:?} {reason:?}")
    }
}
