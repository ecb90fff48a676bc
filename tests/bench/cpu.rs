//! Processor time for what is moved.

use std::time::Duration;

use tp_tests::test::Connection;
use tp_tests::{docker, proc};

use crate::kubelet::{self, Measure};
use crate::load::{self, Mode};
use crate::target::Target;

/// Seconds of processor time for each Gbit of one flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) mode: Mode,
    /// Of all processes of the daemon container.
    pub(crate) daemon: f64,
    /// Of the manager, where it can be measured.
    pub(crate) manager: Option<f64>,
}

/// Measures both directions. The connection has to be idle.
pub(crate) fn per_gbit(connection: &Connection<'_>, target: &Target, rounds: u32, seconds: u32) -> Vec<Cost> {
    [Mode::Upload, Mode::Download].map(|mode| of(mode, connection, target, rounds, seconds)).to_vec()
}

fn of(mode: Mode, connection: &Connection<'_>, target: &Target, rounds: u32, seconds: u32) -> Cost {
    let manager = Manager::find();
    let before = (of_daemon(connection), manager.cpu_time());
    let gbit: f64 = (0..rounds).map(|_| gbit(mode, connection, target, seconds)).sum();
    let after = (of_daemon(connection), manager.cpu_time());
    let since = |before: Duration, after: Duration| after.saturating_sub(before).as_secs_f64() / gbit;
    let of_manager = before.1.zip(after.1).map(|(before, after)| since(before, after));
    Cost { mode, daemon: since(before.0, after.0), manager: of_manager }
}

/// Moves as much as goes; returns how much that was.
fn gbit(mode: Mode, connection: &Connection<'_>, target: &Target, seconds: u32) -> f64 {
    let figures = load::moved(connection, target, mode, 1, seconds);
    figures["bytes"].as_f64().unwrap_or_else(|| panic!("no bytes in {figures}")) * 8.0 / 1e9
}

fn of_daemon(connection: &Connection<'_>) -> Duration {
    docker::processes(&connection.container()).into_iter().filter_map(proc::cpu_time).sum()
}

/// Who knows the manager's processor time.
enum Manager {
    /// The kernel: its node is on this machine.
    Processes(Vec<u32>),
    /// Its kubelet, every now and then.
    Elsewhere,
}

impl Manager {
    fn find() -> Self {
        // As `containerd://ID`.
        let id = kubelet::pod_field("{.status.containerStatuses[0].containerID}");
        let processes = id.rsplit_once('/').map(|(_, id)| proc::of_container(id)).unwrap_or_default();
        if processes.is_empty() { Self::Elsewhere } else { Self::Processes(processes) }
    }

    fn cpu_time(&self) -> Option<Duration> {
        match self {
            Self::Processes(processes) => processes.iter().map(|pid| proc::cpu_time(*pid)).sum(),
            Self::Elsewhere => kubelet::next(Measure::Cpu).map(Duration::from_nanos),
        }
    }
}
