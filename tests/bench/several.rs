//! Several flows at once: what they come to together, and whether each gets its share.

use std::time::Duration;

use tp_tests::test::Connection;

use crate::load::{self, Mode};
use crate::report::median;
use crate::route::Route;
use crate::target::Target;
use crate::websocket;

/// Flows at once.
pub(crate) const FLOWS: u16 = 8;

/// Medians of flows through one connection, and of as many bare WebSockets; sums in bytes per second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Several {
    pub(crate) mode: Mode,
    pub(crate) websockets: f64,
    pub(crate) tp: f64,
    /// Jain's index of what each of tp's flows has moved.
    pub(crate) fairness: f64,
}

/// Measures both directions.
pub(crate) fn measure(connection: &Connection<'_>, target: &Target, rounds: u32, seconds: u32) -> Vec<Several> {
    [Mode::Upload, Mode::Download].map(|mode| both_ways(mode, connection, target, rounds, seconds)).to_vec()
}

fn both_ways(mode: Mode, connection: &Connection<'_>, target: &Target, rounds: u32, seconds: u32) -> Several {
    let (mut websockets, mut tp, mut fairness) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let figures = through_tp(mode, connection, target, seconds);
        let number = |name: &str| figures[name].as_f64().unwrap_or_else(|| panic!("no {name} in {figures}"));
        tp.push(number("bytes_per_second"));
        fairness.push(number("fairness"));
        websockets.push(websocket::several(target, mode, seconds, FLOWS));
    }
    Several { mode, websockets: median(websockets), tp: median(tp), fairness: median(fairness) }
}

fn through_tp(mode: Mode, connection: &Connection<'_>, target: &Target, seconds: u32) -> serde_json::Value {
    let opened = Route::tp(connection).open(target, mode.port());
    let load = load::sample(&opened.address, &seconds.to_string(), mode.key(), &FLOWS.to_string());
    load.network(&opened.network).start().wait(Duration::from_secs(u64::from(seconds) + 20)).json()
}
