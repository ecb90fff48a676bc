//! `tp-manager`: reads the configuration, starts logging, runs.

use std::process::ExitCode;

use tp_manager::config::{self, Log};
use tp_manager::{log, run};
use tp_memcpy as _; // in place of libc's

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The manager failed.
const EXIT_FAILURE: u8 = 1;
/// The configuration is not valid.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    // Huge pages round each of the allocator's regions up to 2 MiB, with little to gain for buffers of 64 KiB. The first
    // regions are touched before this line, hence the allocator's feature `no_thp` too. A kernel that cannot switch
    // them off costs memory and nothing else.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let (config, pod) = match config::load(|name| std::env::var(name).ok()) {
        Ok(loaded) => loaded,
        Err(error) => {
            log::start(&Log::default());
            tracing::error!("{error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    log::start(&config.log);
    // One thread: a request that passes through wakes no other, and the API server carries less than one can copy.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run::run(config, pod)).map_err(|error| error.to_string()),
        Err(error) => Err(format!("cannot start: {error}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}
