//! The named limits of the engine.

use std::time::Duration;

/// Connections of all ports together. The next one waits in the kernel's backlog.
pub(crate) const CONNECTIONS: usize = 8192;

/// Connections that the kernel holds until they are accepted.
pub(crate) const BACKLOG: u32 = 1024;

/// After `accept` failed for want of descriptors or memory, so that it is not asked again at once.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Longest wait for a connection to the app or to a handler.
pub(crate) const CONNECT: Duration = Duration::from_secs(10);

/// Bytes that one read takes at most. All relays of a thread share one such buffer, and one that waits keeps nothing.
pub(crate) const READ_BYTES: usize = 64 << 10;

/// Bytes of a connection that are looked at to tell its protocol: more than the HTTP/2 preface and than any method.
pub(crate) const SNIFF_BYTES: usize = 64;

/// A caller that has sent part of what tells its protocol has this long for the rest.
pub(crate) const SNIFF: Duration = Duration::from_secs(10);

/// A caller that sends nothing for this long may be one that waits for the app to speak first.
pub(crate) const SILENCE: Duration = Duration::from_millis(500);

/// Bytes of the head of a request or response (HTTP/1), or of its header list (HTTP/2).
pub(crate) const HEAD_BYTES: usize = 64 << 10;

/// Header fields of an HTTP/1 message.
pub(crate) const HEADERS: usize = 256;

/// What HTTP/1 reads ahead of one connection. A head has to fit.
pub(crate) const HTTP1_BUFFER_BYTES: usize = HEAD_BYTES;

/// The head of an HTTP/1 request has to be there this long after its first byte.
pub(crate) const HEAD: Duration = Duration::from_secs(60);

/// A request that expects `100 Continue` is sent on without it after this long (RFC 9110 section 10.1.1).
pub(crate) const CONTINUE: Duration = Duration::from_secs(1);

/// Streams of one HTTP/2 connection at once.
pub(crate) const HTTP2_STREAMS: u32 = 1024;

/// What one HTTP/2 stream may send ahead of its reader.
pub(crate) const HTTP2_STREAM_WINDOW: u32 = 128 << 10;

/// What one HTTP/2 connection may send ahead of its readers: all streams, so that one that is not read holds up no other.
pub(crate) const HTTP2_CONNECTION_WINDOW: u32 = HTTP2_STREAMS * HTTP2_STREAM_WINDOW;

/// What one HTTP/2 stream may queue for sending.
pub(crate) const HTTP2_SEND_BYTES: usize = 64 << 10;

/// Streams that are reset and not forgotten yet; a peer that makes more is misbehaving (CVE-2023-44487).
pub(crate) const HTTP2_RESETS: usize = 256;

/// A connection that has just answered gets this long to be ready for the next request, before another one is made.
pub(crate) const REUSE: Duration = Duration::from_millis(50);

/// Times that one request asks again where it goes, because the engagement that it waited for has ended.
pub(crate) const DECISIONS: usize = 4;

/// Between attempts to reach a handler that is away: first, and at most.
pub(crate) const RETRY_FIRST: Duration = Duration::from_millis(20);
/// See [`RETRY_FIRST`].
pub(crate) const RETRY_MOST: Duration = Duration::from_millis(500);

/// A handler that was away is tried again by a request, once per this interval.
pub(crate) const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// How long that request waits for it, and what any attempt is given: some round trips to a workstation far away.
pub(crate) const PROBE: Duration = Duration::from_millis(500);

/// Longest that `hold` holds a request.
pub(crate) const HOLD: Duration = Duration::from_secs(600);

/// What is copied for one wiretap and not sent yet, over all of its connections. What does not fit is lost.
pub(crate) const TAP_BYTES: usize = 1 << 20;

/// Pieces of one copy that are not sent yet.
pub(crate) const TAP_PIECES: usize = 64;

/// Copies of one wiretap at once: as many requests or connections can be under way that all are copied.
pub(crate) const TAP_COPIES: usize = 1024;

/// A listener has this long to answer after the end of a copy.
pub(crate) const TAP_ANSWER: Duration = Duration::from_secs(10);

/// UDP associations of one port at once; the one that is idle for longest makes room.
pub(crate) const ASSOCIATIONS: usize = 4096;

/// Datagrams of one association that wait for it; newer ones are dropped.
pub(crate) const DATAGRAMS: usize = 16;

/// An association ends when nothing has moved for this long.
pub(crate) const UDP_IDLE: Duration = Duration::from_secs(120);

/// When the engine stops, connections have this long to end.
pub(crate) const DRAIN: Duration = Duration::from_secs(20);
