//! The frames of a 1-RTT packet, as far as the datapath takes them: DATAGRAM, ACK, PADDING, PING.
//!
//! (RFC 9000 section 19, RFC 9221 section 4.) A packet with any other frame, or with a broken one,
//! is not ours: it goes up whole, and whoever understands it answers for it.

use std::ops::Range;

use crate::varint;

/// The most ranges of an ACK frame that are looked at; more than any peer keeps.
pub const MAX_RANGES: usize = 256;

/// What a packet holds. Reused, so that nothing is allocated once it is warm.
#[derive(Debug, Default)]
pub struct Frames {
    /// Where the payloads of DATAGRAM frames are.
    pub datagrams: Vec<Range<usize>>,
    /// The last ACK frame, if any, and where it is.
    pub ack: Option<(Ack, Range<usize>)>,
    /// Acknowledged packet numbers, first and last of each range, descending.
    pub ranges: Vec<(u64, u64)>,
    pub ack_eliciting: bool,
}

/// An ACK frame without its ranges.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ack {
    pub largest: u64,
    /// As encoded: the peer's `ack_delay_exponent` is not applied.
    pub delay: u64,
}

impl Frames {
    /// Take `payload` apart; false when the packet is not ours. An ACK that came first is kept.
    pub fn parse(&mut self, payload: &[u8]) -> bool {
        self.datagrams.clear();
        self.ack = None;
        self.ranges.clear();
        self.ack_eliciting = false;
        let mut at = 0;
        while at < payload.len() {
            match payload[at] {
                0x00 => {
                    // Mostly to the end of the packet.
                    at += payload[at..].iter().take_while(|byte| **byte == 0).count();
                }
                0x01 => {
                    self.ack_eliciting = true;
                    at += 1;
                }
                kind @ (0x02 | 0x03) => match self.parse_ack(&payload[at + 1..], kind == 0x03) {
                    Some((ack, length)) => {
                        self.ack = Some((ack, at..at + 1 + length));
                        at += 1 + length;
                    }
                    None => return false,
                },
                0x30 => {
                    self.ack_eliciting = true;
                    self.datagrams.push(at + 1..payload.len());
                    return true;
                }
                0x31 => {
                    let Some((length, size)) = varint::read(&payload[at + 1..]) else {
                        return false;
                    };
                    let start = at + 1 + size;
                    if length > (payload.len() - start) as u64 {
                        return false;
                    }
                    at = start + length as usize;
                    self.ack_eliciting = true;
                    self.datagrams.push(start..at);
                }
                _ => return false,
            }
        }
        !payload.is_empty() // RFC 9000 section 12.4: an empty packet is an error
    }

    /// RFC 9000 section 19.3, from behind the type.
    fn parse_ack(&mut self, bytes: &[u8], ecn: bool) -> Option<(Ack, usize)> {
        let mut at = 0;
        let mut next = || {
            let (value, size) = varint::read(&bytes[at..])?;
            at += size;
            Some(value)
        };
        let (largest, delay, count, first) = (next()?, next()?, next()?, next()?);
        self.ranges.clear();
        let mut low = largest.checked_sub(first)?;
        self.ranges.push((low, largest));
        for _ in 0..count {
            let (gap, length) = (next()?, next()?);
            let high = low.checked_sub(gap + 2)?;
            low = high.checked_sub(length)?;
            if self.ranges.len() < MAX_RANGES {
                self.ranges.push((low, high));
            }
        }
        if ecn {
            next()?;
            next()?;
            next()?;
        }
        Some((Ack { largest, delay }, at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(payload: &[u8]) -> (bool, Frames) {
        let mut frames = Frames::default();
        let ours = frames.parse(payload);
        (ours, frames)
    }

    #[test]
    fn datagrams_with_and_without_length() {
        let (ours, frames) = parse(b"\x31\x03abc\x31\x00\x30xyz");
        assert!(ours && frames.ack_eliciting);
        assert_eq!(frames.datagrams, [2..5, 7..7, 8..11]);
    }

    #[test]
    fn an_ack_with_ranges_before_a_datagram() {
        // Largest 1000, delay 5, then 1000..=990, and below a gap of 3 (989..=986): 985..=984.
        let (ours, frames) = parse(b"\x02\x43\xe8\x05\x01\x0a\x03\x01\x31\x01d");
        assert!(ours);
        let (ack, place) = frames.ack.unwrap();
        assert_eq!((ack.largest, ack.delay, place), (1000, 5, 0..8));
        assert_eq!(frames.ranges, [(990, 1000), (984, 985)]);
        assert_eq!(frames.datagrams, vec![10..11; 1]);
    }

    #[test]
    fn acks_and_padding_ask_for_no_answer() {
        let (ours, frames) = parse(b"\x03\x05\x00\x00\x05\x01\x02\x03\x00\x00\x00");
        assert!(ours && !frames.ack_eliciting);
        assert_eq!(frames.ranges, [(0, 5)]);
        assert!(parse(b"\x01\x00").1.ack_eliciting, "a PING does");
    }

    #[test]
    fn anything_else_goes_up() {
        for payload in [
            &b""[..],
            b"\x04",                 // RESET_STREAM
            b"\x0a\x00\x01x",        // STREAM
            b"\x31\x01d\x1e",        // HANDSHAKE_DONE behind a datagram
            b"\x31\x05abc",          // longer than the packet
            b"\x31",                 // cut off
            b"\x02\x05\x00\x00\x06", // an ACK of negative packet numbers
            b"\x02\x05\x00\x01\x01\x09\x00",
            b"\x02\x05\x00",
            b"\x03\x05\x00\x00\x05\x01\x02", // ECN counts cut off
            b"\x40\x30",                     // a frame type in two bytes
        ] {
            assert!(!parse(payload).0, "{payload:?}");
        }
    }

    #[test]
    fn an_ack_in_front_of_what_goes_up_is_known() {
        let (ours, frames) = parse(b"\x02\x05\x00\x00\x05\x1e");
        assert!(!ours);
        assert_eq!(frames.ack.unwrap().0.largest, 5);
    }

    proptest! {
        #[test]
        fn nothing_reaches_outside(payload in proptest::collection::vec(any::<u8>(), 0..100)) {
            let (ours, frames) = parse(&payload);
            if ours {
                for range in &frames.datagrams {
                    prop_assert!(range.start <= range.end && range.end <= payload.len());
                }
            }
            for pair in frames.ranges.windows(2) {
                prop_assert!(pair[0].0 > pair[1].1 + 1);
            }
            for (low, high) in &frames.ranges {
                prop_assert!(low <= high);
            }
        }
    }
}
