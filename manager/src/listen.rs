//! What all listeners share: how to live with failing accepts and with strangers, and the clients' door.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
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

/// Counts the connections of those who have not proven anything yet.
pub(crate) struct Gate {
    room: Arc<Semaphore>,
    max_per_address: usize,
    /// Guards a count per address; held for one map operation at a time.
    by_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// A stranger for whom there is room, or why none could be accepted.
pub(crate) struct Waiting {
    place: OwnedSemaphorePermit,
    accepted: io::Result<(TcpStream, SocketAddr)>,
}

/// One such connection's place. Dropping it makes room for another.
pub(crate) struct Turn {
    address: IpAddr,
    by_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
    _place: OwnedSemaphorePermit,
}

impl Gate {
    /// Has room for `max` at once, and for `max_per_address` from one address.
    pub(crate) fn new(max: usize, max_per_address: usize) -> Self {
        Self { room: Arc::new(Semaphore::new(max)), max_per_address, by_address: Arc::default() }
    }

    /// Waits for room, and then for whoever comes: for [`Self::admit`]. Cancel-safe.
    pub(crate) async fn accept(&self, listener: &TcpListener) -> Waiting {
        let place = self.room.clone().acquire_owned().await.expect("the semaphore is never closed");
        Waiting { place, accepted: listener.accept().await }
    }

    /// Lets a stranger in, unless its address has as many as it may. A failed accept is logged, and followed by a pause.
    pub(crate) async fn admit(&self, waiting: Waiting) -> Option<(TcpStream, SocketAddr, Turn)> {
        let (socket, peer) = accept_errors(waiting.accepted).await?;
        let Some(turn) = self.enter(waiting.place, peer.ip()) else {
            tracing::debug!(%peer, "too many connections of strangers from this address");
            return None;
        };
        Some((socket, peer, turn))
    }

    fn enter(&self, place: OwnedSemaphorePermit, address: IpAddr) -> Option<Turn> {
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = by_address.entry(address).or_default();
        if *count >= self.max_per_address {
            return None;
        }
        *count += 1;
        Some(Turn { address, by_address: self.by_address.clone(), _place: place })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut entry) = by_address.entry(self.address) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
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
