//! `tp wiretap`.

use tp_protocol::engage::wire::Kind;

use super::engage::{self, EngageArgs, FilterArgs, TrafficArgs, Wish};

/// Get a copy of a workload's traffic: its pods answer
///
/// As `tp intercept`, but the handler gets copies, and what it answers is thrown away. Callers never notice: a handler that is
/// away or slow loses copies. Any number of people can listen to one workload.
///
/// It stays until `tp leave` or `tp quit`; with a container behind `--`, until that ends.
#[derive(clap::Args, Debug)]
#[command(
    override_usage = "tp wiretap [OPTIONS] WORKLOAD [-- [DOCKER RUN OPTIONS] IMAGE [COMMAND] [ARG...]]",
    after_help = "\
Examples:
  tp wiretap web                                    its only port, at the same number here
  tp wiretap web -p 8080:http --http-method POST
  tp wiretap web -- --rm my-listener                by a container with its environment"
)]
pub(super) struct WiretapArgs {
    #[command(flatten)]
    traffic: TrafficArgs,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    engage: EngageArgs,
}

/// Runs `tp wiretap`; returns the exit code.
pub(super) fn run(args: WiretapArgs) -> u8 {
    let WiretapArgs { traffic, filter, engage } = args;
    engage::run(Wish { kind: Kind::Wiretap, engage, traffic: Some(traffic), filter: Some(filter), away: None })
}
