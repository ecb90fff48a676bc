//! A child process in the foreground: the terminal is its own, signals reach it, its end is ours.

use std::io;
use std::process::ExitStatus;

use tokio::process::Child;

use super::signals::{Caught, Signals};

/// Waits for the child. Signals that only this process got are passed on; those of the terminal the child has already.
///
/// # Errors
/// When the system cannot tell how the child ended.
pub(super) async fn wait(child: &mut Child, signals: &mut Signals) -> io::Result<ExitStatus> {
    loop {
        tokio::select! {
            status = child.wait() => return status,
            caught = signals.next() => pass_on(child, caught),
        }
    }
}

/// Passes a signal on to the child, unless it has got it from the terminal.
#[cfg(unix)]
pub(super) fn pass_on(child: &Child, caught: Caught) {
    use rustix::process::{Pid, Signal, kill_process};

    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let (Some(pid), Some(signal), false) = (pid, Signal::from_named_raw(caught.number.into()), caught.from_terminal)
    {
        // It may have ended meanwhile.
        let _ = kill_process(pid, signal);
    }
}

/// Passes a signal on to the child: the console has done so.
#[cfg(not(unix))]
pub(super) fn pass_on(_: &Child, _: Caught) {}
