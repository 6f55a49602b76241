//! What holds for any packets, and for any bytes.

use proptest::prelude::*;
use qvpn_datapath::offload::{Coalescer, MAX_SEGMENTS, VnetHeader, checksum};

use crate::coalesce::joined;
use crate::harness::{self, cut, round_trip, slow_checksum};
use crate::packet::{ACK, PSH, Packet, bytes, shapes};

fn any_flow() -> impl Strategy<Value = Packet> {
    let shapes = shapes();
    (
        0..shapes.len(),
        (0_u8..2, 0_u8..2),
        (0_u16..3, 0_u16..2),
        prop_oneof![Just(0xffff_u16), any::<u16>()],
        prop_oneof![Just(u32::MAX - 700), any::<u32>()],
        prop_oneof![4 => Just(0_u8), 1 => any::<u8>()],
        prop_oneof![4 => Just(0x4000_u16), 2 => Just(0), 1 => any::<u16>()],
    )
        .prop_map(
            move |(shape, hosts, ports, id, sequence, tos, fragment)| Packet {
                hosts,
                ports,
                tos,
                id,
                fragment,
                sequence,
                ..shapes[shape].clone()
            },
        )
}

/// What happens to a flow next.
#[derive(Clone, Debug)]
struct Step {
    flow: usize,
    payload: usize,
    seed: u32,
    mishap: Mishap,
}

#[derive(Clone, Debug)]
enum Mishap {
    None,
    Push,
    Flags(u8),
    Lost,
    Again,
    Marked,
    Damaged(usize, u8),
    Cut(usize),
    Padded,
    Field(u8),
    OtherZero,
    Unchecked,
}

fn any_step() -> impl Strategy<Value = Step> {
    let mishap = prop_oneof![
        24 => Just(Mishap::None),
        2 => Just(Mishap::Push),
        1 => any::<u8>().prop_map(Mishap::Flags),
        1 => Just(Mishap::Lost),
        1 => Just(Mishap::Again),
        1 => Just(Mishap::Marked),
        1 => (any::<usize>(), 1_u8..).prop_map(|(at, bits)| Mishap::Damaged(at, bits)),
        1 => any::<usize>().prop_map(Mishap::Cut),
        1 => Just(Mishap::Padded),
        1 => any::<u8>().prop_map(Mishap::Field),
        1 => Just(Mishap::OtherZero),
        1 => Just(Mishap::Unchecked),
    ];
    let payload = prop_oneof![8 => Just(200_usize), 1 => Just(199), 1 => Just(0), 1 => 0_usize..400, 1 => Just(20_000)];
    (any::<usize>(), payload, any::<u32>(), mishap).prop_map(|(flow, payload, seed, mishap)| Step {
        flow,
        payload,
        seed,
        mishap,
    })
}

/// Plays the steps and gives the packets in the order in which they arrive.
fn play(flows: &mut [Packet], steps: &[Step]) -> Vec<Vec<u8>> {
    let mut wires = Vec::new();
    for step in steps {
        let index = step.flow % flows.len();
        let flow = &mut flows[index];
        let mut packet = flow.clone();
        packet.payload = bytes(step.payload, step.seed);
        if !matches!(step.mishap, Mishap::Again) {
            flow.id = flow.id.wrapping_add(1);
            flow.sequence = flow.sequence.wrapping_add(step.payload as u32);
        }
        match step.mishap {
            Mishap::Push => packet.flags |= PSH,
            Mishap::Flags(flags) => packet.flags = flags,
            Mishap::Lost => continue,
            Mishap::Marked => packet.tos |= 3,
            Mishap::Unchecked => packet.unchecked = true,
            Mishap::Field(0..50) => packet.window ^= 1,
            Mishap::Field(50..100) => packet.acknowledgement ^= 1,
            Mishap::Field(100..150) => packet.ttl -= 1,
            Mishap::Field(150..200) => packet.urgent ^= 1,
            Mishap::Field(_) => packet.fragment ^= 0x4000,
            _ => {}
        }
        let mut wire = packet.wire();
        match step.mishap {
            Mishap::Damaged(at, bits) => {
                let at = at % wire.len();
                // Not what makes it another packet altogether.
                if at > 0 {
                    wire[at] ^= bits;
                }
            }
            Mishap::Cut(at) => wire.truncate(at % wire.len() + 1),
            Mishap::Padded => wire.push(0),
            Mishap::OtherZero if packet.tcp => {
                let field = packet.ip_len() + 16;
                if wire[field..field + 2] == [0, 0] {
                    wire[field..field + 2].fill(0xff);
                }
            }
            _ => {}
        }
        wires.push(wire);
    }
    wires
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 150 } else { 3000 }))]

    #[test]
    fn coalesced_and_cut_is_the_same(
        mut flows in prop::collection::vec(any_flow(), 1..6),
        steps in prop::collection::vec(any_step(), 0..150),
        gap in 0_usize..40,
    ) {
        let wires = play(&mut flows, &steps);
        round_trip(&mut Coalescer::new(), &wires, gap);
    }

    #[test]
    fn runs_are_joined_as_far_as_can_be(
        flow in any_flow(),
        size in 1_usize..1500,
        count in 1_usize..200,
        last in 1_usize..1500,
    ) {
        let flow = Packet { fragment: 0x4000, ..flow };
        let last = last.min(size);
        let payload = bytes(size * (count - 1) + last, 1);
        let packets: Vec<Packet> = {
            // Longer than one packet can say, so count by hand.
            payload.chunks(size).enumerate().map(|(index, chunk)| Packet {
                payload: chunk.to_vec(),
                id: flow.id.wrapping_add(index as u16),
                sequence: flow.sequence.wrapping_add((index * size) as u32),
                ..flow.clone()
            }).collect()
        };
        let fit = MAX_SEGMENTS.min((65_535 - flow.header_len()) / size);
        let joined = joined(&packets);
        // The last of one may be short enough to fit where a full one does not.
        prop_assert!(joined.len() <= count.div_ceil(fit));
        prop_assert!(joined.iter().rev().skip(1).all(|&packets| packets == fit));
    }

    #[test]
    fn cut_and_coalesced_is_the_same(
        flow in any_flow(),
        size in 1_usize..3000,
        count in 2_usize..=MAX_SEGMENTS,
        push in any::<bool>(),
    ) {
        let room = 65_535 - flow.header_len();
        let payload = bytes((size * count).min(room), 3);
        prop_assume!(payload.len() > size);
        let flags = if push { ACK | PSH } else { ACK };
        let packet = Packet { fragment: 0x4000, payload, flags, ..flow };
        let cut = cut(&packet.header(size), &packet.partial()).unwrap();
        let mut arena = cut.concat();
        let mut coalescer = Coalescer::new();
        let mut at = 0;
        for segment in &cut {
            coalescer.add(&arena, at..at + segment.len());
            at += segment.len();
        }
        let writes: Vec<_> = coalescer.finish(&mut arena).collect();
        prop_assert_eq!(writes.len(), 1);
        prop_assert_eq!(writes[0].header, packet.header(size));
        let gathered: Vec<u8> =
            writes[0].ranges.clone().flat_map(|range| arena[range].to_vec()).collect();
        prop_assert_eq!(gathered, packet.partial());
    }

    #[test]
    fn any_bytes_are_survived(data in prop::collection::vec(any::<u8>(), 0..400)) {
        harness::segments(&data);
        harness::coalescer(&data);
    }

    #[test]
    fn any_header_before_a_packet_is_survived(
        flow in any_flow(),
        payload in 0_usize..3000,
        header in any::<[u8; VnetHeader::LEN]>(),
        gso_type in prop_oneof![Just(0_u8), Just(1), Just(4), Just(5), any::<u8>()],
        truncate in prop_oneof![3 => Just(usize::MAX), 1 => 0_usize..200],
        change in prop::option::of((0_usize..60, any::<u8>())),
    ) {
        let mut data = header.to_vec();
        data[1] = gso_type;
        data.extend(Packet { payload: bytes(payload, 1), ..flow }.partial());
        if let Some((at, value)) = change {
            data[VnetHeader::LEN + at % 20] = value;
        }
        data.truncate(truncate);
        harness::segments(&data);
        harness::coalescer(&data);
    }

    #[test]
    fn mutated_packets_are_survived(
        instructions in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..6)), 0..80),
        flow in any_flow(),
    ) {
        let mut data = vec![0];
        let wire = Packet { payload: bytes(80, 1), ..flow }.wire();
        data.push(wire.len() as u8);
        data.extend(&wire[..wire.len().min(255)]);
        for (how, changes) in instructions {
            data.push(how);
            data.push(changes.len() as u8);
            data.extend(changes);
        }
        harness::coalescer(&data);
    }

    #[test]
    fn checksum_of_any_bytes(data in prop::collection::vec(any::<u8>(), 0..3000), split in any::<usize>()) {
        let expected = slow_checksum(&[&data]).to_be_bytes();
        prop_assert_eq!(checksum::checksum(checksum::sum(&data)), expected);
        let mut copy = vec![0; data.len()];
        prop_assert_eq!(checksum::checksum(checksum::copy_and_sum(&data, &mut copy)), expected);
        prop_assert_eq!(&copy, &data);
        // Pieces of even length add up.
        let at = (split % (data.len() + 1)) & !1;
        let sum = checksum::sum(&data[..at]) + checksum::sum(&data[at..]);
        prop_assert_eq!(checksum::checksum(sum), expected);
    }
}
