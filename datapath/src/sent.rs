//! What was sent and not yet acknowledged: round-trip time and losses (RFC 9002).
//!
//! Nothing is sent again: a lost DATAGRAM is a lost IP packet. Packet numbers that somebody else
//! used are skipped over. Times are microseconds of a clock that never goes back.

use std::collections::VecDeque;

/// Packets that may be unacknowledged: a bound on memory when the peer falls silent, and half of
/// what a packet number of two bytes can tell apart (RFC 9000 section 17.1).
pub const MAX_IN_FLIGHT: usize = 16384;
/// RFC 9002 section 6.1.1.
const PACKET_THRESHOLD: u64 = 3;
/// RFC 9002 sections 6.1.2 and 6.2.2.
const GRANULARITY: u64 = 1_000;
const INITIAL_RTT: u64 = 333_000;

/// The smoothed round-trip time and its variation (RFC 9002 section 5).
#[derive(Clone, Copy, Debug)]
pub struct Rtt {
    pub latest: u64,
    pub smoothed: u64,
    pub variation: u64,
    minimum: u64,
}

impl Rtt {
    /// With a first estimate in microseconds, or 0 for none.
    pub fn new(smoothed: u64) -> Self {
        Self { latest: smoothed, smoothed, variation: smoothed / 2, minimum: smoothed }
    }

    /// Take a sample of which the peer delayed `delay` microseconds on purpose.
    pub fn update(&mut self, sample: u64, delay: u64) {
        self.latest = sample;
        if self.smoothed == 0 {
            *self = Self::new(sample.max(1));
            return;
        }
        self.minimum = self.minimum.min(sample);
        let adjusted = if sample >= self.minimum + delay { sample - delay } else { sample };
        self.variation = (3 * self.variation + self.smoothed.abs_diff(adjusted)) / 4;
        self.smoothed = (7 * self.smoothed + adjusted) / 8;
    }

    /// The probe timeout without backoff, in microseconds (RFC 9002 section 6.2.1).
    pub fn probe_timeout(&self, max_ack_delay: u64) -> u64 {
        let (smoothed, variation) = match self.smoothed {
            0 => (INITIAL_RTT, INITIAL_RTT / 2),
            smoothed => (smoothed, self.variation),
        };
        smoothed + (4 * variation).max(GRANULARITY) + max_ack_delay
    }
}

#[derive(Clone, Copy, Debug)]
struct Packet {
    /// The lowest 32 bits of the time, in microseconds: more than an hour.
    time: u32,
    size: u16,
    state: State,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    InFlight,
    /// Acknowledged, lost, or not ours to look after.
    Done,
}

/// What an ACK changed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Outcome {
    pub acked: u64,
    pub acked_bytes: u64,
    pub lost: u64,
    pub lost_bytes: u64,
    /// Packets of `large` bytes or more among them.
    pub large_acked: u64,
    pub large_lost: u64,
    /// Sent latest among those that are lost.
    pub newest_lost: Option<u64>,
}

/// The packets of one packet number space, sending.
#[derive(Debug)]
pub struct Sent {
    /// The number of the first packet in `packets`.
    first: u64,
    packets: VecDeque<Packet>,
    /// One more than the largest number that was acknowledged.
    acked_end: u64,
    in_flight: usize,
    bytes_in_flight: u64,
    /// Numbers that somebody else sent and that may still be acknowledged, ascending.
    foreign: VecDeque<u64>,
    last_sent: u64,
    probes: u32,
    pub rtt: Rtt,
}

/// How far behind the largest acknowledged number news of a foreign packet is passed on.
const FOREIGN_WINDOW: u64 = 1024;
/// Foreign numbers that are remembered; more are under way only when the peer is silent.
const MAX_FOREIGN: usize = 4096;

impl Sent {
    /// `next` is the first number that will be used, `foreign` what others have under way.
    pub fn new(next: u64, foreign: impl IntoIterator<Item = u64>, rtt: u64) -> Self {
        Self {
            first: next,
            packets: VecDeque::new(),
            acked_end: 0,
            in_flight: 0,
            bytes_in_flight: 0,
            foreign: foreign.into_iter().collect(),
            last_sent: 0,
            probes: 0,
            rtt: Rtt::new(rtt),
        }
    }

    /// The next packet number.
    #[inline]
    pub fn next(&self) -> u64 {
        self.first + self.packets.len() as u64
    }

    #[inline]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    #[inline]
    pub fn bytes_in_flight(&self) -> u64 {
        self.bytes_in_flight
    }

    /// Whether another packet may be sent and understood.
    #[inline]
    pub fn has_room(&self) -> bool {
        // The second counts numbers in between, too: ACKs, and what others sent.
        self.in_flight < MAX_IN_FLIGHT && self.packets.len() < 2 * MAX_IN_FLIGHT - 1024
    }

    /// Note that packet `next()` is sent; only those that elicit an ACK are in flight.
    #[inline]
    pub fn record(&mut self, size: usize, now: u64, ack_eliciting: bool) {
        let state = if ack_eliciting { State::InFlight } else { State::Done };
        if ack_eliciting {
            self.in_flight += 1;
            self.bytes_in_flight += size as u64;
            self.last_sent = now;
        } else if self.packets.is_empty() {
            self.first += 1;
            return;
        }
        self.packets.push_back(Packet { time: now as u32, size: size as u16, state });
    }

    /// Somebody else used the numbers from `next()` up to, not including, `end`.
    pub fn skip_to(&mut self, end: u64) {
        while self.next() < end {
            if self.foreign.len() == MAX_FOREIGN {
                self.foreign.pop_front();
            }
            self.foreign.push_back(self.next());
            self.record(0, 0, false);
        }
    }

    /// Whether an ACK of `largest` may be news to whoever sent foreign packets.
    pub fn concerns_foreign(&self, largest: u64) -> bool {
        self.foreign.front().is_some_and(|number| *number <= largest)
    }

    /// Take an ACK: ranges, first and last of each, descending; the peer's delay in microseconds.
    ///
    /// None, and nothing happens, when it acknowledges what was never sent.
    pub fn acked(
        &mut self,
        ranges: &[(u64, u64)],
        delay: u64,
        now: u64,
        large: u16,
    ) -> Option<Outcome> {
        let largest = ranges.first()?.1;
        if largest >= self.next() {
            return None;
        }
        let mut outcome = Outcome::default();
        if let Some(packet) = self.get(largest)
            && packet.state == State::InFlight
        {
            self.rtt.update(u64::from((now as u32).wrapping_sub(packet.time)), delay);
        }
        for (low, high) in ranges {
            if *high < self.first {
                break;
            }
            for number in (*low).max(self.first)..=*high {
                let packet = &mut self.packets[(number - self.first) as usize];
                if packet.state == State::InFlight {
                    packet.state = State::Done;
                    outcome.acked += 1;
                    outcome.acked_bytes += u64::from(packet.size);
                    outcome.large_acked += u64::from(packet.size >= large);
                }
            }
        }
        self.acked_end = self.acked_end.max(largest + 1);
        if outcome.acked > 0 {
            self.probes = 0;
        }
        self.detect_losses(now, large, &mut outcome);
        self.in_flight -= (outcome.acked + outcome.lost) as usize;
        self.bytes_in_flight -= outcome.acked_bytes + outcome.lost_bytes;
        while self.packets.front().is_some_and(|packet| packet.state == State::Done) {
            self.packets.pop_front();
            self.first += 1;
        }
        let told = |number: &u64| {
            *number + FOREIGN_WINDOW < largest
                || ranges.iter().any(|(low, high)| (low..=high).contains(&number))
        };
        if self.concerns_foreign(largest) {
            self.foreign.retain(|number| !told(number));
        }
        Some(outcome)
    }

    /// When to send a probe because no ACK comes, with exponential backoff (RFC 9002 section 6.2).
    pub fn probe_at(&self, max_ack_delay: u64) -> Option<u64> {
        let timeout = self.rtt.probe_timeout(max_ack_delay) << self.probes.min(6);
        (self.in_flight > 0).then_some(self.last_sent + timeout)
    }

    /// A probe is sent now.
    pub fn probed(&mut self, now: u64) {
        self.probes += 1;
        self.last_sent = now;
    }

    fn get(&self, number: u64) -> Option<&Packet> {
        self.packets.get(number.checked_sub(self.first)? as usize)
    }

    /// RFC 9002 section 6.1: three packets later, or a good round trip earlier.
    fn detect_losses(&mut self, now: u64, large: u16, outcome: &mut Outcome) {
        let reference = self.rtt.latest.max(self.rtt.smoothed);
        let patience = (reference + reference / 8).max(GRANULARITY);
        let behind = self.acked_end.saturating_sub(self.first) as usize;
        for (index, packet) in self.packets.iter_mut().take(behind).enumerate() {
            if packet.state != State::InFlight {
                continue;
            }
            let number = self.first + index as u64;
            let age = u64::from((now as u32).wrapping_sub(packet.time));
            if number + PACKET_THRESHOLD < self.acked_end || age >= patience {
                packet.state = State::Done;
                outcome.lost += 1;
                outcome.lost_bytes += u64::from(packet.size);
                outcome.large_lost += u64::from(packet.size >= large);
                outcome.newest_lost = Some(now.wrapping_sub(age));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LARGE: u16 = 1000;

    fn sent(count: usize) -> Sent {
        let mut sent = Sent::new(100, [], 0);
        (0..count).for_each(|index| sent.record(1200, 1_000_000 + index as u64, true));
        sent
    }

    #[test]
    fn acknowledged_packets_leave() {
        let mut sent = sent(10);
        let outcome = sent.acked(&[(100, 109)], 0, 1_050_009, LARGE).unwrap();
        assert_eq!((outcome.acked, outcome.acked_bytes, outcome.lost), (10, 12_000, 0));
        assert_eq!((sent.in_flight(), sent.bytes_in_flight()), (0, 0));
        assert_eq!(sent.rtt.smoothed, 50_000);
        let again = sent.acked(&[(100, 109)], 0, 1_060_000, LARGE).unwrap();
        assert_eq!(again, Outcome::default(), "told twice, counted once");
    }

    #[test]
    fn three_later_ones_make_a_loss() {
        let mut sent = sent(10);
        let outcome = sent.acked(&[(102, 103)], 0, 1_050_000, LARGE).unwrap();
        assert_eq!((outcome.acked, outcome.lost), (2, 1));
        let outcome = sent.acked(&[(102, 104)], 0, 1_050_001, LARGE).unwrap();
        assert_eq!((outcome.lost, outcome.large_lost), (1, 1));
    }

    #[test]
    fn so_does_time() {
        let mut sent = sent(2);
        sent.acked(&[(101, 101)], 0, 1_010_001, LARGE).unwrap();
        assert_eq!(sent.in_flight(), 1, "it may be reordered");
        sent.record(50, 1_011_000, true);
        let outcome = sent.acked(&[(101, 102)], 0, 1_021_000, LARGE).unwrap();
        assert_eq!(outcome.lost, 1);
    }

    #[test]
    fn an_ack_of_what_was_never_sent_is_refused() {
        assert_eq!(sent(10).acked(&[(100, 110)], 0, 1_050_000, LARGE), None);
    }

    #[test]
    fn foreign_numbers_are_not_ours_to_lose() {
        let mut sent = Sent::new(7, [3, 5], 0);
        sent.skip_to(9);
        sent.record(1200, 1_000, true);
        assert_eq!((sent.next(), sent.in_flight()), (10, 1));
        assert!(sent.concerns_foreign(3) && !sent.concerns_foreign(2));
        let outcome = sent.acked(&[(7, 9), (3, 3)], 0, 2_000, LARGE).unwrap();
        assert_eq!((outcome.acked, outcome.lost), (1, 0));
        assert!(sent.concerns_foreign(9), "5 may still come");
        sent.acked(&[(5, 9)], 0, 2_000, LARGE).unwrap();
        assert!(!sent.concerns_foreign(9));
    }

    #[test]
    fn probes_back_off_until_an_ack_comes() {
        let mut sent = sent(1);
        let first = sent.probe_at(25_000).unwrap();
        assert!(first > 1_000_000 + INITIAL_RTT);
        sent.probed(first);
        assert!(sent.probe_at(25_000).unwrap() - first > first - 1_000_000);
        sent.acked(&[(100, 100)], 0, first + 10, LARGE).unwrap();
        assert_eq!(sent.probe_at(25_000), None);
    }

    #[test]
    fn a_silent_peer_does_not_fill_the_memory() {
        let mut sent = sent(MAX_IN_FLIGHT);
        assert!(!sent.has_room());
        sent.acked(&[(100, 100)], 0, 1_000_500, LARGE).unwrap();
        assert!(sent.has_room());
    }

    #[test]
    fn a_deliberate_delay_is_taken_off() {
        let mut rtt = Rtt::new(0);
        rtt.update(10_000, 5_000);
        assert_eq!(rtt.smoothed, 10_000, "not from the first sample");
        rtt.update(18_000, 8_000);
        assert_eq!(rtt.smoothed, 10_000);
        rtt.update(11_000, 8_000);
        assert_eq!(rtt.smoothed, 10_125, "a delay that cannot be true");
    }

    proptest! {
        #[test]
        fn the_books_balance(steps in proptest::collection::vec((0u64..3, 0u64..40, 0u64..40), 0..80)) {
            let mut sent = Sent::new(0, [], 0);
            let (mut now, mut recorded, mut settled) = (0, 0u64, 0u64);
            for (kind, a, b) in steps {
                now += 700;
                match kind {
                    0 => (0..a).for_each(|_| { sent.record(100, now, true); recorded += 1; }),
                    1 => sent.skip_to(sent.next() + b),
                    _ => {
                        let high = sent.next().saturating_sub(a);
                        let low = high.saturating_sub(b);
                        if let Some(outcome) = sent.acked(&[(low, high)], 0, now, LARGE) {
                            settled += outcome.acked + outcome.lost;
                        }
                    }
                }
                prop_assert_eq!(sent.in_flight() as u64, recorded - settled);
                prop_assert_eq!(sent.bytes_in_flight(), 100 * (recorded - settled));
            }
        }
    }
}
