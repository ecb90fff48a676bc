//! `tp helm`.

pub(super) mod chart;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace as KubeNamespace;
use kube::api::{Api, ObjectMeta, PostParams};

use super::docker_run::on_path;
use super::setup::{CommonArgs, KubeArgs, Setup, load};
use super::signals::Signals;
use crate::config::value::{HumanDuration, Namespace};
use crate::config::{DEFAULT_MANAGER_NAMESPACE, Layer};
use crate::error::{CliError, Result};
use crate::kubeconfig::Selected;
use crate::kubeconfig::client::{client, explain};
use crate::progress::Progress;
use chart::Chart;

/// Name of the release. Clients find the manager by the names that come of it.
pub(super) const RELEASE: &str = "tp-manager";
/// How long the manager may take to be ready: its image has to be pulled.
const DEFAULT_WAIT: HumanDuration = HumanDuration::from_secs(300);
/// Label of a namespace that tp made, which `tp uninstall` therefore may remove.
pub(super) const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "tp");

/// Install, upgrade, uninstall or check the traffic manager
///
/// Runs helm, which has to be installed, with the chart that is built into tp. An administrator of the cluster does this
/// once; those who connect need no more than the right to port-forward to the manager's pod.
#[derive(clap::Args, Debug)]
pub(super) struct HelmArgs {
    #[command(subcommand)]
    command: HelmCommand,
}

#[derive(clap::Subcommand, Debug)]
enum HelmCommand {
    /// Install the traffic manager and wait until it is ready
    Install(InstallArgs),
    /// Upgrade the traffic manager to this release, or change its values, and wait until it is ready
    Upgrade(UpgradeArgs),
    /// Uninstall the traffic manager; `tp uninstall` removes what it made as well
    Uninstall(UninstallArgs),
    /// Check values against the chart, without a cluster
    Lint(LintArgs),
}

#[derive(clap::Args, Debug)]
struct TargetArgs {
    /// Namespace of the traffic manager [default: tp-system]
    #[arg(short = 'n', long, visible_alias = "namespace", value_name = "NAMESPACE", help_heading = "Cluster options")]
    manager_namespace: Option<Namespace>,
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    common: CommonArgs,
    /// Further arguments for helm
    #[arg(last = true, value_name = "HELM ARGUMENTS")]
    helm_args: Vec<OsString>,
}

#[derive(clap::Args, Debug, Default)]
struct ValuesArgs {
    /// Read values from a YAML file; a later one wins
    #[arg(short = 'f', long, value_name = "FILE")]
    values: Vec<OsString>,
    /// Set a value, as in helm: log.level=debug
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<OsString>,
    /// Set a value that is text whatever it looks like
    #[arg(long, value_name = "KEY=VALUE")]
    set_string: Vec<OsString>,
    /// Set a value to the contents of a file
    #[arg(long, value_name = "KEY=FILE")]
    set_file: Vec<OsString>,
    /// Set a value in JSON
    #[arg(long, value_name = "KEY=JSON")]
    set_json: Vec<OsString>,
}

impl ValuesArgs {
    fn to_args(&self) -> Vec<OsString> {
        let flags = [
            ("--values", &self.values),
            ("--set", &self.set),
            ("--set-string", &self.set_string),
            ("--set-file", &self.set_file),
            ("--set-json", &self.set_json),
        ];
        flags
            .iter()
            .flat_map(|(flag, values)| values.iter().flat_map(|value| [(*flag).into(), value.clone()]))
            .collect()
    }
}

#[derive(clap::Args, Debug)]
struct WaitArgs {
    /// Wait for the manager for at most this long; 0: do not wait
    #[arg(long, value_name = "DURATION", default_value_t = DEFAULT_WAIT)]
    timeout: HumanDuration,
    /// Run no hooks of the chart
    #[arg(long)]
    no_hooks: bool,
}

impl WaitArgs {
    fn to_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = Vec::new();
        if !self.timeout.as_duration().is_zero() {
            args.push("--wait".into());
            args.push(format!("--timeout={}s", self.timeout.as_duration().as_secs().max(1)).into());
        }
        if self.no_hooks {
            args.push("--no-hooks".into());
        }
        args
    }
}

#[derive(clap::Args, Debug)]
struct InstallArgs {
    /// Make the namespace if it is not there
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    create_namespace: bool,
    #[command(flatten)]
    values: ValuesArgs,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(clap::Args, Debug)]
struct UpgradeArgs {
    /// Keep the values of the last release, but for those that are given
    #[arg(long, conflicts_with = "reset_values")]
    reuse_values: bool,
    /// Forget the values of the last release
    #[arg(long)]
    reset_values: bool,
    #[command(flatten)]
    values: ValuesArgs,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(clap::Args, Debug)]
struct UninstallArgs {
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(clap::Args, Debug)]
struct LintArgs {
    #[command(flatten)]
    values: ValuesArgs,
    #[command(flatten)]
    common: CommonArgs,
    /// Further arguments for helm
    #[arg(last = true, value_name = "HELM ARGUMENTS")]
    helm_args: Vec<OsString>,
}

impl HelmArgs {
    pub(super) fn verbose(&self) -> bool {
        match &self.command {
            HelmCommand::Install(args) => args.target.common.verbosity.verbose,
            HelmCommand::Upgrade(args) => args.target.common.verbosity.verbose,
            HelmCommand::Uninstall(args) => args.target.common.verbosity.verbose,
            HelmCommand::Lint(args) => args.common.verbosity.verbose,
        }
    }
}

/// Runs `tp helm`.
pub(super) async fn run(args: HelmArgs) -> Result<u8> {
    let mut signals = Signals::catch();
    let verbose = args.verbose();
    let done = match args.command {
        HelmCommand::Install(args) => signals.or(install(args)).await?,
        HelmCommand::Upgrade(args) => signals.or(upgrade(args)).await?,
        HelmCommand::Uninstall(args) => signals.or(uninstall(args)).await?,
        HelmCommand::Lint(args) => signals.or(lint(args)).await?,
    };
    if verbose {
        eprint!("{}", done.helm_said);
    }
    eprintln!("{}", done.summary);
    Ok(0)
}

struct Done {
    helm_said: String,
    summary: String,
}

async fn install(args: InstallArgs) -> Result<Done> {
    let target = Target::new(&args.target)?;
    let chart = Chart::unpack()?;
    let progress = Progress::start(Some(args.wait.timeout.as_duration()));
    if args.create_namespace {
        progress.step(format!("making namespace {}", target.namespace));
        target.create_namespace().await?;
    }
    progress.step(format!("installing the traffic manager in {} and waiting until it is ready", target.namespace));
    let rest = [args.values.to_args(), args.wait.to_args(), args.target.helm_args].concat();
    let helm_said = target.helm("install", Some(chart.path()), rest).await?;
    drop(progress);
    Ok(Done {
        helm_said,
        summary: format!(
            "Installed the traffic manager {} in {} of context {}. `tp connect{}` connects.",
            env!("CARGO_PKG_VERSION"),
            target.namespace,
            target.context,
            if target.namespace.as_str() == DEFAULT_MANAGER_NAMESPACE {
                String::new()
            } else {
                format!(" --manager-namespace {}", target.namespace)
            }
        ),
    })
}

async fn upgrade(args: UpgradeArgs) -> Result<Done> {
    let target = Target::new(&args.target)?;
    let chart = Chart::unpack()?;
    let progress = Progress::start(Some(args.wait.timeout.as_duration()));
    progress.step(format!("upgrading the traffic manager in {} and waiting until it is ready", target.namespace));
    let mut rest = [args.values.to_args(), args.wait.to_args(), args.target.helm_args].concat();
    for (wanted, flag) in [(args.reuse_values, "--reuse-values"), (args.reset_values, "--reset-values")] {
        if wanted {
            rest.push(flag.into());
        }
    }
    let helm_said = target.helm("upgrade", Some(chart.path()), rest).await?;
    drop(progress);
    let version = env!("CARGO_PKG_VERSION");
    let summary =
        format!("Upgraded the traffic manager in {} of context {} to {version}.", target.namespace, target.context);
    Ok(Done { helm_said, summary })
}

async fn uninstall(args: UninstallArgs) -> Result<Done> {
    let target = Target::new(&args.target)?;
    let progress = Progress::start(None);
    progress.step(format!("uninstalling the traffic manager in {}", target.namespace));
    let rest = [args.wait.to_args(), args.target.helm_args].concat();
    let helm_said = target.helm("uninstall", None, rest).await?;
    drop(progress);
    let summary = format!("Uninstalled the traffic manager from {} of context {}.", target.namespace, target.context);
    Ok(Done { helm_said, summary })
}

async fn lint(args: LintArgs) -> Result<Done> {
    let chart = Chart::unpack()?;
    let mut helm = tokio::process::Command::new(find_helm()?);
    helm.arg("lint").arg(chart.path()).args(args.values.to_args()).args(args.helm_args);
    let helm_said = run_helm(helm, "lint").await?;
    Ok(Done { helm_said, summary: "The chart and these values are in order.".to_owned() })
}

/// Which release in which cluster.
pub(super) struct Target {
    pub(super) namespace: Namespace,
    pub(super) context: String,
    pub(super) selected: Selected,
    kubeconfig: Option<PathBuf>,
    helm: PathBuf,
}

impl Target {
    fn new(args: &TargetArgs) -> Result<Self> {
        let flags = Layer { manager_namespace: args.manager_namespace.clone(), ..Layer::default() };
        let setup = load(&args.common, &args.kube, flags)?;
        Self::of(setup, &args.kube, find_helm()?)
    }

    /// The release in the namespace of the settings.
    pub(super) fn of(setup: Setup, kube: &KubeArgs, helm: PathBuf) -> Result<Self> {
        let selected = setup.selected?;
        Ok(Self {
            namespace: setup.settings.manager_namespace.value,
            context: selected.context.clone(),
            selected,
            kubeconfig: kube.kubeconfig.clone(),
            helm,
        })
    }

    /// Makes the namespace, with a label by which `tp uninstall` knows it as ours.
    async fn create_namespace(&self) -> Result<()> {
        let access = self.selected.access(Timestamp::now(), |name| std::env::var(name).ok()).await?;
        let namespace = KubeNamespace {
            metadata: ObjectMeta {
                name: Some(self.namespace.to_string()),
                labels: Some([(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned())].into()),
                ..ObjectMeta::default()
            },
            ..KubeNamespace::default()
        };
        let namespaces: Api<KubeNamespace> = Api::all(client(&access)?);
        match namespaces.create(&PostParams::default(), &namespace).await {
            Ok(_) => Ok(()),
            // It is there.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            // It may be there for a user who may not make any: helm will tell.
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(()),
            Err(e) => Err(explain(&format!("make the namespace {}", self.namespace), &access, &e)),
        }
    }

    /// Runs helm on the release; returns what it printed.
    ///
    /// # Errors
    /// What helm said, with what to do about it.
    pub(super) async fn helm(&self, verb: &str, chart: Option<&Path>, rest: Vec<OsString>) -> Result<String> {
        let mut helm = tokio::process::Command::new(&self.helm);
        helm.args([verb, RELEASE]).args(chart).arg("--namespace").arg(self.namespace.as_str());
        helm.arg("--kube-context").arg(&self.context);
        if let Some(kubeconfig) = &self.kubeconfig {
            helm.arg("--kubeconfig").arg(kubeconfig);
        }
        helm.args(rest);
        let said = run_helm(helm, verb).await;
        said.map_err(|error| match advice(verb, &error.render(false), self.namespace.as_str()) {
            Some(advice) => error.hint(advice),
            None => error,
        })
    }
}

/// What to do about what helm said.
fn advice(verb: &str, said: &str, namespace: &str) -> Option<String> {
    let has = |text: &str| said.contains(text);
    if has("cannot re-use a name that is still in use") {
        return Some("it is installed already: `tp helm upgrade` changes it".to_owned());
    }
    if has("has no deployed releases") || has("release: not found") {
        return Some(match verb {
            "upgrade" => {
                "it is not installed there: `tp helm install` does so, --manager-namespace names another place"
                    .to_owned()
            }
            _ => "it is not installed there: --manager-namespace names another place".to_owned(),
        });
    }
    if has("timed out waiting") || has("context deadline exceeded") || has("not ready") {
        return Some(format!(
            "see why with `kubectl -n {namespace} describe pod tp-manager-0` and `kubectl -n {namespace} logs tp-manager-0`"
        ));
    }
    if has("namespaces") && has("not found") {
        return Some("make the namespace, or leave that to tp with --create-namespace".to_owned());
    }
    None
}

/// Finds helm.
///
/// # Errors
/// A user error that says how to get it.
pub(super) fn find_helm() -> Result<PathBuf> {
    on_path("helm", &std::env::var_os("PATH").unwrap_or_default()).ok_or_else(|| {
        CliError::user("no `helm` on the PATH; tp installs its chart with it")
            .hint("get helm 3 or later: https://helm.sh/docs/intro/install, `brew install helm` or `winget install Helm.Helm`")
    })
}

async fn run_helm(mut helm: tokio::process::Command, verb: &str) -> Result<String> {
    let helm = helm.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let output = helm.output().await;
    let Output { status, stdout, stderr } =
        output.map_err(|e| CliError::user(format!("cannot run helm: {e}")).because(&e))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    if status.success() {
        return Ok(text(&stdout) + "\n");
    }
    // lint reports on stdout, the others on stderr.
    let said =
        [text(&stdout), text(&stderr)].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n");
    Err(CliError::user(format!("helm {verb} failed")).detail(said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_helm_s_order_within_a_flag() {
        let args =
            ValuesArgs { values: vec!["a".into(), "b".into()], set: vec!["x=1".into()], ..ValuesArgs::default() };
        assert_eq!(args.to_args(), ["--values", "a", "--values", "b", "--set", "x=1"]);
    }

    #[test]
    fn what_helm_says_leads_to_advice() {
        for (verb, said, advised) in [
            ("install", "Error: INSTALLATION FAILED: cannot re-use a name that is still in use", "tp helm upgrade"),
            ("upgrade", "Error: UPGRADE FAILED: \"tp-manager\" has no deployed releases", "tp helm install"),
            (
                "uninstall",
                "Error: uninstall: Release not loaded: tp-manager: release: not found",
                "--manager-namespace",
            ),
            ("install", "Error: INSTALLATION FAILED: context deadline exceeded", "kubectl -n ns describe"),
            ("install", "create: failed to create: namespaces \"ns\" not found", "--create-namespace"),
        ] {
            assert!(advice(verb, said, "ns").unwrap().contains(advised), "{said}");
        }
        assert_eq!(advice("install", "Error: something else", "ns"), None);
    }
}
