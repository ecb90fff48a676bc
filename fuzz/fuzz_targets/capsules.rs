#![no_main]

#[path = "../targets/capsules.rs"]
mod capsules;

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsules::run(data));
