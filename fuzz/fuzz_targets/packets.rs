#![no_main]

#[path = "../targets/packets.rs"]
mod packets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| packets::run(data));
