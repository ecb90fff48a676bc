//! Datagrams that came in fragments.
//!
//! The kernel fragments what is longer than the device's MTU: of UDP only IPv6 datagrams of more than 65,487 bytes when
//! the MTU is 65,535. A TUN keeps the order, so fragments are taken in order only; everything else is dropped.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use smoltcp::wire::IpProtocol;

use crate::{
    TunId,
    ip::{Fragment, IpPacket},
};

/// No transport packet is longer: its length has to fit its IP header.
const PAYLOAD_BYTES_MAX: usize = 65_535;

/// Datagrams in the making.
pub(crate) struct Reassembly {
    partial_by_key: BTreeMap<Key, Partial>,
    partials_max: usize,
    lifetime: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    tun: TunId,
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    ident: u32,
}

struct Partial {
    payload: Vec<u8>,
    expires: Instant,
}

/// What became of a fragment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reassembled {
    /// More are needed.
    Waiting,
    /// The whole transport packet.
    Whole(Vec<u8>),
    /// The fragment was dropped, with what came before it.
    Dropped,
}

impl Reassembly {
    pub(crate) fn new(partials_max: usize, lifetime: Duration) -> Self {
        Self { partial_by_key: BTreeMap::new(), partials_max, lifetime }
    }

    pub(crate) fn handle(
        &mut self,
        tun: TunId,
        packet: &IpPacket<'_>,
        fragment: Fragment,
        now: Instant,
    ) -> Reassembled {
        let (src, dst, protocol) = (packet.src, packet.dst, packet.protocol);
        let key = Key { tun, src, dst, protocol: protocol.into(), ident: fragment.ident };
        let is_whole_units = fragment.is_last || packet.payload.len().is_multiple_of(8);
        // TCP is never fragmented on its way here: the MSS follows the MTU.
        let is_wanted = matches!(protocol, IpProtocol::Udp | IpProtocol::Icmp | IpProtocol::Icmpv6);
        if !is_wanted || !is_whole_units || packet.payload.is_empty() {
            self.partial_by_key.remove(&key);
            return Reassembled::Dropped;
        }
        if fragment.offset_bytes == 0 {
            self.start(key, packet.payload, now);
            return if self.partial_by_key.contains_key(&key) { Reassembled::Waiting } else { Reassembled::Dropped };
        }
        let Some(partial) = self.partial_by_key.get_mut(&key) else { return Reassembled::Dropped };
        let is_next = partial.payload.len() == fragment.offset_bytes && partial.expires > now;
        if !is_next || partial.payload.len() + packet.payload.len() > PAYLOAD_BYTES_MAX {
            self.partial_by_key.remove(&key);
            return Reassembled::Dropped;
        }
        partial.payload.extend_from_slice(packet.payload);
        if !fragment.is_last {
            return Reassembled::Waiting;
        }
        self.partial_by_key.remove(&key).map_or(Reassembled::Dropped, |partial| Reassembled::Whole(partial.payload))
    }

    fn start(&mut self, key: Key, payload: &[u8], now: Instant) {
        if self.partial_by_key.len() >= self.partials_max {
            self.partial_by_key.retain(|_key, partial| partial.expires > now);
        }
        if self.partial_by_key.len() < self.partials_max || self.partial_by_key.contains_key(&key) {
            let partial = Partial { payload: payload.to_vec(), expires: now + self.lifetime };
            self.partial_by_key.insert(key, partial);
        }
    }

    pub(crate) fn remove_tun(&mut self, tun: TunId) {
        self.partial_by_key.retain(|key, _partial| key.tun != tun);
    }
}
