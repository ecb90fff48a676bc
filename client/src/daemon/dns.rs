//! The resolver of the daemon's network namespace: decides who answers a query, and asks.
//!
//! Names of the cluster go through the tunnel to the cluster's own DNS, so that they have a pod's semantics; everything
//! else goes where the container's queries went before. DNS messages pass through as they are, whatever their type, and
//! those of the cluster are remembered for as long as they say. When the tunnel is down a cluster name that is not
//! remembered is answered with SERVFAIL, never with silence.

mod cache;
mod route;
mod upstream;

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hickory_proto::op::{Edns, Message, MessageType, ResponseCode};
use hickory_proto::serialize::binary::BinEncodable;
use tokio::time::timeout;

use self::cache::Cache;
use self::route::Route;
pub(crate) use self::route::Zones;
pub(crate) use self::upstream::Upstreams;
use crate::daemon::tunnel::Tunnel;

/// How long a cluster query may take. glibc and musl ask again after 5 s (resolv.conf(5), `timeout`).
const CLUSTER_TIMEOUT: Duration = Duration::from_secs(4);

/// Largest answer over UDP to a query without EDNS (RFC 1035 section 4.2.1).
const PLAIN_UDP_BYTES: usize = 512;

/// Answers DNS queries of the containers.
pub(crate) struct Resolver {
    address: SocketAddr,
    tunnel: Tunnel,
    zones: RefCell<Zones>,
    upstreams: Upstreams,
    cache: RefCell<Cache>,
}

/// A parsed query: what is needed to route it and to answer it ourselves.
struct Query {
    message: Message,
    name: String,
    udp_limit_bytes: usize,
}

impl Resolver {
    /// `address` is where the containers ask; `nameservers` are those of the container before it was ours.
    pub(crate) fn new(address: SocketAddr, tunnel: Tunnel, nameservers: Vec<IpAddr>) -> Self {
        let upstreams = Upstreams::new(nameservers);
        Self { address, tunnel, zones: RefCell::default(), upstreams, cache: RefCell::default() }
    }

    /// Where the containers ask.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets which names belong to the cluster.
    pub(crate) fn set_zones(&self, zones: Zones) {
        if self.zones.replace(zones.clone()) != zones {
            self.cache.borrow_mut().clear();
        }
    }

    /// Answers a query that came as a datagram: cut to what the asker takes, with the TC bit (RFC 2181 section 9).
    /// `None` when there is nothing sensible to answer.
    pub(crate) async fn answer_datagram(&self, query: Bytes) -> Option<Bytes> {
        let parsed = Query::parse(&query)?;
        let answer = self.answer(&parsed, query).await;
        if answer.len() <= parsed.udp_limit_bytes {
            return Some(answer);
        }
        Some(parsed.truncated())
    }

    /// Answers a query that came over TCP.
    pub(crate) async fn answer_stream(&self, query: Bytes) -> Option<Bytes> {
        let parsed = Query::parse(&query)?;
        Some(self.answer(&parsed, query).await)
    }

    async fn answer(&self, query: &Query, raw: Bytes) -> Bytes {
        let route = self.zones.borrow().route(&query.name);
        let answer = match route {
            Route::Cluster => self.ask_cluster(query, raw).await,
            Route::Neighbours => return self.ask_neighbours(query, raw).await,
            Route::Upstream => self.upstreams.ask(raw).await,
        };
        answer.unwrap_or_else(|| query.refused(ResponseCode::ServFail))
    }

    /// A name of the cluster: its DNS knows, or has told not long ago.
    async fn ask_cluster(&self, query: &Query, raw: Bytes) -> Option<Bytes> {
        let known = self.cache.borrow().get(&raw, Instant::now());
        if known.is_some() {
            return known;
        }
        match timeout(CLUSTER_TIMEOUT, self.tunnel.resolve(raw.clone())).await {
            Ok(Ok(answer)) => {
                self.cache.borrow_mut().put(&raw, &answer, Instant::now());
                Some(answer)
            }
            Ok(Err(error)) => {
                tracing::debug!(name = query.name, %error, "the cluster's DNS gave no answer");
                None
            }
            Err(_) => {
                tracing::debug!(name = query.name, "the cluster's DNS did not answer in time");
                None
            }
        }
    }

    /// A single label outside the cluster: a container on the same Docker network, or nobody. It never leaves the machine,
    /// as with systemd-resolved (`ResolveUnicastSingleLabel=no`).
    async fn ask_neighbours(&self, query: &Query, raw: Bytes) -> Bytes {
        let answer = match self.upstreams.docker() {
            Some(docker) => upstream::ask(docker, &raw).await.ok(),
            None => None,
        };
        // Docker answers NOERROR without records for single labels it does not know.
        answer.filter(|a| has_answers(a)).unwrap_or_else(|| query.refused(ResponseCode::NXDomain))
    }
}

impl Query {
    /// `None` for what is not a query with one question: such datagrams are dropped.
    fn parse(raw: &[u8]) -> Option<Self> {
        let message = Message::from_vec(raw).ok()?;
        let [question] = message.queries.as_slice() else {
            return None;
        };
        if message.metadata.message_type != MessageType::Query {
            return None;
        }
        let name = question.name().to_lowercase().to_ascii();
        let udp_limit_bytes =
            message.edns.as_ref().map_or(PLAIN_UDP_BYTES, |edns| usize::from(edns.max_payload()).max(PLAIN_UDP_BYTES));
        Some(Self { message, name, udp_limit_bytes })
    }

    /// An answer of our own without records.
    fn refused(&self, code: ResponseCode) -> Bytes {
        self.answer_with(|response| response.metadata.response_code = code)
    }

    /// An answer without records and with the TC bit: the asker comes back over TCP.
    fn truncated(&self) -> Bytes {
        self.answer_with(|response| response.metadata.truncation = true)
    }

    fn answer_with(&self, change: impl FnOnce(&mut Message)) -> Bytes {
        let mut response = Message::response(self.message.metadata.id, self.message.metadata.op_code);
        response.metadata.recursion_desired = self.message.metadata.recursion_desired;
        response.metadata.recursion_available = true;
        response.add_queries(self.message.queries.iter().cloned());
        // Our own payload size, and none of the asker's options (RFC 6891 section 6.1.1).
        response.edns = self.message.edns.as_ref().map(|_| Edns::new());
        change(&mut response);
        response.to_bytes().map(Bytes::from).unwrap_or_default()
    }
}

/// Whether a raw answer has records in its answer section (RFC 1035 section 4.1.1: ANCOUNT at offset 6).
fn has_answers(answer: &[u8]) -> bool {
    answer.get(6..8).is_some_and(|count| count != [0, 0])
}
