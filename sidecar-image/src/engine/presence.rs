//! Whether a handler is worth a try (pure).

use tokio::time::Instant;

use super::limits::PROBE_INTERVAL;

/// What is known of a handler. While it is away, one request per [`PROBE_INTERVAL`] tries it, and the others do not wait.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Presence {
    /// It was reached last time, or never tried.
    #[default]
    Present,
    /// It was not reached.
    Away {
        /// When it is worth a try again.
        next_try: Instant,
    },
}

/// How to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// For as long as the engagement waits.
    Full,
    /// Once, briefly.
    Probe,
    /// Not at all.
    Skip,
}

impl Presence {
    /// Says how a request tries, and takes the turn when it is the one to do so.
    pub(crate) fn attempt(&mut self, now: Instant) -> Attempt {
        match self {
            Self::Present => Attempt::Full,
            Self::Away { next_try } if now >= *next_try => {
                *next_try = now + PROBE_INTERVAL;
                Attempt::Probe
            }
            Self::Away { .. } => Attempt::Skip,
        }
    }

    /// It was reached.
    pub(crate) fn on_reached(&mut self) {
        *self = Self::Present;
    }

    /// It was not reached in time.
    pub(crate) fn on_missed(&mut self, now: Instant) {
        *self = Self::Away { next_try: now + PROBE_INTERVAL };
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_request_per_interval_tries_a_handler_that_is_away() {
        let start = Instant::now();
        let mut presence = Presence::default();
        assert_eq!(presence.attempt(start), Attempt::Full);
        assert_eq!(presence.attempt(start), Attempt::Full);
        presence.on_missed(start);
        assert_eq!(presence.attempt(start + PROBE_INTERVAL - Duration::from_millis(1)), Attempt::Skip);
        assert_eq!(presence.attempt(start + PROBE_INTERVAL), Attempt::Probe);
        assert_eq!(presence.attempt(start + PROBE_INTERVAL), Attempt::Skip);
        assert_eq!(presence.attempt(start + PROBE_INTERVAL * 2), Attempt::Probe);
        presence.on_reached();
        assert_eq!(presence.attempt(start + PROBE_INTERVAL * 2), Attempt::Full);
    }
}
