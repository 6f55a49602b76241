//! 1-RTT packets as bytes: protection (RFC 9001 section 5) and the three frames that travel here.
//!
//! Pure functions over slices. It knows DATAGRAM (RFC 9221), ACK and PADDING (RFC 9000 section 19);
//! a packet with any other frame is not its business, and [`frames`] says so before anything of the
//! packet was acted upon.

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey, quic,
};

use crate::ecn::Counts;

/// Bytes of an AEAD tag (RFC 9001 section 5.3).
pub const TAG: usize = 16;
/// Bytes of a header protection sample (RFC 9001 section 5.4.2).
const SAMPLE: usize = 16;
/// Bytes from the start of the packet number to the sample (RFC 9001 section 5.4.2).
const SAMPLE_AT: usize = 4;
/// Bytes of the packet numbers that we send.
pub const NUMBER: usize = 2;
/// The longest connection ID in bytes (RFC 9000 section 17.2).
pub const MAX_CONNECTION_ID: usize = 20;
/// Bytes of the longest header of a 1-RTT packet.
const MAX_HEADER: usize = 1 + MAX_CONNECTION_ID + 4;

/// More than this many packets may not be unacknowledged: their numbers are sent in [`NUMBER`] bytes
/// (RFC 9000 section 17.1).
pub const MAX_UNACKNOWLEDGED: u64 = 30_000;

const FIXED_BIT: u8 = 0x40;
const LONG_HEADER: u8 = 0x80;
const KEY_PHASE: u8 = 0x04;
const RESERVED: u8 = 0x18;

const PADDING: u8 = 0x00;
const ACK: u8 = 0x02;
const ACK_ECN: u8 = 0x03;
const DATAGRAM: u8 = 0x30;
const DATAGRAM_WITH_LENGTH: u8 = 0x31;

/// The cipher suites of TLS 1.3 that QUIC uses, by their IANA numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// `TLS_AES_128_GCM_SHA256`
    Aes128 = 0x1301,
    /// `TLS_AES_256_GCM_SHA384`
    Aes256 = 0x1302,
    /// `TLS_CHACHA20_POLY1305_SHA256`
    ChaCha20 = 0x1303,
}

impl Suite {
    /// The suite of this IANA number.
    pub fn from_number(number: u16) -> Option<Self> {
        [Self::Aes128, Self::Aes256, Self::ChaCha20]
            .into_iter()
            .find(|suite| *suite as u16 == number)
    }
}

/// What protects packets of one direction and one key phase.
pub struct Keys {
    aead: LessSafeKey,
    iv: [u8; 12],
    header: quic::HeaderProtectionKey,
}

impl Keys {
    /// Keys from the bytes that the TLS secret expands to; `None` when lengths do not fit the suite.
    pub fn new(suite: Suite, key: &[u8], iv: &[u8], header: &[u8]) -> Option<Self> {
        let (algorithm, protection) = match suite {
            Suite::Aes128 => (&AES_128_GCM, &quic::AES_128),
            Suite::Aes256 => (&AES_256_GCM, &quic::AES_256),
            Suite::ChaCha20 => (&CHACHA20_POLY1305, &quic::CHACHA20),
        };
        Some(Self {
            aead: LessSafeKey::new(UnboundKey::new(algorithm, key).ok()?),
            iv: iv.try_into().ok()?,
            header: quic::HeaderProtectionKey::new(protection, header).ok()?,
        })
    }

    fn nonce(&self, number: u64) -> Nonce {
        let mut nonce = self.iv;
        for (byte, of_number) in nonce[4..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= of_number;
        }
        Nonce::assume_unique_for_key(nonce)
    }

    fn mask(&self, sample: &[u8]) -> Option<[u8; 5]> {
        self.header.new_mask(sample).ok()
    }
}

/// Bytes before the frames of a packet of ours.
pub fn header_size(connection_id: &[u8]) -> usize {
    1 + connection_id.len() + NUMBER
}

/// Protect a packet in place: `packet` is a header's room, then its frames, then the tag's room.
///
/// The frames must fill at least four bytes less the packet number (RFC 9001 section 5.4.2); see
/// [`MIN_FRAMES`]. Returns whether the AEAD did its part, which it does unless lengths are absurd.
pub fn seal(
    keys: &Keys,
    phase: bool,
    connection_id: &[u8],
    number: u64,
    packet: &mut [u8],
) -> bool {
    let header_size = header_size(connection_id);
    if packet.len() < header_size + MIN_FRAMES + TAG {
        return false;
    }
    let number_at = header_size - NUMBER;
    packet[0] = FIXED_BIT | if phase { KEY_PHASE } else { 0 } | (NUMBER as u8 - 1);
    packet[1..number_at].copy_from_slice(connection_id);
    packet[number_at..header_size].copy_from_slice(&(number as u16).to_be_bytes());
    let (header, rest) = packet.split_at_mut(header_size);
    let (frames, tag_room) = rest.split_at_mut(rest.len() - TAG);
    let sealed =
        keys.aead
            .seal_in_place_separate_tag(keys.nonce(number), Aad::from(&*header), frames);
    let Ok(tag) = sealed else { return false };
    tag_room.copy_from_slice(tag.as_ref());
    let sample_at = number_at + SAMPLE_AT;
    let Some(mask) = keys.mask(&packet[sample_at..sample_at + SAMPLE]) else {
        return false;
    };
    packet[0] ^= mask[0] & 0x1F;
    packet[number_at] ^= mask[1];
    packet[number_at + 1] ^= mask[2];
    true
}

/// Fewest bytes of frames in a packet, so that there is a sample (RFC 9001 section 5.4.2).
pub const MIN_FRAMES: usize = SAMPLE_AT - NUMBER;

/// A 1-RTT packet whose header protection is off.
pub struct Header {
    bytes: [u8; MAX_HEADER],
    size: usize,
    /// The full packet number.
    pub number: u64,
    /// The key phase bit.
    pub phase: bool,
}

/// Whether this may be a 1-RTT packet at all, and long enough to be looked into.
pub fn is_short(packet: &[u8], connection_id_size: usize) -> bool {
    packet.len() >= 1 + connection_id_size + SAMPLE_AT + SAMPLE
        && packet[0] & (LONG_HEADER | FIXED_BIT) == FIXED_BIT
}

/// Take off header protection, without touching `packet`, which [`is_short`].
///
/// `expected` is the packet number after the largest that was received.
pub fn unprotect(keys: &Keys, packet: &[u8], id_size: usize, expected: u64) -> Option<Header> {
    let number_at = 1 + id_size;
    let sample_at = number_at + SAMPLE_AT;
    let mask = keys.mask(packet.get(sample_at..sample_at + SAMPLE)?)?;
    let first = packet[0] ^ (mask[0] & 0x1F);
    let length = usize::from(first & 0x03) + 1;
    let size = number_at + length;
    let mut bytes = [0; MAX_HEADER];
    bytes[..size].copy_from_slice(&packet[..size]);
    bytes[0] = first;
    let mut truncated = 0u64;
    for (byte, mask) in bytes[number_at..size].iter_mut().zip(&mask[1..]) {
        *byte ^= mask;
        truncated = truncated << 8 | u64::from(*byte);
    }
    Some(Header {
        bytes,
        size,
        number: decode_number(truncated, length as u32 * 8, expected),
        phase: first & KEY_PHASE != 0,
    })
}

impl Header {
    /// Whether the reserved bits are zero, as they must be (RFC 9000 section 17.3.1).
    pub fn is_valid(&self) -> bool {
        self.bytes[0] & RESERVED == 0
    }
}

/// Open a packet into `out`; the number of bytes of frames, or `None` for a forged one.
pub fn open(keys: &Keys, header: &Header, packet: &[u8], out: &mut [u8]) -> Option<usize> {
    let frames = packet.len().checked_sub(header.size + TAG)?;
    let (body, tag) = packet[header.size..].split_at(frames);
    keys.aead
        .open_separate_gather(
            keys.nonce(header.number),
            Aad::from(&header.bytes[..header.size]),
            body,
            tag,
            out.get_mut(..frames)?,
        )
        .ok()?;
    Some(frames)
}

/// RFC 9000 appendix A.3.
fn decode_number(truncated: u64, bits: u32, expected: u64) -> u64 {
    let window = 1u64 << bits;
    let half = window / 2;
    let candidate = (expected & !(window - 1)) | truncated;
    if candidate + half <= expected && candidate < (1 << 62) - window {
        candidate + window
    } else if candidate > expected + half && candidate >= window {
        candidate - window
    } else {
        candidate
    }
}

/// One frame of a packet, by where it stands in the packet's plaintext.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The payload of a DATAGRAM frame.
    Datagram(std::ops::Range<usize>),
    /// An ACK frame.
    Ack(AckFrame<'a>),
}

/// An ACK frame (RFC 9000 section 19.3); [`AckFrame::ranges`] reads it again, without an allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AckFrame<'a> {
    /// The largest packet number acknowledged.
    pub largest: u64,
    /// As it stands in the frame, to be shifted by the peer's `ack_delay_exponent`.
    pub delay: u64,
    /// How many packets arrived with which mark (RFC 9000 section 19.3.2).
    pub counts: Option<Counts>,
    first: u64,
    count: u64,
    rest: &'a [u8],
}

impl AckFrame<'_> {
    /// Inclusive ranges, the largest first. The frame was checked when it was parsed.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut reader = Reader(self.rest);
        let mut smallest = self.largest - self.first;
        let mut left = self.count;
        std::iter::once((smallest, self.largest)).chain(std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            left -= 1;
            let largest = smallest.checked_sub(reader.varint()? + 2)?;
            smallest = largest.checked_sub(reader.varint()?)?;
            Some((smallest, largest))
        }))
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    /// RFC 9000 section 16.
    #[inline]
    fn varint(&mut self) -> Option<u64> {
        let first = *self.0.first()?;
        let size = 1usize << (first >> 6);
        let bytes = self.0.get(..size)?;
        let mut value = u64::from(first & 0x3F);
        for byte in &bytes[1..] {
            value = value << 8 | u64::from(*byte);
        }
        self.0 = &self.0[size..];
        Some(value)
    }
}

/// Go through the frames of a packet, with `each`.
///
/// False when there is any frame but DATAGRAM, ACK and PADDING, or a malformed one, or none at all:
/// then `each` must not have had an effect, so call this once to look and once to act.
pub fn frames<'a>(plain: &'a [u8], mut each: impl FnMut(Frame<'a>)) -> bool {
    let mut reader = Reader(plain);
    if plain.is_empty() {
        return false;
    }
    while let Some((&kind, rest)) = reader.0.split_first() {
        reader.0 = rest;
        match kind {
            PADDING => {}
            DATAGRAM => {
                each(Frame::Datagram(plain.len() - rest.len()..plain.len()));
                return true;
            }
            DATAGRAM_WITH_LENGTH => {
                let Some(length) = reader.varint() else {
                    return false;
                };
                let start = plain.len() - reader.0.len();
                let Some(rest) = usize::try_from(length).ok().and_then(|n| reader.0.get(n..))
                else {
                    return false;
                };
                reader.0 = rest;
                each(Frame::Datagram(start..plain.len() - rest.len()));
            }
            ACK | ACK_ECN => {
                let Some(frame) = read_ack(&mut reader, kind == ACK_ECN) else {
                    return false;
                };
                each(Frame::Ack(frame));
            }
            _ => return false,
        }
    }
    true
}

fn read_ack<'a>(reader: &mut Reader<'a>, with_counts: bool) -> Option<AckFrame<'a>> {
    let largest = reader.varint()?;
    let delay = reader.varint()?;
    let count = reader.varint()?;
    let first = reader.varint()?;
    let rest = reader.0;
    let mut smallest = largest.checked_sub(first)?;
    for _ in 0..count {
        let largest = smallest.checked_sub(reader.varint()?.checked_add(2)?)?;
        smallest = largest.checked_sub(reader.varint()?)?;
    }
    let rest = &rest[..rest.len() - reader.0.len()];
    let counts = if with_counts {
        Some(Counts {
            ect0: reader.varint()?,
            ect1: reader.varint()?,
            ce: reader.varint()?,
        })
    } else {
        None
    };
    Some(AckFrame {
        largest,
        delay,
        counts,
        first,
        count,
        rest,
    })
}

/// Bytes that a number takes (RFC 9000 section 16).
pub fn varint_size(value: u64) -> usize {
    match value {
        0..0x40 => 1,
        0x40..0x4000 => 2,
        0x4000..0x4000_0000 => 4,
        _ => 8,
    }
}

/// Write a number at the start of `out`, which must have room; the bytes that it took.
pub fn write_varint(value: u64, out: &mut [u8]) -> usize {
    let size = varint_size(value);
    let bytes = value.to_be_bytes();
    out[..size].copy_from_slice(&bytes[8 - size..]);
    out[0] |= (size.trailing_zeros() as u8) << 6;
    size
}

/// Write an ACK frame of as many ranges as fit `out`; `ranges` are inclusive, the largest first.
///
/// `delay` is already shifted; `counts` are in it if there is anything to report (RFC 9000 section
/// 13.4.1). The bytes written, 0 when not even one range fits.
pub fn write_ack(ranges: &[(u64, u64)], delay: u64, counts: Counts, out: &mut [u8]) -> usize {
    let Some(&(smallest, largest)) = ranges.first() else {
        return 0;
    };
    let behind = if counts.any() {
        varint_size(counts.ect0) + varint_size(counts.ect1) + varint_size(counts.ce)
    } else {
        0
    };
    let fixed = 1
        + behind
        + varint_size(largest)
        + varint_size(delay)
        + 2 // the count of further ranges
        + varint_size(largest - smallest);
    if fixed > out.len() {
        return 0;
    }
    let mut size = fixed;
    let mut count = 0u16;
    let mut before = smallest;
    for &(smallest, largest) in &ranges[1..] {
        let more = varint_size(before - largest - 2) + varint_size(largest - smallest);
        if size + more > out.len() {
            break;
        }
        size += more;
        count += 1;
        before = smallest;
    }
    out[0] = if counts.any() { ACK_ECN } else { ACK };
    let mut at = 1;
    at += write_varint(largest, &mut out[at..]);
    at += write_varint(delay, &mut out[at..]);
    if count < 64 {
        out[at] = count as u8;
        at += 1;
    } else {
        out[at..at + 2].copy_from_slice(&(count | 0x4000).to_be_bytes());
        at += 2;
    }
    at += write_varint(largest - smallest, &mut out[at..]);
    let mut before = smallest;
    for &(smallest, largest) in &ranges[1..=usize::from(count)] {
        at += write_varint(before - largest - 2, &mut out[at..]);
        at += write_varint(largest - smallest, &mut out[at..]);
        before = smallest;
    }
    if counts.any() {
        for count in [counts.ect0, counts.ect1, counts.ce] {
            at += write_varint(count, &mut out[at..]);
        }
    }
    at
}

/// Write what comes before the payload of a DATAGRAM frame; the bytes that it took.
///
/// With a length when something may follow (`length`), else up to the end of the packet.
pub fn write_datagram_header(length: Option<usize>, out: &mut [u8]) -> usize {
    match length {
        None => {
            out[0] = DATAGRAM;
            1
        }
        Some(length) => {
            out[0] = DATAGRAM_WITH_LENGTH;
            1 + write_varint(length as u64, &mut out[1..])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys(suite: Suite) -> Keys {
        let size = if suite == Suite::Aes128 { 16 } else { 32 };
        Keys::new(suite, &[7; 32][..size], &[9; 12], &[3; 32][..size]).unwrap()
    }

    fn packet(keys: &Keys, phase: bool, number: u64, frames: &[u8]) -> Vec<u8> {
        let id = [1, 2, 3, 4, 5, 6, 7, 8];
        let mut packet = vec![0; header_size(&id)];
        packet.extend_from_slice(frames);
        packet.extend_from_slice(&[0; TAG]);
        assert!(seal(keys, phase, &id, number, &mut packet));
        packet
    }

    /// RFC 9001 appendix A.5: a short header packet with `ChaCha20-Poly1305`.
    #[test]
    fn the_packet_of_the_rfc_is_opened() {
        let hex = |text: &str| -> Vec<u8> {
            (0..text.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
                .collect()
        };
        let keys = Keys::new(
            Suite::ChaCha20,
            &hex("c6d98ff3441c3fe1b2182094f69caa2ed4b716b65488960a7a984979fb23e1c8"),
            &hex("e0459b3474bdd0e44a41c144"),
            &hex("25a282b9e82f06f21f488917a4fc8f1b73573685608597d0efcb076b0ab7a7a4"),
        )
        .unwrap();
        let packet = hex("4cfe4189655e5cd55c41f69080575d7999c25a5bfb");
        assert!(is_short(&packet, 0));
        let header = unprotect(&keys, &packet, 0, 654_360_564).unwrap();
        assert_eq!(header.number, 654_360_564);
        let mut out = [0; 64];
        let size = open(&keys, &header, &packet, &mut out).unwrap();
        assert_eq!(&out[..size], &[1]); // PING
        assert!(!frames(&out[..size], |_| {}));
    }

    #[test]
    fn what_is_sealed_is_opened_by_every_suite_and_only_whole() {
        for suite in [Suite::Aes128, Suite::Aes256, Suite::ChaCha20] {
            let keys = keys(suite);
            let sealed = packet(&keys, true, 70_000, b"\x30hello");
            let header = unprotect(&keys, &sealed, 8, 69_990).unwrap();
            assert!(header.is_valid());
            assert!(header.phase);
            assert_eq!(header.number, 70_000);
            let mut out = [0; 64];
            let size = open(&keys, &header, &sealed, &mut out).unwrap();
            assert_eq!(&out[..size], b"\x30hello");
            for at in 0..sealed.len() {
                let mut broken = sealed.clone();
                broken[at] ^= 1;
                let forged = unprotect(&keys, &broken, 8, 69_990)
                    .and_then(|header| open(&keys, &header, &broken, &mut out));
                assert!(forged.is_none(), "byte {at}");
            }
        }
    }

    #[test]
    fn packet_numbers_are_decoded_around_the_expected_one() {
        // RFC 9000 appendix A.3.
        assert_eq!(decode_number(0x9b32, 16, 0xa82f_30eb), 0xa82f_9b32);
        assert_eq!(decode_number(0, 16, 0xFFFF), 0x1_0000);
        assert_eq!(decode_number(0xFFFF, 16, 0x1_0000), 0xFFFF);
        assert_eq!(decode_number(0xFF, 8, 0), 0xFF);
    }

    #[test]
    fn other_frames_and_broken_ones_are_not_ours() {
        for plain in [
            &b""[..],
            b"\x01",                                 // PING
            b"\x31\x05abc",                          // shorter than it says
            b"\x31",                                 // no length
            b"\x02\x05\x00\x00\x06",                 // below packet number 0
            b"\x02\x05\x00\x01\x00\x04\x00",         // a gap below 0
            b"\x03\x05\x00\x00\x00\x01\x00",         // one ECN count too few
            b"\x03\x05\x00\x00\x00\x01\x00\xC0\x00", // and one cut off
            b"\x03\x05\x00\x01\x00\x01\x00\x00",     // no ranges but counts
            b"\x30\x01\x02",
        ] {
            let mut seen = 0;
            let ours = frames(plain, |_| seen += 1);
            assert_eq!(ours, plain.first() == Some(&0x30), "{plain:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_crash_the_parser(plain in proptest::collection::vec(any::<u8>(), 0..200)) {
            frames(&plain, |frame| {
                if let Frame::Ack(ack) = frame {
                    let mut before = u64::MAX;
                    for (smallest, largest) in ack.ranges() {
                        assert!(smallest <= largest && largest < before);
                        before = smallest;
                    }
                }
            });
        }

        #[test]
        fn acks_are_read_as_they_were_written(
            mut bounds in proptest::collection::btree_set(0u64..1 << 40, 2..80),
            delay in 0u64..1 << 30,
            counts in (0u64..1 << 62, 0u64..1 << 62, 0u64..1 << 62),
            some in any::<bool>(),
            room in 20usize..400,
        ) {
            if bounds.len() % 2 == 1 { bounds.pop_first(); }
            let bounds: Vec<u64> = bounds.into_iter().rev().collect();
            let mut ranges: Vec<(u64, u64)> = vec![];
            for pair in bounds.chunks(2) {
                // Ranges touch nowhere: there is a number between two of them.
                if ranges.last().is_none_or(|(smallest, _)| smallest - pair[0] >= 2) {
                    ranges.push((pair[1], pair[0]));
                }
            }
            let mut out = vec![0; room];
            let counts = Counts { ect0: counts.0, ect1: counts.1, ce: counts.2 };
            let counts = if some { counts } else { Counts::default() };
            let size = write_ack(&ranges, delay, counts, &mut out);
            if size > 0 {
                let mut read = None;
                let whole = frames(&out[..size], |frame| read = Some(frame));
                prop_assert!(whole);
                let Some(Frame::Ack(ack)) = read else { panic!() };
                prop_assert_eq!(ack.delay, delay);
                prop_assert_eq!(ack.counts, counts.any().then_some(counts));
                let read: Vec<(u64, u64)> = ack.ranges().collect();
                prop_assert_eq!(&read[..], &ranges[..read.len()]);
            }
        }

        #[test]
        fn no_packet_crashes_the_opener(
            bytes in proptest::collection::vec(any::<u8>(), 0..100), expected in 0u64..1 << 62,
        ) {
            let keys = keys(Suite::Aes128);
            if is_short(&bytes, 8)
                && let Some(header) = unprotect(&keys, &bytes, 8, expected) {
                    prop_assert!(open(&keys, &header, &bytes, &mut [0; 128]).is_none());
                }
        }
    }
}
