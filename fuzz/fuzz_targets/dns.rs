//! The parsers belong to the binary `tp`, which is no library: their files are part of this crate too.
#![no_main]
#![expect(dead_code, reason = "not all of those files is for reading messages")]

#[path = "../../client/src/daemon/dns/cache.rs"]
mod cache;
#[path = "../targets/dns.rs"]
mod dns;
#[path = "../../client/src/daemon/dns/query.rs"]
mod query;
#[path = "../../client/src/daemon/dns/route.rs"]
mod route;
#[path = "../../client/src/daemon/dns/wire.rs"]
mod wire;

libfuzzer_sys::fuzz_target!(|data: &[u8]| dns::run(data));
