//! `tp intercept`.

use tp_protocol::engage::wire::Kind;

use super::engage::{self, EngageArgs};
use crate::error::Result;

/// Take a workload's traffic: your handler answers
///
/// What the Service sends to the workload arrives at a container on this machine: at LOCAL in the network of the connection,
/// which containers of `tp docker-run` share. With filters, those requests only; the others go to the workload's pods, which keep
/// running, and several people can intercept one workload at a time. While the handler is away the pods answer, unless
/// --when-away says otherwise.
///
/// It stays until `tp leave` or `tp quit`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  tp intercept web                                  its only port, at the same number here
  tp intercept web -p 8080:http                     its port `http`, at 8080 here
  tp intercept web -p 8080 --http-header x-user=ann
  tp intercept cart -p 9000 --grpc shop.Cart/Add --when-away fail")]
pub(super) struct InterceptArgs {
    #[command(flatten)]
    engage: EngageArgs,
}

impl InterceptArgs {
    pub(super) fn verbose(&self) -> bool {
        self.engage.verbose()
    }
}

/// Runs `tp intercept`.
pub(super) async fn run(args: InterceptArgs) -> Result<u8> {
    engage::run(Kind::Intercept, args.engage).await
}
