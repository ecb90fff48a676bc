//! What was promised, and what is aimed at beyond that.

use std::fmt;

use serde_json::{Value, json};

use crate::load::{Mode, Unit};
use crate::netstack::Alone;
use crate::report::Report;
use crate::table::{mebibytes, megabytes};
use crate::{memory, several, size, websocket};

/// Promised of bulk transfer, as a share of the bare WebSocket's.
const BULK_SHARE_MIN: f64 = 0.7;
/// Promised of requests and new connections, as a share of kubectl's.
const REQUESTS_SHARE_MIN: f64 = 1.0;
/// Connecting on a warm machine.
const CONNECT_SECONDS_MAX: f64 = 2.0;
/// All processes of the daemon container, at any time.
const DAEMON_BYTES_MAX: u64 = 40 << 20;
/// The client binary.
const CLIENT_BYTES_MAX: u64 = 20_000_000;

/// Aimed at for bulk of one flow and of several, near and far, as a share of as many bare WebSockets'.
const BULK_SHARE: f64 = 0.9;
/// Aimed at for small requests beside bulk, in times of what they take without.
const MIXED_TIMES: f64 = 3.0;
/// Jain's index of flows that do the same.
const FAIRNESS: f64 = 0.9;
/// The daemon without flows, with 1,000 of which 10 are busy, and with 1,000 that are busy.
const DAEMON_BYTES: [u64; 3] = [15 << 20, 40 << 20, 128 << 20];
/// The stack alone, on one core.
const ALONE_BYTES_PER_SECOND: f64 = 20e9 / 8.0;
const ALONE_REQUESTS_PER_SECOND: f64 = 150e3;

/// A promise or an aim, and what came of it.
pub(crate) struct Promise {
    text: String,
    /// Whether it is kept; what was not measured is not.
    pub(crate) is_kept: bool,
}

impl Promise {
    fn at_least(what: &str, measured: f64, least: f64, unit: &str) -> Self {
        Self { text: format!("{what}: {measured:.2}{unit}, at least {least}"), is_kept: measured >= least }
    }

    fn at_most(what: &str, measured: f64, most: f64, unit: &str) -> Self {
        Self { text: format!("{what}: {measured:.2}{unit}, at most {most}"), is_kept: measured <= most }
    }

    fn bytes_below(what: &str, measured: u64, limit: u64, text: impl Fn(u64) -> String) -> Self {
        let text = format!("{what}: {}, at most {}", text(measured), text(limit));
        Self { text, is_kept: (1..=limit).contains(&measured) }
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        json!({ "text": self.text, "kept": self.is_kept })
    }
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", if self.is_kept { "kept    " } else { "not kept" }, self.text)
    }
}

/// What decides whether a run has failed.
pub(crate) fn promises(report: &Report) -> Vec<Promise> {
    let loads = Mode::ALL.map(|mode| match mode.unit() {
        Unit::Bytes => beside(report, mode, websocket::NAME, BULK_SHARE_MIN),
        Unit::Requests => beside(report, mode, "kubectl", REQUESTS_SHARE_MIN),
    });
    let client = report.sizes.iter().find(|(name, _)| name == size::CLIENT).map_or(0, |(_, bytes)| *bytes);
    let others = [
        Promise::at_most("`tp connect`", report.connect_seconds, CONNECT_SECONDS_MAX, " s"),
        Promise::bytes_below("daemon at its largest", report.daemon_peak_bytes, DAEMON_BYTES_MAX, mebibytes),
        Promise::bytes_below("client binary", client, CLIENT_BYTES_MAX, megabytes),
    ];
    loads.into_iter().chain(others).collect()
}

/// What fails no run.
pub(crate) fn goals(report: &Report) -> Vec<Promise> {
    let p50 = |way| report.median_of(Mode::Requests1, way, |figure| figure.p50_us).unwrap_or(f64::NAN);
    let mut goals = vec![
        beside(report, Mode::Upload, websocket::NAME, BULK_SHARE),
        beside(report, Mode::Download, websocket::NAME, BULK_SHARE),
        Promise::at_most("p50 of requests, 1 connection", p50("tp") / p50("kubectl"), 1.0, " x kubectl"),
        beside(report, Mode::Requests8, "kubectl", 2.0),
        beside(report, Mode::Requests64, "kubectl", 2.0),
        beside(report, Mode::Connects8, "kubectl", 5.0),
    ];
    for it in &report.several {
        let what = format!("{}, {} flows", it.mode.key(), several::FLOWS);
        goals.push(Promise::at_least(&what, it.tp / it.websockets, BULK_SHARE, " x as many websockets"));
        goals.push(Promise::at_least(&format!("{what}, fairness"), it.fairness, FAIRNESS, ""));
    }
    for it in report.far.iter().filter(|it| it.distance.key == "rtt20") {
        let what = format!("{}, {}", it.mode.title(), it.distance.title);
        goals.push(Promise::at_least(&what, it.tp / it.websocket, BULK_SHARE, " x websocket"));
    }
    let mixed = report.mixed.loaded_p99_us / report.mixed.idle_p99_us;
    goals.push(Promise::at_most("p99 of requests beside bulk", mixed, MIXED_TIMES, " x without"));
    let many = &report.many_flows;
    let (flows, busy) = (memory::FLOWS, memory::BUSY);
    let open = format!("daemon with {flows} flows, {busy} busy");
    goals.push(Promise::bytes_below("daemon without flows", many.idle, DAEMON_BYTES[0], mebibytes));
    goals.push(Promise::bytes_below(&open, many.open, DAEMON_BYTES[1], mebibytes));
    goals.push(Promise::bytes_below(&format!("daemon with {flows} busy"), many.busy, DAEMON_BYTES[2], mebibytes));
    goals.extend(report.alone.iter().map(alone));
    goals
}

/// tp beside another way.
fn beside(report: &Report, mode: Mode, way: &str, least: f64) -> Promise {
    let ratio = report.ratio(mode, way).unwrap_or(f64::NAN);
    Promise::at_least(mode.title(), ratio, least, &format!(" x {way}"))
}

fn alone(alone: &Alone) -> Promise {
    let least = if alone.is_bulk() { ALONE_BYTES_PER_SECOND } else { ALONE_REQUESTS_PER_SECOND };
    let measured = alone.per_core();
    let text = format!("the stack alone, {}, {} flows: {} on one core", alone.load, alone.flows, alone.text(measured));
    Promise { text: format!("{text}, at least {}", alone.text(least)), is_kept: measured >= least }
}
