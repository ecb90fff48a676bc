//! What the stack does on one core, from TUN to TUN: no tunnel, no cluster, no TLS.
//!
//! ```text
//! unshare --map-root-user --net target/release/examples/throughput [SECONDS]
//! ```
//!
//! The kernel's TCP on one side of the device, the stack and a few services on the other, on a core of its own. Prints one JSON
//! object per load: what was moved per second, which share of its core the stack took for it (`core_share`), and which part of
//! that went into the kernel (`kernel_share`): reading and writing the device, where writing includes all that the kernel's TCP does
//! with the packet.

#![expect(clippy::disallowed_methods, reason = "whoever drives the core reads the clock")]

mod cpu_time;
mod kernel;
mod stack;
#[expect(dead_code, reason = "the product's own device, which its processes also hand on")]
#[path = "../../../src/daemon/tun.rs"]
mod tun;

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::thread::available_parallelism;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What all flows of a load do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    Upload,
    Download,
    Requests,
}

/// Each kind with few and with many flows, all of them active.
const LOADS: [(Load, usize); 6] = [
    (Load::Upload, 10),
    (Load::Download, 10),
    (Load::Requests, 10),
    (Load::Upload, 10_000),
    (Load::Download, 10_000),
    (Load::Requests, 10_000),
];

/// The stack's core; the kernel's side has the others.
const CORE: usize = 0;

fn main() -> ExitCode {
    let seconds = std::env::args().nth(1).map_or(Ok(3), |seconds| seconds.parse());
    let ran = seconds.map_err(io::Error::other).and_then(|seconds| run(Duration::from_secs(seconds)));
    if let Err(error) = ran {
        eprintln!("throughput: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn run(length: Duration) -> io::Result<()> {
    check_namespace()?;
    let cores = available_parallelism()?.get();
    if cores < 2 {
        return Err(io::Error::other("one core for the stack and one for the load are needed"));
    }
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files })?;
    for (load, flows) in LOADS {
        let stack = stack::Running::start()?;
        let measured = kernel::measure(load, flows, length, cores, &stack)?;
        stack.stop()?;
        let figure = json!({
            "load": load.key(),
            "flows": flows,
            "per_second": measured.count as f64 / measured.elapsed.as_secs_f64(),
            "core_share": measured.cpu.share_of(measured.elapsed),
            "kernel_share": measured.cpu.kernel_share(),
        });
        writeln!(io::stdout(), "{figure}")?;
    }
    Ok(())
}

/// Refuses to touch the network of the machine.
fn check_namespace() -> io::Result<()> {
    let devices = std::fs::read_to_string("/proc/net/dev")?;
    let mut names = devices.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim());
    if names.all(|name| name == "lo") {
        return Ok(());
    }
    Err(io::Error::other("not in a network namespace of its own: `unshare --map-root-user --net` makes one"))
}

impl Load {
    /// What the output calls it.
    fn key(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Download => "download",
            Self::Requests => "requests",
        }
    }

    /// The port of the service that answers it.
    fn port(self) -> u16 {
        match self {
            Self::Upload => stack::SINK,
            Self::Download => stack::SOURCE,
            Self::Requests => stack::ANSWERS,
        }
    }
}
