//! A deterministic simulator: senders of a tunnel and of TCP that share one bottleneck.
//!
//! ```text
//! tunnels, TCP flows -> [random loss] -> [tail-drop queue, rate] -> delay -> receivers
//!          ^---------------------- delay, never congested -------------------'
//! ```

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use quinn_udp::EcnCodepoint;

use super::Sender;
use crate::ecn::Counts;
use crate::fq_codel::{Config, FqCodel, Packet as Queued};
use crate::recovery::Micros;

/// The path that all flows share.
#[derive(Clone, Debug)]
pub struct Path {
    /// Bytes per second.
    pub rate: u64,
    /// Packets.
    pub queue: usize,
    /// Both ways together.
    pub rtt: Micros,
    /// Share of packets lost before the queue.
    pub loss: f64,
    /// Share of packets that take `rtt / 4` longer.
    pub reorder: f64,
    /// Up to this much is added to the delay, without reordering.
    pub jitter: Micros,
    /// When the rate changes, and to what.
    pub steps: Vec<(Micros, u64)>,
    /// Times without any path.
    pub blackouts: Vec<(Micros, Micros)>,
    /// What becomes of packets that are marked ECT(0): all of TCP, those of tunnels as they like.
    pub ecn: Ecn,
}

impl Path {
    pub fn new(mbits: f64, queue: usize, rtt_ms: f64) -> Self {
        Path {
            rate: (mbits * 1e6 / 8.0) as u64,
            queue,
            rtt: (rtt_ms * 1000.0) as Micros,
            loss: 0.0,
            reorder: 0.0,
            jitter: 0,
            steps: Vec::new(),
            blackouts: Vec::new(),
            ecn: Ecn::Carried,
        }
    }
}

/// What a path does with an ECN mark.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ecn {
    /// Leaves it.
    Carried,
    /// Turns it into CE when so many packets are in the queue.
    Above(usize),
    /// The same as `CoDel` does (RFC 8289), with its usual parameters.
    Codel,
    /// Clears it.
    Bleached,
    /// Drops the packet.
    Dropped,
}

/// What a tunnel has to send.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    Bulk,
    /// Bytes per second while on, and how long it is on and off.
    /// TCP flows and a ping inside of the tunnel, through a flow queue.
    Inner,
    OnOff {
        rate: u64,
        on: Micros,
        off: Micros,
    },
}

/// How the receiver of a tunnel acknowledges.
#[derive(Clone, Copy, Debug)]
pub struct Acks {
    pub every: u32,
    pub delay: Micros,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Reno,
    Cubic,
}

const PACKET: u64 = 1400;

#[derive(Clone, Copy, Debug)]
struct Packet {
    flow: usize,
    number: u64,
    bytes: u64,
    sent: Micros,
    ecn: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Served,
    Arrived {
        flow: usize,
        number: u64,
        bytes: u64,
        ecn: u8,
    },
    AckTimer {
        flow: usize,
    },
    Ack {
        flow: usize,
        ranges: Vec<(u64, u64)>,
        /// ECT(0) and CE.
        counts: (u64, u64),
        delay: Micros,
    },
    Wake {
        flow: usize,
    },
    Start {
        flow: usize,
    },
    Ping {
        flow: usize,
    },
    InnerAck {
        flow: usize,
        packet: InnerPacket,
    },
    Step {
        rate: u64,
    },
}

/// A packet inside of a tunnel: of a TCP flow, or a ping.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct InnerPacket {
    flow: usize,
    number: u64,
    born: Micros,
    header: [u8; 28],
    bytes: u64,
}

const PING: usize = usize::MAX;

impl InnerPacket {
    fn new(flow: usize, number: u64, bytes: u64, born: Micros, ecn: u8) -> Self {
        let mut header = [0; 28];
        header[0] = 0x45;
        header[1] = ecn;
        header[9] = 17;
        header[20] = flow as u8;
        InnerPacket {
            flow,
            number,
            born,
            header,
            bytes,
        }
    }
}

impl Queued for InnerPacket {
    fn size(&self) -> usize {
        self.bytes as usize
    }

    fn ip(&self) -> &[u8] {
        &self.header
    }

    fn ip_mut(&mut self) -> &mut [u8] {
        &mut self.header
    }
}

/// What is inside of a tunnel.
struct Inner {
    queue: FqCodel<InnerPacket>,
    flows: Vec<Tcp>,
    ecn: bool,
    /// By outer packet number.
    carried: std::collections::BTreeMap<u64, InnerPacket>,
}

/// The sending and the receiving end of one tunnel.
pub struct Tunnel {
    pub sender: Sender,
    source: Source,
    inner: Option<Inner>,
    acks: Acks,
    next: u64,
    earned: f64,
    earned_at: Micros,
    /// Timers fire this much late.
    slop: Micros,
    /// How long its thread runs, and does not.
    duty: (Micros, Micros),
    wake_at: Micros,
    // The receiver.
    received: VecDeque<(u64, u64)>,
    unacked: u32,
    ack_at: Option<Micros>,
    largest_at: Micros,
    marks: Counts,
}

/// A TCP sender with selective acknowledgements and endless data.
pub struct Tcp {
    kind: Kind,
    window: f64,
    threshold: f64,
    in_flight: VecDeque<(u64, Micros)>,
    next: u64,
    recover: u64,
    w_max: f64,
    epoch: Option<Micros>,
    srtt: f64,
    last_progress: Micros,
}

pub enum Flow {
    Tunnel(Box<Tunnel>),
    Tcp(Tcp),
}

/// What is counted of a flow, per slot of time.
#[derive(Clone, Debug, Default)]
pub struct Count {
    pub running: bool,
    pub sent: u64,
    pub received: u64,
    pub dropped: u64,
    /// Received bytes per 100 ms.
    pub slots: Vec<u64>,
}

pub struct Sim {
    pub now: Micros,
    path: Path,
    events: BinaryHeap<Reverse<(Micros, u64, Event)>>,
    sequence: u64,
    queue: VecDeque<Packet>,
    pub flows: Vec<Flow>,
    pub counts: Vec<Count>,
    random: u64,
    fraction: u64,
    arrival: Micros,
    /// When `CoDel` marks next, and how many it has marked in a row.
    codel: Option<(Micros, u32)>,
    /// Queue delay in microseconds that each packet saw: (time, delay).
    pub delays: Vec<(Micros, Micros)>,
    /// Round trips of pings inside of tunnels: (time, round trip).
    pub pings: Vec<(Micros, Micros)>,
}

impl Sim {
    pub fn new(path: Path) -> Self {
        let mut sim = Sim {
            now: 0,
            events: BinaryHeap::new(),
            sequence: 0,
            queue: VecDeque::new(),
            flows: Vec::new(),
            counts: Vec::new(),
            random: 88_172_645_463_325_252,
            fraction: 0,
            arrival: 0,
            codel: None,
            delays: Vec::new(),
            pings: Vec::new(),
            path,
        };
        for (time, rate) in sim.path.steps.clone() {
            sim.at(time, Event::Step { rate });
        }
        sim
    }

    pub fn tunnel(&mut self, source: Source, acks: Acks, start: Micros) -> usize {
        self.add(
            Flow::Tunnel(Box::new(Tunnel {
                sender: Sender::new(0, start),
                source,
                inner: None,
                acks,
                next: 0,
                earned: 0.0,
                earned_at: start,
                slop: 60,
                duty: (1, 0),
                wake_at: Micros::MAX,
                received: VecDeque::new(),
                unacked: 0,
                ack_at: None,
                largest_at: 0,
                marks: Counts::default(),
            })),
            start,
        )
    }

    /// A tunnel with TCP flows and a ping inside.
    pub fn tunnel_with(&mut self, kinds: &[Kind], ecn: bool, acks: Acks, start: Micros) -> usize {
        let flow = self.tunnel(Source::Inner, acks, start);
        if let Flow::Tunnel(tunnel) = &mut self.flows[flow] {
            tunnel.inner = Some(Inner {
                queue: FqCodel::new(Config::default(), [1, 2]),
                flows: kinds.iter().map(|&kind| Tcp::new(kind, start)).collect(),
                ecn,
                carried: std::collections::BTreeMap::new(),
            });
        }
        self.at(start, Event::Ping { flow });
        flow
    }

    pub fn tcp(&mut self, kind: Kind, start: Micros) -> usize {
        self.add(Flow::Tcp(Tcp::new(kind, start)), start)
    }

    fn add(&mut self, flow: Flow, start: Micros) -> usize {
        self.flows.push(flow);
        self.counts.push(Count::default());
        let flow = self.flows.len() - 1;
        self.at(start, Event::Start { flow });
        flow
    }

    /// The threads of a tunnel run only part of the time.
    pub fn set_duty(&mut self, flow: usize, on: Micros, off: Micros) {
        if let Flow::Tunnel(tunnel) = &mut self.flows[flow] {
            tunnel.duty = (on, off);
        }
    }

    /// Does something to the sender of a tunnel, which wakes up then.
    pub fn with_sender(&mut self, flow: usize, act: impl FnOnce(&mut Sender, Micros)) {
        if let Flow::Tunnel(tunnel) = &mut self.flows[flow] {
            act(&mut tunnel.sender, self.now);
        }
        self.send(flow);
    }

    pub fn sender(&self, flow: usize) -> &Sender {
        match &self.flows[flow] {
            Flow::Tunnel(tunnel) => &tunnel.sender,
            Flow::Tcp(_) => panic!("flow {flow} is not a tunnel"),
        }
    }

    fn at(&mut self, time: Micros, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((time, self.sequence, event)));
    }

    fn chance(&mut self, share: f64) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        ((self.random >> 11) as f64 / (1u64 << 53) as f64) < share
    }

    /// Runs until `until`.
    pub fn run(&mut self, until: Micros) {
        while let Some(Reverse((time, _, _))) = self.events.peek() {
            if *time > until {
                break;
            }
            let Some(Reverse((time, _, event))) = self.events.pop() else {
                break;
            };
            self.now = time;
            self.handle(event);
        }
        self.now = until;
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Step { rate } => self.path.rate = rate,
            Event::Start { flow } => {
                self.counts[flow].running = true;
                self.send(flow);
            }
            Event::Ping { flow } => {
                let now = self.now;
                if let Flow::Tunnel(tunnel) = &mut self.flows[flow]
                    && let Some(inner) = &mut tunnel.inner
                {
                    inner
                        .queue
                        .enqueue(InnerPacket::new(PING, 0, 84, now, 0), now);
                    for tcp in &mut inner.flows {
                        tcp.timeout(now);
                    }
                }
                self.at(now + 50_000, Event::Ping { flow });
                self.send(flow);
            }
            Event::InnerAck { flow, packet } => {
                let now = self.now;
                if packet.flow == PING {
                    self.pings.push((now, now - packet.born));
                    return;
                }
                if let Flow::Tunnel(tunnel) = &mut self.flows[flow]
                    && let Some(inner) = &mut tunnel.inner
                {
                    let tcp = &mut inner.flows[packet.flow];
                    if packet.header[1] == 3 {
                        tcp.congested(packet.number);
                    }
                    tcp.acked(packet.number, now);
                }
                self.send(flow);
            }
            Event::Wake { flow } => self.wake(flow),
            Event::Served => self.served(),
            Event::Arrived {
                flow,
                number,
                bytes,
                ecn,
            } => {
                self.arrived(flow, number, bytes, ecn);
            }
            Event::AckTimer { flow } => {
                if let Flow::Tunnel(tunnel) = &self.flows[flow]
                    && tunnel.ack_at.is_some_and(|at| at <= self.now)
                {
                    self.send_ack(flow);
                }
            }
            Event::Ack {
                flow,
                ranges,
                counts: (ect0, ce),
                delay,
            } => {
                let now = self.now;
                match &mut self.flows[flow] {
                    Flow::Tunnel(tunnel) => {
                        let counts = Counts { ect0, ect1: 0, ce };
                        let counts = counts.any().then_some(counts);
                        tunnel.sender.acked(ranges, counts, delay, now);
                    }
                    Flow::Tcp(tcp) => {
                        if ce > 0 {
                            tcp.congested(ranges[0].0);
                        }
                        tcp.acked(ranges[0].0, now);
                    }
                }
                self.send(flow);
            }
        }
    }

    fn wake(&mut self, flow: usize) {
        let now = self.now;
        match &mut self.flows[flow] {
            Flow::Tunnel(tunnel) => {
                if tunnel.wake_at > now {
                    return;
                }
                tunnel.wake_at = Micros::MAX;
                if tunnel.sender.next_timer().is_some_and(|at| at <= now) {
                    tunnel.sender.on_timer(now);
                }
            }
            Flow::Tcp(tcp) => tcp.timeout(now),
        }
        self.send(flow);
    }

    fn send(&mut self, flow: usize) {
        if !self.counts[flow].running {
            return;
        }
        let now = self.now;
        match &mut self.flows[flow] {
            Flow::Tunnel(tunnel) => {
                let (on, off) = tunnel.duty;
                let phase = now % (on + off);
                if phase >= on {
                    let at = now + on + off - phase;
                    if tunnel.wake_at > at || tunnel.wake_at <= now {
                        tunnel.wake_at = at;
                        self.at(at, Event::Wake { flow });
                    }
                    return;
                }
                let (packets, wake) = tunnel.send(now);
                let ecn = if tunnel.sender.marks() { 2 } else { 0 };
                if let Some(at) = wake {
                    self.at(at, Event::Wake { flow });
                }
                for (number, bytes) in packets {
                    self.enter(Packet {
                        flow,
                        number,
                        bytes,
                        sent: now,
                        ecn,
                    });
                }
            }
            Flow::Tcp(tcp) => {
                let numbers = tcp.send(now);
                if numbers.is_empty() && tcp.in_flight.is_empty() {
                    return;
                }
                if !numbers.is_empty() {
                    self.at(now + 1_000_000, Event::Wake { flow });
                }
                for number in numbers {
                    self.enter(Packet {
                        flow,
                        number,
                        bytes: PACKET,
                        sent: now,
                        ecn: 2,
                    });
                }
            }
        }
    }

    /// A packet comes to the bottleneck.
    fn enter(&mut self, mut packet: Packet) {
        self.counts[packet.flow].sent += packet.bytes;
        let now = self.now;
        let black = self
            .path
            .blackouts
            .iter()
            .any(|&(from, to)| (from..to).contains(&now));
        let refused = packet.ecn != 0 && self.path.ecn == Ecn::Dropped;
        if black || refused || self.chance(self.path.loss) || self.queue.len() >= self.path.queue {
            self.counts[packet.flow].dropped += packet.bytes;
            return;
        }
        match self.path.ecn {
            Ecn::Above(length) if packet.ecn != 0 && self.queue.len() >= length => packet.ecn = 3,
            Ecn::Bleached => packet.ecn = 0,
            _ => {}
        }
        self.queue.push_back(packet);
        if self.queue.len() == 1 {
            let time = self.service(packet.bytes);
            self.at(self.now + time, Event::Served);
        }
    }

    /// Microseconds on the link; the fractions add up.
    fn service(&mut self, bytes: u64) -> Micros {
        let total = bytes * 1_000_000 + self.fraction;
        self.fraction = total % self.path.rate;
        total / self.path.rate
    }

    fn served(&mut self) {
        let Some(mut packet) = self.queue.pop_front() else {
            return;
        };
        let service = packet.bytes * 1_000_000 / self.path.rate;
        let waited = (self.now - packet.sent).saturating_sub(service);
        self.delays.push((self.now, waited));
        if self.path.ecn == Ecn::Codel && self.codel(waited) && packet.ecn != 0 {
            packet.ecn = 3;
        }
        let mut delay = self.path.rtt / 2;
        if self.chance(self.path.reorder) {
            delay += self.path.rtt / 4;
        }
        if self.path.jitter > 0 {
            // Bursts as of a radio link: most packets wait for a few.
            let extra = if self.chance(0.05) {
                self.random % self.path.jitter
            } else {
                0
            };
            self.arrival = self.arrival.max(self.now + delay + extra);
            delay = self.arrival - self.now;
        }
        let Packet {
            flow,
            number,
            bytes,
            ecn,
            ..
        } = packet;
        self.at(
            self.now + delay,
            Event::Arrived {
                flow,
                number,
                bytes,
                ecn,
            },
        );
        if let Some(next) = self.queue.front() {
            let bytes = next.bytes;
            let time = self.service(bytes);
            self.at(self.now + time, Event::Served);
        }
    }

    /// Whether `CoDel` marks a packet that waited so long.
    fn codel(&mut self, waited: Micros) -> bool {
        let Config {
            target, interval, ..
        } = Config::default();
        if waited < target || self.queue.is_empty() {
            self.codel = None;
            return false;
        }
        let (due, count) = self.codel.unwrap_or((self.now + interval, 0));
        let marks = self.now >= due;
        self.codel = Some(if marks {
            let count = count + 1;
            let step = interval as f64 / f64::from(count).sqrt();
            (due + step as Micros, count)
        } else {
            (due, count)
        });
        marks
    }

    fn arrived(&mut self, flow: usize, number: u64, bytes: u64, ecn: u8) {
        let now = self.now;
        let count = &mut self.counts[flow];
        count.received += bytes;
        let slot = (now / 100_000) as usize;
        if count.slots.len() <= slot {
            count.slots.resize(slot + 1, 0);
        }
        count.slots[slot] += bytes;
        match &mut self.flows[flow] {
            Flow::Tunnel(tunnel) => {
                let carried = tunnel
                    .inner
                    .as_mut()
                    .and_then(|inner| inner.carried.remove(&number));
                let timer = tunnel.receive(number, now);
                tunnel.marks.add(EcnCodepoint::from_bits(ecn));
                if tunnel.unacked >= tunnel.acks.every || ecn == 3 {
                    self.send_ack(flow);
                } else if let Some(at) = timer {
                    self.at(at, Event::AckTimer { flow });
                }
                if let Some(packet) = carried {
                    self.at(now + self.path.rtt / 2, Event::InnerAck { flow, packet });
                }
            }
            Flow::Tcp(_) => {
                let ranges = vec![(number, number)];
                self.at(
                    now + self.path.rtt / 2,
                    Event::Ack {
                        flow,
                        ranges,
                        counts: (0, u64::from(ecn == 3)),
                        delay: 0,
                    },
                );
            }
        }
    }

    fn send_ack(&mut self, flow: usize) {
        let now = self.now;
        if let Flow::Tunnel(tunnel) = &mut self.flows[flow] {
            tunnel.ack_at = None;
            tunnel.unacked = 0;
            let ranges: Vec<_> = tunnel.received.iter().rev().take(64).copied().collect();
            let delay = now - tunnel.largest_at;
            let counts = (tunnel.marks.ect0, tunnel.marks.ce);
            self.at(
                now + self.path.rtt / 2,
                Event::Ack {
                    flow,
                    ranges,
                    counts,
                    delay,
                },
            );
        }
    }

    /// Mbit/s that a flow got between two times.
    pub fn mbits(&self, flow: usize, from: Micros, to: Micros) -> f64 {
        let slots = &self.counts[flow].slots;
        let (first, last) = ((from / 100_000) as usize, (to / 100_000) as usize);
        let bytes: u64 = slots.iter().take(last).skip(first).sum();
        bytes as f64 * 8.0 / (to - from) as f64
    }

    /// The queue delay in milliseconds below which `share` of the packets stayed.
    pub fn delay(&self, share: f64, from: Micros, to: Micros) -> f64 {
        quantile(&self.delays, share, from, to)
    }

    /// The round trip of pings in milliseconds below which `share` of them stayed.
    pub fn ping(&self, share: f64, from: Micros, to: Micros) -> f64 {
        quantile(&self.pings, share, from, to)
    }

    /// The share of a flow's bytes that was lost.
    pub fn lost(&self, flow: usize) -> f64 {
        self.counts[flow].dropped as f64 / self.counts[flow].sent.max(1) as f64
    }
}

fn quantile(samples: &[(Micros, Micros)], share: f64, from: Micros, to: Micros) -> f64 {
    let mut values: Vec<_> = samples
        .iter()
        .filter(|(time, _)| (from..to).contains(time))
        .map(|(_, value)| *value)
        .collect();
    values.sort_unstable();
    let at = (values.len() as f64 * share) as usize;
    let at = at.min(values.len().saturating_sub(1));
    values.get(at).copied().unwrap_or(0) as f64 / 1000.0
}

impl Tunnel {
    /// Packets that leave now, and when to wake up.
    fn send(&mut self, now: Micros) -> (Vec<(u64, u64)>, Option<Micros>) {
        let mut packets = Vec::new();
        let mut source_wake = None;
        if let Some(inner) = &mut self.inner {
            for (flow, tcp) in inner.flows.iter_mut().enumerate() {
                for number in tcp.send(now) {
                    let ecn = if inner.ecn { 2 } else { 0 };
                    let packet = InnerPacket::new(flow, number, PACKET - 40, now, ecn);
                    inner.queue.enqueue(packet, now);
                }
            }
        }
        loop {
            let allowance = self.sender.allowance(now) as u64;
            if allowance == 0 {
                break;
            }
            if let Some(inner) = &mut self.inner {
                let mut left = allowance;
                while left > 0
                    && let Some(packet) = inner.queue.dequeue(now)
                {
                    let bytes = packet.bytes + 40;
                    self.sender.sent(self.next, bytes as u16, bytes > 1240, now);
                    packets.push((self.next, bytes));
                    inner.carried.insert(self.next, packet);
                    self.next += 1;
                    left = left.saturating_sub(bytes);
                }
                self.sender.left(!inner.queue.is_empty());
                if inner.queue.is_empty() {
                    break;
                }
                continue;
            }
            let mut count = allowance.div_ceil(PACKET).min(45);
            if let Source::OnOff { rate, on, off } = self.source {
                while self.earned_at < now {
                    let phase = self.earned_at % (on + off);
                    let end = if phase < on { on } else { on + off };
                    let step = (end - phase).min(now - self.earned_at);
                    if phase < on {
                        self.earned += rate as f64 * step as f64 / 1e6;
                    }
                    self.earned_at += step;
                }
                // No more than 200 packets wait.
                self.earned = self.earned.min(200.0 * PACKET as f64);
                count = count.min((self.earned / PACKET as f64) as u64);
                self.earned -= (count * PACKET) as f64;
                if count == 0 {
                    self.sender.left(false);
                    let phase = now % (on + off);
                    let wait = if phase < on { 200 } else { on + off - phase };
                    source_wake = Some(now + wait);
                    break;
                }
            }
            let bytes = PACKET as u16;
            self.sender.left(matches!(self.source, Source::Bulk));
            self.sender
                .sent_batch(self.next, count as u16, bytes, bytes, true, now);
            for _ in 0..count {
                packets.push((self.next, PACKET));
                self.next += 1;
            }
        }
        let pacing = self.sender.next_send(now).filter(|&at| at > now);
        let wake = [pacing, self.sender.next_timer(), source_wake]
            .into_iter()
            .flatten()
            .min()
            .map(|at| at.max(now) + self.slop);
        match wake {
            Some(at) if at < self.wake_at || self.wake_at <= now => {
                self.wake_at = at;
                (packets, Some(at))
            }
            _ => (packets, None),
        }
    }

    /// A packet came: returns when an acknowledgement is due, if that is news.
    fn receive(&mut self, number: u64, now: Micros) -> Option<Micros> {
        self.unacked += 1;
        match self.received.back_mut() {
            Some(last) if last.1 + 1 == number => {
                last.1 = number;
                self.largest_at = now;
            }
            Some(last) if number > last.1 => {
                self.received.push_back((number, number));
                self.largest_at = now;
            }
            None => {
                self.received.push_back((number, number));
                self.largest_at = now;
            }
            Some(_) => {
                let at = self.received.partition_point(|range| range.1 < number);
                self.received.insert(at, (number, number));
                if self
                    .received
                    .get(at + 1)
                    .is_some_and(|next| next.0 == number + 1)
                {
                    let next = self.received.remove(at + 1).expect("there is one");
                    self.received[at].1 = next.1;
                }
                if at > 0 && self.received[at - 1].1 + 1 == number {
                    let this = self.received.remove(at).expect("just inserted");
                    self.received[at - 1].1 = this.1;
                }
            }
        }
        if self.received.len() > 64 {
            self.received.pop_front();
        }
        if self.ack_at.is_none() {
            self.ack_at = Some(now + self.acks.delay);
            return self.ack_at;
        }
        None
    }
}

impl Tcp {
    fn new(kind: Kind, start: Micros) -> Self {
        Tcp {
            kind,
            window: 10.0,
            threshold: f64::MAX,
            in_flight: VecDeque::new(),
            next: 0,
            recover: 0,
            w_max: 0.0,
            epoch: None,
            srtt: 0.0,
            last_progress: start,
        }
    }

    /// Numbers that the window lets go.
    fn send(&mut self, now: Micros) -> Vec<u64> {
        let mut numbers = Vec::new();
        while (self.in_flight.len() as f64) < self.window {
            self.in_flight.push_back((self.next, now));
            numbers.push(self.next);
            self.next += 1;
        }
        numbers
    }

    /// A loss or a mark.
    fn congested(&mut self, number: u64) {
        if number < self.recover {
            return;
        }
        self.recover = self.next;
        self.w_max = if self.window < self.w_max {
            self.window * 0.85
        } else {
            self.window
        };
        self.window *= if self.kind == Kind::Cubic { 0.7 } else { 0.5 };
        self.window = self.window.max(2.0);
        self.threshold = self.window;
        self.epoch = None;
    }

    fn acked(&mut self, number: u64, now: Micros) {
        let Ok(at) = self.in_flight.binary_search_by_key(&number, |(n, _)| *n) else {
            return;
        };
        self.last_progress = now;
        let sent = self.in_flight.remove(at).map_or(now, |(_, sent)| sent);
        let rtt = (now - sent) as f64;
        self.srtt = if self.srtt == 0.0 {
            rtt
        } else {
            self.srtt * 0.875 + rtt * 0.125
        };
        let mut lost = None;
        while let Some(&(first, _)) = self.in_flight.front()
            && first + 3 <= number
        {
            lost = Some(first);
            self.in_flight.pop_front();
        }
        if let Some(lost) = lost {
            self.congested(lost);
            return;
        }
        if number < self.recover {
            return;
        }
        if self.window < self.threshold {
            self.window += 1.0;
            return;
        }
        match self.kind {
            Kind::Reno => self.window += 1.0 / self.window,
            Kind::Cubic => {
                let epoch = *self.epoch.get_or_insert(now);
                let time = (now - epoch) as f64 / 1e6;
                let k = (self.w_max * 0.3 / 0.4).max(0.0).cbrt();
                let rtt = self.srtt / 1e6;
                let cubic = 0.4 * (time + rtt - k).powi(3) + self.w_max;
                // RFC 9438 section 4.3: at least as fast as Reno.
                let reno = self.threshold + 0.53 * time / rtt.max(1e-6);
                let target = cubic.max(reno).min(1.5 * self.window);
                if target > self.window {
                    self.window += (target - self.window) / self.window;
                } else {
                    self.window += 0.01 / self.window;
                }
            }
        }
    }

    fn timeout(&mut self, now: Micros) {
        if now - self.last_progress >= 1_000_000 && !self.in_flight.is_empty() {
            self.in_flight.clear();
            self.threshold = (self.window / 2.0).max(2.0);
            self.window = 2.0;
            self.epoch = None;
            self.last_progress = now;
        }
    }
}
