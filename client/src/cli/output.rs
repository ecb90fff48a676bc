//! Data on stdout.

use std::io::{self, Write as _};

use crate::error::{CliError, Result};

/// How a command prints its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON document, whose keys stay the same from release to release; new ones may come.
    Json,
}

/// Writes `text` to stdout. A reader that has seen enough (`| head`) is no failure.
///
/// # Errors
/// When stdout cannot take it, for a full disk.
pub(super) fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(e) => Err(CliError::user(format!("cannot write to standard output: {e}")).because(&e)),
    }
}

/// Writes a value as indented JSON to stdout.
///
/// # Errors
/// As [`print()`].
pub(super) fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).expect("the keys are strings");
    print(&format!("{text}\n"))
}

/// A number of bytes as people read it.
pub(super) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut scaled = bytes;
    let mut rest = 0;
    let mut unit = 0;
    while scaled >= 1024 && unit + 1 < UNITS.len() {
        rest = scaled % 1024;
        scaled /= 1024;
        unit += 1;
    }
    if unit == 0 || scaled >= 100 {
        return format!("{scaled} {}", UNITS[unit]);
    }
    format!("{scaled}.{} {}", rest * 10 / 1024, UNITS[unit])
}

/// The time since `seconds` (since 1970), as people read it.
pub(super) fn human_since(seconds: i64, now: jiff::Timestamp) -> String {
    let elapsed = now.as_second().saturating_sub(seconds).max(0);
    match elapsed {
        0..60 => format!("{elapsed}s"),
        60..3_600 => format!("{}m{}s", elapsed / 60, elapsed % 60),
        3_600..86_400 => format!("{}h{}m", elapsed / 3_600, elapsed % 3_600 / 60),
        _ => format!("{}d{}h", elapsed / 86_400, elapsed % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_short() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (200 << 20, "200 MiB"), (5 << 40, "5.0 TiB")]
        {
            assert_eq!(human_bytes(bytes), text);
        }
        let now = jiff::Timestamp::from_second(1_000_000).unwrap();
        for (ago, text) in [(0, "0s"), (59, "59s"), (61, "1m1s"), (3_660, "1h1m"), (90_000, "1d1h"), (-5, "0s")] {
            assert_eq!(human_since(1_000_000 - ago, now), text);
        }
    }
}
