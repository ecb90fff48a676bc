//! The named limits of the protocol. A peer that exceeds one is in the wrong and is told so.

use std::time::Duration;

/// Largest hello, encoded. The longest field is an agent's service account token (about 1 KiB, at most a few).
pub const MAX_HELLO_BYTES: usize = 64 << 10;

/// Largest control message, encoded. A cluster of 5,000 nodes lists as many pod subnets of about 20 bytes each.
pub const MAX_CONTROL_BYTES: usize = 1 << 20;

/// Largest DNS message (RFC 1035 section 4.2.2: the TCP length prefix is 16 bits).
pub const MAX_DNS_BYTES: usize = 65_535;

/// Largest UDP payload, which is IPv6's: 65,535 less 8 bytes of UDP header (RFC 8200 section 3). IPv4's is 20 bytes less.
pub const MAX_DATAGRAM_BYTES: usize = 65_527;

/// Pings of one session that may be without an answer at once, at both ends; more are as good as lost. With data of the
/// largest size they hold 16 MiB.
pub const MAX_ECHOES: usize = 256;

/// A ping without an answer is given up after this long, as ping(8) does without `-W`. Linux reports a neighbour that does
/// not answer ARP within 3 s.
pub const ECHO_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest text that travels in an error header; longer text is cut.
pub const MAX_ERROR_MESSAGE_BYTES: usize = 512;

/// Flows that one lane may hold open at once (`SETTINGS_MAX_CONCURRENT_STREAMS`, RFC 9113 section 6.5.2).
pub const MAX_STREAMS_PER_LANE: u32 = 32_768;

/// What a flow may move on lane 0, both directions together, before it has to go on on a lane for bulk.
pub const CONTINUE_AFTER_BYTES: u64 = 512 << 10;

/// Lanes for bulk of one session: 1 to half of this for what goes up, the others for what comes down ([`crate::lane`]). Each
/// has its flow control below HTTP/2, so two for a direction are better than one.
pub const BULK_LANES: u32 = 4;

/// Flows that one lane for bulk carries at once; more stay on lane 0.
pub const BULK_FLOWS: usize = 2;

/// Flow-control window of one stream of lane 0, and so what a reader that stands still makes us buffer: 63 MiB for a
/// thousand of them.
pub const STREAM_WINDOW_BYTES: u32 = 64 << 10;

/// Flow-control window of one stream of a lane for bulk, in the lane's direction. More is announced when half of it is used
/// up, so between this and half of it is under way: 0.4 to 0.8 Gbit/s at 80 ms of round-trip time.
pub const BULK_STREAM_WINDOW_BYTES: u32 = 8 << 20;

/// The same against the lane's direction, for what turns round. With the other, 36 MiB when all of them stand still.
pub const COUNTER_STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// Flow-control window of one lane: the largest there is (RFC 9113 section 6.9.1), so that flows whose readers stand still
/// never use up what the others need. Each stream's own window bounds the memory.
pub const LANE_WINDOW_BYTES: u32 = (1 << 31) - 1;

/// Largest HTTP/2 frame: with its header (9 bytes) and that of its segment it is one port-forward message, which the
/// container runtimes read in pieces of 64 KiB.
pub const MAX_FRAME_BYTES: u32 = (64 << 10) - 64;

/// Bytes one stream may queue for sending before its writer waits.
pub const SEND_BUFFER_BYTES: usize = 256 << 10;

/// Largest payload of one segment of a lane ([`crate::resume`]): an HTTP/2 frame with its header, and some room.
pub const MAX_SEGMENT_BYTES: usize = (64 << 10) - 32;

/// What one lane keeps until the peer acknowledges it, and so what can be under way: 0.4 Gbit/s at 80 ms of round-trip
/// time. Less than this is kept where less is under way; on a short way it is what waits in the buffers of the kernels.
pub const REPLAY_BYTES: usize = 4 << 20;

/// Received bytes that are acknowledged even when there is nothing to say.
pub const ACK_AFTER_BYTES: u64 = 256 << 10;
