//! The real binary, with nothing in its environment but what the test says. No engine and no cluster is needed: where one
//! matters a small imitation answers.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "../../src/attach.rs"]
mod attach;
mod config;
mod daemon;
mod docker_run;
mod engine;
mod engine_errors;
mod environment;
mod fixture;
mod helm;
mod help;
mod kubeconfig;
mod status;
mod usage;

/// A file that is not listed above is a test that never runs.
#[test]
fn every_file_is_listed() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli");
    let listed = include_str!("main.rs");
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let is_test = path.extension().is_some_and(|extension| extension == "rs") && name != "main";
        assert!(!is_test || listed.contains(&format!("\nmod {name};\n")), "{name}.rs is not listed in main.rs");
    }
}
