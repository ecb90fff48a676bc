//! Waits between attempts to get a lost lane back.

use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};

/// Wait before the second attempt; doubles up to the next constant.
const MIN: Duration = Duration::from_millis(100);

/// Longest wait between two attempts.
const MAX: Duration = Duration::from_secs(2);

/// The next wait.
pub(crate) struct Backoff(Duration);

impl Backoff {
    /// Starts with the shortest wait.
    pub(crate) fn new() -> Self {
        Self(MIN)
    }

    /// Waits, longer each time.
    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(jittered(self.0)).await;
        self.0 = (self.0 * 2).min(MAX);
    }
}

/// Between half of `wait` and all of it, so that many clients do not come back in step.
fn jittered(wait: Duration) -> Duration {
    let mut byte = [0];
    // Without randomness the wait is whole.
    let _ = SystemRandom::new().fill(&mut byte);
    wait - wait / 2 * u32::from(byte[0]) / 255
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_between_half_and_whole() {
        for _ in 0..100 {
            let wait = jittered(Duration::from_secs(2));
            assert!((Duration::from_secs(1)..=Duration::from_secs(2)).contains(&wait), "{wait:?}");
        }
    }
}
