//! TCP: segments to flows, flows to segments, and what the driver's tasks do with a flow.

mod egress;
mod ingress;

use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use smoltcp::{socket::tcp::State, wire::IpListenEndpoint};

use super::Netstack;
use crate::{
    FlowError, FlowId, Refusal,
    flow::{Ending, Flow, FlowState, Stream},
    icmp::{self, Undelivered},
    ip,
    segment::{Control, Segment},
};

/// TCP. Every [`FlowId`] from [`crate::Event::TcpSyn`] has to be given back by one of `refuse`, `close`, `abort` and
/// `reset_after_drain`, or by an `accept` that fails; from then on it is unknown, whatever the connection
/// still has to do on the wire.
impl Netstack {
    /// Answers the held SYN with SYN-ACK. Sending and receiving may start at once; both wait for the handshake.
    ///
    /// # Errors
    /// [`FlowError::Reset`] when the container has given up meanwhile: the id is given back with it. [`FlowError::Gone`].
    pub fn accept(&mut self, flow: FlowId) -> Result<(), FlowError> {
        let entry = self.owned(flow)?;
        let syn = match &entry.state {
            FlowState::Held(syn) => *syn,
            FlowState::Open(_) => return Ok(()),
            FlowState::GivenUp => {
                self.remove_flow(flow.index);
                return Err(FlowError::Reset);
            }
        };
        let (key, since) = (entry.key, entry.since);
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
        self.flows.held.remove(&(since, flow.index));
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
