//! Gives up every right of this process.
//!
//! Raw system calls only: it also runs between `fork` and `exec`, where nothing else is safe, and libc's own wrappers
//! would talk to threads that are not there. Sources: capabilities(7), prctl(2).
#![expect(unsafe_code, reason = "system calls without a safe wrapper that works between fork and exec")]

use std::io;

/// The user and group that everything in the container ends up as: the "nonroot" of distroless images.
pub(crate) const UNPRIVILEGED_ID: libc::c_long = 65_532;

/// `_LINUX_CAPABILITY_VERSION_3` of `include/uapi/linux/capability.h`: 64-bit sets in two halves.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// More than the kernel has; reading an unknown one ends the loop.
const MAX_CAPABILITY: libc::c_long = 63;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Empties all five capability sets, becomes [`UNPRIVILEGED_ID`] without other groups, and bars the way back
/// (`no_new_privs`) and core dumps.
///
/// Does what is left to do when some of it was done before.
///
/// # Errors
/// When a right cannot be given up; some may be gone already.
pub(crate) fn drop_all() -> io::Result<()> {
    for capability in 0..=MAX_CAPABILITY {
        match prctl(libc::PR_CAPBSET_READ, capability) {
            Ok(0) => {}
            Ok(_) => drop(prctl(libc::PR_CAPBSET_DROP, capability)?),
            Err(_) => break,
        }
    }
    // SAFETY: takes no pointer that it follows, has no arguments, and cannot fail.
    if unsafe { libc::syscall(libc::SYS_geteuid) } == 0 {
        // SAFETY: an empty list of groups: the pointer is not followed.
        check(unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) })?;
        let id = UNPRIVILEGED_ID;
        // SAFETY: plain numbers.
        check(unsafe { libc::syscall(libc::SYS_setresgid, id, id, id) })?;
        // SAFETY: plain numbers.
        check(unsafe { libc::syscall(libc::SYS_setresuid, id, id, id) })?;
    }
    // SAFETY: plain numbers.
    check(i64::from(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) }))?;
    let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let none = [CapabilityData::default(); 2];
    // SAFETY: both live through the call and have the layout that version 3 asks for.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const none) })?;
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)?;
    prctl(libc::PR_SET_DUMPABLE, 0)?;
    Ok(())
}

fn prctl(option: libc::c_int, argument: libc::c_long) -> io::Result<libc::c_long> {
    // SAFETY: the options used here take plain numbers.
    let result = unsafe { libc::prctl(option, argument, 0, 0, 0) };
    check(libc::c_long::from(result))
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
