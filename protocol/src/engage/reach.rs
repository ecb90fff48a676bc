//! How an agent's connection reaches the client that engages it. HTTP/2 streams are opened by clients only, so the client
//! has some open beforehand:
//!
//! | who | request | answered with 200 |
//! |---|---|---|
//! | client | `POST https://tp-manager/tp.v1/accept/ID` | when a connection arrives, with `tp-port`, `tp-transport` and `tp-source` |
//! | agent | `POST https://tp-manager/tp.v1/reach/ID`, with the same headers | when the client's handler has accepted |
//!
//! The client dials its handler and sends one byte, [`CONNECTED`], or it ends its direction with the trailers `tp-error` and
//! `tp-message`, as a reset does. What follows are the connection's bytes, or datagram capsules ([`crate::datagram`]), in
//! both directions, as on any flow ([`crate::open`]).

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use http::Uri;
use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::EngagementId;
use crate::open::{SOURCE, Transport};

/// Number of the container's port.
pub const PORT: HeaderName = HeaderName::from_static("tp-port");
/// `tcp` or `udp`.
pub const TRANSPORT: HeaderName = HeaderName::from_static("tp-transport");

/// The client's handler has accepted.
pub const CONNECTED: u8 = 1;

/// Streams that a client has open for one engagement: as many connections can arrive within a round trip.
pub const ACCEPTS: usize = 32;

/// Path of the client's request, without the id.
pub const ACCEPT_PATH: &str = "/tp.v1/accept/";

/// Path of the agent's request, without the id.
pub const REACH_PATH: &str = "/tp.v1/reach/";

/// A connection that arrives at an engaged port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The container's port.
    pub port: u16,
    /// The port's protocol.
    pub transport: Transport,
    /// Who connects.
    pub source: SocketAddr,
}

/// A header of an arrival, or of a dial, is missing or malformed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("peer sent no valid {0} header")]
pub struct ArrivalError(HeaderName);

impl Arrival {
    /// Writes the headers.
    pub fn write_headers(&self, headers: &mut HeaderMap) {
        let mut insert = |name, value: &dyn fmt::Display| {
            headers.insert(name, HeaderValue::from_str(&value.to_string()).expect("digits, letters and punctuation"))
        };
        insert(PORT, &self.port);
        insert(TRANSPORT, &text(self.transport));
        insert(SOURCE, &self.source);
    }

    /// Reads the headers.
    ///
    /// # Errors
    /// [`ArrivalError`].
    pub fn from_headers(headers: &HeaderMap) -> Result<Self, ArrivalError> {
        Ok(Self { port: read(headers, PORT)?, transport: read_transport(headers)?, source: read(headers, SOURCE)? })
    }
}

/// `tcp` or `udp`.
pub(super) fn text(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}

pub(super) fn read_transport(headers: &HeaderMap) -> Result<Transport, ArrivalError> {
    let transport: String = read(headers, TRANSPORT)?;
    match &*transport {
        "tcp" => Ok(Transport::Tcp),
        "udp" => Ok(Transport::Udp),
        _ => Err(ArrivalError(TRANSPORT)),
    }
}

pub(super) fn read<T: FromStr>(headers: &HeaderMap, name: HeaderName) -> Result<T, ArrivalError> {
    let value = headers.get(&name).and_then(|value| value.to_str().ok()).and_then(|value| value.parse().ok());
    value.ok_or(ArrivalError(name))
}

/// Returns the target of a client's request.
///
/// # Errors
/// The id has characters that a path cannot have.
pub fn accept_uri(id: &EngagementId) -> Result<Uri, http::Error> {
    uri(ACCEPT_PATH, id)
}

/// Returns the target of an agent's request.
///
/// # Errors
/// The id has characters that a path cannot have.
pub fn reach_uri(id: &EngagementId) -> Result<Uri, http::Error> {
    uri(REACH_PATH, id)
}

fn uri(path: &str, id: &EngagementId) -> Result<Uri, http::Error> {
    Uri::builder().scheme("https").authority("tp-manager").path_and_query(format!("{path}{id}")).build()
}

/// Reads the id from the path of a request; `None` when it is another request.
pub fn parse_path(path: &str, prefix: &str) -> Option<EngagementId> {
    EngagementId::new(path.strip_prefix(prefix)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_survive_the_wire() {
        for (transport, source) in [(Transport::Tcp, "10.1.2.3:4"), (Transport::Udp, "[fd00::1]:5")] {
            let arrival = Arrival { port: 8080, transport, source: source.parse().unwrap() };
            let mut headers = HeaderMap::new();
            arrival.write_headers(&mut headers);
            assert_eq!(Arrival::from_headers(&headers), Ok(arrival));
            for name in [PORT, TRANSPORT, SOURCE] {
                let mut headers = headers.clone();
                headers.insert(&name, HeaderValue::from_static("x"));
                assert_eq!(Arrival::from_headers(&headers), Err(ArrivalError(name.clone())));
                headers.remove(&name);
                assert_eq!(Arrival::from_headers(&headers), Err(ArrivalError(name)));
            }
        }
    }

    #[test]
    fn ids_survive_the_wire() {
        let id = EngagementId::new("tp-web-x7c2d").unwrap();
        assert_eq!(parse_path(accept_uri(&id).unwrap().path(), ACCEPT_PATH), Some(id.clone()));
        assert_eq!(parse_path(reach_uri(&id).unwrap().path(), REACH_PATH), Some(id));
        assert_eq!(parse_path("/tp.v1/accept/", ACCEPT_PATH), None);
        assert_eq!(parse_path("/tp.v1/reach/x", ACCEPT_PATH), None);
    }
}
