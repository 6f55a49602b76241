//! What must hold for any input of the offload module, as plain functions.
//!
//! The fuzz targets call them, and so do the tests of the crate, which need no nightly compiler.
//! What is expected is computed here in the slowest and plainest way, apart from the code under
//! test.

use std::collections::HashMap;
use std::ops::Range;

use qvpn_datapath::offload::{Coalescer, MAX_SEGMENTS, Malformed, Segments, VnetHeader};

/// RFC 1071, a word at a time.
pub fn slow_checksum(parts: &[&[u8]]) -> u16 {
    let bytes: Vec<u8> = parts.concat();
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Which packets must keep their order among each other: addresses, protocol, and ports where there
/// are any.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Both addresses.
    pub addresses: Vec<u8>,
    /// Protocol and ports; nothing when they cannot be told, as in fragments.
    pub ports: Option<(u8, Vec<u8>)>,
}

/// The flow of a packet; nothing when it is no IP packet.
pub fn flow_key(packet: &[u8]) -> Option<FlowKey> {
    let (addresses, mut protocol, mut at, fragment) = match packet.first()? >> 4 {
        4 => (
            packet.get(12..20)?.to_vec(),
            *packet.get(9)?,
            usize::from(packet[0] & 15) * 4,
            packet[6] & 0x3f != 0 || packet[7] != 0,
        ),
        6 => (packet.get(8..40)?.to_vec(), *packet.get(6)?, 40, false),
        _ => return None,
    };
    let v6 = packet[0] >> 4 == 6;
    while v6 && [0, 43, 60].contains(&protocol) {
        let header = packet.get(at..at + 2)?;
        protocol = header[0];
        at += 8 + usize::from(header[1]) * 8;
    }
    let ports = if fragment || v6 && protocol == 44 {
        None
    } else if protocol == 6 || protocol == 17 {
        packet
            .get(at..at + 4)
            .map(|ports| (protocol, ports.to_vec()))
    } else {
        Some((protocol, Vec::new()))
    };
    Some(FlowKey { addresses, ports })
}

/// Makes the checksums of a packet right, as far as it has any, so that random packets get further.
pub fn repair(packet: &mut [u8]) {
    let Some(first) = packet.first().copied() else {
        return;
    };
    let length = packet.len();
    let (at, protocol) = match first >> 4 {
        4 => {
            let at = usize::from(first & 15) * 4;
            if at < 20 || length < at {
                return;
            }
            packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            packet[10..12].copy_from_slice(&[0, 0]);
            let sum = slow_checksum(&[&packet[..at]]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            (at, packet[9])
        }
        6 if length >= 40 => {
            packet[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
            let (mut at, mut protocol) = (40, packet[6]);
            while [0, 43, 60].contains(&protocol) {
                let Some(header) = packet.get(at..at + 2) else {
                    return;
                };
                protocol = header[0];
                at += 8 + usize::from(header[1]) * 8;
            }
            (at, protocol)
        }
        _ => return,
    };
    let v6 = first >> 4 == 6;
    let (least, field) = match protocol {
        6 => (20, 16),
        17 => (8, 6),
        _ => return,
    };
    if length < at + least {
        return;
    }
    let covered = length - at;
    if protocol == 17 {
        packet[at + 4..at + 6].copy_from_slice(&(covered as u16).to_be_bytes());
    }
    packet[at + field..at + field + 2].copy_from_slice(&[0, 0]);
    let addresses = if v6 { 8..40 } else { 12..20 };
    let mut sum = slow_checksum(&[
        &packet[addresses],
        &(covered as u32).to_be_bytes(),
        &[0, protocol],
        &packet[at..],
    ]);
    if protocol == 17 && sum == 0 {
        sum = 0xffff;
    }
    packet[at + field..at + field + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Cuts a packet and gives the segments.
///
/// # Errors
/// What [`Segments::new`] says.
///
/// # Panics
/// When the segments are not what `len` and `largest` promise.
pub fn cut(header: &VnetHeader, packet: &[u8]) -> Result<Vec<Vec<u8>>, Malformed> {
    let mut segments = Segments::new(header, packet)?;
    let mut out = vec![0xa5; segments.largest() + 3];
    let mut cut = Vec::with_capacity(segments.len());
    while !segments.is_empty() {
        let (left, next) = (segments.len(), segments.next_len());
        assert!(segments.next_into(&mut out[..next - 1]).is_none());
        assert_eq!(
            segments.len(),
            left,
            "nothing is used up when there is no room"
        );
        let length = segments.next_into(&mut out).expect("there is room");
        assert_eq!(length, next);
        assert_eq!(
            out[length..length + 3],
            [0xa5; 3],
            "nothing is written behind it"
        );
        assert!(left == 1 || length == segments.largest());
        cut.push(out[..length].to_vec());
        out.fill(0xa5);
    }
    assert!(segments.next_into(&mut out).is_none());
    assert_eq!(segments.next_len(), 0);
    Ok(cut)
}

/// Any bytes: a header, then a packet.
pub fn segments(data: &[u8]) {
    let Some(header) = VnetHeader::parse(data) else {
        return;
    };
    assert_eq!(header.to_bytes(), data[..VnetHeader::LEN]);
    let packet = &data[VnetHeader::LEN..];
    if let Ok(cut) = cut(&header, packet) {
        assert!(!cut.is_empty());
        if header.gso_type == 0 {
            assert_eq!(cut.len(), 1);
            assert_eq!(cut[0].len(), packet.len());
        }
    }
}

/// What became of a batch.
#[derive(Debug)]
pub struct Outcome {
    /// Number of writes.
    pub writes: usize,
    /// The packets after cutting, in the order of writing.
    pub packets: Vec<Vec<u8>>,
}

/// Coalesces packets that lie `gap` bytes apart, and cuts the writes again.
///
/// # Panics
/// When a write is not consistent.
pub fn coalesce(coalescer: &mut Coalescer, packets: &[Vec<u8>], gap: usize) -> Outcome {
    let mut arena = vec![0x5a; gap];
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for packet in packets {
        ranges.push(arena.len()..arena.len() + packet.len());
        arena.extend_from_slice(packet);
        arena.extend(std::iter::repeat_n(0x5a, gap));
    }
    coalescer.clear();
    for range in &ranges {
        let taken = coalescer.add(&arena, range.clone());
        assert_eq!(taken, !range.is_empty());
    }
    let before = arena.clone();
    let mut outcome = Outcome {
        writes: 0,
        packets: Vec::new(),
    };
    let writes = coalescer.finish(&mut arena);
    assert_eq!(writes.len(), writes.clone().count());
    let mut fixed_up = vec![false; arena.len()];
    for write in writes {
        outcome.writes += 1;
        let joined = write.ranges.len();
        assert!((1..=MAX_SEGMENTS).contains(&joined));
        let gathered: Vec<u8> = write
            .ranges
            .clone()
            .flat_map(|range| arena[range].iter().copied())
            .collect();
        assert_eq!(gathered.len(), write.total);
        assert!(write.total <= 65_535 || joined == 1);
        let first = write.ranges.clone().next().expect("never without a range");
        if joined == 1 {
            assert_eq!(write.header, VnetHeader::default());
            assert_eq!(
                arena[first.clone()],
                before[first],
                "single packets are not touched"
            );
        } else {
            let header_end = first.start + usize::from(write.header.hdr_len);
            fixed_up[first.start..header_end].fill(true);
        }
        let segments = cut(&write.header, &gathered).expect("what was joined can be cut");
        assert_eq!(segments.len(), joined);
        outcome.packets.extend(segments);
    }
    for (at, fixed_up) in fixed_up.iter().enumerate() {
        assert!(
            *fixed_up || arena[at] == before[at],
            "payload is not touched"
        );
    }
    outcome
}

/// Checks that a batch comes out as the same packets, in the same order within each flow.
///
/// # Panics
/// When it does not.
pub fn round_trip(coalescer: &mut Coalescer, packets: &[Vec<u8>], gap: usize) -> Outcome {
    let outcome = coalesce(coalescer, packets, gap);
    let given: Vec<&Vec<u8>> = packets.iter().filter(|packet| !packet.is_empty()).collect();
    assert_eq!(given.len(), outcome.packets.len());
    let given = by_flow(given.into_iter());
    let came = by_flow(outcome.packets.iter());
    assert_eq!(given, came);
    outcome
}

type Flows<'a> = HashMap<Option<FlowKey>, Vec<&'a Vec<u8>>>;

/// The packets of each flow, with those fragments between them that may be of it.
fn by_flow<'a>(packets: impl Iterator<Item = &'a Vec<u8>> + Clone) -> Flows<'a> {
    let mut flows = Flows::new();
    let keyed = packets.map(|packet| (flow_key(packet), packet));
    for (key, _) in keyed.clone() {
        flows.entry(key).or_default();
    }
    for (key, packet) in keyed {
        let portless = key.as_ref().is_some_and(|key| key.ports.is_none());
        for (flow, list) in &mut flows {
            let shared = portless
                && flow.as_ref().is_some_and(|flow| {
                    let known = flow.ports.as_ref();
                    Some(&flow.addresses) == key.as_ref().map(|key| &key.addresses)
                        && known.is_none_or(|(protocol, _)| [6, 17].contains(protocol))
                });
            if *flow == key || shared {
                list.push(packet);
            }
        }
    }
    flows
}

/// Any bytes, read as packets: a byte of instructions, a length, and the packet's bytes, or changes
/// to the packet before, so that flows come about.
pub fn coalescer(data: &[u8]) {
    let mut packets: Vec<Vec<u8>> = Vec::new();
    let mut rest = data;
    while let [how, size, more @ ..] = rest {
        let size = usize::from(*size).min(more.len());
        let (bytes, after) = more.split_at(size);
        rest = after;
        let mut packet = match packets.last() {
            // The packet before, counted up and then changed at some places.
            Some(last) if how & 1 != 0 => {
                let mut packet = last.clone();
                count_up(&mut packet);
                for change in bytes.chunks_exact(2) {
                    let at = usize::from(change[0]);
                    if how & 2 != 0
                        && let Some(byte) = packet.get_mut(at)
                    {
                        *byte = change[1];
                    }
                }
                if how & 8 != 0 {
                    packet.truncate(packet.len().saturating_sub(1));
                }
                packet
            }
            _ => bytes.to_vec(),
        };
        if how & 4 == 0 {
            repair(&mut packet);
        }
        packets.push(packet);
        if packets.len() == 256 {
            break;
        }
    }
    round_trip(&mut Coalescer::new(), &packets, data.len() % 5);
}

/// Makes of a packet the one that would follow it in its flow.
pub fn count_up(packet: &mut [u8]) {
    let Some(first) = packet.first().copied() else {
        return;
    };
    let at = if first >> 4 == 4 {
        if let Some(id) = packet.get_mut(4..6) {
            let next = u16::from_be_bytes([id[0], id[1]]).wrapping_add(1);
            id.copy_from_slice(&next.to_be_bytes());
        }
        usize::from(packet[0] & 15) * 4
    } else {
        40
    };
    let length = packet.len();
    if packet.get(if at == 40 { 6 } else { 9 }) == Some(&6)
        && let Some(offset) = packet.get(at + 12).map(|byte| usize::from(byte >> 4) * 4)
        && length >= at + offset
        && let Some(field) = packet.get_mut(at + 4..at + 8)
    {
        let sequence = u32::from_be_bytes([field[0], field[1], field[2], field[3]]);
        let next = sequence.wrapping_add((length - at - offset) as u32);
        field.copy_from_slice(&next.to_be_bytes());
    }
}
