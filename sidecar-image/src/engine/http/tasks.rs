//! The tasks of one connection: they end with it.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::rt::Executor;
use tokio::task::JoinSet;

/// Spawns tasks of a connection.
#[derive(Clone, Default)]
pub(crate) struct Tasks(Arc<Mutex<JoinSet<()>>>);

/// Owns the tasks: when it is dropped, they are aborted.
#[derive(Default)]
pub(crate) struct TaskOwner(Tasks);

impl Tasks {
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.spawn(task);
    }
}

impl TaskOwner {
    pub(crate) fn tasks(&self) -> Tasks {
        self.0.clone()
    }

    /// Waits until all have ended by themselves.
    pub(crate) async fn finish(self) {
        loop {
            // They may spawn others meanwhile.
            let mut tasks = std::mem::take(&mut *self.0.0.lock().unwrap_or_else(PoisonError::into_inner));
            if tasks.is_empty() {
                return;
            }
            while tasks.join_next().await.is_some() {}
        }
    }
}

impl Drop for TaskOwner {
    fn drop(&mut self) {
        // Tasks hold the set that holds them, so it is not dropped by itself.
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}
