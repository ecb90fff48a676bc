//! Finds what tp has running in the engine: by label, from the engine alone.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bollard::models::{ContainerStateStatusEnum, ContainerSummary, ContainerSummaryStateEnum};
use bollard::query_parameters::{
    InspectContainerOptions, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder, WaitContainerOptions,
};
use futures_util::StreamExt as _;

use super::{Engine, failed, label, role, status};
use crate::error::Result;

/// Before a wait for a container's end that broke is begun again.
const WAIT_AGAIN: Duration = Duration::from_secs(1);

/// A daemon container, alive or dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Connection {
    /// Name of the connection.
    pub(crate) name: String,
    /// Id of the container.
    pub(crate) id: String,
    /// Kubeconfig context.
    pub(crate) context: String,
    /// URL of the API server, as the kubeconfig has it.
    pub(crate) server: String,
    /// Connected namespace.
    pub(crate) namespace: String,
    /// Namespace of the manager.
    pub(crate) manager_namespace: String,
    /// The workload by way of which it dials, as `--via` had it; empty for the manager.
    pub(crate) via: String,
    /// Version of the CLI that made it.
    pub(crate) version: String,
    /// The CLI run that made it.
    pub(crate) invocation: String,
    /// Whether it ends with the CLI that made it.
    pub(crate) held: bool,
    /// Whether its container runs.
    pub(crate) running: bool,
}

impl Connection {
    /// Name of its container.
    pub(crate) fn container(&self) -> String {
        container_name(&self.name)
    }

    fn from_summary(summary: ContainerSummary) -> Option<Self> {
        let mut labels = summary.labels?;
        let mut take = |label: &str| labels.remove(label).unwrap_or_default();
        Some(Self {
            name: take(label::CONNECTION),
            id: summary.id?,
            context: take(label::CONTEXT),
            server: take(label::SERVER),
            namespace: take(label::NAMESPACE),
            manager_namespace: take(label::MANAGER_NAMESPACE),
            via: take(label::VIA),
            version: take(label::VERSION),
            invocation: take(label::INVOCATION),
            held: take(label::LIFETIME) == HELD,
            running: summary.state == Some(ContainerSummaryStateEnum::RUNNING),
        })
    }
}

/// Value of [`label::LIFETIME`] for a connection that ends with its CLI.
pub(crate) const HELD: &str = "held";
/// Value of [`label::LIFETIME`] for a connection that stays.
pub(crate) const DETACHED: &str = "detached";

/// Name of the container of the connection `name`.
pub(crate) fn container_name(name: &str) -> String {
    format!("tp-{name}")
}

/// A user's container that joined a connection.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Handler {
    /// Its name.
    pub(crate) name: String,
    /// Its id.
    pub(crate) id: String,
    /// Its image.
    pub(crate) image: String,
    /// What the engine says of it, such as `Up 3 minutes`.
    pub(crate) status: String,
    /// Whether it runs.
    pub(crate) running: bool,
}

/// Any container, for removal and messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Its name.
    pub(crate) name: String,
    /// Its id.
    pub(crate) id: String,
    /// Whether it ran and has ended.
    pub(crate) has_ended: bool,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Exit code of its first process.
    pub(crate) code: i64,
    /// When, as the engine writes it (RFC 3339).
    pub(crate) at: String,
    /// Whether the kernel killed it for its memory.
    pub(crate) out_of_memory: bool,
}

impl Ended {
    /// Why a daemon container ended, by the exit codes of its init.
    pub(crate) fn reason(&self) -> String {
        match self.code {
            _ if self.out_of_memory => "the kernel killed it: out of memory".to_owned(),
            0 => "it was quit".to_owned(),
            3 => "it was idle for longer than its idle limit".to_owned(),
            4 => "it was never asked to connect".to_owned(),
            5 => "its daemon crashed too often".to_owned(),
            70 => "its init failed; this is a bug in tp".to_owned(),
            137 => "it was killed".to_owned(),
            143 => "it was stopped".to_owned(),
            code => format!("it ended with exit code {code}"),
        }
    }
}

impl Engine {
    /// All connections, running ones or not, by name.
    pub(crate) async fn connections(&self) -> Result<Vec<Connection>> {
        let summaries = self.list(&[(label::ROLE, role::DAEMON)]).await?;
        let mut found: Vec<_> = summaries.into_iter().filter_map(Connection::from_summary).collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// The containers that joined connections, by the connection's name.
    pub(crate) async fn handlers(&self) -> Result<BTreeMap<String, Vec<Handler>>> {
        let mut found = BTreeMap::<String, Vec<Handler>>::new();
        for summary in self.list(&[(label::ROLE, role::HANDLER)]).await? {
            let connection = summary.labels.as_ref().and_then(|labels| labels.get(label::CONNECTION)).cloned();
            let handler = Handler {
                name: first_name(&summary),
                image: summary.image.unwrap_or_default(),
                status: summary.status.unwrap_or_default(),
                running: summary.state == Some(ContainerSummaryStateEnum::RUNNING),
                id: summary.id.unwrap_or_default(),
            };
            found.entry(connection.unwrap_or_default()).or_default().push(handler);
        }
        for handlers in found.values_mut() {
            handlers.sort_by(|a, b| a.name.cmp(&b.name));
        }
        Ok(found)
    }

    /// All containers that carry one of tp's roles.
    pub(crate) async fn all_containers(&self) -> Result<Vec<Found>> {
        let summaries = self.list(&[(label::ROLE, "")]).await?;
        Ok(summaries.into_iter().map(found).collect())
    }

    /// The containers that one CLI run made.
    pub(crate) async fn of_invocation(&self, invocation: &str) -> Result<Vec<Found>> {
        let summaries = self.list(&[(label::INVOCATION, invocation)]).await?;
        Ok(summaries.into_iter().map(found).collect())
    }

    /// Lists containers with all of the given labels; an empty value stands for any.
    async fn list(&self, labels: &[(&str, &str)]) -> Result<Vec<ContainerSummary>> {
        let wanted = labels.iter().map(
            |(key, value)| {
                if value.is_empty() { (*key).to_owned() } else { format!("{key}={value}") }
            },
        );
        let filters = HashMap::from([("label", wanted.collect::<Vec<_>>())]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        self.docker.list_containers(Some(options)).await.map_err(|e| failed("list containers", &e))
    }

    /// All running containers, tp's and others.
    pub(super) async fn running(&self) -> Result<Vec<ContainerSummary>> {
        let options = ListContainersOptionsBuilder::new().all(false).build();
        self.docker.list_containers(Some(options)).await.map_err(|e| failed("list containers", &e))
    }

    /// Whether the container is there and runs.
    pub(crate) async fn is_running(&self, id: &str) -> Result<bool> {
        match self.docker.inspect_container(id, None::<InspectContainerOptions>).await {
            Ok(inspected) => Ok(inspected.state.is_some_and(|state| state.running == Some(true))),
            Err(e) if status(&e) == Some(404) => Ok(false),
            Err(e) => Err(failed("look at a container", &e)),
        }
    }

    /// How the container ended; `None` when it runs or is gone.
    pub(crate) async fn ended(&self, id: &str) -> Result<Option<Ended>> {
        let inspected = match self.docker.inspect_container(id, None::<InspectContainerOptions>).await {
            Ok(inspected) => inspected,
            Err(e) if status(&e) == Some(404) => return Ok(None),
            Err(e) => return Err(failed("look at a container", &e)),
        };
        let Some(state) = inspected.state else { return Ok(None) };
        let over = matches!(state.status, Some(ContainerStateStatusEnum::EXITED | ContainerStateStatusEnum::DEAD));
        Ok(over.then(|| Ended {
            code: state.exit_code.unwrap_or_default(),
            at: state.finished_at.unwrap_or_default(),
            out_of_memory: state.oom_killed.unwrap_or_default(),
        }))
    }

    /// Removes a container by force; one that is gone already is fine.
    ///
    /// # Errors
    /// When the engine refuses.
    pub(crate) async fn remove(&self, id: &str) -> Result<()> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        match self.docker.remove_container(id, Some(options)).await {
            Ok(()) => Ok(()),
            // 404: gone. 409: its removal is under way already.
            Err(e) if matches!(status(&e), Some(404 | 409)) => Ok(()),
            Err(e) => Err(failed("remove a container", &e)),
        }
    }

    /// Waits until a container has ended, or is removed.
    pub(crate) async fn wait_gone(&self, id: &str) {
        loop {
            let mut answers = self.docker.wait_container(id, None::<WaitContainerOptions>);
            while let Some(Ok(_)) = answers.next().await {}
            // The wait itself can break, with the engine for one.
            if matches!(self.is_running(id).await, Ok(false)) {
                return;
            }
            tokio::time::sleep(WAIT_AGAIN).await;
        }
    }
}

fn found(summary: ContainerSummary) -> Found {
    let over = [ContainerSummaryStateEnum::EXITED, ContainerSummaryStateEnum::DEAD];
    Found {
        name: first_name(&summary),
        has_ended: summary.state.is_some_and(|state| over.contains(&state)),
        id: summary.id.unwrap_or_default(),
    }
}

/// The container's own name, which the engine lists with a slash before it.
pub(super) fn first_name(summary: &ContainerSummary) -> String {
    let names = summary.names.as_deref().unwrap_or_default();
    names.first().map_or_else(String::new, |name| name.trim_start_matches('/').to_owned())
}
