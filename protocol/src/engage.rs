//! Engagements: what a client asks of a port of a workload, and which requests it means.
//!
//! Clients ask with [`call`], connections arrive with [`reach`], and leave from a pod with [`dial`]. The manager decides with [`overlap`] whether two engagements can share a port, the CLI parses flags into a [`filter`],
//! and the agent matches requests against it. Values of this module are valid by construction; [`wire`] is how they
//! travel.

pub mod call;
pub mod dial;
pub mod filter;
pub mod overlap;
pub mod pattern;
pub mod reach;
pub mod wire;

use std::fmt;
use std::time::Duration;

use crate::open::Transport;
use filter::Filter;

/// Longest id of an engagement: as a Kubernetes name can have (RFC 1123 subdomain).
pub const MAX_ID_BYTES: usize = 253;

/// Longest wait for a handler that is away before [`WhenAway`] applies.
pub const MAX_WAIT: Duration = Duration::from_secs(60);

/// Names an engagement; unique in a cluster for as long as it lasts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EngagementId(String);

/// What a client wants of one port of a workload's container.
#[derive(Clone, Debug, PartialEq)]
pub struct Engagement {
    /// Its name.
    pub id: EngagementId,
    /// What happens to the traffic.
    pub kind: Kind,
    /// The container's port.
    pub port: u16,
    /// The port's protocol.
    pub transport: Transport,
    /// Which requests it is about.
    pub filter: Filter,
    /// What happens while the handler is away.
    pub when_away: WhenAway,
    /// How long a request waits for a handler that is away, before [`WhenAway`] applies. At most [`MAX_WAIT`].
    pub wait: Duration,
    /// Hand requests that arrive by TLS to the handler without it.
    pub plaintext: bool,
}

/// What an engagement does to the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The handler answers in the app's place.
    Intercept,
    /// The handler gets a copy, and its answers are thrown away.
    Wiretap,
    /// As [`Kind::Intercept`], and the app's container does not run.
    Replace,
}

/// What happens to a request whose handler is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WhenAway {
    /// The app in the cluster answers.
    Cluster,
    /// The caller sees what the handler's absence looks like: a refused or reset connection.
    Fail,
    /// The request waits until the handler is back.
    Hold,
}

/// An id is empty, too long, or not printable ASCII without spaces.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not an engagement's id: 1 to {MAX_ID_BYTES} printable ASCII characters, no spaces")]
pub struct IdError(String);

impl EngagementId {
    /// Checks an id.
    ///
    /// # Errors
    /// [`IdError`] when it cannot be one.
    pub fn new(id: impl Into<String>) -> Result<Self, IdError> {
        let id = id.into();
        let valid = (1..=MAX_ID_BYTES).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
        if valid { Ok(Self(id)) } else { Err(IdError(id)) }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EngagementId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Kind {
    /// Whether the handler answers instead of the app. Two engagements that do must not overlap.
    pub fn takes(self) -> bool {
        match self {
            Self::Intercept | Self::Replace => true,
            Self::Wiretap => false,
        }
    }
}
