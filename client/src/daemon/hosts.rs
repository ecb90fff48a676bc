//! Finds the API server's addresses without the container's own resolver: that one asks through the tunnel which the API
//! server is needed for, and puts a search list before the name.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_proto::serialize::binary::BinEncodable as _;
use hyper_util::client::legacy::connect::dns;

use crate::daemon::dns::Upstreams;

const HOSTS_FILE: &str = "/etc/hosts";

/// Asks the container's original resolvers. Clones share them.
#[derive(Clone)]
pub(crate) struct HostLookup {
    upstreams: Arc<Upstreams>,
}

impl HostLookup {
    /// `nameservers` are those of the container before resolv.conf was ours.
    pub(crate) fn new(nameservers: Vec<IpAddr>) -> Self {
        Self { upstreams: Arc::new(Upstreams::new(nameservers)) }
    }

    /// Returns the addresses of a host: a literal, a line of `/etc/hosts`, or an absolute DNS name.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) async fn addresses(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        if let Ok(ip) = host.trim_matches(['[', ']']).parse() {
            return Ok(vec![ip]);
        }
        let listed = in_hosts(&std::fs::read_to_string(HOSTS_FILE).unwrap_or_default(), host);
        if !listed.is_empty() {
            return Ok(listed);
        }
        let (v4, v6) = tokio::join!(self.ask(host, RecordType::A), self.ask(host, RecordType::AAAA));
        let found: Vec<IpAddr> = v4?.into_iter().chain(v6.unwrap_or_default()).collect();
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("no address for the host name `{host}`")));
        }
        Ok(found)
    }

    async fn ask(&self, host: &str, record_type: RecordType) -> io::Result<Vec<IpAddr>> {
        let mut name = Name::from_ascii(host).map_err(io::Error::other)?;
        name.set_fqdn(true);
        let mut query = Message::query();
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(name, record_type));
        let asked = self.upstreams.ask(query.to_bytes().map_err(io::Error::other)?.into()).await;
        let answer = asked.ok_or_else(|| {
            io::Error::new(io::ErrorKind::TimedOut, format!("no resolver answers for the host name `{host}`"))
        })?;
        let answer = Message::from_vec(&answer).map_err(io::Error::other)?;
        Ok(answer.answers.iter().filter_map(|record| address(&record.data)).collect())
    }
}

fn address(data: &RData) -> Option<IpAddr> {
    match data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
        _ => None,
    }
}

/// The addresses of `host` in a hosts file (hosts(5)).
fn in_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().split_ascii_whitespace());
    lines
        .filter_map(|mut words| {
            let ip = words.next()?.parse().ok()?;
            words.any(|name| name.eq_ignore_ascii_case(host)).then_some(ip)
        })
        .collect()
}

impl tower::Service<dns::Name> for HostLookup {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: dns::Name) -> Self::Future {
        let lookup = self.clone();
        Box::pin(async move {
            let found = lookup.addresses(name.as_str()).await?;
            // The connector puts the port in.
            Ok(found.into_iter().map(|ip| SocketAddr::new(ip, 0)).collect::<Vec<_>>().into_iter())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_file_is_read_with_comments_aliases_and_any_case() {
        let text =
            "127.0.0.1 localhost\n172.17.0.1\thost.docker.internal gateway # API.example\n::1 API.example\nbad line\n";
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(in_hosts(text, "gateway"), [ip("172.17.0.1")]);
        assert_eq!(in_hosts(text, "api.EXAMPLE"), [ip("::1")]);
        assert!(in_hosts(text, "api.example.com").is_empty());
    }

    #[tokio::test]
    async fn literal_addresses_need_no_resolver() {
        let lookup = HostLookup::new(Vec::new());
        assert_eq!(lookup.addresses("[fd00::1]").await.unwrap(), ["fd00::1".parse::<IpAddr>().unwrap()]);
        assert!(lookup.addresses("api.invalid").await.unwrap_err().to_string().contains("api.invalid"));
    }
}
