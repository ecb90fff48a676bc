//! Deadlines in a heap: the earliest is found without a look at all flows.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

/// Who is to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    Flow { index: u32, generation: u32 },
    Association { index: u32, generation: u32 },
    TimeWaits,
    SpareRings,
}

/// Deadlines of all targets.
///
/// A deadline that moves later is not moved in the heap: its owner is woken once in vain and sets it anew. So a flow's
/// retransmission timer, which moves with every segment, costs one heap operation per timeout, not per segment.
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, Target)>>,
}

/// The heap entry that a target waits for; entries that are not the latest armed one are stale.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Armed(Option<Instant>);

impl Timers {
    pub(crate) fn new() -> Self {
        Self { heap: BinaryHeap::new() }
    }

    /// Makes sure that `target` comes up at `deadline` or earlier.
    pub(crate) fn arm(&mut self, target: Target, armed: &mut Armed, deadline: Instant) {
        if armed.0.is_none_or(|at| deadline < at) {
            armed.0 = Some(deadline);
            self.heap.push(Reverse((deadline, target)));
        }
    }

    /// Takes the earliest entry that is due.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<(Instant, Target)> {
        let Reverse((at, _)) = self.heap.peek()?;
        if *at > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }

    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }

    /// Forgets the entries that `is_wanted` does not pick.
    pub(crate) fn retain(&mut self, mut is_wanted: impl FnMut(Instant, Target) -> bool) {
        self.heap.retain(|Reverse((at, target))| is_wanted(*at, *target));
        self.heap.shrink_to(2 * self.heap.len());
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }
}

impl Armed {
    /// Whether an entry of the heap is the one that was armed last.
    pub(crate) fn is_at(&self, at: Instant) -> bool {
        self.0 == Some(at)
    }

    /// Whether an entry taken from the heap is the one that was armed last; it is disarmed then.
    pub(crate) fn is_due(&mut self, at: Instant) -> bool {
        let is_due = self.0 == Some(at);
        if is_due {
            self.0 = None;
        }
        is_due
    }
}

/// The time as smoltcp has it: microseconds since an epoch that lies a second before the stack's start, because
/// smoltcp takes 0 for "at once".
#[derive(Clone, Copy)]
pub(crate) struct Epoch(Instant);

impl Epoch {
    const LEAD: Duration = Duration::from_secs(1);

    pub(crate) fn new(start: Instant) -> Self {
        Self(start)
    }

    pub(crate) fn smoltcp(self, now: Instant) -> smoltcp::time::Instant {
        let elapsed = now.saturating_duration_since(self.0) + Self::LEAD;
        smoltcp::time::Instant::from_micros(i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX))
    }

    pub(crate) fn std(self, at: smoltcp::time::Instant) -> Instant {
        let micros = u64::try_from(at.total_micros()).unwrap_or(0);
        self.0 + Duration::from_micros(micros).saturating_sub(Self::LEAD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_that_moves_later_is_armed_once() {
        #[expect(clippy::disallowed_methods, reason = "a fake clock has to start somewhere")]
        let start = Instant::now();
        let target = Target::Flow { index: 1, generation: 0 };
        let mut timers = Timers::new();
        let mut armed = Armed::default();
        for millis in 100..200 {
            timers.arm(target, &mut armed, start + Duration::from_millis(millis));
        }
        assert_eq!(timers.heap.len(), 1);
        assert_eq!(timers.next(), Some(start + Duration::from_millis(100)));
        assert_eq!(timers.pop_due(start), None);
        let (at, due) = timers.pop_due(start + Duration::from_millis(100)).expect("it is due");
        assert_eq!(due, target);
        assert!(armed.is_due(at));
        assert!(!armed.is_due(at));
    }
}
