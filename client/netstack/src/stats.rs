//! Counters and gauges.

/// What happened since the start. Counters only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Packets read from the devices.
    pub packets_in: u64,
    /// Packets lent to the driver for writing.
    pub packets_out: u64,
    /// Bytes of the packets read, headers included.
    pub bytes_in: u64,
    /// Bytes of the packets written, headers included.
    pub bytes_out: u64,
    /// Packets that break a rule of their protocol.
    pub malformed: u64,
    /// Packets with a wrong checksum.
    pub checksum_errors: u64,
    /// Packets of protocols or kinds that the stack does not speak (IGMP, router solicitations, multicast).
    pub unsupported: u64,
    /// TCP packets of no known flow, answered with RST.
    pub unknown_flow_resets: u64,
    /// Segments that reached beyond the advertised window, dropped.
    pub beyond_window: u64,
    /// SYNs that became a [`crate::Event::TcpSyn`].
    pub flows_opened: u64,
    /// SYNs dropped because of a limit.
    pub syns_dropped: u64,
    /// SYNs that were held and gave their place to another.
    pub syns_given_up: u64,
    /// Flows that the container reset.
    pub resets_in: u64,
    /// Flows that this side reset or refused.
    pub resets_out: u64,
    /// New UDP associations.
    pub associations_opened: u64,
    /// Datagrams from the container dropped because a queue or the association table was full.
    pub datagrams_in_dropped: u64,
    /// Datagrams to the container dropped because the queue was full.
    pub datagrams_out_dropped: u64,
    /// Datagrams put together from fragments.
    pub reassembled: u64,
    /// Fragments dropped: out of order, overlapping, too many or too late.
    pub fragments_dropped: u64,
    /// RSTs, ACKs and ICMP errors dropped because the queue was full.
    pub replies_dropped: u64,
    /// Echo requests and served datagrams dropped because the queue was full.
    pub events_dropped: u64,
    /// Times the device took no packet.
    pub transmit_blocked: u64,
}

/// What there is at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// TCP flows with rings.
    pub flows: usize,
    /// SYNs waiting for an answer.
    pub pending_syns: usize,
    /// Flows that ended before they were answered, and whose ids have not been given back.
    pub given_up: usize,
    /// Closed 4-tuples remembered.
    pub time_waits: usize,
    /// UDP associations.
    pub associations: usize,
    /// Events that have not been taken.
    pub events: usize,
    /// Deadlines that are kept, those of what is gone included.
    pub deadlines: usize,
    /// Bytes of the rings of all flows, and of spare ones.
    pub ring_bytes: usize,
}
