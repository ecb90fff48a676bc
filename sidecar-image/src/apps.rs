//! The way to the workload's pods.

use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpStream, UdpSocket};
use tokio::time::Instant;

use crate::engine::destination::{self, Datagrams, Destination, Opening, refused};
use crate::engine::stream::BoxStream;

/// Longest wait for a pod.
const CONNECT: Duration = Duration::from_secs(10);

/// Longest wait for a pod while there are others to ask: far above the way within a cluster.
const CONNECT_BEFORE_OTHERS: Duration = Duration::from_secs(1);

/// A pod that did not accept is asked after the others for this long: by then the manager has taken it from the list when
/// it is gone.
const PASSED_OVER: Duration = Duration::from_secs(5);

/// A port of the workload's pods. Connections take turns, and a pod that does not accept is passed over.
#[derive(Debug, Default)]
pub(crate) struct Apps {
    /// Held for one look or one change at a time.
    turns: Mutex<Turns>,
}

#[derive(Debug, Default)]
struct Turns {
    pods: Vec<Pod>,
    /// Whose turn it is, modulo the number of pods.
    next: usize,
}

#[derive(Debug)]
struct Pod {
    address: SocketAddr,
    /// When it did not accept.
    missed: Option<Instant>,
}

impl Apps {
    /// Replaces the pods. Connections that are there stay with those that they have.
    pub(crate) fn set(&self, addresses: &[SocketAddr]) {
        self.change(|turns| turns.set(addresses));
    }

    async fn dial(&self) -> io::Result<TcpStream> {
        let order = self.change(|turns| turns.take(Instant::now()));
        let mut last = nobody();
        for (index, address) in order.iter().enumerate() {
            let limit = if index + 1 == order.len() { CONNECT } else { CONNECT_BEFORE_OTHERS };
            let dialled = destination::dial(*address, limit).await;
            let missed = dialled.is_err().then(Instant::now);
            self.change(|turns| turns.note(*address, missed));
            match dialled {
                Ok(socket) => return Ok(socket),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// A datagram tells nothing of who listens, so the one whose turn it is it is.
    async fn bind(&self) -> io::Result<UdpSocket> {
        let order = self.change(|turns| turns.take(Instant::now()));
        destination::bind(*order.first().ok_or_else(nobody)?).await
    }

    fn change<T>(&self, change: impl FnOnce(&mut Turns) -> T) -> T {
        change(&mut self.turns.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Turns {
    fn set(&mut self, addresses: &[SocketAddr]) {
        let mut old = std::mem::take(&mut self.pods);
        let kept = |address: &SocketAddr| {
            let missed = old.iter_mut().find(|pod| pod.address == *address).and_then(|pod| pod.missed.take());
            Pod { address: *address, missed }
        };
        self.pods = addresses.iter().map(kept).collect();
    }

    /// Returns whom to ask, in this order, and makes it the next one's turn.
    fn take(&mut self, now: Instant) -> Vec<SocketAddr> {
        let Some(first) = self.next.checked_rem(self.pods.len()) else {
            return Vec::new();
        };
        self.next = first + 1;
        let (before, from) = self.pods.split_at(first);
        let is_passed_over = |pod: &&Pod| pod.missed.is_some_and(|missed| now < missed + PASSED_OVER);
        let (last, order): (Vec<_>, Vec<_>) = from.iter().chain(before).partition(is_passed_over);
        order.into_iter().chain(last).map(|pod| pod.address).collect()
    }

    /// Notes whether a pod has accepted.
    fn note(&mut self, address: SocketAddr, missed: Option<Instant>) {
        // It may have left the list meanwhile.
        if let Some(pod) = self.pods.iter_mut().find(|pod| pod.address == address) {
            pod.missed = missed;
        }
    }
}

fn nobody() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionRefused, "the workload has no pod that is ready")
}

impl Destination for Apps {
    fn connect(&self, _: SocketAddr) -> Opening<'_, BoxStream> {
        Box::pin(async { self.dial().await.map(|socket| Box::new(socket) as BoxStream).map_err(refused) })
    }

    fn associate(&self, _: SocketAddr) -> Opening<'_, Box<dyn Datagrams>> {
        Box::pin(async { self.bind().await.map(|socket| Box::new(socket) as Box<dyn Datagrams>).map_err(refused) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods<const N: usize>(last: [u8; N]) -> [SocketAddr; N] {
        last.map(|last| SocketAddr::from(([10, 0, 0, last], 80)))
    }

    #[test]
    fn pods_take_turns() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        assert_eq!(turns.take(now), []);
        turns.set(&pods([1, 2, 3]));
        assert_eq!(turns.take(now), pods([1, 2, 3]));
        assert_eq!(turns.take(now), pods([2, 3, 1]));
        assert_eq!(turns.take(now), pods([3, 1, 2]));
        assert_eq!(turns.take(now), pods([1, 2, 3]));
        turns.set(&pods([4]));
        assert_eq!(turns.take(now), pods([4]));
        assert_eq!(turns.take(now), pods([4]));
    }

    #[test]
    fn a_pod_that_did_not_accept_is_asked_last_for_a_while() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        turns.set(&pods([1, 2]));
        turns.note(pods([1])[0], Some(now));
        assert_eq!(turns.take(now), pods([2, 1]));
        // The same pods again change nothing about it.
        turns.set(&pods([2, 1, 3]));
        assert_eq!(turns.take(now), pods([3, 2, 1]));
        assert_eq!(turns.take(now + PASSED_OVER), pods([3, 2, 1]));
        turns.note(pods([1])[0], None);
        turns.note(pods([9])[0], Some(now));
        assert_eq!(turns.take(now), pods([2, 1, 3]));
    }

    #[tokio::test]
    async fn a_workload_without_pods_refuses() {
        let apps = Apps::default();
        assert_eq!(apps.dial().await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(apps.bind().await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
