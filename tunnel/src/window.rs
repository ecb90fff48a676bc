//! How much the streams of a session's lanes may have under way to us: much while they are few, little while they are many, so that
//! readers that stand still cannot fill the memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tp_protocol::limits::{
    BULK_STREAM_WINDOW_BYTES, BULK_STREAM_WINDOW_FLOWS, STREAM_WINDOW_BYTES, STREAM_WINDOW_FLOWS,
    STREAM_WINDOW_MIN_BYTES,
};

/// Counts the open flows of a session's lanes. Clones count the same.
#[derive(Clone, Debug, Default)]
pub struct FlowCount(Arc<AtomicUsize>);

/// One open flow, until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted(FlowCount);

/// The window that each stream of a lane has.
#[derive(Debug)]
pub(crate) struct Windows {
    flows: FlowCount,
    largest: u32,
    /// Flows that may have the largest.
    few: usize,
    bytes: u32,
}

impl FlowCount {
    /// How many are open.
    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts a flow.
    pub(crate) fn count(&self) -> Counted {
        self.0.fetch_add(1, Ordering::Relaxed);
        Counted(self.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Windows {
    /// Starts with the largest window of such a lane, which has to be made with it.
    pub(crate) fn new(flows: FlowCount, lane: u32) -> Self {
        let (largest, few) = match lane {
            0 => (STREAM_WINDOW_BYTES, STREAM_WINDOW_FLOWS),
            _ => (BULK_STREAM_WINDOW_BYTES, BULK_STREAM_WINDOW_FLOWS),
        };
        Self { flows, largest, few, bytes: largest }
    }

    /// The window of each stream.
    pub(crate) fn bytes(&self) -> u32 {
        self.bytes
    }

    /// Sets the window that fits the flows there are, through `set`, which may fail and is then called again.
    pub(crate) fn tune<E>(&mut self, set: impl FnOnce(u32) -> Result<(), E>) {
        let flows = self.flows.get();
        let fitting = self.fitting(flows);
        // Grows when it would fit twice as many: a flow that comes and goes does not change it back and forth.
        let changes = fitting < self.bytes || self.fitting(2 * flows) > self.bytes;
        if changes && set(fitting).is_ok() {
            self.bytes = fitting;
        }
    }

    /// The largest window while there are few flows, and a quarter for each doubling beyond.
    fn fitting(&self, flows: usize) -> u32 {
        let doublings = flows.div_ceil(self.few).max(1).next_power_of_two().trailing_zeros();
        self.largest.checked_shr(2 * doublings).unwrap_or(0).max(STREAM_WINDOW_MIN_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuned(windows: &mut Windows) -> Option<u32> {
        let mut set = None;
        windows.tune(|bytes| {
            set = Some(bytes);
            Ok::<_, ()>(())
        });
        set
    }

    #[test]
    fn many_flows_have_small_windows_and_few_have_large_ones_again() {
        let count = FlowCount::default();
        let mut windows = Windows::new(count.clone(), 0);
        let mut flows: Vec<_> = (0..8).map(|_| count.count()).collect();
        assert_eq!(tuned(&mut windows), None);
        flows.push(count.count());
        assert_eq!(tuned(&mut windows), Some(STREAM_WINDOW_BYTES / 4));
        flows.truncate(5);
        assert_eq!(tuned(&mut windows), None, "a few flows less change nothing");
        flows.truncate(4);
        assert_eq!(tuned(&mut windows), Some(STREAM_WINDOW_BYTES));
        flows.extend((0..5000).map(|_| count.count()));
        assert_eq!(tuned(&mut windows), Some(STREAM_WINDOW_MIN_BYTES));
    }

    #[test]
    fn setting_that_fails_is_tried_again() {
        let count = FlowCount::default();
        let mut windows = Windows::new(count.clone(), 0);
        let _flows: Vec<_> = (0..100).map(|_| count.count()).collect();
        windows.tune(|_| Err(()));
        assert_eq!(tuned(&mut windows), Some(STREAM_WINDOW_MIN_BYTES));
        assert_eq!(tuned(&mut windows), None);
    }
}
