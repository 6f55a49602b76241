//! The Internet checksum (RFC 1071): sums that can be added, completed and compared.
//!
//! A sum here is the folded ones' complement sum of 16-bit big-endian words, not yet complemented.
//! It never looks at what the bytes mean.

/// The ones' complement sum of two sums.
#[inline]
pub fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

/// The sum of `data`, padded with a zero byte if its length is odd.
#[inline]
pub fn sum(data: &[u8]) -> u16 {
    // The sum does not depend on byte order until the end (RFC 1071 section 2 (B)), so words are
    // added as they lie in memory: 32 bits at a time into four 64-bit lanes, which cannot overflow
    // and which the compiler makes vector instructions of.
    let mut lanes = [0u64; 8];
    let mut blocks = data.chunks_exact(32);
    for block in &mut blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<4>().0) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let mut total: u64 = lanes.iter().sum();
    let mut words = blocks.remainder().chunks_exact(2);
    for word in &mut words {
        total += u64::from(u16::from_ne_bytes([word[0], word[1]]));
    }
    if let [last] = words.remainder() {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    u16::from_be(fold(total))
}

/// The checksum field for data whose words, without the field, have this sum.
#[inline]
pub fn finish(sum: u16) -> u16 {
    !sum
}

/// The sum of the pseudo-header of TCP and UDP (RFC 9293 section 3.1, RFC 8200 section 8.1).
///
/// `addresses` are source and destination as they stand in the packet, `length` is that of the
/// upper-layer header and data in bytes.
#[inline]
pub fn pseudo_header(addresses: &[u8], protocol: u8, length: u32) -> u16 {
    let rest = u64::from(protocol) + u64::from(length >> 16) + u64::from(length & 0xFFFF);
    add(sum(addresses), fold(rest))
}

#[inline]
fn fold(mut total: u64) -> u16 {
    while total >> 16 != 0 {
        total = (total & 0xFFFF) + (total >> 16);
    }
    total as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Word by word, as RFC 1071 section 1 says it.
    fn slow(data: &[u8]) -> u16 {
        let mut total = 0u32;
        for pair in data.chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            total = (total & 0xFFFF) + (total >> 16);
        }
        total as u16
    }

    #[test]
    fn the_example_of_rfc_1071() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    }

    #[test]
    fn the_largest_super_packet_does_not_overflow() {
        assert_eq!(sum(&vec![0xFF; 65535]), slow(&vec![0xFF; 65535]));
    }

    proptest! {
        #[test]
        fn as_the_slow_one(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(sum(&data), slow(&data));
        }

        #[test]
        fn sums_can_be_taken_apart(
            data in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..100
        ) {
            let at = (at * 2).min(data.len() & !1);
            let apart = add(sum(&data[..at]), sum(&data[at..]));
            // 0 and 0xFFFF are both zero in ones' complement.
            prop_assert_eq!(apart % 0xFFFF, sum(&data) % 0xFFFF);
        }
    }
}
