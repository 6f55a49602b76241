//! What is joined, what is not, and that nothing is changed or overtaken either way.

use qvpn_datapath::offload::{Coalescer, MAX_OPEN, MAX_SEGMENTS};

use crate::harness::round_trip;
use crate::packet::{ACK, CWR, ECE, FIN, PSH, Packet, RST, SYN, URG, bytes, shapes};

/// The number of packets in each write.
pub fn joined(packets: &[Packet]) -> Vec<usize> {
    joined_wires(&Packet::wires(packets))
}

fn joined_wires(packets: &[Vec<u8>]) -> Vec<usize> {
    let mut coalescer = Coalescer::new();
    // Cut back, they must be the same packets.
    round_trip(&mut coalescer, packets, 3);
    let writes = coalescer.finish(&mut []);
    writes.map(|write| write.ranges.len()).collect()
}

#[test]
fn every_shape_is_joined_and_cut_to_the_same() {
    for shape in shapes() {
        for (gso_size, payload) in [(1, 20), (100, 250), (1348, 13_480), (1361, 50_001)] {
            let payload = bytes(payload, 4);
            let packet = Packet {
                payload,
                ..shape.clone()
            };
            let count = packet.payload.len().div_ceil(gso_size);
            assert_eq!(joined(&packet.segments(gso_size)), [count]);
            if packet.tcp {
                let packet = Packet {
                    flags: ACK | PSH,
                    ..packet
                };
                assert_eq!(joined(&packet.segments(gso_size)), [count]);
            }
        }
    }
}

#[test]
fn a_write_is_what_the_kernel_wants() {
    for shape in shapes() {
        let flags = ACK | PSH;
        let packet = Packet {
            payload: bytes(3000, 4),
            flags,
            ..shape
        };
        let packets = Packet::wires(&packet.segments(1200));
        let mut arena = packets.concat();
        let mut coalescer = Coalescer::new();
        let mut at = 0;
        for packet in &packets {
            assert!(coalescer.add(&arena, at..at + packet.len()));
            at += packet.len();
        }
        let mut writes = coalescer.finish(&mut arena);
        let write = writes.next().unwrap();
        assert!(writes.next().is_none());
        assert_eq!(write.header, packet.header(1200));
        let ranges: Vec<_> = write.ranges.collect();
        let (full, short) = (packets[0].len(), packets[2].len());
        let header = packet.header_len();
        assert_eq!(
            ranges,
            [
                0..full,
                full + header..2 * full,
                2 * full + header..2 * full + short
            ]
        );
        let gathered: Vec<u8> = ranges
            .into_iter()
            .flat_map(|range| arena[range].to_vec())
            .collect();
        assert_eq!(gathered.len(), write.total);
        assert_eq!(gathered, packet.partial());
    }
}

/// Two full segments of `packet` and a third, after `change` of the second: how they are joined.
fn with_second(packet: &Packet, change: impl Fn(&mut Packet)) -> Vec<usize> {
    let mut packets = packet.segments(1000);
    change(&mut packets[1]);
    joined(&packets)
}

#[test]
fn what_differs_is_not_joined() {
    type Change = (&'static str, fn(&mut Packet));
    let everywhere: [Change; 3] = [
        ("hop limit", |packet| packet.ttl -= 1),
        ("traffic class", |packet| packet.tos = 0x10),
        ("ECN mark", |packet| packet.tos |= 3),
    ];
    let v4: [Change; 5] = [
        ("ID that stands still", |packet| {
            packet.id = packet.id.wrapping_sub(1);
        }),
        ("ID that jumps", |packet| {
            packet.id = packet.id.wrapping_add(1);
        }),
        ("DF", |packet| packet.fragment = 0),
        ("reserved bit", |packet| packet.fragment = 0xc000),
        ("options", |packet| packet.ip_options = vec![1; 4]),
    ];
    let v6: [Change; 2] = [
        ("flow label", |packet| packet.flow_label += 1),
        ("extension", |packet| {
            packet.extensions = vec![(0, vec![0; 6])];
        }),
    ];
    let tcp: [Change; 14] = [
        ("sequence gap", |packet| {
            packet.sequence = packet.sequence.wrapping_add(1);
        }),
        ("sequence again", |packet| {
            packet.sequence = packet.sequence.wrapping_sub(1000);
        }),
        ("acknowledgement", |packet| packet.acknowledgement += 1),
        ("window", |packet| packet.window += 1),
        ("urgent pointer", |packet| packet.urgent += 1),
        ("SYN", |packet| packet.flags |= SYN),
        ("FIN", |packet| packet.flags |= FIN),
        ("RST", |packet| packet.flags |= RST),
        ("URG", |packet| packet.flags |= URG),
        ("ECE", |packet| packet.flags |= ECE),
        ("CWR", |packet| packet.flags |= CWR),
        ("no ACK", |packet| packet.flags = 0),
        ("options", |packet| packet.tcp_options = vec![1; 4]),
        ("no payload", |packet| packet.payload.clear()),
    ];
    let udp: [Change; 1] = [("nothing in it", |packet| packet.payload.clear())];
    for shape in shapes() {
        let base = Packet {
            payload: bytes(3000, 4),
            ..shape
        };
        let family: &[Change] = if base.v6 { &v6 } else { &v4 };
        let protocol: &[Change] = if base.tcp { &tcp } else { &udp };
        assert_eq!(with_second(&base, |_| {}), [3]);
        for (what, change) in everywhere.iter().chain(family).chain(protocol) {
            let extended = !base.extensions.is_empty() || !base.ip_options.is_empty();
            if extended && ["extension", "options"].contains(what) {
                continue;
            }
            let joined = with_second(&base, change);
            assert!(joined[0] == 1, "{what}: {joined:?}");
        }
        // A shorter one ends a super-packet, a longer one begins another.
        let shorter = with_second(&base, |packet| packet.payload.truncate(999));
        assert_eq!(shorter, [2, 1]);
        let longer = with_second(&base, |packet| packet.payload.push(1));
        assert_eq!(longer[0], 1);
        if base.tcp {
            assert_eq!(with_second(&base, |packet| packet.flags |= PSH), [2, 1]);
            let mut packets = base.segments(1000);
            packets[0].flags |= PSH;
            assert_eq!(joined(&packets), [1, 2]);
        }
    }
}

#[test]
fn alike_but_for_one_option() {
    let base = Packet {
        tcp_options: bytes(12, 1),
        ..Packet::new(false, true, 3000)
    };
    assert_eq!(
        with_second(&base, |packet| packet.tcp_options[11] ^= 1),
        [1, 1, 1]
    );
    let base = Packet {
        ip_options: vec![1; 8],
        ..Packet::new(false, true, 3000)
    };
    assert_eq!(
        with_second(&base, |packet| packet.ip_options[7] ^= 1),
        [1, 1, 1]
    );
    let extensions = vec![(60, bytes(14, 1))];
    let base = Packet {
        extensions,
        ..Packet::new(true, true, 3000)
    };
    assert_eq!(
        with_second(&base, |packet| packet.extensions[0].1[13] ^= 1),
        [1, 1, 1]
    );
}

#[test]
fn special_packets_travel_alone() {
    for v6 in [false, true] {
        for flags in 0..=0xff_u8 {
            let packet = Packet {
                flags,
                ..Packet::new(v6, true, 900)
            };
            let mut packets = packet.segments(300);
            for packet in &mut packets {
                packet.flags = flags;
            }
            let expected: &[usize] = if flags == ACK { &[3] } else { &[1, 1, 1] };
            assert_eq!(joined(&packets), expected, "{flags:#x}");
        }
        let acks = vec![Packet::new(v6, true, 0); 3];
        assert_eq!(joined(&acks), [1, 1, 1]);
    }
    let packet = Packet {
        unchecked: true,
        ..Packet::new(false, false, 900)
    };
    assert_eq!(joined(&packet.segments(300)), [1, 1, 1]);
    let packet = Packet {
        fragment: 0,
        ..Packet::new(false, false, 900)
    };
    assert_eq!(joined(&packet.segments(300)), [3]);
    for fragment in [0x2000, 1, 0x8000, 0xe000] {
        let packet = Packet {
            fragment,
            ..Packet::new(false, false, 900)
        };
        assert_eq!(joined(&packet.segments(300)), [1, 1, 1]);
    }
    let fragment = vec![(44, vec![0, 0, 0, 0, 0, 1])];
    let packet = Packet {
        extensions: fragment,
        ..Packet::new(true, false, 900)
    };
    assert_eq!(joined(&packet.segments(300)), [1, 1, 1]);
}

#[test]
fn damage_is_not_repaired() {
    for shape in shapes() {
        let base = Packet {
            payload: bytes(3000, 4),
            ..shape
        };
        let wires = Packet::wires(&base.segments(1000));
        for victim in 0..3 {
            // In the transport header, in the payload, at the end; and the IPv4 header's checksum.
            let end = wires[victim].len();
            for at in [
                base.ip_len() + 6,
                base.header_len(),
                base.header_len() + 500,
                end - 1,
            ] {
                let mut wires = wires.clone();
                wires[victim][at] ^= 0x10;
                let joined = joined_wires(&wires);
                let expected: &[usize] = match victim {
                    0 => &[1, 2],
                    1 => &[1, 1, 1],
                    _ => &[2, 1],
                };
                assert_eq!(joined, expected, "{victim} {at}");
            }
            if !base.v6 {
                let mut wires = wires.clone();
                wires[victim][10] ^= 1;
                assert!(joined_wires(&wires).len() >= 2);
            }
        }
    }
}

#[test]
fn the_other_zero_is_not_joined() {
    // All ones where zero is computed, as skb_checksum_help leaves it: right, but not what a second
    // computation gives.
    let mut packet = Packet::new(false, true, 1000);
    packet.payload[998..].fill(0);
    let wire = packet.wire();
    packet.payload[998..].copy_from_slice(&wire[36..38]);
    let mut next = Packet::new(false, true, 1000);
    next.sequence = packet.sequence.wrapping_add(1000);
    next.id = packet.id.wrapping_add(1);
    let mut wires = vec![packet.wire(), next.wire()];
    assert_eq!(wires[0][36..38], [0, 0]);
    assert_eq!(joined_wires(&wires), [2]);
    wires[0][36..38].fill(0xff);
    assert_eq!(joined_wires(&wires), [1, 1]);
}

#[test]
fn limits_of_a_super_packet() {
    for v6 in [false, true] {
        for tcp in [false, true] {
            let base = Packet::new(v6, tcp, 0);
            // Many small ones.
            let payload = bytes(100 * (2 * MAX_SEGMENTS + 5), 1);
            let many = Packet {
                payload,
                ..base.clone()
            };
            assert_eq!(joined(&many.segments(100)), [MAX_SEGMENTS, MAX_SEGMENTS, 5]);
            // Just 65535 bytes, and one more.
            let room = 65_535 - base.header_len();
            for over in [0, 1] {
                let size = (room + over).div_ceil(2);
                let payload = bytes(room + over, 1);
                // Two parts, the second shorter if need be.
                let mut both = Packet {
                    payload,
                    ..base.clone()
                }
                .segments(size);
                assert_eq!(both.len(), 2);
                let expected: &[usize] = if over == 0 { &[2] } else { &[1, 1] };
                assert_eq!(joined(&both), expected);
                both[0].ports.0 += 1;
                assert_eq!(joined(&both), [1, 1]);
            }
        }
    }
}

#[test]
fn the_largest_packet_there_is() {
    let payload = bytes(65_535 - 20, 1);
    let packet = Packet {
        payload,
        ..Packet::new(true, true, 0)
    };
    assert_eq!(packet.wire().len(), 65_575);
    assert_eq!(joined(&[packet.clone(), packet]), [1, 1]);
}

#[test]
fn flows_may_interleave() {
    for count in [2, 3, MAX_OPEN] {
        let flows: Vec<Vec<Packet>> = (0..count)
            .map(|flow| {
                let mut packet = Packet::new(flow % 2 == 0, flow % 3 != 0, 4500);
                packet.hosts.0 = flow as u8 / 4;
                packet.ports.0 += flow as u16;
                packet.segments(1000)
            })
            .collect();
        let mut packets = Vec::new();
        for index in 0..5 {
            packets.extend(flows.iter().map(|flow| flow[index].clone()));
        }
        assert_eq!(joined(&packets), vec![5; count]);
    }
}

#[test]
fn more_flows_than_are_looked_after() {
    let mut packets = Vec::new();
    for index in 0..4 {
        for flow in 0..3 * MAX_OPEN as u16 {
            let mut packet = Packet::new(false, true, 4000);
            packet.ports.0 += flow;
            packets.push(packet.segments(1000)[index].clone());
        }
    }
    let joined = joined(&packets);
    assert_eq!(joined.iter().sum::<usize>(), packets.len());
}

#[test]
fn tuples_that_differ_in_one_place_are_different_flows() {
    type Change = fn(&mut Packet);
    let changes: [Change; 4] = [
        |packet| packet.hosts.0 += 1,
        |packet| packet.hosts.1 += 1,
        |packet| packet.ports.0 += 1,
        |packet| packet.ports.1 += 1,
    ];
    for v6 in [false, true] {
        for tcp in [false, true] {
            for change in changes {
                let packets = Packet::new(v6, tcp, 3000).segments(1000);
                let mut other = Packet::new(v6, tcp, 3000);
                change(&mut other);
                let other = other.segments(1000);
                let both: Vec<Packet> = packets
                    .into_iter()
                    .zip(other)
                    .flat_map(|(a, b)| [a, b])
                    .collect();
                assert_eq!(joined(&both), [3, 3]);
            }
        }
    }
}

#[test]
fn nothing_overtakes_a_fragment() {
    for v6 in [false, true] {
        let packets = Packet::new(v6, false, 4000).segments(1000);
        let mut fragment = Packet::new(v6, false, 500);
        if v6 {
            fragment.extensions = vec![(44, vec![0, 1, 0, 0, 0, 1])];
        } else {
            fragment.fragment = 0x2000;
        }
        let mut list = packets.clone();
        list.insert(2, fragment.clone());
        assert_eq!(joined(&list), [2, 1, 2]);
        // One between other hosts is of no matter to it.
        list[2].hosts.0 = 9;
        assert_eq!(joined(&list), [4, 1]);
    }
}

#[test]
fn other_protocols_do_not_matter() {
    let mut wires = Packet::wires(&Packet::new(false, true, 4000).segments(1000));
    let mut echo = vec![
        0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 1, 192, 0, 2, 2,
    ];
    echo.extend([8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
    wires.insert(2, echo);
    assert_eq!(joined_wires(&wires), [4, 1]);
    // But what cannot be made sense of may be anything.
    wires[2] = vec![0x12, 0x34];
    assert_eq!(joined_wires(&wires), [2, 1, 2]);
    wires[2] = vec![0x45; 19];
    assert_eq!(joined_wires(&wires), [2, 1, 2]);
}

#[test]
fn offloads_can_be_switched_off() {
    let mut wires = Packet::wires(&Packet::new(false, true, 3000).segments(1000));
    wires.extend(Packet::wires(
        &Packet::new(true, false, 3000).segments(1000),
    ));
    let mut coalescer = Coalescer::new();
    for (tcp, udp, writes) in [
        (true, true, 2),
        (false, true, 4),
        (true, false, 4),
        (false, false, 6),
    ] {
        coalescer.set_offloads(tcp, udp);
        assert_eq!(round_trip(&mut coalescer, &wires, 0).writes, writes);
    }
}

#[test]
fn a_coalescer_is_used_again() {
    let wires = Packet::wires(&Packet::new(false, true, 3000).segments(1000));
    let mut coalescer = Coalescer::default();
    for _ in 0..3 {
        assert_eq!(round_trip(&mut coalescer, &wires, 1).writes, 1);
        assert_eq!(coalescer.packets(), 3);
        coalescer.clear();
        assert_eq!(coalescer.packets(), 0);
        assert_eq!(coalescer.finish(&mut []).count(), 0);
    }
    // Nothing is joined to what has been finished.
    let mut arena = wires.concat();
    let length = wires[0].len();
    coalescer.add(&arena, 0..length);
    assert_eq!(coalescer.finish(&mut arena).len(), 1);
    coalescer.add(&arena, length..2 * length);
    assert_eq!(coalescer.finish(&mut arena).len(), 2);
}

#[test]
fn ranges_outside_of_the_arena_are_not_taken() {
    let mut coalescer = Coalescer::new();
    let mut arena = Packet::new(false, true, 100).wire();
    let length = arena.len();
    #[expect(clippy::reversed_empty_ranges, reason = "it must be survived")]
    for range in [
        0..0,
        length..length,
        0..length + 1,
        length..usize::MAX,
        5..2,
        usize::MAX..usize::MAX,
    ] {
        assert!(!coalescer.add(&arena, range));
    }
    assert_eq!(coalescer.finish(&mut arena).count(), 0);
}

#[test]
fn another_arena_is_survived() {
    let wires = Packet::wires(&Packet::new(false, true, 3000).segments(1000));
    let arena = wires.concat();
    let length = wires[0].len();
    for other in [0, 10, length, arena.len()] {
        let mut other = vec![0; other];
        let mut coalescer = Coalescer::new();
        coalescer.add(&arena, 0..length);
        coalescer.add(&other, length..2 * length);
        coalescer.add(&arena, 2 * length..arena.len());
        coalescer
            .finish(&mut other)
            .for_each(|write| assert!(write.ranges.count() <= 3));
    }
}
