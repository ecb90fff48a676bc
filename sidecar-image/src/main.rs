//! `tp-agent`: reads the environment, starts logging, runs.

use std::process::ExitCode;

use tp_agent::config::{Config, LogFormat};
use tp_agent::run;
use tp_memcpy as _; // in place of libc's
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The agent failed.
const EXIT_FAILURE: u8 = 1;
/// The environment is not valid.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    // Huge pages round each of the allocator's regions up to 2 MiB: 8.5 MiB for an agent that needs 0.8. The first
    // regions are touched before this line, hence the allocator's feature `no_thp` too. A kernel that cannot switch
    // them off costs memory and nothing else.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let config = match Config::from_environment(|name| std::env::var(name).ok()) {
        Ok(config) => config,
        Err(error) => {
            log(Targets::new().with_default(LevelFilter::INFO), LogFormat::Json);
            tracing::error!("{error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    log(config.log_filter.clone(), config.log_format);
    // One thread: the agent shares the pod's resources with the application.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.and_then(|runtime| runtime.block_on(run::run(config)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "tp-agent ends");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

/// Starts logging to stderr.
fn log(filter: Targets, format: LogFormat) {
    let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let layer = match format {
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(false).boxed(),
        LogFormat::Text => layer.boxed(),
    };
    tracing_subscriber::registry().with(layer).with(filter).init();
}
