//! The Service whose traffic is engaged: which one, which of its ports, and how its selector is narrowed to a stand-in.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tp_protocol::engage::call::{AppProtocol, AskedPort, Failure};
use tp_protocol::engage::wire::Transport;

use super::workload::{ROLLOUT_HASH, Workload};
use super::{container, failure};

/// Label of a stand-in's pods with its name, and key that narrows a Service's selector to them.
pub(crate) const STAND_IN: &str = "tp/stand-in";

/// Services of one namespace that are looked at.
const SERVICES_MAX: u32 = 5_000;

/// A port of a Service, down to the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    /// The Service's port.
    pub(crate) service_port: u16,
    /// Its name; empty when it has none.
    pub(crate) name: String,
    /// The container's port.
    pub(crate) container_port: u16,
    /// The container port's name, where the Service names it.
    pub(crate) target_name: Option<String>,
    pub(crate) transport: Transport,
    pub(crate) protocol: AppProtocol,
}

/// Returns the Services of a namespace.
pub(crate) async fn list(client: &Client, namespace: &str) -> Result<Vec<Service>, Failure> {
    let list =
        Api::<Service>::namespaced(client.clone(), namespace).list(&ListParams::default().limit(SERVICES_MAX)).await;
    Ok(list.map_err(|error| failure(format!("cannot list the Services of namespace {namespace}: {error}"), ""))?.items)
}

/// Returns the Service that `asked` means, or the only one that selects the workload's pods. A headless one is meant where there is no
/// other.
pub(crate) fn find(services: Vec<Service>, workload: &Workload, asked: &str) -> Result<Service, Failure> {
    let labels = workload.labels();
    let mut selecting: Vec<Service> = services.into_iter().filter(|service| selects(service, &labels)).collect();
    let names: Vec<String> = selecting.iter().map(ResourceExt::name_any).collect();
    if !asked.is_empty() {
        let position = names.iter().position(|name| name == asked).ok_or_else(|| {
            let there =
                if names.is_empty() { "none does".to_owned() } else { format!("these do: {}", names.join(", ")) };
            failure(format!("no Service {asked} selects the pods of {workload}"), there)
        })?;
        return Ok(selecting.swap_remove(position));
    }
    // A headless one beside it, as StatefulSets have, leaves no doubt which one is meant.
    if selecting.iter().any(|service| !is_headless(service)) {
        selecting.retain(|service| !is_headless(service));
    }
    let names: Vec<String> = selecting.iter().map(ResourceExt::name_any).collect();
    match names.len() {
        0 if workload.kind.ends() => Err(failure(
            format!("no Service selects the pods of {workload}, so nobody sends them anything"),
            format!("`tp ingest {workload}` has its environment, and takes no traffic"),
        )),
        0 => Err(failure(
            format!("no Service selects the pods of {workload}"),
            "a stand-in takes the place of pods in a Service, so there has to be one",
        )),
        1 => Ok(selecting.swap_remove(0)),
        _ => Err(failure(
            format!("{} Services select the pods of {workload}", names.len()),
            format!("say which one's traffic is meant with --service: {}", names.join(", ")),
        )),
    }
}

/// Whether a Service's selector, without what tp put there, selects pods with these labels, or those of one version of them: no
/// template of a Rollout has the label by which Argo tells the versions apart.
pub(crate) fn selects(service: &Service, labels: &BTreeMap<String, String>) -> bool {
    let mut selector = selector(service);
    selector.remove(ROLLOUT_HASH);
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// A Service's own selector, without what tp put there.
pub(crate) fn selector(service: &Service) -> BTreeMap<String, String> {
    let mut selector = service.spec.as_ref().and_then(|spec| spec.selector.clone()).unwrap_or_default();
    selector.remove(STAND_IN);
    selector
}

/// The stand-in to which a Service is narrowed.
pub(crate) fn narrowed_to(service: &Service) -> Option<&str> {
    service.spec.as_ref()?.selector.as_ref()?.get(STAND_IN).map(String::as_str)
}

/// Whether a Service has no address of its own. It cannot be narrowed with effect: its callers know the pods' addresses.
pub(super) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

/// Returns the ports of all Services that select the workload's pods: a stand-in is an endpoint of each of them.
pub(crate) fn all_ports(services: &[Service], workload: &Workload) -> Vec<Port> {
    ports_of_pod(services, &workload.labels(), workload.containers())
}

/// Returns the ports of all Services that select a pod with these labels and containers.
pub(crate) fn ports_of_pod(
    services: &[Service],
    labels: &BTreeMap<String, String>,
    containers: &[Container],
) -> Vec<Port> {
    let selecting = services.iter().filter(|service| selects(service, labels));
    selecting.flat_map(|service| resolve_all(service, containers)).collect()
}

/// Returns a Service's ports; only those that `container` declares, when it is named.
///
/// # Errors
/// A [`Failure`] when the workload has no such container.
pub(crate) fn ports(service: &Service, workload: &Workload, container: &str) -> Result<Vec<Port>, Failure> {
    let mut ports = resolve_all(service, workload.containers());
    if !container.is_empty() {
        let named = container::find(workload, container, &[])?;
        ports.retain(|port| container::declares(named, port.container_port));
    }
    Ok(ports)
}

fn resolve_all(service: &Service, containers: &[Container]) -> Vec<Port> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    ports.iter().filter_map(|port| resolve(port, containers)).collect()
}

fn resolve(port: &ServicePort, containers: &[Container]) -> Option<Port> {
    let transport = match port.protocol.as_deref() {
        None | Some("TCP") => Transport::Tcp,
        Some("UDP") => Transport::Udp,
        Some(_) => return None,
    };
    let service_port = u16::try_from(port.port).ok()?;
    let (container_port, target_name) = match &port.target_port {
        None => (service_port, None),
        Some(IntOrString::Int(number)) => (u16::try_from(*number).ok()?, None),
        Some(IntOrString::String(name)) => {
            let mut declared = containers.iter().flat_map(|container| container.ports.iter().flatten());
            let declared = declared.find(|declared| declared.name.as_ref() == Some(name))?;
            (u16::try_from(declared.container_port).ok()?, Some(name.clone()))
        }
    };
    let name = port.name.clone().unwrap_or_default();
    let protocol = app_protocol(port.app_protocol.as_deref(), &name, transport);
    Some(Port { service_port, name, container_port, target_name, transport, protocol })
}

/// What the port speaks: by `appProtocol` (Kubernetes' Service documentation), else by the port's name, where many write
/// it.
fn app_protocol(declared: Option<&str>, name: &str, transport: Transport) -> AppProtocol {
    if transport == Transport::Udp {
        return AppProtocol::Opaque;
    }
    match declared.map(str::to_ascii_lowercase).as_deref() {
        Some("http" | "http2" | "h2c" | "grpc" | "grpc-web" | "kubernetes.io/h2c" | "kubernetes.io/ws") => {
            AppProtocol::Http
        }
        Some(_) => AppProtocol::Opaque,
        None if ["http", "http2", "h2c", "grpc"].contains(&name.split('-').next().unwrap_or_default()) => {
            AppProtocol::Http
        }
        None => AppProtocol::Unknown,
    }
}

/// Returns the port that `asked` means.
pub(crate) fn port<'a>(ports: &'a [Port], asked: &AskedPort, service: &str) -> Result<&'a Port, Failure> {
    let transport = asked.transport();
    let of_transport = || ports.iter().filter(|port| port.transport == transport);
    let remote = asked.remote.as_str();
    let meant: Vec<&Port> = if remote.is_empty() {
        of_transport().collect()
    } else if let Ok(number) = remote.parse::<u16>() {
        let of_service: Vec<&Port> = of_transport().filter(|port| port.service_port == number).collect();
        if of_service.is_empty() {
            of_transport().filter(|port| port.container_port == number).collect()
        } else {
            of_service
        }
    } else {
        of_transport().filter(|port| port.name == remote || port.target_name.as_deref() == Some(remote)).collect()
    };
    let all = || ports.iter().map(describe).collect::<Vec<_>>().join(", ");
    match meant[..] {
        [port] => Ok(port),
        [] if remote.is_empty() => {
            Err(failure(format!("the Service {service} has no such port"), format!("it has {}", all())))
        }
        [] => Err(failure(format!("the Service {service} has no port {remote}"), format!("it has {}", all()))),
        _ => Err(failure(
            format!("the Service {service} has {} ports that can be meant", meant.len()),
            format!("say which with --port LOCAL:REMOTE; it has {}", all()),
        )),
    }
}

fn describe(port: &Port) -> String {
    let transport = if port.transport == Transport::Udp { "/udp" } else { "" };
    let name = if port.name.is_empty() { String::new() } else { format!(" ({})", port.name) };
    format!("{}{transport}{name}", port.service_port)
}

/// A merge patch that narrows a Service to a stand-in.
pub(crate) fn narrowing(stand_in: &str) -> Value {
    json!({"spec": {"selector": {STAND_IN: stand_in}}})
}

/// A merge patch that gives a Service its own selector back.
pub(crate) fn widening() -> Value {
    json!({"spec": {"selector": {STAND_IN: null}}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engage::workload::Kind;

    fn service(name: &str, spec: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
    }

    fn workload() -> Workload {
        let template = json!({
            "metadata": {"labels": {"app": "web", "tier": "front"}},
            "spec": {"containers": [{"name": "web", "ports": [{"name": "http", "containerPort": 8080}]}]},
        });
        Workload {
            kind: Kind::Deployment,
            name: "web".into(),
            selector: BTreeMap::new(),
            template: serde_json::from_value(template).unwrap(),
        }
    }

    fn web() -> Service {
        let ports = json!([
            {"name": "http", "port": 80, "targetPort": "http"},
            {"name": "admin", "port": 9000, "targetPort": 9001, "appProtocol": "mysql"},
            {"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "gone", "port": 1, "targetPort": "nobody-has-this"},
        ]);
        service("web", json!({"selector": {"app": "web"}, "clusterIP": "10.96.0.5", "ports": ports}))
    }

    fn asked(remote: &str, transport: Transport) -> AskedPort {
        AskedPort { remote: remote.into(), transport: transport.into(), local: String::new() }
    }

    #[test]
    fn the_only_service_of_a_workload_is_meant() {
        let other = service("other", json!({"selector": {"app": "other"}}));
        let external = service("external", json!({}));
        assert_eq!(find(vec![other.clone(), web(), external], &workload(), "").unwrap().name_any(), "web");
        assert!(find(vec![other], &workload(), "").unwrap_err().message.contains("no Service selects"));
        let job = Workload { kind: Kind::Job, ..workload() };
        assert!(find(Vec::new(), &job, "").unwrap_err().hint.starts_with("`tp ingest job/web` "));
        let also = service("also", json!({"selector": {"tier": "front"}}));
        assert!(find(vec![web(), also.clone()], &workload(), "").unwrap_err().hint.ends_with("web, also"));
        assert_eq!(find(vec![web(), also.clone()], &workload(), "also").unwrap().name_any(), "also");
        assert!(find(vec![web(), also], &workload(), "nope").unwrap_err().hint.contains("web, also"));
    }

    #[test]
    fn a_headless_service_is_meant_where_there_is_no_other() {
        let headless = service("peers", json!({"selector": {"app": "web"}, "clusterIP": "None"}));
        assert_eq!(find(vec![headless.clone(), web()], &workload(), "").unwrap().name_any(), "web");
        assert_eq!(find(vec![headless.clone(), web()], &workload(), "peers").unwrap().name_any(), "peers");
        assert!(is_headless(&find(vec![headless], &workload(), "").unwrap()) && !is_headless(&web()));
    }

    #[test]
    fn a_narrowed_service_is_found_by_its_own_selector() {
        let selector = json!({"selector": {"app": "web", STAND_IN: "tp-web-1"}});
        let narrowed = service("web", selector);
        assert_eq!(narrowed_to(&narrowed), Some("tp-web-1"));
        assert_eq!(super::selector(&narrowed), BTreeMap::from([("app".into(), "web".into())]));
        assert!(find(vec![narrowed], &workload(), "").is_ok());
    }

    #[test]
    fn a_service_of_one_version_of_a_rollout_selects_it() {
        let of = |hash: &str| {
            service(hash, json!({"selector": {"app": "web", ROLLOUT_HASH: hash}, "ports": [{"port": 80}]}))
        };
        assert_eq!(find(vec![of("5d4f")], &workload(), "").unwrap().name_any(), "5d4f");
        assert!(find(vec![of("5d4f"), of("6e")], &workload(), "").unwrap_err().hint.ends_with("5d4f, 6e"));
        let all = service("all", json!({"selector": {ROLLOUT_HASH: "5d4f"}}));
        assert!(find(vec![all], &workload(), "").is_err(), "it selects by nothing else");
    }

    #[test]
    fn ports_are_meant_by_number_and_by_name() {
        let ports = ports(&web(), &workload(), "").unwrap();
        let of = |remote, transport| port(&ports, &asked(remote, transport), "web").map(|port| port.container_port);
        for (remote, container_port) in [("80", 8080), ("8080", 8080), ("http", 8080), ("admin", 9001), ("9000", 9001)]
        {
            assert_eq!(of(remote, Transport::Tcp), Ok(container_port), "{remote}");
        }
        assert_eq!(of("", Transport::Udp), Ok(53));
        assert_eq!(
            of("", Transport::Tcp).unwrap_err().hint,
            "say which with --port LOCAL:REMOTE; it has 80 (http), 9000 (admin), 53/udp (dns)"
        );
        assert_eq!(of("81", Transport::Tcp).unwrap_err().message, "the Service web has no port 81");
        let of_container = super::ports(&web(), &workload(), "web").unwrap();
        assert_eq!(of_container.iter().map(|port| port.container_port).collect::<Vec<_>>(), [8080]);
        assert_eq!(super::ports(&web(), &workload(), "app").unwrap_err().hint, "it has web");
    }

    #[test]
    fn what_a_port_speaks_is_told_by_its_app_protocol_or_its_name() {
        let protocols: Vec<AppProtocol> =
            ports(&web(), &workload(), "").unwrap().into_iter().map(|port| port.protocol).collect();
        assert_eq!(protocols, [AppProtocol::Http, AppProtocol::Opaque, AppProtocol::Opaque]);
        assert_eq!(app_protocol(None, "metrics", Transport::Tcp), AppProtocol::Unknown);
        assert_eq!(app_protocol(None, "http-web", Transport::Tcp), AppProtocol::Http);
        assert_eq!(app_protocol(Some("https"), "http", Transport::Tcp), AppProtocol::Opaque);
    }
}
