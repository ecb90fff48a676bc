//! `tp`: the command line and, inside the daemon container, the daemon.
#![allow(dead_code, reason = "being written")]

mod attach;
mod config;
mod docker;
mod error;
mod kubeconfig;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {}
