//! The inputs that fuzzing has found, run through the parsers here.

#[path = "../../../../fuzz/targets/dns.rs"]
mod dns;
#[path = "../../../../fuzz/targets/replay.rs"]
mod replay;

use super::{cache, query, route};

#[test]
fn messages_of_the_corpus_are_read_without_fault() {
    replay::replay("dns", dns::run);
}
