//! Send and receive rings: how large, and kept for the next flow.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use smoltcp::{
    iface::{SocketHandle, SocketSet},
    socket::tcp,
};

use crate::{RingStep, timer::Armed};

/// Spare rings are let go when no flow was opened or closed for this long.
const SPARE_IDLE: Duration = Duration::from_secs(5);

/// A smoltcp socket in a set of its own, so that nothing scans other flows.
pub(crate) struct RingSocket {
    pub(crate) set: SocketSet<'static>,
    handle: SocketHandle,
    ring_bytes: usize,
}

impl RingSocket {
    fn new(ring_bytes: usize) -> Self {
        let ring = || tcp::SocketBuffer::new(vec![0; ring_bytes]);
        let mut set = SocketSet::new(Vec::with_capacity(1));
        let handle = set.add(tcp::Socket::new(ring(), ring()));
        Self { set, handle, ring_bytes }
    }

    pub(crate) fn socket(&self) -> &tcp::Socket<'static> {
        self.set.get(self.handle)
    }

    pub(crate) fn socket_mut(&mut self) -> &mut tcp::Socket<'static> {
        self.set.get_mut(self.handle)
    }

    /// Bytes of each of the two rings.
    pub(crate) fn ring_bytes(&self) -> usize {
        self.ring_bytes
    }
}

/// Gives out rings. Those of closed flows are used again: new ones cost a page fault per 4 KiB.
pub(crate) struct Rings {
    steps: Vec<RingStep>,
    spare_by_size: BTreeMap<usize, Vec<RingSocket>>,
    spare_bytes: usize,
    spare_bytes_max: usize,
    used_bytes: usize,
    last_used: Option<Instant>,
    pub(crate) armed: Armed,
}

impl Rings {
    pub(crate) fn new(steps: Vec<RingStep>, spare_bytes_max: usize) -> Self {
        Self {
            steps,
            spare_by_size: BTreeMap::new(),
            spare_bytes: 0,
            spare_bytes_max,
            used_bytes: 0,
            last_used: None,
            armed: Armed::default(),
        }
    }

    /// Returns a closed socket, sized for one flow more than `live_flows`.
    pub(crate) fn take(&mut self, live_flows: usize) -> RingSocket {
        let step = self.steps.iter().find(|step| live_flows < step.flows_below).or(self.steps.last());
        let ring_bytes = step.map_or(RING_BYTES_MIN, |step| step.ring_bytes.max(RING_BYTES_MIN));
        self.used_bytes += 2 * ring_bytes;
        let Some(spare) = self.spare_by_size.get_mut(&ring_bytes).and_then(Vec::pop) else {
            return RingSocket::new(ring_bytes);
        };
        self.spare_bytes -= 2 * ring_bytes;
        spare
    }

    /// Takes a socket back; returns when to look for spare ones that are not needed.
    pub(crate) fn give_back(&mut self, mut ring: RingSocket, now: Instant) -> Instant {
        let bytes = 2 * ring.ring_bytes;
        self.used_bytes -= bytes;
        if self.spare_bytes + bytes <= self.spare_bytes_max {
            ring.socket_mut().abort();
            self.spare_bytes += bytes;
            self.spare_by_size.entry(ring.ring_bytes).or_default().push(ring);
        }
        self.last_used = Some(now);
        now + SPARE_IDLE
    }

    /// Lets go what was not needed lately; returns when to look again.
    pub(crate) fn trim(&mut self, now: Instant) -> Option<Instant> {
        let last_used = self.last_used?;
        if now < last_used + SPARE_IDLE {
            return Some(last_used + SPARE_IDLE);
        }
        self.spare_by_size.clear();
        self.spare_bytes = 0;
        self.last_used = None;
        None
    }

    pub(crate) fn bytes(&self) -> usize {
        self.used_bytes + self.spare_bytes
    }
}

/// A window below this makes senders crawl.
const RING_BYTES_MIN: usize = 4 << 10;
