//! Figures of the built product beside those of a direct route, of `kubectl port-forward` and of one bare port-forward
//! WebSocket, all in one run on one machine: absolute figures change with the machine, ratios hardly do.
//!
//! Every load is between a container and a pod that were made for it. `docs/benchmarks.md` says what the figures mean.

mod cpu;
mod far;
mod kubelet;
mod load;
mod memory;
mod netstack;
mod promise;
mod report;
mod route;
mod several;
mod size;
mod table;
mod target;
mod timing;
mod websocket;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tp_tests::test::Test;

use load::Mode;
use promise::promises;
use report::{Report, median};
use route::Route;
use target::Target;

/// Measure the built product beside kubectl port-forward, a direct route and a bare WebSocket
#[derive(Debug, Parser)]
struct Args {
    /// Length of one load, in seconds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Loads of each kind; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// Connects and container runs of each kind; the median counts
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=50))]
    repetitions: u32,
    /// Write the figures to this file as JSON
    #[arg(long, default_value = ".tmp/bench.json")]
    output: PathBuf,
    /// The example `throughput` of the network stack, which is measured alone when this is given
    #[arg(long)]
    netstack: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let report = measure(&args);
    let folder = args.output.parent().unwrap_or(std::path::Path::new("."));
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&args.output, format!("{:#}\n", report.json())))
        .and_then(|()| writeln!(io::stdout(), "{report}\nThe same as JSON: {}", args.output.display()));
    if let Err(e) = written {
        eprintln!("tp-bench: {e}");
        return ExitCode::FAILURE;
    }
    if promises(&report).iter().all(|promise| promise.is_kept) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn measure(args: &Args) -> Report {
    let test = Test::alone();
    let mut report = Report::new();

    if let Some(program) = &args.netstack {
        say("the network stack alone");
        report.alone = netstack::measure(program, args.seconds).unwrap_or_else(|why| {
            say(&format!("not measured: {why}"));
            Vec::new()
        });
    }
    let target = Target::create();
    say("connecting, again and again");
    report.connect_seconds = timing::connects(&test.scope(), args.repetitions);
    say("running containers, again and again");
    report.runs = timing::container_runs(&test.scope(), args.repetitions);

    let connection = test.connect();
    report.daemon_idle_bytes = memory::of_daemon(&connection);
    let mut routes = vec![Route::tp(&connection), Route::kubectl(&target)];
    match Route::direct(&target) {
        Ok(direct) => routes.insert(0, direct),
        Err(why) => say(&format!("no direct route: {why}")),
    }
    for mode in Mode::ALL {
        say(mode.title());
        for _ in 0..args.rounds {
            for route in &routes {
                report.add(mode, route.name(), load::run(route, &target, mode, args.seconds));
            }
            report.daemon_peak_bytes = report.daemon_peak_bytes.max(memory::of_daemon(&connection));
            if let Some(figure) = websocket::run(&target, mode, args.seconds, None) {
                report.add(mode, websocket::NAME, figure);
            }
        }
    }
    drop(routes);
    report.websocket_open_seconds = median((0..args.repetitions).map(|_| websocket::open_seconds(&target)).collect());
    report.daemon_busy_bytes = memory::of_daemon(&connection);
    say("several flows at once");
    report.several = several::measure(&connection, &target, args.rounds, args.seconds);
    say("processor time for each Gbit");
    report.costs = cpu::per_gbit(&connection, &target, args.rounds, args.seconds);
    say("waiting for the kubelet to measure the manager");
    report.manager_bytes = memory::of_manager();
    report.sizes = size::all(&connection);
    connection.tp(["quit"]).run().ok();
    say("bulk over long ways");
    report.far = far::bulk(&test, &target, args.rounds, args.seconds);
    say("small requests beside bulk");
    report.mixed = far::mixed(&test, &target, args.rounds, args.seconds);
    say("a thousand flows");
    // The last load: what they leave in the buffers of API server and kubelet takes minutes to drain.
    report.many_flows = memory::with_many_flows(&test, &target, args.seconds);
    report
}

/// Talk goes to stderr: stdout is for the figures.
fn say(text: &str) {
    eprintln!("==> {text}");
}
