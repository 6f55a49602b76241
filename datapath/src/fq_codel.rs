//! A queue for each flow with CoDel at its head (RFC 8290, RFC 8289): bulk traffic waits for itself.
//!
//! Sparse flows go first, others take turns by bytes. A packet that waited too long for too long is
//! marked if its sender understands that, else dropped, from the head. Pure: time is passed in, in
//! microseconds, and what a packet is, its owner says. It stands where packets are not sealed yet.

use std::collections::VecDeque;

/// RFC 8289 section 4.2 and 4.3, in microseconds.
const TARGET: u64 = 5_000;
const INTERVAL: u64 = 100_000;
/// Bytes of a turn (RFC 8290 section 5.2.1).
const QUANTUM: i64 = 1_514;
/// Queues; flows that share one share its fate (RFC 8290 section 4.1.3).
const FLOWS: usize = 256;
/// Below this, a queue is never too long (RFC 8289 section 5.5: one full packet).
const FULL_PACKET: usize = 1_514;

/// What waits.
pub trait Packet {
    /// Bytes that it takes on the link.
    fn size(&self) -> usize;
    /// Which flow it belongs to: any number, the same for the same flow.
    fn flow(&self) -> u64;
    /// Mark it as having met congestion; false if it must be dropped instead (RFC 3168 section 5).
    fn mark(&mut self) -> bool;
}

#[derive(Debug)]
struct Flow<T> {
    packets: VecDeque<(u64, T)>,
    bytes: usize,
    credit: i64,
    listed: bool,
    codel: Codel,
}

/// RFC 8289 section 5.3.
#[derive(Debug, Default)]
struct Codel {
    /// When the delay will have been above the target for an interval; None while it is below.
    above_until: Option<u64>,
    dropping: bool,
    next: u64,
    count: u32,
    last_count: u32,
}

impl Codel {
    /// Whether a packet that waited `delay` should go, with `backlog` bytes behind it.
    fn decide(&mut self, delay: u64, backlog: usize, now: u64) -> bool {
        if delay < TARGET || backlog <= FULL_PACKET {
            self.above_until = None;
            self.dropping = false;
            return false;
        }
        let until = *self.above_until.get_or_insert(now + INTERVAL);
        if now < until {
            return false;
        }
        if !self.dropping {
            self.dropping = true;
            // Where it left off, if that was not long ago (RFC 8289 section 5.4).
            let recent = now < self.next + 16 * INTERVAL;
            let delta = self.count.saturating_sub(self.last_count);
            self.count = if recent && delta > 1 { delta } else { 1 };
            self.last_count = self.count;
            self.next = control_law(now, self.count);
            return true;
        }
        if now >= self.next {
            self.count += 1;
            self.next = control_law(self.next, self.count);
            return true;
        }
        false
    }
}

fn control_law(from: u64, count: u32) -> u64 {
    from + (INTERVAL as f64 / f64::from(count).sqrt()) as u64
}

/// All flows of a link.
#[derive(Debug)]
pub struct FqCodel<T> {
    flows: Vec<Flow<T>>,
    new: VecDeque<usize>,
    old: VecDeque<usize>,
    bytes: usize,
    limit: usize,
    /// Packets that were dropped for their delay, for want of room, and marked.
    pub dropped: u64,
    pub overflowed: u64,
    pub marked: u64,
}

impl<T: Packet> FqCodel<T> {
    /// With room for `limit` bytes.
    pub fn new(limit: usize) -> Self {
        let flow = || Flow {
            packets: VecDeque::new(),
            bytes: 0,
            credit: 0,
            listed: false,
            codel: Codel::default(),
        };
        Self {
            flows: std::iter::repeat_with(flow).take(FLOWS).collect(),
            new: VecDeque::new(),
            old: VecDeque::new(),
            bytes: 0,
            limit,
            dropped: 0,
            overflowed: 0,
            marked: 0,
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Append a packet; the longest queue loses its oldest when there is no room.
    pub fn push(&mut self, packet: T, now: u64) {
        let index = (packet.flow() % FLOWS as u64) as usize;
        let flow = &mut self.flows[index];
        flow.bytes += packet.size();
        self.bytes += packet.size();
        flow.packets.push_back((now, packet));
        if !flow.listed {
            flow.listed = true;
            flow.credit = QUANTUM;
            self.new.push_back(index);
        }
        while self.bytes > self.limit {
            let longest = (0..FLOWS).max_by_key(|index| self.flows[*index].bytes).unwrap_or(0);
            self.take(longest);
            self.overflowed += 1;
        }
    }

    /// The next packet to send.
    pub fn pop(&mut self, now: u64) -> Option<T> {
        loop {
            let fresh = !self.new.is_empty();
            let list = if fresh { &mut self.new } else { &mut self.old };
            let index = *list.front()?;
            if self.flows[index].credit <= 0 {
                self.flows[index].credit += QUANTUM;
                list.pop_front();
                self.old.push_back(index);
                continue;
            }
            if let Some(packet) = self.head(index, now) {
                self.flows[index].credit -= packet.size() as i64;
                return Some(packet);
            }
            // Empty. A new one goes through the old ones once, or it could starve them by coming
            // and going (RFC 8290 section 4.2).
            let list = if fresh { &mut self.new } else { &mut self.old };
            list.pop_front();
            if fresh {
                self.old.push_back(index);
            } else {
                self.flows[index].listed = false;
            }
        }
    }

    /// The oldest packet of a flow that CoDel lets pass.
    fn head(&mut self, index: usize, now: u64) -> Option<T> {
        loop {
            let (since, mut packet) = self.take(index)?;
            let flow = &mut self.flows[index];
            if !flow.codel.decide(now.saturating_sub(since), flow.bytes, now) {
                return Some(packet);
            }
            if packet.mark() {
                self.marked += 1;
                return Some(packet);
            }
            self.dropped += 1;
        }
    }

    fn take(&mut self, index: usize) -> Option<(u64, T)> {
        let flow = &mut self.flows[index];
        let (since, packet) = flow.packets.pop_front()?;
        flow.bytes -= packet.size();
        self.bytes -= packet.size();
        Some((since, packet))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    struct Sized {
        flow: u64,
        size: usize,
        serial: usize,
        ecn: bool,
        marked: bool,
    }

    impl Packet for Sized {
        fn size(&self) -> usize {
            self.size
        }

        fn flow(&self) -> u64 {
            self.flow
        }

        fn mark(&mut self) -> bool {
            self.marked = self.ecn;
            self.ecn
        }
    }

    fn packet(flow: u64, size: usize, serial: usize) -> Sized {
        Sized { flow, size, serial, ecn: false, marked: false }
    }

    /// A link of 50 Mbit/s for some seconds: bulk keeps 500 packets waiting, a ping comes every
    /// 10 ms. The largest delay of a ping in microseconds, and the queue.
    fn link(seconds: u64, ecn: bool) -> (u64, FqCodel<Sized>, u64) {
        let mut queue = FqCodel::new(1 << 20);
        let (mut now, mut worst, mut marks, mut serial) = (0, 0, 0, 0);
        while now < seconds * 1_000_000 {
            while queue.bytes() < 500 * 1_400 {
                queue.push(Sized { ecn, ..packet(1, 1_400, serial) }, now);
                serial += 1;
            }
            if now % 10_000 < 224 {
                queue.push(packet(2, 84, now as usize), now);
            }
            let sent = queue.pop(now).unwrap();
            marks += u64::from(sent.marked);
            now += 224; // 1400 bytes
            if sent.flow == 2 {
                worst = worst.max(now - sent.serial as u64);
            }
        }
        (worst, queue, marks)
    }

    #[test]
    fn a_ping_does_not_wait_for_bulk() {
        let (worst, queue, _) = link(3, false);
        assert!(worst < 1_000, "{worst} us");
        assert!(queue.dropped > 10, "bulk that does not slow down is told so");
        assert_eq!((queue.marked, queue.overflowed), (0, 0));
    }

    #[test]
    fn who_understands_marks_loses_nothing() {
        let (_, queue, marks) = link(3, true);
        assert_eq!(queue.dropped, 0);
        assert!(marks > 10 && marks == queue.marked);
    }

    #[test]
    fn a_short_burst_is_no_congestion() {
        let mut queue = FqCodel::new(1 << 20);
        for serial in 0..200 {
            queue.push(packet(1, 1_400, serial), 0);
        }
        for serial in 0..200 {
            let sent = queue.pop(serial as u64 * 224).unwrap();
            assert_eq!(sent.serial, serial);
        }
        assert!(queue.pop(50_000).is_none());
        assert_eq!(queue.dropped, 0);
    }

    #[test]
    fn flows_share_by_bytes() {
        let mut queue = FqCodel::new(1 << 24);
        for serial in 0..2_000 {
            queue.push(packet(1, 1_400, serial), 0);
            queue.push(packet(2, 200, serial), 0);
            queue.push(packet(3, 60_000, serial), 0);
        }
        let mut bytes = [0usize; 4];
        while bytes.iter().sum::<usize>() < 900_000 {
            let sent = queue.pop(0).unwrap();
            bytes[sent.flow as usize] += sent.size;
        }
        for share in &bytes[1..] {
            assert!((230_000..370_000).contains(share), "{bytes:?}");
        }
    }

    #[test]
    fn a_flood_loses_its_own() {
        let mut queue = FqCodel::new(100_000);
        queue.push(packet(2, 84, 0), 0);
        for serial in 0..1_000 {
            queue.push(packet(1, 1_400, serial), 0);
        }
        assert!(queue.bytes() <= 100_000);
        let sent: Vec<_> = std::iter::from_fn(|| queue.pop(0)).collect();
        assert!(sent.iter().any(|packet| packet.flow == 2));
        assert_eq!(sent.last().unwrap().serial, 999, "the oldest go first");
        assert_eq!(sent.len() as u64 + queue.overflowed, 1_001);
    }

    proptest! {
        #[test]
        fn nothing_is_invented_and_flows_keep_their_order(
            steps in proptest::collection::vec((0u64..4, 1usize..3000, any::<bool>()), 0..300)
        ) {
            let mut queue = FqCodel::new(200_000);
            let (mut pushed, mut popped, mut now) = (0u64, 0, 0);
            let mut last = [0usize; 4];
            for (serial, (flow, size, pop)) in steps.into_iter().enumerate() {
                now += 3_000;
                queue.push(packet(flow, size, serial + 1), now);
                pushed += 1;
                if pop && let Some(sent) = queue.pop(now) {
                    popped += 1;
                    let last = &mut last[sent.flow as usize];
                    prop_assert!(sent.serial > *last);
                    *last = sent.serial;
                }
            }
            while queue.pop(now).is_some() {
                popped += 1;
            }
            prop_assert_eq!(queue.bytes(), 0);
            prop_assert_eq!(pushed, popped + queue.dropped + queue.overflowed);
        }
    }
}
