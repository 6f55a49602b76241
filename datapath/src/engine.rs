//! All sessions of one TUN: whose packet is it, what goes up, what is due when. No system calls but
//! sends.
//!
//! What it does not decide goes up as an `Event`, through queues of limited length. A device's
//! engine has one session and sends what comes from its addresses; a gateway's finds the session by
//! the destination, and checks what devices send.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use crate::fq_codel::{FqCodel, Packet};
use crate::frames::Frames;
use crate::ip;
use crate::outbox::{Outbox, Target};
use crate::routes::{Addresses, Destinations};
use crate::segment::Segments;
use crate::session::{Arrival, Session};
use crate::socket::Sockets;
use crate::virtio;

/// Length of our own connection IDs, at both ends.
pub const ID_LENGTH: usize = 8;
/// Packets that wait for somebody else: those of the connections, and inner ones.
const MAX_CONTROL: usize = 4096;
const MAX_INNER: usize = 512;
/// Bytes that wait while the kernel takes no more; CoDel keeps them few.
const MAX_WAITING: usize = 4 << 20;
/// Packets a second that nobody could open and that still go up: a stateless reset looks like one.
const MAX_UNKNOWN: u32 = 256;

/// Large packets lost in a row that make it worth asking about the path (RFC 8899 section 4.3).
const BLACK_HOLE: u64 = 3;

pub type ConnectionId = [u8; ID_LENGTH];

/// What somebody else must know or do.
#[derive(Debug)]
pub enum Event {
    /// A UDP payload, as it came.
    Datagram { from: Target, data: Vec<u8> },
    /// An ACK frame that concerns packets that were not sent here, and when it came.
    Ack { session: usize, frame: Vec<u8>, at: u64 },
    /// The peer has updated its keys, and so have we; the next ones are needed.
    Keys { session: usize, generation: u64 },
    /// An inner packet from a device that must not be forwarded as it is.
    Inner { session: usize, packet: Vec<u8> },
    /// A packet from the TUN that is too large, or that no session takes.
    Tun { packet: Vec<u8> },
    /// The local interface does not take packets of this size.
    Refused { session: usize, size: usize },
    /// The key that seals has been used for long.
    UpdateDue { session: usize },
    /// Of late only large packets were lost.
    BlackHole { session: usize },
}

/// Packets that were dropped here and belong to no session, or to the only one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Drops {
    pub bad_source: u64,
    pub bad_destination: u64,
    pub malformed: u64,
    pub tun_refused: u64,
    pub too_big: u64,
    /// Found no room on their way up.
    pub queue_full: u64,
    /// Waited for the kernel for too long; found no room to wait.
    pub queue_delay: u64,
    pub queue_overflow: u64,
}

/// A packet from the TUN with its virtio header that waits for the kernel to take more.
#[derive(Debug)]
struct Waiting {
    bytes: Vec<u8>,
    flow: u64,
}

impl Packet for Waiting {
    fn size(&self) -> usize {
        self.bytes.len()
    }

    fn flow(&self) -> u64 {
        self.flow
    }

    fn mark(&mut self) -> bool {
        ip::mark_congestion(&mut self.bytes[virtio::SIZE..])
    }
}

struct Slot {
    session: Session,
    ids: Vec<ConnectionId>,
    /// At a gateway: where the device may send.
    destinations: Option<Arc<Destinations>>,
    /// Listed in `Engine::active`.
    active: bool,
}

pub struct Engine {
    gateway: bool,
    slots: Vec<Option<Box<Slot>>>,
    by_id: HashMap<ConnectionId, usize>,
    pub addresses: Addresses,
    /// Sessions that may have a deadline.
    active: Vec<usize>,
    /// Sessions whose packet numbers somebody else is using.
    pub reserved: usize,
    control: VecDeque<Event>,
    inner: VecDeque<Event>,
    outbox: Outbox,
    waiting: FqCodel<Waiting>,
    /// The session that has an open packet at the front of the outbox's room.
    open: Option<usize>,
    pub sockets: Sockets,
    pub drops: Drops,
    frames: Frames,
    unknown: (u64, u32),
}

impl Engine {
    pub fn new(gateway: bool) -> Self {
        Self {
            gateway,
            slots: Vec::new(),
            by_id: HashMap::new(),
            addresses: Addresses::default(),
            active: Vec::new(),
            reserved: 0,
            control: VecDeque::new(),
            inner: VecDeque::new(),
            outbox: Outbox::default(),
            waiting: FqCodel::new(MAX_WAITING),
            open: None,
            sockets: Sockets::default(),
            drops: Drops::default(),
            frames: Frames::default(),
            unknown: (0, 0),
        }
    }

    // Sessions

    pub fn attach(&mut self, session: Session) -> usize {
        let slot = Slot { session, ids: Vec::new(), destinations: None, active: true };
        let free = self.slots.iter().position(Option::is_none);
        let place = free.unwrap_or(self.slots.len());
        if place == self.slots.len() {
            self.slots.push(None);
        }
        self.slots[place] = Some(Box::new(slot));
        self.active.push(place);
        place
    }

    pub fn detach(&mut self, place: usize) -> Option<Session> {
        let slot = *self.slots.get_mut(place)?.take()?;
        self.by_id.retain(|_, owner| *owner != place);
        self.addresses.set(place, &[]);
        self.active.retain(|active| *active != place);
        self.reserved -= usize::from(slot.session.reserved);
        Some(slot.session)
    }

    pub fn session(&mut self, place: usize) -> Option<&mut Session> {
        self.slots.get_mut(place)?.as_mut().map(|slot| &mut slot.session)
    }

    /// Packets to these connection IDs, and no others, are the session's.
    pub fn set_ids(&mut self, place: usize, ids: Vec<ConnectionId>) {
        if let Some(Some(slot)) = self.slots.get_mut(place) {
            for id in std::mem::replace(&mut slot.ids, ids) {
                self.by_id.remove(&id);
            }
            for id in &slot.ids {
                self.by_id.insert(*id, place);
            }
        }
    }

    pub fn set_destinations(&mut self, place: usize, destinations: Arc<Destinations>) {
        if let Some(Some(slot)) = self.slots.get_mut(place) {
            slot.destinations = Some(destinations);
        }
    }

    /// Somebody else received packets of a session.
    pub fn note_received(&mut self, place: usize, ranges: &[(u64, u64)], now: u64) {
        if let Some(Some(slot)) = self.slots.get_mut(place) {
            slot.session.note_received(ranges, now);
            if !slot.active {
                slot.active = true;
                self.active.push(place);
            }
        }
    }

    /// Somebody else uses the session's packet numbers until `commit`: the next one, and how often
    /// keys were updated.
    pub fn reserve(&mut self, place: usize) -> Option<(u64, u64)> {
        let session = self.session(place)?;
        let newly = !std::mem::replace(&mut session.reserved, true);
        let state = (session.sent.next(), session.keys.generation());
        self.reserved += usize::from(newly);
        Some(state)
    }

    /// All numbers before `end` were used.
    pub fn commit(&mut self, place: usize, end: u64) {
        if let Some(session) = self.session(place)
            && session.reserved
        {
            session.reserved = false;
            session.sent.skip_to(end);
            self.reserved -= 1;
        }
    }

    // Events

    pub fn next_event(&mut self) -> Option<Event> {
        self.control.pop_front().or_else(|| self.inner.pop_front())
    }

    pub fn has_events(&self) -> bool {
        !self.control.is_empty() || !self.inner.is_empty()
    }

    fn raise(&mut self, event: Event) {
        if self.control.len() < MAX_CONTROL {
            self.control.push_back(event);
        } else {
            self.drops.queue_full += 1;
        }
    }

    fn raise_inner(&mut self, event: Event) {
        if self.inner.len() < MAX_INNER {
            self.inner.push_back(event);
        } else {
            self.drops.queue_full += 1;
        }
    }

    // From the network

    /// Take one UDP payload that came `from` there; its plain text goes to `plain`, as long as
    /// `data`. What is to be written to the TUN is told to `deliver` as places in `plain`.
    pub fn from_network(
        &mut self,
        from: &Target,
        data: &[u8],
        plain: &mut [u8],
        now: u64,
        mut deliver: impl FnMut(Range<usize>),
    ) {
        let place = match data.get(1..1 + ID_LENGTH) {
            Some(id) if data[0] & 0x80 == 0 => self.by_id.get(id).copied(),
            _ => None,
        };
        let room = self.control.len() < MAX_CONTROL;
        let up = Event::Datagram { from: *from, data: Vec::new() };
        let Some(slot) = place.and_then(|place| self.slots[place].as_mut()) else {
            return self.raise_datagram(up, data);
        };
        let target = &slot.session.settings.target;
        if target.socket != from.socket || target.peer != from.peer {
            return self.raise_datagram(up, data);
        }
        let place = place.expect("there is a slot");
        let session = &mut slot.session;
        let generation = session.keys.generation();
        let arrival = session.receive(data, plain, &mut self.frames, now, room);
        if !slot.active {
            slot.active = true;
            self.active.push(place);
        }
        if session.keys.generation() != generation {
            let generation = session.keys.generation();
            // Never too many: the next update needs the answer to this.
            self.control.push_back(Event::Keys { session: place, generation });
        }
        if let Some(frame) = session.foreign_ack.take() {
            // Before the packet, if that goes up as well. Without room, a later ACK says it again.
            if self.control.len() < MAX_CONTROL {
                self.control.push_back(Event::Ack { session: place, frame, at: now });
            }
        }
        if session.counters.large_lost_in_a_row >= BLACK_HOLE {
            session.counters.large_lost_in_a_row = 0;
            self.control.push_back(Event::BlackHole { session: place });
        }
        match arrival {
            Arrival::Taken => self.deliver_all(place, plain, &mut deliver),
            Arrival::Up => self.raise_datagram(up, data),
            Arrival::Unknown => self.raise_unknown(up, data, now),
            Arrival::Dropped => {}
        }
    }

    fn deliver_all(&mut self, place: usize, plain: &[u8], deliver: &mut impl FnMut(Range<usize>)) {
        for index in 0..self.frames.datagrams.len() {
            let Some(slot) = self.slots[place].as_mut() else { return };
            let range = slot.session.inner(&self.frames.datagrams[index]);
            let packet = &plain[range.clone()];
            let counters = &mut slot.session.counters;
            counters.rx_packets += 1;
            counters.rx_bytes += packet.len() as u64;
            if !ip::well_formed(packet) {
                if self.gateway {
                    self.raise_inner(Event::Inner { session: place, packet: packet.to_vec() });
                } else {
                    self.drops.malformed += 1;
                }
            } else if self.gateway {
                let own = self.addresses.find(ip::source(packet)) == Some(place);
                let allowed = slot
                    .destinations
                    .as_ref()
                    .is_some_and(|table| table.allow(ip::destination(packet)));
                if own && allowed {
                    deliver(range);
                } else {
                    self.raise_inner(Event::Inner { session: place, packet: packet.to_vec() });
                }
            } else if self.addresses.find(ip::destination(packet)) == Some(place) {
                deliver(range);
            } else {
                self.drops.bad_destination += 1;
            }
        }
    }

    fn raise_datagram(&mut self, mut event: Event, bytes: &[u8]) {
        if let Event::Datagram { data, .. } = &mut event {
            *data = bytes.to_vec();
        }
        self.raise(event);
    }

    fn raise_unknown(&mut self, event: Event, bytes: &[u8], now: u64) {
        let second = now / 1_000_000;
        if self.unknown.0 != second {
            self.unknown = (second, 0);
        }
        if self.unknown.1 < MAX_UNKNOWN {
            self.unknown.1 += 1;
            self.raise_datagram(event, bytes);
        }
    }

    // From the TUN

    /// Take one packet from the TUN, with its virtio header. Not while anything is `reserved`.
    ///
    /// While the kernel takes no more it waits, for `resume`.
    pub fn from_tun(&mut self, bytes: &[u8], now: u64) {
        if !self.sockets.blocked() && self.waiting.is_empty() {
            self.forward(bytes, now);
            return;
        }
        match bytes.get(virtio::SIZE..) {
            Some(packet) if ip::well_formed(packet) => {
                let flow = ip::flow(packet);
                self.waiting.push(Waiting { bytes: bytes.to_vec(), flow }, now);
            }
            _ => self.drops.malformed += 1,
        }
    }

    /// Send what waits, as far as the kernel takes it. Not while anything is `reserved`.
    pub fn resume(&mut self, now: u64) {
        self.sockets.resume();
        while !self.sockets.blocked()
            && let Some(packet) = self.waiting.pop(now)
        {
            self.forward(&packet.bytes, now);
            // Out at once: only then does the kernel say whether it takes more.
            self.finish_open(now);
            self.outbox.flush(&mut self.sockets);
        }
        self.drops.queue_delay = self.waiting.dropped;
        self.drops.queue_overflow = self.waiting.overflowed;
    }

    /// Whether `resume` has something to do.
    pub fn is_waiting(&self) -> bool {
        self.sockets.blocked() || !self.waiting.is_empty()
    }

    fn forward(&mut self, bytes: &[u8], now: u64) {
        let Some((header, packet)) = bytes.split_first_chunk::<{ virtio::SIZE }>() else {
            self.drops.malformed += 1;
            return;
        };
        let segments =
            virtio::Header::decode(header).and_then(|header| Segments::new(&header, packet));
        let Some(segments) = segments else {
            self.drops.malformed += 1;
            return;
        };
        let address = if self.gateway { ip::destination(packet) } else { ip::source(packet) };
        let place = self.addresses.find(address);
        if place.is_none() && !self.gateway {
            // The kernel's own link-local chatter, or a program bound to another interface's
            // address.
            self.drops.bad_source += segments.count() as u64;
            return;
        }
        let slot = place.and_then(|place| self.slots[place].as_mut());
        let Some(slot) = slot.filter(|slot| segments.length(0) <= slot.session.mtu()) else {
            // One is enough to be answered for all.
            self.drops.too_big += segments.count() as u64 - 1;
            let mut packet = vec![0; segments.length(0)];
            segments.write(0, &mut packet);
            return self.raise_inner(Event::Tun { packet });
        };
        if !slot.active {
            slot.active = true;
            self.active.push(place.expect("there is a slot"));
        }
        if self.open != place {
            self.finish_open(now);
            self.open = place;
        }
        let Some(slot) = place.and_then(|place| self.slots[place].as_mut()) else { return };
        for index in 0..segments.count() {
            slot.session.send(
                segments.length(index),
                |out| segments.write(index, out),
                &mut self.outbox,
                &mut self.sockets,
                now,
            );
        }
    }

    // Time

    /// Finish what is open, send what is due, and say when to call again.
    pub fn finish(&mut self, now: u64) -> Option<u64> {
        self.finish_open(now);
        let mut earliest: Option<u64> = None;
        let mut due = Vec::new();
        let mut index = 0;
        while index < self.active.len() {
            let place = self.active[index];
            let Some(slot) = self.slots[place].as_mut() else {
                self.active.swap_remove(index);
                continue;
            };
            let session = &mut slot.session;
            if !session.reserved {
                session.timers(&mut self.outbox, &mut self.sockets, now);
            }
            if session.update_due() {
                due.push(place);
            }
            match session.deadline() {
                Some(at) => earliest = Some(earliest.map_or(at, |earliest| earliest.min(at))),
                None if !session.reserved => {
                    slot.active = false;
                    self.active.swap_remove(index);
                    continue;
                }
                None => {}
            }
            index += 1;
        }
        self.outbox.flush(&mut self.sockets);
        for session in due {
            self.raise(Event::UpdateDue { session });
        }
        for (target, size) in std::mem::take(&mut self.sockets.refused) {
            let session = self.slots.iter().position(|slot| {
                slot.as_ref().is_some_and(|slot| slot.session.settings.target == target)
            });
            if let Some(session) = session {
                self.raise(Event::Refused { session, size });
            }
        }
        earliest
    }

    fn finish_open(&mut self, now: u64) {
        if let Some(session) = self.open.take().and_then(|place| self.slots[place].as_mut()) {
            session.session.finish(&mut self.outbox, &mut self.sockets, now);
        }
    }
}
