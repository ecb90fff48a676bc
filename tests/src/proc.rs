//! Processes of the machine, as `/proc` shows them.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

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

/// Processor time that a process has used, in user mode and in the kernel; `None` when it is gone.
pub fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Fields are counted from behind the command, which may contain anything (proc(5)): utime is the 12th, stime the 13th.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).map_while(|field| field.parse::<u64>().ok()).sum();
    Some(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// The processes of a container of whatever runtime, by its id in the names of their control groups. None where the container
/// is on another machine.
///
/// # Panics
/// When there is no `/proc`.
pub fn of_container(id: &str) -> Vec<u32> {
    let groups = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    all().filter(|pid| groups(pid).contains(id)).collect()
}

fn all() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").expect("the machine runs Linux");
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Command lines of all processes whose home directory is `home`: those that a test's command left behind.
///
/// # Panics
/// When there is no `/proc`.
pub fn with_home(home: &Path) -> Vec<String> {
    let wanted = [b"HOME=", home.as_os_str().as_bytes()].concat();
    let folders = all().map(|pid| PathBuf::from(format!("/proc/{pid}")));
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
