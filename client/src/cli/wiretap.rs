//! `tp wiretap`.

use tp_protocol::engage::wire::Kind;

use super::engage::{self, EngageArgs};
use crate::error::Result;

/// Get a copy of a workload's traffic: its pods answer
///
/// As `tp intercept`, but the handler gets copies, and what it answers is thrown away. Callers never notice: a handler that is
/// away or slow loses copies. Any number of people can listen to one workload.
///
/// It stays until `tp leave` or `tp quit`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  tp wiretap web                                    its only port, at the same number here
  tp wiretap web -p 8080:http --http-method POST")]
pub(super) struct WiretapArgs {
    #[command(flatten)]
    engage: EngageArgs,
}

impl WiretapArgs {
    pub(super) fn verbose(&self) -> bool {
        self.engage.verbose()
    }
}

/// Runs `tp wiretap`.
pub(super) async fn run(args: WiretapArgs) -> Result<u8> {
    engage::run(Kind::Wiretap, args.engage).await
}
