//! The container that is engaged: which one, and how its specification says that it runs.
//!
//! Its environment is resolved by the kubelet, for the agent's container ([`environment`]); what refers to the pod that the
//! container is really in, its labels, annotations and resources, is put in here.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, EnvVar, PodSpec, PodTemplateSpec, ResourceFieldSelector, ResourceRequirements, Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;
use tp_protocol::engage::call::{ContainerSpec, Failure, Mount};

use super::failure;
use super::quantity::Quantity;
use super::service::Port;
use super::workload::Workload;

/// Begins the names of the agent's own variables, which a container's own must not replace.
const AGENTS_OWN: &str = "TP_AGENT_";

/// Names the container that is meant where none is named (kubectl's annotation).
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Finds the container that `asked` names; else the one that has the first of `ports`, else the workload's default one.
///
/// # Errors
/// A [`Failure`] that names those that there are.
pub(crate) fn find<'a>(workload: &'a Workload, asked: &str, ports: &[Port]) -> Result<&'a Container, Failure> {
    let all = workload.containers();
    let named = |name: &str| all.iter().find(|it| it.name == name);
    if !asked.is_empty() {
        return named(asked).ok_or_else(|| {
            let names: Vec<&str> = all.iter().map(|it| it.name.as_str()).collect();
            failure(format!("{workload} has no container {asked}"), format!("it has {}", names.join(", ")))
        });
    }
    let of_port = ports.first().and_then(|port| all.iter().find(|it| declares(it, port.container_port)));
    let annotations = workload.template.metadata.as_ref().and_then(|metadata| metadata.annotations.as_ref());
    let default = || annotations.and_then(|all| all.get(DEFAULT_CONTAINER)).and_then(|name| named(name));
    let found = of_port.or_else(default).or(all.first());
    found.ok_or_else(|| failure(format!("{workload} has no container"), ""))
}

/// Whether a container says that it listens on a port.
pub(crate) fn declares(container: &Container, port: u16) -> bool {
    container.ports.iter().flatten().any(|it| it.container_port == i32::from(port))
}

/// How a container runs.
pub(crate) fn describe(template: &PodTemplateSpec, container: &Container) -> ContainerSpec {
    let pod = template.spec.as_ref();
    let of_pod = pod.and_then(|spec| spec.security_context.as_ref());
    let own = container.security_context.as_ref();
    let limit = |name: &str| written(container.resources.as_ref(), "limits", name);
    ContainerSpec {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        command: container.command.clone().unwrap_or_default(),
        args: container.args.clone().unwrap_or_default(),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        user: own.and_then(|it| it.run_as_user).or(of_pod.and_then(|it| it.run_as_user)),
        group: own.and_then(|it| it.run_as_group).or(of_pod.and_then(|it| it.run_as_group)),
        cpu_limit_millis: limit("cpu").map_or(0, Quantity::millis),
        memory_limit_bytes: limit("memory").map_or(0, Quantity::units),
        mounts: mounts(pod, container),
    }
}

/// Where a container has volumes.
pub(crate) fn mounts(pod: Option<&PodSpec>, container: &Container) -> Vec<Mount> {
    let volumes = pod.and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let mounts = container.volume_mounts.iter().flatten().map(|mount| Mount {
        path: mount.mount_path.clone(),
        // Those of a StatefulSet's claims are in no template.
        volume: match volumes.iter().find(|volume| volume.name == mount.name) {
            Some(volume) => kind_of(volume),
            None => format!("volumeClaimTemplate {}", mount.name),
        },
        is_read_only: mount.read_only == Some(true),
    });
    mounts.collect()
}

/// A volume's kind, and what it is made from.
fn kind_of(volume: &Volume) -> String {
    if let Some(source) = &volume.config_map {
        return format!("configMap {}", source.name);
    }
    if let Some(source) = &volume.secret {
        return format!("secret {}", source.secret_name.as_deref().unwrap_or_default());
    }
    if let Some(source) = &volume.persistent_volume_claim {
        return format!("persistentVolumeClaim {}", source.claim_name);
    }
    if let Some(source) = &volume.host_path {
        return format!("hostPath {}", source.path);
    }
    // Of the others the kind says all that can be said; it is the only field beside the name.
    let fields = serde_json::to_value(volume).unwrap_or_default();
    let kind = fields.as_object().and_then(|fields| fields.keys().find(|field| *field != "name").cloned());
    kind.unwrap_or_else(|| "volume".to_owned())
}

/// The variables of a container as another pod's container can have them. A resource that the container does not limit
/// would be its node's, and is left out.
pub(crate) fn environment(template: &PodTemplateSpec, container: &Container) -> Vec<EnvVar> {
    let own = container.env.iter().flatten().filter(|variable| !variable.name.starts_with(AGENTS_OWN));
    own.filter_map(|variable| {
        let Some(source) = &variable.value_from else { return Some(variable.clone()) };
        let literal = |value: String| EnvVar { name: variable.name.clone(), value: Some(value), value_from: None };
        if let Some(resource) = &source.resource_field_ref {
            return resource_value(template, container, resource).map(literal);
        }
        let metadata = template.metadata.as_ref();
        let of_template = source.field_ref.as_ref().and_then(|field| {
            let labels = metadata.and_then(|metadata| metadata.labels.as_ref());
            let annotations = metadata.and_then(|metadata| metadata.annotations.as_ref());
            member(&field.field_path, "metadata.labels", labels)
                .or_else(|| member(&field.field_path, "metadata.annotations", annotations))
        });
        Some(of_template.map_or_else(|| variable.clone(), |value| literal(escaped(&value))))
    })
    .collect()
}

/// A value that means itself: `$(NAME)` in it would be replaced.
fn escaped(value: &str) -> String {
    value.replace('$', "$$")
}

/// Reads `FIELD['KEY']`; `None` when the path is another one. A key that is absent has no text.
fn member(path: &str, field: &str, map: Option<&BTreeMap<String, String>>) -> Option<String> {
    let key = path.strip_prefix(field)?.strip_prefix("['")?.strip_suffix("']")?;
    Some(map.and_then(|map| map.get(key)).cloned().unwrap_or_default())
}

/// What the kubelet would put in for a resource (Kubernetes, `ExtractContainerResourceValue`).
fn resource_value(template: &PodTemplateSpec, container: &Container, field: &ResourceFieldSelector) -> Option<String> {
    let all = template.spec.as_ref().map_or(&[][..], |spec| &spec.containers);
    let container = match &field.container_name {
        Some(name) if !name.is_empty() => all.iter().find(|it| it.name == *name)?,
        _ => container,
    };
    let (kind, name) = field.resource.split_once('.')?;
    let resources = container.resources.as_ref();
    let value = written(resources, kind, name);
    // The API server gives a request that is not said the limit's value.
    let value = if kind == "requests" { value.or_else(|| written(resources, "limits", name)) } else { value };
    let divisor = match &field.divisor {
        Some(Written(text)) if !text.is_empty() && text != "0" => Quantity::parse(text)?,
        _ => Quantity::ONE,
    };
    match value {
        Some(value) => value.divided_by(divisor).map(|value| value.to_string()),
        None => (kind == "requests").then(|| "0".to_owned()),
    }
}

fn written(resources: Option<&ResourceRequirements>, kind: &str, name: &str) -> Option<Quantity> {
    let resources = resources?;
    let of_kind = if kind == "requests" { &resources.requests } else { &resources.limits };
    Quantity::parse(&of_kind.as_ref()?.get(name)?.0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tp_protocol::engage::call::AppProtocol;
    use tp_protocol::engage::wire::Transport;

    use super::*;
    use crate::engage::workload::Kind;

    fn workload() -> Workload {
        let template = json!({
            "metadata": {
                "labels": {"app": "web", "tier": "a$(B)"},
                "annotations": {"kubectl.kubernetes.io/default-container": "web"},
            },
            "spec": {
                "securityContext": {"runAsUser": 1000, "runAsGroup": 2000},
                "containers": [
                    {"name": "proxy", "ports": [{"containerPort": 9000}], "resources": {"limits": {"cpu": "2"}}},
                    {
                        "name": "web",
                        "image": "shop/web:1",
                        "args": ["--port", "$(PORT)"],
                        "workingDir": "/srv",
                        "securityContext": {"runAsUser": 7},
                        "resources": {"limits": {"cpu": "250m", "memory": "64Mi"}},
                        "env": [
                            {"name": "PORT", "value": "8080"},
                            {"name": "TP_AGENT_POD", "value": "mine"},
                            {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                            {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "requests.memory", "divisor": "1Mi"}}},
                            {"name": "DISK", "valueFrom": {"resourceFieldRef": {"resource": "limits.ephemeral-storage"}}},
                            {"name": "PROXY", "valueFrom": {"resourceFieldRef": {"containerName": "proxy", "resource": "limits.cpu"}}},
                            {"name": "TIER", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['tier']"}}},
                            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "api"}}},
                        ],
                        "volumeMounts": [
                            {"name": "config", "mountPath": "/etc/web", "readOnly": true},
                            {"name": "tmp", "mountPath": "/tmp"},
                            {"name": "data", "mountPath": "/data"},
                        ],
                    },
                ],
                "volumes": [{"name": "config", "configMap": {"name": "web"}}, {"name": "tmp", "emptyDir": {}}],
            },
        });
        Workload {
            kind: Kind::StatefulSet,
            name: "web".into(),
            selector: BTreeMap::new(),
            template: serde_json::from_value(template).unwrap(),
        }
    }

    fn port(container_port: u16) -> Port {
        Port {
            service_port: 80,
            name: String::new(),
            container_port,
            target_name: None,
            transport: Transport::Tcp,
            protocol: AppProtocol::Unknown,
        }
    }

    #[test]
    fn the_container_is_the_named_one_or_that_of_the_port_or_the_default_one() {
        let workload = workload();
        let name = |asked, ports: &[Port]| find(&workload, asked, ports).map(|it| it.name.clone());
        assert_eq!(name("proxy", &[port(8080)]), Ok("proxy".into()));
        assert_eq!(name("", &[port(9000)]), Ok("proxy".into()));
        assert_eq!(name("", &[port(8080)]), Ok("web".into()));
        assert_eq!(name("", &[]), Ok("web".into()));
        assert_eq!(name("app", &[]).unwrap_err().hint, "it has proxy, web");
    }

    #[test]
    fn variables_that_are_about_the_pod_are_its_own_in_another_pod() {
        let workload = workload();
        let variables = environment(&workload.template, find(&workload, "web", &[]).unwrap());
        let literal: Vec<_> =
            variables.iter().filter_map(|it| Some((it.name.as_str(), it.value.as_deref()?))).collect();
        assert_eq!(literal, [("PORT", "8080"), ("CPU", "1"), ("MEM", "64"), ("PROXY", "2"), ("TIER", "a$$(B)")]);
        let referring: Vec<_> =
            variables.iter().filter(|it| it.value_from.is_some()).map(|it| it.name.as_str()).collect();
        assert_eq!(referring, ["NODE", "KEY"]);
    }

    #[test]
    fn a_description_has_what_a_container_needs_elsewhere() {
        let workload = workload();
        let described = describe(&workload.template, find(&workload, "web", &[]).unwrap());
        assert_eq!((described.user, described.group), (Some(7), Some(2000)));
        assert_eq!((described.cpu_limit_millis, described.memory_limit_bytes), (250, 64 << 20));
        assert_eq!((described.working_dir.as_str(), described.args.len()), ("/srv", 2));
        let mounts: Vec<_> =
            described.mounts.iter().map(|it| (it.path.as_str(), it.volume.as_str(), it.is_read_only)).collect();
        let expected = [
            ("/etc/web", "configMap web", true),
            ("/tmp", "emptyDir", false),
            ("/data", "volumeClaimTemplate data", false),
        ];
        assert_eq!(mounts, expected);
    }
}
