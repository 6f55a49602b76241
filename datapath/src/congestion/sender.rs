//! Packets and the controller together.

use super::{Controller, View};
use crate::ecn::{Counts, Validation};
use crate::recovery::{Micros, Outcome, Recovery};

/// What an engine asks before and tells after it sends, for one path of one connection.
#[derive(Debug)]
pub struct Sender {
    recovery: Recovery,
    controller: Controller,
    ecn: Validation,
}

impl Sender {
    /// For packets whose numbers are `first_number` or higher.
    pub fn new(first_number: u64, now: Micros) -> Self {
        Sender {
            recovery: Recovery::new(first_number),
            controller: Controller::new(now),
            ecn: Validation::default(),
        }
    }

    /// The bytes that may be sent now; 0, or enough for a batch. The last packet may go over it.
    pub fn allowance(&self, now: Micros) -> usize {
        if self.recovery.room() == 0 {
            return 0;
        }
        let window = self.controller.windowed(self.recovery.bytes_in_flight());
        window.min(self.controller.paced(now)) as usize
    }

    /// When there will be an allowance: `Some(now)` when there is one, `None` when only an
    /// acknowledgement or [`Sender::on_timer`] can give it.
    pub fn next_send(&self, now: Micros) -> Option<Micros> {
        let window = self.controller.windowed(self.recovery.bytes_in_flight());
        (window > 0 && self.recovery.room() > 0).then(|| self.controller.paced_at(now))
    }

    /// `count` packets with consecutive numbers from `first` on leave together; all have `bytes`
    /// bytes (UDP payload) but the last, with `last_bytes`. See [`Recovery::sent_batch`].
    pub fn sent_batch(
        &mut self,
        first: u64,
        count: u16,
        bytes: u16,
        last_bytes: u16,
        large: bool,
        now: Micros,
    ) {
        if count == 0 {
            return;
        }
        if self.recovery.packets_in_flight() == 0 {
            self.controller.on_idle_restart(now);
        }
        let total = u64::from(bytes) * u64::from(count - 1) + u64::from(last_bytes);
        if self.controller.on_sent(total, now) {
            self.recovery.app_limited();
        }
        self.recovery
            .sent_batch(first, count, bytes, last_bytes, large, now);
    }

    /// One packet leaves.
    pub fn sent(&mut self, number: u64, bytes: u16, large: bool, now: Micros) {
        self.sent_batch(number, 1, bytes, bytes, large, now);
    }

    /// A batch was sent, and packets are left that wait, or not: if there are none though there is
    /// an allowance, the rates that are measured until this is acknowledged say nothing about the
    /// path.
    pub fn left(&mut self, waiting: bool) {
        self.controller.backlog = waiting;
        if !waiting && self.controller.windowed(self.recovery.bytes_in_flight()) > 0 {
            self.recovery.app_limited();
        }
    }

    /// Whether packets that leave are to be marked ECT(0) (RFC 9000 section 13.4.2).
    pub fn marks(&self) -> bool {
        self.ecn.marks()
    }

    /// An ACK frame came, with `counts` of marks or without: see [`Recovery::acked`].
    pub fn acked<I>(
        &mut self,
        ranges: I,
        counts: Option<Counts>,
        ack_delay: Micros,
        now: Micros,
    ) -> Outcome
    where
        I: IntoIterator<Item = (u64, u64)>,
    {
        let largest = self.recovery.largest_acked();
        let outcome = self.recovery.acked(ranges, ack_delay, now);
        let mut ce = 0;
        if self.recovery.largest_acked() > largest {
            // What was sent before this path began is not among them.
            let newly = u64::from(outcome.acked_packets) + u64::from(outcome.spurious_packets);
            ce = self.ecn.acked(counts, newly);
        }
        self.tell(&outcome, ce, now);
        outcome
    }

    /// When [`Sender::on_timer`] wants to be called.
    pub fn next_timer(&self) -> Option<Micros> {
        self.recovery.next_timer()
    }

    /// Time passed: see [`Recovery::on_timer`].
    pub fn on_timer(&mut self, now: Micros) -> Outcome {
        let outcome = self.recovery.on_timer(now);
        self.tell(&outcome, 0, now);
        outcome
    }

    /// `ce`: so many packets more met congestion.
    fn tell(&mut self, outcome: &Outcome, ce: u64, now: Micros) {
        self.ecn
            .lost(u64::from(outcome.lost_packets), outcome.tail_lost);
        if outcome.acked_packets + outcome.lost_packets + outcome.spurious_packets == 0 {
            return;
        }
        let view = View {
            in_flight: self.recovery.bytes_in_flight(),
            delivered: self.recovery.delivered(),
            ce,
        };
        self.controller.on_outcome(outcome, view, now);
    }

    /// The connection moved to another path: everything begins anew. See
    /// [`Recovery::begin_path`].
    pub fn begin_path(&mut self, now: Micros) -> (u32, u64) {
        self.controller = Controller::new(now);
        self.ecn.begin_path();
        self.recovery.begin_path(now)
    }

    /// Bytes of memory, those of the struct included.
    pub fn memory(&self) -> usize {
        size_of::<Self>() - size_of::<Recovery>() + self.recovery.memory()
    }

    /// The packets.
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// The packets, to register those of the stack and to set what the peer announced.
    pub fn recovery_mut(&mut self) -> &mut Recovery {
        &mut self.recovery
    }

    /// The model of the path.
    pub fn controller(&self) -> &Controller {
        &self.controller
    }
}
