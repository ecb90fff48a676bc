//! The bytes that sources send: a pattern in which a lost, doubled or swapped block does not go unnoticed.

use bytes::Bytes;

/// Bytes that a source hands to its socket at once.
pub(crate) const BLOCK_BYTES: usize = 64 * 1024;

/// Length after which the pattern repeats: a prime, so that no power-of-two block looks like another.
const PERIOD: usize = 65_521;

/// A stretch of the pattern, long enough for a whole block from any offset in the period.
#[derive(Clone)]
pub(crate) struct Pattern(Bytes);

impl Pattern {
    pub(crate) fn new() -> Self {
        let byte = |i: usize| u8::try_from((i % PERIOD) * 31 / 7 % 251).expect("251 fits in a byte");
        Self((0..PERIOD + BLOCK_BYTES).map(byte).collect())
    }

    /// Returns the bytes of the pattern at `offset`, at most a block and at most `limit` of them.
    pub(crate) fn block(&self, offset: u64, limit: u64) -> Bytes {
        let start = usize::try_from(offset % PERIOD as u64).expect("less than the period");
        let len = usize::try_from(limit).unwrap_or(usize::MAX).min(BLOCK_BYTES);
        self.0.slice(start..start + len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_continue_each_other_across_the_period() {
        let pattern = Pattern::new();
        let first = pattern.block(0, 60_000);
        let second = pattern.block(60_000, u64::MAX);
        assert_eq!(first.len(), 60_000);
        assert_eq!(second.len(), BLOCK_BYTES);
        assert_eq!(second[PERIOD - 60_000], first[0]);
        assert_ne!(pattern.block(0, 100), pattern.block(BLOCK_BYTES as u64, 100));
    }
}
