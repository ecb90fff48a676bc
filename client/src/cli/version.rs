//! `tp version`.

use futures_util::future::join_all;
use serde::Serialize;

use super::output::{Format, print, print_json};
use super::setup::VerbosityArgs;
use super::status::{ConnectionReport, ask};
use crate::docker::Engine;
use crate::error::Result;

/// Show the versions of the client, the engine and the traffic managers
///
/// Without an engine, or a connection, what there is is shown.
#[derive(clap::Args, Debug)]
pub(super) struct VersionArgs {
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Format,
    #[command(flatten)]
    verbosity: VerbosityArgs,
}

impl VersionArgs {
    pub(super) fn verbose(&self) -> bool {
        self.verbosity.verbose
    }
}

#[derive(Serialize)]
struct Versions {
    client: Client,
    engine: Option<EngineVersion>,
    connections: Vec<ConnectionVersions>,
}

#[derive(Serialize)]
struct Client {
    version: &'static str,
    os: &'static str,
    arch: &'static str,
}

#[derive(Serialize)]
struct EngineVersion {
    name: &'static str,
    version: String,
    os: String,
    arch: String,
}

#[derive(Serialize)]
struct ConnectionVersions {
    name: String,
    daemon: String,
    manager: String,
}

/// Runs `tp version`.
pub(super) async fn run(args: VersionArgs) -> Result<u8> {
    let client = Client { version: env!("CARGO_PKG_VERSION"), os: std::env::consts::OS, arch: std::env::consts::ARCH };
    let mut versions = Versions { client, engine: None, connections: Vec::new() };
    // No engine is no failure here.
    if let Ok(engine) = Engine::from_env().await {
        let connections = engine.connections().await.unwrap_or_default();
        let answers = join_all(connections.iter().map(|connection| ask(&engine, connection))).await;
        let reports = connections.iter().zip(answers).map(|(c, answer)| ConnectionReport::new(c, answer, Vec::new()));
        versions.connections = reports
            .map(|report| ConnectionVersions {
                name: report.name,
                daemon: report.daemon.version,
                manager: report.manager.version,
            })
            .collect();
        let info = engine.info().clone();
        versions.engine = Some(EngineVersion { name: info.name, version: info.version, os: info.os, arch: info.arch });
    }
    match args.output {
        Format::Json => print_json(&versions)?,
        Format::Text => print(&text(&versions))?,
    }
    Ok(0)
}

fn text(versions: &Versions) -> String {
    let mut lines =
        vec![format!("client   {} ({}/{})", versions.client.version, versions.client.os, versions.client.arch)];
    lines.push(match &versions.engine {
        Some(engine) => format!("engine   {} {} ({}/{})", engine.name, engine.version, engine.os, engine.arch),
        None => "engine   none found".to_owned(),
    });
    for connection in &versions.connections {
        let known = |version: &str| if version.is_empty() { "not known".to_owned() } else { version.to_owned() };
        let (daemon, manager) = (known(&connection.daemon), known(&connection.manager));
        lines.push(format!("{}   daemon {daemon}, manager {manager}", connection.name));
    }
    lines.join("\n") + "\n"
}
