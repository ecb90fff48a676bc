//! What a command line asks for: groups of flags, of which each command has those that mean something there.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use tp_protocol::engage::MAX_WAIT;
use tp_protocol::engage::call::{self, AskedPort, Engage};
use tp_protocol::engage::filter::Filter;
use tp_protocol::engage::wire::{self, FilterMessage, Kind, Transport};

use super::filter::FilterArgs;
use super::port::{PodPort, PortSpec};
use crate::cli::environment::EnvironmentArgs;
use crate::cli::output::Format;
use crate::cli::select::UseArgs;
use crate::cli::setup::VerbosityArgs;
use crate::config::value::{HumanDuration, Namespace};
use crate::error::{CliError, Result};

/// Flags of all commands that engage a workload.
#[derive(clap::Args, Debug)]
pub(in crate::cli) struct EngageArgs {
    /// The workload: a name, or KIND/NAME when the namespace has several of that name
    #[arg(value_name = "WORKLOAD", value_parser = NonEmptyStringValueParser::new())]
    pub(super) workload: String,
    /// Find the workload in this namespace [default: the connection's]
    #[arg(short, long, value_name = "NAMESPACE")]
    pub(super) namespace: Option<Namespace>,
    /// Engage this container of the workload, when it has several
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    container: Option<String>,
    /// Where the agent runs [default: the traffic manager's: auto, unless the chart's value engage.mode says otherwise]
    #[arg(long, value_name = "MODE")]
    mode: Option<Mode>,
    /// Give up when it is not in force after this time
    #[arg(long, value_name = "DURATION", default_value = "2m")]
    pub(super) timeout: HumanDuration,
    /// Reach this TCP port of the pod's localhost on the localhost of the connection's containers, where the pod's other
    /// containers serve it. Can be given several times
    #[arg(long, value_name = "PORT")]
    to_pod: Vec<PodPort>,
    #[command(flatten)]
    pub(super) connection: UseArgs,
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "text", conflicts_with = "image")]
    pub(super) output: Format,
    #[command(flatten)]
    pub(super) environment: EnvironmentArgs,
    #[command(flatten)]
    pub(super) handler: HandlerArgs,
    #[command(flatten)]
    pub(super) verbosity: VerbosityArgs,
}

/// Flags of the commands that take traffic.
#[derive(clap::Args, Debug)]
pub(in crate::cli) struct TrafficArgs {
    /// Where the handler listens, and for which port of the workload: LOCAL:REMOTE, with /udp behind it for UDP. REMOTE is
    /// the number or name of a port of the Service or the container, and can be left out when there is only one [default:
    /// the only port, and the same number]
    #[arg(short, long = "port", value_name = "LOCAL:REMOTE")]
    ports: Vec<PortSpec>,
    /// Reach the handler at this address, as containers of the connection see it
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
    /// Engage the traffic of this Service, when several select the workload
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    service: Option<String>,
    /// Take over from a holder whose session is gone
    #[arg(long)]
    replace_held: bool,
}

/// Flags of the commands whose handler answers.
#[derive(clap::Args, Debug)]
pub(in crate::cli) struct AwayArgs {
    /// What callers get while the handler is away [default: cluster, and fail for `tp replace`]
    #[arg(long, value_name = "WHAT")]
    when_away: Option<WhenAway>,
    /// How long a caller waits for a handler that is away before that happens, 60s at most
    #[arg(long, value_name = "DURATION", default_value = DEFAULT_WAIT)]
    wait: HumanDuration,
}

/// How long a caller waits for a handler, unless it is said.
const DEFAULT_WAIT: &str = "2s";

/// A container to run as the handler, and how to connect for it.
#[derive(clap::Args, Clone, Debug, Default)]
pub(in crate::cli) struct HandlerArgs {
    /// Run a container as the handler, as `tp docker-run` does: docker's options, the image and its arguments. It has the
    /// workload's environment and working directory, and the engagement ends with it. Connects if nothing is connected
    #[arg(last = true, value_name = "IMAGE")]
    pub(super) image: Vec<OsString>,
    /// Connect with this kubeconfig instead of those that KUBECONFIG lists, or ~/.kube/config
    #[arg(long, value_name = "FILE", requires = "image", help_heading = HANDLER)]
    pub(super) kubeconfig: Option<PathBuf>,
    /// Connect to this context of the kubeconfig instead of the current one (also TP_CONTEXT)
    #[arg(long, value_name = "NAME", requires = "image", help_heading = HANDLER)]
    pub(super) context: Option<String>,
    /// Find the traffic manager in this namespace [default: tp-system]
    #[arg(long, value_name = "NAMESPACE", requires = "image", help_heading = HANDLER)]
    pub(super) manager_namespace: Option<Namespace>,
    /// Run this docker or podman CLI [default: docker]
    #[arg(long, value_name = "PROGRAM", requires = "image", help_heading = HANDLER)]
    pub(super) docker: Option<String>,
    /// Read settings from this file instead of the usual config.yaml (also TP_CONFIG)
    #[arg(long, value_name = "FILE", requires = "image", help_heading = HANDLER)]
    pub(super) config: Option<PathBuf>,
}

const HANDLER: &str = "Options for an image behind --";

/// What happens to a request whose handler is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum WhenAway {
    /// The cluster's pods answer
    Cluster,
    /// Callers are refused, as if nothing listened
    Fail,
    /// Callers wait until the handler is back
    Hold,
}

/// Where the agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    /// The agents that the workload's pods have already, else a pod of its own: nothing is restarted
    Auto,
    /// In a pod of its own, which gets the Service's traffic where some is engaged
    StandIn,
    /// In the workload's pods, as a container beside theirs; pods without one are restarted, by the workload's own rollout
    Sidecar,
}

/// What is asked for, by whichever command. Groups of flags that a command does not have are absent.
#[derive(Debug)]
pub(in crate::cli) struct Wish {
    /// What happens to the traffic.
    pub(in crate::cli) kind: Kind,
    /// What is engaged.
    pub(in crate::cli) engage: EngageArgs,
    /// Which ports.
    pub(in crate::cli) traffic: Option<TrafficArgs>,
    /// Which requests.
    pub(in crate::cli) filter: Option<FilterArgs>,
    /// What happens without a handler.
    pub(in crate::cli) away: Option<AwayArgs>,
}

impl Wish {
    /// What to ask the manager for.
    ///
    /// # Errors
    /// Usage errors: flags that do not go together.
    pub(super) fn to_message(&self, connected_namespace: &str, holder: String) -> Result<Engage> {
        let engage = &self.engage;
        engage.environment.check(engage.has_image())?;
        if engage.output == Format::Json && engage.environment.takes_stdout() {
            return Err(CliError::usage("standard output cannot be the environment and the report at once")
                .hint("write the environment to a file"));
        }
        let filter = self.filter.as_ref().map_or_else(|| Ok(Filter::default()), FilterArgs::filter)?;
        let (when_away, wait_ms) = self.when_away()?;
        Ok(Engage {
            namespace: engage.namespace.as_ref().map_or(connected_namespace, Namespace::as_str).to_owned(),
            workload: engage.workload.clone(),
            container: engage.container.clone().unwrap_or_default(),
            service: self.traffic.as_ref().and_then(|traffic| traffic.service.clone()).unwrap_or_default(),
            ports: self.traffic.as_ref().map_or_else(|| Ok(Vec::new()), |it| it.asked_ports(self.kind, &filter))?,
            what: self.kind.into(),
            filter: (!filter.is_empty()).then(|| FilterMessage::from(&filter)),
            when_away: when_away.into(),
            wait_ms,
            mode: engage.mode.map_or(call::Mode::Unspecified, Mode::to_wire).into(),
            holder,
            replace_held: self.traffic.as_ref().is_some_and(|traffic| traffic.replace_held),
            limit_ms: self.limit().as_millis().try_into().unwrap_or(u32::MAX),
            to_pod: engage.to_pod.iter().map(|port| port.to_wire()).collect(),
        })
    }

    fn when_away(&self) -> Result<(wire::WhenAway, u32)> {
        let Some(away) = &self.away else {
            // Nobody notices that the handler is away.
            return Ok((wire::WhenAway::Cluster, 0));
        };
        if away.wait.as_duration() > MAX_WAIT {
            let max = HumanDuration(MAX_WAIT);
            return Err(CliError::usage(format!("--wait {} is longer than {max}", away.wait))
                .hint("`--when-away hold` has callers wait for longer"));
        }
        let wait_ms = away.wait.as_duration().as_millis().try_into().unwrap_or(u32::MAX);
        let usual = if self.kind == Kind::Replace { WhenAway::Fail } else { WhenAway::Cluster };
        Ok((away.when_away.unwrap_or(usual).to_wire(), wait_ms))
    }
}

impl TrafficArgs {
    fn asked_ports(&self, kind: Kind, filter: &Filter) -> Result<Vec<AskedPort>> {
        if !filter.is_empty() && self.ports.iter().any(|port| port.transport == Transport::Udp) {
            return Err(CliError::usage("a UDP port carries no requests that a filter could be about")
                .hint("engage it by a command of its own, without a filter"));
        }
        for transport in [Transport::Tcp, Transport::Udp] {
            let ports: Vec<_> = self.ports.iter().filter(|port| port.transport == transport).collect();
            if ports.len() > 1
                && let Some(port) = ports.iter().find(|port| port.remote.is_empty())
            {
                return Err(CliError::usage(format!(
                    "--port {port} does not say which port of the workload it is for"
                ))
                .hint(format!("write --port {}:REMOTE, with the port's number or name", port.local)));
            }
        }
        let local = |port| SocketAddr::new(self.address, port).to_string();
        match (self.ports.is_empty(), kind) {
            // All of the container's, each at its own number.
            (true, Kind::Replace) if self.address == Ipv4Addr::LOCALHOST => Ok(Vec::new()),
            (true, Kind::Replace) => Err(CliError::usage(format!(
                "--address {} does not say which ports of the handler are meant",
                self.address
            ))
            .hint("name them with --port")),
            // With port 0, the port's own number.
            (true, _) => {
                Ok(vec![AskedPort { remote: String::new(), transport: Transport::Tcp.into(), local: local(0) }])
            }
            (false, _) => Ok(self
                .ports
                .iter()
                .map(|port| AskedPort {
                    remote: port.remote.clone(),
                    transport: port.transport.into(),
                    local: local(port.local),
                })
                .collect()),
        }
    }
}

impl EngageArgs {
    /// Whether to show what caused an error.
    pub(in crate::cli) fn verbose(&self) -> bool {
        self.verbosity.verbose
    }

    /// Whether a handler is to be run.
    pub(in crate::cli) fn has_image(&self) -> bool {
        !self.handler.image.is_empty()
    }
}

impl WhenAway {
    fn to_wire(self) -> wire::WhenAway {
        match self {
            Self::Cluster => wire::WhenAway::Cluster,
            Self::Fail => wire::WhenAway::Fail,
            Self::Hold => wire::WhenAway::Hold,
        }
    }
}

impl Mode {
    fn to_wire(self) -> call::Mode {
        match self {
            Self::Auto => call::Mode::Auto,
            Self::StandIn => call::Mode::StandIn,
            Self::Sidecar => call::Mode::Sidecar,
        }
    }
}
