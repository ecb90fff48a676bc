//! The lanes of a session: lane 0 for control, requests and names; behind it lanes for bulk, half of them for either direction.

use crate::limits::{BULK_LANES, BULK_STREAM_WINDOW_BYTES, COUNTER_STREAM_WINDOW_BYTES, STREAM_WINDOW_BYTES};

/// A direction of bytes, seen from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the cluster.
    Up,
    /// To the client.
    Down,
}

impl Direction {
    /// The direction that a lane for bulk is for; none for lane 0.
    pub const fn of_lane(lane: u32) -> Option<Self> {
        match lane {
            0 => None,
            1.. if lane <= BULK_LANES / 2 => Some(Self::Up),
            _ => Some(Self::Down),
        }
    }
}

/// The flow-control window that the receiver of `direction` gives each stream of a lane.
pub const fn stream_window_bytes(lane: u32, direction: Direction) -> u32 {
    match (Direction::of_lane(lane), direction) {
        (None, _) => STREAM_WINDOW_BYTES,
        (Some(Direction::Up), Direction::Up) | (Some(Direction::Down), Direction::Down) => BULK_STREAM_WINDOW_BYTES,
        (Some(Direction::Up), Direction::Down) | (Some(Direction::Down), Direction::Up) => COUNTER_STREAM_WINDOW_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_lanes_for_bulk_is_for_either_direction() {
        assert_eq!(Direction::of_lane(0), None);
        let up = (1..=BULK_LANES).filter(|&lane| Direction::of_lane(lane) == Some(Direction::Up));
        assert_eq!(up.collect::<Vec<_>>(), [1, 2]);
        assert_eq!(Direction::of_lane(BULK_LANES), Some(Direction::Down));
    }

    #[test]
    fn streams_that_stand_still_stay_within_the_budget_of_either_end() {
        for direction in [Direction::Up, Direction::Down] {
            let lanes = (1..=BULK_LANES).map(|lane| u64::from(stream_window_bytes(lane, direction)));
            let bytes = lanes.sum::<u64>() * crate::limits::BULK_FLOWS as u64;
            assert_eq!(bytes, 36 << 20);
        }
        assert_eq!(stream_window_bytes(0, Direction::Down), STREAM_WINDOW_BYTES);
    }
}
