//! The Internet checksum against a slow one, and the 10 bytes of the header.

use qvpn_datapath::offload::{VnetHeader, checksum};

use crate::harness::slow_checksum;
use crate::packet::bytes;

#[test]
fn checksum_equals_the_slow_one() {
    let data = bytes(70_000, 9);
    let lengths = (0..700).chain([1399, 1400, 4095, 16_385, 65_535, 65_536, 70_000]);
    for length in lengths {
        for start in [0, 1, 3, 8] {
            let Some(piece) = data.get(start..start + length) else {
                continue;
            };
            let expected = slow_checksum(&[piece]).to_be_bytes();
            assert_eq!(checksum::checksum(checksum::sum(piece)), expected);
            let mut copy = vec![0xee; length + 1];
            let sum = checksum::copy_and_sum(piece, &mut copy[..length]);
            assert_eq!(checksum::checksum(sum), expected);
            assert_eq!(&copy[..length], piece);
            assert_eq!(copy[length], 0xee);
        }
    }
}

#[test]
fn checksum_of_extremes() {
    for length in [0, 1, 2, 7, 8, 20, 127, 128, 129, 1400, 65_536] {
        for byte in [0, 0xff] {
            let data = vec![byte; length];
            let expected = slow_checksum(&[&data]).to_be_bytes();
            assert_eq!(
                checksum::checksum(checksum::sum(&data)),
                expected,
                "{byte} {length}"
            );
        }
    }
    // RFC 1071 section 3.
    let example = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    assert_eq!(checksum::fold(checksum::sum(&example)), [0xdd, 0xf2]);
    assert_eq!(
        checksum::checksum_not_zero(u64::from(u16::MAX)),
        [0xff, 0xff]
    );
    assert_eq!(checksum::fold(u64::MAX), [0xff, 0xff]);
}

#[test]
fn copy_and_sum_keeps_to_the_shorter() {
    let mut short = [0; 150];
    let sum = checksum::copy_and_sum(&bytes(300, 1), &mut short);
    assert_eq!(short[..], bytes(300, 1)[..150]);
    assert_eq!(sum, checksum::sum(&short));
    let mut long = [9; 150];
    checksum::copy_and_sum(&[1; 140], &mut long);
    assert_eq!(long[139..142], [1, 9, 9]);
}

#[test]
fn header_bytes() {
    let header = VnetHeader {
        flags: 1,
        gso_type: 0x84,
        hdr_len: 0x0102,
        gso_size: 0x0304,
        csum_start: 0x0506,
        csum_offset: 0x0708,
    };
    let bytes = header.to_bytes();
    assert_eq!(VnetHeader::parse(&bytes), Some(header));
    assert_eq!(VnetHeader::parse(&bytes[..9]), None);
    assert_eq!(
        VnetHeader::parse(&[bytes.as_slice(), &[1; 9]].concat()),
        Some(header)
    );
    if cfg!(target_endian = "little") {
        assert_eq!(bytes, [1, 0x84, 2, 1, 4, 3, 6, 5, 8, 7]);
    }
    assert_eq!(VnetHeader::default().to_bytes(), [0; 10]);
}
