//! `segment(coalesce(x)) == x`, by tables and by random flows.

use std::ops::Range;

use proptest::prelude::*;
use qvpn_datapath::checksum;
use qvpn_datapath::coalesce::Coalescer;
use qvpn_datapath::ip;
use qvpn_datapath::segment::Segments;
use qvpn_datapath::virtio::{Gso, Header};

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const FIN: u8 = 0x01;
const CWR: u8 = 0x80;

/// A packet to be built, with right checksums.
#[derive(Clone, Debug)]
struct Spec {
    v6: bool,
    tcp: bool,
    port: u16,
    sequence: u32,
    flags: u8,
    identification: u16,
    df: bool,
    hop_limit: u8,
    options: usize,
    payload: Vec<u8>,
}

const TCP: Spec = Spec {
    v6: false,
    tcp: true,
    port: 1000,
    sequence: 7,
    flags: ACK,
    identification: 0xFFFE,
    df: false,
    hop_limit: 64,
    options: 12,
    payload: Vec::new(),
};

impl Spec {
    fn build(&self) -> Vec<u8> {
        let mut transport = Vec::new();
        transport.extend(self.port.to_be_bytes());
        transport.extend(443u16.to_be_bytes());
        let field = if self.tcp {
            transport.extend(self.sequence.to_be_bytes());
            transport.extend(99u32.to_be_bytes());
            transport.extend([((20 + self.options) << 2) as u8, self.flags, 1, 0, 0, 0, 0, 0]);
            transport.extend(std::iter::repeat_n(1, self.options));
            16
        } else {
            transport.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            transport.extend([0, 0]);
            6
        };
        transport.extend(&self.payload);
        let mut packet = if self.v6 {
            let mut header = vec![0x60, 0, 0, 9, 0, 0, if self.tcp { 6 } else { 17 }];
            header.push(self.hop_limit);
            header.extend([0xFD; 16]);
            header.extend([0xFE; 16]);
            header
        } else {
            let mut header = vec![0x45, 0, 0, 0];
            header.extend(self.identification.to_be_bytes());
            header.extend([if self.df { 0x40 } else { 0 }, 0, self.hop_limit]);
            header.push(if self.tcp { 6 } else { 17 });
            header.extend([0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            header
        };
        let at = packet.len();
        packet.extend(transport);
        let length = packet.len();
        ip::set_length(&mut packet, length);
        ip::set_header_checksum(&mut packet);
        let protocol = if self.tcp { ip::TCP } else { ip::UDP };
        let pseudo =
            checksum::pseudo_header(ip::addresses(&packet), protocol, (length - at) as u32);
        let sum = checksum::finish(checksum::add(pseudo, checksum::sum(&packet[at..])));
        ip::set_word(&mut packet, at + field, if sum == 0 { 0xFFFF } else { usize::from(sum) });
        packet
    }
}

/// A flow of `count` segments of `size` bytes, the last of `last`.
fn flow(base: &Spec, count: usize, size: usize, last: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|index| {
            let length = if index + 1 == count { last } else { size };
            Spec {
                sequence: base.sequence.wrapping_add((index * size) as u32),
                identification: base.identification.wrapping_add(index as u16),
                payload: (0..length).map(|byte| (byte * 7 + index) as u8).collect(),
                ..base.clone()
            }
            .build()
        })
        .collect()
}

fn coalesce(packets: &[Vec<u8>]) -> Vec<(Header, Vec<u8>)> {
    let mut buffer = Vec::new();
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for packet in packets {
        ranges.push(buffer.len()..buffer.len() + packet.len());
        buffer.extend(packet);
    }
    let mut coalescer = Coalescer::default();
    for range in ranges {
        coalescer.push(&mut buffer, range);
    }
    let mut written = Vec::new();
    coalescer.finish(&mut buffer, |group, buffer| {
        let bytes = group.parts.iter().flat_map(|part| buffer[part.clone()].to_vec()).collect();
        written.push((group.header, bytes));
    });
    written
}

fn segment(written: &[(Header, Vec<u8>)]) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for (header, bytes) in written {
        let header = Header::decode(&header.encode()).expect("we know what we write");
        let segments = Segments::new(&header, bytes).expect("what is coalesced can be segmented");
        for index in 0..segments.count() {
            let mut out = vec![0; segments.length(index)];
            segments.write(index, &mut out);
            packets.push(out);
        }
    }
    packets
}

fn kinds() -> Vec<Spec> {
    let mut all = Vec::new();
    for v6 in [false, true] {
        for tcp in [false, true] {
            all.push(Spec { v6, tcp, ..TCP });
        }
    }
    all
}

#[test]
fn a_flow_of_any_kind_becomes_one_super_packet_and_itself_again() {
    for base in kinds() {
        for (count, size, last) in [(2, 100, 100), (3, 1, 1), (40, 1348, 1348), (40, 1348, 7)] {
            let packets = flow(&base, count, size, last);
            let written = coalesce(&packets);
            assert_eq!(written.len(), 1, "{base:?}");
            assert_eq!(usize::from(written[0].0.gso_size), size);
            assert_eq!(segment(&written), packets, "{base:?}");
        }
    }
}

#[test]
fn what_differs_is_not_merged() {
    let first = Spec { payload: vec![1; 100], df: true, ..TCP };
    let next = Spec { sequence: 107, ..first.clone() };
    assert_eq!(coalesce(&[first.build(), next.build()]).len(), 1, "this one is");
    let others = [
        Spec { sequence: 108, ..next.clone() },
        Spec { hop_limit: 63, ..next.clone() },
        Spec { df: false, ..next.clone() },
        Spec { options: 16, ..next.clone() },
        Spec { port: 1001, ..next.clone() },
        Spec { flags: ACK | FIN, ..next.clone() },
        Spec { flags: ACK | CWR, ..next.clone() },
        Spec { payload: vec![1; 101], ..next.clone() },
        Spec { payload: vec![], ..next.clone() },
    ];
    for other in others {
        let packets = [first.build(), other.build()];
        let written = coalesce(&packets);
        assert_eq!(written.len(), 2, "{other:?}");
        assert_eq!(segment(&written), packets);
    }
}

#[test]
fn without_df_the_identification_must_count() {
    let first = Spec { payload: vec![1; 100], ..TCP };
    let jumped = Spec { sequence: 107, identification: 5, ..first.clone() };
    assert_eq!(coalesce(&[first.build(), jumped.build()]).len(), 2);
}

#[test]
fn a_broken_checksum_stays_broken_and_alone() {
    for base in kinds() {
        let mut packets = flow(&base, 3, 100, 100);
        *packets[1].last_mut().unwrap() ^= 1;
        let written = coalesce(&packets);
        assert_eq!(written.len(), 3);
        assert_eq!(segment(&written), packets);
        assert!(written.iter().all(|(header, _)| *header == Header::PLAIN));
    }
}

#[test]
fn a_push_ends_a_super_packet() {
    let mut packets = flow(&TCP, 2, 100, 100);
    let pushed = Spec { sequence: 207, identification: 0, flags: ACK | PSH, ..TCP };
    packets.push(Spec { payload: vec![3; 100], ..pushed.clone() }.build());
    let after = Spec { sequence: 307, identification: 1, payload: vec![4; 100], ..TCP };
    packets.push(after.build());
    let written = coalesce(&packets);
    assert_eq!(written.len(), 2);
    assert_eq!(segment(&written), packets);
}

#[test]
fn nothing_overtakes_within_a_flow() {
    // Data, a FIN-like packet of the same flow, data that would fit the first.
    let first = Spec { payload: vec![1; 100], ..TCP };
    let between = Spec { flags: ACK | FIN, sequence: 107, ..first.clone() };
    let late = Spec { sequence: 107, identification: 0xFFFF, ..first.clone() };
    let packets = [first.build(), between.build(), late.build()];
    assert_eq!(segment(&coalesce(&packets)), packets);
}

#[test]
fn a_super_packet_stays_below_64_kilobytes() {
    let packets = flow(&TCP, 60, 1400, 1400);
    let written = coalesce(&packets);
    assert_eq!(written.len(), 2);
    assert!(written.iter().all(|(_, bytes)| bytes.len() <= 65535));
    assert_eq!(segment(&written), packets);
}

#[test]
fn a_udp_packet_without_checksum_keeps_having_none() {
    let mut packets = flow(&Spec { tcp: false, ..TCP }, 2, 100, 100);
    for packet in &mut packets {
        packet[26..28].fill(0);
    }
    assert_eq!(segment(&coalesce(&packets)), packets);
    assert_eq!(coalesce(&packets).len(), 2);
}

#[test]
fn a_missing_checksum_is_completed() {
    for base in kinds() {
        let whole = Spec { payload: vec![9; 333], ..base.clone() }.build();
        let transport = if base.v6 { 40 } else { 20 };
        let field = if base.tcp { 16 } else { 6 };
        let mut partial = whole.clone();
        let protocol = if base.tcp { ip::TCP } else { ip::UDP };
        let length = (whole.len() - transport) as u32;
        let pseudo = checksum::pseudo_header(ip::addresses(&whole), protocol, length);
        ip::set_word(&mut partial, transport + field, usize::from(pseudo));
        let header = Header {
            needs_checksum: true,
            checksum_start: transport as u16,
            checksum_offset: field as u16,
            ..Header::PLAIN
        };
        assert_eq!(segment(&[(header, partial)]), [whole]);
    }
}

#[test]
fn headers_that_lie_are_refused() {
    let packet = Spec { payload: vec![9; 333], ..TCP }.build();
    let good = coalesce(&flow(&TCP, 2, 100, 100))[0].0;
    let lies = [
        Header { gso_size: 0, ..good },
        Header { gso: Gso::Tcp6, ..good },
        Header { checksum_start: 0, ..good },
        Header { checksum_start: 60000, ..good },
        Header { gso: Gso::None, checksum_offset: 60000, ..good },
    ];
    for lie in lies {
        assert!(Segments::new(&lie, &packet).is_none(), "{lie:?}");
    }
    assert!(Segments::new(&good, &packet[..packet.len() - 1]).is_none());
    assert!(Segments::new(&good, &[]).is_none());
}

fn specs() -> impl Strategy<Value = Vec<Spec>> {
    let spec = (
        any::<[bool; 3]>(),
        0u16..2,
        prop_oneof![Just(0u32), Just(50), Just(100), Just(150), any::<u32>()],
        prop_oneof![5 => Just(ACK), 1 => Just(ACK | PSH), 1 => any::<u8>()],
        0u16..4,
        0usize..3,
        0usize..3,
    )
        .prop_map(|([v6, tcp, df], port, sequence, flags, identification, options, fifty)| Spec {
            v6,
            tcp,
            port,
            sequence,
            flags,
            identification,
            df,
            hop_limit: 64,
            options: options * 4,
            payload: vec![port as u8; fifty * 50],
        });
    proptest::collection::vec(spec, 0..24)
}

/// What identifies a flow, to compare orders within each.
fn key(packet: &[u8]) -> (u8, Vec<u8>) {
    let (transport, protocol) = ip::transport(packet).unwrap();
    (protocol, [ip::addresses(packet), &packet[transport..transport + 4]].concat())
}

/// A packet without the IPv4 identification, where that means nothing.
fn essence(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        ip::set_word(&mut packet, 4, 0);
        ip::set_header_checksum(&mut packet);
    }
    packet
}

fn by_flow(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut sorted = packets.to_vec();
    sorted.sort_by_key(|packet| key(packet)); // stable: the order within a flow stays
    sorted.iter().map(|packet| essence(packet)).collect()
}

proptest! {
    #[test]
    fn segmenting_undoes_coalescing(specs in specs()) {
        let packets: Vec<_> = specs.iter().map(Spec::build).collect();
        let again = segment(&coalesce(&packets));
        prop_assert_eq!(by_flow(&again), by_flow(&packets));
    }

    #[test]
    fn a_long_flow_comes_back(
        size in 1usize..1400, count in 1usize..60, last in 1usize..1400, v6: bool, tcp: bool,
        sequence: u32,
    ) {
        let base = Spec { v6, tcp, sequence, ..TCP };
        let packets = flow(&base, count, size, last.min(size));
        let written = coalesce(&packets);
        prop_assert_eq!(segment(&written), packets);
        prop_assert!(written.len() <= 2);
    }

    #[test]
    fn hostile_headers_do_no_harm(
        header in any::<[u8; 10]>(), mut packet in proptest::collection::vec(any::<u8>(), 0..200)
    ) {
        if packet.len() >= 40 {
            // Else nothing gets past the first check.
            let length = packet.len();
            packet[0] = if packet[1] & 1 == 0 { 0x45 } else { 0x60 };
            ip::set_length(&mut packet, length);
        }
        if let Some(header) = Header::decode(&header)
            && let Some(segments) = Segments::new(&header, &packet) {
            for index in 0..segments.count() {
                let mut out = vec![0; segments.length(index)];
                segments.write(index, &mut out);
            }
        }
    }

    #[test]
    fn hostile_packets_do_no_harm(packets in proptest::collection::vec(
        proptest::collection::vec(any::<u8>(), 20..80), 0..20))
    {
        let mut packets = packets;
        for packet in &mut packets {
            let length = packet.len();
            packet[0] = if length >= 40 && packet[0] & 1 == 0 { 0x60 } else { 0x45 };
            ip::set_length(packet, length);
        }
        let sizes: usize = packets.iter().map(Vec::len).sum();
        prop_assert_eq!(segment(&coalesce(&packets)).iter().map(Vec::len).sum::<usize>(), sizes);
    }
}
