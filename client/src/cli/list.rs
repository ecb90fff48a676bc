//! `tp list`.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Serialize;
use tp_protocol::engage::call::{List, Listed, answer, call};

use super::engage::ask::{self, Chosen};
use super::engage::{ANSWER_LIMIT, report::EngagementReport};
use super::output::{Format, human_since, print, print_json};
use super::select::UseArgs;
use super::setup::VerbosityArgs;
use super::signals::Signals;
use crate::config::value::Namespace;
use crate::error::Result;
use crate::progress::Progress;

/// Heads of the columns.
const HEAD: [&str; 7] = ["WORKLOAD", "ENGAGED BY", "WHAT", "PORTS", "FILTER", "SINCE", "STATE"];

/// Show the workloads of a namespace, and who has engaged them
///
/// Lists the engagements of everybody, and where the containers that are engaged have volumes. STATE says `handler away` when nothing answered last time at the port that is engaged for.
#[derive(clap::Args, Debug)]
pub(super) struct ListArgs {
    /// Look into this namespace [default: the connection's]
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<Namespace>,
    /// Show the engagements of all namespaces, and no other workloads
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    #[command(flatten)]
    connection: UseArgs,
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Format,
    #[command(flatten)]
    verbosity: VerbosityArgs,
}

impl ListArgs {
    pub(super) fn verbose(&self) -> bool {
        self.verbosity.verbose
    }
}

/// What there is.
#[derive(Debug, Serialize)]
struct ListReport {
    /// `null` for all.
    namespace: Option<String>,
    /// `KIND/NAME`.
    workloads: Vec<String>,
    engagements: Vec<EngagementReport>,
}

/// Runs `tp list`.
pub(super) async fn run(args: ListArgs) -> Result<u8> {
    let mut signals = Signals::catch();
    let progress = Progress::start(Some(ANSWER_LIMIT));
    let report = signals.or(list(&args, &progress)).await?;
    drop(progress);
    match args.output {
        Format::Json => print_json(&report)?,
        Format::Text => print(&render(&report, Timestamp::now()))?,
    }
    Ok(0)
}

async fn list(args: &ListArgs, progress: &Progress) -> Result<ListReport> {
    let mut chosen = Chosen::choose(&args.connection, progress).await?;
    let namespace = match &args.namespace {
        _ if args.all_namespaces => String::new(),
        Some(namespace) => namespace.as_str().to_owned(),
        None => chosen.connection.namespace.clone(),
    };
    progress.step("asking the traffic manager");
    let list = call::Kind::List(List { namespace: namespace.clone() });
    match chosen.ask(list, ANSWER_LIMIT, progress).await? {
        answer::Kind::Listed(listed) => Ok(ListReport::new(namespace, listed)),
        other => Err(ask::unexpected(&other)),
    }
}

impl ListReport {
    fn new(namespace: String, listed: Listed) -> Self {
        Self {
            namespace: Some(namespace).filter(|namespace| !namespace.is_empty()),
            workloads: listed.workloads,
            engagements: listed.engagements.into_iter().map(EngagementReport::from).collect(),
        }
    }
}

fn render(report: &ListReport, now: Timestamp) -> String {
    let rows = rows(report, now);
    if rows.is_empty() {
        return match &report.namespace {
            Some(namespace) => format!("There are no workloads in namespace {namespace}.\n"),
            None => "Nothing is engaged.\n".to_owned(),
        };
    }
    let head = HEAD.map(str::to_owned);
    let widths: [usize; HEAD.len()] = std::array::from_fn(|column| {
        let cells = rows.iter().chain([&head]).map(|row| row[column].chars().count());
        cells.max().unwrap_or_default()
    });
    let line = |row: &[String; HEAD.len()]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    let table: String = [&head].into_iter().chain(&rows).map(line).collect();
    table + &volumes(report)
}

/// Where containers that are engaged have volumes: each container once, however many people have engaged it.
fn volumes(report: &ListReport) -> String {
    let mut told = BTreeSet::new();
    let mut out = String::new();
    for it in report.engagements.iter().filter(|it| !it.mounts.is_empty()) {
        let place = format!("container {} of {} in {}", it.container, it.workload, it.namespace);
        if told.insert(place.clone()) {
            writeln!(out, "\nVolumes of {place}:").expect("writing to a string");
            for mount in &it.mounts {
                writeln!(out, "  {mount}").expect("writing to a string");
            }
        }
    }
    out
}

/// Each workload once, or once for each of its engagements; then engagements of workloads that are not there any more.
fn rows(report: &ListReport, now: Timestamp) -> Vec<[String; HEAD.len()]> {
    let mut rows = Vec::new();
    for workload in &report.workloads {
        let of_it = report.engagements.iter().filter(|it| it.workload == *workload);
        let before = rows.len();
        rows.extend(of_it.map(|it| row(it, workload.clone(), now)));
        if rows.len() == before {
            let mut free: [String; HEAD.len()] = Default::default();
            free[0].clone_from(workload);
            free[1] = "-".to_owned();
            rows.push(free);
        }
    }
    let others = report.engagements.iter().filter(|it| !report.workloads.contains(&it.workload));
    rows.extend(others.map(|it| {
        let workload = match report.namespace {
            Some(_) => it.workload.clone(),
            None => format!("{}: {}", it.namespace, it.workload),
        };
        row(it, workload, now)
    }));
    rows
}

fn row(it: &EngagementReport, workload: String, now: Timestamp) -> [String; HEAD.len()] {
    let ports =
        it.ports.iter().map(|port| if it.mine { format!("{port} -> {}", port.local) } else { port.to_string() });
    let you = if it.mine { " (you)" } else { "" };
    [
        workload,
        format!("{}{you}", it.holder),
        it.what.to_string(),
        ports.collect::<Vec<_>>().join(", "),
        it.filter_text().to_owned(),
        it.since.map_or_else(|| "-".to_owned(), |since| human_since(since.as_second(), now)),
        it.state(),
    ]
}

#[cfg(test)]
mod tests {
    use tp_protocol::engage::call::{Held, Mount, Report};
    use tp_protocol::engage::wire::Kind;

    use super::*;
    use crate::cli::engage::example;

    fn rendered(namespace: &str, workloads: &[&str], engagements: Vec<Held>) -> String {
        let workloads = workloads.iter().map(|&workload| workload.to_owned()).collect();
        let report = ListReport::new(namespace.to_owned(), Listed { workloads, engagements });
        render(&report, Timestamp::from_second(1_000_090).unwrap())
    }

    #[test]
    fn workloads_are_listed_with_who_has_them() {
        let mine = Held { is_mine: true, ..example() };
        let away = Report { is_away: true, ..Report::default() };
        let other = Held {
            holder: "bob@desk".into(),
            what: Kind::Wiretap.into(),
            filter: None,
            report: Some(away),
            since: 0,
            ..example()
        };
        let gone = Held { workload: "deployment/old".into(), problem: "the workload is gone".into(), ..example() };
        assert_eq!(
            rendered("shop", &["deployment/cart", "deployment/web"], vec![mine, other, gone]),
            "\
WORKLOAD         ENGAGED BY        WHAT       PORTS                       FILTER              SINCE  STATE
deployment/cart  -
deployment/web   ann@laptop (you)  intercept  8080/tcp -> 127.0.0.1:9000  x-user=ann and GET  1m30s  active
deployment/web   bob@desk          wiretap    8080/tcp                    all traffic         -      handler away
deployment/old   ann@laptop        intercept  8080/tcp                    x-user=ann and GET  1m30s  the workload is gone
"
        );
    }

    #[test]
    fn engagements_of_all_namespaces_say_which() {
        let text = rendered("", &[], vec![example()]);
        assert!(text.contains("\nshop: deployment/web  ann@laptop  intercept  8080/tcp  "), "{text}");
        assert_eq!(rendered("", &[], vec![]), "Nothing is engaged.\n");
        assert_eq!(rendered("shop", &[], vec![]), "There are no workloads in namespace shop.\n");
    }

    #[test]
    fn volumes_of_engaged_containers_are_listed_once() {
        let mount = |path: &str| Mount { path: path.into(), volume: "emptyDir".into(), is_read_only: false };
        let ingest = Held {
            what: Kind::Ingest.into(),
            ports: Vec::new(),
            filter: None,
            mounts: vec![mount("/data"), mount("/tmp")],
            ..example()
        };
        let text = rendered("shop", &["deployment/web"], vec![ingest.clone(), ingest]);
        assert!(text.contains("deployment/web  ann@laptop  ingest         no traffic  1m30s  active\n"), "{text}");
        let volumes =
            "\n\nVolumes of container app of deployment/web in shop:\n  /data (emptyDir)\n  /tmp (emptyDir)\n";
        assert!(text.ends_with(volumes), "{text}");
    }

    #[test]
    fn json_has_what_the_manager_said_in_its_order() {
        let listed = Listed { workloads: vec!["deployment/web".into()], engagements: vec![example()] };
        let json = serde_json::to_value(ListReport::new("shop".into(), listed)).unwrap();
        assert_eq!((&json["namespace"], &json["workloads"][0]), (&"shop".into(), &"deployment/web".into()));
        assert_eq!(json["engagements"][0]["workload"], "deployment/web");
    }
}
