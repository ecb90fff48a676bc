//! The traffic engine between real clients and servers, on loopback.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod bed;
mod changes;
mod fallback;
mod http1;
mod http2;
mod limits;
mod server;
mod tcp;
mod udp;
mod upgrade;
mod wiretap;
