use super::sim::{Acks, Ecn, Kind, Path, Sim, Source};
use super::*;
use proptest::prelude::*;

const SECOND: Micros = 1_000_000;
const ACKS: Acks = Acks {
    every: 32,
    delay: 1_000,
};

/// What came of a tunnel between two times.
struct Seen {
    mbits: f64,
    median: f64,
    high: f64,
    lost: f64,
}

/// Prints a line of a table, and returns what is in it.
fn seen(name: &str, sim: &Sim, flow: usize, from: Micros, to: Micros) -> Seen {
    let seen = Seen {
        mbits: sim.mbits(flow, from, to),
        median: sim.delay(0.5, from, to),
        high: sim.delay(0.95, from, to),
        lost: sim.lost(flow) * 100.0,
    };
    let controller = sim.sender(flow).controller();
    println!(
        "{name:44} {:8.1} Mbit/s, queue {:6.1} / {:6.1} ms (p50/p95), lost {:5.2} %; believes {:.1} Mbit/s, {:.1} ms",
        seen.mbits,
        seen.median,
        seen.high,
        seen.lost,
        controller.bandwidth() as f64 * 8e-6,
        controller.min_rtt().unwrap_or(0) as f64 / 1e3,
    );
    seen
}

/// One tunnel with endless data, for `seconds`.
fn bulk(name: &str, path: Path, acks: Acks, seconds: u64) -> Seen {
    let mut sim = Sim::new(path);
    let flow = sim.tunnel(Source::Bulk, acks, 0);
    sim.run(seconds * SECOND);
    seen(name, &sim, flow, SECOND, seconds * SECOND)
}

#[test]
fn alone_it_fills_the_path_and_keeps_the_queue_short() {
    for (mbits, queue, rtt, seconds, high) in [
        (50.0, 1000, 20.0, 20, 10.0),
        (50.0, 100, 20.0, 20, 10.0),
        (50.0, 20, 20.0, 20, 10.0),
        (5.0, 100, 30.0, 20, 25.0),
        (1.0, 50, 50.0, 20, 100.0),
        (500.0, 2000, 100.0, 8, 50.0),
        (1000.0, 1000, 1.0, 3, 5.0),
    ] {
        let name = format!("{mbits} Mbit/s, {queue} packets, {rtt} ms");
        let seen = bulk(&name, Path::new(mbits, queue, rtt), ACKS, seconds);
        assert!(seen.mbits > 0.93 * mbits, "{name}");
        assert!(seen.high < high, "{name}");
        assert!(seen.median < high / 2.0, "{name}");
        assert!(seen.lost < 5.0, "{name}");
    }
}

#[test]
fn losses_by_chance_cost_what_was_lost_and_little_more() {
    for (mbits, loss) in [(50.0, 0.01), (50.0, 0.02), (100.0, 0.02), (100.0, 0.05)] {
        let mut path = Path::new(mbits, 1000, 40.0);
        path.loss = loss;
        let name = format!("{mbits} Mbit/s, 40 ms, {} % lost", loss * 100.0);
        let seen = bulk(&name, path, ACKS, 12);
        assert!(seen.mbits > 0.85 * mbits, "{name}");
        assert!(seen.high < 45.0, "{name}");
    }
}

#[test]
fn packets_that_overtake_each_other_cost_nothing() {
    for reorder in [0.02, 0.1] {
        let mut path = Path::new(50.0, 1000, 40.0);
        path.reorder = reorder;
        let mut sim = Sim::new(path);
        let flow = sim.tunnel(Source::Bulk, ACKS, 0);
        sim.run(12 * SECOND);
        let name = format!("{} % come 10 ms late", reorder * 100.0);
        let seen = seen(&name, &sim, flow, SECOND, 12 * SECOND);
        let recovery = sim.sender(flow).recovery();
        println!(
            "    {} spurious losses, packet threshold {}",
            recovery.spurious_losses(),
            recovery.packet_threshold()
        );
        assert!(seen.mbits > 45.0, "{name}");
        assert!(recovery.spurious_losses() < 50, "{name}");
    }
}

#[test]
fn a_delay_that_jitters_costs_little() {
    for (jitter, loss) in [
        (1_000, 0.0),
        (2_000, 0.0),
        (5_000, 0.0),
        (20_000, 0.0),
        (20_000, 0.01),
    ] {
        let mut path = Path::new(50.0, 1000, 20.0);
        path.jitter = jitter;
        path.loss = loss;
        let name = format!("20 to {} ms, {} % lost", 20 + jitter / 1000, loss * 100.0);
        let seen = bulk(&name, path, ACKS, 25);
        assert!(seen.mbits > 45.0, "{name}");
        assert!(seen.high < 50.0, "{name}");
    }
}

/// The tunnel's share over that of a TCP flow which comes later.
fn against(kind: Kind, path: Path, start: Micros) -> f64 {
    let (mbits, queue, rtt) = (path.rate as f64 * 8e-6, path.queue, path.rtt / 1000);
    let mut sim = Sim::new(path);
    let tunnel = sim.tunnel(Source::Bulk, ACKS, 0);
    let tcp = sim.tcp(kind, start);
    let (from, to) = (15 * SECOND, 55 * SECOND);
    sim.run(to);
    let (ours, theirs) = (sim.mbits(tunnel, from, to), sim.mbits(tcp, from, to));
    println!(
        "{kind:5?} on {mbits:5} Mbit/s, {queue:4} packets, {rtt:2} ms: {ours:5.1} and {theirs:5.1} Mbit/s, ratio {:.2}, lost {:.2} and {:.2} %, queue {:5.1} ms",
        ours / theirs,
        sim.lost(tunnel) * 100.0,
        sim.lost(tcp) * 100.0,
        sim.delay(0.5, from, to),
    );
    ours / theirs
}

#[test]
fn with_cubic_it_shares_within_a_factor_of_two() {
    for (mbits, queue, rtt) in [
        (50.0, 22, 20.0),
        (50.0, 45, 20.0),
        (50.0, 90, 20.0),
        (50.0, 180, 20.0),
        (50.0, 360, 20.0),
        (50.0, 1000, 20.0),
        (20.0, 100, 60.0),
        (100.0, 300, 10.0),
    ] {
        let ratio = against(Kind::Cubic, Path::new(mbits, queue, rtt), 5_370_000);
        assert!(
            (0.5..2.0).contains(&ratio),
            "{mbits} {queue} {rtt}: {ratio}"
        );
    }
}

#[test]
fn with_reno_it_shares_about_within_a_factor_of_two() {
    for (queue, rtt) in [(22, 20.0), (45, 20.0), (90, 20.0), (180, 20.0), (360, 20.0)] {
        let ratio = against(Kind::Reno, Path::new(50.0, queue, rtt), 5_000_000);
        assert!((0.45..2.2).contains(&ratio), "{queue} {rtt}: {ratio}");
    }
}

#[test]
fn tunnels_share_among_themselves() {
    for (count, queue, least, most) in [(2, 90, 0.8, 1.2), (4, 90, 0.6, 1.4), (4, 1000, 0.6, 1.4)] {
        let mut sim = Sim::new(Path::new(50.0, queue, 20.0));
        for flow in 0..count {
            sim.tunnel(Source::Bulk, ACKS, flow * 1_300_000);
        }
        let (from, to) = (15 * SECOND, 45 * SECOND);
        sim.run(to);
        let shares: Vec<_> = (0..count as usize)
            .map(|flow| sim.mbits(flow, from, to))
            .collect();
        let fair = 50.0 / count as f64;
        println!(
            "{count} tunnels, {queue} packets: {shares:.1?} Mbit/s, queue {:.1} / {:.1} ms, lost {:.2} %",
            sim.delay(0.5, from, to),
            sim.delay(0.95, from, to),
            sim.lost(0) * 100.0
        );
        for share in shares {
            assert!((least..most).contains(&(share / fair)), "{share} of {fair}");
        }
    }
}

#[test]
fn a_path_that_becomes_faster_or_slower_is_found_within_seconds() {
    for (before, after, within) in [(50.0, 10.0, 3), (10.0, 50.0, 2), (20.0, 200.0, 2)] {
        let mut path = Path::new(before, 1000, 20.0);
        path.steps = vec![(5 * SECOND, (after * 1e6 / 8.0) as u64)];
        let mut sim = Sim::new(path);
        let flow = sim.tunnel(Source::Bulk, ACKS, 0);
        for second in 6..=9 {
            sim.run(second * SECOND);
            let (from, to) = ((second - 1) * SECOND, second * SECOND);
            let seen = seen(
                &format!("{before} to {after} Mbit/s, second {}", second - 5),
                &sim,
                flow,
                from,
                to,
            );
            if second > 5 + within {
                assert!(seen.mbits > 0.93 * after && seen.high < 25.0);
            }
        }
    }
}

#[test]
fn what_is_offered_below_the_path_is_carried_and_teaches_nothing_wrong() {
    for (rate, on, off) in [(10.0, 200, 300), (100.0, 200, 300), (5.0, 20, 500)] {
        let mut sim = Sim::new(Path::new(50.0, 1000, 20.0));
        let source = Source::OnOff {
            rate: (rate * 1e6 / 8.0) as u64,
            on: on * 1000,
            off: off * 1000,
        };
        let flow = sim.tunnel(source, ACKS, 0);
        sim.run(12 * SECOND);
        let name = format!("{rate} Mbit/s for {on} of {} ms", on + off);
        let seen = seen(&name, &sim, flow, SECOND, 12 * SECOND);
        let offered = f64::min(rate, 50.0) * on as f64 / (on + off) as f64;
        assert!(seen.mbits > 0.93 * offered, "{name}");
        assert!(seen.high < 12.0 && seen.lost < 0.1, "{name}");
    }
}

#[test]
fn a_trickle_does_not_slow_what_comes_behind_it() {
    // The acknowledgements of an upload inside, say, before a download begins.
    let rtt = 20_000;
    let mut sender = Sender::new(0, 0);
    for number in 0..5_000 {
        let now = number * 1_000;
        if now >= rtt {
            sender.acked([(0, number - rtt / 1_000)], None, 0, now);
        }
        sender.sent(number, 120, false, now);
        sender.left(false);
    }
    let controller = sender.controller();
    assert_eq!(controller.state(), State::Startup);
    assert!(controller.window() >= INITIAL_WINDOW);
    let first = 2.77 * INITIAL_WINDOW as f64 / (rtt as f64 / 1e6);
    assert!(controller.pacing_rate() as f64 > 0.9 * first);
}

#[test]
fn acknowledgements_in_bunches_do_not_throttle() {
    for (mbits, rtt, every, delay, seconds) in [
        (50.0, 20.0, 2, 25_000, 10),
        (50.0, 20.0, 128, 10_000, 10),
        (1000.0, 1.0, 128, 3_000, 3),
        (6000.0, 0.05, 128, 1_000, 2),
        (6000.0, 0.05, 100_000, 5_000, 2),
    ] {
        let name = format!("{mbits} Mbit/s, {rtt} ms, ACK per {every} or {delay} us");
        let seen = bulk(
            &name,
            Path::new(mbits, 4000, rtt),
            Acks { every, delay },
            seconds,
        );
        assert!(seen.mbits > 0.95 * mbits, "{name}");
        assert!(seen.lost < 1.0, "{name}");
    }
}

#[test]
fn a_thread_that_does_not_always_run_makes_up_for_it() {
    for (mbits, on, off) in [
        (3000.0, 4_000, 4_000),
        (3000.0, 1_000, 3_000),
        (600.0, 300, 4_000),
        (50.0, 200, 1_000),
    ] {
        let mut sim = Sim::new(Path::new(
            mbits,
            8000,
            if mbits > 100.0 { 0.1 } else { 20.0 },
        ));
        let flow = sim.tunnel(Source::Bulk, ACKS, 0);
        sim.set_duty(flow, on, off);
        sim.run(4 * SECOND);
        let name = format!("{mbits} Mbit/s, runs {on} of {} us", on + off);
        let seen = seen(&name, &sim, flow, SECOND, 4 * SECOND);
        assert!(seen.mbits > 0.9 * mbits, "{name}");
    }
}

#[test]
fn a_slow_session_on_a_short_path_keeps_a_late_turn_in_flight() {
    let mut sim = Sim::new(Path::new(90.0, 1000, 0.1));
    let flow = sim.tunnel(Source::Bulk, ACKS, 0);
    sim.run(3 * SECOND);
    let seen = seen("90 Mbit/s, 0.1 ms", &sim, flow, SECOND, 3 * SECOND);
    let controller = sim.sender(flow).controller();
    let turn = controller.bandwidth() / 100;
    assert!(controller.window() >= turn, "{}", controller.window());
    assert!(seen.mbits > 89.0 && seen.high < 15.0);
}

#[test]
fn after_a_silence_of_the_path_it_goes_on() {
    let mut path = Path::new(50.0, 1000, 20.0);
    path.blackouts = vec![(4 * SECOND, 7 * SECOND)];
    let mut sim = Sim::new(path);
    let flow = sim.tunnel(Source::Bulk, ACKS, 0);
    for second in 4..=10 {
        sim.run(second * SECOND);
        let name = format!("silent from 4 to 7 s, second {second}");
        let seen = seen(&name, &sim, flow, (second - 1) * SECOND, second * SECOND);
        if second >= 9 {
            assert!(seen.mbits > 45.0);
        }
    }
}

#[test]
fn inside_a_tunnel_full_of_bulk_a_ping_stays_short() {
    for (kinds, ecn, mbits, queue, rtt) in [
        (&[Kind::Cubic][..], false, 50.0, 1000, 20.0),
        (&[Kind::Cubic; 4], false, 50.0, 1000, 20.0),
        (&[Kind::Cubic; 16], true, 50.0, 1000, 20.0),
        (&[Kind::Reno], true, 50.0, 100, 20.0),
        (&[Kind::Cubic], false, 10.0, 1000, 20.0),
        (&[Kind::Cubic], false, 1000.0, 1000, 1.0),
    ] {
        let seconds = if mbits > 100.0 { 3 } else { 15 };
        let mut sim = Sim::new(Path::new(mbits, queue, rtt));
        let flow = sim.tunnel_with(kinds, ecn, ACKS, 0);
        let (from, to) = (SECOND, seconds * SECOND);
        sim.run(to);
        let name = format!(
            "{} TCP inside, {mbits} Mbit/s, {queue} packets",
            kinds.len()
        );
        let seen = seen(&name, &sim, flow, from, to);
        println!(
            "    ping {:.1} / {:.1} ms (p50/p95) where idle is {rtt}",
            sim.ping(0.5, from, to),
            sim.ping(0.95, from, to)
        );
        assert!(seen.mbits > 0.9 * mbits, "{name}");
        assert!(sim.ping(0.95, from, to) < rtt + 15.0, "{name}");
    }
}

#[test]
fn the_first_flight_is_paced_and_bounded() {
    let mut sender = Sender::new(0, 0);
    let mut now = 0;
    let mut number = 0;
    while now < 50_000 {
        if sender.allowance(now) > 0 {
            sender.sent(number, 1452, true, now);
            number += 1;
        } else if let Some(at) = sender.next_send(now) {
            assert!(at > now);
            now = at;
        } else {
            break;
        }
    }
    let in_flight = sender.recovery().bytes_in_flight();
    assert!(
        (INITIAL_WINDOW * 7 / 8..=INITIAL_WINDOW).contains(&in_flight),
        "{in_flight}"
    );
    assert_eq!((sender.allowance(now), sender.next_send(now)), (0, None));
    assert!((1_000..=FIRST_RTT).contains(&now), "{now}");
}

#[test]
fn another_path_begins_with_nothing() {
    let mut sim = Sim::new(Path::new(50.0, 1000, 20.0));
    let flow = sim.tunnel(Source::Bulk, ACKS, 0);
    sim.run(2 * SECOND);
    assert!(sim.sender(flow).controller().bandwidth() > 5_000_000);
    sim.with_sender(flow, |sender, now| {
        assert!(sender.begin_path(now).0 > 0);
        assert_eq!(sender.controller().bandwidth(), 0);
        assert_eq!(sender.controller().window(), INITIAL_WINDOW);
        assert!(sender.allowance(now) > 0);
    });
    sim.run(4 * SECOND);
    assert!(sim.mbits(flow, 3 * SECOND, 4 * SECOND) > 45.0);
}

#[test]
fn an_idle_session_costs_less_than_two_kibibytes() {
    let mut sender = Sender::new(0, 0);
    for round in 0..100 {
        let now = round * 20_000;
        sender.sent_batch(round * 500, 500, 1400, 1400, true, now);
        sender.acked([(0, round * 500 + 499)], None, 0, now + 20_000);
    }
    while let Some(at) = sender.next_timer() {
        sender.on_timer(at);
    }
    let memory = sender.memory();
    assert!(memory < 2048, "{memory}");
}

#[derive(Clone, Debug)]
enum Step {
    Send {
        count: u16,
        bytes: u16,
    },
    Empty,
    Ack {
        back: u64,
        length: u64,
        gap: u64,
        delay: Micros,
    },
    Timer,
    Wait {
        time: Micros,
    },
    Path,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        10 => (0..70u16, any::<u16>()).prop_map(|(count, bytes)| Step::Send { count, bytes }),
        2 => Just(Step::Empty),
        10 => (0..20u64, 0..200u64, 0..5u64, any::<u64>())
            .prop_map(|(back, length, gap, delay)| Step::Ack { back, length, gap, delay }),
        2 => Just(Step::Timer),
        10 => prop_oneof![0..500u64, 0..50_000u64, 0..20_000_000u64]
            .prop_map(|time| Step::Wait { time }),
        1 => Just(Step::Path),
    ];
    prop::collection::vec(step, 1..150)
}

proptest! {
    /// Whatever happens, waiting for the timers gives an allowance again.
    #[test]
    fn it_never_stalls(steps in steps()) {
        let mut sender = Sender::new(0, 0);
        let (mut number, mut now) = (0, 0);
        for step in steps {
            match step {
                Step::Send { count, bytes } => {
                    let sent = u64::from(sender.recovery().packets_in_flight());
                    if sent + u64::from(count) < 30_000 {
                        sender.sent_batch(number, count, bytes, bytes / 2, true, now);
                        number += u64::from(count);
                    }
                }
                Step::Empty => sender.left(false),
                Step::Ack { back, length, gap, delay } => {
                    let top = number.saturating_sub(back);
                    let low = top.saturating_sub(length);
                    let next = low.saturating_sub(gap + 2);
                    sender.acked([(low, top), (next.saturating_sub(length), next)], None, delay, now);
                }
                Step::Timer => {
                    sender.on_timer(now);
                }
                Step::Wait { time } => now += time,
                Step::Path => {
                    sender.begin_path(now);
                }
            }
            let controller = sender.controller();
            prop_assert!(controller.window() >= MIN_WINDOW);
            prop_assert!(controller.pacing_rate() > 0);
            let allowance = sender.allowance(now) as u64;
            prop_assert!(allowance <= controller.window());
            if allowance > 0 {
                prop_assert_eq!(sender.next_send(now), Some(now));
            }
        }
        for _ in 0..10_000 {
            if sender.allowance(now) > 0 {
                break;
            }
            let at = [sender.next_send(now), sender.next_timer()].into_iter().flatten().min();
            prop_assert!(at.is_some());
            now = now.max(at.unwrap_or(now));
            sender.on_timer(now);
        }
        prop_assert!(sender.allowance(now) > 0);
    }
}

#[test]
#[ignore = "prints a trace"]
fn trace() {
    let get = |name: &str, default: f64| {
        std::env::var(name)
            .ok()
            .and_then(|v| v.parse().ok())
            .unwrap_or(default)
    };
    let mut path = Path::new(
        get("MBITS", 50.0),
        get("QUEUE", 180.0) as usize,
        get("RTT", 20.0),
    );
    path.loss = get("LOSS", 0.0);
    let mut sim = Sim::new(path);
    let tunnel = match get("INNER", 0.0) as usize {
        0 => sim.tunnel(
            Source::Bulk,
            Acks {
                every: get("EVERY", 32.0) as u32,
                delay: get("DELAY", 1000.0) as u64,
            },
            0,
        ),
        1 => sim.tunnel_with(&[Kind::Reno], false, ACKS, 0),
        count => sim.tunnel_with(&vec![Kind::Cubic; count - 1], false, ACKS, 0),
    };
    let tcp = match get("TCP", 1.0) as u32 {
        0 => None,
        1 => Some(sim.tcp(Kind::Cubic, 5 * SECOND)),
        _ => Some(sim.tcp(Kind::Reno, 5 * SECOND)),
    };
    let (from, to, step) = (get("FROM", 4.0), get("TO", 40.0), get("STEP", 0.2));
    let mut time = from;
    while time < to {
        let now = (time * 1e6) as Micros;
        sim.run(now);
        let back = (step.max(0.1) * 1e6) as Micros;
        let c = sim.sender(tunnel).controller();
        println!(
            "{time:6.2} {:?} bw {:6.1} got {:6.1} tcp {:6.1} min {:6.1} max {:6.1} win {:4} fly {:4} high {:5} low {:5} queue {:6.1} lost {:.2} {}",
            c.state,
            c.bandwidth() as f64 * 8e-6,
            sim.mbits(tunnel, now.saturating_sub(back), now),
            tcp.map_or(0.0, |tcp| sim.mbits(tcp, now.saturating_sub(back), now)),
            c.min_rtt.unwrap_or(0) as f64 / 1e3,
            c.max_rtt.get() as f64 / 1e3,
            c.window / 1400,
            sim.sender(tunnel).recovery().bytes_in_flight() / 1400,
            c.high.min(99_999 * 1400) / 1400,
            c.low.min(99_999 * 1400) / 1400,
            sim.delay(0.5, now.saturating_sub(back), now),
            sim.lost(tunnel) * 100.0,
            if c.contested { "contested" } else { "" },
        );
        time += step;
    }
}

#[test]
#[ignore = "measures; run it with --release"]
fn what_a_packet_costs() {
    use crate::fq_codel::{Config, FqCodel};
    use std::hint::black_box;
    use std::time::Instant;

    const COUNT: u64 = 45 * 100_000;
    let start = Instant::now();
    let mut sender = Sender::new(0, 0);
    let (mut number, mut now) = (0, 0);
    while number < COUNT {
        now += 60;
        black_box(sender.allowance(now));
        sender.sent_batch(number, 45, 1400, 1400, true, now);
        number += 45;
        if number % 90 == 0 {
            sender.acked([(0, number - 450.min(number))], None, 0, now);
        }
    }
    let each = start.elapsed().as_nanos() / u128::from(COUNT);
    println!("a packet in a batch of 45, an ACK for 90: {each} ns");

    let start = Instant::now();
    let mut sender = Sender::new(0, 0);
    for number in 0..COUNT {
        black_box(sender.allowance(number * 8));
        sender.sent(number, 84, true, number * 8);
        if number % 32 == 0 {
            sender.acked([(0, number.saturating_sub(100))], None, 0, number * 8);
        }
    }
    let each = start.elapsed().as_nanos() / u128::from(COUNT);
    println!("a packet alone, an ACK for 32: {each} ns");

    let mut queue = FqCodel::new(Config::default(), [1, 2]);
    let mut packets: Vec<Vec<u8>> = (0..64)
        .map(|flow| {
            let mut packet = vec![0x45; 1400];
            packet[20] = flow % 8;
            packet
        })
        .collect();
    let start = Instant::now();
    for round in 0..COUNT / 64 {
        for packet in packets.drain(..) {
            queue.enqueue(packet, round * 100);
        }
        while let Some(packet) = queue.dequeue(round * 100 + 50) {
            packets.push(packet);
        }
    }
    let each = start.elapsed().as_nanos() / u128::from(COUNT);
    println!("a packet through the flow queue: {each} ns");
}

#[test]
fn a_queue_that_marks_is_kept_short_without_a_loss() {
    for (mbits, above, rtt) in [
        (5.0, 10, 30.0),
        (20.0, 10, 20.0),
        (50.0, 20, 20.0),
        (50.0, 60, 20.0),
        (50.0, 20, 80.0),
        (100.0, 40, 5.0),
        (500.0, 200, 40.0),
    ] {
        let mut path = Path::new(mbits, 10_000, rtt);
        path.ecn = Ecn::Above(above);
        let mut sim = Sim::new(path);
        let flow = sim.tunnel(Source::Bulk, ACKS, 0);
        sim.run(20 * SECOND);
        let name = format!("{mbits} Mbit/s, {rtt} ms, marks above {above} packets");
        let seen = seen(&name, &sim, flow, SECOND, 20 * SECOND);
        assert!(sim.sender(flow).marks(), "{name}");
        assert!(seen.mbits > 0.9 * mbits, "{name}");
        let threshold = above as f64 * 1400.0 * 8.0 / mbits / 1e3;
        assert!(seen.high < threshold + 2.0, "{name}");
        assert!(seen.lost == 0.0, "{name}");
    }
}

#[test]
fn a_path_that_clears_marks_costs_nothing() {
    let mut path = Path::new(50.0, 1000, 20.0);
    path.ecn = Ecn::Bleached;
    let mut sim = Sim::new(path);
    let flow = sim.tunnel(Source::Bulk, ACKS, 0);
    sim.run(SECOND / 5);
    assert!(!sim.sender(flow).marks());
    sim.run(10 * SECOND);
    let seen = seen("clears marks", &sim, flow, SECOND, 10 * SECOND);
    assert!(seen.mbits > 46.5);
}

#[test]
fn a_path_that_drops_marked_packets_is_used_after_a_second() {
    let mut path = Path::new(50.0, 1000, 20.0);
    path.ecn = Ecn::Dropped;
    let mut sim = Sim::new(path);
    let flow = sim.tunnel(Source::Bulk, ACKS, 0);
    sim.with_sender(flow, |sender, _| sender.recovery_mut().hint_rtt(20_000));
    sim.run(5 * SECOND / 4);
    assert!(!sim.sender(flow).marks());
    sim.run(10 * SECOND);
    let seen = seen("drops marked packets", &sim, flow, 2 * SECOND, 10 * SECOND);
    assert!(seen.mbits > 46.5);
}

#[test]
fn codel_is_heard() {
    for (mbits, rtt) in [
        (5.0, 30.0),
        (20.0, 20.0),
        (50.0, 20.0),
        (50.0, 80.0),
        (500.0, 40.0),
    ] {
        let mut path = Path::new(mbits, 10_000, rtt);
        path.ecn = Ecn::Codel;
        let name = format!("{mbits} Mbit/s, {rtt} ms, CoDel");
        let seen = bulk(&name, path, ACKS, 20);
        assert!(seen.mbits > 0.9 * mbits, "{name}");
        assert!(seen.high < 20.0, "{name}");
        assert!(seen.lost == 0.0, "{name}");
    }
}

#[test]
fn with_tcp_at_a_queue_that_marks_it_shares_within_a_factor_of_two() {
    for (mbits, queue, rtt, five_ms) in [
        (20.0, 71, 20.0, 8),
        (50.0, 178, 20.0, 22),
        (100.0, 178, 10.0, 44),
    ] {
        for ecn in [Ecn::Codel, Ecn::Above(five_ms)] {
            for kind in [Kind::Cubic, Kind::Reno] {
                let mut path = Path::new(mbits, queue, rtt);
                path.ecn = ecn;
                let ratio = against(kind, path, 3 * SECOND);
                assert!((0.5..2.0).contains(&ratio), "{ecn:?}");
            }
        }
    }
}
