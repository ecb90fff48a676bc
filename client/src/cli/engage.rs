//! What the commands that engage a workload share, and how commands ask the traffic manager about engagements.

pub(super) mod ask;
mod engaged;
mod filter;
mod holder;
mod port;
pub(super) mod report;
mod text;
mod wish;

use std::time::Duration;

use tp_protocol::engage::call::{Engage, Held, Mode};
use tp_protocol::engage::wire::{self, Kind};

pub(super) use engaged::Engaged;
pub(super) use filter::FilterArgs;
pub(super) use wish::{AwayArgs, EngageArgs, TrafficArgs, Wish};

use self::ask::Chosen;
use self::report::EngagementReport;
use super::docker_run::{self, Borrowed, OwnArgs};
use super::output::{Format, print, print_json};
use super::setup::KubeArgs;
use super::signals::Signals;
use crate::config::value::Namespace;
use crate::error::Result;
use crate::progress::Progress;

/// How long the manager may take to tell, or to end an engagement.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// How long an engagement may take whose time nobody has said.
pub(super) const ENGAGE_LIMIT: Duration = Duration::from_secs(120);

/// Does what a command that engages a workload is there for; returns the exit code.
pub(super) fn run(wish: Wish) -> u8 {
    let verbose = wish.engage.verbose();
    if wish.engage.has_image() {
        return run_handler(wish).unwrap_or_else(|error| {
            error.print(verbose);
            error.docker_run_exit_code()
        });
    }
    super::finish(verbose, super::on_runtime(engage(wish)))
}

/// Engages a workload, and says what that means.
async fn engage(wish: Wish) -> Result<u8> {
    let mut signals = Signals::catch();
    // What is wrong with the flags alone is known before anything is asked.
    wish.to_message("", String::new())?;
    let limit = wish.engage.timeout.as_duration();
    let progress = Progress::start(Some(limit));
    let mut chosen = signals.or(Chosen::choose(&wish.engage.connection, &progress)).await?;
    let message = wish.to_message(&chosen.connection.namespace, holder::this())?;
    let held = match signals.or(chosen.engage(message, limit, &progress)).await {
        Err(error) if error.is_signal() => {
            return Err(error.hint("`tp list` says whether it was engaged meanwhile; `tp leave` ends it"));
        }
        other => other?,
    };
    let files = match signals.or(write_environment(&wish, &mut chosen, &held, &progress)).await {
        Ok(files) => files,
        Err(error) => {
            let engaged = Engaged::new(&held, chosen.connection);
            // The command has failed already.
            let _ = engaged.end(&mut signals).await;
            return Err(error);
        }
    };
    drop(progress);
    let report = EngagementReport::from(held);
    match wish.engage.output {
        Format::Json => print_json(&report)?,
        Format::Text => {
            let name = &chosen.connection.name;
            let takes_stdout = wish.engage.environment.takes_stdout();
            let has_environment = takes_stdout || !files.is_empty();
            let text = text::engaged(&report, &files) + &text::next(&report, name, has_environment);
            if takes_stdout { eprint!("{text}") } else { print(&text)? }
        }
    }
    Ok(0)
}

/// Writes the environment to the files that are asked for, if any; returns what people are told of them.
async fn write_environment(wish: &Wish, chosen: &mut Chosen, held: &Held, progress: &Progress) -> Result<Vec<String>> {
    let wanted = &wish.engage.environment;
    if !wanted.is_written() {
        return Ok(Vec::new());
    }
    let (_, mut environment) = chosen.describe(held, progress).await?;
    wanted.change(&mut environment);
    wanted.write(&environment)
}

/// Runs a handler for the engagement, which ends with it.
fn run_handler(wish: Wish) -> Result<u8> {
    wish.to_message("", String::new())?;
    let handler = wish.engage.handler.clone();
    let own = OwnArgs {
        connection: wish.engage.connection.connection.clone(),
        kube: KubeArgs {
            kubeconfig: handler.kubeconfig,
            context: handler.context.or_else(|| std::env::var("TP_CONTEXT").ok()),
        },
        manager_namespace: handler.manager_namespace,
        docker: handler.docker,
        config: handler.config,
        ..OwnArgs::default()
    };
    docker_run::run_handler(own, handler.image, wish)
}

impl Wish {
    /// Namespace of the workload, where it is said.
    pub(super) fn namespace(&self) -> Option<&Namespace> {
        self.engage.namespace.as_ref()
    }

    /// Engages the workload for a handler.
    ///
    /// # Errors
    /// When it cannot be engaged.
    pub(super) async fn engage(&self, chosen: &mut Chosen, progress: &Progress) -> Result<Held> {
        let message = self.to_message(&chosen.connection.namespace, holder::this())?;
        chosen.engage(message, self.limit(), progress).await
    }

    /// How long engaging may take.
    pub(super) fn limit(&self) -> Duration {
        self.engage.timeout.as_duration()
    }

    /// Returns what a handler takes over from the container that is engaged, and what people are told.
    ///
    /// # Errors
    /// When the environment is not known, or cannot be written where it is asked for.
    pub(super) async fn equip(
        &self,
        chosen: &mut Chosen,
        held: Held,
        progress: &Progress,
    ) -> Result<(Borrowed, String)> {
        let (container, mut environment) = chosen.describe(&held, progress).await?;
        let wanted = &self.engage.environment;
        wanted.change(&mut environment);
        let files = wanted.write(&environment)?;
        Ok((Borrowed::for_handler(&container, environment), text::engaged(&EngagementReport::from(held), &files)))
    }
}

/// Engages a container of a workload without its traffic, in the connection's namespace; an empty `container` stands for the
/// only one.
///
/// # Errors
/// When it cannot be engaged.
pub(super) async fn ingest(workload: &str, container: &str, chosen: &mut Chosen, progress: &Progress) -> Result<Held> {
    let what = Engage {
        namespace: chosen.connection.namespace.clone(),
        workload: workload.to_owned(),
        container: container.to_owned(),
        what: Kind::Ingest.into(),
        when_away: wire::WhenAway::Cluster.into(),
        // Nothing is restarted to be looked at.
        mode: Mode::Auto.into(),
        holder: holder::this(),
        ..Engage::default()
    };
    chosen.engage(what, ENGAGE_LIMIT, progress).await
}

/// Has what the connection dials come from a workload's place in the network, in the connection's namespace.
///
/// # Errors
/// When it cannot be engaged.
pub(super) async fn via(workload: &str, chosen: &mut Chosen, progress: &Progress) -> Result<Held> {
    let what = Engage {
        namespace: chosen.connection.namespace.clone(),
        workload: workload.to_owned(),
        what: Kind::Via.into(),
        when_away: wire::WhenAway::Fail.into(),
        mode: Mode::Auto.into(),
        holder: holder::this(),
        ..Engage::default()
    };
    chosen.engage(what, ENGAGE_LIMIT, progress).await
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) use tests::example;
