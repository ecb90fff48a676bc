//! Loads by a few lines of Perl and by `tp-sample bench`, in a container.

use std::time::Duration;

use serde_json::Value;
use tp_tests::docker::{Container, Spec, logs};
use tp_tests::test::Connection;
use tp_tests::wait::until;

use crate::route::{Opened, Route};
use crate::target::{HTTP, SINK, SOURCE, Target};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// One flow to the pod.
    Upload,
    /// One flow from the pod.
    Download,
    /// Requests of 1 kB on one kept-alive connection.
    Requests1,
    /// The same on eight connections.
    Requests8,
    /// The same on 64 connections.
    Requests64,
    /// A connection per request, eight at once.
    Connects8,
}

impl Mode {
    pub(crate) const ALL: [Self; 6] =
        [Self::Upload, Self::Download, Self::Requests1, Self::Requests8, Self::Requests64, Self::Connects8];

    /// For people.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Upload => "upload, 1 flow",
            Self::Download => "download, 1 flow",
            Self::Requests1 => "1 kB requests, 1 kept-alive connection",
            Self::Requests8 => "1 kB requests, 8 kept-alive connections",
            Self::Requests64 => "1 kB requests, 64 kept-alive connections",
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
            Self::Requests64 => "requests64",
            Self::Connects8 => "connects8",
        }
    }

    /// What is counted per second.
    pub(crate) fn unit(self) -> Unit {
        match self {
            Self::Upload | Self::Download => Unit::Bytes,
            Self::Requests1 | Self::Requests8 | Self::Requests64 | Self::Connects8 => Unit::Requests,
        }
    }

    /// The target's port for it.
    pub(crate) fn port(self) -> u16 {
        match self {
            Self::Upload => SINK,
            Self::Download => SOURCE,
            Self::Requests1 | Self::Requests8 | Self::Requests64 | Self::Connects8 => HTTP,
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
    /// The time that one in a hundred exceeds.
    pub(crate) p99_us: Option<f64>,
}

/// A load that runs.
pub(crate) struct Running {
    container: Container,
    _way: Opened,
    mode: Mode,
    seconds: u32,
}

/// Runs one load.
pub(crate) fn run(route: &Route<'_>, target: &Target, mode: Mode, seconds: u32) -> Figure {
    start(route, target, mode, seconds).wait()
}

/// Starts one load.
pub(crate) fn start(route: &Route<'_>, target: &Target, mode: Mode, seconds: u32) -> Running {
    let opened = route.open(target, mode.port());
    let length = seconds.to_string();
    let spec = match mode {
        Mode::Upload => bulk(&opened.address, &length, UPLOAD),
        Mode::Download => bulk(&opened.address, &length, DOWNLOAD),
        Mode::Requests1 => sample(&opened.address, &length, "requests", "1"),
        Mode::Requests8 => sample(&opened.address, &length, "requests", "8"),
        Mode::Requests64 => sample(&opened.address, &length, "requests", "64"),
        Mode::Connects8 => sample(&opened.address, &length, "connects", "8"),
    };
    Running { container: spec.network(&opened.network).start(), _way: opened, mode, seconds }
}

/// What the sample's loader says of `flows` flows that move bulk through one connection.
pub(crate) fn moved(connection: &Connection<'_>, target: &Target, mode: Mode, flows: u16, seconds: u32) -> Value {
    let opened = Route::tp(connection).open(target, mode.port());
    let load = sample(&opened.address, &seconds.to_string(), mode.key(), &flows.to_string());
    load.network(&opened.network).start().wait(Duration::from_secs(u64::from(seconds) + 20)).json()
}

impl Running {
    /// Waits until a transfer counts: a second after its begin.
    pub(crate) fn has_begun(&self) {
        until(Duration::from_secs(20), "the transfer to begin", || {
            let log = logs(self.container.id(), "all");
            if log.contains(BEGUN) { Ok(()) } else { Err(log) }
        });
    }

    /// Waits for its end.
    pub(crate) fn wait(self) -> Figure {
        let outcome = self.container.wait(Duration::from_secs(u64::from(self.seconds) + 20));
        match self.mode.unit() {
            Unit::Bytes => {
                let per_second = outcome.ok();
                let per_second = per_second.parse().unwrap_or_else(|e| panic!("{e}: {per_second}"));
                Figure { per_second, p50_us: None, p99_us: None }
            }
            Unit::Requests => {
                let figures = outcome.json();
                let number = |name: &str| figures[name].as_f64();
                let per_second = number("requests_per_second").unwrap_or_else(|| panic!("no sum in {figures}"));
                Figure { per_second, p50_us: number("p50_us"), p99_us: number("p99_us") }
            }
        }
    }
}

/// One flow, by a client that only sends or only receives, and never waits for an answer to its half-close: `kubectl
/// port-forward` does not carry that, and iperf3 and the sink's receipt depend on it. The first second does not count:
/// until the buffers on the way are full, sending is no transfer.
fn bulk(address: &str, seconds: &str, transfer: &str) -> Spec {
    const CLIENT: &str = r#"
        use IO::Socket::INET;
        use Time::HiRes qw(time);
        my ($address, $seconds, $transfer) = @ARGV;
        my $s = IO::Socket::INET->new(PeerAddr => $address, Timeout => 5) or die "cannot connect to $address: $!";
        my $block = "x" x 131072;
        syswrite $s, "\n" if $transfer eq "download";
        my ($start, $bytes) = (time + 1, 0);
        for my $end ($start, $start + $seconds) {
            warn "counting\n" if $bytes;
            $bytes = 0;
            while (time < $end) {
                my $len = $transfer eq "upload" ? syswrite $s, $block : sysread $s, $block, 262144;
                $len or die "the transfer broke off: $!";
                $bytes += $len;
            }
        }
        print $bytes / (time - $start), "\n";
    "#;
    Spec::client().command(["perl", "-e", CLIENT, address, seconds, transfer])
}

/// What the client says when it begins to count.
const BEGUN: &str = "counting";
const UPLOAD: &str = "upload";
const DOWNLOAD: &str = "download";

/// A load by `tp-sample`, for as many seconds.
pub(crate) fn sample(address: &str, seconds: &str, mode: &str, connections: &str) -> Spec {
    Spec::sample(["bench", "--mode", mode, "--connections", connections, "--seconds", seconds, "--target", address])
}
