//! One tunnel's packets on one QUIC connection, sans-IO: sealing, opening, ACKs, losses.
//!
//! The connection belongs to somebody else, who shook hands, decides about keys, connection IDs,
//! path and packet size, and gets every packet that holds more than DATAGRAM, ACK, PADDING and PING
//! frames, or a datagram that is not of this tunnel. Packet numbers are shared: while `reserved`,
//! the other one uses them and nothing is sent here. Times are microseconds.

use std::collections::VecDeque;
use std::ops::Range;

use crate::frames::Frames;
use crate::outbox::{MAX_PACKET, Outbox, Target, Wire};
use crate::protection::{Keys, NUMBER, TAG};
use crate::received::Received;
use crate::sent::{Outcome, Sent};
use crate::varint;

/// Bytes that a packet must have left to be kept open for another inner packet.
const WORTH_WAITING: usize = 48;
/// Bytes below the full size that still count as large, for black hole detection.
const LARGE_MARGIN: usize = 64;
/// The largest `max_ack_delay` that is believed, and what a peer that says nothing has.
const MAX_ACK_DELAY: u64 = 25_000;

/// Packets after which keys should be updated, half of what AES-GCM allows (RFC 9001 section 6.6),
/// and after which somebody is reminded.
const UPDATE_AFTER: u64 = 1 << 22;
const UPDATE_REMINDER: u64 = 1 << 20;

/// Packets that may wait to be looked at by somebody else.
const MAX_WENT_UP: usize = 1024;

/// What is not the tunnel's own to decide, as it is now.
#[derive(Debug)]
pub struct Settings {
    pub target: Target,
    /// The peer's connection ID, and the length of ours.
    pub peer_id: Vec<u8>,
    pub own_id_length: usize,
    /// The largest UDP payload.
    pub packet_size: usize,
    /// The peer's transport parameter.
    pub ack_delay_exponent: u32,
}

/// What happened since the beginning; read by whoever asks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub rx_packets: u64,
    pub rx_bytes: u64,
    /// Packets of ours that the peer did not get, and large ones in a row of late.
    pub lost: u64,
    pub large_lost_in_a_row: u64,
    /// Datagrams not sent: too much is unacknowledged, or the key is used up.
    pub unacknowledged: u64,
}

/// What became of a packet from the network.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Arrival {
    /// It is ours; the datagrams are in `Frames`.
    Taken,
    /// Somebody else must handle it, from its sealed bytes.
    Up,
    /// Not sealed with our keys.
    Unknown,
    Dropped,
}

/// A packet under construction at the front of the outbox's room.
#[derive(Clone, Copy, Debug)]
struct Draft {
    length: usize,
    ack_eliciting: bool,
}

pub struct Session {
    pub settings: Settings,
    pub keys: Keys,
    pub received: Received,
    pub sent: Sent,
    pub counters: Counters,
    /// Quarter Stream ID and Context ID in front of each inner packet (RFC 9484 section 6).
    prefix: Vec<u8>,
    /// Somebody else uses packet numbers now.
    pub reserved: bool,
    /// When the last valid packet arrived.
    pub last_received: u64,
    /// Numbers of packets that went up of late: whoever gets the books may not have seen them yet.
    pub went_up: VecDeque<u64>,
    /// An ACK that concerns packets that somebody else sent; its frame, for them.
    pub foreign_ack: Option<Vec<u8>>,
    draft: Option<Draft>,
    update_at: u64,
}

impl Session {
    pub fn new(
        settings: Settings,
        keys: Keys,
        received: Received,
        sent: Sent,
        prefix: Vec<u8>,
        now: u64,
    ) -> Self {
        Self {
            settings,
            keys,
            received,
            sent,
            counters: Counters::default(),
            prefix,
            reserved: false,
            last_received: now,
            went_up: VecDeque::new(),
            foreign_ack: None,
            draft: None,
            update_at: UPDATE_AFTER,
        }
    }

    /// The largest inner packet in bytes.
    #[inline]
    pub fn mtu(&self) -> usize {
        self.settings.packet_size - self.overhead()
    }

    fn overhead(&self) -> usize {
        1 + self.settings.peer_id.len() + NUMBER + 1 + self.prefix.len() + TAG
    }

    /// Follow a change of the path, the peer's connection ID or the packet size; false, and nothing
    /// changes, for what cannot be.
    pub fn change(&mut self, target: Target, peer_id: Vec<u8>, packet_size: usize) -> bool {
        if peer_id.len() > 20 || !(256..=MAX_PACKET).contains(&packet_size) {
            return false;
        }
        self.settings.target = target;
        self.settings.peer_id = peer_id;
        self.settings.packet_size = packet_size;
        true
    }

    // Receiving

    /// Take a 1-RTT packet; its plain text goes to `out`, what it holds to `frames`.
    ///
    /// `up` says whether there is room for a packet that somebody else must handle; without, it is
    /// as if it had been lost.
    pub fn receive(
        &mut self,
        packet: &[u8],
        out: &mut [u8],
        frames: &mut Frames,
        now: u64,
        up: bool,
    ) -> Arrival {
        let keep = 3 * self.sent.rtt.probe_timeout(MAX_ACK_DELAY);
        let Some(opened) = self.keys.open(
            packet,
            self.settings.own_id_length,
            self.received.next(),
            now,
            keep,
            out,
        ) else {
            return Arrival::Unknown;
        };
        if !self.received.is_new(opened.number) {
            return Arrival::Dropped;
        }
        let payload = &out[..opened.length];
        let ours = frames.parse(payload)
            && !opened.reserved
            && frames
                .datagrams
                .iter()
                .all(|range| payload[range.clone()].starts_with(&self.prefix));
        if !ours && !up {
            return Arrival::Dropped;
        }
        self.last_received = now;
        if let Some((ack, place)) = frames.ack.clone() {
            let frame = ours.then(|| &payload[place]);
            self.acked(frames, ack.delay, frame, now);
        }
        let within = (frames.ack_eliciting || !ours).then_some(self.sent.rtt.smoothed / 4);
        self.received.record(opened.number, now, within);
        if ours {
            return Arrival::Taken;
        }
        if self.went_up.len() == MAX_WENT_UP {
            self.went_up.pop_front();
        }
        self.went_up.push_back(opened.number);
        Arrival::Up
    }

    /// Somebody else received these numbers, first and last of each range: acknowledge them.
    pub fn note_received(&mut self, ranges: &[(u64, u64)], now: u64) {
        for (low, high) in ranges {
            for number in (*low).max(high.saturating_sub(MAX_WENT_UP as u64))..=*high {
                if self.received.is_new(number) {
                    self.received.record(number, now, Some(0));
                }
            }
        }
    }

    /// Where the inner packet is within a datagram of this tunnel.
    #[inline]
    pub fn inner(&self, datagram: &Range<usize>) -> Range<usize> {
        datagram.start + self.prefix.len()..datagram.end
    }

    fn acked(&mut self, frames: &Frames, delay: u64, frame: Option<&[u8]>, now: u64) {
        let Some((_, largest)) = frames.ranges.first().copied() else {
            return;
        };
        let delay = delay
            .checked_shl(self.settings.ack_delay_exponent)
            .map_or(MAX_ACK_DELAY, |delay| delay.min(MAX_ACK_DELAY));
        let foreign = self.sent.concerns_foreign(largest);
        let large = (self.settings.packet_size - LARGE_MARGIN) as u16;
        if let Some(outcome) = self.sent.acked(&frames.ranges, delay, now, large) {
            self.count(&outcome);
            if foreign && let Some(frame) = frame {
                self.foreign_ack = Some(frame.to_vec());
            }
        }
    }

    fn count(&mut self, outcome: &Outcome) {
        self.counters.lost += outcome.lost;
        if outcome.large_acked > 0 {
            self.counters.large_lost_in_a_row = 0;
        }
        self.counters.large_lost_in_a_row += outcome.large_lost;
    }

    // Sending

    /// Put an inner packet of `length` bytes, at most `mtu()`, into a packet; `write` writes it.
    ///
    /// Small ones share a packet, which stays open until `finish` or until it is full.
    #[inline]
    pub fn send(
        &mut self,
        length: usize,
        write: impl FnOnce(&mut [u8]),
        outbox: &mut Outbox,
        wire: &mut impl Wire,
        now: u64,
    ) {
        if !self.sent.has_room() {
            self.counters.unacknowledged += 1;
            return;
        }
        let limit = self.settings.packet_size - TAG;
        let size = self.prefix.len() + length;
        if self.draft.is_some_and(|draft| draft.length + 1 + size > limit) {
            self.finish(outbox, wire, now);
        }
        let mut draft = match self.draft.take() {
            Some(draft) => draft,
            None => self.begin(outbox.room(), limit - 1 - size, now),
        };
        let room = outbox.room();
        let with_length = 1 + varint::size(size as u64) + size;
        let keep_open = draft.length + with_length + WORTH_WAITING <= limit;
        if keep_open {
            room[draft.length] = 0x31;
            draft.length += 1 + varint::write(size as u64, &mut room[draft.length + 1..]);
        } else {
            room[draft.length] = 0x30;
            draft.length += 1;
        }
        let at = draft.length + self.prefix.len();
        room[draft.length..at].copy_from_slice(&self.prefix);
        write(&mut room[at..at + length]);
        draft.length = at + length;
        draft.ack_eliciting = true;
        self.draft = Some(draft);
        self.counters.tx_packets += 1;
        self.counters.tx_bytes += length as u64;
        if !keep_open {
            self.finish(outbox, wire, now);
        }
    }

    /// Seal the open packet, if any.
    pub fn finish(&mut self, outbox: &mut Outbox, wire: &mut impl Wire, now: u64) {
        if let Some(draft) = self.draft.take() {
            self.seal(draft, NUMBER, outbox, wire, now);
        }
    }

    /// Send what time makes due: an ACK, a probe. Not while `reserved`.
    pub fn timers(&mut self, outbox: &mut Outbox, wire: &mut impl Wire, now: u64) {
        self.keys.forget_previous(now);
        if self.sent.probe_at(MAX_ACK_DELAY).is_some_and(|at| now >= at) {
            self.sent.probed(now);
            // Four bytes of packet number, since who knows what the peer has received.
            let mut draft = self.begin_sized(outbox.room(), 4, 256, now);
            outbox.room()[draft.length] = 0x01;
            draft.length += 1;
            draft.ack_eliciting = true;
            self.seal(draft, 4, outbox, wire, now);
        }
        if self.received.due().is_some_and(|at| now >= at) {
            let limit = self.settings.packet_size - TAG;
            let draft = self.begin(outbox.room(), limit, now);
            self.seal(draft, NUMBER, outbox, wire, now);
        }
    }

    /// Whether the key was used for long, once for each while that it goes on being used.
    pub fn update_due(&mut self) -> bool {
        let due = self.keys.sealed() >= self.update_at;
        if due {
            self.update_at = self.keys.sealed() + UPDATE_REMINDER;
        } else if self.keys.sealed() < self.update_at - UPDATE_REMINDER {
            self.update_at = UPDATE_AFTER;
        }
        due
    }

    /// When `timers` has something to do.
    pub fn deadline(&self) -> Option<u64> {
        if self.reserved {
            return None;
        }
        match (self.received.due(), self.sent.probe_at(MAX_ACK_DELAY)) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn begin(&mut self, room: &mut [u8], limit: usize, now: u64) -> Draft {
        self.begin_sized(room, NUMBER, limit, now)
    }

    /// The header, and an ACK if one is pending and leaves everything within `limit` bytes.
    fn begin_sized(&mut self, room: &mut [u8], number: usize, limit: usize, now: u64) -> Draft {
        let id = &self.settings.peer_id;
        room[1..1 + id.len()].copy_from_slice(id);
        let at = 1 + id.len() + number;
        let ack = match room.get_mut(at..limit) {
            Some(room) => self.received.write_ack(room, now),
            None => None,
        };
        Draft { length: at + ack.unwrap_or(0), ack_eliciting: false }
    }

    fn seal(
        &mut self,
        mut draft: Draft,
        number: usize,
        outbox: &mut Outbox,
        wire: &mut impl Wire,
        now: u64,
    ) {
        let id_length = self.settings.peer_id.len();
        let room = outbox.room();
        // The sample for header protection must exist (RFC 9001 section 5.4.2).
        let minimum = 1 + id_length + 4;
        if draft.length < minimum {
            room[draft.length..minimum].fill(0);
            draft.length = minimum;
        }
        let size = draft.length + TAG;
        if !self.keys.seal(&mut room[..size], id_length, self.sent.next(), number) {
            self.counters.unacknowledged += 1;
            return;
        }
        self.sent.record(size, now, draft.ack_eliciting);
        outbox.commit(size, &self.settings.target, wire);
    }
}
