//! The agent's configuration: environment variables, which whoever puts the agent into a pod sets.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use tp_protocol::open::Transport;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{ParseError, Targets};

use crate::engine::AppProtocol;

/// What the agent has to know.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `TP_AGENT_MANAGER`: where the manager's agents' port is.
    pub manager: ManagerAddress,
    /// `TP_AGENT_CA_FILE`: who may sign the manager's certificate.
    pub ca_file: PathBuf,
    /// `TP_AGENT_TOKEN_FILE`: the projected service account token.
    pub token_file: PathBuf,
    /// `TP_AGENT_POD`.
    pub pod: String,
    /// `TP_AGENT_NAMESPACE`.
    pub namespace: String,
    /// `TP_AGENT_CONTAINER`: the container whose environment the agent has; empty for none.
    pub container: String,
    /// `TP_AGENT_PORTS`, separated by commas, with `TP_AGENT_POD_IP`: what the agent takes from the app of its own pod. None where
    /// it stands in for other pods.
    pub own_ports: Vec<OwnPort>,
    /// `TP_AGENT_HEALTH_PORT`: port of the probe.
    pub health_port: u16,
    /// `TP_AGENT_LOG_LEVEL`: level, or levels per module (`info,tp_agent::manager=debug`).
    pub log_filter: Targets,
    /// `TP_AGENT_LOG_FORMAT`: `json` or `text`.
    pub log_format: LogFormat,
}

/// A port of the app in the agent's own pod: `LISTEN:PORT/TRANSPORT/PROTOCOL`, as in `7491:8080/tcp/http`. `TRANSPORT` is `tcp`
/// or `udp`, `PROTOCOL` is `unknown`, `http` or `opaque`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnPort {
    /// Where the agent listens.
    pub listen: u16,
    /// Where the app listens. Not on the loopback, for what comes from there may be what the app trusts.
    pub app: SocketAddr,
    /// TCP or UDP.
    pub transport: Transport,
    /// What the app speaks there.
    pub protocol: AppProtocol,
}

/// A name and a port. Not an address: the manager's certificate is for its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagerAddress {
    /// Name, as in `tp-manager.tp-system.svc`.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// Shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

/// A variable that is missing or malformed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the environment variable {name} is {problem}")]
pub struct ConfigError {
    name: &'static str,
    problem: String,
}

const DEFAULT_MANAGER: &str = "tp-manager.tp-system.svc:7443";
const DEFAULT_CA_FILE: &str = "/etc/tp/ca/ca.crt";
const DEFAULT_TOKEN_FILE: &str = "/var/run/secrets/tp/token";
const DEFAULT_HEALTH_PORT: &str = "7490";

impl Config {
    /// Reads the variables through `variable`.
    ///
    /// # Errors
    /// [`ConfigError`] names the variable.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let given = |name: &str| variable(name).filter(|value| !value.is_empty());
        let or = |name: &str, default: &str| given(name).unwrap_or_else(|| default.to_owned());
        let required = |name: &'static str| {
            given(name).ok_or_else(|| ConfigError { name, problem: "not set; the pod's downward API knows it".into() })
        };
        let invalid = |name: &'static str, value: &str, expected: &str| ConfigError {
            name,
            problem: format!("`{value}`, which is not {expected}"),
        };
        let manager = or("TP_AGENT_MANAGER", DEFAULT_MANAGER);
        let health_port = or("TP_AGENT_HEALTH_PORT", DEFAULT_HEALTH_PORT);
        let own_ports = or("TP_AGENT_PORTS", "");
        let log_level = or("TP_AGENT_LOG_LEVEL", "info");
        let log_format = or("TP_AGENT_LOG_FORMAT", "json");
        let log_filter =
            log_filter(&log_level).map_err(|_| invalid("TP_AGENT_LOG_LEVEL", &log_level, "a log level"))?;
        Ok(Self {
            manager: parse_address(&manager)
                .ok_or_else(|| invalid("TP_AGENT_MANAGER", &manager, "a name with a port"))?,
            ca_file: or("TP_AGENT_CA_FILE", DEFAULT_CA_FILE).into(),
            token_file: or("TP_AGENT_TOKEN_FILE", DEFAULT_TOKEN_FILE).into(),
            pod: required("TP_AGENT_POD")?,
            namespace: required("TP_AGENT_NAMESPACE")?,
            container: or("TP_AGENT_CONTAINER", ""),
            own_ports: match own_ports.as_str() {
                "" => Vec::new(),
                list => {
                    let text = required("TP_AGENT_POD_IP")?;
                    let pod: IpAddr = text.parse().map_err(|_| invalid("TP_AGENT_POD_IP", &text, "an address"))?;
                    let ports: Option<Vec<_>> = list.split(',').map(|port| parse_own_port(port, pod)).collect();
                    ports.ok_or_else(|| invalid("TP_AGENT_PORTS", list, "a list of LISTEN:PORT/TRANSPORT/PROTOCOL"))?
                }
            },
            health_port: health_port.parse().map_err(|_| invalid("TP_AGENT_HEALTH_PORT", &health_port, "a port"))?,
            log_format: match &*log_format {
                "json" => LogFormat::Json,
                "text" => LogFormat::Text,
                other => return Err(invalid("TP_AGENT_LOG_FORMAT", other, "json or text")),
            },
            log_filter,
        })
    }
}

/// Reads a level, or levels per module. A level alone is that of tp's own modules: libraries stay at `info`, as what
/// they say below it (each HTTP/2 frame, for example) helps only those who ask for them by name.
fn log_filter(level: &str) -> Result<Targets, ParseError> {
    let asked: Targets = level.parse()?;
    let default = asked.default_level().unwrap_or(LevelFilter::INFO);
    let libraries = default.min(LevelFilter::INFO);
    Ok(Targets::new().with_target("tp_", default).with_targets(asked).with_default(libraries))
}

fn parse_address(text: &str) -> Option<ManagerAddress> {
    let (host, port) = text.rsplit_once(':')?;
    let is_name = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
    let is_address = host.parse::<std::net::IpAddr>().is_ok();
    let port = port.parse().ok().filter(|&port| port != 0)?;
    (is_name && !is_address && !host.is_empty()).then(|| ManagerAddress { host: host.to_owned(), port })
}

fn parse_own_port(text: &str, pod: IpAddr) -> Option<OwnPort> {
    let port = |text: &str| text.parse().ok().filter(|&port: &u16| port != 0);
    let mut fields = text.splitn(3, '/');
    let (listen, app) = fields.next()?.split_once(':')?;
    Some(OwnPort {
        listen: port(listen)?,
        app: SocketAddr::new(pod, port(app)?),
        transport: match fields.next()? {
            "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            _ => return None,
        },
        protocol: match fields.next()? {
            "unknown" => AppProtocol::Unknown,
            "http" => AppProtocol::Http,
            "opaque" => AppProtocol::Opaque,
            _ => return None,
        },
    })
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let pod = [("TP_AGENT_POD", "web-1"), ("TP_AGENT_NAMESPACE", "shop")];
        Config::from_environment(|name| {
            pairs.iter().chain(&pod).find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_pod_that_only_knows_itself_gets_the_defaults() {
        let config = read(&[]).unwrap();
        assert_eq!((&*config.manager.host, config.manager.port), ("tp-manager.tp-system.svc", 7443));
        assert_eq!(config.ca_file.to_str(), Some("/etc/tp/ca/ca.crt"));
        assert_eq!((&*config.namespace, &*config.pod, config.health_port), ("shop", "web-1", 7490));
    }

    #[test]
    fn variables_replace_the_defaults_and_empty_ones_do_not() {
        let config = read(&[
            ("TP_AGENT_MANAGER", "tp-manager.dev.svc:1"),
            ("TP_AGENT_LOG_FORMAT", "text"),
            ("TP_AGENT_LOG_LEVEL", ""),
        ]);
        let config = config.unwrap();
        assert_eq!((&*config.manager.host, config.manager.port), ("tp-manager.dev.svc", 1));
        assert_eq!((config.log_format, config.log_filter), (LogFormat::Text, log_filter("info").unwrap()));
    }

    #[test]
    fn a_level_alone_is_that_of_our_own_modules() {
        let filter = log_filter("debug,rustls=trace").unwrap();
        assert!(filter.would_enable("tp_agent::manager", &Level::DEBUG) && !filter.would_enable("h2", &Level::DEBUG));
        assert!(filter.would_enable("h2", &Level::INFO) && filter.would_enable("rustls", &Level::TRACE));
    }

    #[test]
    fn ports_of_the_pods_own_app_are_at_the_pods_address() {
        let ip = ("TP_AGENT_POD_IP", "fd00::1");
        let config = read(&[ip, ("TP_AGENT_PORTS", "7491:8080/tcp/http,7492:53/udp/opaque")]).unwrap();
        let expected = [("[fd00::1]:8080", 7491, AppProtocol::Http), ("[fd00::1]:53", 7492, AppProtocol::Opaque)];
        let ports: Vec<_> =
            config.own_ports.iter().map(|port| (port.app.to_string(), port.listen, port.protocol)).collect();
        assert_eq!(ports, expected.map(|(app, listen, protocol)| (app.to_owned(), listen, protocol)));
        for list in
            ["8080", "7491:8080", "7491:8080/tcp", "0:80/tcp/http", "1:80/sctp/http", "1:80/tcp/x", "1:80/tcp/http,"]
        {
            assert!(read(&[ip, ("TP_AGENT_PORTS", list)]).is_err(), "{list}");
        }
        let error = read(&[("TP_AGENT_PORTS", "7491:8080/tcp/http")]).unwrap_err();
        assert!(error.to_string().contains("TP_AGENT_POD_IP"), "{error}");
    }

    #[test]
    fn what_is_malformed_is_named() {
        for (name, value) in [
            ("TP_AGENT_MANAGER", "tp-manager"),
            ("TP_AGENT_MANAGER", "10.0.0.1:7443"),
            ("TP_AGENT_MANAGER", ":7443"),
            ("TP_AGENT_MANAGER", "tp-manager:0"),
            ("TP_AGENT_HEALTH_PORT", "x"),
            ("TP_AGENT_LOG_LEVEL", "a=b=c"),
            ("TP_AGENT_LOG_FORMAT", "xml"),
            ("TP_AGENT_POD", ""),
        ] {
            let error = read(&[(name, value)]).unwrap_err();
            assert!(error.to_string().contains(name), "{name}={value}: {error}");
        }
    }
}
