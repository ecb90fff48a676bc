//! The manager's configuration: a YAML file (from the chart) and the pod's own facts (from the downward API).
//!
//! Parsed once, at the start; what travels inward is checked. `client` stays opaque: clients of any version read it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de};

use crate::log;
use crate::policy::Rule;

/// Variable that names the file.
const CONFIG_VARIABLE: &str = "TP_MANAGER_CONFIG";

/// The checked configuration file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Config {
    /// What is logged, and how.
    pub log: Log,
    /// How much of everything.
    pub limits: Limits,
    /// How long everything.
    pub timeouts: Timeouts,
    /// Which addresses may be dialled.
    pub dial_policy: DialPolicy,
    /// What the manager would otherwise find out about the cluster.
    pub cluster: Cluster,
    /// Whether workloads can be engaged.
    pub engage: Engage,
    /// Which of those who may connect may do that.
    pub authorization: Authorization,
    /// The pods that the manager makes for it.
    pub agent: AgentPod,
    /// Settings handed to every client, as the JSON text of a mapping; empty when there are none.
    #[serde(deserialize_with = "json_mapping")]
    pub client: String,
}

/// The `log` section.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Log {
    /// Level, or levels per module (`info,tp_manager::dial=debug`): see [`log::filter`].
    pub level: String,
    /// Shape of a line.
    pub format: LogFormat,
}

/// Shape of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LogFormat {
    /// One JSON object per line.
    #[default]
    Json,
    /// For people.
    Text,
}

/// The `limits` section. What is over a limit is refused with a message; nothing queues without one.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Limits {
    /// Sessions at once.
    pub sessions: u32,
    /// Lanes of one session.
    pub lanes_per_session: u32,
    /// Open flows of one session.
    pub flows_per_session: u32,
    /// Dials of one session that are not answered yet. More wait for their turn within their own deadline.
    pub pending_dials_per_session: u32,
    /// DNS queries at once, of all sessions.
    pub dns_queries: u32,
    /// Registered agents.
    pub agents: u32,
    /// Connections to the agents' port that are not authenticated yet.
    pub agent_handshakes: u32,
}

/// The `timeouts` section.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Timeouts {
    /// A session whose lanes are all gone is kept for so long.
    #[serde(deserialize_with = "duration")]
    pub session_grace: Duration,
    /// Longest wait for a TCP connection; a client may ask for less.
    #[serde(deserialize_with = "duration")]
    pub dial: Duration,
    /// A UDP association without datagrams ends.
    #[serde(deserialize_with = "duration")]
    pub udp_idle: Duration,
    /// Longest wait for an answer of the cluster's DNS.
    #[serde(deserialize_with = "duration")]
    pub dns: Duration,
    /// Longest wait for a hello, and for TLS on the agents' port.
    #[serde(deserialize_with = "duration")]
    pub handshake: Duration,
    /// At shutdown, flows may finish for so long.
    #[serde(deserialize_with = "duration")]
    pub drain: Duration,
}

/// The `dialPolicy` section: see [`crate::policy`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct DialPolicy {
    /// Refused.
    #[serde(deserialize_with = "rules")]
    pub deny: Vec<Rule>,
    /// Allowed.
    #[serde(deserialize_with = "rules")]
    pub allow: Vec<Rule>,
}

/// The `cluster` section. Empty fields are found out.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Cluster {
    /// DNS domain of the cluster.
    pub domain: String,
    /// Subnets of Services.
    pub service_subnets: Vec<IpNet>,
    /// Subnets of pods.
    pub pod_subnets: Vec<IpNet>,
}

/// The `engage` section.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Engage {
    /// Clients may engage workloads; the chart gives the manager the rights for it.
    pub enabled: bool,
    /// Namespaces whose workloads may not be engaged.
    pub forbidden_namespaces: Vec<String>,
    /// Which of the workloads' own pods get an agent; the chart makes the webhook for it.
    pub inject: Inject,
    /// Where the agent runs when a client does not say.
    pub mode: Mode,
}

/// Which of the workloads' own pods get an agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Inject {
    /// None.
    #[default]
    Never,
    /// Those that ask for it.
    Enabled,
    /// Those, and those of a workload that is engaged in its own pods, which are restarted for it.
    OnDemand,
}

/// Where the agent runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Where nothing is restarted for it.
    #[default]
    Auto,
    /// In a pod of its own.
    StandIn,
    /// In the workload's pods.
    Sidecar,
}

/// Who may engage workloads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Authorization {
    /// Whoever has the right that [`crate::identity::rights`] names in the workload's namespace.
    #[default]
    SubjectAccessReview,
    /// Whoever may connect.
    PortForwardOnly,
}

/// The `agent` section: how agents run, in stand-ins and in workloads' own pods.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct AgentPod {
    /// Image of tp-agent.
    pub image: String,
    /// When the kubelet pulls it.
    pub pull_policy: String,
    /// Names of Secrets, in the workload's namespace, to pull with.
    pub pull_secrets: Vec<String>,
    /// Requests and limits of the container, as in a pod.
    pub resources: serde_json::Value,
    /// Where agents find the manager; not part of the file.
    #[serde(skip)]
    pub manager_address: String,
}

impl Default for Engage {
    fn default() -> Self {
        let forbidden_namespaces = vec!["kube-system".to_owned()];
        Self { enabled: true, forbidden_namespaces, inject: Inject::default(), mode: Mode::default() }
    }
}

impl Default for AgentPod {
    fn default() -> Self {
        Self {
            image: format!("tp-agent:{}", crate::VERSION),
            pull_policy: "IfNotPresent".to_owned(),
            pull_secrets: Vec::new(),
            resources: serde_json::json!({}),
            manager_address: String::new(),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::default() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 1_000,
            lanes_per_session: 8,
            flows_per_session: 16_384,
            pending_dials_per_session: 1_024,
            dns_queries: 1_024,
            agents: 5_000,
            agent_handshakes: 64,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            session_grace: Duration::from_secs(120),
            dial: Duration::from_secs(30),
            udp_idle: Duration::from_secs(120),
            dns: Duration::from_secs(4),
            handshake: Duration::from_secs(10),
            drain: Duration::from_secs(5),
        }
    }
}

/// The pod this process runs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `POD_NAME`.
    pub name: String,
    /// `POD_NAMESPACE`.
    pub namespace: String,
    /// `POD_IPS` (comma-separated), or `POD_IP`.
    pub addresses: BTreeSet<IpAddr>,
    /// `NODE_IP`, if known.
    pub node: Option<IpAddr>,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is not a valid configuration.
    #[error("{path}: {message}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        message: String,
    },
    /// A variable of the pod is missing or malformed.
    #[error("the environment variable {name} is {problem}; the chart sets it from the downward API")]
    Environment {
        /// The variable.
        name: &'static str,
        /// What is wrong.
        problem: String,
    },
}

/// Reads the file that `TP_MANAGER_CONFIG` names (defaults when it names none) and the pod's facts.
///
/// `variable` looks an environment variable up.
///
/// # Errors
/// [`ConfigError`] names the file and line, or the variable.
pub fn load(variable: impl Fn(&str) -> Option<String>) -> Result<(Config, Pod), ConfigError> {
    let config = match variable(CONFIG_VARIABLE) {
        None => Config::default(),
        Some(path) => read(Path::new(&path))?,
    };
    Ok((config, pod(variable)?))
}

/// Reads and checks one file.
fn read(path: &Path) -> Result<Config, ConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    parse(&text).map_err(|message| ConfigError::Invalid { path: path.to_owned(), message })
}

/// Parses and checks the text of a file.
fn parse(text: &str) -> Result<Config, String> {
    let config: Config = match text.trim() {
        "" => Config::default(),
        _ => serde_saphyr::from_str(text).map_err(|e| e.to_string())?,
    };
    let limits = &config.limits;
    for (name, value) in [
        ("sessions", limits.sessions),
        ("lanesPerSession", limits.lanes_per_session),
        ("flowsPerSession", limits.flows_per_session),
        ("pendingDialsPerSession", limits.pending_dials_per_session),
        ("dnsQueries", limits.dns_queries),
        ("agents", limits.agents),
        ("agentHandshakes", limits.agent_handshakes),
    ] {
        if value == 0 {
            return Err(format!("limits.{name} is 0: nothing would work"));
        }
    }
    log::filter(&config.log.level).map_err(|e| format!("log.level `{}`: {e}", config.log.level))?;
    Ok(config)
}

/// Reads the pod's facts.
fn pod(variable: impl Fn(&str) -> Option<String>) -> Result<Pod, ConfigError> {
    let required = |name: &'static str| {
        variable(name)
            .filter(|value| !value.is_empty())
            .ok_or(ConfigError::Environment { name, problem: "not set".to_owned() })
    };
    let address = |name: &'static str, text: &str| {
        text.trim()
            .parse::<IpAddr>()
            .map_err(|_| ConfigError::Environment { name, problem: format!("`{text}`, which is not an address") })
    };
    let addresses = match variable("POD_IPS").filter(|value| !value.is_empty()) {
        Some(list) => list.split(',').map(|text| address("POD_IPS", text)).collect::<Result<_, _>>()?,
        None => BTreeSet::from([address("POD_IP", &required("POD_IP")?)?]),
    };
    let node = variable("NODE_IP").filter(|value| !value.is_empty());
    Ok(Pod {
        name: required("POD_NAME")?,
        namespace: required("POD_NAMESPACE")?,
        addresses,
        node: node.map(|text| address("NODE_IP", &text)).transpose()?,
    })
}

/// Reads `90s`, `2m`, `1h`, `500ms` or sums of them (`1m30s`).
fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text)
        .ok_or_else(|| de::Error::custom(format!("`{text}` is not a duration above zero such as 500ms, 30s, 2m or 1h")))
}

/// Parses a duration as Go and Kubernetes write it; `None` when malformed or zero.
fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = rest.split_at(digits);
        let number: u32 = number.parse().ok()?;
        let letters = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
        let (unit, behind) = unit.split_at(letters);
        let unit = match unit {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3_600),
            _ => return None,
        };
        sum = sum.checked_add(unit.checked_mul(number)?)?;
        rest = behind;
    }
    (!sum.is_zero()).then_some(sum)
}

/// Reads a list of policy rules.
fn rules<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Rule>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| text.parse().map_err(de::Error::custom)).collect()
}

/// Reads a mapping of anything and returns its JSON text; an empty mapping is an empty text.
fn json_mapping<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let mapping = Option::<serde_json::Map<String, serde_json::Value>>::deserialize(deserializer)?.unwrap_or_default();
    Ok(if mapping.is_empty() { String::new() } else { serde_json::Value::Object(mapping).to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        let config = parse("").unwrap();
        assert_eq!(config.timeouts.session_grace, Duration::from_secs(120));
        assert_eq!(config.limits.sessions, 1_000);
        assert_eq!(config.client, "");
        assert_eq!(config.authorization, Authorization::SubjectAccessReview, "safe unless somebody says otherwise");
    }

    #[test]
    fn every_section_is_read() {
        let config = parse(
            "log: {level: 'info,tp_manager=debug', format: text}\n\
             limits: {sessions: 3}\n\
             timeouts: {sessionGrace: 1m30s, dns: 500ms}\n\
             dialPolicy: {deny: [10.0.0.0/8], allow: ['10.1.2.3:5432', nodes]}\n\
             authorization: port-forward-only\n\
             engage: {inject: on-demand, mode: stand-in}\n\
             cluster: {domain: corp.local, serviceSubnets: [10.96.0.0/16], podSubnets: ['fd00::/64']}\n\
             client: {dns: {exclude: [corp.example]}, timeouts: {connect: 5s}}\n",
        )
        .unwrap();
        assert_eq!(config.log.format, LogFormat::Text);
        assert_eq!((config.limits.sessions, config.limits.agents), (3, 5_000));
        assert_eq!(config.timeouts.session_grace, Duration::from_secs(90));
        assert_eq!(config.timeouts.dns, Duration::from_millis(500));
        assert_eq!(config.dial_policy.allow.len(), 2);
        assert_eq!(config.authorization, Authorization::PortForwardOnly);
        assert!(config.engage.enabled);
        assert_eq!((config.engage.inject, config.engage.mode), (Inject::OnDemand, Mode::StandIn));
        assert_eq!(config.cluster.domain, "corp.local");
        assert_eq!(config.cluster.service_subnets, ["10.96.0.0/16".parse().unwrap()]);
        assert_eq!(config.client, r#"{"dns":{"exclude":["corp.example"]},"timeouts":{"connect":"5s"}}"#);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let message = parse("log:\n  level: info\nlimit:\n  sessions: 3\n").unwrap_err();
        assert!(message.contains("limit") && message.contains('3'), "{message}");
    }

    #[test]
    fn a_bad_rule_is_named() {
        let message = parse("dialPolicy:\n  deny:\n    - 10.0.0.1/8\n").unwrap_err();
        assert!(message.contains("10.0.0.1/8"), "{message}");
    }

    #[test]
    fn zero_limits_and_timeouts_are_refused() {
        assert!(parse("limits: {sessions: 0}").unwrap_err().contains("limits.sessions"));
        assert!(parse("timeouts: {dial: 0s}").is_err());
        assert!(parse("timeouts: {dial: fast}").unwrap_err().contains("fast"));
    }

    #[test]
    fn a_bad_log_level_is_refused() {
        assert!(parse("log: {level: 'tp=loudest'}").unwrap_err().contains("loudest"));
    }

    #[test]
    fn durations_are_read_as_kubernetes_writes_them() {
        assert_eq!(parse_duration("1h2m3s4ms"), Some(Duration::from_millis(3_723_004)));
        for text in ["", "5", "s", "5d", "-5s", "5 s", "99999999999s"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn a_pod_has_all_its_addresses() {
        let pod = pod(environment(&[
            ("POD_NAME", "tp-manager-0"),
            ("POD_NAMESPACE", "tp-system"),
            ("POD_IP", "10.244.0.9"),
            ("POD_IPS", "10.244.0.9,fd00::9"),
            ("NODE_IP", "172.18.0.2"),
        ]))
        .unwrap();
        assert_eq!(pod.addresses.len(), 2);
        assert_eq!(pod.node, Some("172.18.0.2".parse().unwrap()));
    }

    #[test]
    fn a_missing_variable_is_named() {
        let error = pod(environment(&[("POD_NAME", "tp-manager-0"), ("POD_IP", "10.244.0.9")])).unwrap_err();
        assert!(error.to_string().contains("POD_NAMESPACE"), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load(environment(&[(CONFIG_VARIABLE, "/nonexistent/manager.yaml")])).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/manager.yaml"), "{error}");
    }
}
