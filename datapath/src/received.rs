//! Which packet numbers have arrived: duplicates on the one hand, acknowledgements on the other.
//!
//! RFC 9000 sections 12.3 (each packet once) and 13.2 (ACK ranges, bounded). Sans-IO; times are
//! microseconds of a clock that never goes back.

use quinn_udp::EcnCodepoint;

use crate::Micros;
use crate::ecn::Counts;

/// Packet numbers behind the largest that are told apart; older ones count as duplicates.
const WINDOW: u64 = 1 << 13;
const WORDS: usize = (WINDOW / 64) as usize;
/// ACK ranges that are kept. The oldest go first: their packets were acknowledged often enough.
pub const MAX_RANGES: usize = 64;

/// What one end has received in the packet number space of 1-RTT packets.
pub struct Received {
    /// One bit for each of the last [`WINDOW`] numbers, in a ring.
    seen: Box<[u64; WORDS]>,
    /// The number after the largest.
    next: u64,
    /// Numbers below count as seen.
    lower: u64,
    /// Inclusive, the largest first, with gaps between them.
    ranges: Vec<(u64, u64)>,
    largest_at: Micros,
    /// Packets that wait for an ACK, and since when.
    waiting: u32,
    since: Micros,
    /// Whether one arrived out of order, which the peer should hear of soon.
    gap: bool,
    /// Marks of those that arrived (RFC 9000 section 13.4.1).
    counts: Counts,
    /// Whether one arrived that met congestion, which the peer should hear of soon.
    congested: bool,
}

impl Received {
    /// From what was received before: inclusive ranges, the largest first.
    pub fn new(ranges: &[(u64, u64)], now: Micros) -> Self {
        let next = ranges.first().map_or(0, |range| range.1 + 1);
        let mut received = Self {
            seen: Box::new([0; WORDS]),
            next,
            lower: next.saturating_sub(WINDOW),
            ranges: Vec::new(),
            largest_at: now,
            waiting: 0,
            since: now,
            gap: false,
            counts: Counts::default(),
            congested: false,
        };
        // What is older than the oldest known range was acknowledged and forgotten: it did arrive.
        if let Some(&(oldest, _)) = ranges.last() {
            received.lower = received.lower.max(oldest);
        }
        for &(smallest, largest) in ranges.iter().take(MAX_RANGES) {
            for number in smallest.max(received.lower)..=largest {
                received.mark(number);
            }
            received.ranges.push((smallest, largest));
        }
        received
    }

    fn mark(&mut self, number: u64) {
        self.seen[(number / 64) as usize % WORDS] |= 1 << (number % 64);
    }

    /// The number after the largest that arrived.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Whether this number has arrived before, or is so old that it may have.
    pub fn contains(&self, number: u64) -> bool {
        number < self.lower
            || (number < self.next
                && self.seen[(number / 64) as usize % WORDS] & 1 << (number % 64) != 0)
    }

    /// Note a packet that arrived, which was not there before; `eliciting` asks for an ACK.
    pub fn add(&mut self, number: u64, eliciting: bool, now: Micros) {
        if self.contains(number) {
            return;
        }
        if number >= self.next {
            self.gap |= number > self.next && eliciting;
            self.advance(number + 1);
            self.largest_at = now;
        } else {
            self.gap |= eliciting;
        }
        self.mark(number);
        self.add_range(number);
        if eliciting {
            if self.waiting == 0 {
                self.since = now;
            }
            self.waiting += 1;
        }
    }

    /// Count the mark of a packet that arrived, which was not there before.
    pub fn count(&mut self, mark: Option<EcnCodepoint>, eliciting: bool) {
        self.counts.add(mark);
        self.congested |= eliciting && mark == Some(EcnCodepoint::Ce);
    }

    /// What was counted, for the ACK frame.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Forget what leaves the window when `next` becomes the number after the largest.
    fn advance(&mut self, next: u64) {
        let lower = next.saturating_sub(WINDOW);
        // Words of the ring that new numbers come to lie in.
        let first = self.next.div_ceil(64);
        let last = (next - 1) / 64;
        if last >= first {
            for word in first.max(last.saturating_sub(WORDS as u64 - 1))..=last {
                self.seen[word as usize % WORDS] = 0;
            }
            // A word is cleared whole, so that the oldest numbers in it are not known any more.
            self.lower = self.lower.max((last * 64 + 64).saturating_sub(WINDOW));
        }
        self.lower = self.lower.max(lower);
        self.next = next;
    }

    fn add_range(&mut self, number: u64) {
        // Nearly always the next of the largest range.
        let at = self
            .ranges
            .iter()
            .position(|&(smallest, _)| number + 1 >= smallest)
            .unwrap_or(self.ranges.len());
        match self.ranges.get_mut(at) {
            Some(range) if number == range.1 + 1 => {
                range.1 = number;
                if at > 0 && self.ranges[at - 1].0 == number + 1 {
                    self.ranges[at - 1].0 = self.ranges[at].0;
                    self.ranges.remove(at);
                }
            }
            Some(range) if number + 1 == range.0 => {
                range.0 = number;
                if let Some(&(smallest, below)) = self.ranges.get(at + 1)
                    && below + 1 == number
                {
                    self.ranges[at].0 = smallest;
                    self.ranges.remove(at + 1);
                }
            }
            _ => {
                if at < MAX_RANGES {
                    self.ranges.insert(at, (number, number));
                    self.ranges.truncate(MAX_RANGES);
                }
            }
        }
    }

    /// Some of what is known already waits for an ACK.
    pub fn want_ack(&mut self, now: Micros) {
        if self.waiting == 0 {
            self.since = now;
        }
        self.waiting += 1;
    }

    /// Inclusive ranges to acknowledge, the largest first.
    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges
    }

    /// Packets that wait for an ACK.
    pub fn waiting(&self) -> u32 {
        self.waiting
    }

    /// Since when the first of them waits.
    pub fn waiting_since(&self) -> Option<Micros> {
        (self.waiting > 0).then_some(self.since)
    }

    /// Whether a packet arrived out of order since the last ACK (RFC 9000 section 13.2.1).
    pub fn out_of_order(&self) -> bool {
        self.gap
    }

    /// Whether a packet that met congestion arrived since the last ACK (RFC 9000 section 13.2.1).
    pub fn congested(&self) -> bool {
        self.congested
    }

    /// Microseconds since the largest arrived, for the ACK frame.
    pub fn delay(&self, now: Micros) -> Micros {
        now.saturating_sub(self.largest_at)
    }

    /// An ACK was sent.
    pub fn acknowledged(&mut self) {
        self.waiting = 0;
        self.gap = false;
        self.congested = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn packets_in_order_are_one_range() {
        let mut received = Received::new(&[(0, 9)], 0);
        for number in 10..100_000 {
            assert!(!received.contains(number));
            received.add(number, true, number);
            assert!(received.contains(number));
        }
        assert_eq!(received.ranges(), &[(0, 99_999)]);
        assert_eq!(received.waiting(), 99_990);
        assert!(!received.out_of_order());
        received.acknowledged();
        assert_eq!(received.waiting_since(), None);
    }

    #[test]
    fn a_gap_is_told_and_closed() {
        let mut received = Received::new(&[], 0);
        received.add(0, true, 0);
        received.add(2, true, 0);
        assert!(received.out_of_order());
        assert_eq!(received.ranges(), &[(2, 2), (0, 0)]);
        received.add(1, true, 0);
        assert_eq!(received.ranges(), &[(0, 2)]);
    }

    #[test]
    fn marks_are_counted_and_congestion_is_told_at_once() {
        let mut received = Received::new(&[], 0);
        for (number, bits) in [0b00, 0b10, 0b01, 0b10].into_iter().enumerate() {
            received.add(number as u64, true, 0);
            received.count(EcnCodepoint::from_bits(bits), true);
        }
        assert!(!received.congested());
        // Who only acknowledges does not ask for an answer.
        received.count(Some(EcnCodepoint::Ce), false);
        assert!(!received.congested());
        received.count(Some(EcnCodepoint::Ce), true);
        assert!(received.congested());
        received.acknowledged();
        assert!(!received.congested());
        let wanted = Counts {
            ect0: 2,
            ect1: 1,
            ce: 2,
        };
        assert_eq!(received.counts(), wanted);
    }

    #[test]
    fn what_is_older_than_the_window_counts_as_seen() {
        let mut received = Received::new(&[], 0);
        received.add(5 * WINDOW, false, 0);
        assert!(received.contains(0));
        assert!(received.contains(3 * WINDOW));
        assert!(!received.contains(5 * WINDOW - 100));
        assert!(!received.contains(5 * WINDOW + 1));
    }

    proptest! {
        /// Against a set of all numbers: never one twice, and recent ones never refused.
        #[test]
        fn each_number_is_taken_once(steps in proptest::collection::vec((0u64..200, 0u64..60), 1..800)) {
            let mut received = Received::new(&[(0, 3)], 0);
            let mut all: BTreeSet<u64> = (0..4).collect();
            let mut top = 3u64;
            for (back, forward) in steps {
                let number = (top + forward).saturating_sub(back);
                prop_assert_eq!(received.contains(number), all.contains(&number));
                received.add(number, true, 0);
                all.insert(number);
                top = top.max(number);
                prop_assert_eq!(received.next(), top + 1);
                let mut before = u64::MAX;
                for &(smallest, largest) in received.ranges() {
                    prop_assert!(smallest <= largest);
                    prop_assert!(before == u64::MAX || largest + 1 < before);
                    prop_assert!((smallest..=largest).all(|number| all.contains(&number)));
                    before = smallest;
                }
            }
        }

        #[test]
        fn jumps_never_make_a_seen_number_new(jumps in proptest::collection::vec(1u64..20_000, 1..60)) {
            let mut received = Received::new(&[], 0);
            let mut number = 0;
            let mut all = vec![];
            for jump in jumps {
                number += jump;
                received.add(number, false, 0);
                all.push(number);
                prop_assert!(all.iter().all(|number| received.contains(*number)));
                prop_assert!(!received.contains(number + 1));
            }
        }
    }
}
