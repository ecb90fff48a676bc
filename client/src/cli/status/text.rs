//! `tp status` for people.

use std::fmt::Write as _;

use jiff::Timestamp;

use super::report::{ConnectionReport, Report, State};
use super::running_names;
use crate::cli::engage::report::EngagementReport;
use crate::cli::output::{human_bytes, human_since};

/// Agents listed; a cluster can have hundreds.
const MAX_AGENTS: usize = 20;

/// Groups of the user that are listed; identity providers know hundreds.
const MAX_GROUPS: usize = 5;

/// Renders the whole report.
pub(super) fn render(report: &Report, now: Timestamp) -> String {
    if report.connections.is_empty() {
        return "Not connected. `tp connect` connects; `tp docker-run IMAGE` does so by itself.\n".to_owned();
    }
    let blocks: Vec<_> = report.connections.iter().map(|connection| block(connection, now)).collect();
    blocks.join("\n")
}

fn block(c: &ConnectionReport, now: Timestamp) -> String {
    let mut out = String::new();
    let mut line = |label: &str, text: String| {
        if !text.is_empty() {
            writeln!(out, "  {label:<11} {text}").expect("writing to a string");
        }
    };
    line("Context:", with(&c.context, &c.server));
    line("Namespace:", c.namespace.clone());
    line("Manager:", manager(c));
    line("User:", user(c));
    line("Domain:", c.cluster.domain.clone());
    line("Services:", c.cluster.service_subnets.join(", "));
    line("Pods:", c.cluster.pod_subnets.join(", "));
    line("Also:", c.also().join(", "));
    line("Never:", c.excluded.join(", "));
    for it in &c.virtual_subnets {
        line("Virtual:", format!("{} as {} ({})", it.subnet, it.seen_as, it.reason));
    }
    line("DNS:", with(&c.dns.address, &c.dns.search.join(" ")));
    line("Mapped:", c.dns.mappings.join(", "));
    match c.dns.virtual_addresses {
        0 => {}
        1 => line("Outside:", "1 address of the cluster's names, seen as a virtual one".to_owned()),
        count => line("Outside:", format!("{count} addresses of the cluster's names, seen as virtual ones")),
    }
    if !c.agents.is_empty() {
        let agents = c.agents.iter().take(MAX_AGENTS);
        let mut agents: Vec<_> = agents.map(|a| format!("{}/{} {}", a.namespace, a.pod, a.version)).collect();
        if c.agents.len() > MAX_AGENTS {
            agents.push(format!("and {} more", c.agents.len() - MAX_AGENTS));
        }
        line("Agents:", agents.join(", "));
    }
    line("Via:", via(c));
    for it in &c.engagements {
        line("Engaged:", engaged(it));
    }
    if matches!(c.state, State::Connected | State::Reconnecting) {
        let t = &c.traffic;
        let (up, down) = (human_bytes(t.bytes_up), human_bytes(t.bytes_down));
        line("Traffic:", format!("{} TCP and {} UDP open, {up} up, {down} down", t.tcp_flows, t.udp_flows));
    }
    line("Daemon:", daemon(c));
    line(
        "Containers:",
        c.containers.iter().map(|h| format!("{} ({})", h.name, h.image)).collect::<Vec<_>>().join(", "),
    );
    for advice in advice(c) {
        line("->", advice);
    }
    format!("{}\n{out}", headline(c, now))
}

fn headline(c: &ConnectionReport, now: Timestamp) -> String {
    let reason = c.reason.as_deref().unwrap_or("the reason is not known");
    let state = match (c.state, c.connected_at) {
        (State::Connecting, _) => "connecting".to_owned(),
        (State::Connected, None) => "connected".to_owned(),
        (State::Connected, Some(at)) => format!("connected for {}", human_since(at.as_second(), now)),
        (State::Reconnecting, _) => format!("reconnecting: {reason}"),
        (State::Unresponsive, _) => format!("not answering: {reason}"),
        (State::Ended, _) => format!("ended: {reason}"),
        (State::Gone, _) => format!("gone: {reason}"),
    };
    let held = if c.held { ", until the command that made it ends" } else { "" };
    format!("{} ({}): {state}{held}", c.name, c.container)
}

fn manager(c: &ConnectionReport) -> String {
    match (c.manager.version.as_str(), c.manager.pod.as_str()) {
        ("", _) | (_, "") if c.manager.namespace.is_empty() => String::new(),
        ("", _) | (_, "") => format!("in {}", c.manager.namespace),
        (version, pod) => format!("{version}, {pod} in {}", c.manager.namespace),
    }
}

/// `ann (developers, system:authenticated)`.
fn user(c: &ConnectionReport) -> String {
    let Some(user) = &c.user else { return c.user_problem.clone().unwrap_or_default() };
    let mut groups: Vec<_> = user.groups.iter().take(MAX_GROUPS).cloned().collect();
    if user.groups.len() > MAX_GROUPS {
        groups.push(format!("and {} more", user.groups.len() - MAX_GROUPS));
    }
    with(&user.name, &groups.join(", "))
}

/// `web`, or `web: connections wait, since ...`.
fn via(c: &ConnectionReport) -> String {
    match (&c.via, &c.via_problem) {
        (None, _) => String::new(),
        (Some(via), None) => via.clone(),
        (Some(via), Some(why)) => format!("{via}: connections may have to wait: {why}"),
    }
}

/// `intercept of deployment/web in shop (x-user=ann), 8080/tcp -> 127.0.0.1:8080, active`.
fn engaged(it: &EngagementReport) -> String {
    let ports = it.ports.iter().map(|port| format!("{port} -> {}", port.local));
    let parts: Vec<_> = [it.summary()].into_iter().chain(ports).chain([it.state()]).collect();
    parts.join(", ")
}

fn daemon(c: &ConnectionReport) -> String {
    let d = &c.daemon;
    let mut parts = Vec::new();
    if !d.version.is_empty() {
        parts.push(d.version.clone());
    }
    if d.resident_bytes > 0 {
        parts.push(human_bytes(d.resident_bytes));
    }
    for (count, what) in [(d.restarts, "restarted"), (c.traffic.reconnects, "reconnected")] {
        match count {
            0 => {}
            1 => parts.push(format!("{what} once")),
            count => parts.push(format!("{what} {count} times")),
        }
    }
    parts.join(", ")
}

/// What to do about what is not as it should be.
fn advice(c: &ConnectionReport) -> Vec<String> {
    let mut advice = Vec::new();
    let joined = running_names(&c.containers).join(" ");
    match c.state {
        State::Ended => {
            advice.push(format!(
                "`tp quit --use {0}` removes what is left, `tp connect --name {0}` connects again",
                c.name
            ));
        }
        State::Unresponsive => {
            advice.push(format!("look at `docker logs {}`; `tp quit --use {}` removes it", c.container, c.name));
        }
        State::Gone => advice
            .push(format!("its containers have no network any more: `docker rm -f {joined}`, then start them again")),
        State::Connecting | State::Connected | State::Reconnecting => {}
    }
    if c.state == State::Ended && !joined.is_empty() {
        advice.push(format!("containers without a network until they are started again: {joined}"));
    }
    let unrouted = c.unrouted();
    if c.state == State::Connected && !unrouted.is_empty() {
        let subnets = unrouted.join(", ");
        advice.push(format!(
            "new subnets are not routed ({subnets}): `tp connect --name {0}` adds those that overlap with nothing, a new \
             connection the others (`tp quit --use {0}` first)",
            c.name
        ));
    }
    let own = env!("CARGO_PKG_VERSION");
    if !c.daemon.version.is_empty() && c.daemon.version != own {
        advice.push(format!("its daemon is {}, this tp is {own}: connect again to use this one", c.daemon.version));
    }
    advice
}

/// A text with another in parentheses; without them when there is no other.
fn with(text: &str, more: &str) -> String {
    if more.is_empty() { text.to_owned() } else { format!("{text} ({more})") }
}
