//! Two sessions that talk to each other without a network.

use std::net::SocketAddr;

use proptest::prelude::*;
use qvpn_datapath::frames::Frames;
use qvpn_datapath::outbox::{Outbox, Target, Wire};
use qvpn_datapath::protection::{Keys, PacketKey, Phase, Suite, header_key};
use qvpn_datapath::received::Received;
use qvpn_datapath::sent::{MAX_IN_FLIGHT, Sent};
use qvpn_datapath::session::{Arrival, Session, Settings};

const PACKET_SIZE: usize = 1472;
const ID: [u8; 8] = *b"12345678";

#[derive(Default)]
struct Packets(Vec<Vec<u8>>);

impl Wire for Packets {
    fn send(&mut self, _target: &Target, bytes: &[u8], segment: usize) {
        self.0.extend(bytes.chunks(segment).map(<[u8]>::to_vec));
    }
}

fn phase(generation: u8, swap: bool) -> Phase {
    let key =
        |salt: u8| PacketKey::new(Suite::Aes128Gcm, &[generation ^ salt; 16], &[salt; 12]).unwrap();
    if swap {
        Phase { send: key(1), receive: key(2) }
    } else {
        Phase { send: key(2), receive: key(1) }
    }
}

fn session(swap: bool) -> Session {
    let header = || header_key(Suite::Aes128Gcm, &[5; 16]).unwrap();
    let settings = Settings {
        target: Target { socket: 0, peer: SocketAddr::from(([127, 0, 0, 1], 1)), local: None },
        peer_id: ID.to_vec(),
        own_id_length: 8,
        packet_size: PACKET_SIZE,
        ack_delay_exponent: 3,
    };
    let keys = Keys::new((header(), header()), phase(10, swap), phase(11, swap), 0);
    Session::new(settings, keys, Received::new(&[], 0), Sent::new(0, [], 0), vec![0, 0], 0)
}

struct Pair {
    a: Session,
    b: Session,
    outbox: Outbox,
    now: u64,
}

impl Pair {
    fn new() -> Self {
        Self { a: session(false), b: session(true), outbox: Outbox::default(), now: 1_000_000 }
    }

    fn send(&mut self, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut wire = Packets::default();
        for packet in packets {
            self.a.send(
                packet.len(),
                |out| out.copy_from_slice(packet),
                &mut self.outbox,
                &mut wire,
                self.now,
            );
        }
        self.a.finish(&mut self.outbox, &mut wire, self.now);
        self.outbox.flush(&mut wire);
        wire.0
    }

    /// What is due at `b` now.
    fn answer(&mut self) -> Vec<Vec<u8>> {
        let mut wire = Packets::default();
        self.b.timers(&mut self.outbox, &mut wire, self.now);
        self.outbox.flush(&mut wire);
        wire.0
    }
}

fn receive(session: &mut Session, packet: &[u8], now: u64) -> (Arrival, Vec<Vec<u8>>) {
    let (mut out, mut frames) = (vec![0; packet.len()], Frames::default());
    let arrival = session.receive(packet, &mut out, &mut frames, now, true);
    let inner = frames.datagrams.iter().map(|range| out[session.inner(range)].to_vec()).collect();
    (arrival, inner)
}

#[test]
fn small_packets_share_one_and_large_ones_fill_theirs() {
    let mut pair = Pair::new();
    let mtu = pair.a.mtu();
    assert_eq!(mtu, PACKET_SIZE - 1 - 8 - 2 - 1 - 2 - 16);
    let wire = pair.send(&[vec![1; 60], vec![2; 60], vec![3; mtu], vec![4; 60]]);
    let sizes: Vec<_> = wire.iter().map(Vec::len).collect();
    assert_eq!(sizes.len(), 3);
    assert_eq!(sizes[1], PACKET_SIZE);
    let mut inner = Vec::new();
    for packet in wire {
        inner.extend(receive(&mut pair.b, &packet, 0).1);
    }
    assert_eq!(inner, [vec![1; 60], vec![2; 60], vec![3; mtu], vec![4; 60]]);
}

#[test]
fn a_packet_counts_once() {
    let mut pair = Pair::new();
    let wire = pair.send(&[vec![1; 60]]);
    assert_eq!(receive(&mut pair.b, &wire[0], 0).0, Arrival::Taken);
    assert_eq!(receive(&mut pair.b, &wire[0], 0).0, Arrival::Dropped);
    let mut forged = pair.send(&[vec![1; 60]]).remove(0);
    forged[20] ^= 1;
    assert_eq!(receive(&mut pair.b, &forged, 0).0, Arrival::Unknown);
}

#[test]
fn acks_come_after_a_while_and_give_the_round_trip_time() {
    let mut pair = Pair::new();
    for packet in pair.send(&[vec![1; 60]]) {
        receive(&mut pair.b, &packet, pair.now + 30_000);
    }
    pair.now += 30_000;
    assert_eq!(pair.answer().len(), 0, "not at once");
    pair.now = pair.b.deadline().expect("soon");
    let acks = pair.answer();
    assert_eq!(acks.len(), 1);
    assert_eq!(pair.b.deadline(), None, "an ACK asks for none");
    assert_eq!(receive(&mut pair.a, &acks[0], pair.now), (Arrival::Taken, vec![]));
    assert_eq!(pair.a.sent.in_flight(), 0);
    assert!(pair.a.sent.rtt.smoothed >= 30_000);
}

#[test]
fn an_ack_rides_with_a_datagram() {
    let mut pair = Pair::new();
    for packet in pair.send(&[vec![1; 60]]) {
        receive(&mut pair.b, &packet, pair.now);
    }
    std::mem::swap(&mut pair.a, &mut pair.b);
    for packet in pair.send(&[vec![2; 60]]) {
        receive(&mut pair.b, &packet, pair.now + 1);
    }
    assert_eq!(pair.b.sent.in_flight(), 0, "acknowledged");
}

#[test]
fn other_datagrams_go_up_with_all_that_comes_with_them() {
    let mut pair = Pair::new();
    let mut other = session(false);
    std::mem::swap(&mut pair.a, &mut other);
    let settings = other.settings;
    pair.a = Session::new(settings, other.keys, other.received, other.sent, vec![4, 0], 0);
    let wire = pair.send(&[vec![1; 60]]);
    assert_eq!(receive(&mut pair.b, &wire[0], pair.now).0, Arrival::Up);
    assert!(pair.b.deadline().is_some(), "acknowledged here all the same");
    assert_eq!(receive(&mut pair.b, &wire[0], pair.now).0, Arrival::Dropped);
}

#[test]
fn what_finds_no_room_above_is_as_if_lost() {
    let mut pair = Pair::new();
    let wire = {
        let mut wire = Packets::default();
        let mut stranger = session(false);
        stranger = Session::new(
            stranger.settings,
            stranger.keys,
            stranger.received,
            stranger.sent,
            vec![4, 0],
            0,
        );
        stranger.send(9, |out| out.fill(1), &mut pair.outbox, &mut wire, 0);
        stranger.finish(&mut pair.outbox, &mut wire, 0);
        pair.outbox.flush(&mut wire);
        wire.0
    };
    let (mut out, mut frames) = (vec![0; 2000], Frames::default());
    let full = pair.b.receive(&wire[0], &mut out, &mut frames, 0, false);
    assert_eq!(full, Arrival::Dropped);
    assert_eq!(receive(&mut pair.b, &wire[0], 0).0, Arrival::Up, "it comes again");
}

#[test]
fn a_silent_peer_is_probed_and_costs_a_bounded_number_of_packets() {
    let mut pair = Pair::new();
    let full = vec![1; pair.a.mtu()];
    for _ in 0..MAX_IN_FLIGHT + 5 {
        pair.send(std::slice::from_ref(&full));
    }
    assert_eq!(pair.a.sent.in_flight(), MAX_IN_FLIGHT);
    assert_eq!(pair.a.counters.unacknowledged, 5);
    std::mem::swap(&mut pair.a, &mut pair.b);
    pair.now = pair.b.deadline().expect("a probe");
    let probe = pair.answer();
    assert_eq!(probe.len(), 1);
    // Everything before it was lost, and still the peer understands its number.
    assert_eq!(receive(&mut pair.a, &probe[0], pair.now).0, Arrival::Taken);
    std::mem::swap(&mut pair.a, &mut pair.b);
    pair.now = pair.b.deadline().expect("the answer");
    let acks = pair.answer();
    receive(&mut pair.a, &acks[0], pair.now);
    assert_eq!(pair.a.sent.in_flight(), 0);
    assert_eq!(pair.a.counters.lost as usize, MAX_IN_FLIGHT);
}

#[test]
fn an_ack_that_concerns_others_is_kept_for_them() {
    let mut pair = Pair::new();
    pair.a.sent.skip_to(3);
    for packet in pair.send(&[vec![1; 60]]) {
        receive(&mut pair.b, &packet, pair.now);
    }
    pair.now += 25_000;
    let acks = pair.answer();
    receive(&mut pair.a, &acks[0], pair.now);
    assert_eq!(pair.a.foreign_ack.as_ref().unwrap()[..2], [0x02, 3]);
}

proptest! {
    #[test]
    fn inner_packets_arrive_as_they_were_whatever_is_lost(
        sizes in proptest::collection::vec((1usize..1442, any::<bool>()), 0..60)
    ) {
        let mut pair = Pair::new();
        let packets: Vec<Vec<u8>> =
            sizes.iter().enumerate().map(|(at, (size, _))| vec![at as u8; *size]).collect();
        let (mut arrived, mut number) = (Vec::new(), 0);
        for packet in pair.send(&packets) {
            number += 1;
            if number % 5 != 0 {
                let (arrival, inner) = receive(&mut pair.b, &packet, pair.now);
                prop_assert_eq!(arrival, Arrival::Taken);
                arrived.extend(inner);
            }
        }
        let mut rest = packets.iter();
        for packet in &arrived {
            prop_assert!(rest.any(|sent| sent == packet), "in order, unchanged");
        }
    }
}
