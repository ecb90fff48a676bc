//! Asks the resolvers that the container had before: UDP first, TCP when the answer did not fit.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use tp_protocol::limits::MAX_DNS_BYTES;

use super::wire::HEADER_BYTES;

/// How long one resolver may take before the next one is asked.
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);

/// How long all of them together may take: a stub resolver asks again after 5 s (resolv.conf(5), `timeout`).
const ASK_TIMEOUT: Duration = Duration::from_secs(4);

/// Resolvers that are asked for one query; glibc uses as many (resolv.conf(5), `MAXNS`).
const MAX_UPSTREAMS: usize = 3;

/// Docker's embedded DNS server, on user-defined networks.
const DOCKER_DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));

/// The resolvers that the container had before.
pub(crate) struct Upstreams {
    addresses: Vec<SocketAddr>,
}

impl Upstreams {
    pub(crate) fn new(nameservers: Vec<IpAddr>) -> Self {
        let addresses = nameservers.into_iter().take(MAX_UPSTREAMS).map(|ip| SocketAddr::new(ip, 53)).collect();
        Self { addresses }
    }

    /// Docker's own, when the container is on a user-defined network.
    pub(crate) fn docker(&self) -> Option<SocketAddr> {
        self.addresses.iter().copied().find(|address| address.ip() == DOCKER_DNS)
    }

    /// Asks one after the other; `None` when nobody answers.
    pub(crate) async fn ask(&self, query: Bytes) -> Option<Bytes> {
        let asked = async {
            for &address in &self.addresses {
                match ask(address, &query).await {
                    Ok(answer) => return Some(answer),
                    Err(error) => tracing::debug!(%address, %error, "resolver gave no answer"),
                }
            }
            None
        };
        timeout(ASK_TIMEOUT, asked).await.ok().flatten()
    }
}

/// Asks one resolver.
pub(crate) async fn ask(address: SocketAddr, query: &[u8]) -> io::Result<Bytes> {
    let answer = timeout(UPSTREAM_TIMEOUT, ask_udp(address, query)).await??;
    // TC is bit 1 of the third byte (RFC 1035 section 4.1.1).
    if answer[2] & 0x02 == 0 {
        return Ok(answer);
    }
    // A resolver without TCP leaves us what fitted.
    Ok(timeout(UPSTREAM_TIMEOUT, ask_tcp(address, query)).await.ok().and_then(Result::ok).unwrap_or(answer))
}

async fn ask_udp(address: SocketAddr, query: &[u8]) -> io::Result<Bytes> {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A new socket has a random port, and being connected it takes answers from the resolver only (RFC 5452).
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(address).await?;
    socket.send(query).await?;
    let mut inbox = vec![0; MAX_DNS_BYTES];
    loop {
        let len = socket.recv(&mut inbox).await?;
        if is_answer_to(query, &inbox[..len]) {
            return Ok(Bytes::copy_from_slice(&inbox[..len]));
        }
    }
}

/// Whether `answer` has a header, and the query's id.
fn is_answer_to(query: &[u8], answer: &[u8]) -> bool {
    answer.len() >= HEADER_BYTES && answer[..2] == query[..2]
}

async fn ask_tcp(address: SocketAddr, query: &[u8]) -> io::Result<Bytes> {
    let mut socket = TcpStream::connect(address).await?;
    let len = u16::try_from(query.len()).map_err(io::Error::other)?;
    socket.write_all(&[&len.to_be_bytes(), query].concat()).await?;
    let mut answer = vec![0; usize::from(socket.read_u16().await?)];
    socket.read_exact(&mut answer).await?;
    if is_answer_to(query, &answer) { Ok(answer.into()) } else { Err(io::ErrorKind::InvalidData.into()) }
}
