//! The sample workload of tests, demo and benchmarks, and the client that puts a measured load on it.
//!
//! `tp-sample serve` opens one port per behaviour that a network path can get wrong: HTTP/1.1 and HTTP/2 with prior
//! knowledge ([`http`]), echo over TCP and UDP, a source, a sink, a server that speaks first, one that resets ([`tcp`],
//! [`udp`]). `tp-sample bench` prints its figures as one JSON object ([`mod@bench`]). `tp-sample relay` is a bad network
//! ([`relay`]).

mod bench;
mod http;
mod pattern;
mod relay;
mod serve;
mod tcp;
mod udp;

use std::process::ExitCode;

use clap::Parser;
use tp_memcpy as _; // in place of libc's

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serve every kind of traffic that a test may want to meet, load such a server, or stand in its way
#[derive(Debug, Parser)]
#[command(version)]
enum Command {
    /// Serve until SIGTERM
    Serve(serve::ServeArgs),
    /// Load a server and print the figures as JSON
    Bench(bench::BenchArgs),
    /// Pass connections on to a server, as a bad network would
    Relay(relay::RelayArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Serve(args) => serve::run(args).await.map_err(|e| e.to_string()),
        Command::Bench(args) => bench::run(args).await.map_err(|e| e.to_string()),
        Command::Relay(args) => relay::run(args).await.map_err(|e| e.to_string()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("tp-sample: {message}");
            ExitCode::FAILURE
        }
    }
}
