//! The whole product, end to end: its real binary, a real engine, a real cluster, the plain user's rights.
//!
//! One module per theme. What the tests need is prepared by `make test`; `tp_tests::given` says what that is.

mod addresses;
mod bed;
mod clients;
mod engage;
mod environment;
mod errors;
mod host;
mod identity;
mod install;
mod ipv6;
mod kinds;
mod names;
mod network;
mod resume;
mod robustness;
mod security;
mod session;
mod sidecar;
mod to_pod;
mod via;
