//! How an agent dials for a client, from the place of its pod in the network. HTTP/2 streams are opened by clients and agents
//! only, so an agent that is to dial ([`super::call::Orders`]) has some open beforehand:
//!
//! | who | request | answered with 200 |
//! |---|---|---|
//! | agent | `POST https://tp-manager/tp.v1/dial` | when a client opens a flow ([`crate::open::VIA`]), with `tp-destination`, `tp-transport` and `tp-deadline-ms` |
//!
//! The agent dials and sends one byte, [`CONNECTED`](super::reach::CONNECTED), or it ends its direction with the trailers
//! `tp-error` and `tp-message`, as a reset does. What follows are the flow's bytes, or datagram capsules
//! ([`crate::datagram`]), in both directions, as on any flow ([`crate::open`]).
//!
//! The destination is an address that the manager's dial policy has let pass: an agent resolves no names, and has no policy.

use std::net::SocketAddr;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::reach::{self, ArrivalError, TRANSPORT};
use crate::open::{DEADLINE, Transport};

/// `ADDRESS:PORT`.
pub const DESTINATION: HeaderName = HeaderName::from_static("tp-destination");

/// Path of the agent's request.
pub const DIAL_PATH: &str = "/tp.v1/dial";

/// Target of the agent's request.
pub const DIAL_URI: &str = "https://tp-manager/tp.v1/dial";

/// What an agent is to dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dial {
    /// Where to.
    pub dst: SocketAddr,
    /// TCP or UDP.
    pub transport: Transport,
    /// Give up after this long; whole milliseconds.
    pub deadline: Duration,
}

impl Dial {
    /// Writes the headers.
    pub fn write_headers(&self, headers: &mut HeaderMap) {
        let mut insert = |name, value: &dyn std::fmt::Display| {
            headers.insert(name, HeaderValue::from_str(&value.to_string()).expect("digits, letters and punctuation"))
        };
        insert(DESTINATION, &self.dst);
        insert(TRANSPORT, &reach::text(self.transport));
        insert(DEADLINE, &self.deadline.as_millis());
    }

    /// Reads the headers.
    ///
    /// # Errors
    /// [`ArrivalError`] names the one that is missing or malformed.
    pub fn from_headers(headers: &HeaderMap) -> Result<Self, ArrivalError> {
        Ok(Self {
            dst: reach::read(headers, DESTINATION)?,
            transport: reach::read_transport(headers)?,
            deadline: Duration::from_millis(reach::read(headers, DEADLINE)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dials_survive_the_wire() {
        for (transport, dst) in [(Transport::Tcp, "10.1.2.3:4"), (Transport::Udp, "[fd00::1]:5")] {
            let dial = Dial { dst: dst.parse().unwrap(), transport, deadline: Duration::from_millis(2_500) };
            let mut headers = HeaderMap::new();
            dial.write_headers(&mut headers);
            assert_eq!(Dial::from_headers(&headers), Ok(dial));
            for name in [DESTINATION, TRANSPORT, DEADLINE] {
                let mut headers = headers.clone();
                headers.insert(&name, HeaderValue::from_static("x"));
                assert!(Dial::from_headers(&headers).is_err(), "{name}");
                headers.remove(&name);
                assert!(Dial::from_headers(&headers).is_err(), "{name}");
            }
        }
    }

    #[test]
    fn the_target_has_the_path() {
        assert_eq!(DIAL_URI.parse::<http::Uri>().unwrap().path(), DIAL_PATH);
    }
}
