//! A flow queue with `CoDel`: RFC 8290 over RFC 8289.
//!
//! Packets wait here, in front of the congestion controller, and not in the network: each flow in
//! its own queue, served in turn, so that a bulk transfer does not delay a keystroke; and what
//! waits too long tells its sender by an ECN mark, or by a loss where ECN is not spoken.
//!
//! A packet is anything that implements [`Packet`]: a `Vec<u8>`, or a super-packet of the kernel
//! with many segments. Flows exist only while they have packets, and are told apart by 64 bits of
//! a keyed hash, not by a fixed number of buckets. [`FqCodel::shrink`] gives memory back when a
//! session falls idle.

use std::collections::VecDeque;

mod codel;
mod flow;
#[cfg(test)]
mod tests;

use crate::recovery::Micros;
use codel::Codel;
pub use flow::{flow_hash, mark_ce};

/// What can wait in the queue.
///
/// A super-packet counts as one packet, and is dropped or marked as one: let it wait whole only
/// where the link takes it in much less than [`Config::target`] (64 KiB take 1 ms at 500 Mbit/s),
/// and in its segments elsewhere.
pub trait Packet {
    /// Bytes that it takes on the link.
    fn size(&self) -> usize;
    /// The IP packet, or as much of it as holds its headers.
    fn ip(&self) -> &[u8];
    /// The same, to mark it.
    fn ip_mut(&mut self) -> &mut [u8];
}

impl Packet for Vec<u8> {
    fn size(&self) -> usize {
        self.len()
    }

    fn ip(&self) -> &[u8] {
        self
    }

    fn ip_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl Packet for Box<[u8]> {
    fn size(&self) -> usize {
        self.len()
    }

    fn ip(&self) -> &[u8] {
        self
    }

    fn ip_mut(&mut self) -> &mut [u8] {
        self
    }
}

/// Limits and times.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Packets that wait at most.
    pub packets: usize,
    /// Bytes that wait at most.
    pub bytes: usize,
    /// Bytes that a flow may send before it is another one's turn: RFC 8290 section 5.2.
    pub quantum: u32,
    /// RFC 8289 section 4.2: the delay that is not too much.
    pub target: Micros,
    /// RFC 8289 section 4.2: for how long the delay must be too much.
    pub interval: Micros,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            packets: 1024,
            bytes: 4 << 20,
            quantum: 1514,
            target: 5_000,
            interval: 100_000,
        }
    }
}

/// What happened to packets, since the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that came.
    pub enqueued: u64,
    /// Packets that left towards the link.
    pub dequeued: u64,
    /// Packets that were marked because they had waited too long.
    pub marked: u64,
    /// Packets that were dropped because they had waited too long.
    pub codel: u64,
    /// Packets that were dropped because the queue was full.
    pub full: u64,
}

const NONE: u32 = u32::MAX;

/// Dropped packets that are kept for [`FqCodel::recycled`].
const RECYCLED: usize = 64;

/// A packet that waits, or a free place.
#[derive(Debug)]
struct Place<P> {
    packet: Option<P>,
    since: Micros,
    /// The next packet of the flow, or the next free place.
    next: u32,
}

#[derive(Debug)]
struct Flow {
    hash: u64,
    head: u32,
    tail: u32,
    packets: u32,
    bytes: u32,
    deficit: i64,
    codel: Codel,
    /// On one of the lists.
    active: bool,
}

/// The queue.
#[derive(Debug)]
pub struct FqCodel<P> {
    config: Config,
    seed: [u64; 2],
    places: Vec<Place<P>>,
    free: u32,
    flows: Vec<Flow>,
    free_flows: Vec<u32>,
    /// Hashes and indices of the flows that are in use, sorted.
    index: Vec<(u64, u32)>,
    new: VecDeque<u32>,
    old: VecDeque<u32>,
    packets: usize,
    bytes: usize,
    /// The largest packet that came: `CoDel` does not drop the last one of it.
    largest: usize,
    counters: Counters,
    recycled: Vec<P>,
}

impl<P: Packet> FqCodel<P> {
    /// An empty queue. `seed` should be random: nobody can then choose packets that share a flow.
    pub fn new(config: Config, seed: [u64; 2]) -> Self {
        FqCodel {
            config,
            seed,
            places: Vec::new(),
            free: NONE,
            flows: Vec::new(),
            free_flows: Vec::new(),
            index: Vec::new(),
            new: VecDeque::new(),
            old: VecDeque::new(),
            packets: 0,
            bytes: 0,
            largest: 0,
            counters: Counters::default(),
            recycled: Vec::new(),
        }
    }

    /// Packets that wait.
    pub fn len(&self) -> usize {
        self.packets
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.packets == 0
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Flows that have packets, or had some a moment ago.
    pub fn flows(&self) -> usize {
        self.index.len()
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// A packet that was dropped, for reuse of its memory.
    pub fn recycled(&mut self) -> Option<P> {
        self.recycled.pop()
    }

    /// RFC 8290 section 4.1. When the queue is full, the flow with the most bytes loses its oldest
    /// packets; so this one is in afterwards, unless its own flow is that one and empties by it, or
    /// it alone is more than the limit.
    pub fn enqueue(&mut self, packet: P, now: Micros) {
        self.counters.enqueued += 1;
        let size = packet.size();
        if size > self.config.bytes || self.config.packets == 0 {
            self.counters.full += 1;
            self.recycle(packet);
            return;
        }
        let at = self.flow(flow_hash(packet.ip(), self.seed));
        let place = self.place(packet, now);
        self.largest = self.largest.max(size);
        self.packets += 1;
        self.bytes += size;
        let Some(flow) = self.flows.get_mut(at as usize) else {
            return;
        };
        let tail = flow.tail;
        flow.tail = place;
        flow.packets += 1;
        flow.bytes += size as u32;
        if tail == NONE {
            flow.head = place;
        } else if let Some(last) = self.places.get_mut(tail as usize) {
            last.next = place;
        }
        if !flow.active {
            flow.active = true;
            flow.deficit = i64::from(self.config.quantum);
            self.new.push_back(at);
        }
        while self.packets > self.config.packets || self.bytes > self.config.bytes {
            if !self.drop_from_fattest() {
                break;
            }
        }
    }

    /// RFC 8290 section 4.2: the next packet for the link.
    pub fn dequeue(&mut self, now: Micros) -> Option<P> {
        loop {
            let (from_new, at) = match self.new.front() {
                Some(&at) => (true, at),
                None => (false, *self.old.front()?),
            };
            let flow = self.flows.get_mut(at as usize)?;
            if flow.deficit <= 0 {
                flow.deficit += i64::from(self.config.quantum);
                self.pop_list(from_new);
                self.old.push_back(at);
                continue;
            }
            if let Some(packet) = self.dequeue_flow(at, now) {
                if let Some(flow) = self.flows.get_mut(at as usize) {
                    flow.deficit -= i64::try_from(packet.size()).unwrap_or(i64::MAX);
                }
                self.counters.dequeued += 1;
                return Some(packet);
            }
            self.pop_list(from_new);
            if from_new && !self.old.is_empty() && self.index.len() <= self.config.packets {
                // Section 4.2: an empty new flow gets behind the others once, or it would always
                // be first with one packet at a time.
                self.old.push_back(at);
            } else {
                self.remove_flow(at);
            }
        }
    }

    /// The size of the packet that is next, unless `CoDel` drops it.
    pub fn peek(&self) -> Option<usize> {
        self.new
            .iter()
            .chain(&self.old)
            .filter_map(|&at| {
                let head = self.flows.get(at as usize)?.head;
                self.places.get(head as usize)?.packet.as_ref()
            })
            .map(P::size)
            .next()
    }

    /// Gives memory back. To be called when nothing has happened for a while.
    pub fn shrink(&mut self) {
        self.recycled = Vec::new();
        if self.packets > 0 {
            return;
        }
        self.free = NONE;
        self.places = Vec::new();
        self.flows = Vec::new();
        self.free_flows = Vec::new();
        self.index = Vec::new();
        self.new = VecDeque::new();
        self.old = VecDeque::new();
    }

    /// Bytes of memory, without those of the packets.
    pub fn memory(&self) -> usize {
        size_of::<Self>()
            + self.places.capacity() * size_of::<Place<P>>()
            + self.flows.capacity() * size_of::<Flow>()
            + self.free_flows.capacity() * size_of::<u32>()
            + self.index.capacity() * size_of::<(u64, u32)>()
            + (self.new.capacity() + self.old.capacity()) * size_of::<u32>()
            + self.recycled.capacity() * size_of::<P>()
    }

    fn pop_list(&mut self, from_new: bool) {
        if from_new {
            self.new.pop_front();
        } else {
            self.old.pop_front();
        }
    }

    /// The next packet of a flow that `CoDel` lets through, marked where it must be.
    fn dequeue_flow(&mut self, at: u32, now: Micros) -> Option<P> {
        loop {
            let (mut packet, since) = self.take(at)?;
            let flow = self.flows.get_mut(at as usize)?;
            let short = (flow.bytes as usize) <= self.largest.min(self.config.quantum as usize);
            let sojourn = now.saturating_sub(since);
            if !flow.codel.judge(sojourn, short, now, &self.config) {
                return Some(packet);
            }
            if mark_ce(packet.ip_mut()) {
                self.counters.marked += 1;
                return Some(packet);
            }
            self.counters.codel += 1;
            self.recycle(packet);
        }
    }

    /// Takes the first packet of a flow out.
    fn take(&mut self, at: u32) -> Option<(P, Micros)> {
        let flow = self.flows.get_mut(at as usize)?;
        let index = flow.head;
        let place = self.places.get_mut(index as usize)?;
        let packet = place.packet.take()?;
        let size = packet.size();
        flow.head = place.next;
        if flow.head == NONE {
            flow.tail = NONE;
        }
        flow.packets -= 1;
        flow.bytes -= size as u32;
        place.next = self.free;
        self.free = index;
        self.packets -= 1;
        self.bytes -= size;
        Some((packet, place.since))
    }

    /// RFC 8290 section 4.1.2.
    fn drop_from_fattest(&mut self) -> bool {
        let fattest = self
            .index
            .iter()
            .map(|&(_, at)| at)
            .max_by_key(|&at| self.flows.get(at as usize).map_or(0, |flow| flow.bytes));
        let Some((packet, _)) = fattest.and_then(|at| self.take(at)) else {
            return false;
        };
        self.counters.full += 1;
        self.recycle(packet);
        if let Some(at) = fattest
            && self
                .flows
                .get(at as usize)
                .is_some_and(|flow| flow.packets == 0)
        {
            // Only where every flow has one packet. Without this, a flood of flows while nothing
            // leaves would have no bound.
            for list in [&mut self.new, &mut self.old] {
                if let Some(place) = list.iter().position(|&other| other == at) {
                    list.remove(place);
                    break;
                }
            }
            self.remove_flow(at);
        }
        true
    }

    fn recycle(&mut self, packet: P) {
        if self.recycled.len() < RECYCLED {
            self.recycled.push(packet);
        }
    }

    /// A place that holds the packet.
    fn place(&mut self, packet: P, since: Micros) -> u32 {
        let place = Place {
            packet: Some(packet),
            since,
            next: NONE,
        };
        let at = self.free;
        if let Some(free) = self.places.get_mut(at as usize) {
            self.free = free.next;
            *free = place;
            return at;
        }
        self.places.push(place);
        (self.places.len() - 1) as u32
    }

    /// The flow with this hash, new if need be.
    fn flow(&mut self, hash: u64) -> u32 {
        let place = match self.index.binary_search_by_key(&hash, |&(hash, _)| hash) {
            Ok(at) => return self.index[at].1,
            Err(place) => place,
        };
        let flow = Flow {
            hash,
            head: NONE,
            tail: NONE,
            packets: 0,
            bytes: 0,
            deficit: 0,
            codel: Codel::default(),
            active: false,
        };
        let at = if let Some(at) = self.free_flows.pop()
            && let Some(free) = self.flows.get_mut(at as usize)
        {
            *free = flow;
            at
        } else {
            self.flows.push(flow);
            (self.flows.len() - 1) as u32
        };
        self.index.insert(place, (hash, at));
        at
    }

    fn remove_flow(&mut self, at: u32) {
        let Some(flow) = self.flows.get_mut(at as usize) else {
            return;
        };
        flow.active = false;
        let hash = flow.hash;
        if let Ok(place) = self.index.binary_search_by_key(&hash, |&(hash, _)| hash) {
            self.index.remove(place);
            self.free_flows.push(at);
        }
    }
}
