//! What a pod would have been made from that nothing has made from a template: its own specification, without what the API server,
//! its admission and tp have put into it.

use k8s_openapi::api::core::v1::{Pod, PodSpec, PodTemplateSpec, Toleration, Volume};
use kube::core::ObjectMeta;

use crate::engage::sidecar;

/// Begins the names of the volumes with the token for the API server (ServiceAccount admission).
const API_ACCESS: &str = "kube-api-access-";

/// Keys of the tolerations that every pod gets which has none of its own for them (DefaultTolerationSeconds admission).
const DEFAULT_TOLERATIONS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// How long pods tolerate these, in seconds.
const DEFAULT_TOLERATION_SECONDS: i64 = 300;

/// Returns the template of which a pod would be.
pub(super) fn template(pod: Pod) -> PodTemplateSpec {
    let ObjectMeta { labels, annotations, .. } = pod.metadata;
    let spec = pod.spec.map(|mut spec| {
        sidecar::take_out(&mut spec);
        clean(&mut spec);
        spec
    });
    PodTemplateSpec { metadata: Some(ObjectMeta { labels, annotations, ..ObjectMeta::default() }), spec }
}

fn clean(spec: &mut PodSpec) {
    spec.node_name = None;
    // Resolved from the class, which may be another for another pod.
    (spec.priority, spec.preemption_policy) = (None, None);
    spec.ephemeral_containers = None;
    if let Some(tolerations) = &mut spec.tolerations {
        tolerations.retain(|it| !is_default(it));
    }
    let is_added = |name: &str| name.starts_with(API_ACCESS);
    if let Some(volumes) = &mut spec.volumes {
        volumes.retain(|volume: &Volume| !(is_added(&volume.name) && volume.projected.is_some()));
    }
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        if let Some(mounts) = &mut container.volume_mounts {
            mounts.retain(|mount| !is_added(&mount.name));
        }
    }
}

fn is_default(toleration: &Toleration) -> bool {
    let key = toleration.key.as_deref().unwrap_or_default();
    DEFAULT_TOLERATIONS.contains(&key)
        && toleration.effect.as_deref() == Some("NoExecute")
        && toleration.toleration_seconds == Some(DEFAULT_TOLERATION_SECONDS)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_somebody_has_asked_for_stays_and_what_was_added_goes() {
        let asked_for = json!({
            "serviceAccountName": "shop",
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [
                {"key": "gpu", "operator": "Exists"},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5},
            ],
            "containers": [{"name": "web", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
            "volumes": [{"name": "data", "emptyDir": {}}],
        });
        let mut shown = asked_for.clone();
        shown["nodeName"] = json!("node-1");
        shown["priority"] = json!(0);
        shown["preemptionPolicy"] = json!("PreemptLowerPriority");
        let added = [
            (
                "/tolerations",
                json!({"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}),
            ),
            ("/volumes", json!({"name": "kube-api-access-x7c2d", "projected": {"sources": []}})),
            (
                "/containers/0/volumeMounts",
                json!({"name": "kube-api-access-x7c2d", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}),
            ),
        ];
        for (list, item) in added {
            shown.pointer_mut(list).unwrap().as_array_mut().unwrap().push(item);
        }
        let metadata = json!({"name": "web-0", "uid": "u", "labels": {"app": "web"}, "annotations": {"note": "a"}});
        let pod = json!({"metadata": metadata, "spec": shown, "status": {"phase": "Running"}});
        let template = template(serde_json::from_value(pod).unwrap());
        let expected = json!({"metadata": {"labels": {"app": "web"}, "annotations": {"note": "a"}}, "spec": asked_for});
        assert_eq!(template, serde_json::from_value(expected).unwrap());
    }
}
