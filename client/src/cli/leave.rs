//! `tp leave`.

use serde::Serialize;
use tp_protocol::engage::call::Leave;

use super::engage::ANSWER_LIMIT;
use super::engage::ask::Chosen;
use super::engage::report::{EngagementReport, What};
use super::output::{Format, print, print_json};
use super::select::UseArgs;
use super::setup::VerbosityArgs;
use super::signals::Signals;
use crate::config::value::Namespace;
use crate::error::{CliError, Result};
use crate::progress::Progress;

/// End an intercept, a replace, a wiretap or an ingest
///
/// Ends what this connection holds, and no one else's. Without a name it is the only one, and it is no error when there is
/// none. Returns when the traffic goes to the workload's pods again; requests that are under way go on to their end.
#[derive(clap::Args, Debug)]
pub(super) struct LeaveArgs {
    /// The workload, or the id that `tp list --output json` shows
    #[arg(value_name = "WORKLOAD")]
    what: Option<String>,
    /// End all that the connection holds
    #[arg(long, conflicts_with = "what")]
    all: bool,
    /// Only in this namespace [default: any]
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<Namespace>,
    #[command(flatten)]
    connection: UseArgs,
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Format,
    #[command(flatten)]
    verbosity: VerbosityArgs,
}

impl LeaveArgs {
    pub(super) fn verbose(&self) -> bool {
        self.verbosity.verbose
    }
}

/// What has ended.
#[derive(Debug, Serialize)]
struct Ended {
    ended: Vec<EngagementReport>,
}

/// Runs `tp leave`.
pub(super) async fn run(args: LeaveArgs) -> Result<u8> {
    let mut signals = Signals::catch();
    let progress = Progress::start(Some(ANSWER_LIMIT));
    let ended = signals.or(leave(&args, &progress)).await?;
    drop(progress);
    match args.output {
        Format::Json => print_json(&Ended { ended })?,
        Format::Text => print(&render(&ended))?,
    }
    Ok(0)
}

async fn leave(args: &LeaveArgs, progress: &Progress) -> Result<Vec<EngagementReport>> {
    let mut chosen = Chosen::choose(&args.connection, progress).await?;
    let namespace = args.namespace.as_ref().map(|namespace| namespace.as_str().to_owned()).unwrap_or_default();
    let what = match &args.what {
        Some(what) => what.clone(),
        None if args.all => String::new(),
        None => {
            let held = chosen.status().await?.engagements.into_iter().map(EngagementReport::from);
            // From where a connection dials is part of it, and ends with it.
            let held = held.filter(|it| it.what != What::Via);
            let held: Vec<_> = held.filter(|it| namespace.is_empty() || it.namespace == namespace).collect();
            match only(&held)? {
                Some(id) => id.to_owned(),
                None => return Ok(Vec::new()),
            }
        }
    };
    let ended = chosen.leave(Leave { what, namespace }, ANSWER_LIMIT, progress).await?;
    Ok(ended.into_iter().map(EngagementReport::from).collect())
}

/// The id of the only engagement; `None` when there is none.
fn only(held: &[EngagementReport]) -> Result<Option<&str>> {
    match held {
        [] => Ok(None),
        [one] => Ok(Some(&one.id)),
        several => {
            let list: Vec<_> = several.iter().map(|it| format!("{}  {}", it.id, it.summary())).collect();
            Err(CliError::user("there are several engagements")
                .detail(list.join("\n"))
                .hint("say which one, or end all of them with --all"))
        }
    }
}

fn render(ended: &[EngagementReport]) -> String {
    if ended.is_empty() {
        return "Nothing is engaged.\n".to_owned();
    }
    ended.iter().map(|it| format!("Ended: {}.\n", it.summary())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::engage::example;

    #[test]
    fn one_engagement_needs_no_name_and_two_do() {
        assert_eq!(only(&[]).unwrap(), None);
        assert_eq!(only(&[example().into()]).unwrap(), Some("tp-web-x7c2d"));
        let error = only(&[example().into(), example().into()]).unwrap_err();
        assert!(
            error.render(false).contains("  tp-web-x7c2d  intercept of deployment/web in shop (x-user=ann and GET)\n"),
            "{error:?}"
        );
    }

    #[test]
    fn what_has_ended_is_said() {
        assert_eq!(render(&[]), "Nothing is engaged.\n");
        assert_eq!(render(&[example().into()]), "Ended: intercept of deployment/web in shop (x-user=ann and GET).\n");
        let json = serde_json::to_value(Ended { ended: vec![example().into()] }).unwrap();
        assert_eq!(json["ended"][0]["id"], "tp-web-x7c2d");
    }
}
