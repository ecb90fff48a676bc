//! Waiting for a thing to become true, never for time to pass.

use std::time::{Duration, Instant};

use crate::runtime::block_on;

/// Pause between two looks at a thing that cannot be waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Looks until `look` finds something, and returns it with the time that it took.
///
/// # Errors
/// What `look` said last, when nothing was found within `limit`.
pub fn try_until<T, E>(limit: Duration, mut look: impl FnMut() -> Result<T, E>) -> Result<(T, Duration), E> {
    let start = Instant::now();
    loop {
        match look() {
            Ok(found) => return Ok((found, start.elapsed())),
            Err(missing) if start.elapsed() >= limit => return Err(missing),
            Err(_) => block_on(async { tokio::time::sleep(LOOK_AGAIN).await }),
        }
    }
}

/// As [`try_until`], for what has to come about: `what` names it.
///
/// # Panics
/// With `what` and the last answer of `look`, when nothing was found within `limit`.
pub fn until<T>(limit: Duration, what: &str, look: impl FnMut() -> Result<T, String>) -> (T, Duration) {
    match try_until(limit, look) {
        Ok(found) => found,
        Err(missing) => panic!("{what}: not within {limit:?}: {missing}"),
    }
}
