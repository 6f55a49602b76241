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
            let mut sim = Sim::new(Path::new(mbits, queue, rtt));
            let tunnel = sim.tunnel(Source::Bulk, ACKS, 0);
            let tcp = sim.tcp(kind, 5 * SECOND);
            sim.run(65 * SECOND);
            let (a, b) = (
                sim.mbits(tunnel, 15 * SECOND, 65 * SECOND),
                sim.mbits(tcp, 15 * SECOND, 65 * SECOND),
            );
            println!(
                "{kind:?} {mbits:6} Mbit/s {queue:5} packets {rtt:5} ms: tunnel {a:5.1}, TCP {b:5.1}, ratio {:.2}, lost {:.2} / {:.2} %, queue {:.1} ms",
                a / b,
                sim.lost(tunnel) * 100.0,
                sim.lost(tcp) * 100.0,
                sim.delay(0.5, 15 * SECOND, 65 * SECOND),
            );
        }
    }
}
