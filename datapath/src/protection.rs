//! Packet protection of 1-RTT packets (RFC 9001 sections 5 and 6).
//!
//! Keys come from whoever shook hands, always those of the next key phase with them, so that a
//! peer's key update costs no packet. It derives none.

use aws_lc_rs::aead::quic::{self, HeaderProtectionKey};
use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};

pub const TAG: usize = 16;
/// Bytes of the packet numbers that we send, as aioquic does.
pub const NUMBER: usize = 2;
/// From the start of the packet number to the sample (RFC 9001 section 5.4.2).
const SAMPLE_AT: usize = 4;
const SAMPLE: usize = 16;
const MAX_CONNECTION_ID: usize = 20;
const MAX_HEADER: usize = 1 + MAX_CONNECTION_ID + 4;
/// Packets that AES-GCM may seal with one key (RFC 9001 section 6.6).
const CONFIDENTIALITY_LIMIT: u64 = 1 << 23;

const FIXED_BIT: u8 = 0x40;
const RESERVED_BITS: u8 = 0x18;
const KEY_PHASE: u8 = 0x04;

/// TLS 1.3 cipher suites (RFC 8446 appendix B.4).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Suite {
    Aes128Gcm,
    Aes256Gcm,
    ChaCha20Poly1305,
}

impl Suite {
    /// From its number in TLS; None for one that QUIC does not use here.
    pub fn from_number(number: u16) -> Option<Self> {
        match number {
            0x1301 => Some(Self::Aes128Gcm),
            0x1302 => Some(Self::Aes256Gcm),
            0x1303 => Some(Self::ChaCha20Poly1305),
            _ => None,
        }
    }

    fn aead(self) -> &'static aead::Algorithm {
        match self {
            Self::Aes128Gcm => &aead::AES_128_GCM,
            Self::Aes256Gcm => &aead::AES_256_GCM,
            Self::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        }
    }

    fn header(self) -> &'static quic::Algorithm {
        match self {
            Self::Aes128Gcm => &quic::AES_128,
            Self::Aes256Gcm => &quic::AES_256,
            Self::ChaCha20Poly1305 => &quic::CHACHA20,
        }
    }
}

/// The key and IV of one direction in one key phase.
pub struct PacketKey {
    aead: LessSafeKey,
    iv: [u8; 12],
    limited: bool,
}

impl PacketKey {
    /// None when a length is not that of the suite.
    pub fn new(suite: Suite, key: &[u8], iv: &[u8]) -> Option<Self> {
        Some(Self {
            aead: LessSafeKey::new(UnboundKey::new(suite.aead(), key).ok()?),
            iv: iv.try_into().ok()?,
            limited: suite != Suite::ChaCha20Poly1305,
        })
    }

    #[inline]
    fn nonce(&self, number: u64) -> Nonce {
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= number;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

/// The header protection key of one direction; it stays for the life of a connection.
pub fn header_key(suite: Suite, key: &[u8]) -> Option<HeaderProtectionKey> {
    HeaderProtectionKey::new(suite.header(), key).ok()
}

/// Both directions of one key phase, to be installed together (RFC 9001 section 6).
pub struct Phase {
    pub send: PacketKey,
    pub receive: PacketKey,
}

/// All keys of a connection.
pub struct Keys {
    send_header: HeaderProtectionKey,
    receive_header: HeaderProtectionKey,
    current: Phase,
    next: Option<Phase>,
    /// To open what was under way at the last update, until it is forgotten at this time.
    previous: Option<(PacketKey, u64)>,
    /// How many updates there were; the lowest bit is the key phase.
    generation: u64,
    /// The lowest number that arrived in this phase; none yet after an update of ours.
    first_received: u64,
    sealed: u64,
}

/// A packet that was opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Opened {
    pub number: u64,
    /// Bytes of plain text.
    pub length: usize,
    /// The peer has updated its keys with this packet, and so have we.
    pub updated: bool,
    /// The reserved bits are set: the peer broke the protocol (RFC 9000 section 17.3.1).
    pub reserved: bool,
}

impl Keys {
    /// Keys of `generation`, with which nothing has been received yet in our books.
    pub fn new(
        headers: (HeaderProtectionKey, HeaderProtectionKey),
        current: Phase,
        next: Phase,
        generation: u64,
    ) -> Self {
        let (send_header, receive_header) = headers;
        Self {
            send_header,
            receive_header,
            current,
            next: Some(next),
            previous: None,
            generation,
            first_received: 0,
            sealed: 0,
        }
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Packets sealed with the present key.
    pub fn sealed(&self) -> u64 {
        self.sealed
    }

    /// Take news from whoever decides about updates; news of an earlier generation are late.
    pub fn install(&mut self, current: Phase, next: Phase, generation: u64) {
        if generation < self.generation {
            return;
        }
        if generation > self.generation {
            // An update of ours. The peer's packets keep coming in the old phase until it follows.
            let old = std::mem::replace(&mut self.current, current);
            self.previous = Some((old.receive, u64::MAX));
            self.generation = generation;
            self.first_received = u64::MAX;
            self.sealed = 0;
        }
        self.next = Some(next);
    }

    /// Drop the previous key when its time has come.
    pub fn forget_previous(&mut self, now: u64) {
        if self.previous.as_ref().is_some_and(|(_, until)| now >= *until) {
            self.previous = None;
        }
    }

    /// Open the 1-RTT packet `packet`, whose connection ID has `id_length` bytes, into `out`.
    ///
    /// `expected` is the next packet number, `keep` how many microseconds after `now` the keys
    /// before an update are kept. None for what is too short or was not sealed with our keys.
    pub fn open(
        &mut self,
        packet: &[u8],
        id_length: usize,
        expected: u64,
        now: u64,
        keep: u64,
        out: &mut [u8],
    ) -> Option<Opened> {
        let at = 1 + id_length;
        let sample = packet.get(at + SAMPLE_AT..at + SAMPLE_AT + SAMPLE)?;
        let mask = self.receive_header.new_mask(sample).ok()?;
        let first = packet[0] ^ mask[0] & 0x1F;
        let size = usize::from(first & 0x03) + 1;
        let mut header = [0; MAX_HEADER];
        let header = &mut header[..at + size];
        header.copy_from_slice(&packet[..at + size]);
        header[0] = first;
        let mut truncated = 0;
        for (byte, mask) in header[at..].iter_mut().zip(&mask[1..]) {
            *byte ^= mask;
            truncated = truncated << 8 | u64::from(*byte);
        }
        let number = decode_number(truncated, size, expected);
        let same_phase = (first & KEY_PHASE != 0) == (self.generation & 1 == 1);
        let old = !same_phase && number < self.first_received && self.previous.is_some();
        let key = match (same_phase, old) {
            (true, _) => &self.current.receive,
            (false, true) => &self.previous.as_ref()?.0,
            (false, false) => &self.next.as_ref()?.receive,
        };
        let length = packet.len() - header.len() - TAG;
        let (body, tag) = packet[header.len()..].split_at(length);
        key.aead
            .open_separate_gather(
                key.nonce(number),
                Aad::from(&*header),
                body,
                tag,
                out.get_mut(..length)?,
            )
            .ok()?;
        let updated = !same_phase && !old;
        if updated {
            self.update(now + keep);
        }
        if same_phase || updated {
            if let Some((_, until)) = &mut self.previous {
                *until = (*until).min(now + keep);
            }
            self.first_received = self.first_received.min(number);
        }
        Some(Opened { number, length, updated, reserved: first & RESERVED_BITS != 0 })
    }

    /// The peer updated: follow in both directions (RFC 9001 section 6.2).
    fn update(&mut self, forget_at: u64) {
        let next = self.next.take().expect("the packet was opened with it");
        let old = std::mem::replace(&mut self.current, next);
        self.previous = Some((old.receive, forget_at));
        self.generation += 1;
        self.first_received = u64::MAX;
        self.sealed = 0;
    }

    /// Seal a packet in place: `packet` is header, payload and room for the tag.
    ///
    /// The header is written here but for the connection ID, of `id_length` bytes. False when the
    /// key is used up; somebody should have updated it long ago.
    pub fn seal(&mut self, packet: &mut [u8], id_length: usize, number: u64, size: usize) -> bool {
        let key = &self.current.send;
        if key.limited && self.sealed >= CONFIDENTIALITY_LIMIT {
            return false;
        }
        self.sealed += 1;
        let at = 1 + id_length;
        let phase = if self.generation & 1 == 1 { KEY_PHASE } else { 0 };
        packet[0] = FIXED_BIT | phase | (size - 1) as u8;
        packet[at..at + size].copy_from_slice(&number.to_be_bytes()[8 - size..]);
        let (header, rest) = packet.split_at_mut(at + size);
        let (body, tag) = rest.split_at_mut(rest.len() - TAG);
        let Ok(made) =
            key.aead.seal_in_place_separate_tag(key.nonce(number), Aad::from(&*header), body)
        else {
            return false;
        };
        tag.copy_from_slice(made.as_ref());
        let sample = &packet[at + SAMPLE_AT..at + SAMPLE_AT + SAMPLE];
        let Ok(mask) = self.send_header.new_mask(sample) else {
            return false;
        };
        packet[0] ^= mask[0] & 0x1F;
        for (byte, mask) in packet[at..at + size].iter_mut().zip(&mask[1..]) {
            *byte ^= mask;
        }
        true
    }
}

/// RFC 9000 appendix A.3.
#[inline]
fn decode_number(truncated: u64, size: usize, expected: u64) -> u64 {
    let window = 1u64 << (size * 8);
    let candidate = expected & !(window - 1) | truncated;
    if candidate + window / 2 <= expected && candidate < (1 << 62) - window {
        candidate + window
    } else if candidate > expected + window / 2 && candidate >= window {
        candidate - window
    } else {
        candidate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(suite: Suite, seed: u8) -> Phase {
        let size = if suite == Suite::Aes128Gcm { 16 } else { 32 };
        let key =
            |salt: u8| PacketKey::new(suite, &vec![seed ^ salt; size], &[seed ^ salt; 12]).unwrap();
        Phase { send: key(0), receive: key(0) }
    }

    fn keys(suite: Suite) -> Keys {
        let size = if suite == Suite::Aes128Gcm { 16 } else { 32 };
        let header = || header_key(suite, &vec![9; size]).unwrap();
        Keys::new((header(), header()), phase(suite, 0), phase(suite, 1), 0)
    }

    fn sealed(keys: &mut Keys, number: u64, text: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 1 + 8 + NUMBER];
        packet[1..9].copy_from_slice(b"abcdefgh");
        packet.extend(text);
        packet.extend([0; TAG]);
        assert!(keys.seal(&mut packet, 8, number, NUMBER));
        packet
    }

    fn open(keys: &mut Keys, packet: &[u8], expected: u64, now: u64) -> Option<(Opened, Vec<u8>)> {
        let mut out = vec![0; packet.len()];
        let opened = keys.open(packet, 8, expected, now, 100, &mut out)?;
        out.truncate(opened.length);
        Some((opened, out))
    }

    const SUITES: [Suite; 3] = [Suite::Aes128Gcm, Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

    #[test]
    fn what_is_sealed_is_opened_and_nothing_else_is() {
        for suite in SUITES {
            let (mut a, mut b) = (keys(suite), keys(suite));
            let packet = sealed(&mut a, 70_000, b"hello world");
            let (opened, text) = open(&mut b, &packet, 69_990, 0).unwrap();
            assert_eq!((opened.number, opened.updated, opened.reserved), (70_000, false, false));
            assert_eq!(text, b"hello world");
            for index in 0..packet.len() {
                let mut broken = packet.clone();
                broken[index] ^= 0x20;
                assert!(open(&mut b, &broken, 69_990, 0).is_none(), "byte {index}");
                assert!(open(&mut b, &packet[..index], 69_990, 0).is_none());
            }
            assert_eq!(b.generation(), 0);
        }
    }

    #[test]
    fn the_chacha20_example_of_rfc_9001() {
        // Appendix A.5: a packet with nothing but a PING, number 654360564 in three bytes.
        let hex = |text: &str| -> Vec<u8> {
            (0..text.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
                .collect()
        };
        let suite = Suite::ChaCha20Poly1305;
        let key = hex("c6d98ff3441c3fe1b2182094f69caa2ed4b716b65488960a7a984979fb23e1c8");
        let iv = hex("e0459b3474bdd0e44a41c144");
        let header = hex("25a282b9e82f06f21f488917a4fc8f1b73573685608597d0efcb076b0ab7a7a4");
        let header = || header_key(suite, &header).unwrap();
        let pair = || Phase {
            send: PacketKey::new(suite, &key, &iv).unwrap(),
            receive: PacketKey::new(suite, &key, &iv).unwrap(),
        };
        let mut keys = Keys::new((header(), header()), pair(), pair(), 0);
        let expected = hex("4cfe4189655e5cd55c41f69080575d7999c25a5bfb");
        let mut packet = vec![0; 4];
        packet.push(0x01);
        packet.extend([0; TAG]);
        assert!(keys.seal(&mut packet, 0, 654_360_564, 3));
        assert_eq!(packet, expected);
        let mut out = [0; 8];
        let opened = keys.open(&expected, 0, 654_360_560, 0, 0, &mut out).unwrap();
        assert_eq!((opened.number, &out[..opened.length]), (654_360_564, &[1][..]));
    }

    #[test]
    fn a_peers_update_is_followed_without_a_lost_packet() {
        for suite in SUITES {
            let (mut a, mut b) = (keys(suite), keys(suite));
            let late = sealed(&mut a, 9, b"under way before");
            a.install(phase(suite, 1), phase(suite, 2), 1);
            let first = sealed(&mut a, 10, b"first of the new phase");
            let (opened, _) = open(&mut b, &first, 9, 1_000).unwrap();
            assert!(opened.updated);
            assert_eq!(b.generation(), 1);
            let (opened, text) = open(&mut b, &late, 11, 1_050).unwrap();
            assert_eq!((opened.updated, &text[..]), (false, &b"under way before"[..]));
            // What we seal now is in the new phase, which the peer opens with its present keys.
            let answer = sealed(&mut b, 3, b"answer");
            assert!(!open(&mut a, &answer, 3, 1_060).unwrap().0.updated);
            b.forget_previous(1_101);
            assert!(open(&mut b, &late, 11, 1_101).is_none(), "its time is over");
            // The next phase is not known before somebody tells.
            a.install(phase(suite, 2), phase(suite, 3), 2);
            let second = sealed(&mut a, 20, b"next");
            assert!(open(&mut b, &second, 11, 1_200).is_none());
            b.install(phase(suite, 1), phase(suite, 2), 1);
            assert!(open(&mut b, &second, 11, 1_200).unwrap().0.updated);
        }
    }

    #[test]
    fn after_an_update_of_ours_the_old_phase_is_still_opened() {
        let suite = Suite::Aes128Gcm;
        let (mut a, mut b) = (keys(suite), keys(suite));
        a.install(phase(suite, 1), phase(suite, 2), 1);
        for number in 0..3 {
            let old = sealed(&mut b, number, b"not yet updated");
            assert!(!open(&mut a, &old, number, 1_000_000).unwrap().0.updated);
        }
        open(&mut b, &sealed(&mut a, 0, b"new"), 0, 0).unwrap();
        let answer = sealed(&mut b, 3, b"updated");
        assert!(!open(&mut a, &answer, 3, 2_000_000).unwrap().0.updated);
        a.forget_previous(2_000_100);
        assert!(a.previous.is_none());
    }

    #[test]
    fn late_news_change_nothing() {
        let suite = Suite::Aes128Gcm;
        let (mut a, mut b) = (keys(suite), keys(suite));
        a.install(phase(suite, 1), phase(suite, 2), 1);
        open(&mut b, &sealed(&mut a, 0, b"new"), 0, 0).unwrap();
        b.install(phase(suite, 0), phase(suite, 1), 0);
        assert_eq!(b.generation(), 1);
    }

    #[test]
    fn a_key_is_not_used_beyond_its_limit() {
        let mut gcm = keys(Suite::Aes128Gcm);
        gcm.sealed = CONFIDENTIALITY_LIMIT;
        assert!(!gcm.seal(&mut [0; 64], 8, 0, NUMBER));
        let mut chacha = keys(Suite::ChaCha20Poly1305);
        chacha.sealed = CONFIDENTIALITY_LIMIT;
        assert!(chacha.seal(&mut [0; 64], 8, 0, NUMBER));
    }

    #[test]
    fn packet_numbers_are_decoded_as_in_rfc_9000() {
        assert_eq!(decode_number(0x9b32, 2, 0xa82f30eb), 0xa82f9b32);
        assert_eq!(decode_number(0xFFFF, 2, 2), 0xFFFF, "nothing is below zero");
        assert_eq!(decode_number(1, 2, 0xFFFF), 0x1_0001);
        assert_eq!(decode_number(0xFFFE, 2, 0x1_0001), 0xFFFE);
    }
}
