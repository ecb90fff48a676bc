//! Runs a target over its corpus, without cargo-fuzz: `make test` does so in the crate that the target concerns.

use std::path::Path;

/// Runs `target` over every input in `fuzz/corpus/NAME`.
///
/// # Panics
/// When there is none, or the target finds fault with one.
#[track_caller]
pub(crate) fn replay(name: &str, target: fn(&[u8])) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let corpus = here.ancestors().map(|folder| folder.join("fuzz/corpus").join(name)).find(|corpus| corpus.is_dir());
    let corpus = corpus.expect("the target has a corpus");
    let mut inputs = 0;
    for entry in std::fs::read_dir(&corpus).expect("the corpus can be listed") {
        let path = entry.expect("the corpus can be listed").path();
        // Names the input that a panic is about.
        eprintln!("{}", path.display());
        target(&std::fs::read(&path).expect("an input can be read"));
        inputs += 1;
    }
    assert!(inputs > 0, "{} is empty", corpus.display());
}
