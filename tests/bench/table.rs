//! The figures for people.

use std::fmt;

use crate::cpu::Cost;
use crate::far::{Bulk, Mixed};
use crate::load::{Mode, Unit};
use crate::memory::{self, ManyFlows};
use crate::netstack::Alone;
use crate::promise::{goals, promises};
use crate::report::Report;
use crate::several::{self, Several};
use crate::timing::Runs;
use crate::websocket;

/// Columns, from the nearest to the way of which all are measured.
const WAYS: [&str; 4] = ["direct", websocket::NAME, "kubectl", "tp"];

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
        writeln!(f, "\n| {} flows at once | bare WebSockets | tp | tp : WebSockets | fairness |", several::FLOWS)?;
        writeln!(f, "|---|---|---|---|---|")?;
        for Several { mode, websockets, tp, fairness } in &self.several {
            let [bare, ours] = [websockets, tp].map(|bytes| gbits(*bytes));
            writeln!(f, "| {} | {bare} | {ours} | {:.2} | {fairness:.3} |", mode.key(), tp / websockets)?;
        }
        writeln!(f, "\n| through 200 Mbit/s | |\n|---|---|")?;
        writeln!(f, "| p99 of 1 kB requests, 1 kept-alive connection | {:.1} ms |", idle_p99_us / 1e3)?;
        writeln!(f, "| the same beside two downloads | {:.1} ms |", loaded_p99_us / 1e3)?;
        writeln!(f, "| the downloads together | {:.0} Mbit/s |", bulk_per_second * 8.0 / 1e6)?;
        writeln!(f, "\n| CPU for each Gbit | daemon | manager |\n|---|---|---|")?;
        for Cost { mode, daemon, manager } in &self.costs {
            let manager = manager.map_or("not measured".to_owned(), |seconds| format!("{seconds:.2} s"));
            writeln!(f, "| {} | {daemon:.2} s | {manager} |", mode.title())?;
        }
        if !self.alone.is_empty() {
            writeln!(
                f,
                "\n| the stack alone | measured | by this share of a core | of it in the kernel | with a whole core |"
            )?;
            writeln!(f, "|---|---|---|---|---|")?;
        }
        for alone in &self.alone {
            let Alone { load, flows, per_second, core_share, kernel_share } = alone;
            let [measured, whole] = [*per_second, alone.per_core()].map(|value| alone.text(value));
            let [busy, kernel] = [core_share, kernel_share].map(|share| format!("{:.0} %", share * 100.0));
            writeln!(f, "| {load}, {flows} flows | {measured} | {busy} | {kernel} | {whole} |")?;
        }
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
        let ManyFlows { idle, per_flow, open, busy } = self.many_flows;
        writeln!(f, "| daemon container's memory, fresh | {} |", mebibytes(idle))?;
        writeln!(f, "| with {} flows open, {} of them busy | {} |", memory::FLOWS, memory::BUSY, mebibytes(open))?;
        writeln!(f, "| with {} flows busy | {} |", memory::FLOWS, mebibytes(busy))?;
        writeln!(f, "| for each idle flow | {:.1} KiB |", per_flow as f64 / 1024.0)?;
        let manager = self.manager_bytes.map_or("not measured".to_owned(), mebibytes);
        writeln!(f, "| manager's memory after the loads | {manager} |")?;
        for (name, bytes) in &self.sizes {
            writeln!(f, "| size of {name} | {} |", megabytes(*bytes))?;
        }
        for (title, promises) in [("Promises", promises(self)), ("Targets", goals(self))] {
            writeln!(f, "\n{title}:")?;
            promises.iter().try_for_each(|promise| writeln!(f, "{promise}"))?;
        }
        Ok(())
    }
}

impl Report {
    fn cell(&self, mode: Mode, way: &str) -> String {
        let Some(per_second) = self.per_second(mode, way) else { return String::new() };
        match (mode.unit(), self.median_of(mode, way, |figure| figure.p50_us)) {
            (Unit::Bytes, _) => gbits(per_second),
            (Unit::Requests, None) => format!("{per_second:.0}/s"),
            (Unit::Requests, Some(p50)) => format!("{per_second:.0}/s, {:.2} ms", p50 / 1e3),
        }
    }
}

/// Bytes per second as people compare networks.
pub(crate) fn gbits(bytes_per_second: f64) -> String {
    format!("{:.2} Gbit/s", bytes_per_second * 8.0 / 1e9)
}

/// Bytes as kernels count them.
pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Bytes as downloads are counted.
pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
