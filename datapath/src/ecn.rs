//! Explicit Congestion Notification of the outer packets (RFC 3168): marks that arrive are counted
//! and reported, and ours are sent while the path and the peer show that they get through
//! (RFC 9000 section 13.4). Sans-IO.

use std::collections::VecDeque;

use quinn_udp::EcnCodepoint;

/// Marked packets whose fate decides about a path, where all of them fare alike (RFC 9000 appendix
/// A.4).
const TESTED: u64 = 10;

/// Packets whose marks are kept until they are opened; who forges more of them takes from others
/// that they are counted.
const UNOPENED: usize = 1 << 10;

/// How many packets arrived with each codepoint, or what a peer says of that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// ECN-capable.
    pub ect0: u64,
    /// ECN-capable; nobody here sends it.
    pub ect1: u64,
    /// Congestion was experienced.
    pub ce: u64,
}

impl Counts {
    /// Whether there is anything to report.
    pub fn any(self) -> bool {
        self != Self::default()
    }

    /// One packet more.
    #[inline]
    pub fn add(&mut self, mark: Option<EcnCodepoint>) {
        match mark {
            None => {}
            Some(EcnCodepoint::Ect0) => self.ect0 += 1,
            Some(EcnCodepoint::Ect1) => self.ect1 += 1,
            Some(EcnCodepoint::Ce) => self.ce += 1,
        }
    }
}

/// Marks of packets that nobody has opened yet, by packet number, until somebody does. A number is
/// hidden by header protection (RFC 9001 section 5.4), so that who forges packets cannot choose the
/// one whose mark he would like to be.
#[derive(Debug, Default)]
pub struct Unopened(VecDeque<(u64, EcnCodepoint)>);

impl Unopened {
    /// A packet with this number, as far as it can be read, went to who may be able to open it.
    pub fn add(&mut self, number: u64, mark: Option<EcnCodepoint>) {
        let Some(mark) = mark else {
            return;
        };
        if self.0.len() >= UNOPENED {
            self.0.pop_front();
        }
        self.0.push_back((number, mark));
    }

    /// It was opened. Of several with its number, the first counts.
    pub fn take(&mut self, number: u64) -> Option<EcnCodepoint> {
        let at = self.0.iter().position(|each| each.0 == number)?;
        self.0.remove(at).map(|each| each.1)
    }
}

/// Whether packets are marked ECT(0): RFC 9000 section 13.4.2, for one path at a time.
#[derive(Clone, Copy, Debug)]
pub struct Validation {
    marks: bool,
    /// What the peer said last. They are totals of the connection.
    reported: Option<Counts>,
    /// Marked packets acknowledged, and lost before the first was.
    acked: u64,
    lost: u64,
    /// One was seen to arrive as it was sent.
    unchanged: bool,
}

impl Default for Validation {
    fn default() -> Self {
        Self {
            marks: true,
            reported: None,
            acked: 0,
            lost: 0,
            unchanged: false,
        }
    }
}

impl Validation {
    /// Whether packets that ask for an acknowledgement are to be marked.
    pub fn marks(&self) -> bool {
        self.marks
    }

    /// Another path is another question. What is in flight on the old one is nobody's business.
    pub fn begin_path(&mut self) {
        *self = Self {
            reported: self.reported,
            ..Self::default()
        };
    }

    /// An ACK frame that raises the largest number acknowledged newly acknowledges `newly` packets,
    /// all of which were marked if packets are marked at all. Others must not be judged: they may
    /// have been overtaken (RFC 9000 section 13.4.2.1).
    ///
    /// Returns how many packets more than before met congestion.
    pub fn acked(&mut self, counts: Option<Counts>, newly: u64) -> u64 {
        let Some(counts) = counts else {
            self.marks &= newly == 0;
            return 0;
        };
        let known = self.reported.replace(counts);
        if !self.marks {
            return 0;
        }
        let before = known.unwrap_or_default();
        let grown = |now: u64, before: u64| now.checked_sub(before);
        let (Some(ect0), Some(_), Some(ce)) = (
            grown(counts.ect0, before.ect0),
            grown(counts.ect1, before.ect1),
            grown(counts.ce, before.ce),
        ) else {
            self.marks = false;
            return 0;
        };
        self.acked += newly;
        self.unchanged |= ect0 > 0;
        // A path that turns every mark into CE tells nothing of congestion.
        let mangled = self.acked >= TESTED && !self.unchanged;
        if ect0.saturating_add(ce) < newly || mangled {
            self.marks = false;
            return 0;
        }
        // The first counts may hold what was there before us.
        if known.is_some() { ce } else { 0 }
    }

    /// Packets were lost; `all`, because nothing at all was acknowledged for a long time. Where
    /// none gets through from the start, it may be for the mark (RFC 9000 section 13.4.2).
    pub fn lost(&mut self, packets: u64, all: bool) {
        if self.acked == 0 {
            self.lost += packets;
            self.marks &= !all && self.lost < TESTED;
        } else if all {
            // The path may have become another without anybody knowing.
            (self.acked, self.lost) = (0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::unnecessary_wraps)] // as it is asked for
    fn counts(ect0: u64, ect1: u64, ce: u64) -> Option<Counts> {
        Some(Counts { ect0, ect1, ce })
    }

    #[test]
    fn marks_are_counted_by_codepoint() {
        let mut counts = Counts::default();
        assert!(!counts.any());
        for bits in [0b10, 0b11, 0b00, 0b10, 0b01] {
            counts.add(EcnCodepoint::from_bits(bits));
        }
        let wanted = Counts {
            ect0: 2,
            ect1: 1,
            ce: 1,
        };
        assert_eq!(counts, wanted);
        assert!(counts.any());
    }

    #[test]
    fn a_mark_counts_once_with_the_packet_that_had_it() {
        let mut unopened = Unopened::default();
        unopened.add(7, Some(EcnCodepoint::Ect0));
        unopened.add(8, None);
        unopened.add(9, Some(EcnCodepoint::Ce)); // of somebody else, with a number of nobody's
        unopened.add(7, Some(EcnCodepoint::Ce)); // and with one that was there already
        assert_eq!(unopened.take(8), None);
        assert_eq!(unopened.take(7), Some(EcnCodepoint::Ect0));
    }

    #[test]
    fn a_flood_of_marks_is_bounded() {
        let mut unopened = Unopened::default();
        for number in 0..10_000 {
            unopened.add(number, Some(EcnCodepoint::Ce));
        }
        assert_eq!(unopened.0.len(), UNOPENED);
        assert_eq!(unopened.take(0), None);
        assert_eq!(unopened.take(9_999), Some(EcnCodepoint::Ce));
    }

    /// What follows a first good ACK of 5 packets: counts, newly acknowledged, and what comes of it.
    #[test]
    fn counts_are_judged_as_the_rfc_says() {
        const MOST: u64 = (1 << 62) - 1;
        for (then, newly, marks, ce) in [
            (counts(15, 0, 0), 10, true, 0),
            (counts(12, 0, 3), 10, true, 3), // congestion
            (counts(25, 0, 0), 10, true, 0), // more than those: of ACKs that were lost
            (counts(5, 0, 0), 0, true, 0),
            (counts(14, 0, 0), 10, false, 0), // one was cleared
            (counts(5, 10, 0), 10, false, 0), // marked anew
            (counts(4, 0, 11), 10, false, 0), // going down
            (None, 10, false, 0),
            (None, 0, true, 0),
            (counts(MOST, MOST, MOST), 10, true, MOST),
        ] {
            let mut ecn = Validation::default();
            assert_eq!(ecn.acked(counts(5, 0, 0), 5), 0);
            assert_eq!(ecn.acked(then, newly), ce, "{then:?}");
            assert_eq!(ecn.marks(), marks, "{then:?}");
        }
    }

    #[test]
    fn what_failed_stays_off_until_another_path() {
        let mut ecn = Validation::default();
        ecn.acked(None, 1);
        assert_eq!(ecn.acked(counts(7, 0, 7), 7), 0);
        assert!(!ecn.marks());
        ecn.begin_path();
        assert!(ecn.marks());
        // The counts went on meanwhile: only what comes now is news.
        assert_eq!(ecn.acked(counts(8, 0, 8), 2), 1);
        assert!(ecn.marks());
    }

    #[test]
    fn the_first_counts_tell_nothing_of_congestion() {
        let mut ecn = Validation::default();
        assert_eq!(ecn.acked(counts(1000, 0, 30), 5), 0);
        assert_eq!(ecn.acked(counts(1000, 0, 31), 1), 1);
    }

    #[test]
    fn a_path_that_marks_everything_is_not_believed() {
        let mut ecn = Validation::default();
        ecn.acked(counts(0, 0, 9), 9);
        assert!(ecn.marks());
        assert_eq!(ecn.acked(counts(0, 0, 10), 1), 0);
        assert!(!ecn.marks());
    }

    #[test]
    fn a_path_that_takes_no_marks_is_found() {
        let mut ecn = Validation::default();
        ecn.lost(9, false);
        assert!(ecn.marks());
        ecn.lost(1, false);
        assert!(!ecn.marks());

        let mut ecn = Validation::default();
        ecn.lost(1, true);
        assert!(!ecn.marks());

        // After it was seen to work, it takes two such silences.
        let mut ecn = Validation::default();
        ecn.acked(counts(1, 0, 0), 1);
        ecn.lost(100, false);
        ecn.lost(100, true);
        assert!(ecn.marks());
        ecn.lost(1, true);
        assert!(!ecn.marks());
    }
}
