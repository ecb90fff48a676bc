//! `tp replace`.

use tp_protocol::engage::wire::Kind;

use super::engage::{self, AwayArgs, EngageArgs, TrafficArgs, Wish};

/// Take the place of a workload: all of its traffic is your handler's
///
/// As `tp intercept` without filters, of all ports of the container unless --port names some. Nobody else can have the workload
/// meanwhile, and while the handler is away callers are refused, unless --when-away says otherwise.
///
/// In the mode stand-in the workload's pods keep running, and get no traffic of the Service: what they do by themselves, such
/// as taking messages from a queue, they go on to do.
///
/// It stays until `tp leave` or `tp quit`; with a container behind `--`, until that ends.
#[derive(clap::Args, Debug)]
#[command(
    override_usage = "tp replace [OPTIONS] WORKLOAD [-- [DOCKER RUN OPTIONS] IMAGE [COMMAND] [ARG...]]",
    after_help = "\
Examples:
  tp replace web                                    all of its ports, at the same numbers here
  tp replace web -p 8080:http --when-away hold
  tp replace web -- --rm my-web:dev                 by a container with its environment"
)]
pub(super) struct ReplaceArgs {
    #[command(flatten)]
    traffic: TrafficArgs,
    #[command(flatten)]
    away: AwayArgs,
    #[command(flatten)]
    engage: EngageArgs,
}

/// Runs `tp replace`; returns the exit code.
pub(super) fn run(args: ReplaceArgs) -> u8 {
    let ReplaceArgs { traffic, away, engage } = args;
    engage::run(Wish { kind: Kind::Replace, engage, traffic: Some(traffic), filter: None, away: Some(away) })
}
