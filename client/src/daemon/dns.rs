//! The resolver of the daemon's network namespace: decides who answers a query, and asks.
//!
//! Names of the cluster go through the tunnel to the cluster's own DNS, so that they have a pod's semantics; everything
//! else goes where the container's queries went before. DNS messages pass through as they are, whatever their type, but for
//! addresses that containers see as others ([`crate::daemon::nat`]). Those of the cluster are remembered as they came, for
//! as long as they say, and rewritten on their way out: what is said of an address is always true when it is said. When
//! the tunnel is down a cluster name that is not remembered is answered with SERVFAIL, never with silence.

mod addresses;
mod cache;
#[cfg(test)]
mod corpus;
mod query;
mod route;
mod upstream;
mod wire;

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};
use tokio::time::timeout;

use self::cache::Cache;
use self::query::Query;
pub(crate) use self::route::Zones;
use self::route::{Route, reverse_address};
pub(crate) use self::upstream::Upstreams;
use crate::config::network::DnsTarget;
use crate::config::value::Domain;
use crate::daemon::nat::Nat;
use crate::daemon::tunnel::Tunnel;

/// How long a cluster query may take. glibc and musl ask again after 5 s (resolv.conf(5), `timeout`).
const CLUSTER_TIMEOUT: Duration = Duration::from_secs(4);

/// What names stand for, whoever would answer them; lower-case, without a final dot.
pub(crate) type Mappings = HashMap<String, DnsTarget>;

/// Answers DNS queries of the containers.
pub(crate) struct Resolver {
    address: SocketAddr,
    tunnel: Tunnel,
    nat: Rc<RefCell<Nat>>,
    zones: RefCell<Zones>,
    mappings: RefCell<Mappings>,
    upstreams: Upstreams,
    cache: RefCell<Cache>,
}

impl Resolver {
    /// `address` is where the containers ask; `nameservers` are those of the container before it was ours.
    pub(crate) fn new(address: SocketAddr, tunnel: Tunnel, nat: Rc<RefCell<Nat>>, nameservers: Vec<IpAddr>) -> Self {
        let upstreams = Upstreams::new(nameservers);
        let (zones, mappings, cache) = Default::default();
        Self { address, tunnel, nat, zones, mappings, upstreams, cache }
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

    /// Sets which names stand for what.
    pub(crate) fn set_mappings(&self, mappings: Mappings) {
        self.mappings.replace(mappings);
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
        let target = self.mappings.borrow().get(query.name.trim_end_matches('.')).cloned();
        match target {
            None => self.resolve(query, raw).await,
            Some(DnsTarget::Name(target)) => self.resolve_alias(query, &target).await,
            Some(DnsTarget::Address(ip)) => query.address(self.nat.borrow().seen_in_subnets(ip)),
        }
    }

    /// A name that stands for another one, which is resolved where it belongs. That one is not looked up among the mappings
    /// again.
    async fn resolve_alias(&self, query: &Query, target: &Domain) -> Bytes {
        let Ok(target) = Name::from_ascii(format!("{target}.")) else {
            return query.refused(ResponseCode::ServFail);
        };
        if query.kind() == RecordType::CNAME {
            return query.alias(target, None);
        }
        let Some((asked, raw)) = query.renamed(target.clone()) else {
            return query.refused(ResponseCode::ServFail);
        };
        let answer = self.resolve(&asked, raw).await;
        query.alias(target, Some(&answer))
    }

    async fn resolve(&self, query: &Query, raw: Bytes) -> Bytes {
        let reverse = reverse_address(&query.name).map(|ip| (ip, self.nat.borrow().real(ip)));
        let route = self.zones.borrow().route(&query.name);
        let answer = match (reverse, route) {
            // An address of ours that stands for nothing.
            (Some((_, None)), _) => return query.refused(ResponseCode::NXDomain),
            (Some((seen, Some(real))), _) if seen != real => self.resolve_reverse(query, real).await,
            (_, Route::Cluster) => self.ask_cluster(query, raw).await,
            (_, Route::Neighbours) => return self.ask_neighbours(query, raw).await,
            (_, Route::Upstream) => self.upstreams.ask(raw).await,
        };
        answer.unwrap_or_else(|| query.refused(ResponseCode::ServFail))
    }

    /// The reverse name of a virtual address: what the cluster says of the real one, under the name that was asked for.
    async fn resolve_reverse(&self, query: &Query, real: IpAddr) -> Option<Bytes> {
        let (asked, raw) = query.renamed(Name::from(real))?;
        let answer = self.ask_cluster(&asked, raw).await?;
        query.taken_over(&asked, &answer)
    }

    /// A name of the cluster: its DNS knows, or has told not long ago.
    async fn ask_cluster(&self, query: &Query, raw: Bytes) -> Option<Bytes> {
        let known = self.cache.borrow().get(&raw, Instant::now());
        let answer = match known {
            Some(answer) => answer,
            None => self.ask_tunnel(query, raw).await?,
        };
        let now = Instant::now();
        let seen = addresses::rewrite(answer, |real| self.nat.borrow_mut().seen_as(real, now));
        if seen.is_none() {
            tracing::warn!(name = query.name, "all virtual addresses are in use");
        }
        seen
    }

    async fn ask_tunnel(&self, query: &Query, raw: Bytes) -> Option<Bytes> {
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

/// Whether a raw answer has records in its answer section (RFC 1035 section 4.1.1: ANCOUNT at offset 6).
fn has_answers(answer: &[u8]) -> bool {
    answer.get(6..8).is_some_and(|count| count != [0, 0])
}

#[cfg(test)]
mod tests;
