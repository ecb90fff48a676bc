//! Processes of the machine, as `/proc` shows them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// The fields of `/proc/PID/status`, or `None` when the process is gone.
pub fn status(pid: u32) -> Option<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    Some(fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect())
}

/// Resident memory of a process. Pages that several share count by their share where the kernel tells us (`Pss` of
/// `smaps_rollup`, proc(5)), else in full.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let shared = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let shared = shared.lines().find_map(|line| line.strip_prefix("Pss:"));
    let whole = status(pid)?.remove("VmRSS");
    let kilobytes = shared.map(str::to_owned).or(whole)?.trim().split(' ').next()?.parse::<u64>().ok()?;
    Some(kilobytes * 1024)
}

/// Command lines of all processes whose home directory is `home`: those that a test's command left behind.
///
/// # Panics
/// When there is no `/proc`.
pub fn with_home(home: &Path) -> Vec<String> {
    let wanted = [b"HOME=", home.as_os_str().as_bytes()].concat();
    let entries = std::fs::read_dir("/proc").expect("the machine runs Linux");
    let folders = entries.flatten().map(|entry| entry.path()).filter(|path| {
        path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
    });
    let with_home = folders.filter(|folder| {
        let environment = std::fs::read(folder.join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == wanted)
    });
    with_home
        .map(|folder| {
            let words = std::fs::read(folder.join("cmdline")).unwrap_or_default();
            format!("process {}", String::from_utf8_lossy(&words).replace('\0', " "))
        })
        .collect()
}
