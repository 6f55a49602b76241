//! RFC 8289: when a packet has waited too long.

use super::Config;
use crate::recovery::Micros;

/// The state of one flow.
#[derive(Clone, Debug, Default)]
pub(super) struct Codel {
    /// When the delay will have been too much for an interval.
    first_above: Option<Micros>,
    /// While it drops: when the next one is due.
    drop_next: Option<Micros>,
    count: u32,
    last_count: u32,
    stopped: Micros,
}

impl Codel {
    /// Section 5: whether a packet that waited for `sojourn` is to be marked or dropped. `short`
    /// says that what is left behind it is less than a packet.
    pub(super) fn judge(
        &mut self,
        sojourn: Micros,
        short: bool,
        now: Micros,
        config: &Config,
    ) -> bool {
        if !self.too_long(sojourn, short, now, config) {
            if self.drop_next.take().is_some() {
                self.stopped = now;
            }
            return false;
        }
        if let Some(due) = self.drop_next {
            if now < due {
                return false;
            }
            self.count = self.count.saturating_add(1);
            self.drop_next = Some(control_law(due, self.count, config.interval));
        } else {
            // Section 5.4: soon after the last time, go on from about there.
            let delta = self.count.saturating_sub(self.last_count);
            let recent = now.saturating_sub(self.stopped) < 16 * config.interval;
            self.count = if delta > 1 && recent { delta } else { 1 };
            self.last_count = self.count;
            self.drop_next = Some(control_law(now, self.count, config.interval));
        }
        true
    }

    fn too_long(&mut self, sojourn: Micros, short: bool, now: Micros, config: &Config) -> bool {
        if sojourn < config.target || short {
            self.first_above = None;
            return false;
        }
        match self.first_above {
            None => {
                self.first_above = Some(now.saturating_add(config.interval));
                false
            }
            Some(due) => now >= due,
        }
    }
}

/// Section 5.2: the square root makes the rate of a TCP flow fall linearly.
fn control_law(time: Micros, count: u32, interval: Micros) -> Micros {
    time.saturating_add((interval as f64 / f64::from(count.max(1)).sqrt()) as Micros)
}
