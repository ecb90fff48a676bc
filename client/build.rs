//! Embeds the Helm chart, file by file, so that `tp helm` needs no registry.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let crate_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let chart = crate_dir.join("../manager/chart");
    println!("cargo::rerun-if-changed={}", chart.display());
    let mut files = Vec::new();
    if chart.is_dir() {
        collect(&chart, &mut files)?;
    }
    files.sort();

    let mut code = String::from(
        "/// The chart's files: path inside the chart, contents.\npub(crate) const CHART: &[(&str, &[u8])] = &[\n",
    );
    for file in &files {
        let inside = file.strip_prefix(&chart).expect("collected below the chart");
        let inside = inside.to_str().expect("chart paths are ASCII").replace('\\', "/");
        let file = file.canonicalize()?;
        writeln!(code, "    ({inside:?}, include_bytes!({file:?})),").expect("writing to a string");
    }
    code.push_str("];\n");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::write(out.join("chart.rs"), code)
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}
