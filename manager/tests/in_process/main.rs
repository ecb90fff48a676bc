//! The manager's doors in one process: lanes over in-memory pipes, real sockets on the loopback behind them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod agents;
mod control;
mod echo;
mod flows;
mod hello;
mod identity;
mod stage;
