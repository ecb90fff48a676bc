//! `tp-agent`: a pod's end of tp. It registers with the manager and keeps that connection.
//!
//! | module | what it owns |
//! |---|---|
//! | [`config`] | the environment variables |
//! | [`manager`] | the connection to the manager: TLS, hello, control channel |
//! | [`backoff`] | when to try again (pure) |
//! | [`health`] | the kubelet's probe |
//!
//! Nothing else in the pod depends on the manager being there: without it the agent waits and the pod serves on.

mod backoff;
mod config;
mod health;
mod manager;

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use config::{Config, LogFormat};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Release of this software.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

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
    let result = runtime.and_then(|runtime| runtime.block_on(run(config)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "tp-agent ends");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

/// Runs until it is told to stop (SIGTERM or SIGINT).
async fn run(config: Config) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let probes = health::bind(config.health_port)?;
    tracing::info!(version = VERSION, pod = config.pod, namespace = config.namespace, "tp-agent starts");
    let stop = CancellationToken::new();
    let signals = async {
        tokio::select! {
            _ = terminate.recv() => stop.cancel(),
            _ = interrupt.recv() => stop.cancel(),
        }
        std::future::pending().await
    };
    tokio::select! {
        () = manager::keep(&config, &stop) => {}
        () = health::run(probes) => {}
        () = signals => {}
    }
    tracing::info!("tp-agent stops");
    Ok(())
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
