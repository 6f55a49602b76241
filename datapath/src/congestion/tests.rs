use super::sim::{Acks, Kind, Path, Sim, Source};
use super::*;

const SECOND: Micros = 1_000_000;
const ACKS: Acks = Acks {
    every: 32,
    delay: 1_000,
};

#[test]
fn look() {
    println!("one tunnel with bulk");
    for (mbits, queue, rtt, loss) in [
        (50.0, 1000, 20.0, 0.0),
        (50.0, 100, 20.0, 0.0),
        (50.0, 20, 20.0, 0.0),
        (50.0, 1000, 40.0, 0.01),
        (50.0, 1000, 40.0, 0.02),
        (100.0, 1000, 40.0, 0.01),
        (100.0, 1000, 40.0, 0.02),
        (100.0, 1000, 40.0, 0.05),
        (5.0, 100, 30.0, 0.0),
        (1.0, 50, 50.0, 0.0),
        (1000.0, 1000, 1.0, 0.0),
        (5000.0, 2000, 0.05, 0.0),
        (500.0, 2000, 100.0, 0.0),
    ] {
        let mut path = Path::new(mbits, queue, rtt);
        path.loss = loss;
        let mut sim = Sim::new(path);
        let flow = sim.tunnel(Source::Bulk, ACKS, 0);
        let end = if mbits > 1000.0 { 3 } else { 30 };
        sim.run(end * SECOND);
        println!(
            "{mbits:6} Mbit/s {queue:5} packets {rtt:5} ms {:4.1} % loss: {:7.1} Mbit/s, queue {:5.1} / {:5.1} ms (p50/p95), lost {:.2} %, bw {:.1}, first 2 s {:.1}",
            loss * 100.0,
            sim.mbits(flow, SECOND, end * SECOND),
            sim.delay(0.5, SECOND, end * SECOND),
            sim.delay(0.95, SECOND, end * SECOND),
            sim.lost(flow) * 100.0,
            sim.sender(flow).controller().bandwidth() as f64 * 8e-6,
            sim.mbits(flow, 0, 2 * SECOND),
        );
    }
    println!("against TCP");
    for kind in [Kind::Cubic, Kind::Reno] {
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
            print!("{kind:?} {mbits:6} Mbit/s {queue:5} packets {rtt:5} ms:");
            for start in [5_000_000, 5_370_000, 6_110_000, 7_770_000] {
                let mut sim = Sim::new(Path::new(mbits, queue, rtt));
                let tunnel = sim.tunnel(Source::Bulk, ACKS, 0);
                let tcp = sim.tcp(kind, start);
                sim.run(65 * SECOND);
                let (a, b) = (
                    sim.mbits(tunnel, 15 * SECOND, 65 * SECOND),
                    sim.mbits(tcp, 15 * SECOND, 65 * SECOND),
                );
                print!(
                    "  {:5.2} ({:4.1}) lost {:.2} / {:.2} %",
                    a / b,
                    sim.delay(0.5, 15 * SECOND, 65 * SECOND),
                    sim.lost(tunnel) * 100.0,
                    sim.lost(tcp) * 100.0,
                );
            }
            println!();
        }
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
        0 => sim.tunnel(Source::Bulk, ACKS, 0),
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
            "{time:6.2} {:8} bw {:6.1} got {:6.1} tcp {:6.1} min {:6.1} max {:6.1} win {:4} fly {:4} high {:5} low {:5} queue {:6.1} lost {:.2} {}",
            format!("{:?}", c.state),
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
fn look_more() {
    let report = |name: &str, sim: &Sim, flow: usize, from: Micros, to: Micros| {
        println!(
            "{name}: {:.1} Mbit/s, queue {:.1} / {:.1} ms (p50/p95), lost {:.2} %, bw {:.1} min {:.1} {:?} spurious {} threshold {}",
            sim.mbits(flow, from, to),
            sim.delay(0.5, from, to),
            sim.delay(0.95, from, to),
            sim.lost(flow) * 100.0,
            sim.sender(flow).controller().bandwidth() as f64 * 8e-6,
            sim.sender(flow).controller().min_rtt().unwrap_or(0) as f64 / 1e3,
            sim.sender(flow).controller().state(),
            sim.sender(flow).recovery().spurious_losses(),
            sim.sender(flow).recovery().packet_threshold(),
        );
    };
    for (a, b) in [(50.0, 10.0), (10.0, 50.0), (100.0, 20.0), (20.0, 200.0)] {
        let mut path = Path::new(a, 1000, 20.0);
        path.steps = vec![(10 * SECOND, (b * 1e6 / 8.0) as u64)];
        let mut sim = Sim::new(path);
        let flow = sim.tunnel(Source::Bulk, ACKS, 0);
        for time in [10, 11, 12, 13, 14, 20] {
            sim.run(time * SECOND);
            report(
                &format!("step {a} to {b}, {time} s"),
                &sim,
                flow,
                (time - 1) * SECOND,
                time * SECOND,
            );
        }
    }
    for (rate, on, off) in [
        (10.0, 200, 300),
        (100.0, 200, 300),
        (100.0, 1000, 1000),
        (5.0, 20, 500),
    ] {
        let mut sim = Sim::new(Path::new(50.0, 1000, 20.0));
        let source = Source::OnOff {
            rate: (rate * 1e6 / 8.0) as u64,
            on: on * 1000,
            off: off * 1000,
        };
        let flow = sim.tunnel(source, ACKS, 0);
        sim.run(30 * SECOND);
        report(
            &format!("on-off {rate} {on} {off}"),
            &sim,
            flow,
            SECOND,
            30 * SECOND,
        );
    }
    for reorder in [0.02, 0.1] {
        let mut path = Path::new(50.0, 1000, 40.0);
        path.reorder = reorder;
        let mut sim = Sim::new(path);
        let flow = sim.tunnel(Source::Bulk, ACKS, 0);
        sim.run(30 * SECOND);
        report(
            &format!("reordered {reorder}"),
            &sim,
            flow,
            SECOND,
            30 * SECOND,
        );
    }
    for (mbits, rtt, every, delay) in [
        (50.0, 20.0, 2, 25_000),
        (50.0, 20.0, 128, 10_000),
        (1000.0, 1.0, 128, 3_000),
        (5000.0, 0.05, 128, 1_000),
        (5000.0, 0.05, 128, 5_000),
        (10_000.0, 0.05, 32, 1_000),
    ] {
        let mut sim = Sim::new(Path::new(mbits, 3000, rtt));
        let flow = sim.tunnel(Source::Bulk, Acks { every, delay }, 0);
        sim.run(5 * SECOND);
        report(
            &format!("{mbits} Mbit/s {rtt} ms, ACK every {every} or {delay} us"),
            &sim,
            flow,
            2 * SECOND,
            5 * SECOND,
        );
    }
    for count in [2, 4, 8] {
        for queue in [90, 1000] {
            let mut sim = Sim::new(Path::new(50.0, queue, 20.0));
            for flow in 0..count {
                sim.tunnel(Source::Bulk, ACKS, flow * 1_300_000);
            }
            sim.run(60 * SECOND);
            let shares: Vec<_> = (0..count as usize)
                .map(|flow| (sim.mbits(flow, 20 * SECOND, 60 * SECOND) * 10.0).round() / 10.0)
                .collect();
            println!(
                "{count} tunnels, {queue} packets: {shares:?} queue {:.1} / {:.1} ms lost {:.2} %",
                sim.delay(0.5, 20 * SECOND, 60 * SECOND),
                sim.delay(0.95, 20 * SECOND, 60 * SECOND),
                sim.lost(0) * 100.0
            );
        }
    }
}

#[test]
fn look_inner() {
    for kinds in [
        &[][..],
        &[Kind::Cubic],
        &[Kind::Cubic; 4],
        &[Kind::Reno],
        &[Kind::Cubic; 16],
    ] {
        for ecn in [false, true] {
            for (mbits, queue, rtt, loss) in [
                (50.0, 1000, 20.0, 0.0),
                (50.0, 100, 20.0, 0.0),
                (10.0, 1000, 20.0, 0.0),
                (50.0, 1000, 40.0, 0.01),
                (1000.0, 1000, 1.0, 0.0),
            ] {
                let mut path = Path::new(mbits, queue, rtt);
                path.loss = loss;
                let mut sim = Sim::new(path);
                let flow = sim.tunnel_with(kinds, ecn, ACKS, 0);
                sim.run(20 * SECOND);
                println!(
                    "{} flows, ECN {ecn}, {mbits} Mbit/s {rtt} ms {loss} loss: {:.1} Mbit/s, ping {:.1} / {:.1} / {:.1} ms, queue {:.1} / {:.1}, lost {:.2} %, bw {:.1}",
                    kinds.len(),
                    sim.mbits(flow, 2 * SECOND, 20 * SECOND),
                    sim.ping(0.5, 2 * SECOND, 20 * SECOND),
                    sim.ping(0.95, 2 * SECOND, 20 * SECOND),
                    sim.ping(1.0, 0, 20 * SECOND),
                    sim.delay(0.5, 2 * SECOND, 20 * SECOND),
                    sim.delay(0.95, 2 * SECOND, 20 * SECOND),
                    sim.lost(flow) * 100.0,
                    sim.sender(flow).controller().bandwidth() as f64 * 8e-6,
                );
            }
        }
    }
}
