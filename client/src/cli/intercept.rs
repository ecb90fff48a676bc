//! `tp intercept`.

use tp_protocol::engage::wire::Kind;

use super::engage::{self, AwayArgs, EngageArgs, FilterArgs, TrafficArgs, Wish};

/// Take a workload's traffic: your handler answers
///
/// What the Service sends to the workload arrives at a container on this machine: at LOCAL in the network of the connection,
/// which containers of `tp docker-run` share. With filters, those requests only; the others go to the workload's pods, which keep
/// running, and several people can intercept one workload at a time. While the handler is away the pods answer, unless
/// --when-away says otherwise.
///
/// It stays until `tp leave` or `tp quit`. With a container behind `--`, that is the handler: it runs in the network of the
/// connection, as `tp docker-run` does, with the environment of the workload's container, and the intercept ends with it.
#[derive(clap::Args, Debug)]
#[command(
    override_usage = "tp intercept [OPTIONS] WORKLOAD [-- [DOCKER RUN OPTIONS] IMAGE [COMMAND] [ARG...]]",
    after_help = "\
Examples:
  tp intercept web                                  its only port, at the same number here
  tp intercept web -p 8080:http                     its port `http`, at 8080 here
  tp intercept web -p 8080 --http-header x-user=ann
  tp intercept cart -p 9000 --grpc shop.Cart/Add --when-away fail
  tp intercept web -p 8080 -- --rm -it my-web:dev   by a container with its environment"
)]
pub(super) struct InterceptArgs {
    #[command(flatten)]
    traffic: TrafficArgs,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    away: AwayArgs,
    #[command(flatten)]
    engage: EngageArgs,
}

/// Runs `tp intercept`; returns the exit code.
pub(super) fn run(args: InterceptArgs) -> u8 {
    let InterceptArgs { traffic, filter, away, engage } = args;
    engage::run(Wish { kind: Kind::Intercept, engage, traffic: Some(traffic), filter: Some(filter), away: Some(away) })
}
