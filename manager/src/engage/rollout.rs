//! The restart that gives a workload's pods their agents: the workload's own rollout, with its surge, its readiness and its pace.
//!
//! That the pods are to have agents is remembered in the workload's pod template: by the label that has the webhook asked about
//! them, and by an annotation that makes the template another one, as `kubectl rollout restart` does. Both belong to the field
//! manager of the traffic manager, and neither is in anybody's manifest: who applies that again changes nothing of them. The pods
//! themselves are changed at admission alone.
//!
//! Argo's Rollouts could also be restarted by their field `restartAt`, past all steps of their strategies. But their pods would be
//! made from the same template again, which does not ask for agents. So theirs is an update as well, and has its steps.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, DynamicObject, Patch};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tp_protocol::engage::call::Failure;

use super::sidecar::{self, ENABLED, Form, INJECT, NOT_INJECTED, ON_DEMAND};
use super::stand_in::micro_time;
use super::workload::{Kind, Workload, is_ready, problem, stays};
use super::{Cluster, failure, params, service};

/// Annotation of a pod template: when the manager last restarted its pods.
const RESTARTED_AT: &str = "tp/restarted-at";

/// Why a pod has no agent that does not say it itself.
const UNASKED: &str = "the API server could not ask the traffic manager";

/// Reason of the Events about pods that have none.
pub(crate) const REASON: &str = "AgentNotInjected";

/// Time between two looks at the pods.
const LOOK: Duration = Duration::from_secs(1);

/// How often a workload is read again that somebody else has changed meanwhile.
const CONFLICTS_MAX: u32 = 5;

/// How far a rollout is.
#[derive(Debug, PartialEq)]
enum Progress {
    /// All pods have agents, and are ready.
    Done,
    /// What is still to come.
    Waiting(String),
    /// A new pod has no agent.
    Failed(Failure),
}

/// Restarts the pods of a workload with agents in them, unless that is under way, and waits for it.
///
/// # Errors
/// When it cannot be begun, when a new pod has no agent, and when it is not over within `limit`; it goes on then.
pub(super) async fn restart(
    cluster: &Cluster,
    namespace: &str,
    workload: &Workload,
    limit: Duration,
) -> Result<(), Failure> {
    let until = Instant::now() + limit;
    check(cluster, namespace, workload).await?;
    let stamp = begin(cluster, namespace, workload).await?;
    loop {
        let pods = workload.pods(&cluster.client, namespace).await?;
        let waiting = match progress(workload, namespace, &pods, &stamp) {
            Progress::Done => return Ok(()),
            Progress::Failed(why) => return Err(why),
            Progress::Waiting(what) => what,
        };
        if Instant::now() >= until {
            let status = if workload.kind == Kind::Rollout {
                format!("kubectl argo rollouts -n {namespace} status {}", workload.name)
            } else {
                format!("kubectl -n {namespace} rollout status {workload}")
            };
            return Err(failure(
                format!("the rollout of {workload} is not over after {} s: {waiting}", limit.as_secs()),
                format!(
                    "it goes on by itself: `{status}` follows it, and the same command engages the workload later without a \
                     restart; --timeout waits for longer"
                ),
            ));
        }
        sleep(LOOK).await;
    }
}

/// Whether pods of this template would get agents: nobody is to restart them for nothing.
async fn check(cluster: &Cluster, namespace: &str, workload: &Workload) -> Result<(), Failure> {
    let services = service::list(&cluster.client, namespace).await?;
    let version = cluster.client.apiserver_version().await;
    let version = version.map_err(|error| failure(format!("cannot read the API server's version: {error}"), ""))?;
    let template = &workload.template;
    let pod =
        Pod { metadata: template.metadata.clone().unwrap_or_default(), spec: template.spec.clone(), ..Pod::default() };
    let wanted =
        sidecar::Wanted { services: &services, settings: &cluster.agent, ca_pem: "", form: Form::of_server(&version) };
    match sidecar::inject(&pod, &wanted) {
        Ok(_) => Ok(()),
        Err(why) => Err(failure(
            format!("the pods of {workload} can have no agent: {why}"),
            "`--mode stand-in` needs none there",
        )),
    }
}

/// Has the rollout begin; returns what its pods are stamped with.
async fn begin(cluster: &Cluster, namespace: &str, workload: &Workload) -> Result<String, Failure> {
    let api = Api::<DynamicObject>::namespaced_with(cluster.client.clone(), namespace, &workload.kind.resource());
    let failed = |what: &str, error: kube::Error| {
        failure(
            format!("cannot {what} {workload}: {error}"),
            "the manager's ClusterRole allows it where the chart's value engage.inject is on-demand",
        )
    };
    for _ in 0..CONFLICTS_MAX {
        let object = api.get(&workload.name).await.map_err(|error| failed("read", error))?;
        let spec = &object.data["spec"];
        if let Some(why) = obstacle(workload.kind, spec) {
            return Err(failure(
                format!("the pods of {workload} have no agent, and cannot be restarted with one: {why}"),
                "`--mode stand-in` restarts nothing",
            ));
        }
        let pods = workload.pods(&cluster.client, namespace).await?;
        if let Some(stamp) = under_way(spec, &pods) {
            return Ok(stamp);
        }
        let stamp = micro_time(Timestamp::now());
        let mut patch = patch(spec, &stamp);
        // Who comes second is to find the rollout of who came first.
        patch["metadata"]["resourceVersion"] = json!(object.resource_version());
        match api.patch(&workload.name, &params(), &Patch::Merge(patch)).await {
            Ok(_) => {
                tracing::info!(%workload, namespace, "pods are restarted with agents");
                return Ok(stamp);
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(failed("restart the pods of", error)),
        }
    }
    Err(failure(format!("{workload} is being changed all the time, and was not restarted"), "try again"))
}

/// Why pods of this kind of workload are never restarted.
pub(super) fn never(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::CronJob | Kind::Job => Some("its pods run to their end"),
        Kind::Pod => Some("nothing would make it again"),
        Kind::ReplicaSet => Some("a ReplicaSet does not replace them by itself"),
        Kind::DaemonSet | Kind::Deployment | Kind::Rollout | Kind::StatefulSet => None,
    }
}

/// Why a change of the template does not replace all pods of a workload.
fn obstacle(kind: Kind, spec: &Value) -> Option<&'static str> {
    if spec["replicas"] == 0 {
        return Some("it is scaled to 0");
    }
    let strategy = &spec["updateStrategy"];
    match kind {
        Kind::Deployment | Kind::Rollout if spec["paused"] == true => Some("its rollout is paused"),
        Kind::Rollout if spec["workloadRef"].is_object() => Some("its template is that of another workload"),
        Kind::Rollout if waits_for_somebody(&spec["strategy"]) => Some("its strategy waits for somebody to promote it"),
        Kind::DaemonSet | Kind::StatefulSet if strategy["type"] == "OnDelete" => Some("its updateStrategy is OnDelete"),
        Kind::StatefulSet if strategy["rollingUpdate"]["partition"].as_i64().unwrap_or(0) > 0 => {
            Some("its updateStrategy has a partition")
        }
        Kind::CronJob
        | Kind::DaemonSet
        | Kind::Deployment
        | Kind::Job
        | Kind::Pod
        | Kind::ReplicaSet
        | Kind::Rollout
        | Kind::StatefulSet => never(kind),
    }
}

/// Whether a Rollout of this strategy stops on its way until somebody has it go on: some pods would have agents, and the others
/// none.
fn waits_for_somebody(strategy: &Value) -> bool {
    let steps = strategy["canary"]["steps"].as_array().map_or(&[][..], Vec::as_slice);
    strategy["blueGreen"]["autoPromotionEnabled"] == false
        || steps.iter().any(|step| step["pause"].is_object() && step["pause"]["duration"].is_null())
}

/// The stamp of a rollout with agents that has begun. One whose pods have got none is over.
fn under_way(spec: &Value, pods: &[Pod]) -> Option<String> {
    let metadata = &spec["template"]["metadata"];
    let stamp = metadata["annotations"][RESTARTED_AT].as_str()?;
    let asks = [ENABLED, ON_DEMAND].map(Value::from).contains(&metadata["labels"][INJECT]);
    let mut of_it = pods.iter().filter(|pod| is_stamped(pod, stamp));
    (asks && of_it.all(sidecar::has_agent)).then(|| stamp.to_owned())
}

/// A merge patch that makes the template another one, which asks for agents.
fn patch(spec: &Value, stamp: &str) -> Value {
    let mut metadata = json!({"annotations": {RESTARTED_AT: stamp}});
    if spec["template"]["metadata"]["labels"][INJECT] != ENABLED {
        metadata["labels"] = json!({INJECT: ON_DEMAND});
    }
    json!({"spec": {"template": {"metadata": metadata}}})
}

fn is_stamped(pod: &Pod, stamp: &str) -> bool {
    pod.annotations().get(RESTARTED_AT).is_some_and(|found| found == stamp)
}

fn progress(workload: &Workload, namespace: &str, pods: &[Pod], stamp: &str) -> Progress {
    let (new, old): (Vec<&Pod>, Vec<&Pod>) =
        pods.iter().filter(|pod| stays(pod)).partition(|pod| is_stamped(pod, stamp));
    if let Some(pod) = new.iter().find(|pod| !sidecar::has_agent(pod)) {
        let why = pod.annotations().get(NOT_INJECTED).map_or(UNASKED, String::as_str);
        return Progress::Failed(failure(
            format!("pod {} of {workload} has started without an agent: {why}", pod.name_any()),
            format!(
                "`kubectl -n {namespace} get events --field-selector reason={REASON}` may say more; `--mode stand-in` needs no agent \
                 there"
            ),
        ));
    }
    let ready = new.iter().filter(|pod| is_ready(pod)).count();
    if old.is_empty() && ready == new.len() && ready > 0 {
        return Progress::Done;
    }
    let stuck = new.iter().find_map(|pod| Some(format!("; pod {} does not start: {}", pod.name_any(), problem(pod)?)));
    let (all, before) = (new.len(), old.len());
    Progress::Waiting(format!(
        "{ready} of {all} pods with an agent are ready, {before} without one are still there{}",
        stuck.unwrap_or_default()
    ))
}

#[cfg(test)]
mod tests;
