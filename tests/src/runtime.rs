//! The one async runtime behind the tests, which are ordinary functions on threads of their own.

use std::future::Future;
use std::sync::OnceLock;

use tokio::runtime::Runtime;

/// Runs `future` to its end on the shared runtime.
///
/// # Panics
/// When the runtime cannot be started.
pub fn block_on<F: Future>(future: F) -> F::Output {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().expect("the machine has threads to spare")).block_on(future)
}
