//! When and how fast to send: congestion control for a tunnel.
//!
//! What a tunnel carries is mostly TCP and QUIC, which have controllers of their own. A loss-based
//! controller around them sees each loss first, shrinks, and starves them
//! (docs/decisions/0003). So this one follows BBR (draft-ietf-ccwg-bbr): it measures what the path
//! delivers and how long it takes when it is empty, and keeps about their product in flight.
//! Losses count only when they come with a growing delay, or are far more than usual.
//!
//! [`Sender`] is what an engine calls; [`Controller`] is the model inside of it.
//!
//! Where it departs from the draft, and why (the simulator in the tests measures each):
//!
//! - Bandwidth is remembered for 5 to 10 round trips, not for two cycles of seconds, and cycles
//!   take about 10 round trips while nobody contests the path: a slower path is noticed sooner.
//! - A loss counts as congestion when the round trip around it is near the longest of the last
//!   seconds: a queue that drops is a full one. The share of lost packets does not matter, so that
//!   1 or 5 % of random loss cost what was lost, and TCP, which halves at 0.1 %, keeps its share.
//!   Other losses count as delivered where bandwidth is measured.
//! - A CE mark (RFC 3168) is such a loss, whatever the round trip.
//! - After such a loss, the next probe waits for as many round trips as Reno would need. Where a
//!   probe raised the bandwidth by a sixth or more, the next one follows at once.
//! - When no round trip in ten was near the least, the least is measured anew at once and not after
//!   10 seconds: others are in the queue, and their queue is to be counted in.
//! - Where there was a queue all the time, the average rate is the bandwidth, and not the highest
//!   sample: those come of acknowledgements in bunches on a path that jitters.
//! - On a path below 2 ms it is processors that are late, not the network: up to 256 KiB, or what
//!   10 ms take, may be in flight there. Without, a session that has once become slow beside faster
//!   ones on a busy machine stays slow.
//! - A full path tells its bandwidth even when the sender has no more to send.

mod sender;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

pub use sender::Sender;

use crate::recovery::{Micros, Outcome};

/// A full packet, for windows that are counted in packets.
const PACKET: u64 = 1452;
/// What may be in flight before anything is known.
const INITIAL_WINDOW: u64 = 32 * PACKET;
/// What may always be in flight.
const MIN_WINDOW: u64 = 4 * PACKET;
/// The most that one buffer with `UDP_SEGMENT` takes.
const MAX_QUANTUM: u64 = 65_536;
/// The round trip for pacing the first window, before one is measured.
const FIRST_RTT: Micros = 20_000;
/// How much later than expected acknowledgements and wake-ups may come, at least and, on fast
/// paths, at most.
const SLACK: Micros = 1_000;
const MAX_SLACK: Micros = 4_000;
/// Bytes per second for each millisecond more of it.
const SLACK_STEP: u64 = 125_000_000;
/// How late a turn to send may come on a path that is shorter than [`SHORT`], while packets wait to
/// be sent. There it is not the network that has no room, but the processors that have too much to
/// run; what could not be sent meanwhile may go at once.
const TURN: Micros = 10_000;
const SHORT: Micros = 2_000;
/// Bytes that may be in flight there for as long, at least: of a slow session beside fast ones.
const LATE: u64 = 4 * MAX_QUANTUM;
/// A shorter pause without anything in flight means nothing.
const IDLE: Micros = 10_000;
/// How old the least round trip may become: draft-ietf-ccwg-bbr, `MinRTTFilterLen`.
const MIN_RTT_LIFE: Micros = 10_000_000;
/// `ProbeRTTDuration`.
const PROBE_RTT_TIME: Micros = 200_000;
/// Rounds in half of the window of the maximum filters, and how long they are at least.
const PERIOD_ROUNDS: u64 = 5;
const PERIOD_TIME: Micros = 100_000;
/// How much of the flight of a congestive loss is used until the next probe.
const HEADROOM: (u64, u64) = (17, 20);
/// How much of what a round delivered may be in flight after a mark. A queue that marks is short, so
/// that more than the queue must go for others to get their share (RFC 8511).
const ECN_BETA: (u64, u64) = (17, 20);
/// By how many percent a probe must raise the bandwidth for the next one to follow at once. With
/// a gain of 1.25, it does on a path with room, and where others have two thirds of it.
const GROWTH: u64 = 15;
/// The bandwidth is believed to be above the average by one part of this many, where there was a
/// queue all the time.
const AVERAGE_MARGIN: u64 = 50;
/// Half of the time for which the longest round trip is remembered.
const MAX_RTT_PERIOD: Micros = 5_000_000;

/// What the controller does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Doubles the rate each round until the path carries no more.
    Startup,
    /// Empties the queue that `Startup` made.
    Drain,
    /// Gives back what `Up` took.
    Down,
    /// Keeps the rate.
    Cruise,
    /// Fills the path before `Up`.
    Refill,
    /// Probes for more.
    Up,
    /// Keeps little in flight, to see the round trip of an empty path.
    ProbeRtt,
}

impl State {
    fn pacing_gain(self) -> f64 {
        match self {
            State::Startup => 2.77,
            State::Drain => 0.5,
            State::Down => 0.75,
            State::Cruise | State::Refill | State::ProbeRtt => 1.0,
            State::Up => 1.25,
        }
    }

    fn window_gain(self) -> f64 {
        match self {
            State::Up => 2.25,
            State::ProbeRtt => 0.5,
            _ => 2.0,
        }
    }
}

/// The greatest value of the current period and of the one before it.
#[derive(Clone, Copy, Debug, Default)]
struct MaxFilter {
    current: u64,
    previous: u64,
}

impl MaxFilter {
    fn get(self) -> u64 {
        self.current.max(self.previous)
    }

    fn update(&mut self, value: u64) {
        self.current = self.current.max(value);
    }

    fn advance(&mut self) {
        self.previous = self.current;
        self.current = 0;
    }
}

/// What happened since the last round began.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    acked: u64,
    lost: u64,
    /// Bytes of packets that congestion marked, about.
    marked: u64,
    /// Bytes in flight when the newest packet that congestion cost or marked was sent; 0: none.
    congested_in_flight: u64,
}

/// When the period of the maximum filters began.
#[derive(Clone, Copy, Debug, Default)]
struct Period {
    round: u64,
    time: Micros,
    delivered: u64,
    /// Something since then was limited by what was offered.
    app_limited: bool,
}

/// What [`Sender`] tells the controller of the packets.
#[derive(Clone, Copy, Debug)]
struct View {
    in_flight: u64,
    delivered: u64,
    /// Packets more than before that the path marked as having met congestion.
    ce: u64,
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// A model of the path, and what follows from it.
#[allow(clippy::struct_excessive_bools)] // each stands for itself
#[derive(Debug)]
pub struct Controller {
    state: State,
    window: u64,

    /// Bytes per second.
    bandwidth: MaxFilter,
    period: Period,
    min_rtt: Option<Micros>,
    min_rtt_time: Micros,

    rounds: u64,
    next_round: u64,
    round: Round,

    full_bandwidth: u64,
    full_rounds: u32,
    filled: bool,

    /// Bytes acknowledged beyond what the bandwidth explains: acknowledgements come in bunches.
    extra_acked: MaxFilter,
    extra_start: Micros,
    extra_bytes: u64,

    /// Bounds on the flight found by congestive losses, in bytes; `u64::MAX` without one.
    high: u64,
    low: u64,
    /// The round of the last congestive loss.
    congested_round: u64,
    /// The longest round trip, over periods of [`MAX_RTT_PERIOD`].
    max_rtt: MaxFilter,
    max_rtt_time: Micros,
    /// The shortest round trip of this period of the filters and of the one before it.
    recent_rtt: (Micros, Micros),
    /// Congestive losses, as far as a cycle remembers them.
    contested: bool,

    state_round: u64,
    state_time: Micros,
    cruise_rounds: u64,
    /// The bandwidth before the last probe.
    before_probe: u64,
    /// The last probe found more: this one may last longer.
    patient: bool,
    probe_rtt_done: Option<Micros>,
    probe_rtt_min: Micros,

    tokens: i64,
    tokens_time: Micros,
    /// Packets wait for permission.
    backlog: bool,
    random: u64,
}

impl Controller {
    /// A controller for a path about which nothing is known.
    pub fn new(now: Micros) -> Self {
        Controller {
            state: State::Startup,
            window: INITIAL_WINDOW,
            bandwidth: MaxFilter::default(),
            period: Period {
                time: now,
                ..Period::default()
            },
            min_rtt: None,
            min_rtt_time: now,
            rounds: 0,
            next_round: 0,
            round: Round::default(),
            full_bandwidth: 0,
            full_rounds: 0,
            filled: false,
            extra_acked: MaxFilter::default(),
            extra_start: now,
            extra_bytes: 0,
            high: u64::MAX,
            low: u64::MAX,
            congested_round: 0,
            max_rtt: MaxFilter::default(),
            max_rtt_time: now,
            recent_rtt: (Micros::MAX, Micros::MAX),
            contested: false,
            state_round: 0,
            state_time: now,
            cruise_rounds: 0,
            before_probe: 0,
            patient: false,
            probe_rtt_done: None,
            probe_rtt_min: Micros::MAX,
            tokens: signed(INITIAL_WINDOW / 2),
            tokens_time: now,
            backlog: false,
            random: now | 1,
        }
    }

    /// What it does now.
    pub fn state(&self) -> State {
        self.state
    }

    /// The estimated bandwidth of the path in bytes per second; 0 when unknown.
    pub fn bandwidth(&self) -> u64 {
        self.bandwidth.get()
    }

    /// The round trip of the path when it is empty.
    pub fn min_rtt(&self) -> Option<Micros> {
        self.min_rtt
    }

    /// The bytes that may be in flight.
    pub fn window(&self) -> u64 {
        self.window
    }

    /// The rate at which packets leave, in bytes per second.
    pub fn pacing_rate(&self) -> u64 {
        let bandwidth = self.bandwidth();
        let rtt = self.min_rtt.unwrap_or(FIRST_RTT).max(SLACK);
        let first = (2.77 * INITIAL_WINDOW as f64 * 1e6 / rtt as f64) as u64;
        if bandwidth == 0 {
            return first;
        }
        let least = if self.filled || !self.period.app_limited {
            0
        } else {
            first // what was offered until now was less than the first window
        };
        // 1 % less than the bandwidth (draft-ietf-ccwg-bbr, `PacingMarginPercent`), so that a
        // queue that has come into being goes away.
        let rate = (self.state.pacing_gain() * 0.99 * bandwidth as f64) as u64;
        rate.max(least)
    }

    /// The bytes that leave together: what 1 ms takes, at most a GSO buffer.
    fn quantum(&self) -> u64 {
        let rate = self.pacing_rate();
        let least = if rate < 150_000 { PACKET } else { 2 * PACKET };
        (rate / 1_000).clamp(least, MAX_QUANTUM)
    }

    fn bdp(&self, gain: f64) -> u64 {
        let rtt = self.min_rtt.unwrap_or(FIRST_RTT);
        (gain * self.bandwidth() as f64 * rtt as f64 / 1e6) as u64
    }

    /// `bdp` and what batching at both ends needs on top of it.
    fn target(&self, gain: f64) -> u64 {
        let slack = self.bandwidth().saturating_mul(self.slack()) / 1_000_000;
        let turn = self.bandwidth().saturating_mul(TURN) / 1_000_000;
        let late = if self.is_short() { turn.min(LATE) } else { 0 };
        (self.bdp(gain) + slack.max(late) + 3 * self.quantum()).max(MIN_WINDOW)
    }

    /// How late acknowledgements and wake-ups may be without an effect on the rate. On a fast path
    /// a late one costs much, and a burst little.
    fn slack(&self) -> Micros {
        (SLACK + self.bandwidth().saturating_mul(1_000) / SLACK_STEP).min(MAX_SLACK)
    }

    fn is_short(&self) -> bool {
        self.min_rtt.is_some_and(|rtt| rtt < SHORT)
    }

    fn depth(&self) -> i64 {
        let slack = if self.backlog && self.is_short() {
            TURN
        } else {
            self.slack()
        };
        let burst = self.pacing_rate().saturating_mul(slack) / 1_000_000;
        signed(self.quantum() + burst)
    }

    /// The permission to send as of now, and whether some of it went unused.
    fn tokens(&self, now: Micros) -> (i64, bool) {
        let passed = now.saturating_sub(self.tokens_time);
        let earned = self.pacing_rate().saturating_mul(passed) / 1_000_000;
        let tokens = self.tokens.saturating_add(signed(earned));
        let depth = self.depth();
        (tokens.min(depth), tokens > depth)
    }

    /// Bytes that pacing lets go now: 0, or at least a quantum.
    fn paced(&self, now: Micros) -> u64 {
        let (tokens, _) = self.tokens(now);
        let tokens = u64::try_from(tokens).unwrap_or(0);
        if tokens >= self.quantum() { tokens } else { 0 }
    }

    /// When pacing lets something go.
    fn paced_at(&self, now: Micros) -> Micros {
        let missing = signed(self.quantum()).saturating_sub(self.tokens(now).0);
        let missing = u64::try_from(missing).unwrap_or(0);
        now + (missing * 1_000_000).div_ceil(self.pacing_rate().max(1))
    }

    /// Bytes that the window lets go now: 0, or enough for a batch.
    fn windowed(&self, in_flight: u64) -> u64 {
        let room = self.window.saturating_sub(in_flight);
        if room >= self.quantum().min(self.window / 8) {
            room
        } else {
            0
        }
    }

    /// Says that `bytes` leave. Returns whether permission went unused before them: then it is not
    /// the controller that limits the rate.
    fn on_sent(&mut self, bytes: u64, now: Micros) -> bool {
        let (tokens, unused) = self.tokens(now);
        // Who sends without asking does not have to be silent for ever.
        let debt = signed(self.window);
        self.tokens = tokens.saturating_sub(signed(bytes)).max(-debt);
        self.tokens_time = now;
        unused
    }

    /// An acknowledgement, or a timer that found losses.
    fn on_outcome(&mut self, outcome: &Outcome, view: View, now: Micros) {
        // With the rate that was valid until now.
        self.tokens = self.tokens(now).0;
        self.tokens_time = now;

        let congestive = self.judge_losses(outcome, now);
        self.round.acked += outcome.acked_bytes;
        self.round.lost += outcome.lost_bytes;
        if congestive {
            self.round.congested_in_flight = outcome.lost_in_flight;
            self.congested_round = self.rounds;
        }
        let Some(sample) = outcome.rate else {
            return;
        };
        if view.ce > 0 {
            // RFC 9002 section 7.1: as a congestive loss.
            let marked = view.ce.saturating_mul(PACKET).min(outcome.acked_bytes);
            self.round.marked += marked;
            self.round.congested_in_flight = self.round.congested_in_flight.max(sample.in_flight);
            self.congested_round = self.rounds;
        }
        let mut rate = sample.rate();
        if self.rounds > self.congested_round + 1 {
            // Losses by chance are capacity as well: the path had to carry what it lost.
            let lost = sample.lost.min(sample.delivered / 8);
            rate += lost.saturating_mul(1_000_000) / sample.interval.max(1);
        }
        // A full path tells what it carries, even when all that was offered is on it. Before one
        // was seen, a trickle that is all that was offered is not one.
        let full = self
            .bdp(1.0)
            .max(if self.filled { 0 } else { INITIAL_WINDOW });
        let app_limited = sample.app_limited && sample.in_flight < full;
        let round_start = sample.prior_delivered >= self.next_round;
        if round_start {
            self.next_round = view.delivered;
            self.rounds += 1;
        }
        // A sample over less than a round trip tells how ACKs were bunched, and no rate.
        let whole = self.min_rtt.is_none_or(|rtt| sample.interval >= rtt);
        self.period.app_limited |= app_limited;
        if whole && (!app_limited || rate >= self.bandwidth()) {
            self.bandwidth.update(rate);
        }
        self.note_extra(outcome.acked_bytes, now);
        if round_start {
            self.end_round(app_limited, view, now);
        }
        let light = outcome.rtt_sample.is_some()
            && sample.app_limited
            && sample.in_flight <= self.target(0.5);
        self.note_min_rtt(outcome.rtt_sample, light, view, now);
        self.step(round_start, view, now);
        self.set_window(outcome.acked_bytes);
    }

    /// How bunched acknowledgements are: `UpdateACKAggregation`.
    fn note_extra(&mut self, acked: u64, now: Micros) {
        let passed = now.saturating_sub(self.extra_start);
        let expected = self.bandwidth().saturating_mul(passed) / 1_000_000;
        if self.extra_bytes <= expected {
            self.extra_bytes = 0;
            self.extra_start = now;
        }
        let passed = now.saturating_sub(self.extra_start);
        let expected = self.bandwidth().saturating_mul(passed) / 1_000_000;
        self.extra_bytes += acked;
        let extra = self.extra_bytes.saturating_sub(expected).min(self.window);
        self.extra_acked.update(extra);
    }

    fn end_period(&mut self, view: View, now: Micros) {
        let min_rtt = self.min_rtt.unwrap_or(0);
        let backlog = self.recent_rtt.0 != Micros::MAX
            && self.recent_rtt.0 > min_rtt + (min_rtt / 16).max(1_000);
        if backlog && self.filled && !self.period.app_limited && !self.contested {
            // There was a queue all the time: the average is what the path gave, and what is above
            // it came of acknowledgements in bunches.
            let bytes = view.delivered.saturating_sub(self.period.delivered);
            let time = now.saturating_sub(self.period.time).max(1);
            let average = bytes.saturating_mul(1_000_000) / time;
            let limit = average + average / AVERAGE_MARGIN;
            self.bandwidth.current = self.bandwidth.current.min(limit);
        }
        self.period = Period {
            round: self.rounds,
            time: now,
            delivered: view.delivered,
            app_limited: false,
        };
        self.bandwidth.advance();
        self.extra_acked.advance();
        self.recent_rtt = (Micros::MAX, self.recent_rtt.0);
    }

    fn end_round(&mut self, app_limited: bool, view: View, now: Micros) {
        let round = std::mem::take(&mut self.round);
        if self.rounds - self.period.round >= PERIOD_ROUNDS
            && now.saturating_sub(self.period.time) >= PERIOD_TIME
            && !app_limited
        {
            self.end_period(view, now);
        }
        // `BBRLossThresh`: one loss by chance, or one mark, does not end `Startup`.
        let few = round.lost + round.marked < (round.acked + round.lost) / 50;
        let congested = round.congested_in_flight > 0 && !(self.state == State::Startup && few);
        if !self.filled && !app_limited {
            // `CheckFullBWReached`.
            if self.bandwidth() >= self.full_bandwidth + self.full_bandwidth / 4 {
                self.full_bandwidth = self.bandwidth();
                self.full_rounds = 0;
            } else {
                self.full_rounds += 1;
            }
            self.filled = self.full_rounds >= 3;
        }
        if congested {
            self.contested = true;
            match self.state {
                State::Up | State::Refill | State::Startup => {
                    self.filled = true;
                    self.high = round.congested_in_flight.max(self.bdp(0.7)).max(MIN_WINDOW);
                    if self.state != State::Startup {
                        self.enter(State::Down, now);
                    }
                }
                State::Drain => {}
                _ => {
                    let low = self.low.min(self.window);
                    let least = if round.marked > 0 {
                        round.acked / ECN_BETA.1 * ECN_BETA.0
                    } else {
                        round.acked
                    };
                    self.low = (low * 7 / 10).max(least).max(MIN_WINDOW);
                }
            }
        } else if self.state == State::Up && self.high != u64::MAX {
            let step = (self.rounds - self.state_round).min(20);
            self.high = self.high.saturating_add(PACKET << step);
            if self.high > self.target(2.25) {
                self.high = u64::MAX;
            }
        }
    }

    /// Whether losses mean congestion: packets are dropped when the queue is full, so the round
    /// trip of those that got in is about the longest then.
    fn judge_losses(&mut self, outcome: &Outcome, now: Micros) -> bool {
        let Some(rtt) = outcome.rtt_sample else {
            return false;
        };
        if now.saturating_sub(self.max_rtt_time) > MAX_RTT_PERIOD {
            self.max_rtt_time = now;
            self.max_rtt.advance();
        }
        self.max_rtt.update(rtt);
        let Some(least) = self.min_rtt else {
            return false;
        };
        let queue = rtt.saturating_sub(least);
        let longest = self.max_rtt.get().saturating_sub(least);
        outcome.lost_packets > 0 && queue >= (least / 16).max(1_000) && queue >= longest / 4 * 3
    }

    /// `UpdateMinRTT` and `UpdateProbeRTT`. `light` says that the packet of the sample left with little in flight.
    fn note_min_rtt(&mut self, sample: Option<Micros>, light: bool, view: View, now: Micros) {
        if let Some(rtt) = sample {
            let least = self.min_rtt.unwrap_or(Micros::MAX);
            if rtt < least {
                self.min_rtt = Some(rtt);
                self.min_rtt_time = now;
            } else if rtt <= least + least / 32 {
                self.min_rtt_time = now;
            }
            self.probe_rtt_min = self.probe_rtt_min.min(rtt);
            self.recent_rtt.0 = self.recent_rtt.0.min(rtt);
        }
        // The flight is bounded so that the queue of this sender alone is below a round trip: if
        // it never was for ten rounds, there are others in it, or the path became longer.
        let recent = self.recent_rtt.0.min(self.recent_rtt.1);
        let doubtful = self.recent_rtt.1 != Micros::MAX
            && recent > self.min_rtt.unwrap_or(0).saturating_mul(2) + 2 * self.slack();
        let expired = doubtful || now.saturating_sub(self.min_rtt_time) > MIN_RTT_LIFE;
        if expired && light && self.state != State::ProbeRtt {
            // What was in flight lately made no queue: there is no need to hold back for it.
            self.min_rtt = Some(recent);
            self.min_rtt_time = now;
        } else if expired && self.state != State::ProbeRtt && sample.is_some() {
            self.enter(State::ProbeRtt, now);
            self.probe_rtt_done = None;
            self.probe_rtt_min = Micros::MAX;
        }
        if self.state != State::ProbeRtt {
            return;
        }
        match self.probe_rtt_done {
            None if view.in_flight <= self.target(0.5) => {
                self.probe_rtt_done = Some(now + PROBE_RTT_TIME.max(self.min_rtt.unwrap_or(0)));
                self.probe_rtt_min = Micros::MAX;
            }
            Some(done) if now >= done && self.probe_rtt_min != Micros::MAX => {
                self.min_rtt = Some(self.probe_rtt_min);
                self.min_rtt_time = now;
                self.recent_rtt = (Micros::MAX, Micros::MAX);
                let next = if self.filled {
                    State::Cruise
                } else {
                    State::Startup
                };
                self.enter(next, now);
            }
            _ => {}
        }
    }

    fn step(&mut self, round_start: bool, view: View, now: Micros) {
        let in_state = now.saturating_sub(self.state_time);
        let rounds = self.rounds - self.state_round;
        match self.state {
            State::Startup if self.filled => self.enter(State::Drain, now),
            State::Drain if view.in_flight <= self.drained() || rounds >= 5 => {
                self.enter(State::Cruise, now);
            }
            State::Down
                if view.in_flight <= self.drained().min(self.headroom())
                    || rounds >= 2 && in_state >= self.min_rtt.unwrap_or(0) =>
            {
                self.enter_cruise(now);
            }
            State::Cruise | State::Down if self.time_to_probe(now) => {
                self.low = u64::MAX;
                if !self.contested {
                    self.high = self.high.saturating_add(self.high / 8);
                }
                self.contested = false;
                self.patient = self.found_more();
                self.before_probe = self.bandwidth();
                self.enter(State::Refill, now);
            }
            State::Refill if round_start && rounds >= 1 => {
                self.full_bandwidth = self.bandwidth();
                self.enter(State::Up, now);
            }
            State::Up => {
                if round_start && self.bandwidth() > self.full_bandwidth + self.full_bandwidth / 8 {
                    self.full_bandwidth = self.bandwidth();
                    self.state_round = self.rounds;
                } else if in_state >= self.min_rtt.unwrap_or(0)
                    && (view.in_flight >= self.target(1.25) && !self.patient || rounds >= 3)
                    && (self.high >= self.target(1.25) || rounds >= 6)
                {
                    self.enter(State::Down, now);
                }
            }
            _ => {}
        }
    }

    /// The flight with which the path is full and the queue empty.
    fn drained(&self) -> u64 {
        let slack = self.bandwidth().saturating_mul(SLACK) / 1_000_000;
        (self.bdp(1.0) + slack + self.quantum()).max(MIN_WINDOW)
    }

    fn time_to_probe(&self, now: Micros) -> bool {
        let rounds = self.rounds - self.state_round;
        let time = now.saturating_sub(self.state_time);
        if self.contested {
            // About as often as Reno and CUBIC come back to what they lost
            // (`IsRenoCoexistenceProbeTime`).
            let reno = (self.bdp(1.0).min(self.window) / PACKET).clamp(8, 63);
            return rounds >= reno || time >= 1_500_000 + self.random % 1_000_000;
        }
        let wait = if self.found_more() {
            2
        } else {
            self.cruise_rounds
        };
        rounds >= wait && time > 50_000
    }

    /// Whether the last probe found much: then there is more. It is seen a round trip later.
    fn found_more(&self) -> bool {
        self.bandwidth() > self.before_probe + self.before_probe / 100 * GROWTH
    }

    fn headroom(&self) -> u64 {
        if self.high == u64::MAX {
            u64::MAX
        } else {
            self.high / HEADROOM.1 * HEADROOM.0
        }
    }

    fn enter_cruise(&mut self, now: Micros) {
        // The cycle began with `Down`.
        let began = (self.state_round, self.state_time);
        self.enter(State::Cruise, now);
        (self.state_round, self.state_time) = began;
    }

    fn enter(&mut self, state: State, now: Micros) {
        if matches!(state, State::Cruise | State::Down) {
            // xorshift: cycles of many tunnels on one path drift apart.
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            self.cruise_rounds = 7 + self.random % 4;
        }
        self.state = state;
        self.state_round = self.rounds;
        self.state_time = now;
    }

    fn set_window(&mut self, acked: u64) {
        let target = self.target(self.state.window_gain()) + self.extra_acked.get();
        if self.filled {
            self.window = (self.window + acked).min(target);
        } else if self.window < target || self.next_round < INITIAL_WINDOW {
            self.window += acked;
        }
        let bound = match self.state {
            State::Up | State::Refill | State::Startup => self.high,
            _ => self.headroom().min(self.low),
        };
        self.window = self.window.min(bound);
        if self.state == State::ProbeRtt {
            self.window = self.window.min(self.target(0.5));
        }
        self.window = self.window.max(MIN_WINDOW);
    }

    /// Sending begins again after a pause without anything in flight.
    fn on_idle_restart(&mut self, now: Micros) {
        let pause = now.saturating_sub(self.tokens_time);
        if pause < self.min_rtt.unwrap_or(0).max(IDLE) {
            return;
        }
        self.extra_bytes = 0;
        self.extra_start = now;
        if now.saturating_sub(self.min_rtt_time) > MIN_RTT_LIFE {
            // The pause emptied the path: the next round trip counts.
            self.min_rtt_time = now;
        }
        if matches!(self.state, State::ProbeRtt | State::Up | State::Refill) && self.filled {
            self.enter(State::Cruise, now);
        }
    }
}
