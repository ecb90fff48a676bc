//! Asks the traffic manager through the daemon of a connection.

use std::time::Duration;

use tp_protocol::engage::call::{Call, ContainerSpec, Describe, Engage, Held, Leave, Mode, answer, call};

use crate::attach::{Empty, EngagementCall, Status, reply, request};
use crate::cli::environment::Environment;
use crate::cli::select::{UseArgs, only, running_by_name};
use crate::docker::Engine;
use crate::docker::connections::{Connection, container_name};
use crate::docker::link::{DaemonLink, Purpose};
use crate::error::{CliError, Result};
use crate::progress::Progress;

/// How long a daemon that should have answered by itself is waited for.
const OVERTIME: Duration = Duration::from_secs(2);

/// A connection that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Running {
    /// Its name.
    pub(in crate::cli) name: String,
    /// Its namespace.
    pub(in crate::cli) namespace: String,
    /// Id of its container.
    pub(in crate::cli) id: String,
}

impl From<&Connection> for Running {
    fn from(connection: &Connection) -> Self {
        let Connection { name, namespace, id, .. } = connection.clone();
        Self { name, namespace, id }
    }
}

/// The connection that a command is about, and a stream to its daemon.
pub(in crate::cli) struct Chosen {
    /// The connection.
    pub(in crate::cli) connection: Running,
    link: DaemonLink,
}

impl Chosen {
    /// Finds the connection, which has to run.
    ///
    /// # Errors
    /// When there is none, or not only one and none is named.
    pub(in crate::cli) async fn choose(which: &UseArgs, progress: &Progress) -> Result<Self> {
        progress.step("waiting for the container engine");
        let engine = Engine::from_env().await?;
        let mut connections = engine.connections().await?;
        let connection = match &which.connection {
            Some(name) => running_by_name(&engine, &connections, name).await?,
            None => {
                connections.retain(|connection| connection.running);
                only(&connections)?.cloned().ok_or_else(|| {
                    CliError::user("not connected").hint("connect with `tp connect`, then give this command again")
                })?
            }
        };
        Self::open(&engine, Running::from(&connection)).await
    }

    /// Opens a stream to the daemon of a connection.
    ///
    /// # Errors
    /// When the engine cannot run a process there.
    pub(in crate::cli) async fn open(engine: &Engine, connection: Running) -> Result<Self> {
        let link = engine.attach(&connection.id, Purpose::Talk).await?;
        Ok(Self { connection, link })
    }

    /// Engages a workload, and waits for `limit` at most until that is in force.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(in crate::cli) async fn engage(&mut self, what: Engage, limit: Duration, progress: &Progress) -> Result<Held> {
        let restarts = if what.mode() == Mode::Sidecar { "; its pods are restarted if they have no agent" } else { "" };
        progress.step(format!("engaging {} in {}{restarts}", what.workload, what.namespace));
        match self.ask(call::Kind::Engage(Box::new(what)), limit, progress).await? {
            answer::Kind::Engaged(held) => Ok(held),
            other => Err(unexpected(&other)),
        }
    }

    /// How the container of an engagement that this connection holds runs, and its environment.
    ///
    /// # Errors
    /// As [`Self::ask`], and when the environment is not known.
    pub(in crate::cli) async fn describe(
        &mut self,
        held: &Held,
        progress: &Progress,
    ) -> Result<(ContainerSpec, Environment)> {
        progress.step(format!("asking for the environment of {}", held.workload));
        let describe = call::Kind::Describe(Describe { id: held.id.clone() });
        let described = match self.ask(describe, super::ANSWER_LIMIT, progress).await? {
            answer::Kind::Described(described) => described,
            other => return Err(unexpected(&other)),
        };
        let environment = Environment::from_wire(described.environment, &held.workload)?;
        Ok((described.container.unwrap_or_default(), environment))
    }

    /// Ends engagements, as [`Leave`] says which; returns those that have ended.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(in crate::cli) async fn leave(
        &mut self,
        leave: Leave,
        limit: Duration,
        progress: &Progress,
    ) -> Result<Vec<Held>> {
        progress.step("waiting until the traffic is back in the cluster");
        match self.ask(call::Kind::Leave(leave), limit, progress).await? {
            answer::Kind::Left(left) => Ok(left.engagements),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks the manager, and waits for `limit` at most.
    ///
    /// # Errors
    /// What the manager says is wrong, or that there was no answer.
    pub(in crate::cli) async fn ask(
        &mut self,
        kind: call::Kind,
        limit: Duration,
        progress: &Progress,
    ) -> Result<answer::Kind> {
        let limit_ms = limit.as_millis().try_into().unwrap_or(u32::MAX);
        let ask = EngagementCall { call: Call { kind: Some(kind) }, limit_ms };
        let asked = self.link.request(request::Kind::Engagements(Box::new(ask)), |text| progress.step(text));
        match tokio::time::timeout(limit.saturating_add(OVERTIME), asked).await {
            Ok(Ok(reply::Kind::Answer(answer))) => match answer.kind {
                Some(answer::Kind::Failure(failure)) if failure.hint.is_empty() => Err(CliError::user(failure.message)),
                Some(answer::Kind::Failure(failure)) => Err(CliError::user(failure.message).hint(failure.hint)),
                Some(kind) => Ok(kind),
                None => Err(CliError::user("the traffic manager gave an answer that this tp does not know")
                    .hint("its version may be newer: `tp version` shows both")),
            },
            Ok(Ok(other)) => Err(CliError::bug(format!("the daemon answered a question with {other:?}"))),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(self.silent()),
        }
    }

    /// The state of the connection, with what it holds.
    ///
    /// # Errors
    /// When its daemon does not answer.
    pub(in crate::cli) async fn status(&mut self) -> Result<Status> {
        let asked = self.link.request(request::Kind::Status(Empty {}), |_| {});
        match tokio::time::timeout(OVERTIME, asked).await {
            Ok(Ok(reply::Kind::Status(status))) => Ok(*status),
            Ok(Ok(other)) => Err(CliError::bug(format!("the daemon answered Status with {other:?}"))),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(self.silent()),
        }
    }

    fn silent(&self) -> CliError {
        let container = container_name(&self.connection.name);
        CliError::user(format!("the daemon in {container} does not answer"))
            .hint(format!("look at `docker logs {container}`"))
    }
}

/// The error for an answer to another question.
pub(in crate::cli) fn unexpected(answer: &answer::Kind) -> CliError {
    let what = match answer {
        answer::Kind::Failure(_) => "a failure",
        answer::Kind::Engaged(_) => "an engagement",
        answer::Kind::Left(_) => "what has ended",
        answer::Kind::Listed(_) => "a list",
        answer::Kind::OneTimePort(_) => "a port",
        answer::Kind::Described(_) => "a description",
    };
    CliError::bug(format!("the traffic manager answered with {what}, which was not the question"))
}
