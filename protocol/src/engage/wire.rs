//! Engagements and filters as messages.
//!
//! Fields that the receiver does not know are skipped, and a rule of a filter must not be: without it, the filter would
//! take requests of other people. So a filter says how many rules it has, and one with fewer is refused.

use std::time::Duration;

use super::filter::{Filter, FilterError, HeaderRule, PathRule, Selector, parse_method};
use super::pattern::Pattern;
use super::{EngagementId, IdError, MAX_WAIT};
use crate::open;

/// [`super::Engagement`] as a message.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Engagement {
    /// Its name.
    #[prost(string, tag = "1")]
    pub id: String,
    /// What happens to the traffic.
    #[prost(enumeration = "Kind", tag = "2")]
    pub kind: i32,
    /// The container's port.
    #[prost(uint32, tag = "3")]
    pub port: u32,
    /// The port's protocol.
    #[prost(enumeration = "Transport", tag = "4")]
    pub transport: i32,
    /// Which requests it is about; absent for all.
    #[prost(message, optional, tag = "5")]
    pub filter: Option<FilterMessage>,
    /// What happens while the handler is away.
    #[prost(enumeration = "WhenAway", tag = "6")]
    pub when_away: i32,
    /// How long a request waits for a handler that is away.
    #[prost(uint32, tag = "7")]
    pub wait_ms: u32,
    /// Hand requests that arrive by TLS to the handler without it.
    #[prost(bool, tag = "8")]
    pub plaintext: bool,
}

/// [`super::Kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Kind {
    /// Not said, which no valid message does.
    Unspecified = 0,
    /// [`super::Kind::Intercept`].
    Intercept = 1,
    /// [`super::Kind::Wiretap`].
    Wiretap = 2,
    /// [`super::Kind::Replace`].
    Replace = 3,
    /// No traffic: environment and volumes only. An agent is never told of it.
    Ingest = 4,
    /// No traffic: what its holder dials is dialled from the workload's place in the network ([`super::dial`]). An agent is
    /// never told whose.
    Via = 5,
}

/// [`open::Transport`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Transport {
    /// Not said, which no valid message does.
    Unspecified = 0,
    /// [`open::Transport::Tcp`].
    Tcp = 1,
    /// [`open::Transport::Udp`].
    Udp = 2,
}

/// [`super::WhenAway`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum WhenAway {
    /// Not said, which no valid message does.
    Unspecified = 0,
    /// [`super::WhenAway::Cluster`].
    Cluster = 1,
    /// [`super::WhenAway::Fail`].
    Fail = 2,
    /// [`super::WhenAway::Hold`].
    Hold = 3,
}

/// [`Filter`] as a message.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FilterMessage {
    /// Rules for headers; all must match.
    #[prost(message, repeated, tag = "1")]
    pub headers: Vec<HeaderRuleMessage>,
    /// Methods, one of which must match.
    #[prost(string, repeated, tag = "2")]
    pub methods: Vec<String>,
    /// Rules for the path, one of which must match.
    #[prost(message, repeated, tag = "3")]
    pub paths: Vec<PathRuleMessage>,
    /// How many rules the sender has put into all fields, also those of later versions.
    #[prost(uint32, tag = "15")]
    pub rule_count: u32,
}

/// [`HeaderRule`] as a message.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HeaderRuleMessage {
    /// Name of the header.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Key of the member, where not the whole header is meant.
    #[prost(string, optional, tag = "2")]
    pub member: Option<String>,
    /// What has to be there.
    #[prost(oneof = "header_rule::Value", tags = "3, 4")]
    pub value: Option<header_rule::Value>,
}

/// The values of [`HeaderRuleMessage`].
pub mod header_rule {
    /// What has to be there.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Value {
        /// This text.
        #[prost(string, tag = "3")]
        Exact(String),
        /// What all of this expression matches.
        #[prost(string, tag = "4")]
        Regex(String),
    }
}

/// [`PathRule`] as a message.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PathRuleMessage {
    /// What the path has to be.
    #[prost(oneof = "path_rule::Value", tags = "1, 2, 3")]
    pub value: Option<path_rule::Value>,
}

/// The values of [`PathRuleMessage`].
pub mod path_rule {
    /// What the path has to be.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Value {
        /// This text.
        #[prost(string, tag = "1")]
        Equal(String),
        /// Begins with this text.
        #[prost(string, tag = "2")]
        Prefix(String),
        /// What all of this expression matches.
        #[prost(string, tag = "3")]
        Regex(String),
    }
}

/// Why a message is not an engagement. The peer is in the wrong, or of a later version.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum EngagementError {
    /// The id is none.
    #[error(transparent)]
    Id(#[from] IdError),
    /// A rule of the filter is wrong.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The filter has rules that this version does not know.
    #[error("peer sent a filter with {sent} rules, of which this version knows {known}")]
    UnknownRule {
        /// Rules in the message.
        sent: u32,
        /// Rules that were understood.
        known: usize,
    },
    /// An enumeration has a value that this version does not know.
    #[error("peer sent an engagement whose {field} is {value}, which this version does not know")]
    UnknownValue {
        /// The field.
        field: &'static str,
        /// Its value.
        value: i32,
    },
    /// There is no such port.
    #[error("peer sent an engagement of port {0}")]
    BadPort(u32),
    /// Longer than [`MAX_WAIT`].
    #[error("peer sent an engagement that waits {0} ms, and {max} ms is the limit", max = MAX_WAIT.as_millis())]
    WaitTooLong(u32),
    /// Only TCP carries requests.
    #[error("peer sent an engagement of a UDP port with a filter")]
    FilterOnUdp,
}

impl From<&super::Engagement> for Engagement {
    fn from(engagement: &super::Engagement) -> Self {
        let kind = match engagement.kind {
            super::Kind::Intercept => Kind::Intercept,
            super::Kind::Wiretap => Kind::Wiretap,
            super::Kind::Replace => Kind::Replace,
        };
        let transport = match engagement.transport {
            open::Transport::Tcp => Transport::Tcp,
            open::Transport::Udp => Transport::Udp,
        };
        let when_away = match engagement.when_away {
            super::WhenAway::Cluster => WhenAway::Cluster,
            super::WhenAway::Fail => WhenAway::Fail,
            super::WhenAway::Hold => WhenAway::Hold,
        };
        Self {
            id: engagement.id.as_str().to_owned(),
            kind: kind.into(),
            port: engagement.port.into(),
            transport: transport.into(),
            filter: (!engagement.filter.is_empty()).then(|| (&engagement.filter).into()),
            when_away: when_away.into(),
            wait_ms: engagement.wait.min(MAX_WAIT).as_millis().try_into().unwrap_or(u32::MAX),
            plaintext: engagement.plaintext,
        }
    }
}

impl TryFrom<&Engagement> for super::Engagement {
    type Error = EngagementError;

    fn try_from(message: &Engagement) -> Result<Self, EngagementError> {
        let unknown = |field, value| EngagementError::UnknownValue { field, value };
        let kind = match message.kind() {
            Kind::Intercept => super::Kind::Intercept,
            Kind::Wiretap => super::Kind::Wiretap,
            Kind::Replace => super::Kind::Replace,
            Kind::Unspecified | Kind::Ingest | Kind::Via => return Err(unknown("kind", message.kind)),
        };
        let transport = match message.transport() {
            Transport::Tcp => open::Transport::Tcp,
            Transport::Udp => open::Transport::Udp,
            Transport::Unspecified => return Err(unknown("transport", message.transport)),
        };
        let when_away = match message.when_away() {
            WhenAway::Cluster => super::WhenAway::Cluster,
            WhenAway::Fail => super::WhenAway::Fail,
            WhenAway::Hold => super::WhenAway::Hold,
            WhenAway::Unspecified => return Err(unknown("when_away", message.when_away)),
        };
        let port = u16::try_from(message.port).ok().filter(|port| *port > 0);
        let wait = Duration::from_millis(message.wait_ms.into());
        if wait > MAX_WAIT {
            return Err(EngagementError::WaitTooLong(message.wait_ms));
        }
        let filter = message.filter.as_ref().map(Filter::try_from).transpose()?.unwrap_or_default();
        if transport == open::Transport::Udp && !filter.is_empty() {
            return Err(EngagementError::FilterOnUdp);
        }
        Ok(Self {
            id: EngagementId::new(message.id.as_str())?,
            kind,
            port: port.ok_or(EngagementError::BadPort(message.port))?,
            transport,
            filter,
            when_away,
            wait,
            plaintext: message.plaintext,
        })
    }
}

impl From<&Filter> for FilterMessage {
    fn from(filter: &Filter) -> Self {
        let message = Self {
            headers: filter.headers().iter().map(HeaderRuleMessage::from).collect(),
            methods: filter.methods().iter().map(|method| method.as_str().to_owned()).collect(),
            paths: filter.paths().iter().map(PathRuleMessage::from).collect(),
            rule_count: 0,
        };
        let rule_count = message.known_rules().try_into().unwrap_or(u32::MAX);
        Self { rule_count, ..message }
    }
}

impl FilterMessage {
    fn known_rules(&self) -> usize {
        self.headers.len() + self.methods.len() + self.paths.len()
    }
}

impl TryFrom<&FilterMessage> for Filter {
    type Error = EngagementError;

    fn try_from(message: &FilterMessage) -> Result<Self, EngagementError> {
        let (sent, known) = (message.rule_count, message.known_rules());
        let unknown = EngagementError::UnknownRule { sent, known };
        if usize::try_from(sent).ok() != Some(known) {
            return Err(unknown);
        }
        let headers = message.headers.iter().map(|rule| {
            let selector = Selector::new(&rule.name, rule.member.as_deref())?;
            let pattern = match &rule.value {
                Some(header_rule::Value::Exact(text)) => Pattern::exact(text.as_str()),
                Some(header_rule::Value::Regex(source)) => Pattern::regex(source.as_str()),
                None => return Err(unknown.clone()),
            };
            let pattern = pattern.map_err(|problem| FilterError::BadPattern { rule: selector.to_string(), problem })?;
            Ok(HeaderRule { selector, pattern })
        });
        let headers = headers.collect::<Result<_, EngagementError>>()?;
        let methods = message.methods.iter().map(|method| parse_method(method)).collect::<Result<_, _>>()?;
        let paths = message.paths.iter().map(|rule| match &rule.value {
            Some(path_rule::Value::Equal(path)) => Ok(PathRule::equal(path)?),
            Some(path_rule::Value::Prefix(prefix)) => Ok(PathRule::prefix(prefix)?),
            Some(path_rule::Value::Regex(source)) => Ok(PathRule::regex(source)?),
            None => Err(unknown.clone()),
        });
        let paths = paths.collect::<Result<_, EngagementError>>()?;
        Ok(Filter::new(headers, methods, paths)?)
    }
}

impl From<&HeaderRule> for HeaderRuleMessage {
    fn from(rule: &HeaderRule) -> Self {
        Self {
            name: rule.selector.name().as_str().to_owned(),
            member: rule.selector.member().map(str::to_owned),
            value: Some(match &rule.pattern {
                Pattern::Exact(text) => header_rule::Value::Exact(text.clone()),
                Pattern::Regex(regex) => header_rule::Value::Regex(regex.as_str().to_owned()),
            }),
        }
    }
}

impl From<&PathRule> for PathRuleMessage {
    fn from(rule: &PathRule) -> Self {
        Self {
            value: Some(match rule {
                PathRule::Equal(path) => path_rule::Value::Equal(path.clone()),
                PathRule::Prefix(prefix) => path_rule::Value::Prefix(prefix.clone()),
                PathRule::Regex(regex) => path_rule::Value::Regex(regex.as_str().to_owned()),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use prost::Message;

    use super::*;

    fn engagement() -> crate::engage::Engagement {
        let headers = ["x-user=ann", "baggage:team=~red|blue"].map(|rule| rule.parse().unwrap());
        let paths = [PathRule::equal("/cart"), PathRule::prefix("/api/"), PathRule::regex("/v[12]/.*")];
        let paths = paths.map(Result::unwrap);
        crate::engage::Engagement {
            id: EngagementId::new("shop/web-ann").unwrap(),
            kind: crate::engage::Kind::Intercept,
            port: 8080,
            transport: open::Transport::Tcp,
            filter: Filter::new(headers.into(), vec![Method::GET, Method::PUT], paths.into()).unwrap(),
            when_away: crate::engage::WhenAway::Cluster,
            wait: Duration::from_millis(750),
            plaintext: true,
        }
    }

    /// The bytes of the first version that has engagements: later ones must read them for ever.
    #[test]
    fn golden_engagement_of_the_first_version() {
        let wire = Engagement::from(&engagement()).encode_to_vec();
        assert_eq!(wire, include_bytes!("../../golden/v1/engagement"));
        let read = Engagement::decode(&wire[..]).unwrap();
        assert_eq!(crate::engage::Engagement::try_from(&read), Ok(engagement()));
    }

    #[test]
    fn fields_of_later_versions_are_skipped() {
        let mut wire = Engagement::from(&engagement()).encode_to_vec();
        wire.extend_from_slice(&[0xfa, 0x07, 2, b'h', b'i']);
        let read = Engagement::decode(&wire[..]).unwrap();
        assert_eq!(crate::engage::Engagement::try_from(&read), Ok(engagement()));
    }

    #[test]
    fn a_rule_of_a_later_version_is_not_skipped() {
        let message = Engagement::from(&engagement());
        let read = |message: &Engagement| crate::engage::Engagement::try_from(message);
        let mut more = message.clone();
        more.filter.as_mut().unwrap().rule_count = 8;
        assert_eq!(read(&more), Err(EngagementError::UnknownRule { sent: 8, known: 7 }));
        let mut other = message;
        other.filter.as_mut().unwrap().paths[0].value = None;
        assert_eq!(read(&other), Err(EngagementError::UnknownRule { sent: 7, known: 7 }));
    }

    #[test]
    fn a_message_that_is_no_engagement_is_refused() {
        let valid = Engagement::from(&engagement());
        let refused = |message: Engagement| crate::engage::Engagement::try_from(&message).unwrap_err();
        assert!(matches!(refused(Engagement { id: "a b".into(), ..valid.clone() }), EngagementError::Id(_)));
        for port in [0, 65_536] {
            assert_eq!(refused(Engagement { port, ..valid.clone() }), EngagementError::BadPort(port));
        }
        let unknown = |field, value| EngagementError::UnknownValue { field, value };
        assert_eq!(refused(Engagement { kind: 9, ..valid.clone() }), unknown("kind", 9));
        assert_eq!(refused(Engagement { when_away: 0, ..valid.clone() }), unknown("when_away", 0));
        assert_eq!(refused(Engagement { wait_ms: 60_001, ..valid.clone() }), EngagementError::WaitTooLong(60_001));
        assert_eq!(refused(Engagement { transport: 2, ..valid }), EngagementError::FilterOnUdp);
    }
}
