//! Cheap looks at IP headers, as `qvpn_core.packet` has them, and what offloads need to know.
//!
//! Nothing here follows IPv6 extension headers: packets with them are carried, never coalesced.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::checksum;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// Whether version, header length and total length fit the buffer.
#[inline]
pub fn well_formed(packet: &[u8]) -> bool {
    let size = packet.len();
    if size < 20 {
        return false;
    }
    match packet[0] >> 4 {
        4 => {
            let header = usize::from(packet[0] & 0x0F) << 2;
            (20..=size).contains(&header) && word(packet, 2) == size
        }
        6 => size >= 40 && 40 + word(packet, 4) == size,
        _ => false,
    }
}

/// The source address of a well-formed packet: 4 or 16 bytes.
#[inline]
pub fn source(packet: &[u8]) -> &[u8] {
    if packet[0] >> 4 == 4 { &packet[12..16] } else { &packet[8..24] }
}

/// The destination address of a well-formed packet: 4 or 16 bytes.
#[inline]
pub fn destination(packet: &[u8]) -> &[u8] {
    if packet[0] >> 4 == 4 { &packet[16..20] } else { &packet[24..40] }
}

/// Where the transport header of a well-formed packet begins and what it is.
///
/// None for a fragment and behind IPv6 extension headers.
#[inline]
pub fn transport(packet: &[u8]) -> Option<(usize, u8)> {
    if packet[0] >> 4 == 4 {
        // More fragments, or an offset (RFC 791 section 3.1).
        if word(packet, 6) & 0x3FFF != 0 {
            return None;
        }
        Some((usize::from(packet[0] & 0x0F) << 2, packet[9]))
    } else {
        Some((40, packet[6]))
    }
}

/// Source and destination of a well-formed packet, one behind the other.
#[inline]
pub fn addresses(packet: &[u8]) -> &[u8] {
    if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] }
}

/// Write the length of the whole packet, of `packet.len()` bytes or more, into its IP header.
#[inline]
pub fn set_length(packet: &mut [u8], length: usize) {
    if packet[0] >> 4 == 4 {
        set_word(packet, 2, length);
    } else {
        set_word(packet, 4, length - 40);
    }
}

/// Make the IPv4 header checksum right; IPv6 has none.
#[inline]
pub fn set_header_checksum(packet: &mut [u8]) {
    if packet[0] >> 4 == 4 {
        let header = usize::from(packet[0] & 0x0F) << 2;
        set_word(packet, 10, 0);
        let sum = checksum::sum(&packet[..header]);
        set_word(packet, 10, usize::from(checksum::finish(sum)));
    }
}

/// Whether the IPv4 header checksum is right; IPv6 has none.
#[inline]
pub fn header_checksum_holds(packet: &[u8]) -> bool {
    packet[0] >> 4 == 6 || checksum::sum(&packet[..usize::from(packet[0] & 0x0F) << 2]) == 0xFFFF
}

/// A number that packets of one flow share: of addresses, protocol and ports.
pub fn flow(packet: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    addresses(packet).hash(&mut hasher);
    if let Some((at, protocol)) = transport(packet) {
        protocol.hash(&mut hasher);
        if matches!(protocol, TCP | UDP) {
            packet.get(at..at + 4).hash(&mut hasher);
        }
    }
    hasher.finish()
}

/// Mark a well-formed packet as having met congestion; false if its sender would not understand
/// (RFC 3168 section 5).
pub fn mark_congestion(packet: &mut [u8]) -> bool {
    let ipv4 = packet[0] >> 4 == 4;
    // The lowest two bits of the second byte, or of the traffic class across the first two.
    let (byte, shift) = if ipv4 { (1, 0) } else { (1, 4) };
    if packet[byte] >> shift & 0x03 == 0 {
        return false;
    }
    packet[byte] |= 0x03 << shift;
    if ipv4 {
        set_header_checksum(packet);
    }
    true
}

/// Two bytes in network order.
#[inline]
pub fn word(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

/// Write the lowest 16 bits of `value` in network order.
#[inline]
pub fn set_word(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
}

/// Four bytes in network order.
#[inline]
pub fn long(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Write four bytes in network order.
#[inline]
pub fn set_long(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv4(tos: u8) -> Vec<u8> {
        let mut packet = vec![0; 28];
        (packet[0], packet[1], packet[9]) = (0x45, tos, UDP);
        set_length(&mut packet, 28);
        set_header_checksum(&mut packet);
        packet
    }

    #[test]
    fn only_who_understands_is_marked() {
        for (tos, marked) in [(0x04, None), (0x05, Some(0x07)), (0x06, Some(0x07)), (3, Some(3))] {
            let mut packet = ipv4(tos);
            assert_eq!(mark_congestion(&mut packet), marked.is_some());
            assert_eq!(packet[1], marked.unwrap_or(tos));
            assert!(header_checksum_holds(&packet));
        }
        let mut ipv6 = vec![0; 40];
        (ipv6[0], ipv6[1]) = (0x6A, 0x2F); // traffic class 0xA2, flow label 0xF....
        assert!(mark_congestion(&mut ipv6));
        assert_eq!((ipv6[0], ipv6[1]), (0x6A, 0x3F));
        (ipv6[0], ipv6[1]) = (0x6A, 0x0F);
        assert!(!mark_congestion(&mut ipv6));
    }

    #[test]
    fn flows_are_told_apart_by_ports() {
        let (one, mut other) = (ipv4(0), ipv4(0));
        assert_eq!(flow(&one), flow(&other));
        other[21] = 1;
        assert_ne!(flow(&one), flow(&other));
        other[6] = 0x20; // a fragment has no ports
        assert_eq!(
            flow(&other),
            flow(&{
                let mut first = one;
                first[6] = 0x20;
                first
            })
        );
    }
}
