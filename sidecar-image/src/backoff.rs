//! When to try again after a failure: doubling waits with jitter, so that agents do not all come back at once.

use std::time::Duration;

/// First wait.
const BASE: Duration = Duration::from_millis(500);

/// Longest wait: an agent is back within 5 s of the manager's return. Of 5,000 agents, about 1,700 then come each second;
/// the manager takes a few dozen at a time, and the others wait in its backlog or are refused and wait here.
const MAX: Duration = Duration::from_secs(4);

/// A connection that lasted this long was a good one: the next failure starts from [`BASE`] again.
const GOOD: Duration = Duration::from_secs(30);

/// Counts failures in a row.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Returns the wait after a connection that lasted for `lasted`, zero if there was none.
    ///
    /// `random` picks the jitter: the wait is between half and all of the doubled one.
    pub(crate) fn on_failure(&mut self, lasted: Duration, random: u16) -> Duration {
        if lasted >= GOOD {
            self.failures = 0;
        }
        let full = BASE.saturating_mul(1 << self.failures.min(16)).min(MAX);
        self.failures += 1;
        full / 2 + full.mul_f64(f64::from(random) / f64::from(u16::MAX)) / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let mut backoff = Backoff::default();
        let waits: Vec<u64> =
            (0..8).map(|_| backoff.on_failure(Duration::ZERO, u16::MAX).as_millis().try_into().unwrap()).collect();
        assert_eq!(waits, [500, 1_000, 2_000, 4_000, 4_000, 4_000, 4_000, 4_000]);
    }

    #[test]
    fn jitter_takes_at_most_half() {
        for random in [0, 1, 30_000, u16::MAX] {
            let wait = Backoff::default().on_failure(Duration::ZERO, random);
            assert!((BASE / 2..=BASE).contains(&wait), "{wait:?}");
        }
    }

    #[test]
    fn a_good_connection_starts_over_and_a_short_one_does_not() {
        let mut backoff = Backoff { failures: 5 };
        assert!(backoff.on_failure(Duration::from_secs(29), 0) > BASE);
        assert!(backoff.on_failure(GOOD, u16::MAX) == BASE);
    }

    #[test]
    fn a_long_outage_does_not_overflow() {
        let mut backoff = Backoff { failures: u32::MAX - 1 };
        assert_eq!(backoff.on_failure(Duration::ZERO, u16::MAX), MAX);
    }
}
