//! What was sent and what became of it, and how much may be sent now: recovery and control as one.

use crate::Micros;
use crate::quic::{AckFrame, MAX_UNACKNOWLEDGED};
use crate::recovery::Recovery;

/// Large packets lost in a row that make a black hole likely (RFC 8899 section 4.3).
const BLACK_HOLE_LOSSES: u32 = 3;

/// The sending side of one session.
pub struct Sender {
    recovery: Recovery,
    largest_acked: u64,
    large_lost_in_a_row: u32,
    /// Packets that were declared lost.
    pub lost_packets: u64,
}

impl Sender {
    /// Goes on at packet number `next`; `rtt` in microseconds is a first idea, or 0.
    pub fn new(next: u64, max_ack_delay: Micros, rtt: Micros, _now: Micros) -> Self {
        let mut recovery = Recovery::new(next);
        recovery.set_max_ack_delay(max_ack_delay);
        if rtt > 0 {
            recovery.hint_rtt(rtt);
        }
        Self { recovery, largest_acked: next.saturating_sub(1), large_lost_in_a_row: 0, lost_packets: 0 }
    }

    /// The QUIC stack sent numbers from `first` up to the one before `end`.
    pub fn stack_sent(&mut self, first: u64, end: u64) {
        if end > first {
            self.recovery.stack_sent(first, end - 1);
        }
    }

    /// Another path: what was learned of the last one says nothing.
    pub fn begin_path(&mut self, now: Micros) {
        self.recovery.begin_path(now);
        self.large_lost_in_a_row = 0;
    }

    /// Whether another packet number may be taken before older ones are acknowledged.
    pub fn has_room(&self, next: u64) -> bool {
        self.recovery.room() > 256 && next.saturating_sub(self.largest_acked) < MAX_UNACKNOWLEDGED
    }

    /// A packet of `bytes` went out.
    pub fn sent(&mut self, number: u64, bytes: usize, large: bool, now: Micros) {
        self.recovery.sent(number, bytes as u16, large, now);
    }

    /// Handle an ACK frame whose delay is `delay` microseconds.
    ///
    /// Returns ranges of the QUIC stack's own packets that it newly acknowledges.
    pub fn acked(&mut self, ack: &AckFrame<'_>, delay: Micros, now: Micros) -> Vec<(u64, u64)> {
        self.largest_acked = self.largest_acked.max(ack.largest);
        let outcome = self.recovery.acked(ack.ranges(), delay, now);
        self.lost_packets += u64::from(outcome.lost_packets);
        self.large_lost_in_a_row = outcome.large_lost_in_a_row;
        outcome.stack_acked
    }

    /// When a packet may be sent that waits, if not now.
    pub fn next_send(&self) -> Option<Micros> {
        None
    }

    /// When time decides about a loss.
    pub fn timer(&self) -> Option<Micros> {
        self.recovery.next_timer()
    }

    /// Let time pass.
    pub fn on_timer(&mut self, now: Micros) {
        if self.recovery.next_timer().is_some_and(|at| at <= now) {
            let outcome = self.recovery.on_timer(now);
            self.lost_packets += u64::from(outcome.lost_packets);
            self.large_lost_in_a_row = outcome.large_lost_in_a_row;
        }
    }

    /// Whether of late only large packets were lost.
    pub fn black_hole_suspected(&self) -> bool {
        self.large_lost_in_a_row >= BLACK_HOLE_LOSSES
    }

    /// The smoothed round trip in microseconds, 0 before a sample.
    pub fn rtt(&self) -> Micros {
        self.recovery.rtt().smoothed()
    }
}
