//! Workloads by name, of an API server's double.

use serde_json::{Value, json};

use super::*;
use crate::fake_api::FakeApi;

const APPS: &str = "/apis/apps/v1/namespaces/shop";

fn names(names: &[(Kind, &str)]) -> Vec<WorkloadName> {
    names.iter().map(|(kind, name)| WorkloadName { kind: *kind, name: (*name).to_owned() }).collect()
}

fn list_of(items: &[Value]) -> Value {
    json!({"metadata": {}, "items": items})
}

/// An API server with nothing in `shop` that could be engaged.
fn empty() -> FakeApi {
    let api = FakeApi::default();
    api.put_no_workloads("shop");
    api
}

fn deployment(name: &str) -> Value {
    let template = json!({"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "app"}]}});
    json!({"metadata": {"name": name}, "spec": {"selector": {"matchLabels": {"app": name}}, "template": template}})
}

#[test]
fn a_name_is_enough_where_only_one_workload_has_it() {
    let all = names(&[(Kind::Deployment, "web"), (Kind::StatefulSet, "db"), (Kind::Deployment, "db")]);
    assert_eq!(only(all.clone(), "shop", "web").unwrap().to_string(), "deployment/web");
    let failure = only(all, "shop", "db").unwrap_err();
    assert_eq!(failure.hint, "say which is meant: statefulset/db or deployment/db");
}

#[test]
fn a_name_that_does_not_exist_is_answered_with_the_nearest() {
    let all = names(&[(Kind::Deployment, "checkout"), (Kind::Deployment, "web-frontend"), (Kind::Deployment, "api")]);
    let failure = only(all.clone(), "shop", "chekout").unwrap_err();
    assert_eq!(failure.message, "there is no workload chekout in namespace shop");
    assert!(failure.hint.starts_with("the nearest are deployment/checkout, "), "{}", failure.hint);
    let failure = missing(&all, "shop", "statefulset/checkout");
    assert!(failure.hint.starts_with("the nearest are deployment/checkout, "), "{}", failure.hint);
    assert!(only(Vec::new(), "shop", "x").unwrap_err().hint.contains("no workload that can be engaged"));
}

#[tokio::test]
async fn a_workload_of_a_kind_and_name_is_read_with_one_request() {
    let api = FakeApi::default();
    api.put(&format!("{APPS}/deployments/web"), deployment("web"));
    let (client, is_known) =
        (api.client(), async |name: &str| known(&api.client(), "shop", name).await.unwrap().is_some());
    let web = find(&client, "shop", "deploy/web").await.unwrap();
    assert_eq!((web.to_string().as_str(), web.containers().len()), ("deployment/web", 1));
    assert_eq!(web.selector.get("app").map(String::as_str), Some("web"));
    assert!(is_known("deployment/web").await && !is_known("deployment/api").await && !is_known("web").await);
    assert_eq!((api.count("GET"), api.count(&format!("GET {APPS}/deployments/"))), (3, 3), "nothing was listed");
}

#[tokio::test]
async fn a_workload_that_is_not_there_is_looked_for_among_all() {
    let api = empty();
    api.put(&format!("{APPS}/deployments"), list_of(&[deployment("web"), deployment("api")]));
    api.put(&format!("{APPS}/deployments/web"), deployment("web"));
    let missing = find(&api.client(), "shop", "deployment/wep").await.unwrap_err();
    assert!(missing.hint.starts_with("the nearest are deployment/web, "), "{missing:?}");
    let before = api.count("GET");
    assert_eq!(find(&api.client(), "shop", "web").await.unwrap().to_string(), "deployment/web");
    assert_eq!(api.count("GET") - before, Kind::ALL.len() + 1);
}

#[tokio::test]
async fn what_a_controller_or_tp_has_made_is_no_workload() {
    let api = empty();
    let set = |name: &str, metadata: Value| {
        let mut set = deployment(name);
        set["metadata"] = metadata;
        set["metadata"]["name"] = json!(name);
        set
    };
    let owner = json!([{"kind": "Deployment", "name": "web", "uid": "u", "apiVersion": "apps/v1", "controller": true}]);
    let sets = [
        set("web-5d4f", json!({"ownerReferences": owner})),
        set("tp-web-0ab3ff", json!({"labels": {STAND_IN: "tp-web-0ab3ff"}})),
        set("alone", json!({})),
    ];
    for set in &sets {
        api.put(&format!("{APPS}/replicasets/{}", set["metadata"]["name"].as_str().unwrap()), set.clone());
    }
    api.put(&format!("{APPS}/replicasets"), list_of(&sets));
    let all = list(&api.client(), "shop").await.unwrap();
    assert_eq!(all.iter().map(WorkloadName::to_string).collect::<Vec<_>>(), ["replicaset/alone"]);
    let refused = async |name: &str| find(&api.client(), "shop", name).await.unwrap_err();
    assert_eq!(refused("rs/tp-web-0ab3ff").await.message, "there is no workload rs/tp-web-0ab3ff in namespace shop");
    let part = refused("rs/web-5d4f").await;
    assert!(
        part.message.starts_with("replicaset/web-5d4f is a part of Deployment web, which is no workload"),
        "{part:?}"
    );
    api.put(&format!("{APPS}/deployments"), list_of(&[deployment("web")]));
    assert_eq!(refused("rs/web-5d4f").await.hint, "engage deployment/web: all of its pods are meant then");
}

#[tokio::test]
async fn a_pod_of_a_workload_is_engaged_with_the_others_and_one_that_nothing_has_made_by_itself() {
    let api = empty();
    api.put(&format!("{APPS}/deployments"), list_of(&[deployment("web")]));
    let owner =
        json!([{"kind": "ReplicaSet", "name": "web-5d4f", "uid": "u", "apiVersion": "apps/v1", "controller": true}]);
    let labels = json!({"app": "web", "pod-template-hash": "5d4f"});
    let spec = json!({"nodeName": "node-1", "containers": [{"name": "app"}]});
    for (name, metadata) in [
        ("web-5d4f-x", json!({"name": "web-5d4f-x", "labels": labels, "ownerReferences": owner})),
        ("alone", json!({"name": "alone", "labels": {"app": "alone"}})),
    ] {
        let pod = json!({"metadata": metadata, "spec": spec, "status": {"phase": "Running"}});
        api.put(&format!("/api/v1/namespaces/shop/pods/{name}"), pod);
    }
    let part = find(&api.client(), "shop", "pod/web-5d4f-x").await.unwrap_err();
    assert_eq!(part.message, "pod/web-5d4f-x is a part of deployment/web");
    let alone = find(&api.client(), "shop", "pod/alone").await.unwrap();
    assert_eq!((alone.labels()["app"].as_str(), alone.containers().len()), ("alone", 1));
}

const ROLLOUTS: &str = "/apis/argoproj.io/v1alpha1/namespaces/shop/rollouts";

#[tokio::test]
async fn rollouts_are_found_once_the_cluster_has_the_kind() {
    let api = empty();
    api.remove(ROLLOUTS);
    let names = async || list(&api.client(), "shop").await.unwrap().len();
    assert_eq!(names().await, 0);
    assert!(find(&api.client(), "shop", "rollout/web").await.unwrap_err().message.starts_with("there is no workload"));
    api.put(ROLLOUTS, list_of(&[deployment("web")]));
    api.put(&format!("{ROLLOUTS}/web"), deployment("web"));
    assert_eq!(names().await, 1);
    assert_eq!(find(&api.client(), "shop", "web").await.unwrap().to_string(), "rollout/web");
}

#[tokio::test]
async fn a_rollout_may_have_its_template_from_another_workload() {
    let api = empty();
    let by_ref = |reference: Value| json!({"metadata": {"name": "web"}, "spec": {"workloadRef": reference}});
    let find = async |reference: Value| {
        api.put(&format!("{ROLLOUTS}/web"), by_ref(reference));
        find(&api.client(), "shop", "rollout/web").await
    };
    let other = || json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "other"});
    let gone = find(other()).await.unwrap_err();
    assert_eq!(gone.message, "rollout/web has the pod template of deployment/other, which is not there");
    api.put(&format!("{APPS}/deployments/other"), deployment("other"));
    let found = find(other()).await.unwrap();
    assert_eq!((found.to_string().as_str(), found.labels()["app"].as_str()), ("rollout/web", "other"));
    assert_eq!(found.selector["app"], "other");
    let odd = find(json!({"apiVersion": "v1", "kind": "PodTemplate", "name": "other"})).await.unwrap_err();
    assert_eq!(odd.message, "rollout/web has the pod template of PodTemplate other, which is not read");
}

#[tokio::test]
async fn the_template_of_a_cron_job_is_that_of_its_jobs() {
    const BATCH: &str = "/apis/batch/v1/namespaces/shop";
    let api = empty();
    let job = deployment("report")["spec"].take();
    let cron = json!({"metadata": {"name": "report"}, "spec": {"schedule": "0 3 * * *", "jobTemplate": {"spec": job}}});
    let owner =
        json!([{"kind": "CronJob", "name": "report", "uid": "u", "apiVersion": "batch/v1", "controller": true}]);
    let run = json!({"metadata": {"name": "report-29395000", "ownerReferences": owner}, "spec": job});
    api.put(&format!("{BATCH}/cronjobs"), list_of(std::slice::from_ref(&cron)));
    api.put(&format!("{BATCH}/cronjobs/report"), cron);
    api.put(&format!("{BATCH}/jobs"), list_of(std::slice::from_ref(&run)));
    api.put(&format!("{BATCH}/jobs/report-29395000"), run);
    let found = find(&api.client(), "shop", "report").await.unwrap();
    assert_eq!((found.to_string().as_str(), found.labels()["app"].as_str()), ("cronjob/report", "report"));
    let part = find(&api.client(), "shop", "job/report-29395000").await.unwrap_err();
    assert_eq!(part.message, "job/report-29395000 is a part of cronjob/report");
}

#[tokio::test]
async fn a_set_without_a_template_is_not_engaged() {
    let api = empty();
    api.put(&format!("{APPS}/replicasets/web"), json!({"metadata": {"name": "web"}, "spec": {"selector": {}}}));
    let failure = find(&api.client(), "shop", "rs/web").await.unwrap_err();
    assert_eq!(failure.message, "replicaset/web has no pod template");
}
