//! What is known about the packets that the engine sent: RFC 9002 for a packet number space that
//! is shared with a QUIC stack above.
//!
//! The engine takes its packet numbers from the same counter as the stack. So the numbers seen
//! here have gaps: packets of the stack (registered by [`Recovery::stack_sent`], so that their
//! acknowledgements can be handed up) and packets of the engine with nothing but an ACK frame
//! (registered nowhere). Every tracked packet is ack-eliciting and holds datagrams, which are
//! never retransmitted; so there are no probes (RFC 9002 section 6.2), and a tail that nobody
//! acknowledges is declared lost after a while.
//!
//! What it costs: 2.4 bytes for each packet number between the oldest packet in flight and the
//! newest, plus 64 bytes for each 1/32 of a round trip in which something was sent. An ACK frame
//! costs its number of ranges that reach into this window plus a 64th of the numbers that they
//! cover there, however old or often repeated the rest of it is. Nothing here panics, whatever the
//! peer acknowledges.

use std::collections::VecDeque;

mod rtt;
mod stack;
#[cfg(test)]
mod tests;

pub use rtt::Rtt;
use stack::StackNumbers;

/// A time or a duration in microseconds, on a monotonic clock that the caller chooses.
pub type Micros = u64;

/// RFC 9002 section 6.1.2, `kGranularity`: 1 ms.
pub const GRANULARITY: Micros = 1_000;

/// RFC 9002 section 6.1.1, `kPacketThreshold`: what the packet threshold starts at.
pub const PACKET_THRESHOLD: u64 = 3;

/// What the packet threshold adapts to at most.
pub const MAX_PACKET_THRESHOLD: u64 = 1024;

/// Packets further than this many numbers behind the newest are declared lost.
pub const WINDOW: u64 = 1 << 15;

/// A tail without acknowledgement is declared lost no earlier than this.
const MIN_TAIL: Micros = 1_000_000;

/// Memory beyond the least is given back after this long without traffic.
const TRIM_AFTER: Micros = 1_000_000;

/// The time threshold in eighths of a round trip: RFC 9002 section 6.1.2, `kTimeThreshold`.
const TIME_THRESHOLD: u64 = 9;
const MAX_TIME_THRESHOLD: u64 = 16;

/// Packet numbers are below 2^62 (RFC 9000 section 12.3).
const NUMBERS: u64 = 1 << 62;

/// Numbers per block.
const BLOCK: u64 = 64;
const MAX_BLOCKS: u64 = WINDOW / BLOCK;

/// What remains allocated when a session is idle.
const IDLE_CAPACITY: usize = 4;

/// 64 consecutive packet numbers, one bit each.
#[derive(Clone, Debug)]
struct Block {
    in_flight: u64,
    /// Declared lost, and neither acknowledged nor forgotten since.
    lost: u64,
    large: u64,
    bytes: [u16; BLOCK as usize],
}

const EMPTY: Block = Block {
    in_flight: 0,
    lost: 0,
    large: 0,
    bytes: [0; BLOCK as usize],
};

/// What was sent at nearly the same time, with a snapshot of the connection at its first packet
/// (draft-ietf-ccwg-bbr, "Delivery Rate Samples").
#[derive(Clone, Debug)]
struct Batch {
    first: u64,
    time: Micros,
    /// From the first packet to the last.
    span: u32,
    /// Bytes in flight at the last packet of it, with it.
    in_flight: u32,
    delivered: u64,
    delivered_time: Micros,
    first_sent_time: Micros,
    lost: u64,
    app_limited: bool,
}

impl Batch {
    fn end(&self) -> Micros {
        self.time.saturating_add(u64::from(self.span))
    }
}

/// A sample of the delivery rate: draft-ietf-ccwg-bbr, "Delivery Rate Samples".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateSample {
    /// Bytes delivered over `interval`.
    pub delivered: u64,
    /// The longer of the times in which these bytes were sent and were acknowledged. At least 1.
    pub interval: Micros,
    /// [`Recovery::delivered`] when the newest packet that was acknowledged was sent: what tells
    /// rounds apart.
    pub prior_delivered: u64,
    /// Bytes in flight when the newest packet that was acknowledged was sent, with it.
    pub in_flight: u64,
    /// Bytes declared lost since that packet was sent.
    pub lost: u64,
    /// The sender had too little to send for the sample to tell what the path can carry.
    pub app_limited: bool,
}

impl RateSample {
    /// Bytes per second.
    pub fn rate(&self) -> u64 {
        self.delivered.saturating_mul(1_000_000) / self.interval.max(1)
    }
}

/// What an ACK frame or a timer brought to light.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Packets newly acknowledged.
    pub acked_packets: u32,
    /// Their bytes.
    pub acked_bytes: u64,
    /// Packets newly declared lost.
    pub lost_packets: u32,
    /// Their bytes.
    pub lost_bytes: u64,
    /// Bytes in flight when the newest of the lost packets was sent; 0 when none was lost.
    pub lost_in_flight: u64,
    /// Packets acknowledged now that had been declared lost before (and were counted then).
    pub spurious_packets: u32,
    /// Their bytes.
    pub spurious_bytes: u64,
    /// A new measurement of the round trip, without the peer's delay where that is known.
    pub rtt_sample: Option<Micros>,
    /// A new measurement of the delivery rate.
    pub rate: Option<RateSample>,
    /// Inclusive ranges of packets of the QUIC stack that were newly acknowledged; ascending or
    /// descending as in the ACK frame.
    pub stack_acked: Vec<(u64, u64)>,
    /// How many packets marked `large` were lost in a row, up to now, with none acknowledged
    /// between: what finds a black hole (RFC 8899 section 4.3).
    pub large_lost_in_a_row: u32,
    /// Something was lost because nothing at all was acknowledged for a long time.
    pub tail_lost: bool,
}

/// Sent packets, round trips and losses of one path.
#[derive(Debug)]
pub struct Recovery {
    blocks: VecDeque<Block>,
    /// The number of the first block.
    base: u64,
    batches: VecDeque<Batch>,
    /// Nothing below is in flight.
    oldest: u64,
    /// Numbers from here on have not been sent by the engine.
    next: u64,
    packets: u32,
    bytes: u64,
    /// Packets declared lost and remembered.
    lost_held: u32,
    largest_acked: Option<u64>,
    stack: StackNumbers,
    rtt: Rtt,

    packet_threshold: u64,
    time_threshold: u64,
    /// The time threshold rises at most once a round trip.
    threshold_raised: Micros,

    delivered: u64,
    delivered_time: Micros,
    first_sent_time: Micros,
    lost: u64,
    /// While `delivered` is below it, the sender was short of data. 0: it is not.
    app_limited_until: u64,

    large_lost: u32,
    /// Above the largest `large` packet that was acknowledged.
    large_acked: u64,
    spurious: u64,
    /// Lost outside `acked` and `on_timer`, to be reported by the next of them.
    pending: Outcome,
    last_activity: Micros,
}

/// Bits `from..=to` of a word.
fn mask(from: u64, to: u64) -> u64 {
    (u64::MAX << (from % BLOCK)) & (u64::MAX >> (BLOCK - 1 - to % BLOCK))
}

/// The highest bit that is set, for words that are not zero.
fn top(bits: u64) -> u64 {
    u64::from(bits.checked_ilog2().unwrap_or(0))
}

impl Recovery {
    /// For packets whose numbers are `first_number` or higher.
    pub fn new(first_number: u64) -> Self {
        Recovery {
            blocks: VecDeque::new(),
            base: 0,
            batches: VecDeque::new(),
            oldest: first_number,
            next: first_number,
            packets: 0,
            bytes: 0,
            lost_held: 0,
            largest_acked: None,
            stack: StackNumbers::default(),
            rtt: Rtt::default(),
            packet_threshold: PACKET_THRESHOLD,
            time_threshold: TIME_THRESHOLD,
            threshold_raised: 0,
            delivered: 0,
            delivered_time: 0,
            first_sent_time: 0,
            lost: 0,
            app_limited_until: 0,
            large_lost: 0,
            large_acked: 0,
            spurious: 0,
            pending: Outcome::default(),
            last_activity: 0,
        }
    }

    /// A packet of `bytes` bytes (the UDP payload) went out. `large` says that it is bigger than
    /// what every path carries, so that losing many of them in a row means that the path became
    /// narrower.
    ///
    /// Numbers rise from call to call; a number that does not is ignored. When more than
    /// [`WINDOW`] numbers lie between the oldest packet in flight and this one, the oldest are
    /// declared lost, and the next [`Outcome`] says so.
    pub fn sent(&mut self, number: u64, bytes: u16, large: bool, now: Micros) {
        self.sent_batch(number, 1, bytes, bytes, large, now);
    }

    /// `count` packets with consecutive numbers from `first` on went out together: as one buffer
    /// with `UDP_SEGMENT`, where all have `bytes` bytes except the last with `last_bytes`. See
    /// [`Recovery::sent`].
    pub fn sent_batch(
        &mut self,
        first: u64,
        count: u16,
        bytes: u16,
        last_bytes: u16,
        large: bool,
        now: Micros,
    ) {
        let Some(more) = u64::from(count).checked_sub(1) else {
            return;
        };
        if first < self.next || first >= NUMBERS {
            return;
        }
        let last = first + more;
        self.last_activity = now;
        self.make_room(first, last);
        if self.packets == 0 {
            self.first_sent_time = now;
            self.delivered_time = now;
            self.oldest = first;
        }
        self.next = last + 1;
        self.packets += u32::from(count);
        self.bytes += u64::from(bytes) * more + u64::from(last_bytes);
        self.note_batch(first, now);

        let mut number = first;
        while number <= last {
            let end = last.min(number | (BLOCK - 1));
            if let Some(block) = self.blocks.get_mut((number / BLOCK - self.base) as usize) {
                let bits = mask(number, end);
                block.in_flight |= bits;
                if large {
                    block.large |= bits;
                }
                let places = (number % BLOCK) as usize..=(end % BLOCK) as usize;
                block.bytes[places].fill(bytes);
                if end == last {
                    block.bytes[(end % BLOCK) as usize] = last_bytes;
                }
            }
            number = end + 1;
        }
    }

    /// Blocks for the numbers up to `last`, dropping what is too far behind.
    fn make_room(&mut self, first: u64, last: u64) {
        if self.blocks.is_empty() {
            self.base = first / BLOCK;
        }
        let index = last / BLOCK;
        if index - self.base >= MAX_BLOCKS {
            self.forget_below((index - MAX_BLOCKS + 1).min(first / BLOCK));
            if self.blocks.is_empty() {
                self.base = first / BLOCK;
            }
        }
        let wanted = (index - self.base + 1) as usize;
        if wanted > self.blocks.len() {
            self.blocks.resize(wanted, EMPTY);
        }
    }

    /// Drops the blocks below that of number `index`; what is in flight in them is lost.
    fn forget_below(&mut self, index: u64) {
        let mut outcome = std::mem::take(&mut self.pending);
        if let Some(limit) = (index * BLOCK).checked_sub(1) {
            self.lose_through(limit, &mut outcome);
        }
        self.pending = outcome;
        while self.base < index
            && let Some(block) = self.blocks.pop_front()
        {
            self.lost_held -= block.lost.count_ones();
            self.base += 1;
        }
        self.drop_batches();
    }

    /// Opens a batch for a packet, or joins it to the last one. The totals already hold it.
    fn note_batch(&mut self, first: u64, now: Micros) {
        let in_flight = u32::try_from(self.bytes).unwrap_or(u32::MAX);
        let app_limited = self.app_limited_until != 0;
        let join = self.rtt.smoothed().min(32_000) / 32;
        if let Some(batch) = self.batches.back_mut()
            && now.saturating_sub(batch.time) <= join
            && batch.app_limited == app_limited
        {
            batch.span = now.saturating_sub(batch.time) as u32;
            batch.in_flight = in_flight;
            return;
        }
        self.batches.push_back(Batch {
            first,
            time: now,
            span: 0,
            in_flight,
            delivered: self.delivered,
            delivered_time: self.delivered_time,
            first_sent_time: self.first_sent_time,
            lost: self.lost,
            app_limited,
        });
    }

    /// The stack sent packets with the numbers `first..=last`. Only the latest 1024 numbers are
    /// remembered.
    pub fn stack_sent(&mut self, first: u64, last: u64) {
        self.stack.insert(first, last);
    }

    /// An ACK frame came: inclusive ranges `(smallest, largest)`, largest first, and what the peer
    /// says it waited.
    pub fn acked<I>(&mut self, ranges: I, ack_delay: Micros, now: Micros) -> Outcome
    where
        I: IntoIterator<Item = (u64, u64)>,
    {
        self.last_activity = now;
        let mut outcome = std::mem::take(&mut self.pending);
        let before = self.largest_acked;
        let mut largest = None;
        let mut newest = None;
        for (first, last) in ranges {
            if first > last {
                continue;
            }
            largest.get_or_insert(last);
            if last < self.stack.first() && last < self.floor() {
                break;
            }
            self.stack.acked(first, last, &mut outcome.stack_acked);
            let range_newest = self.ack_range(first, last, before, now, &mut outcome);
            newest = newest.max(range_newest);
        }
        if let Some(largest) = largest {
            // A peer may acknowledge what nobody sent; the stack is the one to close then.
            let sent = self.next.max(self.stack.next()).saturating_sub(1);
            self.largest_acked = self.largest_acked.max(Some(largest.min(sent)));
            self.stack.age(largest, 2 * self.tail_delay(), now);
        }
        self.delivered += outcome.acked_bytes + outcome.spurious_bytes;
        if outcome.acked_packets > 0 {
            self.delivered_time = now;
        }
        if self.app_limited_until != 0 && self.delivered > self.app_limited_until {
            self.app_limited_until = 0;
        }
        let mut sampled = None;
        if let Some(newest) = newest
            && let Some(batch) = self.batch_of(newest).and_then(|at| self.batches.get(at))
        {
            let rtt = now.saturating_sub(batch.time);
            outcome.rtt_sample = if largest == Some(newest) {
                Some(self.rtt.sample(rtt, ack_delay))
            } else {
                // The largest is not ours: all we know is that the round trip is no longer.
                self.rtt.upper_bound(rtt)
            };
            let sending = batch.time.saturating_sub(batch.first_sent_time);
            let acking = now.saturating_sub(batch.delivered_time);
            sampled = Some((batch.clone(), sending.max(acking).max(1)));
            self.first_sent_time = self.first_sent_time.max(batch.time);
        }
        self.detect_losses(now, &mut outcome);
        if let Some((batch, interval)) = sampled {
            outcome.rate = Some(RateSample {
                delivered: self.delivered.saturating_sub(batch.delivered),
                interval,
                prior_delivered: batch.delivered,
                in_flight: u64::from(batch.in_flight),
                lost: self.lost.saturating_sub(batch.lost),
                app_limited: batch.app_limited,
            });
        }
        self.collect(now);
        outcome.large_lost_in_a_row = self.large_lost;
        outcome
    }

    /// What an acknowledgement of the engine's packets must reach to be news.
    fn floor(&self) -> u64 {
        if self.lost_held == 0 {
            self.oldest
        } else {
            self.base * BLOCK
        }
    }

    /// Takes the packets of a range out of the flight. Returns the newest that was in it.
    fn ack_range(
        &mut self,
        first: u64,
        last: u64,
        before: Option<u64>,
        now: Micros,
        outcome: &mut Outcome,
    ) -> Option<u64> {
        let last = last.min(self.next.checked_sub(1)?);
        let mut number = first.max(self.floor());
        let mut newest = None;
        let mut spurious_from = None;
        while number <= last {
            let end = last.min(number | (BLOCK - 1));
            let index = number / BLOCK;
            let Some(block) = index
                .checked_sub(self.base)
                .and_then(|at| self.blocks.get_mut(at as usize))
            else {
                break;
            };
            let bits = mask(number, end);
            let fresh = block.in_flight & bits;
            let late = block.lost & bits;
            if fresh | late != 0 {
                let (fresh_bytes, late_bytes) = (sum(block, fresh), sum(block, late));
                block.in_flight &= !fresh;
                block.lost &= !late;
                if fresh != 0 {
                    let count = fresh.count_ones();
                    self.packets -= count;
                    self.bytes -= fresh_bytes;
                    outcome.acked_packets += count;
                    outcome.acked_bytes += fresh_bytes;
                    newest = Some(index * BLOCK + top(fresh));
                }
                if late != 0 {
                    let count = late.count_ones();
                    self.lost_held -= count;
                    self.spurious += u64::from(count);
                    outcome.spurious_packets += count;
                    outcome.spurious_bytes += late_bytes;
                    spurious_from.get_or_insert(index * BLOCK + u64::from(late.trailing_zeros()));
                }
                let large = (fresh | late) & block.large;
                if large != 0 {
                    let newest_large = index * BLOCK + top(large);
                    if newest_large >= self.large_acked {
                        self.large_acked = newest_large + 1;
                        self.large_lost = 0;
                    }
                }
            }
            number = end + 1;
        }
        if let (Some(number), Some(before)) = (spurious_from, before) {
            self.tolerate(before.saturating_sub(number), now);
        }
        newest
    }

    /// A packet was overtaken by `distance` numbers and yet not lost: RFC 9002 section 6.1.1 lets
    /// the thresholds grow.
    fn tolerate(&mut self, distance: u64, now: Micros) {
        let wanted = distance.max(self.packet_threshold).saturating_add(1);
        self.packet_threshold = wanted.min(MAX_PACKET_THRESHOLD);
        if now.saturating_sub(self.threshold_raised) >= self.rtt.smoothed() {
            self.time_threshold = (self.time_threshold + 1).min(MAX_TIME_THRESHOLD);
            self.threshold_raised = now;
        }
    }

    /// RFC 9002 section 6.1.
    fn detect_losses(&mut self, now: Micros, outcome: &mut Outcome) {
        let Some(largest) = self.largest_acked else {
            return;
        };
        if let Some(limit) = largest.checked_sub(self.packet_threshold) {
            self.lose_through(limit, outcome);
        }
        let Some(below) = largest.checked_sub(1) else {
            return;
        };
        let delay = self.loss_delay();
        self.lose_older(delay, below, now, outcome);
    }

    /// Declares lost what was sent `delay` or longer ago, up to number `limit`.
    fn lose_older(&mut self, delay: Micros, limit: u64, now: Micros, outcome: &mut Outcome) {
        while self.packets > 0 && self.oldest <= limit {
            let Some(at) = self.batch_of(self.oldest) else {
                return;
            };
            let Some(batch) = self.batches.get(at) else {
                return;
            };
            if batch.end().saturating_add(delay) > now {
                return;
            }
            let end = self
                .batches
                .get(at + 1)
                .map_or(self.next, |next| next.first)
                .saturating_sub(1);
            self.lose_through(end.min(limit), outcome);
        }
    }

    /// Declares lost what is in flight with numbers up to `limit`, and moves `oldest` on.
    fn lose_through(&mut self, limit: u64, outcome: &mut Outcome) {
        let limit = limit.min(self.next.saturating_sub(1));
        let mut newest = None;
        while self.packets > 0 && self.oldest <= limit {
            let index = self.oldest / BLOCK;
            let end = limit.min(self.oldest | (BLOCK - 1));
            let Some(block) = index
                .checked_sub(self.base)
                .and_then(|at| self.blocks.get_mut(at as usize))
            else {
                break;
            };
            let bits = block.in_flight & mask(self.oldest, end);
            if bits != 0 {
                let bytes = sum(block, bits);
                block.in_flight &= !bits;
                block.lost |= bits;
                let count = bits.count_ones();
                self.packets -= count;
                self.bytes -= bytes;
                self.lost_held += count;
                self.lost += bytes;
                outcome.lost_packets += count;
                outcome.lost_bytes += bytes;
                newest = Some(index * BLOCK + top(bits));
                let mut large = bits & block.large;
                if let Some(acked) = self.large_acked.checked_sub(index * BLOCK) {
                    let shift = u32::try_from(acked).unwrap_or(u32::MAX);
                    large &= u64::MAX.checked_shl(shift).unwrap_or(0);
                }
                self.large_lost = self.large_lost.saturating_add(large.count_ones());
            }
            self.oldest = end.saturating_add(1);
        }
        if let Some(newest) = newest
            && let Some(batch) = self.batch_of(newest).and_then(|at| self.batches.get(at))
        {
            outcome.lost_in_flight = u64::from(batch.in_flight);
        }
        self.find_oldest();
    }

    /// Moves `oldest` to the first packet in flight.
    fn find_oldest(&mut self) {
        if self.packets == 0 {
            self.oldest = self.next;
            return;
        }
        while self.oldest < self.next {
            let index = self.oldest / BLOCK;
            let Some(block) = index
                .checked_sub(self.base)
                .and_then(|at| self.blocks.get(at as usize))
            else {
                return;
            };
            let bits = block.in_flight & (u64::MAX << (self.oldest % BLOCK));
            if bits != 0 {
                self.oldest = index * BLOCK + u64::from(bits.trailing_zeros());
                return;
            }
            self.oldest = (index + 1) * BLOCK;
        }
    }

    /// The batch of a packet.
    fn batch_of(&self, number: u64) -> Option<usize> {
        let after = self.batches.partition_point(|batch| batch.first <= number);
        after.checked_sub(1)
    }

    /// Drops what is not needed any more from the front.
    fn collect(&mut self, now: Micros) {
        self.find_oldest();
        let keep = self.oldest / BLOCK;
        // How long the acknowledgement of a packet that was declared lost is waited for.
        let patience = self.loss_delay() + 2 * self.rtt.smoothed() + 4 * self.rtt.variance();
        while let Some(block) = self.blocks.front() {
            if self.base >= keep && self.packets > 0 {
                break;
            }
            if block.lost != 0 {
                let newest = self.base * BLOCK + top(block.lost);
                let sent = self
                    .batch_of(newest)
                    .and_then(|at| self.batches.get(at))
                    .map_or(0, Batch::end);
                if sent.saturating_add(patience) > now {
                    break;
                }
                self.lost_held -= block.lost.count_ones();
            }
            self.blocks.pop_front();
            self.base += 1;
        }
        self.drop_batches();
    }

    fn drop_batches(&mut self) {
        if self.blocks.is_empty() {
            self.batches.clear();
            return;
        }
        let first = self.base * BLOCK;
        while self.batches.get(1).is_some_and(|next| next.first <= first) {
            self.batches.pop_front();
        }
    }

    /// When [`Recovery::on_timer`] wants to be called; `None` when nothing is in flight.
    pub fn next_timer(&self) -> Option<Micros> {
        if self.pending.lost_packets > 0 {
            return Some(self.last_activity);
        }
        if self.packets == 0 {
            let idle = self.blocks.is_empty()
                && self.blocks.capacity() <= IDLE_CAPACITY
                && self.batches.capacity() <= IDLE_CAPACITY;
            return (!idle).then(|| self.last_activity.saturating_add(TRIM_AFTER));
        }
        let sent = self.batches.get(self.batch_of(self.oldest)?)?.end();
        let delay = if self.largest_acked.is_some_and(|acked| self.oldest < acked) {
            self.loss_delay()
        } else {
            self.tail_delay()
        };
        Some(sent.saturating_add(delay))
    }

    /// Time passed: finds losses by time, and declares a tail lost that nobody acknowledges.
    pub fn on_timer(&mut self, now: Micros) -> Outcome {
        let mut outcome = std::mem::take(&mut self.pending);
        self.detect_losses(now, &mut outcome);
        let before = outcome.lost_packets;
        self.lose_older(self.tail_delay(), u64::MAX, now, &mut outcome);
        outcome.tail_lost |= outcome.lost_packets > before;
        self.collect(now);
        if self.packets == 0 && now.saturating_sub(self.last_activity) >= TRIM_AFTER {
            self.lost_held = 0;
            self.blocks = VecDeque::new();
            self.batches = VecDeque::new();
            self.stack.trim();
        }
        outcome.large_lost_in_a_row = self.large_lost;
        outcome
    }

    /// The connection moved to another path (RFC 9000 section 9.4): round trips and thresholds are
    /// forgotten, and what is in flight says nothing about the new path. Returns the packets and
    /// bytes that left the flight by that: they are neither acknowledged nor lost.
    pub fn begin_path(&mut self, now: Micros) -> (u32, u64) {
        let mut forgotten = (self.packets, self.bytes);
        // Losses that nobody heard of yet belong to the old path as well.
        let pending = std::mem::take(&mut self.pending);
        forgotten.0 += pending.lost_packets;
        forgotten.1 += pending.lost_bytes;
        self.blocks.clear();
        self.batches.clear();
        self.packets = 0;
        self.bytes = 0;
        self.lost_held = 0;
        self.oldest = self.next;
        self.rtt = Rtt::with_max_ack_delay(self.rtt.max_ack_delay());
        self.packet_threshold = PACKET_THRESHOLD;
        self.time_threshold = TIME_THRESHOLD;
        self.threshold_raised = now;
        self.app_limited_until = 0;
        self.large_lost = 0;
        self.last_activity = now;
        forgotten
    }

    /// What was sent so far was all there was: delivery rates measured until it is delivered do not
    /// tell what the path can carry (draft-ietf-ccwg-bbr, `MarkConnectionAppLimited`).
    pub fn app_limited(&mut self) {
        self.app_limited_until = (self.delivered + self.bytes).max(1);
    }

    /// The peer's `max_ack_delay` transport parameter; 25 ms until told (RFC 9000 section 18.2).
    pub fn set_max_ack_delay(&mut self, max_ack_delay: Micros) {
        self.rtt.set_max_ack_delay(max_ack_delay);
    }

    /// A round trip that the stack measured, for the time until the engine has measured one.
    pub fn hint_rtt(&mut self, rtt: Micros) {
        self.rtt.hint(rtt);
    }

    /// RFC 9002 section 6.1.2: how much older than an acknowledged one a packet may be.
    fn loss_delay(&self) -> Micros {
        let rtt = self.rtt.smoothed().max(self.rtt.latest());
        (rtt.saturating_mul(self.time_threshold) / 8).max(GRANULARITY)
    }

    fn tail_delay(&self) -> Micros {
        self.rtt.pto().saturating_mul(3).max(MIN_TAIL)
    }

    /// Round trips.
    pub fn rtt(&self) -> &Rtt {
        &self.rtt
    }

    /// The largest number that was acknowledged, of the engine or of the stack.
    pub fn largest_acked(&self) -> Option<u64> {
        self.largest_acked
    }

    /// Packets in flight.
    pub fn packets_in_flight(&self) -> u32 {
        self.packets
    }

    /// Bytes in flight.
    pub fn bytes_in_flight(&self) -> u64 {
        self.bytes
    }

    /// Bytes acknowledged so far.
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Packets that were declared lost and acknowledged later.
    pub fn spurious_losses(&self) -> u64 {
        self.spurious
    }

    /// The packet threshold as it is now (RFC 9002 section 6.1.1).
    pub fn packet_threshold(&self) -> u64 {
        self.packet_threshold
    }

    /// How many numbers may still be taken before packets in flight fall out of the window.
    pub fn room(&self) -> u64 {
        if self.packets == 0 {
            return WINDOW - BLOCK;
        }
        (WINDOW - BLOCK).saturating_sub(self.next.saturating_sub(self.oldest))
    }

    /// Bytes of memory, those of the struct included.
    pub fn memory(&self) -> usize {
        size_of::<Self>()
            + self.blocks.capacity() * size_of::<Block>()
            + self.batches.capacity() * size_of::<Batch>()
            + self.stack.memory()
    }
}

/// The bytes of some packets of a block.
fn sum(block: &Block, mut bits: u64) -> u64 {
    if bits == u64::MAX {
        return block.bytes.iter().map(|&bytes| u64::from(bytes)).sum();
    }
    let mut total = 0;
    while bits != 0 {
        total += u64::from(block.bytes[bits.trailing_zeros() as usize]);
        bits &= bits - 1;
    }
    total
}
