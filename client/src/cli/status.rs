//! `tp status`.

mod report;
mod text;

use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;

use super::output::{Format, print, print_json};
use super::select::{UseArgs, by_name};
use super::setup::VerbosityArgs;
use crate::attach::{Empty, Status, reply, request};
use crate::docker::Engine;
use crate::docker::connections::{Connection, Ended, Handler};
use crate::docker::link::Purpose;
use crate::error::Result;
use crate::progress::Progress;
pub(super) use report::{ConnectionReport, Report};

/// How long a daemon may take to answer; it does so at once, or never.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// Exit code when no connection is up.
const EXIT_NOT_CONNECTED: u8 = 1;

/// Show the connections and what they reach
///
/// Exits with 0 when a connection is up and with 1 when none is (with --use: when that one is not), so that scripts can
/// ask whether they are connected. A connection that has ended is listed with the reason until `tp quit` removes it.
#[derive(clap::Args, Debug)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    connection: UseArgs,
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Format,
    #[command(flatten)]
    verbosity: VerbosityArgs,
}

impl StatusArgs {
    pub(super) fn verbose(&self) -> bool {
        self.verbosity.verbose
    }
}

/// Runs `tp status`.
pub(super) async fn run(args: StatusArgs) -> Result<u8> {
    let progress = Progress::start(None);
    progress.step("asking the container engine and the daemons");
    let engine = Engine::from_env().await?;
    let mut connections = engine.connections().await?;
    let mut handlers = engine.handlers().await?;
    if let Some(name) = &args.connection.connection {
        // The remains of a connection that is gone altogether can be asked for as well.
        if !handlers.contains_key(name.as_str()) {
            by_name(&connections, name)?;
        }
        connections.retain(|connection| connection.name == name.as_str());
        handlers.retain(|connection, _| connection == name.as_str());
    }
    let answers = join_all(connections.iter().map(|connection| ask(&engine, connection))).await;
    let mut reports: Vec<_> = connections
        .into_iter()
        .zip(answers)
        .map(|(connection, answer)| {
            let joined = handlers.remove(&connection.name).unwrap_or_default();
            ConnectionReport::new(&connection, answer, joined)
        })
        .collect();
    // What is left joined connections whose containers are gone.
    let orphans = handlers.into_iter().filter(|(_, joined)| joined.iter().any(|handler| handler.running));
    reports.extend(orphans.map(|(name, joined)| ConnectionReport::gone(name, joined)));
    drop(progress);

    let report = Report { connections: reports };
    match args.output {
        Format::Json => print_json(&report)?,
        Format::Text => print(&text::render(&report, Timestamp::now()))?,
    }
    Ok(if report.is_connected() { 0 } else { EXIT_NOT_CONNECTED })
}

/// What became known of a connection.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// Its daemon reported.
    Status(Box<Status>),
    /// Its container has ended.
    Ended(Ended),
    /// Its container runs and its daemon does not answer; why.
    Silent(String),
}

/// Asks the daemon of a connection, or the engine for how it ended.
pub(super) async fn ask(engine: &Engine, connection: &Connection) -> Answer {
    if !connection.running {
        return match engine.ended(&connection.id).await {
            Ok(Some(ended)) => Answer::Ended(ended),
            Ok(None) => Answer::Silent("its container does not run".to_owned()),
            Err(error) => Answer::Silent(error.message().to_owned()),
        };
    }
    let asked = async {
        let mut link = engine.attach(&connection.id, Purpose::Talk).await?;
        link.request(request::Kind::Status(Empty {}), |_| {}).await
    };
    match tokio::time::timeout(ANSWER_LIMIT, asked).await {
        Ok(Ok(reply::Kind::Status(status))) => Answer::Status(status),
        Ok(Ok(_)) => Answer::Silent("its daemon answered something else".to_owned()),
        Ok(Err(error)) => Answer::Silent(error.message().to_owned()),
        Err(_) => Answer::Silent(format!("its daemon did not answer within {} s", ANSWER_LIMIT.as_secs())),
    }
}

/// The containers of `handlers` that run, by name, for messages.
pub(super) fn running_names(handlers: &[Handler]) -> Vec<&str> {
    handlers.iter().filter(|handler| handler.running).map(|handler| handler.name.as_str()).collect()
}

#[cfg(test)]
mod tests;
