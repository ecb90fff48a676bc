//! The network stack alone, by its own program in a network namespace.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tp_tests::process::{Input, run};

use crate::table::gbits;

/// How long its loads may take beside their measured time: connecting ten thousand flows, and warming up.
const LIMIT: Duration = Duration::from_secs(120);

/// What one load came to.
#[derive(Clone, Debug)]
pub(crate) struct Alone {
    /// `upload`, `download` or `requests`.
    pub(crate) load: String,
    /// Flows, all of them active.
    pub(crate) flows: u64,
    /// Bytes or requests.
    pub(crate) per_second: f64,
    /// The share of one core that the stack took.
    pub(crate) core_share: f64,
    /// The kernel's part of that.
    pub(crate) kernel_share: f64,
}

impl Alone {
    /// What it comes to with one core, and nothing to wait for.
    pub(crate) fn per_core(&self) -> f64 {
        self.per_second / self.core_share
    }

    /// Whether bytes are counted.
    pub(crate) fn is_bulk(&self) -> bool {
        self.load != "requests"
    }

    /// A figure of it for people.
    pub(crate) fn text(&self, per_second: f64) -> String {
        if self.is_bulk() { gbits(per_second) } else { format!("{per_second:.0}/s") }
    }
}

/// Runs all loads.
///
/// # Errors
/// Why they cannot be run here.
pub(crate) fn measure(program: &Path, seconds: u32) -> Result<Vec<Alone>, String> {
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--net"]).arg(program).arg(seconds.to_string());
    let outcome = run(command, Input::Nothing, LIMIT);
    if outcome.code != 0 {
        return Err(outcome.stderr.trim().to_owned());
    }
    outcome.stdout.lines().map(|line| parse(line).ok_or_else(|| format!("not a figure: {line}"))).collect()
}

fn parse(line: &str) -> Option<Alone> {
    let figure: Value = serde_json::from_str(line).ok()?;
    let number = |name: &str| figure[name].as_f64();
    Some(Alone {
        load: figure["load"].as_str()?.to_owned(),
        flows: figure["flows"].as_u64()?,
        per_second: number("per_second")?,
        core_share: number("core_share")?,
        kernel_share: number("kernel_share")?,
    })
}
