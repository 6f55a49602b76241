//! RFC 9002 section 5.

use super::{GRANULARITY, Micros};

/// RFC 9002 section 6.2.2, `kInitialRtt`.
const INITIAL: Micros = 333_000;

/// Round-trip times of one path, in microseconds.
#[derive(Clone, Debug)]
pub struct Rtt {
    latest: Micros,
    smoothed: Micros,
    variance: Micros,
    min: Micros,
    max_ack_delay: Micros,
    measured: bool,
}

impl Default for Rtt {
    fn default() -> Self {
        Rtt::with_max_ack_delay(25_000)
    }
}

impl Rtt {
    /// Nothing measured yet.
    pub fn with_max_ack_delay(max_ack_delay: Micros) -> Self {
        Rtt {
            latest: 0,
            smoothed: INITIAL,
            variance: INITIAL / 2,
            min: 0,
            max_ack_delay,
            measured: false,
        }
    }

    /// Section 5.3. Returns the sample without the peer's delay, where subtracting it is allowed.
    pub(super) fn sample(&mut self, latest: Micros, ack_delay: Micros) -> Micros {
        self.latest = latest;
        if !self.measured {
            self.measured = true;
            self.min = latest;
            self.smoothed = latest;
            self.variance = latest / 2;
            return latest;
        }
        self.min = self.min.min(latest);
        let ack_delay = ack_delay.min(self.max_ack_delay);
        let adjusted = if latest >= self.min.saturating_add(ack_delay) {
            latest - ack_delay
        } else {
            latest
        };
        self.variance = (3 * self.variance + self.smoothed.abs_diff(adjusted)) / 4;
        self.smoothed = (7 * self.smoothed + adjusted) / 8;
        adjusted
    }

    /// A round trip that was no longer than this, because the acknowledgement may have waited for
    /// an unknown time. Counts when it brings news.
    pub(super) fn upper_bound(&mut self, bound: Micros) -> Option<Micros> {
        (!self.measured || bound < self.smoothed).then(|| self.sample(bound, 0))
    }

    /// A round trip from elsewhere, until one is measured.
    pub(super) fn hint(&mut self, rtt: Micros) {
        if !self.measured && rtt > 0 {
            self.smoothed = rtt;
            self.variance = rtt / 2;
        }
    }

    pub(super) fn set_max_ack_delay(&mut self, max_ack_delay: Micros) {
        self.max_ack_delay = max_ack_delay;
    }

    /// The peer's bound for how long it waits with an acknowledgement.
    pub fn max_ack_delay(&self) -> Micros {
        self.max_ack_delay
    }

    /// The last sample, with the peer's delay; 0 when there is none.
    pub fn latest(&self) -> Micros {
        self.latest
    }

    /// `smoothed_rtt`.
    pub fn smoothed(&self) -> Micros {
        self.smoothed
    }

    /// `rttvar`.
    pub fn variance(&self) -> Micros {
        self.variance
    }

    /// `min_rtt`, with the peer's delay; `None` before the first sample.
    pub fn min(&self) -> Option<Micros> {
        self.measured.then_some(self.min)
    }

    /// The probe timeout without backoff: section 6.2.1.
    pub fn pto(&self) -> Micros {
        self.smoothed + (4 * self.variance).max(GRANULARITY) + self.max_ack_delay
    }
}
