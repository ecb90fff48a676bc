//! The engine, through its API: containers and networks that a test makes, and a look at those of the product.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerSummary, EndpointSettings, HostConfig, Ipam, IpamConfig,
    NetworkCreateRequest, NetworkingConfig,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, InspectContainerOptions, KillContainerOptionsBuilder, ListContainersOptionsBuilder,
    ListImagesOptions, ListNetworksOptions, ListVolumesOptions, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
    StartContainerOptions, TopOptions,
};
use futures_util::StreamExt as _;
use tokio::io::AsyncWriteExt as _;

use crate::given::given;
use crate::process::Outcome;
use crate::runtime::block_on;

/// How long a command in a container may take unless the test says otherwise.
const LIMIT: Duration = Duration::from_secs(20);

/// The engine's client.
///
/// # Panics
/// When the engine does not answer.
pub fn engine() -> &'static Docker {
    static ENGINE: OnceLock<Docker> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let docker = Docker::connect_with_defaults().expect("DOCKER_HOST names an engine");
        block_on(docker.negotiate_version()).expect("the engine answers")
    })
}

/// A container to be made.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    name: Option<String>,
    image: String,
    command: Vec<String>,
    user: Option<String>,
    aliases: Vec<String>,
    host: HostConfig,
}

impl Spec {
    /// A container of the image with the usual clients.
    pub fn client() -> Self {
        Self { image: given().client_image.clone(), ..Self::default() }.command(["sleep", "infinity"])
    }

    /// A container of the image with the usual clients, Java and Node.
    pub fn runtimes() -> Self {
        Self { image: given().runtimes_image.clone(), ..Self::client() }
    }

    /// A container of the image that holds a static binary and nothing else; `command` is what `tp-sample` is given.
    pub fn sample<'a>(command: impl IntoIterator<Item = &'a str>) -> Self {
        Self { image: given().sample_image.clone(), ..Self::default() }.command(command)
    }

    /// Replaces the command.
    #[must_use]
    pub fn command<'a>(mut self, command: impl IntoIterator<Item = &'a str>) -> Self {
        self.command = command.into_iter().map(str::to_owned).collect();
        self
    }

    /// Gives it a name.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Runs it as this user.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    /// Joins a network, or another container's as `container:NAME`.
    #[must_use]
    pub fn network(mut self, mode: &str) -> Self {
        self.host.network_mode = Some(mode.to_owned());
        self
    }

    /// Adds a name by which neighbours in the network find it.
    #[must_use]
    pub fn alias(mut self, alias: &str) -> Self {
        self.aliases.push(alias.to_owned());
        self
    }

    /// Shares the processes of another container, named as `container:NAME`.
    #[must_use]
    pub fn processes_of(mut self, container: &str) -> Self {
        self.host.pid_mode = Some(format!("container:{container}"));
        self
    }

    /// Adds a capability.
    #[must_use]
    pub fn capability(mut self, capability: &str) -> Self {
        self.host.cap_add.get_or_insert_default().push(capability.to_owned());
        self
    }

    /// Makes and starts it.
    ///
    /// # Panics
    /// When the engine refuses.
    #[track_caller]
    pub fn start(self) -> Container {
        let mut options = CreateContainerOptionsBuilder::new();
        if let Some(name) = &self.name {
            options = options.name(name);
        }
        let endpoints = (!self.aliases.is_empty()).then(|| {
            let network = self.host.network_mode.clone().expect("an alias is a name in a network");
            let endpoint = EndpointSettings { aliases: Some(self.aliases), ..EndpointSettings::default() };
            NetworkingConfig { endpoints_config: Some(HashMap::from([(network, endpoint)])) }
        });
        let body = ContainerCreateBody {
            image: Some(self.image.clone()),
            cmd: Some(self.command),
            user: self.user,
            labels: Some(HashMap::from([(LABEL.to_owned(), "1".to_owned())])),
            host_config: Some(HostConfig { init: Some(true), ..self.host }),
            networking_config: endpoints,
            ..ContainerCreateBody::default()
        };
        let engine = engine();
        let started = block_on(async {
            let id = engine.create_container(Some(options.build()), body).await?.id;
            let container = Container { id };
            engine.start_container(&container.id, None::<StartContainerOptions>).await?;
            Ok::<_, bollard::errors::Error>(container)
        });
        started.unwrap_or_else(|e| panic!("the engine did not start a container of {}: {e}", self.image))
    }
}

/// What tests make carries this label, so that it can be told from what the product makes.
const LABEL: &str = "tp-e2e";

/// A container that a test made. It is removed with this.
#[derive(Debug)]
pub struct Container {
    id: String,
}

impl Container {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Runs a script in it by bash.
    #[track_caller]
    pub fn sh(&self, script: &str) -> Outcome {
        exec(&self.id, &["bash", "-c", script], b"", LIMIT)
    }

    /// As [`Self::sh`], with bytes to read from stdin.
    #[track_caller]
    pub fn sh_with_input(&self, script: &str, input: &[u8]) -> Outcome {
        exec(&self.id, &["bash", "-c", script], input, LIMIT)
    }

    /// Runs a command in it.
    #[track_caller]
    pub fn exec(&self, command: &[&str], limit: Duration) -> Outcome {
        exec(&self.id, command, b"", limit)
    }

    /// Waits until it has ended by itself; returns its exit code and all that it wrote.
    #[track_caller]
    pub fn wait(&self, limit: Duration) -> Outcome {
        let start = Instant::now();
        let (code, _) = crate::wait::until(limit, "the end of a container", || {
            let state = inspect(&self.id).and_then(|found| found.state).ok_or("it is gone")?;
            match state.running {
                Some(false) => state.exit_code.ok_or_else(|| "no exit code".to_owned()),
                _ => Err(format!("it runs; it wrote: {}", logs(&self.id, "20"))),
            }
        });
        let (stdout, stderr) = outputs(&self.id, "all");
        let code = i32::try_from(code).unwrap_or(-1);
        Outcome { command: "container".to_owned(), code, stdout, stderr, took: start.elapsed() }
    }

    /// Its address in the engine's default network.
    #[track_caller]
    pub fn bridge_ip(&self) -> String {
        let networks = inspect(&self.id).and_then(|found| found.network_settings).and_then(|it| it.networks);
        let bridge = networks.and_then(|mut networks| networks.remove("bridge")).and_then(|bridge| bridge.ip_address);
        bridge.expect("the container is in the default network")
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        remove(&self.id);
    }
}

/// Runs a command in any container.
///
/// # Panics
/// When it cannot be run, or does not end in time.
#[track_caller]
pub fn exec(container: &str, command: &[&str], input: &[u8], limit: Duration) -> Outcome {
    let start = Instant::now();
    let name = command.join(" ");
    let options = CreateExecOptions {
        attach_stdin: Some(!input.is_empty()),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        cmd: Some(command.to_vec()),
        ..CreateExecOptions::default()
    };
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let engine = engine();
    let command_ends = async {
        let id = engine.create_exec(container, options).await?.id;
        let started = engine.start_exec(&id, None::<StartExecOptions>).await?;
        let StartExecResults::Attached { mut output, input: mut pipe } = started else {
            unreachable!("it was not detached")
        };
        let feed = async {
            // A command that ends without reading all of it is not at fault.
            let _ = pipe.write_all(input).await;
            let _ = pipe.shutdown().await;
        };
        let drain = async {
            while let Some(part) = output.next().await {
                match part? {
                    LogOutput::StdErr { message } => stderr.extend_from_slice(&message),
                    other => stdout.extend_from_slice(&other.into_bytes()),
                }
            }
            Ok::<_, bollard::errors::Error>(())
        };
        tokio::join!(feed, drain).1?;
        engine.inspect_exec(&id).await
    };
    // The clock is the runtime's: the future with the limit has to be made inside.
    let ran = block_on(async { tokio::time::timeout(limit, command_ends).await });
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&stdout), text(&stderr));
    match ran {
        Err(_) => panic!("`{name}` did not end within {limit:?}; it wrote {stdout} {stderr}"),
        Ok(Err(e)) => panic!("`{name}` cannot be run in {container}: {e}"),
        Ok(Ok(ended)) => {
            let code = ended.exit_code.and_then(|code| i32::try_from(code).ok()).unwrap_or(-1);
            Outcome { command: name, code, stdout, stderr, took: start.elapsed() }
        }
    }
}

/// Everything the engine says about a container; `None` when there is no such container.
pub fn inspect(container: &str) -> Option<ContainerInspectResponse> {
    block_on(engine().inspect_container(container, None::<InspectContainerOptions>)).ok()
}

/// Whether a container runs.
pub fn is_running(container: &str) -> bool {
    inspect(container).and_then(|found| found.state).and_then(|state| state.running).unwrap_or(false)
}

/// Sends a signal to a container's first process.
///
/// # Panics
/// When the engine refuses.
pub fn kill(container: &str, signal: &str) {
    let options = KillContainerOptionsBuilder::new().signal(signal).build();
    block_on(engine().kill_container(container, Some(options))).unwrap_or_else(|e| panic!("kill {container}: {e}"));
}

/// Freezes all processes of a container.
///
/// # Panics
/// When the engine refuses.
pub fn pause(container: &str) {
    block_on(engine().pause_container(container)).unwrap_or_else(|e| panic!("pause {container}: {e}"));
}

/// Lets the processes of a frozen container go on.
///
/// # Panics
/// When the engine refuses.
pub fn resume(container: &str) {
    block_on(engine().unpause_container(container)).unwrap_or_else(|e| panic!("unpause {container}: {e}"));
}

/// Removes a container by force, with its anonymous volumes. One that is gone already is fine.
pub fn remove(container: &str) {
    let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
    let _ = block_on(engine().remove_container(container, Some(options)));
}

/// The last lines that a container wrote.
pub fn logs(container: &str, tail: &str) -> String {
    let (stdout, stderr) = outputs(container, tail);
    stdout + &stderr
}

fn outputs(container: &str, tail: &str) -> (String, String) {
    let options = LogsOptionsBuilder::new().stdout(true).stderr(true).tail(tail).build();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let engine = engine();
    block_on(async {
        let mut lines = engine.logs(container, Some(options));
        while let Some(Ok(line)) = lines.next().await {
            match line {
                LogOutput::StdErr { message } => stderr.extend_from_slice(&message),
                other => stdout.extend_from_slice(&other.into_bytes()),
            }
        }
    });
    (String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr).into_owned())
}

/// The file system of a container, as a tar archive.
///
/// # Panics
/// When the engine refuses.
pub fn export(container: &str) -> Vec<u8> {
    let engine = engine();
    block_on(async {
        let mut archive = Vec::new();
        let mut blocks = engine.export_container(container);
        while let Some(block) = blocks.next().await {
            archive.extend_from_slice(&block.unwrap_or_else(|e| panic!("export {container}: {e}")));
        }
        archive
    })
}

/// The process ids, as the machine counts them, of all that runs in a container.
///
/// # Panics
/// When the engine refuses.
pub fn processes(container: &str) -> Vec<u32> {
    let top = block_on(engine().top_processes(container, None::<TopOptions>));
    let top = top.unwrap_or_else(|e| panic!("processes of {container}: {e}"));
    let titles = top.titles.unwrap_or_default();
    let column = titles.iter().position(|title| title == "PID").expect("processes are listed with their ids");
    let pids = top.processes.unwrap_or_default().into_iter().map(|row| row[column].parse::<u32>());
    pids.collect::<Result<_, _>>().expect("a process id is a number")
}

/// All containers with this label (`KEY` or `KEY=VALUE`), running or not.
pub fn labelled(label: &str) -> Vec<ContainerSummary> {
    list_containers(HashMap::from([("label", vec![label])]))
}

fn list_containers(filters: HashMap<&str, Vec<&str>>) -> Vec<ContainerSummary> {
    let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    block_on(engine().list_containers(Some(options))).expect("the engine lists containers")
}

/// All that the engine holds which has to do with a connection: what carries its label or its name.
pub fn traces_of(connection: &str) -> Vec<String> {
    let label = format!("tp.connection={connection}");
    let labelled = labelled(&label);
    let named = list_containers(HashMap::from([("name", vec![connection])]));
    let mine = |summary: &ContainerSummary| summary.labels.as_ref().is_some_and(|labels| labels.contains_key(LABEL));
    let containers = labelled.into_iter().chain(named).filter(|summary| !mine(summary)).map(|summary| {
        let names = summary.names.unwrap_or_default().join(",");
        format!("container {names} ({})", summary.status.unwrap_or_default())
    });
    let others = engine_objects().into_iter().filter(|object| {
        (object.starts_with("network") || object.starts_with("volume")) && object.contains(connection)
    });
    let mut traces: Vec<_> = containers.chain(others).collect();
    traces.sort();
    traces.dedup();
    traces
}

/// Everything in the engine but what a test made: containers, networks, volumes and tagged images, sorted.
///
/// # Panics
/// When the engine does not answer.
pub fn engine_objects() -> Vec<String> {
    let engine = engine();
    let (containers, networks, volumes, images) = block_on(async {
        tokio::join!(
            engine.list_containers(Some(ListContainersOptionsBuilder::new().all(true).build())),
            engine.list_networks(None::<ListNetworksOptions>),
            engine.list_volumes(None::<ListVolumesOptions>),
            engine.list_images(None::<ListImagesOptions>),
        )
    });
    let mut objects = Vec::new();
    for container in containers.expect("the engine lists containers") {
        if !container.labels.is_some_and(|labels| labels.contains_key(LABEL)) {
            objects.push(format!("container {}", container.names.unwrap_or_default().join(",")));
        }
    }
    for network in networks.expect("the engine lists networks") {
        let labels = network.labels.unwrap_or_default();
        objects.push(format!("network {} {labels:?}", network.name.unwrap_or_default()));
    }
    for volume in volumes.expect("the engine lists volumes").volumes.unwrap_or_default() {
        objects.push(format!("volume {} {:?}", volume.name, volume.labels));
    }
    for image in images.expect("the engine lists images") {
        objects.extend(image.repo_tags.iter().map(|tag| format!("image {tag}")));
    }
    objects.sort();
    objects
}

/// A network that a test made. It is removed with this.
#[derive(Debug)]
pub struct Network {
    name: String,
}

impl Network {
    /// Makes a network.
    ///
    /// # Panics
    /// When the engine refuses.
    pub fn create(name: &str) -> Self {
        Self::with(name, None)
    }

    /// Makes a network with this subnet.
    ///
    /// # Panics
    /// When the engine refuses.
    pub fn with_subnet(name: &str, subnet: &str) -> Self {
        let config = IpamConfig { subnet: Some(subnet.to_owned()), ..IpamConfig::default() };
        Self::with(name, Some(Ipam { config: Some(vec![config]), ..Ipam::default() }))
    }

    fn with(name: &str, ipam: Option<Ipam>) -> Self {
        let labels = Some(HashMap::from([(LABEL.to_owned(), "1".to_owned())]));
        let request = NetworkCreateRequest { name: name.to_owned(), labels, ipam, ..NetworkCreateRequest::default() };
        block_on(engine().create_network(request)).unwrap_or_else(|e| panic!("network {name}: {e}"));
        Self { name: name.to_owned() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = block_on(engine().remove_network(&self.name));
    }
}
