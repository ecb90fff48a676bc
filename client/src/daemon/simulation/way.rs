//! The way between a container and the API server.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::time::{Instant, sleep_until};

/// A small generator, so that a seed names a run (SplitMix64, Steele, Lea and Flood 2014).
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Up to `max` bytes, often few.
    pub(super) fn bytes(&mut self, max: u64) -> Vec<u8> {
        let most = 1 + (max >> self.below(12));
        let len = self.below(most);
        let mut bytes = Vec::with_capacity(len as usize + 8);
        while bytes.len() < len as usize {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len as usize);
        bytes
    }
}

/// What a way does to the byte streams on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    /// One way.
    delay: Duration,
    /// Of a thousand pieces, so many are late by a round trip, and all behind them.
    losses: u64,
    /// A byte stream is cut within so many bytes, in either direction, and some of them before they have carried anything;
    /// 0: never. On one that is always cut within a message of 64 KiB nothing arrives.
    cut_within: u64,
}

impl Way {
    /// One on which nothing happens.
    pub(super) fn straight() -> Self {
        Self { delay: Duration::ZERO, losses: 0, cut_within: 0 }
    }

    pub(super) fn random(random: &mut Random) -> Self {
        Self {
            delay: Duration::from_millis(random.below(60)),
            losses: [0, 0, 10, 50][random.below(4) as usize],
            cut_within: [0, 200_000, 200_000, 2_000_000][random.below(4) as usize],
        }
    }

    /// Joins two ends until the byte stream is cut or both have closed it.
    pub(super) async fn join(self, mut random: Random, near: DuplexStream, far: DuplexStream) {
        let (near_read, near_write) = tokio::io::split(near);
        let (far_read, far_write) = tokio::io::split(far);
        let limit = |random: &mut Random| match self.cut_within {
            0 => u64::MAX,
            within => {
                let within = if random.below(4) == 0 { 3000 } else { within };
                1 + random.below(within)
            }
        };
        let (up_limit, down_limit) = (limit(&mut random), limit(&mut random));
        let down_random = Random::new(random.next());
        tokio::select! {
            () = self.pass(random, near_read, far_write, up_limit) => {}
            () = self.pass(down_random, far_read, near_write, down_limit) => {}
        }
    }

    async fn pass(self, mut random: Random, from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>, limit: u64) {
        const PIECE_BYTES: usize = 16 << 10;
        /// What a TCP connection may have under way.
        const WINDOW_BYTES: usize = 4 << 20;
        let mut from = from.take(limit);
        let mut under_way: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
        let (mut bytes_under_way, mut latest) = (0, Instant::now());
        let mut is_open = true;
        while is_open || !under_way.is_empty() {
            let mut piece = vec![0; PIECE_BYTES];
            let due = under_way.front().map(|(due, _)| *due);
            tokio::select! {
                len = from.read(&mut piece), if is_open && bytes_under_way < WINDOW_BYTES => match len {
                    Ok(len @ 1..) => {
                        piece.truncate(len);
                        let late = if random.below(1000) < self.losses { 2 * self.delay } else { Duration::ZERO };
                        latest = latest.max(Instant::now() + self.delay + late);
                        bytes_under_way += len;
                        under_way.push_back((latest, piece));
                    }
                    Ok(0) | Err(_) => is_open = false,
                },
                () = async { sleep_until(due.unwrap_or(latest)).await }, if due.is_some() => {
                    let (_, piece) = under_way.pop_front().expect("something is due");
                    bytes_under_way -= piece.len();
                    if to.write_all(&piece).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}
