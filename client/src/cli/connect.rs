//! `tp connect`.

use std::ffi::OsString;
use std::process::Stdio;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use tp_protocol::engage::call::Held;

use super::engage::ENGAGE_LIMIT;
use super::publish::{HostSpec, NetworkSpec, PublishSpec, Wishes};
use super::session::{self, Invocation, Lifetime, Naming, Plan};
use super::setup::{CommonArgs, KubeArgs, SettingArgs, Setup, load};
use super::signals::Signals;
use crate::attach::Status;
use crate::config::Layer;
use crate::config::value::ConnectionName;
use crate::docker::Engine;
use crate::docker::connections::{Connection, container_name};
use crate::error::{CliError, Result, exit_code_of};
use crate::progress::Progress;

/// Exit codes of a command that cannot be started, as shells have them.
const EXIT_NOT_FOUND: u8 = 127;
const EXIT_NOT_EXECUTABLE: u8 = 126;

/// Connect to a cluster; run a command while connected
///
/// Starts a container on this machine, tp-NAME, whose network is the cluster's. Other containers join it with
/// `tp docker-run`, or with `docker run --network container:tp-NAME`. The connection stays until `tp quit`, or until it
/// was idle for the time of the setting `idle-limit`.
///
/// With a COMMAND, which runs on this machine and not in the cluster's network, the connection ends with it, and the exit
/// code is the command's. It finds the names of the connection and of its container in TP_CONNECTION and TP_CONTAINER.
///
/// With --via, what containers connect to sees a pod of that workload: one of its own, when they have an agent, else one that is
/// made for it and gets no traffic. It takes the right to engage workloads. Names are looked up, and pings sent, by the traffic
/// manager still.
///
/// Ports, host name, extra hosts and Docker networks are the connection's, because Docker takes none of them on a
/// container that joins another's network.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  tp connect                                 the kubeconfig's current context
  tp connect --context prod -n shop --name shop
  tp connect -p 8080:80                      a joined container's port 80 is this machine's 8080
  tp connect --via web                       network policies see the workload web
  tp connect -- ./integration-tests.sh")]
pub(super) struct ConnectArgs {
    /// Name the connection [default: the context's name]
    #[arg(long, value_name = "NAME")]
    name: Option<ConnectionName>,
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    via: ViaArgs,
    #[command(flatten)]
    settings: SettingArgs,
    #[command(flatten)]
    container: ContainerArgs,
    #[command(flatten)]
    common: CommonArgs,
    /// Run this command while connected
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// From where the connection dials.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct ViaArgs {
    /// Have the connections of containers come from the place in the network of this workload of the namespace, as network
    /// policies and a mesh see it, instead of from the traffic manager's: a name, or KIND/NAME
    #[arg(id = "via", long = "via", value_name = "WORKLOAD", value_parser = NonEmptyStringValueParser::new())]
    pub(super) workload: Option<String>,
}

impl ViaArgs {
    /// How long all of it may take, where connecting may take `connect`.
    pub(super) fn limit(&self, connect: Duration) -> Duration {
        if self.workload.is_some() { connect + ENGAGE_LIMIT } else { connect }
    }
}

/// Wishes for the container of the connection.
#[derive(clap::Args, Debug, Default)]
struct ContainerArgs {
    /// Publish a port of the joined containers on this machine, as with docker run: `[[IP:]HOSTPORT:]PORT[/PROTOCOL]`
    #[arg(short, long, visible_alias = "expose", value_name = "PORTS", help_heading = "Container options")]
    publish: Vec<PublishSpec>,
    /// Join a Docker network as well: the containers there are neighbours
    #[arg(long, value_name = "NETWORK", help_heading = "Container options")]
    network: Vec<NetworkSpec>,
    /// Set the host name of the joined containers
    #[arg(long, value_name = "NAME", help_heading = "Container options")]
    hostname: Option<String>,
    /// Add a line to the hosts file of the joined containers
    #[arg(long, value_name = "HOST:IP", help_heading = "Container options")]
    add_host: Vec<HostSpec>,
}

impl ContainerArgs {
    fn wishes(self) -> Wishes {
        Wishes {
            publish: self.publish.into_iter().flat_map(|spec| spec.0).collect(),
            networks: self.network.into_iter().map(|spec| spec.0).collect(),
            hostname: self.hostname.unwrap_or_default(),
            extra_hosts: self.add_host.into_iter().map(|spec| spec.0).collect(),
        }
    }
}

impl ConnectArgs {
    pub(super) fn verbose(&self) -> bool {
        self.common.verbosity.verbose
    }
}

/// Runs `tp connect`.
pub(super) async fn run(args: ConnectArgs) -> Result<u8> {
    let mut signals = Signals::catch();
    let flags = Layer { name: args.name, ..args.settings.layer() };
    let setup = load(&args.common, &args.kube, flags)?;
    let progress = Progress::start(Some(args.via.limit(setup.settings.connect_timeout.value.as_duration())));
    let lifetime = if args.command.is_empty() { Lifetime::Detached } else { Lifetime::Held };
    let (mut plan, engine) = signals.or(prepare(setup, args.container.wishes(), lifetime, &progress)).await?;
    plan.via = args.via.workload;
    if let Some(existing) = signals.or(existing(&engine, &plan)).await? {
        drop(progress);
        return already_connected(&engine, &existing, args.command, &mut signals).await;
    }
    let invocation = Invocation::start(engine)?;
    let (invocation, mut made) = session::make(invocation, plan, &mut signals, &progress).await?;
    drop(progress);
    if args.command.is_empty() {
        invocation.keep();
        eprint!("{}", summary(made.name.as_str(), &made.status, made.via.as_ref()));
        return Ok(0);
    }
    let outcome = run_command(&args.command, made.name.as_str(), &mut signals).await;
    match session::end(&invocation.engine, &made.id, Some(&mut made.link)).await {
        Ok(()) => invocation.keep(),
        Err(_) => invocation.clean_up().await,
    }
    outcome
}

async fn prepare(setup: Setup, wishes: Wishes, lifetime: Lifetime, progress: &Progress) -> Result<(Plan, Engine)> {
    progress.step("reading the kubeconfig");
    let plan = Plan::new(setup, wishes, lifetime, Naming::Fixed).await?;
    let engine = session::engine(progress).await?;
    Ok((plan, engine))
}

/// The connection of the wished name that is there already.
///
/// # Errors
/// When it is to something else, or another command's.
async fn existing(engine: &Engine, plan: &Plan) -> Result<Option<Connection>> {
    let name = &plan.setup.settings.name.value;
    let found = engine.connections().await?.into_iter().find(|connection| connection.name == name.as_str());
    let Some(found) = found else {
        if engine.container_exists(&container_name(name.as_str())).await? {
            return Err(session::name_taken(name, None));
        }
        return Ok(None);
    };
    let ended = if found.running { None } else { engine.ended(&found.id).await? };
    if let Some(ended) = ended {
        eprintln!("The connection {name} had ended: {}. Connecting again.", ended.reason());
        engine.remove(&found.id).await?;
        return Ok(None);
    }
    if !plan.is_same(&found) {
        let settings = &plan.setup.settings;
        let via = plan.via.as_ref().map(|via| format!(", and dial by way of `{via}`")).unwrap_or_default();
        return Err(session::name_taken(name, Some(&found)).hint(format!(
            "this one would be to context `{}`, namespace `{}`{via}",
            plan.access.context, settings.namespace
        )));
    }
    if found.held {
        return Err(CliError::user(format!("the connection `{name}` belongs to another command and ends with it"))
            .hint("choose another name with --name, or wait for that command to end"));
    }
    Ok(Some(found))
}

async fn already_connected(
    engine: &Engine,
    existing: &Connection,
    command: Vec<OsString>,
    signals: &mut Signals,
) -> Result<u8> {
    eprintln!(
        "Already connected: {} is a connection to context {}, namespace {}.",
        existing.name, existing.context, existing.namespace
    );
    match signals.or(engine.route_new_subnets(existing)).await {
        Ok(subnets) if subnets.is_empty() => {}
        Ok(subnets) => eprintln!("Routed as well, for they are new in the cluster: {}.", subnets.join(", ")),
        Err(error) if error.is_signal() => return Err(error),
        // What was there before goes on to work.
        Err(error) => eprintln!("warning: not known whether the cluster has new subnets: {}", error.message()),
    }
    if command.is_empty() {
        return Ok(0);
    }
    // It was there before the command, and stays after it.
    run_command(&command, &existing.name, signals).await
}

/// What people are told once they are connected.
pub(super) fn summary(name: &str, status: &Status, via: Option<&Held>) -> String {
    let manager = match status.manager_version.as_str() {
        "" => String::new(),
        version => format!(" through the traffic manager {version} in {}", status.manager_namespace),
    };
    let mapped = status.virtual_subnets.iter();
    let mapped: String =
        mapped.map(|it| format!("  {} is seen as {}: {}\n", it.subnet, it.seen_as, it.reason)).collect();
    let via = via.map(|held| format!("  connections come from {} ({})\n", held.workload, held.why_mode));
    let via = via.unwrap_or_default();
    format!(
        "Connected to context {}, namespace {}{manager}.\n{mapped}{via}  \
         tp docker-run --use {name} IMAGE   runs a container in the cluster's network\n  \
         tp quit --use {name}               ends the connection\n",
        status.context, status.namespace
    )
}

/// Runs a command of this machine while connected; signals are passed on to it.
async fn run_command(command: &[OsString], connection: &str, signals: &mut Signals) -> Result<u8> {
    let (program, args) = command.split_first().expect("there is a command");
    let spawned = tokio::process::Command::new(program)
        .args(args)
        .env("TP_CONNECTION", connection)
        .env("TP_CONTAINER", container_name(connection))
        .stdin(Stdio::inherit())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(e) => {
            let name = program.to_string_lossy();
            CliError::user(format!("cannot run `{name}`: {e}")).print(false);
            return Ok(if e.kind() == std::io::ErrorKind::NotFound { EXIT_NOT_FOUND } else { EXIT_NOT_EXECUTABLE });
        }
    };
    let status = super::child::wait(&mut child, signals).await;
    status.map(exit_code_of).map_err(|e| CliError::user(format!("cannot wait for the command: {e}")).because(&e))
}
