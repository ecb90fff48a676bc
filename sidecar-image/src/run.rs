//! The process: its parts, and how it stops.
//!
//! | when told to stop | |
//! |---|---|
//! | first | the engine takes no more connections, and those that are there end, or are cut off when they take too long |
//! | meanwhile | the connection to the manager stays, as they may go over it; the pod is not ready |
//! | then | the agent says goodbye |

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::engine::Engine;
use crate::orders::Duties;
use crate::{VERSION, health, manager};

/// Runs until it is told to stop (SIGTERM or SIGINT).
///
/// # Errors
/// When signals cannot be taken, or the port of the probes is not free.
pub async fn run(config: Config) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    raise_file_limit();
    let probes = health::bind(config.health_port)?;
    tracing::info!(version = VERSION, pod = config.pod, namespace = config.namespace, "tp-agent starts");
    let stop = CancellationToken::new();
    let told = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("tp-agent stops when its connections have ended");
        stop.cancel();
        std::future::pending().await
    };
    tokio::select! {
        () = work(&config, probes, &stop) => {}
        () = told => {}
    }
    tracing::info!("tp-agent stops");
    Ok(())
}

/// Runs the parts until `stop` is cancelled and they have come to their ends.
pub(crate) async fn work(config: &Config, probes: TcpListener, stop: &CancellationToken) {
    let (engine_tx, engine) = oneshot::channel();
    let (ready_tx, ready) = watch::channel(false);
    let mut duties = Duties::new(engine_tx, ready_tx);
    let leave = CancellationToken::new();
    let traffic = async {
        serve(engine, stop).await;
        leave.cancel();
        std::future::pending().await
    };
    tokio::select! {
        () = manager::keep(config, &mut duties, &leave) => {}
        () = health::run(probes, || *ready.borrow() && !stop.is_cancelled()) => {}
        () = traffic => {}
    }
}

/// Runs the engine, once there is one, until `stop` is cancelled and it has come to its end.
async fn serve(engine: oneshot::Receiver<Engine>, stop: &CancellationToken) {
    let engine = tokio::select! {
        engine = engine => engine,
        () = stop.cancelled() => return,
    };
    // Fails when the process ends, which drops this as well.
    if let Ok(engine) = engine {
        engine.run(stop.clone()).await;
    }
}

/// Raises the limit on open files as far as it goes: every connection is two sockets, and runtimes start containers with
/// a soft limit of 1024 where the hard one is a thousand times that.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, ?limit, "cannot raise the limit on open files");
    }
}

#[cfg(test)]
mod tests;
