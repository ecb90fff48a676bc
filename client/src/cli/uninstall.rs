//! `tp uninstall`.

mod cluster;
mod engagements;

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use jiff::Timestamp;

use super::helm::{Target, find_helm};
use super::session;
use super::setup::{CommonArgs, KubeArgs, load};
use super::signals::Signals;
use crate::config::Layer;
use crate::config::value::Namespace;
use crate::docker::Engine;
use crate::docker::connections::{Connection, Found};
use crate::docker::image::Image;
use crate::error::{CliError, Result};
use crate::progress::Progress;
use cluster::{Cluster, Remains};

/// Remove all that tp put into the cluster and into the container engine
///
/// In the cluster: the release of the traffic manager, what the manager made, and the namespace if tp made it. In the
/// engine: all connections, the containers that joined them, and the daemon's images. Both are found by their labels.
/// What is to be removed is shown first.
#[derive(clap::Args, Debug)]
pub(super) struct UninstallArgs {
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Remove what is in the cluster, or what is in the engine, only
    #[arg(long, value_name = "PLACE")]
    only: Option<Place>,
    /// Namespace of the traffic manager [default: tp-system]
    #[arg(short = 'n', long, value_name = "NAMESPACE", help_heading = "Cluster options")]
    manager_namespace: Option<Namespace>,
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// Where tp puts things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Place {
    /// The Kubernetes cluster.
    Cluster,
    /// The container engine of this machine.
    Engine,
}

impl UninstallArgs {
    pub(super) fn verbose(&self) -> bool {
        self.common.verbosity.verbose
    }
}

/// Runs `tp uninstall`.
pub(super) async fn run(args: UninstallArgs) -> Result<u8> {
    let mut signals = Signals::catch();
    let progress = Progress::start(None);
    let (cluster, engine) = signals.or(find(&args, &progress)).await?;
    drop(progress);
    let mut lines = Vec::new();
    if let Some((cluster, remains)) = &cluster {
        lines.extend(remains.describe(cluster));
    }
    if let Some(local) = &engine {
        lines.extend(local.describe());
    }
    if lines.is_empty() {
        eprintln!("There is nothing of tp left to remove.");
        return Ok(0);
    }
    for line in &lines {
        eprintln!("{line}");
    }
    if !args.yes && !ask()? {
        eprintln!("Nothing was removed.");
        return Ok(1);
    }
    let progress = Progress::start(None);
    signals.or(remove(cluster, engine, &progress)).await?;
    drop(progress);
    eprintln!("Removed.");
    Ok(0)
}

async fn find(args: &UninstallArgs, progress: &Progress) -> Result<(Option<(Cluster, Remains)>, Option<Local>)> {
    let flags = Layer { manager_namespace: args.manager_namespace.clone(), ..Layer::default() };
    let setup = load(&args.common, &args.kube, flags)?;
    let engine = if args.only == Some(Place::Cluster) {
        None
    } else {
        Some(Local::find(session::engine(progress).await?).await?)
    };
    if args.only == Some(Place::Engine) {
        return Ok((None, engine));
    }
    if let (Err(error), None) = (&setup.selected, args.only) {
        eprintln!("No cluster to look into: {error}");
        return Ok((None, engine));
    }
    progress.step("looking for what is in the cluster");
    let helm = find_helm().ok();
    let target = Target::of(setup, &args.kube, helm.clone().unwrap_or_default())?;
    let access = target.selected.access(Timestamp::now(), |name| std::env::var(name).ok()).await?;
    let cluster = Cluster::new(access, target, helm.is_some())?;
    let remains = cluster.find().await?;
    Ok((Some((cluster, remains)), engine))
}

async fn remove(cluster: Option<(Cluster, Remains)>, local: Option<Local>, progress: &Progress) -> Result<()> {
    // Sessions first: their managers are to be told.
    if let Some(local) = &local {
        local.remove_containers(progress).await?;
    }
    if let Some((cluster, remains)) = cluster {
        cluster.remove(&remains, progress).await?;
    }
    if let Some(local) = &local {
        local.remove_images(progress).await?;
    }
    Ok(())
}

/// Asks on the terminal.
fn ask() -> Result<bool> {
    if !io::stdin().is_terminal() {
        return Err(CliError::user("will not remove anything without being told to").hint("say --yes"));
    }
    eprint!("Remove all this? [y/N] ");
    let problem = |e: io::Error| CliError::user(format!("cannot ask: {e}")).because(&e);
    io::stderr().flush().map_err(problem)?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(problem)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// What is in the engine.
struct Local {
    engine: Engine,
    connections: Vec<Connection>,
    containers: Vec<Found>,
    images: Vec<Image>,
}

impl Local {
    async fn find(engine: Engine) -> Result<Self> {
        let connections = engine.connections().await?;
        let mut containers = engine.all_containers().await?;
        containers.retain(|container| !connections.iter().any(|connection| connection.id == container.id));
        let images = engine.images().await?;
        Ok(Self { engine, connections, containers, images })
    }

    fn describe(&self) -> Vec<String> {
        let list = |names: Vec<&str>| names.iter().map(|name| format!("  {name}")).collect::<Vec<_>>();
        let mut lines = Vec::new();
        let mut section = |title: &str, names: Vec<&str>| {
            if !names.is_empty() {
                lines.push(format!("{title} in the container engine at {}:", self.engine.endpoint().address));
                lines.extend(list(names));
            }
        };
        section("Connections", self.connections.iter().map(|connection| connection.name.as_str()).collect());
        section(
            "Containers that joined them",
            self.containers.iter().map(|container| container.name.as_str()).collect(),
        );
        section("Images", self.images.iter().map(|image| image.reference.as_str()).collect());
        lines
    }

    async fn remove_containers(&self, progress: &Progress) -> Result<()> {
        for container in &self.containers {
            progress.step(format!("removing {}", container.name));
            self.engine.remove(&container.id).await?;
        }
        for connection in &self.connections {
            progress.step(format!("ending {}", connection.name));
            if connection.running {
                session::end(&self.engine, &connection.id, None).await?;
            } else {
                self.engine.remove(&connection.id).await?;
            }
        }
        Ok(())
    }

    async fn remove_images(&self, progress: &Progress) -> Result<()> {
        for image in &self.images {
            progress.step(format!("removing {}", image.reference));
            self.engine.remove_image(&image.reference).await?;
        }
        Ok(())
    }
}
