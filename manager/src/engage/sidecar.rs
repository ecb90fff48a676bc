//! A workload's own pod with tp-agent in it: the JSON patch (RFC 6902) that makes a new pod one.
//!
//! A Service that says the name of its target port finds the port by that name in each pod. So the agent's container gets the
//! name, with a port of its own, and the app's container keeps its port without the name: what comes through the Service
//! arrives at the agent, which passes it on to the app, and no packet has to be redirected, which would take a capability.
//! What comes by number passes the agent by: ports whose Services give a number cannot be taken over, and callers of headless
//! Services meet the agent only where they look the port up (SRV records, EndpointSlices).

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, HTTPGetAction, LifecycleHandler, Pod, PodSpec, PodTemplateSpec, Service, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::apimachinery::pkg::version::Info;
use kube::ResourceExt;
use serde_json::{Value, json};
use tp_protocol::engage::call::AppProtocol;
use tp_protocol::engage::wire::Transport;

use super::agent::{self, Agent};
use super::service;
use crate::config::AgentPod;

/// Label by which a pod asks for an agent. A label, since webhooks are chosen by labels alone.
pub(super) const INJECT: &str = "tp/inject";

/// Values of the label: the workload's owner asks; the manager asks, for a client; the owner wants none.
pub(super) const ENABLED: &str = "enabled";
pub(super) const ON_DEMAND: &str = "on-demand";
pub(super) const DISABLED: &str = "disabled";

/// Annotation with the names of the ports that the agent takes over, separated by commas. Without it, those that Services name.
pub(super) const PORTS: &str = "tp/inject-ports";

/// Annotation of a pod that asked for an agent and has none: why.
pub(super) const NOT_INJECTED: &str = "tp/not-injected";

/// Variable of the agent with the ports that it takes over.
const TAKEN_PORTS: &str = "TP_AGENT_PORTS";

/// Annotation of the pods that a kubelet has made by itself, and that the API server only shows.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Where the API server mounts the token for itself into every container that has nothing there.
const API_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The first version with sidecars that can be relied on, major and minor. They are there from 1.29 on, but Services do not
/// find their ports by name until 1.33 (kubernetes/kubernetes#128850), whose nodes all have them.
const NATIVE_SINCE: (u32, u32) = (1, 33);

/// What the agent's container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// An init container that goes on running: it is there before the app, and stays until the app has ended.
    Native,
    /// A container like the app's.
    Beside,
}

/// What pods get.
pub(crate) struct Wanted<'a> {
    /// All Services of the pod's namespace.
    pub(crate) services: &'a [Service],
    /// How agents run.
    pub(crate) settings: &'a AgentPod,
    /// Whose certificates they trust, in PEM.
    pub(crate) ca_pem: &'a str,
    pub(crate) form: Form,
}

/// How a pod gets its agent.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Injection {
    /// Operations of a JSON patch; none when the pod has an agent.
    pub(crate) operations: Vec<Value>,
    /// Which of the Services' ports do not arrive at the agent, and why.
    pub(crate) left_out: Vec<String>,
}

/// Why a pod gets no agent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the pod uses its node's network, where an agent's ports would be the node's")]
    HostNetwork,
    #[error("the pod is for Windows, and the agent for Linux")]
    Windows,
    #[error(
        "beside an agent the pod would never end (restartPolicy {0}); API servers from 1.33 on can keep it from that"
    )]
    RunsToItsEnd(String),
    #[error("no Service that names a port selects the pods, and the annotation {PORTS} names none")]
    NoPort,
    #[error(
        "{0}, and an agent takes ports over by name: give the container's port a name, and let the Service's targetPort say it"
    )]
    OnlyNumbers(String),
    #[error("the annotation {PORTS} names the port `{0}`, which no container has")]
    UnknownPort(String),
    #[error("the pod has a volume {0} of its own")]
    VolumeName(&'static str),
    #[error("the pod has no port left for the agent")]
    NoFreePort,
}

/// A named port of the app that the agent takes over.
#[derive(Debug)]
struct Taken {
    name: String,
    transport: Transport,
    protocol: AppProtocol,
    /// Indices of the containers and their ports that have the name. The first is the one that Services find.
    declared: Vec<(usize, usize)>,
    /// The app's port.
    number: u16,
    /// The agent's.
    listen: u16,
}

impl Form {
    /// What an API server of this version can be relied on for.
    pub(crate) fn of_server(version: &Info) -> Self {
        // Some providers write `34+`.
        let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().unwrap_or(0);
        let version = (number(&version.major), number(&version.minor));
        if version >= NATIVE_SINCE { Self::Native } else { Self::Beside }
    }
}

/// Selects the pods that ask for an agent.
pub(super) fn selector() -> String {
    format!("{INJECT} in ({ENABLED},{ON_DEMAND})")
}

/// Whether a pod asks for an agent.
pub(crate) fn is_asked_for(pod: &Pod) -> bool {
    asks_by(pod.labels()) && !pod.annotations().contains_key(MIRROR)
}

/// Whether a pod has an agent.
pub(crate) fn has_agent(pod: &Pod) -> bool {
    agent_of(pod).is_some()
}

/// A pod's agent.
pub(super) fn agent_of(pod: &Pod) -> Option<&Container> {
    pod.spec.as_ref().and_then(|spec| all_containers(spec).find(|container| container.name == agent::NAME))
}

/// Whether pods with these labels ask for an agent.
pub(super) fn asks_by(labels: &BTreeMap<String, String>) -> bool {
    labels.get(INJECT).is_some_and(|value| [ENABLED, ON_DEMAND].contains(&value.as_str()))
}

/// The container whose environment an agent has.
pub(super) fn container_of(agent: &Container) -> Option<&str> {
    let variable = agent.env.iter().flatten().find(|variable| variable.name == agent::CONTAINER);
    variable.and_then(|variable| variable.value.as_deref())
}

/// Whether the pods of a template have their agents not take over a port of this name.
pub(super) fn leaves_out(template: &PodTemplateSpec, name: &str) -> bool {
    let annotations = template.metadata.as_ref().and_then(|metadata| metadata.annotations.as_ref());
    let names = annotations.and_then(|annotations| annotations.get(PORTS));
    names.is_some_and(|names| listed(names).all(|listed| listed != name))
}

/// Names in an annotation.
fn listed(names: &str) -> impl Iterator<Item = &str> {
    names.split(',').map(str::trim).filter(|name| !name.is_empty())
}

/// Finds out how a new pod gets an agent. One that has an agent is left as it is, so that a pod can be looked at twice.
///
/// # Errors
/// [`Refusal`] says why it gets none.
pub(crate) fn inject(pod: &Pod, wanted: &Wanted<'_>) -> Result<Injection, Refusal> {
    if has_agent(pod) {
        return Ok(Injection::default());
    }
    let Some(spec) = &pod.spec else { return Err(Refusal::NoPort) };
    check(spec, wanted.form)?;
    let mut free = free_ports(spec);
    let health_port = free.next().ok_or(Refusal::NoFreePort)?;
    let (taken, left_out) = take(pod, spec, wanted.services, &mut free)?;
    // It is the container whose port comes first, as for a stand-in.
    let first = taken.first().and_then(|port| port.declared.first()).ok_or(Refusal::NoPort)?;
    let template = PodTemplateSpec { metadata: Some(pod.metadata.clone()), spec: Some(spec.clone()) };
    let agent = Agent {
        settings: wanted.settings,
        template: &template,
        app: &spec.containers[first.0],
        health_port,
        ports: ports(&taken),
    };
    let container = container(&agent, &taken, wanted.form);
    let mut operations = give_up_names(spec, &taken);
    let field = match wanted.form {
        Form::Native => ("/spec/initContainers", spec.init_containers.is_some()),
        Form::Beside => ("/spec/containers", true),
    };
    operations.extend(append(field.0, field.1, vec![container]));
    operations.extend(append("/spec/volumes", spec.volumes.is_some(), agent::volumes().to_vec()));
    operations.extend(append("/spec/imagePullSecrets", spec.image_pull_secrets.is_some(), pull_secrets(spec, wanted)));
    operations.extend(annotate(pod, agent::CA, wanted.ca_pem));
    if pod.annotations().contains_key(NOT_INJECTED) {
        operations.push(json!({"op": "remove", "path": annotation(NOT_INJECTED)}));
    }
    Ok(Injection { operations, left_out })
}

/// Makes a pod what it was before it got its agent, as far as that matters for another one: the app's ports have their names.
pub(super) fn take_out(spec: &mut PodSpec) {
    let Some(agent) = all_containers(spec).find(|container| container.name == agent::NAME).cloned() else { return };
    let listens = agent.env.iter().flatten().find(|variable| variable.name == TAKEN_PORTS);
    let listens = listens.and_then(|variable| variable.value.as_deref()).unwrap_or_default();
    for port in agent.ports.iter().flatten() {
        let number = listens.split(',').find_map(|entry| {
            let (listen, number) = entry.split_once('/')?.0.split_once(':')?;
            (listen == port.container_port.to_string()).then_some(number)?.parse::<i32>().ok()
        });
        let is_it = |it: &&mut ContainerPort| {
            it.name.is_none() && Some(it.container_port) == number && transport(it) == transport(port)
        };
        let mut ports = spec.containers.iter_mut().flat_map(|container| container.ports.iter_mut().flatten());
        if let Some(own) = ports.find(is_it) {
            own.name.clone_from(&port.name);
        }
    }
    spec.containers.retain(|container| container.name != agent::NAME);
    if let Some(containers) = &mut spec.init_containers {
        containers.retain(|container| container.name != agent::NAME);
    }
    if let Some(volumes) = &mut spec.volumes {
        volumes.retain(|volume| !agent::VOLUMES.contains(&volume.name.as_str()));
    }
}

/// The patch of a pod that asked for an agent and gets none.
pub(crate) fn not_injected(pod: &Pod, why: &str) -> Vec<Value> {
    annotate(pod, NOT_INJECTED, why)
}

/// Pods that cannot have an agent, whatever their ports are.
fn check(spec: &PodSpec, form: Form) -> Result<(), Refusal> {
    if spec.host_network == Some(true) {
        return Err(Refusal::HostNetwork);
    }
    if spec.os.as_ref().is_some_and(|os| os.name == "windows") {
        return Err(Refusal::Windows);
    }
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    if form == Form::Beside && policy != "Always" {
        return Err(Refusal::RunsToItsEnd(policy.to_owned()));
    }
    let is_taken = |name: &&str| spec.volumes.iter().flatten().any(|volume| volume.name == **name);
    agent::VOLUMES.into_iter().find(is_taken).map_or(Ok(()), |name| Err(Refusal::VolumeName(name)))
}

/// The app's ports that the agent takes over, and what arrives elsewhere.
fn take(
    pod: &Pod,
    spec: &PodSpec,
    services: &[Service],
    free: &mut impl Iterator<Item = u16>,
) -> Result<(Vec<Taken>, Vec<String>), Refusal> {
    let of_services = service::ports_of_pod(services, pod.labels(), &spec.containers);
    let by_number: BTreeSet<String> = of_services
        .iter()
        .filter(|port| port.target_name.is_none())
        .map(|port| format!("a Service leads port {} to port {} by number", port.service_port, port.container_port))
        .collect();
    let by_number: Vec<String> = by_number.into_iter().collect();
    let asked: Option<Vec<&str>> = pod.annotations().get(PORTS).map(|names| listed(names).collect());
    let names: Vec<&str> = match asked {
        Some(names) => names,
        None => of_services.iter().filter_map(|port| port.target_name.as_deref()).collect(),
    };
    let mut taken: Vec<Taken> = Vec::new();
    for name in names {
        if !named(spec, name).any(|_| true) {
            return Err(Refusal::UnknownPort(name.to_owned()));
        }
        for (at, number, transport) in named(spec, name) {
            if let Some(known) = taken.iter_mut().find(|it| it.name == name && it.transport == transport) {
                // Services find the first. But for the agent they would find the others then.
                if !known.declared.contains(&at) {
                    known.declared.push(at);
                }
                continue;
            }
            let same = taken.iter().find(|it| (it.number, it.transport) == (number, transport));
            let listen = same.map(|it| it.listen).or_else(|| free.next()).ok_or(Refusal::NoFreePort)?;
            let of_port = of_services.iter().filter(|it| (it.container_port, it.transport) == (number, transport));
            let protocols: Vec<AppProtocol> = of_port.map(|port| port.protocol).collect();
            // Of two Services with one port, the one that says HTTP knows more.
            let is_http = protocols.contains(&AppProtocol::Http);
            let said = if is_http { Some(AppProtocol::Http) } else { protocols.first().copied() };
            let unsaid = if transport == Transport::Udp { AppProtocol::Opaque } else { AppProtocol::Unknown };
            taken.push(Taken {
                name: name.to_owned(),
                transport,
                protocol: said.unwrap_or(unsaid),
                declared: vec![at],
                number,
                listen,
            });
        }
    }
    match (taken.is_empty(), by_number.is_empty()) {
        (false, _) => Ok((taken, by_number)),
        (true, false) => Err(Refusal::OnlyNumbers(by_number.join("; "))),
        (true, true) => Err(Refusal::NoPort),
    }
}

/// Where the app's containers have a port of this name, with its number and protocol.
fn named(spec: &PodSpec, name: &str) -> impl Iterator<Item = ((usize, usize), u16, Transport)> {
    let ports = spec.containers.iter().enumerate().flat_map(|(index, container)| {
        container.ports.iter().flatten().enumerate().map(move |(port_index, port)| ((index, port_index), port))
    });
    ports.filter_map(move |(at, port)| {
        let number = u16::try_from(port.container_port).ok()?;
        (port.name.as_deref() == Some(name)).then_some((at, number, transport(port)?))
    })
}

fn transport(port: &ContainerPort) -> Option<Transport> {
    match port.protocol.as_deref() {
        None | Some("TCP") => Some(Transport::Tcp),
        Some("UDP") => Some(Transport::Udp),
        Some(_) => None,
    }
}

/// Ports that no container says it has. One that an app has and does not say may be among them.
fn free_ports(spec: &PodSpec) -> impl Iterator<Item = u16> + use<> {
    let declared = all_containers(spec).flat_map(|container| container.ports.iter().flatten());
    let used: BTreeSet<i32> = declared.map(|port| port.container_port).collect();
    (agent::HEALTH_PORT..=u16::MAX).filter(move |port| !used.contains(&i32::from(*port)))
}

fn all_containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

/// The agent's ports, by which Services find it.
fn ports(taken: &[Taken]) -> Vec<Value> {
    let protocol = |port: &Taken| if port.transport == Transport::Udp { "UDP" } else { "TCP" };
    let port = |port: &Taken| json!({"name": port.name, "containerPort": port.listen, "protocol": protocol(port)});
    taken.iter().map(port).collect()
}

/// The agent's container. It runs as `restricted` asks for, whatever the pod allows its own containers.
fn container(agent: &Agent<'_>, taken: &[Taken], form: Form) -> Value {
    let more =
        [agent::field("TP_AGENT_POD_IP", "status.podIP"), json!({"name": TAKEN_PORTS, "value": ports_variable(taken)})];
    let mut container = agent::container(agent, &more);
    if form == Form::Native {
        container["restartPolicy"] = json!("Always");
    }
    let security = &mut container["securityContext"];
    security["runAsNonRoot"] = json!(true);
    security["runAsUser"] = json!(65_532);
    security["runAsGroup"] = json!(65_532);
    security["seccompProfile"] = json!({"type": "RuntimeDefault"});
    if let Some(mounts) = container["volumeMounts"].as_array_mut() {
        // The app's rights are not the agent's.
        mounts.push(json!({"name": agent::VOLUMES[0], "mountPath": API_TOKEN, "readOnly": true}));
    }
    container
}

/// `LISTEN:PORT/TRANSPORT/PROTOCOL`, separated by commas: what the agent listens on, and for which port of the app.
fn ports_variable(taken: &[Taken]) -> String {
    let text = |port: &Taken| {
        let transport = if port.transport == Transport::Udp { "udp" } else { "tcp" };
        let protocol = match port.protocol {
            AppProtocol::Unknown => "unknown",
            AppProtocol::Http => "http",
            AppProtocol::Opaque => "opaque",
        };
        (port.listen, format!("{}:{}/{transport}/{protocol}", port.listen, port.number))
    };
    // Two names of one port are one port of the agent's.
    let by_listen: BTreeMap<u16, String> = taken.iter().map(text).collect();
    by_listen.into_values().collect::<Vec<_>>().join(",")
}

/// Takes the names from the app's ports, and has probes and hooks that use them say the numbers: they are to find the app, and
/// the kubelet looks for names in the container alone.
fn give_up_names(spec: &PodSpec, taken: &[Taken]) -> Vec<Value> {
    let mut operations = Vec::new();
    for (index, container) in spec.containers.iter().enumerate() {
        let own_ports = container.ports.as_deref().unwrap_or_default();
        let given_up = taken.iter().flat_map(|port| &port.declared).filter(|at| at.0 == index);
        let given_up: BTreeSet<usize> = given_up.map(|at| at.1).collect();
        let path = |field: &str| format!("/spec/containers/{index}/{field}");
        operations
            .extend(given_up.iter().map(|port| json!({"op": "remove", "path": path(&format!("ports/{port}/name"))})));
        for (field, port) in ports_of_handlers(container) {
            let IntOrString::String(name) = port else { continue };
            // Of two ports of the name the kubelet takes the first.
            let first = own_ports.iter().position(|it| it.name.as_ref() == Some(name));
            if let Some(first) = first.filter(|first| given_up.contains(first)) {
                let number = own_ports[first].container_port;
                operations.push(json!({"op": "replace", "path": path(&field), "value": number}));
            }
        }
    }
    operations
}

/// The ports of a container's probes and hooks, with their places in the container.
fn ports_of_handlers(container: &Container) -> Vec<(String, &IntOrString)> {
    let probes = [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ];
    let lifecycle = container.lifecycle.as_ref();
    let hooks: [(&str, Option<&LifecycleHandler>); 2] = [
        ("lifecycle/postStart", lifecycle.and_then(|it| it.post_start.as_ref())),
        ("lifecycle/preStop", lifecycle.and_then(|it| it.pre_stop.as_ref())),
    ];
    let of_probes = probes
        .into_iter()
        .filter_map(|(field, probe)| probe.as_ref().map(|it| (field, it.http_get.as_ref(), it.tcp_socket.as_ref())));
    let of_hooks = hooks
        .into_iter()
        .filter_map(|(field, hook)| hook.map(|it| (field, it.http_get.as_ref(), it.tcp_socket.as_ref())));
    of_probes.chain(of_hooks).flat_map(|(field, http, tcp)| actions(field, http, tcp)).collect()
}

/// The ports of one probe or hook.
fn actions<'a>(
    field: &str,
    http: Option<&'a HTTPGetAction>,
    tcp: Option<&'a TCPSocketAction>,
) -> impl Iterator<Item = (String, &'a IntOrString)> {
    let http = http.map(|it| (format!("{field}/httpGet/port"), &it.port));
    let tcp = tcp.map(|it| (format!("{field}/tcpSocket/port"), &it.port));
    http.into_iter().chain(tcp)
}

/// The Secrets to pull the agent with that the pod has not got.
fn pull_secrets(spec: &PodSpec, wanted: &Wanted<'_>) -> Vec<Value> {
    let has = |name: &String| spec.image_pull_secrets.iter().flatten().any(|it| it.name == *name);
    let missing = wanted.settings.pull_secrets.iter().filter(|name| !has(name));
    missing.map(|name| json!({"name": name})).collect()
}

/// Adds to a list that may not be there.
fn append(path: &str, is_there: bool, values: Vec<Value>) -> Vec<Value> {
    if is_there {
        values.into_iter().map(|value| json!({"op": "add", "path": format!("{path}/-"), "value": value})).collect()
    } else if values.is_empty() {
        Vec::new()
    } else {
        vec![json!({"op": "add", "path": path, "value": values})]
    }
}

/// Sets an annotation.
fn annotate(pod: &Pod, key: &str, value: &str) -> Vec<Value> {
    if pod.metadata.annotations.is_some() {
        return vec![json!({"op": "add", "path": annotation(key), "value": value})];
    }
    vec![json!({"op": "add", "path": "/metadata/annotations", "value": {key: value}})]
}

/// Where an annotation is, as a JSON pointer (RFC 6901).
fn annotation(key: &str) -> String {
    format!("/metadata/annotations/{}", key.replace('~', "~0").replace('/', "~1"))
}

#[cfg(test)]
mod tests;
