//! The load client: as many connections as asked for, for as long as asked for, one JSON object of figures.

mod bulk;
mod requests;

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

/// Time for a connection to be made and for the last answer to come after the load has ended.
const GRACE: Duration = Duration::from_secs(15);

/// Load a server of `tp-sample serve`, and print the figures as one JSON object
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// What to do over and over
    #[arg(long, value_enum)]
    mode: Mode,
    /// The server's port for that mode, as HOST:PORT
    #[arg(long)]
    target: String,
    /// Connections at a time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// Length of the run
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// What to ask for in the modes `requests`, `connects` and `idle`
    #[arg(long, default_value = "/bytes?n=1024")]
    path: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Send to a sink; counts what the sink says it has received
    Upload,
    /// Receive from a source
    Download,
    /// HTTP requests on kept-alive connections
    Requests,
    /// A new connection for every HTTP request
    Connects,
    /// One HTTP request on each connection, which then stays open; says so when all have had theirs
    Idle,
}

/// What one connection's worth of load came to.
#[derive(Default)]
struct Figures {
    bytes: u64,
    /// One per request, in microseconds.
    latencies: Vec<u32>,
}

/// Runs the load and prints the figures.
pub(crate) async fn run(args: BenchArgs) -> io::Result<()> {
    let start = Instant::now();
    let end = start + Duration::from_secs(args.seconds);
    let all_open = Arc::new(Barrier::new(args.connections.into()));
    let mut connections = JoinSet::new();
    for _ in 0..args.connections {
        let (args, all_open) = (args.clone(), Arc::clone(&all_open));
        connections.spawn(tokio::time::timeout_at((end + GRACE).into(), async move {
            match args.mode {
                Mode::Upload => bulk::upload(&args.target, end).await,
                Mode::Download => bulk::download(&args.target, end).await,
                Mode::Requests => requests::kept_alive(&args.target, &args.path, end).await,
                Mode::Connects => requests::one_per_connection(&args.target, &args.path, end).await,
                Mode::Idle => requests::idle(&args.target, &args.path, end, &all_open).await,
            }
        }));
    }
    let mut total = Figures::default();
    let mut shares = Vec::new();
    while let Some(ended) = connections.join_next().await {
        let figures = ended.map_err(io::Error::other)?.map_err(|_| stalled())??;
        total.bytes += figures.bytes;
        shares.push(figures.bytes);
        total.latencies.extend(figures.latencies);
    }
    let report = report(&args, start.elapsed(), total, &shares);
    writeln!(io::stdout(), "{report}")
}

async fn connect(target: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(target)
        .await
        .map_err(|e| io::Error::new(e.kind(), format!("cannot connect to {target}: {e}")))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn stalled() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no end of the load within {} s after its time", GRACE.as_secs()))
}

/// The mode is printed as it is given on the command line; latencies are in microseconds, `shares` each connection's bytes.
fn report(args: &BenchArgs, elapsed: Duration, mut total: Figures, shares: &[u64]) -> Value {
    let seconds = elapsed.as_secs_f64();
    let mode = args.mode.to_possible_value().map(|mode| mode.get_name().to_owned());
    let mut report = json!({
        "mode": mode,
        "target": args.target,
        "connections": args.connections,
        "seconds": seconds,
        "bytes": total.bytes,
        "bytes_per_second": total.bytes as f64 / seconds,
    });
    if matches!(args.mode, Mode::Upload | Mode::Download) {
        report["fairness"] = json!(fairness(shares));
    } else {
        total.latencies.sort_unstable();
        report["requests"] = json!(total.latencies.len());
        report["requests_per_second"] = json!(total.latencies.len() as f64 / seconds);
        report["p50_us"] = json!(percentile(&total.latencies, 50));
        report["p99_us"] = json!(percentile(&total.latencies, 99));
    }
    report
}

/// Jain's index: 1 when all have the same, 1/n when one has everything (Jain, Chiu, Hawe: DEC-TR-301, 1984).
fn fairness(shares: &[u64]) -> f64 {
    let sum: f64 = shares.iter().map(|share| *share as f64).sum();
    let squares: f64 = shares.iter().map(|share| (*share as f64).powi(2)).sum();
    sum.powi(2) / (shares.len() as f64 * squares)
}

/// The nearest-rank percentile of sorted values.
fn percentile(sorted: &[u32], percent: usize) -> Option<u32> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let values: Vec<u32> = (1..=200).collect();
        assert_eq!(percentile(&values, 50), Some(100));
        assert_eq!(percentile(&values, 99), Some(198));
        assert_eq!(percentile(&values[..1], 99), Some(1));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn fairness_is_between_one_share_and_all() {
        assert_eq!(fairness(&[5, 5, 5, 5]), 1.0);
        assert_eq!(fairness(&[7, 0, 0, 0]), 0.25);
        assert_eq!(fairness(&[1, 3]), 0.8);
    }
}
