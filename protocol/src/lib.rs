//! What both ends of a tp tunnel must agree on: messages, framing, error classes, limits.
//!
//! Nothing here reads a clock, the environment or a socket; `tp-tunnel` is the async shell around it.
//! A lane is a byte stream between a client (workstation daemon or traffic agent) and the manager. It begins with a
//! [`hello`] in each direction and continues as one HTTP/2 connection, whose streams carry flows ([`open`],
//! [`datagram`]), DNS messages, pings ([`echo`]) and the control channel ([`control`]). Between the two, [`resume`]
//! carries HTTP/2 over from a byte stream that was lost to the next one. [`engage`] says which of a workload's traffic a
//! client takes part in, and [`identity`] who the client is.

pub mod control;
pub mod datagram;
pub mod echo;
pub mod engage;
pub mod error_class;
pub mod frame;
pub mod hello;
pub mod identity;
pub mod lane;
pub mod limits;
pub mod open;
pub mod resume;
