//! What `tp intercept` and `tp wiretap` share, and how commands ask the traffic manager about engagements.

pub(super) mod ask;
mod filter;
mod holder;
mod port;
pub(super) mod report;
mod text;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use tp_protocol::engage::MAX_WAIT;
use tp_protocol::engage::call::{self, AskedPort, Engage, answer};
use tp_protocol::engage::wire::{FilterMessage, Kind, Transport};

use self::ask::Chosen;
use self::filter::FilterArgs;
use self::port::PortSpec;
use self::report::EngagementReport;
use super::output::{Format, print, print_json};
use super::select::UseArgs;
use super::setup::VerbosityArgs;
use super::signals::Signals;
use crate::config::value::{HumanDuration, Namespace};
use crate::error::{CliError, Result};
use crate::progress::Progress;

/// How long the manager may take to tell, or to end an engagement.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// Flags of the commands that engage a workload.
#[derive(clap::Args, Debug)]
pub(super) struct EngageArgs {
    /// The workload: a name, or KIND/NAME when the namespace has several of that name
    #[arg(value_name = "WORKLOAD", value_parser = NonEmptyStringValueParser::new())]
    workload: String,
    /// Where the handler listens, and for which port of the workload: LOCAL:REMOTE, with /udp behind it for UDP. REMOTE is
    /// the number or name of a port of the Service or the container, and can be left out when there is only one [default:
    /// the only port, and the same number]
    #[arg(short, long = "port", value_name = "LOCAL:REMOTE")]
    ports: Vec<PortSpec>,
    /// Reach the handler at this address, as containers of the connection see it
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    address: IpAddr,
    /// Find the workload in this namespace [default: the connection's]
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<Namespace>,
    /// Engage the traffic of this Service, when several select the workload
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    service: Option<String>,
    /// Engage the ports of this container of the workload
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    container: Option<String>,
    #[command(flatten)]
    filter: FilterArgs,
    /// What callers get while the handler is away; they never notice that a wiretap's is
    #[arg(long, value_name = "WHAT", default_value = "cluster")]
    when_away: WhenAway,
    /// How long a caller waits for a handler that is away before that happens, 60s at most
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    wait: HumanDuration,
    /// How the traffic is taken
    #[arg(long, value_name = "MODE", default_value = "auto")]
    mode: Mode,
    /// Take over from a holder whose session is gone
    #[arg(long)]
    replace_held: bool,
    /// Give up when traffic does not arrive after this time
    #[arg(long, value_name = "DURATION", default_value = "2m")]
    timeout: HumanDuration,
    #[command(flatten)]
    connection: UseArgs,
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Format,
    #[command(flatten)]
    verbosity: VerbosityArgs,
}

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

/// How the traffic is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    /// The traffic manager's choice: the one that restarts nothing
    Auto,
    /// A pod of its own takes the place of the workload's pods in the Service
    StandIn,
    /// A container in the workload's pods
    Sidecar,
}

impl EngageArgs {
    pub(super) fn verbose(&self) -> bool {
        self.verbosity.verbose
    }

    /// What to ask the manager for.
    ///
    /// # Errors
    /// Usage errors: flags that do not go together.
    fn to_message(&self, kind: Kind, connected_namespace: &str, holder: String) -> Result<Engage> {
        let filter = self.filter.filter()?;
        if self.wait.as_duration() > MAX_WAIT {
            let max = HumanDuration(MAX_WAIT);
            return Err(CliError::usage(format!("--wait {} is longer than {max}", self.wait))
                .hint("`--when-away hold` has callers wait for longer"));
        }
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
        Ok(Engage {
            namespace: self.namespace.as_ref().map_or(connected_namespace, Namespace::as_str).to_owned(),
            workload: self.workload.clone(),
            container: self.container.clone().unwrap_or_default(),
            service: self.service.clone().unwrap_or_default(),
            ports: self.asked_ports(),
            what: kind.into(),
            filter: (!filter.is_empty()).then(|| FilterMessage::from(&filter)),
            when_away: self.when_away.to_wire().into(),
            wait_ms: self.wait.as_duration().as_millis().try_into().unwrap_or(u32::MAX),
            mode: self.mode.to_wire().into(),
            holder,
            replace_held: self.replace_held,
        })
    }

    fn asked_ports(&self) -> Vec<AskedPort> {
        let local = |port| SocketAddr::new(self.address, port).to_string();
        if self.ports.is_empty() {
            // With port 0, the port's own number.
            return vec![AskedPort { remote: String::new(), transport: Transport::Tcp.into(), local: local(0) }];
        }
        let asked = self.ports.iter().map(|port| AskedPort {
            remote: port.remote.clone(),
            transport: port.transport.into(),
            local: local(port.local),
        });
        asked.collect()
    }
}

impl WhenAway {
    fn to_wire(self) -> tp_protocol::engage::wire::WhenAway {
        use tp_protocol::engage::wire::WhenAway as Wire;
        match self {
            Self::Cluster => Wire::Cluster,
            Self::Fail => Wire::Fail,
            Self::Hold => Wire::Hold,
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

/// Engages a workload, and says what that means.
pub(super) async fn run(kind: Kind, args: EngageArgs) -> Result<u8> {
    let mut signals = Signals::catch();
    // What is wrong with the flags alone is known before anything is asked.
    args.to_message(kind, "", String::new())?;
    let limit = args.timeout.as_duration();
    let progress = Progress::start(Some(limit));
    let mut chosen = signals.or(Chosen::choose(&args.connection, &progress)).await?;
    let engage = args.to_message(kind, &chosen.connection.namespace, holder::this())?;
    progress.step(format!("engaging {} in {}", engage.workload, engage.namespace));
    let asked = signals.or(chosen.ask(call::call::Kind::Engage(engage), limit, &progress)).await;
    drop(progress);
    let held = match asked {
        Ok(answer::Kind::Engaged(held)) => EngagementReport::from(held),
        Ok(other) => return Err(ask::unexpected(&other)),
        Err(error) if error.is_signal() => {
            return Err(error.hint("`tp list` says whether it was engaged meanwhile; `tp leave` ends it"));
        }
        Err(error) => return Err(error),
    };
    match args.output {
        Format::Json => print_json(&held)?,
        Format::Text => print(&text::engaged(&held, &chosen.connection.name))?,
    }
    Ok(0)
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) use tests::example;
