//! One QUIC connection with one tunnel, as far as the engine carries it.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use quinn_udp::EcnCodepoint;

use crate::Micros;
use crate::ecn::Unopened;
use crate::fq_codel::{Config, FqCodel};
use crate::quic::{self, Keys, TAG};
use crate::received::Received;
use crate::rules::Rules;
use crate::sender::Sender;

/// Acknowledge after so many packets that ask for it (see docs/datapath.md).
const ACK_EVERY: u32 = 64;
/// And after so long at the latest; far below the `max_ack_delay` that aioquic announces.
const ACK_DELAY: Micros = 1_000;
/// For so long keys of the phase before open packets that were under way (RFC 9001 section 6.5).
const PREVIOUS_KEYS: Micros = 3_000_000;
/// Packets that may be on their way up at once.
const HANDED_UP: usize = 1 << 10;
/// Sealed with one key; half of what AES-GCM allows (RFC 9001 section 6.6).
pub const KEY_LIMIT: u64 = 1 << 22;
/// A peer that owes an answer for so long is reported, once.
const SILENCE: Micros = 250_000;
/// As aioquic announces it (RFC 9000 section 18.2).
const ACK_DELAY_EXPONENT: u32 = 3;

/// Where packets go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Which socket of the engine.
    pub socket: usize,
    /// The peer.
    pub peer: SocketAddr,
    /// The local address to send from, where there are several.
    pub local: Option<IpAddr>,
}

/// What happened that the QUIC stack must know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is time for another key (RFC 9001 section 6.6).
    KeyLimit,
    /// The peer owes an answer for a while.
    Silent,
    /// Only packets of the largest size are lost (RFC 8899 section 4.3).
    BlackHole,
    /// The local interface refuses packets of this many bytes.
    TooLarge(usize),
}

/// What was moved, and what was not, as IP packets.
#[derive(Clone, Copy, Default)]
pub struct Counters {
    /// To the peer.
    pub tx_packets: u64,
    /// Bytes of them.
    pub tx_bytes: u64,
    /// From the peer.
    pub rx_packets: u64,
    /// Bytes of them.
    pub rx_bytes: u64,
    /// Taken from the TUN with a source that is not the session's.
    pub bad_source: u64,
}

struct Opening {
    current: Keys,
    phase: bool,
    previous: Option<(Keys, Micros)>,
}

/// How a packet fared that claims to be of a session.
pub enum Opened {
    /// Its frames are the first so many bytes of the output, and it has this number.
    Fresh(usize, u64),
    /// It was here before.
    Duplicate,
    /// Not by the keys that are known here; the QUIC stack may know better. Its number, if the
    /// header can be read.
    Unknown(Option<u64>),
}

/// See the module.
#[allow(clippy::struct_excessive_bools)] // each stands for itself
pub struct Session {
    sealing: Keys,
    phase: bool,
    opening: Opening,
    sealed: u64,
    /// Connection IDs of ours.
    pub own_ids: Vec<Vec<u8>>,
    peer_id: Vec<u8>,
    /// `None` while nothing may be sent: the path is not validated.
    pub route: Option<Route>,
    /// Of the last route: packets from elsewhere are a matter for the QUIC stack.
    pub known_peer: Option<SocketAddr>,
    /// Quarter Stream ID and Context ID.
    pub prefix: Vec<u8>,
    /// UDP payload bytes of the largest packet.
    pub packet_size: usize,
    /// Bytes of the largest inner packet.
    pub mtu: usize,
    /// What may pass.
    pub rules: Rules,
    next: u64,
    /// The QUIC stack sends at this moment, and has the next numbers.
    pub held: bool,
    /// What has arrived.
    pub received: Received,
    /// Marks of packets that went up unopened, until the QUIC stack tells which it opened.
    unopened: Unopened,
    /// Of what has arrived, the latest that was handed up, and may not have been handled yet.
    pub handed_up: VecDeque<u64>,
    /// The largest number that arrived from the known peer.
    pub largest_direct: u64,
    /// What was sent, and how fast more may be.
    pub sender: Sender,
    /// What waits to be sent.
    pub queue: FqCodel<Vec<u8>>,
    /// What was moved.
    pub counters: Counters,
    /// When a packet of the peer was last opened.
    pub last_received: Micros,
    unanswered: Option<Micros>,
    silence_told: bool,
    black_hole_told: bool,
    key_limit_told: bool,
    peer_delay_exponent: u32,
    key_limit: u64,
}

/// What [`Session::new`] needs; see its fields there.
#[allow(missing_docs)]
pub struct Setup {
    pub sealing: Keys,
    pub opening: Keys,
    pub phase: bool,
    pub own_ids: Vec<Vec<u8>>,
    pub peer_id: Vec<u8>,
    pub prefix: Vec<u8>,
    pub packet_size: usize,
    pub mtu: usize,
    pub rules: Rules,
    pub next: u64,
    pub received: Vec<(u64, u64)>,
    pub outstanding: Vec<(u64, u64)>,
    pub peer_delay_exponent: u32,
    pub peer_max_delay: Micros,
    pub rtt: Micros,
    pub key_limit: u64,
}

impl Session {
    /// A session that goes on where the QUIC stack was.
    pub fn new(setup: Setup, now: Micros) -> Self {
        let mut sender = Sender::new(setup.next, setup.peer_max_delay, setup.rtt, now);
        for &(first, last) in &setup.outstanding {
            sender.stack_sent(first, last + 1);
        }
        let received = Received::new(&setup.received, now);
        Self {
            sealing: setup.sealing,
            phase: setup.phase,
            opening: Opening {
                current: setup.opening,
                phase: setup.phase,
                previous: None,
            },
            sealed: 0,
            own_ids: setup.own_ids,
            peer_id: setup.peer_id,
            route: None,
            known_peer: None,
            prefix: setup.prefix,
            packet_size: setup.packet_size,
            mtu: setup.mtu,
            rules: setup.rules,
            next: setup.next,
            held: false,
            unopened: Unopened::default(),
            handed_up: VecDeque::new(),
            largest_direct: received.next().saturating_sub(1),
            received,
            sender,
            queue: FqCodel::new(Config::default(), seed()),
            counters: Counters::default(),
            last_received: now,
            unanswered: None,
            silence_told: false,
            black_hole_told: false,
            key_limit_told: false,
            peer_delay_exponent: setup.peer_delay_exponent,
            key_limit: setup.key_limit,
        }
    }

    /// Use other keys: of the next phase, both ways.
    pub fn set_keys(&mut self, sealing: Keys, opening: Keys, phase: bool, now: Micros) {
        let before = std::mem::replace(&mut self.opening.current, opening);
        self.opening.previous = Some((before, now));
        self.opening.phase = phase;
        self.sealing = sealing;
        self.phase = phase;
        self.sealed = 0;
        self.key_limit_told = false;
    }

    /// Use another connection ID of the peer's.
    pub fn set_peer_id(&mut self, id: Vec<u8>) {
        self.peer_id = id;
        self.set_size(self.packet_size, self.mtu);
    }

    /// Send packets of at most `packet_size` bytes with inner packets of at most `mtu` bytes, or of
    /// what fits.
    pub fn set_size(&mut self, packet_size: usize, mtu: usize) {
        self.packet_size = packet_size;
        self.mtu = mtu.min(self.frames_room().saturating_sub(1 + self.prefix.len()));
    }

    /// Send by `route` from now on, or nothing with `None`; `fresh` says that it is another path.
    pub fn set_route(&mut self, route: Option<Route>, peer: SocketAddr, fresh: bool, now: Micros) {
        self.route = route;
        self.known_peer = Some(peer);
        if fresh {
            self.sender.begin_path(now);
            self.black_hole_told = false;
        }
    }

    /// The next packet number.
    pub fn next_number(&self) -> u64 {
        self.next
    }

    /// The QUIC stack has sent what it wanted, up to the number before `next`.
    pub fn end_hold(&mut self, next: u64) {
        if next > self.next {
            self.sender.stack_sent(self.next, next);
            self.next = next;
        }
        self.held = false;
    }

    /// Whether packets can be sent now at all, as far as this side is concerned.
    pub fn may_send(&self, now: Micros) -> bool {
        self.route.is_some() && !self.held && self.sender.allowance(now) > 0
    }

    // Receiving

    /// Open a packet of this session into `out`.
    pub fn open(&mut self, packet: &[u8], id_size: usize, out: &mut [u8], now: Micros) -> Opened {
        // Header protection does not change with the phase (RFC 9001 section 6).
        let expected = self.received.next();
        let Some(header) = quic::unprotect(&self.opening.current, packet, id_size, expected) else {
            return Opened::Unknown(None);
        };
        let unknown = Opened::Unknown(Some(header.number));
        if !header.is_valid() {
            return unknown;
        }
        let keys = if header.phase == self.opening.phase {
            &self.opening.current
        } else {
            match &self.opening.previous {
                Some((keys, since)) if now < since + PREVIOUS_KEYS => keys,
                _ => return unknown,
            }
        };
        let Some(size) = quic::open(keys, &header, packet, out) else {
            return unknown;
        };
        if self.received.contains(header.number) {
            return Opened::Duplicate;
        }
        Opened::Fresh(size, header.number)
    }

    /// A packet was taken; `eliciting` says that it asks for an ACK, `mark` is its ECN codepoint.
    pub fn note_received(
        &mut self,
        number: u64,
        mark: Option<EcnCodepoint>,
        eliciting: bool,
        now: Micros,
    ) {
        self.received.add(number, eliciting, now);
        self.received.count(mark, eliciting);
        self.last_received = now;
        self.unanswered = None;
        self.silence_told = false;
    }

    /// A packet was taken that is for the QUIC stack to handle.
    pub fn note_handed_up(&mut self, number: u64, mark: Option<EcnCodepoint>, now: Micros) {
        self.note_received(number, mark, true, now);
        if self.handed_up.len() >= HANDED_UP {
            self.handed_up.pop_front();
        }
        self.handed_up.push_back(number);
    }

    /// A packet went up that could not be opened here.
    pub fn note_unopened(&mut self, number: Option<u64>, mark: Option<EcnCodepoint>) {
        if let Some(number) = number {
            self.unopened.add(number, mark);
        }
    }

    /// The QUIC stack opened such a packet.
    pub fn note_opened(&mut self, number: u64, eliciting: bool, now: Micros) {
        let mark = self.unopened.take(number);
        let news = !self.received.contains(number);
        self.note_received(number, mark.filter(|_| news), eliciting, now);
    }

    /// Handle an ACK frame. Returns the numbers of the stack's own packets among them, and the delay.
    pub fn handle_ack(
        &mut self,
        ack: &quic::AckFrame<'_>,
        now: Micros,
    ) -> (Vec<(u64, u64)>, Micros) {
        let delay = ack
            .delay
            .checked_shl(self.peer_delay_exponent)
            .unwrap_or(u64::MAX);
        (self.sender.acked(ack, delay, now), delay)
    }

    /// Whether an ACK should go out now.
    pub fn ack_due(&self, now: Micros) -> bool {
        let Some(since) = self.received.waiting_since() else {
            return false;
        };
        self.received.waiting() >= ACK_EVERY
            || self.received.out_of_order()
            || self.received.congested()
            || now >= since + ACK_DELAY
    }

    /// When something is due although nothing arrives.
    pub fn timer(&self, now: Micros) -> Option<Micros> {
        let able = self.route.is_some() && !self.held;
        let ack = self
            .received
            .waiting_since()
            .filter(|_| able)
            .map(|since| since + ACK_DELAY);
        let silence = self
            .unanswered
            .filter(|_| !self.silence_told)
            .map(|since| since + SILENCE);
        let queued = (able && !self.queue.is_empty())
            .then(|| self.sender.next_send(now))
            .flatten();
        [ack, silence, queued, self.sender.timer()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Let time pass, and see whether there is something to tell.
    pub fn on_timer(&mut self, now: Micros) -> Option<Event> {
        self.sender.on_timer(now);
        if self.sender.timer().is_none() {
            self.queue.shrink();
        }
        if let Some(since) = self.unanswered
            && !self.silence_told
            && now >= since + SILENCE
        {
            self.silence_told = true;
            return Some(Event::Silent);
        }
        self.event()
    }

    /// Something to tell, once.
    pub fn event(&mut self) -> Option<Event> {
        if self.sealed >= self.key_limit && !self.key_limit_told {
            self.key_limit_told = true;
            return Some(Event::KeyLimit);
        }
        if self.sender.black_hole_suspected() {
            if !self.black_hole_told {
                self.black_hole_told = true;
                return Some(Event::BlackHole);
            }
        } else {
            self.black_hole_told = false;
        }
        None
    }

    /// Since when the peer owes an answer to what was sent here.
    pub fn unanswered_since(&self) -> Option<Micros> {
        self.unanswered
    }

    // Sending

    /// Bytes before the frames.
    pub fn header_size(&self) -> usize {
        quic::header_size(&self.peer_id)
    }

    /// Bytes of frames that fit a packet.
    pub fn frames_room(&self) -> usize {
        self.packet_size.saturating_sub(self.header_size() + TAG)
    }

    /// Write an ACK frame into `out`, if one waits and there is room for some of it.
    pub fn write_ack(&mut self, out: &mut [u8], now: Micros) -> usize {
        if self.received.waiting() == 0 {
            return 0;
        }
        let delay = self.received.delay(now) >> ACK_DELAY_EXPONENT;
        let counts = self.received.counts();
        let size = quic::write_ack(self.received.ranges(), delay, counts, out);
        if size > 0 {
            self.received.acknowledged();
        }
        size
    }

    /// Protect a packet of ours, and remember it when it asks for an answer.
    pub fn seal(&mut self, packet: &mut [u8], eliciting: bool, now: Micros) -> bool {
        let number = self.next;
        if !quic::seal(&self.sealing, self.phase, &self.peer_id, number, packet) {
            return false;
        }
        self.next += 1;
        self.sealed += 1;
        if eliciting {
            let large = packet.len() + LARGE_MARGIN >= self.packet_size;
            self.sender.sent(number, packet.len(), large, now);
            if self.unanswered.is_none() {
                self.unanswered = Some(now);
            }
        }
        true
    }
}

/// For the hash of flows, so that nobody can choose packets that share one.
fn seed() -> [u64; 2] {
    let mut bytes = [0; 16];
    // Without random numbers nothing in here would be safe, and no keys would be there either.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    let (low, high) = bytes.split_at(8);
    let number = |part: &[u8]| part.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    [number(low), number(high)]
}

/// Bytes below the full size that still count as large.
const LARGE_MARGIN: usize = 64;
