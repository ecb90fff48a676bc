//! What all listeners share: how to live with failing accepts, and the clients' door.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::lane::{self, Services};
use crate::log_end;

/// Wait after an accept that failed for want of something (file descriptors, memory), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Client lanes at once, before and after their hello: [`crate::config::Limits`] bounds those behind it.
const LANES_MAX: usize = 16_384;

/// Returns what was accepted. A failed accept is logged, and the listener goes on after a pause.
pub(crate) async fn accept_errors(accepted: io::Result<(TcpStream, SocketAddr)>) -> Option<(TcpStream, SocketAddr)> {
    match accepted {
        Ok((socket, peer)) => {
            // Both ends of a lane decide themselves when to send.
            if let Err(error) = socket.set_nodelay(true) {
                tracing::debug!(%peer, %error, "cannot set TCP_NODELAY");
            }
            Some((socket, peer))
        }
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

/// Accepts clients until the manager stops, then waits for their lanes to end.
pub(crate) async fn clients(services: Arc<Services>, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(LANES_MAX));
    let mut lanes = JoinSet::new();
    loop {
        let place = room.clone().acquire_owned();
        tokio::select! {
            accepted = async { (place.await, listener.accept().await) } => {
                let (Ok(place), accepted) = accepted else { return };
                let Some((socket, peer)) = accept_errors(accepted).await else { continue };
                let services = services.clone();
                lanes.spawn(async move {
                    if let Err(error) = lane::serve(services, socket).await {
                        tracing::debug!(%peer, %error, "lane not opened");
                    }
                    drop(place);
                });
            }
            Some(ended) = lanes.join_next() => log_end("lane", ended),
            () = services.stopping.cancelled() => break,
        }
    }
    drop(listener);
    while let Some(ended) = lanes.join_next().await {
        log_end("lane", ended);
    }
}
