//! Resident memory, with few and with many flows.

use std::time::Duration;

use tp_tests::docker::{self, logs};
use tp_tests::proc;
use tp_tests::test::{Connection, Test};
use tp_tests::wait::{try_until, until};

use crate::kubelet::{self, Measure};
use crate::load::{self, Mode};
use crate::route::Route;
use crate::target::{HTTP, Target};

/// Flows that are open at once.
pub(crate) const FLOWS: u16 = 1000;
/// Of these, flows that move bulk while the others are idle.
pub(crate) const BUSY: u16 = 10;

/// How long opening all flows may take.
const OPEN_WITHIN: Duration = Duration::from_secs(30);
/// How long a thousand busy flows may take to be opened.
const CONNECTING: Duration = Duration::from_secs(5);

/// The daemon's memory in bytes, on a connection that served nothing else.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ManyFlows {
    /// Without any flow.
    pub(crate) idle: u64,
    /// What each flow adds that is open, has carried a request, and is idle.
    pub(crate) per_flow: u64,
    /// At its largest, with 1,000 open flows of which 10 download.
    pub(crate) open: u64,
    /// At its largest, while all of 1,000 download, and while all upload.
    pub(crate) busy: u64,
}

/// Resident memory of all processes in the daemon container, the init included. Pages that they share count once, which
/// takes root to see; without it they count for each. Needs the engine on this machine.
pub(crate) fn of_daemon(connection: &Connection<'_>) -> u64 {
    docker::processes(&connection.container()).into_iter().filter_map(proc::resident_bytes).sum()
}

/// Resident memory of the manager as its node's kubelet measures it, after the loads; `None` where it does not.
pub(crate) fn of_manager() -> Option<u64> {
    kubelet::next(Measure::Memory)
}

/// Measures the daemon with many flows.
pub(crate) fn with_many_flows(test: &Test, target: &Target, seconds: u32) -> ManyFlows {
    let connection = test.connect();
    let idle = of_daemon(&connection);

    let length = OPEN_WITHIN.as_secs() + u64::from(seconds);
    let silent = FLOWS - BUSY;
    let opened = Route::tp(&connection).open(target, HTTP);
    let spec = load::sample(&opened.address, &length.to_string(), "idle", &silent.to_string());
    let holder = spec.network(&opened.network).start();
    until(OPEN_WITHIN, "all flows to be open", || {
        let log = logs(holder.id(), "all");
        if log.contains(ALL_OPEN) { Ok(()) } else { Err(log) }
    });
    let quiet = of_daemon(&connection);
    let open = peak(&connection, target, Mode::Download, BUSY, seconds);
    drop(holder);

    let busy = [Mode::Download, Mode::Upload].map(|mode| peak(&connection, target, mode, FLOWS, seconds));
    connection.tp(["quit"]).run().ok();
    ManyFlows { idle, per_flow: quiet.saturating_sub(idle) / u64::from(silent), open, busy: busy[0].max(busy[1]) }
}

/// What the loader says when its idle flows are there.
const ALL_OPEN: &str = "all connections are open";

/// The daemon's memory at its largest while as many flows do the same, from their opening on. An upload would take long to
/// end in order: what lies in the buffers of a thousand sockets has to arrive first. So the loader is stopped.
fn peak(connection: &Connection<'_>, target: &Target, mode: Mode, flows: u16, seconds: u32) -> u64 {
    let opened = Route::tp(connection).open(target, mode.port());
    let watched = CONNECTING + Duration::from_secs(seconds.into());
    let length = (2 * watched).as_secs().to_string();
    let load = load::sample(&opened.address, &length, mode.key(), &flows.to_string()).network(&opened.network).start();
    let mut peak = 0;
    let ended = try_until(watched, || {
        peak = peak.max(of_daemon(connection));
        if docker::is_running(load.id()) { Err(()) } else { Ok(()) }
    });
    assert!(ended.is_err(), "{flows} flows, {}: {}", mode.key(), logs(load.id(), "all"));
    peak
}
