use super::*;
use proptest::prelude::*;

const MS: Micros = 1_000;
const SEED: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];

fn checksum(header: &[u8]) -> u16 {
    let mut sum: u32 = header
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// An IPv4 UDP packet of a flow, with an ECN field.
fn packet4(port: u16, size: usize, ecn: u8) -> Vec<u8> {
    let mut packet = vec![0; size.max(28)];
    packet[0] = 0x45;
    packet[1] = ecn;
    packet[2..4].copy_from_slice(&(size as u16).to_be_bytes());
    packet[8] = 64;
    packet[9] = 17;
    packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    let sum = !checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn packet6(port: u16, size: usize, ecn: u8) -> Vec<u8> {
    let mut packet = vec![0; size.max(48)];
    packet[0] = 0x60;
    packet[1] = ecn << 4;
    packet[6] = 6;
    packet[8] = 0xfd;
    packet[24] = 0xfd;
    packet[40..42].copy_from_slice(&port.to_be_bytes());
    packet
}

fn port(packet: &[u8]) -> u16 {
    u16::from_be_bytes([packet[20], packet[21]])
}

fn queue() -> FqCodel<Vec<u8>> {
    FqCodel::new(Config::default(), SEED)
}

#[test]
fn packets_of_one_flow_leave_in_the_order_in_which_they_came() {
    let mut queue = queue();
    for size in 100..110 {
        queue.enqueue(packet4(1, size, 0), 0);
    }
    assert_eq!((queue.len(), queue.bytes(), queue.flows()), (10, 1045, 1));
    assert_eq!(queue.peek(), Some(100));
    for size in 100..110 {
        assert_eq!(queue.dequeue(0).map(|packet| packet.len()), Some(size));
    }
    assert_eq!(queue.dequeue(0), None);
    assert_eq!((queue.len(), queue.bytes(), queue.flows()), (0, 0, 0));
}

#[test]
fn flows_get_equal_bytes_and_not_equal_packets() {
    let mut queue = queue();
    for _ in 0..500 {
        queue.enqueue(packet4(1, 1400, 0), 0);
        queue.enqueue(packet4(2, 350, 0), 0);
    }
    let mut bytes = [0; 3];
    for _ in 0..400 {
        let packet = queue.dequeue(0).expect("1000 wait");
        bytes[usize::from(port(&packet))] += packet.len();
    }
    let (a, b) = (bytes[1] as f64, bytes[2] as f64);
    assert!((0.95..1.05).contains(&(a / b)), "{bytes:?}");
}

#[test]
fn a_sparse_flow_does_not_wait_behind_bulk() {
    let mut queue = queue();
    for _ in 0..1000 {
        queue.enqueue(packet4(1, 1400, 0), 0);
    }
    for _ in 0..10 {
        assert_eq!(queue.dequeue(0).map(|packet| port(&packet)), Some(1));
    }
    queue.enqueue(packet4(2, 84, 0), 0);
    let next: Vec<_> = (0..2)
        .filter_map(|_| queue.dequeue(0))
        .map(|p| port(&p))
        .collect();
    assert!(next.contains(&2), "{next:?}");
}

#[test]
fn a_flow_with_one_packet_at_a_time_is_not_always_first() {
    let mut queue = queue();
    for _ in 0..100 {
        queue.enqueue(packet4(1, 1400, 0), 0);
    }
    let mut first = 0;
    for _ in 0..40 {
        if !queue
            .index
            .iter()
            .any(|&(_, at)| queue.flows[at as usize].packets < 10)
        {
            queue.enqueue(packet4(2, 1400, 0), 0);
        }
        if queue.dequeue(0).map(|packet| port(&packet)) == Some(2) {
            first += 1;
        }
    }
    assert!((10..=21).contains(&first), "{first} of 40");
}

/// Offers `rate` packets a millisecond for `time` while one a millisecond leaves.
fn overload(ecn: u8, time: u64) -> (FqCodel<Vec<u8>>, u64, Micros) {
    let mut queue = queue();
    let mut marked = 0;
    let mut sojourn = 0;
    for tick in 0..time {
        let now = tick * MS;
        for _ in 0..if tick % 10 == 0 { 2 } else { 1 } {
            queue.enqueue(packet4(1, 1400, ecn), now);
        }
        if let Some(&head) = queue.new.front().or(queue.old.front()) {
            sojourn = now - queue.places[queue.flows[head as usize].head as usize].since;
        }
        if let Some(packet) = queue.dequeue(now) {
            assert_eq!(checksum(&packet[..20]), 0xffff);
            marked += u64::from(packet[1] & 3 == 3);
        }
    }
    (queue, marked, sojourn)
}

#[test]
fn a_flow_that_does_not_speak_ecn_loses_packets_that_waited_too_long() {
    let (queue, marked, sojourn) = overload(0, 5_000);
    let counters = queue.counters();
    assert!(counters.codel > 20, "{counters:?}");
    assert_eq!((counters.marked, counters.full, marked), (0, 0, 0));
    assert!(sojourn < 200 * MS, "{sojourn}");
}

#[test]
fn a_flow_that_speaks_ecn_is_marked_and_loses_nothing() {
    for ecn in [1, 2] {
        let (queue, marked, _) = overload(ecn, 5_000);
        let counters = queue.counters();
        assert!(counters.marked > 20, "{counters:?}");
        assert_eq!((counters.codel, counters.full), (0, 0));
        assert_eq!(counters.marked, marked);
    }
}

#[test]
fn a_delay_below_the_target_or_a_short_burst_is_left_alone() {
    let mut queue = queue();
    for tick in 0..3_000 {
        queue.enqueue(packet4(1, 1400, 0), tick * MS);
        queue.enqueue(packet4(1, 1400, 0), tick * MS);
        queue.dequeue(tick * MS + 4 * MS);
        queue.dequeue(tick * MS + 4 * MS);
    }
    for _ in 0..90 {
        queue.enqueue(packet4(1, 1400, 0), 5_000 * MS);
    }
    for tick in 0..90 {
        assert!(queue.dequeue(5_000 * MS + tick * MS).is_some());
    }
    assert_eq!(queue.counters().codel, 0);
}

#[test]
fn the_control_law_drops_faster_and_faster() {
    let config = Config::default();
    let mut codel = Codel::default();
    let drops: Vec<_> = (0..1_000)
        .filter(|tick| codel.judge(50 * MS, false, tick * MS, &config))
        .collect();
    // RFC 8289 section 5.2: 100 ms after it was too much, and then 100 / sqrt(n) apart.
    assert_eq!(drops[..5], [100, 200, 271, 329, 379]);
}

#[test]
fn a_full_queue_drops_from_the_fattest_flow_and_its_oldest() {
    let mut queue = queue();
    for size in 0..1024 {
        queue.enqueue(packet4(1, 1000 + size / 4, 0), 0);
    }
    for port in 2..102 {
        queue.enqueue(packet4(port, 100, 0), 0);
    }
    assert_eq!((queue.len(), queue.counters().full), (1024, 100));
    assert!(queue.recycled().is_some());
    let mut seen = std::collections::BTreeMap::new();
    let mut first = None;
    while let Some(packet) = queue.dequeue(0) {
        if port(&packet) == 1 {
            first.get_or_insert(packet.len());
        }
        *seen.entry(port(&packet)).or_insert(0) += 1;
    }
    assert_eq!(seen.len(), 101, "no small flow lost its packet");
    assert_eq!(seen[&1], 924);
    assert_eq!(first, Some(1025));
}

#[test]
fn bytes_are_bounded_too() {
    let config = Config {
        bytes: 10_000,
        ..Config::default()
    };
    let mut queue = FqCodel::new(config, SEED);
    for _ in 0..20 {
        queue.enqueue(packet4(1, 1400, 0), 0);
    }
    assert_eq!((queue.len(), queue.bytes()), (7, 9800));
    queue.enqueue(packet4(1, 10_001, 0), 0);
    assert_eq!(queue.counters().full, 14);
}

#[test]
fn an_idle_queue_costs_next_to_nothing() {
    let mut queue = queue();
    assert!(queue.memory() < 512, "{}", queue.memory());
    for port in 0..2_000 {
        queue.enqueue(packet4(port, 100, 0), 0);
    }
    assert!(queue.memory() < 320 << 10, "{}", queue.memory());
    while queue.dequeue(0).is_some() {}
    queue.shrink();
    assert!(queue.memory() < 512, "{}", queue.memory());
    for _ in 0..10 {
        queue.enqueue(packet4(1, 100, 0), 0);
        queue.dequeue(0);
    }
    assert!(queue.memory() < 4096, "{}", queue.memory());
}

#[test]
fn what_makes_a_flow() {
    let hash = |packet: &[u8]| flow_hash(packet, SEED);
    let base = packet4(1, 100, 0);
    assert_eq!(
        hash(&base),
        hash(&packet4(1, 1400, 3)),
        "neither size nor ECN"
    );
    assert_ne!(hash(&base), flow_hash(&base, [1, 2]), "but the seed");
    for (at, why) in [
        (9, "protocol"),
        (12, "source"),
        (19, "destination"),
        (20, "source port"),
        (23, "destination port"),
    ] {
        let mut other = base.clone();
        other[at] ^= 0x10;
        assert_ne!(hash(&base), hash(&other), "{why}");
    }
    let mut fragment = base.clone();
    fragment[6] = 0x20;
    let mut later = fragment.clone();
    later[20] = 99;
    assert_eq!(hash(&fragment), hash(&later), "fragments have no ports");

    let plain = packet6(7, 100, 0);
    let mut extended = plain.clone();
    extended[6] = 0;
    extended.splice(40..40, [6, 1].into_iter().chain([0; 14]));
    assert_eq!(hash(&plain), hash(&extended), "behind extension headers");
    assert_ne!(hash(&plain), hash(&packet6(8, 100, 0)));
    assert_eq!(hash(&[]), hash(&[0xff; 40]), "all that is not IP");
}

#[test]
fn only_ecn_capable_packets_are_marked() {
    for ecn in 0..4 {
        let mut four = packet4(1, 100, ecn);
        assert_eq!(mark_ce(&mut four), ecn != 0);
        assert_eq!(four[1] & 3, if ecn == 0 { 0 } else { 3 });
        assert_eq!(checksum(&four[..20]), 0xffff);
        let mut six = packet6(1, 100, ecn);
        assert_eq!(mark_ce(&mut six), ecn != 0);
        assert_eq!(six[1] >> 4 & 3, if ecn == 0 { 0 } else { 3 });
    }
    assert!(!mark_ce(&mut [0x45, 2, 0, 0]), "too short");
    assert!(!mark_ce(&mut []));
}

#[test]
fn a_flood_of_flows_has_a_bound() {
    let mut queue = queue();
    for port in 0..20_000 {
        queue.enqueue(packet4(port, 100, 0), 0);
    }
    assert_eq!((queue.len(), queue.flows()), (1024, 1024));
    for port in 20_000..60_000 {
        queue.enqueue(packet4(port, 100, 0), 0);
        queue.dequeue(0);
    }
    assert!(queue.flows() <= 2 * 1024 + 1, "{}", queue.flows());
    assert!(queue.memory() < 512 << 10, "{}", queue.memory());
}

#[derive(Clone, Debug)]
enum Step {
    Enqueue {
        port: u16,
        size: usize,
        ecn: u8,
        six: bool,
    },
    Dequeue,
    Wait {
        time: Micros,
    },
    Shrink,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => (0..30u16, 20..1600usize, 0..4u8, any::<bool>())
            .prop_map(|(port, size, ecn, six)| Step::Enqueue { port, size, ecn, six }),
        8 => Just(Step::Dequeue),
        4 => (0..50_000u64).prop_map(|time| Step::Wait { time }),
        1 => Just(Step::Shrink),
    ];
    prop::collection::vec(step, 1..400)
}

proptest! {
    #[test]
    fn every_packet_leaves_or_is_counted_as_dropped(
        steps in steps(), packets in 0..50usize, bytes in 0..30_000usize,
    ) {
        let config = Config { packets, bytes, ..Config::default() };
        let mut queue = FqCodel::new(config, SEED);
        let mut now = 0;
        for step in steps {
            match step {
                Step::Enqueue { port, size, ecn, six } => {
                    let packet = if six { packet6(port, size, ecn) } else { packet4(port, size, ecn) };
                    queue.enqueue(packet, now);
                }
                Step::Dequeue => {
                    let expected = queue.peek().is_some();
                    let packet = queue.dequeue(now);
                    prop_assert!(packet.is_none() || expected);
                }
                Step::Wait { time } => now += time,
                Step::Shrink => queue.shrink(),
            }
            let counters = queue.counters();
            let gone = counters.dequeued + counters.codel + counters.full;
            prop_assert_eq!(counters.enqueued, gone + queue.len() as u64);
            prop_assert!(queue.len() <= packets && queue.bytes() <= bytes);
            prop_assert_eq!(queue.is_empty(), queue.bytes() == 0);
            let waiting: usize =
                queue.places.iter().filter_map(|place| place.packet.as_ref()).map(Vec::len).sum();
            prop_assert_eq!(waiting, queue.bytes());
            prop_assert!(queue.flows() >= usize::from(!queue.is_empty()));
            prop_assert_eq!(queue.index.len(), queue.new.len() + queue.old.len());
        }
        while queue.dequeue(now).is_some() {}
        prop_assert_eq!((queue.len(), queue.bytes(), queue.flows()), (0, 0, 0));
    }

    #[test]
    fn no_header_panics(mut packet in prop::collection::vec(any::<u8>(), 0..120)) {
        flow_hash(&packet, SEED);
        mark_ce(&mut packet);
        if let Some(first) = packet.first_mut() {
            *first = *first & 0xf | 0x60;
        }
        flow_hash(&packet, SEED);
        mark_ce(&mut packet);
    }
}
