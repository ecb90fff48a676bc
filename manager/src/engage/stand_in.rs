//! The objects of a stand-in: a ReplicaSet of one pod with tp-agent alone, and the Lease of each engagement.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Container;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use prost::Message;
use serde_json::{Value, json};
use tp_protocol::engage::call::{Held, Mode};
use tp_protocol::engage::wire::{Kind, Transport};

use super::agent::{self, Agent, CA, HEALTH_PORT};
use super::service::{Port, STAND_IN};
use super::workload::{ROLLOUT_HASH, Workload};
use crate::config::AgentPod;

/// Label of all that tp makes.
pub(crate) const PART_OF: (&str, &str) = ("app.kubernetes.io/part-of", "tp");

/// Label of an engagement's Lease; the value is the stand-in's name.
pub(crate) const ENGAGEMENT: &str = "tp/engagement";

/// Label of Leases and ReplicaSets; the value is the namespace of the manager that looks after them.
pub(crate) const MANAGER: &str = "tp/manager";

/// Keeps a Lease until the Service has its own selector back.
pub(crate) const FINALIZER: &str = "tp/widen";

/// Annotations of a Lease: the engagement as a message in base64, its session, and the SHA-256 of the session's secret in
/// hexadecimal digits.
const HELD: &str = "tp/held";
const SESSION: &str = "tp/session";
const SECRET_SHA256: &str = "tp/session-secret-sha256";

/// Labels by which controllers tell their pods apart.
const CONTROLLERS_OWN: [&str; 8] = [
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    ROLLOUT_HASH,
    "controller-uid",
    "job-name",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-name",
];

/// A condition that a pod waits for and that nobody ever sets.
const NEVER_READY: &str = "tp/never-ready";

/// Domains of the annotations by which meshes are told of pods.
const MESHES: [&str; 2] = ["istio.io", "linkerd.io"];

/// Longest label value, and name of a pod without its suffix (RFC 1123 label; 63 characters).
const NAME_BYTES_MAX: usize = 52;

/// Which stand-in: for the pods of a workload behind a Service, for the environment of one of their containers, or for their place in the network. Or none: the
/// agents in the workload's own pods, for all of its Services.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct StandIn {
    pub(crate) namespace: String,
    /// Name of its ReplicaSet, and value of its label.
    pub(crate) name: String,
    /// Empty when there is none to be narrowed: it takes no traffic, or the workload's own pods have the agents.
    pub(crate) service: String,
    /// `KIND/NAME`.
    pub(crate) workload: String,
    /// The workload's own pods have the agents: nothing is made, and nothing narrowed.
    pub(crate) is_sidecar: bool,
    /// It has the workload's place in the network, and nothing else of it: clients dial from there.
    pub(crate) is_via: bool,
}

/// What a Lease says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    pub(crate) held: Held,
    pub(crate) session: String,
    pub(crate) secret_sha256: String,
}

impl StandIn {
    /// The stand-in that an engagement needs of the manager in namespace `manager`. Those of one workload behind one Service
    /// share theirs; without a Service, those of one container.
    pub(crate) fn of(manager: &str, held: &Held) -> Self {
        let Held { namespace, workload, container, .. } = held;
        let is_sidecar = held.mode() == Mode::Sidecar;
        let is_via = held.what() == Kind::Via && !is_sidecar;
        let service = if is_sidecar { "" } else { held.service.as_str() };
        let whose = match service {
            "" if is_sidecar => format!("{manager} {workload}   "),
            "" if is_via => format!("{manager} {workload}   via"),
            "" => format!("{manager} {workload}  {container}"),
            service => format!("{manager} {workload} {service}"),
        };
        let digest = ring::digest::digest(&ring::digest::SHA256, whose.as_bytes());
        let name = format!("tp-{}-{}", short(workload), hex(&digest.as_ref()[..3]));
        let (namespace, service, workload) = (namespace.clone(), service.to_owned(), workload.clone());
        Self { namespace, name, service, workload, is_sidecar, is_via }
    }

    /// Whether it takes the place of pods in a Service.
    pub(crate) fn takes_traffic(&self) -> bool {
        !self.service.is_empty()
    }

    /// Whether a pod can be one of its own, by its name.
    pub(crate) fn can_be_of(&self, (namespace, pod): &(String, String)) -> bool {
        let suffix = pod.strip_prefix(&self.name).and_then(|rest| rest.strip_prefix('-'));
        *namespace == self.namespace && suffix.is_some_and(|suffix| !suffix.contains('-'))
    }
}

/// As much of a workload's name, or of `KIND/NAME`, as fits into a name with a suffix.
fn short(workload: &str) -> &str {
    let name = workload.rsplit('/').next().unwrap_or(workload);
    name[..name.len().min(NAME_BYTES_MAX - 14)].trim_end_matches(['.', '-'])
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A name for an engagement of this workload.
pub(crate) fn fresh_id(workload: &str, random: &[u8]) -> String {
    format!("tp-{}-{}", short(workload), hex(random))
}

/// The Lease of an engagement, that is good for `grace_seconds` from `now` on.
pub(crate) fn lease(manager: &str, stand_in: &StandIn, record: &Record, grace_seconds: u64, now: Timestamp) -> Lease {
    let now = micro_time(now);
    let object = json!({
        "metadata": {
            "name": record.held.id,
            "namespace": stand_in.namespace,
            "labels": {PART_OF.0: PART_OF.1, MANAGER: manager, ENGAGEMENT: stand_in.name},
            "annotations": annotations(record),
            "finalizers": [FINALIZER],
        },
        "spec": {
            "holderIdentity": record.held.holder,
            "leaseDurationSeconds": grace_seconds,
            "acquireTime": now,
            "renewTime": now,
        },
    });
    serde_json::from_value(object).expect("a Lease has these fields")
}

/// A Lease's annotations, which change when another session takes the engagement up.
pub(crate) fn annotations(record: &Record) -> Value {
    let held = Held { report: None, problem: String::new(), is_mine: false, ..record.held.clone() };
    json!({
        HELD: BASE64_STANDARD.encode(held.encode_to_vec()),
        SESSION: record.session,
        SECRET_SHA256: record.secret_sha256,
    })
}

/// A time as Kubernetes writes those of Leases: microseconds, UTC.
pub(crate) fn micro_time(time: Timestamp) -> String {
    format!("{time:.6}")
}

/// Reads what a Lease says; `None` when it is not one of an engagement.
pub(crate) fn record(lease: &Lease) -> Option<Record> {
    let annotations = lease.metadata.annotations.as_ref()?;
    let held = BASE64_STANDARD.decode(annotations.get(HELD)?).ok()?;
    Some(Record {
        held: Held::decode(&*held).ok()?,
        session: annotations.get(SESSION)?.clone(),
        secret_sha256: annotations.get(SECRET_SHA256)?.clone(),
    })
}

/// The owner that a stand-in has in each of its engagements.
fn owner(name: &str, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: "coordination.k8s.io/v1".into(),
        kind: "Lease".into(),
        name: name.into(),
        uid: uid.into(),
        ..OwnerReference::default()
    }
}

/// What a stand-in stands in for.
pub(crate) struct App<'a> {
    pub(crate) workload: &'a Workload,
    /// The container whose environment it has.
    pub(crate) container: &'a Container,
    /// The ports that it takes.
    pub(crate) ports: &'a [Port],
    /// The Service's own selector; nothing where it takes no traffic.
    pub(crate) selector: &'a BTreeMap<String, String>,
}

/// The ReplicaSet of a stand-in with the environment of one of the workload's containers. Where it takes traffic, or dials, its
/// pod carries the labels of the workload's pods, so that the Service and network policies take it for one, and no controller
/// adopts it, as the ReplicaSet owns it. One that only dials is never ready, so that no Service sends it anything.
pub(crate) fn replica_set(
    manager: &str,
    stand_in: &StandIn,
    app: &App<'_>,
    agent: &AgentPod,
    ca_pem: &str,
    lease: (&str, &str),
) -> ReplicaSet {
    let mut labels = if stand_in.takes_traffic() || stand_in.is_via { app.workload.labels() } else { BTreeMap::new() };
    for key in CONTROLLERS_OWN {
        labels.remove(key);
    }
    // Such a label comes back where the Service asks for it, as those do that lead to one version of a Rollout.
    labels.extend(app.selector.clone());
    labels.insert(STAND_IN.into(), stand_in.name.clone());
    let mut annotations = if stand_in.is_via { mesh(app.workload) } else { BTreeMap::new() };
    annotations.insert(CA.into(), ca_pem.to_owned());
    annotations.insert("tp/workload".into(), stand_in.workload.clone());
    let gates: &[Value] = if stand_in.is_via { &[json!({"conditionType": NEVER_READY})] } else { &[] };
    let template = app.workload.template.spec.as_ref();
    let health_port =
        (HEALTH_PORT..).find(|port| app.ports.iter().all(|it| it.container_port != *port)).unwrap_or(HEALTH_PORT);
    let object = json!({
        "metadata": {
            "name": stand_in.name,
            "namespace": stand_in.namespace,
            "labels": {PART_OF.0: PART_OF.1, MANAGER: manager, STAND_IN: stand_in.name},
            "annotations": {"tp/workload": stand_in.workload, "tp/service": stand_in.service},
            "ownerReferences": [owner(lease.0, lease.1)],
        },
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {STAND_IN: stand_in.name}},
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": annotations,
                },
                "spec": {
                    "readinessGates": gates,
                    "serviceAccountName": template.and_then(|spec| spec.service_account_name.clone()),
                    "automountServiceAccountToken": false,
                    "enableServiceLinks": template.and_then(|spec| spec.enable_service_links),
                    "tolerations": template.and_then(|spec| spec.tolerations.clone()),
                    "nodeSelector": template.and_then(|spec| spec.node_selector.clone()),
                    "priorityClassName": template.and_then(|spec| spec.priority_class_name.clone()),
                    "imagePullSecrets": pull_secrets(agent),
                    "terminationGracePeriodSeconds": 30,
                    "securityContext": {
                        "runAsNonRoot": true,
                        "runAsUser": 65_532,
                        "runAsGroup": 65_532,
                        "seccompProfile": {"type": "RuntimeDefault"},
                        // The app's ports may be below 1024. This sysctl is one of the safe ones, also under `restricted`.
                        "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}],
                    },
                    "containers": [container(app, agent, health_port)],
                    "volumes": agent::volumes(),
                },
            },
        },
    });
    serde_json::from_value(object).expect("a ReplicaSet has these fields")
}

/// What the workload's pods say to a mesh, which tells workloads apart by their service accounts and is told by annotations
/// whether and how to take part.
fn mesh(workload: &Workload) -> BTreeMap<String, String> {
    let metadata = workload.template.metadata.as_ref();
    let all = metadata.and_then(|metadata| metadata.annotations.clone()).unwrap_or_default();
    let is_of_mesh = |key: &str| {
        let prefix = key.split_once('/').map_or("", |(prefix, _)| prefix);
        MESHES.iter().any(|mesh| prefix.strip_suffix(mesh).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
    };
    all.into_iter().filter(|(key, _)| is_of_mesh(key)).collect()
}

fn pull_secrets(agent: &AgentPod) -> Vec<Value> {
    agent.pull_secrets.iter().map(|name| json!({"name": name})).collect()
}

/// tp-agent, with the ports that the Service finds by name, and the app's environment.
fn container(app: &App<'_>, agent: &AgentPod, health_port: u16) -> Value {
    // A Service that names its target port finds it by that name.
    let declared: BTreeSet<_> = app
        .ports
        .iter()
        .map(|port| {
            let protocol = if port.transport == Transport::Udp { "UDP" } else { "TCP" };
            (port.container_port, protocol, port.target_name.as_deref())
        })
        .collect();
    let declared = declared
        .into_iter()
        .map(|(number, protocol, name)| json!({"containerPort": number, "protocol": protocol, "name": name}));
    let container = Agent {
        settings: agent,
        template: &app.workload.template,
        app: app.container,
        health_port,
        ports: declared.collect(),
    };
    agent::container(&container, &[])
}

/// A merge patch that makes a Lease one more owner of the stand-in.
pub(crate) fn owning(owners: &[OwnerReference], lease: (&str, &str)) -> Option<Value> {
    if owners.iter().any(|owner| owner.uid == lease.1) {
        return None;
    }
    let all: Vec<OwnerReference> = owners.iter().cloned().chain([owner(lease.0, lease.1)]).collect();
    Some(json!({"metadata": {"ownerReferences": all}}))
}

#[cfg(test)]
mod tests {
    use tp_protocol::engage::call::AppProtocol;
    use tp_protocol::engage::wire;

    use super::*;
    use crate::engage::workload::Kind;

    fn workload(name: &str) -> Workload {
        let template = json!({
            "metadata": {"labels": {"app": "web", "pod-template-hash": "5d"}},
            "spec": {"serviceAccountName": "shop", "containers": [{"name": "web", "env": [{"name": "MODE", "value": "x"}]}]},
        });
        Workload {
            kind: Kind::Deployment,
            name: name.into(),
            selector: BTreeMap::new(),
            template: serde_json::from_value(template).unwrap(),
        }
    }

    /// An engagement of `workload` in `shop`, behind a Service or of a container.
    fn held(workload: &str, service: &str, container: &str) -> Held {
        Held {
            namespace: "shop".into(),
            workload: workload.into(),
            service: service.into(),
            container: container.into(),
            ..Held::default()
        }
    }

    fn stand_in(workload: &str, service: &str, container: &str) -> StandIn {
        StandIn::of("tp-system", &held(workload, service, container))
    }

    fn record_of(id: &str) -> Record {
        let held = Held { id: id.into(), holder: "ann@laptop".into(), ..Held::default() };
        Record { held, session: "s-1".into(), secret_sha256: "ab".into() }
    }

    #[test]
    fn a_lease_says_what_the_engagement_is() {
        let stand_in = stand_in("deployment/web", "web", "");
        let record = record_of("tp-web-1");
        let lease = lease("tp-system", &stand_in, &record, 120, "2026-11-21T10:00:00Z".parse().unwrap());
        assert_eq!(super::record(&lease), Some(record));
        let spec = lease.spec.unwrap();
        assert_eq!((spec.holder_identity.as_deref(), spec.lease_duration_seconds), (Some("ann@laptop"), Some(120)));
        assert_eq!(super::record(&Lease::default()), None);
    }

    #[test]
    fn names_are_short_enough_for_labels_and_pods() {
        for name in ["w", &"w".repeat(63), &"w".repeat(253)] {
            let stand_in = stand_in(&workload(name).to_string(), "web", "");
            assert!(stand_in.name.len() <= NAME_BYTES_MAX, "{}", stand_in.name);
            assert!(fresh_id(name, &[1, 2, 3, 4, 5]).len() <= NAME_BYTES_MAX);
        }
    }

    #[test]
    fn engagements_behind_one_service_share_a_stand_in_and_others_do_not() {
        let of = |service, container| stand_in("deployment/web", service, container).name;
        assert_eq!(of("a", "web"), of("a", "proxy"));
        assert_ne!(of("a", "web"), of("b", "web"));
        assert_ne!(of("", "web"), of("", "proxy"));
        assert_eq!(of("", "web"), of("", "web"));
    }

    #[test]
    fn engagements_in_a_workloads_own_pods_share_them_and_have_no_service_narrowed() {
        let of = |service, container| {
            let held = Held { mode: Mode::Sidecar.into(), ..held("deployment/web", service, container) };
            StandIn::of("tp-system", &held)
        };
        assert_eq!(of("a", "web"), of("b", "proxy"));
        assert!(of("a", "web").is_sidecar && !of("a", "web").takes_traffic());
        assert_ne!(of("a", "web").name, stand_in("deployment/web", "", "").name);
    }

    #[test]
    fn a_stand_in_has_the_workloads_labels_and_nothing_that_a_controller_looks_for() {
        let port = Port {
            service_port: 80,
            name: "http".into(),
            container_port: 7490,
            target_name: Some("http".into()),
            transport: Transport::Tcp,
            protocol: AppProtocol::Http,
        };
        let (workload, agent) = (workload("web"), AgentPod::default());
        let made = |stand_in: &StandIn, ports: &[Port]| {
            let selector = match stand_in.takes_traffic() {
                true => {
                    BTreeMap::from([("app".to_owned(), "web".to_owned()), (ROLLOUT_HASH.to_owned(), "6e".to_owned())])
                }
                false => BTreeMap::new(),
            };
            let app = App { workload: &workload, container: &workload.containers()[0], ports, selector: &selector };
            replica_set("tp-system", stand_in, &app, &agent, "PEM", ("tp-web-1", "u-1"))
        };
        let alone = made(&stand_in("deployment/web", "", "web"), &[]).spec.template.unwrap();
        let labels = alone.metadata.unwrap().labels.unwrap();
        assert_eq!(labels.keys().collect::<Vec<_>>(), [STAND_IN], "no Service and no controller finds it");
        let made = made(&stand_in("deployment/web", "web", ""), &[port]);
        let template = made.spec.template.unwrap();
        let labels = template.metadata.unwrap().labels.unwrap();
        assert_eq!((labels["app"].as_str(), labels.get("pod-template-hash")), ("web", None));
        assert_eq!(labels[ROLLOUT_HASH], "6e", "the Service asks for it");
        let spec = template.spec.unwrap();
        assert_eq!(spec.service_account_name.as_deref(), Some("shop"));
        let container = &spec.containers[0];
        assert_eq!(container.ports.as_ref().unwrap()[0].name.as_deref(), Some("http"));
        let health = container.env.as_ref().unwrap().iter().find(|it| it.name == "TP_AGENT_HEALTH_PORT").unwrap();
        assert_eq!(health.value.as_deref(), Some("7491"), "the app has 7490");
        assert!(container.env.as_ref().unwrap().iter().any(|it| it.name == "MODE"), "the app's environment");
    }

    #[test]
    fn a_stand_in_that_dials_is_its_own_and_has_what_policies_and_meshes_go_by() {
        let via =
            |mode: Mode| Held { what: wire::Kind::Via.into(), mode: mode.into(), ..held("deployment/web", "", "") };
        let dialling = StandIn::of("tp-system", &via(Mode::StandIn));
        assert!(dialling.is_via && !dialling.takes_traffic());
        assert_ne!(dialling.name, stand_in("deployment/web", "", "").name);
        // Agents in the workload's own pods have one task that gives them orders.
        let sidecar = Held { mode: Mode::Sidecar.into(), ..held("deployment/web", "web", "") };
        assert_eq!(StandIn::of("tp-system", &via(Mode::Sidecar)), StandIn::of("tp-system", &sidecar));

        let mut workload = workload("web");
        let metadata = workload.template.metadata.get_or_insert_default();
        metadata.annotations = Some(
            [("linkerd.io/inject", "enabled"), ("sidecar.istio.io/logLevel", "debug"), ("notistio.io/x", "y")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
        );
        let none = Container::default();
        let app = App { workload: &workload, container: &none, ports: &[], selector: &BTreeMap::new() };
        let made = replica_set("tp-system", &dialling, &app, &AgentPod::default(), "PEM", ("tp-web-1", "u-1"));
        let template = made.spec.template.unwrap();
        let metadata = template.metadata.unwrap();
        let (labels, annotations) = (metadata.labels.unwrap(), metadata.annotations.unwrap());
        assert_eq!(labels.keys().collect::<Vec<_>>(), ["app", STAND_IN]);
        let kept: Vec<_> = annotations.keys().filter(|key| !key.starts_with("tp/")).collect();
        assert_eq!(kept, ["linkerd.io/inject", "sidecar.istio.io/logLevel"]);
        let spec = template.spec.unwrap();
        assert_eq!(spec.readiness_gates.unwrap()[0].condition_type, NEVER_READY);
        let mut env = spec.containers[0].env.iter().flatten();
        assert!(env.all(|it| it.name.starts_with("TP_AGENT_")), "nothing of the app's");
    }

    #[test]
    fn a_stand_in_is_owned_by_each_engagement_once() {
        let owners = [owner("tp-web-1", "u-1")];
        assert_eq!(owning(&owners, ("tp-web-1", "u-1")), None);
        let patch = owning(&owners, ("tp-web-2", "u-2")).unwrap();
        assert_eq!(patch["metadata"]["ownerReferences"].as_array().unwrap().len(), 2);
    }
}
