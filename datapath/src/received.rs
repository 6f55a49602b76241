//! Which packet numbers arrived: duplicates are told, and ACK frames are made of it.
//!
//! RFC 9000 sections 12.3 and 13.2. Times are microseconds of a clock that never goes back.

use crate::varint;

/// Packet numbers below the largest that are still told apart; older ones count as duplicates.
const WINDOW: u64 = 8192;
/// Ranges that are reported; the oldest are forgotten (RFC 9000 section 13.2.3).
const MAX_RANGES: usize = 32;
/// Packets after which an ACK is due at the end of the batch.
const ACK_EVERY: u32 = 32;
/// Bounds in microseconds for how long an ACK may wait; the upper stays below the 25 ms that
/// aioquic announces as `max_ack_delay`.
const DELAY: (u64, u64) = (1_000, 20_000);
/// What aioquic announces as `ack_delay_exponent`: the default.
const DELAY_EXPONENT: u32 = 3;

/// The state of one packet number space, receiving.
#[derive(Debug)]
pub struct Received {
    /// One more than the largest number.
    next: u64,
    /// Numbers below count as received.
    floor: u64,
    seen: Box<[u64; (WINDOW / 64) as usize]>,
    /// First and last of each range, ascending.
    ranges: Vec<(u64, u64)>,
    largest_at: u64,
    /// Packets that ask for an ACK since the last one, and when one is due.
    pending: u32,
    due: Option<u64>,
}

impl Received {
    /// From what somebody else received before: ranges, first and last of each, ascending, and
    /// where its memory ends.
    pub fn new(ranges: &[(u64, u64)], floor: u64) -> Self {
        let mut received = Self {
            next: 0,
            floor,
            seen: Box::new([0; (WINDOW / 64) as usize]),
            ranges: Vec::new(),
            largest_at: 0,
            pending: 0,
            due: None,
        };
        let end = ranges.last().map_or(0, |range| range.1 + 1);
        for (low, high) in ranges {
            let low = (*low).max(end.saturating_sub(MAX_RANGES as u64 * 64));
            (low..=*high).for_each(|number| received.record(number, 0, None));
        }
        received
    }

    /// One more than the largest number received: what the next is decoded by.
    #[inline]
    pub fn next(&self) -> u64 {
        self.next
    }

    /// The ranges, first and last of each, ascending.
    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges
    }

    /// Whether `number` did not arrive before.
    #[inline]
    pub fn is_new(&self, number: u64) -> bool {
        number >= self.next
            || (number >= self.floor
                && number + WINDOW >= self.next
                && self.seen[word(number)] & bit(number) == 0)
    }

    /// Note a new packet; `ack_within` microseconds if it asks for an ACK.
    #[inline]
    pub fn record(&mut self, number: u64, now: u64, ack_within: Option<u64>) {
        if number >= self.next {
            self.forget(self.next, number);
            self.next = number + 1;
            self.largest_at = now;
        }
        self.seen[word(number)] |= bit(number);
        match self.ranges.last_mut() {
            Some(last) if last.1 + 1 == number => last.1 = number,
            _ => self.insert(number),
        }
        if let Some(within) = ack_within {
            self.pending += 1;
            self.due.get_or_insert(now + within.clamp(DELAY.0, DELAY.1));
        }
    }

    /// When an ACK must be sent at the latest.
    #[inline]
    pub fn due(&self) -> Option<u64> {
        if self.pending >= ACK_EVERY { Some(0) } else { self.due }
    }

    /// Write an ACK frame of at most `out.len()` bytes; its length, or None without room or need.
    pub fn write_ack(&mut self, out: &mut [u8], now: u64) -> Option<usize> {
        self.due?;
        let (low, high) = *self.ranges.last()?;
        let delay = now.saturating_sub(self.largest_at) >> DELAY_EXPONENT;
        let count_at = 1 + varint::size(high) + varint::size(delay);
        let mut at = count_at + 1;
        // The number of ranges below takes one byte, because MAX_RANGES does.
        if at + varint::size(high - low) > out.len() {
            return None;
        }
        out[0] = 0x02;
        varint::write(high, &mut out[1..]);
        varint::write(delay, &mut out[1 + varint::size(high)..]);
        at += varint::write(high - low, &mut out[at..]);
        let mut count = 0;
        let mut below = low;
        for (low, high) in self.ranges.iter().rev().skip(1) {
            let (gap, length) = (below - high - 2, high - low);
            if at + varint::size(gap) + varint::size(length) > out.len() {
                break;
            }
            at += varint::write(gap, &mut out[at..]);
            at += varint::write(length, &mut out[at..]);
            below = *low;
            count += 1;
        }
        out[count_at] = count;
        self.pending = 0;
        self.due = None;
        Some(at)
    }

    /// Forget what lies a window before the numbers `from..=to`, which come next.
    fn forget(&mut self, from: u64, to: u64) {
        if to - from >= WINDOW {
            self.seen.fill(0);
        } else {
            (from..=to).for_each(|number| self.seen[word(number)] &= !bit(number));
        }
    }

    fn insert(&mut self, number: u64) {
        let at = self.ranges.partition_point(|range| range.1 < number);
        let joins_next = self.ranges.get(at).is_some_and(|range| range.0 == number + 1);
        let joins_last = at > 0 && self.ranges[at - 1].1 + 1 == number;
        match (joins_last, joins_next) {
            (true, true) => {
                self.ranges[at - 1].1 = self.ranges[at].1;
                self.ranges.remove(at);
            }
            (true, false) => self.ranges[at - 1].1 = number,
            (false, true) => self.ranges[at].0 = number,
            (false, false) => {
                self.ranges.insert(at, (number, number));
                if self.ranges.len() > MAX_RANGES {
                    self.ranges.remove(0);
                }
            }
        }
    }
}

#[inline]
fn word(number: u64) -> usize {
    (number % WINDOW / 64) as usize
}

#[inline]
fn bit(number: u64) -> u64 {
    1 << (number % 64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::frames::Frames;
    use proptest::prelude::*;

    #[test]
    fn duplicates_and_the_very_old_are_told() {
        let mut received = Received::new(&[], 0);
        received.record(5, 0, None);
        assert!(!received.is_new(5) && received.is_new(4) && received.is_new(6));
        received.record(5 + 10_000, 0, None);
        assert!(!received.is_new(5), "too old to know");
        assert!(!received.is_new(10_005) && received.is_new(10_004));
        assert!(received.is_new(5 + WINDOW), "a slot of the window is used again");
    }

    #[test]
    fn an_ack_is_due_after_a_while_or_many_packets() {
        let mut received = Received::new(&[], 0);
        received.record(0, 100, None);
        assert_eq!(received.due(), None, "nobody asked");
        received.record(1, 200, Some(5_000));
        assert_eq!(received.due(), Some(5_200));
        for number in 2..=40 {
            received.record(number, 300, Some(5_000));
        }
        assert_eq!(received.due(), Some(0));
        let mut out = [0; 64];
        assert!(received.write_ack(&mut out, 300).is_some());
        assert_eq!(received.due(), None);
        assert_eq!(received.write_ack(&mut out, 300), None, "once");
    }

    #[test]
    fn what_somebody_received_before_is_known() {
        let received = Received::new(&[(3, 4), (8, 1000)], 4);
        assert_eq!(received.next(), 1001);
        assert!(!received.is_new(1000) && !received.is_new(8) && received.is_new(5));
        assert!(!received.is_new(2), "that was before its time");
    }

    fn read_back(out: &[u8]) -> Vec<(u64, u64)> {
        let mut frames = Frames::default();
        assert!(frames.parse(out));
        frames.ranges.iter().rev().copied().collect()
    }

    proptest! {
        #[test]
        fn an_ack_tells_what_arrived(
            numbers in proptest::collection::vec(0u64..60, 1..200), room in 8usize..200
        ) {
            let mut received = Received::new(&[], 0);
            let mut model = BTreeSet::new();
            for number in numbers {
                prop_assert_eq!(received.is_new(number), !model.contains(&number));
                if received.is_new(number) {
                    received.record(number, 0, Some(0));
                    model.insert(number);
                }
            }
            let mut out = vec![0; room];
            let length = received.write_ack(&mut out, 80).unwrap();
            let told: Vec<u64> =
                read_back(&out[..length]).iter().flat_map(|(low, high)| *low..=*high).collect();
            let known: Vec<u64> = model.into_iter().collect();
            prop_assert!(known.ends_with(&told), "the newest, and nothing else");
            if room > 80 {
                prop_assert_eq!(told, known);
            }
        }
    }
}
