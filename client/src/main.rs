//! `tp`: the command line and, inside the daemon container, the daemon.

mod attach;
mod cli;
mod config;
#[cfg(target_os = "linux")]
mod daemon;
mod docker;
mod error;
mod kubeconfig;
mod progress;
mod reap;
mod routes;

use std::process::ExitCode;

use tp_memcpy as _; // in place of libc's

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run(std::env::args_os().collect())
}
