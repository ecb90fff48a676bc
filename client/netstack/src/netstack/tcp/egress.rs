//! TCP to the container, and what becomes due with time.

use std::time::{Duration, Instant};

use smoltcp::{iface::PollResult, socket::tcp::State};

use crate::{
    FlowKey, Netstack,
    device::Egress,
    flow::{Ending, FlowState, Known, TimeWait},
    timer::{Armed, Target},
};

/// The least time until a flow is looked at again by a timer: a guard against a timer that is always due.
const TIMER_MIN: Duration = Duration::from_millis(1);

impl Netstack {
    pub(in crate::netstack) fn build_segment(&mut self) -> bool {
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
    pub(super) fn detach(&mut self, index: u32) {
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

    pub(super) fn remove_flow(&mut self, index: u32) {
        let Some(flow) = self.flows.table.remove(index) else { return };
        self.flows.forget_key(&flow.key, index);
        match flow.state {
            FlowState::Held(_) => drop(self.flows.held.remove(&(flow.since, index))),
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

    pub(super) fn forget_time_wait(&mut self, key: &FlowKey) {
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
    pub(in crate::netstack) fn on_flow_timeout(&mut self, index: u32, generation: u32, at: Instant) {
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

    pub(in crate::netstack) fn on_time_waits_timeout(&mut self) {
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
