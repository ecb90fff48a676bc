//! `tp docker-run`.

mod borrowed;
mod flags;
mod parse;
mod pass;
mod program;
mod run;
mod split;

use std::ffi::OsString;

use clap::builder::NonEmptyStringValueParser;
use tp_protocol::engage::call::Held;

use super::connect::ViaArgs;
use super::engage::ask::{Chosen, Running};
use super::engage::{self, Engaged, Wish};
use super::publish::Wishes;
use super::select::{only, running_by_name};
use super::session::{self, Invocation, Lifetime, Made, Naming, Plan};
use super::setup::{CommonArgs, KubeArgs, NetworkArgs, Setup, VerbosityArgs, load};
use super::signals::Signals;
use crate::attach::{Empty, request};
use crate::config::Layer;
use crate::config::value::{ConnectionName, HumanDuration, LogLevel, Namespace};
use crate::docker::Engine;
use crate::docker::connections::Connection;
use crate::docker::daemon::Publish;
use crate::docker::link::{DaemonLink, Purpose};
use crate::error::{CliError, EXIT_DOCKER_RUN, Result};
use crate::progress::Progress;
pub(super) use borrowed::Borrowed;
use flags::Arity;
use parse::{Parsed, parse};
use program::Program;
pub(super) use program::on_path;
use run::Run;
use split::{Split, split};

/// The command's name on the command line.
pub(super) const NAME: &str = "docker-run";

/// Run a container in the cluster's network; connects if nothing is connected
///
/// Takes every option of `docker run`, and runs docker (or podman) with them: terminal, standard input, signals and exit
/// code are the container's. The container joins the network of a connection, where the cluster's services, pods and
/// names are what they are for a pod; the internet and the neighbours on Docker networks stay reachable.
///
/// When nothing is connected, it connects first, and ends the connection together with the container; with -d both stay
/// until `tp quit`. Then -p, -P, --hostname, --add-host and --network are set on the connection, as Docker takes none of
/// them on a container that joins another's network. On a connection that is there already they have been given to
/// `tp connect`.
///
/// With --like the container is like a workload's: it has its environment, user, working directory and limits, and takes none
/// of its traffic. Without an image it runs the workload's own, by the workload's command. What docker's options say wins.
///
/// With --via it joins a connection that dials from this workload's place in the network, as `tp connect --via` says, or makes one.
///
/// The options below are tp's; they go before the image, in any order with docker's. tp's own failures exit with 125, as
/// docker's do.
#[derive(clap::Args, Debug)]
#[command(
    override_usage = "tp docker-run [OPTIONS] [DOCKER RUN OPTIONS] IMAGE [COMMAND] [ARG...]",
    disable_help_flag = true,
    after_help = "\
Examples:
  tp docker-run --rm -it alpine sh
  tp docker-run --rm -p 8080:80 --context prod --namespace shop my-image:dev
  tp docker-run --use shop -d --name worker my-worker --queue orders
  tp docker-run --rm -it --like web my-web:dev sh   the environment of the workload web
  tp docker-run --rm --like worker                  the workload's own image and command
  tp docker-run --rm -it --via web alpine sh        connects from the place of the workload web"
)]
pub(super) struct DockerRunArgs {
    #[command(flatten)]
    own: OwnArgs,
    /// Options of docker run, the image, and the container's command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "DOCKER RUN ARGUMENTS", hide = true)]
    args: Vec<OsString>,
}

/// tp's own options. None has a short form or the name of one of docker's.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct OwnArgs {
    /// Join this connection; it has to be there
    #[arg(long = "use", env = "TP_CONNECTION", hide_env_values = true, value_name = "NAME")]
    pub(super) connection: Option<ConnectionName>,
    #[command(flatten)]
    pub(super) like: LikeArgs,
    #[command(flatten)]
    pub(super) via: ViaArgs,
    #[command(flatten)]
    pub(super) kube: KubeArgs,
    /// Connect to this namespace: its services have short names [default: the context's, or `default`]
    #[arg(long, value_name = "NAMESPACE", help_heading = "Cluster options")]
    pub(super) namespace: Option<Namespace>,
    /// Find the traffic manager in this namespace [default: tp-system]
    #[arg(long, value_name = "NAMESPACE", help_heading = "Cluster options")]
    pub(super) manager_namespace: Option<Namespace>,
    #[command(flatten)]
    pub(super) network: NetworkArgs,
    /// Give up connecting after this time [default: 7s]
    #[arg(long, value_name = "DURATION")]
    pub(super) connect_timeout: Option<HumanDuration>,
    /// With -d: end a connection that was idle for this long; 0 for never [default: 12h]
    #[arg(long, value_name = "DURATION")]
    pub(super) idle_limit: Option<HumanDuration>,
    /// How much the daemon logs [default: info]
    #[arg(long, value_name = "LEVEL", hide_possible_values = true)]
    pub(super) log_level: Option<LogLevel>,
    /// Run this docker or podman CLI [default: docker]
    #[arg(long, value_name = "PROGRAM")]
    pub(super) docker: Option<String>,
    /// Read settings from this file instead of the usual config.yaml (also TP_CONFIG)
    #[arg(long, value_name = "FILE", help_heading = "General options")]
    pub(super) config: Option<std::path::PathBuf>,
    /// Show what caused an error
    #[arg(long, help_heading = "General options")]
    pub(super) verbose: bool,
}

/// The workload whose container this one is like.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct LikeArgs {
    /// Run the container with the environment, user, working directory and limits of this workload's, and without an image
    /// with its image and command: a name, or KIND/NAME
    #[arg(long = "like", value_name = "WORKLOAD", value_parser = NonEmptyStringValueParser::new())]
    workload: Option<String>,
    /// Take this container of the workload, when it has several
    #[arg(long = "like-container", value_name = "NAME", requires = "workload", value_parser = NonEmptyStringValueParser::new())]
    container: Option<String>,
}

/// What is between connecting and starting the container.
enum Task {
    /// Nothing.
    Plain,
    /// A look at a workload's container.
    Like { workload: String, container: String },
    /// The container is the handler of an engagement.
    Handler(Box<Wish>),
}

impl OwnArgs {
    fn layer(&self) -> Layer {
        Layer {
            namespace: self.namespace.clone(),
            manager_namespace: self.manager_namespace.clone(),
            connect_timeout: self.connect_timeout,
            idle_limit: self.idle_limit,
            log_level: self.log_level,
            docker: self.docker.clone(),
            ..self.network.layer()
        }
    }

    fn common(&self) -> CommonArgs {
        CommonArgs { config: self.config.clone(), verbosity: VerbosityArgs { verbose: self.verbose } }
    }

    /// Whether it is said which cluster or namespace is meant, or from where to dial: then not every connection will do.
    fn names_a_cluster(&self) -> bool {
        self.kube.context.is_some()
            || self.kube.kubeconfig.is_some()
            || self.namespace.is_some()
            || self.manager_namespace.is_some()
            || self.via.workload.is_some()
    }
}

/// tp's option of this long name.
fn own_flag(name: &str) -> Option<Arity> {
    let command = <OwnArgs as clap::Args>::augment_args(clap::Command::new(NAME));
    let arg = command.get_arguments().find(|arg| arg.get_long() == Some(name))?;
    Some(if arg.get_action().takes_values() { Arity::Value } else { Arity::Switch })
}

/// Runs `tp docker-run` with the arguments behind its name; returns the exit code.
pub(super) fn run(args: Vec<OsString>) -> u8 {
    let parsed = match parse(args, own_flag) {
        Ok(parsed) => parsed,
        Err(text) => return usage_error(text),
    };
    if parsed.docker.iter().any(|flag| flag.name == "help" && flag.is_on()) {
        let mut command = super::command();
        let help = command.find_subcommand_mut(NAME).expect("it is one of the commands").render_long_help();
        return super::finish(false, super::output::print(&help.to_string()).map(|()| 0));
    }
    let own: OwnArgs = match super::parse_from(NAME, parsed.own.clone()) {
        Ok(own) => own,
        Err(e) => {
            let _ = e.print();
            return EXIT_DOCKER_RUN;
        }
    };
    let task = match own.like.workload.clone() {
        Some(workload) => Task::Like { workload, container: own.like.container.clone().unwrap_or_default() },
        None if parsed.image.is_none() => return usage_error("it needs an image".to_owned()),
        None => Task::Plain,
    };
    let split = match split(parsed.docker.clone()) {
        Ok(split) if split.publish_all && parsed.image.is_none() => {
            return usage_error("-P needs the name of the image: or name the ports with -p".to_owned());
        }
        Ok(split) => split,
        Err(text) => return usage_error(text),
    };
    let verbose = own.verbose;
    super::on_runtime(run_container(own, parsed, split, task)).unwrap_or_else(|error| {
        error.print(verbose);
        error.docker_run_exit_code()
    })
}

fn usage_error(text: String) -> u8 {
    CliError::usage(format!("docker-run: {text}")).hint("see `tp docker-run --help`").print(false);
    EXIT_DOCKER_RUN
}

/// Runs the container that `args` describe as `docker run` takes them, as the handler of an engagement; returns its exit code.
///
/// # Errors
/// All that is tp's own failure.
pub(super) fn run_handler(own: OwnArgs, args: Vec<OsString>, wish: Wish) -> Result<u8> {
    let wrong =
        |text| CliError::usage(format!("behind `--`: {text}")).hint("`tp docker-run --help` says what is taken there");
    let parsed = parse(args, |_| None).map_err(wrong)?;
    if parsed.image.is_none() {
        return Err(wrong("it needs an image".to_owned()));
    }
    let split = split(parsed.docker.clone()).map_err(wrong)?;
    super::on_runtime(run_container(own, parsed, split, Task::Handler(Box::new(wish))))
}

async fn run_container(own: OwnArgs, parsed: Parsed, mut split: Split, task: Task) -> Result<u8> {
    let mut signals = Signals::catch();
    let namespace = own.namespace.clone().or_else(|| task.namespace());
    let setup = load(&own.common(), &own.kube, Layer { namespace, ..own.layer() })?;
    let progress = Progress::start(Some(own.via.limit(setup.settings.connect_timeout.value.as_duration())));
    let engine = signals.or(session::engine(&progress)).await?;
    let program = Program::find(&setup.settings.docker.value, &engine)?;
    let (mut invocation, mut network) = match signals.or(choose(&engine, &own, &setup)).await? {
        Some(connection) => {
            refuse_owner_flags(&split, &connection)?;
            let link = signals.or(hold(&engine, &connection)).await?;
            let joined = Running::from(&connection);
            (Invocation::start(engine)?, Network::There { joined, _hold: link.map(Box::new) })
        }
        None => {
            progress.step("reading the kubeconfig");
            let wishes = signals.or(wishes(&engine, &mut split, &parsed)).await?;
            let lifetime = if split.detached { Lifetime::Detached } else { Lifetime::Held };
            let mut plan = signals.or(Plan::new(setup, wishes, lifetime, Naming::Numbered)).await?;
            plan.via = own.via.workload.clone();
            let (invocation, made) = session::make(Invocation::start(engine)?, plan, &mut signals, &progress).await?;
            (invocation, Network::Own(Box::new(made)))
        }
    };
    drop(progress);
    let mut engaged = None;
    let joined = network.joined();
    let prepared = task.prepare(&mut invocation, &joined, &parsed, &split, &mut engaged);
    let borrowed = match signals.or(prepared).await {
        Ok(borrowed) => borrowed,
        Err(error) => {
            if let Some(engaged) = engaged {
                // The run has failed already.
                let _ = engaged.end(&mut signals).await;
            }
            network.give_up(invocation).await;
            return Err(error);
        }
    };
    if let Task::Like { .. } = task
        && let Some(looked_at) = engaged.take()
    {
        if let Err(signal) = looked_at.end(&mut signals).await {
            network.give_up(invocation).await;
            return Err(signal);
        }
        invocation.on_engaged(None);
    }
    let run = Run { program, parsed, split, borrowed };
    run.run(invocation, network, engaged, &mut signals).await
}

/// The connection whose network the container joins.
enum Network {
    /// It was there before, and stays. The stream holds one that would otherwise end with another command.
    There { joined: Running, _hold: Option<Box<DaemonLink>> },
    /// It was made for the container, and ends with it.
    Own(Box<Made>),
}

impl Network {
    fn joined(&self) -> Running {
        match self {
            Self::There { joined, .. } => joined.clone(),
            Self::Own(made) => {
                Running { name: made.name.to_string(), namespace: made.status.namespace.clone(), id: made.id.clone() }
            }
        }
    }

    /// Ends what this run made, when there is nothing to run in it.
    async fn give_up(&mut self, invocation: Invocation) {
        match self {
            Self::There { .. } => invocation.keep(),
            Self::Own(made) => match session::end(&invocation.engine, &made.id, Some(&mut made.link)).await {
                Ok(()) => invocation.keep(),
                Err(_) => invocation.clean_up().await,
            },
        }
    }
}

impl Task {
    /// The namespace that a connection which is made for it is to.
    fn namespace(&self) -> Option<Namespace> {
        match self {
            Self::Plain | Self::Like { .. } => None,
            Self::Handler(wish) => wish.namespace().cloned(),
        }
    }

    /// Does what comes before the container is started; returns what that takes over from a workload's container.
    async fn prepare(
        &self,
        invocation: &mut Invocation,
        connection: &Running,
        parsed: &Parsed,
        split: &Split,
        engaged: &mut Option<Engaged>,
    ) -> Result<Borrowed> {
        let engine = invocation.engine.clone();
        let mut on_engaged = |held: &Held| {
            let engaged = engaged.insert(Engaged::new(held, connection.clone()));
            invocation.on_engaged(Some(engaged));
        };
        match self {
            Self::Plain => Ok(Borrowed::default()),
            Self::Like { workload, container } => {
                let progress = Progress::start(Some(engage::ENGAGE_LIMIT));
                let mut chosen = Chosen::open(&engine, connection.clone()).await?;
                let held = engage::ingest(workload, container, &mut chosen, &progress).await?;
                on_engaged(&held);
                let (spec, environment) = chosen.describe(&held, &progress).await?;
                Borrowed::like(&spec, environment, parsed, split, engine.processors().await?)
            }
            Self::Handler(wish) => {
                let progress = Progress::start(Some(wish.limit()));
                let mut chosen = Chosen::open(&engine, connection.clone()).await?;
                let held = wish.engage(&mut chosen, &progress).await?;
                on_engaged(&held);
                let (borrowed, told) = wish.equip(&mut chosen, held, &progress).await?;
                drop(progress);
                eprint!("{told}");
                Ok(borrowed)
            }
        }
    }
}

/// The connection to join, when there is one that fits. One that belongs to another command is joined by name only: it
/// ends with that command.
async fn choose(engine: &Engine, own: &OwnArgs, setup: &Setup) -> Result<Option<Connection>> {
    let connections = engine.connections().await?;
    if let Some(name) = &own.connection {
        let connection = running_by_name(engine, &connections, name).await?;
        if let Some(via) = own.via.workload.as_ref().filter(|via| connection.via != **via) {
            return Err(CliError::usage(format!(
                "docker-run: the connection `{name}` does not dial by way of `{via}`"
            ))
            .hint(format!("`tp quit --use {name}`, then `tp connect --name {name} --via {via}`; or leave --use out")));
        }
        return Ok(Some(connection));
    }
    let fits = |connection: &Connection| connection.running && !connection.held && is_meant(connection, own, setup);
    let fitting: Vec<_> = connections.into_iter().filter(fits).collect();
    Ok(only(&fitting)?.cloned())
}

/// Whether a connection is to what the options name; without options, any is.
fn is_meant(connection: &Connection, own: &OwnArgs, setup: &Setup) -> bool {
    if !own.names_a_cluster() {
        return true;
    }
    let is_context = match (&setup.selected, own.kube.context.is_some() || own.kube.kubeconfig.is_some()) {
        (Ok(selected), true) => {
            connection.context == selected.context && selected.server().is_ok_and(|server| server == connection.server)
        }
        (Err(_), true) => false,
        (_, false) => true,
    };
    let is_namespace = own.namespace.as_ref().is_none_or(|namespace| connection.namespace == namespace.as_str());
    let is_manager = own.manager_namespace.as_ref().is_none_or(|ns| connection.manager_namespace == ns.as_str());
    let is_via = own.via.workload.as_ref().is_none_or(|via| connection.via == *via);
    is_context && is_namespace && is_manager && is_via
}

/// Options that only the owner of a network takes come too late for a connection that is there.
fn refuse_owner_flags(split: &Split, connection: &Connection) -> Result<()> {
    if split.owner_flags.is_empty() {
        return Ok(());
    }
    let flags = split.owner_flags.join(", ");
    Err(CliError::usage(format!(
        "docker-run: {flags} cannot be set for a container that joins the connection `{}`",
        connection.name
    ))
    .hint(format!(
        "give them to the connection: `tp quit --use {0}`, then `tp connect --name {0} {flags} ...`",
        connection.name
    ))
    .hint("or let docker-run make a connection of its own: `tp quit` first"))
}

/// Holds a connection that would otherwise end with another command.
async fn hold(engine: &Engine, connection: &Connection) -> Result<Option<DaemonLink>> {
    if !connection.held {
        return Ok(None);
    }
    let mut link = engine.attach(&connection.id, Purpose::Hold).await?;
    link.request(request::Kind::Hold(Empty {}), |_| {}).await?;
    Ok(Some(link))
}

/// The wishes for a connection of its own, with the ports that -P asks for.
async fn wishes(engine: &Engine, split: &mut Split, parsed: &Parsed) -> Result<Wishes> {
    let mut wishes = std::mem::take(&mut split.wishes);
    if split.publish_all {
        let image = parsed.image.as_deref().unwrap_or_default().to_string_lossy();
        let Some(exposed) = engine.exposed_ports(&image).await? else {
            return Err(CliError::user(format!(
                "-P publishes the ports that the image exposes, and `{image}` is not here yet"
            ))
            .hint(format!("get it with `docker pull {image}`, or name the ports with -p")));
        };
        for container in exposed.into_iter().chain(split.expose.iter().cloned()) {
            if !wishes.publish.iter().any(|publish| publish.container == container) {
                wishes.publish.push(Publish { container, host_ip: String::new(), host_port: String::new() });
            }
        }
    }
    Ok(wishes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_option_of_tp_is_one_of_docker_s() {
        let command = <OwnArgs as clap::Args>::augment_args(clap::Command::new(NAME));
        for arg in command.get_arguments() {
            let long = arg.get_long().expect("every option has a long name");
            assert!(flags::by_long(long).is_none(), "--{long}");
            assert_eq!(arg.get_short(), None, "--{long}");
        }
        assert_eq!(own_flag("use"), Some(Arity::Value));
        assert_eq!(own_flag("verbose"), Some(Arity::Switch));
        assert_eq!(own_flag("name"), None);
    }

    #[test]
    fn connection_has_to_fit_what_is_named() {
        let setup = Setup {
            sources: crate::config::Sources::default(),
            settings: crate::config::Sources::default().settings(),
            selected: Err(CliError::user("none")),
        };
        let connection = crate::cli::select::example("dev");
        assert!(is_meant(&connection, &OwnArgs::default(), &setup));
        let in_namespace = |name: &str| OwnArgs { namespace: Some(name.parse().unwrap()), ..OwnArgs::default() };
        assert!(is_meant(&connection, &in_namespace("default"), &setup));
        assert!(!is_meant(&connection, &in_namespace("shop"), &setup));
        let context = KubeArgs { context: Some("c".into()), kubeconfig: None };
        assert!(!is_meant(&connection, &OwnArgs { kube: context, ..OwnArgs::default() }, &setup));
        let via = ViaArgs { workload: Some("web".into()) };
        let own = OwnArgs { via, ..OwnArgs::default() };
        assert!(!is_meant(&connection, &own, &setup));
        assert!(is_meant(&Connection { via: "web".into(), ..connection }, &own, &setup));
    }
}
