//! Datagrams of one port. An association is everything between one peer and whoever it belongs to.
//!
//! A peer whose datagrams nobody takes hears nothing: the ICMP error that the app's host would send cannot be made by a
//! socket.

use std::collections::HashMap;
use std::future::{pending, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tp_protocol::open::OpenRefused;

use super::destination::{Datagrams, Destination};
use super::engagements::{Engaged, NotReached};
use super::limits;
use super::scratch;
use super::table::{Decision, Table};

/// A UDP port.
pub(crate) struct Port {
    pub(crate) socket: Arc<UdpSocket>,
    pub(crate) app: Arc<dyn Destination>,
    pub(crate) table: watch::Receiver<Arc<Table>>,
}

/// One of a port's associations, at the side of its peer.
struct Association {
    number: u64,
    datagrams: mpsc::Sender<Bytes>,
    last: Instant,
    decision: Decision,
}

/// Serves a port until `stop` is cancelled.
pub(crate) async fn serve(mut port: Port, stop: CancellationToken) {
    let mut associations = HashMap::<SocketAddr, Association>::new();
    let mut tasks = JoinSet::new();
    let mut numbers = 0..;
    loop {
        tokio::select! {
            // What is decided comes before whom it applies to.
            biased;
            () = stop.cancelled() => return,
            Some(ended) = tasks.join_next() => if let Ok((peer, number)) = ended {
                associations.retain(|of, association| *of != peer || association.number != number);
            },
            // The sender lives as long as the engine.
            Ok(()) = port.table.changed() => {
                let decision = port.table.borrow_and_update().of_connection();
                // The next datagram begins another one.
                associations.retain(|_, association| association.decision.is_same(&decision));
            }
            received = receive(&port.socket) => match received {
                Ok((datagram, peer)) => {
                    if !associations.contains_key(&peer) {
                        make_room(&mut associations);
                        let number = numbers.next().unwrap_or_default();
                        let (datagrams_tx, datagrams) = mpsc::channel(limits::DATAGRAMS);
                        let decision = port.table.borrow().of_connection();
                        tasks.spawn(run(port.end(peer, decision.clone()), datagrams, number));
                        let last = Instant::now();
                        associations.insert(peer, Association { number, datagrams: datagrams_tx, last, decision });
                    }
                    if let Some(association) = associations.get_mut(&peer) {
                        association.last = Instant::now();
                        // Full: the datagram is lost, as in a socket's own queue.
                        let _ = association.datagrams.try_send(datagram);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot receive datagrams");
                    sleep(limits::ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

/// Ends the association that is idle for longest when there are as many as there can be.
fn make_room(associations: &mut HashMap<SocketAddr, Association>) {
    if associations.len() >= limits::ASSOCIATIONS {
        let oldest = associations.iter().min_by_key(|(_, association)| association.last).map(|(peer, _)| *peer);
        oldest.and_then(|peer| associations.remove(&peer));
    }
}

/// What an association works with.
struct Ends {
    peer: SocketAddr,
    socket: Arc<UdpSocket>,
    app: Arc<dyn Destination>,
    decision: Decision,
}

impl Port {
    fn end(&self, peer: SocketAddr, decision: Decision) -> Ends {
        Ends { peer, socket: Arc::clone(&self.socket), app: Arc::clone(&self.app), decision }
    }
}

/// Runs an association until its peer's end is dropped, nothing moves for a while, or the server refuses.
async fn run(ends: Ends, datagrams: mpsc::Receiver<Bytes>, number: u64) -> (SocketAddr, u64) {
    let peer = ends.peer;
    if let Err(error) = ends.relay(datagrams).await {
        tracing::debug!(%peer, %error, "an association ends");
    }
    (peer, number)
}

impl Ends {
    async fn relay(self, mut datagrams: mpsc::Receiver<Bytes>) -> io::Result<()> {
        let (server, taker) = self.reach().await.map_err(io::Error::other)?;
        let mut copying = JoinSet::new();
        let copies: Vec<_> = self.decision.taps.iter().map(|tap| Copies::begin(tap, self.peer, &mut copying)).collect();
        let mut deadline = Instant::now() + limits::UDP_IDLE;
        loop {
            let moved = tokio::select! {
                datagram = datagrams.recv() => match datagram {
                    Some(datagram) => {
                        copies.iter().for_each(|copies| copies.offer(&datagram));
                        poll_fn(|cx| server.poll_send(cx, &datagram)).await.map(|_| ())
                    }
                    None => return Ok(()),
                },
                answer = answer(&*server) => match answer {
                    // One datagram that the network does not take is one lost datagram.
                    Ok(answer) => self.socket.send_to(&answer, self.peer).await.map(|_| ()).or(Ok(())),
                    Err(error) => Err(error),
                },
                () = sleep_until(deadline) => return Ok(()),
            };
            if let Err(error) = moved {
                if let Some(taker) = taker.filter(|_| error.kind() != io::ErrorKind::UnexpectedEof) {
                    taker.on_missed();
                }
                return Err(error);
            }
            deadline = Instant::now() + limits::UDP_IDLE;
        }
    }

    /// Opens an association with whoever it belongs to.
    async fn reach(&self) -> Result<(Box<dyn Datagrams>, Option<Arc<Engaged>>), OpenRefused> {
        if let Some(taker) = &self.decision.taker {
            match taker.associate(self.peer).await {
                Ok(server) => {
                    taker.counters.taken.fetch_add(1, Ordering::Relaxed);
                    return Ok((server, Some(Arc::clone(taker))));
                }
                Err(NotReached::Refused(why)) => return Err(why),
                // When it has ended, so has this association.
                Err(NotReached::ServeFromApp | NotReached::Ended) => {}
            }
        }
        Ok((self.app.associate(self.peer).await?, None))
    }
}

/// The copies of an association for one wiretap.
struct Copies {
    datagrams: mpsc::Sender<Bytes>,
    engaged: Arc<Engaged>,
}

impl Copies {
    /// Begins them: they are sent by a task of their own.
    fn begin(engaged: &Arc<Engaged>, peer: SocketAddr, copying: &mut JoinSet<()>) -> Self {
        engaged.counters.copied.fetch_add(1, Ordering::Relaxed);
        let (datagrams_tx, datagrams) = mpsc::channel(limits::DATAGRAMS);
        copying.spawn(send_copies(Arc::clone(engaged), peer, datagrams));
        Self { datagrams: datagrams_tx, engaged: Arc::clone(engaged) }
    }

    /// Offers a datagram: it is lost when others wait already.
    fn offer(&self, datagram: &Bytes) {
        if self.datagrams.try_send(datagram.clone()).is_err() {
            self.engaged.counters.copies_lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Sends copies to their listener, and throws away what it answers.
async fn send_copies(engaged: Arc<Engaged>, peer: SocketAddr, mut datagrams: mpsc::Receiver<Bytes>) {
    let Ok(listener) = engaged.associate_listener(peer).await else {
        return;
    };
    let discard = async {
        while answer(&*listener).await.is_ok() {}
        // It is found out by the next copy.
        pending::<()>().await;
    };
    let send = async {
        while let Some(datagram) = datagrams.recv().await {
            if poll_fn(|cx| listener.poll_send(cx, &datagram)).await.is_err() {
                engaged.counters.copies_lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    tokio::select! {
        () = discard => {}
        () = send => {}
    }
}

/// Receives a datagram without keeping a buffer while it waits.
async fn receive(socket: &UdpSocket) -> io::Result<(Bytes, SocketAddr)> {
    poll_fn(|cx| {
        scratch::with_room(|room| {
            let mut buffer = ReadBuf::new(room);
            let polled = socket.poll_recv_from(cx, &mut buffer);
            polled.map_ok(|peer| (Bytes::copy_from_slice(buffer.filled()), peer))
        })
    })
    .await
}

/// As [`receive`], from a server.
async fn answer(server: &dyn Datagrams) -> io::Result<Bytes> {
    poll_fn(|cx| {
        scratch::with_room(|room| {
            let mut buffer = ReadBuf::new(room);
            let polled = server.poll_recv(cx, &mut buffer);
            polled.map_ok(|()| Bytes::copy_from_slice(buffer.filled()))
        })
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_association_that_is_idle_for_longest_makes_room() {
        let start = Instant::now();
        let peer = |n: usize| SocketAddr::from(([10, 0, 0, 1], n.try_into().unwrap()));
        let association = |n: usize| {
            // The second one is the oldest.
            let last = start + Duration::from_secs(if n == 1 { 0 } else { 1 });
            let (datagrams, _) = mpsc::channel(1);
            (peer(n), Association { number: 0, datagrams, last, decision: Decision::default() })
        };
        let mut associations: HashMap<_, _> = (0..limits::ASSOCIATIONS).map(association).collect();
        make_room(&mut associations);
        assert_eq!((associations.len(), associations.contains_key(&peer(1))), (limits::ASSOCIATIONS - 1, false));
        make_room(&mut associations);
        assert_eq!(associations.len(), limits::ASSOCIATIONS - 1);
    }
}
