//! Ends the engagements of a cluster: the manager does when it is there, and without it they are taken apart here.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt as _};
use serde_json::json;

/// Label of both; the value is the namespace of their manager.
const MANAGER: &str = "tp/manager";

/// Label of an engagement's Lease; the value is the stand-in's name.
const ENGAGEMENT: &str = "tp/engagement";

/// Label of a stand-in's ReplicaSet with its name, and key by which a Service is narrowed to it.
const STAND_IN: &str = "tp/stand-in";

/// How long a manager may take to end them: its stand-ins linger for some seconds.
const MANAGER_LIMIT: Duration = Duration::from_secs(30);

/// How often they are looked for.
const LOOK: Duration = Duration::from_millis(500);

/// Namespace and name of a Lease or ReplicaSet.
pub(super) type Name = (String, String);

/// Returns the Leases of engagements and the ReplicaSets of stand-ins, of the manager in namespace `manager`.
pub(super) async fn find(client: &Client, manager: &str) -> kube::Result<(Vec<Name>, Vec<Name>)> {
    let leases = of_manager(&Api::<Lease>::all(client.clone()), manager).await?;
    let sets = of_manager(&Api::<ReplicaSet>::all(client.clone()), manager).await?;
    Ok((leases, sets))
}

async fn of_manager<K>(api: &Api<K>, manager: &str) -> kube::Result<Vec<Name>>
where
    K: Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let found = api.list(&ListParams::default().labels(&format!("{MANAGER}={manager}"))).await?;
    Ok(found.items.iter().map(|it| (it.namespace().unwrap_or_default(), it.name_any())).collect())
}

/// Ends all of them, and returns when nothing is left.
pub(super) async fn end(client: &Client, manager: &str) -> kube::Result<()> {
    let (leases, _) = find(client, manager).await?;
    for (namespace, name) in &leases {
        let api = Api::<Lease>::namespaced(client.clone(), namespace);
        api.delete(name, &DeleteParams::background()).await.map(drop).or_else(not_found)?;
    }
    let by_manager = async {
        while find(client, manager).await? != Default::default() {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    };
    match tokio::time::timeout(MANAGER_LIMIT, by_manager).await {
        Ok(done) => done,
        Err(_) => take_apart(client, manager).await,
    }
}

/// Without a manager: Services first, then what they were narrowed to.
async fn take_apart(client: &Client, manager: &str) -> kube::Result<()> {
    let (leases, sets) = find(client, manager).await?;
    let params = PatchParams::default();
    let all = ListParams::default().labels(&format!("{MANAGER}={manager}"));
    let mut stand_ins: BTreeSet<String> = sets.iter().map(|(_, name)| name.clone()).collect();
    for lease in Api::<Lease>::all(client.clone()).list(&all).await?.items {
        stand_ins.extend(lease.labels().get(ENGAGEMENT).cloned());
    }
    let namespaces: BTreeSet<&String> = leases.iter().chain(&sets).map(|(namespace, _)| namespace).collect();
    for namespace in namespaces {
        let api = Api::<Service>::namespaced(client.clone(), namespace);
        for service in api.list(&ListParams::default()).await?.items {
            let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            let stand_in = selector.and_then(|selector| selector.get(STAND_IN));
            // One of another manager is none of ours.
            let is_ours = stand_in.is_some_and(|name| stand_ins.contains(name));
            if is_ours {
                let widening = json!({"spec": {"selector": {STAND_IN: null}}});
                api.patch(&service.name_any(), &params, &Patch::Merge(widening)).await?;
            }
        }
    }
    for (namespace, name) in &sets {
        let api = Api::<ReplicaSet>::namespaced(client.clone(), namespace);
        api.delete(name, &DeleteParams::background()).await.map(drop).or_else(not_found)?;
    }
    for (namespace, name) in &leases {
        let api = Api::<Lease>::namespaced(client.clone(), namespace);
        let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        api.patch(name, &params, &free).await.map(drop).or_else(not_found)?;
    }
    Ok(())
}

fn not_found(error: kube::Error) -> kube::Result<()> {
    match error {
        kube::Error::Api(status) if status.code == 404 => Ok(()),
        other => Err(other),
    }
}
