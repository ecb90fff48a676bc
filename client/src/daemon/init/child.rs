//! The daemon process as its init sees it.
#![expect(unsafe_code, reason = "what happens between fork and exec")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{self, Command};

use rustix::process::{Pid, Signal, WaitOptions, kill_process};

use super::{ChildEnd, ORDERLY_EXITS, privileges, signals};

/// The daemon's end of the link to its init.
pub(crate) const LINK_FD: RawFd = 3;

/// The control socket, listening.
pub(crate) const LISTENER_FD: RawFd = 4;

/// The TUN device.
pub(crate) const TUN_FD: RawFd = 5;

/// Our own descriptors are moved above this before they are put into place, so that none is overwritten.
const FIRST_FREE_FD: RawFd = 16;

/// A running daemon.
pub(super) struct Child {
    process: process::Child,
}

impl Child {
    /// Starts `tp daemon run` with three descriptors, no environment but the log level, and no right at all.
    pub(super) fn start(link: BorrowedFd<'_>, listener: BorrowedFd<'_>, tun: BorrowedFd<'_>) -> io::Result<Self> {
        let wanted = [(link.as_raw_fd(), LINK_FD), (listener.as_raw_fd(), LISTENER_FD), (tun.as_raw_fd(), TUN_FD)];
        let mut command = Command::new("/proc/self/exe");
        command.arg0("tp").args(["daemon", "run"]).env_clear().current_dir("/");
        command.envs(std::env::var_os(super::link::LOG_VARIABLE).map(|level| (super::link::LOG_VARIABLE, level)));
        // SAFETY: the closure only makes system calls.
        unsafe {
            command.pre_exec(move || {
                let mut moved = [0; 3];
                for (to, (from, _)) in moved.iter_mut().zip(wanted) {
                    *to = check(libc::fcntl(from, libc::F_DUPFD_CLOEXEC, FIRST_FREE_FD))?;
                }
                for (from, (_, to)) in moved.into_iter().zip(wanted) {
                    check(libc::dup2(from, to))?;
                }
                signals::unblock_all()?;
                privileges::drop_all()
            });
        }
        Ok(Self { process: command.spawn()? })
    }

    /// Asks it to end in good order.
    pub(super) fn terminate(&self) {
        // Fails only when it has ended, which SIGCHLD tells.
        let _ = kill_process(self.pid(), Signal::TERM);
    }

    /// Reaps every process that has ended, those that `docker exec` left to PID 1 included. Returns how the daemon ended,
    /// if it has.
    pub(super) fn try_wait(&self) -> Option<ChildEnd> {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if pid == self.pid() {
                return Some(match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) if ORDERLY_EXITS.contains(&code) => ChildEnd::Orderly(code as u8),
                    (Some(code), _) => ChildEnd::Crashed(format!("exited with code {code}")),
                    (None, signal) => ChildEnd::Crashed(format!("was killed by signal {}", signal.unwrap_or(0))),
                });
            }
        }
        None
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }
}

/// Reaps what `docker exec` left to PID 1, while there is no daemon.
pub(super) fn reap_orphans() {
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
