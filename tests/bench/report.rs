//! The figures: for people as tables, for programs as JSON, and against what was promised.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};
use tp_tests::docker::engine;
use tp_tests::runtime::block_on;

use crate::far::{Bulk, Mixed};
use crate::load::{Figure, Mode, Unit};
use crate::size;
use crate::timing::Runs;
use crate::websocket;

/// Bulk transfer, at least, as a share of the bare WebSocket's.
const BULK_SHARE_MIN: f64 = 0.7;
/// Requests and new connections, at least, as a share of kubectl's.
const REQUESTS_SHARE_MIN: f64 = 1.0;
/// Connecting on a warm machine.
const CONNECT_SECONDS_MAX: f64 = 2.0;
/// All processes of the daemon container, at any time.
const DAEMON_BYTES_MAX: u64 = 40 << 20;
/// The client binary.
const CLIENT_BYTES_MAX: u64 = 20_000_000;

/// Columns, from the nearest to the way of which all are measured.
const WAYS: [&str; 4] = ["direct", websocket::NAME, "kubectl", "tp"];

/// All that was measured. Memory and sizes in bytes, 0 where unknown.
#[derive(Debug, Default)]
pub(crate) struct Report {
    machine: Value,
    loads: BTreeMap<Mode, BTreeMap<&'static str, Vec<Figure>>>,
    pub(crate) connect_seconds: f64,
    pub(crate) runs: Runs,
    pub(crate) websocket_open_seconds: f64,
    pub(crate) far: Vec<Bulk>,
    pub(crate) mixed: Mixed,
    pub(crate) daemon_idle_bytes: u64,
    pub(crate) daemon_busy_bytes: u64,
    pub(crate) daemon_peak_bytes: u64,
    pub(crate) manager_bytes: Option<u64>,
    pub(crate) sizes: Vec<(String, u64)>,
}

/// A promise and what came of it.
struct Promise {
    text: String,
    is_kept: bool,
}

/// The middle of the sorted values.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Report {
    /// A report of this machine.
    pub(crate) fn new() -> Self {
        let info = block_on(engine().info()).expect("the engine describes itself");
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let machine = json!({
            "cores": cores,
            "kernel": info.kernel_version,
            "memory_bytes": info.mem_total,
            "engine": info.server_version,
        });
        Self { machine, ..Self::default() }
    }

    /// Adds one load.
    pub(crate) fn add(&mut self, mode: Mode, way: &'static str, figure: Figure) {
        self.loads.entry(mode).or_default().entry(way).or_default().push(figure);
    }

    fn median_of(&self, mode: Mode, way: &str, value: impl Fn(&Figure) -> Option<f64>) -> Option<f64> {
        let values: Vec<_> = self.loads.get(&mode)?.get(way)?.iter().filter_map(value).collect();
        (!values.is_empty()).then(|| median(values))
    }

    fn per_second(&self, mode: Mode, way: &str) -> Option<f64> {
        self.median_of(mode, way, |figure| Some(figure.per_second))
    }

    /// tp's figure over another way's.
    fn ratio(&self, mode: Mode, way: &str) -> Option<f64> {
        Some(self.per_second(mode, "tp")? / self.per_second(mode, way)?)
    }

    fn promises(&self) -> Vec<Promise> {
        let mut promises = Vec::new();
        let mut promise = |text: String, is_kept: bool| promises.push(Promise { text, is_kept });
        for mode in Mode::ALL {
            let (way, least) = match mode.unit() {
                Unit::Bytes => (websocket::NAME, BULK_SHARE_MIN),
                Unit::Requests => ("kubectl", REQUESTS_SHARE_MIN),
            };
            let ratio = self.ratio(mode, way).unwrap_or(f64::NAN);
            promise(format!("{}: {ratio:.2} x {way}, at least {least}", mode.title()), ratio >= least);
        }
        let seconds = self.connect_seconds;
        promise(format!("connect: {seconds:.2} s, less than {CONNECT_SECONDS_MAX} s"), seconds < CONNECT_SECONDS_MAX);
        let peak = self.daemon_peak_bytes;
        let limit = DAEMON_BYTES_MAX >> 20;
        promise(
            format!("daemon: {} at its largest, less than {limit} MiB", mebibytes(peak)),
            (1..DAEMON_BYTES_MAX).contains(&peak),
        );
        let client = self.sizes.iter().find(|(name, _)| name == size::CLIENT).map_or(0, |(_, bytes)| *bytes);
        let limit = CLIENT_BYTES_MAX / 1_000_000;
        promise(
            format!("client binary: {}, less than {limit} MB", megabytes(client)),
            (1..CLIENT_BYTES_MAX).contains(&client),
        );
        promises
    }

    /// Whether all promises are kept.
    pub(crate) fn is_met(&self) -> bool {
        self.promises().iter().all(|promise| promise.is_kept)
    }

    /// Everything for programs. Per load the median and all rounds.
    pub(crate) fn json(&self) -> Value {
        let figures = |mode: Mode, way: &str| {
            let rounds: Vec<_> = self.loads[&mode][way].iter().map(|figure| figure.per_second).collect();
            json!({
                "per_second": self.per_second(mode, way),
                "p50_us": self.median_of(mode, way, |figure| figure.p50_us),
                "rounds": rounds,
            })
        };
        let ways = |mode: Mode| self.loads[&mode].keys().map(move |way| ((*way).to_owned(), figures(mode, way)));
        let loads = self.loads.keys().map(|mode| (mode.key().to_owned(), ways(*mode).collect::<Value>()));
        json!({
            "machine": self.machine,
            "loads": loads.collect::<Value>(),
            "far": self.far.iter().map(|it| json!({
                "distance": it.distance.key,
                "load": it.mode.key(),
                "websocket_per_second": it.websocket,
                "tp_per_second": it.tp,
            })).collect::<Vec<_>>(),
            "mixed": {
                "idle_p99_us": self.mixed.idle_p99_us,
                "loaded_p99_us": self.mixed.loaded_p99_us,
                "bulk_per_second": self.mixed.bulk_per_second,
            },
            "connect_seconds": self.connect_seconds,
            "websocket_open_seconds": self.websocket_open_seconds,
            "container_seconds": {
                "docker_run": self.runs.docker,
                "docker_run_joined": self.runs.docker_joined,
                "tp_docker_run_connected": self.runs.joined,
                "tp_docker_run_connecting": self.runs.connecting,
            },
            "memory_bytes": {
                "daemon_idle": self.daemon_idle_bytes,
                "daemon_after_loads": self.daemon_busy_bytes,
                "daemon_peak": self.daemon_peak_bytes,
                "manager_after_loads": self.manager_bytes,
            },
            "size_bytes": self.sizes.iter().map(|(name, bytes)| (name.clone(), json!(bytes))).collect::<Value>(),
            "promises": self.promises().iter().map(|it| json!({ "text": it.text, "kept": it.is_kept })).collect::<Vec<_>>(),
        })
    }

    fn cell(&self, mode: Mode, way: &str) -> String {
        let Some(per_second) = self.per_second(mode, way) else { return String::new() };
        match (mode.unit(), self.median_of(mode, way, |figure| figure.p50_us)) {
            (Unit::Bytes, _) => format!("{:.2} Gbit/s", per_second * 8.0 / 1e9),
            (Unit::Requests, None) => format!("{per_second:.0}/s"),
            (Unit::Requests, Some(p50)) => format!("{per_second:.0}/s, {:.2} ms", p50 / 1e3),
        }
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// Tables in Markdown.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = |name: &str| self.machine[name].to_string().trim_matches('"').to_owned();
        writeln!(f, "{} cores, kernel {}, Docker {}\n", field("cores"), field("kernel"), field("engine"))?;
        writeln!(f, "| | direct route | bare WebSocket | kubectl port-forward | tp | tp : WebSocket | tp : kubectl |")?;
        writeln!(f, "|---|---|---|---|---|---|---|")?;
        for mode in Mode::ALL {
            let cells = WAYS.map(|way| self.cell(mode, way)).join(" | ");
            let ratio = |way| self.ratio(mode, way).map_or(String::new(), |ratio| format!("{ratio:.2}"));
            let (websocket, kubectl) = (ratio(websocket::NAME), ratio("kubectl"));
            writeln!(f, "| {} | {cells} | {websocket} | {kubectl} |", mode.title())?;
        }
        writeln!(f, "\n| through a relay | bare WebSocket | tp | tp : WebSocket |\n|---|---|---|---|")?;
        for Bulk { distance, mode, websocket, tp } in &self.far {
            let [bare, ours] = [websocket, tp].map(|bytes| format!("{:.0} Mbit/s", bytes * 8.0 / 1e6));
            writeln!(f, "| {}, {} | {bare} | {ours} | {:.2} |", mode.title(), distance.title, tp / websocket)?;
        }
        let Mixed { idle_p99_us, loaded_p99_us, bulk_per_second } = self.mixed;
        writeln!(f, "\n| through 200 Mbit/s | |\n|---|---|")?;
        writeln!(f, "| p99 of 1 kB requests, 1 kept-alive connection | {:.1} ms |", idle_p99_us / 1e3)?;
        writeln!(f, "| the same beside two downloads | {:.1} ms |", loaded_p99_us / 1e3)?;
        writeln!(f, "| the downloads together | {:.0} Mbit/s |", bulk_per_second * 8.0 / 1e6)?;
        let Runs { docker, docker_joined, joined, connecting } = self.runs;
        writeln!(f, "\n| | |\n|---|---|")?;
        writeln!(f, "| `tp connect` | {:.2} s |", self.connect_seconds)?;
        writeln!(f, "| opening one bare WebSocket | {:.0} ms |", self.websocket_open_seconds * 1e3)?;
        writeln!(f, "| `docker run` of a container that does nothing | {docker:.2} s |")?;
        writeln!(f, "| the same in another container's network | {docker_joined:.2} s |")?;
        writeln!(f, "| `tp docker-run` of it, connected before | {joined:.2} s ({:+.2} s) |", joined - docker)?;
        writeln!(
            f,
            "| `tp docker-run` of it, connecting by itself | {connecting:.2} s ({:+.2} s) |",
            connecting - docker
        )?;
        writeln!(f, "| daemon container's memory, idle | {} |", mebibytes(self.daemon_idle_bytes))?;
        writeln!(f, "| after the loads | {} |", mebibytes(self.daemon_busy_bytes))?;
        writeln!(f, "| at its largest, behind one of the loads | {} |", mebibytes(self.daemon_peak_bytes))?;
        let manager = self.manager_bytes.map_or("not measured".to_owned(), mebibytes);
        writeln!(f, "| manager's memory after the loads | {manager} |")?;
        for (name, bytes) in &self.sizes {
            writeln!(f, "| size of {name} | {} |", megabytes(*bytes))?;
        }
        writeln!(f)?;
        for Promise { text, is_kept } in self.promises() {
            writeln!(f, "{} {text}", if is_kept { "kept  " } else { "MISSED" })?;
        }
        Ok(())
    }
}
