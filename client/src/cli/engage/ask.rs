//! Asks the traffic manager through the daemon of a connection.

use std::time::Duration;

use tp_protocol::engage::call::{Call, answer, call};

use crate::attach::{Empty, EngagementCall, Status, reply, request};
use crate::cli::select::{UseArgs, only, running_by_name};
use crate::docker::Engine;
use crate::docker::connections::Connection;
use crate::docker::link::{DaemonLink, Purpose};
use crate::error::{CliError, Result};
use crate::progress::Progress;

/// How long a daemon that should have answered by itself is waited for.
const OVERTIME: Duration = Duration::from_secs(2);

/// The connection that a command is about, and a stream to its daemon.
pub(in crate::cli) struct Chosen {
    /// The connection.
    pub(in crate::cli) connection: Connection,
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
        let link = engine.attach(&connection.id, Purpose::Talk).await?;
        Ok(Self { connection, link })
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
        CliError::user(format!("the daemon in {} does not answer", self.connection.container()))
            .hint(format!("look at `docker logs {}`", self.connection.container()))
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
    };
    CliError::bug(format!("the traffic manager answered with {what}, which was not the question"))
}
