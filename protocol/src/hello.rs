//! The first message in each direction of a lane.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | [`MAGIC`] |
//! | 8 | | one frame ([`crate::frame`]) with a [`ClientHello`] or a [`ServerHello`] |
//!
//! The client speaks first. The version range and the features agree on everything that follows, so these two messages
//! may only ever gain fields. The lane's segments ([`crate::resume`]) begin right behind them.

use bytes::{Buf, BufMut, BytesMut};
use prost::Message;

use crate::frame::{self, FrameError};
use crate::limits::MAX_HELLO_BYTES;

/// First bytes of a lane in either direction.
pub const MAGIC: [u8; 8] = *b"tp-lane\n";

/// Oldest protocol version this build speaks.
pub const MIN_VERSION: u32 = 1;

/// Newest protocol version this build speaks.
pub const MAX_VERSION: u32 = 1;

/// What this build can do beyond the protocol version, by name. Both ends use what both have.
pub const FEATURES: &[&str] = &[CONTINUE, "dns", "echo", ENGAGE, IDENTITY, "tcp", TO_POD, "udp", VIA];

/// The feature by which a flow goes on on another lane ([`crate::open`]).
pub const CONTINUE: &str = "continue";

/// The feature by which workloads are engaged ([`crate::engage`]).
pub const ENGAGE: &str = "engage";

/// The feature by which the manager learns who a session belongs to ([`crate::identity`]). A manager offers it only while it
/// asks.
pub const IDENTITY: &str = "identity";

/// The feature by which ports of a pod's localhost are reached ([`crate::engage::call::ToPod`]).
pub const TO_POD: &str = "to-pod";

/// The feature by which flows are dialled from a workload's place in the network ([`crate::engage::dial`]).
pub const VIA: &str = "via";

/// What a client or an agent says first.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ClientHello {
    /// Oldest protocol version it speaks.
    #[prost(uint32, tag = "1")]
    pub min_version: u32,
    /// Newest protocol version it speaks.
    #[prost(uint32, tag = "2")]
    pub max_version: u32,
    /// What it can do beyond the version ([`FEATURES`]).
    #[prost(string, repeated, tag = "3")]
    pub features: Vec<String>,
    /// Release of its software, such as `0.1.0`.
    #[prost(string, tag = "4")]
    pub software_version: String,
    /// The session that this lane joins; absent on the first lane, which makes one.
    #[prost(message, optional, tag = "5")]
    pub session: Option<SessionKey>,
    /// Name of the connection, for logs and listings on the manager's side.
    #[prost(string, tag = "6")]
    pub client_name: String,
    /// Present when the speaker is a traffic agent.
    #[prost(message, optional, tag = "7")]
    pub agent: Option<AgentIdentity>,
    /// Present when the speaker has its end of this lane from an earlier byte stream: how many bytes it has received.
    #[prost(uint64, optional, tag = "8")]
    pub resume_received: Option<u64>,
    /// Which lane of its session this is. 0 carries control, DNS and small flows.
    #[prost(uint32, tag = "9")]
    pub lane: u32,
}

/// What the manager answers.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ServerHello {
    /// Come in, or the reason not to.
    #[prost(oneof = "server_hello::Outcome", tags = "1, 2")]
    pub outcome: Option<server_hello::Outcome>,
}

/// The two outcomes of a hello.
pub mod server_hello {
    /// Come in, or the reason not to.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Outcome {
        /// The lane is open.
        #[prost(message, tag = "1")]
        Welcome(super::Welcome),
        /// The lane is closed after this message.
        #[prost(message, tag = "2")]
        Refusal(super::Refusal),
    }
}

/// The manager lets the lane in.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Welcome {
    /// The protocol version of this lane.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The features that both ends have.
    #[prost(string, repeated, tag = "2")]
    pub features: Vec<String>,
    /// Release of the manager.
    #[prost(string, tag = "3")]
    pub software_version: String,
    /// The session that the lane belongs to.
    #[prost(message, optional, tag = "4")]
    pub session: Option<SessionKey>,
    /// Pod of the manager.
    #[prost(string, tag = "5")]
    pub manager_pod: String,
    /// Never set, and not to be used again: a port for [`crate::identity`] in every hello would be a listener for every
    /// connection that is made, so it is asked for instead.
    #[prost(uint32, optional, tag = "6")]
    pub one_time_port: Option<u32>,
    /// Present when the lane goes on ([`crate::resume`]): how many bytes the manager has received. Absent when it starts
    /// anew.
    #[prost(uint64, optional, tag = "7")]
    pub resume_received: Option<u64>,
    /// The lane joined the session it asked for. False when the session is new, so flows of an old one are gone.
    #[prost(bool, tag = "8")]
    pub rejoined: bool,
    /// How long the manager keeps a lane that has lost its byte stream, in milliseconds. 0: the lane ends with it.
    #[prost(uint32, tag = "9")]
    pub resume_grace_ms: u32,
}

/// The manager does not let the lane in.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Refusal {
    /// Why, for programs.
    #[prost(enumeration = "RefusalCode", tag = "1")]
    pub code: i32,
    /// Why, for people; lower-case, without a full stop.
    #[prost(string, tag = "2")]
    pub message: String,
    /// Oldest protocol version the manager speaks.
    #[prost(uint32, tag = "3")]
    pub min_version: u32,
    /// Newest protocol version the manager speaks.
    #[prost(uint32, tag = "4")]
    pub max_version: u32,
    /// Release of the manager.
    #[prost(string, tag = "5")]
    pub software_version: String,
}

/// Why a lane was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum RefusalCode {
    /// Something that this version has no name for; the message says what.
    Unspecified = 0,
    /// No protocol version in common.
    VersionMismatch = 1,
    /// The session's secret is wrong.
    BadSecret = 2,
    /// The agent's token is not valid, or not for the pod that it claims to be.
    Unauthenticated = 3,
    /// A limit on sessions or lanes was reached.
    Exhausted = 4,
    /// The manager is stopping.
    ShuttingDown = 5,
    /// Clients come through port-forward and agents over TLS; this was the other door.
    WrongRole = 6,
}

/// Names a session and proves the right to it.
///
/// `Debug` does not show the secret.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct SessionKey {
    /// Public name of the session, safe for logs.
    #[prost(string, tag = "1")]
    pub id: String,
    /// 32 random bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub secret: Vec<u8>,
}

impl std::fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Which pod a traffic agent runs in, and the proof.
///
/// `Debug` does not show the token.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct AgentIdentity {
    /// Namespace of its pod.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// Name of its pod.
    #[prost(string, tag = "2")]
    pub pod: String,
    /// Service account token, projected for the audience `tp-manager`.
    #[prost(string, tag = "3")]
    pub token: String,
}

impl std::fmt::Debug for AgentIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentIdentity")
            .field("namespace", &self.namespace)
            .field("pod", &self.pod)
            .finish_non_exhaustive()
    }
}

impl ClientHello {
    /// A hello of this build, without session or agent identity.
    pub fn new(software_version: &str, client_name: &str) -> Self {
        Self {
            min_version: MIN_VERSION,
            max_version: MAX_VERSION,
            features: FEATURES.iter().map(|&f| f.to_owned()).collect(),
            software_version: software_version.to_owned(),
            client_name: client_name.to_owned(),
            ..Self::default()
        }
    }

    /// Finds the version and features that both ends have.
    ///
    /// # Errors
    /// A [`Refusal`] with both ranges when there is no common version.
    pub fn negotiate(&self, software_version: &str) -> Result<(u32, Vec<String>), Refusal> {
        let version = self.max_version.min(MAX_VERSION);
        if version < self.min_version.max(MIN_VERSION) {
            let message = format!(
                "client {} speaks protocol versions {} to {}, manager {software_version} speaks {MIN_VERSION} to {MAX_VERSION}",
                self.software_version, self.min_version, self.max_version
            );
            return Err(Refusal::new(RefusalCode::VersionMismatch, &message, software_version));
        }
        let features = self.features.iter().filter(|f| FEATURES.contains(&f.as_str())).cloned().collect();
        Ok((version, features))
    }
}

impl Refusal {
    /// A refusal of this build.
    pub fn new(code: RefusalCode, message: &str, software_version: &str) -> Self {
        Self {
            code: code.into(),
            message: message.to_owned(),
            min_version: MIN_VERSION,
            max_version: MAX_VERSION,
            software_version: software_version.to_owned(),
        }
    }
}

impl From<Welcome> for ServerHello {
    fn from(welcome: Welcome) -> Self {
        Self { outcome: Some(server_hello::Outcome::Welcome(welcome)) }
    }
}

impl From<Refusal> for ServerHello {
    fn from(refusal: Refusal) -> Self {
        Self { outcome: Some(server_hello::Outcome::Refusal(refusal)) }
    }
}

/// Why the first bytes of a lane are not a hello.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum HelloError {
    /// The peer does not speak this protocol at all.
    #[error("peer does not speak the tp protocol: its first bytes are {0:02x?}")]
    BadMagic(Vec<u8>),
    /// The message behind the magic is not valid.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Appends a hello with its magic to `outbox`.
pub fn encode(hello: &impl Message, outbox: &mut BytesMut) {
    outbox.put_slice(&MAGIC);
    frame::encode(hello, outbox);
}

/// Cuts the hello off `inbox`; `None` when more bytes are needed. What follows it stays in `inbox`.
///
/// # Errors
/// [`HelloError`] as soon as the bytes cannot be a hello.
pub fn decode<M: Message + Default>(inbox: &mut BytesMut) -> Result<Option<M>, HelloError> {
    let seen = inbox.len().min(MAGIC.len());
    if inbox[..seen] != MAGIC[..seen] {
        return Err(HelloError::BadMagic(inbox[..seen].to_vec()));
    }
    if seen < MAGIC.len() {
        return Ok(None);
    }
    let mut rest = inbox.split_off(MAGIC.len());
    let decoded = frame::decode(&mut rest, MAX_HELLO_BYTES)?;
    inbox.unsplit(rest);
    if decoded.is_some() {
        inbox.advance(MAGIC.len());
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn welcome() -> ServerHello {
        Welcome {
            version: 1,
            features: vec!["dns".into(), "tcp".into(), "udp".into()],
            software_version: "0.1.0".into(),
            session: Some(SessionKey { id: "s-1".into(), secret: vec![7; 4] }),
            manager_pod: "tp-manager-0".into(),
            one_time_port: Some(40_000),
            resume_received: Some(9),
            rejoined: true,
            resume_grace_ms: 0,
        }
        .into()
    }

    fn client() -> ClientHello {
        ClientHello {
            features: vec!["dns".into(), "tcp".into(), "udp".into()],
            session: Some(SessionKey { id: "s-1".into(), secret: vec![7; 4] }),
            agent: Some(AgentIdentity { namespace: "ns".into(), pod: "web-0".into(), token: "t".into() }),
            resume_received: Some(9),
            lane: 2,
            ..ClientHello::new("0.1.0", "demo")
        }
    }

    /// The bytes of release 0.1.0: later releases must read them for ever.
    #[test]
    fn golden_hello_of_the_first_version() {
        let mut wire = BytesMut::new();
        encode(&client(), &mut wire);
        assert_eq!(&wire[..], include_bytes!("../golden/v1/client-hello"));
        assert_eq!(decode(&mut wire), Ok(Some(client())));
        encode(&welcome(), &mut wire);
        assert_eq!(&wire[..], include_bytes!("../golden/v1/server-hello"));
        assert_eq!(decode(&mut wire), Ok(Some(welcome())));
        let refusal: ServerHello = client_of_the_future().negotiate("0.1.0").unwrap_err().into();
        encode(&refusal, &mut wire);
        assert_eq!(&wire[..], include_bytes!("../golden/v1/refusal"));
        assert_eq!(decode(&mut wire), Ok(Some(refusal)));
    }

    fn client_of_the_future() -> ClientHello {
        ClientHello { min_version: 7, max_version: 9, ..ClientHello::new("9.0.0", "demo") }
    }

    #[test]
    fn no_common_version_is_explained_with_both_ranges() {
        let refusal = client_of_the_future().negotiate("0.1.0").unwrap_err();
        assert_eq!(refusal.code(), RefusalCode::VersionMismatch);
        assert_eq!(refusal.message, "client 9.0.0 speaks protocol versions 7 to 9, manager 0.1.0 speaks 1 to 1");
    }

    #[test]
    fn newer_client_with_an_overlapping_range_gets_our_version_and_common_features() {
        let hello = ClientHello {
            max_version: 5,
            features: vec!["tcp".into(), "teleport".into()],
            ..ClientHello::new("5.0.0", "demo")
        };
        assert_eq!(hello.negotiate("0.1.0"), Ok((1, vec!["tcp".to_owned()])));
    }

    #[test]
    fn unknown_fields_are_skipped() {
        let mut wire = BytesMut::new();
        wire.put_slice(&MAGIC);
        let mut body = client().encode_to_vec();
        body.extend([0xfa, 0x07, 3, b'n', b'e', b'w']); // field 127, length-delimited
        wire.put_slice(&[0, 0, 0, 0, u8::try_from(body.len()).unwrap()]);
        wire.put_slice(&body);
        assert_eq!(decode(&mut wire), Ok(Some(client())));
    }

    #[test]
    fn foreign_protocol_is_recognised_from_its_first_byte() {
        let mut inbox = BytesMut::from(&b"GET / HTTP/1.1"[..]);
        assert_eq!(decode::<ClientHello>(&mut inbox), Err(HelloError::BadMagic(b"GET / HT".to_vec())));
        let mut inbox = BytesMut::from(&b"t"[..]);
        assert_eq!(decode::<ClientHello>(&mut inbox), Ok(None));
    }

    #[test]
    fn bytes_behind_the_hello_are_left_for_http2() {
        let mut inbox = BytesMut::new();
        encode(&client(), &mut inbox);
        let last = inbox.split_off(inbox.len() - 1);
        assert_eq!(decode::<ClientHello>(&mut inbox), Ok(None));
        inbox.unsplit(last);
        inbox.put_slice(b"PRI * HTTP/2.0");
        assert_eq!(decode(&mut inbox), Ok(Some(client())));
        assert_eq!(&inbox[..], b"PRI * HTTP/2.0");
    }

    #[test]
    fn secrets_stay_out_of_debug_output() {
        let text = format!("{:?} {:?}", client(), welcome());
        assert!(text.contains("web-0"));
        assert!(!text.contains("secret:") && !text.contains("token:"), "{text}");
    }
}
