//! `tp ingest`.

use tp_protocol::engage::wire::Kind;

use super::engage::{self, EngageArgs, Wish};

/// Get a workload's environment, and none of its traffic
///
/// Its pods go on as they are, nobody else notices, and any number of people can ingest one workload. The environment is that
/// of the container in the pod: ConfigMaps, Secrets and fields of the pod are in it, resolved. It is written to files, or given to
/// a container behind `--`, which runs in the network of the connection as one of `tp docker-run` does.
///
/// It stays until `tp leave` or `tp quit`; with a container, until that ends.
#[derive(clap::Args, Debug)]
#[command(
    override_usage = "tp ingest [OPTIONS] WORKLOAD [-- [DOCKER RUN OPTIONS] IMAGE [COMMAND] [ARG...]]",
    after_help = "\
Examples:
  tp ingest web --env-file .env
  tp ingest web --env-file env.sh --env-syntax sh
  tp ingest web --env-json - --env-exclude HOSTNAME
  tp ingest web -- --rm -it -v .:/src my-web:dev bash   its environment in a container here"
)]
pub(super) struct IngestArgs {
    #[command(flatten)]
    engage: EngageArgs,
}

/// Runs `tp ingest`; returns the exit code.
pub(super) fn run(args: IngestArgs) -> u8 {
    engage::run(Wish { kind: Kind::Ingest, engage: args.engage, traffic: None, filter: None, away: None })
}
