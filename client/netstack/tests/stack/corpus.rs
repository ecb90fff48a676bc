//! The inputs that fuzzing has found, run through the stack.

#[path = "../../../../fuzz/targets/packets.rs"]
pub(crate) mod packets;
#[path = "../../../../fuzz/targets/replay.rs"]
mod replay;

#[test]
fn packets_of_the_corpus_leave_the_stack_serving() {
    replay::replay("packets", packets::run);
}
