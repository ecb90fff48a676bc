//! Finds the workload that is meant: by its kind and name with one request, by its name alone among the names of all.

use futures_util::future::try_join_all;
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::ObjectMeta;
use kube::{Client, ResourceExt};
use tp_protocol::engage::call::Failure;

use super::kind::{Kind, WorkloadName, controller};
use super::{Workload, argo, read};
use crate::engage::failure;
use crate::engage::service::STAND_IN;

/// Objects per page of a list.
const PAGE: u32 = 500;

/// Names that are suggested for one that does not exist.
const SUGGESTIONS: usize = 3;

/// What there is of a kind and name.
enum Found {
    Workload(Box<Workload>),
    /// Something that a controller has made. It is engaged as a part of what that was made for.
    Part(Box<ObjectMeta>),
    /// Nothing, or something of tp's own.
    Nothing,
}

/// Finds the workload that `asked` means: `KIND/NAME`, or a name.
///
/// # Errors
/// A [`Failure`] that names what there is instead.
pub(crate) async fn find(client: &Client, namespace: &str, asked: &str) -> Result<Workload, Failure> {
    let name = match WorkloadName::parse(asked)? {
        Some(name) => name,
        None => only(list(client, namespace).await?, namespace, asked)?,
    };
    match get(client, namespace, &name).await? {
        Found::Workload(workload) => Ok(*workload),
        Found::Part(metadata) => Err(part(&list(client, namespace).await?, namespace, &name, &metadata)),
        Found::Nothing => Err(missing(&list(client, namespace).await?, namespace, asked)),
    }
}

/// Returns a workload that was found before, by `KIND/NAME`; `None` when it is gone.
///
/// # Errors
/// When the API server does not say.
pub(crate) async fn known(client: &Client, namespace: &str, workload: &str) -> Result<Option<Workload>, Failure> {
    let Some(name) = WorkloadName::parse(workload)? else { return Ok(None) };
    match get(client, namespace, &name).await? {
        Found::Workload(workload) => Ok(Some(*workload)),
        Found::Part(_) | Found::Nothing => Ok(None),
    }
}

/// Returns the names of all workloads of a namespace that can be engaged, sorted. What a controller has made, and stand-ins, are
/// none of their own. Of each object the API server sends the metadata alone.
///
/// # Errors
/// When the API server does not say.
pub(crate) async fn list(client: &Client, namespace: &str) -> Result<Vec<WorkloadName>, Failure> {
    let of_kinds = try_join_all(Kind::ALL.map(|kind| of_kind(client, namespace, kind))).await?;
    let mut all: Vec<WorkloadName> = of_kinds.into_iter().flatten().collect();
    all.sort();
    Ok(all)
}

async fn of_kind(client: &Client, namespace: &str, kind: Kind) -> Result<Vec<WorkloadName>, Failure> {
    let api = api(client, namespace, kind);
    let mut params =
        ListParams { field_selector: selector(kind).map(str::to_owned), ..ListParams::default().limit(PAGE) };
    let mut found = Vec::new();
    loop {
        let page = match api.list_metadata(&params).await {
            Ok(page) => page,
            // There is no such kind, or not yet: nothing of it is remembered.
            Err(kube::Error::Api(status)) if status.code == 404 && kind == Kind::Rollout => return Ok(Vec::new()),
            Err(error) => {
                return Err(failure(
                    format!("cannot list the {kind}s of namespace {namespace}: {error}"),
                    "the manager's ClusterRole allows it in its own chart: `tp helm upgrade` puts it right",
                ));
            }
        };
        params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
        let is_own = |it: &ObjectMeta| controller(it).is_none() && !is_stand_in(it);
        let own = page.items.into_iter().filter(|it| is_own(&it.metadata));
        found.extend(own.map(|it| WorkloadName { kind, name: it.name_any() }));
        if params.continue_token.is_none() {
            return Ok(found);
        }
    }
}

/// Which objects of a kind are looked at: of pods that have ended nothing can be taken over.
fn selector(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Pod => Some("status.phase!=Succeeded,status.phase!=Failed"),
        Kind::CronJob
        | Kind::DaemonSet
        | Kind::Deployment
        | Kind::Job
        | Kind::ReplicaSet
        | Kind::Rollout
        | Kind::StatefulSet => None,
    }
}

async fn get(client: &Client, namespace: &str, name: &WorkloadName) -> Result<Found, Failure> {
    match object(client, namespace, name).await? {
        Some(object) if is_stand_in(&object.metadata) => Ok(Found::Nothing),
        Some(object) if controller(&object.metadata).is_some() => Ok(Found::Part(Box::new(object.metadata))),
        Some(object) if name.kind == Kind::Rollout => {
            Ok(Found::Workload(Box::new(argo::read(client, namespace, name, object).await?)))
        }
        Some(object) => Ok(Found::Workload(Box::new(read(name, object)?))),
        None => Ok(Found::Nothing),
    }
}

/// Reads an object; `None` when there is none.
pub(super) async fn object(
    client: &Client,
    namespace: &str,
    name: &WorkloadName,
) -> Result<Option<DynamicObject>, Failure> {
    match api(client, namespace, name.kind).get(&name.name).await {
        Ok(object) => Ok(Some(object)),
        // What a cluster does not know the kind of is not there either, and is not told of by a Status.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(failure(
            format!("cannot read {name} in namespace {namespace}: {error}"),
            "the manager's ClusterRole allows it in its own chart: `tp helm upgrade` puts it right",
        )),
    }
}

fn api(client: &Client, namespace: &str, kind: Kind) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), namespace, &kind.resource())
}

/// Whether tp has made an object, or has had it made.
fn is_stand_in(metadata: &ObjectMeta) -> bool {
    metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(STAND_IN))
}

/// The only workload of this name.
fn only(all: Vec<WorkloadName>, namespace: &str, name: &str) -> Result<WorkloadName, Failure> {
    let (mut meant, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|it| it.name == name);
    match meant.len() {
        1 => Ok(meant.remove(0)),
        0 => Err(missing(&others, namespace, name)),
        _ => {
            let names: Vec<String> = meant.iter().map(WorkloadName::to_string).collect();
            Err(failure(
                format!("{} workloads of namespace {namespace} have the name {name}", names.len()),
                format!("say which is meant: {}", names.join(" or ")),
            ))
        }
    }
}

/// It is a part of one of these workloads.
fn part(all: &[WorkloadName], namespace: &str, name: &WorkloadName, metadata: &ObjectMeta) -> Failure {
    if let Some(whole) = all.iter().find(|it| it.has_made(metadata)) {
        return failure(
            format!("{name} is a part of {whole}"),
            format!("engage {whole}: all of its pods are meant then"),
        );
    }
    let maker = controller(metadata).map(|it| format!("{} {}", it.kind, it.name)).unwrap_or_default();
    failure(
        format!("{name} is a part of {maker}, which is no workload that can be engaged"),
        format!("`tp list --namespace {namespace}` shows those that are"),
    )
}

/// There is none of this name; these are there.
fn missing(all: &[WorkloadName], namespace: &str, asked: &str) -> Failure {
    let name = asked.rsplit('/').next().unwrap_or(asked);
    let mut near: Vec<(usize, String)> = all.iter().map(|it| (distance(&it.name, name), it.to_string())).collect();
    near.sort();
    near.truncate(SUGGESTIONS);
    let near: Vec<String> = near.into_iter().map(|(_, name)| name).collect();
    let hint = if near.is_empty() {
        format!("the namespace has no workload that can be engaged; `--namespace` names another than {namespace}")
    } else {
        format!("the nearest are {}; `tp list --namespace {namespace}` shows all", near.join(", "))
    };
    failure(format!("there is no workload {asked} in namespace {namespace}"), hint)
}

/// Levenshtein distance, in bytes: names are ASCII (RFC 1123). One that contains the other is near.
fn distance(a: &str, b: &str) -> usize {
    if a.contains(b) || b.contains(a) {
        return 1;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(x != y)).min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
