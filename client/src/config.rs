//! Settings: where each can come from, which source wins, and which one did.
//!
//! Weakest first: built-in defaults, the chart's client settings (known once connected), `config.yaml`, the `tp`
//! extension of the kubeconfig's cluster, `TP_*` variables, flags. All of them are [`Layer`]s with the same keys.

pub(crate) mod file;
pub(crate) mod network;
pub(crate) mod value;

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{CliError, Result};
use network::{DnsMapping, Vnat};
use value::{ConnectionName, Domain, HumanDuration, LogLevel, Namespace, Subnet};

/// Where the manager is installed unless a setting says otherwise.
pub(crate) const DEFAULT_MANAGER_NAMESPACE: &str = "tp-system";
/// The namespace of a kubeconfig context that names none, as with kubectl.
const DEFAULT_NAMESPACE: &str = "default";
/// How long a detached connection lives without traffic.
pub(crate) const DEFAULT_IDLE_LIMIT: HumanDuration = HumanDuration::from_secs(12 * 60 * 60);
/// How long connecting may take: long enough for a cluster far away, short enough to wait for.
pub(crate) const DEFAULT_CONNECT_TIMEOUT: HumanDuration = HumanDuration::from_secs(7);
/// The CLI that starts the user's own containers.
const DEFAULT_DOCKER: &str = "docker";

/// One source's settings. Keys are the fields' names in kebab-case; in variables, `TP_` and the name in capitals.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct Layer {
    /// Namespace of the manager.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) manager_namespace: Option<Namespace>,
    /// Namespace to connect to: its short service names resolve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<Namespace>,
    /// Name of the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<ConnectionName>,
    /// Docker networks that the daemon container joins, so that the containers there are neighbours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) networks: Option<Vec<String>>,
    /// Subnets that are reached through the cluster as well, such as those of its databases.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) also_proxy: Option<Vec<Subnet>>,
    /// Subnets that are never reached through the cluster; of two that overlap, the more specific one counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) never_proxy: Option<Vec<Subnet>>,
    /// Domains whose names the cluster's DNS resolves, beside the cluster's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dns_include: Option<Vec<Domain>>,
    /// Domains whose names the cluster's DNS is never asked for; the more specific one counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dns_exclude: Option<Vec<Domain>>,
    /// Names that stand for other names, or for addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dns_mappings: Option<Vec<DnsMapping>>,
    /// What is seen as virtual subnets: the subnets named, and what overlaps unless `none` is among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) vnat: Option<Vec<Vnat>>,
    /// Ends a detached connection that was idle for this long; zero: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) idle_limit: Option<HumanDuration>,
    /// How much the daemon logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) log_level: Option<LogLevel>,
    /// How long connecting may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) connect_timeout: Option<HumanDuration>,
    /// Name or path of the docker or podman CLI that starts the user's own containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) docker: Option<String>,
}

/// All keys of a [`Layer`].
pub(crate) const KEYS: [&str; 14] = [
    "manager-namespace",
    "namespace",
    "name",
    "networks",
    "also-proxy",
    "never-proxy",
    "dns-include",
    "dns-exclude",
    "dns-mappings",
    "vnat",
    "idle-limit",
    "log-level",
    "connect-timeout",
    "docker",
];

impl Layer {
    /// Reads the chart's client settings. A newer chart may know more keys than this release: those are skipped.
    ///
    /// # Errors
    /// When a known key has a value that it cannot have.
    pub(crate) fn from_chart(json: &str) -> std::result::Result<Self, serde_json::Error> {
        if json.is_empty() {
            return Ok(Self::default());
        }
        let mut keys: serde_json::Map<String, serde_json::Value> = serde_json::from_str(json)?;
        keys.retain(|key, _| KEYS.contains(&key.as_str()));
        serde_json::from_value(keys.into())
    }

    /// Reads the `TP_*` variables through `var`, which is `std::env::var` but in tests.
    pub(crate) fn from_env(var: impl Fn(&str) -> Option<String>) -> Result<Self> {
        fn parse<T: std::str::FromStr<Err = String>>(key: &str, value: Option<String>) -> Result<Option<T>> {
            let Some(value) = value else { return Ok(None) };
            value.parse().map(Some).map_err(|e| CliError::usage(format!("the variable {}: {e}", variable(key))))
        }
        fn list<T: std::str::FromStr<Err: fmt::Display>>(key: &str, value: Option<String>) -> Result<Option<Vec<T>>> {
            let Some(value) = value else { return Ok(None) };
            let items = value.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::parse);
            let items: std::result::Result<Vec<T>, T::Err> = items.collect();
            items.map(Some).map_err(|e| CliError::usage(format!("the variable {}: {e}", variable(key))))
        }
        let var = |key: &str| var(&variable(key)).filter(|value| !value.is_empty());
        Ok(Self {
            manager_namespace: parse("manager-namespace", var("manager-namespace"))?,
            namespace: parse("namespace", var("namespace"))?,
            name: parse("name", var("name"))?,
            networks: list("networks", var("networks"))?,
            also_proxy: list("also-proxy", var("also-proxy"))?,
            never_proxy: list("never-proxy", var("never-proxy"))?,
            dns_include: list("dns-include", var("dns-include"))?,
            dns_exclude: list("dns-exclude", var("dns-exclude"))?,
            dns_mappings: list("dns-mappings", var("dns-mappings"))?,
            vnat: list("vnat", var("vnat"))?,
            idle_limit: parse("idle-limit", var("idle-limit"))?,
            log_level: parse("log-level", var("log-level"))?,
            connect_timeout: parse("connect-timeout", var("connect-timeout"))?,
            docker: var("docker"),
        })
    }

    /// The settings of `self` where it has one, of `weaker` elsewhere.
    #[must_use]
    pub(crate) fn over(self, weaker: Self) -> Self {
        Self {
            manager_namespace: self.manager_namespace.or(weaker.manager_namespace),
            namespace: self.namespace.or(weaker.namespace),
            name: self.name.or(weaker.name),
            networks: self.networks.or(weaker.networks),
            also_proxy: self.also_proxy.or(weaker.also_proxy),
            never_proxy: self.never_proxy.or(weaker.never_proxy),
            dns_include: self.dns_include.or(weaker.dns_include),
            dns_exclude: self.dns_exclude.or(weaker.dns_exclude),
            dns_mappings: self.dns_mappings.or(weaker.dns_mappings),
            vnat: self.vnat.or(weaker.vnat),
            idle_limit: self.idle_limit.or(weaker.idle_limit),
            log_level: self.log_level.or(weaker.log_level),
            connect_timeout: self.connect_timeout.or(weaker.connect_timeout),
            docker: self.docker.or(weaker.docker),
        }
    }
}

/// The variable that sets `key`.
pub(crate) fn variable(key: &str) -> String {
    format!("TP_{}", key.to_uppercase().replace('-', "_"))
}

/// Where a setting came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Built in.
    Default,
    /// The kubeconfig context (its namespace, or its name made a connection's).
    Context(String),
    /// The chart's client settings, as the manager of this connection sent them.
    Chart(String),
    /// `config.yaml`.
    File(PathBuf),
    /// The `tp` extension of a cluster in a kubeconfig.
    Kubeconfig(PathBuf),
    /// A `TP_*` variable.
    Env,
    /// A flag.
    Flag,
}

impl Source {
    /// The source as `tp config view` shows it for `key`.
    pub(crate) fn describe(&self, key: &str) -> String {
        match self {
            Self::Default => "default".to_owned(),
            Self::Context(context) => format!("context {context}"),
            Self::Chart(connection) => format!("chart, through connection {connection}"),
            Self::File(path) => path.display().to_string(),
            Self::Kubeconfig(path) => format!("{}, cluster extension tp", path.display()),
            Self::Env => variable(key),
            Self::Flag => format!("--{key}"),
        }
    }
}

/// A setting and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sourced<T> {
    /// The value.
    pub(crate) value: T,
    /// The strongest source that has one.
    pub(crate) source: Source,
}

impl<T: fmt::Display> fmt::Display for Sourced<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

/// The sources, weakest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources {
    layers: Vec<(Source, Layer)>,
}

impl Sources {
    /// Adds a source that beats all that were added before.
    pub(crate) fn push(&mut self, source: Source, layer: Layer) {
        self.layers.push((source, layer));
    }

    /// Adds sources that beat all that were added before.
    pub(crate) fn extend(&mut self, stronger: Self) {
        self.layers.extend(stronger.layers);
    }

    /// What the user set, by whatever means: all but what the kubeconfig's context implies.
    pub(crate) fn user_layer(&self) -> Layer {
        let user = self.layers.iter().filter(|(source, _)| {
            matches!(source, Source::File(_) | Source::Kubeconfig(_) | Source::Env | Source::Flag)
        });
        user.fold(Layer::default(), |weaker, (_, layer)| layer.clone().over(weaker))
    }

    fn strongest<T>(&self, default: T, get: impl Fn(&Layer) -> Option<T>) -> Sourced<T> {
        let found = self.layers.iter().rev().find_map(|(source, layer)| Some((source, get(layer)?)));
        match found {
            Some((source, value)) => Sourced { value, source: source.clone() },
            None => Sourced { value: default, source: Source::Default },
        }
    }

    /// The settings in force.
    pub(crate) fn settings(&self) -> Settings {
        let namespace = |name: &str| name.parse::<Namespace>().expect("built-in namespaces are valid");
        Settings {
            manager_namespace: self.strongest(namespace(DEFAULT_MANAGER_NAMESPACE), |l| l.manager_namespace.clone()),
            namespace: self.strongest(namespace(DEFAULT_NAMESPACE), |l| l.namespace.clone()),
            name: self.strongest(ConnectionName::from_text(""), |l| l.name.clone()),
            networks: self.strongest(Vec::new(), |l| l.networks.clone()),
            also_proxy: self.strongest(Vec::new(), |l| l.also_proxy.clone()),
            never_proxy: self.strongest(Vec::new(), |l| l.never_proxy.clone()),
            dns_include: self.strongest(Vec::new(), |l| l.dns_include.clone()),
            dns_exclude: self.strongest(Vec::new(), |l| l.dns_exclude.clone()),
            dns_mappings: self.strongest(Vec::new(), |l| l.dns_mappings.clone()),
            vnat: self.strongest(Vec::new(), |l| l.vnat.clone()),
            idle_limit: self.strongest(DEFAULT_IDLE_LIMIT, |l| l.idle_limit),
            log_level: self.strongest(LogLevel::Info, |l| l.log_level),
            connect_timeout: self.strongest(DEFAULT_CONNECT_TIMEOUT, |l| l.connect_timeout),
            docker: self.strongest(DEFAULT_DOCKER.to_owned(), |l| l.docker.clone()),
        }
    }
}

/// The settings in force, each with its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Namespace of the manager.
    pub(crate) manager_namespace: Sourced<Namespace>,
    /// Namespace to connect to.
    pub(crate) namespace: Sourced<Namespace>,
    /// Name of the connection.
    pub(crate) name: Sourced<ConnectionName>,
    /// Docker networks that the daemon container joins.
    pub(crate) networks: Sourced<Vec<String>>,
    /// Subnets that are reached through the cluster as well.
    pub(crate) also_proxy: Sourced<Vec<Subnet>>,
    /// Subnets that are never reached through the cluster.
    pub(crate) never_proxy: Sourced<Vec<Subnet>>,
    /// Domains whose names the cluster's DNS resolves.
    pub(crate) dns_include: Sourced<Vec<Domain>>,
    /// Domains whose names the cluster's DNS is never asked for.
    pub(crate) dns_exclude: Sourced<Vec<Domain>>,
    /// Names that stand for other names, or for addresses.
    pub(crate) dns_mappings: Sourced<Vec<DnsMapping>>,
    /// What is seen as virtual subnets.
    pub(crate) vnat: Sourced<Vec<Vnat>>,
    /// Ends a detached connection that was idle for this long; zero: never.
    pub(crate) idle_limit: Sourced<HumanDuration>,
    /// How much the daemon logs.
    pub(crate) log_level: Sourced<LogLevel>,
    /// How long connecting may take.
    pub(crate) connect_timeout: Sourced<HumanDuration>,
    /// Name or path of the docker or podman CLI.
    pub(crate) docker: Sourced<String>,
}

impl Settings {
    /// Every setting as key, JSON value and source, in a fixed order.
    pub(crate) fn entries(&self) -> Vec<(&'static str, serde_json::Value, String)> {
        fn entry<T: Serialize>(key: &'static str, setting: &Sourced<T>) -> (&'static str, serde_json::Value, String) {
            let value = serde_json::to_value(&setting.value).expect("settings are plain values");
            (key, value, setting.source.describe(key))
        }
        vec![
            entry("manager-namespace", &self.manager_namespace),
            entry("namespace", &self.namespace),
            entry("name", &self.name),
            entry("networks", &self.networks),
            entry("also-proxy", &self.also_proxy),
            entry("never-proxy", &self.never_proxy),
            entry("dns-include", &self.dns_include),
            entry("dns-exclude", &self.dns_exclude),
            entry("dns-mappings", &self.dns_mappings),
            entry("vnat", &self.vnat),
            entry("idle-limit", &self.idle_limit),
            entry("log-level", &self.log_level),
            entry("connect-timeout", &self.connect_timeout),
            entry("docker", &self.docker),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(namespace: &str) -> Layer {
        Layer { namespace: Some(namespace.parse().unwrap()), ..Layer::default() }
    }

    #[test]
    fn stronger_source_wins_and_is_remembered() {
        let mut sources = Sources::default();
        assert_eq!(sources.settings().namespace.source, Source::Default);
        for (source, name) in [
            (Source::Context("c".into()), "context"),
            (Source::Chart("c".into()), "chart"),
            (Source::File("/c.yaml".into()), "file"),
            (Source::Kubeconfig("/k".into()), "kube"),
            (Source::Env, "env"),
            (Source::Flag, "flag"),
        ] {
            sources.push(source.clone(), layer(name));
            let namespace = sources.settings().namespace;
            assert_eq!((namespace.value.as_str(), namespace.source), (name, source));
        }
        sources.push(Source::Flag, Layer::default());
        assert_eq!(sources.settings().namespace.value.as_str(), "flag");
    }

    #[test]
    fn user_layer_leaves_out_what_the_user_did_not_say() {
        let mut sources = Sources::default();
        sources.push(Source::Context("c".into()), layer("context"));
        sources.push(
            Source::Chart("c".into()),
            Layer { idle_limit: Some(HumanDuration::from_secs(1)), ..Layer::default() },
        );
        sources.push(Source::Env, Layer { log_level: Some(LogLevel::Debug), ..Layer::default() });
        let expected = Layer { log_level: Some(LogLevel::Debug), ..Layer::default() };
        assert_eq!(sources.user_layer(), expected);
        assert_eq!(serde_json::to_string(&expected).unwrap(), r#"{"log-level":"debug"}"#);
    }

    #[test]
    fn variables_are_read_and_blamed_by_name() {
        let vars = |name: &str| match name {
            "TP_NETWORKS" => Some("a, b,,".to_owned()),
            "TP_IDLE_LIMIT" => Some("90m".to_owned()),
            "TP_ALSO_PROXY" => Some("10.9.0.0/16, 10.8.0.1".to_owned()),
            "TP_NAMESPACE" => Some(String::new()),
            _ => None,
        };
        let layer = Layer::from_env(vars).unwrap();
        assert_eq!(layer.networks, Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(layer.idle_limit, Some(HumanDuration::from_secs(5400)));
        assert_eq!(layer.namespace, None);
        assert_eq!(
            layer.also_proxy.unwrap().iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.9.0.0/16", "10.8.0.1/32"]
        );

        let error = Layer::from_env(|name| (name == "TP_IDLE_LIMIT").then(|| "soon".to_owned())).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.message().contains("TP_IDLE_LIMIT"), "{error}");
    }

    #[test]
    fn newer_charts_keys_are_skipped_but_known_ones_are_checked() {
        let layer = Layer::from_chart(r#"{"idle-limit":"1h","dns":{"include":["x"]}}"#).unwrap();
        assert_eq!(layer.idle_limit, Some(HumanDuration::from_secs(3600)));
        assert_eq!(Layer::from_chart("").unwrap(), Layer::default());
        assert!(Layer::from_chart(r#"{"idle-limit":"soon"}"#).is_err());
    }

    #[test]
    fn every_key_is_listed() {
        let keys: Vec<_> = Sources::default().settings().entries().into_iter().map(|(key, ..)| key).collect();
        assert_eq!(keys, KEYS);
    }
}
