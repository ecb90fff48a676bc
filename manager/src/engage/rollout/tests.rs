//! Workloads that are restarted, and their pods on the way.

use std::collections::BTreeMap;

use http::{Method, StatusCode};

use super::*;
use crate::fake_api::{FakeApi, status};

const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/shop/deployments/web";
const PODS: &str = "/api/v1/namespaces/shop/pods";
const SERVICES: &str = "/api/v1/namespaces/shop/services";
const STAMP: &str = "2026-11-22T06:00:00.000000Z";

fn template() -> Value {
    json!({
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "web", "ports": [{"name": "http", "containerPort": 8080}]}]},
    })
}

fn workload() -> Workload {
    Workload {
        kind: Kind::Deployment,
        name: "web".into(),
        selector: BTreeMap::from([("app".into(), "web".into())]),
        template: serde_json::from_value(template()).unwrap(),
    }
}

/// A pod of `web`, stamped or not, with an agent or not, ready or not.
fn pod(name: &str, stamp: Option<&str>, has_agent: bool, is_ready: bool) -> Value {
    let owner =
        json!({"kind": "ReplicaSet", "name": "web-5d4f", "uid": "u", "apiVersion": "apps/v1", "controller": true});
    let mut pod = json!({
        "metadata": {"name": name, "labels": {"app": "web", "pod-template-hash": "5d4f"}, "ownerReferences": [owner]},
        "spec": {"containers": [{"name": "web"}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if is_ready { "True" } else { "False" }}]},
    });
    if let Some(stamp) = stamp {
        pod["metadata"]["annotations"] = json!({RESTARTED_AT: stamp});
    }
    if has_agent {
        pod["spec"]["initContainers"] = json!([{"name": "tp-agent"}]);
    }
    pod
}

fn list(kind: &str, items: &[Value]) -> Value {
    json!({"kind": kind, "apiVersion": "v1", "metadata": {}, "items": items})
}

/// An API server with `web` as it is before, and a Service that gives its port by `target`.
fn api(target: &Value) -> (FakeApi, Cluster) {
    let api = FakeApi::default();
    let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": target}]});
    api.put(SERVICES, list("ServiceList", &[json!({"metadata": {"name": "web"}, "spec": spec})]));
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "shop"}, "spec": {"replicas": 2, "template": template()}});
    api.put(DEPLOYMENT, deployment);
    api.put(PODS, list("PodList", &[pod("web-old", None, false, true)]));
    api.tell_version();
    let cluster = api.cluster();
    (api, cluster)
}

fn seen(pods: &[Value]) -> Progress {
    let pods: Vec<Pod> = pods.iter().map(|pod| serde_json::from_value(pod.clone()).unwrap()).collect();
    progress(&workload(), "shop", &pods, STAMP)
}

#[tokio::test(start_paused = true)]
async fn a_workload_is_restarted_once_by_whoever_comes_first() {
    let (api, cluster) = api(&json!("http"));
    let limit = Duration::from_secs(3);
    let late = restart(&cluster, "shop", &workload(), limit).await.unwrap_err();
    assert!(late.message.starts_with("the rollout of deployment/web is not over after 3 s: 0 of 0 pods"), "{late:?}");
    let spec = api.object(DEPLOYMENT).unwrap()["spec"].clone();
    let metadata = &spec["template"]["metadata"];
    assert_eq!(metadata["labels"], json!({"app": "web", "tp/inject": "on-demand"}));
    let stamp = metadata["annotations"][RESTARTED_AT].as_str().unwrap();
    // The second one finds it under way.
    let new = pod("web-new", Some(stamp), true, true);
    api.put(PODS, list("PodList", &[new]));
    restart(&cluster, "shop", &workload(), limit).await.unwrap();
    assert_eq!(api.object(DEPLOYMENT).unwrap()["spec"], spec);
    assert_eq!(api.count(&format!("PATCH {DEPLOYMENT}")), 1);
}

#[tokio::test]
async fn nothing_is_restarted_for_nothing() {
    let (numeric, cluster) = api(&json!(8080));
    let refused = restart(&cluster, "shop", &workload(), Duration::ZERO).await.unwrap_err();
    assert!(refused.message.contains("by number") && refused.hint.contains("--mode stand-in"), "{refused:?}");
    assert_eq!(numeric.count("PATCH"), 0);
    let (api, cluster) = api(&json!("http"));
    api.script(Method::PATCH, DEPLOYMENT, StatusCode::FORBIDDEN, status(StatusCode::FORBIDDEN, "no right"));
    let refused = restart(&cluster, "shop", &workload(), Duration::ZERO).await.unwrap_err();
    assert!(refused.message.starts_with("cannot restart the pods of deployment/web: "), "{refused:?}");
    assert!(refused.hint.contains("engage.inject"), "{refused:?}");
}

#[test]
fn what_a_new_template_does_not_replace_is_not_restarted() {
    for (kind, spec, why) in [
        (Kind::Deployment, json!({"replicas": 2}), None),
        (Kind::Deployment, json!({"replicas": 0}), Some("it is scaled to 0")),
        (Kind::Deployment, json!({"paused": true}), Some("its rollout is paused")),
        (
            Kind::StatefulSet,
            json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}}),
            None,
        ),
        (
            Kind::StatefulSet,
            json!({"updateStrategy": {"rollingUpdate": {"partition": 1}}}),
            Some("its updateStrategy has a partition"),
        ),
        (Kind::DaemonSet, json!({"updateStrategy": {"type": "OnDelete"}}), Some("its updateStrategy is OnDelete")),
        (Kind::ReplicaSet, json!({}), Some("a ReplicaSet does not replace them by itself")),
        (Kind::Pod, json!({}), Some("nothing would make it again")),
        (Kind::CronJob, json!({}), Some("its pods run to their end")),
        (
            Kind::Rollout,
            json!({"strategy": {"canary": {"steps": [{"setWeight": 20}, {"pause": {"duration": "1m"}}]}}}),
            None,
        ),
        (Kind::Rollout, json!({"strategy": {"blueGreen": {"activeService": "web"}}}), None),
        (
            Kind::Rollout,
            json!({"workloadRef": {"kind": "Deployment"}}),
            Some("its template is that of another workload"),
        ),
        (Kind::Rollout, json!({"paused": true}), Some("its rollout is paused")),
        (
            Kind::Rollout,
            json!({"strategy": {"canary": {"steps": [{"pause": {}}]}}}),
            Some("its strategy waits for somebody to promote it"),
        ),
        (
            Kind::Rollout,
            json!({"strategy": {"blueGreen": {"autoPromotionEnabled": false}}}),
            Some("its strategy waits for somebody to promote it"),
        ),
    ] {
        assert_eq!(obstacle(kind, &spec), why, "{kind} {spec}");
    }
}

#[test]
fn the_patch_leaves_the_owners_label_alone() {
    let metadata = |labels: &Value| {
        patch(&json!({"template": {"metadata": {"labels": labels}}}), STAMP)["spec"]["template"]["metadata"].clone()
    };
    assert_eq!(metadata(&json!({"tp/inject": "enabled"})), json!({"annotations": {RESTARTED_AT: STAMP}}));
    assert_eq!(metadata(&json!({"app": "web"}))["labels"], json!({"tp/inject": "on-demand"}));
}

#[test]
fn a_rollout_whose_pods_got_no_agent_is_none_to_wait_for() {
    let mut spec = json!({"template": template()});
    let pods = |has_agent: bool| vec![serde_json::from_value(pod("web-new", Some(STAMP), has_agent, true)).unwrap()];
    assert_eq!(under_way(&spec, &pods(true)), None, "no rollout of ours");
    spec["template"]["metadata"]["annotations"] = json!({RESTARTED_AT: STAMP});
    assert_eq!(under_way(&spec, &pods(true)), None, "its pods do not ask for agents");
    spec["template"]["metadata"]["labels"] = json!({"tp/inject": "on-demand"});
    assert_eq!(under_way(&spec, &pods(true)).as_deref(), Some(STAMP));
    assert_eq!(under_way(&spec, &[]).as_deref(), Some(STAMP));
    assert_eq!(under_way(&spec, &pods(false)), None);
}

#[test]
fn a_rollout_is_over_when_all_pods_are_new_and_ready() {
    let old = pod("web-old", None, false, true);
    let (ready, starting) = (pod("web-1", Some(STAMP), true, true), pod("web-2", Some(STAMP), true, false));
    let mut going = old.clone();
    going["metadata"]["deletionTimestamp"] = json!("2026-11-22T06:00:00Z");
    let mut evicted = old.clone();
    evicted["status"]["phase"] = json!("Failed");
    assert_eq!(seen(&[ready.clone(), going, evicted]), Progress::Done);
    for (pods, counts) in [
        (vec![], "0 of 0 pods with an agent are ready, 0 without"),
        (vec![old.clone(), ready.clone()], "1 of 1 pods with an agent are ready, 1 without"),
        (vec![ready.clone(), starting.clone()], "1 of 2 pods with an agent are ready, 0 without"),
    ] {
        let progress = seen(&pods);
        assert!(matches!(&progress, Progress::Waiting(what) if what.starts_with(counts)), "{progress:?}");
    }
    let mut stuck = starting;
    stuck["status"]["initContainerStatuses"] = json!([{
        "name": "tp-agent", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}},
    }]);
    let progress = seen(&[stuck]);
    let what = "pod web-2 does not start: ErrImagePull: not found";
    assert!(matches!(&progress, Progress::Waiting(text) if text.ends_with(what)), "{progress:?}");
}

#[test]
fn a_new_pod_without_an_agent_says_why() {
    let mut refused = pod("web-1", Some(STAMP), false, true);
    let Progress::Failed(why) = seen(&[refused.clone()]) else { panic!("it has no agent") };
    assert!(why.message.ends_with(UNASKED), "{why:?}");
    refused["metadata"]["annotations"][NOT_INJECTED] = json!("no reason");
    let Progress::Failed(why) = seen(&[refused]) else { panic!("it has no agent") };
    assert_eq!(why.message, "pod web-1 of deployment/web has started without an agent: no reason");
}
