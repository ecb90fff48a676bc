//! All figures, and their form for programs.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tp_tests::docker::engine;
use tp_tests::runtime::block_on;

use crate::cpu::Cost;
use crate::far::{Bulk, Mixed};
use crate::load::{Figure, Mode};
use crate::memory::ManyFlows;
use crate::netstack::Alone;
use crate::promise::{Promise, goals, promises};
use crate::several::Several;
use crate::timing::Runs;

/// All that was measured. Memory and sizes in bytes, 0 where unknown.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) machine: Value,
    loads: BTreeMap<Mode, BTreeMap<&'static str, Vec<Figure>>>,
    pub(crate) connect_seconds: f64,
    pub(crate) runs: Runs,
    pub(crate) websocket_open_seconds: f64,
    pub(crate) far: Vec<Bulk>,
    pub(crate) mixed: Mixed,
    pub(crate) several: Vec<Several>,
    pub(crate) costs: Vec<Cost>,
    pub(crate) many_flows: ManyFlows,
    pub(crate) alone: Vec<Alone>,
    pub(crate) daemon_idle_bytes: u64,
    pub(crate) daemon_busy_bytes: u64,
    pub(crate) daemon_peak_bytes: u64,
    pub(crate) manager_bytes: Option<u64>,
    pub(crate) sizes: Vec<(String, u64)>,
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

    /// The median over the rounds of one load on one way.
    pub(crate) fn median_of(&self, mode: Mode, way: &str, value: impl Fn(&Figure) -> Option<f64>) -> Option<f64> {
        let values: Vec<_> = self.loads.get(&mode)?.get(way)?.iter().filter_map(value).collect();
        (!values.is_empty()).then(|| median(values))
    }

    /// Bytes or requests.
    pub(crate) fn per_second(&self, mode: Mode, way: &str) -> Option<f64> {
        self.median_of(mode, way, |figure| Some(figure.per_second))
    }

    /// tp's figure over another way's.
    pub(crate) fn ratio(&self, mode: Mode, way: &str) -> Option<f64> {
        Some(self.per_second(mode, "tp")? / self.per_second(mode, way)?)
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
        let kept = |promises: Vec<Promise>| promises.iter().map(Promise::json).collect::<Vec<_>>();
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
            "several": self.several.iter().map(|it| json!({
                "load": it.mode.key(),
                "websockets_per_second": it.websockets,
                "tp_per_second": it.tp,
                "fairness": it.fairness,
            })).collect::<Vec<_>>(),
            "cpu_seconds_per_gbit": self.costs.iter().map(|it| json!({
                "load": it.mode.key(),
                "daemon": it.daemon,
                "manager": it.manager,
            })).collect::<Vec<_>>(),
            "netstack": self.alone.iter().map(|it| json!({
                "load": it.load,
                "flows": it.flows,
                "per_second": it.per_second,
                "core_share": it.core_share,
                "kernel_share": it.kernel_share,
            })).collect::<Vec<_>>(),
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
                "daemon_fresh": self.many_flows.idle,
                "daemon_1000_open": self.many_flows.open,
                "daemon_1000_busy": self.many_flows.busy,
                "per_idle_flow": self.many_flows.per_flow,
            },
            "size_bytes": self.sizes.iter().map(|(name, bytes)| (name.clone(), json!(bytes))).collect::<Value>(),
            "promises": kept(promises(self)),
            "targets": kept(goals(self)),
        })
    }
}
