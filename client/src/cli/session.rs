//! Makes a connection: image, container, `Connect`. Whatever fails on the way, or is interrupted, leaves nothing behind.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use ring::rand::SecureRandom as _;
use tokio::time::Instant;

use super::publish::{Wishes, is_default_network};
use super::setup::Setup;
use super::signals::Signals;
use crate::attach::{Connect, Empty, KubeAccess, Status, reply, request};
use crate::config::value::ConnectionName;
use crate::docker::connections::{Connection, container_name};
use crate::docker::daemon::{CreateError, DaemonSpec, Join};
use crate::docker::link::{DaemonLink, Purpose};
use crate::docker::{Engine, endpoint::Endpoint, hex};
use crate::error::{CliError, Result};
use crate::progress::Progress;
use crate::reap::{Reaper, remove_invocation};

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
/// How long cleaning up after a failure may take.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(5);
/// How long a daemon may take to say good-bye to its manager.
const QUIT_LIMIT: Duration = Duration::from_secs(3);
/// Names tried for a connection whose name does not matter.
const MAX_NUMBERED: u32 = 100;

/// Whether the connection outlives the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lifetime {
    /// It ends with the command, however that ends.
    Held,
    /// It stays until `tp quit`, or its idle limit.
    Detached,
}

/// Whether the name of the connection has to be the one of the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// It has.
    Fixed,
    /// The next free one like it will do.
    Numbered,
}

/// All that is known before the engine is touched.
pub(super) struct Plan {
    /// How to reach the API server.
    pub(super) access: KubeAccess,
    /// Settings in force, and their sources.
    pub(super) setup: Setup,
    /// Wishes for the daemon container.
    pub(super) wishes: Wishes,
    /// How long the connection lives.
    pub(super) lifetime: Lifetime,
    /// How it is named.
    pub(super) naming: Naming,
}

impl Plan {
    /// Resolves the kubeconfig context of `setup`.
    ///
    /// # Errors
    /// All that can be wrong with a kubeconfig.
    pub(super) async fn new(mut setup: Setup, wishes: Wishes, lifetime: Lifetime, naming: Naming) -> Result<Self> {
        let placeholder = Err(CliError::bug("the context is taken once"));
        let selected = std::mem::replace(&mut setup.selected, placeholder)?;
        let access = selected.access(Timestamp::now(), |name| std::env::var(name).ok()).await?;
        Ok(Self { access, setup, wishes, lifetime, naming })
    }

    /// Whether `connection` is to the same cluster and namespace through the same manager.
    pub(super) fn is_same(&self, connection: &Connection) -> bool {
        let settings = &self.setup.settings;
        connection.context == self.access.context
            && connection.server == self.access.original_server
            && connection.namespace == settings.namespace.value.as_str()
            && connection.manager_namespace == settings.manager_namespace.value.as_str()
    }
}

/// Finds the engine, and says hello to it.
///
/// # Errors
/// As [`Engine::connect`].
pub(super) async fn engine(progress: &Progress) -> Result<Engine> {
    let endpoint = Endpoint::find(|name| std::env::var(name).ok(), Path::exists)?;
    progress.step("waiting for the container engine");
    Engine::connect(endpoint).await
}

/// One run of the CLI that makes containers, watched by its reaper.
pub(super) struct Invocation {
    /// The engine.
    pub(super) engine: Engine,
    /// The label of all that this run makes.
    pub(super) id: String,
    reaper: Reaper,
}

impl Invocation {
    /// Starts the reaper.
    ///
    /// # Errors
    /// When the system cannot start a process.
    pub(super) fn start(engine: Engine) -> Result<Self> {
        let mut random = [0; 8];
        let filled = ring::rand::SystemRandom::new().fill(&mut random);
        filled.map_err(|_| CliError::user("this system gives no random numbers"))?;
        let id = hex(&random);
        let reaper = Reaper::start(&engine, &id)?;
        Ok(Self { engine, id, reaper })
    }

    /// Tells the reaper which process is the docker CLI.
    pub(super) fn on_docker_cli(&mut self, pid: Option<u32>) {
        self.reaper.on_docker_cli(pid);
    }

    /// What this run made is gone, or is to stay.
    pub(super) fn keep(self) {
        self.reaper.keep();
    }

    /// Removes all that this run made. What cannot be removed now is left to the reaper, which tries for longer.
    pub(super) async fn clean_up(self) {
        let removal = remove_invocation(&self.engine, &self.id);
        if let Ok(Ok(())) = tokio::time::timeout(CLEAN_UP_LIMIT, removal).await {
            self.reaper.keep();
        }
    }
}

/// A connection that this run made.
pub(super) struct Made {
    /// Its name.
    pub(super) name: ConnectionName,
    /// Id of its container.
    pub(super) id: String,
    /// The stream that holds it, when it is held.
    pub(super) link: DaemonLink,
    /// Its state.
    pub(super) status: Status,
}

/// Makes the connection that `plan` asks for. On a failure, or a signal, all is removed again.
///
/// # Errors
/// What failed, or the signal.
pub(super) async fn make(
    invocation: Invocation,
    plan: Plan,
    signals: &mut Signals,
    progress: &Progress,
) -> Result<(Invocation, Made)> {
    match signals.or(try_make(&invocation, plan, progress)).await {
        Ok(made) => Ok((invocation, made)),
        Err(error) => {
            progress.step("cleaning up");
            invocation.clean_up().await;
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
    spec.extra_hosts.extend(reach.extra_hosts);
    let (name, id) = start(engine, &mut spec, plan.naming).await?;

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
    };
    let connected = tokio::time::timeout(left + OVERTIME, ask_to_connect(engine, &id, connect, progress)).await;
    let (mut link, status) = match connected {
        Ok(Ok(connected)) => connected,
        Ok(Err(error)) => return Err(with_log(engine, &id, error).await),
        Err(_) => {
            let error =
                CliError::user(format!("the daemon in {} did not connect in time", container_name(name.as_str())));
            return Err(with_log(engine, &id, error).await);
        }
    };
    if plan.lifetime == Lifetime::Detached {
        link.request(request::Kind::Detach(Empty {}), |_| {}).await?;
    }
    Ok(Made { name, id, link, status })
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
        log_level: settings.log_level.to_string(),
        networks,
        extra_hosts: wishes.extra_hosts.clone(),
        publish: wishes.publish.clone(),
        hostname: wishes.hostname.clone(),
    }
}

/// Starts the container under the wished name, or under the next free one.
async fn start(engine: &Engine, spec: &mut DaemonSpec, naming: Naming) -> Result<(ConnectionName, String)> {
    let wished: ConnectionName = spec.name.parse().map_err(CliError::bug)?;
    let mut name = wished.clone();
    for number in 2..MAX_NUMBERED {
        name.as_str().clone_into(&mut spec.name);
        match engine.start_daemon(spec).await {
            Ok(id) => return Ok((name, id)),
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
pub(super) fn name_taken(name: &ConnectionName, holder: Option<&Connection>) -> CliError {
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
            Err(error) if link.has_answered() || attempt == ATTACH_ATTEMPTS || engine.ended(id).await?.is_some() => {
                return Err(error);
            }
            Err(_) => tokio::time::sleep(ATTACH_INTERVAL).await,
        }
        attempt += 1;
    }
}

/// Adds what a daemon that has died last logged.
async fn with_log(engine: &Engine, id: &str, error: CliError) -> CliError {
    match engine.ended(id).await {
        Ok(Some(ended)) => {
            let log = engine.log_tail(id).await;
            let error = if log.is_empty() { error } else { error.detail(log) };
            error.hint(format!("the daemon container ended: {}", ended.reason()))
        }
        Ok(None) | Err(_) => error,
    }
}

/// Ends a connection in order: its manager is told, then its container is removed.
///
/// # Errors
/// When the container cannot be removed. A daemon that does not answer is no obstacle.
pub(super) async fn end(engine: &Engine, id: &str, link: Option<&mut DaemonLink>) -> Result<()> {
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
