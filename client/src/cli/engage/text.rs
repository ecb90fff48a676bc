//! What people are told who have engaged a workload.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use super::report::{EngagementReport, Mode, Port, What, WhenAway};
use crate::config::value::HumanDuration;

/// What is engaged and how; `files` says where its environment has been written to.
pub(super) fn engaged(held: &EngagementReport, files: &[String]) -> String {
    let mut out = format!("{} {} in namespace {}.\n", verb(held.what), held.workload, held.namespace);
    let mut line = |label: &str, text: &str| writeln!(out, "  {label:<8} {text}").expect("writing to a string");
    for port in &held.ports {
        line("Port:", &route(port, &held.service));
    }
    for port in &held.to_pod {
        line("To pod:", &format!("127.0.0.1:{port} -> the same in one of its pods"));
    }
    line("Traffic:", &traffic(held));
    if held.what == What::Ingest {
        line("From:", &format!("container {}", held.container));
        for mount in &held.mounts {
            line("Volume:", &mount.to_string());
        }
    } else {
        line("Away:", &away(held));
    }
    let why = if held.why_mode.is_empty() { String::new() } else { format!(": {}", held.why_mode) };
    line("Mode:", &format!("{}{why}", held.mode));
    for file in files {
        line("Written:", file);
    }
    if let Some(problem) = &held.problem {
        line("Problem:", problem);
    }
    out
}

/// What to do next, where no handler is run with the engagement. `has_environment`: it is written somewhere already.
pub(super) fn next(held: &EngagementReport, connection: &str, has_environment: bool) -> String {
    let mut out = String::new();
    match held.what {
        What::Ingest if !has_environment => {
            out.push_str("Take its environment here: by --env-file, --env-json, or an image behind `--`.\n");
        }
        What::Ingest | What::Via => {}
        What::Intercept | What::Wiretap | What::Replace | What::Unknown => {
            let start = start(&held.ports, connection);
            writeln!(out, "Start your handler: it listens on {start}.").expect("writing to a string");
        }
    }
    writeln!(out, "`tp leave {}` ends it.", held.name()).expect("writing to a string");
    out
}

fn verb(what: What) -> &'static str {
    match what {
        What::Intercept => "Intercepting",
        What::Wiretap => "Listening to",
        What::Replace => "Replacing",
        What::Ingest => "Ingesting",
        What::Via => "Dialling by way of",
        What::Unknown => "Engaging",
    }
}

/// `80 of Service web (8080/tcp in its pods) -> 127.0.0.1:8080`.
fn route(port: &Port, service: &str) -> String {
    match port.service_port {
        Some(number) if !service.is_empty() => {
            format!("{number} of Service {service} ({port} in its pods) -> {}", port.local)
        }
        Some(_) | None => format!("{port} -> {}", port.local),
    }
}

fn traffic(held: &EngagementReport) -> String {
    let all = match &held.filter {
        None => "all of it".to_owned(),
        Some(rules) => format!("requests with {}", rules.text),
    };
    match (held.what, &held.filter) {
        (What::Ingest | What::Via, _) => "none: the cluster's pods serve".to_owned(),
        (What::Replace, None) if held.mode == Mode::StandIn => {
            format!("{all}; the workload's pods run on, and get none of the Service's")
        }
        (What::Wiretap, _) => format!("a copy of {all}; the cluster's pods answer"),
        (_, Some(_)) => format!("{all}; all others go to the cluster's pods"),
        (_, None) => all,
    }
}

fn away(held: &EngagementReport) -> String {
    let wait = Duration::from_millis(held.wait_ms.into());
    let after = if wait.is_zero() { String::new() } else { format!(" after {}", HumanDuration(wait)) };
    match (held.what, held.when_away) {
        (What::Wiretap, _) => "copies are lost while your handler is away".to_owned(),
        (_, WhenAway::Cluster) => format!("while your handler is, the cluster's pods answer{after}"),
        (_, WhenAway::Fail) => format!("while your handler is, callers are refused{after}"),
        (_, WhenAway::Hold) => "while your handler is, callers wait for it".to_owned(),
        (_, WhenAway::Unknown) => "unknown to this tp".to_owned(),
    }
}

/// Where the handler has to listen, and how it gets there.
fn start(ports: &[Port], connection: &str) -> String {
    let locals: Vec<Option<SocketAddr>> = ports.iter().map(|port| port.local.parse().ok()).collect();
    let in_container = locals.iter().all(|local| local.is_some_and(|local| local.ip().is_loopback()));
    if !in_container {
        return ports.iter().map(|port| port.local.as_str()).collect::<Vec<_>>().join(" and ");
    }
    let numbers = locals.iter().zip(ports).filter_map(|(local, port)| Some((local.as_ref()?, port)));
    let numbers: Vec<_> = numbers.map(|(local, port)| format!("{}{}", local.port(), suffix(port))).collect();
    let ports = if numbers.len() == 1 { "port" } else { "ports" };
    format!("{ports} {} in `tp docker-run --use {connection} IMAGE`", numbers.join(" and "))
}

fn suffix(port: &Port) -> &'static str {
    if port.transport == "udp" { "/udp" } else { "" }
}
