use super::*;
use proptest::prelude::*;

const MS: Micros = 1_000;

/// Packets `numbers` of 1000 bytes, all at `now`.
fn send(recovery: &mut Recovery, numbers: std::ops::Range<u64>, now: Micros) {
    for number in numbers {
        recovery.sent(number, 1000, false, now);
    }
}

fn ack(recovery: &mut Recovery, ranges: &[(u64, u64)], now: Micros) -> Outcome {
    recovery.acked(ranges.iter().copied(), 0, now)
}

#[test]
fn an_acknowledgement_counts_once_however_often_it_is_repeated() {
    let mut recovery = Recovery::new(0);
    send(&mut recovery, 0..10, 0);
    let outcome = ack(&mut recovery, &[(3, 5)], 20 * MS);
    assert_eq!((outcome.acked_packets, outcome.acked_bytes), (3, 3000));
    let outcome = ack(&mut recovery, &[(3, 7)], 21 * MS);
    assert_eq!((outcome.acked_packets, outcome.acked_bytes), (2, 2000));
    let outcome = ack(&mut recovery, &[(3, 7)], 22 * MS);
    assert_eq!((outcome.acked_packets, outcome.lost_packets), (0, 0));
}

#[test]
fn three_newer_ones_acknowledged_make_a_packet_lost() {
    let mut recovery = Recovery::new(100);
    send(&mut recovery, 100..105, 0);
    assert_eq!(ack(&mut recovery, &[(101, 102)], 20 * MS).lost_packets, 0);
    let outcome = ack(&mut recovery, &[(101, 103)], 20 * MS);
    assert_eq!((outcome.lost_packets, outcome.lost_bytes), (1, 1000));
    assert_eq!(recovery.packets_in_flight(), 1);
    assert_eq!(recovery.bytes_in_flight(), 1000);
}

#[test]
fn a_packet_older_than_nine_eighths_of_a_round_trip_is_lost_by_the_timer() {
    let mut recovery = Recovery::new(0);
    send(&mut recovery, 0..2, 0);
    assert_eq!(ack(&mut recovery, &[(1, 1)], 40 * MS).lost_packets, 0);
    assert_eq!(recovery.next_timer(), Some(45 * MS));
    assert_eq!(recovery.on_timer(45 * MS - 1).lost_packets, 0);
    let outcome = recovery.on_timer(45 * MS);
    assert_eq!((outcome.lost_packets, outcome.tail_lost), (1, false));
    assert_eq!(recovery.bytes_in_flight(), 0);
}

#[test]
fn a_tail_without_any_acknowledgement_leaves_the_flight_after_a_second_or_three_ptos() {
    let mut recovery = Recovery::new(0);
    send(&mut recovery, 0..1, 0);
    ack(&mut recovery, &[(0, 0)], 20 * MS);
    send(&mut recovery, 1..4, 100 * MS);
    assert_eq!(
        recovery.next_timer(),
        Some(1100 * MS),
        "3 PTOs are less here"
    );
    assert_eq!(recovery.on_timer(1100 * MS - 1).lost_packets, 0);
    let outcome = recovery.on_timer(1100 * MS);
    assert_eq!((outcome.lost_packets, outcome.tail_lost), (3, true));

    let mut slow = Recovery::new(0);
    send(&mut slow, 0..1, 0);
    ack(&mut slow, &[(0, 0)], 600 * MS);
    send(&mut slow, 1..2, 1000 * MS);
    let pto = slow.rtt().pto();
    assert!(pto > 600 * MS);
    assert_eq!(slow.next_timer(), Some(1000 * MS + 3 * pto));
}

#[test]
fn a_late_acknowledgement_raises_the_thresholds_and_is_counted_apart() {
    let mut recovery = Recovery::new(0);
    send(&mut recovery, 0..100, 0);
    let outcome = ack(&mut recovery, &[(1, 40)], 20 * MS);
    assert_eq!(outcome.lost_packets, 1);
    let outcome = ack(&mut recovery, &[(0, 41)], 21 * MS);
    assert_eq!((outcome.acked_packets, outcome.spurious_packets), (1, 1));
    assert_eq!(recovery.spurious_losses(), 1);
    assert_eq!(recovery.packet_threshold(), 41);
    send(&mut recovery, 100..200, 22 * MS);
    let outcome = ack(&mut recovery, &[(140, 145), (0, 101)], 42 * MS);
    assert_eq!(outcome.lost_packets, 3, "102, 103, 104: 105 may still come");
    assert_eq!(
        recovery.on_timer(22 * MS + 25 * MS - 1).lost_packets,
        0,
        "5/4 RTT now"
    );
    assert_eq!(recovery.on_timer(22 * MS + 26 * MS).lost_packets, 35);
    send(&mut recovery, 200..2000, 60 * MS);
    ack(&mut recovery, &[(1990, 1999)], 80 * MS);
    ack(&mut recovery, &[(200, 1999)], 81 * MS);
    assert_eq!(recovery.packet_threshold(), MAX_PACKET_THRESHOLD);
}

#[test]
fn round_trips_follow_rfc_9002_section_5() {
    let mut recovery = Recovery::new(0);
    send(&mut recovery, 0..1, 0);
    assert_eq!(
        ack(&mut recovery, &[(0, 0)], 40 * MS).rtt_sample,
        Some(40 * MS)
    );
    let rtt = recovery.rtt();
    assert_eq!(
        (rtt.smoothed(), rtt.variance(), rtt.min()),
        (40 * MS, 20 * MS, Some(40 * MS))
    );

    send(&mut recovery, 1..2, 100 * MS);
    let outcome = recovery.acked([(1, 1)], 8 * MS, 156 * MS);
    assert_eq!(outcome.rtt_sample, Some(48 * MS), "without the delay");
    assert_eq!(recovery.rtt().smoothed(), 41 * MS);
    assert_eq!(recovery.rtt().variance(), 17 * MS);
    assert_eq!(recovery.rtt().latest(), 56 * MS);

    send(&mut recovery, 2..3, 200 * MS);
    let outcome = recovery.acked([(2, 2)], 100 * MS, 270 * MS);
    assert_eq!(
        outcome.rtt_sample,
        Some(45 * MS),
        "no more than max_ack_delay"
    );

    send(&mut recovery, 3..4, 300 * MS);
    let outcome = recovery.acked([(3, 3)], 20 * MS, 345 * MS);
    assert_eq!(outcome.rtt_sample, Some(45 * MS), "not below the least");
    assert_eq!(recovery.rtt().min(), Some(40 * MS));
}

#[test]
fn only_the_largest_gives_a_round_trip_and_only_once() {
    let mut recovery = Recovery::new(0);
    send(&mut recovery, 0..5, 0);
    assert_eq!(
        ack(&mut recovery, &[(4, 4)], 10 * MS).rtt_sample,
        Some(10 * MS)
    );
    assert_eq!(ack(&mut recovery, &[(3, 4)], 30 * MS).rtt_sample, None);
}

#[test]
fn below_the_largest_a_round_trip_is_an_upper_bound() {
    let mut recovery = Recovery::new(0);
    send(&mut recovery, 0..1, 0);
    ack(&mut recovery, &[(0, 0)], 20 * MS);
    // Number 2 is an ACK-only packet: it may have waited at the peer.
    send(&mut recovery, 1..2, 100 * MS);
    assert_eq!(ack(&mut recovery, &[(0, 2)], 150 * MS).rtt_sample, None);
    send(&mut recovery, 3..4, 200 * MS);
    assert_eq!(
        ack(&mut recovery, &[(0, 4)], 212 * MS).rtt_sample,
        Some(12 * MS)
    );
}

#[test]
fn numbers_of_the_stack_are_reported_once_and_never_counted() {
    let mut recovery = Recovery::new(0);
    send(&mut recovery, 0..3, 0);
    recovery.stack_sent(3, 4);
    recovery.stack_sent(5, 5);
    send(&mut recovery, 7..10, 0);
    recovery.stack_sent(10, 10);
    let outcome = ack(&mut recovery, &[(8, 10), (4, 4), (0, 1)], 20 * MS);
    assert_eq!(outcome.acked_packets, 4);
    assert_eq!(outcome.stack_acked, [(10, 10), (4, 4)]);
    let outcome = ack(&mut recovery, &[(8, 10), (3, 5), (0, 1)], 21 * MS);
    assert_eq!(outcome.stack_acked, [(3, 3), (5, 5)]);
    assert_eq!(outcome.acked_packets, 0);
    assert!(
        ack(&mut recovery, &[(0, 10)], 22 * MS)
            .stack_acked
            .is_empty()
    );
}

#[test]
fn the_latest_1024_numbers_of_the_stack_are_remembered() {
    let mut recovery = Recovery::new(0);
    for number in 0..2000 {
        recovery.stack_sent(2 * number, 2 * number);
    }
    let outcome = ack(&mut recovery, &[(0, 3998)], 0);
    assert_eq!(outcome.stack_acked.len(), 1024);
    assert_eq!(outcome.stack_acked[0], (1952, 1952));
    recovery.stack_sent(5000, 9000);
    assert_eq!(
        ack(&mut recovery, &[(0, 9999)], 1).stack_acked,
        [(7977, 9000)]
    );
}

#[test]
fn numbers_of_the_stack_that_nobody_acknowledges_are_forgotten_in_time() {
    let mut recovery = Recovery::new(0);
    ack(&mut recovery, &[(0, 0)], 0);
    for second in 0..20 {
        recovery.stack_sent(second * 10, second * 10);
        recovery.stack_sent(second * 10 + 2, second * 10 + 2);
        ack(
            &mut recovery,
            &[(second * 10 + 2, second * 10 + 2)],
            second * 1000 * MS,
        );
    }
    let outcome = ack(&mut recovery, &[(0, 1000)], 20_000 * MS);
    assert!(outcome.stack_acked.len() < 15);
}

#[test]
fn large_packets_lost_in_a_row_are_counted_until_one_is_acknowledged() {
    let mut recovery = Recovery::new(0);
    for number in 0..20 {
        recovery.sent(number, 1400, number % 2 == 0, 0);
    }
    let odd: Vec<_> = (0..10).rev().map(|n| (2 * n + 1, 2 * n + 1)).collect();
    assert_eq!(ack(&mut recovery, &odd, 20 * MS).large_lost_in_a_row, 9);
    assert_eq!(recovery.on_timer(100 * MS).large_lost_in_a_row, 10);
    for number in 20..40 {
        recovery.sent(number, 1400, true, 200 * MS);
    }
    let outcome = ack(&mut recovery, &[(30, 30)], 220 * MS);
    assert_eq!(outcome.lost_packets, 8);
    assert_eq!(
        outcome.large_lost_in_a_row, 0,
        "what was lost is older than what came"
    );
}

#[test]
fn another_path_begins_with_nothing() {
    let mut recovery = Recovery::new(0);
    send(&mut recovery, 0..10, 0);
    ack(&mut recovery, &[(0, 0)], 20 * MS);
    assert_eq!(recovery.begin_path(25 * MS), (9, 9000));
    assert_eq!(recovery.rtt().min(), None);
    assert_eq!(recovery.bytes_in_flight(), 0);
    let outcome = ack(&mut recovery, &[(0, 9)], 40 * MS);
    assert_eq!(outcome, Outcome::default(), "old packets say nothing here");
    send(&mut recovery, 10..11, 50 * MS);
    assert_eq!(
        ack(&mut recovery, &[(0, 10)], 53 * MS).rtt_sample,
        Some(3 * MS)
    );
}

#[test]
fn what_falls_out_of_the_window_is_lost() {
    let mut recovery = Recovery::new(0);
    send(&mut recovery, 0..10, 0);
    assert_eq!(recovery.room(), WINDOW - BLOCK - 10);
    send(&mut recovery, WINDOW..WINDOW + 1, MS);
    assert_eq!(recovery.packets_in_flight(), 1);
    assert_eq!(recovery.next_timer(), Some(MS), "at once");
    assert_eq!(recovery.on_timer(MS).lost_packets, 10);
    send(&mut recovery, 1 << 50..(1 << 50) + 5, MS);
    let outcome = ack(&mut recovery, &[(0, 1 << 51)], 2 * MS);
    assert_eq!((outcome.lost_packets, outcome.acked_packets), (1, 5));
}

#[test]
fn numbers_that_do_not_rise_are_ignored() {
    let mut recovery = Recovery::new(5);
    send(&mut recovery, 0..5, 0);
    assert_eq!(recovery.packets_in_flight(), 0);
    send(&mut recovery, 5..7, 0);
    send(&mut recovery, 6..7, 0);
    send(&mut recovery, u64::MAX..u64::MAX, 0);
    recovery.sent(u64::MAX, 9, false, 0);
    assert_eq!(recovery.packets_in_flight(), 2);
}

#[test]
fn a_peer_that_acknowledges_what_nobody_sent_does_no_harm_to_later_packets() {
    let mut recovery = Recovery::new(0);
    send(&mut recovery, 0..5, 0);
    ack(&mut recovery, &[(0, u64::MAX)], 20 * MS);
    send(&mut recovery, 5..10, 30 * MS);
    assert_eq!(ack(&mut recovery, &[(0, 4)], 40 * MS).lost_packets, 0);
    assert_eq!(recovery.packets_in_flight(), 5);
}

#[test]
fn the_delivery_rate_is_what_arrived_over_the_longer_of_sending_and_acknowledging() {
    // 10 packets of 1000 bytes, one per millisecond, each acknowledged after 20 ms.
    let mut recovery = Recovery::new(0);
    let mut rate = None;
    for tick in 0..200 {
        let now = tick * MS;
        if let Some(number) = tick.checked_sub(20) {
            rate = ack(&mut recovery, &[(0, number)], now).rate;
        }
        recovery.sent(tick, 1000, false, now);
    }
    let rate = rate.expect("packets were acknowledged");
    assert!((950_000..=1_050_000).contains(&rate.rate()), "{rate:?}");
    assert!(!rate.app_limited);
    assert_eq!(rate.in_flight, 20_000);
}

#[test]
fn samples_are_app_limited_until_what_was_in_flight_then_is_delivered() {
    let mut recovery = Recovery::new(0);
    send(&mut recovery, 0..2, 0);
    recovery.app_limited();
    send(&mut recovery, 2..3, 50 * MS);
    let outcome = ack(&mut recovery, &[(0, 1)], 51 * MS);
    assert!(!outcome.rate.expect("a sample").app_limited);
    send(&mut recovery, 3..4, 52 * MS);
    let outcome = ack(&mut recovery, &[(0, 3)], 72 * MS);
    assert!(outcome.rate.expect("a sample").app_limited);
    send(&mut recovery, 4..5, 73 * MS);
    let outcome = ack(&mut recovery, &[(0, 4)], 93 * MS);
    assert!(!outcome.rate.expect("a sample").app_limited);
}

#[test]
fn a_full_window_costs_four_bytes_a_packet_and_an_idle_session_next_to_nothing() {
    let mut recovery = Recovery::new(0);
    recovery.hint_rtt(40 * MS);
    for number in 0..WINDOW {
        recovery.sent(number, 1400, true, number * 2);
    }
    assert_eq!(u64::from(recovery.packets_in_flight()), WINDOW);
    assert!(
        (recovery.memory() as u64) < 4 * WINDOW,
        "{}",
        recovery.memory()
    );
    ack(&mut recovery, &[(0, WINDOW)], 80 * MS);
    let idle = recovery.next_timer().expect("memory to give back");
    recovery.on_timer(idle);
    assert_eq!(recovery.next_timer(), None);
    assert!(recovery.memory() < 1024, "{}", recovery.memory());
    recovery.sent(WINDOW, 1400, true, 9_000 * MS);
    assert!(recovery.memory() < 2048, "{}", recovery.memory());
}

#[test]
fn each_packet_of_a_batch_has_its_size() {
    let mut recovery = Recovery::new(60);
    recovery.sent_batch(60, 10, 1400, 333, true, 0);
    assert_eq!(recovery.bytes_in_flight(), 9 * 1400 + 333);
    assert_eq!(ack(&mut recovery, &[(60, 61)], MS).acked_bytes, 2800);
    assert_eq!(
        ack(&mut recovery, &[(60, 69)], MS).acked_bytes,
        7 * 1400 + 333
    );
    recovery.sent_batch(70, 0, 1400, 333, true, 0);
    assert_eq!(recovery.bytes_in_flight(), 0);
}

/// A naive twin: every packet in a map.
#[derive(Default)]
struct Model {
    sizes: std::collections::BTreeMap<u64, u64>,
    acked: (u64, u64),
    lost: (u64, u64),
    forgotten: (u64, u64),
}

#[derive(Clone, Debug)]
enum Step {
    Send {
        gap: u64,
        count: u16,
        bytes: u16,
        last: u16,
        large: bool,
    },
    Stack {
        count: u64,
    },
    /// Ranges as distances back from the newest number: gap and length.
    Ack {
        back: u64,
        ranges: Vec<(u64, u64)>,
        delay: Micros,
    },
    Timer,
    Wait {
        time: Micros,
    },
    AppLimited,
    Path,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let gap = prop_oneof![8 => Just(0u64), 4 => 0..5u64, 1 => 0..40_000u64];
    let ranges = prop::collection::vec((1..30u64, 0..100u64), 1..12);
    let step = prop_oneof![
        10 => (gap, 0..70u16, any::<u16>(), any::<u16>(), any::<bool>()).prop_map(
            |(gap, count, bytes, last, large)| Step::Send { gap, count, bytes, last, large }
        ),
        2 => (0..20u64).prop_map(|count| Step::Stack { count }),
        10 => (0..50u64, ranges, 0..50_000u64)
            .prop_map(|(back, ranges, delay)| Step::Ack { back, ranges, delay }),
        2 => Just(Step::Timer),
        8 => prop_oneof![0..2_000u64, 0..100_000u64, 0..5_000_000u64]
            .prop_map(|time| Step::Wait { time }),
        1 => Just(Step::AppLimited),
        1 => Just(Step::Path),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #[test]
    fn every_packet_is_acknowledged_lost_or_forgotten_exactly_once(steps in steps()) {
        let mut recovery = Recovery::new(0);
        let mut model = Model::default();
        let mut next = 0;
        let mut now = 0;
        let mut spurious = 0;
        for step in steps {
            let outcome = match step {
                Step::Send { gap, count, bytes, last, large } => {
                    next += gap;
                    recovery.sent_batch(next, count, bytes, last, large, now);
                    for number in 0..u64::from(count) {
                        let size = if number + 1 == u64::from(count) { last } else { bytes };
                        model.sizes.insert(next + number, u64::from(size));
                    }
                    next += u64::from(count);
                    Outcome::default()
                }
                Step::Stack { count } => {
                    if count > 0 {
                        recovery.stack_sent(next, next + count - 1);
                        next += count;
                    }
                    Outcome::default()
                }
                Step::Ack { back, ranges, delay } => {
                    let mut top = next.saturating_sub(back);
                    let mut list = Vec::new();
                    for (gap, length) in ranges {
                        list.push((top.saturating_sub(length), top));
                        top = top.saturating_sub(length + gap);
                    }
                    recovery.acked(list, delay, now)
                }
                Step::Timer => recovery.on_timer(now),
                Step::Wait { time } => {
                    now += time;
                    Outcome::default()
                }
                Step::AppLimited => {
                    recovery.app_limited();
                    Outcome::default()
                }
                Step::Path => {
                    let (packets, bytes) = recovery.begin_path(now);
                    model.forgotten.0 += u64::from(packets);
                    model.forgotten.1 += bytes;
                    Outcome::default()
                }
            };
            model.acked.0 += u64::from(outcome.acked_packets);
            model.acked.1 += outcome.acked_bytes;
            model.lost.0 += u64::from(outcome.lost_packets);
            model.lost.1 += outcome.lost_bytes;
            spurious += u64::from(outcome.spurious_packets);
            prop_assert!(spurious <= model.lost.0);
            let pending = (u64::from(recovery.pending.lost_packets), recovery.pending.lost_bytes);
            let packets = model.acked.0 + model.lost.0 + model.forgotten.0 + pending.0
                + u64::from(recovery.packets_in_flight());
            let bytes = model.acked.1 + model.lost.1 + model.forgotten.1 + pending.1
                + recovery.bytes_in_flight();
            prop_assert_eq!(packets, model.sizes.len() as u64);
            prop_assert_eq!(bytes, model.sizes.values().sum::<u64>());
            let bits: u32 = recovery.blocks.iter().map(|block| block.in_flight.count_ones()).sum();
            let held: u32 = recovery.blocks.iter().map(|block| block.lost.count_ones()).sum();
            prop_assert_eq!(bits, recovery.packets);
            prop_assert_eq!(held, recovery.lost_held);
            prop_assert!(recovery.blocks.len() as u64 <= MAX_BLOCKS);
        }
        // Whatever is left leaves the flight by the timer alone, and the timer comes to rest.
        for _ in 0..10_000 {
            let Some(timer) = recovery.next_timer() else { break };
            now = now.max(timer);
            recovery.on_timer(now);
        }
        prop_assert_eq!(recovery.packets_in_flight(), 0);
        prop_assert_eq!(recovery.next_timer(), None);
        prop_assert!(recovery.memory() < 20_000);
    }

    #[test]
    fn numbers_of_the_stack_are_a_set(
        steps in prop::collection::vec((0..4u64, 1..6u64, 0..60u64, 0..30u64), 1..200),
    ) {
        let mut recovery = Recovery::new(0);
        let mut next = 0;
        let mut expected = std::collections::BTreeSet::new();
        for (gap, count, back, length) in steps {
            next += gap;
            recovery.stack_sent(next, next + count - 1);
            expected.extend(next..next + count);
            next += count;
            let top = next.saturating_sub(back);
            let bottom = top.saturating_sub(length);
            // Now is always 0: nothing ages.
            let outcome = recovery.acked([(bottom, top)], 0, 0);
            let got: std::collections::BTreeSet<u64> =
                outcome.stack_acked.iter().flat_map(|&(low, high)| low..=high).collect();
            let want: std::collections::BTreeSet<u64> =
                expected.range(bottom..=top).copied().collect();
            expected.retain(|number| !want.contains(number));
            prop_assert_eq!(got, want);
        }
    }

    #[test]
    fn no_acknowledgement_panics(
        ranges in prop::collection::vec((any::<u64>(), any::<u64>()), 0..20),
        delay in any::<u64>(),
        now in any::<u64>(),
    ) {
        let mut recovery = Recovery::new(7);
        recovery.sent_batch(7, 300, 1400, 3, true, now / 2);
        recovery.stack_sent(400, 500);
        let outcome = recovery.acked(ranges, delay, now);
        prop_assert!(outcome.acked_packets <= 300);
        recovery.on_timer(now);
        recovery.next_timer();
        recovery.on_timer(u64::MAX);
        recovery.next_timer();
        prop_assert_eq!(recovery.packets_in_flight(), 0);
    }
}
