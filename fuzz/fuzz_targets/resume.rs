#![no_main]

#[path = "../targets/resume.rs"]
mod resume;

libfuzzer_sys::fuzz_target!(|data: &[u8]| resume::run(data));
