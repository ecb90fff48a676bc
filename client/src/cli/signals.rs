//! Signals that end a command. All of them come through here from its start to its end, so none is lost in between.

use crate::error::CliError;

/// Signals waiting to be looked at; a person who presses Ctrl-C more often than this has made the point.
const QUEUE: usize = 8;

/// A signal that was caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caught {
    /// Its number.
    pub(super) number: u8,
    /// Whether the terminal sent it, and so to every process in the foreground, children included.
    pub(super) from_terminal: bool,
}

impl Caught {
    /// The error that ends a command because of this signal.
    pub(super) fn error(self) -> CliError {
        CliError::signal(self.number, "interrupted")
    }
}

/// Catches the signals that end a command, until it is dropped.
pub(super) struct Signals {
    caught: tokio::sync::mpsc::Receiver<Caught>,
    #[cfg(unix)]
    handle: signal_hook::iterator::Handle,
    #[cfg(not(unix))]
    task: tokio::task::JoinHandle<()>,
}

impl Signals {
    /// Begins to catch.
    #[cfg(unix)]
    pub(super) fn catch() -> Self {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
        use signal_hook::iterator::SignalsInfo;
        use signal_hook::iterator::exfiltrator::WithOrigin;
        use signal_hook::low_level::siginfo::Cause;

        let mut origins = SignalsInfo::<WithOrigin>::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2])
            .expect("these signals can be caught, and the process can have a socket pair");
        let handle = origins.handle();
        let (caught_tx, caught) = tokio::sync::mpsc::channel(QUEUE);
        // Ends when the handle is closed, by our drop.
        std::thread::spawn(move || {
            for origin in &mut origins {
                // macOS does not say where a signal came from; there the terminal is the likely one.
                let from_terminal = matches!(origin.cause, Cause::Kernel | Cause::Unknown);
                let number = u8::try_from(origin.signal).unwrap_or_default();
                // More than the queue holds are of no account.
                let _ = caught_tx.try_send(Caught { number, from_terminal });
            }
        });
        Self { caught, handle }
    }

    /// Begins to catch: here only Ctrl-C, which the console sends to every process on it.
    #[cfg(not(unix))]
    pub(super) fn catch() -> Self {
        const SIGINT: u8 = 2;
        let (caught_tx, caught) = tokio::sync::mpsc::channel(QUEUE);
        let task = tokio::spawn(async move {
            while tokio::signal::ctrl_c().await.is_ok() {
                let _ = caught_tx.try_send(Caught { number: SIGINT, from_terminal: true });
            }
        });
        Self { caught, task }
    }

    /// Waits for the next signal.
    pub(super) async fn next(&mut self) -> Caught {
        match self.caught.recv().await {
            Some(caught) => caught,
            None => std::future::pending().await,
        }
    }

    /// Runs `work` until it is done or a signal comes.
    ///
    /// # Errors
    /// Those of `work`, or the signal's.
    pub(super) async fn or<T>(&mut self, work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
        tokio::select! {
            done = work => done,
            caught = self.next() => Err(caught.error()),
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        #[cfg(unix)]
        self.handle.close();
        #[cfg(not(unix))]
        self.task.abort();
    }
}
