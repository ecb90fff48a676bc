//! Makes and starts the daemon container.

use std::collections::HashMap;
use std::pin::Pin;
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::errors::Error as ApiError;
use bollard::models::{
    ContainerCreateBody, DeviceMapping, EndpointSettings, HostConfig, NetworkConnectRequest, PortBinding, PortMap,
};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, InspectContainerOptions, StartContainerOptions,
};
use futures_util::{Stream, StreamExt as _};

use super::connections::{Connection, DETACHED, HELD, container_name};
use super::{Engine, describe, failed, label, role, status};
use crate::error::{CliError, Result};

/// Processes and threads that a daemon container may have: init, daemon, and one `tp daemon attach` per CLI.
const PIDS_LIMIT: i64 = 256;
/// Lines of a dead daemon that an error message repeats.
const TAIL_LINES: usize = 12;

/// A port to publish on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Publish {
    /// Port in the container with its protocol, such as `80/tcp`.
    pub(crate) container: String,
    /// Address on the host; empty: all.
    pub(crate) host_ip: String,
    /// Port on the host; empty: any free one.
    pub(crate) host_port: String,
}

/// A Docker network to join.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Join {
    /// Name or id of the network.
    pub(crate) network: String,
    /// Names that neighbours there find the container by, besides its own.
    pub(crate) aliases: Vec<String>,
}

/// What a daemon container is made of.
#[derive(Clone, Debug, Default)]
pub(crate) struct DaemonSpec {
    /// Name of the connection.
    pub(crate) name: String,
    /// Reference of the daemon's image.
    pub(crate) image: String,
    /// The CLI run.
    pub(crate) invocation: String,
    /// Whether it ends with the CLI: then it removes itself; otherwise it stays, so that its end can be told.
    pub(crate) held: bool,
    /// Kubeconfig context, for people and for `tp connect` to compare.
    pub(crate) context: String,
    /// URL of the API server, as the kubeconfig has it.
    pub(crate) server: String,
    /// Connected namespace.
    pub(crate) namespace: String,
    /// Namespace of the manager.
    pub(crate) manager_namespace: String,
    /// The workload by way of which it is to dial; empty for the manager.
    pub(crate) via: String,
    /// Log level.
    pub(crate) log_level: String,
    /// Networks to join besides the default one.
    pub(crate) networks: Vec<Join>,
    /// `HOST:IP` lines for `/etc/hosts`.
    pub(crate) extra_hosts: Vec<String>,
    /// Published ports.
    pub(crate) publish: Vec<Publish>,
    /// Host name; empty: the container's id.
    pub(crate) hostname: String,
}

/// A daemon container that was started.
pub(crate) struct Started {
    /// Its id.
    pub(crate) id: String,
    /// What it prints.
    pub(crate) output: Output,
}

/// What a container prints, from its start.
pub(crate) struct Output(Pin<Box<dyn Stream<Item = Result<LogOutput, ApiError>> + Send>>);

impl Output {
    /// Waits for the container's end, for `limit` at most, and returns the last lines that it printed.
    pub(crate) async fn tail(mut self, limit: Duration) -> String {
        let mut text = String::new();
        let read = async {
            while let Some(Ok(part)) = self.0.next().await {
                text.push_str(&String::from_utf8_lossy(&part.into_bytes()));
            }
        };
        // The end of the container ends it.
        let _ = tokio::time::timeout(limit, read).await;
        let lines: Vec<_> = text.trim_end().lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

/// Why a daemon container could not be made.
#[derive(Debug)]
pub(crate) enum CreateError {
    /// Its name is taken: by another connection, or (`None`) by a container that is not tp's.
    NameTaken(Option<Box<Connection>>),
    /// Anything else.
    Other(CliError),
}

impl From<CliError> for CreateError {
    fn from(error: CliError) -> Self {
        Self::Other(error)
    }
}

/// The variable that tells the daemon how much to log.
const LOG_LEVEL_VARIABLE: &str = "TP_LOG_LEVEL";

impl Engine {
    /// Makes the container, joins its networks, and starts it.
    ///
    /// # Errors
    /// [`CreateError`]; what was made before the failure is removed.
    pub(crate) async fn start_daemon(&self, spec: &DaemonSpec) -> Result<Started, CreateError> {
        let id = self.create(spec, &SYSCTLS).await?;
        let e = match self.join_and_start(&id, spec).await {
            Ok(output) => return Ok(Started { id, output }),
            Err(e) => e,
        };
        self.remove(&id).await?;
        // A kernel without IPv6 has no such sysctl, and rootless engines refuse some: go on without.
        if !matches!(&e, StartError::Start(e) if is_about_sysctls(&describe(e))) {
            return Err(e.explain(spec).into());
        }
        let id = self.create(spec, &[]).await?;
        match self.join_and_start(&id, spec).await {
            Ok(output) => Ok(Started { id, output }),
            Err(e) => {
                self.remove(&id).await?;
                Err(e.explain(spec).into())
            }
        }
    }

    async fn create(&self, spec: &DaemonSpec, sysctls: &[(&str, &str)]) -> Result<String, CreateError> {
        let options = CreateContainerOptionsBuilder::new().name(&container_name(&spec.name)).build();
        match self.docker.create_container(Some(options), create_body(spec, sysctls)).await {
            Ok(created) => Ok(created.id),
            Err(e) if status(&e) == Some(409) => {
                let holder = self.connections().await?.into_iter().find(|connection| connection.name == spec.name);
                Err(CreateError::NameTaken(holder.map(Box::new)))
            }
            Err(e) => Err(failed("make the daemon container", &e).into()),
        }
    }

    async fn join_and_start(&self, id: &str, spec: &DaemonSpec) -> Result<Output, StartError> {
        for join in &spec.networks {
            let aliases = (!join.aliases.is_empty()).then(|| join.aliases.clone());
            let request = NetworkConnectRequest {
                container: id.to_owned(),
                endpoint_config: Some(EndpointSettings { aliases, ..EndpointSettings::default() }),
            };
            let joined = self.docker.connect_network(&join.network, request).await;
            joined.map_err(|e| StartError::Join(join.network.clone(), e))?;
        }
        self.start_and_listen(id).await.map_err(StartError::Start)
    }

    /// Starts a container, listening before it says anything: one that removes itself takes its log with it.
    pub(super) async fn start_and_listen(&self, id: &str) -> Result<Output, ApiError> {
        let options = AttachContainerOptionsBuilder::new().stream(true).stdout(true).stderr(true).build();
        let attached = self.docker.attach_container(id, Some(options)).await?;
        self.docker.start_container(id, None::<StartContainerOptions>).await?;
        Ok(Output(attached.output))
    }

    /// Whether a container of that name exists, whoever made it.
    pub(crate) async fn container_exists(&self, name: &str) -> Result<bool> {
        match self.docker.inspect_container(name, None::<InspectContainerOptions>).await {
            Ok(_) => Ok(true),
            Err(e) if status(&e) == Some(404) => Ok(false),
            Err(e) => Err(failed("look at a container", &e)),
        }
    }
}

/// Sysctls of the network namespace: the TUN has an IPv6 address too, and a joined container may listen on any port.
const SYSCTLS: [(&str, &str); 2] =
    [("net.ipv6.conf.all.disable_ipv6", "0"), ("net.ipv4.ip_unprivileged_port_start", "0")];

fn is_about_sysctls(message: &str) -> bool {
    message.contains("sysctl") || message.contains("/proc/sys/") || message.contains("disable_ipv6")
}

/// Which step after making the container failed.
enum StartError {
    Join(String, ApiError),
    Start(ApiError),
}

impl StartError {
    fn explain(self, spec: &DaemonSpec) -> CliError {
        let container = container_name(&spec.name);
        match self {
            Self::Join(network, e) if status(&e) == Some(404) => {
                CliError::user(format!("there is no Docker network `{network}` for {container} to join"))
                    .hint("`docker network ls` lists the networks")
                    .because(&e)
            }
            Self::Join(network, e) => failed(&format!("let {container} join the network `{network}`"), &e),
            Self::Start(e) => {
                let message = describe(&e);
                let error = failed(&format!("start {container}"), &e);
                if message.contains("/dev/net/tun") {
                    error.hint("load the TUN driver on the engine's host: `sudo modprobe tun`")
                } else if message.contains("already allocated") || message.contains("already in use") {
                    error.hint("publish on another port of the host (-p HOST:CONTAINER), or stop what listens there")
                } else {
                    error
                }
            }
        }
    }
}

fn create_body(spec: &DaemonSpec, sysctls: &[(&str, &str)]) -> ContainerCreateBody {
    let owned = |list: &[&str]| list.iter().map(|&item| item.to_owned()).collect::<Vec<_>>();
    let labels = [
        (label::ROLE, role::DAEMON),
        (label::CONNECTION, &spec.name),
        (label::VERSION, env!("CARGO_PKG_VERSION")),
        (label::INVOCATION, &spec.invocation),
        (label::LIFETIME, if spec.held { HELD } else { DETACHED }),
        (label::CONTEXT, &spec.context),
        (label::SERVER, &spec.server),
        (label::NAMESPACE, &spec.namespace),
        (label::MANAGER_NAMESPACE, &spec.manager_namespace),
        (label::VIA, &spec.via),
    ];
    let sysctls: HashMap<_, _> = sysctls.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let mut port_bindings = PortMap::new();
    for publish in &spec.publish {
        let binding =
            PortBinding { host_ip: Some(publish.host_ip.clone()), host_port: Some(publish.host_port.clone()) };
        port_bindings.entry(publish.container.clone()).or_default().get_or_insert_default().push(binding);
    }
    let host_config = HostConfig {
        auto_remove: Some(spec.held),
        cap_drop: Some(owned(&["ALL"])),
        cap_add: Some(owned(&["NET_ADMIN", "SETUID", "SETGID", "SETPCAP"])),
        security_opt: Some(owned(&["no-new-privileges"])),
        devices: Some(vec![DeviceMapping {
            path_on_host: Some("/dev/net/tun".to_owned()),
            path_in_container: Some("/dev/net/tun".to_owned()),
            cgroup_permissions: Some("rwm".to_owned()),
        }]),
        sysctls: Some(sysctls),
        pids_limit: Some(PIDS_LIMIT),
        network_mode: Some("bridge".to_owned()),
        extra_hosts: Some(spec.extra_hosts.clone()),
        port_bindings: Some(port_bindings.clone()),
        ..HostConfig::default()
    };
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        cmd: Some(owned(&["/tp", "daemon", "init"])),
        env: Some(vec![format!("{LOG_LEVEL_VARIABLE}={}", spec.log_level)]),
        labels: Some(labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()),
        hostname: (!spec.hostname.is_empty()).then(|| spec.hostname.clone()),
        exposed_ports: Some(port_bindings.into_keys().collect()),
        host_config: Some(host_config),
        ..ContainerCreateBody::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_has_few_rights_and_all_labels() {
        let spec = DaemonSpec { name: "demo".into(), held: true, ..DaemonSpec::default() };
        let body = create_body(&spec, &SYSCTLS);
        let host = body.host_config.unwrap();
        assert_eq!(host.cap_drop.unwrap(), ["ALL"]);
        assert_eq!(host.cap_add.unwrap(), ["NET_ADMIN", "SETUID", "SETGID", "SETPCAP"]);
        assert_eq!(host.security_opt.unwrap(), ["no-new-privileges"]);
        assert_eq!((host.auto_remove, host.privileged, host.binds), (Some(true), None, None));
        let labels = body.labels.unwrap();
        assert_eq!((labels[label::ROLE].as_str(), labels[label::LIFETIME].as_str()), ("daemon", "held"));
        assert_eq!(labels[label::CONNECTION], "demo");
    }

    #[test]
    fn two_addresses_can_publish_one_port() {
        let publish =
            |host_ip: &str| Publish { container: "80/tcp".into(), host_ip: host_ip.into(), host_port: "8080".into() };
        let spec = DaemonSpec { publish: vec![publish("127.0.0.1"), publish("::1")], ..DaemonSpec::default() };
        let body = create_body(&spec, &[]);
        assert_eq!(body.exposed_ports.unwrap(), ["80/tcp"]);
        assert_eq!(body.host_config.unwrap().port_bindings.unwrap()["80/tcp"].as_ref().unwrap().len(), 2);
    }
}
