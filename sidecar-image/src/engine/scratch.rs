//! What everything on a thread reads into: nobody keeps it while waiting, so idle connections have no buffers.

use std::cell::Cell;

use super::limits::READ_BYTES;

thread_local! {
    static SCRATCH: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// Runs `read` with [`READ_BYTES`] of room, whose contents mean nothing.
pub(crate) fn with_room<T>(read: impl FnOnce(&mut [u8]) -> T) -> T {
    let mut room = SCRATCH.take().unwrap_or_else(|| vec![0; READ_BYTES].into_boxed_slice());
    let result = read(&mut room);
    SCRATCH.set(Some(room));
    result
}
