//! What a run of the CLI that makes containers has: a plan, the engine, a reaper.

mod make;

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use ring::rand::SecureRandom as _;

use super::engage::Engaged;
use super::publish::Wishes;
use super::setup::Setup;
use crate::attach::KubeAccess;
use crate::docker::connections::Connection;
use crate::docker::endpoint::Endpoint;
use crate::docker::{Engine, hex};
use crate::error::{CliError, Result};
use crate::progress::Progress;
use crate::reap::{Reaper, Spare, remove_invocation};
pub(super) use make::{Made, end, make, name_taken};

/// How long cleaning up after a failure may take.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(5);

/// Whether the connection outlives the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lifetime {
    /// It ends with the command, however that ends.
    Held,
    /// It stays until `tp quit`, or its idle limit.
    Detached,
}

/// Whether the name of the connection has to be the one of the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// It has.
    Fixed,
    /// The next free one like it will do.
    Numbered,
}

/// All that is known before the engine is touched.
pub(super) struct Plan {
    /// How to reach the API server.
    pub(super) access: KubeAccess,
    /// Settings in force, and their sources.
    pub(super) setup: Setup,
    /// Wishes for the daemon container.
    pub(super) wishes: Wishes,
    /// How long the connection lives.
    pub(super) lifetime: Lifetime,
    /// How it is named.
    pub(super) naming: Naming,
    /// The workload by way of which it dials; `None` for the manager.
    pub(super) via: Option<String>,
}

impl Plan {
    /// Resolves the kubeconfig context of `setup`.
    ///
    /// # Errors
    /// All that can be wrong with a kubeconfig.
    pub(super) async fn new(mut setup: Setup, wishes: Wishes, lifetime: Lifetime, naming: Naming) -> Result<Self> {
        let placeholder = Err(CliError::bug("the context is taken once"));
        let selected = std::mem::replace(&mut setup.selected, placeholder)?;
        let access = selected.access(Timestamp::now(), |name| std::env::var(name).ok()).await?;
        Ok(Self { access, setup, wishes, lifetime, naming, via: None })
    }

    /// Whether `connection` is to the same cluster and namespace through the same manager, and dials from where it is wished to.
    pub(super) fn is_same(&self, connection: &Connection) -> bool {
        let settings = &self.setup.settings;
        connection.context == self.access.context
            && connection.server == self.access.original_server
            && connection.namespace == settings.namespace.value.as_str()
            && connection.manager_namespace == settings.manager_namespace.value.as_str()
            && self.via.as_ref().is_none_or(|via| connection.via == *via)
    }
}

/// Finds the engine, and says hello to it.
///
/// # Errors
/// As [`Engine::connect`].
pub(super) async fn engine(progress: &Progress) -> Result<Engine> {
    let endpoint = Endpoint::find(|name| std::env::var(name).ok(), Path::exists)?;
    progress.step("waiting for the container engine");
    Engine::connect(endpoint).await
}

/// One run of the CLI that makes containers, watched by its reaper.
pub(super) struct Invocation {
    /// The engine.
    pub(super) engine: Engine,
    /// The label of all that this run makes.
    pub(super) id: String,
    reaper: Reaper,
}

impl Invocation {
    /// Starts the reaper.
    ///
    /// # Errors
    /// When the system cannot start a process.
    pub(super) fn start(engine: Engine) -> Result<Self> {
        let mut random = [0; 8];
        let filled = ring::rand::SystemRandom::new().fill(&mut random);
        filled.map_err(|_| CliError::user("this system gives no random numbers"))?;
        let id = hex(&random);
        let reaper = Reaper::start(&engine, &id)?;
        Ok(Self { engine, id, reaper })
    }

    /// Tells the reaper which process is the docker CLI.
    pub(super) fn on_docker_cli(&mut self, pid: Option<u32>) {
        self.reaper.on_docker_cli(pid);
    }

    /// Tells the reaper what is engaged for this run.
    pub(super) fn on_engaged(&mut self, engaged: Option<&Engaged>) {
        self.reaper.on_engaged(engaged.map(|engaged| (engaged.connection.id.as_str(), engaged.id.as_str())));
    }

    /// What this run made is gone, or is to stay.
    pub(super) fn keep(self) {
        self.reaper.keep();
    }

    /// Removes all that this run made. What cannot be removed now is left to the reaper, which tries for longer.
    pub(super) async fn clean_up(self) {
        if self.try_clean_up().await {
            self.reaper.keep();
        }
    }

    /// As [`Self::clean_up`], for a run that was interrupted anywhere: the engine may be making a container at this
    /// moment, which the reaper finds when it is there.
    pub(super) async fn abandon(self) {
        self.try_clean_up().await;
    }

    /// The user's own container was interrupted: what of it has ended stays, as with docker, and nothing else.
    pub(super) fn keep_ended(self) {
        self.reaper.keep_ended();
    }

    async fn try_clean_up(&self) -> bool {
        let removal = remove_invocation(&self.engine, &self.id, Spare::Nothing);
        matches!(tokio::time::timeout(CLEAN_UP_LIMIT, removal).await, Ok(Ok(())))
    }
}
