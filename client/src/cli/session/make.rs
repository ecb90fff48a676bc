//! Makes a connection: image, container, `Connect`. Whatever fails on the way, or is interrupted, leaves nothing behind.

use std::time::Duration;

use tokio::time::Instant;
use tp_protocol::engage::call::Held;

use super::{Invocation, Lifetime, Naming, Plan};
use crate::attach::{Connect, Empty, Status, reply, request};
use crate::cli::engage;
use crate::cli::engage::ask::{Chosen, Running};
use crate::cli::publish::is_default_network;
use crate::cli::signals::Signals;
use crate::config::value::ConnectionName;
use crate::docker::Engine;
use crate::docker::connections::{Connection, container_name};
use crate::docker::daemon::{CreateError, DaemonSpec, Join, Output, Started};
use crate::docker::link::{DaemonLink, Purpose};
use crate::docker::reach::HOST_GATEWAY;
use crate::error::{CliError, Result};
use crate::progress::Progress;

/// What the CLI keeps of the time to connect for itself, to say what failed.
const REPORT_TIME: Duration = Duration::from_millis(500);
/// The daemon gets at least this long to reach the cluster, however long the container took to start.
const MIN_CONNECT_TIME: Duration = Duration::from_secs(2);
/// How long a daemon that should have answered by itself is waited for.
const OVERTIME: Duration = Duration::from_secs(2);
/// How often a stream to a daemon that does not listen yet is opened again.
const ATTACH_ATTEMPTS: u32 = 10;
/// Wait between these attempts.
const ATTACH_INTERVAL: Duration = Duration::from_millis(100);
/// How long the last words of a container that has ended are waited for.
const OUTPUT_LIMIT: Duration = Duration::from_millis(500);
/// How long a daemon may take to say good-bye to its manager.
const QUIT_LIMIT: Duration = Duration::from_secs(3);
/// Names tried for a connection whose name does not matter.
const MAX_NUMBERED: u32 = 100;

/// A connection that this run made.
pub(in crate::cli) struct Made {
    /// Its name.
    pub(in crate::cli) name: ConnectionName,
    /// Id of its container.
    pub(in crate::cli) id: String,
    /// The stream that holds it, when it is held.
    pub(in crate::cli) link: DaemonLink,
    /// Its state.
    pub(in crate::cli) status: Status,
    /// The engagement from which it dials; `None`: from the manager.
    pub(in crate::cli) via: Option<Held>,
}

/// Makes the connection that `plan` asks for. On a failure, or a signal, all is removed again.
///
/// # Errors
/// What failed, or the signal.
pub(in crate::cli) async fn make(
    invocation: Invocation,
    plan: Plan,
    signals: &mut Signals,
    progress: &Progress,
) -> Result<(Invocation, Made)> {
    match signals.or(try_make(&invocation, plan, progress)).await {
        Ok(made) => Ok((invocation, made)),
        Err(error) => {
            progress.step("cleaning up");
            if error.is_signal() {
                invocation.abandon().await;
            } else {
                invocation.clean_up().await;
            }
            Err(error)
        }
    }
}

async fn try_make(invocation: &Invocation, mut plan: Plan, progress: &Progress) -> Result<Made> {
    let started = Instant::now();
    let engine = &invocation.engine;
    let limit = plan.setup.settings.connect_timeout.value.as_duration();
    let reach = engine.reach(&mut plan.access).await?;
    let image = engine.ensure_image(|| progress.step("making the daemon's image")).await?;

    progress.step("starting the daemon container");
    let mut spec = spec(&plan, image, &invocation.id);
    for network in reach.networks {
        if !spec.networks.iter().any(|join| join.network == network) {
            spec.networks.push(Join { network, aliases: Vec::new() });
        }
    }
    let through_gateway = !reach.extra_hosts.is_empty();
    spec.extra_hosts.extend(reach.extra_hosts);
    let (name, Started { id, output }) = start(engine, &mut spec, plan.naming).await?;

    progress.step(format!("connecting to context {}", plan.access.context));
    let left = limit.saturating_sub(started.elapsed() + REPORT_TIME).max(MIN_CONNECT_TIME);
    let settings = serde_json::to_string(&plan.setup.sources.user_layer()).expect("settings are plain values");
    let connect = Connect {
        name: name.to_string(),
        kube: plan.access,
        manager_namespace: plan.setup.settings.manager_namespace.to_string(),
        namespace: plan.setup.settings.namespace.to_string(),
        settings_json: settings,
        cli_version: env!("CARGO_PKG_VERSION").to_owned(),
        connect_timeout_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
        hold: true,
        machine_subnets: machine_subnets(engine),
    };
    let server = connect.kube.original_server.clone();
    let connected = tokio::time::timeout(left + OVERTIME, ask_to_connect(engine, &id, connect, progress)).await;
    let (mut link, status) = match connected {
        Ok(Ok(connected)) => connected,
        Ok(Err(error)) => {
            let error = with_output(engine, &id, output, error).await;
            return Err(if through_gateway { error.hint(gateway_hint(&server)) } else { error });
        }
        Err(_) => {
            let error =
                CliError::user(format!("the daemon in {} did not connect in time", container_name(name.as_str())));
            return Err(with_output(engine, &id, output, error).await);
        }
    };
    let via = match &plan.via {
        Some(workload) => {
            let running = Running { name: name.to_string(), namespace: status.namespace.clone(), id: id.clone() };
            let mut chosen = Chosen::open(engine, running).await?;
            Some(engage::via(workload, &mut chosen, progress).await?)
        }
        None => None,
    };
    if plan.lifetime == Lifetime::Detached {
        link.request(request::Kind::Detach(Empty {}), |_| {}).await?;
    }
    Ok(Made { name, id, link, status, via })
}

/// The routes of the engine's machine, when that is this one: to a VPN, to other networks of the engine. A container that sees
/// the cluster there sees nothing else.
fn machine_subnets(engine: &Engine) -> Vec<String> {
    if !engine.endpoint().address.is_local() {
        return Vec::new();
    }
    crate::routes::of_this_namespace().iter().map(ToString::to_string).collect()
}

fn spec(plan: &Plan, image: String, invocation: &str) -> DaemonSpec {
    let settings = &plan.setup.settings;
    let wishes = &plan.wishes;
    let mut networks = wishes.networks.clone();
    for network in &settings.networks.value {
        if !networks.iter().any(|join| join.network == *network) {
            networks.push(Join { network: network.clone(), aliases: Vec::new() });
        }
    }
    networks.retain(|join| !is_default_network(&join.network));
    DaemonSpec {
        name: settings.name.to_string(),
        image,
        invocation: invocation.to_owned(),
        held: plan.lifetime == Lifetime::Held,
        context: plan.access.context.clone(),
        server: plan.access.original_server.clone(),
        namespace: settings.namespace.to_string(),
        manager_namespace: settings.manager_namespace.to_string(),
        via: plan.via.clone().unwrap_or_default(),
        log_level: settings.log_level.to_string(),
        networks,
        extra_hosts: wishes.extra_hosts.clone(),
        publish: wishes.publish.clone(),
        hostname: wishes.hostname.clone(),
    }
}

/// Starts the container under the wished name, or under the next free one.
async fn start(engine: &Engine, spec: &mut DaemonSpec, naming: Naming) -> Result<(ConnectionName, Started)> {
    let wished: ConnectionName = spec.name.parse().map_err(CliError::bug)?;
    let mut name = wished.clone();
    for number in 2..MAX_NUMBERED {
        name.as_str().clone_into(&mut spec.name);
        match engine.start_daemon(spec).await {
            Ok(started) => return Ok((name, started)),
            Err(CreateError::Other(error)) => return Err(error),
            // The remains of a connection that has ended.
            Err(CreateError::NameTaken(Some(holder)))
                if !holder.running && engine.ended(&holder.id).await?.is_some() =>
            {
                engine.remove(&holder.id).await?;
                return Box::pin(start(engine, spec, naming)).await;
            }
            Err(CreateError::NameTaken(holder)) if naming == Naming::Fixed => {
                return Err(name_taken(&name, holder.as_deref()));
            }
            Err(CreateError::NameTaken(_)) => name = wished.numbered(number),
        }
    }
    Err(CliError::user(format!("the names {wished} to {name} are all taken"))
        .hint("`tp status` lists the connections; `tp quit --all` ends them"))
}

/// The error for a connection name that is in use.
pub(in crate::cli) fn name_taken(name: &ConnectionName, holder: Option<&Connection>) -> CliError {
    match holder {
        Some(holder) => CliError::user(format!(
            "the name `{name}` is in use by a connection to context `{}`, namespace `{}`",
            holder.context, holder.namespace
        ))
        .hint(format!("end it with `tp quit --use {name}`, or choose another name with --name")),
        None => {
            CliError::user(format!("the container name `{}` is in use, and not by tp", container_name(name.as_str())))
                .hint("remove or rename that container, or choose another connection name with --name")
        }
    }
}

/// Opens the stream and sends `Connect`. The container may not listen yet when it has just been started.
async fn ask_to_connect(
    engine: &Engine,
    id: &str,
    connect: Connect,
    progress: &Progress,
) -> Result<(DaemonLink, Status)> {
    let mut attempt = 1;
    loop {
        let mut link = engine.attach(id, Purpose::Hold).await?;
        let request = request::Kind::Connect(Box::new(connect.clone()));
        match link.request(request, |text| progress.step(text)).await {
            Ok(reply::Kind::Status(status)) => return Ok((link, *status)),
            Ok(other) => return Err(CliError::bug(format!("the daemon answered Connect with {other:?}"))),
            Err(error) if link.has_answered() || attempt == ATTACH_ATTEMPTS || !engine.is_running(id).await? => {
                return Err(error);
            }
            Err(_) => tokio::time::sleep(ATTACH_INTERVAL).await,
        }
        attempt += 1;
    }
}

/// Adds what a daemon that has died last said.
async fn with_output(engine: &Engine, id: &str, output: Output, error: CliError) -> CliError {
    if !matches!(engine.is_running(id).await, Ok(false)) {
        return error;
    }
    let said = output.tail(OUTPUT_LIMIT).await;
    let error = if said.is_empty() { error } else { error.detail(said) };
    match engine.ended(id).await {
        Ok(Some(ended)) => error.hint(format!("the daemon container ended: {}", ended.reason())),
        // It has removed itself.
        Ok(None) | Err(_) => error.hint("the daemon container ended"),
    }
}

/// What to know about a server on this machine that no container publishes.
fn gateway_hint(server: &str) -> String {
    format!(
        "containers reach {server} as {HOST_GATEWAY}, which takes a server that listens on more than the loopback interface"
    )
}

/// Ends a connection in order: its manager is told, then its container is removed.
///
/// # Errors
/// When the container cannot be removed. A daemon that does not answer is no obstacle.
pub(in crate::cli) async fn end(engine: &Engine, id: &str, link: Option<&mut DaemonLink>) -> Result<()> {
    let good_bye = async {
        let quit = request::Kind::Quit(Empty {});
        match link {
            Some(link) => link.request(quit, |_| {}).await,
            None => engine.attach(id, Purpose::Talk).await?.request(quit, |_| {}).await,
        }
    };
    // A daemon that is dead or stuck is removed all the same.
    let _ = tokio::time::timeout(QUIT_LIMIT, good_bye).await;
    engine.remove(id).await
}
