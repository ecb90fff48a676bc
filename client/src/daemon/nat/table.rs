//! Single addresses that are seen as one of the TUN's range, for as long as somebody may use them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Addresses that are lent at once. The range has sixteen times as many, so that one that was given back is long not lent
/// again.
const CAPACITY: usize = 4096;

/// How long an address keeps its meaning after it was last named, or after its last flow.
pub(super) const HOLD: Duration = Duration::from_secs(120);

/// The lent addresses of each range are numbered from here on: the network, the TUN and the resolver are before.
const FIRST: u16 = 3;

/// The last one: the next would be the broadcast address.
const LAST: u16 = u16::MAX - 1;

/// The addresses that are lent.
///
/// Invariant: `seen` leads from each real address to its entry in `entries`, and to nothing else.
#[derive(Debug)]
pub(super) struct Table {
    /// By the address that containers see.
    entries: HashMap<IpAddr, Entry>,
    /// By the real address.
    seen: HashMap<IpAddr, IpAddr>,
    next: u16,
    capacity: usize,
}

#[derive(Debug)]
struct Entry {
    real: IpAddr,
    held_until: Instant,
    flows: usize,
}

impl Entry {
    fn is_free(&self, now: Instant) -> bool {
        self.flows == 0 && self.held_until <= now
    }
}

impl Table {
    /// An empty table; each `generation` begins elsewhere in the range.
    pub(super) fn new(generation: u32) -> Self {
        let numbers = u32::from(LAST - FIRST) + 1;
        let capacity = u32::try_from(CAPACITY).expect("a constant");
        let next = u16::try_from(generation.wrapping_mul(capacity) % numbers).expect("less than the numbers there are");
        Self { entries: HashMap::new(), seen: HashMap::new(), next: FIRST + next, capacity: CAPACITY }
    }

    /// Addresses that are lent.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The address that stands for `real` for [`HOLD`] from `now` on. The one that was unused for the longest time is taken
    /// back for it when there are too many. `None` when all are in use.
    pub(super) fn borrow(&mut self, real: IpAddr, now: Instant) -> Option<IpAddr> {
        let held_until = now + HOLD;
        if let Some(&seen) = self.seen.get(&real) {
            let entry = self.entries.get_mut(&seen).expect("the two maps fit");
            entry.held_until = entry.held_until.max(held_until);
            return Some(seen);
        }
        if self.entries.len() >= self.capacity {
            let free = self.entries.iter().filter(|(_, entry)| entry.is_free(now));
            let (&oldest, _) = free.min_by_key(|(_, entry)| entry.held_until)?;
            let entry = self.entries.remove(&oldest).expect("it was found");
            self.seen.remove(&entry.real);
        }
        let seen = self.unused(real.is_ipv4());
        self.entries.insert(seen, Entry { real, held_until, flows: 0 });
        self.seen.insert(real, seen);
        Some(seen)
    }

    /// What an address stands for.
    pub(super) fn real(&self, seen: IpAddr) -> Option<IpAddr> {
        self.entries.get(&seen).map(|entry| entry.real)
    }

    /// Counts a flow in; an address that is not lent is none of ours.
    pub(super) fn begin_use(&mut self, seen: IpAddr) {
        if let Some(entry) = self.entries.get_mut(&seen) {
            entry.flows += 1;
        }
    }

    /// Counts a flow out that was counted in.
    pub(super) fn end_use(&mut self, seen: IpAddr, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&seen) {
            entry.flows -= 1;
            entry.held_until = entry.held_until.max(now + HOLD);
        }
    }

    /// The next address that is not lent; fewer are lent than there are.
    fn unused(&mut self, is_ipv4: bool) -> IpAddr {
        loop {
            let seen = numbered(self.next, is_ipv4);
            self.next = if self.next == LAST { FIRST } else { self.next + 1 };
            if !self.entries.contains_key(&seen) {
                return seen;
            }
        }
    }
}

/// The address of the TUN's range with this number.
fn numbered(number: u16, is_ipv4: bool) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    if is_ipv4 {
        Ipv4Addr::new(198, 18, high, low).into()
    } else {
        Ipv6Addr::new(0xfd74, 0x7074, 0, 0, 0, 0, 0, number).into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::daemon::address;

    fn outside(number: u32) -> IpAddr {
        Ipv4Addr::from(0xc000_0000 + number).into()
    }

    #[test]
    fn full_table_takes_back_what_was_unused_for_longest_and_nothing_that_is_used() {
        let (mut table, start) = (Table::new(0), Instant::now());
        let first: Vec<_> = (0..4096).map(|n| table.borrow(outside(n), start).unwrap()).collect();
        assert_eq!(table.borrow(outside(9999), start), None, "all were named not long ago");
        table.begin_use(first[0]);
        let later = start + HOLD;
        table.borrow(outside(1), later);
        let new = table.borrow(outside(9999), later).unwrap();
        assert_eq!((table.real(first[0]), table.real(first[1])), (Some(outside(0)), Some(outside(1))));
        assert_eq!(first.iter().filter(|seen| table.real(**seen).is_none()).count(), 1);
        assert!(!first.contains(&new), "an address that was given back is not lent again at once");
        assert_eq!(table.len(), CAPACITY);
    }

    #[test]
    fn address_is_held_for_a_while_after_its_last_flow() {
        let (mut table, start) = (Table::new(0), Instant::now());
        let seen = table.borrow(outside(0), start).unwrap();
        table.begin_use(seen);
        let end = start + 10 * HOLD;
        table.end_use(seen, end);
        let entry = &table.entries[&seen];
        assert!(!entry.is_free(end + HOLD - Duration::from_secs(1)) && entry.is_free(end + HOLD));
    }

    #[test]
    fn each_generation_begins_elsewhere() {
        let now = Instant::now();
        let begins: Vec<_> = (0..15).map(|n| Table::new(n).borrow(outside(0), now).unwrap()).collect();
        let mut different = begins.clone();
        different.sort_unstable();
        different.dedup();
        assert_eq!(different.len(), begins.len());
    }

    /// What happens to a table.
    #[derive(Clone, Debug)]
    enum Step {
        Borrow(u32),
        Begin(usize),
        End(usize),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0_u32..20).prop_map(Step::Borrow),
            2 => any::<usize>().prop_map(Step::Begin),
            1 => any::<usize>().prop_map(Step::End),
            1 => (0_u64..200).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #[test]
        fn what_is_held_or_used_keeps_its_meaning(steps in prop::collection::vec(step(), 0..400)) {
            let (mut table, mut now) = (Table { capacity: 8, ..Table::new(3) }, Instant::now());
            let mut promised: HashMap<IpAddr, (IpAddr, Instant)> = HashMap::new();
            let mut flows: Vec<(IpAddr, IpAddr)> = Vec::new();
            for step in steps {
                match step {
                    Step::Borrow(number) => {
                        let real = outside(number);
                        if let Some(seen) = table.borrow(real, now) {
                            prop_assert!(address::is_own(seen) && seen != address::RESOLVER);
                            prop_assert_eq!(table.real(seen), Some(real));
                            promised.insert(seen, (real, now + HOLD));
                        }
                    }
                    Step::Begin(at) => {
                        let live: Vec<_> = promised.iter().filter(|(_, (_, until))| *until > now).collect();
                        if let Some((seen, (real, _))) = live.get(at % live.len().max(1)) {
                            table.begin_use(**seen);
                            flows.push((**seen, *real));
                        }
                    }
                    Step::End(at) if !flows.is_empty() => {
                        let (seen, _) = flows.swap_remove(at % flows.len());
                        table.end_use(seen, now);
                    }
                    Step::End(_) => {}
                    Step::Wait(seconds) => now += Duration::from_secs(seconds),
                }
                prop_assert!(table.len() <= table.capacity);
                for (seen, real) in &flows {
                    prop_assert_eq!(table.real(*seen), Some(*real));
                }
            }
            for (seen, (real, until)) in promised {
                prop_assert!(until <= now || table.real(seen) == Some(real));
            }
        }
    }
}
