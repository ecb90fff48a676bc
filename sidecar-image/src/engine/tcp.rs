//! Connections of one port: what they speak, and those that are no HTTP.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::AppProtocol;
use super::destination::Destination;
use super::detect::{self, Protocol, sniff};
use super::engagements::{Engaged, NotReached};
use super::http;
use super::limits;
use super::relay;
use super::stream::{BoxStream, Guarded};
use super::table::{Decision, Table};
use super::tap::{self, Copies};

/// What the connections of a port share.
pub(crate) struct Port {
    pub(crate) app: Arc<dyn Destination>,
    pub(crate) protocol: AppProtocol,
    pub(crate) table: watch::Receiver<Arc<Table>>,
    pub(crate) connections: Arc<Semaphore>,
}

/// Who spoke first on a connection.
enum First {
    /// The caller did, in this protocol.
    Caller(Protocol),
    /// Whoever a connection belongs to that is no HTTP did, or has ended it.
    Server(Guarded, Decision),
}

/// Takes connections until `stop` is cancelled, and then serves those that are there to their ends.
pub(crate) async fn serve(listener: TcpListener, port: Arc<Port>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = accept(&listener, &port.connections) => match accepted {
                Ok((permit, stream, peer)) => {
                    let (port, stop) = (Arc::clone(&port), stop.clone());
                    connections.spawn(async move {
                        if let Err(error) = port.serve(stream, peer, stop).await {
                            tracing::debug!(%peer, %error, "a connection was cut off");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections");
                    sleep(limits::ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Accepts a connection when there is room for one.
async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> io::Result<(OwnedSemaphorePermit, BoxStream, SocketAddr)> {
    let permit = Arc::clone(connections).acquire_owned().await.map_err(io::Error::other)?;
    let (socket, peer) = listener.accept().await?;
    // Who sends has decided to. Fails only when the caller is gone already.
    let _ = socket.set_nodelay(true);
    Ok((permit, Box::new(socket), peer))
}

impl Port {
    /// Serves one connection, TLS removed if there was any.
    ///
    /// # Errors
    /// When it has been cut off.
    async fn serve(self: Arc<Self>, stream: BoxStream, peer: SocketAddr, stop: CancellationToken) -> io::Result<()> {
        let mut caller = Guarded::new(stream);
        let look = match self.protocol {
            AppProtocol::Unknown => self.table.borrow().has_filters(),
            AppProtocol::Http => true,
            AppProtocol::Opaque => false,
        };
        let first =
            async { if look { self.first(&mut caller, peer).await } else { Ok(First::Caller(Protocol::Opaque)) } };
        let first = tokio::select! {
            first = first => first?,
            // Nothing has been asked yet.
            () = stop.cancelled() => return caller.shutdown().await,
        };
        match first {
            First::Caller(Protocol::Opaque) => {
                let mut decision = self.table.borrow().of_connection();
                let server = self.reach(&mut decision, peer).await?;
                self.relay(caller, server, decision, peer).await
            }
            First::Server(server, decision) => self.relay(caller, server, decision, peer).await,
            First::Caller(protocol) => http::serve(self, caller, protocol, peer, stop).await,
        }
    }

    /// Finds out who speaks first. A caller that is silent may wait for the server to speak, and there is one way to know.
    async fn first(&self, caller: &mut Guarded, peer: SocketAddr) -> io::Result<First> {
        let mut spoken = pin!(listen(caller));
        if let Ok(protocol) = timeout(limits::SILENCE, &mut spoken).await {
            return Ok(First::Caller(protocol?));
        }
        let mut decision = self.table.borrow().of_connection();
        let reached = tokio::select! {
            protocol = &mut spoken => return Ok(First::Caller(protocol?)),
            reached = self.reach(&mut decision, peer) => reached,
        };
        let Ok(mut server) = reached else {
            // Who has a filter may still want to answer.
            return Ok(First::Caller(spoken.await?));
        };
        loop {
            tokio::select! {
                protocol = &mut spoken => {
                    // The server has seen a connection on which nothing was asked.
                    server.shutdown().await?;
                    return Ok(First::Caller(protocol?));
                }
                read = server.read_ahead() => match detect::is_http2_server(server.ahead()) {
                    Some(true) => return Ok(First::Caller(spoken.await?)),
                    None if read? > 0 => {}
                    Some(false) | None => return Ok(First::Server(server, decision)),
                },
            }
        }
    }

    /// Relays a connection that is no HTTP.
    async fn relay(
        &self,
        mut caller: Guarded,
        mut server: Guarded,
        decision: Decision,
        peer: SocketAddr,
    ) -> io::Result<()> {
        let mut copies = Copies::default();
        let mut listeners = JoinSet::new();
        for copy in decision.taps.iter().filter_map(|engaged| copies.begin(engaged)) {
            listeners.spawn(tap::send_connection(copy, peer));
        }
        let joined = relay::join(&mut caller, &mut server, &mut copies);
        tokio::select! {
            result = joined => result?,
            () = ended(decision.taker.as_deref()) => return Err(io::ErrorKind::ConnectionReset.into()),
        }
        drop((caller, server));
        while listeners.join_next().await.is_some() {}
        Ok(())
    }

    /// Opens a stream to whoever a connection belongs to.
    async fn reach(&self, decision: &mut Decision, peer: SocketAddr) -> io::Result<Guarded> {
        for _ in 0..limits::DECISIONS {
            let Some(taker) = decision.taker.clone() else {
                break;
            };
            match taker.connect(peer).await {
                Ok(stream) => {
                    taker.counters.taken.fetch_add(1, Ordering::Relaxed);
                    return Ok(Guarded::new(stream));
                }
                Err(NotReached::Refused(why)) => return Err(io::Error::other(why)),
                Err(NotReached::ServeFromApp) => decision.taker = None,
                Err(NotReached::Ended) => *decision = self.table.borrow().of_connection(),
            }
        }
        decision.taker = None;
        self.app.connect(peer).await.map(Guarded::new).map_err(io::Error::other)
    }
}

/// Waits for an engagement's end; for ever where there is none.
pub(crate) async fn ended(engaged: Option<&Engaged>) {
    match engaged {
        Some(engaged) => engaged.ended.cancelled().await,
        None => std::future::pending().await,
    }
}

/// Reads until the caller's protocol is clear. One that ends or pauses before it is, is for the app to deal with.
async fn listen(caller: &mut Guarded) -> io::Result<Protocol> {
    let mut read = caller.read_ahead().await?;
    let rest = async {
        loop {
            match sniff(caller.ahead()) {
                Some(protocol) => return Ok(protocol),
                None if read == 0 => return Ok(Protocol::Opaque),
                None => read = caller.read_ahead().await?,
            }
        }
    };
    timeout(limits::SNIFF, rest).await.unwrap_or(Ok(Protocol::Opaque))
}
