//! The TCP/IP stack behind the TUN device: it ends the container's TCP flows and UDP associations, so that their
//! payload can be carried to the cluster.
//!
//! A pure core: no sockets, no tokio, no clock. The driver owns the TUN descriptors and calls the five verbs:
//!
//! | verb | when |
//! |---|---|
//! | [`Netstack::handle_packet`] | for every packet read from a TUN |
//! | [`Netstack::poll_event`] | after a batch of packets, until `None` |
//! | [`Netstack::poll_transmit`] | after the flow tasks ran, until `None`: one packet each, written to its TUN |
//! | [`Netstack::poll_timeout`], [`Netstack::handle_timeout`] | to sleep, and when the time has come |
//!
//! Flow tasks share the core on one thread (`Rc<RefCell<Netstack>>`) and use the `poll_*` methods of a flow; a borrow
//! is never held across an await. What they queue makes [`Netstack::poll_ready`] ready, which wakes the driver.
//!
//! # Packets out
//! `poll_transmit` lends one packet at a time, built in one buffer that the core reuses: nothing is queued or allocated
//! for a TCP segment, and no callback runs inside the core. When the TUN takes no packet, the driver says so with
//! [`Netstack::transmit_blocked`] and is lent the same packet again, so back-pressure loses nothing; only replies
//! that nobody retransmits for us (resets, ICMP, datagrams) wait in bounded queues, which drop the newest and count it.
//!
//! # Shape of the driver
//! ```text
//! loop {
//!     for _ in 0..BATCH { match tun.try_read(&mut buf) { Ok(n) => stack.handle_packet(tun_id, &buf[..n], now()), .. } }
//!     while let Some(event) = stack.poll_event() { spawn_local(flow_task(event)); }
//!     yield_now().await; // flow tasks empty the rings first: one ACK instead of an ACK and a window update
//!     for _ in 0..BATCH { match stack.poll_transmit(now()) { Some(out) => write(out.tun, out.bytes), None => break } }
//!     select! { readable, poll_ready, sleep_until(stack.poll_timeout()) => stack.handle_timeout(now()) }
//! }
//! ```

mod association;
mod checksum;
mod config;
mod device;
mod event;
mod flow;
mod flow_key;
mod icmp;
mod ip;
mod netstack;
mod outbox;
mod reassembly;
mod rings;
mod segment;
mod slab;
mod stats;
mod timer;
mod udp;
mod virtio;

pub use config::{Limits, NetstackConfig, Offload, RingStep};
pub use event::{DatagramError, EchoRequest, Event, FlowError, Refusal, Transmit, Unreachable};
pub use flow_key::{AssociationId, FlowId, FlowKey, TunId};
pub use netstack::Netstack;
pub use stats::{Stats, Usage};
pub use virtio::VIRTIO_HEADER_BYTES;
