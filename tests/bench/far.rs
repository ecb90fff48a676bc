//! Loads through a relay before the API server: far away, lossy, and narrow.

use tp_tests::docker::Container;
use tp_tests::test::{Scope, Test};

use crate::load::{self, Figure, Mode};
use crate::report::median;
use crate::route::Route;
use crate::target::Target;
use crate::websocket;

/// A way to the API server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Distance {
    /// For people.
    pub(crate) title: &'static str,
    /// For programs.
    pub(crate) key: &'static str,
    relay: &'static [&'static str],
}

/// The distances over which bulk is measured.
pub(crate) const DISTANCES: [Distance; 3] = [
    Distance { title: "20 ms round trip", key: "rtt20", relay: &["--delay-ms", "10"] },
    Distance { title: "80 ms round trip", key: "rtt80", relay: &["--delay-ms", "40"] },
    Distance {
        title: "20 ms round trip, 1 % loss",
        key: "rtt20loss1",
        relay: &["--delay-ms", "10", "--loss-percent", "1"],
    },
];

/// The narrow way over which small requests run beside bulk.
const NARROW: &[&str] = &["--mbits", "200"];

/// Medians of one flow over one distance, in bytes per second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bulk {
    pub(crate) distance: Distance,
    pub(crate) mode: Mode,
    pub(crate) websocket: f64,
    pub(crate) tp: f64,
}

/// Small requests without and with two downloads beside them, through 200 Mbit/s.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mixed {
    pub(crate) idle_p99_us: f64,
    pub(crate) loaded_p99_us: f64,
    /// What the downloads came to together, bytes per second.
    pub(crate) bulk_per_second: f64,
}

/// A relay, and a connection through it.
struct Relayed<'t> {
    scope: Scope<'t>,
    relay: Container,
}

impl<'t> Relayed<'t> {
    fn connect(test: &'t Test, relay: &[&str]) -> Self {
        let scope = test.scope();
        let relay = scope.connect_through_relay(relay);
        Self { scope, relay }
    }

    fn route(&self) -> Route<'static> {
        Route::joined(self.scope.container())
    }

    fn quit(self) {
        self.scope.tp(["quit"]).run().ok();
    }
}

/// Measures bulk over all distances.
pub(crate) fn bulk(test: &Test, target: &Target, rounds: u32, seconds: u32) -> Vec<Bulk> {
    let mut all = Vec::new();
    for distance in DISTANCES {
        let relayed = Relayed::connect(test, distance.relay);
        for mode in [Mode::Upload, Mode::Download] {
            let (mut tp, mut bare) = (Vec::new(), Vec::new());
            for _ in 0..rounds {
                tp.push(load::run(&relayed.route(), target, mode, seconds).per_second);
                let figure = websocket::run(target, mode, seconds, Some(&relayed.relay.bridge_ip()));
                bare.extend(figure.map(|figure: Figure| figure.per_second));
            }
            all.push(Bulk { distance, mode, websocket: median(bare), tp: median(tp) });
        }
        relayed.quit();
    }
    all
}

/// Measures small requests beside bulk.
pub(crate) fn mixed(test: &Test, target: &Target, rounds: u32, seconds: u32) -> Mixed {
    let relayed = Relayed::connect(test, NARROW);
    let route = relayed.route();
    let (mut idle, mut loaded, mut bulk) = (Vec::new(), Vec::new(), Vec::new());
    let p99 = |figure: Figure| figure.p99_us.expect("requests have a p99");
    for _ in 0..rounds {
        idle.push(p99(load::run(&route, target, Mode::Requests1, seconds)));
        // The downloads begin and end around the requests.
        let downloads = [(); 2].map(|()| load::start(&route, target, Mode::Download, seconds + 4));
        downloads.iter().for_each(load::Running::has_begun);
        loaded.push(p99(load::run(&route, target, Mode::Requests1, seconds)));
        bulk.push(downloads.into_iter().map(|download| download.wait().per_second).sum());
    }
    relayed.quit();
    Mixed { idle_p99_us: median(idle), loaded_p99_us: median(loaded), bulk_per_second: median(bulk) }
}
