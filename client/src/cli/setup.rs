//! The flags that several commands share, and the settings that come of them.

use std::path::PathBuf;

use crate::config::file::{Place, read};
use crate::config::network::{DnsMapping, Vnat};
use crate::config::value::{ConnectionName, Domain, HumanDuration, LogLevel, Namespace, Subnet};
use crate::config::{Layer, Settings, Source, Sources};
use crate::error::Result;
use crate::kubeconfig::{Kubeconfig, Selected};

/// Flags of every command that reads settings.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct CommonArgs {
    /// Read settings from this file instead of the usual config.yaml (also TP_CONFIG)
    #[arg(long, value_name = "FILE", help_heading = "General options")]
    pub(super) config: Option<PathBuf>,
    #[command(flatten)]
    pub(super) verbosity: VerbosityArgs,
}

/// Flags of every command.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub(super) struct VerbosityArgs {
    /// Show what caused an error
    #[arg(short, long, help_heading = "General options")]
    pub(super) verbose: bool,
}

/// Which cluster.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct KubeArgs {
    /// Use this kubeconfig instead of those that KUBECONFIG lists, or ~/.kube/config
    #[arg(long, value_name = "FILE", help_heading = "Cluster options")]
    pub(super) kubeconfig: Option<PathBuf>,
    /// Use this context of the kubeconfig instead of the current one
    #[arg(long, env = "TP_CONTEXT", hide_env_values = true, value_name = "NAME", help_heading = "Cluster options")]
    pub(super) context: Option<String>,
}

/// Settings of a connection, as flags.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct SettingArgs {
    /// Connect to this namespace: its services have short names [default: the context's, or `default`]
    #[arg(short, long, value_name = "NAMESPACE", help_heading = "Cluster options")]
    pub(super) namespace: Option<Namespace>,
    /// Find the traffic manager in this namespace [default: tp-system]
    #[arg(long, value_name = "NAMESPACE", help_heading = "Cluster options")]
    pub(super) manager_namespace: Option<Namespace>,
    #[command(flatten)]
    pub(super) network: NetworkArgs,
    /// Give up connecting after this time [default: 7s]
    #[arg(long, value_name = "DURATION")]
    pub(super) connect_timeout: Option<HumanDuration>,
    /// End a detached connection that was idle for this long; 0 for never [default: 12h]
    #[arg(long, value_name = "DURATION")]
    pub(super) idle_limit: Option<HumanDuration>,
    /// How much the daemon logs, see `docker logs tp-NAME` [default: info]
    #[arg(long, value_name = "LEVEL", hide_possible_values = true)]
    pub(super) log_level: Option<LogLevel>,
}

impl SettingArgs {
    /// The flags as the strongest layer of settings.
    pub(super) fn layer(&self) -> Layer {
        Layer {
            namespace: self.namespace.clone(),
            manager_namespace: self.manager_namespace.clone(),
            connect_timeout: self.connect_timeout,
            idle_limit: self.idle_limit,
            log_level: self.log_level,
            ..self.network.layer()
        }
    }
}

/// Settings of a connection's network, as flags.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct NetworkArgs {
    /// Reach this subnet through the cluster as well
    #[arg(long, value_name = "SUBNET", value_delimiter = ',', help_heading = "Network options")]
    also_proxy: Vec<Subnet>,
    /// Never reach this subnet through the cluster; the more specific one counts
    #[arg(long, value_name = "SUBNET", value_delimiter = ',', help_heading = "Network options")]
    never_proxy: Vec<Subnet>,
    /// Have the cluster's DNS resolve the names of this domain as well
    #[arg(long, value_name = "DOMAIN", value_delimiter = ',', help_heading = "Network options")]
    dns_include: Vec<Domain>,
    /// Never ask the cluster's DNS for the names of this domain; the more specific one counts
    #[arg(long, value_name = "DOMAIN", value_delimiter = ',', help_heading = "Network options")]
    dns_exclude: Vec<Domain>,
    /// Have a name stand for another one, which is resolved where that is known, or for an address
    #[arg(long = "dns-mapping", value_name = "NAME=TARGET", value_delimiter = ',', help_heading = "Network options")]
    dns_mappings: Vec<DnsMapping>,
    /// See this subnet of the cluster as a virtual one, as those that overlap with networks of this machine are: a SUBNET,
    /// `service`, `pods`, `also` or `all`; `none` maps nothing but what is named
    #[arg(long, value_name = "WHAT", value_delimiter = ',', help_heading = "Network options")]
    vnat: Vec<Vnat>,
}

impl NetworkArgs {
    /// The flags as a layer of settings, which has no others.
    pub(super) fn layer(&self) -> Layer {
        fn given<T: Clone>(list: &[T]) -> Option<Vec<T>> {
            (!list.is_empty()).then(|| list.to_vec())
        }
        Layer {
            also_proxy: given(&self.also_proxy),
            never_proxy: given(&self.never_proxy),
            dns_include: given(&self.dns_include),
            dns_exclude: given(&self.dns_exclude),
            dns_mappings: given(&self.dns_mappings),
            vnat: given(&self.vnat),
            ..Layer::default()
        }
    }
}

/// The settings in force, and the context they are for.
pub(super) struct Setup {
    /// The sources, to which the chart's can be added.
    pub(super) sources: Sources,
    /// The settings in force.
    pub(super) settings: Settings,
    /// The kubeconfig context, or why there is none.
    pub(super) selected: Result<Selected>,
}

/// Reads all sources of settings. A kubeconfig that cannot be used is an error only for who needs it.
///
/// # Errors
/// Usage errors: a bad configuration file, variable or cluster extension.
pub(super) fn load(common: &CommonArgs, kube: &KubeArgs, flags: Layer) -> Result<Setup> {
    let var = |name: &str| std::env::var(name).ok();
    let file = match Place::find(common.config.as_deref(), var) {
        Some(place) => read(&place)?,
        None => None,
    };
    let env = Layer::from_env(var)?;
    let selected = Kubeconfig::load(kube.kubeconfig.as_deref(), var)
        .and_then(|kubeconfig| kubeconfig.select(kube.context.as_deref()));
    let selected = match selected {
        Err(error) if error.is_usage() => return Err(error),
        other => other,
    };

    let mut sources = Sources::default();
    if let Ok(selected) = &selected {
        let implied = Layer {
            namespace: selected.namespace.clone(),
            name: Some(ConnectionName::from_text(&selected.context)),
            ..Layer::default()
        };
        sources.push(Source::Context(selected.context.clone()), implied);
    }
    if let Some((path, layer)) = file {
        sources.push(Source::File(path), layer);
    }
    if let Ok(Selected { settings: Some((path, layer)), .. }) = &selected {
        sources.push(Source::Kubeconfig(path.clone()), layer.clone());
    }
    sources.push(Source::Env, env);
    sources.push(Source::Flag, flags);
    let settings = sources.settings();
    Ok(Setup { sources, settings, selected })
}
