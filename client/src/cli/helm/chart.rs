//! The chart that is built into tp.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::RELEASE;
use crate::error::{CliError, Result};

include!(concat!(env!("OUT_DIR"), "/chart.rs"));

/// The chart in a directory of its own, which goes away with this value.
pub(in crate::cli) struct Chart {
    path: PathBuf,
    _dir: TempDir,
}

impl Chart {
    /// Writes the chart to a temporary directory.
    ///
    /// # Errors
    /// When that cannot be written.
    pub(in crate::cli) fn unpack() -> Result<Self> {
        unpack().map_err(|e| {
            CliError::user(format!("cannot write the chart to {}: {e}", std::env::temp_dir().display())).because(&e)
        })
    }

    /// Where it is.
    pub(in crate::cli) fn path(&self) -> &Path {
        &self.path
    }
}

fn unpack() -> io::Result<Chart> {
    let dir = tempfile::Builder::new().prefix("tp-chart-").tempdir()?;
    // helm lint wants the directory to have the chart's name.
    let path = dir.path().join(RELEASE);
    for (name, contents) in CHART {
        let file = path.join(name);
        fs::create_dir_all(file.parent().expect("it is below the chart"))?;
        fs::write(file, contents)?;
    }
    Ok(Chart { path, _dir: dir })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chart_is_of_this_release() {
        let chart = Chart::unpack().unwrap();
        let text = fs::read_to_string(chart.path().join("Chart.yaml")).unwrap();
        let version = env!("CARGO_PKG_VERSION");
        assert!(text.contains(&format!("\nversion: {version}\n")), "{text}");
        assert!(text.contains(&format!("\nappVersion: {version}\n")), "{text}");
        assert!(chart.path().join("values.schema.json").is_file());
        assert!(chart.path().join("templates/statefulset.yaml").is_file());
    }

    #[test]
    fn directory_goes_away_with_the_value() {
        let chart = Chart::unpack().unwrap();
        let path = chart.path().to_owned();
        drop(chart);
        assert!(!path.exists());
    }
}
