//! Dials TCP and UDP in the cluster for clients, and pings: resolves, asks the policy, connects.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tp_protocol::error_class::ErrorClass;
use tp_protocol::limits::ECHO_TIMEOUT;
use tp_protocol::open::{Host, Open, OpenRefused};
use tp_tunnel::dial::{Dialled, connect};

use crate::dns::{Forwarder, lookup};
use crate::echo;
use crate::policy::{Denied, Policy, canonical};

/// Dials for clients.
#[derive(Debug)]
pub struct Dialer {
    policy: watch::Receiver<Arc<Policy>>,
    dns: Arc<Forwarder>,
    domain: String,
    timeout: Duration,
}

impl From<Denied> for OpenRefused {
    fn from(denied: Denied) -> Self {
        Self::new(ErrorClass::Denied, denied.to_string())
    }
}

impl Dialer {
    /// Dials what `policy` allows, in at most `timeout`. Names are resolved by `dns`, with `domain` as the cluster's.
    #[must_use]
    pub fn new(policy: watch::Receiver<Arc<Policy>>, dns: Arc<Forwarder>, domain: String, timeout: Duration) -> Self {
        Self { policy, dns, domain, timeout }
    }

    /// Returns when `open` is to be given up.
    #[must_use]
    pub fn deadline(&self, open: &Open) -> Instant {
        Instant::now() + open.deadline.map_or(self.timeout, |asked| asked.min(self.timeout))
    }

    /// Connects to the destination of `open`.
    ///
    /// # Errors
    /// [`OpenRefused`] in the terms of the sockets API, for the socket that asked.
    pub async fn dial(&self, open: &Open, deadline: Instant) -> Result<Dialled, OpenRefused> {
        self.dial_by(open, deadline, |dst, _| connect(open.transport, dst)).await
    }

    /// As [`Self::dial`], where `connect` connects to one address, and is dropped at the time that it is given.
    ///
    /// # Errors
    /// [`OpenRefused`] in the terms of the sockets API, for the socket that asked.
    pub(crate) async fn dial_by<T, F: Future<Output = Result<T, OpenRefused>>>(
        &self,
        open: &Open,
        deadline: Instant,
        connect: impl Fn(SocketAddr, Instant) -> F,
    ) -> Result<T, OpenRefused> {
        let addresses = match &open.host {
            Host::Ip(ip) => vec![SocketAddr::new(*ip, open.port)],
            Host::Name(name) => {
                let namespace = open.namespace.as_deref();
                let ips = timeout_at(deadline, lookup::addresses(&self.dns, name, namespace, &self.domain))
                    .await
                    .map_err(|_| timed_out(open))??;
                ips.into_iter().map(|ip| SocketAddr::new(ip, open.port)).collect()
            }
        };
        let policy = self.policy.borrow().clone();
        let allowed = policy.check_all(&addresses)?;
        let mut refused = timed_out(open);
        for (index, &dst) in allowed.iter().enumerate() {
            // Every address gets a fair share of the time that is left.
            let shares = u32::try_from(allowed.len() - index).expect("a DNS message has few addresses");
            let share = Instant::now() + deadline.saturating_duration_since(Instant::now()) / shares;
            // The address that the policy judged is the one that is dialled.
            let dst = SocketAddr::new(canonical(dst.ip()), dst.port());
            match timeout_at(share, connect(dst, share)).await {
                Ok(Ok(dialled)) => return Ok(dialled),
                Ok(Err(why)) => refused = why,
                Err(_) => refused = timed_out(open),
            }
        }
        Err(refused)
    }

    /// Pings `dst` with `data`, and returns the data of the reply.
    ///
    /// # Errors
    /// [`OpenRefused`] when the policy forbids it, somebody on the way says that `dst` cannot be reached, or nobody
    /// says anything in time.
    pub async fn echo(&self, dst: IpAddr, data: &[u8]) -> Result<Bytes, OpenRefused> {
        let policy = self.policy.borrow().clone();
        policy.check_ping(dst)?;
        let pinged = timeout(ECHO_TIMEOUT, echo::ping(canonical(dst), data)).await;
        pinged.map_err(|_| OpenRefused::new(ErrorClass::TimedOut, format!("{dst} did not answer the ping")))?
    }
}

fn timed_out(open: &Open) -> OpenRefused {
    OpenRefused::new(ErrorClass::TimedOut, format!("{open} did not answer in time"))
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;
    use tokio::net::{TcpListener, UdpSocket};
    use tokio::sync::watch;
    use tp_protocol::open::Transport;

    use super::*;
    use crate::policy::Loopback;

    fn dialer(loopback: Loopback) -> Dialer {
        let (_, policy) = watch::channel(Arc::new(Policy { loopback, ..Policy::default() }));
        let dns = Arc::new(Forwarder::new(Vec::new(), Duration::from_secs(1), 1));
        Dialer::new(policy, dns, "cluster.local".to_owned(), Duration::from_secs(5))
    }

    async fn dial(dialer: &Dialer, open: Open) -> Result<Dialled, OpenRefused> {
        dialer.dial(&open, dialer.deadline(&open)).await
    }

    #[tokio::test]
    async fn an_open_port_is_connected_with_keepalive() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = Open::new(Transport::Tcp, listener.local_addr().unwrap());
        let dialled = dial(&dialer(Loopback::Dial), open).await.unwrap();
        let Dialled::Tcp(socket) = dialled else { panic!("not a TCP socket") };
        assert!(SockRef::from(&socket).keepalive().unwrap());
        assert_eq!(listener.accept().await.unwrap().1, socket.local_addr().unwrap());
    }

    #[tokio::test]
    async fn a_closed_port_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = listener.local_addr().unwrap();
        drop(listener);
        let refused = dial(&dialer(Loopback::Dial), Open::new(Transport::Tcp, closed)).await.unwrap_err();
        assert_eq!(refused.class, ErrorClass::Refused);
        assert!(refused.message.starts_with(&closed.to_string()), "{refused}");
    }

    #[tokio::test]
    async fn the_policy_is_asked_before_the_network() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dst = listener.local_addr().unwrap();
        for transport in [Transport::Tcp, Transport::Udp] {
            let refused = dial(&dialer(Loopback::Refuse), Open::new(transport, dst)).await.unwrap_err();
            assert_eq!(refused.class, ErrorClass::Denied);
        }
    }

    #[tokio::test]
    async fn udp_reaches_a_peer_both_ways() {
        let peer = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let open = Open::new(Transport::Udp, peer.local_addr().unwrap());
        let Dialled::Udp(socket) = dial(&dialer(Loopback::Dial), open).await.unwrap() else { panic!("not UDP") };
        socket.send(b"ping").await.unwrap();
        let mut buffer = [0; 16];
        let (len, from) = peer.recv_from(&mut buffer).await.unwrap();
        assert_eq!((&buffer[..len], from), (&b"ping"[..], socket.local_addr().unwrap()));
    }

    #[tokio::test]
    async fn a_clients_deadline_counts_up_to_the_managers() {
        let dialer = dialer(Loopback::Refuse);
        let left = |asked: Option<Duration>| {
            let open = Open { deadline: asked, ..Open::new(Transport::Tcp, ([10, 0, 0, 1], 80).into()) };
            dialer.deadline(&open).saturating_duration_since(Instant::now())
        };
        assert!(left(None) > Duration::from_secs(4));
        assert!(left(Some(Duration::from_millis(100))) <= Duration::from_millis(100));
        assert!(left(Some(Duration::from_secs(3_600))) <= Duration::from_secs(5));
    }
}
