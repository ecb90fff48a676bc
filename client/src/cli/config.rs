//! `tp config view`.

use std::collections::BTreeMap;

use serde::Serialize;

use super::output::{print, print_json};
use super::session;
use super::setup::{CommonArgs, KubeArgs, load};
use super::status::{Answer, ask};
use crate::config::{Layer, Source, Sources};
use crate::docker::connections::Connection;
use crate::error::Result;
use crate::progress::Progress;

/// Show the settings and where each comes from
#[derive(clap::Args, Debug)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(clap::Subcommand, Debug)]
enum ConfigCommand {
    View(ViewArgs),
}

/// Show the settings in force and where each comes from
///
/// Weakest first, settings come from: built-in defaults, the chart's client settings (known while connected), config.yaml
/// (in ~/.config/tp, or where TP_CONFIG or --config says), the extension `tp` of the cluster in the kubeconfig, variables
/// TP_* (TP_IDLE_LIMIT for `idle-limit`), flags.
///
/// The keys: manager-namespace, namespace, name, networks (Docker networks that the connection joins), also-proxy,
/// never-proxy (subnets), dns-include, dns-exclude (domains), dns-mappings (NAME=TARGET), vnat (subnets, service, pods, also,
/// all, none), idle-limit, log-level (error, warn, info, debug, trace), connect-timeout, docker (the docker or podman CLI
/// for the user's own containers). Durations read 60s, 12h.
#[derive(clap::Args, Debug)]
struct ViewArgs {
    /// How to print: text (YAML, the sources as comments), json or yaml (both with the source of each value)
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_possible_values = true)]
    output: ViewFormat,
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ViewFormat {
    Text,
    Json,
    Yaml,
}

impl ConfigArgs {
    pub(super) fn verbose(&self) -> bool {
        let ConfigCommand::View(args) = &self.command;
        args.common.verbosity.verbose
    }
}

#[derive(Serialize)]
struct Entry {
    value: serde_json::Value,
    source: String,
}

/// Runs `tp config`.
pub(super) async fn run(args: ConfigArgs) -> Result<u8> {
    let ConfigCommand::View(args) = args.command;
    let setup = load(&args.common, &args.kube, Layer::default())?;
    let mut sources = Sources::default();
    if let Some((connection, layer)) = chart_layer(setup.settings.name.value.as_str()).await {
        sources.push(Source::Chart(connection), layer);
    }
    sources.extend(setup.sources);
    let entries = sources.settings().entries();
    let document = || -> BTreeMap<&str, Entry> {
        entries
            .iter()
            .map(|(key, value, source)| (*key, Entry { value: value.clone(), source: source.clone() }))
            .collect()
    };
    match args.output {
        ViewFormat::Json => print_json(&document())?,
        ViewFormat::Yaml => print(&serde_saphyr::to_string(&document()).expect("plain values"))?,
        ViewFormat::Text => print(&text(&entries))?,
    }
    Ok(0)
}

/// The chart's client settings, from the connection of this name or the only one there is.
async fn chart_layer(name: &str) -> Option<(String, Layer)> {
    // Without an engine there is no connection.
    let engine = session::engine(&Progress::start(None)).await.ok()?;
    let connections = engine.connections().await.ok()?;
    let running: Vec<&Connection> = connections.iter().filter(|connection| connection.running).collect();
    let connection = running.iter().find(|c| c.name == name).or(match running.as_slice() {
        [one] => Some(one),
        _ => None,
    })?;
    let Answer::Status(status) = ask(&engine, connection).await else { return None };
    Some((connection.name.clone(), Layer::from_chart(&status.chart_settings_json).ok()?))
}

/// YAML that could be a config.yaml, with the sources as comments.
fn text(entries: &[(&'static str, serde_json::Value, String)]) -> String {
    let lines: Vec<_> = entries.iter().map(|(key, value, _)| format!("{key}: {}", scalar(value))).collect();
    let width = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
    let lines = lines.iter().zip(entries).map(|(line, (.., source))| format!("{line:width$}  # {source}\n"));
    lines.collect()
}

/// JSON is YAML; plain words look better without quotes.
fn scalar(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) if is_plain(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Whether YAML reads the word as this text.
fn is_plain(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/' | '.');
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let words = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    let number_and_unit = text.starts_with(|c: char| c.is_ascii_digit()) && text.ends_with(['s', 'm', 'h']);
    text.chars().all(plain) && (starts || number_and_unit) && !words.contains(&text.to_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_yaml_that_reads_back() {
        let mut sources = Sources::default();
        let layer = Layer { name: Some("no".parse().unwrap()), networks: Some(vec!["a".into()]), ..Layer::default() };
        sources.push(Source::Env, layer);
        let text = text(&sources.settings().entries());
        assert!(text.contains("idle-limit: 12h "), "{text}");
        assert!(text.contains(r#"name: "no" "#), "{text}");
        assert!(text.contains("# TP_NAME\n"), "{text}");
        let read: Layer = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(read.name.unwrap().as_str(), "no");
        assert_eq!(read.networks.unwrap(), ["a"]);
    }
}
