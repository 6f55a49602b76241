//! What segmentation and coalescing cost: `cargo run --release --example offload_cost`.
//!
//! Prints the best and the median of many rounds, in nanoseconds per packet. The best is what the
//! code costs when nothing else runs on the core; the data is as cold or warm as a 64 KiB buffer is
//! that is used over and over.

use std::hint::black_box;
use std::time::Instant;

use qvpn_datapath::offload::{Coalescer, Segments, VnetHeader, checksum};

const ROUNDS: usize = 2000;

fn measure(name: &str, packets: usize, mut round: impl FnMut()) {
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            round();
            start.elapsed().as_nanos() as f64 / packets as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!("{name:46} {:6.1} {:6.1}", times[0], times[ROUNDS / 2]);
}

/// A super-packet of TCP in IPv4 or IPv6, with timestamps, as the kernel gives it.
fn tcp(v6: bool, segment: usize, count: usize) -> (VnetHeader, Vec<u8>) {
    let ip_len = if v6 { 40 } else { 20 };
    let header_len = ip_len + 32;
    let payload = (segment - header_len) * count;
    let mut packet = Vec::new();
    if v6 {
        packet.extend([0x60, 0, 0, 0]);
        packet.extend(((32 + payload) as u16).to_be_bytes());
        packet.extend([6, 64]);
        packet.extend([0x20; 32]);
    } else {
        packet.extend([0x45, 0]);
        packet.extend(((header_len + payload) as u16).to_be_bytes());
        packet.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    }
    packet.extend([
        0x9c, 0x40, 1, 0xbb, 0, 0, 0, 0, 0, 0, 0, 1, 0x80, 0x10, 1, 0, 0, 0, 0, 0,
    ]);
    packet.extend([1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]);
    packet.extend((0..payload).map(|at| ((at * at) >> 7) as u8));
    let mut header = VnetHeader {
        gso_type: if v6 { 4 } else { 1 },
        hdr_len: header_len as u16,
        gso_size: (segment - header_len) as u16,
        ..VnetHeader::default()
    };
    // Not NEEDS_CSUM, so that the pseudo-header need not be computed here.
    header.flags = 0;
    (header, packet)
}

/// The same in UDP.
fn udp(segment: usize, count: usize) -> (VnetHeader, Vec<u8>) {
    let payload = (segment - 28) * count;
    let mut packet = vec![0x45, 0];
    packet.extend(((28 + payload) as u16).to_be_bytes());
    packet.extend([0, 1, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    packet.extend([0x9c, 0x40, 1, 0xbb]);
    packet.extend(((8 + payload) as u16).to_be_bytes());
    packet.extend([1, 1]);
    packet.extend((0..payload).map(|at| ((at * at) >> 7) as u8));
    let header = VnetHeader {
        gso_type: 5,
        gso_size: (segment - 28) as u16,
        ..VnetHeader::default()
    };
    (header, packet)
}

/// Cuts into `out` as a sender does, with some bytes of QUIC before each segment.
fn cut(header: &VnetHeader, packet: &[u8], out: &mut [u8], ends: &mut Vec<usize>) {
    ends.clear();
    let mut segments = Segments::new(header, packet).expect("it is well-formed");
    let mut at = 0;
    while let Some(length) = segments.next_into(&mut out[at + 23..]) {
        ends.push(at + 23);
        at += 23 + length + 16;
        ends.push(at - 16);
    }
}

fn main() {
    println!("{:46} {:>6} {:>6}", "ns per packet", "best", "median");
    let data: Vec<u8> = (0..65_536_usize).map(|at| ((at * at) >> 7) as u8).collect();
    let mut out = vec![0; 100_000];
    measure("checksum of 1400 bytes", 46, || {
        for packet in data.chunks_exact(1400) {
            black_box(checksum::sum(black_box(packet)));
        }
    });
    measure("copy and checksum of 1400 bytes", 46, || {
        for (from, to) in data.chunks_exact(1400).zip(out.chunks_exact_mut(1439)) {
            black_box(checksum::copy_and_sum(black_box(from), &mut to[23..1423]));
        }
    });
    measure("copy of 1400 bytes (for comparison)", 46, || {
        for (from, to) in data.chunks_exact(1400).zip(out.chunks_exact_mut(1439)) {
            to[23..1423].copy_from_slice(black_box(from));
            black_box(to);
        }
    });

    let kinds = [
        ("TCP/IPv4, 46 of 1400", tcp(false, 1400, 46)),
        ("TCP/IPv6, 46 of 1400", tcp(true, 1400, 46)),
        ("UDP/IPv4, 46 of 1400", udp(1400, 46)),
        ("UDP/IPv4, 46 of 92", udp(92, 46)),
        ("TCP/IPv4, 1 of 1400", tcp(false, 1400, 1)),
    ];
    for (name, (header, packet)) in &kinds {
        let mut ends = Vec::new();
        cut(header, packet, &mut out, &mut ends);
        let count = ends.len() / 2;
        measure(&format!("segment {name}"), count, || {
            cut(black_box(header), black_box(packet), &mut out, &mut ends);
        });
        let mut arena = out.clone();
        let mut coalescer = Coalescer::new();
        let mut writes = 0;
        measure(&format!("coalesce {name}"), count, || {
            // The first headers are fixed up in place: put them back.
            arena[..200].copy_from_slice(&out[..200]);
            coalescer.clear();
            for end in ends.chunks_exact(2) {
                coalescer.add(black_box(&arena), end[0]..end[1]);
            }
            writes = 0;
            for write in coalescer.finish(&mut arena) {
                writes += 1;
                black_box(write.header.to_bytes());
                write.ranges.for_each(|range| {
                    black_box(range);
                });
            }
        });
        assert_eq!(writes, 1);
    }

    // Eight flows, one packet of each in turn.
    let mut packets: Vec<Vec<u8>> = Vec::new();
    let mut ends = Vec::new();
    for flow in 0..8 {
        let (header, mut packet) = tcp(false, 1400, 8);
        packet[21] = flow;
        cut(&header, &packet, &mut out, &mut ends);
        packets.extend(ends.chunks_exact(2).map(|end| out[end[0]..end[1]].to_vec()));
    }
    let order = (0..64).map(|index| &packets[index % 8 * 8 + index / 8]);
    let given: Vec<u8> = order.flatten().copied().collect();
    let mut arena = given.clone();
    let mut coalescer = Coalescer::new();
    measure("coalesce TCP/IPv4, 8 flows in turn, 8 each", 64, || {
        arena[..8 * 1400].copy_from_slice(&given[..8 * 1400]);
        coalescer.clear();
        for index in 0..64 {
            coalescer.add(black_box(&arena), index * 1400..(index + 1) * 1400);
        }
        assert_eq!(coalescer.finish(&mut arena).map(black_box).count(), 8);
    });
    let mut acks = Vec::new();
    for _ in 0..64 {
        let (_, packet) = tcp(false, 52, 1);
        acks.extend(packet);
    }
    measure("coalesce TCP/IPv4, pure ACKs (never joined)", 64, || {
        coalescer.clear();
        for index in 0..64 {
            coalescer.add(black_box(&acks), index * 52..(index + 1) * 52);
        }
        assert_eq!(coalescer.finish(&mut acks).map(black_box).count(), 64);
    });
}
