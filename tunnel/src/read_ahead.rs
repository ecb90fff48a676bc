//! Bounds what is read from sockets and has not gone out on a lane yet.
//!
//! A flow's window bounds what its reader can hold back, but a thousand flows that the lane is too slow for have a thousand
//! windows. So all flows of a session share one budget. A block counts until HTTP/2 has written it: the permit is inside of
//! what it writes. Where the budget is used up, each flow may still have one small block under way, so that answers of a few
//! kilobytes pass what is much.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What a session's flows may have read ahead.
const SESSION_BYTES: usize = 16 << 20;

/// The block that each flow may have beside that.
const SMALL_BYTES: usize = 4 << 10;

/// The budget of a session. Clones share it.
#[derive(Clone, Debug)]
pub struct ReadAhead(Arc<Semaphore>);

/// One flow's part in it.
#[derive(Debug)]
pub(crate) struct Share {
    session: Arc<Semaphore>,
    small: Arc<Semaphore>,
}

/// Leave to read one block.
#[derive(Debug)]
pub(crate) struct Leave {
    len: usize,
    permit: OwnedSemaphorePermit,
}

/// A block that gives its permit back when it is dropped.
struct Counted {
    data: Vec<u8>,
    _permit: OwnedSemaphorePermit,
}

impl Default for ReadAhead {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(SESSION_BYTES)))
    }
}

impl ReadAhead {
    pub(crate) fn share(&self) -> Share {
        Share { session: Arc::clone(&self.0), small: Arc::new(Semaphore::new(1)) }
    }
}

impl Share {
    /// Waits for leave to read up to `len` bytes, or less when there is not so much to be had.
    pub(crate) async fn leave(&self, len: usize) -> Leave {
        let wanted = u32::try_from(len).unwrap_or(u32::MAX);
        if let Ok(permit) = Arc::clone(&self.session).try_acquire_many_owned(wanted) {
            return Leave { len, permit };
        }
        tokio::select! {
            biased;
            Ok(permit) = Arc::clone(&self.small).acquire_owned() => Leave { len: len.min(SMALL_BYTES), permit },
            Ok(permit) = Arc::clone(&self.session).acquire_many_owned(wanted) => Leave { len, permit },
            else => unreachable!("neither semaphore is ever closed"),
        }
    }
}

impl Leave {
    /// Bytes that may be read.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Turns what was read into something to send. It holds no more memory than twice its length.
    pub(crate) fn spend(mut self, mut data: Vec<u8>) -> Bytes {
        if data.len() < data.capacity() / 2 {
            data.shrink_to_fit();
        }
        // What was not used; the small permit is one, and stays.
        let unused = self.permit.num_permits().saturating_sub(data.len().max(1));
        drop(self.permit.split(unused));
        Bytes::from_owner(Counted { data, _permit: self.permit })
    }
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_block_counts_until_it_has_gone_out() {
        let session = ReadAhead::default();
        let leave = session.share().leave(1000).now_or_never().unwrap();
        assert_eq!(leave.len(), 1000);
        let block = leave.spend(vec![7; 100]);
        assert_eq!(session.0.available_permits(), SESSION_BYTES - 100, "what was not read is free at once");
        let rest = block.slice(50..);
        drop(block);
        assert_eq!(session.0.available_permits(), SESSION_BYTES - 100);
        drop(rest);
        assert_eq!(session.0.available_permits(), SESSION_BYTES);
    }

    #[test]
    fn a_flow_has_one_small_block_when_others_have_used_all_up() {
        let session = ReadAhead::default();
        let much = session.share().leave(SESSION_BYTES).now_or_never().unwrap();
        let share = session.share();
        let small = share.leave(64 << 10).now_or_never().unwrap();
        assert_eq!(small.len(), SMALL_BYTES);
        let block = small.spend(vec![0; SMALL_BYTES]);
        let mut next = Box::pin(share.leave(64 << 10));
        assert!(next.as_mut().now_or_never().is_none());
        drop(block);
        assert_eq!(next.now_or_never().unwrap().len(), SMALL_BYTES);
        drop(much);
        assert_eq!(share.leave(64 << 10).now_or_never().unwrap().len(), 64 << 10);
    }
}
