//! Who a session belongs to: the two messages on a one-time port.
//!
//! A client asks for the port with [`Identify`], a call like those about engagements ([`crate::engage::call`]), and opens it
//! by a port-forward of its own. The API server tells the manager who that was. What travels on the port is length-prefixed
//! ([`crate::frame`]):
//!
//! | order | from | message |
//! |---|---|---|
//! | 1 | client | [`Claim`] |
//! | 2 | manager | [`Verdict`]; then it closes |

use std::time::Duration;

use crate::engage::call::Failure;
use crate::hello::SessionKey;

/// Largest message on a one-time port, encoded. A user of an identity provider can be in hundreds of groups.
pub const MAX_MESSAGE_BYTES: usize = 256 << 10;

/// How long a one-time port stays taken. Its number is not given to anybody else before that, so that what the API server
/// says late of one client is never taken for another.
pub const PORT_LIFE: Duration = Duration::from_secs(30);

/// How long a client may take from the answer with the port to the verdict: well below [`PORT_LIFE`].
pub const CLAIM_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks for a one-time port. Answered with [`OneTimePort`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Identify {}

/// A port on the loopback of the manager's pod that is good for one connection.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OneTimePort {
    /// Its number.
    #[prost(uint32, tag = "1")]
    pub port: u32,
}

/// Which session belongs to who has opened this port.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Claim {
    /// The session and the proof of it.
    #[prost(message, optional, tag = "1")]
    pub session: Option<SessionKey>,
}

/// What came of a claim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Verdict {
    /// Which.
    #[prost(oneof = "verdict::Kind", tags = "1, 2")]
    pub kind: Option<verdict::Kind>,
}

/// The kinds of [`Verdict`].
pub mod verdict {
    /// What came of a claim.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Kind {
        /// The session belongs to nobody yet.
        #[prost(message, tag = "1")]
        Failure(super::Failure),
        /// It belongs to this user.
        #[prost(message, tag = "2")]
        Identified(super::Identity),
    }
}

/// A user, as the API server names them.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Identity {
    /// Name, such as `ann` or `system:serviceaccount:build:ci`.
    #[prost(string, tag = "1")]
    pub user: String,
    /// Groups, such as `system:authenticated`.
    #[prost(string, repeated, tag = "2")]
    pub groups: Vec<String>,
}

impl From<verdict::Kind> for Verdict {
    fn from(kind: verdict::Kind) -> Self {
        Self { kind: Some(kind) }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use prost::Message;

    use super::*;
    use crate::engage::call::{Answer, Call, answer, call};
    use crate::frame;

    #[test]
    fn verdicts_and_claims_arrive_as_they_were_sent() {
        let claim = Claim { session: Some(SessionKey { id: "s-1".into(), secret: vec![7; 32] }) };
        let identity = Identity { user: "ann".into(), groups: vec!["system:authenticated".into()] };
        let mut wire = BytesMut::new();
        frame::encode(&claim, &mut wire);
        assert_eq!(frame::decode(&mut wire, MAX_MESSAGE_BYTES), Ok(Some(claim)));
        for kind in [verdict::Kind::Identified(identity), verdict::Kind::Failure(Failure::default())] {
            let verdict = Verdict::from(kind);
            frame::encode(&verdict, &mut wire);
            assert_eq!(frame::decode(&mut wire, MAX_MESSAGE_BYTES), Ok(Some(verdict)));
        }
    }

    /// The bytes of release 0.1.0: field 10 of either message.
    #[test]
    fn golden_call_for_a_port_and_its_answer() {
        let call = Call { kind: Some(call::Kind::Identify(Identify {})) };
        assert_eq!(call.encode_to_vec(), [0x52, 0]);
        let answer = Answer { kind: Some(answer::Kind::OneTimePort(OneTimePort { port: 40_000 })) };
        assert_eq!(answer.encode_to_vec(), [0x52, 4, 0x08, 0xc0, 0xb8, 0x02]);
    }

    #[test]
    fn secret_stays_out_of_debug_output() {
        let claim = Claim { session: Some(SessionKey { id: "s-1".into(), secret: vec![7; 32] }) };
        assert!(!format!("{claim:?}").contains("secret"), "{claim:?}");
    }
}
