//! The async shell around `tp-protocol` that client, manager and agent share.
//!
//! A lane is a byte stream: [`client::connect`] at the client's or agent's end, [`server::accept`] at the manager's. After
//! the hellos it is one HTTP/2 connection whose streams are flows ([`flow`]), DNS queries and the control channel
//! ([`control`]). It survives the byte stream: [`carrier`] moves it to the next one. [`relay`] joins a flow to a socket,
//! which [`dial`] connects, and [`read_ahead`] bounds what it reads. Where one end waits for streams that it cannot open, the other has some open
//! ([`standby`]).

pub mod carrier;
pub mod client;
pub mod control;
pub mod dial;
pub mod error;
pub mod flow;
mod handshake;
pub mod read_ahead;
pub mod relay;
pub mod server;
pub mod standby;
