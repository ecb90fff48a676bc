//! How many streams should wait for what comes from the other end, which cannot open any itself.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;
use tp_protocol::engage::reach::ACCEPTS;

/// Streams that wait when little comes.
pub const MIN_STANDBY: usize = 4;

/// Twice as many streams wait as have been taken within this time: longer than it takes to open one.
const RUSH: Duration = Duration::from_secs(1);

/// When the last streams were taken, which says how many should wait.
#[derive(Debug, Default)]
pub struct Standby(VecDeque<Instant>);

impl Standby {
    /// One of the streams was taken.
    pub fn on_taken(&mut self, now: Instant) {
        self.0.push_back(now);
        if self.0.len() > ACCEPTS {
            self.0.pop_front();
        }
    }

    /// How many should wait; [`ACCEPTS`] at most.
    pub fn wanted(&mut self, now: Instant) -> usize {
        while self.0.front().is_some_and(|at| now.duration_since(*at) > RUSH) {
            self.0.pop_front();
        }
        (2 * self.0.len()).clamp(MIN_STANDBY, ACCEPTS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_streams_wait_while_many_are_taken() {
        let mut standby = Standby::default();
        let start = Instant::now();
        assert_eq!(standby.wanted(start), MIN_STANDBY);
        for (taken, wanted) in [(2, MIN_STANDBY), (2, 8), (8, 24), (100, ACCEPTS)] {
            (0..taken).for_each(|_| standby.on_taken(start));
            assert_eq!(standby.wanted(start), wanted);
        }
        assert_eq!(standby.wanted(start + RUSH + Duration::from_millis(1)), MIN_STANDBY);
    }
}
