//! The process: its parts, and how it stops.
//!
//! | when told to stop | |
//! |---|---|
//! | first | the pod is not ready, and the engine goes on for as long as nodes may still send connections to it |
//! | then | the engine takes no more connections, and those that are there end, or are cut off when they take too long |
//! | meanwhile | the connection to the manager stays, as they may go over it |
//! | then | the agent says goodbye |

use std::io;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::engine::Engine;
use crate::orders::Duties;
use crate::{VERSION, health, manager};

/// How long connections are taken after the agent was told to stop: kube-proxy learns from the API server that the pod is
/// going at the same time as the kubelet that tells it, and follows within a second or two.
const STILL_SENT: Duration = Duration::from_secs(5);

/// Runs until it is told to stop (SIGTERM or SIGINT).
///
/// # Errors
/// When signals cannot be taken, or a port is not free.
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
        worked = work(&config, probes, &stop, STILL_SENT) => worked?,
        () = told => {}
    }
    tracing::info!("tp-agent stops");
    Ok(())
}

/// Runs the parts until `stop` is cancelled and they have come to their ends. Connections are taken for `still_sent` more.
///
/// # Errors
/// The operating system's, when a port of the pod's own app cannot be taken.
pub(crate) async fn work(
    config: &Config,
    probes: TcpListener,
    stop: &CancellationToken,
    still_sent: Duration,
) -> io::Result<()> {
    let (engine_tx, engine) = oneshot::channel();
    let (ready_tx, ready) = watch::channel(false);
    let mut duties = Duties::new(&config.container, engine_tx, ready_tx);
    duties.take_own(&config.own_ports)?;
    let leave = CancellationToken::new();
    let traffic = async {
        serve(engine, stop, still_sent).await;
        leave.cancel();
        std::future::pending().await
    };
    tokio::select! {
        () = manager::keep(config, &mut duties, &leave) => {}
        () = health::run(probes, || *ready.borrow() && !stop.is_cancelled()) => {}
        () = traffic => {}
    }
    Ok(())
}

/// Runs the engine, once there is one, until `still_sent` after `stop` is cancelled, and until it has come to its end.
async fn serve(engine: oneshot::Receiver<Engine>, stop: &CancellationToken, still_sent: Duration) {
    let engine = tokio::select! {
        engine = engine => engine,
        () = stop.cancelled() => return,
    };
    // Fails when the process ends, which drops this as well.
    if let Ok(engine) = engine {
        let close = CancellationToken::new();
        let closing = async {
            stop.cancelled().await;
            sleep(still_sent).await;
            close.cancel();
        };
        tokio::join!(engine.run(close.clone()), closing);
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
