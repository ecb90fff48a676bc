//! Loads by `tp-sample bench`, in a container.

use std::time::Duration;

use tp_tests::docker::Spec;

use crate::route::Route;
use crate::target::{HTTP, SINK, SOURCE, Target};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// One flow to a sink, counted by the sink.
    Upload,
    /// One flow from a source.
    Download,
    /// Requests of 1 kB on one kept-alive connection.
    Requests1,
    /// The same on eight connections.
    Requests8,
    /// A connection per request, eight at once.
    Connects8,
}

impl Mode {
    pub(crate) const ALL: [Self; 5] = [Self::Upload, Self::Download, Self::Requests1, Self::Requests8, Self::Connects8];

    /// For people.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Upload => "upload, 1 flow",
            Self::Download => "download, 1 flow",
            Self::Requests1 => "1 kB requests, 1 kept-alive connection",
            Self::Requests8 => "1 kB requests, 8 kept-alive connections",
            Self::Connects8 => "a connection per request, 8 at once",
        }
    }

    /// For programs.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Download => "download",
            Self::Requests1 => "requests1",
            Self::Requests8 => "requests8",
            Self::Connects8 => "connects8",
        }
    }

    /// What is counted per second.
    pub(crate) fn unit(self) -> Unit {
        match self {
            Self::Upload | Self::Download => Unit::Bytes,
            Self::Requests1 | Self::Requests8 | Self::Connects8 => Unit::Requests,
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Upload => SINK,
            Self::Download => SOURCE,
            Self::Requests1 | Self::Requests8 | Self::Connects8 => HTTP,
        }
    }

    /// The mode and the connections that `tp-sample bench` is given.
    fn arguments(self) -> (&'static str, &'static str) {
        match self {
            Self::Upload => ("upload", "1"),
            Self::Download => ("download", "1"),
            Self::Requests1 => ("requests", "1"),
            Self::Requests8 => ("requests", "8"),
            Self::Connects8 => ("connects", "8"),
        }
    }
}

/// What a figure counts per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Bytes,
    Requests,
}

/// One measured load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    /// Bytes or requests.
    pub(crate) per_second: f64,
    /// The median request's time, where there are requests.
    pub(crate) p50_us: Option<f64>,
}

/// Runs one load.
pub(crate) fn run(route: &Route<'_>, target: &Target, mode: Mode, seconds: u32) -> Figure {
    let opened = route.open(target, mode.port());
    let (name, connections) = mode.arguments();
    let length = seconds.to_string();
    let command =
        ["bench", "--mode", name, "--connections", connections, "--seconds", &length, "--target", &opened.address];
    let container = Spec::sample(command).network(&opened.network).start();
    let limit = Duration::from_secs(u64::from(seconds) + 20);
    let figures = container.wait(limit).json();
    let field = match mode.unit() {
        Unit::Bytes => "bytes_per_second",
        Unit::Requests => "requests_per_second",
    };
    let per_second = figures[field].as_f64().unwrap_or_else(|| panic!("no {field} in {figures}"));
    Figure { per_second, p50_us: figures["p50_us"].as_f64() }
}
