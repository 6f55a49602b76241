//! The sending side of one session: packets, the controller, and what the QUIC stack must hear of.

use crate::Micros;
use crate::congestion;
use crate::quic::{AckFrame, MAX_UNACKNOWLEDGED};
use crate::recovery::Outcome;

/// Large packets lost in a row that make a black hole likely (RFC 8899 section 4.3).
const BLACK_HOLE_LOSSES: u32 = 3;
/// Packet numbers of the window that stay free for a batch.
const RESERVE: u64 = 256;

/// Packets with numbers in a row and of one size, but the last: they are noted as one.
#[derive(Clone, Copy)]
struct Run {
    first: u64,
    count: u16,
    bytes: u16,
    last: u16,
    large: bool,
}

/// See the module.
pub struct Sender {
    path: congestion::Sender,
    run: Option<Run>,
    run_bytes: usize,
    next: u64,
    largest_acked: u64,
    large_lost_in_a_row: u32,
    /// Packets that were declared lost.
    pub lost_packets: u64,
}

impl Sender {
    /// Goes on at packet number `next`; `rtt` in microseconds is a first idea, or 0.
    pub fn new(next: u64, max_ack_delay: Micros, rtt: Micros, now: Micros) -> Self {
        let mut path = congestion::Sender::new(next, now);
        path.recovery_mut().set_max_ack_delay(max_ack_delay);
        if rtt > 0 {
            path.recovery_mut().hint_rtt(rtt);
        }
        Self {
            path,
            run: None,
            run_bytes: 0,
            next,
            largest_acked: next.saturating_sub(1),
            large_lost_in_a_row: 0,
            lost_packets: 0,
        }
    }

    /// The QUIC stack sent numbers from `first` up to the one before `end`.
    pub fn stack_sent(&mut self, first: u64, end: u64) {
        if end > first {
            self.path.recovery_mut().stack_sent(first, end - 1);
            self.next = self.next.max(end);
        }
    }

    /// Another path: what was learned of the last one says nothing.
    pub fn begin_path(&mut self, now: Micros) {
        self.note(now);
        self.path.begin_path(now);
        self.large_lost_in_a_row = 0;
    }

    /// Bytes that may be sent now; the last packet may go over it.
    pub fn allowance(&self, now: Micros) -> usize {
        if !self.has_numbers() {
            return 0;
        }
        self.path.allowance(now).saturating_sub(self.run_bytes)
    }

    /// Whether packet numbers can be told apart by the few bytes that are sent of them.
    fn has_numbers(&self) -> bool {
        self.path.recovery().room() > RESERVE
            && self.next.saturating_sub(self.largest_acked) < MAX_UNACKNOWLEDGED
    }

    /// When a packet may be sent that waits; `None` when only an acknowledgement can say.
    pub fn next_send(&self, now: Micros) -> Option<Micros> {
        self.has_numbers()
            .then(|| self.path.next_send(now))
            .flatten()
    }

    /// A packet of `bytes` goes out; [`Sender::note`] follows behind the last of a batch.
    pub fn sent(&mut self, number: u64, bytes: usize, large: bool, now: Micros) {
        let bytes = bytes as u16;
        self.next = number + 1;
        self.run_bytes += usize::from(bytes);
        if let Some(run) = &mut self.run {
            let follows = number == run.first + u64::from(run.count) && run.last == run.bytes;
            if follows && bytes <= run.bytes && large == run.large && run.count < u16::MAX {
                run.count += 1;
                run.last = bytes;
                return;
            }
            self.note_run(now);
        }
        self.run = Some(Run {
            first: number,
            count: 1,
            bytes,
            last: bytes,
            large,
        });
    }

    /// Everything that was sent is on its way.
    pub fn note(&mut self, now: Micros) {
        self.note_run(now);
        self.run_bytes = 0;
    }

    /// Whether packets are left that wait. If none are, what is measured now says little of the path.
    pub fn left(&mut self, waiting: bool) {
        self.path.left(waiting);
    }

    fn note_run(&mut self, now: Micros) {
        if let Some(run) = self.run.take() {
            self.path
                .sent_batch(run.first, run.count, run.bytes, run.last, run.large, now);
        }
    }

    /// Whether packets that ask for an acknowledgement are to be marked ECT(0).
    pub fn marks(&self) -> bool {
        self.path.marks()
    }

    /// Handle an ACK frame whose delay is `delay` microseconds.
    ///
    /// Returns ranges of the QUIC stack's own packets that it newly acknowledges.
    pub fn acked(&mut self, ack: &AckFrame<'_>, delay: Micros, now: Micros) -> Vec<(u64, u64)> {
        self.note(now);
        // A peer that acknowledges what was never sent is the stack's to judge.
        self.largest_acked = self
            .largest_acked
            .max(ack.largest.min(self.next.saturating_sub(1)));
        let outcome = self.path.acked(ack.ranges(), ack.counts, delay, now);
        self.count(&outcome);
        outcome.stack_acked
    }

    fn count(&mut self, outcome: &Outcome) {
        self.lost_packets += u64::from(outcome.lost_packets);
        self.large_lost_in_a_row = outcome.large_lost_in_a_row;
    }

    /// When time decides about a loss.
    pub fn timer(&self) -> Option<Micros> {
        self.path.next_timer()
    }

    /// Let time pass.
    pub fn on_timer(&mut self, now: Micros) {
        if self.path.next_timer().is_some_and(|at| at <= now) {
            let outcome = self.path.on_timer(now);
            self.count(&outcome);
        }
    }

    /// Whether of late only large packets were lost.
    pub fn black_hole_suspected(&self) -> bool {
        self.large_lost_in_a_row >= BLACK_HOLE_LOSSES
    }

    /// The smoothed round trip in microseconds, 0 before a sample.
    pub fn rtt(&self) -> Micros {
        self.path.recovery().rtt().smoothed()
    }
}
