//! The inputs that fuzzing has found, run through the parsers of this crate.

#[path = "../../fuzz/targets/capsules.rs"]
mod capsules;
#[path = "../../fuzz/targets/messages.rs"]
mod messages;
#[path = "../../fuzz/targets/replay.rs"]
mod replay;
#[path = "../../fuzz/targets/requests.rs"]
mod requests;
#[path = "../../fuzz/targets/resume.rs"]
mod resume;

#[test]
fn streams_of_the_corpus_are_read_without_fault() {
    for (name, target) in [
        ("capsules", capsules::run as fn(&[u8])),
        ("messages", messages::run),
        ("requests", requests::run),
        ("resume", resume::run),
    ] {
        replay::replay(name, target);
    }
}
