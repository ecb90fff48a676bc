//! Bounds what is read from TCP sockets and has not gone out on a lane yet.
//!
//! A flow's window bounds what its reader can hold back, but a thousand flows that the lane is too slow for have a thousand
//! windows. So all flows of a session share one budget, and all sessions another. A block counts until HTTP/2 has written it:
//! the permits are inside of what it writes. Where a budget is used up, each flow may still have one small block under way, so
//! that answers of a few kilobytes pass what is much.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What a session's flows may have read ahead.
const SESSION_BYTES: usize = 16 << 20;

/// What the flows of all sessions of one process may have read ahead.
const ALL_BYTES: usize = 96 << 20;

/// The block that each flow may have beside that.
const SMALL_BYTES: usize = 4 << 10;

/// The budget of a session. Clones share it.
#[derive(Clone, Debug)]
pub struct ReadAhead {
    session: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

/// One flow's part in it.
#[derive(Debug)]
pub(crate) struct Share {
    budget: ReadAhead,
    small: Arc<Semaphore>,
}

/// Leave to read one block.
#[derive(Debug)]
pub(crate) struct Leave {
    len: usize,
    permits: Permits,
}

#[derive(Debug)]
enum Permits {
    /// Of as many bytes, of the session's and of all sessions' budgets.
    Counted(OwnedSemaphorePermit, OwnedSemaphorePermit),
    /// The flow's only one.
    Small { _one: OwnedSemaphorePermit },
}

/// A block that gives its permits back when it is dropped.
struct Block {
    data: Vec<u8>,
    _permits: Permits,
}

impl Default for ReadAhead {
    /// Of the only session of its process.
    fn default() -> Self {
        Self { session: Arc::new(Semaphore::new(SESSION_BYTES)), all: Arc::new(Semaphore::new(ALL_BYTES)) }
    }
}

impl ReadAhead {
    /// The budget of another session of the same process.
    #[must_use]
    pub fn of_another_session(&self) -> Self {
        Self { all: Arc::clone(&self.all), ..Self::default() }
    }

    pub(crate) fn share(&self) -> Share {
        Share { budget: self.clone(), small: Arc::new(Semaphore::new(1)) }
    }

    fn try_take(&self, bytes: u32) -> Option<Permits> {
        let session = Arc::clone(&self.session).try_acquire_many_owned(bytes).ok()?;
        let all = Arc::clone(&self.all).try_acquire_many_owned(bytes).ok()?;
        Some(Permits::Counted(session, all))
    }

    async fn take(&self, bytes: u32) -> Option<Permits> {
        let session = Arc::clone(&self.session).acquire_many_owned(bytes).await.ok()?;
        let all = Arc::clone(&self.all).acquire_many_owned(bytes).await.ok()?;
        Some(Permits::Counted(session, all))
    }
}

impl Share {
    /// Waits for leave to read up to `len` bytes, or less when there is not so much to be had.
    pub(crate) async fn leave(&self, len: usize) -> Leave {
        let wanted = u32::try_from(len).unwrap_or(u32::MAX);
        if let Some(permits) = self.budget.try_take(wanted) {
            return Leave { len, permits };
        }
        tokio::select! {
            biased;
            Ok(one) = Arc::clone(&self.small).acquire_owned() => {
                Leave { len: len.min(SMALL_BYTES), permits: Permits::Small { _one: one } }
            }
            Some(permits) = self.budget.take(wanted) => Leave { len, permits },
            else => unreachable!("no semaphore is ever closed"),
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
        if let Permits::Counted(session, all) = &mut self.permits {
            for permit in [session, all] {
                drop(permit.split(permit.num_permits().saturating_sub(data.len())));
            }
        }
        Bytes::from_owner(Block { data, _permits: self.permits })
    }
}

impl AsRef<[u8]> for Block {
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
        assert_eq!(session.session.available_permits(), SESSION_BYTES - 100, "what was not read is free at once");
        let rest = block.slice(50..);
        drop(block);
        assert_eq!(session.session.available_permits(), SESSION_BYTES - 100);
        drop(rest);
        assert_eq!(session.session.available_permits(), SESSION_BYTES);
        assert_eq!(session.all.available_permits(), ALL_BYTES);
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

    #[test]
    fn sessions_that_use_theirs_up_leave_others_small_blocks() {
        let first = ReadAhead::default();
        let others: Vec<_> = (0..ALL_BYTES / SESSION_BYTES).map(|_| first.of_another_session()).collect();
        let used: Vec<_> = others.iter().map(|it| it.share().leave(SESSION_BYTES).now_or_never().unwrap()).collect();
        assert_eq!(first.share().leave(64 << 10).now_or_never().unwrap().len(), SMALL_BYTES);
        assert_eq!(first.session.available_permits(), SESSION_BYTES, "what was tried in vain is not held");
        drop(used);
        assert_eq!(first.share().leave(64 << 10).now_or_never().unwrap().len(), 64 << 10);
    }
}
