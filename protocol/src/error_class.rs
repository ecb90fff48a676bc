//! Why a flow could not be opened, or ended early: an errno class that both ends can turn back into what a socket shows.

use std::fmt;
use std::io;
use std::str::FromStr;

/// What happened to a flow, in the terms of the sockets API (POSIX `connect` and `recv`).
///
/// Travels as the value of the header or trailer `tp-error`. A class that this version does not know is read as
/// [`ErrorClass::Failed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorClass {
    /// The port is closed (`ECONNREFUSED`): RST, or ICMP port unreachable for UDP.
    Refused,
    /// The peer reset the connection (`ECONNRESET`).
    Reset,
    /// No answer in time (`ETIMEDOUT`).
    TimedOut,
    /// No route to the host (`EHOSTUNREACH`).
    HostUnreachable,
    /// No route to the network (`ENETUNREACH`).
    NetUnreachable,
    /// The manager's dial policy does not allow the destination (`EACCES`).
    Denied,
    /// The name does not resolve.
    NameNotFound,
    /// A limit was reached: too many flows or dials under way. Trying again later can work.
    Exhausted,
    /// Anything else; the message says what.
    Failed,
}

const NAMES: [(ErrorClass, &str); 9] = [
    (ErrorClass::Refused, "refused"),
    (ErrorClass::Reset, "reset"),
    (ErrorClass::TimedOut, "timed-out"),
    (ErrorClass::HostUnreachable, "host-unreachable"),
    (ErrorClass::NetUnreachable, "net-unreachable"),
    (ErrorClass::Denied, "denied"),
    (ErrorClass::NameNotFound, "name-not-found"),
    (ErrorClass::Exhausted, "exhausted"),
    (ErrorClass::Failed, "failed"),
];

impl ErrorClass {
    /// Returns the name used on the wire.
    pub fn as_str(self) -> &'static str {
        NAMES.iter().find(|(class, _)| *class == self).map_or("failed", |(_, name)| name)
    }

    /// Classifies an error of a socket call.
    pub fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe => {
                Self::Reset
            }
            io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::HostUnreachable => Self::HostUnreachable,
            io::ErrorKind::NetworkUnreachable => Self::NetUnreachable,
            io::ErrorKind::PermissionDenied => Self::Denied,
            _ => Self::Failed,
        }
    }
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ErrorClass {
    type Err = std::convert::Infallible;

    /// Never fails: an unknown class is [`ErrorClass::Failed`].
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Ok(NAMES.iter().find(|(_, n)| *n == name).map_or(Self::Failed, |(class, _)| *class))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_survives_the_wire_and_unknown_ones_become_failed() {
        for (class, name) in NAMES {
            assert_eq!(class.as_str(), name);
            assert_eq!(name.parse(), Ok(class));
        }
        assert_eq!("from-the-future".parse(), Ok(ErrorClass::Failed));
    }
}
