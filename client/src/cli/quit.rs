//! `tp quit`.

use super::select::{UseArgs, by_name, only};
use super::session;
use super::setup::VerbosityArgs;
use super::status::running_names;
use crate::docker::Engine;
use crate::docker::connections::Connection;
use crate::error::{CliError, Result};
use crate::progress::Progress;

/// End a connection
///
/// Tells the traffic manager, and removes the connection's container. Containers that have joined it go on without a
/// network; they are named. It is no error when nothing is connected.
#[derive(clap::Args, Debug)]
pub(super) struct QuitArgs {
    #[command(flatten)]
    connection: UseArgs,
    /// End all connections
    #[arg(short, long, conflicts_with = "connection")]
    all: bool,
    #[command(flatten)]
    verbosity: VerbosityArgs,
}

impl QuitArgs {
    pub(super) fn verbose(&self) -> bool {
        self.verbosity.verbose
    }
}

/// Runs `tp quit`.
pub(super) async fn run(args: QuitArgs) -> Result<u8> {
    let progress = Progress::start(None);
    progress.step("waiting for the container engine");
    let engine = Engine::from_env().await?;
    let connections = engine.connections().await?;
    let chosen: Vec<&Connection> = match &args.connection.connection {
        _ if args.all => connections.iter().collect(),
        Some(name) => vec![by_name(&connections, name)?],
        None => only(&connections).map_err(|error| error.hint("or end all of them with --all"))?.into_iter().collect(),
    };
    if chosen.is_empty() {
        drop(progress);
        eprintln!("Nothing is connected.");
        return Ok(0);
    }
    let handlers = engine.handlers().await?;
    let mut failures = Vec::new();
    for connection in chosen {
        progress.step(format!("ending {}", connection.name));
        let ended = if connection.running {
            session::end(&engine, &connection.id, None).await
        } else {
            engine.remove(&connection.id).await
        };
        match ended {
            Ok(()) => {
                eprintln!("Disconnected {} (context {}).", connection.name, connection.context);
                let joined = handlers.get(&connection.name).map(|list| running_names(list)).unwrap_or_default();
                if !joined.is_empty() {
                    eprintln!("Containers that have no network any more: {}", joined.join(", "));
                }
            }
            Err(error) => failures.push((connection.name.clone(), error)),
        }
    }
    drop(progress);
    match failures.len() {
        0 => Ok(0),
        1 => Err(failures.remove(0).1),
        _ => {
            let list: Vec<_> = failures.iter().map(|(name, error)| format!("{name}: {error}")).collect();
            Err(CliError::user("some connections could not be ended").detail(list.join("\n")))
        }
    }
}
