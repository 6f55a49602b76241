//! Variable-length integers (RFC 9000 section 16).

/// Read one at the front of `bytes`: its value and its length.
#[inline]
pub fn read(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let length = 1 << (first >> 6);
    let mut value = u64::from(first & 0x3F);
    for byte in bytes.get(1..length)? {
        value = value << 8 | u64::from(*byte);
    }
    Some((value, length))
}

/// The length in bytes of `value`, below 2^62.
#[inline]
pub fn size(value: u64) -> usize {
    match value {
        0..=0x3F => 1,
        0x40..=0x3FFF => 2,
        0x4000..=0x3FFF_FFFF => 4,
        _ => 8,
    }
}

/// Write `value` to the front of `out`, which has room for it; returns the length.
#[inline]
pub fn write(value: u64, out: &mut [u8]) -> usize {
    let length = size(value);
    let marked = value | (length.trailing_zeros() as u64) << (length * 8 - 2);
    out[..length].copy_from_slice(&marked.to_be_bytes()[8 - length..]);
    length
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_examples_of_rfc_9000() {
        for (bytes, value) in [
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c][..], 151_288_809_941_952_652),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
        ] {
            assert_eq!(read(bytes), Some((value, bytes.len())));
            let mut out = [0; 8];
            assert_eq!(write(value, &mut out), bytes.len());
            assert_eq!(&out[..bytes.len()], bytes);
        }
        assert_eq!(read(&[0x40, 0x25]), Some((37, 2)), "not the shortest form, but valid");
    }

    #[test]
    fn what_is_cut_off_is_no_integer() {
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[0xc2, 0x19, 0x7c]), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(value in 0u64..1 << 62) {
            let mut out = [0; 8];
            let length = write(value, &mut out);
            prop_assert_eq!(read(&out), Some((value, length)));
        }
    }
}
