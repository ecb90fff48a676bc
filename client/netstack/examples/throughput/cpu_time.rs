//! Processor time of the stack's thread, and of the kernel's own thread for packets on the same core.

use std::fs::{read_dir, read_to_string};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustix::param::clock_ticks_per_second;
use rustix::thread::Pid;

use crate::CORE;

/// Whose time counts, as files of `/proc` (proc(5)).
#[derive(Clone, Debug)]
pub(crate) struct Threads(Vec<PathBuf>);

/// Time since the threads' start, or between two moments.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CpuTime {
    user: Duration,
    kernel: Duration,
}

impl Threads {
    /// The stack's thread, and the one to which the kernel puts off what it does not do at once with a written packet. That
    /// one is seen only where all of the machine's processes are.
    pub(crate) fn of_stack(thread: Pid) -> io::Result<Self> {
        let own = PathBuf::from(format!("/proc/self/task/{}/stat", thread.as_raw_nonzero()));
        let name = format!("ksoftirqd/{CORE}");
        let is_named = |folder: &PathBuf| read_to_string(folder.join("comm")).is_ok_and(|comm| comm.trim_end() == name);
        let kernel = read_dir("/proc")?.flatten().map(|entry| entry.path()).find(is_named);
        Ok(Self([own].into_iter().chain(kernel.map(|folder| folder.join("stat"))).collect()))
    }

    /// Reads the counters.
    pub(crate) fn now(&self) -> io::Result<CpuTime> {
        self.0.iter().try_fold(CpuTime::default(), |sum, path| {
            let stat = read_to_string(path)?;
            // Fields are counted from behind the name, which may contain anything: utime is the 12th, stime the 13th.
            let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
            let ticks: Vec<u64> = fields.skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
            let [user, kernel] = ticks[..] else {
                return Err(io::Error::other(format!("{} is not as proc(5) says", path.display())));
            };
            let time = |ticks: u64| Duration::from_secs_f64(ticks as f64 / clock_ticks_per_second() as f64);
            Ok(CpuTime { user: sum.user + time(user), kernel: sum.kernel + time(kernel) })
        })
    }
}

impl CpuTime {
    /// What was added since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self { user: self.user.saturating_sub(earlier.user), kernel: self.kernel.saturating_sub(earlier.kernel) }
    }

    /// Which share of `elapsed` it is.
    pub(crate) fn share_of(self, elapsed: Duration) -> f64 {
        (self.user + self.kernel).as_secs_f64() / elapsed.as_secs_f64()
    }

    /// The kernel's share of it.
    pub(crate) fn kernel_share(self) -> f64 {
        self.kernel.as_secs_f64() / (self.user + self.kernel).as_secs_f64()
    }
}
