//! The command line: one file per command.

mod child;
mod completion;
mod config;
mod connect;
mod daemon;
mod docker_run;
mod engage;
mod environment;
mod helm;
mod ingest;
mod intercept;
mod leave;
mod list;
mod output;
mod publish;
mod quit;
mod replace;
mod select;
mod session;
mod setup;
mod signals;
mod status;
mod uninstall;
mod version;
mod wiretap;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::error::{Result, exit_code};

/// Exit code of wrong usage, as clap and tp's own usage errors have it.
const EXIT_USAGE: u8 = 2;

/// Run containers on this machine as if they were in a Kubernetes cluster
///
/// `tp docker-run IMAGE` starts a container here that sees the cluster as a pod does: same network, same DNS names.
/// Nothing on this machine changes, and no rights on it are needed but those to use Docker or podman.
///
/// In the cluster it takes the traffic manager (`tp helm install`, once, by an administrator), and for everybody who
/// connects the right to port-forward to its pod.
#[derive(Parser, Debug)]
#[command(name = "tp", version, disable_help_subcommand = true, help_template = HELP_TEMPLATE)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const HELP_TEMPLATE: &str = "\
{about}

{usage-heading} tp COMMAND [OPTIONS]

Use a cluster:
  connect      Connect to a cluster; run a command while connected
  docker-run   Run a container in the cluster's network; connects if nothing is connected
  status       Show the connections and what they reach
  quit         End a connection

Engage a workload:
  intercept    Take a workload's traffic: your handler answers
  replace      Take the place of a workload: all of its traffic is your handler's
  wiretap      Get a copy of a workload's traffic: its pods answer
  ingest       Get a workload's environment, and none of its traffic
  list         Show the workloads of a namespace, and who has engaged them
  leave        End an intercept, a replace, a wiretap or an ingest

Prepare a cluster:
  helm         Install, upgrade, uninstall or check the traffic manager
  uninstall    Remove all that tp put into the cluster and into the container engine

Others:
  config       Show the settings and where each comes from
  version      Show the versions of the client, the engine and the traffic managers
  completion   Print a completion script for a shell

{options}

`tp COMMAND --help` explains a command.
";

#[derive(Subcommand, Debug)]
enum Command {
    Connect(connect::ConnectArgs),
    DockerRun(docker_run::DockerRunArgs),
    Status(status::StatusArgs),
    Quit(quit::QuitArgs),
    Intercept(intercept::InterceptArgs),
    Replace(replace::ReplaceArgs),
    Wiretap(wiretap::WiretapArgs),
    Ingest(ingest::IngestArgs),
    List(list::ListArgs),
    Leave(leave::LeaveArgs),
    Version(version::VersionArgs),
    Helm(helm::HelmArgs),
    Uninstall(uninstall::UninstallArgs),
    Config(config::ConfigArgs),
    Completion(completion::CompletionArgs),
    #[command(hide = true)]
    Daemon(daemon::DaemonArgs),
    #[command(hide = true)]
    Reap(crate::reap::ReapArgs),
}

/// Runs the command that `args` (the program's name included) ask for.
pub(crate) fn run(args: Vec<OsString>) -> ExitCode {
    // docker-run's arguments are docker's: clap must not take them for its own.
    if args.get(1).is_some_and(|arg| arg == docker_run::NAME) {
        return exit_code(docker_run::run(args.into_iter().skip(2).collect()));
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => return exit_code(print_usage_error(&e)),
    };
    exit_code(match cli.command {
        Command::Connect(args) => finish(args.verbose(), on_runtime(connect::run(args))),
        Command::DockerRun(_) => docker_run::run(Vec::new()),
        Command::Status(args) => finish(args.verbose(), on_runtime(status::run(args))),
        Command::Quit(args) => finish(args.verbose(), on_runtime(quit::run(args))),
        Command::Intercept(args) => intercept::run(args),
        Command::Replace(args) => replace::run(args),
        Command::Wiretap(args) => wiretap::run(args),
        Command::Ingest(args) => ingest::run(args),
        Command::List(args) => finish(args.verbose(), on_runtime(list::run(args))),
        Command::Leave(args) => finish(args.verbose(), on_runtime(leave::run(args))),
        Command::Version(args) => finish(args.verbose(), on_runtime(version::run(args))),
        Command::Helm(args) => finish(args.verbose(), on_runtime(helm::run(args))),
        Command::Uninstall(args) => finish(args.verbose(), on_runtime(uninstall::run(args))),
        Command::Config(args) => finish(args.verbose(), on_runtime(config::run(args))),
        Command::Completion(args) => finish(false, completion::run(&args)),
        Command::Daemon(args) => return daemon::run(&args),
        Command::Reap(args) => on_runtime(crate::reap::run(args)),
    })
}

/// Prints help (to stdout) or a usage error (to stderr) and returns the exit code.
fn print_usage_error(e: &clap::Error) -> u8 {
    // Nobody is left to tell when the terminal is gone.
    let _ = e.print();
    if e.use_stderr() { EXIT_USAGE } else { 0 }
}

/// Prints the error of a command that failed and returns the exit code.
fn finish(verbose: bool, outcome: Result<u8>) -> u8 {
    outcome.unwrap_or_else(|error| {
        error.print(verbose);
        error.exit_code()
    })
}

/// Runs a command on one thread: it mostly waits.
fn on_runtime<T>(command: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("the system has threads");
    let outcome = runtime.block_on(command);
    // A thread that still reads standard input must not keep the process.
    runtime.shutdown_background();
    outcome
}

/// The whole command line, for completion scripts and for the help of docker-run.
fn command() -> clap::Command {
    Cli::command()
}

/// Reads arguments that were set apart already.
fn parse_from<T: clap::Args>(name: &'static str, args: Vec<OsString>) -> std::result::Result<T, clap::Error> {
    let command = T::augment_args(clap::Command::new(name).no_binary_name(true).disable_help_flag(true));
    let mut matches = command.try_get_matches_from(args)?;
    T::from_arg_matches_mut(&mut matches)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn help_lists_every_command() {
        for subcommand in command().get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
            let listed = format!("\n  {} ", subcommand.get_name());
            assert!(HELP_TEMPLATE.contains(&listed), "{}", subcommand.get_name());
        }
    }

    #[test]
    fn every_option_is_explained() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for arg in command.get_arguments() {
                assert!(arg.get_help().is_some(), "{} {}", command.get_name(), arg.get_id());
            }
            command.get_subcommands().for_each(check);
        }
        command().get_subcommands().for_each(check);
    }
}
