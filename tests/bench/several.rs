//! Several flows at once: what they come to together, and whether each gets its share.

use tp_tests::test::Connection;

use crate::load::{self, Mode};
use crate::report::median;
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
        let figures = load::moved(connection, target, mode, FLOWS, seconds);
        let number = |name: &str| figures[name].as_f64().unwrap_or_else(|| panic!("no {name} in {figures}"));
        tp.push(number("bytes_per_second"));
        fairness.push(number("fairness"));
        websockets.push(websocket::several(target, mode, seconds, FLOWS));
    }
    Several { mode, websockets: median(websockets), tp: median(tp), fairness: median(fairness) }
}
