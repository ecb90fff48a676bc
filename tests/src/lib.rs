//! What the end-to-end tests and the benchmarks share: the product's real binary, the engine and the cluster, each with
//! a time limit on everything that is asked of it.
//!
//! [`given`] finds what was prepared; [`mod@test`] gives a test its turn and cleans up behind it; [`tp`] runs the binary;
//! [`docker`], [`kubectl`] and [`kubeconfig`] are the means to look at the world around it, [`host`] and [`proc`] at the
//! machine.

pub mod docker;
pub mod given;
pub mod host;
pub mod kubeconfig;
pub mod kubectl;
pub mod proc;
pub mod process;
pub mod runtime;
pub mod test;
pub mod tp;
pub mod wait;

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn every_file_of_a_test_or_benchmark_is_a_module_of_it() {
        for folder in ["e2e", "bench", "src"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
            let root =
                ["main.rs", "lib.rs"].map(|name| folder.join(name)).into_iter().find(|path| path.exists()).unwrap();
            let listed = std::fs::read_to_string(&root).unwrap();
            let mut found = 0;
            for entry in std::fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
                if path != root && path.extension().is_some_and(|extension| extension == "rs") {
                    assert!(listed.contains(&format!("mod {name};\n")), "{} is in nobody's list", path.display());
                    found += 1;
                }
            }
            assert!(found > 0, "{}", folder.display());
        }
    }
}
