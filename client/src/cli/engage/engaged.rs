//! An engagement that ends with the run that made it.

use std::time::Duration;

use tp_protocol::engage::call::{Held, Leave};

use super::ask::{Chosen, Running};
use crate::cli::signals::Signals;
use crate::docker::Engine;
use crate::error::Result;
use crate::progress::Progress;

/// How long its end is waited for.
const LEAVE_LIMIT: Duration = Duration::from_secs(30);

/// An engagement that a run has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Engaged {
    /// Its id.
    pub(in crate::cli) id: String,
    /// Name of the workload, without its kind.
    pub(in crate::cli) workload: String,
    /// The connection that holds it.
    pub(in crate::cli) connection: Running,
}

impl Engaged {
    /// The engagement `held` by a connection.
    pub(in crate::cli) fn new(held: &Held, connection: Running) -> Self {
        let workload = held.workload.rsplit('/').next().unwrap_or(&held.workload);
        Self { id: held.id.clone(), workload: workload.to_owned(), connection }
    }

    /// Ends it, and waits until the traffic is back. A failure is told, and is none of the run's.
    ///
    /// # Errors
    /// A signal that came meanwhile, which is told as well.
    pub(in crate::cli) async fn end(self, signals: &mut Signals) -> Result<()> {
        let Err(error) = signals.or(self.leave()).await else { return Ok(()) };
        let Self { workload, connection, .. } = self;
        eprintln!("warning: not known whether the engagement of {workload} has ended: {}", error.message());
        eprintln!("`tp leave {workload} --use {}` ends it.", connection.name);
        if error.is_signal() { Err(error) } else { Ok(()) }
    }

    async fn leave(&self) -> Result<()> {
        let progress = Progress::start(Some(LEAVE_LIMIT));
        let mut chosen = Chosen::open(&Engine::from_env().await?, self.connection.clone()).await?;
        let leave = Leave { what: self.id.clone(), namespace: String::new() };
        chosen.leave(leave, LEAVE_LIMIT, &progress).await.map(drop)
    }
}
