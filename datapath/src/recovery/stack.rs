//! Packet numbers of the QUIC stack that have not been acknowledged yet.

use std::collections::VecDeque;

use super::{Micros, NUMBERS};

/// How many numbers are remembered.
const LIMIT: u64 = 1024;

/// Disjoint inclusive ranges, ascending.
#[derive(Debug, Default)]
pub(super) struct StackNumbers {
    ranges: VecDeque<(u64, u64)>,
    count: u64,
    /// Above all numbers that were ever registered.
    next: u64,
    /// Numbers below `mark.0` were registered before time `mark.1`.
    mark: (u64, Micros),
}

impl StackNumbers {
    /// Registers `first..=last`; numbers rise.
    pub(super) fn insert(&mut self, first: u64, last: u64) {
        let first = first.max(self.next).max(last.saturating_sub(LIMIT - 1));
        if first > last || last >= NUMBERS {
            return;
        }
        self.next = last + 1;
        self.count += last - first + 1;
        match self.ranges.back_mut() {
            Some(back) if back.1.checked_add(1) == Some(first) => back.1 = last,
            _ => self.ranges.push_back((first, last)),
        }
        while let Some(excess) = self.count.checked_sub(LIMIT).filter(|&excess| excess > 0)
            && let Some(front) = self.ranges.front_mut()
        {
            let size = front.1 - front.0 + 1;
            let gone = size.min(excess);
            front.0 += gone;
            self.count -= gone;
            if gone == size {
                self.ranges.pop_front();
            }
        }
    }

    /// The lowest number that is waited for; `u64::MAX` when there is none.
    pub(super) fn first(&self) -> u64 {
        self.ranges.front().map_or(u64::MAX, |front| front.0)
    }

    /// One more than the highest number that was ever registered.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Moves what `first..=last` covers to `acked`.
    pub(super) fn acked(&mut self, first: u64, last: u64, acked: &mut Vec<(u64, u64)>) {
        if self.ranges.is_empty() || last < self.first() || first >= self.next {
            return;
        }
        let from = self.ranges.partition_point(|range| range.1 < first);
        let mut to = from;
        let mut left = None;
        let mut right = None;
        while let Some(&(low, high)) = self.ranges.get(to)
            && low <= last
        {
            let (from, to_number) = (low.max(first), high.min(last));
            self.count -= to_number - from + 1;
            acked.push((from, to_number));
            if low < first {
                left = Some((low, first - 1));
            }
            if high > last {
                right = Some((last + 1, high));
            }
            to += 1;
        }
        if from == to {
            return;
        }
        // Nearly always one range or the front ones: nothing is moved then.
        self.ranges.drain(from..to);
        for range in [right, left].into_iter().flatten() {
            self.ranges.insert(from, range);
        }
        if self.ranges.is_empty() && self.ranges.capacity() > 16 {
            self.ranges = VecDeque::new();
        }
    }

    /// Forgets numbers below `largest` (that was acknowledged) which have waited for `patience` or
    /// longer: packets without ack-eliciting frames may never be acknowledged.
    pub(super) fn age(&mut self, largest: u64, patience: Micros, now: Micros) {
        if now.saturating_sub(self.mark.1) < patience {
            return;
        }
        let limit = self.mark.0.min(largest);
        self.mark = (self.next, now);
        while let Some(front) = self.ranges.front_mut()
            && front.0 < limit
        {
            let size = front.1.min(limit - 1) - front.0 + 1;
            self.count -= size;
            front.0 += size;
            if front.0 > front.1 {
                self.ranges.pop_front();
            }
        }
    }

    /// Gives back memory.
    pub(super) fn trim(&mut self) {
        self.ranges.shrink_to_fit();
    }

    pub(super) fn memory(&self) -> usize {
        self.ranges.capacity() * size_of::<(u64, u64)>()
    }
}
