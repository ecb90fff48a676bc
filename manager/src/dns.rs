//! Forwards raw DNS messages to the cluster's DNS, as any pod would ask it.
//!
//! Each query goes out on a UDP socket of its own, connected to the nameserver, under a random id; a lost datagram is
//! sent again, to the next nameserver where there are several. An answer that was cut short (TC, RFC 1035 section
//! 4.1.1) is asked for again over TCP. The caller gets the answer under its own id, whatever its size: what a stub
//! resolver may be sent is the business of the end that faces it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ring::rand::SecureRandom;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tp_protocol::error_class::ErrorClass;
use tp_protocol::limits::MAX_DNS_BYTES;
use tp_protocol::open::OpenRefused;

pub(crate) mod lookup;

/// Port of DNS over UDP and TCP (RFC 1035 section 4.2).
const DNS_PORT: u16 = 53;

/// Bytes before the question section (RFC 1035 section 4.1.1).
const HEADER_BYTES: usize = 12;

/// Datagrams sent for one query. The last one waits for the rest of the time.
const ATTEMPTS: u32 = 3;

/// Forwards queries.
#[derive(Debug)]
pub struct Forwarder {
    nameservers: Vec<SocketAddr>,
    /// First nameserver to ask: the one that answered last.
    preferred: AtomicUsize,
    timeout: Duration,
    slots: Semaphore,
    random: ring::rand::SystemRandom,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DnsError {
    /// The client's message is not a query.
    #[error("not a DNS query")]
    NotAQuery,
    /// Too many queries are under way.
    #[error("too many DNS queries at once")]
    Exhausted,
    /// The pod has no nameserver.
    #[error("the manager's pod has no nameserver in /etc/resolv.conf")]
    NoNameserver,
    /// No nameserver answered in time.
    #[error("the cluster's DNS did not answer within {0:?}")]
    TimedOut(Duration),
    /// The nameserver could not be asked.
    #[error("cannot ask the cluster's DNS: {0}")]
    Io(#[from] io::Error),
}

impl From<DnsError> for OpenRefused {
    fn from(error: DnsError) -> Self {
        let class = match &error {
            DnsError::TimedOut(_) => ErrorClass::TimedOut,
            DnsError::Exhausted => ErrorClass::Exhausted,
            DnsError::NotAQuery | DnsError::NoNameserver | DnsError::Io(_) => ErrorClass::Failed,
        };
        Self::new(class, error.to_string())
    }
}

impl Forwarder {
    /// Forwards to `nameservers` (port 53 where they come from resolv.conf), at most `queries` at once.
    #[must_use]
    pub fn new(nameservers: Vec<SocketAddr>, timeout: Duration, queries: u32) -> Self {
        Self {
            nameservers,
            preferred: AtomicUsize::new(0),
            timeout,
            slots: Semaphore::new(queries as usize),
            random: ring::rand::SystemRandom::new(),
        }
    }

    /// Gives nameservers of resolv.conf their port.
    #[must_use]
    pub fn with_default_port(nameservers: &[IpAddr]) -> Vec<SocketAddr> {
        nameservers.iter().map(|&ip| SocketAddr::new(ip, DNS_PORT)).collect()
    }

    /// Forwards one query and returns the answer, under the query's id.
    ///
    /// # Errors
    /// [`DnsError`] says why there is none. SERVFAIL and NXDOMAIN are answers.
    pub async fn forward(&self, query: &[u8]) -> Result<Bytes, DnsError> {
        if query.len() < HEADER_BYTES || query[2] & 0x80 != 0 {
            return Err(DnsError::NotAQuery);
        }
        let _slot = self.slots.try_acquire().map_err(|_| DnsError::Exhausted)?;
        let mut question = BytesMut::from(query);
        question[..2].copy_from_slice(&self.random_id()?);
        let deadline = Instant::now() + self.timeout;
        let asked = timeout_at(deadline, self.ask(&question, deadline)).await;
        let mut answer = asked.map_err(|_| DnsError::TimedOut(self.timeout))??;
        answer[..2].copy_from_slice(&query[..2]);
        Ok(answer.freeze())
    }

    /// Asks one nameserver after the other, until one answers. The caller keeps the deadline for the whole.
    async fn ask(&self, question: &[u8], deadline: Instant) -> Result<BytesMut, DnsError> {
        if self.nameservers.is_empty() {
            return Err(DnsError::NoNameserver);
        }
        let first = self.preferred.load(Ordering::Relaxed);
        let mut failure = DnsError::TimedOut(self.timeout);
        for attempt in 0..ATTEMPTS {
            let index = (first + attempt as usize) % self.nameservers.len();
            let nameserver = self.nameservers[index];
            let left = deadline.saturating_duration_since(Instant::now());
            let wait = Instant::now() + left / (ATTEMPTS - attempt);
            match timeout_at(wait, ask_udp(nameserver, question)).await {
                Ok(Ok(answer)) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    // TC, in the third byte.
                    return if answer[2] & 0x02 == 0 { Ok(answer) } else { Ok(ask_tcp(nameserver, question).await?) };
                }
                // A refused datagram (DNS pod restarting) is an error at once: the next attempt waits its turn.
                Ok(Err(error)) => {
                    tracing::debug!(%nameserver, %error, "DNS query failed");
                    failure = error.into();
                    tokio::time::sleep_until(wait).await;
                }
                Err(_) => tracing::debug!(%nameserver, attempt, "DNS query unanswered"),
            }
        }
        Err(failure)
    }

    fn random_id(&self) -> io::Result<[u8; 2]> {
        let mut id = [0; 2];
        self.random.fill(&mut id).map_err(|_| io::Error::other("no randomness"))?;
        Ok(id)
    }
}

/// Sends one datagram and waits for its answer. Datagrams that do not answer it are skipped.
async fn ask_udp(nameserver: SocketAddr, question: &[u8]) -> io::Result<BytesMut> {
    let any = match nameserver {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(nameserver).await?;
    socket.send(question).await?;
    // Only the pages that a datagram fills are ever touched.
    let mut inbox = BytesMut::with_capacity(MAX_DNS_BYTES);
    loop {
        inbox.clear();
        socket.recv_buf(&mut inbox).await?;
        if answers(question, &inbox) {
            return Ok(BytesMut::from(&inbox[..]));
        }
    }
}

/// Asks over TCP, where a message follows its length in two bytes (RFC 1035 section 4.2.2).
async fn ask_tcp(nameserver: SocketAddr, question: &[u8]) -> io::Result<BytesMut> {
    let mut stream = TcpStream::connect(nameserver).await?;
    let len = u16::try_from(question.len()).map_err(io::Error::other)?;
    let mut framed = Vec::with_capacity(question.len() + 2);
    framed.extend_from_slice(&len.to_be_bytes());
    framed.extend_from_slice(question);
    stream.write_all(&framed).await?;
    let len = usize::from(stream.read_u16().await?);
    debug_assert!(len <= MAX_DNS_BYTES);
    let mut answer = BytesMut::zeroed(len);
    stream.read_exact(&mut answer).await?;
    if answers(question, &answer) { Ok(answer) } else { Err(io::Error::other("the answer is to another question")) }
}

/// Whether `answer` is a response (QR) with the id of `question`.
fn answers(question: &[u8], answer: &[u8]) -> bool {
    answer.len() >= HEADER_BYTES && answer[..2] == question[..2] && answer[2] & 0x80 != 0
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::net::TcpListener;

    use super::*;

    /// A query for the root with id 0xABCD.
    const QUERY: &[u8] = &[0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1];

    fn answer_to(query: &[u8], tail: &[u8]) -> Vec<u8> {
        let mut answer = query.to_vec();
        answer[2] |= 0x80;
        answer.extend_from_slice(tail);
        answer
    }

    async fn nameserver() -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    fn forwarder(nameservers: Vec<SocketAddr>) -> Forwarder {
        Forwarder::new(nameservers, Duration::from_secs(4), 2)
    }

    #[tokio::test]
    async fn the_answer_carries_the_querys_id_and_the_wire_another() {
        let (server, address) = nameserver().await;
        let serve = async {
            let mut seen = Vec::new();
            for _ in 0..8 {
                let mut query = [0; 512];
                let (len, peer) = server.recv_from(&mut query).await.unwrap();
                assert_eq!(query[2..len], QUERY[2..]);
                seen.push([query[0], query[1]]);
                server.send_to(&answer_to(&query[..len], b"data"), peer).await.unwrap();
            }
            seen
        };
        let forwarder = forwarder(vec![address]);
        let ask = async {
            for _ in 0..8 {
                assert_eq!(forwarder.forward(QUERY).await.unwrap(), answer_to(QUERY, b"data"));
            }
        };
        let (seen, ()) = tokio::join!(serve, ask);
        assert!(seen.iter().any(|id| *id != seen[0]), "ids are not random: {seen:?}");
    }

    #[tokio::test]
    async fn datagrams_under_another_id_and_queries_are_skipped() {
        let (server, address) = nameserver().await;
        let serve = async {
            let mut query = [0; 512];
            let (len, peer) = server.recv_from(&mut query).await.unwrap();
            let mut forged = answer_to(&query[..len], b"forged");
            forged[0] ^= 0xff;
            server.send_to(&forged, peer).await.unwrap();
            server.send_to(&query[..len], peer).await.unwrap();
            server.send_to(&answer_to(&query[..len], b"true"), peer).await.unwrap();
        };
        let forwarder = forwarder(vec![address]);
        let (answer, ()) = tokio::join!(forwarder.forward(QUERY), serve);
        assert!(answer.unwrap().ends_with(b"true"));
    }

    #[tokio::test]
    async fn an_answer_cut_short_is_asked_for_again_over_tcp() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = UdpSocket::bind(address).await.unwrap();
        let serve = async {
            let mut query = [0; 512];
            let (len, peer) = server.recv_from(&mut query).await.unwrap();
            let mut cut = answer_to(&query[..len], b"");
            cut[2] |= 0x02;
            server.send_to(&cut, peer).await.unwrap();
            let (mut stream, _) = listener.accept().await.unwrap();
            let len = usize::from(stream.read_u16().await.unwrap());
            let mut query = vec![0; len];
            stream.read_exact(&mut query).await.unwrap();
            let answer = answer_to(&query, &[7; 5_000]);
            stream.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        };
        let forwarder = forwarder(vec![address]);
        let (answer, ()) = tokio::join!(forwarder.forward(QUERY), serve);
        let answer = answer.unwrap();
        assert_eq!((answer.len(), &answer[..2]), (QUERY.len() + 5_000, &QUERY[..2]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_nameserver_is_given_up_in_time() {
        let (_server, address) = nameserver().await;
        let started = Instant::now();
        let error = forwarder(vec![address]).forward(QUERY).await.unwrap_err();
        assert!(matches!(error, DnsError::TimedOut(_)), "{error}");
        assert_eq!(started.elapsed().as_secs(), 4);
    }

    #[tokio::test]
    async fn the_next_nameserver_is_asked_and_preferred_when_the_first_is_silent() {
        let (_silent, first) = nameserver().await;
        let (server, second) = nameserver().await;
        let forwarder = Forwarder::new(vec![first, second], Duration::from_millis(300), 2);
        let serve = async {
            for _ in 0..2 {
                let mut query = [0; 512];
                let (len, peer) = server.recv_from(&mut query).await.unwrap();
                server.send_to(&answer_to(&query[..len], b""), peer).await.unwrap();
            }
        };
        let ask = async {
            forwarder.forward(QUERY).await.unwrap();
            assert_eq!(forwarder.preferred.load(Ordering::Relaxed), 1);
            forwarder.forward(QUERY).await.unwrap();
        };
        tokio::join!(serve, ask);
    }

    #[tokio::test(start_paused = true)]
    async fn queries_over_the_limit_are_refused_at_once() {
        let (_server, address) = nameserver().await;
        let forwarder = Arc::new(forwarder(vec![address]));
        let (first, second, third) =
            tokio::join!(forwarder.forward(QUERY), forwarder.forward(QUERY), forwarder.forward(QUERY));
        assert!(matches!(third, Err(DnsError::Exhausted)));
        assert!(matches!((first, second), (Err(DnsError::TimedOut(_)), Err(DnsError::TimedOut(_)))));
    }

    #[tokio::test]
    async fn what_is_not_a_query_goes_nowhere() {
        let forwarder = forwarder(Vec::new());
        for message in [&[][..], &QUERY[..11], &answer_to(QUERY, b"")] {
            assert!(matches!(forwarder.forward(message).await, Err(DnsError::NotAQuery)));
        }
        assert!(matches!(forwarder.forward(QUERY).await, Err(DnsError::NoNameserver)));
    }
}
