//! Every segment against one that was made from words.

use qvpn_datapath::offload::{
    Malformed, Segments, VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP_L4, VnetHeader,
};

use crate::harness::cut;
use crate::packet::{CWR, FIN, PSH, Packet, bytes, shapes};

/// Cuts `super_packet` and compares each segment with one that was made from words.
fn check_cut(super_packet: &Packet, gso_size: usize, header: &VnetHeader) {
    let packet = super_packet.partial();
    let expected = Packet::wires(&super_packet.segments(gso_size));
    let segments = Segments::new(header, &packet).expect("it is well-formed");
    assert_eq!(segments.len(), expected.len());
    assert_eq!(
        segments.largest(),
        expected.iter().map(Vec::len).max().unwrap()
    );
    assert_eq!(segments.packet(), packet);
    assert_eq!(cut(header, &packet).unwrap(), expected, "{super_packet:?}");
}

#[test]
fn segments_of_every_shape() {
    for shape in shapes() {
        let room = 65_535 - shape.header_len();
        for gso_size in [1, 2, 7, 8, 536, 1348, 1359, 1360, 9001] {
            for payload in [
                0,
                1,
                gso_size - 1,
                gso_size,
                gso_size + 1,
                3 * gso_size,
                4 * gso_size - 1,
            ] {
                if payload <= room {
                    let packet = Packet {
                        payload: bytes(payload, 5),
                        ..shape.clone()
                    };
                    check_cut(&packet, gso_size, &packet.header(gso_size));
                }
            }
        }
        let packet = Packet {
            payload: bytes(room, 6),
            ..shape.clone()
        };
        for gso_size in [1400, 32_767, 65_535] {
            check_cut(&packet, gso_size, &packet.header(gso_size));
        }
    }
}

#[test]
fn segments_of_the_smallest_size_there_is() {
    let packet = Packet {
        payload: bytes(65_495, 2),
        ..Packet::new(false, true, 0)
    };
    check_cut(&packet, 1, &packet.header(1));
}

#[test]
fn flags_go_where_they_belong() {
    for v6 in [false, true] {
        for flags in 0..=0xff {
            let packet = Packet {
                flags,
                urgent: 5,
                tos: 3,
                ..Packet::new(v6, true, 3000)
            };
            let mut header = packet.header(1000);
            if flags & CWR != 0 {
                header.gso_type |= VIRTIO_NET_HDR_GSO_ECN;
            }
            check_cut(&packet, 1000, &header);
            let flags: Vec<u8> = cut(&header, &packet.partial())
                .unwrap()
                .iter()
                .map(|segment| segment[packet.ip_len() + 13])
                .collect();
            let middle = packet.flags & !(CWR | FIN | PSH);
            let first = packet.flags & !(FIN | PSH);
            assert_eq!(flags, [first, middle, packet.flags & !CWR]);
        }
    }
}

#[test]
fn hdr_len_is_only_a_hint() {
    for shape in shapes() {
        let packet = Packet {
            payload: bytes(2500, 5),
            ..shape
        };
        for hdr_len in [0, 1, 20, 14, 9999, 0xffff] {
            let header = VnetHeader {
                hdr_len,
                ..packet.header(1200)
            };
            check_cut(&packet, 1200, &header);
        }
    }
}

#[test]
fn unknown_flags_are_left_alone() {
    let packet = Packet::new(false, true, 2500);
    let mut header = packet.header(1200);
    header.flags |= VIRTIO_NET_HDR_F_DATA_VALID | 0xf0;
    check_cut(&packet, 1200, &header);
}

#[test]
fn checksums_are_made_without_needs_csum_too() {
    for shape in shapes() {
        let packet = Packet {
            payload: bytes(2500, 5),
            ..shape
        };
        let header = VnetHeader {
            gso_type: packet.header(1200).gso_type,
            gso_size: 1200,
            ..VnetHeader::default()
        };
        let expected = Packet::wires(&packet.segments(1200));
        assert_eq!(cut(&header, &packet.wire()).unwrap(), expected);
    }
}

#[test]
fn the_kernel_knows_the_pseudo_header_better() {
    // With a routing header the checksum covers another destination than the one in the IP header.
    let mut packet = Packet::new(true, true, 2500);
    packet.extensions = vec![(43, bytes(22, 4))];
    let header = packet.header(1200);
    let mut rerouted = packet.partial();
    rerouted[39] = 77;
    let segments = cut(&header, &rerouted).unwrap();
    for (mut segment, expected) in segments.into_iter().zip(packet.segments(1200)) {
        segment[39] = 2;
        assert_eq!(segment, expected.wire());
    }
}

#[test]
fn udp_without_a_checksum_stays_without() {
    let packet = Packet {
        unchecked: true,
        ..Packet::new(false, false, 2500)
    };
    let header = VnetHeader {
        gso_type: VIRTIO_NET_HDR_GSO_UDP_L4,
        gso_size: 1200,
        ..VnetHeader::default()
    };
    let expected = Packet::wires(&packet.segments(1200));
    assert_eq!(cut(&header, &packet.wire()).unwrap(), expected);
    // IPv6 has no such thing: it gets one.
    let mut packet = Packet {
        unchecked: true,
        ..Packet::new(true, false, 2500)
    };
    let wire = packet.wire();
    packet.unchecked = false;
    let expected = Packet::wires(&packet.segments(1200));
    assert_eq!(cut(&header, &wire).unwrap(), expected);
}

#[test]
fn a_zero_checksum_of_udp_is_sent_as_all_ones() {
    for v6 in [false, true] {
        let mut packet = Packet::new(v6, false, 1202);
        // Choose the last two bytes of each segment so that the sum is all ones.
        for end in [600, 1200, 1202] {
            packet.payload[end - 2..end].fill(0);
        }
        let segments = packet.segments(600);
        for (segment, end) in segments.iter().zip([600, 1200, 1202]) {
            let wire = segment.wire();
            let field = segment.ip_len() + 6;
            packet.payload[end - 2..end].copy_from_slice(&wire[field..field + 2]);
        }
        for segment in packet.segments(600) {
            let field = segment.ip_len() + 6;
            assert_eq!(segment.wire()[field..field + 2], [0xff, 0xff]);
        }
        check_cut(&packet, 600, &packet.header(600));
        // And of a packet that is not a super-packet.
        let single = packet.segments(600)[0].clone();
        let header = VnetHeader {
            gso_type: 0,
            gso_size: 0,
            ..single.header(0)
        };
        assert_eq!(cut(&header, &single.partial()).unwrap(), [single.wire()]);
        // TCP's zero stays zero.
        let mut packet = Packet::new(v6, true, 1000);
        packet.payload[998..].fill(0);
        let field = packet.ip_len() + 16;
        let wire = packet.wire();
        packet.payload[998..].copy_from_slice(&wire[field..field + 2]);
        assert_eq!(packet.wire()[field..field + 2], [0, 0]);
        check_cut(&packet, 1000, &packet.header(1000));
    }
}

#[test]
fn a_single_packet_is_completed() {
    for shape in shapes() {
        for payload in [0, 1, 2, 100, 1301] {
            let packet = Packet {
                payload: bytes(payload, 8),
                ..shape.clone()
            };
            let header = VnetHeader {
                gso_type: 0,
                gso_size: 0,
                ..packet.header(0)
            };
            let expected = packet.wire();
            assert_eq!(
                cut(&header, &packet.partial()).unwrap(),
                std::slice::from_ref(&expected)
            );
            assert_eq!(cut(&VnetHeader::default(), &expected).unwrap(), [expected]);
        }
    }
    // Whatever it is: it goes as it came.
    for packet in [vec![0], vec![0x45; 9], bytes(1500, 2)] {
        assert_eq!(cut(&VnetHeader::default(), &packet).unwrap(), [packet]);
    }
}

#[test]
fn bytes_behind_the_packet_are_not_sent() {
    let packet = Packet::new(false, true, 2500);
    let mut long = packet.partial();
    long.extend([9; 30]);
    let segments = Segments::new(&packet.header(1200), &long).unwrap();
    assert_eq!(segments.packet(), packet.partial());
    let expected = Packet::wires(&packet.segments(1200));
    assert_eq!(cut(&packet.header(1200), &long).unwrap(), expected);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn malformed_is_refused() {
    let tcp4 = Packet::new(false, true, 2500);
    let udp6 = Packet::new(true, false, 2500);
    let refused = |header: &VnetHeader, packet: &[u8]| Segments::new(header, packet).unwrap_err();
    let good = tcp4.header(1200);
    let wire = tcp4.partial();
    let change = |at: usize, value: u8| {
        let mut wire = wire.clone();
        wire[at] = value;
        wire
    };

    assert_eq!(refused(&VnetHeader::default(), &[]), Malformed::Ip);
    assert_eq!(refused(&good, &[]), Malformed::Ip);
    assert_eq!(refused(&good, &wire[..19]), Malformed::Ip);
    assert_eq!(
        refused(&udp6.header(1200), &udp6.partial()[..39]),
        Malformed::Ip
    );
    assert_eq!(refused(&good, &change(0, 0x55)), Malformed::Ip);
    assert_eq!(refused(&good, &change(0, 0x44)), Malformed::Length);
    assert_eq!(refused(&good, &wire[..wire.len() - 1]), Malformed::Length);
    let wire6 = udp6.partial();
    assert_eq!(
        refused(&udp6.header(1200), &wire6[..wire6.len() - 1]),
        Malformed::Length
    );
    let mut short = change(2, 0);
    short[3] = 19;
    assert_eq!(refused(&good, &short), Malformed::Length);
    for (at, value) in [(6, 0x20), (6, 0x01), (7, 0x01)] {
        assert_eq!(refused(&good, &change(at, value)), Malformed::Fragment);
    }
    let mut fragment6 = wire6.clone();
    fragment6[6] = 44;
    assert_eq!(refused(&udp6.header(1200), &fragment6), Malformed::Fragment);
    assert_eq!(refused(&good, &change(9, 1)), Malformed::Protocol);
    assert_eq!(refused(&good, &change(9, 17)), Malformed::GsoType);
    assert_eq!(refused(&good, &change(32, 0x40)), Malformed::Transport);
    let truncated = Packet {
        payload: Vec::new(),
        ..tcp4.clone()
    };
    let mut truncated = truncated.partial();
    truncated[32] = 0x60;
    assert_eq!(refused(&good, &truncated), Malformed::Transport);
    truncated.truncate(39);
    truncated[3] = 39;
    assert_eq!(refused(&good, &truncated), Malformed::Transport);
    truncated.truncate(30);
    truncated[3] = 30;
    assert_eq!(refused(&good, &truncated), Malformed::Transport);
    // An extension header that reaches beyond the packet.
    let mut beyond = udp6.clone();
    beyond.extensions = vec![(60, bytes(6, 1))];
    beyond.payload.clear();
    let header = beyond.header(1200);
    let mut beyond = beyond.partial();
    beyond[41] = 9;
    assert_eq!(refused(&header, &beyond), Malformed::Length);
    beyond.truncate(41);
    beyond[5] = 1;
    assert_eq!(refused(&header, &beyond), Malformed::Length);

    for gso_type in [
        2,
        3,
        6,
        0x20,
        0x40,
        0x80,
        0x83,
        VIRTIO_NET_HDR_GSO_TCPV6,
        VIRTIO_NET_HDR_GSO_UDP_L4,
    ] {
        assert_eq!(
            refused(&VnetHeader { gso_type, ..good }, &wire),
            Malformed::GsoType
        );
    }
    assert_eq!(
        refused(
            &VnetHeader {
                gso_size: 0,
                ..good
            },
            &wire
        ),
        Malformed::GsoSize
    );
    for (csum_start, csum_offset) in [(0, 16), (19, 16), (20, 6), (20, 15), (0xffff, 0xffff)] {
        let header = VnetHeader {
            csum_start,
            csum_offset,
            ..good
        };
        assert_eq!(refused(&header, &wire), Malformed::Checksum);
    }
    let length = wire.len() as u16;
    for (csum_start, csum_offset) in [(length, 0), (0, length), (length - 1, 0), (0xffff, 0xffff)] {
        let header = VnetHeader {
            gso_type: 0,
            csum_start,
            csum_offset,
            ..good
        };
        assert_eq!(refused(&header, &wire), Malformed::Checksum);
    }
    let edge = VnetHeader {
        gso_type: 0,
        csum_start: length - 2,
        csum_offset: 0,
        ..good
    };
    assert!(Segments::new(&edge, &wire).is_ok());
}
