//! Runs the user's container by their CLI, and cleans up after it.

use std::ffi::OsString;

use super::parse::{Flag, Parsed};
use super::program::Program;
use super::split::Split;
use crate::attach::{Empty, request};
use crate::cli::child::pass_on;
use crate::cli::session::{self, Invocation, Made};
use crate::cli::signals::Signals;
use crate::docker::connections::{Connection, container_name};
use crate::docker::link::DaemonLink;
use crate::docker::{label, role};
use crate::error::{CliError, Result, exit_code_of};

/// The container to run, and what with.
pub(super) struct Run {
    /// The user's CLI.
    pub(super) program: Program,
    /// The command line.
    pub(super) parsed: Parsed,
    /// Whether the container runs in the background.
    pub(super) detached: bool,
}

/// How the user's CLI ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Done {
    code: u8,
    /// Whether a signal came while it ran: it may have ended without its container.
    interrupted: bool,
}

/// Who is on a connection of this run when its CLI has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Joined {
    /// The container of this run: it is in the background.
    Own,
    /// Containers of other runs only.
    Others,
    /// Nobody.
    Nobody,
}

impl Run {
    /// Runs the container in a connection that was there before, and stays.
    pub(super) async fn join(
        self,
        mut invocation: Invocation,
        connection: &Connection,
        link: Option<DaemonLink>,
        split: &Split,
        signals: &mut Signals,
    ) -> Result<u8> {
        let outcome = self.run(&mut invocation, &connection.name, &connection.id, split, signals).await;
        drop(link);
        match outcome {
            Ok(done) if done.interrupted && !self.detached => invocation.keep_ended(),
            // What runs on in the background needs no reaper.
            Ok(_) => invocation.keep(),
            Err(_) => invocation.clean_up().await,
        }
        outcome.map(|done| done.code)
    }

    /// Runs the container in a connection of its own, which ends with it.
    pub(super) async fn with_own(
        self,
        mut invocation: Invocation,
        mut made: Made,
        split: &Split,
        signals: &mut Signals,
    ) -> Result<u8> {
        let done = match self.run(&mut invocation, made.name.as_str(), &made.id, split, signals).await {
            Ok(done) => done,
            Err(error) => {
                invocation.clean_up().await;
                return Err(error);
            }
        };
        match joined(&invocation, &made).await {
            Joined::Own if self.detached => invocation.keep(),
            // The user has detached from it by docker's detach keys.
            Joined::Own if !done.interrupted => {
                made.link.request(request::Kind::Detach(Empty {}), |_| {}).await?;
                let name = &made.name;
                eprintln!("The container goes on, and so does its connection: `tp quit --use {name}` ends that.");
                invocation.keep();
            }
            Joined::Others => {
                eprintln!("The connection {} goes on until the last container that joined it has ended.", made.name);
                invocation.keep();
            }
            Joined::Own | Joined::Nobody => {
                let ended = session::end(&invocation.engine, &made.id, Some(&mut made.link)).await;
                if ended.is_ok() && !done.interrupted {
                    invocation.keep();
                } else {
                    // The reaper removes what was being made, and what could not be removed.
                    invocation.keep_ended();
                }
            }
        }
        Ok(done.code)
    }

    /// Runs the user's CLI to its end.
    async fn run(
        &self,
        invocation: &mut Invocation,
        connection: &str,
        daemon_id: &str,
        split: &Split,
        signals: &mut Signals,
    ) -> Result<Done> {
        let container = container_name(connection);
        let args = self.args(connection, &invocation.id, split);
        let mut child =
            self.program.command(&args).spawn().map_err(|e| {
                CliError::user(format!("cannot start {}: {e}", self.program.path.display())).because(&e)
            })?;
        invocation.on_docker_cli(child.id());
        let engine = invocation.engine.clone();
        let gone = engine.wait_gone(daemon_id);
        tokio::pin!(gone);
        let (mut interrupted, mut is_gone) = (false, false);
        let status = loop {
            tokio::select! {
                status = child.wait() => break status,
                caught = signals.next() => {
                    interrupted = true;
                    pass_on(&child, caught);
                }
                () = &mut gone, if !is_gone => {
                    is_gone = true;
                    if !self.detached {
                        // The terminal may be in raw mode, for the container.
                        eprint!("\r\ntp: {container} is gone: this container has no network any more\r\n");
                    }
                }
            }
        };
        invocation.on_docker_cli(None);
        let status = status.map_err(|e| CliError::user(format!("cannot wait for docker: {e}")).because(&e))?;
        Ok(Done { code: exit_code_of(status), interrupted })
    }

    /// The arguments for the user's CLI.
    fn args(&self, connection: &str, invocation: &str, split: &Split) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["run".into()];
        let labels = [(label::ROLE, role::HANDLER), (label::CONNECTION, connection), (label::INVOCATION, invocation)];
        args.extend(labels.map(|(key, value)| format!("--label={key}={value}").into()));
        args.push(format!("--network=container:{}", container_name(connection)).into());
        args.push(format!("--env=TP_CONNECTION={connection}").into());
        args.extend(split.pass.iter().map(Flag::to_arg));
        args.extend(self.parsed.image.iter().cloned());
        args.extend(self.parsed.args.iter().cloned());
        args
    }
}

/// Looks who is on the connection that this run made. When the engine does not say, nobody is: it ends.
async fn joined(invocation: &Invocation, made: &Made) -> Joined {
    let own = invocation.engine.of_invocation(&invocation.id).await.unwrap_or_default();
    if own.iter().any(|container| container.id != made.id && !container.has_ended) {
        return Joined::Own;
    }
    let handlers = invocation.engine.handlers().await.unwrap_or_default();
    let mut of_connection = handlers.get(made.name.as_str()).into_iter().flatten();
    if of_connection.any(|handler| handler.running) { Joined::Others } else { Joined::Nobody }
}

#[cfg(test)]
mod tests {
    use super::super::split::split;
    use super::*;

    #[test]
    fn container_joins_and_is_labelled_before_the_user_s_own_options() {
        let parsed = Parsed { image: Some("img".into()), args: vec!["--x".into()], ..Parsed::default() };
        let split = split(vec![Flag { name: "rm".into(), value: None }]).unwrap();
        let program = Program { path: "docker".into(), args: Vec::new(), env: Vec::new() };
        let run = Run { program, parsed, detached: false };
        let args: Vec<_> = run.args("dev", "01", &split).into_iter().map(|arg| arg.into_string().unwrap()).collect();
        assert_eq!(
            args.join(" "),
            "run --label=tp.role=handler --label=tp.connection=dev --label=tp.invocation=01 \
             --network=container:tp-dev --env=TP_CONNECTION=dev --rm img --x"
        );
    }
}
