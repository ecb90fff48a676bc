//! The hidden `tp daemon`: what runs in the daemon container.

use std::process::ExitCode;

/// Run a part of the daemon container
#[derive(clap::Args, Debug)]
pub(super) struct DaemonArgs {
    #[command(subcommand)]
    part: Part,
}

#[derive(clap::Subcommand, Debug)]
enum Part {
    /// Be PID 1
    Init,
    /// Be the daemon
    Run,
    /// Route subnets into the tunnel, in a container that has joined the daemon's with the right to do so
    Route {
        /// CIDR
        subnets: Vec<String>,
    },
    /// Join the CLI to the daemon
    Attach {
        /// Keep holding the connection when the daemon process is replaced
        #[arg(long)]
        hold: bool,
    },
}

/// Runs the part.
#[cfg(target_os = "linux")]
pub(super) fn run(args: &DaemonArgs) -> ExitCode {
    use crate::daemon::attach::Purpose;
    match &args.part {
        Part::Init => crate::daemon::init::run(),
        Part::Run => crate::daemon::run(),
        Part::Route { subnets } => crate::daemon::init::route(subnets),
        Part::Attach { hold } => {
            // `docker exec` gives the container's rights to root and its bounding set to everybody: only root can drop that.
            if let Err(error) = crate::daemon::init::privileges::drop_all() {
                eprintln!("cannot give up the rights of `docker exec`: {error}");
                return ExitCode::FAILURE;
            }
            let purpose = if *hold { Purpose::Hold } else { Purpose::Talk };
            super::on_runtime(crate::daemon::attach::run(purpose))
        }
    }
}

/// The daemon runs in Linux containers.
#[cfg(not(target_os = "linux"))]
pub(super) fn run(_: &DaemonArgs) -> ExitCode {
    eprintln!("tp daemon runs in a Linux container only");
    ExitCode::from(70)
}
