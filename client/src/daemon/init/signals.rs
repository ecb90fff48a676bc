//! Signals as something to poll for (signalfd(2)): the init has one thread and waits in one place.
#![expect(unsafe_code, reason = "signalfd and the signal mask have no safe wrapper in our libraries")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// A signal that matters to the init.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// A child process has ended.
    Child,
    /// `docker stop`, or somebody's Ctrl-C.
    Terminate,
}

/// Blocked signals, delivered to a descriptor.
pub(super) struct Signals {
    fd: OwnedFd,
}

impl Signals {
    /// Blocks the signals in this thread and routes them to a descriptor. Children inherit what is blocked, see
    /// [`unblock_all`].
    pub(super) fn new() -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: `sigemptyset` initialises the set; the others read and write it.
        let fd = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT] {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            check(libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()))?;
            check(libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?
        };
        // SAFETY: `signalfd` has just returned it, and nobody else has it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// The next signal that has arrived.
    pub(super) fn next(&self) -> io::Result<Option<Signal>> {
        // `struct signalfd_siginfo` begins with the signal's number (signalfd(2)).
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.fd, &mut info) {
            Ok(_) => {}
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let number = u32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
        let is_child = number == libc::SIGCHLD.unsigned_abs();
        Ok(Some(if is_child { Signal::Child } else { Signal::Terminate }))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Lets every signal through again: what a new process expects. For use between `fork` and `exec`.
pub(super) fn unblock_all() -> io::Result<()> {
    let mut none = MaybeUninit::uninit();
    // SAFETY: `sigemptyset` initialises the set, which the other one reads.
    let result = unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut())
    };
    check(result).map(drop)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
