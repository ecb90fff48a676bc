//! Runs the user's container by their CLI, and cleans up after it.

use std::ffi::OsString;

use super::Network;
use super::borrowed::Borrowed;
use super::parse::{Flag, Parsed};
use super::pass::Passing;
use super::program::Program;
use super::split::Split;
use crate::attach::{Empty, request};
use crate::cli::child::pass_on;
use crate::cli::engage::Engaged;
use crate::cli::engage::ask::Running;
use crate::cli::session::{self, Invocation, Made};
use crate::cli::signals::Signals;
use crate::docker::connections::container_name;
use crate::docker::{label, role};
use crate::error::{CliError, Result, exit_code_of};

/// The container to run, and what with.
pub(super) struct Run {
    /// The user's CLI.
    pub(super) program: Program,
    /// The command line.
    pub(super) parsed: Parsed,
    /// Its flags, sorted.
    pub(super) split: Split,
    /// What comes from a workload's container.
    pub(super) borrowed: Borrowed,
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
    /// Runs the container in `network`. What is engaged for it ends with it.
    pub(super) async fn run(
        self,
        invocation: Invocation,
        network: Network,
        engaged: Option<Engaged>,
        signals: &mut Signals,
    ) -> Result<u8> {
        match network {
            Network::There { joined, _hold } => self.join(invocation, &joined, engaged, signals).await,
            Network::Own(made) => self.with_own(invocation, *made, engaged, signals).await,
        }
    }

    /// Runs the container in a connection that was there before, and stays.
    async fn join(
        self,
        mut invocation: Invocation,
        connection: &Running,
        engaged: Option<Engaged>,
        signals: &mut Signals,
    ) -> Result<u8> {
        let outcome = self.start(&mut invocation, &connection.name, &connection.id, signals).await;
        if let Some(engaged) = engaged {
            let goes_on = match &outcome {
                Ok(done) if done.interrupted => self.split.detached && done.code == 0,
                Ok(done) => done.code == 0 && (self.split.detached || runs_on(&invocation, &connection.id).await),
                Err(_) => false,
            };
            if goes_on {
                say_goes_on(&engaged);
            } else {
                // A signal that comes now is told, and the container has ended already.
                let _ = engaged.end(signals).await;
            }
            invocation.on_engaged(None);
        }
        match outcome {
            Ok(done) if done.interrupted && !self.split.detached => invocation.keep_ended(),
            // What runs on in the background needs no reaper.
            Ok(_) => invocation.keep(),
            Err(_) => invocation.clean_up().await,
        }
        outcome.map(|done| done.code)
    }

    /// Runs the container in a connection of its own, which ends with it.
    async fn with_own(
        self,
        mut invocation: Invocation,
        mut made: Made,
        engaged: Option<Engaged>,
        signals: &mut Signals,
    ) -> Result<u8> {
        let outcome = self.start(&mut invocation, made.name.as_str(), &made.id, signals).await;
        let joined = match &outcome {
            Ok(_) => joined(&invocation, &made).await,
            Err(_) => Joined::Nobody,
        };
        if let Some(engaged) = engaged {
            let interrupted = outcome.as_ref().is_ok_and(|done| done.interrupted);
            if joined == Joined::Own && (self.split.detached || !interrupted) {
                say_goes_on(&engaged);
            } else {
                let _ = engaged.end(signals).await;
            }
            invocation.on_engaged(None);
        }
        let done = match outcome {
            Ok(done) => done,
            Err(error) => {
                invocation.clean_up().await;
                return Err(error);
            }
        };
        match joined {
            Joined::Own if self.split.detached => invocation.keep(),
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
    async fn start(
        &self,
        invocation: &mut Invocation,
        connection: &str,
        daemon_id: &str,
        signals: &mut Signals,
    ) -> Result<Done> {
        let container = container_name(connection);
        let passing = Passing::new(&self.borrowed.environment, &self.split)?;
        let args = self.args(connection, &invocation.id, &passing);
        let mut command = self.program.command(&args);
        command.envs(passing.inherited.iter().map(|(name, value)| (name, value)));
        let mut child = command
            .spawn()
            .map_err(|e| CliError::user(format!("cannot start {}: {e}", self.program.path.display())).because(&e))?;
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
                    if !self.split.detached {
                        // The terminal may be in raw mode, for the container.
                        eprint!("\r\ntp: {container} is gone: this container has no network any more\r\n");
                    }
                }
            }
        };
        invocation.on_docker_cli(None);
        drop(passing);
        let status = status.map_err(|e| CliError::user(format!("cannot wait for docker: {e}")).because(&e))?;
        Ok(Done { code: exit_code_of(status), interrupted })
    }

    /// The arguments for the user's CLI.
    fn args(&self, connection: &str, invocation: &str, passing: &Passing) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["run".into()];
        let labels = [(label::ROLE, role::HANDLER), (label::CONNECTION, connection), (label::INVOCATION, invocation)];
        args.extend(labels.map(|(key, value)| format!("--label={key}={value}").into()));
        args.push(format!("--network=container:{}", container_name(connection)).into());
        args.extend(passing.flags());
        args.push(format!("--env=TP_CONNECTION={connection}").into());
        args.extend(self.borrowed.flags_beside(&self.split).map(Flag::to_arg));
        args.extend(self.split.pass.iter().map(Flag::to_arg));
        match &self.borrowed.image {
            Some((image, command)) => args.extend([image].into_iter().chain(command).map(OsString::from)),
            None => args.extend(self.parsed.image.iter().chain(&self.parsed.args).cloned()),
        }
        args
    }
}

fn say_goes_on(engaged: &Engaged) {
    let (workload, connection) = (&engaged.workload, &engaged.connection.name);
    eprintln!(
        "The container goes on, and so does what it handles: `tp leave {workload} --use {connection}` ends that."
    );
}

/// Whether a container of this run goes on, beside the daemon's. When the engine does not say, none does.
async fn runs_on(invocation: &Invocation, daemon_id: &str) -> bool {
    let own = invocation.engine.of_invocation(&invocation.id).await.unwrap_or_default();
    own.iter().any(|container| container.id != daemon_id && !container.has_ended)
}

/// Looks who is on the connection that this run made. When the engine does not say, nobody is: it ends.
async fn joined(invocation: &Invocation, made: &Made) -> Joined {
    if runs_on(invocation, &made.id).await {
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

    fn args(parsed: Parsed, borrowed: Borrowed, flags: &[(&str, Option<&str>)]) -> String {
        let flag = |(name, value): &(&str, Option<&str>)| Flag { name: (*name).into(), value: value.map(Into::into) };
        let split = split(flags.iter().map(flag).collect()).unwrap();
        let passing = Passing::new(&borrowed.environment, &split).unwrap();
        let program = Program { path: "docker".into(), args: Vec::new(), env: Vec::new() };
        let run = Run { program, parsed, split, borrowed };
        let args = run.args("dev", "01", &passing).into_iter().map(|arg| arg.into_string().unwrap());
        args.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn container_joins_and_is_labelled_before_the_user_s_own_options() {
        let parsed = Parsed { image: Some("img".into()), args: vec!["--x".into()], ..Parsed::default() };
        assert_eq!(
            args(parsed, Borrowed::default(), &[("rm", None)]),
            "run --label=tp.role=handler --label=tp.connection=dev --label=tp.invocation=01 \
             --network=container:tp-dev --env=TP_CONNECTION=dev --rm img --x"
        );
    }

    #[test]
    fn what_is_borrowed_comes_before_the_user_s_own_options() {
        let environment = [("KEY".to_owned(), "two\nlines".to_owned())].into_iter().collect();
        let flags = vec![Flag { name: "workdir".into(), value: Some("/srv".into()) }];
        let image = Some(("theirs".to_owned(), vec!["serve".to_owned()]));
        let borrowed = Borrowed { environment, flags, image };
        let own = [("env", Some("A=1"))];
        let head =
            "run --label=tp.role=handler --label=tp.connection=dev --label=tp.invocation=01 --network=container:tp-dev";
        assert_eq!(
            args(Parsed::default(), borrowed.clone(), &own),
            format!("{head} --env=KEY --env=TP_CONNECTION=dev --workdir=/srv --env=A=1 theirs serve")
        );
        let own = [("env", Some("KEY=1")), ("workdir", Some("/w"))];
        assert_eq!(
            args(Parsed::default(), borrowed, &own),
            format!("{head} --env=TP_CONNECTION=dev --env=KEY=1 --workdir=/w theirs serve")
        );
    }
}
