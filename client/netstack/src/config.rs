//! Limits and sizes. Every one has a name here and a default.

use std::time::Duration;

/// How a [`crate::Netstack`] behaves.
#[derive(Clone, Debug)]
pub struct NetstackConfig {
    /// What bounds memory and work.
    pub limits: Limits,
    /// Ring size by number of live flows; the last step holds for all above.
    pub ring_steps: Vec<RingStep>,
    /// An association with traffic both ways ends after this silence (RFC 4787 asks for at least 2 minutes).
    pub association_idle: Duration,
    /// An association that never got an answer ends after this silence.
    pub association_unanswered: Duration,
    /// A flow that the driver closed waits so long for the container's FIN, as `net.ipv4.tcp_fin_timeout` does.
    pub fin_wait: Duration,
    /// An accepted flow waits so long for the end of the handshake.
    pub handshake: Duration,
    /// A SYN that waits longer gives its place to a new one when there is none left. A destination in a cluster that
    /// answers at all does so within milliseconds.
    pub syn_patience: Duration,
    /// A closed 4-tuple is remembered so long, to acknowledge a retransmitted FIN.
    pub time_wait: Duration,
    /// Fragments of one datagram must arrive within this time.
    pub reassembly: Duration,
    /// Seeds initial sequence numbers; take it from the system's random source.
    pub seed: u64,
}

/// Counts and bytes that are never exceeded; what does not fit is dropped and counted in [`crate::Stats`].
#[derive(Clone, Debug)]
pub struct Limits {
    /// TCP flows with rings. SYNs above it are dropped, so the container tries again.
    pub flows: usize,
    /// SYNs waiting for an answer; each takes some 200 bytes. As many again may be given up and their ids not given back.
    pub pending_syns: usize,
    /// UDP associations.
    pub associations: usize,
    /// Datagrams waiting in one association for its reader.
    pub association_queue: usize,
    /// Bytes of datagrams waiting in all associations together.
    pub association_bytes: usize,
    /// Datagrams and echo replies waiting for the TUN.
    pub outgoing_datagrams: usize,
    /// Bytes of the same.
    pub outgoing_bytes: usize,
    /// RSTs, ACKs and ICMP errors waiting for the TUN.
    pub replies: usize,
    /// Echo requests, served datagrams and new associations waiting for [`crate::Netstack::poll_event`].
    pub events: usize,
    /// Closed 4-tuples remembered; the oldest is forgotten first.
    pub time_waits: usize,
    /// Datagrams being put together from fragments, up to 64 KiB each.
    pub reassemblies: usize,
    /// Bytes of rings kept for the next flows.
    pub spare_rings: usize,
}

/// From the number of live flows on, how large each ring (one per direction) of a new flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingStep {
    /// The step holds while there are fewer flows than this.
    pub flows_below: usize,
    /// Bytes of a ring; a power of two of at least 4 KiB.
    pub ring_bytes: usize,
}

/// What the TUN device was opened with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// `IFF_VNET_HDR` with a header of 10 bytes, checksum and TCP segmentation offload both ways.
    VirtioNet,
    /// Bare IP packets: checksums are computed and verified here.
    Disabled {
        /// No packet is longer than this.
        mtu: u16,
    },
}

impl Default for NetstackConfig {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            // Worst case, all rings of both directions full: 8 flows take 4 MiB, the next 24 another 6, the next 96 another
            // 12, and up to 1,000 flows 27 MiB more: within a daemon's budget of 128 MiB. One hop over a TUN needs no large
            // rings; 256 KiB is where throughput stops to grow.
            ring_steps: vec![
                RingStep { flows_below: 8, ring_bytes: 256 << 10 },
                RingStep { flows_below: 32, ring_bytes: 128 << 10 },
                RingStep { flows_below: 128, ring_bytes: 64 << 10 },
                RingStep { flows_below: usize::MAX, ring_bytes: 16 << 10 },
            ],
            association_idle: Duration::from_secs(120),
            association_unanswered: Duration::from_secs(30),
            fin_wait: Duration::from_secs(60),
            handshake: Duration::from_secs(60),
            syn_patience: Duration::from_millis(250),
            time_wait: Duration::from_secs(10),
            reassembly: Duration::from_secs(5),
            seed: 0,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows: 16_384,
            // A manager dials 1,024 destinations at once for one session, so none of these waits for another's dial.
            pending_syns: 1_000,
            associations: 8_192,
            association_queue: 256,
            association_bytes: 16 << 20,
            outgoing_datagrams: 2_048,
            outgoing_bytes: 8 << 20,
            replies: 1_024,
            events: 1_024,
            time_waits: 16_384,
            reassemblies: 16,
            spare_rings: 8 << 20,
        }
    }
}
