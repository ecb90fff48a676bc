//! How a flow is opened: an HTTP/2 request whose headers say where to.
//!
//! | flow | `:method` | target | `:protocol` |
//! |---|---|---|---|
//! | TCP | `CONNECT` | `:authority` = `HOST:PORT` (RFC 9113 section 8.5) | |
//! | UDP | `CONNECT` | `:path` = `/.well-known/masque/udp/HOST/PORT/` (RFC 9298) | `connect-udp` |
//!
//! Further headers, all optional: `tp-namespace` (the connected namespace, for names), `tp-via` (dial from this workload's
//! place in the network, where `tp-namespace` is the workload's: `127.0.0.1` is then the localhost of a pod of it), `tp-deadline-ms` (give up dialling after this long), `tp-source` (address of the socket that
//! opened the flow, for logs), `tp-flow` (its number in the session). Headers that the receiver does not know are skipped.
//!
//! Status 200 answers when the far end has accepted (TCP) or the socket is ready (UDP). Any other status comes with
//! `tp-error` ([`ErrorClass`]) and `tp-message`.
//!
//! A flow that turns out to carry much goes on on another lane of its session, where it delays no others: the client asks
//! there with `POST /tp.v1/continue` and the flow's `tp-flow`. Once that is answered with 200, either end may end its
//! direction of the old stream with the trailer `tp-continued`, at any time, and sends what follows on the new one. A
//! direction whose old stream ends without this trailer is over, whatever comes on the new one.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode, Uri, request};

use crate::error_class::ErrorClass;
use crate::limits::MAX_ERROR_MESSAGE_BYTES;

/// The connected namespace.
pub const NAMESPACE: HeaderName = HeaderName::from_static("tp-namespace");
/// The workload from whose place in the network to dial.
pub const VIA: HeaderName = HeaderName::from_static("tp-via");
/// Milliseconds after which to give up dialling.
pub const DEADLINE: HeaderName = HeaderName::from_static("tp-deadline-ms");
/// Address of the socket that opened the flow.
pub const SOURCE: HeaderName = HeaderName::from_static("tp-source");
/// Number of the flow in its session.
pub const FLOW: HeaderName = HeaderName::from_static("tp-flow");
/// Trailer of a direction that goes on on another lane.
pub const CONTINUED: HeaderName = HeaderName::from_static("tp-continued");
/// Header or trailer with an [`ErrorClass`].
pub const ERROR: HeaderName = HeaderName::from_static("tp-error");
/// Text for people that explains [`ERROR`].
pub const MESSAGE: HeaderName = HeaderName::from_static("tp-message");

/// `:protocol` of a UDP flow (RFC 9298 section 3.4).
pub const UDP_PROTOCOL: &str = "connect-udp";
const UDP_PATH: &str = "/.well-known/masque/udp/";

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// A byte stream in each direction.
    Tcp,
    /// Datagrams in each direction.
    Udp,
}

/// The destination's host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address.
    Ip(IpAddr),
    /// A name, for the manager to resolve.
    Name(String),
}

/// Where a flow goes and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// TCP or UDP.
    pub transport: Transport,
    /// The destination's host.
    pub host: Host,
    /// The destination's port.
    pub port: u16,
    /// The connected namespace.
    pub namespace: Option<String>,
    /// The workload from whose place in the network to dial, `kind/name` or `kind/name:container`.
    pub via: Option<String>,
    /// Give up dialling after this long.
    pub deadline: Option<Duration>,
    /// Address of the socket that opened the flow.
    pub source: Option<SocketAddr>,
    /// Number of the flow in its session, by which it can go on on another lane.
    pub flow: Option<u64>,
}

/// Why a request is not a valid open.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenError {
    /// The target is neither `HOST:PORT` nor a UDP path.
    #[error("peer sent an open without a valid target: {0:?}")]
    BadTarget(String),
    /// A header's value is not of its form.
    #[error("peer sent an open with a malformed {0} header")]
    BadHeader(HeaderName),
}

/// The far end could not be reached.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{class}: {message}")]
pub struct OpenRefused {
    /// What happened, in the terms of the sockets API.
    pub class: ErrorClass,
    /// What happened, for people.
    pub message: String,
}

impl Open {
    /// An open of `dst` with nothing else said.
    pub fn new(transport: Transport, dst: SocketAddr) -> Self {
        Self {
            transport,
            host: Host::Ip(dst.ip()),
            port: dst.port(),
            namespace: None,
            via: None,
            deadline: None,
            source: None,
            flow: None,
        }
    }

    /// Whether it is to the localhost of whoever dials.
    pub fn is_to_localhost(&self) -> bool {
        matches!(&self.host, Host::Ip(ip) if ip.is_loopback())
    }

    /// Builds the request that opens the flow. For UDP the caller adds `:protocol` = [`UDP_PROTOCOL`].
    ///
    /// # Errors
    /// [`OpenError`] when a name or a workload has characters that cannot travel.
    pub fn to_request(&self) -> Result<Request<()>, OpenError> {
        let bad_target = || OpenError::BadTarget(self.to_string());
        if let Host::Name(name) = &self.host {
            is_dns_name(name).then_some(()).ok_or_else(bad_target)?;
        }
        let uri = match self.transport {
            Transport::Tcp => Uri::builder().authority(self.to_string()).build(),
            Transport::Udp => Uri::builder()
                .scheme("https")
                .authority("tp-manager")
                .path_and_query(format!("{UDP_PATH}{}/{}/", path_host(&self.host), self.port))
                .build(),
        }
        .map_err(|_| bad_target())?;
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        insert(headers, NAMESPACE, self.namespace.as_ref())?;
        insert(headers, VIA, self.via.as_ref())?;
        insert(headers, DEADLINE, self.deadline.map(|d| d.as_millis()).as_ref())?;
        insert(headers, SOURCE, self.source.as_ref())?;
        insert(headers, FLOW, self.flow.as_ref())?;
        Ok(request)
    }

    /// Reads the request that opens a flow.
    ///
    /// # Errors
    /// [`OpenError`] when the target or a header is not of its form.
    pub fn from_parts(parts: &request::Parts) -> Result<Self, OpenError> {
        let path = parts.uri.path();
        let (transport, host, port) = match path.strip_prefix(UDP_PATH) {
            Some(rest) => {
                let bad = || OpenError::BadTarget(path.to_owned());
                let (host, port) = rest.strip_suffix('/').and_then(|r| r.split_once('/')).ok_or_else(bad)?;
                let host = parse_host(&host.replace("%3A", ":")).ok_or_else(bad)?;
                (Transport::Udp, host, port.parse().map_err(|_| bad())?)
            }
            None => {
                let authority = parts.uri.authority().map_or("", |a| a.as_str());
                let bad = || OpenError::BadTarget(authority.to_owned());
                let (host, port) = authority.rsplit_once(':').ok_or_else(bad)?;
                let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
                (Transport::Tcp, parse_host(host).ok_or_else(bad)?, port.parse().map_err(|_| bad())?)
            }
        };
        Ok(Self {
            transport,
            host,
            port,
            namespace: read(&parts.headers, NAMESPACE)?,
            via: read(&parts.headers, VIA)?,
            deadline: read(&parts.headers, DEADLINE)?.map(Duration::from_millis),
            source: read(&parts.headers, SOURCE)?,
            flow: read(&parts.headers, FLOW)?,
        })
    }
}

impl fmt::Display for Open {
    /// `HOST:PORT`, with brackets around an IPv6 address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl OpenRefused {
    /// A refusal with its explanation.
    pub fn new(class: ErrorClass, message: impl Into<String>) -> Self {
        Self { class, message: message.into() }
    }

    /// The HTTP status that fits the class (RFC 9209 section 2.3 maps proxy errors to the same ones).
    pub fn status(&self) -> StatusCode {
        match self.class {
            ErrorClass::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            ErrorClass::Denied => StatusCode::FORBIDDEN,
            ErrorClass::Exhausted => StatusCode::SERVICE_UNAVAILABLE,
            ErrorClass::Refused
            | ErrorClass::Reset
            | ErrorClass::HostUnreachable
            | ErrorClass::NetUnreachable
            | ErrorClass::NameNotFound
            | ErrorClass::Failed => StatusCode::BAD_GATEWAY,
        }
    }

    /// Writes `tp-error` and `tp-message`. The message loses what a header cannot carry, and what is over its limit.
    pub fn write_headers(&self, headers: &mut HeaderMap) {
        headers.insert(ERROR, HeaderValue::from_static(self.class.as_str()));
        let text: String =
            self.message.chars().map(|c| if c.is_ascii() && !c.is_ascii_control() { c } else { '?' }).collect();
        let text = &text[..text.len().min(MAX_ERROR_MESSAGE_BYTES)];
        headers.insert(MESSAGE, HeaderValue::from_str(text).expect("only printable ASCII is left"));
    }

    /// Reads `tp-error` and `tp-message`; `None` when there is no error.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let class = headers.get(ERROR)?.to_str().unwrap_or_default();
        let message = headers.get(MESSAGE).and_then(|m| m.to_str().ok()).unwrap_or_default();
        Some(Self::new(class.parse().unwrap_or(ErrorClass::Failed), message))
    }
}

/// Inserts `value` when there is one.
fn insert(headers: &mut HeaderMap, name: HeaderName, value: Option<&impl ToString>) -> Result<(), OpenError> {
    if let Some(value) = value {
        let value = HeaderValue::from_str(&value.to_string()).map_err(|_| OpenError::BadHeader(name.clone()))?;
        headers.insert(name, value);
    }
    Ok(())
}

/// Reads and parses a header that may be absent.
fn read<T: FromStr>(headers: &HeaderMap, name: HeaderName) -> Result<Option<T>, OpenError> {
    let Some(value) = headers.get(&name) else {
        return Ok(None);
    };
    let parsed = value.to_str().ok().and_then(|v| v.parse().ok());
    parsed.map(Some).ok_or(OpenError::BadHeader(name))
}

/// The host as a path segment: colons of IPv6 addresses are percent-encoded (RFC 9298 section 3).
fn path_host(host: &Host) -> String {
    match host {
        Host::Ip(ip) => ip.to_string().replace(':', "%3A"),
        Host::Name(name) => name.clone(),
    }
}

fn parse_host(host: &str) -> Option<Host> {
    match host.parse() {
        Ok(ip) => Some(Host::Ip(ip)),
        Err(_) => is_dns_name(host).then(|| Host::Name(host.to_owned())),
    }
}

/// Letters, digits, hyphens, underscores and dots, at most 253 of them (RFC 1035 section 2.3.4).
fn is_dns_name(name: &str) -> bool {
    (1..=253).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(transport: Transport, dst: &str) -> Open {
        Open::new(transport, dst.parse().unwrap())
    }

    fn round_trip(open: &Open) -> Open {
        Open::from_parts(&open.to_request().unwrap().into_parts().0).unwrap()
    }

    /// The headers of release 0.1.0: later releases must read them for ever.
    #[test]
    fn golden_open_of_the_first_version() {
        let open = Open {
            namespace: Some("shop".into()),
            via: Some("deploy/web:app".into()),
            deadline: Some(Duration::from_millis(2500)),
            source: Some("198.18.0.1:5000".parse().unwrap()),
            ..open(Transport::Tcp, "10.96.0.1:443")
        };
        let request = open.to_request().unwrap();
        let lines: Vec<String> =
            request.headers().iter().map(|(k, v)| format!("{k}: {}", v.to_str().unwrap())).collect();
        assert_eq!(request.uri().to_string(), "10.96.0.1:443");
        assert_eq!(
            lines,
            ["tp-namespace: shop", "tp-via: deploy/web:app", "tp-deadline-ms: 2500", "tp-source: 198.18.0.1:5000"]
        );
        assert_eq!(round_trip(&open), open);
        let udp = self::open(Transport::Udp, "[fd00::1]:53").to_request().unwrap();
        assert_eq!(udp.uri().path(), "/.well-known/masque/udp/fd00%3A%3A1/53/");
    }

    #[test]
    fn every_kind_of_target_survives_the_wire() {
        for transport in [Transport::Tcp, Transport::Udp] {
            for dst in ["10.0.0.1:80", "[fd00::1]:65535"] {
                assert_eq!(round_trip(&open(transport, dst)), open(transport, dst));
            }
            let named = Open { host: Host::Name("web.shop.svc".into()), ..open(transport, "0.0.0.0:80") };
            assert_eq!(round_trip(&named), named);
        }
    }

    #[test]
    fn malformed_targets_are_refused() {
        for authority in ["web", "web:", "web:99999", "a b:80", ":80"] {
            let Ok(uri) = Uri::builder().authority(authority).build() else { continue };
            let parts = Request::builder().method(Method::CONNECT).uri(uri).body(()).unwrap().into_parts().0;
            assert!(matches!(Open::from_parts(&parts), Err(OpenError::BadTarget(_))), "{authority}");
        }
        for path in ["", "h", "h/", "h/x/", "h/80", "h/80/more/", "%00/80/"] {
            let uri = format!("https://m{UDP_PATH}{path}");
            let parts = Request::builder().method(Method::CONNECT).uri(uri).body(()).unwrap().into_parts().0;
            assert!(matches!(Open::from_parts(&parts), Err(OpenError::BadTarget(_))), "{path}");
        }
    }

    #[test]
    fn malformed_header_is_named() {
        let mut parts = open(Transport::Tcp, "10.0.0.1:80").to_request().unwrap().into_parts().0;
        parts.headers.insert(DEADLINE, HeaderValue::from_static("soon"));
        assert_eq!(Open::from_parts(&parts), Err(OpenError::BadHeader(DEADLINE)));
    }

    #[test]
    fn refusal_survives_the_wire_with_its_text_made_safe() {
        let mut headers = HeaderMap::new();
        OpenRefused::new(ErrorClass::Refused, "no\nwäy").write_headers(&mut headers);
        assert_eq!(OpenRefused::from_headers(&headers), Some(OpenRefused::new(ErrorClass::Refused, "no?w?y")));
        assert_eq!(OpenRefused::from_headers(&HeaderMap::new()), None);
    }
}
